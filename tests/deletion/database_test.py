"""The file of a ledger: changed bytes, full disks, and processes that die in the middle of a transaction."""

import random
import sqlite3

import pytest

from scissorhands_jax.deletion import ledger
from scissorhands_jax.deletion.database import Database
from scissorhands_jax.deletion.entries import NamedExample
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import LedgerError
from tests.deletion.spoiling import by_hand, everything, flipped, problems, remove_journals, request


@pytest.mark.parametrize(
    "statement", ["UPDATE history SET time = 'x'", "DELETE FROM history", "UPDATE private SET salt = 'x'"]
)
def test_history_is_only_added_to(folder, statement):
    with pytest.raises(sqlite3.IntegrityError, match="stay"):
        by_hand(folder, statement)
    assert problems(folder) == []


def test_every_connection_is_careful(folder):
    """What was committed survives a power failure, what was removed is gone, and a changed schema calls nothing."""
    database = Database(folder / ledger.DATABASE_FILE)
    settings = {"synchronous": 3, "secure_delete": 1, "trusted_schema": 0, "foreign_keys": 1, "cell_size_check": 1}
    settings["busy_timeout"] = 30_000  # milliseconds for which others may write
    assert {name: database.execute(f"PRAGMA {name}")[0][0] for name in settings} == settings
    database.close()


def test_removed_content_is_overwritten(tmp_path):
    database = Database(tmp_path / "file", create=True)
    database.execute("CREATE TABLE words (word TEXT)")
    database.execute("INSERT INTO words VALUES ('a name of somebody')")
    assert b"a name of somebody" in (tmp_path / "file").read_bytes()
    database.execute("DELETE FROM words")
    database.close()
    assert b"a name of somebody" not in (tmp_path / "file").read_bytes()


def test_a_changed_schema_cannot_call_functions_with_side_effects(tmp_path):
    """A view that somebody put into the file is read like a table, but may not call what reaches outside."""
    with sqlite3.connect(tmp_path / "file") as connection:
        connection.execute("CREATE VIEW words AS SELECT outside(1) AS word")
    connection.close()
    database, called = Database(tmp_path / "file"), []
    database.connection.create_function("outside", 1, called.append)
    with pytest.raises(LedgerError, match="unsafe use of outside"):
        database.execute("SELECT word FROM words")
    assert called == []
    database.close()


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
