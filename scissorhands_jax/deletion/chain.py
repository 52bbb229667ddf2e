"""The signed chain of a ledger, which verifies each row from the rows before it and the public key.

The hash of a row covers its content and the hash of the row before it, and every hash is signed. The number of rows and
the hash of the newest one, the head, are signed again with every row, for another purpose. So a history whose last rows
were removed has no signed head, unless an older copy of the file still exists.

Private parts of rows (see `entries`) are compared with the digests in the signed rows. They may be missing where their
erasure is in the history, and all together in an auditor's copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scissorhands_jax.deletion import signing
from scissorhands_jax.deletion.entries import (
    CHAIN_START,
    REQUEST_COLUMNS,
    RESTORE,
    Event,
    Request,
    RequestAdded,
    RequestErased,
    RunFailed,
    RunStarted,
    read_entry,
)
from scissorhands_jax.errors import LedgerError
from scissorhands_jax.hashing import canonical, parse_canonical, sha256

HISTORY_PURPOSE = "history"
"""The purpose of the signatures of rows, so that none is used as one of the head."""
HEAD_PURPOSE = "head"
"""The purpose of the signature of the head, so that it is not used as one of a row."""

_PRIVATE_PURPOSE = "private"


class PrivatePart(NamedTuple):
    """The private part of a row: the salt of its digest, and its fields as canonical JSON."""

    salt: str
    document: str


def commitment(part: PrivatePart) -> str:
    """Computes the digest that stands for a private part in the signed row."""
    return signing.salted_digest(part.salt, _PRIVATE_PURPOSE, part.document.encode())


def head_digest(count: int, newest: str) -> str:
    """Computes the digest that is signed as the head of a history: of the number of rows and the newest row's hash."""
    return sha256(canonical([count, newest]))


def read_event(row: Sequence, part: PrivatePart | None, path: Path) -> Event:
    """Reads a row of the history.

    Args:
      row: The columns of the row.
      part: The private part of the row, if it is known.
      path: The file of the ledger, for messages.

    Raises:
      LedgerError: The row cannot be read.
    """
    what = f"row {row[0]} of the history in {path}"
    texts = [*row[1:], *([] if part is None else part)]
    if not isinstance(row[0], int) or not all(isinstance(value, str) for value in texts):
        raise LedgerError(f"{what} was changed or damaged; {RESTORE}")
    seq, time, kind, body, previous, digest, signature = row
    try:
        public = parse_canonical(body.encode())
        promised = public.pop("private", None)
        private = None if part is None else parse_canonical(part.document.encode())
        entry = read_entry(kind, public, private)
    except ValueError as error:
        raise LedgerError(f"{what} was changed or damaged: {error}; {RESTORE}") from error
    return Event(seq, time, entry, previous, promised, digest, signature)


def history_problems(rows: Iterable[Sequence], parts: Mapping[int, PrivatePart], public: str, path: Path) -> list[str]:
    """Everything in the rows of a history that is not as it was written, one sentence each.

    Args:
      rows: All rows in their order.
      parts: The private parts that are known, by the numbers of their rows.
      public: The ledger's public key, in hexadecimal.
      path: The file of the ledger, for messages.
    """
    found, previous, last = [], CHAIN_START, 0
    for row in rows:
        where = f"row {row[0]} of the history in {path}"
        try:
            event = read_event(row, parts.get(row[0]), path)
        except LedgerError as error:
            found.append(str(error))
            continue
        if event.seq != last + 1:
            found.append(f"{where} follows row {last}, so rows between them are missing; {RESTORE}")
        if event.hash != event.computed_hash():
            found.append(f"{where} was changed; {RESTORE}")
        elif not signing.signed_by(public, HISTORY_PURPOSE, event.hash, event.signature):
            found.append(f"{where} has a signature that is not the ledger's; {RESTORE}")
        elif event.seq in parts and commitment(parts[event.seq]) != event.commitment:
            found.append(f"the private part of {where} was changed; {RESTORE}")
        if event.previous != previous:
            found.append(f"{where} does not follow the row before it; {RESTORE}")
        previous, last = event.hash, event.seq
    return found


def erased_parts(events: Sequence[Event]) -> set[int]:
    """Returns the numbers of the rows whose private parts were erased.

    With a request, that is its own row, those that begin or fail the runs whose files listed its examples, and those of
    earlier erasures that say which lists of these runs were left.
    """
    found: set[int] = set()
    for event in events:
        erased = event.entry
        if not isinstance(erased, RequestErased):
            continue
        for other in events[: event.seq - 1]:
            entry = other.entry
            is_request = isinstance(entry, RequestAdded) and entry.id == erased.id
            is_run = isinstance(entry, RunStarted | RunFailed) and entry.run in erased.runs
            is_older = isinstance(entry, RequestErased) and entry.left_in in erased.runs
            if is_request or is_run or is_older:
                found.add(other.seq)
    return found


def private_problems(
    events: Sequence[Event], parts: Mapping[int, PrivatePart], path: Path, *, may_be_missing: bool
) -> list[str]:
    """Describes which private parts are missing, were erased but are there, or belong to no row, in one sentence each.

    Args:
      events: The history.
      parts: The private parts that are known, by the numbers of their rows.
      path: The file of the ledger, for messages.
      may_be_missing: Whether all parts may be missing together, as in an auditor's copy.
    """
    owners = {event.seq for event in events if event.commitment is not None}
    found = [
        f"a private part of row {seq}, which has none, is in {path}; {RESTORE}" for seq in parts if seq not in owners
    ]
    erased = erased_parts(events)
    found += [
        f"the private part of row {seq} of the history in {path} is there, although it was erased; {RESTORE}"
        for seq in sorted(erased & set(parts))
    ]
    if not parts and may_be_missing:
        return found
    missing = sorted(owners - set(parts) - erased)
    return found + [f"the private part of row {seq} of the history in {path} is missing; {RESTORE}" for seq in missing]


def head_problems(heads: Sequence[Sequence], newest: tuple[int, str], public: str, path: Path) -> list[str]:
    """Describes what is wrong with the signed head of a history, in one sentence each.

    Args:
      heads: The rows of the table `head`, of which an intact ledger has one.
      newest: The number and the hash of the newest row of the history; 0 and `CHAIN_START` if the history is empty.
      public: The ledger's public key, in hexadecimal.
      path: The file of the ledger, for messages.
    """
    if len(heads) != 1 or heads[0][0] != 1:
        return [f"{path} was changed: it has {len(heads)} signed heads instead of one; {RESTORE}"]
    _, count, digest, signature = heads[0]
    if not isinstance(count, int) or not isinstance(digest, str):
        return [f"{path} was changed: its head is not that of a ledger; {RESTORE}"]
    if not signing.signed_by(public, HEAD_PURPOSE, head_digest(count, digest), signature):
        return [f"{path} was changed: the signature of its head is not the ledger's; {RESTORE}"]
    if (count, digest) != newest:
        return [
            f"{path} does not end with the row that its signed head names: the end of the history was cut off; "
            f"{RESTORE}"
        ]
    return []


def table_problems(events: Iterable[Event], rows: Iterable[Sequence], path: Path) -> list[str]:
    """Compares the table of requests with a verified history, and describes each difference in one sentence.

    Args:
      events: The history.
      rows: The rows of the table.
      path: The file of the ledger, for messages.
    """
    columns = [field.name for field in dataclasses.fields(Request)][:REQUEST_COLUMNS]
    expected: dict[int, Request] = {}
    for event in events:
        if isinstance(event.entry, RequestAdded):
            expected[event.entry.id] = event.entry.request
        for change in event.entry.changes():
            old = expected[change.request]
            expected[change.request] = dataclasses.replace(old, state=change.state, run=change.run)
    found = []
    known = {row[0]: row for row in rows}
    for number in sorted({*known, *expected}):
        if number not in known or number not in expected:
            what = "is missing" if number not in known else "was put there by hand"
            found.append(f"request {number} in {path} {what}; {RESTORE}")
            continue
        for name, value in zip(columns, known[number], strict=True):
            signed = getattr(expected[number], name)
            if type(value) is not type(signed) or value != signed:
                found.append(
                    f"{name} of request {number} in {path} was changed: it is {value!r}, and the history says "
                    f"{signed!r}; {RESTORE}"
                )
    return found
