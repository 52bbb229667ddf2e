"""What a network knows of questions, example by example: every measure that published evaluations have.

Examples are put into buckets of a few lengths (`packing.bucketed_rows`), so that nothing is padded to the longest and
few shapes are compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from scissorhands_jax.base import Model, ModelState, Params
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.aggregates import attack_auc
from scissorhands_jax.language.answer_scores import AttackScores
from scissorhands_jax.language.greedy import StepDecoder, greedy_tokens, recomputing
from scissorhands_jax.language.packing import Encoded, bucketed_rows
from scissorhands_jax.language.rouge import rouge_l
from scissorhands_jax.language.token_scores import (
    TokenScores,
    answer_loss,
    answer_probability,
    exact_memorization,
    extraction_strength,
    min_k,
    token_scores,
)
from scissorhands_jax.language.truth_ratios import DEFINITIONS, log_truth_ratios, mean_truth_ratio, truth_ratios
from scissorhands_jax.language.words import END, PAD


class Network(NamedTuple):
    """A network that can be asked."""

    model: Model
    """From tokens of shape (N, T) to logits of shape (N, T, V)."""
    params: Params
    model_state: ModelState
    decoder: StepDecoder | None = None
    """How it says one token after the other; None computes all positions again for each, which suits short rows."""


PADDED = 32
"""Rows are padded to multiples of so many tokens, unless a caller says otherwise."""


class Questions(NamedTuple):
    """Questions with all their answers, each in the order of the questions."""

    answers: Sequence[Encoded]
    """Prompts with the right answers, as they were learned."""
    texts: Sequence[str] = ()
    """The right answers as text; () if what a network says is not to be measured."""
    paraphrases: Sequence[Encoded] = ()
    """Prompts with the right answers in other words; () if there are none."""
    wrong: Sequence[Sequence[Encoded]] = ()
    """Prompts with wrong answers in these words, as many for each question."""


class AnswerMeasures(NamedTuple):
    """Measures of the answers as they were learned, one number for each. shape=(N,), dtype=float64."""

    loss: np.ndarray
    """Nats per token of each answer."""
    probability: np.ndarray
    """exp(-loss)."""
    extraction_strength: np.ndarray
    exact_memorization: np.ndarray
    min_k: np.ndarray
    min_k_normalized: np.ndarray
    """min-k++."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What a network knows of some questions; a part that was not measured is None."""

    answers: AnswerMeasures
    said: tuple[str, ...] | None = None
    """Its greedy answers."""
    rouge: np.ndarray | None = None
    """ROUGE-L recall of these, stemmed. shape=(N,)"""
    right_loss: np.ndarray | None = None
    """Nats per token of the paraphrased right answers. shape=(N,)"""
    wrong_losses: np.ndarray | None = None
    """The same of wrong answers. shape=(N, K)"""

    def log_ratios(self, definition: str = "geometric") -> np.ndarray:
        """Log truth ratios, see `truth_ratios.log_truth_ratios`.

        Raises:
          InputError: Wrong answers were not measured.
        """
        if self.right_loss is None or self.wrong_losses is None:
            raise InputError("truth ratios need paraphrased and wrong answers; give questions that have them")
        return log_truth_ratios(self.right_loss, self.wrong_losses, definition)

    def means(self, *, forget: bool) -> dict[str, Any]:
        """The mean of every measure; of truth ratios the summary that goes with each definition.

        Args:
          forget: Whether these are the questions to forget, see `truth_ratios.mean_truth_ratio`.
        """
        found: dict[str, Any] = {name: float(values.mean()) for name, values in self.answers._asdict().items()}
        if self.rouge is not None:
            found["rouge_l_recall"] = float(self.rouge.mean())
        if self.right_loss is not None and self.wrong_losses is not None:
            found["truth_ratio"] = {
                kind: mean_truth_ratio(truth_ratios(self.right_loss, self.wrong_losses, kind), kind, forget=forget)
                for kind in DEFINITIONS
            }
        return found

    def document(self, digits: int = 5) -> dict[str, Any]:
        """Every measure of every example as JSON, with so many significant digits."""
        arrays = {**self.answers._asdict(), "rouge_l_recall": self.rouge, "right_loss": self.right_loss}
        arrays["wrong_losses"] = self.wrong_losses
        found: dict[str, Any] = {
            name: np.vectorize(lambda value: float(f"{value:.{digits}g}"))(values).tolist()
            for name, values in arrays.items()
            if values is not None
        }
        return found | ({} if self.said is None else {"said": list(self.said)})


def measure_answers(
    network: Network, examples: Sequence[Encoded], *, share: float = 0.4, step: int = PADDED
) -> AnswerMeasures:
    """Measures answers to prompts.

    Args:
      network: The network.
      examples: Prompts and answers.
      share: The share of tokens that min-k and min-k++ look at.
      step: Rows are padded to multiples of so many tokens.

    Raises:
      InputError: As for `packing.check_encoded` and `token_scores.min_k`.
    """
    measures: tuple[Callable[[TokenScores], np.ndarray], ...] = (
        answer_loss,
        answer_probability,
        extraction_strength,
        exact_memorization,
        lambda scores: min_k(scores, share=share),
        lambda scores: min_k(scores, share=share, normalized=True),
    )
    found = np.empty((len(measures), len(examples)))
    for bucket in bucketed_rows(examples, step=step, pad=PAD):
        scores = token_scores(network.model, network.params, network.model_state, bucket.rows)
        kept = TokenScores(*(part[: len(bucket.positions)] for part in scores))
        found[:, bucket.positions] = [measure(kept) for measure in measures]
    return AnswerMeasures(*found)


def say_answers(
    network: Network,
    examples: Sequence[Encoded],
    decode: Callable[[np.ndarray], str],
    *,
    room: int,
    end: int = END,
    step: int = PADDED,
) -> list[str]:
    """What the network says to each prompt, greedily.

    Args:
      network: The network.
      examples: Prompts; the answers are not looked at, but an answer that is said can be at least as long.
      decode: From tokens to text, up to `end` or padding.
      room: The least number of tokens that an answer can have. It can have more, until prompt and answer are a multiple
        of `step` tokens.
      end: The token that ends an answer.
      step: See `room`.
    """
    decoder, limits = network.decoder or recomputing(network.model), []
    for example in examples:
        asked, least = len(example.prompt), max(room, len(example.answer))
        limit = -(-(asked + least) // step) * step - asked
        if decoder.context is not None:  # Rounded up, it need not fit any more.
            limit = max(least, min(limit, decoder.context - asked))
        limits.append(limit)
    said = greedy_tokens(
        decoder,
        network.params,
        network.model_state,
        [example.prompt for example in examples],
        limits=limits,
        ends=(end,),
    )
    return [decode(np.asarray(tokens, np.int32)) for tokens in said]


def measure_knowledge(
    network: Network,
    questions: Questions,
    decode: Callable[[np.ndarray], str] | None = None,
    *,
    room: int = 32,
    step: int = PADDED,
) -> Knowledge:
    """Asks a network questions and measures everything that the questions allow.

    Args:
      network: The network.
      questions: What it is asked.
      decode: As for `say_answers`; None asks for nothing to be said.
      room: As for `say_answers`.
      step: As for `measure_answers` and `say_answers`.

    Raises:
      InputError: As for `packing.check_encoded` and `rouge.rouge_l`; or questions have different numbers of wrong
        answers.
    """
    count = len(questions.answers)
    said = None if decode is None else say_answers(network, questions.answers, decode, room=room, step=step)
    rouge = None if said is None or not questions.texts else rouge_l(said, questions.texts).recall
    losses: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    if questions.paraphrases:
        widths = {len(each) for each in questions.wrong}
        if len(questions.paraphrases) != count or len(questions.wrong) != count or len(widths) != 1:
            raise InputError(
                f"{count} questions have {len(questions.paraphrases)} paraphrases and {len(questions.wrong)} lists of "
                f"wrong answers, of lengths {sorted(widths)}; give one of each, of one length"
            )
        both = [one for pair in zip(questions.paraphrases, questions.wrong, strict=True) for one in (pair[0], *pair[1])]
        table = measure_answers(network, both, step=step).loss.reshape(count, -1)
        losses = table[:, 0], table[:, 1:]
    return Knowledge(
        answers=measure_answers(network, questions.answers, step=step),
        said=None if said is None else tuple(said),
        rouge=rouge,
        right_loss=losses[0],
        wrong_losses=losses[1],
    )


def membership_areas(forget: AnswerMeasures, held_out: AnswerMeasures) -> dict[str, float]:
    """How well min-k and min-k++ tell the questions to forget from held-out ones, see `aggregates.attack_auc`.

    Args:
      forget: Measures of the questions to forget.
      held_out: Those of questions of the same kind that no network saw.
    """
    return {
        name: attack_auc(AttackScores(getattr(forget, field), getattr(held_out, field)))
        for name, field in (("min_k_auc", "min_k"), ("min_k_plus_plus_auc", "min_k_normalized"))
    }
