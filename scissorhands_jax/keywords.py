"""Keyword arguments that are declared and documented once, as the fields of a dataclass.

The documentation of a field is the string below it:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class FinetuneOptions:
        batch_size: int = 256
        \"\"\"The number of retain examples that a step sees.\"\"\"

`field_docs` reads it, for the help of a command line.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap


def field_docs(kind: type) -> dict[str, str]:
    """The documentation of the fields of a dataclass by their names: for each field the string that follows it.

    A field that a subclass declares again, for another default, keeps the documentation of the base class unless the
    subclass documents it as well.

    Args:
      kind: A dataclass. It must have been written in a source file, since the strings are only there.

    Returns:
      Texts without indentation, in the order of the fields. Fields without documentation are left out.
    """
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_field_docs(base)
    return {field.name: docs[field.name] for field in dataclasses.fields(kind) if field.name in docs}


@functools.cache
def _own_field_docs(kind: type) -> dict[str, str]:
    """The documentation that stands in the body of this class itself."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # A program can be shipped without its source.
        return {}
    definition = ast.parse(textwrap.dedent(source)).body[0]
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, text in itertools.pairwise(definition.body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            docs[field.target.id] = inspect.cleandoc(text.value.value)
    return docs
