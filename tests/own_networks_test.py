"""Networks that are not in the zoo: from PyTorch's names into a module of one's own and back, in three frameworks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from scissorhands_jax.errors import WeightsError
from scissorhands_jax.models import from_equinox, from_linen, from_nnx
from scissorhands_jax.torch_weights import from_state_dict, to_state_dict

SIDE, CHANNELS, FEATURES = 6, 5, 7
FLATTEN = {"fc": (CHANNELS, SIDE, SIDE)}


def state_dict(seed=0):
    """Random weights with the names and shapes of PyTorch: `block.conv`, `block.norm`, flatten, `fc`, `head`."""
    rng = np.random.default_rng(seed)
    shapes = {
        "block.conv.weight": (CHANNELS, 3, 3, 3),
        "block.conv.bias": (CHANNELS,),
        "block.norm.weight": (CHANNELS,),
        "block.norm.bias": (CHANNELS,),
        "block.norm.running_mean": (CHANNELS,),
        "fc.weight": (FEATURES, CHANNELS * SIDE**2),
        "fc.bias": (FEATURES,),
        "head.weight": (4, FEATURES),
        "head.bias": (4,),
    }
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["block.norm.running_var"] = rng.uniform(0.5, 2, CHANNELS).astype(np.float32)
    return arrays | {"block.norm.num_batches_tracked": np.asarray(20, np.int64)}


def logits_of(weights, images):
    """What PyTorch computes, written out: images channels first, flattened as they lie."""
    x = jax.lax.conv_general_dilated(images.transpose(0, 3, 1, 2), weights["block.conv.weight"], (1, 1), "SAME")

    def each(name):
        return weights[f"block.{name}"][None, :, None, None]

    x = (x + each("conv.bias") - each("norm.running_mean")) / jnp.sqrt(each("norm.running_var") + 1e-5)
    x = jax.nn.relu(x * each("norm.weight") + each("norm.bias")).reshape(len(images), -1)
    x = jax.nn.relu(x @ weights["fc.weight"].T + weights["fc.bias"][None])
    return x @ weights["head.weight"].T + weights["head.bias"][None]


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(CHANNELS, (3, 3), name="conv")(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = LinenBlock(name="block")(x, train).reshape(len(x), -1)
        return nn.Dense(4, name="head")(nn.relu(nn.Dense(FEATURES, name="fc")(x)))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(3, CHANNELS, (3, 3), rngs=rngs), nnx.BatchNorm(CHANNELS, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.block = NnxBlock(rngs)
        self.fc = nnx.Linear(CHANNELS * SIDE**2, FEATURES, rngs=rngs)
        self.head = nnx.Linear(FEATURES, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.fc(self.block(x).reshape(len(x), -1))))


class EquinoxBlock(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self, key, mode):
        self.conv = eqx.nn.Conv2d(3, CHANNELS, 3, padding=1, key=key)
        self.norm = eqx.nn.BatchNorm(CHANNELS, axis_name="batch", mode=mode)

    def __call__(self, x, state):
        x, state = self.norm(self.conv(x), state)
        return jax.nn.relu(x), state


class Equinox(eqx.Module):
    block: EquinoxBlock
    fc: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key, mode):
        keys = jax.random.split(key, 3)
        self.block = EquinoxBlock(keys[0], mode)
        self.fc = eqx.nn.Linear(CHANNELS * SIDE**2, FEATURES, key=keys[1])
        self.head = eqx.nn.Linear(FEATURES, 4, key=keys[2])

    def __call__(self, x, state):
        x, state = self.block(x.transpose(2, 0, 1), state)
        return self.head(jax.nn.relu(self.fc(x.reshape(-1)))), state


KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (4, SIDE, SIDE, 3))


def live_linen():
    return from_linen(Linen(), Linen().init(KEY, IMAGES)), FLATTEN


def live_nnx():
    return from_nnx(Nnx(nnx.Rngs(0))), FLATTEN


def live_equinox(mode):
    module, state = eqx.nn.make_with_state(Equinox)(KEY, mode)
    return from_equinox(module, state), None  # Equinox's images are channels first, as PyTorch's


NETWORKS = {
    "linen": live_linen,
    "nnx": live_nnx,
    "equinox, batch": lambda: live_equinox("batch"),
    "equinox, ema": lambda: live_equinox("ema"),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


def test_weights_of_pytorch_give_its_logits(network):
    trained, flatten = network
    loaded = from_state_dict(state_dict(), trained.params, trained.model_state, flatten=flatten)
    logits, _ = trained.model.apply(*loaded, IMAGES, train=False)
    np.testing.assert_allclose(logits, logits_of(state_dict(), IMAGES), rtol=2e-4, atol=2e-4)


def test_the_way_back_has_every_name_and_value(network):
    trained, flatten = network
    loaded = from_state_dict(state_dict(), trained.params, trained.model_state, flatten=flatten)
    found = to_state_dict(*loaded, flatten=flatten)
    expected = state_dict()
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.shape == expected[name].shape, name
        if "num_batches" not in name:
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, err_msg=name)
    assert found["block.norm.num_batches_tracked"].dtype == np.int64


def test_what_was_trained_here_computes_the_same_under_pytorchs_names(network):
    trained, flatten = network
    _, moved = trained.model.apply(trained.params, trained.model_state, IMAGES, train=True)
    logits, _ = trained.model.apply(trained.params, moved, IMAGES, train=False)
    exported = to_state_dict(trained.params, moved, flatten=flatten)
    np.testing.assert_allclose(logits_of(exported, IMAGES), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_statistics_of_equinox_are_those_of_the_batch_after_its_first_step(mode):
    """Equinox keeps sums; PyTorch and the model state have what Equinox evaluates with.

    In the mode "batch" its sum of variances begins at 1 and is divided as if it had begun at 0, which adds 99 here.
    """
    trained, _ = live_equinox(mode)
    _, moved = trained.model.apply(trained.params, trained.model_state, IMAGES, train=True)
    conv = trained.params["block"]["conv"]
    outputs = jax.lax.conv_general_dilated(IMAGES.transpose(0, 3, 1, 2), conv["weight"], (1, 1), "SAME")
    outputs = outputs + conv["bias"][None]
    found = moved["batch_stats"]["block"]["norm"]
    np.testing.assert_allclose(found["mean"], outputs.mean(axis=(0, 2, 3)), rtol=1e-3, atol=1e-5)
    extra = 99 if mode == "batch" else 0
    np.testing.assert_allclose(found["var"], outputs.var(axis=(0, 2, 3)) + extra, rtol=1e-3, atol=1e-5)
    _, again = trained.model.apply(trained.params, moved, IMAGES, train=True)
    np.testing.assert_allclose(again["batch_stats"]["block"]["norm"]["mean"], found["mean"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", [live_linen, live_nnx])
def test_a_layer_that_may_read_a_flattened_image_is_refused_until_told(make):
    trained, _ = make()
    words = r"fc has 180 inputs, 36 for each of 5 channels, .* give flatten={'fc': \(5, 6, 6\)}"
    with pytest.raises(WeightsError, match=words):
        from_state_dict(state_dict(), trained.params, trained.model_state)
    with pytest.raises(WeightsError, match=words):
        to_state_dict(trained.params, trained.model_state)
    as_they_lie = to_state_dict(trained.params, trained.model_state, flatten={})
    np.testing.assert_array_equal(as_they_lie["fc.weight"], np.asarray(trained.params["fc"]["kernel"]).T)


@pytest.mark.parametrize(
    ("flatten", "words"),
    [
        ({"conv": (5, 6, 6)}, "flatten names 'conv', which is no dense layer of this model; it has fc, head"),
        ({"fc": (5, 6, 5)}, "an image of 5x6x5, but it has 180 inputs; give channels, height and width"),
        ({"fc": (180,)}, "an image of 180, but it has 180 inputs"),
    ],
)
def test_an_image_that_cannot_be_is_refused(flatten, words):
    trained, _ = live_linen()
    with pytest.raises(WeightsError, match=words):
        to_state_dict(trained.params, trained.model_state, flatten=flatten)


def test_arrays_in_boxes_of_flax_have_the_names_of_plain_ones():
    layer = nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "m")))
    boxed = {"fc": layer.init(jax.random.key(0), jnp.ones((1, 4)))["params"]}
    written = to_state_dict(boxed, {}, flatten={})
    assert sorted(written) == ["fc.bias", "fc.weight"]
    assert written["fc.weight"].shape == (3, 4)


def test_layers_whose_axes_no_name_tells_are_refused():
    attention = nn.MultiHeadDotProductAttention(2, qkv_features=8).init(KEY, jnp.zeros((1, 3, 8)))["params"]
    with pytest.raises(WeightsError, match="is an attention projection of three axes"):
        to_state_dict(attention, {})

    class Up(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.ConvTranspose(4, (3, 3))(x)

    with pytest.raises(WeightsError, match=r"ConvTranspose_0\.weight is a transposed convolution"):
        to_state_dict(Up().init(KEY, jnp.zeros((1, 4, 4, 4)))["params"], {})
