"""Compact files are read without loss, and refused when damaged."""

import json

import numpy as np
import pytest

from experiments import pack_cifar10
from scissorhands_jax import datasets, hashing
from scissorhands_jax.datasets import compact
from scissorhands_jax.datasets.splits import Splits
from scissorhands_jax.errors import InputError
from tests.datasets.samples import encode, random_set


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
            ({"label": np.array([0, 1, 2, 10])}, "1 labels outside 0 to 9, the first is 10 of example 3"),
            ({"label": np.array([0, 1, 2, -1])}, "1 labels outside 0 to 9, the first is -1 of example 3"),
            ({"label": np.zeros(4)}, "labels of type float64; give integers from 0 to 9"),
            ({"label": np.array([None] * 4)}, "not a whole compact image file.*Python objects"),
            ({"residual": np.zeros((3, 4, 4, 4))}, "residuals of type float64"),
            ({"residual": np.zeros((4, 4, 4, 3), np.uint8)}, r"instead of uint8 of shape \(3, N, H, W\)"),
            ({"residual": np.zeros((3, 4, 5, 5), np.uint8)}, r"have shape \(4, 4, 3\) and those in .* \(5, 5, 3\)"),
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

    @pytest.mark.parametrize("name", ["2", "01", "x"])
    def test_parts_are_numbered_without_a_gap(self, folder, name):
        part = (folder / "cifar10_train_1.npz").rename(folder / f"cifar10_train_{name}.npz")
        if name == "01":
            assert len(datasets.cifar10(folder).train["label"]) == 8
            (folder / "cifar10_train_1.npz").symlink_to(part)  # one part twice
        with pytest.raises(InputError, match="do not run from 0 without a gap; copy all its parts, each once"):
            datasets.cifar10(folder)

    def test_parts_follow_one_another_by_number(self, folder):
        numbers = [*range(10), 10]
        for number in numbers[2:]:
            images, labels = random_set(1, number)
            np.savez(folder / f"cifar10_train_{number}.npz", residual=encode(images), label=labels)
        np.testing.assert_array_equal(datasets.cifar10(folder).train["image"][-1:], random_set(1, 10)[0])

    def test_missing_files_and_folders_are_named(self, folder):
        (folder / "cifar10_test.npz").unlink()
        with pytest.raises(InputError, match=r"cifar10_test\.npz does not exist"):
            datasets.cifar10(folder)
        with pytest.raises(InputError, match="holds no cifar10_train"):
            datasets.cifar10(folder / "absent")
        with pytest.raises(InputError, match="needs --data-dir"):
            datasets.load("cifar10")


class TestPacking:
    SPLITS = Splits(
        *({"image": images, "label": labels} for images, labels in (random_set(23, 0), random_set(9, 1))),
        compact.CIFAR10_CLASSES,
        augmented=True,
    )

    def test_what_bytes_do_not_hold_is_refused(self, tmp_path):
        images, labels = self.SPLITS.test["image"], self.SPLITS.test["label"]
        for wrong, message in (
            ({"image": images.astype(np.float32)}, "only images in uint8 can be packed, got float32"),
            ({"label": labels.astype(np.int64) + 250}, "only labels that are integers from 0 to 255"),
            ({"label": labels.astype(np.int64) - 20}, "only labels that are integers from 0 to 255"),
            ({"label": labels.astype(np.float32)}, "only labels that are integers from 0 to 255"),
        ):
            with pytest.raises(InputError, match=message):
                compact.pack_cifar10(self.SPLITS._replace(test=self.SPLITS.test | wrong), tmp_path / "packed")
        assert not (tmp_path / "packed").exists()

    @pytest.mark.parametrize("parts", [1, 2, 3])
    def test_parts_joined_are_the_images_without_loss(self, tmp_path, parts):
        packed, joined = tmp_path / "packed", tmp_path / "joined"
        joined.mkdir()
        written = compact.pack_cifar10(self.SPLITS, packed, parts=parts)
        assert len(written) == parts
        for number, files in enumerate(written):
            assert compact.missing_files(joined) or number == 0
            for file in files:
                (joined / file.name).write_bytes(file.read_bytes())
            if number < parts - 1:
                with pytest.raises(InputError, match=r"lacks .*cifar10_test\.npz.*copy all its parts"):
                    datasets.cifar10(joined)
        assert compact.missing_files(joined) == []
        # A file of another packing in the same folder is not read.
        (joined / "cifar10_train_99.npz").write_bytes((joined / "cifar10_train_00.npz").read_bytes())
        found = datasets.load("cifar10", joined)
        for part, expected in ((found.train, self.SPLITS.train), (found.test, self.SPLITS.test)):
            np.testing.assert_array_equal(part["image"], expected["image"])
            np.testing.assert_array_equal(part["label"], expected["label"])

    def test_the_encoding_is_the_documented_one(self, tmp_path):
        compact.pack_cifar10(self.SPLITS, tmp_path, parts=2)
        with np.load(tmp_path / "cifar10_test.npz") as arrays:
            np.testing.assert_array_equal(arrays["residual"], encode(self.SPLITS.test["image"]))

    def test_parts_have_about_one_size(self, tmp_path):
        sizes = []
        for files in compact.pack_cifar10(self.SPLITS, tmp_path, parts=2):
            counts = [np.load(path)["label"].size for path in files if path.suffix == ".npz"]
            sizes.append(sum(counts))
        assert sizes == [16, 16]

    def test_a_file_of_another_packing_is_refused(self, tmp_path):
        compact.pack_cifar10(self.SPLITS, tmp_path)
        path = tmp_path / "cifar10_train_01.npz"
        path.write_bytes((tmp_path / "cifar10_train_00.npz").read_bytes())
        with pytest.raises(InputError, match=r"cifar10_train_01\.npz has another SHA-256"):
            datasets.cifar10(tmp_path)
        (tmp_path / "cifar10_files.json").write_text("{}")
        with pytest.raises(InputError, match=r"cifar10_files\.json is damaged"):
            datasets.cifar10(tmp_path)

    @pytest.mark.parametrize("parts", [0, 40])
    def test_parts_without_images_are_refused(self, tmp_path, parts):
        with pytest.raises(InputError, match=f"cannot divide 23 training and 9 test images into {parts} parts"):
            compact.pack_cifar10(self.SPLITS, tmp_path / "out", parts=parts)
        assert not (tmp_path / "out").exists()


def test_the_command_packs_what_it_reads_and_names_the_files(folder, tmp_path, capsys):
    out = tmp_path / "packed"
    assert pack_cifar10.main(["--data-dir", str(folder), "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("MiB") == 2
    assert all(str(path) in said for path in out.iterdir())
    for split in ("train", "test"):
        first, second = (getattr(datasets.cifar10(place), split) for place in (folder, out))
        np.testing.assert_array_equal(first["image"], second["image"])
    assert pack_cifar10.main(["--data-dir", str(out), "--out", str(out)]) == 2


def test_the_real_test_set_has_its_published_means(shared, tmp_path):
    # The training set is large; the reader is the same.
    (tmp_path / "cifar10_test.npz").symlink_to(shared / "data" / "cifar10_test.npz")
    (tmp_path / "cifar10_train_0.npz").symlink_to(shared / "data" / "cifar10_test.npz")
    with pytest.raises(InputError, match="all 10000 test images of CIFAR-10 and 10000 of its 50000 training images"):
        datasets.load("cifar10", tmp_path)
    listed = {path.name: hashing.file_sha256(path) for path in tmp_path.glob("*.npz")}
    (tmp_path / "cifar10_files.json").write_text(json.dumps({"sha256": listed}))  # a subset on purpose
    test = datasets.load("cifar10", tmp_path).test
    assert test["image"].shape == (10000, 32, 32, 3)
    assert np.bincount(test["label"]).tolist() == [1000] * 10
    assert test["label"][:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, airplane, frog, ...
    means = test["image"].sum(axis=(0, 1, 2), dtype=np.int64) / (255 * 10000 * 32 * 32)
    np.testing.assert_allclose(means, [0.494215, 0.485132, 0.450408], atol=5e-7)


class TestCifar100Own:
    def test_reads_what_was_encoded_without_loss(self, tmp_path):
        parts = {"train": random_set(6, 0), "test": random_set(3, 1)}
        for name, (images, labels) in parts.items():
            np.savez(tmp_path / f"cifar100_own_{name}.npz", residual=encode(images), label=labels + 90)
        splits = datasets.load("cifar100_own", tmp_path)
        np.testing.assert_array_equal(splits.train["image"], parts["train"][0])
        np.testing.assert_array_equal(splits.test["label"], parts["test"][1] + 90)
        assert len(splits.class_names) == len(set(splits.class_names)) == 100

    def test_the_real_one_has_its_documented_size_and_order(self, shared):
        splits = datasets.load("cifar100_own", shared / "data")
        assert np.bincount(splits.train["label"]).tolist() == [100] * 100
        assert np.bincount(splits.test["label"]).tolist() == [20] * 100
        assert splits.image_shape == (32, 32, 3)
        assert splits.class_names[0] == "apple"
        assert splits.class_names[41] == "lawn_mower"
        assert splits.class_names[99] == "worm"
        assert list(splits.class_names) == sorted(splits.class_names)

    def test_missing_files_are_named(self, tmp_path):
        with pytest.raises(InputError, match=r"cifar100_own_train\.npz does not exist"):
            datasets.load("cifar100_own", tmp_path)
        with pytest.raises(InputError, match="needs --data-dir"):
            datasets.load("cifar100_own")
