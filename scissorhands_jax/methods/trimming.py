"""Trimming, the first half of Scissorhands: the most salient weights are re-initialised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax

from scissorhands_jax import masks, reinit, saliency, trees
from scissorhands_jax.base import (
    Key,
    Mask,
    ModelState,
    Params,
    PyTree,
    Selection,
    StatefulLossFn,
)
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods.semantics import SEMANTICS, Semantics
from scissorhands_jax.trees import Where


class Trimmed(NamedTuple):
    """The result of `trim_network`."""

    params: Params
    model_state: ModelState
    mask: Mask
    losses: jax.Array  # shape=(batches,): forget losses of the saliency batches


def trim_network(
    key: Key,
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    batches: Iterable[PyTree],
    *,
    fraction: float,
    initializer: reinit.Initializer | reinit.ByName,
    rank: Where = None,
    trim: Where = None,
    semantics: Semantics = SEMANTICS["paper"],
    pass_key: Key | None = None,
) -> Trimmed:
    """The first half of the method: score the weights on forget batches and re-initialise the top `fraction`.

    Args:
      key: of the fresh weights.
      pass_key: of augmentation and dropout in the saliency pass.
      Others: as for `scissorhands`.

    Raises:
      InputError: no batch, a pattern that matches nothing, or scores that are not finite.
    """
    sums = saliency.gradient_sum(
        loss_fn,
        params,
        model_state,
        batches,
        train=semantics.saliency_train,
        absolute=semantics.saliency_absolute,
        key=pass_key if semantics.saliency_train else None,
    )
    scores = saliency.scores_of(sums, params, absolute=semantics.saliency_absolute)
    losses, moved_state = sums.losses, sums.model_state
    del sums  # As large as the network, like the scores; nothing of it is needed any more.
    saliency.check_finite(scores)
    trimmed = _trimmable(params, trim, semantics)
    unnamed = None if semantics.rank_all else trimmed
    ranked = unnamed if rank is None else trees.select(params, rank)
    if semantics.published_cut:
        mask, _ = masks.kept_fraction_mask(scores, 1 - fraction, rank=ranked)
    else:
        mask = masks.top_fraction(scores, fraction, rank=ranked)
    del scores
    mask = masks.restrict(mask, trimmed)
    params = reinit.reinitialize(key, params, mask, initializer=initializer, trim=trimmed)
    return Trimmed(params, moved_state if semantics.saliency_train else model_state, mask, losses)


def _trimmable(params: Params, trim: Where, semantics: Semantics) -> Selection:
    """The leaves that the pattern selects, less those that the semantics leave alone."""

    def allowed(path, leaf, chosen):
        vector = leaf.ndim < 2 and not semantics.trim_vectors
        return chosen and not vector and not (semantics.skip_bn_names and "bn" in trees.path_name(path))

    selection = jax.tree_util.tree_map_with_path(allowed, params, trees.select(params, trim))
    if not any(jax.tree.leaves(selection)):
        raise InputError(f"the layer pattern {trim!r} selects only biases and scales, which are not trimmed; widen it")
    return selection
