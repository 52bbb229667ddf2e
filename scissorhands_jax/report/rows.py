"""Rows of results, what is computed from them, and the columns that show them.

A row is a mapping with the keys of `ROW_FIELDS`, one per scenario, method and seed; accuracies, MIA and Avg. Gap are in
percent, run times in seconds. A number that is missing or `None` is shown as a dash.

A row may carry more:
  `relearn_epochs`: epochs until the forgotten accuracy was back; `None` with a `relearn_cap` means not within the cap.
  `acc_*`, `mia_*`: accuracies on further sets and further attacks, in percent.
  `compile_seconds`: not part of `seconds`.
  `sweep`: `{"name": "fraction", "value": 0.05}`, the setting that the row varies.
"""

from __future__ import annotations

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
"""The keys of a row, in the order of the columns; `rte` is `seconds` over those of retraining."""

DASH = "–"
REFERENCE = "retrain"
"""The method that all others are compared with."""


@dataclasses.dataclass(frozen=True)
class Column:
    """How one number of a row is shown."""

    field: str
    header: str  # words, then an arrow
    digits: int
    unit: str
    kind: Literal["mean", "interval", "capped"] = "mean"


# Arrows as in the paper's tables.
_INTERVAL = Column("avg_gap", "Gap 95\N{NO-BREAK SPACE}%", 2, "interval", "interval")
_RELEARN = Column("relearn_epochs", "Relearn ↑", 1, "epochs", "capped")
_COLUMNS = (
    Column("acc_forget", "Acc forget ↓", 2, "%"),
    Column("acc_retain", "Acc retain ↑", 2, "%"),
    Column("acc_test", "Acc test ↑", 2, "%"),
    Column("mia", "MIA ↑", 2, "%"),
    Column("avg_gap", "Avg. Gap ↓", 2, "% points"),
    _INTERVAL,
    Column("seconds", "Time ↓", 1, "s"),
    Column("rte", "RTE ↓", 3, ""),
    _RELEARN,
)


@dataclasses.dataclass(frozen=True)
class Term:
    """An abbreviation in the head of a table, the column that it belongs to, and what it stands for."""

    field: str
    name: str
    meaning: str


TERMS = (
    Term(
        "avg_gap",
        "Avg. Gap",
        "The mean distance to the retrained network of the same seed over four percentages: accuracy on the forget, "
        "the retain and the test set, and MIA. Smaller is better.",
    ),
    Term(
        "mia",
        "MIA (membership inference attack)",
        "The share of the forget set that an attacker, who sees how sure the network is of each label, judges never to "
        "have been trained on.",
    ),
    Term("rte", "RTE (run-time efficiency)", "The run time divided by that of retraining, both without compilation."),
)
"""The abbreviations that a page spells out once."""

GAP_COLUMN = next(column for column in _COLUMNS if column.field == "avg_gap")


def columns(methods: Methods) -> tuple[Column, ...]:
    """The columns of a scenario's table: the gap's interval and relearning only where there is something to show."""
    hidden = set()
    if all(cell(rows, _INTERVAL)[0] == DASH for rows in methods.values()):
        hidden.add(_INTERVAL)
    if all(cell(rows, _RELEARN)[0] == DASH for rows in methods.values()):
        hidden.add(_RELEARN)
    return tuple(column for column in _COLUMNS if column not in hidden)


def further_columns(methods: Methods) -> tuple[Column, ...]:
    """Columns for what rows carry beyond the main table: other sets, other attacks, the time of compilation."""
    present = {field: None for rows in methods.values() for row in rows for field in row if row[field] is not None}
    words = {"acc": "Acc", "mia": "MIA"}
    further = [
        Column(field, f"{words[field[:3]]} {field[4:].replace('_', ' ')} ↑", 2, "%")
        for field in present
        if field.startswith(("acc_", "mia_")) and field not in ROW_FIELDS
    ]
    compilation = [Column("compile_seconds", "Compile ↓", 1, "s")] if "compile_seconds" in present else []
    return (*further, *compilation)


def grouped(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """Rows by scenario and method, both in the order in which they first appear.

    Rows that vary a setting are methods of their own: where others share their method's name, theirs gets the setting
    and its value.

    Raises:
      InputError: a row without a scenario or method, or with a sweep that has no name or no number.
    """
    rows = list(rows)
    variants: dict[tuple[str, str], set] = {}
    for position, row in enumerate(rows):
        for name in ("scenario", "method"):
            if not isinstance(row.get(name), str):
                raise InputError(f"row {position} needs a {name} that is text, got {row.get(name)!r}")
        sweep = row.get("sweep")
        if sweep is not None and not (
            isinstance(sweep, Mapping) and isinstance(sweep.get("name"), str) and is_number(sweep.get("value"))
        ):
            raise InputError(
                f'row {position} needs a sweep such as {{"name": "fraction", "value": 0.05}}, got {sweep!r}'
            )
        variants.setdefault((row["scenario"], row["method"]), set()).add(_setting(row))
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        method = row["method"]
        if row.get("sweep") is not None and len(variants[row["scenario"], method]) > 1:
            method = f"{method}, {_setting(row)}"
        groups.setdefault(row["scenario"], {}).setdefault(method, []).append(row)
    return groups


def _setting(row: Row) -> str | None:
    sweep = row.get("sweep")
    return None if sweep is None else f"{sweep['name']} {sweep['value']:g}"


def with_gaps(rows: Iterable[Row]) -> list[Row]:
    """Rows with the Avg. Gap to the retrained network of the same scenario and seed, where all numbers are there.

    Raises:
      InputError: as by `grouped` and `numbers`; or a row claims another gap than its numbers give.
    """
    rows = list(rows)
    grouped(rows)
    retrained = {(row["scenario"], row.get("seed")): row for row in rows if row["method"] == REFERENCE}
    answer = []
    for position, row in enumerate(rows):
        reference = retrained.get((row["scenario"], row.get("seed")))
        if reference is not None and all(len(numbers([row, reference], field)) == 2 for field in distances.GAP_FIELDS):
            gap, claimed = distances.average_gap(row, reference), row.get("avg_gap")
            if claimed is not None and not math.isclose(gap, claimed, abs_tol=1e-6):
                raise InputError(f"row {position} claims an avg_gap of {claimed}, but its numbers give {gap}")
            row = {**row, "avg_gap": gap}
        answer.append(row)
    return answer


def numbers(rows: Iterable[Row], field: str) -> list[float]:
    """The numbers that are there.

    Raises:
      InputError: something that is no finite number.
    """
    found = [row.get(field) for row in rows]
    for value in found:
        if not (value is None or (is_number(value) and math.isfinite(value))):
            raise InputError(f"{field} must be a finite number or None, got {value!r}")
    return [float(value) for value in found if value is not None]


def is_number(value: Any) -> bool:
    """Whether something is a number of Python or NumPy; a bool is none."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def rounded(value: float | None, digits: int) -> str:
    """A number with `digits` digits after the point, or a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}"


def cell(rows: Sequence[Row], column: Column) -> tuple[str, str]:
    """What a table shows for the seeds of one method: the text, and the deviation where there is a spread to show."""
    found = numbers(rows, column.field)
    if column.kind == "interval":
        if len(found) < 2 or rows[0]["method"] == REFERENCE:
            return DASH, ""
        gap = intervals.mean_estimate(found, bounds=(0, math.inf))
        return f"[{rounded(gap.low, column.digits)}, {rounded(gap.high, column.digits)}]", ""
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
    """What stands behind a scenario's numbers."""
    counts = sorted({len(rows) for rows in methods.values()})
    if counts == [1]:
        return "one seed"
    return f"mean ± standard deviation over {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds"


def interval_note(methods: Methods) -> str:
    """How to read the gap's interval; empty where none is shown."""
    if _INTERVAL not in columns(methods):
        return ""
    return f"{_INTERVAL.header} is Student's interval of the mean Avg. Gap over seeds"


def table_note(methods: Methods) -> str:
    """What the numbers of a scenario's table are, in full sentences."""
    sentences = (seeds(methods), "accuracies and MIA in %, time in s", interval_note(methods))
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences if sentence)


def smallest_gap(methods: Methods) -> str | None:
    """The method with the smallest mean Avg. Gap, if there are several to choose from; never the retrained network."""
    gaps = {method: numbers(rows, "avg_gap") for method, rows in methods.items() if method != REFERENCE}
    means = {method: math.fsum(found) / len(found) for method, found in gaps.items() if found}
    return min(means, key=lambda method: means[method]) if len(means) > 1 else None


def closest_sentence(rows: Iterable[Row]) -> str:
    """The result of a table in a sentence or two: by scenario, the method that came closest to the retrained network.

    Args:
      rows: of any number of scenarios; those without an Avg. Gap have nothing to say.
    """
    said, alone = [], "There is no Avg. Gap, because there is no retrained network to compare with."
    for scenario, methods in grouped(rows).items():
        gaps = {method: numbers(group, "avg_gap") for method, group in methods.items() if method != REFERENCE}
        means = {method: math.fsum(found) / len(found) for method, found in gaps.items() if found}
        before = means.pop("original", None)
        if means:
            best = min(means, key=lambda method: means[method])
            what = "is" if len(means) == 1 else "comes closest:"
            text = (
                f"{scenario}: {best} {what} {means[best]:.2f} percentage points from the retrained network (Avg. Gap)"
            )
            said.append(text + ("." if before is None else f"; the original network is {before:.2f} away."))
    return " ".join(said) or alone
