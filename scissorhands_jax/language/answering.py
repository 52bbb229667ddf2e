"""What a network does with questions: greedy answers, token by token scores, and the log of an evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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


class StepDecoder(NamedTuple):
    """How a network says one token after the other, holding what it computed of those before.

    Attributes:
      start: `(params, model_state, rows, length) -> cache` of nothing yet, with room for `length` tokens.
      step: `(params, model_state, cache, tokens, position) -> (logits, cache)`: takes the token at `position` of each
        row, shape (N,), and predicts the next one, shape (N, V).
    """

    start: Callable[[Params, ModelState, int, int], PyTree]
    step: Callable[[Params, ModelState, PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]


def greedy_answers(
    model: Model,
    params: Params,
    model_state: ModelState,
    rows: PyTree,
    *,
    end: int = END,
    decoder: StepDecoder | None = None,
) -> np.ndarray:
    """What the network says to each question if it always says the most probable token next.

    Args:
      model: From tokens of shape (N, T) to logits of shape (N, T, V).
      params: Its weights.
      model_state: Its state.
      rows: Questions with their right answers, one a row, see `token_losses`; the answers are not looked at.
      end: The token that ends an answer.
      decoder: Computes the same without computing the tokens before again; None computes all positions for each token,
        which suits short rows.

    Returns:
      The tokens of the answers, then padding. An answer ends with `end`, or where the row does. shape=(N, T),
      dtype=int32.
    """
    tokens, answer = np.asarray(rows["tokens"]), np.asarray(rows["answer"])
    start = answer.argmax(axis=1).astype(np.int32)
    asked = jnp.asarray(np.where(np.arange(tokens.shape[1]) < start[:, None], tokens, PAD).astype(np.int32))
    if decoder is None:
        said = np.asarray(_greedy(model.apply, params, model_state, asked, jnp.asarray(start)))
    else:
        said = np.asarray(_decoded(decoder, params, model_state, asked, jnp.asarray(start)))
    answers = np.full(tokens.shape, PAD, np.int32)
    for row, first in enumerate(start):
        words = said[row, first:]
        ends = np.flatnonzero(words == end)
        kept = words[: ends[0] + 1] if ends.size else words
        answers[row, : len(kept)] = kept
    return answers


@functools.partial(jax.jit, static_argnames="decoder")
def _decoded(
    decoder: StepDecoder, params: Params, model_state: ModelState, tokens: jax.Array, start: jax.Array
) -> jax.Array:
    """Fills every row from its start to the end, one position of all rows after the other."""

    def say(held: tuple[PyTree, jax.Array], position: jax.Array) -> tuple[tuple[PyTree, jax.Array], jax.Array]:
        cache, before = held
        logits, cache = decoder.step(params, model_state, cache, before, position - 1)
        best = jnp.argmax(logits, axis=-1).astype(tokens.dtype)
        now = jnp.where(position >= start, best, tokens[:, position])
        return (cache, now), now

    cache = decoder.start(params, model_state, *tokens.shape)
    _, said = jax.lax.scan(say, (cache, tokens[:, 0]), jnp.arange(1, tokens.shape[1]))
    return jnp.concatenate([tokens[:, :1], said.T], axis=1)


@functools.partial(jax.jit, static_argnames="apply")
def _greedy(apply: Any, params: Params, model_state: ModelState, tokens: jax.Array, start: jax.Array) -> jax.Array:
    """Fills every row from its start to the end; each step computes all positions again, which suits short rows."""
    last = tokens.shape[1]

    def fill(position: jax.Array, tokens: jax.Array) -> jax.Array:
        logits, _ = apply(params, model_state, tokens, train=False)
        best = jnp.argmax(logits[:, position - 1], axis=-1).astype(tokens.dtype)
        return tokens.at[:, position].set(jnp.where(position >= start, best, tokens[:, position]))

    return jax.lax.fori_loop(jnp.min(start), last, fill, tokens)
