"""Figures of this machine, each as a ratio to something timed in turn with it: `python -m experiments.benchmark`.

    python -m experiments.benchmark --out experiments/results/benchmark_cpu.json   # a quarter of an hour on 2 cores
    python -m experiments.benchmark --only 100M --repeats 21
    python -m experiments.benchmark --quick                                        # a rehearsal, tiny sizes

A case is a function that returns one `Result`; `cases` lists them and `aims` judges them. A new figure is a new case.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import ctypes
import dataclasses
import functools
import gc
import itertools
import json
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from scissorhands_jax import data as data_lib
from scissorhands_jax import (
    files,
    losses,
    masks,
    models,
    optimizers,
    projection,
    reinit,
    report,
    saliency,
    training,
    trees,
)
from scissorhands_jax.base import Data, Model, PyTree, StatefulLossFn
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods.scissorhands import scissorhands
from scissorhands_jax.progress import progress_bar

FRACTION = 0.03
_READ, _COPY = "read pass", "copy pass"  # one sum over the tree; one copy of it, times two
_UNPROJECTED, _STEP = "unprojected step", "step"

OnRound = Callable[[str], None]  # told how far a case has come
Call = Callable[[], Any]  # returns arrays, which are waited for


# What is measured.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How large and how often."""

    batch_size: int = 128  # retain examples per step, and as many forget examples
    repeats: int = 9
    quick: bool = False

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """Names and options of the networks whose step is measured; the last one is the one with aims."""
        if self.quick:
            return {"mlp": {"image_shape": (4, 4, 3), "hidden": (16,)}}
        return {name: {"image_shape": (32, 32, 3)} for name in ("resnet20", "resnet18")}

    @property
    def trees(self) -> dict[str, list[tuple[int, ...]]]:
        """Shapes of the parameter trees on which the parts are measured; the last one is the one with aims."""
        if self.quick:
            return {"5K": _conv_shapes(5_000, channels=16)}
        params, _ = jax.eval_shape(_network("resnet18", self)[0].init, jax.random.key(0))
        return {
            "11M": [leaf.shape for leaf in jax.tree.leaves(params)],
            "100M": _conv_shapes(100_000_000, channels=512),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Repeated measurements: the median and the quartiles."""

    median: float
    lower: float
    upper: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some numbers."""
        lower, median, upper = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
        return cls(median=median, lower=lower, upper=upper, repeats=len(values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Against:
    """A reference, timed in turn with the case; `ratio` is case / reference, taken round by round."""

    name: str
    seconds: Spread
    ratio: Spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What one case gives."""

    name: str
    what: str
    seconds: Spread | None = None
    against: tuple[Against, ...] = ()
    compile_seconds: float | None = None  # of the first call; None if this process had compiled it before
    recompilations: int | None = None  # after the first call
    numbers: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    load: tuple[float, float] | None = None  # mean number of busy processes over a minute, before and after

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Result:
        """The inverse of `dataclasses.asdict`, after JSON."""
        fields = dict(document)
        fields["seconds"] = fields["seconds"] and Spread(**fields["seconds"])
        fields["against"] = tuple(
            Against(name=row["name"], seconds=Spread(**row["seconds"]), ratio=Spread(**row["ratio"]))
            for row in fields["against"]
        )
        fields["load"] = fields["load"] and tuple(fields["load"])
        return cls(**fields)

    def ratio_to(self, name: str) -> float:
        """The median ratio to the reference of that name."""
        return next(row.ratio.median for row in self.against if row.name == name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aim:
    """A promise, and whether this run keeps it."""

    what: str
    case: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.limit


# How it is measured.

_COMPILE = "/jax/core/compile/backend_compile_duration"
_LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_compiled = {"count": 0.0, "seconds": 0.0}


def _on_event(event: str, duration_secs: float, **_: str | int) -> None:
    if event in (_COMPILE, _LOWER):
        _compiled["count"] += event == _COMPILE
        _compiled["seconds"] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_on_event)


@dataclasses.dataclass
class Timed:
    """One function's calls."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    compile_seconds: float | None = None  # of the first call, None if it compiled nothing
    recompilations: int = 0  # of all later calls


def time_in_turn(calls: Mapping[str, Call], repeats: int, on_round: OnRound | None = None) -> dict[str, Timed]:
    """Times functions in turn, round after round, so that whatever else the machine does strikes all of them alike.

    Args:
      calls: what is timed.
      repeats: rounds that count; two more come before them, the first of which compiles.
      on_round: told about every round.
    """
    timed = {name: Timed() for name in calls}
    for turn in range(-2, repeats):
        if on_round is not None:
            on_round("compiles" if turn == -2 else "warms up" if turn == -1 else f"round {turn + 1}/{repeats}")
        for name, call in calls.items():
            before = dict(_compiled)
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds = time.perf_counter() - start
            compilations = _compiled["count"] - before["count"]
            if turn > -2:
                timed[name].recompilations += int(compilations)
            elif compilations:
                timed[name].compile_seconds = _compiled["seconds"] - before["seconds"]
            if turn >= 0:
                timed[name].seconds.append(seconds)
    return timed


def compare(
    name: str,
    what: str,
    call: Call,
    references: Mapping[str, Call],
    settings: Settings,
    on_round: OnRound,
) -> Result:
    """Times a function against references."""
    timed = time_in_turn({name: call, **references}, settings.repeats, on_round)
    own = timed[name]
    against = tuple(
        Against(
            name=reference,
            seconds=Spread.of(timed[reference].seconds),
            ratio=Spread.of([a / b for a, b in zip(own.seconds, timed[reference].seconds, strict=True)]),
        )
        for reference in references
    )
    return Result(
        name=name,
        what=what,
        seconds=Spread.of(own.seconds),
        against=against,
        compile_seconds=own.compile_seconds,
        recompilations=own.recompilations,
    )


# The repair step.


class Repair:
    """The repair step of a network on random images, as `training.run` calls it; each call takes one joint step."""

    def __init__(self, network: str, settings: Settings, *, projected: bool = True) -> None:
        model, self.loss_fn = _network(network, settings)
        method = scissorhands(
            self.loss_fn,
            optimizers.sgd(1e-3),
            fraction=FRACTION,
            projected=projected,
            batch_size=settings.batch_size,
        )
        shape, count = settings.networks[network]["image_shape"], 2 * settings.batch_size
        self.data = Data(_random_images(shape, count, seed=1), _random_images(shape, count, seed=2))
        carry = method.init(jax.random.key(1), *model.init(jax.random.key(0)), self.data)
        self.carry = trees.copy(method.begin_epoch(carry, self.data))
        batches = list(method.batches(jax.random.key(2), self.data, 0))
        self.examples = data_lib.gather(self.data, batches[0])
        self._batches = itertools.cycle(batches)
        self._step = method.step

    def __call__(self) -> Any:
        self.carry, metrics = training._step(self._step, self.carry, training._gather(self.data, next(self._batches)))
        return self.carry, metrics

    def compiled(self) -> jax.stages.Compiled:
        """The compiled step."""
        return training._step.lower(self._step, self.carry, self.examples).compile()


@functools.lru_cache(maxsize=1)
def _repair(network: str, settings: Settings) -> Repair:
    return Repair(network, settings)


def step_case(name: str, network: str, settings: Settings, on_round: OnRound) -> Result:
    """The step, against the same step without projection."""
    references = {_UNPROJECTED: Repair(network, settings, projected=False)}
    what = f"repair step, {settings.batch_size} retain and {settings.batch_size} forget images"
    result = compare(name, what, _repair(network, settings), references, settings, on_round)
    assert result.seconds is not None
    params = trees.size(_repair(network, settings).carry.params)
    return dataclasses.replace(
        result, numbers={"images_per_second": 2 * settings.batch_size / result.seconds.median, "weights": params}
    )


def projection_case(name: str, network: str, settings: Settings, on_round: OnRound) -> Result:
    """Projection, dual and masked update, against the step."""
    step = _repair(network, settings)
    parts = _parts(network, tuple(leaf.shape for leaf in jax.tree.leaves(step.carry.params)))

    def call():
        return parts["projection"](), parts["mask_updates"]()

    what = "projection, its dual, and a masked update, without the rest of the step"
    return compare(name, what, call, {_STEP: step}, settings, on_round)


def memory_case(name: str, network: str, settings: Settings, on_round: OnRound) -> Result:
    """What the step holds at its peak: as compiled, and as a fresh process grows."""
    on_round("compiles")
    step = _repair(network, settings)
    analysis = _memory(step.compiled())
    peak = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    params, images = _bytes(step.carry.params), _bytes(step.examples)

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
    """By how much two steps raise the process's resident memory, when the carry and the code are there already."""
    step = Repair(network, settings)
    compiled = step.compiled()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # What compilation left behind would otherwise be used again, unseen.
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


# The parts.

PARTS = {
    "saliency": "scores |gradient * weight|",
    "threshold": "the exact k-th largest score",
    "mask": "threshold, ties and the mask",
    "reinitialize": "fresh weights where the mask is True",
    "projection": "projection of a gradient, K = 1",
    "mask_updates": "an update restricted to a mask",
}


def part_case(name: str, tree: str, part: str, settings: Settings, on_round: OnRound) -> Result:
    """One part on a tree, against plain passes over it."""
    shapes = settings.trees[tree]
    parts = _parts(tree, tuple(shapes))
    references = {_READ: parts[_READ], _COPY: parts[_COPY]}
    result = compare(name, PARTS[part], parts[part], references, settings, on_round)
    return dataclasses.replace(result, numbers={"weights": sum(map(math.prod, shapes))})


@functools.lru_cache(maxsize=1)
def _parts(tree: str, shapes: tuple[tuple[int, ...], ...]) -> dict[str, Call]:
    """Every part, and the plain passes, as functions without arguments on one tree of random numbers."""
    del tree  # only there so that each tree has its own functions and none finds another's compiled
    weights, gradient = _random_tree(shapes, seed=0), _random_tree(shapes, seed=1)
    scores = [abs(weight * slope) for weight, slope in zip(weights, gradient, strict=True)]
    mask = [score > 2.66 for score in scores]  # the largest 3 % or so
    sums = saliency.GradientSum(gradient, jnp.ones(()), jnp.zeros(1), ())
    k = round(FRACTION * trees.size(scores))
    projector, masked = projection.project_gradient(1), masks.mask_updates()
    state = projector.init(weights)

    @jax.jit
    def read(tree):
        return sum(jnp.sum(leaf) for leaf in tree)

    @jax.jit
    def copy(tree):
        return [leaf * 2 for leaf in tree]

    @jax.jit
    def reinitialize(key, weights, mask):
        return reinit.reinitialize(key, weights, mask, initializer=reinit.uniform())

    @jax.jit
    def project(gradient, forget_gradient):
        return projector.update(gradient, state, constraint_grads=[leaf[None] for leaf in forget_gradient])

    @jax.jit
    def mask_updates(updates, mask):
        return masked.update(updates, masked.init(updates), mask=mask)[0]

    return {
        _READ: lambda: read(weights),
        _COPY: lambda: copy(weights),
        "saliency": lambda: saliency.scores_of(sums, weights),
        "threshold": lambda: masks.kth_largest(scores, k),
        "mask": lambda: masks.top_fraction(scores, FRACTION),
        "reinitialize": lambda: reinitialize(jax.random.key(2), weights, mask),
        "projection": lambda: project(gradient, weights),
        "mask_updates": lambda: mask_updates(gradient, mask),
    }


# Cases and aims.

Case = Callable[[OnRound], Result]


def cases(settings: Settings) -> dict[str, Case]:
    """Every case by name, in an order in which neighbours share what they are run on."""
    listed: dict[str, Case] = {}
    for network in settings.networks:
        for kind, case in (("step", step_case), ("projection", projection_case), ("memory", memory_case)):
            name = f"{network}/{kind}"
            listed[name] = functools.partial(_call, case, name, network, settings)
    for tree in settings.trees:
        for part in PARTS:
            name = f"{tree}/{part}"
            listed[name] = functools.partial(_call, part_case, name, tree, part, settings)
    return listed


def _call(case: Callable[..., Result], *arguments: Any) -> Result:
    before = os.getloadavg()[0]
    result = case(*arguments)
    return dataclasses.replace(result, load=(round(before, 2), round(os.getloadavg()[0], 2)))


def aims(results: Mapping[str, Result], settings: Settings) -> list[Aim]:
    """The promises that can be judged by these results."""
    network, tree = list(settings.networks)[-1], list(settings.trees)[-1]
    judged: list[tuple[str, str, float, Callable[[Result], float | None]]] = [
        (
            "projection, dual and a masked update, by themselves: share of the step",
            f"{network}/projection",
            0.05,
            lambda result: result.ratio_to(_STEP),
        ),
        (
            "projection and dual, by leaving them out: share of the step",
            f"{network}/step",
            0.05,
            lambda result: 1 - 1 / result.ratio_to(_UNPROJECTED),
        ),
        ("threshold, in passes that read", f"{tree}/threshold", 10, lambda result: result.ratio_to(_READ)),
        ("threshold, in passes that copy", f"{tree}/threshold", 10, lambda result: result.ratio_to(_COPY)),
    ]
    for name in settings.networks:
        judged += [
            ("compilations after the first step", f"{name}/step", 0, lambda result: result.recompilations),
            (
                "peak memory as compiled, less activations, in copies of the parameters",
                f"{name}/memory",
                6,
                lambda result: result.numbers["copies_beyond_activations"],
            ),
            (
                "peak memory as measured, less activations, in copies of the parameters",
                f"{name}/memory",
                6,
                lambda result: result.numbers["measured_copies_beyond_activations"],
            ),
        ]
    found = []
    for what, case, limit, value in judged:
        number = value(results[case]) if case in results else None
        if number is not None:
            found.append(Aim(what=what, case=case, value=number, limit=limit))
    return found


# Ingredients.


@functools.cache
def _network(name: str, settings: Settings) -> tuple[Model, StatefulLossFn]:
    """A network and its loss; one value each, so that what several cases need is compiled once."""
    model = models.build(name, num_classes=10, **settings.networks[name])
    return model, losses.classification_loss(model)


def _conv_shapes(total: int, *, channels: int) -> list[tuple[int, ...]]:
    """Shapes of 3x3 convolutions with their scales and biases, and one of what is left; `total` weights in all."""
    block = [(3, 3, channels, channels), (channels,), (channels,)]
    count, rest = divmod(total, sum(map(math.prod, block)))
    return block * count + ([(rest,)] if rest else [])


def _random_tree(shapes: Sequence[tuple[int, ...]], *, seed: int) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]


def _random_images(shape: tuple[int, ...], count: int, *, seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (count, *shape)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 10, count), jnp.int32),
    }


def _bytes(tree: PyTree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


# The command.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases and prints them; returns the exit status, 2 for input that cannot be used."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        document = _run(options, console)
    except (InputError, OSError) as error:
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command with --resume keeps what --out has")
        return 130
    if options.json:
        print(json.dumps(document, indent=2, allow_nan=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="cases whose name has a match, e.g. 'resnet18|100M'"
    )
    parser.add_argument("--repeats", type=int, default=None, metavar="N", help="rounds that count (default 9)")
    parser.add_argument("--batch-size", type=int, default=None, metavar="N", help="of each kind per step (default 128)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON, after every case")
    parser.add_argument("--resume", action="store_true", help="keep the cases that FILE already has")
    parser.add_argument("--note", default="", metavar="TEXT", help="goes into the JSON, e.g. what else was running")
    parser.add_argument("--json", action="store_true", help="print the JSON on standard output, the table on the other")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to rehearse")
    return parser


def _run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    small = {"batch_size": 4, "repeats": 3} if options.quick else {}
    given = {"batch_size": options.batch_size, "repeats": options.repeats}
    settings = Settings(quick=options.quick, **small | {name: n for name, n in given.items() if n is not None})
    if settings.batch_size < 1 or settings.repeats < 1:
        raise InputError("--batch-size and --repeats must be at least 1")
    listed = cases(settings)
    try:
        chosen = {name: case for name, case in listed.items() if re.search(options.only, name)}
    except re.error as error:
        raise InputError(f"--only {options.only!r} is not a regular expression: {error}") from error
    if not chosen:
        raise InputError(f"--only {options.only!r} matches no case; there are {', '.join(listed)}")
    results = _kept(options, settings)
    document = _document(results, settings, options.note)
    with progress_bar(console) as progress:
        task = progress.add_task("benchmark", total=len(chosen), note="")
        for name, case in chosen.items():
            if name not in results:
                progress.update(task, description=name, note="")
                results[name] = case(lambda note: progress.update(task, note=note))
                results = {known: results[known] for known in listed if known in results}
                document = _document(results, settings, options.note)
                if options.out is not None:
                    files.write_text(options.out, json.dumps(document, indent=2, allow_nan=False) + "\n")
            progress.advance(task)
        progress.update(task, description="benchmark", note="")
    output = console if options.json else Console()
    if not output.is_terminal:
        output.width = 120
    for table in (_times_table, _memory_table):
        output.print(table(list(results.values())))
    output.print(_aims_table(aims(results, settings), quick=settings.quick))
    return document


def _kept(options: argparse.Namespace, settings: Settings) -> dict[str, Result]:
    """What an earlier run left, if it was made with the same settings on the same machine."""
    if not options.resume:
        return {}
    if options.out is None:
        raise InputError("--resume needs --out FILE")
    if not options.out.exists():
        return {}
    try:
        found = json.loads(options.out.read_text(encoding="utf-8"))
        results = {row["name"]: Result.from_json(row) for row in found["results"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{options.out} holds no results of this benchmark; leave out --resume") from error
    for part, now in {"settings": dataclasses.asdict(settings), **report.environment()}.items():
        if found.get(part) != now:
            raise InputError(f"the {part} of {options.out} differ from this run's; leave out --resume")
    return results


def _document(results: Mapping[str, Result], settings: Settings, note: str) -> dict[str, Any]:
    return {
        "results": [dataclasses.asdict(result) for result in results.values()],
        "aims": [{**dataclasses.asdict(aim), "met": aim.met} for aim in aims(results, settings)],
        "settings": dataclasses.asdict(settings),
        "note": note,
        **report.environment(),
    }


def _times_table(results: Sequence[Result]) -> Table:
    table = Table(
        "case", "median [quartiles]", "ratio to what took turns with it", "images/s", "compile", title="Times"
    )
    for result in results:
        if result.seconds is not None:
            images = result.numbers.get("images_per_second")
            table.add_row(
                result.name,
                _duration(result.seconds),
                "\n".join(f"{row.ratio.median:.3g} × {row.name}" for row in result.against),
                "" if images is None else f"{images:.3g}",
                "" if result.compile_seconds is None else f"{result.compile_seconds:.2g} s",
            )
    return table


def _memory_table(results: Sequence[Result]) -> Table:
    table = Table("case", "quantity", "value", title="Memory")
    for result in results:
        if result.seconds is None:
            for name, value in result.numbers.items():
                table.add_row(result.name, name.removesuffix("_bytes").replace("_", " "), _quantity(name, value))
    return table


def _aims_table(found: Sequence[Aim], *, quick: bool) -> Table:
    table = Table(
        "aim", "case", "value", "at most", "met", title="Aims (which tiny sizes do not judge)" if quick else "Aims"
    )
    for aim in found:
        mark = "[green]yes" if aim.met else "[red]no"
        table.add_row(aim.what, aim.case, f"{aim.value:.3g}", f"{aim.limit:g}", mark)
    return table


def _duration(spread: Spread) -> str:
    unit, size = next((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if spread.median >= s or s == 1e-6)
    return f"{spread.median / size:.3g} [{spread.lower / size:.3g}, {spread.upper / size:.3g}] {unit}"


def _quantity(name: str, value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value / 1e6:,.1f} MB" if name.endswith("_bytes") else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
