"""Students and teachers: objectives written out by hand, who teaches whom in which mode, and what is forgotten."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, optimizers
from scissorhands_jax.base import Data, Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import METHODS, bad_teacher, scrub
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training import checkpoints
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.methods.example import DATA, KEY, MODEL, forward, original
from tests.training import clusters

HOST = jax.tree.map(np.asarray, DATA)  # Indexing on the host compiles nothing.
STATE = {"mean": jnp.array([0.5, -1.0, 2.0, 0.0]), "count": jnp.int32(0)}
PLAIN_SGD = sgd(1.0, momentum=0.0, weight_decay=0.0)
T = 3.0


def stateless(params, model_state, x, *, train, key=None):
    return forward(params, x), model_state


STATELESS = Model(lambda key: (original(1)[0], ()), stateless)


@jax.jit
def divergence(teacher, student):
    """The mean of T^2 KL, from probabilities."""
    p, q = (jax.nn.softmax(logits / T) for logits in (teacher, student))
    return T**2 * jnp.mean(jnp.sum(p * (jnp.log(p) - jnp.log(q)), axis=1))


def step_from(method, params, batch):
    """What a step subtracts at other weights than those of the teacher, and its metrics."""
    carry = method.init(KEY, original()[0], (), DATA)._replace(params=params)
    after, metrics = jax.jit(method.step)(carry, batch)
    return jax.tree.map(np.subtract, jax.device_get(params), jax.device_get(after.params)), jax.device_get(metrics)


def labels_of(batch):
    return [None if part is None else part["label"].shape for part in batch]


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
        assert checkpoints.equal(later.aux, (original()[0], STATE))
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
        rates = [optimizers.rate_of(optax.tree_utils.tree_set(state, count=step)) for step in (0, 9, 10, 12, 13, 15)]
        np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"forget_epochs": 0}, "forget_epochs must be at least 1, got 0"),
            ({"kl_weight": -1.0}, "kl_weight and loss_weight must not be negative, got -1.0 and 0.7"),
            ({"loss_weight": -1.0}, "kl_weight and loss_weight must not be negative, got 0.4 and -1.0"),
            ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
            ({"forget_batch_size": 0}, "batch_size must be at least 1, got 0"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, setting, message):
        with pytest.raises(InputError, match=message):
            self.scrub(**setting)


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

    def test_teachers_are_the_original_and_a_drawn_network_with_its_own_state(self):
        def init(key):
            kernel, mean = jax.random.split(key)
            drawn = jax.tree.map(lambda leaf: jax.random.normal(kernel, leaf.shape), original()[0])
            return drawn, {"mean": jax.random.normal(mean, (4,)), "count": jnp.int32(0)}

        method = self.bad_teacher(Model(init, MODEL.apply))
        carry = method.init(KEY, original()[0], STATE, DATA)
        assert checkpoints.equal(carry.aux.competent, (original()[0], STATE))
        other = method.init(jax.random.key(1), original()[0], STATE, DATA)
        assert not checkpoints.equal(carry.aux.incompetent, other.aux.incompetent)
        batch = data_lib.gather(HOST, next(iter(method.batches(KEY, DATA, 0))))
        later, metrics = jax.jit(method.step)(carry, batch)
        assert checkpoints.equal(later.aux, carry.aux)
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
        with pytest.raises(InputError, match=r"temperature must be above 0, got -1\.0"):
            self.bad_teacher(temperature=-1.0)


@pytest.mark.parametrize(("name", "divergence_of"), [("scrub", "kl_forget"), ("bad_teacher", "kl_retain")])
def test_students_and_teachers_see_the_images_that_the_loss_augments(name, divergence_of):
    def augment(key, images):
        return images + jax.random.normal(key, images.shape)

    seen = []
    for change in (augment, None):
        loss_fn = losses.classification_loss(STATELESS, augment=change)
        method = METHODS[name](batch_size=4).build(STATELESS, loss_fn, 3)
        batch = data_lib.gather(HOST, next(iter(method.batches(KEY, DATA, 0))))
        _, metrics = step_from(method, original()[0], batch)
        # The student still is the original, so on the same images nothing tells them apart.
        np.testing.assert_allclose(metrics[divergence_of], 0, atol=1e-5)
        seen.append(metrics["loss_forget" if name == "scrub" else "loss_mixed"])
    assert abs(seen[0] - seen[1]) > 1e-3


@pytest.mark.parametrize("method", [scrub(STATELESS, sgd(0.1)), bad_teacher(STATELESS, sgd(0.1))])
def test_teachers_are_copies(method):
    carry = method.init(KEY, original()[0], (), DATA)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((carry.params, carry.aux))]
    assert len(set(pointers)) == len(pointers)
