"""The variational autoencoder of Stable Diffusion v1, in two halves (diffusers' AutoencoderKL).

An image of 8h x 8w pixels becomes latents of h x w. The two halves have disjoint names, so that one dict of parameters
serves both.
"""

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
    linear,
    run_block,
)

_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The sizes of the autoencoder. The defaults are Stable Diffusion v1's, 83,653,863 parameters."""

    channels: int = 3
    """The channels of images."""
    latent_channels: int = 4
    """The channels of latents."""
    widths: tuple[int, ...] = (128, 256, 512, 512)
    """The channels of the levels. Each level except the last halves height and width."""
    layers_per_block: int = 2
    """The number of residual blocks in a level of the encoder; a level of the decoder has one more."""
    groups: int = 32
    """The groups of group normalisation."""
    scaling: float = 0.18215
    """The UNet's latents are the encoder's times this, which makes their variance about 1."""

    @property
    def factor(self) -> int:
        """The height and width of a latent in pixels."""
        return 2 ** (len(self.widths) - 1)


class Moments(NamedTuple):
    """The normal distribution of an image's latents. shapes=(N, h, w, latent_channels)"""

    mean: jax.Array
    log_variance: jax.Array


class PixelAttention(nnx.Module):
    """Attention of all pixels to each other with one head, added to the input."""

    def __init__(self, width: int, config: VAEConfig, compute: Compute, rngs: InitKeys) -> None:
        self.compute = compute
        self.group_norm = group_norm(width, config.groups, _EPS, compute, rngs)
        self.to_q = linear(width, width, compute, rngs)
        self.to_k = linear(width, width, compute, rngs)
        self.to_v = linear(width, width, compute, rngs)
        self.to_out = nnx.List([linear(width, width, compute, rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        pixels = self.group_norm(x).reshape(x.shape[0], -1, x.shape[-1])
        out = attend(self.to_q(pixels), self.to_k(pixels), self.to_v(pixels), 1, self.compute)
        return x + self.to_out[0](out).reshape(x.shape)


class VAELevel(nnx.Module):
    """The blocks of one level, or of the middle, which has attention between its two blocks."""

    def __init__(
        self,
        resnets: list[tuple[int, int]],
        config: VAEConfig,
        compute: Compute,
        rngs: InitKeys,
        *,
        attention: bool = False,
        down: bool = False,
        up: bool = False,
    ) -> None:
        self.compute, width = compute, resnets[-1][1]
        self.resnets = nnx.List(
            [
                ResnetBlock(*sizes, groups=config.groups, eps=_EPS, time_width=None, compute=compute, rngs=rngs)
                for sizes in resnets
            ]
        )
        self.attentions = nnx.List([PixelAttention(width, config, compute, rngs)] if attention else [])
        self.downsamplers = nnx.List([DownsampleConv(width, (0, 1), compute, rngs)] if down else [])
        self.upsamplers = nnx.List([UpsampleConv(width, compute, rngs)] if up else [])

    def __call__(self, x: jax.Array) -> jax.Array:
        first, *others = self.resnets
        for block in (first, *self.attentions, *others, *self.downsamplers, *self.upsamplers):
            x = run_block(block, self.compute, x)
        return x


class _Coder(nnx.Module):
    """What both halves have in common: the first and the last convolution, and the middle, which is the widest part."""

    def __init__(self, config: VAEConfig, inputs: int, outputs: int, first: int, last: int, compute, rngs) -> None:
        self.conv_in = conv(inputs, first, compute, rngs)
        widest = config.widths[-1]
        self.mid_block = VAELevel([(widest, widest)] * 2, config, compute, rngs, attention=True)
        self.conv_norm_out = group_norm(last, config.groups, _EPS, compute, rngs)
        self.conv_out = conv(last, outputs, compute, rngs)

    def finish(self, x: jax.Array) -> jax.Array:
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class _Encoder(_Coder):
    def __init__(self, config: VAEConfig, compute: Compute, rngs: InitKeys) -> None:
        widths, last = config.widths, len(config.widths) - 1
        super().__init__(config, config.channels, 2 * config.latent_channels, widths[0], widths[-1], compute, rngs)
        blocks, width = [], widths[0]
        for index, outputs in enumerate(widths):
            resnets = [(width, outputs)] + [(outputs, outputs)] * (config.layers_per_block - 1)
            blocks.append(VAELevel(resnets, config, compute, rngs, down=index < last))
            width = outputs
        self.down_blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.finish(self.mid_block(x))


class _Decoder(_Coder):
    def __init__(self, config: VAEConfig, compute: Compute, rngs: InitKeys) -> None:
        widths = config.widths[::-1]
        super().__init__(config, config.latent_channels, config.channels, widths[0], widths[-1], compute, rngs)
        blocks, width = [], widths[0]
        for index, outputs in enumerate(widths):
            resnets = [(width, outputs)] + [(outputs, outputs)] * config.layers_per_block
            blocks.append(VAELevel(resnets, config, compute, rngs, up=index < len(widths) - 1))
            width = outputs
        self.up_blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.finish(x)


class Encoder(nnx.Module):
    """From images to the distribution of their latents."""

    def __init__(self, config: VAEConfig, compute: Compute, *, rngs: nnx.Rngs) -> None:
        self.compute, keys = compute, InitKeys(rngs)
        self.encoder = _Encoder(config, compute, keys)
        self.quant_conv = conv(2 * config.latent_channels, 2 * config.latent_channels, compute, keys, size=1)

    def __call__(self, images: jax.Array) -> Moments:
        """The moments of the latents, without scaling, of images in [-1, 1] of shape (N, H, W, channels)."""
        moments = self.quant_conv(self.encoder(images.astype(self.compute.dtype))).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Moments(mean, jnp.clip(log_variance, -30.0, 20.0))


class Decoder(nnx.Module):
    """From latents to images."""

    def __init__(self, config: VAEConfig, compute: Compute, *, rngs: nnx.Rngs) -> None:
        self.compute, keys = compute, InitKeys(rngs)
        self.decoder = _Decoder(config, compute, keys)
        self.post_quant_conv = conv(config.latent_channels, config.latent_channels, compute, keys, size=1)

    def __call__(self, latents: jax.Array) -> jax.Array:
        """The images, roughly in [-1, 1], of latents without scaling. shape=(N, H, W, channels)"""
        return self.decoder(self.post_quant_conv(latents.astype(self.compute.dtype))).astype(jnp.float32)
