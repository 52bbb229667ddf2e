"""Official archives in miniature, damaged."""

import gzip

import numpy as np
import pytest
from scipy.io import savemat

from scissorhands_jax.datasets import archives
from scissorhands_jax.errors import InputError
from tests.datasets.samples import cifar_members, svhn_arrays, write_tar


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

    def test_an_archive_that_reaches_its_limits_is_read_and_one_beyond_them_is_refused(self, official, monkeypatch):
        def read(name, path):
            for examples in archives.read_archives(name, [path], unverified=True)[0].values():
                assert list(examples)

        archive, members = official / "cifar-10-binary.tar.gz", cifar_members("cifar10")
        numbers = max(svhn_arrays(split)["X"].size for split in ("train", "test"))
        largest = max(numbers, *(path.stat().st_size for path in official.glob("*.mat")))
        for name, path, constant, limit in (
            ("cifar10", archive, "_MAX_CONTENT", len(gzip.decompress(archive.read_bytes()))),
            ("cifar10", archive, "_MAX_MEMBERS", len(members)),
            ("svhn", official, "_MAX_CONTENT", largest),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(archives, constant, limit)
                read(name, path)
                patch.setattr(archives, constant, limit - 1)
                with pytest.raises(InputError, match=str(limit - 1)):
                    read(name, path)

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
