"""Keeping an update from improving the forget loss: the dual problem and the gradient projection."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import trees
from scissorhands_jax.base import PyTree
from scissorhands_jax.errors import InputError

MAX_CONSTRAINTS = 10


def solve_dual(gram: jax.Array, dots: jax.Array, *, margin: float | jax.Array = 0.0) -> jax.Array:
    """Minimises `v' gram v / 2 - dots' v` over `v >= margin` (the paper's equation 5, for K constraints).

    With one constraint this is `v = max(margin, dots / gram)`. With more, the optimum has some components at the margin
    and the rest solves a linear system, so all 2^K choices are solved at once and the feasible one with the smallest
    objective wins: exact, of fixed shape, safe where `gram` is singular.

    Args:
      gram: inner products of the constraint gradients, positive semi-definite. shape=(K, K)
      dots: inner products of the objective's gradient with the constraint gradients. shape=(K,)
      margin: lower bound on every component.

    Returns:
      The dual variables v. shape=(K,)

    Raises:
      InputError: more than 10 constraints.

    >>> import jax.numpy as jnp
    >>> solve_dual(jnp.array([[4.0]]), jnp.array([2.0])).tolist()
    [0.5]
    >>> solve_dual(jnp.array([[4.0]]), jnp.array([-2.0])).tolist()
    [0.0]
    """
    chex.assert_rank(dots, 1)
    count = dots.shape[0]
    if count > MAX_CONSTRAINTS:
        raise InputError(f"at most {MAX_CONSTRAINTS} constraint gradients can be projected against, got {count}")
    chex.assert_shape(gram, (count, count))
    dtype = jnp.promote_types(jnp.result_type(gram, dots), jnp.float32)
    gram, dots = gram.astype(dtype), dots.astype(dtype)
    margin = jnp.asarray(margin, dtype)
    shifted = dots - gram @ jnp.broadcast_to(margin, (count,))
    if count == 1:
        square = gram[0, 0]
        free = jnp.where(square > 0, shifted / jnp.where(square > 0, square, 1), 0)
        return margin + jnp.maximum(free, 0)
    # In units in which every constraint has length 1 and the largest dot product is 1, so that no square underflows.
    length = jnp.sqrt(jnp.diagonal(gram))
    length = jnp.where(length > 0, length, 1)
    gram = gram / jnp.outer(length, length)
    shifted = shifted / length
    unit = jnp.max(jnp.abs(shifted))
    shifted = shifted / jnp.where(unit > 0, unit, 1)
    sets = jnp.asarray(np.array(list(itertools.product((False, True), repeat=count))))
    systems = jnp.where(sets[:, :, None] & sets[:, None, :], gram, jnp.eye(count, dtype=dtype))
    values = jnp.linalg.solve(systems, jnp.where(sets, shifted, 0)[:, :, None])[:, :, 0]
    feasible = jnp.all(jnp.isfinite(values) & (values >= 0), axis=1)
    values = jnp.where(feasible[:, None], values, 0)
    objective = 0.5 * jnp.einsum("sk,kl,sl->s", values, gram, values) - values @ shifted
    # Singular systems have huge solutions besides the ordinary ones; this breaks the tie against them.
    objective += jnp.finfo(dtype).eps * jnp.sum(values**2, axis=1)
    best = jnp.argmin(jnp.where(feasible & jnp.isfinite(objective), objective, jnp.inf))
    return margin + values[best] * unit / length


class ProjectGradientState(NamedTuple):
    """What the last projection did."""

    dots: jax.Array  # shape=(K,), float32: inner products before the projection; positive = violated
    dual: jax.Array  # shape=(K,), float32: zero where nothing was projected
    violated: jax.Array  # shape=(), bool


def project_gradient(
    num_constraints: int = 1, *, margin: float = 0.0, eps: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Projects a gradient so that a step along it does not improve the constrained losses.

    With constraint gradients c_k (gradients of the FORGET loss) the result is `g - sum_k v_k c_k`, where v solves the
    dual of `min |g' - g|^2 / 2 subject to <g', c_k> <= 0` (the paper's equations 4 and 5).

    Guarantees, at margin 0 and eps 0, up to rounding:
      * `<result, c_k> <= 0` for every k, and the result is the nearest such vector;
      * `v_k >= 0`, and `v_k > 0` only where `<result, c_k> = 0`;
      * projecting twice changes nothing more.

    | case | result |
    | --- | --- |
    | no `<g, c_k>` is positive | g, bit for bit |
    | c_k = 0, or its square underflows (norm below 1e-19 in float32) | that constraint is ignored |
    | margin > 0 and something is violated | every v_k is at least `margin`: an extra ascent step (published code) |

    It keeps its state apart from the optimizer's and goes before weight decay and momentum. To project some leaves
    only, wrap it: `optax.masked(project_gradient(1), selection, mask_compatible_extra_args=True)`.

    Args:
      num_constraints: K, the leading axis of every leaf of `constraint_grads`, at most 10.
      margin: lower bound on the dual variables once anything is violated; the published code has 0.5.
      eps: added to the diagonal of the Gram matrix; the published code has 1e-3.

    Returns:
      A transformation whose `update(updates, state, params=None, *, constraint_grads)` needs the constraint gradients
      as a keyword: a pytree like `updates` with leaves of shape (K, ...).

    Raises:
      InputError: `num_constraints` is below 1 or above 10, or `margin` or `eps` is negative.
    """
    if not 1 <= num_constraints <= MAX_CONSTRAINTS:
        raise InputError(f"num_constraints must be 1 to {MAX_CONSTRAINTS}, got {num_constraints}")
    if margin < 0 or eps < 0:
        raise InputError(f"margin and eps must not be negative, got margin {margin} and eps {eps}")

    def init(params):
        del params
        zeros = jnp.zeros((num_constraints,), jnp.float32)
        return ProjectGradientState(zeros, zeros, jnp.zeros((), bool))

    def update(updates, state, params=None, *, constraint_grads: PyTree, **extra_args):
        del state, params, extra_args
        dots = trees.stack_vdot(constraint_grads, updates)
        gram = trees.gram(constraint_grads)
        violated = jnp.any(dots > 0)
        dual = solve_dual(gram + eps * jnp.eye(num_constraints, dtype=gram.dtype), dots, margin=margin)
        dual = jnp.where(violated, dual, 0)

        def subtract(g, rows):
            chex.assert_shape(rows, (num_constraints, *g.shape))
            wide = g.astype(jnp.promote_types(g.dtype, dual.dtype))
            projected = wide - jnp.tensordot(dual, rows.astype(dual.dtype), 1, precision="highest")
            return jnp.where(violated, projected.astype(g.dtype), g)

        return jax.tree.map(subtract, updates, constraint_grads), ProjectGradientState(dots, dual, violated)

    return optax.GradientTransformationExtraArgs(init, update)
