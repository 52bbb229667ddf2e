"""Retraining from scratch without the forget set: the gold standard, and how original networks are trained here."""

from __future__ import annotations

import dataclasses

import optax

from scissorhands_jax.base import Method, Model, StatefulLossFn
from scissorhands_jax.methods._gradient import descend, retain_batches, retain_loss
from scissorhands_jax.methods.settings import TrainingSettings


def retrain(
    model: Model, loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, *, batch_size: int = 256
) -> Method:
    """Draws a fresh network and minimises the mean retain loss; reads nothing of the given one.

    The authors' setting for CIFAR-10: 160 epochs, `sgd(0.1)` dropped tenfold at epochs 91 and 136, batch 256.
    """
    return descend(
        retain_loss(loss_fn),
        optimizer,
        batches=retain_batches(batch_size),
        reads=("retain",),
        start=lambda key, params, model_state: model.init(key),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainSettings(TrainingSettings):
    """The authors' CIFAR-10 settings."""

    epochs: int = 160
    batch_size: int = 256
    learning_rate: float = 0.1
    milestones: tuple[int, ...] = (91, 136)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        del num_classes
        return self.scheduled(retrain(model, self.microbatched(loss_fn), self.optimizer(), batch_size=self.batch_size))
