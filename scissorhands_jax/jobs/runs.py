"""The folder of a run: who may write into it, and the names of its files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from scissorhands_jax import files, reading
from scissorhands_jax.errors import CheckpointError, InputError, listed
from scissorhands_jax.terminal import Console, say
from scissorhands_jax.training import distributed
from scissorhands_jax.training.identity import Identity, check_same, identify

_Made = TypeVar("_Made")
RUN_FILE = "run.json"
RESULTS_FILE = "results.json"
CHECKPOINTS_FOLDER = "checkpoints"
CHECKPOINTS_SAVED = f"{CHECKPOINTS_FOLDER}/[0-9]*"
"""The pattern of the checkpoints of steps in the folder of a run."""


@contextlib.contextmanager
def open_folder(
    folder: Path,
    identity: Identity,
    *,
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
    resume: bool | None = None,
    warn: bool = True,
) -> Iterator[bool]:
    """Makes a folder ready for a run, writes down what runs in it, and keeps other writers out until the run has ended.

    Args:
      folder: The folder. It is made if it does not exist. A link stands for the folder that it leads to.
      identity: Everything that determines the result of the run. A resumed run must have the same, except for the
        environment.
      inputs: The files and folders that the run reads, as for `files.check_inputs`.
      overwrite: Whether to remove the run that is in the folder.
      resume: Whether a run that is in the folder is continued. None is the same as False, for commands that cannot be
        resumed: their error does not propose it.
      warn: Whether a warning says that a run is continued in another environment.

    Yields:
      Whether the run starts from its beginning.

    Raises:
      InputError: The folder holds another run, other files or what the run reads.
      BusyError: Another process writes to the folder.
    """
    files.check_inputs(folder, inputs, overwrite=overwrite, resume=resume)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the run")
    files.check_name(folder)
    if folder.is_symlink():
        try:
            files.make_folder(files.resolved(folder))  # as if it were the folder itself
        except FileExistsError as error:
            raise InputError(f"{folder} is a link that leads to no folder; name another one") from error
    with files.sole_writer(folder):
        yield _begin(folder, identity, overwrite, resume, warn)


def _begin(folder: Path, identity: Identity, overwrite: bool, resume: bool | None, warn: bool) -> bool:
    """Does what `open_folder` says in a folder that nobody else writes to."""
    file = folder / RUN_FILE
    if not file.exists() and not all(map(files.is_leftover, folder.iterdir())):
        raise InputError(f"{folder} is not empty and holds no run; name another folder")
    files.remove_leftovers(folder)
    if file.exists() and not overwrite:
        if not resume:
            hint = "" if resume is None else "--resume to continue it or "
            raise InputError(f"{folder} already holds a run; add {hint}--overwrite to replace it")
        check_folder(folder, identity, warn=warn)
        return False
    files.clear_folder(folder, last=RUN_FILE)
    files.write_text(file, json.dumps(identity.document(), indent=2) + "\n")
    return True


@contextlib.contextmanager
def cleared_if_refused(folder: Path, fresh: bool, *saved: str) -> Iterator[None]:
    """Empties the folder of a run that was refused before it saved anything, so that it does not block the next run.

    Args:
      folder: The folder of the run, which is open for it.
      fresh: Whether the run started from its beginning.
      saved: Patterns, as for `Path.glob`, of what is worth keeping, such as `CHECKPOINTS_SAVED`. Where there is
        something of them, nothing is removed.
    """
    try:
        yield
    except InputError:
        found = any(not _is_partial(path) for pattern in saved for path in folder.glob(pattern))
        if fresh and not found and distributed.is_first():
            files.clear_folder(folder, last=RUN_FILE)
        raise


def _is_partial(path: Path) -> bool:
    """Whether something has the name of what is not finished: of a killed process, or of a checkpoint of Orbax."""
    return files.is_leftover(path) or ".orbax-checkpoint-tmp" in path.name


def check_folder(folder: Path, identity: Identity, *, warn: bool = False, advice: str = "use --overwrite") -> None:
    """Refuses a folder with another run, which `open_folder` would not continue; without a run it is fine.

    Args:
      folder: The folder, which need not exist.
      identity: Everything that determines the result of the run.
      warn: Whether a warning says that the run would be continued in another environment.
      advice: What to do for another run, for the message. Not every folder is one that `--overwrite` clears.

    Raises:
      InputError: The folder holds another run.
      CheckpointError: Its description is damaged.
    """
    if (folder / RUN_FILE).exists():
        saved = read_run(folder, advice=advice)
        check_same(saved, identity, str(folder), f"repeat its settings, or {advice}", warn=warn)


def demonstrate(
    out: Path,
    command: str,
    settings: Any,
    make: Callable[[Console], _Made],
    show: Callable[[_Made, Console], object],
    where: str,
    *,
    overwrite: bool = False,
    console: Console | None = None,
) -> _Made:
    """Makes a demonstration in a folder of its own, and shows what came out.

    Args:
      out: The folder.
      command: The command that it belongs to.
      settings: A dataclass; together with the command it is what another demonstration differs by.
      make: Makes it, telling a console how far it is.
      show: Prints what was made on standard output.
      where: Where everything is, the last line.
      overwrite: Whether an earlier demonstration is replaced.
      console: Shows progress. By default that is standard error.

    Raises:
      InputError: The folder is taken.
    """
    console = console or Console(stderr=True)
    description = {"command": command, "settings": dataclasses.asdict(settings)}
    with open_folder(out, identify(description), overwrite=overwrite) as fresh, cleared_if_refused(out, fresh):
        made = make(console)
    show(made, Console())
    say(console, where)
    return made


def ended_results(folder: Path, outputs: Iterable[str], console: Console) -> dict[str, Any] | None:
    """The document in `results.json` of a run that has ended, which is said, or None if it has not ended.

    Checkpoints, which a run that was killed at its end may have left, are removed once the run is known to be whole.

    Args:
      folder: The folder of the run, which is open for it.
      outputs: The names, in the folder, of what the run has made and cannot do without.
      console: Where it is said.

    Raises:
      CheckpointError: The results are damaged, or what the run has made is missing.
    """
    results = folder / RESULTS_FILE
    if not results.exists():
        return None
    try:
        document = reading.read_json(results, nan=True)
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise CheckpointError(f"{results} is damaged ({error}); remove it, and it is written again") from error
    missing = [name for name in outputs if not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"the run in {folder} has ended, and {listed(missing)} of it is missing; put it back, or use --overwrite "
            "to run it again"
        )
    say(console, f"the run in {folder} has ended; nothing is left to do")
    files.remove(folder / CHECKPOINTS_FOLDER)
    return document


def read_run(folder: Path, *, advice: str = "put it back from your backup") -> dict[str, Any]:
    """The description that `open_folder` wrote.

    Args:
      folder: The folder of the run.
      advice: What to do about a damaged description, for the message.

    Raises:
      CheckpointError: The folder holds no run, or its description is damaged.
    """
    try:
        description = reading.read_json(folder / RUN_FILE, nan=True)  # a setting may be infinite, such as no ceiling
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no run; it has no {RUN_FILE}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / RUN_FILE} is damaged: {error}; {advice}") from error
    if not isinstance(description, dict):
        raise CheckpointError(f"{folder / RUN_FILE} is damaged: it is not a JSON object; {advice}")
    return description
