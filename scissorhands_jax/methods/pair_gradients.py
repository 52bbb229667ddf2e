"""The two gradients of a joint step: of the retain and of the forget batch at the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from scissorhands_jax import losses, microbatches, trees
from scissorhands_jax.base import Batch, Key, ModelState, Params, PyTree, StatefulLossFn
from scissorhands_jax.errors import InputError, check_choice
from scissorhands_jax.methods._gradient import split_key

Pair = Literal["auto", "vmap", "sequential"]


def pair_gradients(
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    batch: Batch,
    key: Key | None,
    *,
    pair: Pair = "auto",
    forget_moves_state: bool = False,
) -> tuple[tuple[jax.Array, jax.Array], Params, Params, ModelState]:
    """Losses and gradients of the retain and of the forget batch at the same parameters, both in training mode.

    Both passes start from the same `model_state`. The new state is the one that the retain pass leaves; the one of the
    forget pass is dropped, so that the forget examples leave no trace in running statistics. "vmap" and "sequential"
    therefore compute the same thing for every kind of state: running averages, power iterations, counters, flags, keys.

    Args:
      loss_fn: The general form of the loss, a mean over a batch.
      params: The parameters at which both gradients are taken.
      model_state: The state that both passes start from.
      batch: Examples in both of its parts.
      key: The typed PRNG key of the step, from which each pass gets a key of its own; None where nothing is random.
      pair: "vmap" computes both at once over the stacked batches, "sequential" one after the other with the memory of
        one pass. "auto" takes what is faster here (`choose_pair`). Batches whose shapes or types differ cannot be
        stacked, so they are always computed one after the other.
      forget_moves_state: True is the published code of Scissorhands: the forget pass starts from the state that the
        retain pass left and moves it again. The passes are then always computed one after the other.

    Returns:
      `((retain loss, forget loss), retain gradient, forget gradient, new model state)`.
    """
    retain_key, forget_key = split_key(key)
    if pair == "auto":
        pair = choose_pair(loss_fn, params, batch)

    def loss(params, state, examples, key):
        return loss_fn(params, state, examples, train=True, key=key)

    gradient = jax.value_and_grad(loss, has_aux=True)
    if pair == "vmap" and not forget_moves_state and _can_be_stacked(batch.retain, batch.forget):
        keys = None if retain_key is None or forget_key is None else jnp.stack([retain_key, forget_key])
        return _pair_vmapped(gradient, params, model_state, batch, keys)
    gradient = jax.jit(gradient, inline=True)  # traced once for batches of one size
    (retain_loss, new_state), retain_grad = gradient(params, model_state, batch.retain, retain_key)
    examples = microbatches.after(retain_grad, batch.forget)
    before = new_state if forget_moves_state else model_state
    (forget_loss, after_forget), forget_grad = gradient(params, before, examples, forget_key)
    return (retain_loss, forget_loss), retain_grad, forget_grad, after_forget if forget_moves_state else new_state


def check_pair(pair: Pair, loss_fn: StatefulLossFn) -> None:
    """Refuses a way of computing two gradients that is unknown, or that the loss does not allow.

    Raises:
      InputError: There is no such way, or it is "vmap" and the loss computes batches in parts.
    """
    check_choice("pair", pair, get_args(Pair))
    if pair == "vmap" and losses.microbatches_of(loss_fn) > 1:
        raise InputError("pair = vmap computes two whole batches at once; with microbatches take sequential")


def choose_pair(loss_fn: StatefulLossFn, params: Params, batch: Batch) -> Literal["vmap", "sequential"]:
    """Which way of computing the two gradients is expected to be faster.

    Under `vmap` the gradients of convolution kernels become grouped convolutions (2.4 to 2.6 times slower for ResNets,
    measured on CPU). So the answer is "vmap" only on accelerators, for networks without kernels over images and batches
    of equal shapes and types that are not computed in microbatches.

    Args:
      loss_fn: The loss, which knows whether it computes batches in parts.
      params: The parameters; only the shapes of the arrays are used.
      batch: The batch; only the shapes and types of the arrays are used.
    """
    if jax.default_backend() == "cpu" or losses.microbatches_of(loss_fn) > 1 or trees.has_image_kernels(params):
        return "sequential"
    return "vmap" if _can_be_stacked(batch.retain, batch.forget) else "sequential"


def _pair_vmapped(
    gradient: Callable, params: Params, model_state: ModelState, batch: Batch, keys: Key | None
) -> tuple[tuple[jax.Array, jax.Array], Params, Params, ModelState]:
    stacked = jax.tree.map(lambda retain, forget: jnp.stack([retain, forget]), batch.retain, batch.forget)
    in_axes = (None, None, 0, None if keys is None else 0)
    (values, states), gradients = jax.vmap(gradient, in_axes)(params, model_state, stacked, keys)
    retain_grad, forget_grad = (jax.tree.map(lambda leaf, row=row: leaf[row], gradients) for row in (0, 1))
    return (values[0], values[1]), retain_grad, forget_grad, jax.tree.map(lambda leaf: leaf[0], states)


def _can_be_stacked(a: PyTree, b: PyTree) -> bool:
    """Whether two batches agree in shapes, and in types, which a stack would make one."""

    def form(leaf):
        return jnp.shape(leaf), getattr(leaf, "dtype", type(leaf))

    return jax.tree.map(form, a) == jax.tree.map(form, b)
