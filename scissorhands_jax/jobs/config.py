"""Configuration: frozen dataclasses, changed by dotted overrides such as `method.fraction=0.05`."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from typing import Any

from scissorhands_jax.errors import InputError

_SHOWN = 100  # characters of what someone wrote, in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One unlearning run; saved as it is with the results."""

    model: str
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    checkpoint: str | None = None
    dataset: str
    data_dir: str | None = None
    forget: str
    trained_on: str | None = None
    validation: str | None = None
    seed: int = 0
    retain_limit: int | None = None
    augment: bool | None = None
    method_name: str = "scissorhands"
    method: Any = None


def override(config: Any, changes: Iterable[str]) -> Any:
    """A copy of a dataclass with `dotted.name=value` changes applied in order.

    Values are read by the type of the field: numbers, true/false, none, text; in a dict field any name is taken, and
    the value is read as JSON or else as text.

    Raises:
      InputError: a change has no "=", names no field (near names are shown), or its value has the wrong type.
    """
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name:
            raise InputError(f"cannot read the setting {_shown(change)}; write name=value, e.g. method.fraction=0.05")
        config = _set(config, name.split("."), name, text)
    return config


def setting_names(config: Any, prefix: str = "") -> list[str]:
    """All dotted names that `override` takes."""
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names += setting_names(value, f"{prefix}{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


def _set(config: Any, path: list[str], name: str, text: str) -> Any:
    head, rest = path[0], path[1:]
    prefix = name.removesuffix(".".join(path))
    if isinstance(config, dict):
        return {**config, head: _json_or_text(text)} if not rest else _unknown(name, [prefix + head])
    names = [field.name for field in dataclasses.fields(config)]
    if head not in names:
        return _unknown(name, setting_names(config, prefix))
    value = getattr(config, head)
    holds_settings = dataclasses.is_dataclass(value) or isinstance(value, dict)
    if rest and holds_settings:
        return dataclasses.replace(config, **{head: _set(value, rest, name, text)})
    if rest:
        return _unknown(name, setting_names(config, prefix))
    if holds_settings:
        raise InputError(f"{name} holds several settings; write {name}.NAME=value")
    hint = typing.get_type_hints(type(config))[head]
    change = {head: parse_value(text, hint, name)}
    # Settings that depend on one another change together.
    return config.changed(**change) if hasattr(config, "changed") else dataclasses.replace(config, **change)


def parse_value(text: str, hint: Any, name: str) -> Any:
    """Reads text as a value of an annotated type.

    Raises:
      InputError: it is none.
    """
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for choice in choices:
        if typing.get_origin(choice) is tuple:
            return _parse_tuple(text, choice, name, choices)
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    for choice in choices:
        if choice is bool and text.lower() in ("true", "false", "yes", "no", "1", "0"):
            return text.lower() in ("true", "yes", "1")
        if choice in (int, float):
            try:
                return choice(text)
            except ValueError:
                continue
        if choice is str:
            return text
        if text in typing.get_args(choice):
            return text
    expected = " or ".join(_type_name(choice) for choice in choices)
    raise InputError(f"{name} must be {expected}, got {_shown(text)}")


def _parse_tuple(text: str, hint: Any, name: str, choices: tuple) -> tuple | None:
    """Values with commas between them; `none` is the empty tuple, or None where that is allowed."""
    if text.lower() in ("none", "null"):
        return None if type(None) in choices else ()
    kinds = typing.get_args(hint)
    words = text.split(",")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(words)
    if len(words) != len(kinds):
        raise InputError(f"{name} must be {len(kinds)} values with commas between them, got {_shown(text)}")
    return tuple(parse_value(word, kind, name) for word, kind in zip(words, kinds, strict=True))


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def _type_name(choice: Any) -> str:
    literals = typing.get_args(choice)
    return "none" if choice is type(None) else " or ".join(map(str, literals)) if literals else choice.__name__


def _json_or_text(text: str) -> Any:
    lower = text.lower()
    if lower in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[lower]
    for read in (json.loads, float):
        try:
            return read(text)
        except (ValueError, RecursionError):
            continue
    return text


def _unknown(name: str, known: list[str]) -> typing.NoReturn:
    tail = name.split(".")[-1]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near += [k for k in known if difflib.SequenceMatcher(None, k.split(".")[-1], tail).ratio() > 0.7]
    shown = list(dict.fromkeys(near)) or known
    raise InputError(
        f"there is no setting {_shown(name)}; {'near names' if near else 'the settings'} are {', '.join(shown)}"
    )
