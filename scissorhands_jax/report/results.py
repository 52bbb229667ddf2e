"""`results.json`: everything that was measured, with the configuration, versions and machine."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from scissorhands_jax import files, reading
from scissorhands_jax.errors import InputError
from scissorhands_jax.report import provenance
from scissorhands_jax.report.rows import row_fields
from scissorhands_jax.version import version_of

_PARTS = ("rows", "config", "versions", "machine")
_ABOUT_MAKING = ("versions", "machine", "made_by", "seconds")


def _plain(value: Any, where: str) -> Any:
    """Converts a value to one that JSON can hold, or raises an error that names the place of the value."""
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
                raise InputError(f"{where} has the key {key!r}, which JSON cannot hold; use text")
        return {key: _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{where}[{position}]") for position, entry in enumerate(value)]
    raise InputError(f"{where} is a {type(value).__name__}, which JSON cannot hold; use numbers, text, lists or dicts")


def write_results(path: str | os.PathLike, document: Mapping[str, Any]) -> None:
    """Writes results as JSON, wholly or not at all.

    Args:
      path: The file, usually `results.json`. An existing file is replaced, and missing folders are created.
      document: The results: at least `rows`, `config`, `versions` and `machine`, such as
        `{"rows": rows, "config": config, **environment()}`. Each row has the keys of `rows.row_fields`, with `None` for
        what was not measured. NumPy and JAX numbers and arrays become plain ones.

    Raises:
      InputError: As `results_text`.
    """
    files.write_text(path, results_text(document))


def results_text(document: Mapping[str, Any]) -> str:
    """Returns what `write_results` writes.

    Args:
      document: The results, as for `write_results`.

    Raises:
      InputError: A key is missing, or a value is NaN, infinite or of a type that JSON does not have. The message names
        the place.
    """
    missing = [key for key in _PARTS if key not in document]
    if missing:
        raise InputError(f"results have {', '.join(document) or 'nothing'} but lack {', '.join(missing)}; add them")
    plain = _plain(document, "results")
    for position, row in enumerate(plain["rows"]):
        missing = [field for field in row_fields(row) if field not in row]
        if missing:
            raise InputError(f"results.rows[{position}] lacks {', '.join(missing)}; use None for what was not measured")
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the results that `write_results` wrote.

    Raises:
      InputError: The file does not exist, or holds no results.
    """
    try:
        document = reading.read_json(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a results.json") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); name a results.json") from error
    if not isinstance(document, dict) or any(key not in document for key in _PARTS):
        raise InputError(f"{path} is not an object with {', '.join(_PARTS)}; name a results.json")
    rows, config = document["rows"], document["config"]
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows) and isinstance(config, dict)):
        raise InputError(
            f"{path} holds no results, which have a list of objects as rows and an object as config; "
            "name a results.json"
        )
    return document


def environment() -> dict[str, dict[str, Any]]:
    """Describes what made the numbers, as `{"versions": {package: version}, "machine": {...}, "made_by": {...}}`.

    `made_by` has the commit, the command and the date (see `provenance.made_by`). Neither the name of the host nor
    folders outside the current one are in it.
    """
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")
    versions = {"python": platform.python_version(), **{package: version_of(package) for package in packages}}
    devices = jax.devices()
    machine: dict[str, Any] = {
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    tunables = "GLIBC_TUNABLES"  # The command asks for huge pages with it, which make steps faster.
    if tunables in os.environ:
        machine[tunables] = os.environ[tunables]
    return {"versions": versions, "machine": machine, "made_by": dict(provenance.made_by())}


def by_first_maker(path: str | os.PathLike, document: Mapping[str, Any]) -> dict[str, Any]:
    """Results as whoever made them first has written them, if a file has the same already.

    So a command that is repeated after its end does not claim what another commit or machine has computed.

    Args:
      path: The file of results, which may be missing.
      document: Results as `environment` completes them.

    Returns:
      The document, with `versions`, `machine`, `made_by` and `seconds` of the file where all else is equal.
    """
    try:
        there = reading.read_json(path, nan=True)
    except (OSError, ValueError):
        return dict(document)
    if not isinstance(there, dict) or _what_was_found(there) != _what_was_found(document):
        return dict(document)
    return {**document, **{name: there[name] for name in _ABOUT_MAKING if name in there}}


def _what_was_found(document: Mapping[str, Any]) -> str:
    """Results without who made them, as text in which those that are equal are the same."""
    found = {name: value for name, value in document.items() if name not in _ABOUT_MAKING}
    return json.dumps(found, sort_keys=True, default=lambda value: np.asarray(value).tolist())


def environment_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Takes from results what `environment` put there, for a page.

    Results from before commits were recorded say so. Those whose numbers were computed again later from what was
    measured have `analysed_by`, the `made_by` of that.
    """
    made_by = document.get("made_by") or {"code": provenance.NOT_RECORDED}
    again = {"analysed by": document["analysed_by"]} if "analysed_by" in document else {}
    return {"made by": made_by, **again, "versions": document["versions"], "machine": document["machine"]}
