"""Methods that draw a concept to another prompt, beside the noise loss of what is kept: SalUn, MUNBa, EraseDiff.

All three have the same two losses, with the networks e of the step and the prompts c_f, c_r and p:

    L_f = mean (e(x_t, t, c_f) - stop_gradient e(x_t, t, p))^2        of forget examples; p takes the concept's place
    L_r = mean (noise - e(x_t, t, c_r))^2                             of retain examples

and differ in what they make of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses as losses_lib
from scissorhands_jax import masks, saliency, trees
from scissorhands_jax.base import (
    Batch,
    Carry,
    Data,
    Key,
    Mask,
    Method,
    Metrics,
    Model,
    ModelState,
    Params,
    PyTree,
    StatefulLossFn,
    new_carry,
)
from scissorhands_jax.diffusion import losses
from scissorhands_jax.diffusion.concept_methods.concept_training import BeginningPhase, ByteCount, ConceptTraining
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule
from scissorhands_jax.errors import InputError, check_not_negative, check_positive
from scissorhands_jax.methods._gradient import PairedOptions, follow_direction, paired_batches
from scissorhands_jax.methods.munba import bargain
from scissorhands_jax.methods.pair_gradients import pair_gradients
from scissorhands_jax.methods.settings import Gradient


def concept_salun(
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    *,
    noise_loss_fn: StatefulLossFn,
    fraction: float = 0.5,
    retain_weight: float = 0.1,
    batch_size: int = 8,
) -> Method:
    """SalUn for diffusion: minimises `L_f + retain_weight L_r`, and only the salient weights may move.

    The mask marks the top `fraction` of all weights by |sum of the gradients of the noise loss of forget examples|,
    over one pass with random timesteps. All other weights stay bit-equal. The published code takes the loss of the
    guided prediction 8.5 e(c_f) - 7.5 e(empty) for the mask; here it is the noise loss.

    Args:
      loss_fn: `losses.concept_loss`.
      optimizer: The optimizer.
      noise_loss_fn: `losses.noise_loss`, for the mask.
      fraction: The share of the weights that may move, above 0 and below 1.
      retain_weight: The weight of the retain loss, at least 0.
      batch_size: The number of examples of each set in a step.

    Raises:
      InputError: A setting is out of its range.

    References:
      Fan et al., SalUn, ICLR 2024, arXiv 2310.12508, equation 6; its code `SD/train-scripts/random_label.py`.
    """
    masks.check_fraction(fraction)
    check_not_negative("retain_weight", retain_weight)

    def mask(key: Key, params: Params, model_state: ModelState, data: Data) -> Mask:
        positions = data_lib.even_batches(data_lib.size(data.forget), batch_size)
        examples = (data_lib.take(_plain(data.forget), chosen) for chosen in positions)
        sums = saliency.gradient_sum(noise_loss_fn, params, model_state, examples, train=True, key=key)
        magnitudes = jax.tree.map(jnp.abs, sums.gradient)
        saliency.check_finite(magnitudes)
        return masks.top_fraction(magnitudes, fraction)

    def direction(carry: Carry, batch: Batch, key: Key) -> tuple[PyTree, ModelState, Metrics]:
        retain, forget, model_state, metrics = _both(loss_fn, carry, batch, key)
        total = jax.tree.map(lambda r, f: f + jnp.asarray(retain_weight, r.dtype) * r, retain, forget)
        return total, model_state, metrics

    return _followed(direction, optimizer, batch_size, aux=mask, mask_of=lambda held: held)


def concept_munba(
    loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, *, forget_weight: float = 1.0, batch_size: int = 8
) -> Method:
    """MUNBa for diffusion: every step follows the Nash bargain of the gradients of L_r and L_f (`munba.bargain`).

    The bargain does not depend on the scales of the gradients, so `forget_weight`, the published code's beta, matters
    where a gradient is zero alone, and the norm of the direction is sqrt(2) always: with SGD the rate alone sets the
    pace. The published code adds 1e-8 to two denominators and clips the norm to 1.

    Args:
      loss_fn: `losses.concept_loss`.
      optimizer: The optimizer.
      forget_weight: The factor of L_f, above 0.
      batch_size: The number of examples of each set in a step.

    Raises:
      InputError: The factor is not above 0.

    References:
      Wu and Harandi, MUNBa, arXiv 2411.15537; its code `SD/MUNBa_cls.py`.
    """
    check_positive("forget_weight", forget_weight)

    def direction(carry: Carry, batch: Batch, key: Key) -> tuple[PyTree, ModelState, Metrics]:
        retain, forget, model_state, metrics = _both(loss_fn, carry, batch, key)
        forget = jax.tree.map(lambda leaf: jnp.asarray(forget_weight, leaf.dtype) * leaf, forget)
        agreed, cosine = bargain(retain, forget)
        return agreed, model_state, {**metrics, "cosine": cosine}

    return _followed(direction, optimizer, batch_size)


def erase_diff(
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    *,
    eta: float = 0.1,
    weight: float | None = None,
    batch_size: int = 8,
) -> Method:
    """EraseDiff: minimises L_r where L_f is small, by a first-order step of bi-level optimisation (BOME):

        g = g_r + w g_f,   w = max(0, eta - <g_r, g_f> / <g_f, g_f>)

    so that `<g, g_f> >= eta |g_f|^2`: to first order every step lowers L_f, and w is the least that does. With a
    `weight` w is that number in every step, as in the published code, whose lambda is 0.1. That code also takes K
    steps on L_f before and goes back; what it learns from them is subtracted from the loss as a constant, which moves
    nothing, and is left out here.

    Args:
      loss_fn: `losses.concept_loss`.
      optimizer: The optimizer.
      eta: The share of the gradient step on L_f that every step takes at least, above 0.
      weight: The weight of L_f in every step, at least 0. None follows the rule.
      batch_size: The number of examples of each set in a step.

    Raises:
      InputError: A setting is out of its range.

    References:
      Wu et al., EraseDiff: Erasing Data Influence in Diffusion Models, arXiv 2401.05779, algorithm 1; its code
      `sd/train_scripts/erasediff_cls.py`. Ye et al., BOME, NeurIPS 2022.
    """
    check_positive("eta", eta)
    if weight is not None:
        check_not_negative("weight", weight)

    def direction(carry: Carry, batch: Batch, key: Key) -> tuple[PyTree, ModelState, Metrics]:
        retain, forget, model_state, metrics = _both(loss_fn, carry, batch, key)
        chosen = erasing_weight(retain, forget, eta) if weight is None else jnp.float32(weight)
        total = jax.tree.map(lambda r, f: r + chosen.astype(f.dtype) * f, retain, forget)
        return total, model_state, {**metrics, "weight": chosen}

    return _followed(direction, optimizer, batch_size)


def erasing_weight(retain: PyTree, forget: PyTree, eta: float) -> jax.Array:
    """The least w of at least 0 with `<g_r + w g_f, g_f> >= eta |g_f|^2`; 0 where g_f is zero. shape=()"""
    square = trees.vdot(forget, forget)
    least = eta - trees.vdot(retain, forget) / jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, jnp.maximum(least, 0), 0)


def _both(loss_fn: StatefulLossFn, carry: Carry, batch: Batch, key: Key) -> tuple[PyTree, PyTree, ModelState, Metrics]:
    """The gradients of L_r and L_f, the state, and the losses."""
    (loss, negative), retain, forget, model_state = pair_gradients(
        loss_fn, carry.params, carry.model_state, batch, key, pair="sequential"
    )
    # `concept_loss` is the negative distance, for methods that drive a forget loss up.
    return retain, jax.tree.map(jnp.negative, forget), model_state, {"loss_retain": loss, "loss_replaced": -negative}


def _followed(direction: Any, optimizer: optax.GradientTransformation, batch_size: int, **options: Any) -> Method:
    return follow_direction(
        direction,
        optimizer,
        batches=paired_batches(PairedOptions(batch_size=batch_size)),
        reads=("forget", "retain"),
        **options,
    )


def _plain(examples: PyTree) -> PyTree:
    """Forget examples as the noise loss takes them."""
    return {name: examples[name] for name in ("latents", "deviation", "context") if name in examples}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacingSettings(ConceptTraining):
    """What the three methods share."""

    epochs: int = 5
    batch_size: int = 8
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain", "forget")
    pseudo: str | None = None
    """The prompt that takes the concept's place, which has to be given: for a class another one, for nudity "a photo of
    a person wearing clothes"."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The prompt that takes the concept's place; see `ConceptTraining.reads`."""
        return ("pseudo",)

    def check(self) -> None:
        """Refuses settings without a prompt, in addition to `ConceptTraining.check`."""
        super().check()
        if self.pseudo is None:
            raise InputError("the method draws the concept to another prompt; give it as pseudo=PROMPT")

    def loss(self, model: Model, schedule: Schedule) -> StatefulLossFn:
        """L_r or -L_f of a batch, in microbatches, with gradients for the part that is trained."""
        return losses_lib.microbatched(losses.concept_loss(self.trained(model), schedule), self.microbatches)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptSalunSettings(ReplacingSettings):
    """SalUn as it was published."""

    fraction: float = 0.5
    """The share of the weights that may move, above 0 and below 1."""
    retain_weight: float = 0.1
    """The weight of the retain loss, at least 0."""

    def beginning(self, params: Params, size: ByteCount = trees.nbytes) -> dict[str, BeginningPhase]:
        """The sum of the gradients, then its magnitudes as well; after them what is salient."""
        network = size(params)
        return {"scoring": BeginningPhase(network, "forget"), "masking": BeginningPhase(2 * network)}

    def first_carry(self, method: Method, key: Key, params: Params, data: Data) -> Carry:
        """With a mask of zeros, since weights cannot be scored by shapes; see `ConceptTraining.first_carry`."""
        del method, data
        mask = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)
        optimizer = optax.chain(self.transformation(), masks.mask_updates())
        return new_carry(key, params, {}, optimizer.init(params), mask)

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """SalUn with these settings; see `ConceptTraining.method`."""
        self.check()
        return concept_salun(
            self.loss(model, schedule),
            self.transformation(),
            noise_loss_fn=self.scoring_loss(model, schedule),
            fraction=self.fraction,
            retain_weight=self.retain_weight,
            batch_size=self.batch_size,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptMunbaSettings(ReplacingSettings):
    """MUNBa with the rate and the epochs of its published code."""

    forget_weight: float = 1.0
    """The factor of the forget loss, above 0."""

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """MUNBa with these settings; see `ConceptTraining.method`."""
        self.check()
        loss_fn = self.loss(model, schedule)
        return concept_munba(
            loss_fn, self.transformation(), forget_weight=self.forget_weight, batch_size=self.batch_size
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EraseDiffSettings(ReplacingSettings):
    """EraseDiff by its paper; `weight=0.1` is its published code."""

    eta: float = 0.1
    """The share of the gradient step on the forget loss that every step takes at least, above 0."""
    weight: float | None = None
    """The weight of the forget loss in every step, at least 0. None follows the rule of the paper."""

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """EraseDiff with these settings; see `ConceptTraining.method`."""
        self.check()
        loss_fn = self.loss(model, schedule)
        return erase_diff(loss_fn, self.transformation(), eta=self.eta, weight=self.weight, batch_size=self.batch_size)
