"""Fine-tuning on the retain set: forgetting by not rehearsing (Warnecke et al., NDSS 2023, arXiv 2108.11577)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import optax

from scissorhands_jax.base import Method, Model, StatefulLossFn
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import descend, retain_batches, retain_loss
from scissorhands_jax.methods.settings import Gradient, TrainingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """The keyword arguments of `finetune`."""

    batch_size: int = 256
    """The number of retain examples that a step sees."""


@takes(FinetuneOptions)
def finetune(loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: FinetuneOptions) -> Method:
    """Minimises the mean retain loss from the original weights.

    The authors' setting for CIFAR-10 is 10 epochs of `sgd(0.01)` with batches of 256.

    Args:
      loss_fn: The general form of the loss, a mean over a batch.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: The batch size is below 1.
    """
    return descend(retain_loss(loss_fn), optimizer, batches=retain_batches(options.batch_size), reads=("retain",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings(FinetuneOptions, TrainingSettings):
    """The authors' settings for CIFAR-10."""

    learning_rate: float = 1e-2
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model, num_classes
        method = finetune(self.microbatched(loss_fn), self.optimizer(), **self.values(FinetuneOptions))
        return self.scheduled(method)
