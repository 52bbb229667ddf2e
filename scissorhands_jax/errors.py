"""Errors that a person can act on. A message is one sentence: what was wrong, what was found, and what to do."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any


class InputError(ValueError):
    """Something that the caller passed in cannot be used. The message alone should suffice to put it right."""


class WeightsError(InputError):
    """A weights file is damaged, is unsafe to read, or belongs to another network."""


class CheckpointError(InputError):
    """A checkpoint is missing, incomplete, or belongs to another run."""


class PeerError(RuntimeError):
    """Another process of the same run died or cannot be reached."""


class BusyError(InputError):
    """Another process is writing to the same folder."""


class LedgerError(InputError):
    """A ledger or record is missing, is damaged, was changed by hand, or cannot be written."""


class DivergedError(InputError):
    """What a network gives is NaN or infinite, because the run that made it diverged."""


class NonFiniteError(DivergedError):
    """A loss, a gradient or a weight became NaN or infinite.

    Args:
      step: The number of the step at which it happened.
      metric: The name of the metric, or of the array of the network.
      value: What it is, or has in it: NaN or infinity.
      advice: The end of the message: what to do about it.
    """

    def __init__(self, step: int, metric: str, value: float, advice: str) -> None:
        super().__init__(f"{metric} is {value} at step {step}; {advice}")
        self.step = step
        self.metric = metric


def suggest(word: object, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown name: the known names that resemble it, or else all of them.

    Dotted names, such as those of settings, are also compared by their last part alone.

    Args:
      word: The name that was given. A value that is not a string is compared as `str` writes it.
      known: The names that could have been given.

    >>> suggest("resnet_18", ["resnet18", "mlp"])
    'near matches: resnet18'
    >>> suggest("fraction", ["seed", "method.fraction"])
    'near matches: method.fraction'
    >>> suggest("zzz", ["resnet18", "mlp"])
    'choose one of resnet18, mlp'
    """
    text, names = str(word), list(known)
    near = difflib.get_close_matches(text, names)
    if any("." in name for name in names):
        last = text.rpartition(".")[2]
        near += [name for name in names if difflib.SequenceMatcher(None, name.rpartition(".")[2], last).ratio() > 0.7]
    if near:
        return f"near matches: {', '.join(dict.fromkeys(near))}"
    return f"choose one of {', '.join(names)}"


MAX_SEED = 2**32 - 1
"""The largest seed. JAX would take larger ones for others, which give the same numbers."""


def check_seed(seed: int) -> None:
    """Raises an error unless a number can be a seed.

    Args:
      seed: The number that was given, of Python or another library.

    Raises:
      InputError: It is negative, larger than `MAX_SEED`, or no whole number, which a float is not either.
    """
    try:
        fits = 0 <= operator.index(seed) <= MAX_SEED
    except TypeError:
        fits = False
    if not fits:
        raise InputError(f"the seed must be a whole number from 0 to {MAX_SEED}, got {seed}")


def check_not_negative(name: str, value: float, meaning: str = "") -> None:
    """Raises an error unless a number is finite and at least 0.

    Args:
      name: The name of the setting, for the message.
      value: The value that was given.
      meaning: The end of the message: what the number is.

    Raises:
      InputError: It is negative, infinite or no number.
    """
    if not value >= 0:
        raise InputError(f"{name} must not be negative, got {value}{meaning}")
    if value == math.inf:
        raise InputError(f"{name} must be finite, got {value}{meaning}")


def check_finite_number(name: str, value: float) -> None:
    """Raises an error unless a number is finite.

    Args:
      name: The name of the setting, for the message.
      value: The value that was given.

    Raises:
      InputError: It is infinite or no number.
    """
    if not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, got {value}")


def check_positive(name: str, value: float) -> None:
    """Raises an error unless a number is finite and above 0.

    Args:
      name: The name of the setting, for the message.
      value: The value that was given.

    Raises:
      InputError: It is not above 0, infinite or no number.
    """
    if not value > 0:
        raise InputError(f"{name} must be above 0, got {value}")
    if value == math.inf:
        raise InputError(f"{name} must be finite, got {value}")


def check_whole(name: str, value: Any, least: int) -> int:
    """Returns a whole number, as an int of Python.

    Args:
      name: The name of the setting, for the message.
      value: The value that was given, of Python or another library.
      least: The smallest value that is allowed.

    Raises:
      InputError: It is smaller, or no whole number, which a float is not either.
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InputError(f"{name} must be a whole number, got {value!r}; make an int of it") from error
    if number < least:
        raise InputError(f"{name} must be at least {least}, got {number}")
    return number


def listed(names: Sequence[str], shown: int = 10) -> str:
    """Joins the first few names for a message, and says how many more there are.

    >>> listed(["a", "b", "c"], shown=2)
    'a, b and 1 more'
    """
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises an error unless a value is one of several words.

    Args:
      name: The name of the setting, for the message.
      value: The value that was given.
      choices: The words that are allowed.

    Raises:
      InputError: The value is not one of the choices.
    """
    choices = tuple(choices)
    if value not in choices:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
