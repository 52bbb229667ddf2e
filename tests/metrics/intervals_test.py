"""Intervals against SciPy and closed forms, and their coverage in simulations at the sizes that are used.

The tolerance of a simulation is four standard deviations of a binomial share, so that a right interval fails one in
fifteen thousand times; seeds are fixed.
"""

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import distances, intervals
from scissorhands_jax.metrics.intervals import Estimate


def covers(intervals_found, truth):
    """The share of intervals that hold the truth, and its Monte-Carlo error: four standard deviations at 95 %."""
    held = [found.low <= truth <= found.high for found in intervals_found]
    return np.mean(held), 4 * math.sqrt(0.95 * 0.05 / len(held))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


class TestMean:
    @pytest.mark.parametrize("count", [2, 3, 5, 10, 250])
    def test_it_is_students_interval_and_covers_as_it_says(self, count):
        draws = 5 + 2 * normal(2000, count)
        share, error = covers([intervals.mean_estimate(values) for values in draws], 5)
        assert share == pytest.approx(0.95, abs=error)
        found = intervals.mean_estimate(draws[0], level=0.9)
        low, high = stats.t.interval(0.9, count - 1, draws[0].mean(), stats.sem(draws[0]))
        assert (found.value, found.low, found.high) == pytest.approx((draws[0].mean(), low, high))
        assert (found.level, found.networks, found.examples) == (0.9, count, 0)

    def test_one_value_claims_no_spread_and_equal_ones_have_none(self):
        assert intervals.mean_estimate([4.0]) == Estimate(4.0, 4.0, 4.0, 0.95, 1, 0)
        assert intervals.mean_estimate([4.0, 4.0]) == Estimate(4.0, 4.0, 4.0, 0.95, 2, 0)
        assert intervals.mean_and_std([4.0]) == (4.0, None)

    def test_bounds_cut_it(self):
        found = intervals.mean_estimate([0.0, 1.0], bounds=(0, 1))
        assert (found.low, found.high) == (0, 1)

    @pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0]]])
    @pytest.mark.parametrize("function", [intervals.mean_estimate, intervals.mean_and_std])
    def test_what_has_no_mean_is_refused(self, function, values):
        with pytest.raises(InputError, match="finite numbers"):
            function(values)

    @pytest.mark.parametrize("level", [0.0, 1.0, 95])
    def test_a_level_is_a_share(self, level):
        for wrong in (
            lambda: intervals.mean_estimate([1.0, 2.0], level=level),
            lambda: intervals.share_estimate(1, 2, level=level),
            lambda: intervals.from_replicates(0.5, np.zeros(3), 5, 5, level),
        ):
            with pytest.raises(InputError, match="between 0 and 1"):
                wrong()


class TestShares:
    def test_it_is_that_of_clopper_and_pearson(self):
        found = intervals.share_estimate(3, 10)
        assert found.value == 0.3
        assert found.low == pytest.approx(stats.beta.ppf(0.025, 3, 8))
        assert found.high == pytest.approx(stats.beta.ppf(0.975, 4, 7))
        assert intervals.share_estimate(0, 5).low == 0
        assert intervals.share_estimate(5, 5).high == 1
        assert (found.networks, found.examples) == (1, 10)

    @pytest.mark.parametrize(("count", "total"), [(0, 0), (-1, 3), (4, 3)])
    def test_counts_that_make_no_share_are_refused(self, count, total):
        with pytest.raises(InputError, match="a share needs counts"):
            intervals.share_estimate(count, total)

    @pytest.mark.parametrize("total", [20, 60, 250])
    @pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
    def test_it_covers_at_least_as_it_says_whatever_the_share(self, total, share):
        """Exactly, not by simulation: the probabilities of all counts whose interval holds the share."""
        held = [intervals.share_estimate(count, total) for count in range(total + 1)]
        covered = sum(
            stats.binom.pmf(count, total, share) for count, found in enumerate(held) if found.low <= share <= found.high
        )
        assert covered >= 0.95

    def test_a_ratio_of_rare_shares_is_covered_at_least_as_it_says(self):
        draws = np.random.default_rng(0).poisson([[4.0], [8.0]], size=(2, 2000))
        ratio = functools.cache(lambda a, b: intervals.share_ratio(a, 1000, b, 2000))
        covered, error = covers([ratio(a, b) for a, b in draws.T.tolist() if a + b], 1.0)
        assert covered >= 0.95 - error

    def test_a_ratio_to_nothing_has_no_upper_end(self):
        found = intervals.share_ratio(3, 100, 0, 100)
        assert (found.value, found.high) == (math.inf, math.inf)
        assert found.low > 0


class TestRatioOfMeans:
    @pytest.mark.parametrize("paired", [True, False])
    def test_it_covers_about_as_it_says(self, paired):
        """Detections in 250 images; percentiles are a little narrow at this size."""
        generator = np.random.default_rng(0)
        found = []
        for seed in range(400):
            second = generator.poisson(0.6, 250)
            first = generator.binomial(second, 0.5) if paired else generator.poisson(0.3, 250)
            found.append(intervals.mean_ratio(first, second, paired=paired, num_resamples=500, seed=seed))
        covered, error = covers(found, 0.5)
        assert 0.94 - error <= covered <= 0.95 + error

    def test_equal_pairs_leave_no_doubt(self):
        counts = np.array([0, 2, 1])
        assert intervals.mean_ratio(counts, counts, paired=True)[:3] == (1, 1, 1)

    @pytest.mark.parametrize("paired", [True, False])
    def test_its_value_is_the_ratio_of_the_means_of_one_network_and_the_smaller_set(self, paired):
        first, second = np.array([0, 2, 1, 3]), np.array([1, 1, 2, 0] if paired else [1, 1, 2, 0, 0, 0])
        found = intervals.mean_ratio(first, second, paired=paired)
        assert found.value == pytest.approx(first.mean() / second.mean())
        assert (found.networks, found.examples, found.level) == (1, 4, 0.95)
        assert found.low < found.value < found.high


class TestTwoSamples:
    def test_it_covers_as_it_says(self):
        """For the difference of the means of 60 drawings and 90 digits."""

        def difference(first, second):
            return float(first.mean() - second.mean())

        draws = [(normal(60, seed=seed) + 1, 2 * normal(90, seed=10_000 + seed)) for seed in range(800)]
        found = [intervals.two_sample_bootstrap(difference, *pair, seed=seed) for seed, pair in enumerate(draws)]
        covered, error = covers(found, 1.0)
        assert covered == pytest.approx(0.945, abs=error), "100 resamples cost about half a point"

    def test_the_statistic_is_called_once_for_all_rows_and_once_for_each_resample(self):
        calls = []

        def watched(first, second):
            calls.append((len(first), len(second)))
            return distances.frechet_distance(first, second)

        first, second = normal(8, 2), normal(9, 2) + 3
        found = intervals.two_sample_bootstrap(watched, first, second, num_resamples=5, bounds=(0, math.inf))
        assert calls == [(8, 9)] * 6
        assert found.value == distances.frechet_distance(first, second)
        assert (found.networks, found.examples) == (1, 8)


class TestReplicates:
    def test_few_networks_widen_it_to_students_interval(self):
        """The standard deviation of all resampled means of n numbers is that of the numbers over n."""
        values = normal(5)
        resampled = np.array(list(itertools.product(values, repeat=5))).mean(axis=1)
        found = intervals.from_replicates(values.mean(), resampled, 5, 0)
        assert found == pytest.approx(intervals.mean_estimate(values))

    @pytest.mark.parametrize("networks", [0, 1])
    @pytest.mark.parametrize(("examples", "number"), [(0, 2), (1, 2), (2, 2), (3, 3), (50, 50)])
    def test_without_networks_examples_count_as_two_at_least(self, networks, examples, number):
        found = intervals.from_replicates(1.0, [0.5, 1.5], networks, examples)
        reach = stats.t.ppf(0.975, number - 1) * math.sqrt(number / (number - 1)) * 0.5
        assert found[:3] == pytest.approx((1.0, 1.0 - reach, 1.0 + reach))


class TestErrors:
    def test_it_is_students_interval_of_a_known_error(self):
        values = normal(7)
        mean = intervals.mean_estimate(values)
        found = intervals.from_error(values.mean(), stats.sem(values), 6, 7, 0)
        assert found[:3] == pytest.approx(mean[:3])
        assert (found.error, found.freedom) == (stats.sem(values), 6)
        certain = intervals.from_error(0.2, 0.0, math.inf, 7, 0)
        assert certain[:3] == (0.2, 0.2, 0.2)
        assert certain.freedom == 1e6, "JSON has no infinity"
        assert intervals.from_error(0.2, 0.1, 2e6, 7, 0).freedom == 1e6

    @pytest.mark.parametrize("level", [0.5, 0.99])
    def test_another_level_is_what_the_error_would_have_given(self, level):
        """Bounds that have cut an interval do not matter."""
        found = intervals.from_error(0.2, 0.1, 6, 7, 100, 0.95, (0, 1))._replace(negatives=5)
        expected = intervals.from_error(0.2, 0.1, 6, 7, 100, level)._replace(negatives=5)
        assert intervals.at_level(found, level) == expected

    @pytest.mark.parametrize(("freedom", "effect"), [(7, 0.0), (7, 2.0), (200, 3.0)])
    def test_power_is_the_share_of_intervals_above_the_number(self, freedom, effect):
        """Of a normal number with an estimated error; Student's distribution around the mean comes near."""
        generator = np.random.default_rng(0)
        errors = np.sqrt(generator.chisquare(freedom, 20_000) / freedom)
        above = effect + generator.normal(size=20_000) > stats.t.ppf(0.975, freedom) * errors
        found = intervals.power(intervals.from_error(0.0, 1.0, freedom, 8, 0), effect)
        assert found == pytest.approx(above.mean(), abs=0.06)
        assert intervals.power(intervals.from_error(0.0, 0.0, 1, 8, 0), 1.0) == 1


@pytest.mark.parametrize("counts", [(0, 0, 1, 5), (1, 5, 0, 0), (6, 5, 1, 5), (1, 5, 6, 5), (-1, 5, 2, 5)])
def test_a_ratio_of_what_are_no_shares_is_refused(counts):
    with pytest.raises(InputError, match="a share needs counts"):
        intervals.share_ratio(*counts)
