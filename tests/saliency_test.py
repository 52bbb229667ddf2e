"""Saliency against closed forms, batches of any size against one full batch, and what a pass does to BatchNorm."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import base, losses, saliency
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods.pair_gradients import check_pair
from scissorhands_jax.tasks import regression, task_loss, task_of
from tests import tiny
from tests.compilations import Compilations


class Pair(NamedTuple):
    weight: jax.Array
    offsets: list


def linear_loss(params, batch):
    """Mean over examples of <weight, x> + sum of squares of the offsets."""
    x = batch["x"]
    return jnp.mean(x @ params["pair"].weight) + sum(jnp.sum(offset**2) for offset in params["pair"].offsets)


def linear_case(count=7):
    rng = np.random.default_rng(0)
    params = {
        "pair": Pair(
            jnp.asarray(rng.normal(size=3), jnp.float32),
            [jnp.float32(2.0), jnp.asarray(rng.normal(size=(2, 2)), jnp.float32)],
        )
    }
    return params, rng.normal(size=(count, 3)).astype(np.float32)


def parts(x, sizes):
    return [{"x": part} for part in np.split(x, np.cumsum(sizes)[:-1])]


@pytest.mark.parametrize("sizes", [(7,), (3, 3, 1), (1, 6)])
def test_equals_the_closed_form_whatever_the_batch_sizes(sizes):
    params, x = linear_case()
    scores = saliency.connection_sensitivity(linear_loss, params, iter(parts(x, sizes)))
    chex.assert_trees_all_equal_structs(scores, params)
    pair = params["pair"]
    expected = {
        "pair": Pair(
            np.abs(x.astype(np.float64).mean(axis=0) * pair.weight), [np.abs(2 * offset**2) for offset in pair.offsets]
        )
    }
    chex.assert_trees_all_close(scores, expected, rtol=1e-5)


def test_gradients_of_opposite_sign_cancel():
    scores = saliency.connection_sensitivity(
        lambda w, x: jnp.mean(x @ w), jnp.array([1.0, 3.0]), [np.array([[1.0, 1.0]]), np.array([[-1.0, 1.0]])]
    )
    assert scores.tolist() == [0.0, 3.0]


def test_the_published_variant_adds_absolute_gradients_of_batches():
    params, x = linear_case()
    batches = parts(x, (3, 3, 1))
    sums = saliency.gradient_sum(base.lift(linear_loss), params, (), batches, absolute=True)
    scores = saliency.scores_of(sums, params, absolute=True)
    means = np.stack([batch["x"].mean(axis=0) for batch in batches])
    expected = np.abs(params["pair"].weight) * np.abs(means).sum(axis=0)
    np.testing.assert_allclose(scores["pair"].weight, expected, rtol=1e-5)
    assert float(sums.weight) == 3
    np.testing.assert_allclose(scores["pair"].offsets[0], 3 * 2 * 2 * 2, rtol=1e-6)


def test_losses_and_weight_are_those_of_the_batches():
    params, x = linear_case()
    batches = parts(x, (3, 3, 1))
    sums = saliency.gradient_sum(base.lift(linear_loss), params, (), batches)
    np.testing.assert_allclose(sums.losses, [linear_loss(params, batch) for batch in batches], rtol=1e-6)
    assert float(sums.weight) == 7


def test_a_network_in_eval_mode_scores_ragged_batches_like_the_full_one_and_keeps_its_state():
    params, state = tiny.start()
    examples = tiny.examples(7)
    full = saliency.gradient_sum(tiny.loss(), params, state, [examples])
    ragged = [jax.tree.map(lambda leaf, p=p: leaf[p], examples) for p in (slice(0, 4), slice(4, 7))]
    halves = saliency.gradient_sum(tiny.loss(), params, state, ragged)
    chex.assert_trees_all_close(
        saliency.scores_of(full, params), saliency.scores_of(halves, params), rtol=1e-4, atol=1e-7
    )
    chex.assert_trees_all_equal(halves.model_state, state)


def test_in_training_mode_statistics_move_once_per_batch():
    params, state = tiny.start()
    examples = tiny.examples(4)
    sums = saliency.gradient_sum(tiny.loss(), params, state, [examples, examples], train=True)
    before, after = state["batch_stats"]["bn"], sums.model_state["batch_stats"]["bn"]
    assert int(after["count"]) == int(before["count"]) + 2
    # The same batch twice: 0.19 of the way to its statistics, which one step alone goes 0.1 of.
    once = saliency.gradient_sum(tiny.loss(), params, state, [examples], train=True).model_state["batch_stats"]["bn"]
    np.testing.assert_allclose(after["mean"] - before["mean"], 1.9 * (once["mean"] - before["mean"]), rtol=1e-4)
    assert np.all(once["mean"] != before["mean"])
    # Training mode normalises by the batch, so scores differ from those of eval mode.
    frozen = saliency.gradient_sum(tiny.loss(), params, state, [examples, examples])
    assert not np.allclose(sums.gradient["conv"]["kernel"], frozen.gradient["conv"]["kernel"], rtol=0.1)


def test_each_batch_draws_its_own_augmentation():
    def loss_fn(params, model_state, batch, *, train, key):
        return params * jax.random.uniform(key) * jnp.mean(batch), model_state

    one = np.ones((2,), np.float32)
    key = jax.random.key(3)
    draws = saliency.gradient_sum(loss_fn, jnp.float32(1), (), [one, one, one], key=key).losses
    expected = [jax.random.uniform(jax.random.fold_in(key, position)) for position in range(3)]
    np.testing.assert_allclose(draws, expected)
    assert len(set(map(float, draws))) == 3


def test_sums_of_bfloat16_gradients_are_float32():
    # 300 batches of one example with gradient 1: a bfloat16 sum would stop at 256.
    params = {"w": jnp.ones((2,), jnp.bfloat16)}
    batch = np.ones((1, 2), np.float32)
    sums = saliency.gradient_sum(base.lift(lambda p, x: jnp.mean(x @ p["w"])), params, (), [batch] * 300)
    assert sums.gradient["w"].dtype == jnp.float32
    assert sums.gradient["w"].tolist() == [300, 300]
    assert saliency.scores_of(sums, params)["w"].tolist() == [1, 1]


def test_one_compilation_per_batch_shape_also_on_the_next_call():
    traces = []

    def loss_fn(params, x):
        traces.append(x.shape)
        return jnp.mean(x @ params)

    batches = [np.ones((2, 3), np.float32)] * 3 + [np.ones((1, 3), np.float32)]
    for _ in range(2):
        saliency.connection_sensitivity(loss_fn, jnp.ones(3), batches)
    assert traces == [(2, 3), (1, 3)]


def test_no_batch_is_refused():
    with pytest.raises(InputError, match="without a batch of examples; give at least one"):
        saliency.connection_sensitivity(linear_loss, linear_case()[0], [])


def test_floats_of_python_are_parameters_and_other_numbers_are_none():
    def loss_fn(params, batch):
        return jnp.mean((batch @ params["w"] + params["s"]) ** 2)

    params, batches = {"w": jnp.ones(3), "s": 2.0}, [jnp.ones((4, 3))]
    scores = saliency.connection_sensitivity(loss_fn, params, batches)
    expected = saliency.connection_sensitivity(loss_fn, params | {"s": jnp.float32(2)}, batches)
    chex.assert_trees_all_equal(scores, expected)
    assert float(scores["s"]) == 20
    for leaf, found in (
        (jnp.int32(2), "an array of int32"),
        (2, "the number 2"),
        (jnp.complex64(2), "an .* complex64"),
    ):
        with pytest.raises(InputError, match=f"the parameters have {found} at s, and only real floating-point numbers"):
            saliency.connection_sensitivity(loss_fn, params | {"s": leaf}, batches)
    with pytest.raises(InputError, match="the selection is another tree"):
        saliency.check_finite(scores, {"w": True})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_by_name(bad):
    scores = {"conv": {"kernel": jnp.ones((2, 2))}, "head": [jnp.ones(3), jnp.array([1.0, bad])], "z": jnp.array(bad)}
    with pytest.raises(InputError, match="saliency of head/1 is not finite"):
        saliency.check_finite(scores)
    saliency.check_finite({"conv": scores["conv"]})


@pytest.mark.parametrize("sizes", [(1,) * 7, (3, 3, 1), (7,)])
def test_diagonal_fisher_is_the_mean_over_batches_of_squared_mean_gradients(sizes):
    params, x = linear_case()
    fisher = saliency.diagonal_fisher(base.lift(linear_loss), params, (), iter(parts(x, sizes)))
    means = np.stack([part.astype(np.float64).mean(axis=0) for part in np.split(x, np.cumsum(sizes)[:-1])])
    # The offsets have one gradient whatever the examples.
    expected = {
        "pair": Pair(np.square(means).mean(axis=0), [np.square(2 * offset) for offset in params["pair"].offsets])
    }
    chex.assert_trees_all_close(fisher, expected, rtol=1e-5)


def test_diagonal_fisher_of_a_network_is_in_eval_mode():
    params, state = tiny.start()
    examples = tiny.examples(2)
    sums = [saliency.gradient_sum(tiny.loss(), params, state, [examples], train=train) for train in (False, True)]
    fisher = saliency.diagonal_fisher(tiny.loss(), params, state, [examples])
    expected = jax.tree.map(lambda leaf: jnp.square(leaf / 2), sums[0].gradient)
    chex.assert_trees_all_close(fisher, expected, rtol=1e-4, atol=1e-9)
    assert not np.allclose(fisher["fc"]["kernel"], jnp.square(sums[1].gradient["fc"]["kernel"] / 2), rtol=0.1)


def test_diagonal_fisher_needs_a_batch():
    with pytest.raises(InputError, match="without a batch of examples; give at least one"):
        saliency.diagonal_fisher(base.lift(linear_loss), linear_case()[0], (), [])


def weighted_regression():
    """A network, its state, and the loss of a task whose examples have very different weights."""
    task = dataclasses.replace(regression(), inputs=lambda examples: examples["x"], weights=lambda e: e["weight"])
    model = base.Model(
        lambda key: (jnp.ones((3, 1)), {"bias": jnp.float32(0.5)}),
        lambda params, state, x, *, train, key=None: (x @ params + state["bias"], state),
    )
    draw = np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32)
    weights = np.array([1, 1, 1, 10, 0, 0, 5, 5], np.float32)
    return (
        model.init(jax.random.key(0)),
        task_loss(model, task),
        {"x": draw[:, :3], "label": draw[:, 3], "weight": weights},
    )


def test_a_frozen_loss_weighs_examples_as_its_task_says_however_they_are_divided():
    (params, state), loss, examples = weighted_regression()
    halves = [jax.tree.map(lambda leaf: leaf[:3], examples), jax.tree.map(lambda leaf: leaf[3:], examples)]
    whole = saliency.connection_sensitivity(base.freeze(loss, state), params, [examples])
    for frozen in (base.freeze(loss, state), base.freeze(base.lift(base.freeze(loss, state)), ())):
        np.testing.assert_allclose(saliency.connection_sensitivity(frozen, params, halves), whole, rtol=1e-5)
        mean = losses.average_loss(base.lift(frozen), params, (), examples, batch_size=3)
        assert mean == pytest.approx(float(loss(params, state, examples, train=False, key=None)[0]), rel=1e-5)


def test_a_frozen_loss_is_compiled_once_whatever_the_state():
    (params, state), loss, examples = weighted_regression()
    found, compiled = [], []
    for other in (state, state, {"bias": jnp.float32(1.5)}):
        with Compilations() as listening:
            scores = saliency.connection_sensitivity(base.freeze(loss, other), params, [examples])
            mean = losses.average_loss(base.lift(base.freeze(loss, other)), params, (), examples)
        found.append((scores.tolist(), mean))
        compiled.append({"jit(_add_gradient)", "jit(_evaluated)"} & set(listening.names))
    assert compiled == [{"jit(_add_gradient)", "jit(_evaluated)"}, set(), set()]
    assert found[0] == found[1] != found[2]


def test_frozen_losses_are_equal_where_nothing_can_tell_them_apart():
    _, loss, _ = weighted_regression()
    state = {"bias": jnp.float32(0.5)}
    assert base.freeze(loss, state) == base.freeze(loss, dict(state))
    assert hash(base.lift(base.freeze(loss, state))) == hash(base.lift(base.freeze(loss, state)))
    assert base.freeze(loss, state) != base.freeze(loss, {"bias": jnp.float32(0.5)})
    assert base.freeze(loss, state) != base.freeze(loss, state, train=True)
    changeable = {"bias": np.ones(1)}
    assert base.freeze(loss, changeable) != base.freeze(loss, changeable)
    with_array = base.freeze(loss, changeable)
    assert with_array == with_array
    assert hash(with_array) == hash(with_array)


def test_a_frozen_loss_can_be_asked_what_the_loss_within_can():
    augment, key = (lambda key, images: images), jax.random.key(0)
    classifier = losses.classification_loss(tiny.model(), augment=augment)
    (_, state), loss, examples = weighted_regression()
    halves = losses.microbatched(loss, 2)
    for known in (
        base.lift(base.freeze(halves, state)),
        losses.microbatched(base.lift(base.freeze(loss, state)), 2),
        base.lift(base.freeze(base.lift(base.freeze(halves, state)), ())),
    ):
        assert task_of(known) == task_of(loss)
        assert losses.microbatches_of(known) == 2
        assert float(losses.weight_of(known, examples)) == 23
        with pytest.raises(InputError, match="with microbatches take sequential"):
            check_pair("vmap", known)
    parted = losses.microbatched(base.lift(base.freeze(loss, state)), 4)(
        jnp.ones((3, 1)), (), examples, train=True, key=None
    )[0]
    assert float(parted) == pytest.approx(float(loss(jnp.ones((3, 1)), state, examples, train=False, key=None)[0]))
    training = base.lift(base.freeze(classifier, (), train=True, key=key))
    assert losses.augmentation_of(training) is augment
    assert losses.augmentation_of(losses.altered(training, augment=None)) is None
    assert losses.augmentation_of(base.lift(base.freeze(classifier, (), train=True))) is None
    assert losses.augmentation_of(base.lift(base.freeze(classifier, (), key=key))) is None
