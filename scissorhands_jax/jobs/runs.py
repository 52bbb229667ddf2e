"""The folder of a run: who may write into it, and the names of its files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scissorhands_jax import files, reading
from scissorhands_jax.errors import CheckpointError, InputError

RUN_FILE = "run.json"
RESULTS_FILE = "results.json"


@contextlib.contextmanager
def open_folder(
    folder: Path, description: dict[str, Any], *, overwrite: bool = False, resume: bool | None = None
) -> Iterator[bool]:
    """Makes a folder ready for a run, writes down what runs in it, and keeps other writers out until the run has ended.

    Args:
      folder: The folder. It is made if it does not exist.
      description: JSON-able. A resumed run must have the same description.
      overwrite: Whether to remove the run that is in the folder.
      resume: Whether a run that is in the folder is continued. None is the same as False, for commands that cannot be
        resumed: their error does not propose it.

    Yields:
      Whether the run starts from its beginning.

    Raises:
      InputError: The folder holds another run or other files.
      BusyError: Another process writes to the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the run")
    with files.sole_writer(folder):
        yield _begin(folder, json.loads(json.dumps(description)), overwrite, resume)  # as read again: tuples are lists


def _begin(folder: Path, description: dict[str, Any], overwrite: bool, resume: bool | None) -> bool:
    """Does what `open_folder` says in a folder that nobody else writes to."""
    files.remove_leftovers(folder)
    file = folder / RUN_FILE
    if file.exists() and not overwrite:
        if not resume:
            hint = "" if resume is None else "--resume to continue it or "
            raise InputError(f"{folder} already holds a run; add {hint}--overwrite to replace it")
        earlier = read_run(folder)
        for name, was, now in differences(earlier, description):
            raise InputError(
                f"{folder} holds a run with other settings: {name} was {was!r} and is now {now!r}; repeat them, or use "
                "--overwrite"
            )
        return False
    if not file.exists() and not all(map(files.is_leftover, folder.iterdir())):
        raise InputError(f"{folder} is not empty and holds no run; name another folder")
    files.clear_folder(folder, last=RUN_FILE)
    files.write_text(file, json.dumps(description, indent=2) + "\n")
    return True


def differences(was: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Finds the settings in which two descriptions differ.

    Args:
      was: JSON-able.
      now: JSON-able.
      name: The name of the two.

    Yields:
      The name of each setting, with dots, and its two values; None for a setting that one of them lacks. Mappings in
      lists are named by their `name` if they have one, and otherwise by their number from 1 on.

    >>> list(differences({"a": 1, "b": [{"name": "x", "c": 2}]}, {"a": 1, "b": [{"name": "x", "c": 3}]}))
    [('b.x.c', 2, 3)]
    """
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**now, **was}:
            yield from differences(was.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    elif _are_mappings(was) and _are_mappings(now) and len(was) == len(now):
        for number, (one, other) in enumerate(zip(was, now, strict=True), 1):
            yield from differences(one, other, f"{name}.{one.get('name', number)}")
    elif was != now:
        yield name, was, now


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def read_run(folder: Path) -> dict[str, Any]:
    """The description that `open_folder` wrote.

    Raises:
      CheckpointError: The folder holds no run, or its description is damaged.
    """
    try:
        description = reading.read_json(folder / RUN_FILE, nan=True)  # a setting may be infinite, such as no ceiling
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no run; it has no {RUN_FILE}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / RUN_FILE} is damaged: {error}") from error
    if not isinstance(description, dict):
        raise CheckpointError(f"{folder / RUN_FILE} is damaged: it is not a JSON object")
    return description
