"""Labelled images by name: public sets, faces with identities, and the user's own files."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from scissorhands_jax.datasets import archives, compact, own, prepared
from scissorhands_jax.datasets.splits import Splits
from scissorhands_jax.errors import InputError

__all__ = ["DATASETS", "FILES", "Splits", "cifar10", "digits", "load", "prepare"]


def load(name: str, data_dir: str | Path | None = None) -> Splits:
    """Reads a data set by its name.

    Args:
      name: one of DATASETS, or `npz:FILE` or `folder:DIR` for the user's own (see `scissorhands_jax.datasets.own`).
      data_dir: the folder of the named set's files; not needed for digits and for the user's own.

    Raises:
      InputError: the name is unknown, or files are missing or damaged.
    """
    kind, _, path = name.partition(":")
    if kind in FILES and path:
        return FILES[kind](Path(path))
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4) or list(DATASETS)
        raise InputError(
            f"there is no data set {name!r}; near matches: {', '.join(near)}; your own: npz:FILE or folder:DIR"
        )
    return DATASETS[name](None if data_dir is None else Path(data_dir))


def prepare(
    name: str,
    sources: Sequence[Path],
    data_dir: Path,
    *,
    image_size: int | None = None,
    unverified: bool = False,
    overwrite: bool = False,
) -> Path:
    """Makes a data set ready for `load`, in the format of tensorflow_datasets, without a network and TensorFlow.

    Args:
      name: "cifar10", "cifar100", "svhn" or "faces".
      sources: for faces the one folder of `own.find_images`; else the official archives, or folders that hold them.
        None at all: the archives in `data_dir`, or where they are not there a download by tensorflow_datasets, which
        takes TensorFlow.
      data_dir: where the set goes, and where `load` is to look.
      image_size: of faces: rescale them to this height and width, in pixels.
      unverified: take archives whose size or checksum is not the official one.
      overwrite: replace what is there.

    Returns:
      The folder of the set.

    Raises:
      InputError: the name takes no preparation, sources are missing, damaged or not the official ones, or the set is
        there already.
    """
    if name not in prepared.SET_FOLDERS:
        ready = f"{name} is read as it is" if name in DATASETS else f"there is no data set {name!r} to prepare"
        raise InputError(f"{ready}; `data prepare` takes {', '.join(prepared.SET_FOLDERS)}")
    folder = prepared.folder_of(name, data_dir)
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} is there already; add --overwrite to make it anew")
    if image_size is not None and name != "faces":
        raise InputError(f"--image-size is for faces; the images of {name} have one size")
    if name == "faces":
        if len(sources) != 1:
            raise InputError(f"faces needs --from and one folder of images, got {len(sources)}")
        images = own.find_labelled_images(sources[0], image_size=image_size)
        examples = {split: _face_examples(images, split) for split in images.splits}
        return prepared.write_prepared(name, examples, {"label": images.class_names}, images.image_shape, data_dir)
    if not sources:
        names = [archive.name for archive in archives.ARCHIVES[name]]
        if not all((data_dir / archive).is_file() for archive in names):
            return _download(name, data_dir, overwrite=overwrite)
        sources = [data_dir / archive for archive in names]
    splits, class_names = archives.read_archives(name, sources, unverified=unverified)
    return prepared.write_prepared(name, splits, class_names, (32, 32, 3), data_dir)


def _face_examples(images: own.Folder, split: str) -> Iterator[prepared.LabelledImage]:
    for index, (file, image) in enumerate(zip(images.splits[split], images.read(split), strict=True)):
        yield prepared.LabelledImage(f"{split}_{index:06d}", image, {"label": file.label})


def _download(name: str, data_dir: Path, *, overwrite: bool) -> Path:
    if importlib.util.find_spec("tensorflow") is None:
        names = " and ".join(archive.name for archive in archives.ARCHIVES[name])
        where = archives.ARCHIVES[name][0].url.rpartition("/")[0]
        raise InputError(
            f"{name} needs --from and {names}, copied from {where} to this machine; or "
            "`pip install 'scissorhands-jax[tensorflow]'`, which lets tensorflow_datasets download it"
        )
    import tensorflow_datasets as tfds

    folder = prepared.folder_of(name, data_dir)
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder = tfds.builder(prepared.SET_FOLDERS[name], data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except Exception as error:  # Many types come out of a failed download.
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"tensorflow_datasets could not download {name} ({type(error).__name__}: {line}); copy the archives to "
            "this machine and name them with --from"
        ) from error
    return Path(builder.data_dir)


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


def cifar10(data_dir: Path | None) -> Splits:
    """CIFAR-10 (Krizhevsky, 2009): compact files if `data_dir` holds any, else the prepared set, in the same order."""
    if (
        data_dir is None
        or compact.has_compact_files(data_dir, "cifar10")
        or not prepared.is_prepared(data_dir, "cifar10")
    ):
        return compact.compact_cifar10(data_dir)
    return prepared.prepared_cifar10(data_dir)


DATASETS: dict[str, Callable[[Path | None], Splits]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": prepared.cifar100,
    "svhn": prepared.svhn,
    "faces": prepared.faces,
    "cifar100_own": compact.cifar100_own,
    "orl_faces": own.orl_faces,
}

# The user's own, by what stands before the colon.
FILES: dict[str, Callable[[Path], Splits]] = {"npz": own.npz_file, "folder": own.image_folder}
