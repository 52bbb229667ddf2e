"""The three networks of Stable Diffusion v1 as `Model`s.

Parameters are nested dicts; names joined by dots are diffusers' keys. There is no model state.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import nnx, traverse_util

from scissorhands_jax.base import Model, Params
from scissorhands_jax.diffusion.layers import Compute
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule
from scissorhands_jax.diffusion.text import TextConfig, TextEncoder
from scissorhands_jax.diffusion.unet import UNet, UNetConfig
from scissorhands_jax.diffusion.vae import Decoder, Encoder, VAEConfig
from scissorhands_jax.errors import InputError, check_choice
from scissorhands_jax.models import from_nnx

Part = Literal["unet", "vae", "text"]
PARTS: tuple[Part, ...] = ("unet", "vae", "text")
PART_TITLES: dict[Part, str] = {"unet": "UNet", "vae": "VAE", "text": "text encoder"}
"""What people call the networks."""
PartConfig = UNetConfig | VAEConfig | TextConfig
"""The sizes of one network."""
FLOAT32 = Compute()


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The sizes of the three networks, and the UNet's schedule. The defaults are Stable Diffusion v1's."""

    unet: UNetConfig = dataclasses.field(default_factory=UNetConfig)
    vae: VAEConfig = dataclasses.field(default_factory=VAEConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    schedule: Schedule = SD_V1_SCHEDULE
    """The noise that the UNet was trained with, and what it predicts."""


SD_V1 = DiffusionConfig()
TINY = DiffusionConfig(
    UNetConfig(
        widths=(32, 64), attention=(True, False), layers_per_block=1, heads=4, context_width=32, groups=8, side=8
    ),
    VAEConfig(widths=(16, 32), layers_per_block=1, groups=8),
    TextConfig(vocabulary=514, width=32, layers=2, heads=4, hidden=128),
)
"""Small networks for tests and trials, with every kind of block: 1,005,307 parameters."""

CONFIGS = {"sd-v1": SD_V1, "tiny": TINY}


def named_config(name: str) -> DiffusionConfig:
    """The sizes with a name in CONFIGS.

    Raises:
      InputError: There are no sizes of that name.
    """
    check_choice("--config", name, CONFIGS)
    return CONFIGS[name]


@functools.cache
def unet(config: UNetConfig = SD_V1.unet, compute: Compute = FLOAT32) -> Model:
    """The UNet, which predicts the noise in a `Noisy`. Equal arguments give the same value, so that code is shared."""
    return from_nnx(lambda rngs: UNet(config, compute, rngs=rngs))


@functools.cache
def vae_encoder(config: VAEConfig = SD_V1.vae, compute: Compute = FLOAT32) -> Model:
    """From images in [-1, 1] to `Moments` of latents without `config.scaling`. It takes the params of the VAE."""
    return from_nnx(lambda rngs: Encoder(config, compute, rngs=rngs))


@functools.cache
def vae_decoder(config: VAEConfig = SD_V1.vae, compute: Compute = FLOAT32) -> Model:
    """From latents, divided by `config.scaling`, to images roughly in [-1, 1]. It takes the params of the VAE."""
    return from_nnx(lambda rngs: Decoder(config, compute, rngs=rngs))


@functools.cache
def text_encoder(config: TextConfig = SD_V1.text, compute: Compute = FLOAT32) -> Model:
    """From token ids of shape (N, T) to embeddings of shape (N, T, width)."""
    return from_nnx(lambda rngs: TextEncoder(config, compute, rngs=rngs))


@functools.cache
def outline(part: Part, config: DiffusionConfig = SD_V1) -> Params:
    """Names, shapes and types of a network's parameters: a nested dict of `jax.ShapeDtypeStruct`s.

    Raises:
      InputError: The part is not one of `PARTS`.
    """
    modules: dict[Part, dict[Any, Any]] = {
        "unet": {UNet: config.unet},
        "vae": {Encoder: config.vae, Decoder: config.vae},
        "text": {TextEncoder: config.text},
    }
    if part not in modules:
        raise InputError(f"there is no network {part!r}; choose one of {', '.join(PARTS)}")
    return module_outline(
        *(lambda rngs, kind=kind, sizes=sizes: kind(sizes, FLOAT32, rngs=rngs) for kind, sizes in modules[part].items())
    )


def module_outline(*makes: Callable[[nnx.Rngs], nnx.Module]) -> Params:
    """Names, shapes and types of the parameters of modules in one tree: a nested dict of `jax.ShapeDtypeStruct`s."""
    leaves: dict[tuple[str, ...], jax.ShapeDtypeStruct] = {}
    for make in makes:
        module = nnx.eval_shape(lambda make=make: make(nnx.Rngs(0)))
        state = nnx.as_pure(nnx.state(module, nnx.Param))
        leaves |= {tuple(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    return traverse_util.unflatten_dict(leaves)


def init_part(part: Part, config: DiffusionConfig, key: jax.Array) -> Params:
    """Random parameters of a network.

    Raises:
      InputError: The part is not one of `PARTS`.
    """
    if part == "unet":
        return unet(config.unet).init(key)[0]
    if part == "text":
        return text_encoder(config.text).init(key)[0]
    if part == "vae":
        first, second = jax.random.split(key)
        return vae_encoder(config.vae).init(first)[0] | vae_decoder(config.vae).init(second)[0]
    raise InputError(f"there is no network {part!r}; choose one of {', '.join(PARTS)}")
