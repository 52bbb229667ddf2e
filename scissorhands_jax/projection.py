"""Keeping a gradient from improving the forget loss to first order: its projection, and the dual problem."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import trees
from scissorhands_jax.base import PyTree
from scissorhands_jax.errors import InputError, check_not_negative

MAX_CONSTRAINTS = 10  # `solve_dual` solves 2^K linear systems.


def solve_dual(gram: jax.Array, dots: jax.Array, *, margin: float | jax.Array = 0.0) -> jax.Array:
    """Minimises `v' gram v / 2 - dots' v` over `v >= margin`: equation 5 of the paper, for K constraints.

    With one constraint the solution is `v = max(margin, dots / gram)`. With more, some components of the solution lie
    at the margin and the rest solve a linear system. So all 2^K choices of these components are solved at once, and
    the feasible one with the smallest objective is taken. That is exact, has a fixed shape, as jit requires, and also
    holds where `gram` is singular.

    Args:
      gram: The inner products of the constraint gradients, of shape (K, K); positive semi-definite.
      dots: The inner products of the objective's gradient with the constraint gradients, of shape (K,).
      margin: The lower bound on the components, one for all or of shape (K,). The default, 0, is that of the paper.

    Returns:
      The dual variables v, of shape (K,) and at least float32. They are NaN where `gram` holds NaN or infinity.

    Raises:
      InputError: There are more than 10 constraints, or `gram` or `dots` is complex.

    >>> import jax.numpy as jnp
    >>> solve_dual(jnp.array([[4.0]]), jnp.array([2.0])).tolist()
    [0.5]
    >>> solve_dual(jnp.array([[4.0]]), jnp.array([-2.0])).tolist()
    [0.0]
    """
    chex.assert_rank(dots, 1)
    count = dots.shape[0]
    if count > MAX_CONSTRAINTS:
        raise InputError(f"there are {count} constraint gradients to project against; give at most {MAX_CONSTRAINTS}")
    chex.assert_shape(gram, (count, count))
    _check_real({"gram": gram, "dots": dots})
    dtype = jnp.promote_types(jnp.result_type(gram, dots), jnp.float32)
    gram, dots = gram.astype(dtype), dots.astype(dtype)
    margin = jnp.asarray(margin, dtype)
    # With v = margin + u the problem has the same form in u, with u >= 0 and these dot products.
    shifted = dots - gram @ jnp.broadcast_to(margin, (count,))
    if count == 1:
        square = gram[0, 0]
        # The inner `where` keeps a division by zero, and so NaN, out of the branch that is not taken.
        free = jnp.where(square > 0, shifted / jnp.where(square > 0, square, 1), 0)
        return _unless_broken(gram, margin + jnp.maximum(free, 0))
    # Squared gradients range over many orders of magnitude. In units in which every constraint has length 1 and the
    # largest dot product is 1, no square underflows.
    square = jnp.diagonal(gram)
    length = jnp.sqrt(jnp.where(square > 0, square, 1))  # the root of 0 has no derivative
    gram = gram / jnp.outer(length, length)
    shifted = shifted / length
    unit = jnp.max(jnp.abs(shifted))
    shifted = shifted / jnp.where(unit > 0, unit, 1)
    # Each row is a choice of free components. Rows and columns of the others are those of the identity and their
    # right-hand side is 0, so that all systems have one size and the components at the margin come out as u = 0.
    free = jnp.asarray(np.array(list(itertools.product((False, True), repeat=count))))
    systems = jnp.where(free[:, :, None] & free[:, None, :], gram, jnp.eye(count, dtype=dtype))
    # Singular systems are not needed: with linearly dependent constraints a smaller set of free components reaches the
    # same objective. The first row, u = 0, is always feasible. They are not solved, as that would divide zero by zero.
    singular = jnp.any(jnp.diagonal(jax.lax.linalg.lu(systems)[0], axis1=1, axis2=2) == 0, axis=1)
    systems = jnp.where(singular[:, None, None], jnp.eye(count, dtype=dtype), systems)
    values = jnp.linalg.solve(systems, jnp.where(free, shifted, 0)[:, :, None])[:, :, 0]
    feasible = ~singular & jnp.all(jnp.isfinite(values) & (values >= 0), axis=1)
    values = jnp.where(feasible[:, None], values, 0)
    objective = 0.5 * jnp.einsum("sk,kl,sl->s", values, gram, values) - values @ shifted
    # A nearly singular system can have a huge solution with the same objective to rounding as an ordinary one. A
    # penalty of the size of the rounding error breaks the tie in favour of the small solution.
    objective += jnp.finfo(dtype).eps * jnp.sum(values**2, axis=1)
    best = jnp.argmin(jnp.where(feasible & jnp.isfinite(objective), objective, jnp.inf))
    return _unless_broken(gram, margin + values[best] * unit / length)


def _unless_broken(gram: jax.Array, dual: jax.Array) -> jax.Array:
    """The dual variables, or NaN where the Gram matrix is not finite."""
    return jnp.where(_is_finite(gram), dual, jnp.sum(gram * 0))


def _is_finite(gram: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(gram))


class ProjectGradientState(NamedTuple):
    """What the last projection did, for the metrics of a step."""

    dots: jax.Array  # shape=(K,), float32: inner products before the projection; a positive one is violated
    dual: jax.Array  # shape=(K,), float32: zero where nothing was projected
    violated: jax.Array  # shape=(), bool


def project_gradient(
    num_constraints: int = 1,
    *,
    margin: float | jax.Array = 0.0,
    eps: float | jax.Array = 0.0,
    axis_name: str | Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that projects a gradient so that, to first order, no constrained loss improves along it.

    With constraint gradients c_k, here gradients of the forget loss, the result is `g - sum_k v_k c_k`, where v solves
    the dual of `min |g' - g|^2 / 2 subject to <g', c_k> <= 0`: equations 4 and 5 of the paper.

    Guarantees, at margin 0 and eps 0, up to rounding:
      * `<result, c_k> <= 0` for every k, and the result is the nearest such vector;
      * `v_k >= 0`, and `v_k > 0` only where `<result, c_k> = 0`;
      * projecting the result again does not change it.

    | case | result |
    | --- | --- |
    | no `<g, c_k>` is positive | g, bit for bit |
    | c_k = 0, or all its entries lie below 1.2e-38, in float32 | that constraint is ignored |
    | c_k holds NaN or infinity | NaN |
    | g and c_k are trees without arrays, as for a label of `optax.partition` that no leaf has | g |
    | margin > 0 and something is violated | every v_k is at least `margin`: an extra ascent step (published code) |

    Put it before weight decay and momentum, and keep its state apart from the optimizer's if some steps skip the
    projection. Inside `optax.masked` and `optax.partition` it projects the leaves that it is given; the constraint
    gradients may be whole or masked alike. Under `optax.inject_hyperparams`, which can set `margin` and `eps`, name
    `num_constraints` and `axis_name` in `static_args`. Under `optax.MultiSteps` the constraint gradients of the last
    small step count.

    Args:
      num_constraints: K, the length of the leading axis of every leaf of `constraint_grads`; at most 10.
      margin: The lower bound on the dual variables once a constraint is violated. The default, 0, is that of the
        paper; the published code has 0.5.
      eps: A number that is added to the diagonal of the Gram matrix. The published code has 1e-3.
      axis_name: Only for the inside of `jax.shard_map`: the mesh axes along which leaves are sharded. The inner
        products are then summed over them, so that each device projects its shards as the whole gradient would be. A
        leaf that does not vary along an axis counts once, which `shard_map` keeps track of unless `check_vma` is
        False; then all leaves must be shards. `()` says that every device has whole gradients. The default, None, is
        refused inside `shard_map`.

    Returns:
      A transformation whose `update(updates, state, params=None, *, constraint_grads)` requires the constraint
      gradients as a keyword: a pytree like `updates` with leaves of shape (K, ...).

    Raises:
      InputError: `num_constraints` is below 1 or above 10, or `margin` or `eps` is negative or infinite. `update`
        raises it if a gradient is complex or constraint gradients do not fit, or inside `shard_map` without
        `axis_name`, or with one that it does not have.
    """
    _check_settings(num_constraints, margin, eps)
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name

    def init(params):
        del params
        zeros = jnp.zeros((num_constraints,), jnp.float32)
        return ProjectGradientState(zeros, zeros, jnp.zeros((), bool))

    def update(updates, state, params=None, *, constraint_grads: PyTree, **extra_args):
        del state, params, extra_args
        _check_axes(axes)
        constraint_grads = _check_constraints(constraint_grads, updates, num_constraints)
        _check_real({"the gradient": updates, "constraint_grads": constraint_grads})
        if not jax.tree.leaves(updates):
            return updates, init(updates)
        scale = _scales(constraint_grads, eps, axes)
        constraint_grads = _scaled(constraint_grads, scale)
        dots = _summed(trees.stack_vdot, (constraint_grads, updates), axes)
        gram = _summed(trees.gram, (constraint_grads,), axes)
        # A constraint that is not finite counts as violated, so that it shows.
        violated = jnp.any(dots > 0) | ~_is_finite(gram)
        # Margin and eps are put into the units of the scaled constraints too.
        added = (eps * scale * scale).astype(gram.dtype)
        dual = solve_dual(gram + jnp.diag(added), dots, margin=margin / scale)
        # A positive margin bounds v only once something is violated; otherwise nothing is projected.
        dual = jnp.where(violated, dual, 0)

        def subtract(g, rows):
            # In half precision the difference of two nearly equal vectors would be mostly rounding error.
            wide = g.astype(jnp.promote_types(g.dtype, dual.dtype))
            projected = wide - jnp.tensordot(dual, rows.astype(dual.dtype), 1, precision="highest")
            return jnp.where(violated, projected.astype(g.dtype), g)

        # In one type whatever the gradients are in, so that a loop can carry it.
        state = ProjectGradientState((dots / scale).astype(jnp.float32), (dual * scale).astype(jnp.float32), violated)
        return jax.tree.map(subtract, updates, constraint_grads), state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_settings(num_constraints: Any, margin: Any, eps: Any) -> None:
    """Refuses settings that are out of range. Numbers that jit traces cannot be looked at."""
    if not isinstance(num_constraints, int | np.integer):
        raise InputError(
            f"num_constraints is a shape and must be an integer, got {num_constraints!r}; with "
            "optax.inject_hyperparams name it in static_args"
        )
    if not 1 <= num_constraints <= MAX_CONSTRAINTS:
        raise InputError(f"num_constraints must be 1 to {MAX_CONSTRAINTS}, got {num_constraints}")
    for name, number in (("margin", margin), ("eps", eps)):
        if not isinstance(number, jax.core.Tracer):
            check_not_negative(name, number)


def _check_axes(axes: Sequence[str] | None) -> None:
    """Refuses to project inside `shard_map` without a word on what the arrays there are.

    Raises:
      InputError: `axes` is None inside `shard_map`, or names an axis that is not one of its own.
    """
    manual = trees.manual_axes()
    if axes is None and manual:
        raise InputError(
            f"inside shard_map over {', '.join(map(repr, manual))} a gradient may be one shard of many; give "
            "project_gradient axis_name=, the axes that leaves are sharded along, or axis_name=() if none is"
        )
    unknown = [axis for axis in axes or () if axis not in manual]
    if unknown:
        raise InputError(
            f"axis_name names {', '.join(map(repr, unknown))}, but the axes of shard_map here are "
            f"{', '.join(map(repr, manual)) or 'none'}"
        )


def _check_constraints(constraint_grads: PyTree, updates: PyTree, num_constraints: int) -> PyTree:
    """Returns the constraint gradients of the leaves that `updates` has, without those that optax has masked.

    Raises:
      InputError: They have other leaves or other shapes.
    """
    try:
        kept = jax.tree.map(
            lambda leaf, rows: leaf if trees.is_placeholder(leaf) else rows,
            updates,
            constraint_grads,
            is_leaf=trees.is_placeholder,
        )
    except ValueError as error:
        raise InputError(f"constraint_grads is another tree than the gradient: {error}") from error
    names = trees.leaf_names(updates)
    for name, (leaf, found) in zip(names, trees.zip_leaves(updates, kept), strict=True):
        expected = (num_constraints, *jnp.shape(leaf))
        if not hasattr(found, "shape") or found.shape != expected:
            raise InputError(
                f"constraint_grads has {_described(found)} for {name or 'the gradient'} and needs "
                f"shape {expected}; its leaves are those of the gradient with a leading axis of num_constraints = "
                f"{num_constraints}"
            )
    return kept


def _check_real(named: dict[str, PyTree]) -> None:
    """Refuses complex numbers, of whose products only the real part would be an inner product."""
    for what, tree in named.items():
        for name, leaf in zip(trees.leaf_names(tree), jax.tree.leaves(tree), strict=True):
            if jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.complexfloating):
                at = f" at {name}" if name else ""
                raise InputError(
                    f"{what} is {dtype}{at}, and only real numbers are projected; give real and imaginary parts as "
                    "arrays of their own"
                )


def _described(value: Any) -> str:
    return f"shape {value.shape}" if hasattr(value, "shape") else f"a {type(value).__name__}"


def _scales(constraint_grads: PyTree, eps: float | jax.Array, axes: Sequence[str] | None) -> jax.Array:
    """For each constraint a power of two with which its largest entry lies near 1, so that no square overflows.

    A projection does not depend on the lengths of its constraints, and multiplication by powers of two rounds nothing.
    What `eps` outweighs is not made larger than that needs. One that is not finite gets 1. shape=(K,), float32
    or wider
    """

    def largest(stack):
        leaves = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(stack)]
        tops = [jnp.max(jnp.abs(leaf), axis=tuple(range(1, leaf.ndim)), initial=0) for leaf in leaves]
        return functools.reduce(jnp.maximum, tops)

    held = jax.lax.stop_gradient(constraint_grads)
    top = _over_shards(largest, (held,), axes, jnp.maximum, jax.lax.pmax)
    top = jnp.maximum(top, jnp.sqrt(jax.lax.stop_gradient(jnp.asarray(eps, top.dtype))))
    limit = -int(jnp.finfo(top.dtype).minexp)
    exponent = jnp.clip(jnp.frexp(jnp.where(jnp.isfinite(top), top, 0))[1], -limit, limit)
    return jnp.ldexp(jnp.ones_like(top), -exponent)


def _scaled(constraint_grads: PyTree, scale: jax.Array) -> PyTree:
    """The constraints times their scales, in the types that they have where these can hold the scales."""

    def times(leaf):
        if jnp.finfo(leaf.dtype).minexp > jnp.finfo(scale.dtype).minexp:
            leaf = leaf.astype(scale.dtype)
        return leaf * scale.astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))

    return jax.tree.map(times, constraint_grads)


def _summed(product: Callable[..., jax.Array], operands: tuple[PyTree, ...], axes: Sequence[str] | None) -> jax.Array:
    """Computes a sum over the leaves of trees of one structure, and over the shards along mesh axes."""
    return _over_shards(product, operands, axes, jnp.add, jax.lax.psum)


def _over_shards(
    function: Callable[..., jax.Array],
    operands: tuple[PyTree, ...],
    axes: Sequence[str] | None,
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    collective: Callable[[jax.Array, tuple[str, ...]], jax.Array],
) -> jax.Array:
    """Combines what a function says of the leaves of trees of one structure, and of their shards along mesh axes.

    Leaves are grouped by the axes that they vary along, since a leaf that is whole on every device counts once.
    """
    if not axes:
        return function(*operands)
    groups: dict[tuple[str, ...], list[tuple[jax.Array, ...]]] = {}
    rows = list(zip(*map(jax.tree.leaves, operands), strict=True))
    varying = [frozenset().union(*map(trees.varying_axes, row)) for row in rows]
    tracked = any(varying)
    for row, found in zip(rows, varying, strict=True):
        along = tuple(axis for axis in axes if not tracked or axis in found)
        groups.setdefault(along, []).append(row)
    found_by = {along: function(*map(list, zip(*members, strict=True))) for along, members in groups.items()}
    return functools.reduce(combine, [collective(one, along) if along else one for along, one in found_by.items()])
