"""VGG-16 with batch normalisation (Simonyan and Zisserman, 2015) in the form used on CIFAR."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from scissorhands_jax.errors import InputError, check_choice
from scissorhands_jax.models.layers import BatchNorm, Normalization, average_pool, enter, rematerialized, torch_conv
from scissorhands_jax.models.resnet import CIFAR10_MEAN, CIFAR10_STD

LastPool = Literal["average", "max"]

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Features(nn.Module):
    """Repeated convolution, normalisation and ReLU, named by the positions of layers in PyTorch's `nn.Sequential`."""

    widths: tuple[tuple[int, ...], ...]
    dtype: DTypeLike
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        # A function and not a module, because a module would add a name to the paths of the layers.
        def layer(module: nn.Module, x: jax.Array, width: int, index: int) -> jax.Array:
            del module
            x = torch_conv(width, 3, use_bias=True, dtype=self.dtype, name=str(index))(x)
            return nn.relu(BatchNorm(name=str(index + 1))(x, train=train))

        layer = rematerialized(layer, self.remat)
        index = 0
        for group, widths in enumerate(self.widths):
            if group:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
                index += 1
            for width in widths:
                x = layer(self, x, width, index)
                index += 3
        return x


class VGG(nn.Module):
    """Groups of 3x3 convolutions with 2x2 max pools between them, a global pool and one linear layer.

    Attributes:
      num_classes: The number of classes, which is the length of the logits.
      widths: The number of channels of each convolution, by group.
      last_pool: What the global pool is: `average`, as in torchvision and in the authors' code, or `max`: 2x2 max pools
        before the average, which is the maximum for images of 32x32, as in kuangliu's code. Files do not say it.
      normalize: How inputs are normalised; see `layers.enter`.
      mean: The mean for that, one number per channel.
      std: The standard deviation for that, one number per channel.
      dtype: The type to compute in up to the pooled features. Parameters, statistics and logits are float32.
      remat: Whether to save memory by keeping only the input of each layer for the backward pass, which computes the
        rest again.
    """

    num_classes: int
    widths: tuple[tuple[int, ...], ...] = VGG16
    last_pool: LastPool = "average"
    normalize: Normalization = "stored"
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes logits of shape (N, num_classes) from images of shape (N, H, W, C).

        Args:
          images: Images, floating point in [0, 1] or uint8.
          train: Whether BatchNorm uses the statistics of the batch.

        Raises:
          InputError: The images cannot be used, or are too small to be halved between all groups.
        """
        check_choice("last_pool", self.last_pool, get_args(LastPool))
        dtype = jnp.dtype(self.dtype)
        x = enter(images, self.normalize, self.mean, self.std).astype(dtype)
        least = 2 ** (len(self.widths) - (self.last_pool == "average"))
        if min(x.shape[1:3]) < least:
            raise InputError(f"images are {x.shape[1]}x{x.shape[2]}; this VGG needs at least {least}x{least}")
        x = Features(self.widths, dtype, self.remat, name="features")(x, train=train)
        if self.last_pool == "max":
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = average_pool(x)
        normal = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, kernel_init=normal, dtype=x.dtype, name="classifier")(x)
