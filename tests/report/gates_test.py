"""Gates of audits: they fail on each fault that they are there for."""

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
