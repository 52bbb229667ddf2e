"""Truth ratios in the three definitions that are in use, and what is made of them.

A network is asked a question and scored on the right answer in other words and on several wrong answers. With the mean
negative log-likelihood of a token l for the right answer and w_1, ..., w_K for the wrong ones, the probability of an
answer, normalized by its length, is exp(-l), and the truth ratio R compares wrong with right:

    arithmetic    R = 1/K sum_k exp(-w_k) / exp(-l)         the paper of TOFU
    geometric     R = exp(-1/K sum_k w_k) / exp(-l)         the published code of TOFU and of OpenUnlearning
    right_share   exp(-l) / (exp(-l) + exp(-1/K sum_k w_k)) what OpenUnlearning reports as extent of knowledge

The third is 1 / (1 + R) of the second, so it orders examples as the second does, the other way round.

References:
  Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, COLM 2024.
  Dorna et al., OpenUnlearning: Accelerating LLM Unlearning via Unified Benchmarking of Methods and Metrics, 2025.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from scissorhands_jax.errors import check_choice

DEFINITIONS = ("arithmetic", "geometric", "right_share")
"""The names of the three definitions."""
PUBLISHED_EPSILON = 1e-10
"""What the code of OpenUnlearning adds to divisors. It matters once answers have probabilities near it."""


def log_truth_ratios(right: np.ndarray, wrong: np.ndarray, definition: str = "geometric") -> np.ndarray:
    """Computes log R for each example, without overflow at any loss.

    Args:
      right: Mean negative log-likelihood of a token of the right answer, in nats. shape=(N,)
      wrong: The same of each wrong answer. shape=(N, K)
      definition: "arithmetic" or "geometric"; for "right_share" it is the log-odds against the right answer, which is
        the geometric log R.

    Returns:
      Log truth ratios. shape=(N,), dtype=float64.
    """
    check_choice("definition", definition, DEFINITIONS)
    right, wrong = np.asarray(right, np.float64), np.asarray(wrong, np.float64)
    if definition == "arithmetic":
        return right + special.logsumexp(-wrong, axis=1) - np.log(wrong.shape[1])
    return right - wrong.mean(axis=1)


def truth_ratios(right: np.ndarray, wrong: np.ndarray, definition: str, *, epsilon: float = 0.0) -> np.ndarray:
    """Computes the truth ratio of each example.

    Args:
      right: Mean negative log-likelihood of a token of the right answer, in nats. shape=(N,)
      wrong: The same of each wrong answer. shape=(N, K)
      definition: One of `DEFINITIONS`.
      epsilon: What is added to divisors, as the code of OpenUnlearning does (`PUBLISHED_EPSILON`). The paper's
        arithmetic definition has none.

    Returns:
      Truth ratios; infinite where wrong answers are more than e^709 times as probable. shape=(N,), dtype=float64.
    """
    logs = log_truth_ratios(right, wrong, definition)
    if epsilon and definition != "arithmetic":
        true, false = np.exp(-np.asarray(right, np.float64)), np.exp(-np.asarray(wrong, np.float64).mean(axis=1))
        return false / (true + epsilon) if definition == "geometric" else true / (true + false + epsilon)
    with np.errstate(over="ignore"):
        return special.expit(-logs) if definition == "right_share" else np.exp(logs)


def mean_truth_ratio(ratios: np.ndarray, definition: str, *, forget: bool, epsilon: float = 0.0) -> float:
    """Summarizes truth ratios of a set in the way that goes with their definition.

    For "right_share" it is the mean. For the others it is the mean of min(R, 1/R) on the forget set, which is 1 if
    right and wrong answers are equally probable, and the mean of max(0, 1 - R) elsewhere, which is 1 if wrong answers
    are improbable.

    Args:
      ratios: Truth ratios. shape=(N,)
      definition: Their definition, one of `DEFINITIONS`.
      forget: Whether this is the forget set.
      epsilon: What is added to the divisor of 1/R.
    """
    check_choice("definition", definition, DEFINITIONS)
    if definition == "right_share":
        return float(ratios.mean())
    if forget:
        with np.errstate(divide="ignore"):
            return float(np.minimum(ratios, 1 / (ratios + (epsilon if definition == "geometric" else 0.0))).mean())
    return float(np.maximum(0.0, 1 - ratios).mean())
