"""The network of the speed records: whitening, pools, and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import losses, models, torch_weights, trees
from scissorhands_jax.base import Data
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods.retrain import (
    RetrainSettings,
)
from scissorhands_jax.models.resnet9 import _patches, fit_whitening, halve, identity_first
from tests import tiny

KEY = jax.random.key(5)


def network(**options):
    return models.build("resnet9", num_classes=3, image_shape=(10, 10, 3), widths=(4, 8, 8), **options)


class TestResNet9:
    MODEL = network()
    START = MODEL.init(KEY)

    def images(self, count=30, size=10):
        """Correlated, as pictures are."""
        rng = np.random.default_rng(1)
        noise = rng.normal(size=(count, size + 2, size + 2, 1)) + 0.3 * rng.normal(size=(count, size + 2, size + 2, 3))
        smooth = sum(noise[:, y : y + size, x : x + size] for y in range(3) for x in range(3))
        return np.clip(0.4 + 0.05 * smooth, 0, 1).astype(np.float32)

    def test_whitened_patches_have_the_identity_as_covariance(self):
        images = self.images()
        state = fit_whitening(self.START[1], {"image": images})
        layer = state["constants"]["whiten"]
        out = np.asarray(
            _patches(jnp.asarray(images - np.asarray(layer["mean"])), 2) @ layer["kernel"], np.float64
        ).reshape(-1, 24)
        np.testing.assert_array_equal(out[:, :12], -out[:, 12:])
        covariance = np.cov(out[:, :12].T)
        assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-3
        assert np.all(np.diag(covariance) < 1.001)
        assert np.diag(covariance)[0] > 0.99, "the first axis has the most variance, of which eps takes next to nothing"
        np.testing.assert_allclose(layer["mean"], images.mean((0, 1, 2)), atol=0.01)

    def test_bytes_and_floats_are_whitened_alike(self):
        images = np.round(255 * self.images()).astype(np.uint8)
        wide = fit_whitening(self.START[1], {"image": images.astype(np.float32) / 255})
        narrow = fit_whitening(self.START[1], {"image": jnp.asarray(images)})
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), wide, narrow)

    def test_flat_images_give_finite_filters(self):
        state = fit_whitening(self.START[1], {"image": np.full((2, 10, 10, 3), 0.5, np.float32)})
        assert np.all(np.isfinite(state["constants"]["whiten"]["kernel"]))

    def test_retraining_fits_the_whitening_and_nothing_trains_it(self):
        data = Data(None, {"image": self.images(), "label": np.arange(30, dtype=np.int32) % 3})
        method = RetrainSettings().build(self.MODEL, losses.classification_loss(self.MODEL), 3)
        carry = method.init(KEY, None, None, data)
        fitted = fit_whitening(self.START[1], data.retain)["constants"]
        jax.tree.map(np.testing.assert_array_equal, carry.model_state["constants"], fitted)
        assert [name for name in trees.leaf_names(carry.params) if "whiten" in name] == ["whiten/bias"]
        assert fit_whitening((), data.retain) == ()
        other = tiny.start()[1]
        assert fit_whitening(other, data.retain) is other

    def test_weights_go_through_a_file_of_pytorch_names(self):
        state = fit_whitening(self.START[1], {"image": self.images()})
        saved = torch_weights.to_state_dict(self.START[0], state)
        assert {"whiten.kernel", "whiten.mean", "whiten.bias", "layer3.bn3.running_var", "head.weight"} <= set(saved)
        jax.tree.map(
            np.testing.assert_array_equal, torch_weights.from_state_dict(saved, *self.START), (self.START[0], state)
        )

    def test_small_pools_and_identities(self):
        x = np.random.default_rng(0).normal(size=(2, 7, 5, 3)).astype(np.float32)
        wanted = x[:, :6, :4].reshape(2, 3, 2, 2, 2, 3).max((2, 4))
        np.testing.assert_array_equal(halve(jnp.asarray(x)), wanted)
        kernel = np.asarray(identity_first(KEY, (3, 3, 3, 5)))
        np.testing.assert_array_equal(kernel[1, 1, :, :3], np.eye(3))
        assert np.count_nonzero(kernel[..., :3]) == 3
        assert np.count_nonzero(kernel[..., 3:]) == 9 * 3 * 2

    @pytest.mark.parametrize(
        ("options", "shape", "message"),
        [
            ({}, (8, 8, 3), "images are 8x8; this network needs 9x9"),
            ({"residual": (True,)}, (10, 10, 3), "3 widths but 1 residual flags"),
            ({"dtype": "float16"}, (10, 10, 3), "resnet9 cannot compute in 'float16'; choose one of float32, bfloat16"),
        ],
    )
    def test_what_cannot_be_is_one_sentence(self, options, shape, message):
        with pytest.raises(InputError, match=message):
            models.build("resnet9", num_classes=3, image_shape=shape, **options).init(KEY)
