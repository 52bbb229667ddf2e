"""Which weights change: exact top-fraction masks without a sort, and updates restricted to a mask.

The bit pattern of a non-negative float orders like the float. So the exact k-th largest value of a whole tree is found
by narrowing a range of bit patterns: a pass over the tree counts how many entries reach each of seven candidates, which
settles three bits of the answer. The tree is never sorted, concatenated or gathered, so the same code serves a single
device and sharded trees.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import trees
from scissorhands_jax.base import Mask, PyTree, Scores, Selection
from scissorhands_jax.errors import InputError

_CANDIDATES = 7  # Each pass splits the range into eight parts.


def top_fraction(scores: Scores, fraction: float, *, rank: Selection | None = None) -> Mask:
    """Marks the largest `fraction` of all scores, exactly.

    Of n ranked scores, `max(1, round(fraction * n))` are True. Equal scores at the cut are taken in tree order (leaf by
    leaf, row-major within a leaf), so the mask is a pure function of the scores. NaN counts as larger than infinity.

    Args:
      scores: pytree of non-negative floating point arrays.
      fraction: share of the weights to mark, in (0, 1).
      rank: leaves that are ranked, as made by `trees.select`; other leaves come back all False. Default: all.

    Returns:
      A pytree of bools shaped like `scores`.

    Raises:
      InputError: `fraction` is outside (0, 1).
    """
    check_fraction(fraction)
    return top_k(scores, max(1, round(fraction * trees.count_weights(scores, rank))), rank=rank)


def check_fraction(fraction: float) -> None:
    """Raises InputError unless 0 < fraction < 1."""
    if not 0.0 < fraction < 1.0:
        raise InputError(f"fraction must lie strictly between 0 and 1, got {fraction}; 0.03 trims three per cent")


def top_k(scores: Scores, k: int | jax.Array, *, rank: Selection | None = None) -> Mask:
    """Marks the `k` largest scores; ties as in `top_fraction`. `k` may be traced."""
    chosen = _ranked(scores, rank)
    return _scatter(scores, _mark_largest(chosen, jnp.asarray(k, _counter(chosen))), rank)


def kth_largest(scores: Scores, k: int | jax.Array, *, rank: Selection | None = None) -> jax.Array:
    """The exact value of the k-th largest score (k counts from 1). shape=(), dtype of the scores"""
    chosen = _ranked(scores, rank)
    return _kth_largest(chosen, jnp.asarray(k, _counter(chosen)))


def kept_fraction_mask(scores: Scores, kept: float, *, rank: Selection | None = None) -> tuple[Mask, jax.Array]:
    """The published code's cut: strictly above the k-th smallest score, k = floor(kept * n) counted from 1.

    When the k-th smallest value lies within 1e-12 of the largest or smallest score, the threshold becomes
    (max - min) / 2, as there; that marks almost nothing.

    Returns:
      The mask and the threshold (shape=()).

    Raises:
      InputError: `kept * n` is below 1, so there is no k-th smallest.
    """
    chosen = _ranked(scores, rank)
    total = trees.count_weights(scores, rank)
    k = int(kept * total)
    if not 1 <= k <= total:
        raise InputError(f"keeping {kept} of {total} weights leaves k = {k}, outside 1 to {total}; change the fraction")
    kth = kth_largest(scores, total - k + 1, rank=rank)
    largest, smallest = _extremes([leaf for leaf in chosen if leaf.size])
    degenerate = (kth >= largest - 1e-12) | (kth <= smallest + 1e-12)
    threshold = jnp.where(degenerate, (largest - smallest) / 2, kth)
    return _scatter(scores, _above(chosen, threshold), rank), threshold


def restrict(mask: Mask, selection: Selection) -> Mask:
    """Clears the mask on leaves that are not selected."""
    return jax.tree.map(lambda chosen, leaf: leaf if chosen else jnp.zeros_like(leaf), selection, mask)


def count_marked(mask: Mask) -> jax.Array:
    """How many weights a mask marks. shape=()"""
    leaves = jax.tree.leaves(mask)
    counter = _counter(leaves)
    return sum((jnp.sum(leaf, dtype=counter) for leaf in leaves), start=jnp.zeros((), counter))


def mask_updates() -> optax.GradientTransformationExtraArgs:
    """Zeroes updates where the mask is False; put it LAST in the chain.

    Masking gradients first would let weight decay and momentum move frozen weights; masking the update keeps them
    bit-equal. `update(updates, state, params, *, mask)` needs the mask as a keyword.
    """

    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None, *, mask, **extra_args):
        del params, extra_args
        # Minus zero, because adding plus zero would turn a weight of -0.0 into 0.0.
        return jax.tree.map(lambda keep, u: jnp.where(keep, u, jnp.full_like(u, -0.0)), mask, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _ranked(scores: Scores, rank: Selection | None) -> list[jax.Array]:
    """The ranked leaves in one floating point type."""
    rank = trees.select(scores, None) if rank is None else rank
    chosen = [leaf for leaf, is_ranked in trees.zip_leaves(scores, rank) if is_ranked]
    if not chosen:
        raise InputError("no parameter array is ranked; widen the selection")
    dtype = jnp.promote_types(jnp.result_type(*chosen), jnp.float32)
    return [leaf.astype(dtype) for leaf in chosen]


def _scatter(scores: Scores, marked: list[jax.Array], rank: Selection | None) -> Mask:
    """The marks of the ranked leaves in their places, and False in all other leaves."""
    rank = trees.select(scores, None) if rank is None else rank
    rest = iter(marked)
    return jax.tree.map(
        lambda leaf, is_ranked: next(rest) if is_ranked else jnp.zeros_like(leaf, dtype=bool), scores, rank
    )


@jax.jit
def _extremes(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return (
        functools.reduce(jnp.maximum, [leaf.max() for leaf in leaves]),
        functools.reduce(jnp.minimum, [leaf.min() for leaf in leaves]),
    )


@jax.jit
def _above(leaves: list[jax.Array], threshold: jax.Array) -> list[jax.Array]:
    return [leaf > threshold for leaf in leaves]


@jax.jit
def _mark_largest(leaves: list[jax.Array], k: jax.Array) -> list[jax.Array]:
    cut, reached = _search(leaves, _all_bits, k, high=jnp.iinfo(_all_bits(leaves)[0].dtype).max)
    return jax.lax.cond(
        reached > k,
        lambda: _drop_last_ties(leaves, cut, reached - k),
        lambda: [bits >= cut for bits in _all_bits(leaves)],
    )


@jax.jit
def _kth_largest(leaves: list[jax.Array], k: jax.Array) -> jax.Array:
    bits, _ = _search(leaves, _all_bits, k, high=jnp.iinfo(_all_bits(leaves)[0].dtype).max)
    return jax.lax.bitcast_convert_type(bits, leaves[0].dtype)


def _all_bits(leaves: list[jax.Array]) -> list[jax.Array]:
    """Bits of non-negative floats as signed integers; they order as the floats do.

    Minus zero becomes zero, and every NaN the one that follows infinity.
    """
    integer = jnp.int64 if leaves[0].dtype == jnp.float64 else jnp.int32
    infinity = np.array(np.inf, leaves[0].dtype).view(integer)
    return [jnp.minimum(jax.lax.bitcast_convert_type(jnp.abs(leaf), integer), infinity + 1) for leaf in leaves]


def _counter(leaves) -> jnp.dtype:
    """An integer type that can count all entries; beyond 2**31 this needs jax_enable_x64."""
    total = sum(leaf.size for leaf in leaves)
    dtype = jax.dtypes.canonicalize_dtype(jnp.int64) if total >= 2**31 else jnp.dtype(jnp.int32)
    if total > jnp.iinfo(dtype).max:
        raise InputError(f"{total} weights cannot be counted in 32 bits; set jax_enable_x64")
    return dtype


def _search(
    source: PyTree, integers: Callable[[PyTree], list[jax.Array]], k: jax.Array, *, high: int
) -> tuple[jax.Array, jax.Array]:
    """The largest integer that at least `k` entries of some arrays reach, and how many entries reach it.

    Args:
      source: What the arrays are made from.
      integers: `(source) -> arrays`. It is called in every pass, so that the arrays are never stored. At least k
        entries are not negative.
      k: Counts from 1. shape=()
      high: An integer that fewer than k entries reach, or the largest one of the type.

    Returns:
      Two integers of shape ().
    """
    dtype = jax.eval_shape(integers, source)[0].dtype

    def unfinished(state):
        low, high, _ = state
        return high - low > 1

    def narrow(state):
        low, high, reached = state  # At least k entries reach `low`, and fewer than k reach `high`.
        width, parts = high - low, _CANDIDATES + 1
        candidates = [low + width // parts * part + width % parts * part // parts for part in range(1, parts)]
        # Without the barrier XLA computes the integers once, before the loop, and stores them: slower, and much memory.
        held, candidates = jax.lax.optimization_barrier((source, candidates))
        for candidate, count in zip(candidates, _count_reaching(integers(held), candidates), strict=True):
            enough = count >= k
            low, reached = jnp.where(enough, candidate, low), jnp.where(enough, count, reached)
            high = jnp.where(enough, high, jnp.minimum(high, candidate))
        return low, high, reached

    everything = sum(leaf.size for leaf in jax.eval_shape(integers, source))
    start = (jnp.zeros((), dtype), jnp.asarray(high, dtype), jnp.asarray(everything, k.dtype))
    low, _, reached = jax.lax.while_loop(unfinished, narrow, start)
    return low, reached


def _count_reaching(integers: list[jax.Array], candidates: Sequence[jax.Array]) -> list[jax.Array]:
    """How many entries reach each candidate, as a list of arrays of shape ().

    One reduction with several results reads the data once. Measured on a CPU with 100 million entries, seven counts
    took as long as one sum of floats, and an eighth of the time of a sum of integers, which XLA leaves as scalar code.
    """
    dtype = _counter(integers)
    zeros = [jnp.zeros((), dtype)] * len(candidates)

    def add(a, b):
        return [x + y for x, y in zip(a, b, strict=True)]

    counts = zeros
    for leaf in integers:
        hits = [(leaf >= candidate).astype(dtype) for candidate in candidates]
        if jax.device_count() > 1:  # XLA would gather the parts of one reduction with several results.
            found = [jnp.sum(hit, dtype=dtype) for hit in hits]
        else:
            found = jax.lax.reduce(hits, zeros, add, tuple(range(leaf.ndim)))
        counts = add(counts, found)
    return counts


def _drop_last_ties(leaves: list[jax.Array], cut: jax.Array, surplus: jax.Array) -> list[jax.Array]:
    """Marks everything that reaches the cut except the last `surplus` of the entries equal to it, in tree order."""

    def positions_of_ties(source):
        leaves, cut = source
        values, start = [], 0
        for leaf, bits in zip(leaves, _all_bits(leaves), strict=True):
            values.append(jnp.where(bits == cut, start + _positions(leaf.shape), -1))
            start += leaf.size
        return values

    total = sum(leaf.size for leaf in leaves)
    end, _ = _search((leaves, cut), positions_of_ties, surplus, high=total)
    ties = positions_of_ties((leaves, cut))
    return [(bits > cut) | ((tie >= 0) & (tie < end)) for bits, tie in zip(_all_bits(leaves), ties, strict=True)]


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """Row-major positions of the entries of an array, as a broadcast sum that fuses and shards."""
    dtype = jnp.int32
    position, stride = jnp.zeros(shape, dtype), 1
    for axis in reversed(range(len(shape))):
        position = position + jax.lax.broadcasted_iota(dtype, shape, axis) * stride
        stride *= shape[axis]
    return position
