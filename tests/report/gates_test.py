"""Gates of audits: they fail on each fault that they are there for."""

import pytest

from scissorhands_jax import report
from scissorhands_jax.metrics.intervals import from_error
from scissorhands_jax.report import gates


class TestGatesOfAttacks:
    def gate(self, value, *, must_find, error=0.02):
        return gates.of_attack("a gate", "u_lira_auc", must_find, from_error(value, error, 20, 8, 100, bounds=(0, 1)))

    def test_an_attack_that_sees_what_is_not_there_fails(self):
        assert self.gate(0.6, must_find=False).passed is False
        assert self.gate(0.4, must_find=False).passed is False
        assert self.gate(0.52, must_find=False).passed is True

    def test_an_attack_that_misses_the_original_fails(self):
        assert self.gate(0.53, must_find=True).passed is False
        assert self.gate(0.6, must_find=True).passed is True

    def test_an_attack_that_takes_the_original_for_less_than_a_stranger_fails(self):
        assert self.gate(0.3, must_find=True).passed is False

    def test_an_interval_that_ends_at_a_half_contains_it_and_is_not_above_it(self):
        at = from_error(0.6, 0.02, 20, 8, 100)._replace(low=0.5)
        assert gates.of_attack("a gate", "u_lira_auc", True, at).passed is False
        assert gates.of_attack("a gate", "u_lira_auc", False, at).passed is True
        below = at._replace(value=0.4, low=0.3, high=0.5)
        assert gates.of_attack("a gate", "u_lira_auc", False, below).passed is True

    def test_it_says_how_often_it_is_wrong_and_what_it_would_find(self):
        assert self.gate(0.52, must_find=False).explanation == (
            "U-LiRA AUC 0.520, 95 % interval [0.478, 0.562], must contain 0.5: it does (at 0.5 it fails in 5 % of "
            "audits, and at 0.55 the interval lies above 0.5 in 66 %)"
        )
        assert "at 0.5 it would in 2.5 % of audits" in self.gate(0.6, must_find=True).explanation
        assert "in more than 99 %" in self.gate(0.6, must_find=True, error=0.005).explanation
        found = gates.of_distance("klom_forget_halves", (3.0, 2.0), from_error(1.0, 0.4, 9, 8, 100, 0.9)).explanation
        assert "without a difference it would in 5 % of audits, and with one of 1 in 74 %" in found

    def test_a_failed_gate_is_the_first_thing_that_is_said(self):
        gate = self.gate(0.53, must_find=True)
        text = report.audit_verdict([gate._asdict()])
        assert text.startswith("These numbers cannot be trusted, because 1 of the gates failed.")
        assert "misses what is there" in text

    def test_without_any_gate_there_is_no_trust(self):
        gate = gates.of_attack("a gate", "u_lira_auc", True, None)
        assert gate.passed is None
        assert "no gate could be run" in report.audit_verdict([gate._asdict()])
        assert gates.trusted([gate]) is False
        assert gates.trusted([]) is False
        assert gates.trusted([gate._replace(reported=False)]) is False

    def test_one_gate_that_fails_is_enough_and_those_that_do_not_decide_do_not_count(self):
        holds, fails = self.gate(0.6, must_find=True), self.gate(0.6, must_find=False)
        assert gates.trusted([holds, fails]) is False
        assert gates.trusted([holds, fails._replace(decides=False)]) is True
        assert gates.trusted([holds._replace(decides=False)]) is False

    def test_a_number_whose_gate_could_not_be_run_is_not_trusted(self):
        """As with 6 to 10 networks, which are too few to compare retrained with retrained."""
        holds = self.gate(0.6, must_find=True)
        silent = gates.of_attack("nothing is found in retrained networks", "u_lira_auc", False, None)
        assert gates.trusted([holds, silent]) is False
        text = report.audit_verdict([holds._asdict(), silent._asdict()])
        assert text.startswith("These numbers cannot be trusted, because gates of reported metrics could not be run.")
        assert "nothing is found in retrained networks: U-LiRA AUC takes more networks" in text
        silent = silent._replace(reported=False)
        assert gates.trusted([holds, silent]) is True
        assert "1 could not be run, and their metrics are not reported" in report.audit_verdict(
            [holds._asdict(), silent._asdict()]
        )


class TestGatesOfDistances:
    found = from_error(0.6, 0.02, 20, 8, 100)

    @pytest.mark.parametrize(
        ("metric", "difference", "passed"),
        [
            *(("klom_forget_halves", 1.0, True), ("klom_forget_halves", -1.0, False)),
            *(("klom_forget_halves", 0.1, False), ("forgetting_score_halves", 1.0, False)),
            *(("forgetting_score_halves", -1.0, True), ("forgetting_score_halves", -0.1, False)),
        ],
    )
    def test_the_original_must_be_farther_and_surely_so(self, monkeypatch, metric, difference, passed):
        monkeypatch.setitem(report.METRICS, metric, ("Distance", ""))
        gate = gates.of_distance(metric, (2.0 + difference, 2.0), from_error(difference, 0.2, 9, 8, 100, 0.9))
        assert gate.passed is passed
        assert gate.decides is False
        assert f"must lie {'above' if metric.startswith('klom') else 'below'} 0" in gate.explanation

    def test_what_is_missing_is_said(self):
        for values, difference in ((None, None), ((1.0, 2.0), None), (None, from_error(1.0, 0.2, 9, 8, 100))):
            gate = gates.of_distance("klom_forget_halves", values, difference, lacking="takes 40 forget examples")
            assert gate.passed is None
            assert gate.explanation == "KLoM forget, P95, half the networks takes 40 forget examples"
            said = report.audit_verdict(
                [gates.of_attack("a gate", "lira_auc", True, self.found)._asdict(), gate._asdict()]
            )
            assert "so few networks" not in said
            assert "There is no evidence in KLoM: not even" in said
