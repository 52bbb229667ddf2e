"""A multi-layer perceptron."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from scissorhands_jax.models.layers import as_float, linear


class MLP(nn.Module):
    """Flattens its input, then ReLU layers `layer1`, `layer2`, ... and a linear `head`.

    Attributes:
      num_classes: length of the logits.
      hidden: widths of the hidden layers.
      dtype: of the hidden layers' computation; parameters and logits are float32.
    """

    num_classes: int
    hidden: tuple[int, ...] = (256, 256)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits, shape (N, num_classes), of inputs, shape (N, ...), floating point or uint8."""
        x = as_float(inputs).reshape(inputs.shape[0], -1)
        for index, width in enumerate(self.hidden):
            layer = linear(width, x.shape[-1], dtype=jnp.dtype(self.dtype), name=f"layer{index + 1}")
            x = nn.relu(layer(x))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return linear(self.num_classes, x.shape[-1], dtype=wide, name="head")(x)
