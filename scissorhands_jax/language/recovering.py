"""What may bring back answers that only seem to be gone: rounded weights, and learning some of the answers again.

References:
  Zhang et al., Catastrophic Failure of LLM Unlearning via Quantization, ICLR 2025.
  Hu et al., Unlearning or Obfuscating? Jogging the Memory of Unlearned LLMs via Benign Relearning, ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import trees
from scissorhands_jax.base import Data, Key, Method, Params
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.measuring import Network, measure_answers
from scissorhands_jax.language.packing import Encoded, packed_rows
from scissorhands_jax.language.token_losses import token_loss
from scissorhands_jax.methods.finetune import finetune
from scissorhands_jax.training.loop import run

BLOCK = 64
"""The number of weights that share a scale, as in common formats of 4 bits."""


def rounded_weights(params: Params, bits: int, *, block: int = BLOCK) -> Params:
    """Weights rounded to the nearest of 2^bits - 1 levels, as a network that is stored in so few bits has them.

    Each run of `block` weights of an array, in the order of its last axes, has a scale of its own, so that its largest
    weight is the outermost level. Biases, scales and other arrays with fewer than two axes (`trees.is_vector`) stay as
    they are.

    Args:
      params: Weights, a pytree of arrays.
      bits: The bits of a weight, from 2 to 16.
      block: The number of weights that share a scale.

    Raises:
      InputError: `bits` or `block` is out of its range.

    >>> rounded_weights({"w": jnp.array([[1.0, 0.4, 0.1]])}, 2)["w"].tolist()
    [[1.0, 0.0, 0.0]]
    """
    if not 2 <= bits <= 16 or block < 1:
        raise InputError(f"bits must lie from 2 to 16 and a block have at least one weight, got {bits} and {block}")
    levels = 2 ** (bits - 1) - 1

    def rounded(name: str, leaf: jax.Array, axes: int) -> jax.Array:
        if trees.is_vector(name, jnp.shape(leaf)[axes:]):
            return leaf
        flat = jnp.ravel(leaf).astype(jnp.float32)
        blocks = jnp.pad(flat, (0, -flat.size % block)).reshape(-1, block)
        scale = jnp.abs(blocks).max(axis=1, keepdims=True) / levels
        near = jnp.round(blocks / jnp.where(scale > 0, scale, 1)) * scale
        return near.reshape(-1)[: flat.size].reshape(leaf.shape).astype(leaf.dtype)

    return trees.map_named(rounded, params, trees.stacked_axes(params))


class Relearned(NamedTuple):
    """The mean probability of answers before and after a network learned others again."""

    before: float
    after: float


def relearning_method(network: Network, *, learning_rate: float, batch_size: int) -> Method:
    """How `relearn` learns: by AdamW on the token loss. One value for all networks, so that it is compiled once."""
    return finetune(token_loss(network.model), optax.adamw(learning_rate), batch_size=batch_size)


def relearn(
    network: Network,
    learned: Sequence[Encoded],
    asked: Sequence[Encoded],
    method: Method,
    key: Key,
    *,
    length: int,
    num_epochs: int,
) -> Relearned:
    """Lets a network learn some of the forgotten answers again, and asks it the others.

    Where the others come back as well, they were hidden rather than gone. Compare with a network that never saw any: it
    shows what the answers that are learned say about the others.

    Args:
      network: The network.
      learned: What it learns again.
      asked: Other answers that it was to forget.
      method: How it learns, see `relearning_method`.
      key: The typed PRNG key of the run.
      length: The number of tokens of a row of training.
      num_epochs: The number of passes over what it learns.

    Raises:
      InputError: As for `packing.packed_rows`.
    """
    rows = packed_rows(learned, length)
    nothing = {name: values[:0] for name, values in rows.items()}
    again = run(method, key, network.params, network.model_state, Data(nothing, rows), num_epochs=num_epochs)
    later = network._replace(params=again.params, model_state=again.model_state)
    before, after = (float(np.mean(measure_answers(each, asked).probability)) for each in (network, later))
    return Relearned(before, after)
