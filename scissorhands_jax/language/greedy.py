"""Greedy decoding: after each prompt the most probable token, again and again, until the answer ends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Model, ModelState, Params, PyTree
from scissorhands_jax.errors import InputError, check_whole

_STEP = 16  # prompts are padded to multiples of so many tokens, each of which is compiled once


class StepDecoder(NamedTuple):
    """How a network says one token after the other, holding what it computed of those before.

    Rows do not depend on each other, and each may be at another position.
    """

    start: Callable[[Params, ModelState, jax.Array, jax.Array, int], tuple[jax.Array, PyTree]]
    """`(params, model_state, tokens, lengths, room) -> (logits, cache)`: reads prompts, shape (N, T), of these lengths,
    shape (N,), with anything behind them, and predicts the token after each, shape (N, V). The cache has room for
    `room` tokens of a row, at least T."""
    step: Callable[[Params, ModelState, PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]
    """`(params, model_state, cache, tokens, positions) -> (logits, cache)`: takes a token of each row at its position,
    shape (N,) each, and predicts the next one, shape (N, V)."""
    context: int | None = None
    """The largest number of tokens of prompt and answer; None if any number will do."""


@functools.cache
def recomputing(model: Model) -> StepDecoder:
    """A decoder of any network from tokens (N, T) to logits (N, T, V), which suits short rows.

    It holds nothing but the tokens, and computes all positions again for each.
    """

    def predicted(params: Params, model_state: ModelState, held: jax.Array, positions: jax.Array) -> jax.Array:
        logits, _ = model.apply(params, model_state, held, train=False)
        return logits[jnp.arange(len(held)), positions]

    def start(
        params: Params, model_state: ModelState, tokens: jax.Array, lengths: jax.Array, room: int
    ) -> tuple[jax.Array, PyTree]:
        held = jnp.pad(tokens, ((0, 0), (0, room - tokens.shape[1])))
        return predicted(params, model_state, held, lengths - 1), held

    def step(
        params: Params, model_state: ModelState, held: PyTree, tokens: jax.Array, positions: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        held = held.at[jnp.arange(len(held)), positions].set(tokens)
        return predicted(params, model_state, held, positions), held

    return StepDecoder(start, step)


def greedy_tokens(
    decoder: StepDecoder,
    params: Params,
    model_state: ModelState,
    prompts: Sequence[Sequence[int]],
    *,
    limits: int | Sequence[int],
    ends: Sequence[int] = (),
    batch_size: int = 16,
) -> list[list[int]]:
    """What a network says after each prompt if it always says the most probable token next.

    Prompts of similar lengths are answered together; what is said does not depend on which.

    Args:
      decoder: The network.
      params: Its weights.
      model_state: Its state.
      prompts: Tokens, at least one each.
      limits: The largest number of tokens of an answer, at least 1; one for all or one for each.
      ends: The tokens that end an answer.
      batch_size: The number of prompts that are answered at a time.

    Returns:
      The answers in the order of the prompts. One that ended has the token that ended it as its last.

    Raises:
      InputError: A number is below 1, `batch_size` is no whole number, a prompt is empty, or prompt and answer are
        longer than the context.
    """
    most = [int(limit) for limit in np.broadcast_to(limits, len(prompts))]
    batch_size = check_whole("batch_size", batch_size, 1)
    if min(most, default=1) < 1:
        raise InputError(f"limits must be at least 1, got {min(most)}")
    for number, (prompt, limit) in enumerate(zip(prompts, most, strict=True)):
        if not len(prompt):
            raise InputError(f"prompt {number} has no tokens; give at least one")
        if decoder.context is not None and len(prompt) + limit > decoder.context:
            raise InputError(
                f"prompt {number} has {len(prompt)} tokens, which with {limit} for the answer are more than the "
                f"{decoder.context} that the network reads; shorten it or allow fewer"
            )
    whole = max((len(prompt) + limit for prompt, limit in zip(prompts, most, strict=True)), default=0)
    most_room = decoder.context if decoder.context is not None else whole
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    said: dict[int, list[int]] = {}
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        length = -(-max(len(prompts[place]) for place in places) // _STEP) * _STEP
        # Rounded, so that sets of near lengths share a program, but to no more than the network has or need have.
        length, room = min(length, most_room), min(length + max(most), most_room)
        # Rows that fill the batch up may say nothing, so they do not keep the others waiting.
        tokens, lengths, allowed = np.zeros((batch_size, length), np.int32), *np.ones((2, batch_size), np.int32)
        allowed[len(places) :] = 0
        for row, place in enumerate(places):
            tokens[row, : len(prompts[place])] = prompts[place]
            lengths[row], allowed[row] = len(prompts[place]), most[place]
        found = _greedy(
            params,
            model_state,
            *map(jnp.asarray, (tokens, lengths, allowed, np.asarray(ends or (-1,), np.int32))),
            decoder=decoder,
            room=room,
            longest=max(most),
        )
        said |= {
            place: _ended(row[: most[place]].tolist(), ends)
            for place, row in zip(places, np.asarray(found), strict=False)
        }
    return [said[place] for place in range(len(prompts))]


def _ended(tokens: list[int], ends: Sequence[int]) -> list[int]:
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: last + 1]


@functools.partial(jax.jit, static_argnames=("decoder", "room", "longest"))
def _greedy(
    params: Params,
    model_state: ModelState,
    tokens: jax.Array,
    lengths: jax.Array,
    allowed: jax.Array,
    ends: jax.Array,
    *,
    decoder: StepDecoder,
    room: int,
    longest: int,
) -> jax.Array:
    """The tokens after each row's prompt; after its end, or the number that it is allowed, they mean nothing."""

    def unfinished(state: Any) -> jax.Array:
        return ~state[3].all()

    def extend(state: Any) -> Any:
        step, logits, cache, done, said = state
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        said = said.at[:, step].set(token)
        done |= (token[:, None] == ends[None]).any(axis=-1) | (step + 1 >= allowed)
        positions = jnp.minimum(lengths + step, room - 1)  # only rows that are done reach beyond their room
        logits, cache = decoder.step(params, model_state, cache, token, positions)
        return step + 1, logits, cache, done, said

    logits, cache = decoder.start(params, model_state, tokens, lengths, room)
    start = (0, logits, cache, allowed < 1, jnp.zeros((len(tokens), longest), jnp.int32))
    return jax.lax.while_loop(unfinished, extend, start)[-1]
