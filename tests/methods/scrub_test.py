"""SCRUB: objectives written out by hand, and what is forgotten."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import METHODS, scrub
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training.loop import run
from tests.comparison import rate_of, same_bits
from tests.methods.example import DATA, KEY, MODEL, forward, original
from tests.methods.students import HOST, PLAIN_SGD, STATE, STATELESS, T, divergence, labels_of, step_from


class TestScrub:
    def scrub(self, model=STATELESS, **changes):
        settings = {"kl_weight": 0.4, "loss_weight": 0.7, "temperature": T, "batch_size": 4, "forget_batch_size": 3}
        return scrub(model, PLAIN_SGD, **(settings | changes))

    def test_epochs_pass_over_the_forget_set_first_and_later_only_over_the_retain_set(self):
        method = self.scrub(forget_epochs=2)
        for epoch, max_steps in enumerate((2, 2, 0, 0)):
            batches = list(method.batches(KEY, DATA, epoch))
            kinds = [(batch.forget is None, batch.retain is None) for batch in batches]
            assert kinds == [(False, True)] * max_steps + [(True, False)] * 3
            forgotten = [position for batch in batches[:max_steps] for position in batch.forget]
            assert sorted(forgotten) == list(range(6)) * (max_steps > 0)
            assert {len(batch.retain) for batch in batches[max_steps:]} == {4}

    def test_max_and_min_steps_descend_their_objectives(self):
        teacher, student = original()[0], original(1)[0]
        batches = [data_lib.gather(HOST, b) for b in self.scrub().batches(KEY, DATA, 0)]
        assert [labels_of(batch) for batch in batches[1:3]] == [[(3,), None], [None, (4,)]]

        def max_objective(params, x, y):
            return -divergence(forward(teacher, x), forward(params, x))

        def min_objective(params, x, y):
            chances = jax.nn.softmax(forward(params, x))[jnp.arange(len(y)), y]
            return 0.4 * divergence(forward(teacher, x), forward(params, x)) - 0.7 * jnp.mean(jnp.log(chances))

        for batch, objective in ((batches[0], max_objective), (batches[2], min_objective)):
            examples = batch.forget or batch.retain
            followed, metrics = step_from(self.scrub(), student, batch)
            value, expected = jax.jit(jax.value_and_grad(objective))(student, examples["image"], examples["label"])
            chex.assert_trees_all_close(followed, expected, rtol=1e-4, atol=1e-5)
            if batch.retain is None:
                np.testing.assert_allclose(-metrics["kl_forget"], value, rtol=1e-4)
            else:
                found = 0.4 * metrics["kl_retain"] + 0.7 * metrics["loss_retain"]
                np.testing.assert_allclose(found, value, rtol=1e-4)

    def test_the_teacher_is_the_original_in_evaluation_mode(self):
        # In evaluation mode the network subtracts a tenth of the running mean, in training mode that of the batch.
        method = self.scrub(MODEL)
        carry = method.init(KEY, original()[0], STATE, DATA)
        batch = data_lib.gather(HOST, next(iter(method.batches(KEY, DATA, 0))))
        later, metrics = jax.jit(method.step)(carry._replace(model_state={**STATE, "mean": jnp.zeros(4)}), batch)
        x = batch.forget["image"]
        # The student's noise, drawn from the step's key.
        noisy = x + 0.1 * jax.random.normal(jax.random.fold_in(carry.key, 0), x.shape)
        student = forward(original()[0], noisy - noisy.mean(axis=0, keepdims=True))
        teacher = forward(original()[0], x - 0.1 * STATE["mean"][None])
        np.testing.assert_allclose(metrics["kl_forget"], divergence(teacher, student), rtol=1e-4)
        assert same_bits(later.aux, (original()[0], STATE))
        assert int(later.model_state["count"]) == 1

    def test_it_leaves_its_teacher_on_the_forget_set_and_learns_the_retain_set(self):
        settings = {"kl_weight": 4.0, "loss_weight": 0.5, "temperature": 1.0, "forget_epochs": 3}
        method = scrub(MODEL, sgd(0.1), batch_size=5, forget_batch_size=6, **settings)
        start = original()
        result = run(method, KEY, *start, DATA, num_epochs=4)
        logits = [
            [losses.teacher_logits(MODEL, network, part["image"]) for part in DATA]
            for network in (start, (result.params, result.model_state))
        ]
        forget, retain = (losses.kl_divergence(*pair) for pair in zip(*logits, strict=True))
        before, after = (losses.cross_entropy(network[1], DATA.retain["label"]) for network in logits)
        assert forget > 2 * retain
        assert after < 0.9 * before

    def test_the_learning_rate_drops_with_the_epochs_although_they_differ_in_length(self):
        settings = METHODS["scrub"](learning_rate=0.1, batch_size=4, forget_batch_size=3, milestones=(2, 3))
        method = settings.build(STATELESS, losses.classification_loss(STATELESS), 3)
        state = method.init(KEY, original()[0], (), DATA).opt_state
        assert [len(list(method.batches(KEY, DATA, epoch))) for epoch in range(4)] == [5, 5, 3, 3]
        rates = [rate_of(optax.tree_utils.tree_set(state, count=step)) for step in (0, 9, 10, 12, 13, 15)]
        np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"forget_epochs": 0}, "forget_epochs must be at least 1, got 0"),
            ({"kl_weight": -1.0}, "kl_weight must not be negative, got -1.0"),
            ({"loss_weight": -1.0}, "loss_weight must not be negative, got -1.0"),
            ({"temperature": 0.0}, "temperature must be above 0 and finite, got 0.0"),
            ({"forget_batch_size": 0}, "batch_size must be at least 1, got 0"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, setting, message):
        with pytest.raises(InputError, match=message):
            self.scrub(**setting)
