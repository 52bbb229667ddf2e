"""Measures the repair step: its time, the share of the projection in it, and its memory."""

from __future__ import annotations

import concurrent.futures
import ctypes
import dataclasses
import functools
import gc
import itertools
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.benchmark import parts
from experiments.benchmark.settings import FRACTION, Settings, network_of, random_images
from experiments.benchmark.timing import OnRound, Result, compare
from scissorhands_jax import data as data_lib
from scissorhands_jax import optimizers, trees
from scissorhands_jax.base import Data
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods.scissorhands import scissorhands
from scissorhands_jax.training import loop as training

UNPROJECTED, STEP = "unprojected step", "step"
LEARNING_RATE = 1e-3

_gather = jax.jit(data_lib.gather)


class Repair:
    """The repair step of a network on random images as `training.run` calls it. Each call takes one joint step."""

    def __init__(self, network: str, settings: Settings, **options: Any) -> None:
        """Builds the network and the method; `options` are further settings of `scissorhands`."""
        model, self.loss_fn = network_of(network, settings)
        method = scissorhands(
            self.loss_fn,
            optimizers.sgd(LEARNING_RATE),
            fraction=FRACTION,
            batch_size=settings.batch_size,
            **{"every_step_joint": False, **options},
        )
        shape, count = settings.networks[network]["image_shape"], 2 * settings.batch_size
        self.data = Data(random_images(shape, count, seed=1), random_images(shape, count, seed=2))
        carry = method.init(jax.random.key(1), *model.init(jax.random.key(0)), self.data)
        self.carry = trees.copy(method.begin_epoch(carry, self.data))
        batches = list(method.batches(jax.random.key(2), self.data, 0))
        self.examples = data_lib.gather(self.data, batches[0])
        self._batches = itertools.cycle(batches)
        self._step = method.step

    def __call__(self) -> Any:
        self.carry, metrics = training._step(self._step, self.carry, _gather(self.data, next(self._batches)))
        return self.carry, metrics

    def compiled(self) -> jax.stages.Compiled:
        """Returns the compiled step."""
        return training._step.lower(self._step, self.carry, self.examples).compile()


@functools.lru_cache(maxsize=1)
def repair_of(network: str, settings: Settings) -> Repair:
    return Repair(network, settings)


def step_case(name: str, network: str, settings: Settings, on_round: OnRound) -> Result:
    """Compares the step with the same step without projection."""
    references = {UNPROJECTED: Repair(network, settings, projected=False)}
    what = f"repair step, {settings.batch_size} retain and {settings.batch_size} forget images"
    result = compare(name, what, repair_of(network, settings), references, settings, on_round)
    assert result.seconds is not None
    params = trees.count_weights(repair_of(network, settings).carry.params)
    return dataclasses.replace(
        result, numbers={"images_per_second": 2 * settings.batch_size / result.seconds.median, "weights": params}
    )


def projection_case(name: str, network: str, settings: Settings, on_round: OnRound) -> Result:
    """Compares projection, dual and masked update with the step."""
    step = repair_of(network, settings)
    calls = parts.calls_on(network, tuple(leaf.shape for leaf in jax.tree.leaves(step.carry.params)))

    def call():
        return calls["projection"](), calls["mask_updates"]()

    what = "projection, its dual, and a masked update, without the rest of the step"
    return compare(name, what, call, {STEP: step}, settings, on_round)


def memory_case(name: str, network: str, settings: Settings, on_round: OnRound) -> Result:
    """Measures the memory of the step at its peak: as compiled, and by how much a fresh process grows."""
    on_round("compiles")
    step = repair_of(network, settings)
    analysis = _memory(step.compiled())
    peak = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    params, images = trees.nbytes(step.carry.params), trees.nbytes(step.examples)

    @jax.jit
    def gradient(params, model_state, batch):
        return jax.grad(lambda p: step.loss_fn(p, model_state, batch, train=True, key=None)[0])(params)

    plain = _memory(gradient.lower(step.carry.params, step.carry.model_state, step.examples.retain).compile())
    activations = plain.temp_size_in_bytes  # The gradient itself is an output and does not count as temporary.
    on_round("measures a fresh process")
    growth = _in_fresh_process(_resident_growth, network, settings) if jax.default_backend() == "cpu" else None
    held = analysis.argument_size_in_bytes - images
    numbers = {
        "params_bytes": params,
        "peak_bytes": peak,
        "activations_bytes": activations,
        "copies_beyond_activations": (peak - images - activations) / params,
        "resident_growth_bytes": growth,
        "measured_copies_beyond_activations": None if growth is None else (growth + held - activations) / params,
    }
    what = "peak memory of the step in copies of the parameters, without images and activations"
    return Result(name=name, what=what, numbers=numbers)


def _memory(compiled: jax.stages.Compiled) -> Any:
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise InputError(f"the {jax.default_backend()} backend does not say how much memory compiled code takes")
    return analysis


def _resident_growth(network: str, settings: Settings) -> int | None:
    """Returns by how many bytes two steps raise the resident memory of a process that has the carry and the code."""
    step = Repair(network, settings)
    compiled = step.compiled()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # Memory that compilation left would hide growth.
        Path("/proc/self/clear_refs").write_text("5")  # The peak counts from here.
        before = _proc_status("VmRSS")
        carry = step.carry
        del step.carry
        for _ in range(2):
            carry, _ = jax.block_until_ready(compiled(carry, step.examples))
        return _proc_status("VmHWM") - before
    except (OSError, AttributeError):  # not Linux, or not glibc
        return None


def _proc_status(field: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field))


def _in_fresh_process(function: Callable, *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
