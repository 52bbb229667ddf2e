"""The optimizers of the papers' scripts and of fast training, composed from optax."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import trees
from scissorhands_jax.base import Params, PyTree, Selection
from scissorhands_jax.errors import InputError

# A constant rate: the form of every schedule, before the length of the training is known.
_KNOTS, _FACTORS = (0, 1), (1.0, 1.0)


def sgd(
    learning_rate: float | optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    nesterov: bool = False,
    norm_bias_scale: float = 1.0,
    scheduled: bool = False,
) -> optax.GradientTransformation:
    """PyTorch's SGD: decay is added to the gradient (on every parameter), then momentum, then the step.

    Numbers travel in the state (`optax.inject_hyperparams`), and two values share their `update`: a step that is
    compiled for one learning rate serves all. A schedule that is a function is compiled in; one that is `scheduled`
    travels in the state like any number.

    Args:
      learning_rate: the rate, or a function of the step.
      momentum, weight_decay: as PyTorch's; the momentum is Nesterov's with `nesterov`.
      norm_bias_scale: the biases of normalisation layers learn so many times as fast; their decay does not change.
      scheduled: the state holds a schedule as well, constant until `with_schedule` sets it.

    Raises:
      InputError: a setting is negative.
    """
    if not callable(learning_rate) and learning_rate < 0:
        raise InputError(f"learning_rate must not be negative, got {learning_rate}")
    if momentum < 0 or weight_decay < 0:
        raise InputError(f"momentum and weight_decay must not be negative, got {momentum} and {weight_decay}")
    if norm_bias_scale < 0:
        raise InputError(f"norm_bias_scale must not be negative, got {norm_bias_scale}")
    numbers: dict[str, Any] = {
        "learning_rate": learning_rate,
        "momentum": momentum or None,
        "weight_decay": weight_decay,
        "norm_bias_scale": None if norm_bias_scale == 1 else norm_bias_scale,
    }
    if callable(learning_rate):
        return _sgd(**numbers, nesterov=nesterov)
    if scheduled:
        numbers |= {"knots": np.asarray(_KNOTS, np.int32), "factors": np.asarray(_FACTORS, np.float32)}
    init = optax.inject_hyperparams(_sgd)(**numbers, nesterov=nesterov).init
    present = tuple(name for name, value in numbers.items() if value is not None)
    return optax.GradientTransformationExtraArgs(init, _shared_update(present, nesterov))


def _sgd(
    learning_rate, momentum, weight_decay, norm_bias_scale=None, knots=None, factors=None, nesterov=False
) -> optax.GradientTransformation:
    parts = [optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum, nesterov)]
    if norm_bias_scale is not None:
        # Before the decay is added, which therefore stays that of all other weights.
        parts.insert(0, optax.masked(optax.scale(norm_bias_scale), norm_biases))
    if knots is not None:
        parts.append(optax.scale_by_schedule(lambda step: interpolate(step, knots, factors)))
    return optax.chain(*parts)


@functools.cache
def _shared_update(present: tuple[str, ...], nesterov: bool) -> optax.TransformUpdateExtraArgsFn:
    """It reads its numbers from the state, so one function object serves all of them."""
    example = {name: 0.0 if name in present else None for name in ("learning_rate", "momentum", "weight_decay")}
    example |= {name: 0.0 for name in present}
    return optax.inject_hyperparams(_sgd)(**example, nesterov=nesterov).update


def interpolate(step: jax.Array, knots: jax.Array, factors: jax.Array) -> jax.Array:
    """The value at `step` of the line through the points (knots, factors), level before the first and after the last.

    Without a loop or a search, unlike `jnp.interp`: a schedule has few knots, and every step asks.

    Args:
      step: shape=()
      knots: in order; two may be equal if their factors are. int32, shape=(K,)
      factors: floating point, shape=(K,)
    """
    start, stop = knots[:-1], knots[1:]
    share = ((step - start) / jnp.maximum(stop - start, 1)).astype(factors.dtype)
    on_line = jnp.where((start <= step) & (step < stop), factors[:-1] + share * jnp.diff(factors), 0)
    before, after = jnp.where(step < knots[0], factors[0], 0), jnp.where(step >= knots[-1], factors[-1], 0)
    return jnp.sum(on_line) + before + after


class Schedule(NamedTuple):
    """A learning rate over the steps, by `interpolate`, as factors of its peak; numbers, no code."""

    knots: Sequence[int]
    factors: Sequence[float]


def drops(steps: Sequence[int], gamma: float) -> Schedule:
    """The rate is multiplied by `gamma` before each of these steps, counted from 0."""
    knots, factors = [-1], [1.0]
    for number, step in enumerate(sorted(steps)):
        knots += [step - 1, step]
        factors += [gamma**number, gamma ** (number + 1)]
    return Schedule(knots, factors)


def triangle(num_steps: int, *, warmup: float, first: float = 0.2, last: float = 0.07) -> Schedule:
    """The rate rises to its peak over a share `warmup` of the steps, and falls to the end.

    Both ways in a straight line, from `first` times the peak to `last` times it (Smith, 2018; with these shares in
    Jordan, 2024, arXiv 2404.00498).

    Raises:
      InputError: `warmup` is not a share.
    """
    if not 0 <= warmup < 1:
        raise InputError(f"warmup must be a share of the steps, at least 0 and below 1, got {warmup}")
    top = int(num_steps * warmup)
    return Schedule([0, top, max(num_steps, top + 1)], [first if top else 1.0, 1.0, last])


def with_schedule(opt_state: PyTree, schedule: Schedule) -> PyTree:
    """The state of a `scheduled` optimizer whose rate is its learning rate times the schedule's factor of the step.

    The step counts the updates of this state, so a run that is resumed from it goes on with the schedule.
    """
    held = optax.tree_utils.tree_get(opt_state, "factors")
    knots, factors = jnp.asarray(schedule.knots, jnp.int32), jnp.asarray(schedule.factors, held.dtype)
    return optax.tree_utils.tree_set(opt_state, knots=knots, factors=factors)


def rate_of(opt_state: PyTree) -> jax.Array:
    """The learning rate of the next update, from the state of an `sgd` whose rate is a number. shape=()"""
    rate = optax.tree_utils.tree_get(opt_state, "learning_rate")
    knots, factors = (optax.tree_utils.tree_get(opt_state, name) for name in ("knots", "factors"))
    if knots is None:
        return rate
    # Two states count updates, in step: the one of the hyperparameters and the one of the schedule.
    counts = [count for _, count in optax.tree_utils.tree_get_all_with_path(opt_state, "count")]
    return rate * interpolate(counts[0], knots, factors)


def per_kilo_example(
    learning_rate: float, *, momentum: float, weight_decay: float, batch_size: int
) -> tuple[float, float]:
    """The learning rate and the weight decay for `sgd` of settings that can be chosen one by one (Jordan, 2024).

    In the units of the arguments the average step depends on the learning rate alone, and how fast weights decay on the
    decay alone: neither on the momentum, the batch size or the other. With Nesterov's momentum m a constant gradient
    moves weights by 1 + 1 / (1 - m) times the rate, so

      rate = learning_rate * batch_size / 1024 / (1 + 1 / (1 - m)),  decay = weight_decay / learning_rate.

    Args:
      learning_rate: per 1,024 examples of the mean loss.
      weight_decay: the share of each weight that a batch of 1,024 examples takes off, in those same units.

    Raises:
      InputError: the learning rate is not positive, or the momentum not below 1.
    """
    if not learning_rate > 0 or not 0 <= momentum < 1:
        raise InputError(f"learning_rate must be above 0 and momentum below 1, got {learning_rate} and {momentum}")
    rate = learning_rate * batch_size / 1024 / (1 + 1 / (1 - momentum))
    return rate, weight_decay / learning_rate


def norm_biases(params: Params) -> Selection:
    """The biases of normalisation layers: leaves named `bias` that have a `scale` beside them."""
    names = set(trees.leaf_names(params))

    def chosen(path, leaf):
        del leaf
        layer, _, last = trees.path_name(path).rpartition("/")
        return last == "bias" and f"{layer}/scale".removeprefix("/") in names

    return jax.tree_util.tree_map_with_path(chosen, params)
