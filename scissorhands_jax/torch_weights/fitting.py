"""Making the names in a file those of a network: prefixes, weights in parts, other authors' names, a renaming table."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from scissorhands_jax import reading
from scissorhands_jax.errors import WeightsError, listed
from scissorhands_jax.torch_weights.reparametrized import multiplied_out
from scissorhands_jax.torch_weights.tensors import show
from scissorhands_jax.torch_weights.weight_files import StateDict, is_averaged

# Names of one thing in the networks of several authors: the shortcut of a residual block, and the last layer.
_COUNTER = "num_batches_tracked"
_SYNONYMS = (("shortcut", "downsample"), ("fc", "linear", "classifier", "head"))
_AUTHORS = {("shortcut", "linear"): "kuangliu", ("downsample", "fc"): "torchvision"}  # who uses which together


class Fitted(NamedTuple):
    """A state dict under the names of a network, and what was done to it, in sentences without a full stop."""

    state_dict: StateDict
    notes: list[str]
    prefix: str = ""
    """The prefix that was removed."""
    names: Mapping[str, str] = MappingProxyType({})
    """The names of the file, without prefix and as a table of the user's has them, by those of the network that differ.
    """


def fit_names(
    state_dict: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rename: Mapping[str, str] | None = None,
    prefix: str | None = None,
    ema: bool | None = None,
) -> Fitted:
    """Gives the arrays of a file the names that a network expects, as far as that is certain.

    In this order: names are replaced by those of `rename`; weights that are products of several arrays are multiplied
    out (`multiplied_out`); the prefix under which the file has all names of the network is removed, and arrays without
    it are left aside, except for a last layer that only they have; the shortcuts and the last layer of residual
    networks are called what the network calls them, and so is a single layer whose name alone does not fit. Nothing is
    done where the names fit. What does not fit afterwards is for `from_state_dict` to say.

    Args:
      state_dict: Arrays by the names of the file.
      shapes: The shapes that the network expects, by name (`state_dict_shapes`).
      rename: New names by old ones. Names that it lacks stay.
      prefix: The prefix to remove. None finds it.
      ema: Whether to read averaged weights (EMA) where the file has the network with and without averaging. None
        refuses such a file.

    Raises:
      WeightsError: A name of `rename` is not in the file, or two arrays would have one name; a prefix was named that no
        array has; or the file has the network several times, as with and without averaging.
    """
    notes: list[str] = []
    arrays = _renamed(state_dict, rename or {}, notes)
    named = [{name for name in names if not name.endswith(_COUNTER)} for names in (arrays, shapes)]
    if named[0] != named[1]:  # Where all names fit, what looks like a part of a weight is a weight.
        arrays = multiplied_out(arrays, notes)
    if prefix is None:
        prefix = _prefix_of(arrays, shapes, ema)
        if not prefix and ema is False:
            arrays = _without_averages(arrays, shapes, notes)
    arrays = _without_prefix(arrays, prefix, notes)
    fitted = _with_the_last_name(_with_synonyms(arrays, shapes, notes), shapes, notes)
    names = {new: old for new, old in zip(fitted, arrays, strict=True) if new != old}
    return Fitted(fitted, notes, prefix, names)


def fit_in_order(state_dict: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> Fitted | None:
    """Gives the arrays of a file the names of a network by their order alone, if all shapes agree.

    Counters of BatchNorm (`num_batches_tracked`) are left out on both sides. Two arrays of one shape that have changed
    places go unnoticed, so nobody should rely on it who has not compared the network's answers.

    Args:
      state_dict: Arrays by the names of the file, in its order.
      shapes: The shapes that the network expects, in the order in which PyTorch code defines its layers.

    Returns:
      None if the arrays do not have these shapes in this order.
    """
    given = {name: array for name, array in state_dict.items() if not name.endswith(_COUNTER)}
    expected = {name: shape for name, shape in shapes.items() if not name.endswith(_COUNTER)}
    if not given or [array.shape for array in given.values()] != list(expected.values()):
        return None
    notes = [f"its {len(given)} arrays were read in the order of the file, whatever their names"]
    names = dict(zip(expected, given, strict=True))
    for ours, theirs in list(names.items()):
        if ours.endswith(".running_mean"):  # The counter of the same layer has no array to be paired with.
            names[ours.removesuffix("running_mean") + _COUNTER] = theirs.removesuffix("running_mean") + _COUNTER
    return Fitted(
        dict(zip(expected, given.values(), strict=True)),
        notes,
        names={ours: theirs for ours, theirs in names.items() if ours != theirs},
    )


def read_renaming(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads a renaming table: the name in the file and the name in the network, for each array that is renamed.

    Args:
      path: A JSON object, or text with two names a line, with white space or a comma between them. In text, what
        follows # is ignored.

    Raises:
      WeightsError: The file cannot be read, or holds something else.
    """
    where = Path(path)
    try:
        text = reading.read_text(where)
        found = reading.parse_json(text) if text.lstrip().startswith("{") else None
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"cannot read the renaming table {where} ({error}); name a file with two names a line"
        ) from error
    if isinstance(found, dict):
        if not all(isinstance(name, str) for name in found.values()):
            raise WeightsError(f"the renaming table {where} has values that are no text; give new names by old ones")
        return found
    table: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) != 2 or words[0] in table:
            raise WeightsError(
                f"line {number} of {where} is {show(line.strip())}; write the name in the file and the name in the "
                "network, each array once"
            )
        table[words[0]] = words[1]
    if not table:
        raise WeightsError(f"the renaming table {where} is empty; write two names a line")
    return table


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


def _prefix_of(arrays: StateDict, shapes: Mapping[str, tuple[int, ...]], ema: bool | None) -> str:
    """Returns the prefix under which the file has the network; none if it has the names without one."""
    needed = [name for name in shapes if not name.endswith(_COUNTER)]
    if not needed:
        return ""
    found = _prefixes(arrays, needed)
    averages = [prefix for prefix in found if is_averaged(prefix)]
    exact = all(name in arrays for name in needed)
    if exact or (averages == found and all(name in arrays for name in _stems(needed))):
        found = [*(averages if ema is not False else []), ""]
    if ema is not None and len(found) > 1:
        found = [prefix for prefix in found if is_averaged(prefix) == ema] or found
    if len(found) > 1:
        shown = listed(_shown(prefix for prefix in found if prefix)) + (" and without one" if "" in found else "")
        if len([prefix for prefix in found if not is_averaged(prefix)]) == 1:
            raise WeightsError(
                f"the file has this network with averaged weights (EMA) and without, under the prefixes {shown}; "
                "choose with --ema or --no-ema (ema=True or False)"
            )
        raise WeightsError(
            f"the file has this network {len(found)} times, under the prefixes {shown}; name one (--prefix, prefix=)"
        )
    return found[0] if found else ""


def _without_averages(arrays: StateDict, shapes: Mapping[str, tuple[int, ...]], notes: list[str]) -> StateDict:
    """Returns the arrays without averages of the network under prefixes of their own."""
    averages = tuple(filter(is_averaged, _prefixes(arrays, [name for name in shapes if not name.endswith(_COUNTER)])))
    left = [name for name in arrays if name.startswith(averages)]
    if left:
        notes.append(f"{len(left)} arrays of averaged weights (EMA) were left aside ({listed(_shown(left))})")
    return {name: array for name, array in arrays.items() if name not in left}


def _without_prefix(arrays: StateDict, prefix: str, notes: list[str]) -> StateDict:
    kept = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if not kept:
        raise WeightsError(f"no name in the file begins with {show(prefix)}; its names are {listed(_shown(arrays))}")
    if prefix:
        left = [name for name in arrays if not name.startswith(prefix)]
        has_head = any(part in _SYNONYMS[1] for name in kept for part in name.split(".")[:-1])
        heads = [] if has_head else [name for name in left if name.split(".")[0] in _SYNONYMS[1]]
        kept |= {name: arrays[name] for name in heads}
        left = [name for name in left if name not in heads]
        aside = f", and {len(left)} arrays without it were left aside ({listed(_shown(left))})" if left else ""
        notes.append(f"the prefix {show(prefix)} was removed{aside}")
    return kept


def _prefixes(arrays: StateDict, needed: list[str]) -> list[str]:
    """Returns the prefixes under which the file has all names of the network, whatever its last layer is called."""
    stems = _stems(needed)
    first = stems[0]
    candidates = [
        name.removesuffix(first) for name in arrays if name.endswith(tuple(f"{end}{first}" for end in "._/-"))
    ]
    return [each for each in candidates if all(each + name in arrays for name in stems)]


def _stems(needed: list[str]) -> list[str]:
    """The names that all authors have, as far as there are any."""
    return [name for name in needed if not _has_synonym(name)] or needed


def _has_synonym(name: str) -> bool:
    return any(part in group for part in name.split(".") for group in _SYNONYMS)


def _with_synonyms(arrays: StateDict, shapes: Mapping[str, tuple[int, ...]], notes: list[str]) -> StateDict:
    """Returns the arrays under the names of the network, if exchanging synonyms makes all of them fit."""
    expected = {name for name in shapes if not name.endswith(_COUNTER)}
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


def _with_the_last_name(arrays: StateDict, shapes: Mapping[str, tuple[int, ...]], notes: list[str]) -> StateDict:
    """Returns the arrays with the one layer renamed that alone has another name, if its shapes are right."""
    sides = []
    for given, other in (({name: a.shape for name, a in arrays.items()}, shapes), (dict(shapes), arrays)):
        alone = {name: shape for name, shape in given.items() if name not in other and not name.endswith(_COUNTER)}
        sides.append((alone, {name.rpartition(".")[0] for name in alone}))
    (extra, here), (missing, there) = sides
    if len(here) != 1 or len(there) != 1:
        return arrays
    (old,), (new,) = here, there
    if {name.removeprefix(f"{old}."): shape for name, shape in extra.items()} != {
        name.removeprefix(f"{new}."): shape for name, shape in missing.items()
    }:
        return arrays
    notes.append(f"{show(old)} was read as {show(new)}, the only layer with another name, whose shapes agree")
    return {new + name.removeprefix(old) if name.startswith(f"{old}.") else name: a for name, a in arrays.items()}


def _exchanged(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    exchange = dict(pairs)
    return ".".join(exchange.get(part, part) for part in name.split("."))


def _shown(names: Iterable[str]) -> list[str]:
    return [show(name)[1:-1] for name in names]
