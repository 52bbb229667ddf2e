"""CLIP: how well an image fits a prompt, and what an image shows (transformers' CLIPModel, OpenAI's weights).

Its text encoder is Stable Diffusion v1's (`text`) with a projection; the image encoder is a Vision Transformer.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from scissorhands_jax.base import Model, Params
from scissorhands_jax.diffusion import networks
from scissorhands_jax.diffusion.layers import Compute, InitKeys, layer_norm, linear
from scissorhands_jax.diffusion.networks import FLOAT32
from scissorhands_jax.diffusion.text import ClipTransformer, TextConfig, TextModel
from scissorhands_jax.image_files import in_eight_bits
from scissorhands_jax.models import from_nnx
from scissorhands_jax.models.cpu_convolution import conv_general_dilated


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The sizes of the image encoder. The defaults are ViT-L/14's."""

    width: int = 1024
    """The width of the embeddings."""
    layers: int = 24
    """The number of layers of the transformer."""
    heads: int = 16
    """The number of attention heads."""
    patch: int = 14
    """The height and width in pixels of what becomes one token."""
    size: int = 224
    """The height and width of an image in pixels."""

    @property
    def num_tokens(self) -> int:
        """The number of tokens of an image: one for each patch, and the class token."""
        return 1 + (self.size // self.patch) ** 2


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The sizes of both encoders and of the space that they share. The defaults are ViT-L/14's."""

    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    vision: VisionConfig = dataclasses.field(default_factory=VisionConfig)
    projection: int = 768


_BASE_TEXT = TextConfig(width=512, heads=8, hidden=2048)
CLIPS = {
    "ViT-L/14": ClipConfig(),
    "ViT-L/14@336px": ClipConfig(vision=VisionConfig(size=336)),
    "ViT-B/16": ClipConfig(_BASE_TEXT, VisionConfig(768, 12, 12, 16), 512),
    "ViT-B/32": ClipConfig(_BASE_TEXT, VisionConfig(768, 12, 12, 32), 512),
    "tiny": ClipConfig(networks.TINY.text, VisionConfig(48, 2, 4, 4, 16), 24),  # for tests and trials
}
"""The networks that OpenAI published, by name. Scores of different networks cannot be compared."""

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class _Embeddings(nnx.Module):
    def __init__(self, config: VisionConfig, compute: Compute, rngs: InitKeys) -> None:
        patch = (config.patch, config.patch)
        self.class_embedding = nnx.Param(jax.random.normal(rngs.params(), (config.width,)))
        self.patch_embedding = nnx.Conv(
            3,
            config.width,
            patch,
            strides=patch,
            padding="VALID",
            use_bias=False,
            dtype=compute.dtype,
            conv_general_dilated=conv_general_dilated,
            rngs=rngs,
        )
        self.position_embedding = nnx.Embed(config.num_tokens, config.width, dtype=compute.dtype, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        patches = self.patch_embedding(pixels)
        count, width = patches.shape[0], patches.shape[-1]
        first = jnp.broadcast_to(self.class_embedding[...].astype(patches.dtype), (count, 1, width))
        x = jnp.concatenate([first, patches.reshape(count, -1, width)], axis=1)
        return x + self.position_embedding(jnp.arange(x.shape[1]))[None]


class _VisionModel(nnx.Module):
    def __init__(self, config: VisionConfig, compute: Compute, rngs: InitKeys) -> None:
        self.embeddings = _Embeddings(config, compute, rngs)
        self.pre_layrnorm = layer_norm(config.width, compute, rngs)  # spelled as in the files
        self.encoder = ClipTransformer(
            config.width, config.layers, config.heads, 4 * config.width, causal=False, compute=compute, rngs=rngs
        )
        self.post_layernorm = layer_norm(config.width, compute, rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return self.post_layernorm(x[:, 0])


class ImageTower(nnx.Module):
    """Images to the shared space."""

    def __init__(self, config: ClipConfig, compute: Compute, *, rngs: nnx.Rngs) -> None:
        keys = InitKeys(rngs)
        self.vision_model = _VisionModel(config.vision, compute, keys)
        self.visual_projection = linear(config.vision.width, config.projection, compute, keys, use_bias=False)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """The features of images. shape=(N, projection), dtype=float32

        Args:
          pixels: Images as `preprocess_image` returns them. shape=(N, size, size, 3)
        """
        return self.visual_projection(self.vision_model(pixels)).astype(jnp.float32)


class TextTower(nnx.Module):
    """Prompts to the shared space."""

    def __init__(self, config: ClipConfig, compute: Compute, *, rngs: nnx.Rngs) -> None:
        keys = InitKeys(rngs)
        self.text_model = TextModel(config.text, compute, keys)
        self.text_projection = linear(config.text.width, config.projection, compute, keys, use_bias=False)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """The features of prompts: those of the first token with the highest id, which ends a prompt.

        Args:
          ids: The ids of the tokens. shape=(N, T)

        Returns:
          shape=(N, projection), dtype=float32
        """
        embeddings = self.text_model(ids)
        last = jnp.take_along_axis(embeddings, jnp.argmax(ids, axis=1)[:, None, None], axis=1)[:, 0]
        return self.text_projection(last).astype(jnp.float32)


@functools.cache
def clip_images(config: ClipConfig = CLIPS["ViT-L/14"], compute: Compute = FLOAT32) -> Model:
    """The `ImageTower` as a `Model`; takes the params of the whole CLIP."""
    return from_nnx(lambda rngs: ImageTower(config, compute, rngs=rngs))


@functools.cache
def clip_texts(config: ClipConfig = CLIPS["ViT-L/14"], compute: Compute = FLOAT32) -> Model:
    """The `TextTower` as a `Model`; takes the params of the whole CLIP."""
    return from_nnx(lambda rngs: TextTower(config, compute, rngs=rngs))


@functools.cache
def clip_outline(config: ClipConfig = CLIPS["ViT-L/14"]) -> Params:
    """Names, shapes and types of all parameters: a nested dict of `jax.ShapeDtypeStruct`s."""
    return networks.module_outline(
        lambda rngs: TextTower(config, FLOAT32, rngs=rngs), lambda rngs: ImageTower(config, FLOAT32, rngs=rngs)
    )


def preprocess_image(image: Image.Image, size: int = 224) -> np.ndarray:
    """An image as CLIP takes it: its shorter side is resized to `size`, its middle cut out, its channels normalised.

    Args:
      image: The image, in any mode and of any size.
      size: The height and width of the result.

    Returns:
      shape=(size, size, 3), dtype=float32
    """
    image = in_eight_bits(image).convert("RGB")
    width, height = image.size
    shorter = min(width, height)
    width, height = size * width // shorter, size * height // shorter
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32)
    return (pixels / 255 - _MEAN) / _STD


def clip_scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """The CLIP score of each image and its prompt: 100 max(cos, 0). shape=(N,), dtype=float64

    Args:
      images: The features of the images. shape=(N, projection)
      texts: The features of their prompts. shape=(N, projection)

    References:
      Hessel et al., CLIPScore: a reference-free evaluation metric for image captioning, EMNLP 2021, where the factor is
      2.5. Papers about text-to-image networks report it with 100, as here.
    """
    images, texts = (np.asarray(x, np.float64) for x in (images, texts))
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    return 100 * np.maximum(np.sum(images * texts, axis=1) / lengths, 0)
