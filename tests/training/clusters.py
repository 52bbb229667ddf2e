"""Three clusters in the plane and a linear classifier that knows them: what any method can be seen to forget on."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Data, Method, Model
from scissorhands_jax.losses import classification_loss, cross_entropy
from scissorhands_jax.methods import finetune
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training.loop import run

CLASSES = 3
CENTRES = np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])


def init(key):
    """Returns a small random map, a zero bias and an empty state."""
    return {"kernel": 0.1 * jax.random.normal(key, (2, CLASSES)), "bias": jnp.zeros(CLASSES)}, {}


def apply(params, model_state, x, *, train, key=None):
    """Returns linear logits and the state."""
    del train, key
    return x @ params["kernel"] + params["bias"][None], model_state


MODEL = Model(init, apply)
LOSS = classification_loss(MODEL)


def examples(label: int, count: int) -> dict[str, np.ndarray]:
    """Draws points of one cluster."""
    points = CENTRES[label] + 0.3 * np.random.default_rng(label).normal(size=(count, 2))
    return {"image": points.astype(np.float32), "label": np.full(count, label, np.int32)}


@functools.cache
def data() -> Data:
    """Returns 16 examples of each class, of which class 2 is to be forgotten."""
    retain = jax.tree.map(lambda *leaves: np.concatenate(leaves), examples(0, 16), examples(1, 16))
    return jax.tree.map(jnp.asarray, Data(examples(2, 16), retain))


@functools.cache
def original():
    """Returns params and state of a classifier that is right everywhere."""
    everything = Data(None, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *data()))
    method = finetune(LOSS, sgd(0.2, momentum=0.0), batch_size=16)
    result = run(method, jax.random.key(0), *init(jax.random.key(1)), everything, num_epochs=4)
    return result.params, result.model_state


class Outcome(NamedTuple):
    """The loss and the accuracies of a network on both sets."""

    loss_forget: float
    acc_forget: float
    acc_retain: float


def outcome(method: Method, epochs: int) -> tuple[Outcome, Outcome]:
    """Returns the outcomes of the original and of what a method makes of it."""
    result = run(method, jax.random.key(2), *original(), data(), num_epochs=epochs)
    return _outcome(*original()), _outcome(result.params, result.model_state)


def _outcome(params, model_state) -> Outcome:
    forget, retain = ((apply(params, model_state, part["image"], train=False)[0], part["label"]) for part in data())
    accuracies = (float((logits.argmax(axis=1) == label).mean()) for logits, label in (forget, retain))
    return Outcome(float(cross_entropy(*forget)), *accuracies)
