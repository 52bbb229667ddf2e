"""Retraining from scratch without the forget set: the gold standard, and how original networks are trained here.

There are two recipes. `paper` is the authors': SGD whose rate drops twice. `fast` is made of what the CIFAR-10 speed
records have in common (hlb-CIFAR10; airbench: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, arXiv
2404.00498): few epochs, label smoothing, Nesterov's momentum, a rate that rises and falls in straight lines, a decay
that does not depend on the rate, faster biases of the normalisation layers, small translations, and alternating flips.
All of it is in this module; the network of the records is `models.resnet9`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from scissorhands_jax import augmentation, losses, optimizers, trees
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Key, Method, Model, ModelState, Params, Selection, StatefulLossFn
from scissorhands_jax.errors import InputError, check_choice, check_not_negative
from scissorhands_jax.keywords import takes
from scissorhands_jax.methods._gradient import descend, drawn_afresh, retain_batches
from scissorhands_jax.methods.settings import Gradient, ScheduleName, TrainingSettings

Recipe = Literal["paper", "fast"]
Flips = Literal["random", "alternating"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainOptions:
    """The keyword arguments of `retrain`."""

    batch_size: int = 256
    """The number of retain examples that a step sees."""
    flips: Flips = "random"
    """"random" leaves flips to the augmentation of the loss. "alternating" mirrors images {"image": (N, H, W, C)} by
    `alternating_flips` before the loss sees them; a configured training then also replaces the augmentation of a loss
    that has one by random crops out of `translate` mirrored pixels on each side, and does not flip without one."""


@takes(RetrainOptions)
def retrain(
    model: Model, loss_fn: StatefulLossFn, optimizer: optax.GradientTransformation, options: RetrainOptions
) -> Method:
    """Draws a fresh network and minimises the mean retain loss; nothing of the given network is read.

    The authors' setting for CIFAR-10 is 160 epochs of `sgd(0.1)`, dropped tenfold at epochs 91 and 136, with batches of
    256. A network with a whitening layer (`models.resnet9`) has it fitted to the retain set first.

    Args:
      model: The network, which draws the fresh weights.
      loss_fn: The general form of the loss, a mean over a batch.
      optimizer: The optimizer, such as `optimizers.sgd`.

    Raises:
      InputError: A setting is out of its range, or (from `init`) there are no images for alternating flips.
    """
    check_choice("flips", options.flips, get_args(Flips))

    def start(key: Key, params: Params, model_state: ModelState, data: Data) -> tuple[Params, ModelState]:
        del params, model_state
        return drawn_afresh(model, key, data)

    def steps_in_epoch(key: Key, params: Params, model_state: ModelState, data: Data) -> jax.Array:
        images = data.retain["image"] if isinstance(data.retain, Mapping) and "image" in data.retain else None
        if images is None or jnp.ndim(images) != 4:
            found = "none" if images is None else f"an array of shape {jnp.shape(images)}"
            raise InputError(
                f"alternating flips mirror an array 'image' of shape (N, H, W, C), and the retain set has {found}; "
                'take flips="random", which leaves flips to the loss'
            )
        return jnp.asarray(-(-data_lib.size(data.retain) // options.batch_size), jnp.int32)

    def objective(params, carry, batch, key):
        examples = batch.retain
        if options.flips == "alternating":
            mirrored = alternating_flips(examples["image"], carry.step // carry.aux)
            examples = {**examples, "image": augmentation.flip(examples["image"], mirrored)}
        loss, model_state = loss_fn(params, carry.model_state, examples, train=True, key=key)
        return loss, (model_state, {"loss_retain": loss})

    return descend(
        objective,
        optimizer,
        batches=retain_batches(options.batch_size),
        reads=("retain",),
        start=start,
        aux=steps_in_epoch if options.flips == "alternating" else None,
    )


def alternating_flips(images: jax.Array, epoch: jax.Array) -> jax.Array:
    """Which images are mirrored in an epoch: each in every other one, about half in the first (Jordan, 2024).

    Two epochs in a row show every image both ways, which random flips do for half of the images only. Which way an
    image begins is a hash of its own pixels, so it needs neither a key nor the position of the image.

    Args:
      images: The images, integers or floats. shape=(N, H, W, C)
      epoch: The epoch, counted from 0. shape=()

    Returns:
      True for the images to be mirrored. bool, shape=(N,)
    """
    words = jax.lax.bitcast_convert_type(images, jnp.dtype(f"uint{8 * images.dtype.itemsize}"))
    # A sum does not depend on the order of the pixels in memory; the multiplier (2^32 / golden ratio) makes its highest
    # bit depend on all of them.
    sums = jnp.sum(words, axis=(1, 2, 3), dtype=jnp.uint32)
    first = (sums * jnp.uint32(2654435769)) >> 31
    return ((first + jnp.asarray(epoch, jnp.uint32)) & 1).astype(bool)


def per_kilo_example(
    learning_rate: float, *, momentum: float, weight_decay: float, batch_size: int
) -> tuple[float, float]:
    """The learning rate and the weight decay for `optimizers.sgd` of settings that are independent of one another.

    In the units of the arguments (Jordan, 2024) the size of the steps depends on the learning rate alone, and how fast
    weights decay on the decay alone; neither depends on the batch size, and both a little on the momentum m:

      rate = learning_rate * batch_size / 1024 / (1 + 1 / (1 - m)),  decay = weight_decay / learning_rate.

    With Nesterov's momentum a constant gradient moves weights by 1 / (1 - m) times the rate, so 1,024 examples move
    them by 1 / (2 - m) of the learning rate, 0.87 at 0.85.

    Args:
      learning_rate: The rate per 1,024 examples of the mean loss, above 0.
      momentum: Nesterov's momentum, at least 0 and below 1.
      weight_decay: About 2 - m times the share of each weight that 1,024 examples remove.
      batch_size: The number of examples of a step.

    Raises:
      InputError: The learning rate is not positive and finite, or the momentum not at least 0 and below 1.
    """
    if not 0 < learning_rate < math.inf or not 0 <= momentum < 1:
        raise InputError(f"learning_rate must be above 0 and momentum below 1, got {learning_rate} and {momentum}")
    rate = learning_rate * batch_size / 1024 / (1 + 1 / (1 - momentum))
    return rate, weight_decay / learning_rate


def scale_norm_biases(factor: float) -> optax.GradientTransformation:
    """Multiplies the gradients of the biases of normalisation layers: leaves `bias` of layers that have a `scale`.

    It belongs before the optimizer, which then adds the same weight decay to these biases as to all other weights.

    Raises:
      InputError: The factor is negative.
    """
    check_not_negative("norm_bias_scale", factor)

    def norm_biases(params: Params) -> Selection:
        names = trees.leaf_names(params)
        parts = [name.rpartition("/") for name in names]
        flags = [last == "bias" and f"{layer}{slash}scale" in names for layer, slash, last in parts]
        return jax.tree.unflatten(jax.tree.structure(params), flags)

    return optax.masked(optax.scale(factor), norm_biases)


RECIPES: dict[Recipe, dict[str, Any]] = {
    "paper": {
        "epochs": 160,
        "batch_size": 256,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "milestones": (91, 136),
        "schedule": "drops",
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
        "schedule": "triangle",
        "decoupled": True,
        "label_smoothing": 0.2,
        "norm_bias_scale": 64.0,
        "flips": "alternating",
    },
}
_OF_RECIPE: Any = None  # stands for the recipe's value until `__post_init__` puts it there


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainSettings(RetrainOptions, TrainingSettings):
    """The values of a recipe, except for those that are given.

    Raises:
      InputError: A choice is unknown.
    """

    recipe: Recipe = "paper"
    """The recipe that gives the values of all settings in `RECIPES`: "paper", the authors' for CIFAR-10, or "fast"."""
    epochs: int = _OF_RECIPE
    batch_size: int = _OF_RECIPE
    learning_rate: float = _OF_RECIPE
    """The largest learning rate; with `decoupled`, per 1,024 examples."""
    momentum: float = _OF_RECIPE
    weight_decay: float = _OF_RECIPE
    """The weight decay of SGD; with `decoupled`, about 2 - m times the share that 1,024 examples remove of a weight."""
    milestones: tuple[int, ...] = _OF_RECIPE
    schedule: ScheduleName = _OF_RECIPE
    decoupled: bool = _OF_RECIPE
    """Whether momentum is Nesterov's and learning rate and weight decay are in units that do not depend on one another
    (`per_kilo_example`)."""
    label_smoothing: float = _OF_RECIPE
    """The share of the target that is spread evenly over all classes in training, at least 0 and below 1."""
    norm_bias_scale: float = _OF_RECIPE
    """The factor of the gradients of the biases of normalisation layers."""
    flips: Flips = _OF_RECIPE
    translate: int = 2
    """The number of mirrored pixels on each side that images are cropped out of, with alternating flips."""
    gradients: ClassVar[tuple[Gradient, ...]] = ("retain",)

    def __post_init__(self) -> None:
        check_choice("recipe", self.recipe, RECIPES)
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_choice("flips", self.flips, get_args(Flips))
        check_not_negative("translate", self.translate, "; it is a number of pixels")
        super().__post_init__()

    def usual(self) -> RetrainSettings:
        """The settings of the recipe."""
        return RetrainSettings(recipe=self.recipe)

    def unread(self) -> dict[str, Any]:
        """As of every training; `translate` is for alternating flips."""
        found = super().unread()
        if self.flips != "alternating" and self.translate != self.usual().translate:
            found["translate"] = self.usual().translate
        return found

    def augmentation(self, padding: int) -> losses.Augment:
        """The random changes of images that are like those of this training, for methods that go on from its network.

        With alternating flips they are crops out of `translate` mirrored pixels on each side and random flips.

        Args:
          padding: The zero pixels on each side that images are cropped out of with random flips.
        """
        if self.flips == "random":
            return functools.partial(augmentation.crop_and_flip, padding=padding)
        return functools.partial(augmentation.crop_and_flip, padding=self.translate, mode="reflect")

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
            rate, decay = per_kilo_example(rate, momentum=self.momentum, weight_decay=decay, batch_size=self.batch_size)
        sgd = optimizers.sgd(
            rate,
            momentum=self.momentum,
            weight_decay=decay,
            nesterov=self.decoupled and self.momentum > 0,
            scheduled=True,
        )
        return sgd if self.norm_bias_scale == 1 else optax.chain(scale_norm_biases(self.norm_bias_scale), sgd)

    def build(self, model: Model, loss_fn: StatefulLossFn, num_classes: int) -> Method:
        """The method with these settings; see `MethodSettings.build`."""
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
