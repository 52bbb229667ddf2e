"""Batches in parts: the same mean gradient, with the activations of only one part at a time in memory.

The gradients of the parts are summed first, so that projection, masks and optimizer act once, on the gradient of the
whole batch. That is why this is not `optax.MultiSteps`, which accumulates over calls of the optimizer. Every part would
then be a step that the run counts, saves and resumes, and the projection, which comes before the optimizer, would act
on each part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from scissorhands_jax import trees
from scissorhands_jax.base import Key, Metrics, ModelState, Params, PyTree, Scalar
from scissorhands_jax.errors import InputError, check_whole


class MeanFn(Protocol):
    """A mean over examples: `(params, model_state, examples, key) -> (mean, (model_state, metrics))`.

    The metrics must be means over the examples too.
    """

    def __call__(
        self, params: Params, model_state: ModelState, examples: PyTree, key: Key | None
    ) -> tuple[Scalar, tuple[ModelState, Metrics]]: ...


def accumulated(mean_fn: MeanFn, parts: int) -> MeanFn:
    """Returns a function with the same values and gradients that computes a batch in parts, one after the other.

    Part i holds the share s_i = n_i / n of the examples. The value, the metrics and the gradient with respect to the
    parameters are the sums of s_i times those of the parts. Up to rounding they are those of the whole batch, as long
    as `mean_fn` treats each example by itself. A network with BatchNorm does not: each part is normalised by its own
    statistics, and the running statistics move once per part. Part i is given the key `fold_in(key, i)`, so random
    numbers that must not depend on the number of parts have to be drawn beforehand.

    A custom reverse-mode rule computes the gradient with respect to `params` together with the value, so that no
    forward pass is repeated and only two trees like the parameters are held: the sum, and the gradient of the current
    part. Any other derivative (with respect to the model state or the examples, or of the new state and the metrics) is
    computed afterwards, by passes of its own over the parts, whose activations are not kept either. Forward-mode
    differentiation raises a TypeError.

    Args:
      mean_fn: The function of a whole batch. It must not close over arrays that are being differentiated.
      parts: The number of parts, whose sizes differ by at most one; 1 returns `mean_fn` itself. On accelerators the
        parts are compiled as a loop. On CPU they are unrolled, because XLA's convolutions are about 25 times slower in
        a loop there (jax issue 12868).

    Raises:
      InputError: When the function is differentiated, if `mean_fn` closes over an array that is being differentiated.
    """
    if parts == 1:
        return mean_fn

    def plain(params, model_state, examples, key, *, remat=False):
        def one(params, model_state, part, part_key):
            value, (model_state, metrics) = mean_fn(params, model_state, part, part_key)
            return (value, metrics), model_state

        one = jax.checkpoint(one) if remat else one
        (value, metrics), model_state = _sum(one, params, model_state, examples, key, parts)
        return value, (model_state, metrics)

    mean = jax.custom_vjp(plain)

    def forward(*primals):
        params, model_state, examples, key = arguments = custom_vjp_primal_tree_values(primals)
        if any(leaf.perturbed for leaf in jax.tree.leaves(primals[1:])):
            return plain(*arguments), (None, arguments)

        def one(params, model_state, part, part_key):
            (value, (model_state, metrics)), gradient = jax.value_and_grad(mean_fn, has_aux=True)(
                params, model_state, part, part_key
            )
            return (value, metrics, gradient), model_state

        (value, metrics, gradient), model_state = _sum(one, params, model_state, examples, key, parts)
        return (value, (model_state, metrics)), (gradient, arguments)

    def backward(saved, cotangents):
        gradient, (*arguments, key) = saved
        if gradient is not None and all(map(_is_zero, jax.tree.leaves(cotangents[1]))):
            scaled = jax.tree.map(lambda leaf: leaf * cotangents[0].astype(leaf.dtype), gradient)
            return scaled, None, None, None

        def again(params, model_state, examples):
            return plain(params, model_state, examples, key, remat=True)

        outputs, pull_back = jax.vjp(again, *arguments)
        given = jax.tree.map(lambda of, output: _zero_of(output) if _is_zero(of) else of, cotangents, outputs)
        return *pull_back(given), None

    mean.defvjp(forward, backward, symbolic_zeros=True)

    @functools.wraps(mean_fn)
    def checked(params, model_state, examples, key):
        try:
            return mean(params, model_state, examples, key)
        except jax.errors.UnexpectedTracerError as error:
            raise InputError(
                "a loss in microbatches closes over an array that is being differentiated; hand it over in the params, "
                "the model state or the batch, or take 1 microbatch"
            ) from error

    return checked


def _is_zero(cotangent: Any) -> bool:
    """Whether the cotangent of an output says that nothing depends on it."""
    return isinstance(cotangent, SymbolicZero) or cotangent.dtype == jax.dtypes.float0


def _zero_of(output: jax.Array) -> jax.Array | np.ndarray:
    """The cotangent of an output that nothing depends on."""
    if jnp.issubdtype(output.dtype, jnp.inexact):
        return jnp.zeros_like(output)
    return np.zeros(output.shape, jax.dtypes.float0)


def mapped(function: Callable[[PyTree], PyTree], examples: PyTree, parts: int) -> PyTree:
    """Computes `function(examples)` in parts, one after the other. It is not meant to be differentiated.

    Args:
      function: It takes and returns pytrees of arrays with a leading example axis, and treats each example by itself.
      examples: The examples of all parts.
      parts: The number of parts; see `accumulated`.

    Returns:
      The result of the function, in the order of the examples.
    """
    total = _size(examples)
    if parts == 1 or total == 0:
        return function(examples)
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
    """Checks that batches can be divided into equal parts, and returns the number of parts.

    Args:
      sizes: The numbers of examples in the batches.
      parts: The number of parts.

    Raises:
      InputError: The number of parts is below 1 or no whole number, or does not divide the size of a batch.
    """
    parts = check_whole("microbatches", parts, 1)
    for size in sizes:
        if size % parts:
            raise InputError(
                f"a batch of {size} examples cannot be divided into {parts} equal microbatches; "
                "change microbatches or the batch size"
            )
    return parts


def after(done: PyTree, examples: PyTree) -> PyTree:
    """Returns the same examples, made to depend on the floats in `done`, so that XLA computes `done` first.

    Otherwise XLA runs the forward passes of all parts first and keeps their activations: measured on CPU for ResNet-20
    at batch 128 + 128, that takes 801 MB of temporaries instead of 404. XLA sees through an
    `optimization_barrier`, but does not know that a norm is never negative. Random keys among the examples stay
    independent of `done`.
    """
    floats = [leaf for leaf in jax.tree.leaves(done) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    never = trees.norm(jax.lax.stop_gradient(floats)) < 0

    def held(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        return leaf if is_key else jnp.where(never, jnp.zeros_like(leaf), leaf)

    return jax.tree.map(held, examples)


def _sum(one: Callable, params: PyTree, model_state: ModelState, examples: PyTree, key: Key | None, parts: int):
    """Sums share times `one(params, model_state, part, key)[0]` over the parts; also returns the last model state."""
    one = jax.jit(one, inline=True)  # It is then traced once for all parts of one size.
    total = _size(examples)
    part = jax.tree.map(lambda leaf: leaf[: max(1, total // parts)], examples)
    outline, _ = jax.eval_shape(one, params, model_state, part, key)
    # Sums of half-precision numbers are kept in float32, as a mean over the whole batch would be.
    wide = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), outline)

    def add(carry, index, part, share):
        so_far, model_state = carry
        part_key = None if key is None else jax.random.fold_in(key, index)
        value, model_state = one(params, model_state, part, part_key)
        return jax.tree.map(lambda a, b: a + share * b.astype(a.dtype), so_far, value), model_state

    def scan_step(carry, row, share):
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
            carry, _ = jax.lax.scan(functools.partial(scan_step, share=share), carry, rows)
    so_far, model_state = carry
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), so_far, outline), model_state


def _groups(examples: PyTree, total: int, parts: int) -> Iterator[tuple[int, float, PyTree]]:
    """Yields parts of equal size as groups: the number of the first part, the share of each, and the examples.

    The examples have the shape (count, size, ...). If the total cannot be divided evenly, there are two groups, whose
    sizes differ by one; no part is empty. Within a group a part takes every `count`-th example, so that devices that
    share a batch also share every part of it.
    """
    size, more = divmod(total, parts)
    first = begin = 0
    for count, width in ((more, size + 1), (parts - more, size)):
        if count and width:
            cut = functools.partial(_cut, begin=begin, count=count, width=width)
            yield first, width / total, jax.tree.map(cut, examples)
            first, begin = first + count, begin + count * width


def _cut(leaf: jax.Array, *, begin: int, count: int, width: int) -> jax.Array:
    """Divides `count * width` rows into `count` parts: the result has the shape (count, width, ...)."""
    rows = leaf[begin : begin + count * width]
    return jnp.swapaxes(rows.reshape(width, count, *leaf.shape[1:]), 0, 1)


def _joined(parts: jax.Array) -> jax.Array:
    """Undoes `_cut`: turns the shape (count, width, ...) into (count * width, ...)."""
    return jnp.swapaxes(parts, 0, 1).reshape(-1, *parts.shape[2:])


def _size(examples: PyTree) -> int:
    return jax.tree.leaves(examples)[0].shape[0]
