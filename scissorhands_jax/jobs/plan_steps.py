"""The steps of a planned run: how many there are of each kind, and the programs that take them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Batch, Carry, Data, Method, PyTree
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.job import Job
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.methods.settings import of_network
from scissorhands_jax.training import loop as training


class StepKind(NamedTuple):
    """A kind of step: how many examples of each set it sees, None for a set that it does not see."""

    forget: int | None
    retain: int | None

    @property
    def name(self) -> str:
        """The numbers of examples in words."""
        parts = [f"{count} {part}" for part, count in self._asdict().items() if count is not None]
        return " + ".join(parts)

    @property
    def num_examples(self) -> int:
        """The number of examples of both sets in a step."""
        return sum(size or 0 for size in self)

    def divided(self, parts: int) -> Self:
        """The kind of step that sees one of several equal parts of the examples, rounded down."""
        return type(self)(*(None if count is None else count // parts for count in self))

    def positions(self, data: Data) -> Batch:
        """The positions of the examples of one such step, repeated where a set is smaller."""
        return Batch(
            *(
                None if count is None else np.arange(count) % data_lib.size(part)
                for count, part in zip(self, data, strict=True)
            )
        )

    def examples(self, data: Data) -> Batch:
        """The examples of one such step."""
        return data_lib.gather(data, self.positions(data))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlannedRun:
    """The steps of a run, and the devices that they are planned for."""

    data: Data
    seed: int
    devices: int  # that share every batch
    settings: MethodSettings
    method: Method
    whole: Method  # the method without microbatches
    kinds: Mapping[StepKind, int]  # how many steps of each kind

    @property
    def one_of_each(self) -> Data:
        """One example of each set."""
        return jax.tree.map(lambda leaf: leaf[:1], self.data)

    def batch_size(self, name: str) -> int:
        """The most examples of a set that a step, or a pass over the set in parts, sees at once."""
        return max(self.settings.batch_size, *(getattr(kind, name) or 0 for kind in self.kinds), 1)

    def first_batches(self, forget: int = 1, retain: int = 1) -> Data:
        """The examples that so many batches of each set need, or the whole set if that is smaller."""
        counts = {"forget": forget, "retain": retain}
        return Data(
            *(
                data_lib.take(part, np.arange(min(data_lib.size(part), counts[name] * self.batch_size(name))))
                for name, part in self.data._asdict().items()
            )
        )

    def outline_of(self, kind: StepKind) -> Batch:
        """Shapes and types of the examples of a step."""
        return jax.eval_shape(kind.examples, self.one_of_each)

    def flops(self, carry: Carry, kind: StepKind) -> float:
        """The floating-point operations of a step on all devices together.

        They are counted in the program for an accelerator and without microbatches, because that program has no loops.
        XLA counts the body of a loop only once, and on CPU a convolution may be a loop over parts of the batch.
        """
        step = self.whole.step
        batch = self.outline_of(kind.divided(self.devices))
        traced = jax.jit(lambda carry, batch: step(carry, batch)).trace(shapes_of(carry), batch)
        cost = traced.lower(lowering_platforms=("cuda",)).cost_analysis() or {}
        return float(cost.get("flops", 0.0)) * self.devices


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlannedJob(PlannedRun):
    """The steps of the job of a classifier."""

    job: Job

    @classmethod
    def of(cls, job: Job, devices: int) -> PlannedJob:
        """The run of a job; several devices share every batch.

        Raises:
          InputError: The devices do not divide a batch.
        """
        seed = job.config.seed
        settings = of_network(job.config.method, lambda: _unmeasured(job))
        method = job.method(settings)
        return cls(
            job=job,
            data=job.data,
            seed=seed,
            devices=devices,
            settings=settings,
            method=method,
            whole=job.method(changed_settings(settings, microbatches=1)),
            kinds=count_steps(method, job.data, settings.epochs, seed=seed, devices=devices),
        )


def _unmeasured(job: Job) -> float:
    """Stands for a loss on held-out examples, on which neither memory nor time depend."""
    job.check_held_out()
    return 1.0


def count_steps(method: Method, data: Data, epochs: int, *, seed: int, devices: int) -> dict[StepKind, int]:
    """How many steps of each kind a run takes.

    Args:
      method: The method.
      data: The data of the run, of which only sizes matter.
      epochs: The number of epochs.
      seed: The seed of the run.
      devices: The number of devices that share every batch.

    Raises:
      InputError: The devices do not divide a batch.
    """
    kinds: collections.Counter[StepKind] = collections.Counter()
    for epoch in range(epochs):
        for batch in method.batches(jax.random.key(seed), data, epoch):
            kinds[StepKind(*(None if part is None else len(part) for part in batch))] += 1
    for size in (size for kind in kinds for size in kind):
        if size is not None and size % devices:
            raise InputError(
                f"{devices} devices cannot share a batch of {size} examples; change --devices or the batch size"
            )
    return dict(kinds)


class Program(NamedTuple):
    """A compiled call of one or more steps."""

    call: jax.stages.Compiled
    rows: int | None  # batches that a call has room for, as `training.loop.compile_call` says
    temporaries: int  # bytes, gradients included
    code: int  # bytes


def compile_steps(run: PlannedRun, method: Method, carry: Carry, kind: StepKind, *, steps: int = 1) -> Program:
    """Compiles, for one device, what a run calls for steps of one kind.

    Args:
      run: The run, whose data decide how many steps a call takes.
      method: The method, which may be the one of the run or a variant of it.
      carry: What a step takes; arrays or their shapes.
      kind: What a step on that device sees.
      steps: The number of such steps in an epoch.
    """
    batches = [kind.positions(run.data)] * steps
    compiled, rows = training.compile_call(method.step, shapes_of(carry), run.outline_of(kind), run.data, batches)
    analysis = memory_analysis(compiled)
    return Program(compiled, rows, analysis.temp_size_in_bytes, analysis.generated_code_size_in_bytes)


def memory_analysis(compiled: jax.stages.Compiled) -> Any:
    """What the compiler says about the memory of a program.

    Raises:
      InputError: The compiler of this backend does not say it.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise InputError(f"the {jax.default_backend()} backend does not say how much memory compiled code takes")
    return analysis


def changed_settings(settings: MethodSettings, **changes: Any) -> MethodSettings:
    """The settings with those of the changes that these settings have a field for."""
    return dataclasses.replace(settings, **{name: value for name, value in changes.items() if hasattr(settings, name)})


def shapes_of(tree: PyTree) -> PyTree:
    """Shapes and types of the arrays of a tree."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
