"""What a network does with questions: greedy answers, token by token scores, and the log of an evaluation."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Model, ModelState, Params, PyTree
from scissorhands_jax.language.token_scores import TokenScores
from scissorhands_jax.language.words import END, PAD


def token_scores(model: Model, params: Params, model_state: ModelState, rows: PyTree) -> TokenScores:
    """Scores every token of the answers, see `TokenScores`.

    Args:
      model: From tokens of shape (N, T) to logits of shape (N, T, V).
      params: Its weights.
      model_state: Its state.
      rows: See `token_losses`. All rows are computed at once.
    """
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


def greedy_answers(model: Model, params: Params, model_state: ModelState, rows: PyTree) -> np.ndarray:
    """What the network says to each question if it always says the most probable token next.

    Args:
      model: From tokens of shape (N, T) to logits of shape (N, T, V).
      params: Its weights.
      model_state: Its state.
      rows: Questions with their right answers, see `token_losses`; the latter are not looked at.

    Returns:
      The tokens of the answers, then padding. An answer ends with `words.END`, or where the row does. shape=(N, T),
      dtype=int32.
    """
    tokens, answer = np.asarray(rows["tokens"]), np.asarray(rows["answer"])
    start = answer.argmax(axis=1).astype(np.int32)
    asked = np.where(np.arange(tokens.shape[1]) < start[:, None], tokens, PAD).astype(np.int32)
    said = np.asarray(_greedy(model.apply, params, model_state, jnp.asarray(asked), jnp.asarray(start)))
    answers = np.full(tokens.shape, PAD, np.int32)
    for row, first in enumerate(start):
        words = said[row, first:]
        ends = np.flatnonzero(words == END)
        kept = words[: ends[0] + 1] if ends.size else words
        answers[row, : len(kept)] = kept
    return answers


@functools.partial(jax.jit, static_argnames="apply")
def _greedy(apply: Any, params: Params, model_state: ModelState, tokens: jax.Array, start: jax.Array) -> jax.Array:
    """Fills every row from its start to the end; each step computes all positions again, which suits short rows."""
    last = tokens.shape[1]

    def fill(position: jax.Array, tokens: jax.Array) -> jax.Array:
        logits, _ = apply(params, model_state, tokens, train=False)
        best = jnp.argmax(logits[:, position - 1], axis=-1).astype(tokens.dtype)
        return tokens.at[:, position].set(jnp.where(position >= start, best, tokens[:, position]))

    return jax.lax.fori_loop(jnp.min(start), last, fill, tokens)
