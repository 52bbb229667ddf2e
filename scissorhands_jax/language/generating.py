"""What a network says to prompts, token by token, with the keys and values of earlier tokens kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Params
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.decoder import Cache, LanguageDecoder, Sizes, empty_cache
from scissorhands_jax.language.text_tokens import TextTokenizer


def generate_texts(
    sizes: Sizes,
    params: Params,
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int = 64,
    batch_size: int = 8,
) -> list[str]:
    """Says after each prompt the most probable token, again and again, until the answer ends.

    Args:
      sizes: The network.
      params: Its weights.
      tokenizer: Its tokenizer.
      prompts: What stands before the answers.
      max_tokens: The largest number of tokens of an answer.
      batch_size: The number of prompts that are answered at a time.

    Returns:
      The answers in the order of the prompts, without blanks around them.

    Raises:
      InputError: A number is below 1, a prompt has no token, or prompt and answer are longer than the context.
    """
    if max_tokens < 1 or batch_size < 1:
        raise InputError(f"max_tokens and the batch size must be at least 1, got {max_tokens} and {batch_size}")
    encoded = [tokenizer.encode(prompt).numbers for prompt in prompts]
    for prompt, numbers in zip(prompts, encoded, strict=True):
        if not numbers:
            raise InputError(f"the prompt {prompt[:60]!r} has no tokens; write more")
        if len(numbers) + max_tokens > sizes.context:
            raise InputError(
                f"{prompt[:60]!r} has {len(numbers)} tokens, which with {max_tokens} for the answer are more than the "
                f"{sizes.context} that the network reads; shorten it or allow fewer"
            )
        if max(numbers) >= sizes.vocabulary:
            raise InputError(
                f"{prompt[:60]!r} has the token {max(numbers)}, and the network knows {sizes.vocabulary}; take "
                "tokenizer and weights of one model"
            )
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))  # so that a batch has prompts of a size
    said: dict[int, str] = {}
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        length = -(-max(len(encoded[place]) for place in places) // 16) * 16
        tokens, lengths = np.zeros((batch_size, length), np.int32), np.ones(batch_size, np.int32)
        for row, place in enumerate(places):
            tokens[row, : len(encoded[place])], lengths[row] = encoded[place], len(encoded[place])
        ends = jnp.asarray(tokenizer.ends or (-1,), jnp.int32)
        found = np.asarray(_greedy(params, tokens, lengths, ends, sizes=sizes, room=max_tokens))
        said |= {place: tokenizer.decode(found[row]).strip() for row, place in enumerate(places)}
    return [said[place] for place in range(len(encoded))]


@functools.partial(jax.jit, static_argnames=("sizes", "room"))
def _greedy(
    params: Params, tokens: jax.Array, lengths: jax.Array, ends: jax.Array, *, sizes: Sizes, room: int
) -> jax.Array:
    """The tokens after each row's prompt; after one that ends an answer they mean nothing. shape=(N, room)"""
    network, rows = LanguageDecoder(sizes), tokens.shape[0]

    def say(tokens: jax.Array, positions: jax.Array, cache: Cache) -> Any:
        return network.apply({"params": params}, tokens, positions, cache)

    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    # Keys of padding come after all prompts, and the answer's take their places one by one before they are seen.
    logits, cache = say(tokens, positions, empty_cache(sizes, rows, tokens.shape[1] + room))
    last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]

    def unfinished(state: Any) -> jax.Array:
        step, _, _, done, _ = state
        return (step < room) & ~done.all()

    def extend(state: Any) -> Any:
        step, logits, cache, done, said = state
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        said = said.at[:, step].set(token)
        done |= (token[:, None] == ends[None]).any(axis=-1)
        logits, cache = say(token[:, None], (lengths + step)[:, None], cache)
        return step + 1, logits[:, 0], cache, done, said

    start = (0, last, cache, jnp.zeros(rows, bool), jnp.broadcast_to(ends[0], (rows, room)))
    return jax.lax.while_loop(unfinished, extend, start)[-1]
