"""Batches in parts: the same mean gradient, with the activations of one part at a time in memory.

The parts are summed before anything else happens, so projection, masks and optimizer act once per batch on the gradient
of the whole batch. That is why this is not `optax.MultiSteps`: it accumulates over calls of the optimizer, hence over
steps as the run counts, saves and resumes them, and what comes before it, the projection, would act on every part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import jax
import jax.numpy as jnp

from scissorhands_jax import trees
from scissorhands_jax.base import Key, Metrics, ModelState, Params, PyTree, Scalar
from scissorhands_jax.errors import InputError


class MeanFn(Protocol):
    """A mean over examples: `(params, model_state, examples, key) -> (mean, (model_state, metrics))`, means as well."""

    def __call__(
        self, params: Params, model_state: ModelState, examples: PyTree, key: Key | None
    ) -> tuple[Scalar, tuple[ModelState, Metrics]]: ...


def accumulated(mean_fn: MeanFn, parts: int) -> MeanFn:
    """The same function of a whole batch, computed part after part.

    With shares s_i = n_i / n of the examples, value, metrics and the gradient of the params are the sums of s_i times
    those of the parts: the same to rounding, wherever `mean_fn` treats each example by itself. A network with BatchNorm
    does not: each part is normalised by its own statistics, and the running statistics move once per part. Part i is
    given the key `fold_in(key, i)`, so draw what must not depend on the number of parts before.

    The gradient is taken with the value, in one pass (a custom reverse-mode rule): no forward pass is repeated, and two
    trees like the params are held, the sum and that of the part. Only `params` has a gradient, and only of the value;
    forward-mode differentiation raises a TypeError.

    Args:
      mean_fn: The mean over examples. It must not close over arrays that are being differentiated.
      parts: How many parts, of sizes that differ by at most one; 1 gives `mean_fn` itself. On accelerators they are
        compiled as a loop. On CPU they are written out one after the other, because XLA's convolutions are about 25
        times slower in a loop there (jax issue 12868).
    """
    if parts == 1:
        return mean_fn

    @jax.custom_vjp
    def mean(params, model_state, examples, key):
        def one(_, model_state, part, part_key):
            value, (model_state, metrics) = mean_fn(params, model_state, part, part_key)
            return (value, metrics), model_state

        (value, metrics), model_state = _sum(one, None, model_state, examples, key, parts)
        return value, (model_state, metrics)

    def forward(params, model_state, examples, key):
        def one(params, model_state, part, part_key):
            (value, (model_state, metrics)), gradient = jax.value_and_grad(mean_fn, has_aux=True)(
                params, model_state, part, part_key
            )
            return (value, metrics, gradient), model_state

        (value, metrics, gradient), model_state = _sum(one, params, model_state, examples, key, parts)
        return (value, (model_state, metrics)), gradient

    def backward(gradient, cotangents):
        scaled = jax.tree.map(lambda leaf: leaf * cotangents[0].astype(leaf.dtype), gradient)
        return scaled, None, None, None

    mean.defvjp(forward, backward)
    return mean


def mapped(function: Callable[[PyTree], PyTree], examples: PyTree, parts: int) -> PyTree:
    """`function(examples)`, part after part, of a function that treats each example by itself.

    It is not meant to be differentiated through.

    Args:
      function: From examples to a pytree of arrays with a leading example axis.
      examples: A pytree of arrays with a leading example axis.
      parts: How many parts, of sizes that differ by at most one; 1 calls the function itself.

    Returns:
      The function's result, in the order of the examples.
    """
    if parts == 1:
        return function(examples)
    total = _size(examples)
    if jax.default_backend() == "cpu":
        results, last = [], None
        for _, _, group in _groups(examples, total, parts):
            outputs = []
            for index in range(_size(group)):
                part = jax.tree.map(lambda leaf, index=index: leaf[index], group)
                last = function(part if last is None else after(last, part))
                outputs.append(last)
            results.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs))
    else:
        results = [jax.lax.map(function, group) for _, _, group in _groups(examples, total, parts)]
    return jax.tree.map(lambda *groups: jnp.concatenate([_joined(group) for group in groups]), *results)


def check_microbatches(sizes: Iterable[int], parts: int) -> int:
    """Returns the number of parts, if batches of these sizes can be divided into as many equal ones.

    Args:
      sizes: The numbers of examples of batches.
      parts: The number of parts.

    Raises:
      InputError: The number is below 1, or does not divide the size of a batch.
    """
    if parts < 1:
        raise InputError(f"microbatches must be at least 1, got {parts}")
    for size in sizes:
        if size % parts:
            raise InputError(
                f"a batch of {size} examples cannot be divided into {parts} equal microbatches; "
                "change microbatches or the batch size"
            )
    return parts


def after(done: PyTree, examples: PyTree) -> PyTree:
    """The same examples, which (random keys excepted) are available only once the floats in `done` are.

    Without that XLA runs all forward passes of a program first and keeps the activations of all: measured on CPU for
    ResNet-20 at batch 128 + 128, 801 MB of temporaries instead of 404. It sees through an `optimization_barrier`, but
    cannot know that a norm is never negative.
    """
    never = trees.norm([leaf for leaf in jax.tree.leaves(done) if jnp.issubdtype(leaf.dtype, jnp.floating)]) < 0

    def held(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        return leaf if is_key else jnp.where(never, jnp.zeros_like(leaf), leaf)

    return jax.tree.map(held, examples)


def _sum(one: Callable, params: PyTree, model_state: ModelState, examples: PyTree, key: Key | None, parts: int):
    """The sum of share times `one(params, model_state, part, key)[0]` over the parts, and the last model state."""
    one = jax.jit(one, inline=True)  # traced once for all parts
    total = _size(examples)
    part = jax.tree.map(lambda leaf: leaf[: max(1, total // parts)], examples)
    outline, _ = jax.eval_shape(one, params, model_state, part, key)
    wide = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), outline)

    def add(carry, index, part, share):
        so_far, model_state = carry
        part_key = None if key is None else jax.random.fold_in(key, index)
        value, model_state = one(params, model_state, part, part_key)
        return jax.tree.map(lambda a, b: a + share * b.astype(a.dtype), so_far, value), model_state

    def turn(carry, row, share):
        index, part = row
        return add(carry, index, part, share), None

    carry = (wide, model_state)
    for start, share, group in _groups(examples, total, parts):
        count = _size(group)
        if jax.default_backend() == "cpu":
            for index in range(count):
                part = jax.tree.map(lambda leaf, index=index: leaf[index], group)
                held = after(carry[0], part) if start + index else part
                carry = add(carry, start + index, held, share)
        else:
            rows = (jnp.arange(start, start + count), group)
            carry, _ = jax.lax.scan(functools.partial(turn, share=share), carry, rows)
    so_far, model_state = carry
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), so_far, outline), model_state


def _groups(examples: PyTree, total: int, parts: int) -> Iterator[tuple[int, float, PyTree]]:
    """Parts of one size together: the number of the first, the share of each, and examples of shape (count, size, ...).

    There are two groups, of sizes that differ by one, where the total cannot be divided; no part is empty. In a group
    a part takes every `count`-th example, so that all devices that share a batch share every part of it.
    """
    size, more = divmod(total, parts)
    first = begin = 0
    for count, width in ((more, size + 1), (parts - more, size)):
        if count and width:
            cut = functools.partial(_cut, begin=begin, count=count, width=width)
            yield first, width / total, jax.tree.map(cut, examples)
            first, begin = first + count, begin + count * width


def _cut(leaf: jax.Array, *, begin: int, count: int, width: int) -> jax.Array:
    rows = leaf[begin : begin + count * width]
    return jnp.swapaxes(rows.reshape(width, count, *leaf.shape[1:]), 0, 1)


def _joined(parts: jax.Array) -> jax.Array:
    """The inverse of `_cut`: from shape (count, width, ...) to (count * width, ...)."""
    return jnp.swapaxes(parts, 0, 1).reshape(-1, *parts.shape[2:])


def _size(examples: PyTree) -> int:
    return jax.tree.leaves(examples)[0].shape[0]
