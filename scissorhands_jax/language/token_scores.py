"""What a network's probabilities of the tokens of an answer say about whether it was learned by heart.

Every function takes the tokens of answers in rows, with a mask that is False on prompts and padding. Entry [i, t] is
about the prediction of token t of row i from the tokens before it.

References:
  Carlini et al., Extracting Training Data from Large Language Models, USENIX Security 2021.
  Shi et al., Detecting Pretraining Data from Large Language Models, ICLR 2024 (min-k).
  Zhang et al., Min-K%++: Improved Baseline for Detecting Pre-Training Data from LLMs, ICLR 2025.
  Wang et al., Towards Effective Evaluations and Comparisons for LLM Unlearning Methods, ICLR 2025
  (extraction strength).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Model, ModelState, Params, PyTree
from scissorhands_jax.errors import InputError


class TokenScores(NamedTuple):
    """What a network predicted at each token of some answers."""

    log_probability: np.ndarray
    """The log-probability of the token. shape=(N, T)"""
    is_largest: np.ndarray
    """Whether no other token was more probable. shape=(N, T), dtype=bool."""
    mean: np.ndarray
    """The mean of the log-probability of a token drawn from the prediction, which is minus the entropy. shape=(N, T)"""
    deviation: np.ndarray
    """The standard deviation of that log-probability. shape=(N, T)"""
    mask: np.ndarray
    """Whether the token belongs to the answer. shape=(N, T), dtype=bool."""


def token_scores(model: Model, params: Params, model_state: ModelState, rows: PyTree) -> TokenScores:
    """Scores every token of the answers, see `TokenScores`.

    Args:
      model: From tokens of shape (N, T) to logits of shape (N, T, V).
      params: Its weights.
      model_state: Its state.
      rows: See `token_losses`; rows are not packed. All are computed at once.

    Raises:
      InputError: Rows are packed with several examples.
    """
    if "segment" in rows:
        raise InputError("the rows are packed with several examples, and scores are of one answer a row; do not pack")
    found = _scores(model.apply, params, model_state, jnp.asarray(rows["tokens"]))
    own, is_largest, mean, deviation = (np.asarray(part) for part in found)
    return TokenScores(own, is_largest, mean, deviation, np.asarray(rows["answer"])[:, 1:])


@functools.partial(jax.jit, static_argnames="apply")
def _scores(apply: Any, params: Params, model_state: ModelState, tokens: jax.Array) -> tuple[jax.Array, ...]:
    logits, _ = apply(params, model_state, tokens, train=False)
    logs = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    own = jnp.take_along_axis(logs, tokens[:, 1:, None], axis=-1)[..., 0]
    mean = jnp.sum(jnp.exp(logs) * logs, axis=-1)
    variance = jnp.sum(jnp.exp(logs) * jnp.square(logs), axis=-1) - jnp.square(mean)
    return own, own >= logs.max(axis=-1), mean, jnp.sqrt(jnp.maximum(variance, 0.0))


def answer_probability(scores: TokenScores) -> np.ndarray:
    """The probability of each answer, normalized by its length: exp of the mean log-probability of its tokens.

    Returns:
      Numbers in [0, 1]. shape=(N,)

    Raises:
      InputError: An answer has no token.
    """
    return np.exp(-answer_loss(scores))


def answer_loss(scores: TokenScores) -> np.ndarray:
    """The mean negative log-probability of a token of each answer, in nats.

    Returns:
      Numbers of at least 0. shape=(N,)

    Raises:
      InputError: An answer has no token.
    """
    return -np.where(scores.mask, scores.log_probability, 0.0).astype(np.float64).sum(axis=1) / _lengths(scores)


def exact_memorization(scores: TokenScores) -> np.ndarray:
    """The share of each answer's tokens that are the most probable ones, given the right tokens before them.

    Returns:
      Numbers in [0, 1]. shape=(N,)

    Raises:
      InputError: An answer has no token.
    """
    return (scores.is_largest & scores.mask).sum(axis=1) / _lengths(scores)


def extraction_strength(scores: TokenScores) -> np.ndarray:
    """The share of each answer that the network completes by itself: 1 - k / n.

    k is the smallest number of the n tokens after which all later ones are predicted right. The published code never
    counts all of them, so that an answer whose last token is wrong gets 1/n there and 0 here.

    Returns:
      Numbers in [0, 1]. shape=(N,)

    Raises:
      InputError: An answer has no token.
    """
    lengths = _lengths(scores)
    found = np.zeros(len(lengths))
    for row, (right, mask) in enumerate(zip(scores.is_largest, scores.mask, strict=True)):
        wrong = np.flatnonzero(~right[mask])
        found[row] = 1 - (wrong[-1] + 1 if wrong.size else 0) / lengths[row]
    return found


def min_k(scores: TokenScores, *, share: float = 0.4, normalized: bool = False) -> np.ndarray:
    """The mean negative log-probability of the least probable tokens of each answer.

    Members of the training set have lower scores. `aggregates.attack_auc` compares them with held-out answers.

    Args:
      scores: What the network predicted.
      share: The share of tokens that count, in (0, 1], rounded down to whole tokens and at least one. The benchmark
        takes 0.4.
      normalized: Whether each log-probability is first reduced by the mean and divided by the standard deviation of
        that of a token drawn from the prediction (min-k++), whose square is at least 1e-6.

    Returns:
      Scores. shape=(N,)

    Raises:
      InputError: The share is not in (0, 1], or an answer has no token.
    """
    if not 0 < share <= 1:
        raise InputError(f"share is {share}; give a number above 0 and at most 1")
    values = scores.log_probability
    if normalized:
        values = (values - scores.mean) / np.maximum(scores.deviation, 1e-3)
    kept = [np.sort(row[mask]) for row, mask in zip(values, scores.mask, strict=True)]
    counts = [max(1, int(length * share)) for length in _lengths(scores)]
    return np.array([-row[:count].mean() for row, count in zip(kept, counts, strict=True)])


def _lengths(scores: TokenScores) -> np.ndarray:
    lengths = scores.mask.sum(axis=1)
    if not lengths.all():
        raise InputError(f"answer {int(np.flatnonzero(lengths == 0)[0])} has no token; leave it out")
    return lengths
