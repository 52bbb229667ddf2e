"""The network of `example` and PyTorch's SGD once more, in float64 NumPy and with gradients by hand."""

from __future__ import annotations

import jax
import numpy as np

from scissorhands_jax.base import Params

Weights = list[np.ndarray]  # kernel (4, 6), bias (6,), head (6, 3)


def read(params: Params) -> Weights:
    """The weights of `example.original`, in tree order."""
    kernel, bias, head = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params))
    return [kernel.reshape(4, 6), bias, head]


def flat(weights) -> np.ndarray:
    """All numbers of a tree or list, in order and float64."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(weights)])


def _pass(weights: Weights, examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kernel, bias, head = weights
    images, labels = np.asarray(examples["image"], np.float64), np.asarray(examples["label"])
    hidden = np.tanh(images @ kernel + bias)
    logits = hidden @ head
    logits = logits - logits.max(axis=1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return hidden, np.exp(logs), -logs[np.arange(len(labels)), labels]


def cross_entropies(weights: Weights, examples) -> np.ndarray:
    """The cross-entropy of every example. shape=(N,)"""
    return _pass(weights, examples)[2]


def gradient(weights: Weights, examples, shares=None) -> Weights:
    """The gradient of the sum of shares times cross-entropies; by default that of the mean."""
    images, labels = np.asarray(examples["image"], np.float64), np.asarray(examples["label"])
    hidden, probabilities, _ = _pass(weights, examples)
    shares = np.full(len(labels), 1 / len(labels)) if shares is None else shares
    outer = shares[:, None] * (probabilities - np.eye(3)[labels])
    inner = (outer @ weights[2].T) * (1 - hidden**2)
    return [images.T @ inner, inner.sum(axis=0), hidden.T @ outer]


class Sgd:
    """PyTorch's SGD: decay is added to the gradient, then momentum, then the step."""

    def __init__(self, momentum: float, weight_decay: float):
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocity: Weights | None = None

    def update(self, weights: Weights, gradient: Weights, rate: float) -> Weights:
        """The weights after an update."""
        decayed = [g + self.weight_decay * w for g, w in zip(gradient, weights, strict=True)]
        before = [0 * g for g in decayed] if self.velocity is None else self.velocity
        self.velocity = [self.momentum * v + g for v, g in zip(before, decayed, strict=True)]
        return [w - rate * v for w, v in zip(weights, self.velocity, strict=True)]
