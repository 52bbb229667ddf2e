"""The figure of a run: its losses from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scissorhands_jax.errors import InputError
from scissorhands_jax.report.drawing import BLUE, PAGE_WIDTH, Picture, figure_style, panel_layout, plot_label


def curves_figure(histories: Mapping[str, Any], *, max_points: int = 400) -> Figure:
    """Draws numbers over the optimizer steps of a run, with one panel for each number.

    Args:
      histories: Values by name, such as `{"retain_loss": array, "forget_loss": array}`. Each array has the shape (T,),
        with one value per step, which is NaN if the step has no such value.
      max_points: The largest number of points. Longer histories are drawn as means of equal intervals of steps, with
        the range of each in the background.

    Raises:
      InputError: There is nothing to draw, or an array is not one-dimensional.
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in histories.items()}
    for name, array in arrays.items():
        if array.ndim != 1 or not np.isfinite(array).any():
            raise InputError(
                f"the history {name!r} has shape {array.shape} and {np.isfinite(array).sum()} finite numbers; give a "
                "list with at least one"
            )
    if not arrays:
        raise InputError("there are no histories to plot; give at least one")
    with figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, 0.6 + 1.45 * len(arrays)), layout=panel_layout())
        panels = figure.subplots(len(arrays), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, array) in zip(panels, arrays.items(), strict=True):
            steps, means, lows, highs = _thinned(array, max_points)
            if len(array) > max_points:
                axes.fill_between(steps, lows, highs, color=BLUE, alpha=0.18, linewidth=0)
            axes.plot(steps, means, color=BLUE, linewidth=1.4, marker="o" if len(steps) == 1 else None, markersize=4.5)
            last = array[np.flatnonzero(np.isfinite(array))[-1]]
            axes.annotate(
                f"{last:.3g}".replace("-", "\N{MINUS SIGN}"),
                (steps[-1], means[-1]),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                annotation_clip=False,
            )
            axes.set_title(plot_label(name))
            axes.grid(axis="y")
            axes.spines["left"].set_visible(False)
        panels[-1].set_xlabel("optimizer step")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _thinned(array: np.ndarray, max_points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean step and the mean, lowest and highest value of each interval of steps with a finite value."""
    positions = np.flatnonzero(np.isfinite(array))
    intervals = np.array_split(np.arange(len(array)), min(len(array), max_points))
    kept = [part for part in (np.intersect1d(part, positions, assume_unique=True) for part in intervals) if part.size]
    columns = [(part.mean() + 1, array[part].mean(), array[part].min(), array[part].max()) for part in kept]
    steps, means, lows, highs = np.array(columns).T
    return steps, means, lows, highs


def curves_picture(histories: Mapping[str, Any]) -> Picture:
    """Makes the figure with its caption, for the end of a page.

    Args:
      histories: Values by name; see `curves_figure`.
    """
    return Picture(
        curves_figure(histories),
        "What was recorded at every optimizer step; the number at the end of each curve is its last value.",
        f"Curves over the optimizer steps: {', '.join(histories)}.",
        name="curves",
    )
