"""Audits for people: the verdict of the gates, tables of evidence, and a page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scissorhands_jax.report.figures import Picture, evidence_figure, pictures
from scissorhands_jax.report.page import write_html
from scissorhands_jax.report.rows import DASH
from scissorhands_jax.report.tables import Cell, Grid

NULL = "retrained against retrained"
"""The label of the comparison that must find nothing."""

METRICS: dict[str, tuple[str, float | None]] = {
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
"""What is measured: its name in a table, and the value of perfect forgetting where there is one."""

_WHAT = (
    "For every forget set half of the networks of one ensemble were trained on it; each method makes these forget it. "
    "The other half never saw it: they are the retrained networks that unlearning should end at. The rest of the "
    "training set is split at random between the two networks of a pair, but for a part that all have.",
    "U-LiRA attacks with full knowledge of the method: it compares an example's score under a network with its scores "
    "under other unlearned and other retrained networks. 0.5 means that unlearned and retrained networks cannot be "
    "told apart; its AUC on held-out examples says how much of what is told apart is a general change of the network "
    "and no trace of the forget set. LiRA, RMIA and the population attack look at one network and tell its forget set "
    "from examples that it never saw; below 0.5 the forget set stands out by being answered worse.",
    "KLoM is the divergence between the margins of unlearned and of retrained networks, at the 95th percentile over "
    "examples; the forgetting score is that of the NeurIPS 2023 challenge, 1 at best. Both are biased with few "
    f"networks: the row \u201c{NULL}\u201d, half of these networks against the other half, says by how much, and the "
    "columns \u201chalf the networks\u201d have as many networks for every method. KLoM cannot exceed 11.5, where "
    "unlearned and retrained networks share no bin. Where not even the original is farther off than that row, the "
    "number says nothing at this size and is no evidence.",
    "Recovered is the accuracy on the forget set that comes back by training on the retain set alone. Distances are in "
    "units of the other network's length; of a retrained network, to another retrained one.",
    "Intervals of attacks, KLoM and forgetting score are by bootstrap over networks and examples; those of what is "
    "measured inside networks are over the few networks that were looked into and no examples. All take Student's t "
    "for the number of networks, references of the attacks are not drawn anew, and one network alone has no interval. "
    "Forget sets share the networks, so a mean over them is given no narrower an interval than they have. Variances "
    "are pooled over examples where there are fewer than 64 networks a side. A true positive rate needs some ten false "
    "positives to be more than an anecdote: where there are fewer negatives than that takes, the table says so.",
)
_OUTCOMES = {True: "holds", False: "FAILS", None: "not run"}
_SHOWN = (
    ("Can unlearned and retrained networks be told apart?", "u_lira"),
    ("Can the forget set be told from what a network never saw?", "lira rmia population"),
    ("Distances between distributions", "klom forgetting"),
    ("Inside the networks", "recovered probe distance"),
)


def evidence_grids(document: Mapping[str, Any]) -> list[tuple[str, Grid]]:
    """The tables of an audit, means over its forget sets with their intervals, by heading."""
    values = {(entry["method"], entry["metric"]): entry for entry in document["evidence"] if entry["scenario"] is None}
    methods = list(dict.fromkeys(method for method, _ in values))
    silent = _says_nothing(document)
    tables = []
    for heading, prefixes in _SHOWN:
        shown = [metric for metric in METRICS if metric.startswith(tuple(prefixes.split()))]
        present = [metric for metric in shown if any((method, metric) in values for method in methods)]
        lines = [
            (Cell(method), *(_cell(values.get((method, metric))) for metric in present))
            for method in methods
            if any((method, metric) in values for metric in present)
        ]
        if present:
            headers = [
                _header(metric, [values[method, metric] for method in methods if (method, metric) in values], silent)
                for metric in present
            ]
            tables.append((heading, Grid(("Method", *headers), tuple(lines))))
    return tables


def _says_nothing(document: Mapping[str, Any]) -> tuple[str, ...]:
    """How the metrics begin whose own gate does not hold."""
    own = [gate for gate in document["gates"] if not gate.get("decides", True) and gate["passed"] is not True]
    return tuple(gate["metric"].partition("_")[0] for gate in own if gate["reported"])


def _header(metric: str, entries: Sequence[Mapping[str, Any]], silent: tuple[str, ...]) -> str:
    """A metric's name, with what must be known of all its numbers."""
    title = METRICS[metric][0]
    _, is_rate, percent = metric.partition("_tpr_at_")
    if is_rate:
        counts = sorted({entry.get("negatives", 0) for entry in entries})
        shown = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
        too_few = ": too few" if counts[0] < 10 / (float(percent) / 100) else ""
        return f"{title} ({shown} negatives{too_few})"
    return f"{title} (says nothing here)" if metric.startswith(silent) else title


def _cell(entry: Mapping[str, Any] | None) -> Cell:
    if entry is None:
        return Cell(DASH)
    if entry["networks"] == 1:
        return Cell(f"{entry['value']:.3f}")
    return Cell(f"{entry['value']:.3f}", f"[{entry['low']:.3f}, {entry['high']:.3f}]")


def gates_grid(document: Mapping[str, Any]) -> Grid:
    """The gates of an audit as a table."""
    lines = [
        (Cell(gate["name"]), Cell(_OUTCOMES[gate["passed"]]), Cell(gate["explanation"])) for gate in document["gates"]
    ]
    return Grid(("Gate", "Outcome", "Why"), tuple(lines))


def gates_section(gates: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """A section of a page about the gates beside its tables: what they say together, and each of them."""
    each = [f"{gate['name']}: {_OUTCOMES[gate['passed']]}. {gate['explanation']}." for gate in gates]
    return "What the gates say", [gates_note(gates), *each]


def gates_note(gates: Sequence[Mapping[str, Any]]) -> str:
    """Whether numbers of tables can be trusted, in a sentence or two, from the gates that stand beside them."""
    failed, held, not_run = ([gate for gate in gates if gate["passed"] is passed] for passed in (False, True, None))
    reasons = "; ".join(f"{gate['name']}: {gate['explanation']}" for gate in failed or not_run)
    count = len(gates)
    if failed:
        return f"These numbers cannot be trusted, because {len(failed)} of {count} gates failed. {reasons}."
    if not held:
        whys = "; ".join(dict.fromkeys(gate["explanation"] for gate in not_run))
        return f"No gate was run, so nothing shows that these numbers can be trusted: {whys}."
    if not_run:
        return f"{len(held)} of {count} gates hold, the others were not run. {reasons}."
    return f"All {count} gates hold: originals are caught, and nothing is found in retrained networks."


def verdict(document: Mapping[str, Any]) -> str:
    """Whether the numbers can be trusted, in a sentence or two."""
    deciding = [gate for gate in document["gates"] if gate.get("decides", True)]
    failed = [gate for gate in deciding if gate["passed"] is False]
    if failed:
        why = "; ".join(f"{gate['name']}: {gate['explanation']}" for gate in failed)
        return f"These numbers cannot be trusted, because {len(failed)} of the gates failed. {why}."
    run_gates = [gate for gate in deciding if gate["passed"]]
    if not run_gates:
        return "These numbers cannot be trusted, because no gate could be run; take more networks."
    not_run = [gate for gate in deciding if gate["passed"] is None]
    unknown = [gate for gate in not_run if gate.get("reported")]
    if unknown:
        which = "; ".join(f"{gate['name']}: {gate['explanation']}" for gate in unknown)
        return f"These numbers cannot be trusted, because gates of what is reported could not be run. {which}."
    rest = f"; {len(not_run)} could not be run, and their metrics are not reported" if not_run else ""
    silent = _says_nothing(document)
    names = [name for start, name in (("klom", "KLoM"), ("forgetting", "the forgetting score")) if start in silent]
    return (
        f"All {len(run_gates)} gates of the attacks that were run hold{rest}: they find the original, and nothing in "
        "retrained networks."
        + (
            f" With so few networks there is no evidence in {' and '.join(names)}: not even the original was shown to "
            "be farther from retrained networks than these are from each other."
            if names
            else ""
        )
    )


def write_audit(path: str | os.PathLike, document: Mapping[str, Any]) -> None:
    """Writes the page of an audit, whose first words are whether its numbers can be trusted.

    Args:
      path: the file, usually `report.html`.
      document: as returned by `audit.run_audit`.
    """
    ensemble = document["ensemble"]
    about = (
        f"{ensemble['networks']} networks, {ensemble['networks_per_side']} with and as many without each forget set of "
        f"{', '.join(map(str, ensemble['forget']))} of {ensemble['examples']:,} training examples."
    )
    tables = evidence_grids(document)
    sheets = [("Gates", [verdict(document)], gates_grid(document))]
    sheets += [(heading, ["Means over forget sets."], table) for heading, table in tables]
    rows = document["rows"]
    attacks = [
        Picture(
            evidence_figure(document["evidence"], METRICS),
            "Means over forget sets with intervals; the broken line is what a perfect method has.",
            "Values of the attacks by method with intervals",
            heading="Attacks",
            name="attacks",
        )
    ]
    write_html(
        path,
        title=f"Audit: {document['config']['experiment']}, {document['config']['tier']}",
        summary_sections=[("What the gates say", [verdict(document)]), ("What was done", [about, *_WHAT])],
        sheets=sheets,
        rows=rows,
        figures=[*attacks, *pictures(rows)],
        settings=document["config"],
        hashes={
            "Masks (SHA-256)": ensemble["masks_sha256"],
            "Forget sets (SHA-256)": dict(
                zip([s["name"] for s in document["config"]["scenarios"]], ensemble["forget_sha256"], strict=True)
            ),
        },
        environment={"versions": document["versions"], "machine": document["machine"]},
    )


def print_audit(document: Mapping[str, Any], console: Console) -> None:
    """Prints the first table of an audit, and the verdict."""
    for heading, table in evidence_grids(document)[:1]:
        shown = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for header in table.headers:
            shown.add_column(header, justify="left" if header == "Method" else "right")
        for cells in table.lines:
            shown.add_row(*(Text(f"{cell.text}\n{cell.deviation}".strip()) for cell in cells))
        console.print(shown)
    console.print(verdict(document), highlight=False, soft_wrap=True, markup=False)
