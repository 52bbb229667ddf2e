"""Gates of audits: they fail on each fault that they are there for."""

from scissorhands_jax import report
from scissorhands_jax.metrics.intervals import Estimate
from scissorhands_jax.report import gates


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
