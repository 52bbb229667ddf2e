"""Frozen dataclasses as JSON objects, and back: the form of the ledger's entries and of the signed records."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def from_document(kind: type[T], document: Any) -> T:
    """Reads a frozen dataclass from the JSON object that `dataclasses.asdict` made of it.

    Args:
      kind: The dataclass. Its fields may be texts, whole numbers, booleans, None, `Any`, other dataclasses, and tuples,
        dictionaries and unions of these.
      document: The JSON value, as `json.loads` returns it. Lists become tuples.

    Raises:
      ValueError: A field is missing, unknown, or holds a value of another type than the dataclass declares.
    """
    return _read(kind, document, kind.__name__)


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _read_dataclass(hint, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _read(hint, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_read(part, entry, f"{where}[{position}]") for position, (part, entry) in pairs)
    elif origin is dict and isinstance(value, dict):
        return {key: _read(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    elif type(value) is hint:  # exactly, because Python takes True for a whole number
        return value
    raise ValueError(f"{where} is {str(value)[:50]!r}, which has the wrong type")


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    hints = _hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(value, dict) or set(value) != set(fields):
        raise ValueError(f"{where} must be an object with the fields {', '.join(fields)}")
    return kind(**{name: _read(hints[name], value[name], f"{where}.{name}") for name in fields})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
