"""Fine-tuning with a fading l1 penalty (Jia et al., NeurIPS 2023): sparser networks forget more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax.base import Carry, Data, Method, Model, StatefulLossFn
from scissorhands_jax.errors import InputError, check_not_negative
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import descend, retain_batches
from scissorhands_jax.methods.settings import Choices, Gradient, Range, TrainingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1SparseOptions:
    """The keyword arguments of `l1_sparse` that are settings as well."""

    penalty: float
    """alpha, the weight of the penalty in the first epoch, at least 0."""
    unpenalized_epochs: int = 0
    """E0, the number of epochs at the end that have no penalty, below the number of all epochs."""
    batch_size: int = 256
    """The number of retain examples that a step sees."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1SparseArguments(L1SparseOptions):
    """The keyword arguments of `l1_sparse`."""

    num_epochs: int
    """E, the number of epochs that `run` is called with."""


@takes(L1SparseArguments)
def l1_sparse(loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: L1SparseArguments) -> Method:
    """Minimises `L_r + alpha_e * sum |w|` over all parameters, from the original weights.

    In epoch e of E the weight is `alpha_e = penalty * (1 - e / (E - E0))` while `e < E - E0`, and then 0. The authors'
    setting for CIFAR-10 is a penalty of 1e-4 and 10 epochs of `sgd(0.01)` with batches of 256.

    Args:
      loss_fn: The general form of the loss, a mean over a batch.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range.
    """
    check_not_negative("penalty", options.penalty)
    num_epochs = max(options.num_epochs, 1)  # of no epoch, nothing is computed
    penalized = num_epochs - options.unpenalized_epochs
    if options.unpenalized_epochs < 0 or penalized < 1:
        raise InputError(f"unpenalized_epochs must be 0 to {num_epochs - 1}, got {options.unpenalized_epochs}")

    def objective(params, carry, batch, key):
        epoch = carry.aux
        weight = options.penalty * jnp.maximum(0.0, 1 - epoch / penalized)
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
        batches=retain_batches(options.batch_size),
        reads=("retain",),
        aux=lambda key, params, model_state, data: jnp.full((), -1, jnp.int32),
        begin_epoch=begin_epoch,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1SparseSettings(L1SparseOptions, TrainingSettings):
    """The authors' settings for CIFAR-10."""

    learning_rate: float = 1e-2
    penalty: float = 1e-4
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)
    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {
        "penalty": (1e-6, 1e-2),
        **TrainingSettings.search_ranges,
    }

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model, num_classes
        options = self.values(L1SparseOptions)
        return self.scheduled(
            l1_sparse(self.microbatched(loss_fn), self.optimizer(), num_epochs=self.epochs, **options)
        )
