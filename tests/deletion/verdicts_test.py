"""The comparison with held-out examples against SciPy and by chance; what counts as forgotten."""

import dataclasses

import numpy as np
import pytest

from scissorhands_jax.deletion import verdicts
from scissorhands_jax.deletion.verdicts import Evidence, EvidenceGate, Scored
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
    assert "no example of their classes" in " ".join(answer(evidence).reasons)


class TestExamplesWithoutCounterparts:
    """Of 20 examples of class 2 the test set has no example, and the network knows them as well as before."""

    def evidence(self, *, own, earlier=None, caught=4):
        held = labels(300, 2)
        before, after = logits(own, caught, 0), logits(own, 1, 1)
        after.logits[own == 2] = before.logits[own == 2]
        parts = [before, after, logits(held, 1, 2), logits(held, 1, 3)]
        return verdicts.held_out_comparison(*parts, None if earlier is None else logits(earlier, 1, 4), 0.95)

    def test_they_are_not_called_forgotten(self):
        evidence = self.evidence(own=np.repeat([0, 1, 2], [150, 150, 20]))
        assert all(finding.holds for finding in evidence.findings)
        verdict = answer(evidence)
        assert verdict.answer == "retrain now"
        assert verdict.reasons == (
            "the evidence cannot be trusted: 20 of the 320 examples to forget could not be compared, because the test "
            "set has no example of their classes",
        )

    def test_a_single_one_is_enough(self):
        whole = labels(300, 2)
        assert answer(self.evidence(own=whole)).answer == "forgotten"
        assert "1 of the 301 examples to forget" in answer(self.evidence(own=np.append(whole, 2))).reasons[0]

    def test_neither_are_those_that_were_forgotten_before(self):
        """Nor if nothing else was forgotten before."""
        for earlier in (np.append(labels(60, 2), [2, 2]), np.full(2, 2)):
            verdict = answer(self.evidence(own=labels(300, 2), earlier=earlier))
            assert verdict.answer == "retrain now"
            said = " ".join(verdict.reasons)
            assert f"2 of the {len(earlier)} examples forgotten before could not be compared" in said

    def test_the_gate_of_the_network_before_claims_nothing_about_them(self):
        own = np.repeat([0, 1, 2], [150, 150, 20])
        gates = {gate.name: gate for gate in self.evidence(own=own).gates}
        assert gates["the network before is caught"].passed
        assert "about the 300 of 320 that could be compared" in gates["the network before is caught"].why
        gates = {gate.name: gate for gate in self.evidence(own=own, caught=1).gates}
        assert "the 300 examples are too few" in gates["the network before is caught"].why
        assert set(gates) == {
            "held-out examples are there",
            "the network before is caught",
            "held-out against held-out",
        }

    def test_a_network_that_was_trained_anew_needs_none(self):
        evidence = self.evidence(own=np.repeat([0, 1, 2], [150, 150, 20]))
        assert answer(evidence, exact=True).answer == "forgotten"


def test_the_budget_is_spent_whatever_the_evidence():
    assert answer(GOOD, 1.0).answer == "forgotten"
    for exact in (False, True):
        verdict = answer(GOOD, 1.01, exact=exact)
        assert verdict.answer == "retrain now"
        assert verdict.reasons == ("the utility budget is spent: 1.01 of 1.00 points of test accuracy are lost",)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["lost", "budget"])
def test_utility_that_is_not_a_finite_number_is_never_good_news(exact, value, place):
    lost, budget = ({"retain": 0.0, "test": value}, 1.0) if place == "lost" else ({"retain": 0.0, "test": 0.0}, value)
    verdict = verdicts.judge(GOOD, lost, budget, exact=exact)
    assert verdict.answer == "retrain now"
    assert "the utility is not known" in verdict.reasons[0]


def test_utility_that_was_not_measured_is_never_good_news():
    assert verdicts.judge(GOOD, {}, 1.0, exact=True).answer == "retrain now"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_findings_that_are_not_finite_numbers_are_never_good_news(field, value):
    odd = dataclasses.replace(GOOD, findings=(*GOOD.findings, GOOD.findings[0]._replace(**{field: value})))
    verdict = answer(odd)
    assert verdict.answer == "retrain now"
    assert "no number that means anything" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (dataclasses.replace(GOOD, findings=()), "nothing was measured"),
        (dataclasses.replace(GOOD, gates=()), "no gate was run"),
        (Evidence("test", (), ()), "nothing was measured"),
        (dataclasses.replace(GOOD, gates=(EvidenceGate("h", None, "not run"),)), "cannot be trusted: not run"),
        (dataclasses.replace(GOOD, gates=(*GOOD.gates, EvidenceGate("h", "no", "not true"))), "cannot be trusted"),
    ],
)  # fmt: skip
def test_nothing_found_and_nothing_checked_are_no_good_news(evidence, words):
    assert answer(GOOD).answer == "forgotten"
    verdict = answer(evidence)
    assert verdict.answer == "retrain now"
    assert words in " ".join(verdict.reasons)


def test_a_collapse_is_never_good_news():
    for exact in (False, True):
        verdict = verdicts.judge(GOOD, {"test": 0.0}, 100.0, exact=exact, collapses=["it has collapsed"])
        assert verdict == verdicts.Verdict("retrain now", ("it has collapsed",))


class TestErrors:
    """The chance of an error is shared by all findings, and a gate needs what it says."""

    def test_findings_share_the_level(self):
        own, held = labels(300), labels(300)
        parts = [logits(which, 1, seed) for seed, which in enumerate((own, own, held, held))]
        for earlier, count in ((None, 2), (logits(own, 1, 9), 4)):
            evidence = verdicts.held_out_comparison(*parts, earlier, 0.9)
            assert len(evidence.findings) == count
            for finding in evidence.findings:
                source = parts[1] if "forget set" in finding.name else earlier
                score = verdicts._SCORES[finding.name.split()[0]]
                expected = rank_tests.rank_test(
                    score(source.logits, source.labels),
                    source.labels,
                    score(parts[3].logits, parts[3].labels),
                    parts[3].labels,
                    level=1 - 0.1 / count,
                )
                assert finding[1:] == pytest.approx(expected[1:])

    def test_the_network_before_is_caught_only_if_it_knows_the_examples(self):
        """One that treats them worse than others, as if it had unlearned them already, is not caught."""
        assert compared([4, 1, 1, 1]).gates[0].passed
        assert not compared([-4, 1, 1, 1]).gates[0].passed

    def test_the_gate_of_held_out_examples_fails_where_halves_differ(self):
        """Its level is high but not so high that a difference that anyone can see would pass."""
        held = labels(300)
        scored = logits(held, 0, 3)
        generator = np.random.default_rng(0)
        first = np.zeros(len(held), bool)
        for label in np.unique(held):
            drawn = generator.permutation(np.flatnonzero(held == label))
            first[drawn[: len(drawn) // 2]] = True
        scored.logits[np.flatnonzero(first), held[first]] += 0.8
        assert not verdicts._null(scored).passed
        scored.logits[np.flatnonzero(first), held[first]] -= 0.8
        assert verdicts._null(scored).passed


def test_what_could_not_be_compared_is_said_with_either_answer_and_decides_nothing():
    words = (
        "of the 5 examples that earlier runs have made the network forget, 2 could not be compared, because requests "
        "that named them were erased"
    )
    for lost, exact, expected in ((0.0, False, "forgotten"), (0.0, True, "forgotten"), (9.0, False, "retrain now")):
        limited, whole = (
            verdicts.judge(GOOD, {"test": lost}, 1.0, exact=exact, earlier=5, not_compared=count) for count in (2, 0)
        )
        assert (limited.answer, limited.reasons) == (expected, (*whole.reasons, words))
        assert (limited.not_compared, whole.not_compared) == ((5, 2), None)
