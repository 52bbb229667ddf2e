"""The ledger on its own: states, every kind of change by hand, several processes, full disks, kills."""

import contextlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from scissorhands_jax.deletion import database, entries, ledger, signing
from scissorhands_jax.deletion.entries import NamedExample, RequestsCovered, RunFailed
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import InputError, LedgerError
from tests.deletion.samples import ABOUT, recorded, started

pytest.importorskip("cryptography")

EXAMPLES = [NamedExample(3, "a" * 64), NamedExample(5, "b" * 64)]


def request(book, who="somebody", **changes):
    fields = {"requester": who, "received": entries.utc_now(), "due": "2026-12-31", "network": "0" * 64}
    return book.add(**{**fields, "examples": EXAMPLES, **changes})


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A ledger with three requests, one served, one in a run, one open."""
    folder = tmp_path_factory.mktemp("ledger") / "book"
    with Ledger.begin(folder, ABOUT) as book:
        for who in ("first", "second", "third"):
            request(book, who)
        book.append(started(1, 1))
        book.append(recorded(1, 1))
        book.append(started(2, 2))
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(written, tmp_path / "copy")


def problems(folder) -> list[str]:
    """All that is found, by opening the ledger or by looking through it."""
    try:
        with Ledger(folder, check=False) as book:
            return book.problems()
    except LedgerError as error:
        return [str(error)]


def by_hand(folder, *statements) -> None:
    with sqlite3.connect(folder / ledger.DATABASE_FILE) as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def test_requests_move_through_their_states(folder):
    with Ledger(folder) as book:
        assert [(r.id, r.requester, r.state, r.run) for r in book.requests()] == [
            (1, "first", "forgotten", 1),
            (2, "second", "running", 2),
            (3, "third", "open", None),
        ]
        assert book.examples(2) == EXAMPLES
        book.append(RunFailed(run=2, requests=(2,), why="diverged"))
        book.append(RequestsCovered(run=1, requests=(3,)))
        assert [r.state for r in book.requests()] == ["forgotten", "open", "forgotten"]
        assert [event.seq for event in book.history()] == list(range(1, 10))
        assert book.head == book.history()[-1].hash
        assert book.problems() == []
    assert problems(folder) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"requester": " "}, "who asks"),
        ({"requester": "a\x1b[2J"}, "who asks"),
        ({"due": "soon"}, "due date"),
        ({"examples": []}, "no example"),
        ({"examples": [EXAMPLES[0]] * 2}, "UNIQUE"),
    ],
)
def test_a_bad_request_is_refused_and_leaves_nothing(folder, change, words):
    with Ledger(folder) as book:
        with pytest.raises(InputError, match=words):
            request(book, **change)
        assert len(book.requests()) == 3
        assert book.problems() == []


@pytest.mark.parametrize("statement", ["UPDATE history SET time = 'x'", "DELETE FROM history", "DELETE FROM examples"])
def test_history_is_only_added_to(folder, statement):
    with pytest.raises(sqlite3.IntegrityError, match="stay"):
        by_hand(folder, statement)
    assert problems(folder) == []


def unguarded(trigger, statement):
    """A statement that a trigger forbids, by someone who takes it away and puts it back."""
    made = next(text for text in database.SCHEMA if f"TRIGGER {trigger} " in text)
    return [f"DROP TRIGGER {trigger}", statement, made]


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (["UPDATE requests SET state = 'open' WHERE id = 1"], "state of request 1 in .* was changed"),
        (["UPDATE requests SET requester = 'x' WHERE id = 2"], "requester of request 2 in .* history says 'second'"),
        (["UPDATE requests SET due = '2036-01-01' WHERE id = 3"], "due of request 3 in .* was changed"),
        (["DELETE FROM requests WHERE id = 3"], "request 3 in .* is missing"),
        (["INSERT INTO requests SELECT 9, 'x', received, due, network, state, run FROM requests LIMIT 1"], "by hand"),
        (["INSERT INTO examples VALUES (2, 7, 'x')"], "examples of request 2 in .* were changed"),
        (["INSERT INTO examples VALUES (2, 7, x'00')"], "examples of request 2 in .* were changed"),
        (["INSERT INTO examples VALUES (8, 7, 'x')"], "a request 8, which does not exist"),
        (unguarded("examples_stay", "UPDATE examples SET digest = 'x'"), "examples of request 1"),
        (unguarded("history_stays", "UPDATE history SET time = 'x' WHERE seq = 4"), "row 4 of .* was changed"),
        (unguarded("history_stays", "UPDATE history SET body = '{' WHERE seq = 4"), "row 4 of .* was changed"),
        (unguarded("history_stays", "UPDATE history SET signature = 'x' WHERE seq = 4"), "row 4 of .* signature"),
        (unguarded("history_is_kept", "DELETE FROM history WHERE seq = 4"), "row 5 of .* follows row 3"),
        (["DROP TRIGGER history_stays"], "other tables or triggers"),
        (["CREATE TRIGGER evil AFTER INSERT ON requests BEGIN DELETE FROM requests; END"], "other tables or triggers"),
        (["PRAGMA user_version = 9"], "later version"),
        (["PRAGMA user_version = 1"], "earlier version"),
        (["UPDATE requests SET run = 1.5 WHERE id = 1"], "run of request 1 in .* was changed"),
        (["INSERT INTO examples VALUES ('x', 7, 'x')"], "a request x, which does not exist"),
        (["DELETE FROM head"], "0 signed heads instead of one"),
        (["UPDATE head SET signature = (SELECT signature FROM history WHERE seq = 7)"], "signature of its head"),
        (["UPDATE head SET hash = (SELECT hash FROM history WHERE seq = 6)"], "signature of its head"),
    ],
)  # fmt: skip
def test_every_change_by_hand_is_found_and_named(folder, statements, words):
    by_hand(folder, *statements)
    found = problems(folder)
    assert any(re.search(words, line) for line in found), found
    with pytest.raises(LedgerError):  # nobody works with it, and no later seal hides the change
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


def everything(path):
    """All that can be read from the tables of a database, and what they are; None if SQLite cannot read it."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [
            connection.execute(f"SELECT {columns} ORDER BY 1, 2").fetchall()
            for columns in (
                *("* FROM requests", "* FROM examples", "* FROM history", "* FROM head"),
                "type, name, tbl_name, sql FROM sqlite_master",
            )
        ]
    except sqlite3.Error:
        return None
    finally:
        connection.close()


def flipped(content, position, generator):
    """The content with one bit of one byte changed."""
    return content[:position] + bytes([content[position] ^ 1 << generator.randrange(8)]) + content[position + 1 :]


def remove_journals(folder):
    """Removes what SQLite leaves next to a file whose transaction it could not end."""
    for left in folder.glob("ledger.sqlite3-*"):
        left.unlink()


def test_a_changed_byte_is_found_or_changes_nothing_that_is_read(folder):
    generator = random.Random(0)
    path = folder / ledger.DATABASE_FILE
    whole, expected = path.read_bytes(), everything(path)
    found_in = 0
    for position in generator.sample([position for position, byte in enumerate(whole) if byte], 300):
        path.write_bytes(flipped(whole, position, generator))
        found = problems(folder)
        found_in += bool(found)
        assert found or everything(path) == expected, position
        assert all(str(folder) in line for line in found)
        remove_journals(folder)
    assert found_in > 150
    path.write_bytes(whole)
    assert problems(folder) == []


def test_a_changed_byte_is_found_in_every_text_of_every_row(folder):
    generator = random.Random(0)
    path = folder / ledger.DATABASE_FILE
    whole = path.read_bytes()
    texts = {value.encode() for table in everything(path) for row in table for value in row if isinstance(value, str)}
    assert len(texts) > 50
    for text in sorted(texts):
        start = whole.index(text)
        path.write_bytes(flipped(whole, start + generator.randrange(len(text)), generator))
        assert problems(folder), text
        remove_journals(folder)


def test_a_file_that_was_cut_off_is_found(folder):
    path = folder / ledger.DATABASE_FILE
    whole = path.read_bytes()
    for cut in (0, 1, 100, 4095, 4096, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert problems(folder), cut
    path.unlink()
    assert problems(folder)


def test_any_changed_byte_of_the_keys_is_found(folder):
    generator = random.Random(0)
    for name in ("keys/secret", "keys/signing"):
        path = folder / name
        whole = path.read_bytes()
        for position in [generator.randrange(len(whole)) for _ in range(15)]:
            path.write_bytes(flipped(whole, position, generator))
            found = problems(folder)
            assert any(path.name in line or path.parent.name in line for line in found), (name, position)
        for content in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0"):
            path.write_bytes(content)
            assert problems(folder), name
        path.unlink()
        assert problems(folder), name
        path.write_bytes(whole)
        path.chmod(0o600)
    assert problems(folder) == []


def test_rewriting_the_file_is_no_change(folder):
    before = everything(folder / ledger.DATABASE_FILE)
    by_hand(folder, "VACUUM", "PRAGMA application_id = 7")
    assert everything(folder / ledger.DATABASE_FILE)[:4] == before[:4]
    assert problems(folder) == []


class Died(BaseException):
    """As if the process had been killed."""


class DiesAt:
    """A connection whose process dies before or after a statement, the first time."""

    def __init__(self, database, statement, after):
        self.database, self.statement, self.after, self.died = database, statement, after, False

    def __getattr__(self, name):
        return getattr(self.database, name)

    def execute(self, statement, *arguments):
        last = statement.startswith(self.statement) and not self.died
        if last and not self.after:
            self.died = True
            raise Died
        result = self.database.execute(statement, *arguments)
        if last:
            self.died = True
            raise Died
        return result


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "INSERT INTO history", "INSERT OR REPLACE", "COMMIT"])
def test_a_process_that_died_leaves_the_state_before_or_after(folder, statement, after):
    with Ledger(folder) as book:
        book._database.connection = DiesAt(book._database.connection, statement, after)
        with pytest.raises(Died):
            request(book)
    assert problems(folder) == []
    with Ledger(folder) as book:
        assert len(book.requests()) == 3 + (after and statement == "COMMIT")
        request(book)
    assert problems(folder) == []


def test_a_row_that_another_program_added_is_not_built_upon(folder):
    with Ledger(folder) as book:
        by_hand(folder, "INSERT INTO history SELECT 8, time, kind, body, previous, 'x', signature FROM history LIMIT 1")
        with pytest.raises(LedgerError, match="the end of the history was cut off, and nothing was changed"):
            request(book)
        assert len(book.requests()) == 3


class TestPublicKey:
    @pytest.fixture
    def pem(self, folder, tmp_path) -> Path:
        path = tmp_path / "public_key.pem"
        with Ledger(folder) as book:
            path.write_bytes(signing.public_pem(book.public))
        shutil.rmtree(folder / "keys")
        return path

    def test_it_verifies_and_does_not_write(self, folder, pem):
        with Ledger(folder, public=pem) as book:
            assert book.problems() == []
            with pytest.raises(LedgerError, match="with its public key alone"):
                request(book)
            assert len(book.requests()) == 3
        by_hand(folder, *unguarded("history_stays", "UPDATE history SET time = 'x' WHERE seq = 4"))
        with Ledger(folder, public=pem, check=False) as book:
            assert "row 4" in book.problems()[0]

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "cannot be read"),
            (b"key", "holds no public key in PEM form"),
            (b"x" * 5000, "holds no public key in PEM form"),
            (
                signing.public_pem(signing.LedgerKeys(bytes(32), bytes(range(32))).public),
                "public key in .* is not that of",
            ),
        ],
    )
    def test_another_one_is_refused(self, folder, pem, content, words):
        pem.unlink()
        if content is not None:
            pem.write_bytes(content)
        with pytest.raises(LedgerError, match=words):
            Ledger(folder, public=pem)


def test_an_unfinished_transaction_is_taken_back(folder):
    """A journal that a killed process left: SQLite puts the old rows back."""
    with Ledger(folder) as book:
        before = book.requests()

        def change() -> None:
            with book._writing():
                book._database.execute("UPDATE requests SET state = 'x'")
                book._database.execute("SELECT * FROM missing")

        with pytest.raises(LedgerError, match="no such table"):
            change()
        assert book.requests() == before
        assert book.problems() == []


def test_a_full_disk_is_one_sentence_and_loses_nothing(folder):
    with Ledger(folder) as book:
        pages = book._database.execute("PRAGMA page_count")[0][0]
        book._database.execute(f"PRAGMA max_page_count = {pages}")
        many = [NamedExample(position, "a" * 64) for position in range(500)]
        with pytest.raises(LedgerError, match="the disk is full, and nothing was changed"):
            request(book, examples=many)
        assert len(book.requests()) == 3
        assert book.problems() == []
        book._database.execute("PRAGMA max_page_count = 100000")
        assert request(book, examples=many) == 4
    assert problems(folder) == []


def test_one_process_at_a_time_runs(folder):
    with Ledger(folder) as book, Ledger(folder) as other:
        with book.sole_run():
            with pytest.raises(LedgerError, match="another process is working"), other.sole_run():
                pass
            request(other)  # but both may write
        with other.sole_run():
            pass


def test_no_ledger_and_others_files_are_refused(tmp_path, folder):
    with pytest.raises(LedgerError, match="holds no ledger"):
        Ledger(tmp_path / "nowhere")
    by_hand(folder, "DROP TABLE examples")
    with pytest.raises(LedgerError, match="other tables"):
        Ledger(folder)
    (tmp_path / ledger.DATABASE_FILE).touch()
    assert not ledger.ledger_exists(tmp_path), "a process died before it had begun the ledger"
    by_hand(tmp_path, "CREATE TABLE music (title TEXT)")
    before = (tmp_path / ledger.DATABASE_FILE).read_bytes()
    for open_it in (Ledger, lambda where: Ledger.begin(where, ABOUT)):
        with pytest.raises(LedgerError, match=r"is no ledger|something else"):
            open_it(tmp_path)
    assert (tmp_path / ledger.DATABASE_FILE).read_bytes() == before


class TestKeys:
    def test_they_are_for_their_owner_alone(self, folder):
        for name in ("secret", "signing"):
            assert (folder / "keys" / name).stat().st_mode & 0o777 == 0o600
        (folder / "keys" / "secret").chmod(0o640)
        with pytest.raises(LedgerError, match="chmod 600"):
            Ledger(folder)

    def test_they_can_lie_elsewhere(self, folder, tmp_path):
        (folder / "keys").rename(tmp_path / "keys")
        with pytest.raises(LedgerError, match="is missing"):
            Ledger(folder)
        with Ledger(folder, tmp_path / "keys") as book:
            assert len(book.requests()) == 3

    def test_signatures_are_good_for_one_purpose(self, folder):
        keys = signing.read_keys(folder / "keys")
        signature = keys.sign("record", "ab")
        assert signing.signed_by(keys.public, "record", "ab", signature)
        assert not signing.signed_by(keys.public, "history", "ab", signature)
        assert not signing.signed_by(keys.public, "record", "ac", signature)
        assert not signing.signed_by(keys.public, "record", "ab", "no hexadecimal")

    def test_a_missing_package_is_named_with_its_extra(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
        with pytest.raises(InputError, match=r"scissorhands-jax\[records\]"):
            Ledger(folder)


@pytest.fixture(scope="module")
def seen():
    """What several processes have done at the same time, or under limits."""
    # Not below pytest's folders, which others may not enter: one scenario gives up its rights.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        command = [sys.executable, "-m", "tests.deletion.forking", folder, "many", "limited", "forbidden"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return json.loads(done.stdout)


def test_processes_that_write_at_the_same_time_lose_nothing(seen):
    answer = seen["many"]
    assert answer["ended"] == [0] * 4
    assert sorted(answer["names"]) == sorted(f"process {who} {number}" for who in range(4) for number in range(15))
    assert answer["problems"] == []


def test_files_that_cannot_grow_stay_as_they_were(seen):
    answer = seen["limited"]
    assert answer["ended"] == 0
    assert answer["names"] == ["early 0", "early 1"]
    assert answer["problems"] == []
    assert "nothing was changed" in answer["said"]["ledger"]
    for name in ("network", "text"):
        assert answer["said"][name].startswith("OSError: [Errno 27] File too large: ")
        assert answer["said"][name].endswith(f"{name}'")
    assert answer["said"]["kept"] == "True"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_folder_that_may_not_be_written_to_is_named(seen):
    answer = seen["forbidden"]
    assert answer["ended"] == 0
    assert "cannot be written to, and nothing was changed" in answer["said"]["add"]
    for name in ("text", "begin"):
        assert answer["said"][name].startswith("PermissionError: ")
    assert answer["said"]["read"] == "2"
