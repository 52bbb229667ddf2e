"""Gates: conditions that must hold before numbers about forgetting mean anything.

A measure that cannot distinguish the original from a network that never saw the forget set will find nothing in any
other network either, and a measure that finds something in a network that never saw it would find it anywhere. So every
evaluation shows whether the original is caught and whether nothing is found in retrained networks, and it says which of
this could not be checked, and why. `table_gates` makes those of tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scissorhands_jax import report
from scissorhands_jax.metrics import intervals
from scissorhands_jax.metrics.intervals import Estimate

CAUGHT = "the original is caught"
SILENT = "nothing is found in retrained networks"
FARTHER = "the original is farther from retrained networks than these are from each other"


class Gate(NamedTuple):
    """A check of the numbers: they must find what is there, and nothing where there is nothing."""

    name: str
    passed: bool | None  # None if the gate could not be run
    explanation: str  # what was found, or what is missing
    metric: str = ""  # the metric that the gate is about, if it is about a single one
    estimate: Estimate | None = None
    reported: bool = True  # whether there are numbers of this metric
    decides: bool = True  # whether all numbers depend on the gate; otherwise only those of its metric do


def of_attack(name: str, metric: str, must_find: bool, estimates: Sequence[Estimate]) -> Gate:
    """Makes the gate of an attack in an audit from the interval of its mean AUC over forget sets.

    Args:
      name: The name of the gate.
      metric: The attack's AUC, a key of `report.METRICS`.
      must_find: Whether there is something to find, so that the interval must lie above 0.5. Otherwise it must contain
        0.5.
      estimates: The AUC on each forget set; empty if the attack could not be run.
    """
    title = report.METRICS[metric][0]
    if not estimates:
        return Gate(name, None, f"{title} takes more networks, or held-out examples of the same classes", metric)
    mean = intervals.average(estimates, (0, 1))
    interval = f"{title} {mean.value:.3f}, {100 * mean.level:.4g} % interval [{mean.low:.3f}, {mean.high:.3f}]"
    if mean.networks == 1:
        interval += " over examples alone"
    if must_find:
        passed = mean.low > 0.5
        why = f"{interval}, must lie above 0.5: " + ("it does" if passed else "the attack misses what is there")
    else:
        passed = mean.low <= 0.5 <= mean.high
        why = f"{interval}, must contain 0.5: " + ("it does" if passed else "the attack finds what is not there")
    return Gate(name, passed, why, metric, mean)


def trusted(gates: Sequence[Gate]) -> bool:
    """Says whether the numbers can be trusted: of the gates that decide, at least one holds and none failed.

    A deciding gate that could not be run counts as failed if there are numbers of its metric.
    """
    ran = [gate.passed for gate in gates if gate.decides and (gate.passed is not None or gate.reported)]
    return any(ran) and all(ran)
