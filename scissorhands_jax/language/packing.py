"""Examples of different lengths as arrays of few shapes: packed into rows for steps, in buckets for measuring.

Rows that are all padded to the longest example are mostly padding. Packing puts several examples into a row of a fixed
length, so that every step has one shape and is compiled once: `segment` numbers the examples of a row from 1, with 0 on
padding, a network must not look from one segment into another, and positions begin at 0 in each. Buckets keep one
example a row and pad it to the next of a few lengths, each of which is compiled once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import PyTree
from scissorhands_jax.errors import InputError

_logger = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """An example as tokens."""

    prompt: Sequence[int]
    """What is given, with whatever stands between it and the answer; at least one token."""
    answer: Sequence[int]
    """What is learned, its end included; at least one token."""

    @property
    def length(self) -> int:
        """The number of tokens of both."""
        return len(self.prompt) + len(self.answer)


def check_encoded(examples: Sequence[Encoded], length: int) -> None:
    """Refuses examples that make no row.

    Raises:
      InputError: A prompt or an answer is empty, or an example is longer than a row. The message names the first.
    """
    for number, example in enumerate(examples):
        for part, tokens in (("prompt", example.prompt), ("answer", example.answer)):
            if not len(tokens):
                raise InputError(f"the {part} of example {number} is empty; leave the example out")
        if example.length > length:
            raise InputError(
                f"example {number} has {example.length} tokens and a row {length}; make rows longer or the example "
                "shorter"
            )


def packed_rows(
    examples: Sequence[Encoded], length: int, *, refusals: Sequence[Encoded] | None = None, pad: int = 0
) -> dict[str, np.ndarray]:
    """Packs examples into as few rows of one length as first-fit decreasing finds.

    How many tokens are padding, and how many would be if all were padded to the longest, is logged.

    Args:
      examples: Prompts and answers.
      length: The number of tokens of a row.
      refusals: For each example its prompt with a refusal, for `methods.dpo`. Both are put at the same places.
      pad: The token of padding.

    Returns:
      The batch of `token_losses`: "tokens", int32, "answer", bool, and "segment", int32; with refusals also
      "refusal_tokens", "refusal_answer" and "refusal_segment". shape=(rows, length)

    Raises:
      InputError: There is no example, or as for `check_encoded`.
    """
    if not examples:
        raise InputError("there is no example to pack; give at least one")
    parts = {"": examples} | ({} if refusals is None else {"refusal_": refusals})
    for part in parts.values():
        check_encoded(part, length)
        if len(part) != len(examples):
            raise InputError(f"there are {len(examples)} examples and {len(part)} refusals; give one for each")
    sizes = [max(part[number].length for part in parts.values()) for number in range(len(examples))]
    places, rows = _places(sizes, length)
    found: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        found |= {f"{name}{key}": array for key, array in _filled(part, places, (rows, length), pad).items()}
    longest = max(sizes)
    _logger.info(
        "packed %d examples of %d tokens into %d rows of %d: %.0f %% padding; padded to the longest, of %d, it were "
        "%.0f %%",
        *(len(examples), sum(sizes), rows, length, 100 * (1 - sum(sizes) / (rows * length)), longest),
        100 * (1 - sum(sizes) / (len(examples) * longest)),
    )
    return found


def _places(sizes: Sequence[int], length: int) -> tuple[list[tuple[int, int]], int]:
    """The row and the segment of each example, and the number of rows."""
    left: list[int] = []
    counts: list[int] = []
    places = [(0, 0)] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda one: (-sizes[one], one)):
        row = next((row for row, free in enumerate(left) if free >= sizes[number]), len(left))
        if row == len(left):
            left.append(length)
            counts.append(0)
        left[row] -= sizes[number]
        counts[row] += 1
        places[number] = row, counts[row]
    return places, len(left)


def _filled(
    examples: Sequence[Encoded], places: Sequence[tuple[int, int]], shape: tuple[int, int], pad: int
) -> dict[str, np.ndarray]:
    tokens, answer = np.full(shape, pad, np.int32), np.zeros(shape, bool)
    segment, used = np.zeros(shape, np.int32), np.zeros(shape[0], int)
    for example, (row, place) in sorted(zip(examples, places, strict=True), key=lambda pair: pair[1]):
        start = used[row]
        middle, end = start + len(example.prompt), start + example.length
        tokens[row, start:middle], tokens[row, middle:end] = example.prompt, example.answer
        answer[row, middle:end], segment[row, start:end] = True, place
        used[row] = end
    return {"tokens": tokens, "answer": answer, "segment": segment}


class Bucket(NamedTuple):
    """Examples that are padded to one length."""

    positions: np.ndarray
    """Which examples these are. shape=(N,)"""
    rows: dict[str, np.ndarray]
    """The batch of `token_losses`, with some rows of padding so that every bucket of a length has one shape."""


def bucketed_rows(examples: Sequence[Encoded], *, step: int = 32, size: int = 16, pad: int = 0) -> list[Bucket]:
    """Examples one a row, padded to the next multiple of `step`, in batches of `size`.

    Rows that fill a batch up have no answer. The lengths that there are, each of which is compiled once, are logged.

    Args:
      examples: Prompts and answers.
      step: The number of tokens between one length and the next.
      size: The number of rows of a batch.
      pad: The token of padding.

    Raises:
      InputError: As for `check_encoded`.
    """
    check_encoded(examples, max((example.length for example in examples), default=0))
    lengths = np.array([-(-example.length // step) * step for example in examples], int)
    found = []
    for length in np.unique(lengths):
        members = np.flatnonzero(lengths == length)
        for start in range(0, len(members), size):
            chosen = members[start : start + size]
            places = [(row, 1) for row in range(len(chosen))]
            rows = _filled([examples[number] for number in chosen], places, (size, int(length)), pad)
            del rows["segment"]
            found.append(Bucket(chosen, rows))
    _logger.info(
        "%d examples in %d batches of %d rows, of lengths %s",
        *(len(examples), len(found), size, ", ".join(map(str, np.unique(lengths)))),
    )
    return found


def network_inputs(batch: PyTree, *, part: str = "") -> Any:
    """What a network is applied to: the tokens, with their segments if the rows are packed.

    Args:
      batch: The batch of `token_losses`.
      part: As for `token_losses.answers_of`.
    """
    tokens, segment = batch[f"{part}tokens"], batch.get(f"{part}segment")
    return tokens if segment is None else {"tokens": tokens, "segment": segment}


def positions_in_segments(segment: jax.Array) -> jax.Array:
    """The position of each token in its segment, from 0. shape=(N, T), int32"""
    index = jnp.broadcast_to(jnp.arange(segment.shape[1], dtype=jnp.int32), segment.shape)
    first = jnp.concatenate([jnp.ones_like(segment[:, :1], bool), segment[:, 1:] != segment[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)
