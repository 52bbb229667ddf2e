"""Attacking a network of the digits' demonstration: is there any text that makes it draw the forgotten digit again?"""

from __future__ import annotations

import jax
import numpy as np

from scissorhands_jax.base import Params, PyTree
from scissorhands_jax.diffusion.attacks import AttackSettings, attack
from scissorhands_jax.diffusion.demo import training
from scissorhands_jax.diffusion.demo.drawing import draw_digits
from scissorhands_jax.diffusion.demo.judging import DigitShare, digit_share, judge_digits
from scissorhands_jax.diffusion.demo.scene import Scene, digit_examples
from scissorhands_jax.diffusion.demo.settings import DIGITS_SCHEDULE, DigitsSettings
from scissorhands_jax.diffusion.losses import noise_loss

DIGITS_ATTACK = AttackSettings(
    kind="embedding", tokens=1, steps=300, rounds=1, batch_size=64, learning_rate=0.05, weight_decay=0.0
)
"""Concept inversion of one vector, which is the whole text of a digit."""


def attack_digit(
    settings: DigitsSettings, scene: Scene, params: Params, *, attacking: AttackSettings = DIGITS_ATTACK
) -> DigitShare:
    """The drawings that the judge takes for the forgotten digit, with the text that an attack found.

    The attack begins at the forgotten text and looks for a vector with which the network denoises the training images
    of the digit best (`attacks.attack`). As many drawings are made with it as of the forgotten digit elsewhere.

    Args:
      settings: The digit, and what is drawn.
      scene: Data, texts and the judge.
      params: The network.
      attacking: How the vector is looked for.
    """
    digit = settings.digit
    forget = {"latents": digit_examples(scene, digit).forget["latents"]}
    loss_fn = noise_loss(training.digits_network(settings.network), DIGITS_SCHEDULE)
    key = jax.random.fold_in(scene.keys["losses"], digit)
    found = attack(loss_fn, params, forget, _own_text, scene.texts[digit], key, settings=attacking)
    texts = np.array(scene.texts)
    texts[digit] = found.rows
    images = draw_digits(settings, scene._replace(texts=texts), params, np.full(settings.sampling.forgotten, digit))
    return digit_share(int(np.sum(judge_digits(scene, images) == digit)), len(images))


def _own_text(fixed: PyTree, rows: jax.Array) -> jax.Array:
    """A text of the digits is its one vector."""
    del fixed
    return rows
