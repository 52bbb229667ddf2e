"""NPO (Zhang et al., COLM 2024): negative preference optimisation, a preference against answers alone."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import optax

from scissorhands_jax.base import Method, Model
from scissorhands_jax.errors import check_choice, check_positive
from scissorhands_jax.keywords import takes
from scissorhands_jax.language.methods._forgetting import (
    ForgettingOptions,
    answer_losses,
    forget_by,
)
from scissorhands_jax.language.token_losses import mean_over_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class NpoOptions(ForgettingOptions):
    """The keyword arguments of `npo`."""

    beta: float = 0.1
    """The inverse temperature, above 0. Towards 0 the loss becomes that of gradient ascent."""
    compared: Literal["answers", "logits"] = "answers"
    """"answers" compares log-probabilities of whole answers, as the paper does. "logits" takes the mean over all logits
    of all positions, as the code of the MUSE benchmark does."""


@takes(NpoOptions)
def npo(model: Model, optimizer: optax.GradientTransformation, options: NpoOptions) -> Method:
    """Minimises a loss that pushes answers down until they are improbable, and then ever less.

    With n(y) the negative log-likelihood of an answer, summed over its tokens, and n_o(y) the original's,

      L_f = -2 / beta  mean over forget examples of  log sigmoid(beta (n(y) - n_o(y)))

    whose gradient is that of gradient ascent times 2 / (1 + exp(beta (n - n_o))). The published recipe is beta = 0.1,
    AdamW at 1e-5 with a weight decay of 0.01, batches of 32 and ten epochs; the authors' own variants are
    `retain_weight=0` (NPO), "nll" (NPO-RT) and "kl" (NPO-KL).

    Args:
      model: The network, from tokens to logits.
      optimizer: The optimizer, such as `optax.adamw`.

    Raises:
      InputError: A setting is out of its range.

    References:
      Zhang et al., Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning, COLM 2024.
      Shi et al., MUSE: Machine Unlearning Six-Way Evaluation for Language Models, ICLR 2025.
    """
    beta = options.beta
    check_positive("beta", beta)
    check_choice("compared", options.compared, get_args(Literal["answers", "logits"]))

    def forget_loss(networks, batch):
        seen = networks.see(batch)
        if options.compared == "logits":
            return -2 / beta * jax.nn.log_sigmoid(beta * (seen.original - seen.logits)).mean()
        (own, are_answers), (before, _) = (
            answer_losses(logits, seen.answers) for logits in (seen.logits, seen.original)
        )
        return -2 / beta * mean_over_tokens(jax.nn.log_sigmoid(beta * (own - before)), are_answers)

    return forget_by(forget_loss, model, optimizer, options, compares=True)
