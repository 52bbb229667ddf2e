"""Intervals for numbers from several networks on the same examples, whose errors come from both: NumPy and float64.

A number T depends on networks, which come in pairs, and on examples. Its variance has three parts: what a pair does to
all examples (such as a general shift of its scores), what an example does in all networks, and what one pair does on
one example. The variance of T if only pairs vary contains the first and the third, and that if only examples vary
contains the second and the third. So

    Var T = V_examples + (V_pairs - V_both),    where the bracket is at least 0,

and with the influence of pair p, of example k, and of p through k alone,

    V_pairs = sum_p influence_p^2,  V_examples = sum_k influence_k^2,  V_both = sum_pk influence_pk^2.

Pairs are left out one at a time, both as attacked networks and as references of the others (the jackknife), because
attacks that share their references share errors. Intervals are Student's, with degrees of freedom as Satterthwaite's.

The examples of an attack are of two kinds, each with its own variance. A request may ask to forget a single example, of
which no variance can be seen. So the variance over forget examples is drawn towards that which they would have if they
were examples like the others, with the weight of `PRIOR_FREEDOM` degrees of freedom. Where the same examples are of
both kinds (U-LiRA), few of them may be ordered alike in all networks by chance, so the variance is at least that which
Hanley and McNeil give for as many independent scores, at an area that is drawn a little towards 0.5.

An attack that does not know how hard an example is would find a difference in classes where it should find one in
memory: then positives are compared with negatives of their class only (`stratified_area`).

The number that an interval is about is the mean of T over ensembles and forget sets of this size. KLoM and the
forgetting score are biased with few networks, so this is not their value for infinitely many. Coverage at the sizes of
audits is simulated in `tests/metrics/two_way_test.py`, and at more of them by `experiments.calibration`.

References:
  Owen, The pigeonhole bootstrap, Annals of Applied Statistics, 2007; Cameron, Gelbach and Miller, Robust inference with
  multiway clustering, Journal of Business and Economic Statistics, 2011, for the three parts. Efron and Stein, The
  jackknife estimate of variance, Annals of Statistics, 1981. Satterthwaite, An approximate distribution of estimates of
  variance components, Biometrics Bulletin, 1946. DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or
  more correlated receiver operating characteristic curves, Biometrics, 1988, for the variance over examples. Hanley and
  McNeil, The meaning and use of the area under a receiver operating characteristic curve, Radiology, 1982.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics.ensemble_attacks import FALSE_POSITIVE_RATES, Attack, tpr_at_fpr
from scissorhands_jax.metrics.intervals import UNBOUNDED, Estimate, check_level, from_error

_NEGATIVES = -1
"""The kind of examples that an attack has among its negatives, or a smaller number for each class of them; the number
of any other kind is that of an example."""
LEAST_NEGATIVES = 2
"""How many negatives a class needs to be compared with: of one alone no variance can be seen."""
PRIOR_FREEDOM = 4.0
"""How many forget examples the variance of the other examples counts for. With two to four the intervals of a single
attacked network have their level at every number of forget examples (`tests/metrics/two_way_test.py`)."""


class Influence(NamedTuple):
    """A number and what each pair of networks and each example contributes to its error.

    Influences are scaled so that the sum of their squares is a variance.
    """

    value: float
    pairs: np.ndarray  # shape=(P,): the numbers of the pairs; empty if the number is about these networks alone
    examples: np.ndarray  # shape=(C,): the columns of the examples; empty if it is about these examples alone
    of_pairs: np.ndarray  # shape=(P,)
    of_examples: np.ndarray  # shape=(C,)
    of_both: np.ndarray  # shape=(P, C)
    freedom: float  # the degrees of freedom of the variance over pairs
    kinds: np.ndarray  # shape=(C,): a number for each kind of examples, whose variances are estimated one by one
    freedom_of_examples: np.ndarray  # shape=(C,): what each example adds to the degrees of freedom of its kind
    networks: int
    attacked: int  # how many networks have scores of the forget examples; the others only are references
    counted: int  # the number of forget examples, or of examples in all if there is no other kind
    negatives: int = 0
    least: float = 0.0  # the smallest variance that is believed

    def variance(self) -> tuple[float, float]:
        """Returns the variance of the number, and its degrees of freedom."""
        over_pairs = float(np.square(self.of_pairs).sum())
        common = max(0.0, over_pairs - float(np.square(self.of_both).sum()))
        _, places = np.unique(self.kinds, return_inverse=True)
        over_kinds = np.bincount(places, np.square(self.of_examples))
        free = np.maximum(1.0, np.bincount(places, self.freedom_of_examples))
        total = max(self.least, common + float(over_kinds.sum()))
        uncertain = float((over_kinds**2 / free).sum())
        all_free = free[over_kinds > 0].tolist()
        if len(self.pairs):
            # The bracket is never negative, so its own square would make too much of pairs that happen to agree, and
            # that of V_pairs too much of a bracket that is 0. The product lies between them, as the coverage asks.
            uncertain += common * over_pairs / self.freedom
            all_free.append(self.freedom)
        if not total:
            return 0.0, math.inf
        return total, max(min(all_free, default=1.0), total**2 / uncertain if uncertain else 0.0)

    def estimate(self, level: float = 0.95, bounds: tuple[float, float] = UNBOUNDED) -> Estimate:
        """Makes the interval.

        Args:
          level: The coverage that the interval aims at, in (0, 1).
          bounds: The smallest and largest value that the number can have; the interval is cut there.

        Raises:
          InputError: The level is not between 0 and 1.
        """
        check_level(level)
        variance, freedom = self.variance()
        found = from_error(self.value, math.sqrt(variance), freedom, self.networks, self.counted, level, bounds)
        return found._replace(negatives=self.negatives)

    def share_estimate(self, level: float = 0.95, *, least: float = 0.0) -> Estimate:
        """Makes the interval of a share such as a true positive rate, which is Wilson's with the variance found here.

        The share has the variance of one of n independent examples, p (1 - p) / n, for some n, which is at most the
        number of scores (networks that only are references have none). Where no variance was found, or the share is 0
        or 1, n is at most the number of examples, because nothing shows that networks differ in which examples they
        have above the threshold.

        Args:
          level: The coverage that the interval aims at, in (0, 1).
          least: A smaller share is replaced by this one to find n, such as the rate of false positives: without it, a
            true positive rate of nearly 0, whose threshold is uncertain, would seem to be from a handful of examples.

        References:
          Wilson, Probable inference, the law of succession, and statistical inference, JASA, 1927.
        """
        check_level(level)
        variance, freedom = self.variance()
        spread = self.value * (1 - self.value)
        typical = max(self.value, least) * (1 - max(self.value, least))
        number = float(max(1, self.counted))
        if typical > 0 and variance > 0:
            number = min(number * (self.attacked if spread else 1), typical / variance)
        t = float(stats.t.ppf(0.5 + level / 2, freedom))
        middle = (self.value + t**2 / (2 * number)) / (1 + t**2 / number)
        # Below `least` the variance is that of the threshold, and more than that of so small a share of n examples.
        reach = t / (1 + t**2 / number) * math.sqrt(max(variance, spread / number) + t**2 / (4 * number**2))
        low, high = max(0.0, middle - reach), min(1.0, middle + reach)
        found = self.estimate(level)
        return found._replace(low=min(low, self.value), high=max(high, self.value))


def _make(
    value: float,
    left_out: np.ndarray,
    of_examples: np.ndarray,
    left_out_of_examples: np.ndarray,
    pairs: np.ndarray,
    examples: np.ndarray,
    kinds: np.ndarray,
    freedom_of_examples: np.ndarray,
    least: float = 0.0,
    freedom: float | None = None,
    **counts: int,
) -> Influence:
    """Makes an influence from the number and the influences of examples, with all pairs and without each.

    Raises:
      InputError: There are fewer than three pairs.
    """
    number = len(pairs)
    if 0 < number < 3:
        raise InputError(
            f"an interval over networks needs at least three pairs of them, got {number}; train more networks, or ask "
            "for one over examples alone"
        )
    # Leaving out one of n numbers moves their mean by only 1 / (n - 1) of its deviation.
    scale = math.sqrt((number - 1) / number) if number else 0.0
    return Influence(
        value=float(value),
        pairs=pairs,
        examples=examples,
        of_pairs=scale * (left_out.mean() - left_out) if number else left_out,
        of_examples=of_examples,
        of_both=scale * (left_out_of_examples.mean(axis=0) - left_out_of_examples) if number else left_out_of_examples,
        freedom=number - 1.0 if freedom is None else freedom,
        kinds=kinds,
        freedom_of_examples=freedom_of_examples,
        networks=max(1, number),
        least=least,
        **counts,
    )


def attack_influences(
    attack: Attack,
    positives: np.ndarray,
    negatives: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    pairs: np.ndarray | None = None,
    over_networks: bool = True,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
) -> dict[str, Influence]:
    """Finds the AUC and the true positive rates of an attack, and the influence of each pair and example on them.

    The AUC is the mean over attacked networks of the AUC within a network. True positive rates are those of all
    networks together, because a single one has too few negatives. Their influences follow from the numbers of scores
    above the threshold, where a false positive more or less moves the threshold and with it the rate by the slope of
    the ROC curve, taken between half and twice the rate of false positives.

    The variance of the AUC over positive examples is drawn towards that of the places of negatives among negatives,
    which positives have that are like them (`PRIOR_FREEDOM`), unless every positive is a negative as well.

    Args:
      attack: The scores; each row is an attacked network.
      positives: The column of the example of each positive score. shape=(n,)
      negatives: The same for negative scores, of all networks or of each. An example may be both, as in `u_lira`.
        shape=(m,) or (networks, m)
      rows: The position, among the pairs, of the pair of each attacked network. By default 0, 1, 2 and so on.
        shape=(networks,)
      pairs: The numbers of all pairs, which identify them in other influences. By default 0, 1, 2 and so on.
      over_networks: Whether the error includes that of having these networks and no others.
      rates: The rates of false positives at which true positives are counted.

    Returns:
      The influences by `auc`, and `tpr_at_1`, `tpr_at_0.1` and so on, named by the rate in percent.

    Raises:
      InputError: There are fewer than three pairs although the error includes that of networks.
    """
    count = len(attack.positives)
    rows = np.arange(count) if rows is None else rows
    pairs = np.arange(int(rows.max()) + 1) if pairs is None else pairs
    pairs = pairs if over_networks else pairs[:0]
    negatives = np.broadcast_to(negatives, attack.negatives.shape)
    examples = np.unique(np.concatenate([positives, negatives.ravel()]))
    own, others = np.searchsorted(examples, positives), np.searchsorted(examples, negatives)
    thresholds = [_threshold(attack.negatives, rate) for rate in rates]
    slopes = [_slope(attack, rate) for rate in rates]

    # What negatives would add if they were positives among the other negatives, by network. NaN where they are none.
    as_positives = np.full((1 + len(rates), count, len(examples)), np.nan)
    # In line 0 of all of these is the attack itself, and in line 1 + q the attack without pair q.
    found = np.zeros((1 + len(rates), 1 + len(pairs)))
    by_example = np.zeros((1 + len(rates), 1 + len(pairs), len(examples)))
    networks = np.zeros(1 + len(pairs))
    for row, pair in enumerate(rows):
        inside, outside = (
            np.broadcast_to(part, (1 + len(pairs), part.shape[-1]))
            if without is None or not len(pairs)
            else np.concatenate([part, without[row]])
            for part, without in (
                (attack.positives[row : row + 1], attack.without_positives),
                (attack.negatives[row : row + 1], attack.without_negatives),
            )
        )
        here = np.ones(1 + len(pairs))
        if len(pairs):
            here[1 + pair] = 0
        networks += here
        as_positives[0, row, others[row]] = stats.rankdata(outside[0]) / outside.shape[1]
        ahead, behind = _placements(inside, outside)
        parts = [(ahead.mean(axis=1), ahead, behind)]
        for threshold, slope in zip(thresholds, slopes, strict=True):
            hits, alarms = (inside > threshold).astype(float), slope * (outside > threshold)
            parts.append((hits.mean(axis=1) - alarms.mean(axis=1), hits, -alarms))
            as_positives[len(parts) - 1, row, others[row]] = outside[0] > threshold
        for place, (mean, gained, lost) in enumerate(parts):
            found[place] += here * mean
            weight = here[:, None]
            by_example[place][:, own] += weight * (gained - gained.mean(axis=1, keepdims=True)) / gained.shape[1]
            by_example[place][:, others[row]] += weight * (lost - lost.mean(axis=1, keepdims=True)) / lost.shape[1]
    found /= networks
    by_example /= networks[:, None]
    is_negative = ~np.isnan(as_positives[0]).all(axis=0)
    kinds = np.where(is_negative, _NEGATIVES, positives.min())
    n, m, known = len(own), others.shape[1], int(is_negative.sum())
    prior = min(PRIOR_FREEDOM, known - 1.0)
    scales = np.where(is_negative, math.sqrt(m / max(1, m - 1)), math.sqrt(n / max(1, n - 1)))
    free = np.where(is_negative, (known - 1) / known, (n - 1 + prior) / n)
    influences = {}
    for place, name in enumerate(["auc", *(f"tpr_at_{100 * rate:g}" for rate in rates)]):
        value = found[0, 0] if name == "auc" else tpr_at_fpr(attack.positives, attack.negatives, rates[place - 1])
        of_examples, least = scales * by_example[place, 0], 0.0
        if not is_negative[own].any() and prior > 0:
            alone = float(np.square(of_examples[own]).sum())
            usual = _variance_of_means(as_positives[place][:, is_negative]) / n
            drawn = (prior * usual + (n - 1) * alone) / (prior + n - 1)
            if name != "auc":
                # Positives that are above a threshold more often than negatives vary more than these. Where none or
                # all are, no variance was found, and `share_estimate` counts examples.
                drawn = max(alone, drawn) if alone else 0.0
            _set_variance(of_examples, own, drawn)
        elif name == "auc":
            least = _hanley_mcneil((found[0, 0] * n * count + 1) / (n * count + 2), n, m) / count
        influences[name] = _make(
            value,
            found[place, 1:],
            of_examples,
            by_example[place, 1:],
            pairs,
            examples,
            kinds,
            free,
            least,
            len(np.unique(rows)) - 1.0 if len(pairs) else None,  # Of runs that diverged, pairs are only references.
            attacked=count,
            counted=len(positives),
            negatives=0 if name == "auc" else attack.negatives.size,
        )
    return influences


def stratified_area(
    attack: Attack,
    positives: np.ndarray,
    negatives: np.ndarray,
    labels: np.ndarray,
    *,
    pairs: np.ndarray | None = None,
    over_networks: bool = True,
) -> Influence | None:
    """Finds the AUC within classes: the chance that a positive has a larger score than a negative of its class.

    It is the mean over positives, so classes count by their share of these, as in `rank_tests.rank_test`. The variance
    over negatives is drawn, too, towards that which they would have if they were like positives. Positives of
    classes with fewer than `LEAST_NEGATIVES` negatives are left out (`comparable` says which are not).

    Args:
      attack: The scores; each row is an attacked network. What is without a pair is not used.
      positives: The column of the example of each positive score. shape=(n,)
      negatives: The same for negative scores. shape=(m,)
      labels: The class of each column. shape=(columns,)
      pairs, over_networks: As for `attack_influences`.

    Returns:
      The AUC, with the number of positives that were compared as `counted`; None if there are none.

    Raises:
      InputError: There are fewer than three pairs although the error includes that of networks.
    """
    inside = comparable(labels[positives], labels[negatives])
    parts, weights = [], []
    for label in np.unique(labels[positives[inside]]):
        own, others = labels[positives] == label, labels[negatives] == label
        found = attack_influences(
            Attack(attack.positives[:, own], attack.negatives[:, others]),
            positives[own],
            negatives[others],
            pairs=pairs,
            over_networks=over_networks,
            rates=(),
        )["auc"]
        # Each class has a variance of its own, over few examples perhaps, and so degrees of freedom of its own. All
        # forget sets of an audit number its classes alike.
        kind = _NEGATIVES - int(np.searchsorted(np.unique(labels), label))
        found = _drawn_to_positives(found, attack.positives[:, own])
        parts.append(found._replace(kinds=np.where(found.kinds == _NEGATIVES, kind, found.kinds)))
        weights.append(np.count_nonzero(own) / np.count_nonzero(inside))
    if not parts:
        return None
    return _combine(parts, weights)._replace(counted=int(np.count_nonzero(inside)))


def _drawn_to_positives(found: Influence, positives: np.ndarray) -> Influence:
    """Draws the variance over negatives towards that of the places of positives among positives.

    `attack_influences` does the same the other way round. A class may have two negatives, which are alike by chance.
    """
    count, places = positives.shape[1], np.flatnonzero(found.kinds == _NEGATIVES)
    prior = min(PRIOR_FREEDOM, count - 1.0)
    if prior <= 0:
        return found
    of_examples, free, own = found.of_examples.copy(), found.freedom_of_examples.copy(), len(places) - 1.0
    usual = _variance_of_means(stats.rankdata(positives, axis=1) / count) / len(places)
    alone = float(np.square(of_examples[places]).sum())
    _set_variance(of_examples, places, (prior * usual + own * alone) / (prior + own))
    free[places] = (own + prior) / len(places)
    return found._replace(of_examples=of_examples, freedom_of_examples=free)


def comparable(labels: np.ndarray, negative_labels: np.ndarray) -> np.ndarray:
    """Says which positives have enough negatives of their class for `stratified_area`.

    Args:
      labels: The classes of positives. shape=(n,)
      negative_labels: The classes of negatives. shape=(m,)

    Returns:
      Whether each positive is compared. shape=(n,), dtype=bool
    """
    classes, counts = np.unique(negative_labels, return_counts=True)
    return np.isin(labels, classes[counts >= LEAST_NEGATIVES])


def _variance_of_means(numbers: np.ndarray) -> float:
    """The variance over examples of the means over all networks, of numbers that some networks have for an example.

    Args:
      numbers: NaN where a network has none, and at least one number for each example. shape=(networks, examples)
    """
    known = (~np.isnan(numbers)).sum(axis=0)
    means = np.nanmean(numbers, axis=0)
    further = (known - 1).sum()
    within = float(np.nansum(np.square(numbers - means)) / further) if further else 0.0
    of_examples = float(means.var(ddof=1)) - within * float((1 / known).mean())
    return max(0.0, of_examples) + within / len(numbers)


def _hanley_mcneil(area: float, n: int, m: int) -> float:
    """The variance of an area under the curve of n and m independent scores."""
    of_positives, of_negatives = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    return (area * (1 - area) + (n - 1) * of_positives + (m - 1) * of_negatives) / (n * m)


def _set_variance(influences: np.ndarray, places: np.ndarray, variance: float) -> None:
    """Gives the sum of squares at some places another value."""
    found = float(np.square(influences[places]).sum())
    influences[places] = (
        influences[places] * math.sqrt(variance / found) if found else math.sqrt(variance / len(places))
    )


def _placements(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the share of negatives below each positive, and of positives above each negative; a tie is a half."""
    ranks = stats.rankdata(np.concatenate([positives, negatives], axis=-1), axis=-1)
    n, m = positives.shape[-1], negatives.shape[-1]
    ahead = (ranks[..., :n] - stats.rankdata(positives, axis=-1)) / m
    return ahead, 1 - (ranks[..., n:] - stats.rankdata(negatives, axis=-1)) / n


def _threshold(negatives: np.ndarray, rate: float) -> float:
    """Returns the score that at most a share `rate` of the negatives exceeds, as in `tpr_at_fpr`."""
    allowed = int(rate * negatives.size + 1e-9)
    return float(np.sort(negatives, axis=None)[max(0, negatives.size - 1 - allowed)])


def _slope(attack: Attack, rate: float) -> float:
    """Returns the slope of the ROC curve at a rate of false positives, from half of it to twice."""
    low, high = (min(1.0, max(factor * rate, count / attack.negatives.size)) for factor, count in ((0.5, 0), (2, 1)))
    return (tpr_at_fpr(*attack[:2], high) - tpr_at_fpr(*attack[:2], low)) / max(high - low, 1e-12)


def examples_influence(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    unlearned: np.ndarray,
    retrained: np.ndarray,
    pairs: np.ndarray,
    examples: np.ndarray,
    *,
    quantile: float | None = None,
) -> Influence:
    """Finds the mean, or a quantile, of a number of each example that depends on two sets of networks.

    Args:
      statistic: A function of the scores of both sets that returns a number for each example, such as
        `ensemble_distances.klom`. It is called with all networks, and without each pair.
      unlearned: The scores of unlearned networks. shape=(networks, examples)
      retrained: The scores of as many retrained networks. Row p of both is left out together.
        shape=(networks, examples)
      pairs: The numbers that identify the rows in other influences. shape=(networks,)
      examples: The columns of the examples. shape=(examples,)
      quantile: The quantile, in (0, 1). By default the mean.

    Raises:
      InputError: There are fewer than three networks in a set.
    """
    numbers = statistic(unlearned, retrained)
    left_out = np.stack(
        [statistic(*(np.delete(side, p, 0) for side in (unlearned, retrained))) for p in range(len(pairs))]
    )
    value, density = float(numbers.mean()), 1.0
    if quantile is not None:
        # A quantile moves by the error of the share above it, times the distance of quantiles per share. With a network
        # less, numbers have another distribution, so they are compared with their own quantile.
        value = float(np.quantile(numbers, quantile))
        ordered, numbers = numbers, (numbers > value).astype(float)
        left_out = (left_out > np.quantile(left_out, quantile)).astype(float)
    total = len(examples)
    # Leaving out one of n numbers moves their mean by only 1 / (n - 1) of its deviation.
    share = _make(
        value,
        left_out.mean(axis=1),
        math.sqrt(total / max(1, total - 1)) * (numbers - numbers.mean()) / total,
        (left_out - left_out.mean(axis=1, keepdims=True)) / total,
        pairs,
        examples,
        np.full(total, examples.min()),
        np.full(total, (total - 1) / total),
        attacked=len(pairs),
        counted=total,
    )
    if quantile is None:
        return share
    error = min(2 * max(math.sqrt(share.variance()[0]), 1 / total), quantile, 1 - quantile)
    low, high = np.quantile(ordered, [quantile - error, quantile + error])
    density = float(high - low) / (2 * error)
    return share._replace(
        of_pairs=density * share.of_pairs, of_examples=density * share.of_examples, of_both=density * share.of_both
    )


def networks_influence(values: Sequence[float], pairs: Sequence[int]) -> Influence:
    """Finds the mean of numbers, one for each of some pairs of networks. A single number has no error."""
    array, number = np.asarray(values, np.float64), len(values)
    nothing = np.zeros(0, int)
    if number < 2:
        of_both = np.zeros((0, 0))
        return Influence(
            float(array.mean()), nothing, nothing, *(np.zeros(0),) * 2, of_both, 0.0, nothing, nothing, 1, 1, 0
        )
    influence = (array - array.mean()) / math.sqrt(number * (number - 1))
    return Influence(
        float(array.mean()),
        np.asarray(pairs),
        nothing,
        influence,
        np.zeros(0),
        np.zeros((number, 0)),
        number - 1,
        nothing,
        nothing,
        number,
        number,
        0,
    )


def average(influences: Iterable[Influence]) -> Influence:
    """Averages numbers of the same networks, such as those of several forget sets.

    The parts may share networks and examples: what a pair contributes to each of them is added up, and so for examples.

    Raises:
      InputError: There is no number to average.
    """
    parts = list(influences)
    if not parts:
        raise InputError("there is no number to average; give at least one")
    return _combine(parts, [1 / len(parts)] * len(parts))._replace(counted=sum(part.counted for part in parts))


def difference(first: Influence, second: Influence) -> Influence:
    """Subtracts the second number from the first. They may share networks and examples, as for `average`."""
    return _combine([first, second], [1.0, -1.0])


def _combine(parts: Sequence[Influence], weights: Sequence[float]) -> Influence:
    pairs, examples = (
        np.unique(np.concatenate([getattr(one, name) for one in parts])) for name in ("pairs", "examples")
    )
    of_pairs, of_examples = np.zeros(len(pairs)), np.zeros(len(examples))
    of_both = np.zeros((len(pairs), len(examples)))
    free, free_of_examples = np.zeros(len(pairs)), np.zeros(len(examples))
    kinds = np.full(len(examples), min(part.kinds.min(initial=_NEGATIVES) for part in parts))
    for part, weight in zip(parts, weights, strict=True):
        rows, columns = np.searchsorted(pairs, part.pairs), np.searchsorted(examples, part.examples)
        of_pairs[rows] += weight * part.of_pairs
        of_examples[columns] += weight * part.of_examples
        of_both[np.ix_(rows, columns)] += weight * part.of_both
        free[rows] = np.maximum(free[rows], part.freedom / max(1, len(part.pairs)))
        kinds[columns] = np.maximum(kinds[columns], part.kinds)
        free_of_examples[columns] = np.maximum(free_of_examples[columns], part.freedom_of_examples)
    return Influence(
        value=math.fsum(weight * part.value for part, weight in zip(parts, weights, strict=True)),
        pairs=pairs,
        examples=examples,
        of_pairs=of_pairs,
        of_examples=of_examples,
        of_both=of_both,
        freedom=float(free.sum()),
        kinds=kinds,
        freedom_of_examples=free_of_examples,
        networks=min(part.networks for part in parts),
        attacked=min(part.attacked for part in parts),
        counted=min(part.counted for part in parts),
        negatives=min(part.negatives for part in parts),
        least=math.fsum(weight**2 * part.least for part, weight in zip(parts, weights, strict=True)),
    )
