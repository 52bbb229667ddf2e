"""Distances of networks against brute force in NumPy."""

import math

import numpy as np
import pytest

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import ensemble_distances


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("wrong", [np.zeros((0, 3)), np.zeros((2, 4)), np.zeros(3), np.full((2, 3), np.nan)])
def test_scores_that_do_not_fit_are_refused(wrong):
    with pytest.raises(InputError, match="scores"):
        ensemble_distances.check_scores(wrong, np.zeros((2, 3)))


class TestKlom:
    def test_it_is_the_divergence_of_two_histograms(self):
        unlearned, retrained = normal(50, 7) + 1, normal(60, 7, seed=1)
        expected = []
        for own, other in zip(unlearned.T, retrained.T, strict=True):
            edges = np.linspace(min(own.min(), other.min()), max(own.max(), other.max()), 21)
            p, q = np.histogram(own, edges)[0] / 50, np.histogram(other, edges)[0] / 60
            expected.append(_kl(p, q))
        np.testing.assert_allclose(ensemble_distances.klom(unlearned, retrained), expected, rtol=1e-9)

    def test_equal_networks_are_at_zero_and_disjoint_ones_at_the_floor(self):
        same = normal(10, 4)
        np.testing.assert_allclose(ensemble_distances.klom(same, same), 0, atol=1e-12)
        np.testing.assert_allclose(ensemble_distances.klom(same + 50, same, bins=2), -math.log(1e-5), rtol=1e-9)

    def test_a_constant_margin_has_a_bin(self):
        assert ensemble_distances.klom(np.ones((3, 1)), np.ones((4, 1))).tolist() == [0.0]


def _kl(p, q):
    return sum(a * math.log(a / max(b, 1e-5)) for a, b in zip(p, q, strict=True) if a > 0)


class TestForgettingScore:
    def test_epsilons_are_the_best_over_thresholds_and_directions(self):
        unlearned, retrained, delta = normal(9, 30) + 0.7, normal(9, 30, seed=1), 0.01
        expected = []
        for own, other in zip(unlearned.T, retrained.T, strict=True):
            values = np.sort(np.concatenate([own, other]))
            best = 0.0
            for threshold in (values[1:] + values[:-1]) / 2:
                for sign in (1, -1):
                    fpr = np.mean(sign * other > sign * threshold)
                    fnr = np.mean(sign * own <= sign * threshold)
                    if fpr == fnr == 0:
                        best = np.inf
                    elif fpr > 0 and fnr > 0:
                        for a, b in ((fpr, fnr), (fnr, fpr)):
                            if 1 - delta - a > 0:
                                best = max(best, math.log(1 - delta - a) - math.log(b))
            expected.append(best)
        np.testing.assert_allclose(ensemble_distances.example_epsilons(unlearned, retrained), expected, rtol=1e-9)
        assert len(set(np.digitize(expected, 0.5 * np.arange(13)))) > 2, "the examples must differ"

    def test_the_best_and_the_worst_score(self):
        same = normal(20, 5)
        assert ensemble_distances.example_scores(same, same).tolist() == [1.0] * 5
        assert set(ensemble_distances.example_scores(same + 100, same)) == {2.0 / 2**13}
        assert set(ensemble_distances.example_scores(same - 100, same)) == {2.0 / 2**13}
