"""Grad-CAM: closed forms, what must not change a map, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scissorhands_jax import models
from scissorhands_jax.base import Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import gradcam
from scissorhands_jax.models import from_linen
from tests import tiny

CLASSES = 3


class Pooled(nn.Module):
    """Convolution, mean over the image, linear layer: the network whose Grad-CAM is known."""

    stride: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(4, (3, 3), strides=self.stride, dtype=self.dtype, name="conv")(images)
        return nn.Dense(CLASSES, name="fc")(x.mean((1, 2)).astype(jnp.float32))


def drawn(model):
    """Params and state of the right shapes; nothing is compiled for them."""
    rng = np.random.default_rng(1)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), params)
    return params, jax.tree.map(lambda leaf: rng.uniform(1, 2, leaf.shape).astype(leaf.dtype), state)


@functools.cache
def pooled(size=6, **options):
    """The network with its initial params and state; one value each, so that its code is compiled once."""
    module = Pooled(**options)
    model = from_linen(module, jax.ShapeDtypeStruct((1, size, size, 2), jnp.float32))
    return module, model, *drawn(model)


def pictures(count=5, size=6):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, size, size, 2)).astype(np.float32), np.arange(count) % CLASSES


def known_maps(module, params, images, labels):
    """The sum of the activations, weighted by the head's column of the class: what class activation maps are."""
    _, state = module.apply({"params": params}, images, capture_intermediates=True)
    activations = np.asarray(state["intermediates"]["conv"]["__call__"][0], np.float64)
    columns = np.asarray(params["fc"]["kernel"], np.float64)[:, labels].T
    return np.maximum(0, np.einsum("nhwk,nk->nhw", activations, columns))


def scaled(maps):
    top = maps.max((1, 2), keepdims=True)
    return np.divide(maps, top, out=np.zeros_like(maps), where=top > 0)


def test_map_of_a_pooled_network_is_the_weighted_sum_of_its_activations():
    module, model, params, state = pooled()
    images, labels = pictures()
    maps = gradcam.heatmaps(model, params, state, images, labels, layer="conv")
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, scaled(known_maps(module, params, images, labels)), atol=1e-5)
    assert (maps.max((1, 2)) == 1).all()
    assert maps.min() == 0
    other = gradcam.heatmaps(model, params, state, images, (labels + 1) % CLASSES, layer="conv")
    assert np.abs(other - maps).max() > 0.5


class Mixing(nn.Module):
    """A 1x1 convolution, no bias."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (1, 1), use_bias=False, name="conv")(x)


class Placed(nn.Module):
    """Linear, with a weight for every place; two of its layers have the same name at different paths."""

    @nn.compact
    def __call__(self, images):
        x = Mixing(name="block")(nn.Conv(4, (3, 3), name="conv")(images))
        return nn.Dense(CLASSES, name="fc")(x.reshape(len(x), -1))


def test_channels_are_weighted_by_the_mean_derivative_over_all_places():
    module = Placed()
    model = from_linen(module, jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32))
    params, state = drawn(model)
    images, labels = pictures()
    _, captured = module.apply({"params": params}, images, capture_intermediates=True)
    activations = np.asarray(captured["intermediates"]["conv"]["__call__"][0], np.float64)
    by_place = params["fc"]["kernel"].reshape(6, 6, 3, CLASSES)
    weights = params["block"]["conv"]["kernel"][0, 0] @ by_place.mean((0, 1))
    expected = scaled(np.maximum(0, np.einsum("nhwk,nk->nhw", activations, weights[:, labels].T)))
    np.testing.assert_allclose(
        gradcam.heatmaps(model, params, state, images, labels, layer="conv"), expected, atol=1e-5
    )


def test_small_maps_are_enlarged_bilinearly():
    module, model, params, state = pooled(size=8, stride=4)
    images, labels = pictures(size=8)
    known = known_maps(module, params, images, labels)
    assert known.shape == (5, 2, 2)
    # Pixel centres of 8 in units of 2, held at the border: the weight of the second row or column.
    second = np.clip((np.arange(8) + 0.5) / 4 - 0.5, 0, 1)
    blend = np.stack([1 - second, second])
    expected = scaled(np.einsum("nij,ih,jw->nhw", known, blend, blend))
    np.testing.assert_allclose(
        gradcam.heatmaps(model, params, state, images, labels, layer="conv"), expected, atol=1e-5
    )


@pytest.mark.parametrize("change", ["scale", "shift", "order", "alone"])
def test_maps_do_not_depend_on_what_they_must_not(change):
    params, state = tiny.start()
    images, labels = (tiny.examples(4)[name] for name in ("image", "label"))
    maps = gradcam.heatmaps(tiny.model(), params, state, images, labels, layer="bn")
    assert maps.any()
    kernel, bias = params["fc"]["kernel"], params["fc"]["bias"]
    if change == "scale":
        params = {**params, "fc": {"kernel": 3 * kernel, "bias": 3 * bias}}
    if change == "shift":
        params = {**params, "fc": {"kernel": kernel, "bias": bias + 7}}
    if change == "order":
        images, labels, maps = images[::-1], labels[::-1], maps[::-1]
    if change == "alone":
        images, labels = np.concatenate([images[:1], images[:3] * 5]), labels[[0, 0, 1, 2]]
    again = gradcam.heatmaps(tiny.model(), params, state, images, labels, layer="bn")
    count = 1 if change == "alone" else 4
    np.testing.assert_allclose(again[:count], maps[:count], atol=1e-5)


def test_negated_head_swaps_what_speaks_for_and_against():
    _, model, params, state = pooled()
    images, labels = pictures()
    negated = {**params, "fc": jax.tree.map(jnp.negative, params["fc"])}
    maps = gradcam.heatmaps(model, params, state, images, labels, layer="conv")
    against = gradcam.heatmaps(model, negated, state, images, labels, layer="conv")
    assert not (np.logical_and(maps > 0, against > 0)).any()


def test_nothing_that_speaks_for_a_class_is_a_map_of_zeros():
    _, model, params, state = pooled()
    images, labels = pictures()
    silent = {**params, "fc": jax.tree.map(jnp.zeros_like, params["fc"])}
    assert not gradcam.heatmaps(model, silent, state, images, labels, layer="conv").any()


def test_narrow_dtypes_give_float32_maps():
    _, model, params, state = pooled(dtype="bfloat16")
    images, labels = pictures()
    narrow = gradcam.heatmaps(model, params, state, images, labels, layer="conv")
    assert narrow.dtype == np.float32
    _, model, *_ = pooled()
    np.testing.assert_allclose(narrow, gradcam.heatmaps(model, params, state, images, labels, layer="conv"), atol=0.05)


def test_a_nested_layer_goes_by_its_path():
    options = {"stage_sizes": (1,), "widths": (2,)}
    model = models.build("resnet20", num_classes=CLASSES, image_shape=(8, 8, 3), **options)
    params, state = drawn(model)
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    stage, block = (gradcam.heatmaps(model, params, state, images, [0, 1], layer=p) for p in ("layer1", "layer1/0"))
    np.testing.assert_array_equal(stage, block)  # the stage returns what its last block returns
    assert stage.shape == (2, 8, 8)
    with pytest.raises(InputError, match=r"choose one of conv1, bn1, layer1/0/conv1, .*, layer1/0, layer1$"):
        gradcam.heatmaps(model, params, state, images, [0, 1], layer="layer1/1")


def test_the_network_is_left_as_it_was():
    params, state = tiny.start()
    example = tiny.examples(2)
    before, _ = tiny.model().apply(params, state, example["image"], train=False)
    gradcam.heatmaps(tiny.model(), params, state, example["image"], example["label"], layer="conv")
    after, _ = tiny.model().apply(params, state, example["image"], train=False)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "convolution"}, r"no linen layer 'convolution'; choose one of conv, bn$"),
        ({"layer": "fc"}, r"the layer 'fc' gives \(4, 3\), not \(N, h, w, K\); choose one of conv, bn$"),
        ({"labels": np.array([0, 1, 2, 3])}, r"integers in 0\.\.2, got int64 in 0\.\.3"),
        ({"labels": np.array([0, 1, 2, -1])}, r"integers in 0\.\.2"),
        ({"labels": np.zeros(4)}, r"integers in 0\.\.2, got float64"),
        ({"labels": np.zeros(3, int)}, r"shape \(4, 4, 4, 2\) and labels \(3,\)"),
        ({"images": np.zeros((0, 4, 4, 2)), "labels": np.zeros(0, int)}, "N > 0"),
    ],
)
def test_what_cannot_be_explained_is_refused(changes, message):
    params, state = tiny.start()
    arguments = {"images": tiny.examples(4)["image"], "labels": np.array([0, 1, 2, 0]), "layer": "conv"}
    with pytest.raises(InputError, match=message):
        gradcam.heatmaps(tiny.model(), params, state, **(arguments | changes))


def test_networks_without_a_usable_layer_are_refused():
    images, labels = np.zeros((2, 4, 4, 1), np.float32), [0, 1]
    mlp = models.build("mlp", num_classes=2, image_shape=(4, 4, 1), hidden=(3,))
    with pytest.raises(InputError, match=r"'layer1' gives \(2, 3\), not .*; it has no layer that Grad-CAM could read"):
        gradcam.heatmaps(mlp, *drawn(mlp), images, labels, layer="layer1")
    bare = Model(lambda key: ({}, {}), lambda params, state, x, *, train, key=None: (x.sum((1, 2)), state))
    with pytest.raises(InputError, match=r"no linen layer 'conv'; it has no layer"):
        gradcam.heatmaps(bare, {}, {}, images, labels, layer="conv")


def test_a_layer_that_is_called_twice_is_refused():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, images):
            conv = nn.Conv(images.shape[-1], (3, 3), name="conv")
            return conv(conv(images)).mean((1, 2))

    model = from_linen(Twice(), jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.float32))
    images, labels = np.zeros((2, 4, 4, 2), np.float32), [0, 1]
    with pytest.raises(InputError, match=r"calls the layer 'conv' 2 times"):
        gradcam.heatmaps(model, *drawn(model), images, labels, layer="conv")


def test_a_diverged_network_is_refused():
    _, model, params, state = pooled()
    images, labels = pictures()
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(InputError, match="has diverged"):
        gradcam.heatmaps(model, broken, state, images, labels, layer="conv")


def test_every_network_of_the_registry_has_its_layer_or_says_why_not():
    assert set(models.CAM_LAYERS) == set(models.MODELS)
    assert {name for name, layer in models.CAM_LAYERS.items() if layer is None} == {"mlp"}
    with pytest.raises(InputError, match="mlp has no convolution"):
        gradcam.default_layer("mlp")
    with pytest.raises(InputError, match="no network 'resnet'; near matches: resnet9"):
        gradcam.default_layer("resnet")


@pytest.mark.parametrize(("name", "places"), [("resnet20", 8), ("resnet18", 4), ("vgg16_bn", 2)])
def test_default_layers_are_the_last_stage(name, places):
    options = {"resnet18": {"stage_sizes": (1,) * 4}}.get(name, {})
    model = models.build(name, num_classes=2, image_shape=(32, 32, 3), **options)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    _, output = gradcam._shapes(model, params, state, images, gradcam.default_layer(name))
    assert output.shape[1:3] == (places, places)
