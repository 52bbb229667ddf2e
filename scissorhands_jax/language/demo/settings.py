"""The settings of the demonstration with facts, and the networks that it compares."""

from __future__ import annotations

import dataclasses

from scissorhands_jax.errors import InputError, check_seed
from scissorhands_jax.language.calibration import LEAST_RETRAINED

RETRAINED = "retrained"
SCISSORHANDS = "scissorhands"
NPO = "npo"
GRADIENT_DIFFERENCE = "gradient_difference"
UNLEARNED = (SCISSORHANDS, NPO, GRADIENT_DIFFERENCE)
"""The methods by which the original forgets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactsTraining:
    """How networks learn the facts: with AdamW, whose rate rises for a tenth of the steps and falls along a cosine."""

    epochs: int = 60
    """The number of passes over all facts. Networks that are retrained take the same number of steps."""
    batch_size: int = 32
    """The number of facts in a step."""
    learning_rate: float = 3e-3
    """The largest rate."""
    weight_decay: float = 0.01
    """The weight decay of AdamW."""
    width: int = 96
    """The size of the activations."""
    layers: int = 2
    """The number of blocks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactsUnlearning:
    """How the original forgets: by Adam, whose rate falls to zero, in the same number of steps for every method.

    Chosen among two or three settings for each method, on seed 100.
    """

    batch_size: int = 32
    """The number of examples of each set in a step."""
    steps: int = 84
    """The number of steps of a method, rounded to whole passes over the set that it passes over."""
    scissorhands_rate: float = 1e-3
    """The rate of Scissorhands' repair."""
    fraction: float = 0.05
    """The share of the blocks' weights that Scissorhands re-initialises."""
    forget_weight: float = 0.2
    """The weight of the forget loss in Scissorhands' repair. Its ceiling is the original's loss on held-out people."""
    npo_rate: float = 3e-4
    """The rate of NPO, whose weights and beta are the published ones."""
    gradient_difference_rate: float = 1e-3
    """The rate of gradient difference, whose weights are the published ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactsSettings:
    """Whom the demonstration makes up, and whom it forgets.

    Raises:
      InputError: A number is too small, or the seed is none.
    """

    seed: int = 0
    """The seed of everything."""
    people: int = 40
    """The number of people whose facts are learned."""
    forgotten: int = 4
    """The number of these who are to be forgotten."""
    held_out: int = 8
    """The number of further people, whom no network meets."""
    references: int = LEAST_RETRAINED
    """The number of further retrained networks, which say what honest networks differ by."""
    training: FactsTraining = dataclasses.field(default_factory=FactsTraining)
    unlearning: FactsUnlearning = dataclasses.field(default_factory=FactsUnlearning)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not 1 <= self.forgotten < self.people:
            raise InputError(f"forgotten is {self.forgotten}; give a number from 1 to {self.people - 1}")
        if self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; give at least 1")
        if self.references < LEAST_RETRAINED:
            raise InputError(f"references is {self.references}; give at least {LEAST_RETRAINED}")
