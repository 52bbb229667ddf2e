"""Gradient ascent on the forget set (Thudi et al., EuroS&P 2022): unlearning by getting worse."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import optax

from scissorhands_jax.base import Method, Model, StatefulLossFn
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import descend, forget_batches
from scissorhands_jax.methods.settings import Gradient, TrainingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientAscentOptions:
    """The keyword arguments of `gradient_ascent`."""

    batch_size: int = 256
    """The number of forget examples that a step sees."""


@takes(GradientAscentOptions)
def gradient_ascent(
    loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: GradientAscentOptions
) -> Method:
    """Minimises `-L_f`, the negative of the mean forget loss, from the original weights.

    No retained example is read. Nothing bounds the loss, so too many steps or too large a learning rate destroy the
    network. The authors' setting for CIFAR-10 is 5 epochs of `sgd(1e-4)` with batches of 256.

    Args:
      loss_fn: The general form of the loss, a mean over a batch.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: The batch size is below 1.
    """

    def objective(params, carry, batch, key):
        loss, model_state = loss_fn(params, carry.model_state, batch.forget, train=True, key=key)
        return jnp.negative(loss), (model_state, {"loss_forget": loss})

    return descend(objective, optimizer, batches=forget_batches(options.batch_size), reads=("forget",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientAscentSettings(GradientAscentOptions, TrainingSettings):
    """The authors' settings for CIFAR-10."""

    epochs: int = 5
    learning_rate: float = 1e-4
    gradients: ClassVar[tuple[Gradient, ...]] = ("forget",)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model, num_classes
        method = gradient_ascent(self.microbatched(loss_fn), self.optimizer(), **self.values(GradientAscentOptions))
        return self.scheduled(method)
