"""Descriptions of the tensors in a file, and the reading of their bytes on demand."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import NamedTuple

import numpy as np

MAX_DIMENSIONS = 64  # as in torch and NumPy

BIG_ENDIAN = "was written on a big-endian machine; load and save it again with PyTorch on an ordinary one"


class Refused(Exception):
    """The reason why a file cannot be read.

    The message is the end of a sentence that begins with the file, and says what to do.
    """


class ForbiddenGlobal(Refused):
    """A pickle names something other than tensors, containers and numbers."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"asks to run the global {name}, which is no tensor, container or number, and nothing was executed; "
            "save `model.state_dict()` alone with PyTorch, or do not trust this file"
        )


@dataclass(frozen=True, eq=False)
class Unknown:
    """What stands for an object of a pickle that is no tensor, container or number: a name, and nothing that runs."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class OddKey:
    """What stands for a key that is no number or short text: the name of its type. No two are equal."""

    kind: str


class Damaged(Refused):
    """The parts of a file contradict each other, or the file breaks off."""

    def __init__(self, what: str) -> None:
        super().__init__(f"is damaged: {what}; download or copy it again")


@dataclass(frozen=True, eq=False)
class Storage:
    """A block of elements in the file, or `size` elements of it that begin at element `start`."""

    key: str
    dtype: np.dtype
    size: int
    start: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A strided view of a storage. Its offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Extent(NamedTuple):
    """The position and number of a storage's bytes in the file, and their CRC-32 if the format has one."""

    start: int
    size: int
    crc: int | None = None


def unknown_names(root: object) -> list[str]:
    """Returns the names of the objects that only `Unknown` stands for, inside dicts, lists, tuples and sets.

    Args:
      root: What a pickle holds.
    """
    names: dict[str, None] = {}
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, Unknown):
            names[node.name] = None
        elif isinstance(node, dict | list | tuple | set) and id(node) not in seen:
            seen.add(id(node))
            waiting.extend(node.values() if isinstance(node, dict) else node)
    return list(names)


def show(name: object, limit: int = 100) -> str:
    """Makes a value from a file fit for a message: without control characters, and cut to `limit` characters."""
    kind = name.kind if isinstance(name, OddKey) else type(name).__name__
    text = repr(name) if isinstance(name, str | bytes | int | float | None) else f"a {kind}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read_extent(file: BufferedReader, extent: Extent) -> np.ndarray:
    """Reads the bytes of an extent that lies within the file, as an array of type uint8 and shape (size,)."""
    raw = np.empty(extent.size, np.uint8)
    file.seek(extent.start)
    if file.readinto(raw.data) != extent.size:
        raise Damaged("it became shorter while it was being read")
    if extent.crc is not None and zlib.crc32(raw.data) != extent.crc:
        raise Damaged(f"the checksum of the bytes from {extent.start} to {extent.start + extent.size} is wrong")
    return raw


def read_tensors(
    file: BufferedReader, tensors: Mapping[str, Tensor], extents: Mapping[str, Extent]
) -> dict[str, np.ndarray]:
    """Reads tensors as read-only arrays. A storage that several tensors share is read once.

    Args:
      file: The file, opened for reading.
      tensors: The tensors to read, by name.
      extents: The extent of each storage, by key.

    Raises:
      Damaged: The bytes do not match their checksum or the description of the tensor.
    """
    storages: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        key = tensor.storage.key
        if key not in storages:
            storages[key] = read_extent(file, extents[key])
            if tensor.storage.dtype == np.bool_ and storages[key].max(initial=0) > 1:
                raise Damaged(f"{show(name)} is boolean, but holds bytes other than 0 and 1")
        step = tensor.dtype.itemsize
        try:
            if 0 in tensor.shape:
                array = np.empty(tensor.shape, tensor.dtype)
            else:
                offset = tensor.storage.start * tensor.storage.dtype.itemsize + tensor.offset * step
                strides = tuple(stride * step for stride in tensor.strides)
                array = np.ndarray(tensor.shape, tensor.dtype, storages[key], offset, strides)
        except (ValueError, OverflowError) as error:  # NumPy's limits on shapes
            raise Damaged(f"the shape of {show(name)} is not possible") from error
        array.flags.writeable = False
        arrays[name] = array
    return arrays
