"""Influence unlearning: against dense inverses and the published recursion, both in float64 on the host."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import cross_entropy, microbatched
from scissorhands_jax.methods import influence
from scissorhands_jax.methods.influence import _add_rows, _rows_times, inverse_fisher_product
from scissorhands_jax.saliency import gradient_sum
from tests.comparison import same_bits
from tests.methods.example import DATA, KEY, LOSS, apply, original

PARAMS, STATE = original()
STATE = {**STATE, "mean": jnp.array([0.5, -1.0, 2.0, 0.0])}  # read in evaluation mode
N_FORGET, N_RETAIN = (data_lib.size(part) for part in DATA)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0], np.float64)


@functools.cache
def all_gradients():
    """The gradient of every example, forget set first, in evaluation mode; rows in float64."""

    def loss(params, image, label):
        logits, _ = apply(params, STATE, image[None], train=False)
        return cross_entropy(logits, label[None])

    examples = jax.tree.map(lambda *parts: jnp.concatenate(parts), *DATA)
    rows = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(PARAMS, examples["image"], examples["label"])
    return np.concatenate([np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in jax.tree.leaves(rows)], 1)


def gradients(part):
    return all_gradients()[:N_FORGET] if part == "forget" else all_gradients()[N_FORGET:]


def difference():
    """f - r: the mean gradient over all examples minus that over the retained ones."""
    return all_gradients().mean(axis=0) - gradients("retain").mean(axis=0)


def dense_inverse_product(rows, vector, damping):
    fisher = damping * np.eye(len(vector)) + rows.T @ rows / len(rows)
    return np.linalg.solve(fisher, vector)


def update(data=DATA, key=KEY, loss_fn=LOSS, **settings):
    """What the method adds to the weights."""
    carry = influence(loss_fn, **settings).init(key, PARAMS, STATE, data)
    assert same_bits(carry.model_state, STATE)
    return flat(carry.params) - flat(PARAMS)


def close(got, expected, tolerance=1e-4):
    assert np.max(np.abs(got - expected)) <= tolerance * np.max(np.abs(expected))


class TestInverse:
    @pytest.mark.parametrize("damping", [1.0, 1e-3])
    @pytest.mark.parametrize("count", [2, 10])
    def test_it_is_the_dense_inverse_times_a_vector(self, damping, count):
        vector = jax.tree.map(lambda w: jnp.sin(7 * w), PARAMS)
        batches = [data_lib.take(DATA.retain, p) for p in np.split(np.arange(count), count // 2)]
        got = inverse_fisher_product(LOSS, PARAMS, STATE, batches, vector, damping=damping)
        chex.assert_trees_all_equal_shapes_and_dtypes(got, PARAMS)
        close(flat(got), dense_inverse_product(gradients("retain")[:count], flat(vector), damping))

    def test_vectors_without_overlap_are_only_divided_by_the_damping(self):
        rows = gradients("retain")
        basis = np.linalg.qr(rows.T)[0]
        vector = np.random.default_rng(0).normal(size=rows.shape[1])
        vector -= basis @ (basis.T @ vector)
        tree = ravel_pytree(PARAMS)[1](jnp.asarray(vector, jnp.float32))
        close(flat(inverse_fisher_product(LOSS, PARAMS, STATE, [DATA.retain], tree, damping=0.25)), 4 * vector)

    def test_no_matrix_of_all_gradients_is_held(self):
        # A network of 60,000 weights and 64 examples: the stacked gradients would be 15 MB.
        model_params = {"hidden": jnp.ones((64, 900)), "head": jnp.ones((900, 3))}

        def loss(params, model_state, batch, *, train, key):
            return cross_entropy(jnp.tanh(batch["image"] @ params["hidden"]) @ params["head"], batch["label"]), ()

        batch = {"image": jnp.ones((64, 64)), "label": jnp.zeros(64, jnp.int32)}
        stacked = 64 * 4 * sum(leaf.size for leaf in jax.tree.leaves(model_params))
        backward = _add_rows.lower(loss, model_params, (), batch, jnp.ones(64), model_params)
        forward = _rows_times.lower(loss, model_params, (), batch, model_params)
        for lowered in (backward, forward):
            assert lowered.compile().memory_analysis().temp_size_in_bytes < stacked / 8

    def test_what_cannot_be_solved_for_is_refused(self):
        broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), PARAMS)
        with pytest.raises(InputError, match="conjugate gradients on 10 examples did not reach 1e-06; raise damping"):
            inverse_fisher_product(LOSS, broken, STATE, [DATA.retain], PARAMS, damping=1.0)


class TestUpdate:
    @pytest.mark.parametrize("batch_size", [2, 256])
    def test_it_is_one_newton_step_with_the_damped_fisher_matrix(self, batch_size):
        expected = 2.5 * dense_inverse_product(gradients("retain"), difference(), 0.1)
        close(update(alpha=2.5, damping=0.1, batch_size=batch_size), expected)

    def test_the_gradient_difference_is_the_forget_share_of_the_means(self):
        """With huge damping the Fisher matrix is nothing beside it."""
        expected = N_FORGET / (N_FORGET + N_RETAIN) * (gradients("forget").mean(0) - gradients("retain").mean(0))
        np.testing.assert_allclose(difference(), expected, atol=1e-12)
        close(update(alpha=1e6, damping=1e6), expected, 1e-3)

    def test_forgetting_what_is_retained_as_well_changes_nothing(self):
        twice = Data(DATA.retain, DATA.retain)
        assert np.max(np.abs(update(twice, alpha=1.0))) < 1e-6

    def test_it_raises_the_forget_loss_above_the_retain_loss(self):
        after = influence(LOSS, alpha=1.0, damping=0.1).init(KEY, PARAMS, STATE, DATA).params
        losses = [
            [float(gradient_sum(LOSS, params, STATE, [part]).losses[0]) for part in DATA] for params in (PARAMS, after)
        ]
        forget, retain = np.subtract(losses[1], losses[0])
        assert forget > 0.1
        assert retain < 0.5 * forget

    def test_samples_are_drawn_by_the_key_and_all_are_taken_where_there_are_few(self):
        few = {"damping": 0.1, "num_samples": 2}
        first, other = update(**few), update(key=jax.random.key(5), **few)
        assert np.array_equal(first, update(**few))
        assert np.max(np.abs(first - other)) > 1e-2 * np.max(np.abs(first))
        subsets = [np.sort(data_lib.permutation(key, N_RETAIN)[:2]) for key in (KEY, jax.random.key(5))]
        for got, chosen in zip((first, other), subsets, strict=True):
            close(got, 10 * dense_inverse_product(gradients("retain")[chosen], difference(), 0.1))
        close(update(damping=0.1, num_samples=10), update(damping=0.1, num_samples=99, key=jax.random.key(5)))


class TestAuthors:
    def recursion(self, constant):
        """The published recursion, in float64."""
        k, o = difference(), gradients("retain")[0]
        for g in gradients("retain")[1 : constant + 2]:
            t = o @ g
            k = k - k @ g / (constant + t) * o
            o = o - t / (constant + t) * o
        return k

    @pytest.mark.parametrize("constant", [1000, 5])
    def test_it_follows_the_published_recursion_over_so_many_examples_and_two(self, constant):
        # With 5 it must stop after 7 of the 10 examples.
        close(update(mode="authors", num_samples=constant, alpha=3.0), 3 * self.recursion(constant))

    def test_its_correction_is_parallel_to_the_first_gradient_and_far_from_the_inverse(self):
        first = gradients("retain")[0]
        correction = update(mode="authors", num_samples=20, alpha=1.0) - difference()
        cosine = correction @ first / np.linalg.norm(correction) / np.linalg.norm(first)
        assert abs(cosine) > 1 - 1e-4
        exact = update(num_samples=20, alpha=1.0) - difference()
        assert np.linalg.norm(correction - exact) > 0.5 * np.linalg.norm(exact)

    def test_it_draws_nothing(self):
        settings = {"mode": "authors", "num_samples": 2}
        assert np.array_equal(update(**settings), update(key=jax.random.key(5), **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "thesis"}, "mode is 'thesis'; choose one of paper, authors"),
        ({"damping": 0.0}, "damping must be above 0, got 0.0"),
        ({"damping": float("nan")}, "damping must be above 0, got nan"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        influence(LOSS, **settings)


def test_an_update_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="the influence update is not finite"):
        influence(LOSS, alpha=1e300).init(KEY, PARAMS, STATE, DATA)


def test_infinity_that_was_there_before_may_stay():
    def loss(params, model_state, batch, **options):
        value, model_state = LOSS(params["net"], model_state, batch, **options)
        return value + jax.nn.softmax(params["mask"])[0], model_state

    params = {"net": PARAMS, "mask": jnp.array([0.0, -jnp.inf])}
    moved = influence(loss).init(KEY, params, STATE, DATA).params
    assert np.isneginf(moved["mask"][1])
    assert not same_bits(moved["net"], PARAMS)


@pytest.mark.parametrize("mode", ["paper", "authors"])
def test_an_original_with_nan_is_refused(mode):
    params = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), PARAMS)
    with pytest.raises(InputError, match=r"check .*the original weights"):
        influence(LOSS, mode=mode).init(KEY, params, STATE, DATA)


@pytest.mark.parametrize("mode", ["paper", "authors"])
def test_a_loss_in_parts_gives_the_same_step(mode):
    parts = microbatched(LOSS, 2)
    np.testing.assert_allclose(flat(update(mode=mode)), flat(update(loss_fn=parts, mode=mode)), rtol=1e-4, atol=1e-5)
