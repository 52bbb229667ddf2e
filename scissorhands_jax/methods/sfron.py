"""SFR-on (Huang et al., NeurIPS 2024, arXiv 2409.19732): masked ascent now and then, retain descent in every step."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, microbatches, saliency, trees
from scissorhands_jax.base import (
    Batch,
    Carry,
    Data,
    Dataset,
    Key,
    Mask,
    Method,
    Metrics,
    Model,
    ModelState,
    Params,
    PyTree,
    Scores,
    StatefulLossFn,
    new_carry,
)
from scissorhands_jax.errors import InputError, check_choice, check_not_negative
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import (
    PairedOptions,
    check_not_empty,
    count_batches,
    for_classes,
    further_batches,
)
from scissorhands_jax.methods.settings import Choices, Gradient, Mode, Range, ScheduleName, TrainingSettings
from scissorhands_jax.tasks import example_weights, task_of, weighted_mean

_SCHEDULES = (optax.ScaleByScheduleState, optax.InjectStatefulHyperparamsState)


class SfronAux(NamedTuple):
    """What the carry holds in addition to the network."""

    mask: Mask | None  # True for the weights that the forget gradient reaches; None for all
    num_steps: jax.Array  # shape=(), float32: the number of steps of the whole run


@dataclasses.dataclass(frozen=True, kw_only=True)
class SfronOptions(PairedOptions):
    """The keyword arguments of `sfron` that are settings as well."""

    forget_weight: float = 25.0
    """alpha, the factor of the forget gradient in the first step, at least 0. It falls along half a cosine, to zero at
    the end of the run."""
    forget_every: int = 5
    """The number of steps from one that begins with an update on forget examples to the next, at least 1."""
    forget_power: float = 0.5
    """lambda, at least 0: forget examples are weighted by CE^-lambda. 0 weights all the same."""
    threshold: float | None = 1.0
    """gamma, at least 0: how many times as large the forget set's Fisher information of a weight must be as the retain
    set's, so that the forget gradient reaches it. None lets it reach all weights."""
    max_norm: float = 7.0
    """The norm at which the masked and weighted forget gradient is clipped, above 0."""
    slow_share: float = 1.0
    """beta, above 0 and at most 1: after every step the weights are set to (1 - beta) old + beta new, where old are
    those before the step. 1 averages nothing."""
    mode: Mode = "paper"
    """"paper" drops the network's state that a pass over forget examples leaves, so that they leave no trace in
    BatchNorm's statistics. "authors" keeps it, as the published code does."""
    batch_size: int = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class SfronArguments(SfronOptions):
    """The keyword arguments of `sfron`."""

    num_epochs: int
    """The number of epochs that `run` is called with."""


@takes(SfronArguments)
def sfron(
    model: Model, loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: SfronArguments
) -> Method:
    """Descends on the retain loss in every step, after an ascent on the forget loss in every `forget_every`-th.

    Step t of T, counted from 0, does at the weights w, with one optimizer and its one momentum,

      if t is a multiple of forget_every:  w <- update(w, clip(-alpha (1 + cos(pi t / T)) / 2 * m * g_f))
      always:                              w <- update(w, g_r)
                                           w <- (1 - beta) w_t + beta w
      g_f = sum of CE_i^-lambda dCE_i/dw / sum of CE_i^-lambda     over the forget batch
      m = [F_f >= gamma F_r]                                       for each weight

    where g_r is the gradient of the mean retain loss and F are the Fisher diagonals of the original network
    (`saliency.diagonal_fisher`, with batches of one size, at most that of the smaller set). The mask and the clipping
    act on the gradient, so decay and momentum move masked weights too. A cross-entropy below the resolution of its type
    (1.2e-7 in float32) is weighted as if it were that: a CE of 0 would have all the weight and no gradient.

    The defaults are those of the published code for 10 % of CIFAR-10 and ResNet-18: 1,500 steps of `sgd(0.01)` with
    batches of 128, a rate that falls along half a cosine, and beta = 1. These steps are 4.3 epochs over the retain set.
    Forget batches run through the forget set over and over; each example is seen about as often as any other, but not
    once an epoch. Where the forget set is so large that the run would miss some, epochs go on with retain batches of a
    further pass, so that it sees all.

    Args:
      model: The network, whose cross-entropy the forget update raises.
      loss_fn: The general form of the retain loss, a mean over batches `{"image", "label"}`. Its task says
        what inputs, classes and weights of examples are (`tasks.task_of`). A `classification_loss`
        also says how forget images are augmented and in how many parts a batch is computed.
      optimizer: The optimizer, such as `optimizers.sgd`. Its schedule counts steps: both updates of a step have one
        rate, as in the published code.

    Raises:
      InputError: A setting is out of its range, or (from `init`) a Fisher diagonal is not finite.
    """
    _check(options)
    forget_batch, retain_batch = options.sizes()

    def epoch_steps(data: Data) -> int:
        # The last batch of the first pass over the forget set has to begin before the run ends.
        least = options.forget_every * (count_batches(data_lib.size(data.forget), forget_batch) - 1) + 1
        of_retain = count_batches(data_lib.size(data.retain), retain_batch)
        return max(of_retain, count_batches(least, options.num_epochs))

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        check_not_empty(data, ("forget", "retain"))
        mask_key, step_key = jax.random.split(key)
        mask = None
        if options.threshold is not None:
            mask = _mask(mask_key, loss_fn, params, model_state, data, options)
        steps = options.num_epochs * epoch_steps(data)
        return new_carry(step_key, params, model_state, optimizer.init(params), aux=SfronAux(mask, jnp.float32(steps)))

    def ascend(carry: Carry, batch: Batch, key: Key) -> tuple[Carry, Metrics]:
        gradient, model_state, loss = weighted_gradient(
            model, loss_fn, carry.params, carry.model_state, batch.forget, key, power=options.forget_power
        )
        done = jnp.minimum(carry.step / carry.aux.num_steps, 1)
        weight = -options.forget_weight * (1 + jnp.cos(jnp.pi * done)) / 2
        gradient = jax.tree.map(lambda leaf: leaf * weight.astype(leaf.dtype), gradient)
        if carry.aux.mask is not None:
            gradient = jax.tree.map(lambda leaf, kept: jnp.where(kept, leaf, 0), gradient, carry.aux.mask)
        norm = trees.norm(gradient)
        shrunk = jnp.minimum(1, options.max_norm / norm)
        gradient = jax.tree.map(lambda leaf: leaf * shrunk.astype(leaf.dtype), gradient)
        if options.mode == "authors":
            carry = carry._replace(model_state=model_state)
        updated = _updated(optimizer, carry, gradient)
        carry = updated._replace(opt_state=_at_the_same_rate(carry.opt_state, updated.opt_state))
        return carry, {"loss_forget": loss, "forget_grad_norm": norm}

    def step(carry: Carry, batch: Batch) -> tuple[Carry, Metrics]:
        retain_key, forget_key = jax.random.split(jax.random.fold_in(carry.key, carry.step))
        old = carry.params
        metrics: Metrics = {}
        if batch.forget is not None:
            carry, metrics = ascend(carry, batch, forget_key)

        def loss(params):
            return loss_fn(params, carry.model_state, batch.retain, train=True, key=retain_key)

        (value, model_state), gradient = jax.value_and_grad(loss, has_aux=True)(carry.params)
        carry = _updated(optimizer, carry._replace(model_state=model_state), gradient)
        if options.slow_share < 1:
            slowed = jax.tree.map(lambda a, b: a + (options.slow_share * (b - a)).astype(a.dtype), old, carry.params)
            carry = carry._replace(params=slowed)
        metrics = {**metrics, "loss_retain": value, "grad_norm": trees.norm(gradient)}
        return carry._replace(step=carry.step + 1), metrics

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        retain_key, forget_key = jax.random.split(key)
        epoch_key = jax.random.fold_in(retain_key, epoch)
        retain = data_lib.shuffled_batches(epoch_key, data_lib.size(data.retain), retain_batch)
        retain += further_batches(epoch_key, data, epoch, retain_batch, epoch_steps(data) - len(retain))
        first = epoch * len(retain)
        endless = data_lib.cycled_batches(forget_key, data_lib.size(data.forget), forget_batch)
        forget = itertools.islice(endless, -(-first // options.forget_every), None)
        return (
            Batch(None if number % options.forget_every else next(forget, None), positions)
            for number, positions in enumerate(retain, first)
        )

    return for_classes("sfron", Method(init, step, batches), task_of(loss_fn))


def weighted_gradient(
    model: Model,
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    examples: Dataset,
    key: Key | None,
    *,
    power: float,
) -> tuple[PyTree, ModelState, jax.Array]:
    """The mean of the gradients of the cross-entropies CE of a batch, weighted by CE^-power, in training mode.

    Where the task of the loss has weights of examples, each counts by its own as well.

    Args:
      model: The network.
      loss_fn: The loss that says how images are augmented, in how many parts a batch is computed, and what the task is.
      params: The parameters at which the gradients are taken.
      model_state: The state that the pass starts from.
      examples: A batch `{"image": (N, ...), "label": (N,)}`.
      key: The typed PRNG key of augmentation and dropout; None where nothing is random.
      power: lambda of `sfron`.

    Returns:
      The gradient, the state that the pass leaves, and the mean cross-entropy without CE^-power, shape=().
    """
    task = task_of(loss_fn)
    assert task.labels is not None
    images, key = losses.augmented(losses.augmentation_of(loss_fn), key, task.inputs(examples))

    def mean_loss(params, model_state, part, key):
        images, labels, shares = part
        logits, model_state = model.apply(params, model_state, images, train=True, key=key)
        values = losses.cross_entropies(logits, labels)
        weights = jnp.maximum(jax.lax.stop_gradient(values), jnp.finfo(values.dtype).eps) ** -power
        metrics = {"loss": weighted_mean(values, shares), "weight": weighted_mean(weights, shares)}
        return weighted_mean(weights * values, shares), (model_state, metrics)

    # The weights are normalised by their sum over the batch, which is known when all its parts are computed.
    whole = microbatches.accumulated(mean_loss, losses.microbatches_of(loss_fn))
    (_, (model_state, means)), gradient = jax.value_and_grad(whole, has_aux=True)(
        params, model_state, (images, task.labels(examples), example_weights(task, examples)), key
    )
    gradient = jax.tree.map(lambda leaf: leaf / means["weight"].astype(leaf.dtype), gradient)
    return gradient, model_state, means["loss"]


@jax.jit
def fisher_mask(forget: Scores, retain: Scores, threshold: float) -> Mask:
    """Marks the weights where `forget >= threshold * retain`."""
    return jax.tree.map(lambda f, r: f >= threshold * r, forget, retain)


def _mask(
    key: Key, loss_fn: StatefulLossFn, params: Params, model_state: ModelState, data: Data, options: SfronOptions
) -> Mask:
    """The mask of the weights that matter to the forget set."""
    sizes = [data_lib.size(part) for part in data]
    size = min(*sizes, *options.sizes())

    def fisher(part: Dataset, part_key: Key, total: int) -> Scores:
        positions = data_lib.shuffled_batches(part_key, total, size)
        drawing = losses.drawing_key(loss_fn, jax.random.fold_in(part_key, 1))
        batches = (data_lib.take(part, chosen) for chosen in positions)
        scores = saliency.diagonal_fisher(loss_fn, params, model_state, batches, key=drawing)
        saliency.check_finite(scores)
        return scores

    forget, retain = (fisher(*row) for row in zip(data, jax.random.split(key), sizes, strict=True))
    return fisher_mask(forget, retain, options.threshold)


def _updated(optimizer: optax.GradientTransformation, carry: Carry, gradient: PyTree) -> Carry:
    updates, opt_state = optimizer.update(gradient, carry.opt_state, carry.params)
    return carry._replace(params=optax.apply_updates(carry.params, updates), opt_state=opt_state)


def _at_the_same_rate(before: PyTree, after: PyTree) -> PyTree:
    """The state `after` an update, whose schedules are where they were `before` it."""

    def back(old, new):
        if isinstance(new, optax.InjectStatefulHyperparamsState):
            return old._replace(inner_state=_at_the_same_rate(old.inner_state, new.inner_state))
        return old if isinstance(new, _SCHEDULES) else new

    return jax.tree.map(back, before, after, is_leaf=lambda node: isinstance(node, _SCHEDULES))


def _check(options: SfronArguments) -> None:
    check_choice("mode", options.mode, typing.get_args(Mode))
    for name in ("forget_weight", "forget_power", "threshold"):
        value = getattr(options, name)
        if value is not None:
            check_not_negative(name, value)
    for name in ("forget_every", "num_epochs"):
        if getattr(options, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(options, name)}")
    if not options.max_norm > 0:
        raise InputError(f"max_norm must be above 0, got {options.max_norm}")
    if not 0 < options.slow_share <= 1:
        raise InputError(f"slow_share must be above 0 and at most 1, got {options.slow_share}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SfronSettings(SfronOptions, TrainingSettings):
    """The published settings for 10 % of CIFAR-10, as whole epochs."""

    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 1e-2
    schedule: ScheduleName = "cosine"
    gradients: ClassVar[tuple[Gradient, ...]] = ("either",)
    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {
        "forget_weight": (1.0, 100.0),
        **TrainingSettings.search_ranges,
        "schedule": ("cosine", "drops"),
    }
    reads_classes: ClassVar[bool] = True

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del num_classes
        options = self.values(SfronOptions)
        return self.scheduled(
            sfron(model, self.microbatched(loss_fn), self.optimizer(), num_epochs=max(self.epochs, 1), **options)
        )
