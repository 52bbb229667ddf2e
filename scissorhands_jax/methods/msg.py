"""Masked small gradients (MSG; Cadet et al., 2024, arXiv 2410.01276): weights that hardly tell the sets apart go."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import masks, reinit, saliency, trees
from scissorhands_jax.base import (
    Carry,
    Data,
    Dataset,
    Key,
    Mask,
    Method,
    Model,
    ModelState,
    Params,
    Scores,
    Selection,
    StatefulLossFn,
    new_carry,
)
from scissorhands_jax.errors import InputError, check_choice, check_not_negative
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import check_not_empty, follow_direction, retain_batches, retain_loss
from scissorhands_jax.methods.settings import Choices, Gradient, Mode, Range, ScheduleName, TrainingSettings
from scissorhands_jax.models.layers import KAIMING_FAN_OUT
from scissorhands_jax.trees import Stacked, Where

_KAIMING_OUTPUTS_FIRST = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal", in_axis=1, out_axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MsgOptions:
    """The keyword arguments of `msg` that are settings as well."""

    fraction: float = 0.3
    """The share of the weights of each kernel that is re-initialised, those whose gradients are the smallest; above 0
    and below 1."""
    kept_scale: float = 0.1
    """The factor of the gradients of the kernels' other weights during fine-tuning, at least 0."""
    kernels: Where = None
    """The kernels, as a pattern for `trees.select`; biases, scales and other arrays with fewer than two axes
    (`trees.is_vector`) are left out. None is all kernels of convolutions over images, which have four axes or more; in
    a network without any, it is all others."""
    mode: Mode = "paper"
    """"paper" takes the gradients in evaluation mode, every example counting the same. "authors" takes them as the
    published code does, in training mode, every batch counting the same, and both passes move the network's state."""
    batch_size: int = 64
    """The number of examples that a step, or a pass that adds up gradients, sees at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MsgArguments(MsgOptions):
    """The keyword arguments of `msg`."""

    stacked: Stacked = None
    """Which arrays hold several layers along their first axes, each with a kernel of its own, where other arrays do not
    tell (`trees.stacked_axes`)."""
    initializer: reinit.Initializer | reinit.ByName | str | None = None
    """What the weights become: an initializer, or its name in `reinit.INITIALIZERS`. None is PyTorch's
    `kaiming_normal_` with `mode="fan_out"`: normal with the variance 2 / fan-out. Outputs are the first axis of arrays
    called `weight`, as in Equinox and PyTorch, and otherwise the last one, as in Flax. Another layout needs
    `jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal", in_axis, out_axis)`."""


@takes(MsgArguments)
def msg(loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: MsgArguments) -> Method:
    """Re-initialises the weights with the smallest gradients and fine-tunes, mostly these, on the retain set.

    With a random subset S of the retain set that is as large as the forget set F (or all of it), and the loss L of one
    example,

      g = sum of dL/dw over S  -  sum of dL/dw over F

    In each kernel by itself the `round(fraction * n)` of n weights with the smallest |g| are re-initialised. Then the
    mean retain loss is minimised over all weights, where the gradients of the other weights of the kernels are
    multiplied by `kept_scale`, before weight decay and momentum. Where |g| is equal, which weights come first is
    arbitrary but fixed.

    The method is from a leading entry of the NeurIPS 2023 unlearning challenge. Cadet et al. name it, find it and `ct`
    the best of 18 methods, and publish it as `kgltop2.py`. Its settings are 5 epochs of SGD with batches of 64, and a
    rate of 1e-3 that rises and falls in a straight line. That code draws fresh biases for convolutions as well, as an
    effect of how it replaces layers, which is not done here.

    Args:
      loss_fn: The general form of the loss, a mean over a batch.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range, or (from `init`) the pattern selects no kernel or a gradient is not
        finite.
    """
    masks.check_fraction(options.fraction)
    check_not_negative("kept_scale", options.kept_scale)
    check_choice("mode", options.mode, typing.get_args(Mode))
    initializer = reinit.initializer_of(options.initializer or reinit.ByName(_kaiming_fan_out))
    objective = retain_loss(loss_fn)

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        check_not_empty(data, ("forget", "retain"))
        pass_key, draw_key, step_key = jax.random.split(key, 3)
        kernels = _kernels(params, options.kernels, options.stacked)
        scores, model_state = _magnitudes(pass_key, loss_fn, params, model_state, data, options)
        mask = smallest_in_each(scores, options.fraction, kernels, options.stacked)
        params = reinit.reinitialize(
            draw_key, params, mask, initializer=initializer, trim=kernels, stacked=options.stacked
        )
        return new_carry(step_key, params, model_state, optimizer.init(params), aux=mask)

    def direction(carry, batch, key):
        (_, (model_state, metrics)), gradient = jax.value_and_grad(objective, has_aux=True)(
            carry.params, carry, batch, key
        )
        kernels = _kernels(carry.params, options.kernels, options.stacked)

        def scaled(leaf, drawn, is_kernel):
            return jnp.where(drawn, leaf, leaf * options.kept_scale) if is_kernel else leaf

        return jax.tree.map(scaled, gradient, carry.aux, kernels), model_state, metrics

    method = follow_direction(direction, optimizer, batches=retain_batches(options.batch_size), reads=("retain",))
    return method._replace(init=init)


def _kaiming_fan_out(name: str) -> reinit.Initializer:
    return _KAIMING_OUTPUTS_FIRST if reinit.outputs_first(name) else KAIMING_FAN_OUT


def smallest_in_each(scores: Scores, fraction: float, selection: Selection, stacked: Stacked = None) -> Mask:
    """Marks the smallest scores of every selected leaf by itself, `round(fraction * n)` of its n.

    Where a leaf holds several layers, each of these is a leaf of its own.

    Args:
      scores: A pytree of non-negative floating point arrays.
      fraction: The share of each leaf's scores to mark, above 0 and below 1.
      selection: The leaves, as `trees.select` returns them. Nothing is marked in the others.
      stacked: Which leaves hold several layers, where other leaves do not tell (`trees.stacked_axes`).

    Returns:
      A pytree of bools with the structure and shapes of `scores`.

    Raises:
      InputError: The selection is of another form.
    """

    trees.check_selection(selection, scores)

    def leaf(values, chosen, axes):
        if not chosen or not values.size:
            return jnp.zeros_like(values, dtype=bool)
        layers = values.reshape(math.prod(values.shape[:axes]), *values.shape[axes:]) if axes else values[None]
        marked = [masks.bottom_fraction(layer, fraction) for layer in layers]
        return jnp.stack(marked).reshape(values.shape) if axes else marked[0]

    return jax.tree.map(leaf, scores, selection, trees.stacked_axes(scores, stacked))


def _kernels(params: Params, where: Where, stacked: Stacked) -> Selection:
    """The leaves that `MsgOptions.kernels` names."""
    least = 4 if where is None and trees.has_image_kernels(params, stacked) else 2

    def is_kernel(name, leaf, chosen, axes):
        return chosen and leaf.ndim - axes >= least and not trees.is_vector(name, leaf.shape[axes:])

    selection = trees.map_named(is_kernel, params, trees.select(params, where), trees.stacked_axes(params, stacked))
    if not any(jax.tree.leaves(selection)):
        raise InputError(
            f"kernels = {where!r} selects only biases, scales and other arrays with fewer than two axes; name kernels"
        )
    return selection


def _magnitudes(
    key: Key, loss_fn: StatefulLossFn, params: Params, model_state: ModelState, data: Data, options: MsgOptions
) -> tuple[Scores, ModelState]:
    """|g| of every weight, and the state that the network then has."""
    published = options.mode == "authors"
    count = data_lib.size(data.forget)

    def gradient_sum(part: Dataset, order_key: Key, pass_key: Key, state: ModelState) -> saliency.GradientSum:
        order = data_lib.permutation(order_key, data_lib.size(part))[:count]
        starts = range(0, len(order), options.batch_size)
        batches = (data_lib.take(part, order[start : start + options.batch_size]) for start in starts)
        random = pass_key if published else None
        return saliency.gradient_sum(
            loss_fn, params, state, batches, train=published, weighted=not published, key=random
        )

    keys = jax.random.split(key, 4)
    retain = gradient_sum(data.retain, keys[0], keys[1], model_state)
    forget = gradient_sum(data.forget, keys[2], keys[3], retain.model_state)
    scores = jax.tree.map(lambda r, f: jnp.abs(r - f), retain.gradient, forget.gradient)
    saliency.check_finite(scores)
    return scores, forget.model_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class MsgSettings(MsgOptions, TrainingSettings):
    """The authors' settings. Their rate changes after each epoch (1/3, 2/3, 1, 2/3 and 1/3 of the peak), where this one
    changes in every step."""

    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 1e-3
    schedule: ScheduleName = "triangle"
    warmup: float = 0.5
    kernels: str | None = None
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)
    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {
        "fraction": (0.03, 0.9),
        **TrainingSettings.search_ranges,
        "schedule": ("triangle", "drops"),
    }

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model, num_classes
        return self.scheduled(msg(self.microbatched(loss_fn), self.optimizer(), **self.values(MsgOptions)))
