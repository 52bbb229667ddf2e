"""Reads the user's own images from NumPy files and folders, and the ORL faces."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scissorhands_jax import array_files, reading
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Dataset
from scissorhands_jax.datasets.splits import Splits, check_labels, divide, evenly_chosen, whole_labels
from scissorhands_jax.errors import InputError
from scissorhands_jax.image_files import open_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".bmp", ".webp", ".tif", ".tiff")


def npz_file(path: Path, held_out: float | None = None) -> Splits:
    """Reads images and labels from one `.npz` file.

    Args:
      path: The file. It holds `image`, of shape (N, H, W, C) or (N, H, W), uint8 or floating point in [0, 1], and
        `label`, of shape (N,), integers from 0. The test set is in `test_image` and `test_label`; or the array
        `held_out` says which of the examples it is, by their positions or by a bool for each. In any case positions
        count the examples of `image` from 0. Names of classes may be in `class_names`.
      held_out: The share of the examples of each label to test with, in a file that does not say it.

    Raises:
      InputError: The file cannot be read, its arrays do not fit together, or nothing says which examples are for
        testing.
    """
    arrays = _arrays(path)
    images, labels = _images(arrays, "image", path), _labels(arrays, "label", path)
    if len(images) != len(labels):
        raise InputError(f"{path} holds {len(images)} images for {len(labels)} labels; give each image one label")
    if ("test_image" in arrays) != ("test_label" in arrays):
        raise InputError(f"{path} has only one of test_image and test_label; give both or neither")
    train: Dataset = {"image": images, "label": labels}
    chosen = _held_out(arrays, labels, held_out, path)
    if chosen is None:
        test: Dataset = {"image": _images(arrays, "test_image", path), "label": _labels(arrays, "test_label", path)}
    else:
        test = {"image": images[chosen], "label": labels[chosen]}
    if len(test["image"]) != len(test["label"]):
        raise InputError(
            f"{path} holds {len(test['image'])} examples in test_image for {len(test['label'])} labels; "
            "give each image one label"
        )
    if test["image"].shape[1:] != train["image"].shape[1:] or test["image"].dtype != train["image"].dtype:
        raise InputError(
            f"the test images in {path} are {test['image'].dtype} of shape {test['image'].shape[1:]} and the training "
            f"images {train['image'].dtype} of shape {train['image'].shape[1:]}; give both one type and shape"
        )
    count = int(max(train["label"].max(), test["label"].max(initial=0))) + 1
    names = (
        tuple(map(str, arrays["class_names"].tolist())) if "class_names" in arrays else tuple(map(str, range(count)))
    )
    for part in (train, test):
        part["label"] = check_labels(part["label"], len(names), path)
    return _complete(Splits(train, test, names, augmented=False, held_out=chosen), path)


def _held_out(arrays: dict[str, np.ndarray], labels: np.ndarray, share: float | None, path: Path) -> np.ndarray | None:
    """Returns the positions of the examples that are for testing; None if the file has a test set of its own."""
    said: list[str] = [name for name in ("test_image", "held_out") if name in arrays]
    if share is not None:
        said.append(f"?held_out={share:g}")
    if len(said) > 1:
        raise InputError(f"{path} is to be tested with {' and with '.join(said)}; leave one out")
    if not said:
        raise InputError(
            f"{path} has no test set, and none is taken from its {len(labels)} examples unless you ask for it; add "
            "test_image and test_label, or an array held_out with the positions of examples that the network was not "
            f"trained on, or write npz:{path}?held_out=0.2"
        )
    if "held_out" in arrays:
        return data_lib.check_held_out(arrays["held_out"], len(labels))
    return None if share is None else _chosen(labels, share, path)


def _chosen(labels: np.ndarray, share: float, path: Path) -> np.ndarray:
    positions = np.flatnonzero(evenly_chosen(labels, share))
    if not len(positions):
        raise InputError(f"{share:g} of the examples of each label in {path} is less than one; hold out a larger share")
    return positions.astype(np.int32)


def orl_faces(data_dir: Path | None) -> Splits:
    """Reads the ORL faces (Samaria and Harter, 1994) from `orl_faces.npz`: 40 people as identities.

    Images are 112x92 grey, uint8. Of the ten photographs of each person, the 5th and the 10th are for testing and the
    other eight for training.
    """
    if data_dir is None:
        raise InputError("orl_faces needs --data-dir, the folder that holds orl_faces.npz")
    path = data_dir / "orl_faces.npz"
    arrays = _arrays(path)
    images, people = _images(arrays, "image", path), check_labels(_labels(arrays, "subject", path), 40, path)
    if len(images) != len(people):
        raise InputError(f"{path} holds {len(images)} images of {len(people)} people; copy it again")
    names = tuple(f"s{person + 1}" for person in range(40))
    train, test = divide(images, people, evenly_chosen(people))
    return _complete(Splits(train, test, names, augmented=True, crop_padding=0), path)


def image_folder(root: Path, held_out: float | None = None) -> Splits:
    """Reads images from a folder. They are uint8, grey if all are grey and RGB otherwise.

    Args:
      root: The folder, in one of the forms that `find_labelled_images` describes. All images have one size.
      held_out: The share of the images of each class to test with, in a folder without a test set. Positions then
        count all of its images.

    Raises:
      InputError: Images are missing, unreadable or of different sizes, or nothing says which are for testing.
    """
    if root.is_dir() and _has_test_set(root) != (held_out is None):
        raise InputError(
            f"{root} has no test set, and none is taken from its images unless you ask for it; make the folders train "
            f"and test in it, or write folder:{root}?held_out=0.2"
            if held_out is None
            else f"{root} has a test set of its own; leave ?held_out={held_out:g} out"
        )
    folder = find_labelled_images(root, held_out=0.2 if held_out is None else held_out)
    parts = {name: _read_images(folder, name) for name in folder.splits}
    train, test = parts["train"], parts["test"]
    if held_out is None:
        return Splits(train, test, folder.class_names, augmented=False)
    whole = folder.splits["train"] + folder.splits["test"]
    order = np.asarray(sorted(range(len(whole)), key=lambda index: _imagefolder_order(whole[index], root)))
    both = {name: np.concatenate([train[name], test[name]])[order] for name in train}
    held = np.flatnonzero(order >= len(train["label"])).astype(np.int32)
    return Splits(both, test, folder.class_names, augmented=False, held_out=held)


def _has_test_set(root: Path) -> bool:
    return (root / "train.txt").is_file() or (root / "train").is_dir()


def _read_images(folder: Folder, split: str) -> Dataset:
    files = folder.splits[split]
    images: np.ndarray | None = None
    for index, image in enumerate(folder.read(split)):
        if images is None:
            images = np.empty((len(files), *image.shape), np.uint8)
        images[index] = image
    assert images is not None
    return {"image": images, "label": np.asarray([file.label for file in files], np.int32)}


class ImageFile(NamedTuple):
    """One image and the label of its class or identity."""

    path: Path
    label: int


class Folder(NamedTuple):
    """The images of a folder by split. Those of a split are sorted by class and then by name."""

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, list[ImageFile]]
    image_shape: tuple[int, int, int]  # (H, W, C) of every image once read
    resized: bool

    def read(self, split: str) -> Iterator[np.ndarray]:
        """Yields the images of a split one by one, as uint8 arrays of shape `image_shape`.

        Raises:
          InputError: An image is damaged, or has another size than the first.
        """
        for file in self.splits[split]:
            yield _open(file.path, self.image_shape, self.resized)


def find_labelled_images(root: Path, *, image_size: int | None = None, held_out: float = 0.2) -> Folder:
    """Finds the images of a folder, their labels, and whether they are for training or testing.

    The folder must have one of three forms, which are tried in this order:

    * `train.txt` and `test.txt`, with a line `relative/path label` for each image; labels are whole numbers or names;
    * `train/CLASS/*` and `test/CLASS/*`;
    * `CLASS/*`, where a share of the images of each class is for testing.

    Classes in folders and their images are sorted by name as torchvision's ImageFolder does it, so that labels are the
    same there and here: folder `10` comes before folder `2`. Folders in the folder of a class are searched too. The
    labels of a list are sorted by value.

    Args:
      root: The folder.
      image_size: The height and width, in pixels, to which images are rescaled. By default they keep their size.
      held_out: That share. By default it is the 5th, 10th, ... image of each class.

    Raises:
      InputError: The folder is missing or has another form, a class has no training images, or an image cannot be
        opened.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; name the folder that holds the images")
    if image_size is not None and not 1 <= image_size <= 4096:
        raise InputError(f"--image-size must be 1 to 4096 pixels, got {image_size}")
    if (root / "train.txt").is_file():
        named = {split: _listing(root / f"{split}.txt") for split in ("train", "test")}
    elif (root / "train").is_dir():
        named = {split: _classes(root / split) for split in ("train", "test")}
    else:
        files = _classes(root)
        labels_of = np.unique([name for _, name in files], return_inverse=True)[1] if files else np.empty(0)
        is_test = evenly_chosen(labels_of, held_out)
        named = {
            "train": [file for file, chosen in zip(files, is_test, strict=True) if not chosen],
            "test": [file for file, chosen in zip(files, is_test, strict=True) if chosen],
        }
    listed = (root / "train.txt").is_file()
    key = _natural if listed else str
    class_names = tuple(sorted({name for _, name in named["train"]}, key=key))
    for split, files in named.items():
        if not files:
            raise InputError(
                f"{root} holds no {split} images; it needs CLASS/*.jpg (five or more in a class), "
                "train/CLASS/*.jpg and test/CLASS/*.jpg, or train.txt and test.txt with lines `path label`"
            )
    unknown = sorted({name for _, name in named["test"]} - set(class_names), key=_natural)
    if unknown:
        raise InputError(
            f"{root} has test images but no training images of {len(unknown)} classes, the first is {unknown[0]}; "
            "add training images or remove the test images"
        )
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {
        split: sorted(
            (ImageFile(path, labels[name]) for path, name in files),
            key=lambda file: (file.label, _natural(file.path)) if listed else _imagefolder_order(file, root),
        )
        for split, files in named.items()
    }
    return Folder(root, class_names, splits, _shape(splits, image_size), image_size is not None)


def _classes(root: Path) -> list[tuple[Path, str]]:
    """Returns the image files in the folders of `root`, each with the name of its folder."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [
        (Path(place, name), folder.name)
        for folder in folders
        for place, _, names in sorted(os.walk(folder))
        for name in sorted(names)
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    ]


def _imagefolder_order(file: ImageFile, root: Path) -> tuple[int, str, str]:
    """Returns a key that sorts images as ImageFolder does: by class, by folder, then by name."""
    return file.label, str(file.path.parent.relative_to(root)), file.path.name


def _listing(path: Path) -> list[tuple[Path, str]]:
    """Reads the image files and labels from a list with lines `relative/path label`."""
    try:
        lines = reading.read_lines(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the list of images {path} ({error}); write train.txt and test.txt") from error
    files = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        words = line.strip().rsplit(maxsplit=1)
        if len(words) != 2:
            raise InputError(f"line {number} of {path} is {line.strip()[:40]!r}; write `relative/path label`")
        files.append((path.parent / words[0], words[1]))
    return files


def _natural(path: Path | str) -> list[tuple[int, int, str]]:
    """Returns a key that sorts names with the numbers in them by value: s2 before s10."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in parts]


def _shape(splits: dict[str, list[ImageFile]], image_size: int | None) -> tuple[int, int, int]:
    """Returns the shape of all images: with one channel if all are grey, and with the size of the first by default."""
    grey = True
    size = (0, 0)
    for file in reversed([file for files in splits.values() for file in files]):
        try:
            with open_image(file.path) as image:
                grey &= image.mode in ("1", "L", "LA")
                size = image.size
        except (OSError, ValueError) as error:
            raise InputError(f"{file.path} cannot be opened as an image ({error}); replace or remove it") from error
    width, height = size if image_size is None else (image_size, image_size)
    return height, width, 1 if grey else 3


def _open(path: Path, shape: tuple[int, int, int], resized: bool) -> np.ndarray:
    from PIL import Image

    height, width, channels = shape
    try:
        with open_image(path) as image:
            converted = image.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}); replace or remove it") from error
    if resized:
        converted = converted.resize((width, height), Image.Resampling.BICUBIC)
    elif converted.size != (width, height):
        raise InputError(
            f"{path} has {converted.width}x{converted.height} pixels and other images have {width}x{height}; rescale "
            "all to one size, as `scissorhands data prepare faces --from DIR --image-size N` does"
        )
    return np.asarray(converted, np.uint8).reshape(shape)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return array_files.read_arrays(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; name a .npz file with the arrays image and label") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole .npz file ({error}); write it with numpy.savez") from error


def _images(arrays: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    """Returns an array of images, uint8 or float32 in [0, 1], of shape (N, H, W, C)."""
    _check_array(arrays, name, path)
    images = arrays[name]
    if images.ndim == 3:
        images = images[..., None]
    where = f"{name} in {path}"
    if images.ndim != 4:
        raise InputError(f"{where} has shape {arrays[name].shape}; give images of shape (N, H, W, C) or (N, H, W)")
    if images.shape[1] in (1, 3) and images.shape[3] not in (1, 2, 3, 4):
        raise InputError(
            f"{where} has shape {images.shape}, which are channels first; give channels last, as with "
            ".transpose(0, 2, 3, 1)"
        )
    if np.issubdtype(images.dtype, np.floating):
        return _check_range(images.astype(np.float32), where)
    if images.dtype != np.uint8:
        fits = np.issubdtype(images.dtype, np.integer) and images.size and images.min() >= 0 and images.max() <= 255
        advice = "convert it with .astype('uint8')" if fits else "give uint8, or floating point in [0, 1]"
        raise InputError(f"{where} is {images.dtype}; {advice}")
    return images


def _check_range(images: np.ndarray, where: str) -> np.ndarray:
    """Returns images, unless a value is not finite or outside [0, 1]."""
    finite = np.isfinite(images)
    if not finite.all():
        bad = np.flatnonzero(~finite.all(axis=(1, 2, 3)))
        raise InputError(
            f"{len(bad)} images of {where} have values that are NaN or infinite, the first is image {bad[0]}; "
            "correct or remove them"
        )
    lowest, highest = float(images.min(initial=0)), float(images.max(initial=0))
    if lowest < 0 or highest > 1:
        raise InputError(
            f"{where} is floating point from {lowest:g} to {highest:g}, outside [0, 1]; "
            + ("divide it by 255, or give uint8" if lowest >= 0 else "give the images before they are normalised")
        )
    return images


def _check_array(arrays: dict[str, np.ndarray], name: str, path: Path) -> None:
    if name not in arrays:
        raise InputError(
            f"{path} has no array {name!r}, only {', '.join(arrays) or 'nothing'}; save the images as `image` and the "
            "labels as `label`"
        )


def _labels(arrays: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    _check_array(arrays, name, path)
    return whole_labels(arrays[name], f"{name} in {path}")


def _complete(splits: Splits, path: Path) -> Splits:
    """Returns the splits, unless one of them has no examples."""
    for part, name in ((splits.train, "train"), (splits.test, "test")):
        if not len(part["label"]):
            raise InputError(f"{path} gives no {name} examples; give some of each kind")
    return splits
