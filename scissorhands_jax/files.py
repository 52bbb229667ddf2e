"""Files that are written whole or not at all, folders that one process at a time writes to, and untrusted JSON."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scissorhands_jax.errors import BusyError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_JSON = 2**28  # bytes
LOCK_FILE = ".lock"
"""The file in a folder whose lock `sole_writer` holds, and which is there no longer than the lock unless the process is
killed."""

_SECONDS_BETWEEN_TRIES = 0.05
_MAX_HOLDER = 4096  # bytes of what a lock file says about its holder
_logger = logging.getLogger(__name__)
_held: set[int] = set()  # descriptors of the lock files whose locks this process holds


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text in UTF-8; otherwise like `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file whole or not at all: no reader ever sees half of it, and a crash leaves the old one in place.

    Args:
      path: The file. Missing folders are created.
      content: The whole content.

    Raises:
      OSError: The file cannot be written, for instance because the disk is full. The error names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, content, 0o666) as temporary:
        os.replace(temporary, path)
        _keep_name(path.parent)


def write_new(path: str | os.PathLike, content: bytes, *, mode: int = 0o666) -> bool:
    """Writes a file whole, unless a file of that name exists already. If two processes try at once, one succeeds.

    Args:
      path: The file, in an existing folder.
      content: The whole content.
      mode: The permissions of the file, less those that the umask removes.

    Returns:
      Whether this call wrote the file.
    """
    path = Path(path)
    with _temporary(path, content, mode) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        _keep_name(path.parent)
    return True


def read_bytes(path: str | os.PathLike, limit: int) -> bytes:
    """Reads a whole file, unless it is too large.

    Args:
      path: The file.
      limit: The largest size to read, in bytes.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: The file is larger than the limit.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise ValueError(f"it is larger than {limit} bytes")
        return file.read()


def read_json(path: str | os.PathLike) -> Any:
    """Reads a file of JSON in UTF-8, which need not be trusted.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: The file is not JSON, is nested too deeply, or is larger than 256 MiB.
    """
    return parse_json(read_bytes(path, MAX_JSON))


def parse_json(content: bytes) -> Any:
    """Parses JSON in UTF-8, which need not be trusted.

    Raises:
      ValueError: The bytes are not JSON, or are nested too deeply.
    """
    try:
        return json.loads(content.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextlib.contextmanager
def sole_writer(folder: str | os.PathLike, *, seconds: float = 0.0) -> Iterator[None]:
    """Holds the right to write to a folder, which only one caller on all machines can have at a time.

    It is an advisory lock (`flock`) of the file `LOCK_FILE` in the folder. The system takes the lock back when the
    process that holds it ends, however it ends, so what a killed process leaves there stops nobody. Where the file
    system has no such locks, a warning is logged, and nothing keeps two processes apart.

    Args:
      folder: The folder. It is made if it does not exist, and then removed again if nothing was written to it.
      seconds: How long to wait for another holder. By default an error is raised at once.

    Raises:
      BusyError: Another process, or another part of this one, holds the right. The error says which process that is, on
        which machine, since when, and what it runs.
      OSError: The folder or the file cannot be made.
    """
    folder = Path(folder)
    is_new = not os.path.lexists(folder)
    descriptor = _lock(folder, time.monotonic() + seconds)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # It is not in a process that was forked in the meantime.
            _held.discard(descriptor)
            _unlock(descriptor, folder)
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # does nothing where there is something in it


def _lock(folder: Path, deadline: float) -> int:
    """Returns the open and locked file of a folder, in which this process has left its name."""
    path = folder / LOCK_FILE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileNotFoundError:  # The last holder has just removed the empty folder.
            continue
        try:
            busy = not _try_to_lock(descriptor, folder)
            if not busy and _is_open_file(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(_holder()).encode())
                return descriptor
            if busy and time.monotonic() >= deadline:
                raise BusyError(
                    f"{folder} is being written to by {_described_holder(descriptor)}; wait until it has ended"
                )
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if busy:
            time.sleep(_SECONDS_BETWEEN_TRIES)


def _unlock(descriptor: int, folder: Path) -> None:
    if _is_open_file(descriptor, folder / LOCK_FILE):
        # Whoever has opened the file and waits for its lock finds that it is gone, and makes another one.
        (folder / LOCK_FILE).unlink()
    os.close(descriptor)


def _try_to_lock(descriptor: int, folder: Path) -> bool:
    """Says whether the file could be locked; True as well where there are no locks."""
    try:
        if fcntl is None:
            raise OSError("this system has none")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _logger.warning("%s cannot be locked (%s), so make sure that only one process writes to it", folder, error)
    return True


def _is_open_file(descriptor: int, path: Path) -> bool:
    """Says whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _holder() -> dict[str, Any]:
    """Describes this process. Options are left out, because they can hold names that must not stay in a file."""
    program = Path(sys.argv[0])
    words = [program.parent.name if program.stem == "__main__" else program.stem]
    for word in sys.argv[1:3]:
        if word.startswith("-"):
            break
        words.append(word)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "command": " ".join(words)}


def _described_holder(descriptor: int) -> str:
    """Describes the process that holds the lock of an open file, as far as the file says it in printable text."""
    try:
        found = parse_json(os.pread(descriptor, _MAX_HOLDER, 0))
        told = {name: str(found[name]) for name in _holder()}
    except (ValueError, TypeError, KeyError, OSError):  # It is just being written, or somebody wrote something else.
        return "another process"
    told = {name: "".join(filter(str.isprintable, text))[:100] for name, text in told.items()}
    return f"process {told['pid']} on {told['host']} since {told['since']} ({told['command']})"


def _forget_locks() -> None:
    """Closes, in a process that was forked, what would keep its parent's locks held after the parent's end."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


@contextlib.contextmanager
def _temporary(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """Writes the content to a temporary file in the folder of `path`, and removes it unless the caller renames it.

    The folder is the same because a rename is atomic only within one file system.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        if error.filename is None:  # Errors of write and fsync do not name the file.
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _keep_name(folder: Path) -> None:
    """Makes a new name in a folder survive a power failure, on systems that can synchronise folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
