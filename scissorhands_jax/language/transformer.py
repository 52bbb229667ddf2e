"""A small decoder-only transformer (Vaswani et al., 2017), which a CPU trains from scratch in seconds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.language.methods.rmu import Activations


class DecoderBlock(nn.Module):
    """Causal attention and a perceptron, each behind a LayerNorm and added to what comes in."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        mask = nn.make_causal_mask(x[..., 0])
        attended = nn.MultiHeadDotProductAttention(self.heads, name="attention")(nn.LayerNorm()(x), mask=mask)
        x = x + attended
        hidden = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(width, name="down")(hidden)


class Transformer(nn.Module):
    """From tokens of shape (N, T) to logits of shape (N, T, vocabulary), each predicting the next token.

    Padding on the right needs no mask, because no token sees what comes after it.

    Attributes:
      vocabulary: The number of different tokens.
      width: The size of activations, a multiple of `heads`.
      layers: The number of blocks.
      heads: The number of attention's heads.
      length: The largest T.
    """

    vocabulary: int
    width: int = 128
    layers: int = 2
    heads: int = 4
    length: int = 32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, stop_after: int | None = None) -> jax.Array:
        x = nn.Embed(self.vocabulary, self.width, name="embed")(tokens)
        positions = self.param("positions", nn.initializers.normal(0.02), (self.length, self.width))
        x = x + jnp.broadcast_to(positions[: tokens.shape[1]], x.shape)
        for layer in range(self.layers):
            x = DecoderBlock(self.heads, name=f"block{layer}")(x)
            if layer == stop_after:
                return x
        return nn.Dense(self.vocabulary, name="head")(nn.LayerNorm(name="norm")(x))


def hidden_of(network: Transformer, layer: int) -> Activations:
    """The activations after a block, counted from 0, as `methods.rmu` takes them."""

    def activations(params: Params, model_state: ModelState, tokens: jax.Array) -> jax.Array:
        hidden: Any = network.apply({"params": params, **model_state}, tokens, stop_after=layer)
        return hidden

    return activations
