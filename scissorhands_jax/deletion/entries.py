"""The content of a ledger: requests, the examples that they name, and the entries of its history.

Every row of the history holds one entry. An entry says what happened, and how that changes requests. The table of
requests is the sum of these changes, so it can be recomputed from the signed history.

Some fields of entries are private: they name people, examples or places. They are not in the signed row, which holds
only a digest of them under a salt that was drawn for this row (`chain.commitment`). Whoever has neither the fields nor
the salt learns nothing from the digest. Without the salt nobody can even check a guess, so a private part is erased,
and the row is as valid as before, when its fields and its salt are removed.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from scissorhands_jax.deletion.documents import from_document
from scissorhands_jax.hashing import canonical, sha256

OPEN = "open"
"""The state of a request that waits."""
RUNNING = "running"
"""The state of a request that a run is working on."""
FORGOTTEN = "forgotten"
"""The state of a request that was served."""
RETRAIN = "retrain now"
"""The state of a request for which a run did not suffice (see `verdicts`)."""
WITHDRAWN = "withdrawn"
"""The state of a request whose requester was erased before it was served."""

CHAIN_START = "0" * 64
"""The hash before that of the first row of a history, and before that of the first record."""

REQUEST_COLUMNS = 6
"""The number of fields of `Request` that are columns of the table of requests."""

RESTORE = "put the file back from your backup"
"""What messages advise if a file of a ledger is missing, is damaged or was changed."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One request; the first six fields are in the order of the columns of the table of requests."""

    id: int
    """1, 2, ... in the order in which requests came in."""
    received: str
    """When the request came in, UTC, written 2026-11-21T18:20:00Z."""
    due: str
    """The date until which it must be served, written 2026-12-21."""
    network: str
    """The SHA-256 of the network that was in use when the request came in."""
    state: str
    """`OPEN`, `RUNNING`, `FORGOTTEN`, `RETRAIN` or `WITHDRAWN`."""
    run: int | None
    """The number of the run that works on the request or has answered it, if there is one."""
    requester: str = ""
    """The person who asks; "" where that is not known. The name is never in records."""
    contact: str = ""
    """How to reach that person; "" where that is not known."""

    @property
    def overdue(self) -> bool:
        """Whether the request waits to be served although its due date has passed."""
        today = datetime.datetime.now(datetime.UTC).date()
        return self.state not in (FORGOTTEN, WITHDRAWN) and datetime.date.fromisoformat(self.due) < today


@dataclasses.dataclass(frozen=True)
class NamedExample:
    """One training example that a request names."""

    position: int
    """The position in the training split."""
    digest: str
    """The digest of the example's content under the ledger's secret."""


@dataclasses.dataclass(frozen=True)
class RequestChange:
    """The new state and run of one request."""

    request: int
    state: str
    run: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """The content of a row of the history. Each subclass is one kind of entry."""

    kind: ClassVar[str]
    """The name of the kind in the file."""
    private: ClassVar[tuple[str, ...]] = ()
    """The names of the private fields. They have default values, which stand for a private part that is not known."""

    def changes(self) -> Iterable[RequestChange]:
        """Returns the changes to requests that are in the ledger already."""
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerBegun(LedgerEntry):
    """The first entry: the network and the data that the ledger is about, and its keys."""

    kind: ClassVar[str] = "begun"
    private: ClassVar[tuple[str, ...]] = ("dataset", "data_dir", "weights", "checkpoint", "described")
    model: str
    network: str
    """The SHA-256 of the original network."""
    dataset: str = ""
    data_dir: str | None = None
    weights: str | None = None
    checkpoint: str | None = None
    described: str = ""
    """The options of the network and how its file is read, as JSON; "" if nothing had to be said."""
    trained_on: str = ""
    """A digest of the positions that the network was trained on and had not forgotten when the ledger was begun."""
    forgotten_before: str = ""
    """A digest of the positions that it had forgotten by then."""
    training_set: str = ""
    """A digest of all training examples."""
    test_set: str = ""
    """A digest of all test examples, with which runs compare what they have made the network forget."""
    ledger: str = ""
    """The random name of the ledger."""
    public_key: str = ""
    secret: str = ""
    """A digest that identifies the ledger's secret."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestAdded(LedgerEntry):
    """A request came in, which names `count` examples."""

    kind: ClassVar[str] = "added"
    private: ClassVar[tuple[str, ...]] = ("requester", "contact", "examples")
    id: int
    received: str
    due: str
    network: str
    count: int
    requester: str = ""
    contact: str = ""
    examples: tuple[NamedExample, ...] = ()

    @property
    def request(self) -> Request:
        """The request as the entry adds it."""
        places = (self.id, self.received, self.due, self.network, OPEN, None)
        return Request(*places, self.requester, self.contact)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunStarted(LedgerEntry):
    """A run began to work on requests. The entry holds everything that decides its outcome, so it can be finished."""

    kind: ClassVar[str] = "started"
    private: ClassVar[tuple[str, ...]] = ("config", "audit")
    run: int
    requests: tuple[int, ...]
    budget: str
    level: str
    network: str
    """The SHA-256 of the network from which the run starts."""
    config: str = ""
    """The run's configuration as JSON."""
    audit: str | None = None
    """The plan of the run's audit as JSON, if it has one."""

    def changes(self) -> Iterable[RequestChange]:
        """Returns changes to the state `RUNNING`."""
        return [RequestChange(request, RUNNING, self.run) for request in self.requests]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFailed(LedgerEntry):
    """A run ended without a network, for the reason in `why`; its requests are open again.

    Where an earlier run had answered requests of it with `RETRAIN`, an `AnswersKept` follows in the same transaction.
    """

    kind: ClassVar[str] = "failed"
    private: ClassVar[tuple[str, ...]] = ("why",)
    run: int
    requests: tuple[int, ...]
    why: str = ""

    def changes(self) -> Iterable[RequestChange]:
        """Returns changes back to the state `OPEN`."""
        return [RequestChange(request, OPEN, None) for request in self.requests]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswersKept(LedgerEntry):
    """The run that has just failed had tried requests again that an earlier run had answered with `RETRAIN`, which
    stays their answer."""

    kind: ClassVar[str] = "kept"
    run: int
    """The earlier run."""
    requests: tuple[int, ...]

    def changes(self) -> Iterable[RequestChange]:
        """Returns changes back to the state `RETRAIN`."""
        return [RequestChange(request, RETRAIN, self.run) for request in self.requests]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunUnlearned(LedgerEntry):
    """A run has made its network, which is judged next. Its folder must be as it is now until then."""

    kind: ClassVar[str] = "unlearned"
    run: int
    network: str
    """The SHA-256 of the network that the run has made."""
    files: str
    """A digest of all files in the folder of the run, without checkpoints and its audit, under the salt of the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecorded(LedgerEntry):
    """A run ended with a verdict and a signed record."""

    kind: ClassVar[str] = "recorded"
    run: int
    requests: tuple[int, ...]
    record: str
    """The hash of the record."""
    verdict: str
    """`FORGOTTEN` or `RETRAIN`, which becomes the state of the requests."""
    network: str
    """The SHA-256 of the network that the run has made."""
    lost: dict[str, str]
    """The percentage points of accuracy that all runs up to this one have cost, by the set of examples: since the first
    network, or since the last one that was trained from scratch. Later runs begin to count there."""

    def changes(self) -> Iterable[RequestChange]:
        """Returns changes to the state that is the verdict."""
        return [RequestChange(request, self.verdict, self.run) for request in self.requests]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDiscarded(LedgerEntry):
    """The folder of a run whose network is no longer in use was removed; its record stays."""

    kind: ClassVar[str] = "discarded"
    run: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestsCovered(LedgerEntry):
    """An earlier run had already made the network forget all that these requests name."""

    kind: ClassVar[str] = "covered"
    run: int
    requests: tuple[int, ...]

    def changes(self) -> Iterable[RequestChange]:
        """Returns changes to the state `FORGOTTEN`."""
        return [RequestChange(request, FORGOTTEN, self.run) for request in self.requests]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErasureBegun(LedgerEntry):
    """The removal of the personal data of a request began, which `RequestErased` ends. Until then files may be gone."""

    kind: ClassVar[str] = "erasing"
    id: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestErased(LedgerEntry):
    """The personal data of a request were removed (see `erasing`): its private part, and those of the runs' rows."""

    kind: ClassVar[str] = "erased"
    private: ClassVar[tuple[str, ...]] = ("files",)
    id: int
    withdrawn: bool
    """Whether the request had not been served. It is not served any more."""
    runs: tuple[int, ...]
    """The runs whose files listed the examples, in order. These files were removed, and the salts of their digests."""
    left_in: int | None
    """The run among them whose network was in use. Its lists were written again without the examples."""
    files: tuple[tuple[str, str], ...] = ()
    """The names and the SHA-256 of these lists."""

    def changes(self) -> Iterable[RequestChange]:
        """Returns a change to the state `WITHDRAWN` if the request had not been served."""
        return [RequestChange(self.id, WITHDRAWN, None)] if self.withdrawn else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkDerived(LedgerEntry):
    """A network was derived from one of the ledger's, or from one that was derived before (see `lineage`)."""

    kind: ClassVar[str] = "derived"
    private: ClassVar[tuple[str, ...]] = ("note",)
    parent: str
    """The SHA-256 of the network that it was made from."""
    child: str
    """The SHA-256 of its file."""
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkRetired(LedgerEntry):
    """A derived network is no longer in use."""

    kind: ClassVar[str] = "retired"
    network: str
    """The SHA-256 of its file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyTrusted(LedgerEntry):
    """From now on audits count as evidence if they are signed by this public key, in hexadecimal (see `trust`)."""

    kind: ClassVar[str] = "trusted"
    key: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyUntrusted(LedgerEntry):
    """From now on audits that are signed by this key no longer count."""

    kind: ClassVar[str] = "untrusted"
    key: str


_KINDS: dict[str, type[LedgerEntry]] = {kind.kind: kind for kind in LedgerEntry.__subclasses__()}


@dataclasses.dataclass(frozen=True)
class Event:
    """One row of the history: an entry, its place in the chain, and the signature."""

    seq: int
    """1, 2, ... without a gap."""
    time: str
    entry: LedgerEntry
    previous: str
    """The hash of the row before."""
    commitment: str | None
    """The digest of the private part of the entry; None if entries of its kind have none."""
    hash: str = ""
    signature: str = ""
    """The signature of the hash."""

    @property
    def body(self) -> bytes:
        """The signed content of the entry as canonical JSON, with the digest of the private part in its place."""
        public = {name: value for name, value in self._fields() if name not in self.entry.private}
        return canonical(public if self.commitment is None else {**public, "private": self.commitment})

    @property
    def private(self) -> bytes:
        """The private part of the entry as canonical JSON."""
        return canonical({name: value for name, value in self._fields() if name in self.entry.private})

    def computed_hash(self) -> str:
        """Computes the SHA-256 of the row's content, which `hash` must equal."""
        return sha256(canonical([self.seq, self.time, self.entry.kind, self.body.decode(), self.previous]))

    def _fields(self) -> Iterable[tuple[str, Any]]:
        return dataclasses.asdict(self.entry).items()


def read_entry(kind: str, body: Mapping[str, Any], private: Mapping[str, Any] | None) -> LedgerEntry:
    """Reads an entry from its kind and its two parts, as `Event.body` and `Event.private` write them.

    Args:
      kind: The kind.
      body: The signed part, without the digest of the private part.
      private: The private part; None if it is not known, or if entries of that kind have none. The private fields then
        have their default values.

    Raises:
      ValueError: There is no such kind, or the parts do not have the fields of that kind.
    """
    if kind not in _KINDS:
        raise ValueError(f"there is no entry of the kind {kind[:50]!r}")
    found = _KINDS[kind]
    if private is None:
        private = {field.name: field.default for field in dataclasses.fields(found) if field.name in found.private}
    if set(private) != set(found.private):
        raise ValueError(f"the private part of an entry of the kind {kind!r} does not have its fields")
    return from_document(found, {**body, **private})


def utc_now() -> str:
    """Returns the current time in UTC, written 2026-11-21T18:20:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
