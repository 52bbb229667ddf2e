"""Intervals that say how sure a number is, with one function for each kind of number.

| number | interval |
| --- | --- |
| the mean of a few numbers, such as one per seed | `mean_estimate`: Student's |
| a share of examples | `share_estimate`: Clopper and Pearson's |
| the ratio of two shares | `share_ratio`: exact, given the sum of the counts |
| the ratio of two means of counts | `mean_ratio`: percentiles of a bootstrap over images |
| any number from two sets of examples | `two_sample_bootstrap` |
| any number from networks on the same examples | in `two_way`, over networks and examples |

`tests/metrics/intervals_test.py` simulates the coverage of each for the sizes that occur here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from scissorhands_jax.errors import InputError

UNBOUNDED = (-math.inf, math.inf)


class Estimate(NamedTuple):
    """A number with the interval that says how sure it is."""

    value: float
    low: float
    high: float
    level: float  # the coverage that the interval aims at, in (0, 1)
    networks: int  # how many networks were resampled; 1 if only examples were
    examples: int  # how many examples were resampled; 0 if only networks were
    negatives: int = 0  # how many scores a rate of false positives was counted among; 0 if there is no such rate
    error: float = 0.0  # the standard error of the value where the interval was made from one, otherwise 0
    freedom: float = 0.0  # the degrees of freedom of the standard error, or 0


def check_level(level: float) -> None:
    """Checks the level of an interval.

    Raises:
      InputError: The level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, got {level}")


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise InputError(f"{values!r} are not one or more finite numbers; measure them again")
    return array


def _student(level: float, count: int) -> float:
    """Returns t such that Student's distribution with `count - 1` degrees of freedom has `level` in [-t, t]."""
    return float(stats.t.ppf(0.5 + level / 2, count - 1))


def _within(
    value: float, reach: float, level: float, networks: int, examples: int, bounds: tuple[float, float]
) -> Estimate:
    low, high = max(bounds[0], value - reach), min(bounds[1], value + reach)
    return Estimate(float(value), float(low), float(high), level, networks, examples)


def mean_and_std(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Computes the mean and the sample standard deviation (n - 1), which is `None` for a single value.

    Raises:
      InputError: There is no value, or one that is not finite.

    >>> mean_and_std([1.0, 3.0])
    (2.0, 1.4142135623730951)
    >>> mean_and_std([5.0])
    (5.0, None)
    """
    array = _finite(values)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None


def mean_estimate(
    values: Sequence[float] | np.ndarray, *, level: float = 0.95, bounds: tuple[float, float] = UNBOUNDED
) -> Estimate:
    """Estimates the mean of independent numbers, such as one per seed or network, with Student's interval.

    The interval is exact for normal numbers, however few there are. A single number has no interval: `low` and `high`
    are then its value.

    Args:
      values: The numbers. shape=(n,)
      level: The coverage that the interval aims at, in (0, 1).
      bounds: The smallest and largest value that the mean can have; the interval is cut there.

    Returns:
      An estimate with n `networks`.

    Raises:
      InputError: There is no value, one is not finite, or the level is not between 0 and 1.

    References:
      Student, The probable error of a mean, Biometrika, 1908.

    >>> found = mean_estimate([90.0, 92.0, 94.0])
    >>> found.value, round(found.low, 2), round(found.high, 2)
    (92.0, 87.03, 96.97)
    """
    check_level(level)
    array = _finite(values)
    count = array.size
    reach = _student(level, count) * array.std(ddof=1) / math.sqrt(count) if count > 1 else 0.0
    return _within(float(array.mean()), reach, level, count, 0, bounds)


def differ(values: Sequence[float] | np.ndarray) -> bool:
    """Whether numbers differ by more than rounding. Of equal ones, nothing shows how far their mean may be off.

    >>> differ([0.3, 0.1 + 0.2]), differ([1.0, 2.0])
    (False, True)
    """
    return not math.isclose(min(values), max(values), abs_tol=1e-9)


def _check_share(count: int, total: int) -> None:
    if not 0 <= count <= total or total < 1:
        raise InputError(f"a share needs counts with 0 <= count <= total and total > 0, got {count} of {total}")


def share_estimate(count: int, total: int, *, level: float = 0.95) -> Estimate:
    """Estimates a share of independent examples, in [0, 1], with the exact interval, which covers at least `level`.

    Args:
      count: How many of the examples have a property.
      total: How many examples there are, at least one.
      level: The coverage that the interval aims at, in (0, 1).

    Returns:
      An estimate of `total` examples.

    Raises:
      InputError: The level is not between 0 and 1, or the counts do not make a share.

    References:
      Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial,
      Biometrika, 1934.
    """
    check_level(level)
    _check_share(count, total)
    interval = stats.binomtest(count, total).proportion_ci(level, "exact")
    return Estimate(count / total, float(interval.low), float(interval.high), level, 1, total)


def share_ratio(count: int, total: int, other_count: int, other_total: int, *, level: float = 0.95) -> Estimate:
    """Estimates the ratio of two small independent shares, first to second, from 0 to infinity.

    If both counts are Poisson numbers, the first is binomial given the sum of the two, and the exact interval of its
    share of the sum gives the interval of the ratio.

    Args:
      count: How many of the first examples have a property.
      total: How many first examples there are.
      other_count: The same as `count`, for the second examples; one of the two must be positive.
      other_total: The same as `total`, for the second examples.
      level: The coverage that the interval aims at, in (0, 1).

    Returns:
      An estimate whose `examples` are those of the smaller side.

    References:
      Przyborowski and Wilenski, Homogeneity of results in testing samples from Poisson series, Biometrika, 1940.
    """
    _check_share(count, total)
    _check_share(other_count, other_total)
    share = share_estimate(count, count + other_count, level=level)
    per_example = other_total / total

    def ratio(part: float) -> float:
        return per_example * part / (1 - part) if part < 1 else math.inf

    return Estimate(ratio(share.value), ratio(share.low), ratio(share.high), level, 1, min(total, other_total))


def mean_ratio(
    counts: np.ndarray,
    other_counts: np.ndarray,
    *,
    paired: bool,
    level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int | np.random.Generator = 0,
) -> Estimate:
    """Estimates the ratio of the means of two sets of counts, first to second, by percentiles of a bootstrap.

    Resamples in which both means are 0 are left out. A bootstrap does not know of events that did not occur: if few
    examples have a positive count, the interval is too narrow (see `share_ratio`).

    Args:
      counts: A whole number for each example. shape=(n,)
      other_counts: The same for the second set, with a positive sum; in the same order if they are paired. shape=(m,)
      paired: Whether the examples of the two sets are drawn together.
      level: The coverage that the interval aims at, in (0, 1).
      num_resamples: How many bootstrap samples are drawn.
      seed: The seed of the resampling, or its generator.

    Returns:
      An estimate whose ends may be infinite.

    References:
      Efron and Tibshirani, An introduction to the bootstrap, 1993, chapter 13.
    """
    check_level(level)
    generator = np.random.default_rng(seed)

    def resampled_means(*columns: np.ndarray) -> np.ndarray:
        """Returns the means of resampled examples by column.

        Resampling examples with replacement draws the numbers of distinct rows from a multinomial distribution, which
        is quicker because there are few distinct counts.
        """
        distinct, numbers = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
        total = numbers.sum()
        return generator.multinomial(total, numbers / total, size=num_resamples) @ distinct / total

    if paired:
        first, second = resampled_means(counts, other_counts).T
    else:
        first, second = resampled_means(counts)[:, 0], resampled_means(other_counts)[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = first / second
    ratios = ratios[~np.isnan(ratios)]
    # Quantiles are values of the sample, because interpolation between a number and infinity has no meaning.
    low = float(np.quantile(ratios, (1 - level) / 2, method="lower"))
    high = float(np.quantile(ratios, (1 + level) / 2, method="higher"))
    value = float(counts.mean() / other_counts.mean())
    return Estimate(value, low, high, level, 1, min(len(counts), len(other_counts)))


def from_replicates(
    value: float,
    replicates: Sequence[float] | np.ndarray,
    networks: int,
    examples: int,
    level: float = 0.95,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """Makes an interval from bootstrap replicates: the value plus and minus t times their standard deviation.

    With n networks (or n examples where only these were resampled), t has n - 1 degrees of freedom and the deviation is
    multiplied by sqrt(n / (n - 1)), because a bootstrap of few networks is too narrow by exactly this factor. For the
    mean of n numbers the result is Student's interval. Percentiles would be wrong for statistics that resampling
    shifts, such as those of histograms.

    Args:
      value: The statistic of all data.
      replicates: The statistic of resampled data. shape=(samples,)
      networks: How many networks were resampled; 1 if only examples were.
      examples: How many examples were resampled.
      level: The coverage that the interval aims at, in (0, 1).
      bounds: The smallest and largest value that the statistic can have; the interval is cut there.

    Raises:
      InputError: The level is not between 0 and 1.

    References:
      Efron and Tibshirani, An introduction to the bootstrap, 1993, sections 12.4 and 12.5.
    """
    check_level(level)
    number = _resampled(networks, examples)
    reach = _student(level, number) * math.sqrt(number / (number - 1)) * float(np.std(replicates))
    return _within(value, reach, level, networks, examples, bounds)


def _resampled(networks: int, examples: int) -> int:
    """Returns the number of resampled networks, which are fewer than examples and so limit what is known."""
    return networks if networks > 1 else max(examples, 2)


def from_error(
    value: float,
    error: float,
    freedom: float,
    networks: int,
    examples: int,
    level: float = 0.95,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """Makes Student's interval from a standard error with known degrees of freedom.

    Args:
      value: The number.
      error: Its standard error.
      freedom: The degrees of freedom of the error; they need not be whole.
      networks: How many networks the number is from; 1 if the error is about examples alone.
      examples: How many examples it is from.
      level: The coverage that the interval aims at, in (0, 1).
      bounds: The smallest and largest value that the number can have; the interval is cut there.

    Raises:
      InputError: The level is not between 0 and 1.
    """
    check_level(level)
    freedom = min(freedom, 1e6)  # which is as good as infinity, and can be written as JSON
    reach = float(stats.t.ppf(0.5 + level / 2, freedom)) * error if error else 0.0
    return _within(value, reach, level, networks, examples, bounds)._replace(error=float(error), freedom=float(freedom))


def at_level(found: Estimate, level: float) -> Estimate:
    """Returns the estimate that `from_error` would have made at another level, without bounds.

    Args:
      found: An estimate of `from_error`.
      level: The new coverage, in (0, 1).
    """
    again = from_error(found.value, found.error, found.freedom, found.networks, found.examples, level)
    return again._replace(negatives=found.negatives)


def power(found: Estimate, effect: float) -> float:
    """Returns in which share of repetitions the interval of an estimate would lie above a number that is `effect` less.

    The distribution of the value is Student's around its mean, with the standard error that was found.

    Args:
      found: An estimate of `from_error`.
      effect: How far the mean of the value lies above the number, at least 0.

    >>> round(power(from_error(0.0, 1.0, 1e6, 1, 0), 1.959964 + 0.841621), 3)
    0.8
    """
    if not found.error:
        return float(effect > 0)
    t = stats.t.ppf(0.5 + found.level / 2, found.freedom)
    return float(stats.t.sf(t - effect / found.error, found.freedom))


def two_sample_bootstrap(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    first: np.ndarray,
    second: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 100,
    seed: int | np.random.Generator = 0,
    bounds: tuple[float, float] = UNBOUNDED,
) -> Estimate:
    """Estimates a statistic of two independent sets of examples by a bootstrap over the rows of each.

    The interval does not account for a bias that the statistic has in finite samples.

    Args:
      statistic: A function of two arrays that returns a number, such as `distances.frechet_distance`. It is called once
        with all rows, and then once for each resample.
      first: One row for each example. shape=(n, ...)
      second: One row for each example. shape=(m, ...)
      level: The coverage that the interval aims at, in (0, 1).
      num_resamples: How many bootstrap samples are drawn.
      seed: The seed of the resampling, or its generator.
      bounds: The smallest and largest value that the statistic can have; the interval is cut there.
    """
    generator = np.random.default_rng(seed)
    value = statistic(first, second)
    replicates = []
    for _ in range(num_resamples):
        drawn = [rows[generator.integers(len(rows), size=len(rows))] for rows in (first, second)]
        replicates.append(statistic(drawn[0], drawn[1]))
    return from_replicates(value, replicates, 1, min(len(first), len(second)), level, bounds)
