"""Progress of runs: bars in a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

from scissorhands_jax.plain_terminal import PlainProgress
from scissorhands_jax.terminal import Console, Progress, is_live, literal, printable, say
from scissorhands_jax.training.loop import OnStep
from scissorhands_jax.training.loop import Progress as Step


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """A display of tasks: a bar for each in a terminal, and otherwise lines, as `PlainProgress` writes them.

    A console with a log (`terminal.LoggedConsole`) gets the lines there in either case.
    """
    if not is_live(console):
        with PlainProgress(_writer(console, live=False)) as lines:
            yield cast(Progress, lines)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    bars = Progress(*columns, console=console, refresh_per_second=5)
    with bars, PlainProgress(_writer(console, live=True)) as lines:
        yield cast(Progress, _Both(bars, lines))


@contextlib.contextmanager
def status(console: Console, what: str) -> Iterator[None]:
    """Shows what is being done for the duration of a block: a spinner in a terminal, and otherwise lines.

    A block that takes less than a second gets no lines.
    """
    live = is_live(console)
    lines = PlainProgress(_writer(console, live=live), ends_matter=False)
    with console.status(literal(what)) if live else contextlib.nullcontext(), lines:
        task = lines.add_task(what, total=1)
        yield
        lines.update(task, completed=1)


class StartPhase(Protocol):
    """Is called at the beginning of a phase, and returns an `on_step` if the phase has steps."""

    def __call__(self, phase: str, *, steps: bool = True) -> OnStep | None: ...


@contextlib.contextmanager
def phases(console: Console) -> Iterator[tuple[StartPhase, dict[str, float]]]:
    """A `StartPhase` with a progress bar for each phase, and the seconds of each phase, including compilation."""
    seconds: dict[str, float] = {}
    current: list[tuple[str, float]] = []

    def end_phase() -> None:
        for phase, began in current:
            seconds[phase] = seconds.get(phase, 0) + time.perf_counter() - began
        current.clear()

    with progress_bar(console) as progress:

        def start_phase(phase: str, *, steps: bool = True) -> OnStep | None:
            end_phase()
            current.append((phase, time.perf_counter()))
            return follow_steps(progress, phase) if steps else None

        yield start_phase, seconds
    end_phase()


def _writer(console: Console, *, live: bool) -> Callable[[str], object]:
    """What writes the lines about tasks: to the log alone where something moves on the console."""
    if not live:
        return functools.partial(say, console)
    log = getattr(console, "log_file", None)
    return lambda line: None if log is None else log.write(f"{line}\n")


class _Both:
    """The bars of a terminal and the lines of a log, which show the same tasks."""

    def __init__(self, bars: Progress, lines: PlainProgress) -> None:
        self._bars, self._lines = bars, lines
        self._numbers: dict[Any, int] = {}

    @property
    def task_ids(self) -> list[Any]:
        """The tasks that were added and not removed, in this order."""
        return list(self._bars.task_ids)

    def add_task(self, description: str, **fields: Any) -> Any:
        """Adds a task and returns its number."""
        task = self._bars.add_task(printable(description, keep=""), **_shown(fields))
        self._numbers[task] = self._lines.add_task(description, **fields)
        return task

    def update(self, task: Any, **changes: Any) -> None:
        """Takes over what is known of a task now."""
        self._bars.update(task, **_shown(changes))
        self._lines.update(self._numbers[task], **changes)

    def advance(self, task: Any, advance: float = 1) -> None:
        """Adds to what is done of a task."""
        self._bars.advance(task, advance)
        self._lines.advance(self._numbers[task], advance)

    def remove_task(self, task: Any) -> None:
        """Ends a task, and forgets it."""
        self._bars.remove_task(task)
        self._lines.remove_task(self._numbers.pop(task))


def _shown(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a task with texts that can be shown on one line of any terminal."""
    return {name: printable(value, keep="") if isinstance(value, str) else value for name, value in fields.items()}


def follow_steps(progress: Progress, description: str, history: list[dict] | None = None) -> OnStep:
    """An `on_step` for `training.run` that moves a bar and shows the losses.

    Args:
      progress: The display, which gets one more line.
      description: What the line is called.
      history: Is appended to: one dictionary per step with `step`, `epoch` and all scalar metrics. None keeps nothing.
    """
    task = progress.add_task(description, total=None, note="preparing")

    def on_step(step: Step) -> None:
        # Exact if every later epoch has as many steps as this one, which does not hold for all methods.
        total = step.step - step.offset + step.steps_in_epoch * (step.num_epochs - step.epoch)
        losses = " ".join(
            f"{name.removeprefix('loss_')} {float(value):.3f}"
            for name, value in step.metrics.items()
            if name.startswith("loss_")
        )
        note = f"epoch {step.epoch + 1}/{step.num_epochs}  {losses}"
        progress.update(task, completed=step.step, total=total, note=note)
        if history is not None:
            scalars = {name: float(value.item()) for name, value in step.metrics.items() if value.size == 1}
            history.append({"step": step.step, "epoch": step.epoch} | scalars)

    return on_step
