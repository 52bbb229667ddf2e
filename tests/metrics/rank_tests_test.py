"""The comparison with held-out examples against SciPy, and its level by chance."""

import numpy as np
import pytest
from scipy import stats

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics.rank_tests import rank_test, without_counterpart


def labels(count, classes=3):
    return np.arange(count) % classes


def test_one_class_is_the_mann_whitney_test_with_ties():
    generator = np.random.default_rng(0)
    own, held = generator.integers(0, 5, 30).astype(float), generator.integers(0, 6, 41).astype(float)
    zeros = np.zeros(30, int), np.zeros(41, int)
    found = rank_test(own, zeros[0], held, zeros[1], level=0.95)
    expected = stats.mannwhitneyu(own, held, method="asymptotic", use_continuity=False)
    assert found.value == pytest.approx(expected.statistic / (30 * 41))
    # The p-value that SciPy gives is the level at which the value lies on the edge of the interval.
    edge = rank_test(own, zeros[0], held, zeros[1], level=1 - expected.pvalue)
    assert found.value == pytest.approx(edge.high if found.value > 0.5 else edge.low)


def test_classes_are_compared_each_with_its_own():
    """One class is easy, the other hard: together the forget set, which is mostly easy, would seem well known."""
    generator = np.random.default_rng(1)
    own_labels, held_labels = np.repeat([0, 1], [90, 10]), np.repeat([0, 1], [50, 150])
    own, held = (generator.normal(size=len(which)) + 5 * (which == 0) for which in (own_labels, held_labels))
    assert rank_test(own, own_labels, held, held_labels, level=0.95).holds
    assert not rank_test(own, 0 * own_labels, held, 0 * held_labels, level=0.95).holds


def test_the_interval_has_its_level():
    generator = np.random.default_rng(2)
    which = labels(60), labels(90)
    holds = [
        rank_test(generator.normal(size=60), which[0], generator.normal(size=90), which[1], level=0.9).holds
        for _ in range(1000)
    ]
    assert 0.87 < np.mean(holds) < 0.93


@pytest.mark.parametrize(
    ("level", "held", "message"),
    [(1.0, [0], "level must be .*, got 1.0"), (0.95, [1], "no class has both examples and held-out examples")],
)
def test_what_cannot_be_compared_is_refused(level, held, message):
    with pytest.raises(InputError, match=message):
        rank_test(np.ones(1), np.zeros(1, int), np.ones(1), np.asarray(held), level=level)


def test_equal_scores_are_never_told_apart_whatever_the_classes():
    """The shares of classes sum to 1/2 only to rounding, and the range has no width."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        own, other = (generator.integers(0, 10, count) for count in (60, 350))
        own = own[np.isin(own, other)]
        found = rank_test(np.ones(len(own)), own, np.ones(len(other)), other, level=0.99)
        assert found.holds
        assert found.high - found.low < 1e-8


def test_lists_will_do_and_nan_is_refused():
    assert rank_test([1.0, 2.0], [0, 0], [0.0, 1.5], [0, 0], level=0.99).value == 0.75
    for scores, held in (([np.nan, 1.0], [0.0]), ([1.0, 1.0], [np.nan])):
        with pytest.raises(InputError, match="a score is NaN, of which no rank is known"):
            rank_test(scores, [0, 0], held, [0], level=0.99)


def test_examples_that_are_left_out_are_counted():
    own, held = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 3])
    assert without_counterpart(own, held) == 4
    assert without_counterpart(own, own) == 0
    scores = np.array([0.0, 3.0, 9.0, 9.0, 9.0, 9.0])
    found = rank_test(scores, own, np.array([1.0, 2.0, 8.0]), held, level=0.95)
    assert found == rank_test(scores[:2], own[:2], np.array([1.0, 2.0]), held[:2], level=0.95)
