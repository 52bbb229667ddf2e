"""The row of a network in a table: the paper's four numbers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from scissorhands_jax.base import Data, Dataset, Model, ModelState, Params
from scissorhands_jax.metrics import accuracies, attacks
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
) -> dict[str, Any]:
    """Measures the accuracies on the forget, retain and test set and the paper's membership inference, in percent.

    When a whole class is forgotten, leave it out of `test`, as the paper does.

    Args:
      model: The network to measure.
      params: The parameters of the network.
      model_state: BatchNorm statistics and the like, which are read and never changed.
      data: The forget and the retain set, each `{"image", "label"}`.
      test: Held-out examples `{"image", "label"}` of the classes that stay.
      seed: The seed of the attack's subsample.
      batch_size: How many images a forward pass takes.
      every_attack: Whether to run the SVC on the other four features, and the logistic regression on losses, as well.
      layout: How to divide the work over several devices; see `metrics.predict`. The default uses one device.

    Returns:
      `acc_forget, acc_retain, acc_test, mia` (0 to 100), and the counts `correct_*` and `num_*` behind the accuracies;
      with `every_attack` also `mia_correctness, mia_entropy, mia_modified_entropy, mia_probabilities` and `mia_loss`.
    """
    found = predict_sets(model, params, model_state, data, test, batch_size=batch_size, layout=layout)
    attacked = attack_numbers(found, seed=seed, every_attack=every_attack)
    accuracy = accuracy_numbers(found)
    first = {name: value for name, value in accuracy.items() if name.startswith("acc_")}
    return {**first, **attacked, **accuracy}


class SetPredictions(NamedTuple):
    """What a network answers for a set of examples."""

    logits: np.ndarray  # shape=(N, C), dtype=float32
    labels: np.ndarray  # shape=(N,), integers


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
) -> Predictions:
    """Computes the logits of a network for the forget, the retain and the test set; the arguments are `measure_row`'s.

    Returns:
      The logits and labels by the name of the set.
    """
    parts = {"forget": data.forget, "retain": data.retain, "test": test}
    return {
        name: SetPredictions(
            accuracies.predict(model, params, model_state, part["image"], batch_size=batch_size, layout=layout),
            np.asarray(part["label"]),
        )
        for name, part in parts.items()
    }


def accuracy_numbers(found: Predictions) -> dict[str, Any]:
    """Counts right answers: `acc_*` in percent, `correct_*` and `num_*` of each set.

    Args:
      found: What the network answers, as `predict_sets` returns it.
    """
    row: dict[str, Any] = {f"acc_{name}": accuracies.accuracy(*part) for name, part in found.items()}
    for name, part in found.items():
        row[f"correct_{name}"], row[f"num_{name}"] = accuracies.correct(*part), len(part.labels)
    return row


def attack_numbers(found: Predictions, *, seed: int, every_attack: bool) -> dict[str, Any]:
    """Runs the membership attacks of `measure_row` on what a network answers.

    Args:
      found: What the network answers, as `predict_sets` or `attacked_examples` returns it.
      seed: The seed of the attack's subsample.
      every_attack: Whether to run all of them, or the paper's alone.

    Returns:
      `mia`, and the other attacks by their names in `measure_row`, in percent.
    """
    pairs = [found[name] for name in ("retain", "test", "forget")]
    attack = functools.partial(attacks.paper_mia, *(array for pair in pairs for array in pair), seed=seed)
    row = {"mia": attack()}
    if every_attack:
        for feature in ("correctness", "entropy", "modified_entropy", "probabilities"):
            row[f"mia_{feature}"] = attack(feature=feature)
        row["mia_loss"] = attack(feature="loss", attack="logistic")
    return row


def attacked_examples(found: Predictions, *, seed: int) -> Predictions:
    """Keeps the examples that the attacks look at, for which `attack_numbers` has the same result.

    Args:
      found: What the network answers, as `predict_sets` returns it.
      seed: The seed of the attack's subsample.
    """
    members, nonmembers = attacks.fitted_positions(len(found["retain"].labels), len(found["test"].labels), seed=seed)
    everything = np.arange(len(found["forget"].labels))
    kept = {"forget": everything, "retain": members, "test": nonmembers}
    return {name: SetPredictions(*(array[kept[name]] for array in part)) for name, part in found.items()}
