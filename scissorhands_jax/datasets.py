"""Labelled images by name: scikit-learn's digits, and CIFAR-10 from compact files."""

from __future__ import annotations

import difflib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scissorhands_jax.base import Dataset
from scissorhands_jax.errors import InputError


class Splits(NamedTuple):
    """A labelled image set: `{"image": (N, H, W, C), "label": (N,) int32}` for training and for testing."""

    train: Dataset
    test: Dataset
    class_names: tuple[str, ...]
    augmented: bool  # whether networks for it are customarily trained with random crops and flips

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image, (H, W, C)."""
        return self.train["image"].shape[1:]


def load(name: str, data_dir: str | Path | None = None) -> Splits:
    """Reads a data set by its name in DATASETS.

    Args:
      name: "digits" (comes with scikit-learn) or "cifar10".
      data_dir: the folder of its files; not needed for digits.

    Raises:
      InputError: the name is unknown, or files are missing or damaged.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4) or list(DATASETS)
        raise InputError(f"there is no data set {name!r}; near matches: {', '.join(near)}")
    return DATASETS[name](None if data_dir is None else Path(data_dir))


def digits(data_dir: Path | None = None) -> Splits:
    """scikit-learn's handwritten digits, 8x8 grey, float32 in [0, 1]; always the same 1,347 to train, 450 to test."""
    del data_dir
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[..., None]
    labels = bunch.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.sort(order[:450]), np.sort(order[450:])
    return Splits(
        {"image": images[train], "label": labels[train]},
        {"image": images[test], "label": labels[test]},
        tuple(map(str, range(10))),
        augmented=False,
    )


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(data_dir: Path | None) -> Splits:
    """CIFAR-10 (Krizhevsky, 2009), uint8 RGB, from `cifar10_train_*.npz` and `cifar10_test.npz` in `data_dir`."""
    if data_dir is None:
        raise InputError("cifar10 needs --data-dir, the folder that holds cifar10_train_*.npz and cifar10_test.npz")
    train_files = sorted(data_dir.glob("cifar10_train_*.npz"))
    if not train_files:
        raise InputError(f"{data_dir} holds no cifar10_train_*.npz; point --data-dir at the folder with these files")
    files = [*train_files, data_dir / "cifar10_test.npz"]
    *parts, (images, labels) = [_read_compact(path, len(CIFAR10_CLASSES)) for path in files]
    for path, part in zip(files, parts, strict=False):
        if part[0].shape[1:] != images.shape[1:]:
            raise InputError(
                f"images in {path} have shape {part[0].shape[1:]}, those in {files[-1]} {images.shape[1:]}"
            )
    return Splits(
        {
            "image": np.concatenate([part[0] for part in parts]),
            "label": np.concatenate([part[1] for part in parts]),
        },
        {"image": images, "label": labels},
        CIFAR10_CLASSES,
        augmented=True,
    )


DATASETS: dict[str, Callable[[Path | None], Splits]] = {"digits": digits, "cifar10": cifar10}


_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error)


def _read_compact(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, 3) uint8 and labels (N,) int32 from one compact file.

    The file holds the planes G, R-G and B-G, each differenced down the rows and then along the columns, modulo 256;
    running sums undo it without loss.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            residual, label = arrays["residual"], arrays["label"]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; point --data-dir at the folder that holds it") from error
    except (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, MemoryError, *_ZIP_ERRORS) as error:
        raise InputError(f"{path} is not a whole compact image file: {error}") from error
    if residual.dtype != np.uint8 or residual.ndim != 4 or label.ndim != 1 or residual.shape[:2] != (3, len(label)):
        raise InputError(
            f"{path} holds residuals of type {residual.dtype} and shape {residual.shape} for labels of shape "
            f"{label.shape}; expected uint8 of shape (3, N, H, W) for N labels"
        )
    if not np.issubdtype(label.dtype, np.integer) or not np.all((label >= 0) & (label < num_classes)):
        raise InputError(f"{path} holds labels that are not integers from 0 to {num_classes - 1}; it is damaged")
    planes = np.cumsum(np.cumsum(residual, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    green = planes[0]
    images = np.stack([planes[1] + green, green, planes[2] + green], axis=-1)
    return images, label.astype(np.int32)
