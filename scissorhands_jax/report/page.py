"""`report.html`: one file that loads nothing from elsewhere, begins with the result, and suits phones and dark mode."""

from __future__ import annotations

import base64
import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from scissorhands_jax import files
from scissorhands_jax.errors import InputError
from scissorhands_jax.report.drawing import Picture, figure_png, figure_svg
from scissorhands_jax.report.gate_texts import gate_lines
from scissorhands_jax.report.rows import (
    DASH,
    REFERENCE,
    TERMS,
    Column,
    Methods,
    Row,
    cell,
    columns,
    failures_note,
    further_columns,
    grouped,
    interval_note,
    lost_runs,
    seeds,
    smallest_gap,
)
from scissorhands_jax.report.tables import Cell, Grid

_FOLDED_FROM = 60  # Longer lists of settings are folded.


@dataclasses.dataclass(frozen=True)
class Section:
    """Paragraphs of plain text under a heading."""

    heading: str
    paragraphs: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table under a heading, with notes in small print above it."""

    heading: str
    table: Grid
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """The content of a page, in the order in which it is shown. All texts are plain text.

    Attributes:
      title: The heading of the page.
      answer: The result in a sentence, directly below the title.
      byline: A line in small print. By default it gives the numbers of runs, methods and scenarios.
      warnings: What went wrong, in sentences that stand out.
      trust: Whether the numbers can be trusted, in a sentence or two.
      leading: The figures that show the result.
      gates: The gates, as in `results.json`, which become a table with a sign for each.
      gates_first: Whether the table of gates comes before all other tables. By default it comes after them.
      sheets: Further tables.
      rows: All results. Each scenario has a table of means, and a folded table with every row.
      figures: Further figures, each with the table of its scenario or below all tables.
      remarks: Text below all tables that is always visible.
      explanations: Text about what was done and how to read it, folded.
      settings: The configuration of the runs. Mappings inside become groups.
      hashes: Hashes of networks, forget sets and the like, by name. Mappings inside become groups.
      environment: The result of `results.environment`.
    """

    title: str
    answer: str
    byline: str | None = None
    warnings: Sequence[str] = ()
    trust: str | None = None
    leading: Sequence[Picture] = ()
    gates: Sequence[Mapping[str, Any]] = ()
    gates_first: bool = False
    sheets: Sequence[Sheet] = ()
    rows: Iterable[Row] = ()
    figures: Sequence[Picture] = ()
    remarks: Sequence[Section] = ()
    explanations: Sequence[Section] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hashes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def failures_section(document: Mapping[str, Any]) -> list[Section]:
    """The remark on the runs of a table or an audit that diverged, if there are any.

    Args:
      document: The results, with `rows` and `failures`.
    """
    note = failures_note(document)
    return [Section("Runs that diverged", [note])] if note else []


def write_html(path: str | os.PathLike, page: Page) -> None:
    """Writes a page as one file.

    Args:
      path: The file, usually `report.html`. An existing file is replaced, wholly or not at all.
      page: The content of the page.

    Raises:
      InputError: A row cannot be shown, or a figure belongs to a scenario that has no rows.
    """
    groups = grouped(page.rows)
    for figure in page.figures:
        if figure.scenario is not None and figure.scenario not in groups:
            raise InputError(f"a figure belongs to the scenario {figure.scenario!r}, which has no rows; add its rows")
    general: dict[str, list[Picture]] = {}
    for figure in page.figures:
        if figure.scenario is None:
            general.setdefault(figure.heading, []).append(figure)
    scenarios = [_scenario(name, methods, page.figures) for name, methods in groups.items()]
    fields = {column.field for scenario in scenarios for column in scenario.means.columns}
    text = (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            byline=_byline(groups) if page.byline is None else page.byline,
            gates=gate_lines(page.gates),
            scenarios=scenarios,
            terms=[term for term in TERMS if term.field in fields],
            general=general,
            facts=[
                fact
                for heading, values in (
                    ("Settings", page.settings),
                    ("Hashes", page.hashes),
                    ("Made with", page.environment),
                )
                if (fact := _facts(heading, values)).groups
            ],
        )
    )
    files.write_text(path, text)


@functools.cache
def _environment() -> jinja2.Environment:
    """Returns the templates. Everything that they show is escaped, except the SVG of our own figures."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scissorhands_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["svg"] = lambda picture: Markup(figure_svg(picture.figure))
    environment.filters["png"] = lambda picture: base64.b64encode(figure_png(picture.figure)).decode()
    return environment


def _breakable(name: str) -> Markup:
    """Allows line breaks after the dots and underscores of a name, for narrow columns, but not within numbers."""
    return Markup(re.sub(r"([._])(?!\d)", r"\1<wbr>", str(escape(name))))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _byline(groups: Mapping[str, Mapping[str, Sequence[Row]]]) -> str:
    """Returns the numbers of runs, methods and scenarios as text, or "" for a page without rows."""
    if not groups:
        return ""
    runs = sum(len(rows) for methods in groups.values() for rows in methods.values())
    names = {method for methods in groups.values() for method in methods}
    return " · ".join((_counted(runs, "run"), _counted(len(names), "method"), _counted(len(groups), "scenario")))


@dataclasses.dataclass(frozen=True)
class _Line:
    """A line of a wide table."""

    names: tuple[str, ...]  # the method, and the seed in a table of every row
    cells: tuple[Cell, ...]
    role: str = ""  # the class of the line in the page: "best", "reference" or ""


@dataclasses.dataclass(frozen=True)
class _WideTable:
    """A table of rows of results, which a phone shows as a grid.

    Attributes:
      label: The name of the table for a screen reader.
      names: The headings of the columns before the numbers: the method, and perhaps the seed.
      columns: The columns of numbers.
      lines: All lines.
      widths: The number of characters in the longest deviation of each column, which aligns the means before them.
    """

    label: str
    names: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: tuple[_Line, ...]
    widths: tuple[int, ...]

    @property
    def classes(self) -> str:
        """The classes of the table in the page. With more than seven numbers, deviations move below their means."""
        return "wide" + " many" * (len(self.columns) > 7) + " single" * (not any(self.widths))

    @property
    def per_line(self) -> int:
        """The number of numbers that a phone shows in a line."""
        return 5 if len(self.columns) > 7 else 7


@dataclasses.dataclass(frozen=True)
class _Scenario:
    """The part of a page about one scenario."""

    name: str
    note: str
    means: _WideTable
    further: _WideTable | None
    every_row: _WideTable | None
    count: str
    figures: tuple[Picture, ...]


def _scenario(name: str, methods: Methods, figures: Sequence[Picture]) -> _Scenario:
    note = f"{seeds(methods).capitalize()}. Arrows point to what the paper calls better. What counts is closeness to "
    note += "the retrained network"
    kept = ", of methods of which no run diverged" if any(map(lost_runs, methods.values())) else ""
    note += ". " if smallest_gap(methods) is None else f": the smallest Avg. Gap is bold{kept}. "
    note += f"{interval}." if (interval := interval_note(methods)) else ""
    further = further_columns(methods)
    shown = tuple(
        column for column in columns(methods) if any(cell(rows, column)[0] != DASH for rows in methods.values())
    )
    several = any(len(rows) > 1 for rows in methods.values())  # With one seed each, the means are the rows themselves.
    return _Scenario(
        name=name,
        note=note.strip(),
        means=_means(f"Means, {name}", methods, shown),
        further=_means(f"Further numbers, {name}", methods, further) if further else None,
        every_row=_every_row(f"Every seed, {name}", methods) if several else None,
        count=_counted(sum(map(len, methods.values())), "row"),
        figures=tuple(figure for figure in figures if figure.scenario == name),
    )


def _means(label: str, methods: Methods, shown: tuple[Column, ...]) -> _WideTable:
    """Makes the table of means, with a line per method."""
    best = smallest_gap(methods)
    roles = {best: "best", REFERENCE: "reference"}
    lines = tuple(
        _Line((method,), tuple(Cell(*cell(rows, column)) for column in shown), roles.get(method, ""))
        for method, rows in methods.items()
    )
    widths = tuple(max(len(line.cells[place].deviation) for line in lines) for place in range(len(shown)))
    return _WideTable(label, ("Method",), shown, lines, widths)


def _every_row(label: str, methods: Methods) -> _WideTable:
    """Makes the table of every row."""
    shown = tuple(column for column in columns(methods) if column.kind != "interval")
    lines = []
    for method, rows in methods.items():
        for row in rows:
            texts = (cell([row], column)[0] for column in shown)
            seed = DASH if row.get("seed") is None else str(row["seed"])
            lines.append(_Line((method, seed), tuple(map(Cell, texts))))
    return _WideTable(label, ("Method", "Seed"), shown, tuple(lines), (0,) * len(shown))


@dataclasses.dataclass(frozen=True)
class _Facts:
    """Names and values in groups, each with a title and lines."""

    heading: str
    groups: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

    @property
    def folded(self) -> int:
        """The number of lines if they are so many that they are folded, and otherwise 0."""
        count = sum(len(lines) for _, lines in self.groups)
        return count if count > _FOLDED_FROM else 0


def _facts(heading: str, values: Mapping[str, Any]) -> _Facts:
    """Makes one small table per group in `values`. Values outside groups come first, in a table of their own."""
    groups = [("", _flat({key: value for key, value in values.items() if not _is_group(value)}))]
    for key, value in values.items():
        if _is_group(value):
            groups += _groups(key, value)
    return _Facts(heading, tuple((title, tuple(lines)) for title, lines in groups if lines))


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) or _is_collection(value)


def _is_collection(value: Any) -> bool:
    """Says whether a value holds only mappings, such as the settings of several methods."""
    entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return bool(entries) and all(isinstance(entry, Mapping) for entry in entries)


def _groups(title: str, value: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns titles and lines. A mapping is one group, and a collection has one group for each of its entries."""
    if _is_collection(value):
        named = value if isinstance(value, Mapping) else {e.get("name", i + 1): e for i, e in enumerate(value)}
        return [group for name, entry in named.items() for group in _groups(f"{title} · {name}", entry)]
    own = {key: entry for key, entry in value.items() if not _is_collection(entry)}
    groups = [(title, _flat(own))]
    for key, entry in value.items():
        if _is_collection(entry):
            groups += _groups(f"{title} · {key}", entry)
    return groups


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Writes nested settings as lines of text with dotted names."""
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
