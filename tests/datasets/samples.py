"""Data sets in miniature, in the forms of their files."""

import io
import tarfile

import numpy as np
from PIL import Image

from scissorhands_jax.datasets import compact


def encode(images):
    """The compact form of images (N, H, W, 3): planes G, R-G, B-G, differenced down rows, then along columns."""
    red, green, blue = np.moveaxis(images, -1, 0)
    planes = np.stack([green, red - green, blue - green])
    rows = np.diff(planes, axis=2, prepend=np.zeros_like(planes[:, :, :1]))
    return np.diff(rows, axis=3, prepend=np.zeros_like(rows[:, :, :, :1]))


def random_set(count, seed, size=4):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), rng.integers(0, 10, count, dtype=np.uint8)


NAMES = {
    "cifar10": {"label": compact.CIFAR10_CLASSES},
    "cifar100": {
        "coarse_label": tuple(f"group{i}" for i in range(20)),
        "label": tuple(f"fine_{i:02}" for i in range(100)),
    },
    "svhn": {"label": tuple("0123456789")},
}


COUNTS = {"train": 25, "test": 4}


def drawn(name):
    """Images (N, 32, 32, 3) and labels by kind for both splits of a miniature of an official data set."""
    rng = np.random.default_rng(1)
    return {
        split: (
            rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
            {kind: rng.integers(0, len(names), count) for kind, names in NAMES[name].items()},
        )
        for split, count in COUNTS.items()
    }


def cifar_members(name):
    """The files of an official CIFAR archive: a byte per label, then red, green and blue planes, row by row."""
    records = {}
    for split, (images, labels) in drawn(name).items():
        rows = [column.astype(np.uint8)[:, None] for column in labels.values()]
        rows.append(np.moveaxis(images, -1, 1).reshape(len(images), -1))
        records[split] = np.concatenate(rows, axis=1)
    if name == "cifar10":
        files = {f"data_batch_{i + 1}.bin": records["train"][5 * i : 5 * i + 5].tobytes() for i in range(5)}
        files |= {"test_batch.bin": records["test"].tobytes(), "readme.html": b"<html>"}
        files["batches.meta.txt"] = ("\n".join(NAMES[name]["label"]) + "\n\n").encode()
        folder = "cifar-10-batches-bin"
    else:
        files = {f"{split}.bin": rows.tobytes() for split, rows in records.items()}
        files["coarse_label_names.txt"] = ("\n".join(NAMES[name]["coarse_label"]) + "\n").encode()
        files["fine_label_names.txt"] = ("\n".join(NAMES[name]["label"]) + "\n").encode()
        folder = "cifar-100-binary"
    return {f"{folder}/{member}": content for member, content in files.items()}


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def svhn_arrays(split):
    images, labels = drawn("svhn")[split]
    digits = labels["label"]
    return {
        "X": np.ascontiguousarray(np.moveaxis(images, 0, -1)),
        "y": np.where(digits == 0, 10, digits).astype(np.uint8)[:, None],
    }


def save_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
