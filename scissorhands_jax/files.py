"""Files that are whole or not there, and JSON from strangers."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON = 2**28


def write_text(path: str | os.PathLike, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a whole file or nothing: a reader never sees half of it, and a crash leaves the old one.

    Missing folders are made.

    Raises:
      OSError: the disk is full, the folder cannot be written to, or the like; it names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, content, 0o666) as temporary:
        os.replace(temporary, path)
        _keep_name(path.parent)


def write_new(path: str | os.PathLike, content: bytes, *, mode: int = 0o666) -> bool:
    """Writes a whole file if there is none of that name yet; of two processes that try, one succeeds.

    Args:
      path: the file, in an existing folder.
      content: all of it.
      mode: its permissions, of which the umask may take some away.

    Returns:
      Whether this call wrote it.
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
    """Reads a file of no more than so many bytes.

    Raises:
      OSError: the file is missing or cannot be read.
      ValueError: it is larger.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise ValueError(f"it is larger than {limit} bytes")
        return file.read()


def read_json(path: str | os.PathLike) -> Any:
    """Reads JSON in UTF-8, whoever wrote it.

    Raises:
      OSError: the file is missing or cannot be read.
      ValueError: it holds something else, is nested too deeply, or is larger than 256 MiB.
    """
    return parse_json(read_bytes(path, MAX_JSON))


def parse_json(content: bytes) -> Any:
    """The same for bytes that were read already.

    Raises:
      ValueError: they hold something else, or are nested too deeply.
    """
    try:
        return json.loads(content.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextlib.contextmanager
def _temporary(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """The content in a file beside the one that it is for, which is removed if nobody renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        if error.filename is None:  # write and fsync do not know it
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _keep_name(folder: Path) -> None:
    """Makes a new name in a folder outlast a power failure, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
