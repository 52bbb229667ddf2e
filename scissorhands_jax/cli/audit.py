"""The commands `scissorhands audit | audit key | audit sign`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from scissorhands_jax.cli import choices
from scissorhands_jax.cli.options import RARE, Command, Option, SettingsCommand
from scissorhands_jax.cli.shared import (
    DEFAULT_METHOD,
    DataFolderOptions,
    LongCommand,
    OverwriteOptions,
    default_settings,
)
from scissorhands_jax.errors import InputError, suggest
from scissorhands_jax.jobs import config as config_lib
from scissorhands_jax.terminal import Console, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditCommand(OverwriteOptions, DataFolderOptions, SettingsCommand):
    """Attack unlearning methods with an ensemble of networks, and say whether the attacks can be trusted.

    Trains an ensemble of networks, half of them with and half without each forget set, and measures how well attacks
    distinguish networks that forgot a set from networks that never saw it. It prints first what this will cost. The
    same command continues an audit that was stopped, and enlarges it with a higher --networks.

    Settings follow as NAME=VALUE: of the networks and their data, e.g. training.epochs=30 train_limit=5000, and of a
    method by its name, e.g. scissorhands.fraction=0.05; `--help-settings METHOD` lists all of them.
    """

    choices: ClassVar[Mapping[str, str]] = choices.METHOD_LINES
    example: ClassVar[str] = "audit --tier smoke --dataset digits --model mlp --method scissorhands --out audit"
    when_interrupted: ClassVar[str] = "the same command continues with the next network"

    out: Annotated[Path, Option("Folder for results.json, scores.json and report.html.", metavar="DIR")]
    tier: Annotated[
        str,
        Option(
            "How thorough the audit is. smoke: a population attack on two networks; standard: every attack on 16 "
            "networks; full: every attack on 128 networks.",
            metavar="NAME",
        ),
    ] = "standard"
    networks: Annotated[
        int | None, Option("Another number of networks: an even one from 2 to 256.", metavar="N", group=RARE)
    ] = None
    store: Annotated[
        Path | None,
        Option(
            "Folder for trained networks, which several audits can share. Default: DIR/networks.",
            metavar="DIR",
            group=RARE,
        ),
    ] = None
    dataset: Annotated[str, Option("Name of the data set, as for unlearn.", metavar="NAME")] = "digits"
    model: Annotated[str, Option("Name of the network: mlp, resnet20, resnet18, ...", metavar="NAME")] = "mlp"
    method: Annotated[
        tuple[str, ...],
        Option(
            "Name of a method; give the option again for each further one. Default: scissorhands.",
            metavar="NAME",
            repeat="each",
        ),
    ] = ("scissorhands",)
    forget: Annotated[
        tuple[str, ...],
        Option(
            "A forget set, as for unlearn; give the option again for each further one. They must not overlap, and a "
            "random:SHARE is drawn from what the ones before it left. Default: three of random:0.05.",
            metavar="SPEC",
            repeat="each",
        ),
    ] = ("random:0.05",) * 3
    seed: Annotated[int, Option("Seed of forget sets and networks.", metavar="N", group=RARE)] = 0

    @classmethod
    def listed_settings(cls, method: str | None) -> Mapping[str, Any]:
        """The settings of the method by its name, and those of the networks and their data."""
        from scissorhands_jax.jobs.experiment import Setup

        name = method or DEFAULT_METHOD
        return {f"{name}.": default_settings(name), "": Setup()}

    def run(self, console: Console) -> None:
        from scissorhands_jax.audit import run_audit
        from scissorhands_jax.jobs.experiment import Experiment, Scenario, Setup
        from scissorhands_jax.methods import METHODS

        methods = {name: self._method_settings(name) for name in self.method}
        others = [text for text in self.settings if text.split(".")[0] not in methods]
        for text in others:
            name = text.split(".")[0]
            if "." in text.partition("=")[0] and name in METHODS:
                raise InputError(f"{text} is of {name}, which is not audited here; add --method {name}")
        setup = config_lib.override(Setup(), others)
        scenarios = tuple(
            Scenario(
                name=f"{spec}, set {number}" if self.forget.count(spec) > 1 else spec, forget=(spec,), methods=methods
            )
            for number, spec in enumerate(self.forget, start=1)
        )
        experiment = Experiment(
            name=f"{self.dataset}, {self.model}",
            dataset=self.dataset,
            model=self.model,
            scenarios=scenarios,
            **vars(setup),
        )
        run_audit(
            experiment,
            self.out,
            tier=self.tier,
            num_networks=self.networks,
            seed=self.seed,
            data_dir=self.data_dir,
            networks=self.store,
            overwrite=self.overwrite,
            console=console,
        )

    def _method_settings(self, name: str) -> Any:
        """The settings of a method to audit, with the changes that the user gave for it."""
        from scissorhands_jax.methods import METHODS
        from scissorhands_jax.methods.settings import on_upper_layers

        known = [method for method in METHODS if method != "retrain"]
        if name not in known:
            raise InputError(f"there is no method {name!r} to audit; {suggest(name, known)}")
        prefix = f"{name}."
        own = [text.removeprefix(prefix) for text in self.settings if text.startswith(prefix)]
        return config_lib.override(on_upper_layers(METHODS[name](), self.model), own)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyCommand(Command):
    """Draw a key with which an auditor signs audits.

    The ledgers that are to take these audits must be told to trust the public key: `scissorhands request trust`.
    """

    example: ClassVar[str] = "audit key --out auditor.pem --public auditor_public.pem"

    out: Annotated[Path, Option("File for the private key, which only its owner can read.", metavar="PEM")]
    public: Annotated[Path, Option("File for the public key, which others may have.", metavar="PEM")]

    def run(self, console: Console) -> None:
        from scissorhands_jax.deletion import signing

        signing.make_private(self.out, self.public)
        say(console, f"keep {self.out} to yourself, and give {self.public} to those who are to trust your audits")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignCommand(LongCommand, DataFolderOptions):
    """Sign a finished audit as evidence about one run, for `scissorhands request run --audit`.

    The audit must have the forget set, the method with its settings and the data of the run. The signed document names
    the network before and after the run, and holds the scores from which its numbers follow.
    """

    example: ClassVar[str] = "audit sign --audit audit --run run --key auditor.pem"

    audit: Annotated[Path, Option("Folder of the audit.", metavar="DIR")]
    run_folder: Annotated[
        Path,
        Option(
            "Folder of the run: that of `scissorhands unlearn`, or of a ledger runs/000001 and so on.",
            flag="--run",
            metavar="RUN",
        ),
    ]
    key: Annotated[Path, Option("File with the auditor's private key.", metavar="PEM")]

    def run(self, console: Console) -> None:
        from scissorhands_jax.deletion import audits

        path = audits.sign_audit(self.audit, self.run_folder, self.key, data_dir=self.data_dir)
        say(console, f"written: {path}")
