"""Runs all experiments for an accelerator unattended: `python -m experiments.accelerator --out FILE --data-dir data`.

    python -m experiments.accelerator --out accelerator.json --work scratch --data-dir data --minutes 9
    python -m experiments.accelerator --out accelerator.json --tiny     # rehearses all of it on a CPU, in a minute

Every part is a command of its own. They run one after another, the most valuable first. FILE has the results of all
parts and is rewritten after every new one; the log of each part is written next to it. The folder `--work` has what the
parts need to continue (checkpoints, trained networks). Keep both in a folder that survives between calls. The same
command again skips the parts that are complete and continues the others from where they were stopped, by `--minutes` or
by being killed at any moment. If only FILE survived, a part that was not complete starts from its beginning.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scissorhands_jax import files
from scissorhands_jax.errors import InputError
from scissorhands_jax.terminal import Console, complain

_POLL_SECONDS, _GRACE_SECONDS = 0.1, 10.0
_LEAST_SECONDS = 30.0  # A part that is given less would do little more than compile.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A command that writes a JSON file while it runs, and continues from it when it is run again."""

    name: str
    command: tuple[str, ...]
    result: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is not done yet; returns the exit status: 0, 1 where a part failed, 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m experiments.accelerator", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="for all results")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="for checkpoints and networks; default: work, next to FILE"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder of CIFAR-10's and CIFAR-100's files")
    parser.add_argument("--minutes", type=float, metavar="N", help="stop after N minutes; default: when all is done")
    parser.add_argument("--only", default="", metavar="PATTERN", help="parts whose name has a match")
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny networks and the digits")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        if not options.tiny and options.data_dir is None:
            raise InputError("--data-dir is missing; name the folder with CIFAR-10, or rehearse with --tiny")
        listed = parts(options.work or options.out.parent / "work", options.data_dir, tiny=options.tiny)
        try:
            chosen = [part for part in listed if re.search(options.only, part.name)]
        except re.error as error:
            raise InputError(f"--only {options.only!r} is not a regular expression: {error}") from error
        if not chosen:
            raise InputError(f"--only {options.only!r} matches no part; there are {', '.join(p.name for p in listed)}")
        seconds = float("inf") if options.minutes is None else 60 * options.minutes
        documents = run_parts(chosen, options.out, seconds=seconds, console=console)
    except InputError as error:
        complain(console, str(error))
        return 2
    return int(any(document["error"] for document in documents.values()))


def parts(work: Path, data_dir: str | None, *, tiny: bool) -> list[Part]:
    """All parts, the most valuable first."""
    python = (sys.executable, "-m")
    data = () if data_dir is None else ("--data-dir", data_dir)
    size = ("--quick", "--only", "mlp/step|threshold") if tiny else ()
    benchmark = (*python, "experiments.benchmark", "--resume", "--out", str(work / "benchmark.json"), *size)
    timings = (*python, "experiments.timings", "--out", str(work / "timings.json"), *(("--tiny",) if tiny else data))
    listed = [
        Part(name="benchmark", command=benchmark, result=work / "benchmark.json"),
        Part(name="timings", command=timings, result=work / "timings.json"),
    ]

    def table(config: str, seeds: str, dtype: str) -> Part:
        # All seeds of a table share a folder, so that a table of more seeds continues the one of fewer.
        folder = work / f"{config}_{dtype}"
        settings = (f"model_options.dtype={dtype}", *(_TINY_TABLE if tiny else ()))
        command = (*python, "experiments.run", "--config", config, "--seeds", seeds, "--out", str(folder))
        limits = ("--only", "^finetune$") if tiny else data
        name = f"{config}-{dtype}-seeds{seeds.replace(',', '')}"
        return Part(name=name, command=(*command, *limits, *settings), result=folder / "results.json")

    def audited(config: str, tier: str) -> Part:
        folder = work / f"{config}_{tier}"
        command = (*python, "experiments.audit", "--config", config, "--tier", tier, "--out", str(folder))
        settings = _TINY_AUDIT if tiny else (*data, "model_options.dtype=bfloat16")
        return Part(name=f"{config}-{tier}", command=(*command, *settings), result=folder / "results.json")

    if tiny:
        return [*listed, table("demo", "0", "bfloat16"), audited("demo_audit", "smoke")]
    dtypes = ("bfloat16", "float32")
    return [
        *listed,
        *(table("cifar10", "0", dtype) for dtype in dtypes),
        *(table("cifar10", "0,1,2", dtype) for dtype in dtypes),
        audited("cifar10_audit_resnet9", "standard"),
        table("recipes", "0,1,2", "bfloat16"),
        *(table(config, "0,1,2", "bfloat16") for config in ("cifar10_class", "cifar10_ablation", "cifar10_50")),
        *(table(config, "0,1,2", "bfloat16") for config in ("cifar10_20", "cifar10_scenarios", "cifar100")),
    ]


_TINY_AUDIT = ("training.epochs=1", "train_limit=300", "test_limit=100")
_TINY_TABLE = ("training.epochs=1", "train_limit=200", "test_limit=100", "every_attack=false")


def run_parts(
    chosen: Sequence[Part], out: Path, *, seconds: float = float("inf"), console: Console | None = None
) -> dict[str, dict[str, Any]]:
    """Runs parts that are not complete, in order, those that failed in an earlier call last.

    Args:
      chosen: The parts, with different names.
      out: The file. For every part that was started it holds, by its name, `complete`, `seconds` over all calls,
        `calls`, `error` (the end of the output of a command that failed, otherwise None) and `result`, the content of
        the part's own file.
      seconds: The time for all parts together. A part gets what is left of it, and only the first one starts with less
        than half a minute.

    Returns:
      The entries of the chosen parts in the file.

    Raises:
      InputError: The file exists and holds something else.
    """
    console = console or Console(stderr=True)
    deadline = time.monotonic() + seconds
    known, begun = _read(out), False
    for part in sorted(chosen, key=lambda part: bool(known.get(part.name, {}).get("error"))):
        if known.get(part.name, {}).get("complete"):
            continue
        left = deadline - time.monotonic()
        if left <= 0 or (begun and left < _LEAST_SECONDS):
            console.print(f"no time is left for {part.name}", highlight=False)
            break
        begun = True
        _run_part(part, known, out, left)
        found = known[part.name]
        state = "complete" if found["complete"] else "failed" if found["error"] else "stopped, continues next time"
        console.print(f"{part.name}: {state}, {found['seconds']:.0f} s", highlight=False)
    return {part.name: known[part.name] for part in chosen if part.name in known}


def _read(out: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(out.read_text(encoding="utf-8"))["parts"] if out.exists() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out} holds no results of this command; name another file") from error


def _run_part(part: Part, known: dict[str, dict[str, Any]], out: Path, seconds: float) -> None:
    """One part for at most so long; what is known of it is on disk whenever this is killed."""
    for folder in (out.parent, part.result.parent):
        folder.mkdir(parents=True, exist_ok=True)
    fresh = {"complete": False, "seconds": 0.0, "calls": 0, "result": None}
    before = fresh | known.get(part.name, {})
    found = known[part.name] = {**before, "calls": before["calls"] + 1, "error": None}
    started, seen = time.monotonic(), 0

    def write() -> None:
        found["seconds"] = before["seconds"] + time.monotonic() - started
        files.write_text(out, json.dumps({"parts": known}, indent=1) + "\n")

    write()
    log = out.with_name(f"{out.stem}-{part.name}.log")
    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(part.command, stdout=sink, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and time.monotonic() - started < seconds:
                time.sleep(_POLL_SECONDS)
                changed = part.result.stat().st_mtime_ns if part.result.exists() else 0
                if changed != seen:
                    seen, found["result"] = changed, json.loads(part.result.read_text(encoding="utf-8"))
                    write()
        finally:
            status = process.poll()
            if status is None:
                _stop(process)
    if part.result.exists():
        found["result"] = json.loads(part.result.read_text(encoding="utf-8"))
    found["complete"] = status == 0
    if status not in (None, 0):
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        found["error"] = "\n".join([f"exit status {status}", *said[-15:]])
    write()


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
