"""Boundary expanding: a shadow class in networks of any framework."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import trees
from scissorhands_jax.base import Batch, Data, Model, PyTree
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import classification_loss, cross_entropy
from scissorhands_jax.methods import METHODS, boundary_expand
from scissorhands_jax.methods.boundary_expand import Expanded, draw_shadow, find_head, widen, widened
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training.checkpoints import Checkpointer
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.comparison import same_bits
from tests.methods.example import DATA, MODEL, original
from tests.models.samples import ADAPTED, images

KEY = jax.random.key(3)


PLAIN_SGD = sgd(1.0, momentum=0.0, weight_decay=0.0)


# What find_head must find: names, and the axis of the classes.
HEADS = {
    "linen": {"fc/kernel": 1, "fc/bias": 0},
    "nnx": {"layers/1/kernel": 1, "layers/1/bias": 0},
    "stateful equinox": {"head/weight": 0, "head/bias": 0},
    "function": {"0": 1, "1": 0},
}


class Adapted(NamedTuple):
    """A network of three classes, a batch for it, and what `find_head` says of it."""

    model: Model
    params: PyTree
    model_state: PyTree
    images: jax.Array
    first_class: PyTree


@functools.cache
def adapted(name):
    model = tiny.model() if name == "linen" else ADAPTED[name]()
    start = tiny.start() if name == "linen" else model.init(KEY)
    x = jnp.asarray(tiny.examples(4)["image"]) if name == "linen" else images()
    return Adapted(model, *start, x, find_head(model, *start, x, num_classes=3))


def named(tree):
    return dict(zip(trees.leaf_names(tree), jax.tree.leaves(tree), strict=True))


class TestHead:
    @pytest.mark.parametrize("name", HEADS)
    def test_it_is_found_in_any_framework_and_by_name(self, name):
        network, axes = adapted(name), HEADS[name]
        slices = {
            leaf: np.take(value, [0], axis=axes[leaf]) for leaf, value in named(network.params).items() if leaf in axes
        }
        chex.assert_trees_all_equal(named(network.first_class), slices)
        found = find_head(*network[:4], num_classes=3, head="|".join(axes))
        chex.assert_trees_all_equal(found, network.first_class)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            (
                "linen",
                {"num_classes": 4},
                "found no last linear layer of 4 classes in the network; name it, with its bias",
            ),
            ("linen", {"head": "conv"}, "head = 'conv' does not select the last linear layer of 3 classes"),
            ("linen", {"head": "fc|conv"}, r"head = 'fc\|conv' does not select"),
            ("nnx", {"head": "layers"}, "head = 'layers' does not select .*, whole"),
            ("linen", {"head": "head"}, "layer pattern 'head' matches none of"),
        ],
    )
    def test_what_is_no_head_is_refused(self, name, options, message):
        with pytest.raises(InputError, match=message):
            find_head(*adapted(name)[:4], **({"num_classes": 3} | options))

    @pytest.mark.parametrize("wrong", ["normalised", "bias elsewhere"])
    def test_logits_that_are_not_linear_in_the_layer_are_refused(self, wrong):
        def apply(params, model_state, x, *, train, key=None):
            kernel = params["fc"]["kernel"]
            if wrong == "normalised":
                return x @ (kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True)), model_state
            return x @ kernel + params["offset"]["bias"][None], model_state

        params = {"fc": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "offset": {"bias": jnp.ones(3)}}
        with pytest.raises(InputError, match="found no last linear layer of 3 classes"):
            find_head(Model(None, apply), params, (), jnp.eye(2), num_classes=3)
        if wrong == "bias elsewhere":
            found = find_head(Model(None, apply), params, (), jnp.eye(2), num_classes=3, head="fc|offset")
            assert named(found).keys() == {"fc/kernel", "offset/bias"}

    def test_a_pattern_that_selects_more_than_the_head_is_refused(self):
        """Also where nothing else that it selects has an axis of as many classes."""
        model = Model(None, lambda params, state, x, *, train, key=None: (x @ params["hidden"] @ params["fc"], state))
        network = model, {"hidden": jnp.eye(2), "fc": jnp.arange(6.0).reshape(2, 3)}, (), jnp.eye(2)
        assert find_head(*network, num_classes=3, head="fc")["fc"].shape == (2, 1)
        with pytest.raises(InputError, match=r"head = 'hidden\|fc' does not select the last linear layer .*, whole"):
            find_head(*network, num_classes=3, head="hidden|fc")

    def test_square_and_zero_heads_are_found(self):
        model = Model(None, lambda params, state, x, *, train, key=None: (x @ params["w"].T, state))
        params = {"w": jnp.arange(9.0).reshape(3, 3) ** 2}
        found = find_head(model, params, (), jnp.eye(3), num_classes=3)
        np.testing.assert_array_equal(found["w"], params["w"][:1])
        assert find_head(model, {"w": jnp.zeros((3, 3))}, (), jnp.eye(3), num_classes=3)["w"].shape == (1, 3)


def in_place_of_first(expanded):
    """The parameters with the shadow in the place of the first class."""
    return jax.tree.map(
        lambda shadow, leaf: leaf if shadow is None else jax.lax.dynamic_update_slice(leaf, shadow, (0,) * leaf.ndim),
        expanded.shadow,
        expanded.params,
        is_leaf=lambda node: node is None,
    )


class TestWidened:
    @pytest.mark.parametrize("name", ["linen", "nnx", "stateful equinox"])
    def test_it_has_one_logit_more_in_train_mode_and_all_gradients_are_those_of_two_passes(self, name):
        """Put in the place of the first class, the shadow gives its logit in a second pass with the same numbers."""
        model, params, model_state, x, first_class = adapted(name)
        labels = jnp.array([3, 0, 3, 1])
        place = 2 if name == "stateful equinox" else 0  # which turns its logits around

        def by_hand(expanded):
            logits, moved = model.apply(expanded.params, model_state, x, train=True, key=KEY)
            again, _ = model.apply(in_place_of_first(expanded), model_state, x, train=True, key=KEY)
            logits = jnp.concatenate([logits, again[:, place : place + 1]], axis=1)
            return cross_entropy(logits, labels), (logits, moved)

        def ours(expanded):
            logits, moved = widened(model).apply(expanded, model_state, x, train=True, key=KEY)
            return cross_entropy(logits, labels), (logits, moved)

        @jax.jit
        def both(expanded):
            return [jax.value_and_grad(f, has_aux=True)(expanded) for f in (ours, by_hand)]

        (got, gradient), (expected, slope) = both(Expanded(params, draw_shadow(KEY, first_class)))
        assert got[1][0].shape == (4, 4)
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(gradient, slope, rtol=1e-4, atol=1e-5)
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient.shadow))

    def test_it_costs_one_pass(self):
        model, params, model_state, x, first_class = adapted("linen")
        labels = jnp.zeros(4, jnp.int32)

        def flops(model, params):
            def loss(p):
                return cross_entropy(model.apply(p, model_state, x, train=True)[0], labels)

            return jax.jit(jax.grad(loss)).lower(params).cost_analysis()["flops"]

        plain, wide = flops(model, params), flops(widened(model), Expanded(params, first_class))
        assert plain < wide < 1.3 * plain

    def test_the_widened_weights_are_those_of_a_network_of_one_class_more(self):
        features = jnp.asarray(np.random.default_rng(0).normal(size=(4, 192)), jnp.float32)
        model, params, model_state, _, first_class = adapted("function")
        expanded = Expanded(params, draw_shadow(KEY, first_class))
        kernel, bias = widen(expanded)
        assert (kernel.shape, bias.shape) == ((192, 4), (4,))
        logits, _ = widened(model).apply(expanded, model_state, features, train=False)
        np.testing.assert_allclose(features @ kernel + bias[None], logits, rtol=1e-4, atol=1e-5)
        _, params, _, _, first_class = adapted("stateful equinox")
        wide = widen(Expanded(params, first_class))
        assert wide["head"]["weight"].shape == (4, 8)
        np.testing.assert_array_equal(wide["head"]["weight"][3], params["head"]["weight"][0])
        assert wide["linear"] is params["linear"] or same_bits(wide["linear"], params["linear"])

    def test_the_shadow_is_drawn_as_a_linear_layer_is(self):
        first_class = {"fc": {"kernel": np.zeros((400, 1), np.float32), "bias": np.zeros(1, np.float32)}, "conv": None}
        kernel = draw_shadow(KEY, first_class)["fc"]["kernel"]
        assert 0.045 < np.max(kernel) <= 0.05
        assert -0.05 <= np.min(kernel) < -0.045
        biases = [float(draw_shadow(jax.random.key(seed), first_class)["fc"]["bias"][0]) for seed in range(8)]
        assert max(map(abs, biases)) <= 0.05
        assert len(set(biases)) == 8


def expand(optimizer=PLAIN_SGD, **options):
    return boundary_expand(MODEL, optimizer, **({"num_classes": 3, "batch_size": 6} | options))


class TestBoundaryExpand:
    def test_forget_examples_go_to_the_shadow_class_which_is_removed(self, tmp_path):
        start, losses = original(), []
        method = expand(sgd(0.1, momentum=0.9, weight_decay=0.0), batch_size=4)
        result = run(method, KEY, *start, DATA, num_epochs=8, on_step=lambda p: losses.append(p.metrics["loss_shadow"]))
        assert losses[-1] < 0.2 * losses[0]
        chex.assert_trees_all_equal_shapes_and_dtypes((result.params, result.model_state), start)
        assert not same_bits(result.params[0], start[0][0])
        # What the labels were is not read.
        mislabelled = DATA._replace(forget={**DATA.forget, "label": jnp.zeros(6, jnp.int32)})
        assert same_bits(run(method, KEY, *start, mislabelled, num_epochs=8).params, result.params)

        # A run that is stopped goes on, with the shadow in its checkpoints.
        def stop_in_epoch_5(progress):
            if progress.epoch == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(method, KEY, *start, DATA, num_epochs=8, checkpoint=Checkpointer(tmp_path), on_step=stop_in_epoch_5)
        resumed = run(method, KEY, *start, DATA, num_epochs=8, checkpoint=Checkpointer(tmp_path))
        assert same_bits(resumed.params, result.params)

    def test_authors_mode_keeps_all_outputs_and_the_key_draws_the_shadow(self):
        start = original()
        carries = [expand(mode="authors").init(key, *start, DATA) for key in (KEY, KEY, jax.random.key(8))]
        (first, (head,)), model_state = expand(mode="authors").finish(carries[0])
        chex.assert_trees_all_equal((first, model_state), (start[0][0], start[1]))
        np.testing.assert_array_equal(head[:, :3], start[0][1][0])
        np.testing.assert_array_equal(head[:, 3:], carries[0].params.shadow[1][0])
        assert same_bits(carries[0], carries[1])
        assert not same_bits(carries[0].params.shadow, carries[2].params.shadow)
        assert same_bits(expand().finish(carries[0]), start)

    def test_augmentation_is_that_of_the_loss(self):
        """It blanks images here, which leaves the biases."""
        model, params, model_state, x, _ = adapted("function")
        loss = classification_loss(model, augment=lambda key, images: jnp.zeros_like(images))
        method = METHODS["boundary_expand"]().build(model, loss, 3)
        part = {"image": x, "label": jnp.zeros(4, jnp.int32)}
        carry = method.init(KEY, params, model_state, Data(part, part))
        _, metrics = jax.jit(method.step)(carry, Batch(forget=part))
        biases = jnp.concatenate([params[1], carry.params.shadow[1]])
        np.testing.assert_allclose(metrics["loss_shadow"], cross_entropy(biases[None], jnp.array([3])), rtol=1e-6)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"mode": "thesis"}, "mode is 'thesis'; choose one of paper, authors"),
            ({"num_classes": 1}, "boundary expanding needs at least 2 classes, got 1"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, settings, message):
        with pytest.raises(InputError, match=message):
            expand(**settings)
