"""Bad teaching: who teaches whom, and what is forgotten."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import bad_teacher
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.tasks import CLASSIFICATION, Metric
from tests import tiny
from tests.comparison import same_bits
from tests.methods.example import DATA, KEY, MODEL, forward, original
from tests.methods.students import HOST, PLAIN_SGD, STATE, STATELESS, T, divergence, labels_of, step_from
from tests.training import clusters


class TestBadTeacher:
    def bad_teacher(self, model=STATELESS, **changes):
        settings = {"retain_fraction": 0.3, "temperature": T, "batch_size": 4}
        return bad_teacher(model, PLAIN_SGD, **(settings | changes))

    def test_steps_descend_the_divergence_from_the_teacher_of_each_part(self):
        method = self.bad_teacher()
        batch = data_lib.gather(HOST, next(iter(method.batches(KEY, DATA, 0))))
        assert labels_of(batch) == [(3,), (1,)]
        student = original(5)[0]

        def objective(params):
            forget, retain = batch.forget["image"], batch.retain["image"]
            # 3 of 4 examples are forget examples, and every example counts the same.
            from_bad = divergence(forward(original(1)[0], forget), forward(params, forget))
            from_good = divergence(forward(original()[0], retain), forward(params, retain))
            return 0.75 * from_bad + 0.25 * from_good

        followed, metrics = step_from(method, student, batch)
        value, expected = jax.jit(jax.value_and_grad(objective))(student)
        chex.assert_trees_all_close(followed, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(metrics["loss_mixed"], value, rtol=1e-4)

    def test_outputs_may_be_of_any_form(self):
        """And arrays that one part alone has, such as names of examples, are left out."""

        def apply(params, model_state, x, *, train, key=None):
            logits, model_state = STATELESS.apply(params, model_state, x, train=train, key=key)
            return {"logits": logits, "size": x.sum(axis=-1)}, model_state

        task = dataclasses.replace(
            CLASSIFICATION,
            name="two outputs",
            labels=None,
            metrics=(Metric("err", "", lambda *pair: 0.0),),
            divergence=lambda teacher, outputs, *rest: CLASSIFICATION.divergence(
                teacher["logits"], outputs["logits"], *rest
            ),
        )
        method, other = self.bad_teacher(), self.bad_teacher(STATELESS._replace(apply=apply), task=task)
        batch = data_lib.gather(HOST, next(iter(method.batches(KEY, DATA, 0))))
        named = batch._replace(forget={**batch.forget, "id": jnp.arange(len(batch.forget["label"]))})
        expected, found = step_from(method, original(5)[0], batch), step_from(other, original(5)[0], named)
        chex.assert_trees_all_close(found, expected, rtol=1e-5)

    def test_teachers_are_the_original_and_a_drawn_network_with_its_own_state(self):
        def init(key):
            kernel, mean = jax.random.split(key)
            drawn = jax.tree.map(lambda leaf: jax.random.normal(kernel, leaf.shape), original()[0])
            return drawn, {"mean": jax.random.normal(mean, (4,)), "count": jnp.int32(0)}

        method = self.bad_teacher(Model(init, MODEL.apply))
        carry = method.init(KEY, original()[0], STATE, DATA)
        assert same_bits(carry.aux.competent, (original()[0], STATE))
        other = method.init(jax.random.key(1), original()[0], STATE, DATA)
        assert not same_bits(carry.aux.incompetent, other.aux.incompetent)
        batch = data_lib.gather(HOST, next(iter(method.batches(KEY, DATA, 0))))
        later, metrics = jax.jit(method.step)(carry, batch)
        assert same_bits(later.aux, carry.aux)
        images = jnp.concatenate([batch.forget["image"], batch.retain["image"]])
        noisy = images + 0.1 * jax.random.normal(jax.random.fold_in(carry.key, 0), images.shape)
        student = forward(original()[0], noisy - noisy.mean(axis=0, keepdims=True))
        bad, state = carry.aux.incompetent
        teacher = forward(bad, batch.forget["image"] - 0.1 * state["mean"][None])
        np.testing.assert_allclose(metrics["kl_forget"], divergence(teacher, student[:3]), rtol=1e-4)
        teacher = forward(original()[0], batch.retain["image"] - 0.1 * STATE["mean"][None])
        np.testing.assert_allclose(metrics["kl_retain"], divergence(teacher, student[3:]), rtol=1e-3)

    def test_one_subset_of_the_retain_set_is_read_in_all_epochs(self):
        data = Data(tiny.examples(8), tiny.examples(40))
        method = self.bad_teacher(retain_fraction=0.25)

        def seen(key, epoch):
            return {int(p) for batch in method.batches(key, data, epoch) for p in batch.retain}

        subset = seen(KEY, 0)
        assert len(subset) == 10
        assert subset == seen(KEY, 1) == seen(KEY, 7)
        assert subset != seen(jax.random.key(1), 0)
        orders = [[batch.retain.tolist() for batch in method.batches(KEY, data, epoch)] for epoch in (0, 1)]
        assert orders[0] != orders[1]
        # 8 forget and 10 retain examples: about one to one in a batch of 4.
        assert {(len(b.forget), len(b.retain)) for b in method.batches(KEY, data, 0)} == {(2, 2)}

    @pytest.mark.parametrize(("fraction", "count"), [(1.0, 10), (0.01, 1)])
    def test_the_subset_may_be_all_and_is_never_empty(self, fraction, count):
        batches = self.bad_teacher(retain_fraction=fraction).batches(KEY, DATA, 0)
        assert len({int(p) for batch in batches for p in batch.retain}) == count

    def test_labels_are_not_read(self):
        method = self.bad_teacher()
        data = Data(*({"image": part["image"]} for part in DATA))
        batch = data_lib.gather(data, next(iter(method.batches(KEY, data, 0))))
        _, metrics = jax.eval_shape(method.step, method.init(KEY, original()[0], (), data), batch)
        assert metrics["loss_mixed"].shape == ()

    def test_it_forgets_a_class_and_keeps_the_others(self):
        before, after = clusters.outcome(bad_teacher(clusters.MODEL, sgd(0.1), retain_fraction=0.5, batch_size=16), 20)
        assert after.loss_forget > 3 * before.loss_forget
        assert after.acc_retain == 1

    @pytest.mark.parametrize("fraction", [0.0, 1.1, float("nan")])
    def test_a_fraction_out_of_range_is_refused(self, fraction):
        with pytest.raises(InputError, match=f"retain_fraction must lie above 0 and not above 1, got {fraction}"):
            self.bad_teacher(retain_fraction=fraction)

    def test_a_temperature_out_of_range_is_refused(self):
        with pytest.raises(InputError, match=r"temperature must be above 0 and finite, got -1\.0"):
            self.bad_teacher(temperature=-1.0)
