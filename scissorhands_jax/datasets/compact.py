"""CIFAR images in compact files, which are lossless, smaller than the original archives, and need only NumPy."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from scissorhands_jax import array_files, files, hashing, reading
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

_LIST = "cifar10_files.json"
_TRAIN_COUNT, _TEST_COUNT = 50_000, 10_000
_ENCODED_AT_ONCE = 5_000


def has_compact_files(data_dir: Path, name: str) -> bool:
    """Says whether a folder holds compact files of a data set."""
    return any(data_dir.glob(f"{name}_*.npz"))


def compact_cifar10(data_dir: Path | None) -> Splits:
    """Reads CIFAR-10 (Krizhevsky, 2009), uint8 RGB, from `cifar10_train_*.npz` and `cifar10_test.npz` in `data_dir`.

    Where `pack_cifar10` wrote the files, all that it wrote must be there with the SHA-256 that it noted. Elsewhere
    parts must be numbered from 0 without a gap, and beside all 10,000 test images there must be all 50,000 to train on.

    Raises:
      InputError: The files are missing or damaged.
    """
    if data_dir is None:
        raise InputError("cifar10 needs --data-dir, the folder that holds cifar10_train_*.npz and cifar10_test.npz")
    listed = [data_dir / name for name in _checked(data_dir) if "_train_" in name]
    train_files = listed or _numbered(data_dir)
    if not train_files:
        raise InputError(
            f"{data_dir} holds no cifar10_train_*.npz and no prepared cifar10; point --data-dir at the folder with "
            "these files, or see `scissorhands data prepare cifar10 --help`"
        )
    splits = _splits(train_files, data_dir / "cifar10_test.npz", CIFAR10_CLASSES)
    count = len(splits.train["label"])
    if not listed and len(splits.test["label"]) == _TEST_COUNT and count != _TRAIN_COUNT:
        raise InputError(
            f"{data_dir} holds all {_TEST_COUNT} test images of CIFAR-10 and {count} of its {_TRAIN_COUNT} training "
            f"images; copy all its parts, or write a subset with datasets.compact.pack_cifar10, which lists its parts "
            f"in {_LIST}"
        )
    return splits


def _numbered(data_dir: Path) -> list[Path]:
    """The files of the training images in the order of their numbers; empty where there are none.

    Raises:
      InputError: The numbers do not run from 0 without a gap.
    """
    names = [(path.stem.removeprefix("cifar10_train_"), path) for path in sorted(data_dir.glob("cifar10_train_*.npz"))]
    found = sorted(((int(number) if number.isdecimal() else -1), path) for number, path in names)
    if [number for number, _ in found] != list(range(len(found))):
        raise InputError(
            f"the parts of CIFAR-10 in {data_dir} are {', '.join(path.name for _, path in found)}, whose numbers do "
            "not run from 0 without a gap; copy all its parts, each once"
        )
    return [path for _, path in found]


def pack_cifar10(splits: Splits, folder: Path, *, parts: int = 2) -> list[list[Path]]:
    """Writes CIFAR-10 as compact files in parts of about one size, which can travel one after the other.

    The training images follow one another over the parts, in their order; the test images are in the last part. Every
    part also has a list of all files with their SHA-256, so that `compact_cifar10` notices what has not arrived.

    Args:
      splits: The images, uint8 of shape (N, H, W, 3), and labels below 256.
      folder: Where to write. It is made if it does not exist; files of the same names are replaced.
      parts: The number of parts.

    Returns:
      The files of each part. Copied into one folder they are the data set.

    Raises:
      InputError: There are more parts than images, or none; images are of another type, or a label is no integer from
        0 to 255. Nothing was written.
    """
    for part in (splits.train, splits.test):
        images, labels = part["image"], part["label"]
        if images.dtype != np.uint8:
            raise InputError(f"only images in uint8 can be packed, got {images.dtype}; give those of the archives")
        if labels.dtype.kind not in "iu" or ((labels < 0) | (labels > 255)).any():
            raise InputError("only labels that are integers from 0 to 255 can be packed; give those of the archives")
    count, train = len(splits.train["label"]), splits.train
    total = count + len(splits.test["label"])
    ends = [min(count, round(total * part / parts)) for part in range(1, parts)] if parts > 0 else []
    starts = [0, *ends]
    if parts < 1 or len(set(starts)) < parts or starts[-1] >= count:
        raise InputError(f"cannot divide {count} training and {total - count} test images into {parts} parts")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for part, (start, end) in enumerate(zip(starts, [*ends, count], strict=True)):
        path = folder / f"cifar10_train_{part:02d}.npz"
        files.write_bytes(path, _encoded(train["image"][start:end], train["label"][start:end]))
        written.append([path])
    test = folder / "cifar10_test.npz"
    files.write_bytes(test, _encoded(splits.test["image"], splits.test["label"]))
    written[-1].append(test)
    listed = {path.name: hashing.file_sha256(path) for part in written for path in part}
    files.write_text(folder / _LIST, json.dumps({"sha256": listed}, indent=1) + "\n")
    return [[folder / _LIST, *part] for part in written]


def missing_files(data_dir: Path) -> list[str]:
    """The names of files that `pack_cifar10` wrote and that have not arrived in a folder; empty where it wrote none.

    Raises:
      InputError: The list of the files is damaged.
    """
    return [name for name in _packed(data_dir) if not (data_dir / name).is_file()]


def packed_sha256(data_dir: Path) -> str | None:
    """A hash of all files that `pack_cifar10` wrote, whether they have arrived or not; None where it wrote none.

    Raises:
      InputError: The list of the files is damaged.
    """
    packed = _packed(data_dir)
    return hashing.sha256(hashing.stable_json(packed)) if packed else None


def _packed(data_dir: Path) -> dict[str, str]:
    """The SHA-256 of each file that `pack_cifar10` wrote."""
    path = data_dir / _LIST
    if not path.is_file():
        return {}
    try:
        listed = reading.read_json(path)["sha256"]
        return {str(name): str(digest) for name, digest in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); copy it again") from error


def _checked(data_dir: Path) -> dict[str, str]:
    """What `_packed` returns, after a look at the files."""
    missing = missing_files(data_dir)
    if missing:
        raise InputError(f"{data_dir} lacks {', '.join(missing)}, which belongs to its CIFAR-10; copy all its parts")
    listed = _packed(data_dir)
    for name, digest in listed.items():
        if hashing.file_sha256(data_dir / name) != digest:
            raise InputError(f"{data_dir / name} has another SHA-256 than when it was packed; copy it again")
    return listed


def _encoded(images: np.ndarray, labels: np.ndarray) -> bytes:
    """One compact file of images (N, H, W, 3), uint8; `_read` says what is in it."""
    residual = np.empty((3, *images.shape[:3]), np.uint8)
    for start in range(0, len(images), _ENCODED_AT_ONCE):
        part = slice(start, start + _ENCODED_AT_ONCE)
        red, green, blue = np.moveaxis(images[part], -1, 0)
        planes = np.stack([green, red - green, blue - green])
        for axis in (2, 3):
            planes = np.diff(planes, axis=axis, prepend=np.zeros_like(planes.take([0], axis)))
        residual[:, part] = planes
    buffer = io.BytesIO()
    np.savez_compressed(buffer, residual=residual, label=labels.astype(np.uint8))
    return buffer.getvalue()


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
        arrays = array_files.read_arrays(path, ("residual", "label"))
        residual, label = arrays["residual"], arrays["label"]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; point --data-dir at the folder that holds it") from error
    except (OSError, ValueError, KeyError) as error:
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
