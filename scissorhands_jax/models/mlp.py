"""A multi-layer perceptron."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from scissorhands_jax.errors import InputError
from scissorhands_jax.models.layers import Normalization, as_float, enter, rematerialized, torch_linear


class MLP(nn.Module):
    """A multi-layer perceptron: ReLU layers `layer1`, `layer2`, ... on the flattened input, and a linear `head`.

    Attributes:
      num_classes: The number of classes, which is the length of the logits.
      hidden: The widths of the hidden layers.
      normalize: `fixed` subtracts `mean` from images and divides by `std`, as `models.layers.enter` does; `off`, the
        default, takes inputs of any shape as they are.
      mean: One number per channel, with `normalize="fixed"`.
      std: One number per channel, with `normalize="fixed"`.
      dtype: The type that the hidden layers compute in. Parameters and logits are float32.
      remat: Whether to save memory by keeping only the input of every few layers for the backward pass, which computes
        the others again. Of L layers, about the square root of L are kept.
    """

    num_classes: int
    hidden: tuple[int, ...] = (256, 256)
    normalize: Normalization = "off"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Computes logits of shape (N, num_classes) from inputs of shape (N, ...), floating point or uint8.

        Raises:
          InputError: `mean` or `std` is given and `normalize` is "off", or they do not fit the images.
        """
        if self.normalize == "off":
            if self.mean or self.std:
                raise InputError("mean and std are given, but normalize is 'off'; add normalize=fixed")
            x = as_float(inputs)
        else:
            x = enter(inputs, self.normalize, self.mean, self.std)
        x = x.reshape(inputs.shape[0], -1)

        def layers(module: nn.Module, x: jax.Array, start: int, end: int) -> jax.Array:
            del module
            for index in range(start, end):
                layer = torch_linear(
                    self.hidden[index], x.shape[-1], dtype=jnp.dtype(self.dtype), name=f"layer{index + 1}"
                )
                x = nn.relu(layer(x))
            return x

        depth = len(self.hidden)
        group = math.ceil(depth**0.5)
        for start in range(0, depth, max(1, group)):
            x = rematerialized(layers, self.remat)(self, x, start, min(depth, start + group))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return torch_linear(self.num_classes, x.shape[-1], dtype=wide, name="head")(x)
