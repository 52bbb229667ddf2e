"""Forgetting one digit in every way that the demonstration compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from scissorhands_jax.diffusion.concept_methods import CONCEPT_METHODS
from scissorhands_jax.diffusion.demo.attacking import attack_digit
from scissorhands_jax.diffusion.demo.drawing import draw_digits
from scissorhands_jax.diffusion.demo.judging import NetworkNumbers, measure_network
from scissorhands_jax.diffusion.demo.scene import Scene, requested_digits
from scissorhands_jax.diffusion.demo.settings import (
    RETRAINED_AGAIN,
    VARIANTS,
    DigitsSettings,
)
from scissorhands_jax.diffusion.demo.training import DrawingNetwork, train_digits, unlearn_by_method, unlearn_digit
from scissorhands_jax.jobs.progress import StartPhase
from scissorhands_jax.report import ORIGINAL, REFERENCE


def forget_digit(
    settings: DigitsSettings,
    scene: Scene,
    original: DrawingNetwork,
    start_phase: StartPhase,
    names: Iterable[str],
    *,
    attacked: bool = False,
) -> Iterator[tuple[NetworkNumbers, np.ndarray]]:
    """Forgets `settings.digit` in several ways, and yields each network's numbers and drawings as soon as it has them.

    Args:
      settings: The digit, and how it is forgotten.
      scene: What all networks share.
      original: The network that was trained on all digits.
      start_phase: Called at the beginning of every phase.
      names: The networks to make, in this order: the original, retrained ones, those of `VARIANTS`, and those of other
        methods by their names in CONCEPT_METHODS.
      attacked: Whether every network is also attacked, see `attacking.attack_digit`.
    """
    requested = requested_digits(settings)
    for name in names:
        if name == ORIGINAL:
            network = original
        elif name in (REFERENCE, RETRAINED_AGAIN):
            on_step = start_phase(f"{name}: training")
            network = train_digits(settings, scene, settings.digit, on_step, again=name == RETRAINED_AGAIN)
        elif name in CONCEPT_METHODS:
            on_step = start_phase(f"{name}: unlearning")
            network = unlearn_by_method(settings, scene, original.params, name, on_step=on_step)
        else:
            on_step = start_phase(f"{name}: unlearning")
            network = unlearn_digit(settings, scene, original.params, VARIANTS[name], on_step=on_step)
        start_phase(f"{name}: drawing", steps=False)
        images = draw_digits(settings, scene, network.params, requested)
        start_phase(f"{name}: judging", steps=False)
        numbers = measure_network(settings, scene, name, network, images)
        if attacked:
            start_phase(f"{name}: attack", steps=False)
            numbers = dataclasses.replace(numbers, attacked=attack_digit(settings, scene, network.params))
        yield numbers, images
