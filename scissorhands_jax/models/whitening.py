"""A first layer that decorrelates image patches: fitted to the training images once, and never trained.

As in hlb-CIFAR10 and airbench (Jordan, 2024, arXiv 2404.00498, section 3.1), after Page's "How to train your ResNet".
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from scissorhands_jax.base import Dataset, ModelState
from scissorhands_jax.models.layers import as_float

_NAME = "whiten"
_NUM_IMAGES, _CHUNK = 5_000, 500
_EPS = 5e-4  # of the mean variance of a patch's values: what has less is noise, and not blown up to variance 1


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
    images, spread evenly over the data set. Patches then have the identity as their covariance.

    Args:
      examples: {"image": (N, H, W, C)}, floating point in [0, 1] or uint8.
    """
    constants = model_state.get("constants", {}) if isinstance(model_state, dict) else {}
    if _NAME not in constants:
        return model_state
    values_per_patch, channels = constants[_NAME]["kernel"].shape[0], examples["image"].shape[-1]
    size = math.isqrt(values_per_patch // channels)
    total = jax.tree.leaves(examples)[0].shape[0]
    chosen = np.unique(np.linspace(0, total - 1, min(total, _NUM_IMAGES)).astype(np.int64))
    mean, moment, count = 0.0, 0.0, 0
    for part in np.array_split(chosen, -(-len(chosen) // _CHUNK)):
        sums = [np.asarray(part_sum, np.float64) for part_sum in _moments(examples["image"][part], size=size)]
        mean, moment, count = mean + sums[0], moment + sums[1], count + sums[2]
    mean, moment = mean / count, moment / count
    # One mean per channel, so that a flat image of the mean colour is black wherever a patch is taken.
    colour = mean.reshape(size**2, channels).mean(axis=0)
    centred = np.tile(colour, size**2)
    covariance = moment - np.outer(mean, centred) - np.outer(centred, mean) + np.outer(centred, centred)
    values, vectors = np.linalg.eigh(covariance)
    filters = vectors / np.sqrt(np.maximum(values, 0) + _EPS * max(values.mean(), np.finfo(np.float32).tiny))
    fitted = {"mean": jnp.asarray(colour, jnp.float32), "kernel": jnp.asarray(_both_signs(filters))}
    return {**model_state, "constants": {**constants, _NAME: fitted}}


@functools.partial(jax.jit, static_argnames="size")
def _moments(images: jax.Array, *, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of all patches: their sum, the sum of their outer products, and their number."""
    patches = _patches(as_float(images).astype(jnp.float32), size).reshape(-1, size**2 * images.shape[-1])
    outer = jnp.matmul(patches.T, patches, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(patches, axis=0), outer, jnp.asarray(len(patches), jnp.float32)


def _patches(images: jax.Array, size: int) -> jax.Array:
    """All patches, flat, in the order (row, column, channel). shape=(N, H - size + 1, W - size + 1, size^2 C)"""
    height, width = images.shape[1] - size + 1, images.shape[2] - size + 1
    shifts = [images[:, y : y + height, x : x + width] for y in range(size) for x in range(size)]
    return jnp.concatenate(shifts, axis=-1)


def _both_signs(filters: np.ndarray) -> np.ndarray:
    """Columns in the order of falling importance, the last one first, then all with the other sign. float32"""
    return np.concatenate([filters[:, ::-1], -filters[:, ::-1]], axis=1).astype(np.float32)
