"""Predicts what a run will cost: memory from compiled programs, time from a few real steps.

Memory per device is the sum of what follows from shapes (networks, optimizer, data), of what the compiler says that a
step needs for itself (`memory_analysis`), and, on CPU, of the process around it (`plan_memory`). The time with N
devices is that of a step with batches of b / N examples, without the communication.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from scissorhands_jax import report, trees
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import plan_memory, plan_time
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.job import Job, prepare_job
from scissorhands_jax.jobs.plan_advice import advise
from scissorhands_jax.jobs.plan_report import CostPlan, PlannedSteps
from scissorhands_jax.jobs.plan_steps import PlannedJob, compile_steps
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.terminal import Console, Progress
from scissorhands_jax.training import compilation


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan(CostPlan):
    """The plan of an unlearning run."""

    config: RunConfig
    devices: int
    placement: plan_memory.Placement

    def document(self) -> dict[str, Any]:
        """The plan as JSON, with the versions and the machine that it was made with."""
        return {
            "parameters": self.parameters,
            "devices": self.devices,
            "strategy": self.placement.strategy,
            "memory": {
                "parts_bytes": self.placement.parts,
                "total_bytes": self.total_bytes,
                "limit_bytes": self.limit_bytes,
                "fits": self.fits,
                "data_parallel_bytes": self.placement.data_parallel,
                "sharded_bytes": self.placement.sharded,
            },
            "kinds": [dataclasses.asdict(kind) for kind in self.kinds],
            "steps": sum(kind.steps or 0 for kind in self.kinds),
            "seconds": {**self.seconds, "total": sum(self.seconds.values())},
            "advice": [dataclasses.asdict(piece) for piece in self.advice],
            "config": dataclasses.asdict(self.config),
            **report.environment(),
        }


def plan_run(
    config: RunConfig,
    *,
    devices: int = 1,
    memory_gib: float | None = None,
    starting: float = 0.0,
    console: Console | None = None,
) -> RunPlan:
    """Predicts what `unlearning.unlearn` will cost.

    A few steps of each kind are taken, and the start of the method and the evaluation are timed on parts of the data
    and scaled up. Writing the report is not predicted, and neither is the communication between devices.

    Args:
      config: The job; a job without weights gets fresh ones.
      devices: The number of devices; more than one share every batch.
      memory_gib: The memory of each device in GiB; None is what this device has.
      starting: Seconds that a process takes before a run can begin, which are added to the others.
      console: Where progress is shown; None is the standard error.

    Raises:
      InputError: As for `unlearn`; or the devices do not divide a batch; or the network cannot fit, whatever is
        changed.
    """
    if devices < 1:
        raise InputError(f"--devices must be at least 1, got {devices}")
    limit = plan_memory.memory_limit(memory_gib)
    started = time.perf_counter()
    check = functools.partial(plan_memory.refuse_too_large, config=config, devices=devices, limit=limit)
    job = prepare_job(config, check=check)
    times = {"starting": starting, "reading": time.perf_counter() - started}
    with progress_bar(console or Console(stderr=True)) as progress:
        return _predict(job, devices, limit, times, progress)


def _predict(job: Job, devices: int, limit: int, times: dict[str, float], progress: Progress) -> RunPlan:
    """The plan of a job, by taking parts of it; `times` are the seconds of what came before."""
    run = PlannedJob.of(job, devices)
    task = progress.add_task("planning", total=4, note="")
    note = functools.partial(progress.update, task, advance=1)
    params, model_state = jax.tree.map(jnp.asarray, (job.params, job.model_state))
    compiled = compilation.seconds()
    note(note="evaluates some examples")
    evaluation = plan_time.time_evaluation(run, params, model_state)
    note(note="begins the method")
    beginning = plan_time.time_beginning(run, params, model_state)
    carry = beginning.carry
    note(note="compiles the steps")
    programs = {
        kind: compile_steps(run, run.method, carry, kind.divided(devices), steps=-(-count // run.settings.epochs))
        for kind, count in run.kinds.items()
    }
    process = plan_memory.process_bytes()
    note(note="takes some steps")
    seconds, carry = plan_time.time_steps(run, programs, carry)
    saving = plan_time.time_saving(run, carry)
    times = times | {
        "compiling": compilation.seconds() - compiled,
        "evaluation": 2 * evaluation,
        "beginning": beginning.seconds,
        "epochs": beginning.per_epoch * run.settings.epochs if run.kinds else 0.0,
        "steps": sum(count * seconds[kind] for kind, count in run.kinds.items()),
        "saving": saving,
    }
    memory = plan_memory.memory_of(run, carry, programs, held=beginning.held, process=process, limit=limit)
    placement = memory.place(devices)
    kinds = tuple(
        PlannedSteps(
            kind=kind.name,
            **kind._asdict(),
            steps=count,
            seconds_per_step=seconds[kind],
            flops_per_step=run.flops(carry, kind),
            temporaries_bytes=programs[kind].temporaries,
        )
        for kind, count in run.kinds.items()
    )
    where = "one device" if devices == 1 else f"{devices} devices, {placement.strategy}"
    steps, parameters = sum(run.kinds.values()), trees.count_weights(params)
    return RunPlan(
        title=f"{job.config.method_name} on {job.config.model}, {parameters:,} parameters, {steps:,} steps on {where}",
        parameters=parameters,
        phases={"run": placement.parts},
        limit_bytes=limit,
        kinds=kinds,
        seconds=times,
        advice=() if placement.total <= limit else advise(run, memory, carry),
        config=job.config,
        devices=devices,
        placement=placement,
    )
