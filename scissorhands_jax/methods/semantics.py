"""Algorithm 1 of the paper and the published code of Scissorhands, and every point in which they differ."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from scissorhands_jax.errors import InputError, check_choice, suggest
from scissorhands_jax.methods.settings import Mode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Semantics:
    """Every point in which the published code departs from the paper, each with its own switch.

    The defaults are Algorithm 1 of the paper, but scored on the whole forget set, as equation 2 has it, where line 2
    draws one batch; `SEMANTICS["authors"]` is the published code.
    """

    saliency_train: bool = False
    """Whether weights are scored in training mode: batch statistics are used, and running statistics move once per
    batch."""
    saliency_absolute: bool = False
    """Whether the score of a weight w is |w| * sum |gradient of a batch| instead of |w * mean gradient|."""
    saliency_batches: int | None = None
    """The number of random forget batches that weights are scored on, at least 1. None takes the whole forget set."""
    published_cut: bool = False
    """Whether weights are trimmed whose score is strictly above the floor((1 - fraction) * n)-th smallest one, with the
    fallback of `masks.kept_fraction_mask`, instead of exactly the top `fraction`."""
    rank_all: bool = False
    """Whether the cut ranks all weights although only some layers are trimmed, so that fewer than `fraction` of them
    are."""
    skip_bn_names: bool = False
    """Whether leaves with "bn" in their names are exempt from trimming. The BatchNorm of a downsample branch has no
    such name, so it is trimmed."""
    trim_vectors: bool = False
    """Whether biases, scales and other arrays with fewer than two axes (`trees.is_vector`) are trimmed too. The
    initializer says what they become: scales are drawn from U(-1, 1), and biases are 0 by `reinit.published`, the
    default in `mode="authors"`, or drawn as well by `reinit.uniform`."""
    constraints_per_epoch: bool = False
    """Whether constraint gradients are made once an epoch from forget batches in evaluation mode, the k-th the sum of
    the first k. Otherwise the constraint is the forget gradient of the step itself."""
    forget_moves_state: bool = False
    """Whether the forget pass of a joint step starts from the network's state (running statistics) that the retain pass
    left, and moves it again. Otherwise both passes start from the same state, and only the retain pass moves it."""
    margin: float = 0.0
    """The lower bound on the dual variables of a violated step, at least 0."""
    eps: float = 0.0
    """The number that is added to the diagonal of the Gram matrix, at least 0."""
    project_every: int = 1
    """Which joint steps of an epoch are projected: every one, or every n-th (n = 10 in the scripts for 50 % of CIFAR-10
    and for CelebA)."""
    project_above_ceiling: bool = False
    """Whether a step is projected although the loss of its forget batch is above the `ceiling`. The constraint then
    holds in every joint step, as in Algorithm 1, and only lambda is switched off. It bounds the forget loss from below
    and leaves it free to rise: each projected step raises it by its curvature."""
    every_step_joint: bool = True
    """Whether forget batches are cycled so that every step of an epoch sees one, as Algorithm 1 has it; the forget loss
    is then driven up without bound unless there is a `ceiling`. Otherwise an epoch passes once over both sets, as in
    the published code, and its steps see retain examples alone once the forget examples are used up."""
    ragged_batches: bool = False
    """Whether the last batch of a pass may be smaller. Otherwise it is filled up."""
    fixed_batches: bool = False
    """Whether every step, constraint and one of the `saliency_batches` sees the first examples of each set, as in the
    published code for Stable Diffusion. An epoch then has one step for each batch of the forget set."""


SEMANTICS: dict[str, Semantics] = {
    "paper": Semantics(),
    "authors": Semantics(
        saliency_train=True,
        saliency_absolute=True,
        saliency_batches=1,
        published_cut=True,
        rank_all=True,
        skip_bn_names=True,
        trim_vectors=True,
        constraints_per_epoch=True,
        forget_moves_state=True,
        margin=0.5,
        eps=1e-3,
        every_step_joint=False,
        ragged_batches=True,
    ),
}


def resolve_semantics(mode: Mode, departures: Mapping[str, Any]) -> Semantics:
    """The semantics of a mode, with single fields changed.

    Args:
      mode: "paper" or "authors".
      departures: The new values of fields of `Semantics` by their names.

    Raises:
      InputError: The mode or a name is unknown, a value has the wrong type, or `project_every` or
        `saliency_batches` is below 1.
    """
    check_choice("mode", mode, SEMANTICS)
    types = typing.get_type_hints(Semantics)
    for name, value in departures.items():
        if name not in types:
            raise InputError(f"scissorhands has no setting {name!r}; {suggest(name, types)}")
        if not isinstance(value, types[name] | int if types[name] is float else types[name]):
            expected = getattr(types[name], "__name__", types[name])
            raise InputError(f"the departure {name} must be {expected}, got {value!r}")
    semantics = dataclasses.replace(SEMANTICS[mode], **departures)
    if semantics.project_every < 1 or (semantics.saliency_batches is not None and semantics.saliency_batches < 1):
        raise InputError("project_every and saliency_batches must be at least 1")
    return semantics
