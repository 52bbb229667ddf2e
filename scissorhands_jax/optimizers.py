"""The optimizer of the papers' scripts, composed from optax."""

from __future__ import annotations

import functools

import optax

from scissorhands_jax.errors import InputError


def sgd(
    learning_rate: float | optax.Schedule, *, momentum: float = 0.9, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
    """PyTorch's SGD: decay is added to the gradient (on every parameter), then momentum, then the step.

    Numbers travel in the state (`optax.inject_hyperparams`), and two values share their `update`: a step that is
    compiled for one learning rate serves all. A schedule is compiled in.

    Raises:
      InputError: a setting is negative.
    """
    if not callable(learning_rate) and learning_rate < 0:
        raise InputError(f"learning_rate must not be negative, got {learning_rate}")
    if momentum < 0 or weight_decay < 0:
        raise InputError(f"momentum and weight_decay must not be negative, got {momentum} and {weight_decay}")
    if callable(learning_rate):
        return _sgd(learning_rate, momentum or None, weight_decay)
    numbers = {"learning_rate": learning_rate, "momentum": momentum or None, "weight_decay": weight_decay}
    init = optax.inject_hyperparams(_sgd)(**numbers).init
    return optax.GradientTransformationExtraArgs(init, _shared_update(momentum > 0))


def _sgd(learning_rate, momentum, weight_decay) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum))


@functools.cache
def _shared_update(has_momentum: bool) -> optax.TransformUpdateExtraArgsFn:
    """It reads its numbers from the state, so one function object serves all of them."""
    example = {"learning_rate": 0.0, "momentum": 0.0 if has_momentum else None, "weight_decay": 0.0}
    return optax.inject_hyperparams(_sgd)(**example).update
