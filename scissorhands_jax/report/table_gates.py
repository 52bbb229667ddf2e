"""Gates of tables of results: the original against the networks that were retrained without the forget set.

Each gate states how often chance alone gives the wrong answer, and what it would find in at least four of five cases.
`tests/report/table_gates_test.py` simulates both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scissorhands_jax import report
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import ensemble_attacks, rank_tests, seed_tests
from scissorhands_jax.metrics.distances import average_gap, quality_of
from scissorhands_jax.metrics.intervals import Estimate
from scissorhands_jax.report.gates import CAUGHT, FARTHER, SILENT, Gate
from scissorhands_jax.report.rows import ORIGINAL, REDRAWN, Row

_ACCURACY_LEVEL = 0.95
_RANK_LEVEL = 0.99
"""The levels of two-sided intervals. So an original that knows no more is caught by its accuracy in 2.5 % of cases, by
the comparison with held-out examples in 0.5 %, and by one of the two in 3 % at most, if the accuracies of networks vary
about normally. Where retrained networks get no forget example right and others a few, it was up to 13 % with one seed
and 11 % with two."""


def held_out_numbers(
    logits: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    held: np.ndarray,
    held_labels: np.ndarray,
    held_groups: np.ndarray,
) -> dict[str, float]:
    """Compares the forget set with held-out examples in one network, for its row of results and for gates.

    Args:
      logits: The network's logits of the forget set. shape=(N, C)
      labels: The labels of the forget set. shape=(N,)
      groups: An integer for each forget example, which is compared only with held-out examples of the same group, such
        as those of its class whose labels are right too, or wrong too. shape=(N,)
      held: The network's logits of held-out examples. shape=(M, C)
      held_labels: The labels of held-out examples. shape=(M,)
      held_groups: The groups of held-out examples. shape=(M,)

    Returns:
      `held_out_auc`, the chance that the network is surer of a forget example than of a held-out one of its group;
      `held_out_low` and `held_out_high`, between which it lies in 99 % of cases if the network saw neither (see
      `rank_test`); and `held_out_uncompared`, the number of forget examples in groups without a held-out example, of
      which these numbers say nothing. The dict is empty if no held-out example is in any of the groups.
    """
    own, other = ensemble_attacks.margins(logits, labels), ensemble_attacks.margins(held, held_labels)
    return held_out_ranks(own, groups, other, held_groups)


def held_out_ranks(
    scores: np.ndarray, groups: np.ndarray, held: np.ndarray, held_groups: np.ndarray
) -> dict[str, float]:
    """Compares the forget set with held-out examples, as `held_out_numbers` does, by how sure the network is of each.

    Args:
      scores: How sure the network is of forget examples (`answers.certainties`). shape=(N,)
      groups: As for `held_out_numbers`. shape=(N,)
      held: How sure it is of held-out examples. shape=(M,)
      held_groups: As for `held_out_numbers`. shape=(M,)
    """
    try:
        found = rank_tests.rank_test(scores, groups, held, held_groups, level=_RANK_LEVEL)
    except InputError:
        return {}
    return {
        "held_out_auc": found.value,
        "held_out_low": found.low,
        "held_out_high": found.high,
        "held_out_uncompared": rank_tests.without_counterpart(groups, held_groups),
    }


def of_rows(rows: Sequence[Row]) -> list[Gate]:
    """Makes the gates of tables of results, which compare the originals of each scenario with its retrained networks.

    * `CAUGHT`: The original is surer of forget examples than of held-out ones of their class (`rank_test`), or gets
      more forget examples right than retrained networks do, beyond the spread between networks (`seed_tests.excess`);
      and neither says the opposite. An original that knows no more is caught by chance in at most 3 % of cases, if
      accuracies vary about normally. MIA
      stands next to it and decides nothing: where nothing was memorised, it can be any number.
    * `SILENT`: Retrained networks treat the forget set like held-out examples. A sound table fails in at most 1 % of
      cases.
    * `FARTHER`: The original is farther from two retrained networks of its seed, by Avg. Gap, than these are from each
      other (`seed_tests.is_farther`). An original that is like a retrained network is farther by chance in at most 5 %
      of cases.

    A gate is not run, either, if it could not hold or could not fail: where chance alone can give every share from 0 to
    100 %, because there are so few examples. Forget examples without held-out ones of their class are not in the rank
    test, and both of its gates say how many they are. Where they are more than half, `SILENT` is not run unless it
    fails for the others. `CAUGHT` is not run if the test finds nothing and there is no accuracy, which is of all
    examples, of two seeds or more.

    Args:
      rows: Rows of results (see `report.rows`). A gate for which they lack numbers is not run and says what is missing.
    """
    gates = []
    for scenario, methods in report.grouped(rows).items():
        original, retrained, redrawn = (methods.get(label, []) for label in (ORIGINAL, report.REFERENCE, REDRAWN))
        missing = "a retrained network" if not retrained else "the original" if not original else None
        if missing is not None:
            found = [Gate(name, None, f"needs {missing}") for name in (CAUGHT, SILENT, FARTHER)]
        else:
            found = [
                _caught(original, retrained, redrawn),
                _silent([*retrained, *redrawn]),
                _farther(original, retrained, redrawn),
            ]
        gates += [gate._replace(name=f"{scenario}: {gate.name}") for gate in found]
    return gates


def _by_seed(*groups: Sequence[Row]) -> list[tuple[Row, ...]]:
    """The rows of the seeds that every group has, one from each group."""
    found = [{row.get("seed"): row for row in group} for group in groups]
    return [tuple(part[seed] for part in found) for seed in found[0] if all(seed in part for part in found)]


def _compared(original: Sequence[Row], retrained: Sequence[Row], redrawn: Sequence[Row]) -> list[tuple[Row, ...]]:
    """The original of each seed with its two retrained networks, or with one if otherwise seeds would be lost."""
    both, one = _by_seed(original, retrained, redrawn), _by_seed(original, retrained)
    return both if len(both) == len(one) else one


def _caught(original: Sequence[Row], retrained: Sequence[Row], redrawn: Sequence[Row]) -> Gate:
    """Checks that the original knows the forget set better than a network that never saw it."""
    quality = quality_of(original[0])
    more, less, parts, metric, estimate = False, False, [], f"{quality['name']}_forget", None
    ranks, accuracy, outside = _ranks(original), _accuracy(original, retrained, redrawn), _outside(original)
    # The accuracy of one seed finds so little that to find nothing would say nothing.
    if accuracy is not None and ranks is None and accuracy.estimate.networks == 1:
        accuracy = None
    limit = 100.0 if quality["better"] == "higher" and quality["unit"] == "%" else math.inf
    blind_ranks = ranks is not None and ranks.high >= 1
    blind_accuracy = accuracy is not None and accuracy.estimate.high - accuracy.estimate.low >= 2 * limit
    if ranks is not None and not blind_ranks:
        more, less, metric, estimate = ranks.value > ranks.high, ranks.value < ranks.low, "held_out_auc", ranks
        known = 50 + 100 * seed_tests.shift_found(ranks.low, ranks.high, _RANK_LEVEL)
        parts.append(
            f"it is surer of a forget example than of a held-out one in {100 * ranks.value:.1f} % of pairs; had it "
            f"seen neither, [{100 * ranks.low:.1f}, {100 * ranks.high:.1f}] ({_found_from(known, 100, ' %')})"
            + (f"; {outside}" if outside else "")
        )
    if accuracy is not None and not blind_accuracy:
        found, points = accuracy.estimate, " points" if quality["unit"] == "%" else ""
        more, less, estimate = more or found.low > 0, less or found.high < 0, estimate or found
        parts.append(
            f"its {'accuracy' if quality['name'] == 'acc' else quality['title']} on the forget set is "
            f"{found.value:.2f}{points} {'above' if quality['better'] == 'higher' else 'below'} that of retrained "
            f"networks{_part_of(found.networks, original)}, 95 % interval [{max(found.low, -limit):.2f}, "
            f"{min(found.high, limit):.2f}] "
            f"({_found_from(accuracy.detectable, limit)})"
        )
    if not parts and (blind_ranks or blind_accuracy):
        if accuracy is None or blind_ranks or accuracy.is_least:
            why = _too_few(original, None if blind_ranks else len(original))
        else:
            count = accuracy.estimate.networks
            why = f"networks of {count} seeds differ too much: by chance alone there can be any difference; add seeds"
        return Gate(CAUGHT, None, why, metric)
    if not parts:
        why = "needs two seeds, or a comparison of the original with held-out examples"
        return Gate(CAUGHT, None, why, metric)
    caught = more and not less
    if outside and not more and (accuracy is None or accuracy.estimate.networks == 1):
        return Gate(CAUGHT, None, f"it is not known whether it knows them better: {'; '.join(parts)}", metric)
    why = "; ".join(parts) + _mia(original, retrained)
    why += ": it knows them better" if caught else ": nothing shows that it knows them better"
    return Gate(
        CAUGHT,
        caught,
        f"{why} (by chance alone in 3 % of cases at most, if {'accuracies' if quality['name'] == 'acc' else 'errors'} "
        "vary normally)",
        metric,
        estimate,
    )


def _part_of(count: int, rows: Sequence[Row]) -> str:
    """Says of how many seeds a number is, where it is not of all."""
    whole = len({row.get("seed") for row in rows})
    return f" in {count} of {whole} seeds" if count < whole else ""


def _too_few(rows: Sequence[Row], seeds: int | None = None) -> str:
    """Says that a gate of these rows could not hold or could not fail, whatever the networks know."""
    count = min((row["num_forget"] for row in rows if row.get("num_forget")), default=None)
    examples = f"{count or 'so few'} forget example{'' if count == 1 else 's'}"
    verb = "is" if count == 1 and seeds is None else "are"
    also = "" if seeds is None else f" in {seeds} seeds"
    return f"{examples}{also} {verb} too few: by chance alone there can be any share from 0 to 100 %"


def _found_from(value: float, limit: float, unit: str = "") -> str:
    """Says from which value on something is found in four of five cases, if values up to the limit suffice for that."""
    return (
        f"four in five are found from {value:.1f}{unit} on" if value <= limit else "fewer than four in five are found"
    )


def _accuracy(original: Sequence[Row], retrained: Sequence[Row], redrawn: Sequence[Row]) -> seed_tests.Excess | None:
    """How much better the original is on the forget set than retrained networks are, in the unit of the metric."""
    metric = quality_of(original[0])
    if metric["name"] != "acc":
        return _excess_quality(metric, original, retrained, redrawn)
    seeds = _compared(original, retrained, redrawn)
    if not seeds or any(row.get("acc_forget") is None or not row.get("num_forget") for one in seeds for row in one):
        return None
    others = [[float(row["acc_forget"]) for row in one[1:]] for one in seeds]
    least = []
    for one, shares in zip(seeds, others, strict=True):
        count = one[0]["num_forget"]
        share = (math.fsum(shares) / len(shares) / 100 * count + 1) / (count + 2)
        least.append(1e4 * share * (1 - share) / count)
    return seed_tests.excess([one[0]["acc_forget"] for one in seeds], others, least=least, level=_ACCURACY_LEVEL)


def _excess_quality(
    metric: Mapping[str, Any], original: Sequence[Row], retrained: Sequence[Row], redrawn: Sequence[Row]
) -> seed_tests.Excess | None:
    """As `_accuracy`, for another metric, whose standard error over examples is the least spread that is believed."""
    field = f"{metric['name']}_forget"
    seeds = _compared(original, retrained, redrawn)
    if not seeds or any(row.get(field) is None or row.get(f"{field}_error") is None for one in seeds for row in one):
        return None
    sign = 1 if metric["better"] == "higher" else -1
    least = [float(np.mean([row[f"{field}_error"] ** 2 for row in one[1:]])) for one in seeds]
    numbers = [[sign * float(row[field]) for row in one] for one in seeds]
    return seed_tests.excess(
        [one[0] for one in numbers], [one[1:] for one in numbers], least=least, level=_ACCURACY_LEVEL
    )


def _mia(original: Sequence[Row], retrained: Sequence[Row]) -> str:
    means = []
    for rows in (original, retrained):
        found = [row["mia"] for row in rows if row.get("mia") is not None]
        if not found:
            return ""
        means.append(math.fsum(found) / len(found))
    return f"; MIA, which decides nothing, is {means[0]:.2f} % against {means[1]:.2f} %"


def _ranks(rows: Sequence[Row]) -> Estimate | None:
    """The comparison with held-out examples, as the mean over networks, with the range if they saw neither.

    Networks share held-out examples, and those of one seed the forget set, so their errors may agree. Therefore the
    range of the mean is the mean of the ranges.
    """
    shown = [row for row in rows if row.get("held_out_auc") is not None]
    if not shown:
        return None
    value, low, high = (
        math.fsum(row[f"held_out_{name}"] for row in shown) / len(shown) for name in ("auc", "low", "high")
    )
    return Estimate(value, low, high, _RANK_LEVEL, len(shown), 0)


def _outside(rows: Sequence[Row]) -> str:
    """Says how many forget examples are not in the comparison with held-out examples; nothing if all are in it.

    Results from before they were counted do not tell, and are taken to have compared all.
    """
    row = max(rows, key=lambda row: row.get("held_out_uncompared") or 0)
    count = row.get("held_out_uncompared") or 0
    if not count:
        return ""
    examples = "forget example has" if count == 1 else "forget examples have"
    of = f" of {row['num_forget']}" if row.get("num_forget") else ""
    return f"{count}{of} {examples} no held-out one of the same class, so nothing was compared with them"


def _mostly_compared(rows: Sequence[Row]) -> bool:
    """Says whether at least half of the forget examples of each row have held-out ones to be compared with."""
    left_out = [(row.get("held_out_uncompared") or 0, row.get("num_forget") or 0) for row in rows]
    return all(not count or 2 * count <= total for count, total in left_out)


def _silent(retrained: Sequence[Row]) -> Gate:
    """Checks that retrained networks treat the forget set like held-out examples."""
    ranks = _ranks(retrained)
    if ranks is None:
        why = "the results have no comparison with held-out examples like those of the forget set"
        return Gate(SILENT, None, why, "held_out_auc")
    if ranks.high >= 1:
        return Gate(SILENT, None, _too_few(retrained), "held_out_auc")
    passed, outside = ranks.low <= ranks.value <= ranks.high, _outside(retrained)
    if passed and not _mostly_compared(retrained):
        why = (
            "of most examples nothing is known: retrained networks are surer of a forget example than of a held-out "
            f"one in {100 * ranks.value:.1f} % of pairs, within [{100 * ranks.low:.1f}, {100 * ranks.high:.1f}], but "
            f"{outside}"
        )
        return Gate(SILENT, None, why, "held_out_auc")
    shift = seed_tests.shift_found(ranks.low, ranks.high, _RANK_LEVEL)
    leak = 50 + 100 * shift
    leaks = (
        f"four in five leaks are found at {leak:.1f} %" if leak <= 100 else "fewer than four in five leaks are found"
    )
    why = (
        f"they are surer of a forget example than of a held-out one in {100 * ranks.value:.1f} % of pairs, must lie in "
        f"[{100 * ranks.low:.1f}, {100 * ranks.high:.1f}]: "
        + ("it does" if passed else "they saw the forget set after all, or it differs from what it is compared with")
        + (f"; {outside}" if outside else "")
        + f" (a sound table fails in 1 % of cases at most; {leaks})"
    )
    return Gate(SILENT, passed, why, "held_out_auc", ranks)


def _farther(original: Sequence[Row], retrained: Sequence[Row], redrawn: Sequence[Row]) -> Gate:
    """Checks that the original is farther from retrained networks than these are from each other, by Avg. Gap."""
    if not redrawn:
        return Gate(FARTHER, None, "needs two seeds, each with two retrained networks", "avg_gap")
    seeds = _by_seed(original, retrained, redrawn)
    try:
        far = [[average_gap(one[0], other) for other in one[1:]] for one in seeds]
        near = [average_gap(one[1], one[2]) for one in seeds]
    except InputError:
        return Gate(FARTHER, None, "the results have no Avg. Gap", "avg_gap")
    found = seed_tests.is_farther(far, near)
    if found is None:
        return Gate(FARTHER, None, "needs two seeds, each with two retrained networks", "avg_gap")
    distance, floor = float(np.mean(far)), float(np.mean(near))
    condition = f"in {found.needed} of {found.seeds} seeds"
    if found.ratio is not None:
        condition += f" and {found.ratio:g} times as far on average"
    why = (
        f"Avg. Gap {distance:.2f} to retrained networks and {floor:.2f} between them; in {found.odd} of {found.seeds} "
        f"seeds both are farther from the original than from each other, must be so {condition}: "
        + ("it is" if found.holds else "it is not, and a method cannot be distinguished from retraining by its gap")
        + f" (by chance alone in {_percent(found.false_alarms)} of cases; an original {seed_tests.TIMES:g} times as "
        f"far off is found in at least {math.floor(100 * found.power)} %)"
    )
    return Gate(FARTHER, found.holds, why, "avg_gap")


def _percent(chance: float) -> str:
    return f"{100 * chance:.2g} %"
