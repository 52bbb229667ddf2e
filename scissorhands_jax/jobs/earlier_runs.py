"""What an earlier run left behind: its configuration, its network, and what that network was trained on and forgot."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, reading
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.errors import InputError, suggest
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.config import UNIONS, NetworkConfig, RunConfig
from scissorhands_jax.methods import METHODS
from scissorhands_jax.training import checkpoints

NETWORK_FOLDER = "network"
WEIGHTS_FILE = "network.safetensors"
FORGET_FILE = "forget_indices.txt"
TRAINED_ON_FILE = "trained_on.txt"
FORGOTTEN_BEFORE_FILE = "forgotten_before.txt"

_Settings = TypeVar("_Settings")


class Past(NamedTuple):
    """What happened to a network before a run, as positions in the training split of its data set.

    Both arrays are sorted and of int32.
    """

    trained_on: np.ndarray  # and has not forgotten since
    forgotten: np.ndarray  # by earlier runs


def read_run_config(path: Path) -> RunConfig:
    """Reads the configuration of an earlier run from its `results.json` or `run.json`.

    Args:
      path: The file.

    Raises:
      InputError: The file is not JSON, does not describe an unlearning run, or has a method or a setting of a method
        that this version does not know.
    """
    try:
        document = reading.read_json(path, nan=True)
    except ValueError as error:
        raise InputError(f"{path} is not a JSON file: {error}") from error
    found = document.get("config", document) if isinstance(document, dict) else None
    return parse_run_config(found, str(path))


def parse_run_config(found: Any, where: str) -> RunConfig:
    """The configuration of a run from JSON, as `dataclasses.asdict` writes a `RunConfig`.

    Entries that are not settings of a run are ignored, because `run.json` holds hashes as well.

    Args:
      found: The JSON value.
      where: The file or place that it comes from, for messages.

    Raises:
      InputError: The value does not describe an unlearning run, or has a method or a setting of a method that this
        version does not know.
    """
    needed = {"model", "dataset", "forget", "method_name", "method"}
    if not isinstance(found, dict) or not needed <= set(found) or not isinstance(found["method"], dict):
        raise InputError(f"{where} does not describe an unlearning run; name the results.json or run.json of one")
    name = found["method_name"]
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(f"{where} has the method {name!r}; {suggest(name, METHODS)}")
    known = {field.name for field in dataclasses.fields(METHODS[name])}
    unknown = [setting for setting in found["method"] if setting not in known]
    if unknown:
        raise InputError(f"{where} has the setting {unknown[0]!r}, which this version does not know")
    method = _from_json(METHODS[name], found["method"], where)
    return dataclasses.replace(_from_json(RunConfig, found, where), method=method)


def _from_json(kind: type[_Settings], values: Mapping[str, Any], where: str) -> _Settings:
    """A dataclass from JSON, whose lists stand for tuples; entries that are not fields are ignored."""
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in given.items():
        if name in known and not _has_type(value, hints[name]):
            raise InputError(f"{where} has {str(value)[:40]!r} as {name}, which has another type; copy it again")
    return kind(**{name: value for name, value in given.items() if name in known})


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is one of an annotated type. Where a float is expected, an int will do."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return any(_has_type(value, part) for part in parts)
    if origin is typing.Literal:
        return isinstance(value, str | int | None) and value in parts
    if origin is tuple:
        items = (parts[0],) * len(value) if parts[-1] is Ellipsis and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(items) and all(map(_has_type, value, items))
    if hint is Any or origin is not None or not isinstance(hint, type) or dataclasses.is_dataclass(hint):
        return hint is Any or isinstance(value, dict)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def network_config(
    *,
    model: str | None,
    dataset: str | None,
    data_dir: str | None = None,
    weights: str | None = None,
    checkpoint: str | None = None,
    trained_on: str | None = None,
    forgotten_before: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    **reading: Any,
) -> NetworkConfig:
    """The configuration of a network: as it is given, and otherwise as the run that made the network saved it.

    Args:
      model, dataset, data_dir, weights, checkpoint, trained_on, forgotten_before: As in `NetworkConfig`. With a
        `checkpoint`, None for one of the first three stands for what the run has saved.
      model_options: Options of the network that are given in addition to those of the run.
      **reading: How the file of `weights` is read: the other fields of `NetworkConfig`.

    Raises:
      InputError: The model or the data set is neither given nor saved, or the run holds another model.
      CheckpointError: There is no network in the folder of the checkpoint.
    """
    saved = {} if checkpoint is None else saved_config(checkpoint)
    model, dataset = model or saved.get("model"), dataset or saved.get("dataset")
    if not model:
        raise InputError("--model is missing; name the network, e.g. --model resnet20")
    if not dataset:
        raise InputError("--dataset is missing; name the data set, e.g. --dataset cifar10")
    if saved.get("model", model) != model:
        raise InputError(f"the run in {checkpoint} holds a {saved['model']}, not a {model}")
    return NetworkConfig(
        model=model,
        model_options={**saved.get("model_options", {}), **(model_options or {})},
        weights=weights,
        checkpoint=checkpoint,
        dataset=dataset,
        data_dir=data_dir or saved.get("data_dir"),
        trained_on=trained_on,
        forgotten_before=forgotten_before,
        **reading,
    )


def saved_config(checkpoint: str | Path) -> dict[str, Any]:
    """The configuration that was saved with a network, as JSON.

    Args:
      checkpoint: The folder of a run, or the folder of the network itself.

    Returns:
      The fields of a `RunConfig` if a run made the network, and otherwise whatever `checkpoints.save_network` was
      given.

    Raises:
      CheckpointError: There is no network in the folder, or it is damaged.
    """
    return checkpoints.read_description(network_folder(checkpoint))


def network_folder(checkpoint: str | Path) -> Path:
    """The folder of the network of a run; `checkpoint` is the folder of the run or of the network itself."""
    folder = Path(checkpoint)
    network = folder / NETWORK_FOLDER
    # The folder of a network contains a folder of the same name, too. Where that is lost, its description may be there.
    is_run = (network / NETWORK_FOLDER).is_dir() or checkpoints.is_described(network)
    return network if is_run else folder


def origin_folder(checkpoint: str | Path) -> Path:
    """The folder of the run that made a network; `checkpoint` is that folder or the one of the network itself.

    Raises:
      InputError: There is no network.
    """
    folder = network_folder(checkpoint)
    if not ((folder / NETWORK_FOLDER).is_dir() or checkpoints.is_described(folder)):
        raise InputError(f"{checkpoint} holds no network; name the folder of a run that has ended")
    return folder.parent


def past_of(config: NetworkConfig, total: int, train_sha256: str, held_out: np.ndarray | None = None) -> Past:
    """What a network was trained on and has forgotten, as the user says or as the run that made the network saved it.

    If neither says anything, the network was trained on the whole training split, without what is held out.

    Args:
      config: The network.
      total: The number of examples in the training split.
      train_sha256: The SHA-256 of the training split (`hashing.tree_sha256`). What the run has saved counts only for
        the same data.
      held_out: The positions of examples that are held out for testing. By default there are none.

    Raises:
      InputError: The past cannot be known, both the user and the run say it, or a file cannot be read.
    """
    nothing = np.zeros(0, np.int32)
    given = None
    if config.trained_on is not None:
        given = data_lib.check_training_set(forget_sets.read_positions(Path(config.trained_on), total), total)
        both = np.intersect1d(given, nothing if held_out is None else held_out)
        if both.size:
            raise InputError(
                f"{both.size} of the examples in {config.trained_on} are held out for testing, the first is {both[0]}; "
                "a network cannot be tested on what it was trained on, so hold out others"
            )
    if config.forgotten_before is not None:
        if given is None:
            raise InputError(
                f"{config.forgotten_before} says what the network has forgotten before, and nothing says what it is "
                "still trained on; name a file for that as well"
            )
        return Past(given, _given_as_forgotten(config.forgotten_before, given, total))
    if config.checkpoint is not None and "forget" in saved_config(config.checkpoint):
        folder = origin_folder(config.checkpoint)
        what = f"the network in {config.checkpoint} has forgotten examples before"
        if not (folder / runs.RUN_FILE).is_file():
            known = False
        else:
            known = runs.read_run(folder).get("train_sha256") == train_sha256
        if known and given is not None:
            raise InputError(f"{what}, and its run has saved what it was trained on; leave --trained-on out")
        if known:
            past, forgotten = read_past(folder, total)
            return Past(
                np.setdiff1d(past.trained_on, forgotten, assume_unique=True),
                np.union1d(past.forgotten, forgotten),
            )
        if given is None:
            raise InputError(
                f"{what}, from other data than these or in a run whose folder is missing; add --trained-on FILE with "
                "the positions in these data that it was trained on and has not forgotten"
            )
    if given is None:
        given = np.setdiff1d(np.arange(total, dtype=np.int32), nothing if held_out is None else held_out)
    return Past(given, nothing)


def _given_as_forgotten(file: str, trained_on: np.ndarray, total: int) -> np.ndarray:
    """Reads the positions that a file says were forgotten, which may be none."""
    found = forget_sets.read_positions(Path(file))
    forgotten = data_lib.check_positions(found, total) if found.size else found.astype(np.int32)
    both = np.intersect1d(forgotten, trained_on)
    if both.size:
        raise InputError(
            f"{both.size} of the examples in {file} are also among those that the network is said to be trained on, "
            f"the first is {both[0]}; take them out of one of the two lists"
        )
    return forgotten


def read_past(folder: Path, total: int) -> tuple[Past, np.ndarray]:
    """Reads what a run saved: the past of the network that it began with, and the positions that the run itself forgot.

    Args:
      folder: The folder of the run.
      total: The number of examples in the training split.

    Raises:
      InputError: A file is missing or damaged.
    """
    trained_on = data_lib.check_training_set(forget_sets.read_positions(folder / TRAINED_ON_FILE), total)
    forgotten, before = (
        data_lib.check_positions(found, total) if found.size else found
        for found in (forget_sets.read_positions(folder / name) for name in (FORGET_FILE, FORGOTTEN_BEFORE_FILE))
    )
    return Past(trained_on, before), forgotten


def write_past(folder: Path, past: Past, forget: np.ndarray) -> None:
    """Writes into the folder of a run what `read_past` reads, with one position on each line."""
    for name, positions in (
        (FORGET_FILE, forget),
        (TRAINED_ON_FILE, past.trained_on),
        (FORGOTTEN_BEFORE_FILE, past.forgotten),
    ):
        files.write_text(folder / name, "".join(f"{position}\n" for position in positions))
