"""DPO with refusals (Rafailov et al., NeurIPS 2023): prefer "I don't know" to the answer."""

from __future__ import annotations

import dataclasses

import jax
import optax

from scissorhands_jax.base import Method, Model
from scissorhands_jax.errors import check_positive
from scissorhands_jax.keywords import takes
from scissorhands_jax.language.methods._forgetting import (
    ForgettingOptions,
    answer_losses,
    forget_by,
)
from scissorhands_jax.language.token_losses import mean_over_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoOptions(ForgettingOptions):
    """The keyword arguments of `dpo`."""

    beta: float = 0.1
    """The inverse temperature, above 0."""


@takes(DpoOptions)
def dpo(model: Model, optimizer: optax.GradientTransformation, options: DpoOptions) -> Method:
    """Minimises a loss that makes a refusal more probable than the answer, both compared with the original.

    With n the negative log-likelihood of an answer, summed over its tokens, n_o the original's, y the answer and r the
    refusal, and m(y) = n_o(y) - n(y),

      L_f = -2 / beta  mean over forget examples of  log sigmoid(beta (m(r) - m(y)))

    Forget examples have "refusal_tokens" and "refusal_answer" next to "tokens" and "answer": the same question with the
    refusal. The factor of 2 is the published code's. The recipe for TOFU is beta = 0.1, AdamW at 1e-5, batches of 32.

    Args:
      model: The network, from tokens to logits.
      optimizer: The optimizer, such as `optax.adamw`.

    Raises:
      InputError: A setting is out of its range, or the forget set has no refusals.

    References:
      Rafailov et al., Direct Preference Optimization: Your Language Model is Secretly a Reward Model, NeurIPS 2023.
      Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, COLM 2024.
    """
    beta = options.beta
    check_positive("beta", beta)

    def gain(seen):
        (own, are_answers), (before, _) = (
            answer_losses(logits, seen.answers) for logits in (seen.logits, seen.original)
        )
        return before - own, are_answers

    def forget_loss(networks, batch):
        (refusal, _), (answer, are_answers) = gain(networks.see(batch, part="refusal_")), gain(networks.see(batch))
        return -2 / beta * mean_over_tokens(jax.nn.log_sigmoid(beta * (refusal - answer)), are_answers)

    return forget_by(forget_loss, model, optimizer, options, compares=True)
