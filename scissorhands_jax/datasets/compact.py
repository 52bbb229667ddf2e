"""CIFAR images in compact files, which are lossless, smaller than the original archives, and need only NumPy."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from scissorhands_jax.base import Dataset
from scissorhands_jax.datasets.splits import Splits, check_labels
from scissorhands_jax.errors import InputError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# fmt: off
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)
# fmt: on

# What `numpy.load` raises for files that are damaged or something else.
ARRAY_ERRORS = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


def has_compact_files(data_dir: Path, name: str) -> bool:
    """Says whether a folder holds compact files of a data set."""
    return any(data_dir.glob(f"{name}_*.npz"))


def compact_cifar10(data_dir: Path | None) -> Splits:
    """Reads CIFAR-10 (Krizhevsky, 2009), uint8 RGB, from `cifar10_train_*.npz` and `cifar10_test.npz` in `data_dir`.

    Raises:
      InputError: The files are missing or damaged.
    """
    if data_dir is None:
        raise InputError("cifar10 needs --data-dir, the folder that holds cifar10_train_*.npz and cifar10_test.npz")
    train_files = sorted(data_dir.glob("cifar10_train_*.npz"))
    if not train_files:
        raise InputError(
            f"{data_dir} holds no cifar10_train_*.npz and no prepared cifar10; point --data-dir at the folder with "
            "these files, or see `scissorhands data prepare cifar10 --help`"
        )
    return _splits(train_files, data_dir / "cifar10_test.npz", CIFAR10_CLASSES)


def cifar100_own(data_dir: Path | None) -> Splits:
    """Reads a part of CIFAR-100 with its own split, from `cifar100_own_train.npz` and `cifar100_own_test.npz`.

    It has 10,000 images for training and 2,000 for testing, uint8 RGB. They were drawn from the official training and
    test images together, so accuracies on them cannot be compared with published ones.

    Raises:
      InputError: The files are missing or damaged.
    """
    if data_dir is None:
        raise InputError(
            "cifar100_own needs --data-dir, the folder that holds cifar100_own_train.npz and cifar100_own_test.npz"
        )
    return _splits([data_dir / "cifar100_own_train.npz"], data_dir / "cifar100_own_test.npz", CIFAR100_CLASSES)


def _splits(train_files: list[Path], test_file: Path, class_names: tuple[str, ...]) -> Splits:
    files = [*train_files, test_file]
    *parts, test = [_read(path, len(class_names)) for path in files]
    for path, part in zip(files, parts, strict=False):
        if part["image"].shape[1:] != test["image"].shape[1:]:
            raise InputError(
                f"images in {path} have shape {part['image'].shape[1:]} and those in {test_file} "
                f"{test['image'].shape[1:]}; use files of one data set"
            )
    train = {name: np.concatenate([part[name] for part in parts]) for name in test}
    return Splits(train, test, class_names, augmented=True)


def _read(path: Path, num_classes: int) -> Dataset:
    """Reads images (N, H, W, 3), uint8, and labels (N,), int32, from one compact file.

    The file holds the planes G, R - G and B - G. Each entry is the difference from the entry above, and that in turn
    from its left neighbour, modulo 256. Running sums undo this without loss.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            residual, label = arrays["residual"], arrays["label"]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; point --data-dir at the folder that holds it") from error
    except ARRAY_ERRORS as error:
        raise InputError(f"{path} is not a whole compact image file ({error}); copy it again") from error
    if residual.dtype != np.uint8 or residual.ndim != 4 or label.ndim != 1 or residual.shape[:2] != (3, len(label)):
        raise InputError(
            f"{path} holds residuals of type {residual.dtype} and shape {residual.shape} for labels of shape "
            f"{label.shape} instead of uint8 of shape (3, N, H, W) for N labels; copy it again"
        )
    label = check_labels(label, num_classes, path)
    for axis in (2, 3):
        np.cumsum(residual, axis=axis, dtype=np.uint8, out=residual)
    green = residual[0]
    return {"image": np.stack([residual[1] + green, green, residual[2] + green], axis=-1), "label": label}
