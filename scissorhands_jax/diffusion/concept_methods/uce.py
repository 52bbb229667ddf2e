"""UCE (Gandikota et al., WACV 2024): the keys and values of cross-attention are edited in closed form."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import trees
from scissorhands_jax.base import Data, Dataset, Key, Method, Model, ModelState, Params
from scissorhands_jax.diffusion.concept_methods.concept_training import BeginningPhase, ByteCount, ConceptTraining
from scissorhands_jax.diffusion.schedules import SD_V1_SCHEDULE, Schedule
from scissorhands_jax.errors import InputError, check_not_negative, check_positive
from scissorhands_jax.methods._gradient import edit
from scissorhands_jax.methods.settings import Gradient

EDITED = ".*/attn2/to_[kv]"
"""The layers that read the prompt: keys and values of cross-attention."""


def uce(*, erase_weight: float = 1.0, keep_weight: float = 1.0, ridge: float = 0.5, where: str = EDITED) -> Method:
    """Makes layers answer to a concept as to another prompt, and to what is kept as before, without any step.

    `edited_kernel` has the formula, which is applied to every kernel of keys and values in cross-attention. A prompt
    stands there with the embedding of its last token, as in the published code, whose weights these defaults are.

    Args:
      erase_weight: The weight of what is erased, at least 0.
      keep_weight: The weight of what is kept, at least 0.
      ridge: The weight of staying near the old kernel, above 0.
      where: The layers, as a pattern for `trees.select`.

    Returns:
      A method whose examples have `concept`, shape (N, D), the embeddings of last tokens; those of the forget set also
      `concept_pseudo`, those of what takes their place. Without them texts of one token are taken from `context` and
      `pseudo`. Equal embeddings count once.

    Raises:
      InputError: A weight is out of its range, or examples have neither.

    References:
      Gandikota et al., Unified Concept Editing in Diffusion Models, WACV 2024, arXiv 2308.14761, equation 7.
    """
    check_positive("ridge", ridge)
    check_not_negative("erase_weight", erase_weight)
    check_not_negative("keep_weight", keep_weight)

    def change(key: Key, params: Params, model_state: ModelState, data: Data) -> tuple[Params, ModelState]:
        del key
        erased, places = (
            _concepts(data.forget, "concept", "context"),
            _concepts(data.forget, "concept_pseudo", "pseudo"),
        )
        pairs = np.unique(np.concatenate([erased, places], axis=1), axis=0)
        kept = np.unique(_concepts(data.retain, "concept", "context"), axis=0)
        erased, places = np.split(pairs, 2, axis=1)
        chosen = trees.select(params, where)

        def of_leaf(leaf: jax.Array, edits: bool) -> jax.Array:
            if not edits or leaf.ndim != 2:
                return leaf
            return edited_kernel(
                leaf, erased, places, kept, erase_weight=erase_weight, keep_weight=keep_weight, ridge=ridge
            )

        return jax.tree.map(of_leaf, params, chosen), model_state

    return edit(change, reads=("forget", "retain"))


def edited_kernel(
    kernel: jax.Array,
    erased: np.ndarray,
    places: np.ndarray,
    kept: np.ndarray,
    *,
    erase_weight: float,
    keep_weight: float,
    ridge: float,
) -> jax.Array:
    """The kernel V that minimises, with the old kernel W and embeddings as rows c that give `c W`:

        erase sum_i |c_i V - p_i W|^2 + keep sum_j |c_j V - c_j W|^2 + ridge |V - W|^2,   that is
        V = (erase C'C + keep K'K + ridge I)^-1 (erase C'P + keep K'K + ridge I) W

    It is solved in float64, and has the type of the old one.

    Args:
      kernel: The old kernel. shape=(D, outputs)
      erased: The embeddings C of what is erased. shape=(N, D)
      places: The embeddings P of what takes their place. shape=(N, D)
      kept: The embeddings K of what is kept. shape=(M, D)
      erase_weight: The weight of what is erased.
      keep_weight: The weight of what is kept.
      ridge: The weight of staying near the old kernel, above 0.

    Raises:
      InputError: No finite kernel does that.
    """
    old, erased, places, kept = (np.asarray(array, np.float64) for array in (kernel, erased, places, kept))
    stays = keep_weight * kept.T @ kept + ridge * np.eye(old.shape[0])
    try:
        new = np.linalg.solve(
            erase_weight * erased.T @ erased + stays, (erase_weight * erased.T @ places + stays) @ old
        )
        made = new.astype(kernel.dtype)
    except np.linalg.LinAlgError:
        made = np.full(old.shape, np.nan)
    if not np.isfinite(made).all():
        raise InputError(f"the edit has no finite solution with ridge = {ridge:g}; raise ridge, or lower the weights")
    return jnp.asarray(made, kernel.dtype)


def _concepts(examples: Dataset, name: str, texts: str) -> np.ndarray:
    """The embeddings that stand for the prompts. shape=(N, D)"""
    if name in examples:
        return np.asarray(examples[name])
    if texts not in examples:
        raise InputError("uce needs a prompt that takes the concept's place; give pseudo=PROMPT, which may be empty")
    context = np.asarray(examples[texts])
    if context.shape[1] != 1:
        raise InputError(f"uce needs the embeddings of last tokens as {name!r} where prompts have {context.shape[1]}")
    return context[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UceSettings(ConceptTraining):
    """UCE as it was published. It takes no steps: rate, batches and epochs are refused."""

    pseudo: str = ""
    """The prompt that takes the concept's place; by default the empty one."""
    erase_weight: float = 1.0
    """The weight of what is erased, at least 0."""
    keep_weight: float = 1.0
    """The weight of what is kept, at least 0."""
    ridge: float = 0.5
    """The weight of staying near the old weights, above 0."""

    gradients: ClassVar[tuple[Gradient, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ("epochs", "batch_size", "microbatches", "optimizer", "learning_rate")
    reads_images: ClassVar[bool] = False

    def beginning(self, params: Params, size: ByteCount = trees.nbytes) -> dict[str, BeginningPhase]:
        """The new kernels, and in float64 the system of equations of the largest with what it is made of."""
        chosen = trees.select(params, EDITED)
        kernels = [leaf for leaf, edits in trees.zip_leaves(params, chosen) if edits and leaf.ndim == 2]
        inputs, outputs = max((leaf.shape for leaf in kernels), key=math.prod)
        return {"editing": BeginningPhase(size(kernels) + 8 * (3 * inputs * outputs + 4 * inputs * inputs))}

    @property
    def reads(self) -> tuple[str, ...]:
        """Last tokens; see `ConceptTraining.reads`."""
        return ("pseudo", "concept")

    def method(self, model: Model, schedule: Schedule = SD_V1_SCHEDULE) -> Method:
        """UCE with these settings; see `ConceptTraining.method`."""
        del model, schedule
        self.check()
        if self.train not in ("all", "cross-attention"):
            raise InputError(
                f"uce edits keys and values of cross-attention alone; leave train out, which is {self.train!r}"
            )
        return uce(erase_weight=self.erase_weight, keep_weight=self.keep_weight, ridge=self.ridge)
