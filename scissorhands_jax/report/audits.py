"""The tables of an audit: its metrics, their names, and the evidence by method."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from scissorhands_jax.metrics import intervals
from scissorhands_jax.metrics.distances import quality_of
from scissorhands_jax.report.gate_texts import silent_metrics
from scissorhands_jax.report.rows import DASH
from scissorhands_jax.report.tables import Cell, Grid

NULL = "retrained against retrained"
"""The label of the comparison of retrained networks with each other, which must find nothing."""

METRICS: Mapping[str, tuple[str, float | None]] = {
    "population_auc": ("Population AUC", 0.5),
    "u_lira_auc": ("U-LiRA AUC", 0.5),
    "u_lira_tpr_at_1": ("U-LiRA TPR at 1 %", 0.01),
    "u_lira_tpr_at_0.1": ("U-LiRA TPR at 0.1 %", 0.001),
    "u_lira_held_out_auc": ("U-LiRA AUC, held out", 0.5),
    "lira_auc": ("LiRA AUC", 0.5),
    "lira_tpr_at_1": ("LiRA TPR at 1 %", 0.01),
    "lira_tpr_at_0.1": ("LiRA TPR at 0.1 %", 0.001),
    "rmia_auc": ("RMIA AUC", 0.5),
    "rmia_tpr_at_1": ("RMIA TPR at 1 %", 0.01),
    "rmia_tpr_at_0.1": ("RMIA TPR at 0.1 %", 0.001),
    "klom_forget": ("KLoM forget, P95", 0.0),
    "klom_retain": ("KLoM retain, P95", 0.0),
    "klom_held_out": ("KLoM held out, P95", 0.0),
    "forgetting_score": ("Forgetting score", 1.0),
    "klom_forget_halves": ("KLoM forget, P95, half the networks", 0.0),
    "klom_retain_halves": ("KLoM retain, P95, half the networks", 0.0),
    "klom_held_out_halves": ("KLoM held out, P95, half the networks", 0.0),
    "forgetting_score_halves": ("Forgetting score, half the networks", 1.0),
    "recovered": ("Recovered, % points", 0.0),
    "probe_gap": ("Probe, forget minus held out, % points", 0.0),
    "distance_original": ("Distance to original", None),
    "distance_retrained": ("Distance to retrained", None),
}
"""The metrics of an audit: the name in a table, and the value for perfect forgetting or None."""

_TABLES = (
    ("Can unlearned and retrained networks be distinguished?", "u_lira"),
    ("Can the forget set be distinguished from unseen examples?", "lira rmia population"),
    ("Distances between distributions", "klom forgetting"),
    ("Inside the networks", "recovered probe distance"),
)


def metric_titles(document: Mapping[str, Any]) -> Mapping[str, tuple[str, float | None]]:
    """Returns `METRICS` with the units of an audit: what is recovered is in % points only if its metric is in percent.

    Args:
      document: The document that `audit.run_audit` returned.
    """
    if quality_of(next(iter(document.get("rows", ())), {}))["unit"] == "%":
        return METRICS
    return {**METRICS, "recovered": ("Recovered", METRICS["recovered"][1])}


def evidence_grids(document: Mapping[str, Any]) -> list[tuple[str, Grid]]:
    """Makes the tables of an audit: means over its forget sets (`means_note`) with their intervals.

    Args:
      document: The document that `audit.run_audit` returned.

    Returns:
      The tables with their headings.
    """
    values = {(entry["method"], entry["metric"]): entry for entry in document["evidence"] if entry["scenario"] is None}
    methods = list(dict.fromkeys(method for method, _ in values))
    silent, titles = silent_metrics(document["gates"]), metric_titles(document)
    tables = []
    for heading, prefixes in _TABLES:
        shown = [metric for metric in METRICS if metric.startswith(tuple(prefixes.split()))]
        present = [metric for metric in shown if any((method, metric) in values for method in methods)]
        lines = [
            (Cell(method), *(_cell(values.get((method, metric))) for metric in present))
            for method in methods
            if any((method, metric) in values for metric in present)
        ]
        if present:
            headers = [
                _header(
                    metric,
                    titles[metric][0],
                    [values[method, metric] for method in methods if (method, metric) in values],
                    silent,
                )
                for metric in present
            ]
            tables.append((heading, Grid(("Method", *headers), tuple(lines))))
    return tables


def means_note(document: Mapping[str, Any]) -> str:
    """Says that the numbers of the tables are means over forget sets, and which are not over all of them.

    Args:
      document: The document that `audit.run_audit` returned.
    """
    sets = {entry["scenario"] for entry in document["evidence"]} - {None}
    what = "Of the one forget set." if len(sets) == 1 else "Means over forget sets."
    return what + means_exceptions(document)


def means_exceptions(document: Mapping[str, Any]) -> str:
    """Says which means are not over all forget sets, in sentences that each follow a space; "" if all are.

    Args:
      document: The document that `audit.run_audit` returned.
    """
    behind: dict[str, dict[str, list[str]]] = {}
    of_method: dict[str, dict[str, None]] = {}
    for entry in document["evidence"]:
        if (scenario := entry["scenario"]) is not None:
            behind.setdefault(entry["metric"], {}).setdefault(entry["method"], []).append(scenario)
            of_method.setdefault(entry["method"], {})[scenario] = None
    total = len({scenario for scenarios in of_method.values() for scenario in scenarios})
    exceptions: dict[tuple[str, ...], list[str]] = {}
    for method, known in of_method.items():
        if len(known) < total:
            exceptions.setdefault(tuple(known), []).append(method)
    for name, held in behind.items():
        fewer: dict[tuple[str, ...], list[str]] = {}
        for method, found in held.items():
            if len(found) < len(of_method[method]):
                fewer.setdefault(tuple(found), []).append(method)
        for scenarios, methods in fewer.items():
            whose = "" if len(methods) == len(held) else f" of {', '.join(methods)}"
            exceptions.setdefault(scenarios, []).append(f"{METRICS[name][0]}{whose}")
    return _said_alone(exceptions)


def shorter_means(document: Mapping[str, Any], metric: str, methods: Collection[str]) -> str:
    """Says of one metric which of these methods' means are not over all forget sets, as `means_exceptions` does.

    Args:
      document: The document that `audit.run_audit` returned.
      metric: The metric.
      methods: The methods that are asked about.
    """
    entries = [entry for entry in document["evidence"] if entry["scenario"] is not None]
    total = len({entry["scenario"] for entry in entries})
    exceptions: dict[tuple[str, ...], list[str]] = {}
    for method in methods:
        found = [entry["scenario"] for entry in entries if (entry["metric"], entry["method"]) == (metric, method)]
        if len(found) < total:
            exceptions.setdefault(tuple(found), []).append(method)
    return _said_alone(exceptions)


def _said_alone(exceptions: Mapping[tuple[str, ...], Sequence[str]]) -> str:
    return "".join(f" Over {', '.join(sets)} alone: {'; '.join(names)}." for sets, names in exceptions.items())


def _header(metric: str, title: str, entries: Sequence[Mapping[str, Any]], silent: tuple[str, ...]) -> str:
    """Returns a metric's name, with a warning if its numbers mean little."""
    _, is_rate, percent = metric.partition("_tpr_at_")
    if is_rate:
        counts = sorted({entry.get("negatives", 0) for entry in entries})
        shown = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
        # Fewer than ten expected false positives make the rate a matter of chance.
        too_few = ": too few" if counts[0] < 10 / (float(percent) / 100) else ""
        return f"{title} ({shown} negatives{too_few})"
    return f"{title} (no evidence here)" if metric.startswith(silent) else title


def _cell(entry: Mapping[str, Any] | None) -> Cell:
    if entry is None:
        return Cell(DASH)
    # Of a single network nothing shows how far the number may be off, and nor do networks that all have the same, or
    # whose KLoM is one that many examples share, as its ceiling. KLoM of few networks has no interval either.
    if entry["networks"] == 1 or not intervals.differ((entry["low"], entry["high"])):
        return Cell(f"{entry['value']:.3f}")
    return Cell(f"{entry['value']:.3f}", f"[{entry['low']:.3f}, {entry['high']:.3f}]")
