"""Gates: they hold on sound results, fail on each fault that they are there for, and say what they lack."""

import numpy as np
import pytest
from scipy import stats

from scissorhands_jax import report
from scissorhands_jax.metrics.intervals import Estimate
from scissorhands_jax.report import gates

SOUND = {"acc_retain": 100.0, "acc_test": 90.0, "num_forget": 100}
ORIGINAL = SOUND | {"method": "original", "acc_forget": 100.0, "mia": 2.0}
RETRAINED = SOUND | {"method": "retrain", "acc_forget": 90.0, "mia": 20.0}
HELD_OUT = {"held_out_auc": 0.51, "held_out_low": 0.45, "held_out_high": 0.55}


def rows(seeds=3, original=ORIGINAL, retrained=RETRAINED | HELD_OUT):
    """Retrained networks differ by a point from seed to seed."""
    found = []
    for seed in range(seeds):
        place = {**dict.fromkeys(report.ROW_FIELDS), "scenario": "one", "seed": seed}
        moved = {"acc_forget": retrained["acc_forget"] + seed} if retrained["acc_forget"] is not None else {}
        found += [place | original, place | retrained | moved]
    return found


def outcome(table):
    return {gate.name.removeprefix("one: "): gate.passed for gate in gates.of_rows(table)}


def why(table, name):
    return next(gate.explanation for gate in gates.of_rows(table) if gate.name == f"one: {name}")


def note(table):
    return report.gates_note([gate._asdict() for gate in gates.of_rows(table)])


def test_sound_results_hold():
    table = rows()
    assert outcome(table) == {gates.CAUGHT: True, gates.SILENT: True, gates.FARTHER: True}
    assert note(table) == "All 3 gates hold: originals are caught, and nothing is found in retrained networks."


def test_an_original_that_knows_no_more_than_a_retrained_network_is_not_caught():
    table = rows(original=ORIGINAL | {"acc_forget": 91.0, "mia": 20.0})
    assert outcome(table) == {gates.CAUGHT: False, gates.SILENT: True, gates.FARTHER: False}
    assert note(table).startswith("These numbers cannot be trusted, because 2 of 3 gates failed. one: the original is")
    assert "nothing shows that it knows them better" in note(table)


@pytest.mark.parametrize(
    ("changes", "caught"),
    [({"acc_forget": 60.0, "mia": 60.0}, False), ({"acc_forget": 60.0, "mia": 2.0}, False), ({"mia": 2.0}, True)],
)
def test_only_knowing_more_counts_and_in_either_number(changes, caught):
    """An original that knows less than a retrained network is a mistake, however far apart the two are."""
    assert outcome(rows(original=RETRAINED | {"method": "original"} | changes))[gates.CAUGHT] is caught


def test_two_examples_catch_nobody():
    table = rows(1, ORIGINAL | {"num_forget": 2}, RETRAINED | {"num_forget": 2, "acc_forget": 0.0})
    assert outcome(table)[gates.CAUGHT] is False


def test_differences_of_shares_have_their_coverage():
    """Equal networks are told apart in no more than the level allows: half of 5 % for each number, one-sided."""
    draws = np.random.default_rng(0).binomial(80, 0.9, size=(2, 400))
    caught = 0
    for one, other in draws.T:
        table = rows(
            1,
            ORIGINAL | {"num_forget": 80, "acc_forget": one / 0.8, "mia": 5.0},
            RETRAINED | {"num_forget": 80, "acc_forget": other / 0.8, "mia": 5.0},
        )
        caught += outcome(table)[gates.CAUGHT]
    assert caught / 400 < 0.025


@pytest.mark.parametrize("value", [0.4, 0.6])
def test_a_retrained_network_that_saw_the_forget_set_is_found(value):
    table = rows(retrained=RETRAINED | HELD_OUT | {"held_out_auc": value})
    assert outcome(table) == {gates.CAUGHT: True, gates.SILENT: False, gates.FARTHER: True}
    assert "they saw the forget set after all" in note(table)


def test_the_gap_between_retrained_networks_is_the_jackknife_over_seeds():
    """Accuracies of 90, 91, 92: gaps of 0.25, 0.5, 0.25 between pairs, each left alone by a seed that is left out."""
    (gate,) = [gate for gate in gates.of_rows(rows()) if gate.name.endswith(gates.FARTHER)]
    left_out = np.array([0.25, 0.5, 0.25])
    deviation = np.sqrt(2 / 3 * np.square(left_out - left_out.mean()).sum())
    assert gate.estimate.value == pytest.approx(1 / 3)
    assert gate.estimate.high == pytest.approx(1 / 3 + stats.t.ppf(0.975, 2) * deviation)


def test_what_is_missing_is_said():
    assert outcome(rows(1)) == {gates.CAUGHT: True, gates.SILENT: True, gates.FARTHER: None}
    assert why(rows(1), gates.FARTHER) == "needs retrained networks of two seeds"
    assert "interval" not in why(rows(2), gates.FARTHER), "of two seeds there is a value alone"
    assert "1 of 3 gates hold, the others were not run. one: nothing" in note(rows(1, retrained=RETRAINED))
    alone = [row for row in rows() if row["method"] == "original"]
    assert set(outcome(alone).values()) == {None}
    assert (
        note(alone) == "No gate was run, so nothing shows that these numbers can be trusted: needs a retrained network."
    )
    assert why(rows()[1::2], gates.CAUGHT) == "needs the original"
    bare = rows(original=ORIGINAL | {"num_forget": None, "mia": None})
    assert why(bare, gates.CAUGHT) == "the results do not say how many examples were forgotten"
    assert why(bare, gates.FARTHER) == "the results have no Avg. Gap"


def test_held_out_numbers_compare_like_with_like():
    """Wrong labels are answered wrongly, so a forget set with some of them differs from clean examples as a whole."""
    generator = np.random.default_rng(0)
    label = np.zeros(400, int)
    wrong = np.arange(400) % 2 == 0
    logits = generator.normal(size=(400, 3))
    logits[:, 0] += np.where(wrong, -3, 3)
    held, held_label = generator.normal((3, 0, 0), size=(300, 3)), np.zeros(300, int)
    blind = gates.held_out_numbers(logits, label, label, held, held_label, held_label)
    assert blind["held_out_auc"] < blind["held_out_low"]
    found = gates.held_out_numbers(logits, label, wrong.astype(int), held, held_label, held_label)
    assert found["held_out_low"] < found["held_out_auc"] < found["held_out_high"]
    assert gates.held_out_numbers(logits, label, label + 1, held, held_label, held_label) == {}


class TestGatesOfAttacks:
    def gate(self, value, low, high, *, must_find):
        return gates.of_attack("a gate", "u_lira_auc", must_find, [Estimate(value, low, high, 0.95, 8, 100)])

    def test_an_attack_that_sees_what_is_not_there_fails(self):
        assert self.gate(0.6, 0.55, 0.65, must_find=False).passed is False
        assert self.gate(0.4, 0.35, 0.45, must_find=False).passed is False
        assert self.gate(0.52, 0.49, 0.55, must_find=False).passed is True

    def test_an_attack_that_misses_the_original_fails(self):
        assert self.gate(0.6, 0.49, 0.71, must_find=True).passed is False
        assert self.gate(0.6, 0.51, 0.69, must_find=True).passed is True

    def test_a_failed_gate_is_the_first_thing_that_is_said(self):
        gate = self.gate(0.6, 0.49, 0.71, must_find=True)
        text = report.audit_verdict([gate._asdict()])
        assert text.startswith("These numbers cannot be trusted, because 1 of the gates failed.")
        assert "misses what is there" in text

    def test_without_any_gate_there_is_no_trust(self):
        gate = gates.of_attack("a gate", "u_lira_auc", True, [])
        assert gate.passed is None
        assert "no gate could be run" in report.audit_verdict([gate._asdict()])
        assert gates.trusted([gate]) is False

    def test_a_number_whose_gate_could_not_be_run_is_not_trusted(self):
        """As with 6 to 10 networks, which are too few to compare retrained with retrained."""
        holds = self.gate(0.6, 0.51, 0.69, must_find=True)
        silent = gates.of_attack("nothing is found in retrained networks", "u_lira_auc", False, [])
        assert gates.trusted([holds, silent]) is False
        text = report.audit_verdict([holds._asdict(), silent._asdict()])
        assert text.startswith("These numbers cannot be trusted, because gates of reported metrics could not be run.")
        assert "nothing is found in retrained networks: U-LiRA AUC takes more networks" in text
        silent = silent._replace(reported=False)
        assert gates.trusted([holds, silent]) is True
        assert "1 could not be run, and their metrics are not reported" in report.audit_verdict(
            [holds._asdict(), silent._asdict()]
        )
