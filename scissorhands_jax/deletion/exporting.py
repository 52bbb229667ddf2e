"""The auditor's copy of a ledger: enough to verify it on another machine without keys, and nothing about people.

It holds the history, the head, the table of requests, the records with their pages and envelopes, the public key, and
the network in use. It has no private part of any row, so it names no person, no example and no place, and none of the
files of runs that do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from scissorhands_jax import files
from scissorhands_jax.deletion import records, statements
from scissorhands_jax.deletion.database import Database
from scissorhands_jax.deletion.entries import RunRecorded
from scissorhands_jax.deletion.ledger import DATABASE_FILE, Ledger
from scissorhands_jax.deletion.recorded_runs import run_in_use
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.earlier_runs import WEIGHTS_FILE

_TABLES = ("requests", "history", "head")


def export_ledger(folder: Path, out: Path, *, keys: Path | None = None) -> str:
    """Writes an auditor's copy of a ledger, whole or not at all.

    Args:
      folder: The folder of the ledger.
      out: The folder of the copy, which must not exist.
      keys: The folder of the ledger's keys. The default is the folder `keys` in the ledger's folder.

    Returns:
      The head of the copy.

    Raises:
      InputError: There is something at `out` already, or appears there meanwhile and stays; or `out` lies in the
        ledger, or in what is no folder.
      LedgerError: The ledger cannot be read, or was changed.
      OSError: A file is missing or cannot be written.
    """
    if Path(os.path.realpath(folder)) in Path(os.path.realpath(out)).parents:
        raise InputError(f"{out} lies in the ledger, whose folder holds nothing else; name a folder elsewhere")
    files.remove_leftovers_of(out)  # An export that was killed leaves half a copy there.
    with Ledger(folder, keys) as book, book.sole_run(), _new_copy(out) as place:
        place.mkdir()
        head = _copy_rows(book, place / DATABASE_FILE)
        recorded = [entry.run for entry in book.entries(RunRecorded)]
        kept = [records.public_path(folder)] if records.public_path(folder).exists() else []
        for run in recorded:
            kept += [path(folder, run) for path in (records.record_path, records.record_page_path)]
            kept.append(statements.envelope_path(folder, run))
        current = run_in_use(book)
        if current is not None:
            kept.append(records.run_folder(folder, current) / WEIGHTS_FILE)
        for path in kept:
            files.copy_file(path, place / path.relative_to(folder))
    return head


@contextlib.contextmanager
def _new_copy(out: Path) -> Iterator[Path]:
    """Makes the folder of a copy with `files.new_folder`, and touches nothing that is there before or appears since."""
    message = f"{out} exists already; name a folder that does not"
    if os.path.lexists(out):
        raise InputError(message)
    above = next(path for path in out.parents if os.path.lexists(path))
    if not above.is_dir():
        raise InputError(f"{above} is no folder, so no copy can be made in it; name a folder elsewhere")
    try:
        with files.new_folder(out, replace=False) as place:
            yield place
    except FileExistsError as error:
        if not os.path.lexists(out):  # It is about something above it.
            raise
        raise InputError(message) from error


def _copy_rows(book: Ledger, path: Path) -> str:
    """Writes the rows that hold nothing private to a new file, and returns the head."""
    rows = book.public_rows(_TABLES)
    with contextlib.closing(Database(path, create=True)) as database, database.transaction("IMMEDIATE"):
        database.make_tables()
        for table, found in rows.items():
            for row in found:
                database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    ((_, _, head, _),) = rows["head"]
    return head
