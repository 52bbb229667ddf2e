"""How much each weight matters for a set of examples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import (
    Key,
    LossFn,
    ModelState,
    Params,
    PyTree,
    Scores,
    Selection,
    StatefulLossFn,
    check_loss,
    lift,
    thawed,
)
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import weight_of


class GradientSum(NamedTuple):
    """The sum of gradients over one pass through several batches."""

    gradient: PyTree  # like Params, float32 or wider: the sum
    weight: jax.Array  # shape=(): the sum of the weights of the batches: `losses.weight_of`, or 1 each
    losses: jax.Array  # shape=(batches,): the mean loss of each batch
    model_state: ModelState  # the state that the last forward pass returned


def connection_sensitivity(loss_fn: LossFn, params: Params, batches: Iterable[PyTree]) -> Scores:
    """Computes the connection sensitivity of every weight, `|E[dL/dw] * w|`.

    This is the score of SNIP (Lee et al., 2019): the absolute value of equation 2 of the Scissorhands paper. Batches
    are weighted by their sizes, so that the expectation is over examples, whatever the sizes of the batches.

    Args:
      loss_fn: `(params, batch) -> mean loss of the batch`, a scalar. A loss with state becomes one by `base.freeze`;
        code that is compiled for it then serves every state.
      params: Any pytree of floating point arrays. Floats of Python count as arrays.
      batches: Pytrees of arrays with a leading example axis. They are read once, one at a time.

    Returns:
      A pytree of non-negative scores, float32 or wider, with the structure and shapes of `params`.

    Raises:
      InputError: There is no batch, JAX cannot take an array, a parameter is no real floating-point number, or the
        weights of the examples add up to 0.

    >>> import jax.numpy as jnp
    >>> loss = lambda w, x: jnp.mean(x @ w)
    >>> batches = [jnp.array([[1.0, 3.0]]), jnp.array([[3.0, 1.0]])]
    >>> connection_sensitivity(loss, jnp.array([1.0, -2.0]), batches).tolist()
    [2.0, 4.0]
    """
    general, model_state = thawed(lift(loss_fn), ())
    sums = gradient_sum(general, params, model_state, batches)
    return scores_of(sums, params)


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
      loss_fn: The general form of the loss. It is compiled once for each shape of batch.
      params: The parameters, with respect to which the loss is differentiated.
      model_state: The state of the first forward pass. Each pass hands the state that it returns to the next.
      batches: Pytrees of arrays with a leading example axis. They are read once, one at a time.
      train: Whether the network behaves as in training: BatchNorm then uses the statistics of the batch and moves the
        running ones.
      absolute: Whether to add `|gradient|` of each batch with weight 1, as the published code does.
      weighted: Whether the gradient of a batch is multiplied by the weight of the batch, so that every example counts
        as in one batch of all: the same, or as the task of the loss says (`losses.weight_of`). It has no effect
        together with `absolute`.
      key: A typed PRNG key for augmentation and dropout, which is folded with the position of the batch. By default
        nothing is random.

    Raises:
      InputError: There is no batch, JAX cannot take an array, a parameter is no real floating-point number, or the
        weights of the examples add up to 0.
    """
    measure = jnp.abs if absolute else None
    weighted = weighted and not absolute
    return _sum(loss_fn, params, model_state, batches, measure=measure, weighted=weighted, train=train, key=key)


def diagonal_fisher(
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    batches: Iterable[PyTree],
    *,
    key: Key | None = None,
) -> Scores:
    """Estimates the diagonal of the empirical Fisher information: the mean over batches of `(dL/dw)^2`.

    L is the mean loss of a batch, in evaluation mode, with the labels that the batch holds. With one example per batch
    this is the empirical Fisher information. For random batches of B examples, the expectation is `m^2 + v / B`, where
    m and v are the mean and the variance of the gradients of single examples. Published unlearning code takes such
    batches for speed; estimates from batches of different sizes are therefore not comparable.

    Args:
      loss_fn: The general form of the loss.
      params: The parameters, with respect to which the loss is differentiated.
      model_state: The state of the network, which evaluation does not move.
      batches: Pytrees of arrays with a leading example axis. They are read once, one at a time.
      key: A typed PRNG key, which is folded with the position of the batch, for a loss that draws in evaluation mode
        too, such as noise (`losses.drawing_key`). By default nothing is random.

    Returns:
      A pytree of non-negative scores, float32 or wider, with the structure and shapes of `params`.

    Raises:
      InputError: There is no batch, JAX cannot take an array, or a parameter is no real floating-point number.
    """
    sums = _sum(loss_fn, params, model_state, batches, measure=jnp.square, weighted=False, key=key)
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
    """Sums `measure(gradient)` over batches, or the gradient times the weight of its batch if there is no measure."""
    check_loss(loss_fn)
    data_lib.check_numbers(params, "the parameters")
    trees.check_trained(params, "the parameters")
    params = trees.as_arrays(params)
    if isinstance(batches, Mapping):
        raise InputError("the batches are a dict, which is one batch; give a list of batches, such as [batch]")
    total, weight, losses = _zeros(params), jnp.zeros((), jnp.float32), []
    for position, batch in enumerate(batches):
        data_lib.check_numbers(batch, f"batch {position}")
        batch_key = None if key is None else jax.random.fold_in(key, position)
        total, weight, loss, model_state = _add_gradient(
            loss_fn, total, weight, params, model_state, batch, batch_key, train, measure, weighted
        )
        losses.append(loss)
    if not losses:
        raise InputError("saliency was asked for without a batch of examples; give at least one")
    if weighted and not isinstance(weight, jax.core.Tracer) and not weight > 0:
        raise InputError(
            f"the weights of the examples that were scored add up to {float(weight):g}; give at least one of them a "
            "weight above 0"
        )
    return GradientSum(total, weight, jnp.stack(losses), model_state)


@functools.partial(
    jax.jit, static_argnames=("loss_fn", "train", "measure", "weighted"), donate_argnames=("total", "weight")
)
def _add_gradient(loss_fn, total, weight, params, model_state, batch, key, train, measure, weighted):
    def loss(p):
        return loss_fn(p, model_state, batch, train=train, key=key)

    (value, new_state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    # In half precision a square underflows and a long sum stops growing, so gradients are widened before either.
    gradient = jax.tree.map(lambda g: g.astype(_accumulator(g)), gradient)
    size = jnp.asarray(weight_of(loss_fn, batch) if weighted else 1, jnp.float32)
    gradient = jax.tree.map(measure or (lambda g: g * size.astype(g.dtype)), gradient)
    return jax.tree.map(jnp.add, total, gradient), weight + size, value, new_state


def _zeros(params: Params) -> PyTree:
    # Not under jit: `zeros_like` then gives the sums the sharding of the parameters, and no gradient is gathered.
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=_accumulator(leaf)), params)


def _accumulator(leaf: jax.Array) -> jnp.dtype:
    """The type in which gradients are summed: float32, or float64 for parameters of that type."""
    return jnp.promote_types(leaf.dtype, jnp.float32)


@jax.jit
def _divided(gradient: PyTree, weight: jax.Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), gradient)


@jax.jit
def _scores(gradient: PyTree, params: Params, weight: jax.Array) -> Scores:
    chex.assert_trees_all_equal_shapes(gradient, params)
    return jax.tree.map(lambda g, w: jnp.abs(g / weight.astype(g.dtype) * w), gradient, params)


def scores_of(sums: GradientSum, params: Params, *, absolute: bool = False) -> Scores:
    """Turns summed gradients into connection sensitivities.

    Args:
      sums: What `gradient_sum` returned.
      params: The parameters at which the gradients were taken.
      absolute: Whether absolute gradients were summed. As in the published code, their sum is not divided by the
        number of batches. By default the scores are those of the mean gradient.
    """
    weight = jnp.ones(()) if absolute else sums.weight
    return _scores(sums.gradient, trees.as_arrays(params), weight)


def check_finite(scores: Scores, rank: Selection | None = None) -> None:
    """Checks that all scores are finite. Only flags are copied to the host.

    Scores that jit, vmap or `shard_map` trace are not checked, because their numbers cannot be seen.

    Args:
      scores: A pytree of scores.
      rank: The arrays that are looked at, as `trees.select` returns them. By default all are.

    Raises:
      InputError: An array holds NaN or infinity, and the message names the first one; or `rank` is of another form.
    """
    found = {name for name, _ in trees.not_finite(scores)}
    if rank is not None:
        trees.check_selection(rank, scores)
    chosen = [True] * len(jax.tree.leaves(scores)) if rank is None else jax.tree.leaves(rank)
    for name, looked_at in zip(trees.leaf_names(scores), chosen, strict=True):
        if looked_at and name in found:
            raise InputError(
                f"the saliency of {name} is not finite; check the original weights, and the examples that were scored"
            )
