"""A test of forgetting whose null is what retrained networks differ by among themselves.

L[i] is the log truth ratio of a network on question i of the forget set. A network that forgot is to be like one more
retrained network, so the differences of the unlearned network u from the mean of m retrained networks r are compared
with the differences among these. Questions are paired, since every network answers all of them; what counts as an
independent observation is a network and not a question, since the answers of one network are not independent.

Three numbers are compared, each of which says something else:

    shift      mean_i (L_u[i] - mean_r L_r[i]): are right answers more or less probable than wrong ones, all in all?
    share      the same along the direction d = L_o - mean_r L_r in which the original o differs from retrained
               networks, as a share of it: 0 is like retrained networks, 1 is like the original
    distance   log mean_i (L_u[i] - mean_r L_r[i])^2: do answers to single questions differ, in whatever direction?

For shift and share, x_u - mean x_r over the spread s of the x_r times sqrt(1 + 1/m) is Student's t with m - 1 degrees
of freedom if networks are alike and x is normal, which a mean over questions tends to be. The direction d contains the
noise of the retrained networks' mean, with which L_u - mean L_r correlates, so the expected product of the two,
sum_i s_i^2 / m with s_i^2 the variance between retrained networks at question i, is taken away. For the distance of a
retrained network, the mean that it is part of makes its differences smaller by the factor (m - 1) / (m + 1), which is
put right; its t is one-sided. The log of a mean square is not quite normal, least of all where whole networks differ or
tails are heavy, so its range holds fewer retrained networks than it aims at (`DISTANCE_HOLDS`).

The p-value of the whole is three times the smallest of three (two without the original).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from scissorhands_jax.errors import InputError

LEAST_RETRAINED = 3
"""Fewer retrained networks do not show what they differ by."""
DISTANCE_HOLDS = (87, 96)
"""How many in 100 retrained networks lie in the range of the distance, whose aim is 95, in simulations of three to ten
networks: the fewest and the most (`experiments.forgetting_tests`). Of the other two numbers it is 93 to 97."""


class Difference(NamedTuple):
    """A number of the unlearned network, compared with that of retrained networks."""

    value: float
    low: float
    high: float
    """The range in which 95 % of retrained networks are to lie: two-sided, and from minus infinity for the distance,
    where it is a few less (`DISTANCE_HOLDS`)."""
    p: float


class CalibratedTest(NamedTuple):
    """Whether an unlearned network is told from retrained networks on the forget set."""

    p: float
    """Of the null that the unlearned network is one more retrained network."""
    shift: Difference
    """In nats. Above 0, wrong answers are more probable than in retrained networks; below 0, right ones."""
    share: Difference | None
    """The share of the original's difference that remains; None if there is no original."""
    distance: Difference
    """Log of the mean squared difference, in units of that of a retrained network: 0 is expected."""
    retrained: int
    questions: int


def calibrated_test(
    unlearned: np.ndarray, retrained: Sequence[np.ndarray] | np.ndarray, original: np.ndarray | None = None
) -> CalibratedTest:
    """Tests whether an unlearned network is like one more retrained network.

    Args:
      unlearned: Log truth ratios of the unlearned network on the forget set. shape=(N,)
      retrained: Those of networks that were retrained without the forget set, from seeds of their own, on the same
        questions in the same order. shape=(m, N), m at least `LEAST_RETRAINED`
      original: Those of the network before it forgot. None leaves `share` out. shape=(N,)

    Raises:
      InputError: There are too few retrained networks or questions, shapes differ, a number is not finite, or the
        retrained networks or the original do not differ from one another at all.
    """
    own, other = np.asarray(unlearned, np.float64), np.asarray(retrained, np.float64)
    before = None if original is None else np.asarray(original, np.float64)
    _check(own, other, before)
    networks, questions = other.shape
    centre = other.mean(axis=0)
    scale, freedom = np.sqrt(1 + 1 / networks), networks - 1
    shift = _student(own.mean() - centre.mean(), other.mean(axis=1).std(ddof=1) * scale, freedom)
    share = None
    if before is not None:
        direction = before - centre
        noise = other.var(axis=0, ddof=1).sum() / networks
        length = float(direction @ direction)
        spread = ((other - centre) @ direction).std(ddof=1) / length * scale
        share = _student(((own - centre) @ direction - noise) / length, spread, freedom)
    # Differences from a mean that a network is part of have the variance (1 - 1/m) s^2, and otherwise (1 + 1/m) s^2.
    far = np.log(((own - centre) ** 2).mean() * networks / (networks + 1))
    near = np.log(((other - centre) ** 2).mean(axis=1) * networks / (networks - 1))
    distance = _one_sided(far - near.mean(), near.std(ddof=1) * scale, freedom)
    found = [test.p for test in (shift, share, distance) if test is not None]
    return CalibratedTest(min(1.0, len(found) * min(found)), shift, share, distance, networks, questions)


def _student(value: float, error: float, freedom: int) -> Difference:
    reach = float(stats.t.ppf(0.975, freedom) * error)
    return Difference(float(value), -reach, reach, float(2 * stats.t.sf(abs(value) / error, freedom)))


def _one_sided(value: float, error: float, freedom: int) -> Difference:
    reach = float(stats.t.ppf(0.95, freedom) * error)
    return Difference(float(value), -np.inf, reach, float(stats.t.sf(value / error, freedom)))


def _check(own: np.ndarray, other: np.ndarray, before: np.ndarray | None) -> None:
    if other.ndim != 2 or len(other) < LEAST_RETRAINED:
        raise InputError(
            f"the test has {len(other)} retrained networks; give at least {LEAST_RETRAINED}, each from its own seed"
        )
    shapes = {own.shape, other.shape[1:]} | ({before.shape} if before is not None else set())
    if len(shapes) > 1 or other.shape[1] < 2:
        shown = ", ".join(map(str, sorted(shapes)))
        raise InputError(
            f"log truth ratios have the shapes {shown}; give those of all networks on the same two or more questions"
        )
    if not all(np.isfinite(values).all() for values in (own, other, *([before] if before is not None else []))):
        raise InputError("a log truth ratio is not finite; leave out the questions whose answers have no probability")
    for first in range(len(other)):
        for second in range(first):
            if np.array_equal(other[first], other[second]):
                raise InputError(
                    f"retrained networks {second + 1} and {first + 1} answer alike to the last digit; give networks "
                    "from seeds of their own"
                )
    if any(np.array_equal(own, values) for values in other):
        raise InputError("the unlearned network is one of the retrained networks; give others to compare it with")
    if before is not None and np.array_equal(before, other.mean(axis=0)):
        raise InputError("the original answers like the retrained networks; give the network that has to forget")
