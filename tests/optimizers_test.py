"""The optimizer is PyTorch's SGD, and its numbers can change without another compilation."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import optimizers
from scissorhands_jax.errors import InputError
from scissorhands_jax.optimizers import (
    adamw,
    constant,
    cosine_decay,
    cosine_restarts,
    drops,
    interpolate,
    linear_decay,
    sgd,
    triangle,
)
from tests.comparison import same_bits

START = {"w": np.array([1.0, -2.0], np.float32), "b": np.array([0.5], np.float32)}
GRADIENTS = [{"w": np.array([0.3, -0.1], np.float32), "b": np.array([2.0], np.float32)}] * 2 + [
    {"w": np.array([-1.0, 0.4], np.float32), "b": np.array([0.0], np.float32)}
]


def steps_of(optimizer):
    """The parameters after each of the gradients."""
    params, state = jax.tree.map(jnp.asarray, START), optimizer.init(START)
    for gradient in GRADIENTS:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        yield params


def torch_steps(rates, momentum, weight_decay):
    """torch.optim.SGD by its documentation, in float64: v = momentum v + (g + weight_decay p), p = p - rate v."""
    params = {name: value.astype(float) for name, value in START.items()}
    velocity = dict.fromkeys(params, 0.0)
    for rate, gradient in zip(rates, GRADIENTS, strict=True):
        velocity = {n: momentum * velocity[n] + gradient[n] + weight_decay * params[n] for n in params}
        params = {n: params[n] - rate * velocity[n] for n in params}
        yield params


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("rates", [[0.5] * 3, [0.5, 0.25, 0.125]])
def test_decay_joins_the_gradient_and_momentum_comes_after(rates, momentum, weight_decay):
    scheduled = len(set(rates)) > 1
    rate = (lambda count: 0.5 * 0.5**count) if scheduled else rates[0]
    got = steps_of(sgd(rate, momentum=momentum, weight_decay=weight_decay))
    for params, expected in zip(got, torch_steps(rates, momentum, weight_decay), strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(params[name], value, rtol=1e-5, atol=1e-6)


def test_numbers_travel_in_the_state_and_share_their_update():
    one, other = sgd(0.5, weight_decay=0.0), sgd(0.1, momentum=0.5, weight_decay=0.3)
    assert one.update is other.update
    assert one.update is not sgd(0.5, momentum=0.0).update
    state = one.init(START)
    assert optax.tree_utils.tree_get(state, "learning_rate") == 0.5
    state = optax.tree_utils.tree_set(state, learning_rate=jnp.float32(0.25))
    updates, _ = one.update(GRADIENTS[0], state, START)
    np.testing.assert_allclose(updates["w"], -0.25 * GRADIENTS[0]["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate must not be negative, got -0.1"),
        ({"learning_rate": 0.1, "momentum": -0.5}, "momentum must not be negative, got -0.5"),
        ({"learning_rate": 0.1, "weight_decay": -1.0}, "weight_decay must not be negative, got -1.0"),
        ({"learning_rate": math.inf}, "learning_rate must be finite, got inf"),
        ({"learning_rate": 0.1, "momentum": 0, "nesterov": True}, "Nesterov's momentum needs a momentum above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must not be negative, got nan"),
        ({"learning_rate": 0.1, "momentum": float("nan")}, "must not be negative, got nan"),
    ],
)
def test_negative_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        sgd(**settings)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_numbers_of_numpy_and_traced_ones_are_numbers(make):
    def ends(rate, momentum, weight_decay):
        return list(steps_of(make(rate, momentum=momentum, weight_decay=weight_decay)))[-1]

    expected = ends(0.5, 0.25, 0.0)
    assert same_bits(ends(np.float32(0.5), np.float32(0.25), np.int64(0)), expected)
    for found in (jax.jit(ends)(0.5, 0.25, 0.0), jax.jit(lambda rate: ends(rate, 0.25, 0.0))(0.5)):
        chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_an_optimizer_without_a_schedule_is_not_given_one():
    with pytest.raises(InputError, match=r"holds no schedule; make it with sgd\(..., scheduled=True\)"):
        optimizers.with_schedule(sgd(0.1).init(START), optimizers.constant())


@pytest.mark.parametrize(
    "make", [lambda **rest: sgd(0.0123, scheduled=True, **rest), lambda **rest: adamw(0.0123, **rest)]
)
def test_numbers_are_held_in_float32_where_parameters_are_narrower(make):
    optimizer = make(weight_decay=0.0456)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), START)
    state = optimizers.with_schedule(optimizer.init(params), linear_decay(1001))
    assert optax.tree_utils.tree_get(state, "learning_rate") == np.float32(0.0123)
    assert optax.tree_utils.tree_get(state, "weight_decay") == np.float32(0.0456)
    assert optax.tree_utils.tree_get(state, "factors").dtype == jnp.float32
    updates, after = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    for new, old in ((updates, params), (after, state)):  # so that a loop can carry them
        assert jax.tree.map(lambda leaf: leaf.dtype, new) == jax.tree.map(lambda leaf: leaf.dtype, old)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.0}, {"nesterov": True, "scheduled": True}])
def test_in_float32_every_bit_is_that_of_optax(settings):
    ours = sgd(0.0123, **settings)
    numbers = {"momentum": 0.9, "weight_decay": 5e-4} | {k: v for k, v in settings.items() if k != "scheduled"}
    parts = optax.inject_hyperparams(optimizers._sgd)(0.0123, **numbers | {"momentum": numbers["momentum"] or None})
    rng = np.random.default_rng(0)
    params = theirs = {"w": jnp.asarray(rng.normal(size=100), jnp.float32)}
    states = [ours.init(params), parts.init(params)]
    for _ in range(3):
        gradient = {"w": jnp.asarray(rng.normal(size=100), jnp.float32)}
        moved = []
        for number, (optimizer, at) in enumerate(((ours, params), (parts, theirs))):
            updates, states[number] = jax.jit(optimizer.update)(gradient, states[number], at)
            moved.append(optax.apply_updates(at, updates))
        params, theirs = moved
        np.testing.assert_array_equal(params["w"], theirs["w"])


def test_adamw_is_finite_in_float16_and_that_of_float32_but_for_rounding():
    """Beside parameters in float32, which are as without them. The step of optax's own is NaN or infinite."""
    start = {"half": np.array([1.0, -2.0, 0.5, 0.25]), "whole": np.array([1.0])}
    gradients = {"half": np.array([0.0, 1e-4, -1e-4, 300.0]), "whole": np.array([1e-4])}
    ends = {}
    for half in (jnp.float16, jnp.float32):
        types = {"half": half, "whole": jnp.float32}
        params = {name: jnp.asarray(value, types[name]) for name, value in start.items()}
        gradient = {name: jnp.asarray(value, types[name]) for name, value in gradients.items()}
        optimizer = adamw(0.125, weight_decay=0.0)
        state = optimizer.init(params)
        for _ in range(3):
            updates, after = jax.jit(optimizer.update)(gradient, state, params)
            assert jax.tree.map(lambda leaf: leaf.dtype, updates) == {"half": half, "whole": jnp.float32}
            assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)
            params, state = optax.apply_updates(params, updates), after
        ends[half] = params
    np.testing.assert_allclose(ends[jnp.float16]["half"], ends[jnp.float32]["half"], rtol=2e-3)
    assert same_bits(ends[jnp.float16]["whole"], ends[jnp.float32]["whole"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_adamw_is_that_of_optax_to_the_bit_in_other_types(dtype):
    def plain(learning_rate, momentum, weight_decay, knots, factors):
        parts = optax.adamw(learning_rate, b1=momentum, weight_decay=weight_decay)
        return optax.chain(parts, optax.scale_by_schedule(lambda step: interpolate(step, knots, factors)))

    numbers = {"learning_rate": 0.0123, "momentum": 0.9, "weight_decay": 0.0456}
    schedule = {"knots": np.array([0, 1], np.int32), "factors": np.ones(2, np.float32)}
    theirs = optimizers._with_numbers(plain, **numbers, **schedule)
    rng, runs = np.random.default_rng(0), []
    start = {"w": jnp.asarray(rng.normal(size=100), dtype)}
    gradients = [{"w": jnp.asarray(rng.normal(size=100), dtype)} for _ in range(3)]
    for optimizer in (adamw(**numbers), theirs):
        params, state = start, optimizer.init(start)
        for gradient in gradients:
            updates, state = jax.jit(optimizer.update)(gradient, state, params)
            params = optax.apply_updates(params, updates)
        runs.append((params, state))
    assert same_bits(*runs)


class TestSchedules:
    def rates(self, schedule, steps):
        knots, factors = jnp.asarray(schedule.knots, jnp.int32), jnp.asarray(schedule.factors, jnp.float32)
        return np.asarray([interpolate(jnp.int32(step), knots, factors) for step in steps])

    def test_drops_come_before_their_step_and_stay(self):
        rates = self.rates(drops([3, 0, 4], 0.1), range(7))
        np.testing.assert_allclose(rates, [0.1, 0.1, 0.1, 0.01, 0.001, 0.001, 0.001], rtol=1e-6)
        np.testing.assert_allclose(self.rates(drops([2_000_000_001], 0.5), [2_000_000_000]), 1.0)

    def test_a_step_that_is_named_twice_counts_twice(self):
        rates = self.rates(drops([5, 2, 5], 0.1), range(7))
        np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.1, 0.001, 0.001], rtol=1e-6)

    def test_triangle(self):
        schedule = triangle(100, warmup=0.23, last=0.07)
        np.testing.assert_allclose(
            self.rates(schedule, range(101)), np.interp(range(101), [0, 23, 100], [0.2, 1.0, 0.07]), rtol=1e-5
        )
        assert self.rates(schedule, [1_000]) == pytest.approx(0.07)
        np.testing.assert_allclose(self.rates(triangle(4, warmup=0), [0, 4]), [1, 0], rtol=1e-6)
        assert np.all(np.isfinite(self.rates(triangle(0, warmup=0.5), range(3))))

    def test_warmup_is_a_share(self):
        with pytest.raises(InputError, match="warmup must be a share of the steps, at least 0 and below 1, got 1"):
            triangle(10, warmup=1.0)
        with pytest.raises(InputError, match="the last factor of the rate must not be negative, got -1"):
            triangle(10, warmup=0.5, last=-1.0)

    def test_linear_falls_to_zero_after_the_last_step(self):
        np.testing.assert_allclose(self.rates(linear_decay(4), range(6)), [1, 0.75, 0.5, 0.25, 0, 0], rtol=1e-6)
        assert np.all(np.isfinite(self.rates(linear_decay(0), range(2))))

    @pytest.mark.parametrize("steps", [1, 5, 320, 100_000])
    def test_cosine_is_half_a_cosine_to_one_in_a_thousand(self, steps):
        shown = np.unique(np.linspace(0, steps, 50).astype(int))
        rates = self.rates(cosine_decay(steps), shown)
        np.testing.assert_allclose(rates, 0.5 + 0.5 * np.cos(np.pi * shown / steps), atol=1e-3)
        assert rates[-1] == pytest.approx(0, abs=1e-7)

    def test_restarts_are_pytorchs_annealing_with_doubled_cycles(self):
        """Against the recursion of `CosineAnnealingWarmRestarts(T_0=1, T_mult=2)`, stepped once an epoch."""
        highest, lowest, expected, lengths = 0.1, 0.005, [], [3, 1, 2, 4] * 4
        current, cycle = 0, 1
        for length in lengths:
            rate = lowest + (highest - lowest) * (1 + np.cos(np.pi * current / cycle)) / 2
            expected += [rate] * length
            current += 1
            if current == cycle:
                current, cycle = 0, 2 * cycle
        rates = self.rates(cosine_restarts(lengths, lowest=lowest / highest), range(len(expected)))
        np.testing.assert_allclose(highest * np.asarray(rates), expected, rtol=1e-5)

    def test_constant_and_linear_have_one_form(self):
        assert [len(part) for part in constant()] == [len(part) for part in linear_decay(7)]
        np.testing.assert_allclose(self.rates(constant(), [0, 1, 10]), 1)


def test_a_rate_that_is_a_function_takes_no_schedule_beside_it():
    with pytest.raises(InputError, match="a schedule already; give a number, or leave scheduled=True out"):
        sgd(lambda step: 0.1, scheduled=True)
