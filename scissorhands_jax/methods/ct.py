"""Convolution transpose (CT; Cadet et al., 2024, arXiv 2410.01276): kernels are transposed, then the network learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import optax

from scissorhands_jax import reinit, trees
from scissorhands_jax.base import Data, Key, Method, Model, ModelState, Params, StatefulLossFn
from scissorhands_jax.errors import InputError
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import descend, retain_batches, retain_loss
from scissorhands_jax.methods.settings import Choices, Gradient, Range, ScheduleName, TrainingSettings
from scissorhands_jax.trees import Stacked, Where


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtOptions:
    """The keyword arguments of `ct` that are settings as well."""

    kernels: Where = None
    """The kernels that are transposed, as a pattern for `trees.select`; arrays that do not have four axes are left out.
    None is all kernels of convolutions over images, the arrays with four axes."""
    batch_size: int = 64
    """The number of retain examples that a step sees."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtArguments(CtOptions):
    """The keyword arguments of `ct`."""

    stacked: Stacked = None
    """Which arrays hold several layers along their first axes, which are none of a kernel, where other arrays do not
    tell (`trees.stacked_axes`)."""
    spatial_axes: tuple[int, int] | None = None
    """The two axes of a kernel's four that are exchanged, height and width. None goes by its name: (2, 3) for `weight`,
    the layout of PyTorch and Equinox, and (0, 1) for any other, such as Flax's `kernel`."""


@takes(CtArguments)
def ct(loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: CtArguments) -> Method:
    """Transposes the kernel of every convolution in space, w[i, j] <- w[j, i], and fine-tunes on the retain set.

    Every filter then looks for the mirror image of its pattern along the diagonal, so features have to be learned
    again, from a start that has the statistics of a trained network. Kernels of 1 x 1 stay as they are, and so does
    everything that is no kernel. A network without convolutions has nothing to transpose and is refused.

    The method is from a leading entry of the NeurIPS 2023 unlearning challenge. Cadet et al. name it, find it and `msg`
    the best of 18 methods, and publish it as `kgltop5.py`. Its settings are 3 epochs of SGD with batches of 64, and a
    rate of 1e-3 that falls along half a cosine.

    Args:
      loss_fn: The general form of the loss, a mean over a batch.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: The batch size is below 1, the axes are not two of four, or (from `init`) no kernel can be transposed
        or one is not square.
    """

    _check_axes(options.spatial_axes)

    def start(key: Key, params: Params, model_state: ModelState, data: Data) -> tuple[Params, ModelState]:
        del key, data
        return transpose_kernels(params, options.kernels, options.spatial_axes, options.stacked), model_state

    return descend(
        retain_loss(loss_fn), optimizer, batches=retain_batches(options.batch_size), reads=("retain",), start=start
    )


def _check_axes(axes: tuple[int, int] | None) -> None:
    if axes is not None and not (len(axes) == 2 == len({axis % 4 for axis in axes}) and all(-4 <= a < 4 for a in axes)):
        raise InputError(f"spatial_axes must be two different axes of four, such as (0, 1), got {axes}")


def transpose_kernels(
    params: Params, kernels: Where = None, spatial_axes: tuple[int, int] | None = None, stacked: Stacked = None
) -> Params:
    """Exchanges the two spatial axes of convolution kernels.

    Args:
      params: The parameters of a network, a pytree of arrays.
      kernels: As for `ct`.
      spatial_axes, stacked: As for `ct`.

    Returns:
      New parameters of the same shapes. What is not transposed is the given array itself.

    Raises:
      InputError: The axes are not two of four, the pattern selects no array with four axes, the axes of one differ in
        length, or all have length 1.
    """
    _check_axes(spatial_axes)

    layers = trees.stacked_axes(params, stacked)

    def axes_of(name: str, first: int) -> tuple[int, ...]:
        axes = spatial_axes or ((2, 3) if reinit.outputs_first(name) else (0, 1))
        return tuple(first + axis % 4 for axis in axes)

    # The biases of Equinox's convolutions over volumes have four axes as well.
    def transposed(name, leaf, chosen, first):
        return chosen and leaf.ndim == first + 4 and not trees.is_vector(name, leaf.shape[first:])

    selection = trees.map_named(transposed, params, trees.select(params, kernels), layers)
    rows = zip(trees.leaf_names(params), trees.zip_leaves(params, selection, layers), strict=True)
    chosen = [
        (name, leaf.shape, axes, tuple(leaf.shape[axis] for axis in axes))
        for name, (leaf, is_kernel, first) in rows
        if is_kernel and (axes := axes_of(name, first))
    ]
    if not chosen:
        raise InputError(
            "ct transposes the kernels of convolutions, arrays with four axes, and "
            + ("this network has none" if kernels is None else f"kernels = {kernels!r} selects none")
            + "; choose another method, such as msg, or other kernels"
        )
    for name, shape, axes, lengths in chosen:
        if lengths[0] != lengths[1]:
            raise InputError(
                f"ct exchanges the axes {axes} of {name}, which has the shape {shape}, where they differ in "
                "length; name only square kernels, or give the spatial_axes of their layout"
            )
    if all(lengths == (1, 1) for *_, lengths in chosen):
        raise InputError("every kernel that ct is to transpose is 1 x 1, which changes nothing; name larger ones")
    return trees.map_named(
        lambda name, leaf, is_kernel, first: jnp.swapaxes(leaf, *axes_of(name, first)) if is_kernel else leaf,
        params,
        selection,
        layers,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CtSettings(CtOptions, TrainingSettings):
    """The authors' settings. Their rate falls after each epoch (to 3/4 and 1/4), where this one falls in every step."""

    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 1e-3
    schedule: ScheduleName = "cosine"
    kernels: str | None = None
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)
    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {
        **TrainingSettings.search_ranges,
        "schedule": ("cosine", "drops"),
    }

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model, num_classes
        return self.scheduled(ct(self.microbatched(loss_fn), self.optimizer(), **self.values(CtOptions)))
