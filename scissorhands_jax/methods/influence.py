"""Influence unlearning, one Newton step (Koh & Liang, 2017; Izzo et al., 2021; as in Jia et al., NeurIPS 2023)."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses as losses_lib
from scissorhands_jax import saliency, trees
from scissorhands_jax.base import Data, Dataset, Key, Method, Model, ModelState, Params, PyTree, StatefulLossFn, freeze
from scissorhands_jax.errors import DivergedError, InputError, check_choice, check_finite_number, check_positive
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import edit
from scissorhands_jax.methods.settings import Choices, MethodSettings, Mode, Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfluenceOptions:
    """The keyword arguments of `influence`."""

    alpha: float = 10.0
    """The factor of the update; 1 is the Newton step."""
    damping: float = 1.0
    """The weight of the identity in F, above 0. Along directions in which no sample has a gradient the update is
    `alpha / damping` times f - r."""
    num_samples: int = 1000
    """N, the number of examples drawn from the retain set, or all of it where it is smaller. In authors' mode it is the
    constant of the recursion, which stops after N + 2 examples, 1,002 in the published code."""
    mode: Mode = "paper"
    """"paper" solves for the update; "authors" follows the published recursion."""
    batch_size: int = 256
    """The number of examples of a pass over the data that are computed at once; the result does not depend on it."""


@takes(InfluenceOptions)
def influence(loss_fn: StatefulLossFn, options: InfluenceOptions) -> Method:
    """Moves the weights once, by `alpha * F^-1 (f - r)`, and takes no steps.

    With n training examples, n_f of them to forget, `f = (1/n) sum_forget g` and `r = n_f / (n n_r) sum_retain g` for
    the gradients g of single examples; f - r is the gradient of the mean loss over all examples minus that over the
    retained ones. F stands for the Hessian: it is the damped empirical Fisher matrix `damping I + (1/N) sum g g^T` over
    N retained examples, whose inverse is what WoodFisher's recursion (Singh & Alistarh, NeurIPS 2020) arrives at. All
    passes are in evaluation mode, and `model_state` stays as it is.

    In `mode="authors"` the published recursion replaces the inverse: it follows the first retained examples in their
    order, its Fisher terms never leave the direction of the first gradient, and damping is not read. The authors'
    setting for CIFAR-10 is an alpha of 10. A damping of 1 is our choice, after the identity that their recursion begins
    with.

    Args:
      loss_fn: The general form of the loss, a mean over a batch.

    Raises:
      InputError: A setting is out of its range, or (from `init`) the update cannot be solved for.
      DivergedError: (from `init`) The update is not finite.
    """
    batch_size = data_lib.check_batch_size(options.batch_size)
    check_choice("mode", options.mode, typing.get_args(Mode))
    check_finite_number("alpha", options.alpha)
    check_positive("damping", options.damping)
    if options.num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {options.num_samples}")
    count = options.num_samples

    def change(key: Key, params: Params, model_state: ModelState, data: Data) -> tuple[Params, ModelState]:
        forget, retain = removal_gradients(loss_fn, params, model_state, data, batch_size=batch_size)
        difference = _plus(forget, -1.0, retain)
        total = data_lib.size(data.retain)
        if options.mode == "authors":
            examples = (data_lib.take(data.retain, np.array([p])) for p in range(min(total, count + 2)))
            update = published_recursion(loss_fn, params, model_state, examples, difference, constant=count)
        else:
            chosen = np.sort(data_lib.permutation(key, total)[:count])
            batches = [data_lib.take(data.retain, chosen[p]) for p in data_lib.even_batches(len(chosen), batch_size)]
            update = inverse_fisher_product(loss_fn, params, model_state, batches, difference, damping=options.damping)
        moved = _plus(params, options.alpha, update)
        # Infinity may be where it was, as in a mask of attention; NaN may be nowhere.
        infinite = {(name, kind) for name, kind in trees.not_finite(params) if kind == "inf"}
        if trees.not_finite(moved, trees.entries_not_finite(params, infinite)):
            raise DivergedError("the influence update is not finite; check the original weights, or lower alpha")
        return moved, model_state

    return edit(change, reads=("forget", "retain"))


def removal_gradients(
    loss_fn: StatefulLossFn, params: Params, model_state: ModelState, data: Data, *, batch_size: int
) -> tuple[PyTree, PyTree]:
    """The gradients f and r of `influence`, in evaluation mode, in float32 or wider.

    Args:
      loss_fn: The loss, a mean over the examples of a batch.
      params: The parameters of the original network.
      model_state: Its state.
      data: The forget and the retain set.
      batch_size: The number of examples in a batch, which only changes the order of sums.
    """

    def summed(examples: Dataset) -> saliency.GradientSum:
        batches = (data_lib.take(examples, p) for p in data_lib.even_batches(data_lib.size(examples), batch_size))
        return saliency.gradient_sum(loss_fn, params, model_state, batches)

    sums = [summed(examples) for examples in data]
    weights = [float(part.weight) for part in sums]
    forget, retain = (
        _times(weights[0] / sum(weights) / weight, part.gradient) for part, weight in zip(sums, weights, strict=True)
    )
    return forget, retain


def inverse_fisher_product(
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    batches: Sequence[PyTree],
    vector: PyTree,
    *,
    damping: float,
    tolerance: float = 1e-6,
) -> PyTree:
    """`(damping I + (1/N) J^T J)^-1 vector`, with a row of J for the gradient of each of N examples.

    By Woodbury's identity this is `(vector - J^T a) / damping` with `(damping N I + J J^T) a = J vector`, a system of N
    equations. Conjugate gradients solve it, in some tens of iterations on image networks; each is two passes over the
    examples, one forward (`J u`) and one backward (`J^T a`), driven from Python. Neither J nor any n x n or N x N
    matrix exists, and the memory does not grow with N.

    Args:
      loss_fn: The general form of the loss, which is evaluated for one example at a time, in evaluation mode.
      params: The parameters at which the gradients are taken.
      model_state: The state of the network, which is read and not moved.
      batches: The N examples, in pytrees of arrays with a leading example axis.
      vector: The vector, a pytree like `params`.
      damping: The weight of the identity, above 0. Where it is small against the curvature the subtraction cancels,
        which leaves errors of about `1e-7 |vector| / damping`.
      tolerance: The norm of the residual at which the iterations end, relative to that of `J vector`.

    Raises:
      InputError: The iterations do not converge, because gradients are not finite or the damping is too small.
    """
    sizes = [data_lib.size(batch) for batch in batches]
    total = sum(sizes)

    def rows_times(tree: PyTree) -> np.ndarray:
        parts = [_rows_times(loss_fn, params, model_state, batch, tree) for batch in batches]
        return np.concatenate([trees.on_host(part).astype(np.float64) for part in parts])

    def combined(weights: np.ndarray) -> PyTree:
        tree = _times(0.0, vector)
        for batch, part in zip(batches, np.split(weights, np.cumsum(sizes)[:-1]), strict=True):
            tree = _add_rows(loss_fn, params, model_state, batch, jnp.asarray(part, jnp.float32), tree)
        return tree

    operator = LinearOperator(
        (total, total), dtype=np.float64, matvec=lambda a: damping * total * a + rows_times(combined(a))
    )
    weights, failed = cg(operator, rows_times(vector), rtol=tolerance, maxiter=2 * total + 10)
    if failed or not np.all(np.isfinite(weights)):
        raise InputError(
            f"conjugate gradients on {total} examples did not reach {tolerance:g}; raise damping, now {damping:g}, and "
            "check that the original weights are finite"
        )
    return _times(1 / damping, _plus(vector, -1.0, combined(weights)))


def published_recursion(
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    examples: Iterable[PyTree],
    vector: PyTree,
    *,
    constant: int,
) -> PyTree:
    """The recursion of the published code, from `k = vector` and `o = g_1`; then for each later gradient g

        t = <o, g>;  k <- k - <k, g> / (constant + t) o;  o <- o - t / (constant + t) o

    so every correction is parallel to the first gradient. WoodFisher would apply its running inverse to each g instead.

    Args:
      loss_fn: The general form of the loss, in evaluation mode.
      params: The parameters at which the gradients are taken.
      model_state: The state of the network, which is read and not moved.
      examples: Batches of one example each. The first one sets o.
      vector: The vector k begins as, a pytree like `params`.
      constant: The constant of the recursion.
    """
    along = None
    for example in examples:
        gradient = _gradient(loss_fn, params, model_state, example)
        if along is None:
            along = gradient
        else:
            vector, along = _recur(vector, along, gradient, float(constant))
    return vector


def _example_losses(loss_fn: StatefulLossFn, model_state: ModelState, batch: PyTree) -> Callable[[Params], jax.Array]:
    """The loss of every example of a batch, as a function of the parameters."""

    # A single example is no batch to divide, and a loss in parts has a derivative of its own that `jvp` cannot follow.
    loss_fn = losses_lib.microbatched(loss_fn, 1)

    def one(params, example):
        example = jax.tree.map(lambda leaf: leaf[None], example)
        return loss_fn(params, model_state, example, train=False, key=None)[0]

    return lambda params: jax.vmap(one, in_axes=(None, 0))(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(loss_fn, params, model_state, batch):
    gradient = jax.grad(freeze(loss_fn, model_state))(params, batch)
    return jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), gradient)


@functools.partial(jax.jit, static_argnums=0)
def _rows_times(loss_fn, params, model_state, batch, tree):
    tree = jax.tree.map(lambda w, u: u.astype(w.dtype), params, tree)
    return jax.jvp(_example_losses(loss_fn, model_state, batch), (params,), (tree,))[1]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=5)
def _add_rows(loss_fn, params, model_state, batch, weights, tree):
    losses, pull = jax.vjp(_example_losses(loss_fn, model_state, batch), params)
    return jax.tree.map(lambda u, g: u + g.astype(u.dtype), tree, *pull(weights.astype(losses.dtype)))


@jax.jit
def _plus(tree, factor, other):
    return jax.tree.map(lambda a, b: (a + factor * b).astype(a.dtype), tree, other)


@jax.jit
def _times(factor, tree):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


@jax.jit
def _recur(vector, along, gradient, constant):
    overlap = trees.vdot(along, gradient)
    share = trees.vdot(vector, gradient) / (constant + overlap)
    shrink = overlap / (constant + overlap)
    vector = jax.tree.map(lambda k, o: k - share.astype(k.dtype) * o, vector, along)
    return vector, jax.tree.map(lambda o: o - shrink.astype(o.dtype) * o, along)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfluenceSettings(InfluenceOptions, MethodSettings):
    """The authors' settings for CIFAR-10. The method takes no steps, so `epochs` stays 0."""

    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {"alpha": (1e-1, 1e2)}

    @property
    def beginning_examples(self) -> int:
        """The examples that the update is solved for with; the further ones are in the mean gradient alone."""
        return self.num_samples + (2 if self.mode == "authors" else 0)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model, num_classes
        self.check_no_epochs()
        return influence(loss_fn, **self.values(InfluenceOptions))
