"""The signed chain of a ledger, which verifies each row from the rows before it and the public key.

The hash of a row covers its content and the hash of the row before it, and every hash is signed. The hash of the newest
row, the head, is signed a second time, for another purpose. So a history whose last rows were removed has no signed
head, unless an older copy of the file still exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scissorhands_jax.deletion import signing
from scissorhands_jax.deletion.entries import (
    CHAIN_START,
    RESTORE,
    Event,
    NamedExample,
    Request,
    RequestAdded,
    examples_sha256,
    read_entry,
)
from scissorhands_jax.errors import LedgerError
from scissorhands_jax.hashing import parse_canonical

HISTORY_PURPOSE, HEAD_PURPOSE = "history", "head"
"""The purposes of the signatures of rows and of the head, which keep one from being used in place of the other."""


def read_event(row: Sequence, path: Path) -> Event:
    """Reads a row of the history.

    Args:
      row: The columns of the row.
      path: The file of the ledger, for messages.

    Raises:
      LedgerError: The row cannot be read.
    """
    what = f"row {row[0]} of the history in {path}"
    if not isinstance(row[0], int) or not all(isinstance(value, str) for value in row[1:]):
        raise LedgerError(f"{what} was changed or damaged; {RESTORE}")
    seq, time, kind, body, previous, digest, signature = row
    try:
        entry = read_entry(kind, parse_canonical(body.encode()))
    except ValueError as error:
        raise LedgerError(f"{what} was changed or damaged: {error}; {RESTORE}") from error
    return Event(seq, time, entry, previous, digest, signature)


def history_problems(rows: Iterable[Sequence], public: str, path: Path) -> list[str]:
    """Everything in the rows of a history that is not as it was written, one sentence each.

    Args:
      rows: All rows in their order.
      public: The ledger's public key, in hexadecimal.
      path: The file of the ledger, for messages.
    """
    found, previous, last = [], CHAIN_START, 0
    for row in rows:
        where = f"row {row[0]} of the history in {path}"
        try:
            event = read_event(row, path)
        except LedgerError as error:
            found.append(str(error))
            continue
        if event.seq != last + 1:
            found.append(f"{where} follows row {last}, so rows between them are missing; {RESTORE}")
        if event.hash != event.computed_hash():
            found.append(f"{where} was changed; {RESTORE}")
        elif not signing.signed_by(public, HISTORY_PURPOSE, event.hash, event.signature):
            found.append(f"{where} has a signature that is not the ledger's; {RESTORE}")
        if event.previous != previous:
            found.append(f"{where} does not follow the row before it; {RESTORE}")
        previous, last = event.hash, event.seq
    return found


def head_problems(heads: Sequence[Sequence], newest: str | None, public: str, path: Path) -> list[str]:
    """Describes what is wrong with the signed head of a history, in one sentence each.

    Args:
      heads: The rows of the table `head`, of which an intact ledger has one.
      newest: The hash of the newest row of the history; None if the history is empty.
      public: The ledger's public key, in hexadecimal.
      path: The file of the ledger, for messages.
    """
    if len(heads) != 1 or heads[0][0] != 1:
        return [f"{path} was changed: it has {len(heads)} signed heads instead of one; {RESTORE}"]
    _, digest, signature = heads[0]
    if not isinstance(digest, str) or not signing.signed_by(public, HEAD_PURPOSE, digest, signature):
        return [f"{path} was changed: the signature of its head is not the ledger's; {RESTORE}"]
    if digest != newest:
        return [
            f"{path} does not end with the row that its signed head names: the end of the history was cut off; "
            f"{RESTORE}"
        ]
    return []


def table_problems(
    events: Iterable[Event], requests: Sequence[Request], examples: Mapping[int, Sequence[NamedExample]], path: Path
) -> list[str]:
    """Compares the tables with a verified history, and describes each difference in one sentence.

    Args:
      events: The history.
      requests: The table of requests.
      examples: The examples in the table by request, sorted by position.
      path: The file of the ledger, for messages.
    """
    expected: dict[int, Request] = {}
    hashes: dict[int, str] = {}
    for event in events:
        if isinstance(event.entry, RequestAdded):
            expected[event.entry.id] = event.entry.request
            hashes[event.entry.id] = event.entry.examples
        for change in event.entry.changes():
            old = expected[change.request]
            expected[change.request] = dataclasses.replace(old, state=change.state, run=change.run)
    found = []
    rows = {request.id: request for request in requests}
    for number in sorted({*rows, *expected}):
        if number not in rows or number not in expected:
            what = "is missing" if number not in rows else "was put there by hand"
            found.append(f"request {number} in {path} {what}; {RESTORE}")
            continue
        for field in dataclasses.fields(Request):
            value, signed = getattr(rows[number], field.name), getattr(expected[number], field.name)
            if type(value) is not type(signed) or value != signed:
                found.append(
                    f"{field.name} of request {number} in {path} was changed: it is {value!r}, and the history says "
                    f"{signed!r}; {RESTORE}"
                )
        if not _have_hash(examples.get(number, ()), hashes[number]):
            found.append(f"the examples of request {number} in {path} were changed; {RESTORE}")
    strays = [request for request in examples if request not in expected]
    return found + [
        f"examples of a request {request}, which does not exist, are in {path}; {RESTORE}" for request in strays
    ]


def _have_hash(examples: Iterable[NamedExample], digest: str) -> bool:
    try:
        return examples_sha256(examples) == digest
    except ValueError:  # A cell of the table holds something that is neither a whole number nor text.
        return False
