"""SimNPO (Fan et al., 2024): NPO without the original, by the length of answers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax.base import Method, Model
from scissorhands_jax.errors import check_finite_number, check_positive
from scissorhands_jax.keywords import takes
from scissorhands_jax.language.methods._forgetting import (
    ForgettingOptions,
    answer_losses,
    forget_by,
)
from scissorhands_jax.language.token_losses import mean_over_tokens, sums_over_answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimnpoOptions(ForgettingOptions):
    """The keyword arguments of `simnpo`."""

    beta: float = 4.5
    """The inverse temperature, above 0."""
    delta: float = 0.0
    """The loss of a token, in nats, up to which answers are pushed hard (the paper's gamma)."""
    forget_weight: float = 0.125


@takes(SimnpoOptions)
def simnpo(model: Model, optimizer: optax.GradientTransformation, options: SimnpoOptions) -> Method:
    """Minimises a loss that pushes answers down until each token is improbable; the original is not needed.

    With n(y) the negative log-likelihood of an answer, summed over its |y| tokens,

      L_f = -2 / beta  mean over forget examples of  log sigmoid(beta (n(y) / |y| - delta))

    The published recipe for TOFU is beta = 4.5, delta = 0, gamma = 0.125, alpha = 1, AdamW at 1e-5, batches of 32 and
    ten epochs. Both weights and the sign of delta are those of the authors' code.

    Args:
      model: The network, from tokens to logits.
      optimizer: The optimizer, such as `optax.adamw`.

    Raises:
      InputError: A setting is out of its range.

    References:
      Fan et al., Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning, 2024.
    """
    beta = options.beta
    check_positive("beta", beta)
    check_finite_number("delta", options.delta)

    def forget_loss(networks, batch):
        seen = networks.see(batch)
        sums, are_answers = answer_losses(seen.logits, seen.answers)
        mask, segment = seen.answers.mask, seen.answers.segment
        lengths, _ = sums_over_answers(jnp.ones(mask.shape), mask, segment)
        each = sums / jnp.maximum(lengths, 1)
        return -2 / beta * mean_over_tokens(jax.nn.log_sigmoid(beta * (each - options.delta)), are_answers)

    return forget_by(forget_loss, model, optimizer, options, compares=False)
