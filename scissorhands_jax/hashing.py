"""Hashes of text, files, networks and positions, and the form of JSON in which each value has one spelling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scissorhands_jax import reading, trees
from scissorhands_jax.base import PyTree
from scissorhands_jax.errors import LedgerError

_MAX_WHOLE = 2**53 - 1  # of the numbers in JSON that all readers read exactly
_MAX_DOCUMENT = 2**26  # bytes; an ordinary record has a few thousand


def canonical(value: Any) -> bytes:
    """Writes a value as canonical JSON (RFC 8785). Everything of a ledger that is hashed or signed is written by it.

    Equal values have equal bytes: keys are sorted by their UTF-16 code units, numbers are written as ECMAScript writes
    them, and there are no spaces. The text is UTF-8.

    Args:
      value: Nested dictionaries with text keys, lists and tuples of texts, numbers, booleans and None.

    Raises:
      ValueError: The value contains NaN, an infinite number, a whole number beyond 2**53 - 1, which JSON's readers may
        round, text that UTF-8 cannot represent, or something that JSON cannot represent.
    """
    import rfc8785  # Not on top: training needs no more than JAX and its companions.

    return rfc8785.dumps(value)


def stable_json(value: Any) -> bytes:
    """Writes a value without floats as JSON with sorted keys, for hashes that this package alone compares.

    Args:
      value: Nested dictionaries with text keys, lists and tuples of texts, whole numbers, booleans and None.

    Raises:
      TypeError: The value holds something else.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def without_floats(value: Any) -> Any:
    """Returns a copy in which tuples are lists and each float is the shortest text that reads back to it.

    Whole numbers that `canonical` refuses are text as well.
    """
    if isinstance(value, dict):
        return {str(key): without_floats(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_floats(entry) for entry in value]
    large = isinstance(value, int) and abs(value) > _MAX_WHOLE
    if isinstance(value, float):
        return float.__repr__(value)  # NumPy's floats, which are floats too, would name their type
    return repr(value) if large else value


def read_canonical(path: Path) -> dict[str, Any]:
    """Reads a JSON object that `canonical` wrote.

    Raises:
      LedgerError: The file is missing, cannot be read, or differs by as much as a space from what `canonical` writes.
    """
    try:
        content = reading.read_bytes(path, _MAX_DOCUMENT)
    except FileNotFoundError as error:
        raise LedgerError(f"{path} is missing; put it back from your backup") from error
    except (OSError, ValueError) as error:
        raise LedgerError(f"{path} cannot be read: {error}; make it readable and try again") from error
    try:
        return parse_canonical(content)
    except ValueError as error:
        raise LedgerError(f"{path} was changed or damaged: {error}; put it back from your backup") from error


def parse_canonical(content: bytes) -> dict[str, Any]:
    """Parses a JSON object from the bytes that `canonical` returned.

    Raises:
      ValueError: The bytes differ from what `canonical` writes.
    """
    try:
        value = reading.parse_json(content)
        if not isinstance(value, dict) or canonical(value) != content:
            raise ValueError("it is not canonical JSON")
    except (ValueError, RecursionError) as error:
        raise ValueError(str(error)[:200]) from error
    return value


def sha256(content: bytes | str) -> str:
    """Returns the SHA-256 of bytes, or of text in UTF-8, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal.

    Raises:
      OSError: The file is missing or cannot be read, or is a pipe or device.
    """
    with reading.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """Returns the SHA-256 of the hashes of several files in the given order, in hexadecimal. Their names do not count.

    Raises:
      OSError: A file is missing or cannot be read.
    """
    return sha256("".join(file_sha256(path) for path in paths))


def sources_sha256(package: Path) -> str:
    """Returns the SHA-256 of the names and contents of all Python files of a package, in hexadecimal."""
    sources = sorted(package.rglob("*.py"))
    return sha256(stable_json([[path.relative_to(package).as_posix(), file_sha256(path)] for path in sources]))


def positions_sha256(positions: np.ndarray) -> str:
    """Returns the SHA-256 of a set of positions of examples, in hexadecimal.

    Neither the order of the positions nor their integer type changes it.
    """
    return sha256(np.sort(positions).astype("<i4").tobytes())


def network_sha256(params: PyTree, model_state: PyTree) -> str:
    """Returns the SHA-256 of the names, types, shapes and numbers of a network's arrays, in hexadecimal.

    It is that of `tree_sha256`, which says what counts and what does not.
    """
    return tree_sha256({"params": params, "model_state": model_state})


def tree_sha256(tree: PyTree) -> str:
    """Returns the SHA-256 of the names, types, shapes and numbers of a tree's arrays, in hexadecimal.

    The names are those of `trees.leaf_names`, the keys on the way to an array with slashes between them, and the kinds
    of containers do not count. So `[x]` and `{"0": x}` have one hash, and so have `{"a/b": x}` and `{"a": {"b": x}}`.
    Containers without arrays and None add nothing, and a typed PRNG key is the numbers that it consists of.

    Args:
      tree: A pytree of arrays, which may include typed PRNG keys. How arrays lie on devices does not count. If arrays
        are divided over processes, every process must call this function, and each of them holds one whole array at a
        time.
    """
    digest = hashlib.sha256()
    for name, leaf in zip(trees.leaf_names(tree), jax.tree.leaves(tree), strict=True):
        array = _numbers(leaf)
        digest.update(stable_json([name, type_name(array.dtype), list(array.shape)]))
        digest.update(array.reshape(-1).view(np.uint8).data)  # without a copy
    return digest.hexdigest()


def type_name(dtype: np.dtype) -> str:
    """Returns the name of the type of an array, as hashes hold it: with the order of its bytes, and its own for each.

    It is NumPy's `dtype.str` wherever that names one type. The small types of JAX, such as `float8_e4m3fn` and `int4`,
    share a `dtype.str` that says only how many bytes they take, and go by their own names.

    >>> [type_name(np.dtype(kind)) for kind in (np.float32, jax.numpy.bfloat16, jax.numpy.int4)]
    ['<f4', '<V2', 'int4']
    """
    # bfloat16 shares its own with no other type, and hashes that exist hold that.
    return str(dtype) if dtype.kind == "V" and dtype != jax.numpy.bfloat16 else dtype.str


def described_array(leaf: jax.Array | np.ndarray) -> str:
    """Describes an array by its type, its shape and 16 digits of the SHA-256 of its numbers.

    >>> described_array(np.zeros((2, 3), np.float32)).rpartition(" ")[0]
    'float32[2, 3]'
    """
    digest = hashlib.sha256(_numbers(leaf).reshape(-1).view(np.uint8).data).hexdigest()
    return f"{leaf.dtype}{list(leaf.shape)} {digest[:16]}"


def _numbers(leaf: jax.Array | np.ndarray) -> np.ndarray:
    """Returns the numbers of an array, and those that a typed PRNG key consists of."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(trees.on_host(leaf), order="C")
