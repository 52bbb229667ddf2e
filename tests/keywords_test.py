"""Keyword arguments from dataclasses: signature, docstring, refusals, and the documentation of fields."""

import dataclasses
import inspect
from typing import Any

import pytest

from scissorhands_jax.keywords import REST, field_docs, takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    size: int = 2
    """The size,
    in metres."""
    undocumented: bool = False
    more: dict[str, Any] = dataclasses.field(default_factory=dict, metadata=REST)
    """Anything else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    name: str
    """The name."""
    size: int = 3


@takes(Arguments)
def described(first: int, second: int, options: Arguments) -> tuple:
    """Describes.

    Args:
      first: The first.
      second: The second.

    Returns:
      Everything.
    """
    return first, second, options


@takes(Arguments)
def brief(first: int, options: Arguments) -> int:
    """In brief.

    Raises:
      ValueError: Never.
    """
    return first


def test_a_call_with_keywords_is_one_with_the_dataclass():
    assert described(1, 2, name="a") == (1, 2, Arguments(name="a"))
    assert described(1, second=2, name="a", size=5) == (1, 2, Arguments(name="a", size=5))
    assert described(second=2, first=1, name="a", weight=7)[2].more == {"weight": 7}
    assert described(1, 2, name="a", more={"weight": 7, "depth": 1}, depth=2)[2].more == {"weight": 7, "depth": 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: described(1, 2), r"described\(\) missing a required (keyword-only )?argument: 'name'"),
        (lambda: described(1, 2, "a"), r"described\(\) too many positional arguments"),
        (lambda: described(1, name="a"), r"described\(\) missing a required argument: 'second'"),
    ],
)
def test_a_wrong_call_is_a_type_error_of_the_function(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_signature_and_docstring_list_all_arguments():
    parameters = inspect.signature(described).parameters
    assert list(parameters) == ["first", "second", "name", "size", "undocumented", "more"]
    assert [parameters[name].kind.description for name in ("second", "name", "more")] == [
        "positional or keyword",
        "keyword-only",
        "variadic keyword",
    ]
    assert parameters["size"].default == 3
    assert described.__doc__ == (
        "Describes.\n\nArgs:\n  first: The first.\n  second: The second.\n  name: The name.\n"
        "  size: The size, in metres.\n  **more: Anything else.\n\nReturns:\n  Everything."
    )
    assert brief.__doc__.startswith("In brief.\n\nArgs:\n  name: The name.\n  size: The size, in metres.\n")
    assert brief.__doc__.endswith("\n\nRaises:\n  ValueError: Never.")
    assert (described.__name__, described.__module__) == ("described", __name__)


def test_documentation_is_inherited_and_in_the_order_of_the_fields():
    assert field_docs(Arguments) == {"size": "The size,\nin metres.", "more": "Anything else.", "name": "The name."}
    unwritten = dataclasses.make_dataclass("Unwritten", ["x"])
    assert field_docs(unwritten) == {}
