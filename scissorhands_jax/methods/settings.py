"""What every configured method has: the settings of its training, and how it is built from them."""

from __future__ import annotations

import dataclasses

import optax

from scissorhands_jax import optimizers
from scissorhands_jax.base import Method, Model, StatefulLossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of SGD over epochs; each method's own class adds its own, with the authors' values as defaults."""

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 5e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def optimizer(self) -> optax.GradientTransformation:
        """SGD with these settings."""
        return optimizers.sgd(self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        raise TypeError(f"{type(self).__name__} does not say how its method is built")
