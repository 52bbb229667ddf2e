"""What tests compare: trees bit by bit, and the learning rate in the state of an optimizer."""

import operator

import jax
import numpy as np
import optax

from scissorhands_jax import optimizers
from scissorhands_jax.base import PyTree


def same_bits(a: PyTree, b: PyTree) -> bool:
    """Says whether two trees hold bit-identical arrays, typed keys included."""
    return operator.eq(jax.tree.structure(a), jax.tree.structure(b)) and all(
        (x.shape, x.dtype) == (y.shape, y.dtype) and _bytes(x) == _bytes(y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _bytes(leaf: jax.Array) -> bytes:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf, order="C").tobytes()


def rate_of(opt_state: PyTree) -> jax.Array:
    """Returns the learning rate of the next update, shape=(), from the state of an `sgd` whose rate is a number."""
    rate = optax.tree_utils.tree_get(opt_state, "learning_rate")
    knots, factors = (optax.tree_utils.tree_get(opt_state, name) for name in ("knots", "factors"))
    if knots is None:
        return rate
    # Two states count updates, in step: the one of the hyperparameters and the one of the schedule.
    counts = [count for _, count in optax.tree_utils.tree_get_all_with_path(opt_state, "count")]
    return rate * optimizers.interpolate(counts[0], knots, factors)
