"""ESD (Gandikota et al., ICCV 2023): the prediction for a concept is led away from it, without any images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import Batch, Data, Key, Method, Model, Params, PyTree
from scissorhands_jax.diffusion import schedules
from scissorhands_jax.diffusion.concept_methods.concept_training import ConceptTraining
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule
from scissorhands_jax.diffusion.unet import Noisy
from scissorhands_jax.errors import InputError, check_finite_number, check_not_negative
from scissorhands_jax.methods._gradient import descend
from scissorhands_jax.methods.settings import Gradient


def esd(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    eta: float = 1.0,
    guidance: float = 3.0,
    sample_steps: int = 50,
    steps_per_epoch: int = 1000,
    batch_size: int = 1,
    schedule: Schedule = SD_V1_SCHEDULE,
) -> Method:
    """Erases a concept c by its prompt alone; the networks e of the step, e_o of the original and the empty prompt 0:

        minimise  mean (e(x_t, t, c) - target)^2,   target = e_o(x_t, t, 0) - eta (e_o(x_t, t, c) - e_o(x_t, t, 0))

    The target is what guidance with the scale `-eta` predicts. x_t is drawn anew in every step: the network itself
    samples c from noise with DDIM, guided by `guidance`, up to a step that is uniform over the sampler's; t is uniform
    over the timesteps that this step stands for. The published code trains one example a step, 1,000 steps, by Adam
    with the rate 1e-5. ESD-x trains cross-attention alone, ESD-u all but cross-attention (`training_only`).

    Args:
      model: The network.
      optimizer: The optimizer.
      eta: The scale of the negative guidance, at least 0; 0 leads to the empty prompt's prediction.
      guidance: The scale of the guidance with which x_t is sampled.
      sample_steps: The number of steps of DDIM.
      steps_per_epoch: The number of steps in an epoch.
      batch_size: The number of prompts that a step sees.
      schedule: The schedule that the network was trained with.

    Returns:
      A method whose forget examples have `context`, `empty`, shape (N, T, D) both, and `latents`, of which the shape
      counts alone. Nothing of the retain set is read.

    Raises:
      InputError: A number is out of its range.

    References:
      Gandikota et al., Erasing Concepts from Diffusion Models, ICCV 2023, arXiv 2303.07345, equation 6.
    """
    check_not_negative("eta", eta)
    check_finite_number("guidance", guidance)
    if steps_per_epoch < 1:
        raise InputError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
    sampler = jax.tree.map(jnp.asarray, schedules.ddim(sample_steps, schedule))

    def objective(params, carry, batch, key):
        forget, state = batch.forget, carry.model_state
        noisy = jax.lax.stop_gradient(
            partly_sampled(model, params, forget, key, sampler=sampler, guidance=guidance, schedule=schedule)
        )
        asked, _ = model.apply(carry.aux, state, noisy, train=False)
        empty, _ = model.apply(carry.aux, state, noisy._replace(context=forget["empty"]), train=False)
        target = jax.lax.stop_gradient(empty - eta * (asked - empty))
        predicted, state = model.apply(params, state, noisy, train=True, key=key)
        loss = jnp.mean(jnp.square(predicted - target))
        return loss, (state, {"loss_replaced": loss})

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        positions = data_lib.cycled_batches(jax.random.fold_in(key, epoch), data_lib.size(data.forget), batch_size)
        return (Batch(forget=chosen) for chosen in itertools.islice(positions, steps_per_epoch))

    return descend(
        objective,
        optimizer,
        batches=batches,
        reads=("forget",),
        aux=lambda key, params, model_state, data: trees.copy(params),
    )


def partly_sampled(
    model: Model,
    params: Params,
    examples: PyTree,
    key: Key,
    *,
    sampler: schedules.Sampler,
    guidance: float,
    schedule: Schedule,
) -> Noisy:
    """Latents that the network samples from noise up to a random step, for the prompts of `examples`.

    Args:
      model: The network.
      params: Its parameters.
      examples: `context` and `empty`, shape (N, T, D), and `latents`, whose shape is that of the result.
      key: Decides noise, step and timestep, of which all examples share the last two.
      sampler: A sampler that needs the newest prediction alone, such as DDIM.
      guidance: The scale of the guidance.
      schedule: The schedule of the network.
    """
    noise_key, step_key, time_key = jax.random.split(key, 3)
    total = sampler.timesteps.shape[0]
    stride = schedule.num_steps // total
    step = jax.random.randint(step_key, (), 0, total)
    time = (total - 1 - step) * stride + jax.random.randint(time_key, (), 0, stride)
    context, latents = examples["context"], examples["latents"]

    def predict(noisy: Noisy) -> jax.Array:
        return model.apply(params, {}, noisy, train=False)[0]

    empty = jnp.broadcast_to(examples["empty"], context.shape)

    def advance(number: jax.Array, x: jax.Array) -> jax.Array:
        times = jnp.full(x.shape[:1], sampler.timesteps[number])
        free, asked = predict(Noisy(x, times, empty)), predict(Noisy(x, times, context))
        guided = free + guidance * (asked - free)
        predicted = sampler.output[number] * guided + sampler.shown[number] * x  # the noise, of a velocity too
        return (sampler.keep[number] * x + sampler.weights[number, 0] * predicted).astype(x.dtype)

    noise = jax.random.normal(noise_key, latents.shape, jnp.float32)
    return Noisy(jax.lax.fori_loop(0, step, advance, noise), jnp.full(noise.shape[:1], time), context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EsdSettings(ConceptTraining):
    """ESD-x as it was published, except that a step sees `batch_size` prompts."""

    epochs: int = 1
    batch_size: int = 1
    train: str = "cross-attention"
    eta: float = 1.0
    """The scale of the negative guidance that leads away from the concept, at least 0."""
    guidance: float = 3.0
    """The scale of the guidance with which the network samples what it is trained on."""
    sample_steps: int = 50
    """The number of steps of that sampling."""
    steps_per_epoch: int = 1000
    """The number of steps in an epoch."""

    gradients: ClassVar[tuple[Gradient, ...]] = ("forget",)
    unused: ClassVar[tuple[str, ...]] = ("microbatches", "pseudo")
    reads_images: ClassVar[bool] = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The empty prompt; see `ConceptTraining.reads`."""
        return ("empty",)

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """ESD with these settings; see `ConceptTraining.method`."""
        self.check()
        return esd(
            self.trained(model),
            self.transformation(),
            eta=self.eta,
            guidance=self.guidance,
            sample_steps=self.sample_steps,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.batch_size,
            schedule=schedule,
        )
