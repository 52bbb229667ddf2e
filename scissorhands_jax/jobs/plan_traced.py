"""The memory that a program needs for itself, estimated from its trace: for accelerators that are not here.

Compiling a large program takes minutes, and what a compiler says holds for its own device. Tracing takes seconds. The
estimate walks through the operations in the order in which they were written and adds up the arrays that are still
needed. It knows three habits of compilers: views such as reshapes are no new arrays, what is broadcast is not stored,
and an element-wise operation writes over an argument that is not needed any more. It does not know what else a compiler
fuses or reorders, which makes it too large, nor the scratch memory of convolutions, which makes it too small.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from scissorhands_jax.base import PyTree

_CALLS = frozenset(
    ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call")
)
_VIEWS = frozenset(
    ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "optimization_barrier", "stop_gradient")
)
_ELEMENTWISE = frozenset(
    (
        *("add", "add_any", "sub", "mul", "div", "neg", "max", "min", "abs", "sign", "square", "sqrt", "rsqrt", "pow"),
        *("integer_pow", "exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "sin", "cos", "select_n"),
        *("convert_element_type", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "is_finite", "clamp", "copy"),
        *("real", "imag", "floor", "ceil", "round", "rem", "nextafter", "atan2", "cbrt"),
    )
)


def traced_bytes(function: Callable, *arguments: PyTree, donated: bool = True) -> int:
    """Estimates the bytes that a function needs in addition to its arguments, at most at any time.

    Args:
      function: A function of arrays.
      *arguments: Its arguments; arrays or their shapes.
      donated: Whether results take the place of arguments and need no memory of their own.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    program = _Program()
    results = program.read(closed.jaxpr, [None] * len(closed.jaxpr.invars))
    return program.peak(results, counted=not donated)


@dataclasses.dataclass
class _Operation:
    """An operation on arrays that have numbers; None is an argument of the whole program, or no array."""

    reads: list[int | None]
    makes: list[int]
    inner: int = 0  # bytes that a loop or a branch needs for itself
    in_place: bool = False  # element by element


class _Program:
    """The operations of a program, with those of the functions that it calls in their places."""

    def __init__(self) -> None:
        self._operations: list[_Operation] = []
        self._sizes: dict[int, int] = {}
        self._count = itertools.count()

    def read(self, jaxpr: Any, arguments: Sequence[int | None]) -> list[int | None]:
        """Appends the operations of a function, given the numbers of its arguments; returns those of its results."""
        numbers: dict[Any, int | None] = dict.fromkeys(jaxpr.constvars)
        numbers.update(zip(jaxpr.invars, arguments, strict=True))

        def of(atom: Any) -> int | None:
            return None if isinstance(atom, core.Literal) else numbers[atom]

        for eqn in jaxpr.eqns:
            given = [of(atom) for atom in eqn.invars]
            name = eqn.primitive.name
            called = _called(eqn) if name in _CALLS else None
            made: list[int | None]
            if called is not None:
                made = self.read(called, given)
            elif name in _VIEWS:
                made = given[: len(eqn.outvars)]
            else:
                fresh = [self._make(atom.aval) for atom in eqn.outvars]
                self._operations.append(_Operation(given, fresh, _inner(eqn), name in _ELEMENTWISE))
                made = [*fresh]
            numbers.update(zip(eqn.outvars, made, strict=True))
        return [of(atom) for atom in jaxpr.outvars]

    def peak(self, results: Sequence[int | None], *, counted: bool) -> int:
        """The most bytes of arrays that are needed at a time.

        Args:
          results: The numbers of the results, which are needed to the end.
          counted: Whether results count.
        """
        last = {number: place for place, one in enumerate(self._operations) for number in one.reads}
        last |= dict.fromkeys(results, len(self._operations))
        sizes = dict(self._sizes)
        if not counted:
            sizes |= {number: 0 for number in results if number is not None}
        live = highest = 0
        for place, one in enumerate(self._operations):
            made = sum(sizes[number] for number in one.makes)
            ends = {number for number in one.reads if number is not None and last[number] == place}
            freed = sum(sizes[number] for number in ends)
            highest = max(highest, live + max(one.inner, max(made - freed, 0) if one.in_place else made))
            unread = sum(sizes[number] for number in one.makes if number not in last)
            live += made - freed - unread
        return highest

    def _make(self, aval: Any) -> int:
        number = next(self._count)
        self._sizes[number] = _nbytes(aval)
        return number


def _called(eqn: Any) -> Any:
    """The body of a function that is called, or None."""
    found = next((eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params), None)
    return getattr(found, "jaxpr", found)


def _inner(eqn: Any) -> int:
    """What one pass through a loop, or the larger branch of a choice, needs for itself."""
    bodies: list[Any] = []
    for value in eqn.params.values():
        bodies += [
            one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, core.ClosedJaxpr)
        ]
    found = 0
    for body in bodies:
        program = _Program()
        results = program.read(body.jaxpr, [None] * len(body.jaxpr.invars))
        found = max(found, program.peak(results, counted=True))
    return found


def _nbytes(aval: Any) -> int:
    if not hasattr(aval, "shape") or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
        return 0
    return int(np.prod(aval.shape, dtype=np.int64)) * aval.dtype.itemsize
