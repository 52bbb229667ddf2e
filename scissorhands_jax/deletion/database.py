"""The SQLite file of a ledger: its tables, transactions, and SQLite's errors as messages of one sentence."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scissorhands_jax.deletion.entries import RESTORE
from scissorhands_jax.errors import LedgerError

SCHEMA_VERSION = 5
SCHEMA = (
    "CREATE TABLE requests (id INTEGER PRIMARY KEY, received TEXT NOT NULL, due TEXT NOT NULL, network TEXT NOT NULL, "
    "state TEXT NOT NULL, run INTEGER)",
    "CREATE TABLE history (seq INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, "
    "previous TEXT NOT NULL, hash TEXT NOT NULL, signature TEXT NOT NULL)",
    "CREATE TABLE private (seq INTEGER PRIMARY KEY REFERENCES history (seq), salt TEXT NOT NULL, "
    "document TEXT NOT NULL)",
    "CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), count INTEGER NOT NULL, hash TEXT NOT NULL, "
    "signature TEXT NOT NULL)",
    "CREATE TRIGGER history_stays BEFORE UPDATE ON history BEGIN SELECT RAISE(ABORT, 'history stays'); END",
    "CREATE TRIGGER history_is_kept BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'history stays'); END",
    "CREATE TRIGGER private_stays BEFORE UPDATE ON private BEGIN SELECT RAISE(ABORT, 'private parts stay'); END",
)
"""The statements that make the tables and triggers of a ledger; `PRAGMA user_version` holds `SCHEMA_VERSION`."""

_BUSY_SECONDS = 30.0
_DESCRIBED = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"


class Database:
    """An open SQLite file. Each statement is a transaction of its own unless one has been begun.

    Args:
      path: The file.
      create: Whether to make the file if it does not exist.
      timeout: How many seconds to wait while another process writes.

    Raises:
      LedgerError: The file cannot be opened.
    """

    def __init__(self, path: Path, *, create: bool = False, timeout: float = _BUSY_SECONDS) -> None:
        self.path = path
        with self._explained():
            self.connection = _connect(path, create, timeout)

    def close(self) -> None:
        """Closes the file."""
        self.connection.close()

    def execute(self, statement: str, values: Iterable[Any] = ()) -> list[tuple]:
        """Runs a statement and returns all rows of its answer.

        Raises:
          LedgerError: SQLite refused the statement, or cannot read or write the file.
        """
        with self._explained():
            return self.connection.execute(statement, tuple(values)).fetchall()

    @contextlib.contextmanager
    def transaction(self, kind: str) -> Iterator[None]:
        """Returns a context manager for a transaction, which reads one state and writes everything or nothing.

        Args:
          kind: `DEFERRED` to read, `IMMEDIATE` to write while others may read, `EXCLUSIVE` to keep all others out.
        """
        self.execute(f"BEGIN {kind}")
        try:
            yield
            self.execute("COMMIT")
        finally:
            if self.connection.in_transaction:
                self.execute("ROLLBACK")

    @property
    def version(self) -> int:
        """The schema version in the file; 0 if no ledger was begun in it."""
        return self.execute("PRAGMA user_version")[0][0]

    @property
    def journals(self) -> list[Path]:
        """The files of SQLite's mode WAL, which stay as long as another program has the database open in that mode."""
        if self.execute("PRAGMA journal_mode") != [("wal",)]:
            return []
        return [self.path.with_name(f"{self.path.name}-{kind}") for kind in ("wal", "shm")]

    def make_tables(self) -> None:
        """Makes the tables and triggers of a ledger in an empty file.

        Raises:
          LedgerError: The file holds something else.
        """
        if self.execute("SELECT count(*) FROM sqlite_master") != [(0,)]:
            raise LedgerError(f"{self.path} is a database of something else; name another folder")
        for statement in SCHEMA:
            self.execute(statement)
        self.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def check_schema(self) -> None:
        """Refuses a file that does not have exactly the tables and triggers of a ledger.

        Raises:
          LedgerError: It is not a ledger, was made by another version of the package, or was changed.
        """
        version = self.version
        if version == 0:
            raise LedgerError(
                f"{self.path} is not a ledger, or its first request was never written; name another folder"
            )
        if version > SCHEMA_VERSION:
            raise LedgerError(f"{self.path} was made by a later version of scissorhands_jax; install that version")
        if version != SCHEMA_VERSION:
            raise LedgerError(
                f"{self.path} was made by an earlier version of scissorhands_jax, whose ledgers say less than what is "
                "checked now; begin a new ledger in another folder, with --checkpoint and the folder of the last run "
                "that has forgotten, add the open requests to it, and keep that version to read the old one"
            )
        with contextlib.closing(sqlite3.connect(":memory:")) as fresh:
            for statement in SCHEMA:
                fresh.execute(statement)
            expected = fresh.execute(_DESCRIBED).fetchall()
        if self.execute(_DESCRIBED) != expected:
            raise LedgerError(
                f"{self.path} has other tables or triggers than a ledger: it was changed or is not a ledger; put "
                "the file back from your backup, or name another folder"
            )

    def damages(self) -> list[str]:
        """Describes the damage that SQLite itself finds in the file, in one sentence each."""
        found = [str(line) for (line,) in self.execute("PRAGMA integrity_check(5)")]
        return [f"{self.path} is damaged: {line}; {RESTORE}" for line in found if line != "ok"]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Returns a context manager that turns an error of SQLite into one sentence that says what to do."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # UnicodeDecodeError if SQLite quotes a damaged schema
            code = getattr(error, "sqlite_errorcode", None) or 0
            advice = {
                sqlite3.SQLITE_BUSY: f"another process has been writing for {_BUSY_SECONDS:.0f} s; try again",
                sqlite3.SQLITE_FULL: "the disk is full, and nothing was changed; make room and try again",
                sqlite3.SQLITE_IOERR: "the disk cannot be read or written, and nothing was changed; see if it is full",
                sqlite3.SQLITE_READONLY: "it or its folder cannot be written to, and nothing was changed; allow it",
                sqlite3.SQLITE_CANTOPEN: "it cannot be opened; make it readable, and its folder writable",
                sqlite3.SQLITE_NOTADB: f"it is damaged or is not a ledger; {RESTORE}",
            }.get(code & 0xFF, f"it is damaged or was changed; {RESTORE}")
            raise LedgerError(f"{self.path}: {advice} (SQLite: {error})") from error


def holds_ledger(path: Path) -> bool:
    """Says whether a file is a ledger, even a damaged one.

    A process that is killed while it begins a ledger can leave a file without tables, which is not a ledger yet.
    """
    if not path.is_file():
        return False
    try:
        with contextlib.closing(_connect(path, False, _BUSY_SECONDS)) as connection:
            return connection.execute("PRAGMA user_version").fetchone() != (0,)
    except (sqlite3.Error, UnicodeDecodeError):
        return True


def _connect(path: Path, create: bool, timeout: float) -> sqlite3.Connection:
    mode = "rwc" if create else "rw"
    where = f"file:{urllib.parse.quote(os.fsencode(path.absolute()))}?mode={mode}"
    # Without an isolation level Python begins no transactions of its own.
    connection = sqlite3.connect(where, uri=True, timeout=timeout, isolation_level=None)
    try:
        for setting in (
            "synchronous = EXTRA",  # A commit survives a power failure, and so does the removal of the journal.
            "foreign_keys = ON",
            "trusted_schema = OFF",  # A changed schema cannot call functions with side effects.
            "cell_size_check = ON",
            "secure_delete = ON",  # Removed content is overwritten with zeros.
        ):
            connection.execute(f"PRAGMA {setting}")
        with contextlib.suppress(sqlite3.OperationalError):  # Another program has it open in the mode WAL.
            connection.execute("PRAGMA journal_mode = DELETE")
    except BaseException:
        connection.close()
        raise
    return connection
