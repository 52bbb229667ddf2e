"""The sizes of the benchmark, and the random networks, trees and images that it runs on."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import losses, models
from scissorhands_jax.base import Model, StatefulLossFn

FRACTION = 0.03


class Size(NamedTuple):
    """A network at one width and one batch size, and the dtype in which it computes."""

    network: str
    options: tuple[tuple[str, Any], ...]
    batch_size: int

    @property
    def dtype(self) -> str:
        """The dtype in which the network computes."""
        return dict(self.options).get("dtype", "float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The sizes of the benchmark, and the number of its rounds."""

    batch_size: int = 128  # of the retain examples in a step; there is the same number of forget examples
    repeats: int = 9
    quick: bool = False

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """Names and options of the networks whose step is measured. The aims are about the last one."""
        if self.quick:
            return {"mlp": {"image_shape": (4, 4, 3), "hidden": (16,)}}
        return {name: {"image_shape": (32, 32, 3)} for name in ("resnet20", "resnet18")}

    @property
    def trees(self) -> dict[str, list[tuple[int, ...]]]:
        """Shapes of the parameter trees on which the parts are measured. The aims are about the last one."""
        if self.quick:
            return {"5K": conv_shapes(5_000, channels=16)}
        params, _ = jax.eval_shape(network_of("resnet18", self)[0].init, jax.random.key(0))
        return {
            "11M": [leaf.shape for leaf in jax.tree.leaves(params)],
            "100M": conv_shapes(100_000_000, channels=512),
        }

    @property
    def sizes(self) -> dict[str, Size]:
        """The networks, widths, batch sizes and dtypes with which forward pass, gradient and step are measured."""
        if self.quick:
            options = tuple(self.networks["mlp"].items())
            sizes = {f"mlp@{batch_size}": Size("mlp", options, batch_size) for batch_size in (2, 4)}
            return sizes | _in_bfloat16(sizes, "mlp@4")
        image = ("image_shape", (32, 32, 3))
        on_cpu = jax.default_backend() == "cpu"
        grow = 1 if on_cpu else 8  # an accelerator is idle at what keeps a CPU busy
        sizes = {}
        for network, base, factors, batch_sizes in (
            ("resnet20", (16, 32, 64), (1, 2, 4), (32, 128, 512)),
            ("resnet18", (64, 128, 256, 512), (1,), (32, 128)),
        ):
            for factor in factors:
                options = (image, ("widths", tuple(factor * width for width in base)))
                for batch_size in batch_sizes if factor == 1 else (64,):
                    label = f"{network}@{grow * batch_size}" + (f"w{factor}" if factor > 1 else "")
                    sizes[label] = Size(network, options, grow * batch_size)
        return sizes if on_cpu else sizes | _in_bfloat16(sizes, *sizes)


def _in_bfloat16(sizes: dict[str, Size], *labels: str) -> dict[str, Size]:
    return {
        f"{label}-bfloat16": sizes[label]._replace(options=(*sizes[label].options, ("dtype", "bfloat16")))
        for label in labels
    }


@functools.cache
def network_of(name: str, settings: Settings) -> tuple[Model, StatefulLossFn]:
    """Returns a network and its loss, the same objects in every call, so that cases share compiled programs."""
    return build(name, tuple(settings.networks[name].items()))


@functools.cache
def build(name: str, options: tuple[tuple[str, Any], ...]) -> tuple[Model, StatefulLossFn]:
    """Builds a network with some options, and its loss."""
    model = models.build(name, num_classes=10, **dict(options))
    return model, losses.classification_loss(model)


def conv_shapes(total: int, *, channels: int) -> list[tuple[int, ...]]:
    """Returns shapes of 3 x 3 convolutions with scales and biases, and one more for the rest of `total` weights."""
    block = [(3, 3, channels, channels), (channels,), (channels,)]
    count, rest = divmod(total, sum(map(math.prod, block)))
    return block * count + ([(rest,)] if rest else [])


def random_tree(shapes: Sequence[tuple[int, ...]], *, seed: int) -> list[jax.Array]:
    """Returns an array of standard normal numbers for each shape."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]


def random_images(shape: tuple[int, ...], count: int, *, seed: int) -> dict[str, jax.Array]:
    """Returns images of noise with random labels out of ten."""
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (count, *shape)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 10, count), jnp.int32),
    }
