"""A network that has every part and compiles in a moment: a convolution, batch normalisation, a linear head."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scissorhands_jax.augmentation import crop_and_flip
from scissorhands_jax.base import Data, Method, Model, StatefulLossFn
from scissorhands_jax.losses import classification_loss
from scissorhands_jax.methods import METHODS
from scissorhands_jax.models import from_linen
from scissorhands_jax.models.layers import BatchNorm, torch_conv, torch_linear

CLASSES = 3
SHAPE = (4, 4, 2)


class Net(nn.Module):
    """Leaves: conv/kernel, bn/scale, bn/bias, fc/kernel, fc/bias; statistics: bn/mean, bn/var, bn/count."""

    width: int = 3

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        x = torch_conv(self.width, 3, name="conv", dtype=jnp.float32)(images)
        x = nn.relu(BatchNorm(name="bn")(x, train=train))
        x = x.reshape(len(x), -1)
        return torch_linear(CLASSES, x.shape[-1], name="fc", dtype=jnp.float32)(x)


@functools.cache
def model(width: int = 3) -> Model:
    """Returns the network. It is one object per width, so that its code is compiled once for all tests."""
    return from_linen(Net(width), jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32))


@functools.cache
def start(width: int = 3):
    """Returns its initial params and model state."""
    return model(width).init(jax.random.key(42))


@functools.cache
def loss(width: int = 3, *, augment: bool = False) -> StatefulLossFn:
    """Returns its cross-entropy, with crops and flips if asked to."""
    return classification_loss(model(width), augment=functools.partial(crop_and_flip, padding=1) if augment else None)


def examples(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns images of noise around a mean that depends on the class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, count).astype(np.int32)
    image = rng.normal(size=(count, *SHAPE)) + label[:, None, None, None] - 1
    return {"image": image.astype(np.float32), "label": label}


def data(forget: int = 6, retain: int = 10) -> Data:
    """Returns a forget and a retain set. The size of neither is a multiple of the batch size, 4."""
    return Data(examples(forget, 1), examples(retain, 2))


@functools.cache
def method(name: str, *, augment: bool = True, **changes) -> Method:
    """Builds a registered method for this network, with batches of 4 and a learning rate with visible effects.

    It is one object per setting, so that it is compiled once for all tests.
    """
    settings = METHODS[name]().changed(**{"epochs": 2, "batch_size": 4, "learning_rate": 0.02} | changes)
    return settings.build(model(), loss(augment=augment), CLASSES)
