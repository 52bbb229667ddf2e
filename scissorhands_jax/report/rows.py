"""Rows of results, what is computed from them, and the columns that show them.

A row is a mapping with the keys of `ROW_FIELDS`, one per scenario, method and seed; accuracies, MIA and Avg. Gap are in
percent, run times in seconds. A number that is missing or `None` is shown as a dash.

A row may have further keys:
  `relearn_epochs`: The number of epochs until the accuracy on the forget set was back. If it is `None` and there is a
    `relearn_cap`, the accuracy was not back within that number of epochs.
  `acc_*`, `mia_*`: Accuracies on further sets, and the results of further attacks, in percent.
  `compile_seconds`: The seconds of compilation, which are not part of `seconds`.
  `gap_share`: The Avg. Gap in percent of the original's of the same scenario and seed.
  `sweep`: The setting that the row varies, such as `{"name": "fraction", "value": 0.05}`.
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
"""The keys of a row, in the order of the columns. `rte` is `seconds` divided by those of retraining."""

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
_COLUMNS = (
    Column("acc_forget", "Acc forget ↓", 2, "%"),
    Column("acc_retain", "Acc retain ↑", 2, "%"),
    Column("acc_test", "Acc test ↑", 2, "%"),
    Column("mia", "MIA ↑", 2, "%"),
    Column("avg_gap", "Avg. Gap ↓", 2, "% points"),
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
        "The mean distance to the retrained network of the same seed over four percentages: accuracy on the forget, "
        "the retain and the test set, and MIA. Smaller is better, down to that of a second retrained network.",
    ),
    Term(
        "gap_share",
        "Gap / original's",
        "The Avg. Gap in percent of that of the original network, which has forgotten nothing.",
    ),
    Term(
        "mia",
        "MIA (membership inference attack)",
        "The share of the forget set that an attacker, who sees how sure the network is of each label, judges never to "
        "have been trained on.",
    ),
    Term("rte", "RTE (run-time efficiency)", "The run time divided by that of retraining, both without compilation."),
)
"""The abbreviations that every page explains once."""

GAP_COLUMN = next(column for column in _COLUMNS if column.field == "avg_gap")


def columns(methods: Methods) -> tuple[Column, ...]:
    """Returns the columns of a scenario's table. Those that not every table has are left out if they are empty."""
    optional = (_INTERVAL, _SHARE, _RELEARN)
    hidden = {one for one in optional if all(cell(rows, one)[0] == DASH for rows in methods.values())}
    return tuple(column for column in _COLUMNS if column not in hidden)


def further_columns(methods: Methods) -> tuple[Column, ...]:
    """Returns the columns for further keys of rows: other sets, other attacks, and the time of compilation."""
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
        if reference is not None and all(len(numbers([row, reference], field)) == 2 for field in distances.GAP_FIELDS):
            gap, claimed = distances.average_gap(row, reference), row.get("avg_gap")
            if claimed is not None and not math.isclose(gap, claimed, abs_tol=1e-6):
                raise InputError(f"row {position} has an avg_gap of {claimed}, but its numbers give {gap}; correct it")
            row = {**row, "avg_gap": gap}
        answer.append(row)
    before = {(row["scenario"], row.get("seed")): row.get("avg_gap") for row in answer if row["method"] == ORIGINAL}
    for position, row in enumerate(answer):
        whole, own = before.get((row["scenario"], row.get("seed"))), row.get("avg_gap")
        if whole and own is not None:
            answer[position] = {**row, "gap_share": 100 * own / whole}
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
    """Writes a number with `digits` digits after the decimal point, or a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}"


def cell(rows: Sequence[Row], column: Column) -> tuple[str, str]:
    """Returns what a table shows for the rows of one method: a text, and the deviation over seeds or ""."""
    found = numbers(rows, column.field)
    if column.kind == "interval":
        if len(found) < 2 or rows[0]["method"] == REFERENCE:
            return DASH, ""
        gap = intervals.mean_estimate(found, bounds=(0, math.inf))
        return f"[{rounded(gap.low, column.digits)}, {rounded(gap.high, column.digits)}]", ""
    if column.kind == "share":
        if not found or rows[0]["method"] == REFERENCE:
            return DASH, ""
        share = intervals.mean_estimate(found, bounds=(0, math.inf))
        ends = ", ".join(rounded(end, column.digits) for end in (share.low, share.high))
        return rounded(share.value, column.digits), f"[{ends}]" if share.low < share.high else ""
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
        several = any(len(numbers(rows, "gap_share")) > 1 for rows in methods.values())
        ends = ", with Student's 95\N{NO-BREAK SPACE}% interval of its mean over seeds" if several else ""
        notes.append(f"{_SHARE.header[:-2]} is the Avg. Gap in % of the original's{ends}")
    if REDRAWN in methods:
        notes.append(f'the Avg. Gap of "{REDRAWN}" is the distance of two networks that never saw the forget set')
    return "; ".join(notes)


def table_note(methods: Methods) -> str:
    """Explains the numbers of a scenario's table in full sentences."""
    sentences = (seeds(methods), "accuracies and MIA in %, time in s", interval_note(methods))
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences if sentence)


def smallest_gap(methods: Methods) -> str | None:
    """Returns the method with the smallest mean Avg. Gap, or None if there are not several besides retraining."""
    gaps = {method: numbers(rows, "avg_gap") for method, rows in methods.items() if method not in (REFERENCE, REDRAWN)}
    means = {method: math.fsum(found) / len(found) for method, found in gaps.items() if found}
    return min(means, key=lambda method: means[method]) if len(means) > 1 else None


def closest_sentence(rows: Iterable[Row]) -> str:
    """Writes the result in a sentence per scenario: the method that came closest to the retrained network.

    Args:
      rows: The rows of any number of scenarios. Scenarios without an Avg. Gap are left out.
    """
    sentences = []
    for scenario, methods in grouped(rows).items():
        gaps = {method: numbers(group, "avg_gap") for method, group in methods.items() if method != REFERENCE}
        means = {method: math.fsum(found) / len(found) for method, found in gaps.items() if found}
        before, floor = means.pop(ORIGINAL, None), means.pop(REDRAWN, None)
        if means:
            best = min(means, key=lambda method: means[method])
            what = "is" if len(means) == 1 else "comes closest:"
            text = (
                f"{scenario}: {best} {what} {means[best]:.2f} percentage points from the retrained network (Avg. Gap)"
            )
            text += "" if before is None else f"; the original network is {before:.2f} away"
            text += "" if floor is None else f", and a second retrained network {floor:.2f}"
            sentences.append(f"{text}.")
    return " ".join(sentences) or "There is no Avg. Gap, because there is no retrained network to compare with."
