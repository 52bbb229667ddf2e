"""Task-vector negation (Ilharco et al., ICLR 2023): learn the forget set even better, and go the other way."""

from __future__ import annotations

import dataclasses

import jax
import optax

from scissorhands_jax import trees
from scissorhands_jax.base import Carry, Method, Model, ModelState, Params
from scissorhands_jax.errors import check_not_negative
from scissorhands_jax.keywords import takes
from scissorhands_jax.language.methods._forgetting import forget_epochs
from scissorhands_jax.language.token_losses import token_loss
from scissorhands_jax.methods._gradient import descend


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskVectorOptions:
    """The keyword arguments of `task_vector`."""

    scale: float = 1.0
    """How far to go the other way, at least 0, as a multiple of the way that learning took."""
    batch_size: int = 32
    """The number of rows of packed forget examples that a step sees."""


@takes(TaskVectorOptions)
def task_vector(model: Model, optimizer: optax.GradientTransformation, options: TaskVectorOptions) -> Method:
    """Subtracts what learning the forget set once more adds to the weights.

    With w_o the original's weights and w those after the run's epochs of minimising the mean negative log-likelihood of
    a token of the forget answers, the result is

      w_o - scale (w - w_o)

    Retain examples are not read. The state of a network is the original's. The paper chooses the scale on a validation
    set, among multiples of 0.05 from 0 to 1.

    Args:
      model: The network, from tokens to logits.
      optimizer: The optimizer, such as `optax.adamw`.

    Raises:
      InputError: A setting is out of its range.

    References:
      Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023.
    """
    check_not_negative("scale", options.scale)
    loss_fn = token_loss(model)

    def objective(params, carry, batch, key):
        loss, _ = loss_fn(params, carry.model_state, batch.forget, train=True, key=key)
        return loss, (carry.model_state, {"loss_forget": loss})

    method = descend(
        objective,
        optimizer,
        batches=forget_epochs(options.batch_size, with_retain=False),
        reads=("forget",),
        aux=lambda key, params, model_state, data: trees.copy(params),
    )

    def finish(carry: Carry) -> tuple[Params, ModelState]:
        params = jax.tree.map(lambda before, after: before - options.scale * (after - before), carry.aux, carry.params)
        return params, carry.model_state

    return method._replace(finish=finish)
