"""Measures this machine, each time next to something timed in turn with it: `python -m experiments.benchmark`.

    python -m experiments.benchmark --out experiments/results/benchmark_cpu.json
    python -m experiments.benchmark --only 100M --repeats 21
    python -m experiments.benchmark --against ../before --out before_and_after.json  # this checkout against another one
    python -m experiments.benchmark --quick                                        # a rehearsal, tiny sizes

With --resume the results that FILE has are kept, unless they are of other code, another machine or other settings, or
of a comparison with another checkout, which is an error.

A case is a function that returns one `Result`. The function `cases` lists them, and `aims` judges their results.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import programs
from experiments.benchmark import against_checkout, against_torch, convolutions, sweeping
from experiments.benchmark.epochs import epoch_case
from experiments.benchmark.limits import PASSES, pass_case, product_case
from experiments.benchmark.parts import COPY, PARTS, READ, part_case
from experiments.benchmark.settings import Settings
from experiments.benchmark.steps import STEP, UNPROJECTED, memory_case, projection_case, step_case
from experiments.benchmark.timing import Aim, OnRound, Result, Spread
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console, Table, literal

Case = Callable[[OnRound], Result]


def cases(settings: Settings) -> dict[str, Case]:
    """Returns every case by name, in an order in which neighbours share the networks and trees that they run on."""
    listed: dict[str, Case] = {}
    for network in settings.networks:
        for kind, case in (
            ("step", step_case),
            ("projection", projection_case),
            ("memory", memory_case),
            ("epoch", epoch_case),
        ):
            name = f"{network}/{kind}"
            listed[name] = functools.partial(_call, case, name, network, settings)
        for step in against_torch.STEPS if against_torch.is_there() else ():
            name = f"{network}/{step}"
            listed[name] = functools.partial(_call, against_torch.torch_case, name, network, step, settings)
    for dtype in (jnp.float32,) if jax.default_backend() == "cpu" else (jnp.float32, jnp.bfloat16):
        name = f"product/{jnp.dtype(dtype).name}"
        listed[name] = functools.partial(_call, product_case, name, dtype, settings)
    for label in settings.sizes:
        for what in PASSES:
            name = f"{label}/{what}"
            listed[name] = functools.partial(_call, pass_case, name, label, what, settings)
    for name, case in (("unet/train", convolutions.unet_case), ("own network/train", convolutions.own_case)):
        listed[name] = functools.partial(_call, case, name, settings)
    for network in sweeping.networks(settings):
        for how in sweeping.together():
            name = f"sweep of {network}/{how}"
            listed[name] = functools.partial(_call, sweeping.sweep_case, name, network, how, settings)
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
    """Returns the promises that these results can judge."""
    network, tree = list(settings.networks)[-1], list(settings.trees)[-1]
    at_most: list[tuple[str, str, float, Callable[[Result], float | None]]] = [
        (
            "projection, dual and a masked update, by themselves: share of the step",
            f"{network}/projection",
            0.05,
            lambda result: result.ratio_to(STEP),
        ),
        (
            "projection and dual, by leaving them out: share of the step",
            f"{network}/step",
            0.05,
            lambda result: 1 - 1 / result.ratio_to(UNPROJECTED),
        ),
        ("threshold, in passes that read", f"{tree}/threshold", 10, lambda result: result.ratio_to(READ)),
        ("threshold, in passes that copy", f"{tree}/threshold", 10, lambda result: result.ratio_to(COPY)),
    ]
    for name in settings.networks:
        at_most += [
            *(
                (f"repair {part}: time in {whose}", f"{name}/{case}", 1, functools.partial(_ratio_to, reference))
                for part, case, whose, reference in (
                    ("step", "torch_repair", "eager PyTorch's", against_torch.PYTORCH),
                    ("epoch", "epoch", "eager PyTorch's", against_torch.PYTORCH),
                    ("epoch", "epoch", "the published code's", against_torch.PUBLISHED),
                )
            ),
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
    at_least: list[tuple[str, str, float, Callable[[Result], float | None]]] = []
    if jax.default_backend() != "cpu":
        at_least = [
            ("training step: share of the matrix rate", f"{label}/train", 0.4, _share_of_matrix_rate)
            for label, size in settings.sizes.items()
            if (size.network, size.dtype) == ("resnet18", "bfloat16")
        ]
    found = []
    for judged, least in ((at_most, False), (at_least, True)):
        for what, case, limit, value in judged:
            number = value(results[case]) if case in results else None
            if number is not None:
                found.append(Aim(what=what, case=case, value=number, limit=limit, at_least=least))
    return found


def _ratio_to(reference: str, result: Result) -> float | None:
    known = reference in (row.name for row in result.against)
    return result.ratio_to(reference) if known else None


def _share_of_matrix_rate(result: Result) -> float | None:
    return result.numbers["share_of_matrix_rate"]


@programs.ending("the same command with --resume keeps what --out has")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases, prints their results, and returns the exit status, which is 2 for input that cannot be used."""
    options = _parser().parse_args(arguments)
    provenance.note_code()
    document = _run(options, Console(stderr=True))
    if options.json:
        print(json.dumps(document, indent=2, allow_nan=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="cases whose name has a match, e.g. 'resnet18|100M'"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FOLDER",
        help="compare with the checkout in FOLDER, which takes turns with this one, instead of running the other cases",
    )
    parser.add_argument("--repeats", type=int, default=None, metavar="N", help="rounds that count (default 9)")
    parser.add_argument("--batch-size", type=int, default=None, metavar="N", help="of each kind per step (default 128)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON, after every case")
    parser.add_argument("--resume", action="store_true", help="keep the cases that FILE already has")
    programs.add_overwrite(parser)
    parser.add_argument("--note", default="", metavar="TEXT", help="goes into the JSON, e.g. what else was running")
    parser.add_argument("--json", action="store_true", help="print the JSON on standard output, the table on the other")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to rehearse")
    return parser


def _run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    small = {"batch_size": 4, "repeats": 3} if options.quick else {}
    given = {"batch_size": options.batch_size, "repeats": options.repeats}
    settings = Settings(quick=options.quick, **small | {name: n for name, n in given.items() if n is not None})
    if settings.batch_size < 1 or settings.repeats < 1:
        raise InputError(
            f"--batch-size and --repeats must be at least 1, got {settings.batch_size} and {settings.repeats}"
        )
    listed = cases(settings)
    against = None
    if options.against is not None:
        against = against_checkout.described(options.against)
        compared = against_checkout.comparisons(options.against, settings)
        listed = {name: functools.partial(_call, case) for name, case in compared.items()}
    try:
        chosen = {name: case for name, case in listed.items() if re.search(options.only, name)}
    except re.error as error:
        raise InputError(f"--only {options.only!r} is not a regular expression: {error}; correct it") from error
    if not chosen:
        raise InputError(f"--only {options.only!r} matches no case; there are {', '.join(listed)}")
    if options.resume and options.out is None:
        raise InputError("--resume needs --out FILE, the file that it continues")
    if options.out is not None and options.out.is_file() and not (options.resume or options.overwrite):
        raise InputError(f"{options.out} exists; continue it with --resume, or replace it with --overwrite")
    with programs.open_results(
        options.out,
        {"settings": dataclasses.asdict(settings), "against": against},
        results_of=_rows,
        compose=lambda results: _composed(programs.ordered(results, listed), settings, options.note),
        timed=True,
        overwrite=options.overwrite,
    ) as results:
        with progress_bar(console) as progress:
            task = progress.add_task("benchmark", total=len(chosen), note="")
            for name, case in chosen.items():
                if name not in results.results:
                    progress.update(task, description=name, note="")
                    found = case(lambda note: progress.update(task, note=note))
                    results.add(name, dataclasses.asdict(found))
                progress.advance(task)
            progress.update(task, description="benchmark", note="")
        document = results.document()
    output = console if options.json else Console()
    if not output.is_terminal:
        output.width = 120
    rows = [Result.from_json(row) for row in document["results"]]
    for table in (_times_table, _memory_table):
        output.print(table(rows))
    output.print(_aims_table(aims({row.name: row for row in rows}, settings), quick=settings.quick))
    return document


def _rows(document: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a file by name, after a look whether they are results."""
    return {Result.from_json(row).name: row for row in document["results"]}


def _composed(rows: Mapping[str, Mapping[str, Any]], settings: Settings, note: str) -> dict[str, Any]:
    results = {name: Result.from_json(row) for name, row in rows.items()}
    return {
        "results": [*rows.values()],
        "aims": [aim.to_json() for aim in aims(results, settings)],
        "note": note,
    }


def _times_table(results: Sequence[Result]) -> Table:
    table = Table(
        *("case", "median [quartiles]", "ratio to what took turns with it", "images/s", "rate", "compile"),
        title="Times",
    )
    for result in results:
        if result.seconds is not None:
            images = result.numbers.get("images_per_second")
            table.add_row(
                result.name,
                _duration(result.seconds),
                "\n".join(f"{row.ratio.median:.3g} × {row.name}" for row in result.against),
                "" if images is None else f"{images:.3g}",
                _rate(result.numbers),
                "" if result.compile_seconds is None else f"{result.compile_seconds:.2g} s",
            )
    return table


def _rate(numbers: Mapping[str, float | None]) -> str:
    for rate, unit, share in (
        ("flops_per_second", "GFLOP/s", "share_of_matrix_rate"),
        ("bytes_per_second", "GB/s", "share_of_copy_bandwidth"),
    ):
        achieved, part = numbers.get(rate), numbers.get(share)
        if achieved is not None:
            return f"{achieved / 1e9:.3g} {unit}" + ("" if part is None else f", {part:.0%}")
    return ""


def _memory_table(results: Sequence[Result]) -> Table:
    table = Table("case", "quantity", "value", title="Memory")
    for result in results:
        if result.seconds is None:
            for name, value in result.numbers.items():
                table.add_row(result.name, name.removesuffix("_bytes").replace("_", " "), _quantity(name, value))
    return table


def _aims_table(found: Sequence[Aim], *, quick: bool) -> Table:
    table = Table(
        "aim", "case", "value", "limit", "met", title="Aims (which tiny sizes do not judge)" if quick else "Aims"
    )
    for aim in found:
        mark = literal(("yes", "green") if aim.met else ("no", "red"))
        bound = "at least" if aim.at_least else "at most"
        table.add_row(aim.what, aim.case, f"{aim.value:.3g}", f"{bound} {aim.limit:g}", mark)
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
