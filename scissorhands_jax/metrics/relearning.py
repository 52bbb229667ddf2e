"""Whether a network learns again what it was made to forget: how fast from it, and at all without it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax

from scissorhands_jax.base import Data, Dataset, Key, Method, Model, ModelState, Params
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import accuracies
from scissorhands_jax.training.loop import run


class Relearning(NamedTuple):
    """The course of fine-tuning on the forget set."""

    epochs: int | None  # until the target was reached; None where it was not within the cap
    curve: list[float]  # accuracy on the forget set in percent, before the first epoch and after each


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
) -> Relearning:
    """Epochs of training on the forget set until the accuracy on it is back (the paper's section 4, metric v).

    A network that only hides what it knew is back after a step or two; compare with the retrained network's number.
    The paper does not say on what is fine-tuned; here it is the forget set alone.

    Args:
      model: its logits decide.
      method: reads retain examples only, such as `finetune`; it is given the forget set as those.
      key: of the shuffles and the augmentation.
      params, model_state: the unlearned network.
      forget: `{"image", "label"}`.
      target: the original's accuracy on the forget set, in percent.
      max_epochs: the cap.

    Raises:
      InputError: `max_epochs` is below 1.
    """
    if max_epochs < 1:
        raise InputError(f"relearning needs at least 1 epoch, got {max_epochs}")

    accuracies = _accuracies(model, method, key, params, model_state, forget, forget)
    curve = [next(accuracies)]
    while curve[-1] < target and len(curve) <= max_epochs:
        curve.append(next(accuracies))
    return Relearning(len(curve) - 1 if curve[-1] >= target else None, curve)


def recovery(
    model: Model,
    method: Method,
    key: Key,
    params: Params,
    model_state: ModelState,
    data: Data,
    *,
    num_epochs: int,
) -> list[float]:
    """The accuracy on the forget set while the network is trained on the retain set alone.

    What comes back without having been seen was hidden, not forgotten. Compare with the retrained network, whose
    accuracy there is that of a stranger and stays so.

    Args:
      model, method, key, params, model_state: as in `relearn_time`.
      data: the forget set is looked at only.
      num_epochs: of training on the retain set, at least 1.

    Returns:
      In percent, before the first epoch and after each.

    Raises:
      InputError: `num_epochs` is below 1.

    References:
      Siddiqui et al., From dormant to deleted: tamper-resistant unlearning through weight-space regularization, 2025
      (arXiv 2505.22310), section 3.
    """
    if num_epochs < 1:
        raise InputError(f"recovery needs at least 1 epoch, got {num_epochs}")
    accuracies = _accuracies(model, method, key, params, model_state, data.retain, data.forget)
    return [next(accuracies) for _ in range(num_epochs + 1)]


def _accuracies(
    model: Model,
    method: Method,
    key: Key,
    params: Params,
    model_state: ModelState,
    trained_on: Dataset,
    forget: Dataset,
) -> Iterator[float]:
    """The accuracy on the forget set in percent, at first and after every further epoch."""
    carry = None
    for epoch in itertools.count(1):
        logits = accuracies.predict(model, params, model_state, forget["image"], batch_size=500)
        yield accuracies.accuracy(logits, forget["label"])
        # One epoch at a time, because the accuracy may decide whether there is another; the carry goes on.
        part = method._replace(finish=lambda carry: (carry, ()))
        if carry is not None:
            part = part._replace(init=lambda key, params, model_state, data, carry=carry: carry)
        epoch_key = jax.random.fold_in(key, epoch)
        carry = run(part, epoch_key, params, model_state, Data(None, trained_on), num_epochs=1).params
        params, model_state = carry.params, carry.model_state
