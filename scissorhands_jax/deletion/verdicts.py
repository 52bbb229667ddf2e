"""Verdicts on whether a network has forgotten: findings, gates, the utility budget, and the answer.

A network that never saw some examples treats them like held-out examples of the same classes. So the examples to forget
are compared, class by class, with the test set: by the network's confidence in the true label, and by whether it is
right. If they could just as well be a random part of the test set, at the given level, they cannot be distinguished by
the network's outputs. That alone means little: a handful of examples cannot be distinguished whatever was done, and
neither can the examples of a network that never memorised them. Therefore there is a gate: the same comparison must
catch the network from before the run. If it does not, the answer is not "forgotten" but "retrain now". A second gate
compares one half of the test set with the other, and must find no difference. Of an example whose class has no held-out
example nothing is known, so a third gate fails if there is any, however few they are.

The comparison errs in two cases. Examples that differ from the test set in more than their classes can be distinguished
even in a network that never saw them. And some traces show only in a comparison with networks that were trained without
the examples. An audit against retrained networks detects both. If the run's procedure was audited (`audits`), the
audit's findings and gates count as well.

What earlier runs made the network forget is compared too, but for what requests named that were erased since: no list
names it any more. That decides nothing, and the verdict says of how many examples nothing was measured.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from scissorhands_jax.deletion.entries import FORGOTTEN, RETRAIN
from scissorhands_jax.metrics import attacks, rank_tests
from scissorhands_jax.metrics.rank_tests import Finding

EVIDENCE_LEVEL = 0.95
"""The default of the least chance that all findings hold in a network that never saw the examples."""

UTILITY_BUDGET = 1.0
"""The default number of percentage points of accuracy that all runs together may cost."""

COUNTERPARTS_GATE = "held-out examples are there"
"""The name of the gate that fails if an example has no held-out example of its class to be compared with."""

HELD_OUT_GATE = "held-out against held-out"
"""The name of the gate that compares one half of the test set with the other."""

_NOT_COMPARED = (
    "of the {} examples that earlier runs have made the network forget, {} could not be compared, because requests "
    "that named them were erased"
)
_SOURCE = "held-out comparison"
# The level of the gate that compares two halves of the test set. It is high because a run is wasted if it fails by
# chance.
_NULL_LEVEL = 0.999


@dataclasses.dataclass(frozen=True)
class EvidenceGate:
    """A condition without which the findings mean nothing."""

    name: str
    passed: bool
    why: str
    """The outcome in words, as half a sentence."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The evidence on whether a network has forgotten."""

    source: str
    """The source of the evidence: the held-out comparison, and the audit if there is one."""
    findings: tuple[Finding, ...]
    gates: tuple[EvidenceGate, ...]

    def with_more(self, other: Evidence) -> Evidence:
        """Adds the findings and gates of other evidence, which replace none."""
        return Evidence(f"{self.source}, and {other.source}", self.findings + other.findings, self.gates + other.gates)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The answer to requests, `FORGOTTEN` or `RETRAIN`, and the reasons for it with what they do not cover."""

    answer: str
    reasons: tuple[str, ...]

    @property
    def not_compared(self) -> tuple[int, int] | None:
        """How many examples earlier runs made the network forget, and of how many of them the verdict says that they
        could not be compared. None if it says that of none."""
        pattern = re.compile(re.escape(_NOT_COMPARED).replace(r"\{\}", "([0-9]{1,18})"))
        for found in filter(None, map(pattern.fullmatch, self.reasons)):
            return int(found[1]), int(found[2])
        return None


@dataclasses.dataclass(frozen=True)
class Scored:
    """Examples with the logits that a network gives them."""

    logits: np.ndarray
    """The logits. shape=(N, C)"""
    labels: np.ndarray
    """The true classes, as whole numbers. shape=(N,)"""


def held_out_comparison(
    before: Scored, after: Scored, held_before: Scored, held_after: Scored, earlier: Scored | None, level: float
) -> Evidence:
    """Compares the examples that a run had to make a network forget with held-out examples.

    Args:
      before: The forget set with the logits of the network before the run.
      after: The forget set with the logits of the network after the run.
      held_before: The test set, of all classes, with the logits of the network before the run.
      held_after: The test set, of all classes, with the logits of the network after the run.
      earlier: The examples that earlier runs made the network forget, with the logits of the network after this run,
        which must not know them again; without those that only erased requests named. None if there are none.
      level: The least chance that all findings together hold in a network that never saw the examples.

    Returns:
      The findings and the gates. The gate `COUNTERPARTS_GATE` is there, and fails, if some of the examples could not be
      compared. If none of the forget set, or none of those forgotten before, could be, it is all there is.
    """
    parts = [("forget set", after)] + ([] if earlier is None else [("forgotten before", earlier)])
    lacking = _without_counterparts([part for _, part in parts], held_after)
    if not all(np.isin(part.labels, held_after.labels).any() for _, part in parts):
        return Evidence(_SOURCE, (), lacking)
    each = 1 - (1 - level) / (len(parts) * len(_SCORES))
    findings = tuple(
        _compared(part, held_after, score, each)._replace(name=f"{score} of the {what}")
        for what, part in parts
        for score in _SCORES
    )
    first = 1 - (1 - level) / len(_SCORES)
    originals = {score: _compared(before, held_before, score, first) for score in _SCORES}
    caught = [score for score, finding in originals.items() if finding.value > finding.high]
    compared = len(before.labels) - rank_tests.without_counterpart(before.labels, held_before.labels)
    why = (
        f"its {' and '.join(caught)} distinguishes its training examples from others"
        if caught
        else f"the {compared} examples are too few, or it never memorised them, so nothing follows from the comparison"
    )
    if caught and compared < len(before.labels):
        why += f"; this is about the {compared} of {len(before.labels)} that could be compared"
    gates = (*lacking, EvidenceGate("the network before is caught", bool(caught), why), _null(held_after))
    return Evidence(_SOURCE, findings, gates)


def _without_counterparts(parts: Sequence[Scored], held: Scored) -> tuple[EvidenceGate, ...]:
    """Makes the gate that fails if some of the examples to forget, or forgotten before, cannot be compared."""
    counts = [
        f"{lacking} of the {len(part.labels)} examples {what}"
        for part, what in zip(parts, ("to forget", "forgotten before"), strict=False)
        if (lacking := rank_tests.without_counterpart(part.labels, held.labels))
    ]
    if not counts:
        return ()
    why = f"{' and '.join(counts)} could not be compared, because the test set has no example of their classes"
    return (EvidenceGate(COUNTERPARTS_GATE, False, why),)


def judge(
    evidence: Evidence,
    lost: Mapping[str, float],
    budget: float,
    *,
    exact: bool,
    collapses: Sequence[str] = (),
    earlier: int = 0,
    not_compared: int = 0,
) -> Verdict:
    """Decides between `FORGOTTEN` and `RETRAIN`, and gives every reason for it.

    The answer is `FORGOTTEN` only if every number that counts is finite, the budget is kept, nothing has collapsed, and
    there is at least one finding and one gate, all of which hold.

    Args:
      evidence: The evidence of the run.
      lost: The percentage points of accuracy that the network has lost since the first one, by the set of examples.
      budget: The number of percentage points that may be lost on each.
      exact: Whether the network was trained from scratch without the examples. That is proof enough, so the evidence
        is shown but does not count. What was lost counts all the same.
      collapses: Further reasons against the network after the run, as `utility.RunUtility.collapses` gives them.
      earlier: The number of examples that earlier runs made the network forget.
      not_compared: The number of those among them that no list names any more, because a request was erased. The
        verdict says so. It does not count against this run, which can do nothing about it.
    """
    limits = (_NOT_COMPARED.format(earlier, not_compared),) if not_compared else ()
    against = list(collapses)
    if not lost or not all(map(math.isfinite, (budget, *lost.values()))):
        against.append(f"the utility is not known: lost are {dict(lost)} of {budget} points")
    against += [
        f"the utility budget is spent: {points:.2f} of {budget:.2f} points of {name} accuracy are lost"
        for name, points in lost.items()
        if points > budget
    ]
    if not exact:
        against += _reasons_against(evidence)
    if against:
        return Verdict(RETRAIN, (*against, *limits))
    spent = ", ".join(f"{max(points, 0):.2f} of {name}" for name, points in lost.items())
    reasons = [f"within the utility budget of {budget:.2f} points: {spent}"]
    if exact:
        reasons.append("the network was trained from scratch without the examples")
    else:
        reasons.append("no measurement distinguishes the examples from ones that it never saw")
    return Verdict(FORGOTTEN, (*reasons, *limits))


def _reasons_against(evidence: Evidence) -> list[str]:
    """Describes everything in the evidence that speaks against forgetting, or for which it says nothing."""
    against = []
    if not evidence.findings:
        against.append("nothing was measured, so nothing follows about what the network knows")
    if not evidence.gates:
        against.append("no gate was run, so nothing says whether the measurements mean anything")
    against += [f"the evidence cannot be trusted: {gate.why}" for gate in evidence.gates if gate.passed is not True]
    for finding in evidence.findings:
        if not all(map(math.isfinite, (finding.value, finding.low, finding.high))):
            against.append(
                f"the {finding.name} is no number that means anything: {finding.value} between {finding.low} and "
                f"{finding.high}"
            )
        elif not finding.holds:
            against.append(_against(finding))
    return against


def _against(finding: Finding) -> str:
    how = "they are still known" if finding.value > finding.high else "they stand out, as if they had been unlearned"
    return (
        f"the {finding.name} shows that {how}: it is {finding.value:.3f}, and lies between {finding.low:.3f} and "
        f"{finding.high:.3f} in a network that never saw them"
    )


def _null(held: Scored) -> EvidenceGate:
    """Checks that the comparison finds no difference between two random halves of each class of held-out examples."""
    name = HELD_OUT_GATE
    generator = np.random.default_rng(0)
    first = np.zeros(len(held.labels), bool)
    for label in np.unique(held.labels):
        drawn = generator.permutation(np.flatnonzero(held.labels == label))
        first[drawn[: len(drawn) // 2]] = True
    if not first.any():
        return EvidenceGate(
            name, False, "the test set has no two examples of a class, so the comparison cannot be checked"
        )
    half, rest = (Scored(held.logits[part], np.asarray(held.labels)[part]) for part in (first, ~first))
    level = 1 - (1 - _NULL_LEVEL) / len(_SCORES)
    different = [score for score in _SCORES if not _compared(half, rest, score, level).holds]
    why = (
        f"its {' and '.join(different)} distinguishes held-out examples from held-out examples"
        if different
        else "it finds no difference between the two halves of the test set"
    )
    return EvidenceGate(name, not different, why)


def _compared(part: Scored, held: Scored, score: str, level: float) -> Finding:
    scores = _SCORES[score]
    return rank_tests.rank_test(
        scores(part.logits, part.labels),
        np.asarray(part.labels),
        scores(held.logits, held.labels),
        np.asarray(held.labels),
        level=level,
    )


# Each score is larger for examples that a network has seen.
_SCORES = {
    "confidence": lambda logits, labels: -attacks.cross_entropy_per_example(logits, labels),
    "correctness": lambda logits, labels: attacks.correctness(logits, labels).astype(np.float64),
}
