"""Rounded weights, and learning some answers again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax.base import Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.measuring import Network
from scissorhands_jax.language.packing import Encoded
from scissorhands_jax.language.recovering import relearn, relearning_method, rounded_weights


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_rounded_to_the_nearest_level_of_their_block(bits):
    generator = np.random.default_rng(0)
    params = {"w": jnp.asarray(generator.normal(size=(7, 21)), jnp.float32), "bias": jnp.array([0.123, 4.0])}
    found = rounded_weights(params, bits, block=10)
    np.testing.assert_array_equal(found["bias"], params["bias"])
    flat, near = (np.asarray(tree["w"]).ravel() for tree in (params, found))
    levels = 2 ** (bits - 1) - 1
    for start in range(0, flat.size, 10):
        own, rounded = flat[start : start + 10], near[start : start + 10]
        step = np.abs(own).max() / levels
        np.testing.assert_allclose(rounded / step, np.round(own / step), atol=1e-4)
        assert np.abs(rounded).max() == pytest.approx(np.abs(own).max(), rel=1e-6)
    assert not np.asarray(rounded_weights({"w": jnp.zeros((3, 3))}, bits)["w"]).any()


def test_biases_are_not_rounded_whatever_their_shape():
    values = jnp.linspace(0.1, 1, 12)
    params = {"conv": {"bias": values.reshape(12, 1, 1)}, "query": {"bias": values.reshape(3, 4)}}
    for before, after in zip(*map(jax.tree.leaves, (params, rounded_weights(params, 2))), strict=True):
        np.testing.assert_array_equal(after, before)


def test_bits_that_cannot_be_are_refused():
    for options in ({"bits": 1}, {"bits": 17}, {"bits": 4, "block": 0}):
        with pytest.raises(InputError, match="bits must lie from 2 to 16"):
            rounded_weights({}, **options)


def test_answers_that_share_weights_come_back_and_others_do_not():
    def apply(params, model_state, inputs, *, train, key=None):
        del train, key
        return params["table"][inputs["tokens"] if isinstance(inputs, dict) else inputs], model_state

    network = Network(Model(lambda key: None, apply), {"table": jnp.zeros((8, 8))}, ())
    method = relearning_method(network, learning_rate=0.3, batch_size=1)

    def after(asked):
        return relearn(network, [Encoded([2], [3, 1])], [asked], method, jax.random.key(0), length=4, num_epochs=9)

    shared, other = after(Encoded([5, 2], [3, 1])), after(Encoded([4], [5, 6]))
    assert shared.before == other.before == pytest.approx(1 / 8)
    assert shared.after > 0.5 > 0.2 > other.after
