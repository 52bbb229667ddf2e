"""A small residual network that learns CIFAR-10 in a few epochs, as the speed records on it do."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from scissorhands_jax.base import Dataset, ModelState
from scissorhands_jax.errors import InputError
from scissorhands_jax.models.layers import TORCH_LINEAR, BatchNorm, as_float, rematerialized, torch_conv

_WHITEN = "whiten"
_NUM_IMAGES, _CHUNK, _EPS = 5_000, 500, 5e-4


class Whiten(nn.Module):
    """A linear map of all patches, that is a convolution without padding.

    Its filters are the principal axes of patches, each with either sign. Mean and kernel lie in the collection
    `constants`, so nothing trains, trims or projects them, and they are saved with the network. Until `fit_whitening`
    sets them the filters copy the pixels. A network names the layer `whiten`.

    Variables: `constants` mean, shape (C,), kernel, shape (size^2 C, 2 size^2 C); `params` bias, one number per filter.

    Attributes:
      size: height and width of a patch.
      dtype: of the result.
    """

    size: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images: (N, H, W, C) floats; returns (N, H - size + 1, W - size + 1, 2 * size^2 * C)"""
        channels = images.shape[-1]
        count = self.size**2 * channels
        mean = self.variable("constants", "mean", lambda: jnp.full((channels,), 0.5, jnp.float32))
        kernel = self.variable("constants", "kernel", lambda: jnp.asarray(_both_signs(np.eye(count))))
        bias = self.param("bias", nn.initializers.zeros, (2 * count,), jnp.float32)
        dtype = jnp.dtype(self.dtype)
        # As a matrix product, which a CPU does five times as fast as so small a convolution.
        patches = _patches(images - mean.value.reshape(1, 1, 1, -1), self.size).astype(dtype)
        return patches @ kernel.value.astype(dtype) + bias.astype(dtype).reshape(1, 1, 1, -1)


def fit_whitening(model_state: ModelState, examples: Dataset) -> ModelState:
    """The state of a network whose layer `whiten`, if it has one, is fitted to images; any other state as it is.

    Filters are v / sqrt(e + eps), for the eigenvectors v and eigenvalues e of the covariance of all patches of 5,000
    images, spread evenly over the data set, so that patches then have the identity as their covariance. eps is 5e-4 of
    the mean variance of a patch's values, so that what has less variance counts as noise.

    Args:
      model_state: The state of the network, as `Model.init` returns it.
      examples: Images in "image", floats in [0, 1] or uint8, shape=(N, H, W, C). They are only read where the network
        has the layer.

    References:
      Page, "How to train your ResNet", 2018; Jordan, 2024, arXiv 2404.00498, section 3.1.
    """
    constants = model_state.get("constants", {}) if isinstance(model_state, dict) else {}
    if _WHITEN not in constants:
        return model_state
    images = examples["image"]
    values_per_patch, channels = constants[_WHITEN]["kernel"].shape[0], images.shape[-1]
    size = math.isqrt(values_per_patch // channels)
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), _NUM_IMAGES)).astype(np.int64))
    mean, moment, count = np.zeros(values_per_patch), np.zeros((values_per_patch,) * 2), 0
    for part in np.array_split(chosen, -(-len(chosen) // _CHUNK)):
        patches = _patches(as_float(jnp.asarray(images[part])).astype(jnp.float32), size)
        rows = np.asarray(patches, np.float64).reshape(-1, values_per_patch)
        mean, moment, count = mean + rows.sum(axis=0), moment + rows.T @ rows, count + len(rows)
    # One mean per channel, so that a flat image of the mean colour is black wherever a patch is taken.
    colour = (mean / count).reshape(size**2, channels).mean(axis=0)
    cross = np.outer(mean / count, np.tile(colour, size**2))
    covariance = moment / count - cross - cross.T + np.outer(*[np.tile(colour, size**2)] * 2)
    values, vectors = np.linalg.eigh(covariance)
    filters = vectors / np.sqrt(np.maximum(values, 0) + _EPS * max(values.mean(), np.finfo(np.float32).tiny))
    fitted = {"mean": jnp.asarray(colour, jnp.float32), "kernel": jnp.asarray(_both_signs(filters))}
    return {**model_state, "constants": {**constants, _WHITEN: fitted}}


def _patches(images: jax.Array, size: int) -> jax.Array:
    """All patches, flat, in the order (row, column, channel). shape=(N, H - size + 1, W - size + 1, size^2 C)"""
    height, width = images.shape[1] - size + 1, images.shape[2] - size + 1
    shifts = [images[:, y : y + height, x : x + width] for y in range(size) for x in range(size)]
    return jnp.concatenate(shifts, axis=-1)


def _both_signs(filters: np.ndarray) -> np.ndarray:
    """Columns in the order of falling importance, the last one first, then all with the other sign. float32"""
    return np.concatenate([filters[:, ::-1], -filters[:, ::-1]], axis=1).astype(np.float32)


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
            x = torch_conv(self.width, 3, kernel_init=identity_first, dtype=self.dtype, name=f"conv{number}")(x)
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
        x = nn.gelu(Whiten(dtype=dtype, name=_WHITEN)(as_float(images)))
        for index, (width, residual) in enumerate(zip(self.widths, self.residual, strict=True)):
            x = rematerialized(Group, self.remat)(width, residual, dtype, name=f"layer{index + 1}")(x, train)
        x = jnp.max(x, axis=(1, 2)).astype(jnp.promote_types(dtype, jnp.float32))
        head = nn.Dense(self.num_classes, use_bias=False, kernel_init=TORCH_LINEAR, dtype=x.dtype, name="head")
        return self.head_scale * head(x)
