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


def beyond(count, own, held, draw, *, level=0.975, classes=1):
    """In which shares of simulations the value lies below and above its range, though nothing distinguishes examples.

    Args:
      count: The number of simulations.
      own, held: How many examples and held-out examples each class has.
      draw: A function that draws scores, of a generator and a number.
    """
    generator = np.random.default_rng(0)
    which = np.repeat(np.arange(classes), own), np.repeat(np.arange(classes), held)
    found = []
    for _ in range(count):
        scores = draw(generator, len(which[0])), draw(generator, len(which[1]))
        found.append(rank_test(scores[0], which[0], scores[1], which[1], level=level))
    return np.mean([one.value < one.low for one in found]), np.mean([one.value > one.high for one in found])


# How many classes, examples and held-out examples of each, and the accuracy of the network.
ACCURATE = [
    (1, 20, 101, 0.99),
    (2, 10, 60, 0.99),
    (2, 20, 101, 0.995),
    (2, 20, 1000, 0.999),
    (2, 400, 20, 0.99),
    (2, 200, 30, 0.99),
    (2, 100, 100, 0.9),
]


class TestTwoValues:
    """Whether the network is right is such a score. Of an accurate network hardly any example is wrong."""

    @pytest.mark.parametrize(("classes", "own", "held", "accuracy"), ACCURATE)
    def test_the_range_has_its_level_at_each_end(self, classes, own, held, accuracy):
        count, aimed = 1500, 0.0125
        found = beyond(count, own, held, lambda drawn, size: drawn.random(size) < accuracy, classes=classes)
        assert max(found) <= aimed + 4 * np.sqrt(aimed * (1 - aimed) / count)

    def test_the_range_is_no_wider_than_it_must_be(self):
        """By enumeration of all parts of two classes, whose steps differ: one value nearer, and too many lie beyond."""
        own, held = np.array([[1, 3], [2, 1]]), np.array([[2, 9], [1, 6]])  # wrong and right ones of two classes
        values, classes = np.tile([0.0, 1.0], 2), np.repeat([0, 1], 2)
        scores, labels, others, other_labels = (
            np.repeat(part, counts.ravel()) for counts in (own, held) for part in (values, classes)
        )
        found = rank_test(scores, labels, others, other_labels, level=0.8)
        values, chances = [], []
        n, m, right = own.sum(axis=1), held.sum(axis=1), own[:, 1] + held[:, 1]
        for first in range(n[0] + 1):
            for second in range(n[1] + 1):
                counts = np.array([first, second])
                chance = np.prod(stats.hypergeom.pmf(counts, n + m, right, n))
                if chance:
                    values.append(0.5 + (n / n.sum() * (counts / n - (right - counts) / m)).sum() / 2)
                    chances.append(chance)
        values, chances = np.array(values), np.array(chances)
        assert chances.sum() == pytest.approx(1)
        assert np.abs(values - found.value).min() < 1e-9
        # Of classes with other steps, values are rounded outward by a little.
        inside = values[(values >= found.low) & (values <= found.high)]
        assert found.high - inside.max() < 1e-4
        assert inside.min() - found.low < 1e-4
        for side, end in ((1, inside.max()), (-1, inside.min())):
            assert chances[side * values > side * end + 1e-9].sum() <= 0.1
            assert chances[side * values > side * end - 1e-9].sum() > 0.1

    def test_one_class_has_the_ends_of_the_hypergeometric_distribution(self):
        own, held = np.repeat([0.0, 1.0], [2, 18]), np.repeat([0.0, 1.0], [3, 98])
        found = rank_test(own, np.zeros(20, int), held, np.zeros(101, int), level=0.9)
        chances = stats.hypergeom(121, 116, 20)
        least, most = int(chances.ppf(0.05)), int(chances.ppf(0.95))
        for count, end in ((least, found.low), (most, found.high)):
            assert end == pytest.approx(0.5 + (count / 20 - (116 - count) / 101) / 2, abs=1e-8)
        assert found.value == pytest.approx(0.5 + (18 / 20 - 98 / 101) / 2)

    def test_many_classes_of_other_sizes_take_no_time(self):
        generator = np.random.default_rng(0)
        own, held = generator.integers(0, 100, 1000), np.concatenate([np.arange(100), generator.integers(0, 100, 4900)])
        right = generator.random(1000) < 0.95, generator.random(5000) < 0.95
        exact = rank_test(right[0], own, right[1], held, level=0.95)
        assert exact.holds
        # Of that many the distribution is about normal.
        reach = np.sqrt(0.05 * 0.95 * (1 / 1000 + 1 / 5000)) / 2 * 1.96
        assert (exact.high - exact.low) / 2 == pytest.approx(reach, rel=0.1)


class TestManyEqual:
    """Scores that cannot become larger: those of which an accurate network is sure are all equal."""

    @pytest.mark.parametrize(("own", "held"), [(400, 20), (20, 101)])
    def test_the_range_has_its_level_at_each_end(self, own, held):
        """Given the scores, of which 12 are lower than all others and distinct: by 20,000 random parts."""
        generator, count, aimed = np.random.default_rng(1), 20_000, 0.0125
        scores = np.minimum(np.arange(own + held), 12.0)
        zeros = np.zeros(own, int), np.zeros(held, int)
        mixed = generator.permutation(scores)
        found = rank_test(mixed[:own], zeros[0], mixed[own:], zeros[1], level=1 - 2 * aimed)
        ranks = stats.rankdata(scores)
        sums = np.array([generator.permutation(ranks)[:own].sum() for _ in range(count)])
        values = (sums - own * (own + 1) / 2) / (own * held)
        beyond_ends = np.mean(values < found.low), np.mean(values > found.high)
        assert max(beyond_ends) <= aimed + 4 * np.sqrt(aimed * (1 - aimed) / count)
        assert max(beyond_ends) > aimed / 2, "and it is no wider than it must be"

    def test_the_range_is_the_same_each_time(self):
        scores = np.concatenate([np.full(30, 9.0), np.arange(6.0)])
        arguments = scores, np.zeros(36, int), np.append(scores, 7.5), np.zeros(37, int)
        assert rank_test(*arguments, level=0.99) == rank_test(*arguments, level=0.99)
        assert rank_test(*arguments, level=0.99999)[2:] == pytest.approx((0, 1), abs=1e-8), "too rare for the draws"

    def test_a_class_of_distinct_scores_is_added_to_one_of_equal_scores(self):
        """Two classes alike, of which one has distinct scores, have the range of normal numbers with their variance."""
        generator = np.random.default_rng(0)
        labels = np.repeat([0, 1], 40)
        own, held = generator.normal(size=80), generator.normal(size=80)
        own[40:], held[40:] = (np.where(np.arange(40) < 16, generator.normal(size=40), 1.0) for _ in range(2))
        found = rank_test(own, labels, held, labels, level=0.95)
        apart = [
            rank_test(own[part], labels[part], held[part], labels[part], level=0.95)
            for part in (labels < 1, labels > 0)
        ]
        reach = np.sqrt(sum((one.high - one.low) ** 2 for one in apart)) / 2
        assert found.high - found.low == pytest.approx(reach, rel=0.05)


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
