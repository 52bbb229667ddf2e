"""The one place for hashes: of text, files, networks and positions, and JSON that can be written in one way only.

SHA-256 says what something is. `tree_checksum` is quicker, works on arrays that are divided over processes, and says
whether numbers have changed by accident.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from scissorhands_jax import files, trees
from scissorhands_jax.base import PyTree
from scissorhands_jax.errors import LedgerError

_MAX_DOCUMENT = 2**26  # bytes; a record has a few thousand


def canonical(value: Any) -> bytes:
    """The one way to write a value as JSON: sorted keys, no spaces, ASCII.

    Raises:
      TypeError: there is a float in it, of which JSON has many spellings (`without_floats` turns it into text), or
        something else that has no JSON.
    """
    for part in _parts(value):
        if not (part is None or isinstance(part, str | bool | int)):
            raise TypeError(f"{part!r} cannot be written in one way only")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def without_floats(value: Any) -> Any:
    """A copy in which floats are text, as short as reads back to the same number, and tuples are lists."""
    if isinstance(value, dict):
        return {str(key): without_floats(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_floats(entry) for entry in value]
    return repr(value) if isinstance(value, float) else value


def read_canonical(path: Path) -> dict[str, Any]:
    """Reads an object that `canonical` wrote, and nothing else.

    Raises:
      LedgerError: the file is missing or holds anything else, be it one more space.
    """
    try:
        content = files.read_bytes(path, _MAX_DOCUMENT)
    except FileNotFoundError as error:
        raise LedgerError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise LedgerError(f"{path} cannot be read: {error}") from error
    return parse_canonical(content, str(path))


def parse_canonical(content: bytes, what: str) -> dict[str, Any]:
    """The same for bytes that were read already."""
    try:
        value = json.loads(content)
        if not isinstance(value, dict) or canonical(value) != content:
            raise ValueError("it is not written as it should be")
    except (ValueError, TypeError, RecursionError) as error:
        raise LedgerError(f"{what} was changed or damaged: {str(error)[:200]}") from error
    return value


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _parts(key)
            yield from _parts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _parts(entry)
    else:
        yield value


def sha256(content: bytes | str) -> str:
    """The SHA-256 of bytes, or of text in UTF-8; hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file; hexadecimal.

    Raises:
      OSError: The file is missing or cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """The SHA-256 of the hashes of some files, in order; names do not count. Hexadecimal.

    Raises:
      OSError: A file is missing or cannot be read.
    """
    return sha256("".join(file_sha256(path) for path in paths))


def positions_sha256(positions: np.ndarray) -> str:
    """The SHA-256 of a set of positions of examples, whatever their order and integer type; hexadecimal."""
    return sha256(np.sort(positions).astype("<i4").tobytes())


def network_sha256(params: PyTree, model_state: PyTree) -> str:
    """The SHA-256 of the names, types, shapes and numbers of a network's arrays; hexadecimal."""
    network = {"params": params, "model_state": model_state}
    digest = hashlib.sha256()
    for name, leaf in zip(trees.leaf_names(network), jax.tree.leaves(network), strict=True):
        array = np.asarray(leaf, order="C")
        digest.update(canonical([name, array.dtype.str, list(array.shape)]))
        digest.update(array.tobytes())
    return digest.hexdigest()


def tree_checksum(tree: PyTree) -> str:
    """A quick checksum of the numbers in a tree of arrays, to tell one data set or network from another.

    Each array gives the sum, modulo 2**64, of its bit patterns times odd numbers that grow with their positions: any
    single change shows, and parts can be summed where they lie. Names, shapes and types do not count.

    Args:
      tree: A pytree of arrays, typed PRNG keys included. If arrays are divided over processes, every process must call
        this.

    Returns:
      Eight hexadecimal digits.
    """
    leaves = jax.tree.leaves(tree)
    sums = np.array([_sum_of_parts(leaf) for leaf in leaves], np.uint64)
    if any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in leaves):
        sums = multihost_utils.process_allgather(sums.view(np.uint32)).view(np.uint64).sum(axis=0)
    return f"{zlib.crc32(sums.tobytes()):08x}"


def _sum_of_parts(leaf: jax.Array | np.ndarray) -> int:
    """What this process adds to the checksum of an array; of parts that lie in many places one counts."""
    if not isinstance(leaf, jax.Array):
        return _weighted_sum(np.asarray(leaf), np.shape(leaf), ())
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    parts = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    return sum(_weighted_sum(np.asarray(part.data), leaf.shape, part.index) for part in parts) % 2**64


def _weighted_sum(part: np.ndarray, shape: tuple[int, ...], index: tuple[slice, ...]) -> int:
    """The sum over a part of an array of bits * (2 * position in the whole + 1), modulo 2**64."""
    if part.size == 0:
        return 0
    if part.itemsize not in (1, 2, 4, 8):
        part, shape = np.ascontiguousarray(part)[..., None].view(np.uint8), (*shape, part.itemsize)
    position, stride = np.zeros((), np.uint64), 1
    for axis in reversed(range(part.ndim)):
        start = (index[axis].start or 0) if axis < len(index) else 0
        steps = (start + np.arange(part.shape[axis], dtype=np.uint64)) * np.uint64(stride)
        stride *= shape[axis]
        if axis == 0 and part.ndim > 1:
            break
        position = steps.reshape(-1, *[1] * position.ndim) + position
    bits = np.ascontiguousarray(part).view(f"u{part.itemsize}")
    if part.ndim < 2:
        return int((bits * (2 * position + np.uint64(1))).sum(dtype=np.uint64))
    # A position is one number for its row plus one for its place therein, so that two sums do for all.
    bits = bits.reshape(len(part), -1)
    rows, columns = bits.sum(axis=1, dtype=np.uint64), bits.sum(axis=0, dtype=np.uint64)
    return (int((rows * (2 * steps + np.uint64(1))).sum()) + 2 * int((columns * position.reshape(-1)).sum())) % 2**64
