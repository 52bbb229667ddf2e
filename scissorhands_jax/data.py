"""Examples as arrays: data sets, positions of examples, the forget and retain parts, and batches.

A data set is a pytree of arrays that share their first axis. A batch is an array of int32 positions into it, so that
the order of examples depends on the key and the epoch alone, a resumed run can skip batches at no cost, and examples
are gathered inside the compiled step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Batch, Data, Dataset, Key
from scissorhands_jax.errors import InputError, check_whole
from scissorhands_jax.trees import is_typed, named_leaves, unknown_to_jax

_logger = logging.getLogger(__name__)


def size(dataset: Dataset) -> int:
    """Counts the examples of a data set. `None` is an empty data set.

    Raises:
      InputError: The arrays differ in the length of their first axis, something is no array of NumPy or JAX, or the
        data set is a list of batches.
    """
    if isinstance(dataset, list) and len(dataset) > 1 and all(isinstance(one, Mapping) for one in dataset):
        raise InputError(
            f"the data set is a list of {len(dataset)} dicts; give one dict of arrays, as jax.tree.map(lambda *parts: "
            "numpy.concatenate(parts), *batches) makes it of batches"
        )
    lengths = set()
    for name, leaf in named_leaves(dataset):
        shape = getattr(leaf, "shape", ())
        if not shape or not is_typed(leaf):
            raise InputError(
                f"a data set has a {type(leaf).__name__} at {name or 'its root'}; give arrays with one "
                "entry for each example, as numpy.asarray makes them of lists and of tensors"
            )
        lengths.add(shape[0])
    if len(lengths) > 1:
        raise InputError(
            f"the arrays of a data set have first axes of lengths {sorted(lengths)}; "
            "give arrays with one entry for each example"
        )
    return lengths.pop() if lengths else 0


def check_parts(data: Data) -> None:
    """Refuses data that are not two parts with arrays of numbers, of which no number is read.

    Raises:
      InputError: The data are no `Data`, a part is no data set, an array is of another type in the other part, or as
        `check_numbers`.
    """
    if not (hasattr(data, "forget") and hasattr(data, "retain")):
        raise InputError(
            f"the data are a {type(data).__name__}; give the two parts, as split(train, positions) makes them, or "
            "Data(forget=..., retain=...)"
        )
    for part, dataset in _named_parts(data):
        size(dataset)
        check_numbers(dataset, f"the {part} set")
    _check_types(data)


def check_numbers(dataset: Dataset, what: str) -> None:
    """Refuses arrays that JAX cannot take; no number is read.

    Args:
      dataset: A pytree of arrays.
      what: What it is, for the message.

    Raises:
      InputError: An array is of no numbers, masked, of records, or of a type or an order of bytes that JAX does not
        know. The message says what makes an array of it that JAX takes.
    """
    for name, leaf in _leaves_with_numbers(dataset):
        where = what if leaf is dataset else f"{name!r} of {what}"
        if np.dtype(leaf.dtype).kind in "USOMm":
            raise InputError(f"{where} is an array of {leaf.dtype}, not of numbers; give labels as integers")
        if (unknown := unknown_to_jax(leaf)) is not None:
            found, advice = unknown
            raise InputError(f"{where} is {found}; {advice}")


def check_not_masked(given: Any, what: str) -> None:
    """Refuses a masked array, whose masked entries would count like the others.

    Args:
      given: Anything.
      what: What it is, a plural, for the message.

    Raises:
      InputError: It is a masked array.
    """
    if isinstance(given, np.ma.MaskedArray):
        raise InputError(
            f"{what} are a masked array, and all of its entries would count; leave out what is masked, as with "
            ".compressed(), or put numbers in its place, as with .filled(0)"
        )


def check_values(data: Data) -> None:
    """Refuses data that no training can use. All that this process has of them is read.

    Floats called `image` that look like values from 0 to 255 are only warned of, since some networks take them.

    Raises:
      InputError: As `check_parts`, or an array of floats holds NaN or infinity, or an array of integers called `label`,
        with one for each example, a negative number. The message names the first such example.
    """
    check_parts(data)
    for part, dataset in _named_parts(data):
        for name, leaf in _leaves_with_numbers(dataset):
            if isinstance(leaf, jax.core.Tracer) or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
                continue
            values = np.asarray(leaf)
            advice = "correct or leave out these examples"
            if jnp.issubdtype(values.dtype, jnp.inexact):
                good, what = np.isfinite(values), "NaN or infinity"
            elif name.split("/")[-1] == "label" and values.ndim == 1 and np.issubdtype(values.dtype, np.signedinteger):
                good, what = values >= 0, "a negative label"
                advice += ", or give them as floats if they are no classes"
            else:
                continue
            if not good.all():
                bad = np.flatnonzero(~good.reshape(len(values), -1).all(axis=1))
                raise InputError(
                    f"{len(bad)} examples of the {part} set have {what} in {name!r}, the first is example {bad[0]}; "
                    f"{advice}"
                )
            is_image = name.split("/")[-1] == "image" and jnp.issubdtype(values.dtype, jnp.floating)
            if is_image and values.min() >= 0 and values.max() > 64:
                _logger.warning(
                    "images of the %s set are %s up to %g; networks of the registry take floats in [0, 1] or uint8",
                    *(part, values.dtype, float(values.max())),
                )


def _named_parts(data: Data) -> list[tuple[str, Dataset]]:
    """The parts and what they are called; without a forget set it is plain training, and nobody has spoken of parts."""
    return [("forget", data.forget), ("retain" if size(data.forget) else "training", data.retain)]


def _leaves_with_numbers(dataset: Dataset) -> Iterator[tuple[str, Any]]:
    """The arrays of a data set that have entries other than keys, with their names."""
    for name, leaf in named_leaves(dataset):
        if hasattr(leaf, "dtype") and np.size(leaf) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            yield name or "data", leaf


def largest_label(data: Data) -> int | None:
    """Returns the largest value of the integer arrays called `label`; None if there are none in this process."""
    found = [
        int(np.max(leaf))
        for name, leaf in named_leaves(data)
        if name.split("/")[-1] == "label"
        and not (isinstance(leaf, jax.core.Tracer) or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable))
        and np.size(leaf)
        and jnp.issubdtype(leaf.dtype, jnp.integer)
    ]
    return max(found, default=None)


def take(dataset: Dataset, positions: jax.Array | np.ndarray | slice | None) -> Dataset:
    """Returns the examples at the given positions, or `None` if the positions are `None`. It works inside jit."""
    if positions is None:
        return None
    return jax.tree.map(lambda leaf: leaf[positions], dataset)


def joined(*parts: Dataset) -> Dataset:
    """Some sets of examples as one, without the arrays that only some of them have. It works inside jit."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *shared(*parts))


def shared(*parts: Dataset) -> tuple[Dataset, ...]:
    """The same sets of examples; of dicts only the arrays whose names all of them have."""
    if not all(isinstance(part, Mapping) for part in parts):
        return parts
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return tuple({name: part[name] for name in names} for part in parts)


def check_batches(data: Data, batches: Sequence[Batch]) -> None:
    """Refuses batches of positions that are not in the data, which compiled code would read as others.

    Args:
      data: The data that the positions refer to.
      batches: The batches of an epoch, in order.

    Raises:
      InputError: A position is no integer, is negative, or is not below the number of examples.
    """
    for part in Batch._fields:
        total = size(getattr(data, part))
        for number, batch in enumerate(batches):
            positions = np.asarray(() if getattr(batch, part) is None else getattr(batch, part))
            if not positions.size:
                continue
            if not np.issubdtype(positions.dtype, np.integer):
                raise InputError(
                    f"batch {number} of the epoch has {positions.dtype} as positions of the {part} set; give integers"
                )
            if positions.min() < 0 or positions.max() >= total:
                wrong = positions.min() if positions.min() < 0 else positions.max()
                raise InputError(
                    f"batch {number} of the epoch names position {wrong} of the {part} set, which has {total} "
                    "examples; positions count examples from 0"
                )


def gather(data: Data, batch: Batch) -> Batch:
    """Turns a batch of positions into a batch of examples."""
    return Batch(take(data.forget, batch.forget), take(data.retain, batch.retain))


def _check_types(data: Data) -> None:
    """Refuses arrays of one name and two types: as one batch they would be converted, say images of 0 to 255 to floats.

    Raises:
      InputError: There are such arrays.
    """

    def types(part: Dataset) -> dict[str, Any]:
        # What has no type is refused for that, and what has no example is in no batch.
        typed = {name: leaf.dtype for name, leaf in named_leaves(part) if hasattr(leaf, "dtype") and np.size(leaf)}
        return {name: jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True) for name, dtype in typed.items()}

    forget, retain = types(data.forget), types(data.retain)
    for name in forget:
        if forget[name] != retain.get(name, forget[name]):
            raise InputError(
                f"{name or 'data'!r} is {forget[name]} in the forget set and {retain[name]} in the retain set; make "
                "both of one type before you split them"
            )


def split(train: Dataset, forget: Iterable, trained_on: np.ndarray | None = None) -> Data:
    """Splits a training set into the forget and the retain set. The forget set is sorted, and both keep their order.

    Args:
      train: The data set that the positions refer to.
      forget: The positions of the examples to forget, in any order; see `check_positions` for the forms.
      trained_on: The positions of all examples that the network was trained on, or a mask; all others are in neither
        part. By default the network was trained on the whole data set.

    Raises:
      InputError: The positions cannot be used; see `check_positions`, `check_training_set` and `check_trained_on`.
    """
    total = size(train)
    chosen = check_positions(forget, total)
    keep = np.zeros(total, bool)
    if trained_on is None:
        keep[:] = True
    else:
        keep[check_trained_on(chosen, check_training_set(trained_on, total))] = True
    keep[chosen] = False
    return Data(take(train, chosen), take(train, np.flatnonzero(keep)))


def check_positions(positions: Iterable, total: int) -> np.ndarray:
    """Returns the positions of a forget set, sorted and as int32.

    Args:
      positions: Integers, each of which counts training examples from 0: an array, list, set, range or generator. Or a
        mask, an array of `total` bools that is True for the examples.
      total: The number of examples in the training set.

    Raises:
      InputError: There are no positions, they are not integers, are repeated or out of range, or they are the whole
        training set.
    """
    values = _as_positions(positions, total, "forget positions")
    if values.size == 0:
        raise InputError("the forget set is empty; name at least one training example")
    unique = _distinct(values, total, "forget positions")
    if unique.size == total:
        raise InputError(_nothing_to_retain(total))
    return unique


def _nothing_to_retain(total: int) -> str:
    return f"the forget set is the whole training set of {total}, which leaves nothing to retain; name fewer examples"


def check_trained_on(forget: np.ndarray, trained_on: np.ndarray) -> np.ndarray:
    """Checks that every example to forget was in the training set of the network.

    Args:
      forget: The positions of the forget set, each once.
      trained_on: The positions of all examples that the network was trained on, in the same data set.

    Returns:
      The positions in `trained_on`, sorted.

    Raises:
      InputError: The network was not trained on some of the examples, so that it cannot forget them; or nothing would
        be left to retain.
    """
    known = np.unique(trained_on)
    unseen = np.setdiff1d(forget, known)
    if unseen.size:
        raise InputError(
            f"{unseen.size} of the {len(forget)} examples to forget were not in the training set of this network, "
            f"the first is {unseen[0]}; name only examples that it was trained on and has not forgotten yet"
        )
    if known.size == len(forget):
        raise InputError(_nothing_to_retain(known.size))
    return known


def check_training_set(positions: Iterable, total: int) -> np.ndarray:
    """Returns the positions of the examples that a network was trained on, sorted and as int32.

    Args:
      positions: Integers, each of which counts examples of the data set from 0.
      total: The number of examples in the data set.

    Raises:
      InputError: There are fewer than two positions, or they are not integers, are repeated or out of range.
    """
    values = _as_positions(positions, total, "positions of the training set")
    if values.size < 2:
        raise InputError(f"the training set of the network has {values.size} positions; name at least two")
    return _distinct(values, total, "positions of the training set")


def check_held_out(positions: Iterable, total: int) -> np.ndarray:
    """Returns the positions of the examples that are held out for testing, sorted and as int32.

    Args:
      positions: Integers or a mask, as in `check_positions`.
      total: The number of examples in the data set.

    Raises:
      InputError: The positions cannot be used, there are none, or fewer than two examples are left.
    """
    held = _distinct(_as_positions(positions, total, "positions held out"), total, "positions held out")
    if not held.size or total - held.size < 2:
        raise InputError(f"{held.size} of {total} examples are held out; hold out at least one, and leave at least two")
    return held


def _as_positions(given: Iterable, total: int, what: str) -> np.ndarray:
    """Returns positions as an array of integers, whether they were given as such or as a mask."""
    if isinstance(given, str | bytes) or not (hasattr(given, "__array__") or isinstance(given, Iterable)):
        raise InputError(
            f"the {what} are {given!r:.40}; give a list of integers, or a mask with a bool for each example"
        )
    check_not_masked(given, f"the {what}")
    values = np.asarray(given if hasattr(given, "__array__") or isinstance(given, list | tuple) else list(given))
    if values.dtype == np.bool_:
        if values.shape != (total,):
            raise InputError(
                f"the {what} are a mask of shape {values.shape}, and there are {total} training examples; give a bool "
                "for each of them"
            )
        return np.flatnonzero(values)
    if values.shape == (0,):
        return values.astype(np.int32)  # An empty list is of no type.
    if values.ndim == 2 and 1 in values.shape:
        raise InputError(f"the {what} are an array of shape {values.shape}; flatten it, as with positions.ravel()")
    if values.size and values.ndim == 1 and np.issubdtype(values.dtype, np.floating):
        advice = "convert them with .astype(int)" if np.all(values % 1 == 0) else "positions count examples from 0"
        raise InputError(f"the {what} are {values.dtype} and not integers; {advice}")
    return values


def _distinct(values: np.ndarray, total: int, what: str) -> np.ndarray:
    """Returns positions sorted and as int32, if each lies in 0 to total - 1 and occurs once; else raises InputError."""
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"the {what} are {values.dtype} of shape {values.shape}; give a list of integers")
    outside = values[(values < 0) | (values >= total)]
    if outside.size:
        raise InputError(
            f"{outside.size} {what} lie outside 0 to {total - 1}, the first is {outside[0]}; "
            "positions count training examples from 0"
        )
    unique, counts = np.unique(values, return_counts=True)
    if len(values) == total > 2 and set(unique.tolist()) <= {0, 1}:
        raise InputError(
            f"the {what} are zeros and ones, one for each of the {total} examples; give a mask of bools, as with "
            ".astype(bool)"
        )
    if unique.size < values.size:
        raise InputError(
            f"{int((counts > 1).sum())} {what} are repeated, the first is {unique[counts > 1][0]}; "
            "name every example once"
        )
    return unique.astype(np.int32)


def permutation(key: Key, total: int) -> np.ndarray:
    """Returns a random order of `range(total)` as a NumPy array of type int32 and shape (total,)."""
    # NumPy's generator, seeded with the key, gives the same order on every backend, and nothing is compiled per size.
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.default_rng(words).permutation(total).astype(np.int32)


def shuffled_batches(key: Key, total: int, batch_size: int, *, fill: bool = True) -> list[np.ndarray]:
    """Divides all positions, in random order, into batches.

    Args:
      key: The typed PRNG key that decides the order.
      total: The number of examples.
      batch_size: The number of examples in a batch.
      fill: Whether every batch has the same size, min(batch_size, total): the last one is then filled with the first
        positions of the same order, so that every example is seen and the step compiles once. Otherwise the last batch
        may be smaller.

    Returns:
      int32 arrays of shape (min(batch_size, total),), which each hold positions of examples; without `fill` the last
      one may be shorter.

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
    """Yields batches of one size without end: pass after pass over all positions, each in a fresh random order.

    It yields nothing if `total` is 0. See `shuffled_batches` for the arguments.
    """
    epoch = 0
    while total:
        yield from shuffled_batches(jax.random.fold_in(key, epoch), total, batch_size)
        epoch += 1


def even_batches(total: int, batch_size: int) -> list[np.ndarray]:
    """Divides `range(total)` into the fewest batches of at most `batch_size`, whose sizes differ by at most one.

    Raises:
      InputError: `batch_size` is below 1.
    """
    batch_size = check_batch_size(batch_size)
    return np.array_split(np.arange(total, dtype=np.int32), -(-total // batch_size)) if total else []


def check_batch_size(batch_size: int) -> int:
    """Returns the batch size.

    Raises:
      InputError: It is below 1, or no whole number.
    """
    return check_whole("batch_size", batch_size, 1)
