"""What a network of the demonstration says of the people, as numbers, as a log of the published format, and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.language.aggregates import attack_auc
from scissorhands_jax.language.answer_scores import AttackScores
from scissorhands_jax.language.answering import greedy_answers, token_scores
from scissorhands_jax.language.demo.scene import ROW, FactsScene
from scissorhands_jax.language.facts import WRONG_ANSWERS, Fact
from scissorhands_jax.language.token_scores import (
    TokenScores,
    answer_probability,
    exact_memorization,
    extraction_strength,
    min_k,
)
from scissorhands_jax.language.words import rows_of

MEASURED_RETAIN = 96  # retained facts that are measured; all would take longer and say the same


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownFacts:
    """What a network knows of some facts, by example."""

    said: list[str]
    """Its greedy answers."""
    right: np.ndarray
    """Whether the answer has the fact in it. shape=(N,), dtype=bool."""
    answer: TokenScores
    """Of the answers as they were learned."""
    paraphrase_loss: np.ndarray
    """Nats per token of the paraphrased right answer. shape=(N,)"""
    wrong_losses: np.ndarray
    """Nats per token of wrong answers. shape=(N, `WRONG_ANSWERS`)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactsMeasurement:
    """What a network knows of the people to forget and of the others."""

    forget: KnownFacts
    retain: KnownFacts
    held_out: TokenScores

    def numbers(self) -> dict[str, float]:
        """The means that the table shows."""
        known = attack_auc(AttackScores(min_k(self.forget.answer), min_k(self.held_out)))
        return {
            "facts_forget": float(self.forget.right.mean()),
            "facts_retain": float(self.retain.right.mean()),
            "probability_forget": float(answer_probability(self.forget.answer).mean()),
            "probability_retain": float(answer_probability(self.retain.answer).mean()),
            "extraction_strength": float(extraction_strength(self.forget.answer).mean()),
            "exact_memorization": float(exact_memorization(self.forget.answer).mean()),
            "min_k_auc": known,
        }


def measure_facts(scene: FactsScene, params: Params, model_state: ModelState) -> FactsMeasurement:
    """Asks a network about the people to forget, some of the others, and people whom it never met."""
    return FactsMeasurement(
        forget=_known(scene, params, model_state, scene.forget),
        retain=_known(scene, params, model_state, scene.retain[:MEASURED_RETAIN]),
        held_out=token_scores(scene.model, params, model_state, scene.rows(scene.held_out)),
    )


def _known(scene: FactsScene, params: Params, model_state: ModelState, facts: Sequence[Fact]) -> KnownFacts:
    rows = scene.rows(facts)
    said = [scene.tokenizer.decode(row) for row in greedy_answers(scene.model, params, model_state, rows)]
    others = [(fact.question, text) for fact in facts for text in (fact.paraphrase, *fact.wrong)]
    found = token_scores(scene.model, params, model_state, rows_of(scene.tokenizer, others, ROW))
    losses = -np.log(answer_probability(found)).reshape(len(facts), 1 + WRONG_ANSWERS)
    return KnownFacts(
        said=said,
        right=np.array([f" {fact.value}" in f" {text}" for fact, text in zip(facts, said, strict=True)]),
        answer=token_scores(scene.model, params, model_state, rows),
        paraphrase_loss=losses[:, 0],
        wrong_losses=losses[:, 1:],
    )


def evaluation_log(scene: FactsScene, found: FactsMeasurement) -> dict[str, Any]:
    """A measurement in the published format, which `lm evaluate` reads."""
    parts = {
        "eval_log.json": (scene.retain[:MEASURED_RETAIN], found.retain),
        "eval_log_forget.json": (scene.forget, found.forget),
    }
    return {name: _log_part(facts, known) for name, (facts, known) in parts.items()}


def _log_part(facts: Sequence[Fact], known: KnownFacts) -> dict[str, Any]:
    def by_index(values: Sequence[Any]) -> dict[str, Any]:
        return {str(index): value for index, value in enumerate(values)}

    return {
        "avg_gt_loss": by_index((-np.log(answer_probability(known.answer))).tolist()),
        "avg_paraphrased_loss": by_index(known.paraphrase_loss.tolist()),
        "average_perturb_loss": by_index(known.wrong_losses.tolist()),
        "generated_text": by_index(
            [[fact.question, said, fact.answer] for fact, said in zip(facts, known.said, strict=True)]
        ),
    }
