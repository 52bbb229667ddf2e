"""Whatever is in the folder of a ledger without being a part of it is named, of whatever kind it is."""

import contextlib
import os
import shutil
import socket
import sqlite3
import threading
from pathlib import Path

import pytest

from scissorhands_jax import files
from scissorhands_jax.deletion import contents, tidying
from scissorhands_jax.deletion.contents import Contents
from scissorhands_jax.deletion.ledger import Ledger
from tests.deletion.commands import command, error_of, verified
from tests.deletion.samples import started

PLACES = (
    ".",
    "keys",
    "records",
    "runs",
    "runs/000001",
    "runs/000001/network",
    "runs/000009",
    "runs/000001/checkpoints",
)


def file(path: Path) -> None:
    path.write_text("x")


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may have about a hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


KINDS = {
    "file": file,
    "empty file": Path.touch,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "socket": listening,
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "link to a folder": lambda path: path.symlink_to(path.parent.parent),
}
SUBSTITUTES = ["folder", "pipe", "socket", "link", "hard link"]


@pytest.mark.parametrize(
    "name", ["extra", ".hidden", "000001.json.tmp", ".000001.json.0a1b2c3d.partial", "name\nof two lines", "[bold]"]
)
def test_what_is_added_is_named(book_folder, name, capsys):
    """Every kind of thing in every place."""
    added = []
    for place in PLACES:
        (book_folder / place).mkdir(exist_ok=True)
        for kind, make in KINDS.items():
            path = book_folder / place / f"{name} {kind}"
            make(path)
            added.append(path)
    with Ledger(book_folder) as book:
        found = contents.foreign(book_folder, Contents(frozenset(book_folder / "x" for _ in [book])))
    assert all(any(line.startswith((f"{path} is", f"the folder {path} ")) for line in found) for path in added)
    found = verified(book_folder, "--quick", capsys=capsys)
    shown = [str(path).replace("\n", "\\n") for path in added]
    assert [path for path in shown if not any(path in line for line in found)] == []
    assert len(found) == len(added)


@pytest.mark.parametrize("kind", SUBSTITUTES)
def test_what_stands_in_the_place_of_a_file_is_named(book_folder, tmp_path, kind, capsys):
    """Also if it has the same content. Each kind takes the place of every fifth file."""
    paths = [path for path in sorted(book_folder.rglob("*")) if path.is_file()]
    assert len(paths) > 25
    for path in paths[SUBSTITUTES.index(kind) :: len(SUBSTITUTES)]:
        if path.suffix == ".sqlite3" and kind != "hard link":
            continue
        kept = tmp_path / "kept"
        shutil.copy2(path, kept)
        path.unlink()
        if kind == "link":
            path.symlink_to(kept)
        elif kind == "hard link":
            os.link(kept, path)
        else:
            KINDS[kind](path)
        found = verified(book_folder, "--quick", capsys=capsys)
        assert any(str(path) in line for line in found), (path, found)
        path.rmdir() if kind == "folder" else path.unlink()
        shutil.move(kept, path)
    assert verified(book_folder, "--quick", capsys=capsys) == []


def test_a_pipe_in_the_place_of_the_lock_is_named_and_not_waited_for(book_folder, capsys):
    os.mkfifo(book_folder / ".lock")
    (found,) = verified(book_folder, "--quick", capsys=capsys)
    assert f"{book_folder / '.lock'} is a pipe" in found


def test_a_folder_that_is_removed_meanwhile_is_not_named(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    whole = os.scandir

    def overtaken(path):
        if path == tmp_path / "checkpoints":
            path.rmdir()
        return whole(path)

    monkeypatch.setattr(os, "scandir", overtaken)
    assert contents.foreign(tmp_path, Contents(frozenset())) == []


def test_a_folder_that_is_a_link_is_named(book_folder, tmp_path, capsys):
    for name in ("records", "runs", "runs/000001", "runs/000001/network", "keys"):
        path, kept = book_folder / name, tmp_path / "kept"
        path.rename(kept)
        path.symlink_to(kept)
        assert any(f"{path} is a link" in line for line in verified(book_folder, "--quick", capsys=capsys))
        path.unlink()
        kept.rename(path)
    assert verified(book_folder, "--quick", capsys=capsys) == []


def test_the_folder_of_a_ledger_may_be_reached_by_a_link(served, tmp_path, capsys):
    (tmp_path / "link").symlink_to(served)
    assert verified(tmp_path / "link", "--quick", capsys=capsys) == []


def test_a_run_that_is_working_may_have_files_but_no_links(book_folder, capsys):
    with Ledger(book_folder) as book:
        book.append(started(3, 3))
    out = book_folder / "runs" / "000003"
    (out / "checkpoints").mkdir(parents=True)
    for path in (out / "checkpoints" / "one", out.with_suffix(".txt"), out.with_suffix(".audit.txt")):
        path.write_text("")
    assert verified(book_folder, "--quick", capsys=capsys) == []
    (book_folder / "records" / "000003.html").write_text("anything")
    assert command("verify", "--ledger", book_folder, "--quick") == 0
    assert "note: run 3 has not ended, so nothing that it has left so far was verified" in capsys.readouterr().err
    (out / "link").symlink_to("checkpoints")
    (found,) = verified(book_folder, "--quick", capsys=capsys)
    assert f"{out / 'link'} is a link" in found


def test_keys_that_nobody_has_read_are_no_part_of_the_ledger(served, book_folder, tmp_path, capsys):
    shutil.copytree(book_folder / "keys", tmp_path / "keys")
    options = ["--keys", tmp_path / "keys", "--quick"]
    public = ["--public", served / "records" / "public_key.pem", "--quick"]
    for words in (options, public):
        assert verified(book_folder, *words, capsys=capsys) == [], "they are the ledger's"
    for name in ("secret", "signing"):
        path = book_folder / "keys" / name
        whole = path.read_bytes()
        for content in (b"names of people", b"0" * 64 + b"\n"):
            path.write_bytes(content)
            for words in (options, public):
                found = verified(book_folder, *words, capsys=capsys)
                assert any(line.startswith(f"{path} is not a part of the ledger") for line in found), found
        path.write_bytes(whole)


def test_an_auditors_copy_has_no_keys(served, tmp_path, capsys):
    copy = tmp_path / "copy"
    assert command("export", "--ledger", served, "--out", copy) == 0
    shutil.copytree(served / "keys", copy / "keys")
    found = verified(copy, "--public", served / "records" / "public_key.pem", capsys=capsys)
    assert [line.split(" is ")[0] for line in found] == [str(copy / "keys" / name) for name in ("secret", "signing")]


@pytest.mark.parametrize(
    ("text", "is_named"),
    [
        ("", False),
        ('{"pid": 7, "host": "here", "since": "2026-12-02 00:00:00 UTC", "command": "scissorhands request"}', False),
        ('{"pid": 7, "host": "here", "since": "2026-12-02 00:00:00 UTC", "command": "scissorhands request"}\nA', True),
        ('{"pid": 7, "host": "here", "since": "2026-12-02 00:00:00 UTC", "command": "x", "who": "A"}', True),
        ('{"pid": "A", "host": "here", "since": "2026-12-02 00:00:00 UTC", "command": "x"}', True),
        ('{"pid": 7, "host": "here", "since": "now", "command": "' + "x" * 5000 + '"}', True),
        ("A. Person", True),
        ("[]", True),
    ],
)
def test_a_lock_holds_nothing_but_who_has_it(book_folder, text, is_named, capsys):
    (book_folder / ".lock").write_text(text)
    found = verified(book_folder, "--quick", capsys=capsys)
    assert [line.split(" is ")[0] for line in found] == [str(book_folder / ".lock")] * is_named


class TestMeanwhile:
    """Other processes work on the ledger while it is verified."""

    def test_what_a_run_makes_and_removes_is_no_change(self, book_folder, capsys):
        """The list of what the next run is to forget, remains of the one before, and what it is just writing."""
        made = [tidying.positions_file(book_folder, run) for run in (1, 3)]
        made += [book_folder / "runs/000001/checkpoints/one", tidying.audit_work_folder(book_folder, 2) / "one"]
        made += [book_folder / "runs/.000002.audit.0a1b2c3d.removed", book_folder / "records/000003.html"]
        for path in made:
            path.parent.mkdir(exist_ok=True)
            path.write_text("4\n")
        (book_folder / "names").write_text("A")
        with files.sole_writer(book_folder):
            capsys.readouterr()
            assert command("verify", "--ledger", book_folder, "--quick") == 1
        captured = capsys.readouterr()
        (line,) = captured.out.splitlines()
        assert f"{book_folder / 'names'} is not a part" in line
        assert f"note: process {os.getpid()} on " in captured.err
        assert "is working on the ledger" in captured.err
        found = verified(book_folder, "--quick", capsys=capsys)
        assert all(any(str(path) in line for line in found) for path in made), "nobody is at work now"

    def test_a_file_that_is_just_written_is_no_change(self, book_folder, capsys):
        """`request add` holds no lock of the folder, and writes the public key if it is missing."""
        with files.writing(book_folder / "records" / "public_key.pem") as file:
            file.write(b"half")
            assert verified(book_folder, "--quick", capsys=capsys) == []
            file.seek(0)
            file.write((book_folder / "records" / "public_key.pem").read_bytes())

    def test_a_request_that_is_just_added_is_no_change(self, book_folder, capsys):
        """SQLite has a journal next to the database then."""
        begun, may_end = threading.Event(), threading.Event()

        def add() -> None:
            with Ledger(book_folder) as book, book._database.transaction("IMMEDIATE"):
                book._database.execute("DELETE FROM requests")
                begun.set()
                may_end.wait(30)
                book._database.execute("ROLLBACK")
                book._database.execute("BEGIN")

        thread = threading.Thread(target=add)
        thread.start()
        assert begun.wait(30)
        assert (book_folder / "ledger.sqlite3-journal").exists()
        threading.Timer(1, may_end.set).start()
        assert verified(book_folder, "--quick", capsys=capsys) == []
        thread.join()
        (book_folder / "ledger.sqlite3-journal").write_bytes(b"\0 A. Person")
        (found,) = verified(book_folder, "--quick", capsys=capsys)
        assert "ledger.sqlite3-journal is not a part of the ledger" in found

    def test_a_program_that_has_the_database_open_is_no_change(self, book_folder, capsys):
        """One that has set another journal mode, whose files must not be moved away."""
        with contextlib.closing(sqlite3.connect(book_folder / "ledger.sqlite3")) as other:
            other.execute("PRAGMA journal_mode = WAL")
            other.execute("SELECT * FROM head").fetchall()
            assert verified(book_folder, "--quick", capsys=capsys) == []
            assert command("verify", "--ledger", book_folder, "--quick") == 0
            assert "another program has" in capsys.readouterr().err
        assert command("verify", "--ledger", book_folder, "--quick") == 0
        assert "another program has" not in capsys.readouterr().err
        with contextlib.closing(sqlite3.connect(book_folder / "ledger.sqlite3")) as other:
            assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)


class TestDiscarding:
    """A superseded network may go, but not unnoticed."""

    def test_one_that_is_removed_by_hand_is_missed(self, book_folder, capsys):
        shutil.rmtree(book_folder / "runs" / "000002")
        (found,) = verified(book_folder, "--quick", capsys=capsys)
        assert f"{book_folder / 'runs' / '000002'} is missing" in found
        assert command("discard", "--ledger", book_folder, "--number", "2") == 0
        assert verified(book_folder, "--quick", capsys=capsys) == []

    @pytest.mark.parametrize("name", [".", "network"])
    def test_one_in_use_that_is_missing_must_be_put_back(self, book_folder, tmp_path, name, capsys):
        """No advice is given that would be refused."""
        place = book_folder / "runs" / "000001" / name
        place.rename(tmp_path / "kept")
        found = verified(book_folder, "--quick", capsys=capsys)
        assert not any("discard" in line for line in found)
        assert all(line.endswith("back from your backup") for line in found), found
        asked = ["add", "--forget", "class:2", "--requester", "A"]
        for words in (asked, ["run", "--method", "retrain"]):
            capsys.readouterr()
            assert command(words[0], "--ledger", book_folder, *words[1:]) == 2
            found = error_of(capsys)
            assert f"{place} is missing, " in found
            assert found.endswith("put it back from your backup")
        (tmp_path / "kept").rename(place)
        assert verified(book_folder, "--quick", capsys=capsys) == []

    def test_one_that_is_discarded_is_gone_and_must_stay_away(self, served, book_folder, capsys):
        for _ in range(2):
            assert command("discard", "--ledger", book_folder, "--number", "2") == 0
        assert not (book_folder / "runs" / "000002").exists()
        assert verified(book_folder, capsys=capsys) == []
        with Ledger(book_folder) as book:
            assert [event.entry.kind for event in book.history()].count("discarded") == 1
        shutil.copytree(served / "runs" / "000002", book_folder / "runs" / "000002")
        assert any("000002" in line for line in verified(book_folder, "--quick", capsys=capsys))

    def test_one_that_cannot_be_removed_is_not_said_to_be(self, book_folder, monkeypatch, capsys):
        def refused(path, whole=tidying.files.remove):
            if path.name == "000002":
                raise PermissionError(f"{path} belongs to somebody else")
            whole(path)

        with monkeypatch.context() as patch:
            patch.setattr(tidying.files, "remove", refused)
            assert command("discard", "--ledger", book_folder, "--number", "2") == 2
            assert "belongs to somebody else" in error_of(capsys)
        assert (book_folder / "runs" / "000002").exists()
        assert command("discard", "--ledger", book_folder, "--number", "2") == 0
        assert not (book_folder / "runs" / "000002").exists()
        assert verified(book_folder, "--quick", capsys=capsys) == []

    @pytest.mark.parametrize(
        ("number", "message"), [("1", "is in use"), ("3", "there is no finished run 3"), ("-1", "no finished run")]
    )
    def test_others_stay(self, book_folder, number, message, capsys):
        assert command("discard", "--ledger", book_folder, f"--number={number}") == 2
        assert message in error_of(capsys)
        assert verified(book_folder, "--quick", capsys=capsys) == []


def test_nothing_is_left_of_a_run_that_was_killed_before_its_start_was_recorded(book_folder, capsys):
    left = [tidying.positions_file(book_folder, 3), book_folder / "records" / ".000003.json.0a1b2c3d.partial"]
    for path in left:
        path.write_text("4\n5\n")
    assert len(verified(book_folder, "--quick", capsys=capsys)) == 2
    assert command("discard", "--ledger", book_folder, "--number", "2") == 0, "which tidies up, as a run does"
    assert verified(book_folder, "--quick", capsys=capsys) == []
    assert not any(path.exists() for path in left)
