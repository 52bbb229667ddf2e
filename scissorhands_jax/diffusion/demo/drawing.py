"""Drawing digits with the networks of the demonstration."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Model, Params
from scissorhands_jax.diffusion import schedules
from scissorhands_jax.diffusion.demo import training
from scissorhands_jax.diffusion.demo.scene import Scene, unfold_latents
from scissorhands_jax.diffusion.demo.settings import DIGITS_SCHEDULE, NUM_DIGITS, DigitsSettings
from scissorhands_jax.diffusion.unet import Noisy


def draw_digits(settings: DigitsSettings, scene: Scene, params: Params, requested: np.ndarray) -> np.ndarray:
    """Images in [0, 1] that a network draws when it is asked for digits. shape=(N, 8, 8, 1)

    The noise that a drawing begins with depends on its digit and number alone, so it is the same for all networks.

    Args:
      settings: The settings of the sampler.
      scene: Texts and keys.
      params: The network.
      requested: The digits; `NUM_DIGITS` is the empty text. shape=(N,)
    """
    size = settings.sampling.batch_size
    sampler = schedules.ddim(settings.sampling.steps, DIGITS_SCHEDULE)
    sampler = jax.tree.map(jnp.asarray, sampler)
    model, guidance = training.digits_network(settings.network), jnp.float32(settings.sampling.guidance)
    noise, empty = _noise(settings, scene, requested), scene.texts[NUM_DIGITS:]
    drawn = []
    for start in range(0, len(requested), size):
        # The last batch is filled up to the size of the others, so that it needs no compilation of its own.
        rows = np.minimum(np.arange(start, start + size), len(requested) - 1)
        context = scene.texts[requested[rows]]
        drawn.append(_sample(model, params, sampler, noise[rows], context, empty, guidance))
    return np.clip(unfold_latents(np.concatenate(drawn)[: len(requested)]), 0, 1)


def _noise(settings: DigitsSettings, scene: Scene, requested: np.ndarray) -> np.ndarray:
    """What the drawings begin with. shape=(N, 4, 4, 4)"""
    side = scene.train["image"].shape[1] // 2
    shape = (side, side, settings.network.channels)
    noise = np.empty((len(requested), *shape), np.float32)
    words = np.asarray(jax.random.key_data(scene.keys["noise"])).ravel().tolist()
    for digit in np.unique(requested):
        generator = np.random.default_rng([*words, int(digit)])
        number = int(np.sum(requested == digit))
        noise[requested == digit] = generator.standard_normal((number, *shape), np.float32)
    return noise


@functools.partial(jax.jit, static_argnames="model")
def _sample(
    model: Model,
    params: Params,
    sampler: schedules.Sampler,
    noise: jax.Array,
    context: jax.Array,
    empty: jax.Array,
    guidance: jax.Array,
) -> jax.Array:
    def predict(noisy: Noisy) -> jax.Array:
        return model.apply(params, {}, noisy, train=False)[0]

    return schedules.sample(sampler, schedules.guided(predict, context, empty, guidance), noise)
