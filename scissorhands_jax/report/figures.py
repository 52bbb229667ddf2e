"""The plots: each a matplotlib figure without pyplot's global state, and its form in a page or a file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO, StringIO
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from scissorhands_jax import hashing
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import distances
from scissorhands_jax.report.rows import DASH, GAP_COLUMN, REFERENCE, Row, cell, grouped, numbers

# Okabe and Ito's colours, which stay apart for colour-blind readers; always on white, also in a dark page.

_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
_INK, _SOFT, _RULE = "#1f2328", "#59636e", "#d1d9e0"
_WIDTH = 5.2  # inches; narrow, so that the text is still readable when a phone shrinks the picture
_STYLE = {
    "font.family": ["sans-serif"],
    "font.size": 10,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _SOFT,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e8ecf0",
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "svg.fonttype": "none",  # real text: sharp, searchable, small
    "svg.hashsalt": "scissorhands_jax",  # the same figure gives the same file
}


def _layout() -> ConstrainedLayoutEngine:
    """Room between panels, so that a title belongs to what is under it; inches."""
    return ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.07, hspace=0.04)


class Picture(NamedTuple):
    """A plot with the words that stand in for it and explain it."""

    figure: Figure
    caption: str
    alt: str
    scenario: str | None = None  # shown beside this scenario's table, else below all tables
    heading: str = "Over the run"  # of the section below all tables
    format: Literal["svg", "png"] = "svg"  # in a page; PNG where the plot holds photographs
    name: str = "figure"  # the stem of its file


def _label(text: str, length: int = 34) -> str:
    """Text for a plot, cut to what fits beside one; matplotlib must not take dollars for the start of a formula."""
    return (text if len(text) <= length else f"{text[: length - 1]}…").replace("$", r"\$")


def _color(method: str, highlight: str | None) -> str:
    return _ORANGE if method == highlight else _BLUE


def gap_figure(rows: Iterable[Row], *, highlight: str | None = "scissorhands") -> Figure:
    """Avg. Gap by method: a bar to the mean, a dot for every seed.

    Args:
      rows: of one scenario; methods without an `avg_gap` are left out.
      highlight: the method to paint in the second colour.

    Raises:
      InputError: no row has an `avg_gap`.
    """
    gaps: dict[str, list[float]] = {}
    for row in rows:
        for value in numbers([row], "avg_gap"):
            gaps.setdefault(row["method"], []).append(value)
    if not gaps:
        raise InputError("no row has an avg_gap to plot")
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.7 + 0.34 * len(gaps)), layout=_layout())
        axes = figure.subplots()
        top = max(max(values) for values in gaps.values()) or 1.0
        for position, (method, values) in enumerate(gaps.items()):
            mean, color = math.fsum(values) / len(values), _color(method, highlight)
            axes.barh(position, mean, height=0.62, color=color, alpha=0.25, linewidth=0)
            axes.plot([mean, mean], [position - 0.31, position + 0.31], color=color, linewidth=2)
            axes.plot(values, [position] * len(values), "o", color=color, markersize=4.5, alpha=0.75, markeredgewidth=0)
            axes.text(max(values) + 0.025 * top, position, f"{mean:.2f}", va="center", color=_INK)
        axes.set_yticks(range(len(gaps)), [_label(method) for method in gaps], fontsize=9)
        axes.set_ylim(len(gaps) - 0.4, -0.6)
        axes.set_xlim(0, 1.14 * top)
        axes.set_xlabel("Avg. Gap (percentage points)")
        axes.grid(axis="x")
        axes.spines["bottom"].set_visible(False)
    return figure


def panels_figure(rows: Iterable[Row], *, highlight: str | None = "scissorhands") -> Figure:
    """Accuracies and MIA by method, one panel each, against the retrained network's mean as a horizontal line.

    Args:
      rows: of one scenario. The method `REFERENCE` becomes the line; without it there is none.
      highlight: the method to paint in the second colour.

    Raises:
      InputError: there are no rows.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    if not groups:
        raise InputError("there are no rows to plot")
    methods = [method for method in groups if method != REFERENCE] or [REFERENCE]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 7.6), layout=_layout())
        panels = figure.subplots(4, 1, sharex=True)
        titles = (
            "Accuracy on the forget set (%)",
            "Accuracy on the retain set (%)",
            "Accuracy on the test set (%)",
            "MIA (%)",
        )
        for axes, field, title in zip(panels, distances.GAP_FIELDS, titles, strict=True):
            for position, method in enumerate(methods):
                values = numbers(groups[method], field)
                if values:
                    mean, color = math.fsum(values) / len(values), _color(method, highlight)
                    axes.plot(
                        [position] * len(values), values, "o", color=color, markersize=4.5, alpha=0.6, markeredgewidth=0
                    )
                    axes.plot([position - 0.28, position + 0.28], [mean, mean], color=color, linewidth=2.5)
            axes.set_title(title)
            axes.grid(axis="y")
            axes.margins(y=0.15)
            axes.spines["left"].set_visible(False)
            _draw_reference(axes, numbers(groups.get(REFERENCE, []), field), len(methods))
        panels[-1].set_xticks(range(len(methods)), [_label(method) for method in methods])
        panels[-1].set_xlim(-0.6, len(methods) - 0.4)
        if sum(len(method) + 2 for method in methods) > 60:
            for tick in panels[-1].get_xticklabels():
                tick.set(rotation=40, horizontalalignment="right", rotation_mode="anchor")
    return figure


def _draw_reference(axes: Axes, values: Sequence[float], count: int) -> None:
    """The retrained network's mean as a line across the panel, named and numbered at its right end."""
    if values:
        mean = math.fsum(values) / len(values)
        axes.axhline(mean, color=_INK, linewidth=1.2, dashes=(5, 3), zorder=1)
        axes.annotate(
            f"retrained\n{mean:.2f}",
            (1, mean),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_INK,
        )


def curves_figure(histories: Mapping[str, Any], *, max_points: int = 400) -> Figure:
    """How numbers moved over a run: one panel per number, over the optimizer steps.

    Args:
      histories: values by name, such as `{"retain_loss": array, "forget_loss": array}`; each of shape (T,), one per
        step, NaN where a step has no such value (forget loss in a retain-only step).
      max_points: longer histories are drawn as means of equal stretches of steps, with the range of each in the
        background.

    Raises:
      InputError: nothing to draw, or an array that is not one-dimensional.
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in histories.items()}
    for name, array in arrays.items():
        if array.ndim != 1 or not np.isfinite(array).any():
            raise InputError(f"the history {name!r} must be a list with at least one finite number, got {array.shape}")
    if not arrays:
        raise InputError("there are no histories to plot")
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.6 + 1.45 * len(arrays)), layout=_layout())
        panels = figure.subplots(len(arrays), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, array) in zip(panels, arrays.items(), strict=True):
            steps, means, lows, highs = _thinned(array, max_points)
            if len(array) > max_points:
                axes.fill_between(steps, lows, highs, color=_BLUE, alpha=0.18, linewidth=0)
            axes.plot(steps, means, color=_BLUE, linewidth=1.4)
            axes.annotate(
                f"{means[-1]:.3g}".replace("-", "\N{MINUS SIGN}"),
                (steps[-1], means[-1]),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                annotation_clip=False,
            )
            axes.set_title(_label(name))
            axes.grid(axis="y")
            axes.spines["left"].set_visible(False)
        panels[-1].set_xlabel("optimizer step")
    return figure


def _thinned(array: np.ndarray, max_points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Step, mean, lowest and highest of each stretch that holds a finite value."""
    positions = np.flatnonzero(np.isfinite(array))
    stretches = np.array_split(np.arange(len(array)), min(len(array), max_points))
    kept = [part for part in (np.intersect1d(part, positions, assume_unique=True) for part in stretches) if part.size]
    columns = [(part.mean() + 1, array[part].mean(), array[part].min(), array[part].max()) for part in kept]
    return tuple(np.array(columns).T)


def sweep_figure(rows: Iterable[Row], name: str) -> Figure:
    """The paper's Figure 2: accuracies and MIA over the values of one setting, retrained networks as dashed lines.

    Lines go through the means over seeds; bands reach from the lowest to the highest seed. The values stand at equal
    distances, whatever their scale.

    Args:
      rows: of one scenario. Those with `sweep["name"] == name` make the lines, those of `REFERENCE` the dashes.
      name: of the setting.

    Raises:
      InputError: no row varies that setting.
    """
    rows = list(rows)
    swept: dict[float, list[Row]] = {}
    for row in rows:
        if row.get("sweep") is not None and row["sweep"]["name"] == name:
            swept.setdefault(float(row["sweep"]["value"]), []).append(row)
    if not swept:
        raise InputError(f"no row has a sweep of {name!r} to plot")
    places = sorted(swept)
    references = [row for row in rows if row["method"] == REFERENCE]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 4.6), layout=_layout())
        panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for axes, title, lines in zip(panels, ("Accuracy (%)", "MIA (%)"), _SWEEP_LINES, strict=True):
            for field, label, color, marker in lines:
                points = [(x, found) for x, place in enumerate(places) if (found := numbers(swept[place], field))]
                if not points:
                    continue
                means = [math.fsum(found) / len(found) for _, found in points]
                x = [position for position, _ in points]
                axes.plot(x, means, color=color, marker=marker, markersize=5, linewidth=1.6, label=label)
                if any(len(found) > 1 for _, found in points):
                    lows, highs = zip(*((min(found), max(found)) for _, found in points), strict=True)
                    axes.fill_between(x, lows, highs, color=color, alpha=0.15, linewidth=0)
                retrained = numbers(references, field)
                if retrained:
                    axes.axhline(math.fsum(retrained) / len(retrained), color=color, linewidth=1.2, dashes=(5, 3))
            axes.set_title(title)
            axes.grid(axis="y")
            axes.margins(y=0.12)
            axes.spines["left"].set_visible(False)
        panels[0].legend(frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0.3, 1.0), borderpad=0)
        panels[-1].set_xticks(range(len(places)), [f"{place:g}" for place in places])
        panels[-1].set_xlabel(_label(name))
    return figure


# Markers besides colours, for readers and printers without colour.
_SWEEP_LINES = (
    (
        ("acc_forget", "forget", _ORANGE, "o"),
        ("acc_retain", "retain", _BLUE, "s"),
        ("acc_test", "test", _GREEN, "^"),
    ),
    (("mia", "MIA", _PURPLE, "D"),),
)


def gradcam_figure(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    *,
    num_forget: int,
    labels: np.ndarray,
    logits: Mapping[str, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """The paper's Figure 1: what networks look at, one row per image and one column per network.

    Args:
      images: shape (N, H, W, C) with C 1 or 3, uint8 or floating point in [0, 1]; the forget images come first.
      maps: heat maps by network, such as those of `gradcam.heatmaps`; shape (N, H, W), in [0, 1].
      num_forget: how many of the images are to be forgotten.
      labels: the true classes, shape (N,); shown under the images.
      logits: by network, shape (N, num_classes); each picture then gets the predicted class and its confidence, in a
        second colour where the prediction is wrong.
      class_names: words for the classes; numbers without it.

    Raises:
      InputError: there is nothing to draw, or shapes or names do not belong together.
    """
    pixels, labels = _pixels(images), np.asarray(labels)
    count = len(pixels)
    if not maps or not 0 <= num_forget <= count or labels.shape != (count,):
        raise InputError(
            f"Grad-CAM needs maps, labels and 0 to {count} forget images for {count} images; got maps of "
            f"{', '.join(maps) or 'no network'}, labels of shape {labels.shape} and num_forget={num_forget}"
        )
    for name, heat in maps.items():
        if np.shape(heat) != pixels.shape[:3]:
            raise InputError(f"the maps of {name!r} have shape {np.shape(heat)}; the images need {pixels.shape[:3]}")
    if logits is not None and set(logits) != set(maps):
        raise InputError(f"maps are of {', '.join(maps)}, but logits of {', '.join(logits)}")
    verdicts = {name: _verdicts(logits[name], labels, class_names) for name in maps} if logits is not None else {}
    groups = [("Forget set", range(num_forget)), ("Retain set", range(num_forget, count))]
    groups = [(title, positions) for title, positions in groups if len(positions)]
    width = _WIDTH / (1 + len(maps))
    heights = [0.34 + len(positions) * (0.97 * width + 0.27) for _, positions in groups]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, sum(heights) + 0.2), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03))
        parts = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (title, positions) in zip(parts, groups, strict=True):
            part.suptitle(title, x=0.01, horizontalalignment="left", fontsize=10, fontweight="bold")
            panels = part.subplots(len(positions), 1 + len(maps), squeeze=False)
            for axes, head in zip(panels[0], ("image", *maps), strict=True):
                axes.set_title(_label(head, 14), fontsize=8, fontweight="normal", loc="center")
            for line, position in zip(panels, positions, strict=True):
                _draw_image(line[0], pixels[position], _class_name(labels[position], class_names), _SOFT)
                for axes, (name, heat) in zip(line[1:], maps.items(), strict=True):
                    text, right = verdicts[name][position] if verdicts else ("", True)
                    _draw_image(axes, _overlay(pixels[position], heat[position]), text, _SOFT if right else _ORANGE)
    return figure


def drawings_figure(drawings: Mapping[str, np.ndarray], labels: Sequence[str], *, marked: int | None = None) -> Figure:
    """What networks draw: a panel each, two beside each other, with a row of images for everything they are asked for.

    Args:
      drawings: by network, in [0, 1], ink is white. shape=(rows, columns, H, W)
      labels: what each row was asked for.
      marked: the row whose label is painted in the second colour.

    Raises:
      InputError: there is nothing to draw, or shapes differ or do not fit the labels.
    """
    shapes = {np.shape(images) for images in drawings.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 4 or shape[0] != len(labels) or 0 in shape:
        found = {name: np.shape(images) for name, images in drawings.items()} or "nothing"
        raise InputError(f"drawings need one shape (rows, columns, H, W) with {len(labels)} rows; found {found}")
    rows, columns, height, width = shape
    lines = -(-len(drawings) // 2)
    panel = _WIDTH / 2 * (rows * (height + 1)) / (columns * (width + 1))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, lines * (panel + 0.2)), layout=_layout())
        places = figure.subplots(lines, 2, squeeze=False).ravel()
        for axes, (name, images) in zip(places, drawings.items(), strict=False):
            framed = np.pad(np.asarray(images, np.float64), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0.35)
            mosaic = framed.transpose(0, 2, 1, 3).reshape(rows * (height + 1), columns * (width + 1))
            axes.imshow(1 - mosaic[:-1, :-1], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(_label(name), fontsize=9)
            axes.set_xticks([])
            axes.set_yticks(np.arange(rows) * (height + 1) + (height - 1) / 2, [_label(label) for label in labels])
            axes.spines[:].set_visible(False)
            if marked is not None:
                axes.get_yticklabels()[marked].set(color=_ORANGE, fontweight="bold")
        for axes in places[len(drawings) :]:
            axes.set_visible(False)
    return figure


def _pixels(images: np.ndarray) -> np.ndarray:
    """Images as RGB in [0, 1], shape (N, H, W, 3)."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise InputError(f"images have shape {images.shape}; a picture needs (N, H, W, C) with C 1 or 3")
    pixels = images / 255 if images.dtype == np.uint8 else images.astype(np.float64)
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(f"pixels reach from {pixels.min():g} to {pixels.max():g}; a picture needs 0 to 1, or uint8")
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))


def _overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A grey image under its heat map."""
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    color = matplotlib.colormaps["inferno"](np.asarray(heat))[..., :3]
    return 0.45 * grey[..., None] + 0.55 * color


def _draw_image(axes: Axes, pixels: np.ndarray, text: str, color: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(text, fontsize=7, color=color, labelpad=2)


def _class_name(label: int, class_names: Sequence[str] | None) -> str:
    return str(label) if class_names is None else _label(str(class_names[label]), 14)


def _verdicts(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None) -> list[tuple[str, bool]]:
    """The predicted class with its confidence, and whether it is right, for every image."""
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or len(logits) != len(labels):
        raise InputError(f"logits have shape {logits.shape}; {len(labels)} images need ({len(labels)}, num_classes)")
    chosen = logits.argmax(axis=1)
    confidence = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    return [
        (f"{_class_name(guess, class_names)}\n{100 * sure:.0f} %", bool(guess == label))
        for guess, sure, label in zip(chosen, confidence, labels, strict=True)
    ]


def changes_figure(entries: Iterable[Mapping[str, Any]]) -> Figure:
    """The paper's Figure 3: what is found in images by class, as a percentage change against the original network.

    Bars end at the change, lines are intervals, and beside each class stands how often the original has it. A class
    that the original has not has no bar. Without an original, bars are the percentages of images that have the class.

    Args:
      entries: by class, with `class`, `detections`, `share` and, if there is an original, `original_detections` and
        `change`; shares and changes have `value`, `low` and `high`, in per cent, and None for what is not there.

    Raises:
      InputError: there are none.
    """
    entries = list(entries)
    if not entries:
        raise InputError("there are no classes to plot")
    compared = "change" in entries[0]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.75 + 0.36 * len(entries)), layout=_layout())
        axes = figure.subplots()
        values = [entry["change" if compared else "share"] for entry in entries]
        # One class that grew manyfold must not make the others invisible.
        reach = max([value["high"] or 0 for value in values] + [value["value"] or 0 for value in values])
        right = min(max(reach, 15), 150 if compared else 100)
        for position, (entry, value) in enumerate(zip(entries, values, strict=True)):
            color = _BLUE if compared and (value["value"] or 0) <= 0 else _ORANGE
            if value["value"] is None:
                text = f"none in the original, {entry['detections']} now"
                axes.text(-2, position, text, va="center", ha="right", fontsize=8, color=_SOFT)
                continue
            end = min(value["value"], right)
            axes.barh(position, end, height=0.62, color=color, alpha=0.3, linewidth=0)
            axes.plot([end, end], [position - 0.31, position + 0.31], color=color, linewidth=2)
            high = right if value["high"] is None else min(value["high"], right)
            axes.plot([min(value["low"], right), high], [position, position], color=_INK, linewidth=1.2)
            if value["high"] is None or value["high"] > right:
                axes.plot([right], [position], ">", color=_INK, markersize=5, clip_on=False)
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
        axes.set_yticks(range(len(entries)), [_label(name) for name in names], fontsize=9)
        axes.set_ylim(len(entries) - 0.4, -0.6)
        axes.set_xlim(-102 if compared else 0, 1.18 * right)
        if compared:
            axes.axvline(0, color=_INK, linewidth=1)
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
    cell, head, line = _WIDTH / columns, 0.32, 0.26  # inches
    heights = [head - (-len(images) // columns) * (cell + line) for images in sections.values()]
    top = total = sum(heights)
    with matplotlib.rc_context(_STYLE):
        # One panel for all images of a section: a panel for each would take seconds to lay out.
        figure = Figure(figsize=(_WIDTH, total))
        for height, (title, images) in zip(heights, sections.items(), strict=True):
            figure.text(0.01, (top - 0.08) / total, _label(title, 60), va="top", fontsize=10, fontweight="bold")
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
                    color=_ORANGE if stands_out else _SOFT,
                )
            panel.set(xlim=(0, _WIDTH), ylim=(height - head, 0))
    return figure


def figure_png(figure: Figure, *, dpi: int = 200) -> bytes:
    """A figure as a PNG file; the same figure gives the same bytes."""
    buffer = BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def figure_svg(figure: Figure) -> str:
    """A figure as one `<svg>` element for an HTML page: no prolog, the page's font, ids that no other figure has."""
    buffer = StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    prefix = f"f{hashing.sha256(text)[:8]}-"

    def adapt(tag: re.Match) -> str:
        renamed = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}", tag[0])
        return re.sub(r"font-family: [^;\"]+", "font-family: system-ui, sans-serif", renamed)

    return re.sub(r"<[^>]+>", adapt, text)


def pictures(rows: Iterable[Row], histories: Mapping[str, Any] | None = None) -> list[Picture]:
    """All plots that the rows allow, with captions and alternative texts, for `write_html`.

    Rows that vary a setting are drawn over its values, the others by method.

    Args:
      rows: of any number of scenarios.
      histories: as in `curves_figure`; `None` for no curves.
    """
    shown = []
    for scenario, methods in grouped(rows).items():
        flat = [row for group in methods.values() for row in group]
        fixed = {method: group for method, group in methods.items() if group[0].get("sweep") is None}
        settings = dict.fromkeys(row["sweep"]["name"] for row in flat if row.get("sweep") is not None)
        if set(fixed) - {REFERENCE} or not settings:
            shown += _method_pictures(scenario, fixed)
        shown += [
            Picture(
                sweep_figure(flat, setting),
                f"The same numbers over the values of {setting}. Lines are means over seeds, bands reach from the "
                "lowest to the highest seed, dashed lines are the means of the retrained networks.",
                f"Line plot of forget, retain and test accuracy and MIA over {setting}; the numbers are in the table "
                "above.",
                scenario,
                name=f"sweep-{setting}",
            )
            for setting in settings
        ]
    if histories:
        shown.append(
            Picture(
                curves_figure(histories),
                "What was recorded at every optimizer step; the last value stands at the end of each curve.",
                f"Curves over the optimizer steps: {', '.join(histories)}.",
                name="curves",
            )
        )
    return shown


def _method_pictures(scenario: str, methods: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """The two plots by method."""
    rows = [row for group in methods.values() for row in group]
    means = [(method, cell(group, GAP_COLUMN)[0]) for method, group in methods.items()]
    gaps = "; ".join(f"{method} {mean}" for method, mean in means if mean != DASH)
    shown = []
    if gaps:
        shown.append(
            Picture(
                gap_figure(rows),
                "Avg. Gap by method. Bars end at the mean; every dot is one seed. Shorter is closer to retraining.",
                f"Bar chart of the mean Avg. Gap in percentage points: {gaps}.",
                scenario,
                name="gap",
            )
        )
    shown.append(
        Picture(
            panels_figure(rows),
            "The four numbers behind the gap. Thick strokes are means, every dot is one seed, "
            "the dashed line is the mean of the retrained networks: the closer to it, the better.",
            f"Four panels with forget, retain and test accuracy and MIA of {'; '.join(methods)}; "
            "the numbers are in the table above.",
            scenario,
            name="numbers",
        )
    )
    return shown


_EVIDENCE_PANELS = (
    "u_lira_auc",
    "lira_auc",
    "rmia_auc",
    "population_auc",
    "klom_forget_halves",
    "forgetting_score_halves",
    "recovered",
)


def evidence_figure(
    entries: Iterable[Mapping[str, Any]],
    titles: Mapping[str, tuple[str, float | None]],
    *,
    panels: Sequence[str] = _EVIDENCE_PANELS,
) -> Figure:
    """Metrics of an audit, a panel each: a dot and its interval per method, means over forget sets.

    Args:
      entries: of a document of `audit.run_audit`, with `scenario`, `method`, `metric`, `value`, `low` and `high`; those
        without a scenario are drawn.
      titles: name of each metric and its value for perfect forgetting, which becomes a broken line.
      panels: metrics in this order, as far as there are entries.

    Raises:
      InputError: there is nothing to draw.
    """
    held = {(entry["metric"], entry["method"]): entry for entry in entries if entry["scenario"] is None}
    shown = [metric for metric in panels if any(metric == found for found, _ in held)]
    methods = list(dict.fromkeys(method for metric, method in held if metric in shown))
    if not shown:
        raise InputError("there is no evidence to plot")
    with matplotlib.rc_context(_STYLE):
        height = 0.55 + 0.21 * len(methods)
        figure = Figure(figsize=(_WIDTH, height * len(shown)), layout=_layout())
        for axes, metric in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
            title, perfect = titles[metric]
            for position, method in enumerate(methods):
                entry = held.get((metric, method))
                if entry is not None:
                    axes.plot([entry["low"], entry["high"]], [position, position], color=_BLUE, linewidth=2)
                    axes.plot([entry["value"]], [position], "o", color=_ORANGE, markersize=4.5)
            if perfect is not None:
                axes.axvline(perfect, color=_INK, linewidth=1, dashes=(5, 3), zorder=1)
            axes.set_title(title)
            axes.set_yticks(range(len(methods)), [_label(method) for method in methods], fontsize=8)
            axes.set_ylim(len(methods) - 0.4, -0.6)
            axes.grid(axis="x")
    return figure
