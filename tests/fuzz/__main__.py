"""Reads many damaged inputs: `nice python -m tests.fuzz --inputs 100000 --seed 1`.

The tests read 6,000. An input is what the damage of its number and the seed make of a whole one, so that a failure can
be repeated. The table has a line for each reader; it ends with status 1 if an input led to anything but a result or a
refusal in one sentence, and then names the first such input of each reader.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.targets import TARGETS, Target, fresh
from tests.fuzz.watch import Watch

EVERY = 5000  # inputs of which the targets' shares are parts


class Tried(NamedTuple):
    """What became of the inputs of one reader."""

    inputs: int
    refused: int
    slowest: float  # seconds of CPU time
    failure: str | None


def try_target(target: Target, count: int, seed: int, folder: Path, watch: Watch) -> Tried:
    """Reads damaged inputs of one reader until one fails."""
    make, refused = target.prepare(fresh(folder)), 0
    watch.slowest = 0.0
    for number in range(count):
        read = make(random.Random(f"{seed}-{number}"), number)
        try:
            refused += watch.survives(read, folder, native=target.native)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return Tried(number, refused, watch.slowest, f"input {number}:\n{traceback.format_exc()}")
    return Tried(count, refused, watch.slowest, None)


def every_target() -> Mapping[str, Target]:
    """All readers by name; those of ledgers need the package `cryptography`."""
    from tests.fuzz import ledgers

    return TARGETS | ledgers.TARGETS


def _results(inputs: int, seed: int, names: Sequence[str]) -> Iterator[tuple[str, Tried]]:
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name, target in every_target().items():
            if not names or name in names:
                count = max(1, round(target.share * inputs / EVERY))
                yield name, try_target(target, count, seed, Path(folder) / "input", watch)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each reader, and returns 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, metavar="N", help="inputs of all readers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help=f"of {', '.join(every_target())}")
    options = parser.parse_args(arguments)
    started, failed, total, refused = time.monotonic(), False, 0, 0
    for name, tried in _results(options.inputs, options.seed, options.only):
        print(
            f"{name:26} {tried.inputs:7} inputs {tried.refused:7} refused  slowest {tried.slowest:6.2f} s", flush=True
        )
        if tried.failure:
            print(tried.failure, flush=True)
        failed, total, refused = failed or bool(tried.failure), total + tried.inputs, refused + tried.refused
    print(f"{total} inputs, {refused} refused, {time.monotonic() - started:.0f} s")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
