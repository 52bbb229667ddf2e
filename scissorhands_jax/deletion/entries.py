"""The content of a ledger: requests, the examples that they name, and the entries of its history.

Every row of the history holds one entry. An entry says what happened, and how that changes requests. The table of
requests is the sum of these changes, so it can be recomputed from the signed history.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Iterable
from typing import Any, ClassVar

from scissorhands_jax.deletion.documents import from_document
from scissorhands_jax.hashing import canonical, sha256

OPEN, RUNNING, FORGOTTEN, RETRAIN = "open", "running", "forgotten", "retrain now"
"""The states of a request: it waits, a run is working on it, it was served, or a run did not suffice (see
`verdicts`)."""

CHAIN_START = "0" * 64
"""The hash before that of the first row of a history, and before that of the first record."""

RESTORE = "put the file back from your backup"
"""What messages advise if a file of a ledger is missing, is damaged or was changed."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One row of the table of requests; the fields are in the order of its columns."""

    id: int
    """1, 2, ... in the order in which requests came in."""
    requester: str
    """The person who asks. The name is only in the ledger, and never in records."""
    received: str
    """When the request came in, UTC, written 2026-11-21T18:20:00Z."""
    due: str
    """The date until which it must be served, written 2026-12-21."""
    network: str
    """The SHA-256 of the network that was in use when the request came in."""
    state: str
    """`OPEN`, `RUNNING`, `FORGOTTEN` or `RETRAIN`."""
    run: int | None
    """The number of the run that works on the request or has answered it, if there is one."""

    @property
    def overdue(self) -> bool:
        """Whether the request has not been served although its due date has passed."""
        today = datetime.datetime.now(datetime.UTC).date()
        return self.state != FORGOTTEN and datetime.date.fromisoformat(self.due) < today


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

    def changes(self) -> Iterable[RequestChange]:
        """Returns the changes to requests that are in the ledger already."""
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerBegun(LedgerEntry):
    """The first entry: the network and the data that the ledger is about, and its keys."""

    kind: ClassVar[str] = "begun"
    model: str
    dataset: str
    network: str
    """The SHA-256 of the original network."""
    data_dir: str | None = None
    weights: str | None = None
    checkpoint: str | None = None
    trained_on: str | None = None
    """A digest of the positions that the network was trained on; None if it was trained on the whole training split."""
    training_set: str = ""
    """A digest of all training examples."""
    ledger: str = ""
    """The random name of the ledger."""
    public_key: str = ""
    secret: str = ""
    """A digest that identifies the ledger's secret."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestAdded(LedgerEntry):
    """A request came in; `examples` is the hash of its `count` examples."""

    kind: ClassVar[str] = "added"
    id: int
    requester: str
    received: str
    due: str
    network: str
    count: int
    examples: str

    @property
    def request(self) -> Request:
        """The row that the entry adds to the table of requests."""
        return Request(self.id, self.requester, self.received, self.due, self.network, OPEN, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunStarted(LedgerEntry):
    """A run began to work on requests. The entry holds everything that decides its outcome, so it can be finished."""

    kind: ClassVar[str] = "started"
    run: int
    requests: tuple[int, ...]
    config: str
    """The run's configuration as JSON."""
    budget: str
    level: str
    audit: str | None
    """The plan of the run's audit as JSON, if it has one."""
    network: str
    """The SHA-256 of the network from which the run starts."""

    def changes(self) -> Iterable[RequestChange]:
        """Returns changes to the state `RUNNING`."""
        return [RequestChange(request, RUNNING, self.run) for request in self.requests]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFailed(LedgerEntry):
    """A run ended without a network, for the reason in `why`; its requests are open again."""

    kind: ClassVar[str] = "failed"
    run: int
    requests: tuple[int, ...]
    why: str

    def changes(self) -> Iterable[RequestChange]:
        """Returns changes back to the state `OPEN`."""
        return [RequestChange(request, OPEN, None) for request in self.requests]


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
class RequestsCovered(LedgerEntry):
    """An earlier run had already made the network forget all that these requests name."""

    kind: ClassVar[str] = "covered"
    run: int
    requests: tuple[int, ...]

    def changes(self) -> Iterable[RequestChange]:
        """Returns changes to the state `FORGOTTEN`."""
        return [RequestChange(request, FORGOTTEN, self.run) for request in self.requests]


_KINDS: dict[str, type[LedgerEntry]] = {
    kind.kind: kind for kind in (LedgerBegun, RequestAdded, RunStarted, RunFailed, RunRecorded, RequestsCovered)
}


@dataclasses.dataclass(frozen=True)
class Event:
    """One row of the history: an entry, its place in the chain, and the signature."""

    seq: int
    """1, 2, ... without a gap."""
    time: str
    entry: LedgerEntry
    previous: str
    """The hash of the row before."""
    hash: str = ""
    signature: str = ""
    """The signature of the hash."""

    def computed_hash(self) -> str:
        """Computes the SHA-256 of the row's content, which `hash` must equal."""
        body = dataclasses.asdict(self.entry)
        return sha256(canonical([self.seq, self.time, self.entry.kind, body, self.previous]))


def read_entry(kind: str, body: Any) -> LedgerEntry:
    """Reads an entry from its kind and the JSON object that `dataclasses.asdict` made of it.

    Raises:
      ValueError: There is no such kind, or the object does not have the fields of that kind.
    """
    if kind not in _KINDS:
        raise ValueError(f"there is no entry of the kind {kind[:50]!r}")
    return from_document(_KINDS[kind], body)


def examples_sha256(examples: Iterable[NamedExample]) -> str:
    """Computes the SHA-256 of the positions and digests of examples.

    The digests depend on the ledger's secret, so what was hashed cannot be guessed without it.
    """
    return sha256(canonical([[example.position, example.digest] for example in examples]))


def utc_now() -> str:
    """Returns the current time in UTC, written 2026-11-21T18:20:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
