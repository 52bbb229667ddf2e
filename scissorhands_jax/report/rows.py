"""Rows of results, what is computed from them, and the columns that show them.

A row is a mapping with the keys of `ROW_FIELDS`, one per scenario, method and seed; accuracies, MIA and Avg. Gap are in
percent, run times in seconds. A number that is missing or `None` is shown as a dash.

A row may have further keys:
  `relearn_epochs`: The number of epochs until the accuracy on the forget set was back. If it is `None` and there is a
    `relearn_cap`, the accuracy was not back within that number of epochs.
  `acc_*`, `mia_*`: Accuracies on further sets, and the results of further attacks, in percent.
  `compile_seconds`: The seconds of compilation, which are not part of `seconds`.
  `gap_share`: The Avg. Gap in percent of the original's of the same scenario and seed.
  `lost_runs`: How many runs of the same scenario and method diverged, where some did.
  `sweep`: The setting that the row varies, such as `{"name": "fraction", "value": 0.05}`.
  `task`: What the network is for (`tasks.Task.document`), if it is no classifier. The fields of the first metric of the
    task, such as `rmse_forget`, then are in place of the accuracies (`row_fields`).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import distances, intervals

Row = Mapping[str, Any]
Methods = Mapping[str, Sequence[Row]]  # rows of one scenario, by method

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
"""The keys of a row, in the order of the columns. `rte` is `seconds` divided by those of retraining."""


def row_fields(row: Row) -> tuple[str, ...]:
    """The keys of a row in the order of the columns: `ROW_FIELDS`, with the four numbers that its task has."""
    own = dict(zip(distances.GAP_FIELDS, distances.gap_fields(row), strict=True))
    return tuple(own.get(field, field) for field in ROW_FIELDS)


DASH = "–"
ORIGINAL = "original"
"""The network that was trained on everything."""
REFERENCE = "retrain"
"""The method with which all others are compared."""
REDRAWN = "retrained, drawn again"
"""A second network that was retrained without the forget set, from another seed. Its Avg. Gap is the floor: the
distance of two networks that never saw the forget set."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table, which shows one number of each row."""

    field: str
    header: str  # words, then an arrow
    digits: int  # after the decimal point
    unit: str
    kind: Literal["mean", "interval", "share", "capped"] = "mean"


# Arrows as in the paper's tables.
_INTERVAL = Column("avg_gap", "Gap 95\N{NO-BREAK SPACE}%", 2, "interval", "interval")
_SHARE = Column("gap_share", "Gap\N{NO-BREAK SPACE}/ original's ↓", 1, "%", "share")
_RELEARN = Column("relearn_epochs", "Relearn ↑", 1, "epochs", "capped")
GAP_COLUMN = Column("avg_gap", "Avg. Gap ↓", 2, "% points")
_COLUMNS = (
    Column("mia", "MIA ↑", 2, "%"),
    GAP_COLUMN,
    _INTERVAL,
    _SHARE,
    Column("seconds", "Time ↓", 1, "s"),
    Column("rte", "RTE ↓", 3, ""),
    _RELEARN,
)


@dataclasses.dataclass(frozen=True)
class Term:
    """An abbreviation in the heading of a column, and its meaning."""

    field: str
    name: str
    meaning: str


TERMS = (
    Term(
        "avg_gap",
        "Avg. Gap",
        "The mean distance to the retrained network of the same seed over four numbers: accuracy, or the task's first "
        "metric, on the forget, the retain and the test set, and MIA. Smaller is better, down to that of a second "
        "retrained network.",
    ),
    Term(
        "gap_share",
        "Gap / original's",
        "The Avg. Gap in percent of that of the original network, which has forgotten nothing.",
    ),
    Term(
        "mia",
        "MIA (membership inference attack)",
        "The share of the forget set that an attacker, who sees how sure the network is of each answer, judges never "
        "to have been trained on.",
    ),
    Term("rte", "RTE (run-time efficiency)", "The run time divided by that of retraining, both without compilation."),
)
"""The abbreviations that every page explains once."""


def columns(methods: Methods) -> tuple[Column, ...]:
    """Returns the columns of a scenario's table. Those that not every table has are left out if they are empty.

    Raises:
      InputError: The rows are of different tasks, so that their numbers cannot stand in one column.
    """
    optional = (_INTERVAL, _SHARE, _RELEARN)
    hidden = {one for one in optional if all(cell(rows, one)[0] == DASH for rows in methods.values())}
    metric = distances.quality_of(task_row(methods))
    measured = (_metric_column(metric, part) for part in ("forget", "retain", "test"))
    gap = GAP_COLUMN if metric["unit"] == "%" else dataclasses.replace(GAP_COLUMN, unit="")
    shown = (gap if column == GAP_COLUMN else column for column in _COLUMNS if column not in hidden)
    return (*measured, *shown)


def task_row(methods: Methods) -> Row:
    """Returns a row that says of what task the rows of a scenario are, which must be the same for all.

    Raises:
      InputError: The rows are of different tasks.
    """
    rows = [row for group in methods.values() for row in group]
    tasks = [row.get("task") for row in rows]
    if any(task != tasks[0] for task in tasks):
        names = dict.fromkeys("classification" if task is None else str(task["name"]) for task in tasks)
        raise InputError(
            f"a scenario has rows of different tasks ({', '.join(names)}); give each task its own scenario"
        )
    return rows[0] if rows else {}


def _metric_column(metric: Mapping[str, Any], part: str) -> Column:
    """The column of a metric on one set. For the forget set its arrow points to the worse, elsewhere to the better."""
    is_up = (metric["better"] == "higher") != (part == "forget")
    return Column(f"{metric['name']}_{part}", f"{metric['title']} {part} {'↑' if is_up else '↓'}", 2, metric["unit"])


def further_columns(methods: Methods) -> tuple[Column, ...]:
    """Returns the columns for further keys of rows: other metrics, sets and attacks, and the time of compilation."""
    present = {field: None for rows in methods.values() for row in rows for field in row if row[field] is not None}
    of_task = task_row(methods)
    first, *others = (of_task.get("task") or {"metrics": [distances.quality_of(of_task)]})["metrics"]
    kinds = {first["name"]: first, "mia": {"title": "MIA", "better": "higher", "unit": "%"}}
    # The name of a metric may begin with that of another, as that of `err_free` with `err`.
    of_others = (f"{metric['name']}_" for metric in others if len(metric["name"]) > len(first["name"]))
    longer = tuple(name for name in of_others if name.startswith(f"{first['name']}_"))
    own_fields = {*row_fields(of_task), *(field for field in present if field.startswith(longer))}
    further = []
    for field in present:
        kind = next((kind for kind in kinds if field.startswith(f"{kind}_")), None)
        if kind is not None and field not in own_fields and not field.endswith("_error"):
            arrow = "↑" if kinds[kind]["better"] == "higher" else "↓"
            name = field.removeprefix(f"{kind}_").replace("_", " ")
            further.append(Column(field, f"{kinds[kind]['title']} {name} {arrow}", 2, kinds[kind]["unit"]))
    shown = [_metric_column(metric, part) for metric in others for part in ("forget", "retain", "test")]
    further += [column for column in shown if column.field in present]
    compilation = [Column("compile_seconds", "Compile ↓", 1, "s")] if "compile_seconds" in present else []
    return (*further, *compilation)


def grouped(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """Groups rows by scenario and method, both in the order in which they first appear.

    Rows that vary a setting are grouped by its value: if several groups have the same method, the setting and its value
    become part of the name.

    Raises:
      InputError: A row has no scenario or method, or has a sweep without a name or a number.
    """
    rows = list(rows)
    variants: dict[tuple[str, str], set] = {}
    for position, row in enumerate(rows):
        for name in ("scenario", "method"):
            if not isinstance(row.get(name), str):
                raise InputError(f"row {position} has the {name} {row.get(name)!r}; give text")
        check_task(row, position)
        sweep = row.get("sweep")
        if sweep is not None and not (
            isinstance(sweep, Mapping) and isinstance(sweep.get("name"), str) and is_number(sweep.get("value"))
        ):
            raise InputError(
                f'row {position} has the sweep {sweep!r}; give one such as {{"name": "fraction", "value": 0.05}}'
            )
        variants.setdefault((row["scenario"], row["method"]), set()).add(_setting(row))
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        method = row["method"]
        if row.get("sweep") is not None and len(variants[row["scenario"], method]) > 1:
            method = f"{method}, {_setting(row)}"
        groups.setdefault(row["scenario"], {}).setdefault(method, []).append(row)
    return groups


def check_task(row: Row, position: int) -> None:
    """Refuses a row whose `task` is not what `tasks.Task.document` returns.

    Raises:
      InputError: It has another form.
    """
    task: Any = row.get("task")
    metrics: Any = task.get("metrics") if isinstance(task, Mapping) else None
    keys = ("name", "title", "better", "unit")
    usable = isinstance(metrics, list | tuple) and metrics and isinstance(task.get("name"), str)
    if task is not None and not (
        usable
        and all(isinstance(one, Mapping) and all(isinstance(one.get(key), str) for key in keys) for one in metrics)
    ):
        raise InputError(f"row {position} has the task {task!r}; give what the document() of a Task returns")


def _setting(row: Row) -> str | None:
    sweep = row.get("sweep")
    return None if sweep is None else f"{sweep['name']} {sweep['value']:g}"


def with_gaps(rows: Iterable[Row]) -> list[Row]:
    """Adds to rows what compares them with other rows of the same scenario and seed.

    These are the Avg. Gap to the retrained network, if both have all four numbers, and its share of the original's gap,
    if that is above 0.

    Raises:
      InputError: A row cannot be used (see `grouped` and `numbers`), or its Avg. Gap is not what its numbers give.
    """
    rows = list(rows)
    grouped(rows)
    retrained = {(row["scenario"], row.get("seed")): row for row in rows if row["method"] == REFERENCE}
    answer = []
    for position, row in enumerate(rows):
        reference = retrained.get((row["scenario"], row.get("seed")))
        if reference is not None and all(
            len(numbers([row, reference], field)) == 2 for field in distances.gap_fields(row)
        ):
            gap, claimed = distances.average_gap(row, reference), row.get("avg_gap")
            if claimed is not None and not math.isclose(gap, claimed, abs_tol=1e-6):
                raise InputError(f"row {position} has an avg_gap of {claimed}, but its numbers give {gap}; correct it")
            row = {**row, "avg_gap": gap}
        answer.append(row)
    before = {(row["scenario"], row.get("seed")): row.get("avg_gap") for row in answer if row["method"] == ORIGINAL}
    for position, row in enumerate(answer):
        whole, own = before.get((row["scenario"], row.get("seed"))), row.get("avg_gap")
        if whole and own is not None:
            answer[position] = {**row, "gap_share": 100 * (own / whole)}
    return answer


def numbers(rows: Iterable[Row], field: str) -> list[float]:
    """Returns the numbers in one field of rows. Rows without a number are left out.

    Raises:
      InputError: A value is neither a finite number nor None.
    """
    found = [row.get(field) for row in rows]
    for value in found:
        if not (value is None or (is_number(value) and math.isfinite(value))):
            raise InputError(f"{field} must be a finite number or None, got {value!r}")
    return [float(value) for value in found if value is not None]


def is_number(value: Any) -> bool:
    """Says whether a value is a number of Python or NumPy. A bool does not count as a number."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def rounded(value: float | None, digits: int) -> str:
    """Writes a number with `digits` digits after the decimal point, or a dash for None. What is rounded to 0 has no
    sign.

    >>> rounded(-0.001, 2)
    '0.00'
    """
    return DASH if value is None else f"{value:z.{digits}f}"


def cell(rows: Sequence[Row], column: Column) -> tuple[str, str]:
    """Returns what a table shows for the rows of one method: a text, and the deviation over seeds or ""."""
    found = numbers(rows, column.field)
    if column.kind == "interval":
        if not found or not intervals.differ(found) or rows[0]["method"] == REFERENCE:
            return DASH, ""
        gap = intervals.mean_estimate(found, bounds=(0, math.inf))
        return f"[{rounded(gap.low, column.digits)}, {rounded(gap.high, column.digits)}]", ""
    if column.kind == "share":
        if not found or rows[0]["method"] in (REFERENCE, ORIGINAL):
            return DASH, ""
        share = intervals.mean_estimate(found, bounds=(0, math.inf))
        ends = ", ".join(rounded(end, column.digits) for end in (share.low, share.high))
        return rounded(share.value, column.digits), f"[{ends}]" if intervals.differ(found) else ""
    if column.kind == "capped":
        caps = numbers([row for row in rows if row.get(column.field) is None], "relearn_cap")
        if caps:
            mean, _ = intervals.mean_and_std(found + caps)
            return f">{rounded(mean, column.digits)}", ""
    if not found:
        return DASH, ""
    mean, std = intervals.mean_and_std(found)
    return rounded(mean, column.digits), "" if std is None else f"±{rounded(std, column.digits)}"


def seeds(methods: Methods) -> str:
    """Says in words over how many seeds the numbers of a scenario are."""
    counts = sorted({len(rows) for rows in methods.values()})
    if counts == [1]:
        return "one seed"
    return f"mean ± standard deviation over {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds"


def interval_note(methods: Methods, shown: Sequence[Column] | None = None) -> str:
    """Explains the gap's interval, its share of the original's and its floor, or returns "" if none is shown.

    Args:
      methods: Rows by method.
      shown: The columns that are shown. None is all that `columns` returns.
    """
    shown, notes = columns(methods) if shown is None else shown, []
    if _INTERVAL in shown:
        notes.append(f"{_INTERVAL.header} is Student's interval of the mean Avg. Gap over seeds")
    if _SHARE in shown:
        several = any(cell(rows, _SHARE)[1] for rows in methods.values())
        ends = ", with Student's 95\N{NO-BREAK SPACE}% interval of its mean over seeds" if several else ""
        notes.append(f"{_SHARE.header[:-2]} is the Avg. Gap in % of the original's{ends}")
    if REDRAWN in methods:
        notes.append(f'the Avg. Gap of "{REDRAWN}" is the distance of two networks that never saw the forget set')
    return "; ".join(notes)


def units_note(methods: Methods) -> str:
    """Says what the units of the numbers of a scenario are."""
    row = task_row(methods)
    if row.get("task") is None:
        return "accuracies and MIA in %, time in s"
    metric = distances.quality_of(row)
    unit = "in %" if metric["unit"] == "%" else f"in {metric['unit']}, MIA in %"
    return f"{metric['title']}{' and MIA' if unit == 'in %' else ''} {unit}, time in s"


def table_note(methods: Methods) -> str:
    """Explains the numbers of a scenario's table in full sentences."""
    sentences = (seeds(methods), units_note(methods), interval_note(methods))
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences if sentence)


def smallest_gap(methods: Methods) -> str | None:
    """Returns the method with the smallest mean Avg. Gap, or None if there are not several besides retraining.

    Methods of which some runs diverged are left out.
    """
    means = {method: mean for method, mean in _mean_gaps(methods).items() if method != REDRAWN}
    return min(means, key=lambda method: means[method]) if len(means) > 1 else None


def _mean_gaps(methods: Methods) -> dict[str, float]:
    """The mean Avg. Gap of each method but the reference, without methods of which some runs diverged.

    Such a method may have the smallest mean of the few runs that are left.
    """
    gaps = {
        method: numbers(rows, "avg_gap")
        for method, rows in methods.items()
        if method != REFERENCE and not lost_runs(rows)
    }
    return {method: math.fsum(found) / len(found) for method, found in gaps.items() if found}


def lost_runs(rows: Iterable[Row]) -> int:
    """How many runs of a method in a scenario diverged, from the rows of the others."""
    return max((row.get("lost_runs", 0) for row in rows), default=0)


def closest_sentence(rows: Iterable[Row]) -> str:
    """Writes the result in a sentence per scenario: the method that came closest to the retrained network.

    A method of which some runs diverged is not named.

    Args:
      rows: The rows of any number of scenarios. Scenarios without an Avg. Gap are left out.
    """
    sentences = []
    for scenario, methods in grouped(rows).items():
        means = _mean_gaps(methods)
        before, floor = means.pop(ORIGINAL, None), means.pop(REDRAWN, None)
        if means:
            best = min(means, key=lambda method: means[method])
            what = "is" if len(means) == 1 else "comes closest:"
            unit = " percentage points" if distances.quality_of(task_row(methods))["unit"] == "%" else ""
            text = f"{scenario}: {best} {what} {means[best]:.2f}{unit} from the retrained network (Avg. Gap)"
            text += "" if before is None else f"; the original network is {before:.2f} away"
            text += "" if floor is None else f", and a second retrained network {floor:.2f}"
            sentences.append(f"{text}.")
    return " ".join(sentences) or "There is no Avg. Gap, because there is no retrained network to compare with."


def with_lost_runs(rows: Iterable[Row], failures: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Adds to each row how many runs of its scenario and method diverged, where some did.

    Args:
      rows: The rows.
      failures: The runs that diverged, each with `scenario` and `method`.
    """
    lost = collections.Counter((run["scenario"], run["method"]) for run in failures)
    return [{**row, "lost_runs": count} if (count := lost[row["scenario"], row["method"]]) else {**row} for row in rows]


def failures_note(document: Mapping[str, Any]) -> str:
    """Names the runs that diverged, in a sentence; "" if there is none.

    Args:
      document: The results of a table or an audit, with `rows` and `failures`.
    """
    whole = collections.Counter((row["scenario"], row["method"]) for row in document["rows"])
    lost = collections.Counter((run["scenario"], run["method"]) for run in document.get("failures", ()))
    if not lost:
        return ""
    named = [
        f"{method} in {count} of {count + whole[scenario, method]} ({scenario})"
        for (scenario, method), count in lost.items()
    ]
    return f"Runs that diverged, which no number counts: {', '.join(named)}."
