"""Changes to images on their way from the data set to the network: random crops, mirror images, another size."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Key
from scissorhands_jax.errors import InputError, check_not_negative, check_whole


def crop_and_flip(
    key: Key, images: jax.Array, *, padding: int = 4, mode: Literal["constant", "reflect"] = "constant"
) -> jax.Array:
    """Crops padded images at random and mirrors a random half of them, each image by itself, on the device.

    Args:
      key: A typed PRNG key.
      images: An array of shape (N, H, W, C) and any dtype.
      padding: The number of pixels that are added on each side before the crop.
      mode: What is added, as for `crop`; zeros by default.

    Returns:
      An array of the same shape and dtype.
    """
    crop_key, flip_key = jax.random.split(key)
    flips = jax.random.bernoulli(flip_key, shape=(len(images),))
    return flip(crop(crop_key, images, padding=padding, mode=mode), flips)


def crop(key: Key, images: jax.Array, *, padding: int, mode: Literal["constant", "reflect"] = "constant") -> jax.Array:
    """Crops padded images at random to their original size, each image by itself, on the device.

    Args:
      key: A typed PRNG key.
      images: An array of shape (N, H, W, C) and any dtype.
      padding: The number of pixels that are added on each side before the crop. For `reflect` it must be smaller than
        the images.
      mode: What is added: zeros ("constant", the default) or the mirror image ("reflect").

    Returns:
      An array of the same shape and dtype.

    Raises:
      InputError: The padding is negative, or too large to be mirrored.
    """
    count, height, width, channels = images.shape
    check_not_negative("the padding of a crop", padding)
    if mode == "reflect" and padding >= min(height, width):
        raise InputError(
            f"{padding} pixels cannot be mirrored on each side of images of {height} x {width}; give fewer than "
            f"{min(height, width)}"
        )
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
    corners = jax.random.randint(key, (count, 2), 0, 2 * padding + 1)

    def one(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(one)(padded, corners)


def flip(images: jax.Array, flips: jax.Array) -> jax.Array:
    """Mirrors images left to right.

    Args:
      images: An array of shape (N, H, W, C) and any dtype.
      flips: A bool array of shape (N,): True for the images to mirror.
    """
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def resize(images: np.ndarray, size: tuple[int, int], *, batch_size: int = 256) -> np.ndarray:
    """Resizes images by antialiased linear interpolation.

    Args:
      images: A NumPy array of shape (N, H, W, C), uint8 or floating point.
      size: The new height and width, in pixels.
      batch_size: The number of images that are computed at a time, which limits the memory for their float32 copies.

    Returns:
      A NumPy array of shape (N, *size, C) of the same type; integers are rounded and clipped to 0 to 255.

    Raises:
      InputError: The height or width is below 1, or `batch_size` is below 1 or no whole number.
    """
    batch_size = check_whole("batch_size", batch_size, 1)
    if min(size) < 1:
        raise InputError(f"images cannot be resized to {size[0]} by {size[1]} pixels; give sizes of at least 1")
    if images.shape[1:3] == tuple(size):
        return images
    parts = [np.zeros((0, *size, images.shape[-1]), images.dtype)]
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        shape = (len(batch), *size, images.shape[-1])
        wide = jax.image.resize(batch.astype(np.float32), shape, "linear", antialias=True)
        is_integer = np.issubdtype(images.dtype, np.integer)
        parts.append(np.asarray(jnp.clip(jnp.round(wide), 0, 255) if is_integer else wide).astype(images.dtype))
    return np.concatenate(parts)
