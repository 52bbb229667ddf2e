"""How far one network is from another: in a row of numbers, in its features and in its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import trees
from scissorhands_jax.base import Params
from scissorhands_jax.errors import InputError

GAP_FIELDS = ("acc_forget", "acc_retain", "acc_test", "mia")
"""The four numbers of a result, in percent, that the paper's Avg. Gap compares."""


def average_gap(row: Mapping[str, float], retrain_row: Mapping[str, float]) -> float:
    """The paper's Avg. Gap: the mean absolute difference to the retrained network over four numbers.

    Args:
      row: Holds `acc_forget`, `acc_retain`, `acc_test` and `mia`, all in percent.
      retrain_row: The same numbers of the network that was trained from scratch without the forget set.

    Returns:
      Percentage points; 0 if these four numbers do not tell the two networks apart.

    Raises:
      InputError: A number is missing, `None` or not finite.

    References:
      Wu and Harandi, Scissorhands, ECCV 2024, section 4, "Metrics" (iii).

    >>> ours = {"acc_forget": 95.40, "acc_retain": 98.93, "acc_test": 92.92, "mia": 9.56}
    >>> retrained = {"acc_forget": 94.81, "acc_retain": 100.0, "acc_test": 94.26, "mia": 13.05}
    >>> round(average_gap(ours, retrained), 2)
    1.62
    """
    gaps = [abs(_field(row, name, "the row") - _field(retrain_row, name, "the retrained row")) for name in GAP_FIELDS]
    return math.fsum(gaps) / len(gaps)


def _field(row: Mapping[str, float], name: str, whose: str) -> float:
    value = row.get(name)
    if value is None or not math.isfinite(value):
        raise InputError(f"Avg. Gap needs a finite {name} in {whose}, got {value}")
    return float(value)


def frechet_distance(first: chex.Array, second: chex.Array) -> float:
    """The squared Fréchet distance of the normal distributions with the means and covariances of two sets.

    |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), as of Inception features in the FID (Heusel et al., 2017). With
    S = R' R of the centred rows, the trace of the root is the sum of the singular values of R_1 R_2', which holds and
    is stable where there are fewer rows than columns. The distance of finite samples is biased upwards, the more so
    the fewer rows there are.

    Args:
      first: One row for each example, such as features of a classifier, two rows at least. shape=(N, D)
      second: The same for the other set. shape=(M, D)

    Raises:
      InputError: The shapes cannot be compared, or a number is not finite.

    >>> frechet_distance(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]]))
    9.0
    """
    pair = [np.asarray(features, np.float64) for features in (first, second)]
    if any(x.ndim != 2 or x.shape[0] < 2 for x in pair) or pair[0].shape[1] != pair[1].shape[1]:
        raise InputError(
            f"expected two arrays of shape (N, D), N at least 2 and D the same, got {pair[0].shape} and {pair[1].shape}"
        )
    if not all(np.isfinite(x).all() for x in pair):
        raise InputError("the features hold NaN or infinity; check the images that they were taken of")
    means = [x.mean(axis=0) for x in pair]
    roots = [
        np.asarray(np.linalg.qr((x - m) / math.sqrt(len(x) - 1), mode="r")) for x, m in zip(pair, means, strict=True)
    ]
    traces = sum(float(np.sum(root**2)) for root in roots)
    common = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return max(0.0, float(np.sum((means[0] - means[1]) ** 2) + traces - 2 * common))


def weight_distance(first: Params, second: Params) -> float:
    """How far one network's weights are from another's, relative to the norm of the second; 0 for equal networks.

    Args:
      first: The parameters of one network.
      second: The parameters of the other, of the same structure and shapes.

    Raises:
      AssertionError: The shapes differ.
    """
    chex.assert_trees_all_equal_shapes(first, second)
    difference = jax.tree.map(jnp.subtract, first, second)
    return float(trees.norm(difference) / trees.norm(second))
