"""Masked re-initialisation: marked weights are replaced by freshly drawn ones.

How large they are depends on the fan-in of their layer, and frameworks store layers differently. `fan_in` knows the
layouts of Flax, Equinox and PyTorch by the names of their arrays. Layers that are stacked in one array are drawn one by
one (`trees.stacked_axes`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scissorhands_jax import trees
from scissorhands_jax.base import Key, Mask, Params, Selection
from scissorhands_jax.errors import InputError, check_finite_number, check_not_negative, suggest
from scissorhands_jax.trees import Stacked

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
    initializer: Initializer | ByName | str,
    trim: Selection | None = None,
    stacked: Stacked = None,
) -> Params:
    """Replaces the marked weights by fresh draws. The other weights stay the same, bit for bit.

    Every leaf draws with `fold_in(key, position of the leaf)`, so a draw does not depend on the mask, on the values of
    other leaves, or on how the tree is sharded.

    Args:
      key: A typed PRNG key.
      params: A pytree of floating point arrays. Floats of Python count as arrays.
      mask: A pytree of bools with the structure and shapes of `params`, where a single bool may stand for a whole
        array. Weights marked True are replaced.
      initializer: `(key, shape, dtype) -> array`, one from this module or from `jax.nn.initializers`; its name in
        `INITIALIZERS`; or `ByName`, for a choice by the name of the leaf.
      trim: The leaves that may change, as `trees.select` returns them. Nothing is drawn for the others. By default
        all leaves may change.
      stacked: Which leaves hold several layers, where other leaves do not tell (`trees.stacked_axes`). Each of these
        layers is drawn by itself.

    Returns:
      A new pytree like `params`.

    Raises:
      InputError: The initializer is none of these, a leaf that may change is no array of real floating-point numbers,
        `trim` is of another form, the mask has another structure or other shapes than `params`, or the
        function is called inside `shard_map`, where every shard would be drawn alike and in its own size.
    """
    trees.check_whole_arrays(
        "weights are drawn for whole arrays", "draw them outside of it (sharded arrays are taken as they are)"
    )
    initializer = initializer_of(initializer)
    trees.check_mask(mask, params)
    if trim is None:
        trim = trees.select(params, None)
    trees.check_selection(trim, params)
    trees.check_trained(jax.tree.map(lambda chosen, leaf: leaf if chosen else None, trim, params), "the parameters")
    params = trees.as_arrays(params)

    def leaf(position, name, weights, marked, chosen, axes):
        if not chosen or not weights.size:
            return weights
        draw = _of_leaf(initializer, name)
        draw = _OfLayers(draw, axes) if axes else draw
        fresh = _draw(draw, jax.random.fold_in(key, position), weights)
        return jnp.where(marked, fresh, weights)

    axes = trees.stacked_axes(params, stacked)
    rows = zip(trees.leaf_names(params), trees.zip_leaves(params, mask, trim, axes), strict=True)
    fresh = [leaf(position, name, *row) for position, (name, row) in enumerate(rows)]
    return jax.tree.unflatten(jax.tree.structure(params), fresh)


def _of_leaf(initializer: Initializer | ByName, name: str) -> Initializer:
    return initializer.choose(name) if isinstance(initializer, ByName | _Scaled) else initializer


@dataclasses.dataclass(frozen=True)
class _OfLayers:
    """Draws each layer of a stack by itself, as an array without the first `axes` axes."""

    draw: Initializer
    axes: int

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        layers, shape = shape[: self.axes], shape[self.axes :]
        keys = jax.random.split(key, math.prod(layers))
        return jax.vmap(lambda one: self.draw(one, shape, dtype))(keys).reshape(*layers, *shape)


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


def fan_in(name: str, shape: tuple[int, ...], *, out_axis: int | None = None, stacked: int = 0) -> int:
    """Returns the number of inputs of each output of a layer, from the array that holds its weights.

    | name of the array | layout | outputs are |
    | --- | --- | --- |
    | `weight`, `weight_ih` and the like | Equinox, PyTorch | the first axis |
    | `weight` of a layer with `embed` in its name | a table, as Equinox draws it | none: the fan-in is 1 |
    | `embedding` | a table, as Flax draws it | the first axis |
    | `kernel` of `query`, `key` or `value` | Flax's attention: inputs, heads, features | the last two axes |
    | any other, such as `kernel` | Flax | the last axis |

    In a grouped convolution only the inputs of the group count. Biases, scales and other arrays with fewer than two
    axes (`trees.is_vector`) have a fan-in of 1, whatever `out_axis` is.

    Args:
      name: The name of the array in the tree, such as `layer1/0/conv1/kernel`.
      shape: The shape of the array.
      out_axis: The axis of the outputs of a kernel, whatever its name says. The default goes by the name.
      stacked: The number of first axes along which layers are stacked, which are none of a layer; `reinitialize` finds
        it by `trees.stacked_axes`.
    """
    shape = shape[stacked:]
    if trees.is_vector(name, shape):
        return 1
    *_, layer, last = ("", "", *name.split("/"))
    if out_axis is not None:
        outputs = shape[out_axis]
    elif last == "weight" and "embed" in layer.lower():
        return 1
    elif last == "embedding" or outputs_first(name):
        outputs = shape[0]
    elif last == "kernel" and layer in ("query", "key", "value") and len(shape) == 3:
        outputs = math.prod(shape[1:])
    else:
        outputs = shape[-1]
    return max(1, math.prod(shape) // max(1, outputs))


def outputs_first(name: str) -> bool:
    """Whether the outputs of a layer are the first axis of its weights and the inputs the second one.

    That is the layout of Equinox and PyTorch, whose arrays are called `weight`, `weight_ih` and the like. In Flax's
    layout, that of `kernel`, both are the last axes.

    Args:
      name: The name of the array in the tree, such as `layer1/0/conv1/kernel`.
    """
    return name.rpartition("/")[2].startswith("weight")


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """Draws in the size that the fan-in of a leaf calls for; called as a plain initializer, in Flax's layout."""

    draw: Callable[[Key, tuple[int, ...], Any, int], jax.Array]
    out_axis: int | None = None
    name: str = ""

    def choose(self, name: str) -> Initializer:
        """Returns the initializer for the leaf with a name."""
        return dataclasses.replace(self, name=name)

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return self.draw(key, shape, dtype, fan_in(self.name, shape, out_axis=self.out_axis))


@dataclasses.dataclass(frozen=True)
class _Uniform:
    """The uniform distribution on (-b, b), with b = `gain` / sqrt(fan_in), or `bound` itself."""

    gain: float = 1.0
    bound: float | None = None

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: Any, fan_in: int) -> jax.Array:
        limit = self.gain / math.sqrt(fan_in) if self.bound is None else self.bound
        return jax.random.uniform(key, shape, dtype, -limit, limit)


@dataclasses.dataclass(frozen=True)
class _Normal:
    """The normal distribution with the standard deviation 1 / sqrt(3 fan_in), or `stddev` itself."""

    stddev: float | None = None

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: Any, fan_in: int) -> jax.Array:
        scale = 1 / math.sqrt(3 * fan_in) if self.stddev is None else self.stddev
        return scale * jax.random.normal(key, shape, dtype)


def uniform(bound: float | None = None, *, out_axis: int | None = None) -> Initializer:
    """Returns an initializer that draws from the uniform distribution on (-bound, bound).

    Args:
      bound: By default 1 / sqrt(fan_in), as in the published code and in PyTorch's and Equinox's own layers.
      out_axis: The axis of the outputs. By default `reinitialize` goes by the name of the array (`fan_in`); a call
        without a name takes the last axis, as in Flax.

    Raises:
      InputError: The bound is negative or infinite.
    """
    if bound is not None:
        check_not_negative("bound", bound)
    return _Scaled(_Uniform(bound=bound), out_axis)


def kaiming_uniform(a: float = 0.0, *, out_axis: int | None = None) -> Initializer:
    """Returns PyTorch's `kaiming_uniform_`: uniform on (-b, b) with b = sqrt(6 / ((1 + a^2) fan_in)).

    Args:
      a: The slope of a leaky ReLU for negative inputs; 0 is a plain ReLU. With sqrt(5) the result is `uniform()`.
      out_axis: The axis of the outputs; see `uniform`.

    Raises:
      InputError: The slope is infinite or no number.
    """
    check_finite_number("the slope a", a)
    return _Scaled(_Uniform(gain=math.sqrt(6 / (1 + a**2))), out_axis)


def normal(stddev: float | None = None, *, out_axis: int | None = None) -> Initializer:
    """Returns an initializer that draws from the normal distribution with mean 0.

    Args:
      stddev: The standard deviation. By default it is that of `uniform()`, 1 / sqrt(3 fan_in).
      out_axis: The axis of the outputs; see `uniform`.

    Raises:
      InputError: The standard deviation is negative or infinite.
    """
    if stddev is not None:
        check_not_negative("stddev", stddev)
    return _Scaled(_Normal(stddev), out_axis)


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


def published(*, out_axis: int | None = None) -> ByName:
    """Returns the rule of the published code: biases (`trees.is_bias`) become 0, all other leaves are drawn from
    `uniform()`."""
    return with_zero_biases(uniform(out_axis=out_axis))


def with_zero_biases(initializer: Initializer | ByName | str) -> ByName:
    """Returns a rule by which biases (`trees.is_bias`) become 0 and all other leaves are drawn from the given
    initializer."""
    initializer = initializer_of(initializer)
    return ByName(lambda name: _ZeroBiases(_of_leaf(initializer, name), name))


@dataclasses.dataclass(frozen=True)
class _ZeroBiases:
    """Sets the array with a name to 0 if it holds biases, which its shape tells as well, and draws it otherwise."""

    draw: Initializer
    name: str

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return zeros()(key, shape, dtype) if trees.is_bias(self.name, shape) else self.draw(key, shape, dtype)


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


def initializer_of(initializer: Initializer | ByName | str) -> Initializer | ByName:
    """Returns an initializer as it is, or that with a name in `INITIALIZERS`.

    Raises:
      InputError: No initializer has that name, or it is something else.
    """
    if isinstance(initializer, str):
        return by_name(initializer)
    if not callable(initializer) and not isinstance(initializer, ByName):
        raise InputError(
            f"the initializer is {initializer!r}; give a function (key, shape, dtype), or one of "
            f"{', '.join(INITIALIZERS)}"
        )
    return initializer
