"""What a replay reports: how far it is from a recorded value, and how far it may be.

The limits are those of the traces' own documentation (its section 4), measured on re-runs of the recorded code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

WEIGHTS = 1e-5  # also BatchNorm buffers; relative to the largest entry of the tensor
GRADIENTS = 5e-5  # also momentum; relative to the largest entry of the tensor
LOSSES = 1e-5  # absolute
DOTS = 1e-4  # absolute
MASK_MISMATCHES = 2  # entries
PROJECTED = 1e-6  # relative
DUALS = 1e-9  # absolute
LOGITS = 1e-5  # relative to the largest entry
INFLUENCE = 3e-4  # relative to the largest entry; the recursion amplifies rounding
INFLUENCED_WEIGHTS = 5e-5  # relative to the largest entry of the tensor
PIXELS = 1e-6  # absolute, of images in [0, 1]
# Of networks whose batches were not chosen to stay away from ReLU kinks: one flipped ReLU moves a few norms. The first
# is relative to the largest norm of the network, the second, which is ours, of each norm to itself.
GRADIENT_NORMS = 1e-3
EACH_GRADIENT_NORM = 2e-2
ZERO_GRADIENTS = 1e-5  # what rounding leaves of a zero gradient, relative to the norm of the same layer's kernel


class Check(NamedTuple):
    """One comparison; it holds if `error <= tolerance` (so never with a NaN)."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return bool(self.error <= self.tolerance)

    @property
    def strain(self) -> float:
        """The error in units of its tolerance, to find the worst of many checks."""
        if math.isnan(self.error):
            return math.inf
        return self.error / self.tolerance if self.tolerance else math.inf * self.error if self.error else 0.0


def exact(name: str, got: Any, recorded: Any) -> Check:
    """The number of entries that differ; numbers, text, lists, dicts and arrays. A wrong shape is an infinite error."""
    return mismatches(name, got, recorded, 0)


def mismatches(name: str, got: Any, recorded: Any, allowed: int) -> Check:
    """As `exact`, with some entries of a large array allowed to differ."""
    if isinstance(recorded, np.ndarray) or isinstance(got, np.ndarray):
        got, recorded = np.asarray(got), np.asarray(recorded)
        wrong = math.inf if got.shape != recorded.shape else int(np.sum(got != recorded))
    else:
        wrong = 0 if got == recorded else 1
    return Check(name, wrong, allowed)


def relative(name: str, got: Any, recorded: Any, tolerance: float) -> Check:
    """The largest difference, relative to the largest recorded entry."""
    difference, scale = _difference(got, recorded)
    return Check(name, difference / scale if scale else difference, tolerance)


def absolute(name: str, got: Any, recorded: Any, tolerance: float) -> Check:
    """The largest difference."""
    return Check(name, _difference(got, recorded)[0], tolerance)


def holds(name: str, condition: bool) -> Check:
    """A statement that is true or false."""
    return Check(name, 0.0 if condition else math.inf, 0.0)


def states(
    name: str, got: Mapping[str, np.ndarray], recorded: Mapping[str, np.ndarray], tolerance: float
) -> list[Check]:
    """Two sets of tensors by name: the same names, integers exact, floats relative to each tensor's largest entry."""
    checks = [exact(f"{name} names", sorted(got), sorted(recorded))]
    for key in sorted(got.keys() & recorded.keys()):
        if np.issubdtype(recorded[key].dtype, np.floating):
            checks.append(relative(f"{name}/{key}", got[key], recorded[key], tolerance))
        else:
            checks.append(exact(f"{name}/{key}", got[key], recorded[key]))
    return checks


def worst(checks: Iterable[Check]) -> Check:
    """The check nearest to failing, or furthest beyond it."""
    return max(checks, key=lambda check: check.strain)


def _difference(got: Any, recorded: Any) -> tuple[float, float]:
    got, recorded = np.asarray(got, np.float64), np.asarray(recorded, np.float64)
    if got.shape != recorded.shape or not np.isfinite(recorded).all():
        return math.inf, 1.0
    if not recorded.size:
        return 0.0, 1.0
    return float(np.max(np.abs(got - recorded))), float(np.max(np.abs(recorded)))
