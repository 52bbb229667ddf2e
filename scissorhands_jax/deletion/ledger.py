"""A ledger of deletion requests: who asked, when, which examples, what became of it.

One SQLite file, written in whole transactions: a process that is killed leaves the state before or after each of them,
and several processes can work on one ledger. Beside the tables `requests` and `examples` there is `history`, to which
rows are only added. Each of its rows holds the hash of the row before and an Ed25519 signature, and the other two
tables follow from it, so that a value changed by hand is found and named. A seal beside the file, signed too, has its
SHA-256, so that a changed byte is found even where SQLite keeps nothing. While a transaction ends, the seal has what
the file's bytes are and what they will be: a process may die at any moment, and one of the two fits.

What this cannot find out from within: that somebody put back an older copy of the whole folder. Keep the head, the hash
of the newest row that `verify` prints, somewhere else, and hand it to a later `verify`.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import sqlite3
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scissorhands_jax import files, hashing
from scissorhands_jax.deletion import signing
from scissorhands_jax.deletion.signing import Keys
from scissorhands_jax.errors import InputError, LedgerError
from scissorhands_jax.hashing import canonical, sha256

logger = logging.getLogger(__name__)

DATABASE_FILE = "ledger.sqlite3"
SEAL_FILE = "ledger.seal"
LOCK_FILE = "run.lock"
KEYS_FOLDER = "keys"
START = "0" * 64  # what the first row of the history has for the hash before it

OPEN, RUNNING, FORGOTTEN, RETRAIN = "open", "running", "forgotten", "retrain now"
"""The states of a request: waiting; in a run; done; tried, but not well enough (see `verdicts`)."""

_BUSY_SECONDS = 30.0
_MAX_NAME = 500
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE requests (id INTEGER PRIMARY KEY, requester TEXT NOT NULL, received TEXT NOT NULL, "
        "due TEXT NOT NULL, network TEXT NOT NULL, state TEXT NOT NULL, run INTEGER)",
        "CREATE TABLE examples (request INTEGER NOT NULL REFERENCES requests (id), position INTEGER NOT NULL, "
        "digest TEXT NOT NULL, PRIMARY KEY (request, position)) WITHOUT ROWID",
        "CREATE TABLE history (seq INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, "
        "previous TEXT NOT NULL, hash TEXT NOT NULL, signature TEXT NOT NULL)",
        "CREATE TRIGGER history_stays BEFORE UPDATE ON history BEGIN SELECT RAISE(ABORT, 'history stays'); END",
        "CREATE TRIGGER history_is_kept BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'history stays'); END",
        "CREATE TRIGGER examples_stay BEFORE UPDATE ON examples BEGIN SELECT RAISE(ABORT, 'examples stay'); END",
        "CREATE TRIGGER examples_are_kept BEFORE DELETE ON examples BEGIN SELECT RAISE(ABORT, 'examples stay'); END",
    ),
)
"""Statements that make schema 1, 2, ... out of the one before; `PRAGMA user_version` says which one a file has."""


class Request(NamedTuple):
    """One row of `requests`."""

    id: int
    requester: str
    received: str  # UTC, 2026-11-21T18:20:00Z
    due: str  # 2026-12-21
    network: str  # SHA-256 of the network that was to forget
    state: str
    run: int | None


class Example(NamedTuple):
    """One example that a request names."""

    position: int  # in the training split
    digest: str  # of its content, under the ledger's secret


class Event(NamedTuple):
    """One row of `history`."""

    seq: int
    time: str
    kind: str
    body: dict[str, Any]
    previous: str
    hash: str
    signature: str


class Ledger:
    """An open ledger; a context manager that closes it.

    Args:
      folder: of the ledger.
      keys: of its keys; None: the folder `keys` in it.
      public: file with the public key, for one who has no other: the ledger can then be read and verified, not changed.
      check: refuse a ledger with a changed row or byte, before the next seal hides it; without it `problems` names
        them all.

    Raises:
      LedgerError: there is none, it or its keys are damaged, or it was made by a later version.
    """

    def __init__(
        self, folder: Path, keys: Path | None = None, *, public: Path | None = None, check: bool = True
    ) -> None:
        self.folder = folder
        self.path = folder / DATABASE_FILE
        if not self.path.is_file():
            raise LedgerError(
                f"{folder} holds no ledger, {DATABASE_FILE} is missing; `scissorhands request add` begins one"
            )
        with self._named_errors():
            self._database = _connect(self.path)
        try:
            with self._named_errors():
                if self._version() == 0:
                    raise LedgerError(f"{self.path} is no ledger, or one that was never begun")
                if self._version() > len(_MIGRATIONS):
                    raise LedgerError(f"{self.path} was made by a later version of scissorhands_jax; install that")
                place = keys or folder / KEYS_FOLDER
                self.secrets: Keys | None = None
                if public is not None:
                    self.public = signing.read_public(public)
                else:
                    self.secrets = signing.read_keys(place)
                    self.public = self.secrets.public
                if self._version() < len(_MIGRATIONS):
                    with self._writing():
                        self._migrate()
                self._check_schema()
            begun = self._event(1).body
            if begun.get("public_key") != self.public:
                kind = "signing" if public is None else "public"
                raise LedgerError(f"the {kind} key in {public or place} is not that of {self.path}")
            if self.secrets is not None and begun.get("secret") != _token(self.secrets):
                raise LedgerError(f"the secret in {place} is not that of {self.path}")
            if check:
                with self._named_errors(), self._reading():
                    found = self._history_problems() or self._table_problems()
                    advice = "`scissorhands request verify` says all that is wrong"
                    if not found:
                        found = self._seal_problems()
                        advice = "if it was no forger, `scissorhands request verify --reseal` seals it anew"
                if found:
                    raise LedgerError(f"{found[0]}; {advice}")
        except BaseException:
            self.close()
            raise

    @classmethod
    def begin(cls, folder: Path, about: dict[str, Any], keys: Path | None = None) -> Ledger:
        """Makes a ledger in a folder, or opens the one that another process has just made there.

        Args:
          folder: made if it does not exist.
          about: what the ledger is about, kept in the first row of the history; JSON without floats.
          keys: folder of the keys.
        """
        drawn = signing.make_keys(keys or folder / KEYS_FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        new = cls.__new__(cls)
        new.folder, new.path, new.secrets, new.public = folder, folder / DATABASE_FILE, drawn, drawn.public
        with new._named_errors():
            new._database = _connect(new.path, create=True)
        try:
            with new._named_errors(), new._writing():
                if new._version() == 0:
                    if new._database.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                        raise LedgerError(f"{new.path} is a database of something else; name another folder")
                    new._migrate()
                    identity = {"ledger": uuid.uuid4().hex, "public_key": drawn.public, "secret": _token(drawn)}
                    new._append("begun", {**about, **identity})
        finally:
            new.close()
        return cls(folder, keys)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the file back."""
        self._database.close()

    @property
    def keys(self) -> Keys:
        """The keys that sign and digest.

        Raises:
          LedgerError: the ledger was opened with its public key alone.
        """
        if self.secrets is None:
            raise LedgerError(
                f"{self.path} was opened with its public key alone, which can verify it but not change it"
            )
        return self.secrets

    @property
    def about(self) -> dict[str, Any]:
        """What `begin` was given, the ledger's name and its public key."""
        return self._event(1).body

    @property
    def head(self) -> str:
        """The hash of the newest row of the history."""
        with self._named_errors():
            (head,) = self._database.execute("SELECT hash FROM history ORDER BY seq DESC LIMIT 1").fetchone()
        return head

    def add(self, *, requester: str, received: str, due: str, network: str, examples: Sequence[Example]) -> int:
        """Takes a request in.

        Args:
          requester: who asks.
          received, due: as in `Request`.
          network: SHA-256 of the network that is to forget.
          examples: what it is to forget, at least one, each position once.

        Returns:
          The id of the request, 1, 2, ...

        Raises:
          InputError: who asks is unclear, or a date is none.
          LedgerError: the request could not be written, and is not in the ledger.
        """
        check_request(requester, due)
        if not examples:
            raise InputError("the request names no example; name at least one")
        with self._named_errors(), self._writing():
            (number,) = self._database.execute("SELECT coalesce(max(id), 0) + 1 FROM requests").fetchone()
            row = Request(number, requester, received, due, network, OPEN, None)
            self._database.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self._database.executemany(
                "INSERT INTO examples VALUES (?, ?, ?)", ((number, *example) for example in examples)
            )
            body = {name: value for name, value in row._asdict().items() if name not in ("state", "run")}
            self._append("added", body | {"count": len(examples), "examples": examples_sha256(examples)})
        return number

    def append(self, kind: str, body: dict[str, Any]) -> None:
        """Adds a row to the history, and what follows from it to the requests.

        Args:
          kind: `started`: `{"run", "requests": [ids], ...}` puts requests into a run;
            `failed`: `{"run", "requests", "why"}` opens them again;
            `recorded`: `{"run", "requests", "verdict", ...}` gives them the verdict as their state;
            `covered`: `{"run", "requests"}` closes requests that an earlier run has served.
          body: JSON without floats.
        """
        with self._named_errors(), self._writing():
            self._append(kind, body)

    def requests(self) -> list[Request]:
        """All requests in their order."""
        with self._named_errors():
            rows = self._database.execute("SELECT * FROM requests ORDER BY id").fetchall()
        return [Request(*row) for row in rows]

    def examples(self, request: int) -> list[Example]:
        """What a request names, sorted by position."""
        with self._named_errors():
            rows = self._database.execute(
                "SELECT position, digest FROM examples WHERE request = ? ORDER BY position", (request,)
            ).fetchall()
        return [Example(*row) for row in rows]

    def history(self, kind: str | None = None) -> list[Event]:
        """The rows of the history in their order, all or those of one kind.

        Raises:
          LedgerError: a row cannot be read.
        """
        with self._named_errors():
            rows = self._database.execute("SELECT * FROM history ORDER BY seq").fetchall()
        return [self._read_event(row) for row in rows if kind in (None, row[2])]

    @contextlib.contextmanager
    def sole_run(self) -> Iterator[None]:
        """Holds the right to run, which one process has at a time; it ends with the process, however that ends.

        Raises:
          LedgerError: another process has it.
        """
        with self._named_errors(), contextlib.ExitStack() as stack:
            try:
                lock = _connect(self.folder / LOCK_FILE, create=True, timeout=0)
                stack.callback(lock.close)
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                what = f"another process is working on the requests of {self.folder}; wait for it"
                raise LedgerError(what) from error
            yield

    def problems(self) -> list[str]:
        """Everything in the file that is not as this program left it, one sentence each; empty if all is well."""
        found = []
        try:
            with self._named_errors(), self._reading():
                found += self._row_problems()
                seal = self._seal_problems()
                if seal and not found and not self._lacks_rows():
                    seal = [f"{seal[0]}; every row is as it was signed, so --reseal can seal it anew"]
                found += seal
        except LedgerError as error:
            found.append(str(error))
        return found

    def reseal(self) -> list[str]:
        """Seals the file anew where its seal is lost or does not fit, after every row was verified.

        So a ledger goes on whose seal was not in a backup, or whose bytes another program has arranged anew (`VACUUM`).
        What the seal alone protected, bytes outside rows and the end of the history, is taken as it is found, and a row
        `resealed` in the history says so and why. A ledger that lacks rows of a good seal is never sealed anew.

        Returns:
          Why it cannot be sealed anew, one sentence each; empty if it is sealed.
        """
        with self._named_errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                found = self._row_problems()
                if found:
                    return found
                why = self._seal_problems()
                if self._lacks_rows():
                    return why
                if why:
                    before = self._state(committed=True)
                    self._append("resealed", {"why": why})
                    self._write_seal([before, self._state()])
                    self._database.execute("COMMIT")
                return []
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")

    def _row_problems(self) -> list[str]:
        found = [
            f"{self.path} is damaged: {line}"
            for (line,) in self._database.execute("PRAGMA integrity_check(5)")
            if line != "ok"
        ]
        return found + (self._history_problems() or self._table_problems())

    def _history_problems(self) -> list[str]:
        found, previous, last = [], START, 0
        for row in self._database.execute("SELECT * FROM history ORDER BY seq"):
            where = f"row {row[0]} of the history in {self.path}"
            try:
                event = self._read_event(row)
            except LedgerError as error:
                found.append(str(error))
                continue
            if event.seq != last + 1:
                found.append(f"{where} follows row {last}; rows between them are missing")
            if event.hash != _event_hash(event):
                found.append(f"{where} was changed")
            elif not signing.signed_by(self.public, "history", event.hash, event.signature):
                found.append(f"{where} has a signature that is not the ledger's")
            if event.previous != previous:
                found.append(f"{where} does not follow the row before it")
            previous, last = event.hash, event.seq
        return found

    def _table_problems(self) -> list[str]:
        """Compares the tables with what the history says."""
        expected: dict[int, dict[str, Any]] = {}
        named: dict[int, str] = {}
        for event in self.history():
            if event.kind == "added":
                fields = {name: event.body.get(name) for name in Request._fields}
                expected[event.body["id"]] = {**fields, "state": OPEN, "run": None}
                named[event.body["id"]] = event.body["examples"]
            for request, state, run in _changes(event.kind, event.body):
                expected[request] |= {"state": state, "run": run}
        found = []
        rows = {row[0]: Request(*row) for row in self._database.execute("SELECT * FROM requests")}
        for number in sorted({*rows, *expected}):
            if number not in rows or number not in expected:
                what = "is missing" if number not in rows else "was put there by hand"
                found.append(f"request {number} in {self.path} {what}")
                continue
            for name, value in expected[number].items():
                if getattr(rows[number], name) != value:
                    found.append(
                        f"{name} of request {number} in {self.path} was changed: it is "
                        f"{getattr(rows[number], name)!r}, and the history says {value!r}"
                    )
            if not _are(self.examples(number), named[number]):
                found.append(f"the examples of request {number} in {self.path} were changed")
        for (number,) in self._database.execute("SELECT DISTINCT request FROM examples"):
            if number not in expected:
                found.append(f"examples of a request {number}, which does not exist, are in {self.path}")
        return found

    def _seal_problems(self) -> list[str]:
        path = self.folder / SEAL_FILE
        try:
            seal = hashing.read_canonical(path)
        except LedgerError as error:
            return [str(error)]
        if not self._is_signed(seal):
            return [f"{path} was changed: its signature is not the ledger's"]
        if self._lacks_rows():
            return [f"{self.path} lacks rows that {path} knows: the end of the history was cut off or replaced"]
        content = self._database.serialize()
        if {"head": self.head, "sha256": sha256(content), "size": self.path.stat().st_size} not in seal["states"]:
            return [f"{self.path} was changed by another program: its bytes are not those in {path}"]
        return []

    def _is_signed(self, seal: dict[str, Any]) -> bool:
        return set(seal) == {"states", "signature"} and signing.signed_by(
            self.public, "seal", sha256(canonical(seal["states"])), seal["signature"]
        )

    def _lacks_rows(self) -> bool:
        """Whether a good seal knows a head that the history has not: that of the earliest state it stands for."""
        try:
            seal = hashing.read_canonical(self.folder / SEAL_FILE)
        except LedgerError:
            return False
        heads = [event.hash for event in self.history()]
        return self._is_signed(seal) and seal["states"][0]["head"] not in heads

    def _state(self, committed: bool = False) -> dict[str, Any]:
        """What the file's bytes are, or, within a transaction, will be when it has ended.

        The bytes come from SQLite: to open the file beside it and close it again would give up SQLite's locks on it.
        """
        content = bytearray(self._database.serialize())
        if not committed:
            # The end of a transaction changes these places alone (SQLite's file format, sections 1.3.7 and 1.3.20).
            counter = (int.from_bytes(content[24:28]) + 1) % 2**32
            major, minor, patch = sqlite3.sqlite_version_info
            content[24:28] = content[92:96] = counter.to_bytes(4)
            content[96:100] = (major * 1_000_000 + minor * 1_000 + patch).to_bytes(4)
        return {"head": self.head, "sha256": sha256(bytes(content)), "size": len(content)}

    def _write_seal(self, states: Sequence[dict[str, Any]]) -> None:
        path = self.folder / SEAL_FILE
        seal = {"states": states, "signature": self.keys.sign("seal", sha256(canonical(states)))}
        try:
            files.write_bytes(path, canonical(seal))
        except OSError as error:
            raise LedgerError(f"{path} cannot be written, and nothing was changed: {error.strerror}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """All reads in it see one state, whoever writes meanwhile."""
        self._database.execute("BEGIN")
        try:
            yield
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that is whole or has not happened, sealed before it ends."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            states = []
            if self._version() > 0:
                # What another program has changed since the ledger was opened must not come under the new seal.
                found = self._seal_problems()
                if found:
                    raise LedgerError(f"{found[0]}, and nothing was changed")
                states = [self._state(committed=True)]
            yield
            if states == [self._state(committed=True)]:
                return  # Nothing was written, and the bytes will stay as they are.
            after = self._state()
            self._write_seal([*states, after])
            self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        self._settle(after)

    def _settle(self, after: dict[str, Any]) -> None:
        """Takes the state before a transaction out of the seal, so that nobody can go back to it."""
        try:
            self._database.execute("BEGIN IMMEDIATE")  # nobody writes meanwhile
            try:
                if self.head == after["head"]:
                    self._write_seal([after])
            finally:
                self._database.execute("ROLLBACK")
        except (sqlite3.Error, LedgerError) as error:
            # The transaction stands, and the seal with both states fits it; the next one catches up.
            logger.warning("%s could not be written again: %s", self.folder / SEAL_FILE, error)

    def _append(self, kind: str, body: dict[str, Any]) -> None:
        last = self._database.execute("SELECT seq, hash FROM history ORDER BY seq DESC LIMIT 1").fetchone()
        seq, previous = (1, START) if last is None else (last[0] + 1, last[1])
        event = Event(seq, now(), kind, body, previous, "", "")
        digest = _event_hash(event)
        row = event._replace(hash=digest, signature=self.keys.sign("history", digest))
        content = canonical(body).decode()
        self._database.execute("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?)", (*row[:3], content, *row[4:]))
        for request, state, run in _changes(kind, body):
            self._database.execute("UPDATE requests SET state = ?, run = ? WHERE id = ?", (state, run, request))

    def _event(self, seq: int) -> Event:
        with self._named_errors():
            row = self._database.execute("SELECT * FROM history WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            raise LedgerError(f"row {seq} of the history in {self.path} is missing")
        return self._read_event(row)

    def _read_event(self, row: tuple) -> Event:
        what = f"row {row[0]} of the history in {self.path}"
        if not isinstance(row[0], int) or not all(isinstance(value, str) for value in row[1:]):
            raise LedgerError(f"{what} was changed or damaged")
        event = Event(*row)
        return event._replace(body=hashing.parse_canonical(row[3].encode(), what))

    def _version(self) -> int:
        return self._database.execute("PRAGMA user_version").fetchone()[0]

    def _migrate(self) -> None:
        for statements in _MIGRATIONS[self._version() :]:
            for statement in statements:
                self._database.execute(statement)
        self._database.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    def _check_schema(self) -> None:
        expected = sorted(statement for statements in _MIGRATIONS for statement in statements)
        rows = self._database.execute("SELECT name, sql FROM sqlite_master").fetchall()
        if sorted(str(sql) for name, sql in rows if not str(name).startswith("sqlite_")) != expected:
            raise LedgerError(f"{self.path} has other tables or triggers than a ledger; it was changed or is no ledger")

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Says in one sentence what SQLite met."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None) or 0
            advice = {
                sqlite3.SQLITE_BUSY: f"another process has been writing for {_BUSY_SECONDS:.0f} s; try again",
                sqlite3.SQLITE_FULL: "the disk is full, and nothing was changed; make room and try again",
                sqlite3.SQLITE_IOERR: "the disk does not take or give it, and nothing was changed; is it full?",
                sqlite3.SQLITE_READONLY: "it or its folder cannot be written to, and nothing was changed",
                sqlite3.SQLITE_CANTOPEN: "it cannot be opened; may you read it, and write into its folder?",
                sqlite3.SQLITE_NOTADB: "it is no ledger, or damaged",
            }.get(code & 0xFF, "it is damaged or was changed")
            raise LedgerError(f"{self.path}: {advice} (SQLite: {error})") from error


def now() -> str:
    """The time, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def check_request(requester: str, due: str) -> None:
    """Refuses what `Ledger.add` would refuse, before anything is written.

    Raises:
      InputError: who asks is unclear, or the date is none.
    """
    if not requester.strip() or len(requester) > _MAX_NAME or not requester.isprintable():
        raise InputError(f"say who asks in 1 to {_MAX_NAME} printable characters, got {requester[:50]!r}")
    try:
        datetime.date.fromisoformat(due)
    except ValueError as error:
        raise InputError(f"the due date must be written 2026-12-31, got {due[:50]!r}") from error


def exists(folder: Path) -> bool:
    """Whether a folder holds a ledger, whole or damaged; one that a process died over before it was begun is none."""
    path = folder / DATABASE_FILE
    if not path.is_file():
        return False
    try:
        with contextlib.closing(_connect(path)) as database:
            return database.execute("PRAGMA user_version").fetchone() != (0,)
    except sqlite3.Error:
        return True


def overdue(request: Request) -> bool:
    """Whether a request is due and not served."""
    return request.state != FORGOTTEN and request.due < now()[:10]


def examples_sha256(examples: Iterable[Example]) -> str:
    """SHA-256 of positions and digests; the digests are under the secret, so nobody can guess what is in it."""
    return sha256(canonical([list(example) for example in examples]))


def _are(examples: Iterable[Example], digest: str) -> bool:
    try:
        return examples_sha256(examples) == digest
    except TypeError:  # something else than numbers and text
        return False


def _changes(kind: str, body: dict[str, Any]) -> Iterator[tuple[int, str, int | None]]:
    """The requests that a row of the history changes, with the state and run that they get."""
    if kind not in ("started", "failed", "recorded", "covered"):
        return
    state = {"started": RUNNING, "failed": OPEN, "covered": FORGOTTEN}.get(kind) or body["verdict"]
    for request in body["requests"]:
        yield request, state, None if kind == "failed" else body["run"]


def _event_hash(event: Event) -> str:
    return sha256(canonical([event.seq, event.time, event.kind, event.body, event.previous]))


def _token(keys: Keys) -> str:
    """Tells whether a secret is the right one."""
    return keys.digest("ledger", b"")


def _connect(path: Path, *, create: bool = False, timeout: float = _BUSY_SECONDS) -> sqlite3.Connection:
    """A connection in which every statement is its own transaction unless one is begun; the disk has what is committed.

    The rollback journal, not the write-ahead log: a ledger is then one file, whose bytes its last transaction decides.
    Pages that become free are overwritten, so that these too are what the seal expects.
    """
    mode = "rwc" if create else "rw"
    where = f"file:{urllib.parse.quote(str(path.absolute()))}?mode={mode}"
    database = sqlite3.connect(where, uri=True, timeout=timeout, isolation_level=None)
    try:
        for setting in (
            "synchronous = EXTRA",
            "foreign_keys = ON",
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "secure_delete = ON",
        ):
            database.execute(f"PRAGMA {setting}")
    except BaseException:
        database.close()
        raise
    return database
