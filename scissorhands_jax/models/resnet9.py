"""A small residual network that learns CIFAR-10 in a few epochs, like those that hold the speed records for it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from scissorhands_jax import trees
from scissorhands_jax.base import Dataset, ModelState
from scissorhands_jax.errors import InputError
from scissorhands_jax.models.layers import TORCH_LINEAR, BatchNorm, as_float, rematerialized, torch_conv

_WHITEN = "whiten"
_NUM_IMAGES = 5_000  # for the covariance of patches
_CHUNK = 500  # images whose patches are in memory at a time
_EPS = 5e-4  # relative to the mean variance of the values of a patch


class Whiten(nn.Module):
    """A linear map of all patches of an image, that is, a convolution without padding.

    Its filters are the principal axes of patches, each with both signs. The mean and the kernel are in the collection
    `constants`, so they are saved with the network but never trained, trimmed or projected. Until `fit_whitening` sets
    them, the filters copy the pixels. A network must name the layer `whiten`.

    The variables are `mean`, of shape (C,), and `kernel`, of shape (size^2 C, 2 size^2 C), in `constants`, and `bias`,
    with one number per filter, in `params`.

    Attributes:
      size: The height and width of a patch, in pixels.
      dtype: The type of the result.
    """

    size: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images, floats of shape (N, H, W, C), to shape (N, H - size + 1, W - size + 1, 2 * size^2 * C)."""
        channels = images.shape[-1]
        count = self.size**2 * channels
        mean = self.variable("constants", "mean", lambda: jnp.full((channels,), 0.5, jnp.float32))
        kernel = self.variable("constants", "kernel", lambda: jnp.asarray(_both_signs(np.eye(count))))
        bias = self.param("bias", nn.initializers.zeros, (2 * count,), jnp.float32)
        dtype = jnp.dtype(self.dtype)
        # A CPU computes this matrix product five times as fast as a convolution of this size.
        patches = _patches(images - mean.value.reshape(1, 1, 1, -1), self.size).astype(dtype)
        return patches @ kernel.value.astype(dtype) + bias.astype(dtype).reshape(1, 1, 1, -1)


def fit_whitening(model_state: ModelState, examples: Dataset) -> ModelState:
    """Fits the layer `whiten` of a network to images. The state of a network without that layer is returned unchanged.

    The filters are v / sqrt(e + eps), for the eigenvectors v and eigenvalues e of the covariance of all patches of
    5,000 images, which are spread evenly over the data set. The filtered patches then have the identity as their
    covariance. eps is 5e-4 of the mean variance of the values of a patch; axes with less variance count as noise and
    are not amplified.

    Args:
      model_state: The state of the network, as `Model.init` returns it.
      examples: A data set with images in "image", floats in [0, 1] or uint8, of shape (N, H, W, C). They are read only
        if the network has the layer.

    Returns:
      The new state of the network.

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
        rows = trees.on_host(patches).astype(np.float64).reshape(-1, values_per_patch)
        mean, moment, count = mean + rows.sum(axis=0), moment + rows.T @ rows, count + len(rows)
    # There is one mean per channel, not one per pixel of a patch, so that the layer treats all places in a patch alike.
    # The covariance around it is E[x x'] - m c' - c m' + c c', with m the mean patch and c that colour repeated.
    colour = (mean / count).reshape(size**2, channels).mean(axis=0)
    cross = np.outer(mean / count, np.tile(colour, size**2))
    covariance = moment / count - cross - cross.T + np.outer(*[np.tile(colour, size**2)] * 2)
    values, vectors = np.linalg.eigh(covariance)
    filters = vectors / np.sqrt(np.maximum(values, 0) + _EPS * max(values.mean(), np.finfo(np.float32).tiny))
    fitted = {"mean": jnp.asarray(colour, jnp.float32), "kernel": jnp.asarray(_both_signs(filters))}
    return {**model_state, "constants": {**constants, _WHITEN: fitted}}


def _patches(images: jax.Array, size: int) -> jax.Array:
    """Returns all patches, flattened by (row, column, channel), of shape (N, H - size + 1, W - size + 1, size^2 C)."""
    height, width = images.shape[1] - size + 1, images.shape[2] - size + 1
    shifts = [images[:, y : y + height, x : x + width] for y in range(size) for x in range(size)]
    return jnp.concatenate(shifts, axis=-1)


def _both_signs(filters: np.ndarray) -> np.ndarray:
    """Returns the columns in reverse order, the largest eigenvalue first, then all with the other sign, in float32."""
    return np.concatenate([filters[:, ::-1], -filters[:, ::-1]], axis=1).astype(np.float32)


def identity_first(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Initialises a kernel so that its first filters copy the input channels; the others are drawn as in PyTorch.

    A deep network then starts with a path from its input to its head (hlb-CIFAR10, airbench).

    Args:
      key: A typed PRNG key.
      shape: The shape of the kernel, (height, width, in, out).
      dtype: The type of the kernel.
    """
    height, width, before, after = shape
    kernel = TORCH_LINEAR(key, shape, dtype)
    count = min(before, after)
    copies = jnp.zeros((height, width, before, count), dtype).at[height // 2, width // 2].set(jnp.eye(before, count))
    return kernel.at[..., :count].set(copies)


def halve(x: jax.Array) -> jax.Array:
    """Computes a 2x2 max pool of stride 2, of shape (N, H // 2, W // 2, C). An odd last row or column is left out.

    On a CPU its gradient is six times as fast as that of `nn.max_pool`, which searches the windows a second time.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = jnp.maximum(x[:, 0:height:2, :width], x[:, 1:height:2, :width])
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


class Group(nn.Module):
    """A convolution, a 2x2 max pool, normalisation and GELU; with `residual`, then two layers within a shortcut."""

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
    """Whitening, groups that halve the image, a global max pool and a linear head (after Page, 2018, and Jordan, 2024).

    With the defaults it has nine layers with weights. `retrain` fits the first layer, `whiten`, to the training images.
    That layer takes images in [0, 1] as they are, so the network has no other normalisation of its input.

    Attributes:
      num_classes: The number of classes, which is the length of the logits.
      widths: The number of channels in each group `layer1`, `layer2`, ...
      residual: Whether each group has a residual branch.
      head_scale: A factor of the logits, which keeps them small at first, as high learning rates require.
      dtype: The type to compute in up to the pooled features. Parameters, statistics and logits are float32.
      remat: Whether to save memory by keeping only the input of each group for the backward pass, which computes the
        rest again.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 256, 256)
    residual: tuple[bool, ...] = (True, False, True)
    head_scale: float = 0.125
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes logits of shape (N, num_classes) from images of shape (N, H, W, C).

        Args:
          images: Images, floating point in [0, 1] or uint8.
          train: Whether BatchNorm uses the statistics of the batch.

        Raises:
          InputError: The images cannot be used, or are too small to be halved in all groups, or the options do not fit
            together.
        """
        if images.ndim != 4:
            raise InputError(f"images have shape {images.shape}; give an array of shape (N, H, W, C)")
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
