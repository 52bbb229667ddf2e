"""What a network gets right, how far it is from the retrained one, and how sure the numbers are.

Arrays in, floats out. JAX runs the forward pass; everything after the logits is offline statistics, in NumPy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import ApplyFn, Model, ModelState, Params
from scissorhands_jax.errors import InputError
from scissorhands_jax.training.sharding import Layout

Array = np.ndarray | jax.Array

GAP_FIELDS = ("acc_forget", "acc_retain", "acc_test", "mia")
"""The four numbers of a result, in percent, that the paper's Avg. Gap compares."""


@functools.lru_cache(maxsize=32)
def _forward(apply: ApplyFn, layout: Layout | None = None) -> Callable[[Params, ModelState, jax.Array], jax.Array]:
    """One jitted forward pass per model: jit keeps its compilations with the function object it returned."""

    @jax.jit
    def forward(params, model_state, images):
        logits, _ = apply(params, model_state, images, train=False)
        logits = logits.astype(jnp.float32)
        return logits if layout is None else layout.replicate(logits)

    return forward


def predict(
    model: Model,
    params: Params,
    model_state: ModelState,
    images: Array,
    *,
    batch_size: int = 256,
    layout: Layout | None = None,
) -> np.ndarray:
    """The logits of a network in evaluation mode, batch by batch.

    The forward pass is compiled once per model and shape of a batch: calling again with other parameters, or another
    number of images, compiles nothing. The last batch is padded to `batch_size` and the surplus is cut off.

    Args:
      model: its `apply` is called with `train=False`; the same `Model` must be handed in again to profit from the
        compiled function.
      params: the network's parameters.
      model_state: BatchNorm statistics and the like; read, never moved.
      images: shape=(N, ...), any dtype, on the host or on a device. They go to the network as they are, like those in
        `losses.classification_loss`: scaling uint8 pixels is the model's business, or the loader's.
      batch_size: images per forward pass.
      layout: divides every batch, and with it the work, over many devices; parameters lie as it says, and of many
        processes all call this and read their own share of the images.

    Returns:
      Logits of shape (N, C), dtype float32, on the host.

    Raises:
      InputError: there are no images, or `batch_size` is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    count = images.shape[0] if images.ndim else 0
    if count == 0:
        raise InputError(f"predict needs at least one image, got an array of shape {images.shape}")
    forward = _forward(model.apply, layout)
    if layout is not None:
        images, batch_size = np.asarray(images), layout.rounded_up(batch_size)
        positions = np.minimum(np.arange(-(-count // batch_size) * batch_size), count - 1).reshape(-1, batch_size)
        outputs = [forward(params, model_state, layout.rows(images, rows)) for rows in positions]
        return np.concatenate([np.asarray(output) for output in outputs])[:count]
    xnp = jnp if isinstance(images, jax.Array) else np
    outputs = []
    for start in range(0, count, batch_size):
        batch = images[start : start + batch_size]
        missing = batch_size - batch.shape[0]
        if missing:
            # Copies of a real image: zeros could be NaN in a network that normalises each image by itself.
            batch = xnp.pad(batch, [(0, missing)] + [(0, 0)] * (images.ndim - 1), mode="edge")
        outputs.append(forward(params, model_state, batch))
    return np.concatenate([np.asarray(output) for output in outputs])[:count]


def _checked(logits: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """Host copies of shapes (N, C) and (N,), with N > 0, finite logits and labels within range."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.size == 0:
        raise InputError(
            f"expected logits of shape (N, C) and labels of shape (N,) with N > 0, "
            f"got {logits.shape} and {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels must be integers, got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(f"labels must be in 0..{logits.shape[1] - 1}, got {labels.min()}..{labels.max()}")
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{np.count_nonzero(~finite)} of {len(finite)} rows of logits hold NaN or infinity; "
            "the network has diverged, try a smaller learning rate"
        )
    return logits, labels


def correct(logits: Array, labels: Array) -> int:
    """How many examples get their true label; of equal logits the first one counts.

    Args:
      logits: shape=(N, C).
      labels: shape=(N,), integers in 0..C-1.

    Raises:
      InputError: shapes, labels or logits that cannot be used: none at all, out of range, NaN.

    >>> correct(np.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]]), np.array([0, 1, 1]))
    2
    """
    logits, labels = _checked(logits, labels)
    return int(np.count_nonzero(logits.argmax(axis=1) == labels))


def accuracy(logits: Array, labels: Array) -> float:
    """The share of examples that get their true label, in percent (0..100); see `correct`.

    >>> accuracy(np.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [1.0, 0.0]]), np.array([0, 1, 1, 0]))
    75.0
    """
    return 100.0 * correct(logits, labels) / len(np.asarray(labels))


def cross_entropy_per_example(logits: Array, labels: Array) -> np.ndarray:
    """Minus the log-probability of each true label, in nats. shape=(N,), dtype=float64

    Args:
      logits: shape=(N, C).
      labels: shape=(N,), integers in 0..C-1.

    Raises:
      InputError: as in `correct`.

    >>> cross_entropy_per_example(np.array([[0.0, 0.0], [1000.0, 0.0]]), np.array([1, 0])).round(4).tolist()
    [0.6931, 0.0]
    """
    logits, labels = _checked(logits, labels)
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]


def average_gap(row: Mapping[str, float], retrain_row: Mapping[str, float]) -> float:
    """The paper's Avg. Gap: the mean absolute difference to the retrained network over four numbers.

    Args:
      row: holds `acc_forget`, `acc_retain`, `acc_test` and `mia`, all in percent.
      retrain_row: the same of the network trained from scratch without the forget set.

    Returns:
      Percentage points; 0 is indistinguishable by these four numbers.

    Raises:
      InputError: a number is missing, `None` or not finite.

    References:
      Wu and Harandi, Scissorhands, ECCV 2024, section 4, "Metrics" (iii).

    >>> ours = {"acc_forget": 95.40, "acc_retain": 98.93, "acc_test": 92.92, "mia": 9.56}
    >>> retrained = {"acc_forget": 94.81, "acc_retain": 100.0, "acc_test": 94.26, "mia": 13.05}
    >>> round(average_gap(ours, retrained), 2)
    1.62
    """
    gaps = [abs(_field(row, name, "the row") - _field(retrain_row, name, "the retrained row")) for name in GAP_FIELDS]
    return math.fsum(gaps) / len(gaps)


def _field(row: Mapping[str, float], name: str, whose: str) -> float:
    value = row.get(name)
    if value is None or not math.isfinite(value):
        raise InputError(f"Avg. Gap needs a finite {name} in {whose}, got {value}")
    return float(value)


def frechet_distance(first: Array, second: Array) -> float:
    """The squared Fréchet distance of the normal distributions with the means and covariances of two sets.

    |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), as of Inception features in the FID (Heusel et al., 2017). With
    S = R' R of the centred rows, the trace of the root is the sum of the singular values of R_1 R_2', which holds and
    is stable where there are fewer rows than columns. The distance of finite samples is biased upwards, the more so
    the fewer rows there are.

    Args:
      first, second: one row per example, such as features of a classifier. shape=(N, D) and (M, D), N and M at least 2

    Raises:
      InputError: shapes that cannot be compared, or numbers that are not finite.

    >>> frechet_distance(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]]))
    9.0
    """
    pair = [np.asarray(features, np.float64) for features in (first, second)]
    if any(x.ndim != 2 or x.shape[0] < 2 for x in pair) or pair[0].shape[1] != pair[1].shape[1]:
        raise InputError(
            f"expected two arrays of shape (N, D), N at least 2 and D the same, got {pair[0].shape} and {pair[1].shape}"
        )
    if not all(np.isfinite(x).all() for x in pair):
        raise InputError("the features hold NaN or infinity; check the images that they were taken of")
    means = [x.mean(axis=0) for x in pair]
    roots = [np.linalg.qr((x - m) / math.sqrt(len(x) - 1), mode="r") for x, m in zip(pair, means, strict=True)]
    traces = sum(float(np.sum(root**2)) for root in roots)
    common = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return max(0.0, float(np.sum((means[0] - means[1]) ** 2) + traces - 2 * common))
