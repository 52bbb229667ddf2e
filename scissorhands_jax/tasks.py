"""Tasks: what a network is for, as one value that says what its loss is, what it predicts, and how good that is.

Everything that trains or measures a network takes such a value, and classification is the default everywhere. Data are
any pytree whose arrays share their first axis. For the tasks made here an example is a dict: `label` is its target, and
the network is applied to whatever else it holds (`losses.inputs_of`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, ParamSpec, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, microbatches
from scissorhands_jax.base import Key, Model, ModelState, Params, PyTree, Scalar, StatefulLossFn, check_model
from scissorhands_jax.errors import InputError, check_choice

_Arguments = ParamSpec("_Arguments")
Better = Literal["higher", "lower"]
Summary = Literal["mean", "root"]


class Metric(NamedTuple):
    """A measure of how good predictions are: a number for each example, and how these become one number.

    Attributes:
      name: The beginning of its fields in a row of results, such as `rmse` for `rmse_forget`: lower-case letters,
        digits and `_`.
      title: What tables call it.
      values: `(predictions, examples) -> numbers`, in NumPy or JAX, one for each example. shape=(N,)
      better: Whether higher or lower numbers are better.
      summary: "mean" is the mean of the numbers, "root" is the root of the mean of their squares.
      unit: The unit of the numbers. The first metric of a task is compared with membership inference, which is in
        percent, so it should be a percentage as well, such as an error in percent of the usual size of a target.
    """

    name: str
    title: str
    values: Callable[[PyTree, PyTree], chex.Array]
    better: Better = "higher"
    summary: Summary = "mean"
    unit: str = "%"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a network is for.

    Functions of examples are given a batch or a whole set of them: a pytree whose arrays share their first axis, N.
    """

    name: str
    """What it is called in results and messages."""
    loss: Callable[[PyTree, PyTree], jax.Array]
    """`(outputs, examples) -> losses`, one for each example, differentiable. The outputs are what the network gives.
    shape=(N,)"""
    metrics: tuple[Metric, ...]
    """The measures of quality. The first takes the place of the accuracy of a classifier: in tables, in the Avg. Gap,
    in gates and in tuning; of a task with `labels` it is the accuracy, in percent, called `acc`."""
    predictions: Callable[[PyTree], PyTree] = lambda outputs: outputs
    """`(outputs) -> predictions`, which the metrics judge; by default the outputs themselves."""
    inputs: Callable[[PyTree], PyTree] = losses.inputs_of
    """`(examples) -> inputs`, what the network is applied to; by default as in `losses.inputs_of`."""
    labels: Callable[[PyTree], chex.Array] | None = None
    """`(examples) -> classes`, integers of shape (N,), of a task whose outputs are logits of classes, shape (N, C). It
    is then measured as in the paper: by accuracy, which has to be its first metric, by the confidence in the true
    class, and by margins. Examples are compared with held-out ones of their class. None for any other task."""
    weights: Callable[[PyTree], jax.Array] | None = None
    """`(examples) -> weights` of the examples in the mean loss of a batch, such as the number of tokens of each, so
    that all tokens count alike. shape=(N,), not negative. None counts all examples alike."""
    divergence: Callable[[PyTree, PyTree, PyTree, float], jax.Array] | None = None
    """`(teacher's outputs, outputs, examples, temperature) -> divergences`, one for each example, for methods in which
    a network learns from another one: T^2 KL(softmax(teacher / T) || softmax(outputs / T)). shape=(N,). None where
    outputs are no logits; such methods are then refused."""
    ceiling: float | None = None
    """The loss of a network that knows nothing of an example, up to which `scissorhands` drives the forget loss if its
    ceiling is "uniform". None if that is unknown; of a classifier, which leaves it None, the logarithm of the number of
    classes is taken."""
    flip: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
    """`(targets, generator) -> wrong targets` of the same shape, for tables with wrong targets. None if there are none;
    of a classifier, which leaves it None, another class is drawn."""

    def __post_init__(self) -> None:
        if not self.metrics:
            raise InputError(f"the task {self.name!r} has no metric; give at least one Metric")
        names = [metric.name for metric in self.metrics]
        reserved = {"mia", "num"} | (set() if self.classifies else {"acc"})
        for name in names:
            plain = name.isascii() and name.replace("_", "a").isalnum() and name == name.lower()
            if not plain or names.count(name) > 1 or name in reserved:
                raise InputError(
                    f"the task {self.name!r} has a metric called {name!r}; give each a name of its own in lower-case "
                    f"letters, digits and _, other than {' and '.join(sorted(reserved))}"
                )
        for metric in self.metrics:
            check_choice(f"better of the metric {metric.name}", metric.better, get_args(Better))
            check_choice(f"summary of the metric {metric.name}", metric.summary, get_args(Summary))
        if self.classifies and (names[0], self.metrics[0].better) != ("acc", "higher"):
            raise InputError(
                f"the first metric of the task {self.name!r} is {names[0]!r}, and one with `labels` is judged by its "
                "accuracy; name that first, as in `classification().metrics`, or leave `labels` out"
            )

    @property
    def classifies(self) -> bool:
        """Whether the outputs are logits of classes, one class for each example."""
        return self.labels is not None

    def document(self) -> dict[str, Any]:
        """What a row of results says of the task, as JSON: its name, and names, titles and units of its metrics."""
        shown = ("name", "title", "better", "unit")
        return {
            "name": self.name,
            "metrics": [{field: getattr(metric, field) for field in shown} for metric in self.metrics],
        }


def task_loss(model: Model, task: Task) -> StatefulLossFn:
    """The mean loss of a network over a batch, in the general form that every method takes.

    Args:
      model: The network, whose outputs the task judges.
      task: The task.

    Returns:
      The loss. Of `classification()` it is `losses.classification_loss`. Losses of one network and one task are equal,
      so that they share compiled code.

    Raises:
      InputError: The network is no `Model`; or when the loss is called, if the task does not give one loss for each
        example.
    """
    check_model(model)
    return losses.classification_loss(model) if task == CLASSIFICATION else _TaskLoss(model, task)


@dataclasses.dataclass(frozen=True)
class _TaskLoss(losses.DividedLoss):
    """A value that equals others of the same network and task."""

    model: Model
    task: Task

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]:
        if train:
            microbatches.check_microbatches({len(leaf) for leaf in jax.tree.leaves(batch)}, self.parts)

        def mean_loss(params, model_state, part, key):
            examples, weights = part
            outputs, model_state = self.model.apply(
                params, model_state, self.task.inputs(examples), train=train, key=key
            )
            each, count = self.task.loss(outputs, examples), len(jax.tree.leaves(examples)[0])
            if jnp.shape(each) != (count,):
                raise InputError(
                    f"the loss of the task {self.task.name!r} has shape {jnp.shape(each)} for {count} examples; give "
                    f"one number for each, of shape ({count},)"
                )
            return weighted_mean(each, weights), (model_state, {})

        whole = microbatches.accumulated(mean_loss, self.parts)
        loss, (model_state, _) = whole(params, model_state, (batch, example_weights(self.task, batch)), key)
        return loss, model_state

    def weight(self, examples: PyTree) -> Scalar | int:
        """The number of examples, or the sum of their weights where the task has any."""
        return super().weight(examples) if self.task.weights is None else jnp.sum(_weights(self.task, examples))


@dataclasses.dataclass(frozen=True)
class _LossWithTask(losses.LossWithin):
    """A loss of the user's own for a network with a task, as a value like `_TaskLoss`."""

    task: Task

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]:
        return self.loss_fn(params, model_state, batch, train=train, key=key)

    def weight(self, examples: PyTree) -> Scalar | int:
        """The sum of the weights of the examples where the task has any; otherwise as for the loss within."""
        return super().weight(examples) if self.task.weights is None else jnp.sum(_weights(self.task, examples))


def with_task(loss_fn: StatefulLossFn, task: Task) -> StatefulLossFn:
    """The same loss, of which `task_of` knows what its network is for, for methods that need more than a loss.

    Args:
      loss_fn: Any loss in the general form; of a task with `weights`, a mean in which the examples have these weights.
      task: What the network is for.
    """
    return loss_fn if task_of(loss_fn) == task else _LossWithTask(loss_fn, task)


def task_of(loss_fn: StatefulLossFn) -> Task:
    """The task whose loss this is: as `task_loss` or `with_task` was told, and classification for any other loss.

    Args:
      loss_fn: The loss, perhaps in parts (`losses.microbatched`).
    """
    whole = losses.undivided(loss_fn)
    return whole.task if isinstance(whole, _TaskLoss | _LossWithTask) else CLASSIFICATION


def example_weights(task: Task, examples: PyTree) -> jax.Array | None:
    """The weights of the examples of a batch as shares of their mean, so that a weighted mean is a mean again.

    Args:
      task: The task.
      examples: The batch. None is returned for a task that counts all examples alike; weights that are all 0 stay 0.
    """
    return None if task.weights is None else weights_as_shares(task.weights(examples))


def weights_as_shares(weights: jax.Array) -> jax.Array:
    """Weights of the examples of a batch divided by their mean, in float32 or wider; all 0 stay 0. shape=(N,)"""
    weights = losses.in_full_precision(weights)
    mean = jnp.mean(weights)
    return weights / jnp.where(mean > 0, mean, 1)


def _weights(task: Task, examples: PyTree) -> jax.Array:
    """The weights of examples of a task that has some, in float32 or wider, so that sums are finite. shape=(N,)"""
    assert task.weights is not None
    return losses.in_full_precision(task.weights(examples))


def check_weights(task: Task, examples: PyTree, whose: str) -> None:
    """Refuses weights of examples with which no mean can be taken.

    Args:
      task: The task.
      examples: All examples of a set, in the memory of this process.
      whose: What the set is called in errors.

    Raises:
      InputError: The task has weights, and there is not one for each example, one is negative or no number, or all
        are 0.
    """
    if task.weights is None:
        return
    weights = np.asarray(_weights(task, examples))
    if weights.shape != (count := data_lib.size(examples),):
        raise InputError(
            f"the task {task.name!r} gives {whose} of {count} examples weights of shape {weights.shape}; give one "
            "number for each example"
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        raise InputError(
            f"the task {task.name!r} gives {len(bad)} examples of {whose} weights that are negative or no numbers, the "
            f"first is example {bad[0]} with {weights[bad[0]]:g}; give weights of at least 0"
        )
    if not weights.any():
        raise InputError(
            f"the task {task.name!r} gives all examples of {whose} the weight 0; give one a weight above 0"
        )


def check_relabelled(task: Task, examples: PyTree, what: str, *, otherwise: str = "") -> None:
    """Refuses examples whose classes do not change with their `label`, where that is replaced.

    Args:
      task: What the network is for.
      examples: A set of examples.
      what: What replaces labels, in errors.
      otherwise: What a user can do instead, after a comma.

    Raises:
      InputError: The task has no classes, or they are not the `label` of the examples.
    """
    if isinstance(examples, Mapping) and "label" in examples and task.labels is not None:
        others = -1 - np.arange(data_lib.size(examples), dtype=np.int32)  # classes of no example
        found = task.labels({**examples, "label": others})
        local = not isinstance(found, jax.Array) or found.is_fully_addressable
        if local and np.array_equal(found, others):
            return
    raise InputError(
        f"{what} would be put into 'label', where the task {task.name!r} does not find its classes; keep what its "
        f"`labels` and `loss` read in 'label'{otherwise}"
    )


def weighted_mean(each: jax.Array, weights: jax.Array | None) -> Scalar:
    """The mean of numbers of examples, weighted as `example_weights` has it. shape=()"""
    return jnp.mean(each if weights is None else each * weights)


def _once(make: Callable[_Arguments, Task]) -> Callable[_Arguments, Task]:
    """The same function, which makes one task for equal arguments, whether they are spelled out or left out."""
    signature, made = inspect.signature(make), functools.cache(make)

    @functools.wraps(make)
    def of(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Task:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return made(**bound.arguments)  # type: ignore[call-arg]

    return of


def _label(examples: PyTree) -> chex.Array:
    """The targets, or InputError if the examples are no dict that holds any."""
    if not isinstance(examples, Mapping) or "label" not in examples:
        what = f"the keys {', '.join(map(str, examples))}" if isinstance(examples, Mapping) else "no keys"
        raise InputError(f"the examples have {what}; give a dict with the targets as 'label'")
    return examples["label"]


def _alike(outputs: PyTree, examples: PyTree) -> tuple[chex.Array, chex.Array]:
    """Outputs and targets in one shape, or InputError; numbers of shape (N, 1) and (N,) would otherwise broadcast."""
    targets = _label(examples)
    shapes = jnp.shape(outputs), jnp.shape(targets)
    if shapes[0] == shapes[1]:
        return outputs, targets
    # Only an axis of length 1 may be missing; other shapes with as many numbers may hold them in another order.
    if shapes[0][:1] == shapes[1][:1] and len({tuple(n for n in shape[1:] if n != 1) for shape in shapes}) == 1:
        return outputs.reshape(shapes[1]), targets
    raise InputError(
        f"the network gives numbers of shape {shapes[0]} for targets of shape {shapes[1]}; make them equal"
    )


def _example_means(values: chex.Array) -> chex.Array:
    """The mean over all axes but the first."""
    return values.reshape(len(values), -1).mean(axis=1)


@functools.cache
def classification() -> Task:
    """One of C classes for each example: the network gives logits of shape (N, C), and `label` holds integers (N,)."""
    return Task(
        name="classification",
        loss=lambda logits, examples: losses.cross_entropies(logits, _label(examples)),
        metrics=(
            Metric("acc", "Acc", lambda predicted, examples: 100.0 * (predicted == np.asarray(_label(examples)))),
        ),
        predictions=lambda logits: np.asarray(logits).argmax(axis=-1),
        labels=_label,
        divergence=_divergences,
    )


def _divergences(teacher: PyTree, outputs: PyTree, examples: PyTree, temperature: float) -> jax.Array:
    """`losses.kl_divergences` of logits (N, C), as `Task.divergence` takes them."""
    del examples
    return losses.kl_divergences(teacher, outputs, temperature=temperature)


CLASSIFICATION = classification()
"""The task of everything that is not given another."""


@functools.cache
def multi_label() -> Task:
    """Any number of L labels for each example: the network gives logits (N, L), `label` holds zeros and ones (N, L).

    The loss is the mean over labels of the cross-entropy of a sigmoid. The metrics are the share of labels that are
    right, and the share of examples whose labels are all right, in percent. A loss of log 2 knows nothing.
    """

    def loss(logits, examples):
        logits, targets = _alike(losses.in_full_precision(logits), examples)
        return _example_means(optax.sigmoid_binary_cross_entropy(logits, jnp.asarray(targets, logits.dtype)))

    def right(predicted, examples):
        predicted, targets = _alike(predicted, examples)
        return (predicted == (np.asarray(targets) > 0)).reshape(len(predicted), -1)

    return Task(
        name="multi-label",
        loss=loss,
        metrics=(
            Metric("labels", "Labels right", lambda *pair: 100.0 * right(*pair).mean(axis=1)),
            Metric("exact", "All right", lambda *pair: 100.0 * right(*pair).all(axis=1)),
        ),
        predictions=lambda logits: np.asarray(logits) > 0,
        ceiling=math.log(2),
        flip=lambda targets, generator: 1 - targets,
    )


@_once
def regression(scale: float = 1.0) -> Task:
    """Numbers for each example: the network gives them in the shape of `label`, (N,) or (N, ...).

    The loss of an example is the mean over its numbers of `((output - label) / scale)^2`. The metrics are the root of
    the mean squared error and the mean absolute error, in percent of `scale`. If `scale` is the standard deviation of
    the targets, a network that always answers their mean has a loss of 1 and an RMSE of 100 %. Wrong targets are right
    ones mirrored between the smallest and the largest of those that are changed, or moved up by `scale`, rounded up,
    where that changes nothing.

    Args:
      scale: The unit of errors, in that of the targets, above 0; for example the targets' standard deviation.

    Raises:
      InputError: `scale` is not a finite number above 0.
    """
    if not 0 < scale < math.inf:
        raise InputError(f"the scale of a regression must be above 0, got {scale}; give the usual size of an error")

    def errors(predicted, examples):
        predicted, targets = _alike(predicted, examples)
        return (np.asarray(predicted, np.float64) - np.asarray(targets, np.float64)) / scale

    def loss(outputs, examples):
        outputs, targets = (losses.in_full_precision(part) for part in _alike(outputs, examples))
        return _example_means(jnp.square((outputs - targets) / scale))

    def flip(targets, generator):
        del generator
        mirrored = targets.min() + targets.max() - targets
        # In the middle, and where all are alike, nothing is mirrored.
        return np.where(mirrored == targets, targets + np.asarray(math.ceil(scale), targets.dtype), mirrored)

    return Task(
        name="regression",
        loss=loss,
        metrics=(
            Metric("rmse", "RMSE", lambda *pair: 100.0 * np.sqrt(_example_means(errors(*pair) ** 2)), "lower", "root"),
            Metric("mae", "MAE", lambda *pair: 100.0 * _example_means(np.abs(errors(*pair))), "lower"),
        ),
        ceiling=1.0,
        flip=flip,
    )


@_once
def masked(step_task: Task, mask: str = "mask") -> Task:
    """A task of every step of a sequence, in which steps that only fill sequences up to one length do not count.

    Examples are dicts of arrays (N, T, ...), with targets for each step in `label` and with `mask`, which is True at
    real steps. The network is applied to all but `label`, so also to the mask (or to `image` alone, if there is one),
    and gives outputs of shape (N, T, ...). Loss and metrics of an example are the means over its real steps of those of
    `step_task` (for a metric with `summary="root"` the root of the mean square), so every sequence counts once,
    whatever its length. One without real steps has a loss of 0, and metrics refuse it. What outputs and targets hold
    elsewhere changes nothing, NaN included; but `training.run` refuses data that hold NaN anywhere. There are no wrong
    targets of sequences (`Task.flip`).

    Args:
      step_task: The task of one step, such as `regression()` or `classification()`. Its loss and metrics are given
        the steps of all sequences as examples (N * T) with `label` alone, its `predictions` all outputs at once.
      mask: The name of the array of bools, shape (N, T).

    Raises:
      InputError: The task of one step has `weights` or `inputs` of its own, which would be of steps.
    """
    for name, usual in (("weights", None), ("inputs", losses.inputs_of)):
        if getattr(step_task, name) != usual:
            raise InputError(
                f"the task of one step, {step_task.name!r}, has {name} of its own, which say nothing of sequences; "
                f"leave them out, and give the sequences theirs by dataclasses.replace(masked(...), {name}=...)"
            )

    def steps(tree, keep):
        def flat(leaf):
            xnp = jnp if isinstance(leaf, jax.Array) else np
            if leaf.shape[:2] != keep.shape:
                raise InputError(
                    f"an array of shape {leaf.shape} stands next to a mask of shape {keep.shape}; give every step of "
                    "every sequence an output and a target"
                )
            kept = keep.reshape(*keep.shape, *[1] * (leaf.ndim - 2))
            return xnp.where(kept, leaf, xnp.zeros_like(leaf)).reshape(-1, *leaf.shape[2:])

        return jax.tree.map(flat, tree)

    def mask_of(examples):
        if not isinstance(examples, Mapping) or mask not in examples:
            raise InputError(f"the examples have no {mask!r}, which says what steps are real; give a dict that has it")
        return examples[mask].astype(bool)

    def loss(outputs, examples):
        keep = mask_of(examples)
        each = step_task.loss(steps(outputs, keep), {"label": steps(_label(examples), keep)}).reshape(keep.shape)
        return jnp.where(keep, each, 0).sum(axis=1) / jnp.maximum(keep.sum(axis=1), 1)

    compare = step_task.divergence

    def divergence(teacher, outputs, examples, temperature):
        keep = mask_of(examples)
        assert compare is not None
        each = compare(steps(teacher, keep), steps(outputs, keep), {}, temperature)
        return jnp.where(keep, each.reshape(keep.shape), 0).sum(axis=1) / jnp.maximum(keep.sum(axis=1), 1)

    def metric(one: Metric) -> Metric:
        power = 2 if one.summary == "root" else 1

        def values(predicted, examples):
            keep = np.asarray(mask_of(examples))
            if not keep.any(axis=1).all():
                raise InputError(f"{np.count_nonzero(~keep.any(axis=1))} sequences have no real step; leave them out")
            found = one.values(steps(predicted, keep), {"label": steps(np.asarray(_label(examples)), keep)})
            each = np.where(keep, np.asarray(found, np.float64).reshape(keep.shape) ** power, 0)
            return (each.sum(axis=1) / keep.sum(axis=1)) ** (1 / power)

        return one._replace(values=values, name="step_acc" if one.name == "acc" else one.name)

    return Task(
        name=f"{step_task.name} of sequences",
        loss=loss,
        metrics=tuple(map(metric, step_task.metrics)),
        predictions=step_task.predictions,
        divergence=None if compare is None else divergence,
        ceiling=step_task.ceiling,
    )
