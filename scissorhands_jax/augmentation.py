"""Random crops, mirrored images and rescaling: what changes images between the data set and the network."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax.base import Key
from scissorhands_jax.errors import InputError


def crop_and_flip(key: Key, images: jax.Array, *, padding: int = 4) -> jax.Array:
    """Random crops of zero-padded images and random horizontal flips, per image, on the device.

    images: (N, H, W, C) of any dtype; returns the same shape and dtype.
    """
    crop_key, flip_key = jax.random.split(key)
    flips = jax.random.bernoulli(flip_key, shape=(len(images),))
    return flip(crop(crop_key, images, padding=padding), flips)


def crop(key: Key, images: jax.Array, *, padding: int, mode: Literal["constant", "reflect"] = "constant") -> jax.Array:
    """Random crops of images padded on all sides with zeros or with their mirror image, per image, on the device.

    images: (N, H, W, C) of any dtype, for `reflect` larger than `padding`; returns the same shape and dtype.
    """
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=mode)
    corners = jax.random.randint(key, (count, 2), 0, 2 * padding + 1)

    def one(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(one)(padded, corners)


def flip(images: jax.Array, flips: jax.Array) -> jax.Array:
    """Mirrors some images left to right. images: (N, H, W, C); flips: bool, (N,)"""
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def resize(images: np.ndarray, size: tuple[int, int], *, batch_size: int = 256) -> np.ndarray:
    """Images of another height and width, by antialiased linear interpolation, on the host.

    images: (N, H, W, C), uint8 or floating point; returns (N, *size, C) of the same type.
    """
    if min(size) < 1:
        raise InputError(f"images can be resized to a height and width of at least 1, got {size}")
    if images.shape[1:3] == tuple(size):
        return images
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        shape = (len(batch), *size, images.shape[-1])
        wide = jax.image.resize(batch.astype(np.float32), shape, "linear", antialias=True)
        is_integer = np.issubdtype(images.dtype, np.integer)
        parts.append(np.asarray(jnp.clip(jnp.round(wide), 0, 255) if is_integer else wide).astype(images.dtype))
    return np.concatenate(parts)
