"""AMUN (Ebrahimpour-Boroojeny et al., ICML 2025): fine-tune on the nearest adversarial examples of the forget set."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, microbatches, trees
from scissorhands_jax.base import Batch, Carry, Data, Dataset, Key, Method, Model, ModelState, Params, StatefulLossFn
from scissorhands_jax.errors import InputError
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import descend, for_classes, forget_batches, mixed_batches
from scissorhands_jax.methods.boundary_shrink import PixelRange, check_clip, check_range
from scissorhands_jax.methods.settings import LogitArguments, TrainingSettings
from scissorhands_jax.models.layers import as_float
from scissorhands_jax.tasks import CLASSIFICATION, Task, weighted_mean, weights_as_shares

_logger = logging.getLogger(__name__)

_STEPS_PER_RADIUS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class AmunOptions:
    """The keyword arguments of `amun` that are settings as well."""

    uses_retain: bool = False
    """Whether the steps see retained examples too. False reads none, so that there may be none."""
    epsilon: float = 0.04
    """The distance within which adversarial examples are sought first, above 0: the Euclidean distance of whole images
    in units of the images as floats. uint8 images count as multiples of 1/255, as in `models.layers.as_float`."""
    attack_steps: int = 50
    """The number of gradient steps, each a tenth of the distance long, before the distance is doubled, at least 1."""
    max_doublings: int = 12
    """How often the distance is doubled at most, at least 0. The default reaches 164; no two RGB images of 32 x 32
    pixels in [0, 1] are further apart than 56. Images whose class still is their label then are left out."""
    batch_size: int = 128
    """The number of examples of all kinds that a step sees, with one of each kind at least; without retained ones the
    next smaller even number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AmunArguments(AmunOptions, LogitArguments):
    """The keyword arguments of `amun`."""

    clip: PixelRange | None = (0.0, 1.0)
    """The range of valid images, which adversarial images are clipped to. None does not clip."""


@takes(AmunArguments)
def amun(model: Model, optimizer: optax.GradientTransformation, options: AmunArguments) -> Method:
    """Minimises the loss of forget examples with their labels and of their adversarial examples with theirs.

    For each forget example (x, y), `init` seeks an x' near x that the original f, in evaluation mode, puts into another
    class y' = argmax f(x') != y, as `closest_adversarial` says. The steps descend the mean cross-entropy over

      the forget examples (x, y), the adversarial ones (x', y'), and with `uses_retain` the retained ones

    in the proportion of the sets. The labels y' are wrong, but the network's own: learning them moves its boundary near
    x, which lowers its confidence there, and hardly anything elsewhere. So the method works without retained examples.

    An epoch is a pass over the forget and the adversarial examples, each shuffled by itself; with `uses_retain` it is a
    pass over the retain set, and the others are cycled. An example for which no x' is found has none; those of others
    are repeated in its place, and a warning says how many they are. What the carry holds is as large as the forget set
    in float32. As in the authors' code, augmentation changes forget and retained images, but no adversarial ones.

    Their settings for CIFAR-10 are 10 epochs of `sgd(0.01)`, divided by 10 after every epoch, with weight decay 5e-4
    and batches of 128, with or without retained examples, on images in [0, 1]. Rates and drops are tuned per scenario.

    Args:
      model: The network.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range, or (from `init`) forget images lie outside `clip`, or no forget example
        has an adversarial one.
    """
    clip, parts, task = options.clip, options.microbatches, options.task
    if not 0 < options.epsilon < math.inf:
        raise InputError(f"epsilon must be above 0 and finite, got {options.epsilon}")
    if options.attack_steps < 1 or options.max_doublings < 0:
        raise InputError(
            "attack_steps must be at least 1 and max_doublings at least 0, got "
            f"{options.attack_steps} and {options.max_doublings}"
        )
    check_clip(clip)
    microbatches.check_microbatches([data_lib.check_batch_size(options.batch_size)], parts)

    def aux(key: Key, params: Params, model_state: ModelState, data: Data) -> Dataset:
        del key
        if clip is not None:
            check_range(losses.images_of(data.forget, task.inputs), clip)
        found = closest_adversarial(
            model,
            params,
            model_state,
            data.forget,
            epsilon=options.epsilon,
            attack_steps=options.attack_steps,
            max_doublings=options.max_doublings,
            clip=clip,
            batch_size=options.batch_size,
            task=task,
        )
        return _complete(found, None if task.weights is None else np.asarray(task.weights(data.forget)))

    def objective(params, carry, batch, key):
        clean = {name: part for name, part in batch._asdict().items() if part is not None}
        images, key = losses.augmented(
            options.augment, key, jnp.concatenate([losses.images_of(p, task.inputs) for p in clean.values()])
        )
        adversarial = drawn(carry, data_lib.size(batch.forget))
        counts = {name: data_lib.size(part) for name, part in {**clean, "adversarial": adversarial}.items()}
        total = sum(counts.values())
        kinds = np.repeat(np.arange(len(counts)), list(counts.values()))
        images = jnp.concatenate([as_float(images), adversarial["image"]])
        assert task.labels is not None
        labels = jnp.concatenate([*map(task.labels, clean.values()), adversarial["label"]])
        weights = None
        if task.weights is not None:
            weights = jnp.concatenate([*map(task.weights, clean.values()), adversarial["weight"]])
            weights = weights_as_shares(weights)
        # What each kind weighs, as a share of the whole.
        kind_shares = [
            count / total if weights is None else jnp.mean(jnp.where(kinds == kind, weights, 0))
            for kind, count in enumerate(counts.values())
        ]

        def mean_loss(params, model_state, examples, key):
            images, labels, kinds, weights = examples
            logits, model_state = model.apply(params, model_state, images, train=True, key=key)
            each = losses.cross_entropies(logits, labels)
            loss = weighted_mean(each, weights)
            # Sums over a kind in this part, so that the mean over parts is that over the kind.
            of_kinds = {
                f"loss_{name}": weighted_mean(jnp.where(kinds == kind, each, 0), weights)
                / jnp.where(share > 0, share, 1)
                for kind, (name, share) in enumerate(zip(counts, kind_shares, strict=True))
            }
            return loss, (model_state, {"loss_mixed": loss, **of_kinds})

        whole = microbatches.accumulated(mean_loss, parts)
        return whole(params, carry.model_state, (images, labels, jnp.asarray(kinds), weights), key)

    reads: tuple[str, ...] = ("forget", "retain") if options.uses_retain else ("forget",)
    of_forget = max(1, options.batch_size // 2)
    batches = mixed_batches(options.batch_size, copies=2) if options.uses_retain else forget_batches(of_forget)
    return for_classes("amun", descend(objective, optimizer, batches=batches, reads=reads, aux=aux), task)


class AdversarialExamples(NamedTuple):
    """What `closest_adversarial` finds, on the host, one entry for each example."""

    images: np.ndarray  # shape=(N, ...), dtype=float32
    labels: np.ndarray  # shape=(N,), dtype=int32: the classes that the network puts the images into
    found: np.ndarray  # shape=(N,), dtype=bool: whether that class is another than the example's label


def closest_adversarial(
    model: Model,
    params: Params,
    model_state: ModelState,
    examples: Dataset,
    *,
    epsilon: float,
    attack_steps: int = 50,
    max_doublings: int = 12,
    clip: PixelRange | None = None,
    batch_size: int = 128,
    task: Task = CLASSIFICATION,
) -> AdversarialExamples:
    """Seeks, for each example, a near image that the network puts into another class than its label.

    Projected gradient ascent on the cross-entropy (Madry et al., ICLR 2018) within a Euclidean ball of radius r around
    the image x, for each example until its class changes:

      x' <- clip(x + d min(1, r / |d|)),  d = x' + (r / 10) g / |g| - x,  g = the gradient at x'

    r is `epsilon` for the first `attack_steps` steps and doubles after each further `attack_steps`; the search goes on
    from the x' that was reached. So x' lies within r. Beyond `epsilon` none was found within r / 2, but for a class
    that changes in the last step there: that is noticed in the first step after the doubling. An example that the
    network gets wrong as it is, is its own adversarial example, at distance 0. This is the search of the published
    code, except that g only has the direction of the cross-entropy's gradient: it is the gradient of
    `logsumexp_{j != y} f_j - f_y`, that of the cross-entropy divided by 1 - p_y, which does not vanish where the
    network is certain.

    Args:
      model: The network, which is evaluated in evaluation mode.
      params: The parameters of the network.
      model_state: The state of the network.
      examples: N examples `{"image", "label"}`; images are floating point or uint8.
      epsilon: The first radius, above 0.
      attack_steps: The number of steps for each radius, at least 1.
      max_doublings: How often the radius is doubled at most, at least 0.
      clip: The range of valid images. None does not clip.
      batch_size: The number of examples that are attacked at once; the result does not depend on it.
      task: What the network is for, which says what images and labels of the examples are.

    Raises:
      InputError: `batch_size` is below 1 or no whole number.
    """
    assert task.labels is not None
    total = data_lib.size(examples)
    batch_size = min(data_lib.check_batch_size(batch_size), total)
    labels = np.asarray(task.labels(examples))
    labels = labels.astype(np.promote_types(labels.dtype, np.int32))
    images = np.asarray(as_float(jnp.asarray(np.asarray(losses.images_of(examples, task.inputs)))), np.float32)
    moved, predicted, remaining = images.copy(), labels.copy(), np.arange(total)

    def attack(positions: np.ndarray, radius: float, steps: int) -> None:
        # Every batch has one size, so that the step compiles once; what fills it is not read.
        filled = np.resize(positions, batch_size)
        clean, true = images[filled], labels[filled]
        now, classes = jnp.asarray(moved[filled]), jnp.asarray(true)
        for _ in range(steps):
            now, classes = _attack_step(model, params, model_state, clean, true, now, np.float32(radius), clip=clip)
            if bool(jnp.all(classes != true)):
                break
        count = len(positions)
        moved[positions], predicted[positions] = (trees.on_host(part)[:count] for part in (now, classes))

    for doublings in range(max_doublings + 2):
        # A last step of length 0 looks at what the steps before it have reached.
        radius, steps = (epsilon * 2.0**doublings, attack_steps) if doublings <= max_doublings else (0.0, 1)
        for start in range(0, len(remaining), batch_size):
            attack(remaining[start : start + batch_size], radius, steps)
        remaining = remaining[predicted[remaining] == labels[remaining]]
    return AdversarialExamples(moved, predicted, predicted != labels)


@functools.partial(jax.jit, static_argnums=0, static_argnames="clip")
def _attack_step(model, params, model_state, clean, labels, moved, radius, *, clip):
    """Moves the images whose class is their label by one step; also returns the classes of the given ones."""

    def doubt(images):
        logits, _ = model.apply(params, model_state, images, train=False)
        logits = losses.in_full_precision(logits)
        true = losses.class_numbers(labels)[:, None] == jnp.arange(logits.shape[-1])[None]
        others = jax.nn.logsumexp(jnp.where(true, -jnp.inf, logits), axis=-1)
        return jnp.sum(others - jnp.sum(jnp.where(true, logits, 0), axis=-1)), jnp.argmax(logits, axis=-1)

    gradient, classes = jax.grad(doubt, has_aux=True)(moved)
    offset = moved + radius / _STEPS_PER_RADIUS * gradient / _column(_lengths(gradient), moved) - clean
    offset = offset * _column(jnp.minimum(1, radius / _lengths(offset)), moved)
    stepped = clean + offset if clip is None else jnp.clip(clean + offset, *clip)
    classes = classes.astype(labels.dtype)
    return jnp.where(_column(classes == labels, moved), stepped, moved), classes


def _column(numbers: jax.Array, images: jax.Array) -> jax.Array:
    """One number for each image, with axes of length 1 for those of an image."""
    return numbers.reshape(-1, *[1] * (images.ndim - 1))


def _lengths(images: jax.Array) -> jax.Array:
    """The Euclidean norm of each image, 1 where it is 0. shape=(N,)"""
    squares = jnp.sum(jnp.square(images), axis=tuple(range(1, images.ndim)))
    return jnp.sqrt(jnp.where(squares > 0, squares, 1))


def _complete(found: AdversarialExamples, weights: np.ndarray | None) -> Dataset:
    """The adversarial examples; where there is none, that of another forget example, so that the shape is known.

    With weights of the forget examples each has that of the example that it was found for.
    """
    rows, (some,), (none,) = np.arange(len(found.found)), np.nonzero(found.found), np.nonzero(~found.found)
    if not some.size:
        raise InputError(
            f"the network puts none of the {len(rows)} forget examples into another class within the distances that "
            "were tried; raise epsilon or max_doublings, or check the range of the images"
        )
    if none.size:
        _logger.warning(
            "%d of %d forget examples keep their class within the distances that were tried, so there are no "
            "adversarial examples of them; those of others are repeated in their place",
            none.size,
            len(rows),
        )
        rows[none] = np.resize(some, none.size)
    examples = {"image": jnp.asarray(found.images[rows]), "label": jnp.asarray(found.labels[rows])}
    return examples if weights is None else {**examples, "weight": jnp.asarray(weights[rows])}


def drawn(carry: Carry, count: int) -> Dataset:
    """The adversarial examples of a step: pass after pass over those in `carry.aux`, each in a fresh random order.

    Args:
      carry: The carry of the step. Which examples it sees follows from `carry.key` and `carry.step`.
      count: The number of examples, at most as many as there are. The last step of a pass is filled from its front.
    """
    total = data_lib.size(carry.aux)
    steps = -(-total // count)
    # Only of the first step it is the key itself, from which augmentation and dropout come. Another one would change
    # what committed tables were computed with.
    order_key = jax.random.fold_in(jax.random.split(carry.key)[0], carry.step // steps)
    order = jax.random.permutation(order_key, total)
    order = jnp.concatenate([order, order[: steps * count - total]])
    return data_lib.take(carry.aux, jax.lax.dynamic_slice_in_dim(order, carry.step % steps * count, count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AmunSettings(AmunOptions, TrainingSettings):
    """The authors' settings for CIFAR-10, by default for the case without retained examples."""

    learning_rate: float = 1e-2
    milestones: tuple[int, ...] = tuple(range(1, 10))
    clip: bool = True
    """Whether adversarial images are clipped to [0, 1]."""
    reads_classes: ClassVar[bool] = True

    def batch_sizes(self, batch: Batch) -> list[int]:
        """One batch of all kinds; see `TrainingSettings.batch_sizes`."""
        return [2 * data_lib.size(batch.forget) + data_lib.size(batch.retain)]

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del num_classes
        method = amun(
            model,
            self.optimizer(),
            **self.logit_arguments(loss_fn),
            clip=(0.0, 1.0) if self.clip else None,
            **self.values(AmunOptions),
        )
        return self.scheduled(method)
