"""A small residual network that learns CIFAR-10 in a few epochs, as the speed records on it do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from scissorhands_jax.errors import InputError
from scissorhands_jax.models.layers import TORCH_LINEAR, BatchNorm, as_float, conv, rematerialized
from scissorhands_jax.models.whitening import Whiten


def identity_first(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Kernels (height, width, in, out) whose first filters pass the input channels on; the others are PyTorch's.

    So a deep network begins with a path from its input to its head (hlb-CIFAR10, airbench).
    """
    height, width, before, after = shape
    kernel = TORCH_LINEAR(key, shape, dtype)
    count = min(before, after)
    copies = jnp.zeros((height, width, before, count), dtype).at[height // 2, width // 2].set(jnp.eye(before, count))
    return kernel.at[..., :count].set(copies)


def halve(x: jax.Array) -> jax.Array:
    """A 2x2 max pool of stride 2, shape (N, H // 2, W // 2, C); a last odd row or column is left out.

    Its gradient is six times as fast on a CPU as that of `nn.max_pool`, which has to search the windows again.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = jnp.maximum(x[:, 0:height:2, :width], x[:, 1:height:2, :width])
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


class Group(nn.Module):
    """Convolution, 2x2 max pool, normalisation, GELU; with `residual` two more layers around a shortcut."""

    width: int
    residual: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def layer(x, number, *, pool=False):
            x = conv(self.width, 3, kernel_init=identity_first, dtype=self.dtype, name=f"conv{number}")(x)
            x = halve(x) if pool else x
            return nn.gelu(BatchNorm(name=f"bn{number}")(x, train=train))

        x = layer(x, 1, pool=True)
        return x + layer(layer(x, 2), 3) if self.residual else x


class ResNet9(nn.Module):
    """Whitening, groups that halve the image, a global max pool and a linear head (after Page, and Jordan, 2024).

    The defaults have nine layers with weights. Its first layer, `whiten`, is fitted to the training images by
    `retrain`; it takes images in [0, 1] as they are, so the network has no other normalisation.

    Attributes:
      num_classes: length of the logits.
      widths: channels of the groups `layer1`, `layer2`, ...
      residual: which groups have a residual branch.
      head_scale: factor of the logits, which keeps the first ones small at high learning rates.
      dtype: of the computation up to the pooled features; parameters, statistics and logits are float32.
      remat: keep no more than the input of each group for the backward pass, which computes the rest again.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 256, 256)
    residual: tuple[bool, ...] = (True, False, True)
    head_scale: float = 0.125
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits, shape (N, num_classes), of images, shape (N, H, W, C), floating point in [0, 1] or uint8.

        Raises:
          InputError: the images cannot be used or are too small to be halved in all groups, or options do not fit.
        """
        if images.ndim != 4:
            raise InputError(f"images have shape {images.shape}; an image network takes (N, H, W, C)")
        least = 2 ** len(self.widths) + 1
        if min(images.shape[1:3]) < least:
            raise InputError(f"images are {images.shape[1]}x{images.shape[2]}; this network needs {least}x{least}")
        if len(self.widths) != len(self.residual):
            raise InputError(f"{len(self.widths)} widths but {len(self.residual)} residual flags; give one per group")
        dtype = jnp.dtype(self.dtype)
        x = nn.gelu(Whiten(dtype=dtype, name="whiten")(as_float(images)))
        for index, (width, residual) in enumerate(zip(self.widths, self.residual, strict=True)):
            x = rematerialized(Group, self.remat)(width, residual, dtype, name=f"layer{index + 1}")(x, train)
        x = jnp.max(x, axis=(1, 2)).astype(jnp.promote_types(dtype, jnp.float32))
        head = nn.Dense(self.num_classes, use_bias=False, kernel_init=TORCH_LINEAR, dtype=x.dtype, name="head")
        return self.head_scale * head(x)
