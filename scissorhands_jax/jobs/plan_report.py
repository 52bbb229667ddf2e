"""The contents of a plan, and how they are printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from scissorhands_jax.plain_terminal import duration_text
from scissorhands_jax.terminal import Console, Table, literal, say

_TIMES = {
    "starting": "starting the process",
    "reading": "reading data and weights",
    "compiling": "compilation",
    "evaluation": "evaluation, before and after",
    "beginning": "beginning of the method (saliency, trim)",
    "epochs": "beginnings of epochs",
    "steps": "steps",
    "saving": "checkpoints",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedSteps:
    """The steps of one kind."""

    kind: str  # in words
    forget: int | None  # examples of the forget set that a step sees, None if it does not see that set
    retain: int | None
    steps: int | None  # None where the sizes of the sets are not known
    seconds_per_step: float | None  # None where no step was taken
    flops_per_step: float  # on all devices together
    temporaries_bytes: int  # of the program on one device, gradients included


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """A change that needs less memory."""

    what: str
    how: str  # the setting or option that asks for it
    total_bytes: int  # what is then needed
    fits: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostPlan:
    """What a run will cost: the memory of each phase, and where it was predicted the time.

    The memory that a device needs is that of the phase that needs most.
    """

    title: str
    parameters: int
    phases: Mapping[str, Mapping[str, int]]  # bytes by what they are for, by phase
    limit_bytes: int  # what the device has
    kinds: tuple[PlannedSteps, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by what they are spent on
    advice: tuple[Advice, ...] = ()
    hint: str = ""  # what else needs less memory

    @property
    def total_bytes(self) -> int:
        """The memory that a device needs."""
        return max(sum(parts.values()) for parts in self.phases.values())

    @property
    def fits(self) -> bool:
        """Whether the device has the memory."""
        return self.total_bytes <= self.limit_bytes


def print_plan(plan: CostPlan, console: Console) -> None:
    """Prints a plan: tables of steps, memory and time and, if it does not fit, changes that need less memory."""
    if not console.is_terminal:
        console.width = 100
    say(console, plan.title)
    if plan.kinds:
        table = Table("a step with", "steps", "GFLOP", "ms", title="Steps")
        for kind in plan.kinds:
            count = "" if kind.steps is None else f"{kind.steps:,}"
            milliseconds = "" if kind.seconds_per_step is None else f"{1e3 * kind.seconds_per_step:,.3g}"
            table.add_row(literal(kind.kind), count, f"{kind.flops_per_step / 1e9:,.3g}", milliseconds)
        console.print(table)
    console.print(_memory_table(plan))
    if plan.seconds:
        table = Table("part", "time", title="Time", show_footer=True)
        table.columns[0].footer, table.columns[1].footer = "together", duration_text(sum(plan.seconds.values()))
        for name, value in plan.seconds.items():
            if value >= 0.05:
                table.add_row(_TIMES[name], duration_text(value))
        console.print(table)
    limit = size_text(plan.limit_bytes)
    if plan.fits:
        say(console, ("It fits", "bold green"), f" in {limit}.")
        return
    hint = f" {plan.hint}" if plan.hint else ""
    say(console, ("It does not fit", "bold red"), f" in {limit}.{hint}")
    for piece in plan.advice:
        verdict = ("fits", "green") if piece.fits else ("does not", "red")
        say(console, f"  {piece.what} ({piece.how}): {size_text(piece.total_bytes)}, ", verdict)


def _memory_table(plan: CostPlan) -> Table:
    """The parts of the memory; with several phases a section for each of them."""
    several = len(plan.phases) > 1
    table = Table(*(["phase"] if several else []), "part", "per device", title="Memory", show_footer=True)
    table.columns[0].footer = "largest phase" if several else "together"
    table.columns[-1].footer = size_text(plan.total_bytes)
    for phase, parts in plan.phases.items():
        rows = [(name, size) for name, size in parts.items() if size]
        if several:
            rows.append(("together", sum(parts.values())))
        for name, size in rows:
            style = "bold" if name == "together" else ""
            table.add_row(*([literal(phase)] if several else []), literal((name, style)), size_text(size))
            phase = ""
        table.add_section()
    return table


def size_text(count: float) -> str:
    """A number of bytes in words, in the largest unit of which it has at least one."""
    if count < 2**10:
        return f"{count:.0f} bytes"
    unit, size = next((u, s) for u, s in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if count >= s)
    return f"{count / size:,.3g} {unit}"
