"""Selective synaptic dampening (Foster et al., AAAI 2024): shrink the weights that only the forget set needs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, masks, saliency, trees
from scissorhands_jax.base import Data, Dataset, Key, Mask, Method, Model, ModelState, Params, Scores, StatefulLossFn
from scissorhands_jax.errors import check_not_negative
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import edit
from scissorhands_jax.methods.settings import Choices, MethodSettings, Range

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SsdOptions:
    """The keyword arguments of `ssd`."""

    selection: float = 10.0
    """alpha, at least 0: how many times as large the forget set's Fisher information must be as that of all data."""
    dampening: float = 1.0
    """lambda, at least 0, which scales the factor of the selected weights."""
    batch_size: int = 128
    """The number of examples whose mean gradient is squared, at most the size of the forget set."""


@takes(SsdOptions)
def ssd(loss_fn: StatefulLossFn, options: SsdOptions) -> Method:
    """Shrinks weights once, by the Fisher information F_f of the forget set and F_D of the whole training set.

      w <- w * min(lambda F_D / F_f, 1)  where  F_f > alpha F_D,  else w

    There are no steps and no epochs. Both diagonals are `saliency.diagonal_fisher`, as in the published code: means of
    squared gradients of random batches, in evaluation mode; D includes the forget set. Here all batches have one size,
    because estimates from batches of different sizes cannot be compared. With `batch_size=1` they are exact, and slow;
    F_D is then at least the forget set's share p of F_f, so an alpha of 1/p or more dampens nothing. The authors'
    settings for ResNet-18 on CIFAR are an alpha of 10, a lambda of 1, and batches of 128 for random examples and of 64
    for classes.

    Args:
      loss_fn: The general form of the loss, a mean over a batch.

    Raises:
      InputError: A setting is out of its range, or (from `init`) a Fisher diagonal is not finite.
    """
    selection, dampening = options.selection, options.dampening
    check_not_negative("selection", selection)
    check_not_negative("dampening", dampening)
    data_lib.check_batch_size(options.batch_size)

    def change(key: Key, params: Params, model_state: ModelState, data: Data) -> tuple[Params, ModelState]:
        forget_size = data_lib.size(data.forget)
        size = min(options.batch_size, forget_size)

        def fisher(part_key: Key, total: int) -> Scores:
            positions = data_lib.shuffled_batches(part_key, total, size)
            drawing = losses.drawing_key(loss_fn, jax.random.fold_in(part_key, 1))
            batches = (_take(data, p) for p in positions)
            scores = saliency.diagonal_fisher(loss_fn, params, model_state, batches, key=drawing)
            saliency.check_finite(scores)
            return scores

        forget_key, all_key = jax.random.split(key)
        forget = fisher(forget_key, forget_size)
        everything = fisher(all_key, forget_size + data_lib.size(data.retain))
        params, mask = dampen(params, forget, everything, selection=selection, dampening=dampening)
        marked = masks.count_marked(mask)
        if not isinstance(marked, jax.core.Tracer):
            _logger.log(
                logging.INFO if marked else logging.WARNING,
                "ssd dampened %d of %d weights",
                marked,
                trees.count_weights(params),
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

    return jax.tree.map(take, *data_lib.shared(*data))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SsdSettings(SsdOptions, MethodSettings):
    """The authors' settings for ResNet-18 on CIFAR. The method takes no steps, so `epochs` stays 0."""

    search_ranges: ClassVar[Mapping[str, Range | Choices]] = {"selection": (1.0, 100.0), "dampening": (0.1, 10.0)}

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
        del model, num_classes
        self.check_no_epochs()
        return ssd(loss_fn, **self.values(SsdOptions))
