"""Sweeps: every member ends where its own run ends, whatever way they are run, and all share one program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import base, losses, models
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data
from scissorhands_jax.errors import DivergedError, InputError, NonFiniteError
from scissorhands_jax.methods import METHODS
from scissorhands_jax.methods.finetune import finetune
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training import sweeps
from scissorhands_jax.training.loop import run
from scissorhands_jax.training.sweeps import Member, methods_of, run_many
from tests.compilations import Compilations

MODEL = models.build("mlp", num_classes=3, image_shape=(4, 4, 1), hidden=(8,))
LOSS = losses.classification_loss(MODEL)
START = MODEL.init(jax.random.key(0))
WAYS = ("batched", "scanned", "turns")


def data(forget=6, retain=10):
    rng = np.random.default_rng(0)
    parts = [
        {"image": rng.random((n, 4, 4, 1), np.float32), "label": rng.integers(0, 3, n, dtype=np.int32)}
        for n in (forget, retain)
    ]
    return Data(*parts)


def build(settings):
    return settings.build(MODEL, LOSS, 3)


def settings(name="scissorhands", **changes):
    common = {"epochs": 2, "batch_size": 4} | ({} if name == "ssd" else {"learning_rate": 0.05})
    return dataclasses.replace(METHODS[name](), **common | changes)


def members(variants):
    methods = methods_of(build, variants)
    return [Member(method, jax.random.key(seed), *START) for seed, method in enumerate(methods)]


def same_network(left, right):
    for a, b in zip(jax.tree.leaves(left[:2]), jax.tree.leaves(right[:2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


SCISSORHANDS = [
    settings(fraction=0.1),
    settings(fraction=0.3, forget_weight=0.2, learning_rate=0.01),
    settings(fraction=0.1, forget_weight=0.0),
]


@pytest.mark.parametrize("how", [*WAYS, "sharded"])  # the last on more devices than one: see sharding_test
def test_every_member_ends_where_its_own_run_ends(how):
    for variants in (SCISSORHANDS, [settings("neggrad_plus"), settings("neggrad_plus", learning_rate=0.01)]):
        swept = run_many(members(variants), data(), num_epochs=2, how=how)
        for member, result in zip(members(variants), swept, strict=True):
            alone = run(*member, data(), num_epochs=2)
            assert result.steps == alone.steps
            same_network(result, alone)
    assert not np.allclose(*(np.asarray(result.params["head"]["bias"]) for result in swept))


@pytest.mark.parametrize("how", WAYS)
def test_a_sweep_compiles_its_step_once(how):
    # Sizes of their own, so that no other test has compiled the step.
    size = 6 + WAYS.index(how)
    with Compilations() as compilations:
        run_many(
            members([settings(fraction=f, batch_size=size) for f in (0.1, 0.2, 0.3)]),
            data(size, size),
            num_epochs=2,
            how=how,
        )
    assert [name for name in compilations.names if "_step" in name] == ["jit(_step)"]


def test_schedules_are_kept():
    variants = [settings("finetune", milestones=(1,), learning_rate=rate) for rate in (0.05, 0.01)]
    for member, result in zip(
        members(variants), run_many(members(variants), data(), num_epochs=2, how="batched"), strict=True
    ):
        same_network(
            result, run(build(variants[0 if member.key == jax.random.key(0) else 1]), *member[1:], data(), num_epochs=2)
        )


@pytest.mark.parametrize("how", WAYS)
def test_a_member_that_diverges_does_not_end_the_others(how):
    variants = [settings("finetune"), settings("finetune", learning_rate=1e30)]
    good, bad = run_many(members(variants), data(), num_epochs=2, how=how)
    same_network(good, run(*members(variants)[0], data(), num_epochs=2))
    assert isinstance(bad, NonFiniteError)
    assert 1 < bad.step <= 6


@pytest.mark.parametrize("how", WAYS)
def test_a_member_that_the_last_step_breaks_does_not_end_the_others(how):
    variants = [settings("finetune", batch_size=10, epochs=1, learning_rate=rate) for rate in (0.05, 1e39)]
    good, bad = run_many(members(variants), data(), num_epochs=1, how=how)
    same_network(good, run(*members(variants)[0], data(), num_epochs=1))
    assert isinstance(bad, DivergedError)


@pytest.mark.parametrize("how", WAYS)
def test_infinity_that_a_network_had_before_is_no_divergence(how):
    loss = base.lift(lambda params, batch: jnp.mean(params["w"] * batch["x"] + jax.nn.softmax(params["mask"])[0]))
    params = {"w": jnp.ones(()), "mask": jnp.array([0.0, -jnp.inf])}
    examples = {"x": np.arange(4, dtype=np.float32)}
    several = [Member(finetune(loss, optax.sgd(0.1), batch_size=2), jax.random.key(0), params, {})] * 2
    for result in run_many(several, Data(examples, examples), num_epochs=1, how=how):
        assert np.isneginf(result.params["mask"][1])


@pytest.mark.parametrize("how", WAYS)
def test_infinity_where_a_network_had_none_is_divergence(how):
    def step(carry, batch):
        return carry._replace(step=carry.step + 1, params=carry.params.at[0].set(jnp.inf)), {"loss": jnp.zeros(())}

    method = finetune(base.lift(lambda params, batch: jnp.sum(params)), sgd(0.1), batch_size=4)._replace(step=step)
    examples = {"x": np.arange(4, dtype=np.float32)}
    several = [Member(method, jax.random.key(0), jnp.array([0.0, -jnp.inf]), {})] * 2
    for result in run_many(several, Data(examples, examples), num_epochs=1, how=how):
        assert isinstance(result, NonFiniteError)


def test_networks_of_different_widths_do_not_share_a_program():
    wider = models.build("mlp", num_classes=3, image_shape=(4, 4, 1), hidden=(7,)).init(jax.random.key(0))
    first, second = members([settings("finetune"), settings("finetune")])
    with pytest.raises(InputError, match="the networks of the members differ in the names, shapes or types"):
        run_many([first, second._replace(params=wider[0])], data(), num_epochs=1, how="batched")


@pytest.mark.parametrize("how", [*WAYS, "auto"])
@pytest.mark.parametrize("part", ["init", "begin_epoch", "finish"])
def test_a_member_that_diverges_outside_of_a_step_does_not_end_the_others(how, part):
    def diverged(*_):
        raise DivergedError("the update is not finite")

    chosen = members([settings("finetune", learning_rate=rate) for rate in (0.05, 0.01, 0.02)])
    bad = chosen[1]._replace(method=chosen[1].method._replace(**{part: diverged}))
    first, error, last = run_many([chosen[0], bad, chosen[2]], data(), num_epochs=1, how=how)
    assert type(error) is DivergedError
    for member, result in ((chosen[0], first), (chosen[2], last)):
        same_network(result, run(*member, data(), num_epochs=1))
    (error,) = run_many([bad], data(), num_epochs=1, how=how)
    assert type(error) is DivergedError


@pytest.mark.parametrize("how", [*WAYS, "sharded"])
def test_keys_in_the_model_state_come_back(how):
    key = jax.random.key(5)
    loss = base.lift(lambda params, batch: jnp.mean(jnp.square(params - batch["x"])))
    method = finetune(loss, sgd(0.1), batch_size=2)
    examples = {"x": np.arange(4, dtype=np.float32)}
    several = [Member(method, jax.random.key(seed), jnp.zeros(()), {"key": key}) for seed in range(2)]
    for result in run_many(several, Data(examples, examples), num_epochs=1, how=how):
        assert result.model_state["key"].dtype == key.dtype
        assert result.model_state["key"] == key


def test_metrics_come_per_member():
    seen = []
    run_many(members(SCISSORHANDS), data(), num_epochs=1, how="batched", on_step=seen.append)
    assert [progress.step for progress in seen] == [1, 2, 3]
    assert seen[0].metrics["loss_retain"].shape == (3,)


class TestFastest:
    def test_it_times_every_way_and_auto_takes_one(self):
        seconds = sweeps.fastest(members(SCISSORHANDS), data())
        assert set(seconds) == set(WAYS)
        assert all(value > 0 for value in seconds.values())
        assert len(run_many(members(SCISSORHANDS), data(), num_epochs=1)) == 3

    def test_convolutions_take_turns_on_cpu(self):
        from tests import tiny

        member = Member(tiny.method("finetune"), jax.random.key(0), *tiny.start())
        assert set(sweeps.fastest([member, member], tiny.data())) == {"turns"}


@pytest.mark.parametrize("how", WAYS)
def test_data_that_a_run_refuses_are_refused(how):
    spoiled = data()
    spoiled.retain["image"][3] = np.nan
    with pytest.raises(
        InputError, match=r"1 examples of the retain set have NaN or infinity in 'image', .* example 3;"
    ):
        run_many(members(SCISSORHANDS), spoiled, num_epochs=1, how=how)


@pytest.mark.parametrize("how", [*WAYS, "auto"])
@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"params": {"call": jax.nn.relu}}, {}, r"the parameters of a member have a .* at call, where only arrays"),
        ({"params": {"w": jnp.arange(3)}}, {}, "the parameters of a member have an array of int32 at w"),
        ({"key": 3}, {}, "the key is 3; give one"),
        ({"key": np.int64(3)}, {}, "the key is .*3.*; give one"),
        ({}, {"data": [1]}, "the data are a list; give the two parts"),
        ({}, {"num_epochs": -1}, "the number of epochs must be at least 0, got -1"),
    ],
)
def test_what_no_run_can_begin_with_is_refused(how, changes, options, message):
    chosen = [member._replace(**changes) for member in members(SCISSORHANDS)]
    with pytest.raises(InputError, match=message):
        run_many(chosen, **{"data": data(), "num_epochs": 1, **options}, how=how)


@pytest.mark.parametrize("how", [*WAYS, "auto"])
@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([0, 10], "names position 10 of the retain set, which has 10 examples"),
        ([0.0, 1.0], "has float64 as positions of the retain set"),
    ],
)
def test_batches_of_examples_that_are_not_there_are_refused_before_a_member_begins(how, positions, message):
    changes = {"init": None, "batches": lambda *_: iter([base.Batch(retain=np.array(positions))])}
    chosen = [member._replace(method=member.method._replace(**changes)) for member in members(SCISSORHANDS)]
    for sweep in (functools.partial(run_many, num_epochs=1, how=how), sweeps.fastest):
        with pytest.raises(InputError, match=f"batch 0 of the epoch {message}"):
            sweep(chosen, data())


@pytest.mark.parametrize(
    ("how", "expected"), [("batched", ["data"]), ("turns", ["data"] * 3), ("auto", ["data", "steps", "data"])]
)
def test_each_run_reads_the_data_once_and_auto_before_it_times_steps(how, expected, monkeypatch):
    read, check_values = [], data_lib.check_values
    monkeypatch.setattr(data_lib, "check_values", lambda data: read.append("data") or check_values(data))
    monkeypatch.setattr(sweeps, "fastest", lambda members, data: read.append("steps") or {"batched": 0.0})
    run_many(members(SCISSORHANDS), data(), num_epochs=1, how=how)
    assert read == expected


def test_steps_that_differ_are_refused_before_the_data_are_read(monkeypatch):
    monkeypatch.setattr(data_lib, "check_values", None)
    with pytest.raises(InputError, match="the steps of the 2 methods differ"):
        run_many(members([settings("finetune"), settings("scrub")]), data(), num_epochs=1)


@pytest.mark.parametrize("how", WAYS)
def test_numbers_of_python_among_the_parameters_become_arrays(how):
    loss = base.lift(lambda params, batch: jnp.mean(jnp.square(params["w"] - batch["x"])))
    examples = {"x": np.arange(4, dtype=np.float32)}
    member = Member(finetune(loss, sgd(0.1), batch_size=2), jax.random.key(0), {"w": 0.5}, {"n": 3})
    (result,) = run_many([member], Data(examples, examples), num_epochs=1, how=how)
    assert result.params["w"].dtype == jnp.float32
    assert result.model_state["n"].dtype == jnp.int32


@pytest.mark.parametrize(
    ("make", "how", "message"),
    [
        (lambda: [], "auto", "at least one member"),
        (lambda: members(SCISSORHANDS), "vmap", "how is 'vmap'; choose one of auto, batched, scanned, turns, sharded"),
        (lambda: members([settings("finetune"), settings("scrub")]), "batched", "the steps of the 2 methods differ"),
        (lambda: members([settings(), settings(batch_size=5)]), "batched", "differ in size or number"),
        (lambda: members([settings("ssd", epochs=0)]), "auto", "without steps"),
    ],
)
def test_what_cannot_be_swept_is_refused(make, how, message):
    with pytest.raises(InputError, match=message):
        run_many(make(), data(), num_epochs=1, how=how)


def test_rates_that_are_not_in_the_state_are_refused():
    def blind(variant):
        method = build(variant)

        def init(*arguments):
            carry = method.init(*arguments)
            return carry._replace(opt_state=jnp.zeros(()))

        return method._replace(init=init)

    methods = methods_of(blind, [settings("finetune"), settings("finetune", learning_rate=0.1)])
    with pytest.raises(InputError, match="FinetuneSettings keeps no learning rate in its state"):
        run(methods[1], jax.random.key(0), *START, data(), num_epochs=1)


@pytest.mark.parametrize("how", ["auto", "batched", "scanned"])
def test_members_whose_batches_differ_are_refused_before_anything_is_compiled(how):
    different = members([settings(batch_size=2), settings(batch_size=4)])
    with pytest.raises(InputError, match=r"batches differ in size or number|the steps of the 2 methods differ"):
        run_many(different, data(), num_epochs=1, how=how)


def test_equal_settings_without_a_rate_share_a_step():
    first, second = methods_of(build, [METHODS["influence"]()] * 2)
    assert first.step is second.step
    second.init(jax.random.key(0), *START, data())
