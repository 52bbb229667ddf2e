"""Losses of classifiers, in the general form that every method takes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from scissorhands_jax.base import Key, Model, StatefulLossFn

Augment = Callable[[Key, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of a batch. logits: (N, C) floats; labels: (N,) integers; returns shape=()"""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def classification_loss(model: Model, *, augment: Augment | None = None) -> StatefulLossFn:
    """Mean cross-entropy over batches `{"image": (N, ...), "label": (N,)}`.

    Args:
      model: the network.
      augment: `(key, images) -> images`, applied in training passes that are given a key.
    """

    def loss_fn(params, model_state, batch, *, train, key):
        images = batch["image"]
        if augment is not None and train and key is not None:
            key, augment_key = jax.random.split(key)
            images = augment(augment_key, images)
        logits, model_state = model.apply(params, model_state, images, train=train, key=key)
        return cross_entropy(logits, batch["label"]), model_state

    return loss_fn
