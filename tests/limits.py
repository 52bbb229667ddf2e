"""Limits of memory and time that a busy machine does not change."""

from __future__ import annotations

import contextlib
import gc
import time
import tracemalloc
from collections.abc import Iterator

PATIENCE = 300.0
"""Seconds on the clock within which something has ended that waits for nobody. A busy machine can stand still for many
seconds, so this is long, and what a fault would wait for has to be longer."""


class Spent:
    """What a part of a test has taken so far, or in all once it has ended."""

    peak: int = 0
    """Bytes that Python and numpy held at most beyond what they held before."""
    seconds: float = 0.0
    """Seconds that this thread computed, without those that other processes took from it."""
    measures: float = 0.0
    """How many times as long as a fixed piece of Python's work, `measure`, that took. A virtual machine that its host
    holds up can need the twenty-fold for a minute, and counts it as computing; the fixed piece is held up too."""


def measure() -> float:
    """Builds containers within containers, ten thousand of them, and drops them at once; does so twice.

    What a process has done before can make it slower to hold many objects, or to drop what is nested deeply, than to
    compute; the measure does all three.

    Returns:
      The seconds that this thread computed for it.
    """
    began = time.thread_time()
    for _ in range(2):
        chain: list = []
        for number in range(5000):
            chain = [chain, (number,)]
        del chain
    return time.thread_time() - began


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Python's collector looks at what the tests before have left too, at a time that nobody chooses."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def spent(*, memory: bool = False) -> Iterator[Spent]:
    """Measures what is done within it, where Python's collector does not run.

    Args:
      memory: Whether to trace memory, which makes the work slower.
    """
    found = Spent()
    with _without_collector():
        if memory:
            tracemalloc.start()
        before = measure()
        if memory:
            tracemalloc.reset_peak()
        began = time.thread_time()
        try:
            yield found
        finally:
            found.seconds = time.thread_time() - began
            if memory:
                found.peak = tracemalloc.get_traced_memory()[1]
            found.measures = found.seconds / max(before, measure())
            if memory:
                tracemalloc.stop()
