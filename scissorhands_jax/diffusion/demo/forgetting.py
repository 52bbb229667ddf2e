"""Forgetting one digit in every way that the demonstration compares."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

import numpy as np

from scissorhands_jax.diffusion.demo.drawing import draw_digits
from scissorhands_jax.diffusion.demo.judging import NetworkNumbers, measure_network
from scissorhands_jax.diffusion.demo.scene import Scene, requested_digits
from scissorhands_jax.diffusion.demo.settings import ORIGINAL, RETRAINED, VARIANTS, DigitsSettings
from scissorhands_jax.diffusion.demo.training import DrawingNetwork, train_digits, unlearn_digit
from scissorhands_jax.training.loop import OnStep


class StartPhase(Protocol):
    """Is called at the beginning of a phase, and returns an `on_step` if the phase has steps."""

    def __call__(self, phase: str, *, steps: bool = True) -> OnStep | None: ...


def forget_digit(
    settings: DigitsSettings,
    scene: Scene,
    original: DrawingNetwork,
    start_phase: StartPhase,
    *,
    only: Collection[str] | None = None,
) -> Iterator[tuple[NetworkNumbers, np.ndarray]]:
    """Forgets `settings.digit` in every way, and yields each network's numbers and drawings as soon as it has them.

    The original comes first, then the retrained network, then those of `VARIANTS`.

    Args:
      settings: The digit, and how it is forgotten.
      scene: What all networks share.
      original: The network that was trained on all digits.
      start_phase: Called at the beginning of every phase.
      only: The names of the networks to make; None makes all.
    """
    requested = requested_digits(settings)
    for name in (ORIGINAL, RETRAINED, *VARIANTS):
        if only is not None and name not in only:
            continue
        if name == ORIGINAL:
            network = original
        elif name == RETRAINED:
            network = train_digits(settings, scene, settings.digit, start_phase(f"{name}: training"))
        else:
            on_step = start_phase(f"{name}: unlearning")
            network = unlearn_digit(settings, scene, original.params, VARIANTS[name], on_step=on_step)
        start_phase(f"{name}: drawing", steps=False)
        images = draw_digits(settings, scene, network.params, requested)
        start_phase(f"{name}: judging", steps=False)
        yield measure_network(settings, scene, name, network, images), images
