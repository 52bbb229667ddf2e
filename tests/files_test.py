"""The right to write to a folder, files and folders that are written whole or not at all, and what kills leave."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scissorhands_jax import files
from scissorhands_jax.errors import BusyError

HOLD = """
import sys, time
from scissorhands_jax import files
with files.sole_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process, which holds the folder until it is told to end."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder), "--requester", "A. Person"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield folder, process
    process.stdin.close()
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_who_holds_the_folder(other):
    folder, process = other
    sentence = rf"run is being written to by process {process.pid} on .* since 20"
    with pytest.raises(BusyError, match=sentence) as caught, files.sole_writer(folder):
        pass
    assert str(caught.value).endswith(f"UTC (-c {folder}); wait until it has ended")
    assert "Person" not in (folder / files.LOCK_FILE).read_text()
    process.stdin.close()
    process.wait()
    assert not folder.exists(), "nothing was written, and the folder was not there before"


def test_a_second_process_can_wait(other):
    folder, process = other
    threading.Timer(0.2, process.kill).start()
    with files.sole_writer(folder, seconds=60):
        assert json.loads((folder / files.LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not folder.exists() or not list(folder.iterdir())


def test_what_a_killed_process_leaves_stops_nobody(other):
    folder, process = other
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / files.LOCK_FILE).exists()
    with files.sole_writer(folder):
        assert json.loads((folder / files.LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(folder.iterdir()) == []


def test_the_same_process_is_kept_out_as_well(tmp_path):
    with files.sole_writer(tmp_path):
        with pytest.raises(BusyError, match=f"by process {os.getpid()} "), files.sole_writer(tmp_path):
            pass
        (tmp_path / "result").touch()
    with files.sole_writer(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_an_error_gives_the_folder_free(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), files.sole_writer(tmp_path / "new"):
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_remove_meanwhile_is_made(tmp_path, monkeypatch):
    """`mkdir` finds it there, and when it looks what it is, it is gone."""
    mkdir, calls = os.mkdir, []

    def overtaken(path, *mode):
        calls.append(path)
        if len(calls) <= 2:
            raise (FileExistsError if len(calls) == 1 else FileNotFoundError)(17, "as if", str(path))
        return mkdir(path, *mode)

    monkeypatch.setattr(os, "mkdir", overtaken)
    with files.sole_writer(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in ("file", "link", "link/deeper"):
        with pytest.raises(FileExistsError), files.sole_writer(tmp_path / place):
            pass


def test_many_threads_hold_it_one_after_the_other(tmp_path):
    """They also remove the file and the folder all the time, under the feet of those who wait."""
    inside, most = [], []

    def work():
        for _ in range(20):
            with files.sole_writer(tmp_path / "run", seconds=60):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80
    assert list(tmp_path.rglob(files.LOCK_FILE)) == []


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_process_that_was_forked_neither_holds_nor_releases(tmp_path):
    held = files.sole_writer(tmp_path)
    held.__enter__()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        held.__exit__(None, None, None)
        os.read(read, 1)  # lives on until the parent has gone on
        os._exit(0)
    os.close(read)
    with pytest.raises(BusyError), files.sole_writer(tmp_path):
        pass
    time.sleep(0.05)
    assert (tmp_path / files.LOCK_FILE).exists()
    held.__exit__(None, None, None)
    with files.sole_writer(tmp_path):
        pass
    os.close(write)
    os.waitpid(child, 0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff" * 9000, b"[" * 4096])
def test_what_others_wrote_into_the_file_is_not_trusted(tmp_path, content):
    with files.sole_writer(tmp_path):
        (tmp_path / files.LOCK_FILE).write_bytes(content)
        with pytest.raises(BusyError, match="by another process; wait"), files.sole_writer(tmp_path):
            pass
        told = {"pid": 1, "host": "\x1b[31m" + "h" * 5000, "since": "now\n", "command": ["x"]}
        (tmp_path / files.LOCK_FILE).write_text(json.dumps(told))
        with pytest.raises(BusyError) as caught, files.sole_writer(tmp_path):
            pass
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / files.LOCK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="Too many levels of symbolic links"), files.sole_writer(tmp_path):
        pass
    assert (tmp_path / "elsewhere").read_text() == "precious"


def test_a_pipe_in_the_place_of_a_lock_is_neither_waited_for_nor_taken_for_one(tmp_path):
    os.mkfifo(tmp_path / files.LOCK_FILE)
    assert not files.is_lock_file(tmp_path / files.LOCK_FILE)
    assert files.holder(tmp_path) is None
    with pytest.raises(OSError, match=rf"pipe or device.*{files.LOCK_FILE}"), files.sole_writer(tmp_path):
        pass


def test_whoever_looks_whether_a_lock_is_held_is_in_nobodys_way(tmp_path):
    """Neither of those who look at the same time, nor of a writer who does not wait."""
    lock_file = tmp_path / files.LOCK_FILE
    lock_file.touch()
    with open(lock_file, "rb") as looking:
        assert files._flock(looking.fileno(), shared=True)
        assert files.holder(tmp_path) is None
        released = threading.Timer(0.1, looking.close)
        released.start()
        with files.sole_writer(tmp_path):
            assert files.holder(tmp_path) is not None
        released.join()


def test_a_new_file_that_another_has_locked_is_not_left_behind(tmp_path, monkeypatch):
    whole, refused = files._flock, []

    def overtaken(descriptor):
        refused.append(descriptor)
        return whole(descriptor) if len(refused) % 2 == 0 else False

    monkeypatch.setattr(files, "_flock", overtaken)
    files.write_text(tmp_path / "file", "written")
    with files.new_folder(tmp_path / "folder") as fresh:
        fresh.mkdir()
    assert len(refused) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_warning_is_given(tmp_path, monkeypatch, caplog, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), files.sole_writer(tmp_path):
        pass
    (message,) = caplog.messages
    assert "cannot be locked" in message
    assert "only one process" in message


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_file_appears_whole_and_a_failure_keeps_the_old_one(tmp_path):
    path = tmp_path / "new" / "file"
    files.write_text(path, "old")
    with pytest.raises(TypeError), files.writing(path) as file:
        file.write("half")
    assert content(tmp_path) == {"new/file": "old"}
    assert not files.write_new(path, b"other")
    assert content(tmp_path) == {"new/file": "old"}


def test_a_folder_replaces_another_whole_and_a_failure_keeps_the_old_one(tmp_path):
    path = tmp_path / "folder"
    for text in ("old", "new"):
        with files.new_folder(path) as fresh:
            (fresh / "deep").mkdir(parents=True)
            (fresh / "deep" / text).write_text(text)
    assert content(tmp_path) == {"folder/deep/new": "new"}
    with pytest.raises(FileNotFoundError), files.new_folder(path) as fresh:
        (fresh / "without" / "parents").mkdir()
    with pytest.raises(FileNotFoundError), files.new_folder(path):
        pass  # made nothing
    assert content(tmp_path) == {"folder/deep/new": "new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_must_be_new_replaces_nothing_that_appears_meanwhile(tmp_path):
    place = tmp_path / "new"

    def make():
        with files.new_folder(place, replace=False) as fresh:
            fresh.mkdir()
            place.mkdir()
            (place / "theirs").write_text("theirs")

    with pytest.raises(FileExistsError, match="new"):
        make()
    assert content(tmp_path) == {"new/theirs": "theirs"}
    shutil.rmtree(place)
    with files.new_folder(place, replace=False) as fresh:
        fresh.mkdir()
        (fresh / "ours").write_text("ours")
    assert content(tmp_path) == {"new/ours": "ours"}


def test_a_folder_is_cleared_behind_a_link_too(tmp_path):
    folder, link = tmp_path / "there", tmp_path / "link"
    for name in ("run.json", ".x.0a1b2c3d.partial", "a/b"):
        files.write_text(folder / name, name)
    (folder / "loop").symlink_to(folder)
    link.symlink_to(folder)
    with files.sole_writer(link):
        files.clear_folder(link, last="run.json")
        assert [path.name for path in folder.iterdir()] == [files.LOCK_FILE]
    assert link.is_symlink()


def test_of_a_link_the_link_is_removed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "kept").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    files.remove(tmp_path / "link")
    files.remove(tmp_path / "nothing")
    assert content(tmp_path) == {"there/kept": "kept"}
    files.remove(tmp_path / "there")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_or_put_back(tmp_path):
    folder = tmp_path / "deep"
    (folder / ".new.01234567.partial" / "new").mkdir(parents=True)
    (folder / ".new.01234567.partial" / "guard").touch()
    (folder / ".new.01234567.replaced").mkdir()
    (folder / ".new.01234567.replaced" / "old").write_text("old")
    (folder / ".there.01234567.replaced").write_text("old")
    (folder / "there").write_text("new")
    (folder / ".gone.89abcdef.removed").mkdir()
    (folder / ".half.89abcdef.partial").write_text("ha")
    os.mkfifo(folder / ".pipe.89abcdef.partial")
    (folder / ".link.89abcdef.partial").symlink_to(tmp_path)
    (folder / ".half.8.partial").write_text("of somebody else")
    (folder / ".net.lock").write_text('{"pid": 1}')
    (folder / ".other.lock").write_text("of somebody else")
    files.remove_leftovers(tmp_path / "nowhere")
    files.remove_leftovers(tmp_path, deep=False)
    assert len(list(folder.iterdir())) == 11
    files.remove_leftovers(tmp_path)
    assert content(tmp_path) == {
        "deep/new/old": "old",
        "deep/there": "new",
        "deep/.half.8.partial": "of somebody else",
        "deep/.other.lock": "of somebody else",
    }


def test_what_others_have_in_a_folder_stays(tmp_path):
    """Git names an empty lock in the same way, and other programs may write `.partial` files."""
    (tmp_path / ".gitconfig.lock").touch()
    (tmp_path / ".movie.mp4.0a1b2c3d.partial").write_text("of somebody else")
    (tmp_path / ".copy.01234567.partial" / "copy").mkdir(parents=True)
    (tmp_path / ".copy.89abcdef.replaced").write_text("old")
    (tmp_path / ".copy.lock").write_text('{"pid": 1}')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".copy.01234567.partial").write_text("of somebody else")
    files.remove_leftovers_of(tmp_path / "copy")
    files.remove_leftovers_of(tmp_path / "nowhere" / "copy")
    theirs = {".gitconfig.lock": "", ".movie.mp4.0a1b2c3d.partial": "of somebody else"}
    theirs["deep/.copy.01234567.partial"] = "of somebody else"
    assert content(tmp_path) == {"copy": "old", **theirs}
    files.remove_leftovers(tmp_path)
    assert content(tmp_path) == {"copy": "old", ".gitconfig.lock": ""}, "an empty file says nothing about its owner"


def test_what_another_writer_is_writing_stays(tmp_path):
    (tmp_path / "folder").mkdir()
    with files.writing(tmp_path / "file") as file, files.new_folder(tmp_path / "folder") as fresh:
        fresh.mkdir()
        file.write(b"slow")
        files.remove_leftovers(tmp_path)
        (fresh / "slow").write_text("slow")
    assert content(tmp_path) == {"file": "slow", "folder/slow": "slow"}


@pytest.mark.parametrize("before", [True, False])
def test_another_process_may_remove_what_is_not_locked_yet(tmp_path, monkeypatch, before):
    """It looks for leftovers just before or after the lock is had, once for the file and once for the folder."""
    lock, looking = files._flock, []

    def overtaken(descriptor):
        if looking or len(done) == 2:
            return lock(descriptor)
        looking.append(descriptor)
        done.append(descriptor)
        had = None if before else lock(descriptor)
        files.remove_leftovers(tmp_path)
        looking.clear()
        return lock(descriptor) if before else had

    done = []
    monkeypatch.setattr(files, "_flock", overtaken)
    files.write_text(tmp_path / "file", "written")
    with files.new_folder(tmp_path / "folder") as fresh:
        fresh.mkdir()
        (fresh / "deep").write_text("written")
    assert len(done) == 2
    assert content(tmp_path) == {"file": "written", "folder/deep": "written"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_another_process_may_remove_a_folder_in_which_nothing_is_locked_yet(tmp_path, monkeypatch):
    whole, done = Path.mkdir, []

    def overtaken(path, *arguments, **options):
        whole(path, *arguments, **options)
        if path.suffix == ".partial" and not done:
            done.append(path)
            files.remove_leftovers(tmp_path)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    with files.new_folder(tmp_path / "folder") as fresh:
        fresh.mkdir()
        (fresh / "deep").write_text("written")
    assert done
    assert content(tmp_path) == {"folder/deep": "written"}


def test_the_lock_is_held_until_a_leftover_is_gone(tmp_path, monkeypatch):
    """Otherwise its writer could get the lock in between, and believe that it is there to stay."""
    (tmp_path / ".folder.0a1b2c3d.partial").mkdir()
    (tmp_path / ".file.0a1b2c3d.partial").touch()
    whole, held = files._delete, []

    def watched(path):
        held.append(files.is_being_written(path))
        whole(path)

    monkeypatch.setattr(files, "_delete", watched)
    files.remove_leftovers(tmp_path)
    assert held == [True, True]
    assert list(tmp_path.iterdir()) == []


def test_a_right_can_be_to_one_entry_of_a_folder(tmp_path):
    with files.sole_writer(tmp_path, of="a"), files.sole_writer(tmp_path, of="b"), files.sole_writer(tmp_path):
        assert all(map(files.is_leftover, tmp_path.iterdir()))
        sentence = f"{tmp_path / 'a'} is being written to by process {os.getpid()} "
        with pytest.raises(BusyError, match=sentence), files.sole_writer(tmp_path, of="a"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    """Otherwise a power failure could leave an empty file in place of the old one."""
    done = []
    fsync, replace, link = os.fsync, os.replace, os.link

    def synchronised(descriptor):
        done.append(("fsync", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        fsync(descriptor)

    def renamed(source, target, **options):
        done.append(("name", os.stat(source).st_ino))
        replace(source, target, **options)

    def linked(source, target, **options):
        done.append(("name", os.stat(source).st_ino))
        link(source, target, **options)

    monkeypatch.setattr(os, "fsync", synchronised)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "link", linked)
    for write in (files.write_bytes, files.write_new):
        done.clear()
        path = tmp_path / write.__name__
        write(path, b"content")
        file, folder = path.stat().st_ino, tmp_path.stat().st_ino
        assert [entry[:2] for entry in done] == [("fsync", file), ("name", file), ("fsync", folder)]
        assert done[0][2] == len(b"content"), "nothing is left in a buffer of Python"


def test_everything_in_a_folder_is_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename

    def synchronised(descriptor):
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def renamed(source, target):
        events.append("named")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synchronised)
    monkeypatch.setattr(os, "rename", renamed)
    with files.new_folder(tmp_path / "made") as folder:
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "b").write_text("b")
        (folder / "a").write_text("a")
    before = events[: events.index("named")]
    made = tmp_path / "made"
    for path in (made / "a", made / "deep" / "b", made / "deep", made):
        assert path.stat().st_ino in before, path
    assert tmp_path.stat().st_ino in events[events.index("named") :]


def test_a_lock_of_one_name_stays_when_the_folder_is_cleared(tmp_path):
    with files.sole_writer(tmp_path, of="network"):
        files.clear_folder(tmp_path, last="run.json")
        with pytest.raises(BusyError), files.sole_writer(tmp_path, of="network"):
            pass


def test_two_processes_may_remove_the_same_folder(tmp_path, monkeypatch):
    """What the other one has removed in the meantime is no error, and all is gone in the end."""
    folder = tmp_path / "folder"
    files.write_text(folder / "a" / "b", "b")
    whole, calls = shutil.rmtree, []

    def overtaken(path):
        calls.append(path)
        if len(calls) == 1:
            whole(path / "a")
            raise FileNotFoundError(path / "a")
        whole(path)

    monkeypatch.setattr(files.shutil, "rmtree", overtaken)
    files.remove(folder)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []
