"""Networks by name, as `Model`s."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scissorhands_jax.base import Model
from scissorhands_jax.errors import InputError, suggest
from scissorhands_jax.models.adapters import TrainedModel, from_equinox, from_linen, from_nnx
from scissorhands_jax.models.mlp import MLP
from scissorhands_jax.models.resnet import IMAGENET_MEAN, IMAGENET_STD, ResNet, cifar_resnet
from scissorhands_jax.models.resnet9 import ResNet9
from scissorhands_jax.models.vgg import VGG

__all__ = ["MODELS", "TrainedModel", "build", "from_equinox", "from_linen", "from_nnx"]

# Each value makes a linen module from `num_classes` and options of its own.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": functools.partial(cifar_resnet, 8),
    "resnet20": functools.partial(cifar_resnet, 20),
    "resnet32": functools.partial(cifar_resnet, 32),
    "resnet44": functools.partial(cifar_resnet, 44),
    "resnet56": functools.partial(cifar_resnet, 56),
    "resnet110": functools.partial(cifar_resnet, 110),
    "resnet18": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2)),
    "resnet34": functools.partial(
        ResNet, stage_sizes=(3, 4, 6, 3), stem="imagenet", mean=IMAGENET_MEAN, std=IMAGENET_STD
    ),
    "resnet9": ResNet9,
    "vgg16_bn": VGG,
    "mlp": MLP,
}

_NOT_OPTIONS = ("num_classes", "parent", "name")  # arguments of every network's class

DTYPES = ("float32", "bfloat16")
"""The types that networks can compute in. Parameters, gradients, statistics and logits are float32 in any case."""

_CIFAR_UPPER, _RESNET_UPPER = "layer3|linear", "layer3|layer4|fc"
UPPER_LAYERS: dict[str, str] = {
    **dict.fromkeys(("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), _CIFAR_UPPER),
    **dict.fromkeys(("resnet18", "resnet34"), _RESNET_UPPER),
    "resnet9": "layer3|head",
    "vgg16_bn": r"features/(24|27|30|34|37|40)|classifier",
    "mlp": "layer2|head",
}
"""The layers that the command line trims or retrains by default, as patterns for `trees.select`.

They are `layer3|layer4|fc`, as in the authors' code, and the corresponding layers of the other networks.
"""

CAM_LAYERS: dict[str, str | None] = {
    **dict.fromkeys(("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), "layer3"),
    **dict.fromkeys(("resnet18", "resnet34"), "layer4"),
    "resnet9": "layer3",
    "vgg16_bn": "features",
    "mlp": None,
}
"""The last stage of convolutions, whose output Grad-CAM reads by default; `None` for a network without convolutions."""


def build(name: str, *, num_classes: int, image_shape: Sequence[int], **options) -> Model:
    """Builds a network of the registry.

    Args:
      name: A key of `MODELS`.
      num_classes: The number of classes, which is the length of the logits.
      image_shape: The shape of one example, (H, W, C). An `mlp` takes any shape, such as that of a feature vector.
      **options: Fields of the network's class (`ResNet`, `ResNet9`, `VGG` or `MLP`), such as `mean`, `std`,
        `normalize`, `hidden` or `dtype`, which is one of `DTYPES`. Lists become tuples.

    Raises:
      InputError: The name, an option or the dtype is unknown, `num_classes` or `image_shape` is not positive, the value
        of an option is not of the kind of its default, or the network takes images and `image_shape` is not that of
        one.

    Example:
      >>> model = build("mlp", num_classes=10, image_shape=(8, 8, 1), hidden=(32,))
      >>> params, model_state = model.init(jax.random.key(0))
      >>> logits, model_state = model.apply(params, model_state, jnp.zeros((2, 8, 8, 1)), train=False)
      >>> logits.shape
      (2, 10)
    """
    make = MODELS.get(name)
    if make is None:
        raise InputError(f"there is no network {name!r}; {suggest(name, MODELS)}")
    if num_classes < 1 or not image_shape or min(image_shape) < 1:
        raise InputError(f"num_classes is {num_classes} and image_shape {tuple(image_shape)}; all must be positive")
    network = type(make(num_classes=num_classes))
    if len(image_shape) != 3 and network is not MLP:
        raise InputError(
            f"{name} takes images of shape (H, W, C), and an example has shape {tuple(image_shape)}; take mlp, or your "
            "own network in Python"
        )
    defaults = default_options(name)
    for option in options:
        if option not in defaults:
            raise InputError(f"{name} has no option {option!r}; choose from {', '.join(defaults)}")
    if "dtype" in options and options["dtype"] not in [*DTYPES, *map(jnp.dtype, DTYPES)]:
        raise InputError(f"{name} cannot compute in {options['dtype']!r}; choose one of {', '.join(DTYPES)}")
    values = {key: _as_tuple(value) for key, value in options.items()}
    for option, value in values.items():
        if option != "dtype" and not _alike(value, defaults[option]):
            raise InputError(f"{name} takes {option} like {_shown(defaults[option])}, got {_shown(value)!r}")
    module = make(num_classes=num_classes, **values)
    return from_linen(module, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


def describe_options(name: str) -> dict[str, tuple[str, str]]:
    """Returns the options of a network of the registry that can be written: the default of each, and what it means.

    Args:
      name: A key of `MODELS`.

    Raises:
      InputError: There is no such network.
    """
    if name not in MODELS:
        raise InputError(f"there is no network {name!r}; {suggest(name, MODELS)}")
    text = (inspect.getdoc(type(MODELS[name](num_classes=1))) or "").partition("Attributes:")[2]
    entries = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", text, flags=re.MULTILINE)
    docs = {option: " ".join(meaning.split()) for option, meaning in entries}
    return {
        option: (_shown(value), docs.get(option, ""))
        for option, value in default_options(name).items()
        if not option.endswith("_init")  # a function
    }


def default_options(name: str) -> dict[str, Any]:
    """Returns the options of a network of the registry with their default values.

    Args:
      name: A key of `MODELS`.
    """
    module = MODELS[name](num_classes=1)
    taken = [option for option in inspect.signature(type(module)).parameters if option not in _NOT_OPTIONS]
    return {option: getattr(module, option) for option in taken}


def _shown(value: object) -> str:
    """A value as a setting on the command line."""
    if isinstance(value, tuple):
        return "[" + ",".join(map(_shown, value)) + "]"
    if callable(value):
        return getattr(value, "__name__", "a function")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _alike(value: object, default: object) -> bool:
    """Whether a value is of the kind of the default: a switch, count, number, text, function or tuple of such."""
    if isinstance(default, tuple):
        item = default[0] if default else 0.0
        return isinstance(value, tuple) and all(_alike(part, item) for part in value)
    if isinstance(default, bool) or isinstance(value, bool | np.bool_):
        return isinstance(default, bool) and isinstance(value, bool | np.bool_)
    if isinstance(default, int):
        return isinstance(value, int | np.integer) and int(value) > 0
    if isinstance(default, float):
        return isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)
    return isinstance(value, str) if isinstance(default, str) else callable(value)


def _as_tuple(value: object) -> object:
    """Turns lists, which configuration files hold, into tuples, because modules must be hashable."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
