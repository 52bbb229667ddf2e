"""Intervals over networks and examples: closed forms, and simulations at the sizes of audits.

Half-widths are compared with the standard deviation of the number in the simulation, so that an interval that is too
wide fails as well as one that is too narrow. Tolerances of shares are four standard deviations of the simulation.
"""

import functools
import math

import numpy as np
import pytest
from scipy import stats

from experiments import calibration
from scissorhands_jax.audit.analysis import GATE_LEVEL
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import ensemble_attacks, ensemble_distances, intervals, two_way
from scissorhands_jax.metrics.ensemble_attacks import Attack
from scissorhands_jax.report import NULL, ORIGINAL, REFERENCE, gates


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def auc_of(positives, negatives):
    return (positives[:, None] > negatives).mean() + (positives[:, None] == negatives).mean() / 2


class TestClosedForms:
    def test_over_examples_alone_it_is_delongs_interval(self):
        positives, negatives = normal(1, 40) + 0.5, normal(1, 30, seed=1).round(1)
        found = two_way.attack_influences(
            Attack(positives, negatives), np.arange(40), 40 + np.arange(30), over_networks=False
        )["auc"].estimate()
        wins = (positives[0][:, None] > negatives[0]) + (positives[0][:, None] == negatives[0]) / 2
        assert found.value == pytest.approx(wins.mean())
        ahead, behind = (wins.mean(axis=axis) for axis in (1, 0))
        # The variance of positives is drawn towards that of the places of negatives among negatives.
        usual = stats.rankdata(negatives[0]).var(ddof=1) / 30**2
        drawn = (two_way.PRIOR_FREEDOM * usual + 39 * ahead.var(ddof=1)) / (two_way.PRIOR_FREEDOM + 39)
        assert found.error == pytest.approx(math.sqrt(drawn / 40 + behind.var(ddof=1) / 30))
        assert found.error == pytest.approx(math.sqrt(ahead.var(ddof=1) / 40 + behind.var(ddof=1) / 30), rel=0.1)
        assert (found.networks, found.examples) == (1, 40)

    def test_networks_that_differ_as_a_whole_have_students_interval(self):
        """If all examples are alike in a network, the AUC is one number for each network."""
        shares = normal(6) / 10 + 0.6
        positives = np.repeat([[1.0]], 6, axis=0)
        negatives = np.stack([np.where(np.arange(1000) < 1000 * share, 0.0, 2.0) for share in shares])
        columns = 1 + np.stack([np.arange(1000) + 1000 * row for row in range(6)])
        found = two_way.attack_influences(Attack(positives, negatives), np.array([0]), columns, rates=())["auc"]
        values = [auc_of(*row) for row in zip(positives, negatives, strict=True)]
        np.testing.assert_allclose(np.square(found.of_pairs).sum(), np.var(values, ddof=1) / 6)

    @pytest.mark.parametrize("seed", range(3))
    def test_a_mean_over_networks_and_examples_has_the_variance_components_of_a_two_way_table(self, seed):
        table = normal(7, 1, seed=seed) + normal(1, 50, seed=10 + seed) + normal(7, 50, seed=20 + seed)

        def mean(first, second):
            return (first - second).mean(axis=0)

        found = two_way.examples_influence(mean, table, np.zeros((7, 50)), np.arange(7), np.arange(50))
        rows, columns = table.mean(axis=1), table.mean(axis=0)
        rest = table - rows[:, None] - columns + table.mean()
        of_rest = (rest**2).sum() / (6 * 49) / 350
        expected = rows.var(ddof=1) / 7 + columns.var(ddof=1) / 50 - of_rest
        assert found.value == pytest.approx(table.mean())
        assert found.variance()[0] == pytest.approx(expected, rel=0.02)

    def test_numbers_of_networks_have_students_interval(self):
        values = normal(5).tolist()
        found = two_way.networks_influence(values, range(5)).estimate()
        assert found[:3] == pytest.approx(intervals.mean_estimate(values)[:3])
        alone = two_way.networks_influence([3.0], [0]).estimate()
        assert (alone.value, alone.low, alone.high, alone.networks) == (3.0, 3.0, 3.0, 1)

    def test_a_share_has_wilsons_interval(self):
        hits = np.arange(200) < 12
        influence = two_way.Influence(
            value=0.06,
            pairs=np.zeros(0, int),
            examples=np.arange(200),
            of_pairs=np.zeros(0),
            of_examples=(hits - 0.06) / 200,
            of_both=np.zeros((0, 200)),
            freedom=0.0,
            kinds=np.zeros(200, int),
            freedom_of_examples=np.full(200, 199 / 200),
            networks=1,
            attacked=1,
            counted=200,
        )
        expected = stats.binomtest(12, 200).proportion_ci(method="wilson")
        found = influence.share_estimate()
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.02)
        nothing = influence._replace(value=0.0, of_examples=np.zeros(200)).share_estimate()
        assert nothing.low == 0
        assert nothing.high == pytest.approx(stats.binomtest(0, 200).proportion_ci(method="wilson").high, rel=0.02)
        # An uncertain threshold adds next to nothing where no score is near it, and is no reason to believe more.
        threshold = influence._replace(value=0.0, of_examples=np.full(200, 1e-9)).share_estimate(least=0.01)
        assert threshold.high == pytest.approx(nothing.high, rel=0.02)

    def test_a_rate_of_which_nothing_is_seen_has_wilsons_interval_of_the_examples(self):
        """No positive of any network is above the threshold, or all are."""
        positives, negatives = normal(4, 50) - 20, normal(4, 60, seed=1)
        columns = np.arange(50), 50 + np.arange(60)
        for shift, (low, high) in ((0, (0, 0.08)), (40, (0.92, 1))):
            attack = Attack(positives + shift, negatives)
            found = two_way.attack_influences(attack, *columns, over_networks=False, rates=(0.01,))["tpr_at_1"]
            one = found.share_estimate(least=0.01)
            expected = stats.binomtest(50 if shift else 0, 50).proportion_ci(method="wilson")
            assert (one.low, one.high) == pytest.approx((expected.low, expected.high), abs=0.02)
            assert one.low == pytest.approx(low, abs=0.02)
            assert one.high == pytest.approx(high, abs=0.02)

    def test_pairs_that_are_only_references_add_no_degrees_of_freedom(self):
        """Runs of the method on their networks have diverged."""
        part, whole = (np.zeros((3, 8, 20)), np.zeros((3, 8, 30)))
        attack = Attack(normal(3, 20), normal(3, 30, seed=1), part + normal(3, 1, 20), whole + normal(3, 1, 30, seed=1))
        columns = np.arange(20), 20 + np.arange(30)
        found = two_way.attack_influences(attack, *columns, rows=np.array([1, 4, 6]), pairs=np.arange(8))["auc"]
        assert (found.freedom, len(found.pairs)) == (2, 8)

    @pytest.mark.parametrize(("rows", "pairs"), [((1, 4, 6), 8), ((2, 5), 8), ((0, 1, 2, 3), 4)])
    def test_a_share_is_of_no_more_independent_examples_than_there_are_scores_of_attacked_networks(self, rows, pairs):
        """Pairs may be only references, and two networks are too few to see how networks differ."""
        count = len(rows)
        parts = [np.zeros((count, pairs, size)) + normal(count, 1, size, seed=size) for size in (40, 50)]
        attack = Attack(normal(count, 40), normal(count, 50, seed=1), *parts)
        found = two_way.attack_influences(
            attack,
            np.arange(40),
            40 + np.arange(50),
            rows=np.array(rows),
            pairs=np.arange(pairs),
            over_networks=count > 2,
            rates=(0.01,),
        )["tpr_at_1"]
        # Next to no variance was found, so that nothing but the number of scores says how sure the share is.
        sure = found._replace(
            value=0.5,
            of_pairs=1e-9 * np.ones(len(found.pairs)),
            of_examples=1e-9 * np.ones(90),
            of_both=np.zeros((len(found.pairs), 90)),
        )
        expected = sure._replace(counted=40 * count, attacked=1).share_estimate()
        assert sure.share_estimate()[:3] == pytest.approx(expected[:3])
        assert two_way.average([found, found._replace(attacked=2)]).attacked == 2


class TestSeveral:
    def test_forget_sets_that_share_their_networks_share_their_errors(self):
        values = normal(6)
        one = two_way.networks_influence(values, range(6))
        assert two_way.average([one, one]).variance() == pytest.approx(one.variance())
        mirrored = two_way.networks_influence(-values, range(6))
        assert two_way.average([one, mirrored]).variance()[0] == pytest.approx(0, abs=1e-15)

    def test_forget_sets_of_other_networks_do_not(self):
        one, other = (
            two_way.networks_influence(normal(6), range(6)),
            two_way.networks_influence(normal(6, seed=1), range(6, 12)),
        )
        mean = two_way.average([one, other])
        assert mean.variance()[0] == pytest.approx((one.variance()[0] + other.variance()[0]) / 4)
        assert mean.freedom == pytest.approx(10)
        assert mean.value == pytest.approx((one.value + other.value) / 2)

    def test_a_number_does_not_differ_from_itself(self):
        one = two_way.networks_influence(normal(6), range(6))
        assert two_way.difference(one, one).estimate()[:3] == (0, 0, 0)

    def test_nothing_has_no_average(self):
        with pytest.raises(InputError, match="no number to average; give at least one"):
            two_way.average([])


def test_two_pairs_are_too_few_for_an_interval_over_networks():
    attack = Attack(normal(2, 9), normal(2, 9, seed=1))
    with pytest.raises(InputError, match="at least three pairs of them, got 2; train more networks, or ask"):
        two_way.attack_influences(attack, np.arange(9), np.arange(9))
    assert two_way.attack_influences(attack, np.arange(9), np.arange(9), over_networks=False)["auc"].networks == 1
    with pytest.raises(InputError, match="three pairs"):
        two_way.examples_influence(ensemble_distances.klom, normal(2, 9), normal(2, 9), np.arange(2), np.arange(9))


def held(estimates, truth):
    """The share of intervals that hold the truth, and their mean half-width in standard deviations of the values."""
    value, low, high = np.array([found[:3] for found in estimates]).T
    return np.mean((low <= truth) & (truth <= high)), (high - low).mean() / 2 / value.std(ddof=1)


def error(count, share=0.95):
    """Four standard deviations of a share in a simulation."""
    return 4 * math.sqrt(share * (1 - share) / count)


def u_lira_scores(seed, *, pairs, examples, leak, alike, shift):
    """Scores as in `calibration`, of a leak on all examples."""
    generator = np.random.default_rng(seed)
    easy, classes = 3 * generator.normal(size=examples), generator.integers(0, 10, examples)

    def networks():
        of_class = math.sqrt(alike) * generator.normal(size=(pairs, 10))[:, classes]
        of_score = math.sqrt(1 - alike) * generator.normal(size=(pairs, examples))
        return easy + shift * generator.normal(size=(pairs, 1)) + of_class + of_score

    return networks() + leak, networks()


@functools.cache
def u_lira_audits(count, pairs, examples, leak, alike, shift):
    found = []
    for seed in range(count):
        scores = u_lira_scores(seed, pairs=pairs, examples=examples, leak=leak, alike=alike, shift=shift)
        (attack,) = ensemble_attacks.u_lira(*scores)
        found.append(two_way.attack_influences(attack, np.arange(examples), np.arange(examples), rates=())["auc"])
    return found


INDEPENDENT, ALIKE = (0.0, 0.0), (0.3, 0.2)


class TestULira:
    """At 8 pairs, as in the standard tier, and at 4, as retrained against retrained networks there."""

    @pytest.mark.parametrize("noise", [INDEPENDENT, ALIKE])
    @pytest.mark.parametrize(("pairs", "examples", "count"), [(4, 100, 120), (8, 150, 100)])
    def test_intervals_of_equal_networks_are_neither_too_narrow_nor_too_wide(self, pairs, examples, count, noise):
        found = u_lira_audits(count, pairs, examples, 0.0, *noise)
        share, reach = held([one.estimate() for one in found], 0.5)
        assert 0.95 - error(count) <= share <= 0.99
        assert 1.7 < reach < (2.9 if pairs == 8 else 3.4)
        # The gate fails in 1.25 % of sound audits by its level.
        gate = np.mean([not (gate.low <= 0.5 <= gate.high) for gate in (one.estimate(GATE_LEVEL) for one in found)])
        assert gate <= 0.0125 + error(count, 0.0125)

    @pytest.mark.parametrize("noise", [INDEPENDENT, ALIKE])
    def test_intervals_of_a_leak_hold_the_truth(self, noise):
        found = u_lira_audits(100, 8, 150, 0.29 if noise == INDEPENDENT else 1.0, *noise)
        share, reach = held([one.estimate() for one in found], np.mean([one.value for one in found]))
        assert 0.95 - error(100) <= share <= 0.99
        assert 1.7 < reach < 2.9

    def test_a_leak_is_found_about_as_often_as_a_z_test_with_the_true_error_finds_it(self):
        """A leak of which the z-test finds about 64 %, and the share that the interval of an audit itself expects."""
        found = u_lira_audits(100, 8, 150, 0.29, *INDEPENDENT)
        null = np.std([one.value for one in u_lira_audits(100, 8, 150, 0.0, *INDEPENDENT)], ddof=1)
        z_test = np.mean([one.value > 0.5 + stats.norm.ppf(0.975) * null for one in found])
        estimates = [one.estimate() for one in found]
        by_interval = np.mean([one.low > 0.5 for one in estimates])
        assert 0.5 < z_test < 0.8
        assert by_interval > z_test - 0.15
        effect = np.mean([one.value for one in found]) - 0.5
        expected = np.mean([intervals.power(one, effect) for one in estimates])
        assert by_interval == pytest.approx(expected, abs=0.15)

    def test_the_error_at_the_full_tier_is_that_of_the_simulation(self):
        """64 pairs, of fewer examples so that it takes seconds."""
        found = u_lira_audits(16, 64, 20, 0.1, *INDEPENDENT)
        true = np.std([one.value for one in found], ddof=1)
        assert np.mean([one.estimate().error for one in found]) == pytest.approx(true, rel=0.6)


@functools.cache
def made_up(count, **settings):
    """The means over forget sets of all numbers of audits with 16 networks."""
    numbers = {}
    for seed in range(count):
        analysis = calibration.made_up_audit(seed, **{"networks": 16, "examples": 40, **settings})
        for label in (ORIGINAL, REFERENCE):
            for metric, one in (analysis._population(label, 0) | analysis._reference_attacks(label, 0)).items():
                numbers.setdefault((label, metric), []).append(one)
        for label in (ORIGINAL, NULL):
            for metric, one in analysis._distances(label, 0).items():
                if metric.startswith(("klom_forget", "forgetting_score")):
                    numbers.setdefault((label, metric), []).append(one)
    return numbers


class TestAudits:
    """16 networks that are partly alike."""

    COUNT = 60

    @pytest.mark.parametrize("label", [ORIGINAL, REFERENCE])
    @pytest.mark.parametrize("metric", ["population_auc", "lira_auc", "rmia_auc"])
    def test_areas(self, label, metric):
        found = made_up(self.COUNT, alike=0.3)[label, metric]
        share, reach = held([one.estimate() for one in found], np.mean([one.value for one in found]))
        assert share >= 0.95 - error(self.COUNT)
        assert 1.6 < reach < 2.8

    @pytest.mark.parametrize("label", [ORIGINAL, REFERENCE])
    @pytest.mark.parametrize("attack", ["lira", "rmia"])
    def test_true_positive_rates(self, label, attack):
        """With 320 scores of each kind there are three false positives at 1 %, so the rates are skew."""
        found = made_up(self.COUNT, alike=0.3)[label, f"{attack}_tpr_at_1"]
        share, reach = held([one.share_estimate(least=0.01) for one in found], np.mean([one.value for one in found]))
        assert share >= 0.93 - error(self.COUNT)
        assert 1.6 < reach < 4.5

    @pytest.mark.parametrize("shift", [-0.4, 0.0])
    def test_true_positive_rates_below_the_rate_of_false_positives(self, shift):
        """A method that overshoots has them: at a shift of -0.4, 1 % of false positives leave 0.3 % of true ones."""
        audits, pairs, examples = 120, 8, 40
        generator, found = np.random.default_rng(0), []
        for _ in range(audits):
            attack = Attack(*(generator.normal(size=(pairs, examples)) for _ in range(2)))
            columns = np.arange(examples), examples + np.arange(examples)
            attack = attack._replace(positives=attack.positives + shift)
            found.append(two_way.attack_influences(attack, *columns, rates=(0.01,))["tpr_at_1"])
        share, reach = held([one.share_estimate(least=0.01) for one in found], np.mean([one.value for one in found]))
        assert share >= 0.95 - error(audits)
        assert 1.6 < reach < 6

    @pytest.mark.parametrize(("label", "metric"), [(ORIGINAL, "forgetting_score"), (NULL, "forgetting_score_halves")])
    def test_forgetting_scores(self, label, metric):
        found = made_up(self.COUNT, alike=0.3)[label, metric]
        share, reach = held([one.estimate() for one in found], np.mean([one.value for one in found]))
        assert share >= 0.93 - error(self.COUNT)
        assert 1.6 < reach < 3.6

    def test_distances(self):
        """Eight networks of each kind; four are too few, as `docs/explanations/gates-and-intervals.md` says."""
        found = made_up(self.COUNT, alike=0.3)[ORIGINAL, "klom_forget"]
        share, reach = held([one.estimate() for one in found], np.mean([one.value for one in found]))
        assert share >= 0.95 - error(self.COUNT)
        assert 1.6 < reach < 4


class TestClasses:
    """Areas within classes, of which some are easier than others in every network."""

    @staticmethod
    def drawn(generator, own, held, leak=0.0, networks=8):
        """Scores of forget and held-out examples, whose classes and whose hardness all networks agree on."""
        labels = np.concatenate([np.repeat(np.arange(len(counts)), counts) for counts in (own, held)])
        scores = 3.0 * labels + 2.0 * generator.normal(size=len(labels))
        scores = scores + generator.normal(size=(networks, len(labels)))
        count = sum(own)
        columns = np.split(np.arange(len(labels)), [count])
        return Attack(leak + scores[:, :count], scores[:, count:]), *columns, labels

    def test_the_area_is_the_mean_over_forget_examples_of_those_within_their_classes(self):
        attack, own, held, labels = self.drawn(np.random.default_rng(0), [3, 7, 5], [10, 4, 1])
        found = two_way.stratified_area(attack, own, held, labels)
        areas = [
            np.mean(
                [
                    auc_of(one[labels[own] == label], other[labels[held] == label])
                    for one, other in zip(*attack[:2], strict=True)
                ]
            )
            for label in (0, 1)
        ]
        assert found.value == pytest.approx(0.3 * areas[0] + 0.7 * areas[1])
        assert found.counted == 10, "of the third class there is a single held-out example"
        assert two_way.stratified_area(attack, own[10:], held, labels) is None
        assert two_way.comparable(labels[own], labels[held]).tolist() == [True] * 10 + [False] * 5

    @pytest.mark.parametrize(
        ("own", "held"),
        [
            ([40], [100]),
            ([4, 36], [50, 50]),
            ([36, 4], [5, 100]),
            ([39, 1], [2, 100]),
            ([20, 20], [2, 2]),
            ([2, 2, 36], [0, 50, 50]),
            ([1] * 6, [8] * 6),
        ],
    )
    def test_nothing_is_found_in_other_mixes_of_classes_more_often_than_is_said(self, own, held):
        audits, generator = 150, np.random.default_rng(0)
        found = [two_way.stratified_area(*self.drawn(generator, own, held)) for _ in range(audits)]
        wrong = [not one.low <= 0.5 <= one.high for one in (part.estimate(GATE_LEVEL, (0, 1)) for part in found)]
        assert np.mean(wrong) <= 0.0125 + error(audits, 0.0125)
        spread = math.sqrt(np.mean([one.variance()[0] for one in found])) / np.std([one.value for one in found])
        assert 0.8 < spread < 1.25

    def test_what_is_remembered_is_found(self):
        generator = np.random.default_rng(0)
        found = [two_way.stratified_area(*self.drawn(generator, [4, 36], [50, 50], leak=4.0)) for _ in range(20)]
        assert all(one.estimate(GATE_LEVEL).low > 0.5 for one in found)

    def test_a_mean_over_forget_sets_counts_negatives_that_they_share_once(self):
        """Two sets without an example in common, of other classes the first of which they share."""
        attack, own, held, labels = self.drawn(np.random.default_rng(0), [10, 10, 10], [10, 10, 10])
        chosen = [np.r_[0:5, 10:20], np.r_[5:10, 20:30]]
        parts = [
            two_way.stratified_area(attack._replace(positives=attack.positives[:, part]), own[part], held, labels)
            for part in chosen
        ]
        mean = two_way.average(parts)
        assert mean.counted == 30
        kinds = mean.kinds[np.isin(mean.examples, held)]
        assert [len(np.unique(kinds[labels[held] == label])) for label in range(3)] == [1, 1, 1]
        assert len(np.unique(kinds)) == 3


class TestFewForgetExamples:
    """Requests to forget one example, and a few: of these, no variance can be seen, or hardly any."""

    @pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 20])
    @pytest.mark.parametrize("leak", [0.0, 1.0])
    def test_one_attacked_network(self, count, leak):
        audits, negatives = 600, 200
        generator = np.random.default_rng(count)
        found = []
        for _ in range(audits):
            attack = Attack(leak + generator.normal(size=(1, count)), generator.normal(size=(1, negatives)))
            columns = np.arange(count), count + np.arange(negatives)
            found.append(two_way.attack_influences(attack, *columns, over_networks=False, rates=())["auc"])
        truth = stats.norm.cdf(leak / math.sqrt(2))
        for level in (0.95, GATE_LEVEL):
            missed = np.mean([not (one.low <= truth <= one.high) for one in (one.estimate(level) for one in found)])
            assert missed <= 1.2 * (1 - level) + error(audits, 1 - level)
        # The variance is right on average, or too large by what the others' is larger.
        spread = math.sqrt(np.mean([one.variance()[0] for one in found])) / np.std([one.value for one in found])
        assert 0.9 < spread < (1.1 if leak == 0 else 1.35)

    @pytest.mark.parametrize("examples", [1, 3])
    @pytest.mark.parametrize("label", [ORIGINAL, REFERENCE])
    def test_nothing_is_found_where_nothing_is_remembered(self, examples, label):
        numbers = made_up(60, alike=0.3, memory=0.0, examples=examples, others=40)
        for metric in ("population_auc", "lira_auc", "rmia_auc"):
            gates_run = [one.estimate(GATE_LEVEL, (0, 1)) for one in numbers[label, metric]]
            assert np.mean([not one.low <= 0.5 <= one.high for one in gates_run]) <= 0.0125 + error(60, 0.0125)

    @pytest.mark.parametrize("examples", [1, 2, 3])
    def test_examples_that_all_networks_order_alike_are_no_leak(self, examples):
        """One example is so in one of eight audits of four pairs, with the area 0 or 1 and no variance at all."""
        found = [
            calibration.made_up_audit(seed, networks=16, examples=examples, others=10, memory=0.0)._u_lira(NULL, 0)
            for seed in range(100)
        ]
        estimates = [one["u_lira_auc"].estimate(GATE_LEVEL, (0, 1)) for one in found]
        assert examples > 1 or any(one.value in (0, 1) for one in estimates)
        assert np.mean([not one.low <= 0.5 <= one.high for one in estimates]) <= 0.0125 + error(100, 0.0125)

    def test_what_is_a_percentile_of_examples_is_not_measured_of_a_few(self):
        for examples, measured in ((9, set()), (10, {"forgetting_score"}), (40, {"forgetting_score", "klom_forget"})):
            audit = calibration.made_up_audit(0, networks=16, examples=examples, others=40)
            assert {name for name in audit._distances(ORIGINAL, 0) if name in ("forgetting_score", "klom_forget")} == (
                measured
            )
            assert "lira_auc" in audit._reference_attacks(ORIGINAL, 0)


class TestGates:
    """16 networks that are partly alike, and never remember anything: what holds then does so by chance."""

    COUNT = 60

    @pytest.mark.parametrize("metric", ["population_auc", "lira_auc", "rmia_auc"])
    def test_attacks_find_nothing_more_often_than_they_say(self, metric):
        numbers = made_up(self.COUNT, alike=0.3, memory=0.0)
        silent, caught = (
            [one.estimate(GATE_LEVEL, (0, 1)) for one in numbers[label, metric]] for label in (REFERENCE, ORIGINAL)
        )
        fails = np.mean([not gates.of_attack("", metric, False, one).passed for one in silent])
        assert fails <= 0.0125 + error(self.COUNT, 0.0125)
        passes = np.mean([gates.of_attack("", metric, True, one).passed for one in caught])
        assert passes <= 0.00625 + error(self.COUNT, 0.00625)
        # And not because the interval is too wide: at a lower level, about as many are wrong as it says.
        wrong = np.mean([not one.low <= 0.5 <= one.high for one in (intervals.at_level(one, 0.7) for one in silent)])
        assert wrong == pytest.approx(0.3, abs=error(self.COUNT, 0.3))

    @pytest.mark.parametrize("metric", ["klom_forget_halves", "forgetting_score_halves"])
    def test_an_original_that_is_no_farther_seems_so_as_often_as_the_gate_says(self, metric):
        shares = []
        for changes in ({"memory": 0.0}, {}):
            numbers = made_up(self.COUNT, alike=0.3, **changes)
            pairs = zip(numbers[ORIGINAL, metric], numbers[NULL, metric], strict=True)
            found = [two_way.difference(*pair).estimate(0.9) for pair in pairs]
            shares.append(np.mean([gates.of_distance(metric, (0, 0), one).passed for one in found]))
        by_chance, by_memory = shares
        assert by_chance <= 0.05 + error(self.COUNT, 0.05)
        assert by_memory > max(0.2, 2 * by_chance), "four networks find the original in a third to a half of audits"
