"""SHA-256 of files, networks and positions, and the one way to write a value as JSON before it is hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scissorhands_jax import files, trees
from scissorhands_jax.base import PyTree
from scissorhands_jax.errors import LedgerError

_MAX_DOCUMENT = 2**26  # bytes; a record has a few thousand


_CHUNK = 2**20


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


def sha256(content: bytes) -> str:
    """SHA-256 of bytes; hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def network_sha256(params: PyTree, model_state: PyTree) -> str:
    """SHA-256 of the names, types, shapes and numbers of a network's arrays; hexadecimal."""
    network = {"params": params, "model_state": model_state}
    digest = hashlib.sha256()
    for name, leaf in zip(trees.leaf_names(network), jax.tree.leaves(network), strict=True):
        array = np.asarray(leaf, order="C")
        digest.update(canonical([name, array.dtype.str, list(array.shape)]))
        digest.update(array.tobytes())
    return digest.hexdigest()
