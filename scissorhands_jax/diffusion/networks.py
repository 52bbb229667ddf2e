"""The three networks of Stable Diffusion v1 as `Model`s, and the loss that trains the UNet.

Parameters are nested dicts; names joined by dots are diffusers' keys. There is no model state.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from scissorhands_jax.base import Key, Model, ModelState, Params, PyTree, Scalar, StatefulLossFn
from scissorhands_jax.diffusion.layers import Compute
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule, add_noise
from scissorhands_jax.diffusion.text import TextConfig, TextEncoder
from scissorhands_jax.diffusion.unet import Noisy, UNet, UNetConfig
from scissorhands_jax.diffusion.vae import Decoder, Encoder, VAEConfig
from scissorhands_jax.errors import InputError
from scissorhands_jax.models import from_nnx

Part = Literal["unet", "vae", "text"]
PARTS: tuple[Part, ...] = ("unet", "vae", "text")
FLOAT32 = Compute()


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the three networks; the defaults are Stable Diffusion v1's."""

    unet: UNetConfig = dataclasses.field(default_factory=UNetConfig)
    vae: VAEConfig = dataclasses.field(default_factory=VAEConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)


SD_V1 = Config()
TINY = Config(
    UNetConfig(widths=(32, 64), attention=(True, False), layers_per_block=1, heads=4, context_width=32, groups=8),
    VAEConfig(widths=(16, 32), layers_per_block=1, groups=8),
    TextConfig(vocabulary=99, length=11, width=32, layers=2, heads=4),
)
"""For tests and trials: every kind of block, 989,915 parameters."""

CONFIGS = {"sd-v1": SD_V1, "tiny": TINY}


@functools.cache
def unet(config: UNetConfig = SD_V1.unet, compute: Compute = FLOAT32) -> Model:
    """Predicts the noise in a `Noisy`. Equal arguments give one value, so that compiled code is shared."""
    return from_nnx(lambda rngs: UNet(config, compute, rngs=rngs))


@functools.cache
def vae_encoder(config: VAEConfig = SD_V1.vae, compute: Compute = FLOAT32) -> Model:
    """Images in [-1, 1] to `Moments` of latents, to be multiplied by `config.scaling`; takes the params of the VAE."""
    return from_nnx(lambda rngs: Encoder(config, compute, rngs=rngs))


@functools.cache
def vae_decoder(config: VAEConfig = SD_V1.vae, compute: Compute = FLOAT32) -> Model:
    """Latents, divided by `config.scaling`, to images in about [-1, 1]; takes the params of the VAE."""
    return from_nnx(lambda rngs: Decoder(config, compute, rngs=rngs))


@functools.cache
def text_encoder(config: TextConfig = SD_V1.text, compute: Compute = FLOAT32) -> Model:
    """Token ids, shape (N, T), to embeddings, shape (N, T, width)."""
    return from_nnx(lambda rngs: TextEncoder(config, compute, rngs=rngs))


@functools.cache
def outline(part: Part, config: Config = SD_V1) -> Params:
    """Names, shapes and types of a network's parameters: a nested dict of `jax.ShapeDtypeStruct`s.

    Raises:
      InputError: the part is not one of `PARTS`.
    """
    modules = {
        "unet": {UNet: config.unet},
        "vae": {Encoder: config.vae, Decoder: config.vae},
        "text": {TextEncoder: config.text},
    }
    if part not in modules:
        raise InputError(f"there is no network {part!r}; choose one of {', '.join(PARTS)}")
    leaves = {}
    for kind, sizes in modules[part].items():
        module = nnx.eval_shape(lambda kind=kind, sizes=sizes: kind(sizes, FLOAT32, rngs=nnx.Rngs(0)))
        state = nnx.as_pure(nnx.state(module, nnx.Param))
        leaves |= {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    return traverse_util.unflatten_dict(leaves)


def init(part: Part, config: Config, key: jax.Array) -> Params:
    """Random parameters of a network.

    Raises:
      InputError: the part is not one of `PARTS`.
    """
    if part == "unet":
        return unet(config.unet).init(key)[0]
    if part == "text":
        return text_encoder(config.text).init(key)[0]
    if part == "vae":
        first, second = jax.random.split(key)
        return vae_encoder(config.vae).init(first)[0] | vae_decoder(config.vae).init(second)[0]
    raise InputError(f"there is no network {part!r}; choose one of {', '.join(PARTS)}")


def noise_loss(model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> StatefulLossFn:
    """The loss of diffusion models: the mean of (noise - predicted noise)^2 (Ho et al. 2020, eq. 14).

    A batch is a dict of `latents`, shape (N, H, W, C), scaled, and `context`, shape (N, T, D). Timesteps, uniform over
    the schedule, and standard normal noise come from the key of the call; without one from key 0, so that the loss is a
    function of the parameters alone.

    Args:
      model: takes a `Noisy` and returns the noise.
      schedule: of the forward process.
    """
    return _NoiseLoss(model, schedule)


@dataclasses.dataclass(frozen=True)
class _NoiseLoss:
    """A value that equals others made of the same network, so that they share compiled code."""

    model: Model
    schedule: Schedule

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]:
        latents, context = batch["latents"], batch["context"]
        step_key, noise_key = jax.random.split(jax.random.key(0) if key is None else key)
        timesteps = jax.random.randint(step_key, latents.shape[:1], 0, self.schedule.num_steps)
        noise = jax.random.normal(noise_key, latents.shape, jnp.float32)
        noisy = Noisy(add_noise(self.schedule, latents, noise, timesteps), timesteps, context)
        predicted, model_state = self.model.apply(params, model_state, noisy, train=train, key=key)
        return jnp.mean(jnp.square(predicted - noise)), model_state
