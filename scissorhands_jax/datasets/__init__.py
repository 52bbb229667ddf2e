"""Examples by name: public sets of images, faces with identities, and the user's own files."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from scissorhands_jax import files
from scissorhands_jax.datasets import archives, compact, numerals, own, own_arrays, prepared
from scissorhands_jax.datasets.splits import Splits
from scissorhands_jax.errors import InputError, suggest

__all__ = ["DATASETS", "FILES", "Splits", "cifar10", "digits", "load", "prepare"]


def load(name: str, data_dir: str | Path | None = None) -> Splits:
    """Reads a data set by its name.

    Args:
      name: A key of `DATASETS`; or `npz:FILE`, `csv:FILE` or `folder:DIR` for the user's own examples, see
        `datasets.own_arrays` and `datasets.own`. With `?held_out=0.2` after it, as in `npz:FILE?held_out=0.2`, this
        share of the examples of each label is held out for testing; it is needed where the files have no test set.
      data_dir: The folder that holds the files of the data set. The digits and the user's own files need none.

    Raises:
      InputError: The name is unknown, or files are missing or damaged.
    """
    kind, _, path = name.partition(":")
    if kind in FILES and path:
        place, asks, share = path.partition("?held_out=")
        return FILES[kind](Path(place), _share(share) if asks else None)
    if name not in DATASETS:
        raise InputError(
            f"there is no data set {name!r}; {suggest(name, DATASETS)}, or npz:FILE, csv:FILE or folder:DIR for "
            "your own examples"
        )
    return DATASETS[name](None if data_dir is None else Path(data_dir))


def _share(text: str) -> float:
    share = float(text) if numerals.is_numeral(text.strip()) else float("nan")
    if not 0 < share < 1:
        raise InputError(f"the share to hold out is {text[:40]!r}; write a number between 0 and 1, as in ?held_out=0.2")
    return share


def prepare(
    name: str,
    sources: Sequence[Path],
    data_dir: Path,
    *,
    image_size: int | None = None,
    unverified: bool = False,
    overwrite: bool = False,
) -> Path:
    """Writes a data set in the format of tensorflow_datasets, which `load` reads.

    Neither a connection to the internet nor TensorFlow is needed, unless the archives have to be downloaded.

    Args:
      name: "cifar10", "cifar100", "svhn" or "faces".
      sources: For faces, one folder in a form that `own.find_labelled_images` understands; otherwise the official
        archives, or folders that hold them. If empty, the archives in `data_dir` are read; if they are missing,
        tensorflow_datasets downloads them, for which TensorFlow must be installed.
      data_dir: The folder for prepared data sets, which is also the `data_dir` of `load`.
      image_size: The height and width, in pixels, to which faces are rescaled. By default they keep their size.
      unverified: Whether to accept archives whose size or checksum is not the official one.
      overwrite: Whether to replace a data set that is there already.

    Returns:
      The folder of the data set.

    Raises:
      InputError: The data set needs no preparation or is there already, or sources are missing, damaged, not the
        official ones or where the data set goes.
    """
    if name not in prepared.SET_FOLDERS:
        reason = f"{name} needs no preparation" if name in DATASETS else f"there is no data set {name!r} to prepare"
        raise InputError(f"{reason}; `data prepare` takes {', '.join(prepared.SET_FOLDERS)}")
    folder = prepared.folder_of(name, data_dir)
    files.check_inputs(folder, sources)
    files.remove_leftovers_of(folder)
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} exists already; add --overwrite to replace it")
    if image_size is not None and name != "faces":
        raise InputError(f"--image-size is for faces, and all images of {name} have one size; leave it out")
    if name == "faces":
        if len(sources) != 1:
            raise InputError(f"faces needs --from and one folder of images, and {len(sources)} were given; name one")
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
            "`pip install '.[tensorflow]'` in a clone of the repository, which lets tensorflow_datasets download it"
        )
    import tensorflow_datasets as tfds

    folder = prepared.folder_of(name, data_dir)
    before = folder.with_name(f".{folder.name}.before")
    if overwrite and folder.exists():
        files.remove(before)
        folder.rename(before)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder = tfds.builder(prepared.SET_FOLDERS[name], data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except Exception as error:  # A failed download can raise many types of exceptions.
        if before.exists():  # What was there stays until there is something in its place.
            files.remove(folder)
            before.rename(folder)
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"tensorflow_datasets could not download {name} ({type(error).__name__}: {line}); copy the archives to "
            "this machine and name them with --from"
        ) from error
    files.remove(before)
    return Path(builder.data_dir)


def digits(data_dir: Path | None = None) -> Splits:
    """Returns scikit-learn's handwritten digits: 8x8 grey images, float32 in [0, 1], with a fixed split.

    1,347 examples are for training and 450 for testing. `data_dir` is ignored, because the images come with
    scikit-learn.
    """
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
    """Reads CIFAR-10 (Krizhevsky, 2009) from compact files if `data_dir` holds any, or else from the prepared set.

    Both hold the same images in the same order.
    """
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

# Readers of the user's own examples, by the word before the colon.
FILES: dict[str, Callable[[Path, float | None], Splits]] = {
    "npz": own_arrays.npz_file,
    "csv": own_arrays.csv_file,
    "folder": own.image_folder,
}
