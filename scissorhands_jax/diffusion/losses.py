"""The losses of diffusion networks: what trains them, and what makes them forget a concept."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from scissorhands_jax.base import Key, Model, ModelState, Params, PyTree, Scalar, StatefulLossFn
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule, add_noise, training_target
from scissorhands_jax.diffusion.unet import Noisy
from scissorhands_jax.losses import DrawingLoss


def noise_loss(model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> StatefulLossFn:
    """The loss of diffusion models: the mean of (noise - predicted noise)^2 (Ho et al. 2020, eq. 14).

    A network whose schedule says `v_prediction` predicts the velocity instead, and the loss is that of the velocity.

    A batch is a dict of scaled `latents`, shape (N, H, W, C), and `context`, shape (N, T, D). If it also has
    `deviation`, of the same shape as `latents`, then these two are the mean and the standard deviation of normal
    latents, which every call draws again, as in the training of latent diffusion models (Rombach et al. 2022).
    Timesteps, uniform over the schedule, and standard normal noise come from the key of the call; without a key they
    come from key 0, so that the loss is a function of the parameters alone.

    Args:
      model: A network that takes a `Noisy` and returns what the schedule says.
      schedule: The schedule of the forward process.
    """
    return _NoiseLoss(model, schedule)


def concept_loss(model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> StatefulLossFn:
    """`noise_loss`, except for batches that name what is to be drawn in place of a concept.

    Such a batch has `pseudo`, shape (N, T, D), the embedding of another prompt. Its loss is the negative mean of
    (e(x_t, t, context) - e(x_t, t, pseudo))^2, where the second prediction is held fixed, and timestep and noise are
    the same for both. The negative sign makes the loss grow, towards 0, as the concept turns into the other prompt.
    A repair that descends `L_r - lambda L_f` therefore draws the two together, which is what the published code of
    Scissorhands does; with the projection, no gradient takes them apart to first order.

    Args:
      model: A network that takes a `Noisy` and returns what the schedule says.
      schedule: The schedule of the forward process.
    """
    return _ConceptLoss(model, schedule)


def guided_noise_loss(model: Model, guidance: float, schedule: Schedule = SD_V1_SCHEDULE) -> StatefulLossFn:
    """The loss of the guided prediction: the mean of (noise - (1 + s) e(x_t, t, context) + s e(x_t, t, empty))^2.

    Batches have, besides what `noise_loss` takes, `empty`, the embeddings of the empty prompt, shape (N, T, D). The
    published code of Scissorhands scores the weights of an object by it.

    Args:
      model: A network that takes a `Noisy` and returns the noise.
      guidance: The scale s; 0 is the noise loss.
      schedule: The schedule of the forward process.
    """
    return _GuidedNoiseLoss(model, schedule, guidance)


@dataclasses.dataclass(frozen=True)
class _GuidedNoiseLoss(DrawingLoss):
    """Equal to other losses of the same network, like `_NoiseLoss`."""

    model: Model
    schedule: Schedule
    guidance: float

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]:
        noisy, noise = _noised(self.schedule, batch, key)
        empty, _ = self.model.apply(params, model_state, noisy._replace(context=batch["empty"]), train=train, key=key)
        asked, model_state = self.model.apply(params, model_state, noisy, train=train, key=key)
        guided = (1 + self.guidance) * asked - self.guidance * empty
        return jnp.mean(jnp.square(guided - noise)), model_state


@dataclasses.dataclass(frozen=True)
class _NoiseLoss(DrawingLoss):
    """Equal to other losses of the same network, so that they share compiled code."""

    model: Model
    schedule: Schedule

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]:
        noisy, target = _noised(self.schedule, batch, key)
        predicted, model_state = self.model.apply(params, model_state, noisy, train=train, key=key)
        return jnp.mean(jnp.square(predicted - target)), model_state


@dataclasses.dataclass(frozen=True)
class _ConceptLoss(DrawingLoss):
    """Equal to other losses of the same network, like `_NoiseLoss`."""

    model: Model
    schedule: Schedule

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]:
        if "pseudo" not in batch:
            return _NoiseLoss(self.model, self.schedule)(params, model_state, batch, train=train, key=key)
        noisy, _ = _noised(self.schedule, batch, key)
        replaced = noisy._replace(context=batch["pseudo"])
        target, _ = self.model.apply(jax.lax.stop_gradient(params), model_state, replaced, train=train, key=key)
        predicted, model_state = self.model.apply(params, model_state, noisy, train=train, key=key)
        return -jnp.mean(jnp.square(predicted - target)), model_state


def _noised(schedule: Schedule, batch: PyTree, key: Key | None) -> tuple[Noisy, jax.Array]:
    """The batch at random timesteps, and what the network is to predict of it."""
    latents = batch["latents"]
    step_key, noise_key = jax.random.split(jax.random.key(0) if key is None else key)
    if "deviation" in batch:
        drawn = jax.random.normal(jax.random.fold_in(noise_key, 1), latents.shape, jnp.float32)
        latents = latents + batch["deviation"] * drawn
    timesteps = jax.random.randint(step_key, latents.shape[:1], 0, schedule.num_steps)
    noise = jax.random.normal(noise_key, latents.shape, jnp.float32)
    noisy = Noisy(add_noise(schedule, latents, noise, timesteps), timesteps, batch["context"])
    return noisy, training_target(schedule, latents, noise, timesteps)
