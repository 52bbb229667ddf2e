"""Times this checkout of the library in turn with another one, each in a process that lasts the whole run."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.benchmark import checkout
from experiments.benchmark.settings import Settings
from experiments.benchmark.timing import Against, OnRound, Result, Spread
from scissorhands_jax.errors import InputError
from scissorhands_jax.report import provenance

BOTH, OTHER = "both checkouts", "the other checkout"
_HERE = Path(__file__).resolve().parents[2]


def described(folder: Path) -> dict[str, str]:
    """Returns the name of another checkout and that of its code.

    Raises:
      InputError: The folder is not a checkout of the library.
    """
    for part in ("experiments/benchmark/steps.py", "scissorhands_jax/__init__.py"):
        if not (folder / part).is_file():
            raise InputError(f"--against {folder} is no checkout of the library: it has no {part}")
    return {"folder": folder.resolve().name, "code": provenance.code_in(folder / "scissorhands_jax").name}


def comparisons(folder: Path, settings: Settings) -> dict[str, Callable[[OnRound], Result]]:
    """Returns the cases by name: steps and epochs of the networks, steps of the digits' UNet and of a user's network.

    Args:
      folder: The other checkout, which has `experiments` and `scissorhands_jax` in it.
      settings: The batch size, the number of rounds, and the networks.

    """
    return {
        f"{name}, {BOTH}": functools.partial(_compare, name, folder.resolve(), settings)
        for name in checkout.cases(list(settings.networks))
    }


def _compare(name: str, folder: Path, settings: Settings, on_round: OnRound) -> Result:
    """Times one case in both checkouts, round after round. Every second round begins with the other checkout."""
    own: list[float] = []
    other: list[float] = []
    with contextlib.ExitStack() as stack:
        sides = [
            (stack.enter_context(_worker(path, settings)), found) for path, found in ((_HERE, own), (folder, other))
        ]
        for turn in range(-1, settings.repeats):
            on_round("compiles" if turn < 0 else f"round {turn + 1}/{settings.repeats}")
            for ask, found in sides[:: -1 if turn % 2 else 1]:
                seconds = ask(name)
                if turn >= 0:
                    found.append(seconds)
    ratio = Spread.of([a / b for a, b in zip(own, other, strict=True)])
    against = Against(name=OTHER, seconds=Spread.of(other), ratio=ratio)
    return Result(
        name=f"{name}, {BOTH}",
        what="one call here, and one in the other checkout",
        seconds=Spread.of(own),
        against=(against,),
    )


@contextlib.contextmanager
def _worker(path: Path, settings: Settings) -> Iterator[Callable[[str], float]]:
    size = "quick" if settings.quick else "full"
    command = [sys.executable, checkout.__file__, str(settings.batch_size), size, *settings.networks]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=path, env=environment
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def ask(name: str) -> float:
            stdin.write(f"{name}\n")
            stdin.flush()
            line = stdout.readline()
            if not line:
                raise InputError(f"the worker in {path} failed at {name}; its error is above")
            return float(line)

        try:
            yield ask
        finally:
            stdin.close()
