"""Figures of rows of results: Avg. Gap, the four numbers behind it, and the effect of a setting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import distances
from scissorhands_jax.report.drawing import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PAGE_WIDTH,
    PURPLE,
    Picture,
    figure_style,
    panel_layout,
    plot_label,
)
from scissorhands_jax.report.rows import (
    DASH,
    GAP_COLUMN,
    REDRAWN,
    REFERENCE,
    Methods,
    Row,
    cell,
    grouped,
    numbers,
    rounded,
    task_row,
)


def _titles(row: Row) -> dict[str, str]:
    """What the four numbers of a row's task are called."""
    metric = distances.quality_of(row)
    name = "Accuracy" if metric["title"] == "Acc" else metric["title"]
    found = {f"{metric['name']}_{part}": f"{name} on the {part} set ({metric['unit']})" for part in _PARTS}
    return {**found, "mia": "MIA (%)"}


_PARTS = ("forget", "retain", "test")


def _color(method: str, highlight: str | None) -> str:
    return ORANGE if method == highlight else INK if method in (REFERENCE, REDRAWN) else BLUE


def gap_figure(rows: Iterable[Row], *, highlight: str | None = "scissorhands") -> Figure:
    """Draws the Avg. Gap of each method: a bar to the mean, and a dot for each seed.

    Args:
      rows: The rows of one scenario. Methods without an `avg_gap` are left out.
      highlight: The method to draw in the second colour.

    Raises:
      InputError: No row has an `avg_gap`.
    """
    shown = list(rows)
    gaps: dict[str, list[float]] = {}
    for row in shown:
        for value in numbers([row], "avg_gap"):
            gaps.setdefault(row["method"], []).append(value)
    if not gaps:
        raise InputError("no row has an avg_gap to plot; add rows of retrained networks")
    with figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, 0.7 + 0.34 * len(gaps)), layout=panel_layout())
        axes = figure.subplots()
        top = max(max(values) for values in gaps.values()) or 1.0
        for position, (method, values) in enumerate(gaps.items()):
            mean, color = math.fsum(values) / len(values), _color(method, highlight)
            axes.barh(position, mean, height=0.62, color=color, alpha=0.25, linewidth=0)
            axes.plot([mean, mean], [position - 0.31, position + 0.31], color=color, linewidth=2)
            axes.plot(values, [position] * len(values), "o", color=color, markersize=4.5, alpha=0.75, markeredgewidth=0)
            axes.text(max(values) + 0.025 * top, position, f"{mean:.2f}", va="center", color=INK)
        axes.set_yticks(range(len(gaps)), [plot_label(method) for method in gaps], fontsize=9)
        axes.set_ylim(len(gaps) - 0.4, -0.6)
        axes.set_xlim(0, 1.14 * top)
        axes.set_xlabel(f"Avg. Gap{_gap_unit(shown[0], ' ({})')}")
        axes.grid(axis="x")
        axes.spines["bottom"].set_visible(False)
    return figure


def panels_figure(rows: Iterable[Row], *, highlight: str | None = "scissorhands") -> Figure:
    """Draws accuracies and MIA by method, each in a panel with a horizontal line at the retrained network's mean.

    Args:
      rows: The rows of one scenario. Those of the method `REFERENCE` give the lines; without them there are no lines.
      highlight: The method to draw in the second colour.

    Raises:
      InputError: There are no rows.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    if not groups:
        raise InputError("there are no rows to plot; give at least one")
    methods = [method for method in groups if method != REFERENCE] or [REFERENCE]
    with figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, 7.6), layout=panel_layout())
        panels = figure.subplots(4, 1, sharex=True)
        for axes, (field, title) in zip(panels, _titles(task_row(groups)).items(), strict=True):
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
        panels[-1].set_xticks(range(len(methods)), [plot_label(method) for method in methods])
        panels[-1].set_xlim(-0.6, len(methods) - 0.4)
        if sum(len(method) + 2 for method in methods) > 60:
            for tick in panels[-1].get_xticklabels():
                tick.set(rotation=40, horizontalalignment="right", rotation_mode="anchor")
    return figure


def _draw_reference(axes: Axes, values: Sequence[float], count: int) -> None:
    """Draws the retrained network's mean as a line across the panel, with its name and value at the right end."""
    if values:
        mean = math.fsum(values) / len(values)
        axes.axhline(mean, color=INK, linewidth=1.2, dashes=(5, 3), zorder=1)
        _write_beside(axes, f"retrained\n{mean:.2f}", mean, 5, color=INK)


def _write_beside(axes: Axes, text: str, height: float, points: float, **style: Any) -> None:
    """Writes a text to the right of a panel, at a height in its data and some points away."""
    axes.annotate(
        text,
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(points, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        **style,
    )


def sweep_figure(rows: Iterable[Row], name: str) -> Figure:
    """Draws the paper's Figure 2: accuracies and MIA over the values of a setting, with dashes for retrained networks.

    Lines connect the means over seeds, and bands reach from the lowest to the highest seed. The values of the setting
    are at equal distances, whatever their scale.

    Args:
      rows: The rows of one scenario. Those with `sweep["name"] == name` give the lines, and those of `REFERENCE` the
        dashed lines.
      name: The name of the setting.

    Raises:
      InputError: No row varies that setting.
    """
    rows = list(rows)
    swept: dict[float, list[Row]] = {}
    for row in rows:
        if row.get("sweep") is not None and row["sweep"]["name"] == name:
            swept.setdefault(float(row["sweep"]["value"]), []).append(row)
    if not swept:
        raise InputError(f"no row has a sweep of {name!r} to plot; name a setting that the rows vary")
    places = sorted(swept)
    references = [row for row in rows if row["method"] == REFERENCE]
    with figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, 4.6), layout=panel_layout())
        panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        metric = distances.quality_of(rows[0])
        titles = ("Accuracy (%)" if metric["title"] == "Acc" else f"{metric['title']} ({metric['unit']})", "MIA (%)")
        for axes, title, lines in zip(panels, titles, _sweep_lines(metric["name"]), strict=True):
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
        panels[-1].set_xlabel(plot_label(name))
    return figure


def _sweep_lines(metric: str) -> tuple[tuple[tuple[str, str, str, str], ...], ...]:
    """The lines of both panels: field, label, colour and marker, for readers and printers without colour."""
    looks = zip(_PARTS, (ORANGE, BLUE, GREEN), "os^", strict=True)
    lines = tuple((f"{metric}_{part}", part, color, marker) for part, color, marker in looks)
    return lines, (("mia", "MIA", PURPLE, "D"),)


def before_after_figure(rows: Iterable[Row]) -> Figure:
    """Draws the four numbers of a few networks: a circle for the first network, dots for the others.

    All are on one scale if they have one unit; otherwise MIA has a panel of its own.

    Args:
      rows: The rows of one scenario, with one row per method. The first is the network before unlearning. A number
        that a row lacks is left out.

    Raises:
      InputError: The rows have none of the four numbers.
    """
    rows = list(rows)
    example = task_row({"all": rows})
    titles, unit = _titles(example), distances.quality_of(example)["unit"]
    fields = [field for field in titles if numbers(rows, field)]
    if not fields:
        raise InputError(f"no row has one of {', '.join(titles)} to plot; give at least one number")
    units = {field: "%" if field == "mia" else unit for field in fields}
    parts = [[field for field in fields if units[field] == one] for one in dict.fromkeys(units.values())]
    with figure_style():
        height = 0.9 + 0.42 * len(fields) + 0.6 * (len(parts) - 1)
        figure = Figure(figsize=(PAGE_WIDTH, height), layout=panel_layout())
        panels = figure.subplots(len(parts), 1, squeeze=False, height_ratios=[len(part) for part in parts])[:, 0]
        for axes, part in zip(panels, parts, strict=True):
            _draw_before_after(axes, rows, {field: titles[field] for field in part}, units[part[0]])
        panels[0].legend(frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderpad=0)
    return figure


def _draw_before_after(axes: Axes, rows: Sequence[Row], titles: Mapping[str, str], unit: str) -> None:
    """Draws the numbers of one unit, one below the other."""
    colors = (INK, ORANGE, BLUE, GREEN, PURPLE)
    everything = [number for field in titles for number in numbers(rows, field)]
    for position, field in enumerate(titles):
        found = numbers(rows, field)
        axes.plot([min(found), max(found)], [position, position], color=INK, alpha=0.3, linewidth=3, zorder=1)
    for place, row in enumerate(rows):
        points = [(row[field], position) for position, field in enumerate(titles) if row.get(field) is not None]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        color = colors[place % len(colors)]
        fill = {"markerfacecolor": "white", "markeredgewidth": 1.8} if place == 0 else {"markeredgewidth": 0}
        axes.plot(x, y, "o", color=color, markersize=8, label=plot_label(row["method"]), clip_on=False, **fill)
    for position, field in enumerate(titles):
        text = " → ".join(rounded(number, 1 if unit == "%" else 2) for number in numbers(rows, field))
        _write_beside(axes, text, position, 12)
    axes.set_yticks(range(len(titles)), [title.removesuffix(f" ({unit})") for title in titles.values()], fontsize=9)
    axes.tick_params(axis="y", pad=8)  # A dot at the lower end reaches beyond the axis.
    axes.set_ylim(len(titles) - 0.4, -0.6)
    highest = max(100.0, *everything) if unit == "%" else max(everything) or 1.0
    axes.set_xlim(min(0.0, *everything), highest)
    axes.set_xlabel(unit)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def row_pictures(rows: Iterable[Row]) -> list[Picture]:
    """Draws all figures that the rows allow, each with the scenario whose table it belongs to.

    Rows that vary a setting are drawn over its values, and the others by method. If networks were measured once and
    there is no retrained network to compare with, a figure by method would show little, so the networks before and
    after are drawn on one scale.

    Args:
      rows: The rows of any number of scenarios.
    """
    shown = []
    for scenario, methods in grouped(rows).items():
        flat = [row for group in methods.values() for row in group]
        fixed = {method: group for method, group in methods.items() if group[0].get("sweep") is None}
        settings = dict.fromkeys(row["sweep"]["name"] for row in flat if row.get("sweep") is not None)
        if set(fixed) - {REFERENCE, REDRAWN} or not settings:
            shown += _method_pictures(scenario, fixed)
        shown += [
            Picture(
                sweep_figure(flat, setting),
                f"The same numbers over the values of {setting}. Lines are means over seeds, bands reach from the "
                "lowest to the highest seed, dashed lines are the means of the retrained networks.",
                f"Line plot of {_what(flat[0])} over {setting}; the numbers are in the table above.",
                scenario,
                name=f"sweep-{setting}",
            )
            for setting in settings
        ]
    return shown


def _gap_unit(row: Row, words: str) -> str:
    """The unit of the Avg. Gap in some words; "" if the numbers behind it have no unit in common."""
    return words.format("percentage points") if distances.quality_of(row)["unit"] == "%" else ""


def _what(row: Row) -> str:
    """The four numbers of a row in words."""
    metric = distances.quality_of(row)["title"]
    return f"forget, retain and test {'accuracy' if metric == 'Acc' else metric} and MIA"


def _method_pictures(scenario: str, methods: Methods) -> list[Picture]:
    """Draws the figures by method of one scenario."""
    rows = [row for group in methods.values() for row in group]
    means = [(method, cell(group, GAP_COLUMN)[0]) for method, group in methods.items()]
    gaps = "; ".join(f"{method} {mean}" for method, mean in means if mean != DASH)
    shown = []
    if gaps:
        shown.append(
            Picture(
                gap_figure(rows),
                f"{scenario}: the distance of each method to the retrained network (Avg. Gap). Bars end at the mean; "
                "every dot is one seed. Shorter is closer to retraining"
                + (
                    f"; {REDRAWN}, is how far apart two networks are that never saw the forget set."
                    if REDRAWN in methods
                    else "."
                ),
                f"Bar chart of the mean Avg. Gap{_gap_unit(rows[0], ' in {}')}: {gaps}.",
                scenario,
                name="gap",
            )
        )
    if REFERENCE in methods or any(len(group) > 1 for group in methods.values()):
        figure, caption = (
            panels_figure(rows),
            (
                "The four numbers behind the gap. Thick strokes are means, every dot is one seed, "
                "the dashed line is the mean of the retrained networks: the closer to it, the better."
            ),
        )
        alt = f"Four panels with {_what(rows[0])} of {'; '.join(methods)}"
    elif any(numbers(rows, field) for field in distances.gap_fields(rows[0])):
        figure, caption = (
            before_after_figure(rows),
            (f"What changed from {' to '.join(methods)}. There is no retrained network to compare with."),
        )
        alt = f"{_what(rows[0]).capitalize()} of {'; '.join(methods)}"
    else:
        return shown
    shown.append(Picture(figure, caption, f"{alt}; the numbers are in the table.", scenario, name="numbers"))
    return shown
