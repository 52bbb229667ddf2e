"""Stable Diffusion v1's weights: from diffusers' and CompVis' files to Orbax, and back to diffusers'.

Tensors are read, renamed, laid out and written a few at a time. Exporting the UNet, 3.2 GiB, took 4.0 GiB and importing
it 4.8, with Python and JAX therein (`experiments/results/diffusion_full_cpu.json`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from scissorhands_jax import files, hashing, torch_weights, trees
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import networks, vision
from scissorhands_jax.diffusion.networks import PARTS, DiffusionConfig, Part
from scissorhands_jax.errors import CheckpointError, InputError, WeightsError
from scissorhands_jax.training import checkpoints

FOLDERS: dict[Part, str] = {"unet": "unet", "vae": "vae", "text": "text_encoder"}
EXPORT_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

_NAMES: dict[Part, str] = {"unet": "UNet", "vae": "VAE", "text": "text encoder"}
_FILES: dict[Part, str] = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text": "model",
}
_PREFIXES: dict[Part, str] = {  # in CompVis' checkpoint of all three
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.",
}
_ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
# What a checkpoint of all three networks holds besides them: the schedule, averaged weights, the losses of the VAE.
_BESIDES = re.compile(
    r"(sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas(_cumprod)?(_prev)?|betas|posterior_\w+|logvar|lvlb_weights"
    r"|scale_factor|model_ema\..*|loss\..*"
)


class ImportedPart(NamedTuple):
    """What `import_weights` did with one network."""

    source: Path
    num_params: int
    dtype: str


def import_weights(
    sources: Mapping[Part, Path],
    out: Path,
    config: DiffusionConfig = networks.SD_V1,
    *,
    overwrite: bool = False,
    on_part: Callable[[Part, ImportedPart], None] = lambda part, imported: None,
) -> dict[Part, ImportedPart]:
    """Writes networks as Orbax checkpoints into the folders `unet`, `vae` and `text` of `out`.

    Args:
      sources: for each network a file or a folder, as `find_file` takes them.
      out: made if it does not exist; networks that are there already stay, unless they are named in `sources`.
      config: sizes that the networks must have.
      overwrite: replace networks that are there.
      on_part: called when a network is written.

    Raises:
      InputError: nothing to import, or a network is there already.
      WeightsError: a file is missing, damaged or holds another network; every missing, extra and misshapen tensor is
        reported. Nothing was written for that network.
    """
    if not sources:
        raise InputError("there is nothing to import; name a diffusers folder or checkpoint, or single networks")
    found = {part: find_file(part, path) for part, path in sources.items()}
    for part in found:
        if (out / part).exists() and not overwrite:
            raise InputError(f"{out / part} exists already; add --overwrite to replace it")
    done = {}
    for part, file in found.items():
        params, dtype = read_part_file(part, file, config)
        save_part(part, out, getattr(config, part), params, dtype, file.name)
        done[part] = ImportedPart(file, trees.count_weights(params), dtype)
        on_part(part, done[part])
        del params
    return done


def read_part_file(part: Part, file: Path, config: DiffusionConfig = networks.SD_V1) -> tuple[Params, str]:
    """Reads one network from a file of its own or from a checkpoint of all three.

    Known names are diffusers' of all versions and those of CompVis. `position_ids`, averaged weights (`model_ema`) and
    the schedule are left aside. Numbers become float32, which holds float16 and bfloat16 exactly.

    Returns:
      The params, and the type that the file had: float32, float16 or bfloat16, the widest if they differ.

    Raises:
      WeightsError: see `import_weights`; also NaN or infinity.
    """
    with torch_weights.open_state_dict(file) as tensors:
        wrong = _other_network(part, config, {name: tensors.shape(name) for name in tensors})
        if wrong is not None:
            raise WeightsError(f"{file} looks like {wrong}, not like the {_NAMES[part]} of Stable Diffusion v1")
        outline = networks.outline(part, config)
        shapes = torch_weights.state_dict_shapes(outline, {})
        renamed = _Renamed(tensors, shapes, _aliases(part, config), _left_aside(part, tensors))
        try:
            params, _ = torch_weights.from_state_dict(renamed, outline, {})
        except WeightsError as error:
            raise WeightsError(f"{file} does not hold the {_NAMES[part]} of Stable Diffusion v1: {error}") from error
        types = {str(tensors.dtype(renamed.sources[name])) for name in shapes}
    widths = [name for name in EXPORT_DTYPES if name in types]
    return params, widths[0] if len(types) == len(widths) == 1 else "float32"


def read_clip(path: Path) -> tuple[str, Params]:
    """Reads OpenAI's CLIP, both encoders, from a file in the layout of transformers' CLIPModel.

    `position_ids` and `logit_scale`, which no feature depends on, are left aside.

    Args:
      path: the file, `.safetensors` or PyTorch's, or the folder with `model.safetensors` or `pytorch_model.bin`.

    Returns:
      The name of the network in `vision.CLIPS` and its params, float32.

    Raises:
      InputError: there is no such file.
      WeightsError: it is damaged or holds another network; every missing, extra and misshapen tensor is reported.
    """
    file = path
    if path.is_dir():
        names = ("model.safetensors", "pytorch_model.bin")
        file = next((path / name for name in names if (path / name).is_file()), path / names[0])
    if not file.is_file():
        raise InputError(f"there is no file {file}; give the model.safetensors of a CLIP model of transformers")
    with torch_weights.open_state_dict(file) as tensors:
        name = _clip_name(file, {name: tensors.shape(name) for name in tensors})
        outline = vision.clip_outline(vision.CLIPS[name])
        shapes = torch_weights.state_dict_shapes(outline, {})
        renamed = _Renamed(
            tensors, shapes, lambda name: (), lambda name: name == "logit_scale" or name.endswith(".position_ids")
        )
        try:
            params, _ = torch_weights.from_state_dict(renamed, outline, {})
        except WeightsError as error:
            raise WeightsError(f"{file} does not hold CLIP {name}: {error}") from error
    return name, params


def _clip_name(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Which of `vision.CLIPS` a file is to hold, by its patches and positions."""
    advice = "give the model.safetensors of OpenAI's CLIP ViT-L/14 in the layout of transformers' CLIPModel"
    if any(name.startswith("visual.") for name in shapes):
        raise WeightsError(f"{file} is CLIP in the layout of its authors or of open_clip; {advice}")
    keys = [f"vision_model.embeddings.{kind}_embedding.weight" for kind in ("patch", "position")]
    if not set(keys) <= set(shapes):
        what = "a text encoder alone" if any("self_attn.q_proj" in name for name in shapes) else "something else"
        raise WeightsError(f"{file} has no image encoder of CLIP, it holds {what}; {advice}")
    patches, positions = (shapes[key] for key in keys)
    sizes = {name: config.vision for name, config in vision.CLIPS.items()}
    name = next(
        (
            name
            for name, size in sizes.items()
            if patches == (size.width, 3, size.patch, size.patch)
            and positions == (1 + (size.size // size.patch) ** 2, size.width)
        ),
        None,
    )
    if name is None:
        known = ", ".join(name for name in sizes if name != "tiny")
        raise WeightsError(
            f"{file} is a CLIP with patches {patches} and positions {positions}, none of {known}; {advice}"
        )
    described = file.with_name("config.json")
    if described.is_file():
        try:
            activation = files.read_json(described)["vision_config"]["hidden_act"]
        except (OSError, ValueError, KeyError, TypeError):
            return name
        if activation != "quick_gelu":
            raise WeightsError(f"{described} names the activation {activation}, and OpenAI's is quick_gelu; {advice}")
    return name


def find_file(part: Part, path: Path) -> Path:
    """The file with a network's weights.

    Args:
      part: which network.
      path: a file; or the folder of the network, or of the whole model, as diffusers writes them.

    Raises:
      InputError: there is none, or it is in pieces or only half downloaded.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"there is no file or folder {path}")
        return path
    folder = path / FOLDERS[part] if (path / FOLDERS[part]).is_dir() else path
    stems = (_FILES[part], "pytorch_model") if part == "text" else (_FILES[part],)
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
        f"there is no {_FILES[part]}.safetensors in {folder}, it holds {', '.join(names[:10]) or 'nothing'}; "
        f"give the file of the {_NAMES[part]}"
    )


def load_part(part: Part, folder: Path) -> tuple[Any, Params, str]:
    """Reads a network that `import_weights` or an unlearning run wrote.

    Returns:
      Its config (`UNetConfig`, `VAEConfig` or `TextConfig`), its params and the type that its file had.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    config, dtype = read_part_config(part, folder)
    outline = networks.outline(part, dataclasses.replace(networks.SD_V1, **{part: config}))
    params, _ = checkpoints.load_network(folder / part, outline, {})
    return config, params, dtype


def read_part_config(part: Part, folder: Path) -> tuple[Any, str]:
    """What `load_network` returns, without the params, which are not read.

    Raises:
      CheckpointError: see `load_network`.
    """
    path = folder / part
    description = checkpoints.read_description(path)
    kind = type(getattr(networks.SD_V1, part))
    try:
        if description["diffusion"] != part:
            raise ValueError(f"it is a {description['diffusion']}")
        sizes = {
            name: tuple(value) if isinstance(value, list) else value for name, value in description["config"].items()
        }
        config, dtype = kind(**sizes), str(description["dtype"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} holds no {_NAMES[part]} of Stable Diffusion v1: {error}") from error
    return config, dtype


def save_part(part: Part, folder: Path, config: Any, params: Params, dtype: str, source: str) -> None:
    """Writes a network where `load_network` finds it; one that is there is replaced when the new one is whole.

    Args:
      part, folder: the network goes into the folder of this name in that one.
      config: its sizes.
      params: its parameters.
      dtype: the type that `export_weights` writes it in.
      source: what it was made from, for people.
    """
    description = {"diffusion": part, "config": dataclasses.asdict(config), "dtype": dtype, "source": source}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save_network(folder / part, params, {}, description)


def part_sha256(part: Part, folder: Path) -> str:
    """The SHA-256 of the description of a network in a folder, which has a checksum of its numbers; hexadecimal."""
    read_part_config(part, folder)
    return hashing.file_sha256(folder / part / "meta" / "metadata")


def export_weights(
    folder: Path, out: Path, *, parts: Iterable[Part] = PARTS, dtype: str | None = None, overwrite: bool = False
) -> dict[Part, Path]:
    """Writes the networks in a folder as `.safetensors` with a `config.json` each, laid out as diffusers does.

    Numbers are those of the import, bit by bit, unless they were changed since.

    Args:
      folder: as `import_weights` made it.
      out: the folder to write.
      parts: which networks; those that `folder` does not have are left out.
      dtype: of the files, `float32`, `float16` or `bfloat16`; None takes the type that the imported file had.
      overwrite: replace files that are there.

    Raises:
      InputError: there is no such network, or a file is there already.
      WeightsError: a file cannot be written, or a number does not fit into `dtype`.
    """
    if dtype is not None and dtype not in EXPORT_DTYPES:
        raise InputError(f"--dtype is {dtype}; choose one of {', '.join(EXPORT_DTYPES)}")
    present = [part for part in parts if (folder / part).is_dir()]
    if not present:
        raise InputError(f"there is no network in {folder}; import one first")
    targets = {part: out / FOLDERS[part] / f"{_FILES[part]}.safetensors" for part in present}
    for target in targets.values():
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists already; add --overwrite to replace it")
    for part, target in targets.items():
        config, params, stored = load_part(part, folder)
        wanted = EXPORT_DTYPES[dtype or stored]
        arrays = torch_weights.state_dict_views(params, {})
        if wanted != np.float32:
            arrays = {name: _narrowed(name, array, wanted) for name, array in arrays.items()}
        target.parent.mkdir(parents=True, exist_ok=True)
        torch_weights.write_safetensors(target, arrays)
        files.write_text(target.parent / "config.json", json.dumps(diffusers_config(part, config), indent=2) + "\n")
        del params, arrays
    return targets


def _narrowed(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if not np.isfinite(narrow.astype(np.float32)).all():
        raise WeightsError(f"{name} has numbers that {dtype} cannot hold; export it with --dtype float32")
    return narrow


class _Renamed(Mapping[str, np.ndarray]):
    """The tensors of a file under our names; those that have none keep their own, so that they are found to be extra.

    A 1x1 convolution and a linear map are the same numbers, so axes of length 1 at the end come and go.
    """

    def __init__(
        self,
        tensors: torch_weights.LazyStateDict,
        shapes: Mapping[str, tuple[int, ...]],
        aliases: Callable[[str], Iterable[str]],
        left_aside: Callable[[str], bool],
    ) -> None:
        self._tensors, self._shapes = tensors, shapes
        self.sources: dict[str, str] = {}
        for name in shapes:
            for alias in (name, *aliases(name)):
                if alias in tensors:
                    self.sources[name] = alias
                    break
        taken = set(self.sources.values())
        self.sources |= {name: name for name in tensors if name not in taken and not left_aside(name)}

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


def _left_aside(part: Part, names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name of a file is none of the network's business."""
    whole = any(name.startswith(tuple(_PREFIXES.values())) for name in names)
    others = tuple(prefix for other, prefix in _PREFIXES.items() if other != part)

    def left_aside(name: str) -> bool:
        if name.endswith("embeddings.position_ids"):
            return True
        beside = _BESIDES.fullmatch(name) is not None
        return (beside or name.startswith(others)) if whole else (beside and part == "vae")

    return left_aside


def _aliases(part: Part, config: DiffusionConfig) -> Callable[[str], Iterable[str]]:
    """What a tensor of ours may be called in a file: by older versions of diffusers and by CompVis."""
    if part == "text":
        return lambda name: (name.removeprefix("text_model."), _PREFIXES[part] + name)
    if part == "unet":
        return lambda name: (_PREFIXES[part] + _compvis_unet(name, config.unet.layers_per_block, config),)

    def of_vae(name: str) -> Iterable[str]:
        compvis = _compvis_vae(name, len(config.vae.widths))
        return _old_attention(name), compvis, _PREFIXES[part] + compvis

    return of_vae


def _old_attention(name: str) -> str:
    """The VAE's attention as diffusers called it before version 0.15."""
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in words.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


_COMPVIS_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _compvis_unet(name: str, count: int, config: DiffusionConfig) -> str:
    """A name of the UNet as CompVis has it: blocks of all levels are counted through."""
    ends = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    head, _, last = name.rpartition(".")
    if head in ends:
        return f"{ends[head]}.{last}"
    block, kind, number, rest = re.fullmatch(
        r"(mid_block|down_blocks\.\d+|up_blocks\.\d+)\.(\w+)\.(\d+)\.(.*)", name
    ).groups()  # type: ignore[union-attr]
    if kind == "resnets":
        inner, _, last = rest.rpartition(".")
        rest = f"{_COMPVIS_RESNET[inner]}.{last}"
    if block == "mid_block":
        return f"middle_block.{2 * int(number) if kind == 'resnets' else 1}.{rest}"
    level = int(block.rpartition(".")[2])
    if block.startswith("down"):
        if kind == "downsamplers":
            return f"input_blocks.{(count + 1) * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{(count + 1) * level + int(number) + 1}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":
        attention = config.unet.attention[::-1][level]
        return f"output_blocks.{(count + 1) * level + count}.{1 + attention}.{rest}"
    return f"output_blocks.{(count + 1) * level + int(number)}.{int(kind == 'attentions')}.{rest}"


def _compvis_vae(name: str, levels: int) -> str:
    """A name of the VAE as CompVis has it: the decoder's levels are counted from the image."""
    name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    for new, old in (
        ("down_blocks.", "down."),
        (".resnets.", ".block."),
        (".downsamplers.0.", ".downsample."),
        (".upsamplers.0.", ".upsample."),
        ("mid_block.block.0.", "mid.block_1."),
        ("mid_block.block.1.", "mid.block_2."),
        ("mid_block.attentions.0.", "mid.attn_1."),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        (".group_norm.", ".norm."),
        (".to_q.", ".q."),
        (".to_k.", ".k."),
        (".to_v.", ".v."),
        (".to_out.0.", ".proj_out."),
    ):
        name = name.replace(new, old)
    return name


def _other_network(part: Part, config: DiffusionConfig, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What a file looks like to somebody who knows the family, if it is not the network that was asked for."""

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
    whole = has(*_PREFIXES.values())
    if context is not None and (part == "unet" or not whole):
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
    if width is not None and not whole:
        if part != "text":
            return "a text encoder"
        if has("vision_model."):
            return "a whole CLIP model with its image encoder; save its text model alone"
        if width != config.text.width:
            known = {768: "v1", 1024: "v2", 1280: "XL (the second)"}
            return f"the text encoder of Stable Diffusion {known.get(width, f'with width {width}')}"
        return None
    if part != "vae" and not whole and has("quant_conv."):
        return "a VAE"
    return None


def diffusers_config(part: Part, config: Any) -> dict[str, Any]:
    """The content of a `config.json`: what diffusers and transformers need to build a network with this config."""
    if part == "unet":
        cross = [attention for attention in config.attention]
        return {
            "_class_name": "UNet2DConditionModel",
            "in_channels": config.channels,
            "out_channels": config.channels,
            "block_out_channels": config.widths,
            "layers_per_block": config.layers_per_block,
            "attention_head_dim": config.heads,  # their name for the number of heads
            "cross_attention_dim": config.context_width,
            "norm_num_groups": config.groups,
            "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in cross],
            "up_block_types": ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in cross[::-1]],
            "sample_size": 64,
        }
    if part == "vae":
        return {
            "_class_name": "AutoencoderKL",
            "in_channels": config.channels,
            "out_channels": config.channels,
            "latent_channels": config.latent_channels,
            "block_out_channels": config.widths,
            "layers_per_block": config.layers_per_block,
            "norm_num_groups": config.groups,
            "scaling_factor": config.scaling,
            "down_block_types": ["DownEncoderBlock2D"] * len(config.widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(config.widths),
            "sample_size": 512,
        }
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.length,
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
