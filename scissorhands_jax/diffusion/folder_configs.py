"""The configurations in a folder of diffusers: sizes and schedules are read from them and written into them.

Only what makes another network or another training is read. A value that the networks here cannot have is refused with
its name; keys that nobody knows are named in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scissorhands_jax import reading
from scissorhands_jax.diffusion.networks import PART_TITLES, Part, PartConfig
from scissorhands_jax.diffusion.schedules import Schedule
from scissorhands_jax.diffusion.text import TextConfig
from scissorhands_jax.diffusion.unet import UNetConfig
from scissorhands_jax.diffusion.vae import VAEConfig
from scissorhands_jax.errors import InputError

_logger = logging.getLogger(__name__)

PIPELINE_FILE = "model_index.json"
PART_CONFIG_FILE = "config.json"
SCHEDULER_FILE = "scheduler_config.json"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionPipelineSafe", "StableDiffusionImg2ImgPipeline")
"""The pipelines of diffusers whose networks are of Stable Diffusion v1's kind."""

_CLASSES: dict[Part, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text": ("CLIPTextModel",),
}
_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
_MIDDLES = {"UNetMidBlock2DCrossAttn": True, None: False}
_MAX_SIZE = 2**17  # of a width or a count; Stable Diffusion's largest is the vocabulary, 49,408

# What the networks here have by construction: keys of config.json with the values that mean it. A key that is missing
# has the default of its class, which is the first value.
_FIXED: dict[Part, dict[str, tuple[Any, ...]]] = {
    "unet": {
        "act_fn": ("silu", "swish"),
        "addition_embed_type": (None,),
        "attention_type": ("default",),
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "class_embeddings_concat": (False,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "cross_attention_norm": (None,),
        "downsample_padding": (1,),
        "dropout": (0,),
        "dual_cross_attention": (False,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "flip_sin_to_cos": (True,),
        "freq_shift": (0,),
        "mid_block_only_cross_attention": (None, False),
        "mid_block_scale_factor": (1,),
        "norm_eps": (1e-5,),
        "num_class_embeds": (None,),
        "only_cross_attention": (False,),
        "resnet_out_scale_factor": (1,),
        "resnet_skip_time_act": (False,),
        "resnet_time_scale_shift": ("default",),
        "reverse_transformer_layers_per_block": (None,),
        "time_cond_proj_dim": (None,),
        "time_embedding_act_fn": (None,),
        "time_embedding_dim": (None,),
        "time_embedding_type": ("positional",),
        "timestep_post_act": (None,),
        "transformer_layers_per_block": (1,),
        "use_linear_projection": (False,),
    },
    "vae": {
        "act_fn": ("silu", "swish"),
        "latents_mean": (None,),
        "latents_std": (None,),
        "mid_block_add_attention": (True,),
        "shift_factor": (None, 0),
        "use_post_quant_conv": (True,),
        "use_quant_conv": (True,),
    },
    "text": {"attention_dropout": (0,), "hidden_act": ("quick_gelu",), "layer_norm_eps": (1e-5,)},
}
# Keys that change nothing here: which precision and memory others use, and what other classes than these would read.
_UNUSED: dict[Part, set[str]] = {
    "unet": {"addition_embed_type_num_heads", "addition_time_embed_dim", "num_attention_heads", "upcast_attention"}
    | {"projection_class_embeddings_input_dim", "sample_size"},
    "vae": {"force_upcast", "sample_size"},
    "text": set(),  # transformers' configurations have dozens that are the same for every model
}


class _Document:
    """The content of a configuration, which says in errors what was found where."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what, self.read = path, what, set[str]()
        try:
            found = reading.read_json(path)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}; copy or download it again") from error
        if not isinstance(found, dict):
            raise InputError(f"{path} holds no JSON object; copy or download it again")
        self.content: dict[str, Any] = found

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return self.content.get(key, default)

    def refused(self, key: str, needed: str) -> InputError:
        """The error for a value that cannot be used."""
        return InputError(
            f"{self.path} has {key} = {str(self.content.get(key))[:80]!r}, and {self.what} here needs {needed}; import "
            "a model of Stable Diffusion v1's kind"
        )

    def whole(self, key: str, default: int, least: int = 1) -> int:
        """A whole number; a list of equal numbers counts as one."""
        value = self.get(key, default)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if type(value) is not int or not least <= value <= _MAX_SIZE:
            several = isinstance(value, list)
            raise self.refused(
                key, f"{'the same' if several else 'a'} whole number{' on all levels' if several else ''}"
            )
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number between two others."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not low < value < high:
            raise self.refused(key, f"a number between {low:g} and {high:g}")
        return float(value)

    def words(self, key: str, default: Sequence[str], known: Mapping[Any, bool]) -> tuple[bool, ...]:
        """A list of words, as what they mean."""
        value = self.get(key, default)
        if not isinstance(value, list) or not value or not all(_is_word(each) and each in known for each in value):
            raise self.refused(key, f"a list of {', '.join(map(str, known))}")
        return tuple(known[each] for each in value)

    def fixed(self, key: str, allowed: tuple[Any, ...]) -> None:
        """Refuses any other value than some."""
        value = self.get(key, allowed[0])
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]  # such as transformer_layers_per_block
        if not any(value == each and (value is None) == (each is None) for each in allowed):
            raise self.refused(key, " or ".join(map(str, allowed)))


def _is_word(value: object) -> bool:
    return value is None or isinstance(value, str)


def check_pipeline(folder: Path) -> None:
    """Refuses a folder whose `model_index.json` is that of another pipeline than Stable Diffusion v1's.

    Args:
      folder: The folder of the model; one without that file is not refused.

    Raises:
      InputError: It is another pipeline, or the file cannot be read.
    """
    path = folder / PIPELINE_FILE
    if not path.is_file():
        return
    document = _Document(path, "a pipeline")
    if document.get("_class_name") not in PIPELINES:
        raise document.refused("_class_name", PIPELINES[0])
    aside = [
        name
        for name in ("safety_checker", "image_encoder")
        if isinstance(value := document.get(name), list) and value[:1] not in ([], [None])
    ]
    if aside:
        _logger.warning("%s also names %s, which images here do without; left aside", path, " and ".join(aside))


def read_sizes(part: Part, path: Path) -> PartConfig:
    """The sizes of a network from its `config.json`.

    Args:
      part: Which of the three networks it must be.
      path: The file.

    Raises:
      InputError: The file cannot be read, or is of a network that cannot be built here.
    """
    document = _Document(path, f"a {PART_TITLES[part]}")
    name = document.get("_class_name") or (document.get("architectures") or [None])[0]
    if name is not None and name not in _CLASSES[part]:
        key = "_class_name" if document.get("_class_name") else "architectures"
        raise document.refused(key, " or ".join(_CLASSES[part]))
    if part == "text" and document.get("model_type", "clip_text_model") != "clip_text_model":
        raise document.refused("model_type", "clip_text_model")
    readers: dict[Part, Callable[[_Document], PartConfig]] = {"unet": _unet, "vae": _vae, "text": _text}
    sizes = readers[part](document)
    for key, allowed in _FIXED[part].items():
        document.fixed(key, allowed)
    strange = [
        key
        for key, value in document.content.items()
        if key not in document.read | _UNUSED[part] and not key.startswith("_") and value not in (None, False)
    ]
    if strange and part != "text":
        _logger.warning("%s has %s, which mean nothing here and were left aside", path, ", ".join(sorted(strange)[:10]))
    return sizes


def _unet(found: _Document) -> UNetConfig:
    channels = found.whole("in_channels", 4)
    if found.whole("out_channels", 4) != channels:
        raise found.refused("in_channels", f"{found.get('out_channels', 4)}, since it is not for editing or inpainting")
    widths = _widths(found, (320, 640, 1280, 1280))
    down = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    attention = found.words("down_block_types", down, _BLOCKS)
    up = found.words("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, _BLOCKS)
    if up != attention[::-1] or len(attention) != len(widths):
        raise found.refused(
            "up_block_types", "those of down_block_types in reverse, one for each of block_out_channels"
        )
    middle = found.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    if not _is_word(middle) or middle not in _MIDDLES:
        raise found.refused("mid_block_type", "UNetMidBlock2DCrossAttn or null")
    # The number of heads is called so by mistake; `num_attention_heads` is null, or says it rightly.
    heads = "attention_head_dim" if found.get("num_attention_heads") is None else "num_attention_heads"
    side = found.get("sample_size", 64)
    return UNetConfig(
        channels=channels,
        widths=widths,
        attention=attention,
        layers_per_block=found.whole("layers_per_block", 2),
        heads=found.whole(heads, 8),
        context_width=found.whole("cross_attention_dim", 1280),
        groups=found.whole("norm_num_groups", 32),
        middle=_MIDDLES[middle],
        side=side if type(side) is int and 0 < side <= _MAX_SIZE else 64,
    )


def _vae(found: _Document) -> VAEConfig:
    channels = found.whole("in_channels", 3)
    if found.whole("out_channels", 3) != channels:
        raise found.refused("out_channels", f"the {channels} of in_channels")
    widths = _widths(found, (64,))
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if len(found.words(key, [kind], {kind: True})) != len(widths):
            raise found.refused(key, "one for each of block_out_channels")
    return VAEConfig(
        channels=channels,
        latent_channels=found.whole("latent_channels", 4),
        widths=widths,
        layers_per_block=found.whole("layers_per_block", 1),
        groups=found.whole("norm_num_groups", 32),
        scaling=found.number("scaling_factor", 0.18215, 0, 1e6),
    )


def _text(found: _Document) -> TextConfig:
    return TextConfig(
        vocabulary=found.whole("vocab_size", 49408),
        length=found.whole("max_position_embeddings", 77),
        width=found.whole("hidden_size", 512),
        layers=found.whole("num_hidden_layers", 12),
        heads=found.whole("num_attention_heads", 8),
        hidden=found.whole("intermediate_size", 2048),
    )


def _widths(found: _Document, default: tuple[int, ...]) -> tuple[int, ...]:
    value = found.get("block_out_channels", list(default))
    if not isinstance(value, list) or not 0 < len(value) < 10 or not all(type(each) is int for each in value):
        raise found.refused("block_out_channels", "a list of whole numbers")
    if not all(0 < each <= _MAX_SIZE for each in value):
        raise found.refused("block_out_channels", f"whole numbers from 1 to {_MAX_SIZE}")
    return tuple(value)


def read_schedule(path: Path) -> Schedule:
    """The schedule that a UNet was trained with, from a `scheduler_config.json`.

    What belongs to the sampler alone, such as its spacing of timesteps, is left aside: `schedules.SAMPLERS` have their
    own.

    Args:
      path: The file.

    Raises:
      InputError: The file cannot be read, or is of a training that the losses and samplers here do not know.
    """
    found = _Document(path, "a schedule")
    name = found.get("_class_name")
    if isinstance(name, str) and any(word in name for word in ("FlowMatch", "EDM", "LCM", "TCD")):
        raise found.refused("_class_name", "a scheduler that adds noise by betas, such as PNDMScheduler")
    kinds = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
    kind, prediction = found.get("beta_schedule", "linear"), found.get("prediction_type", "epsilon")
    if not isinstance(kind, str) or kind not in kinds:
        raise found.refused("beta_schedule", " or ".join(kinds))
    if prediction not in ("epsilon", "v_prediction"):
        raise found.refused("prediction_type", "epsilon or v_prediction")
    found.fixed("trained_betas", (None,))
    if found.get("rescale_betas_zero_snr", False):
        raise found.refused(
            "rescale_betas_zero_snr", "false, since no sampler here can begin where nothing of the signal is left"
        )
    return Schedule(
        num_steps=found.whole("num_train_timesteps", 1000, least=4),
        start=found.number("beta_start", 0.0001, 0, 1),
        end=found.number("beta_end", 0.02, 0, 1),
        kind=kinds[kind],  # type: ignore[arg-type]
        prediction=prediction,
    )


def config_document(config: PartConfig) -> dict[str, Any]:
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
            "mid_block_type": "UNetMidBlock2DCrossAttn" if config.middle else None,
            "sample_size": config.side,
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
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def scheduler_document(schedule: Schedule) -> dict[str, Any]:
    """The content of a `scheduler_config.json`: the sampler that Stable Diffusion v1 was published with.

    Args:
      schedule: What the UNet was trained with.
    """
    kinds = {"cosine": "squaredcos_cap_v2"}
    return {
        "_class_name": "PNDMScheduler",
        "beta_end": schedule.end,
        "beta_schedule": kinds.get(schedule.kind, schedule.kind),
        "beta_start": schedule.start,
        "clip_sample": False,
        "num_train_timesteps": schedule.num_steps,
        "prediction_type": schedule.prediction,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }


def pipeline_document(scheduler: str) -> dict[str, Any]:
    """The content of the `model_index.json` of a pipeline without a safety checker.

    Args:
      scheduler: The class of its scheduler in diffusers.
    """
    return {
        "_class_name": PIPELINES[0],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
