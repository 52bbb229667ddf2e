"""Readers of `.npy` and `.npz` files that need not be trusted.

`numpy.load` believes what a file says of its size: a file of a few hundred bytes can name an array of terabytes, and
one of a few megabytes can unpack to gigabytes. Here both are found before any memory is taken. Pickled objects are
never read.
"""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Iterable
from typing import IO, BinaryIO

import numpy as np
from numpy.lib import format as npy

from scissorhands_jax import reading

MAX_RATIO = 100  # times the size of the compressed file; images compress to a half or a tenth
MIN_UNPACKED = 2**28  # bytes that any file may unpack to
_MAX_HEADER = 10_000  # bytes, as in NumPy
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_array(source: str | os.PathLike | bytes) -> np.ndarray:
    """Reads one array from a `.npy` file.

    Args:
      source: The file, or its content.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: The file is damaged or something else, or holds objects instead of numbers and text.
    """
    with _opened(source) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return _read(file, size)


def array_names(source: str | os.PathLike | bytes) -> list[str]:
    """The names of the arrays of a `.npz` file, in the order of the file; none is read.

    Args:
      source: The file, or its content.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: The file is damaged or something else.
    """
    with _opened(source) as file:
        try:
            return [_name(entry) for entry in reading.read_archive_entries(file)]
        except (ValueError, OSError):
            raise
        except Exception as error:
            raise _damage(error) from error


def read_arrays(source: str | os.PathLike | bytes, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Reads the arrays of a `.npz` file.

    Args:
      source: The file, or its content.
      names: The arrays to read, those of them that the file has. None reads all.

    Returns:
      The arrays by name, in the order of the file.

    Raises:
      OSError: The file is missing or cannot be read.
      ValueError: The file is damaged or something else, one of these arrays holds objects instead of numbers and text,
        or the file unpacks to more than `MAX_RATIO` times its size and more than `MIN_UNPACKED` bytes. The message
        names the array that it is about.
    """
    wanted = None if names is None else set(names)
    with _opened(source) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            entries = reading.read_archive_entries(file)
            if sum(entry.file_size for entry in entries) > max(MIN_UNPACKED, MAX_RATIO * size):
                raise ValueError(f"it unpacks to more than {MAX_RATIO} times its size")
            found = {}
            with zipfile.ZipFile(file) as archive:
                for entry in entries:
                    name = _name(entry)
                    if name in found:
                        raise ValueError(f"it has two arrays named {name[:40]!r}")
                    if wanted is None or name in wanted:
                        found[name] = _read_member(archive, entry)
        except (ValueError, OSError):
            raise
        except Exception as error:
            raise _damage(error) from error
    return found


def _name(entry: zipfile.ZipInfo) -> str:
    return entry.filename.removesuffix(".npy")


def _read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    try:
        with archive.open(entry) as member:
            return _read(member, entry.file_size)
    except ValueError as error:
        raise ValueError(f"in {_name(entry)[:40]!r} {error}") from error


def _damage(error: Exception) -> ValueError:
    """What an error says of a file: `zipfile` and its decompressors raise many types, and all of them mean damage."""
    return ValueError(str(error).strip()[:200] or type(error).__name__)


def _opened(source: str | os.PathLike | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else reading.open_file(source)


def _read(file: IO[bytes], size: int) -> np.ndarray:
    """Reads one array in the format of NumPy, after a check that the bytes which its header asks for can be there."""
    try:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"an array is in version {version} of NumPy's format, and 1.0 and 2.0 are known")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers from Python 2 and odd escapes in text
            shape, fortran, dtype = _HEADERS[version](file, max_header_size=_MAX_HEADER)
    except ValueError as error:
        raise ValueError(str(error).strip().split("\n")[0][:200]) from error
    except Exception as error:  # The header is a Python literal, which can fail in many ways.
        raise ValueError(f"the header of an array makes no sense ({type(error).__name__})") from error
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError("it holds Python objects or nothing where numbers and text are read")
    needed = math.prod(shape) * dtype.itemsize
    if needed > size or any(length < 0 for length in shape):
        raise ValueError(f"an array of shape {shape} needs {needed} bytes, and the file has fewer")
    raw = bytearray(needed)
    view, filled = memoryview(raw), 0
    while filled < needed:
        part = file.read(min(2**20, needed - filled))
        if not part:
            raise ValueError("it breaks off")
        view[filled : filled + len(part)] = part
        filled += len(part)
    if file.read(1):
        raise ValueError("an array is followed by further bytes")
    return np.ndarray(shape, dtype, raw, order="F" if fortran else "C")
