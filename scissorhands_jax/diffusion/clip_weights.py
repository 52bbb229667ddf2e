"""The weights of OpenAI's CLIP, from a file in the layout of transformers' CLIPModel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scissorhands_jax import reading, torch_weights
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import vision
from scissorhands_jax.diffusion.part_files import RenamedTensors
from scissorhands_jax.errors import InputError, WeightsError

_ADVICE = "give the model.safetensors of OpenAI's CLIP ViT-L/14 in the layout of transformers' CLIPModel"


def read_clip(path: Path) -> tuple[str, Params]:
    """Reads both encoders of CLIP.

    `position_ids` and `logit_scale`, which no feature depends on, are ignored.

    Args:
      path: The file, `.safetensors` or PyTorch's, or the folder with `model.safetensors` or `pytorch_model.bin`.

    Returns:
      The name of the network in `vision.CLIPS` and its parameters, float32.

    Raises:
      InputError: There is no such file.
      WeightsError: The file is damaged or holds another network. Every missing, extra and misshapen tensor is reported.
    """
    file = find_clip(path)
    with torch_weights.open_state_dict(file) as tensors:
        name = _clip_name({name: tensors.shape(name) for name in tensors}, file)
        _check_activation(file)
        outline = vision.clip_outline(vision.CLIPS[name])
        shapes = torch_weights.state_dict_shapes(outline, {})
        kept = [name for name in tensors if name != "logit_scale" and not name.endswith(".position_ids")]
        renamed = RenamedTensors(tensors, shapes, {name: name for name in kept})
        try:
            params, _ = torch_weights.from_state_dict(renamed, outline, {}, flatten={})
        except WeightsError as error:
            raise WeightsError(f"{file} does not hold CLIP {name}: {error}") from error
    return name, params


def find_clip(path: Path) -> Path:
    """The file with CLIP's weights.

    Args:
      path: The file, or the folder that holds it.

    Raises:
      InputError: There is none.
    """
    file = path
    if path.is_dir():
        names = ("model.safetensors", "pytorch_model.bin")
        file = next((path / name for name in names if (path / name).is_file()), path / names[0])
    if not file.is_file():
        raise InputError(f"there is no file {file}; give the model.safetensors of a CLIP model of transformers")
    return file


def _clip_name(shapes: Mapping[str, tuple[int, ...]], file: Path) -> str:
    """Which of `vision.CLIPS` a file holds, by the shapes of its patches and positions."""
    if any(name.startswith("visual.") for name in shapes):
        raise WeightsError(f"{file} is CLIP in the layout of its authors or of open_clip; {_ADVICE}")
    keys = [f"vision_model.embeddings.{kind}_embedding.weight" for kind in ("patch", "position")]
    if not set(keys) <= set(shapes):
        content = "a text encoder alone" if any("self_attn.q_proj" in name for name in shapes) else "something else"
        raise WeightsError(f"{file} has no image encoder of CLIP, it holds {content}; {_ADVICE}")
    patches, positions = (shapes[key] for key in keys)
    for name, config in vision.CLIPS.items():
        size = config.vision
        if patches == (size.width, 3, size.patch, size.patch) and positions == (size.num_tokens, size.width):
            return name
    known = ", ".join(name for name in vision.CLIPS if name != "tiny")
    raise WeightsError(f"{file} is a CLIP with patches {patches} and positions {positions}, none of {known}; {_ADVICE}")


def _check_activation(file: Path) -> None:
    """Refuses a CLIP whose `config.json`, if there is one, names another activation than OpenAI's."""
    description = file.with_name("config.json")
    if not description.is_file():
        return
    try:
        activation = reading.read_json(description)["vision_config"]["hidden_act"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if activation != "quick_gelu":
        raise WeightsError(f"{description} names the activation {activation}, and OpenAI's is quick_gelu; {_ADVICE}")
