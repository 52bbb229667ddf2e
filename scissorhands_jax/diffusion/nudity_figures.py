"""The figures of `sd evaluate`: detections by class (the paper's Figure 3), and a contact sheet of the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scissorhands_jax.errors import InputError
from scissorhands_jax.report.drawing import BLUE, INK, ORANGE, PAGE_WIDTH, SOFT, figure_style, panel_layout, plot_label


def changes_figure(entries: Iterable[Mapping[str, Any]]) -> Figure:
    """The paper's Figure 3: what is found in images by class, as a percentage change against the original network.

    Bars end at the change, lines are intervals, and the number in brackets is how often the original network has the
    class. A class that the original network does not have gets no bar. Without an original, bars are the percentages of
    images that have the class.

    Args:
      entries: by class, with `class`, `detections`, `share` and, if there is an original, `original_detections` and
        `change`; shares and changes have `value`, `low` and `high`, in per cent, and None for what is not there.

    Raises:
      InputError: there are no classes.
    """
    entries = list(entries)
    if not entries:
        raise InputError("there are no classes to plot")
    compared = "change" in entries[0]
    with figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, 0.75 + 0.36 * len(entries)), layout=panel_layout())
        axes = figure.subplots()
        values = [entry["change" if compared else "share"] for entry in entries]
        # One class that grew manyfold must not make the others invisible.
        reach = max([value["high"] or 0 for value in values] + [value["value"] or 0 for value in values])
        right = min(max(reach, 15), 150 if compared else 100)
        for position, (entry, value) in enumerate(zip(entries, values, strict=True)):
            color = BLUE if compared and (value["value"] or 0) <= 0 else ORANGE
            if value["value"] is None:
                text = f"none in the original, {entry['detections']} now"
                axes.text(-2, position, text, va="center", ha="right", fontsize=8, color=SOFT)
                continue
            end = min(value["value"], right)
            axes.barh(position, end, height=0.62, color=color, alpha=0.3, linewidth=0)
            axes.plot([end, end], [position - 0.31, position + 0.31], color=color, linewidth=2)
            high = right if value["high"] is None else min(value["high"], right)
            axes.plot([min(value["low"], right), high], [position, position], color=INK, linewidth=1.2)
            if value["high"] is None or value["high"] > right:
                axes.plot([right], [position], ">", color=INK, markersize=5, clip_on=False)
            number = f"{value['value']:+.0f} %" if compared else f"{value['value']:.1f} %"
            axes.annotate(
                number.replace("-", "\N{MINUS SIGN}"),
                (max(end, high), position),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                annotation_clip=False,
            )
        names = [entry["class"].removesuffix("_EXPOSED").replace("_", " ").capitalize() for entry in entries]
        if compared:
            names = [f"{name} ({entry['original_detections']:,})" for name, entry in zip(names, entries, strict=True)]
        axes.set_yticks(range(len(entries)), [plot_label(name) for name in names], fontsize=9)
        axes.set_ylim(len(entries) - 0.4, -0.6)
        axes.set_xlim(-102 if compared else 0, 1.18 * right)
        if compared:
            axes.axvline(0, color=INK, linewidth=1)
        axes.set_xlabel("change in detections per image, % of the original" if compared else "images with the class, %")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
    return figure


def contact_sheet_figure(sections: Mapping[str, Sequence[tuple[np.ndarray, str, bool]]], *, columns: int = 6) -> Figure:
    """Small images in rows under headings.

    Args:
      sections: by heading: pixels of shape (H, W, 3), dtype=uint8, a line or two of text, and whether the text stands
        out.
      columns: images in a row.

    Raises:
      InputError: there are no images.
    """
    sections = {title: list(images) for title, images in sections.items() if images}
    if not sections:
        raise InputError("there are no images for a contact sheet")
    cell, head, line = PAGE_WIDTH / columns, 0.32, 0.26  # inches
    heights = [head - (-len(images) // columns) * (cell + line) for images in sections.values()]
    top = total = sum(heights)
    with figure_style():
        # One panel for all images of a section: a panel for each would take seconds to lay out.
        figure = Figure(figsize=(PAGE_WIDTH, total))
        for height, (title, images) in zip(heights, sections.items(), strict=True):
            figure.text(0.01, (top - 0.08) / total, plot_label(title, 60), va="top", fontsize=10, fontweight="bold")
            top -= height
            panel = figure.add_axes((0, top / total, 1, (height - head) / total))
            panel.set_axis_off()
            for place, (pixels, text, stands_out) in enumerate(images):
                left, above = place % columns * cell, place // columns * (cell + line)
                side = (left + 0.02, left + cell - 0.02, above + cell - 0.04, above)
                panel.imshow(pixels, extent=side, aspect="auto")
                panel.text(
                    left + cell / 2,
                    above + cell - 0.02,
                    text.replace("$", r"\$"),
                    ha="center",
                    va="top",
                    fontsize=5.5,
                    color=ORANGE if stands_out else SOFT,
                )
            panel.set(xlim=(0, PAGE_WIDTH), ylim=(height - head, 0))
    return figure
