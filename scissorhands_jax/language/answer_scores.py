"""What one network did with the questions of one set, example by example, and the means of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from scissorhands_jax.language.truth_ratios import (
    DEFINITIONS,
    PUBLISHED_EPSILON,
    log_truth_ratios,
    mean_truth_ratio,
    truth_ratios,
)

SETS = ("retain", "real authors", "world facts", "forget")
"""The sets of questions of TOFU. All but the last count for model utility."""
WITH_OPTIONS = ("real authors", "world facts")
"""The sets in which the probability of the right answer is divided by that of all options."""


class Series(NamedTuple):
    """A number for each example."""

    examples: tuple[str, ...]
    """The names of the examples, as in the log."""
    values: np.ndarray
    """shape=(N,), dtype=float64."""


class AnswerLosses(NamedTuple):
    """Losses of right and wrong answers to the same questions, each the mean of a token in nats."""

    examples: tuple[str, ...]
    right: np.ndarray
    """shape=(N,), dtype=float64."""
    wrong: np.ndarray
    """shape=(N, K), dtype=float64."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerScores:
    """What one network did with the questions of one set; a part that was not measured is None."""

    probability: Series | None = None
    """The probability of the answer, exp(-loss), which is normalized by the length of the answer."""
    option_probability: Series | None = None
    """That probability divided by the sum over the right answer and all wrong ones."""
    rouge: Series | None = None
    """ROUGE-L recall of what the network says to the question."""
    losses: AnswerLosses | None = None
    """Losses of the paraphrased right answer (the answer itself where there is no paraphrase) and of wrong answers."""
    stated_ratios: Series | None = None
    """Geometric truth ratios, where the log states these and no losses."""
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The right answer by the name of the example, if the log has it."""

    @property
    def num_examples(self) -> int:
        """The number of examples of the part that has most; 0 if nothing was measured."""
        parts = (getattr(self, field.name) for field in dataclasses.fields(self))
        return max((len(part.examples) for part in parts if isinstance(part, Series | AnswerLosses)), default=0)

    def ratios(self, definition: str, epsilon: float) -> Series | None:
        """The truth ratio of each example, or None if the log does not allow this definition.

        Args:
          definition: One of `DEFINITIONS`.
          epsilon: See `truth_ratios`.
        """
        if self.losses is not None:
            values = truth_ratios(self.losses.right, self.losses.wrong, definition, epsilon=epsilon)
            return Series(self.losses.examples, values)
        if self.stated_ratios is None or definition == "arithmetic":
            return None
        stated = self.stated_ratios.values
        return Series(self.stated_ratios.examples, stated if definition == "geometric" else 1 / (1 + stated))

    def log_ratios(self, definition: str) -> Series | None:
        """The logarithm of the arithmetic or geometric truth ratio of each example, or None as for `ratios`.

        A stated ratio of 0 has no logarithm, so such a log allows none.
        """
        if self.losses is not None:
            return Series(self.losses.examples, log_truth_ratios(self.losses.right, self.losses.wrong, definition))
        if self.stated_ratios is None or definition == "arithmetic" or not self.stated_ratios.values.all():
            return None
        return Series(self.stated_ratios.examples, np.log(self.stated_ratios.values))

    def means(self, name: str, epsilon: float) -> dict[str, Any]:
        """The mean of each part that was measured.

        Args:
          name: The name of the set, one of `SETS`.
          epsilon: See `truth_ratios`.
        """
        found: dict[str, Any] = {}
        parts = {
            "probability": self.probability,
            "probability_with_options": self.option_probability,
            "rouge_l_recall": self.rouge,
        }
        for part, series in parts.items():
            if series is not None:
                found[part] = float(series.values.mean())
        ratios = {kind: self.ratios(kind, epsilon) for kind in DEFINITIONS}
        known = {kind: series.values for kind, series in ratios.items() if series is not None}
        if known:
            found["truth_ratio"] = {
                kind: mean_truth_ratio(values, kind, forget=name == "forget", epsilon=epsilon)
                for kind, values in known.items()
            }
        return found


class AttackScores(NamedTuple):
    """Scores by which a membership attack tells forget examples from held-out ones; members have lower scores."""

    forget: np.ndarray
    holdout: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationLog:
    """What one network did in a published evaluation, read from its log."""

    path: Path
    format: Literal["tofu", "open-unlearning"]
    sets: Mapping[str, AnswerScores]
    """By the name of the set, those of `SETS` that the log has."""
    scores: Mapping[str, Series] = dataclasses.field(default_factory=dict)
    """Other measures that are a mean over examples, by their name in the log."""
    attacks: Mapping[str, AttackScores] = dataclasses.field(default_factory=dict)
    """Membership attacks by their name in the log."""
    recorded: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The aggregates that the log itself states, by their name in it."""
    remarks: tuple[str, ...] = ()
    """What of the log was left out, in sentences."""

    @property
    def epsilon(self) -> float:
        """What the code that wrote the log adds to divisors of truth ratios."""
        return PUBLISHED_EPSILON if self.format == "open-unlearning" else 0.0
