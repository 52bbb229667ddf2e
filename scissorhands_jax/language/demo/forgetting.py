"""The methods by which the demonstration's original forgets people."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Method, ModelState, Params
from scissorhands_jax.errors import check_choice
from scissorhands_jax.language.demo.scene import FactsScene, mean_loss
from scissorhands_jax.language.demo.settings import GRADIENT_DIFFERENCE, NPO, SCISSORHANDS, UNLEARNED, FactsSettings
from scissorhands_jax.language.methods import gradient_difference, npo
from scissorhands_jax.language.token_losses import token_loss
from scissorhands_jax.methods.scissorhands import scissorhands
from scissorhands_jax.training.loop import OnStep, Result, run

_TRIMMED = r"block\d+/.*kernel"  # the weights of attention and perceptrons


class Forgotten(NamedTuple):
    """A network that forgot, and what that took."""

    params: Params
    model_state: ModelState
    steps: int
    seconds: float
    """Without compilation."""


def forget_people(
    settings: FactsSettings,
    scene: FactsScene,
    original: tuple[Params, ModelState],
    name: str,
    on_step: OnStep | None = None,
) -> Forgotten:
    """Makes the original forget.

    Args:
      settings: How.
      scene: The network and the facts.
      original: Its weights and state.
      name: One of `settings.UNLEARNED`.
      on_step: Shows progress.
    """
    check_choice("method", name, UNLEARNED)
    chosen, data = settings.unlearning, scene.data
    rates = {
        SCISSORHANDS: chosen.scissorhands_rate,
        NPO: chosen.npo_rate,
        GRADIENT_DIFFERENCE: chosen.gradient_difference_rate,
    }
    passed = data.retain if name == SCISSORHANDS else data.forget
    in_epoch = math.ceil(data_lib.size(passed) / chosen.batch_size)
    epochs = max(1, round(chosen.steps / in_epoch))
    optimizer = optax.adam(optax.linear_schedule(rates[name], 0.0, epochs * in_epoch))
    method = _method(settings, scene, original, name, optimizer)
    key = jax.random.fold_in(jax.random.key(settings.seed), 1000 + UNLEARNED.index(name))
    result: Result = run(method, key, *original, data, num_epochs=epochs, on_step=on_step)
    return Forgotten(result.params, result.model_state, result.steps, result.seconds)


def _method(
    settings: FactsSettings,
    scene: FactsScene,
    original: tuple[Params, ModelState],
    name: str,
    optimizer: optax.GradientTransformation,
) -> Method:
    chosen = settings.unlearning
    if name == NPO:
        return npo(scene.model, optimizer, batch_size=chosen.batch_size)
    if name == GRADIENT_DIFFERENCE:
        return gradient_difference(scene.model, optimizer, batch_size=chosen.batch_size)
    return scissorhands(
        token_loss(scene.model),
        optimizer,
        fraction=chosen.fraction,
        forget_weight=chosen.forget_weight,
        trim=_TRIMMED,
        ceiling=mean_loss(scene, *original, scene.rows(scene.held_out)),
        batch_size=chosen.batch_size,
        forget_batch_size=min(chosen.batch_size, len(scene.forget)),
    )
