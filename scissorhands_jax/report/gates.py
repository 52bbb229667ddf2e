"""Gates: what must hold before numbers about forgetting mean anything.

What cannot tell the original from a network that never saw the forget set finds nothing in any other network either,
and what finds something in a network that never saw it would find it anywhere. So every evaluation shows whether the
original is caught, and whether retrained networks come out as null; and which of this it could not check, and why.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from scissorhands_jax import report
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import accuracies, ensemble_attacks, intervals
from scissorhands_jax.metrics.intervals import Estimate

ORIGINAL = "original"
CAUGHT = "the original is caught"
NULL = "nothing is found in retrained networks"
FARTHER = "the original is farther off than retrained from retrained"

LEVEL = 0.95
_NULL_LEVEL = 0.99
"""Of the gate in which chance alone fails a sound table."""


class Gate(NamedTuple):
    """A check of the numbers: whether they find what is there, and nothing where nothing is."""

    name: str
    metric: str
    passed: bool | None  # None: it could not be run
    explanation: str
    estimate: Estimate | None
    reported: bool = True  # there are numbers of this metric
    decides: bool = True  # on all numbers; otherwise on its own metric alone


def of_attack(name: str, metric: str, must_find: bool, estimates: Sequence[Estimate]) -> Gate:
    """The gate of an attack in an audit: its mean AUC over forget sets must lie above 0.5, or must not.

    Args:
      name: of the gate.
      metric: a key of `report.METRICS`.
      must_find: there is something to find.
      estimates: of the AUC, one per forget set; none where the attack could not be run.
    """
    title = report.METRICS[metric][0]
    if not estimates:
        return Gate(name, metric, None, f"{title} takes more networks, or strangers of the same classes", None)
    mean = intervals.average(estimates, (0, 1))
    interval = f"{title} {mean.value:.3f}, {100 * mean.level:.4g} % interval [{mean.low:.3f}, {mean.high:.3f}]"
    if mean.networks == 1:
        interval += " over examples alone"
    if must_find:
        passed = mean.low > 0.5
        why = f"{interval}, must lie above 0.5: " + ("it does" if passed else "the attack cannot see what is there")
    else:
        passed = mean.low <= 0.5 <= mean.high
        why = f"{interval}, must hold 0.5: " + ("it does" if passed else "the attack sees what is not there")
    return Gate(name, metric, passed, why, mean)


def trusted(gates: Sequence[Gate]) -> bool:
    """Of the gates that decide: whether some holds, none failed, and each of a reported metric could be run."""
    ran = [gate.passed for gate in gates if gate.decides and (gate.passed is not None or gate.reported)]
    return any(ran) and all(ran)


def held_out_numbers(
    logits: np.ndarray, labels: np.ndarray, kinds: np.ndarray, held: np.ndarray, held_labels: np.ndarray, held_kinds
) -> dict[str, float]:
    """What the gate `NULL` asks of a retrained network, for its row of results.

    Args:
      logits, labels: of the forget set. shape=(N, C), (N,)
      kinds: an integer each; only held-out examples of the same kind are compared, such as of the same class and with
        as wrong a label. shape=(N,)
      held, held_labels, held_kinds: the same of held-out examples.

    Returns:
      `held_out_auc`, the chance that the network is surer of a forget example than of a held-out one of its kind, and
      `held_out_low` and `held_out_high`, between which it lies if the network saw neither (`verdicts.likeness`); empty
      where no held-out example is of any of the kinds.
    """
    own, other = ensemble_attacks.margins(logits, labels), ensemble_attacks.margins(held, held_labels)
    try:
        found = intervals.likeness(own, kinds, other, held_kinds, level=_NULL_LEVEL)
    except InputError:
        return {}
    return {"held_out_auc": found.value, "held_out_low": found.low, "held_out_high": found.high}


def of_rows(rows: Sequence[Mapping[str, Any]]) -> list[Gate]:
    """The gates of tables of results: of every scenario its originals against its retrained networks.

    `CAUGHT`: over the forget sets of all seeds the original gets more right, or MIA judges fewer of them never seen; an
    interval of the difference of two shares (Agresti and Caffo, 2000) leaves out 0, and neither says the opposite.
    `NULL`: retrained networks treat the forget set as they treat held-out examples. `FARTHER`: the original's Avg. Gap
    lies above the gaps between retrained networks of different seeds, with an interval by jackknife over seeds.

    Args:
      rows: as of `report.rows`. Gates whose numbers they lack are not run, and say what is missing.
    """
    gates = []
    for scenario, methods in report.grouped(rows).items():
        original, retrained = (methods.get(label, []) for label in (ORIGINAL, report.REFERENCE))
        missing = "a retrained network" if not retrained else "the original" if not original else None
        if missing is not None:
            found = [Gate(name, "", None, f"needs {missing}", None) for name in (CAUGHT, NULL, FARTHER)]
        else:
            found = [_caught(original, retrained), _null(retrained), _farther(original, retrained)]
        gates += [gate._replace(name=f"{scenario}: {gate.name}") for gate in found]
    return gates


def _caught(original: Sequence[Mapping[str, Any]], retrained: Sequence[Mapping[str, Any]]) -> Gate:
    """The original knows the forget set better, beyond what the number of examples explains."""
    said, more, less = [], False, False
    for field, title, sign in (("acc_forget", "accuracy on the forget set", 1), ("mia", "MIA", -1)):
        counts = [_counts(rows, field) for rows in (original, retrained)]
        if None in counts:
            continue
        (hits, total), (other_hits, other_total) = counts
        # One example more on either side of each share, so that shares of 0 and 1 have a width.
        shares = (hits + 1) / (total + 2), (other_hits + 1) / (other_total + 2)
        variance = sum(p * (1 - p) / (n + 2) for p, n in zip(shares, (total, other_total), strict=True))
        reach = float(stats.norm.ppf(1 - (1 - LEVEL) / 4)) * math.sqrt(variance)  # two numbers, two sides
        low, high = max(-1.0, shares[0] - shares[1] - reach), min(1.0, shares[0] - shares[1] + reach)
        more |= (low if sign > 0 else -high) > 0
        less |= (high if sign > 0 else -low) < 0
        said.append(
            f"{title} {100 * hits / total:.2f} % against {100 * other_hits / other_total:.2f} % in retrained networks, "
            f"difference in [{100 * low:.2f}, {100 * high:.2f}]"
        )
    if not said:
        return Gate(CAUGHT, "acc_forget", None, "the results do not say how many examples were forgotten", None)
    # MIA is anything in a network in which members and others look alike, so it must not contradict the accuracy.
    caught = more and not less
    why = "; ".join(said) + ": "
    why += "it knows them better" if caught else "nothing shows that it knows them better"
    return Gate(CAUGHT, "acc_forget", caught, why, None)


def _counts(rows: Sequence[Mapping[str, Any]], field: str) -> tuple[float, int] | None:
    """Examples of all seeds that a percentage counts, and all of them."""
    if any(row.get(field) is None or not row.get("num_forget") for row in rows):
        return None
    return sum(row[field] * row["num_forget"] / 100 for row in rows), sum(row["num_forget"] for row in rows)


def _null(retrained: Sequence[Mapping[str, Any]]) -> Gate:
    """Each network is compared with held-out examples of its own; they may share these, so the mean is no surer."""
    shown = [row for row in retrained if row.get("held_out_auc") is not None]
    if not shown:
        return Gate(
            NULL,
            "held_out_auc",
            None,
            "the results have no comparison with held-out examples like those of the forget set",
            None,
        )
    value, low, high = (
        math.fsum(row[f"held_out_{name}"] for row in shown) / len(shown) for name in ("auc", "low", "high")
    )
    passed = low <= value <= high
    why = (
        f"they are surer of a forget example than of a held-out one in {100 * value:.1f} % of pairs, must lie in "
        f"[{100 * low:.1f}, {100 * high:.1f}]: "
        + ("it does" if passed else "so the forget set was seen after all, or differs from what it is compared with")
    )
    return Gate(NULL, "held_out_auc", passed, why, Estimate(value, low, high, _NULL_LEVEL, len(shown), 0))


def _farther(original: Sequence[Mapping[str, Any]], retrained: Sequence[Mapping[str, Any]]) -> Gate:
    reference = {row.get("seed"): row for row in retrained}
    try:
        own = [
            accuracies.average_gap(row, reference[row.get("seed")]) for row in original if row.get("seed") in reference
        ]
        gaps = {pair: accuracies.average_gap(*(reference[seed] for seed in pair)) for pair in _pairs(reference)}
    except InputError:
        return Gate(FARTHER, "avg_gap", None, "the results have no Avg. Gap", None)
    if not gaps or not own:
        return Gate(FARTHER, "avg_gap", None, "needs retrained networks of two seeds", None)
    null = _between(gaps, list(reference))
    value = math.fsum(own) / len(own)
    passed = value > null.high
    interval = f", {100 * null.level:g} % interval [{null.low:.2f}, {null.high:.2f}]" if len(reference) > 2 else ""
    why = (
        f"Avg. Gap {value:.2f}, must lie above that between retrained networks, {null.value:.2f}{interval}: "
        + ("it does" if passed else "it does not")
        + ", and a method's that does not cannot be told from retraining by it"
    )
    return Gate(FARTHER, "avg_gap", passed, why, null)


def _pairs(seeds: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    return list(itertools.combinations(seeds, 2))


def _between(gaps: Mapping[tuple[Any, Any], float], seeds: Sequence[Any]) -> Estimate:
    """The mean over pairs of seeds, with Student's interval of the jackknife; two seeds alone have none."""

    def mean(without: Any = None) -> float:
        kept = [gap for pair, gap in gaps.items() if without is None or seeds[without] not in pair]
        return math.fsum(kept) / len(kept)

    count, value, reach = len(seeds), mean(), 0.0
    if count > 2:
        left_out = np.array([mean(number) for number in range(count)])
        deviation = math.sqrt((count - 1) / count * float(np.square(left_out - left_out.mean()).sum()))
        reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * deviation
    return Estimate(value, max(0.0, value - reach), value + reach, LEVEL, count, 0)
