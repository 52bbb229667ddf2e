"""The registry of networks: sizes, and structure against the recorded one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import trees
from scissorhands_jax.errors import InputError
from scissorhands_jax.models import MODELS, build, default_options
from tests.models.samples import KEY, outline

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

OTHER_KINDS = {
    bool: ["maybe", 1, None],
    float: ["a", None, True, float("nan")],
    str: [3, None],
    tuple: ["64,256", 3, None, ["a"], [None], [[None]]],
}


def test_an_mlp_normalises_images_where_it_is_told_how():
    options = {"num_classes": 3, "image_shape": (2, 2, 2), "hidden": (4,)}
    plain = build("mlp", **options)
    told = build("mlp", **options, normalize="fixed", mean=(0.3, 0.5), std=(0.2, 0.4))
    network, images = plain.init(KEY), jax.random.uniform(KEY, (5, 2, 2, 2))
    by_hand = (np.asarray(images) - np.array([0.3, 0.5], np.float32)) / np.array([0.2, 0.4], np.float32)
    assert jnp.allclose(told.apply(*network, images, train=False)[0], plain.apply(*network, by_hand, train=False)[0])
    with pytest.raises(InputError, match="normalize is 'off'; add normalize=fixed"):
        build("mlp", **options, mean=(0.3, 0.5), std=(0.2, 0.4)).init(KEY)


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

    @pytest.mark.parametrize("name", SIZES)
    def test_an_option_of_another_kind_than_its_default_is_refused_and_the_default_taken(self, name):
        for option, default in default_options(name).items():
            if option == "dtype":
                continue
            build(name, num_classes=3, image_shape=(32, 32, 3), **{option: default})
            for value in ["layer3"] if callable(default) else OTHER_KINDS[type(default)]:
                with pytest.raises(InputError, match=f"^{name} takes {option} like .*, got "):
                    build(name, num_classes=3, image_shape=(32, 32, 3), **{option: value})

    @pytest.mark.parametrize(
        ("name", "option", "value"),
        [
            ("mlp", "hidden", [0]),
            ("mlp", "hidden", [2.5]),
            ("resnet9", "residual", [1, 0, 1]),
            ("vgg16_bn", "widths", [8]),
        ],
    )
    def test_items_of_lists_are_counts_numbers_or_switches_as_in_the_default(self, name, option, value):
        with pytest.raises(InputError, match=f"{name} takes {option} like"):
            build(name, num_classes=3, image_shape=(32, 32, 3), **{option: value})

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
