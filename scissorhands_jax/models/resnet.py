"""Residual networks of basic blocks (He et al., 2016), with the names of two families of PyTorch files.

`ResNet` covers both families. Its defaults are those of the four-stage ResNet-18 and 34 of the Scissorhands
experiments, and `cifar_resnet` makes the three-stage ResNet-20 to 110 for 32x32 images, whose shortcuts have no
parameters.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from scissorhands_jax.errors import InputError
from scissorhands_jax.models.layers import (
    KAIMING_FAN_IN,
    KAIMING_FAN_OUT,
    TORCH_LINEAR,
    BatchNorm,
    Normalization,
    average_pool,
    enter,
    relu_sum,
    rematerialized,
    torch_conv,
    torch_linear,
)

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Shortcut = Literal["projection", "pad"]
Stem = Literal["cifar", "imagenet"]


class ProjectionShortcut(nn.Module):
    """The shortcut with parameters: a strided 1x1 convolution, named `0`, and batch normalisation, named `1`."""

    width: int
    stride: int
    kernel_init: nn.initializers.Initializer
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = torch_conv(self.width, 1, self.stride, kernel_init=self.kernel_init, dtype=self.dtype, name="0")(x)
        return BatchNorm(name="1")(x, train=train)


def pad_shortcut(x: jax.Array, width: int, stride: int) -> jax.Array:
    """The shortcut without parameters: it takes every `stride`-th pixel and adds channels of zeros on both sides.

    Args:
      x: An array of shape (N, H, W, C).
      width: The number of output channels, at least C.
      stride: The stride in both directions, in pixels.
    """
    missing = width - x.shape[-1]
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them, which is the identity unless the shape changes."""

    width: int
    stride: int
    shortcut: Shortcut
    kernel_init: nn.initializers.Initializer
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = torch_conv(self.width, 3, self.stride, kernel_init=self.kernel_init, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train=train))
        y = torch_conv(self.width, 3, kernel_init=self.kernel_init, dtype=self.dtype, name="conv2")(y)
        y = BatchNorm(name="bn2")(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.width:
            if self.shortcut == "pad":
                x = pad_shortcut(x, self.width, self.stride)
            else:
                x = ProjectionShortcut(self.width, self.stride, self.kernel_init, self.dtype, name="downsample")(
                    x, train=train
                )
        return relu_sum(y, x)


class Stage(nn.Module):
    """A sequence of basic blocks named `0`, `1`, ..., of which the first has the stride."""

    blocks: int
    width: int
    stride: int
    shortcut: Shortcut
    kernel_init: nn.initializers.Initializer
    dtype: DTypeLike
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        make = rematerialized(BasicBlock, self.remat)
        for index in range(self.blocks):
            stride = self.stride if index == 0 else 1
            block = make(self.width, stride, self.shortcut, self.kernel_init, self.dtype, name=str(index))
            x = block(x, train)
        return x


class ResNet(nn.Module):
    """A ResNet of basic blocks. The defaults are those of the Scissorhands authors' networks for CIFAR.

    Attributes:
      num_classes: The number of classes, which is the length of the logits.
      stage_sizes: The number of blocks in each stage `layer1`, `layer2`, ...
      widths: The number of channels in each stage; the stem has the width of the first. Every stage except the first
        halves the height and width of the image.
      stem: The first layers: `cifar` is a 3x3 convolution; `imagenet` is a 7x7 convolution of stride 2 and, after its
        normalisation, a 3x3 max pool of stride 2.
      shortcut: What a block adds where the shape changes: `projection` is a 1x1 convolution and normalisation, and
        `pad` has no parameters.
      head: The name of the last layer.
      normalize: How inputs are normalised; see `layers.enter`.
      mean: The mean for that, one number per channel.
      std: The standard deviation for that, one number per channel.
      kernel_init: The initialiser of the kernels of convolutions.
      head_init: The initialiser of the kernel of the last layer.
      dtype: The type to compute in up to the pooled features. Parameters, statistics and logits are float32.
      remat: Whether to save memory by keeping only the input of each block for the backward pass, which computes the
        rest again.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: Stem = "cifar"
    shortcut: Shortcut = "projection"
    head: str = "fc"
    normalize: Normalization = "stored"
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
    kernel_init: nn.initializers.Initializer = KAIMING_FAN_OUT
    head_init: nn.initializers.Initializer = TORCH_LINEAR
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes logits of shape (N, num_classes) from images of shape (N, H, W, C).

        Args:
          images: Images, floating point in [0, 1] or uint8.
          train: Whether BatchNorm uses the statistics of the batch.

        Raises:
          InputError: The images or an option cannot be used.
        """
        for option, value, choices in (
            ("stem", self.stem, get_args(Stem)),
            ("shortcut", self.shortcut, get_args(Shortcut)),
        ):
            if value not in choices:
                raise InputError(f"{option} is {value!r}; choose one of {', '.join(choices)}")
        if len(self.stage_sizes) != len(self.widths):
            raise InputError(f"{len(self.stage_sizes)} stages but {len(self.widths)} widths; give one width per stage")
        dtype = jnp.dtype(self.dtype)
        x = enter(images, self.normalize, self.mean, self.std).astype(dtype)
        size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = torch_conv(self.widths[0], size, stride, kernel_init=self.kernel_init, dtype=dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for index, (blocks, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            stride = 1 if index == 0 else 2
            options = (self.shortcut, self.kernel_init, dtype, self.remat)
            x = Stage(blocks, width, stride, *options, name=f"layer{index + 1}")(x, train=train)
        x = average_pool(x)
        return torch_linear(self.num_classes, x.shape[-1], kernel_init=self.head_init, dtype=x.dtype, name=self.head)(x)


def cifar_resnet(depth: int, num_classes: int, **options) -> ResNet:
    """Makes a network for CIFAR as in He et al. (2016), section 4.2: three stages of 16, 32 and 64 channels.

    Names are those in `resnet20-12fca82f.th` and similar files, without the prefix `module.`. Inputs are normalised
    with ImageNet's constants. Such files do not hold these, so they are attributes here and not variables.

    Args:
      depth: The number of layers, 6n + 2 for n blocks in each stage.
      num_classes: The number of classes, which is the length of the logits.
      **options: Other attributes of `ResNet`, which override those of these networks.

    Raises:
      InputError: The depth is not 6n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise InputError(f"depth is {depth}; choose 6n + 2 layers for a CIFAR ResNet, such as 20, 32, 44, 56 or 110")
    defaults: dict[str, Any] = {
        "stage_sizes": (blocks,) * 3,
        "widths": (16, 32, 64),
        "shortcut": "pad",
        "head": "linear",
        "normalize": "fixed",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "kernel_init": KAIMING_FAN_IN,
        "head_init": KAIMING_FAN_IN,
    }
    return ResNet(num_classes, **(defaults | options))
