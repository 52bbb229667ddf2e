"""Whether a network may count as one that has forgotten: findings, gates, the utility budget, and the answer.

A network that never saw some examples treats them like held-out examples of the same classes. So, class by class, the
examples that were to be forgotten are compared with the test set, in the network's confidence in the true label and in
its being right. If they could as well be a random part of the test set, at the level that was asked for, nothing in the
network's outputs tells them apart. That alone says little: a handful of examples, or a network that learned nothing by
heart, cannot be told apart whatever was done. Therefore there is a gate: the same comparison must catch the network
from before. Where it does not, the answer is not "forgotten" but "retrain now". A second gate compares one half of the
test set with the other, which nothing may tell apart.

What this cannot see: examples that differ from the test set in more than their classes can be told apart in a network
that never saw them; and examples whose trace shows only beside networks that were trained without them. An audit
against retrained networks sees both. Where the run's procedure was audited (`deletion_audits`), its findings count
beside these, and its gates take the place of the first one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from scissorhands_jax.deletion.ledger import FORGOTTEN, RETRAIN
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import attacks
from scissorhands_jax.metrics.rank_tests import Finding, rank_test

LEVEL = 0.95
BUDGET = 1.0
"""Chance that all findings hold in a network that never saw the examples; percentage points of accuracy that all runs
together may cost. The user may say otherwise."""

HELD_OUT_GATE = "held-out against held-out"
"""The name of the gate that compares one half of the test set with the other."""

_SOURCE = "held-out comparison"
_NULL_LEVEL = 0.999
"""Of the gate that compares held-out examples with held-out ones: one that fails by chance costs a run its answer."""


class Gate(NamedTuple):
    """What must hold for findings to mean anything."""

    name: str
    passed: bool
    why: str


class Evidence(NamedTuple):
    """What is known about the forgetting of a network."""

    source: str  # the held-out comparison, or which audit
    findings: tuple[Finding, ...]
    gates: tuple[Gate, ...]


class Verdict(NamedTuple):
    """The answer to a request, a state of `ledger`, and why."""

    answer: str
    reasons: tuple[str, ...]


class Scored(NamedTuple):
    """Examples as a network sees them."""

    logits: np.ndarray  # shape=(N, C)
    labels: np.ndarray  # shape=(N,), int


def held_out_comparison(
    before: Scored, after: Scored, held_before: Scored, held_after: Scored, earlier: Scored | None, level: float
) -> Evidence:
    """The evidence of one run.

    Args:
      before, after: the forget set, as the networks before and after the run see it.
      held_before, held_after: the test set, likewise, with all classes.
      earlier: what earlier runs forgot, as the network after this one sees it, which must not have come back.
      level: chance that all findings hold in a network that never saw the examples; shared among them.
    """
    for part in (after, *([] if earlier is None else [earlier])):
        if not np.isin(part.labels, held_after.labels).any():
            why = "the test set has no example of their classes, so there is nothing to compare them with"
            return Evidence(_SOURCE, (), (Gate("held-out examples are there", False, why),))
    parts = [("forget set", after)] + ([] if earlier is None else [("forgotten before", earlier)])
    each = 1 - (1 - level) / (len(parts) * len(_SCORES))
    findings = tuple(
        _compared(part, held_after, score, each)._replace(name=f"{score} of the {what}")
        for what, part in parts
        for score in _SCORES
    )
    first = 1 - (1 - level) / len(_SCORES)
    originals = {score: _compared(before, held_before, score, first) for score in _SCORES}
    caught = [score for score, finding in originals.items() if finding.value > finding.high]
    why = (
        f"in {' and '.join(caught)} it knows its training examples from others"
        if caught
        else f"the {len(before.labels)} examples are too few, or it never knew them by heart; nothing follows from the "
        "comparison"
    )
    return Evidence(_SOURCE, findings, (Gate("the network before is caught", bool(caught), why), _null(held_after)))


def from_audit(document: Mapping[str, Any], network: str) -> Evidence:
    """The evidence of an audit: the boundary to whatever measures more than `held_out_comparison`.

    Args:
      document: `{"network": SHA-256, "source": text, "findings": [{"name", "value", "low", "high"}, ...],
        "gates": [{"name", "passed", "why"}, ...]}`, both lists with at least one entry.
      network: SHA-256 of the network in question (`hashing.network_sha256`).

    Raises:
      InputError: the document has another form, or is about another network.
    """
    try:
        if document["network"] != network:
            raise InputError("the audit is about another network than the one that the run has made")
        findings = tuple(
            Finding(str(entry["name"]), *(float(entry[name]) for name in ("value", "low", "high")))
            for entry in document["findings"]
        )
        gates = tuple(Gate(str(e["name"]), e["passed"] is True, str(e["why"])) for e in document["gates"])
        source = str(document["source"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the audit cannot be read: {type(error).__name__} {error}") from error
    if not findings or not gates:
        raise InputError("the audit has no findings or no gates, so nothing follows from it")
    return Evidence(source, findings, gates)


def judge(evidence: Evidence, lost: Mapping[str, float], budget: float, *, exact: bool) -> Verdict:
    """The answer: `forgotten`, or `retrain now` with every reason for it.

    Args:
      evidence: of the run.
      lost: percentage points that the network has lost against the first one, by what was measured.
      budget: as many may be lost.
      exact: the network was trained from scratch without the examples, which is proof enough; evidence is shown only.
    """
    against = [
        f"the utility budget is spent: {points:.2f} of {budget:.2f} points of {name} accuracy are lost"
        for name, points in lost.items()
        if points > budget
    ]
    if not exact:
        against += [f"the evidence cannot be trusted: {gate.why}" for gate in evidence.gates if not gate.passed]
        against += [_against(finding) for finding in evidence.findings if not finding.holds]
    if against:
        return Verdict(RETRAIN, tuple(against))
    spent = ", ".join(f"{max(points, 0):.2f} of {name}" for name, points in lost.items())
    reasons = [f"within the utility budget of {budget:.2f} points: {spent}"]
    if exact:
        reasons.append("the network was trained from scratch without the examples")
    else:
        reasons.append("nothing that was measured tells the examples from ones that it never saw")
    return Verdict(FORGOTTEN, tuple(reasons))


def _against(finding: Finding) -> str:
    how = "still known" if finding.value > finding.high else "conspicuous, forgotten more than what was never seen"
    return (
        f"the {finding.name} shows them {how}: {finding.value:.3f}, and a network that never saw them lies between "
        f"{finding.low:.3f} and {finding.high:.3f}"
    )


def _null(held: Scored) -> Gate:
    """The comparison must not tell one half of the held-out examples, drawn class by class, from the other."""
    name = HELD_OUT_GATE
    generator = np.random.default_rng(0)
    first = np.zeros(len(held.labels), bool)
    for label in np.unique(held.labels):
        drawn = generator.permutation(np.flatnonzero(held.labels == label))
        first[drawn[: len(drawn) // 2]] = True
    if not first.any():
        return Gate(name, False, "the test set has no two examples of a class, so the comparison cannot be checked")
    half, rest = (Scored(held.logits[part], np.asarray(held.labels)[part]) for part in (first, ~first))
    level = 1 - (1 - _NULL_LEVEL) / len(_SCORES)
    told = [score for score in _SCORES if not _compared(half, rest, score, level).holds]
    why = (
        f"in {' and '.join(told)} it tells held-out examples from held-out ones"
        if told
        else "it does not tell one half of the test set from the other"
    )
    return Gate(name, not told, why)


def _compared(part: Scored, held: Scored, score: str, level: float) -> Finding:
    scores = _SCORES[score]
    return rank_test(scores(*part), np.asarray(part.labels), scores(*held), np.asarray(held.labels), level=level)


# Larger for what a network has seen.
_SCORES = {
    "confidence": lambda logits, labels: -attacks.cross_entropy_per_example(logits, labels),
    "correctness": lambda logits, labels: attacks.correctness(logits, labels).astype(np.float64),
}
