"""A linear classifier, as a model for the methods and as sums in float64 NumPy that their results are compared with."""

import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Data, Model
from scissorhands_jax.losses import classification_loss

SIZE, CLASSES = 5, 4


def network(seed=0, scale=1.0):
    """A dict of a kernel and a bias, float32."""
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(scale * rng.normal(size=(SIZE, CLASSES)), jnp.float32),
        "bias": jnp.asarray(scale * rng.normal(size=CLASSES), jnp.float32),
    }


def apply(params, model_state, x, *, train, key=None):
    return x @ params["kernel"] + params["bias"][None], model_state


MODEL = Model(lambda key: (network(1), ()), apply)
LOSS = classification_loss(MODEL)


def examples(count, seed):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.uniform(size=(count, SIZE)).astype(np.float32),
        "label": rng.integers(0, CLASSES, count).astype(np.int32),
    }


DATA = Data(examples(7, 1), examples(12, 2))


def wide(tree):
    """The same dict in float64."""
    return {name: np.asarray(leaf, np.float64) for name, leaf in tree.items()}


def flat(tree):
    """Kernel and bias in one vector, float64; of stacked gradients one row each."""
    kernel, bias = (np.asarray(tree[name], np.float64) for name in ("kernel", "bias"))
    return np.concatenate([kernel.reshape(*bias.shape[:-1], -1), bias], axis=-1)


def logits(weights, x):
    """Logits of a vector of weights. shape=(N, C)"""
    return np.asarray(x, np.float64) @ weights[: SIZE * CLASSES].reshape(SIZE, CLASSES) + weights[SIZE * CLASSES :]


def softmax(scores):
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    return chances / chances.sum(axis=1, keepdims=True)


def rows(x, slopes):
    """The gradient of each example, from that of its loss with respect to its logits. shape=(N, number of weights)"""
    kernels = np.asarray(x, np.float64)[:, :, None] * slopes[:, None, :]
    return np.concatenate([kernels.reshape(len(x), -1), slopes], axis=1)


def cross_entropy_rows(weights, x, labels):
    return rows(x, softmax(logits(weights, x)) - np.eye(CLASSES)[labels])


def cross_entropies(weights, x, labels):
    return -np.log(softmax(logits(weights, x))[np.arange(len(x)), labels])


class Sgd:
    """PyTorch's SGD with momentum and weight decay, on a vector."""

    def __init__(self, rate, momentum, decay):
        self.rate, self.momentum, self.decay, self.buffer = rate, momentum, decay, 0.0

    def step(self, weights, gradient):
        self.buffer = self.momentum * self.buffer + gradient + self.decay * weights
        return weights - self.rate * self.buffer


def close(got, expected, start, tolerance=1e-4):
    """Whether two results agree to a small part of the way from the start."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected - start).max())
    assert np.abs(expected - start).max() > 1e-3
