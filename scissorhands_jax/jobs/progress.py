"""Progress bars of runs, and durations as text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from scissorhands_jax.plain_terminal import PlainConsole, PlainProgress
from scissorhands_jax.terminal import Console, Progress
from scissorhands_jax.training.loop import OnStep
from scissorhands_jax.training.loop import Progress as Step


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """A live display with one line per task. Where the console is no terminal, only its last state is printed."""
    if isinstance(console, PlainConsole):
        yield PlainProgress(console)  # type: ignore[misc]
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=5) as progress:
        yield progress


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


def duration_text(seconds: float) -> str:
    """A duration in the unit that fits it.

    >>> [duration_text(number) for number in (1.25, 600, 7200)]
    ['1.2 s', '10.0 min', '2.0 h']
    """
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
