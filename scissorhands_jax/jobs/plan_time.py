"""Predicts the time of a run by timing parts of it: a few steps, the start of the method, an evaluation."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.base import Carry, Dataset, ModelState, Params
from scissorhands_jax.jobs.plan_steps import PlannedJob, PlannedRun, Program, StepKind
from scissorhands_jax.metrics import accuracies
from scissorhands_jax.metrics.row import SetPredictions, attack_numbers
from scissorhands_jax.training import checkpoints, compilation
from scissorhands_jax.training.identity import Identity

EVALUATION_BATCH = 500
"""The number of examples in a batch of an evaluation."""
_TIMED_STEPS, _TIMED_SECONDS = 10, 3.0


def time_evaluation(run: PlannedJob, params: Params, model_state: ModelState) -> float:
    """Seconds of one evaluation of a network, without compilation."""
    job = run.job
    parts: dict[str, Dataset] = {"retain": job.data.retain, "test": job.test, "forget": job.data.forget}
    task = job.splits.task
    sample = task.inputs(jax.tree.map(lambda leaf: leaf[: 2 * EVALUATION_BATCH], job.test))

    def predict():
        return accuracies.predict(job.model, params, model_state, sample, batch_size=EVALUATION_BATCH)

    logits = predict()
    per_batch = seconds_of(predict) / -(-len(sample) // EVALUATION_BATCH)
    batches = sum(-(-data_lib.size(part) // EVALUATION_BATCH) for part in parts.values())
    # The attack's time depends on the number and the spread of logits. So each set gets the number that it has in the
    # run, and they are spread like real ones.
    generator = np.random.default_rng(0)
    shown: dict[str, SetPredictions] = {}
    for name, part in parts.items():
        rows = generator.integers(len(logits), size=data_lib.size(part))
        noise = generator.normal(scale=1e-3, size=(len(rows), 1)).astype(np.float32)
        shown[name] = SetPredictions(logits[rows] + noise, part)
    return batches * per_batch + seconds_of(lambda: attack_numbers(shown, seed=0, every_attack=False, task=task))


class Beginning(NamedTuple):
    """How a run begins."""

    seconds: float  # of the method's `init` on all data, without compilation
    per_epoch: float  # seconds of each `begin_epoch`
    held: int  # bytes of what the method then holds in addition to the network, for all data
    carry: Carry  # what both make from the first batch


def time_beginning(run: PlannedRun, params: Params, model_state: ModelState) -> Beginning:
    """Begins a method on parts of its data, and scales time and memory up to all of them."""
    key = jax.random.key(run.seed)

    def begin(batches: int) -> Carry:
        data = jax.tree.map(jnp.asarray, run.first_batches(batches))
        return jax.block_until_ready(run.method.init(key, params, model_state, data))

    # Methods that take no steps read all data when they begin, the others the forget set at most.
    part = "forget" if run.kinds else "retain"
    whole, batch = (data_lib.size(getattr(data, part)) for data in (run.data, run.first_batches(1)))
    all_batches = whole / max(1, batch)
    carry = begin(1)
    beginning, held = seconds_of(lambda: begin(1)), trees.nbytes(carry.aux)
    if all_batches > 1:
        larger: list[Carry] = []
        more = seconds_of(lambda: larger.append(begin(3))) - beginning
        per_batch = (all_batches - 1) / (min(3, all_batches) - 1)
        beginning += per_batch * max(0.0, more)
        held += round(per_batch * (trees.nbytes(larger[0].aux) - held))
    data = jax.tree.map(jnp.asarray, run.first_batches(1))
    carry = run.method.begin_epoch(carry, data)
    per_epoch = seconds_of(lambda: jax.block_until_ready(run.method.begin_epoch(carry, data)))
    return Beginning(beginning, per_epoch, held, trees.copy(carry))


def time_steps(
    run: PlannedRun, programs: Mapping[StepKind, Program], carry: Carry
) -> tuple[dict[StepKind, float], Carry]:
    """The median seconds of a step of each kind, and the carry after them; the given one is donated."""
    seconds = {}
    data = jax.tree.map(jnp.asarray, run.first_batches(1))
    for kind, program in programs.items():
        arguments: tuple[Any, ...] = (kind.divided(run.devices).examples(data),)
        if program.rows is not None:
            stacked = jax.tree.map(lambda leaf, rows=program.rows: jnp.stack([leaf] * rows), arguments[0])
            arguments = (stacked, program.rows)
        times: list[float] = []
        while len(times) < 3 or (len(times) <= _TIMED_STEPS and sum(times) < _TIMED_SECONDS):
            start = time.perf_counter()
            carry, _ = jax.block_until_ready(program.call(carry, *arguments))
            times.append((time.perf_counter() - start) / (program.rows or 1))
        seconds[kind] = statistics.median(times[1:])  # The first one also maps memory.
    return seconds, carry


def time_saving(run: PlannedRun, carry: Carry) -> float:
    """Seconds of all checkpoints, one after each epoch."""
    epochs = run.settings.epochs if run.kinds else 0
    if not epochs:
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        keeper = checkpoints.Checkpointer(folder)

        def save(step: int) -> None:
            keeper.save(carry._replace(step=jnp.int32(step)), checkpoints.Position(step, 0), Identity({}, {}))

        first, later = (seconds_of(functools.partial(save, step)) for step in (1, 2))
        keeper.close()
    return first + (epochs - 1) * later


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of a call, without compilation."""
    compiled, start = compilation.seconds(), time.perf_counter()
    call()
    elapsed = time.perf_counter() - start
    return max(0.0, elapsed - (compilation.seconds() - compiled))
