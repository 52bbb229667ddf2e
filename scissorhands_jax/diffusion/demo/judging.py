"""Judging drawings: what a classifier takes them for, their distance from real digits, and the noise loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Model, Params
from scissorhands_jax.diffusion import schedules
from scissorhands_jax.diffusion.demo import training
from scissorhands_jax.diffusion.demo.scene import Scene, flat_images, fold_images, nearest_distances, requested_digits
from scissorhands_jax.diffusion.demo.settings import DIGITS_SCHEDULE, NO_DIGIT, NUM_DIGITS, DigitsSettings
from scissorhands_jax.diffusion.demo.training import DrawingNetwork, TrainingCost
from scissorhands_jax.diffusion.unet import Noisy
from scissorhands_jax.metrics import distances, intervals


@dataclasses.dataclass(frozen=True)
class DigitShare:
    """A share in percent with its 95 % Clopper-Pearson interval, and the counts behind it."""

    count: int
    total: int
    percent: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PixelDistance:
    """The Fréchet distance of the pixels of two sets of images, with a 95 % interval by bootstrap over both."""

    value: float
    low: float
    high: float
    images: int
    """The number of images in the first set."""
    real_images: int
    """The number of images in the second set."""


@dataclasses.dataclass(frozen=True)
class MeanError:
    """A mean noise loss with its 95 % interval."""

    value: float
    low: float
    high: float
    digits: int
    """The number of digits that it is a mean of."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkNumbers:
    """All numbers of a network: a row of `results.json`."""

    network: str
    """The name of the network."""
    digit: int
    """The forgotten digit."""
    forget: DigitShare
    """The drawings of the forgotten digit that the judge takes for it."""
    kept: DigitShare
    """The drawings of other digits that the judge takes for what they were asked for."""
    unasked: DigitShare
    """The drawings of the empty text that the judge takes for the forgotten digit."""
    any_digit: DigitShare
    """The drawings of the forgotten digit that look like any digit."""
    became: list[int]
    """For each digit, how many drawings of the forgotten digit the judge takes for it, and last those that it takes for
    none."""
    frechet: PixelDistance
    """The distance from drawings of the other digits to held-out ones."""
    error_forget: MeanError
    """The noise loss on held-out examples of the forgotten digit."""
    error_kept: MeanError
    """The noise loss on held-out examples of other digits."""
    losses: dict[str, float]
    """The losses of the last epoch."""
    ceiling: float | None = None
    """The forget loss up to which forgotten digits were driven, where there was such a ceiling."""
    attacked: DigitShare | None = None
    """The drawings that the judge takes for the forgotten digit with the text that an attack found, if one was made."""
    cost: TrainingCost
    """What the network has cost."""


def compared_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in which a network is compared with a retrained one, by their names in `NetworkNumbers`.

    Args:
      row: A row of `results.json`, that is `NetworkNumbers` as a dict.
    """
    names = ("forget", "any_digit", "kept", "unasked", "attacked")
    shares = {name: row[name]["percent"] for name in names if row.get(name) is not None}
    return shares | {name: row[name]["value"] for name in ("frechet", "error_forget", "error_kept")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealNumbers:
    """What drawings can reach at best."""

    judge: DigitShare
    """The held-out real digits that the judge recognises."""
    any_digit: DigitShare
    """The held-out real digits that look like a digit to the judge."""
    frechet: PixelDistance
    """The distance of retained training digits, as many as a network draws, from held-out ones."""
    unasked: DigitShare
    """The share of the forgotten digit among the training digits."""


def measure_network(
    settings: DigitsSettings, scene: Scene, name: str, network: DrawingNetwork, images: np.ndarray
) -> NetworkNumbers:
    """Measures a network.

    Args:
      settings: The digit, and what is drawn.
      scene: The judge and real digits.
      name: The name of the network.
      network: The network after training or unlearning.
      images: What it drew for `requested_digits`.
    """
    requested, found, digit = requested_digits(settings), judge_digits(scene, images), settings.digit
    forgotten, empty = requested == digit, requested == NUM_DIGITS
    kept = ~forgotten & ~empty
    real = scene.test["label"] != digit
    errors = noise_errors(settings, scene, network.params)
    return NetworkNumbers(
        network=name,
        digit=digit,
        forget=digit_share(int(np.sum(found[forgotten] == digit)), int(forgotten.sum())),
        kept=digit_share(int(np.sum(found[kept] == requested[kept])), int(kept.sum())),
        unasked=digit_share(int(np.sum(found[empty] == digit)), int(empty.sum())),
        any_digit=digit_share(int(np.sum(found[forgotten] != NO_DIGIT)), int(forgotten.sum())),
        became=np.bincount(found[forgotten], minlength=NO_DIGIT + 1).tolist(),
        frechet=_pixel_distance(images[kept], scene.test["image"][real], settings.sampling.resamples),
        error_forget=_mean_error(errors[~real]),
        error_kept=_mean_error(errors[real]),
        losses=network.losses,
        ceiling=network.ceiling,
        cost=network.cost,
    )


def measure_real_digits(settings: DigitsSettings, scene: Scene) -> RealNumbers:
    """Measures real digits instead of drawings: the judge on held-out ones, and the distance between real digits."""
    labels, others = scene.train["label"], [digit for digit in range(NUM_DIGITS) if digit != settings.digit]
    chosen = np.concatenate([np.flatnonzero(labels == digit)[: settings.sampling.kept] for digit in others])
    real = scene.test["label"]
    found = judge_digits(scene, scene.test["image"])
    return RealNumbers(
        judge=digit_share(int(np.sum(found == real)), len(real)),
        any_digit=digit_share(int(np.sum(found != NO_DIGIT)), len(real)),
        frechet=_pixel_distance(
            scene.train["image"][chosen],
            scene.test["image"][real != settings.digit],
            settings.sampling.resamples,
        ),
        unasked=digit_share(int(np.sum(labels == settings.digit)), len(labels)),
    )


def judge_digits(scene: Scene, images: np.ndarray) -> np.ndarray:
    """The digits that the judge takes images for, and `NO_DIGIT` for those that look like none. shape=(N,)"""
    near = nearest_distances(images, scene.train["image"]) <= scene.reach
    return np.where(near, scene.judge.predict(flat_images(images)), NO_DIGIT)


def digit_share(count: int, total: int) -> DigitShare:
    """The share of `count` in `total`."""
    found = intervals.share_estimate(count, total)
    return DigitShare(count, total, 100 * count / total, 100 * found.low, 100 * found.high)


def noise_errors(settings: DigitsSettings, scene: Scene, params: Params) -> np.ndarray:
    """The noise loss of each held-out digit: the mean of 8 draws, which are the same for all networks. shape=(N,)"""
    latents, labels = fold_images(scene.test["image"]), scene.test["label"]
    model = training.digits_network(settings.network)
    generator = np.random.default_rng(np.asarray(jax.random.key_data(scene.keys["losses"])).ravel().tolist())
    errors = []
    for _ in range(8):
        timesteps = generator.integers(0, DIGITS_SCHEDULE.num_steps, len(latents)).astype(np.int32)
        noise = generator.standard_normal(latents.shape, np.float32)
        errors.append(_errors(model, params, latents, scene.texts[labels], timesteps, noise))
    return np.mean(jax.device_get(errors), axis=0)


@functools.partial(jax.jit, static_argnames="model")
def _errors(
    model: Model, params: Params, latents: jax.Array, context: jax.Array, timesteps: jax.Array, noise: jax.Array
) -> jax.Array:
    noisy = Noisy(schedules.add_noise(DIGITS_SCHEDULE, latents, noise, timesteps), timesteps, context)
    predicted, _ = model.apply(params, {}, noisy, train=False)
    return jnp.mean(jnp.square(predicted - noise), axis=(1, 2, 3))


def _pixel_distance(images: np.ndarray, real: np.ndarray, resamples: int) -> PixelDistance:
    first, second = flat_images(images), flat_images(real)
    found = intervals.two_sample_bootstrap(
        distances.frechet_distance, first, second, num_resamples=resamples, bounds=(0, np.inf)
    )
    return PixelDistance(found.value, found.low, found.high, len(first), len(second))


def _mean_error(values: np.ndarray) -> MeanError:
    found = intervals.mean_estimate(values)
    return MeanError(found.value, found.low, found.high, len(values))
