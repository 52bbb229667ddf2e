"""Boundary shrinking (Chen et al., CVPR 2023): give the forget examples to the class behind their nearest boundary."""

from __future__ import annotations

import dataclasses
import typing
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import losses, trees
from scissorhands_jax.base import Data, Key, Method, Model, ModelState, Params, Scalar, StatefulLossFn
from scissorhands_jax.errors import InputError, check_choice, check_not_negative
from scissorhands_jax.keywords import takes
from scissorhands_jax.losses import cross_entropy
from scissorhands_jax.methods._gradient import descend, for_classes, forget_batches
from scissorhands_jax.methods.settings import Gradient, Mode, TrainingSettings
from scissorhands_jax.microbatches import mapped
from scissorhands_jax.models.layers import as_float
from scissorhands_jax.tasks import task_of

PixelRange = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryShrinkOptions:
    """The keyword arguments of `boundary_shrink` that are settings as well."""

    step_size: float = 0.1
    """The size of the adversarial step, at least 0, in units of the images as floats. uint8 images count as multiples
    of 1/255, as in `models.layers.as_float`, and reach the frozen network that way."""
    mode: Mode = "paper"
    """"paper" takes the nearest wrong class. "authors" lets the label be the true one where x stays on its side of the
    boundary, and rounds the moved x to multiples of 1/255."""
    batch_size: int = 256
    """The number of forget examples that a step sees."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryShrinkArguments(BoundaryShrinkOptions):
    """The keyword arguments of `boundary_shrink`."""

    clip: PixelRange | None = (0.0, 1.0)
    """The range of valid images, which moved images are clipped to. None does not clip."""


@takes(BoundaryShrinkArguments)
def boundary_shrink(
    model: Model, loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: BoundaryShrinkArguments
) -> Method:
    """Minimises the loss of forget examples (x, y) with the label `argmax_{j != y} f_j(x + step_size sign(dL/dx))`.

    f is the original network, frozen and in evaluation mode, and L its cross-entropy: one fast-gradient-sign step over
    the nearest boundary finds the nearest wrong class. The network itself sees the x without that step, in training
    mode, as `loss_fn` augments it. The authors' setting for CIFAR-10 is a step of 0.1 and 10 epochs of `sgd(1e-6)` with
    batches of 256.

    Args:
      model: The network.
      loss_fn: The general form of the loss, a mean over batches `{"image", "label"}` whose label is replaced.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range, or (from `init`, in paper mode) forget images lie outside `clip`.
    """
    step_size, clip, mode, task = options.step_size, options.clip, options.mode, task_of(loss_fn)
    check_choice("mode", mode, typing.get_args(Mode))
    check_not_negative("step_size", step_size)
    check_clip(clip)

    def aux(key: Key, params: Params, model_state: ModelState, data: Data) -> tuple[Params, ModelState]:
        del key
        if clip is not None and mode == "paper":
            check_range(losses.images_of(data.forget, task.inputs), clip)
        return trees.copy((params, model_state))

    def objective(params, carry, batch, key):
        examples, (frozen, frozen_state) = batch.forget, carry.aux

        def relabelled(part):
            images, labels = part
            moved, value = adversarial_images(
                model, frozen, frozen_state, images, labels, step_size=step_size, clip=clip, rounded=mode == "authors"
            )
            nearest = boundary_labels(model, frozen, frozen_state, moved, labels, any_label=mode == "authors")
            return nearest, jnp.full(labels.shape, value)

        parts, images = losses.microbatches_of(loss_fn), losses.images_of(examples, task.inputs)
        labels, original_losses = mapped(relabelled, (images, examples["label"]), parts)
        loss, model_state = loss_fn(params, carry.model_state, {**examples, "label": labels}, train=True, key=key)
        return loss, (model_state, {"loss_relabelled": loss, "loss_original": jnp.mean(original_losses)})

    method = descend(objective, optimizer, batches=forget_batches(options.batch_size), reads=("forget",), aux=aux)
    return for_classes("boundary_shrink", method, task, relabels=True)


def adversarial_images(
    model: Model,
    params: Params,
    model_state: ModelState,
    images: jax.Array,
    labels: jax.Array,
    *,
    step_size: float,
    clip: PixelRange | None,
    rounded: bool = False,
) -> tuple[jax.Array, Scalar]:
    """One fast-gradient-sign step (Goodfellow et al., 2015) that raises the cross-entropy, in evaluation mode.

    Args:
      images: shape=(N, ...), floating point or uint8. labels: shape=(N,), integers.
      rounded: to multiples of 1/255, halves to even, as 8-bit images in [0, 1] are stored.

    Returns:
      Floating point images, and the mean cross-entropy of the given ones.
    """
    images = as_float(images)

    def loss(x):
        return cross_entropy(model.apply(params, model_state, x, train=False)[0], labels)

    value, gradient = jax.value_and_grad(loss)(images)
    moved = images + step_size * jnp.sign(gradient)
    if clip is not None:
        moved = jnp.clip(moved, *clip)
    if rounded:
        moved = jnp.round(moved * 255) / 255
    return moved, value


def boundary_labels(
    model: Model,
    params: Params,
    model_state: ModelState,
    images: jax.Array,
    labels: jax.Array,
    *,
    any_label: bool = False,
) -> jax.Array:
    """The most likely class of each image in evaluation mode, other than its label unless `any_label`.

    Args:
      model: The network.
      params: Its parameters.
      model_state: Its state.
      images: shape=(N, ...).
      labels: shape=(N,), integers.
      any_label: Whether the label itself counts as well.

    Returns:
      shape=(N,), int32: the classes.
    """
    logits, _ = model.apply(params, model_state, images, train=False)
    if not any_label:
        true = losses.class_numbers(labels)[:, None] == jnp.arange(logits.shape[-1])[None]
        logits = jnp.where(true, -jnp.inf, logits)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def check_clip(clip: PixelRange | None) -> None:
    """Refuses a range of images whose lower end is not below its upper one.

    Raises:
      InputError: It is such a range.
    """
    if clip is not None and not clip[0] < clip[1]:
        raise InputError(f"clip must be a range such as (0.0, 1.0), got {clip}")


def check_range(images: jax.Array, clip: PixelRange) -> None:
    """Refuses forget images that reach outside a range.

    Args:
      images: shape=(N, ...), floating point or uint8.
      clip: The range, in units of the images as floats.

    Raises:
      InputError: They do.
    """
    values = np.asarray(images)
    low, high = map(float, as_float(jnp.stack([values.min(), values.max()])))
    if not clip[0] <= low <= high <= clip[1]:
        raise InputError(
            f"the forget images reach from {low:.4g} to {high:.4g}, outside clip = {clip}; give the range of valid "
            "images, or None"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryShrinkSettings(BoundaryShrinkOptions, TrainingSettings):
    """The authors' settings for CIFAR-10."""

    learning_rate: float = 1e-6
    clip: bool = True
    """Whether adversarial images are clipped to [0, 1]."""
    gradients: ClassVar[tuple[Gradient, ...]] = ("forget",)
    reads_classes: ClassVar[bool] = True

    @property
    def relabels(self) -> bool:
        """Whether the method replaces the `label` of forget examples: always."""
        return True

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del num_classes
        method = boundary_shrink(
            model,
            self.microbatched(loss_fn),
            self.optimizer(),
            clip=(0.0, 1.0) if self.clip else None,
            **self.values(BoundaryShrinkOptions),
        )
        return self.scheduled(method)
