"""The digits, and CIFAR-10 from compact files: synthetic ones, damaged ones, and the real one where it is at hand."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from scissorhands_jax import datasets
from scissorhands_jax.errors import InputError


def encode(images):
    """The compact form of images (N, H, W, 3): planes G, R-G, B-G, differenced down rows, then along columns."""
    red, green, blue = np.moveaxis(images, -1, 0)
    planes = np.stack([green, red - green, blue - green])
    rows = np.diff(planes, axis=2, prepend=np.zeros_like(planes[:, :, :1]))
    return np.diff(rows, axis=3, prepend=np.zeros_like(rows[:, :, :, :1]))


def random_set(count, seed, size=4):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), rng.integers(0, 10, count, dtype=np.uint8)


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


class TestCifar10:
    def test_reads_what_was_encoded_without_loss(self, folder):
        splits = datasets.load("cifar10", str(folder))
        images, labels = zip(random_set(5, 0), random_set(3, 1), strict=True)
        np.testing.assert_array_equal(splits.train["image"], np.concatenate(images))
        np.testing.assert_array_equal(splits.train["label"], np.concatenate(labels))
        np.testing.assert_array_equal(splits.test["image"], random_set(4, 2)[0])
        np.testing.assert_array_equal(splits.test["label"], random_set(4, 2)[1])
        assert splits.train["image"].dtype == np.uint8
        assert splits.train["label"].dtype == splits.test["label"].dtype == np.int32
        assert splits.class_names[3] == "cat"
        assert splits.image_shape == (4, 4, 3)

    def test_a_flipped_byte_is_refused_or_harmless(self, folder):
        path = folder / "cifar10_test.npz"
        whole, (images, labels) = path.read_bytes(), random_set(4, 2)
        rng, refused = np.random.default_rng(0), 0
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                splits = datasets.cifar10(folder)
            except InputError:
                refused += 1
            else:
                np.testing.assert_array_equal(splits.test["image"], images)
                np.testing.assert_array_equal(splits.test["label"], labels)
        assert refused > len(whole) / 2

    def test_a_file_cut_short_is_refused(self, folder):
        path = folder / "cifar10_test.npz"
        whole = path.read_bytes()
        for length in [0, 1, 10, *range(0, len(whole), 50), len(whole) - 1]:
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match="not a whole compact image file"):
                datasets.cifar10(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"residual": None}, "not a whole compact image file.*residual"),
            ({"label": None}, "not a whole compact image file.*label"),
            ({"label": np.zeros(3, np.uint8)}, r"shape \(3, 4, 4, 4\) for labels of shape \(3,\)"),
            ({"label": np.zeros((4, 1), np.uint8)}, r"labels of shape \(4, 1\)"),
            ({"label": np.uint8(4)}, r"labels of shape \(\)"),
            ({"label": np.array([0, 1, 2, 10])}, "not integers from 0 to 9"),
            ({"label": np.array([0, 1, 2, -1])}, "not integers from 0 to 9"),
            ({"label": np.zeros(4)}, "not integers from 0 to 9"),
            ({"label": np.array([None] * 4)}, "not a whole compact image file.*allow_pickle"),
            ({"residual": np.zeros((3, 4, 4, 4))}, "residuals of type float64"),
            ({"residual": np.zeros((4, 4, 4, 3), np.uint8)}, r"expected uint8 of shape \(3, N, H, W\)"),
            ({"residual": np.zeros((3, 4, 5, 5), np.uint8)}, r"have shape \(4, 4, 3\), those in .* \(5, 5, 3\)"),
        ],
    )
    def test_a_file_with_other_contents_is_refused(self, folder, change, message):
        images, labels = random_set(4, 2)
        arrays = {"residual": encode(images), "label": labels} | change
        np.savez(folder / "cifar10_test.npz", **{name: array for name, array in arrays.items() if array is not None})
        with pytest.raises(InputError, match=message):
            datasets.cifar10(folder)

    def test_other_kinds_of_files_are_refused(self, folder):
        path = folder / "cifar10_test.npz"
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
        with pytest.raises(InputError, match="not a whole compact image file"):
            datasets.cifar10(folder)
        path.write_text("label,pixel\n")
        with pytest.raises(InputError, match="not a whole compact image file"):
            datasets.cifar10(folder)

    def test_missing_files_and_folders_are_named(self, folder):
        (folder / "cifar10_test.npz").unlink()
        with pytest.raises(InputError, match=r"cifar10_test\.npz does not exist"):
            datasets.cifar10(folder)
        with pytest.raises(InputError, match="holds no cifar10_train"):
            datasets.cifar10(folder / "absent")
        with pytest.raises(InputError, match="needs --data-dir"):
            datasets.load("cifar10")


def test_the_real_test_set_has_its_published_means(shared, tmp_path):
    # The training set is large; the reader is the same.
    (tmp_path / "cifar10_test.npz").symlink_to(shared / "data" / "cifar10_test.npz")
    (tmp_path / "cifar10_train_0.npz").symlink_to(shared / "data" / "cifar10_test.npz")
    test = datasets.load("cifar10", tmp_path).test
    assert test["image"].shape == (10000, 32, 32, 3)
    assert np.bincount(test["label"]).tolist() == [1000] * 10
    assert test["label"][:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, airplane, frog, ...
    means = test["image"].sum(axis=(0, 1, 2), dtype=np.int64) / (255 * 10000 * 32 * 32)
    np.testing.assert_allclose(means, [0.494215, 0.485132, 0.450408], atol=5e-7)


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(InputError, match="no data set 'cifar'; near matches: cifar10"):
        datasets.load("cifar")
    with pytest.raises(InputError, match="near matches: digits, cifar10"):
        datasets.load("zzz")
