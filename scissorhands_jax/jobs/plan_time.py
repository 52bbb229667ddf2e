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
from scissorhands_jax.base import Carry, Data, Dataset, ModelState, Params
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
    carry: Carry  # what both make from the first batches


def time_beginning(run: PlannedRun, params: Params, model_state: ModelState) -> Beginning:
    """Begins a method on parts of its data, and scales time and memory up to all of them.

    A beginning may read the forget set, the retain set, both or neither. So one set is enlarged after the other, which
    says what a batch of it costs; the retain set comes first, because some read as much of it as there is to forget.
    """
    key = jax.random.key(run.seed)

    def begin(data: Data) -> tuple[float, Carry]:
        """The seconds of a beginning that compiles nothing, the least of a few where these are short; what it makes."""
        made: dict[str, Carry] = {}
        times: list[float] = []
        compiled = compilation.seconds()
        while len(times) < 3 and (sum(times) < _TIMED_SECONDS or compilation.seconds() > compiled):
            compiled = compilation.seconds()
            times.append(seconds_of(lambda: made.update(carry=init(data))))
        return min(times), made["carry"]

    def init(data: Data) -> Carry:
        return jax.block_until_ready(run.method.init(key, params, model_state, jax.tree.map(jnp.asarray, data)))

    counts = {"retain": max(1, -(-run.settings.beginning_examples // run.batch_size("retain"))), "forget": 1}
    first = smaller = run.first_batches(**counts)
    seconds, carry = begin(first)
    beginning, held = seconds, trees.nbytes(carry.aux)
    nbytes = held
    for name in counts:
        counts[name] += 2
        larger = run.first_batches(**counts)
        examples = [data_lib.size(getattr(data, name)) for data in (smaller, larger, run.data)]
        if examples[0] == examples[1]:
            continue
        batches = [-(-count // run.batch_size(name)) for count in examples]
        longer, grown = begin(larger)
        beginning += max(0.0, longer - seconds) * _growth(*batches)
        held += round((trees.nbytes(grown.aux) - nbytes) * _growth(*examples))
        smaller, seconds, nbytes = larger, longer, trees.nbytes(grown.aux)
    data = jax.tree.map(jnp.asarray, first)
    carry = run.method.begin_epoch(carry, data)
    per_epoch = seconds_of(lambda: jax.block_until_ready(run.method.begin_epoch(carry, data)))
    return Beginning(beginning, per_epoch, held, trees.copy(carry))


def _growth(first: int, larger: int, whole: int) -> float:
    """How often the step from `first` to `larger` fits between `first` and `whole`."""
    return (whole - first) / (larger - first)


def time_steps(
    run: PlannedRun, programs: Mapping[StepKind, Program], carry: Carry
) -> tuple[dict[StepKind, float], Carry]:
    """The median seconds of a step of each kind, and the carry after them; the given one is donated."""
    seconds = {}
    data = jax.tree.map(jnp.asarray, run.first_batches())
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
