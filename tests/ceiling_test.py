"""The ceiling of Scissorhands: a closed form, what it leaves alone, and the runs that diverge without it."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.progress import Progress

from scissorhands_jax.base import Batch, Data, lift
from scissorhands_jax.errors import NonFiniteError
from scissorhands_jax.jobs import demo
from scissorhands_jax.jobs.scenarios import SeededScenario, TableNetworks
from scissorhands_jax.methods import scissorhands
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training.loop import run
from tests.comparison import same_bits
from tests.methods.example import DATA, GRADIENT, KEY, PLAIN_SGD, epoch_of, plain_loss


def pull(params, batch):
    """Half the squared distance from each of two points, the retained and the forgotten one."""
    return jnp.mean(jnp.sum(jnp.square(params[None] - batch), axis=(1, 2))) / 2


class TestClosedForm:
    """Two quadratics, whose gradients are w - r and w - f: the whole run follows from arithmetic."""

    RETAIN, FORGET = np.array([[2.0, 0.0], [0.5, 0.0]]), np.array([[0.0, 0.5], [0.0, 1.0]])
    DATA = Data(*(jnp.asarray(np.stack([point] * 4), jnp.float32) for point in (FORGET, RETAIN)))

    def followed(self, w, *, weight, ceiling, always, steps, rate):
        """The run in float64; the weights after every step, and which steps were above the ceiling or projected."""
        path, above, projected = [w], [], []
        for _ in range(steps):
            retain, forget = w - self.RETAIN, w - self.FORGET
            above.append(0.5 * np.sum(forget**2) > ceiling)
            gradient = retain - (0 if above[-1] else weight) * forget
            along = np.sum(gradient * forget)
            projected.append(along > 0 and (always or not above[-1]))
            if projected[-1]:
                gradient = gradient - along / np.sum(forget**2) * forget
            w = w - rate * gradient
            path.append(w)
        return path, above, projected

    @pytest.mark.parametrize(("ceiling", "always"), [(3.0, False), (3.0, True), (1e9, False), (math.inf, False)])
    @pytest.mark.parametrize("pair", ["vmap", "sequential"])
    def test_the_objective_is_the_smaller_of_forget_loss_and_ceiling(self, ceiling, always, pair):
        rate = 0.2
        method = scissorhands(
            lift(pull),
            sgd(rate, momentum=0.0, weight_decay=0.0),
            fraction=0.25,
            forget_weight=1.5,
            ceiling=ceiling,
            batch_size=4,
            pair=pair,
            project_above_ceiling=always,
        )
        carry, step = method.init(KEY, jnp.ones((2, 2)), (), self.DATA), jax.jit(method.step)
        batch = Batch(*self.DATA)
        start = np.asarray(carry.params, np.float64)
        path, above, projected = self.followed(start, weight=1.5, ceiling=ceiling, always=always, steps=20, rate=rate)
        for w, over, was in zip(path[1:], above, projected, strict=True):
            carry, metrics = step(carry, batch)
            np.testing.assert_allclose(carry.params, w, rtol=2e-4, atol=1e-5)
            assert bool(metrics["loss_forget"] > ceiling) == over
            assert bool(metrics["projected"]) == was
        # Both kinds of steps occurred where there is a ceiling within reach.
        assert 2 <= sum(above) <= 18 or ceiling > 1e6
        assert any(projected) or not always

    def test_without_a_ceiling_the_forget_loss_outgrows_every_bound_and_with_it_stays(self):
        w = np.ones((2, 2))
        free, *_ = self.followed(w, weight=1.5, ceiling=np.inf, always=False, steps=200, rate=0.2)
        held, *_ = self.followed(w, weight=1.5, ceiling=3.0, always=False, steps=200, rate=0.2)
        loss = [0.5 * np.sum((path[-1] - self.FORGET) ** 2) for path in (free, held)]
        assert loss[0] > 1e6
        assert loss[1] < 5


@pytest.mark.parametrize("mode", ["paper", "authors"])
def test_above_the_ceiling_a_step_is_that_of_the_retain_batch_and_below_nothing_changes(mode):
    """At a forget loss above the ceiling, the joint step is descent on the retain loss, bit for bit."""
    build = functools.partial(
        scissorhands, lift(plain_loss), PLAIN_SGD, fraction=0.2, batch_size=4, forget_weight=0.7, mode=mode
    )
    below = [epoch_of(build(ceiling=ceiling), steps=1) for ceiling in (math.inf, 1e6)]
    assert same_bits(*(epoch.carries[-1].params for epoch in below))
    epoch = epoch_of(build(ceiling=1e-6), steps=1)
    assert epoch.batches[0].forget is not None
    retain = GRADIENT(epoch.carries[0].params, epoch.batches[0].retain)
    expected = jax.tree.map(lambda w, g: w - g, epoch.carries[0].params, retain)
    chex.assert_trees_all_close(epoch.carries[1].params, expected, rtol=1e-6, atol=1e-6)
    assert not same_bits(epoch.carries[1].params, below[0].carries[1].params)
    assert not epoch.metrics[0]["projected"]
    # Where the forget set is seen once an epoch, there is none unless it is given.
    without = build(every_step_joint=False).init(KEY, below[0].carries[0].params, (), DATA).aux.ceiling
    assert without == np.finfo(np.float32).max


class TestDigits:
    """The demonstration with a forget batch in every step: without a ceiling, numbers overflow."""

    EXPERIMENT = dataclasses.replace(demo.EXPERIMENT, training=demo.EXPERIMENT.training.changed(epochs=10))

    @pytest.mark.parametrize("seed", [0, 1])
    def test_runs_that_overflow_are_stable_with_the_ceiling(self, tmp_path, seed):
        store = TableNetworks(self.EXPERIMENT, None, tmp_path, tmp_path / "networks")
        scenario = self.EXPERIMENT.scenarios[1]
        prepared = SeededScenario(store, scenario, seed)
        with Progress(disable=True) as progress:
            start = prepared.original(progress)

        def losses(**changes):
            settings = dataclasses.replace(
                scenario.methods["scissorhands"], learning_rate=0.02, epochs=5, schedule="drops", **changes
            )
            seen = []
            run(
                store.loaded.method(settings),
                KEY,
                start.params,
                start.model_state,
                prepared.data,
                num_epochs=settings.epochs,
                on_step=lambda step: seen.append(step.metrics["loss_forget"]),
            )
            return seen

        for weight in (0.05, 0.2):
            with pytest.raises(NonFiniteError):
                losses(forget_weight=weight, ceiling="off")
            seen = losses(forget_weight=weight, ceiling="uniform")
            # What is above log 10 comes from momentum and from the retained examples, not from the forgotten ones.
            assert np.max(seen) < 15
            assert np.mean(seen[-10:]) > np.log(10)
