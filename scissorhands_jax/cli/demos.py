"""The demonstrations: `scissorhands demo`, `demo diffusion` and `demo language`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

from scissorhands_jax.cli.options import RARE, Option
from scissorhands_jax.cli.shared import OverwriteOptions
from scissorhands_jax.terminal import Console


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoCommand(OverwriteOptions):
    """Train a small network, make it forget, and show that it did.

    A classifier of digits forgets a tenth of its training images, and another one a whole class; this takes one to
    two minutes on two CPU cores. `scissorhands demo diffusion` has a network that draws digits forget how one of them
    is drawn.
    """

    example: ClassVar[str] = "demo --out demo"

    out: Annotated[Path, Option("Folder for results.json and report.html.", metavar="DIR")]
    seeds: Annotated[int, Option("Number of seeds.", metavar="N", group=RARE)] = 3

    def run(self, console: Console) -> None:
        from scissorhands_jax.jobs import demo

        demo.run_demo(self.out, num_seeds=self.seeds, overwrite=self.overwrite, console=console)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionDemoCommand(OverwriteOptions):
    """Train a network that draws digits, make it forget how one is drawn, and show that it did.

    This takes about three minutes.
    """

    example: ClassVar[str] = "demo diffusion --out drawings --digit 3"

    out: Annotated[Path, Option("Folder for results.json and report.html.", metavar="DIR")]
    digit: Annotated[int, Option("The digit that is forgotten.", metavar="D")] = 0
    seed: Annotated[int, Option("Seed of everything.", metavar="N")] = 0
    published: Annotated[
        bool, Option("Also forget with the loss of the published code, which takes half a minute more.")
    ] = False

    def run(self, console: Console) -> None:
        from scissorhands_jax.diffusion.demo import running, settings

        chosen = settings.DigitsSettings(digit=self.digit, seed=self.seed)
        running.run_digits_demo(self.out, chosen, published=self.published, overwrite=self.overwrite, console=console)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageDemoCommand(OverwriteOptions):
    """Train a small transformer on facts about made-up people, make it forget some of them, and show that it did.

    No data set is needed. Next to Scissorhands, NPO and gradient difference stand networks that never met these people.
    """

    example: ClassVar[str] = "demo language --out facts"

    out: Annotated[Path, Option("Folder for report.html, answers.txt, results.json and logs.", metavar="DIR")]
    seed: Annotated[int, Option("Seed of everything.", metavar="N")] = 0

    def run(self, console: Console) -> None:
        from scissorhands_jax.language.demo.running import run_language_demo
        from scissorhands_jax.language.demo.settings import FactsSettings

        run_language_demo(self.out, FactsSettings(seed=self.seed), overwrite=self.overwrite, console=console)
