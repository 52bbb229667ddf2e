"""Distances between two networks: in the numbers of a row, in features and in weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import chex
import jax
import numpy as np

from scissorhands_jax.base import Params
from scissorhands_jax.errors import InputError

GAP_FIELDS = ("acc_forget", "acc_retain", "acc_test", "mia")
"""The four numbers of a result, in percent, that the paper's Avg. Gap compares."""


def quality_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The measure of quality in a row: `name`, `title`, `better` and `unit` of its task's first metric, or accuracy.

    Args:
      row: A row with what `Task.document` returns in `task`; one without is of a classifier.
    """
    if row.get("task") is None:
        return {"name": "acc", "title": "Acc", "better": "higher", "unit": "%"}
    return row["task"]["metrics"][0]


def gap_fields(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """The four numbers of a row that `average_gap` compares: quality on the forget, retain and test set, and MIA."""
    name = quality_of(row)["name"]
    return f"{name}_forget", f"{name}_retain", f"{name}_test", "mia"


def average_gap(row: Mapping[str, Any], retrain_row: Mapping[str, Any]) -> float:
    """Computes the paper's Avg. Gap: the mean absolute difference from the retrained network over four numbers.

    Args:
      row: A row with `acc_forget`, `acc_retain`, `acc_test` and `mia`, all in percent; or with the four numbers of
        another task (`gap_fields`).
      retrain_row: The same numbers of the network that was trained from scratch without the forget set.

    Returns:
      The gap, which is 0 if the two networks have the same four numbers: in percentage points, or without a unit where
      the metric is no percentage.

    Raises:
      InputError: A number is missing, `None` or not finite.

    References:
      Wu and Harandi, Scissorhands, ECCV 2024, section 4, "Metrics" (iii).

    >>> ours = {"acc_forget": 95.40, "acc_retain": 98.93, "acc_test": 92.92, "mia": 9.56}
    >>> retrained = {"acc_forget": 94.81, "acc_retain": 100.0, "acc_test": 94.26, "mia": 13.05}
    >>> round(average_gap(ours, retrained), 2)
    1.62
    """
    fields = gap_fields(row)
    gaps = [abs(_field(row, name, "the row") - _field(retrain_row, name, "the retrained row")) for name in fields]
    return math.fsum(gaps) / len(gaps)


def _field(row: Mapping[str, Any], name: str, whose: str) -> float:
    value = row.get(name)
    if value is None or not math.isfinite(value):
        raise InputError(f"Avg. Gap needs a finite {name} in {whose}, and it is {value}; measure the network again")
    return float(value)


def frechet_distance(first: chex.Array, second: chex.Array) -> float:
    """Computes the squared Fréchet distance between the normal distributions that fit two sets of examples.

    With means m and covariances S it is |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)); the FID is that of Inception
    features (Heusel et al., 2017). With S = R' R, where R is the triangular factor of the centred rows, the trace of
    the root is the sum of the singular values of R_1 R_2'. Unlike a matrix root, this is also stable if there are fewer
    rows than columns. The distance between finite samples is biased upwards, and the more so the fewer rows there are.

    Args:
      first: One row for each example, such as features of a classifier; at least two rows. shape=(N, D)
      second: The same for the other set. shape=(M, D)

    Returns:
      The distance, at least 0.

    Raises:
      InputError: The shapes cannot be compared, or a number is not finite.

    >>> frechet_distance(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]]))
    9.0
    """
    pair = [np.asarray(features, np.float64) for features in (first, second)]
    if any(x.ndim != 2 or x.shape[0] < 2 for x in pair) or pair[0].shape[1] != pair[1].shape[1]:
        raise InputError(
            f"the features have shapes {pair[0].shape} and {pair[1].shape}; "
            "give two arrays of shape (N, D) with N at least 2 and the same D"
        )
    if not all(np.isfinite(x).all() for x in pair):
        raise InputError("the features hold NaN or infinity; check the images and the network that they come from")
    means = [x.mean(axis=0) for x in pair]
    roots = [
        np.asarray(np.linalg.qr((x - m) / math.sqrt(len(x) - 1), mode="r")) for x, m in zip(pair, means, strict=True)
    ]
    traces = sum(float(np.sum(root**2)) for root in roots)
    common = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    # Rounding can make the distance of equal sets slightly negative.
    return max(0.0, float(np.sum((means[0] - means[1]) ** 2) + traces - 2 * common))


def weight_distance(first: Params, second: Params) -> float:
    """Computes the distance between the weights of two networks, relative to the norm of the second's.

    Args:
      first: The parameters of one network.
      second: The parameters of the other, of the same structure and shapes.

    Raises:
      AssertionError: The shapes differ.
      InputError: All weights of the second network are 0.
    """
    chex.assert_trees_all_equal_shapes(first, second)
    pairs = [
        tuple(np.asarray(leaf, np.float64) for leaf in pair)
        for pair in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    ]
    # Squares of large and of small weights leave the range of float32.
    moved, size = (
        math.sqrt(math.fsum(float(np.square(part).sum()) for part in parts))
        for parts in ([one - other for one, other in pairs], [other for _, other in pairs])
    )
    if not size:
        raise InputError("all weights of the second network are 0, so that no distance is relative to them")
    return moved / size
