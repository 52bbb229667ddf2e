"""The folder of a run: who may write into it, and the names of its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from scissorhands_jax import files
from scissorhands_jax.errors import CheckpointError, InputError

RUN_FILE = "run.json"
RESULTS_FILE = "results.json"


def open_folder(
    folder: Path, description: dict[str, Any], *, overwrite: bool = False, resume: bool | None = None
) -> bool:
    """Makes a folder ready for a run and writes down what runs in it.

    Args:
      folder: The folder. It is made if it does not exist.
      description: JSON-able. A resumed run must have the same description.
      overwrite: Whether to remove the run that is in the folder.
      resume: Whether a run that is in the folder is continued. None is the same as False, for commands that cannot be
        resumed: their error does not propose it.

    Returns:
      Whether the run starts from its beginning.

    Raises:
      InputError: The folder holds another run or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the run")
    description = json.loads(json.dumps(description))  # as it will be read again: tuples become lists
    file = folder / RUN_FILE
    if file.exists() and not overwrite:
        if not resume:
            hint = "" if resume is None else "--resume to continue it or "
            raise InputError(f"{folder} already holds a run; add {hint}--overwrite to replace it")
        earlier = read_run(folder)
        changed = [name for name in {**description, **earlier} if earlier.get(name) != description.get(name)]
        if changed:
            name = changed[0]
            raise InputError(
                f"{folder} holds a run with other settings: {name} was {earlier.get(name)!r} and is now "
                f"{description.get(name)!r}; repeat them, or use --overwrite"
            )
        return False
    if file.exists():
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no run; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(file, json.dumps(description, indent=2) + "\n")
    return True


def read_run(folder: Path) -> dict[str, Any]:
    """The description that `open_folder` wrote.

    Raises:
      CheckpointError: The folder holds no run, or its description is damaged.
    """
    try:
        description = files.read_json(folder / RUN_FILE)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no run; it has no {RUN_FILE}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / RUN_FILE} is damaged: {error}") from error
    if not isinstance(description, dict):
        raise CheckpointError(f"{folder / RUN_FILE} is damaged: it is not a JSON object")
    return description
