"""How fast a network learns again what it was made to forget."""

from __future__ import annotations

from typing import NamedTuple

import jax

from scissorhands_jax import metrics
from scissorhands_jax.base import Data, Dataset, Key, Method, Model, ModelState, Params
from scissorhands_jax.errors import InputError
from scissorhands_jax.training import run


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

    def accuracy(params, model_state):
        logits = metrics.predict(model, params, model_state, forget["image"], batch_size=500)
        return metrics.accuracy(logits, forget["label"])

    curve = [accuracy(params, model_state)]
    carry = None
    while curve[-1] < target and len(curve) <= max_epochs:
        # One epoch at a time, because the accuracy decides whether there is another; the carry goes on.
        part = method._replace(finish=lambda carry: (carry, ()))
        if carry is not None:
            part = part._replace(init=lambda key, params, model_state, data, carry=carry: carry)
        epoch_key = jax.random.fold_in(key, len(curve))
        carry = run(part, epoch_key, params, model_state, Data(None, forget), num_epochs=1).params
        curve.append(accuracy(carry.params, carry.model_state))
    return Relearning(len(curve) - 1 if curve[-1] >= target else None, curve)
