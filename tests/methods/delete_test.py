"""DELETE: the whole method in float64, its gradient, and what is kept without retained examples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses
from scissorhands_jax.base import Batch, Data
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import METHODS, delete
from scissorhands_jax.methods.delete import losses_without_the_true_class
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training.loop import run
from tests.comparison import same_bits
from tests.methods import example, linear
from tests.methods.students import PLAIN_SGD, STATE
from tests.training import clusters

KEY = jax.random.key(5)
NONE = jax.tree.map(lambda leaf: leaf[:0], linear.DATA.retain)


def targets(weights, x, labels):
    """The original's probabilities without the true class, as shares of what is left."""
    chances = linear.softmax(linear.logits(weights, x))
    chances[np.arange(len(x)), labels] = 0
    return chances / chances.sum(axis=1, keepdims=True)


def test_a_run_is_that_of_float64_and_retained_examples_do_not_matter():
    params = linear.network()
    method = delete(linear.MODEL, sgd(0.3, momentum=0.9, weight_decay=0.01), batch_size=3)
    retain_sets = (None, NONE, linear.DATA.retain)
    results = [run(method, KEY, params, (), linear.DATA._replace(retain=part), num_epochs=3) for part in retain_sets]
    assert [result.steps for result in results] == [9] * 3
    assert same_bits(results[0].params, results[1].params)
    assert same_bits(results[0].params, results[2].params)

    original = weights = linear.flat(params)
    optimizer = linear.Sgd(0.3, 0.9, 0.01)
    _, batch_key = jax.random.split(KEY)
    for epoch in range(3):
        for batch in method.batches(batch_key, linear.DATA, epoch):
            x, labels = (linear.DATA.forget[name][batch.forget] for name in ("image", "label"))
            slopes = linear.softmax(linear.logits(weights, x)) - targets(original, x, labels)
            weights = optimizer.step(weights, linear.rows(x, slopes).mean(axis=0))
    linear.close(linear.flat(results[0].params), weights, original)


class TestLoss:
    teacher, student = (np.random.default_rng(seed).normal(scale=3, size=(6, 4)).astype(np.float32) for seed in (0, 1))
    labels = np.array([0, 1, 2, 3, 0, 1], np.int32)

    def q(self):
        chances = linear.softmax(self.teacher.astype(float))
        chances[np.arange(6), self.labels] = 0
        return chances / chances.sum(axis=1, keepdims=True)

    def test_it_is_the_divergence_over_the_other_classes(self):
        found = losses_without_the_true_class(self.teacher, self.student, self.labels)
        logs, q = np.log(linear.softmax(self.student.astype(float))), self.q()
        expected = [
            sum(q[n, j] * (np.log(q[n, j]) - logs[n, j]) for j in range(4) if j != label)
            for n, label in enumerate(self.labels)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_its_gradient_is_the_difference_of_the_probabilities(self):
        slope = jax.grad(lambda s: losses_without_the_true_class(self.teacher, s, self.labels).sum())(self.student)
        np.testing.assert_allclose(slope, linear.softmax(self.student.astype(float)) - self.q(), atol=1e-6)

    def test_it_is_zero_for_a_student_without_the_class_and_minus_log_of_the_rest_at_the_start(self):
        without = np.where(np.eye(4, dtype=bool)[self.labels], -100, self.teacher)
        np.testing.assert_allclose(losses_without_the_true_class(self.teacher, without, self.labels), 0, atol=1e-6)
        rest = 1 - linear.softmax(self.teacher.astype(float))[np.arange(6), self.labels]
        found = losses_without_the_true_class(self.teacher, self.teacher, self.labels)
        np.testing.assert_allclose(found, -np.log(rest), rtol=1e-4, atol=1e-6)

    def test_certain_networks_and_half_precision_give_finite_numbers(self):
        sure = 1e4 * np.eye(4, dtype=np.float32)[self.labels]
        for dtype in (jnp.float32, jnp.float16, jnp.bfloat16):
            logits = jnp.asarray(sure, dtype)
            value, slope = jax.value_and_grad(
                lambda s, t=logits: losses_without_the_true_class(t, s, jnp.asarray(self.labels)).sum()
            )(logits)
            assert jnp.isfinite(value)
            np.testing.assert_allclose(slope, np.where(np.eye(4)[self.labels], 1, -1 / 3), atol=1e-2)

    def test_one_class_is_refused(self):
        with pytest.raises(InputError, match="DELETE needs at least 2 classes to leave one out, got 1"):
            losses_without_the_true_class(jnp.zeros((2, 1)), jnp.zeros((2, 1)), jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize("freeze_state", [False, True])
def test_the_teacher_is_in_evaluation_mode_and_the_student_as_asked(freeze_state):
    params, batch = example.original()[0], Batch(forget=example.DATA.forget)
    method = delete(example.MODEL, PLAIN_SGD, batch_size=6, freeze_state=freeze_state)
    carry = method.init(KEY, params, STATE, example.DATA)
    moved = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    after, metrics = jax.jit(method.step)(carry._replace(params=moved), batch)
    x, labels = batch.forget["image"], batch.forget["label"]
    key = jax.random.fold_in(carry.key, 0)

    @jax.jit
    def expected():
        teacher, _ = example.MODEL.apply(params, STATE, x, train=False)
        student, state = example.MODEL.apply(moved, STATE, x, train=not freeze_state, key=None if freeze_state else key)
        chances = jax.nn.softmax(teacher) * (1 - jax.nn.one_hot(labels, 3))
        chances = chances / chances.sum(axis=1, keepdims=True)
        ratios = jnp.log(jnp.maximum(chances, 1e-30)) - jax.nn.log_softmax(student)
        terms = jnp.where(chances > 0, chances * ratios, 0)
        return terms.sum(axis=1).mean(), losses.cross_entropy(student, labels), state

    value, loss, state = expected()
    np.testing.assert_allclose(metrics["loss_distilled"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_forget"], loss, rtol=1e-5)
    chex.assert_trees_all_close(after.model_state, state, rtol=1e-6)
    assert same_bits(after.model_state, STATE) == freeze_state
    assert same_bits(after.aux, (params, STATE))


def test_microbatches_change_nothing_without_batchnorm():
    batch = data_lib.gather(jax.tree.map(jnp.asarray, linear.DATA), Batch(forget=np.arange(6)))
    after = []
    for parts in (1, 3):
        method = delete(linear.MODEL, PLAIN_SGD, batch_size=6, microbatches=parts)
        carry = method.init(KEY, linear.network(), (), linear.DATA)
        after.append(jax.jit(method.step)(carry._replace(params=linear.network(2)), batch))
    chex.assert_trees_all_close(after[0][0].params, after[1][0].params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(after[0][1], after[1][1], rtol=1e-5)


def test_it_forgets_a_class_and_keeps_the_others_without_their_examples():
    method = delete(clusters.MODEL, sgd(0.01), batch_size=16)
    data = Data(clusters.data().forget, None)
    result = run(method, KEY, *clusters.original(), data, num_epochs=20)
    for part, share in zip(clusters.data(), (0, 1), strict=True):
        logits, _ = clusters.apply(result.params, result.model_state, part["image"], train=False)
        assert float((logits.argmax(axis=1) == part["label"]).mean()) == share


def test_settings_are_those_of_the_authors_and_are_checked():
    settings = METHODS["delete"]()
    values = (settings.epochs, settings.batch_size, settings.learning_rate, settings.momentum, settings.weight_decay)
    assert values == (20, 128, 1e-4, 0.9, 0.0)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        delete(linear.MODEL, PLAIN_SGD, batch_size=0)
    with pytest.raises(InputError, match="cannot be divided into 3 equal microbatches"):
        delete(linear.MODEL, PLAIN_SGD, batch_size=4, microbatches=3)
    with pytest.raises(InputError, match="the forget set is empty"):
        delete(linear.MODEL, PLAIN_SGD).init(KEY, linear.network(), (), Data(None, linear.DATA.retain))
