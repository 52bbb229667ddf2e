"""Writes and reads image sets in the format of `tensorflow_datasets` (ArrayRecord) without TensorFlow.

`tensorflow_datasets` needs TensorFlow only to encode and decode images, and Pillow does that here. The sets have the
names, versions and features of its own builders for CIFAR-10, CIFAR-100 and SVHN. Sets that those builders wrote as
ArrayRecord can be read as well.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scissorhands_jax import files
from scissorhands_jax.base import Dataset
from scissorhands_jax.datasets.splits import Splits, check_labels
from scissorhands_jax.errors import InputError
from scissorhands_jax.image_files import open_image

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class LabelledImage(NamedTuple):
    """One example to be written."""

    id: str  # Examples are read in the order of their ids.
    image: np.ndarray  # (H, W, C) uint8
    labels: dict[str, int]  # "label", and perhaps others


def prepared_cifar10(data_dir: Path | None) -> Splits:
    """Reads CIFAR-10 (Krizhevsky, 2009), uint8 RGB, in the order of the archive."""
    return _read("cifar10", data_dir, augmented=True)


def cifar100(data_dir: Path | None) -> Splits:
    """Reads CIFAR-100 (Krizhevsky, 2009) with its 100 fine labels, uint8 RGB, in the order of the archive."""
    return _read("cifar100", data_dir, augmented=True)


def svhn(data_dir: Path | None) -> Splits:
    """Reads SVHN's cropped digits (Netzer et al., 2011) without the extra set, uint8 RGB, in the archive's order."""
    return _read("svhn", data_dir, augmented=False)


def faces(data_dir: Path | None) -> Splits:
    """Reads the face identities that `scissorhands data prepare faces` wrote.

    As is customary for faces, training flips the images and does not crop them.
    """
    return _read("faces", data_dir, augmented=True, crop_padding=0)


# The folder of each data set and the version of its contents, as in tensorflow_datasets.
SET_FOLDERS = {"cifar10": "cifar10", "cifar100": "cifar100", "svhn": "svhn_cropped", "faces": "faces"}
VERSIONS = {"cifar10": "3.0.2", "cifar100": "3.0.2", "svhn": "3.1.0", "faces": "1.0.0"}


def is_prepared(data_dir: Path, name: str) -> bool:
    """Says whether a folder holds a prepared data set."""
    return bool(_versions(data_dir, name))


def folder_of(name: str, data_dir: Path) -> Path:
    """Returns the folder to which `write_prepared` writes a data set: `data_dir/NAME/VERSION`."""
    return data_dir / SET_FOLDERS[name] / VERSIONS[name]


def write_prepared(
    name: str,
    splits: Mapping[str, Iterable[LabelledImage]],
    class_names: Mapping[str, tuple[str, ...]],
    image_shape: tuple[int, int, int],
    data_dir: Path,
) -> Path:
    """Writes a data set to `data_dir`, whole or not at all. An earlier one is replaced.

    Args:
      name: A key of `SET_FOLDERS`.
      splits: The examples of "train" and "test".
      class_names: The class names of each kind of label that the examples have.
      image_shape: The shape (H, W, C) of every image, with 1 or 3 channels.
      data_dir: The folder for prepared data sets, which is created if it does not exist.

    Returns:
      The folder of the data set.

    Raises:
      InputError: A split has more than 1 GB of compressed images, and TensorFlow is not installed.
    """
    import tensorflow_datasets as tfds

    labels = {kind: tfds.features.ClassLabel(names=list(names)) for kind, names in class_names.items()}
    image = tfds.features.Image(shape=image_shape)
    features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "image": image, **labels})
    folder = folder_of(name, data_dir)
    with (
        files.new_folder(folder) as fresh,
        contextlib.redirect_stdout(io.StringIO()),  # tensorflow_datasets prints its progress.
    ):
        builder = _builder_class()(SET_FOLDERS[name], VERSIONS[name], features, splits, fresh.parent / "work")
        # By default tensorflow_datasets would download a prepared copy of its own where it can.
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        tfds.disable_progress_bar()
        try:
            builder.download_and_prepare(download_config=config)
        except ImportError as error:
            if "tensorflow" not in str(error):
                raise
            raise InputError(
                f"a split of {name} has more than 1 GB of images, which only TensorFlow can sort; make them smaller "
                "with --image-size, or `pip install '.[tensorflow]'` in a clone of the repository"
            ) from error
        finally:
            tfds.enable_progress_bar()
        Path(builder.data_dir).rename(fresh)
    return folder


def _builder_class() -> type[tfds.core.GeneratorBasedBuilder]:
    import tensorflow_datasets as tfds

    class ImageSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """A builder of the examples that are passed to it."""

        code_path = None  # Otherwise it looks for the checksums of downloads next to this file.

        def __init__(self, name: str, version: str, features: Any, splits: Mapping, data_dir: Path) -> None:
            self.name = name
            self.VERSION = tfds.core.Version(version)
            self._features = features
            self._splits = splits
            super().__init__(data_dir=data_dir, file_format="array_record")

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=self._features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            return {split: self._generate_examples(examples) for split, examples in self._splits.items()}

        def _generate_examples(self, examples: Iterable[LabelledImage]) -> Iterator:
            for index, example in enumerate(examples):
                yield index, {"id": example.id, "image": _png(example.image), **example.labels}

    return ImageSet


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "png")
    return buffer.getvalue()


def _versions(data_dir: Path, name: str) -> list[Path]:
    """Returns the folders of the versions of a prepared data set, the newest last."""
    found = [
        path.parent
        for path in (data_dir / SET_FOLDERS[name]).glob("*/dataset_info.json")
        if not path.parent.name.startswith(".")  # what a killed process has left
    ]
    return sorted(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])


def _read(name: str, data_dir: Path | None, *, augmented: bool, crop_padding: int = 4) -> Splits:
    how = f"`scissorhands data prepare {name} --from FILES --data-dir DIR`"
    if data_dir is None:
        raise InputError(f"{name} needs --data-dir, the folder that {how} has filled")
    versions = _versions(data_dir, name)
    if not versions:
        raise InputError(f"{data_dir} holds no prepared {name}; prepare it with {how}")
    import tensorflow_datasets as tfds

    folder = versions[-1]
    try:
        builder = tfds.builder_from_directory(folder)
        class_names = tuple(builder.info.features["label"].names)
        shape = builder.info.features["image"].shape
        decoders = {"image": tfds.decode.SkipDecoding()}
        train, test = (
            _load(builder.as_data_source(split, decoders=decoders), shape, len(class_names))
            for split in ("train", "test")
        )
    except NotImplementedError as error:
        raise InputError(
            f"{folder} is not in ArrayRecord format, the only one that is read without TensorFlow; prepare it again "
            f"with {how}, or with tensorflow_datasets and file_format='array_record'"
        ) from error
    except Exception as error:  # A damaged folder can raise many types of exceptions.
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"the data set in {folder} is damaged ({type(error).__name__}: {line}); "
            f"prepare it again with {how} --overwrite"
        ) from error
    return Splits(train, test, class_names, augmented, crop_padding)


def _load(source: Any, shape: tuple[int, int, int], num_classes: int) -> Dataset:
    """Reads all examples of a data source of tensorflow_datasets, sorted by their ids."""
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int64)
    ids = []
    for start in range(0, len(source), 1000):
        chunk = range(start, min(start + 1000, len(source)))
        for position, record in zip(chunk, source.__getitems__(list(chunk)), strict=True):
            with open_image(record["image"]) as image:
                if image.size != (shape[1], shape[0]):
                    raise ValueError(f"an image has {image.width}x{image.height} pixels")
                images[position] = np.asarray(image).reshape(shape)
            labels[position] = record["label"]
            ids.append(record["id"])
    order = np.argsort(np.asarray(ids, np.bytes_), kind="stable")
    return {"image": images[order], "label": check_labels(labels, num_classes, "it")[order]}
