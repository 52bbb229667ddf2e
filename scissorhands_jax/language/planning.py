"""The memory and the time of `scissorhands lm unlearn` before they are spent: from shapes, and from what XLA says.

Of the folder of a model only `config.json` is read, and of the files of examples how many rows they fill and how long
these are. The steps of the method are compiled for shapes. With P the bytes of the parameters that are trained and S
those of the model state, a phase holds

    measuring   P and S, and what the program of the loss needs for itself; before the first step and after the last
    scoring     Scissorhands and SSD: P and the sums of gradients, and what the program of a batch needs for itself
    steps       P, S, the optimizer's state and what the method carries, such as a second network, and what the program
                of a step needs for itself: gradients, activations, temporaries

With LoRA, P are the thin matrices and S is the network, of which there is no copy. Several devices share the rows of a
batch and, if it does not fit otherwise, the large arrays, as `training.sharding` divides them; then programs are
compiled for the rows that one device has. Not counted are checkpoints, which are written through host memory.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import report, trees
from scissorhands_jax.base import Carry, Data, Dataset, Model, ModelState, Params, PyTree, new_carry
from scissorhands_jax.errors import InputError, check_seed
from scissorhands_jax.jobs import plan_memory, plan_time
from scissorhands_jax.jobs.plan_memory import (
    GATHERED,
    GRADIENTS,
    HELD,
    NETWORK,
    ON_DEVICE,
    OPTIMIZER,
    ORIGINAL_NETWORK,
    TEMPORARIES,
)
from scissorhands_jax.jobs.plan_report import CostPlan, PlannedSteps, size_text
from scissorhands_jax.jobs.plan_steps import (
    PlannedRun,
    Program,
    StepKind,
    changed_settings,
    compile_steps,
    count_steps,
    memory_analysis,
)
from scissorhands_jax.language.decoder import Sizes
from scissorhands_jax.language.lora import BASE
from scissorhands_jax.language.model_folders import outline_of, read_language_config, read_text_tokenizer
from scissorhands_jax.language.token_losses import token_loss
from scissorhands_jax.language.unlearning import LanguageJob, LanguageTraining, TextRows, packed_sets, summed_losses
from scissorhands_jax.losses import microbatched
from scissorhands_jax.methods.scissorhands import Repair
from scissorhands_jax.methods.ssd import SsdSettings
from scissorhands_jax.training import compilation, feeding
from scissorhands_jax.training.sharding import DATA, MODEL, Layout, planned_layout

_HINT = (
    "Less takes: --lora RANK, --remat, --dtype bfloat16, --microbatches N, a smaller --batch-size, --devices N, a "
    "method that holds no second network; ask again with these."
)
_CEILING = 1.0  # stands for the ceiling of Scissorhands, on which neither memory nor time depend


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguagePlan(CostPlan):
    """The plan of a run that makes a language model forget."""

    trained: int
    """The number of parameters that are trained."""
    row_length: int
    """The number of tokens of a row."""
    devices: int
    strategy: str
    """How the devices share the work: "one device", "data parallel" or "sharded parameters"."""
    config: Mapping[str, Any]
    """What was planned."""
    compile_seconds: float

    @property
    def steps(self) -> int | None:
        """The number of steps; None where the sizes of the sets are not known."""
        counts = [kind.steps for kind in self.kinds if kind.steps is not None]
        return sum(counts) if len(counts) == len(self.kinds) else None

    def document(self) -> dict[str, Any]:
        """The plan as JSON, with the versions and the machine that it was made with."""
        return {
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "row_length": self.row_length,
            "devices": self.devices,
            "strategy": self.strategy,
            "phases_bytes": self.phases,
            "total_bytes": self.total_bytes,
            "limit_bytes": self.limit_bytes,
            "fits": self.fits,
            "kinds": [dataclasses.asdict(kind) for kind in self.kinds],
            "steps": self.steps,
            "seconds": {**self.seconds, "total": sum(self.seconds.values())} if self.seconds else {},
            "compile_seconds": self.compile_seconds,
            "config": self.config,
            **report.environment(),
        }


def plan_language(
    job: LanguageTraining,
    *,
    row_length: int | None = None,
    devices: int = 1,
    layout: Layout | None = None,
    memory_gib: float | None = None,
    timed: bool = False,
) -> LanguagePlan:
    """Predicts what `unlearning.unlearn_language` will cost with the same settings, for each of some devices.

    Args:
      job: What is planned; no weights are read or needed. A `LanguageJob` also says how many steps there are and how
        long rows are.
      row_length: The number of tokens of a row, for a job without files.
      devices: The number of devices that share the rows of a batch and, if it does not fit otherwise, the large arrays.
      layout: How a mesh, which may be abstract, divides rows and large arrays; then `devices` is not looked at.
      memory_gib: The memory of a device in GiB; None is what this one has.
      timed: Whether random weights are drawn and some steps taken with them on this device, for the time of a step and,
        where the files are known, of the run. Reading and writing the model, and the communication between devices, are
        not predicted.

    Raises:
      InputError: A setting or a file cannot be used, the devices do not divide a batch, the network cannot fit,
        whatever is changed, or steps are to be timed that need more memory than this device has.
    """
    if devices < 1:
        raise InputError(f"--devices must be at least 1, got {devices}")
    check_seed(job.seed)
    limit = plan_memory.memory_limit(memory_gib)
    sizes, model = job.network(read_language_config(job.model))
    rows = _rows(job, sizes, row_length)
    layouts = [layout] if layout is not None else _layouts(devices)
    run = _LanguageRun.of(job, sizes, model, rows, 1 if layouts[0] is None else layouts[0].mesh.shape[DATA])
    devices = 1 if layouts[0] is None else layouts[0].mesh.size
    carry = run.carry()
    state = (carry.params, carry.model_state, carry.opt_state, carry.aux, [carry.params] * run.settings.num_gradients)
    share = min(_nbytes(each, state) for each in layouts)
    plan_memory.refuse_state(str(job.model), share, devices=devices, limit=limit)

    compiling, started = compilation.seconds(), time.perf_counter()
    programs = _Programs.of(run, carry)
    compile_seconds = time.perf_counter() - started
    process = plan_memory.process_bytes()  # with what the compiler has left in it, as in a run
    divided = [_phases(run, carry, programs, process, each) for each in layouts]
    fits = [number for number, phases in enumerate(divided) if _total(phases) <= limit]
    chosen = fits[0] if fits else min(range(len(divided)), key=lambda number: _total(divided[number]))
    per_step: Mapping[StepKind, float] = {}
    seconds: dict[str, float] = {}
    if timed:
        _check_room(_total(_phases(run, carry, programs, process, None)))
        per_step, seconds = _times(run, programs, compiling)
    kinds = tuple(
        PlannedSteps(
            kind=kind.name,
            **kind._asdict(),
            steps=count if run.known else None,
            seconds_per_step=per_step.get(kind),
            flops_per_step=run.flops(carry, kind),
            temporaries_bytes=programs.steps[kind].temporaries,
        )
        for kind, count in run.kinds.items()
    )
    parameters, trained = trees.count_weights(outline_of(sizes)), trees.count_weights(carry.params)
    length, strategy = int(rows.data.retain["tokens"].shape[1]), _strategy(layouts[chosen])
    title = f"{job.method} on {job.model}, {parameters:,} parameters"
    title += "" if job.lora is None else f" and {trained:,} of LoRA"
    title += f", rows of {length} tokens" + (f", {sum(run.kinds.values()):,} steps" if run.known else "")
    return LanguagePlan(
        title=title + (f" on {strategy}" if devices == 1 else f" on {devices} devices, {strategy}"),
        parameters=parameters,
        phases=divided[chosen],
        limit_bytes=limit,
        kinds=kinds,
        seconds=seconds if run.known else {},
        hint=_HINT,
        trained=trained,
        row_length=length,
        devices=devices,
        strategy=strategy,
        config={
            "method": job.method,
            "settings": dataclasses.asdict(job.settings),
            "lora": None if job.lora is None else {"rank": job.lora.rank, "scale": job.lora.scale},
            "dtype": job.dtype,
            "remat": job.remat,
        },
        compile_seconds=compile_seconds,
    )


def _rows(job: LanguageTraining, sizes: Sizes, length: int | None) -> TextRows:
    """The rows of the files of a job; without files those of one batch of each set, with one token again and again."""
    if isinstance(job, LanguageJob):
        if length is not None:
            raise InputError("the files say how long rows are; leave --row-length out")
        return packed_sets(job, sizes, read_text_tokenizer(job.model))
    if length is None:
        raise InputError("nothing says how long rows are; give --forget and --retain, or --row-length")
    if not 2 <= length <= sizes.context:
        raise InputError(f"--row-length must be from 2 to {sizes.context} for this network, got {length}")
    count = data_lib.check_batch_size(job.settings.batch_size)
    arrays = {"tokens": np.int32, "answer": bool, "segment": np.int32}
    retain = {name: np.broadcast_to(np.ones((), kind), (count, length)) for name, kind in arrays.items()}
    refusals = {f"refusal_{name}": array for name, array in retain.items()} if job.method == "dpo" else {}
    return TextRows(Data({**retain, **refusals}, retain), None, {})


def _layouts(devices: int) -> list[Layout | None]:
    """How devices can share the work: the rows of a batch alone, or large arrays too."""
    if devices == 1:
        return [None]
    return [planned_layout(devices, fsdp=fsdp) for fsdp in (False, True)]


def _strategy(layout: Layout | None) -> str:
    if layout is None:
        return "one device"
    return "sharded parameters" if layout.fsdp or layout.mesh.shape[MODEL] > 1 else "data parallel"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _LanguageRun(PlannedRun):
    """The steps of a run over tokens, and the shapes of its network."""

    model: Model
    params: Params
    model_state: ModelState
    sizes: Sizes
    rows: TextRows
    known: bool
    """Whether the rows are those of files, so that it is known how many there are."""
    epochs: int
    rows_at_a_time: int

    @classmethod
    def of(cls, job: LanguageTraining, sizes: Sizes, model: Model, rows: TextRows, devices: int) -> _LanguageRun:
        """The run of a job; several devices share every batch."""
        # At a constant rate, on which nothing depends: the beginning of a schedule counts batches and cannot be traced.
        constant = changed_settings(job.settings, schedule="drops", milestones=())
        method, whole = (
            dataclasses.replace(job, settings=settings).build(sizes, model, _CEILING)
            for settings in (constant, changed_settings(constant, microbatches=1))
        )
        job.check_batches(method, rows.data)
        params, model_state = outline_of(sizes), {}
        if job.lora is not None:
            params, model_state = jax.eval_shape(model.init, jax.random.key(0))
            model_state = {BASE: outline_of(sizes, job.dtype)}
        known = isinstance(job, LanguageJob)
        epochs = job.settings.epochs if known else min(1, job.settings.epochs)
        return cls(
            data=rows.data,
            seed=job.seed,
            devices=devices,
            settings=job.settings,
            method=method,
            whole=whole,
            kinds=count_steps(method, rows.data, epochs, seed=job.seed, devices=devices),
            model=model,
            params=params,
            model_state=model_state,
            sizes=sizes,
            rows=rows,
            known=known,
            epochs=epochs,
            rows_at_a_time=job.rows_at_a_time,
        )

    def carry(self) -> Carry:
        """The outline of what a step takes."""
        settings: Any = self.settings
        repair = self.method.step

        def begin(key: jax.Array, params: Params, model_state: ModelState) -> Carry:
            if isinstance(repair, Repair):  # whose beginning looks at numbers
                return repair.begin(key, params, model_state, settings.optimizer(), settings.forget_weight, _CEILING)
            if not self.kinds:
                return new_carry(key, params, model_state, ())
            return self.whole.init(key, params, model_state, self.data)

        return jax.eval_shape(begin, jax.random.key(0), self.params, self.model_state)

    def some_rows(self, count: int) -> Dataset:
        """The outline of some rows of which only the loss is computed, on one of the devices."""
        names = ("tokens", "answer", "segment")
        count = count // self.devices if count % self.devices == 0 else count
        return {
            name: jax.ShapeDtypeStruct((count, *self.data.retain[name].shape[1:]), self.data.retain[name].dtype)
            for name in names
        }


class _Programs(NamedTuple):
    """What was compiled for one device."""

    steps: Mapping[StepKind, Program]
    measuring: int
    """Bytes that the program of the loss needs for itself, its rows included."""
    scoring: int
    """Bytes that the program of the gradient of a batch needs for itself; 0 for methods that score no weights."""

    @classmethod
    def of(cls, run: _LanguageRun, carry: Carry) -> _Programs:
        """Compiles the programs of a run."""
        steps = {
            kind: compile_steps(run, run.method, carry, kind.divided(run.devices), steps=-(-count // run.epochs))
            for kind, count in run.kinds.items()
        }
        rows = run.some_rows(run.rows_at_a_time)
        lowered = summed_losses.lower(run.model.apply, run.params, run.model_state, rows)
        measuring = memory_analysis(lowered.compile()).temp_size_in_bytes + trees.nbytes(rows)
        if not _scores(run):
            return cls(steps, measuring, 0)
        loss_fn = microbatched(token_loss(run.model), getattr(run.settings, "microbatches", 1))
        gradient = jax.jit(jax.grad(lambda params, rows: loss_fn(params, {}, rows, train=False, key=None)[0]))
        batch = run.some_rows(min(run.settings.batch_size, data_lib.size(run.data.forget)))
        scoring = memory_analysis(gradient.lower(run.params, batch).compile()).temp_size_in_bytes
        return cls(steps, measuring, scoring + trees.nbytes(batch))


def _scores(run: _LanguageRun) -> bool:
    return isinstance(run.method.step, Repair) or isinstance(run.settings, SsdSettings)


def _phases(
    run: _LanguageRun, carry: Carry, programs: _Programs, process: int, layout: Layout | None
) -> dict[str, dict[str, int]]:
    """Bytes of a device by phase and by what they are for."""

    def nbytes(tree: PyTree) -> int:
        return _nbytes(layout, tree)

    network = nbytes((carry.params, carry.model_state))
    # Data without files are the rows of a batch, and those are counted with the step.
    data = trees.nbytes(run.data) if run.known and feeding.fits_on_device(run.data) else 0
    around = {GATHERED: _gathered(layout, (carry.params, carry.model_state)), "process": process}
    phases = {"measuring": {NETWORK: network, TEMPORARIES: programs.measuring}}
    if isinstance(run.settings, SsdSettings):
        held = 2 * network  # the importances for what is to be forgotten, and those for everything
        phases["scoring"] = {ORIGINAL_NETWORK: network, HELD: held, GRADIENTS: network, TEMPORARIES: programs.scoring}
        phases["dampening"] = {ORIGINAL_NETWORK: network, HELD: held, NETWORK: network}
    elif _scores(run):
        phases |= plan_memory.trimming_phases(carry.params, programs.scoring, nbytes)
    for phase in list(phases)[1:]:
        phases[phase][ON_DEVICE] = data
    if programs.steps:
        temporaries = max(program.temporaries for program in programs.steps.values())
        gradients = run.settings.num_gradients * trees.nbytes(carry.params)
        batches = (
            (program.rows or 1) * trees.nbytes(run.outline_of(kind.divided(run.devices)))
            for kind, program in programs.steps.items()
        )
        phases["steps"] = {
            NETWORK: network,
            OPTIMIZER: nbytes(carry.opt_state),
            HELD: nbytes(carry.aux),
            **plan_memory.program_parts(temporaries, gradients, held=run.settings.num_gradients * nbytes(carry.params)),
            ON_DEVICE: data + max(batches),
            "program": sum(program.code for program in programs.steps.values()),
        }
    if run.model_state and jax.default_backend() == "cpu":
        # Merging reads the network again, in float32; elsewhere that is memory of the host.
        phases["writing"] = {NETWORK: trees.nbytes(outline_of(run.sizes))}
    return {phase: {**parts, **around} for phase, parts in phases.items()}


def _nbytes(layout: Layout | None, tree: PyTree) -> int:
    return trees.nbytes(tree) if layout is None else layout.nbytes(tree)


def _gathered(layout: Layout | None, tree: PyTree) -> int:
    """Bytes of arrays that are gathered for a layer and the next; 0 if none is divided."""
    sizes = [trees.nbytes(leaf) for leaf in jax.tree.leaves(tree) if _nbytes(layout, leaf) < trees.nbytes(leaf)]
    return 2 * max(sizes, default=0)


def _total(phases: Mapping[str, Mapping[str, int]]) -> int:
    return max(sum(parts.values()) for parts in phases.values())


def _check_room(needed: int) -> None:
    room = feeding.device_memory()
    if needed > room:
        raise InputError(
            f"--time takes steps on this device, which need {size_text(needed)}, and it has {size_text(room)}; leave "
            "--time out"
        )


def _times(run: _LanguageRun, programs: _Programs, compiling: float) -> tuple[dict[StepKind, float], dict[str, float]]:
    """Seconds of a step of each kind, and of the parts of the run; `compiling` were spent on compiling before."""

    @jax.jit
    def draw(key: jax.Array) -> tuple[Params, ModelState]:
        drawn = run.model.init(key)
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), drawn, (run.params, run.model_state))

    network = [draw(jax.random.key(run.seed))]
    evaluation = _evaluation_seconds(run, *network[0])
    beginning = plan_time.time_beginning(run, *network.pop())
    per_step, carry = plan_time.time_steps(run, programs.steps, beginning.carry)
    return per_step, {
        "compiling": compilation.seconds() - compiling,
        "evaluation": 2 * evaluation,
        "beginning": beginning.seconds,
        "epochs": beginning.per_epoch * run.settings.epochs if run.kinds else 0.0,
        "steps": sum(count * per_step[kind] for kind, count in run.kinds.items()),
        "saving": plan_time.time_saving(run, carry),
    }


def _evaluation_seconds(run: _LanguageRun, params: Params, model_state: ModelState) -> float:
    """Seconds of computing the loss of all rows once."""
    rows = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), run.some_rows(run.rows_at_a_time))

    def measure() -> None:
        jax.block_until_ready(summed_losses(run.model.apply, params, model_state, rows))

    measure()
    sets = [part for part in (*run.data, run.rows.held_out) if part is not None]
    return sum(math.ceil(data_lib.size(part) / run.rows_at_a_time) for part in sets) * plan_time.seconds_of(measure)
