"""Whether numbers can be trusted: the outcome of gates, in a sentence and as a table.

A gate is a check of the numbers: they must find what is there, and nothing where there is nothing. Here gates are
mappings, as in `results.json`, with `name`, `metric`, `passed` (None if the gate could not be run) and `explanation`;
and perhaps with `reported`, whether there are numbers of its metric, and `decides`, whether all numbers depend on it
and not only those of its metric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scissorhands_jax.report.tables import Cell, Grid

_OUTCOMES = {True: "holds", False: "FAILS", None: "not run"}
_SIGNS = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}", None: "\N{EN DASH}"}
_SILENT_NAMES = {"klom": "KLoM", "forgetting": "the forgetting score"}


@dataclasses.dataclass(frozen=True)
class GateLine:
    """A line of the table of gates on a page.

    Attributes:
      name: The name of the gate, or of several that lack the same thing.
      outcome: `holds`, `fails` or `not run`.
      sign: One character for the outcome.
      why: The numbers behind the outcome, or what is missing.
    """

    name: str
    outcome: str
    sign: str
    why: str


def gate_lines(gates: Sequence[Mapping[str, Any]]) -> tuple[GateLine, ...]:
    """Makes the lines of the table of gates: those that were run, then one line for each thing that the others lack.

    If no gate was run and all lack the same thing, there are no lines, because the sentence of `gates_note` suffices.
    """
    lines = [
        GateLine(gate["name"], _OUTCOMES[gate["passed"]].lower(), _SIGNS[gate["passed"]], gate["explanation"])
        for gate in gates
        if gate["passed"] is not None
    ]
    missing: dict[str, list[str]] = {}
    for gate in gates:
        if gate["passed"] is None:
            missing.setdefault(gate["explanation"], []).append(gate["name"])
    if not lines and len(missing) < 2:
        return ()
    lines += [GateLine("; ".join(names), _OUTCOMES[None], _SIGNS[None], why) for why, names in missing.items()]
    return tuple(lines)


def gates_grid(gates: Sequence[Mapping[str, Any]]) -> Grid:
    """Makes a table of gates for Markdown, with name, outcome and reason."""
    lines = [(Cell(gate["name"]), Cell(_OUTCOMES[gate["passed"]]), Cell(gate["explanation"])) for gate in gates]
    return Grid(("Gate", "Outcome", "Why"), tuple(lines), words=3)


def gates_note(gates: Sequence[Mapping[str, Any]]) -> str:
    """Writes whether the numbers of tables can be trusted, in a sentence or two, with the reasons against it."""
    failed, held, not_run = ([gate for gate in gates if gate["passed"] is passed] for passed in (False, True, None))
    reasons = "; ".join(f"{gate['name']}: {gate['explanation']}" for gate in failed or not_run)
    return f"{gates_summary(gates)} {reasons}." if failed or (held and not_run) else gates_summary(gates)


def gates_summary(gates: Sequence[Mapping[str, Any]]) -> str:
    """Writes whether the numbers of tables can be trusted, in one sentence without the reasons."""
    failed, held, not_run = ([gate for gate in gates if gate["passed"] is passed] for passed in (False, True, None))
    count = len(gates)
    if failed:
        return f"These numbers cannot be trusted, because {len(failed)} of {count} gates failed."
    if not held:
        whys = "; ".join(dict.fromkeys(gate["explanation"] for gate in not_run))
        return f"No gate was run, so nothing shows that these numbers can be trusted: {whys}."
    if not_run:
        return f"{len(held)} of {count} gates hold, the others were not run."
    return f"All {count} gates hold: originals are caught, and nothing is found in retrained networks."


def silent_metrics(gates: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns the beginnings of the names of metrics that are not evidence, because their own gate does not hold."""
    own = [gate for gate in gates if not gate.get("decides", True) and gate["passed"] is not True]
    return tuple(gate["metric"].partition("_")[0] for gate in own if gate["reported"])


def audit_verdict(gates: Sequence[Mapping[str, Any]]) -> str:
    """Writes whether the numbers of an audit can be trusted, in a sentence or two, with the reasons against it."""
    deciding = [gate for gate in gates if gate.get("decides", True)]
    failed = [gate for gate in deciding if gate["passed"] is False]
    if failed:
        why = "; ".join(f"{gate['name']}: {gate['explanation']}" for gate in failed)
        return f"These numbers cannot be trusted, because {len(failed)} of the gates failed. {why}."
    held = [gate for gate in deciding if gate["passed"]]
    if not held:
        return "These numbers cannot be trusted, because no gate could be run; take more networks."
    not_run = [gate for gate in deciding if gate["passed"] is None]
    unknown = [gate for gate in not_run if gate.get("reported")]
    if unknown:
        which = "; ".join(f"{gate['name']}: {gate['explanation']}" for gate in unknown)
        return f"These numbers cannot be trusted, because gates of reported metrics could not be run. {which}."
    rest = f"; {len(not_run)} could not be run, and their metrics are not reported" if not_run else ""
    silent = [name for start, name in _SILENT_NAMES.items() if start in silent_metrics(gates)]
    return (
        f"All {len(held)} gates of the attacks that were run hold{rest}: they find the original, and nothing in "
        "retrained networks."
        + (
            f" There is no evidence in {' and '.join(silent)}: not even the original was shown to be farther from "
            "retrained networks than these are from each other."
            if silent
            else ""
        )
    )
