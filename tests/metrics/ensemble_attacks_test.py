"""Evidence: closed forms for Gaussians, scikit-learn where it has the statistic, planted leaks and none."""

import math

import numpy as np
import pytest
from scipy import optimize, special, stats
from sklearn.metrics import roc_auc_score

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import ensemble_attacks


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def auc(positives, negatives):
    positives, negatives = np.ravel(positives), np.ravel(negatives)
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    return roc_auc_score(labels, np.concatenate([positives, negatives]))


def mean_auc(attack):
    return np.mean([auc(*pair) for pair in zip(attack.positives, attack.negatives, strict=True)])


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
        for rate in (-0.1, 1.1, np.nan):
            with pytest.raises(InputError, match=r"must lie in \[0, 1\], got"):
                ensemble_attacks.tpr_at_fpr(np.zeros(2), np.zeros(3), rate)
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
        found = ensemble_attacks.log_ratio(scores, references, member)
        # Six networks say so little about variances that all examples share nearly one.
        assert np.abs(found - expected).max() > 0.05
        same = [
            np.sqrt(ensemble_attacks.moderated_variances(side.var(0, ddof=1), np.full(6, 5)))
            for side in (inside, outside)
        ]
        expected = stats.norm.logpdf(scores, inside.mean(0), same[0]) - stats.norm.logpdf(
            scores, outside.mean(0), same[1]
        )
        np.testing.assert_allclose(found, expected, rtol=1e-9)

    def test_a_choice_of_references_is_an_attack_with_these(self):
        references, scores = normal(12, 40) + 100, normal(3, 40, seed=5) + 100
        member = np.repeat([True, False], 6)[:, None] & np.ones(40, bool)
        kept = ensemble_attacks.leave_out(np.tile(np.arange(6), 2), 4)
        found = ensemble_attacks.log_ratio(scores, references, member, kept)
        assert found.shape == (7, 3, 40)
        for line, choice in zip(found, kept, strict=True):
            alone = ensemble_attacks.log_ratio(scores, references[choice], member[choice])
            np.testing.assert_allclose(line, alone, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize(
        ("scores", "references", "member"),
        [((5,), (4, 6), (4, 6)), ((6,), (4, 6), (4, 5)), ((6,), (4, 6), (3, 6)), ((6,), (4, 1, 6), (4, 1, 6))],
    )
    def test_shapes_that_do_not_fit_are_refused(self, scores, references, member):
        with pytest.raises(InputError, match="do not fit; give one column for each example"):
            ensemble_attacks.log_ratio(normal(*scores), normal(*references), normal(*member) > 0)

    def test_one_reference_on_a_side_is_too_few(self):
        member = np.array([[True], [False], [False]])
        with pytest.raises(InputError, match="1 reference networks were trained on example 0 and the attack needs two"):
            ensemble_attacks.log_ratio(np.zeros(1), np.zeros((3, 1)), member)


def rate(networks, spread, variances, *, examples=4000, memory=2.0):
    """The true positive rate at 1 % of LiRA with estimated means, where log-variances of examples have a spread."""
    generator, side = np.random.default_rng(0), networks // 2 - 1
    width = np.exp(spread / 2 * generator.normal(size=examples))
    member = np.repeat([True, False], side)[:, None] & np.ones(examples, bool)
    references = generator.normal(size=member.shape) * width + memory * member
    scores = generator.normal(size=(6, examples)) * width
    scores[:, : examples // 2] += memory
    if variances == "moderated":
        found = ensemble_attacks.log_ratio(scores, references, member)
    else:
        inside, outside = np.split(references, 2)
        var = {"known": width**2, "pooled": np.mean([inside.var(0, ddof=1), outside.var(0, ddof=1)])}[variances]
        found = ((scores - outside.mean(0)) ** 2 - (scores - inside.mean(0)) ** 2) / var
    return ensemble_attacks.tpr_at_fpr(found[:, : examples // 2], found[:, examples // 2 :], 0.01)


class TestVariances:
    @pytest.mark.parametrize("spread", [0.0, 0.4, 0.8])
    @pytest.mark.parametrize(("networks", "share"), [(16, 0.65), (32, 0.85), (64, 0.9), (128, 0.95)])
    def test_an_attack_is_nearly_as_strong_as_with_known_variances(self, networks, share, spread):
        """With 128 networks pooled variances reach 0.75 and 0.3 of it at spreads of 0.4 and 0.8."""
        known, moderated, pooled = (rate(networks, spread, kind) for kind in ("known", "moderated", "pooled"))
        assert moderated > (0.97 if spread == 0 else share) * known
        assert moderated > (0.97 if spread == 0 else 1.1) * pooled

    @pytest.mark.parametrize(("spread", "freedom"), [(0.4, 7), (0.4, 63), (1.0, 15)])
    def test_they_are_closer_to_the_truth_than_one_variance_and_than_each_its_own(self, spread, freedom):
        generator = np.random.default_rng(0)
        true = np.exp(spread * generator.normal(size=2000))
        found = true * generator.chisquare(freedom, 2000) / freedom
        drawn = ensemble_attacks.moderated_variances(found, np.full(2000, freedom))
        errors = [np.square(np.log(values / true)).mean() for values in (drawn, found, np.full(2000, found.mean()))]
        assert errors[0] < 0.97 * min(errors[1:])

    def test_the_prior_is_that_of_the_draws(self):
        """True variances that are scaled inverse chi-squares have a known mean, given the data."""
        generator, freedom, prior, common = np.random.default_rng(0), 10, 12.0, 2.5
        true = common * prior / generator.chisquare(prior, 40_000)
        found = true * generator.chisquare(freedom, 40_000) / freedom
        drawn = ensemble_attacks.moderated_variances(found, np.full(40_000, freedom))
        np.testing.assert_allclose(drawn, (prior * common + freedom * found) / (prior + freedom), rtol=0.05)

    def test_equal_variances_are_pooled(self):
        found = np.random.default_rng(0).chisquare(7, (5, 300)) / 7
        for line, drawn in zip(found, ensemble_attacks.moderated_variances(found, np.full(300, 7)), strict=True):
            np.testing.assert_allclose(drawn, line.mean(), rtol=0.4)
        np.testing.assert_allclose(ensemble_attacks.moderated_variances(np.full(9, 0.3), np.full(9, 7)), 0.3)
        assert ensemble_attacks.moderated_variances(np.zeros(4), np.full(4, 7)).tolist() == [1e-12] * 4

    @pytest.mark.parametrize("surplus", [0.0, 5e-4, 1.5e-3, 0.01, 0.5])
    def test_they_are_smyths_estimates(self, surplus):
        """Log-variances that vary by `surplus` more than by chance; scipy inverts the trigamma function."""
        freedom = 4.0
        draws = stats.zscore(normal(30), ddof=1)
        logs = draws * math.sqrt(special.polygamma(1, freedom / 2) + surplus)
        found = ensemble_attacks.moderated_variances(np.exp(logs), np.full(30, freedom))
        if surplus < 1e-3:
            expected = np.full(30, np.exp(logs).mean())
        else:
            prior = 2 * optimize.brentq(lambda x: special.polygamma(1, x) - surplus, 1e-3, 1e6)
            shift = special.digamma(prior / 2) - np.log(prior / freedom) - special.digamma(freedom / 2)
            common = np.exp(logs.mean() + shift)
            expected = (prior * common + freedom * np.exp(logs)) / (prior + freedom)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


class TestULira:
    def test_a_planted_leak_has_the_known_auc(self):
        """Unit Gaussians `leak` apart: the likelihood ratio is monotone in the score."""
        leak, shape = 1.0, (24, 400)
        centre = 5 * normal(1, 400, seed=7)
        unlearned, retrained = centre + normal(*shape, seed=8) + leak, centre + normal(*shape, seed=9)
        (attack,) = ensemble_attacks.u_lira(unlearned, retrained)
        assert mean_auc(attack) == pytest.approx(stats.norm.cdf(leak / 2**0.5), abs=0.03)

    def test_without_each_pair_members_still_score_higher(self):
        centre = 5 * normal(1, 60, seed=7)
        unlearned, retrained = centre + normal(8, 60, seed=8) + 2, centre + normal(8, 60, seed=9)
        (attack,) = ensemble_attacks.u_lira(unlearned, retrained)
        assert attack.without_positives.shape == attack.without_negatives.shape == (8, 8, 60)
        for pair in range(8):
            found = [auc(attack.without_positives[:, pair], attack.without_negatives[:, pair])]
            found.append(auc(attack.positives, attack.without_negatives[:, pair]))
            found.append(auc(attack.without_positives[:, pair], attack.negatives))
            assert min(found) > 0.8

    def test_an_attack_without_references_would_miss_it(self):
        """What the population attack sees is how hard examples are."""
        centre = 5 * normal(1, 400, seed=7)
        unlearned, retrained = (centre + normal(24, 400, seed=seed) + leak for seed, leak in ((8, 1.0), (9, 0.0)))
        (attack,) = ensemble_attacks.u_lira(unlearned, retrained)
        assert auc(unlearned, retrained) < 0.58 < 0.7 < mean_auc(attack)

    def test_wronger_than_a_stranger_is_caught_as_well(self):
        unlearned, retrained = normal(10, 300, seed=1) - 2, normal(10, 300, seed=2)
        (attack,) = ensemble_attacks.u_lira(unlearned, retrained)
        assert mean_auc(attack) > 0.75

    @pytest.mark.parametrize("networks", [3, 4, 8])
    def test_without_a_leak_it_is_null_however_few_networks_there_are(self, networks):
        (attack,) = ensemble_attacks.u_lira(normal(networks, 20_000, seed=1), normal(networks, 20_000, seed=2))
        assert mean_auc(attack) == pytest.approx(0.5, abs=0.01)

    def test_a_general_change_shows_on_other_examples_too(self):
        forget, others = normal(10, 200, seed=1), normal(10, 200, seed=2)
        shifted, untouched = normal(10, 200, seed=3) + 1.5, normal(10, 200, seed=4)
        first, control = ensemble_attacks.u_lira(forget + 1.5, others, (shifted, untouched))
        assert mean_auc(control) > 0.75
        first, control = ensemble_attacks.u_lira(forget + 1.5, others, (untouched, normal(10, 200, seed=5)))
        assert mean_auc(first) > 0.75
        assert abs(mean_auc(control) - 0.5) < 0.05

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

    def test_a_choice_of_references_is_an_attack_with_these(self):
        scores, references, population = normal(9), normal(8, 9, seed=1), np.array([5, 6, 7, 8])
        kept = ensemble_attacks.leave_out(np.arange(8) // 2, 1)
        found = ensemble_attacks.rmia(scores, references, population, kept, gamma=1.1)
        expected = [ensemble_attacks.rmia(scores, references[one], population, gamma=1.1) for one in kept]
        np.testing.assert_array_equal(found, expected)

    def test_sure_networks_stay_finite(self):
        """Probabilities of 1e-500 would be 0, and their ratio not a number."""
        far = np.full((4, 3), -1150.0) + np.arange(3.0)
        found = ensemble_attacks.rmia(np.array([-1150.0, -1149.0, -1148.0]), far, np.array([2]), gamma=1.0)
        assert found.tolist() == [1.0, 1.0, 1.0]

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
