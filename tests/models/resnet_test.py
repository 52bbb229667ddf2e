"""Residual networks: shortcuts, stems, normalisation of images, initial weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import trees
from scissorhands_jax.errors import InputError
from scissorhands_jax.models import build, from_linen
from scissorhands_jax.models.layers import as_float
from scissorhands_jax.models.resnet import cifar_resnet, pad_shortcut
from tests.models.samples import KEY, images, outline, tiny_model, tiny_resnet


class TestResNet:
    def test_names_of_the_parameter_free_family(self):
        params, model_state = outline("resnet20")
        names = trees.leaf_names(params)
        assert {"conv1/kernel", "bn1/scale", "layer1/0/conv1/kernel", "layer3/2/bn2/bias", "linear/kernel"} <= set(
            names
        )
        assert len(names) + 2 * 19 == 97  # the tensors of the published file; 19 normalisations
        assert not any("downsample" in name for name in names)
        assert list(model_state) == ["batch_stats"]

    def test_pad_shortcut_subsamples_and_pads_both_sides(self):
        x = images(2, 6, 4)
        y = pad_shortcut(x, 8, 2)
        chex.assert_trees_all_equal(y[..., 2:6], x[:, ::2, ::2])
        assert not y[..., :2].any()
        assert not y[..., 6:].any()

    def test_inputs_are_normalised_with_constants_that_are_not_stored(self):
        module = cifar_resnet(20, 10)
        assert (module.mean, module.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        _, params, model_state = tiny_model()
        plain = {"batch_stats": model_state["batch_stats"]}
        constants = {"mean": module.mean, "std": module.std, "normalize": module.normalize}
        fixed, off = (from_linen(tiny_resnet(**options), images(1)) for options in (constants, {"normalize": "off"}))
        x = images()
        mean, std = (jnp.asarray(numbers).reshape(1, 1, 1, 3) for numbers in (module.mean, module.std))
        got, _ = fixed.apply(params, plain, x, train=False)
        expected, _ = off.apply(params, plain, (x - mean) / std, train=False)
        chex.assert_trees_all_close(got, expected, rtol=1e-5)

    def test_stored_normalisation_may_stay_unused(self):
        x = images()
        used, params, model_state = tiny_model()
        unused, off = (from_linen(tiny_resnet(normalize=mode), x) for mode in ("stored_unused", "off"))
        chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(unused.init, KEY), (params, model_state))
        plain = {"batch_stats": model_state["batch_stats"]}
        expected, _ = off.apply(params, plain, x, train=False)
        chex.assert_trees_all_equal(unused.apply(params, model_state, x, train=False)[0], expected)
        assert not np.allclose(used.apply(params, model_state, x, train=False)[0], expected)

    def test_imagenet_stem_quarters_the_image(self):
        module = tiny_resnet(stem="imagenet", stage_sizes=(1,), widths=(4,))
        variables = module.init(KEY, images(1, 16))
        _, states = module.apply(variables, images(1, 16), capture_intermediates=True, mutable=["intermediates"])
        assert states["intermediates"]["layer1"]["__call__"][0].shape == (1, 4, 4, 4)

    def test_uint8_images_mean_the_same_as_floats(self):
        pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
        model, params, model_state = tiny_model()
        got, _ = model.apply(params, model_state, jnp.asarray(pixels), train=False)
        expected, _ = model.apply(params, model_state, jnp.asarray(pixels / np.float32(255)), train=False)
        chex.assert_trees_all_close(got, expected, rtol=1e-5)
        with pytest.raises(InputError, match="int32"):
            as_float(jnp.zeros((1,), jnp.int32))

    @pytest.mark.parametrize(
        ("options", "shape", "message"),
        [
            ({"stem": "large"}, (1, 8, 8, 3), "stem"),
            ({"shortcut": "none"}, (1, 8, 8, 3), "shortcut"),
            ({"normalize": "yes"}, (1, 8, 8, 3), "normalize"),
            ({"widths": (4,)}, (1, 8, 8, 3), "one width per stage"),
            ({}, (1, 8, 8, 1), "1 channels"),
            ({}, (1, 3, 8, 8), "look like channels first; give channels last"),
            ({}, (8, 8, 3), r"\(N, H, W, C\)"),
        ],
    )
    def test_unusable_options_and_images_are_refused(self, options, shape, message):
        with pytest.raises(InputError, match=message):
            tiny_resnet(**options).init(KEY, jnp.zeros(shape))

    def test_depths_and_sizes_that_do_not_exist_are_refused(self):
        with pytest.raises(InputError, match="6n"):
            cifar_resnet(18, 10)
        with pytest.raises(InputError, match="at least 16x16"):
            jax.eval_shape(build("vgg16_bn", num_classes=10, image_shape=(8, 8, 3)).init, KEY)

    def test_initial_weights_have_the_spread_of_pytorchs(self):
        params, _ = from_linen(tiny_resnet(stage_sizes=(1,), widths=(256,), num_classes=100), images(1)).init(KEY)
        kernel = params["layer1"]["0"]["conv1"]["kernel"]
        assert np.std(kernel) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
        bound = 256**-0.5
        for leaf in jax.tree.leaves(params["fc"]):
            assert np.abs(leaf).max() <= bound
        assert np.std(params["fc"]["kernel"]) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert params["fc"]["bias"].any()


def test_global_statistics_under_sharding():
    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), ("data",))
    x = images(2 * len(devices))
    model, params, model_state = tiny_model()
    step = jax.jit(lambda x: model.apply(params, model_state, x, train=True))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    chex.assert_trees_all_close(step(sharded), step(x), rtol=1e-4, atol=1e-5)
