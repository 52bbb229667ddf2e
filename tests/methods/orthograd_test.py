"""OrthoGrad: against a QR decomposition in float64, alone and over whole runs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import Batch
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import cross_entropy, microbatched
from scissorhands_jax.methods import METHODS, orthograd
from scissorhands_jax.methods.orthograd import orthogonal_part
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training.loop import run
from tests.comparison import same_bits
from tests.methods import example, linear
from tests.methods.students import PLAIN_SGD, STATE
from tests.training import clusters

KEY = jax.random.key(5)
WIDTH = linear.SIZE * linear.CLASSES + linear.CLASSES


def tree_of(vector, dtype=jnp.float32):
    """A vector, or rows of vectors, as kernel and bias."""
    kernel, bias = np.split(vector, [linear.SIZE * linear.CLASSES], axis=-1)
    kernel = kernel.reshape(*vector.shape[:-1], linear.SIZE, linear.CLASSES)
    return {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.asarray(bias, dtype)}


def reference(vector, rows):
    """The vector without its part in the span of the rows, by QR in float64; dependent rows must be left out before."""
    basis, _ = np.linalg.qr(np.asarray(rows, np.float64).T)
    return vector - basis @ (basis.T @ vector)


def part(vector, rows):
    return linear.flat(orthogonal_part(tree_of(vector), tree_of(rows)))


def check_orthogonal(rest, rows, scale, tolerance=1e-5):
    lengths = np.linalg.norm(rows, axis=1)
    assert np.all(np.abs(rows @ rest) <= tolerance * lengths * scale)


class TestOrthogonalPart:
    rng = np.random.default_rng(3)
    vector = rng.normal(size=WIDTH)
    drawn = rng.normal(size=(8, WIDTH))

    @pytest.mark.parametrize("count", [1, 3, 8])
    def test_it_is_that_of_a_qr_decomposition_and_orthogonal_to_every_row(self, count):
        rows = self.drawn[:count]
        rest = part(self.vector, rows)
        np.testing.assert_allclose(rest, reference(self.vector, rows), atol=1e-5)
        check_orthogonal(rest, rows, np.linalg.norm(self.vector), 1e-6)
        # Not only to their mean: alone, the projection against the mean leaves the single rows.
        if count > 1:
            of_mean = part(self.vector, rows.mean(axis=0, keepdims=True))
            assert np.abs(rows @ of_mean).max() > 0.1

    def test_rows_of_any_scale_count_alike(self):
        scales = 10.0 ** np.array([-12, -8, -4, 0, 2, 4, 8, 12])
        scaled = part(self.vector, scales[:, None] * self.drawn)
        np.testing.assert_allclose(scaled, reference(self.vector, self.drawn), atol=1e-5)

    def test_nearly_dependent_rows_stay_two_directions(self):
        rows = np.stack([self.drawn[0], self.drawn[0] + 1e-2 * self.drawn[1], self.drawn[2]])
        np.testing.assert_allclose(part(self.vector, rows), reference(self.vector, rows), atol=1e-3)
        check_orthogonal(part(self.vector, rows), rows, np.linalg.norm(self.vector))

    def test_dependent_and_zero_rows_change_nothing(self):
        twice = np.concatenate([self.drawn[:3], 2 * self.drawn[:3], np.zeros((2, WIDTH)), self.drawn[:1]])
        np.testing.assert_allclose(part(self.vector, twice), reference(self.vector, self.drawn[:3]), atol=1e-5)
        np.testing.assert_allclose(part(self.vector, np.zeros((2, WIDTH))), self.vector, rtol=1e-6)

    def test_inside_the_span_nothing_is_left(self):
        inside = self.drawn.T @ self.rng.normal(size=8)
        assert np.linalg.norm(part(inside, self.drawn)) < 1e-5 * np.linalg.norm(inside)
        everything = self.rng.normal(size=(2 * WIDTH, WIDTH))
        assert np.linalg.norm(part(self.vector, everything)) < 1e-4 * np.linalg.norm(self.vector)

    def test_what_is_orthogonal_already_stays(self):
        outside = reference(self.vector, self.drawn)
        np.testing.assert_allclose(part(outside, self.drawn), outside, atol=1e-6)
        assert np.linalg.norm(part(np.zeros(WIDTH), self.drawn)) == 0

    def test_narrow_types_are_computed_in_float32_and_kept(self):
        rows, tree = tree_of(self.drawn, jnp.bfloat16), tree_of(self.vector, jnp.bfloat16)
        rest = orthogonal_part(tree, rows)
        chex.assert_trees_all_equal_shapes_and_dtypes(rest, tree)
        expected = reference(linear.flat(tree), linear.flat(rows))
        np.testing.assert_allclose(linear.flat(rest), expected, atol=2e-2)


def test_a_run_is_that_of_float64():
    params = linear.network()
    method = orthograd(linear.LOSS, sgd(0.2, momentum=0.5, weight_decay=0.01), batch_size=4, forget_batch_size=3)
    result = run(method, KEY, params, (), linear.DATA, num_epochs=3)
    original = weights = linear.flat(params)
    optimizer = linear.Sgd(0.2, 0.5, 0.01)
    _, batch_key = jax.random.split(KEY)
    for epoch in range(3):
        for batch in method.batches(batch_key, linear.DATA, epoch):
            forget, retain = data_lib.gather(linear.DATA, batch)
            rows = linear.cross_entropy_rows(weights, retain["image"], retain["label"])
            ascent = linear.cross_entropy_rows(weights, forget["image"], forget["label"]).mean(axis=0)
            assert rows.shape == (4, WIDTH)
            weights = optimizer.step(weights, 0.5 * rows.mean(axis=0) - 0.5 * reference(ascent, rows))
    linear.close(linear.flat(result.params), weights, original)


def step(method, params=None, batch=None, state=()):
    """What a step subtracts from the weights, and its metrics."""
    params = linear.network() if params is None else params
    batch = data_lib.gather(linear.DATA, Batch(np.arange(7), np.arange(5))) if batch is None else batch
    carry = method.init(KEY, params, state, linear.DATA)
    after, metrics = jax.jit(method.step)(carry, batch)
    assert same_bits(after.model_state, state)
    return jax.tree.map(np.subtract, jax.device_get(params), jax.device_get(after.params)), jax.device_get(metrics)


class TestStep:
    def test_ascent_changes_no_retained_loss_to_first_order_and_raises_the_forget_loss(self):
        forget, retain = data_lib.gather(linear.DATA, Batch(np.arange(7), np.arange(5)))
        followed, metrics = step(orthograd(linear.LOSS, PLAIN_SGD, retain_weight=0.0))
        start, way = linear.flat(linear.network()), -linear.flat(followed)

        def changes(part, size):
            losses = [linear.cross_entropies(w, part["image"], part["label"]) for w in (start, start + size * way)]
            return losses[1] - losses[0]

        # A quadratic change falls to a hundredth where the step falls to a tenth; a linear one to a tenth.
        np.testing.assert_allclose(changes(retain, 1e-3), changes(retain, 1e-2) / 100, rtol=0.1, atol=1e-9)
        raised = changes(forget, 1e-3).mean()
        np.testing.assert_allclose(raised, 1e-3 * way @ way, rtol=1e-2)  # the derivative is |g_f - P g_f|^2
        assert raised > 100 * np.abs(changes(retain, 1e-3)).max()
        ascent = linear.cross_entropy_rows(start, forget["image"], forget["label"]).mean(axis=0)
        np.testing.assert_allclose(metrics["kept_share"], np.linalg.norm(way) / np.linalg.norm(ascent), rtol=1e-5)
        for name, part in (("loss_forget", forget), ("loss_retain", retain)):
            expected = linear.cross_entropies(start, part["image"], part["label"]).mean()
            np.testing.assert_allclose(metrics[name], expected, rtol=1e-5)

    def test_retained_examples_themselves_cannot_be_forgotten(self):
        retain = data_lib.take(linear.DATA.retain, np.arange(5))
        batch = Batch(data_lib.take(retain, np.arange(2)), retain)
        followed, metrics = step(orthograd(linear.LOSS, PLAIN_SGD, retain_weight=0.0), batch=batch)
        assert metrics["kept_share"] < 1e-5
        assert np.abs(linear.flat(followed)).max() < 1e-5

    def test_gradients_are_those_of_evaluation_mode_one_example_at_a_time(self):
        params, data = example.original()[0], example.DATA
        followed, _ = step(orthograd(example.LOSS, PLAIN_SGD, retain_weight=0.25), params, Batch(*data), STATE)

        def loss(params, image, label):
            return cross_entropy(example.apply(params, STATE, image, train=False)[0], label)

        gradient = jax.jit(jax.grad(loss))

        def vector(image, label):
            leaves = jax.tree.leaves(gradient(params, image, label))
            return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])

        forget = vector(data.forget["image"], data.forget["label"])
        rows = np.stack([vector(data.retain["image"][i : i + 1], data.retain["label"][i : i + 1]) for i in range(10)])
        found = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(followed)])
        expected = 0.25 * rows.mean(axis=0) - 0.75 * reference(forget, rows)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())

    def test_microbatches_change_nothing(self):
        batch = data_lib.gather(linear.DATA, Batch(np.arange(6), np.arange(6)))
        whole, parts = (step(orthograd(microbatched(linear.LOSS, n), PLAIN_SGD), batch=batch) for n in (1, 3))
        chex.assert_trees_all_close(whole, parts, rtol=1e-4, atol=1e-6)


def test_it_forgets_a_class_and_keeps_the_others():
    method = METHODS["orthograd"](learning_rate=0.1, batch_size=4).build(clusters.MODEL, clusters.LOSS, 3)
    _, after = clusters.outcome(method, 20)
    assert after.acc_forget == 0
    assert after.acc_retain == 1


def test_settings_are_counted_and_checked():
    assert METHODS["orthograd"](batch_size=48).num_gradients == 50
    assert METHODS["munba"](batch_size=48).num_gradients == 2
    for weight in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=f"retain_weight must be at least 0 and below 1, got {weight}"):
            orthograd(linear.LOSS, PLAIN_SGD, retain_weight=weight)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        orthograd(linear.LOSS, PLAIN_SGD, forget_batch_size=0)


def test_a_step_holds_the_gradients_that_it_says_and_on_cpu_two_copies_at_most():
    """The compiler's temporaries of a network of many weights and few activations."""
    params = {"kernel": jnp.ones((400, 50)), "bias": jnp.ones(50)}
    batch = Batch(*({"image": jnp.ones((n, 400)), "label": jnp.zeros(n, jnp.int32)} for n in (4, 16)))
    settings = METHODS["orthograd"](batch_size=16)
    method = settings.build(linear.MODEL, linear.LOSS, 50)
    carry = method.init(KEY, params, (), batch)
    used = jax.jit(method.step).lower(carry, batch).compile().memory_analysis().temp_size_in_bytes
    assert 0.8 < used / (settings.num_gradients * trees.nbytes(params)) < 3.2
