"""Retraining from scratch without the forget set: the gold standard, and how original networks are trained here.

Two recipes. `paper` is the authors': SGD whose rate drops twice. `fast` is made of what the CIFAR-10 speed records have
in common (hlb-CIFAR10; airbench: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, arXiv 2404.00498):
label smoothing, Nesterov's momentum, a rate that rises and falls in straight lines, a decay that does not depend on it,
faster biases of the normalisation, small translations, alternating flips, few epochs. Their network is `resnet9`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import augmentation, losses, optimizers
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Key, Method, Model, ModelState, Params, StatefulLossFn
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods._gradient import descend, retain_batches
from scissorhands_jax.methods.settings import Gradient, TrainingSettings
from scissorhands_jax.models.whitening import fit_whitening

Recipe = Literal["paper", "fast"]
Flips = Literal["random", "alternating"]


def retrain(
    model: Model,
    loss_fn: StatefulLossFn,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int = 256,
    flips: Flips = "random",
) -> Method:
    """Draws a fresh network and minimises the mean retain loss; reads nothing of the given one.

    The authors' setting for CIFAR-10: 160 epochs, `sgd(0.1)` dropped tenfold at epochs 91 and 136, batch 256. A network
    with a whitening layer (`models.whitening`) has it fitted to the retain set first.

    Args:
      flips: `alternating` mirrors images {"image": (N, H, W, C)} by `data.alternating_flips` before `loss_fn` sees
        them; `random` leaves flips to the loss.
    """

    def start(key: Key, params: Params, model_state: ModelState, data: Data) -> tuple[Params, ModelState]:
        del params, model_state
        params, model_state = model.init(key)
        return params, fit_whitening(model_state, data.retain)

    def steps_in_epoch(key: Key, params: Params, model_state: ModelState, data: Data) -> jax.Array:
        return jnp.asarray(-(-data_lib.size(data.retain) // batch_size), jnp.int32)

    def objective(params, carry, batch, key):
        examples = batch.retain
        if flips == "alternating":
            mirrored = augmentation.alternating_flips(examples["image"], carry.step // carry.aux)
            examples = {**examples, "image": augmentation.flip(examples["image"], mirrored)}
        loss, model_state = loss_fn(params, carry.model_state, examples, train=True, key=key)
        return loss, (model_state, {"loss_retain": loss})

    return descend(
        objective,
        optimizer,
        batches=retain_batches(batch_size),
        reads=("retain",),
        start=start,
        aux=steps_in_epoch if flips == "alternating" else None,
    )


RECIPES: dict[Recipe, dict[str, Any]] = {
    "paper": {
        "epochs": 160,
        "batch_size": 256,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "milestones": (91, 136),
        "schedule_shape": "drops",
        "decoupled": False,
        "label_smoothing": 0.0,
        "norm_bias_scale": 1.0,
        "flips": "random",
    },
    "fast": {
        "epochs": 10,
        "batch_size": 512,
        "learning_rate": 11.5,
        "momentum": 0.85,
        "weight_decay": 0.0153,
        "milestones": (),
        "schedule_shape": "triangle",
        "decoupled": True,
        "label_smoothing": 0.2,
        "norm_bias_scale": 64.0,
        "flips": "alternating",
    },
}
_OF_RECIPE: Any = None  # Stands for the recipe's value until `__post_init__` puts it there.


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainSettings(TrainingSettings):
    """The values of `recipe`, `paper` being the authors' for CIFAR-10, and what is set otherwise.

    Raises:
      InputError: a choice is unknown.
    """

    recipe: Recipe = "paper"
    epochs: int = _OF_RECIPE
    batch_size: int = _OF_RECIPE
    learning_rate: float = _OF_RECIPE
    """The largest; where `decoupled`, per 1,024 examples (`optimizers.per_kilo_example`)."""
    momentum: float = _OF_RECIPE
    weight_decay: float = _OF_RECIPE
    milestones: tuple[int, ...] = _OF_RECIPE
    """For `drops`."""
    schedule_shape: Literal["drops", "triangle"] = _OF_RECIPE
    """`drops` follows the milestones; `triangle` is `optimizers.triangle`, with `warmup`, over all epochs."""
    warmup: float = 0.23
    decoupled: bool = _OF_RECIPE
    """Nesterov's momentum, and a decay and a momentum that leave the size of the steps alone."""
    label_smoothing: float = _OF_RECIPE
    norm_bias_scale: float = _OF_RECIPE
    """How many times as fast the biases of the normalisation layers learn."""
    flips: Flips = _OF_RECIPE
    """`alternating` replaces what a loss that augments does to images, by crops out of `translate` mirrored pixels on
    each side and `data.alternating_flips`. A loss that does not augment stays as it is."""
    translate: int = 2
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise InputError(f"there is no recipe {self.recipe!r}; choose one of {', '.join(RECIPES)}")
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, choices in (("schedule_shape", ("drops", "triangle")), ("flips", get_args(Flips))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")

    def changed(self, **changes: Any) -> RetrainSettings:
        """A copy with other values; another recipe brings its own for all that was as the old recipe has it."""
        if changes.get("recipe", self.recipe) != self.recipe:
            kept = RECIPES[self.recipe]
            changes = {name: None for name, value in kept.items() if getattr(self, name) == value} | changes
        return dataclasses.replace(self, **changes)

    def optimizer(self) -> optax.GradientTransformation:
        """SGD with these settings."""
        rate, decay = self.learning_rate, self.weight_decay
        if self.decoupled:
            rate, decay = optimizers.per_kilo_example(
                rate, momentum=self.momentum, weight_decay=decay, batch_size=self.batch_size
            )
        return optimizers.sgd(
            rate,
            momentum=self.momentum,
            weight_decay=decay,
            nesterov=self.decoupled,
            norm_bias_scale=self.norm_bias_scale,
            scheduled=self.schedule_shape == "triangle" or bool(self.milestones),
        )

    def schedule(self, lengths: Sequence[int]) -> optimizers.Schedule:
        """As `TrainingSettings.schedule`, or the triangle."""
        if self.schedule_shape == "drops":
            return super().schedule(lengths)
        return optimizers.triangle(sum(lengths[: self.epochs]), warmup=self.warmup)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The configured method."""
        del num_classes
        flips: Flips = "random"
        if self.flips == "alternating" and losses.augmentation_of(loss_fn) is not None:
            flips = "alternating"
            shift = functools.partial(augmentation.crop, padding=self.translate, mode="reflect")
            loss_fn = losses.altered(loss_fn, augment=shift)
        if self.label_smoothing:
            loss_fn = losses.altered(loss_fn, label_smoothing=self.label_smoothing)
        return self.scheduled(
            retrain(model, self.microbatched(loss_fn), self.optimizer(), batch_size=self.batch_size, flips=flips)
        )
