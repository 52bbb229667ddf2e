"""Goes on from what a kill leaves, at every moment or at some of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from tests.figures import nothing_drawn
from tests.kills.moments import Moments, restore
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
      folder: An empty folder, or that of a call with the same arguments that was stopped, which is gone on with.
      count: How many moments to try, drawn with the seed. None tries all.
      every: The distance between two moments that are tried, where none are drawn.
      seed: The seed.

    The overwriting command is tried as well, from the first and every tenth of them.
    """
    world, log = folder / "world", folder / "tried.jsonl"
    with _cheaply(writer):
        if not (folder / "moments.json").exists():
            _record(writer, folder, count, seed)
        recorded = json.loads((folder / "moments.json").read_text())
        states = [folder / "copies" / name for name in recorded["states"]]
        known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        for number, state in enumerate(states[::every]):
            ways = {"goes on": writer.go_on}
            if writer.again is not None and number % 10 == 0:
                ways["is replaced"] = writer.again
            for way, act in ways.items():
                if any(entry[:2] == [number, way] for entry in known):
                    continue
                restore(world, state)
                try:
                    act(world)
                    wrong = _first_difference(_plain(writer.result(world)), recorded["expected"])
                except Exception as error:
                    wrong = f"{type(error).__name__} {error}"
                known.append([number, way, wrong])
                with log.open("a") as lines:
                    lines.write(json.dumps(known[-1]) + "\n")
    failed = [f"state {number} {way}: {wrong}" for number, way, wrong in known if wrong]
    return Tried(recorded["operations"], len(states), len(known), failed)


def _record(writer: Writer, folder: Path, count: int | None, seed: int) -> None:
    """Runs the writer, and keeps the states of its folder, and what it ended in."""
    shutil.rmtree(folder, ignore_errors=True)
    world, copies = folder / "world", folder / "copies"
    world.mkdir(parents=True)
    copies.mkdir()
    writer.prepare(world)
    moments = Moments(world, copies, count=count, seed=seed)
    with moments.recorded():
        writer.run(world)
    states = [state.name for state in moments.states]
    found = {"operations": moments.operations, "states": states, "expected": _plain(writer.result(world))}
    (folder / "moments.json").write_text(json.dumps(found))


@contextlib.contextmanager
def _cheaply(writer: Writer) -> Iterator[None]:
    """Prints nothing, and draws nothing into pages."""
    sink = io.StringIO()
    with writer.patched(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), nothing_drawn():
        yield


def _plain(result: Any) -> Any:
    """A result as it is read from a file."""
    return json.loads(json.dumps(result))


def _first_difference(result: dict[str, Any], expected: dict[str, Any]) -> str:
    """The first name at which two results differ, in words; empty if they are equal."""
    for name in {**expected, **result}:
        if result.get(name) != expected.get(name):
            return f"{name} is {str(result.get(name))[:300]} and not {str(expected.get(name))[:300]}"
    return "" if result == expected else f"it is {str(result)[:300]}"
