"""The analysis of an audit, from arrays alone: what is there is found, and what cannot be shown is said."""

import dataclasses

import numpy as np
import pytest

from scissorhands_jax import report
from scissorhands_jax.audit.analysis import (
    AUDIT_ATTACKS,
    GATE_LEVEL,
    Analysis,
    AuditedSet,
    InsideNumbers,
    Measurement,
    MetricEstimate,
    Watched,
)
from scissorhands_jax.metrics import two_way
from scissorhands_jax.metrics.intervals import Estimate, from_error
from scissorhands_jax.report import NULL, gates

NETWORKS, FORGET, ALWAYS, HALVED, HELD_OUT = 16, 40, 20, 120, 60


def made_up(effects):
    """An ensemble whose scores are random, but higher by 2 where a network was trained on an example.

    Args:
      effects: For each method, how much of that is left on the forget set.
    """
    generator = np.random.default_rng(0)
    *ends, total = np.cumsum([FORGET, ALWAYS, HALVED, HELD_OUT])
    forget, always, halved, held_out = np.split(np.arange(total), ends)
    included = np.zeros((NETWORKS, ends[-1]), bool)
    included[:, always] = True
    included[::2, forget] = True
    for pair in range(NETWORKS // 2):
        half = generator.permutation(halved)[: HALVED // 2]
        included[2 * pair, half] = True
        included[2 * pair + 1, np.setdiff1d(halved, half)] = True
    easy = generator.normal(size=total)
    labels = ("original", "retrain", *effects)
    watched = Watched(
        labels=generator.integers(0, 3, total),
        included=included,
        forget_sets=(AuditedSet("set", labels, forget, False),),
        always=always,
        halved=halved,
        held_out=held_out,
    )

    def measured(label, network, left):
        member = np.append(included[network], np.zeros(HELD_OUT, bool)).astype(float)
        member[forget] *= left
        margins = easy + 2 * member + generator.normal(size=total)
        inside = InsideNumbers([50.0, 50.0 + 10 * left], 60.0 + 20 * left, 60.0, 0.1, None) if network < 4 else None
        return Measurement(0, label, network, margins, inside)

    measurements = [measured("retrain" if network % 2 else "original", network, 1) for network in range(NETWORKS)]
    for label, left in effects.items():
        measurements += [measured(label, network, left) for network in range(0, NETWORKS, 2)]
    return watched, measurements


@pytest.fixture(scope="module")
def analysis():
    return Analysis(*made_up({"perfect": 0.0, "nothing": 1.0}))


@pytest.fixture(scope="module")
def means(analysis):
    return {(one.method, one.metric): one.estimate for one in analysis.estimates() if one.scenario is None}


class TestAnalysis:
    def test_attacks_find_what_is_left_and_nothing_else(self, means):
        for metric in ("population_auc", "u_lira_auc", "lira_auc", "rmia_auc"):
            assert means["nothing", metric].low > 0.5
            assert means["perfect", metric].low <= 0.5 <= means["perfect", metric].high
            assert metric == "u_lira_auc" or means["original", metric].low > 0.5
        held_out = means["nothing", "u_lira_held_out_auc"]
        assert held_out.low <= 0.5 <= held_out.high

    def test_distances_grow_with_what_is_left(self, means):
        assert means["nothing", "klom_forget"].value > means["perfect", "klom_forget"].value
        assert means["nothing", "forgetting_score"].value < means["perfect", "forgetting_score"].value
        assert (NULL, "klom_forget") not in means
        assert means[NULL, "klom_forget_halves"].networks == NETWORKS // 4

    def test_what_is_inside_is_averaged_over_the_networks_that_were_looked_into(self, means):
        assert means["nothing", "recovered"].value == 10
        assert means["nothing", "probe_gap"].value == 20
        assert means["perfect", "recovered"].value == 0
        assert ("perfect", "distance_retrained") not in means

    def test_all_attack_gates_hold(self, analysis, means):
        found = analysis.attack_gates({metric for _, metric in means})
        assert [gate.passed for gate in found] == [True] * 8
        assert all(gate.reported for gate in found)

    def test_the_original_is_shown_to_be_farther(self, analysis, means):
        found = analysis.distance_gates({metric for _, metric in means})
        assert [(gate.metric, gate.decides, gate.reported) for gate in found] == [
            ("klom_forget_halves", False, True),
            ("forgetting_score_halves", False, True),
        ]
        assert found[1].passed

    def test_every_number_has_a_title(self, means):
        assert {metric for _, metric in means} <= set(report.METRICS)

    def test_the_order_of_measurements_of_one_network_does_not_matter(self, analysis):
        by_label = sorted(analysis.measurements, key=lambda one: one.label)
        assert Analysis(analysis.watched, by_label).estimates() == analysis.estimates()

    def test_what_takes_more_networks_is_left_out(self):
        watched, measurements = made_up({"nothing": 1.0})
        few = [one for one in measurements if one.network < 2]
        small = Watched(**{**vars(watched), "included": watched.included[:2]})
        found = Analysis(small, few)
        assert {one.metric.partition("_")[0] for one in found.estimates()} == {
            "population",
            "recovered",
            "probe",
            "distance",
        }
        assert [gate.passed for gate in found.attack_gates({"population_auc"})][2:] == [None] * 6


class TestMixesOfClasses:
    """Class 1 is easier than class 0 in every network, and nine in ten forget examples are of it."""

    @staticmethod
    def sound(seed, *, memory=0.0, third=0):
        """An audit of which `third` forget examples are of a class that no held-out example has."""
        generator = np.random.default_rng(seed)
        watched, measurements = made_up({"m": 0.0})
        labels = np.arange(len(watched.labels)) % 2
        (own,) = watched.forget_sets
        labels[own.columns] = np.arange(len(own.columns)) >= 4
        labels[own.columns[:third]] = 2
        shown = []
        for one in measurements:
            margins = 2.0 * labels + generator.normal(size=len(labels))
            margins[own.columns] += memory * (one.label == "original")
            shown.append(dataclasses.replace(one, margins=margins))
        return Analysis(dataclasses.replace(watched, labels=labels), shown)

    def gates(self, **settings):
        found = self.sound(**settings).attack_gates({"population_auc"})
        return [gate for gate in found if gate.metric == "population_auc"]

    @pytest.mark.parametrize("third", [0, 4])
    def test_they_are_no_memory(self, third):
        runs = [self.gates(seed=seed, third=third) for seed in range(20)]
        assert sum(silent.passed is False for silent, _ in runs) <= 2
        assert sum(caught.passed for _, caught in runs) <= 1
        silent, caught = self.gates(seed=0, third=third, memory=2.0)
        assert caught.passed
        said = "4 of 40 forget examples have fewer than two held-out ones of their class and are left out"
        for gate in (silent, caught):
            assert (said in gate.explanation) == bool(third)
            assert gate.estimate.examples == 40 - third

    def test_where_no_class_can_be_compared_the_attack_is_not_run(self):
        audit = self.sound(0, third=40)
        assert "population_auc" not in {one.metric for one in audit.estimates()}
        assert [gate.passed for gate in self.gates(seed=0, third=40)] == [None, None]


@pytest.mark.parametrize(
    ("changes", "metric", "why"),
    [
        ({}, "u_lira_auc", "takes 6 networks, and there are 4"),
        ({"networks": 16}, "population_auc", "takes two held-out examples or more of a class of the forget set"),
        ({"networks": 16, "of_classes": True}, "lira_auc", "says nothing where whole classes are forgotten"),
        ({"networks": 16, "of_margins": False}, "rmia_auc", "takes the margins of a classifier"),
        ({"networks": 16, "forget": 9}, "klom_forget_halves", "takes 40 forget examples, and there are 9"),
        ({"networks": 16, "forget": 9}, "forgetting_score_halves", "takes 10 forget examples, and there are 9"),
        ({"networks": 10}, "klom_forget_halves", "takes 12 networks, and there are 10"),
    ],
)
def test_a_gate_that_was_not_run_says_what_is_missing(changes, metric, why):
    chosen = {"networks": 4, "of_classes": False, "of_margins": True, "forget": FORGET, **changes}
    watched, _ = made_up({})
    (own,) = watched.forget_sets
    own = dataclasses.replace(own, columns=own.columns[: chosen["forget"]], of_classes=chosen["of_classes"])
    included, of_margins = watched.included[: chosen["networks"]], chosen["of_margins"]
    found = Analysis(dataclasses.replace(watched, included=included, of_margins=of_margins, forget_sets=(own,)), [])
    run = [*found.attack_gates(()), *found.distance_gates(())]
    said = [gate.explanation for gate in run if gate.metric == metric]
    assert why in said[-1]
    assert {gate.passed for gate in run} == {None}


def test_of_whole_classes_a_probe_says_nothing_also_where_it_was_measured():
    watched, measurements = made_up({"nothing": 1.0})
    (own,) = watched.forget_sets
    for whole in (False, True):
        of = dataclasses.replace(watched, forget_sets=(dataclasses.replace(own, of_classes=whole),))
        found = {one.metric for one in Analysis(of, measurements).estimates()}
        assert ("probe_gap" in found, "recovered" in found) == (not whole, True)


def test_distances_of_other_examples_are_no_evidence_either_where_their_gate_was_not_run():
    """Of 20 forget examples there is no KLoM, and so no gate; of held-out examples there is."""
    watched, measurements = made_up({"nothing": 1.0})
    (own,) = watched.forget_sets
    few = dataclasses.replace(watched, forget_sets=(dataclasses.replace(own, columns=own.columns[:20]),))
    found = Analysis(few, measurements)
    reported = {one.metric for one in found.estimates()}
    assert {metric for metric in reported if metric.startswith("klom")} == {"klom_held_out", "klom_held_out_halves"}
    run = [gate._asdict() for gate in found.distance_gates(reported)]
    assert "klom" in report.gate_texts.silent_metrics(run)
    evidence = [one.as_dict() for one in found.estimates()]
    headers = [
        header for _, table in report.evidence_grids({"evidence": evidence, "gates": run}) for header in table.headers
    ]
    assert "KLoM held out, P95 (no evidence here)" in headers


@pytest.mark.parametrize(("networks", "has_interval"), [(4, False), (7, False), (8, True)])
def test_klom_of_few_networks_has_no_interval_but_in_simulations(analysis, networks, has_interval):
    found = two_way.networks_influence(np.linspace(2, 5, networks), range(networks))
    for metric in ("klom_forget", "klom_held_out_halves"):
        klom = analysis._entry(None, "m", metric, found).estimate
        assert (klom.low < klom.value < klom.high) is has_interval
        assert has_interval or klom.low == klom.value == klom.high == pytest.approx(3.5)
        simulated = Analysis(analysis.watched, analysis.measurements, all_intervals=True)
        assert simulated._entry(None, "m", metric, found).estimate.low < 3.5
    assert analysis._entry(None, "m", "forgetting_score_halves", found).estimate.low < 3.5


def test_intervals_end_where_numbers_do(analysis):
    far = two_way.networks_influence([11.5, 11.4, 5.0] * 3, range(9))
    klom = analysis._entry(None, "m", "klom_forget_halves", far).estimate
    assert 6 < klom.low < klom.value
    assert klom.high == -np.log(1e-5)
    assert analysis._entry(None, "m", "distance_original", far).estimate.high > 11.6
    assert (
        analysis._entry(None, "m", "recovered", two_way.networks_influence([99.0, 90.0], range(2))).estimate.high == 100
    )


@pytest.mark.parametrize("scale", [1e-4, 1e6])
def test_what_is_no_margin_may_have_any_unit(scale):
    """RMIA's probabilities and the end of KLoM's range are those of margins, so of other scores neither is made."""
    watched, measurements = made_up({"nothing": 1.0})
    watched = dataclasses.replace(watched, of_margins=False)
    scaled = [dataclasses.replace(one, margins=scale * one.margins) for one in measurements]
    found, other = (Analysis(watched, scores) for scores in (measurements, scaled))
    assert not [one for one in found.estimates() if one.metric.startswith("rmia")]
    for one, same in zip(found.estimates(), other.estimates(), strict=True):
        assert (one.scenario, one.method, one.metric) == (same.scenario, same.method, same.metric)
        assert one.estimate[:3] == pytest.approx(same.estimate[:3], rel=1e-5), one.metric
    run = found.attack_gates({one.metric for one in found.estimates()})
    assert [gate.passed for gate in run if gate.metric == "rmia_auc"] == [None, None]
    assert all(gate.passed for gate in run if gate.metric != "rmia_auc")


def entry(metric, method="m", value=0.5, *, networks=6, negatives=0):
    return MetricEstimate(None, method, metric, Estimate(value, 0.4, 0.6, 0.95, networks, 9, negatives))


def test_what_is_no_evidence_is_called_so():
    entries = [entry("lira_tpr_at_1", negatives=1_500), entry("lira_tpr_at_0.1", negatives=1_500)]
    entries += [entry("lira_tpr_at_0.1", "n", negatives=900)]
    entries += [entry("klom_forget"), entry("forgetting_score"), entry("recovered", networks=1)]
    # More than what retrained networks show of each other is far for a distance, and near for a score.
    halves = ("klom_forget_halves", "forgetting_score_halves")
    farther = from_error(0.11, 0.02, 9, 6, 100, 0.9)
    own = [gates.of_distance(metric, (0.61, 0.5), farther) for metric in halves]
    assert [gate.passed for gate in own] == [True, False]
    holds = gates.of_attack("a gate", "lira_auc", True, from_error(0.6, 0.02, 9, 8, 100))
    assert gates.trusted([holds, *own]) is True
    evidence = [one.as_dict() for one in entries]
    document = {"evidence": evidence, "gates": [gate._asdict() for gate in (holds, *own)]}
    assert "There is no evidence in the forgetting score: not even" in report.audit_verdict(document["gates"])
    tables = [table for _, table in report.evidence_grids(document)]
    assert [header for table in tables for header in table.headers if header != "Method"] == [
        "LiRA TPR at 1 % (1,500 negatives)",
        "LiRA TPR at 0.1 % (900 to 1,500 negatives: too few)",
        "KLoM forget, P95",
        "Forgetting score (no evidence here)",
        "Recovered, % points",
    ]
    intervals = [[cell.deviation for cell in table.lines[0][1:]] for table in tables]
    assert intervals == [["[0.400, 0.600]"] * 2, ["[0.400, 0.600]"] * 2, [""]]
    same = [{**one, "value": 0.3, "low": 0.3, "high": 0.1 + 0.2} for one in evidence]
    equal = [table for _, table in report.evidence_grids(document | {"evidence": same})]
    assert {cell.deviation for table in equal for cell in table.lines[0]} == {""}
    rows = [{"task": {"metrics": [{"name": "mae", "title": "MAE", "better": "lower", "unit": "km"}]}}]
    assert report.evidence_grids(document | {"rows": rows})[-1][1].headers == ("Method", "Recovered")
    own = [gates.of_distance(metric, None, None) for metric in halves]
    assert [gate.passed for gate in own] == [None, None]
    document["gates"] = [gate._asdict() for gate in (holds, *own)]
    assert "no evidence in KLoM and the forgetting score" in report.audit_verdict(document["gates"])


def test_means_that_are_not_over_all_forget_sets_name_theirs():
    """LiRA is not on whole classes, a method is on one set, and of another too many runs diverged for U-LiRA."""
    places = {
        "a class": {"original": ("population_auc",), "salun": ("population_auc",)},
        "random": {
            "original": ("population_auc", "lira_auc", "u_lira_auc"),
            "salun": ("population_auc", "lira_auc"),
            "scrub": ("population_auc", "lira_auc", "u_lira_auc"),
        },
        "more": {"original": ("population_auc", "u_lira_auc"), "salun": ("population_auc", "u_lira_auc")},
    }

    def note(shown):
        entries = [
            {"scenario": scenario, "method": method, "metric": metric}
            for scenario in shown
            for method, metrics in places[scenario].items()
            for metric in metrics
        ]
        means = [one | {"scenario": None} for one in entries]
        return report.means_note({"evidence": entries + means})

    assert note(["a class"]) == "Of the one forget set."
    assert note(["a class", "more"]) == "Means over forget sets. Over more alone: U-LiRA AUC."
    assert note(list(places)) == (
        "Means over forget sets. Over random alone: scrub; LiRA AUC of original, salun. "
        "Over random, more alone: U-LiRA AUC of original. Over more alone: U-LiRA AUC of salun."
    )


def test_the_null_gates_of_a_sound_audit_together_fail_one_time_in_twenty_at_most():
    """By Bonferroni: each may fail as often as its interval does not cover, and no more rarely than needed."""
    chance = len(AUDIT_ATTACKS) * (1 - GATE_LEVEL)
    assert len(AUDIT_ATTACKS) > 1
    assert 0.049 < chance < 0.0501
