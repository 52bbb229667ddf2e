"""Readers of files that need not be trusted.

Every reader has limits of size, depth and count, which bound its time and memory; a file beyond them, like a damaged
one, is a ValueError whose message ends a sentence about the file. Arrays and images have `array_files` and
`image_files`.
"""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import math
import os
import stat
import zipfile
import zlib
from typing import IO, Any, BinaryIO, NamedTuple, NoReturn, cast

MAX_JSON = 2**26  # bytes
MAX_VALUES = 2**22  # in a JSON document; strings with commas or brackets in them count for several
MAX_DEPTH = 100  # objects and lists in one another; Python's own limit for functions that call themselves is 1000
MAX_TEXT = 2**25  # bytes
_MAX_BITS = 1_000  # of an integer in JSON; a float64 holds numbers of up to 1,024
MAX_LINES = 2**21
MAX_DIRECTORY = 2**22  # bytes of a zip archive's directory; an entry takes 46 and its name


def open_file(path: str | os.PathLike) -> io.BufferedReader:
    """Opens a regular file for reading, and nothing else.

    A pipe, which may never end and whose opening waits for a writer, or a device is refused at once.

    Raises:
      OSError: The file is missing or cannot be read, or is a folder, pipe, socket or device.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or device and not a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | os.PathLike, limit: int) -> bytes:
    """Reads a whole file, unless it is too large.

    Args:
      path: The file.
      limit: The largest size to read, in bytes.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: The file is larger than the limit.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"it is larger than {limit} bytes")
        content = file.read(size + 1)
    if len(content) > size:
        raise ValueError("it grew while it was being read")
    return content


def read_text(path: str | os.PathLike) -> str:
    """Reads a text file in UTF-8, whose ends of lines are kept as they are.

    The byte order mark that some programs put at the beginning is no part of the text.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: The file is not text in UTF-8, or has more than `MAX_TEXT` bytes.
    """
    return read_bytes(path, MAX_TEXT).decode("utf-8-sig")


def read_lines(path: str | os.PathLike) -> list[str]:
    """Reads the lines of a text file without their ends, as `read_text` reads it.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: The file is not text in UTF-8, has more than `MAX_TEXT` bytes or more than `MAX_LINES` lines.
    """
    lines: list[str] = []
    for line in io.StringIO(read_text(path), newline=None):
        if len(lines) == MAX_LINES:
            raise ValueError(f"it has more than {MAX_LINES} lines")
        lines.append(line.removesuffix("\n"))
    return lines


class CsvRow(NamedTuple):
    """A row of a CSV file."""

    line: int
    """The line of the file on which it begins, counted from 1."""
    values: dict[str, str]
    """What it has by column."""


class CsvTable(NamedTuple):
    """A CSV file whose first line names the columns."""

    columns: list[str]
    line: int
    """The line that names them, counted from 1."""
    rows: list[CsvRow]
    """Those that are not empty."""


def read_rows(path: str | os.PathLike) -> CsvTable:
    """Reads a CSV file whose first line names the columns, as `read_text` reads it.

    Args:
      path: The file.

    Returns:
      The table. A row that is shorter than the first line lacks the last columns; what it has beyond them is empty.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: The file is not CSV in UTF-8, a quote in it does not end, or it has more than `MAX_TEXT` bytes, more
        than `MAX_LINES` lines, a field of more than 131,072 characters, or a line with more values than the first line
        has columns.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)  # else an open quote takes in all lines
    columns: list[str] = []
    rows: list[CsvRow] = []
    named = line = 1
    try:
        for row in reader:
            begins, line = line, reader.line_num + 1
            if not columns:
                columns, named = row, begins
                continue
            if len(rows) == MAX_LINES:
                raise ValueError(f"it has more than {MAX_LINES} lines")
            if any(value.strip() for value in row[len(columns) :]):
                raise ValueError(f"line {begins} has {len(row)} values, and the first line {len(columns)} columns")
            if row:
                rows.append(CsvRow(begins, dict(zip(columns, row, strict=False))))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return CsvTable(columns, named, rows)


def read_gzip(path: str | os.PathLike, limit: int) -> bytes:
    """Reads a file that may be compressed with gzip.

    Args:
      path: The file, of at most `limit` bytes.
      limit: The largest size of the content, in bytes. No more than that is ever unpacked.

    Returns:
      The unpacked content, or the file as it is if it does not begin as gzip does.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: The gzip stream is damaged or cut off, or the content is larger than the limit.
    """
    raw = read_bytes(path, limit)
    if not raw.startswith(b"\x1f\x8b"):
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"its gzip stream is damaged ({error})") from error
    if len(content) > limit:
        raise ValueError(f"it unpacks to more than {limit} bytes")
    return content


def read_json(path: str | os.PathLike, *, nan: bool = False) -> Any:
    """Reads a file of JSON in UTF-8, which need not be trusted.

    Args:
      path: The file.
      nan: See `parse_json`.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: See `parse_json`.
    """
    return parse_json(read_bytes(path, MAX_JSON), nan=nan)


def parse_json(content: str | bytes, *, nan: bool = False) -> Any:
    """Parses JSON, which need not be trusted.

    Args:
      content: The JSON; bytes are UTF-8.
      nan: Whether numbers may be `NaN` and `Infinity`, which `json.dumps` writes and JSON does not have.

    Returns:
      The value. It is nested at most `MAX_DEPTH` levels deep, so that functions that call themselves can walk it.

    Raises:
      ValueError: The content is not JSON, has more than `MAX_JSON` bytes or `MAX_VALUES` values, is nested too deeply,
        or has an object with two equal keys, of which one would be ignored, an integer of more than 1,000 bits, or
        without `nan` a number that is not finite.
    """
    content = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    check_json_size(content)
    try:
        value = json.loads(
            content.decode(),
            object_pairs_hook=_distinct,
            parse_constant=float if nan else _no_constant,
            parse_float=float if nan else _finite,
            parse_int=_whole,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [part for part in level if isinstance(part, dict | list)]
        if not level:
            return value
        level = [entry for part in level for entry in (part.values() if isinstance(part, dict) else part)]
    raise ValueError("it is nested too deeply")


def check_json_size(content: bytes) -> None:
    """Refuses JSON that `parse_json` would refuse for its size. Whoever writes a file can ask before.

    Raises:
      ValueError: It has more than `MAX_JSON` bytes or `MAX_VALUES` values.
    """
    if len(content) > MAX_JSON:
        raise ValueError(f"it is larger than {MAX_JSON} bytes")
    # Every value but the first follows one of these, so that their number bounds the memory before any is built.
    if sum(content.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES} values")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {twice[:40]!r} twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it has the number {name}, which JSON does not have")


def _whole(digits: str) -> int:
    number = int(digits)
    if number.bit_length() > _MAX_BITS:
        raise ValueError(f"it has the number {digits[:40]}, which is too large")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"it has the number {digits[:40]}, which is too large")
    return number


def read_archive_entries(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """Reads the directory of a zip archive.

    Args:
      file: The archive, opened for reading.

    Raises:
      ValueError: The archive is damaged, or its directory has more than `MAX_DIRECTORY` bytes. Many damages raise
        other errors, which `zipfile` does not name.
    """
    with zipfile.ZipFile(cast(IO[bytes], _ShortReads(file))) as archive:
        return archive.infolist()


def read_archive(path: str | os.PathLike, limit: int) -> dict[str, bytes]:
    """Reads all files in a zip archive.

    Args:
      path: The archive.
      limit: The largest size of all files together, in bytes. No more than that is ever unpacked.

    Returns:
      The content of each file by name.

    Raises:
      OSError: The archive is missing or cannot be read.
      ValueError: The archive is damaged, or the files in it or its directory are larger than the limits.
    """
    with open_file(path) as file:
        try:
            entries = read_archive_entries(file)
            if sum(entry.file_size for entry in entries) > limit:
                raise ValueError(f"it unpacks to more than {limit} bytes")
            with zipfile.ZipFile(file) as archive:
                return {entry.filename: archive.read(entry) for entry in entries}
        except (OSError, ValueError):
            raise
        except Exception as error:  # `zipfile` and its decompressors raise many types, and all of them mean damage.
            raise ValueError(str(error).strip()[:200] or type(error).__name__) from error


class _ShortReads:
    """A file of which nothing longer than a zip directory may be read at once; `zipfile` reads a directory at once."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable, self._read = file.seek, file.tell, file.seekable, file.read

    def read(self, size: int = -1) -> bytes:
        if size < 0:  # to the end, which `zipfile` asks for when it is a few bytes away
            at = self.tell()
            size = self.seek(0, os.SEEK_END) - at
            self.seek(at)
        if size > MAX_DIRECTORY:
            raise ValueError(f"its directory is larger than {MAX_DIRECTORY} bytes")
        return self._read(size)
