"""Noise schedules, samplers and the sampling loop, as pure functions.

A sampler is a table: with x_i the latents before step i and o_i the output of the network for `scale_i * x_i`,

    e_i = output_i o_i + shown_i scale_i x_i,    x_{i+1} = keep_i x_i + sum_k weights_{i,k} e_{i-k},

where e_i is the noise. DDIM, the linear multistep methods and PNDM are all of this form, for networks that predict the
noise and for those that predict the velocity, so one loop serves them, and a step costs no more than the network.
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
    """The first beta of `scaled_linear` and `linear`."""
    end: float = 0.012
    """The last beta of `scaled_linear` and `linear`."""
    kind: Literal["scaled_linear", "linear", "cosine"] = "scaled_linear"
    """The betas of `linear` are linear from `start` to `end`, those of `scaled_linear` in their square root; `cosine`
    is that of Nichol and Dhariwal (2021), which has neither."""
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the network predicts: the noise, or the velocity of `training_target`. The words are diffusers'."""


SD_V1_SCHEDULE = Schedule()


@functools.cache
def signal_shares(schedule: Schedule) -> np.ndarray:
    """The share of the signal in the variance, product of 1 - beta, by timestep. shape=(num_steps,), dtype=float32"""
    if schedule.kind == "cosine":
        times = np.linspace(0, 1, schedule.num_steps + 1)
        curve = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    elif schedule.kind == "linear":
        betas = np.linspace(schedule.start, schedule.end, schedule.num_steps)
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


def training_target(schedule: Schedule, latents: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
    """What the network is trained to predict: the noise, or v = sqrt(share) noise - sqrt(1 - share) x_0.

    Args:
      schedule: The schedule, with what is predicted.
      latents: The latents x_0. shape=(N, ...)
      noise: The noise in x_t, of the same shape as `latents`.
      timesteps: The timesteps, in [0, num_steps). shape=(N,), dtype=int32

    References:
      Salimans and Ho, Progressive distillation for fast sampling of diffusion models, ICLR 2022, section 4.
    """
    if schedule.prediction == "epsilon":
        return noise
    share = jnp.asarray(signal_shares(schedule))[timesteps].reshape(-1, *[1] * (latents.ndim - 1))
    return jnp.sqrt(share) * noise - jnp.sqrt(1 - share) * latents


class Sampler(NamedTuple):
    """The numbers of a sampler of n steps; see the docstring of the module."""

    initial: float
    """The standard deviation of the latents before the first step."""
    timesteps: np.ndarray
    """The timesteps that the network gets. shape=(n,)"""
    scale: np.ndarray
    """What the latents are multiplied by before the network sees them. shape=(n,)"""
    output: np.ndarray
    """What the output of the network is multiplied by; 1 where it is the noise. shape=(n,)"""
    shown: np.ndarray
    """How much of what the network saw is added to that; 0 where it predicts the noise. shape=(n,)"""
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
    timesteps, here, there = _leading(num_steps, 1, schedule)
    keep, weights = _transfer(here, there)
    return Sampler(1.0, timesteps.astype(np.float64), *_shown(schedule, np.sqrt(here)), keep, weights[:, None])


def pndm(num_steps: int, schedule: Schedule = SD_V1_SCHEDULE) -> Sampler:
    """The pseudo linear multistep method of Liu et al. (2022, eq. 12), with which Stable Diffusion v1 was published.

    Steps are those of DDIM along a combination of the last four outputs of the network (Adams and Bashforth's). The
    first step is taken twice, the second time along the mean of the outputs at both of its ends, so the network is
    called `num_steps` + 1 times (in diffusers' terms: `skip_prk_steps=True`, `steps_offset=1`,
    `set_alpha_to_one=False`).

    Args:
      num_steps: The number of steps, from 2 to half of the schedule's.
      schedule: The schedule that the network was trained with.

    Raises:
      InputError: `num_steps` is out of its range.
    """
    timesteps, here, there = _leading(num_steps, 2, schedule)
    keep, along = _transfer(here, there)
    if schedule.prediction == "v_prediction":  # outputs are combined first and made noise then, as diffusers does
        keep, along = keep + along * np.sqrt(1 - here), along * np.sqrt(here)
    weights = np.zeros((num_steps + 1, 5))
    weights[0, 0] = along[0]
    weights[1, :2] = along[0] / 2, -along[0] / 2  # from the end of the first step, as if from its beginning
    # By step: the output of the second call, which is of the repeated step, has no part in later ones.
    combinations = [[3 / 2, 0, -1 / 2], [23 / 12, -16 / 12, 0, 5 / 12], [55 / 24, -59 / 24, 37 / 24, 0, -9 / 24]]
    for step in range(2, num_steps + 1):
        row = combinations[step - 2] if step < 5 else [55 / 24, -59 / 24, 37 / 24, -9 / 24]
        weights[step, : len(row)] = along[step - 1] * np.array(row)
    called = np.concatenate([timesteps[:2], timesteps[1:]])
    ones = np.ones(num_steps + 1)
    return Sampler(
        1.0, called.astype(np.float64), ones, ones, 0 * ones, np.concatenate([keep[:1], [1.0], keep[1:]]), weights
    )


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
    scale = 1 / np.sqrt(sigmas[:-1] ** 2 + 1)
    _, output, shown = _shown(schedule, scale)
    return Sampler(float(sigmas[0]), timesteps, scale, output, shown, np.ones(num_steps), weights)


def euler(num_steps: int, schedule: Schedule = SD_V1_SCHEDULE) -> Sampler:
    """Euler's method in sigma, which is `lms` of order 1 (diffusers' `EulerDiscreteScheduler`).

    Args:
      num_steps: The number of steps, from 2 to half of the schedule's.
      schedule: The schedule that the network was trained with.

    Raises:
      InputError: `num_steps` is out of its range.
    """
    return lms(num_steps, schedule, order=1)


SAMPLERS: dict[str, Callable[..., Sampler]] = {"lms": lms, "ddim": ddim, "pndm": pndm, "euler": euler}
"""The samplers by name; each takes the number of steps and the schedule."""


def _leading(num_steps: int, least: int, schedule: Schedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The timesteps of DDIM and PNDM, and the signal's share before and after each of their steps."""
    _check(num_steps, least, schedule)
    stride = schedule.num_steps // num_steps
    timesteps = np.arange(num_steps)[::-1] * stride + 1
    shares = signal_shares(schedule).astype(np.float64)
    return timesteps, shares[timesteps], shares[np.maximum(timesteps - stride, 0)]


def _transfer(here: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What latents and noise are multiplied by in a step of DDIM from one share of the signal to another."""
    keep = np.sqrt(there / here)
    return keep, np.sqrt(1 - there) - keep * np.sqrt(1 - here)


def _shown(schedule: Schedule, signal: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns `scale` (of ones), `output` and `shown`, from the square root of the signal's share."""
    ones = np.ones(len(signal))
    return (ones, ones, 0 * ones) if schedule.prediction == "epsilon" else (ones, signal, np.sqrt(1 - signal**2))


def _check(num_steps: int, least: int, schedule: Schedule) -> None:
    if not least <= num_steps <= schedule.num_steps // 2:
        raise InputError(f"the number of steps must be {least} to {schedule.num_steps // 2}, got {num_steps}")


def sample(sampler: Sampler, denoise: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array) -> jax.Array:
    """Turns noise into latents, an array of the same shape.

    Args:
      sampler: The table of steps, which may be traced.
      denoise: What the network predicts, `(latents, timestep) -> noise or velocity`, where the timestep has shape ().
      noise: Standard normal numbers. shape=(N, ...), dtype=float32
    """
    return _sampled(sampler, denoise, noise, keep=False)[0]


def sample_path(sampler: Sampler, denoise: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array) -> jax.Array:
    """The latents after every step of `sample`, of whose shape one more axis is in front."""
    return _sampled(sampler, denoise, noise, keep=True)[1]


def _sampled(
    sampler: Sampler, denoise: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array, *, keep: bool
) -> tuple[jax.Array, jax.Array]:
    """The latents after the last step and, if they are kept, after all steps."""

    def step(carry, row):
        latents, history = carry
        timestep, scale, output, shown, kept, weights = row
        seen = scale * latents
        predicted = output * denoise(seen, timestep) + shown * seen
        history = jnp.concatenate([predicted[None], history[:-1]])
        latents = kept * latents + jnp.tensordot(weights, history, 1, precision="highest")
        return (latents, history), latents if keep else None

    rows = [jnp.asarray(column, jnp.float32) for column in sampler[1:]]
    history = jnp.zeros((rows[-1].shape[1], *noise.shape), noise.dtype)
    (latents, _), path = jax.lax.scan(step, (jnp.float32(sampler.initial) * noise, history), rows)
    return latents, path


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
