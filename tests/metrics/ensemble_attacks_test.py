"""Evidence: closed forms for Gaussians, scikit-learn where it has the statistic, planted leaks and none."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import ensemble_attacks
from scissorhands_jax.metrics.ensemble_attacks import Attack


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def auc(positives, negatives):
    positives, negatives = np.ravel(positives), np.ravel(negatives)
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    return roc_auc_score(labels, np.concatenate([positives, negatives]))


class TestRates:
    @pytest.mark.parametrize("separation", [0.0, 1.0, 2.5])
    def test_gaussians_have_the_known_rates(self, separation):
        positives, negatives = normal(400_000, seed=3) + separation, normal(400_000, seed=4)
        for rate in ensemble_attacks.FALSE_POSITIVE_RATES:
            known = stats.norm.cdf(separation - stats.norm.ppf(1 - rate))
            assert ensemble_attacks.tpr_at_fpr(positives, negatives, rate) == pytest.approx(known, rel=0.1)

    def test_no_more_negatives_than_allowed_exceed_the_threshold(self):
        negatives = np.arange(100.0)
        positives = np.array([98.5, 97.5, 99.5])
        assert ensemble_attacks.tpr_at_fpr(positives, negatives, 0.01) == pytest.approx(2 / 3)
        assert ensemble_attacks.tpr_at_fpr(positives, negatives, 0.001) == pytest.approx(1 / 3)
        assert ensemble_attacks.tpr_at_fpr(positives, negatives, 1.0) == 1.0

    def test_nothing_to_compare_is_refused(self):
        with pytest.raises(InputError, match="at least one positive"):
            ensemble_attacks.tpr_at_fpr(np.zeros(0), np.zeros(3), 0.1)
        with pytest.raises(InputError, match="NaN"):
            ensemble_attacks.tpr_at_fpr(np.array([np.nan]), np.zeros(3), 0.1)


class TestMargins:
    def test_it_is_the_logit_of_the_confidence(self):
        logits, labels = 3 * normal(4, 20, 5), np.arange(20) % 5
        p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        chosen = p[:, np.arange(20), labels]
        np.testing.assert_allclose(ensemble_attacks.margins(logits, labels), np.log(chosen / (1 - chosen)), rtol=1e-10)

    def test_sure_networks_stay_finite(self):
        assert ensemble_attacks.margins(np.array([[1000.0, 0.0, 0.0]]), np.array([0]))[0] == pytest.approx(
            1000 - math.log(2)
        )

    @pytest.mark.parametrize(
        ("logits", "labels", "message"),
        [
            (np.zeros((3, 2)), np.zeros(2, int), "logits have shape .*; expected"),
            (np.zeros((3, 2)), np.array([0, 1, 2]), "0..1"),
            (np.full((3, 2), np.nan), np.zeros(3, int), "diverged"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, logits, labels, message):
        with pytest.raises(InputError, match=message):
            ensemble_attacks.margins(logits, labels)


class TestLogRatio:
    def test_it_is_the_ratio_of_the_two_densities(self):
        references, member = normal(12, 6) * 2 + 1, np.random.default_rng(1).permuted(np.eye(12, 6) > 2, axis=0)
        member[:6] = True
        scores = normal(6, seed=5)
        inside, outside = references[:6], references[6:]
        expected = stats.norm.logpdf(scores, inside.mean(0), inside.std(0, ddof=1)) - stats.norm.logpdf(
            scores, outside.mean(0), outside.std(0, ddof=1)
        )
        np.testing.assert_allclose(
            ensemble_attacks.log_ratio(scores, references, member, pooled=False), expected, rtol=1e-9
        )
        widths = [np.sqrt(side.var(0, ddof=1).mean()) for side in (inside, outside)]
        expected = stats.norm.logpdf(scores, inside.mean(0), widths[0]) - stats.norm.logpdf(
            scores, outside.mean(0), widths[1]
        )
        np.testing.assert_allclose(ensemble_attacks.log_ratio(scores, references, member), expected, rtol=1e-9)

    def test_one_reference_on_a_side_is_too_few(self):
        member = np.array([[True], [False], [False]])
        with pytest.raises(InputError, match="1 reference networks were trained on example 0 and the attack needs two"):
            ensemble_attacks.log_ratio(np.zeros(1), np.zeros((3, 1)), member)


class TestULira:
    def test_a_planted_leak_has_the_known_auc(self):
        """Unit Gaussians `leak` apart: the likelihood ratio is monotone in the score."""
        leak, shape = 1.0, (24, 400)
        centre = 5 * normal(1, 400, seed=7)
        unlearned, retrained = centre + normal(*shape, seed=8) + leak, centre + normal(*shape, seed=9)
        (attack,) = ensemble_attacks.u_lira(unlearned, retrained)
        found = ensemble_attacks.attack_estimates(attack)["auc"]
        known = stats.norm.cdf(leak / 2**0.5)
        assert found.low < known < found.high
        assert found.value == pytest.approx(known, abs=0.03)

    def test_an_attack_without_references_would_miss_it(self):
        """What the population attack sees is how hard examples are."""
        centre = 5 * normal(1, 400, seed=7)
        unlearned, retrained = (centre + normal(24, 400, seed=seed) + leak for seed, leak in ((8, 1.0), (9, 0.0)))
        (attack,) = ensemble_attacks.u_lira(unlearned, retrained)
        assert auc(unlearned, retrained) < 0.58 < 0.7 < ensemble_attacks.attack_estimates(attack)["auc"].value

    def test_wronger_than_a_stranger_is_caught_as_well(self):
        unlearned, retrained = normal(10, 300, seed=1) - 2, normal(10, 300, seed=2)
        (attack,) = ensemble_attacks.u_lira(unlearned, retrained)
        assert ensemble_attacks.attack_estimates(attack)["auc"].low > 0.7

    @pytest.mark.parametrize("networks", [3, 4, 8])
    def test_without_a_leak_it_is_null_however_few_networks_there_are(self, networks):
        (attack,) = ensemble_attacks.u_lira(normal(networks, 20_000, seed=1), normal(networks, 20_000, seed=2))
        rows = [auc(*pair) for pair in zip(*attack, strict=True)]
        assert np.mean(rows) == pytest.approx(0.5, abs=0.01)

    def test_the_interval_holds_a_half_where_networks_differ_as_a_whole(self):
        """A shift that all examples of a network share, another for each: the null of real ensembles."""
        held = 0
        for seed in range(40):
            both = normal(16, 100, seed=seed) + normal(16, 1, seed=100 + seed)
            (attack,) = ensemble_attacks.u_lira(both[:8], both[8:])
            found = ensemble_attacks.attack_estimates(attack, cross_validated=True, num_resamples=200)["auc"]
            held += found.low <= 0.5 <= found.high
        assert held >= 35

    def test_a_general_change_shows_on_other_examples_too(self):
        forget, others = normal(10, 200, seed=1), normal(10, 200, seed=2)
        shifted, untouched = normal(10, 200, seed=3) + 1.5, normal(10, 200, seed=4)
        first, control = ensemble_attacks.u_lira(forget + 1.5, others, (shifted, untouched))
        assert ensemble_attacks.attack_estimates(control)["auc"].low > 0.7
        first, control = ensemble_attacks.u_lira(forget + 1.5, others, (untouched, normal(10, 200, seed=5)))
        assert ensemble_attacks.attack_estimates(first)["auc"].low > 0.7
        assert abs(ensemble_attacks.attack_estimates(control)["auc"].value - 0.5) < 0.05

    def test_two_pairs_are_too_few(self):
        with pytest.raises(InputError, match="got 2 pairs"):
            ensemble_attacks.u_lira(normal(2, 5), normal(4, 5))


class TestRmia:
    @pytest.mark.parametrize("gamma", [1.0, 1.2])
    def test_it_is_the_share_of_strangers_that_are_beaten(self, gamma):
        """With gamma 1 a stranger is as likely as itself, and that counts."""
        scores, references = normal(9), normal(7, 9, seed=1)

        def p(margin):
            return 1 / (1 + np.exp(-margin))

        ratio = p(scores) / p(references).mean(axis=0)
        population = np.array([5, 6, 7, 8])
        expected = [np.mean(ratio[x] / ratio[population] >= gamma) for x in range(9)]
        np.testing.assert_array_equal(ensemble_attacks.rmia(scores, references, population, gamma=gamma), expected)

    def test_a_member_stands_out(self):
        """Half the references know the example, so the attacked network's confidence is above their mean."""
        references = np.where(np.arange(20)[:, None] % 2 == 0, 4.0, -2.0) + normal(20, 300, seed=1)
        scores = np.concatenate([np.full(100, 4.0), np.full(200, -2.0)]) + normal(300, seed=2)
        found = ensemble_attacks.rmia(scores, references, np.arange(200, 300))
        assert auc(found[:100], found[100:200]) > 0.9

    @pytest.mark.parametrize("wrong", [{"gamma": 0.5}, {"population": np.zeros(0, int)}])
    def test_what_cannot_be_used_is_refused(self, wrong):
        with pytest.raises(InputError, match=r"RMIA was given .*; it needs"):
            ensemble_attacks.rmia(normal(3), normal(4, 3), **{"population": np.array([0]), **wrong})


class TestKlom:
    def test_it_is_the_divergence_of_two_histograms(self):
        unlearned, retrained = normal(50, 7) + 1, normal(60, 7, seed=1)
        expected = []
        for own, other in zip(unlearned.T, retrained.T, strict=True):
            edges = np.linspace(min(own.min(), other.min()), max(own.max(), other.max()), 21)
            p, q = np.histogram(own, edges)[0] / 50, np.histogram(other, edges)[0] / 60
            expected.append(_kl(p, q))
        np.testing.assert_allclose(ensemble_attacks.klom(unlearned, retrained), expected, rtol=1e-9)

    def test_equal_networks_are_at_zero_and_disjoint_ones_at_the_floor(self):
        same = normal(10, 4)
        np.testing.assert_allclose(ensemble_attacks.klom(same, same), 0, atol=1e-12)
        np.testing.assert_allclose(ensemble_attacks.klom(same + 50, same, bins=2), -math.log(1e-5), rtol=1e-9)

    def test_a_constant_margin_has_a_bin(self):
        assert ensemble_attacks.klom(np.ones((3, 1)), np.ones((4, 1))).tolist() == [0.0]


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
        np.testing.assert_allclose(ensemble_attacks.example_epsilons(unlearned, retrained), expected, rtol=1e-9)
        assert len(set(np.digitize(expected, 0.5 * np.arange(13)))) > 2, "the examples must differ"

    def test_the_best_and_the_worst_score(self):
        same = normal(20, 5)
        assert ensemble_attacks.forgetting_score(same, same) == 1.0
        assert ensemble_attacks.forgetting_score(same + 100, same) == 2.0 / 2**13
        assert ensemble_attacks.forgetting_score(same - 100, same) == 2.0 / 2**13


class TestIntervals:
    def test_more_networks_are_surer(self):
        widths = []
        for networks in (4, 16):
            (attack,) = ensemble_attacks.u_lira(normal(networks, 200) + 1, normal(networks, 200, seed=1))
            found = ensemble_attacks.attack_estimates(attack)["auc"]
            widths.append(found.high - found.low)
        assert widths[0] > 1.5 * widths[1]

    def test_the_auc_of_an_attack_is_the_mean_over_rows(self):
        attack = Attack(normal(3, 40) + 0.5, normal(3, 30, seed=1))
        labels = np.repeat([1, 0], [40, 30])
        rows = [roc_auc_score(labels, np.concatenate(row)) for row in zip(*attack, strict=True)]
        found = ensemble_attacks.attack_estimates(attack)
        assert found["auc"].value == pytest.approx(np.mean(rows))
        assert found["auc"].networks == 3
        assert ensemble_attacks.attack_estimates(attack, over_networks=False)["auc"].networks == 1
        assert set(found) == {"auc", "tpr_at_1", "tpr_at_0.1"}

    def test_rows_that_serve_each_other_as_references_are_less_sure(self):
        attack = Attack(normal(5, 60) + 1, normal(5, 60, seed=1))
        plain, crossed = (ensemble_attacks.attack_estimates(attack, cross_validated=value) for value in (False, True))
        for name in ("auc", "tpr_at_1"):
            reach = [found[name].high - found[name].value for found in (plain, crossed)]
            assert reach[1] == pytest.approx(1.5 * reach[0]), name
            assert plain[name].value == crossed[name].value

    def test_resampled_rates_are_those_of_the_resampled_scores(self):
        """Scores are rounded, so that there are ties."""
        generator = np.random.default_rng(3)
        positives, negatives = (normal(3, 40, seed=1) + 0.5).round(1), normal(3, 30, seed=2).round(1)
        rows, own, other = (generator.multinomial(n, np.full(n, 1 / n), size=20) for n in (3, 40, 30))
        for rate in (0.0, 0.05, 0.3):
            expected = [
                ensemble_attacks.tpr_at_fpr(
                    np.repeat(np.repeat(positives, r, axis=0), a, axis=1),
                    np.repeat(np.repeat(negatives, r, axis=0), b, axis=1),
                    rate,
                )
                for r, a, b in zip(rows, own, other, strict=True)
            ]
            found = ensemble_attacks._resampled_rates(positives, negatives, rows, own, other, rate)
            np.testing.assert_allclose(found, expected)
