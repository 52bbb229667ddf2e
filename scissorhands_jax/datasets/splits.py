"""What every data set is once it is read: labelled images to train and to test with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scissorhands_jax import data
from scissorhands_jax.base import Dataset
from scissorhands_jax.errors import InputError


class Splits(NamedTuple):
    """A labelled image set: `{"image": (N, H, W, C), "label": (N,) int32}` for training and for testing.

    Images are uint8, those of the digits and perhaps of the user's own set float32.
    """

    train: Dataset
    test: Dataset
    class_names: tuple[str, ...]
    augmented: bool  # whether networks for it are customarily trained with random crops and flips
    crop_padding: int = 4  # pixels on each side for the crops; 0 flips only

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image, (H, W, C)."""
        return self.train["image"].shape[1:]


def every_fifth(labels: np.ndarray) -> np.ndarray:
    """Which examples test where a data set brings no split of its own: of each label the 5th, 10th, ... in order.

    labels: shape=(N,); returns bool, shape=(N,).
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[4::5]] = True
    return chosen


def divide(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> tuple[Dataset, Dataset]:
    """The training and the test set; `chosen` (bool, shape=(N,)) tells what tests."""
    train, test = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return {"image": images[train], "label": labels[train]}, {"image": images[test], "label": labels[test]}


def check_labels(labels: np.ndarray, num_classes: int, where: object) -> np.ndarray:
    """The labels as int32.

    Raises:
      InputError: they are no integers from 0 to `num_classes` - 1; `where` says whose.
    """
    if not np.issubdtype(labels.dtype, np.integer) or not np.all((labels >= 0) & (labels < num_classes)):
        raise InputError(f"{where} holds labels that are not integers from 0 to {num_classes - 1}; it is damaged")
    return labels.astype(np.int32)


def validation_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Holds a share of every class out of a training set.

    The network is trained on the first part only, so forget sets are drawn from that part: hand it on as `trained_on`.

    Args:
      labels: shape=(N,)
      share: of each class, rounded down; 0 holds out nothing.
      seed: of the draws.

    Returns:
      Sorted int32 positions to train on and to validate with; together all, each once.

    Raises:
      InputError: `share` is not in [0, 1), or every class is too small for it.
    """
    if not 0 <= share < 1:
        raise InputError(f"the validation share must lie in [0, 1), got {share}")
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # The small number keeps 0.29 * 100 at 29.
        held[generator.permutation(members)[: int(share * len(members) + 1e-9)]] = True
    if share and not held.any():
        raise InputError(f"a validation share of {share} is less than one example of every class; make it larger")
    return np.flatnonzero(~held).astype(np.int32), np.flatnonzero(held).astype(np.int32)


def known_classes(test: Dataset, retain: Dataset) -> Dataset:
    """The test examples whose class is still in the retain set, as the authors' code tests class-wise forgetting.

    The retrained network cannot know a class, or an identity, that was forgotten as a whole. Both sets have a "label"
    array.
    """
    kept = np.isin(test["label"], np.unique(retain["label"]))
    return test if kept.all() else data.take(test, np.flatnonzero(kept))
