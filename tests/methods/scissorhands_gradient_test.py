"""A loop of one's own with the two pure functions does what `run` does, and single settings are refused or heeded."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scissorhands_jax as sh
from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, trees
from scissorhands_jax.base import Batch
from scissorhands_jax.errors import InputError
from tests import tiny

KEY = jax.random.key(3)
FORGET, RETAIN = tiny.examples(8, 5), tiny.examples(16, 6)


def test_steps_with_an_optimizer_of_ones_own_are_those_of_the_method():
    optimizer = optax.sgd(0.05, momentum=0.9)
    params, model_state = tiny.start()
    loss_fn = tiny.loss()
    settings = {"fraction": 0.1, "forget_weight": 0.3, "ceiling": math.log(3), "pair": "sequential"}
    method = sh.scissorhands(loss_fn, optimizer, batch_size=8, **settings)
    carry = method.init(KEY, params, model_state, sh.Data(FORGET, RETAIN))
    gradient_of = jax.jit(sh.scissorhands_gradient(loss_fn, forget_weight=0.3, ceiling=math.log(3), pair="sequential"))
    state, moved, opt_state = carry.model_state, carry.params, optimizer.init(carry.params)
    step = jax.jit(method.step)
    for number in range(3):
        batch = Batch(FORGET, data_lib.take(RETAIN, np.arange(8) + number))
        key = jax.random.fold_in(carry.key, carry.step)
        gradient, state, metrics = gradient_of(moved, state, batch.forget, batch.retain, key=key)
        updates, opt_state = optimizer.update(gradient, opt_state, moved)
        moved = optax.apply_updates(moved, updates)
        carry, expected = step(carry, batch)
        np.testing.assert_allclose(metrics["loss_forget"], expected["loss_forget"], rtol=1e-5)
    chex.assert_trees_all_close((moved, state), (carry.params, carry.model_state), rtol=1e-4, atol=1e-6)


def test_the_simple_form_needs_no_key_and_the_result_does_not_lower_the_forget_loss():
    params, model_state = tiny.start()
    loss_fn = sh.lift(sh.freeze(tiny.loss(), model_state))
    gradient, state, metrics = sh.scissorhands_gradient(loss_fn)(params, (), FORGET, FORGET)
    # Of two equal batches the gradients are parallel, so nothing is left but rounding.
    assert state == ()
    assert bool(metrics["projected"])
    assert float(trees.norm(gradient)) < 1e-3 * float(trees.norm(jax.grad(sh.freeze(loss_fn, ()))(params, FORGET)))
    plain, _, metrics = sh.scissorhands_gradient(loss_fn, projected=False)(params, (), FORGET, FORGET)
    expected = jax.tree.map(lambda leaf: 0.95 * leaf, jax.grad(sh.freeze(loss_fn, ()))(params, FORGET))
    chex.assert_trees_all_close(plain, expected, rtol=1e-4, atol=1e-6)
    assert "dual" not in metrics


def test_above_the_ceiling_only_the_retain_gradient_is_left():
    params, model_state = tiny.start()
    loss_fn = sh.lift(sh.freeze(tiny.loss(), model_state))
    gradient, _, metrics = sh.scissorhands_gradient(loss_fn, ceiling=1e-6)(params, (), FORGET, RETAIN)
    chex.assert_trees_all_close(gradient, jax.grad(sh.freeze(loss_fn, ()))(params, RETAIN), rtol=1e-5, atol=1e-7)
    assert not bool(metrics["projected"])


@pytest.mark.parametrize("projected", [True, False])
def test_of_an_infinite_forget_loss_only_the_retain_gradient_is_left(projected):
    def loss(weights, examples):
        return -jnp.mean(jnp.log(jax.nn.sigmoid(examples @ weights)))

    weights, forget, retain = jnp.full(2, 60.0), -jnp.ones((2, 2)), jnp.full((2, 2), 0.01)
    assert math.isinf(loss(weights, forget))
    assert jnp.isnan(jax.grad(loss)(weights, forget)).any()
    gradient_of = sh.scissorhands_gradient(sh.lift(loss), ceiling=0.7, projected=projected)
    gradient, _, _ = gradient_of(weights, (), forget, retain)
    np.testing.assert_array_equal(gradient, jax.grad(loss)(weights, retain))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forget_weight": -1}, "forget_weight must not be negative, got -1"),
        ({"forget_weight": math.nan}, "forget_weight must not be negative, got nan"),
        ({"ceiling": 0}, "ceiling must be above 0, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        sh.scissorhands_gradient(tiny.loss(), **settings)


def test_a_trainer_trims_a_network_itself():
    params, model_state = tiny.start()
    trimmed = sh.trim_network(KEY, tiny.loss(), params, model_state, [FORGET], fraction=0.2, initializer="uniform")
    changed = sum(
        int((old != new).sum()) for old, new in zip(*map(jax.tree.leaves, (params, trimmed.params)), strict=True)
    )
    ranked = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    assert changed == round(0.2 * ranked)
    with pytest.raises(InputError, match="there is no initializer 'unifrom'"):
        sh.trim_network(KEY, tiny.loss(), params, model_state, [], fraction=0.2, initializer="unifrom")


def test_a_shard_is_refused_unless_it_is_said_how_parameters_lie():
    params, model_state = tiny.start()
    mesh = jax.make_mesh((1,), ("rows",))

    def by_hand(**options):
        def gradient(params):
            return sh.scissorhands_gradient(tiny.loss(), ceiling=5.0, **options)(params, model_state, FORGET, RETAIN)[0]

        specs = {"in_specs": jax.P(), "out_specs": jax.P()}
        return jax.jit(jax.shard_map(gradient, mesh=mesh, check_vma=False, **specs))(params)

    message = "inside shard_map over 'rows' only a shard is at hand; give scissorhands_gradient axis_name="
    with pytest.raises(InputError, match=message):
        by_hand()
    alone, _, _ = sh.scissorhands_gradient(tiny.loss(), ceiling=5.0)(params, model_state, FORGET, RETAIN)
    for axes in ((), "rows", ["rows"]):
        chex.assert_trees_all_close(by_hand(axis_name=axes), alone, rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match="axis_name names 'cols'"):
        by_hand(axis_name="cols")
    by_hand(projected=False)


def test_both_halves_take_floats_of_python_and_refuse_integers():
    def loss_fn(params, batch):
        return jnp.mean((batch @ params["w"] + params["s"]) ** 2)

    forget, retain = jnp.ones((2, 3)), jnp.ones((4, 3)) / 2
    halves = (
        lambda p: sh.scissorhands_gradient(sh.lift(loss_fn))(p, (), forget, retain)[0],
        lambda p: sh.trim_network(KEY, sh.lift(loss_fn), p, (), [forget], fraction=0.5, initializer="uniform").params,
    )
    params = {"w": jnp.ones((3, 2)), "s": 1.0}
    for half in halves:
        chex.assert_trees_all_equal(half(params), half(params | {"s": jnp.float32(1)}))
        with pytest.raises(InputError, match="the parameters have an array of int32 at s, and only real"):
            half(params | {"s": jnp.int32(1)})


def test_a_way_of_pairing_that_cannot_be_meant_is_refused():
    with pytest.raises(InputError, match="pair"):
        sh.scissorhands_gradient(tiny.loss(), pair="vmpa")
    with pytest.raises(InputError, match="with microbatches take sequential"):
        sh.scissorhands_gradient(losses.microbatched(tiny.loss(), 2), pair="vmap")
