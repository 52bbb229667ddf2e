"""The optimizer of the papers' scripts, composed from optax."""

from __future__ import annotations

import optax

from scissorhands_jax.errors import InputError


def sgd(
    learning_rate: float | optax.Schedule, *, momentum: float = 0.9, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
    """PyTorch's SGD: decay is added to the gradient (on every parameter), then momentum, then the step.

    Raises:
      InputError: a setting is negative.
    """
    if not callable(learning_rate) and learning_rate < 0:
        raise InputError(f"learning_rate must not be negative, got {learning_rate}")
    if momentum < 0 or weight_decay < 0:
        raise InputError(f"momentum and weight_decay must not be negative, got {momentum} and {weight_decay}")
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum or None))
