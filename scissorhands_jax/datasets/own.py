"""Reads the user's own images from folders, and the ORL faces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scissorhands_jax import reading
from scissorhands_jax.base import Dataset
from scissorhands_jax.datasets import numerals, own_arrays
from scissorhands_jax.datasets.splits import Splits, check_labels, divide, evenly_chosen
from scissorhands_jax.errors import InputError
from scissorhands_jax.image_files import DEEP_MODES, in_eight_bits, open_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".bmp", ".webp", ".tif", ".tiff")


def orl_faces(data_dir: Path | None) -> Splits:
    """Reads the ORL faces (Samaria and Harter, 1994) from `orl_faces.npz`: 40 people as identities.

    Images are 112x92 grey, uint8. Of the ten photographs of each person, the 5th and the 10th are for testing and the
    other eight for training.

    Raises:
      InputError: No folder is given, or the file in it is missing, damaged or another one.
    """
    if data_dir is None:
        raise InputError("orl_faces needs --data-dir, the folder that holds orl_faces.npz")
    path = data_dir / "orl_faces.npz"
    arrays = own_arrays.read_npz(path, ("image", "subject"))
    images = own_arrays.image_array(arrays, "image", path)
    people = check_labels(own_arrays.label_array(arrays, "subject", path), 40, path)
    if len(images) != len(people):
        raise InputError(f"{path} holds {len(images)} images of {len(people)} people; copy it again")
    names = tuple(f"s{person + 1}" for person in range(40))
    train, test = divide(images, people, evenly_chosen(people))
    return own_arrays.complete(Splits(train, test, names, augmented=True, crop_padding=0), path)


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
            f"and test in it, or the lists train.txt and test.txt, or write folder:{root}?held_out=0.2"
            if held_out is None
            else f"{root} has a test set of its own; leave ?held_out={held_out:g} out"
        )
    folder = find_labelled_images(root, held_out=held_out)
    parts = {name: _read_images(folder, name) for name in folder.splits}
    train, test = parts["train"], parts["test"]
    if folder.is_test is None:
        return Splits(train, test, folder.class_names, augmented=False)
    both = {}
    for name, values in train.items():
        both[name] = np.empty((len(folder.is_test), *values.shape[1:]), values.dtype)
        both[name][~folder.is_test], both[name][folder.is_test] = values, test[name]
    held = np.flatnonzero(folder.is_test).astype(np.int32)
    return Splits(both, test, folder.class_names, augmented=False, held_out=held)


def _has_test_set(root: Path) -> bool:
    if (root / "train.txt").is_file():
        return (root / "test.txt").is_file()
    return (root / "train").is_dir() and (root / "test").is_dir()


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
    """The images of a folder by split, in the order of the list, or else by class and then by name."""

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, list[ImageFile]]
    image_shape: tuple[int, int, int]  # (H, W, C) of every image once read
    resized: bool
    is_test: np.ndarray | None = None  # of all images in their order, where both splits were taken from one set

    def read(self, split: str) -> Iterator[np.ndarray]:
        """Yields the images of a split one by one, as uint8 arrays of shape `image_shape`.

        Raises:
          InputError: An image is damaged, or has another size than the first.
        """
        for file in self.splits[split]:
            yield _open(file.path, self.image_shape, self.resized)


def find_labelled_images(root: Path, *, image_size: int | None = None, held_out: float | None = None) -> Folder:
    """Finds the images of a folder, their labels, and whether they are for training or testing.

    The folder must have one of three forms, which are tried in this order:

    * `train.txt` and `test.txt`, with a line `relative/path label` for each image; labels are whole numbers or names;
    * `train/CLASS/*` and `test/CLASS/*`;
    * `CLASS/*`, where a share of the images of each class is for testing.

    Classes in folders and their images are sorted by name as torchvision's ImageFolder does it, so that labels are the
    same there and here: folder `10` comes before folder `2`. Folders in the folder of a class are searched too, also
    linked ones. The images of a list keep the order of its lines. Its labels are sorted by value if all are numbers,
    such as -1 and 0.5, and else as names with the numbers in them by value: s2 comes before s10.

    Args:
      root: The folder.
      image_size: The height and width, in pixels, to which images are rescaled. By default they keep their size.
      held_out: That share, in (0, 1), which is also taken of `train.txt` or `train/` without a test set beside it. By
        default it is the 5th, 10th, ... image of each class, and of `CLASS/*` alone.

    Raises:
      InputError: The folder is missing or has another form, a class has no training images, an image cannot be opened,
        one file is for training and for testing, or two labels of a list spell one number, as 1 and 01 do.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; name the folder that holds the images")
    if image_size is not None and not 1 <= image_size <= 4096:
        raise InputError(f"--image-size must be 1 to 4096 pixels, got {image_size}")
    listed, divided = (root / "train.txt").is_file(), (root / "train").is_dir()
    is_test = None
    if (listed or divided) and (held_out is None or _has_test_set(root)):
        named = {
            split: _listing(root / f"{split}.txt") if listed else _classes(root / split) for split in ("train", "test")
        }
    else:
        files = _listing(root / "train.txt") if listed else _classes(root / "train" if divided else root)
        labels_of = np.unique([name for _, name in files], return_inverse=True)[1] if files else np.empty(0)
        is_test = evenly_chosen(labels_of, 0.2 if held_out is None else held_out)
        named = {
            "train": [file for file, chosen in zip(files, is_test, strict=True) if not chosen],
            "test": [file for file, chosen in zip(files, is_test, strict=True) if chosen],
        }
    if listed:
        numerals.check_spellings((name for files in named.values() for _, name in files), f"the lists of {root}")
    found = {name for _, name in named["train"]}
    class_names = tuple(numerals.by_value(found) if listed else sorted(found))
    for split, files in named.items():
        if not files:
            raise InputError(
                f"{root} holds no {split} images; it needs CLASS/*.jpg (five or more in a class), "
                "train/CLASS/*.jpg and test/CLASS/*.jpg, or train.txt and test.txt with lines `path label`"
            )
    unknown = numerals.by_value({name for _, name in named["test"]} - set(class_names))
    if unknown:
        raise InputError(
            f"{root} has test images but no training images of {len(unknown)} classes, the first is {unknown[0]}; "
            "add training images or remove the test images"
        )
    labels = {name: label for label, name in enumerate(class_names)}
    splits = {split: [ImageFile(path, labels[name]) for path, name in files] for split, files in named.items()}
    shape = _shape(splits, image_size)
    trained_on = {os.path.realpath(file.path) for file in splits["train"]}
    both = [file.path for file in splits["test"] if os.path.realpath(file.path) in trained_on]
    if both:
        raise InputError(
            f"{len(both)} images of {root} are for training and for testing, the first is {both[0]}; name each file "
            "once"
        )
    return Folder(root, class_names, splits, shape, image_size is not None, is_test)


def _classes(root: Path) -> list[tuple[Path, str]]:
    """Returns the image files in the folders of `root`, each with the name of its folder, in the order of ImageFolder:
    by class, by folder, then by name.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [
        (Path(place, name), folder.name)
        for folder in folders
        for place, names in sorted(_walk(folder))
        for name in sorted(names)
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    ]


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder below one, linked or not, with the names of its files.

    Raises:
      InputError: A link leads back to a folder that holds it.
    """
    for place, _, names in os.walk(folder, followlinks=True):
        if any(path.samefile(place) for path in Path(place).absolute().parents):
            raise InputError(f"{place} leads back to a folder that holds it, so there is no end to it; remove the link")
        yield place, names


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


def _shape(splits: dict[str, list[ImageFile]], image_size: int | None) -> tuple[int, int, int]:
    """Returns the shape of all images: with one channel if all are grey, and with the size of the first by default."""
    grey = True
    size = (0, 0)
    for file in reversed([file for files in splits.values() for file in files]):
        try:
            with open_image(file.path) as image:
                grey &= image.mode in ("1", "L", "LA") or image.mode in DEEP_MODES
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
            converted = in_eight_bits(image).convert("L" if channels == 1 else "RGB")
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
