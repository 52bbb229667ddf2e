"""NegGrad+ (Kurmanji et al., NeurIPS 2023): descend on the retain loss while ascending on the forget loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import optax

from scissorhands_jax.base import Method, Model, StatefulLossFn
from scissorhands_jax.errors import check_not_negative
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import PairedOptions, descend, paired_batches, split_key
from scissorhands_jax.methods.settings import Choices, Range, TrainingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegGradPlusOptions(PairedOptions):
    """The keyword arguments of `neggrad_plus`."""

    forget_weight: float = 0.05
    """The weight of the forget loss, at least 0."""


@takes(NegGradPlusOptions)
def neggrad_plus(
    loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: NegGradPlusOptions
) -> Method:
    """Minimises `L_r - forget_weight * L_f` from the original weights, one batch of each set per step.

    The repair of Scissorhands is this with the gradient projected. The original states the loss as
    `beta L_r - (1 - beta) L_f`, which is the same up to the learning rate.

    Args:
      loss_fn: The general form of the loss, a mean over a batch.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range.
    """
    check_not_negative("forget_weight", options.forget_weight)

    def objective(params, carry, batch, key):
        retain_key, forget_key = split_key(key)
        retain, model_state = loss_fn(params, carry.model_state, batch.retain, train=True, key=retain_key)
        # The state that the forget pass leaves is dropped, as in `pair_gradients`: it would hold forget examples.
        forget, _ = loss_fn(params, carry.model_state, batch.forget, train=True, key=forget_key)
        value = retain - options.forget_weight * forget
        return value, (model_state, {"loss_retain": retain, "loss_forget": forget})

    return descend(objective, optimizer, batches=paired_batches(options), reads=("forget", "retain"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegGradPlusSettings(NegGradPlusOptions, TrainingSettings):
    """Settings of ours, since the weight of the original depends on the data set."""

    learning_rate: float = 1e-2
    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {
        "forget_weight": (0.005, 1.0),
        **TrainingSettings.search_ranges,
    }

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model, num_classes
        method = neggrad_plus(self.microbatched(loss_fn), self.optimizer(), **self.values(NegGradPlusOptions))
        return self.scheduled(method)
