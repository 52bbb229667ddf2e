"""What every method promises."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, methods
from scissorhands_jax.base import Batch, Data, Model, lift
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import METHODS, bad_teacher, scrub
from scissorhands_jax.models import TrainedModel
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.tasks import regression, task_loss
from scissorhands_jax.training.checkpoints import Checkpointer
from scissorhands_jax.training.loop import run, train
from scissorhands_jax.training.sharding import make_layout
from tests.comparison import rate_of, same_bits
from tests.compilations import Compilations
from tests.methods import memorised
from tests.methods.example import (
    AT_ONCE,
    DATA,
    IN_EVALUATION_MODE,
    KEY,
    LOSS,
    MODEL,
    READS_LOGITS,
    STEPPING,
    build,
    epoch_of,
    forward,
    original,
    plain_loss,
)
from tests.methods.students import HOST, STATELESS, step_from


@functools.cache
def contract_epoch(name):
    return epoch_of(build(name), start=original())


def kinds_of(batches):
    return {str(jax.tree.map(jnp.shape, batch)) for batch in batches}


WITHOUT_FORGET = {"retrain", "finetune", "l1_sparse", "cf_k", "eu_k", "msg", "ct"}
WITHOUT_RETAIN = {"amun", "boundary_expand", "boundary_shrink", "delete", "gradient_ascent"}
"""Methods whose steps see no forget examples, and no retained ones; all others see all of both in every epoch."""

SEEING = [
    *((name, {}) for name in STEPPING),
    *((name, {"mode": "authors"}) for name in ("scissorhands", "munba", "salun")),
    ("scissorhands", {"forget_batch_size": 3}),
    ("amun", {"uses_retain": True}),
]


def runs_of_all_sizes(name, changes):
    """Methods and data sets of positions, from one forget example among hundreds to hundreds before one."""
    rng = np.random.default_rng(0)
    extremes = [(1, 300), (14, 986), (300, 1), (41, 20), (7, 7)]
    for forget, retain in [*extremes, *(2 ** rng.uniform(0, 9, (8, 2))).astype(int)]:
        settings = METHODS[name]().changed(batch_size=int(rng.integers(2, 100)), epochs=int(rng.integers(1, 4)))
        method = settings.changed(**changes).build(MODEL, LOSS, 3)
        yield method, Data(np.arange(forget), np.arange(retain)), settings.epochs


@pytest.mark.parametrize(("name", "changes"), SEEING)
def test_every_forget_example_is_seen_however_large_the_forget_set(name, changes):
    sees = any(batch.forget is not None for batch in build(name, **changes).batches(KEY, DATA, 0))
    assert sees == (name not in WITHOUT_FORGET)
    for method, data, epochs in runs_of_all_sizes(name, changes) if sees else ():
        of_epochs = [
            {int(i) for batch in method.batches(KEY, data, epoch) if batch.forget is not None for i in batch.forget}
            for epoch in range(epochs)
        ]
        # SFR-on's forget batches run on from epoch to epoch, so it is its run that sees all; SCRUB begins with them.
        whole = [set().union(*of_epochs)] if name in ("sfron", "scrub") else of_epochs
        for seen in whole:
            assert seen == set(range(len(data.forget))), (len(data.forget), len(data.retain))


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
        assert not same_bits(epoch.carries[0].params, epoch.carries[1].params)
        # Each forward pass in training mode moves the statistics: one a step, or two where batches stay apart.
        moved = int(epoch.carries[-1].model_state["count"] - epoch.carries[0].model_state["count"])
        steps = 0 if name in IN_EVALUATION_MODE else len(epoch.batches)
        assert steps <= moved <= 2 * steps
        params, model_state = epoch.method.finish(epoch.carries[-1])
        chex.assert_trees_all_equal_shapes_and_dtypes((params, model_state), original())

    def test_a_step_is_a_pure_function_of_carry_and_batch(self, name):
        epoch = contract_epoch(name)
        for _ in range(2):
            carry, metrics = epoch.method.step(epoch.carries[0], epoch.batches[0])
            assert same_bits(carry, epoch.carries[1])
            chex.assert_trees_all_equal(jax.device_get(metrics), epoch.metrics[0])

    def test_init_is_a_pure_function_and_depends_on_nothing_but_its_arguments(self, name):
        epoch, (params, model_state) = contract_epoch(name), original()
        again = epoch.method.begin_epoch(epoch.method.init(KEY, params, model_state, DATA), DATA)
        assert same_bits(again, epoch.carries[0])
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, model_state)))
        assert same_bits((params, model_state), original())

    def test_steps_in_training_mode_depend_on_the_key(self, name):
        epoch = contract_epoch(name)
        other, _ = epoch.method.step(epoch.carries[0]._replace(key=jax.random.key(99)), epoch.batches[0])
        assert same_bits(other.params, epoch.carries[1].params) == (name in IN_EVALUATION_MODE)

    def test_batches_are_positions_that_key_and_epoch_decide(self, name):
        method = contract_epoch(name).method

        def batches(key, epoch):
            return [jax.tree.map(np.asarray, batch) for batch in method.batches(key, DATA, epoch)]

        first = batches(KEY, 0)
        chex.assert_trees_all_equal(first, batches(KEY, 0))
        for other in (batches(KEY, 1), batches(jax.random.key(12), 0)):
            assert len(other) == len(first)
            assert not same_bits(first, other)
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
        shares = {"forget": name not in WITHOUT_FORGET, "retain": name not in WITHOUT_RETAIN}
        shares["retain"] *= getattr(METHODS[name](), "retain_fraction", 1)
        for part, dataset in DATA._asdict().items():
            passes = [getattr(batch, part) for batch in batches]
            seen = {int(position) for positions in passes if positions is not None for position in positions}
            assert len(seen) == round(shares[part] * data_lib.size(dataset)), part

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
        assert list(method.batches(KEY, Data(None, None), 0)) == []  # `run` asks for them before it calls `init`
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
        assert same_bits(method.init(KEY, *start, DATA), carry)
        assert same_bits(start, original())
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
            assert same_bits((result.params, result.model_state), (expected.params, expected.model_state))

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


@pytest.mark.parametrize("name", sorted(WITHOUT_RETAIN))
def test_methods_that_read_no_retained_examples_need_none(name):
    start, method = original(), build(name)
    empty = jax.tree.map(lambda leaf: leaf[:0], DATA.retain)
    results = [
        run(method, KEY, *start, DATA._replace(retain=part), num_epochs=1) for part in (DATA.retain, None, empty)
    ]
    for result in results[1:]:
        assert same_bits(result[:2], results[0][:2])
    if name == "amun":
        with pytest.raises(InputError, match="the retain set is empty"):
            run(build(name, uses_retain=True), KEY, *start, Data(DATA.forget, None), num_epochs=1)


def test_these_are_all_that_read_no_retained_examples():
    params, model_state = original()
    found = set()
    for name in METHODS:
        try:
            build(name).init(KEY, params, model_state, Data(DATA.forget, None))
            found.add(name)
        except InputError as error:
            assert str(error).startswith("the retain set is empty")  # noqa: PT017
    assert found == WITHOUT_RETAIN


# Those that read data when they begin.
@pytest.mark.parametrize(
    "name", ["amun", "bad_teacher", "boundary_expand", "boundary_shrink", "influence", "msg", "salun", "sfron", "ssd"]
)
def test_data_that_lie_with_a_layout_give_the_same_network(name):
    arguments = build(name), KEY, *original(), DATA
    divided, whole = run(*arguments, num_epochs=1, layout=make_layout()), run(*arguments, num_epochs=1)
    for left, right in zip(jax.tree.leaves(divided[:2]), jax.tree.leaves(whole[:2]), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


# One of each skeleton; `training/loop_test.py` has Scissorhands and fine-tuning, at every step.
@pytest.mark.parametrize("name", ["retrain", "gradient_ascent", "l1_sparse", "salun", "scrub", "sfron"])
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
    assert same_bits((resumed.params, resumed.model_state), (whole.params, whole.model_state))


@pytest.mark.parametrize("name", [name for name in METHODS if hasattr(METHODS[name](), "milestones")])
def test_every_method_with_a_learning_rate_follows_its_milestones(name):
    method = build(name, schedule="drops", milestones=(1,), gamma=0.1)
    state = method.init(KEY, *original(), DATA).opt_state
    steps = len(list(method.batches(KEY, DATA, 0)))
    rates = [rate_of(optax.tree_utils.tree_set(state, count=step)) for step in (0, steps - 1, steps, 10 * steps)]
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.005, 0.005], rtol=1e-6)


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


@pytest.mark.parametrize(
    ("name", "changes", "at_most", "rises"),
    [
        ("msg", {"learning_rate": 0.05}, 0.5, 2),
        ("ct", {"learning_rate": 0.05, "epochs": 10}, 0.2, 5),
        ("sfron", {}, 0.6, 5),
    ],
)
def test_some_forget_what_was_learned_by_heart_where_fine_tuning_does_not(name, changes, at_most, rises):
    before = memorised.measured(*memorised.original())
    tuned = memorised.outcome(METHODS["finetune"](epochs=5, batch_size=40, learning_rate=0.05))
    after = memorised.outcome(METHODS[name](**{"epochs": 5, "batch_size": 40} | changes))
    assert min(before.acc_forget, tuned.acc_forget) > 0.7
    assert after.acc_forget <= at_most
    assert after.loss_forget > rises * max(before.loss_forget, tuned.loss_forget)
    assert after.acc_retain > 0.9


FACTORIES = [getattr(methods, name) for name in methods.__all__ if name in METHODS or name == "scissorhands_gradient"]
WRONG = {
    "model": (lambda x: x, "the network is a function; give a Model"),
    "loss_fn": (plain_loss, r"the loss takes \(params, batch\), .*; give lift\(loss_fn\)"),
    "optimizer": (0.1, r"the optimizer is 0\.1; give one of optax"),
}


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_what_is_no_loss_network_or_optimizer_is_refused_by_name(factory):
    parameters = inspect.signature(factory).parameters
    given = {"model": MODEL, "loss_fn": LOSS, "optimizer": sgd(0.1)}
    given = {name: value for name, value in given.items() if name in parameters}
    needed = {p.name: None for p in parameters.values() if p.default is p.empty and p.kind is p.KEYWORD_ONLY}
    assert given
    for name in given:
        with pytest.raises(InputError, match=WRONG[name][1]):
            factory(**given | {name: WRONG[name][0]}, **needed)


@pytest.mark.parametrize("name", ["scissorhands", "salun", "msg", "ssd", "sfron"])
def test_networks_whose_weights_are_scored_may_be_mapped_over(name):
    params, model_state = original()

    def begun(params):
        return build(name).init(KEY, params, model_state, DATA).params

    mapped = jax.vmap(begun)(jax.tree.map(lambda leaf: leaf[None], params))
    expected = jax.tree.map(lambda leaf: leaf[None], begun(params))
    chex.assert_trees_all_close(mapped, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        (optax.lbfgs(), "'value', 'grad', and 'value_fn'"),
        (optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()), "'value'"),
    ],
)
def test_an_optimizer_that_needs_more_than_the_gradient_is_refused(optimizer, names):
    params, _ = original()
    message = f"the optimizer needs {names} in every update, and steps hand it the gradient"
    with pytest.raises(InputError, match=message):
        train(LOSS, optimizer, KEY, params, (), DATA.retain, num_epochs=1)
    with pytest.raises(InputError, match=message):
        methods.neggrad_plus(LOSS, optimizer)


@pytest.mark.parametrize(
    "optimizer", [optax.masked(optax.sgd(0.1), {"w": True}), optax.MultiSteps(optax.adam(0.1), 2), optax.sgd(0.1)]
)
def test_an_optimizer_that_is_tried_on_other_parameters_is_taken(optimizer):
    methods.finetune(LOSS, optimizer)


def test_what_takes_a_loss_or_a_key_without_options_refuses_another_form():
    params, model_state = original()
    with pytest.raises(InputError, match=r"give lift\(loss_fn\)"):
        train(plain_loss, sgd(0.1), KEY, params, (), DATA.retain, num_epochs=1)
    trimming = functools.partial(methods.trim_network, fraction=0.1, initializer="zeros")
    with pytest.raises(InputError, match="the key is 3; give one"):
        trimming(3, LOSS, params, model_state, [DATA.forget])
    with pytest.raises(InputError, match=r"give lift\(loss_fn\)"):
        trimming(KEY, plain_loss, params, model_state, [DATA.forget])
    with pytest.raises(InputError, match="the batches are a dict, which is one batch"):
        trimming(KEY, LOSS, params, model_state, DATA.forget)
    with pytest.raises(InputError, match="the key is 3; give one"):
        run(build("finetune"), 3, params, model_state, DATA, num_epochs=1)
    for make in (losses.classification_loss, functools.partial(task_loss, task=regression(1.0))):
        with pytest.raises(InputError, match=r"the network is a TrainedModel; give its \.model"):
            make(TrainedModel(MODEL, params, model_state, None))
    with pytest.raises(InputError, match=r"the loss takes .*; a loss of the general form needs no lift"):
        lift(LOSS)


@pytest.mark.parametrize(
    ("loss", "message"), [(lambda p, b: (0.0, {}), "returns a tuple"), (lambda p, b: b["label"], "of shape .*its mean")]
)
def test_a_lifted_loss_is_a_single_number(loss, message):
    with pytest.raises(InputError, match=message):
        run(build("finetune", lift(loss)), KEY, *original(), DATA, num_epochs=1)
