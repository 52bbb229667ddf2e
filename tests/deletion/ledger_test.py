"""A ledger: the states of its requests, bad requests, and several processes at once."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from scissorhands_jax import reading
from scissorhands_jax.deletion import entries, ledger, signing
from scissorhands_jax.deletion.entries import NamedExample, RequestAdded, RequestsCovered, RunFailed, RunStarted
from scissorhands_jax.deletion.ledger import Ledger
from scissorhands_jax.errors import BusyError, InputError, LedgerError
from tests.deletion.samples import ABOUT
from tests.deletion.spoiling import EXAMPLES, by_hand, problems, request


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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names are text")
def test_a_folder_whose_name_is_no_text_can_be_read_but_not_begun_in(folder, tmp_path):
    odd = tmp_path / os.fsdecode(b"l\xffdger")
    with pytest.raises(InputError, match="whose name is no text in UTF-8; name another folder"):
        Ledger.begin(odd, ABOUT)
    assert not odd.exists()
    shutil.copytree(folder, odd)
    assert ledger.ledger_exists(odd)
    assert problems(odd) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("is_there", [False, True])
def test_nobody_else_can_read_names_and_salts(served, tmp_path, is_there):
    def mode(path: Path) -> int:
        return path.stat().st_mode & 0o777

    assert mode(served) == 0o700, "begun by `request add`"
    folder = tmp_path / "new" / "ledger"
    if is_there:
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    with Ledger.begin(folder, ABOUT) as book:
        database = folder / ledger.DATABASE_FILE
        with book._database.transaction("IMMEDIATE"):
            book._database.execute("UPDATE head SET count = count + 1")
            assert mode(folder / f"{ledger.DATABASE_FILE}-journal") == 0o600
            book._database.execute("UPDATE head SET count = count - 1")
    assert (mode(folder), mode(database)) == (0o755 if is_there else 0o700, 0o600)
    database.chmod(0o644)  # as earlier versions made it
    Ledger(folder).close()
    assert mode(database) == 0o600


def test_the_salt_of_a_run_is_that_of_the_row_that_begins_it(folder):
    with Ledger(folder) as book:
        rows = {event.entry.run: event.seq for event in book.history() if isinstance(event.entry, RunStarted)}
        assert {run: book.run_salt(run) for run in (1, 2, 3)} == {1: book.salt(rows[1]), 2: book.salt(rows[2]), 3: None}
        assert None not in (book.salt(rows[1]), book.salt(rows[2]))


def test_whoever_has_the_public_key_alone_changes_nothing(folder, tmp_path):
    with Ledger(folder) as book:
        (tmp_path / "public.pem").write_bytes(signing.public_pem(book.public))
    with Ledger(folder, public=tmp_path / "public.pem") as book:
        for change in (lambda: request(book), lambda: book.append(RequestsCovered(run=1, requests=(3,)))):
            with pytest.raises(LedgerError, match="opened with its public key alone, which cannot change it"):
                change()
    assert problems(folder) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"requester": " "}, "the requester is"),
        ({"requester": "a\x1b[2J"}, "the requester is"),
        ({"due": "soon"}, "due date"),
        ({"examples": []}, "no example"),
        ({"examples": [EXAMPLES[0]] * 2}, "names a position twice"),
        ({"contact": "a\x1b[2J"}, "the contact is"),
        ({"contact": "a" * 501}, "the contact is"),
    ],
)
def test_a_bad_request_is_refused_and_leaves_nothing(folder, change, words):
    with Ledger(folder) as book:
        with pytest.raises(InputError, match=words):
            request(book, **change)
        assert len(book.requests()) == 3
        assert book.problems() == []


def test_what_could_not_be_read_again_is_not_written(folder, monkeypatch):
    """The ledger would otherwise be damaged for everybody who opens it."""
    many = [NamedExample(position, f"{position:064d}") for position in range(20)]
    with monkeypatch.context() as patch, Ledger(folder) as book:
        patch.setattr(reading, "MAX_JSON", 1500)
        with pytest.raises(
            InputError, match=r"this row of the kind 'added'.*: it is larger than 1500 bytes; give less"
        ):
            request(book, examples=many)
        patch.setattr(ledger, "MAX_EXAMPLES", 19)
        with pytest.raises(InputError, match="names 20 examples, and one request can name at most 19; give several"):
            request(book, examples=many)
    assert problems(folder) == []
    with Ledger(folder) as book:
        assert len(book.requests()) == 3


def test_the_largest_request_can_be_read_again():
    entry = RequestAdded(id=1, received="", due="", network="", count=1, requester="ä" * 500, contact="ä" * 500)
    one = NamedExample(2**31 - 1, "a" * 64)
    sizes = [
        [len(private), sum(private.count(sign) for sign in (b",", b"[", b"{"))]
        for private in (
            entries.Event(1, "", dataclasses.replace(entry, examples=(one,) * count), "", None).private
            for count in (1, 2)
        )
    ]
    whole = [first + (ledger.MAX_EXAMPLES - 1) * (second - first) for first, second in zip(*sizes, strict=True)]
    assert whole[0] <= reading.MAX_JSON
    assert whole[1] <= reading.MAX_VALUES


def test_a_row_that_another_program_added_is_not_built_upon(folder):
    with Ledger(folder) as book:
        by_hand(folder, "INSERT INTO history SELECT 8, time, kind, body, previous, 'x', signature FROM history LIMIT 1")
        with pytest.raises(LedgerError, match=r"nothing was changed, because .* the end of the history was cut off"):
            request(book)
        assert len(book.requests()) == 3


def test_one_process_at_a_time_runs(folder):
    with Ledger(folder) as book, Ledger(folder) as other:
        with book.sole_run():
            with pytest.raises(BusyError, match="is being written to by process"), other.sole_run():
                pass
            request(other)  # but both may write
        with other.sole_run():
            pass


def test_no_ledger_and_others_files_are_refused(tmp_path, folder):
    with pytest.raises(LedgerError, match="holds no ledger"):
        Ledger(tmp_path / "nowhere")
    by_hand(folder, "DROP TABLE private")
    with pytest.raises(LedgerError, match="other tables"):
        Ledger(folder)
    (tmp_path / ledger.DATABASE_FILE).touch()
    assert not ledger.ledger_exists(tmp_path), "a process died before it had begun the ledger"
    by_hand(tmp_path, "CREATE TABLE music (title TEXT)")
    before = (tmp_path / ledger.DATABASE_FILE).read_bytes()
    for open_it in (Ledger, lambda where: Ledger.begin(where, ABOUT)):
        with pytest.raises(LedgerError, match=r"is not a ledger|something else"):
            open_it(tmp_path)
    assert (tmp_path / ledger.DATABASE_FILE).read_bytes() == before


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
