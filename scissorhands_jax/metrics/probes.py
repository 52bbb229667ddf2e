"""Linear probes: what the features of a network still know, whatever its last layer answers."""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import ApplyFn, Model, ModelState, Params, PyTree
from scissorhands_jax.errors import DivergedError, InputError


def has_features(model: Model, params: Params, model_state: ModelState, inputs: PyTree) -> bool:
    """Whether `features` can read a network: it takes one array, and calls a linen `Dense` layer.

    Nothing is computed, and no fresh weights are drawn, which a network that was given alive has none of.

    Args:
      model: The network.
      params: The parameters of the network, or their shapes.
      model_state: BatchNorm statistics and the like, or their shapes.
      inputs: What it is applied to: arrays with a leading example axis.
    """
    if not hasattr(inputs, "shape"):
        return False
    try:
        jax.eval_shape(_reader(model.apply), params, model_state, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))
    except InputError:
        return False
    return True


def features(
    model: Model, params: Params, model_state: ModelState, images: chex.Array, *, batch_size: int = 500
) -> np.ndarray:
    """Computes the features of a network: the input of its last dense layer, in evaluation mode.

    Args:
      model: A network made of a linen module, by `models.build` or `from_linen`.
      params: The parameters of the network.
      model_state: BatchNorm statistics and the like, which are read and never changed.
      images: The images as the network takes them. shape=(N, ...)
      batch_size: How many images a forward pass takes.

    Returns:
      One row for each image. shape=(N, F), dtype=float32

    Raises:
      InputError: There are no images, JAX cannot take them (`data.check_numbers`), the network calls no linen `Dense`
        layer, or `batch_size` is below 1 or no whole number.
    """
    batch_size = data_lib.check_batch_size(batch_size)
    count = np.shape(images)[0]
    if not count:
        raise InputError("there are no images to take features of; give at least one")
    data_lib.check_numbers(images, "the array of images")
    read = _reader(model.apply)
    parts = []
    for start in range(0, count, batch_size):
        batch = np.asarray(images[start : start + batch_size])
        missing = min(batch_size, count) - len(batch)
        batch = np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1), mode="edge")
        parts.append(np.asarray(read(params, model_state, batch)))
    return np.concatenate(parts)[:count]


@functools.lru_cache(maxsize=32)
def _reader(apply: ApplyFn) -> Callable[[Params, ModelState, chex.Array], jax.Array]:
    """Returns one compiled function per model: jit keeps compiled code with the function that it returns."""

    @jax.jit
    def read(params, model_state, images):
        held = []

        def intercept(call, args, kwargs, context):
            if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
                held.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(intercept):
            apply(params, model_state, images, train=False)
        if not held:
            raise InputError("the network calls no linen Dense layer, whose input would be the features; add one")
        return held[-1].astype(jnp.float32).reshape(len(images), -1)

    return read


def linear_probe(
    known: np.ndarray, known_labels: np.ndarray, *others: tuple[np.ndarray, np.ndarray]
) -> tuple[float, ...]:
    """Fits a linear classifier on features, and measures its accuracy on other examples.

    If a method only spoiled the last layer, the features are as they were, and a new last layer on them recovers what
    should be forgotten (arXiv 2604.08271). The classifier is a logistic regression with C = 1 on standardised features.

    Args:
      known: The features that the classifier is fitted on. shape=(M, F)
      known_labels: Their labels, of which at least two differ. shape=(M,)
      *others: The features and labels of each set to measure the accuracy on. shapes=(N, F) and (N,)

    Returns:
      The accuracy on each of these sets, in percent (0 to 100).

    Raises:
      InputError: A set is empty, there are fewer than two classes to fit on, or a feature is not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for given in (known, known_labels, *(part for other in others for part in other)):
        data_lib.check_not_masked(given, "features or labels")
    if not len(known) or not all(len(labels) for _, labels in others) or len(np.unique(known_labels)) < 2:
        raise InputError("a linear probe lacks examples; give examples of two classes to fit on and others to judge")
    if not all(np.isfinite(values).all() for values in (known, *(values for values, _ in others))):
        raise DivergedError("features hold NaN or infinity; the network has diverged, try a smaller learning rate")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(known, known_labels)
    return tuple(100.0 * float(np.mean(probe.predict(values) == labels)) for values, labels in others)
