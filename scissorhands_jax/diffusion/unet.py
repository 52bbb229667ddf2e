"""The UNet of Stable Diffusion v1, which predicts the noise in latents (diffusers' UNet2DConditionModel)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from scissorhands_jax.diffusion.layers import (
    Compute,
    DownsampleConv,
    InitKeys,
    ResnetBlock,
    UpsampleConv,
    attend,
    conv,
    group_norm,
    layer_norm,
    linear,
    run_block,
    sinusoids,
)
from scissorhands_jax.errors import InputError

_TRANSFORMER_EPS = 1e-6  # in the normalisation before attention; all other normalisations have 1e-5


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The sizes of the UNet. The defaults are Stable Diffusion v1's, 859,520,964 parameters in 686 arrays."""

    channels: int = 4
    """The channels of the latents, and of the noise that is predicted."""
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    """The channels of the levels. Each level except the last halves height and width."""
    attention: tuple[bool, ...] = (True, True, True, False)
    """For each level, whether its blocks attend to the prompt."""
    layers_per_block: int = 2
    """The number of residual blocks in a level on the way down; on the way up there is one more."""
    heads: int = 8
    """The number of attention heads, on every level."""
    context_width: int = 768
    """The width of the prompt's embeddings."""
    groups: int = 32
    """The groups of group normalisation."""
    middle: bool = True
    """Whether there are blocks between the way down and the way up, which some distilled networks lack."""
    side: int = 64
    """The height and width of the latents that it was trained with. Nothing here depends on it; files keep it."""


class Noisy(NamedTuple):
    """What the UNet sees."""

    latents: jax.Array
    """Noisy latents, whose H and W can be halved once for each level except the last. shape=(N, H, W, channels)"""
    timesteps: jax.Array
    """Numbers in [0, 1000), not necessarily whole. shape=(N,)"""
    context: jax.Array
    """The embeddings of the prompts. shape=(N, T, context_width)"""


class Attention(nnx.Module):
    """Attention of `x` to `context`, or to itself."""

    def __init__(self, width: int, context_width: int, heads: int, compute: Compute, rngs: InitKeys) -> None:
        self.heads, self.compute = heads, compute
        self.to_q = linear(width, width, compute, rngs, use_bias=False)
        self.to_k = linear(context_width, width, compute, rngs, use_bias=False)
        self.to_v = linear(context_width, width, compute, rngs, use_bias=False)
        self.to_out = nnx.List([linear(width, width, compute, rngs)])

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        out = attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads, self.compute)
        return self.to_out[0](out)


class GatedLinear(nnx.Module):
    """GEGLU: one half of a linear map times the exact GELU of the other."""

    def __init__(self, width: int, hidden: int, compute: Compute, rngs: InitKeys) -> None:
        self.proj = linear(width, 2 * hidden, compute, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * nnx.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """A gated layer of four times the width, and one back. In diffusers, `net.1` is a dropout without parameters."""

    def __init__(self, width: int, compute: Compute, rngs: InitKeys) -> None:
        self.net = nnx.Dict(
            {"0": GatedLinear(width, 4 * width, compute, rngs), "2": linear(4 * width, width, compute, rngs)}
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.net["2"](self.net["0"](x))


class TransformerBlock(nnx.Module):
    """Attention to the image, attention to the prompt, and a feed-forward layer.

    Each of them follows a normalisation and is added to its input.
    """

    def __init__(self, width: int, context_width: int, heads: int, compute: Compute, rngs: InitKeys) -> None:
        self.norm1 = layer_norm(width, compute, rngs)
        self.attn1 = Attention(width, width, heads, compute, rngs)
        self.norm2 = layer_norm(width, compute, rngs)
        self.attn2 = Attention(width, context_width, heads, compute, rngs)
        self.norm3 = layer_norm(width, compute, rngs)
        self.ff = FeedForward(width, compute, rngs)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nnx.Module):
    """A transformer block over the pixels of an image."""

    def __init__(self, width: int, config: UNetConfig, compute: Compute, rngs: InitKeys) -> None:
        self.norm = group_norm(width, config.groups, _TRANSFORMER_EPS, compute, rngs)
        self.proj_in = conv(width, width, compute, rngs, size=1)
        self.transformer_blocks = nnx.List([TransformerBlock(width, config.context_width, config.heads, compute, rngs)])
        self.proj_out = conv(width, width, compute, rngs, size=1)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        pixels = self.proj_in(self.norm(x)).reshape(x.shape[0], -1, x.shape[-1])
        pixels = self.transformer_blocks[0](pixels, context)
        return x + self.proj_out(pixels.reshape(x.shape))


class TimeEmbedding(nnx.Module):
    """Two linear maps with a SiLU in between."""

    def __init__(self, inputs: int, width: int, compute: Compute, rngs: InitKeys) -> None:
        self.linear_1 = linear(inputs, width, compute, rngs)
        self.linear_2 = linear(width, width, compute, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(nnx.silu(self.linear_1(x)))


class UNetLevel(nnx.Module):
    """The blocks of one level: residual blocks, optionally with attention, and optionally a change of resolution."""

    def __init__(
        self,
        resnets: list[tuple[int, int]],
        config: UNetConfig,
        compute: Compute,
        rngs: InitKeys,
        *,
        attention: int,
        down: bool = False,
        up: bool = False,
    ) -> None:
        width = resnets[-1][1]
        self.resnets = nnx.List(
            [
                ResnetBlock(
                    *sizes,
                    groups=config.groups,
                    eps=1e-5,
                    time_width=4 * config.widths[0],
                    compute=compute,
                    rngs=rngs,
                )
                for sizes in resnets
            ]
        )
        self.attentions = nnx.List([SpatialTransformer(width, config, compute, rngs) for _ in range(attention)])
        self.downsamplers = nnx.List([DownsampleConv(width, (1, 1), compute, rngs)] if down else [])
        self.upsamplers = nnx.List([UpsampleConv(width, compute, rngs)] if up else [])


class UNet(nnx.Module):
    """Predicts the noise in latents at a timestep, given a prompt.

    Args:
      config: The sizes.
      compute: How it computes.
      rngs: The random streams for initial parameters.
    """

    def __init__(self, config: UNetConfig, compute: Compute, *, rngs: nnx.Rngs) -> None:
        self.config, self.compute, keys = config, compute, InitKeys(rngs)
        widths, count = config.widths, config.layers_per_block
        last = len(widths) - 1
        self.conv_in = conv(config.channels, widths[0], compute, keys)
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0], compute, keys)

        def level(
            resnets: list[tuple[int, int]], *, attention: bool, down: bool = False, up: bool = False
        ) -> UNetLevel:
            number = len(resnets) if attention else 0
            return UNetLevel(resnets, config, compute, keys, attention=number, down=down, up=up)

        down_blocks, skips, width = [], [widths[0]], widths[0]
        for index, outputs in enumerate(widths):
            resnets = [(width if first else outputs, outputs) for first in (True, *[False] * (count - 1))]
            down_blocks.append(level(resnets, attention=config.attention[index], down=index < last))
            skips += [outputs] * (count + (index < last))
            width = outputs
        self.down_blocks = nnx.List(down_blocks)
        if config.middle:
            self.mid_block = UNetLevel([(width, width)] * 2, config, compute, keys, attention=1)
        up_blocks = []
        for index, outputs in reversed(list(enumerate(widths))):
            resnets = []
            for _ in range(count + 1):
                resnets.append((width + skips.pop(), outputs))
                width = outputs
            up_blocks.append(level(resnets, attention=config.attention[index], up=index > 0))
        self.up_blocks = nnx.List(up_blocks)
        self.conv_norm_out = group_norm(widths[0], config.groups, 1e-5, compute, keys)
        self.conv_out = conv(widths[0], config.channels, compute, keys)

    def __call__(self, inputs: Noisy) -> jax.Array:
        """The predicted noise. shape=(N, H, W, channels), dtype=float32

        Raises:
          InputError: The height or width cannot be halved often enough.
        """
        dtype, factor = self.compute.dtype, 2 ** (len(self.config.widths) - 1)
        if any(size % factor for size in inputs.latents.shape[1:3]):
            raise InputError(
                f"latents have shape {inputs.latents.shape}; height and width must be multiples of {factor}"
            )
        context = inputs.context.astype(dtype)
        time = self.time_embedding(sinusoids(inputs.timesteps, self.config.widths[0]).astype(dtype))

        def run(block: nnx.Module, x: jax.Array, other: jax.Array) -> jax.Array:
            return run_block(block, self.compute, x, other)

        x = self.conv_in(inputs.latents.astype(dtype))
        skips = [x]
        for level in self.down_blocks:
            for index, resnet in enumerate(level.resnets):
                x = run(resnet, x, time)
                if len(level.attentions) > 0:
                    x = run(level.attentions[index], x, context)
                skips.append(x)
            for downsample in level.downsamplers:
                x = downsample(x)
                skips.append(x)
        if self.config.middle:
            first, second = self.mid_block.resnets
            x = run(second, run(self.mid_block.attentions[0], run(first, x, time), context), time)
        for level in self.up_blocks:
            for index, resnet in enumerate(level.resnets):
                x = run(resnet, jnp.concatenate([x, skips.pop()], axis=-1), time)
                if len(level.attentions) > 0:
                    x = run(level.attentions[index], x, context)
            for upsample in level.upsamplers:
                x = upsample(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(jnp.float32)
