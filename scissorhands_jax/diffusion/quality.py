"""What unlearning costs: the distance of images of kept prompts from a reference, and how well they fit the prompts."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from scissorhands_jax import hashing
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import clip_weights, image_folders, inception, vision
from scissorhands_jax.diffusion.image_folders import ImageEntry
from scissorhands_jax.diffusion.layers import Compute
from scissorhands_jax.diffusion.networks import FLOAT32
from scissorhands_jax.diffusion.tokenizer import Tokenizer
from scissorhands_jax.errors import InputError, check_whole
from scissorhands_jax.metrics import distances, intervals
from scissorhands_jax.terminal import Progress
from scissorhands_jax.training.descriptions import describe_value

_LEAST_IMAGES = 8
_MANY_FEATURES = 1024  # with which a distance takes seconds, so that fewer are resampled


class Clip(NamedTuple):
    """CLIP, with the tokenizer of its prompts."""

    name: str
    """The name of the network in `vision.CLIPS`."""
    params: Params
    """The parameters of both encoders."""
    tokenizer: Callable[[Sequence[str]], np.ndarray]
    """What turns prompts into ids."""
    sha256: str
    """The hash of its file."""
    compute: Compute = FLOAT32
    """How the encoders compute."""

    def description(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, as JSON."""
        tokenizer = describe_value(self.tokenizer, "the tokenizer")
        return {"name": self.name, "sha256": self.sha256, "dtype": self.compute.dtype, "tokenizer": tokenizer}


@dataclasses.dataclass(frozen=True)
class Spread:
    """What a distance is over random draws of images."""

    mean: float
    low: float
    """The 2.5th percentile."""
    high: float
    """The 97.5th percentile."""


@dataclasses.dataclass(frozen=True)
class FrechetDistance:
    """A Fréchet distance, and what chance makes of it."""

    value: intervals.Estimate
    """The distance of all images from the whole reference."""
    matched: Spread
    """The distance of random draws of the images from random draws of the reference."""
    floor: Spread
    """The distance between random draws of the reference."""
    size: int
    """The number of images in a draw."""


@dataclasses.dataclass(frozen=True)
class MeanScore:
    """A mean with Student's interval, whose ends are None for one value."""

    mean: float
    low: float | None
    high: float | None
    images: int
    """The number of values."""


def load_clip(path: Path, tokenizer: Callable[[Sequence[str]], np.ndarray], compute: Compute = FLOAT32) -> Clip:
    """Reads CLIP's weights.

    Args:
      path: The file or folder, see `clip_weights.read_clip`.
      tokenizer: CLIP's tokenizer, which is also that of Stable Diffusion v1.
      compute: How the encoders compute.

    Raises:
      InputError: See `clip_weights.read_clip`; also if the tokenizer is that of another text encoder.
    """
    name, params = clip_weights.read_clip(path)
    known = vision.CLIPS[name].text.vocabulary
    if isinstance(tokenizer, Tokenizer) and tokenizer.size != known:
        raise InputError(
            f"the tokenizer {tokenizer.files[0]} has {tokenizer.size:,} tokens, and CLIP {name} knows {known:,}, so it "
            "would read other words; put CLIP's own files (vocab.json, merges.txt) beside its weights"
        )
    sha256 = hashing.file_sha256(clip_weights.find_clip(path))
    return Clip(name, jax.device_put(params, jax.devices()[0]), tokenizer, sha256, compute)


@functools.partial(jax.jit, static_argnames=("name", "compute"))
def _image_features(params: Params, pixels: jax.Array, *, name: str, compute: Compute) -> jax.Array:
    return vision.clip_images(vision.CLIPS[name], compute).apply(params, {}, pixels, train=False)[0]


@functools.partial(jax.jit, static_argnames=("name", "compute"))
def _text_features(params: Params, ids: jax.Array, *, name: str, compute: Compute) -> jax.Array:
    return vision.clip_texts(vision.CLIPS[name], compute).apply(params, {}, ids, train=False)[0]


class Inception(NamedTuple):
    """The network of the FID."""

    layers: inception.Layers
    """Its layers."""
    sha256: str
    """The hash of its file."""


def load_inception(path: Path) -> Inception:
    """Reads the network of the FID.

    Args:
      path: The file, see `inception.read_inception`.

    Raises:
      WeightsError: See `inception.read_inception`.
    """
    return Inception(inception.read_inception(path), hashing.file_sha256(path))


_inception_features = jax.jit(inception.inception_features)


def image_features(
    entries: Sequence[ImageEntry],
    network: Clip | Inception,
    *,
    batch_size: int = 8,
    progress: Progress,
    description: str,
) -> np.ndarray:
    """Features of images: CLIP's, before they are normalised, or Inception's. shape=(images, features), dtype=float64

    Args:
      entries: The images.
      network: The network that sees them.
      batch_size: The number of images in a batch.
      progress: Shows how many images were seen.
      description: What it calls them.

    Raises:
      InputError: An image cannot be read, or `batch_size` is below 1 or no whole number.
    """
    batch_size = check_whole("batch_size", batch_size, 1)
    task = progress.add_task(description, total=len(entries), note="")
    rows: list[np.ndarray] = []
    batch_size = min(batch_size, len(entries))
    for start in range(0, len(entries), batch_size):
        images = [image_folders.read_rgb_image(entry.path) for entry in entries[start : start + batch_size]]
        rows += list(picture_features(images, network, batch_size=batch_size))
        progress.advance(task, len(images))
    return np.stack(rows)


def picture_features(
    images: Sequence[Image.Image], network: Clip | Inception, *, batch_size: int | None = None
) -> np.ndarray:
    """Features of RGB pictures of any sizes. shape=(images, features), dtype=float64

    Args:
      images: The pictures.
      network: CLIP or Inception.
      batch_size: The number of pictures that a batch is filled up to; None is their own number.

    Raises:
      InputError: A feature is not finite, or `batch_size` is no whole number, or smaller than the number of pictures.
    """
    size = len(images) if batch_size is None else check_whole("batch_size", batch_size, len(images))
    if isinstance(network, Inception):
        pixels = _padded(np.stack([inception.stretch_image(image) for image in images]), size)
        found = _inception_features(network.layers, pixels)
    else:
        side = vision.CLIPS[network.name].vision.size
        pixels = _padded(np.stack([vision.preprocess_image(image, side) for image in images]), size)
        found = _image_features(network.params, pixels, name=network.name, compute=network.compute)
    return _finite(found, "images", network)[: len(images)]


def _finite(features: jax.Array, what: str, network: Clip | Inception) -> np.ndarray:
    """The features in float64; NaN would be the largest cosine, and a distance of NaN.

    Raises:
      InputError: One is not finite.
    """
    found = np.asarray(features, np.float64)
    if not np.isfinite(found).all():
        name, option = ("Inception", "inception") if isinstance(network, Inception) else ("CLIP", "clip")
        raise InputError(f"{name} gives features of {what} that are not finite; check the weights of --{option}")
    return found


def prompt_features(prompts: Sequence[str], clip: Clip, *, batch_size: int = 64) -> np.ndarray:
    """CLIP's features of prompts. shape=(prompts, projection), dtype=float64

    Args:
      prompts: The prompts.
      clip: The network that reads them.
      batch_size: The number of prompts in a batch.

    Raises:
      InputError: A feature is not finite, or `batch_size` is below 1 or no whole number.
    """
    batch_size = check_whole("batch_size", batch_size, 1)
    different = list(dict.fromkeys(prompts))
    batch_size = min(batch_size, len(different))
    rows: list[np.ndarray] = []
    for start in range(0, len(different), batch_size):
        ids = np.asarray(clip.tokenizer(different[start : start + batch_size]))
        found = _text_features(clip.params, _padded(ids, batch_size), name=clip.name, compute=clip.compute)
        rows += list(_finite(found, "prompts", clip)[: len(ids)])
    known = dict(zip(different, rows, strict=True))
    return np.stack([known[prompt] for prompt in prompts])


def _padded(batch: np.ndarray, size: int) -> np.ndarray:
    """The batch filled up to a size, so that the last one needs no compilation of its own."""
    return np.concatenate([batch, *[batch[-1:]] * (size - len(batch))])


def compare_features(
    images: np.ndarray,
    reference: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int | None = None,
    num_draws: int | None = None,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> FrechetDistance:
    """The Fréchet distance between features of images and of a reference, with its floor.

    The distance of two finite samples is larger than that of the distributions that they were drawn from, especially
    with few images and many features. Random draws of the same size are therefore compared as well: images against the
    reference, and reference against reference. Where these agree, no difference can be seen with this many images.

    The interval of the whole distance is by bootstrap over the images of both sets. It does not include that bias.

    Args:
      images: The features of the images. shape=(n, D)
      reference: The features of the reference. shape=(m, D)
      level: The coverage that the interval aims at.
      num_resamples: The number of resamples of the bootstrap; None is 100, or 30 of 1024 features and more.
      num_draws: The number of random draws for `matched` and `floor`; None is 20, or 10 of so many features.
      seed: The seed of resamples and draws.
      on_step: Called after each distance.

    Raises:
      InputError: A set has fewer than 8 images.
    """
    check_sizes(len(images), len(reference))
    many = images.shape[1] >= _MANY_FEATURES
    num_resamples = num_resamples or (30 if many else 100)
    num_draws = num_draws or (10 if many else 20)
    generator = np.random.default_rng(seed)
    matched, floor = [], []

    def measured(first: np.ndarray, second: np.ndarray) -> float:
        on_step()
        return distances.frechet_distance(first, second)

    estimate = intervals.two_sample_bootstrap(
        measured,
        images,
        reference,
        level=level,
        num_resamples=num_resamples,
        seed=generator,
        bounds=(0, math.inf),
    )
    size = min(len(images), len(reference) // 2)
    for _ in range(num_draws):
        order = generator.permutation(len(reference))
        one, other = reference[order[:size]], reference[order[size : 2 * size]]
        floor.append(distances.frechet_distance(one, other))
        matched.append(distances.frechet_distance(images[generator.permutation(len(images))[:size]], other))
        on_step()

    def spread(values: list[float]) -> Spread:
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return Spread(float(np.mean(values)), float(low), float(high))

    return FrechetDistance(estimate, spread(matched), spread(floor), size)


def check_sizes(images: int, reference: int) -> None:
    """Refuses sets with too few images for `compare_features`.

    Args:
      images: The number of images.
      reference: The number of images of the reference.

    Raises:
      InputError: One of them is below 8.
    """
    if min(images, reference) < _LEAST_IMAGES:
        raise InputError(
            f"a distance between {images} images and {reference} of the reference says nothing; give at least "
            f"{_LEAST_IMAGES} of each, better thousands"
        )


def mean_score(values: np.ndarray, level: float = 0.95) -> MeanScore:
    """The mean of some values with Student's interval.

    Args:
      values: The values. shape=(N,)
      level: The coverage of the interval.
    """
    found = intervals.mean_estimate(values, level=level)
    low, high = (found.low, found.high) if len(values) > 1 else (None, None)
    return MeanScore(found.value, low, high, len(values))
