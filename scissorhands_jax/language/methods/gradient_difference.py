"""Gradient difference (Liu et al., 2022): NegGrad+ with equal weights, over tokens."""

from __future__ import annotations

import dataclasses

import optax

from scissorhands_jax.base import Method, Model
from scissorhands_jax.keywords import takes
from scissorhands_jax.language.methods._forgetting import ForgettingOptions, forget_by
from scissorhands_jax.language.token_losses import mean_over_tokens, token_nll


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientDifferenceOptions(ForgettingOptions):
    """The keyword arguments of `gradient_difference`."""


@takes(GradientDifferenceOptions)
def gradient_difference(
    model: Model, optimizer: optax.GradientTransformation, options: GradientDifferenceOptions
) -> Method:
    """Minimises `-gamma NLL_f + alpha L_r`: the answers to forget become less probable without bound.

    With NLL the mean negative log-likelihood of a token of the answers. With alpha = 0 it is gradient ascent. The
    published recipe (TOFU) is gamma = alpha = 1, AdamW at 1e-5 with a weight decay of 0.01, batches of 32, and five to
    ten epochs of which the first warms up.

    Args:
      model: The network, from tokens to logits.
      optimizer: The optimizer, such as `optax.adamw`.

    Raises:
      InputError: A setting is out of its range.

    References:
      Liu et al., Continual Learning and Private Unlearning, CoLLAs 2022.
      Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, COLM 2024.
    """

    def forget_loss(networks, batch):
        seen = networks.see(batch)
        return -mean_over_tokens(token_nll(seen.logits, seen.answers), seen.answers.mask)

    return forget_by(forget_loss, model, optimizer, options, compares=False)
