"""The page of an audit, which begins with the result, its figure, and its lines in the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from scissorhands_jax.errors import InputError
from scissorhands_jax.report.audits import (
    METRICS,
    NULL,
    evidence_grids,
    means_note,
    metric_titles,
    shorter_means,
)
from scissorhands_jax.report.drawing import (
    BLUE,
    INK,
    ORANGE,
    PAGE_WIDTH,
    Picture,
    figure_style,
    panel_layout,
    plot_label,
)
from scissorhands_jax.report.gate_texts import audit_verdict
from scissorhands_jax.report.page import Page, Section, Sheet, failures_section, write_html
from scissorhands_jax.report.results import environment_of
from scissorhands_jax.report.row_figures import row_pictures
from scissorhands_jax.report.rows import REFERENCE, failures_note
from scissorhands_jax.report.tables import print_grid
from scissorhands_jax.terminal import Console, say

_WHAT = (
    "For every forget set, half of the networks of one ensemble were trained on it, and each method makes these "
    "networks forget it. The other half never saw it: they are the retrained networks that unlearning should match. "
    "The rest of the training set is split at random between the two networks of a pair, except for a part that all "
    "networks have.",
    "U-LiRA attacks with full knowledge of the method: it compares an example's score under a network with its scores "
    "under other unlearned and other retrained networks. 0.5 means that unlearned and retrained networks cannot be "
    "distinguished. Its AUC on held-out examples shows how much of the difference is a general change of the network "
    "and not a trace of the forget set. LiRA, RMIA and the population attack look at one network and try to "
    "distinguish its forget set from examples that it never saw. Below 0.5, the network answers the forget set worse "
    "than those.",
    "KLoM is the divergence between the margins of unlearned and of retrained networks, at the 95th percentile over "
    "examples. The forgetting score is that of the NeurIPS 2023 challenge, and its best value is 1. Both are biased "
    f"with few networks. The row \u201c{NULL}\u201d, which compares one half of the retrained networks with the other "
    "half, shows by how much, and the columns \u201chalf the networks\u201d use that number of networks for every "
    "method. KLoM cannot exceed 11.5, which it reaches if unlearned and retrained networks share no bin. If not even "
    "the original is farther away than that row, the number means nothing at this size and is not evidence.",
    "Recovered is how much of the accuracy on the forget set, or of the task's first metric, comes back by training on "
    "the retain set alone. Distances are relative to the norm of the other network's weights; that of a retrained "
    "network is to another retrained network.",
    "Intervals of attacks, KLoM and forgetting score are over networks and examples: each pair of networks is left out "
    "once, as attacked networks and as references, and what one pair does on one example counts once. Intervals of "
    "recovery, probes and weight distances are over the few networks that were examined, and not over examples. All "
    "use Student's t, except for true positive rates, which have Wilson's interval. Means over forget sets add up what "
    "a pair contributes to each. An interval is about the mean of the number over ensembles of this size. KLoM of "
    "fewer than eight networks of each kind has none: with four it held less than it says. Variances of "
    "examples are drawn towards their common value by as much as they are uncertain. A true positive rate needs "
    "about ten false positives to mean anything; if there are too few negatives for that, the table says so.",
)
_LEADING = ("u_lira_auc", "lira_auc", "rmia_auc", "population_auc")  # the strongest attack first

_EVIDENCE_PANELS = (
    "u_lira_auc",
    "lira_auc",
    "rmia_auc",
    "population_auc",
    "klom_forget_halves",
    "forgetting_score_halves",
    "recovered",
)


def evidence_figure(
    entries: Iterable[Mapping[str, Any]],
    titles: Mapping[str, tuple[str, float | None]],
    *,
    panels: Sequence[str] = _EVIDENCE_PANELS,
) -> Figure:
    """Draws metrics of an audit, each in a panel with a dot and an interval for each method: means over forget sets.

    Args:
      entries: The evidence of a document of `audit.run_audit`, with `scenario`, `method`, `metric`, `value`, `low` and
        `high`. Entries without a scenario, which are means over all, are drawn.
      titles: The name of each metric, and its value for perfect forgetting, which is drawn as a dashed line.
      panels: The metrics to draw, in order. Those without entries are left out.

    Raises:
      InputError: There is nothing to draw.
    """
    held = {(entry["metric"], entry["method"]): entry for entry in entries if entry["scenario"] is None}
    shown = {metric: [method for found, method in held if found == metric] for metric in panels}
    shown = {metric: methods for metric, methods in shown.items() if methods}
    if not shown:
        raise InputError("there is no evidence to plot; run the audit to its end")
    heights = [0.55 + 0.21 * len(methods) for methods in shown.values()]
    with figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, sum(heights)), layout=panel_layout())
        places = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (metric, methods) in zip(places, shown.items(), strict=True):
            title, perfect = titles[metric]
            for position, method in enumerate(methods):
                entry = held[metric, method]
                axes.plot([entry["low"], entry["high"]], [position, position], color=BLUE, linewidth=2)
                axes.plot([entry["value"]], [position], "o", color=ORANGE, markersize=4.5)
            if perfect is not None:
                axes.axvline(perfect, color=INK, linewidth=1, dashes=(5, 3), zorder=1)
            axes.set_title(title)
            axes.set_yticks(range(len(methods)), [plot_label(method) for method in methods], fontsize=8)
            axes.set_ylim(len(methods) - 0.4, -0.6)
            axes.grid(axis="x")
    return figure


def _leading_metric(document: Mapping[str, Any]) -> str | None:
    """Returns the metric of the strongest attack that was run."""
    measured = {entry["metric"] for entry in document["evidence"] if entry["scenario"] is None}
    return next((metric for metric in _LEADING if metric in measured), None)


def audit_answer(document: Mapping[str, Any]) -> str:
    """Writes in one sentence what the strongest attack of an audit found, or that the numbers cannot be trusted.

    Further sentences name the means that are not over all forget sets.

    Args:
      document: The document that `audit.run_audit` returned.
    """
    metric, verdict = _leading_metric(document), audit_verdict(document["gates"])
    if metric is None or not verdict.startswith("All "):
        return verdict
    values = {
        entry["method"]: f"{entry['method']} {entry['value']:.2f}"
        for entry in document["evidence"]
        if entry["metric"] == metric and entry["scenario"] is None and entry["method"] not in (REFERENCE, NULL)
    }
    title, perfect = METRICS[metric]
    found = f"{title}, which is {perfect:g} if nothing is left to find: {', '.join(values.values())}."
    return found + shorter_means(document, metric, values)


def write_audit(path: str | os.PathLike, document: Mapping[str, Any]) -> None:
    """Writes the page of an audit: the result and whether it can be trusted, then tables, then the method.

    Args:
      path: The file, usually `report.html`.
      document: The document that `audit.run_audit` returned.
    """
    ensemble = document["ensemble"]
    about = (
        f"{ensemble['networks']} networks: for each forget set of {', '.join(map(str, ensemble['forget']))} of "
        f"{ensemble['examples']:,} training examples, {ensemble['networks_per_side']} were trained with it and the "
        "same number without it."
    )
    metric, note = _leading_metric(document), means_note(document)
    leading, everything = (
        Picture(
            evidence_figure(document["evidence"], metric_titles(document), panels=panels),
            f"{note} Lines are intervals, and the dashed line is the value of a perfect method.",
            f"{what} by method with intervals; the numbers are in the tables.",
            heading="All attacks and distances",
            name=name,
        )
        for panels, what, name in (
            ([metric] if metric else _EVIDENCE_PANELS, "Values of the strongest attack", "strongest_attack"),
            (_EVIDENCE_PANELS, "Values of attacks and distances", "attacks"),
        )
    )
    answer, verdict = audit_answer(document), audit_verdict(document["gates"])
    write_html(
        path,
        Page(
            title=f"Audit: {document['config']['experiment']}, {document['config']['tier']}",
            answer=answer,
            trust=None if answer == verdict else verdict,
            leading=[leading],
            gates=document["gates"],
            gates_first=True,
            sheets=[Sheet(heading, table, [note]) for heading, table in evidence_grids(document)],
            rows=document["rows"],
            figures=[everything, *row_pictures(document["rows"])],
            remarks=failures_section(document),
            explanations=[Section("What was done", [about]), Section("How to read it", _WHAT)],
            settings=document["config"],
            hashes={
                "Masks (SHA-256)": ensemble["masks_sha256"],
                "Forget sets (SHA-256)": dict(
                    zip([s["name"] for s in document["config"]["scenarios"]], ensemble["forget_sha256"], strict=True)
                ),
            },
            environment=environment_of(document),
        ),
    )


def print_audit(document: Mapping[str, Any], console: Console) -> None:
    """Prints the first table of an audit, what its means are over, and whether its numbers can be trusted."""
    for heading, table in evidence_grids(document)[:1]:
        print_grid(heading, table, console)
        say(console, means_note(document))
    if note := failures_note(document):
        say(console, note)
    say(console, audit_verdict(document["gates"]))
