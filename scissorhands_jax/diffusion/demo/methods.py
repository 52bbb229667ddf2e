"""The other methods of `sd unlearn` on the digits' network, for a table beside Scissorhands.

Each takes about as many steps as Scissorhands does there, at the rate that its optimizer begins with there. The digit
after the forgotten one takes its place where a method asks for that. Nothing was tuned, but MUNBa's rate was lowered.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from scissorhands_jax.base import Data
from scissorhands_jax.diffusion.concept_methods import CONCEPT_METHODS, ConceptTraining
from scissorhands_jax.diffusion.demo.scene import Scene, digit_examples
from scissorhands_jax.diffusion.demo.settings import NUM_DIGITS, DigitsSettings

_EMPTY_EVERY = 10  # Every tenth retain example has the empty text, as in training, so that guidance stays what it is.


def digit_method(name: str, settings: DigitsSettings) -> ConceptTraining:
    """The settings of a method of CONCEPT_METHODS for the digits' network.

    Args:
      name: The name of the method.
      settings: The settings of Scissorhands there, whose batches, epochs and rate are taken.
    """
    chosen = settings.unlearning
    changes: dict[str, object] = {
        "epochs": chosen.epochs,
        "batch_size": chosen.batch_size,
        "learning_rate": chosen.learning_rate,
    }
    own: dict[str, dict[str, object]] = {
        "esd": {"epochs": 1, "steps_per_epoch": 100, "sample_steps": settings.sampling.steps, "guidance": 2.0},
        "uce": {"ridge": 0.1},
        "selective_amnesia": {"penalty": 1.0, "fisher_batches": 50},
        "gradient_ascent": {"epochs": 1},
        "munba": {"learning_rate": chosen.learning_rate / 10},  # its direction does not shrink as the losses do
        "neggrad_plus": {"forget_weight": chosen.forget_weight},
    }
    if name in ("salun", "munba", "erase_diff"):
        changes["pseudo"] = "the next digit"
    method = CONCEPT_METHODS[name]
    read = {setting: value for setting, value in changes.items() if setting not in method.unused}
    return dataclasses.replace(method, **{**read, **own.get(name, {})})  # type: ignore[arg-type]


def method_examples(name: str, scene: Scene, digit: int) -> Data:
    """The digits as a method of CONCEPT_METHODS reads them.

    Args:
      name: The name of the method.
      scene: Data and texts.
      digit: The digit that is forgotten.
    """
    replacement = (digit + 1) % NUM_DIGITS
    data = digit_examples(scene, digit, replacement)
    context = np.array(data.retain["context"])
    context[::_EMPTY_EVERY] = scene.texts[NUM_DIGITS]
    retain = {**data.retain, "context": context}
    forget = {**data.forget, "empty": np.broadcast_to(scene.texts[NUM_DIGITS], data.forget["context"].shape)}
    if name == "selective_amnesia":  # its forget examples show what takes the digit's place
        shown = digit_examples(scene, replacement).forget["latents"]
        forget = {"latents": shown, "context": np.broadcast_to(scene.texts[digit], (len(shown), *scene.texts[0].shape))}
    elif name not in ("esd", "uce", "salun", "munba", "erase_diff"):
        forget = {part: forget[part] for part in ("latents", "context")}
    return Data(forget, retain)
