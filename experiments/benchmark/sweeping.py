"""Compares a sweep over seeds in one compiled program with the same runs one after another."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, get_args

import jax

from experiments.benchmark.settings import FRACTION, Settings, build, random_images
from experiments.benchmark.steps import LEARNING_RATE
from experiments.benchmark.timing import OnRound, Result, compare
from scissorhands_jax import optimizers
from scissorhands_jax.base import Data
from scissorhands_jax.methods.scissorhands import scissorhands
from scissorhands_jax.training.sweeps import How, Member, run_many

TURNS = "turns"


def together() -> list[How]:
    """Returns the ways of running members in one program for which this machine has the devices."""
    ways = [how for how in get_args(How) if how not in ("auto", TURNS)]
    return ways if len(jax.local_devices()) > 1 else [how for how in ways if how != "sharded"]


def networks(settings: Settings) -> dict[str, dict[str, Any]]:
    """Returns the networks to sweep over. Convolutions with a batch axis of networks are for accelerators only."""
    small = {"image_shape": (4, 4, 3), "hidden": (16,)} if settings.quick else {"image_shape": (8, 8, 1)}
    listed: dict[str, dict[str, Any]] = {"mlp": small}
    if jax.default_backend() != "cpu" and not settings.quick:
        listed["resnet20"] = {"image_shape": (32, 32, 3)}
    return listed


def sweep_case(name: str, network: str, how: How, settings: Settings, on_round: OnRound) -> Result:
    """Times one epoch of Scissorhands for every member, trimming included."""
    members, data = _sweep(network, settings)

    def call(how: How) -> list[Any]:
        return [result.params for result in run_many(members, data, num_epochs=1, how=how)]

    what = f"Scissorhands with {len(members)} seeds, {how}"
    result = compare(name, what, lambda: call(how), {TURNS: lambda: call(TURNS)}, settings, on_round)
    return dataclasses.replace(result, numbers={"members": len(members)})


@functools.lru_cache(maxsize=1)
def _sweep(network: str, settings: Settings) -> tuple[list[Member], Data]:
    count, steps = (2, 2) if settings.quick else (8, 16)
    options = networks(settings)[network]
    model, loss_fn = build(network, tuple(options.items()))
    size, shape = settings.batch_size, options["image_shape"]
    data = Data(random_images(shape, size, seed=1), random_images(shape, steps * size, seed=2))
    method = scissorhands(
        loss_fn, optimizers.sgd(LEARNING_RATE), fraction=FRACTION, batch_size=size, every_step_joint=False
    )
    keys = jax.random.split(jax.random.key(0), count)
    return [Member(method, key, *model.init(key)) for key in keys], data
