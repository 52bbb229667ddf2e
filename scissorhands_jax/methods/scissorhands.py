"""Scissorhands (Wu & Harandi, ECCV 2024): trim the salient weights, then repair with projected gradients.

Trim:    s = |E[dL_f/dw] * w| over forget batches; the top `fraction` of the weights is re-initialised.
Repair:  minimise L_r - forget_weight * L_f; with g_o its gradient and g_f that of L_f, step along
         g = g_o - v g_f,  v = max(0, <g_o, g_f> / <g_f, g_f>),  so that <g, g_f> <= 0 (equations 3 to 5).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, masks, projection, reinit, saliency, trees
from scissorhands_jax.base import (
    Batch,
    Carry,
    Data,
    Dataset,
    Key,
    Method,
    Metrics,
    Model,
    ModelState,
    Params,
    PyTree,
    StatefulLossFn,
    new_carry,
)
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods.pair_gradients import Pair, pair_gradients
from scissorhands_jax.methods.semantics import Mode, Semantics, _semantics
from scissorhands_jax.methods.settings import Gradient, TrainingSettings
from scissorhands_jax.methods.trimming import trim_network
from scissorhands_jax.trees import Where


class ScissorhandsAux(NamedTuple):
    """What the repair carries besides the network."""

    constraint_grads: PyTree | None  # leaves of shape (K, ...), fixed for an epoch; None when they are the step's own
    joint_step: jax.Array  # shape=(), int32: steps with forget examples in this epoch
    forget_weight: jax.Array  # shape=(), float32: the paper's lambda


class OptState(NamedTuple):
    """Projection and optimizer keep separate states, because retain-only steps are not projected."""

    projection: PyTree
    optimizer: PyTree


def scissorhands(
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    *,
    fraction: float,
    forget_weight: float = 0.05,
    initializer: reinit.Initializer | reinit.ByName | None = None,
    rank: Where = None,
    trim: Where = None,
    project: Where = None,
    projected: bool = True,
    num_constraints: int = 1,
    saliency_share: float = 1.0,
    mode: Mode = "paper",
    batch_size: int = 128,
    forget_batch_size: int | None = None,
    pair: Pair = "auto",
    saliency_loss_fn: StatefulLossFn | None = None,
    **departures,
) -> Method:
    """Scissorhands as a method.

    The authors' settings for CIFAR-10, ResNet-18, 10 %: `mode="authors"`, fraction 0.03, forget_weight 0.05,
    `sgd(5e-3)`, 10 epochs, batch 256, `trim = project = "layer3|layer4|fc"`.

    Args:
      loss_fn: the general form of the loss, mean over a batch; `losses.microbatched` computes batches in parts.
      optimizer: applied to the projected gradient.
      fraction: share of the ranked weights that is re-initialised, in (0, 1).
      forget_weight: the paper's lambda, at least 0.
      initializer: what trimmed weights become; default `reinit.uniform()`, in authors' mode `reinit.published()`.
      rank: leaves that are ranked (`trees.select`); default the trimmed ones, in authors' mode all.
      trim: leaves that are trimmed; default all with two or more axes, that is no biases and scales.
      project: leaves whose gradients are projected; default all.
      projected: False leaves the projection out (the paper's ablation).
      num_constraints: constraint gradients per epoch; more than one only with `constraints_per_epoch`.
      saliency_share: of the forget set, drawn at random, that weights are scored on (the paper's Figure 2); in (0, 1].
      mode: "paper" is Algorithm 1; "authors" is the published code.
      batch_size: retain examples per step.
      forget_batch_size: forget examples per step; default `batch_size`, at most the forget set.
      pair: how both gradients are computed: "vmap" over the stacked batches, "sequential", which needs the memory of
        one pass, or "auto" (`choose_pair`).
      saliency_loss_fn: the loss that weights are scored with, where it is another one than `loss_fn`.
      **departures: single fields of `Semantics` that differ from the mode.

    Raises:
      InputError: a setting is out of its range or unknown.
    """
    masks.check_fraction(fraction)
    semantics = _semantics(mode, departures)
    if not 0 < saliency_share <= 1:
        raise InputError(f"saliency_share must lie above 0 and not above 1, got {saliency_share}")
    if forget_weight < 0:
        raise InputError(f"forget_weight must not be negative, got {forget_weight}")
    if num_constraints > 1 and not semantics.constraints_per_epoch:
        raise InputError(
            f"num_constraints = {num_constraints} needs constraints_per_epoch; a step has one forget gradient"
        )
    if pair not in ("auto", "vmap", "sequential"):
        raise InputError(f"pair must be auto, vmap or sequential, got {pair!r}")
    if pair == "vmap" and losses.microbatches_of(loss_fn) > 1:
        raise InputError("pair = vmap computes two whole batches at once; with microbatches take sequential")
    data_lib.check_batch_size(batch_size)
    forget_batch_size = data_lib.check_batch_size(batch_size if forget_batch_size is None else forget_batch_size)
    if initializer is None:
        initializer = reinit.published() if mode == "authors" else reinit.uniform()
    projection.project_gradient(num_constraints, margin=semantics.margin, eps=semantics.eps)  # refuses bad numbers
    repair = Repair(loss_fn, optimizer.update, project, projected, num_constraints, semantics, pair)

    drawn = functools.partial(_random_batches, batch_size=forget_batch_size, fixed=semantics.fixed_batches)

    def constraints(key: Key, params: Params, model_state: ModelState, data: Data) -> PyTree:
        batches = drawn(key, data, num_constraints)
        return constraint_gradients(loss_fn, params, model_state, batches)[0]

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        _check_data(data)
        saliency_key, pass_key, draw_key, step_key = jax.random.split(key, 4)
        batches: Iterable[PyTree]
        if semantics.saliency_batches is None:
            scored = _share(saliency_key, data.forget, saliency_share)
            passes = data_lib.even_batches(data_lib.size(scored), batch_size)
            batches = (data_lib.take(scored, positions) for positions in passes)
        else:
            batches = drawn(saliency_key, data, semantics.saliency_batches)
        trimmed = trim_network(
            draw_key,
            saliency_loss_fn or loss_fn,
            params,
            model_state,
            batches,
            fraction=fraction,
            initializer=initializer,
            rank=rank,
            trim=trim,
            semantics=semantics,
            pass_key=pass_key,
        )
        return repair.begin(step_key, trimmed.params, trimmed.model_state, optimizer, forget_weight)

    def begin_epoch(carry: Carry, data: Data) -> Carry:
        held = carry.aux.constraint_grads
        if held is not None:
            # Apart from the step's own stream, which folds the step in directly.
            key = jax.random.fold_in(jax.random.split(carry.key)[0], carry.step)
            held = constraints(key, carry.params, carry.model_state, data)
        return carry._replace(aux=carry.aux._replace(constraint_grads=held, joint_step=jnp.zeros((), jnp.int32)))

    def batches(key: Key, data: Data, epoch: int) -> Iterable[Batch]:
        retain_key, forget_key = jax.random.split(jax.random.fold_in(key, epoch))
        forget_size, retain_size = data_lib.size(data.forget), data_lib.size(data.retain)
        if semantics.fixed_batches:
            first = Batch(_first(forget_size, forget_batch_size), _first(retain_size, batch_size))
            return itertools.repeat(first, -(-forget_size // forget_batch_size))
        fill = not semantics.ragged_batches
        retain = data_lib.shuffled_batches(retain_key, retain_size, batch_size, fill=fill)
        if semantics.every_step_joint:
            cycle = data_lib.cycled_batches(forget_key, forget_size, forget_batch_size)
            return (Batch(f, r) for r, f in zip(retain, cycle, strict=False))
        forget = data_lib.shuffled_batches(forget_key, forget_size, forget_batch_size, fill=fill)
        return (Batch(f, r) for f, r in itertools.zip_longest(forget, retain) if r is not None)

    return Method(init, repair, batches, begin_epoch)


@dataclasses.dataclass(frozen=True)
class Repair:
    """One repair step, as a value: steps that differ in numbers alone (rates, lambda) are equal and compile once."""

    loss_fn: StatefulLossFn
    update: optax.TransformUpdateFn
    project: Where
    projected: bool
    num_constraints: int
    semantics: Semantics
    pair: Pair

    def projector(self, params: Params) -> optax.GradientTransformationExtraArgs:
        """The projection of the selected leaves."""
        projector = projection.project_gradient(
            self.num_constraints, margin=self.semantics.margin, eps=self.semantics.eps
        )
        if self.project is None:
            return projector
        return optax.masked(projector, trees.select(params, self.project), mask_compatible_extra_args=True)

    def begin(
        self,
        key: Key,
        params: Params,
        model_state: ModelState,
        optimizer: optax.GradientTransformation,
        forget_weight: float,
    ) -> Carry:
        """The carry of a trimmed network."""
        held = None
        if self.semantics.constraints_per_epoch and self.projected:
            held = jax.tree.map(lambda leaf: jnp.zeros((self.num_constraints, *leaf.shape), leaf.dtype), params)
        opt_state = OptState(self.projector(params).init(params) if self.projected else (), optimizer.init(params))
        aux = ScissorhandsAux(held, jnp.zeros((), jnp.int32), jnp.float32(forget_weight))
        return new_carry(key, params, model_state, opt_state, aux)

    def __call__(self, carry: Carry, batch: Batch) -> tuple[Carry, Metrics]:
        key = jax.random.fold_in(carry.key, carry.step)
        if batch.forget is None:
            (loss, model_state), gradient = jax.value_and_grad(
                _of_batch(self.loss_fn, carry, batch.retain, key), has_aux=True
            )(carry.params)
            metrics = {"loss_retain": loss}
            aux, projection_state = carry.aux, carry.opt_state.projection
        else:
            gradient, model_state, projection_state, metrics = self._joint(carry, batch, key)
            aux = carry.aux._replace(joint_step=carry.aux.joint_step + 1)
        metrics["grad_norm"] = trees.norm(gradient)
        updates, optimizer_state = self.update(gradient, carry.opt_state.optimizer, carry.params)
        carry = carry._replace(
            step=carry.step + 1,
            params=optax.apply_updates(carry.params, updates),
            model_state=model_state,
            opt_state=OptState(projection_state, optimizer_state),
            aux=aux,
        )
        return carry, metrics

    def _joint(self, carry: Carry, batch: Batch, key: Key) -> tuple[PyTree, ModelState, PyTree, Metrics]:
        """The gradient of `L_r - lambda L_f`, projected where that is due."""
        (loss, forget_loss), retain_grad, forget_grad, model_state = pair_gradients(
            self.loss_fn,
            carry.params,
            carry.model_state,
            batch,
            key,
            pair=self.pair,
            forget_moves_state=self.semantics.forget_moves_state,
        )
        weight = carry.aux.forget_weight
        gradient = jax.tree.map(lambda r, f: r - weight.astype(f.dtype) * f, retain_grad, forget_grad)
        metrics = {"loss_retain": loss, "loss_forget": forget_loss}
        state = carry.opt_state.projection
        if self.projected:
            held = carry.aux.constraint_grads
            if held is None:
                held = jax.tree.map(lambda leaf: leaf[None], forget_grad)
            every = self.semantics.project_every
            due = None if every == 1 else (carry.aux.joint_step + 1) % every == 0
            gradient, state = _project(self.projector(carry.params), gradient, state, held, due)
            last = state if self.project is None else state.inner_state
            metrics |= {"dots": last.dots, "dual": last.dual, "projected": last.violated}
        return gradient, model_state, state, metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScissorhandsSettings(TrainingSettings):
    """See `scissorhands` for each of them; `departures.NAME=VALUE` sets single fields of `Semantics`."""

    fraction: float = 0.03
    forget_weight: float = 0.05
    initializer: str | None = None
    rank: str | None = None
    trim: str | None = None
    project: str | None = None
    projected: bool = True
    num_constraints: int = 1
    saliency_share: float = 1.0
    mode: Mode = "paper"
    forget_batch_size: int | None = None
    pair: Pair = "auto"
    departures: dict[str, Any] = dataclasses.field(default_factory=dict)
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain", "forget")

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        del model, num_classes
        return self.scheduled(
            scissorhands(
                self.microbatched(loss_fn),
                self.optimizer(),
                fraction=self.fraction,
                forget_weight=self.forget_weight,
                initializer=None if self.initializer is None else reinit.by_name(self.initializer),
                rank=self.rank,
                trim=self.trim,
                project=self.project,
                projected=self.projected,
                num_constraints=self.num_constraints,
                saliency_share=self.saliency_share,
                mode=self.mode,
                batch_size=self.batch_size,
                forget_batch_size=self.forget_batch_size,
                pair=self.pair,
                **self.departures,
            )
        )


def constraint_gradients(
    loss_fn: StatefulLossFn, params: Params, model_state: ModelState, batches: Iterable[PyTree]
) -> tuple[PyTree, jax.Array]:
    """The published code's memories, with our sign: running sums of eval-mode forget gradients, one row per batch.

    Returns:
      A pytree like `params` with leaves of shape (K, ...), row k the sum of the first k + 1 gradients, and the losses
      of the batches, shape=(K,).
    """
    rows, losses, total = [], [], None
    for batch in batches:
        sums = saliency.gradient_sum(loss_fn, params, model_state, [batch])
        total = _next_row(total, sums.gradient, sums.weight)
        rows.append(total)
        losses.append(sums.losses[0])
    return _stacked(params, rows), jnp.stack(losses)


@jax.jit
def _next_row(total: PyTree | None, gradient: PyTree, weight: jax.Array) -> PyTree:
    gradient = jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), gradient)
    return gradient if total is None else jax.tree.map(jnp.add, total, gradient)


@jax.jit
def _stacked(params: Params, rows: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda leaf, *sums: jnp.stack(sums).astype(leaf.dtype), params, *rows)


def _project(transform, gradient, state, constraint_grads, due):
    """Projects, or leaves the gradient alone on steps that are not due; `due` None projects always."""

    def project(operand):
        return transform.update(*operand, constraint_grads=constraint_grads)

    if due is None:
        return project((gradient, state))
    blank = jax.tree.map(jnp.zeros_like, state)
    return jax.lax.cond(due, project, lambda operand: (operand[0], blank), (gradient, state))


def _of_batch(loss_fn, carry, examples, key):
    def loss(params):
        return loss_fn(params, carry.model_state, examples, train=True, key=key)

    return loss


def _share(key: Key, dataset: Dataset, share: float) -> Dataset:
    """A random share of the examples, at least one."""
    total = data_lib.size(dataset)
    count = max(1, round(share * total))
    return dataset if count == total else data_lib.take(dataset, data_lib.permutation(key, total)[:count])


def _random_batches(key: Key, data: Data, count: int, *, batch_size: int, fixed: bool) -> Iterator[PyTree]:
    """The first batch of each of `count` fresh shuffles of the forget set; unshuffled where it is fixed."""
    total = data_lib.size(data.forget)
    for turn in range(count):
        order = data_lib.shuffled_batches(jax.random.fold_in(key, turn), total, batch_size, fill=False)
        yield data_lib.take(data.forget, _first(total, batch_size) if fixed else order[0])


def _first(total: int, batch_size: int) -> np.ndarray:
    return np.arange(min(total, batch_size), dtype=np.int32)


def _check_data(data: Data) -> None:
    if data_lib.size(data.forget) == 0:
        raise InputError("the forget set is empty; name at least one training example")
    if data_lib.size(data.retain) == 0:
        raise InputError("the retain set is empty; scissorhands needs examples to repair the network on")
