"""Configuration: frozen dataclasses, changed by dotted overrides such as `method.fraction=0.05`."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from scissorhands_jax import reading
from scissorhands_jax.errors import InputError, check_choice, suggest
from scissorhands_jax.keywords import KEYS, field_docs

UNIONS = (types.UnionType, typing.Union)
"""The origins of the types `A | B`: the second one where A or B is not a class, as `Literal` is not."""
_SHOWN = 100  # characters of what someone wrote, in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A network, the data set that it was trained on, and where both are; saved as it is with the results."""

    model: str
    """The name of the network in the registry, such as `resnet20`."""
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the network, such as `dtype`; by default each has the value that the network's module gives it."""
    weights: str | None = None
    """A PyTorch file (.pt .pth .th .tar) or a .safetensors file that holds the network."""
    layout: str | None = None
    """Whose form of the network the file has (`models.layouts`); by default it is found by the names in the file."""
    prefix: str | None = None
    """The prefix of the network's names in the file; by default it is found."""
    rename: str | None = None
    """A file with new names for the arrays of the weights file (`torch_weights.read_renaming`)."""
    ema: bool | None = None
    """Whether averaged weights (EMA) are read from a file that has both; by default the others are, and it is said."""
    check: str | None = None
    """A file with some inputs and what the network answered to them where it comes from (`jobs.logits_check`)."""
    checkpoint: str | None = None
    """The folder of an earlier run, whose result is the network. Name either this or `weights`."""
    dataset: str
    """The name of the data set, such as `cifar10`, or `npz:FILE`, `csv:FILE` or `folder:DIR` for one of your own."""
    data_dir: str | None = None
    """The folder of the data set's files; by default the one that the data set itself looks into."""
    trained_on: str | None = None
    """A file with the positions of the examples that the network was trained on, one on each line; by default all of
    the training set, or what the run in `checkpoint` has saved."""
    forgotten_before: str | None = None
    """A file with the positions of the examples that the network has forgotten before, one on each line; only together
    with `trained_on`. What the run in `checkpoint` has saved then does not count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(NetworkConfig):
    """One unlearning run: a network, what it is to forget, and how; saved as it is with the results."""

    forget: str
    """What is to be forgotten, as `forget_sets.forget_positions` takes it, such as `random:0.1` or `class:3`."""
    validation: str | None = None
    """What tuning looks at: `test:SHARE` sets that share of the test set aside, and the run then reports on the rest;
    `indices:FILE` names training examples that the network was not trained on; by default those are all taken."""
    seed: int = 0
    """The seed of random forget sets and of the run."""
    retain_limit: int | None = None
    """The number of retained examples, drawn at random, that the run uses; by default all of them."""
    augment: bool | None = None
    """Whether training images are cropped and flipped at random; by default as is usual for the data set."""
    method_name: str = "scissorhands"
    """The name of the method in the registry."""
    method: Any = None  # A MethodSettings, whose import would load JAX, which the command line must be able to put off.
    """The settings of the method."""


def override(config: Any, changes: Iterable[str]) -> Any:
    """Changes settings of a dataclass, which may contain further dataclasses and dictionaries.

    Args:
      config: The dataclass, which stays as it is.
      changes: The changes as `dotted.name=value`, applied in order. Values are read by the type of the field: numbers,
        true or false, none, text, or several with commas between them. In a dictionary every name is a setting, and
        its value is read as JSON, several with commas between them, or text.

    Returns:
      A copy with the changes.

    Raises:
      InputError: A change has no "=", names no field (names that resemble it are shown), or its value has another type
        or is no finite number.
    """
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name:
            raise InputError(f"cannot read the setting {_shown(change)}; write name=value, e.g. method.fraction=0.05")
        config = _set(config, name.split("."), name, text)
    return config


def check_finite_settings(settings: Any, name: str = "") -> None:
    """Refuses settings that no file of results and no identity can hold, before anything runs with them.

    Args:
      settings: Numbers, text and the like in dictionaries, sequences and dataclasses.
      name: The dotted name of the settings, for the message.

    Raises:
      InputError: A number is NaN or infinite.
    """
    if isinstance(settings, float) and not math.isfinite(settings):
        raise InputError(f"{name} must be a finite number, got {settings}")
    if dataclasses.is_dataclass(settings):
        settings = vars(settings)
    elif isinstance(settings, list | tuple):
        settings = dict(enumerate(settings))
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            check_finite_settings(value, f"{name}.{key}" if name else str(key))


def setting_names(config: Any, prefix: str = "") -> list[str]:
    """All dotted names that `override` takes.

    Args:
      config: The dataclass with the settings.
      prefix: What stands before each name, such as "method.".
    """
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names += setting_names(value, f"{prefix}{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


def describe_settings(settings: Any, prefix: str = "") -> dict[str, tuple[str, str]]:
    """The settings of a dataclass by the dotted names that `override` takes, each with its value and documentation.

    For a dictionary with known keys (`keywords.KEYS`) every key is listed as well; the value of one that the dictionary
    does not have is shown as "unchanged".

    Args:
      settings: The dataclass, whose values are the defaults.
      prefix: What stands before each name, such as "method.".
    """
    described: dict[str, tuple[str, str]] = {}
    docs = field_docs(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            described |= describe_settings(value, f"{prefix}{field.name}.")
            continue
        described[prefix + field.name] = (_value_text(value), " ".join(docs.get(field.name, "").split()))
        if KEYS in field.metadata:
            for key, text in field_docs(field.metadata[KEYS]).items():
                shown = _value_text(value[key]) if key in value else "unchanged"
                described[f"{prefix}{field.name}.{key}"] = (shown, " ".join(text.split()))
    return described


def _value_text(value: Any) -> str:
    """A value as `override` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(_value_text, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}={_value_text(item)}" for name, item in value.items()) or "none"
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def _set(config: Any, path: list[str], name: str, text: str) -> Any:
    head, rest = path[0], path[1:]
    prefix = name.removesuffix(".".join(path))
    if isinstance(config, dict):
        if rest:
            raise _unknown(name, [prefix + head])
        value = _json_or_text(text)
        check_finite_settings(value, name)
        return {**config, head: value}
    names = [field.name for field in dataclasses.fields(config)]
    if head not in names:
        raise _unknown(name, setting_names(config, prefix))
    value = getattr(config, head)
    holds_settings = dataclasses.is_dataclass(value) or isinstance(value, dict)
    if rest and holds_settings:
        return dataclasses.replace(config, **{head: _set(value, rest, name, text)})
    if rest:
        raise _unknown(name, setting_names(config, prefix))
    if holds_settings:
        raise InputError(f"{name} holds several settings; write {name}.NAME=value")
    hint = typing.get_type_hints(type(config))[head]
    change = {head: parse_value(text, hint, name)}
    # Settings that depend on one another change together.
    changed = config.changed(**change) if hasattr(config, "changed") else dataclasses.replace(config, **change)
    check_finite_settings(getattr(changed, head), name)
    return changed


def parse_value(text: str, hint: Any, name: str) -> Any:
    """Reads text as a value of an annotated type.

    Args:
      text: The text that a user wrote.
      hint: The annotation, such as `int | None`, `Literal["a", "b"]`, `Path` or `tuple[float, ...]`.
      name: The name of the setting or option, for the message.

    Raises:
      InputError: The text is not a value of this type.
    """
    choices = typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)
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
        if choice in (str, Path):
            return choice(text)
        if text in typing.get_args(choice):
            return text
    words = [word for choice in choices for word in typing.get_args(choice) or ("none",)]
    if all(typing.get_origin(choice) is Literal or choice is type(None) for choice in choices):
        check_choice(name, _shortened(text), words)
    expected = " or ".join(_expected(choice) for choice in choices)
    raise InputError(f"{name} must be {expected}, got {_shown(text)}")


def _expected(choice: Any) -> str:
    """What a value of a type may be, in words."""
    if typing.get_origin(choice) is Literal:
        return ", ".join(map(str, typing.get_args(choice)))
    return "none" if choice is type(None) else choice.__name__


def _parse_tuple(text: str, hint: Any, name: str, choices: tuple) -> tuple | None:
    """Values with commas between them; `none` is the empty tuple, or None where that is allowed."""
    if text.lower() in ("none", "null"):
        return None if type(None) in choices else ()
    item_types = typing.get_args(hint)
    words = text.split(",")
    if item_types[-1] is Ellipsis:
        item_types = (item_types[0],) * len(words)
    if len(words) != len(item_types):
        raise InputError(f"{name} must be {len(item_types)} values with commas between them, got {_shown(text)}")
    return tuple(parse_value(word, kind, name) for word, kind in zip(words, item_types, strict=True))


def _shown(text: str) -> str:
    return repr(_shortened(text))


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _json_or_text(text: str) -> Any:
    lower = text.lower()
    if lower in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[lower]
    for read in (functools.partial(reading.parse_json, nan=True), float):
        try:
            return read(text)
        except ValueError:
            continue
    parts = [_json_or_text(part) for part in text.split(",")] if "," in text else [text]
    return text if any(isinstance(part, str) for part in parts) else parts


def _unknown(name: str, known: list[str]) -> InputError:
    return InputError(f"there is no setting {_shown(name)}; {suggest(name, known)}; --help-settings explains them all")
