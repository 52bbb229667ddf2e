"""The commands about language models: `scissorhands demo language` and `scissorhands lm evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

from scissorhands_jax.cli.options import Command, Option
from scissorhands_jax.cli.shared import OverwriteOptions, print_json
from scissorhands_jax.terminal import Console, say


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogsCommand(Command):
    """Compute every aggregate that published evaluation logs of a language model allow.

    Reads the per-example logs of torch frameworks, TOFU's eval_log_aggregated.json and OpenUnlearning's *_EVAL.json,
    and prints model utility, forget quality with each of the three truth ratios, and a paired test. With the logs of
    three retrained networks or more, forgetting is also tested against what retrained networks differ by.
    """

    example: ClassVar[str] = "lm evaluate --logs unlearned.json --retain-logs retain90.json --json"

    logs: Annotated[Path, Option("Log of the network in question.", metavar="FILE")]
    retain_logs: Annotated[
        tuple[Path, ...],
        Option(
            "Log of a network that never saw the forget set; give the option again for each further one.",
            metavar="FILE",
            repeat="each",
        ),
    ] = ()
    original_log: Annotated[
        Path | None,
        Option("Log of the network before it forgot, for the share of its knowledge that remains.", metavar="FILE"),
    ] = None
    json: Annotated[bool, Option("Print JSON instead of tables.")] = False

    def run(self, console: Console) -> None:
        from scissorhands_jax.language.judgement_report import print_judgement
        from scissorhands_jax.language.judging import judge_logs

        judgement = judge_logs(self.logs, self.retain_logs, self.original_log)
        if self.json:
            print_json(judgement.document())
            for remark in judgement.remarks:
                say(console, f"note: {remark}")
        else:
            print_judgement(judgement, Console())
