"""Trimming, the first half of Scissorhands: the most salient weights are re-initialised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scissorhands_jax import losses as losses_lib
from scissorhands_jax import masks, reinit, saliency, trees
from scissorhands_jax.base import (
    Key,
    Mask,
    ModelState,
    Params,
    PyTree,
    Scores,
    Selection,
    StatefulLossFn,
    check_key,
)
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods.semantics import SEMANTICS, Semantics
from scissorhands_jax.trees import Stacked, Where


class Trimmed(NamedTuple):
    """The result of `trim_network`."""

    params: Params
    model_state: ModelState  # the given one, unless weights were scored in training mode
    mask: Mask  # True for the weights that were re-initialised
    losses: jax.Array  # shape=(batches,): the forget losses of the batches


def trim_network(
    key: Key,
    loss_fn: StatefulLossFn,
    params: Params,
    model_state: ModelState,
    batches: Iterable[PyTree],
    *,
    fraction: float,
    initializer: reinit.Initializer | reinit.ByName | str,
    rank: Where = None,
    trim: Where = None,
    semantics: Semantics = SEMANTICS["paper"],
    pass_key: Key | None = None,
    stacked: Stacked = None,
) -> Trimmed:
    """The first half of Scissorhands: scores the weights on forget batches and re-initialises the top `fraction`.

    The score of a weight w is `|E[dL_f/dw] * w|`, the connection sensitivity of SNIP (Lee et al., ICLR 2019), with the
    variants of `semantics`.

    The function is pure, for jit and vmap. Numbers cannot be seen there, so scores that are not finite are not refused:
    NaN counts as the largest score (`masks.top_fraction`).

    Args:
      key: The typed PRNG key that the fresh weights are drawn with.
      loss_fn: The general form of the loss, a mean over a batch.
      params: The parameters of the original network, a pytree of floating-point arrays; they are not changed. Floats
        of Python count as arrays.
      model_state: The state of the original network.
      batches: Batches of forget examples, at least one.
      fraction: The share of the ranked weights that is marked, above 0 and below 1. Those of trimmed leaves are
        re-initialised.
      initializer: What trimmed weights become: an initializer, or its name in `reinit.INITIALIZERS`.
      rank: The leaves whose weights are ranked, as a pattern for `trees.select`. None is the trimmed ones, or all where
        the semantics say so.
      trim: The leaves that are trimmed, as a pattern for `trees.select`, less those that the semantics leave alone: by
        default biases and scales. None is all others.
      semantics: The departures from Algorithm 1; none by default.
      pass_key: The typed PRNG key of augmentation and dropout, where weights are scored in training mode, and of losses
        that draw in evaluation mode too (`losses.drawing_key`). None does without.
      stacked: Which arrays hold several layers along their first axes, as scanned and mapped modules have them, where
        other arrays do not tell (`trees.stacked_axes`).

    Raises:
      InputError: There is no batch, the key, the loss or the initializer is of another form, the fraction is out of its
        range, a pattern matches nothing, a parameter is no real floating-point number, or ranked scores are not finite.
    """
    check_key(key)
    masks.check_fraction(fraction)
    trees.check_trained(params, "the parameters")
    params = trees.as_arrays(params)
    where: dict[str, Any] = {"rank": rank, "trim": trim, "semantics": semantics, "stacked": stacked}
    trimming_leaves(params, **where)  # refuses patterns before anything is computed
    initializer = reinit.initializer_of(initializer)
    sums = saliency.gradient_sum(
        loss_fn,
        params,
        model_state,
        batches,
        train=semantics.saliency_train,
        absolute=semantics.saliency_absolute,
        key=pass_key if semantics.saliency_train or pass_key is None else losses_lib.drawing_key(loss_fn, pass_key),
    )
    scores = saliency.scores_of(sums, params, absolute=semantics.saliency_absolute)
    losses, moved_state = sums.losses, sums.model_state
    del sums  # as large as the network, like the scores
    mask, trimmed = trimming_mask(scores, params, fraction=fraction, **where)
    del scores
    params = reinit.reinitialize(key, params, mask, initializer=initializer, trim=trimmed, stacked=stacked)
    return Trimmed(params, moved_state if semantics.saliency_train else model_state, mask, losses)


def trimming_mask(
    scores: Scores,
    params: Params,
    *,
    fraction: float,
    rank: Where = None,
    trim: Where = None,
    semantics: Semantics = SEMANTICS["paper"],
    stacked: Stacked = None,
) -> tuple[Mask, Selection]:
    """Which weights are re-initialised: those with the largest scores, whatever these measure.

    Under jit and vmap scores that are not finite are not refused, as for `trim_network`.

    Args:
      scores: One number for each weight, a pytree like `params`; see `saliency`.
      params: The parameters; only names and shapes are used.
      fraction, rank, trim, semantics, stacked: As for `trim_network`.

    Returns:
      The mask, True for the weights that are to be re-initialised, and the leaves that it may mark, as
      `reinit.reinitialize` takes them.

    Raises:
      InputError: The fraction is out of its range, a pattern matches nothing, or ranked scores are not finite.
    """
    masks.check_fraction(fraction)
    ranked, trimmed = trimming_leaves(params, rank=rank, trim=trim, semantics=semantics, stacked=stacked)
    saliency.check_finite(scores, ranked)
    if semantics.published_cut:
        mask, _ = masks.kept_fraction_mask(scores, round(1 - fraction, 12), rank=ranked)
    else:
        mask = masks.top_fraction(scores, fraction, rank=ranked)
    return masks.restrict(mask, trimmed), trimmed


def trimming_leaves(
    params: Params,
    *,
    rank: Where = None,
    trim: Where = None,
    semantics: Semantics = SEMANTICS["paper"],
    stacked: Stacked = None,
) -> tuple[Selection | None, Selection]:
    """The leaves whose weights are ranked, of which None is all, and those that are trimmed.

    Args:
      params: The parameters; only names and shapes are used.
      rank, trim, semantics, stacked: As for `trim_network`.

    Raises:
      InputError: A pattern matches nothing, or nothing that can be trimmed.
    """

    def allowed(name, leaf, chosen, axes):
        vector = trees.is_vector(name, jnp.shape(leaf)[axes:]) and not semantics.trim_vectors
        return chosen and not vector and not (semantics.skip_bn_names and "bn" in name)

    selection = trees.map_named(allowed, params, trees.select(params, trim), trees.stacked_axes(params, stacked))
    if not any(jax.tree.leaves(selection)):
        spared = "biases and scales" if not semantics.trim_vectors else "arrays of BatchNorm by the name bn"
        if not semantics.trim_vectors and semantics.skip_bn_names:
            spared += ", and arrays of BatchNorm by the name bn"
        raise InputError(f"the layer pattern {trim!r} selects only {spared}, which are not trimmed; widen it")
    unnamed = None if semantics.rank_all else selection
    return unnamed if rank is None else trees.select(params, rank), selection
