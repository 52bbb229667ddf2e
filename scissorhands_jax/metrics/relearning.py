"""Relearning: how quickly a network learns the forget set again, and what it recovers from the retain set alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax

from scissorhands_jax.base import Carry, Data, Dataset, Key, Method, Model, ModelState, Params
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import answers
from scissorhands_jax.tasks import CLASSIFICATION, Task
from scissorhands_jax.training.loop import run


class Relearning(NamedTuple):
    """The course of fine-tuning on the forget set."""

    epochs: int | None  # the number of epochs until the target was reached; None if it was not reached
    curve: list[
        float
    ]  # the accuracy on the forget set in percent (or its task's first metric), before the first epoch and after each


def relearn_time(
    model: Model,
    method: Method,
    key: Key,
    params: Params,
    model_state: ModelState,
    forget: Dataset,
    *,
    target: float,
    max_epochs: int,
    task: Task = CLASSIFICATION,
) -> Relearning:
    """Counts the epochs of training on the forget set that restore the accuracy on it (paper, section 4, metric v).

    A network that only hides what it knew needs a step or two. Compare with the number of the retrained network. The
    paper does not say which examples it fine-tunes on; here it is the forget set alone.

    Args:
      model: The network.
      method: A method that reads only retain examples, such as `finetune`. The forget set takes their place.
      key: The typed PRNG key of shuffles and augmentation.
      params: The parameters of the unlearned network.
      model_state: The state of the unlearned network.
      forget: The forget set, such as `{"image", "label"}`.
      target: The accuracy to reach, in percent; usually that of the original network on the forget set.
      max_epochs: The largest number of epochs, at least 1.
      task: What the network is for. Of another task than classification, its first metric is in place of the accuracy.

    Raises:
      InputError: `max_epochs` is below 1.
    """
    if max_epochs < 1:
        raise InputError(f"relearning needs at least 1 epoch, got {max_epochs}")
    measured = _qualities(task, model, method, key, params, model_state, forget, forget)
    curve = [next(measured)]

    def reached() -> bool:
        return curve[-1] >= target if task.metrics[0].better == "higher" else curve[-1] <= target

    while not reached() and len(curve) <= max_epochs:
        curve.append(next(measured))
    return Relearning(len(curve) - 1 if reached() else None, curve)


def recovery(
    model: Model,
    method: Method,
    key: Key,
    params: Params,
    model_state: ModelState,
    data: Data,
    *,
    num_epochs: int,
    task: Task = CLASSIFICATION,
) -> list[float]:
    """Measures the accuracy on the forget set while the network is trained on the retain set alone.

    Whatever comes back without having been seen was hidden, not forgotten. Compare with the retrained network, whose
    accuracy on the forget set is that on unseen examples and does not rise.

    Args:
      model: The network.
      method: A method that reads only retain examples, such as `finetune`.
      key: The typed PRNG key of shuffles and augmentation.
      params: The parameters of the unlearned network.
      model_state: The state of the unlearned network.
      data: The retain set, which the network is trained on, and the forget set, which it never sees.
      num_epochs: The number of epochs of training, at least 1.
      task: What the network is for. Of another task than classification, its first metric is in place of the accuracy.

    Returns:
      The accuracy in percent before the first epoch and after each.

    Raises:
      InputError: `num_epochs` is below 1.

    References:
      Siddiqui et al., From dormant to deleted: tamper-resistant unlearning through weight-space regularization, 2025
      (arXiv 2505.22310), section 3.
    """
    if num_epochs < 1:
        raise InputError(f"recovery needs at least 1 epoch, got {num_epochs}")
    measured = _qualities(task, model, method, key, params, model_state, data.retain, data.forget)
    return [next(measured) for _ in range(num_epochs + 1)]


def _qualities(
    task: Task,
    model: Model,
    method: Method,
    key: Key,
    params: Params,
    model_state: ModelState,
    trained_on: Dataset,
    forget: Dataset,
) -> Iterator[float]:
    """Yields the quality on the forget set, first as it is and then after each epoch of training."""
    # Each run is one epoch, because the quality may decide whether there is another. It starts where the last ended.
    part = method._replace(finish=_whole_carry)
    for epoch in itertools.count(1):
        yield answers.quality(task, answers.outputs_of(task, model, params, model_state, forget), forget)
        epoch_key = jax.random.fold_in(key, epoch)
        carry = run(part, epoch_key, params, model_state, Data(None, trained_on), num_epochs=1).params
        params, model_state = carry.params, carry.model_state
        part = part._replace(init=functools.partial(_start_at, carry))


def _whole_carry(carry: Carry) -> tuple[Carry, tuple[()]]:
    return carry, ()


def _start_at(carry: Carry, key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
    del key, params, model_state, data
    return carry
