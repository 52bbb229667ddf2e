"""Examples as arrays: positions, batches, forget sets, augmentation on the device.

A data set is a pytree of arrays that share their first axis. Batches are int32 positions into it, so that the order of
examples is a pure function of (key, epoch), costs nothing to skip when a run resumes, and is gathered inside the
compiled step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
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


def take(dataset: Dataset, positions: jax.Array | np.ndarray | None) -> Dataset | None:
    """The examples at the given positions; works inside jit. None gives None."""
    if positions is None:
        return None
    return jax.tree.map(lambda leaf: leaf[positions], dataset)


def gather(data: Data, batch: Batch) -> Batch:
    """Turns a batch of positions into a batch of examples."""
    return Batch(take(data.forget, batch.forget), take(data.retain, batch.retain))


def split(train: Dataset, forget: np.ndarray) -> Data:
    """Splits a training set at the positions to forget; both parts keep their order.

    Raises:
      InputError: as `check_positions`.
    """
    total = size(train)
    forget = check_positions(forget, total)
    keep = np.ones(total, bool)
    keep[forget] = False
    return Data(take(train, forget), take(train, np.flatnonzero(keep)))


def check_positions(positions: Iterable, total: int) -> np.ndarray:
    """The sorted int32 positions of a forget set.

    Raises:
      InputError: empty, not integers, repeated, out of range, or the whole training set.
    """
    values = np.asarray(positions)
    if values.size == 0:
        raise InputError("the forget set is empty; name at least one training example")
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"forget positions must be a list of integers, got {values.dtype} of shape {values.shape}")
    outside = values[(values < 0) | (values >= total)]
    if outside.size:
        raise InputError(
            f"{outside.size} forget positions lie outside 0 to {total - 1}, the first is {outside[0]}; "
            "positions count training examples from 0"
        )
    unique, counts = np.unique(values, return_counts=True)
    if unique.size < values.size:
        raise InputError(
            f"{int((counts > 1).sum())} forget positions are repeated, the first is {unique[counts > 1][0]}; "
            "name every example once"
        )
    if unique.size == total:
        raise InputError(f"the forget set is the whole training set of {total}; nothing is left to retain")
    return unique.astype(np.int32)


def forget_positions(spec: str, labels: np.ndarray, *, seed: int) -> np.ndarray:
    """The positions that a forget specification names.

    Args:
      spec: `random:0.1` (that share of the training set, drawn with `seed`), `class:3` (all examples of that label) or
        `indices:FILE` (one integer position per line; text after # is ignored).
      labels: training labels. shape=(N,)
      seed: of the random draw.

    Returns:
      Sorted int32 positions.

    Raises:
      InputError: the specification cannot be read, or names no valid forget set.
    """
    kind, _, value = spec.partition(":")
    total = len(labels)
    if kind == "random" and value:
        try:
            share = float(value)
        except ValueError:
            share = float("nan")
        if not 0 < share < 1:
            raise InputError(f"the forget share must lie strictly between 0 and 1, got {value!r}, e.g. random:0.1")
        count = round(share * total)
        return check_positions(np.random.default_rng(seed).choice(total, count, replace=False), total)
    if kind == "class" and value:
        present = np.unique(labels)
        if not re.fullmatch(r"\d+", value) or int(value) not in present:
            shown = ", ".join(map(str, present[:12])) + (", ..." if len(present) > 12 else "")
            raise InputError(f"there is no class {value!r} in the training set; its labels are {shown}")
        return check_positions(np.flatnonzero(labels == int(value)), total)
    if kind == "indices" and value:
        return check_positions(read_positions(Path(value)), total)
    raise InputError(f"cannot read the forget set {spec!r}; write random:0.1, class:3 or indices:FILE")


def read_positions(path: Path) -> np.ndarray:
    """Integer positions from a text file, one per line; text after # is ignored.

    Raises:
      InputError: the file cannot be read, or a line is not an integer (it is named).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the forget positions in {path}: {error}") from error
    positions = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if not re.fullmatch(r"[+-]?\d{1,18}", text):
            raise InputError(f"line {number} of {path} is {text[:40]!r}, not an integer; write one position per line")
        positions.append(int(text))
    return np.asarray(positions, np.int64)


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


def crop_and_flip(key: Key, images: jax.Array, *, padding: int = 4) -> jax.Array:
    """Random crops of zero-padded images and random horizontal flips, per image, on the device.

    images: (N, H, W, C) of any dtype; returns the same shape and dtype.
    """
    count, height, width, _ = images.shape
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(crop_key, (count, 2), 0, 2 * padding + 1)
    flips = jax.random.bernoulli(flip_key, shape=(count,))

    def one(image, corner, flip):
        image = jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, image.shape[-1]))
        return jnp.where(flip, image[:, ::-1], image)

    return jax.vmap(one)(padded, corners, flips)
