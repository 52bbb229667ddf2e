"""Prepared data sets hold what the archive holds, and are refused when damaged."""

import hashlib
import importlib.util
import json
import sys
import types

import numpy as np
import pytest

from scissorhands_jax import datasets
from scissorhands_jax.datasets import archives, prepared
from scissorhands_jax.errors import InputError
from tests.datasets.samples import (
    COUNTS,
    NAMES,
    drawn,
)


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

    def test_what_others_have_next_to_a_set_stays(self, official, tmp_path):
        names = [".3.0.0.0a1b2c3d.partial", "old/.movie.mp4.0a1b2c3d.partial", ".3.1.0.0a1b2c3d.partial"]
        paths = [tmp_path / "svhn_cropped" / name for name in names]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        datasets.prepare("svhn", [official], tmp_path, unverified=True)
        assert [path.exists() for path in paths] == [True, True, False]

    def test_a_set_that_is_there_stays_unless_told_otherwise(self, official, tmp_path):
        folder = datasets.prepare("svhn", [official], tmp_path, unverified=True)
        with pytest.raises(InputError, match="exists already; add --overwrite"):
            datasets.prepare("svhn", [official], tmp_path, unverified=True)
        (folder / "features.json").unlink()
        datasets.prepare("svhn", [official], tmp_path, unverified=True, overwrite=True)
        assert len(datasets.load("svhn", tmp_path).test["label"]) == 4

    @pytest.mark.parametrize("name", ["svhn", "faces"])
    def test_what_is_read_is_not_replaced(self, tmp_path, name):
        folder = prepared.folder_of(name, tmp_path)
        (folder / "mine").mkdir(parents=True)
        for source in (folder, folder / "mine"):
            with pytest.raises(InputError, match=r"is read and (lies in|is where the result goes)"):
                datasets.prepare(name, [source], tmp_path, overwrite=True)

    @pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow would download it")
    def test_without_archives_and_tensorflow_both_ways_are_shown(self, tmp_path):
        with pytest.raises(InputError, match=r"cifar-100-binary.tar.gz, copied from .*kriz.*pip install '\.\[tensorfl"):
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


def test_what_a_killed_process_has_left_is_no_version(tmp_path):
    for name in ("3.0.2", ".3.0.2.0a1b2c3d.replaced", "3.0.10"):
        folder = tmp_path / prepared.SET_FOLDERS["cifar10"] / name
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    assert [path.name for path in prepared._versions(tmp_path, "cifar10")] == ["3.0.2", "3.0.10"]


@pytest.mark.parametrize("fails", [True, False])
def test_a_set_stays_until_there_is_another_in_its_place(tmp_path, monkeypatch, fails):
    folder = prepared.folder_of("cifar10", tmp_path)
    folder.mkdir(parents=True)
    (folder / "old").write_text("old")

    class Builder:
        data_dir = str(folder)

        def download_and_prepare(self):
            assert not folder.exists()
            folder.mkdir()
            (folder / "new").write_text("new")
            if fails:
                raise ConnectionError("offline")

    fake = types.SimpleNamespace(builder=lambda *names, **options: Builder())
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    if fails:
        with pytest.raises(InputError, match=r"could not download cifar10 .*offline"):
            datasets.prepare("cifar10", [], tmp_path, overwrite=True)
    else:
        datasets.prepare("cifar10", [], tmp_path, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["old" if fails else "new"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
