"""Folders of published language models: `config.json`, `tokenizer.json` and `.safetensors`, perhaps in several parts.

A folder is checked before its numbers are read, and written back as it was: the same files, names and types.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from scissorhands_jax import files, hashing, reading, torch_weights
from scissorhands_jax.base import Params
from scissorhands_jax.errors import InputError, WeightsError
from scissorhands_jax.language.chat_templates import (
    TEMPLATE_FILE,
    TOKENIZER_CONFIG_FILE,
    ChatTemplate,
    read_chat_template,
)
from scissorhands_jax.language.decoder import Sizes, decoder
from scissorhands_jax.language.families import sizes_of
from scissorhands_jax.language.text_files import TEMPLATE, check_template
from scissorhands_jax.language.text_tokens import TextTokenizer, read_tokenizer
from scissorhands_jax.training.sharding import Layout

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
_WEIGHTS_FILE, _INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_UNUSED = "rotary_emb.inv_freq"  # computed from the configuration; old folders have it
_FLOATS = {np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)}
_WEIGHTS_OF_OTHERS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt"}
_SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True)
class LanguageFolder:
    """A folder that was checked, apart from the numbers in it."""

    path: Path
    sizes: Sizes
    tokenizer: TextTokenizer
    places: Mapping[str, Path]
    """The file of every tensor by its name."""

    @property
    def shards(self) -> tuple[Path, ...]:
        """The files of weights, in order."""
        return tuple(sorted(set(self.places.values())))

    def sha256(self) -> str:
        """The SHA-256 of configuration, tokenizer and weights; hexadecimal."""
        parts = (self.path / CONFIG_FILE, self.path / TOKENIZER_FILE, *self.shards)
        return hashing.sha256("".join(map(hashing.file_sha256, parts)))


def open_language_folder(path: Path) -> LanguageFolder:
    """Checks a folder of a language model.

    Args:
      path: The folder. Tensors must be float32, float16 or bfloat16.

    Raises:
      InputError: The folder, its configuration or its tokenizer is missing or damaged, the family is not supported, a
        file of weights is missing, or tensors, tokenizer and configuration do not fit together.
    """
    sizes, tokenizer = read_language_config(path), read_text_tokenizer(path)
    places = _places(path)
    _check_tensors(path, sizes, places)
    return LanguageFolder(path, sizes, tokenizer, places)


CHAT = "chat"
"""The name of the model's own chat template."""
PLAIN = "plain"
"""The name of `text_files.TEMPLATE`."""


def question_form(path: Path, template: str | None = None) -> str | ChatTemplate:
    """How a model is asked questions, as `text_files.read_text_examples` takes it.

    Args:
      path: The folder of the model, which need not have weights.
      template: "chat" is the model's own chat template and "plain" is `text_files.TEMPLATE`. None is the former where
        the folder has one, and the latter elsewhere. Anything else is a template itself, with `{question}` in it.

    Raises:
      InputError: The template has no place for the question; or the chat template is missing although it is asked for,
        or is damaged, or its file is.
    """
    if template is not None and template not in (CHAT, PLAIN):
        return check_template(template)
    found = None if template == PLAIN else read_chat_template(path, _read_optional(path / TOKENIZER_CONFIG_FILE))
    if found is None and template == CHAT:
        raise InputError(
            f"{path} has no chat template (neither {TEMPLATE_FILE} nor 'chat_template' in {TOKENIZER_CONFIG_FILE}); "
            "copy it from where the model comes from, or ask with --template plain"
        )
    return found or TEMPLATE


def form_line(form: str | ChatTemplate) -> str:
    """A sentence about how a model is asked questions, for logs."""
    if isinstance(form, ChatTemplate):
        return "questions are asked in the model's own chat template (--template plain asks without it)"
    return f"questions are asked as {form!r}"


def read_language_config(path: Path) -> Sizes:
    """The sizes of the network of a folder, of which only `config.json` is read.

    Args:
      path: The folder, which need not have weights or a tokenizer.

    Raises:
      InputError: The folder or its configuration is missing or damaged, or the family is not supported.
    """
    return sizes_of(_config_of(path), str(path / CONFIG_FILE))


def read_text_tokenizer(path: Path) -> TextTokenizer:
    """The tokenizer of a folder, with the tokens that end an answer as three files name them.

    A number that is no token of the network, such as -1, names none.

    Args:
      path: The folder, which need not have weights.

    Raises:
      InputError: The configuration or the tokenizer is missing or damaged, or they do not fit together.
    """
    config = _config_of(path)
    vocabulary = sizes_of(config, str(path / CONFIG_FILE)).vocabulary
    generation, described = (_read_optional(path / name) for name in ("generation_config.json", TOKENIZER_CONFIG_FILE))
    found = read_tokenizer(path / TOKENIZER_FILE)
    named = described.get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    ends = [found.token_to_id(named) if isinstance(named, str) else None]
    for entry in (generation.get("eos_token_id"), config.get("eos_token_id")):
        ends += entry if isinstance(entry, list) else [entry]
    tokenizer = TextTokenizer(found, [end for end in ends if type(end) is int and 0 <= end < vocabulary])
    if tokenizer.size > vocabulary:
        raise InputError(
            f"{path / TOKENIZER_FILE} has {tokenizer.size} tokens and the network knows {vocabulary}; take "
            "tokenizer and weights of one model"
        )
    return tokenizer


def load_weights(folder: LanguageFolder, dtype: str = "float32", layout: Layout | None = None) -> Params:
    """Reads the weights of a model to where it computes.

    Args:
      folder: The folder.
      dtype: The type of the arrays, into which those of the files are rounded.
      layout: How they are divided over devices, none of which then needs room for all; None is the default device.

    Raises:
      WeightsError: A file was damaged after it was checked, or a number is too large for the type.
    """
    if layout is not None:
        return layout.place(read_weights(folder, dtype))
    return _read_like(folder, outline_of(folder.sizes, dtype))


def read_weights(folder: LanguageFolder, dtype: str = "float32") -> Params:
    """Reads the weights of a model as NumPy arrays, which need no room on a device.

    Args:
      folder: The folder.
      dtype: As for `load_weights`.

    Raises:
      WeightsError: As for `load_weights`.
    """
    outline = outline_of(folder.sizes, dtype)
    return _read_like(folder, jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), outline))


def _read_like(folder: LanguageFolder, outline: Params) -> Params:
    with _opened({name: folder.places[name] for name in torch_weights.state_dict_shapes(outline, {})}) as needed:
        params, _ = torch_weights.from_state_dict(needed, outline, {}, flatten={})
    return params


@functools.cache
def outline_of(sizes: Sizes, dtype: str = "float32") -> Params:
    """Names, shapes and types of a network's weights: a nested dict of `jax.ShapeDtypeStruct`s."""
    whole = jax.eval_shape(decoder(sizes).init, jax.random.key(0))[0]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), whole)


def write_language_folder(folder: LanguageFolder, out: Path, params: Params) -> None:
    """Writes a model like the one in a folder, with other weights, whole or not at all.

    Tensors have the names, files and types that they have in the folder, and the files beside the weights are copied;
    folders in it are not. Rounding to a type of 16 bits may undo small changes.

    Args:
      folder: Where the network came from.
      out: The new folder; one that exists is replaced.
      params: The weights.

    Raises:
      WeightsError: A number is too large for its type, or a file cannot be written.
    """
    arrays = torch_weights.state_dict_views(params, {}, flatten={})
    if folder.sizes.tied:
        arrays[_HEAD] = arrays[_EMBEDDING]
    with files.new_folder(out) as fresh:
        fresh.mkdir()
        for shard in folder.shards:
            with torch_weights.open_state_dict(shard) as tensors:
                written = {
                    name: _rounded(name, arrays[name], tensors.dtype(name)) if name in arrays else tensors[name]
                    for name in tensors
                }
            torch_weights.write_safetensors(fresh / shard.name, written)
        for file in sorted(folder.path.iterdir()):
            if file.is_file() and file.suffix not in _WEIGHTS_OF_OTHERS and not files.is_leftover(file):
                files.copy_file(file, fresh / file.name)


def _rounded(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if not np.isfinite(narrow.astype(np.float32)).all():
        raise WeightsError(f"{name} has numbers that {dtype} cannot hold; lower the learning rate")
    return narrow


def _config_of(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {found}; name the folder of a model with {CONFIG_FILE} and {TOKENIZER_FILE}")
    return _read_object(path / CONFIG_FILE)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        entries = reading.read_json(path, nan=True)
    except FileNotFoundError as error:
        raise InputError(
            f"{path.parent} has no {path.name}; name the folder that was published with the model"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again") from error
    if not isinstance(entries, dict):
        raise InputError(f"{path} is not a JSON object; copy it again")
    return entries


def _read_optional(path: Path) -> dict[str, Any]:
    return _read_object(path) if path.is_file() else {}


def _places(path: Path) -> dict[str, Path]:
    """The file of every tensor."""
    index, whole = path / _INDEX_FILE, path / _WEIGHTS_FILE
    if index.is_file() and whole.is_file():
        raise InputError(
            f"{path} has both {_WEIGHTS_FILE} and {_INDEX_FILE}, and they may be two networks; leave one of them there"
        )
    if not index.is_file():
        if not whole.is_file():
            others = sorted(file.name for file in path.iterdir() if file.suffix in _WEIGHTS_OF_OTHERS)
            found = f"only {', '.join(others[:_SHOWN])}" if others else "no weights"
            raise InputError(f"{path} has {found}; it needs {_WEIGHTS_FILE}, or {_INDEX_FILE} with its parts")
        with torch_weights.open_state_dict(whole) as tensors:
            return {name: whole for name in tensors}
    entries = _read_object(index).get("weight_map")
    if not isinstance(entries, dict) or not all(isinstance(file, str) for file in entries.values()):
        raise InputError(f"{index} has no 'weight_map' from tensors to files; copy it again")
    names = sorted(set(entries.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise InputError(f"{index} names {outside[0][:60]!r}, which is not in its folder; copy it again")
    if missing := [name for name in names if not (path / name).is_file()]:
        raise InputError(
            f"{path} lacks {len(missing)} of the {len(names)} files of weights ({', '.join(missing[:_SHOWN])}); copy "
            "them as well"
        )
    return {name: path / file for name, file in entries.items()}


def _check_tensors(path: Path, sizes: Sizes, places: Mapping[str, Path]) -> None:
    """Refuses files whose tensors are not those of the network, without reading their numbers."""
    needed = torch_weights.state_dict_shapes(outline_of(sizes), {})
    with _opened(places) as tensors:
        absent = [name for name in needed if name not in tensors]
        extra = [name for name in tensors if name not in needed and not name.endswith(_UNUSED)]
        extra = [name for name in extra if not (sizes.tied and name == _HEAD)]
        if absent or extra:
            what = [f"lacks {', '.join(absent[:_SHOWN])}"] if absent else []
            what += [f"also has {', '.join(extra[:_SHOWN])}"] if extra else []
            raise WeightsError(
                f"the weights in {path} are not those of {CONFIG_FILE}: of {len(needed)} tensors it "
                f"{' and '.join(what)}; copy the folder again"
            )
        for name, shape in needed.items():
            found, dtype = tensors.shape(name), tensors.dtype(name)
            if found != shape:
                raise WeightsError(
                    f"{name} in {path} has the shape {found}, and {CONFIG_FILE} asks for {shape}; copy the folder again"
                )
            if dtype not in _FLOATS:
                raise WeightsError(
                    f"{name} in {path} is of type {dtype}, which is quantised; take the model as it was before"
                )


class _Shards(Mapping[str, np.ndarray]):
    """The tensors of several open files as one mapping; each is read when it is asked for."""

    def __init__(self, places: Mapping[str, Path], opened: Mapping[Path, torch_weights.LazyStateDict]) -> None:
        self._places = {name: opened[file] for name, file in places.items() if name in opened[file]}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._places[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape(name)

    def dtype(self, name: str) -> np.dtype:
        return self._places[name].dtype(name)


@contextlib.contextmanager
def _opened(places: Mapping[str, Path]) -> Iterator[_Shards]:
    with contextlib.ExitStack() as stack:
        opened = {file: stack.enter_context(torch_weights.open_state_dict(file)) for file in set(places.values())}
        yield _Shards(places, opened)
