"""Noise schedules, samplers and the sampling loop, as pure functions.

A sampler is a table: with x_i the latents before step i and e_i the noise that the network predicts in `scale_i * x_i`,

    x_{i+1} = keep_i x_i + sum_k weights_{i,k} e_{i-k}.

DDIM and the linear multistep method are both of this form, so one loop serves them, and a step costs no more than the
network.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.diffusion.unet import Noisy
from scissorhands_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How noise grows over the timesteps of the forward process. The defaults are Stable Diffusion v1's."""

    num_steps: int = 1000
    """The number of timesteps in training."""
    start: float = 0.00085
    """The first beta of `scaled_linear`."""
    end: float = 0.012
    """The last beta of `scaled_linear`."""
    kind: Literal["scaled_linear", "cosine"] = "scaled_linear"
    """The betas of `scaled_linear` are linear in their square root; `cosine` is that of Nichol and Dhariwal (2021)."""


SD_V1_SCHEDULE = Schedule()


@functools.cache
def signal_shares(schedule: Schedule) -> np.ndarray:
    """The share of the signal in the variance, product of 1 - beta, by timestep. shape=(num_steps,), dtype=float32"""
    if schedule.kind == "cosine":
        times = np.linspace(0, 1, schedule.num_steps + 1)
        curve = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    else:
        betas = np.linspace(schedule.start**0.5, schedule.end**0.5, schedule.num_steps) ** 2
    return np.cumprod(1 - betas).astype(np.float32)


def add_noise(schedule: Schedule, latents: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """The forward process q(x_t | x_0): sqrt(share) x_0 + sqrt(1 - share) noise (Ho et al. 2020, eq. 4).

    Args:
      schedule: The schedule of the noise.
      latents: The latents x_0. shape=(N, ...)
      noise: Standard normal numbers, of the same shape as `latents`.
      timesteps: The timesteps, in [0, num_steps). shape=(N,), dtype=int32
    """
    share = jnp.asarray(signal_shares(schedule))[timesteps].reshape(-1, *[1] * (latents.ndim - 1))
    return jnp.sqrt(share) * latents + jnp.sqrt(1 - share) * noise


class Sampler(NamedTuple):
    """The numbers of a sampler of n steps; see the docstring of the module."""

    initial: float
    """The standard deviation of the latents before the first step."""
    timesteps: np.ndarray
    """The timesteps that the network gets. shape=(n,)"""
    scale: np.ndarray
    """What the latents are multiplied by before the network sees them. shape=(n,)"""
    keep: np.ndarray
    """What the latents are multiplied by in a step. shape=(n,)"""
    weights: np.ndarray
    """The weights of the newest prediction and of those before it. shape=(n, order)"""


def ddim(num_steps: int, schedule: Schedule = SD_V1_SCHEDULE) -> Sampler:
    """The deterministic sampler of Song et al. (2021, eq. 12), with Stable Diffusion's spacing of timesteps.

    Timesteps are equally spaced and shifted by one. The last step ends at the first timestep of the schedule (in
    diffusers' terms: `steps_offset=1`, `set_alpha_to_one=False`, `eta=0`).

    Args:
      num_steps: The number of steps, from 1 to half of the schedule's.
      schedule: The schedule that the network was trained with.

    Raises:
      InputError: `num_steps` is out of its range.
    """
    _check(num_steps, 1, schedule)
    stride = schedule.num_steps // num_steps
    timesteps = np.arange(num_steps)[::-1] * stride + 1
    shares = signal_shares(schedule).astype(np.float64)
    here, there = shares[timesteps], shares[np.maximum(timesteps - stride, 0)]
    keep = np.sqrt(there / here)
    weights = np.sqrt(1 - there) - keep * np.sqrt(1 - here)
    return Sampler(1.0, timesteps.astype(np.float64), np.ones(num_steps), keep, weights[:, None])


def lms(num_steps: int, schedule: Schedule = SD_V1_SCHEDULE, *, order: int = 4) -> Sampler:
    """The linear multistep method in sigma = sqrt((1 - share) / share) (Karras et al. 2022; Crowson's k-diffusion).

    The latents solve dx/dsigma = noise. Each step integrates the polynomial through the last `order` predictions, or
    through all of them as long as there are fewer. Timesteps are equally spaced from the last one to 0 and not whole,
    as in diffusers' `LMSDiscreteScheduler`.

    Args:
      num_steps: The number of steps, from 2 to half of the schedule's.
      schedule: The schedule that the network was trained with.
      order: The largest number of predictions in a step.

    Raises:
      InputError: `num_steps` is out of its range.
    """
    _check(num_steps, 2, schedule)
    shares = signal_shares(schedule).astype(np.float64)
    timesteps = np.linspace(schedule.num_steps - 1, 0, num_steps)
    sigmas = np.interp(timesteps, np.arange(schedule.num_steps), np.sqrt((1 - shares) / shares))
    sigmas = np.append(sigmas, 0.0)
    nodes, node_weights = np.polynomial.legendre.leggauss(order)  # exact for polynomials of degree 2 order - 1
    weights = np.zeros((num_steps, order))
    for step in range(num_steps):
        known = sigmas[step - np.arange(min(step + 1, order))]
        half = (sigmas[step + 1] - sigmas[step]) / 2
        at = sigmas[step] + half * (nodes + 1)
        for index, sigma in enumerate(known):
            others = np.delete(known, index)
            values = np.prod((at[:, None] - others) / (sigma - others), axis=1)
            weights[step, index] = half * np.sum(node_weights * values)
    return Sampler(float(sigmas[0]), timesteps, 1 / np.sqrt(sigmas[:-1] ** 2 + 1), np.ones(num_steps), weights)


SAMPLERS: dict[str, Callable[..., Sampler]] = {"lms": lms, "ddim": ddim}


def _check(num_steps: int, least: int, schedule: Schedule) -> None:
    if not least <= num_steps <= schedule.num_steps // 2:
        raise InputError(f"the number of steps must be {least} to {schedule.num_steps // 2}, got {num_steps}")


def sample(sampler: Sampler, denoise: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array) -> jax.Array:
    """Turns noise into latents, an array of the same shape.

    Args:
      sampler: The table of steps, which may be traced.
      denoise: Predicts the noise, `(latents, timestep) -> noise`, where the timestep has shape ().
      noise: Standard normal numbers. shape=(N, ...), dtype=float32
    """

    def step(carry, row):
        latents, history = carry
        timestep, scale, keep, weights = row
        predicted = denoise(scale * latents, timestep)
        history = jnp.concatenate([predicted[None], history[:-1]])
        return (keep * latents + jnp.tensordot(weights, history, 1, precision="highest"), history), None

    rows = [jnp.asarray(column, jnp.float32) for column in sampler[1:]]
    history = jnp.zeros((rows[-1].shape[1], *noise.shape), noise.dtype)
    (latents, _), _ = jax.lax.scan(step, (jnp.float32(sampler.initial) * noise, history), rows)
    return latents


def guided(
    predict: Callable[[Noisy], jax.Array], context: jax.Array, empty: jax.Array, guidance: jax.Array | float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Classifier-free guidance (Ho and Salimans 2022): `empty + guidance * (asked - empty)`, in one pass of two halves.

    Args:
      predict: The UNet.
      context: The embeddings of the prompts. shape=(N, T, D)
      empty: The embeddings of the empty prompt. shape=(1, T, D)
      guidance: The scale of the guidance; 1 follows the prompt without any. shape=() or (N,)

    Returns:
      A function for `sample`.
    """
    both = jnp.concatenate([jnp.broadcast_to(empty, context.shape), context])

    def denoise(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        timesteps = jnp.full((2 * latents.shape[0],), timestep)
        free, asked = jnp.split(predict(Noisy(jnp.concatenate([latents, latents]), timesteps, both)), 2)
        return free + jnp.asarray(guidance, jnp.float32).reshape(-1, *[1] * (latents.ndim - 1)) * (asked - free)

    return denoise


def torch_normal(seed: int, shape: Sequence[int]) -> np.ndarray:
    """What `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` draws on a CPU, to 5e-7. dtype=float32

    PyTorch draws 24-bit uniform numbers from MT19937 and makes normal ones of every 16 by Box and Muller's method, the
    first eight being radii and the others angles. Where the size is no multiple of 16, the last 16 numbers are drawn
    again.

    Args:
      seed: The seed.
      shape: The shape, of 16 numbers or more.

    Raises:
      InputError: The shape has fewer than 16 numbers, which PyTorch draws in another way.
    """
    size = int(np.prod(shape))
    if size < 16:
        raise InputError(f"the draws of a torch seed are known for 16 numbers or more, not for shape {tuple(shape)}")
    # The old generator is seeded as PyTorch seeds its own.
    generator = np.random.RandomState(seed & 0xFFFFFFFF)

    def uniform(count: int) -> np.ndarray:
        words = generator.randint(0, 2**32, count, np.uint32)
        return (words & 0xFFFFFF).astype(np.float32) / np.float32(2**24)

    def normal(values: np.ndarray) -> np.ndarray:
        first, second = values.reshape(-1, 2, 8).transpose(1, 0, 2)
        radius, angle = np.sqrt(-2 * np.log1p(-first)), np.float32(2 * np.pi) * second
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)

    values = uniform(size)
    whole = size // 16 * 16
    values[:whole] = normal(values[:whole])
    if whole < size:
        values[-16:] = normal(uniform(16))
    return values.reshape(shape)
