"""Folders of data sets that several test files share."""

import numpy as np
import pytest
from scipy.io import savemat

from scissorhands_jax import datasets
from tests.datasets.samples import COUNTS, NAMES, cifar_members, encode, random_set, svhn_arrays, write_tar


@pytest.fixture
def folder(tmp_path):
    """A folder as `cifar10` wants it: two training files and a test file with random images."""
    for name, (images, labels) in {
        "cifar10_train_0": random_set(5, 0),
        "cifar10_train_1": random_set(3, 1),
        "cifar10_test": random_set(4, 2),
    }.items():
        np.savez_compressed(tmp_path / f"{name}.npz", residual=encode(images), label=labels)
    return tmp_path


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder with all archives, in miniature."""
    folder = tmp_path_factory.mktemp("archives")
    write_tar(folder / "cifar-10-binary.tar.gz", cifar_members("cifar10"))
    write_tar(folder / "cifar-100-binary.tar.gz", cifar_members("cifar100"))
    for split in COUNTS:
        savemat(folder / f"{split}_32x32.mat", svhn_arrays(split), do_compression=True)
    return folder


@pytest.fixture(scope="module")
def ready(official, tmp_path_factory):
    """A folder in which all of them have been prepared."""
    folder = tmp_path_factory.mktemp("ready")
    for name in NAMES:
        datasets.prepare(name, [official], folder, unverified=True)
    return folder
