"""How much each weight matters for a set of examples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scissorhands_jax import trees
from scissorhands_jax.base import Key, LossFn, ModelState, Params, PyTree, Scores, StatefulLossFn, lift
from scissorhands_jax.errors import InputError


class GradientSum(NamedTuple):
    """What one pass over some batches gives."""

    gradient: PyTree  # like Params, float32 or wider
    weight: jax.Array  # shape=(): number of examples; of batches where these are not weighted
    losses: jax.Array  # shape=(batches,): the mean loss of each batch
    model_state: ModelState  # as the last forward pass left it


def connection_sensitivity(loss_fn: LossFn, params: Params, batches: Iterable[PyTree]) -> Scores:
    """The connection sensitivity of every weight, `|E[dL/dw] * w|` (SNIP; the Scissorhands paper, equation 2).

    Batches are weighted by their size, so that the expectation is over examples whatever the batch sizes.

    Args:
      loss_fn: `(params, batch) -> mean loss`, shape=().
      params: any pytree of floating point arrays.
      batches: pytrees of arrays with a leading example axis; consumed once.

    Returns:
      A pytree of non-negative scores, shaped like `params`.

    Raises:
      InputError: there is no batch.

    >>> import jax.numpy as jnp
    >>> loss = lambda w, x: jnp.mean(x @ w)
    >>> batches = [jnp.array([[1.0, 3.0]]), jnp.array([[3.0, 1.0]])]
    >>> connection_sensitivity(loss, jnp.array([1.0, -2.0]), batches).tolist()
    [2.0, 4.0]
    """
    sums = gradient_sum(lift(loss_fn), params, (), batches)
    return _scores(sums.gradient, params, sums.weight)


def gradient_sum(
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    batches: Iterable[PyTree],
    *,
    train: bool = False,
    absolute: bool = False,
    weighted: bool = True,
    key: Key | None = None,
) -> GradientSum:
    """Adds up the gradients of several batches in one pass.

    Args:
      loss_fn: the general form; compiled once per batch shape.
      params: what is differentiated.
      model_state: where the first forward pass starts; with `train` each pass hands its state to the next.
      batches: pytrees of arrays with a leading example axis.
      train: whether forward passes use and move batch statistics.
      absolute: add `|gradient|` of each batch with weight one, as the published code does, instead of the gradient.
      weighted: weight gradients by the size of their batch, so that every example counts the same.
      key: folded with the batch's position, for augmentation and dropout.

    Raises:
      InputError: there is no batch.
    """
    measure = jnp.abs if absolute else None
    weighted = weighted and not absolute
    return _sum(loss_fn, params, model_state, batches, measure=measure, weighted=weighted, train=train, key=key)


def diagonal_fisher(
    loss_fn: StatefulLossFn, params: Params, model_state: ModelState, batches: Iterable[PyTree]
) -> Scores:
    """The diagonal of the empirical Fisher information: the mean over batches of `(dL/dw)^2`, in evaluation mode.

    L is the mean loss of a batch, with the labels that it holds. With one example per batch this is the Fisher
    information of the examples. A random batch of B has the mean `m^2 + v / B`, with m and v the mean and the variance
    of the gradients of examples; published unlearning code takes such batches for speed. Estimates from batches of
    different sizes therefore do not compare.

    Returns:
      A pytree of non-negative scores shaped like `params`, float32 or wider.

    Raises:
      InputError: there is no batch.
    """
    sums = _sum(loss_fn, params, model_state, batches, measure=jnp.square, weighted=False)
    return _divided(sums.gradient, sums.weight)


def _sum(
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    batches: Iterable[PyTree],
    *,
    measure: Callable[[jax.Array], jax.Array] | None,
    weighted: bool,
    train: bool = False,
    key: Key | None = None,
) -> GradientSum:
    """The sum over batches of the measured gradient, or of the gradient times the size of its batch if weighted."""
    total, weight, losses = _zeros(params), jnp.zeros((), jnp.float32), []
    for position, batch in enumerate(batches):
        batch_key = None if key is None else jax.random.fold_in(key, position)
        size = jax.tree.leaves(batch)[0].shape[0] if weighted else 1
        total, weight, loss, model_state = _add_gradient(
            loss_fn, total, weight, params, model_state, batch, jnp.float32(size), batch_key, train, measure
        )
        losses.append(loss)
    if not losses:
        raise InputError("saliency needs at least one batch of examples, got none")
    return GradientSum(total, weight, jnp.stack(losses), model_state)


@functools.partial(jax.jit, static_argnames=("loss_fn", "train", "measure"), donate_argnames=("total", "weight"))
def _add_gradient(loss_fn, total, weight, params, model_state, batch, size, key, train, measure):
    def loss(p):
        return loss_fn(p, model_state, batch, train=train, key=key)

    (value, new_state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    gradient = jax.tree.map(lambda g: g.astype(_accumulator(g)), gradient)
    gradient = jax.tree.map(measure or (lambda g: g * size.astype(g.dtype)), gradient)
    return jax.tree.map(jnp.add, total, gradient), weight + size, value, new_state


def _zeros(params: Params) -> PyTree:
    # Outside of jit, where they come to lie like the parameters on many devices.
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=_accumulator(leaf)), params)


def _accumulator(leaf: jax.Array) -> jnp.dtype:
    return jnp.promote_types(leaf.dtype, jnp.float32)


@jax.jit
def _divided(gradient: PyTree, weight: jax.Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), gradient)


@jax.jit
def _scores(gradient: PyTree, params: Params, weight: jax.Array) -> Scores:
    chex.assert_trees_all_equal_shapes(gradient, params)
    return jax.tree.map(lambda g, w: jnp.abs(g / weight.astype(g.dtype) * w), gradient, params)


def scores_of(sums: GradientSum, params: Params, *, absolute: bool = False) -> Scores:
    """Scores from summed gradients: of the mean gradient, or of the plain sum of absolute ones (published code)."""
    weight = jnp.ones(()) if absolute else sums.weight
    return _scores(sums.gradient, params, weight)


@jax.jit
def _all_finite(scores: Scores) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), scores)


def check_finite(scores: Scores) -> None:
    """Raises InputError naming the first array whose scores are not all finite. Reads one flag per array."""
    flags = jax.device_get(_all_finite(scores))
    for name, finite in zip(trees.leaf_names(scores), jax.tree.leaves(flags), strict=True):
        if not finite:
            raise InputError(
                f"the saliency of {name} is not finite; check the original weights and the forget examples"
            )
