"""What a network of the demonstration says of the people, as numbers, as a log of the published format, and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.language.demo.scene import ROW, FactsScene
from scissorhands_jax.language.facts import Fact
from scissorhands_jax.language.measuring import (
    AnswerMeasures,
    Knowledge,
    Network,
    Questions,
    measure_answers,
    measure_knowledge,
    membership_areas,
)
from scissorhands_jax.language.tofu_logs import tofu_log_part

MEASURED_RETAIN = 96  # retained facts that are measured; all would take longer and say the same


class KnownFacts(NamedTuple):
    """What a network knows of some facts."""

    facts: Sequence[Fact]
    known: Knowledge

    @property
    def said(self) -> tuple[str, ...]:
        """Its greedy answers."""
        return self.known.said or ()

    @property
    def right(self) -> np.ndarray:
        """Whether each answer has the fact in it. shape=(N,), dtype=bool"""
        return np.array([f" {fact.value}" in f" {text}" for fact, text in zip(self.facts, self.said, strict=True)])


class FactsMeasurement(NamedTuple):
    """What a network knows of the people to forget and of the others."""

    forget: KnownFacts
    retain: KnownFacts
    held_out: AnswerMeasures

    def numbers(self) -> dict[str, float]:
        """The means that the table shows."""
        forget, retain = self.forget.known.answers, self.retain.known.answers
        return {
            "facts_forget": float(self.forget.right.mean()),
            "facts_retain": float(self.retain.right.mean()),
            "probability_forget": float(forget.probability.mean()),
            "probability_retain": float(retain.probability.mean()),
            "extraction_strength": float(forget.extraction_strength.mean()),
            "exact_memorization": float(forget.exact_memorization.mean()),
            "min_k_auc": membership_areas(forget, self.held_out)["min_k_auc"],
        }


def measure_facts(scene: FactsScene, params: Params, model_state: ModelState) -> FactsMeasurement:
    """Asks a network about the people to forget, some of the others, and people whom it never met."""
    network = Network(scene.model, params, model_state, scene.decoder)

    def known(facts: Sequence[Fact]) -> KnownFacts:
        questions = Questions(
            answers=[scene.encode(fact.question, fact.answer) for fact in facts],
            paraphrases=[scene.encode(fact.question, fact.paraphrase) for fact in facts],
            wrong=[[scene.encode(fact.question, text) for text in fact.wrong] for fact in facts],
        )
        return KnownFacts(facts, measure_knowledge(network, questions, scene.tokenizer.decode, room=1, step=ROW))

    return FactsMeasurement(
        forget=known(scene.forget),
        retain=known(scene.retain[:MEASURED_RETAIN]),
        held_out=measure_answers(
            network, [scene.encode(fact.question, fact.answer) for fact in scene.held_out], step=ROW
        ),
    )


def evaluation_log(found: FactsMeasurement) -> dict[str, Any]:
    """A measurement in the published format, which `lm evaluate` reads."""
    parts = {"eval_log.json": found.retain, "eval_log_forget.json": found.forget}
    return {
        name: tofu_log_part(part.known, [(fact.question, fact.answer) for fact in part.facts])
        for name, part in parts.items()
    }
