"""Removes a requester's personal data from a ledger, and keeps the chain and the records as they were signed.

The history and the records hold only salted digests of names, contacts and positions. So what is removed is the private
part of the request with its salt, and whatever else tells which examples it named:

* the private parts of the runs that worked on the request and of all later ones, with the salts under which the records
  have digests of their lists;
* all files of these runs except their networks. If the network in use is among them, the lists that the next run needs
  are written again without the examples: what the network is still trained on, and what other requests made it forget.

Afterwards not even the ledger's owner can check a guess by a digest. What stays are the number of the request, when it
came in, when it was due, how many examples it named, its state, and what the runs measured, with which a complete guess
agrees or not. The examples themselves stay out of training, because they are no longer among those that the network is
trained on. Later records count them among what was forgotten before, by the numbers in the records of the runs, and say
that they could not be compared again, because no list names them (`recorded_runs.forgotten_before`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import files, hashing
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.deletion import records
from scissorhands_jax.deletion.entries import FORGOTTEN, ErasureBegun, Request, RequestErased, RunStarted
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.recorded_runs import run_in_use, stopped_erasures
from scissorhands_jax.deletion.requests import positions_text
from scissorhands_jax.deletion.tidying import remove_remains, unfinished_run
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.earlier_runs import FORGET_FILE, FORGOTTEN_BEFORE_FILE, TRAINED_ON_FILE

_LISTS = (FORGET_FILE, TRAINED_ON_FILE, FORGOTTEN_BEFORE_FILE)
_TRAIN_HASH = "train_sha256"  # the only entry of a run's description that the next run needs


@dataclasses.dataclass(frozen=True)
class Erasure:
    """What an erasure removed."""

    request: Request
    """The request as it is now."""
    runs: tuple[int, ...]
    """The runs whose files were removed or written again."""
    head: str
    """The new head of the ledger."""


def erase_request(folder: Path, number: int, *, keys: Path | None = None) -> Erasure:
    """Removes the personal data of a request. It must be called again if it was stopped before it ended.

    A request that has not been served is withdrawn by that, because nothing says any more what it named.

    Args:
      folder: The folder of the ledger.
      number: The id of the request.
      keys: The folder of the ledger's keys. The default is the folder `keys` in the ledger's folder.

    Raises:
      InputError: There is no such request, or a run has not ended.
      LedgerError: The ledger cannot be used or written, or another process is running.
    """
    with Ledger(folder, keys) as book, book.sole_run():
        asked = {request.id: request for request in book.requests()}
        if number not in asked:
            known = ", ".join(map(str, asked)) or "none"
            raise InputError(f"there is no request {number} in {folder}; its requests are {known}")
        stopped = unfinished_run(book)
        if stopped is not None:
            raise InputError(
                f"run {stopped.run} has not ended, and its files name examples; finish it with `scissorhands request "
                "run` or give it up with `scissorhands request discard`, and erase then"
            )
        done = next((entry for entry in book.entries(RequestErased) if entry.id == number), None)
        served = asked[number].state == FORGOTTEN
        if done is None and number not in stopped_erasures(book):
            book.append(ErasureBegun(id=number))
        remove_remains(book)
        files.remove_leftovers(folder)
        if done is None:
            touched = _runs_that_list(book, number, served=served)
            current = run_in_use(book)
            left_in = current if current in touched else None
            left = _remove_files(book, touched, left_in, _named_by_this_alone(book, asked[number]))
            done = RequestErased(
                id=number, withdrawn=not served, runs=touched, left_in=left_in, files=tuple(sorted(left.items()))
            )
            book.erase(done)
        else:
            book.compact()
        (request,) = (one for one in book.requests() if one.id == number)
        return Erasure(request, done.runs, book.head)


def forgotten_for_erased(book: Ledger, positions: Iterable[int]) -> dict[int, int]:
    """Returns which positions the network in use has forgotten, if requests were erased that may have named them.

    Args:
      book: The ledger.
      positions: Positions of examples that the first network was trained on and that no served request names.

    Returns:
      The positions that the network is not trained on any more, each with the number of the run in use.

    Raises:
      InputError: A list of the run in use is missing or damaged.
    """
    current = run_in_use(book)
    if current is None or not book.entries(RequestErased):
        return {}
    place = records.run_folder(book.folder, current)
    trained_on, forgotten = (set(_positions(place / name)) for name in (TRAINED_ON_FILE, FORGET_FILE))
    return dict.fromkeys(set(positions) - (trained_on - forgotten), current)


def _runs_that_list(book: Ledger, number: int, *, served: bool) -> tuple[int, ...]:
    """Returns the runs whose files tell what a request named.

    These are the runs that worked on it and, if it was served, all later ones, which list what was forgotten before.
    """
    started = book.entries(RunStarted)
    own = [entry.run for entry in started if number in entry.requests]
    if own and served:
        return tuple(entry.run for entry in started if entry.run >= own[0])
    return tuple(own)


def _named_by_this_alone(book: Ledger, asked: Request) -> np.ndarray:
    """Returns the positions that lists must not name any more once a request is erased.

    These are its own, without those of the other requests that the same run has served. What requests name that were
    served by other runs would tell that this one named it too. The network still knows what a request named that was
    never served, so such positions stay among those that it is trained on.
    """
    if asked.state != FORGOTTEN:
        return np.zeros(0, np.int64)
    together = {one for entry in book.entries(RunStarted) if entry.run == asked.run for one in entry.requests}
    own = {example.position for example in book.examples(asked.id)}
    for other in together - {asked.id}:
        own -= {example.position for example in book.examples(other)}
    return np.asarray(sorted(own), np.int64)


def _remove_files(book: Ledger, touched: Iterable[int], left_in: int | None, positions: np.ndarray) -> dict[str, str]:
    """Removes the files of runs except their networks, and writes the lists of the network in use again.

    Args:
      book: The ledger.
      touched: The numbers of the runs.
      left_in: The run among them whose network is in use; None if that is none of them.
      positions: What the lists must not name any more.

    Returns:
      The names and SHA-256 of the lists that are left.
    """
    left: dict[str, str] = {}
    for number in touched:
        place = records.run_folder(book.folder, number)
        keep = _rewritten(place, positions) if number == left_in else {}
        for name, text in keep.items():
            files.write_text(place / name, text)
            left[name] = hashing.sha256(text)
        for path in sorted(place.rglob("*"), reverse=True):
            name = path.relative_to(place).as_posix()
            if not records.is_network_file(name) and name not in keep and (path.is_symlink() or not path.is_dir()):
                files.remove(path)
        for path in sorted(place.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()
    return left


def _positions(path: Path) -> list[int]:
    return forget_sets.read_positions(path).tolist()


def _rewritten(place: Path, positions: np.ndarray) -> dict[str, str]:
    """Returns the texts of the files that the next run reads, without positions and without hashes of lists."""
    kept: dict[str, Any] = {_TRAIN_HASH: runs.read_run(place).get(_TRAIN_HASH)}
    lists = {name: np.setdiff1d(_positions(place / name), positions) for name in _LISTS}
    texts = {name: positions_text(found) for name, found in lists.items()}
    return {runs.RUN_FILE: json.dumps(kept) + "\n", **texts}
