"""Inception-v3 as the FID takes it: the network of Heusel et al. (2017), from the weights that pytorch-fid publishes.

It is torchvision's Inception-v3 but for 1008 classes, for means over pixels of the image alone (not of its padding),
and for a maximum in place of the last mean. Batch normalisation is part of the kernels. Widths are those of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from scissorhands_jax import torch_weights
from scissorhands_jax.errors import WeightsError
from scissorhands_jax.image_files import in_eight_bits

SIDE = 299
"""The height and width of the images that the network sees."""
_CLASSES = 1008
_EPS = 1e-3  # of the batch normalisation
_ADVICE = "give pt_inception-2015-12-05-6726825d.pth of pytorch-fid"
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Layer(NamedTuple):
    """A convolution, with the batch normalisation after it."""

    kernel: jax.Array
    """shape=(height, width, inputs, outputs), dtype=float32"""
    bias: jax.Array
    """shape=(outputs,), dtype=float32"""


Layers = dict[str, Layer]
"""The layers by their names in the file."""


def read_inception(path: Path) -> Layers:
    """Reads the network.

    Args:
      path: The file, `.pth` of pytorch-fid or the same in `.safetensors`.

    Raises:
      WeightsError: The file is damaged or holds another network.
    """
    arrays = torch_weights.read_state_dict(path)
    head = arrays.get("fc.weight")
    if head is not None and len(head) != _CLASSES:
        raise WeightsError(f"{path} is an Inception of {len(head)} classes, whose distances are no FID; {_ADVICE}")
    layers = {}
    for name in dict.fromkeys(name.removesuffix(".conv.weight") for name in arrays if name.endswith(".conv.weight")):
        try:
            kernel = np.asarray(arrays[f"{name}.conv.weight"], np.float64)
            scale, shift, mean, variance = (
                np.asarray(arrays[f"{name}.bn.{word}"], np.float64)
                for word in ("weight", "bias", "running_mean", "running_var")
            )
            scale = scale / np.sqrt(variance + _EPS)
            kernel = (kernel * scale[:, None, None, None]).transpose(2, 3, 1, 0)
            bias = shift - mean * scale
        except (KeyError, ValueError) as error:
            raise WeightsError(
                f"{path} is no Inception of the FID: {name} is not whole ({error}); {_ADVICE}"
            ) from error
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise WeightsError(f"{path} holds NaN or infinity in {name}; there is no network to work with")
        layers[name] = Layer(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))
    try:
        jax.eval_shape(inception_features, layers, jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32))
    except KeyError as error:
        raise WeightsError(f"{path} is no Inception of the FID: it has no {error.args[0]}; {_ADVICE}") from error
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path} is no Inception of the FID: its layers do not fit together; {_ADVICE}") from error
    return layers


def stretch_image(image: Image.Image) -> np.ndarray:
    """An image as the network sees it: 299 pixels high and wide, stretched bilinearly, from -1 to 1.

    Args:
      image: The image, in any mode and of any size.

    Returns:
      shape=(299, 299, 3), dtype=float32
    """
    pixels = np.asarray(in_eight_bits(image).convert("RGB"), np.float32) / 255
    rows, columns = (_stretching(size) for size in pixels.shape[:2])
    return (2 * np.einsum("ij,jkc,lk->ilc", rows, pixels, columns, optimize=True) - 1).astype(np.float32)


def _stretching(size: int) -> np.ndarray:
    """The matrix that stretches an axis to 299 as PyTorch's `interpolate` does, without smoothing. shape=(299, size)"""
    places = np.clip((np.arange(SIDE) + 0.5) * size / SIDE - 0.5, 0, size - 1)
    below = np.minimum(places.astype(int), max(size - 2, 0))
    matrix = np.zeros((SIDE, size), np.float32)
    matrix[np.arange(SIDE), below] += 1 - (places - below)
    matrix[np.arange(SIDE), np.minimum(below + 1, size - 1)] += places - below
    return matrix


def inception_features(layers: Mapping[str, Layer], images: jax.Array) -> jax.Array:
    """The features of images, of which the FID takes mean and covariance. shape=(N, 2048), dtype=float32

    Args:
      layers: The network.
      images: Images as `stretch_image` returns them. shape=(N, 299, 299, 3)
    """

    def conv(x: jax.Array, name: str, stride: int = 1, *, valid: bool = False) -> jax.Array:
        layer = layers[name]
        sides = layer.kernel.shape[:2]
        padding = [(0, 0) if valid or stride > 1 else (side // 2, side // 2) for side in sides]
        x = jax.lax.conv_general_dilated(x, layer.kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS)
        return jax.nn.relu(x + layer.bias[None, None, None])

    def chain(x: jax.Array, block: str, *names: str, last_stride: int = 1) -> jax.Array:
        for name in names:
            x = conv(x, f"{block}.{name}", last_stride if name == names[-1] else 1)
        return x

    def numbered(branch: str, count: int) -> Iterator[str]:
        return (f"{branch}_{number}" for number in range(1, count + 1))

    def same(x: jax.Array, block: str, *branches: tuple[str, int], pool=_mean_of_pixels) -> jax.Array:
        parts = [chain(x, block, *numbered(branch, count)) for branch, count in branches]
        return jnp.concatenate([conv(x, f"{block}.branch1x1"), *parts, conv(pool(x), f"{block}.branch_pool")], axis=-1)

    def smaller(x: jax.Array, block: str, *branches: tuple[str, ...]) -> jax.Array:
        parts = [chain(x, block, *names, last_stride=2) for names in branches]
        return jnp.concatenate([*parts, _maximum(x)], axis=-1)

    def widest(x: jax.Array, block: str, pool) -> jax.Array:
        middle = conv(x, f"{block}.branch3x3_1")
        deep = chain(x, block, *numbered("branch3x3dbl", 2))
        sides = [conv(middle, f"{block}.branch3x3_2{letter}") for letter in "ab"]
        deeper = [conv(deep, f"{block}.branch3x3dbl_3{letter}") for letter in "ab"]
        pooled = conv(pool(x), f"{block}.branch_pool")
        return jnp.concatenate([conv(x, f"{block}.branch1x1"), *sides, *deeper, pooled], axis=-1)

    x = conv(images, "Conv2d_1a_3x3", 2)
    x = conv(conv(x, "Conv2d_2a_3x3", valid=True), "Conv2d_2b_3x3")
    x = conv(conv(_maximum(x), "Conv2d_3b_1x1"), "Conv2d_4a_3x3", valid=True)
    x = _maximum(x)
    for letter in "bcd":
        x = same(x, f"Mixed_5{letter}", ("branch5x5", 2), ("branch3x3dbl", 3))
    x = smaller(x, "Mixed_6a", ("branch3x3",), tuple(numbered("branch3x3dbl", 3)))
    for letter in "bcde":
        x = same(x, f"Mixed_6{letter}", ("branch7x7", 3), ("branch7x7dbl", 5))
    x = smaller(x, "Mixed_7a", tuple(numbered("branch3x3", 2)), tuple(numbered("branch7x7x3", 4)))
    x = widest(x, "Mixed_7b", _mean_of_pixels)
    x = widest(x, "Mixed_7c", _largest_nearby)
    return jnp.mean(x, axis=(1, 2))


def _windows(x: jax.Array, operation, start: float, stride: int, padding: int) -> jax.Array:
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(x, start, operation, (1, 3, 3, 1), (1, stride, stride, 1), pads)


def _maximum(x: jax.Array) -> jax.Array:
    return _windows(x, jax.lax.max, -jnp.inf, 2, 0)


def _largest_nearby(x: jax.Array) -> jax.Array:
    return _windows(x, jax.lax.max, -jnp.inf, 1, 1)


def _mean_of_pixels(x: jax.Array) -> jax.Array:
    """The mean of the 3 x 3 pixels around each, of those that are in the image."""
    count = _windows(jnp.ones((1, *x.shape[1:3], 1)), jax.lax.add, 0.0, 1, 1)
    return _windows(x, jax.lax.add, 0.0, 1, 1) / count
