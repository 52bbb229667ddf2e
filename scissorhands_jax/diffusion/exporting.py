"""From a model's folder to a pipeline of diffusers, or to the UNet in one file.

Tensors are laid out and written a few at a time. Exporting the UNet, 3.2 GiB, took 4.0 GiB in total, including Python
and JAX (`experiments/results/diffusion_full_cpu.json`).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import files, reading, torch_weights
from scissorhands_jax.diffusion import folder_configs, model_folder
from scissorhands_jax.diffusion import tokenizer as tokenizer_lib
from scissorhands_jax.diffusion.file_layouts import FILE_DTYPES, FILE_STEMS, FOLDERS
from scissorhands_jax.diffusion.folder_configs import PART_CONFIG_FILE, PIPELINE_FILE, SCHEDULER_FILE
from scissorhands_jax.diffusion.networks import PARTS, Part
from scissorhands_jax.errors import InputError, WeightsError, check_choice

_WEIGHTS = re.compile(
    r"(diffusion_(pytorch|flax)_model|((pytorch|tf|flax)_)?model)[.-].*"
    r"(safetensors|bin|msgpack|h5|ckpt|pth?|onnx|\.index(\..*)?\.json)"
)
_logger = logging.getLogger(__name__)


def export_weights(
    folder: Path,
    out: Path,
    *,
    unet: Path | None = None,
    parts: Iterable[Part] = PARTS,
    dtype: str | None = None,
    overwrite: bool = False,
) -> dict[Part, Path]:
    """Writes the networks of a model as `.safetensors` with a `config.json` each, in the layout of diffusers.

    Numbers are those of the import, bit by bit, unless they were changed since. Where all three networks and a
    tokenizer are there, the folder becomes a whole pipeline, which `StableDiffusionPipeline.from_pretrained` loads,
    with the scheduler of the model that was imported and without a safety checker.

    Args:
      folder: The model's folder, as `importing.import_weights` made it.
      out: The folder to write.
      unet: Another folder whose `unet` is taken, such as an unlearned one.
      parts: Which networks to write. Those that the model does not have are left out.
      dtype: The type of the files: `float32`, `float16` or `bfloat16`. By default each network has the type that its
        imported file had.
      overwrite: Whether files that exist are replaced. Other weights in the folders of the networks, such as those of
        a variant, and files of another tokenizer are then removed, so that nothing that was there is loaded.

    Returns:
      The file of each network.

    Raises:
      InputError: There is no such network, a file exists already, or the tokenizer that is read would be replaced.
      WeightsError: A file cannot be written, or a number is too large for `dtype`.
    """
    check_dtype(dtype)
    homes = {part: unet if part == "unet" and unet is not None else folder for part in parts}
    present = [part for part, home in homes.items() if (home / part).is_dir()]
    if not present or (unet is not None and "unet" not in present):
        raise InputError(f"there is no {'UNet' if present else 'network'} in {unet or folder}; import one first")
    targets = {part: out / FOLDERS[part] / f"{FILE_STEMS[part]}.safetensors" for part in present}
    whole = len(present) == len(PARTS) and (folder / model_folder.TOKENIZER_FOLDER).is_dir()
    written = [path for target in targets.values() for path in (target, target.parent / PART_CONFIG_FILE)]
    others = [path for target in targets.values() for path in _other_weights(target)]
    if whole:
        vocabulary_files = tokenizer_lib.find_vocabulary(folder / model_folder.TOKENIZER_FOLDER)
        files.check_inputs(out / model_folder.TOKENIZER_FOLDER, vocabulary_files)
        written += [out / "scheduler" / SCHEDULER_FILE, out / PIPELINE_FILE]
        others += [out / model_folder.TOKENIZER_FOLDER / name for name in model_folder.TOKENIZER_FILES]
    for path in (*written, *others):
        files.remove_leftovers_of(path)
        _check_free(path, overwrite=overwrite)
    if whole:
        model_folder.read_model_config(folder, unet=unet)  # refuses networks that do not fit together
        vocabulary = tokenizer_lib.read_vocabulary(vocabulary_files)
        scheduler = _scheduler(folder, homes["unet"])
    for target in targets.values():
        for path in _other_weights(target):
            _logger.warning("removed %s, which are other weights in the place of what is exported", path)
            files.remove(path)
    for part, target in targets.items():
        config = _write_part(part, homes[part], target, dtype)
        files.write_text(target.parent / PART_CONFIG_FILE, _json(folder_configs.config_document(config)))
    if whole:
        files.write_text(out / "scheduler" / SCHEDULER_FILE, _json(scheduler))
        model_folder.write_tokenizer(tokenizer_lib.transformers_files(vocabulary), out)
        document = folder_configs.pipeline_document(str(scheduler["_class_name"]))
        files.write_text(out / PIPELINE_FILE, _json(document))
    return targets


def export_unet(folder: Path, file: Path, *, dtype: str | None = None, overwrite: bool = False) -> Path:
    """Writes the UNet alone, under the names of diffusers, for `unet.load_state_dict(load_file(file))`.

    Args:
      folder: The folder with the UNet, such as that of an unlearned one.
      file: The `.safetensors` file to write.
      dtype: The type of the file; see `export_weights`.
      overwrite: Whether a file that exists is replaced.

    Raises:
      InputError: There is no UNet, or the file exists already.
      WeightsError: The file cannot be written, or a number is too large for `dtype`.
    """
    check_dtype(dtype)
    if not (folder / "unet").is_dir():
        raise InputError(f"there is no UNet in {folder}; name the folder of sd import or sd unlearn")
    files.remove_leftovers_of(file)
    _check_free(file, overwrite=overwrite)
    _write_part("unet", folder, file, dtype)
    return file


def check_dtype(dtype: str | None) -> None:
    """Refuses types that weights are not stored in.

    Raises:
      InputError: It is another type than those of `file_layouts.FILE_DTYPES`.
    """
    if dtype is not None:
        check_choice("--dtype", dtype, FILE_DTYPES)


def _other_weights(target: Path) -> list[Path]:
    """Files beside one of weights that a library could load in its place: variants, pieces, other formats."""
    found = sorted(target.parent.iterdir()) if target.parent.is_dir() else []
    return [path for path in found if path != target and _WEIGHTS.fullmatch(path.name)]


def _check_free(target: Path, *, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already; add --overwrite to replace it")


def _write_part(part: Part, folder: Path, target: Path, dtype: str | None) -> Any:
    """Writes a network and returns its sizes."""
    config, params, stored = model_folder.load_part(part, folder)
    wanted = FILE_DTYPES[dtype or stored]
    arrays = torch_weights.state_dict_views(params, {}, flatten={})
    if wanted != np.float32:
        arrays = {name: _narrowed(name, array, wanted) for name, array in arrays.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    torch_weights.write_safetensors(target, arrays)
    return config


def _scheduler(folder: Path, unet: Path) -> dict[str, Any]:
    """The scheduler's configuration that came with the model, or one that fits to the UNet."""
    kept = folder / SCHEDULER_FILE
    schedule = model_folder.read_part_schedule(unet)
    if not kept.is_file() or folder_configs.read_schedule(kept) != schedule:
        return folder_configs.scheduler_document(schedule)
    found = reading.read_json(kept)
    return (
        {"_class_name": "PNDMScheduler"}
        | {key: value for key, value in found.items() if key[:1] != "_"}
        | {key: value for key, value in found.items() if key == "_class_name"}
    )


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


def _narrowed(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array in a narrower type."""
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if not np.isfinite(narrow.astype(np.float32)).all():
        raise WeightsError(f"{name} has numbers that {dtype} cannot hold; export it with --dtype float32")
    return narrow
