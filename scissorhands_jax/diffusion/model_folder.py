"""A model on disk: the folder that `scissorhands sd import` writes, with networks, their sizes and the tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scissorhands_jax import files, hashing
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import networks
from scissorhands_jax.diffusion.folder_configs import SCHEDULER_FILE
from scissorhands_jax.diffusion.networks import PART_TITLES, DiffusionConfig, Part, PartConfig
from scissorhands_jax.diffusion.schedules import Schedule
from scissorhands_jax.diffusion.text import TextConfig
from scissorhands_jax.diffusion.tokenizer import (
    BPE_FILE,
    JSON_FILE,
    SETTINGS_FILE,
    Cleaning,
    Tokenizer,
    find_vocabulary,
)
from scissorhands_jax.errors import CheckpointError, InputError
from scissorhands_jax.training import checkpoints

TOKENIZER_FOLDER = "tokenizer"
TOKENIZER_FILES = (
    *("vocab.json", "merges.txt", JSON_FILE, SETTINGS_FILE, BPE_FILE),
    *("special_tokens_map.json", "added_tokens.json"),  # transformers reads them beside the others
)
"""The files that a tokenizer may have, of which no two tokenizers may be mixed."""


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
    cleaning: Cleaning = "nfc"
    """How it cleans them."""


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


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that were killed while they made a model left in its folder; all else there stays.

    Args:
      folder: The folder of the model, which need not exist.
    """
    for name in (*networks.PARTS, SCHEDULER_FILE):
        files.remove_leftovers_of(folder / name)
    for name in TOKENIZER_FILES:
        files.remove_leftovers_of(folder / TOKENIZER_FOLDER / name)


def save_part(
    part: Part,
    folder: Path,
    config: PartConfig,
    params: Params,
    dtype: str,
    source: str,
    *,
    origin: Mapping[str, str] | None = None,
    schedule: Schedule | None = None,
) -> None:
    """Writes a network where `load_part` finds it. An earlier one is replaced once the new one is complete.

    Args:
      part: Which of the three networks.
      folder: The folder of the model, which is made if it does not exist.
      config: The sizes of the network.
      params: Its parameters.
      dtype: The type that `exporting.export_weights` writes it in by default.
      source: What the network was made from, for people.
      origin: What it was imported from: `file_sha256`, and which tensors of the file were `taken`. None if it was not
        imported.
      schedule: What a UNet was trained with; None is Stable Diffusion v1's.
    """
    description: dict[str, Any] = {
        "diffusion": part,
        "config": dataclasses.asdict(config),
        "dtype": dtype,
        "source": source,
    }
    description |= origin or {}
    if schedule is not None:
        description["schedule"] = dataclasses.asdict(schedule)
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
    cleaning: Cleaning = "nfc",
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
    config = read_model_config(folder, unet=unet)
    loaded_tokenizer = load_tokenizer(folder, tokenizer, cleaning)
    params = {part: load_part(part, source).params for part, source in _sources(folder, unet).items()}
    return Pipeline(config, params, loaded_tokenizer, cleaning)


def load_tokenizer(folder: Path, tokenizer: Path | None = None, cleaning: Cleaning = "nfc") -> Tokenizer:
    """The tokenizer of a model, whose prompts are as long as its text encoder takes them; see `load_pipeline`.

    Raises:
      InputError: The tokenizer is missing, or has more tokens than the text encoder of the folder knows.
    """
    inside = folder / TOKENIZER_FOLDER
    files = find_vocabulary(inside if tokenizer is None and inside.is_dir() else tokenizer)
    if not (folder / "text").is_dir():
        return Tokenizer(files, cleaning)
    sizes = read_part_config("text", folder)[0]
    assert isinstance(sizes, TextConfig)
    return Tokenizer(files, cleaning, length=sizes.length, limit=sizes.vocabulary)


def load_clip_tokenizer(
    clip: Path, model: Path | None = None, tokenizer: Path | None = None, cleaning: Cleaning = "nfc"
) -> Tokenizer:
    """The tokenizer of a CLIP: the given one, or that beside its weights, or that of a model, or an installed one.

    Args:
      clip: The file or folder of CLIP's weights.
      model: The folder of a model with a tokenizer, if there is one.
      tokenizer: Where the tokenizer is, see `tokenizer.find_vocabulary`.
      cleaning: How prompts are cleaned, see `Tokenizer`.

    Raises:
      InputError: There is no tokenizer, or its files are damaged.
    """
    if tokenizer is None:
        beside = clip if clip.is_dir() else clip.parent
        for place in (beside, *(() if model is None else (model / TOKENIZER_FOLDER,))):
            with contextlib.suppress(InputError):  # a folder without a tokenizer
                find_vocabulary(place)
                tokenizer = place
                break
    return Tokenizer(find_vocabulary(tokenizer), cleaning)


def read_model_config(folder: Path, *, unet: Path | None = None) -> DiffusionConfig:
    """The sizes of a model's networks, without reading their parameters; see `load_pipeline`.

    Raises:
      InputError: The networks do not fit together.
      CheckpointError: A network is missing or damaged.
    """
    sizes = {part: read_part_config(part, source)[0] for part, source in _sources(folder, unet).items()}
    config = DiffusionConfig(**sizes, schedule=read_part_schedule(unet or folder))  # type: ignore[arg-type]
    check_fit(config, str(folder))
    return config


def check_fit(config: DiffusionConfig, where: str) -> None:
    """Refuses networks that do not fit together.

    Args:
      config: Their sizes.
      where: Where they are, for the message.

    Raises:
      InputError: The UNet is for prompts of another width, or for latents of other channels.
    """
    for what, first, second in (
        ("a UNet for prompts of width {} and a text encoder of {}", config.unet.context_width, config.text.width),
        ("a UNet for latents of {} channels and a VAE of {}", config.unet.channels, config.vae.latent_channels),
    ):
        if first != second:
            found = what.format(first, second)
            raise InputError(f"the networks in {where} do not fit together: {found}; import all three of one model")


def read_part_schedule(folder: Path) -> Schedule:
    """The schedule that the UNet in a model's folder was trained with.

    Raises:
      CheckpointError: There is no UNet, or its description is damaged.
    """
    found = checkpoints.read_description(folder / "unet").get("schedule", {})
    try:
        return Schedule(**found)
    except TypeError as error:
        raise CheckpointError(f"{folder / 'unet'} has no schedule that can be read: {error}") from error


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
    names = [file.name if file.suffix == ".json" or len(found) == 2 else BPE_FILE for file in found]
    if names != [BPE_FILE] and (beside := found[0].with_name(SETTINGS_FILE)).is_file():
        found, names = (*found, beside), [*names, SETTINGS_FILE]
    target = folder / TOKENIZER_FOLDER
    copies = tuple(target / name for name in names)
    _remove_other_tokenizer(target, names)
    for file, copy in zip(found, copies, strict=True):
        files.copy_file(file, copy)
    return copies


def write_tokenizer(contents: Mapping[str, str], folder: Path) -> None:
    """Writes a tokenizer's files to where `load_pipeline` finds them, in place of those of another one.

    Args:
      contents: The text of each file by its name.
      folder: The folder of the model.
    """
    target = folder / TOKENIZER_FOLDER
    _remove_other_tokenizer(target, list(contents))
    for name, text in contents.items():
        files.write_text(target / name, text)


def _remove_other_tokenizer(target: Path, names: Sequence[str]) -> None:
    """Removes files of a tokenizer that are not among these."""
    for name in TOKENIZER_FILES:
        if name not in names and (target / name).is_file():
            files.remove(target / name)


def _sources(folder: Path, unet: Path | None) -> dict[Part, Path]:
    """The folder that each network is read from."""
    return {part: unet if part == "unet" and unet is not None else folder for part in networks.PARTS}
