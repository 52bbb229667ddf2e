"""Results for people: tables for the terminal, `results.json`, and a self-contained `report.html` with its plots.

A row is a mapping with the keys of `ROW_FIELDS`, one per scenario, method and seed; accuracies, MIA and Avg. Gap are in
percent, run times in seconds. A number that is missing or `None` is shown as a dash.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import os
import platform
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from io import StringIO
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scissorhands_jax import files, metrics
from scissorhands_jax.errors import InputError

Row = Mapping[str, Any]

ROW_FIELDS = (
    "scenario",
    "method",
    "seed",
    "acc_forget",
    "acc_retain",
    "acc_test",
    "mia",
    "avg_gap",
    "seconds",
    "rte",
)
"""The keys of a row, in the order of the columns; `rte` is `seconds` over those of retraining."""

DASH = "–"
REFERENCE = "retrain"
"""The method that the plots compare all others with."""


class _Column(NamedTuple):
    field: str
    header: str  # words, then an arrow
    digits: int
    unit: str


# Arrows as in the paper's tables.
_COLUMNS = (
    _Column("acc_forget", "Acc forget ↓", 2, "%"),
    _Column("acc_retain", "Acc retain ↑", 2, "%"),
    _Column("acc_test", "Acc test ↑", 2, "%"),
    _Column("mia", "MIA ↑", 2, "%"),
    _Column("avg_gap", "Avg. Gap ↓", 2, "% points"),
    _Column("seconds", "Time ↓", 1, "s"),
    _Column("rte", "RTE ↓", 3, ""),
)


def _grouped(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """Rows by scenario and method, both in the order in which they first appear."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for position, row in enumerate(rows):
        for name in ("scenario", "method"):
            if not isinstance(row.get(name), str):
                raise InputError(f"row {position} needs a {name} that is text, got {row.get(name)!r}")
        groups.setdefault(row["scenario"], {}).setdefault(row["method"], []).append(row)
    return groups


def _values(rows: Iterable[Row], field: str) -> list[float]:
    """The numbers that are there; raises where one is not a number."""
    values = [row.get(field) for row in rows]
    for value in values:
        if not (value is None or (_is_number(value) and math.isfinite(value))):
            raise InputError(f"{field} must be a finite number or None, got {value!r}")
    return [float(value) for value in values if value is not None]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _number(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _mean_and_std(rows: Iterable[Row], column: _Column) -> tuple[str, str]:
    """Both as text; an empty second part where there is no spread to show."""
    values = _values(rows, column.field)
    if not values:
        return DASH, ""
    mean, std = metrics.mean_and_std(values)
    return _number(mean, column.digits), "" if std is None else f"±{_number(std, column.digits)}"


def _seeds(methods: Mapping[str, Sequence[Row]]) -> str:
    """What stands behind a scenario's numbers."""
    counts = sorted({len(rows) for rows in methods.values()})
    if counts == [1]:
        return "one seed"
    return f"mean ± standard deviation over {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds"


def _smallest_gap(methods: Mapping[str, Sequence[Row]]) -> str | None:
    """The method with the smallest mean Avg. Gap, if there are several to choose from."""
    gaps = {method: _values(rows, "avg_gap") for method, rows in methods.items()}
    means = {method: math.fsum(values) / len(values) for method, values in gaps.items() if values}
    return min(means, key=means.get) if len(means) > 1 else None


def print_tables(rows: Iterable[Row], console: Console) -> None:
    """Prints one table per scenario: a line per method, mean ± standard deviation over its seeds.

    The smallest mean Avg. Gap is printed bold. In a narrow terminal the deviation moves under the mean.

    Raises:
      InputError: a row without a scenario or method, or with something that is no number where one belongs.
    """
    for scenario, methods in _grouped(rows).items():
        table = _terminal_table(scenario, methods, " ")
        if console.measure(table, options=console.options.update(max_width=1000)).maximum > console.width:
            table = _terminal_table(scenario, methods, "\n")
        console.print(table)


def _terminal_table(scenario: str, methods: Mapping[str, Sequence[Row]], separator: str) -> Table:
    """One scenario; `separator` stands between mean and deviation, and between the words of a header."""
    best = _smallest_gap(methods)
    table = Table(
        title=Text(scenario, style="bold"),
        caption=f"{_seeds(methods)}; accuracies and MIA in %, time in s",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
    )
    table.add_column("Method", overflow="fold")
    for column in _COLUMNS:
        table.add_column(column.header.replace(" ", separator), justify="right", overflow="fold")
    for method, group in methods.items():
        cells = (separator.join(filter(None, _mean_and_std(group, column))) for column in _COLUMNS)
        table.add_row(Text(method), *cells, style="bold" if method == best else None)
    return table


def _plain(value: Any, where: str) -> Any:
    """Something JSON can hold, or an error that says where it is not."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}, which JSON cannot hold; use None for a number that is missing")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {key!r}, but the keys of JSON are text")
        return {key: _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{where}[{position}]") for position, entry in enumerate(value)]
    raise InputError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def write_results(path: str | os.PathLike, document: Mapping[str, Any]) -> None:
    """Writes results as JSON, all or nothing; missing folders are made.

    Args:
      path: the file, usually `results.json`; replaced if it is there.
      document: at least `rows` (each with the keys of `ROW_FIELDS`; `None` for what was not measured), `config`,
        `versions` and `machine`, such as `{"rows": rows, "config": config, **environment()}`. NumPy and JAX numbers
        and arrays are turned into plain ones.

    Raises:
      InputError: a key is missing, or a value is NaN, infinite or nothing that JSON has; the message says which one.
    """
    missing = [key for key in ("rows", "config", "versions", "machine") if key not in document]
    if missing:
        raise InputError(f"results need {', '.join(missing)}; found {', '.join(document) or 'nothing'}")
    plain = _plain(document, "results")
    for position, row in enumerate(plain["rows"]):
        missing = [field for field in ROW_FIELDS if field not in row]
        if missing:
            raise InputError(f"results.rows[{position}] lacks {', '.join(missing)}; use None for what was not measured")
    files.write_text(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def environment() -> dict[str, dict[str, Any]]:
    """What the numbers were made with: `{"versions": {package: version}, "machine": {...}}`; no host name, no path."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    devices = jax.devices()
    machine = {
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    return {"versions": versions, "machine": machine}


# Plots. Okabe and Ito's colours, which stay apart for colour-blind readers; always on white, also in a dark page.

_BLUE, _ORANGE, _INK, _SOFT, _RULE = "#0072B2", "#D55E00", "#1f2328", "#59636e", "#d1d9e0"
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


def _label(text: str) -> str:
    """Text for a plot, cut to what fits beside one; matplotlib must not take dollars for the start of a formula."""
    return (text if len(text) <= 24 else f"{text[:23]}…").replace("$", r"\$")


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
        for value in _values([row], "avg_gap"):
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
        axes.set_yticks(range(len(gaps)), [_label(method) for method in gaps])
        axes.set_ylim(len(gaps) - 0.4, -0.6)
        axes.set_xlim(0, 1.14 * top)
        axes.set_xlabel("Avg. Gap to the retrained network (percentage points)")
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
        for axes, field, title in zip(panels, metrics.GAP_FIELDS, titles, strict=True):
            for position, method in enumerate(methods):
                values = _values(groups[method], field)
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
            _draw_reference(axes, _values(groups.get(REFERENCE, []), field), len(methods))
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


def figure_svg(figure: Figure) -> str:
    """A figure as one `<svg>` element for an HTML page: no prolog, the page's font, ids that no other figure has."""
    buffer = StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    prefix = f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}-"

    def adapt(tag: re.Match) -> str:
        renamed = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}", tag[0])
        return re.sub(r"font-family: [^;\"]+", "font-family: system-ui, sans-serif", renamed)

    return re.sub(r"<[^>]+>", adapt, text)


def pictures(rows: Iterable[Row], histories: Mapping[str, Any] | None = None) -> list[Picture]:
    """All plots that the rows allow, with captions and alternative texts, for `write_html`.

    Args:
      rows: of any number of scenarios.
      histories: as in `curves_figure`; `None` for no curves.
    """
    shown = []
    gap = next(column for column in _COLUMNS if column.field == "avg_gap")
    for scenario, methods in _grouped(rows).items():
        flat = [row for group in methods.values() for row in group]
        means = [(method, _mean_and_std(group, gap)[0]) for method, group in methods.items()]
        gaps = ", ".join(f"{method} {mean}" for method, mean in means if mean != DASH)
        if gaps:
            shown.append(
                Picture(
                    gap_figure(flat),
                    "Avg. Gap by method. Bars end at the mean; every dot is one seed. Shorter is closer to retraining.",
                    f"Bar chart of the mean Avg. Gap in percentage points: {gaps}.",
                    scenario,
                )
            )
        shown.append(
            Picture(
                panels_figure(flat),
                "The four numbers behind the gap. Thick strokes are means, every dot is one seed, "
                "the dashed line is the mean of the retrained networks: the closer to it, the better.",
                f"Four panels with forget, retain and test accuracy and MIA of {', '.join(methods)}; "
                "the numbers are in the table above.",
                scenario,
            )
        )
    if histories:
        shown.append(
            Picture(
                curves_figure(histories),
                "What was recorded at every optimizer step; the last value stands at the end of each curve.",
                f"Curves over the optimizer steps: {', '.join(histories)}.",
            )
        )
    return shown


# The page. Nothing in it is loaded from anywhere, and its policy forbids the browser to try.

_PAGE = string.Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="lede">$lede</p>
$contents
</header>
<main>
$body
</main>
</body>
</html>
""")

_CSS = """\
:root {
  --page: #ffffff; --panel: #f6f8fa; --ink: #1f2328; --soft: #59636e; --rule: #d1d9e0; --accent: #0a5c94;
  --reference: #eef4f9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --panel: #1c2229; --ink: #e6e9ec; --soft: #9aa5b1; --rule: #343c46; --accent: #6cb6f0;
    --reference: #1d2935;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; text-wrap: balance; }
h2 {
  font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--rule);
}
.prose h2 { font-size: 1.15rem; margin-top: 1.8rem; padding-top: 0; border-top: 0; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p { margin: 0 0 .8rem; max-width: 42rem; }
a { color: var(--accent); }
.lede { color: var(--soft); }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; margin: 0; padding: 0; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; line-height: 1.35; overflow-wrap: normal; }
.note { color: var(--soft); font-size: .88rem; line-height: 1.45; }
th, td { padding: .42rem .5rem; text-align: right; vertical-align: baseline; border-bottom: 1px solid var(--rule); }
thead th { color: var(--soft); font-size: .8rem; font-weight: 600; vertical-align: bottom; }
thead th small { display: block; font-weight: 400; font-size: inherit; }
th:first-child, td:first-child { text-align: left; padding-left: .4rem; }
tbody th { font-weight: 500; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.std {
  display: inline-block; min-width: calc(var(--std) * 1ch); padding-left: .4em; text-align: left;
  color: var(--soft); font-size: .82em;
}
.single .std { display: none; }
.reference { background: var(--reference); }
.best > * { font-weight: 700; }
.best .std { font-weight: 400; }
details { margin: 0 0 1.6rem; }
summary { cursor: pointer; color: var(--accent); padding: .35rem 0; }
figure { margin: 1.6rem 0; max-width: 36rem; }
.card { background: #ffffff; border: 1px solid var(--rule); border-radius: .6rem; padding: .9rem; }
.card svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .88rem; line-height: 1.45; padding: .55rem .2rem 0; }
.groups { columns: 20rem; column-gap: 1rem; }
.group { break-inside: avoid; background: var(--panel); border-radius: .6rem; padding: .8rem 1rem; margin: 0 0 1rem; }
.group th, .group td { text-align: left; padding: .25rem 0; white-space: normal; overflow-wrap: anywhere; }
.group th { width: 45%; color: var(--soft); font-weight: 400; padding-right: 1rem; overflow-wrap: break-word; }
.group tr:last-child > * { border-bottom: 0; }
@media (max-width: 60rem) {
  .wide .std { display: block; min-width: 0; padding: 0; text-align: right; }
  .wide.single .std { display: none; }
}
@media (max-width: 40rem) {
  body { padding: 1.4rem .9rem 3rem; font-size: 15px; }
  h1 { font-size: 1.55rem; }
  h2 { margin-top: 2.2rem; font-size: 1.2rem; }
  .wide, .wide thead, .wide tbody { display: block; font-size: .78rem; }
  .wide tr {
    display: grid; grid-template-columns: repeat(7, 1fr); padding: .3rem 0; border-bottom: 1px solid var(--rule);
  }
  .wide th, .wide td { border: 0; padding: .05rem .1rem; }
  .wide thead th { font-size: .72rem; line-height: 1.25; }
  /* "Method" and, where there is one, "Seed": the seven numbers follow */
  .wide thead th:first-child, .wide thead th:nth-last-child(8) { display: none; }
  .wide tbody th { grid-column: 1 / -1; font-size: .86rem; font-weight: 600; padding-left: .2rem; }
  .wide .seed { grid-column: 6 / 8; color: var(--soft); }
  .wide .seed::before { content: "seed "; }
  .wide tr:has(.seed) th { grid-column: 1 / 6; }
  .wide .std { font-size: .88em; }
  .card { padding: .4rem; }
}
"""


def write_html(
    path: str | os.PathLike,
    *,
    title: str,
    summary_sections: Sequence[tuple[str, Sequence[str]]],
    rows: Iterable[Row],
    figures: Sequence[Picture],
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> None:
    """Writes a report that is one file: it loads nothing, reads well on a phone, and follows light and dark mode.

    Args:
      path: the file, usually `report.html`; replaced if it is there, all or nothing.
      title: heading of the page.
      summary_sections: what was done and how to read it, as `(heading, paragraphs)`; plain text.
      rows: all results; each scenario gets a table of means and a fold-out with every row.
      figures: plots, as from `pictures`.
      settings: what the runs were configured with; mappings inside become groups.
      environment: as from the function of that name.

    Raises:
      InputError: a row that cannot be shown, or a figure of a scenario that has no rows.
    """
    groups = _grouped(rows)
    for figure in figures:
        if figure.scenario is not None and figure.scenario not in groups:
            raise InputError(f"a figure belongs to the scenario {figure.scenario!r}, which has no rows")
    body = [_prose(heading, paragraphs) for heading, paragraphs in summary_sections]
    for position, (scenario, methods) in enumerate(groups.items()):
        own = [figure for figure in figures if figure.scenario == scenario]
        body.append(_scenario(f"scenario-{position + 1}", scenario, methods, own))
    general = [figure for figure in figures if figure.scenario is None]
    if general:
        body.append(f"<section>\n<h2>Over the run</h2>\n{_figures(general)}</section>")
    body += [_key_values("Settings", settings), _key_values("Made with", environment)]
    links = "".join(f'<li><a href="#scenario-{i + 1}">{html.escape(name)}</a></li>' for i, name in enumerate(groups))
    page = _PAGE.substitute(
        title=html.escape(title),
        style=_CSS,
        lede=_lede(groups),
        contents=f'<nav aria-label="Scenarios"><ul>{links}</ul></nav>' if len(groups) > 1 else "",
        body="\n".join(filter(None, body)),
    )
    files.write_text(path, page)


def _lede(groups: Mapping[str, Mapping[str, Sequence[Row]]]) -> str:
    runs = sum(len(rows) for methods in groups.values() for rows in methods.values())
    names = {method for methods in groups.values() for method in methods}
    counts = ((runs, "run"), (len(names), "method"), (len(groups), "scenario"))
    return " · ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)


def _prose(heading: str, paragraphs: Sequence[str]) -> str:
    text = "".join(f"<p>{html.escape(paragraph)}</p>\n" for paragraph in paragraphs)
    return f'<section class="prose">\n<h2>{html.escape(heading)}</h2>\n{text}</section>'


def _breakable(name: str) -> str:
    """A name that may break after its dots and underscores, for narrow columns."""
    return re.sub(r"([._])", r"\1<wbr>", html.escape(name))


# The roles say what the tags say already; without them a table that a phone lays out as a grid would be none to a
# screen reader.
_HEAD = '<th role="columnheader" scope="col">'


def _header(column: _Column) -> str:
    return f"{_HEAD}{column.header} <small>{column.unit or 'ratio'}</small></th>"


def _table(label: str, attributes: str, headers: str, lines: Iterable[str]) -> str:
    """A wide table in a box that scrolls, should all else fail."""
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="{label}">
<table role="table" {attributes} aria-label="{label}">
<thead role="rowgroup"><tr role="row">{headers}{"".join(map(_header, _COLUMNS))}</tr></thead>
<tbody role="rowgroup">
{chr(10).join(lines)}
</tbody>
</table>
</div>"""


def _scenario(anchor: str, scenario: str, methods: Mapping[str, Sequence[Row]], figures: Sequence[Picture]) -> str:
    """One scenario: means, every row, plots."""
    best = _smallest_gap(methods)
    cells = {method: [_mean_and_std(rows, column) for column in _COLUMNS] for method, rows in methods.items()}
    # A column's deviations are as wide as the longest of them, so that the means in front of them line up.
    widths = [max(len(pairs[column][1]) for pairs in cells.values()) for column in range(len(_COLUMNS))]
    lines = []
    for method, pairs in cells.items():
        kind = "reference" if method == REFERENCE else "best" if method == best else ""
        texts = "".join(
            f'<td role="cell">{mean}<span class="std" style="--std: {width}">{std}</span></td>'
            for (mean, std), width in zip(pairs, widths, strict=True)
        )
        lines.append(
            f'<tr role="row" class="{kind}"><th role="rowheader" scope="row">{_breakable(method)}</th>{texts}</tr>'
        )
    attributes = f'class="wide{"" if any(widths) else " single"}"'
    note = f"{_seeds(methods).capitalize()}. Arrows point to what the paper calls better; what counts is closeness to "
    note += "the retrained network." if best is None else "the retrained network: the smallest Avg. Gap is bold."
    count = sum(map(len, methods.values()))
    name = html.escape(scenario)
    return f"""<section id="{anchor}">
<h2>{name}</h2>
<p class="note">{note}</p>
{_table(f"Means, {name}", attributes, f"{_HEAD}Method</th>", lines)}
<details>
<summary>Every seed ({count} row{"" if count == 1 else "s"})</summary>
{_every_row(name, methods)}
</details>
{_figures(figures)}</section>"""


def _every_row(name: str, methods: Mapping[str, Sequence[Row]]) -> str:
    lines = []
    for method, rows in methods.items():
        for row in rows:
            values = (_number(next(iter(_values([row], column.field)), None), column.digits) for column in _COLUMNS)
            cells = "".join(f'<td role="cell">{value}</td>' for value in values)
            seed = DASH if row.get("seed") is None else html.escape(str(row["seed"]))
            lines.append(
                f'<tr role="row"><th role="rowheader" scope="row">{html.escape(method)}</th>'
                f'<td role="cell" class="seed">{seed}</td>{cells}</tr>'
            )
    return _table(f"Every seed, {name}", 'class="wide"', f"{_HEAD}Method</th>{_HEAD}Seed</th>", lines)


def _figures(figures: Sequence[Picture]) -> str:
    return "".join(
        f'<figure>\n<div class="card" role="img" aria-label="{html.escape(picture.alt)}">\n'
        f"{figure_svg(picture.figure)}\n</div>\n<figcaption>{html.escape(picture.caption)}</figcaption>\n</figure>\n"
        for picture in figures
    )


def _key_values(heading: str, values: Mapping[str, Any]) -> str:
    """A heading and one small table per mapping in `values`; what is no mapping comes first, in a table of its own."""
    loose = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    groups = {"": loose} | {key: value for key, value in values.items() if isinstance(value, Mapping)}
    tables = []
    for name, group in groups.items():
        lines = "".join(
            f'<tr><th scope="row">{_breakable(key)}</th><td>{html.escape(value)}</td></tr>\n'
            for key, value in _flat(group)
        )
        if lines:
            title = f"<h3>{html.escape(name)}</h3>\n" if name else ""
            tables.append(f'<div class="group">\n{title}<table>\n<tbody>\n{lines}</tbody>\n</table>\n</div>\n')
    if not tables:
        return ""
    return f'<section>\n<h2>{heading}</h2>\n<div class="groups">\n{"".join(tables)}</div>\n</section>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of text, with dotted names."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            lines.append((f"{prefix}{key}", ", ".join(map(str, value)) or DASH))
        elif isinstance(value, float):
            lines.append((f"{prefix}{key}", f"{value:g}"))
        else:
            lines.append((f"{prefix}{key}", DASH if value is None else str(value)))
    return lines
