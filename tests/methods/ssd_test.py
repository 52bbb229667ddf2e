"""SSD: the dampening rule entry by entry, and the whole method against single-example gradients in float64."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax.base import Data, lift
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import ssd
from scissorhands_jax.methods.ssd import dampen
from tests.comparison import same_bits
from tests.methods.example import DATA, GRADIENT, KEY, LOSS, original, plain_loss
from tests.training import clusters


def unlearned(method, data=DATA, key=KEY):
    return method.init(key, original()[0], (), data).params


def squares(data):
    """The squared gradient of every example of a part, as rows in float64 of all weights in tree order."""
    rows = []
    data = jax.device_get(data)
    for position in range(len(data["label"])):
        gradient = GRADIENT(original()[0], jax.tree.map(lambda leaf, p=position: leaf[p : p + 1], data))
        rows.append(np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]))
    return np.square(rows)


def flat(params):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)])


def test_the_rule_entry_by_entry():
    table = [
        # weight, F_f, F_D, expected: alpha 2, lambda 3
        (5.0, 1.0, 0.1, 1.5),  # selected, 3 * 0.1 / 1
        (5.0, 1.0, 0.4, 5.0),  # selected, but 1.2 is capped
        (5.0, 1.0, 0.5, 5.0),  # on the threshold, and not above it
        (-5.0, 8.0, 1.0, -1.875),
        (5.0, 1.0, 0.0, 0.0),  # of no use to any other example
        (5.0, 0.0, 0.0, 5.0),
        (-0.0, 0.0, 1.0, -0.0),
    ]
    weights, forget, everything, expected = ({"w": [jnp.asarray(column)]} for column in zip(*table, strict=True))
    params, mask = dampen(weights, forget, everything, selection=2.0, dampening=3.0)
    chex.assert_trees_all_close(params, expected, rtol=1e-6)
    assert np.signbit(params["w"][0]).tolist() == np.signbit(expected["w"][0]).tolist()
    assert mask["w"][0].tolist() == [True, True, False, True, True, False, False]


def test_weights_keep_their_type():
    weights = jnp.ones(3, jnp.bfloat16)
    params, _ = dampen(weights, jnp.array([0.0, 1.0, 1.0]), jnp.array([1.0, 0.25, 1.0]), selection=1.0, dampening=1.0)
    assert params.dtype == jnp.bfloat16
    assert params.tolist() == [1, 0.25, 1]


@pytest.mark.parametrize(("selection", "dampening"), [(1.0, 1.0), (1.5, 0.5)])
def test_batches_of_one_give_the_exact_diagonals_over_forget_and_all_examples(selection, dampening):
    result = unlearned(ssd(lift(plain_loss), selection=selection, dampening=dampening, batch_size=1))
    forget, retain = squares(DATA.forget), squares(DATA.retain)
    forget, everything = forget.mean(axis=0), np.concatenate([forget, retain]).mean(axis=0)
    before = flat(original()[0])
    chosen = forget > selection * everything
    assert 0 < chosen.sum() < chosen.size
    expected = np.where(chosen, before * np.minimum(dampening * everything / forget, 1), before)
    np.testing.assert_allclose(flat(result), expected, rtol=1e-4)
    np.testing.assert_array_equal(flat(result)[~chosen], before[~chosen])


def test_exact_diagonals_dampen_nothing_beyond_one_over_the_share_and_say_so(caplog):
    # 6 of 16 examples are to be forgotten.
    with caplog.at_level(logging.WARNING):
        result = unlearned(ssd(lift(plain_loss), selection=16 / 6 + 1e-3, batch_size=1))
    assert same_bits(result, original()[0])
    assert "ssd dampened 0 of 48 weights" in caplog.text


@pytest.mark.parametrize(("batch_size", "expected"), [(4, (4, 4)), (64, (6, 4))])
def test_all_batches_have_one_size_at_most_the_forget_set_and_compile_once(batch_size, expected):
    shapes = []

    def loss_fn(params, batch):
        shapes.append(batch["image"].shape)
        return plain_loss(params, batch)

    method = ssd(lift(loss_fn), batch_size=batch_size)
    for _ in range(2):
        unlearned(method)
    assert shapes == [expected]


def test_batches_are_drawn_by_the_key_from_forget_and_retain_examples_together():
    method = ssd(lift(plain_loss), selection=1.0, batch_size=4)
    assert not same_bits(unlearned(method), unlearned(method, key=jax.random.key(1)))
    # Where both sets hold the same examples, nothing is particular to the forget set.
    twin = Data(DATA.retain, DATA.retain)
    result = unlearned(ssd(lift(plain_loss), selection=1.001, batch_size=1), twin)
    assert same_bits(result, original()[0])


def test_statistics_are_read_and_stay():
    params, state = original()
    method = ssd(LOSS, selection=1.0, batch_size=4)
    results = [method.init(KEY, params, {**state, "mean": state["mean"] + shift}, DATA) for shift in (0.0, 5.0)]
    assert int(results[0].model_state["count"]) == 0
    assert same_bits(results[0].model_state, state)
    assert not same_bits(results[0].params, results[1].params)


def test_it_forgets_a_class_and_keeps_the_others():
    before, after = clusters.outcome(ssd(clusters.LOSS, selection=0.3, dampening=0.1, batch_size=1), 0)
    assert after.loss_forget > 3 * before.loss_forget
    assert after.acc_forget < 0.5
    assert after.acc_retain == 1


@pytest.mark.parametrize("settings", [{"selection": -1.0}, {"dampening": -1.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match=r"(selection|dampening) must not be negative, got"):
        ssd(LOSS, **settings)


def test_a_network_that_is_not_finite_is_refused_by_name():
    params = original()[0]
    params[1] = (params[1][0].at[0, 0].set(jnp.nan),)
    with pytest.raises(InputError, match=r"saliency of .* is not finite"):
        ssd(lift(plain_loss)).init(KEY, params, (), DATA)
