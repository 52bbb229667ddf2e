"""How diffusers and CompVis lay out the files of Stable Diffusion v1: folders, names of tensors, and `config.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np

from scissorhands_jax.diffusion.networks import DiffusionConfig, Part, PartConfig
from scissorhands_jax.diffusion.unet import UNetConfig
from scissorhands_jax.diffusion.vae import VAEConfig

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

# What a checkpoint of all three networks also holds: the schedule, averaged weights, the losses of the VAE, and what
# others have put next to them.
_IGNORED = re.compile(
    r"(sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas(_cumprod)?(_prev)?|betas|posterior_\w+|logvar|lvlb_weights"
    r"|scale_factor|model_ema\..*|loss\..*|embedding_manager\..*|safety_checker\..*|control_model\..*|global_step"
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


def ignored_names(part: Part, names: Iterable[str]) -> Callable[[str], bool]:
    """A predicate: whether a tensor of a file does not belong to a network and may be ignored.

    Args:
      part: The network that is read.
      names: All names in the file.
    """
    holds_all = any(name.startswith(tuple(COMPVIS_PREFIXES.values())) for name in names)
    others = tuple(prefix for other, prefix in COMPVIS_PREFIXES.items() if other != part)

    def is_ignored(name: str) -> bool:
        if name.endswith("embeddings.position_ids"):
            return True
        no_parameter = _IGNORED.fullmatch(name) is not None
        return (no_parameter or name.startswith(others)) if holds_all else (no_parameter and part == "vae")

    return is_ignored


def tensor_aliases(part: Part, config: DiffusionConfig) -> Callable[[str], Iterable[str]]:
    """A function from one of our names for a tensor to those that it has in files of CompVis and of older diffusers.

    Args:
      part: The network.
      config: The sizes of the networks, on which CompVis' names depend. The last alias is CompVis' in a checkpoint of
        all three networks.
    """
    if part == "text":
        compvis = COMPVIS_PREFIXES[part]

        def of_text(name: str) -> Iterable[str]:
            bare = name.removeprefix("text_model.")
            return bare, compvis + bare, compvis + name  # the second as in checkpoints that descend from NovelAI's

        return of_text
    if part == "unet":
        return lambda name: (COMPVIS_PREFIXES[part] + _compvis_unet(name, config.unet),)

    def of_vae(name: str) -> Iterable[str]:
        compvis = _compvis_vae(name, len(config.vae.widths))
        return _old_attention(name), compvis, COMPVIS_PREFIXES[part] + compvis

    return of_vae


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


def diffusers_config(config: PartConfig) -> dict[str, Any]:
    """The content of a network's `config.json`: what diffusers and transformers need to build it.

    Args:
      config: The sizes of the network, whose type says which of the three it is.
    """
    if isinstance(config, UNetConfig):
        return {
            "_class_name": "UNet2DConditionModel",
            "in_channels": config.channels,
            "out_channels": config.channels,
            "block_out_channels": config.widths,
            "layers_per_block": config.layers_per_block,
            "attention_head_dim": config.heads,  # their name for the number of heads
            "cross_attention_dim": config.context_width,
            "norm_num_groups": config.groups,
            "down_block_types": ["CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in config.attention],
            "up_block_types": ["CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in config.attention[::-1]],
            "sample_size": 64,
        }
    if isinstance(config, VAEConfig):
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
