"""Limits of memory and time that a busy machine does not change."""

from __future__ import annotations

import contextlib
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
    """Builds and drops small containers, a thousand at a time; returns the seconds that this thread computed for it."""
    began = time.thread_time()
    for _ in range(10):
        chain: list = []
        for number in range(1000):
            chain = [chain, (number,)]
        while chain:
            chain = chain[0]
    return time.thread_time() - began


@contextlib.contextmanager
def spent(*, memory: bool = False) -> Iterator[Spent]:
    """Measures what is done within it.

    Args:
      memory: Whether to trace memory, which makes the work slower.
    """
    found = Spent()
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
