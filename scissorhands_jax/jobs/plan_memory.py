"""The memory of a planned run: arrays by their shapes, programs as the compiler describes them, and the process itself.

Programs are compiled for one device. For N devices the memory is computed from these numbers, with S = params + model
state + optimizer state + what the method carries:

  data parallel    S + gradients + T(b / N)                 T(b): temporaries of a step with batches of b examples
  sharded params   (S + gradients) / N + T(b / N) + 2 max   max: the largest array, gathered for its layer and the next
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from scissorhands_jax import trees
from scissorhands_jax.base import Carry, Model, PyTree
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.plan_report import size_text
from scissorhands_jax.jobs.plan_steps import PlannedJob, Program, StepKind, shapes_of
from scissorhands_jax.jobs.plan_time import EVALUATION_BATCH
from scissorhands_jax.methods import TrainingSettings
from scissorhands_jax.training import feeding

TEMPORARIES = "activations and temporaries"
GRADIENTS = "gradients"
ORIGINAL_NETWORK = "original network"
NETWORK = "params and model state"
OPTIMIZER = "optimizer state"
HELD = "what the method holds"
ON_DEVICE = "data on the device"
GATHERED = "gathered layers"
_SHARDED = (ORIGINAL_NETWORK, NETWORK, GRADIENTS, OPTIMIZER, HELD)
_FREE_IN_EVALUATION = (GRADIENTS, OPTIMIZER, HELD, ON_DEVICE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """What one of several devices holds, in bytes."""

    strategy: str  # "one device", "data parallel" or "sharded parameters"
    parts: dict[str, int]
    data_parallel: int
    sharded: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunMemory:
    """What a run holds on a single device: bytes by what they are for."""

    parts: dict[str, int]
    evaluating: int  # a batch of the evaluation and the temporaries of its program
    largest: int  # the largest array of the parameters
    limit: int  # what a device has

    def place(self, devices: int, changes: Mapping[str, int] | None = None) -> Placement:
        """Divides the work over devices: by examples alone, or the parameters too if it fits only then.

        Args:
          devices: The number of devices.
          changes: The sizes of parts that differ from `parts`.
        """
        parts = {**self.parts, **(changes or {})}
        # An evaluation only holds the original and the result, so it can use the memory of everything else.
        free = sum(parts.get(name, 0) for name in _FREE_IN_EVALUATION)
        parts[TEMPORARIES] = max(parts.get(TEMPORARIES, 0), self.evaluating - free)
        total = sum(parts.values())
        if devices == 1:
            return Placement(strategy="one device", parts=parts, data_parallel=total, sharded=total)
        divided = {name: -(-size // devices) if name in _SHARDED else size for name, size in parts.items()}
        divided[GATHERED] = 2 * self.largest
        sharded = sum(divided.values())
        if total <= self.limit or total <= sharded:
            return Placement(strategy="data parallel", parts=parts, data_parallel=total, sharded=sharded)
        return Placement(strategy="sharded parameters", parts=divided, data_parallel=total, sharded=sharded)


def memory_of(
    run: PlannedJob, carry: Carry, programs: Mapping[StepKind, Program], *, held: int, process: int, limit: int
) -> RunMemory:
    """Adds up what a run holds.

    Args:
      run: The run.
      carry: What a step takes.
      programs: The program of each kind of step.
      held: Bytes of what the method holds in addition to the network.
      process: Bytes of the process around the arrays (`process_bytes`).
      limit: Bytes that each device has.
    """
    gradients = gradient_bytes(run.job.config, carry.params)
    examples = run.outline_of(StepKind(None, EVALUATION_BATCH)).retain
    assert examples is not None
    images = run.job.splits.task.inputs(examples)
    forward = _temporaries(lambda p, s, x: run.job.model.apply(p, s, x, train=False)[0], carry, images)
    steps = max((program.temporaries for program in programs.values()), default=0)
    if not programs:  # Such a method computes gradients of batches; a gradient is no temporary of its program.
        batch_of = StepKind(None, run.settings.batch_size)
        loss_fn = functools.partial(run.job.loss_fn, train=False, key=None)
        gradient = jax.grad(lambda p, s, x: loss_fn(p, s, x)[0])
        steps = gradients + _temporaries(gradient, carry, run.outline_of(batch_of).retain)
    batches = (
        (program.rows or 1) * trees.nbytes(run.outline_of(kind.divided(run.devices)))
        for kind, program in programs.items()
    )
    data = trees.nbytes(run.job.data) if feeding.fits_on_device(run.job.data) else 0
    parts = {
        ORIGINAL_NETWORK: trees.nbytes((carry.params, carry.model_state)),
        NETWORK: trees.nbytes((carry.params, carry.model_state)),
        OPTIMIZER: trees.nbytes(carry.opt_state),
        HELD: held,
        **program_parts(steps, gradients),
        ON_DEVICE: data + max(batches, default=0),
        "program": sum(program.code for program in programs.values()),
        "process": process,
    }
    params, _ = jax.eval_shape(run.job.model.init, jax.random.key(0))
    largest = max(map(trees.nbytes, jax.tree.leaves(params)))
    return RunMemory(parts=parts, evaluating=forward + trees.nbytes(images), largest=largest, limit=limit)


def program_parts(needed: int, gradients: int, *, held: int | None = None) -> dict[str, int]:
    """What a compiled program needs for itself, with the gradients apart from the other temporaries.

    Args:
      needed: Bytes of all its temporaries, for one device and undivided.
      gradients: Bytes of the gradients among them.
      held: Bytes of the gradients that one of several devices holds, by default all.
    """
    return {
        GRADIENTS: min(gradients if held is None else held, needed),
        TEMPORARIES: max(0, needed - gradients),
    }


def gradient_bytes(config: RunConfig, params: PyTree) -> int:
    """Bytes of the gradients that a step holds at the same time, as its method says."""
    return config.method.num_gradients * trees.nbytes(params)


def refuse_too_large(model: Model, *, config: RunConfig, devices: int, limit: int) -> None:
    """Refuses a network that cannot fit, whatever is changed. Only shapes are looked at.

    Args:
      model: The network.
      config: The settings of the run.
      devices: The number of devices that its arrays may be divided over.
      limit: The memory of one of them in bytes.

    Raises:
      InputError: Parameters, gradients and optimizer state alone take more than the devices have.
    """
    params, model_state = jax.eval_shape(model.init, jax.random.key(0))
    needed = trees.nbytes((params, model_state)) + gradient_bytes(config, params)
    if isinstance(config.method, TrainingSettings):
        needed += trees.nbytes(jax.eval_shape(config.method.optimizer().init, params))
    refuse_state(config.model, needed / devices, devices=devices, limit=limit)


def refuse_state(network: str, share: float, *, devices: int, limit: int) -> None:
    """Refuses a network of which parameters, gradients and optimizer state do not fit on some devices.

    Args:
      network: What the network is called.
      share: Bytes of these on each device.
      devices: The number of devices.
      limit: Bytes that each device has.

    Raises:
      InputError: They take more than the devices have.
    """
    if share > limit:
        raise InputError(
            f"{network} cannot fit, whatever is changed: parameters, gradients and optimizer state alone take "
            f"{size_text(share)} on each of {devices} {'device' if devices == 1 else 'devices'}, and "
            f"{size_text(limit)} are there; use more devices or a smaller network"
        )


def trimming_phases(network: PyTree, scoring: int, nbytes: Callable[[PyTree], int] = trees.nbytes) -> dict:
    """What Scissorhands holds before its repair, in bytes by phase and by what they are for.

    Args:
      network: The parameters or their outline.
      scoring: Bytes that the program needs for itself that computes the gradient of a batch.
      nbytes: How many bytes of a tree a device holds.
    """
    held = nbytes(network)
    return {
        "scoring": {ORIGINAL_NETWORK: held, HELD: held, GRADIENTS: held, TEMPORARIES: scoring},
        "trimming": {ORIGINAL_NETWORK: held, HELD: 2 * held},  # the sum of the gradients, and the scores
    }


def memory_limit(memory_gib: float | None) -> int:
    """Bytes that a device has: as given in GiB, or what this one has for None.

    Raises:
      InputError: The given number is not positive, or not finite.
    """
    if memory_gib is not None and not 0 < memory_gib < math.inf:
        raise InputError(f"--memory must be above 0 GiB and finite, got {memory_gib:g}")
    return feeding.device_memory() if memory_gib is None else int(memory_gib * 2**30)


def process_bytes() -> int:
    """Resident memory of this process without the arrays on its device, if that is a CPU.

    Returns:
      Bytes; 0 on accelerators, whose memory the process does not use, and where the system does not say it.
    """
    status = Path("/proc/self/status")
    if jax.default_backend() != "cpu" or not sys.platform.startswith("linux") or not status.exists():
        return 0
    gc.collect()
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmRSS"))
    held = sum(array.nbytes for array in jax.live_arrays())
    return max(0, 1024 * int(line.split()[1]) - held)


def _temporaries(function: Callable, carry: Carry, examples: PyTree) -> int:
    """Bytes that a function of params, model state and examples needs for itself."""
    arguments = shapes_of((carry.params, carry.model_state, examples))
    analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes
