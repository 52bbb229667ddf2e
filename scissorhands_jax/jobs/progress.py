"""Progress bars of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scissorhands_jax.training.loop import OnStep
from scissorhands_jax.training.loop import Progress as Step


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """A live display with one line per task; nothing but its last state where the console is no terminal."""
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


def follow(progress: Progress, description: str, history: list[dict] | None = None) -> OnStep:
    """An `on_step` that moves a bar, shows the losses and, if asked to, keeps every step's scalar metrics."""
    task = progress.add_task(description, total=None, note="preparing")

    def on_step(step: Step) -> None:
        # Exact if no later epoch is shorter or longer than this one, as those of some methods are.
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
