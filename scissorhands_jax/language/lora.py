"""LoRA (Hu et al., ICLR 2022): thin matrices beside those of attention and perceptrons, trained in their place.

What is trained are the thin matrices, and the network itself is the model state, which no method moves. The second of
each pair begins at zero, so the original is the network with the thin matrices as they begin: there is no second copy
of its weights.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from scissorhands_jax.base import Key, Model, ModelState, Params, PyTree
from scissorhands_jax.errors import InputError, check_positive
from scissorhands_jax.language.decoder import LanguageDecoder, Sizes
from scissorhands_jax.language.model_folders import outline_of

BASE = "base"
"""The name of the network in the model state."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """The size of the thin matrices."""

    rank: int
    """The number of columns of the first and of rows of the second one, at least 1."""
    alpha: float | None = None
    """Their product is multiplied by alpha / rank, as PEFT does it. None is twice the rank."""

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def check(self, sizes: Sizes) -> None:
        """Refuses a rank that no matrix of the network has, or a factor that is not positive and finite.

        Raises:
          InputError: One of them is out of its range.
        """
        most = min(min(leaf.shape) for leaf in _kernels(outline_of(sizes)).values())
        if not 1 <= self.rank <= most:
            raise InputError(f"the rank of LoRA must be from 1 to {most} for this network, got {self.rank}")
        if self.alpha is not None:
            check_positive("alpha of LoRA", self.alpha)


def lora_model(sizes: Sizes, lora: Lora) -> Model:
    """The network with thin matrices next to those of attention and perceptrons.

    Args:
      sizes: The network.
      lora: The thin matrices.

    Returns:
      The network as a `Model` whose parameters are the thin matrices alone, and whose model state is {`BASE`: the
      weights}. `init` draws both.
    """
    lora.check(sizes)
    return _lora_model(dataclasses.replace(sizes, lora_scale=lora.scale), lora.rank)


@functools.cache
def _lora_model(sizes: Sizes, rank: int) -> Model:
    network = LanguageDecoder(sizes)

    def init(key: Key) -> tuple[Params, ModelState]:
        first, second = jax.random.split(key)
        base = network.init(first, jnp.zeros((1, 2), jnp.int32))["params"]
        return init_lora(second, sizes, rank), {BASE: base}

    def apply(
        params: Params, model_state: ModelState, x: PyTree, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, ModelState]:
        del train, key
        logits: Any = network.apply({"params": model_state[BASE], "lora": params}, x)
        return logits, model_state

    return Model(init, apply)


def init_lora(key: Key, sizes: Sizes, rank: int) -> Params:
    """Thin matrices for a network: the first of each pair uniform within 1 / sqrt(inputs), as in PEFT, the second zero.

    Args:
      key: A typed PRNG key.
      sizes: The network.
      rank: See `Lora`.
    """
    leaves: dict[tuple[str, ...], jax.Array] = {}
    for number, (path, kernel) in enumerate(_kernels(outline_of(sizes)).items()):
        inputs, outputs = kernel.shape
        bound = inputs**-0.5
        drawn = jax.random.uniform(jax.random.fold_in(key, number), (inputs, rank), minval=-bound, maxval=bound)
        leaves[(*path, "a")], leaves[(*path, "b")] = drawn, jnp.zeros((rank, outputs))
    return traverse_util.unflatten_dict(leaves)


def merged(base: Params, params: Params, lora: Lora) -> Params:
    """The weights of the network with the products of the thin matrices added to them, as NumPy arrays in float32.

    Args:
      base: The weights of the network. Where the call holds the only reference to them, there is never more than one
        array of them twice.
      params: The thin matrices.
      lora: Their size.
    """
    pairs = traverse_util.flatten_dict(params)

    def whole(path: tuple[str, ...], leaf: jax.Array) -> np.ndarray:
        weights = np.asarray(leaf, np.float32)
        if path[-1] != "kernel" or (*path[:-1], "a") not in pairs:
            return weights
        first, second = (np.asarray(pairs[(*path[:-1], name)], np.float32) for name in ("a", "b"))
        return weights + np.float32(lora.scale) * (first @ second)

    flat = traverse_util.flatten_dict(base)
    del base
    return traverse_util.unflatten_dict({path: whole(path, flat.pop(path)) for path in list(flat)})


def _kernels(outline: Params) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """The matrices of attention and perceptrons, by the path of the layer that they are in."""
    flat = traverse_util.flatten_dict(outline)
    return {path[:-1]: leaf for path, leaf in flat.items() if path[-1] == "kernel" and "layers" in path}
