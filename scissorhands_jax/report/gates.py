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


def of_attack(
    name: str, metric: str, must_find: bool, mean: Estimate | None, *, lacking: str = "takes more networks"
) -> Gate:
    """Makes the gate of an attack in an audit from its mean AUC over forget sets.

    If there is something to find, the interval must lie above 0.5. Otherwise it must contain 0.5. The explanation says
    how often the gate passes, or fails, by chance, and in how many audits of this size it would notice an AUC of 0.55,
    by the standard error of the mean in this audit.

    Args:
      name: The name of the gate.
      metric: The attack's AUC, a key of `report.METRICS`.
      must_find: Whether there is something to find.
      mean: The mean AUC with an interval as from `intervals.from_error`; None if the attack could not be run.
      lacking: Why it could not be run, as the rest of a sentence that begins with its name.
    """
    title = report.METRICS[metric][0]
    if mean is None:
        return Gate(name, None, f"{title} {lacking}", metric)
    interval = f"{title} {mean.value:.3f}, {100 * mean.level:.4g} % interval [{mean.low:.3f}, {mean.high:.3f}]"
    if mean.networks == 1:
        interval += " over examples alone"
    by_chance = 100 * (1 - mean.level)
    if must_find:
        passed = mean.low > 0.5
        why = f"{interval}, must lie above 0.5: " + ("it does" if passed else "the attack misses what is there")
        why += f" (at 0.5 it would in {by_chance / 2:.3g} % of audits"
    else:
        passed = mean.low <= 0.5 <= mean.high
        why = f"{interval}, must contain 0.5: " + ("it does" if passed else "the attack finds what is not there")
        why += f" (at 0.5 it fails in {by_chance:.3g} % of audits"
    why += f", and at 0.55 the interval lies above 0.5 in {_percent(intervals.power(mean, 0.05))})"
    return Gate(name, passed, why, metric, mean)


_NOTICEABLE = {"klom": 1.0, "forgetting": -0.1}
"""By the beginning of a distance's name, the difference for which the power of its gate is shown. Distances grow, and
the forgetting score falls, with what is left."""


def of_distance(
    metric: str,
    values: tuple[float, float] | None,
    difference: Estimate | None,
    *,
    lacking: str = "takes more networks",
) -> Gate:
    """Makes the gate `FARTHER` of a distance in an audit. It does not decide about other numbers.

    Args:
      metric: The distance, a key of `report.METRICS`.
      values: That of the original, and that of retrained networks from each other; None if it could not be measured.
      difference: The first minus the second, with an interval as from `intervals.from_error`. Half of what it leaves
        out on either side is the chance that the gate passes for an original that is no farther.
      lacking: Why it could not be measured, as the rest of a sentence that begins with its name.
    """
    title = report.METRICS[metric][0]
    if values is None or difference is None:
        return Gate(FARTHER, None, f"{title} {lacking}", metric, None, decides=False)
    effect = _NOTICEABLE[metric.partition("_")[0]]
    passed = difference.low > 0 if effect > 0 else difference.high < 0
    side = "above" if effect > 0 else "below"
    why = (
        f"{title} {values[0]:.3f} against {values[1]:.3f} of {report.NULL}, {100 * difference.level:.4g} % interval of "
        f"the difference [{difference.low:.3f}, {difference.high:.3f}], must lie {side} 0: "
        + ("it does" if passed else "it does not, so it means nothing at this size")
        + f" (without a difference it would in {50 * (1 - difference.level):.3g} % of audits, and with one of "
        f"{effect:g} in {_percent(intervals.power(difference, abs(effect)))})"
    )
    return Gate(FARTHER, passed, why, metric, difference, decides=False)


def _percent(share: float) -> str:
    """Writes a share in whole percent, and says if it is nearly none or nearly all."""
    return "fewer than 1 %" if share < 0.01 else "more than 99 %" if share > 0.99 else f"{100 * share:.0f} %"


def trusted(gates: Sequence[Gate]) -> bool:
    """Says whether the numbers can be trusted: of the gates that decide, at least one holds and none failed.

    A deciding gate that could not be run counts as failed if there are numbers of its metric.
    """
    ran = [gate.passed for gate in gates if gate.decides and (gate.passed is not None or gate.reported)]
    return any(ran) and all(ran)
