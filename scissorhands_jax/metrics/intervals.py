"""How sure a number is: intervals of means, shares and rank statistics, each with the source of its formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from scissorhands_jax.errors import InputError

Array = np.ndarray | jax.Array


class Estimate(NamedTuple):
    """A number and how sure it is."""

    value: float
    low: float
    high: float
    level: float  # coverage that the interval aims at
    networks: int  # resampled; 1 where only examples were
    examples: int
    negatives: int = 0  # scores that a rate of false positives is counted among; 0 where there is no such rate


def _pair(unlearned: np.ndarray, retrained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside, outside = np.asarray(unlearned, np.float64), np.asarray(retrained, np.float64)
    if inside.ndim != 2 or outside.ndim != 2 or inside.shape[1] != outside.shape[1] or not inside.size * outside.size:
        raise InputError(
            f"expected scores of shape (networks, examples) on the same examples, got {inside.shape} and "
            f"{outside.shape}"
        )
    if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise InputError("scores hold NaN or infinity; a network has diverged, try a smaller learning rate")
    return inside, outside


def estimate(
    value: float,
    replicates: np.ndarray,
    networks: int,
    examples: int,
    level: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """An interval from bootstrap replicates: the value plus and minus t times their standard deviation.

    With n networks, t is that of n - 1 degrees of freedom and the deviation is multiplied by sqrt(n / (n - 1)): a
    bootstrap of few networks is too narrow by just that. For the mean of n numbers this is Student's interval.
    Percentiles would be off where resampling shifts the statistic, as it does for histograms.

    Args:
      value: from all data.
      replicates: of resampled data. shape=(samples,)
      networks: that were resampled; 1 where only examples were.
      examples: that were resampled.
      level: coverage, in (0, 1).
      bounds: of the number.
    """
    if not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, got {level}")
    number = networks if networks > 1 else max(examples, 2)
    reach = stats.t.ppf(0.5 + level / 2, number - 1) * math.sqrt(number / (number - 1)) * float(np.std(replicates))
    low, high = max(bounds[0], value - reach), min(bounds[1], value + reach)
    return Estimate(float(value), float(low), float(high), level, networks, examples)


def at_level(found: Estimate, level: float) -> Estimate:
    """What `estimate` would have given at another level.

    Args:
      found: an estimate, whose wider side counts where bounds have clipped the other.
      level: coverage, in (0, 1).
    """
    number = found.networks if found.networks > 1 else max(found.examples, 2)
    quantiles = (float(stats.t.ppf(0.5 + one / 2, number - 1)) for one in (level, found.level))
    new, old = quantiles
    reach = max(found.high - found.value, found.value - found.low) * new / old
    return found._replace(low=found.value - reach, high=found.value + reach, level=level)


def compared(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    unlearned: np.ndarray,
    retrained: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 100,
    seed: int = 0,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """A statistic of two sets of scores, with an interval by bootstrap over the networks of each and over examples.

    Args:
      statistic: `(unlearned, retrained) -> number`, such as `forgetting_score`.
      unlearned, retrained: scores. shape=(networks, examples)
      level, num_resamples, seed, bounds: as in `estimate`.
    """
    inside, outside = _pair(unlearned, retrained)
    generator = np.random.default_rng(seed)
    replicates = []
    for _ in range(num_resamples):
        examples = generator.integers(inside.shape[1], size=inside.shape[1])
        first, second = (generator.integers(len(values), size=len(values)) for values in (inside, outside))
        replicates.append(statistic(inside[first][:, examples], outside[second][:, examples]))
    networks = min(len(inside), len(outside))
    value = statistic(inside, outside)
    return estimate(value, np.asarray(replicates), networks, inside.shape[1], level, bounds)


def mean_estimate(values: Sequence[float] | np.ndarray, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of one number per network, with an interval by bootstrap over networks.

    A single network has no interval: low and high are its value.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise InputError(f"expected a list of one or more finite numbers, got {values!r}")
    if array.size == 1 or np.ptp(array) == 0:
        value = float(array[0])
        return Estimate(value, value, value, level, array.size, 0)
    drawn = stats.bootstrap((array,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(seed))
    return estimate(float(array.mean()), drawn.bootstrap_distribution, array.size, 0, level)


def average(estimates: Sequence[Estimate], bounds: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    """The mean of estimates from the same networks, such as those of several forget sets, from their intervals.

    Forget sets share the networks, and what is peculiar to these shows in every set. So the errors may all point the
    same way, and the mean reaches as far as the parts do on average: it is no surer than they are.

    Args:
      estimates: of one level.
      bounds: of the number.

    Returns:
      With the networks and negatives of the part that has fewest, and the examples of all together.

    Raises:
      InputError: there are none, or their levels differ.
    """
    if not estimates or len({one.level for one in estimates}) > 1:
        raise InputError(f"an average needs estimates of one level, got {len(estimates)}")
    count = len(estimates)
    # Clipped ends are too near, so the wider side counts.
    reach = math.fsum(max(one.high - one.value, one.value - one.low) for one in estimates) / count
    value = math.fsum(one.value for one in estimates) / count
    networks, examples = min(one.networks for one in estimates), sum(one.examples for one in estimates)
    low, high = max(bounds[0], value - reach), min(bounds[1], value + reach)
    negatives = min(one.negatives for one in estimates)
    return Estimate(value, low, high, estimates[0].level, networks, examples, negatives)


class Summary(NamedTuple):
    """Several seeds in five numbers; what one seed cannot tell is `None`."""

    mean: float
    std: float | None  # sample standard deviation (n - 1); None for one value
    n: int
    low: float | None  # bootstrap interval of the mean; None for one value
    high: float | None


def mean_and_std(values: Sequence[float] | Array) -> tuple[float, float | None]:
    """The mean and the sample standard deviation (n - 1), which is `None` for a single value.

    Raises:
      InputError: no values, or one that is not finite.

    >>> mean_and_std([1.0, 3.0])
    (2.0, 1.4142135623730951)
    >>> mean_and_std([5.0])
    (5.0, None)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise InputError(f"expected a list of one or more finite numbers, got {values!r}")
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None


def summarize(
    values: Sequence[float] | Array,
    *,
    level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int | np.random.Generator = 0,
) -> Summary:
    """Mean, standard deviation and a percentile bootstrap interval of the mean, over seeds.

    The interval of a handful of seeds is too narrow (with three it can never leave their range): read it as a lower
    bound on the uncertainty.

    Args:
      values: one number per seed; shape=(n,).
      level: coverage the interval aims at, between 0 and 1.
      num_resamples: bootstrap samples.
      seed: seeds the resampling, so that a summary is reproducible; or a generator.

    Raises:
      InputError: no values, a value that is not finite, or a level outside (0, 1).

    >>> summarize([90.0, 92.0, 94.0])
    Summary(mean=92.0, std=2.0, n=3, low=90.0, high=94.0)
    """
    if not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, got {level}")
    if num_resamples < 1:
        raise InputError(f"num_resamples must be at least 1, got {num_resamples}")
    mean, std = mean_and_std(values)
    array = np.asarray(values, dtype=np.float64)
    if array.size == 1:
        return Summary(mean, std, 1, None, None)
    draws = np.random.default_rng(seed).integers(array.size, size=(num_resamples, array.size))
    low, high = np.quantile(array[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Summary(mean, std, array.size, float(low), float(high))


class Finding(NamedTuple):
    """A number about examples, and the interval in which it lies if the network never saw them."""

    name: str
    value: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether the number is what it would be had the network never seen the examples."""
        return self.low <= self.value <= self.high


def likeness(
    scores: np.ndarray, labels: np.ndarray, held: np.ndarray, held_labels: np.ndarray, *, level: float
) -> Finding:
    """Compares examples with held-out ones of the same class in one score: a stratified Mann-Whitney test.

    The value is the chance that an example has a larger score than a held-out example of its class, ties counting half:
    with n_c examples and m_c held-out ones of class c and U_c the pairs in which the example's is larger,

        A = sum_c n_c / n * U_c / (n_c m_c).

    Were the examples a random part of the class, A would have the mean 1/2 and the variance
    sum_c (n_c / n)^2 (N_c + 1 - sum_t (t^3 - t) / (N_c (N_c - 1))) / (12 n_c m_c), with N_c = n_c + m_c and t the
    numbers of equal scores; the interval is the normal one around 1/2. Classes without held-out examples are left out.

    Args:
      scores: of the examples. shape=(N,)
      labels: their classes. shape=(N,)
      held, held_labels: the same of held-out examples. shape=(M,)
      level: chance that A lies in the interval if nothing tells the examples apart.

    Raises:
      InputError: no class has both, or the level is not between 0 and 1.

    References:
      van Elteren, On the combination of independent two-sample tests of Wilcoxon, 1960.
    """
    if not 0 < level < 1:
        raise InputError(f"the level must lie between 0 and 1, got {level}")
    shared = np.intersect1d(labels, held_labels)
    total = np.count_nonzero(np.isin(labels, shared))
    if total == 0:
        raise InputError("there is no held-out example of any class in the forget set, so there is nothing to compare")
    value = variance = 0.0
    for label in shared:
        own, other = scores[labels == label], held[held_labels == label]
        n, m = len(own), len(other)
        pooled = np.concatenate([own, other])
        larger = stats.rankdata(pooled)[:n].sum() - n * (n + 1) / 2
        ties = np.unique(pooled, return_counts=True)[1].astype(np.float64)
        tied = (ties**3 - ties).sum() / ((n + m) * (n + m - 1))
        value += n / total * larger / (n * m)
        variance += (n / total) ** 2 * (n + m + 1 - tied) / (12 * n * m)
    reach = stats.norm.ppf((1 + level) / 2) * np.sqrt(max(variance, 0.0))
    return Finding("", float(value), float(0.5 - reach), float(0.5 + reach))


def interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The Clopper-Pearson interval of a share, in percent."""
    low, high = stats.binomtest(count, total).proportion_ci(level, "exact")
    return 100 * float(low), 100 * float(high)
