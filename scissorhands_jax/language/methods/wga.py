"""WGA (Wang et al., ICLR 2025): gradient ascent that leaves tokens alone once they are improbable."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax.base import Method, Model
from scissorhands_jax.errors import check_not_negative
from scissorhands_jax.keywords import takes
from scissorhands_jax.language.methods._forgetting import ForgettingOptions, forget_by
from scissorhands_jax.language.token_losses import mean_over_tokens, token_nll


@dataclasses.dataclass(frozen=True, kw_only=True)
class WgaOptions(ForgettingOptions):
    """The keyword arguments of `wga`."""

    beta: float = 1.0
    """The power of a token's probability that is its weight, at least 0; 0 is gradient difference."""


@takes(WgaOptions)
def wga(model: Model, optimizer: optax.GradientTransformation, options: WgaOptions) -> Method:
    """Minimises the negative of a weighted negative log-likelihood, the weights being powers of the probabilities.

    With p_t the probability of token t of an answer, over the tokens of answers,

      L_f = -mean of  stop_gradient(p_t^beta) (-log p_t)

    The published recipe is beta = gamma = alpha = 1, AdamW at 1e-5, batches of 32 and five epochs.

    Args:
      model: The network, from tokens to logits.
      optimizer: The optimizer, such as `optax.adamw`.

    Raises:
      InputError: A setting is out of its range.

    References:
      Wang et al., Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond, ICLR 2025.
    """
    check_not_negative("beta", options.beta)

    def forget_loss(networks, batch):
        seen = networks.see(batch)
        each = token_nll(seen.logits, seen.answers)
        weights = jax.lax.stop_gradient(jnp.exp(-options.beta * each))
        return -mean_over_tokens(weights * each, seen.answers.mask)

    return forget_by(forget_loss, model, optimizer, options, compares=False)
