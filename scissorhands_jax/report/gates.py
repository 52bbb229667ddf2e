"""Gates: conditions that must hold before numbers about forgetting mean anything.

A measure that cannot distinguish the original from a network that never saw the forget set will find nothing in any
other network either, and a measure that finds something in a network that never saw it would find it anywhere. So every
evaluation shows whether the original is caught and whether nothing is found in retrained networks, and it says which of
this could not be checked, and why.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scissorhands_jax import report
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import ensemble_attacks, intervals
from scissorhands_jax.metrics.distances import average_gap
from scissorhands_jax.metrics.intervals import Estimate
from scissorhands_jax.metrics.rank_tests import rank_test
from scissorhands_jax.report.rows import Row

ORIGINAL = "original"
CAUGHT = "the original is caught"
SILENT = "nothing is found in retrained networks"
FARTHER = "the original is farther from retrained networks than these are from each other"

_LEVEL = 0.95
_NULL_LEVEL = 0.99
"""The level of the gate `SILENT`, which a sound table fails by chance alone."""


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


def held_out_numbers(
    logits: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    held: np.ndarray,
    held_labels: np.ndarray,
    held_groups: np.ndarray,
) -> dict[str, float]:
    """Compares the forget set with held-out examples in one network, for its row of results and the gate `SILENT`.

    Args:
      logits: The network's logits of the forget set. shape=(N, C)
      labels: The labels of the forget set. shape=(N,)
      groups: An integer for each forget example, which is compared only with held-out examples of the same group, such
        as those of its class whose labels are right too, or wrong too. shape=(N,)
      held: The network's logits of held-out examples. shape=(M, C)
      held_labels: The labels of held-out examples. shape=(M,)
      held_groups: The groups of held-out examples. shape=(M,)

    Returns:
      `held_out_auc`, the chance that the network is surer of a forget example than of a held-out one of its group; and
      `held_out_low` and `held_out_high`, between which it lies if the network saw neither (see `rank_test`). The dict
      is empty if no held-out example is in any of the groups.
    """
    own, other = ensemble_attacks.margins(logits, labels), ensemble_attacks.margins(held, held_labels)
    try:
        found = rank_test(own, groups, other, held_groups, level=_NULL_LEVEL)
    except InputError:
        return {}
    return {"held_out_auc": found.value, "held_out_low": found.low, "held_out_high": found.high}


def of_rows(rows: Sequence[Row]) -> list[Gate]:
    """Makes the gates of tables of results, which compare the originals of each scenario with its retrained networks.

    * `CAUGHT`: Over the forget sets of all seeds, the original gets more examples right, or MIA judges fewer of them
      never seen. The interval of the difference of two shares must not contain 0, and neither number may say the
      opposite.
    * `SILENT`: Retrained networks treat the forget set like held-out examples.
    * `FARTHER`: The original's Avg. Gap lies above the gaps between retrained networks of different seeds, with an
      interval by jackknife over seeds.

    Args:
      rows: Rows of results (see `report.rows`). A gate for which they lack numbers is not run and says what is missing.
    """
    gates = []
    for scenario, methods in report.grouped(rows).items():
        original, retrained = (methods.get(label, []) for label in (ORIGINAL, report.REFERENCE))
        missing = "a retrained network" if not retrained else "the original" if not original else None
        if missing is not None:
            found = [Gate(name, None, f"needs {missing}") for name in (CAUGHT, SILENT, FARTHER)]
        else:
            found = [_caught(original, retrained), _silent(retrained), _farther(original, retrained)]
        gates += [gate._replace(name=f"{scenario}: {gate.name}") for gate in found]
    return gates


def _caught(original: Sequence[Row], retrained: Sequence[Row]) -> Gate:
    """Checks that the original knows the forget set better than retrained networks, beyond what chance explains."""
    parts, more, less = [], False, False
    each = 1 - (1 - _LEVEL) / 2  # Two numbers share the chance of an error.
    for field, title, sign in (("acc_forget", "accuracy on the forget set", 1), ("mia", "MIA", -1)):
        own, other = _counts(original, field), _counts(retrained, field)
        if own is None or other is None:
            continue
        found = intervals.share_difference(*own, *other, level=each)
        more |= (found.low if sign > 0 else -found.high) > 0
        less |= (found.high if sign > 0 else -found.low) < 0
        parts.append(
            f"{title} {100 * own[0] / own[1]:.2f} % against {100 * other[0] / other[1]:.2f} % in retrained networks, "
            f"difference in [{100 * found.low:.2f}, {100 * found.high:.2f}]"
        )
    if not parts:
        return Gate(CAUGHT, None, "the results do not say how many examples were forgotten", "acc_forget")
    # If members and others look alike in a network, its MIA can be any number, so it must not contradict the accuracy.
    caught = more and not less
    why = "; ".join(parts) + ": "
    why += "it knows them better" if caught else "nothing shows that it knows them better"
    return Gate(CAUGHT, caught, why, "acc_forget")


def _counts(rows: Sequence[Row], field: str) -> tuple[float, int] | None:
    """Returns the counts behind a percentage over all seeds: examples that count, and all. None if a row lacks them."""
    if any(row.get(field) is None or not row.get("num_forget") for row in rows):
        return None
    return sum(row[field] * row["num_forget"] / 100 for row in rows), sum(row["num_forget"] for row in rows)


def _silent(retrained: Sequence[Row]) -> Gate:
    """Checks that retrained networks treat the forget set like held-out examples.

    Networks may share held-out examples, so their errors may agree, and the range of the mean is the mean of ranges.
    """
    shown = [row for row in retrained if row.get("held_out_auc") is not None]
    if not shown:
        why = "the results have no comparison with held-out examples like those of the forget set"
        return Gate(SILENT, None, why, "held_out_auc")
    value, low, high = (
        math.fsum(row[f"held_out_{name}"] for row in shown) / len(shown) for name in ("auc", "low", "high")
    )
    passed = low <= value <= high
    why = (
        f"they are surer of a forget example than of a held-out one in {100 * value:.1f} % of pairs, must lie in "
        f"[{100 * low:.1f}, {100 * high:.1f}]: "
        + ("it does" if passed else "they saw the forget set after all, or it differs from what it is compared with")
    )
    return Gate(SILENT, passed, why, "held_out_auc", Estimate(value, low, high, _NULL_LEVEL, len(shown), 0))


def _farther(original: Sequence[Row], retrained: Sequence[Row]) -> Gate:
    """Checks that the original is farther from retrained networks than these are from each other, by Avg. Gap."""
    reference = {row.get("seed"): row for row in retrained}
    seeds = list(reference)
    try:
        own = [average_gap(row, reference[row.get("seed")]) for row in original if row.get("seed") in reference]
        gaps = {
            pair: average_gap(*(reference[seeds[position]] for position in pair))
            for pair in itertools.combinations(range(len(seeds)), 2)
        }
    except InputError:
        return Gate(FARTHER, None, "the results have no Avg. Gap", "avg_gap")
    if not gaps or not own:
        return Gate(FARTHER, None, "needs retrained networks of two seeds", "avg_gap")

    def mean_of_pairs(kept: Sequence[int]) -> float:
        found = [gaps[pair] for pair in itertools.combinations(kept, 2)]
        return math.fsum(found) / len(found)

    null = intervals.jackknife(mean_of_pairs, len(seeds), level=_LEVEL, bounds=(0, math.inf))
    value = math.fsum(own) / len(own)
    passed = value > null.high
    interval = f", {100 * null.level:g} % interval [{null.low:.2f}, {null.high:.2f}]" if len(seeds) > 2 else ""
    why = (
        f"Avg. Gap {value:.2f}, must lie above that between retrained networks, {null.value:.2f}{interval}: "
        + ("it does" if passed else "it does not")
        + ", and a method whose gap does not cannot be distinguished from retraining by it"
    )
    return Gate(FARTHER, passed, why, "avg_gap", null)
