"""Fine-tuning on the retain set: forgetting by not rehearsing (Warnecke et al., 2021)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import optax

from scissorhands_jax.base import Method, Model, StatefulLossFn
from scissorhands_jax.methods._gradient import descend, retain_batches, retain_loss
from scissorhands_jax.methods.settings import Gradient, TrainingSettings


def finetune(loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, *, batch_size: int = 256) -> Method:
    """Minimises the mean retain loss from the original weights.

    The authors' setting for CIFAR-10: 10 epochs, `sgd(0.01)`, batch 256.
    """
    return descend(retain_loss(loss_fn), optimizer, batches=retain_batches(batch_size), reads=("retain",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings(TrainingSettings):
    """The authors' CIFAR-10 settings."""

    batch_size: int = 256
    learning_rate: float = 1e-2
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        del model, num_classes
        return self.scheduled(finetune(self.microbatched(loss_fn), self.optimizer(), batch_size=self.batch_size))
