"""Making the names in a file those of a network: prefixes, pruned weights, other authors' names, a renaming table."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from scissorhands_jax.errors import WeightsError
from scissorhands_jax.torch_weights.tensors import show
from scissorhands_jax.torch_weights.weight_files import StateDict, listed

# Names of one thing in the networks of several authors: the shortcut of a residual block, and the last layer.
_SYNONYMS = (("shortcut", "downsample"), ("fc", "linear", "classifier", "head"))
_AUTHORS = {("shortcut", "linear"): "kuangliu", ("downsample", "fc"): "torchvision"}  # who uses which together


class Fitted(NamedTuple):
    """A state dict under the names of a network, and what was done to it, in sentences without a full stop."""

    state_dict: StateDict
    notes: list[str]


def fit_names(
    state_dict: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rename: Mapping[str, str] | None = None,
    prefix: str | None = None,
) -> Fitted:
    """Gives the arrays of a file the names that a network expects, as far as that is certain.

    In this order: names are replaced by those of `rename`; pruned weights `X_orig` are multiplied by their masks
    `X_mask`; the prefix under which the file has all names of the network is removed, and arrays without it are left
    aside; the shortcuts and the last layer of residual networks are called what the network calls them. Nothing is done
    where the names fit. What does not fit afterwards is for `from_state_dict` to say.

    Args:
      state_dict: Arrays by the names of the file.
      shapes: The shapes that the network expects, by name (`state_dict_shapes`).
      rename: New names by old ones. Names that it lacks stay.
      prefix: The prefix to remove. None finds it.

    Raises:
      WeightsError: A name of `rename` is not in the file, or two arrays would have one name; a prefix was named that no
        array has; or the file has the network several times, as with and without averaging.
    """
    notes: list[str] = []
    arrays = _renamed(state_dict, rename or {}, notes)
    arrays = _unpruned(arrays, notes)
    arrays = _without_prefix(arrays, shapes, prefix, notes)
    return Fitted(_with_synonyms(arrays, shapes, notes), notes)


def _renamed(state_dict: Mapping[str, np.ndarray], rename: Mapping[str, str], notes: list[str]) -> StateDict:
    unknown = [name for name in rename if name not in state_dict]
    if unknown:
        raise WeightsError(
            f"the renaming table has {len(unknown)} names that are not in the file ({listed(_shown(unknown))}); its "
            f"names are {listed(_shown(state_dict))}"
        )
    names = [rename.get(name, name) for name in state_dict]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise WeightsError(f"the renaming table gives several arrays the name {listed(_shown(twice))}; name each once")
    if rename:
        notes.append(f"{len(rename)} arrays were renamed by the table")
    return dict(zip(names, state_dict.values(), strict=True))


def _unpruned(arrays: StateDict, notes: list[str]) -> StateDict:
    stems = [name.removesuffix("_orig") for name in arrays if name.endswith("_orig")]
    pruned = [stem for stem in stems if f"{stem}_mask" in arrays and stem not in arrays]
    if not pruned:
        return arrays
    whole: StateDict = {}
    for name, array in arrays.items():
        stem, _, last = name.rpartition("_")
        if stem in pruned and last == "orig":
            mask = arrays[f"{stem}_mask"]
            if mask.shape != array.shape:
                raise WeightsError(f"{show(stem)} has shape {array.shape} and its mask {mask.shape}; save them again")
            whole[stem] = (array * mask.astype(array.dtype)).astype(array.dtype)
        elif not (stem in pruned and last == "mask"):
            whole[name] = array
    notes.append(f"{len(pruned)} pruned weights were multiplied by their masks")
    return whole


def _without_prefix(
    arrays: StateDict, shapes: Mapping[str, tuple[int, ...]], prefix: str | None, notes: list[str]
) -> StateDict:
    if prefix is None:
        needed = [name for name in shapes if not name.endswith("num_batches_tracked")]
        if not needed or all(name in arrays for name in needed):
            return arrays
        found = _prefixes(arrays, needed)
        if len(found) > 1:
            raise WeightsError(
                f"the file has this network {len(found)} times, under the prefixes {listed(_shown(found))}, perhaps "
                "with averaged weights and without; name the prefix of the one to read"
            )
        prefix = found[0] if found else ""
    kept = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if not kept:
        raise WeightsError(f"no name in the file begins with {show(prefix)}; its names are {listed(_shown(arrays))}")
    if prefix:
        left = [name for name in arrays if not name.startswith(prefix)]
        aside = f", and {len(left)} arrays without it were left aside ({listed(_shown(left))})" if left else ""
        notes.append(f"the prefix {show(prefix)} was removed{aside}")
    return kept


def _prefixes(arrays: StateDict, needed: list[str]) -> list[str]:
    """Returns the prefixes under which the file has all names of the network, whatever its last layer is called."""
    stems = [name for name in needed if not _has_synonym(name)] or needed
    first = stems[0]
    candidates = [name.removesuffix(first) for name in arrays if name.endswith(f".{first}")]
    return [each for each in candidates if all(each + name in arrays for name in stems)]


def _has_synonym(name: str) -> bool:
    return any(part in group for part in name.split(".") for group in _SYNONYMS)


def _with_synonyms(arrays: StateDict, shapes: Mapping[str, tuple[int, ...]], notes: list[str]) -> StateDict:
    """Returns the arrays under the names of the network, if exchanging synonyms makes all of them fit."""
    expected = {name for name in shapes if not name.endswith("num_batches_tracked")}
    if expected <= arrays.keys():
        return arrays
    changes = [[None, *itertools.permutations(group, 2)] for group in _SYNONYMS]
    for chosen in itertools.product(*changes):
        pairs = [pair for pair in chosen if pair is not None]
        names = {name: _exchanged(name, pairs) for name in arrays}
        if expected <= set(names.values()) and len(set(names.values())) == len(names):
            called = tuple(next((old for old, _ in pairs if old in group), None) for group in _SYNONYMS)
            of = f", as in the networks of {_AUTHORS[called]}" if called in _AUTHORS else ""
            notes.append(f"{' and '.join(f'{old!r} was read as {new!r}' for old, new in pairs)}{of}")
            return {names[name]: array for name, array in arrays.items()}
    return arrays


def _exchanged(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    exchange = dict(pairs)
    return ".".join(exchange.get(part, part) for part in name.split("."))


def _shown(names: Iterable[str]) -> list[str]:
    return [show(name)[1:-1] for name in names]
