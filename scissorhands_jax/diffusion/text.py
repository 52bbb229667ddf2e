"""The text encoder of Stable Diffusion v1: that of CLIP ViT-L/14 (transformers' CLIPTextModel)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from scissorhands_jax.diffusion.layers import Compute, InitKeys, attend, layer_norm, linear, run_block
from scissorhands_jax.diffusion.tokenizer import MAX_LENGTH, VOCABULARY_SIZE


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The sizes of the text encoder. The defaults are Stable Diffusion v1's, 123,060,480 parameters."""

    vocabulary: int = VOCABULARY_SIZE
    """The number of different tokens."""
    length: int = MAX_LENGTH
    """The largest number of tokens in a prompt."""
    width: int = 768
    """The width of the embeddings."""
    layers: int = 12
    """The number of layers of the transformer."""
    heads: int = 12
    """The number of attention heads."""
    hidden: int = 3072
    """The width of the hidden layer between two linear maps."""


class _Embeddings(nnx.Module):
    def __init__(self, config: TextConfig, compute: Compute, rngs: InitKeys) -> None:
        self.token_embedding = nnx.Embed(config.vocabulary, config.width, dtype=compute.dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(config.length, config.width, dtype=compute.dtype, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))[None]


class _SelfAttention(nnx.Module):
    def __init__(self, width: int, heads: int, causal: bool, compute: Compute, rngs: InitKeys) -> None:
        self.heads, self.causal, self.compute = heads, causal, compute
        self.q_proj = linear(width, width, compute, rngs)
        self.k_proj = linear(width, width, compute, rngs)
        self.v_proj = linear(width, width, compute, rngs)
        self.out_proj = linear(width, width, compute, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, self.compute, causal=self.causal)
        return self.out_proj(out)


class _Perceptron(nnx.Module):
    def __init__(self, width: int, hidden: int, compute: Compute, rngs: InitKeys) -> None:
        self.fc1 = linear(width, hidden, compute, rngs)
        self.fc2 = linear(hidden, width, compute, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.fc1(x)
        return self.fc2(hidden * nnx.sigmoid(1.702 * hidden))  # CLIP's approximation of GELU


class _Layer(nnx.Module):
    def __init__(self, width: int, heads: int, hidden: int, causal: bool, compute: Compute, rngs: InitKeys) -> None:
        self.layer_norm1 = layer_norm(width, compute, rngs)
        self.self_attn = _SelfAttention(width, heads, causal, compute, rngs)
        self.layer_norm2 = layer_norm(width, compute, rngs)
        self.mlp = _Perceptron(width, hidden, compute, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipTransformer(nnx.Module):
    """The layers of CLIP's text and image encoders. With `causal`, each position sees only itself and those before."""

    def __init__(
        self, width: int, layers: int, heads: int, hidden: int, *, causal: bool, compute: Compute, rngs: InitKeys
    ) -> None:
        self.compute = compute
        self.layers = nnx.List([_Layer(width, heads, hidden, causal, compute, rngs) for _ in range(layers)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` has the shape (N, T, width)."""
        for layer in self.layers:
            x = run_block(layer, self.compute, x)
        return x


class TextModel(nnx.Module):
    """Embeds prompts. Every token sees itself and those before it."""

    def __init__(self, config: TextConfig, compute: Compute, rngs: InitKeys) -> None:
        self.embeddings = _Embeddings(config, compute, rngs)
        self.encoder = ClipTransformer(
            config.width, config.layers, config.heads, config.hidden, causal=True, compute=compute, rngs=rngs
        )
        self.final_layer_norm = layer_norm(config.width, compute, rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """The embeddings of ids of shape (N, T). shape=(N, T, width), dtype=float32"""
        return self.final_layer_norm(self.encoder(self.embeddings(ids))).astype(jnp.float32)


class TextEncoder(nnx.Module):
    """The `TextModel` under the name that it has in files."""

    def __init__(self, config: TextConfig, compute: Compute, *, rngs: nnx.Rngs) -> None:
        self.text_model = TextModel(config, compute, InitKeys(rngs))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """As `TextModel`."""
        return self.text_model(ids)
