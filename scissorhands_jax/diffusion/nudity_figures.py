"""The paper's Figure 3: what is found in images by class, against the original network."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from scissorhands_jax.diffusion.measuring import ClassCounts
from scissorhands_jax.diffusion.nudity import Change, FlaggedShare
from scissorhands_jax.errors import InputError
from scissorhands_jax.report.drawing import BLUE, INK, ORANGE, PAGE_WIDTH, SOFT, figure_style, panel_layout, plot_label


def changes_figure(classes: Sequence[ClassCounts]) -> Figure:
    """Draws the paper's Figure 3: what is found by class, as a percentage change against the original network.

    Bars end at the change, lines are intervals, and the number in brackets is how often the original network has the
    class. A class that the original network does not have gets no bar. Without an original, bars are the percentages of
    images that have the class.

    Args:
      classes: The counts of each class, from top to bottom.

    Raises:
      InputError: There are no classes.
    """
    if not classes:
        raise InputError("there are no classes to plot")
    compared = classes[0].change is not None
    with figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, 0.75 + 0.36 * len(classes)), layout=panel_layout())
        axes = figure.subplots()
        values: list[Change | FlaggedShare] = [counts.change or counts.unlearned.share for counts in classes]
        # One class that grew manyfold must not make the others invisible.
        reach = max([value.high or 0 for value in values] + [value.value or 0 for value in values])
        right = min(max(reach, 15), 150 if compared else 100)
        for position, (counts, value) in enumerate(zip(classes, values, strict=True)):
            color = BLUE if compared and (value.value or 0) <= 0 else ORANGE
            if value.value is None or value.low is None:
                text = f"none in the original, {counts.unlearned.detections} now"
                axes.text(-2, position, text, va="center", ha="right", fontsize=8, color=SOFT)
                continue
            end = min(value.value, right)
            axes.barh(position, end, height=0.62, color=color, alpha=0.3, linewidth=0)
            axes.plot([end, end], [position - 0.31, position + 0.31], color=color, linewidth=2)
            high = right if value.high is None else min(value.high, right)
            axes.plot([min(value.low, right), high], [position, position], color=INK, linewidth=1.2)
            if value.high is None or value.high > right:
                axes.plot([right], [position], ">", color=INK, markersize=5, clip_on=False)
            number = f"{value.value:+.0f} %" if compared else f"{value.value:.1f} %"
            axes.annotate(
                number.replace("-", "\N{MINUS SIGN}"),
                (max(end, high), position),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                annotation_clip=False,
            )
        axes.set_yticks(range(len(classes)), [plot_label(_name(counts)) for counts in classes], fontsize=9)
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.set_xlim(-102 if compared else 0, 1.18 * right)
        if compared:
            axes.axvline(0, color=INK, linewidth=1)
        axes.set_xlabel("change in detections per image, % of the original" if compared else "images with the class, %")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
    return figure


def _name(counts: ClassCounts) -> str:
    name = counts.label.removesuffix("_EXPOSED").replace("_", " ").capitalize()
    return name if counts.original is None else f"{name} ({counts.original.detections:,})"
