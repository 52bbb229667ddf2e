"""What determines a result: one description and one digest, by which runs are told apart wherever they meet.

Checkpoints, the folders of runs, the cells of tables and audits, and the processes of one run all compare what
`identify` returns. It has two parts, which are treated in different ways.

* What was chosen: settings, loss and method, data, forget set, weights, key, and options such as precision. Where it
  differs, it is another run, which is refused.
* The environment: versions, devices, processes, the machine. Where it differs, a run is continued, because that is what
  moving to another machine means, and a warning says that its bits may differ.

Within one run of many processes both must agree, except for what may differ from machine to machine.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax

from scissorhands_jax import hashing
from scissorhands_jax.errors import InputError
from scissorhands_jax.training.descriptions import CODE, describe_value
from scissorhands_jax.training.reproducibility import numerical_environment, numerical_options

ENVIRONMENT = "environment"
"""The key of a document for the environment, which is not from `chosen`."""
DIGEST = "identity"
"""The key of a document for the digest, which is not from `chosen`."""
OPTIONS = "options"
"""The key of a document for the options of `identify`, which are not from `chosen`."""

_REPLACED = {"trained_on", "train_checksum", "training_data_checksum", "watched_data_checksum"}
"""Checksums that earlier versions saved in addition to the SHA-256 of the same data."""

_OF_ONE_MACHINE = {"processor", "cores"}  # may differ between the machines of one run
_SHOWN = 3  # differences that are named
_SHOWN_LENGTH = 60  # characters of a value
_HASH = re.compile("[0-9a-f]{32,}")
_SHOWN_HASH = 16
_MAX_PARTS = 2  # of a name, between the first and the last
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Identity:
    """Everything that determines a result; see the module. Made by `identify`."""

    chosen: Mapping[str, Any]
    """What was chosen, as JSON."""
    environment: Mapping[str, str]
    """Where it is computed."""
    noted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What is saved as well but decides nothing, such as where a file lies whose content is in `chosen`."""

    @classmethod
    def of_document(cls, document: Mapping[str, Any], noted: Collection[str] = ()) -> Identity:
        """Returns what `document` has written.

        Args:
          document: What was saved, as JSON.
          noted: The names of what was noted.

        Raises:
          InputError: Its content does not have the digest that it names, or an earlier version has saved none.
        """
        parts = {name: value for name, value in document.items() if name not in (ENVIRONMENT, DIGEST)}
        chosen = {name: value for name, value in parts.items() if name not in noted}
        found = cls(chosen, document.get(ENVIRONMENT, {}), {name: parts[name] for name in parts.keys() - chosen.keys()})
        if document.get(DIGEST) != found.digest:
            raise InputError("its content does not have the digest that it names")
        return found

    @property
    def digest(self) -> str:
        """The SHA-256 of both parts, in hexadecimal."""
        parts = {"chosen": self.chosen, ENVIRONMENT: self.environment}
        return hashing.sha256(hashing.stable_json(hashing.without_floats(parts)))

    def compared(self) -> dict[str, Any]:
        """What the processes of one run must agree on, as JSON: everything but what is noted, and the processors."""
        environment = {name: value for name, value in self.environment.items() if name not in _OF_ONE_MACHINE}
        return {**self.chosen, ENVIRONMENT: environment}

    def document(self) -> dict[str, Any]:
        """What is saved of it: what was chosen and noted, the environment and the digest, as JSON."""
        return {**self.noted, **self.chosen, ENVIRONMENT: dict(self.environment), DIGEST: self.digest}


def identify(chosen: Mapping[str, Any], layout: str | None = None, noted: Mapping[str, Any] | None = None) -> Identity:
    """Describes everything that determines a result.

    Args:
      chosen: What was chosen, by name: settings, functions, hashes, anything that `describe_value` takes. The
        options of JAX and XLA that change what is computed are added as `options`.
      layout: How the work is divided over devices. By default it is not.
      noted: What is saved as well but decides nothing, as JSON.

    Raises:
      InputError: Something cannot be described; the error says what, and how to name it.
    """
    described = {name: describe_value(value, name) for name, value in chosen.items()}
    described = json.loads(json.dumps(described | {OPTIONS: numerical_options()}))
    return Identity(described, numerical_environment() | {"layout": layout or "one device"}, noted or {})


def check_same(saved: Mapping[str, Any], now: Identity, where: str, advice: str, *, warn: bool = True) -> None:
    """Refuses to continue a run as another one, and warns if it is continued in another environment.

    Args:
      saved: The document of the run that was begun (`Identity.document`).
      now: What is to be continued.
      where: What holds the run that was begun, such as "the checkpoint in RUN".
      advice: What to do about it.
      warn: Whether a warning is logged where the environment differs, or where an earlier version of the package has
        not saved everything that is compared.

    Raises:
      InputError: Something else was chosen. The error names the first three differences with both values.
    """
    saved_environment = saved.get(ENVIRONMENT)
    environment = dict(saved_environment) if isinstance(saved_environment, dict) else {}
    left_out = {ENVIRONMENT, DIGEST, *now.noted, *(_REPLACED - now.chosen.keys())}
    chosen = {name: value for name, value in saved.items() if name not in left_out}
    unsaved = [] if DIGEST in saved else [name for name in now.chosen if name not in saved]
    expected = {name: value for name, value in now.chosen.items() if name not in unsaved}
    found = list(differences(chosen, json.loads(json.dumps(expected))))
    if _minor(environment) != _minor(now.environment):
        # Bytecode of another version of Python cannot be compared; the warning below names both versions.
        found = [(name, *values) for name, *values in found if not name.endswith(CODE)]
    if found:
        raise InputError(f"{where} belongs to another run: {list_differences(found, 'was {} and is now {}')}; {advice}")
    if not warn or jax.process_index() > 0:
        return
    if unsaved:
        _logger.warning(
            "%s is from an earlier version of scissorhands_jax, which did not save %s, so make sure that they are as "
            "they were",
            where,
            ", ".join(unsaved),
        )
    moved = list(differences(environment, dict(now.environment)))
    if moved and environment:
        _logger.warning(
            "%s is continued in another environment (%s), so that its result may differ from that of a run that was "
            "never stopped, by rounding or by what other versions compute",
            where,
            list_differences(moved, "was {} and is now {}", at_most=len(moved)),
        )


def differences(was: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Finds the settings in which two descriptions differ.

    Args:
      was: JSON-able.
      now: JSON-able.
      name: The name of the two.

    Yields:
      The name of each setting, with dots, and its two values; None for a setting that one of them lacks. Mappings in
      lists are named by their `name` if they have one, and otherwise by their number from 1 on.

    >>> list(differences({"a": 1, "b": [{"name": "x", "c": 2}]}, {"a": 1, "b": [{"name": "x", "c": 3}]}))
    [('b.x.c', 2, 3)]
    """
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**now, **was}:
            yield from differences(was.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    elif _are_mappings(was) and _are_mappings(now) and len(was) == len(now):
        for number, (one, other) in enumerate(zip(was, now, strict=True), 1):
            yield from differences(one, other, f"{name}.{one.get('name', number)}")
    elif was != now and not (was != was and now != now):  # NaN is what it was.
        yield name, was, now


def list_differences(found: Collection[tuple[str, Any, Any]], pattern: str, *, at_most: int = _SHOWN) -> str:
    """Writes differences as text.

    Args:
      found: What `differences` yields, at least one.
      pattern: A text with two places for the two values.
      at_most: How many are named; the others are counted. Those that repeat a named one elsewhere are left out.
    """
    once: dict[tuple, tuple] = {}
    for name, was, now in found:
        once.setdefault((name.rpartition(".")[2], repr(was), repr(now)), (name, was, now))
    shown = [*once.values()]
    texts = [f"{_short_name(name)} {pattern.format(_shown(was), _shown(now))}" for name, was, now in shown[:at_most]]
    more = len(shown) - at_most
    return "; ".join([*texts, *([f"and {more} more"] if more > 0 else [])])


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _short_name(name: str) -> str:
    """Shortens a long way through the parts of functions to its ends.

    >>> _short_name("method.fraction"), _short_name("method.step.loss_fn.model.apply.(code)")
    ('method.fraction', 'method...apply.(code)')
    """
    first, *inner, last = name.split(".") if "." in name else (name, "")
    if len(inner) < _MAX_PARTS:
        return name
    return f"{first}...{inner[-1]}.{last}" if last.startswith("(") else f"{first}...{last}"


def _minor(environment: Mapping[str, Any]) -> list[str]:
    return str(environment.get("python", "")).split(".")[:2]


def _shown(value: Any) -> str:
    text = value[:_SHOWN_HASH] if isinstance(value, str) and _HASH.fullmatch(value) else repr(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH // 3]}...{text[-_SHOWN_LENGTH // 2 :]}"
