"""From the `config.json` of a published language model to the sizes of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from scissorhands_jax.errors import InputError
from scissorhands_jax.language.decoder import Rotation, Sizes

_MOST = 2**24  # of any size in a configuration; the largest vocabularies have 2**18 tokens
_SLIDING = "sliding_attention"


class _Config:
    """The entries of a configuration, read with their kinds."""

    def __init__(self, entries: Mapping[str, Any], where: str) -> None:
        self.entries, self.where = entries, where

    def count(self, name: str, default: int | None = None) -> int:
        value = self.entries.get(name)
        value = default if value is None else value
        if value is None:
            raise InputError(f"{self.where} has no {name!r}; take the file that was published with the weights")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
            raise InputError(
                f"{self.where} has {str(value)[:40]!r} as {name!r}, where a number from 1 to {_MOST} is due"
            )
        return value

    def number(self, name: str, default: float | None, entries: Mapping[str, Any] | None = None) -> float | None:
        value = (self.entries if entries is None else entries).get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"{self.where} has {str(value)[:40]!r} as {name!r}, where a number above 0 is due")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.entries.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InputError(f"{self.where} has {str(value)[:40]!r} as {name!r}, where true or false is due")
        return value

    def refuse(self, name: str, found: object) -> InputError:
        return InputError(
            f"{self.where} asks for {name} {str(found)[:60]!r}, which this package does not have; choose another model"
        )

    def rotations(self, base: float = 10_000.0, near: float | None = None) -> tuple[Rotation, Rotation | None]:
        """The rotation of layers that see everything, and that of layers with a window where it is another one.

        `base` and `near` are their bases where they are not named; None turns all layers alike.
        """
        whole = self.entries.get("rope_parameters")
        whole = whole if isinstance(whole, dict) else {}
        if isinstance(whole.get("full_attention"), dict):
            windows = whole.get(_SLIDING, None if near is None else {})
            of_windows = self._rotation(windows, near or base) if isinstance(windows, dict) else None
            return self._rotation(whole["full_attention"], base), of_windows
        scaling = self.entries.get("rope_scaling")
        merged = {
            "rope_theta": self.entries.get("rope_theta"),
            **(scaling if isinstance(scaling, dict) else {}),
            **whole,
        }
        near = self.number("rope_local_base_freq", near)
        return self._rotation(merged, base), None if near is None else Rotation(base=near)

    def _rotation(self, entries: Mapping[str, Any], usual: float) -> Rotation:
        base = self.number("rope_theta", usual, entries)
        kind = entries.get("rope_type", entries.get("type", "default"))
        if kind not in ("default", "linear", "llama3") or self.number("partial_rotary_factor", 1.0, entries) != 1.0:
            raise self.refuse("rotations of the kind", kind)
        factor = self.number("factor", 1.0, entries) if kind != "default" else 1.0
        assert base is not None
        assert factor is not None
        if kind != "llama3":
            return Rotation(base=base, factor=factor)
        names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        low, high, context = (self.number(name, None, entries) for name in names)
        if low is None or high is None or context is None or not low < high:
            raise InputError(f"{self.where} has rotations of the kind 'llama3' without usable {', '.join(names)}")
        return Rotation(base=base, factor=factor, bands=(low, high, context))

    def windows(self, sliding: Callable[[int], bool]) -> tuple[int | None, ...]:
        """How far each layer looks back, by the list in the configuration or else as the family does it."""
        layers = self.count("num_hidden_layers")
        kinds = self.entries.get("layer_types")
        if kinds is None:
            kinds = [_SLIDING if sliding(layer) else "full_attention" for layer in range(layers)]
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or any(kind not in (_SLIDING, "full_attention") for kind in kinds)
        ):
            raise self.refuse("layers of the kinds", kinds)
        if _SLIDING not in kinds:
            return ()
        window = self.count("sliding_window")
        return tuple(window if kind == _SLIDING else None for kind in kinds)


def _llama(config: _Config) -> dict[str, Any]:
    bias = config.flag("attention_bias")
    return {"query_bias": bias, "output_bias": bias, "mlp_bias": config.flag("mlp_bias")}


def _qwen(config: _Config) -> dict[str, Any]:
    first = config.entries.get("max_window_layers", 28)
    if not config.flag("use_sliding_window"):  # Then what is said about layers does not count.
        return {"windows": ()}
    return {"windows": config.windows(lambda layer: isinstance(first, int) and layer >= first)}


def _qwen2(config: _Config) -> dict[str, Any]:
    return {**_qwen(config), "query_bias": True}


def _qwen3(config: _Config) -> dict[str, Any]:
    bias = config.flag("attention_bias")
    head_size = config.count("head_dim", 128)
    return {**_qwen(config), "head_norms": True, "head_size": head_size, "query_bias": bias, "output_bias": bias}


def _gemma(config: _Config) -> dict[str, Any]:
    if config.flag("use_bidirectional_attention"):
        raise config.refuse("attention in both directions", True)
    bias = config.flag("attention_bias")
    return {
        "gemma": True,
        "activation": "gelu_pytorch_tanh",
        "tied": config.flag("tie_word_embeddings", True),
        "head_size": config.count("head_dim", 256),
        "query_bias": bias,
        "output_bias": bias,
    }


def _gemma2(config: _Config, caps: tuple[float | None, float | None] = (50.0, 30.0)) -> dict[str, Any]:
    """`caps` are those of attention and of logits where the configuration does not name them; null is none."""
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    found = [
        config.number(name, None) if name in config.entries else cap for name, cap in zip(names, caps, strict=True)
    ]
    scalar = config.number("query_pre_attn_scalar", 256.0)
    assert scalar is not None
    return {
        **_gemma(config),
        "inner_norms": True,
        "query_scale": scalar**-0.5,
        "attention_cap": found[0],
        "logit_cap": found[1],
        "windows": config.windows(lambda layer: layer % 2 == 0),
    }


def _gemma3(config: _Config) -> dict[str, Any]:
    pattern = config.count("sliding_window_pattern", config.count("_sliding_window_pattern", 6))
    rotation, of_windows = config.rotations(1_000_000.0, 10_000.0)
    return {
        "rotation": rotation,
        "window_rotation": of_windows,
        **_gemma2(config, (None, None)),
        "head_norms": True,
        "windows": config.windows(lambda layer: (layer + 1) % pattern != 0),
    }


FAMILIES: dict[str, Callable[[_Config], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}
"""What distinguishes each family, by the `model_type` of its configurations."""
_NEAR = {
    "gemma3": "it also reads images; take a model of text alone, such as gemma-3-1b",
    "qwen3_moe": "its perceptrons are mixtures of experts, which this package does not have",
    "qwen2_moe": "its perceptrons are mixtures of experts, which this package does not have",
}


def sizes_of(entries: Any, where: str) -> Sizes:
    """The sizes of the network that a configuration describes.

    Args:
      entries: The content of `config.json`.
      where: The name of the file, for messages.

    Raises:
      InputError: The family is not supported, or the configuration is damaged or asks for what this package lacks.
    """
    if not isinstance(entries, dict):
        raise InputError(f"{where} is not a JSON object; take the file that was published with the weights")
    family = entries.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        why = _NEAR.get(str(family), f"choose a model of {', '.join(FAMILIES)}")
        raise InputError(f"{where} is of the family {str(family)[:60]!r}, which is not supported; {why}")
    if entries.get("quantization_config") is not None:
        raise InputError(f"{where} says that the weights are quantised; take the model as it was before")
    config = _Config(entries, where)
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    rotation, of_windows = config.rotations()
    epsilon = config.number("rms_norm_eps", 1e-6)
    assert epsilon is not None
    found: dict[str, Any] = {
        "vocabulary": config.count("vocab_size"),
        "width": width,
        "hidden": config.count("intermediate_size"),
        "layers": config.count("num_hidden_layers"),
        "heads": heads,
        "key_heads": config.count("num_key_value_heads", heads),
        "head_size": config.count("head_dim", max(1, width // heads)),
        "context": config.count("max_position_embeddings", 2048),
        "epsilon": epsilon,
        "rotation": rotation,
        "window_rotation": of_windows,
        "tied": config.flag("tie_word_embeddings"),
    }
    sizes = Sizes(**(found | FAMILIES[family](config)))
    activation, fits = entries.get("hidden_act", "silu"), ("silu",)
    if sizes.gemma:  # Where Gemma's is not named, or as its first files name it, it is the approximation all the same.
        activation = entries.get("hidden_activation") or "gelu_pytorch_tanh"
        fits = ("gelu_pytorch_tanh",)
    if activation not in fits:
        raise config.refuse("the activation", activation)
    if sizes.heads % sizes.key_heads or sizes.head_size % 2:
        raise InputError(
            f"{where} has {sizes.heads} heads of queries for {sizes.key_heads} of keys, of {sizes.head_size} numbers "
            "each, which do not fit together; take the file that was published with the weights"
        )
    return dataclasses.replace(sizes, windows=sizes.windows if any(sizes.windows) else ())
