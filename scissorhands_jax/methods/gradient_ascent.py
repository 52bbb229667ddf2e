"""Gradient ascent on the forget set (Thudi et al., 2022): unlearn by getting worse."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import optax

from scissorhands_jax.base import Method, Model, StatefulLossFn
from scissorhands_jax.methods._gradient import descend, forget_batches
from scissorhands_jax.methods.settings import Gradient, TrainingSettings


def gradient_ascent(
    loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, *, batch_size: int = 256
) -> Method:
    """Minimises minus the mean forget loss, `-L_f`, from the original weights; reads no retained example.

    Unbounded: too many steps or too large a rate destroy the network. The authors' setting for CIFAR-10: 5 epochs,
    `sgd(1e-4)`, batch 256.
    """

    def objective(params, carry, batch, key):
        loss, model_state = loss_fn(params, carry.model_state, batch.forget, train=True, key=key)
        return jnp.negative(loss), (model_state, {"loss_forget": loss})

    return descend(objective, optimizer, batches=forget_batches(batch_size), reads=("forget",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientAscentSettings(TrainingSettings):
    """The authors' CIFAR-10 settings."""

    epochs: int = 5
    batch_size: int = 256
    learning_rate: float = 1e-4
    gradients: ClassVar[tuple[Gradient, ...]] = ("forget",)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        del model, num_classes
        return self.scheduled(gradient_ascent(self.microbatched(loss_fn), self.optimizer(), batch_size=self.batch_size))
