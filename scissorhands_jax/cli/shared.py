"""The options that several commands share, and the configurations that they describe."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from scissorhands_jax.cli import choices
from scissorhands_jax.cli.options import MANY, RARE, Command, Option, SettingsCommand, options_of
from scissorhands_jax.errors import InputError, suggest
from scissorhands_jax.jobs import config as config_lib
from scissorhands_jax.terminal import LOG_HELP, QUIET_HELP, LogFile, LoggedConsole

if TYPE_CHECKING:
    from scissorhands_jax.training.sharding import Layout

DEFAULT_METHOD = "scissorhands"
"""The method that is run if the user names none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongCommand(Command):
    """A command that can take long, whose progress can be followed or silenced."""

    quiet: Annotated[bool, Option(QUIET_HELP, group="progress")] = False
    log: Annotated[Path | None, Option(LOG_HELP, metavar="FILE", group="progress")] = None

    def open_console(self) -> LoggedConsole:
        """The console for progress and remarks, as the options say."""
        log = None if self.log is None else LogFile(self.log, getattr(self, "out", None))
        return LoggedConsole(quiet=self.quiet, log=log)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverwriteOptions(LongCommand):
    """A command that refuses a folder with an earlier result unless the user asks to replace it."""

    overwrite: Annotated[bool, Option("Replace an earlier result in the folder.", exclusive="existing")] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshOptions(Command):
    """A command whose work many devices can share."""

    mesh: Annotated[
        str | None,
        Option(
            "Divide batches over DATA devices and large arrays over MODEL, e.g. 8 or 4x2. Default: one device.",
            metavar="DATA[xMODEL]",
            group=MANY,
        ),
    ] = None
    fsdp: Annotated[bool, Option("Divide large arrays over the DATA devices as well.", group=MANY)] = False

    def layout(self) -> Layout | None:
        """The layout over the devices that are here; None for one."""
        from scissorhands_jax.training import sharding

        if not self.mesh and not self.fsdp:
            return None
        return sharding.make_layout(*(sharding.parse_mesh(self.mesh) if self.mesh else ()), fsdp=self.fsdp)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeOptions(OverwriteOptions):
    """A command that can continue a run that was interrupted."""

    when_interrupted: ClassVar[str] = "the same command with --resume continues from the last checkpoint"

    resume: Annotated[
        bool,
        Option(
            "Continue what was interrupted in the folder; nothing that was finished is done again.",
            exclusive="existing",
        ),
    ] = False

    def check_inputs(self, out: Path, *inputs: Path | None) -> None:
        """Refuses files in the folder of a run that begins, which would be removed; see `runs.open_folder`.

        Args:
          out: The folder.
          inputs: Files and folders that the command reads and the run does not know; None is none.

        Raises:
          InputError: As `files.check_inputs`.
        """
        from scissorhands_jax import files

        files.check_inputs(out, inputs, resume=self.resume)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFolderOptions(Command):
    """A command that reads a data set."""

    data_dir: Annotated[str | None, Option("Folder of the data set's files.", metavar="DIR")] = None


_file = functools.partial(Option, group="how the weights file is read, where that is not found out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingOptions(Command):
    """A command that reads a file of weights from wherever it comes."""

    check: Annotated[
        str | None,
        Option(
            "File with some images and what the network answered to them where it comes from; the answers here are "
            "compared with these, and if they differ, the usual suspects are tried.",
            metavar="FILE",
            setting="check",
        ),
    ] = None
    layout: Annotated[
        str | None,
        _file(
            "Whose form of the network the file has: authors, akamaster, torchvision, timm, chenyaofo or kuangliu; or "
            "in-order, if its arrays are those of the network in order. Default: as its names show.",
            metavar="NAME",
            setting="layout",
        ),
    ] = None
    prefix: Annotated[
        str | None, _file("Prefix of the network's names in the file.", metavar="TEXT", setting="prefix")
    ] = None
    rename: Annotated[
        str | None,
        _file(
            "File with new names for arrays: the name in the file and the one in the network on each line, or JSON.",
            metavar="FILE",
            setting="rename",
        ),
    ] = None
    ema: Annotated[
        bool | None, _file("Whether to read averaged weights (EMA) where the file has both.", setting="ema")
    ] = None

    def reading(self) -> dict[str, Any]:
        """The options by the names of their fields."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(ReadingOptions)}


def network_changes(settings: Sequence[str], name: str) -> list[str]:
    """The settings of a command that takes no others than those of the network.

    Args:
      settings: What the user wrote as NAME=VALUE.
      name: The command.

    Raises:
      InputError: One is not a setting of the network.
    """
    for word in settings:
        if not word.startswith("model_options."):
            raise InputError(
                f"{name} takes settings of the network only, as model_options.NAME=VALUE; got {word[:60]!r}"
            )
    return list(settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkOptions(ReadingOptions, DataFolderOptions):
    """A command about one trained network."""

    weights: Annotated[
        str | None,
        Option(
            "File with the network's weights: PyTorch (.pt .pth .th .tar) or .safetensors.",
            metavar="FILE",
            exclusive="network",
            setting="weights",
        ),
    ] = None
    checkpoint: Annotated[
        str | None,
        Option(
            "Folder of an earlier run, whose network is taken.",
            metavar="RUN",
            exclusive="network",
            setting="checkpoint",
        ),
    ] = None
    model: Annotated[
        str | None,
        Option(
            "Name of the network: resnet20, resnet18, vgg16_bn, ...; a --checkpoint knows its own.",
            metavar="NAME",
            setting="model",
        ),
    ] = None
    dataset: Annotated[
        str | None,
        Option(
            "Name of the data set: digits, cifar10, cifar100, svhn, faces, orl_faces, cifar100_own, npz:FILE, "
            "csv:FILE or folder:DIR, if need be followed by ?held_out=SHARE for testing; a --checkpoint knows its own. "
            "Files may hold images or features, and labels or the targets of a regression.",
            metavar="NAME",
            setting="dataset",
        ),
    ] = None

    def network(self) -> config_lib.NetworkConfig:
        """The network that the options name, completed from the configuration saved by the run in `checkpoint`."""
        from scissorhands_jax.jobs.earlier_runs import network_config

        return network_config(
            model=self.model,
            dataset=self.dataset,
            data_dir=self.data_dir,
            weights=self.weights,
            checkpoint=self.checkpoint,
            **self.reading(),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodOptions(SettingsCommand):
    """A command that runs an unlearning method, whose settings follow as method.NAME=VALUE."""

    choices: ClassVar[Mapping[str, str]] = choices.METHOD_LINES

    method: Annotated[
        str | None, Option(f"Name of the method, e.g. finetune or salun. Default: {DEFAULT_METHOD}.", metavar="NAME")
    ] = None
    seed: Annotated[
        int | None, Option("Seed of the run and of a random forget set. Default: 0.", metavar="N", setting="seed")
    ] = None
    retain_limit: Annotated[
        int | None,
        Option("Repair on N random retained examples only.", metavar="N", setting="retain_limit", group=RARE),
    ] = None
    epochs: Annotated[int | None, Option("The same as method.epochs=N.", metavar="N", setting="method.epochs")] = None
    batch_size: Annotated[
        int | None, Option("The same as method.batch_size=N.", metavar="N", setting="method.batch_size")
    ] = None
    augment: Annotated[
        bool | None,
        Option(
            "Random crops and flips while repairing. Default: as is usual for the data set.",
            setting="augment",
            group=RARE,
        ),
    ] = None

    @property
    def method_name(self) -> str:
        """The method that was named, or the default one."""
        return self.method or DEFAULT_METHOD

    @classmethod
    def listed_settings(cls, method: str | None) -> Mapping[str, Any]:
        """The settings of the method, with the prefix `method.`."""
        return {"method.": default_settings(method or DEFAULT_METHOD)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions(NetworkOptions, MethodOptions):
    """A command about making one network forget one set of examples."""

    forget: Annotated[
        str | None,
        Option(
            "What is to be forgotten: random:SHARE, class:LABEL[,LABEL], identity:NAME[,NAME], identity:FILE (a name "
            "per line), identity:random:N, indices:FILE (a position in the training set per line) or mislabelled:FILE "
            "(a position per line, perhaps with the right label).",
            metavar="SPEC",
            setting="forget",
        ),
    ] = None
    trained_on: Annotated[
        str | None,
        Option(
            "File with the positions of the examples that the network was trained on, one per line. Default: the whole "
            "training set; a --checkpoint knows its own.",
            metavar="FILE",
            setting="trained_on",
            group=RARE,
        ),
    ] = None
    validation: Annotated[
        str | None,
        Option(
            "The examples that tune may look at: test:SHARE sets that share of the test set aside, and unlearn then "
            "reports on the rest; indices:FILE names training examples that the network was not trained on. Default: "
            "all of the latter.",
            metavar="SPEC",
            setting="validation",
            group=RARE,
        ),
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        Option(
            "What the network computes in, the same as model_options.dtype=NAME: float32 or bfloat16. Weights, "
            "gradients and statistics are float32 in either case. Default: float32, or as the run of a --checkpoint "
            "did.",
            metavar="NAME",
            setting="model_options.dtype",
            group=RARE,
        ),
    ] = None

    def config(self) -> config_lib.RunConfig:
        """The run that the options and settings describe."""
        settings = default_settings(self.method_name)
        if self.forget is None:
            raise InputError("--forget is missing; say what to forget, or name an earlier run with --config")
        config = config_lib.RunConfig(
            **vars(dataclasses.replace(self.network(), trained_on=self.trained_on)),
            forget=self.forget,
            validation=self.validation,
            seed=self.seed or 0,
            retain_limit=self.retain_limit,
            augment=self.augment,
            method_name=self.method_name,
            method=settings,
        )
        return config_lib.override(config, [*self.settings, *given_settings(self, "method.", "model_options.")])


def default_settings(method: str) -> Any:
    """The default settings of a method.

    Raises:
      InputError: There is no such method.
    """
    from scissorhands_jax.methods import METHODS

    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; {suggest(method, METHODS)}")
    return METHODS[method]()


def network_settings(model: str | None) -> Any:
    """The options of a network of the registry with their defaults, as `options.SettingsCommand.listed_settings` has.

    Args:
      model: The name of the network; None stands for resnet18.

    Raises:
      InputError: There is no such network.
    """
    from scissorhands_jax import models

    return models.describe_options(model or "resnet18")


def given_settings(command: Command, *prefixes: str) -> list[str]:
    """The given options of a command that stand for settings, as NAME=VALUE.

    Args:
      command: The command with its options.
      prefixes: How the names of these settings begin.
    """
    settings = []
    for field, found in options_of(type(command)).items():
        value = getattr(command, field)
        if found.setting is not None and found.setting.startswith(prefixes) and value is not None:
            settings.append(f"{found.setting}={value}")
    return settings


def print_json(document: Any) -> None:
    """Prints a result to standard output."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
