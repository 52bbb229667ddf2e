"""What every method promises, and what Scissorhands promises beyond that."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import Batch, Data, Method, Model, lift
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import classification_loss, cross_entropy
from scissorhands_jax.methods import METHODS, Semantics, TrainingSettings, scissorhands, trim_network
from scissorhands_jax.methods.scissorhands import constraint_gradients
from scissorhands_jax.optimizers import rate_of, sgd
from scissorhands_jax.reinit import ones
from scissorhands_jax.training import checkpoints
from scissorhands_jax.training.checkpoints import Checkpointer
from scissorhands_jax.training.loop import run
from scissorhands_jax.training.sharding import make_layout
from tests import tiny
from tests.compilations import Compilations

KEY = jax.random.key(11)


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def original(seed=0, dtype=jnp.float32):
    """Params as a list of a dict, a named tuple and a tuple; a state that moves, with a counter."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    params = [{"hidden": Layer(draw(4, 6), draw(6))}, (draw(6, 3),)]
    return params, {"mean": jnp.zeros(4), "count": jnp.zeros((), jnp.int32)}


NAMES = ["0/hidden/kernel", "0/hidden/bias", "1/0"]


def forward(params, x):
    (first, (head,)) = params
    return jnp.tanh(x @ first["hidden"].kernel + first["hidden"].bias[None]) @ head


def apply(params, model_state, x, *, train, key=None):
    if not train:
        return forward(params, x - 0.1 * model_state["mean"][None]), model_state
    noisy = x if key is None else x + 0.1 * jax.random.normal(key, x.shape)
    mean = 0.9 * model_state["mean"] + 0.1 * noisy.mean(axis=0)
    return forward(params, noisy - noisy.mean(axis=0, keepdims=True)), {"mean": mean, "count": model_state["count"] + 1}


MODEL = Model(lambda key: original(1), apply)
LOSS = classification_loss(MODEL)


def plain_loss(params, batch):
    return cross_entropy(forward(params, batch["image"]), batch["label"])


def examples(count, seed):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(count, 4)).astype(np.float32),
        "label": rng.integers(0, 3, count).astype(np.int32),
    }


GRADIENT = jax.jit(jax.grad(plain_loss))
DATA = jax.tree.map(jnp.asarray, Data(examples(6, 1), examples(10, 2)))


STEPPING = [name for name, settings in METHODS.items() if issubclass(settings, TrainingSettings)]
AT_ONCE = [name for name in METHODS if name not in STEPPING]
READS_LOGITS = {"scrub", "bad_teacher", "boundary_shrink", "boundary_expand"}  # All others take any loss.


def build(name, loss_fn=LOSS, model=MODEL, **changes):
    given = {"epochs": 2, "batch_size": 4}
    if name in STEPPING:
        given["learning_rate"] = 0.05
    if name == "boundary_shrink":
        given["clip"] = False  # our images are no pixels
    settings = dataclasses.replace(METHODS[name](), **given | changes)
    return settings.build(model, loss_fn, 3)


class Epoch(NamedTuple):
    """One epoch of a method, step by step and not compiled."""

    method: Method
    batches: list  # of examples
    carries: list  # before the first step and after each
    metrics: list


def epoch_of(method, data=DATA, start=None, steps=None):
    params, model_state = (original()[0], ()) if start is None else start
    carry = method.begin_epoch(method.init(KEY, params, model_state, data), data)
    batches = [data_lib.gather(data, batch) for batch in itertools.islice(method.batches(KEY, data, 0), steps)]
    carries, metrics = [carry], []
    for batch in batches:
        carry, values = method.step(carry, batch)
        carries.append(carry)
        metrics.append(jax.device_get(values))
    return Epoch(method, batches, carries, metrics)


@functools.cache
def contract_epoch(name):
    return epoch_of(build(name), start=original())


def kinds_of(batches):
    return {str(jax.tree.map(jnp.shape, batch)) for batch in batches}


@pytest.mark.parametrize("name", STEPPING)
class TestContract:
    def test_steps_advance_by_one_keep_structure_and_types_and_are_finite(self, name):
        epoch = contract_epoch(name)
        assert len(epoch.batches) >= 2
        for number, (carry, metrics) in enumerate(zip(epoch.carries[1:], epoch.metrics, strict=True), start=1):
            chex.assert_trees_all_equal_shapes_and_dtypes(carry, epoch.carries[0])
            assert int(carry.step) == number
            chex.assert_tree_all_finite((carry.params, carry.model_state, carry.opt_state, carry.aux))
            chex.assert_tree_all_finite(metrics)
            assert float(metrics["grad_norm"]) > 0
            assert any(metric.startswith("loss_") for metric in metrics)
        assert not checkpoints.equal(epoch.carries[0].params, epoch.carries[1].params)
        # Each forward pass in training mode moves the statistics: one a step, or two where batches stay apart.
        moved = int(epoch.carries[-1].model_state["count"] - epoch.carries[0].model_state["count"])
        assert len(epoch.batches) <= moved <= 2 * len(epoch.batches)
        params, model_state = epoch.method.finish(epoch.carries[-1])
        chex.assert_trees_all_equal_shapes_and_dtypes((params, model_state), original())

    def test_a_step_is_a_pure_function_of_carry_and_batch(self, name):
        epoch = contract_epoch(name)
        for _ in range(2):
            carry, metrics = epoch.method.step(epoch.carries[0], epoch.batches[0])
            assert checkpoints.equal(carry, epoch.carries[1])
            chex.assert_trees_all_equal(jax.device_get(metrics), epoch.metrics[0])

    def test_init_is_a_pure_function_and_depends_on_nothing_but_its_arguments(self, name):
        epoch, (params, model_state) = contract_epoch(name), original()
        again = epoch.method.begin_epoch(epoch.method.init(KEY, params, model_state, DATA), DATA)
        assert checkpoints.equal(again, epoch.carries[0])
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, model_state)))
        assert checkpoints.equal((params, model_state), original())

    def test_steps_depend_on_the_key(self, name):
        epoch = contract_epoch(name)
        other, _ = epoch.method.step(epoch.carries[0]._replace(key=jax.random.key(99)), epoch.batches[0])
        assert not checkpoints.equal(other.params, epoch.carries[1].params)

    def test_batches_are_positions_that_key_and_epoch_decide(self, name):
        method = contract_epoch(name).method

        def batches(key, epoch):
            return [jax.tree.map(np.asarray, batch) for batch in method.batches(key, DATA, epoch)]

        first = batches(KEY, 0)
        chex.assert_trees_all_equal(first, batches(KEY, 0))
        for other in (batches(KEY, 1), batches(jax.random.key(12), 0)):
            assert len(other) == len(first)
            assert not checkpoints.equal(first, other)
        for batch in first:
            assert isinstance(batch, Batch)
            for positions, part in zip(batch, DATA, strict=True):
                if positions is not None:
                    assert positions.dtype == np.int32
                    assert 0 <= positions.min() <= positions.max() < data_lib.size(part)
        # Two kinds of steps at most, so there are two compilations at most.
        assert len(kinds_of(first)) <= 2

    def test_every_example_of_the_parts_that_are_read_is_seen_in_an_epoch(self, name):
        batches = list(contract_epoch(name).method.batches(KEY, DATA, 0))
        shares = {"retain": getattr(METHODS[name](), "retain_fraction", 1)}
        for part, dataset in DATA._asdict().items():
            passes = [getattr(batch, part) for batch in batches]
            seen = {int(position) for positions in passes if positions is not None for position in positions}
            assert len(seen) in (0, round(shares.get(part, 1) * data_lib.size(dataset)))

    def test_a_plain_loss_over_any_pytree_will_do(self, name):
        def stateless(params, model_state, x, *, train, key=None):
            return forward(params, x), model_state

        model = Model(lambda key: (original(1)[0], ()), stateless if name in READS_LOGITS else None)
        method = build(name, lift(plain_loss), model)
        carry = method.init(KEY, original()[0], (), DATA)
        for positions in list(method.batches(KEY, DATA, 0))[:1]:
            after, metrics = jax.eval_shape(method.step, carry, data_lib.gather(DATA, positions))
            chex.assert_trees_all_equal_shapes_and_dtypes(after, carry)
            assert metrics["grad_norm"].shape == ()

    def test_settings_out_of_range_are_refused(self, name):
        with pytest.raises(InputError, match="batch_size must be at least 1"):
            build(name, batch_size=0)
        with pytest.raises(InputError, match="learning_rate must not be negative"):
            build(name, learning_rate=-1.0)

    def test_an_empty_part_that_is_read_is_refused(self, name):
        method, (params, model_state) = build(name), original()
        read = {
            part for batch in method.batches(KEY, DATA, 0) for part in Batch._fields if getattr(batch, part) is not None
        }
        assert read
        for part in read:
            for empty in (None, jax.tree.map(lambda leaf: leaf[:0], DATA.retain)):
                with pytest.raises(InputError, match=f"the {part} set is empty"):
                    method.init(KEY, params, model_state, DATA._replace(**{part: empty}))


@pytest.mark.parametrize("name", AT_ONCE)
class TestContractWithoutSteps:
    def test_the_network_is_edited_by_init_and_by_nothing_else(self, name):
        method, start = build(name), original()
        carry = method.init(KEY, *start, DATA)
        chex.assert_trees_all_equal_shapes_and_dtypes((carry.params, carry.model_state), start)
        chex.assert_tree_all_finite((carry.params, carry.model_state))
        assert checkpoints.equal(method.init(KEY, *start, DATA), carry)
        assert checkpoints.equal(start, original())
        assert list(method.batches(KEY, DATA, 0)) == []
        assert int(carry.step) == 0

    @pytest.mark.parametrize("epochs", [0, 2])
    def test_a_run_takes_no_steps_and_can_be_resumed(self, name, epochs, tmp_path):
        method = build(name)
        start = functools.partial(run, method, KEY, *original(), DATA, num_epochs=epochs, on_step=pytest.fail)
        results = [start(checkpoint=Checkpointer(tmp_path)) for _ in range(2)]
        assert [result.steps for result in results] == [0, 0]
        expected = method.init(jax.random.split(KEY)[0], *original(), DATA)
        for result in results:
            assert checkpoints.equal((result.params, result.model_state), (expected.params, expected.model_state))

    def test_a_plain_loss_over_any_pytree_will_do(self, name):
        params, _ = original()
        carry = build(name, lift(plain_loss), None).init(KEY, params, (), DATA)
        chex.assert_trees_all_equal_shapes_and_dtypes(carry.params, params)

    def test_refusals(self, name):
        with pytest.raises(InputError, match="batch_size must be at least 1"):
            build(name, batch_size=0)
        for part in Data._fields:
            for empty in (None, jax.tree.map(lambda leaf: leaf[:0], DATA.retain)):
                with pytest.raises(InputError, match=f"the {part} set is empty"):
                    build(name).init(KEY, *original(), DATA._replace(**{part: empty}))


# Those that read data when they begin.
@pytest.mark.parametrize("name", ["bad_teacher", "boundary_expand", "boundary_shrink", "influence", "salun", "ssd"])
def test_data_that_lie_with_a_layout_give_the_same_network(name):
    arguments = build(name), KEY, *original(), DATA
    divided, whole = run(*arguments, num_epochs=1, layout=make_layout()), run(*arguments, num_epochs=1)
    for left, right in zip(jax.tree.leaves(divided[:2]), jax.tree.leaves(whole[:2]), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


# One of each skeleton; `training_test.py` has Scissorhands and fine-tuning, at every step.
@pytest.mark.parametrize("name", ["retrain", "gradient_ascent", "l1_sparse", "salun", "scrub"])
def test_steps_compile_once_per_kind_and_a_stopped_run_ends_bit_equal(name, tmp_path):
    epoch = contract_epoch(name)
    arguments = epoch.method, KEY, *original(), DATA
    with Compilations() as compilations:
        whole = run(*arguments, num_epochs=2)
    assert compilations.names.count("jit(_step)") == len(kinds_of(epoch.batches))
    stop_at = 1 + whole.steps // 2

    def stop(progress):
        if progress.step == stop_at:
            raise KeyboardInterrupt

    with Compilations() as compilations:
        keeper = Checkpointer(tmp_path, every_steps=1)
        with pytest.raises(KeyboardInterrupt):
            run(*arguments, num_epochs=2, checkpoint=keeper, on_step=stop)
        assert Checkpointer(tmp_path).latest_step == stop_at - 1
        resumed = run(*arguments, num_epochs=2, checkpoint=Checkpointer(tmp_path))
    assert "jit(_step)" not in compilations.names
    assert checkpoints.equal((resumed.params, resumed.model_state), (whole.params, whole.model_state))


def descent(params, carry):
    """What plain gradient descent with learning rate 1 subtracted."""
    return jax.tree.map(lambda before, after: before - after, params, carry.params)


def dot(a, b):
    """The dot product of two trees, in float64."""
    products = jax.tree.map(lambda x, y: np.vdot(np.asarray(x, float), np.asarray(y, float)), a, b)
    return float(sum(jax.tree.leaves(products)))


PLAIN_SGD = sgd(1.0, momentum=0.0, weight_decay=0.0)


class TestFinetune:
    def test_a_step_descends_the_retain_loss(self):
        method = build("finetune", lift(plain_loss), learning_rate=0.5, momentum=0.0, weight_decay=0.0)
        epoch = epoch_of(method, steps=1)
        before, after = epoch.carries[0].params, epoch.carries[1].params
        gradient = GRADIENT(before, epoch.batches[0].retain)
        chex.assert_trees_all_close(
            after, jax.tree.map(lambda w, g: w - 0.5 * g, before, gradient), rtol=1e-5, atol=1e-6
        )


class TestScissorhandsRepair:
    def test_the_step_never_improves_the_forget_loss_to_first_order(self):
        method = scissorhands(
            lift(plain_loss), PLAIN_SGD, fraction=0.2, batch_size=4, forget_weight=0.05, every_step_joint=True
        )
        carry, step, duals = method.init(KEY, original(3)[0], (), DATA), jax.jit(method.step), []
        for epoch in range(4):
            for positions in method.batches(KEY, DATA, epoch):
                batch, params = data_lib.gather(DATA, positions), carry.params
                carry, metrics = step(carry, batch)
                retain, forget = GRADIENT(params, batch.retain), GRADIENT(params, batch.forget)
                objective = jax.tree.map(lambda r, f: r - 0.05 * f, retain, forget)
                followed = descent(params, carry)
                along, square = dot(objective, forget), dot(forget, forget)
                assert dot(followed, forget) <= 2e-5 * np.sqrt(dot(followed, followed) * square)
                duals.append(max(0.0, along / square))
                expected = jax.tree.map(lambda o, f: o - duals[-1] * f, objective, forget)
                chex.assert_trees_all_close(followed, expected, rtol=1e-3, atol=3e-6)
                np.testing.assert_allclose(metrics["dual"], duals[-1:], rtol=1e-3, atol=1e-5)
                assert bool(metrics["projected"]) == (along > 0)
        assert min(np.count_nonzero(duals), duals.count(0.0)) >= 2

    def test_without_projection_the_step_follows_the_objective(self):
        method = scissorhands(
            lift(plain_loss), PLAIN_SGD, fraction=0.2, batch_size=4, forget_weight=0.5, projected=False
        )
        epoch = epoch_of(method, steps=1)
        before, batch = epoch.carries[0].params, epoch.batches[0]
        gradients = [GRADIENT(before, part) for part in (batch.retain, batch.forget)]
        expected = jax.tree.map(lambda r, f: r - 0.5 * f, *gradients)
        chex.assert_trees_all_close(descent(before, epoch.carries[1]), expected, rtol=1e-4, atol=1e-6)
        assert set(epoch.metrics[0]) == {"loss_retain", "loss_forget", "grad_norm"}

    @functools.cached_property
    def twins(self):
        """One example many times in both sets: retain and forget gradients are equal, so every step is violated."""
        one = jax.tree.map(lambda leaf: leaf[:1], DATA.forget)
        return Data(*(jax.tree.map(lambda leaf, n=n: jnp.repeat(leaf, n, axis=0), one) for n in (6, 12)))

    @pytest.mark.parametrize(("margin", "dual"), [(0.0, 1.0), (0.5, 1.0), (5.0, 5.0)])
    def test_margin_bounds_the_dual_of_violated_steps_from_below(self, margin, dual):
        method = scissorhands(lift(plain_loss), PLAIN_SGD, fraction=0.2, batch_size=4, forget_weight=0.0, margin=margin)
        joint = epoch_of(method, self.twins, steps=1).metrics[0]
        assert joint["projected"]
        assert joint["dots"][0] > 0
        np.testing.assert_allclose(joint["dual"], [dual], rtol=1e-4)

    def test_authors_mode_adds_at_least_half_of_each_constraint(self):
        method = scissorhands(
            lift(plain_loss),
            PLAIN_SGD,
            fraction=0.2,
            batch_size=4,
            forget_weight=0.0,
            mode="authors",
            num_constraints=2,
        )
        epoch = epoch_of(method, self.twins, steps=1)
        held = epoch.carries[0].aux.constraint_grads
        assert [leaf.shape[0] for leaf in jax.tree.leaves(held)] == [2] * 3
        assert epoch.metrics[0]["projected"]
        assert np.all(epoch.metrics[0]["dual"] >= 0.5)
        # The constraints stay what they were at the beginning of the epoch.
        chex.assert_trees_all_equal(epoch.carries[1].aux.constraint_grads, held)
        later = method.begin_epoch(epoch.carries[-1], self.twins)
        assert not checkpoints.equal(later.aux.constraint_grads, held)
        assert int(later.aux.joint_step) == 0

    def test_only_every_so_many_joint_steps_of_an_epoch_are_projected(self):
        method = scissorhands(
            lift(plain_loss),
            PLAIN_SGD,
            fraction=0.2,
            batch_size=4,
            forget_weight=0.0,
            project_every=2,
            every_step_joint=True,
        )
        epoch = epoch_of(method, self.twins)
        assert [bool(metrics["projected"]) for metrics in epoch.metrics] == [False, True, False]
        unprojected = GRADIENT(epoch.carries[0].params, epoch.batches[0].retain)
        chex.assert_trees_all_close(
            descent(epoch.carries[0].params, epoch.carries[1]), unprojected, rtol=1e-4, atol=1e-6
        )
        # Counted anew in each epoch.
        carry = method.begin_epoch(epoch.carries[1], self.twins)
        assert not method.step(carry, epoch.batches[0])[1]["projected"]

    def test_a_projection_pattern_leaves_other_gradients_as_they_are(self):
        method = scissorhands(lift(plain_loss), PLAIN_SGD, fraction=0.2, batch_size=4, forget_weight=0.0, project="1")
        epoch = epoch_of(method, self.twins, steps=1)
        before, batch = epoch.carries[0].params, epoch.batches[0]
        retain, forget = (GRADIENT(before, part) for part in (batch.retain, batch.forget))
        followed = descent(before, epoch.carries[1])
        chex.assert_trees_all_close(followed[0], retain[0], rtol=1e-4, atol=1e-6)
        assert epoch.metrics[0]["projected"]
        assert not np.allclose(followed[1][0], retain[1][0], rtol=1e-2)
        assert abs(dot(followed[1], forget[1])) < 1e-4

    def test_an_epoch_passes_once_over_both_sets_or_cycles_the_forget_set(self):
        once = list(scissorhands(LOSS, PLAIN_SGD, fraction=0.1, batch_size=2).batches(KEY, DATA, 0))
        assert [batch.forget is None for batch in once] == [False] * 3 + [True] * 2
        joint = list(
            scissorhands(LOSS, PLAIN_SGD, fraction=0.1, batch_size=2, every_step_joint=True).batches(KEY, DATA, 0)
        )
        assert [batch.forget is None for batch in joint] == [False] * 5
        assert sorted(np.concatenate([batch.forget for batch in joint[:3]])) == list(range(6))
        sizes = scissorhands(LOSS, PLAIN_SGD, fraction=0.1, batch_size=4, forget_batch_size=1).batches(KEY, DATA, 0)
        assert [(len(batch.forget), len(batch.retain)) for batch in sizes] == [(1, 4)] * 3

    def test_steps_stop_with_the_retain_set(self):
        short = Data(DATA.retain, DATA.forget)
        batches = list(scissorhands(LOSS, PLAIN_SGD, fraction=0.1, batch_size=2).batches(KEY, short, 0))
        assert [batch.forget is None for batch in batches] == [False] * 3

    def test_ragged_batches_are_not_filled_up(self):
        method = scissorhands(LOSS, PLAIN_SGD, fraction=0.1, batch_size=4, ragged_batches=True)
        batches = list(method.batches(KEY, DATA, 0))
        assert [len(batch.retain) for batch in batches] == [4, 4, 2]
        assert [None if batch.forget is None else len(batch.forget) for batch in batches] == [4, 2, None]

    @pytest.mark.parametrize("mode", ["paper", "authors"])
    def test_bfloat16_params_keep_their_type_through_an_epoch(self, mode):
        params, _ = original(dtype=jnp.bfloat16)
        method = scissorhands(lift(plain_loss), sgd(0.05), fraction=0.2, batch_size=4, mode=mode)
        carry = method.init(KEY, params, (), DATA)
        begun = method.begin_epoch(carry, DATA)
        chex.assert_trees_all_equal_shapes_and_dtypes(begun, carry)
        batch = data_lib.gather(DATA, next(iter(method.batches(KEY, DATA, 0))))
        after, _ = jax.eval_shape(method.step, begun, batch)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, carry)


class TestTrim:
    def trim(self, loss_fn=None, start=None, **options):
        params, model_state = (original()[0], ()) if start is None else start
        batches = options.pop("batches", [DATA.forget])
        options = {"fraction": 0.2, "initializer": ones()} | options
        return params, trim_network(KEY, loss_fn or lift(plain_loss), params, model_state, batches, **options)

    def marked(self, mask):
        flags = zip(trees.leaf_names(mask), jax.tree.leaves(mask), strict=True)
        return {name: int(leaf.sum()) for name, leaf in flags}

    @pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
    def test_the_rounded_share_of_the_ranked_weights_is_redrawn(self, fraction):
        params, trimmed = self.trim(fraction=fraction)
        marked = self.marked(trimmed.mask)
        assert sum(marked.values()) == max(1, round(fraction * (4 * 6 + 6 * 3)))
        assert marked["0/hidden/bias"] == 0
        # What is marked became one, all the rest is bit-equal.
        expected = jax.tree.map(lambda w, m: jnp.where(m, 1.0, w), params, trimmed.mask)
        assert checkpoints.equal(trimmed.params, expected)

    def test_the_most_salient_weights_are_marked(self):
        params, trimmed = self.trim()
        gradient = GRADIENT(params, DATA.forget)
        scores = jax.tree.map(lambda g, w: jnp.abs(g * w), gradient, params)
        kernels = [scores[0]["hidden"].kernel, scores[1][0]]
        masks = [trimmed.mask[0]["hidden"].kernel, trimmed.mask[1][0]]
        inside = np.concatenate([np.asarray(s)[np.asarray(m)] for s, m in zip(kernels, masks, strict=True)])
        outside = np.concatenate([np.asarray(s)[~np.asarray(m)] for s, m in zip(kernels, masks, strict=True)])
        assert inside.min() >= outside.max()

    def test_trimmed_weights_lie_inside_the_pattern_and_the_share_is_of_it(self):
        _, trimmed = self.trim(trim="1", fraction=0.5)
        assert self.marked(trimmed.mask) == {"0/hidden/kernel": 0, "0/hidden/bias": 0, "1/0": 9}

    def test_ranking_more_than_is_trimmed_trims_fewer(self):
        _, everywhere = self.trim(fraction=0.3)
        _, trimmed = self.trim(trim="1", rank="0/hidden/kernel|1", fraction=0.3)
        marked = self.marked(trimmed.mask)
        assert 0 < marked["1/0"] < round(0.3 * 42)
        assert marked == {**self.marked(everywhere.mask), "0/hidden/kernel": 0}

    def test_batches_of_the_saliency_pass_need_not_have_one_size(self):
        _, whole = self.trim()
        _, parts = self.trim(
            batches=[jax.tree.map(lambda leaf, p=p: leaf[p], DATA.forget) for p in (slice(4), slice(4, 6))]
        )
        assert checkpoints.equal(whole.mask, parts.mask)
        assert parts.losses.shape == (2,)

    def test_paper_mode_scores_in_eval_mode_and_leaves_statistics_alone(self):
        for train, moved in ((False, 0), (True, 1)):
            _, trimmed = self.trim(LOSS, original(), semantics=Semantics(saliency_train=train))
            assert int(trimmed.model_state["count"]) == moved

    def test_vectors_and_bn_names_are_trimmed_only_on_demand(self):
        vector, matrix = jnp.ones(6), jnp.ones((6, 3))
        params = {"bn1": {"scale": vector, "kernel": matrix}, "downsample": {"scale": vector}}
        params |= {"conv": {"kernel": matrix, "bias": vector}}
        norms = ["bn1/kernel", "bn1/scale"]
        for semantics, names in (
            (Semantics(), ["bn1/kernel", "conv/kernel"]),
            (Semantics(trim_vectors=True), [*norms, "conv/bias", "conv/kernel", "downsample/scale"]),
            (Semantics(trim_vectors=True, skip_bn_names=True), ["conv/bias", "conv/kernel", "downsample/scale"]),
        ):

            def total(params, batch):
                return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) * jnp.mean(batch)

            batches = [jnp.ones(2)]
            _, trimmed = self.trim(lift(total), (params, ()), batches=batches, fraction=0.9, semantics=semantics)
            assert [name for name, count in self.marked(trimmed.mask).items() if count] == names

    def test_patterns_that_select_nothing_to_trim_are_refused(self):
        with pytest.raises(InputError, match="matches none of the 3 parameter arrays"):
            self.trim(trim="layer4")
        with pytest.raises(InputError, match="selects only biases and scales"):
            self.trim(trim="0/hidden/bias")

    def test_scores_that_are_not_finite_are_refused(self):
        params = original()[0]
        params[1] = (params[1][0].at[0, 0].set(jnp.nan),)
        with pytest.raises(InputError, match="not finite"):
            self.trim(start=(params, ()))

    def test_no_batch_is_refused(self):
        with pytest.raises(InputError, match="at least one batch"):
            self.trim(batches=[])


def test_constraint_gradients_are_running_sums_in_the_type_of_the_params():
    batches = [examples(4, seed) for seed in range(3)]
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)):
        params, model_state = original(dtype=dtype)
        rows, losses = constraint_gradients(lift(plain_loss), params, model_state, batches)
        gradients = [GRADIENT(params, batch) for batch in batches]
        sums = [functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), gradients[: k + 1]) for k in range(3)]
        expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sums)
        chex.assert_trees_all_equal_shapes_and_dtypes(rows, expected)
        chex.assert_trees_all_close(rows, expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(losses, [plain_loss(params, batch) for batch in batches], rtol=1e-2)


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"fraction": 0.0}, "fraction must lie strictly between 0 and 1, got 0.0"),
            ({"fraction": 1.0}, "fraction must lie strictly between 0 and 1, got 1.0"),
            ({"forget_weight": -0.1}, "forget_weight must not be negative, got -0.1"),
            ({"mode": "thesis"}, "mode is 'thesis'; choose one of paper, authors"),
            ({"pair": "both"}, "pair is 'both'; choose one of auto, vmap, sequential"),
            ({"num_constraints": 2}, "num_constraints = 2 needs constraints_per_epoch"),
            ({"num_constraints": 11, "mode": "authors"}, "num_constraints must be 1 to 10, got 11"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"forget_batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"saliency": True}, "no setting 'saliency'; near matches: saliency_train, saliency_batches"),
            ({"margin": -1.0}, "margin and eps must not be negative"),
            ({"margin": "half"}, "the departure margin must be float, got 'half'"),
            ({"saliency_train": "yes"}, "the departure saliency_train must be bool, got 'yes'"),
            ({"saliency_batches": 2.5}, r"the departure saliency_batches must be int \| None, got 2.5"),
            ({"project_every": 0}, "project_every and saliency_batches must be at least 1"),
            ({"saliency_batches": 0}, "project_every and saliency_batches must be at least 1"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, settings, message):
        with pytest.raises(InputError, match=message):
            scissorhands(LOSS, PLAIN_SGD, **({"fraction": 0.1} | settings))

    def test_a_projection_pattern_that_matches_nothing_is_refused(self):
        method = scissorhands(lift(plain_loss), PLAIN_SGD, fraction=0.1, project="layer4", batch_size=6)
        with pytest.raises(InputError, match="layer pattern 'layer4' matches none"):
            method.init(KEY, original()[0], (), DATA)

    def test_initializers_are_taken_by_name(self):
        with pytest.raises(InputError, match="no initializer 'xavier'"):
            build("scissorhands", initializer="xavier")


class TestOneCompilationForAllValues:
    """Numbers travel in the carry, so that a sweep over them compiles nothing after its first value."""

    def test_scissorhands(self):
        def sweep(**changes):
            settings = dataclasses.replace(METHODS["scissorhands"](epochs=1, batch_size=4), **changes)
            method = settings.build(tiny.model(), tiny.loss(), tiny.CLASSES)
            return run(method, KEY, *tiny.start(), tiny.data(), num_epochs=1).params

        first = sweep()
        changes = ({"forget_weight": 0.7}, {"fraction": 0.2}, {"learning_rate": 0.3}, {"weight_decay": 0.1})
        with Compilations() as compilations:
            results = [sweep(**change) for change in (*changes, {"momentum": 0.5})]
        assert compilations.names == []
        for result in results:
            assert not checkpoints.equal(result, first)

    def test_equal_settings_make_equal_steps(self):
        settings = METHODS["scissorhands"]()
        steps = [settings.build(tiny.model(), classification_loss(tiny.model()), 3).step for _ in range(2)]
        assert steps[0] == steps[1]
        assert hash(steps[0]) == hash(steps[1])
        other = dataclasses.replace(settings, projected=False).build(tiny.model(), tiny.loss(), 3).step
        assert steps[0] != other


@pytest.mark.parametrize("name", [name for name in METHODS if hasattr(METHODS[name](), "milestones")])
def test_every_method_with_a_learning_rate_follows_its_milestones(name):
    method = build(name, milestones=(1,), gamma=0.1)
    state = method.init(KEY, *original(), DATA).opt_state
    steps = len(list(method.batches(KEY, DATA, 0)))
    rates = [rate_of(optax.tree_utils.tree_set(state, count=step)) for step in (0, steps - 1, steps, 10 * steps)]
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.005, 0.005], rtol=1e-6)
