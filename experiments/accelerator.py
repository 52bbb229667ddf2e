"""Makes the most of a quarter of an hour with an accelerator, unattended: `python -m experiments.accelerator`.

    python -m experiments.accelerator --out out/accelerator.json --work runs/lent --data-dir runs/packed --minutes 3
    python -m experiments.accelerator --out out/accelerator.json --work runs/lent --data-dir runs/packed --minutes 8
    python -m experiments.accelerator --out accelerator.json --tiny     # rehearses all of it on a CPU

Every part is a command of its own, made for two to three minutes of a large GPU. They run one after another, the most
valuable first. FILE has the results of all parts and is rewritten after every new one; next to it are one log of all
parts and the predictions on which `experiments.attacks` later runs the membership attacks, in files below 16 MiB. The
folder `--work` has what the parts need to continue (finished networks, compiled programs) and a copy of FILE, which is
read where FILE is missing. The same command again skips the parts that are complete and continues the others from where
they were stopped, by `--minutes` or by being killed at any moment. What a rehearsal, other code or other images have
given is not complete: it is measured again, and what was complete stays in FILE as `earlier`. If only FILE survived, a
part that was not complete starts from its beginning. Parts that need CIFAR-10 wait until all that
`experiments.pack_cifar10` wrote has arrived in `--data-dir`. What runs needs jax, flax, optax, orbax, chex and etils,
and nothing that they do not need themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import programs
from experiments.attacks import Archives
from scissorhands_jax import files, hashing, reading
from scissorhands_jax.datasets import compact
from scissorhands_jax.datasets.splits import Splits
from scissorhands_jax.errors import InputError
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console, say

_POLL_SECONDS, _GRACE_SECONDS = 0.1, 10.0
_LEAST_SECONDS = 30.0  # A part that is given less would do little more than compile.
_MOST_SECONDS = 240.0  # One that hangs must not take the time of the others.
_SAID_LINES = 15
_PATHS = ("--out", "--data-dir")


def made_of(data_dir: Path, *, tiny: bool) -> dict[str, Any]:
    """What all parts depend on: whether it is a rehearsal, the code, and the packed images."""
    return {
        "tiny": tiny,
        "code": provenance.running_code().name,
        "experiments_sha256": hashing.sources_sha256(Path(__file__).parent),
        "data_sha256": compact.packed_sha256(data_dir),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A command that writes a JSON file while it runs, and continues from it when it is run again."""

    name: str
    command: tuple[str, ...]
    result: Path
    needs_data: bool = False
    of: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else the result depends on (see `made_of`)."""

    def described(self) -> dict[str, Any]:
        """All that the result depends on, as JSON; where files lie is no part of it."""
        before = ("", *self.command)
        words = ["…" if last in _PATHS else word for last, word in zip(before, self.command, strict=False)]
        return {**self.of, "command": words[1:]}


@programs.ending("the same command goes on where it was stopped")
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is not done yet; returns the exit status: 0, 1 where a part failed, 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m experiments.accelerator", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="for all results")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="for networks and compiled programs; default: work, next to FILE"
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of CIFAR-10's files")
    parser.add_argument("--minutes", type=float, metavar="N", help="stop after N minutes; default: when all is done")
    parser.add_argument("--only", default="", metavar="PATTERN", help="parts whose name has a match")
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny networks and images of noise")
    options = parser.parse_args(arguments)
    if options.tiny:  # compile fast rather than well
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        os.environ.setdefault("XLA_FLAGS", flags)
    console, work = Console(stderr=True), options.work or options.out.parent / "work"
    if not options.tiny and options.data_dir is None:
        raise InputError("--data-dir is missing; name the folder with CIFAR-10, or rehearse with --tiny")
    data_dir = options.data_dir or _tiny_cifar10(work / "data")
    of = made_of(data_dir, tiny=options.tiny)
    folder = work / hashing.sha256(hashing.stable_json(of))[:12]
    listed = [dataclasses.replace(part, of=of) for part in parts(folder, data_dir, tiny=options.tiny)]
    try:
        chosen = [part for part in listed if re.search(options.only, part.name)]
    except re.error as error:
        raise InputError(f"--only {options.only!r} is not a regular expression: {error}; correct it") from error
    if not chosen:
        raise InputError(f"--only {options.only!r} matches no part; there are {', '.join(p.name for p in listed)}")
    chosen = _without_waiting(chosen, data_dir, console)
    seconds = math.inf if options.minutes is None else 60 * options.minutes
    documents = run_parts(chosen, options.out, seconds=seconds, console=console, work=work)
    return int(any(document["error"] for document in documents.values()))


def parts(work: Path, data_dir: Path, *, tiny: bool) -> list[Part]:
    """All parts, the most valuable first.

    Args:
      work: Their folder.
      data_dir: The folder of CIFAR-10's files.
      tiny: Whether to rehearse: the same commands with other sizes.
    """
    python, data = (sys.executable, "-m"), ("--data-dir", str(data_dir))
    sizes = ("--tiny",) if tiny else ()

    def measured(name: str, module: str, *arguments: str, needs_data: bool = False) -> Part:
        out = work / f"{name}.json"
        return Part(
            name=name,
            command=(*python, f"experiments.{module}", "--out", str(out), *arguments),
            result=out,
            needs_data=needs_data,
        )

    def table(name: str, methods: str, *, seeds: str = "0") -> Part:
        # All parts share a folder, and each continues what the one before it left.
        out = work / "table"
        config, only, settings = ("demo_audit", "^scissorhands$", _TINY_TABLE) if tiny else (_CONFIG, methods, _TABLE)
        command = (*python, "experiments.run", "--config", config, "--out", str(out), "--seeds", seeds, *data)
        command += ("--only", only, "--no-report", *settings)
        return Part(name=name, command=command, result=out / "results.json", needs_data=True)

    def protocol(name: str, cases: str) -> Part:
        return measured(name, "timings", "--only", cases, *data, *sizes, needs_data=True)

    patterns = method_patterns()
    steps = "mlp@2/train|product" if tiny else r"^product/|^resnet18@(256|1024)(-bfloat16)?/train$"
    listed = [
        measured("steps", "benchmark", "--resume", "--only", steps, *(("--quick",) if tiny else ())),
        protocol("scissorhands", "scissorhands"),
        table("table", patterns[0]),
        measured("weights", "timings", "--only", "threshold|step", *sizes),
        measured("unet", "unet_step", *sizes),
        protocol("retrain", "retrain, bfloat16"),
    ]
    if tiny:
        return listed
    later = [table(f"table-{number}", pattern) for number, pattern in enumerate(patterns[1:-1], 2)]
    seeds = [table(f"table-seed{seed}", patterns[0], seeds=seed) for seed in ("1", "2")]
    last = [table("table-slow", patterns[-1]), protocol("retrain-float32", "retrain, float32")]
    return [*listed[:3], *later, *listed[3:], *seeds, *last]


def method_patterns() -> list[str]:
    """Regular expressions, one for each part of the table; each method matches one of them."""
    named = ["|".join(map(re.escape, methods)) for methods in _METHODS]
    return [*(f"^({names})$" for names in named), f"^(?!({'|'.join(named)})$)"]


_CONFIG = "cifar10"
_METHODS = (
    ("scissorhands", "scissorhands, published code", "salun", "finetune"),
    ("random_label", "neggrad_plus", "scrub", "munba", "sfron"),
    ("l1_sparse", "bad_teacher", "ssd", "msg", "ct"),
    ("delete", "amun", "boundary_shrink", "boundary_expand"),
    ("salun, as published", "munba, as published", "gradient_ascent", "influence"),
)
"""The methods of the table by part, those of a later part being of less interest; most of a part's time is compilation.
One more part has all other methods, which take many small steps."""
_TABLE = (
    "model_options.dtype=bfloat16",
    "training.recipe=fast",
    "training.epochs=24",
    "attack_later=true",
    "relearn_epochs=0",
    "checkpoint_cells=false",
)
_TINY_TABLE = (*_TABLE, "training.epochs=1", "dataset=cifar10")


def _tiny_cifar10(folder: Path) -> Path:
    """Images of noise in the files that CIFAR-10 is packed in, for a rehearsal."""
    if not compact.has_compact_files(folder, "cifar10"):
        draw, sets = np.random.default_rng(0), []
        for count in (200, 100):
            images = draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
            sets.append({"image": images, "label": np.arange(count, dtype=np.int32) % 10})
        compact.pack_cifar10(Splits(*sets, compact.CIFAR10_CLASSES, augmented=True), folder)
    return folder


def _without_waiting(chosen: Sequence[Part], data_dir: Path, console: Console) -> list[Part]:
    """The parts whose data are there."""
    missing = compact.missing_files(data_dir)
    if missing:
        waiting = [part.name for part in chosen if part.needs_data]
        say(console, f"{', '.join(waiting)} wait for {', '.join(missing)} in {data_dir}")
    return [part for part in chosen if not (missing and part.needs_data)]


def run_parts(
    chosen: Sequence[Part],
    out: Path,
    *,
    seconds: float = math.inf,
    console: Console | None = None,
    work: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Runs parts that are not complete, in order, those that failed in an earlier call last.

    Args:
      chosen: The parts, with different names.
      out: The file. For every part that was started it holds, by its name, `complete`, `seconds` over all calls,
        `calls`, `error` (the end of the output of a command that failed, otherwise None), `table`, the name of the
        folder of its result, `of`, what that depends on, and `result`, the content of the part's own file; and as
        `earlier` the complete results of other code, other images or a rehearsal, in whose place these are measured.
      seconds: The time for all parts together. A part gets what is left of it, if it is finite at most four minutes,
        and only the first one starts with less than half a minute.
      console: Where to say what became of each part.
      work: A folder for a copy of the file and for compiled programs. None keeps neither.

    Returns:
      The entries of the chosen parts in the file.

    Raises:
      InputError: The file exists and holds something else, or results in whose place a rehearsal would come.
      BusyError: Another process writes to it.
    """
    console = console or Console(stderr=True)
    deadline = time.monotonic() + seconds
    with programs.sole_writer_of(out):
        results = _Results(out, work)
        results.begin(chosen)
        _run_all(chosen, results, seconds, deadline, console)
    return {part.name: results.known[part.name] for part in chosen if part.name in results.known}


def _run_all(chosen: Sequence[Part], results: _Results, seconds: float, deadline: float, console: Console) -> None:
    begun, known = False, results.known
    for part in sorted(chosen, key=lambda part: bool(known.get(part.name, {}).get("error"))):
        if known.get(part.name, {}).get("complete"):
            continue
        left = deadline - time.monotonic()
        if left <= 0 or (begun and left < _LEAST_SECONDS):
            say(console, f"no time is left for {part.name}")
            break
        begun = True
        _run_part(part, results, left if math.isinf(seconds) else min(left, _MOST_SECONDS))
        found = known[part.name]
        state = "complete" if found["complete"] else "failed" if found["error"] else "stopped, continues next time"
        say(console, f"{part.name}: {state}, {found['seconds']:.0f} s")
    results.write()


class _Results:
    """What is known of all parts, in the file and in its copy.

    Args:
      out: The file.
      work: The folder of the copy, if there is to be one.
    """

    def __init__(self, out: Path, work: Path | None) -> None:
        self.out, self.work = out, work
        self._copy = None if work is None else work / out.name
        read = self._copy if not out.exists() and self._copy is not None else out
        try:
            self.known: dict[str, dict[str, Any]] = reading.read_json(read)["parts"] if read.exists() else {}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{read} holds no results of this command; name another file") from error
        self._archives = Archives(out)

    def begin(self, chosen: Sequence[Part]) -> None:
        """Has parts whose results are of something else begin again, but no rehearsal in the place of real results.

        Raises:
          InputError: There are results that are of no rehearsal, and one is to come in their place.
        """
        for part in chosen:
            found, of = self.known.get(part.name), json.loads(json.dumps(part.described()))
            if found is None or found.get("of") == of:
                continue
            if of.get("tiny") and found["complete"] and not (found.get("of") or {}).get("tiny"):
                raise InputError(f"{self.out} has results of {part.name}, and this is a rehearsal; name another file")
            was = {name: found.get(name) for name in ("of", "seconds", "result")}
            self.known[part.name] = {**_fresh(part), "earlier": [*found.get("earlier", []), *[was] * found["complete"]]}

    def write(self) -> None:
        """Writes the file and its copy."""
        text = json.dumps({"parts": self.known}, indent=1) + "\n"
        for path in filter(None, (self.out, self._copy)):
            files.write_text(path, text)

    def keep_predictions(self, part: Part) -> None:
        """Brings what a table keeps for later attacks next to the file."""
        self._archives.add(part.result.parent.name, part.result.parent)


def _fresh(part: Part) -> dict[str, Any]:
    """The entry of a part that has not been started."""
    fresh = {"complete": False, "seconds": 0.0, "calls": 0, "error": None, "table": part.result.parent.name}
    return {**fresh, "of": part.described(), "result": None}


def _run_part(part: Part, results: _Results, seconds: float) -> None:
    """One part for at most so long; what is known of it is on disk whenever this is killed."""
    part.result.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        try:
            reading.read_json(part.result, nan=True)
        except ValueError:  # It is damaged, and the part would refuse it.
            files.remove(part.result)
    before = _fresh(part) | results.known.get(part.name, {})
    found = results.known[part.name] = {**before, "calls": before["calls"] + 1, "error": None}
    started, seen = time.monotonic(), 0

    def look() -> None:
        nonlocal seen
        changed = part.result.stat().st_mtime_ns if part.result.exists() else 0
        if changed != seen:
            seen, found["result"] = changed, reading.read_json(part.result)
            results.keep_predictions(part)
        found["seconds"] = before["seconds"] + time.monotonic() - started

    results.write()
    log = results.out.with_suffix(".log")
    with log.open("a", encoding="utf-8") as sink:
        sink.write(f"== {part.name}, call {found['calls']}\n")
        sink.flush()
        begin = sink.tell()
        process = subprocess.Popen(part.command, stdout=sink, stderr=subprocess.STDOUT, env=_environment(results.work))
        try:
            while process.poll() is None and time.monotonic() - started < seconds:
                time.sleep(_POLL_SECONDS)
                before_look = seen
                look()
                if seen != before_look:
                    results.write()
        finally:
            status = process.poll()
            if status is None:
                _stop(process)
    look()
    found["complete"] = status == 0
    if status not in (None, 0):
        with log.open("rb") as source:
            source.seek(begin)
            said = source.read().decode("utf-8", errors="replace").strip().splitlines()
        found["error"] = "\n".join([f"exit status {status}", *said[-_SAID_LINES:]])
    results.write()


def _environment(work: Path | None) -> dict[str, str]:
    """That of a part: what one has compiled the next one finds, and its output is not held back."""
    compiled = {} if work is None else {"JAX_COMPILATION_CACHE_DIR": str((work / "compiled").resolve())}
    return {**compiled, "PYTHONUNBUFFERED": "1", **os.environ}


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
