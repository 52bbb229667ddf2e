"""`report.html`: one page that loads nothing, reads well on a phone, and follows light and dark mode."""

from __future__ import annotations

import base64
import html
import os
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scissorhands_jax import files
from scissorhands_jax.errors import InputError
from scissorhands_jax.report.figures import Picture, figure_png, figure_svg
from scissorhands_jax.report.rows import (
    DASH,
    REFERENCE,
    Column,
    Methods,
    Row,
    cell,
    columns,
    further_columns,
    grouped,
    interval_note,
    numbers,
    rounded,
    seeds,
    smallest_gap,
)
from scissorhands_jax.report.tables import Grid

# Nothing in the page is loaded from anywhere, and its policy forbids the browser to try.
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
.many .std { display: block; min-width: 0; padding: 0; text-align: right; }
.single .std { display: none; }
.reference { background: var(--reference); }
.best > * { font-weight: 700; }
.best .std { font-weight: 400; }
details { margin: 0 0 1.6rem; }
summary { cursor: pointer; color: var(--accent); padding: .35rem 0; }
figure { margin: 1.6rem 0; max-width: 36rem; }
.card { background: #ffffff; border: 1px solid var(--rule); border-radius: .6rem; padding: .9rem; }
.card svg, .card img { display: block; width: 100%; height: auto; }
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
    display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); padding: .3rem 0;
    border-bottom: 1px solid var(--rule);
  }
  .wide th, .wide td { border: 0; padding: .05rem .1rem; }
  .wide thead th { font-size: .72rem; line-height: 1.25; }
  .wide thead .name { display: none; }
  .wide .interval { grid-column: span 2; }
  .wide tbody th { grid-column: 1 / -1; font-size: .86rem; font-weight: 600; padding-left: .2rem; }
  .wide .seed { grid-column: -3 / -1; color: var(--soft); }
  .wide .seed::before { content: "seed "; }
  .wide tr:has(.seed) th { grid-column: 1 / -3; }
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
    hashes: Mapping[str, Any] | None = None,
    sheets: Sequence[tuple[str, Sequence[str], Grid]] = (),
    lede: str | None = None,
) -> None:
    """Writes a report that is one file.

    Args:
      path: the file, usually `report.html`; replaced if it is there, all or nothing.
      title: heading of the page.
      summary_sections: what was done and how to read it, as `(heading, paragraphs)`; plain text.
      rows: all results; each scenario gets a table of means and a fold-out with every row.
      figures: plots, as from `pictures`.
      settings: what the runs were configured with; mappings inside become groups.
      environment: as from the function of that name.
      hashes: of networks, forget sets and the like, by name; mappings inside become groups.
      sheets: further tables, shown before all rows, as `(heading, paragraphs, grid)`.
      lede: the line under the title; default how many runs, methods and scenarios there are.

    Raises:
      InputError: a row that cannot be shown, or a figure of a scenario that has no rows.
    """
    groups = grouped(rows)
    for figure in figures:
        if figure.scenario is not None and figure.scenario not in groups:
            raise InputError(f"a figure belongs to the scenario {figure.scenario!r}, which has no rows")
    body = [_prose(heading, paragraphs) for heading, paragraphs in summary_sections]
    body += [_sheet(*sheet) for sheet in sheets]
    for position, (scenario, methods) in enumerate(groups.items()):
        own = [figure for figure in figures if figure.scenario == scenario]
        body.append(_scenario(f"scenario-{position + 1}", scenario, methods, own))
    general = [figure for figure in figures if figure.scenario is None]
    for heading in dict.fromkeys(figure.heading for figure in general):
        own = [figure for figure in general if figure.heading == heading]
        body.append(f"<section>\n<h2>{html.escape(heading)}</h2>\n{_figures(own)}</section>")
    body += [
        _key_values("Settings", settings),
        _key_values("Hashes", hashes or {}),
        _key_values("Made with", environment),
    ]
    links = "".join(f'<li><a href="#scenario-{i + 1}">{html.escape(name)}</a></li>' for i, name in enumerate(groups))
    page = _PAGE.substitute(
        title=html.escape(title),
        style=_CSS,
        lede=_lede(groups) if lede is None else html.escape(lede),
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


def _sheet(heading: str, paragraphs: Sequence[str], table: Grid) -> str:
    """A table of texts, in a box that scrolls where the page is too narrow."""
    name = html.escape(heading)
    notes = "".join(f'<p class="note">{html.escape(paragraph)}</p>\n' for paragraph in paragraphs)
    heads = "".join(f'<th scope="col">{html.escape(header)}</th>' for header in table.headers)
    lines = "\n".join(
        f'<tr><th scope="row">{_breakable(cells[0].text)}</th>'
        + "".join(
            f'<td>{html.escape(cell.text)} <span class="std">{html.escape(cell.deviation)}</span></td>'
            for cell in cells[1:]
        )
        + "</tr>"
        for cells in table.lines
    )
    return f"""<section>
<h2>{name}</h2>
{notes}<div class="scroll" role="region" tabindex="0" aria-label="{name}">
<table class="many">
<thead><tr>{heads}</tr></thead>
<tbody>
{lines}
</tbody>
</table>
</div>
</section>"""


def _breakable(name: str) -> str:
    """A name that may break after its dots and underscores, for narrow columns; its numbers stay whole."""
    return re.sub(r"([._])(?!\d)", r"\1<wbr>", html.escape(name))


# The roles say what the tags say already; without them a table that a phone lays out as a grid would be none to a
# screen reader.
def _table(label: str, kind: str, names: Sequence[str], shown: Sequence[Column], lines: Iterable[str]) -> str:
    """A wide table in a box that scrolls, should all else fail; a phone lays it out as a grid without `names`."""
    heads = "".join(f'<th role="columnheader" scope="col" class="name">{name}</th>' for name in names)
    heads += "".join(
        f'<th role="columnheader" scope="col" class="{column.kind}">{html.escape(column.header)} '
        f"<small>{column.unit or 'ratio'}</small></th>"
        for column in shown
    )
    # Seven numbers fit beside each other, on a phone too. Of more, deviations go below, and a phone shows five a line.
    many, per_line = (" many", 5) if len(shown) > 7 else ("", 7)
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="{label}">
<table role="table" class="wide{many}{kind}" style="--columns: {per_line}" aria-label="{label}">
<thead role="rowgroup"><tr role="row">{heads}</tr></thead>
<tbody role="rowgroup">
{chr(10).join(lines)}
</tbody>
</table>
</div>"""


def _scenario(anchor: str, scenario: str, methods: Methods, figures: Sequence[Picture]) -> str:
    """One scenario: means, further numbers, every row, plots."""
    best = smallest_gap(methods)
    note = f"{seeds(methods).capitalize()}. Arrows point to what the paper calls better; what counts is closeness to "
    note += "the retrained network." if best is None else "the retrained network: the smallest Avg. Gap is bold."
    note += f" {interval}." if (interval := interval_note(methods)) else ""
    count = sum(map(len, methods.values()))
    name = html.escape(scenario)
    more = ""
    if further := further_columns(methods):
        table = _means(f"Further numbers, {name}", methods, further)
        more = f"<details>\n<summary>Further numbers</summary>\n{table}\n</details>"
    return f"""<section id="{anchor}">
<h2>{name}</h2>
<p class="note">{note}</p>
{_means(f"Means, {name}", methods, columns(methods))}
{more}
<details>
<summary>Every seed ({count} row{"" if count == 1 else "s"})</summary>
{_every_row(name, methods)}
</details>
{_figures(figures)}</section>"""


def _means(label: str, methods: Methods, shown: Sequence[Column]) -> str:
    """A line per method."""
    best = smallest_gap(methods)
    cells = {method: [cell(rows, column) for column in shown] for method, rows in methods.items()}
    # A column's deviations are as wide as the longest of them, so that the means in front of them line up.
    widths = [max(len(pairs[column][1]) for pairs in cells.values()) for column in range(len(shown))]
    lines = []
    for method, pairs in cells.items():
        kind = "reference" if method == REFERENCE else "best" if method == best else ""
        texts = "".join(
            f'<td role="cell" class="{column.kind}">{html.escape(mean)}'
            f'<span class="std" style="--std: {width}">{std}</span></td>'
            for column, (mean, std), width in zip(shown, pairs, widths, strict=True)
        )
        lines.append(
            f'<tr role="row" class="{kind}"><th role="rowheader" scope="row">{_breakable(method)}</th>{texts}</tr>'
        )
    return _table(label, "" if any(widths) else " single", ["Method"], shown, lines)


def _every_row(name: str, methods: Methods) -> str:
    shown = [column for column in columns(methods) if column.kind != "interval"]
    lines = []
    for method, rows in methods.items():
        for row in rows:
            texts = (rounded(next(iter(numbers([row], column.field)), None), column.digits) for column in shown)
            cells = "".join(f'<td role="cell">{text}</td>' for text in texts)
            seed = DASH if row.get("seed") is None else html.escape(str(row["seed"]))
            lines.append(
                f'<tr role="row"><th role="rowheader" scope="row">{html.escape(method)}</th>'
                f'<td role="cell" class="seed">{seed}</td>{cells}</tr>'
            )
    return _table(f"Every seed, {name}", "", ["Method", "Seed"], shown, lines)


def _figures(figures: Sequence[Picture]) -> str:
    return "".join(
        f"<figure>\n{_drawn(picture)}\n<figcaption>{html.escape(picture.caption)}</figcaption>\n</figure>\n"
        for picture in figures
    )


def _drawn(picture: Picture) -> str:
    alt = html.escape(picture.alt)
    if picture.format == "svg":
        return f'<div class="card" role="img" aria-label="{alt}">\n{figure_svg(picture.figure)}\n</div>'
    data = base64.b64encode(figure_png(picture.figure)).decode()
    return f'<div class="card"><img alt="{alt}" src="data:image/png;base64,{data}"></div>'


def _key_values(heading: str, values: Mapping[str, Any]) -> str:
    """A heading and one small table per group in `values`; what is no group comes first, in a table of its own."""
    loose = {key: value for key, value in values.items() if not _is_group(value)}
    groups = [("", _flat(loose))]
    for key, value in values.items():
        if _is_group(value):
            groups += _groups(key, value)
    tables, count = [], 0
    for name, lines in groups:
        rows = "".join(
            f'<tr><th scope="row">{_breakable(key)}</th><td>{html.escape(value)}</td></tr>\n' for key, value in lines
        )
        if rows:
            title = f"<h3>{html.escape(name)}</h3>\n" if name else ""
            tables.append(f'<div class="group">\n{title}<table>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n')
            count += len(lines)
    if not tables:
        return ""
    content = f'<div class="groups">\n{"".join(tables)}</div>'
    if count > _FOLDED_FROM:
        content = f"<details>\n<summary>All {count}</summary>\n{content}\n</details>"
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>"


_FOLDED_FROM = 60  # lines of settings


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) or _is_collection(value)


def _is_collection(value: Any) -> bool:
    """Whether a value holds nothing but mappings, such as the settings of several methods."""
    entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return bool(entries) and all(isinstance(entry, Mapping) for entry in entries)


def _groups(title: str, value: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles and lines: a mapping is a group, a collection one for each of its entries, by key, name or number."""
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
