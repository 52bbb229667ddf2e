"""Stable Diffusion v1's weights from the files of diffusers and of CompVis, as Orbax checkpoints in a model's folder.

Tensors are read, renamed and laid out a few at a time. Importing the UNet, 3.2 GiB, took 5.2 GiB in total, including
Python and JAX (`experiments/results/diffusion_full_cpu.json`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from scissorhands_jax import files, trees
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import folder_configs, model_folder, model_sources, networks, part_files, schedules
from scissorhands_jax.diffusion import tokenizer as tokenizer_lib
from scissorhands_jax.diffusion.folder_configs import SCHEDULER_FILE
from scissorhands_jax.diffusion.model_sources import PartSource
from scissorhands_jax.diffusion.networks import PART_TITLES, DiffusionConfig, Part
from scissorhands_jax.errors import InputError, check_seed
from scissorhands_jax.training import checkpoints

_logger = logging.getLogger(__name__)


class ImportedPart(NamedTuple):
    """What `import_weights` did with one network."""

    source: Path
    """The file that was read, or the first piece of it."""
    num_params: int
    """The number of parameters."""
    dtype: str
    """The type that `exporting` writes by default: float32, float16 or bfloat16."""
    types: str
    """The type or types that they had in the file."""


class Plan(NamedTuple):
    """What is to be imported; everything that can be known without reading tensors was checked."""

    sources: dict[Part, PartSource]
    config: DiffusionConfig
    """The sizes of the networks, of which those count that are imported."""
    tokenizer: Path | None
    """Where the tokenizer is, or None if there is none."""
    scheduler: Path | None
    """The configuration of the UNet's sampler in diffusers, which is kept for exports."""
    taken: dict[Part, str]
    """Which tensors are read where a file holds several networks, see `part_files.check_part`."""


def plan_import(
    sources: Mapping[Part, Path],
    config: DiffusionConfig | None = None,
    *,
    tokenizer: Path | None = None,
    ema: bool | None = None,
) -> Plan:
    """Finds and checks everything that an import needs: files, configurations, names and shapes, the tokenizer.

    Args:
      sources: For each network a file or a folder, as `model_sources.find_weights` takes them.
      config: The sizes of networks that have no `config.json` beside them; None is Stable Diffusion v1's. Where there
        is one, it must say the same.
      tokenizer: Where the tokenizer is, see `tokenizer.find_vocabulary`. None takes that in the model's folder.
      ema: Whether averaged weights of the UNet are taken. None takes others where there are any, and says so.

    Raises:
      InputError: Something is missing, is of another kind, or does not fit to the rest.
      WeightsError: A file is damaged or holds another network.
    """
    if not sources:
        raise InputError("there is nothing to import; name a diffusers folder or checkpoint, or single networks")
    for path in dict.fromkeys(map(model_sources.find_model, sources.values())):
        if path.is_dir():
            folder_configs.check_pipeline(path)
    found = {part: model_sources.find_weights(part, path, ema=ema) for part, path in sources.items()}
    sizes = {part: _sizes(part, source, config) for part, source in found.items()}
    chosen = dataclasses.replace(config or networks.SD_V1, **sizes)  # type: ignore[arg-type]
    scheduler = None
    if "unet" in sources:
        scheduler = _beside(model_sources.find_model(sources["unet"]), "scheduler", SCHEDULER_FILE)
        if scheduler is not None:
            chosen = dataclasses.replace(chosen, schedule=folder_configs.read_schedule(scheduler))
        elif chosen.schedule == schedules.SD_V1_SCHEDULE:
            _logger.warning(
                "no %s belongs to %s, so it is taken to predict noise on the schedule of Stable Diffusion v1; where it "
                "was trained otherwise, name its folder of diffusers",
                SCHEDULER_FILE,
                found["unet"].files[0],
            )
    if len(found) == len(networks.PARTS):
        model_folder.check_fit(chosen, ", ".join(sorted({str(path) for path in sources.values()})))
    if tokenizer is None and "text" in sources:
        tokenizer = _beside(model_sources.find_model(sources["text"]), model_folder.TOKENIZER_FOLDER)
    if tokenizer is not None:
        tokenizer = model_sources.find_model(tokenizer)
        vocabulary_files = tokenizer_lib.find_vocabulary(tokenizer)
        vocabulary = tokenizer_lib.read_vocabulary(vocabulary_files)
        if "text" in sources:
            tokenizer_lib.check_size(vocabulary, vocabulary_files, chosen.text.vocabulary)
    taken = {part: part_files.check_part(part, source, chosen, ema=ema) for part, source in found.items()}
    return Plan(found, chosen, tokenizer, scheduler, taken)


def import_weights(
    sources: Mapping[Part, Path],
    out: Path,
    config: DiffusionConfig | None = None,
    *,
    tokenizer: Path | None = None,
    ema: bool | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_part: Callable[[Part, ImportedPart], None] = lambda part, imported: None,
) -> dict[Part, ImportedPart]:
    """Writes networks as Orbax checkpoints into the folders `unet`, `vae` and `text` of a model's folder.

    Args:
      sources: For each network a file or a folder; see `plan_import`, also for `config`, `tokenizer` and `ema`.
      out: The model's folder, which is made if it does not exist. Networks in it that `sources` does not name stay.
      config: The sizes of networks without a `config.json`.
      tokenizer: Where the tokenizer is.
      ema: Whether averaged weights of the UNet are taken.
      overwrite: Whether networks that exist are replaced.
      resume: Whether networks that exist are kept if they were imported from the very same weights of the very same
        file.
      on_part: Called whenever a network is written.

    Raises:
      InputError: See `plan_import`; also if a network exists already, with `resume` from another file, or none can be
        kept in a folder of that name, or what is read would be replaced. Nothing was written.
      WeightsError: A file is damaged, holds another network, or NaN or infinity. Nothing was written for that network.
    """
    files.check_name(out)
    plan = plan_import(sources, config, tokenizer=tokenizer, ema=ema)
    read = [file for source in plan.sources.values() for file in (*source.files, source.config)]
    # With `resume` a network that exists is kept; the others, and the tokenizer, are written all the same.
    written = [part for part in plan.sources if overwrite or not (resume and (out / part).exists())]
    _check_inputs(out, written, [*read, plan.scheduler], plan.tokenizer)
    model_folder.remove_unfinished(out)
    for part in plan.sources:
        if (out / part).exists() and not (overwrite or resume):
            raise InputError(
                f"{out / part} exists already; add --resume to keep what was imported from the same file, or "
                "--overwrite to replace it"
            )
    done = {}
    for part, source in plan.sources.items():
        file_sha256 = source.sha256()
        if (out / part).exists() and not overwrite:
            done[part] = _kept(part, out, plan, file_sha256)
        else:
            params, dtype, types = part_files.read_part(part, source, plan.config, ema=ema)
            schedule = plan.config.schedule if part == "unet" else None
            sizes = getattr(plan.config, part)
            name = source.files[0].name
            origin = {"file_sha256": file_sha256, "taken": plan.taken[part]}
            model_folder.save_part(part, out, sizes, params, dtype, name, origin=origin, schedule=schedule)
            done[part] = ImportedPart(source.files[0], trees.count_weights(params), dtype, types)
            del params  # before the next network is read
        on_part(part, done[part])
    if plan.tokenizer is not None:
        model_folder.copy_tokenizer(plan.tokenizer, out)
    if plan.scheduler is not None:
        files.copy_file(plan.scheduler, out / SCHEDULER_FILE)
    return done


def make_random(
    out: Path, config: DiffusionConfig, *, tokenizer: Path | None = None, seed: int = 0, overwrite: bool = False
) -> None:
    """Makes a model of random weights, with which everything can be tried that needs no sense in the images.

    Args:
      out: The model's folder.
      config: The sizes of the networks.
      tokenizer: Where the tokenizer is, see `tokenizer.find_vocabulary`. None takes that of an installed package or,
        where the text encoder knows no more than that, makes one that spells every word.
      seed: The seed of the weights.
      overwrite: Whether networks that exist are replaced.

    Raises:
      InputError: The seed is none, a network exists already, there is no tokenizer for the text encoder, or it would
        be replaced.
    """
    check_seed(seed)
    spelled = tokenizer_lib.byte_tokens()
    spells = tokenizer is None and config.text.vocabulary == len(spelled)
    if not spells:
        found = tokenizer_lib.find_vocabulary(tokenizer)
        tokenizer_lib.check_size(tokenizer_lib.read_vocabulary(found), found, config.text.vocabulary)
        _check_inputs(out, networks.PARTS, [], tokenizer)
    if not overwrite and (taken := next((out / part for part in networks.PARTS if (out / part).exists()), None)):
        raise InputError(f"{taken} exists already; add --overwrite to replace it, or name another --out")
    model_folder.remove_unfinished(out)
    for number, part in enumerate(networks.PARTS):
        params = _random(networks.outline(part, config), np.random.default_rng([seed, number]))
        schedule = config.schedule if part == "unet" else None
        source = f"random weights of seed {seed}"
        model_folder.save_part(part, out, getattr(config, part), params, "float32", source, schedule=schedule)
    if spells:
        contents = {"vocab.json": json.dumps(spelled) + "\n", "merges.txt": "#version: 0.2\n"}
        model_folder.write_tokenizer(contents, out)
    else:
        model_folder.copy_tokenizer(tokenizer, out)


def _check_inputs(out: Path, parts: Collection[str], read: Collection[Path | None], tokenizer: Path | None) -> None:
    """Refuses to read what would be replaced in a model's folder.

    Args:
      out: The folder.
      parts: The networks that are written.
      read: The files that they are made from; None is none.
      tokenizer: Where the tokenizer is that is copied, see `tokenizer.find_vocabulary`; None is none.

    Raises:
      InputError: Something lies where a network or the tokenizer is written.
    """
    if tokenizer is not None:
        read = [*read, *tokenizer_lib.find_vocabulary(tokenizer)]
        parts = [*parts, model_folder.TOKENIZER_FOLDER]
    for name in parts:
        files.check_inputs(out / name, read)


def _random(outline: Params, generator: np.random.Generator) -> Params:
    """Parameters with which activations keep about their size; nothing is compiled for them."""

    def draw(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        last = path.rpartition("/")[2]
        if last in ("scale", "bias"):
            return np.full(leaf.shape, last == "scale", np.float32)
        fan_in = leaf.shape[-1] if last == "embedding" else math.prod(leaf.shape[:-1])
        return generator.standard_normal(leaf.shape, np.float32) / np.float32(math.sqrt(fan_in))

    return jax.tree_util.tree_map_with_path(lambda path, leaf: draw(trees.path_name(path), leaf), outline)


def _sizes(part: Part, source: PartSource, config: DiffusionConfig | None) -> networks.PartConfig:
    """The sizes of a network: as its `config.json` says, or else as they were given."""
    given = getattr(config or networks.SD_V1, part)
    if source.config is None:
        return given
    found = folder_configs.read_sizes(part, source.config)
    names = [field.name for field in dataclasses.fields(found) if field.name != "side"]  # which changes nothing
    other = next((name for name in names if getattr(found, name) != getattr(given, name)), None)
    if config is not None and other is not None:
        raise InputError(
            f"{source.config} says {other} = {getattr(found, other)} of the {PART_TITLES[part]}, and --config "
            f"{getattr(given, other)}; leave --config out"
        )
    return found


def _beside(path: Path, folder: str, file: str | None = None) -> Path | None:
    """A folder, or a file in it, of the model in which `path` is the folder, that of a network, or a file of either."""
    for root in (path, path.parent) if path.is_dir() else (path.parent, path.parent.parent):
        found = root / folder if file is None else root / folder / file
        if (found.is_dir() if file is None else found.is_file()) and (
            root == path or (root / folder_configs.PIPELINE_FILE).is_file()
        ):
            return found
    return None


def _kept(part: Part, out: Path, plan: Plan, file_sha256: str) -> ImportedPart:
    """A network that an earlier call has imported from the same weights.

    Raises:
      InputError: It was imported from others, or with other sizes.
    """
    file = plan.sources[part].files[0]
    found, dtype = model_folder.read_part_config(part, out)
    description = checkpoints.read_description(out / part)
    known = (description.get("file_sha256"), description.get("taken"))
    same = part != "unet" or model_folder.read_part_schedule(out) == plan.config.schedule
    if known != (file_sha256, plan.taken[part]) or found != getattr(plan.config, part) or not same:
        raise InputError(
            f"{out / part} was not imported from these weights of {file.name}; add --overwrite to replace it"
        )
    return ImportedPart(file, trees.count_weights(networks.outline(part, plan.config)), dtype, dtype)
