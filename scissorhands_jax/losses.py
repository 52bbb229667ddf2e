"""Losses of classifiers, in the general form that every method takes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import microbatches
from scissorhands_jax.base import (
    Key,
    Model,
    ModelState,
    Params,
    PyTree,
    Scalar,
    StatefulLossFn,
    check_model,
    frozen_in,
    lift,
    thawed,
    unfrozen,
)
from scissorhands_jax.errors import InputError

Augment = Callable[[Key, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """The mean cross-entropy of a batch. shape=()

    Args:
      logits: Floats, shape=(N, C).
      labels: Integers from 0 to C - 1, shape=(N,). With any other the loss is NaN.
      label_smoothing: The share of the target that is spread evenly over all C classes (Szegedy et al., 2016), at least
        0 and below 1.

    Raises:
      InputError: `label_smoothing` is out of its range, or the labels have another shape or are no integers.
    """
    return cross_entropies(logits, labels, label_smoothing=label_smoothing).mean()


def cross_entropies(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """The terms of `cross_entropy`, one per example, in float32 or wider. shape=(N,)

    Raises:
      InputError: As `cross_entropy`.
    """
    check_label_smoothing(label_smoothing)
    count, logits = logits.shape[-1], in_full_precision(logits)
    labels = jnp.asarray(labels)
    if labels.shape != logits.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"labels must be integers of shape {logits.shape[:-1]}, one for each row of logits, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    labels = class_numbers(labels)
    if label_smoothing == 0:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    else:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, count, dtype=logits.dtype), label_smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
    # A negative label would otherwise count classes from the end, and one that is smoothed would count for nothing.
    return jnp.where((labels >= 0) & (labels < count), losses, jnp.nan)


def check_label_smoothing(share: float) -> float:
    """Returns the share of the target that is spread over all classes.

    Raises:
      InputError: It is not at least 0 and below 1.
    """
    if not 0 <= share < 1:
        raise InputError(f"label_smoothing must be at least 0 and below 1, got {share}")
    return share


def in_full_precision(numbers: chex.Array) -> jax.Array:
    """The same numbers in float32 or wider; losses in half precision have three digits, and many of them are equal."""
    numbers = jnp.asarray(numbers)
    return numbers.astype(jnp.promote_types(numbers.dtype, jnp.float32))


def class_numbers(labels: chex.Array) -> jax.Array:
    """Labels as integers of at least 32 bits, in which a number of classes fits as well; 256 is 0 in eight bits."""
    labels = jnp.asarray(labels)
    return labels.astype(jnp.promote_types(labels.dtype, jnp.int32))


def kl_divergence(teacher: jax.Array, student: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """The mean over a batch of `T^2 KL(softmax(teacher / T) || softmax(student / T))`. shape=()

    The factor keeps gradients of one size as the temperature T changes (Hinton et al., 2015).

    Args:
      teacher: The teacher's logits, floats, shape=(N, C).
      student: The student's logits, floats, shape=(N, C).
      temperature: T, above 0.

    Raises:
      InputError: The temperature is not a finite number above 0, or the shapes differ.

    >>> import jax.numpy as jnp
    >>> round(float(kl_divergence(jnp.array([[0.0, 0.0]]), jnp.log(jnp.array([[0.2, 0.8]])))), 4)
    0.2231
    """
    return kl_divergences(teacher, student, temperature=temperature).mean()


def kl_divergences(teacher: jax.Array, student: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """The terms of `kl_divergence`, one per example, in float32 or wider. shape=(N,)

    A class that the teacher's logits of -inf rule out adds nothing, whatever the student says.

    Raises:
      InputError: As `kl_divergence`.
    """
    check_temperature(temperature)
    if jnp.shape(teacher) != jnp.shape(student):
        raise InputError(f"teacher and student differ in shape: {jnp.shape(teacher)} and {jnp.shape(student)}")
    targets, predictions = (
        jax.nn.log_softmax(in_full_precision(logits) / temperature) for logits in (teacher, student)
    )
    ruled_out = jnp.isneginf(targets)  # 0 (-inf - x) would be NaN
    targets, predictions = jnp.where(ruled_out, -1e30, targets), jnp.where(ruled_out, 0.0, predictions)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(predictions, targets)


def teacher_logits(model: Model, teacher: tuple[Params, ModelState], images: jax.Array) -> jax.Array:
    """The logits of a network in evaluation mode. shape=(N, C)"""
    params, model_state = teacher
    logits, _ = model.apply(params, model_state, images, train=False)
    return logits


def check_temperature(temperature: float) -> float:
    """Returns the temperature.

    Raises:
      InputError: It is not a finite number above 0.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature must be above 0 and finite, got {temperature}")
    return temperature


def augmented(augment: Augment | None, key: Key | None, images: jax.Array) -> tuple[jax.Array, Key | None]:
    """The images as a training pass sees them, and the key that is left for the network."""
    if augment is None or key is None:
        return images, key
    key, augment_key = jax.random.split(key)
    return augment(augment_key, images), key


def augmentation_of(loss_fn: StatefulLossFn) -> Augment | None:
    """What a `classification_loss` does to images in training, also one with a task; None for any other loss.

    One that was frozen outside of training, or without a key, does nothing to them.
    """
    if (frozen := frozen_in(loss_fn)) is not None:
        return augmentation_of(frozen.loss_fn) if frozen.train and frozen.key is not None else None
    if isinstance(loss_fn, LossWithin):
        return augmentation_of(loss_fn.loss_fn)
    return loss_fn.augment if isinstance(loss_fn, _ClassificationLoss) else None


def inputs_of(batch: PyTree) -> PyTree:
    """What a network is applied to: everything in a batch except its `label`.

    Args:
      batch: A dict of arrays that share their first axis.

    Returns:
      The array `image` if the batch has one, whatever else it holds; otherwise the only other array itself, or the dict
      of all others if there are several.

    Raises:
      InputError: The batch is no dict with `image`, or with `label` and something else.

    >>> inputs_of({"age": 41, "label": 1}), inputs_of({"sequence": [7], "mask": [True], "label": 1})
    (41, {'sequence': [7], 'mask': [True]})
    """
    keys = list(batch) if isinstance(batch, Mapping) else []
    if "image" in keys:
        return batch["image"]
    others = [key for key in keys if key != "label"]
    if "label" not in keys or not others:
        found = f"the keys {', '.join(map(str, keys))}" if keys else f"a {type(batch).__name__}"
        raise InputError(f"a batch has {found}; give a dict of 'label' and what the network takes, such as 'image'")
    return batch[others[0]] if len(others) == 1 else {key: batch[key] for key in others}


def images_of(batch: PyTree, inputs: Callable[[PyTree], PyTree] = inputs_of) -> jax.Array:
    """What a network is applied to, for methods that change it: a single array.

    Args:
      batch: The examples.
      inputs: `(examples) -> inputs`, what the network is applied to (`tasks.Task.inputs`).

    Raises:
      InputError: There are several arrays, or as for `inputs_of`.
    """
    found = inputs(batch)
    if isinstance(found, Mapping) or len(jax.tree.leaves(found)) != 1:
        what = ", ".join(map(str, found)) if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise InputError(f"the network takes {what}, and this method changes one array; take another method")
    return found


def classification_loss(
    model: Model, *, augment: Augment | None = None, label_smoothing: float = 0.0
) -> StatefulLossFn:
    """Mean cross-entropy over batches such as `{"image": (N, ...), "label": (N,)}`.

    What the network takes may have any name, and may be several arrays; see `inputs_of`.

    Args:
      model: The network.
      augment: `(key, images) -> images`, which is applied in training passes that are given a key. None changes
        nothing.
      label_smoothing: As for `cross_entropy`, in training passes only; at least 0 and below 1.

    Returns:
      The general form of the loss. Losses of one network and with equal settings are equal, so they share compiled
      code.

    Raises:
      InputError: `label_smoothing` is out of its range, or the network is no `Model`.
    """
    check_model(model)
    check_label_smoothing(label_smoothing)
    return _ClassificationLoss(model, augment, label_smoothing=label_smoothing)


def altered(loss_fn: StatefulLossFn, **changes: Any) -> StatefulLossFn:
    """The same `classification_loss`, perhaps with a task, with another `augment` or `label_smoothing`.

    Raises:
      InputError: It is another kind of loss, or a value cannot be used.
    """
    if isinstance(loss_fn, LossWithin):
        return dataclasses.replace(loss_fn, loss_fn=altered(loss_fn.loss_fn, **changes))
    if (frozen := frozen_in(loss_fn)) is not None:
        return lift(dataclasses.replace(frozen, loss_fn=altered(frozen.loss_fn, **changes)))
    if not isinstance(loss_fn, _ClassificationLoss):
        raise InputError(f"only a classification_loss can be given {', '.join(changes)}, and this is another loss")
    known = {"augment": loss_fn.augment, "label_smoothing": loss_fn.label_smoothing}
    return microbatched(classification_loss(loss_fn.model, **(known | changes)), loss_fn.parts)


def average_loss(
    loss_fn: StatefulLossFn, params: Params, model_state: ModelState, examples: PyTree, *, batch_size: int = 500
) -> float:
    """The mean loss of a network on all of some examples, in evaluation mode, whatever the batches.

    The mean loss on examples that it never saw is a ceiling for `methods.scissorhands`.

    Args:
      loss_fn: The general form of the loss, a mean over a batch. Equal ones share compiled code.
      params, model_state: The network.
      examples: A pytree of arrays with a leading example axis, with at least one example.
      batch_size: The number of examples that are evaluated at once, at least 1.

    Raises:
      InputError: There is no example, JAX cannot take one (`data.check_numbers`), or `batch_size` is below 1 or no
        whole number.
    """
    total = data_lib.size(examples)
    if not total:
        raise InputError("there is no example whose loss could be measured; give at least one")
    data_lib.check_numbers(examples, "the set of examples")
    loss_fn, model_state = thawed(loss_fn, model_state)
    pairs = [
        tuple(map(float, _evaluated(loss_fn, params, model_state, data_lib.take(examples, positions))))
        for positions in data_lib.even_batches(total, batch_size)
    ]
    weight = math.fsum(weight for _, weight in pairs)
    return math.fsum(loss * weight for loss, weight in pairs) / weight if weight else 0.0


@functools.partial(jax.jit, static_argnames="loss_fn")
def _evaluated(loss_fn, params, model_state, examples):
    return loss_fn(params, model_state, examples, train=False, key=None)[0], weight_of(loss_fn, examples)


def weight_of(loss_fn: StatefulLossFn, batch: PyTree) -> Scalar | int:
    """How much a batch counts in a mean over batches, so that the mean is that of one batch of all examples.

    Args:
      loss_fn: The general form of the loss.
      batch: A pytree of arrays with a leading example axis.

    Returns:
      The sum of the weights of the examples, for a loss of a task that has some (`tasks.Task.weights`), also a frozen
      one (`base.freeze`); for any other loss their number.
    """
    loss_fn = unfrozen(loss_fn)
    return loss_fn.weight(batch) if isinstance(loss_fn, DividedLoss | LossWithin) else data_lib.size(batch)


def microbatched(loss_fn: StatefulLossFn, parts: int) -> StatefulLossFn:
    """The same loss with batches computed in `parts`, one after the other (gradient accumulation).

    Value and gradient are those of the whole batch to rounding, and a step needs the activations of one part only. That
    holds for networks without BatchNorm; with it, statistics are those of each part, and running statistics move once
    per part. A `classification_loss` augments the whole batch first, so its images do not depend on `parts`; dropout,
    and augmentation within any other loss, draw other numbers. A `tasks.task_loss` weighs the examples of the whole
    batch first; a weighted mean within any other loss is one of each part. Derivatives with respect to the model state
    and the batch are true as well, but take passes of their own. See `microbatches.accumulated`.

    Args:
      loss_fn: The general form of the loss, a mean over a batch. It must not close over what is differentiated.
      parts: The number of parts, at least 1. In evaluation mode, as for saliency, they may differ in size by one.

    Raises:
      InputError: `parts` is below 1, or (when traced in training mode) does not divide a batch; or when the loss is
        differentiated, with respect to an array that `loss_fn` closes over.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from scissorhands_jax.base import lift
    >>> halves = microbatched(lift(lambda w, x: jnp.mean(jnp.square(w * x))), 2)
    >>> grad = jax.grad(lambda w: halves(w, (), jnp.array([1.0, 2.0, 3.0, 4.0]), train=True, key=None)[0])
    >>> float(grad(1.0))
    15.0
    """
    microbatches.check_microbatches((), parts)
    if isinstance(loss_fn, DividedLoss | _Microbatched):
        return dataclasses.replace(loss_fn, parts=parts)
    if isinstance(loss_fn, LossWithin):
        return dataclasses.replace(loss_fn, loss_fn=microbatched(loss_fn.loss_fn, parts))
    if (frozen := frozen_in(loss_fn)) is not None:
        return lift(dataclasses.replace(frozen, loss_fn=microbatched(frozen.loss_fn, parts)))
    return loss_fn if parts == 1 else _Microbatched(loss_fn, parts)


def undivided(loss_fn: StatefulLossFn) -> StatefulLossFn:
    """The loss that `microbatched` was given, where it wrapped that, without `freeze`; otherwise the loss itself."""
    loss_fn = unfrozen(loss_fn)
    return loss_fn.loss_fn if isinstance(loss_fn, _Microbatched) else loss_fn


def microbatches_of(loss_fn: StatefulLossFn) -> int:
    """The number of parts that a loss computes a batch in."""
    loss_fn = unfrozen(loss_fn)
    if isinstance(loss_fn, DividedLoss | _Microbatched):
        return loss_fn.parts
    return microbatches_of(loss_fn.loss_fn) if isinstance(loss_fn, LossWithin) else 1


class DrawingLoss:
    """A loss that draws in evaluation too, as that of diffusion draws timesteps and noise.

    Without a key it always draws the same, so each batch of an estimate needs a key of its own (`drawing_key`).
    """


def drawing_key(loss_fn: StatefulLossFn, key: Key) -> Key | None:
    """The key of a pass in evaluation mode: the given one for a `DrawingLoss`, None where nothing is random."""
    loss_fn = unfrozen(loss_fn)
    if isinstance(loss_fn, LossWithin):
        return drawing_key(loss_fn.loss_fn, key)
    return key if isinstance(loss_fn, DrawingLoss) else None


@dataclasses.dataclass(frozen=True)
class LossWithin:
    """Another loss, of which more is known."""

    loss_fn: StatefulLossFn

    def weight(self, examples: PyTree) -> Scalar | int:
        """How much a batch counts in a mean over batches: as for the loss within."""
        return weight_of(self.loss_fn, examples)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DividedLoss:
    """A loss that itself computes a batch in parts, after what has to be done with the whole of it."""

    parts: int = 1

    def weight(self, examples: PyTree) -> Scalar | int:
        """How much a batch counts in a mean over batches: the number of its examples."""
        return data_lib.size(examples)


@dataclasses.dataclass(frozen=True)
class _ClassificationLoss(DividedLoss):
    """A value that equals others made of the same network, so that they share compiled code."""

    model: Model
    augment: Augment | None
    label_smoothing: float = 0.0

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]:
        images = inputs_of(batch)
        check_classes(batch.get("label"))
        if train:
            microbatches.check_microbatches([len(batch["label"])], self.parts)
            images, key = augmented(self.augment, key, images)

        def mean_loss(params, model_state, examples, key):
            images, labels = examples
            logits, model_state = self.model.apply(params, model_state, images, train=train, key=key)
            smoothing = self.label_smoothing if train else 0.0
            return cross_entropy(logits, labels, label_smoothing=smoothing), (model_state, {})

        whole = microbatches.accumulated(mean_loss, self.parts)
        loss, (model_state, _) = whole(params, model_state, (images, batch["label"]), key)
        return loss, model_state


def check_classes(labels: chex.Array | None, whose: str = "a batch") -> None:
    """Refuses labels that are no whole numbers, one per example; only their shape and type are looked at.

    Args:
      labels: The labels, or None where there are none.
      whose: What has these labels, in errors.

    Raises:
      InputError: There are no labels, or they have another form.
    """
    if labels is None:
        raise InputError(f"{whose} has no 'label'; the loss of a classifier needs whole numbers, one for each example")
    if jnp.ndim(labels) != 1:
        shape = jnp.shape(labels)
        advice = ".argmax(axis=1) of one-hot labels" if len(shape) == 2 and shape[1] > 1 else ".ravel()"
        raise InputError(f"the labels of {whose} have shape {shape}; give shape (N,), as with {advice}")
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise InputError(
            f"the labels of {whose} are {jnp.result_type(labels)}; give integers, as with .astype('int32')"
        )


@dataclasses.dataclass(frozen=True)
class _Microbatched(LossWithin):
    """Any loss in parts, as a value like `_ClassificationLoss`."""

    parts: int

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]:
        if train:
            microbatches.check_microbatches({len(leaf) for leaf in jax.tree.leaves(batch)}, self.parts)

        def mean_loss(params, model_state, examples, key):
            loss, model_state = self.loss_fn(params, model_state, examples, train=train, key=key)
            return loss, (model_state, {})

        if key is None:  # The parts of one batch are not to draw the same.
            key = drawing_key(self.loss_fn, jax.random.key(0))

        loss, (model_state, _) = microbatches.accumulated(mean_loss, self.parts)(params, model_state, batch, key)
        return loss, model_state
