"""Boundary shrinking: labels behind the boundary, found by one step up the loss."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax.base import Batch, Data, Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import cross_entropy
from scissorhands_jax.methods import boundary_shrink
from scissorhands_jax.methods.boundary_shrink import adversarial_images, boundary_labels
from scissorhands_jax.optimizers import sgd
from tests.comparison import same_bits
from tests.methods.example import DATA, LOSS, MODEL, original

KEY = jax.random.key(3)


PLAIN_SGD = sgd(1.0, momentum=0.0, weight_decay=0.0)


LEVELS = np.arange(256, dtype=np.uint8)


def linear_apply(params, model_state, x, *, train, key=None):
    """Logits of floats, shape (N, 2): two linear scores."""
    assert jnp.issubdtype(x.dtype, jnp.floating)
    return x @ params, model_state


LINEAR = Model(lambda key: (jnp.eye(2), ()), linear_apply)


attack = jax.jit(adversarial_images, static_argnums=0, static_argnames=("step_size", "clip", "rounded"))


class TestAdversarialImages:
    @pytest.mark.parametrize(
        ("clip", "expected"),
        [(None, [[0.25, 0.65], [0.75, 0.15]]), ((0.3, 0.7), [[0.3, 0.65], [0.7, 0.3]])],
    )
    def test_they_go_up_the_cross_entropy_by_one_step_in_every_pixel(self, clip, expected):
        """Less of the true class's score and more of the other's; nowhere where the gradient is zero."""
        params = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        x, labels = jnp.array([[0.5, 0.4], [0.5, 0.4]]), jnp.array([0, 1])
        moved, value = attack(LINEAR, params, (), x, labels, step_size=0.25, clip=clip)
        np.testing.assert_allclose(moved, expected, rtol=1e-6)
        np.testing.assert_allclose(value, cross_entropy(x @ params, labels), rtol=1e-6)
        np.testing.assert_array_equal(attack(LINEAR, 0 * params, (), x, labels, step_size=0.25, clip=clip)[0], x)

    def test_integer_images_are_those_in_0_to_1(self):
        pixels = np.array([[0, 255], [7, 200]], np.uint8)
        moved = [
            attack(LINEAR, jnp.eye(2), (), x, jnp.array([0, 1]), step_size=0.1, clip=(0.0, 1.0))[0]
            for x in (pixels, pixels / np.float32(255))
        ]
        np.testing.assert_allclose(*moved, rtol=1e-6)

    @pytest.mark.parametrize("sign", [-1.0, 0.0, 1.0])
    def test_rounding_decides_ties_as_float32_operations_do_one_by_one(self, sign):
        """0.1 is 25.5 levels, so every pixel is a tie; what is compiled must not fuse or reorder anything."""
        x = LEVELS.astype(np.float32)[None] / np.float32(255)
        moved = np.clip(x + np.float32(0.1) * np.float32(sign), np.float32(0), np.float32(1))
        expected = np.round(moved * np.float32(255)) / np.float32(255)
        params = jnp.stack([jnp.zeros(256), jnp.full(256, 1e-3 * sign)], axis=1)

        got, _ = attack(LINEAR, params, (), x, jnp.array([0]), step_size=0.1, clip=(0.0, 1.0), rounded=True)
        np.testing.assert_array_equal(np.round(np.asarray(got) * 255), np.round(expected * 255))
        np.testing.assert_allclose(got, expected, rtol=2e-7)
        wide = np.round(np.clip(LEVELS / 255 + 0.1 * sign, 0, 1) * 255)
        assert sign == 0 or np.mean(wide != np.round(expected[0] * 255)) > 0.1


class TestBoundaryLabels:
    def test_they_are_the_most_likely_wrong_classes(self):
        logits = jnp.array([[3.0, 2.0, 1.0], [0.0, -5.0, -9.0], [1.0, 2.0, 3.0]])
        model = Model(lambda key: ((), ()), lambda params, state, x, *, train, key=None: (x, state))
        labels = jnp.array([0, 2, 0], jnp.int32)
        wrong = boundary_labels(model, (), (), logits, labels)
        assert (wrong.tolist(), wrong.dtype) == ([1, 0, 2], jnp.int32)
        assert boundary_labels(model, (), (), logits, labels, any_label=True).tolist() == [0, 0, 2]

    def test_a_class_need_not_fit_into_the_type_of_the_labels(self):
        model = Model(lambda key: ((), ()), lambda params, state, x, *, train, key=None: (x, state))
        labels = jnp.array([0, 1], jnp.uint8)
        assert boundary_labels(model, (), (), 5 * jnp.eye(300)[jnp.array([256, 257])], labels).tolist() == [256, 257]


def shrink(**options):
    return boundary_shrink(MODEL, LOSS, PLAIN_SGD, **({"clip": None, "batch_size": 6} | options))


class TestBoundaryShrink:
    def test_a_step_descends_the_loss_of_clean_images_under_the_labels_of_the_frozen_network(self):
        (params, model_state), forget = original(), DATA.forget
        model_state = {**model_state, "mean": jnp.array([1.0, -2.0, 0.0, 3.0])}  # of evaluation mode
        method = shrink(step_size=0.5)
        carry = method.init(KEY, params, model_state, DATA)
        carry = carry._replace(params=jax.tree.map(lambda w: 0.9 * w, params))  # the frozen one is the original
        after, metrics = jax.jit(method.step)(carry, Batch(forget=forget))

        def frozen(x):
            return MODEL.apply(params, model_state, x, train=False)[0]

        @jax.jit
        def reference(moved):
            gradient = jax.grad(lambda x: cross_entropy(frozen(x), forget["label"]))(forget["image"])
            logits = frozen(forget["image"] + 0.5 * jnp.sign(gradient))
            labels = jnp.argmax(logits - 1e9 * jax.nn.one_hot(forget["label"], 3), axis=1)
            key = jax.random.fold_in(carry.key, 0)
            value, slope = jax.value_and_grad(
                lambda p: LOSS(p, model_state, {**forget, "label": labels}, train=True, key=key)[0]
            )(moved)
            return labels, value, slope, cross_entropy(frozen(forget["image"]), forget["label"])

        labels, value, slope, original_loss = reference(carry.params)
        assert not np.any(labels == forget["label"])
        np.testing.assert_allclose(metrics["loss_relabelled"], value, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss_original"], original_loss, rtol=1e-5)
        expected = jax.tree.map(jnp.subtract, carry.params, slope)
        chex.assert_trees_all_close(after.params, expected, rtol=1e-4, atol=1e-5)
        # The network saw one batch in train mode, the frozen one none.
        assert int(after.model_state["count"]) == 1
        assert same_bits(after.aux, (params, model_state))

    def test_what_is_frozen_is_a_copy(self):
        carry = shrink().init(KEY, *original(), DATA)
        own = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((carry.params, carry.model_state))}
        assert not own & {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(carry.aux)}

    def test_images_outside_of_the_range_are_refused_unless_they_are_not_clipped(self):
        with pytest.raises(
            InputError, match=r"the forget images reach from -\d\S+ to \d\S+, outside clip = \(0.0, 1.0"
        ):
            shrink(clip=(0.0, 1.0)).init(KEY, *original(), DATA)
        for clip, mode in ((None, "paper"), ((-9.0, 9.0), "paper"), ((0.0, 1.0), "authors")):
            shrink(clip=clip, mode=mode).init(KEY, *original(), DATA)
        pixels = Data(*({**part, "image": np.full(part["image"].shape, 255, np.uint8)} for part in DATA))
        shrink(clip=(0.0, 1.0)).init(KEY, *original(), pixels)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"mode": "thesis"}, "mode is 'thesis'; choose one of paper, authors"),
            ({"step_size": -0.1}, "step_size must not be negative, got -0.1"),
            ({"clip": (1.0, 0.0)}, r"clip must be a range such as \(0.0, 1.0\), got \(1.0, 0.0\)"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, settings, message):
        with pytest.raises(InputError, match=message):
            shrink(**settings)
