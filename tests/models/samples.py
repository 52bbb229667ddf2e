"""Small networks: one of the package's own, and one through every adapter."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from scissorhands_jax.base import Model
from scissorhands_jax.models import build, from_equinox, from_linen, from_nnx
from scissorhands_jax.models.resnet import ResNet

KEY = jax.random.key(0)


def images(count=4, size=8, channels=3, seed=0):
    """Uniform noise, shape (count, size, size, channels)."""
    return jnp.asarray(np.random.default_rng(seed).random((count, size, size, channels)), jnp.float32)


def tiny_resnet(**options):
    """A ResNet that compiles quickly but has every part: two stages, a projection shortcut, stored normalisation."""
    return ResNet(**({"num_classes": 3, "stage_sizes": (1, 1), "widths": (4, 8)} | options))


@functools.cache
def tiny_model(**options):
    """A `Model` of `tiny_resnet`, its params and state; made once for all tests."""
    model = from_linen(tiny_resnet(**options), images(1))
    return model, *model.init(KEY)


class ForeignLinen(nn.Module):
    """A linen module as others write them."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = x.reshape(x.shape[0], -1)
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x)


class ForeignNnx(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(192, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.layers[0](x.reshape(x.shape[0], -1)))
        return self.layers[1](self.dropout(x))


class PlainEquinox(eqx.Module):
    layers: list
    activation: object
    temperature: float

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.layers = [eqx.nn.Linear(192, 8, key=first), eqx.nn.Dropout(0.5), eqx.nn.Linear(8, 3, key=second)]
        self.activation = jax.nn.relu
        self.temperature = 2.0

    def __call__(self, x, *, key=None):
        x = self.activation(self.layers[0](x.reshape(-1)))
        return self.layers[2](self.layers[1](x, key=key)) / self.temperature


class StatefulEquinox(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear
    order: jax.Array

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.linear = eqx.nn.Linear(192, 8, key=first)
        self.norm = eqx.nn.BatchNorm(8, axis_name="examples", mode="batch")
        self.head = eqx.nn.Linear(8, 3, key=second)
        self.order = jnp.arange(3)[::-1]

    def __call__(self, x, state):
        x, state = self.norm(self.linear(x.reshape(-1)), state)
        return self.head(x)[self.order], state


def plain_model():
    """A `Model` written by hand over a list."""

    def init(key):
        return [0.1 * jax.random.normal(key, (192, 3)), jnp.zeros(3)], ()

    def apply(params, model_state, x, *, train, key=None):
        del train, key
        return x.reshape(x.shape[0], -1) @ params[0] + params[1].reshape(1, -1), model_state

    return Model(init, apply)


ADAPTED = {
    "linen": lambda: tiny_model(stage_sizes=(1,), widths=(4,))[0],
    "foreign linen": lambda: from_linen(ForeignLinen(), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)),
    "nnx": lambda: from_nnx(ForeignNnx),
    "plain equinox": lambda: from_equinox(PlainEquinox),
    "stateful equinox": lambda: from_equinox(StatefulEquinox),
    "function": plain_model,
}


def outline(name, **options):
    """Shapes of params and model state of a registered network."""
    model = build(name, **({"num_classes": 10, "image_shape": (32, 32, 3)} | options))
    return jax.eval_shape(model.init, KEY)
