"""Building blocks of the networks of Stable Diffusion v1, under the names that diffusers gives them.

Modules are Flax nnx: the path of a parameter is then the key of a diffusers file, except for the last word (`kernel`
and `scale` are `weight`) and the order of a kernel's axes, as `torch_weights` has it. Images are (N, H, W, C).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from scissorhands_jax.errors import InputError, check_choice
from scissorhands_jax.models.cpu_convolution import conv_general_dilated
from scissorhands_jax.models.layers import checkpoint_late

ATTENTIONS = ("xla", "cudnn", "chunked")
"""The implementations of attention."""
CHUNK = 1024
"""The number of queries that chunked attention takes at a time."""
_CUDNN_WIDTH = 128  # of a head

# Traced once for every shape, so that the outline of a network of a thousand arrays takes a moment only.
_KERNEL_INIT = jax.jit(nnx.initializers.lecun_normal(), static_argnums=(1, 2))


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a network computes. Its parameters are float32 in any case.

    Raises:
      InputError: The attention is not known, or `cudnn` is to compute in float32.
    """

    dtype: str = "float32"
    """The type of activations and products. Statistics of normalisations, softmax and sinusoids stay in float32."""
    remat: bool = False
    """Whether the backward pass computes the activations inside of each block again, instead of keeping them."""
    attention: str | None = None
    """The implementation of attention: `xla`, which holds all weights of a layer; `cudnn`, which does not, and needs
    bfloat16 or float16 and a GPU; `chunked`, which computes them for 1024 queries at a time and again in the backward
    pass. None leaves the choice to JAX. Levels may differ: `64=chunked,16=cudnn` is chunked where the sides of the
    image are 64 and more, cudnn down to 16, and JAX's choice below."""

    def __post_init__(self) -> None:
        for _, name in attention_levels(self.attention):
            check_choice("--attention", name, ATTENTIONS)
            if name == "cudnn" and self.dtype == "float32":
                raise InputError("--attention cudnn cannot compute in float32; add --dtype bfloat16")


if TYPE_CHECKING:
    _Rngs = nnx.Rngs  # what the layers of nnx say they take
else:
    _Rngs = object


class InitKeys(_Rngs):
    """Keys for initial parameters, in place of `nnx.Rngs`, whose counting with arrays takes seconds to trace."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self._key, self._count = rngs.params(), 0

    def params(self) -> jax.Array:
        """The next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


def conv(
    inputs: int, outputs: int, compute: Compute, rngs: InitKeys, *, size: int = 3, stride: int = 1, padding=None
) -> nnx.Conv:
    """A square convolution.

    Args:
      inputs: The number of channels that come in.
      outputs: The number of channels that come out.
      compute: The type that it computes in.
      rngs: The keys that its kernel is drawn with.
      size: The side of its window in pixels.
      stride: The number of pixels from one window to the next.
      padding: The padding as `jax.lax.conv_general_dilated` takes it. The default is `size // 2` on all sides.
    """
    padding = [(size // 2, size // 2)] * 2 if padding is None else padding
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=(stride, stride),
        padding=padding,
        dtype=compute.dtype,
        kernel_init=_KERNEL_INIT,
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def linear(inputs: int, outputs: int, compute: Compute, rngs: InitKeys, *, use_bias: bool = True) -> nnx.Linear:
    """A dense layer.

    Args:
      inputs: The number of features that come in.
      outputs: The number of features that come out.
      compute: The type that it computes in.
      rngs: The keys that its kernel is drawn with.
      use_bias: Whether it has a bias.
    """
    return nnx.Linear(inputs, outputs, use_bias=use_bias, dtype=compute.dtype, kernel_init=_KERNEL_INIT, rngs=rngs)


def group_norm(channels: int, groups: int, eps: float, compute: Compute, rngs: InitKeys) -> nnx.GroupNorm:
    """Group normalisation, whose variance is computed in a second pass around the mean, as in PyTorch.

    Args:
      channels: The number of channels.
      groups: The number of groups that they are divided into.
      eps: What is added to the variance.
      compute: The type that it computes in.
      rngs: The keys of the network, of which it draws nothing.
    """
    return nnx.GroupNorm(
        channels, num_groups=groups, epsilon=eps, dtype=compute.dtype, use_fast_variance=False, rngs=rngs
    )


def layer_norm(width: int, compute: Compute, rngs: InitKeys) -> nnx.LayerNorm:
    """Layer normalisation with PyTorch's epsilon."""
    return nnx.LayerNorm(width, epsilon=1e-5, dtype=compute.dtype, use_fast_variance=False, rngs=rngs)


@functools.cache
def attention_levels(attention: str | None) -> tuple[tuple[int, str], ...]:
    """From which number of pixels on an implementation of attention is used, the largest first.

    Args:
      attention: As `Compute.attention` has it.

    Raises:
      InputError: A level is no whole number.
    """
    levels = []
    for word in (attention or "").split(","):
        side, separator, name = word.rpartition("=")
        if separator and not side.strip().isdecimal():
            raise InputError(f"--attention has the level {side!r}; give the side of an image of latents, such as 64")
        if attention:
            levels.append((int(side) ** 2 if separator else 0, name.strip()))
    return tuple(sorted(levels, reverse=True))


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, heads: int, compute: Compute, *, causal: bool = False
) -> jax.Array:
    """Scaled dot-product attention.

    Args:
      query: What asks, shape=(N, T, C).
      key: What is compared with it, shape=(N, S, C).
      value: What is averaged, shape=(N, S, C).
      heads: The number of heads that C is divided among.
      compute: The implementation by the number T of queries.
      causal: Whether a query sees only what does not come after it.

    Returns:
      The averages, shape=(N, T, C).
    """
    query, key, value = (x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value))
    pixels = query.shape[1]
    chosen = next((name for least, name in attention_levels(compute.attention) if pixels >= least), None)
    if chosen == "cudnn" and (query.shape[-1] > _CUDNN_WIDTH or causal):
        chosen = None  # the VAE's one head is too wide for it
    if chosen == "chunked":
        out = _attend_in_chunks(query, key, value) if not causal else _attend(query, key, value, causal=True)
    else:
        out = jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation=chosen)  # type: ignore[arg-type]
    return out.reshape(*out.shape[:2], -1)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool = False) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation="xla")


def _attend_in_chunks(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention of a part of the queries at a time, whose weights are computed again in the backward pass."""
    count, length, *rest = query.shape
    if length * key.shape[1] <= CHUNK**2:
        return _attend(query, key, value)
    parts = next(parts for parts in range(-(-length // CHUNK), length + 1) if length % parts == 0)
    chunks = query.reshape(count, parts, length // parts, *rest).swapaxes(0, 1)
    part = jax.checkpoint(lambda chunk, key, value: _attend(chunk, key, value))
    out = jax.lax.map(lambda chunk: part(chunk, key, value), chunks)
    return out.swapaxes(0, 1).reshape(query.shape)


def run_block(block: nnx.Module, compute: Compute, *args: jax.Array | None) -> jax.Array:
    """`block(*args)`, rematerialised if `compute` says so."""
    if not compute.remat:
        return block(*args)
    graph, state = nnx.split(block)
    recompute = checkpoint_late if jax.default_backend() == "cpu" else jax.checkpoint
    return recompute(lambda state, *args: nnx.merge(graph, state)(*args))(state, *args)


def sinusoids(timesteps: jax.Array, width: int) -> jax.Array:
    """Cosines, then sines, of timesteps at geometric frequencies from 1 to 1/10000. shape=(N, width), dtype=float32"""
    frequencies = jnp.exp(jnp.arange(width // 2, dtype=jnp.float32) * (-jnp.log(10000.0) / (width // 2)))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ResnetBlock(nnx.Module):
    """Normalisation, SiLU and convolution, twice, added to the input.

    In between, the embedding of the timestep is added if there is one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        groups: int,
        eps: float,
        time_width: int | None,
        compute: Compute,
        rngs: InitKeys,
    ) -> None:
        self.norm1 = group_norm(inputs, groups, eps, compute, rngs)
        self.conv1 = conv(inputs, outputs, compute, rngs)
        self.time_emb_proj = None if time_width is None else linear(time_width, outputs, compute, rngs)
        self.norm2 = group_norm(outputs, groups, eps, compute, rngs)
        self.conv2 = conv(outputs, outputs, compute, rngs)
        self.conv_shortcut = None if inputs == outputs else conv(inputs, outputs, compute, rngs, size=1)

    def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
        """`x` has the shape (N, H, W, inputs), and `time` (N, time_width)."""
        h = self.conv1(nnx.silu(self.norm1(x)))
        if self.time_emb_proj is not None and time is not None:
            h = h + self.time_emb_proj(nnx.silu(time))[:, None, None, :]
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class DownsampleConv(nnx.Module):
    """Halves height and width by a convolution. `padding` is per side of an axis: (1, 1), or (0, 1) in the VAE."""

    def __init__(self, channels: int, padding: tuple[int, int], compute: Compute, rngs: InitKeys) -> None:
        self.conv = conv(channels, channels, compute, rngs, stride=2, padding=[padding] * 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class UpsampleConv(nnx.Module):
    """Doubles height and width by repeating pixels, then convolves."""

    def __init__(self, channels: int, compute: Compute, rngs: InitKeys) -> None:
        self.conv = conv(channels, channels, compute, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
