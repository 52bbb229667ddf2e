"""The two gradients of a joint step: of the retain and of the forget batch at the same parameters."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from scissorhands_jax import losses, microbatches
from scissorhands_jax.base import (
    Batch,
    Key,
    ModelState,
    Params,
    PyTree,
    StatefulLossFn,
)
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
) -> tuple[tuple[jax.Array, jax.Array], Params, Params, ModelState]:
    """Losses and gradients of the retain and of the forget batch at the same parameters.

    Both are training passes with their own batch statistics; running statistics move twice, retain first. "vmap"
    computes both at once and gives the same statistics, provided that the state's update is affine in the state, as
    running averages and counters are.

    Returns:
      `((retain loss, forget loss), retain gradient, forget gradient, model_state)`.
    """
    retain_key, forget_key = split_key(key)
    if pair == "auto":
        pair = choose_pair(loss_fn, params, model_state, batch, retain_key)
    if pair == "vmap" and _same_shapes(batch.retain, batch.forget) and _is_numeric(model_state):
        return _pair_vmapped(loss_fn, params, model_state, batch, key, retain_key, forget_key)

    def loss(p, state, examples, k):
        return loss_fn(p, state, examples, train=True, key=k)

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True), inline=True)  # traced once for batches of one size
    (retain_loss, model_state), retain_grad = grad(params, model_state, batch.retain, retain_key)
    forget = microbatches.after(retain_grad, batch.forget)
    (forget_loss, model_state), forget_grad = grad(params, model_state, forget, forget_key)
    return (retain_loss, forget_loss), retain_grad, forget_grad, model_state


def choose_pair(
    loss_fn: StatefulLossFn, params: Params, model_state: ModelState, batch: Batch, key: Key | None
) -> Literal["vmap", "sequential"]:
    """Which way of computing the two gradients is the faster one here.

    Gradients of weights under vmap become grouped convolutions: measured on CPU, 2.4 to 2.6 times slower for ResNets.
    So: one after the other on CPU, for networks with convolutions and in microbatches, vmap for the rest on
    accelerators.
    """
    if jax.default_backend() == "cpu" or not _same_shapes(batch.retain, batch.forget):
        return "sequential"
    if losses.microbatches_of(loss_fn) > 1:
        return "sequential"

    def loss(p):
        return loss_fn(p, model_state, batch.retain, train=True, key=key)[0]

    return "sequential" if microbatches.has_convolution(loss, params) else "vmap"


def _pair_vmapped(loss_fn, params, model_state, batch, key, retain_key, forget_key):
    stacked = jax.tree.map(lambda r, f: jnp.stack([r, f]), batch.retain, batch.forget)
    keys = None if key is None else jnp.stack([retain_key, forget_key])

    def loss(p, examples, k):
        return loss_fn(p, model_state, examples, train=True, key=k)

    (losses, states), gradients = jax.vmap(
        jax.value_and_grad(loss, has_aux=True), in_axes=(None, 0, None if key is None else 0)
    )(params, stacked, keys)

    def advance(state):
        return loss_fn(params, state, batch.forget, train=True, key=forget_key)[1]

    # The forget pass should have started from the state that the retain pass left. For an affine update the
    # difference is its linear part applied to what the retain pass moved; only that part survives compilation.
    floats = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact), model_state)
    moved = jax.tree.map(lambda after, before: after[0] - before, states, model_state)
    tangent = jax.tree.map(
        lambda is_float, leaf: leaf if is_float else jnp.zeros(leaf.shape, jax.dtypes.float0), floats, moved
    )
    _, shift = jax.jvp(advance, (model_state,), (tangent,))
    new_state = jax.tree.map(
        lambda is_float, after, linear, difference: after[1] + (linear if is_float else difference),
        floats,
        states,
        shift,
        moved,
    )
    retain_grad, forget_grad = (jax.tree.map(lambda leaf, i=i: leaf[i], gradients) for i in (0, 1))
    return (losses[0], losses[1]), retain_grad, forget_grad, new_state


def _is_numeric(tree: PyTree) -> bool:
    """Whether every array can be added to: flags and keys cannot, and are no running averages."""
    return all(jnp.issubdtype(leaf.dtype, jnp.number) for leaf in jax.tree.leaves(tree))


def _same_shapes(a: PyTree, b: PyTree) -> bool:
    return jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)
