"""Both gradients of a joint step start from one state, whichever way and on however many devices they are computed."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from scissorhands_jax import losses
from scissorhands_jax.base import Batch
from scissorhands_jax.methods.pair_gradients import choose_pair, pair_gradients
from scissorhands_jax.models import from_equinox, from_linen
from scissorhands_jax.models.layers import BatchNorm
from scissorhands_jax.training.sharding import make_layout
from tests import tiny

KEY = jax.random.key(11)
WAYS = ("sequential", "vmap")


class Net(nn.Module):
    """Its state is running averages, a power iteration and a counter; dropout draws random numbers."""

    @nn.compact
    def __call__(self, images, *, train=False):
        passes = self.variable("counters", "passes", lambda: jnp.int32(5))
        if train and not self.is_initializing():
            passes.value = passes.value + 1
        x = BatchNorm(name="bn")(images.reshape(len(images), -1), train=train)
        x = nn.SpectralNorm(nn.Dense(6), collection_name="spectral")(x, update_stats=train)
        x = nn.Dropout(0.25, deterministic=not train)(nn.tanh(x))
        return nn.Dense(tiny.CLASSES)(x)


MODEL = from_linen(Net(), jax.ShapeDtypeStruct((1, *tiny.SHAPE), jnp.float32))
LOSS = losses.classification_loss(MODEL)


def one_pass(params, model_state, examples, key):
    def loss(params):
        return LOSS(params, model_state, examples, train=True, key=key)

    return jax.value_and_grad(loss, has_aux=True)(params)


def differ(a, b):
    return any(abs(x - y).max() > 1e-3 for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def check_both_ways(place=lambda tree: tree, divide=lambda tree: tree):
    params, state = MODEL.init(jax.random.key(3))
    state = one_pass(params, state, tiny.examples(8, 7), KEY)[0][1]  # so that no average is where it began
    batch = Batch(tiny.examples(8, 3), tiny.examples(8, 4))
    keys = jax.random.split(KEY)
    (retain_loss, expected_state), retain_grad = one_pass(params, state, batch.retain, keys[0])
    (forget_loss, dropped), forget_grad = one_pass(params, state, batch.forget, keys[1])
    expected = (retain_loss, forget_loss), retain_grad, forget_grad, expected_state
    for pair in WAYS:
        step = jax.jit(functools.partial(pair_gradients, LOSS, pair=pair))
        found = step(*place((params, state)), divide(batch), KEY)
        chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=1e-6)
        chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
        assert differ(found[3]["batch_stats"], dropped["batch_stats"])
        assert differ(found[3]["spectral"], state["spectral"])
        assert int(found[3]["counters"]["passes"]) == int(state["counters"]["passes"]) + 1


def test_both_ways_are_two_passes_from_one_state_of_which_the_retain_pass_moves_it():
    check_both_ways()


def check_both_ways_on_four_devices():
    """Runs in the process of `training/sharding_test.py`."""
    layout = make_layout(4, replicate_below=1)
    check_both_ways(layout.place, lambda batch: jax.tree.map(lambda leaf: layout.rows(leaf, jnp.arange(8)), batch))


def shifting(params, model_state, batch, *, train, key):
    return params * model_state * jnp.mean(batch), 0.5 * model_state + jnp.mean(batch)


@pytest.mark.parametrize("pair", WAYS)
def test_in_the_published_order_the_forget_pass_starts_where_the_retain_pass_ended(pair):
    batch = Batch(forget=jnp.array([3.0]), retain=jnp.array([10.0]))
    order = functools.partial(pair_gradients, shifting, jnp.float32(1), jnp.float32(4), batch, None, pair=pair)
    (retain, forget), _, forget_grad, state = order(forget_moves_state=True)
    assert (float(retain), float(forget), float(state)) == (40, 12 * 3, 0.5 * 12 + 3)
    assert float(forget_grad) == 12 * 3
    (retain, forget), _, forget_grad, state = order()
    assert (float(retain), float(forget), float(state)) == (40, 4 * 3, 0.5 * 4 + 10)
    assert float(forget_grad) == 4 * 3


def outlines(loss_fn, params, model_state, batch):
    return [
        jax.eval_shape(functools.partial(pair_gradients, loss_fn, pair=pair), params, model_state, batch, None)
        for pair in WAYS
    ]


def test_batches_of_different_sizes_are_computed_one_after_the_other():
    first, second = outlines(tiny.loss(), *tiny.start(), Batch(tiny.examples(2), tiny.examples(4)))
    assert first == second


def test_states_with_flags():
    class Flagged(eqx.Module):
        norm: eqx.nn.BatchNorm
        is_new: eqx.nn.StateIndex
        head: eqx.nn.Linear

        def __init__(self, key):
            self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode="ema")
            self.is_new = eqx.nn.StateIndex(jnp.asarray(True))
            self.head = eqx.nn.Linear(4, 3, key=key)

        def __call__(self, x, state):
            x, state = self.norm(x, state)
            return self.head(x), state.set(self.is_new, jnp.asarray(False))

    model = from_equinox(Flagged)
    params, model_state = model.init(KEY)
    assert any(leaf.dtype == bool for leaf in jax.tree.leaves(model_state))
    batch = Batch(
        *({"image": jax.random.normal(key, (4, 4)), "label": jnp.arange(4) % 3} for key in jax.random.split(KEY))
    )
    found = [
        pair_gradients(losses.classification_loss(model), params, model_state, batch, None, pair=pair) for pair in WAYS
    ]
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(*found)


def test_batches_of_two_types_are_not_stacked(monkeypatch):
    def loss(params, state, batch, *, train, key):
        return jnp.mean(params * jnp.where(batch["x"].dtype == jnp.uint8, batch["x"] / 255, batch["x"])), state

    batch = Batch({"x": jnp.full((4,), 255, jnp.uint8)}, {"x": jnp.ones((4,))})
    for pair in WAYS:
        (_, forget), *_ = pair_gradients(loss, jnp.float32(1), (), batch, None, pair=pair)
        assert forget == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose_pair(loss, {"w": jnp.float32(1)}, batch) == "sequential"


def test_only_accelerators_compute_both_at_once_and_only_without_kernels_over_images(monkeypatch):
    batch = Batch(tiny.examples(4), tiny.examples(4))
    params, _ = MODEL.init(KEY)
    assert choose_pair(LOSS, params, batch) == "sequential"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose_pair(LOSS, params, batch) == "vmap"
    assert choose_pair(LOSS, params, Batch(tiny.examples(2), tiny.examples(4))) == "sequential"
    assert choose_pair(tiny.loss(), tiny.start()[0], batch) == "sequential"
