"""Files and folders that are written whole or not at all and by one process at a time.

A process that is killed while it writes leaves what was there before, and perhaps hidden leftovers next to it, such as
`.results.json.0a1b2c3d.partial`. `remove_leftovers` deletes them in a folder that is the package's own, and everything
that opens one to write calls it. Elsewhere `remove_leftovers_of` deletes those of one file or folder.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from scissorhands_jax.errors import BusyError, InputError
from scissorhands_jax.reading import open_file, parse_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
"""The file in a folder whose lock `sole_writer` holds. It is removed with the lock, unless the process is killed."""

_SECONDS_BETWEEN_TRIES = 0.05
_SECONDS_OF_A_LOOK = 0.3  # at most, for which whoever looks whether a file is locked keeps others from locking it
_TRIES = 50  # to make a folder that others remove
_MAX_HOLDER = 4096  # bytes of what a lock file says about its holder
_logger = logging.getLogger(__name__)
_held: set[int] = set()  # descriptors of the lock files whose locks this process holds

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<id>[0-9a-f]{8})\.(?P<kind>partial|replaced|removed)", re.DOTALL)
_GUARD = "guard"  # the file in the temporary folder of `new_folder` that is locked


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
    with writing(path) as file:
        file.write(content)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file that is written piece by piece; otherwise like `write_bytes`.

    The file gets its name when the block ends. If the block raises, what was there stays.

    Args:
      path: The file. Missing folders are created.

    Raises:
      OSError: The file cannot be written, for instance because the disk is full. The error names the file.
    """
    path = Path(path)
    make_folder(path.parent)
    with _temporary(path, 0o666) as (file, temporary):
        yield file
        _to_disk(file)
        os.replace(temporary, path)
        _keep_names(path.parent)


def copy_file(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copies a file of any size, piece by piece; otherwise like `write_bytes`.

    Raises:
      OSError: The source is missing or no file, or the target cannot be written.
    """
    with open_file(source) as whole, writing(target) as copy:
        shutil.copyfileobj(whole, copy)


def resolved(path: Path) -> Path:
    """Returns where a path leads when all links are followed.

    `Path.resolve` raises a RuntimeError for a link that leads to itself, which here stays as it is.
    """
    return Path(os.path.realpath(path))


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
    with _temporary(path, mode) as (file, temporary):
        file.write(content)
        _to_disk(file)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        _keep_names(path.parent)
    return True


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, *, replace: bool = True) -> Iterator[Path]:
    """Makes a folder that is there whole or not at all. One that exists is replaced once the new one is whole.

    The caller makes and fills the folder that is yielded, which lies on the same disk as `path` and gets its name when
    the block ends. If the block raises, what was there stays. A process that is killed leaves the old folder or the new
    one; between two renames the old one is hidden, until `remove_leftovers` puts it back.

    Args:
      path: The folder. Missing folders above it are created.
      replace: Whether what is there when the new folder is whole is replaced; otherwise it stays.

    Yields:
      Where to make the folder.

    Raises:
      FileExistsError: Without `replace`, there is something of that name, and it has stayed.
      OSError: The folder cannot be written.
    """
    path = Path(path)
    is_first = not path.parent.exists()
    make_folder(path.parent)
    guard, temporary, replaced = _temporary_folder(path)
    try:
        with open(guard, "wb"):
            fresh = temporary / path.name
            yield fresh
            for folder, _, names in os.walk(fresh):
                for name in names:
                    with open_file(Path(folder, name)) as file:
                        os.fsync(file.fileno())
                _keep_names(Path(folder))
            if os.path.lexists(path):
                if not replace:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
                os.rename(path, replaced)
            os.rename(fresh, path)
            _keep_names(path.parent)
    finally:
        with contextlib.suppress(OSError):  # Something still writes there after an error.
            _delete(temporary)
        if os.path.lexists(path):
            _delete(replaced)
        elif os.path.lexists(replaced):
            os.rename(replaced, path)
        elif is_first:
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def remove(path: str | os.PathLike) -> None:
    """Removes a file, a link or a folder at once, as seen by anyone who looks for its name; nothing if it is not there.

    Of a link to a folder the link is removed, not the folder.

    Raises:
      OSError: It cannot be removed.
    """
    path = Path(path)
    removed = _hidden(path, secrets.token_hex(4), "removed")
    try:
        os.rename(path, removed)
    except FileNotFoundError:
        return
    _delete(removed)


def remove_leftovers(folder: str | os.PathLike, *, deep: bool = True) -> None:
    """Removes what processes that were killed left in a folder, and puts back what they were about to replace.

    What a living process is writing at the moment stays, on systems with `flock`.

    Other programs may give their files such names too, so the folder must be one that only the package writes to.

    Args:
      folder: The folder. Nothing happens if it does not exist.
      deep: Whether folders in it are searched as well; links are not followed.

    Raises:
      OSError: Something cannot be removed.
    """
    for place, folders, names in os.walk(Path(folder)):
        for name in (*folders, *names):
            if _LEFTOVER.fullmatch(name):
                _remove_leftover(Path(place, name))
            elif is_leftover(name):
                _remove_free_lock(Path(place, name))
        folders[:] = [name for name in folders if deep and not _LEFTOVER.fullmatch(name)]


def remove_leftovers_of(path: str | os.PathLike) -> None:
    """Removes what processes that were killed while they wrote a file or folder left next to it.

    It does what `remove_leftovers` does, for one name; everything else in the folder around it stays.

    Args:
      path: The file or folder. Nothing happens if there is no folder around it.

    Raises:
      OSError: Something cannot be removed.
    """
    path = Path(path)
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    for name in names:
        found = _LEFTOVER.fullmatch(name)
        if found is not None and found["name"] == path.name:
            _remove_leftover(path.with_name(name))
        elif name == f".{path.name}{LOCK_FILE}":
            _remove_free_lock(path.with_name(name))


def is_leftover(path: str | os.PathLike) -> bool:
    """Says whether a path has the name of what a killed process leaves: a lock, or something that is not finished.

    >>> [is_leftover(name) for name in (".results.json.0a1b2c3d.partial", "results.json")]
    [True, False]
    """
    name = os.path.basename(path)
    return _is_lock(name) or _LEFTOVER.fullmatch(name) is not None


def is_being_written(path: str | os.PathLike) -> bool:
    """Says whether a living process is writing what has this name of a leftover; always False without `flock`."""
    path = Path(path)
    found = _LEFTOVER.fullmatch(path.name)
    if found is None:
        return False
    partial = _hidden(path.with_name(found["name"]), found["id"], "partial")
    return _is_locked(partial / _GUARD if partial.is_dir() else partial)


def _is_locked(path: Path) -> bool:
    """Says whether another open file has locked this one."""
    if path.is_symlink():
        return False
    with contextlib.suppress(OSError), open_file(path) as file:
        return _flock(file.fileno(), shared=True) is False  # Two that look are not in each other's way.
    return False


def _is_lock(name: str) -> bool:
    return name.startswith(".") and name.endswith(LOCK_FILE)


def clear_folder(folder: str | os.PathLike, last: str) -> None:
    """Removes everything in a folder except for locks of `sole_writer`, each entry at once.

    Args:
      folder: The folder, or a link to one.
      last: The name of what is removed last, so that a folder that is cleared half still says whose it is.
    """
    remove_leftovers(folder)
    for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == last):
        if not _is_lock(path.name):
            remove(path)


@contextlib.contextmanager
def sole_writer(folder: str | os.PathLike, *, of: str | None = None, seconds: float = 0.0) -> Iterator[None]:
    """Holds the right to write to a folder, which only one caller on all machines can have at a time.

    It is an advisory lock (`flock`) of the file `LOCK_FILE` in the folder. The system takes the lock back when the
    process that holds it ends, however it ends, so what a killed process leaves there stops nobody. Where the file
    system has no such locks, a warning is logged, and nothing keeps two processes apart.

    Args:
      folder: The folder. It is made if it does not exist, and then removed again if nothing was written to it.
      of: The name of a file or folder in it that the right is limited to. By default the right is to everything in the
        folder. Rights to different names, and to everything, do not exclude one another.
      seconds: How long to wait for another holder, who is named in the log meanwhile; `math.inf` waits for ever. By
        default an error is raised after a moment, in which somebody may only have looked whether the right is held.

    Raises:
      BusyError: Another process, or another part of this one, holds the right. The error says which process that is, on
        which machine, since when, and what it runs.
      OSError: The folder or the file cannot be made, or something else has the name of the file.
    """
    folder = Path(folder)
    lock_file = folder / (LOCK_FILE if of is None else f".{of}{LOCK_FILE}")
    is_new = not os.path.lexists(folder)
    descriptor = _lock(lock_file, folder / (of or ""), seconds)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # It is not in a process that was forked in the meantime.
            _held.discard(descriptor)
            _unlock(descriptor, lock_file)
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # does nothing where there is something in it


def holder(folder: str | os.PathLike) -> str | None:
    """Describes who holds the right to write to a folder (`sole_writer`).

    Returns:
      The process, its machine, since when and what it runs; None if nobody holds the right, or without `flock`.
    """
    path = Path(folder, LOCK_FILE)
    if not _is_locked(path):
        return None
    with contextlib.suppress(OSError), open_file(path) as file:
        return _described_holder(file.fileno())
    return None


def is_lock_file(path: str | os.PathLike) -> bool:
    """Says whether a file holds what `sole_writer` leaves in the file of a lock: nothing, or who holds it."""
    try:
        with open_file(path) as file:
            content = file.read(_MAX_HOLDER + 1)
        return not content or _is_holder(content)
    except OSError:
        return False


def _is_holder(content: bytes) -> bool:
    """Says whether a content is what `_lock` writes, and nothing else."""
    try:
        found = parse_json(content)
    except ValueError:
        return False
    if not isinstance(found, dict) or len(content) > _MAX_HOLDER or json.dumps(found).encode() != content:
        return False
    return {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in _holder().items()
    }


def _lock(path: Path, what: Path, seconds: float) -> int:
    """Returns the open and locked file, in which this process has left its name."""
    began, is_told = time.monotonic(), False
    while True:
        make_folder(path.parent)
        try:
            flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        except FileNotFoundError:  # The last holder has just removed the empty folder.
            continue
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is a pipe or device and not a file", str(path))
            busy = not _try_to_lock(descriptor, what)
            if not busy and _is_open_file(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(_holder()).encode())
                return descriptor
            waited = time.monotonic() - began
            if busy and waited >= max(seconds, _SECONDS_OF_A_LOOK):
                raise BusyError(
                    f"{what} is being written to by {_described_holder(descriptor)}; wait until it has ended"
                )
            if busy and not is_told and waited >= _SECONDS_OF_A_LOOK:
                _logger.warning("waiting for %s, which writes to %s", _described_holder(descriptor), what)
                is_told = True
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if busy:
            time.sleep(_SECONDS_BETWEEN_TRIES)


def check_name(folder: str | os.PathLike) -> None:
    """Checks the name of a folder that networks are written to, and the names above it.

    Names that are no text cannot be written as UTF-8. Orbax writes the arrays of a network in parts, which it looks for
    by `glob` without escaping the folder, and its library for the disk takes a backslash for a slash; so a network in a
    folder with such a name would be lost.

    Raises:
      InputError: No network can be kept in a folder with these names.

    >>> check_name("results")
    """
    path = os.path.join(os.getcwd(), folder)
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"no run can be in {path}, whose name is no text in UTF-8; name another folder") from error
    for character in "*?[" if os.sep == "\\" else "*?[\\":
        if character in path:
            raise InputError(
                f"no run can be in {path}, whose name has the character {character}, with which Orbax would not find "
                "its networks again; name another folder"
            )


def check_inputs(
    out: Path, inputs: Iterable[str | Path | None], *, overwrite: bool = False, resume: bool | None = None
) -> None:
    """Refuses to write a result where it would remove what it is made of.

    Args:
      out: The folder or the file of the result, which need not exist.
      inputs: The files and folders that are read; None is none. Links are followed, and the links themselves count too.
      overwrite: Whether a result that is there is removed.
      resume: Whether it is continued. Then it may have in its folder what it reads, because nothing there is removed.

    Raises:
      InputError: One of them is `out` or lies in it.
    """
    if resume and not overwrite:
        return
    whole = resolved(out)
    for path in (Path(path) for path in inputs if path is not None):
        link = Path(os.path.abspath(path))
        places = (resolved(path), resolved(link.parent) / link.name)
        if any(whole in (place, *place.parents) for place in places):
            found = f"is where the result goes, {out}" if whole in places else f"lies in {out}, where the result goes"
            raise InputError(f"{path} is read and {found}; name another place for one of them")


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """Makes a folder and those above it where they do not exist, also while other processes remove and make them.

    Args:
      path: The folder.
      mode: The permissions of a folder that is made, less those that the umask removes; those above it have the usual.

    Raises:
      OSError: It cannot be made, or something else has its name.
    """
    for _ in range(_TRIES):
        # It may be found, and be gone when `mkdir` looks what it is; or one above it may be gone.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            return path.mkdir(mode, parents=True, exist_ok=True)
    return path.mkdir(mode, parents=True, exist_ok=True)


def _unlock(descriptor: int, path: Path) -> None:
    if _is_open_file(descriptor, path):
        # Whoever has opened the file and waits for its lock finds that it is gone, and makes another one.
        path.unlink()
    os.close(descriptor)


def _try_to_lock(descriptor: int, what: Path) -> bool:
    """Says whether the file could be locked; True as well where there are no locks."""
    locked = _flock(descriptor)
    if locked is None:
        _logger.warning("%s cannot be locked, so make sure that only one process writes to it", what)
    return locked is not False


def _flock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Locks an open file until it is closed, alone or together with others that share the lock.

    Says whether that succeeded; None where the file system has no locks.
    """
    try:
        if fcntl is None:
            return None
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
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
def _temporary(path: Path, mode: int) -> Iterator[tuple[BinaryIO, Path]]:
    """Opens a temporary file in the folder of `path`, and removes it unless the caller renames it.

    The folder is the same because a rename is atomic only within one file system.
    """
    descriptor, temporary = _temporary_file(path, mode)
    try:
        with open(descriptor, "wb") as file:
            yield file, temporary
    except OSError as error:
        if error.filename is None and error.errno is not None:  # Errors of write and fsync do not name the file.
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_file(path: Path, mode: int) -> tuple[int, Path]:
    """Makes a temporary file next to `path`, and returns it open and locked."""
    while True:
        temporary = _hidden(path, secrets.token_hex(4), "partial")
        descriptor = _locked_new(temporary, mode)
        if descriptor is not None:
            return descriptor, temporary


def _temporary_folder(path: Path) -> tuple[int, Path, Path]:
    """Makes a temporary folder next to `path`.

    Returns:
      The open and locked file in it, the folder, and the name that what is at `path` has while it is replaced.
    """
    while True:
        number = secrets.token_hex(4)
        temporary = _hidden(path, number, "partial")
        temporary.mkdir()
        with contextlib.suppress(FileNotFoundError):  # Another process has taken it for a leftover.
            descriptor = _locked_new(temporary / _GUARD, 0o666)
            if descriptor is not None:
                return descriptor, temporary, _hidden(path, number, "replaced")
        _delete(temporary)


def _locked_new(path: Path, mode: int) -> int | None:
    """Makes, opens and locks a file; None, and nothing is left, if another process has locked it before."""
    with contextlib.suppress(FileExistsError):  # Another process has just made it to look whether it is locked.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        if _flock(descriptor) is not False and _is_open_file(descriptor, path):
            return descriptor
        if _is_open_file(descriptor, path):
            path.unlink(missing_ok=True)
        os.close(descriptor)
    return None


def _hidden(path: Path, number: str, kind: Literal["partial", "replaced", "removed"]) -> Path:
    return path.with_name(f".{path.name}.{number}.{kind}")


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _remove_leftover(path: Path) -> None:
    """Removes one leftover, or puts it back if nothing has taken its place, unless a living process uses it."""
    found = _LEFTOVER.fullmatch(path.name)
    assert found is not None
    target = path.with_name(found["name"])
    with _leftover_guard(_hidden(target, found["id"], "partial")) as guard:
        if guard is not None and _flock(guard.fileno()) is False:
            return
        if found["kind"] == "replaced" and not os.path.lexists(target):
            os.rename(path, target)
        else:
            _delete(path)


def _leftover_guard(partial: Path) -> contextlib.AbstractContextManager[BinaryIO | None]:
    """Opens the file whose lock keeps a leftover from being removed; None if there is none.

    A process that has just made a folder has perhaps not made this file yet. It is then made here, so that one of the
    two gets the lock.
    """
    is_folder = partial.is_dir() and not partial.is_symlink()
    guard = partial / _GUARD if is_folder else partial
    with contextlib.suppress(FileNotFoundError):  # Another process has just removed it.
        if fcntl is not None and (guard.is_file() or (is_folder and not os.path.lexists(guard))):
            return open(guard, "ab") if is_folder else open_file(guard)
    return contextlib.nullcontext()


def _remove_free_lock(path: Path) -> None:
    """Removes the file of a lock of `sole_writer` that nobody holds.

    An empty one may be another program's and stays. It stops nobody, and the next holder removes it.
    """
    if path.is_symlink() or not path.is_file():
        return
    with open_file(path) as file:
        content = file.read(_MAX_HOLDER)
        is_ours = content.startswith(b'{"pid"')
        if is_ours and _flock(file.fileno()) and _is_open_file(file.fileno(), path):
            path.unlink()


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    while path.is_dir():
        try:
            shutil.rmtree(path)
        except FileNotFoundError:  # Another process removes it at the same time.
            continue


def _keep_names(folder: Path) -> None:
    """Makes new names in a folder survive a power failure, on systems that can synchronise folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
