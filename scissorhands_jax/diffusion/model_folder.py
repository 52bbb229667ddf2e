"""A model on disk: the folder that `scissorhands sd import` writes, with networks, their sizes and the tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from scissorhands_jax import files, hashing
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import networks
from scissorhands_jax.diffusion.networks import PART_TITLES, DiffusionConfig, Part, PartConfig
from scissorhands_jax.diffusion.tokenizer import BPE_FILE, Cleaning, Tokenizer, find_vocabulary
from scissorhands_jax.errors import CheckpointError, InputError
from scissorhands_jax.training import checkpoints

TOKENIZER_FOLDER = "tokenizer"


class StoredPart(NamedTuple):
    """A network that was read from a model's folder."""

    config: PartConfig
    """Its sizes."""
    params: Params
    """Its parameters, float32."""
    dtype: str
    """The type of the file that it was imported from: float32, float16 or bfloat16."""


class Pipeline(NamedTuple):
    """Everything that turns a prompt into an image."""

    config: DiffusionConfig
    """The sizes of the networks."""
    params: dict[Part, Params]
    """The parameters of `unet`, `vae` and `text`."""
    tokenizer: Tokenizer
    """What turns prompts into ids."""


def load_part(part: Part, folder: Path) -> StoredPart:
    """Reads a network that `importing.import_weights` or an unlearning run wrote.

    Args:
      part: Which of the three networks.
      folder: The folder of the model.

    Raises:
      CheckpointError: There is no such network, or it is damaged.
    """
    config, dtype = read_part_config(part, folder)
    sizes = dataclasses.replace(networks.SD_V1, **{part: config})  # type: ignore[arg-type]  # of the part's own type
    outline = networks.outline(part, sizes)
    params, _ = checkpoints.load_network(folder / part, outline, {})
    return StoredPart(config, params, dtype)


def read_part_config(part: Part, folder: Path) -> tuple[PartConfig, str]:
    """The sizes of a network and the type that its file had, without reading its parameters.

    Raises:
      CheckpointError: There is no such network, or its description is damaged.
    """
    path = folder / part
    description = checkpoints.read_description(path)
    config_type = type(getattr(networks.SD_V1, part))
    try:
        if description["diffusion"] != part:
            raise ValueError(f"it is a {description['diffusion']}")
        sizes = {
            name: tuple(value) if isinstance(value, list) else value for name, value in description["config"].items()
        }
        return config_type(**sizes), str(description["dtype"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} holds no {PART_TITLES[part]} of Stable Diffusion v1: {error}") from error


def save_part(
    part: Part,
    folder: Path,
    config: PartConfig,
    params: Params,
    dtype: str,
    source: str,
    *,
    file_sha256: str | None = None,
) -> None:
    """Writes a network where `load_part` finds it. An earlier one is replaced once the new one is complete.

    Args:
      part: Which of the three networks.
      folder: The folder of the model, which is made if it does not exist.
      config: The sizes of the network.
      params: Its parameters.
      dtype: The type that `exporting.export_weights` writes it in by default.
      source: What the network was made from, for people.
      file_sha256: The SHA-256 of the file that it was imported from. None if it was not imported.
    """
    description = {"diffusion": part, "config": dataclasses.asdict(config), "dtype": dtype, "source": source}
    if file_sha256 is not None:
        description["file_sha256"] = file_sha256
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save_network(folder / part, params, {}, description)


def part_sha256(part: Part, folder: Path) -> str:
    """The SHA-256 of a network's description, which contains a checksum of its numbers; hexadecimal.

    Raises:
      CheckpointError: There is no such network, or its description is damaged.
    """
    read_part_config(part, folder)
    return hashing.file_sha256(folder / part / "meta" / "metadata")


def load_pipeline(
    folder: Path,
    *,
    unet: Path | None = None,
    tokenizer: Path | None = None,
    cleaning: Cleaning = "ftfy",
) -> Pipeline:
    """Reads all networks of a model.

    Args:
      folder: The folder with `unet`, `vae`, `text` and perhaps `tokenizer`.
      unet: Another folder whose `unet` is taken, such as an unlearned one.
      tokenizer: Where the tokenizer is, see `tokenizer.find_vocabulary`. By default it is looked for in `folder` and
        then in installed packages.
      cleaning: How prompts are cleaned, see `Tokenizer`.

    Raises:
      InputError: The tokenizer is missing, or the networks do not fit together.
      CheckpointError: A network is missing or damaged.
    """
    loaded_tokenizer = load_tokenizer(folder, tokenizer, cleaning)
    config = read_model_config(folder, unet=unet)
    params = {part: load_part(part, source).params for part, source in _sources(folder, unet).items()}
    return Pipeline(config, params, loaded_tokenizer)


def load_tokenizer(folder: Path, tokenizer: Path | None = None, cleaning: Cleaning = "ftfy") -> Tokenizer:
    """The tokenizer of a model; see `load_pipeline`."""
    inside = folder / TOKENIZER_FOLDER
    return Tokenizer(find_vocabulary(inside if tokenizer is None and inside.is_dir() else tokenizer), cleaning)


def read_model_config(folder: Path, *, unet: Path | None = None) -> DiffusionConfig:
    """The sizes of a model's networks, without reading their parameters; see `load_pipeline`.

    Raises:
      InputError: The networks do not fit together.
      CheckpointError: A network is missing or damaged.
    """
    sizes = {part: read_part_config(part, source)[0] for part, source in _sources(folder, unet).items()}
    config = DiffusionConfig(**sizes)  # type: ignore[arg-type]  # each part has the type of its field
    if config.unet.context_width != config.text.width or config.unet.channels != config.vae.latent_channels:
        raise InputError(f"the networks in {folder} do not fit together; import all three of one model")
    return config


def model_sha256(folder: Path, *, unet: Path | None = None) -> str:
    """The SHA-256 of all networks of a model; see `load_pipeline`."""
    parts = [part_sha256(part, source) for part, source in _sources(folder, unet).items()]
    return hashing.sha256("".join(parts))


def copy_tokenizer(source: Path | None, folder: Path) -> tuple[Path, ...]:
    """Copies a tokenizer's files to where `load_pipeline` finds them.

    Args:
      source: Where the tokenizer is, see `tokenizer.find_vocabulary`.
      folder: The folder of the model.

    Returns:
      The paths of the copies.

    Raises:
      InputError: There is no tokenizer in `source`.
    """
    found = find_vocabulary(source)
    names = [file.name for file in found] if len(found) == 2 else [BPE_FILE]
    copies = tuple(folder / TOKENIZER_FOLDER / name for name in names)
    for file, copy in zip(found, copies, strict=True):
        files.copy_file(file, copy)
    return copies


def _sources(folder: Path, unet: Path | None) -> dict[Part, Path]:
    """The folder that each network is read from."""
    return {part: unet if part == "unet" and unet is not None else folder for part in networks.PARTS}
