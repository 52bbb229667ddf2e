"""Masked re-initialisation: a mask-select between the weights and freshly drawn ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scissorhands_jax import trees
from scissorhands_jax.base import Key, Mask, Params, Selection
from scissorhands_jax.errors import InputError

Initializer = Callable[[Key, tuple[int, ...], jnp.dtype], jax.Array]


class ByName(NamedTuple):
    """An initializer that depends on the leaf's name."""

    choose: Callable[[str], Initializer]


def reinitialize(
    key: Key,
    params: Params,
    mask: Mask,
    *,
    initializer: Initializer | ByName,
    trim: Selection | None = None,
) -> Params:
    """Replaces the marked weights by fresh draws; the others stay bit-equal.

    Every leaf draws with `fold_in(key, position of the leaf)`, so a draw does not depend on the mask, on other leaves
    or on how the tree is sharded.

    Args:
      key: typed PRNG key.
      params: pytree of floating point arrays.
      mask: bools shaped like `params`; True is replaced.
      initializer: `(key, shape, dtype) -> array`, one of this module's, of `jax.nn.initializers`, or `ByName`.
      trim: leaves that may change; nothing is drawn for the others. Default: all.

    Returns:
      A new pytree like `params`.
    """

    def leaf(position, path, weights, marked, chosen):
        if not chosen:
            return weights
        draw = initializer.choose(trees.path_name(path)) if isinstance(initializer, ByName) else initializer
        fresh = _draw(draw, jax.random.fold_in(key, position), weights)
        return jnp.where(marked, fresh, weights)

    if trim is None:
        trim = trees.select(params, None)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    rows = zip(paths, trees.zip_leaves(params, mask, trim), strict=True)
    fresh = [leaf(position, path, *row) for position, (path, row) in enumerate(rows)]
    return jax.tree.unflatten(jax.tree.structure(params), fresh)


def _draw(initializer: Initializer, key: Key, weights: jax.Array) -> jax.Array:
    """Fresh weights that lie where the old ones do; with many devices each draws its own part."""
    traced = isinstance(weights, jax.core.Tracer)
    if jax.typeof(weights).sharding.mesh.explicit_axes:
        fresh = initializer(key, weights.shape, weights.dtype)
        return jax.sharding.reshard(fresh, jax.typeof(weights).sharding if traced else weights.sharding)
    if not traced and isinstance(weights, jax.Array) and len(weights.sharding.device_set) > 1:
        part = jax.jit(initializer, static_argnums=(1, 2), out_shardings=weights.sharding)
        return part(key, weights.shape, weights.dtype)
    return initializer(key, weights.shape, weights.dtype)


def uniform(bound: float | None = None, *, out_axis: int = -1) -> Initializer:
    """U(-bound, bound); by default bound = 1/sqrt(fan_in), as in the published code and PyTorch's own layers.

    `fan_in` is the product of all axes but `out_axis`; arrays with fewer than two axes have fan_in 1.
    """

    def init(key, shape, dtype=jnp.float32):
        limit = 1 / math.sqrt(_fan_in(shape, out_axis)) if bound is None else bound
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def kaiming_uniform(a: float = 0.0, *, out_axis: int = -1) -> Initializer:
    """PyTorch's `kaiming_uniform_`: U(-b, b) with b = sqrt(6 / ((1 + a^2) fan_in)); a = sqrt(5) equals `uniform()`."""

    def init(key, shape, dtype=jnp.float32):
        limit = math.sqrt(6 / ((1 + a**2) * _fan_in(shape, out_axis)))
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def normal(stddev: float | None = None, *, out_axis: int = -1) -> Initializer:
    """N(0, stddev^2); by default the variance of `uniform()`, 1 / (3 fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        scale = 1 / math.sqrt(3 * _fan_in(shape, out_axis)) if stddev is None else stddev
        return scale * jax.random.normal(key, shape, dtype)

    return init


def _filled(value: float) -> Initializer:
    def init(key, shape, dtype=jnp.float32):
        del key
        return jnp.full(shape, value, dtype)

    return init


def zeros() -> Initializer:
    """All zeros."""
    return _filled(0)


def ones() -> Initializer:
    """All ones (in the paper's Table 3 the choice that does not work)."""
    return _filled(1)


def published(*, out_axis: int = -1) -> ByName:
    """The published code's rule: biases become 0, all other leaves are drawn from `uniform()`."""
    return with_zero_biases(uniform(out_axis=out_axis))


def with_zero_biases(initializer: Initializer) -> ByName:
    """The same initializer, but for biases, which become 0."""
    return ByName(lambda name: zeros() if name.split("/")[-1] == "bias" else initializer)


INITIALIZERS: dict[str, Callable[[], Initializer]] = {
    "uniform": uniform,
    "normal": normal,
    "zeros": zeros,
    "ones": ones,
    "kaiming_uniform": kaiming_uniform,
}


def by_name(name: str) -> Initializer:
    """An initializer by its name in INITIALIZERS.

    Raises:
      InputError: there is none of that name.
    """
    if name not in INITIALIZERS:
        raise InputError(f"there is no initializer {name!r}; choose one of {', '.join(INITIALIZERS)}")
    return INITIALIZERS[name]()


def _fan_in(shape: tuple[int, ...], out_axis: int) -> int:
    if len(shape) < 2:
        return 1
    return max(1, math.prod(shape) // max(1, shape[out_axis]))
