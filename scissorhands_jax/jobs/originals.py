"""Whether an original is worth unlearning: it answers its training set, and knows the forget set.

Both questions are answered by a test whose error is stated, and `tests/jobs/originals_test.py` simulates it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from scissorhands_jax.base import Dataset, Model, ModelState, Params
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.jobs.logits_check import SUSPECTS
from scissorhands_jax.metrics import accuracies, answers
from scissorhands_jax.metrics.intervals import share_estimate
from scissorhands_jax.metrics.row import SetPredictions, accuracy_numbers
from scissorhands_jax.report import table_gates
from scissorhands_jax.tasks import Task
from scissorhands_jax.training.sharding import Layout

NEAR_CHANCE = 0.2
"""A network is near chance below this share of the way from guessing to all right."""
KNOWN_AUC = 0.55
"""A forget set is known if a forget example is surer than an unseen one of its class in this share of pairs. The
published ResNet-20 for CIFAR-10, which gets 99.8 % of its training set and 91.7 % of the test set right, has 0.545:
such a network is taken because the test says that it is above one half."""

_LEVEL = 0.998  # of a two-sided interval, of which the upper limit is too low in one case of a thousand
_ONE_SIDED = 0.95  # of the test of whether forget examples are known better at all
_GATE_LEVEL = 0.99  # of the range in `table_gates.held_out_numbers`


def doubts(
    task: Task, forget: str, numbers: Mapping[str, Any], compared: Mapping[str, float], retain: Dataset
) -> list[str]:
    """Returns the reasons why an original is not worth unlearning, as beginnings of sentences; none if it is.

    Args:
      task: What the network is for.
      forget: The specification of the forget set.
      numbers: The numbers of the original, as `metrics.row.measure_row` returns them.
      compared: What `compare_with_unseen` returns.
      retain: The retain set.
    """
    if task.labels is None:
        found = (
            near_constant(task, numbers, "retain", retain, "retained examples"),
            nothing_to_forget(forget, numbers, compared, 0),
        )
    else:
        labels = np.asarray(task.labels(retain))
        found = (
            near_chance(numbers["correct_retain"], labels, "retained examples"),
            nothing_to_forget(forget, numbers, compared, len(np.unique(labels))),
        )
    return [doubt for doubt in found if doubt is not None]


def near_chance_of(task: Task, found: SetPredictions, what: str) -> str | None:
    """Says that a network is near chance on examples that it should know, if it is: `near_chance` or `near_constant`.

    Args:
      task: What the network is for.
      found: What it answers to the examples.
      what: What the examples are called.
    """
    if task.labels is not None:
        labels = np.asarray(task.labels(found.examples))
        return near_chance(accuracies.correct(found.outputs, labels), labels, what)
    if task.name not in ("regression", "multi-label"):
        return None
    return near_constant(task, accuracy_numbers({"known": found}, task=task), "known", found.examples, what)


def near_constant(task: Task, numbers: Mapping[str, Any], part: str, examples: Dataset, what: str) -> str | None:
    """Says that a regression predicts examples that it should know hardly better than one answer to all, if so.

    A regression does if the share of the variance that it explains, 1 - RMSE^2 in units of the targets' standard
    deviation, is below a fifth. A network with several labels does if it is less than a fifth of the way from the share
    of labels that the more frequent value of each gets right to all right. Limits are those of intervals from the
    standard error of the metric, which are wrong in about one case of a thousand. Of other tasks without classes chance
    is not known, and nothing is said.

    Args:
      task: What the network is for.
      numbers: Its numbers, as `metrics.row.accuracy_numbers` returns them.
      part: The name of the set in them.
      examples: The set.
      what: What the examples are called.

    Returns:
      The beginning of a sentence, or None.
    """
    reach = stats.norm.ppf((1 + _LEVEL) / 2)
    if task.name == "multi-label":
        right, shares = numbers[f"labels_{part}"], np.asarray(examples["label"], np.float64).mean(axis=0)
        guessing = 100 * float(np.mean(np.maximum(shares, 1 - shares)))
        if right + reach * numbers[f"labels_{part}_error"] >= guessing + NEAR_CHANCE * (100 - guessing):
            return None
        return (
            f"the original gets {right:.1f} % of the labels of the {numbers[f'num_{part}']} {what} right, and guessing "
            f"gets {guessing:.1f} %, so it was probably read otherwise than it was trained ({SUSPECTS}); compare its "
            "answers with --check FILE"
        )
    if task.name != "regression":
        return None
    error, total = numbers[f"rmse_{part}"], numbers[f"num_{part}"]
    lowest = max(0.0, error - reach * numbers[f"rmse_{part}_error"])
    if 1 - (lowest / 100) ** 2 >= NEAR_CHANCE:
        return None
    return (
        f"the original has an RMSE of {error:.1f} % of the targets' standard deviation on the {total} {what}, and "
        "their mean alone would have 100 %, so it was probably read otherwise than it was trained (features or targets "
        "that were scaled, their order, another file); compare its answers with --check FILE"
    )


def near_chance(correct: int, labels: np.ndarray, what: str) -> str | None:
    """Says that a network is near chance on examples that it should know, if it is.

    It is if its accuracy is below a fifth of the way from the share of the most frequent class, which guessing gets
    right, to 1: by the upper limit of Clopper and Pearson's interval, so that a network that is above it is taken for
    one below it in at most one case of a thousand.

    Args:
      correct: How many of the examples it gets right.
      labels: Their labels. shape=(N,)
      what: What the examples are called.

    Returns:
      The beginning of a sentence, or None.
    """
    total = len(labels)
    guessing = np.bincount(labels).max() / total if total else 1.0
    if not total or share_estimate(correct, total, level=_LEVEL).high >= guessing + NEAR_CHANCE * (1 - guessing):
        return None
    return (
        f"the original gets {100 * correct / total:.1f} % of the {total} {what} right, and guessing gets "
        f"{100 * guessing:.1f} %, so it was probably read otherwise than it was trained ({SUSPECTS}); compare its "
        "answers with --check FILE"
    )


def nothing_to_forget(
    forget: str, numbers: Mapping[str, Any], compared: Mapping[str, float], classes: int
) -> str | None:
    """Says that the original does not know the forget set, if it does not.

    A whole class is not known if it is answered less often than by guessing. Other examples are not known if two things
    hold of the chance that one of them is surer than an unseen example of its class (`held_out_auc`): it is not above
    1/2 by a test that finds a difference by chance in one case of twenty; and it is below 0.55 with an error of one in
    a thousand, so that a forget set that is known that well is taken for an unknown one in at most one case of a
    thousand. A set that is too small to tell is taken for a known one. So are examples with wrong labels, which unseen
    examples have no counterpart of, and every set with an example of a class that no unseen example has.

    Args:
      forget: The specification of the forget set.
      numbers: The numbers of the original, with `correct_forget` and `num_forget`.
      compared: What `compare_with_unseen` returns.
      classes: The number of classes, of a classifier.

    Returns:
      The beginning of a sentence, or None.
    """
    total = numbers["num_forget"]
    if forget_sets.forgets_classes(forget):
        if share_estimate(numbers["correct_forget"], total, level=_LEVEL).high >= 1 / classes:
            return None
        return (
            f"the original gets {numbers['correct_forget']} of the {total} examples to forget right, fewer than by "
            "guessing, so there is nothing to forget"
        )
    if not compared or compared["held_out_uncompared"]:
        return None
    auc, reach = compared["held_out_auc"], compared["held_out_high"] - 0.5
    error = reach / stats.norm.ppf((1 + _GATE_LEVEL) / 2)
    highest = auc + stats.norm.ppf((1 + _LEVEL) / 2) * error
    if auc > 0.5 + stats.norm.ppf(_ONE_SIDED) * error or highest >= KNOWN_AUC:
        return None
    return (
        f"the original does not know the {total} examples to forget better than unseen ones (it is "
        f"surer of one of them in {100 * auc:.1f} % of pairs, at most {100 * highest:.1f} %), so there is nothing to "
        "forget, or these are not examples that it was trained on, or their labels are wrong (write mislabelled:FILE)"
    )


def compare_with_unseen(
    task: Task,
    model: Model,
    network: tuple[Params, ModelState],
    forget: str,
    examples: Dataset,
    test: Dataset,
    layout: Layout | None = None,
) -> dict[str, float]:
    """How a network treats the forget set and test examples, of a classifier those of its classes.

    Wrong labels have no counterpart in the test set, so there is nothing to compare them with.

    Args:
      task: What the network is for.
      model: The model.
      network: Its parameters and its state.
      forget: The specification of the forget set.
      examples: The forget set.
      test: The test set, with all classes.
      layout: How the work is divided over devices. By default it is not.
    """
    if forget.startswith("mislabelled"):
        return {}
    return unseen_comparison(task, model, network, examples, test, layout)


def unseen_comparison(
    task: Task,
    model: Model,
    network: tuple[Params, ModelState],
    examples: Dataset,
    test: Dataset,
    layout: Layout | None = None,
) -> dict[str, float]:
    """Compares a forget set with test examples, of a classifier with those of its classes, in one network.

    Args:
      task, model, network, examples, test, layout: As for `compare_with_unseen`.

    Returns:
      The numbers of `table_gates.held_out_ranks`.
    """
    shown: list[np.ndarray] = []
    for part in (examples, test):
        outputs = accuracies.predict(model, *network, task.inputs(part), batch_size=500, layout=layout)
        shown += [answers.certainties(task, outputs, part), answers.example_groups(task, part)]
    return table_gates.held_out_ranks(*shown)
