"""Images and prompts as the UNet is trained on them: moments of latents and embeddings, computed once and kept on disk.

A folder holds a file with one array, such as `00000.npy`, for each image or prompt, and `description.json`, which says
what they were computed from. An interrupted pass therefore continues with the next array, and arrays of something else
are refused.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from scissorhands_jax import array_files, files, hashing, reading
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import image_folders, networks
from scissorhands_jax.diffusion.text import TextConfig
from scissorhands_jax.diffusion.vae import VAEConfig
from scissorhands_jax.errors import CheckpointError, InputError, check_whole

DESCRIPTION_FILE = "description.json"


def find_images(folder: Path, count: int | None = None) -> list[Path]:
    """The pictures in a folder, sorted by name.

    Args:
      folder: The folder.
      count: The number of pictures that is taken, from the first; None takes all.

    Raises:
      InputError: There is no such folder, it has no or too few pictures, or one cannot be read.
    """
    paths = image_folders.find_folder_images(folder)[:count]
    if count is not None and len(paths) < count:
        raise InputError(f"{folder} holds {len(paths)} images, fewer than the {count} asked for; lower --images")
    for path in paths:
        image_folders.check_image(path)
    return paths


def read_image(path: Path, size: int) -> np.ndarray:
    """A picture of any size as a square: its shorter side is resized to `size`, and its middle is cut out.

    Returns:
      shape=(size, size, 3), dtype=uint8

    Raises:
      InputError: The picture cannot be read.
    """
    return np.asarray(ImageOps.fit(image_folders.read_rgb_image(path), (size, size), Image.Resampling.BICUBIC))


def prompt_embeddings(
    folder: Path,
    ids: np.ndarray,
    config: TextConfig,
    params: Callable[[], Params],
    *,
    network: str,
    batch_size: int = 8,
    on_done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """The embeddings of prompts, kept in a folder. shape=(P, T, width), dtype=float32

    Args:
      folder: The folder that they are kept in.
      ids: The ids of the tokens. shape=(P, T)
      config: The sizes of the text encoder.
      params: Returns the parameters of the text encoder; it is called only if an array is missing.
      network: The hash of the text encoder, `model_folder.part_sha256`.
      batch_size: The number of prompts that are encoded at a time.
      on_done: Called with the number of arrays that were added since the last call.

    Raises:
      InputError: An embedding is not finite, or `batch_size` is below 1 or no whole number.
      CheckpointError: The folder holds arrays of something else, or damaged ones.
    """
    apply = functools.partial(_embed, config=config)
    description = {"text_encoder": network, "prompts": hashing.sha256(ids.tobytes())}
    shape = (ids.shape[1], config.width)
    return _rows(folder, description, len(ids), shape, ids.__getitem__, apply, params, batch_size, on_done)


def latent_moments(
    folder: Path,
    images: Sequence[Path],
    size: int,
    config: VAEConfig,
    params: Callable[[], Params],
    *,
    network: str,
    batch_size: int = 1,
    on_done: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and standard deviation of images' latents, with the scaling of the UNet's, kept in a folder.

    The folder keeps the VAE's own numbers: the mean and the logarithm of the variance, without the scaling.

    Args:
      folder: The folder that they are kept in.
      images: The pictures, see `read_image`.
      size: The height and width in pixels that they are resized to.
      config: The sizes of the VAE.
      params: Returns the parameters of the VAE; it is called only if an array is missing.
      network: The hash of the VAE, `model_folder.part_sha256`.
      batch_size: The number of images that are encoded at a time.
      on_done: Called with the number of arrays that were added since the last call.

    Returns:
      Two arrays. shape=(N, size / 8, size / 8, latent_channels), dtype=float32

    Raises:
      InputError: An image cannot be read, its latents are not finite, or `batch_size` is below 1 or no whole number.
      CheckpointError: The folder holds arrays of something else, or damaged ones.
    """

    def read(positions: Sequence[int]) -> np.ndarray:
        return np.stack([read_image(images[position], size) for position in positions])

    side = size // config.factor
    description = {"vae": network, "size": size, "images": hashing.files_sha256(images)}
    rows = _rows(
        folder,
        description,
        len(images),
        (2, side, side, config.latent_channels),
        read,
        functools.partial(_encode, config=config),
        params,
        batch_size,
        on_done,
    )
    scaling = np.float32(config.scaling)
    return scaling * rows[:, 0], scaling * np.exp(rows[:, 1] / 2)


@functools.partial(jax.jit, static_argnames="config")
def _embed(params: Params, ids: jax.Array, *, config: TextConfig) -> jax.Array:
    return networks.text_encoder(config).apply(params, {}, ids, train=False)[0]


@functools.partial(jax.jit, static_argnames="config")
def _encode(params: Params, images: jax.Array, *, config: VAEConfig) -> jax.Array:
    """The means and log variances, shape (N, 2, h, w, C), of uint8 images of shape (N, H, W, 3)."""
    pixels = images.astype(jnp.float32) / 127.5 - 1
    found, _ = networks.vae_encoder(config).apply(params, {}, pixels, train=False)
    return jnp.stack(found, axis=1)


def _rows(
    folder: Path,
    description: dict[str, Any],
    count: int,
    shape: tuple[int, ...],
    inputs: Callable[[list[int]], np.ndarray],
    apply: Callable[[Params, np.ndarray], jax.Array],
    params: Callable[[], Params],
    batch_size: int,
    on_done: Callable[[int], None],
) -> np.ndarray:
    """All arrays of a folder, which have one shape. Those that are missing are computed and written into it."""
    batch_size = check_whole("batch_size", batch_size, 1)
    _claim(folder, description)
    paths = [folder / f"{number:05d}.npy" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    on_done(count - len(missing))
    held = params() if missing else None
    for first in range(0, len(missing), batch_size):
        batch = missing[first : first + batch_size]
        padded = batch + batch[-1:] * (batch_size - len(batch))  # the last batch needs no compilation of its own
        made = np.asarray(apply(held, inputs(padded)), np.float32)
        for number, row in zip(batch, made, strict=False):
            if not np.isfinite(row).all():
                raise InputError(
                    f"what the {next(iter(description)).replace('_', ' ')} makes of number {number} for {folder} has "
                    "NaN or infinity; check the network, its tokenizer and the image"
                )
            content = io.BytesIO()
            np.save(content, row)
            files.write_bytes(paths[number], content.getvalue())
        on_done(len(batch))
    return np.stack([_read(path, shape) for path in paths])


def _claim(folder: Path, description: dict[str, Any]) -> None:
    """Writes the description into a new folder, or checks that the folder has the same one."""
    file = folder / DESCRIPTION_FILE
    try:
        found = reading.read_json(file)
    except FileNotFoundError:
        files.write_text(file, json.dumps(description, indent=2) + "\n")
        return
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; delete the folder {folder}") from error
    if found != description:
        known = found if isinstance(found, dict) else {}
        other = next(name for name in {**description, **known} if known.get(name) != description.get(name))
        raise CheckpointError(
            f"{folder} holds arrays of another run, its {other.replace('_', ' ')} differs; name another --cache, or "
            "delete the folder"
        )


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = array_files.read_array(path)
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(f"it is {array.dtype} of shape {array.shape}")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; delete it, and it is made again") from error
    return array
