"""A ledger of deletion requests: who asked, when, for which examples, and what was done about it.

A ledger is one SQLite file, which is written in whole transactions: if a process is killed, the file holds the state
before or after a transaction, never one in between. Several processes can work on one ledger. It has four tables:

* `history`, to which rows are only added. Each row holds the hash of the row before it and an Ed25519 signature.
* `private`, the private parts of rows: who asked, for which examples, and where files are. A row has only a salted
  digest of its private part. An auditor's copy has no private parts, and those of an erased request are gone.
* `head`, the number of rows and the hash of the newest one, signed again. It is written in the transaction that adds
  the row.
* `requests`, which follows from the history.

`Ledger.problems` therefore finds and names every change to anything that readers of the ledger see: a changed value, a
row that was added, removed or moved, a row of another ledger, and a history whose last rows were cut off. It does not
find

* changes to bytes without meaning, such as those in free pages or in fields of the file's header that SQLite ignores.
  Rewriting the file without changing a row (`VACUUM`) does not count as a change;
* an older copy of the whole file in place of the newest. To detect that, keep the head, the hash that `verify` prints,
  somewhere else, and pass it to a later `verify`;
* changes by someone who has the ledger's keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from scissorhands_jax import files, reading
from scissorhands_jax.deletion import chain, signing
from scissorhands_jax.deletion.database import Database, holds_ledger
from scissorhands_jax.deletion.entries import (
    CHAIN_START,
    REQUEST_COLUMNS,
    RESTORE,
    Event,
    LedgerBegun,
    LedgerEntry,
    NamedExample,
    Request,
    RequestAdded,
    RequestErased,
    RunStarted,
    utc_now,
)
from scissorhands_jax.deletion.signing import LedgerKeys
from scissorhands_jax.errors import InputError, LedgerError

DATABASE_FILE = "ledger.sqlite3"
KEYS_FOLDER = "keys"

MAX_EXAMPLES = 2**19
"""The number of examples that one request can name. A larger row of the history could not be read again."""

_MAX_NAME = 500

E = TypeVar("E", bound=LedgerEntry)


class Ledger:
    """An open ledger, which is closed when it is used as a context manager.

    Args:
      folder: The folder of the ledger.
      keys: The folder of the ledger's keys. The default is the folder `keys` in the ledger's folder.
      public: A file with the public key, for readers without the keys. The ledger can then be read and verified, but
        not changed. By default the keys are read.
      check: Whether to refuse a ledger in which anything was changed. Otherwise `problems` names every change.

    Raises:
      LedgerError: There is no ledger, the ledger or its keys are damaged, or another version of the package made it.
    """

    def __init__(
        self, folder: Path, keys: Path | None = None, *, public: Path | None = None, check: bool = True
    ) -> None:
        self.folder = folder
        self.path = folder / DATABASE_FILE
        if not self.path.is_file():
            raise LedgerError(
                f"{folder} holds no ledger, {DATABASE_FILE} is missing; put it back from your backup if it was lost, "
                "or begin one in a new folder with `scissorhands request add`"
            )
        self._database = Database(self.path)
        self._read: tuple[tuple[int, int, str], list[Event]] | None = None
        try:
            self._database.check_schema()
            place = keys or folder / KEYS_FOLDER
            self.secrets: LedgerKeys | None = None
            if public is not None:
                self.public = signing.read_public(public)
            else:
                self.secrets = signing.read_keys(place)
                self.public = self.secrets.public
            about = self.about
            if about.public_key != self.public:
                if public is None:
                    raise LedgerError(f"the signing key in {place} is not that of {self.path}; name the right one")
                raise LedgerError(
                    f"the public key in {public} is not that of {self.path}: it is another ledger's, or this ledger "
                    "was signed anew by somebody else; compare the key with what the ledger's owner told you"
                )
            if self.secrets is not None and about.secret != _secret_digest(self.secrets):
                raise LedgerError(f"the secret in {place} is not that of {self.path}; name the right folder of keys")
            if self.secrets is not None:
                _keep_private(self.path)
            if check:
                with self._database.transaction("DEFERRED"):
                    found = self._row_problems()
                if found:
                    raise LedgerError(f"{found[0]}; `scissorhands request verify` lists everything that is wrong")
        except BaseException:
            self.close()
            raise

    @classmethod
    def begin(
        cls, folder: Path, about: LedgerBegun, keys: Path | None = None, *, prepare: Callable[[], None] | None = None
    ) -> Ledger:
        """Begins a ledger in a folder, or opens the one that another process has just begun there.

        Only their owner can read the file and a folder that is created here. One that exists keeps its permissions.

        Args:
          folder: The folder, which is created if it does not exist.
          about: The first entry. The name of the ledger and the digests of its keys are filled in here.
          keys: The folder of the keys, which are drawn if they do not exist. The default is the folder `keys` in the
            ledger's folder.
          prepare: Writes further files of the ledger. It is called where the ledger is begun here, before it is there,
            and while no other process can begin one; never if the file is a database of something else.
        """
        make_ledger_folder(folder)
        drawn = signing.make_keys(keys or folder / KEYS_FOLDER)
        path = folder / DATABASE_FILE
        with contextlib.suppress(
            OSError
        ):  # SQLite says then what is wrong. It gives its journals the same permissions.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        database = Database(path, create=True)
        try:
            with database.transaction("IMMEDIATE"):
                if database.version == 0:
                    database.make_tables()
                    if prepare is not None:
                        prepare()
                    first = dataclasses.replace(
                        about, ledger=uuid.uuid4().hex, public_key=drawn.public, secret=_secret_digest(drawn)
                    )
                    _append(database, drawn, first)
        finally:
            database.close()
        return cls(folder, keys)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    @property
    def keys(self) -> LedgerKeys:
        """The keys that sign and digest.

        Raises:
          LedgerError: The ledger was opened with its public key alone.
        """
        if self.secrets is None:
            raise LedgerError(
                f"{self.path} was opened with its public key alone, which cannot change it; name the folder of its keys"
            )
        return self.secrets

    @property
    def about(self) -> LedgerBegun:
        """The first entry of the history: what the ledger is about."""
        rows = self._database.execute("SELECT * FROM history WHERE seq = 1")
        entry = chain.read_event(rows[0], self._private_parts().get(1), self.path).entry if rows else None
        if not isinstance(entry, LedgerBegun):
            raise LedgerError(f"row 1 of the history in {self.path} is missing; {RESTORE}")
        return entry

    @property
    def head(self) -> str:
        """The hash of the newest row of the history."""
        return _newest(self._database)[1]

    def add(
        self,
        *,
        requester: str,
        received: str,
        due: str,
        network: str,
        examples: Sequence[NamedExample],
        contact: str = "",
    ) -> int:
        """Adds a request.

        Args:
          requester: The person who asks.
          received: The time at which the request came in, written as in `Request`.
          due: The date until which it must be served, written as in `Request`.
          network: The SHA-256 of the network that must forget.
          examples: The examples that it must forget: at least one, and each position once.
          contact: How to reach the requester. By default nothing is noted.

        Returns:
          The id of the request: 1, 2, ...

        Raises:
          InputError: The requester, the contact or the due date cannot be used, there is no example, there are too
            many, or a position is named twice.
          LedgerError: The request could not be written, and is not in the ledger.
        """
        check_request(requester, due, contact)
        if not examples:
            raise InputError("the request names no example; name at least one")
        check_count(len(examples))
        if len({example.position for example in examples}) < len(examples):
            raise InputError("the request names a position twice; name each position once")
        with self._writing():
            ((number,),) = self._database.execute("SELECT coalesce(max(id), 0) + 1 FROM requests")
            entry = RequestAdded(
                id=number,
                received=received,
                due=due,
                network=network,
                count=len(examples),
                requester=requester,
                contact=contact,
                examples=tuple(examples),
            )
            row = dataclasses.astuple(entry.request)[:REQUEST_COLUMNS]
            self._database.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?)", row)
            _append(self._database, self.keys, entry)
        return number

    def append(self, *entries: LedgerEntry) -> None:
        """Adds entries to the history, all or none, and makes the changes to requests that follow from them.

        Raises:
          InputError: An entry is too large to be read again.
          LedgerError: The entries could not be written, and are not in the ledger.
        """
        with self._writing():
            for entry in entries:
                _append(self._database, self.keys, entry)

    def erase(self, entry: RequestErased) -> None:
        """Adds an entry about an erasure, and removes the private parts that go with it from the file.

        They are overwritten, and the file is then written again without its free pages.

        Raises:
          LedgerError: The entry could not be written, and nothing was removed; or the file could not be written again.
        """
        with self._writing():
            _append(self._database, self.keys, entry)
            parts = self._private_parts()
            rows = [chain.read_event(row, parts.get(row[0]), self.path) for row in self._history_rows()]
            for seq in sorted(chain.erased_parts(rows)):
                self._database.execute("DELETE FROM private WHERE seq = ?", (seq,))
        self.compact()

    def compact(self) -> None:
        """Writes the file again without free pages, and leaves no journal next to it.

        Raises:
          LedgerError: The file cannot be written.
        """
        self._database.execute("PRAGMA journal_mode = DELETE")  # It ends another mode, and removes its files.
        self._database.execute("VACUUM")

    def public_rows(self, tables: Iterable[str]) -> dict[str, list[tuple]]:
        """Returns all rows of tables, as they are at one moment."""
        with self._database.transaction("DEFERRED"):
            return {table: self._database.execute(f"SELECT * FROM {table}") for table in tables}

    @property
    def is_copy(self) -> bool:
        """Whether this is an auditor's copy, which has none of the private parts."""
        return not self._database.execute("SELECT seq FROM private LIMIT 1")

    def requests(self) -> list[Request]:
        """Returns all requests in order."""
        people = {entry.id: (entry.requester, entry.contact) for entry in self.entries(RequestAdded)}
        rows = self._request_rows()
        return [Request(*row, *people.get(row[0], ())) for row in rows]

    def examples(self, request: int) -> list[NamedExample]:
        """Returns the examples that a request names, sorted by position; none if its private part is not known."""
        found = [entry.examples for entry in self.entries(RequestAdded) if entry.id == request]
        return sorted(found[0], key=lambda example: example.position) if found else []

    def history(self) -> list[Event]:
        """Returns the rows of the history in order.

        Raises:
          LedgerError: A row cannot be read.
        """
        ((rows, parts),) = self._database.execute(
            "SELECT (SELECT count(*) FROM history), (SELECT count(*) FROM private)"
        )
        state = (rows, parts, self.head)
        if self._read is None or self._read[0] != state:
            private = self._private_parts()
            events = [chain.read_event(row, private.get(row[0]), self.path) for row in self._history_rows()]
            self._read = (state, events)
        return self._read[1]

    def entries(self, kind: type[E]) -> list[E]:
        """Returns the entries of one kind in order.

        Raises:
          LedgerError: A row of the history cannot be read.
        """
        return [event.entry for event in self.history() if isinstance(event.entry, kind)]

    def event_of(self, entry: LedgerEntry) -> Event:
        """Returns the row of the history that holds an entry.

        Raises:
          LedgerError: No row holds it.
        """
        for event in self.history():
            if event.entry == entry:
                return event
        raise LedgerError(f"the history in {self.path} has no such entry of the kind {entry.kind!r}; {RESTORE}")

    def salt(self, seq: int) -> str | None:
        """Returns the salt of the private part of a row of the history; None if that part is not known."""
        part = self._private_parts().get(seq)
        return None if part is None else part.salt

    def run_salt(self, run: int) -> str | None:
        """Returns the salt of what describes the examples of a run; None if it is not known.

        It is the salt of the row that begins the run.
        """
        seqs = [event.seq for event in self.history() if isinstance(event.entry, RunStarted) and event.entry.run == run]
        return self.salt(seqs[0]) if seqs else None

    def sole_run(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context manager for the right to serve requests, which only one process can have at a time.

        Raises:
          BusyError: Another process has that right.
        """
        return files.sole_writer(self.folder)

    def unchanging(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context manager in which everything that is read is from one moment, and others wait to write."""
        return self._database.transaction("DEFERRED")

    @contextlib.contextmanager
    def unwritten(self) -> Iterator[None]:
        """Returns a context manager that keeps others from writing to the file, where it can be written to at all.

        Meanwhile a journal next to the file is nobody's, unless `journals` names it.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(LedgerError):
                stack.enter_context(self._database.transaction("IMMEDIATE"))
            yield

    @property
    def journals(self) -> list[Path]:
        """The files next to the database that belong to it while another program has set another journal mode."""
        return self._database.journals

    def problems(self) -> list[str]:
        """Describes everything in the file that is not as it was written, in one sentence each.

        The result is empty if nothing was changed. The docstring of the module says what is found and what is not.
        """
        try:
            with self._database.transaction("DEFERRED"):
                return self._database.damages() + self._row_problems()
        except LedgerError as error:
            return [str(error)]

    def _history_rows(self) -> list[tuple]:
        return self._database.execute("SELECT * FROM history ORDER BY seq")

    def _request_rows(self) -> list[tuple]:
        return self._database.execute("SELECT * FROM requests ORDER BY id")

    def _private_parts(self) -> dict[int, chain.PrivatePart]:
        rows = self._database.execute("SELECT seq, salt, document FROM private")
        return {seq: chain.PrivatePart(salt, document) for seq, salt, document in rows}

    def _row_problems(self) -> list[str]:
        rows, parts = self._history_rows(), self._private_parts()
        found = chain.history_problems(rows, parts, self.public, self.path) or self._head_problems()
        if found:
            return found
        events = self.history()
        found = chain.private_problems(events, parts, self.path, may_be_missing=self.secrets is None)
        return found + chain.table_problems(events, self._request_rows(), self.path)

    def _head_problems(self) -> list[str]:
        heads = self._database.execute("SELECT * FROM head")
        return chain.head_problems(heads, _newest(self._database), self.public, self.path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Returns a context manager for a transaction that writes, unless another program has added unsigned rows."""
        with self._database.transaction("IMMEDIATE"):
            found = self._head_problems()
            if found:
                raise LedgerError(f"nothing was changed, because {found[0]}")
            yield


def check_request(requester: str, due: str, contact: str = "") -> None:
    """Checks the requester, the due date and the contact of a request before anything is written.

    Raises:
      InputError: One of them cannot be used.
    """
    if not requester.strip() or len(requester) > _MAX_NAME or not requester.isprintable():
        raise InputError(f"the requester is {requester[:50]!r}; give a name of 1 to {_MAX_NAME} printable characters")
    if len(contact) > _MAX_NAME or not contact.isprintable():
        raise InputError(f"the contact is {contact[:50]!r}; give at most {_MAX_NAME} printable characters")
    try:
        is_date = datetime.date.fromisoformat(due).isoformat() == due
    except ValueError:
        is_date = False
    if not is_date:  # Python also reads other ways to write a date, such as 20261231 and 2026-W53-4.
        raise InputError(f"the due date must be a day that exists, written 2026-12-31; got {due[:50]!r}")


def check_count(examples: int) -> None:
    """Checks the number of examples of a request before anything is written.

    Raises:
      InputError: There are more than `MAX_EXAMPLES`.
    """
    if examples > MAX_EXAMPLES:
        raise InputError(
            f"the request names {examples} examples, and one request can name at most {MAX_EXAMPLES}; give several "
            "requests"
        )


def make_ledger_folder(folder: Path) -> None:
    """Makes the folder of a ledger where it does not exist, for its owner alone: it names people and examples.

    Raises:
      InputError: No run could work in it.
    """
    files.check_name(folder)
    files.make_folder(folder, mode=0o700)


def ledger_exists(folder: Path) -> bool:
    """Says whether a folder holds a ledger, even a damaged one."""
    return holds_ledger(folder / DATABASE_FILE)


def _keep_private(path: Path) -> None:
    """Takes the permissions of others from the file of a ledger, which one of an earlier version has."""
    mode = path.stat().st_mode
    if os.name == "posix" and mode & 0o077:
        with contextlib.suppress(OSError):  # It belongs to somebody else, or cannot be changed at all.
            path.chmod(mode & 0o700)


def _newest(database: Database) -> tuple[int, str]:
    """Returns the number and hash of the newest row of the history, or 0 and `CHAIN_START` if the history is empty."""
    rows = database.execute("SELECT seq, hash FROM history ORDER BY seq DESC LIMIT 1")
    return rows[0] if rows else (0, CHAIN_START)


def _append(database: Database, keys: LedgerKeys, entry: LedgerEntry) -> None:
    """Adds a row to the history, signs the new head, and changes the requests, within a transaction."""
    last, previous = _newest(database)
    event = Event(last + 1, utc_now(), entry, previous, commitment=None)
    part = None
    try:
        if entry.private:
            part = chain.PrivatePart(signing.draw_salt(), event.private.decode())
            event = dataclasses.replace(event, commitment=chain.commitment(part))
        digest = event.computed_hash()
    except ValueError as error:  # Names of files can hold bytes that are no text.
        raise InputError(f"the ledger cannot hold what it was given: {error}; rename the file or folder") from error
    try:
        for document in (event.body, b"" if part is None else part.document.encode()):
            reading.check_json_size(document)
    except ValueError as error:
        raise InputError(
            f"the ledger cannot hold this row of the kind {entry.kind!r}, which could not be read again: {error}; give "
            "less at a time"
        ) from error
    row = (
        *(event.seq, event.time, entry.kind, event.body.decode()),
        *(previous, digest, keys.sign(chain.HISTORY_PURPOSE, digest)),
    )
    database.execute("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    if part is not None:
        database.execute("INSERT INTO private VALUES (?, ?, ?)", (event.seq, *part))
    head = (event.seq, digest, keys.sign(chain.HEAD_PURPOSE, chain.head_digest(event.seq, digest)))
    database.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?)", head)
    for change in entry.changes():
        values = (change.state, change.run, change.request)
        database.execute("UPDATE requests SET state = ?, run = ? WHERE id = ?", values)


def _secret_digest(keys: LedgerKeys) -> str:
    """Computes a digest that identifies the secret of a ledger."""
    return keys.digest("ledger", b"")
