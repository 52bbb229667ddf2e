"""The commands about one network: unlearn, plan, tune and evaluate."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from scissorhands_jax.cli import choices
from scissorhands_jax.cli.options import RARE, Effect, Option, SettingsCommand, options_of
from scissorhands_jax.cli.shared import (
    JobOptions,
    LongCommand,
    NetworkOptions,
    ResumeOptions,
    network_changes,
    network_settings,
    print_json,
)
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config as config_lib
from scissorhands_jax.terminal import Console, LoggedConsole

STATUS_COLLAPSED = 4
"""Exit status of `unlearn` if accuracy fell by more than `--max-loss`."""

_many = functools.partial(Option, group="many devices, many processes")
_speed = functools.partial(Option, group="speed, to override the automatic choice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlearnCommand(ResumeOptions, JobOptions):
    """Make a trained network forget a part of its training set.

    Settings of the method follow as NAME=VALUE, e.g. method.fraction=0.05 method.forget_weight=0.1; `--help-settings
    METHOD` lists them with their defaults and meaning.
    """

    example: ClassVar[str] = (
        "unlearn --weights resnet20.th --model resnet20 --dataset cifar10 --data-dir data --forget class:3 --out run"
    )
    required: ClassVar[tuple[str, ...]] = ("network", "forget")
    effects: ClassVar[tuple[Effect, ...]] = (
        Effect(options=("seconds_to_meet",), needs=("distributed", "coordinator", "num_processes", "process_id")),
    )

    out: Annotated[Path, Option("Folder for the result.", metavar="RUN")]
    max_loss: Annotated[
        float,
        Option(
            "Percentage points of accuracy that the run may cost; if it costs more, that is a warning and the exit "
            "status is 4.",
            metavar="POINTS",
            group=RARE,
        ),
    ] = 10.0
    insist: Annotated[
        bool,
        Option(
            "Also unlearn a network that is near chance on its training set, or that does not know the forget set "
            "better than unseen examples.",
            group=RARE,
        ),
    ] = False
    checkpoint_every: Annotated[
        int | None, Option("Steps between checkpoints. Default: one after every epoch.", metavar="STEPS", group=RARE)
    ] = None
    mesh: Annotated[
        str | None,
        _many(
            "Divide batches over DATA devices and large arrays over MODEL, e.g. 8 or 4x2. Default: one device, or all "
            "devices where there are many processes.",
            metavar="DATA[xMODEL]",
        ),
    ] = None
    fsdp: Annotated[bool, _many("Divide large arrays over the DATA devices as well.")] = False
    distributed: Annotated[
        bool, _many("This is one of many processes on a cluster that JAX knows (Slurm, TPU, ...).")
    ] = False
    coordinator: Annotated[
        str | None, _many("This is one of many processes, and process 0 is reached here.", metavar="HOST:PORT")
    ] = None
    num_processes: Annotated[int | None, _many("Number of processes.", metavar="N")] = None
    process_id: Annotated[
        int | None, _many("Which of them this is, counted from 0; process 0 writes the results.", metavar="I")
    ] = None
    seconds_to_meet: Annotated[
        int | None, _many("Seconds to wait for the others at the beginning. Default: 120.", metavar="N")
    ] = None
    steps_per_call: Annotated[
        int | None,
        _speed(
            "Steps in one compiled call. Default: many on an accelerator, 1 on a CPU.",
            metavar="N",
        ),
    ] = None
    feed_from: Annotated[
        Literal["auto", "device", "host"],
        _speed("Where the data are kept: device or host; auto chooses by their size.", metavar="WHERE"),
    ] = "auto"

    @property
    def _address(self) -> tuple[str | None, int | None, int | None]:
        return self.coordinator, self.num_processes, self.process_id

    @property
    def _is_distributed(self) -> bool:
        return self.distributed or any(value is not None for value in self._address)

    def open_console(self) -> LoggedConsole:
        """The console for progress and remarks; only the first of many processes has a log."""
        return LoggedConsole(quiet=True) if self.process_id else super().open_console()

    def run(self, console: LoggedConsole) -> int:  # type: ignore[override]
        from scissorhands_jax.training import distributed, sharding

        if self._is_distributed:
            distributed.start(*self._address, seconds_to_meet=self.seconds_to_meet)
            if not distributed.is_first():
                console.quiet, console.log_file = True, None
        with distributed.explaining():
            layout = None
            if self.mesh or self._is_distributed or self.fsdp:
                sizes = sharding.parse_mesh(self.mesh) if self.mesh else ()
                layout = sharding.make_layout(*sizes, fsdp=self.fsdp)

            from scissorhands_jax.jobs import run_summaries, unlearning

            results = unlearning.unlearn(
                self.config(),
                self.out,
                checkpoint_every=self.checkpoint_every,
                overwrite=self.overwrite,
                resume=self.resume,
                layout=layout,
                steps_per_call=self.steps_per_call,
                feed_from=self.feed_from,
                insist=self.insist,
                max_loss=self.max_loss,
                console=console,
            )
        collapsed = run_summaries.lost_points(results.before, results.after) > self.max_loss
        return STATUS_COLLAPSED if collapsed else 0

    def leave(self, status: int) -> int:
        """Ends the other processes of the run as well."""
        if not self._is_distributed:
            return status
        from scissorhands_jax.training import distributed

        return distributed.leave(status)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanCommand(LongCommand, JobOptions):
    """Predict how much memory and time a run will take.

    The arguments are those of unlearn, or --config FILE; without weights the network is initialized at random. A few
    real steps are taken and measured, and no result is kept. Settings follow as NAME=VALUE, as for unlearn, e.g.
    method.microbatches=4 model_options.remat=true; `--help-settings METHOD` lists those of a method.
    """

    example: ClassVar[str] = "plan --config run/results.json --devices 4"

    config_file: Annotated[
        Path | None,
        Option(
            "File results.json or run.json of an earlier run, which says what to plan.", flag="--config", metavar="FILE"
        ),
    ] = None
    devices: Annotated[int, Option("Number of devices of the run.", metavar="N")] = 1
    memory: Annotated[
        float | None, Option("Memory of each device in GiB. Default: what this device has.", metavar="G", group=RARE)
    ] = None
    json: Annotated[bool, Option("Print JSON instead of the table.", group=RARE)] = False
    out: Annotated[str | None, Option("Accepted as for unlearn; nothing is written to it.", metavar="RUN")] = None

    def run(self, console: Console) -> None:
        from scissorhands_jax.jobs import planning
        from scissorhands_jax.jobs.plan_report import print_plan

        config = self.config() if self.config_file is None else self._saved_config(self.config_file)
        # So far the process has loaded what a run loads, in one thread, so its CPU time is about the time of that.
        starting = time.process_time()
        plan = planning.plan_run(
            config, devices=self.devices, memory_gib=self.memory, starting=starting, console=console
        )
        if self.json:
            print_json(plan.document())
        else:
            print_plan(plan, Console())

    def _saved_config(self, path: Path) -> config_lib.RunConfig:
        from scissorhands_jax.jobs.earlier_runs import read_run_config

        if self.method is not None:
            raise InputError("--config says what to run; leave --method out")
        for name, found in options_of(type(self)).items():
            if found.setting is not None and getattr(self, name) is not None:
                advice = f"leave {found.flag} out, or write it as {found.setting}=VALUE"
                raise InputError(f"--config says what to run; {advice}")
        config = read_run_config(path)
        if self.data_dir is not None:
            config = dataclasses.replace(config, data_dir=self.data_dir)
        return config_lib.override(config, self.settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneCommand(ResumeOptions, JobOptions):
    """Choose the method's settings without an oracle: on validation data, within a budget.

    Settings of the method that are to stay as you give them follow as NAME=VALUE, as for unlearn; they are not tuned.
    `--help-settings METHOD` lists all with their defaults and meaning.
    """

    when_interrupted: ClassVar[str] = "the same command with --resume continues with the next trial"
    example: ClassVar[str] = "tune --checkpoint run --forget random:0.1 --validation test:0.5 --out tuning"
    required: ClassVar[tuple[str, ...]] = ("network", "forget")

    out: Annotated[Path, Option("Folder for the result.", metavar="RUN")]
    trials: Annotated[int, Option("Number of settings to try.", metavar="N")] = 12
    insist: Annotated[bool, Option("Also tune for a network that is near chance on its training set.", group=RARE)] = (
        False
    )
    minutes: Annotated[float | None, Option("Start no trial after this many minutes.", metavar="N", group=RARE)] = None

    def run(self, console: Console) -> None:
        from scissorhands_jax.jobs import tuning

        tuning.tune(
            self.config(),
            self.out,
            num_trials=self.trials,
            max_minutes=self.minutes,
            insist=self.insist,
            kept=[change.partition("=")[0].strip().removeprefix("method.") for change in self.settings],
            overwrite=self.overwrite,
            resume=self.resume,
            console=console,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateCommand(LongCommand, NetworkOptions, SettingsCommand):
    """Print a network's accuracies as JSON, and the gates that say whether they can be trusted.

    Options of the network follow as NAME=VALUE, e.g. model_options.normalize=fixed; `--help-settings MODEL` lists them.
    """

    example: ClassVar[str] = "evaluate --checkpoint run"
    required: ClassVar[tuple[str, ...]] = ("network",)
    settings_of: ClassVar[str] = "MODEL"
    choices: ClassVar[Mapping[str, str]] = choices.NETWORK_LINES

    retrained: Annotated[
        str | None,
        Option(
            "Folder of a run of --method retrain on the same forget set; without one no gate can be run.", metavar="RUN"
        ),
    ] = None

    @classmethod
    def listed_settings(cls, method: str | None) -> Mapping[str, Any]:
        """The options of a network."""
        return {"model_options.": network_settings(method)}

    def run(self, console: Console) -> None:
        from scissorhands_jax.jobs import evaluating

        changes = network_changes(self.settings, "evaluate")
        config = config_lib.override(self.network(), changes)
        found = evaluating.evaluate_network(config, retrained=self.retrained, console=console)
        print_json(found.document())
