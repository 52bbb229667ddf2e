"""Compares the parts of the method on trees of weights with plain passes over the same trees."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from experiments.benchmark.settings import FRACTION, Settings, random_tree
from experiments.benchmark.timing import Call, OnRound, Result, compare
from scissorhands_jax import masks, projection, reinit, saliency, trees

READ, COPY = "read pass", "copy pass"  # one sum over the tree; one copy of it, times two

PARTS = {
    "saliency": "scores |gradient * weight|",
    "threshold": "the exact k-th largest score",
    "mask": "threshold, ties and the mask",
    "reinitialize": "fresh weights where the mask is True",
    "projection": "projection of a gradient, K = 1",
    "mask_updates": "an update restricted to a mask",
}
LEAST_PASSES = {  # over a float32 tree, read or written, that no implementation can do without; a mask is 1/4
    "saliency": 3,  # gradient and weights, to scores
    "threshold": 1,  # the scores, which one pass does not suffice for
    "mask": 1.25,
    "reinitialize": 2.25,
    "projection": 5,  # both gradients for their products, then again, to a third
    "mask_updates": 2.25,
}


def part_case(name: str, tree: str, part: str, settings: Settings, on_round: OnRound) -> Result:
    """Compares one part on a tree with plain passes over the tree."""
    shapes = settings.trees[tree]
    calls = calls_on(tree, tuple(shapes))
    references = {READ: calls[READ], COPY: calls[COPY]}
    result = compare(name, PARTS[part], calls[part], references, settings, on_round)
    assert result.seconds is not None
    weights = sum(map(math.prod, shapes))
    least_bytes = LEAST_PASSES[part] * 4 * weights
    achieved = least_bytes / result.seconds.median
    numbers = {
        "weights": weights,
        "least_bytes": least_bytes,
        "bytes_per_second": achieved,
        # A copy reads and writes: two passes in the time of one.
        "share_of_copy_bandwidth": LEAST_PASSES[part] / 2 / result.ratio_to(COPY),
    }
    return dataclasses.replace(result, numbers=numbers)


@functools.lru_cache(maxsize=1)
def calls_on(tree: str, shapes: tuple[tuple[int, ...], ...]) -> dict[str, Call]:
    """Returns every part, and the plain passes, as functions without arguments on one tree of random numbers."""
    del tree  # only there so that each tree has its own functions and none finds another's compiled
    weights, gradient = random_tree(shapes, seed=0), random_tree(shapes, seed=1)
    scores = [abs(weight * slope) for weight, slope in zip(weights, gradient, strict=True)]
    mask = [score > 2.66 for score in scores]  # the largest 3 % or so
    sums = saliency.GradientSum(gradient, jnp.ones(()), jnp.zeros(1), ())
    k = round(FRACTION * trees.count_weights(scores))
    projector, masked = projection.project_gradient(1), masks.mask_updates()
    state = projector.init(weights)

    @jax.jit
    def read(tree):
        return sum(jnp.sum(leaf) for leaf in tree)

    @jax.jit
    def copy(tree):
        return [leaf * 2 for leaf in tree]

    @jax.jit
    def reinitialize(key, weights, mask):
        return reinit.reinitialize(key, weights, mask, initializer=reinit.uniform())

    @jax.jit
    def project(gradient, forget_gradient):
        return projector.update(gradient, state, constraint_grads=[leaf[None] for leaf in forget_gradient])

    @jax.jit
    def mask_updates(updates, mask):
        return masked.update(updates, masked.init(updates), mask=mask)[0]

    return {
        READ: lambda: read(weights),
        COPY: lambda: copy(weights),
        "saliency": lambda: saliency.scores_of(sums, weights),
        "threshold": lambda: masks.kth_largest(scores, k),
        "mask": lambda: masks.top_fraction(scores, FRACTION),
        "reinitialize": lambda: reinitialize(jax.random.key(2), weights, mask),
        "projection": lambda: project(gradient, weights),
        "mask_updates": lambda: mask_updates(gradient, mask),
    }
