"""From a model's folder to the `.safetensors` files of diffusers.

Tensors are laid out and written a few at a time. Exporting the UNet, 3.2 GiB, took 4.0 GiB in total, including Python
and JAX (`experiments/results/diffusion_full_cpu.json`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from scissorhands_jax import files, torch_weights
from scissorhands_jax.diffusion.file_layouts import FILE_DTYPES, FILE_STEMS, FOLDERS, diffusers_config
from scissorhands_jax.diffusion.model_folder import load_part
from scissorhands_jax.diffusion.networks import PARTS, Part
from scissorhands_jax.errors import InputError, WeightsError, check_choice


def export_weights(
    folder: Path, out: Path, *, parts: Iterable[Part] = PARTS, dtype: str | None = None, overwrite: bool = False
) -> dict[Part, Path]:
    """Writes the networks of a model as `.safetensors` with a `config.json` each, in the layout of diffusers.

    Numbers are those of the import, bit by bit, unless they were changed since.

    Args:
      folder: The model's folder, as `importing.import_weights` made it.
      out: The folder to write.
      parts: Which networks to write. Those that the model does not have are left out.
      dtype: The type of the files: `float32`, `float16` or `bfloat16`. By default each network has the type that its
        imported file had.
      overwrite: Whether files that exist are replaced.

    Returns:
      The file of each network.

    Raises:
      InputError: There is no such network, or a file exists already.
      WeightsError: A file cannot be written, or a number is too large for `dtype`.
    """
    if dtype is not None:
        check_choice("--dtype", dtype, FILE_DTYPES)
    present = [part for part in parts if (folder / part).is_dir()]
    if not present:
        raise InputError(f"there is no network in {folder}; import one first")
    targets = {part: out / FOLDERS[part] / f"{FILE_STEMS[part]}.safetensors" for part in present}
    for target in targets.values():
        files.remove_leftovers(target.parent)
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists already; add --overwrite to replace it")
    for part, target in targets.items():
        config, params, stored = load_part(part, folder)
        wanted = FILE_DTYPES[dtype or stored]
        arrays = torch_weights.state_dict_views(params, {}, flatten={})
        if wanted != np.float32:
            arrays = {name: _narrowed(name, array, wanted) for name, array in arrays.items()}
        target.parent.mkdir(parents=True, exist_ok=True)
        torch_weights.write_safetensors(target, arrays)
        files.write_text(target.parent / "config.json", json.dumps(diffusers_config(config), indent=2) + "\n")
        del params, arrays  # before the next network is read
    return targets


def _narrowed(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array in a narrower type."""
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if not np.isfinite(narrow.astype(np.float32)).all():
        raise WeightsError(f"{name} has numbers that {dtype} cannot hold; export it with --dtype float32")
    return narrow
