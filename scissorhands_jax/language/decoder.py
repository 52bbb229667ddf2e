"""The decoder-only transformers of the Llama, Qwen and Gemma families, one network with a switch for each difference.

Modules and parameters have the names of the published checkpoints, so that `model/layers/0/mlp/up_proj/kernel` here is
`model.layers.0.mlp.up_proj.weight` there. Weights are float32, or bfloat16 where LoRA leaves them alone, and are
computed in `Sizes.dtype`; norms, softmax and rotations are float32 in either case, as in the published code.

References:
  Touvron et al., Llama 2, 2023; Grattafiori et al., The Llama 3 Herd of Models, 2024.
  Yang et al., Qwen2 Technical Report, 2024; Qwen3 Technical Report, 2025.
  Gemma Team, Gemma, 2024; Gemma 2, 2024; Gemma 3, 2025.
  Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from scissorhands_jax.base import Model, ModelState, Params, PyTree
from scissorhands_jax.language.greedy import StepDecoder
from scissorhands_jax.language.methods.rmu import Activations
from scissorhands_jax.language.packing import positions_in_segments
from scissorhands_jax.models.adapters import from_linen

Activation = Literal["silu", "gelu_pytorch_tanh"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation:
    """How queries and keys are rotated by their positions (Su et al., 2021)."""

    base: float = 10_000.0
    """theta, of which the wavelengths are powers."""
    factor: float = 1.0
    """By how much long wavelengths are stretched, where the context was extended after training."""
    bands: tuple[float, float, float] | None = None
    """Llama 3.1's low_freq_factor, high_freq_factor and original context: wavelengths above the context divided by the
    first are stretched, those below it divided by the second are not, and between them it is a mixture. None stretches
    all alike."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything that two networks of these families can differ in, apart from their weights."""

    vocabulary: int
    """The number of different tokens."""
    width: int
    """The size of activations."""
    hidden: int
    """The size of the inner layer of the perceptrons."""
    layers: int
    heads: int
    """The number of heads of queries, a multiple of `key_heads`."""
    key_heads: int
    """The number of heads of keys and values."""
    head_size: int
    context: int
    """The largest number of tokens that the network was made for."""
    epsilon: float = 1e-6
    """What norms add to the mean of squares."""
    rotation: Rotation = Rotation()
    windows: tuple[int | None, ...] = ()
    """For each layer how many tokens attention looks back, itself included; None is all. () is None everywhere."""
    window_rotation: Rotation | None = None
    """The rotation of layers with a window, where it is another one."""
    tied: bool = False
    """Whether logits are products with the embeddings, instead of a layer of their own."""
    query_bias: bool = False
    """Whether queries, keys and values have biases."""
    output_bias: bool = False
    """Whether attention's output has a bias."""
    mlp_bias: bool = False
    head_norms: bool = False
    """Whether every head's queries and keys are normalised."""
    activation: Activation = "silu"
    gemma: bool = False
    """Whether norms multiply by 1 + weight and embeddings by the root of the width."""
    inner_norms: bool = False
    """Whether what attention and perceptron return is normalised before it is added."""
    query_scale: float | None = None
    """What products of queries and keys are multiplied by; None is 1 / sqrt(head_size)."""
    attention_cap: float | None = None
    """c of c tanh(x / c), through which products of queries and keys go; None leaves them as they are."""
    logit_cap: float | None = None
    """The same for logits."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in."""
    remat: bool = False
    """Whether the activations of a layer are computed again for its gradient instead of kept: less memory, more time.
    """
    lora_scale: float = 1.0
    """What the product of LoRA's two matrices is multiplied by, alpha / rank."""


class Places(NamedTuple):
    """Where tokens stand."""

    positions: jax.Array
    """From 0 on. shape=(N, T), integers."""
    segment: jax.Array | None
    """The example of the row that they belong to, see `packing`; None where a row holds one. shape=(N, T), integers."""


class Cache(NamedTuple):
    """The keys and values of the tokens so far, by layer."""

    keys: tuple[jax.Array, ...]
    """shape=(N, S, key_heads, head_size) each, with room for S tokens."""
    values: tuple[jax.Array, ...]


def empty_cache(sizes: Sizes, rows: int, length: int) -> Cache:
    """A cache with room for so many tokens of so many rows."""
    shape = (rows, length, sizes.key_heads, sizes.head_size)
    zeros = tuple(jnp.zeros(shape, sizes.dtype) for _ in range(sizes.layers))
    return Cache(zeros, zeros)


def along(vector: jax.Array, x: jax.Array) -> jax.Array:
    """The vector along the last axis of x. shape=(1, ..., 1, D)"""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


class Dense(nn.Module):
    """A linear layer, and the product of two thin matrices next to it where the collection `lora` has them."""

    features: int
    sizes: Sizes
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        out = x @ kernel.astype(x.dtype)
        if self.has_variable("lora", "a"):
            thin: list[jax.Array] = [self.get_variable("lora", name).astype(x.dtype) for name in ("a", "b")]
            out = out + self.sizes.lora_scale * (x @ thin[0] @ thin[1])
        if self.bias:
            out = out + along(self.param("bias", nn.initializers.zeros, (self.features,)), x).astype(x.dtype)
        return out


class Norm(nn.Module):
    """Division by the root of the mean square (Zhang and Sennrich, 2019), in float32."""

    sizes: Sizes

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.zeros if self.sizes.gemma else nn.initializers.ones
        scale = along(self.param("scale", start, x.shape[-1:]), x)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.sizes.epsilon)
        if self.sizes.gemma:
            return (wide * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)
        return scale.astype(x.dtype) * wide.astype(x.dtype)


class GroupedAttention(nn.Module):
    """Causal attention in which several heads of queries share one of keys and values (Ainslie et al., 2023)."""

    sizes: Sizes
    layer: int

    @nn.compact
    def __call__(self, x: jax.Array, places: Places, cache: Cache | None) -> tuple[jax.Array, tuple | None]:
        sizes = self.sizes
        window = sizes.windows[self.layer] if sizes.windows else None
        rotation = sizes.rotation if window is None or sizes.window_rotation is None else sizes.window_rotation

        def heads(name: str, count: int) -> jax.Array:
            flat = Dense(count * sizes.head_size, sizes, sizes.query_bias, name=f"{name}_proj")(x)
            return flat.reshape(*x.shape[:2], count, sizes.head_size)

        query, key = heads("q", sizes.heads), heads("k", sizes.key_heads)
        value = heads("v", sizes.key_heads)
        if sizes.head_norms:
            query, key = Norm(sizes, name="q_norm")(query), Norm(sizes, name="k_norm")(key)
        query, key = (rotated(part, places.positions, rotation) for part in (query, key))
        kept = None
        if cache is not None:
            rows = jnp.arange(len(x))[:, None]
            key = cache.keys[self.layer].at[rows, places.positions].set(key)
            value = cache.values[self.layer].at[rows, places.positions].set(value)
            kept = (key, value)
        seen = visible(places, key.shape[1], window)
        out = attend_grouped(query, key, value, seen, sizes).reshape(*x.shape[:2], -1)
        return Dense(sizes.width, sizes, sizes.output_bias, name="o_proj")(out), kept


def visible(places: Places, length: int, window: int | None) -> jax.Array:
    """Which keys each token sees: those of its own segment that are not after it, nor too far back.

    Args:
      places: Where the tokens stand; without segments keys stand at 0, 1, 2 and so on.
      length: The number S of keys.
      window: How many tokens attention looks back, itself included; None is all.

    Returns:
      shape=(N, T, S), dtype=bool.
    """
    own, segment = places
    other = jnp.arange(length)[None, None] if segment is None else own[:, None]
    seen = other <= own[..., None]
    if window is not None:
        seen &= other > own[..., None] - window
    return seen if segment is None else seen & (segment[..., None] == segment[:, None])


def attend_grouped(query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array, sizes: Sizes) -> jax.Array:
    """The mean of values, weighted by how well their keys fit the queries.

    Args:
      query: shape=(N, T, heads, head_size)
      key: shape=(N, S, key_heads, head_size)
      value: shape=(N, S, key_heads, head_size)
      seen: Which keys a query sees. shape=(N, T, S), dtype=bool.
      sizes: The network.

    Returns:
      shape=(N, T, heads, head_size)
    """
    grouped = query.reshape(*query.shape[:2], sizes.key_heads, -1, sizes.head_size)
    scale = sizes.head_size**-0.5 if sizes.query_scale is None else sizes.query_scale
    scores = capped(jnp.einsum("ntkgd,nskd->nkgts", grouped, key) * scale, sizes.attention_cap)
    scores = jnp.where(seen[:, None, None], scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    shares = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("nkgts,nskd->ntkgd", shares, value).reshape(query.shape)


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap), or x itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def rotated(x: jax.Array, positions: jax.Array, rotation: Rotation) -> jax.Array:
    """Heads whose pairs of numbers (i, i + head_size / 2) are turned by angles that grow with the position.

    Args:
      x: shape=(N, T, heads, head_size)
      positions: integers. shape=(N, T)
      rotation: How fast.
    """
    size = x.shape[-1]
    frequency = rotation.base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    if rotation.bands is None:
        frequency = frequency / rotation.factor
    else:
        low, high, context = rotation.bands
        turns = context * frequency / (2 * math.pi)  # over the context of the training
        share = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        frequency = share * frequency + (1.0 - share) * frequency / rotation.factor
    angles = positions[..., None, None].astype(jnp.float32) * along(frequency, x)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Perceptron(nn.Module):
    """Two layers, of which the first is multiplied by a gate (Shazeer, 2020)."""

    sizes: Sizes

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        sizes = self.sizes
        bend = nn.silu if sizes.activation == "silu" else functools.partial(nn.gelu, approximate=True)
        gate = bend(Dense(sizes.hidden, sizes, sizes.mlp_bias, name="gate_proj")(x))
        return Dense(sizes.width, sizes, sizes.mlp_bias, name="down_proj")(
            gate * Dense(sizes.hidden, sizes, sizes.mlp_bias, name="up_proj")(x)
        )


class DecoderLayer(nn.Module):
    """Attention and a perceptron, each behind a norm and added to what comes in."""

    sizes: Sizes
    layer: int

    @nn.compact
    def __call__(self, x: jax.Array, places: Places, cache: Cache | None) -> tuple[jax.Array, tuple | None]:
        def norm(name: str, x: jax.Array) -> jax.Array:
            return Norm(self.sizes, name=f"{name}_layernorm")(x)

        attention = GroupedAttention(self.sizes, self.layer, name="self_attn")
        perceptron = Perceptron(self.sizes, name="mlp")
        out, kept = attention(norm("input", x), places, cache)
        if not self.sizes.inner_norms:
            x = x + out
            return x + perceptron(norm("post_attention", x)), kept
        x = x + norm("post_attention", out)
        return x + norm("post_feedforward", perceptron(norm("pre_feedforward", x))), kept


class DecoderLayers(nn.Module):
    """All layers, called 0, 1, 2 and so on."""

    sizes: Sizes

    @nn.compact
    def __call__(self, x: jax.Array, places: Places, cache: Cache | None, last: int) -> tuple[jax.Array, Cache | None]:
        kind = nn.remat(DecoderLayer) if self.sizes.remat else DecoderLayer
        kept = []
        for layer in range(last + 1):
            x, both = kind(self.sizes, layer, name=str(layer))(x, places, cache)
            kept.append(both)
        return x, None if cache is None else Cache(*zip(*kept, strict=True))


class Trunk(nn.Module):
    """From tokens to normalised activations, or to those after a layer; next to them the embeddings."""

    sizes: Sizes

    @nn.compact
    def __call__(
        self, tokens: jax.Array, places: Places, cache: Cache | None, stop_after: int | None
    ) -> tuple[jax.Array, jax.Array, Cache | None]:
        sizes = self.sizes
        embed = nn.Embed(sizes.vocabulary, sizes.width, name="embed_tokens")
        x = embed(tokens).astype(sizes.dtype)
        if sizes.gemma:
            x = x * jnp.asarray(math.sqrt(sizes.width), x.dtype)
        last = sizes.layers - 1 if stop_after is None else stop_after
        x, cache = DecoderLayers(sizes, name="layers")(x, places, cache, last)
        if stop_after is None:
            x = Norm(sizes, name="norm")(x)
        return x, embed.embedding, cache


class LanguageDecoder(nn.Module):
    """From tokens of shape (N, T) to logits of shape (N, T, vocabulary), each predicting the next token.

    It takes the tokens, or {"tokens", "segment"} of packed rows, in which no token sees another segment. Padding on the
    right needs no mask, because no token sees what comes after it.
    """

    sizes: Sizes

    @nn.compact
    def __call__(
        self,
        inputs: PyTree,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
        *,
        stop_after: int | None = None,
    ) -> Any:
        """The logits.

        Args:
          inputs: See the class.
          positions: Those of the tokens in their rows, counted from 0, shape=(N, T). None is 0, 1, 2 and so on.
          cache: Keys and values of the tokens before; those of the tokens are added at their positions, and the result
            is a pair of the logits and the new cache.
          stop_after: The layer after which the activations are returned in place of logits, counted from 0.
        """
        sizes = self.sizes
        tokens, segment = (inputs["tokens"], inputs["segment"]) if isinstance(inputs, Mapping) else (inputs, None)
        if segment is not None:
            positions = positions_in_segments(segment)
        elif positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        x, embeddings, new_cache = Trunk(sizes, name="model")(tokens, Places(positions, segment), cache, stop_after)
        if stop_after is not None:
            return x
        logits = x @ embeddings.astype(x.dtype).T if sizes.tied else Dense(sizes.vocabulary, sizes, name="lm_head")(x)
        logits = capped(logits, sizes.logit_cap)
        return logits if cache is None else (logits, new_cache)


@functools.cache
def decoder(sizes: Sizes) -> Model:
    """The network with these sizes. Equal sizes give the same value, so that compiled code is shared."""
    return from_linen(LanguageDecoder(sizes), jax.ShapeDtypeStruct((1, 2), jnp.int32))


@functools.cache
def hidden_after(sizes: Sizes, layer: int) -> Activations:
    """The activations after a layer, counted from 0, as `methods.rmu` takes them."""

    def activations(params: Params, model_state: ModelState, inputs: PyTree) -> jax.Array:
        hidden: Any = LanguageDecoder(sizes).apply({"params": params, **model_state}, inputs, stop_after=layer)
        return hidden

    return activations


@functools.cache
def step_decoder(sizes: Sizes) -> StepDecoder:
    """How `greedy.greedy_tokens` asks the network: prompts at once, then one token after the other."""
    network = LanguageDecoder(sizes)

    def start(
        params: Params, model_state: ModelState, tokens: jax.Array, lengths: jax.Array, room: int
    ) -> tuple[jax.Array, PyTree]:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        # Keys of what is behind a prompt are replaced, one by one, by those of the answer before they are seen.
        empty = empty_cache(sizes, len(tokens), room)
        logits, cache = network.apply({"params": params, **model_state}, tokens, positions, empty)
        return jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0], cache

    def step(
        params: Params, model_state: ModelState, cache: PyTree, tokens: jax.Array, positions: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        variables = {"params": params, **model_state}
        logits, cache = network.apply(variables, tokens[:, None], positions[:, None], cache)
        return logits[:, 0], cache

    return StepDecoder(start, step, sizes.context)
