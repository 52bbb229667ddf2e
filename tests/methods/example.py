"""A small network of odd trees, data for it, and methods that are built and run on both."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Method, Model
from scissorhands_jax.losses import classification_loss, cross_entropy
from scissorhands_jax.methods import METHODS, TrainingSettings
from scissorhands_jax.optimizers import sgd

KEY = jax.random.key(11)


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def original(seed=0, dtype=jnp.float32):
    """Params as a list of a dict, a named tuple and a tuple; a state that moves, with a counter.

    The first kernel is that of a convolution whose one window is an image of 2 x 2 pixels, the four numbers of x.
    """
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    params = [{"hidden": Layer(draw(2, 2, 1, 6), draw(6))}, (draw(6, 3),)]
    return params, {"mean": jnp.zeros(4), "count": jnp.zeros((), jnp.int32)}


NAMES = ["0/hidden/kernel", "0/hidden/bias", "1/0"]


def forward(params, x):
    (first, (head,)) = params
    return jnp.tanh(x @ first["hidden"].kernel.reshape(4, 6) + first["hidden"].bias[None]) @ head


def apply(params, model_state, x, *, train, key=None):
    if not train:
        return forward(params, x - 0.1 * model_state["mean"][None]), model_state
    noisy = x if key is None else x + 0.1 * jax.random.normal(key, x.shape)
    mean = 0.9 * model_state["mean"] + 0.1 * noisy.mean(axis=0)
    return forward(params, noisy - noisy.mean(axis=0, keepdims=True)), {"mean": mean, "count": model_state["count"] + 1}


MODEL = Model(lambda key: original(1), apply)
LOSS = classification_loss(MODEL)


def plain_loss(params, batch):
    return cross_entropy(forward(params, batch["image"]), batch["label"])


def examples(count, seed):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(count, 4)).astype(np.float32),
        "label": rng.integers(0, 3, count).astype(np.int32),
    }


GRADIENT = jax.jit(jax.grad(plain_loss))
DATA = jax.tree.map(jnp.asarray, Data(examples(6, 1), examples(10, 2)))


STEPPING = [name for name, settings in METHODS.items() if issubclass(settings, TrainingSettings)]
AT_ONCE = [name for name in METHODS if name not in STEPPING]
# All others take any loss.
READS_LOGITS = {"scrub", "bad_teacher", "boundary_shrink", "boundary_expand", "sfron", "amun", "delete"}
IN_EVALUATION_MODE = {"orthograd"}  # Their steps move no statistics and draw nothing.


def build(name, loss_fn=LOSS, model=MODEL, **changes):
    given = {"batch_size": 4}
    if name in STEPPING:
        given |= {"epochs": 2, "learning_rate": 0.05}
    if name in ("boundary_shrink", "amun"):
        given["clip"] = False  # The images are not pixels between 0 and 1.
    if name == "sfron":
        given["forget_every"] = 2  # so that two steps of an epoch's three see the forget set, once all of it
    settings = METHODS[name]().changed(**given | changes)
    return settings.build(model, loss_fn, 3)


class Epoch(NamedTuple):
    """One epoch of a method, step by step and not compiled."""

    method: Method
    batches: list  # of examples
    carries: list  # before the first step and after each
    metrics: list


def epoch_of(method, data=DATA, start=None, steps=None):
    params, model_state = (original()[0], ()) if start is None else start
    carry = method.begin_epoch(method.init(KEY, params, model_state, data), data)
    batches = [data_lib.gather(data, batch) for batch in itertools.islice(method.batches(KEY, data, 0), steps)]
    carries, metrics = [carry], []
    for batch in batches:
        carry, values = method.step(carry, batch)
        carries.append(carry)
        metrics.append(jax.device_get(values))
    return Epoch(method, batches, carries, metrics)


def dot(a, b):
    """The dot product of two trees, in float64."""
    products = jax.tree.map(lambda x, y: np.vdot(np.asarray(x, float), np.asarray(y, float)), a, b)
    return float(sum(jax.tree.leaves(products)))


PLAIN_SGD = sgd(1.0, momentum=0.0, weight_decay=0.0)
