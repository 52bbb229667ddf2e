"""Numbers in texts that users write: what is one, which texts spell the same one, and the order of labels by value."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from scissorhands_jax.errors import InputError

_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")  # with the digits of every script
_WHOLE = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE)


def is_numeral(text: str) -> bool:
    """Says whether `float` reads a text, but for what it takes besides: underscores, spaces, digits of other scripts.

    >>> [text for text in ("-1.5", "1e3", "nan", "1_0", " 7", "٧", "cat") if is_numeral(text)]
    ['-1.5', '1e3', 'nan']
    """
    return _NUMBER.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """Says whether a text is a label as a number: one to nine digits, 0 to 9."""
    return _WHOLE.fullmatch(text) is not None


def value_of(text: str) -> Decimal | None:
    """Returns the number that a text spells with a sign, digits and a point, or None if it is none.

    Texts with an exponent or an underscore are names, because the names `1e1` and `1_0` are as likely as the numbers.
    The digits may be those of any script, so that what looks like two labels and is read as one number is found.

    >>> [value_of(text) for text in ("07", "+7", "7.0", "７", "1e1", "cat")]
    [Decimal('7'), Decimal('7'), Decimal('7.0'), Decimal('7'), None, None]
    """
    return Decimal(text) if _DECIMAL.fullmatch(text) else None


def by_value(names: Iterable[str]) -> list[str]:
    """Sorts names of classes: by value if all are numbers (`value_of`), and else with the numbers in them by value.

    >>> by_value(["1", "-1", "0.5", "0.25"]), by_value(["s10", "s2"])
    (['-1', '0.25', '0.5', '1'], ['s2', 's10'])
    """
    values = {name: value_of(name) for name in names}
    numbers = {name: value for name, value in values.items() if value is not None}
    if len(numbers) == len(values):
        return sorted(numbers, key=lambda name: (numbers[name], name))
    return sorted(values, key=_natural)


def check_spellings(labels: Iterable[str], where: str) -> None:
    """Refuses labels of which two spell one number, as 1 and 01 do: nobody knows whether they are one class or two.

    Args:
      labels: The labels, as they are written.
      where: What holds them, for the message.

    Raises:
      InputError: There are two such labels.
    """
    seen: dict[Decimal, str] = {}
    for label in sorted(set(labels)):
        value = value_of(label)
        if value is not None and seen.setdefault(value, label) != label:
            raise InputError(
                f"the labels {seen[value]!r} and {label!r} in {where} are two spellings of one number; write each "
                "label in one way, or as a name with a letter in it if they are two classes"
            )


def _natural(name: str) -> list[tuple[int, Decimal, str]]:
    """Returns a key that sorts names with the numbers in them by value: s2 before s10."""
    parts = re.split(r"(\d+)", name)
    return [(1, Decimal(part), part) if part.isdecimal() else (0, Decimal(0), part) for part in parts]
