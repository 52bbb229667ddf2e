"""Models are found in folders of diffusers, in the cache of the hub, in pieces and in single files."""

import json

import numpy as np
import pytest

from scissorhands_jax import torch_weights
from scissorhands_jax.diffusion import model_sources
from scissorhands_jax.errors import InputError, WeightsError

STEM = "diffusion_pytorch_model"


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths[0]


def test_the_cache_of_the_hub(tmp_path):
    model = tmp_path / "models--someone--something"
    first, second = (model / "snapshots" / name for name in ("aaa", "bbb"))
    touch(first / "unet" / f"{STEM}.safetensors")
    assert model_sources.find_model(model) == first
    touch(second / "unet" / f"{STEM}.safetensors")
    with pytest.raises(
        InputError, match=r"has 2 snapshots \(aaa, bbb\) and no refs/main that names one; name the folder"
    ):
        model_sources.find_model(model)
    (model / "refs").mkdir()
    (model / "refs/main").write_text("bbb")
    assert model_sources.find_model(model) == model_sources.find_model(model / "snapshots") == second
    assert model_sources.find_weights("unet", model).files == (second / "unet" / f"{STEM}.safetensors",)
    with pytest.raises(InputError, match=r"is a cache of models, models--someone--something; name the folder of one"):
        model_sources.find_model(tmp_path)


def test_a_blob_that_is_not_there_is_a_download_that_was_stopped(tmp_path):
    file = tmp_path / "unet" / f"{STEM}.safetensors"
    file.parent.mkdir()
    file.symlink_to(tmp_path / "blobs/absent")
    with pytest.raises(InputError, match=rf"only half downloaded \({STEM}.safetensors\); download them again"):
        model_sources.find_weights("unet", tmp_path)


def test_of_several_files_the_plain_one_is_taken(tmp_path):
    names = ["bin", "fp16.safetensors", "non_ema.safetensors", "safetensors"]
    files = {name: touch(tmp_path / f"{STEM}.{name}") for name in names}
    assert model_sources.find_weights("unet", tmp_path).files == (files["safetensors"],)
    assert model_sources.find_weights("unet", tmp_path, ema=False).files == (files["non_ema.safetensors"],)
    files["safetensors"].unlink()
    assert model_sources.find_weights("unet", tmp_path).files == (files["fp16.safetensors"],)


def test_a_folder_of_single_files(tmp_path):
    file = touch(tmp_path / "v1-5-pruned-emaonly.safetensors")
    for part in ("unet", "vae", "text"):
        assert model_sources.find_weights(part, tmp_path).files == (file,)
    touch(tmp_path / "v1-5-pruned.ckpt")
    with pytest.raises(
        InputError, match=r"several files of weights \(v1-5-pruned-emaonly.safetensors, v1-5-pruned.ckpt"
    ):
        model_sources.find_weights("unet", tmp_path)


class TestPieces:
    @pytest.fixture
    def folder(self, tmp_path):
        arrays = {"a": np.ones(2, np.float32), "b": np.zeros((3, 1), np.float16)}
        names = [f"{STEM}-{number:05d}-of-00002.safetensors" for number in (1, 2)]
        for name, (key, array) in zip(names, arrays.items(), strict=True):
            torch_weights.write_safetensors(tmp_path / name, {key: array})
        document = {"metadata": {}, "weight_map": dict(zip(arrays, names, strict=True))}
        (tmp_path / f"{STEM}.safetensors.index.json").write_text(json.dumps(document))
        return tmp_path

    def test_are_one_network(self, folder):
        source = model_sources.find_weights("unet", folder)
        assert [file.name[-22:] for file in source.files] == [
            "00001-of-00002.safetensors"[-22:],
            "00002-of-00002.safetensors"[-22:],
        ]
        assert model_sources.find_weights("unet", folder / f"{STEM}.safetensors.index.json") == source
        with model_sources.open_weights(source) as tensors:
            assert set(tensors) == {"a", "b"}
            assert (tensors.shape("b"), tensors.dtype("b")) == ((3, 1), np.float16)
            assert tensors["a"].tolist() == [1, 1]
        assert len(source.sha256()) == 64

    def test_that_are_missing_alone_or_twice_are_refused(self, folder):
        first, second = model_sources.find_weights("unet", folder).files
        with pytest.raises(InputError, match=r"is piece 1 of 2 of a network; name the folder with all of them"):
            model_sources.find_weights("unet", first)
        second.write_bytes(first.read_bytes())
        with (
            pytest.raises(WeightsError, match="hold the same tensor"),
            model_sources.open_weights(model_sources.find_weights("unet", folder)),
        ):
            pass
        second.unlink()
        with pytest.raises(InputError, match=rf"1 of 2 pieces of the weights in .* are missing \({second.name}\)"):
            model_sources.find_weights("unet", folder)

    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {"a": 3}}', "{}"]
    )
    def test_a_damaged_index(self, tmp_path, text):
        (tmp_path / f"{STEM}.safetensors.index.json").write_text(text)
        with pytest.raises(InputError, match=r"cannot read .*index.json: .*; download it again"):
            model_sources.find_weights("unet", tmp_path)
