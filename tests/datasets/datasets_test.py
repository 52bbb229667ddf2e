"""Data sets by name: which there are, and which source of one comes first."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from scissorhands_jax import datasets
from scissorhands_jax.errors import InputError
from tests.datasets.samples import drawn, encode


class TestDigits:
    def test_are_split_once_and_for_all(self):
        splits = datasets.load("digits")
        assert splits.train["image"].shape == (1347, 8, 8, 1)
        assert splits.test["image"].shape == (450, 8, 8, 1)
        assert splits.image_shape == (8, 8, 1)
        assert splits.class_names == tuple("0123456789")
        for part in (splits.train, splits.test):
            assert part["image"].dtype == np.float32
            assert part["label"].dtype == np.int32
            assert part["image"].min() == 0
            assert part["image"].max() == 1
            assert set(part["label"].tolist()) == set(range(10))
        # Recorded, so that the split never changes unnoticed.
        assert splits.test["label"][:10].tolist() == [2, 2, 3, 0, 8, 8, 4, 7, 0, 8]

    def test_both_parts_together_are_the_original_set(self):
        splits, bunch = datasets.load("digits"), load_digits()
        images = np.concatenate([splits.train["image"], splits.test["image"]]).reshape(-1, 64) * 16
        labels = np.concatenate([splits.train["label"], splits.test["label"]])
        ours = sorted([*row, label] for row, label in zip(images.tolist(), labels.tolist(), strict=True))
        theirs = sorted([*row, label] for row, label in zip(bunch.data.tolist(), bunch.target.tolist(), strict=True))
        assert ours == theirs


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(InputError, match="no data set 'cifar'; near matches: cifar10"):
        datasets.load("cifar")
    with pytest.raises(
        InputError, match=r"choose one of digits, cifar10, .*, or npz:FILE, csv:FILE or folder:DIR for your own exam"
    ):
        datasets.load("zzz")


def test_cifar10_has_the_same_positions_from_either_source(ready, tmp_path):
    for split, (images, labels) in drawn("cifar10").items():
        np.savez(tmp_path / f"cifar10_{split}_0.npz", residual=encode(images), label=labels["label"])
    (tmp_path / "cifar10_test_0.npz").rename(tmp_path / "cifar10_test.npz")
    ours, theirs = datasets.load("cifar10", tmp_path), datasets.load("cifar10", ready)
    for part, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        for name in part:
            np.testing.assert_array_equal(part[name], other[name])
    assert ours.class_names == theirs.class_names


def test_compact_files_come_before_a_prepared_set(folder, official):
    datasets.prepare("cifar10", [official], folder, unverified=True)
    assert datasets.load("cifar10", folder).image_shape == (4, 4, 3)
    for path in folder.glob("*.npz"):
        path.unlink()
    assert datasets.load("cifar10", folder).image_shape == (32, 32, 3)
