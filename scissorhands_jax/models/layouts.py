"""Whose networks a file of weights may hold: the names that authors use, and what their files do not say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import linen as nn

from scissorhands_jax.base import Model
from scissorhands_jax.errors import InputError, suggest
from scissorhands_jax.models.resnet import IMAGENET_MEAN, IMAGENET_STD

_CIFAR_RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
_RESNETS = ("resnet18", "resnet34")

# Means and standard deviations by the number of classes, which tells CIFAR-10 from CIFAR-100.
_CIFAR_NUMBERS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    100: ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}


@dataclasses.dataclass(frozen=True)
class AuthorLayout:
    """How one author writes networks down.

    Attributes:
      name: What the layout is called.
      models: The networks of the registry that it is known for.
      options: `(num_classes) -> options` of these networks that make them the author's.
      parts: Parts of names that are in such a file. A layout is guessed only where all of them are.
      absent: Parts of names that are in no such file.
      about: Where such files come from.
    """

    name: str
    models: tuple[str, ...]
    options: Callable[[int], dict[str, Any]]
    parts: tuple[str, ...]
    absent: tuple[str, ...]
    about: str

    def fits(self, model: str, names: Iterable[str]) -> bool:
        """Whether a file with these names of arrays may be of this layout."""
        found = {part for name in names for part in name.split(".")}
        return model in self.models and found.issuperset(self.parts) and found.isdisjoint(self.absent)


def _fixed(mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    return {"normalize": "fixed", "mean": mean, "std": std}


def _imagenet(num_classes: int) -> dict[str, Any]:
    del num_classes
    return {"stem": "imagenet", **_fixed(IMAGENET_MEAN, IMAGENET_STD)}


def _cifar(num_classes: int) -> dict[str, Any]:
    return _fixed(*_CIFAR_NUMBERS.get(num_classes, _CIFAR_NUMBERS[10]))


def _nothing(num_classes: int) -> dict[str, Any]:
    del num_classes
    return {}


LAYOUTS = (
    AuthorLayout("authors", (*_RESNETS, "vgg16_bn"), _nothing, ("normalize",), (), "the Scissorhands authors' code"),
    AuthorLayout(
        "akamaster", _CIFAR_RESNETS, _nothing, ("linear",), ("downsample",), "akamaster/pytorch_resnet_cifar10"
    ),
    AuthorLayout("torchvision", _RESNETS, _imagenet, ("downsample", "fc"), ("normalize",), "torchvision.models"),
    AuthorLayout("timm", _RESNETS, _imagenet, ("downsample", "fc"), ("normalize",), "timm.create_model"),
    AuthorLayout(
        "chenyaofo",
        _CIFAR_RESNETS,
        lambda num_classes: {"shortcut": "projection", **_cifar(num_classes)},
        ("downsample", "fc"),
        ("normalize",),
        "chenyaofo/pytorch-cifar-models",
    ),
    AuthorLayout("kuangliu", _RESNETS, _cifar, ("shortcut", "linear"), ("normalize",), "kuangliu/pytorch-cifar"),
    AuthorLayout(
        "kuangliu",
        ("vgg16_bn",),
        lambda num_classes: {"last_pool": "max", **_cifar(num_classes)},
        ("features", "classifier"),
        ("normalize",),
        "kuangliu/pytorch-cifar",
    ),
)
"""The layouts, in the order in which they are guessed. One name may stand for several networks."""
LAYOUT_NAMES = tuple(dict.fromkeys(layout.name for layout in LAYOUTS))


def find_layout(name: str, model: str) -> AuthorLayout:
    """Returns the layout with a name that has a network of the registry.

    Args:
      name: One of `LAYOUT_NAMES`.
      model: The name of the network.

    Raises:
      InputError: There is no such layout, or it has no such network.
    """
    if name not in LAYOUT_NAMES:
        raise InputError(f"there is no layout {name!r}; {suggest(name, LAYOUT_NAMES)}")
    found = [layout for layout in LAYOUTS if layout.name == name and model in layout.models]
    if not found:
        known = ", ".join(layout.name for layout in LAYOUTS if model in layout.models) or "none"
        raise InputError(f"the layout {name} has no {model}; layouts of a {model} are: {known}")
    return found[0]


def called_modules(model: Model) -> list[str]:
    """Returns the modules of a network written in Flax linen in the order in which they are called.

    They are the parts of a path joined by dots. That order is the one in which PyTorch code usually defines them.

    Args:
      model: The network. Nothing is computed.
    """
    paths: dict[str, None] = {}

    def record(call, arguments, named, context):
        if context.method_name == "__call__":
            paths[".".join(context.module.path)] = None
        return call(*arguments, **named)

    init = getattr(model.init, "__wrapped__", model.init)  # JAX may know the trace of a compiled function already.

    def traced(key):
        with nn.intercept_methods(record):
            return init(key)

    jax.eval_shape(traced, jax.random.key(0))
    return list(paths)
