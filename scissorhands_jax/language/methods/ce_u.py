"""CE-U (Yang, 2025): learn one's own prediction with the right token left out."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax.base import Method, Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.keywords import takes
from scissorhands_jax.language.methods._forgetting import ForgettingOptions, forget_by
from scissorhands_jax.language.token_losses import mean_over_tokens, place_in_answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class CeUOptions(ForgettingOptions):
    """The keyword arguments of `ce_u`."""

    skipped: int = 1
    """The number of tokens at the beginning of each answer that are left alone, at least 0; the paper's footnote and
    the published code leave out one."""
    retain_weight: float = 0.0


@takes(CeUOptions)
def ce_u(model: Model, optimizer: optax.GradientTransformation, options: CeUOptions) -> Method:
    """Minimises the cross-entropy to the network's own prediction with the right token made impossible.

    With z the network's logits, over the tokens of answers,

      L_f = mean of  -sum_v softmax(stop_gradient(z) with z_y = -infinity)_v log softmax(z)_v

    whose gradient with respect to z is p_y at the right token and -p_v p_y / (1 - p_y) elsewhere, so that it vanishes
    as p_y does. The published recipe has no retain loss, AdamW at 1e-5 and batches of 32.

    Args:
      model: The network, from tokens to logits.
      optimizer: The optimizer, such as `optax.adamw`.

    Raises:
      InputError: A setting is out of its range.

    References:
      Yang, CE-U: Cross Entropy Unlearning, 2025.
    """
    if options.skipped < 0:
        raise InputError(f"skipped must not be negative, got {options.skipped}")

    def forget_loss(networks, batch):
        seen = networks.see(batch)
        logits = seen.logits.astype(jnp.float32)
        mask = seen.answers.mask & (place_in_answer(seen.answers) > options.skipped)
        right = jax.nn.one_hot(seen.answers.labels, logits.shape[-1], dtype=bool)
        target = jax.nn.softmax(jnp.where(right, -jnp.inf, jax.lax.stop_gradient(logits)))
        return mean_over_tokens(-jnp.sum(target * jax.nn.log_softmax(logits), axis=-1), mask)

    return forget_by(forget_loss, model, optimizer, options, compares=False)
