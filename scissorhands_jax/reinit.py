"""Masked re-initialisation: marked weights are replaced by freshly drawn ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scissorhands_jax import trees
from scissorhands_jax.base import Key, Mask, Params, Selection
from scissorhands_jax.errors import InputError, suggest

Initializer = Callable[[Key, tuple[int, ...], jnp.dtype], jax.Array]
"""A function `(key, shape, dtype) -> array`, as in `jax.nn.initializers`."""


class ByName(NamedTuple):
    """A choice of initializer for each leaf by the name of the leaf, such as `layer1/0/conv1/kernel`."""

    choose: Callable[[str], Initializer]


def reinitialize(
    key: Key,
    params: Params,
    mask: Mask,
    *,
    initializer: Initializer | ByName,
    trim: Selection | None = None,
) -> Params:
    """Replaces the marked weights by fresh draws. The other weights stay the same, bit for bit.

    Every leaf draws with `fold_in(key, position of the leaf)`, so a draw does not depend on the mask, on other leaves,
    or on how the tree is sharded.

    Args:
      key: A typed PRNG key.
      params: A pytree of floating point arrays.
      mask: A pytree of bools with the structure and shapes of `params`. Weights marked True are replaced.
      initializer: `(key, shape, dtype) -> array`, one from this module or from `jax.nn.initializers`; or `ByName`, for
        a choice by the name of the leaf.
      trim: The leaves that may change, as `trees.select` returns them. Nothing is drawn for the others. By default
        all leaves may change.

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
    """Draws fresh weights with the sharding of the old ones. On several devices, each draws its own part."""
    traced = isinstance(weights, jax.core.Tracer)
    if jax.typeof(weights).sharding.mesh.explicit_axes:
        fresh = initializer(key, weights.shape, weights.dtype)
        return jax.sharding.reshard(fresh, jax.typeof(weights).sharding if traced else weights.sharding)
    if not traced and isinstance(weights, jax.Array) and len(weights.sharding.device_set) > 1:
        part = jax.jit(initializer, static_argnums=(1, 2), out_shardings=weights.sharding)
        return part(key, weights.shape, weights.dtype)
    return initializer(key, weights.shape, weights.dtype)


def uniform(bound: float | None = None, *, out_axis: int = -1) -> Initializer:
    """Returns an initializer that draws from the uniform distribution on (-bound, bound).

    Args:
      bound: By default 1 / sqrt(fan_in), as in the published code and in PyTorch's own layers. The fan-in is the
        product of all axes except `out_axis`; for arrays with fewer than two axes it is 1.
      out_axis: The axis of the outputs. The default is that of kernels in Flax.
    """

    def init(key, shape, dtype=jnp.float32):
        limit = 1 / math.sqrt(_fan_in(shape, out_axis)) if bound is None else bound
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def kaiming_uniform(a: float = 0.0, *, out_axis: int = -1) -> Initializer:
    """Returns PyTorch's `kaiming_uniform_`: uniform on (-b, b) with b = sqrt(6 / ((1 + a^2) fan_in)).

    Args:
      a: The slope of a leaky ReLU for negative inputs; 0 is a plain ReLU. With sqrt(5) the result is `uniform()`.
      out_axis: The axis of the outputs; see `uniform`.
    """

    def init(key, shape, dtype=jnp.float32):
        limit = math.sqrt(6 / ((1 + a**2) * _fan_in(shape, out_axis)))
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def normal(stddev: float | None = None, *, out_axis: int = -1) -> Initializer:
    """Returns an initializer that draws from the normal distribution with mean 0.

    Args:
      stddev: The standard deviation. By default it is that of `uniform()`, 1 / sqrt(3 fan_in).
      out_axis: The axis of the outputs; see `uniform`.
    """

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
    """Returns an initializer that sets everything to 0."""
    return _filled(0)


def ones() -> Initializer:
    """Returns an initializer that sets everything to 1. In Table 3 of the paper this is the choice that fails."""
    return _filled(1)


def published(*, out_axis: int = -1) -> ByName:
    """Returns the rule of the published code: biases become 0, and all other leaves are drawn from `uniform()`."""
    return with_zero_biases(uniform(out_axis=out_axis))


def with_zero_biases(initializer: Initializer) -> ByName:
    """Returns a rule by which biases become 0 and all other leaves are drawn from the given initializer."""
    return ByName(lambda name: zeros() if name.split("/")[-1] == "bias" else initializer)


INITIALIZERS: dict[str, Callable[[], Initializer]] = {
    "uniform": uniform,
    "normal": normal,
    "zeros": zeros,
    "ones": ones,
    "kaiming_uniform": kaiming_uniform,
}


def by_name(name: str) -> Initializer:
    """Returns the initializer with a name in `INITIALIZERS`, with its default arguments.

    Raises:
      InputError: No initializer has that name.
    """
    if name not in INITIALIZERS:
        raise InputError(f"there is no initializer {name!r}; {suggest(name, INITIALIZERS)}")
    return INITIALIZERS[name]()


def _fan_in(shape: tuple[int, ...], out_axis: int) -> int:
    if len(shape) < 2:
        return 1
    return max(1, math.prod(shape) // max(1, shape[out_axis]))
