"""Compares the library's training and repair steps with PyTorch's on the CPU, where PyTorch is installed."""

from __future__ import annotations

import dataclasses
import importlib.util
import typing

import jax
import numpy as np
import optax

from experiments.benchmark.settings import Settings, network_of
from experiments.benchmark.steps import LEARNING_RATE, repair_of
from experiments.benchmark.timing import Call, OnRound, Result, compare
from scissorhands_jax import optimizers, torch_weights, trees
from scissorhands_jax.base import Carry

if typing.TYPE_CHECKING:
    from experiments.benchmark import torch_steps

PYTORCH = "PyTorch"
PUBLISHED = "published code's in PyTorch"
STEPS = {
    "torch_train": "training step against eager PyTorch, channels last",
    "torch_repair": "repair step against eager PyTorch, channels last",
}


def is_there() -> bool:
    """Says whether PyTorch is installed and both can use the same device, which is the CPU."""
    return jax.default_backend() == "cpu" and importlib.util.find_spec("torch") is not None


def torch_case(name: str, network: str, step: str, settings: Settings, on_round: OnRound) -> Result:
    """Times a step of the same network on the same images from the same weights in both. Each uses all cores."""
    own, reference, images = pair_of_calls(network, step, settings)
    both = {name: own, PYTORCH: reference}
    result = compare(name, STEPS[step], own, {PYTORCH: reference}, settings, on_round, both)
    assert result.seconds is not None
    numbers = {"images_per_second": images / result.seconds.median}
    return dataclasses.replace(result, numbers=numbers)


def steps_of(network: str, carry: Carry, settings: Settings, *, published: bool = False) -> torch_steps.Steps:
    """Returns PyTorch's network with the weights of a carry of Scissorhands."""
    from experiments.benchmark import torch_steps

    state = torch_weights.to_state_dict(carry.params, carry.model_state)
    return (torch_steps.Published if published else torch_steps.Steps)(
        network,
        settings.networks[network],
        learning_rate=LEARNING_RATE,
        forget_weight=float(carry.aux.forget_weight),
        state={name: np.asarray(value) for name, value in state.items()},
    )


def pair_of_calls(network: str, step: str, settings: Settings) -> tuple[Call, Call, int]:
    """Returns a step of the library, the same step of PyTorch, and the number of images that each takes.

    Both begin at the weights with which the repair starts. Each call takes one more step and returns the weights.
    """
    from experiments.benchmark import torch_steps

    repair = repair_of(network, settings)
    carry = trees.copy(repair.carry)
    steps = steps_of(network, carry, settings)
    forget, retain = (torch_steps.tensors(part) for part in (repair.examples.forget, repair.examples.retain))
    if step == "torch_repair":
        return repair, lambda: steps.repair(retain, forget), 2 * settings.batch_size

    _, loss_fn = network_of(network, settings)
    optimizer = optimizers.sgd(LEARNING_RATE)

    @jax.jit
    def train(params, model_state, opt_state, batch):
        slope, model_state = jax.grad(lambda p: loss_fn(p, model_state, batch, train=True, key=None), has_aux=True)(
            params
        )
        updates, opt_state = optimizer.update(slope, opt_state, params)
        return optax.apply_updates(params, updates), model_state, opt_state

    held = [(carry.params, carry.model_state, optimizer.init(carry.params))]

    def own():
        held[0] = train(*held[0], repair.examples.retain)
        return held[0]

    return own, lambda: steps.train(*retain), settings.batch_size
