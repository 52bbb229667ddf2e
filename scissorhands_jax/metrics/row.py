"""The row of a network in a table: the paper's four numbers."""

from __future__ import annotations

import functools
from typing import Any

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
    parts = {"forget": data.forget, "retain": data.retain, "test": test}
    labels = {name: np.asarray(part["label"]) for name, part in parts.items()}
    logits = {
        name: accuracies.predict(model, params, model_state, part["image"], batch_size=batch_size, layout=layout)
        for name, part in parts.items()
    }
    row: dict[str, Any] = {f"acc_{name}": accuracies.accuracy(logits[name], labels[name]) for name in parts}
    pairs = [(logits[name], labels[name]) for name in ("retain", "test", "forget")]
    attack = functools.partial(attacks.paper_mia, *(array for pair in pairs for array in pair), seed=seed)
    row["mia"] = attack()
    if every_attack:
        for feature in ("correctness", "entropy", "modified_entropy", "probabilities"):
            row[f"mia_{feature}"] = attack(feature=feature)
        row["mia_loss"] = attack(feature="loss", attack="logistic")
    for name in parts:
        row[f"correct_{name}"] = accuracies.correct(logits[name], labels[name])
        row[f"num_{name}"] = len(labels[name])
    return row
