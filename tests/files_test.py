"""The right to write to a folder: one holder at a time, whatever becomes of the process that held it."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

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
