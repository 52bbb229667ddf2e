"""Fine-tuning with a fading l1 penalty (Jia et al., NeurIPS 2023): sparser networks forget more."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax.base import Carry, Data, Method, Model, StatefulLossFn
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods._gradient import descend, retain_batches
from scissorhands_jax.methods.settings import Gradient, TrainingSettings


def l1_sparse(
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    *,
    penalty: float,
    num_epochs: int,
    unpenalized_epochs: int = 0,
    batch_size: int = 256,
) -> Method:
    """Minimises `L_r + alpha_e * sum |w|` over all parameters, from the original weights.

    In epoch e of E the weight is `alpha_e = penalty * (1 - e / (E - E0))` while `e < E - E0`, then 0, with E0 the
    number of unpenalised epochs. The authors' setting for CIFAR-10: penalty 1e-4, 10 epochs, `sgd(0.01)`, batch 256.

    Args:
      penalty: alpha, the weight in the first epoch, at least 0.
      num_epochs: E, as handed to `run`.
      unpenalized_epochs: E0, below E.

    Raises:
      InputError: a setting is out of its range.
    """
    if penalty < 0:
        raise InputError(f"penalty must not be negative, got {penalty}")
    penalized = num_epochs - unpenalized_epochs
    if unpenalized_epochs < 0 or penalized < 1:
        raise InputError(f"unpenalized_epochs must be 0 to {num_epochs - 1}, got {unpenalized_epochs}")

    def objective(params, carry, batch, key):
        epoch = carry.aux
        weight = penalty * jnp.maximum(0.0, 1 - epoch / penalized)
        loss, model_state = loss_fn(params, carry.model_state, batch.retain, train=True, key=key)
        magnitude = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(params))
        metrics = {"loss_retain": loss, "penalty": weight * magnitude}
        return loss + weight * magnitude, (model_state, metrics)

    def begin_epoch(carry: Carry, data: Data) -> Carry:
        del data
        return carry._replace(aux=carry.aux + 1)

    return descend(
        objective,
        optimizer,
        batches=retain_batches(batch_size),
        reads=("retain",),
        aux=lambda key, params, model_state, data: jnp.full((), -1, jnp.int32),
        begin_epoch=begin_epoch,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1SparseSettings(TrainingSettings):
    """The authors' CIFAR-10 settings."""

    batch_size: int = 256
    learning_rate: float = 1e-2
    penalty: float = 1e-4
    unpenalized_epochs: int = 0
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        del model, num_classes
        return self.scheduled(
            l1_sparse(
                self.microbatched(loss_fn),
                self.optimizer(),
                penalty=self.penalty,
                num_epochs=self.epochs,
                unpenalized_epochs=self.unpenalized_epochs,
                batch_size=self.batch_size,
            )
        )
