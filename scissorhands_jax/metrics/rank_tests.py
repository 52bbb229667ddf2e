"""A rank test of whether examples can be distinguished from held-out examples of their class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics.intervals import check_level

_ROUNDING = 1e-9


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

    If the examples were a random part of their classes, A would have the mean 1/2 and the variance
    sum_c (n_c / n)^2 (N_c + 1 - sum_t (t^3 - t) / (N_c (N_c - 1))) / (12 n_c m_c), with N_c = n_c + m_c, and t the
    sizes of the groups of equal scores. The range is that of the normal distribution around 1/2. Classes without
    held-out examples are left out, of n as well (`without_counterpart` counts their examples).

    Args:
      scores: The scores of the examples. shape=(N,)
      labels: The classes of the examples. shape=(N,)
      held: The scores of held-out examples. shape=(M,)
      held_labels: The classes of held-out examples. shape=(M,)
      level: The chance, in (0, 1), that A lies in the range if the examples cannot be distinguished.
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
    total = np.count_nonzero(np.isin(labels, shared))
    if total == 0:
        raise InputError(
            "no class has both examples and held-out examples to compare; give held-out examples of the same classes"
        )
    value = variance = 0.0
    for label in shared:
        own, other = scores[labels == label], held[held_labels == label]
        n, m = len(own), len(other)
        pooled = np.concatenate([own, other])
        # U is the sum of the examples' ranks, less what it would be if they had the lowest ranks.
        larger = stats.rankdata(pooled)[:n].sum() - n * (n + 1) / 2
        ties = np.unique(pooled, return_counts=True)[1].astype(np.float64)
        tied = (ties**3 - ties).sum() / ((n + m) * (n + m - 1))
        value += n / total * larger / (n * m)
        variance += (n / total) ** 2 * (n + m + 1 - tied) / (12 * n * m)
    # Where all scores are equal the range is 1/2 alone, and the sum of shares is 1/2 to rounding.
    reach = stats.norm.ppf((1 + level) / 2) * np.sqrt(max(variance, 0.0)) + _ROUNDING
    return Finding(name, float(value), float(0.5 - reach), float(0.5 + reach))
