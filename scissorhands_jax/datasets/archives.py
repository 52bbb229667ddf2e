"""Reads the official archives of CIFAR-10, CIFAR-100 and SVHN, which the user has copied to this machine."""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scissorhands_jax import hashing, reading
from scissorhands_jax.datasets.prepared import LabelledImage
from scissorhands_jax.errors import InputError

_MAX_CONTENT = 2**28  # bytes of an archive and of what it unpacks to; CIFAR has 184 million
_MAX_MEMBERS = 1000


class Archive(NamedTuple):
    """A file as its authors publish it."""

    name: str
    url: str
    size: int  # bytes
    sha256: str


class _Cifar(NamedTuple):
    """Where the images and class names are in an archive of CIFAR."""

    folder: str
    members: dict[str, tuple[str, ...]]  # the files of each split
    label_files: dict[str, str]  # the text file with the class names of each label byte, in the order of the bytes


_CIFAR10 = _Cifar(
    "cifar-10-batches-bin",
    {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    {"label": "batches.meta.txt"},
)
_CIFAR100 = _Cifar(
    "cifar-100-binary",
    {"train": ("train.bin",), "test": ("test.bin",)},
    {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
)
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
_SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"

# The sizes and checksums are those that tensorflow_datasets has registered for these addresses.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "cifar10": (
        Archive(
            "cifar-10-binary.tar.gz",
            _CIFAR_URL + "cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    "cifar100": (
        Archive(
            "cifar-100-binary.tar.gz",
            _CIFAR_URL + "cifar-100-binary.tar.gz",
            168_513_733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    ),
    "svhn": (
        Archive(
            "train_32x32.mat",
            _SVHN_URL + "train_32x32.mat",
            182_040_794,
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        Archive(
            "test_32x32.mat",
            _SVHN_URL + "test_32x32.mat",
            64_275_384,
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    ),
}

ExampleStreams = dict[str, Iterator[LabelledImage]]
ClassNames = dict[str, tuple[str, ...]]


def read_archives(name: str, files: Sequence[Path], *, unverified: bool = False) -> tuple[ExampleStreams, ClassNames]:
    """Reads the examples of an official data set from its archives.

    Args:
      name: "cifar10", "cifar100" or "svhn".
      files: The archives, in any order and under their own names, or a folder that holds them.
      unverified: Whether to accept archives whose size or checksum is not the official one.

    Returns:
      The examples of "train" and "test", in the order of the archive, and the class names of each kind of label.

    Raises:
      InputError: An archive is missing, not the official one, or damaged.
    """
    paths = _find(ARCHIVES[name], files)
    if not unverified:
        for path, archive in zip(paths, ARCHIVES[name], strict=True):
            _verify(path, archive)
    if name == "svhn":
        splits = {split: _svhn(path, split) for split, path in zip(("train", "test"), paths, strict=True)}
        return splits, {"label": tuple(map(str, range(10)))}
    return _cifar(paths[0], _CIFAR10 if name == "cifar10" else _CIFAR100)


def _find(archives: Sequence[Archive], files: Sequence[Path]) -> list[Path]:
    given = {path.name: path for path in files}
    for path in files:
        if path.is_dir():
            given = {inside.name: inside for inside in path.iterdir()} | given
        elif not path.is_file():
            raise InputError(f"{path} does not exist; name the archives that you copied to this machine")
    for archive in archives:
        if archive.name not in given:
            found = ", ".join(sorted(given)[:5]) or "nothing"
            raise InputError(
                f"{archive.name} is not among the files of --from ({found}); copy it from {archive.url} to this machine"
            )
    return [given[archive.name] for archive in archives]


def _verify(path: Path, archive: Archive) -> None:
    advice = f"copy it from {archive.url} again, or add --unverified to take it as it is"
    size = path.stat().st_size
    if size != archive.size:
        raise InputError(f"{path} has {size:,} bytes and the official archive {archive.size:,}; {advice}")
    digest = hashing.file_sha256(path)
    if digest != archive.sha256:
        raise InputError(f"{path} has the SHA-256 {digest} and the official archive {archive.sha256}; {advice}")


def _cifar(path: Path, layout: _Cifar) -> tuple[ExampleStreams, ClassNames]:
    """Reads an archive of CIFAR. A record is one byte per label and then 32x32 red, green and blue bytes, by rows."""
    members = {f"{layout.folder}/{name}" for names in layout.members.values() for name in names}
    texts = {f"{layout.folder}/{name}" for name in layout.label_files.values()}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(reading.read_gzip(path, _MAX_CONTENT)), mode="r:") as tar:
            for number, member in enumerate(tar, start=1):
                if number > _MAX_MEMBERS:
                    raise ValueError(f"it has more than {_MAX_MEMBERS} files")
                name = member.name.removeprefix("./")
                file = tar.extractfile(member) if name in members | texts else None
                if file is not None:
                    contents[name] = file.read()
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole .tar.gz archive ({error}); copy it again") from error
    missing = sorted((members | texts) - set(contents))
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; copy the binary version of the data set")
    class_names = {
        kind: tuple(contents[f"{layout.folder}/{name}"].decode("utf-8", "replace").split())
        for kind, name in layout.label_files.items()
    }
    length = len(class_names) + 3 * 32 * 32
    records = {}
    for split, names in layout.members.items():
        data = b"".join(contents.pop(f"{layout.folder}/{name}") for name in names)
        if not data or len(data) % length:
            raise InputError(f"the {split} files in {path} do not hold whole records of {length} bytes; copy it again")
        records[split] = np.frombuffer(data, np.uint8).reshape(-1, length)
        for column, (kind, known) in enumerate(class_names.items()):
            if records[split][:, column].max() >= len(known):
                raise InputError(f"the {split} files in {path} hold a {kind} without a name; copy it again")
    return {split: _cifar_examples(split, rows, tuple(class_names)) for split, rows in records.items()}, class_names


def _cifar_examples(split: str, records: np.ndarray, kinds: tuple[str, ...]) -> Iterator[LabelledImage]:
    for index, record in enumerate(records):
        image = record[len(kinds) :].reshape(3, 32, 32).transpose(1, 2, 0)
        labels = {kind: int(record[column]) for column, kind in enumerate(kinds)}
        yield LabelledImage(f"{split}_{index:05d}", np.ascontiguousarray(image), labels)


def _svhn(path: Path, split: str) -> Iterator[LabelledImage]:
    """Reads a MATLAB file with images X (32, 32, 3, N) and labels y (N, 1) from 1 to 10, where 10 is the digit 0."""
    from scipy.io import loadmat, whosmat

    try:
        content = io.BytesIO(reading.read_bytes(path, _MAX_CONTENT))
        # The sizes of all variables, before any is unpacked.
        sizes = {name: math.prod(shape) for name, shape, _ in whosmat(content)}
        if any(sizes[name] > _MAX_CONTENT for name in ("X", "y")):
            raise ValueError(f"its arrays have more than {_MAX_CONTENT} numbers")
        content.seek(0)
        arrays = loadmat(content, variable_names=("X", "y"))
        images, labels = arrays["X"], arrays["y"].reshape(-1)
    except Exception as error:  # A damaged file can raise many types of exceptions.
        raise InputError(
            f"{path} is not a whole MATLAB file with X and y ({type(error).__name__}: {error}); copy it again"
        ) from error
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)) or not len(labels):
        raise InputError(
            f"{path} holds images of type {images.dtype} and shape {images.shape} instead of uint8 of shape "
            f"(32, 32, 3, {len(labels)}) for {len(labels)} labels; copy it again"
        )
    if labels.min() < 1 or labels.max() > 10:
        raise InputError(f"{path} holds labels outside 1 to 10; copy it again")
    return (
        LabelledImage(f"{split}_{index:06d}", np.ascontiguousarray(images[..., index]), {"label": int(label) % 10})
        for index, label in enumerate(labels)
    )
