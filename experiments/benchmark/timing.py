"""Measures everything in turn with what it is compared with, so that the ratio also holds on a busy machine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmark.settings import Settings
from scissorhands_jax.training import compilation

OnRound = Callable[[str], None]  # told how far a case has come
Call = Callable[[], Any]  # returns arrays, which are waited for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """The median and the quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns the spread of some numbers."""
        lower, median, upper = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
        return cls(median=median, lower=lower, upper=upper, repeats=len(values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Against:
    """A reference that was timed in turn with the case. The `ratio` is that of case to reference in each round."""

    name: str
    seconds: Spread
    ratio: Spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one case."""

    name: str
    what: str
    seconds: Spread | None = None
    against: tuple[Against, ...] = ()
    compile_seconds: float | None = None  # of the first call; None if this process had compiled it before
    recompilations: int | None = None  # after the first call
    numbers: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    code: str | None = None  # that made it; None if that was not recorded
    load: tuple[float, float] | None = None  # mean number of busy processes over a minute, before and after

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Result:
        """Makes a result of the dictionary that `dataclasses.asdict` made of one and JSON has read."""
        fields = dict(document)
        fields["seconds"] = fields["seconds"] and Spread(**fields["seconds"])
        fields["against"] = tuple(
            Against(name=row["name"], seconds=Spread(**row["seconds"]), ratio=Spread(**row["ratio"]))
            for row in fields["against"]
        )
        fields["load"] = fields["load"] and tuple(fields["load"])
        return cls(**fields)

    def ratio_to(self, name: str) -> float:
        """Returns the median ratio to the reference of that name."""
        return next(row.ratio.median for row in self.against if row.name == name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aim:
    """A promise, and the value by which it is judged."""

    what: str
    case: str
    value: float
    limit: float
    at_least: bool = False  # else at most

    @property
    def met(self) -> bool:
        """Says whether the value is within the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, and whether the aim is met."""
        return {**dataclasses.asdict(self), "met": self.met}


# How it is measured.

_programs = 0


def _on_event(event: str, *_: float, **__: str | int) -> None:
    global _programs
    _programs += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_on_event)


@dataclasses.dataclass
class Timed:
    """The measured calls of one function."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    compile_seconds: float | None = None  # of the first call, None if it compiled nothing
    recompilations: int = 0  # of all later calls


def time_in_turn(
    calls: Mapping[str, Call],
    repeats: int,
    on_round: OnRound | None = None,
    *,
    before: Mapping[str, Call] | None = None,
) -> dict[str, Timed]:
    """Times functions in turn, round after round, so that whatever else the machine does strikes all of them alike.

    Every second round goes backwards.

    Args:
      calls: The functions to time, by name.
      repeats: The number of rounds that count. Two more come before them, the first of which compiles.
      on_round: Is called with a note about every round.
      before: By the same names, a call that is made right before each one and does not count. The first step of JAX
        after one of PyTorch, and the other way round, takes up to twice as long as the second, because the system has
        to find and clear its memory, and threads of PyTorch keep a core busy for 10 ms after their work.
    """
    timed = {name: Timed() for name in calls}
    for turn in range(-2, repeats):
        if on_round is not None:
            on_round("compiles" if turn == -2 else "warms up" if turn == -1 else f"round {turn + 1}/{repeats}")
        for name, call in list(calls.items())[:: -1 if turn % 2 else 1]:
            if before is not None and turn > -2:
                jax.block_until_ready(before[name]())
            programs, compiled, start = _programs, compilation.seconds(), time.perf_counter()
            jax.block_until_ready(call())
            seconds = time.perf_counter() - start
            compilations = _programs - programs
            if turn > -2:
                timed[name].recompilations += compilations
            elif compilations:
                timed[name].compile_seconds = compilation.seconds() - compiled
            if turn >= 0:
                timed[name].seconds.append(seconds)
    return timed


def compare(
    name: str,
    what: str,
    call: Call,
    references: Mapping[str, Call],
    settings: Settings,
    on_round: OnRound,
    before: Mapping[str, Call] | None = None,
) -> Result:
    """Times a function in turn with references, as `time_in_turn` does, and returns the result."""
    timed = time_in_turn({name: call, **references}, settings.repeats, on_round, before=before)
    own = timed[name]
    against = tuple(
        Against(
            name=reference,
            seconds=Spread.of(timed[reference].seconds),
            ratio=Spread.of([a / b for a, b in zip(own.seconds, timed[reference].seconds, strict=True)]),
        )
        for reference in references
    )
    return Result(
        name=name,
        what=what,
        seconds=Spread.of(own.seconds),
        against=against,
        compile_seconds=own.compile_seconds,
        recompilations=own.recompilations,
    )
