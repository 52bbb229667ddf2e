"""Images and prompts as the UNet is trained on them: moments of latents and embeddings, computed once and kept on disk.

A folder holds one array in a file of its own, `00000.npy`, for each image or prompt, and `description.json`, which says
of what these are. So an interrupted pass goes on with the next, and nothing is taken for what it is not.
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

from scissorhands_jax import files, hashing
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import networks, pictures
from scissorhands_jax.diffusion.text import TextConfig
from scissorhands_jax.diffusion.vae import VAEConfig
from scissorhands_jax.errors import CheckpointError, InputError

DESCRIPTION_FILE = "description.json"


def find_images(folder: Path, count: int | None = None) -> list[Path]:
    """The pictures in a folder, by name; the first `count` if that is given.

    Raises:
      InputError: there is no folder, there are fewer pictures, or none, or one cannot be read.
    """
    paths = pictures.find_pictures(folder)[:count]
    if count is not None and len(paths) < count:
        raise InputError(f"{folder} holds {len(paths)} images, fewer than the {count} asked for; lower --images")
    for path in paths:
        pictures.check_picture(path)
    return paths


def read_image(path: Path, size: int) -> np.ndarray:
    """A picture of any size as a square: the shorter side becomes `size`, the middle stays. uint8, (size, size, 3)

    Raises:
      InputError: it cannot be read.
    """
    return np.asarray(ImageOps.fit(pictures.read_picture(path), (size, size), Image.Resampling.BICUBIC))


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
    """What the text encoder makes of prompts, kept in a folder. float32, shape=(P, T, width)

    Args:
      folder: where they are kept.
      ids: of the tokens. shape=(P, T)
      config: sizes of the text encoder.
      params: its parameters; called if an array is missing.
      network: the text encoder's `weights.part_sha256`.
      batch_size: prompts at a time.
      on_done: told how many more are there.

    Raises:
      CheckpointError: the folder holds arrays of something else, or damaged ones.
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
    """Mean and standard deviation of images' latents, scaled as the UNet's are, kept in a folder.

    What is kept are the VAE's own numbers, mean and logarithm of the variance, unscaled.

    Args:
      folder: where they are kept.
      images: pictures, see `read_image`.
      size: height and width in pixels that they are brought to.
      config: sizes of the VAE.
      params: its parameters; called if an array is missing.
      network: the VAE's `weights.part_sha256`.
      batch_size: images at a time.
      on_done: told how many more are there.

    Returns:
      Two arrays. float32, shape=(N, size / 8, size / 8, latent_channels)

    Raises:
      InputError: an image cannot be read.
      CheckpointError: the folder holds arrays of something else, or damaged ones.
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
    """Of uint8 images, shape (N, H, W, 3): mean and log variance, shape (N, 2, h, w, C)."""
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
    """Arrays of one shape: those in the folder, and those that are missing, which are computed and put there."""
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
            content = io.BytesIO()
            np.save(content, row)
            files.write_bytes(paths[number], content.getvalue())
        on_done(len(batch))
    return np.stack([_read(path, shape) for path in paths])


def _claim(folder: Path, description: dict[str, Any]) -> None:
    """Makes the folder one of arrays of what is described, or finds that it is."""
    file = folder / DESCRIPTION_FILE
    try:
        found = files.read_json(file)
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
        array = np.load(path, allow_pickle=False)
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(f"it is {array.dtype} of shape {array.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; delete it, and it is made again") from error
    return array
