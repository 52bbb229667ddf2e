"""Training the networks of the digits' demonstration, and unlearning with them.

The network is a small version of Stable Diffusion's UNet. Losses, schedules, `scissorhands` and `run` are those of
Stable Diffusion and of classifiers.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import (
    Carry,
    Data,
    Key,
    Method,
    Model,
    ModelState,
    Params,
    PyTree,
    Scalar,
    StatefulLossFn,
)
from scissorhands_jax.diffusion import ceilings, networks
from scissorhands_jax.diffusion.demo.methods import digit_method, method_examples
from scissorhands_jax.diffusion.demo.scene import Scene, digit_examples
from scissorhands_jax.diffusion.demo.settings import (
    DIGITS_SCHEDULE,
    NUM_DIGITS,
    VARIANTS,
    WHOLE_METHOD,
    DigitsSettings,
    DigitsTraining,
    DigitsUnlearning,
    Variant,
)
from scissorhands_jax.diffusion.losses import concept_loss, noise_loss
from scissorhands_jax.diffusion.unet import UNetConfig
from scissorhands_jax.methods import retrain, scissorhands
from scissorhands_jax.report import ORIGINAL, REFERENCE
from scissorhands_jax.training import loop as training


@dataclasses.dataclass(frozen=True)
class TrainingCost:
    """What a network has cost."""

    seconds: float
    """The seconds of the steps, without compilation."""
    compile_seconds: float
    steps: int


@dataclasses.dataclass(frozen=True)
class DrawingNetwork:
    """A network that draws, what it cost, and what its last losses were."""

    params: Params
    cost: TrainingCost
    losses: dict[str, float]
    """Means over the last epoch, by the name of the metric."""
    ceiling: float | None = None
    """The forget loss up to which forgotten digits were driven; None where there was no ceiling."""


@dataclasses.dataclass(frozen=True)
class TextDropping:
    """A loss that replaces some texts of a batch by the empty one, except where the batch names a replacement."""

    loss_fn: StatefulLossFn
    """The loss itself."""
    share: float
    """The share of the texts that is replaced."""

    def __call__(
        self, params: Params, model_state: ModelState, batch: PyTree, *, train: bool, key: Key | None
    ) -> tuple[Scalar, ModelState]:
        if key is not None and "pseudo" not in batch:
            key, drop_key = jax.random.split(key)
            kept = jax.random.bernoulli(drop_key, 1 - self.share, (batch["context"].shape[0], 1, 1))
            batch = {**batch, "context": batch["context"] * kept}
        return self.loss_fn(params, model_state, batch, train=train, key=key)


@functools.cache
def digits_network(config: UNetConfig) -> Model:
    """The UNet, whose `init` is compiled as a whole and with little optimization, because it runs a few times only."""
    model = networks.unet(config)
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return Model(jax.jit(model.init, compiler_options=quickly), model.apply)


def train_digits(
    settings: DigitsSettings,
    scene: Scene,
    digit: int | None,
    on_step: training.OnStep | None = None,
    *,
    again: bool = False,
) -> DrawingNetwork:
    """Trains a network from scratch, either on all digits or on all but one. Both take the same number of steps.

    Args:
      settings: How it is trained.
      scene: Data, texts and keys.
      digit: The digit that it never sees; None trains on all digits.
      on_step: Called after every step.
      again: Whether this is a second retrained network, with other weights to begin with and another order of examples.
    """
    data = digit_examples(scene, digit)
    batch_size = settings.training.batch_size
    steps = settings.training.epochs * -(-len(scene.train["label"]) // batch_size)
    epochs = max(1, round(steps / -(-data_lib.size(data.retain) // batch_size)))
    method = _training_method(settings.network, settings.training, steps)
    key = (
        scene.keys[ORIGINAL] if digit is None else jax.random.fold_in(scene.keys[REFERENCE], digit + again * NUM_DIGITS)
    )
    return _run(method, key, {}, data, epochs, on_step)


def unlearn_digit(
    settings: DigitsSettings,
    scene: Scene,
    original: Params,
    variant: Variant = VARIANTS[WHOLE_METHOD],
    *,
    on_step: training.OnStep | None = None,
) -> DrawingNetwork:
    """Makes the original forget `settings.digit` by Scissorhands.

    Args:
      settings: The settings of the method.
      scene: Data, texts and keys.
      original: The original network, which stays as it is.
      variant: Which parts of the method are used.
      on_step: Called after every step.
    """
    chosen = settings.unlearning
    replacement = settings.replacement if variant.replaced else None
    data = digit_examples(scene, settings.digit, replacement, chosen.anchor if variant.anchored else 0.0)
    steps = chosen.epochs * -(-data_lib.size(data.retain) // chosen.batch_size)
    key = jax.random.fold_in(scene.keys[WHOLE_METHOD], settings.digit)
    ceiling = _ceiling(settings, scene, original) if variant.anchored else None
    method = _unlearning_method(
        settings.network, settings.training.dropped, dataclasses.replace(chosen, ceiling=None), steps, variant
    )
    method = _with_ceiling(method, ceiling)
    network = _run(method if variant.trimmed else _untrimmed(method), key, original, data, chosen.epochs, on_step)
    return dataclasses.replace(network, ceiling=ceiling)


def unlearn_by_method(
    settings: DigitsSettings, scene: Scene, original: Params, name: str, *, on_step: training.OnStep | None = None
) -> DrawingNetwork:
    """Makes the original forget `settings.digit` by another method than Scissorhands.

    Args:
      settings: The settings that `methods.digit_method` begins with.
      scene: Data, texts and keys.
      original: The original network, which stays as it is.
      name: The name of the method in CONCEPT_METHODS.
      on_step: Called after every step.
    """
    chosen = digit_method(name, settings)
    method = chosen.method(digits_network(settings.network), DIGITS_SCHEDULE)
    key = jax.random.fold_in(scene.keys[WHOLE_METHOD], settings.digit)
    return _run(method, key, original, method_examples(name, scene, settings.digit), chosen.epochs, on_step)


# The three below return one value for equal settings, so that networks of one size share compiled code.
@functools.cache
def _adam(learning_rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(learning_rate, steps))


@functools.cache
def _training_method(config: UNetConfig, settings: DigitsTraining, steps: int) -> Method:
    loss_fn = TextDropping(noise_loss(digits_network(config), DIGITS_SCHEDULE), settings.dropped)
    optimizer = _adam(settings.learning_rate, steps)
    return retrain(digits_network(config), loss_fn, optimizer, batch_size=settings.batch_size)


@functools.cache
def _unlearning_method(
    config: UNetConfig, dropped: float, settings: DigitsUnlearning, steps: int, variant: Variant
) -> Method:
    return scissorhands(
        TextDropping(concept_loss(digits_network(config), DIGITS_SCHEDULE), dropped),
        _adam(settings.learning_rate, steps),
        fraction=settings.fraction,
        forget_weight=settings.published_weight if variant.replaced else settings.forget_weight,
        trim=settings.trim,
        projected=variant.projected,
        batch_size=settings.batch_size,
        forget_batch_size=settings.forget_batch_size,
        saliency_loss_fn=noise_loss(digits_network(config), DIGITS_SCHEDULE),
        ceiling=math.inf,
        departures={"saliency_train": True},
    )


def _ceiling(settings: DigitsSettings, scene: Scene, original: Params) -> float:
    """The ceiling of the settings, or the one that follows from the data."""
    if settings.unlearning.ceiling is not None:
        return settings.unlearning.ceiling
    loss_fn, data = noise_loss(digits_network(settings.network), DIGITS_SCHEDULE), digit_examples(scene, settings.digit)
    return ceilings.other_prompts_ceiling(loss_fn, original, {}, data, scene.keys[WHOLE_METHOD])


def _with_ceiling(method: Method, ceiling: float | None) -> Method:
    """The same method, whose steps share compiled code, with a ceiling of its own."""
    if ceiling is None:
        return method

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        carry = method.init(key, params, model_state, data)
        return carry._replace(aux=carry.aux._replace(ceiling=jnp.float32(ceiling)))

    return method._replace(init=init)


def _untrimmed(method: Method) -> Method:
    """The same method without the re-initialisation: its steps start from the weights of the original."""

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        return method.init(key, params, model_state, data)._replace(params=params)

    return method._replace(init=init)


def _run(
    method: Method, key: Key, params: Params, data: Data, epochs: int, on_step: training.OnStep | None
) -> DrawingNetwork:
    last: list[dict[str, float]] = []

    def watch(step: training.Progress) -> None:
        if step.epoch == epochs - 1:
            last.append({name: float(value) for name, value in step.metrics.items() if name.startswith("loss_")})
        if on_step is not None:
            on_step(step)

    result = training.run(method, key, params, {}, data, num_epochs=epochs, on_step=watch)
    means = {name: float(np.mean([row[name] for row in last])) for name in (last[0] if last else ())}
    return DrawingNetwork(result.params, TrainingCost(result.seconds, result.compile_seconds, result.steps), means)
