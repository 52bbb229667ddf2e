"""Networks: structure against the recorded one, BatchNorm against NumPy, a training step through every adapter."""

import functools
import json
import subprocess
import sys

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from scissorhands_jax import trees
from scissorhands_jax.base import Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import classification_loss
from scissorhands_jax.models import MODELS, build, from_equinox, from_linen, from_nnx
from scissorhands_jax.models.layers import BatchNorm, Normalize, _normalize_batch, as_float, relu_sum
from scissorhands_jax.models.resnet import ResNet, cifar_resnet, pad_shortcut

KEY = jax.random.key(0)
SIZES = {
    "resnet8": 75_290,  # 432 + 32 + 4,672 + 13,952 + 55,552 + 650: stem, its norm, three blocks, head
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet18": 11_173_962,
    "resnet34": 21_289_802,
    "vgg16_bn": 14_728_266,
    "resnet9": 2_009_496,  # 24 whitening biases, 2,004,480 in kernels, 2,432 in norms, 2,560 in the head
    "mlp": 855_050,
}


def images(count=4, size=8, channels=3, seed=0):
    """Uniform noise, shape (count, size, size, channels)."""
    return jnp.asarray(np.random.default_rng(seed).random((count, size, size, channels)), jnp.float32)


def tiny_resnet(**options):
    """A ResNet that compiles quickly but has every part: two stages, a projection shortcut, stored normalisation."""
    return ResNet(**({"num_classes": 3, "stage_sizes": (1, 1), "widths": (4, 8)} | options))


@functools.cache
def tiny_model(**options):
    """A `Model` of `tiny_resnet`, its params and state; made once for all tests."""
    model = from_linen(tiny_resnet(**options), images(1))
    return model, *model.init(KEY)


def outline(name, **options):
    """Shapes of params and model state of a registered network."""
    model = build(name, **({"num_classes": 10, "image_shape": (32, 32, 3)} | options))
    return jax.eval_shape(model.init, KEY)


class TestRegistry:
    def test_every_network_has_a_known_size(self):
        assert SIZES.keys() == MODELS.keys()

    @pytest.mark.parametrize("name", SIZES)
    def test_parameter_counts_and_logits(self, name):
        model = build(name, num_classes=10, image_shape=(32, 32, 3))
        params, model_state = jax.eval_shape(model.init, KEY)
        assert trees.count_weights(params) == SIZES[name]
        x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        logits, _ = jax.eval_shape(lambda p, s, x: model.apply(p, s, x, train=False), params, model_state, x)
        assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)

    def test_unknown_names_and_options_are_refused_with_near_matches(self):
        with pytest.raises(InputError, match="resnet18"):
            build("resnet19", num_classes=10, image_shape=(32, 32, 3))
        with pytest.raises(InputError, match=r"no option 'stems'.*stem"):
            build("resnet18", num_classes=10, image_shape=(32, 32, 3), stems="cifar")
        with pytest.raises(InputError, match="must be positive"):
            build("mlp", num_classes=0, image_shape=(8,))

    def test_options_as_configuration_files_give_them(self):
        params, _ = outline("mlp", image_shape=(5,), hidden=[7])
        assert {
            name: leaf.shape for name, leaf in zip(trees.leaf_names(params), jax.tree.leaves(params), strict=True)
        } == {
            "layer1/kernel": (5, 7),
            "layer1/bias": (7,),
            "head/kernel": (7, 10),
            "head/bias": (10,),
        }

    @pytest.mark.parametrize(
        ("label", "name", "classes"),
        [
            ("resnet18 (10 classes)", "resnet18", 10),
            ("resnet34 imagenet stem, CelebA (307 classes)", "resnet34", 307),
            ("vgg16_bn_lth (10 classes)", "vgg16_bn", 10),
        ],
    )
    def test_names_and_shapes_are_those_of_the_recorded_networks(self, shared, label, name, classes):
        recorded = json.loads((shared / "golden/shared/09_structure.json").read_text())["networks"][label]
        words = {"kernel": "weight", "scale": "weight", "bias": "bias"}
        buffers = {"mean": "running_mean", "var": "running_var", "count": "num_batches_tracked"}
        params, model_state = outline(name, num_classes=classes)
        found = {}
        collections = [(params, words), (model_state["batch_stats"], buffers), (model_state["constants"], {})]
        for tree, renamed in collections:
            for leaf_name, leaf in zip(trees.leaf_names(tree), jax.tree.leaves(tree), strict=True):
                path, _, word = leaf_name.rpartition("/")
                shape = leaf.shape
                if word == "kernel":
                    shape = (shape[-1], shape[-2], *shape[:-2])
                found[f"{path}/{renamed.get(word, word)}".replace("/", ".")] = list(shape)
        assert found == {entry["name"]: entry["shape"] for entry in recorded["entries"]}
        assert trees.count_weights(params) == recorded["params"]


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


class TestReluSum:
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_it_is_the_relu_of_the_sum_to_the_last_bit(self, dtype):
        rng = np.random.default_rng(0)
        a, b = (jnp.asarray(rng.normal(size=10_000) * rng.choice([1e-6, 1, 1e6], 10_000), dtype) for _ in range(2))
        special = jnp.asarray([0, -0.0, 1, -1, 2e38, -2e38, np.inf, np.nan, -np.inf], dtype)
        a = jnp.concatenate([a, a[:100], jnp.repeat(special, 8)])
        b = jnp.concatenate([b, -a[:100], jnp.tile(special[:8], 9)])
        found = jax.jit(relu_sum)(a, b)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.astype(jnp.float32), jax.nn.relu(a + b).astype(jnp.float32))

    def test_derivatives_of_both_orders_are_those_of_the_relu(self):
        a, b = images(4, 3), images(4, 3, seed=1) - 1  # sums of either sign
        a = a.at[0].set(-b[0])  # where the sum is zero its derivative is zero, as that of `jax.nn.relu`

        def second(function):
            gradient = jax.grad(lambda a, b: jnp.sum(jnp.sin(function(a * a - 1, a * b))), (0, 1))
            return jax.jit(lambda a, b: jax.jvp(gradient, (a, b), (b, a)))(a, b)

        def first(function):
            return jax.grad(lambda a, b: jnp.sum(function(a, b) * jnp.cos(a)), (0, 1))(a, b)

        def relu(a, b):
            return jax.nn.relu(a + b)

        chex.assert_trees_all_close(first(relu_sum), first(relu), rtol=1e-6)
        chex.assert_trees_all_close(second(relu_sum), second(relu), rtol=1e-5, atol=1e-6)


class TestBatchNorm:
    def run(self, x, *, train, mutable=("batch_stats",), **options):
        module = BatchNorm(**options)
        rng = np.random.default_rng(1)
        channels = x.shape[-1]
        params = {name: jnp.asarray(rng.normal(size=channels), jnp.float32) for name in ("scale", "bias")}
        stats = {
            "mean": jnp.asarray(rng.normal(size=channels), jnp.float32),
            "var": jnp.asarray(rng.random(channels) + 0.5, jnp.float32),
            "count": jnp.int32(7),
        }
        variables = {"params": params, "batch_stats": stats}
        y, moved = module.apply(variables, x, train=train, mutable=list(mutable))
        return np.asarray(y), params, stats, moved.get("batch_stats")

    def test_training_follows_the_closed_form(self):
        x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 3)).astype(np.float32)
        y, params, old, new = self.run(jnp.asarray(x), train=True)
        wide = x.astype(np.float64).reshape(-1, 3)
        mean, biased, unbiased = wide.mean(0), wide.var(0), wide.var(0, ddof=1)
        expected = (x - mean) / np.sqrt(biased + 1e-5) * np.asarray(params["scale"]) + np.asarray(params["bias"])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(new["mean"], 0.9 * np.asarray(old["mean"]) + 0.1 * mean, rtol=1e-6)
        np.testing.assert_allclose(new["var"], 0.9 * np.asarray(old["var"]) + 0.1 * unbiased, rtol=1e-6)
        assert int(new["count"]) == 8
        assert new["count"].dtype == jnp.int32

    def test_evaluation_uses_the_running_statistics_and_moves_nothing(self):
        x = np.random.default_rng(0).normal(3, 2, (4, 3)).astype(np.float32)
        y, params, old, new = self.run(jnp.asarray(x), train=False)
        expected = (x - np.asarray(old["mean"])) / np.sqrt(np.asarray(old["var"]) + 1e-5)
        expected = expected * np.asarray(params["scale"]) + np.asarray(params["bias"])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_equal(new, old)

    def test_an_immutable_state_is_read_as_training_does_and_not_moved(self):
        x = images(4, 5)
        frozen, *_, new = self.run(x, train=True, mutable=())
        moved, *_ = self.run(x, train=True)
        np.testing.assert_array_equal(frozen, moved)
        assert new is None

    def test_derivatives_are_those_of_the_closed_form(self):
        x = jax.random.normal(KEY, (3, 2, 2, 5)) + 1
        variables = BatchNorm().init(KEY, x, train=False)
        params = {"scale": jnp.linspace(0.5, 2, 5), "bias": jnp.linspace(-1, 1, 5)}

        def own(x, params):
            y, moved = BatchNorm().apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)) + jnp.sum(moved["batch_stats"]["mean"] * moved["batch_stats"]["var"])

        def reference(x, params):
            mean, var = jnp.mean(x, (0, 1, 2), keepdims=True), jnp.var(x, (0, 1, 2), keepdims=True)
            y = (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"].reshape(mean.shape)
            y += params["bias"].reshape(mean.shape)
            return jnp.sum(jnp.sin(y)) + jnp.sum(0.1 * mean * (0.9 + 0.1 * var * 12 / 11))

        def gradient_and_hessian_product(function):
            gradient = jax.grad(function, (0, 1))
            return jax.jit(lambda x, params: jax.jvp(gradient, (x, params), (jnp.square(x), params)))(x, params)

        chex.assert_trees_all_close(
            gradient_and_hessian_product(own), gradient_and_hessian_product(reference), rtol=1e-4, atol=1e-4
        )

    def test_variance_survives_a_large_mean(self):
        noise = np.random.default_rng(0).normal(size=(64, 1))
        x = (noise + 4096).astype(np.float32)
        *_, old, new = self.run(jnp.asarray(x), train=True)
        var = (np.asarray(new["var"]) - 0.9 * np.asarray(old["var"])) / 0.1
        np.testing.assert_allclose(var, x.astype(np.float64).var(ddof=1), rtol=1e-3)

    @pytest.mark.parametrize("ratio", [0, 1, 3.9, 4.1, 300])
    def test_statistics_and_derivatives_are_those_of_float64_whatever_the_mean_is_to_the_deviation(self, ratio):
        """In one channel, with an ordinary one beside it: one pass on CPU up to a ratio of 4, then two."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(4096, 2)) * [0.1, 1] + [0.1 * ratio, 0]
        slope, scale, bias = rng.normal(size=x.shape), np.array([1.5, 0.5]), np.array([0.1, -1])

        def all_of_it(x, slope, scale, bias):
            y, transpose, (mean, var) = jax.vjp(
                lambda *arguments: (lambda y, *moments: (y, moments))(*_normalize_batch(*arguments, 1e-5)),
                *(x, scale, bias),
                has_aux=True,
            )
            return (mean, var), (y, transpose(slope))

        found = jax.jit(all_of_it)(*(jnp.asarray(array, jnp.float32) for array in (x, slope, scale, bias)))
        with jax.enable_x64(True):
            x, slope = (jnp.asarray(np.asarray(array, np.float32), jnp.float64) for array in (x, slope))
            mean, var = x.mean(0), x.var(0)

            def reference(x, scale, bias):
                std = jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
                return (x - x.mean(0, keepdims=True)) / std * scale[None] + bias[None]

            y, transpose = jax.vjp(reference, x, jnp.asarray(scale), jnp.asarray(bias))
            expected = (mean, var), (y, transpose(slope))
        np.testing.assert_allclose(found[0][0], mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found[0][1], var, rtol=5e-6)
        for own, right in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
            own, right = np.asarray(own).reshape(-1, 2), np.asarray(right).reshape(-1, 2)
            error = np.abs(own - right).max(0) / np.abs(right).max(0)
            assert np.all(error < 1e-6 * np.array([3 + ratio, 3]))

    def test_narrow_inputs_get_wide_statistics(self):
        x = images(8, 4).astype(jnp.bfloat16)
        y, _, old, new = self.run(x, train=True)
        assert y.dtype == jnp.bfloat16
        assert new["mean"].dtype == new["var"].dtype == jnp.float32
        mean = np.asarray(x, np.float64).mean((0, 1, 2))
        np.testing.assert_allclose(new["mean"], 0.9 * np.asarray(old["mean"]) + 0.1 * mean, rtol=1e-5)

    def test_one_value_per_channel_is_refused(self):
        with pytest.raises(InputError, match="one value per channel"):
            self.run(jnp.ones((1, 3)), train=True)

    def test_momentum_and_eps_are_options(self):
        x = images(4, 5)
        *_, new = self.run(x, train=True, momentum=1.0)
        np.testing.assert_allclose(new["mean"], np.asarray(x).mean((0, 1, 2)), rtol=1e-5)
        assert not np.allclose(self.run(x, train=True, eps=1.0)[0], self.run(x, train=True)[0])

    def test_normalize_is_stored_but_not_trained(self):
        variables = Normalize((0.5,), (0.25,)).init(KEY, jnp.ones((1, 2, 2, 1)))
        assert list(variables) == ["constants"]
        y = Normalize((0.0,), (1.0,)).apply(variables, jnp.ones((1, 2, 2, 1)))
        np.testing.assert_array_equal(y, 2.0)  # stored numbers count, not the attributes


class ForeignLinen(nn.Module):
    """A linen module as others write them."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = x.reshape(x.shape[0], -1)
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x)


class ForeignNnx(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(192, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.layers[0](x.reshape(x.shape[0], -1)))
        return self.layers[1](self.dropout(x))


class PlainEquinox(eqx.Module):
    layers: list
    activation: object
    temperature: float

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.layers = [eqx.nn.Linear(192, 8, key=first), eqx.nn.Dropout(0.5), eqx.nn.Linear(8, 3, key=second)]
        self.activation = jax.nn.relu
        self.temperature = 2.0

    def __call__(self, x, *, key=None):
        x = self.activation(self.layers[0](x.reshape(-1)))
        return self.layers[2](self.layers[1](x, key=key)) / self.temperature


class StatefulEquinox(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear
    order: jax.Array

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.linear = eqx.nn.Linear(192, 8, key=first)
        self.norm = eqx.nn.BatchNorm(8, axis_name="examples", mode="batch")
        self.head = eqx.nn.Linear(8, 3, key=second)
        self.order = jnp.arange(3)[::-1]

    def __call__(self, x, state):
        x, state = self.norm(self.linear(x.reshape(-1)), state)
        return self.head(x)[self.order], state


def plain_model():
    """A `Model` written by hand over a list."""

    def init(key):
        return [0.1 * jax.random.normal(key, (192, 3)), jnp.zeros(3)], ()

    def apply(params, model_state, x, *, train, key=None):
        del train, key
        return x.reshape(x.shape[0], -1) @ params[0] + params[1].reshape(1, -1), model_state

    return Model(init, apply)


ADAPTED = {
    "linen": lambda: tiny_model(stage_sizes=(1,), widths=(4,))[0],
    "foreign linen": lambda: from_linen(ForeignLinen(), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)),
    "nnx": lambda: from_nnx(ForeignNnx),
    "plain equinox": lambda: from_equinox(PlainEquinox),
    "stateful equinox": lambda: from_equinox(StatefulEquinox),
    "function": plain_model,
}
STATEFUL = ("linen", "foreign linen", "nnx", "stateful equinox")
RANDOM = ("foreign linen", "nnx", "plain equinox")


def differ(a, b):
    """Whether any number of two trees differs."""
    return any(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.any(x != y)), a, b)))


@pytest.fixture(scope="module", params=ADAPTED)
def adapted(request):
    """A network through each adapter: its name, the model, its params and state."""
    model = ADAPTED[request.param]()
    return request.param, model, *model.init(KEY)


class TestAdapters:
    def test_a_jitted_training_step_works(self, adapted):
        name, model, params, model_state = adapted
        batch = {"image": images(6), "label": jnp.arange(6) % 3}
        loss_fn, optimizer = classification_loss(model), optax.sgd(0.1, momentum=0.9)

        @jax.jit
        def step(params, model_state, opt_state, key):
            grad = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, model_state), grads = grad(params, model_state, batch, train=True, key=key)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return loss, optax.apply_updates(params, updates), model_state, opt_state

        _, moved, new_state, _ = step(params, model_state, optimizer.init(params), KEY)
        chex.assert_trees_all_equal_shapes_and_dtypes((params, model_state), (moved, new_state))
        chex.assert_tree_all_finite(moved)
        assert differ(params, moved)
        assert differ(model_state, new_state) == (name in STATEFUL)

    def test_trees_hold_arrays_only_under_text_names(self, adapted):
        _, _, params, model_state = adapted
        for leaf in jax.tree.leaves((params, model_state)):
            assert isinstance(leaf, jax.Array)
        assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params))
        assert all(trees.leaf_names(params))
        copied = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(params))
        assert jax.tree.structure(copied) == jax.tree.structure(params)

    def test_evaluation_is_deterministic_and_returns_the_state_itself(self, adapted):
        _, model, params, model_state = adapted
        first, state = model.apply(params, model_state, images(), train=False)
        second, _ = model.apply(params, model_state, images(), train=False, key=jax.random.key(5))
        assert state is model_state
        chex.assert_trees_all_equal(first, second)
        assert (first.shape, first.dtype) == ((4, 3), jnp.float32)

    def test_training_draws_from_the_key_alone(self, adapted):
        name, model, params, model_state = adapted

        def logits(seed):
            return model.apply(params, model_state, images(), train=True, key=jax.random.key(seed))[0]

        chex.assert_trees_all_equal(logits(1), logits(1))
        assert bool(jnp.any(logits(1) != logits(2))) == (name in RANDOM)

    def test_examples_do_not_mix_in_evaluation(self, adapted):
        _, model, params, model_state = adapted
        whole, _ = model.apply(params, model_state, images(), train=False)
        part, _ = model.apply(params, model_state, images()[1:2], train=False)
        chex.assert_trees_all_close(whole[1:2], part, rtol=1e-5, atol=1e-6)

    def test_vmap_over_parameters_equals_a_loop(self, adapted):
        _, model, _, model_state = adapted
        keys = jax.random.split(KEY, 2)
        stacked = jax.vmap(lambda key: model.init(key)[0])(keys)

        def train(params):
            return model.apply(params, model_state, images(), train=True, key=KEY)

        together = jax.jit(jax.vmap(train))(stacked)
        alone_for = jax.jit(train)
        for index in range(2):
            alone = alone_for(jax.tree.map(lambda leaf, index=index: leaf[index], stacked))
            expected = jax.tree.map(lambda leaf, index=index: leaf[index], together)
            chex.assert_trees_all_close(alone, expected, rtol=1e-4, atol=1e-4)

    def test_init_depends_on_the_key_only(self, adapted):
        _, model, params, model_state = adapted
        chex.assert_trees_all_equal(model.init(KEY), (params, model_state))
        other, _ = model.init(jax.random.key(1))
        assert differ(params, other)

    def test_donated_params_can_be_replaced(self, adapted):
        _, model, params, model_state = adapted

        def step(params):
            grads = jax.grad(lambda p: model.apply(p, model_state, images(), train=True, key=KEY)[0].sum())(params)
            return jax.tree.map(jnp.subtract, params, grads)

        moved = jax.jit(step, donate_argnums=0)(trees.copy(params))
        chex.assert_trees_all_equal_shapes_and_dtypes(params, moved)

    def test_state_of_another_network_is_refused(self):
        for adapt in (from_nnx(ForeignNnx), from_equinox(StatefulEquinox)):
            _, model_state = adapt.init(KEY)
            with pytest.raises(InputError, match=r"has no leaf .*; give the tree of this network"):
                adapt.apply({}, model_state, images(), train=False)


class TestAdapterDetails:
    def test_linen_modes_under_other_names(self):
        class Deterministic(nn.Module):
            @nn.compact
            def __call__(self, x, deterministic: bool = True):
                return nn.Dropout(0.5, deterministic=deterministic)(x)

        model = from_linen(Deterministic(), jnp.zeros((1, 64)))
        _, model_state = model.init(KEY)
        x = jnp.ones((1, 64))
        assert (model.apply({}, model_state, x, train=True, key=KEY)[0] == 0).any()
        assert not (model.apply({}, model_state, x, train=False)[0] == 0).any()

    def test_linen_batch_statistics_match_ours(self):
        x = images()
        theirs = nn.BatchNorm(use_running_average=False, momentum=0.9)
        y, _ = theirs.init_with_output(KEY, x)
        ours = BatchNorm()
        z, _ = ours.apply(ours.init(KEY, x, train=False), x, train=True, mutable=["batch_stats"])
        chex.assert_trees_all_close(y, z, rtol=1e-4, atol=1e-5)

    def test_nnx_names_are_attributes(self):
        params, model_state = from_nnx(ForeignNnx).init(KEY)
        assert "layers/0/kernel" in trees.leaf_names(params)
        assert trees.leaf_names(model_state) == ["norm/mean", "norm/var"]

    def test_nnx_random_streams_need_a_key_in_training(self):
        model = from_nnx(ForeignNnx)
        params, model_state = model.init(KEY)
        with pytest.raises(InputError, match="pass key="):
            model.apply(params, model_state, images(), train=True)

    def test_nnx_dropout_layers_draw_different_masks(self):
        class Twice(nnx.Module):
            def __init__(self, rngs):
                self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

            def __call__(self, x):
                return jnp.stack([self.first(x), self.second(x)])

        model = from_nnx(Twice)
        params, model_state = model.init(KEY)
        first, second = model.apply(params, model_state, jnp.ones((1, 64)), train=True, key=KEY)[0]
        assert (first != second).any()

    def test_equinox_names_and_state(self):
        params, model_state = from_equinox(StatefulEquinox).init(KEY)
        assert trees.leaf_names(params) == [
            "head/bias",
            "head/weight",
            "linear/bias",
            "linear/weight",
            "norm/bias",
            "norm/weight",
        ]
        assert set(model_state) == {"state", "constants"}
        np.testing.assert_array_equal(model_state["constants"]["order"], [2, 1, 0])

    def test_equinox_sequential_with_and_without_state(self):
        def layers(key):
            return [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(192, 3, key=key)]

        norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")
        for make in (
            lambda key: eqx.nn.Sequential(layers(key)),
            lambda key: eqx.nn.Sequential([*layers(key), norm]),
        ):
            model = from_equinox(make)
            params, model_state = model.init(KEY)
            logits, new_state = model.apply(params, model_state, images(), train=True, key=KEY)
            assert logits.shape == (4, 3)
            chex.assert_trees_all_equal_shapes_and_dtypes(new_state, model_state)

    def test_equinox_batch_axes_must_agree(self):
        def make(key):
            del key
            return eqx.nn.Sequential([eqx.nn.BatchNorm(3, axis_name=name, mode="batch") for name in "ab"])

        with pytest.raises(InputError, match="batch axis"):
            from_equinox(make)

    def test_bfloat16_computation_keeps_wide_parameters(self):
        x = images(4)
        labels = jnp.arange(4) % 3
        wide, params, model_state = tiny_model()
        narrow = from_linen(tiny_resnet(dtype="bfloat16"), x)
        chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(narrow.init, KEY), (params, model_state))
        loss_fn = classification_loss(narrow)
        batch = {"image": x, "label": labels}
        grads, new_state = jax.jit(jax.grad(loss_fn, has_aux=True), static_argnames="train")(
            params, model_state, batch, train=True, key=None
        )
        for leaf in jax.tree.leaves((params, grads)):
            assert leaf.dtype == jnp.float32
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, model_state)
        got, _ = narrow.apply(params, model_state, x, train=False)
        expected, _ = wide.apply(params, model_state, x, train=False)
        assert got.dtype == jnp.float32
        chex.assert_trees_all_close(got, expected, rtol=0.1, atol=0.1)
        assert (got != expected).any()
        for name in ("vgg16_bn", "mlp", "resnet20", "resnet9"):
            model = build(name, num_classes=10, image_shape=(32, 32, 3), dtype="bfloat16")
            shapes = jax.eval_shape(model.init, KEY)
            x32 = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
            logits, _ = jax.eval_shape(lambda p, s, x, model=model: model.apply(p, s, x, train=False), *shapes, x32)
            assert logits.dtype == jnp.float32


def test_global_statistics_under_sharding():
    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), ("data",))
    x = images(2 * len(devices))
    model, params, model_state = tiny_model()
    step = jax.jit(lambda x: model.apply(params, model_state, x, train=True))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    chex.assert_trees_all_close(step(sharded), step(x), rtol=1e-4, atol=1e-5)


def test_adapters_import_no_framework_until_called():
    code = "import sys, scissorhands_jax.models; print('equinox' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
