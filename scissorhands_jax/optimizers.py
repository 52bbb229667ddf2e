"""The optimizer of the papers' scripts, composed from optax, whose learning rate and schedule lie in its state."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax.base import PyTree
from scissorhands_jax.errors import InputError, check_not_negative

# A constant rate: the form of every schedule, before the length of the training is known.
_KNOTS, _FACTORS = (0, 1), (1.0, 1.0)


def sgd(
    learning_rate: float | optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    nesterov: bool = False,
    scheduled: bool = False,
) -> optax.GradientTransformation:
    """PyTorch's SGD: decay is added to the gradient (on every parameter), then momentum, then the step.

    Numbers travel in the state (`optax.inject_hyperparams`), and optimizers that differ in numbers alone share their
    `update`, unless only one has a momentum: a step that is compiled for one learning rate serves all. A schedule that
    is a function is compiled in; one that is `scheduled` travels in the state like any number.

    Args:
      learning_rate: The rate, at least 0, or a function of the step.
      momentum: PyTorch's momentum, at least 0; 0 does without.
      weight_decay: PyTorch's weight decay, at least 0.
      nesterov: Whether the momentum is Nesterov's.
      scheduled: Whether the state holds a schedule as well, which is constant until `with_schedule` sets it. Not for a
        rate that is a function.

    Raises:
      InputError: A setting is negative or infinite, there is no momentum to be Nesterov's, or the rate of a `scheduled`
        optimizer is a function.
    """
    if not callable(learning_rate):
        learning_rate = _number("learning_rate", learning_rate)
    momentum, weight_decay = _number("momentum", momentum), _number("weight_decay", weight_decay)
    has_momentum = isinstance(momentum, jax.core.Tracer) or bool(momentum)
    if nesterov and not has_momentum:
        raise InputError("Nesterov's momentum needs a momentum above 0, got 0; give one, or leave nesterov=True out")
    numbers: dict[str, Any] = {
        "learning_rate": learning_rate,
        "momentum": momentum if has_momentum else None,
        "weight_decay": weight_decay,
    }
    if callable(learning_rate) and scheduled:
        raise InputError("a rate that is a function is a schedule already; give a number, or leave scheduled=True out")
    if callable(learning_rate):
        return _sgd(**numbers, nesterov=nesterov)
    if scheduled:
        numbers |= {"knots": np.asarray(_KNOTS, np.int32), "factors": np.asarray(_FACTORS, np.float32)}
    init = _with_numbers(_sgd, **numbers, nesterov=nesterov).init
    present = tuple(name for name, value in numbers.items() if value is not None)
    return optax.GradientTransformationExtraArgs(init, _shared_update(present, nesterov))


def _number(name: str, value: Any) -> Any:
    """Returns a setting that is not negative, as a float where it is one of NumPy's, which optax takes for no number.

    A number that is being traced cannot be looked at.

    Raises:
      InputError: It is negative, infinite or no number.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    check_not_negative(name, value)
    return float(value) if isinstance(value, np.generic) and not isinstance(value, float) else value


def _with_numbers(make: Callable[..., optax.GradientTransformation], **numbers: Any) -> optax.GradientTransformation:
    """`optax.inject_hyperparams` with numbers in the type of the parameters, or in float32 where that is narrower.

    Updates and what is kept from step to step have the types that they have without numbers of a wider type.
    """

    @functools.wraps(make)  # whose signature says which arguments are numbers
    def in_types(**numbers: Any) -> optax.GradientTransformation:
        inner = optax.with_extra_args_support(make(**numbers))

        def update(updates: PyTree, state: PyTree, params: PyTree = None, **more: Any) -> tuple[PyTree, PyTree]:
            found = inner.update(updates, state, params, **more)
            return jax.tree.map(lambda new, old: new.astype(old.dtype), found, (updates, state))

        return optax.GradientTransformationExtraArgs(inner.init, update)

    def of(params: PyTree) -> optax.GradientTransformation:
        dtype = jnp.promote_types(optax.tree_utils.tree_dtype(params, "highest"), jnp.float32)
        return optax.inject_hyperparams(in_types, hyperparam_dtype=dtype)(**numbers)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **more: Any) -> tuple[PyTree, PyTree]:
        return of(params).update(updates, state, params, **more)

    return optax.GradientTransformationExtraArgs(lambda params: of(params).init(params), update)


def _sgd(
    learning_rate, momentum, weight_decay, knots=None, factors=None, nesterov=False
) -> optax.GradientTransformation:
    parts = [optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum, nesterov)]
    if knots is not None:
        parts.append(optax.scale_by_schedule(lambda step: interpolate(step, knots, factors)))
    return optax.chain(*parts)


def adamw(learning_rate: float, *, momentum: float = 0.9, weight_decay: float = 0.01) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019) whose state holds a schedule, constant until `with_schedule` sets it.

    Moments are in the type of the parameters, but for parameters in float16, of which they are kept in float32: squares
    of gradients are too small for float16.

    Args:
      learning_rate: The rate, at least 0.
      momentum: beta_1, at least 0 and below 1; beta_2 is 0.999.
      weight_decay: The weight decay, at least 0, of every parameter.

    Raises:
      InputError: A setting is out of its range.
    """
    learning_rate, weight_decay = _number("learning_rate", learning_rate), _number("weight_decay", weight_decay)
    momentum = _number("momentum", momentum)
    if not isinstance(momentum, jax.core.Tracer) and not momentum < 1:
        raise InputError(f"momentum must be at least 0 and below 1, got {momentum}")
    return _with_numbers(
        _adamw,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        knots=np.asarray(_KNOTS, np.int32),
        factors=np.asarray(_FACTORS, np.float32),
    )


def _adamw(learning_rate, momentum, weight_decay, knots, factors) -> optax.GradientTransformation:
    parts = optax.chain(
        optax.adamw(learning_rate, b1=momentum, weight_decay=weight_decay),
        optax.scale_by_schedule(lambda step: interpolate(step, knots, factors)),
    )
    return _without_float16(parts)


def _without_float16(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer, which sees arrays of float16 as float32, keeps what it keeps of them so and rounds updates.

    The squares of usual gradients and AdamW's epsilon of 1e-8 are zero in float16, and zero by zero is NaN.
    """

    def wide(leaf: Any) -> Any:
        return leaf.astype(jnp.float32) if getattr(leaf, "dtype", None) == jnp.float16 else leaf

    def init(params: PyTree) -> PyTree:
        return inner.init(jax.tree.map(wide, params))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        found, state = inner.update(jax.tree.map(wide, updates), state, jax.tree.map(wide, params))
        return jax.tree.map(lambda new, old: new.astype(old.dtype), found, updates), state

    return optax.GradientTransformation(init, update)


@functools.cache
def _shared_update(present: tuple[str, ...], nesterov: bool) -> optax.TransformUpdateExtraArgsFn:
    """The update, which reads its numbers from the state, so that one function object serves all values."""
    example = {name: 0.0 if name in present else None for name in ("learning_rate", "momentum", "weight_decay")}
    example |= {name: 0.0 for name in present}
    return _with_numbers(_sgd, **example, nesterov=nesterov).update


def interpolate(step: jax.Array, knots: jax.Array, factors: jax.Array) -> jax.Array:
    """The value at `step` of the line through the points (knots, factors), level before the first and after the last.

    It has no loop and no search, unlike `jnp.interp`, since a schedule has few knots and is read in every step.

    Args:
      step: The step. shape=()
      knots: The steps of the points in ascending order; two may be equal if their factors are. int32, shape=(K,)
      factors: The values of the points. floating point, shape=(K,)
    """
    start, stop = knots[:-1], knots[1:]
    share = ((step - start) / jnp.maximum(stop - start, 1)).astype(factors.dtype)
    on_line = jnp.where((start <= step) & (step < stop), factors[:-1] + share * jnp.diff(factors), 0)
    before, after = jnp.where(step < knots[0], factors[0], 0), jnp.where(step >= knots[-1], factors[-1], 0)
    return jnp.sum(on_line) + before + after


class RateSchedule(NamedTuple):
    """A learning rate over the steps as factors of its peak, between which `interpolate` draws straight lines."""

    knots: Sequence[int]
    factors: Sequence[float]


def constant() -> RateSchedule:
    """A schedule that never changes the rate."""
    return RateSchedule(_KNOTS, _FACTORS)


def linear_decay(num_steps: int) -> RateSchedule:
    """A schedule that falls in a straight line from the peak at the first step to zero after the last one."""
    return RateSchedule([0, max(num_steps, 1)], [1.0, 0.0])


def cosine_decay(num_steps: int, *, pieces: int = 32) -> RateSchedule:
    """A schedule that falls from the peak to zero along half a cosine (Loshchilov and Hutter, 2017, without restarts).

    Args:
      num_steps: The number of steps of the run.
      pieces: The number of straight lines that the curve is drawn with. With 32 the factor is off by less than
        0.001, or 0.002 for 34 to 49 steps.
    """
    last = max(num_steps, 1)
    knots = np.unique(np.linspace(0, last, pieces + 1).round().astype(np.int64))
    return RateSchedule(knots.tolist(), (0.5 + 0.5 * np.cos(np.pi * knots / last)).tolist())


def cosine_restarts(lengths: Sequence[int], *, lowest: float = 0.05) -> RateSchedule:
    """A schedule that is level within an epoch and restarts before the epochs 1, 3, 7, 15, ..., counted from 0.

    Over the 1, 2, 4, 8, ... epochs of a cycle it falls along half a cosine from the peak towards `lowest` times it
    (Loshchilov and Hutter, 2017; at these lengths in the scripts of Goel et al., 2022).

    Args:
      lengths: The number of steps of every epoch, at least 1.
      lowest: What the factor falls towards and would reach at the next restart.
    """
    if not lengths:
        return constant()
    stops = np.cumsum([0, *lengths])
    cycle = 2 ** np.floor(np.log2(np.arange(1, len(stops)))).astype(np.int64)
    share = np.arange(1, len(stops)) / cycle - 1
    factors = lowest + (1 - lowest) * (0.5 + 0.5 * np.cos(np.pi * share))
    knots = np.stack([stops[:-1], stops[1:] - 1], axis=1)
    return RateSchedule(knots.ravel().tolist(), np.repeat(factors, 2).tolist())


def triangle(num_steps: int, *, warmup: float, first: float = 0.2, last: float = 0.0) -> RateSchedule:
    """A schedule that rises to its peak over a share `warmup` of the steps and falls from there to the end.

    Both ways are straight lines, from `first` times the peak and to `last` times it (Smith, 2018). Jordan, "94% on
    CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, ends at 0.07 and averages the weights of the last steps. Nothing is
    averaged here, so by default the rate falls to zero.

    Args:
      num_steps: The number of steps of the run.
      warmup: The share of them in which the rate rises.
      first: The rate of the first step as a multiple of the peak, if there is a rise.
      last: The rate at the end as a multiple of the peak.

    Raises:
      InputError: `warmup` is not at least 0 and below 1, or `last` is negative.
    """
    if not 0 <= warmup < 1:
        raise InputError(f"warmup must be a share of the steps, at least 0 and below 1, got {warmup}")
    check_not_negative("the last factor of the rate", last)
    top = int(num_steps * warmup)
    return RateSchedule([0, top, max(num_steps, top + 1)], [first if top else 1.0, 1.0, last])


def drops(steps: Sequence[int], gamma: float) -> RateSchedule:
    """A schedule that multiplies the rate by `gamma` before each of these steps, which are counted from 0; where one
    is named twice, by its square."""
    knots, factors, number = [-1], [1.0], 0
    for step, times in sorted(collections.Counter(steps).items()):
        knots += [step - 1, step]
        factors += [gamma**number, gamma ** (number + times)]
        number += times
    return RateSchedule(knots, factors)


def with_schedule(opt_state: PyTree, schedule: RateSchedule) -> PyTree:
    """The state of a `scheduled` optimizer whose rate is its learning rate times the schedule's factor of the step.

    The step counts the updates of this state, so a run that is resumed from it continues the schedule.

    Raises:
      InputError: The optimizer is not `scheduled`.
    """
    held = optax.tree_utils.tree_get(opt_state, "factors")
    if held is None:
        raise InputError("the optimizer's state holds no schedule; make it with sgd(..., scheduled=True), or by adamw")
    knots, factors = jnp.asarray(schedule.knots, jnp.int32), jnp.asarray(schedule.factors, held.dtype)
    return optax.tree_utils.tree_set(opt_state, knots=knots, factors=factors)
