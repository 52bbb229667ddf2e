"""A rank test of whether examples can be distinguished from held-out examples of their class."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import signal, stats

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics.intervals import check_level

MANY_EQUAL = 1 / 3
"""The normal distribution is not taken if a larger share than this of the scores of a class is equal, unless enough of
the examples have another score (`FEW_OTHERS`)."""
FEW_OTHERS = 100
"""If more of the examples, or of held-out ones if these are fewer, than this can be expected to have another score than
the most frequent one, the normal distribution is taken all the same."""
DRAWS = 9_999
"""How many random parts are drawn for the range of scores with many equal ones."""

_ROUNDING = 1e-9
_NEVER = 1e-15  # a chance that is left out
_GRID = 2**16


class Finding(NamedTuple):
    """A number about examples, with the range in which it lies if the network never saw them.

    Unlike the interval of an `Estimate`, the range does not depend on the value and need not contain it. With a few
    examples it is wider than the scale of the number; then nothing follows from the number.
    """

    name: str
    value: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether the number is what it would be if the network had never seen the examples."""
        return self.low <= self.value <= self.high


def without_counterpart(labels: np.ndarray, held_labels: np.ndarray) -> int:
    """Counts the examples that `rank_test` leaves out: those of classes without a held-out example.

    Nothing that the test finds is about them, so whoever shows its outcome must say how many they are.

    Args:
      labels: The classes of the examples. shape=(N,)
      held_labels: The classes of held-out examples. shape=(M,)
    """
    return int(np.count_nonzero(~np.isin(labels, held_labels)))


def rank_test(
    scores: np.ndarray,
    labels: np.ndarray,
    held: np.ndarray,
    held_labels: np.ndarray,
    *,
    level: float,
    name: str = "",
) -> Finding:
    """Compares the scores of examples with those of held-out examples of their class: a stratified Mann-Whitney test.

    The value is the chance that an example has a larger score than a held-out example of its class, where a tie counts
    half. With n_c examples and m_c held-out examples of class c, and U_c the number of pairs in which the score of the
    example is larger, it is

        A = sum_c n_c / n * U_c / (n_c m_c).

    The range is where A lies if the examples are a random part of their classes, given the scores of both. Then A has
    the mean 1/2 and the variance sum_c (n_c / n)^2 (N_c + 1 - sum_t (t^3 - t) / (N_c (N_c - 1))) / (12 n_c m_c), with
    N_c = n_c + m_c, and t the sizes of the groups of equal scores. Where few scores are equal the range is that of the
    normal distribution, whose tails are longer than A's. Otherwise A may be skew, and its own distribution is taken: of
    scores with two values, such as right and wrong, exactly, from the hypergeometric distribution in each class; of
    others, if more than a third of a class are equal and the rest are few (`MANY_EQUAL`), from `DRAWS` random parts,
    always the same ones.
    Then A lies beyond each end with a chance of at most half of what the level leaves. Classes without held-out
    examples are left out, of n as well (`without_counterpart` counts their examples).

    Args:
      scores: The scores of the examples. shape=(N,)
      labels: The classes of the examples. shape=(N,)
      held: The scores of held-out examples. shape=(M,)
      held_labels: The classes of held-out examples. shape=(M,)
      level: The chance, in (0, 1), that A lies in the range if the examples cannot be distinguished; of scores with
        two values, or with many equal ones, it is at least this.
      name: The name of the finding.

    Raises:
      InputError: No class has both kinds of examples, a score is NaN, or the level is not between 0 and 1.

    References:
      van Elteren, On the combination of independent two-sample tests of Wilcoxon, 1960.
    """
    check_level(level)
    scores, labels, held, held_labels = map(np.asarray, (scores, labels, held, held_labels))
    if np.isnan(scores).any() or np.isnan(held).any():
        raise InputError("a score is NaN, of which no rank is known; the network has perhaps diverged")
    shared = np.intersect1d(labels, held_labels)
    total = int(np.count_nonzero(np.isin(labels, shared)))
    if total == 0:
        raise InputError(
            "no class has both examples and held-out examples to compare; give held-out examples of the same classes"
        )
    strata = [_Stratum.of(scores[labels == label], held[held_labels == label], total) for label in shared]
    value = math.fsum(one.value for one in strata)
    if all(len(one.sizes) <= 2 for one in strata):
        low, high = _two_valued_range(strata, (1 - level) / 2)
    elif any(one.is_uneven for one in strata) and math.fsum(one.others() for one in strata) < FEW_OTHERS:
        low, high = _drawn_range(strata, (1 - level) / 2)
    else:
        # Where all scores are equal the range is 1/2 alone, and the sum of shares is 1/2 to rounding.
        high = 0.5 + stats.norm.ppf((1 + level) / 2) * math.sqrt(math.fsum(one.variance() for one in strata))
        low = 1 - high
    return Finding(name, value, float(low - _ROUNDING), float(high + _ROUNDING))


class _Stratum(NamedTuple):
    """The examples of one class. Its part of A is the sum over groups of equal scores of `places` times the examples.

    If the examples are a random part of all, their numbers in the groups have a hypergeometric distribution.
    """

    own: np.ndarray  # shape=(G,): how many examples have each score, in ascending order
    sizes: np.ndarray  # shape=(G,): how many examples and held-out examples have it
    places: np.ndarray  # shape=(G,): what each example with it adds to A
    offset: float

    @classmethod
    def of(cls, own: np.ndarray, other: np.ndarray, total: int) -> _Stratum:
        """Counts the scores of a class, which is a part of `total` examples."""
        _, groups, sizes = np.unique(np.concatenate([own, other]), return_inverse=True, return_counts=True)
        ranks = np.cumsum(sizes) - (sizes - 1) / 2
        n, m = len(own), len(other)
        # U is the sum of the examples' ranks, less what it would be if they had the lowest ranks.
        return cls(
            np.bincount(groups[:n], minlength=len(sizes)), sizes, ranks / (total * m), -n * (n + 1) / 2 / (total * m)
        )

    @property
    def value(self) -> float:
        return float(self.own @ self.places) + self.offset

    @property
    def is_uneven(self) -> bool:
        """Whether many of the scores are equal."""
        return bool(self.sizes.max() > MANY_EQUAL * self.sizes.sum())

    def others(self) -> float:
        """How many of the examples, or of held-out ones if fewer, have not the most frequent score, on average."""
        n, size = int(self.own.sum()), int(self.sizes.sum())
        return min(n, size - n) * (1 - int(self.sizes.max()) / size)

    def mean(self) -> float:
        """The mean of `value` over random parts."""
        return float(self.own.sum() * (self.sizes @ self.places) / self.sizes.sum()) + self.offset

    def variance(self) -> float:
        """The variance of `value` over random parts."""
        n, size = self.own.sum(), self.sizes.sum()
        centred = self.places - self.sizes @ self.places / size
        return float(n * (size - n) / (size * (size - 1)) * (self.sizes @ centred**2))


def _two_valued_range(strata: Sequence[_Stratum], tail: float) -> tuple[float, float]:
    """Returns the ends that A passes, each, with a chance of at most `tail`, if no class has more than two scores."""
    parts: dict[float, list[np.ndarray]] = {}
    least = 0.0
    for one in strata:
        n, size, larger = int(one.own.sum()), int(one.sizes.sum()), int(one.sizes[-1])
        step = float(one.places[-1] - one.places[0])
        least += one.offset + n * float(one.places[0])
        if not step:
            continue
        counts = np.arange(max(0, n + larger - size), min(n, larger) + 1)
        chances = stats.hypergeom.pmf(counts, size, larger, n)
        kept = chances > _NEVER
        least += step * int(counts[kept][0])
        # Classes that differ by the same from one example to the next are added up exactly.
        parts.setdefault(round(step, 15), []).append(chances[kept])
    sums = [(step, functools.reduce(np.convolve, chances)) for step, chances in parts.items()]
    most = least + math.fsum(step * (len(chances) - 1) for step, chances in sums)
    turned = [(step, chances[::-1]) for step, chances in sums]
    return most - _rarely_exceeded(turned, tail), least + _rarely_exceeded(sums, tail)


def _rarely_exceeded(parts: Sequence[tuple[float, np.ndarray]], tail: float) -> float:
    """Returns the least number that a sum exceeds with a chance of at most `tail`.

    Args:
      parts: The independent summands, each with its step and the chances of 0, 1, 2 and so on of these. If steps
        differ, multiples are rounded up to one of `_GRID` numbers.
      tail: The chance.
    """
    if not parts:
        return 0.0
    unit = parts[0][0]
    if len(parts) > 1:
        unit = math.fsum(step * (len(chances) - 1) for step, chances in parts) / _GRID
    spread = [
        np.bincount(np.ceil(step / unit * np.arange(len(chances)) - _ROUNDING).astype(int), chances)
        for step, chances in parts
    ]
    total = functools.reduce(signal.fftconvolve, spread)
    from_here = np.cumsum(total[::-1])[::-1]
    return unit * int(np.argmax(from_here - total <= tail))


def _drawn_range(strata: Sequence[_Stratum], tail: float) -> tuple[float, float]:
    """Returns the ends that A passes, each, with a chance of at most `tail`, by random parts of uneven classes."""
    generator = np.random.default_rng(0)
    found = np.zeros(DRAWS)
    for one in strata:
        if one.is_uneven:
            drawn = generator.multivariate_hypergeometric(one.sizes, int(one.own.sum()), size=DRAWS)
            found += drawn @ one.places + one.offset
        else:
            found += generator.normal(one.mean(), math.sqrt(one.variance()), DRAWS)
    found.sort()
    # The examples themselves are one more draw, so that the chance is at most the tail however few draws there are.
    beyond = int(tail * (DRAWS + 1))
    return (float(found[beyond - 1]), float(found[-beyond])) if beyond else (0.0, 1.0)
