"""Selective synaptic dampening (Foster et al., AAAI 2024): shrink the weights that only the forget set needs."""

from __future__ import annotations

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import masks, saliency, trees
from scissorhands_jax.base import Data, Dataset, Key, Mask, Method, Model, ModelState, Params, Scores, StatefulLossFn
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods._gradient import edit
from scissorhands_jax.methods.settings import MethodSettings

logger = logging.getLogger(__name__)


def ssd(loss_fn: StatefulLossFn, *, selection: float = 10.0, dampening: float = 1.0, batch_size: int = 128) -> Method:
    """Shrinks weights once, by the Fisher information F_f of the forget set and F_D of the whole training set.

      w <- w * min(lambda F_D / F_f, 1)  where  F_f > alpha F_D,  else w

    There are no steps and no epochs. Both diagonals are `saliency.diagonal_fisher`, as in the published code: means of
    squared gradients of random batches, in evaluation mode; D includes the forget set. Here all batches have one
    size, at most that of the forget set, because estimates of different batch sizes do not compare. With
    `batch_size=1` they are exact, and slow; F_D is then at least the forget set's share p of F_f, so an alpha of 1/p
    or more dampens nothing. The authors' settings for ResNet-18 on CIFAR: alpha 10, lambda 1, batch 128 for random
    examples and 64 for classes.

    Args:
      selection: alpha, at least 0.
      dampening: lambda, at least 0.
      batch_size: examples per squared gradient.

    Raises:
      InputError: a setting is out of its range, or a Fisher diagonal is not finite.
    """
    if selection < 0 or dampening < 0:
        raise InputError(f"selection and dampening must not be negative, got {selection} and {dampening}")
    data_lib.check_batch_size(batch_size)

    def change(key: Key, params: Params, model_state: ModelState, data: Data) -> tuple[Params, ModelState]:
        forget_size = data_lib.size(data.forget)
        size = min(batch_size, forget_size)

        def fisher(part_key: Key, total: int) -> Scores:
            positions = data_lib.shuffled_batches(part_key, total, size)
            scores = saliency.diagonal_fisher(loss_fn, params, model_state, (_take(data, p) for p in positions))
            saliency.check_finite(scores)
            return scores

        forget_key, all_key = jax.random.split(key)
        forget = fisher(forget_key, forget_size)
        everything = fisher(all_key, forget_size + data_lib.size(data.retain))
        params, mask = dampen(params, forget, everything, selection=selection, dampening=dampening)
        marked = int(masks.count_marked(mask))
        logger.log(
            logging.INFO if marked else logging.WARNING, "ssd dampened %d of %d weights", marked, trees.size(params)
        )
        return params, model_state

    return edit(change, reads=("forget", "retain"))


@jax.jit
def dampen(
    params: Params, forget: Scores, everything: Scores, *, selection: float, dampening: float
) -> tuple[Params, Mask]:
    """Multiplies weights by `min(dampening * everything / forget, 1)` where `forget > selection * everything`.

    The others stay bit-equal. Returns the new weights and the mask of those that were selected.
    """

    def leaf(w, f, d):
        chosen = f > selection * d
        factor = jnp.minimum(dampening * d / jnp.where(chosen, f, 1), 1)
        return jnp.where(chosen, w * factor.astype(w.dtype), w), chosen

    pairs = jax.tree.map(leaf, params, forget, everything)
    return jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0)), pairs)


def _take(data: Data, positions: np.ndarray) -> Dataset:
    """Examples of the whole training set: positions count forget examples first, then retain examples."""
    count = data_lib.size(data.forget)

    def take(forget, retain):
        inside = (positions < count).reshape(-1, *[1] * (forget.ndim - 1))
        return jnp.where(inside, forget[np.minimum(positions, count - 1)], retain[np.maximum(positions - count, 0)])

    return jax.tree.map(take, data.forget, data.retain)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SsdSettings(MethodSettings):
    """The authors' settings for ResNet-18 on CIFAR; epochs do nothing."""

    batch_size: int = 128
    selection: float = 10.0
    dampening: float = 1.0

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        del model, num_classes
        return ssd(loss_fn, selection=self.selection, dampening=self.dampening, batch_size=self.batch_size)
