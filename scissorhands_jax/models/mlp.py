"""A multi-layer perceptron."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from scissorhands_jax.models.layers import as_float, rematerialized, torch_linear


class MLP(nn.Module):
    """Flattens its input, then ReLU layers `layer1`, `layer2`, ... and a linear `head`.

    Attributes:
      num_classes: length of the logits.
      hidden: widths of the hidden layers.
      dtype: of the hidden layers' computation; parameters and logits are float32.
      remat: keep the input of every few layers for the backward pass, which computes the others again; of L layers
        about the square root of L are kept.
    """

    num_classes: int
    hidden: tuple[int, ...] = (256, 256)
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits, shape (N, num_classes), of inputs, shape (N, ...), floating point or uint8."""
        x = as_float(inputs).reshape(inputs.shape[0], -1)

        def layers(module: nn.Module, x: jax.Array, start: int, end: int) -> jax.Array:
            del module
            for index in range(start, end):
                layer = torch_linear(
                    self.hidden[index], x.shape[-1], dtype=jnp.dtype(self.dtype), name=f"layer{index + 1}"
                )
                x = nn.relu(layer(x))
            return x

        depth = len(self.hidden)
        together = math.ceil(depth**0.5)
        for start in range(0, depth, max(1, together)):
            x = rematerialized(layers, self.remat)(self, x, start, min(depth, start + together))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return torch_linear(self.num_classes, x.shape[-1], dtype=wide, name="head")(x)
