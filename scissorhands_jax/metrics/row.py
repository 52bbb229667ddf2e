"""The row of a network in a table: the paper's four numbers, or what takes their place for another task."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Dataset, Model, ModelState, Params, PyTree
from scissorhands_jax.metrics import accuracies, answers, attacks
from scissorhands_jax.tasks import CLASSIFICATION, Task
from scissorhands_jax.training.sharding import Layout


def measure_row(
    model: Model,
    params: Params,
    model_state: ModelState,
    data: Data,
    test: Dataset,
    *,
    seed: int = 0,
    batch_size: int = 500,
    every_attack: bool = False,
    layout: Layout | None = None,
    task: Task = CLASSIFICATION,
) -> dict[str, Any]:
    """Measures the accuracies on the forget, retain and test set and the paper's membership inference, in percent.

    When a whole class is forgotten, leave it out of `test`, as the paper does.

    Args:
      model: The network to measure.
      params: The parameters of the network.
      model_state: BatchNorm statistics and the like, which are read and never changed.
      data: The forget and the retain set; of a classifier each such as `{"image", "label"}`.
      test: Held-out examples of the same form; of a classifier, of the classes that stay.
      seed: The seed of the attack's subsample.
      batch_size: How many examples a forward pass takes.
      every_attack: Whether to run the SVC on the other four features, and the logistic regression on losses, as well.
        Of another task than classification, the logistic regression alone.
      layout: How to divide the work over several devices; see `metrics.predict`. The default uses one device.
      task: What the network is for.

    Returns:
      `acc_forget, acc_retain, acc_test, mia` (0 to 100), and the counts `correct_*` and `num_*` behind the accuracies;
      with `every_attack` also `mia_correctness, mia_entropy, mia_modified_entropy, mia_probabilities` and `mia_loss`.
      Of another task than classification the metrics of the task stand in place of accuracies, such as `rmse_forget`,
      with the standard error over examples of the first, such as `rmse_forget_error`; `mia` is that of
      `attacks.loss_mia`, and `task` is what `Task.document` returns.
    """
    found = predict_sets(model, params, model_state, data, test, batch_size=batch_size, layout=layout, task=task)
    attacked = attack_numbers(found, seed=seed, every_attack=every_attack, task=task)
    accuracy = accuracy_numbers(found, task=task)
    first = {name: value for name, value in accuracy.items() if name.startswith("acc_")}
    return {**first, **attacked, **accuracy}


class SetPredictions(NamedTuple):
    """What a network answers for a set of examples."""

    outputs: PyTree  # shapes=(N, ...), dtype=float32; of a classifier the logits, shape=(N, C)
    examples: Dataset  # what is asked, with the right answers. shapes=(N, ...)


Predictions = Mapping[str, SetPredictions]
"""Those for the sets "forget", "retain" and "test"."""


def predict_sets(
    model: Model,
    params: Params,
    model_state: ModelState,
    data: Data,
    test: Dataset,
    *,
    batch_size: int = 500,
    layout: Layout | None = None,
    task: Task = CLASSIFICATION,
) -> Predictions:
    """Computes the outputs of a network for the forget, the retain and the test set; the arguments are `measure_row`'s.

    Returns:
      The outputs and the examples by the name of the set.
    """
    parts = {"forget": data.forget, "retain": data.retain, "test": test}
    return {
        name: SetPredictions(
            accuracies.predict(model, params, model_state, task.inputs(part), batch_size=batch_size, layout=layout),
            part,
        )
        for name, part in parts.items()
    }


def accuracy_numbers(found: Predictions, *, task: Task = CLASSIFICATION) -> dict[str, Any]:
    """Counts right answers: `acc_*` in percent, `correct_*` and `num_*` of each set.

    Args:
      found: What the network answers, as `predict_sets` returns it.
      task: What the network is for. Of another task than classification, all its metrics on each set are computed.
    """
    if task.labels is None:
        return _metric_numbers(found, task)
    pairs = {name: (part.outputs, answers.labels_of(task, part.examples)) for name, part in found.items()}
    row: dict[str, Any] = {f"acc_{name}": accuracies.accuracy(*pair) for name, pair in pairs.items()}
    for name, pair in pairs.items():
        row[f"correct_{name}"], row[f"num_{name}"] = accuracies.correct(*pair), len(pair[1])
    return row


def _metric_numbers(found: Predictions, task: Task) -> dict[str, Any]:
    """The metrics of a task on each set, in the order of the metrics, and what the first rests on."""
    row: dict[str, Any] = {}
    for metric in task.metrics:
        for name, part in found.items():
            measured = answers.metric_value(task, metric, *part)
            row[f"{metric.name}_{name}"] = measured.value
            if metric is task.metrics[0]:
                row[f"{metric.name}_{name}_error"] = measured.error
    counts = {f"num_{name}": data_lib.size(part.examples) for name, part in found.items()}
    return {**row, **counts, "task": task.document()}


def attack_numbers(found: Predictions, *, seed: int, every_attack: bool, task: Task = CLASSIFICATION) -> dict[str, Any]:
    """Runs the membership attacks of `measure_row` on what a network answers.

    Args:
      found: What the network answers, as `predict_sets` or `attacked_examples` returns it.
      seed: The seed of the attack's subsample.
      every_attack: Whether to run all of them, or the paper's alone.
      task: What the network is for.

    Returns:
      `mia`, and the other attacks by their names in `measure_row`, in percent.
    """
    sets = [found[name] for name in ("retain", "test", "forget")]
    if task.labels is None:
        losses = [answers.example_losses(task, *part) for part in sets]
        row = {"mia": attacks.loss_mia(*losses, seed=seed)}
        return row | {"mia_loss": attacks.loss_mia(*losses, seed=seed, attack="logistic")} if every_attack else row
    pairs = [(part.outputs, answers.labels_of(task, part.examples)) for part in sets]
    attack = functools.partial(attacks.paper_mia, *(array for pair in pairs for array in pair), seed=seed)
    row = {"mia": attack()}
    if every_attack:
        for feature in ("correctness", "entropy", "modified_entropy", "probabilities"):
            row[f"mia_{feature}"] = attack(feature=feature)
        row["mia_loss"] = attack(feature="loss", attack="logistic")
    return row


def attacked_examples(found: Predictions, *, seed: int, task: Task = CLASSIFICATION) -> Predictions:
    """Keeps what the attacks on a classifier look at, for which `attack_numbers` has the same result.

    Args:
      found: What the network answers, as `predict_sets` returns it.
      seed: The seed of the attack's subsample.
      task: What the network is for, which is a task with `labels`.

    Returns:
      The logits of the examples, and of the examples their classes alone, as `label`.
    """
    assert task.labels is not None
    labels = {name: answers.labels_of(task, part.examples) for name, part in found.items()}
    members, nonmembers = attacks.fitted_positions(len(labels["retain"]), len(labels["test"]), seed=seed)
    kept = {"forget": np.arange(len(labels["forget"])), "retain": members, "test": nonmembers}
    return {
        name: SetPredictions(part.outputs[kept[name]], {"label": labels[name][kept[name]]})
        for name, part in found.items()
    }
