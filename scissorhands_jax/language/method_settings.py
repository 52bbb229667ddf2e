"""The methods of `scissorhands lm unlearn` by name, each with its settings: its own options and those of AdamW."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from typing import Any

import optax

from scissorhands_jax import microbatches, optimizers, trees
from scissorhands_jax.base import Method, Model
from scissorhands_jax.errors import InputError, suggest
from scissorhands_jax.language.decoder import Sizes, hidden_after
from scissorhands_jax.language.methods import LANGUAGE_METHODS
from scissorhands_jax.language.model_folders import outline_of
from scissorhands_jax.language.token_losses import token_loss
from scissorhands_jax.methods import METHODS
from scissorhands_jax.methods.munba import ForgetLoss, MunbaSettings
from scissorhands_jax.methods.scissorhands import ScissorhandsOptions
from scissorhands_jax.methods.semantics import resolve_semantics
from scissorhands_jax.methods.settings import HELD_OUT, MeasuredNumber, MethodSettings, ScheduleName, TrainingSettings
from scissorhands_jax.methods.trimming import trimming_leaves

_OF_ANY_LOSS = (
    *("scissorhands", "finetune", "gradient_ascent", "neggrad_plus", "l1_sparse"),
    *("munba", "ssd", "scrub", "bad_teacher"),
)
"""The methods of `scissorhands_jax.methods` that make sense over tokens."""
_NOT_WITH_LORA = {
    "scissorhands": "it trims weights by their saliency, and that of LoRA's matrices is zero at first",
    "ssd": "it dampens weights by their importance, and that of LoRA's matrices is zero at first",
    "scrub": "its teacher would be a second copy of the network",
    "bad_teacher": "its teachers would be copies of the network",
    "task_vector": "it negates a change of weights, which is a product of LoRA's matrices and not their change",
    "l1_sparse": "it makes weights small, and those of LoRA's matrices are not the network's",
}
_TRIMMED = r"model/layers/.*kernel"  # the matrices of attention and perceptrons


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenTrainingSettings(TrainingSettings):
    """Settings of AdamW over epochs, with the values that TOFU publishes."""

    epochs: int = 10
    batch_size: int = 32
    """The number of rows that a step sees of each set that it reads. A row holds several packed examples where they
    fit."""
    learning_rate: float = 1e-5
    """The learning rate of AdamW at its highest."""
    momentum: float = 0.9
    """beta_1 of AdamW."""
    weight_decay: float = 0.01
    """The weight decay of AdamW, of all weights."""
    schedule: ScheduleName = "triangle"
    warmup: float = 0.1

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with these settings, whose state holds a schedule that `scheduled` sets."""
        return optimizers.adamw(self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AscentMunbaSettings(MunbaSettings):
    """MUNBa with a forget loss that needs no labels."""

    forget_loss: ForgetLoss = "ascent"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """What steering activations needs to know of the network."""

    layer: int | None = None
    """The layer whose activations are steered, counted from 0; only it and the two before it are trained, in their
    down-projections, unless `trained` says otherwise. None is layer 7, or the middle of a network with less than 16."""


def token_methods() -> list[str]:
    """The names of the methods of `lm unlearn`."""
    return [*LANGUAGE_METHODS, *_OF_ANY_LOSS]


@functools.cache
def token_settings(name: str) -> type[MethodSettings]:
    """The class of the settings of a method over tokens.

    Args:
      name: One of `token_methods`.

    Raises:
      InputError: There is no such method.
    """
    if name not in token_methods():
        raise InputError(f"there is no method {name!r} for language models; {suggest(name, token_methods())}")
    if name in LANGUAGE_METHODS:
        bases = [TokenTrainingSettings, _options_of(name), *([LayerOptions] if name == "rmu" else [])]
    elif issubclass(METHODS[name], TrainingSettings):
        bases = [TokenTrainingSettings, AscentMunbaSettings if name == "munba" else METHODS[name]]
    else:
        return METHODS[name]
    made = type(f"{name}_settings".title().replace("_", ""), tuple(bases), {"__doc__": f"The settings of {name}."})
    return dataclasses.dataclass(frozen=True, kw_only=True)(made)


def build_method(name: str, settings: Any, sizes: Sizes, model: Model, *, ceiling: float | None, lora: bool) -> Method:
    """The method with its settings.

    Args:
      name: One of `token_methods`.
      settings: An instance of `token_settings(name)`.
      sizes: The network.
      model: The network as a `Model`, with LoRA or without.
      ceiling: The mean loss of answers that the network never saw, which ends Scissorhands' forgetting; None if nobody
        said it.
      lora: Whether `model` has LoRA.

    Raises:
      InputError: A setting is out of its range or cannot be used, or a pattern matches nothing of the network.
    """
    if lora and name in _NOT_WITH_LORA:
        raise InputError(f"{name} cannot be used with --lora: {_NOT_WITH_LORA[name]}; leave --lora out")
    if name in LANGUAGE_METHODS:
        return _language_method(name, settings, sizes, model, lora)
    if getattr(settings, "ceiling", None) in ("uniform", HELD_OUT):
        if ceiling is None:
            raise InputError(
                f"{name} drives the loss of what is to be forgotten up to that of answers which the network never saw; "
                "name a file of such answers with --held-out, or give the loss as ceiling=NUMBER or ceiling=off"
            )
        settings = dataclasses.replace(settings, ceiling=MeasuredNumber(ceiling))
    if getattr(settings, "trim", "") is None:
        settings = dataclasses.replace(settings, trim=_TRIMMED)
    if isinstance(settings, ScissorhandsOptions):
        outline = outline_of(sizes)
        semantics = resolve_semantics(settings.mode, settings.departures)
        trimming_leaves(outline, rank=settings.rank, trim=settings.trim, semantics=semantics)
        trees.select(outline, settings.project)
    return settings.build(model, token_loss(model), num_classes=0)


def _language_method(name: str, settings: Any, sizes: Sizes, model: Model, lora: bool) -> Method:
    kind = _options_of(name)
    options = settings.values(kind)
    if "microbatches" in options:
        microbatches.check_microbatches([settings.batch_size], settings.microbatches)
    elif settings.microbatches != 1:
        raise InputError(f"{name} computes its batches whole; leave microbatches out")
    made_for: Any = model
    if name == "rmu":
        if lora:
            raise InputError("rmu cannot be used with --lora: it trains the matrices of three layers; leave --lora out")
        layer = min(7, sizes.layers // 2) if settings.layer is None else settings.layer
        if not 0 <= layer < sizes.layers:
            raise InputError(f"layer must be from 0 to {sizes.layers - 1} for this network, got {layer}")
        made_for = hidden_after(sizes, layer)
        if options["trained"] is None:
            layers = "|".join(str(near) for near in range(max(0, layer - 2), layer + 1))
            options["trained"] = rf"model/layers/({layers})/mlp/down_proj/kernel"
        trees.select(outline_of(sizes), options["trained"])
    factory: Any = LANGUAGE_METHODS[name]
    return settings.scheduled(factory(made_for, settings.optimizer(), **options))


def _options_of(name: str) -> type:
    """The dataclass of the keyword arguments of a method for language models."""
    factory: Any = LANGUAGE_METHODS[name]
    return typing.get_type_hints(inspect.unwrap(factory))["options"]
