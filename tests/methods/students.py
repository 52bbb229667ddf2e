"""A network without state, and what tests of students and teachers compute by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Model
from scissorhands_jax.optimizers import sgd
from tests.methods.example import DATA, KEY, forward, original

HOST = jax.tree.map(np.asarray, DATA)  # Indexing on the host compiles nothing.


STATE = {"mean": jnp.array([0.5, -1.0, 2.0, 0.0]), "count": jnp.int32(0)}


PLAIN_SGD = sgd(1.0, momentum=0.0, weight_decay=0.0)


T = 3.0


def stateless(params, model_state, x, *, train, key=None):
    return forward(params, x), model_state


STATELESS = Model(lambda key: (original(1)[0], ()), stateless)


@jax.jit
def divergence(teacher, student):
    """The mean of T^2 KL, from probabilities."""
    p, q = (jax.nn.softmax(logits / T) for logits in (teacher, student))
    return T**2 * jnp.mean(jnp.sum(p * (jnp.log(p) - jnp.log(q)), axis=1))


def step_from(method, params, batch):
    """What a step subtracts at other weights than those of the teacher, and its metrics."""
    carry = method.init(KEY, original()[0], (), DATA)._replace(params=params)
    after, metrics = jax.jit(method.step)(carry, batch)
    return jax.tree.map(np.subtract, jax.device_get(params), jax.device_get(after.params)), jax.device_get(metrics)


def labels_of(batch):
    return [None if part is None else part["label"].shape for part in batch]
