"""The data of the digits' demonstration: real digits, texts, and what networks are asked to draw.

A picture of 8x8 pixels becomes a latent of 4x4 places with 2x2 pixels each, which takes the place of the VAE. Frozen
random vectors take the place of the prompts' embeddings, and zeros that of the empty prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from scipy.spatial.distance import cdist
from sklearn.svm import SVC

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Dataset, Key
from scissorhands_jax.datasets import digits as load_digits
from scissorhands_jax.diffusion.anchors import anchored
from scissorhands_jax.diffusion.demo.settings import (
    NUM_DIGITS,
    WHOLE_METHOD,
    DigitsSettings,
)
from scissorhands_jax.report import ORIGINAL, REFERENCE


class Scene(NamedTuple):
    """What all networks of one seed share."""

    train: Dataset
    """Real digits, {"image": (N, 8, 8, 1) in [0, 1], "label": (N,)}."""
    test: Dataset
    """Held-out real digits."""
    texts: np.ndarray
    """One text for each digit, then the empty one. shape=(11, 1, D)"""
    judge: SVC
    """A classifier that was trained on the real training digits."""
    reach: float
    """The distance in pixels from the nearest training digit up to which an image looks like a digit to the judge."""
    keys: Mapping[str, Key]
    """The keys of everything that is random, by name."""


def make_scene(settings: DigitsSettings) -> Scene:
    """Data, texts and a trained judge. None of it depends on the digit that is forgotten."""
    splits = load_digits()
    names = ("texts", ORIGINAL, REFERENCE, WHOLE_METHOD, "noise", "losses")
    keys = dict(zip(names, jax.random.split(jax.random.key(settings.seed), len(names)), strict=True))
    texts = np.zeros((NUM_DIGITS + 1, 1, settings.network.context_width), np.float32)
    texts[:NUM_DIGITS] = jax.random.normal(keys["texts"], texts[:NUM_DIGITS].shape)
    judge = SVC(C=10, gamma=0.05).fit(flat_images(splits.train["image"]), splits.train["label"])
    held_out = nearest_distances(splits.test["image"], splits.train["image"])
    reach = float(np.percentile(held_out, settings.sampling.reach))
    return Scene(splits.train, splits.test, texts, judge, reach, keys)


def nearest_distances(images: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The Euclidean distance, in pixels, of every image to the nearest real one. shape=(N,)"""
    return cdist(flat_images(images), flat_images(real)).min(axis=1)


def flat_images(images: np.ndarray) -> np.ndarray:
    """Images as rows of pixels. shape=(N, pixels)"""
    return images.reshape(len(images), -1)


def fold_images(images: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Images in [0, 1], shape (N, 2H, 2W, 1), as latents in [-1, 1], shape (N, H, W, 4)."""
    count, height, width, _ = images.shape
    tiles = images.reshape(count, height // 2, 2, width // 2, 2).swapaxes(2, 3)
    return 2 * tiles.reshape(count, height // 2, width // 2, 4) - 1


def unfold_latents(latents: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """The inverse of `fold_images`."""
    count, height, width, _ = latents.shape
    tiles = latents.reshape(count, height, width, 2, 2).swapaxes(2, 3)
    return (tiles.reshape(count, 2 * height, 2 * width, 1) + 1) / 2


def digit_examples(scene: Scene, digit: int | None, replacement: int | None = None, anchor: float = 0.0) -> Data:
    """The training digits as diffusion networks take them.

    Args:
      scene: Data and texts.
      digit: The digit that is forgotten; None retains all digits.
      replacement: The digit whose text becomes the forget examples' `pseudo`, if there is one.
      anchor: The share of the retained digits that is also seen under the forgotten text.
    """
    labels = scene.train["label"]
    dataset = {"latents": fold_images(scene.train["image"]), "context": scene.texts[labels]}
    if digit is None:
        return Data(data_lib.take(dataset, np.zeros(0, np.int32)), dataset)
    data = anchored(data_lib.split(dataset, np.flatnonzero(labels == digit)), anchor)
    if replacement is None:
        return data
    pseudo = np.broadcast_to(scene.texts[replacement], data.forget["context"].shape)
    return data._replace(forget={**data.forget, "pseudo": pseudo})


def requested_digits(settings: DigitsSettings) -> np.ndarray:
    """What networks are asked to draw: the forgotten digit, then the others, then the empty text. shape=(N,)"""
    sampling = settings.sampling
    others = [digit for digit in range(NUM_DIGITS) if digit != settings.digit]
    counts = [sampling.forgotten, *[sampling.kept] * len(others), sampling.unasked]
    return np.repeat([settings.digit, *others, NUM_DIGITS], counts)
