"""Renders tables and plots of finished experiments: `python -m experiments.tables RESULTS.json...`.

    python -m experiments.tables                                    # all experiments in experiments/results
    python -m experiments.tables runs/cifar10_small/results.json --out tables
    python -m experiments.tables runs/cifar10_small/results.json --brief   # prints what experiments/README.md shows

For each results file it writes `tables.md`, `tables.tex` (which needs booktabs), and every plot as SVG and PNG; for an
audit it writes what `experiments.audit` writes. Where the experiment has a counterpart in the paper (`paper_table` in
its config), the numbers of the paper, from `paper_numbers.json`, follow the measured ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments import audit, programs
from scissorhands_jax import files, reading, report
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.cells import slug
from scissorhands_jax.report import rows as table_rows
from scissorhands_jax.report import table_gates
from scissorhands_jax.terminal import Console, say

RESULTS = Path(__file__).parent / "results"
PAPER = Path(__file__).parent / "paper_numbers.json"
_CAUTION = (
    "The paper's networks, data and training are its own. Where those differ, compare the order of the methods and the "
    "direction of the differences, not the digits."
)


@programs.ending("each page is written whole")
def main(arguments: list[str] | None = None) -> int:
    """Renders the files and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tables", description=__doc__.partition("\n")[0])
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS.json", help="default: experiments/results")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a folder per file in DIR; default next to each file")
    parser.add_argument("--brief", action="store_true", help="print each table, the closest to retraining first")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    paths = options.results or [path for path in sorted(RESULTS.glob("*/results.json")) if _is_experiment(path)]
    if not paths:
        raise InputError(f"{RESULTS} holds no results; name a results file")
    names = [path.resolve().parent.name for path in paths]
    if options.out is not None and len(set(names)) < len(names):
        raise InputError(f"two of the files lie in folders of one name ({', '.join(names)}); render them one by one")
    # All are made before the first is written, so that one that cannot be leaves the others as they are.
    made: list[Callable[[], object]] = []
    for path, name in zip(paths, names, strict=True):
        folder = path.parent if options.out is None else options.out / name
        document = report.read_results(path)
        if options.brief:
            if "evidence" in document:
                raise InputError(f"{path} is of an audit, and --brief is for tables; leave --brief out")
            made.append(functools.partial(sys.stdout.write, brief(document)))
        elif "evidence" in document:
            made.append(functools.partial(audit.write_tables, folder, document))
        else:
            made.append(functools.partial(_write, describe(document, name), folder))
        if not options.brief:
            made.append(functools.partial(say, console, f"written: {folder / 'tables.md'}, tables.tex and the plots"))
    for write in made:
        write()
    return 0


def _is_experiment(path: Path) -> bool:
    """Whether a file is of an experiment, as tables and audits are, and of nothing that has a page of its own."""
    document = reading.read_json(path, nan=True)
    config = document.get("config") if isinstance(document, dict) else None
    return isinstance(config, dict) and "experiment" in config


def render(document: Mapping[str, Any], folder: Path, name: str) -> None:
    """Writes the tables and plots of one results file into a folder.

    Args:
      document: The results, as `report.read_results` returns them.
      folder: The folder, which is made if it does not exist.
      name: The name of the experiment, used if its config does not hold one.

    Raises:
      InputError: A row cannot be shown or contradicts itself, or `paper_table` names no table of the paper.
    """
    _write(describe(document, name), folder)


def _write(description: Description, folder: Path) -> None:
    text, tex, pictures = description
    for stem, picture in pictures.items():
        files.write_text(folder / f"{stem}.svg", report.figure_svg(picture.figure) + "\n")
        files.write_bytes(folder / f"{stem}.png", report.figure_png(picture.figure))
    files.write_text(folder / "tables.md", text)
    files.write_text(folder / "tables.tex", tex)


def brief(document: Mapping[str, Any]) -> str:
    """Makes the tables of a results file in Markdown, the networks closest to retraining first, without seconds.

    Args:
      document: The results, as `report.read_results` returns them.

    Raises:
      InputError: A row cannot be shown or contradicts itself.
    """
    text = []
    for methods in report.grouped(report.with_gaps(document["rows"])).values():
        gaps = {method: table_rows.numbers(rows, "avg_gap") for method, rows in methods.items()}
        first = [name for name in ("original", report.REFERENCE, report.REDRAWN) if name in methods]
        others = sorted(
            set(methods) - set(first),
            key=lambda name: (table_rows.lost_runs(methods[name]) > 0, statistics.fmean(gaps[name] or [math.inf])),
        )
        grid = report.scenario_grid({name: methods[name] for name in (*first, *others)})
        kept = [number for number, header in enumerate(grid.headers) if not header.startswith("Time")]
        lines = tuple(tuple(line[number] for number in kept) for line in grid.lines)
        shown = dataclasses.replace(grid, headers=tuple(grid.headers[number] for number in kept), lines=lines)
        text.append(report.markdown(shown))
    if note := report.failures_note(document):
        text.append(report.markdown_text(note) + "\n")
    return "\n".join(text)


class Description(NamedTuple):
    """The tables and plots of one results file."""

    text: str
    """The tables in Markdown, which shows the plots by the names of their files."""
    tex: str
    """The tables in LaTeX."""
    pictures: dict[str, report.Picture]
    """The plots by the names of their files, without a suffix."""


def describe(document: Mapping[str, Any], name: str) -> Description:
    """Makes the tables and plots of one results file.

    Args:
      document: The results, as `report.read_results` returns them.
      name: The name of the experiment, used if its config does not hold one.

    Raises:
      InputError: A row cannot be shown or contradicts itself, or `paper_table` names no table of the paper.
    """
    rows = report.with_gaps(document["rows"])
    name = document["config"].get("experiment") or name
    published = paper_table(document["config"].get("paper_table"))
    pictures = {slug(f"{picture.scenario}-{picture.name}"): picture for picture in report.row_pictures(rows)}
    text, tex = f"# {report.markdown_text(name)}\n", "% \\usepackage{booktabs}\n"
    lost = report.failures_note(document)
    for scenario, methods in report.grouped(rows).items():
        label = f"tab:{slug(f'{name}-{scenario}')}"
        note = " ".join(filter(None, (report.table_note(methods), lost)))
        table = report.scenario_grid(methods)
        text += f"\n## {report.markdown_text(scenario)}\n\n{report.markdown(table)}\n{note}\n"
        tex += "\n" + report.latex(table, caption=f"{name}: {scenario}. {note}", label=label)
        if published is not None:
            fixed = {method: group for method, group in methods.items() if group[0].get("sweep") is None}
            table = report.comparison(fixed, published["rows"])
            origin = f"{published['table']} of the paper: {published['what']}."
            remark = " ".join(filter(None, (_CAUTION, published.get("note"))))
            text += f"\n### Compared with the paper\n\n{origin}\n\n{report.markdown(table)}\n{remark}\n"
            tex += "\n" + report.latex(
                table, caption=f"{name}: {scenario}, compared with {origin} {remark}", label=f"{label}-paper"
            )
        for stem, picture in pictures.items():
            if picture.scenario == scenario:
                text += (
                    f"\n![{report.markdown_text(picture.alt)}]({stem}.svg)\n\n{report.markdown_text(picture.caption)}\n"
                )
    # Older results have no gates, so these are computed from their rows.
    found = document.get("gates") or [gate._asdict() for gate in table_gates.of_rows(document["rows"])]
    text += f"\n## Gates\n\n{report.gates_note(found)}\n\n{report.markdown(report.gates_grid(found))}"
    text += f"\n## Made by\n\n{_made_by(document)}\n"
    return Description(text, tex, pictures)


def _made_by(document: Mapping[str, Any]) -> str:
    """Returns the code, the command and the date of a results file, in one or two sentences."""
    made = document.get("made_by")
    if made is None:
        return "The commit was not recorded."
    about = ", ".join(made[name] for name in ("code", "command", "date") if name in made)
    return " ".join(filter(None, (document.get("code"), f"Last written by: {about}.")))


def paper_table(key: str | None) -> dict[str, Any] | None:
    """Returns a table of the paper with `table`, `what`, `rows` and maybe a `note`, or None if there is no key.

    Raises:
      InputError: The file of the paper's numbers has no table with this key.
    """
    if key is None:
        return None
    tables = reading.read_json(PAPER)["tables"]
    if key not in tables:
        raise InputError(f"the paper has no table {key!r} here; paper_table is one of {', '.join(tables)}")
    return tables[key]


if __name__ == "__main__":
    sys.exit(main())
