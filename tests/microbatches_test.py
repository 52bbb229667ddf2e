"""Batches in parts give what the whole batch gives, in less memory, or are refused."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scissorhands_jax import augmentation, losses, saliency, trees
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Batch, lift
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import METHODS, TrainingSettings, scissorhands
from scissorhands_jax.methods.pair_gradients import choose_pair, pair_gradients
from scissorhands_jax.microbatches import accumulated, mapped
from scissorhands_jax.models import from_linen
from scissorhands_jax.models.layers import torch_linear
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.compilations import Compilations

KEY = jax.random.key(5)
STEPPING = [name for name, settings in METHODS.items() if issubclass(settings, TrainingSettings)]


class Convolution(nn.Module):
    """No BatchNorm: every example is treated by itself."""

    width: int = 3

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(self.width, (3, 3), name="conv")(images))
        x = nn.relu(nn.Conv(self.width, (3, 3), name="conv2")(x))
        return torch_linear(tiny.CLASSES, self.width, name="fc", dtype=jnp.float32)(x.mean(axis=(1, 2)))


class Dense(nn.Module):
    width: int = 6

    @nn.compact
    def __call__(self, images):
        x = nn.tanh(nn.Dense(self.width, name="hidden")(images.reshape(len(images), -1)))
        return torch_linear(tiny.CLASSES, self.width, name="fc", dtype=jnp.float32)(x)


@functools.cache
def network(kind, *options):
    model = from_linen(kind(*options), jax.ShapeDtypeStruct((1, *tiny.SHAPE), jnp.float32))
    return model, *model.init(jax.random.key(1))


def temporaries(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("kind", "count", "parts"), [(Convolution, 5, 2), (Dense, 7, 3), (Dense, 2, 5)])
def test_value_and_gradient_are_those_of_the_whole_batch(kind, count, parts):
    model, params, state = network(kind)
    examples = jax.tree.map(jnp.asarray, tiny.examples(count))

    def mean_loss(params, moved, examples, key):
        logits, _ = model.apply(params, state, examples["image"], train=True)
        loss = losses.cross_entropy(logits, examples["label"])
        return loss, (moved + 1, {"twice": 2 * loss})

    whole, split = (
        jax.jit(jax.value_and_grad(accumulated(mean_loss, n), has_aux=True))(params, jnp.int32(0), examples, KEY)
        for n in (1, parts)
    )
    chex.assert_trees_all_close(
        (whole[0][0], whole[0][1][1], whole[1]), (split[0][0], split[0][1][1], split[1]), rtol=2e-5, atol=1e-7
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(whole, split)
    assert int(split[0][1][0]) == min(count, parts)  # The state is handed on from part to part.


def test_shares_scale_with_the_cotangent_and_low_precision_gradients_keep_their_type():
    params, x = {"w": jnp.ones(3, jnp.bfloat16)}, jnp.arange(12.0).reshape(4, 3)
    loss = losses.microbatched(lift(lambda p, batch: jnp.mean(batch @ p["w"].astype(jnp.float32))), 4)
    gradient = jax.grad(lambda p: 3 * loss(p, (), x, train=True, key=None)[0])(params)
    assert gradient["w"].dtype == jnp.bfloat16
    assert gradient["w"].tolist() == [13.5, 16.5, 19.5]


def scaled_errors(params, model_state, batch, *, train, key):
    """A loss of whose every argument something depends on, and a state that depends on the parameters."""
    del train, key
    loss = jnp.mean(jnp.square(batch["x"] @ params * model_state["scale"] - batch["y"]))
    return loss, {"scale": model_state["scale"] * jnp.sum(params), "count": model_state["count"] + 1}


def problem():
    draw = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    batch = {"x": jnp.asarray(draw[:, :3]), "y": jnp.asarray(draw[:, 3]), "number": jnp.arange(7)}
    return jnp.array([0.5, 1.0, -0.7]), {"scale": jnp.float32(2), "count": jnp.int32(0)}, batch


@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # Only the CPU unrolls its parts.
def test_derivatives_with_respect_to_the_batch_and_the_state_are_those_of_the_whole(backend, monkeypatch):
    params, state, batch = problem()
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    def kept(params, model_state, batch, *, train, key):
        return scaled_errors(params, model_state, batch, train=train, key=key)[0], model_state

    def gradients(loss):
        def value(params, scale, x):
            return loss(params, state | {"scale": scale}, batch | {"x": x}, train=False, key=KEY)[0]

        return [jax.grad(value, n)(params, state["scale"], batch["x"]) for n in (0, 1, 2, (0, 1, 2))]

    for parts in (2, 3):
        chex.assert_trees_all_close(gradients(losses.microbatched(kept, parts)), gradients(kept), rtol=1e-5, atol=1e-6)


def test_derivatives_go_through_the_state_that_the_parts_hand_on():
    params, state, batch = problem()

    def one_after_the_other(params, model_state, batch, *, train, key):
        total = 0
        for part in (batch[:4], batch[4:]):
            examples = {"x": part[:, :3], "y": part[:, 3]}
            loss, model_state = scaled_errors(params, model_state, examples, train=train, key=key)
            total += loss / 2
        return total, model_state

    def whole(params, model_state, batch, *, train, key):
        return scaled_errors(params, model_state, {"x": batch[:, :3], "y": batch[:, 3]}, train=train, key=key)

    batch = jnp.concatenate([batch["x"], batch["y"][:, None]], axis=1)
    rows = jnp.concatenate([batch, batch[:1]])[
        jnp.array([0, 4, 1, 5, 2, 6, 3, 7])
    ]  # A part takes every second example.

    def of_two_passes(loss, batch):
        def value(params):
            first, moved = loss(params, state, batch, train=True, key=None)
            second, moved = loss(params, moved, batch, train=True, key=None)
            return first + second + moved["scale"]

        return jax.grad(value)(params)

    expected = of_two_passes(one_after_the_other, jnp.concatenate([batch, batch[:1]]))
    np.testing.assert_allclose(of_two_passes(losses.microbatched(whole, 2), rows), expected, rtol=1e-5)


def test_a_loss_that_closes_over_what_is_differentiated_is_refused():
    params, state, batch = problem()

    def value(factor):
        def scaled(params, model_state, batch, *, train, key):
            loss, moved = scaled_errors(params, model_state, batch, train=train, key=key)
            return factor * loss, moved

        return losses.microbatched(scaled, 2)(params, state, batch, train=False, key=None)[0]

    with pytest.raises(InputError, match="closes over an array that is being differentiated; hand it over in the"):
        jax.grad(value)(2.0)


def test_parts_are_drawn_from_different_keys_and_augmentation_from_one():
    def noisy(params, batch_state, batch, *, train, key):
        return params * jnp.mean(batch + jax.random.normal(key, ())), batch_state

    draws = [jax.random.normal(jax.random.fold_in(KEY, part), ()) for part in range(2)]
    value, _ = losses.microbatched(noisy, 2)(jnp.float32(1), (), jnp.zeros(4), train=True, key=KEY)
    assert float(value) == pytest.approx(float(sum(draws) / 2))

    model, params, state = network(Dense)
    loss = losses.classification_loss(model, augment=functools.partial(augmentation.crop_and_flip, padding=1))
    batch = tiny.examples(4)

    @jax.jit
    def values(params):
        return [losses.microbatched(loss, n)(params, state, batch, train=True, key=KEY)[0] for n in (1, 2, 4)]

    np.testing.assert_allclose(values(params), float(values(params)[0]), rtol=1e-6)


def test_mapped_is_the_function_itself():
    examples = {"x": jnp.arange(7.0), "y": jnp.ones((7, 2))}

    def function(part):
        return part["x"][:, None] * part["y"], part["x"] + 1

    for parts in (1, 3, 9):
        chex.assert_trees_all_equal(mapped(function, examples, parts), function(examples))
    model, params, state = network(Convolution)
    images = jnp.asarray(tiny.examples(5)["image"])
    logits = functools.partial(losses.teacher_logits, model, (params, state))
    chex.assert_trees_all_close(mapped(logits, images, 2), logits(images), rtol=1e-5, atol=1e-6)


def test_batch_norm_sees_each_part_by_itself():
    params, state = tiny.start()
    batch = tiny.examples(8)
    loss = losses.microbatched(tiny.loss(), 2)

    @jax.jit
    def passes(params, state):
        value, moved = loss(params, state, batch, train=True, key=None)
        first, state = tiny.loss()(params, state, data_lib.take(batch, np.arange(0, 8, 2)), train=True, key=None)
        second, state = tiny.loss()(params, state, data_lib.take(batch, np.arange(1, 8, 2)), train=True, key=None)
        return value, moved, first, second, state

    value, moved, first, second, state = passes(params, state)
    chex.assert_trees_all_close(moved, state, rtol=1e-6)
    assert float(value) == pytest.approx(float(first + second) / 2, rel=1e-6)


def test_two_losses_in_as_many_parts_are_equal():
    assert losses.microbatched(tiny.loss(), 2) == losses.microbatched(tiny.loss(), 2)
    assert losses.microbatched(losses.microbatched(tiny.loss(), 2), 1) == tiny.loss()
    assert [losses.microbatches_of(losses.microbatched(loss, 3)) for loss in (tiny.loss(), lift(jnp.dot))] == [3, 3]


# The others differ from these in nothing that touches microbatches.
@pytest.mark.parametrize(
    "name",
    ["scissorhands", "salun", "scrub", "bad_teacher", "boundary_shrink", "boundary_expand", "sfron", "orthograd"],
)
def test_a_step_of_a_method_is_that_of_the_whole_batch(name):
    model, params, state = network(Dense)
    data = jax.tree.map(jnp.asarray, tiny.data(6, 10))
    base = {"batch_size": 4, "learning_rate": 0.1} | ({"clip": False} if name == "boundary_shrink" else {})

    def after_a_step(parts):
        settings = dataclasses.replace(METHODS[name](), **base, microbatches=parts)
        method = settings.build(model, losses.classification_loss(model), tiny.CLASSES)
        carry = method.begin_epoch(method.init(KEY, params, state, data), data)
        batch = data_lib.gather(data, next(iter(method.batches(KEY, data, 0))))
        return carry, *jax.jit(method.step)(carry, batch)

    (before, whole, metrics), (_, split, split_metrics) = after_a_step(1), after_a_step(2)
    chex.assert_trees_all_close(split.params, whole.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(split_metrics, metrics, rtol=1e-4, atol=1e-6)
    assert trees.norm(jax.tree.map(jnp.subtract, whole.params, before.params)) > 1e-4


def test_saliency_in_parts_is_saliency():
    model, params, state = network(Dense)
    loss = losses.classification_loss(model)
    batches = [tiny.examples(7)]
    sums = [saliency.gradient_sum(losses.microbatched(loss, n), params, state, batches) for n in (1, 3)]
    chex.assert_trees_all_close(*sums, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "width"), [(Convolution, 16), (Dense, 512)])
def test_in_parts_and_one_after_the_other_need_less_memory(kind, width):
    model, params, state = network(kind, width)
    loss = losses.classification_loss(model)
    batch = {"image": jnp.ones((128, *tiny.SHAPE)), "label": jnp.zeros(128, jnp.int32)}

    def gradients(params, batch, parts=1, pair="sequential"):
        return pair_gradients(losses.microbatched(loss, parts), params, state, Batch(batch, batch), None, pair=pair)[
            1:3
        ]

    def one(params, batch):
        return jax.grad(lambda p: loss(p, state, batch, train=True, key=None)[0])(params)

    single, together = (
        temporaries(one, params, batch),
        temporaries(functools.partial(gradients, pair="vmap"), params, batch),
    )
    sequential, split = (temporaries(functools.partial(gradients, parts=parts), params, batch) for parts in (1, 4))
    assert sequential < 1.3 * single < together / 1.3
    assert split < 0.6 * sequential


class TestRefusals:
    def test_a_batch_that_cannot_be_divided(self):
        message = "a batch of 4 examples cannot be divided into 3 equal microbatches; change microbatches or the batch"
        with pytest.raises(InputError, match=message):
            losses.microbatched(tiny.loss(), 3)(*tiny.start(), tiny.examples(4), train=True, key=None)
        for name in STEPPING:
            with pytest.raises(InputError, match=message):
                tiny.method(name, microbatches=3)
        with pytest.raises(InputError, match="microbatches must be at least 1, got 0"):
            tiny.method("finetune", microbatches=0)

    @pytest.mark.parametrize(
        ("name", "changes", "size"),
        [
            ("scissorhands", {}, 3),  # the whole forget set is smaller than a batch
            ("gradient_ascent", {}, 3),
            (
                "scissorhands",
                {"departures": {"ragged_batches": True, "every_step_joint": False}, "forget_batch_size": 2},
                1,
            ),
        ],
    )
    def test_a_set_that_makes_such_a_batch_before_anything_is_compiled(self, name, changes, size):
        settings = dataclasses.replace(METHODS[name](), batch_size=4, microbatches=2, **changes)
        method = settings.build(tiny.model(), tiny.loss(), tiny.CLASSES)
        start = tiny.start()
        with (
            Compilations() as compiled,
            pytest.raises(InputError, match=f"a batch of {size} examples cannot be divided"),
        ):
            run(method, KEY, *start, tiny.data(3, 10), num_epochs=1)
        assert not [name for name in compiled.names if "gradient" in name or "step" in name]

    def test_a_mixed_batch_counts_as_one(self):
        # 1 forget and 3 retain examples are 4.
        settings = dataclasses.replace(METHODS["salun"](), batch_size=4, microbatches=2)
        method = settings.build(tiny.model(), tiny.loss(), tiny.CLASSES)
        method.init(KEY, *tiny.start(), tiny.data(3, 9))

    def test_both_gradients_at_once(self):
        with pytest.raises(InputError, match="pair = vmap computes two whole batches at once"):
            scissorhands(
                losses.microbatched(tiny.loss(), 2), sgd(0.1), fraction=0.1, pair="vmap", batch_size=4, ceiling=1.0
            )


def test_on_accelerators_microbatches_keep_the_two_passes_apart(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model, params, _ = network(Dense)
    loss, batch = losses.classification_loss(model), Batch(tiny.examples(4), tiny.examples(4))
    assert choose_pair(loss, params, batch) == "vmap"
    assert choose_pair(losses.microbatched(loss, 2), params, batch) == "sequential"


def test_no_examples_are_mapped_to_none():
    assert mapped(lambda x: 2 * x, jnp.zeros((0, 3)), 4).shape == (0, 3)
