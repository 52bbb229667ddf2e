"""OrthoGrad (Shamsian et al., 2025, arXiv 2503.02312): climb the forget loss where no retained example notices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import losses, microbatches, trees
from scissorhands_jax.base import (
    Batch,
    Carry,
    Key,
    Method,
    Metrics,
    Model,
    ModelState,
    Params,
    PyTree,
    StatefulLossFn,
)
from scissorhands_jax.errors import InputError
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import PairedOptions, follow_direction, paired_batches
from scissorhands_jax.methods.settings import Choices, Gradient, Range, TrainingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrthogradOptions(PairedOptions):
    """The keyword arguments of `orthograd`."""

    retain_weight: float = 0.5
    """alpha, the weight of the mean retain gradient, at least 0 and below 1. 0 only climbs the forget loss."""
    batch_size: int = 32
    """The number of retain examples that a step sees, B. It holds the gradient of every one of them."""


@takes(OrthogradOptions)
def orthograd(loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: OrthogradOptions) -> Method:
    """Ascends on the forget loss, orthogonally to the gradient of every single retained example of the step.

    With g_f the mean forget gradient, g_1 ... g_B the gradients of the single retained examples, and P the orthogonal
    projection onto their span, a step descends along

      alpha (1/B) sum_i g_i  -  (1 - alpha) (g_f - P g_f)

    `<g_f - P g_f, g_i> = 0` for every i: to first order the ascent changes the loss of no retained example of the
    batch, where a projection against their mean gradient would only keep the mean of the losses. `orthogonal_part` says
    how P is computed. Where the span holds g_f, as with more examples than weights, no ascent is left; the metric
    `kept_share` is `|g_f - P g_f| / |g_f|`.

    The loss of a single example has no batch to normalise over. So all gradients are those of evaluation mode, without
    dropout or augmentation, and the network's state (the running statistics of BatchNorm) stays as it is. Momentum and
    weight decay move the weights along directions that are not orthogonal; the settings have neither. A step holds B
    gradients as large as the network: 32 of ResNet-18 in float32 are 1.4 GB.

    Args:
      loss_fn: The general form of the loss, a mean over a batch.
      optimizer: The optimizer, such as `optimizers.sgd`, with a momentum of 0 for the guarantee above.

    Raises:
      InputError: A setting is out of its range.
    """
    alpha, parts = options.retain_weight, losses.microbatches_of(loss_fn)
    if not 0 <= alpha < 1:
        raise InputError(f"retain_weight must be at least 0 and below 1, got {alpha}")
    of_one = losses.microbatched(loss_fn, 1)

    def direction(carry: Carry, batch: Batch, key: Key) -> tuple[PyTree, ModelState, Metrics]:
        del key
        params, model_state = carry.params, carry.model_state

        def forget_loss(params):
            return loss_fn(params, model_state, batch.forget, train=False, key=None)[0]

        loss, forget = jax.value_and_grad(forget_loss)(params)
        each, rows = microbatches.mapped(
            lambda examples: example_gradients(of_one, params, model_state, examples),
            microbatches.after(forget, batch.retain),
            parts,
        )
        rest = orthogonal_part(forget, rows)

        def combined(row, ascent):
            return (alpha * jnp.mean(row, axis=0) - (1 - alpha) * ascent).astype(ascent.dtype)

        norm = trees.norm(forget)
        kept = jnp.where(norm > 0, trees.norm(rest) / jnp.where(norm > 0, norm, 1), 0)
        metrics = {"loss_retain": jnp.mean(each), "loss_forget": loss, "kept_share": kept}
        return jax.tree.map(combined, rows, rest), model_state, metrics

    return follow_direction(direction, optimizer, batches=paired_batches(options), reads=("forget", "retain"))


def example_gradients(
    loss_fn: StatefulLossFn, params: Params, model_state: ModelState, examples: PyTree
) -> tuple[jax.Array, PyTree]:
    """The loss and the gradient of every example by itself, in evaluation mode.

    Args:
      loss_fn: The general form of the loss, which is called with batches of one example.
      params: The parameters at which the gradients are taken.
      model_state: The state of the network, which is read and not moved.
      examples: A pytree of B examples, with a leading example axis.

    Returns:
      The losses, shape=(B,), and the gradients: a pytree like `params` whose leaves have a leading axis of length B.
    """

    def one(params, example):
        example = jax.tree.map(lambda leaf: leaf[None], example)
        return loss_fn(params, model_state, example, train=False, key=None)[0]

    # Compiled as one where a step is not.
    return jax.jit(jax.vmap(jax.value_and_grad(one), in_axes=(None, 0)), inline=True)(params, examples)


def orthogonal_part(tree: PyTree, rows: PyTree) -> PyTree:
    """A tree without its part in the span of B others: the nearest tree that is orthogonal to each of them.

    With the rows scaled to length 1 and `V diag(s) V^T` the eigenvalues of their Gram matrix, shape=(B, B), the vectors
    `s_k^-1/2 sum_i V_ik row_i` are an orthonormal basis of the span, along which is subtracted. No row is flattened or
    copied. Directions with `s_k <= B eps max(s)` (eps of its type) are rounding errors of rows that depend on each
    other; they are left out. The subtraction is done twice, so that what remains is orthogonal to rounding.

    Args:
      tree: A pytree of floating point arrays.
      rows: A pytree like `tree` whose leaves have a leading axis of length B. A row that is zero, or whose square
        underflows (norm below 1e-19 in float32), is ignored. Rows of any scale count alike: only their span matters.

    Returns:
      A pytree with the structure and the dtypes of `tree`. It is zero to rounding where the span holds the tree.

    >>> rows = {"w": jnp.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]])}
    >>> orthogonal_part({"w": jnp.array([3.0, 4.0, 5.0])}, rows)["w"].round(5).tolist()
    [0.0, 0.0, 5.0]
    """
    return _orthogonal_part(tree, rows)


@functools.partial(jax.jit, inline=True)
def _orthogonal_part(tree: PyTree, rows: PyTree) -> PyTree:
    gram = trees.gram(rows)
    length = jnp.sqrt(jnp.diagonal(gram))
    length = jnp.where(length > 0, length, 1)
    values, vectors = jnp.linalg.eigh(gram / length[:, None] / length[None])
    cutoff = len(values) * jnp.finfo(values.dtype).eps * jnp.maximum(values[-1], 0)
    independent = values > cutoff
    # Column k holds the weights of the rows in the k-th vector of the basis.
    scale = jnp.where(independent, jax.lax.rsqrt(jnp.where(independent, values, 1)), 0)
    basis = vectors / length[:, None] * scale[None]

    def subtracted(leaf: jax.Array, row: jax.Array, weights: jax.Array) -> jax.Array:
        return leaf - jnp.tensordot(weights, row.astype(leaf.dtype), 1, precision="highest")

    rest = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, gram.dtype)), tree)
    for _ in range(2):
        along = jnp.einsum("ik,i->k", basis, trees.stack_vdot(rows, rest), precision="highest")
        weights = jnp.einsum("ik,k->i", basis, along, precision="highest")
        rest = jax.tree.map(lambda leaf, row, weights=weights: subtracted(leaf, row, weights), rest, rows)
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), rest, tree)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrthogradSettings(OrthogradOptions, TrainingSettings):
    """Settings of ours: plain SGD, since momentum and weight decay would leave the orthogonal directions."""

    learning_rate: float = 1e-2
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 32
    gradients: ClassVar[tuple[Gradient, ...]] = ("forget", "both")
    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {
        **TrainingSettings.search_ranges,
        "retain_weight": (0.1, 0.9),
    }

    @property
    def num_gradients(self) -> int:
        """The gradient of every retained example of a step, the forget gradient, and what is followed."""
        return len(self.gradients) + self.batch_size

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model, num_classes
        return self.scheduled(orthograd(self.microbatched(loss_fn), self.optimizer(), **self.values(OrthogradOptions)))
