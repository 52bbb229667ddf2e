"""What the outputs of a network are worth by its task: losses and scores of examples, and metrics of whole sets.

Outputs are what `metrics.predict` returns. Everything here is on the host in float64, but for the losses of tasks
without classes, which JAX computes in the type of the outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Model, ModelState, Params, PyTree
from scissorhands_jax.errors import DivergedError, InputError
from scissorhands_jax.metrics import accuracies, attacks, ensemble_attacks
from scissorhands_jax.tasks import Metric, Task


def labels_of(task: Task, examples: PyTree) -> np.ndarray:
    """The classes of examples, on the host. shape=(N,)

    Args:
      task: A classification.
      examples: The examples. shapes=(N, ...)

    Raises:
      InputError: The classes are a masked array.
    """
    assert task.labels is not None
    found = task.labels(examples)
    data_lib.check_not_masked(found, "the labels")
    return np.asarray(found)


def example_losses(task: Task, outputs: PyTree, examples: PyTree) -> np.ndarray:
    """The loss of each example.

    Args:
      task: The task. Of a classifier it is the cross-entropy, in float64.
      outputs: What the network gives for the examples. shapes=(N, ...)
      examples: The examples. shapes=(N, ...)

    Raises:
      InputError: The outputs do not fit, a loss is not finite, or the task does not give one loss for each example.
    """
    if task.labels is not None:
        return attacks.cross_entropy_per_example(outputs, labels_of(task, examples))
    data_lib.check_numbers(examples, "the set of examples")
    found = np.asarray(_compiled(task)(outputs, examples), np.float64)
    return _one_each(found, examples, f"losses of the task {task.name!r}")


@functools.lru_cache(maxsize=32)
def _compiled(task: Task) -> Callable[[PyTree, PyTree], jax.Array]:
    """The loss of a task, whose code is compiled once for each number of examples."""
    return jax.jit(task.loss)


def certainties(task: Task, outputs: PyTree, examples: PyTree) -> np.ndarray:
    """How sure the network is of each example: the margin of a classifier, and otherwise the negative loss.

    Args:
      task, outputs, examples: As for `example_losses`.
    """
    if task.labels is not None:
        return ensemble_attacks.margins(outputs, labels_of(task, examples))
    return -example_losses(task, outputs, examples)


def example_groups(task: Task, examples: PyTree) -> np.ndarray:
    """An integer for each example, which is compared only with held-out examples of the same: its class, or zero."""
    if task.labels is not None:
        return labels_of(task, examples)
    return np.zeros(data_lib.size(examples), np.int32)


def known_examples(task: Task, test: PyTree, retain: PyTree) -> PyTree:
    """The test examples of a classifier whose class is still in the retain set; of another task all of them.

    The retrained network cannot know a class, or an identity, that was forgotten as a whole; the authors' code leaves
    such classes out as well.

    Args:
      task: The task.
      test: The test set.
      retain: The retain set.
    """
    if task.labels is None:
        return test
    kept = np.isin(labels_of(task, test), np.unique(labels_of(task, retain)))
    return test if kept.all() else data_lib.take(test, np.flatnonzero(kept))


def known_test_set(task: Task, test: PyTree, retain: PyTree) -> PyTree:
    """The `known_examples` of a test set, of which some must be left for anything to be measured.

    Args:
      task, test, retain: As for `known_examples`.

    Raises:
      InputError: Every test example is of a class that the retain set does not have.
    """
    known = known_examples(task, test, retain)
    if data_lib.size(test) and not data_lib.size(known):
        raise InputError(
            f"all {data_lib.size(test)} test examples are of classes that the retain set does not have, as those that "
            "are forgotten as a whole; add test examples of the classes that stay"
        )
    return known


class MetricValue(NamedTuple):
    """A metric on a set of examples."""

    value: float
    error: float  # its standard error over examples; 0 for a single example


def metric_value(task: Task, metric: Metric, outputs: PyTree, examples: PyTree) -> MetricValue:
    """Computes one of the metrics of a task on a set of examples.

    Args:
      task: The task.
      metric: One of `task.metrics`.
      outputs, examples: As for `example_losses`.

    Raises:
      InputError: The metric does not give one finite number for each example, or an array of the examples is masked.
    """
    for leaf in jax.tree.leaves(examples):
        data_lib.check_not_masked(leaf, "examples")
    found = np.asarray(metric.values(task.predictions(outputs), examples), np.float64)
    values = _one_each(found, examples, f"values of the metric {metric.name!r}")
    count = len(values)
    if metric.summary == "mean":
        return MetricValue(math.fsum(values) / count, float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else 0)
    squares = values**2
    value = math.sqrt(math.fsum(squares) / count)
    # By the delta method: the root of a mean changes by half as much as the mean, divided by the root.
    spread = float(squares.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    return MetricValue(value, spread / (2 * value) if value else 0.0)


def quality(task: Task, outputs: PyTree, examples: PyTree) -> float:
    """The first metric of a task on a set of examples: the accuracy of a classifier, in percent.

    Args:
      task, outputs, examples: As for `example_losses`.
    """
    if task.labels is not None:
        return accuracies.accuracy(outputs, labels_of(task, examples))
    return metric_value(task, task.metrics[0], outputs, examples).value


def outputs_of(task: Task, model: Model, params: Params, model_state: ModelState, examples: PyTree) -> PyTree:
    """What a network gives for examples, in evaluation mode, on the host: `predict` of what the task says is its input.

    Args:
      task: The task.
      model, params, model_state: The network.
      examples: The examples. shapes=(N, ...)
    """
    return accuracies.predict(model, params, model_state, task.inputs(examples), batch_size=500)


def _one_each(values: np.ndarray, examples: PyTree, what: str) -> np.ndarray:
    """Numbers of which there is one finite one for each example, or InputError."""
    count = data_lib.size(examples)
    if values.shape != (count,):
        raise InputError(f"the {what} have shape {values.shape} for {count} examples; give one number for each")
    if not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise DivergedError(
            f"{bad} of {count} {what} are NaN or infinity; the network has diverged, try a smaller learning rate"
        )
    return values
