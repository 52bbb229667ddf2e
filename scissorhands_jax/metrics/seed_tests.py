"""Tests of the original against retrained networks over a few seeds, where each seed has two retrained networks.

A table trains two networks without the forget set for each seed. If the original were a retrained network too, the
three networks of a seed would be alike, and the chances below follow from that alone.
`tests/metrics/seed_tests_test.py` simulates them at the numbers of seeds that occur here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics.intervals import Estimate, check_level

POWER = 0.8
"""The power at which `Excess.detectable` and the gates of tables state what they would find."""
LEVEL = 0.05
"""The largest chance that `is_farther` says yes of three networks that are alike."""
TIMES = 5.0
"""The ratio of distances for which `Farther.power` is stated."""

_TWO_SEEDS_RATIO = 3.5
"""With two seeds the original must also be this many times as far off; see `is_farther`."""
_ODD_AT_TIMES = 0.9788
_TWO_SEEDS_POWER = 0.779
"""The chances, at `TIMES`, that the original is the odd one out of a seed, and that it is found with two seeds, if a
single normal number makes up all distances; simulated with 400,000 seeds."""


class Excess(NamedTuple):
    """How much larger a number is in the original than in retrained networks."""

    estimate: Estimate
    """The mean difference over seeds, with a two-sided interval."""
    detectable: float
    """The true difference at which the interval lies above 0 in `POWER` of all cases, at the spread that was found."""
    is_least: bool
    """Whether networks differed by less than the smallest variance that is believed, which then gave the interval."""


def excess(
    original: Sequence[float], retrained: Sequence[Sequence[float]], *, least: Sequence[float], level: float = 0.95
) -> Excess | None:
    """Estimates how much larger a number is in the original than in retrained networks of the same seeds.

    With k retrained networks in each of n seeds, k at least 2, the variance s^2 between networks of one seed is pooled
    over the seeds, and the mean difference has the standard error sqrt(s^2 (1 + 1/k) / n) and n (k - 1) degrees of
    freedom. With one retrained network in each seed, the differences themselves give Student's interval with n - 1
    degrees of freedom. Both are exact for normal numbers.

    Two networks can agree by chance, most easily if the number is a share of few examples. So s^2 is never taken to be
    smaller than the mean of `least`, which can only widen the interval.

    Args:
      original: The number of the original for each seed. shape=(n,)
      retrained: The numbers of the retrained networks for each seed. shape=(n, k)
      least: For each seed the smallest variance between networks that is believed, such as p (1 - p) / N for a share p
        of N examples. shape=(n,)
      level: The coverage that the interval aims at, in (0, 1).

    Returns:
      None if there is one seed and one retrained network, whose difference has no spread.

    Raises:
      InputError: The numbers do not make a table, or the level is not between 0 and 1.

    References:
      Student, The probable error of a mean, Biometrika, 1908.
    """
    check_level(level)
    own, other = np.asarray(original, np.float64), np.asarray(retrained, np.float64)
    if other.ndim != 2 or own.shape != other.shape[:1] or np.shape(least) != own.shape or not other.size:
        raise InputError(
            f"the numbers of originals, retrained networks and least variances have shapes {own.shape}, {other.shape} "
            f"and {np.shape(least)}; give one original, one variance and some retrained networks for each seed"
        )
    seeds, networks = other.shape
    differences = own - other.mean(axis=1)
    smallest = float(np.mean(least)) * (1 + 1 / networks)
    if networks > 1:
        freedom = seeds * (networks - 1)
        variance = float(other.var(axis=1, ddof=1).mean()) * (1 + 1 / networks)
    elif seeds > 1:
        freedom, variance = seeds - 1, float(differences.var(ddof=1))
    else:
        return None
    error = math.sqrt(max(variance, smallest) / seeds)
    value, needed = float(differences.mean()), float(stats.t.ppf(0.5 + level / 2, freedom))
    estimate = Estimate(value, value - needed * error, value + needed * error, level, seeds, 0)
    return Excess(estimate, error * _noncentrality(needed, freedom), variance <= smallest)


@functools.cache
def _noncentrality(needed: float, freedom: int) -> float:
    """The shift, in standard errors, with which Student's t exceeds `needed` in `POWER` of all cases."""
    return float(
        optimize.brentq(lambda shift: stats.nct.sf(needed, freedom, shift) - POWER, needed / 2, 5 * needed + 10)
    )


class Farther(NamedTuple):
    """Whether the original is farther from two retrained networks than these are from each other."""

    holds: bool
    odd: int
    """The number of seeds in which it is farther from both."""
    seeds: int
    needed: int
    """The number of seeds in which it would have to be."""
    ratio: float | None
    """How many times as far it must be with two seeds; None with more."""
    false_alarms: float
    """The chance of `holds` if the three networks of each seed are alike; with two seeds, if distances are those of a
    single normal number."""
    power: float
    """The chance of `holds`, at least, if the original is `TIMES` times as far off."""


def is_farther(to_original: Sequence[Sequence[float]], between: Sequence[float]) -> Farther | None:
    """Decides whether the original is farther from two retrained networks than these are from each other.

    If the three networks of a seed are alike, the chance that the two retrained ones are the closest pair is one in
    three, whatever the distance and its distribution, so that the number of such seeds is binomial. At least so many
    are needed that the chance is at most `LEVEL`. Two seeds alone have the chance 1/9, so there the mean distance of
    the original must also be at least 3.5 times that between retrained networks: together that has a chance of 4.9 %
    if a single normal number makes up the distances, less if several do, and never more than 1/9.

    Args:
      to_original: The distances of the original to both retrained networks, for each seed. shape=(n, 2)
      between: The distance of the two retrained networks, for each seed. A tie counts against the original. shape=(n,)

    Returns:
      None with fewer than two seeds.

    Raises:
      InputError: The distances are not two and one for each seed.
    """
    far, near = np.asarray(to_original, np.float64), np.asarray(between, np.float64)
    if near.ndim != 1 or far.shape not in ((len(near), 2), (0,) * (not len(near))):
        raise InputError(
            f"the distances to the original and between retrained networks have shapes {far.shape} and {near.shape}; "
            "give the former as (n, 2) and the latter as (n,), a row for each seed"
        )
    seeds = len(near)
    if seeds < 2:
        return None
    odd = int(np.count_nonzero(near < far.min(axis=1)))
    if seeds == 2:
        holds = odd == 2 and far.mean() >= _TWO_SEEDS_RATIO * near.mean()
        return Farther(bool(holds), odd, 2, 2, _TWO_SEEDS_RATIO, LEVEL, _TWO_SEEDS_POWER)
    needed, false_alarms, power = _rule(seeds)
    return Farther(odd >= needed, odd, seeds, needed, None, false_alarms, power)


@functools.cache
def _rule(seeds: int) -> tuple[int, float, float]:
    """How many of at least three seeds are needed, and the chances of that by chance alone and at `TIMES`."""
    needed = next(count for count in range(seeds + 1) if stats.binom.sf(count - 1, seeds, 1 / 3) <= LEVEL)
    false_alarms, power = (float(stats.binom.sf(needed - 1, seeds, chance)) for chance in (1 / 3, _ODD_AT_TIMES))
    return needed, false_alarms, power


def shift_found(low: float, high: float, level: float) -> float:
    """The distance from the middle of a range at which a normal number leaves it in `POWER` of all cases.

    Args:
      low: The lower end of the range in which the number lies with the chance `level` if there is nothing to find.
      high: The upper end.
      level: That chance, in (0, 1).
    """
    check_level(level)
    return (high - low) / 2 * (1 + float(stats.norm.ppf(POWER) / stats.norm.ppf(0.5 + level / 2)))
