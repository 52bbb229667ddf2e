"""The points in which the published code of Scissorhands departs from Algorithm 1 of the paper."""

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

    The defaults are Algorithm 1 of the paper; `SEMANTICS["authors"]` is the published code.
    """

    saliency_train: bool = False
    """Saliency in training mode: batch statistics are used, and running statistics move once per batch."""
    saliency_absolute: bool = False
    """Score |w| * sum |gradient of a batch| instead of |w * mean gradient|."""
    saliency_batches: int | None = None
    """How many random forget batches are scored; None takes the whole forget set."""
    published_cut: bool = False
    """Strictly above the floor((1 - fraction) * n)-th smallest score, with the fallback of `kept_fraction_mask`."""
    rank_all: bool = False
    """The cut ranks all weights although only some layers are trimmed, so that fewer than `fraction` of them are."""
    skip_bn_names: bool = False
    """Names that contain "bn" are not trimmed; the BatchNorm of a downsample branch has no such name and is."""
    trim_vectors: bool = False
    """Arrays with fewer than two axes are trimmed too, biases to 0 and scales to U(-1, 1)."""
    constraints_per_epoch: bool = False
    """Constraint gradients come once an epoch from eval-mode forget batches, the k-th the sum of the first k,
    instead of the forget gradient of the very step."""
    forget_moves_state: bool = False
    """The forget pass of a joint step starts from the network's state (running statistics) that the retain pass left,
    and moves it again; else both passes start from the same state and only the retain pass moves it."""
    margin: float = 0.0
    """Lower bound on the dual variables of a violated step."""
    eps: float = 0.0
    """Added to the diagonal of the Gram matrix."""
    project_every: int = 1
    """Only every such joint step of an epoch is projected (10 in the 50 % CIFAR-10 and the CelebA scripts)."""
    every_step_joint: bool = False
    """Forget batches are cycled so that every step of an epoch sees one; else an epoch passes once over both sets, and
    its steps are retain-only once the forget examples are used up. Algorithm 1 does not say; see the README."""
    ragged_batches: bool = False
    """The last batch of a pass may be smaller, instead of being filled up."""
    fixed_batches: bool = False
    """Every step, and every saliency batch of `saliency_batches`, sees the first examples of each set, as in the
    published code for Stable Diffusion; an epoch has as many steps as there are batches in the forget set."""


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
        ragged_batches=True,
    ),
}


def resolve_semantics(mode: Mode, departures: Mapping[str, Any]) -> Semantics:
    """The semantics of a mode, with single fields changed.

    Args:
      mode: "paper" or "authors".
      departures: The new values of fields of `Semantics` by their names.

    Raises:
      InputError: The mode or a name is unknown, or a value has the wrong type or is out of its range.
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
