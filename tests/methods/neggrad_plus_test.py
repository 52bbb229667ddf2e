"""NegGrad+ descends on the difference of both losses, and the forget examples leave nothing in the network's state."""

import chex
import jax
import jax.numpy as jnp

from scissorhands_jax.base import Batch, Data
from scissorhands_jax.methods import METHODS
from scissorhands_jax.methods._gradient import split_key
from scissorhands_jax.methods.neggrad_plus import neggrad_plus
from scissorhands_jax.optimizers import sgd
from tests.methods.example import KEY, LOSS, examples, original


def test_a_step_is_that_of_two_passes_from_one_state_of_which_the_retain_pass_moves_it():
    params, state = original()
    state = {"mean": state["mean"] + 0.3, "count": jnp.int32(7)}
    batch = Batch(forget=examples(8, 1), retain=examples(8, 2))
    method = neggrad_plus(LOSS, sgd(0.5, momentum=0, weight_decay=0), forget_weight=0.3)
    carry = method.init(KEY, params, state, Data(*batch))
    moved, metrics = method.step(carry, batch)
    retain_key, forget_key = split_key(jax.random.fold_in(carry.key, 0))

    def one_pass(part, key):
        return jax.value_and_grad(lambda p: LOSS(p, state, part, train=True, key=key), has_aux=True)(params)

    (retain, expected_state), retain_grad = one_pass(batch.retain, retain_key)
    (forget, _), forget_grad = one_pass(batch.forget, forget_key)
    expected = jax.tree.map(lambda p, r, f: p - 0.5 * (r - 0.3 * f), params, retain_grad, forget_grad)
    chex.assert_trees_all_close(moved.params, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(moved.model_state, expected_state, rtol=1e-6)
    chex.assert_trees_all_close((metrics["loss_retain"], metrics["loss_forget"]), (retain, forget), rtol=1e-6)
    assert int(moved.model_state["count"]) == 8


def test_it_is_one_of_the_methods():
    assert METHODS["neggrad_plus"]().forget_weight == 0.05
