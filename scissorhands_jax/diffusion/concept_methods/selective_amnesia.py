"""Selective Amnesia (Heng and Soh, NeurIPS 2023): other images under the concept's prompt, weights held by Fisher."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses as losses_lib
from scissorhands_jax import trees
from scissorhands_jax.base import (
    Carry,
    Data,
    Key,
    Method,
    Model,
    ModelState,
    Params,
    PyTree,
    Scores,
    StatefulLossFn,
    new_carry,
)
from scissorhands_jax.diffusion import losses
from scissorhands_jax.diffusion.concept_methods.concept_training import BeginningPhase, ByteCount, ConceptTraining
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule
from scissorhands_jax.errors import InputError, check_not_negative
from scissorhands_jax.methods._gradient import PairedOptions, descend, paired_batches


def selective_amnesia(
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    *,
    penalty: float = 50.0,
    retain_weight: float = 1.0,
    fisher_batches: int = 100,
    batch_size: int = 4,
) -> Method:
    """Minimises `L_f + retain_weight L_r + penalty sum_i F_i (w_i - w*_i)^2`, where w* are the original's weights.

    The forget examples must be surrogates: images of something else, or of noise, with the prompt of the concept. L_f
    and L_r are the noise losses of these and of the retain set. F is the diagonal of the empirical Fisher information
    of the noise loss at w*, the mean over `fisher_batches` retain batches of the squared gradient, with a timestep
    drawn for each example. The published code sums the gradients of one image over all timesteps before it squares
    them; its F is larger by an unknown factor, so the penalty has to be chosen anew.

    Args:
      loss_fn: `losses.noise_loss`.
      optimizer: The optimizer.
      penalty: The weight of staying near the original, at least 0.
      retain_weight: The published code's gamma, the weight of the retain loss, at least 0.
      fisher_batches: The number of retain batches of the Fisher information, at least 1.
      batch_size: The number of examples of each set in a step.

    Raises:
      InputError: A setting is out of its range.

    References:
      Heng and Soh, Selective Amnesia: A Continual Learning Approach to Forgetting in Deep Generative Models, NeurIPS
      2023, arXiv 2305.10120, equation 8; its code `ddpm/runners/diffusion.py`.
    """
    check_not_negative("penalty", penalty)
    check_not_negative("retain_weight", retain_weight)
    if fisher_batches < 1:
        raise InputError(f"fisher_batches must be at least 1, got {fisher_batches}")

    def hold(key: Key, params: Params, model_state: ModelState, data: Data) -> tuple[Params, Scores]:
        order_key, noise_key = jax.random.split(key)
        positions = data_lib.cycled_batches(order_key, data_lib.size(data.retain), batch_size)
        examples = (data_lib.take(data.retain, next(positions)) for _ in range(fisher_batches))
        return trees.copy(params), noisy_fisher(loss_fn, params, model_state, examples, noise_key)

    def objective(params, carry, batch, key):
        forget_key, retain_key = jax.random.split(key)
        forget, _ = loss_fn(params, carry.model_state, batch.forget, train=True, key=forget_key)
        retain, model_state = loss_fn(params, carry.model_state, batch.retain, train=True, key=retain_key)
        original, fisher = carry.aux
        moved = jax.tree.map(lambda f, w, o: jnp.sum(f * jnp.square(w - o)), fisher, params, original)
        kept = penalty * sum(jax.tree.leaves(moved))
        metrics = {"loss_retain": retain, "loss_replaced": forget, "penalty": kept}
        return forget + retain_weight * retain + kept, (model_state, metrics)

    return descend(
        objective,
        optimizer,
        batches=paired_batches(PairedOptions(batch_size=batch_size)),
        reads=("forget", "retain"),
        aux=hold,
    )


def noisy_fisher(
    loss_fn: StatefulLossFn, params: Params, model_state: ModelState, batches: Iterable[PyTree], key: Key
) -> Scores:
    """The mean over batches of the squared gradient, each with timesteps and noise of its own. A pytree like `params`.

    Args:
      loss_fn: The loss, a mean over a batch.
      params: The parameters, with respect to which it is differentiated.
      model_state: The state of the network.
      batches: Batches of examples, at least one.
      key: Folded with the number of the batch, the key of its loss.
    """
    total, count = jax.tree.map(jnp.zeros_like, params), 0
    for count, batch in enumerate(batches, 1):
        total = _add_square(loss_fn, total, params, model_state, batch, jax.random.fold_in(key, count))
    return jax.tree.map(lambda leaf: leaf / count, total)


@functools.partial(jax.jit, static_argnames="loss_fn", donate_argnames="total")
def _add_square(
    loss_fn: StatefulLossFn, total: Scores, params: Params, model_state: ModelState, batch: PyTree, key: Key
) -> Scores:
    gradient = jax.grad(lambda p: loss_fn(p, model_state, batch, train=True, key=key)[0])(params)
    return jax.tree.map(lambda s, g: s + jnp.square(g), total, gradient)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectiveAmnesiaSettings(ConceptTraining):
    """Selective Amnesia with the rate, batch and penalty of its code for Stable Diffusion.

    The forget images must show what takes the concept's place, with the concept's prompts: give them as a folder.
    """

    batch_size: int = 4
    penalty: float = 50.0
    """The weight of staying near the original, at least 0."""
    retain_weight: float = 1.0
    """The weight of the retain loss, at least 0."""
    fisher_batches: int = 100
    """The number of retain batches of the Fisher information, at least 1."""

    unused: ClassVar[tuple[str, ...]] = ("pseudo",)

    def beginning(self, params: Params, size: ByteCount = trees.nbytes) -> dict[str, BeginningPhase]:
        """A copy of the original and the sum of the squared gradients."""
        return {"scoring": BeginningPhase(2 * size(params), "retain")}

    def first_carry(self, method: Method, key: Key, params: Params, data: Data) -> Carry:
        """With the weights in place of their Fisher information; see `ConceptTraining.first_carry`."""
        del method, data
        return new_carry(key, params, {}, self.transformation().init(params), (params, params))

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """Selective Amnesia with these settings; see `ConceptTraining.method`."""
        self.check()
        return selective_amnesia(
            losses_lib.microbatched(losses.noise_loss(self.trained(model), schedule), self.microbatches),
            self.transformation(),
            penalty=self.penalty,
            retain_weight=self.retain_weight,
            fisher_batches=self.fisher_batches,
            batch_size=self.batch_size,
        )
