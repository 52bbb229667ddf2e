"""Stable Diffusion v1's weights from the files of diffusers and of CompVis, as Orbax checkpoints in a model's folder.

Tensors are read, renamed and laid out a few at a time. Importing the UNet, 3.2 GiB, took 4.8 GiB in total, including
Python and JAX (`experiments/results/diffusion_full_cpu.json`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from scissorhands_jax import files, hashing, torch_weights, trees
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import networks
from scissorhands_jax.diffusion.file_layouts import (
    COMPVIS_PREFIXES,
    FILE_DTYPES,
    FILE_STEMS,
    FOLDERS,
    ignored_names,
    tensor_aliases,
)
from scissorhands_jax.diffusion.model_folder import read_part_config, save_part
from scissorhands_jax.diffusion.networks import PART_TITLES, DiffusionConfig, Part
from scissorhands_jax.errors import InputError, WeightsError
from scissorhands_jax.training import checkpoints

_logger = logging.getLogger(__name__)

_ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")


class ImportedPart(NamedTuple):
    """What `import_weights` did with one network."""

    source: Path
    """The file that was read."""
    num_params: int
    """The number of parameters."""
    dtype: str
    """The type that they had in the file: float32, float16 or bfloat16."""


def import_weights(
    sources: Mapping[Part, Path],
    out: Path,
    config: DiffusionConfig = networks.SD_V1,
    *,
    overwrite: bool = False,
    resume: bool = False,
    on_part: Callable[[Part, ImportedPart], None] = lambda part, imported: None,
) -> dict[Part, ImportedPart]:
    """Writes networks as Orbax checkpoints into the folders `unet`, `vae` and `text` of a model's folder.

    Args:
      sources: For each network a file or a folder, as `find_file` takes them.
      out: The model's folder, which is made if it does not exist. Networks in it that `sources` does not name stay.
      config: The sizes that the networks must have.
      overwrite: Whether networks that exist are replaced.
      resume: Whether networks that exist are kept if they were imported from the very same file.
      on_part: Called whenever a network is written.

    Raises:
      InputError: There is nothing to import, or a network exists already, with `resume` from another file.
      WeightsError: A file is missing, damaged or holds another network. Every missing, extra and misshapen tensor is
        reported. Nothing was written for that network.
    """
    if not sources:
        raise InputError("there is nothing to import; name a diffusers folder or checkpoint, or single networks")
    found = {part: find_file(part, path) for part, path in sources.items()}
    files.remove_leftovers(out)
    for part in found:
        if (out / part).exists() and not (overwrite or resume):
            raise InputError(
                f"{out / part} exists already; add --resume to keep what was imported from the same file, or "
                "--overwrite to replace it"
            )
    done = {}
    for part, file in found.items():
        file_sha256 = hashing.file_sha256(file)
        if (out / part).exists() and not overwrite:
            done[part] = _kept(part, out, file, file_sha256, config)
        else:
            params, dtype = read_part_file(part, file, config)
            save_part(part, out, getattr(config, part), params, dtype, file.name, file_sha256=file_sha256)
            done[part] = ImportedPart(file, trees.count_weights(params), dtype)
            del params  # before the next network is read
        on_part(part, done[part])
    return done


def _kept(part: Part, out: Path, file: Path, file_sha256: str, config: DiffusionConfig) -> ImportedPart:
    """A network that an earlier call has imported from the same file.

    Raises:
      InputError: It was imported from another one, or with other sizes.
    """
    found, dtype = read_part_config(part, out)
    known = checkpoints.read_description(out / part).get("file_sha256")
    if known != file_sha256 or found != getattr(config, part):
        raise InputError(f"{out / part} was not imported from this {file.name}; add --overwrite to replace it")
    return ImportedPart(file, trees.count_weights(networks.outline(part, config)), dtype)


def read_part_file(part: Part, file: Path, config: DiffusionConfig = networks.SD_V1) -> tuple[Params, str]:
    """Reads one network from a file of its own or from a checkpoint of all three.

    Tensors may have the names of any version of diffusers or those of CompVis. `position_ids`, averaged weights
    (`model_ema`) and the schedule are ignored. Numbers become float32, which holds float16 and bfloat16 exactly.

    Args:
      part: Which of the three networks.
      file: The file, `.safetensors` or PyTorch's.
      config: The sizes that the network must have.

    Returns:
      The parameters, and the type that the file had: float32, float16 or bfloat16, or float32 if its tensors differ.

    Raises:
      WeightsError: See `import_weights`; also where a tensor holds NaN or infinity.
    """
    with torch_weights.open_state_dict(file) as tensors:
        other = describe_other_network(part, config, {name: tensors.shape(name) for name in tensors})
        if other is not None:
            raise WeightsError(f"{file} looks like {other}, not like the {PART_TITLES[part]} of Stable Diffusion v1")
        outline = networks.outline(part, config)
        shapes = torch_weights.state_dict_shapes(outline, {})
        renamed = RenamedTensors(
            tensors, shapes, aliases=tensor_aliases(part, config), is_ignored=ignored_names(part, tensors)
        )
        try:
            params, _ = torch_weights.from_state_dict(renamed, outline, {}, flatten={})
        except WeightsError as error:
            title = PART_TITLES[part]
            raise WeightsError(f"{file} does not hold the {title} of Stable Diffusion v1: {error}") from error
        types = {str(tensors.dtype(renamed.sources[name])) for name in shapes}
        if any(name.startswith("model_ema.") for name in tensors):
            _logger.warning("%s also holds averaged weights (model_ema), which were left aside", file)
    known = [name for name in FILE_DTYPES if name in types]
    return params, known[0] if len(types) == len(known) == 1 else "float32"


def find_file(part: Part, path: Path) -> Path:
    """The file with a network's weights.

    Args:
      part: Which of the three networks.
      path: The file itself, or the folder of the network or of the whole model, as diffusers writes them.

    Raises:
      InputError: There is no such file, or it is in several pieces or only half downloaded.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"there is no file or folder {path}")
        return path
    folder = path / FOLDERS[part] if (path / FOLDERS[part]).is_dir() else path
    stems = (FILE_STEMS[part], "pytorch_model") if part == "text" else (FILE_STEMS[part],)
    for ending in _ENDINGS:
        for stem in stems:
            if (folder / f"{stem}{ending}").is_file():
                return folder / f"{stem}{ending}"
    names = sorted(file.name for file in folder.iterdir())
    if any(name.endswith(".index.json") for name in names):
        raise InputError(
            f"the weights in {folder} are in several pieces, which Stable Diffusion v1's never are; give one file"
        )
    if any(name.endswith((".incomplete", ".part", ".crdownload", ".tmp")) for name in names):
        raise InputError(f"the weights in {folder} are only half downloaded ({', '.join(names)}); download them again")
    raise InputError(
        f"there is no {FILE_STEMS[part]}.safetensors in {folder}, it holds {', '.join(names[:10]) or 'nothing'}; "
        f"give the file of the {PART_TITLES[part]}"
    )


class RenamedTensors(Mapping[str, np.ndarray]):
    """The tensors of a file under our names.

    Tensors that none of our names belongs to keep their own, so that they are found to be extra. A 1x1 convolution and
    a linear map hold the same numbers, so axes of length 1 are added or removed at the end of a shape.

    Args:
      tensors: The file.
      shapes: The expected shapes by our names.
      aliases: Which names a tensor of ours may have in the file, in addition to ours.
      is_ignored: Whether a tensor of the file is left out.
    """

    def __init__(
        self,
        tensors: torch_weights.LazyStateDict,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        aliases: Callable[[str], Iterable[str]],
        is_ignored: Callable[[str], bool],
    ) -> None:
        self._tensors, self._shapes = tensors, shapes
        self.sources: dict[str, str] = {}
        for name in shapes:
            for alias in (name, *aliases(name)):
                if alias in tensors:
                    self.sources[name] = alias
                    break
        taken = set(self.sources.values())
        self.sources |= {name: name for name in tensors if name not in taken and not is_ignored(name)}

    def __getitem__(self, name: str) -> np.ndarray:
        source = self.sources[name]
        array, shape = self._tensors[source], self._shapes.get(name, ())
        longer, shorter = max(array.shape, shape, key=len), min(array.shape, shape, key=len)
        if 0 < len(shorter) < len(longer) and longer == (*shorter, *[1] * (len(longer) - len(shorter))):
            array = array.reshape(shape)
        if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
            raise WeightsError(f"{source} holds NaN or infinity; there is no network to work with")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __contains__(self, name: object) -> bool:
        return name in self.sources


def describe_other_network(part: Part, config: DiffusionConfig, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What a file looks like, if it is not the network that is expected.

    Args:
      part: The network that is expected.
      config: The sizes that it must have.
      shapes: The shapes of the file's tensors by their names.

    Returns:
      A noun phrase, or None where nothing speaks against the file.
    """

    def size(ending: str, axis: int) -> int | None:
        return next(
            (shape[axis] for name, shape in shapes.items() if name.endswith(ending) and len(shape) > axis), None
        )

    def has(*words: str) -> bool:
        return any(word in name for name in shapes for word in words)

    if has("lora_up.", "lora_down.", ".lora_A.", ".lora_B."):
        return "a LoRA, which is a difference between networks"
    if has("conditioner.embedders."):
        return "a checkpoint of SDXL"
    if has("cond_stage_model.model.transformer."):
        return "a checkpoint of Stable Diffusion v2"
    if has("double_blocks.", "joint_blocks.", "joint_transformer_blocks.", "pos_embed.proj."):
        return "a diffusion transformer (Stable Diffusion 3 or FLUX)"
    context, channels = size("attn2.to_k.weight", 1), size("input_blocks.0.0.weight", 1) or size("conv_in.weight", 1)
    holds_all = has(*COMPVIS_PREFIXES.values())
    if context is not None and (part == "unet" or not holds_all):
        if part != "unet":
            return "a UNet"
        if context != config.unet.context_width:
            known = {768: "v1", 1024: "v2", 1280: "XL (the refiner)", 2048: "XL"}
            return f"the UNet of Stable Diffusion {known.get(context, f'for prompts of width {context}')}"
        if channels in (8, 9) and channels != config.unet.channels:
            return (
                f"a UNet for editing or inpainting, which takes {channels} channels instead of {config.unet.channels}"
            )
        return None
    width = size("self_attn.q_proj.weight", 0)
    if width is not None and not holds_all:
        if part != "text":
            return "a text encoder"
        if has("vision_model."):
            return "a whole CLIP model with its image encoder; save its text model alone"
        if width != config.text.width:
            known = {768: "v1", 1024: "v2", 1280: "XL (the second)"}
            return f"the text encoder of Stable Diffusion {known.get(width, f'with width {width}')}"
        return None
    if part != "vae" and not holds_all and has("quant_conv."):
        return "a VAE"
    return None
