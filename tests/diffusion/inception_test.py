"""The network of the FID computes what pytorch-fid computes, and others are not taken for it."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from scissorhands_jax.diffusion import inception
from scissorhands_jax.errors import WeightsError
from tests.diffusion import inception_trace


@pytest.fixture(scope="module")
def recorded():
    with np.load(inception_trace.RECORDED) as arrays:
        return arrays["features"], inception_trace.weights(json.loads(str(arrays["shapes"])))


def test_features_are_those_of_pytorch_fid(recorded, tmp_path):
    expected, arrays = recorded
    safetensors.numpy.save_file(arrays | {"fc.weight": np.zeros((1008, 4), np.float32)}, tmp_path / "x.safetensors")
    layers = inception.read_inception(tmp_path / "x.safetensors")
    assert len(layers) == 94
    pixels = np.stack([inception.stretch_image(Image.fromarray(image)) for image in inception_trace.images()])
    assert (pixels.shape, pixels.dtype) == ((2, 299, 299, 3), np.float32)
    found = np.asarray(jax.jit(inception.inception_features)(layers, pixels))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_other_networks_are_refused(recorded, tmp_path):
    arrays = recorded[1]
    changes = {
        "is an Inception of 1000 classes, whose distances are no FID": {"fc.weight": np.zeros((1000, 4), np.float32)},
        "its layers do not fit together": {"Mixed_6b.branch1x1.conv.weight": np.zeros((12, 5, 1, 1), np.float32)},
        "holds NaN or infinity in Mixed_6b.branch1x1": {"Mixed_6b.branch1x1.bn.bias": np.full(12, np.nan, np.float32)},
    }
    for number, (message, changed) in enumerate(changes.items()):
        file = tmp_path / f"{number}.safetensors"
        safetensors.numpy.save_file(arrays | changed, file)
        with pytest.raises(WeightsError, match=f"{message}.*|.*{message}"):
            inception.read_inception(file)
    for lacking, message in (
        ("Mixed_7c.branch_pool.conv.weight", "it has no Mixed_7c.branch_pool"),
        ("Mixed_7c.branch_pool.bn.bias", "Mixed_7c.branch_pool is not whole"),
    ):
        kept = {name: array for name, array in arrays.items() if name != lacking}
        safetensors.numpy.save_file(kept, tmp_path / "x.safetensors")
        with pytest.raises(WeightsError, match=f"is no Inception of the FID: {message}.*; give pt_inception-2015"):
            inception.read_inception(tmp_path / "x.safetensors")
