"""Recognises files of other networks, so that an error can say what was given."""

from __future__ import annotations

from collections.abc import Mapping

from scissorhands_jax.diffusion.file_layouts import COMPVIS_PREFIXES
from scissorhands_jax.diffusion.networks import DiffusionConfig, Part

_TEXT_WIDTHS = (768, 1024, 1280)  # of the text encoders of Stable Diffusion v1, v2 and XL


def describe_other_network(
    part: Part, config: DiffusionConfig, shapes: Mapping[str, tuple[int, ...]], where: str = ""
) -> str | None:
    """What a file looks like, if it is not the network that is expected.

    Args:
      part: The network that is expected.
      config: The sizes that it must have.
      shapes: The shapes of the file's tensors by their names.
      where: The place of the tensors in a checkpoint, as `LazyStateDict` has it.

    Returns:
      A noun phrase, or None where nothing speaks against the file.
    """

    def size(ending: str, axis: int) -> int | None:
        return next(
            (shape[axis] for name, shape in shapes.items() if name.endswith(ending) and len(shape) > axis), None
        )

    def has(*words: str) -> bool:
        return any(word in name for name in shapes for word in words)

    if has(
        "lora_up.", "lora_down.", ".lora_A.", ".lora_B.", "lora.up.", "lora.down.", "hada_w", "lokr_w", "lora_linear"
    ):
        return "a LoRA, which is a difference between networks; merge it into its network first"
    few = 0 < len(shapes) <= 4 and not has(".weight", ".bias")
    widths = (*_TEXT_WIDTHS, config.text.width)
    # The first ones keep a token's id as a tensor beside the embeddings, and these in an object that is not read.
    embeds = few and all(len(shape) in (1, 2) and shape[-1] in widths for shape in shapes.values())
    if embeds or "string_to_token" in where:
        return "a textual inversion, which is a few embeddings of new words"
    if has("image_proj.", "ip_adapter."):
        return "an IP-Adapter, which stands beside a network"
    if has("motion_modules."):
        return "a motion module of AnimateDiff, which stands inside of a network"
    hinted = has("input_hint_block.", "controlnet_cond_embedding.")
    if hinted and not any(name.startswith("model.diffusion_model.") for name in shapes) and not has("up_blocks."):
        return "a ControlNet, which stands beside a network"
    if has("conditioner.embedders."):
        return "a checkpoint of SDXL"
    if has("cond_stage_model.model.transformer."):
        return "a checkpoint of Stable Diffusion v2"
    if has("double_blocks.", "joint_blocks.", "joint_transformer_blocks.", "pos_embed.proj."):
        return "a diffusion transformer (Stable Diffusion 3 or FLUX)"
    context, channels = size("attn2.to_k.weight", 1), size("input_blocks.0.0.weight", 1) or size("conv_in.weight", 1)
    holds_all = any(name.startswith(tuple(COMPVIS_PREFIXES.values())) for name in shapes)
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
