"""Pictures as the diffusion programs read them."""

import numpy as np
import pytest
from PIL import Image

from scissorhands_jax.diffusion import image_folders, inception, vision
from scissorhands_jax.errors import InputError

RAMP = np.linspace(0, 2**16 - 1, 64 * 64).astype(np.uint16).reshape(64, 64)


@pytest.mark.parametrize("suffix", ["png", "pgm"])
def test_grey_pictures_of_16_bits_are_the_nearest_of_8(tmp_path, suffix):
    """Pillow's own conversion cuts them off at 255, which makes almost all of them white."""
    deep, shallow = tmp_path / f"deep.{suffix}", tmp_path / "shallow.png"
    Image.fromarray(RAMP).save(deep)
    Image.fromarray(np.round(RAMP / 257).astype(np.uint8)).save(shallow)
    read = np.asarray(image_folders.read_rgb_image(deep))
    assert read.shape == (64, 64, 3)
    np.testing.assert_array_equal(read, np.asarray(image_folders.read_rgb_image(shallow)))
    assert 126 < read.mean() < 129
    for look in (vision.preprocess_image, inception.stretch_image):
        with Image.open(deep) as image, Image.open(shallow) as other:
            np.testing.assert_array_equal(look(image), look(other))


def test_grey_pictures_of_more_bits_are_refused(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"Pf\n4 4\n-1.0\n" + np.full((4, 4), 1e6, "<f4").tobytes())
    with pytest.raises(InputError, match=r"a\.pgm cannot be read as an image \(its pixels are float32"):
        image_folders.read_rgb_image(tmp_path / "a.pgm")
