"""Data sets as they are once they have been read: examples and their targets, for training and for testing."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from scissorhands_jax import losses
from scissorhands_jax.base import Dataset
from scissorhands_jax.errors import InputError
from scissorhands_jax.tasks import CLASSIFICATION, Task

_MOST_CLASSES = 100_000  # far beyond which labels are numbers of something else, such as of people


class Splits(NamedTuple):
    """A set of labelled images: `{"image": (N, H, W, C), "label": (N,) int32}` for training and for testing.

    Images are uint8 in 0 to 255, or float32 in [0, 1], as those of the digits are. A user's own examples may be feature
    vectors, `{"features": (N, D) float32, "label": ...}`, and their targets those of another task.
    """

    train: Dataset
    test: Dataset
    class_names: tuple[str, ...]
    augmented: bool  # whether networks for it are customarily trained with random crops and flips
    crop_padding: int = 4  # pixels that are added on each side before a random crop; with 0 images are only flipped
    # The positions in `train` of the examples that are the test set, sorted, where the user's files have both in one.
    # Networks are trained on the others only, and positions count all of them.
    held_out: np.ndarray | None = None
    task: Task = CLASSIFICATION  # what networks for it are for

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of what a network is given of one example: (H, W, C) of an image, (D,) of a feature vector."""
        return losses.inputs_of(self.train).shape[1:]

    @property
    def num_outputs(self) -> int:
        """How many numbers a network gives for an example: one for each class, or one for each number of a target."""
        return len(self.class_names) if self.task.classifies else math.prod(self.train["label"].shape[1:])

    @property
    def groups(self) -> np.ndarray:
        """The classes of the training examples; zeros where there are none. shape=(N,), integers"""
        labels = self.train["label"]
        return labels if self.task.classifies else np.zeros(len(labels), np.int32)


def evenly_chosen(labels: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Chooses test examples for a data set that has no split: the same share of each label, at equal distances.

    Args:
      labels: The labels of all examples, of shape (N,).
      share: The share of each label, in (0, 1), rounded down. By default it is the 5th, 10th, ... example of a label.

    Returns:
      A bool array of shape (N,): True for test examples.
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # In floating point 5 * 0.2 may be a little less than 1; the small number makes up for it.
        counted = np.floor(np.arange(len(members) + 1) * share + 1e-9)
        chosen[members[counted[1:] > counted[:-1]]] = True
    return chosen


def divide(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> tuple[Dataset, Dataset]:
    """Divides examples into a training and a test set.

    Args:
      images: An array of shape (N, ...).
      labels: An array of shape (N,).
      chosen: A bool array of shape (N,): True for test examples.
    """
    train, test = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return {"image": images[train], "label": labels[train]}, {"image": images[test], "label": labels[test]}


def whole_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Returns labels, unless they are not whole numbers from 0, one per example.

    Args:
      labels: Any array.
      where: What holds the labels, for the message.

    Raises:
      InputError: The labels have another form; the message says which one and how to convert it.
    """
    what = f"{where} is {labels.dtype} of shape {labels.shape}"
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.size and np.all((labels == 0) | (labels == 1)):
        if np.all(labels.sum(axis=1) == 1):
            raise InputError(f"{what}, labels in one-hot form; give whole numbers, as with .argmax(axis=1)")
        raise InputError(f"{what}, several labels for an example; save them as `labels` in place of `label`")
    if labels.ndim == 2 and labels.shape[1] == 1:
        raise InputError(f"{what}; give shape ({len(labels)},), as with .ravel()")
    if labels.ndim != 1:
        raise InputError(f"{what}; give one label for each example, of shape (N,)")
    if not labels.size:
        raise InputError(f"{where} holds no labels; give one for each example")
    if np.issubdtype(labels.dtype, np.floating) and not np.all(np.isfinite(labels)):
        bad = np.flatnonzero(~np.isfinite(labels))
        raise InputError(
            f"{what} with NaN or infinity at {len(bad)} examples, the first is example {bad[0]}; correct them"
        )
    if labels.dtype == np.bool_ or (np.issubdtype(labels.dtype, np.floating) and np.all(labels % 1 == 0)):
        raise InputError(f"{what}; convert it with .astype('int32')")
    if np.issubdtype(labels.dtype, np.floating):
        raise InputError(f"{what}, numbers that are no classes; save them as `target`, for a regression")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{what}; give whole numbers from 0, one per example, and the names in class_names, as "
            "numpy.unique(labels, return_inverse=True) makes both"
        )
    if labels.min() < 0:
        raise InputError(f"{where} has the label {labels.min()}; labels count classes from 0")
    if labels.max() >= _MOST_CLASSES:
        raise InputError(
            f"{where} has the label {labels.max()}, and labels count classes from 0 to {_MOST_CLASSES - 1} at most; "
            "number the classes, as with numpy.unique(labels, return_inverse=True)[1]"
        )
    return labels


def check_labels(labels: np.ndarray, num_classes: int, where: object) -> np.ndarray:
    """Returns the labels as int32.

    Args:
      labels: The labels, of any shape.
      num_classes: The number of classes.
      where: What holds the labels, for the message.

    Raises:
      InputError: The labels are not integers from 0 to `num_classes` - 1.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where} holds labels of type {labels.dtype}; give integers from 0 to {num_classes - 1}")
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise InputError(
            f"{where} holds {outside.size} labels outside 0 to {num_classes - 1}, the first is "
            f"{labels.flat[outside[0]]} of example {outside[0]}; correct them or copy it again"
        )
    return labels.astype(np.int32)


def validation_split(
    labels: np.ndarray, share: float, seed: int, held_out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Holds a random share of every class out of a training set, for validation.

    The network is trained on the rest only. Pass the first result as `trained_on` to `forget_positions` and
    `data.split`, so that forget sets are drawn from it.

    Args:
      labels: The labels of all examples, of shape (N,).
      share: The share of each class to hold out, in [0, 1). The number of examples is rounded down.
      seed: The seed of the draws.
      held_out: The positions of examples that are for testing and thus for neither. By default there are none.

    Returns:
      The positions for training and those for validation, sorted and as int32. Each other position is in one of them.

    Raises:
      InputError: `share` is not in [0, 1), or so small that no class gives an example.
    """
    if not 0 <= share < 1:
        raise InputError(f"the validation share must lie in [0, 1), got {share}")
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    free = np.ones(len(labels), bool)
    free[[] if held_out is None else held_out] = False
    for label in np.unique(labels[free]):
        members = np.flatnonzero((labels == label) & free)
        # In floating point 0.29 * 100 is a little less than 29; the small number makes up for it.
        held[generator.permutation(members)[: int(share * len(members) + 1e-9)]] = True
    if share and not held.any():
        raise InputError(f"a validation share of {share} is less than one example of every class; make it larger")
    return np.flatnonzero(~held & free).astype(np.int32), np.flatnonzero(held).astype(np.int32)
