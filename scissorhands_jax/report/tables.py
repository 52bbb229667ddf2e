"""Tables of results for the terminal, Markdown and LaTeX: a line per method, mean ± standard deviation over seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scissorhands_jax.errors import InputError
from scissorhands_jax.report.rows import (
    DASH,
    GAP_COLUMN,
    Column,
    Methods,
    Row,
    cell,
    columns,
    grouped,
    interval_note,
    is_number,
    rounded,
    seeds,
    smallest_gap,
)


def print_tables(rows: Iterable[Row], console: Console) -> None:
    """Prints one table per scenario: a line per method, mean ± standard deviation over its seeds.

    The smallest mean Avg. Gap is printed bold. In a narrow terminal the deviation moves under the mean.

    Raises:
      InputError: a row without a scenario or method, or with something that is no number where one belongs.
    """
    for scenario, methods in grouped(rows).items():
        shown = columns(methods)
        narrow = tuple(column for column in shown if column.kind != "interval")
        for attempt in ((shown, " "), (shown, "\n"), (narrow, "\n")):
            table = _terminal_table(scenario, methods, *attempt)
            if console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width:
                break
        console.print(table)


def _terminal_table(scenario: str, methods: Methods, shown: Sequence[Column], separator: str) -> Table:
    """One scenario; `separator` stands between mean and deviation, and between the words of a header."""
    best = smallest_gap(methods)
    caption = f"{seeds(methods)}; accuracies and MIA in %, time in s"
    if any(column.kind == "interval" for column in shown):
        caption += f"; {interval_note(methods)}"
    table = Table(
        title=Text(scenario, style="bold"),
        caption=Text(caption),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0, 0, 1),
    )
    table.add_column("Method", overflow="fold")
    for column in shown:
        table.add_column(column.header.replace(" ", separator), justify="right", overflow="fold")
    for method, group in methods.items():
        cells = (separator.join(filter(None, cell(group, column))) for column in shown)
        # Text, because an interval's brackets are no markup.
        table.add_row(
            Text(method),
            *(Text(shown.replace(", ", f",{separator}")) for shown in cells),
            style="bold" if method == best else None,
        )
    return table


class Cell(NamedTuple):
    """What stands in one place of a grid."""

    text: str
    deviation: str = ""
    best: bool = False


class Grid(NamedTuple):
    """A table on its way to Markdown or LaTeX; the first column is text, also where its header is empty."""

    headers: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]


def grid(methods: Methods) -> Grid:
    """The table of one scenario, with the smallest mean Avg. Gap marked as best.

    Args:
      methods: rows by method, as of `grouped`.
    """
    shown, best = columns(methods), smallest_gap(methods)
    lines = []
    for method, rows in methods.items():
        cells = (Cell(*cell(rows, column), method == best and column == GAP_COLUMN) for column in shown)
        lines.append((Cell(method), *cells))
    return Grid(("Method", *map(_header, shown)), tuple(lines))


def comparison(methods: Methods, published: Iterable[Mapping[str, Any]]) -> Grid:
    """Measured numbers above published ones, method by method, with the four percentages and Avg. Gap.

    Args:
      methods: rows by method, as of `grouped`.
      published: one mapping per method: `method`, as in `methods` where it is there too, and per field
        `[mean, standard deviation]`, a number, or None.

    Raises:
      InputError: a published number is none.
    """
    shown = [column for column in columns(methods) if column.kind == "mean" and column.unit.startswith("%")]
    found = {entry["method"]: entry for entry in published}
    lines = []
    for method in dict.fromkeys((*methods, *found)):
        name = Cell(method)
        if method in methods:
            lines.append((name, Cell("here"), *(Cell(*cell(methods[method], column)) for column in shown)))
            name = Cell("")
        if method in found:
            lines.append((name, Cell("paper"), *(_published(found[method], column) for column in shown)))
    return Grid(("Method", "", *map(_header, shown)), tuple(lines))


def _published(entry: Mapping[str, Any], column: Column) -> Cell:
    value = entry.get(column.field)
    mean, std = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)
    if not all(part is None or is_number(part) for part in (mean, std)):
        raise InputError(f"the published {column.field} of {entry['method']} is {value!r}; give [mean, deviation]")
    return Cell(rounded(mean, column.digits), "" if std is None else f"±{rounded(std, column.digits)}")


def _header(column: Column) -> str:
    words, _, arrow = column.header.rpartition(" ")
    unit = "" if column.unit in ("", "interval") else f" ({column.unit})"
    return f"{words} {arrow}{unit}" if arrow in "↑↓" else f"{column.header}{unit}"


def _left(table: Grid) -> int:
    """How many columns hold words."""
    return sum(header in ("Method", "", "Gate", "Outcome", "Why") for header in table.headers)


def markdown(table: Grid) -> str:
    """A grid as a Markdown table; what is best is bold."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    rules = ["---"] * _left(table) + ["---:"] * (len(table.headers) - _left(table))
    return (
        line(map(_markdown_text, table.headers))
        + line(rules)
        + "".join(line(map(_markdown_cell, cells)) for cells in table.lines)
    )


def _markdown_cell(cell: Cell) -> str:
    text = _markdown_text(f"{cell.text} {cell.deviation}")
    return f"**{text}**" if cell.best else text


def _markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|~#$])", r"\\\1", " ".join(text.split()))


def latex(table: Grid, *, caption: str, label: str) -> str:
    r"""A grid as a LaTeX `table` with the rules of booktabs; what is best is bold.

    Args:
      caption: plain text.
      label: for `\ref`; letters, digits, `:` and `-`.
    """

    def line(cells: Iterable[str]) -> str:
        return f"    {' & '.join(cells)} \\\\\n"

    kinds = "l" * _left(table) + "r" * (len(table.headers) - _left(table))
    return (
        "\\begin{table}\n  \\centering\n"
        f"  \\caption{{{_latex_text(caption)}}}\n  \\label{{{label}}}\n"
        f"  \\begin{{tabular}}{{{kinds}}}\n    \\toprule\n{line(map(_latex_text, table.headers))}    \\midrule\n"
        f"{''.join(line(map(_latex_cell, cells)) for cells in table.lines)}    \\bottomrule\n"
        "  \\end{tabular}\n\\end{table}\n"
    )


def _latex_cell(cell: Cell) -> str:
    deviation = f"{{\\scriptsize {_latex_text(cell.deviation)}}}" if cell.deviation else ""
    text = _latex_text(cell.text) + deviation
    return rf"\textbf{{{text}}}" if cell.best else text


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "λ": r"$\lambda$",
    DASH: "--",
}


def _latex_text(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
