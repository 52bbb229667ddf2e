"""Tests over seeds against closed forms, and their chances in simulations at the numbers of seeds that are used.

The tolerance of a simulation is four standard deviations of a binomial share; seeds are fixed.
"""

import math

import numpy as np
import pytest
from scipy import stats

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import seed_tests

SIMULATIONS = 4000


def error(share):
    return 4 * math.sqrt(share * (1 - share) / SIMULATIONS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


class TestExcess:
    @pytest.mark.parametrize(("seeds", "networks"), [(1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (5, 2)])
    def test_it_covers_as_it_says_and_finds_what_it_says(self, seeds, networks):
        """Forget sets differ in difficulty from seed to seed, which must not matter."""
        drawn = 3 * normal(SIMULATIONS, seeds, 1 + networks) + 20 * normal(SIMULATIONS, seeds, 1, seed=1)
        found = [seed_tests.excess(one[:, 0] + 10, one[:, 1:], least=np.zeros(seeds)).estimate for one in drawn]
        covered = np.mean([one.low <= 10 <= one.high for one in found])
        assert covered == pytest.approx(0.95, abs=error(0.95))
        # The shift that is found in 80 % of cases at the true spread; what is printed has the spread that was found.
        spread = seed_tests.excess([0.0] * seeds, [[0.0] * networks] * seeds, least=[9.0] * seeds).detectable
        power = np.mean([one.low + spread - 10 > 0 for one in found])
        assert power == pytest.approx(0.8, abs=error(0.8))

    def test_with_two_networks_it_pools_their_variance(self):
        own, other = [90.0, 80.0], [[70.0, 74.0], [60.0, 61.0]]
        found = seed_tests.excess(own, other, least=[0.0, 0.0])
        deviation = math.sqrt((4**2 / 2 + 1**2 / 2) / 2 * 1.5 / 2)
        assert found.estimate.value == pytest.approx((18 + 19.5) / 2)
        assert found.estimate.high - found.estimate.value == pytest.approx(stats.t.ppf(0.975, 2) * deviation)

    def test_with_one_network_it_is_students_interval_of_the_differences(self):
        found = seed_tests.excess([90.0, 80.0, 85.0], [[70.0], [61.0], [66.0]], least=[0.0] * 3).estimate
        low, high = stats.t.interval(0.95, 2, np.mean([20, 19, 19]), stats.sem([20, 19, 19]))
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))

    def test_networks_that_agree_by_chance_prove_nothing(self):
        found = seed_tests.excess([71.0], [[70.0, 70.0]], least=[4.0]).estimate
        assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(4 * 1.5))
        assert found.low < 0

    def test_one_pair_has_no_spread(self):
        assert seed_tests.excess([90.0], [[70.0]], least=[1.0]) is None

    @pytest.mark.parametrize(
        ("own", "other", "least"), [([], [], []), ([1.0], [[1.0], [2.0]], [0.0]), ([1.0], [1.0], [0.0])]
    )
    def test_numbers_that_make_no_table_are_refused(self, own, other, least):
        with pytest.raises(InputError, match="give one original, one variance and some retrained networks"):
            seed_tests.excess(own, other, least=least)


def distances(numbers):
    """From the numbers of original, first and second retrained network of each seed. shape=(..., seeds, 3, fields)"""
    own, one, other = (numbers[..., place, :] for place in range(3))
    far = np.stack([np.abs(own - one).mean(-1), np.abs(own - other).mean(-1)], axis=-1)
    return far, np.abs(one - other).mean(-1)


def outcomes(numbers):
    far, near = distances(numbers)
    return [seed_tests.is_farther(*one) for one in zip(far, near, strict=True)]


class TestFarther:
    @pytest.mark.parametrize("seeds", [2, 3, 4, 5, 10])
    @pytest.mark.parametrize("fields", [1, 4])
    def test_networks_that_are_alike_are_told_apart_as_rarely_as_it_says(self, seeds, fields):
        """One field that varies is the worst case, as MIA is where nothing was memorised; the forget sets differ."""
        drawn = 17 * normal(SIMULATIONS, seeds, 3, fields) + 30 * normal(SIMULATIONS, seeds, 1, fields, seed=1)
        found = outcomes(drawn)
        share, stated = np.mean([one.holds for one in found]), found[0].false_alarms
        assert stated <= 0.05
        if seeds == 2:
            assert share < stated + error(stated)
            assert fields > 1 or share == pytest.approx(0.049, abs=error(0.049))
        else:
            assert share == pytest.approx(stated, abs=error(stated))

    @pytest.mark.parametrize("seeds", [2, 3, 5])
    def test_an_original_five_times_as_far_off_is_found_as_often_as_it_says(self, seeds):
        drawn = 17 * normal(SIMULATIONS, seeds, 3, 1)
        drawn[:, :, 0] += 17 * seed_tests.TIMES * 2 / math.sqrt(math.pi)  # times the mean distance of two such numbers
        found = outcomes(drawn)
        assert np.mean([one.holds for one in found]) == pytest.approx(found[0].power, abs=error(found[0].power))
        four = np.repeat(drawn, 4, axis=-1)  # of one direction all four numbers, as far off
        four[:, :, 1:] = 17 * normal(SIMULATIONS, seeds, 2, 4, seed=2)
        assert np.mean([one.holds for one in outcomes(four)]) > found[0].power - error(found[0].power)

    def test_it_is_binomial(self):
        found = seed_tests.is_farther([[2.0, 3.0]] * 4 + [[0.5, 3.0]], [1.0] * 5)
        assert (found.holds, found.odd, found.needed, found.ratio) == (True, 4, 4, None)
        assert found.false_alarms == pytest.approx(11 / 243)
        assert seed_tests.is_farther([[2.0, 3.0]] * 3 + [[0.5, 3.0]] * 2, [1.0] * 5).holds is False

    def test_with_two_seeds_the_distance_counts_too(self):
        assert seed_tests.is_farther([[3.5, 3.5]] * 2, [1.0, 1.0]).holds is True
        assert seed_tests.is_farther([[3.4, 3.4]] * 2, [1.0, 1.0]).holds is False
        assert seed_tests.is_farther([[9.0, 9.0], [0.9, 9.0]], [1.0, 1.0]).holds is False

    def test_a_tie_counts_against_the_original(self):
        assert seed_tests.is_farther([[0.0, 0.0]] * 5, [0.0] * 5).odd == 0

    def test_one_seed_decides_nothing(self):
        assert seed_tests.is_farther([[3.0, 3.0]], [1.0]) is None
        assert seed_tests.is_farther([], []) is None
        assert seed_tests.is_farther(np.zeros((0, 2)), []) is None

    @pytest.mark.parametrize("far", [np.ones((2, 3)), np.ones(6), np.ones((2, 2)), np.ones((3, 3)), []])
    def test_distances_that_are_no_table_of_seeds_are_refused(self, far):
        with pytest.raises(InputError, match=r"have shapes \(.*\) and \(3,\); give the former as \(n, 2\)"):
            seed_tests.is_farther(far, np.ones(3))


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_the_shift_that_is_found_is_that_of_a_normal_number(level):
    reach = stats.norm.ppf(0.5 + level / 2)
    shift = seed_tests.shift_found(0.5 - 0.02 * reach, 0.5 + 0.02 * reach, level)
    assert stats.norm.sf(0.5 + 0.02 * reach, 0.5 + shift, 0.02) == pytest.approx(0.8)
