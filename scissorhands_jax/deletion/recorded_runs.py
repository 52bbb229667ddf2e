"""The runs that a ledger has records of: whose network is in use, and whether their folders are as recorded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from scissorhands_jax import files
from scissorhands_jax.deletion import records
from scissorhands_jax.deletion.entries import FORGOTTEN, RESTORE, ErasureBegun, RequestErased, RunDiscarded, RunRecorded
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.records import Record
from scissorhands_jax.errors import InputError, LedgerError
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.earlier_runs import (
    FORGET_FILE,
    FORGOTTEN_BEFORE_FILE,
    NETWORK_FOLDER,
    TRAINED_ON_FILE,
    WEIGHTS_FILE,
    Past,
)
from scissorhands_jax.jobs.job import ORIGINAL_HASH, saved_identity

# What the next run goes by, apart from the arrays of the network whose description says how to read it.
_READ_NEXT = (
    *(runs.RUN_FILE, FORGET_FILE, TRAINED_ON_FILE, FORGOTTEN_BEFORE_FILE),
    f"{NETWORK_FOLDER}/meta/metadata",
)


def run_in_use(book: Ledger) -> int | None:
    """Returns the number of the run whose network is in use, or None if that is the original network."""
    done = [entry.run for entry in book.entries(RunRecorded) if entry.verdict == FORGOTTEN]
    return done[-1] if done else None


def network_in_use(book: Ledger) -> str:
    """Returns the SHA-256 of the network in use."""
    done = [entry.network for entry in book.entries(RunRecorded) if entry.verdict == FORGOTTEN]
    return done[-1] if done else book.about.network


def files_left(book: Ledger, run: int) -> dict[str, str] | None:
    """Returns the lists that the newest erasure has left in the folder of a run, with their SHA-256.

    Returns:
      None if no erasure has changed the folder.
    """
    erasures = [entry for entry in book.entries(RequestErased) if run in entry.runs]
    if not erasures:
        return None
    return dict(erasures[-1].files) if erasures[-1].left_in == run else {}


def stopped_erasures(book: Ledger) -> list[int]:
    """Returns the ids of the requests whose erasure was begun and has not ended."""
    ended = {entry.id for entry in book.entries(RequestErased)}
    return [entry.id for entry in book.entries(ErasureBegun) if entry.id not in ended]


def erasure_going_on(book: Ledger) -> str | None:
    """Describes an erasure that a process may be carrying out at this moment, which removes files of runs.

    Or it was stopped, and that process does something else; nothing tells one from the other.

    Returns:
      What is known, and what to do then. None if all erasures have ended, or nobody works on the ledger.
    """
    left = stopped_erasures(book)
    holder = files.holder(book.folder) if left else None
    if holder is None:
        return None
    return (
        f"the erasure of request {left[0]} has not ended and {holder} is working on the ledger, so of the folders of "
        "runs only the networks were verified; verify again when that process has ended, and if it is no erasure, "
        f"{_repeat(book, left[0])}"
    )


def check_erasures(book: Ledger) -> None:
    """Refuses to go on while an erasure has not ended.

    Raises:
      InputError: One was stopped.
    """
    for number in stopped_erasures(book):
        raise InputError(_erase_again(book, number))


def _erase_again(book: Ledger, number: int) -> str:
    return f"the erasure of request {number} was stopped before it ended; {_repeat(book, number)}"


def _repeat(book: Ledger, number: int) -> str:
    return f"repeat `scissorhands request erase --ledger {book.folder} {number}`"


def served_was_erased(book: Ledger) -> bool:
    """Says whether a request that had been served was erased, after which lists do not name all that was forgotten."""
    return any(not entry.withdrawn for entry in book.entries(RequestErased))


def forgotten_before(book: Ledger, listed: int) -> int:
    """Returns how many examples the network in use has forgotten, those that erased requests named included.

    Each run that has forgotten made the network forget examples that it still knew, so the numbers in the records add
    up, beginning with what had been forgotten before the first run.

    Args:
      book: The ledger.
      listed: The number of them that lists name, which is the answer unless a served request was erased.

    Raises:
      LedgerError: A record that is needed is missing, was changed, or is not the one that the ledger has.
    """
    if not served_was_erased(book):
        return listed
    entries = book.entries(RunRecorded)
    found = [_record_of(book, entry) for entry in entries if entry.verdict == FORGOTTEN]
    return _record_of(book, entries[0]).forgotten_before + sum(record.forget.count for record in found)


def _record_of(book: Ledger, entry: RunRecorded) -> Record:
    path = records.record_path(book.folder, entry.run)
    record, digest = records.read_record(path, book.public)
    if digest != entry.record:
        raise LedgerError(f"{path} is not the record that the ledger has for run {entry.run}; {RESTORE}")
    return record


def check_run_in_use(book: Ledger, *, network: bool = True) -> None:
    """Refuses to go on from the run in use if its network or the lists of what that knows and forgot were changed.

    Args:
      book: The ledger.
      network: Whether the network itself must be as it was recorded; otherwise its description and the lists must.

    Raises:
      InputError: A file of the network, a list, or the run's record was changed or is missing.
    """
    current = run_in_use(book)
    if current is None:
        return
    record, digest = records.read_record(records.record_path(book.folder, current), book.public)
    (expected,) = (entry.record for entry in book.entries(RunRecorded) if entry.run == current)
    if digest != expected:
        raise InputError(f"the record of run {current} is not the one that the ledger has; {RESTORE}")
    needed = {*_READ_NEXT, *(record.files.network if network else ())}
    for problem in file_problems(book, record, needed):
        raise InputError(f"{problem}; `scissorhands request verify` lists everything that is wrong")


def check_past(book: Ledger, past: Past) -> None:
    """Refuses a past in which a network still knows what served requests have made it forget.

    Whatever the files of a run say, the signed history says what was forgotten.

    Args:
      book: The ledger.
      past: What the files say.

    Raises:
      InputError: Examples of a served request are among those that the network is said to be trained on.
    """
    served = [request.id for request in book.requests() if request.state == FORGOTTEN]
    forgotten = [example.position for request in served for example in book.examples(request)]
    count = int(np.isin(past.trained_on, forgotten).sum())
    if count:
        raise InputError(
            f"the files of the network in use say that it is trained on {count} of the examples that requests have "
            "made it forget; put the folder of its run back from your backup"
        )


def file_problems(book: Ledger, record: Record, only: Collection[str] | None = None) -> list[str]:
    """Compares the files of a run with its record. What may not be there is named by `contents`.

    Args:
      book: The ledger.
      record: The record of the run.
      only: The names of the files to compare. By default all are.
    """
    folder, files_of = records.run_folder(book.folder, record.number), expected_files(book, record)
    if not files_of.network:
        return []
    if not folder.is_dir() and record.number == run_in_use(book):
        return [missing_in_use(folder)]
    if not folder.is_dir():
        return [
            f"the folder {folder} is missing; put it back from your backup, or say with `scissorhands request discard` "
            "that it has gone"
        ]
    found = []
    erased = files_left(book, record.number) is not None
    now = records.run_files(folder, book.run_salt(record.number), erased=erased)
    pairs: list[tuple[Mapping[str, str | None], Mapping[str, str | None]]] = [
        (files_of.network, now.network),
        (files_of.other, now.other),
    ]
    for expected, hashes in pairs:
        for name in sorted(expected if only is None else expected.keys() & only):
            if name not in hashes:
                found.append(missing(folder / name))
            elif None not in (hashes[name], expected[name]) and hashes[name] != expected[name]:
                found.append(changed(folder / name))
    for number in stopped_erasures(book)[:1]:  # A backup would put back what is being erased.
        found = [line.replace(RESTORE, _erase_again(book, number)) for line in found]
    return found


def identity_problems(book: Ledger, record: Record) -> list[str]:
    """Compares the identity that a run has saved with its record.

    That cannot be done in an auditor's copy, once the run was discarded, or after an erasure, which destroys the salt.
    """
    salt = book.run_salt(record.number)
    if salt is None or runs.RUN_FILE not in expected_files(book, record).other:
        return []
    folder = records.run_folder(book.folder, record.number)
    try:
        identity = saved_identity(folder)
    except InputError as error:
        return [str(error)]
    same = records.identity_digest(salt, identity.digest) == record.identity
    if same and identity.chosen.get(ORIGINAL_HASH) == record.network.before:
        return []
    return [f"the run in {folder} is not the one that its record is about; {RESTORE}"]


def expected_files(book: Ledger, record: Record) -> records.RunFiles:
    """Returns the files that the folder of a run must hold, with their hashes as the record or an erasure has them.

    A run that was discarded has none, and in an auditor's copy only the network in use is there, in one form.
    """
    run = record.number
    if run in {entry.run for entry in book.entries(RunDiscarded)} or (book.is_copy and run != run_in_use(book)):
        return records.RunFiles({}, {})
    if book.is_copy:
        return records.RunFiles({WEIGHTS_FILE: record.files.network[WEIGHTS_FILE]}, {})
    left = files_left(book, run)
    return record.files if left is None else records.RunFiles(record.files.network, dict(left))


def missing_in_use(path: Path) -> str:
    """Says that the network in use with its description, or the folder of its run, is missing."""
    return (
        f"the folder {path} is missing, with the network in use and its description, which every request needs; put it "
        "back from your backup"
    )


def missing(path: Path) -> str:
    """Says that a file is missing."""
    return f"{path} is missing; {RESTORE}"


def changed(path: Path | str, why: str = "") -> str:
    """Says that a file was changed."""
    return f"{path} was changed{why}; {RESTORE}"
