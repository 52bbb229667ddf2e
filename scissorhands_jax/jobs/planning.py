"""What a run will cost, before it is paid: memory from compiled programs, time from a few real steps.

Memory per device is a sum of what is known by its shape (networks, optimiser, data), of what the compiler says that a
step needs for itself (`memory_analysis`), and, on CPU, of the process around it. Programs are compiled for one device.
For N devices the arithmetic is ours, with S = params + model state + optimiser state + what the method carries:

  data parallel    S + gradients + T(b / N)                 T(b): temporaries of a step with batches of b examples
  sharded params   (S + gradients) / N + T(b / N) + 2 max   max: the largest array, gathered for its layer and the next

and so is the time: that of a step with batches of b / N examples, without the communication.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, models, report, trees
from scissorhands_jax.base import Batch, Carry, Data, Dataset, Method, Model, ModelState, Params, PyTree
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.job import Job, prepare_job
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.methods import MethodSettings, TrainingSettings
from scissorhands_jax.methods.pair_gradients import choose_pair
from scissorhands_jax.metrics import accuracies, attacks
from scissorhands_jax.training import checkpoints, compilation, feeding
from scissorhands_jax.training import loop as training

_GIB = 2**30
_EVALUATION_BATCH = 500
_TIMED_STEPS, _TIMED_SECONDS = 10, 3.0
_TWO_GRADIENTS = ("scissorhands", "munba")
"""Methods whose steps hold the retain and the forget gradient at once."""


class Kind(NamedTuple):
    """A kind of step: how many examples of each set it sees, None where none."""

    forget: int | None
    retain: int | None

    @property
    def name(self) -> str:
        """For people."""
        parts = [f"{count} {part}" for part, count in self._asdict().items() if count is not None]
        return " + ".join(parts)

    def over(self, devices: int) -> Kind:
        """The share of one device."""
        return Kind(*(None if count is None else count // devices for count in self))

    def positions(self, data: Data) -> Batch:
        """Of some examples of this kind."""
        return Batch(
            *(
                None if count is None else np.arange(count) % data_lib.size(part)
                for count, part in zip(self, data, strict=True)
            )
        )

    def examples(self, data: Data) -> Batch:
        """Some examples of this kind."""
        return data_lib.gather(data, self.positions(data))


class Program(NamedTuple):
    """A compiled call of one or more steps."""

    call: jax.stages.Compiled
    rows: int | None  # batches that a call has room for, as `training.compile_call` says
    temporaries: int  # bytes, gradients included
    code: int  # bytes


def plan(
    config: RunConfig,
    *,
    devices: int = 1,
    memory_gib: float | None = None,
    starting: float = 0.0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Predicts what `unlearning.unlearn` will cost.

    A few steps of each kind are taken, the start of the method and the evaluation are timed on parts of the data and
    scaled up. Not predicted: writing the report, and with several devices communication.

    Args:
      config: the job; without weights the network gets fresh ones.
      devices: how many; more than one share every batch.
      memory_gib: of each device, in GiB; None is what this one has.
      starting: seconds that a process takes before a run can begin, to be counted in.

    Returns:
      A JSON-able document: `parameters`, `kinds` of steps, `memory`, `seconds`, `advice` and more.

    Raises:
      InputError: as `unlearn`; the devices do not divide a batch; or the network cannot fit whatever is done.
    """
    if devices < 1:
        raise InputError(f"--devices must be at least 1, got {devices}")
    if memory_gib is not None and not memory_gib > 0:
        raise InputError(f"--memory must be above 0 GiB, got {memory_gib:g}")
    limit = feeding.device_memory() if memory_gib is None else int(memory_gib * _GIB)
    console = console or Console(stderr=True)
    started = time.perf_counter()
    job = prepare_job(config, check=functools.partial(_check_state, config, devices=devices, limit=limit))
    reading = time.perf_counter() - started
    with progress_bar(console) as progress:
        return _Planner(job, devices, limit, progress).document(starting, reading)


def _check_state(config: RunConfig, model: Model, *, devices: int, limit: int) -> None:
    """Refuses what cannot fit whatever is done; only shapes are looked at."""
    params, model_state = jax.eval_shape(model.init, jax.random.key(0))
    needed = trees.nbytes((params, model_state)) + _gradients(config.method_name) * trees.nbytes(params)
    if isinstance(config.method, TrainingSettings):
        needed += trees.nbytes(jax.eval_shape(config.method.optimizer().init, params))
    share = needed / devices
    if share > limit:
        raise InputError(
            f"{config.model} does not fit whatever is done: parameters, gradients and optimiser state alone take "
            f"{size_text(share)} on each of {devices} {'device' if devices == 1 else 'devices'}, and "
            f"{size_text(limit)} are there; use more devices or a smaller network"
        )


def _repeated(batch: Batch, count: int) -> Batch:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * count), batch)


class _Planner:
    """One plan in the making."""

    def __init__(self, job: Job, devices: int, limit: int, progress: Progress) -> None:
        self.job, self.devices, self.limit, self.progress = job, devices, limit, progress
        self.settings: MethodSettings = job.config.method
        self.method: Method = job.method(self.settings)
        self.data: Data = job.data
        self.kinds = self._count_kinds()
        self.evaluating = 0  # bytes of a batch and its temporaries, once it is compiled
        if devices > 1:
            self._check_divides()
        self.task = progress.add_task("planning", total=4, note="")

    def document(self, starting: float, reading: float) -> dict[str, Any]:
        """The whole plan."""
        job, config = self.job, self.job.config
        params, model_state = jax.tree.map(jnp.asarray, (job.params, job.model_state))
        compiled = compilation.seconds()
        self._tell("evaluates some images")
        evaluating = self._evaluation(params, model_state)
        self._tell("begins the method")
        beginning, per_epoch, carry = self._beginning(params, model_state)
        self._tell("compiles the steps")
        programs = {
            kind: self.program(self.method, carry, kind.over(self.devices), steps=-(-count // self.settings.epochs))
            for kind, count in self.kinds.items()
        }
        process = process_bytes()
        self._tell("takes some steps")
        seconds, carry = self._steps(programs, carry)
        saving = self._saving(carry)
        compiling = compilation.seconds() - compiled
        counts = self.kinds
        stepping = sum(count * seconds[kind] for kind, count in counts.items())
        parts = self._parts(carry, programs, process)
        timing = {
            "starting": starting,
            "reading": reading,
            "compiling": compiling,
            "evaluation": 2 * evaluating,
            "beginning": beginning,
            "epochs": per_epoch * self.settings.epochs if counts else 0.0,
            "steps": stepping,
            "saving": saving,
        }
        memory = self._memory(parts)
        kinds = [
            {
                "kind": kind.name,
                "forget": kind.forget,
                "retain": kind.retain,
                "steps": count,
                "seconds_per_step": seconds[kind],
                "flops_per_step": self._flops(carry, kind) * self.devices,
                "temporaries_bytes": programs[kind].temporaries,
            }
            for kind, count in counts.items()
        ]
        return {
            "parameters": trees.size(params),
            "devices": self.devices,
            "strategy": memory.strategy,
            "memory": {
                "parts_bytes": memory.parts,
                "total_bytes": memory.total,
                "limit_bytes": self.limit,
                "fits": memory.total <= self.limit,
                "data_parallel_bytes": memory.replicated,
                "sharded_bytes": memory.sharded,
            },
            "kinds": kinds,
            "steps": sum(counts.values()),
            "seconds": timing | {"total": sum(timing.values())},
            "advice": [] if memory.total <= self.limit else self._advice(parts, carry),
            "config": dataclasses.asdict(config),
            **report.environment(),
        }

    def program(self, method: Method, carry: Carry, kind: Kind, *, steps: int = 1) -> Program:
        """What the run calls for so many steps of a kind in an epoch, compiled for one device."""
        batches = [kind.positions(self.data)] * steps
        outline = self._outline_of(kind)
        compiled, rows = training.compile_call(method.step, _outline(carry), outline, self.data, batches)
        analysis = compiled.memory_analysis()
        if analysis is None:
            raise InputError(f"the {jax.default_backend()} backend does not say how much memory compiled code takes")
        return Program(compiled, rows, analysis.temp_size_in_bytes, analysis.generated_code_size_in_bytes)

    def _tell(self, note: str) -> None:
        self.progress.update(self.task, advance=1, note=note)

    def _count_kinds(self) -> dict[Kind, int]:
        """How many steps of each kind the run takes."""
        kinds: collections.Counter[Kind] = collections.Counter()
        for epoch in range(self.settings.epochs):
            for batch in self.method.batches(jax.random.key(self.job.config.seed), self.data, epoch):
                kinds[Kind(*(None if part is None else len(part) for part in batch))] += 1
        return dict(kinds)

    def _check_divides(self) -> None:
        for kind in self.kinds:
            for size in kind:
                if size is not None and size % self.devices:
                    raise InputError(
                        f"{self.devices} devices cannot share a batch of {size} examples; change --devices or the "
                        "batch size"
                    )

    def _outline_of(self, kind: Kind) -> Batch:
        return jax.eval_shape(kind.examples, self._row())

    def _row(self) -> Data:
        """One example of each set."""
        return jax.tree.map(lambda leaf: leaf[:1], self.data)

    def _subset(self, batches: int) -> Data:
        """So many batches of each set, or all of it."""
        sizes = {part: max((getattr(kind, part) or 0 for kind in self.kinds), default=0) for part in Kind._fields}
        return Data(
            *(
                data_lib.take(
                    part, np.arange(data_lib.size(part))[: batches * (sizes[name] or self.settings.batch_size)]
                )
                for name, part in self.data._asdict().items()
            )
        )

    def _evaluation(self, params: Params, model_state: ModelState) -> float:
        """Seconds of one evaluation of a network, without compilation."""
        parts: dict[str, Dataset] = {"retain": self.data.retain, "test": self.job.test, "forget": self.data.forget}
        sample = self.job.test["image"][: 2 * _EVALUATION_BATCH]

        def predict():
            return accuracies.predict(self.job.model, params, model_state, sample, batch_size=_EVALUATION_BATCH)

        logits = predict()
        per_batch = _timed(predict) / -(-len(sample) // _EVALUATION_BATCH)
        batches = sum(-(-data_lib.size(part) // _EVALUATION_BATCH) for part in parts.values())
        # Logits as spread as real ones, as many of each set as there will be.
        rng = np.random.default_rng(0)
        shown = []
        for part in parts.values():
            rows = rng.integers(len(logits), size=data_lib.size(part))
            shown += [logits[rows] + rng.normal(scale=1e-3, size=(len(rows), 1)), np.asarray(part["label"])]
        return batches * per_batch + _timed(lambda: attacks.paper_mia(*shown, seed=0))

    def _beginning(self, params: Params, model_state: ModelState) -> tuple[float, float, Carry]:
        """Seconds of the method's `init` and of each `begin_epoch`, without compilation, and a carry."""
        key = jax.random.key(self.job.config.seed)

        def begin(batches: int) -> Carry:
            data = jax.tree.map(jnp.asarray, self._subset(batches))
            return jax.block_until_ready(self.method.init(key, params, model_state, data))

        # Methods that take no steps read all data when they begin, the others the forget set at most.
        part = "forget" if self.kinds else "retain"
        all_batches = data_lib.size(getattr(self.data, part)) / max(1, data_lib.size(getattr(self._subset(1), part)))
        carry = begin(1)
        beginning = _timed(lambda: begin(1))
        if all_batches > 1:
            more = _timed(lambda: begin(3)) - beginning
            beginning += (all_batches - 1) * max(0.0, more) / (min(3, all_batches) - 1)
        data = jax.tree.map(jnp.asarray, self._subset(1))
        carry = self.method.begin_epoch(carry, data)
        per_epoch = _timed(lambda: jax.block_until_ready(self.method.begin_epoch(carry, data)))
        return beginning, per_epoch, trees.copy(carry)

    def _steps(self, programs: Mapping[Kind, Program], carry: Carry) -> tuple[dict[Kind, float], Carry]:
        """Median seconds of a step of each kind."""
        seconds = {}
        data = jax.tree.map(jnp.asarray, self._subset(1))
        for kind, program in programs.items():
            arguments: tuple[Any, ...] = (kind.over(self.devices).examples(data),)
            if program.rows is not None:
                arguments = (_repeated(arguments[0], program.rows), program.rows)
            times: list[float] = []
            while len(times) < 3 or (len(times) <= _TIMED_STEPS and sum(times) < _TIMED_SECONDS):
                start = time.perf_counter()
                carry, _ = jax.block_until_ready(program.call(carry, *arguments))
                times.append((time.perf_counter() - start) / (program.rows or 1))
            seconds[kind] = statistics.median(times[1:])  # The first one also maps memory.
        return seconds, carry

    def _saving(self, carry: Carry) -> float:
        """Seconds of all checkpoints."""
        epochs = self.settings.epochs if self.kinds else 0
        if not epochs:
            return 0.0
        with tempfile.TemporaryDirectory() as folder:
            keeper = checkpoints.Checkpointer(folder)

            def save(step: int) -> None:
                keeper.save(carry._replace(step=jnp.int32(step)), checkpoints.Position(step, 0), {})

            first, later = (_timed(functools.partial(save, step)) for step in (1, 2))
            keeper.close()
        return first + (epochs - 1) * later

    def _parts(
        self,
        carry: Carry,
        programs: Mapping[Kind, Program],
        process: int,
    ) -> dict[str, int]:
        """Bytes on one device that has everything, by what they are for."""
        gradients = _gradients(self.job.config.method_name) * trees.nbytes(carry.params)
        examples = self._outline_of(Kind(None, _EVALUATION_BATCH)).retain
        assert examples is not None
        images = examples["image"]
        forward = self._temporaries(lambda p, s, x: self.job.model.apply(p, s, x, train=False)[0], carry, images)
        self.evaluating = forward + trees.nbytes(images)
        steps = max((program.temporaries for program in programs.values()), default=0)
        if not programs:  # What such methods do is gradients of batches; a gradient is no temporary of its program.
            batch_of = Kind(None, self.settings.batch_size)
            loss_fn = functools.partial(self.job.loss_fn, train=False, key=None)
            gradient = jax.grad(lambda p, s, x: loss_fn(p, s, x)[0])
            steps = gradients + self._temporaries(gradient, carry, self._outline_of(batch_of).retain)
        batches = (
            (program.rows or 1) * trees.nbytes(self._outline_of(kind.over(self.devices)))
            for kind, program in programs.items()
        )
        batch = max(batches, default=0)
        on_device = trees.nbytes(self.data) if feeding.fits_on_device(self.data) else 0
        parts = {
            "original network": trees.nbytes((carry.params, carry.model_state)),
            "params and model state": trees.nbytes((carry.params, carry.model_state)),
            "gradients": min(gradients, steps),
            "optimiser state": trees.nbytes(carry.opt_state),
            "what the method holds": trees.nbytes(carry.aux),
            _TEMPORARIES: max(0, steps - gradients),
            "data on the device": on_device + batch,
            "program": sum(program.code for program in programs.values()),
            "process": process if jax.default_backend() == "cpu" else 0,
        }
        return self._with_evaluation(parts)

    def _with_evaluation(self, parts: Mapping[str, int]) -> dict[str, int]:
        """With as many temporaries as evaluation needs, which holds nothing but the original and the result."""
        freed = ("gradients", "optimiser state", "what the method holds", "data on the device")
        needed = self.evaluating - sum(parts[name] for name in freed)
        return {**parts, _TEMPORARIES: max(parts[_TEMPORARIES], needed)}

    def _temporaries(self, function: Callable, carry: Carry, examples: PyTree) -> int:
        """Bytes that a function of params, model state and examples needs for itself."""
        arguments = _outline((carry.params, carry.model_state, examples))
        analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
        return 0 if analysis is None else analysis.temp_size_in_bytes

    def _memory(self, parts: Mapping[str, int], devices: int | None = None) -> _Memory:
        """What one of several devices holds; with one, all of it."""
        devices = devices or self.devices
        total = sum(parts.values())
        if devices == 1:
            return _Memory("one device", dict(parts), total, total, total)
        split = {name: -(-size // devices) if name in _SHARDED else size for name, size in parts.items()}
        params, _ = jax.eval_shape(self.job.model.init, jax.random.key(0))
        split["gathered layers"] = 2 * max(map(trees.nbytes, jax.tree.leaves(params)))
        sharded = sum(split.values())
        if total <= self.limit or total <= sharded:
            return _Memory("data parallel", dict(parts), total, total, sharded)
        return _Memory("sharded parameters", split, sharded, total, sharded)

    def _flops(self, carry: Carry, kind: Kind) -> float:
        """Of one device's share of a step, in one part.

        Counted of the program for an accelerator, which has no loops: XLA counts what is in a loop once, and on CPU a
        convolution may be one over parts of the batch.
        """
        step = self.method.step
        if getattr(self.settings, "microbatches", 1) > 1:
            step = self.job.method(_changed(self.settings, microbatches=1)).step
        batch = self._outline_of(kind.over(self.devices))
        traced = jax.jit(lambda carry, batch: step(carry, batch)).trace(_outline(carry), batch)
        return float((traced.lower(lowering_platforms=("cuda",)).cost_analysis() or {}).get("flops", 0.0))

    def _advice(self, parts: Mapping[str, int], carry: Carry) -> list[dict[str, Any]]:
        """What would need less, each with the memory that it is predicted to need."""
        kind = max(self.kinds, key=_examples, default=Kind(None, None)).over(self.devices)
        sizes = [size for size in kind if size is not None]
        gradients = _gradients(self.job.config.method_name) * trees.nbytes(carry.params)
        advice: list[dict[str, Any]] = []

        def activations(settings: MethodSettings, share: int = 1, **options: Any) -> int:
            """Compiled with 1/share of the batch."""
            program = self.program(self._method(settings, options), carry, kind.over(share))
            return max(0, program.temporaries - gradients)

        def suggest(what: str, how: str, needed: float, more: int = 0, devices: int | None = None) -> bool:
            changed = {_TEMPORARIES: max(0, round(needed)), "gradients": parts["gradients"] + more}
            memory = self._memory(self._with_evaluation({**parts, **changed}), devices)
            fits = memory.total <= self.limit
            place = f", {memory.strategy}" if devices else ""
            advice.append({"what": what + place, "how": how, "total_bytes": memory.total, "fits": fits})
            return fits

        def first_that_fits(factors: Sequence[int], suggestion: Callable[[int], bool]) -> None:
            """Of several numbers the smallest that is enough, or else the largest."""
            for factor in factors:
                if suggestion(factor) or factor == factors[-1]:
                    return
                advice.pop()

        now = getattr(self.settings, "microbatches", 1)
        plain = _changed(self.settings, microbatches=1, pair="sequential")
        apart = " method.pair=sequential" if getattr(self.settings, "pair", None) == "vmap" else ""
        dividing = [n for n in (2, 4, 8, 16, 32, 64) if sizes and not any(size % n for size in sizes)]
        whole = activations(plain) if sizes else parts[_TEMPORARIES]
        quarter = activations(plain, 4) if 4 in dividing else whole / 4

        def share_of(share: int) -> float:
            """On the line through the whole batch and a quarter of it."""
            return quarter + (whole - quarter) * (1 / share - 1 / 4) / (3 / 4)

        if self._pairs_at_once(carry, kind):
            one_by_one = activations(_changed(self.settings, pair="sequential"))
            suggest("one pass after the other", "method.pair=sequential", one_by_one)
        again = bool(sizes) and self._takes("remat") and not self.job.config.model_options.get("remat")
        if again:
            suggest("rematerialisation", "model_options.remat=true", activations(self.settings, remat=True))
        accumulator = trees.nbytes(carry.params)
        more = [n for n in dividing if n > now] if isinstance(self.settings, TrainingSettings) else []
        first_that_fits(
            more, lambda n: suggest(f"{n} microbatches", f"method.microbatches={n}{apart}", share_of(n), accumulator)
        )
        if again and 4 in more:
            both = f"method.microbatches=4{apart} model_options.remat=true"
            suggest("rematerialisation and 4 microbatches", both, activations(plain, 4, remat=True), accumulator)
        dtype = jnp.dtype(self.job.config.model_options.get("dtype", "float32"))
        if sizes and self._takes("dtype") and dtype == jnp.float32:
            suggest("bfloat16", "model_options.dtype=bfloat16", activations(self.settings, dtype="bfloat16"))
        first_that_fits(
            [self.devices * n for n in dividing],
            lambda n: suggest(f"{n} devices", f"--devices {n}", share_of(n // self.devices), devices=n),
        )
        return advice

    def _method(self, settings: MethodSettings, options: Mapping[str, Any]) -> Method:
        """The method for the network with other options."""
        if not options:
            return self.job.method(settings)
        config, splits = self.job.config, self.job.splits
        model = models.build(
            config.model,
            num_classes=len(splits.class_names),
            image_shape=splits.image_shape,
            **{**config.model_options, **options},
        )
        loss_fn = losses.classification_loss(model, augment=losses.augmentation_of(self.job.loss_fn))
        return settings.build(model, loss_fn, len(splits.class_names))

    def _takes(self, option: str) -> bool:
        make = models.MODELS[self.job.config.model]
        return option in {field.name for field in dataclasses.fields(type(make(num_classes=1)))}

    def _pairs_at_once(self, carry: Carry, kind: Kind) -> bool:
        pair = getattr(self.settings, "pair", None)
        if pair != "auto" or None in kind:
            return pair == "vmap"
        batch = kind.examples(self._row())
        return choose_pair(self.job.loss_fn, carry.params, batch) == "vmap"


class _Memory(NamedTuple):
    strategy: str
    parts: dict[str, int]
    total: int
    replicated: int
    sharded: int


_TEMPORARIES = "activations and temporaries"
_SHARDED = ("original network", "params and model state", "gradients", "optimiser state", "what the method holds")


def _examples(kind: Kind) -> int:
    """How many a step sees."""
    return sum(size or 0 for size in kind)


def _gradients(method_name: str) -> int:
    return 2 if method_name in _TWO_GRADIENTS else 1


def _changed(settings: MethodSettings, **changes: Any) -> MethodSettings:
    """With those changes that these settings know."""
    return dataclasses.replace(settings, **{name: value for name, value in changes.items() if hasattr(settings, name)})


def _outline(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _timed(call: Callable[[], Any]) -> float:
    """Seconds of a call, without compilation."""
    compiled, start = compilation.seconds(), time.perf_counter()
    call()
    elapsed = time.perf_counter() - start
    return max(0.0, elapsed - (compilation.seconds() - compiled))


def process_bytes() -> int:
    """Resident memory of this process without the arrays on its CPU device; 0 where nobody says."""
    gc.collect()
    status = Path("/proc/self/status")
    if not sys.platform.startswith("linux") or not status.exists():
        return 0
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmRSS"))
    held = sum(array.nbytes for array in jax.live_arrays())
    return max(0, 1024 * int(line.split()[1]) - held)


def print_plan(document: Mapping[str, Any], console: Console) -> None:
    """Prints a plan for people."""
    config, memory, seconds = document["config"], document["memory"], document["seconds"]
    if not console.is_terminal:
        console.width = 100
    count = document["devices"]
    on = "one device" if count == 1 else f"{count} devices, {document['strategy']}"
    console.print(
        f"{config['method_name']} on {config['model']}, {document['parameters']:,} parameters, "
        f"{document['steps']:,} steps on {on}",
        highlight=False,
    )
    if document["kinds"]:
        table = Table("a step with", "steps", "GFLOP", "ms", title="Steps")
        for kind in document["kinds"]:
            flops, milliseconds = kind["flops_per_step"] / 1e9, 1e3 * kind["seconds_per_step"]
            table.add_row(kind["kind"], f"{kind['steps']:,}", f"{flops:,.3g}", f"{milliseconds:,.3g}")
        console.print(table)
    table = Table("part", "per device", title="Memory", show_footer=True)
    table.columns[0].footer, table.columns[1].footer = "together", size_text(memory["total_bytes"])
    for name, size in memory["parts_bytes"].items():
        if size:
            table.add_row(name, size_text(size))
    console.print(table)
    table = Table("part", "time", title="Time", show_footer=True)
    table.columns[0].footer, table.columns[1].footer = "together", _duration(seconds["total"])
    for name, value in seconds.items():
        if name != "total" and value >= 0.05:
            table.add_row(_TIMES[name], _duration(value))
    console.print(table)
    limit = size_text(memory["limit_bytes"])
    verdict = f"[bold green]It fits[/] in {limit}." if memory["fits"] else f"[bold red]It does not fit[/] in {limit}."
    console.print(verdict, highlight=False)
    for piece in document["advice"]:
        mark = "[green]fits[/]" if piece["fits"] else "[red]does not[/]"
        text = f"{piece['what']} ({piece['how']}): {size_text(piece['total_bytes'])}, "
        console.print(f"  {text}{mark}", highlight=False, soft_wrap=True)


_TIMES = {
    "starting": "starting the process",
    "reading": "reading data and weights",
    "compiling": "compilation",
    "evaluation": "evaluation, before and after",
    "beginning": "beginning of the method (saliency, trim)",
    "epochs": "beginnings of epochs",
    "steps": "steps",
    "saving": "checkpoints",
}


def size_text(count: float) -> str:
    """Bytes for people."""
    if count < 2**10:
        return f"{count:.0f} bytes"
    unit, size = next((u, s) for u, s in (("GiB", _GIB), ("MiB", 2**20), ("KiB", 2**10)) if count >= s)
    return f"{count / size:,.3g} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
