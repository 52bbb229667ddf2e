"""Data sets by name: read without loss, refused when damaged; official archives in miniature, and the real files."""

import hashlib
import importlib.util
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

from scissorhands_jax import datasets
from scissorhands_jax.datasets import archives, compact, own, prepared
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


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(InputError, match="no data set 'cifar'; near matches: cifar10"):
        datasets.load("cifar")
    with pytest.raises(
        InputError, match=r"choose one of digits, cifar10, .*, or npz:FILE or folder:DIR for your own images"
    ):
        datasets.load("zzz")


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


@pytest.mark.parametrize("name", NAMES)
class TestPrepared:
    def test_reads_what_the_archive_holds_in_its_order(self, ready, name):
        splits = datasets.load(name, ready)
        for split, part in (("train", splits.train), ("test", splits.test)):
            images, labels = drawn(name)[split]
            np.testing.assert_array_equal(part["image"], images)
            np.testing.assert_array_equal(part["label"], labels["label"])
            assert part["image"].dtype == np.uint8
            assert part["label"].dtype == np.int32
        assert splits.class_names == NAMES[name]["label"]
        assert splits.augmented == (name != "svhn")

    def test_tensorflow_datasets_reads_it_too(self, ready, name):
        import tensorflow_datasets as tfds

        images, labels = drawn(name)["train"]
        builder = tfds.builder_from_directory(prepared.folder_of(name, ready))
        assert builder.info.full_name == f"{prepared.SET_FOLDERS[name]}/{prepared.VERSIONS[name]}"
        records = list(builder.as_data_source("train"))
        assert len(records) == COUNTS["train"]
        for record in records:
            index = int(record["id"].removeprefix(b"train_"))
            np.testing.assert_array_equal(record["image"], images[index])
            assert {kind: record[kind] for kind in labels} == {kind: labels[kind][index] for kind in labels}

    def test_nothing_else_is_left(self, ready, name):
        assert {path.name for path in ready.iterdir()} == {"cifar10", "cifar100", "svhn_cropped"}
        assert [path.name for path in (ready / prepared.SET_FOLDERS[name]).iterdir()] == [prepared.VERSIONS[name]]


class TestDamagedPrepared:
    @pytest.fixture
    def folder(self, ready, tmp_path):
        """The folder of a copy of the prepared SVHN."""
        source, target = prepared.folder_of("svhn", ready), prepared.folder_of("svhn", tmp_path)
        target.mkdir(parents=True)
        for path in source.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        return target

    @pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
    @pytest.mark.parametrize("pattern", ["*train.array_record*", "features.json", "dataset_info.json"])
    def test_a_file_cut_short_is_refused(self, folder, tmp_path, pattern, kept):
        (path,) = folder.glob(pattern)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(InputError, match=r"data set in .* is damaged .* data prepare svhn .* --overwrite"):
            datasets.load("svhn", tmp_path)

    def test_a_flipped_byte_is_refused_or_harmless(self, folder, tmp_path):
        (path,) = folder.glob("*test.array_record*")
        whole, (images, labels) = path.read_bytes(), drawn("svhn")["test"]
        rng, refused = np.random.default_rng(0), 0
        for position in rng.choice(len(whole), 100, replace=False):
            damaged = bytearray(whole)
            damaged[position] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                test = datasets.load("svhn", tmp_path).test
            except InputError:
                refused += 1
            else:
                np.testing.assert_array_equal(test["image"], images)
                np.testing.assert_array_equal(test["label"], labels["label"])
        assert refused > 0

    @pytest.mark.parametrize("pattern", ["*test.array_record*", "features.json"])
    def test_a_lost_file_is_refused(self, folder, tmp_path, pattern):
        (path,) = folder.glob(pattern)
        path.unlink()
        with pytest.raises(InputError, match=r"data set in .* is damaged"):
            datasets.load("svhn", tmp_path)

    def test_the_format_that_needs_tensorflow_is_named(self, folder, tmp_path):
        info = json.loads((folder / "dataset_info.json").read_text())
        (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
        with pytest.raises(InputError, match=r"not in ArrayRecord format.*file_format='array_record'"):
            datasets.load("svhn", tmp_path)

    def test_sets_that_are_not_there_come_with_the_command(self, tmp_path):
        with pytest.raises(InputError, match="holds no prepared svhn; prepare it with `scissorhands data prepare"):
            datasets.load("svhn", tmp_path)
        with pytest.raises(InputError, match="cifar100 needs --data-dir"):
            datasets.load("cifar100")


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


class TestPrepare:
    def test_only_the_official_archive_is_taken(self, official, tmp_path, monkeypatch):
        path = official / "cifar-10-binary.tar.gz"
        with pytest.raises(InputError, match=r"bytes and the official archive 170,052,171; copy it .* --unverified"):
            datasets.prepare("cifar10", [path], tmp_path)
        (archive,) = archives.ARCHIVES["cifar10"]
        sized = archive._replace(size=path.stat().st_size)
        monkeypatch.setitem(archives.ARCHIVES, "cifar10", (sized,))
        with pytest.raises(InputError, match=r"has the SHA-256 [0-9a-f]{64} and the official archive c4a38c50"):
            datasets.prepare("cifar10", [path], tmp_path)
        assert list(tmp_path.iterdir()) == []
        known = sized._replace(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        monkeypatch.setitem(archives.ARCHIVES, "cifar10", (known,))
        datasets.prepare("cifar10", [path], tmp_path)
        assert len(datasets.load("cifar10", tmp_path).train["label"]) == 25

    def test_archives_in_the_folder_of_the_data_are_found(self, official, tmp_path):
        for split in COUNTS:
            (tmp_path / f"{split}_32x32.mat").symlink_to(official / f"{split}_32x32.mat")
        folder = datasets.prepare("svhn", [], tmp_path, unverified=True)
        assert folder == tmp_path / "svhn_cropped" / "3.1.0"

    def test_a_set_that_is_there_stays_unless_told_otherwise(self, official, tmp_path):
        folder = datasets.prepare("svhn", [official], tmp_path, unverified=True)
        with pytest.raises(InputError, match="exists already; add --overwrite"):
            datasets.prepare("svhn", [official], tmp_path, unverified=True)
        (folder / "features.json").unlink()
        datasets.prepare("svhn", [official], tmp_path, unverified=True, overwrite=True)
        assert len(datasets.load("svhn", tmp_path).test["label"]) == 4

    @pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow would download it")
    def test_without_archives_and_tensorflow_both_ways_are_shown(self, tmp_path):
        with pytest.raises(
            InputError, match=r"cifar-100-binary.tar.gz, copied from .*kriz.*scissorhands-jax\[tensorfl"
        ):
            datasets.prepare("cifar100", [], tmp_path)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("digits", {}, "digits needs no preparation; `data prepare` takes cifar10, cifar100, svhn, faces"),
            ("imagenet", {}, "no data set 'imagenet' to prepare"),
            ("svhn", {"image_size": 16}, "--image-size is for faces"),
            ("faces", {}, "faces needs --from and one folder of images, and 0 were given"),
        ],
    )
    def test_what_cannot_be_prepared_is_said(self, tmp_path, name, options, message):
        with pytest.raises(InputError, match=message):
            datasets.prepare(name, [], tmp_path, **options)


class TestDamagedArchives:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data_batch_3.bin": None}, r"lacks cifar-10-batches-bin/data_batch_3\.bin; copy the binary version"),
            ({"batches.meta.txt": None}, "lacks cifar-10-batches-bin/batches.meta.txt"),
            ({"test_batch.bin": b""}, "the test files in .* do not hold whole records of 3073 bytes"),
            ({"data_batch_5.bin": b"\0" * 3072}, "the train files in .* do not hold whole records"),
            ({"data_batch_1.bin": b"\x0a" + b"\0" * 3072}, "train files in .* hold a label without a name"),
        ],
    )
    def test_a_cifar_archive_with_other_contents_is_refused(self, tmp_path, change, message):
        members = cifar_members("cifar10") | {f"cifar-10-batches-bin/{name}": data for name, data in change.items()}
        path = tmp_path / "cifar-10-binary.tar.gz"
        write_tar(path, {name: data for name, data in members.items() if data is not None})
        with pytest.raises(InputError, match=message):
            archives.read_archives("cifar10", [path], unverified=True)

    @pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.999])
    @pytest.mark.parametrize("archive", ["cifar-100-binary.tar.gz", "test_32x32.mat"])
    def test_an_archive_cut_short_is_refused(self, official, tmp_path, archive, kept):
        for path in official.iterdir():
            whole = path.read_bytes()
            (tmp_path / path.name).write_bytes(whole[: int(kept * len(whole))] if path.name == archive else whole)
        name = "svhn" if archive.endswith(".mat") else "cifar100"
        with pytest.raises(InputError, match=r"is not a whole|lacks"):
            archives.read_archives(name, [tmp_path], unverified=True)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"y": None}, "not a whole MATLAB file with X and y"),
            ({"y": np.zeros((4, 1), np.uint8)}, "labels outside 1 to 10"),
            ({"y": np.full((4, 1), 11, np.uint8)}, "labels outside 1 to 10"),
            ({"y": np.ones((3, 1), np.uint8)}, r"shape \(32, 32, 3, 4\) instead of .* for 3 labels"),
            ({"X": np.zeros((32, 32, 3, 4))}, "images of type float64"),
        ],
    )
    def test_an_svhn_file_with_other_contents_is_refused(self, official, tmp_path, change, message):
        arrays = svhn_arrays("test") | change
        (tmp_path / "train_32x32.mat").symlink_to(official / "train_32x32.mat")
        savemat(tmp_path / "test_32x32.mat", {name: array for name, array in arrays.items() if array is not None})
        with pytest.raises(InputError, match=message):
            archives.read_archives("svhn", [tmp_path], unverified=True)

    def test_archives_that_are_not_there_are_named_with_their_address(self, tmp_path):
        with pytest.raises(InputError, match=r"nowhere\.tar\.gz does not exist"):
            archives.read_archives("cifar10", [tmp_path / "nowhere.tar.gz"])
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
        with pytest.raises(
            InputError, match=r"binary.tar.gz is not among .* \(cifar-10-python.tar.gz\).*www.cs.toronto"
        ):
            archives.read_archives("cifar10", [tmp_path / "cifar-10-python.tar.gz"])
        with pytest.raises(InputError, match=r"train_32x32.mat is not among the files of --from"):
            archives.read_archives("svhn", [tmp_path])


class TestNpz:
    IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)
    LABELS = np.repeat([0, 1], 6)

    @pytest.fixture
    def save(self, tmp_path):
        def save(**arrays):
            np.savez(tmp_path / "own.npz", **{name: array for name, array in arrays.items() if array is not None})
            return f"npz:{tmp_path / 'own.npz'}"

        return save

    def test_a_split_of_its_own_is_kept(self, save):
        arrays = {"image": self.IMAGES[:8], "label": self.LABELS[:8]}
        arrays |= {"test_image": self.IMAGES[8:], "test_label": self.LABELS[8:]}
        splits = datasets.load(save(**arrays, class_names=np.array(["cats", "dogs", "birds"])))
        np.testing.assert_array_equal(splits.train["image"], self.IMAGES[:8])
        np.testing.assert_array_equal(splits.test["label"], self.LABELS[8:])
        assert splits.train["image"].dtype == np.uint8
        assert splits.class_names == ("cats", "dogs", "birds")
        assert not splits.augmented

    def test_without_one_every_fifth_of_each_label_tests(self, save):
        splits = datasets.load(save(image=self.IMAGES, label=self.LABELS))
        np.testing.assert_array_equal(splits.test["image"], self.IMAGES[[4, 10]])
        np.testing.assert_array_equal(splits.train["image"], np.delete(self.IMAGES, [4, 10], axis=0))
        assert splits.test["label"].tolist() == [0, 1]
        assert splits.class_names == ("0", "1")

    def test_grey_and_floating_point_images_are_taken(self, save):
        splits = datasets.load(save(image=self.IMAGES[..., 0] / 255, label=self.LABELS))
        assert splits.image_shape == (4, 5, 1)
        assert splits.train["image"].dtype == np.float32

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image": None}, "has no array 'image', only label"),
            ({"label": None}, "has no array 'label', only image"),
            ({"label": np.arange(5)}, "12 images for 5 labels"),
            ({"label": np.ones(12)}, "label in .* is float64"),
            ({"label": np.full(12, -1)}, "give whole numbers from 0"),
            ({"label": np.array([None] * 12)}, r"not a whole \.npz file"),
            ({"image": np.zeros((12, 4))}, r"is float32 of shape|is float64 of shape|of shape \(12, 4\)"),
            ({"image": np.full((12, 4, 4), 255.0)}, r"floating point outside \[0, 1\]"),
            ({"image": np.full((12, 4, 4), np.nan)}, r"floating point outside \[0, 1\]"),
            ({"image": np.zeros((12, 4, 4), np.int64)}, "give uint8 or floating point"),
            ({"test_image": np.zeros((1, 4, 5, 3), np.uint8)}, "only one of test_image and test_label"),
            (
                {"test_image": np.zeros((1, 5, 5, 3), np.uint8), "test_label": np.zeros(1, int)},
                r"test images in .* shape \(5, 5, 3\) and the training images uint8 of shape \(4, 5, 3\)",
            ),
            ({"test_image": np.zeros((2, 4, 5, 3), np.uint8), "test_label": np.zeros(1, int)}, "2 examples in test_im"),
            ({"label": np.arange(12)}, "gives no test examples"),
            ({"class_names": np.array(["cats"])}, "not integers from 0 to 0"),
        ],
    )
    def test_arrays_that_do_not_go_together_are_refused(self, save, change, message):
        with pytest.raises(InputError, match=message):
            datasets.load(save(**({"image": self.IMAGES, "label": self.LABELS} | change)))

    def test_files_that_cannot_be_read_are_named(self, tmp_path):
        with pytest.raises(InputError, match=r"own\.npz does not exist"):
            datasets.load(f"npz:{tmp_path / 'own.npz'}")
        (tmp_path / "own.npz").write_text("pixels")
        with pytest.raises(InputError, match=r"not a whole \.npz file"):
            datasets.load(f"npz:{tmp_path / 'own.npz'}")
        np.save(tmp_path / "own.npy", np.zeros(3))
        with pytest.raises(InputError, match=r"not a whole \.npz file"):
            datasets.load(f"npz:{tmp_path / 'own.npy'}")


def save_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class TestFolder:
    def test_classes_are_folders_and_every_fifth_image_tests(self, tmp_path):
        for person in ("s1", "s2", "s10"):
            for number in range(1, 12):
                save_image(tmp_path / person / f"{number}.png", pixels(number + 20 * len(person), 3, 4, 3))
        (tmp_path / "s1" / "notes.txt").write_text("no image")
        splits = datasets.load(f"folder:{tmp_path}")
        assert splits.class_names == ("s1", "s2", "s10")  # numbers by their value
        assert splits.test["label"].tolist() == [0, 0, 1, 1, 2, 2]
        expected = [pixels(number + 40, 3, 4, 3) for number in (5, 10)]
        np.testing.assert_array_equal(splits.test["image"][:2], expected)
        expected = [pixels(number + 40, 3, 4, 3) for number in (1, 2, 3, 4, 6, 7, 8, 9, 11)]
        np.testing.assert_array_equal(splits.train["image"][:9], expected)
        assert splits.train["label"].dtype == np.int32

    def test_folders_named_train_and_test_are_the_split(self, tmp_path):
        save_image(tmp_path / "train" / "cats" / "a.png", pixels(0, 3, 3))
        save_image(tmp_path / "train" / "dogs" / "b.PNG", pixels(1, 3, 3))
        save_image(tmp_path / "test" / "dogs" / "c.bmp", pixels(2, 3, 3))
        splits = datasets.load(f"folder:{tmp_path}")
        assert splits.train["label"].tolist() == [0, 1]
        np.testing.assert_array_equal(splits.train["image"][..., 0], [pixels(0, 3, 3), pixels(1, 3, 3)])
        np.testing.assert_array_equal(splits.test["image"], pixels(2, 3, 3)[None, ..., None])
        assert splits.test["label"].tolist() == [1]

    @pytest.mark.parametrize(("labels", "names"), [((0, 1, 10), ("0", "1", "10")), (("bo", "al", "c d"), None)])
    def test_lists_name_images_and_labels(self, tmp_path, labels, names):
        lines = []
        for index, label in enumerate(labels):
            save_image(tmp_path / "all images" / f"{index}.png", pixels(index, 2, 2))
            lines.append(f"all images/{index}.png {label}")
        (tmp_path / "train.txt").write_text("\n".join(lines) + "\n\n")
        (tmp_path / "test.txt").write_text(lines[1])
        if names is None:  # the last word is the label
            with pytest.raises(InputError, match=r"all images/2\.png c cannot be opened as an image"):
                datasets.load(f"folder:{tmp_path}")
            return
        splits = datasets.load(f"folder:{tmp_path}")
        assert splits.class_names == names
        assert splits.train["label"].tolist() == [0, 1, 2]
        assert splits.test["label"].tolist() == [1]
        np.testing.assert_array_equal(splits.test["image"], pixels(1, 2, 2)[None, ..., None])

    def test_one_coloured_image_makes_all_of_them_rgb(self, tmp_path):
        for number in range(5):
            save_image(tmp_path / "a" / f"{number}.png", pixels(number, 2, 2) if number else pixels(9, 2, 2, 3))
        splits = datasets.load(f"folder:{tmp_path}")
        np.testing.assert_array_equal(splits.train["image"][0], pixels(9, 2, 2, 3))
        np.testing.assert_array_equal(splits.train["image"][1], np.repeat(pixels(1, 2, 2)[..., None], 3, axis=-1))

    def test_images_of_other_sizes_are_refused_or_rescaled(self, tmp_path):
        for number in range(5):
            save_image(tmp_path / "a" / f"{number}.png", np.full((8, 8 + number // 4, 3), number, np.uint8))
        with pytest.raises(InputError, match=r"4\.png has 9x8 pixels and other images have 8x8; .* --image-size N"):
            datasets.load(f"folder:{tmp_path}")
        folder = own.find_labelled_images(tmp_path, image_size=4)
        assert folder.image_shape == (4, 4, 3)
        np.testing.assert_array_equal(next(folder.read("test")), np.full((4, 4, 3), 4))

    def test_damaged_images_are_named(self, tmp_path):
        for number in range(5):
            save_image(tmp_path / "a" / f"{number}.png", pixels(number, 20, 20, 3))
        whole = (tmp_path / "a" / "2.png").read_bytes()
        for length in (0, 10, len(whole) // 2):
            (tmp_path / "a" / "2.png").write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"2\.png cannot be (opened|read) as an image"):
                datasets.load(f"folder:{tmp_path}")

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ((), "holds no train images; it needs CLASS"),
            (("a/1.png", "a/2.png"), "holds no test images"),
            (("train/a/1.png",), "holds no test images"),
            (("train/a/1.png", "test/b/1.png"), "no training images of 1 classes, the first is b"),
        ],
    )
    def test_folders_of_another_form_are_refused(self, tmp_path, files, message):
        for file in files:
            save_image(tmp_path / file, pixels(0, 2, 2))
        with pytest.raises(InputError, match=message):
            datasets.load(f"folder:{tmp_path}")

    def test_lists_that_cannot_be_read_are_named(self, tmp_path):
        (tmp_path / "train.txt").write_text("a/1.png 0\na/2.png\n")
        with pytest.raises(InputError, match=r"line 2 of .*train\.txt is 'a/2\.png'; write `relative/path label`"):
            own.find_labelled_images(tmp_path)
        (tmp_path / "train.txt").write_text("a/1.png 0\n")
        with pytest.raises(InputError, match=r"cannot read the list of images .*test\.txt"):
            own.find_labelled_images(tmp_path)
        with pytest.raises(InputError, match="is not a folder"):
            own.find_labelled_images(tmp_path / "absent")
        with pytest.raises(InputError, match="--image-size must be 1 to 4096 pixels, got 0"):
            own.find_labelled_images(tmp_path, image_size=0)


class TestOrlFaces:
    def test_every_person_has_eight_to_train_and_two_to_test(self, shared):
        splits = datasets.load("orl_faces", shared / "data")
        assert splits.image_shape == (112, 92, 1)
        assert splits.train["image"].dtype == np.uint8
        assert np.bincount(splits.train["label"]).tolist() == [8] * 40
        assert np.bincount(splits.test["label"]).tolist() == [2] * 40
        assert splits.class_names == tuple(f"s{i}" for i in range(1, 41))
        everything = np.load(shared / "data" / "orl_faces.npz")["image"]
        np.testing.assert_array_equal(splits.test["image"][:4, ..., 0], everything[[4, 9, 14, 19]])

    def test_files_with_other_contents_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="needs --data-dir"):
            datasets.load("orl_faces")
        np.savez(tmp_path / "orl_faces.npz", image=np.zeros((4, 3, 3), np.uint8), subject=np.full(4, 40))
        with pytest.raises(InputError, match="not integers from 0 to 39"):
            datasets.load("orl_faces", tmp_path)
        np.savez(tmp_path / "orl_faces.npz", image=np.zeros((4, 3, 3), np.uint8), subject=np.zeros(3, int))
        with pytest.raises(InputError, match="4 images of 3 people"):
            datasets.load("orl_faces", tmp_path)
