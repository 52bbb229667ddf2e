"""Losses over the tokens of answers, with prompts and padding masked.

A batch is {"tokens": (N, T) integers, "answer": (N, T) bools}: rows of prompt, answer and padding, with True where a
token belongs to the answer. A network's logits at t are its prediction of token t + 1, so the first token is predicted
by nothing and never counts. Rows that hold several examples also have "segment", see `packing`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Model, PyTree, StatefulLossFn
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.packing import network_inputs, positions_in_segments
from scissorhands_jax.tasks import Metric, Task, task_loss


class Answers(NamedTuple):
    """The tokens that are predicted, one position after the logits that predict them."""

    labels: jax.Array
    """shape=(N, T - 1), integers."""
    mask: jax.Array
    """Whether a label belongs to the answer. shape=(N, T - 1), dtype=bool."""
    segment: jax.Array | None = None
    """The number of the example in its row that a label belongs to, from 1, 0 on padding; None where a row holds one
    example. shape=(N, T - 1), integers."""


def answers_of(batch: PyTree, *, part: str = "") -> Answers:
    """The labels of a batch.

    Args:
      batch: See the module.
      part: What the names of the arrays begin with, such as "refusal_" for other answers to the same questions.

    Raises:
      InputError: An array is missing, they have different shapes, or tokens are not integers.
    """
    names = f"{part}tokens", f"{part}answer"
    if not isinstance(batch, dict) or any(name not in batch for name in names):
        found = ", ".join(batch) if isinstance(batch, dict) else type(batch).__name__
        raise InputError(f"a batch of text has {found or 'nothing'}; give a dict of {names[0]!r} and {names[1]!r}")
    tokens, answer = batch[names[0]], batch[names[1]]
    if tokens.ndim != 2 or tokens.shape != answer.shape or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(
            f"{names[0]} are {tokens.dtype} of shape {tokens.shape} and {names[1]} has shape {answer.shape}; give "
            "integers and bools of one shape (N, T)"
        )
    segment = batch.get(f"{part}segment")
    if segment is not None and segment.shape != tokens.shape:
        raise InputError(f"{part}segment has shape {segment.shape} and {names[0]} {tokens.shape}; give one for each")
    return Answers(tokens[:, 1:], answer[:, 1:].astype(bool), None if segment is None else segment[:, 1:])


def token_nll(logits: jax.Array, answers: Answers) -> jax.Array:
    """The negative log-likelihood of each token of the answers, in nats; 0 elsewhere.

    Args:
      logits: The predictions of the labels. shape=(N, T - 1, V)
      answers: The labels.

    Returns:
      shape=(N, T - 1), dtype=float32.
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(logs, answers.labels[..., None], axis=-1)[..., 0]
    return jnp.where(answers.mask, -picked, 0.0)


def mean_over_tokens(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of the values where the mask is True, over all rows together; 0 where it is True nowhere. shape=()"""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def sums_over_answers(values: jax.Array, mask: jax.Array, segment: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The sum of values over the tokens of each answer.

    Args:
      values: shape=(N, T)
      mask: Which tokens belong to answers. shape=(N, T), dtype=bool.
      segment: As in `Answers`, for the same tokens.

    Returns:
      The sums, float32, and which of them are those of an answer: (N, 1) each where a row holds one example, which then
      counts even if its answer is empty, and (N, T) where it holds several.
    """
    values = jnp.where(mask, values, 0.0).astype(jnp.float32)
    if segment is None:
        return values.sum(axis=1, keepdims=True), jnp.ones((len(values), 1), bool)

    def row(values, mask, segment):
        count = len(values) + 1
        sums, lengths = (jax.ops.segment_sum(part, segment, count)[1:] for part in (values, mask.astype(jnp.int32)))
        return sums, lengths > 0

    return jax.vmap(row)(values, mask, segment)


def place_in_answer(answers: Answers) -> jax.Array:
    """The number of tokens of the same answer up to each token, itself included. shape=(N, T - 1), integers"""
    so_far = jnp.cumsum(answers.mask, axis=1)
    if answers.segment is None:
        return so_far
    first = positions_in_segments(answers.segment) == 0
    return so_far - jax.lax.cummax(jnp.where(first, so_far - answers.mask, 0), axis=1)


def kl_to(original: jax.Array, logits: jax.Array) -> jax.Array:
    """KL(p_original || p) of each prediction, in nats.

    Args:
      original: The logits of the original network. shape=(N, T - 1, V)
      logits: Those of the network. shape=(N, T - 1, V)

    Returns:
      shape=(N, T - 1), dtype=float32.
    """
    target, own = (jax.nn.log_softmax(values.astype(jnp.float32)) for values in (original, logits))
    return jnp.sum(jnp.exp(target) * (target - own), axis=-1)


def token_loss(model: Model) -> StatefulLossFn:
    """The mean negative log-likelihood of a token of the answers, as a loss that every method takes.

    It is `tasks.task_loss` of the task of `answers_task`, so that methods which need more than a loss can be built from
    it. Every token of the batch counts alike, so long answers count for more than short ones, as in the published code;
    so it is in a batch that is computed in parts (`losses.microbatched`).

    Args:
      model: The network; `apply` takes tokens of shape (N, T) and returns logits of shape (N, T, V).

    Returns:
      The general form of the loss. Losses of one network are equal, so they share compiled code.
    """
    return task_loss(model, answers_task())


@functools.cache
def answers_task() -> Task:
    """The task of a language model: the tokens of answers, each from the tokens before it.

    The loss of an example is the mean negative log-likelihood of a token of its answer in nats, and in the mean of a
    batch it weighs as much as its answer has tokens. Two networks are compared by the divergence of their predictions
    of these tokens, weighted alike. The metrics are the probability of an answer normalized by its length,
    exp(-loss), and the share of its tokens that are the most probable ones (exact memorisation), in percent. An example
    without answer tokens has a loss of 0 and no weight. An example is a row, also if it is packed with several answers.
    """
    return Task(
        name="answers",
        loss=lambda logits, examples: _row_means(token_nll(logits[:, :-1], answers_of(examples)), examples),
        metrics=(
            Metric("probability", "P(answer)", lambda logits, examples: 100.0 * np.exp(-_losses(logits, examples))),
            Metric("exact", "Exact", lambda logits, examples: 100.0 * _exact(logits, examples)),
        ),
        inputs=_tokens,
        weights=lambda examples: answers_of(examples).mask.sum(axis=1),
        divergence=_divergence,
    )


def _tokens(examples: PyTree) -> jax.Array:
    answers_of(examples)  # refuses what is no batch of text
    return network_inputs(examples)


def _row_means(values: jax.Array, examples: PyTree) -> jax.Array:
    """The mean of values (N, T - 1) over the tokens of each answer. shape=(N,)"""
    mask = answers_of(examples).mask
    return jnp.where(mask, values, 0.0).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)


def _losses(logits: PyTree, examples: PyTree) -> np.ndarray:
    return np.asarray(_row_means(token_nll(jnp.asarray(logits)[:, :-1], answers_of(examples)), examples), np.float64)


def _exact(logits: PyTree, examples: PyTree) -> np.ndarray:
    right = jnp.asarray(logits)[:, :-1].argmax(axis=-1) == answers_of(examples).labels
    return np.asarray(_row_means(right, examples), np.float64)


def _divergence(teacher: PyTree, logits: PyTree, examples: PyTree, temperature: float) -> jax.Array:
    each = temperature**2 * kl_to(teacher[:, :-1] / temperature, logits[:, :-1] / temperature)
    return _row_means(each, examples)
