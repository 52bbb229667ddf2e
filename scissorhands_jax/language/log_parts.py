"""A part of an evaluation's log, with readers that refuse what is damaged and say where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scissorhands_jax.errors import InputError
from scissorhands_jax.language.answer_scores import Series

AGAIN = "evaluate the network again"
"""What to do about a damaged log."""
_ROUNDING = 1e-3  # by which numbers may lie outside their range, because networks compute in bfloat16


class NumberRange(NamedTuple):
    """The numbers that a measure can have."""

    low: float
    high: float

    @property
    def text(self) -> str:
        """The range in words."""
        if math.isinf(self.low):
            return "a finite number"
        return f"a finite number {'of 0 or more' if math.isinf(self.high) else f'from {self.low:g} to {self.high:g}'}"


LOSS = NumberRange(0.0, math.inf)
SHARE = NumberRange(0.0, 1.0)
ANY = NumberRange(-math.inf, math.inf)


class LogPart:
    """A part of a log.

    Args:
      path: The log.
      name: The name of the part, for messages.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._where = f"{path}: {name}"

    def error(self, what: str) -> InputError:
        """The error about something in this part.

        Args:
          what: What is wrong, following the name of the part.
        """
        return InputError(f"{self._where}: {what}; {AGAIN}")

    def table(self, value: Any, measure: str) -> dict[str, Any]:
        """Reads an object with an entry for each example.

        Raises:
          InputError: It is no object, or has no entry.
        """
        if isinstance(value, list | str | int | float) and not isinstance(value, bool):
            kind = "list" if isinstance(value, list) else "single value"
            raise self.error(f"{measure} is a {kind} and not an object with an entry for each example")
        if not isinstance(value, dict) or not value:
            raise self.error(f"{measure} has no number for any example")
        return value

    def number(self, value: Any, measure: str, example: str, within: NumberRange) -> float:
        """Reads the number of an example.

        Raises:
          InputError: It is no number, is not finite or lies outside the range by more than rounding.
        """
        of = f"{measure} of example {example[:40]!r} is {str(value)[:40]}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{of} and no number")
        if not within.low - _ROUNDING <= value <= within.high + _ROUNDING or abs(value) > 1e300:
            raise self.error(f"{of} and not {within.text}")
        return float(value)

    def series(self, value: Any, measure: str, within: NumberRange) -> Series:
        """Reads a number for each example.

        Raises:
          InputError: See `table` and `number`.
        """
        table = self.table(value, measure)
        numbers = [self.number(entry, measure, example, within) for example, entry in table.items()]
        return Series(tuple(table), np.array(numbers, np.float64))

    def rows(self, value: Any, measure: str, within: NumberRange) -> tuple[tuple[str, ...], np.ndarray]:
        """Reads a list of numbers for each example; a single number counts as a list of one.

        Returns:
          The examples, and their numbers. shape=(N, K)

        Raises:
          InputError: See `table` and `number`; or lists have different lengths or are empty.
        """
        table = self.table(value, measure)
        rows: list[list[float]] = []
        for example, entry in table.items():
            row = entry if isinstance(entry, list) else [entry]
            if not row or (rows and len(row) != len(rows[0])):
                usual = f", that of the first example {len(rows[0])}" if rows else ""
                raise self.error(f"{measure} of example {example[:40]!r} has {len(row)} numbers{usual}")
            rows.append([self.number(number, measure, example, within) for number in row])
        return tuple(table), np.array(rows, np.float64)

    def check_same_examples(self, examples: Mapping[str, tuple[str, ...]]) -> None:
        """Checks that measures are about the same examples.

        Args:
          examples: The examples of each measure.

        Raises:
          InputError: An example is in one of them and not in another.
        """
        first, *others = examples
        for other in others:
            odd = set(examples[first]) ^ set(examples[other])
            if odd:
                raise self.error(
                    f"{first} has {len(examples[first])} examples and {other} {len(examples[other])}, and "
                    f"{min(odd)[:40]!r} is in one of them only"
                )


def in_order(examples: tuple[str, ...], series: Series) -> np.ndarray:
    """The numbers of a series in the order of other examples, all of which it has."""
    if examples == series.examples:
        return series.values
    position = {example: place for place, example in enumerate(series.examples)}
    return series.values[[position[example] for example in examples]]


def texts_of(table: Any, find: Callable[[Any], Any]) -> dict[str, str]:
    """The texts of examples, as far as a log has them in the usual form.

    Args:
      table: What the log has for each example.
      find: Finds the text in an entry; a KeyError, IndexError or TypeError says that there is none.
    """
    found = {}
    for example, entry in table.items() if isinstance(table, dict) else ():
        try:
            text = find(entry)
        except (KeyError, IndexError, TypeError):
            continue
        if isinstance(text, str):
            found[example] = text.strip()
    return found
