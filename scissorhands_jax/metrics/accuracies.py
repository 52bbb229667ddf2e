"""Outputs of a network, and the accuracy of a classifier.

JAX runs the forward pass, and everything after the logits is NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import ApplyFn, Model, ModelState, Params, PyTree
from scissorhands_jax.errors import DivergedError, InputError
from scissorhands_jax.training.sharding import Layout


@functools.lru_cache(maxsize=32)
def _forward(apply: ApplyFn, layout: Layout | None = None) -> Callable[[Params, ModelState, PyTree], PyTree]:
    """Returns one compiled forward pass per model: jit keeps compiled code with the function that it returns."""

    @jax.jit
    def forward(params, model_state, images):
        outputs, _ = apply(params, model_state, images, train=False)
        outputs = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs)
        return outputs if layout is None else jax.tree.map(layout.replicate, outputs)

    return forward


def predict(
    model: Model,
    params: Params,
    model_state: ModelState,
    images: PyTree,
    *,
    batch_size: int = 256,
    layout: Layout | None = None,
) -> Any:
    """Computes the outputs of a network in evaluation mode, batch by batch: the logits of a classifier.

    The forward pass is compiled once per model and shape of a batch: another call with other parameters, or another
    number of images, compiles nothing. The last batch is padded to `batch_size`, and the surplus is cut off.

    Args:
      model: The network, whose `apply` is called with `train=False`. The compiled function is kept by `model.apply`, so
        pass the same `Model` each time.
      params: The parameters of the network.
      model_state: BatchNorm statistics and the like, which are read and never changed.
      images: The images, of any dtype, on the host or on a device, or any other inputs: a pytree of arrays. They are
        passed to the network as they are, so scaling uint8 pixels is up to the network or the reader of the data set.
        shape=(N, ...)
      batch_size: How many images a forward pass takes.
      layout: How to divide every batch over several devices. The parameters must lie as it says. With several
        processes, all must call this function, and each reads its own share of the images. The default uses one device.

    Returns:
      The outputs, on the host, as the network gives them: an array or a pytree of arrays. shape=(N, ...),
      dtype=float32

    Raises:
      InputError: There are no images, JAX cannot take them (`data.check_numbers`), or `batch_size` is below 1 or no
        whole number.
    """
    batch_size = data_lib.check_batch_size(batch_size)
    leaves = jax.tree.leaves(images)
    count = data_lib.size(images) if leaves and all(np.ndim(leaf) for leaf in leaves) else 0
    if count == 0:
        shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves) or "()"
        raise InputError(f"predict was given an array of shape {shapes}; give at least one image")
    data_lib.check_numbers(images, "the input of predict")
    forward = _forward(model.apply, layout)
    if layout is not None:
        images, batch_size = jax.tree.map(np.asarray, images), layout.rounded_up(batch_size)
        positions = np.minimum(np.arange(-(-count // batch_size) * batch_size), count - 1).reshape(-1, batch_size)
        outputs = [
            forward(params, model_state, jax.tree.map(lambda leaf: layout.rows(leaf, rows), images))  # noqa: B023
            for rows in positions
        ]
        return _joined(outputs, count)
    outputs = []
    for start in range(0, count, batch_size):
        batch = data_lib.take(images, slice(start, start + batch_size))
        missing = batch_size - data_lib.size(batch)
        if missing:
            batch = jax.tree.map(functools.partial(_padded, missing=missing), batch)
        outputs.append(forward(params, model_state, batch))
    return _joined(outputs, count)


def _padded(leaf: chex.Array, missing: int) -> chex.Array:
    """Adds copies of the last example: zeros could be NaN in a network that normalises each image by itself."""
    xnp = jnp if isinstance(leaf, jax.Array) else np
    return xnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")


def _joined(outputs: Sequence[PyTree], count: int) -> PyTree:
    """The outputs of all batches on the host, without those of copies."""
    return jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts])[:count], *outputs)


def check_logits(
    logits: chex.Array, labels: chex.Array, *, what: str = "logits", stacked: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Checks that logits and labels fit each other, and returns both on the host.

    Args:
      logits: One row of finite numbers per example, at least one row. shape=(N, C)
      labels: The true classes, integers in 0..C-1. shape=(N,)
      what: What the error messages call the rows.
      stacked: Whether `logits` may have leading axes, such as one for networks. shape=(..., N, C)

    Raises:
      InputError: The shapes do not fit, an array is masked, or a label is out of range.
      DivergedError: A number is not finite.
    """
    data_lib.check_not_masked(logits, what)
    data_lib.check_not_masked(labels, "labels")
    rows, classes = np.asarray(logits), np.asarray(labels)
    right_rank = rows.ndim >= 2 if stacked else rows.ndim == 2
    if not right_rank or classes.shape != rows.shape[-2:-1] or rows.size == 0:
        raise InputError(
            f"{what} have shape {rows.shape} and labels {classes.shape}; "
            f"expected ({'..., ' if stacked else ''}N, C) and (N,) with N > 0"
        )
    if not np.issubdtype(classes.dtype, np.integer):
        raise InputError(f"labels must be integers, got {classes.dtype}")
    if classes.min() < 0 or classes.max() >= rows.shape[-1]:
        raise InputError(f"labels must be integers in 0..{rows.shape[-1] - 1}, got {classes.min()}..{classes.max()}")
    finite = np.all(np.isfinite(rows), axis=-1)
    if not np.all(finite):
        raise DivergedError(
            f"{np.count_nonzero(~finite)} of {finite.size} rows of {what} hold NaN or infinity; "
            "the network has diverged, try a smaller learning rate"
        )
    return rows, classes


def correct(logits: chex.Array, labels: chex.Array) -> int:
    """Counts the examples whose largest logit is that of the true class. Of equal logits the first one counts.

    Args:
      logits: One row for each example. shape=(N, C)
      labels: The true classes, integers in 0..C-1. shape=(N,)

    Raises:
      InputError: There is no example, the shapes do not fit, a label is out of range, or a logit is not finite.

    >>> correct(np.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]]), np.array([0, 1, 1]))
    2
    """
    rows, classes = check_logits(logits, labels)
    return int(np.count_nonzero(rows.argmax(axis=1) == classes))


def accuracy(logits: chex.Array, labels: chex.Array) -> float:
    """Returns the share of examples that get their true label, in percent (0 to 100); see `correct`.

    >>> accuracy(np.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [1.0, 0.0]]), np.array([0, 1, 1, 0]))
    75.0
    """
    return 100.0 * correct(logits, labels) / len(np.asarray(labels))
