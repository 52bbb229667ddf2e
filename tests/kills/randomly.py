"""Kills at random moments: processes that were forked before any backend of JAX was started, and `SIGKILL`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

from tests.deletion.forking import forked, status
from tests.kills.writers import WRITERS, Writer


def kill_randomly(name: str, folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Goes on with a writer again and again, and kills it each time at a random moment, until it was killed so often.

    Whenever it comes to its end it begins anew.

    Args:
      name: A key of `WRITERS`.
      folder: An empty folder.
      kills: How often it is killed.
      seed: The seed of the moments.

    Returns:
      How often it was killed, how often it came to its end, and what was then not as it should be.
    """
    writer, world, draw = WRITERS[name], folder / "world", random.Random(seed)
    world.mkdir(parents=True)
    assert status(forked(lambda: _prepared(writer, world))) == 0
    shutil.copytree(world, folder / "before")
    expected, duration = _finished(writer, world, folder, first=True)
    killed, ended, failed = 0, 0, []
    _begin(world, folder)
    while killed < kills:
        child = forked(lambda: _goes_on(writer, world))
        time.sleep(draw.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        how = status(child)
        if how == -signal.SIGKILL:
            killed += 1
        elif how != 0:
            failed.append(f"after {killed} kills it ended with {how}")
            _begin(world, folder)
        if how == 0 or killed == kills:
            found, _ = _finished(writer, world, folder, first=False)
            ended += 1
            if found != expected:
                failed.append(f"after {killed} kills it ended in {json.dumps(found)[:500]}")
            _begin(world, folder)
    return {"writer": name, "killed": killed, "ended": ended, "failed": failed}


def _begin(world: Path, folder: Path) -> None:
    shutil.rmtree(world)
    shutil.copytree(folder / "before", world)


def _prepared(writer: Writer, world: Path) -> None:
    with writer.patched():
        writer.prepare(world)


def _goes_on(writer: Writer, world: Path) -> None:
    with open(os.devnull, "w") as sink, writer.patched():
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        writer.go_on(world)


def _finished(writer: Writer, world: Path, folder: Path, *, first: bool) -> tuple[object, float]:
    """The result in the end, and the seconds that it took to get there."""

    def work() -> None:
        with writer.patched():
            if first:
                writer.run(world)
                _begin(world, folder)
            started = time.monotonic()
            if first:
                writer.run(world)  # with everything compiled
            else:
                writer.go_on(world)
            seconds = time.monotonic() - started
            (folder / "result").write_text(json.dumps([writer.result(world), seconds]))

    (folder / "result").unlink(missing_ok=True)
    status(forked(work))
    if not (folder / "result").exists():
        return "nothing", 1.0
    found, seconds = json.loads((folder / "result").read_text())
    return found, seconds
