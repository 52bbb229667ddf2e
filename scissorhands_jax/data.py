"""Examples as arrays: positions, batches, forget sets, augmentation on the device.

A data set is a pytree of arrays that share their first axis. Batches are int32 positions into it, so that the order of
examples is a pure function of (key, epoch), costs nothing to skip when a run resumes, and is gathered inside the
compiled step.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

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


FORGET_FORMS = "random:0.1, class:3, identity:NAME, identity:random:4, indices:FILE or mislabelled:FILE"


def forget_positions(
    spec: str,
    labels: np.ndarray,
    *,
    seed: int,
    class_names: Sequence[str] = (),
    trained_on: np.ndarray | None = None,
) -> np.ndarray:
    """The positions that a forget specification names, every one in the training set of the network.

    Args:
      spec: one of
        `random:0.1`, that share of the training set, drawn with `seed`;
        `class:3` or `class:3,5`, all examples of these labels or class names;
        `identity:NAME` or `identity:NAME,NAME`, all examples of these class names;
        `identity:FILE`, the same with one name per line of a text file;
        `identity:random:4`, that many identities (labels), drawn with `seed`;
        `indices:FILE`, one integer position per line;
        `mislabelled:FILE`, positions of wrongly labelled examples, as `read_mislabelled` takes them.
        In files, text after # is ignored.
      labels: of all examples of the data set's training split. shape=(N,)
      seed: of the random draws.
      class_names: of the labels 0, 1, ...
      trained_on: positions of those examples that the network was trained on, and draws are made from; None: all.

    Returns:
      Sorted int32 positions in `labels`.

    Raises:
      InputError: the specification cannot be read, names no valid forget set, or one that the network was not trained
        on.
    """
    kind, _, value = spec.partition(":")
    total = len(labels)
    known = np.arange(total) if trained_on is None else check_training_set(trained_on, total)
    if not value:
        chosen = None
    elif kind == "random":
        chosen = _random_share(value, known, seed)
    elif kind == "class":
        chosen = known[np.isin(labels[known], _classes(value, np.unique(labels[known]), class_names))]
    elif kind == "identity":
        chosen = known[np.isin(labels[known], _identities(value, np.unique(labels[known]), seed, class_names))]
    elif kind == "indices":
        chosen = read_positions(Path(value))
    elif kind == "mislabelled":
        chosen, _ = read_mislabelled(Path(value))
    else:
        chosen = None
    if chosen is None:
        raise InputError(f"cannot read the forget set {spec!r}; write {FORGET_FORMS}")
    chosen = check_positions(chosen, total)
    check_trained_on(chosen, known)
    return chosen


def _random_share(value: str, known: np.ndarray, seed: int) -> np.ndarray:
    try:
        share = float(value)
    except ValueError:
        share = float("nan")
    if not 0 < share < 1:
        raise InputError(f"the forget share must lie strictly between 0 and 1, got {value!r}, e.g. random:0.1")
    return known[np.random.default_rng(seed).choice(len(known), round(share * len(known)), replace=False)]


def _classes(value: str, present: np.ndarray, class_names: Sequence[str]) -> list[int]:
    """Labels from `3,5` or from class names; a number is always a label."""
    chosen = []
    for word in value.split(","):
        label = int(word) if re.fullmatch(r"\d+", word) else _label_of(word, class_names)
        if label not in present:
            shown = ", ".join(map(str, present[:12])) + (", ..." if len(present) > 12 else "")
            raise InputError(f"there is no class {word!r} in the training set; its labels are {shown}")
        chosen.append(label)
    return chosen


def _identities(value: str, present: np.ndarray, seed: int, class_names: Sequence[str]) -> np.ndarray | list[int]:
    """Labels from names, from a file of names, or drawn."""
    if value.startswith("random:"):
        text = value.removeprefix("random:")
        if not re.fullmatch(r"\d{1,9}", text) or not 0 < int(text) < len(present):
            raise InputError(f"cannot draw {text!r} of {len(present)} identities; write identity:random:4 or so")
        return np.random.default_rng(seed).choice(present, int(text), replace=False)
    words = value.split(",")
    # A file is only looked for where the value is no list of names.
    if not set(words) <= set(class_names) and Path(value).is_file():
        words = [text for _, text in _lines(Path(value), "identities")]
    chosen = []
    for word in words:
        label = _label_of(word, class_names)
        if label not in present:
            known = [class_names[i] for i in present if i < len(class_names)]
            near = difflib.get_close_matches(word, known, n=3, cutoff=0.4) or known[:5]
            raise InputError(
                f"there is no identity {word!r} in the training set, nor a file of that name; near names are "
                f"{', '.join(near) or 'none, the data set names no classes'}"
            )
        chosen.append(label)
    return chosen


def _label_of(name: str, class_names: Sequence[str]) -> int:
    return class_names.index(name) if name in class_names else -1


def forgets_classes(spec: str) -> bool:
    """Whether a forget specification names whole classes or identities."""
    return spec.startswith(("class:", "identity:"))


def read_positions(path: Path) -> np.ndarray:
    """Integer positions from a text file, one per line; text after # is ignored.

    Raises:
      InputError: the file cannot be read, or a line is not an integer (it is named).
    """
    positions = []
    for number, text in _lines(path, "positions"):
        if not re.fullmatch(r"[+-]?\d{1,18}", text):
            raise InputError(f"line {number} of {path} is {text[:40]!r}, not an integer; write one position per line")
        positions.append(int(text))
    return np.asarray(positions, np.int64)


def read_mislabelled(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Wrongly labelled examples from a text file: `POSITION`, or `POSITION LABEL` with the right label, per line.

    Returns:
      Sorted positions, int64, and the right labels beside them, int32; None unless every line has one.

    Raises:
      InputError: the file cannot be read, or a line has another form (it is named).
    """
    rows = []
    for number, text in _lines(path, "positions"):
        if not re.fullmatch(r"\d{1,18}(\s+\d{1,9})?", text):
            raise InputError(
                f"line {number} of {path} is {text[:40]!r}; write a position, or a position and the right label"
            )
        rows.append([int(word) for word in text.split()])
    rows.sort()
    positions = np.asarray([row[0] for row in rows], np.int64)
    labelled = all(len(row) == 2 for row in rows) and bool(rows)
    return positions, np.asarray([row[1] for row in rows], np.int32) if labelled else None


def _lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file that say something, with their numbers; text after # is ignored."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the {what} in {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if text:
            yield number, text


def validation_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Holds a share of every class out of a training set.

    The network is trained on the first part only, so forget sets are drawn from that part: hand it on as `trained_on`.

    Args:
      labels: shape=(N,)
      share: of each class, rounded down; 0 holds out nothing.
      seed: of the draws.

    Returns:
      Sorted int32 positions to train on and to validate with; together all, each once.

    Raises:
      InputError: `share` is not in [0, 1), or every class is too small for it.
    """
    if not 0 <= share < 1:
        raise InputError(f"the validation share must lie in [0, 1), got {share}")
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # The small number keeps 0.29 * 100 at 29.
        held[generator.permutation(members)[: int(share * len(members) + 1e-9)]] = True
    if share and not held.any():
        raise InputError(f"a validation share of {share} is less than one example of every class; make it larger")
    return np.flatnonzero(~held).astype(np.int32), np.flatnonzero(held).astype(np.int32)


def flip_labels(labels: np.ndarray, share: float, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gives a random share of the examples another label, each of the wrong ones equally likely.

    Args:
      labels: in 0 .. num_classes - 1. shape=(N,)
      share: of the examples, in [0, 1].
      num_classes: at least 2.
      seed: of the draws.

    Returns:
      The labels, of the same type, and the sorted int32 positions where they are now wrong.

    Raises:
      InputError: a number is out of its range.
    """
    if not 0 <= share <= 1 or num_classes < 2:
        raise InputError(f"flip a share from 0 to 1 among at least 2 classes, got {share} among {num_classes}")
    # A stream of its own, so that the forget set of the same seed is drawn independently.
    generator = np.random.default_rng([seed, 7])
    flipped = generator.choice(len(labels), round(share * len(labels)), replace=False)
    changed = labels.copy()
    changed[flipped] = (labels[flipped] + generator.integers(1, num_classes, len(flipped))) % num_classes
    return changed, np.sort(flipped).astype(np.int32)


def known_classes(test: Dataset, retain: Dataset) -> Dataset:
    """The test examples whose class is still in the retain set, as the authors' code tests class-wise forgetting.

    The retrained network cannot know a class, or an identity, that was forgotten as a whole. Both sets have a "label"
    array.
    """
    kept = np.isin(test["label"], np.unique(retain["label"]))
    return test if kept.all() else take(test, np.flatnonzero(kept))


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
    crop_key, flip_key = jax.random.split(key)
    flips = jax.random.bernoulli(flip_key, shape=(len(images),))
    return flip(crop(crop_key, images, padding=padding), flips)


def crop(key: Key, images: jax.Array, *, padding: int, mode: Literal["constant", "reflect"] = "constant") -> jax.Array:
    """Random crops of images padded on all sides with zeros or with their mirror image, per image, on the device.

    images: (N, H, W, C) of any dtype, for `reflect` larger than `padding`; returns the same shape and dtype.
    """
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
    corners = jax.random.randint(key, (count, 2), 0, 2 * padding + 1)

    def one(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(one)(padded, corners)


def flip(images: jax.Array, flips: jax.Array) -> jax.Array:
    """Mirrors some images left to right. images: (N, H, W, C); flips: bool, (N,)"""
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def alternating_flips(images: jax.Array, epoch: jax.Array) -> jax.Array:
    """Which images are mirrored in an epoch: each in every other one, half of them in the first (Jordan, 2024).

    Two epochs in a row show every image both ways, which random flips do for half of the images only. With which way an
    image begins is a hash of its own pixels, so it needs neither a key nor the image's position.

    Args:
      images: (N, H, W, C), integer or floating point.
      epoch: counted from 0. shape=()

    Returns:
      bool, shape=(N,)
    """
    words = jax.lax.bitcast_convert_type(images, jnp.dtype(f"uint{8 * images.dtype.itemsize}"))
    # A sum does not mind how the pixels lie in memory; the multiplier (2^32 / golden ratio) stirs every bit of it into
    # the highest one.
    sums = jnp.sum(words, axis=(1, 2, 3), dtype=jnp.uint32)
    first = (sums * jnp.uint32(2654435769)) >> 31
    return ((first + jnp.asarray(epoch, jnp.uint32)) & 1).astype(bool)


def resize(images: np.ndarray, size: tuple[int, int], *, batch_size: int = 256) -> np.ndarray:
    """Images of another height and width, by antialiased linear interpolation, on the host.

    images: (N, H, W, C), uint8 or floating point; returns (N, *size, C) of the same type.
    """
    if min(size) < 1:
        raise InputError(f"images can be resized to a height and width of at least 1, got {size}")
    if images.shape[1:3] == tuple(size):
        return images
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        shape = (len(batch), *size, images.shape[-1])
        wide = jax.image.resize(batch.astype(np.float32), shape, "linear", antialias=True)
        is_integer = np.issubdtype(images.dtype, np.integer)
        parts.append(np.asarray(jnp.clip(jnp.round(wide), 0, 255) if is_integer else wide).astype(images.dtype))
    return np.concatenate(parts)
