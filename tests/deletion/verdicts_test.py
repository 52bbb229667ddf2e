"""The comparison with held-out examples against SciPy and by chance; what counts as forgotten."""

import numpy as np
import pytest

from scissorhands_jax.deletion import verdicts
from scissorhands_jax.deletion.verdicts import Evidence, EvidenceGate, Scored
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import rank_tests
from scissorhands_jax.metrics.rank_tests import Finding

GOOD = Evidence("test", (Finding("f", 0.5, 0.4, 0.6),), (EvidenceGate("g", True, "well"),))


def logits(labels, margin, seed, classes=3):
    """Logits of noise, with the true class ahead by a margin."""
    drawn = np.random.default_rng(seed).normal(size=(len(labels), classes))
    drawn[np.arange(len(labels)), labels] += margin
    return Scored(drawn, labels)


def labels(count, classes=3):
    return np.arange(count) % classes


def compared(margins, count=300, earlier=None, held_count=300):
    """Evidence with margins of: forget set before and after, held-out before and after."""
    own, held = labels(count), labels(held_count)
    parts = [logits(which, margins[seed], seed) for seed, which in enumerate((own, own, held, held))]
    return verdicts.held_out_comparison(*parts, None if earlier is None else logits(own, earlier, 9), 0.95)


def answer(evidence, lost=0.0, *, exact=False):
    return verdicts.judge(evidence, {"test": lost}, 1.0, exact=exact)


def test_a_network_that_treats_them_as_never_seen_has_forgotten():
    assert answer(compared([4, 1, 1, 1])).answer == "forgotten"


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (compared([4, 4, 1, 1]), "still known"),
        (compared([4, -1, 1, 1]), "stand out, as if they had been unlearned"),
        (compared([1, 1, 1, 1]), "cannot be trusted"),
        (compared([4, 1, 1, 1], count=1), "the 1 examples are too few"),
        (compared([4, 1, 1, 1], earlier=4), "forgotten before shows that they are still known"),
    ],
)
def test_all_else_is_to_be_retrained(evidence, words):
    verdict = answer(evidence)
    assert verdict.answer == "retrain now"
    assert words in " ".join(verdict.reasons)
    assert answer(evidence, exact=True).answer == "forgotten", "a network that was trained anew needs no evidence"


def test_held_out_examples_are_not_told_from_each_other(monkeypatch):
    gate = compared([4, 1, 1, 1]).gates[1]
    assert gate == EvidenceGate(
        "held-out against held-out", True, "it finds no difference between the two halves of the test set"
    )
    skewed = rank_tests.rank_test
    monkeypatch.setattr(rank_tests, "rank_test", lambda own, *rest, level: skewed(own + 1, *rest, level=level))
    evidence = compared([4, 1, 1, 1])
    assert not evidence.gates[1].passed
    assert "distinguishes held-out examples from held-out examples" in " ".join(answer(evidence).reasons)
    assert not compared([4, 1, 1, 1], held_count=3).gates[1].passed, "no class has two"


def test_the_null_gate_fails_by_chance_in_no_more_than_its_level():
    held = labels(60)
    passed = [verdicts._null(logits(held, 1, seed)).passed for seed in range(300)]
    assert np.mean(passed) > 0.985


def test_classes_that_are_not_tested_give_no_evidence():
    own, held = np.full(9, 2), labels(9, 2)
    parts = [logits(own, 3, 0), logits(own, 1, 1), logits(held, 1, 2), logits(held, 1, 3)]
    evidence = verdicts.held_out_comparison(*parts, None, 0.95)
    assert "no example of their classes" in answer(evidence).reasons[0]


def test_the_budget_is_spent_whatever_the_evidence():
    assert answer(GOOD, 1.0).answer == "forgotten"
    for exact in (False, True):
        verdict = answer(GOOD, 1.01, exact=exact)
        assert verdict.answer == "retrain now"
        assert verdict.reasons == ("the utility budget is spent: 1.01 of 1.00 points of test accuracy are lost",)


AUDIT = {
    "network": "ab",
    "source": "U-LiRA",
    "findings": [{"name": "AUC", "value": 0.7, "low": 0.4, "high": 0.6}],
    "gates": [{"name": "original caught", "passed": True, "why": "AUC 0.9"}],
}


class TestAudit:
    def test_its_findings_and_gates_count(self):
        evidence = verdicts.from_audit(AUDIT, "ab")
        assert evidence == Evidence(
            "U-LiRA", (Finding("AUC", 0.7, 0.4, 0.6),), (EvidenceGate("original caught", True, "AUC 0.9"),)
        )
        assert "the AUC shows that they are still known" in answer(evidence).reasons[0]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"network": "cd"}, "another network"),
            ({"findings": []}, "nothing follows"),
            ({"gates": None}, "cannot be read"),
            ({"findings": [{"name": "AUC", "value": "x", "low": 0, "high": 1}]}, "cannot be read"),
        ],
    )
    def test_one_that_says_nothing_is_refused(self, change, words):
        with pytest.raises(InputError, match=words):
            verdicts.from_audit(AUDIT | change, "ab")

    def test_a_gate_passes_only_if_it_says_so(self):
        document = AUDIT | {"gates": [{"name": "g", "passed": "yes", "why": "?"}]}
        assert not verdicts.from_audit(document, "ab").gates[0].passed
