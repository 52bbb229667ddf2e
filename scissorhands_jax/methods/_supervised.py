"""Plain training on the retain set: what retraining and fine-tuning share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import (
    Batch,
    Carry,
    Data,
    Key,
    Method,
    ModelState,
    Params,
    StatefulLossFn,
    new_carry,
)
from scissorhands_jax.errors import InputError


def train_on_retain(
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    *,
    start: Callable[[Key, Params, ModelState], tuple[Params, ModelState]],
    batch_size: int,
) -> Method:
    """Minimises the retain loss from wherever `start(key, params, model_state)` begins."""
    data_lib.check_batch_size(batch_size)

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        if data_lib.size(data.retain) == 0:
            raise InputError("the retain set is empty; there is nothing to train on")
        start_key, step_key = jax.random.split(key)
        params, model_state = start(start_key, params, model_state)
        return new_carry(step_key, params, model_state, optimizer.init(params))

    def step(carry: Carry, batch: Batch):
        key = jax.random.fold_in(carry.key, carry.step)

        def loss(params):
            return loss_fn(params, carry.model_state, batch.retain, train=True, key=key)

        (value, model_state), gradient = jax.value_and_grad(loss, has_aux=True)(carry.params)
        updates, opt_state = optimizer.update(gradient, carry.opt_state, carry.params)
        carry = carry._replace(
            step=carry.step + 1,
            params=optax.apply_updates(carry.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        return carry, {"loss_retain": value, "grad_norm": trees.norm(gradient)}

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        order = data_lib.shuffled_batches(jax.random.fold_in(key, epoch), data_lib.size(data.retain), batch_size)
        return (Batch(retain=positions) for positions in order)

    return Method(init, step, batches)
