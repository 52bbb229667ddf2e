"""Weights that a file holds as a product of several arrays: pruned ones and normalised ones, multiplied out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from scissorhands_jax.errors import WeightsError, listed
from scissorhands_jax.torch_weights.tensors import show
from scissorhands_jax.torch_weights.weight_files import StateDict

_PROFILERS = ("total_ops", "total_params")  # buffers that thop adds to every module
_PARTS: tuple[tuple[str, str, str], ...] = (
    ("{module}.{name}_orig", "{module}.{name}_mask", "pruned"),
    ("{module}.{name}_g", "{module}.{name}_v", "normalised"),
    ("{module}.parametrizations.{name}.original0", "{module}.parametrizations.{name}.original1", "normalised"),
)
"""How the two arrays of a weight are called in `torch.nn.utils.prune`, in `weight_norm` and in its parametrisation."""


def multiplied_out(arrays: Mapping[str, np.ndarray], notes: list[str]) -> StateDict:
    """Returns the arrays with each weight whole, and without the counters of profilers.

    A pruned weight is `X_orig * X_mask`. A weight in PyTorch's weight normalisation is `g * v / |v|`, whose norm is
    over the axes along which g has length 1.

    Args:
      arrays: Arrays by the names of a file.
      notes: What was done is added to it, in sentences without a full stop.

    Raises:
      WeightsError: The shapes of the two arrays do not fit, or a weight is held in another way, such as by spectral
        normalisation.
    """
    whole: StateDict = {name: array for name, array in arrays.items() if name.rpartition(".")[2] not in _PROFILERS}
    if len(whole) < len(arrays):
        notes.append(f"{len(arrays) - len(whole)} counters of a profiler (total_ops, total_params) were left aside")
    for first, second, kind in _PARTS:
        multiply: Callable[[str, np.ndarray, np.ndarray], np.ndarray] = _masked if kind == "pruned" else _normalised
        found = 0
        for name in list(whole):
            target = _target(name, first)
            other = None if target is None else second.format(module=target[0], name=target[1]).removeprefix(".")
            if target is None or other not in whole:
                continue
            stem = ".".join(filter(None, target))
            if stem not in whole:
                whole[stem] = multiply(stem, whole.pop(name), whole.pop(other))
                found += 1
        if found:
            what = "their masks" if kind == "pruned" else "their lengths (weight normalisation)"
            notes.append(f"{found} {kind} weights were multiplied by {what}")
    held = [name for name in whole if ".parametrizations." in f".{name}" or _is_spectral(name, whole)]
    if held:
        raise WeightsError(
            f"{len(held)} arrays of the file are parts of weights that are computed from them, as by spectral "
            f"normalisation ({listed([show(name)[1:-1] for name in held])}); make them plain weights in PyTorch, with "
            "torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.remove_spectral_norm, and save them"
        )
    return whole


def _target(name: str, form: str) -> tuple[str, str] | None:
    """The module and the weight that an array of this name is a part of; None for another form."""
    head, tail = form.split("{name}")
    if not name.endswith(tail):
        return None
    module, separator, weight = f".{name.removesuffix(tail)}".rpartition(head.removeprefix("{module}"))
    return (module.removeprefix("."), weight) if separator and weight else None


def _is_spectral(name: str, arrays: Mapping[str, np.ndarray]) -> bool:
    stem = name.removesuffix("_orig")
    return name.endswith("_orig") and f"{stem}_u" in arrays and stem not in arrays


def _masked(stem: str, weight: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if mask.shape != weight.shape:
        raise WeightsError(f"{show(stem)} has shape {weight.shape} and its mask {mask.shape}; save them again")
    return (weight * mask.astype(weight.dtype)).astype(weight.dtype)


def _normalised(stem: str, length: np.ndarray, direction: np.ndarray) -> np.ndarray:
    fits = length.ndim in (0, direction.ndim) and all(
        size in (1, whole) for size, whole in zip(length.shape, direction.shape, strict=False)
    )
    fits = fits and sum(size > 1 for size in length.shape) <= 1  # one length for each part along one axis, or for all
    if not fits:
        raise WeightsError(
            f"{show(stem)} has a direction of shape {direction.shape} and lengths of shape {length.shape}; save them "
            "again"
        )
    axes = tuple(axis for axis in range(direction.ndim) if length.ndim == 0 or length.shape[axis] == 1)
    norm = np.sqrt(np.sum(np.square(direction.astype(np.float64)), axis=axes, keepdims=True))
    return (length * direction / norm).astype(direction.dtype)
