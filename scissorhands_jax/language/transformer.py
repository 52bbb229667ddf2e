"""A small decoder-only transformer (Vaswani et al., 2017), which a CPU trains from scratch in seconds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from scissorhands_jax.base import ModelState, Params, PyTree
from scissorhands_jax.language.greedy import StepDecoder
from scissorhands_jax.language.methods.rmu import Activations
from scissorhands_jax.language.packing import positions_in_segments


class DecoderBlock(nn.Module):
    """Causal attention and a perceptron, each behind a LayerNorm and added to what comes in."""

    heads: int
    decode: bool = False
    """Whether tokens come one after the other, as for `decoder_of`."""

    @nn.compact
    def __call__(self, x: jax.Array, segment: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        mask = None if self.decode else nn.make_causal_mask(x[..., 0])
        if segment is not None:
            mask = nn.combine_masks(mask, nn.make_attention_mask(segment, segment, jnp.equal))
        attention = nn.MultiHeadDotProductAttention(self.heads, decode=self.decode, name="attention")
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        hidden = nn.gelu(nn.Dense(4 * width, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(width, name="down")(hidden)


class Transformer(nn.Module):
    """From tokens of shape (N, T) to logits of shape (N, T, vocabulary), each predicting the next token.

    It takes the tokens, or {"tokens", "segment"} of packed rows, in which no token sees another segment. Padding on the
    right needs no mask, because no token sees what comes after it.

    Attributes:
      vocabulary: The number of different tokens.
      width: The size of activations, a multiple of `heads`.
      layers: The number of blocks.
      heads: The number of attention's heads.
      length: The largest T.
      decode: Whether tokens come one after the other, as for `decoder_of`.
    """

    vocabulary: int
    width: int = 128
    layers: int = 2
    heads: int = 4
    length: int = 32
    decode: bool = False

    @nn.compact
    def __call__(self, inputs: PyTree, *, stop_after: int | None = None, start: jax.Array | int = 0) -> jax.Array:
        tokens, segment = (inputs["tokens"], inputs["segment"]) if isinstance(inputs, Mapping) else (inputs, None)
        x = nn.Embed(self.vocabulary, self.width, name="embed")(tokens)
        positions = self.param("positions", nn.initializers.normal(0.02), (self.length, self.width))
        if segment is None:
            x = x + jnp.broadcast_to(jax.lax.dynamic_slice_in_dim(positions, start, tokens.shape[1]), x.shape)
        else:
            x = x + positions[positions_in_segments(segment)]
        for layer in range(self.layers):
            x = DecoderBlock(self.heads, self.decode, name=f"block{layer}")(x, segment)
            if layer == stop_after:
                return x
        return nn.Dense(self.vocabulary, name="head")(nn.LayerNorm(name="norm")(x))


def hidden_of(network: Transformer, layer: int) -> Activations:
    """The activations after a block, counted from 0, as `methods.rmu` takes them."""

    def activations(params: Params, model_state: ModelState, inputs: PyTree) -> jax.Array:
        hidden: Any = network.apply({"params": params, **model_state}, inputs, stop_after=layer)
        return hidden

    return activations


@functools.cache
def decoder_of(network: Transformer) -> StepDecoder:
    """How `greedy.greedy_tokens` asks the network for one token after the other, without computing those before."""
    one_by_one = network.clone(decode=True)

    def step(
        params: Params, model_state: ModelState, cache: PyTree, tokens: jax.Array, positions: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        def of_row(cache: PyTree, token: jax.Array, position: jax.Array) -> tuple[jax.Array, PyTree]:
            placed = jax.tree.map(lambda leaf: leaf if leaf.ndim else position.astype(leaf.dtype), cache)
            variables = {"params": params, "cache": placed, **model_state}
            logits, changed = one_by_one.apply(variables, token[None, None], start=position, mutable=["cache"])
            return logits[0, 0], changed["cache"]

        return jax.vmap(of_row)(cache, tokens, positions)  # flax counts one position for all rows of a batch

    def start(
        params: Params, model_state: ModelState, tokens: jax.Array, lengths: jax.Array, room: int
    ) -> tuple[jax.Array, PyTree]:
        def read(held: tuple[jax.Array, PyTree], position: jax.Array) -> tuple[tuple[jax.Array, PyTree], None]:
            logits, cache = held
            found, cache = step(params, model_state, cache, tokens[:, position], jnp.full_like(lengths, position))
            return (jnp.where((lengths - 1 == position)[:, None], found, logits), cache), None

        row = jax.ShapeDtypeStruct((1, room), jnp.int32)
        shapes = jax.eval_shape(one_by_one.init, jax.random.key(0), row)["cache"]
        cache = jax.tree.map(lambda leaf: jnp.zeros((len(tokens), *leaf.shape), leaf.dtype), shapes)
        nothing = jnp.zeros((len(tokens), network.vocabulary))
        return jax.lax.scan(read, (nothing, cache), jnp.arange(tokens.shape[1]))[0]

    return StepDecoder(start, step, network.length)
