"""Goes on from what a kill leaves, at every moment or at some of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
from pathlib import Path

import jax

from tests.kills.moments import Moments
from tests.kills.writers import Writer


@dataclasses.dataclass
class Tried:
    """What came out."""

    operations: int
    """The number of operations on the file system that were seen."""
    states: int
    """The number of different states that a kill could leave, or of moments that were drawn."""
    tried: int = 0
    """The number of them that a command went on from."""
    failed: list[str] = dataclasses.field(default_factory=list)
    """What went wrong, one entry for each state that did not end as it should."""


def cache_compilations(folder: Path) -> None:
    """Keeps compiled programs on the disk, which most of the time would go to otherwise."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def try_moments(writer: Writer, folder: Path, *, count: int | None = None, every: int = 1, seed: int = 0) -> Tried:
    """Runs a writer once, and goes on from what it would have left behind at its moments.

    Args:
      writer: What writes.
      folder: An empty folder.
      count: How many moments to try, drawn with the seed. None tries all.
      every: The distance between two moments that are tried, where none are drawn.
      seed: The seed.

    The overwriting command is tried as well, from the first and every tenth of them.
    """
    world, copies = folder / "world", folder / "copies"
    world.mkdir(parents=True)
    copies.mkdir()
    sink = io.StringIO()
    with writer.patched(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        writer.prepare(world)
        before = folder / "before"
        shutil.copytree(world, before)
        moments = Moments(world, copies, count=count, seed=seed)
        with moments.recorded():
            writer.run(world)
        expected = writer.result(world)
        found = Tried(moments.operations, len(moments.states))
        for number, state in enumerate(moments.states[::every]):
            ways = {"goes on": writer.go_on}
            if writer.again is not None and number % 10 == 0:
                ways["is replaced"] = writer.again
            for way, act in ways.items():
                moments.restore(state)
                found.tried += 1
                try:
                    act(world)
                    result = writer.result(world)
                except Exception as error:
                    found.failed.append(f"state {number} {way}: {type(error).__name__} {error}")
                    continue
                if result != expected:
                    found.failed.append(f"state {number} {way}: {_first_difference(result, expected)}")
    return found


def _first_difference(result: dict, expected: dict) -> str:
    for name in {**expected, **result}:
        if result.get(name) != expected.get(name):
            return f"{name} is {str(result.get(name))[:300]} and not {str(expected.get(name))[:300]}"
    return "nothing"
