"""Examples as arrays: positions, batches, forget sets, augmentation on the device.

A data set is a pytree of arrays that share their first axis. Batches are int32 positions into it, so that the order of
examples is a pure function of (key, epoch), costs nothing to skip when a run resumes, and is gathered inside the
compiled step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax
import numpy as np

from scissorhands_jax.base import Batch, Data, Dataset, Key
from scissorhands_jax.errors import InputError


def size(dataset: Dataset) -> int:
    """How many examples a data set holds; 0 for None.

    Raises:
      InputError: its arrays differ in their first axis.
    """
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(dataset)}
    if len(lengths) > 1:
        raise InputError(f"the arrays of a data set must share their first axis, found lengths {sorted(lengths)}")
    return lengths.pop() if lengths else 0


def take(dataset: Dataset, positions: jax.Array | np.ndarray | None) -> Dataset:
    """The examples at the given positions; works inside jit. No positions (None) give no data set (None)."""
    if positions is None:
        return None
    return jax.tree.map(lambda leaf: leaf[positions], dataset)


def gather(data: Data, batch: Batch) -> Batch:
    """Turns a batch of positions into a batch of examples."""
    return Batch(take(data.forget, batch.forget), take(data.retain, batch.retain))


def split(train: Dataset, forget: Iterable, trained_on: np.ndarray | None = None) -> Data:
    """Splits a training set at the positions to forget; both parts keep their order.

    Args:
      train: the examples that positions count.
      forget: positions of the forget set.
      trained_on: positions of all examples that the network was trained on; the others are in neither part. None: all.

    Raises:
      InputError: as `check_positions` and `check_trained_on`.
    """
    total = size(train)
    chosen = check_positions(forget, total)
    keep = np.zeros(total, bool)
    keep[slice(None) if trained_on is None else check_trained_on(chosen, trained_on)] = True
    keep[chosen] = False
    return Data(take(train, chosen), take(train, np.flatnonzero(keep)))


def check_positions(positions: Iterable, total: int) -> np.ndarray:
    """The sorted int32 positions of a forget set.

    Raises:
      InputError: empty, not integers, repeated, out of range, or the whole training set.
    """
    values = np.asarray(positions)
    if values.size == 0:
        raise InputError("the forget set is empty; name at least one training example")
    unique = _distinct(values, total, "forget positions")
    if unique.size == total:
        raise InputError(f"the forget set is the whole training set of {total}; nothing is left to retain")
    return unique


def check_trained_on(forget: np.ndarray, trained_on: np.ndarray) -> np.ndarray:
    """Proves that every example to forget was in the training set of the network.

    Args:
      forget: positions of the forget set.
      trained_on: positions of all examples that the network was trained on, in the same data set.

    Returns:
      The sorted positions in `trained_on`.

    Raises:
      InputError: some were not, and forgetting them means nothing; or nothing would be left to retain.
    """
    known = np.unique(trained_on)
    strangers = np.setdiff1d(forget, known)
    if strangers.size:
        raise InputError(
            f"{strangers.size} of the {len(forget)} examples to forget were not in the training set of this network, "
            f"the first is {strangers[0]}; name only what it was trained on and has not forgotten yet"
        )
    if known.size == len(forget):
        raise InputError(f"the forget set is the whole training set of {known.size}; nothing is left to retain")
    return known


def check_training_set(positions: Iterable, total: int) -> np.ndarray:
    """The sorted int32 positions of the examples that a network was trained on, in a data set of `total` examples.

    Raises:
      InputError: fewer than two, not integers, repeated or out of range.
    """
    values = np.asarray(positions)
    if values.size < 2:
        raise InputError(f"the network was trained on {values.size} examples, it says; name at least two")
    return _distinct(values, total, "positions of the training set")


def _distinct(values: np.ndarray, total: int, what: str) -> np.ndarray:
    """Sorted int32 positions, each from 0 to total - 1 and named once."""
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{what} must be a list of integers, got {values.dtype} of shape {values.shape}")
    outside = values[(values < 0) | (values >= total)]
    if outside.size:
        raise InputError(
            f"{outside.size} {what} lie outside 0 to {total - 1}, the first is {outside[0]}; "
            "positions count training examples from 0"
        )
    unique, counts = np.unique(values, return_counts=True)
    if unique.size < values.size:
        raise InputError(
            f"{int((counts > 1).sum())} {what} are repeated, the first is {unique[counts > 1][0]}; "
            "name every example once"
        )
    return unique.astype(np.int32)


def permutation(key: Key, total: int) -> np.ndarray:
    """A random order of `range(total)`, on the host. int32, shape=(total,)"""
    # One host generator per key: the same order on every backend, and no compilation per size.
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.default_rng(words).permutation(total).astype(np.int32)


def shuffled_batches(key: Key, total: int, batch_size: int, *, fill: bool = True) -> list[np.ndarray]:
    """One pass over all positions in random order, in batches.

    With `fill` every batch has the same size, min(batch_size, total): the last one is filled up from the front of the
    same order, so every example is seen and the step compiles once. Without it the last batch may be smaller.

    Raises:
      InputError: `batch_size` is below 1.
    """
    batch_size = check_batch_size(batch_size)
    order = permutation(key, total)
    if fill and total:
        batch_size = min(batch_size, total)
        missing = -total % batch_size
        order = np.concatenate([order, order[:missing]])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def cycled_batches(key: Key, total: int, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of one size without end: pass after pass, each in a fresh random order; none where `total` is 0."""
    turn = 0
    while total:
        yield from shuffled_batches(jax.random.fold_in(key, turn), total, batch_size)
        turn += 1


def even_batches(total: int, batch_size: int) -> list[np.ndarray]:
    """All positions in order, once, in as few batches as fit, of sizes that differ by at most one."""
    batch_size = check_batch_size(batch_size)
    return np.array_split(np.arange(total, dtype=np.int32), -(-total // batch_size)) if total else []


def check_batch_size(batch_size: int) -> int:
    """Raises InputError unless the batch size is at least 1."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size
