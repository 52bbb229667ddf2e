"""Descriptions of the tensors in a file, and the reading of their bytes when they are wanted."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

MAX_DIMENSIONS = 64  # as in torch and NumPy

BIG_ENDIAN = "was written on a big-endian machine; load and save it again with PyTorch on an ordinary one"


class Refused(Exception):
    """Why a file cannot be read: the end of a sentence that begins with the file, and what to do about it."""


class ForbiddenGlobal(Refused):
    """A pickle that names something other than tensors, containers and numbers."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"asks to run the global {name}, which is no tensor, container or number; nothing was executed: "
            "save `model.state_dict()` alone with PyTorch, or do not trust this file"
        )


class Damaged(Refused):
    """A file whose parts contradict each other or break off."""

    def __init__(self, what: str) -> None:
        super().__init__(f"is damaged: {what}; download or copy it again")


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of `size` elements in the file, or the part of one that begins at `start`."""

    key: str
    dtype: np.dtype
    size: int
    start: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A strided view of a storage; offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Extent(NamedTuple):
    """Where a storage's bytes are in the file, and their CRC-32 where the format keeps one."""

    start: int
    size: int
    crc: int | None = None


def show(name: object, limit: int = 100) -> str:
    """Text from a file, made fit for a message: no control characters, not too long."""
    text = repr(name) if isinstance(name, str | bytes | int | float | None) else f"a {type(name).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read_extent(file: BinaryIO, extent: Extent) -> np.ndarray:
    """The bytes of an extent that is known to lie inside of the file. shape=(size,), dtype=uint8"""
    raw = np.empty(extent.size, np.uint8)
    file.seek(extent.start)
    if file.readinto(raw) != extent.size:
        raise Damaged("it became shorter while it was read")
    if extent.crc is not None and zlib.crc32(raw) != extent.crc:
        raise Damaged(f"the checksum of the bytes from {extent.start} to {extent.start + extent.size} is wrong")
    return raw


def read_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], extents: Mapping[str, Extent]) -> dict[str, np.ndarray]:
    """Reads the storages of some tensors, each once, and returns read-only views of them."""
    storages: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        key = tensor.storage.key
        if key not in storages:
            storages[key] = read_extent(file, extents[key])
            if tensor.storage.dtype == np.bool_ and storages[key].max(initial=0) > 1:
                raise Damaged(f"{show(name)} is boolean, but holds other bytes than 0 and 1")
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
