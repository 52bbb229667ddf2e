"""Keyword arguments that are declared and documented once, as the fields of a dataclass.

The documentation of a field is the string below it. A function that `takes` the dataclass has a keyword argument for
each field, and the same fields can be part of the settings of an experiment, so that no default and no explanation is
written twice:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class FinetuneOptions:
        batch_size: int = 256
        \"\"\"The number of retain examples that a step sees.\"\"\"

    @takes(FinetuneOptions)
    def finetune(loss_fn: StatefulLossFn, optimizer: GradientTransformation, options: FinetuneOptions) -> Method:
        ...

    finetune(loss_fn, optimizer, batch_size=128)
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

REST = {"rest": True}
"""Metadata of a field of type `dict[str, Any]`, which collects keyword arguments that have no field of their own."""
KEYS = "keys"
"""An entry of the metadata of a field of type `dict[str, Any]`: a dataclass whose fields are the possible keys."""
CHECKS: dict[str, Callable[[Any], None]] = {}
"""Checks by the name of an argument, such as `loss_fn`: every function that `takes` options makes those of its own."""
_WIDTH = 100  # columns of a generated docstring

_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")
_Result = TypeVar("_Result")
_Options = TypeVar("_Options")
_Fields = ParamSpec("_Fields")


class _Expand(Protocol[_Fields, _Options]):  # type: ignore[misc]
    """The type of what `takes` returns: it turns the last argument of a function into keyword arguments."""

    @overload
    def __call__(
        self, function: Callable[[_A, _Options], _Result], /
    ) -> Callable[Concatenate[_A, _Fields], _Result]: ...
    @overload
    def __call__(
        self, function: Callable[[_A, _B, _Options], _Result], /
    ) -> Callable[Concatenate[_A, _B, _Fields], _Result]: ...
    @overload
    def __call__(
        self, function: Callable[[_A, _B, _C, _Options], _Result], /
    ) -> Callable[Concatenate[_A, _B, _C, _Fields], _Result]: ...


def takes(options: Callable[_Fields, _Options]) -> _Expand[_Fields, _Options]:
    """Decorates a function so that it takes the fields of a dataclass as keyword arguments.

    The function itself takes an object of the dataclass as its last argument; its other arguments stay as they are.
    The signature and the docstring of the result list every field, with the documentation that follows the field in
    the dataclass.

    Args:
      options: The dataclass. A field with the metadata `REST` becomes `**name`; it can also be given as one dictionary.

    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Options:
    ...     factor: int = 2
    >>> @takes(Options)
    ... def scaled(number: int, options: Options) -> int:
    ...     return number * options.factor
    >>> scaled(3, factor=5)
    15
    """

    def expand(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = _expanded(function, options)
        given = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        collected = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]

        @functools.wraps(function)
        def expanded(*args: Any, **kwargs: Any) -> Any:
            try:
                arguments = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            positional = [arguments.pop(name) for name in given]
            for name, value in zip(given, positional, strict=True):
                if name in CHECKS:
                    CHECKS[name](value)
            for name in collected:
                loose = arguments.get(name, {})
                arguments[name] = loose.pop(name, {}) | loose
            return function(*positional, options(**arguments))  # type: ignore[call-arg]

        expanded.__signature__ = signature  # type: ignore[attr-defined]
        docs = field_docs(options)  # type: ignore[arg-type]
        expanded.__doc__ = _with_arguments(inspect.getdoc(function) or "", docs, signature)
        return expanded

    return expand


def field_docs(kind: type) -> dict[str, str]:
    """Returns the documentation of the fields of a dataclass: for each field, the string that follows it.

    A field that a subclass declares again, for another default, keeps the documentation of the base class unless the
    subclass documents it as well.

    Args:
      kind: A dataclass. It must have been written in a source file, because Python does not keep these strings.

    Returns:
      Texts without indentation by the names of the fields, in the order of the fields. Fields without documentation
      are left out.
    """
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_field_docs(base)
    return {field.name: docs[field.name] for field in dataclasses.fields(kind) if field.name in docs}


@functools.cache
def _own_field_docs(kind: type) -> dict[str, str]:
    """Returns the documentation of the fields that this class itself declares."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # Programs can be shipped without their source.
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


def _expanded(function: Callable[..., Any], options: Any) -> inspect.Signature:
    """Returns the signature of a function with its last parameter replaced by the fields of a dataclass."""
    own = inspect.signature(function)
    rest = [field.name for field in dataclasses.fields(options) if field.metadata.get("rest")]
    fields = list(inspect.signature(options).parameters.values())
    named = [parameter for parameter in fields if parameter.name not in rest]
    # Fields without a default come first, where readers look for them.
    named.sort(key=lambda parameter: parameter.default is not parameter.empty)
    collected = [inspect.Parameter(name, inspect.Parameter.VAR_KEYWORD) for name in rest]
    return own.replace(parameters=[*list(own.parameters.values())[:-1], *named, *collected])


def _with_arguments(text: str, docs: dict[str, str], signature: inspect.Signature) -> str:
    """Adds the documentation of arguments to the end of the Args section of a docstring."""
    entries = []
    for parameter in signature.parameters.values():
        if parameter.name in docs:
            stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
            entry = f"{stars}{parameter.name}: {' '.join(docs[parameter.name].split())}"
            entries.append(textwrap.fill(entry, _WIDTH, initial_indent="  ", subsequent_indent="    "))
    sections = re.split(r"\n\n(?=\S)", text)
    places = [i for i, section in enumerate(sections) if section.startswith("Args:\n")]
    if places:
        sections[places[0]] = "\n".join([sections[places[0]].rstrip(), *entries])
    else:
        later = (i for i, s in enumerate(sections) if s.startswith(("Returns:", "Raises:", "References:", "Example:")))
        sections.insert(next(later, len(sections)), "\n".join(["Args:", *entries]))
    return "\n\n".join(sections)
