"""How diffusers and CompVis lay out the files of Stable Diffusion v1: folders, and names of tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from scissorhands_jax.diffusion.networks import PART_TITLES, DiffusionConfig, Part
from scissorhands_jax.diffusion.unet import UNetConfig
from scissorhands_jax.errors import WeightsError
from scissorhands_jax.torch_weights import is_averaged

FOLDERS: dict[Part, str] = {"unet": "unet", "vae": "vae", "text": "text_encoder"}
"""The folder of each network in a diffusers model."""

FILE_STEMS: dict[Part, str] = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text": "model",
}
"""The name of each network's file in that folder, without its ending."""

FILE_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""The types that weights are stored in."""

COMPVIS_PREFIXES: dict[Part, str] = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.",
}
"""How the names of each network begin in CompVis' checkpoint of all three."""

# What files of the networks also hold as a matter of course: the schedule, the losses of the VAE, CLIP's projection.
_USUAL = re.compile(
    r"(sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas(_cumprod)?(_prev)?|betas|posterior_\w+|logvar|lvlb_weights"
    r"|scale_factor|model_ema\.(decay|num_updates)|(.*\.)?loss\..*|(.*\.)?position_ids"
)
# What others have put next to a bare network. Next to a network with a prefix, anything may stand.
_FOREIGN = re.compile(
    r"(embedding_manager|safety_checker|control_model|model_ema|denoiser|optimizer|text_projection)\..*"
    r"|(.*\.)?(logit_scale|sigmas|log_sigmas|text_projection(\.weight)?)|global_step|epoch|iteration|step|__\w+__"
)
_COMPVIS_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_COMPVIS_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


Rename = Callable[[str], str]
"""From one of our names for a tensor to that in a file."""


class Fit(NamedTuple):
    """Where a network's tensors stand in a file."""

    sources: dict[str, str]
    """The name in the file of each tensor of ours that was found, and of each that no network here has, which are
    extra."""
    prefix: str
    """What the names of the network begin with."""
    averaged: bool
    """Whether the weights are averages over the training."""
    averages: bool
    """Whether the file holds averages besides."""
    aside: list[str]
    """What else lies in the file and is not the network's: heads of names, sorted."""


def fit_part(
    part: Part,
    config: DiffusionConfig,
    shapes: Mapping[str, tuple[int, ...]],
    names: Iterable[str],
    *,
    ema: bool | None = None,
) -> Fit:
    """Finds a network in a file, under the names of diffusers or of CompVis and behind any prefix.

    Args:
      part: Which network.
      config: The sizes of the networks, on which CompVis' names depend.
      shapes: The network's tensors by our names.
      names: The names in the file.
      ema: Whether averaged weights are taken. None takes others where there are any.

    Raises:
      WeightsError: Averages are asked for, and there are none.
    """
    held = dict.fromkeys(names)
    found = []
    for rank, rename in enumerate(part_layouts(part, config)):
        for prefix in _prefixes(part, rename, held):
            count = sum(prefix + rename(name) in held for name in shapes)
            found.append((count, -rank, prefix in COMPVIS_PREFIXES.values(), -len(prefix), prefix, rename))
    found = [each for each in found if each[0]] or [(0, 0, False, 0, "", lambda name: name)]
    most = max(each[0] for each in found)
    whole = [each for each in found if each[0] >= 0.9 * most]
    averages = [each for each in whole if is_averaged(each[4])]
    plain = [each for each in whole if each not in averages]
    if ema and not averages:
        raise WeightsError(
            f"the file holds no averaged weights (EMA) of the {PART_TITLES[part]}; leave --ema out to take what it has"
        )
    *_, prefix, rename = max(averages if ema or not plain else plain, key=lambda each: each[:4])
    sources = {name: prefix + rename(name) for name in shapes if prefix + rename(name) in held}
    taken = set(sources.values())
    aside = set()
    for name in held:
        if name in taken or _USUAL.fullmatch(name.removeprefix(prefix)) or _USUAL.fullmatch(name):
            continue
        if not name.startswith(prefix) or _FOREIGN.fullmatch(name.removeprefix(prefix)):
            aside.add(name)
        else:
            sources[name] = name
    others = tuple(other for key, other in COMPVIS_PREFIXES.items() if key != part)
    heads = {name.split(".")[0] for name in aside if not name.startswith(others) and not is_averaged(name)}
    return Fit(sources, prefix, is_averaged(prefix), bool(averages) and bool(plain), sorted(heads))


def _prefixes(part: Part, rename: Rename, names: Mapping[str, None]) -> set[str]:
    """What may stand before the names of a network: before a tensor that each such network has."""
    first = {
        "unet": "conv_in.weight",
        "vae": "encoder.conv_in.weight",
        "text": "text_model.embeddings.token_embedding.weight",
    }[part]
    anchor = rename(first)
    return {name.removesuffix(anchor) for name in names if name == anchor or name.endswith(_joined(anchor))}


def _joined(anchor: str) -> str:
    return anchor if "." not in anchor else f".{anchor}"


def part_layouts(part: Part, config: DiffusionConfig) -> list[Rename]:
    """The names that a network's tensors have in files, without prefixes; ours, which are diffusers', first.

    Args:
      part: The network.
      config: The sizes of the networks, on which CompVis' names depend. CompVis' names are the last but, for the UNet,
        those of its averages, which have no dots.
    """
    if part == "text":
        return [lambda name: name, lambda name: name.removeprefix("text_model.")]
    if part == "vae":
        return [lambda name: name, _old_attention, lambda name: _compvis_vae(name, len(config.vae.widths))]
    return [
        lambda name: name,
        lambda name: _compvis_unet(name, config.unet),
        lambda name: "diffusion_model" + _compvis_unet(name, config.unet).replace(".", ""),
    ]


def compvis_name(part: Part, config: DiffusionConfig, name: str) -> str:
    """The name of a tensor in CompVis' checkpoint of all three networks.

    Args:
      part: The network.
      config: The sizes of the networks.
      name: Our name.
    """
    compvis = {"text": name, "vae": _compvis_vae(name, len(config.vae.widths))}
    return COMPVIS_PREFIXES[part] + (compvis[part] if part in compvis else _compvis_unet(name, config.unet))


def _old_attention(name: str) -> str:
    """The VAE's attention as diffusers called it before version 0.15."""
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in words.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def _compvis_unet(name: str, config: UNetConfig) -> str:
    """A name of the UNet as CompVis has it, where the blocks of all levels are numbered in one sequence."""
    head, _, last = name.rpartition(".")
    if head in _COMPVIS_UNET_ENDS:
        return f"{_COMPVIS_UNET_ENDS[head]}.{last}"
    match = re.fullmatch(r"(mid_block|down_blocks\.\d+|up_blocks\.\d+)\.(\w+)\.(\d+)\.(.*)", name)
    assert match is not None, name
    block, kind, number, rest = match.groups()
    if kind == "resnets":
        inner, _, last = rest.rpartition(".")
        rest = f"{_COMPVIS_RESNET[inner]}.{last}"
    if block == "mid_block":
        return f"middle_block.{2 * int(number) if kind == 'resnets' else 1}.{rest}"
    level, count = int(block.rpartition(".")[2]), config.layers_per_block
    if block.startswith("down"):
        if kind == "downsamplers":
            return f"input_blocks.{(count + 1) * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{(count + 1) * level + int(number) + 1}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":
        attention = config.attention[::-1][level]
        return f"output_blocks.{(count + 1) * level + count}.{1 + attention}.{rest}"
    return f"output_blocks.{(count + 1) * level + int(number)}.{int(kind == 'attentions')}.{rest}"


def _compvis_vae(name: str, levels: int) -> str:
    """A name of the VAE as CompVis has it, where the decoder's levels are numbered from the image."""
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
