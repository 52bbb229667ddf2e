"""NegGrad+ (Kurmanji et al., NeurIPS 2023): descend on the retain loss while ascending on the forget loss."""

from __future__ import annotations

import dataclasses

import optax

from scissorhands_jax.base import Method, Model, StatefulLossFn
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods._gradient import descend, paired_batches, split_key
from scissorhands_jax.methods.settings import TrainingSettings


def neggrad_plus(
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    *,
    forget_weight: float = 0.05,
    batch_size: int = 256,
    forget_batch_size: int | None = None,
) -> Method:
    """Minimises `L_r - forget_weight * L_f`, one retain and one forget batch per step, from the original weights.

    Scissorhands' repair is this with the gradient projected; the original states it as
    `beta L_r - (1 - beta) L_f`, which is the same up to the learning rate.

    Raises:
      InputError: `forget_weight` is negative.
    """
    if forget_weight < 0:
        raise InputError(f"forget_weight must not be negative, got {forget_weight}")

    def objective(params, carry, batch, key):
        retain_key, forget_key = split_key(key)
        retain, model_state = loss_fn(params, carry.model_state, batch.retain, train=True, key=retain_key)
        forget, model_state = loss_fn(params, model_state, batch.forget, train=True, key=forget_key)
        return retain - forget_weight * forget, (model_state, {"loss_retain": retain, "loss_forget": forget})

    return descend(
        objective, optimizer, batches=paired_batches(batch_size, forget_batch_size), reads=("forget", "retain")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegGradPlusSettings(TrainingSettings):
    """Ours: the original's weight depends on the data set."""

    batch_size: int = 256
    learning_rate: float = 1e-2
    forget_weight: float = 0.05
    forget_batch_size: int | None = None

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        del model, num_classes
        return self.scheduled(
            neggrad_plus(
                self.microbatched(loss_fn),
                self.optimizer(),
                forget_weight=self.forget_weight,
                batch_size=self.batch_size,
                forget_batch_size=self.forget_batch_size,
            )
        )
