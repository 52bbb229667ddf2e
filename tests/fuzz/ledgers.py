"""The readers of ledgers: the ledger with its keys, its records, and audits from elsewhere."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from scissorhands_jax import hashing, reading
from scissorhands_jax.audit.scores import AuditScores
from scissorhands_jax.deletion import ledger, records, signed_audits, signing
from scissorhands_jax.deletion.entries import NamedExample
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import InputError, LedgerError
from tests.audit.scores_test import made_up
from tests.deletion.samples import ABOUT, record, started
from tests.fuzz.damage import damaged, damaged_json
from tests.fuzz.targets import Next, Read, Target, damaged_documents


def _book(folder: Path) -> Path:
    with Ledger.begin(folder, ABOUT) as book:
        rows = [NamedExample(position, f"{position:064d}") for position in range(40)]
        for who in ("first", "second"):
            book.add(requester=who, received="now", due="2026-12-31", network="0" * 64, examples=rows)
        book.append(started(1, 1))
    return folder


def _look_through(folder: Path) -> list:
    with Ledger(folder, check=False) as book:
        problems = book.problems()
    with Ledger(folder) as book:
        read = [book.requests(), book.history(), book.examples(1), book.examples(2), book.head]
        if not problems:
            book.add(requester="x", received="now", due="2026-12-31", network="0", examples=[NamedExample(1, "2")])
    if problems:
        raise LedgerError(problems[0])
    return read


def _ledgers(folder: Path) -> Next:
    """A damaged ledger is refused, or what is read from it is what was written."""
    book = _book(folder / "ledger")
    names = [ledger.DATABASE_FILE] * 7 + ["keys/secret", "keys/signing"]
    whole = {name: (book / name).read_bytes() for name in names}
    expected = _look_through(Path(shutil.copytree(book, folder / "whole")))

    def make(generator: random.Random, number: int) -> Read:
        for path in book.glob("*-*"):  # journals of a transaction that a damaged file could not end
            path.unlink()
        for spoilt, content in whole.items():
            (book / spoilt).write_bytes(content)
        name = names[number % len(names)]
        content = damaged(whole[name], generator)
        (book / name).write_bytes(content)

        def read() -> None:
            assert _look_through(book) == expected, name
            assert name == ledger.DATABASE_FILE or content == whole[name]

        return read

    return make


def _records(folder: Path) -> Next:
    keys = signing.read_keys(_book(folder / "ledger") / "keys")
    (folder / "records").mkdir()
    path = records.record_path(folder, 1)
    path.with_suffix(".html").write_text("page")
    digest = records.write_record(folder, record(), keys)
    envelope = json.loads(path.read_bytes())
    assert records.read_record(path, keys.public)[1] == digest == envelope["hash"]

    def make(generator: random.Random, number: int) -> Read:
        path.write_bytes(damaged_json(envelope, generator, number))
        return lambda: records.read_record(path, keys.public)

    return make


def _audits(folder: Path) -> Next:
    """The scores that a signed audit holds, and the whole document, whose signature no damaged one has."""
    document = made_up(networks=4).as_document()

    def read(path: Path) -> None:
        try:
            found = reading.read_json(path)
        except ValueError as error:
            raise InputError(str(error)) from error
        AuditScores.from_document(found)

    return damaged_documents(folder, document, read)


def _signed_audits(folder: Path) -> Next:
    private = bytes(range(32))
    document = {"format": 2, "subject": {}, "results": {}, "numbers": {}, "scores": made_up(networks=4).as_document()}
    digest = hashing.sha256(hashing.canonical(document))
    signature, key = signing.sign_digest(private, "audit", digest), signing.public_of(private)
    envelope = {"audit": document, "hash": digest, "key": key, "signature": signature}
    return damaged_documents(folder, envelope, lambda path: signed_audits.read_signed(path.read_bytes(), [key], path))


TARGETS = {
    "ledgers": Target(200, _ledgers, 0.6),
    "records": Target(150, _records, 0.95),
    "audits": Target(100, _audits, 0.5),
    "signed audits": Target(50, _signed_audits, 0.95),
}
