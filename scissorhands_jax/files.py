"""Files that are written whole or not at all, and JSON from untrusted sources."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON = 2**28  # bytes


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
