"""`results.json`: everything that was measured, and with what."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

from scissorhands_jax import files
from scissorhands_jax.errors import InputError
from scissorhands_jax.report.rows import ROW_FIELDS

_PARTS = ("rows", "config", "versions", "machine")


def _plain(value: Any, where: str) -> Any:
    """Something JSON can hold, or an error that says where it is not."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}, which JSON cannot hold; use None for a number that is missing")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {key!r}, but the keys of JSON are text")
        return {key: _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{where}[{position}]") for position, entry in enumerate(value)]
    raise InputError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def write_results(path: str | os.PathLike, document: Mapping[str, Any]) -> None:
    """Writes results as JSON, all or nothing; missing folders are made.

    Args:
      path: the file, usually `results.json`; replaced if it is there.
      document: at least `rows` (each with the keys of `ROW_FIELDS`; `None` for what was not measured), `config`,
        `versions` and `machine`, such as `{"rows": rows, "config": config, **environment()}`. NumPy and JAX numbers
        and arrays are turned into plain ones.

    Raises:
      InputError: a key is missing, or a value is NaN, infinite or nothing that JSON has; the message says which one.
    """
    missing = [key for key in _PARTS if key not in document]
    if missing:
        raise InputError(f"results need {', '.join(missing)}; found {', '.join(document) or 'nothing'}")
    plain = _plain(document, "results")
    for position, row in enumerate(plain["rows"]):
        missing = [field for field in ROW_FIELDS if field not in row]
        if missing:
            raise InputError(f"results.rows[{position}] lacks {', '.join(missing)}; use None for what was not measured")
    files.write_text(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """What `write_results` wrote.

    Raises:
      InputError: there is no such file, or it holds no results.
    """
    try:
        document = files.read_json(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict) or any(key not in document for key in _PARTS):
        raise InputError(f"{path} holds no results; they are an object with {', '.join(_PARTS)}")
    rows, config = document["rows"], document["config"]
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows) and isinstance(config, dict)):
        raise InputError(f"{path} holds no results; its rows must be a list of objects and its config an object")
    return document


def environment() -> dict[str, dict[str, Any]]:
    """What the numbers were made with: `{"versions": {package: version}, "machine": {...}}`; no host name, no path."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    devices = jax.devices()
    machine: dict[str, Any] = {
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    tunables = "GLIBC_TUNABLES"  # huge pages, which the command asks for, make steps faster
    if tunables in os.environ:
        machine[tunables] = os.environ[tunables]
    return {"versions": versions, "machine": machine}
