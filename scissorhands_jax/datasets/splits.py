"""What every data set is once it is read: labelled images to train and to test with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

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
