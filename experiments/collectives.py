"""Reads from the text of a compiled program what crosses devices."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

_KINDS = "all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|reduce-scatter|ragged-all-to-all"
_CALL = re.compile(rf"= (?P<types>\(.*?\)|\S+) (?P<kind>{_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*[a-z0-9]*)\[(?P<shape>[\d,]*)\]")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}


class Collective(NamedTuple):
    """An instruction that moves data between devices. Inside a loop it runs once per pass."""

    kind: str  # The name in XLA, such as all-reduce or all-gather.
    shapes: tuple[tuple[int, ...], ...]  # The shapes of its results on one device.
    sizes: tuple[int, ...]  # The sizes of these results in bytes.

    @property
    def largest(self) -> int:
        """The number of elements of the largest result."""
        return max((math.prod(shape) for shape in self.shapes), default=0)


def collectives(text: str) -> list[Collective]:
    """Returns all collectives in the text of a compiled program (`compiled.as_text()`), in its order."""
    found = []
    for match in _CALL.finditer(text):
        arrays = [
            (m["dtype"], tuple(int(n) for n in m["shape"].split(",") if n)) for m in _ARRAY.finditer(match["types"])
        ]
        shapes = tuple(shape for _, shape in arrays)
        sizes = tuple(math.prod(shape) * _BYTES.get(dtype, 4) for dtype, shape in arrays)
        found.append(Collective(match["kind"], shapes, sizes))
    return found


def bytes_by_kind(text: str) -> dict[str, int]:
    """Returns how many bytes the results of all collectives of each kind have."""
    totals: dict[str, int] = {}
    for collective in collectives(text):
        totals[collective.kind] = totals.get(collective.kind, 0) + int(np.sum(collective.sizes))
    return totals
