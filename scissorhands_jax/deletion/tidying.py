"""What runs may leave in the folder of a ledger, and the removal of what they must not leave."""

from __future__ import annotations

from pathlib import Path

from scissorhands_jax import files
from scissorhands_jax.deletion import records, statements
from scissorhands_jax.deletion.entries import (
    RETRAIN,
    AnswersKept,
    LedgerEntry,
    RunDiscarded,
    RunFailed,
    RunRecorded,
    RunStarted,
)
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.deletion.recorded_runs import run_in_use
from scissorhands_jax.errors import InputError


def positions_file(folder: Path, number: int) -> Path:
    """Returns the file that lists what a ledger's run with a number must forget, until the run has ended."""
    return records.run_folder(folder, number).with_suffix(".txt")


def audit_work_folder(folder: Path, number: int) -> Path:
    """Returns the folder of the networks of the audit that a run makes, until the run has ended."""
    return records.run_folder(folder, number).with_suffix(".audit")


def audited_positions_file(folder: Path, number: int) -> Path:
    """Returns the file that lists what the networks of a run's audit must forget, while they do."""
    return records.run_folder(folder, number).with_suffix(".audit.txt")


def unfinished_run(book: Ledger) -> RunStarted | None:
    """Returns the run that was stopped before it ended, or None."""
    ended = _numbers(book, RunRecorded) | _numbers(book, RunFailed)
    left = [entry for entry in book.entries(RunStarted) if entry.run not in ended]
    return left[0] if left else None


def fail_run(book: Ledger, started: RunStarted, why: str) -> None:
    """Notes that a run has failed. Its requests are then in the state in which they were when it was started.

    Args:
      book: The ledger.
      started: The run.
      why: The reason, which must not say what was to be forgotten.
    """
    answers: dict[int, int | None] = {}
    for event in book.history():
        if event.entry == started:
            break
        for change in event.entry.changes():
            answers[change.request] = change.run if change.state == RETRAIN else None
    kept: dict[int, tuple[int, ...]] = {}
    for request in started.requests:
        run = answers.get(request)
        if run is not None:
            kept[run] = (*kept.get(run, ()), request)
    failed = RunFailed(run=started.run, requests=started.requests, why=why)
    book.append(failed, *(AnswersKept(run=run, requests=requests) for run, requests in kept.items()))


def remove_remains(book: Ledger) -> None:
    """Removes what runs that have ended no longer need and what may say what was to be forgotten.

    That is everything of a run that failed, the record included that it may have signed before it was stopped; of one
    that was discarded everything but its record; and of others their checkpoints, the networks of their audits, and the
    lists of positions. Temporary files, which killed processes have left, go as well. Only the process
    that holds `Ledger.sole_run` may call this.
    """
    folder = book.folder
    stopped = unfinished_run(book)
    keep = set() if stopped is None else {stopped.run}
    failed = _numbers(book, RunFailed)
    gone = failed | _numbers(book, RunDiscarded)
    highest = max(_numbers(book, RunStarted), default=0)
    # A run that was refused, or killed before its start was recorded, has the number of the next one.
    for number in set(range(1, highest + 2)) - keep:
        positions_file(folder, number).unlink(missing_ok=True)
        audited_positions_file(folder, number).unlink(missing_ok=True)
        files.remove(audit_work_folder(folder, number))
        run_folder = records.run_folder(folder, number)
        files.remove(run_folder if number in gone else run_folder / "checkpoints")
        files.remove_leftovers(run_folder, deep=False)
    for number in failed:
        for path in (records.record_path, records.record_page_path, statements.envelope_path):
            path(folder, number).unlink(missing_ok=True)
    for place in (folder, folder / records.RECORDS_FOLDER, folder / records.RUNS_FOLDER):
        files.remove_leftovers(place, deep=False)


def discard_run(folder: Path, number: int, *, keys: Path | None = None) -> None:
    """Removes the folder of a run whose network is no longer in use, and says so in the ledger.

    Such a network may know what later runs have made its successors forget. Its record stays. A run that was stopped is
    given up: it counts as failed (`fail_run`).

    Args:
      folder: The folder of the ledger.
      number: The number of the run.
      keys: The folder of the ledger's keys. The default is the folder `keys` in the ledger's folder.

    Raises:
      InputError: There is no such run, or its network is in use.
      LedgerError: The ledger cannot be used or written, or another process is running.
    """
    with Ledger(folder, keys) as book, book.sole_run():
        recorded, stopped = book.entries(RunRecorded), unfinished_run(book)
        if stopped is not None and stopped.run == number:
            fail_run(book, stopped, "it was stopped and given up")
        elif number not in {entry.run for entry in recorded}:
            known = ", ".join(str(entry.run) for entry in recorded) or "none"
            raise InputError(f"there is no finished run {number} in {folder}; the finished runs are {known}")
        elif number == run_in_use(book):
            raise InputError(
                f"the network of run {number} is in use; it can be discarded when a later one has replaced it"
            )
        elif number not in _numbers(book, RunDiscarded):
            book.append(RunDiscarded(run=number))
        remove_remains(book)


def _numbers(book: Ledger, kind: type[LedgerEntry]) -> set[int]:
    return {entry.run for entry in book.entries(kind)}  # type: ignore[attr-defined]
