"""A small convolutional network that knows wrongly labelled digits by heart: what forgetting shows on at once."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from scissorhands_jax import datasets
from scissorhands_jax.base import Data
from scissorhands_jax.losses import classification_loss
from scissorhands_jax.methods import MethodSettings, finetune
from scissorhands_jax.models import from_linen
from scissorhands_jax.models.layers import torch_conv, torch_linear
from scissorhands_jax.training.loop import run

FORGET, RETAIN = 20, 140


class Net(nn.Module):
    """Two convolutions and a linear head for images of 8 x 8."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        x = images - 0.3
        for number, width in enumerate((16, 32)):
            x = nn.relu(torch_conv(width, 3, stride=2, name=f"conv{number}", dtype=jnp.float32)(x))
        x = x.reshape(len(x), -1)
        return torch_linear(10, x.shape[-1], name="fc", dtype=jnp.float32)(x)


MODEL = from_linen(Net(), jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
LOSS = classification_loss(MODEL)


@functools.cache
def data() -> Data:
    """The forget set has wrong labels, which can only be known by heart; the retain set has its own."""
    train = datasets.digits().train
    image, label = np.asarray(train["image"]), np.asarray(train["label"], np.int32)
    forget = {"image": image[:FORGET], "label": (label[:FORGET] + 1 + np.arange(FORGET) % 9) % 10}
    retain = {"image": image[FORGET : FORGET + RETAIN], "label": label[FORGET : FORGET + RETAIN]}
    return jax.tree.map(jnp.asarray, Data({**forget, "label": forget["label"].astype(np.int32)}, retain))


@functools.cache
def original():
    """Params and state of a network that was trained on both sets."""
    both = Data(None, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *data()))
    method = finetune(LOSS, optax.adam(5e-3), batch_size=40)
    result = run(method, jax.random.key(0), *MODEL.init(jax.random.key(1)), both, num_epochs=50)
    return result.params, result.model_state


class Outcome(NamedTuple):
    """How a network does on both sets."""

    loss_forget: float
    acc_forget: float
    acc_retain: float


def measured(params, model_state) -> Outcome:
    """The outcome of a network, in evaluation mode."""

    def accuracy(part):
        logits, _ = MODEL.apply(params, model_state, part["image"], train=False)
        return float((logits.argmax(axis=1) == part["label"]).mean())

    loss, _ = LOSS(params, model_state, data().forget, train=False, key=None)
    return Outcome(float(loss), accuracy(data().forget), accuracy(data().retain))


@functools.cache
def outcome(settings: MethodSettings) -> Outcome:
    """What a method makes of the original."""
    method = settings.build(MODEL, LOSS, 10)
    result = run(method, jax.random.key(2), *original(), data(), num_epochs=settings.epochs)
    return measured(result.params, result.model_state)
