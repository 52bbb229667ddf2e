"""Tables of results for the terminal, Markdown and LaTeX: a line per method, mean ± standard deviation over seeds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import distances
from scissorhands_jax.plain_terminal import PlainConsole
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
    task_row,
    units_note,
)
from scissorhands_jax.terminal import Console, Table, literal, printable, say


def print_tables(rows: Iterable[Row], console: Console) -> None:
    """Prints one table per scenario: a line per method, with mean ± standard deviation over its seeds.

    The method with the smallest mean Avg. Gap is bold. In a narrow terminal deviations move below their means.

    Args:
      rows: The rows of any number of scenarios.
      console: Where to print.

    Raises:
      InputError: A row has no scenario or method, or has a value that is not a number where one is expected.
    """
    for scenario, methods in grouped(rows).items():
        if isinstance(console, PlainConsole):
            say(console, f"{scenario}\n{markdown(scenario_grid(methods))}")
            continue
        shown = columns(methods)
        narrow = tuple(column for column in shown if column.kind != "interval")
        for attempt in ((shown, " "), (shown, "\n"), (narrow, "\n")):
            table = _terminal_table(scenario, methods, *attempt)
            if console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width:
                break
        console.print(table)


def _terminal_table(scenario: str, methods: Methods, shown: Sequence[Column], separator: str) -> Table:
    """Makes the table of one scenario. `separator` is between mean and deviation, and between the words of headings."""
    best = smallest_gap(methods)
    caption = "; ".join(filter(None, (f"{seeds(methods)}; {units_note(methods)}", interval_note(methods, shown))))
    table = _framed(title=literal((scenario, "bold")), caption=literal(caption), padding=(0, 0, 0, 1))
    table.add_column("Method", overflow="fold")
    for column in shown:
        table.add_column(literal(column.header.replace(" ", separator)), justify="right", overflow="fold")
    for method, group in methods.items():
        cells = (separator.join(filter(None, cell(group, column))) for column in shown)
        table.add_row(
            literal(method),
            *(literal(shown.replace(", ", f",{separator}")) for shown in cells),
            style="bold" if method == best else None,
        )
    return table


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a grid: a text, its deviation or interval, and whether it is the best of its column."""

    text: str
    deviation: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table, which can be shown in Markdown, LaTeX, a terminal or a page.

    Attributes:
      headers: The heading of each column.
      lines: The cells of each line, one per column.
      words: The number of columns, from the left, that hold words and not numbers.
    """

    headers: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    words: int = 1


def scenario_grid(methods: Methods) -> Grid:
    """Makes the table of one scenario, with the smallest mean Avg. Gap marked as best.

    Args:
      methods: Rows by method, as in the result of `grouped`.
    """
    shown, best = columns(methods), smallest_gap(methods)
    lines = []
    for method, rows in methods.items():
        cells = (Cell(*cell(rows, column), method == best and _is_gap(column)) for column in shown)
        lines.append((Cell(method), *cells))
    return Grid(("Method", *map(_header, shown)), tuple(lines))


def _is_gap(column: Column) -> bool:
    return (column.field, column.kind) == (GAP_COLUMN.field, GAP_COLUMN.kind)


def comparison(methods: Methods, published: Iterable[Mapping[str, Any]]) -> Grid:
    """Makes a table of measured numbers above published ones for each method: the four numbers and Avg. Gap.

    Args:
      methods: Rows by method, as in the result of `grouped`.
      published: One mapping per method, with its name in `method`, and for each field `[mean, standard deviation]`, a
        number, or None.

    Raises:
      InputError: A published value is not a number.
    """
    fields = distances.gap_fields(task_row(methods))
    shown = [column for column in columns(methods) if column.field in fields or _is_gap(column)]
    found = {entry["method"]: entry for entry in published}
    lines = []
    for method in dict.fromkeys((*methods, *found)):
        name = Cell(method)
        if method in methods:
            lines.append((name, Cell("here"), *(Cell(*cell(methods[method], column)) for column in shown)))
            name = Cell("")
        if method in found:
            lines.append((name, Cell("paper"), *(_published(found[method], column) for column in shown)))
    return Grid(("Method", "", *map(_header, shown)), tuple(lines), words=2)


def _published(entry: Mapping[str, Any], column: Column) -> Cell:
    value = entry.get(column.field)
    pair: Sequence[Any] = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)
    mean, std = pair
    if not all(part is None or is_number(part) for part in pair):
        raise InputError(f"the published {column.field} of {entry['method']} is {value!r}; give [mean, deviation]")
    return Cell(rounded(mean, column.digits), "" if std is None else f"±{rounded(std, column.digits)}")


def _header(column: Column) -> str:
    words, _, arrow = column.header.rpartition(" ")
    unit = "" if column.unit in ("", "interval") else f" ({column.unit})"
    return f"{words} {arrow}{unit}" if arrow in "↑↓" else f"{column.header}{unit}"


def print_grid(heading: str, table: Grid, console: Console) -> None:
    """Prints a grid in the terminal below its heading. Deviations and intervals are below their numbers.

    Args:
      heading: The heading.
      table: The grid.
      console: Where to print.
    """
    if isinstance(console, PlainConsole):
        say(console, f"{heading}\n{markdown(table)}")
        return
    shown = _framed(title=literal(heading))
    for position, header in enumerate(table.headers):
        shown.add_column(literal(header), justify="left" if position < table.words else "right")
    for cells in table.lines:
        shown.add_row(*(literal(f"{cell.text}\n{cell.deviation}".strip()) for cell in cells))
    console.print(shown)


def _framed(**options: Any) -> Table:
    """Makes an empty table in the style of all tables in the terminal."""
    from rich import box

    return Table(title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, **options)


def markdown(table: Grid) -> str:
    """Writes a grid as a Markdown table. The best cell of a column is bold."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    rules = ["---"] * table.words + ["---:"] * (len(table.headers) - table.words)
    return (
        line(map(markdown_text, table.headers))
        + line(rules)
        + "".join(line(map(_markdown_cell, cells)) for cells in table.lines)
    )


def _markdown_cell(cell: Cell) -> str:
    text = markdown_text(f"{cell.text} {cell.deviation}")
    return f"**{text}**" if cell.best else text


def markdown_text(text: str) -> str:
    """Escapes a text for Markdown, on one line, so that it is shown as it is."""
    return re.sub(r"([\\`*_\[\]<>|~#$&])", r"\\\1", " ".join(printable(text).split()))


def latex(table: Grid, *, caption: str, label: str) -> str:
    r"""Writes a grid as a LaTeX `table` with the rules of booktabs. The best cell of a column is bold.

    Args:
      table: The grid.
      caption: The caption, as plain text.
      label: The label for `\ref`, of letters, digits, `:` and `-`.
    """

    def line(cells: Iterable[str]) -> str:
        first, *others = cells
        # At the beginning of a line these would be taken for an option of the command before it.
        first = f"{{{first}}}" if first.startswith(("[", "*")) else first
        return f"    {' & '.join((first, *others))} \\\\\n"

    kinds = "l" * table.words + "r" * (len(table.headers) - table.words)
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
    """Escapes a text for LaTeX, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(printable(text).split()))
