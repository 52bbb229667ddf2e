"""UNDIAL (Dong et al., NAACL 2025): distil the original with the right token's logit lowered."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax.base import Method, Model
from scissorhands_jax.errors import check_choice, check_not_negative
from scissorhands_jax.keywords import takes
from scissorhands_jax.language.methods._forgetting import ForgettingOptions, forget_by
from scissorhands_jax.language.token_losses import mean_over_tokens

_IGNORED = -100  # the label of prompts and padding in the published code


@dataclasses.dataclass(frozen=True, kw_only=True)
class UndialOptions(ForgettingOptions):
    """The keyword arguments of `undial`."""

    beta: float = 10.0
    """By how much the logit of the right token is lowered in the teacher, at least 0."""
    positions: Literal["answers", "published"] = "answers"
    """"answers" takes the mean over the tokens of answers. "published" takes it over prompts and padding as well, where
    the published code lowers the 100th logit from the end, because it takes the label -100 for an index."""
    retain_weight: float = 0.0


@takes(UndialOptions)
def undial(model: Model, optimizer: optax.GradientTransformation, options: UndialOptions) -> Method:
    """Minimises the cross-entropy of the network to the original with the right token made improbable.

    With z_o the original's logits and p the network's prediction, over the tokens of answers,

      L_f = mean of  -sum_v softmax(z_o - beta onehot(y))_v log p_v

    The target does not move, so the loss is bounded below. The published recipe is beta = 10, alpha = 0, AdamW at 1e-4,
    batches of 32 and ten epochs.

    Args:
      model: The network, from tokens to logits.
      optimizer: The optimizer, such as `optax.adamw`.

    Raises:
      InputError: A setting is out of its range.

    References:
      Dong et al., UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in LLMs, NAACL 2025.
    """
    check_not_negative("beta", options.beta)
    check_choice("positions", options.positions, get_args(Literal["answers", "published"]))

    def forget_loss(networks, batch):
        seen = networks.see(batch)
        size, labels = seen.logits.shape[-1], seen.answers.labels
        if options.positions == "published":
            labels = jnp.where(seen.answers.mask, labels, size + _IGNORED)
        lowered = seen.original.astype(jnp.float32) - options.beta * jax.nn.one_hot(labels, size)
        each = -jnp.sum(jax.nn.softmax(lowered) * jax.nn.log_softmax(seen.logits.astype(jnp.float32)), axis=-1)
        return each.mean() if options.positions == "published" else mean_over_tokens(each, seen.answers.mask)

    return forget_by(forget_loss, model, optimizer, options, compares=True)
