"""The signed history: every change by hand is found and named."""

import contextlib
import dataclasses
import re
import shutil
import sqlite3

import pytest

from scissorhands_jax.deletion import chain, database, ledger
from scissorhands_jax.deletion.entries import Event, RequestAdded, RequestErased, RunFailed
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import LedgerError
from tests.deletion.samples import ABOUT, recorded, started
from tests.deletion.spoiling import (
    by_hand,
    problems,
    request,
    unguarded,
)


def private(change):
    """Returns statements that change the private part of the first request."""
    return unguarded("private_stays", f"UPDATE private SET {change} WHERE seq = 2")


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (["UPDATE requests SET state = 'open' WHERE id = 1"], "state of request 1 in .* was changed"),
        (["UPDATE requests SET network = 'x' WHERE id = 2"], "network of request 2 in .* history says '0000"),
        (["UPDATE requests SET due = '2036-01-01' WHERE id = 3"], "due of request 3 in .* was changed"),
        (["DELETE FROM requests WHERE id = 3"], "request 3 in .* is missing"),
        (["INSERT INTO requests SELECT 9, received, due, network, state, run FROM requests LIMIT 1"], "by hand"),
        (["DELETE FROM private WHERE seq = 3"], "the private part of row 3 of .* is missing"),
        (["DELETE FROM private"], "the private part of row 1 of .* is missing"),
        (["INSERT INTO private VALUES (6, 'a', '{}')"], "row 6 of .* was changed"),
        (["INSERT INTO private VALUES (9, 'a', '{}')"], "a private part of row 9, which has none"),
        (private("salt = 'x'"), "the private part of row 2 of .* was changed"),
        (private("salt = x'00'"), "row 2 of .* was changed"),
        (private("document = replace(document, 'first', 'x')"), "the private part of row 2 of .* was changed"),
        (private("document = replace(document, ':3', ':4')"), "the private part of row 2 of .* was changed"),
        (private("document = '{}'"), "row 2 of .* was changed"),
        (unguarded("history_stays", "UPDATE history SET time = 'x' WHERE seq = 4"), "row 4 of .* was changed"),
        (unguarded("history_stays", "UPDATE history SET body = '{' WHERE seq = 4"), "row 4 of .* was changed"),
        (unguarded("history_stays", "UPDATE history SET signature = 'x' WHERE seq = 4"), "row 4 of .* signature"),
        (unguarded("history_is_kept", "DELETE FROM history WHERE seq = 4"), "row 5 of .* follows row 3"),
        (["DROP TRIGGER history_stays"], "other tables or triggers"),
        (["CREATE TRIGGER evil AFTER INSERT ON requests BEGIN DELETE FROM requests; END"], "other tables or triggers"),
        (["PRAGMA user_version = 9"], "later version"),
        (["PRAGMA user_version = 1"], "earlier version"),
        (["UPDATE requests SET run = 1.5 WHERE id = 1"], "run of request 1 in .* was changed"),
        (["DELETE FROM head"], "0 signed heads instead of one"),
        (["UPDATE head SET signature = (SELECT signature FROM history WHERE seq = 7)"], "signature of its head"),
        (["UPDATE head SET hash = (SELECT hash FROM history WHERE seq = 6)"], "signature of its head"),
        (["UPDATE head SET count = 6"], "signature of its head"),
        (["UPDATE head SET count = x'07'"], "its head is not that of a ledger"),
    ],
)  # fmt: skip
def test_every_change_by_hand_is_found_and_named(folder, statements, words):
    by_hand(folder, *statements)
    found = problems(folder)
    assert any(re.search(words, line) for line in found), found
    assert all(re.search("; (put|install|begin) ", line) for line in found), found
    # Nobody works with it, and no later seal hides the change.
    with pytest.raises(LedgerError, match=re.escape(str(folder))):
        Ledger(folder)


def test_a_history_whose_end_is_cut_off_is_found(folder):
    by_hand(folder, *unguarded("history_is_kept", "DELETE FROM history WHERE seq = 7"))
    # As thorough as a forger can be without the key: the tables are made to fit.
    by_hand(folder, "UPDATE requests SET state = 'open', run = NULL WHERE id = 2")
    (found,) = problems(folder)
    assert "the end of the history was cut off" in found


def test_rows_of_another_ledger_do_not_fit(folder, tmp_path):
    with Ledger.begin(tmp_path / "other", ABOUT) as other:
        for who in ("first", "second", "third"):
            request(other, who)
    shutil.copy(tmp_path / "other" / ledger.DATABASE_FILE, tmp_path / "other.sqlite3")
    take = f"ATTACH '{tmp_path / 'other.sqlite3'}' AS other"
    put = "REPLACE INTO history SELECT * FROM other.history WHERE seq = 3"
    by_hand(folder, take, *unguarded("history_is_kept", put))
    assert any("row 3 of the history" in line and "signature" in line for line in problems(folder))
    shutil.copy(tmp_path / "other.sqlite3", folder / ledger.DATABASE_FILE)
    assert "signing key" in problems(folder)[0]


def test_rows_of_two_copies_of_one_ledger_cannot_be_mixed(folder, tmp_path):
    """Both copies have the key, so that every row is signed; only the chain knows which of them belong together."""
    shutil.copytree(folder, tmp_path / "other copy")
    with Ledger(folder) as book:
        first = len(book.history()) + 1
        request(book, "fourth")
        request(book, "fifth")
    with Ledger(tmp_path / "other copy") as book:
        request(book, "somebody else")
    take = f"ATTACH '{tmp_path / 'other copy' / ledger.DATABASE_FILE}' AS copy"
    put = f"REPLACE INTO history SELECT * FROM copy.history WHERE seq = {first}"
    by_hand(folder, take, *unguarded("history_is_kept", put))
    found = problems(folder)
    assert any(re.search(f"row {first + 1} of .* does not follow the row before it", line) for line in found), found
    assert not any("signature" in line for line in found)


def test_a_row_signed_by_the_ledger_fits_nowhere_else(folder):
    """Rows that change places, or are there twice, are found although each of them is signed."""
    whole = (folder / ledger.DATABASE_FILE).read_bytes()
    columns = "time, kind, body, previous, hash, signature"
    for statements, words in (
        (["UPDATE history SET seq = -seq", "UPDATE history SET seq = 7 - seq % 7 WHERE seq < 0"], "row 1 "),
        ([f"INSERT INTO history SELECT 8, {columns} FROM history WHERE seq = 7"], "row 8 of .* was changed"),
    ):
        with contextlib.suppress(sqlite3.IntegrityError):
            by_hand(folder, "DROP TRIGGER history_stays", *statements)
        made = next(text for text in database.SCHEMA if "TRIGGER history_stays " in text)
        by_hand(folder, "DROP TRIGGER IF EXISTS history_stays", made)
        assert any(re.search(words, line) for line in problems(folder)), problems(folder)
        (folder / ledger.DATABASE_FILE).write_bytes(whole)


def test_a_head_that_was_signed_as_a_row_is_none(folder):
    """A forger who cuts the history off has a signature of the new last row, but not one that is good for a head."""
    by_hand(
        folder,
        *unguarded("history_is_kept", "DELETE FROM history WHERE seq = 7"),
        "UPDATE head SET (hash, signature) = (SELECT hash, signature FROM history WHERE seq = 6)",
        "UPDATE requests SET state = 'open', run = NULL WHERE id = 2",
    )
    (found,) = problems(folder)
    assert "the signature of its head is not the ledger's" in found


def test_an_older_copy_is_told_by_its_head_alone(folder):
    """What the module's docstring says is not found without a head that was kept elsewhere."""
    before = (folder / ledger.DATABASE_FILE).read_bytes()
    with Ledger(folder) as book:
        request(book)
        head = book.head
    (folder / ledger.DATABASE_FILE).write_bytes(before)
    assert problems(folder) == []
    with Ledger(folder) as book:
        assert head not in [event.hash for event in book.history()]


def test_an_erasure_takes_the_private_parts_of_its_request_and_of_the_runs_that_listed_it():
    added = [RequestAdded(id=number, received="", due="", network="", count=1) for number in (1, 2)]
    failed, ended = RunFailed(run=1, requests=(1,)), recorded(2, 2)
    first = RequestErased(id=1, withdrawn=False, runs=(1,), left_in=1)
    second = RequestErased(id=2, withdrawn=False, runs=(2,), left_in=None)
    third = RequestErased(id=2, withdrawn=False, runs=(1, 2), left_in=2)
    rows = [ABOUT, *added, started(1, 1), failed, started(2, 2), ended, first, second, third]
    events = [Event(seq, "", entry, "", None) for seq, entry in enumerate(rows, 1)]
    assert chain.erased_parts(events[:7]) == set()
    assert chain.erased_parts(events[:8]) == {2, 4, 5}
    assert chain.erased_parts([*events[:7], dataclasses.replace(events[8], seq=8)]) == {3, 6}
    assert chain.erased_parts(events) == {2, 3, 4, 5, 6, 8}, "what the first has left in run 1 is gone too"
