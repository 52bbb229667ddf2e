"""Scissorhands (Wu & Harandi, ECCV 2024): trim the salient weights, then repair with projected gradients.

Trim:    s = |E[dL_f/dw] * w| over forget batches; the top `fraction` of the weights is re-initialised.
Repair:  minimise L_r - forget_weight * L_f; with g_o its gradient and g_f that of L_f, step along
         g = g_o - v g_f,  v = max(0, <g_o, g_f> / <g_f, g_f>),  so that <g, g_f> <= 0 (equations 3 to 5).
Ceiling: L_f has no upper bound, and both lambda and the projection can drive it up until numbers overflow. With a
         ceiling, min(L_f, ceiling) takes its place; above, its gradient is 0, and so there is nothing to project.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses as losses_lib
from scissorhands_jax import masks, projection, reinit, saliency, trees
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
from scissorhands_jax.errors import InputError, check_choice, check_not_negative
from scissorhands_jax.keywords import KEYS, REST, takes
from scissorhands_jax.methods import _gradient
from scissorhands_jax.methods._gradient import Batches, PairedOptions, check_not_empty
from scissorhands_jax.methods.pair_gradients import Pair, check_pair, pair_gradients
from scissorhands_jax.methods.semantics import Semantics, resolve_semantics
from scissorhands_jax.methods.settings import (
    HELD_OUT,
    Choices,
    Gradient,
    Mode,
    Range,
    ScheduleName,
    TrainingSettings,
)
from scissorhands_jax.methods.trimming import trim_network
from scissorhands_jax.trees import Stacked, Where


class ScissorhandsAux(NamedTuple):
    """What the repair carries in addition to the network."""

    constraint_grads: PyTree | None  # leaves of shape (K, ...), fixed for an epoch; None when they are the step's own
    joint_step: jax.Array  # shape=(), int32: steps with forget examples in this epoch
    forget_weight: jax.Array  # shape=(), float32: the paper's lambda
    ceiling: jax.Array  # shape=(), float32: the forget loss above which lambda is 0; the largest number for none


class OptState(NamedTuple):
    """Projection and optimizer keep separate states, because retain-only steps are not projected."""

    projection: PyTree
    optimizer: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScissorhandsOptions:
    """The keyword arguments of `scissorhands` that are settings as well."""

    fraction: float
    """The share of the ranked weights that is marked, above 0 and below 1. Those of trimmed leaves are
    re-initialised."""
    forget_weight: float = 0.05
    """The paper's lambda, the weight of the forget loss in the repair, at least 0."""
    initializer: reinit.Initializer | reinit.ByName | str | None = None
    """What trimmed weights become: an initializer, or its name in `reinit.INITIALIZERS`. None is `reinit.uniform()`, in
    authors' mode `reinit.published()`."""
    rank: Where = None
    """The leaves whose weights are ranked, as a pattern for `trees.select`. None is the trimmed ones, in authors' mode
    all."""
    trim: Where = None
    """The leaves that are trimmed, as a pattern for `trees.select`; biases, scales and other arrays with fewer than two
    axes (`trees.is_vector`) stay unless the semantics have `trim_vectors`, and names with "bn" where they have
    `skip_bn_names`. None is all others; the command line then takes the upper layers of a network that it knows."""
    project: Where = None
    """The leaves whose gradients are projected, as a pattern for `trees.select`. None is all."""
    projected: bool = True
    """Whether gradients are projected at all; False is the paper's ablation."""
    num_constraints: int = 1
    """The number of constraint gradients of an epoch, 1 to 10; more than 1 needs `constraints_per_epoch`, which the
    mode "authors" has."""
    saliency_share: float = 1.0
    """The share of the forget set, drawn at random, that weights are scored on, above 0 and at most 1 (the paper's
    Figure 2). The published code scores on one batch instead: where `saliency_batches` is a number it stays 1."""
    mode: Mode = "paper"
    """"paper" is Algorithm 1, "authors" the published code."""
    batch_size: int = 128
    """The number of retain examples that a step sees."""
    forget_batch_size: int | None = None
    """The number of forget examples that a step sees, at most the size of the forget set. None takes `batch_size`."""
    pair: Pair = "auto"
    """How the two gradients of a step are computed: "vmap" over the stacked batches, "sequential" in the memory of one
    pass, or "auto", which takes the one that `choose_pair` expects to be faster."""
    departures: dict[str, Any] = dataclasses.field(default_factory=dict, metadata={**REST, KEYS: Semantics})
    """Single fields of `Semantics` whose values differ from those of the mode."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScissorhandsArguments(ScissorhandsOptions):
    """The keyword arguments of `scissorhands`."""

    stacked: Stacked = None
    """Which arrays hold several layers along their first axes, as scanned and mapped modules have them, where other
    arrays do not tell (`trees.stacked_axes`)."""
    saliency_loss_fn: StatefulLossFn | None = None
    """The loss that weights are scored with. None is the loss of the steps."""
    ceiling: float | None = None
    """The forget loss, above 0, up to which forget examples are driven: the repair minimises `L_r - forget_weight *
    min(L_f, ceiling)`, and a step whose forget batch has a larger mean loss follows the gradient of the retain batch
    alone, without a projection (unless `project_above_ceiling`). For a classifier `math.log(num_classes)` is the loss
    of a uniform guess, and the mean loss of held-out examples is what a network should have that never saw them.
    `math.inf` is no ceiling, as in the paper. None is the same where steps see retain examples alone once the forget
    examples are used up, or with `fixed_batches`; where every step sees forget examples, a ceiling has to be chosen."""


@takes(ScissorhandsArguments)
def scissorhands(
    loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: ScissorhandsArguments
) -> Method:
    """Scissorhands as a method: `init` trims the network, and the steps repair it.

    The authors' settings for CIFAR-10, ResNet-18 and 10 % to forget are `mode="authors"`, a fraction of 0.03, a
    forget_weight of 0.05, `trim = project = "layer3|layer4|fc"`, and 10 epochs of `sgd(5e-3)` with batches of 256.

    Args:
      loss_fn: The general form of the loss, a mean over a batch. `losses.microbatched` computes batches in parts.
      optimizer: The optimizer that the projected gradient is handed to, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range or unknown.
    """
    semantics = resolve_semantics(options.mode, options.departures)
    initializer = _check(options, semantics, loss_fn)
    sizes = PairedOptions(batch_size=options.batch_size, forget_batch_size=options.forget_batch_size)
    forget_batch_size, _ = sizes.sizes()
    drawn = functools.partial(_random_batches, batch_size=forget_batch_size, fixed=semantics.fixed_batches)
    repair = Repair(
        loss_fn,
        optimizer.update,
        options.project,
        options.projected,
        options.num_constraints,
        semantics,
        options.pair,
    )

    def saliency_batches(key: Key, data: Data) -> Iterable[PyTree]:
        if semantics.saliency_batches is not None:
            return drawn(key, data, semantics.saliency_batches)
        scored = _share(key, data.forget, options.saliency_share)
        passes = data_lib.even_batches(data_lib.size(scored), options.batch_size)
        return (data_lib.take(scored, positions) for positions in passes)

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        check_not_empty(data, ("forget", "retain"))
        trees.select(params, options.project)  # a pattern that matches nothing is refused before weights are scored
        saliency_key, pass_key, draw_key, step_key = jax.random.split(key, 4)
        trimmed = trim_network(
            draw_key,
            options.saliency_loss_fn or loss_fn,
            params,
            model_state,
            saliency_batches(saliency_key, data),
            fraction=options.fraction,
            initializer=initializer,
            rank=options.rank,
            trim=options.trim,
            semantics=semantics,
            pass_key=pass_key,
            stacked=options.stacked,
        )
        network = trimmed.params, trimmed.model_state
        return repair.begin(step_key, *network, optimizer, options.forget_weight, options.ceiling)

    def begin_epoch(carry: Carry, data: Data) -> Carry:
        held = carry.aux.constraint_grads
        if held is not None:
            # Apart from the steps' own streams, which fold the step in directly, but for that of the first step, whose
            # key the split gives. Another one would change what committed tables were computed with.
            key = jax.random.fold_in(jax.random.split(carry.key)[0], carry.step)
            batches = drawn(key, data, options.num_constraints)
            drawing = losses_lib.drawing_key(loss_fn, jax.random.fold_in(key, 1))
            held, _ = constraint_gradients(loss_fn, carry.params, carry.model_state, batches, key=drawing)
        return carry._replace(aux=carry.aux._replace(constraint_grads=held, joint_step=jnp.zeros((), jnp.int32)))

    return Method(init, repair, _batches(semantics, sizes), begin_epoch)


def _check(
    options: ScissorhandsArguments, semantics: Semantics, loss_fn: StatefulLossFn
) -> reinit.Initializer | reinit.ByName:
    """Refuses settings that cannot be used; returns the initializer that they name."""
    masks.check_fraction(options.fraction)
    if not 0 < options.saliency_share <= 1:
        raise InputError(f"saliency_share must lie above 0 and not above 1, got {options.saliency_share}")
    if options.saliency_share != 1 and semantics.saliency_batches is not None:
        raise InputError(
            f"saliency_share = {options.saliency_share:g} is of the whole forget set, and weights are scored on "
            f"{semantics.saliency_batches} of its batches here (the departure saliency_batches); leave one of them out"
        )
    check_not_negative("forget_weight", options.forget_weight)
    if options.ceiling is not None and not options.ceiling > 0:
        raise InputError(f"ceiling must be above 0, got {options.ceiling}; it is a forget loss, math.inf is no ceiling")
    if options.ceiling is None and semantics.every_step_joint and not semantics.fixed_batches:
        raise InputError(
            "a forget batch in every step drives the forget loss up without bound, so it needs a ceiling; give "
            "ceiling=math.log(num_classes) for a classifier, or math.inf for none"
        )
    if options.num_constraints > 1 and not semantics.constraints_per_epoch:
        raise InputError(
            f"num_constraints = {options.num_constraints} needs constraints_per_epoch; a step has one forget gradient"
        )
    check_pair(options.pair, loss_fn)
    # Refuses numbers that are out of their ranges.
    projection.project_gradient(options.num_constraints, margin=semantics.margin, eps=semantics.eps)
    usual = reinit.published if options.mode == "authors" else reinit.uniform
    return usual() if options.initializer is None else reinit.initializer_of(options.initializer)


def _batches(semantics: Semantics, sizes: PairedOptions) -> Batches:
    """The batches of an epoch: steps see both sets, all of them or as long as the forget set lasts."""
    if semantics.fixed_batches:
        return _gradient.fixed_batches(sizes)
    of_kind = _gradient.paired_batches if semantics.every_step_joint else _gradient.forget_once_batches
    return of_kind(sizes, fill=not semantics.ragged_batches)


@dataclasses.dataclass(frozen=True)
class Repair:
    """One repair step as a value: steps that differ only in numbers (rates, lambda) are equal, and so compile once."""

    loss_fn: StatefulLossFn
    update: optax.TransformUpdateFn
    project: Where
    projected: bool
    num_constraints: int
    semantics: Semantics
    pair: Pair
    # By default a step holds whole networks, also where `training.sweeps` divides a sweep by `shard_map`.
    axis_name: str | tuple[str, ...] = ()

    def projector(self, params: Params) -> optax.GradientTransformationExtraArgs:
        """The projection of the selected leaves."""
        projector = projection.project_gradient(
            self.num_constraints,
            margin=self.semantics.margin,
            eps=self.semantics.eps,
            axis_name=self.axis_name,
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
        ceiling: float | None = None,
    ) -> Carry:
        """The carry of a trimmed network."""
        held = None
        if not self.projected:
            trees.select(params, self.project)  # a pattern that matches nothing is refused either way
        if self.semantics.constraints_per_epoch and self.projected:
            held = jax.tree.map(lambda leaf: jnp.zeros((self.num_constraints, *leaf.shape), leaf.dtype), params)
        opt_state = OptState(self.projector(params).init(params) if self.projected else (), optimizer.init(params))
        highest = float(jnp.finfo(jnp.float32).max)
        bound = jnp.float32(highest if ceiling is None else min(ceiling, highest))
        aux = ScissorhandsAux(held, jnp.zeros((), jnp.int32), jnp.float32(forget_weight), bound)
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
            gradient, model_state, projection_state, metrics = self.joint_gradient(carry, batch, key)
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

    def joint_gradient(self, carry: Carry, batch: Batch, key: Key | None) -> tuple[PyTree, ModelState, PyTree, Metrics]:
        """The gradient of `L_r - lambda min(L_f, ceiling)`, projected where that is due."""
        (loss, forget_loss), retain_grad, forget_grad, model_state = pair_gradients(
            self.loss_fn,
            carry.params,
            carry.model_state,
            batch,
            key,
            pair=self.pair,
            forget_moves_state=self.semantics.forget_moves_state,
        )
        above = forget_loss > carry.aux.ceiling
        # The gradient itself too: where the loss is infinite it is not a number, and so would be 0 times it.
        bounded = jax.tree.map(lambda leaf: jnp.where(above, 0, leaf), forget_grad)
        weight = jnp.where(above, 0, carry.aux.forget_weight)
        gradient = jax.tree.map(lambda r, f: r - weight.astype(f.dtype) * f, retain_grad, bounded)
        metrics = {"loss_retain": loss, "loss_forget": forget_loss}
        state = carry.opt_state.projection
        if self.projected:
            held = carry.aux.constraint_grads
            if held is None:
                held = jax.tree.map(lambda leaf: leaf[None], forget_grad)
            if not self.semantics.project_above_ceiling:
                # A constraint of zeros constrains nothing, and all steps remain one program without branches.
                held = jax.tree.map(lambda leaf: jnp.where(above, 0, leaf), held)
            every = self.semantics.project_every
            due = None if every == 1 else (carry.aux.joint_step + 1) % every == 0
            gradient, state = _project(self.projector(carry.params), gradient, state, held, due)
            last = state if self.project is None else state.inner_state
            metrics |= {"dots": last.dots, "dual": last.dual, "projected": last.violated}
        return gradient, model_state, state, metrics


def constraint_gradients(
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    batches: Iterable[PyTree],
    *,
    key: Key | None = None,
) -> tuple[PyTree, jax.Array]:
    """The published code's memories, with our sign: running sums of eval-mode forget gradients, one row per batch.

    Args:
      loss_fn: The loss, a mean over the examples of a batch.
      params: The parameters of the network.
      model_state: Its state.
      batches: K batches of the forget set.
      key: A typed PRNG key, which is folded with the number of the batch, for a loss that draws in evaluation mode too.

    Returns:
      A pytree like `params` with leaves of shape (K, ...), row k the sum of the first k + 1 gradients, and the losses
      of the batches, shape=(K,).
    """
    rows, losses, total = [], [], None
    for number, batch in enumerate(batches):
        batch_key = None if key is None else jax.random.fold_in(key, number)
        sums = saliency.gradient_sum(loss_fn, params, model_state, [batch], key=batch_key)
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
        yield data_lib.take(data.forget, _gradient.first_positions(total, batch_size) if fixed else order[0])


_OF_MODE: Any = None  # stands for the mode's value until `__post_init__` puts it there
_MODES: dict[Mode, dict[str, Any]] = {
    "paper": {"ceiling": "uniform", "schedule": "linear"},
    "authors": {"ceiling": "off", "schedule": "drops"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScissorhandsSettings(ScissorhandsOptions, TrainingSettings):
    """The authors' fraction, weight, rate and epochs for 10 % of CIFAR-10 and ResNet-18.

    The mode is the paper's, and `ceiling` and `schedule` have the values of the mode unless they are given. On the
    command line `departures.NAME=VALUE` sets single fields of `Semantics`.
    """

    fraction: float = 0.03
    initializer: str | None = None
    rank: str | None = None
    trim: str | None = None
    project: str | None = None
    ceiling: float | Literal["uniform", "held-out", "off"] = _OF_MODE
    """The forget loss, above 0, up to which forget examples are driven: a step whose forget batch has a larger mean
    loss follows the gradient of the retain batch alone. "uniform" is the loss of a uniform guess, the natural logarithm
    of the number of classes, and the default of the mode "paper"; "held-out" is the mean loss that the network has, as
    the run begins, on validation examples, which it never saw; "off" (or infinity) is no ceiling, the
    default of "authors"."""
    schedule: ScheduleName = _OF_MODE
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain", "forget")
    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {
        "fraction": (0.003, 0.3),
        "forget_weight": (0.005, 1.0),
        "learning_rate": (1e-3, 1e-1),
        "schedule": ("drops", "linear"),
    }

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, _MODES)
        for name, value in _MODES[self.mode].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.ceiling == math.inf:  # The same by a name, which results and identities can hold.
            object.__setattr__(self, "ceiling", "off")
        super().__post_init__()

    def changed(self, **changes: Any) -> ScissorhandsSettings:
        """A copy with other values; another mode brings its own for all that was as the old mode has it."""
        if changes.get("mode", self.mode) != self.mode:
            changes = {n: None for n, value in _MODES[self.mode].items() if getattr(self, n) == value} | changes
        return dataclasses.replace(self, **changes)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model
        ceiling = self.ceiling
        if isinstance(ceiling, str):
            check_choice("ceiling", ceiling, ("uniform", HELD_OUT, "off"))
            if ceiling == HELD_OUT:
                raise InputError(
                    "the ceiling 'held-out' is what a network's loss is on examples that it never saw; give that number"
                )
            ceiling = math.log(num_classes) if ceiling == "uniform" else math.inf
        options = self.values(ScissorhandsOptions)
        return self.scheduled(scissorhands(self.microbatched(loss_fn), self.optimizer(), ceiling=ceiling, **options))
