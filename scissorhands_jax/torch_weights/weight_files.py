"""Reads the weight files of `torch.save` and `.safetensors`, and writes `.safetensors`, all without PyTorch.

Files need not be trusted: no pickle is ever executed. What is no tensor, container or number is left aside and named in
the log, or refused where the weights are not found without it.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import math
import mmap
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from scissorhands_jax import files, reading
from scissorhands_jax.errors import WeightsError, listed
from scissorhands_jax.torch_weights import torch_files
from scissorhands_jax.torch_weights.tensors import (
    MAX_DIMENSIONS,
    Damaged,
    Extent,
    ForbiddenGlobal,
    Refused,
    Storage,
    Tensor,
    Unknown,
    read_tensors,
    show,
    unknown_names,
)

_logger = logging.getLogger(__name__)

StateDict = dict[str, np.ndarray]

# Usual names of the state dict in a checkpoint; of several, the first in this order is read.
_STATE_DICTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights")
_WRAPPERS = ("module.", "_orig_mod.")  # the prefixes of DataParallel and of torch.compile
_LEAVES = frozenset(("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))  # of one layer
_SEARCH_DEPTH = 8  # levels of dicts in a checkpoint
_NAMES = "names"  # in the metadata of a .safetensors file
_MAX_HEADER = 2**23  # bytes of a .safetensors header; a language model of 70 billion parameters has 2**17
_MAX_TENSORS = 2**16

_SAFETENSORS_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "I8": np.dtype("<i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("<u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "C64": np.dtype("<c8"),
}
_SAFETENSORS_CODES = {dtype: code for code, dtype in _SAFETENSORS_DTYPES.items()}

# The first bytes of files that are often mistaken for weights, in lower case.
_LOOKS_LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b'{"metadata":', "the index of a network that was saved in parts; load it with PyTorch and save its state dict"),
    (b"<!doctype html", "an HTML page, perhaps a failed download; download it again"),
    (b"<html", "an HTML page, perhaps a failed download; download it again"),
    (b"<?xml", "an XML document, perhaps a failed download; download it again"),
    (b"\x89hdf", "an HDF5 file; save the weights as .safetensors"),
    (b"\x93numpy", "a NumPy array; save the weights as .safetensors"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
)


def is_averaged(name: str) -> bool:
    """Says whether a part of a checkpoint is called as averaged weights are: `ema`, `swa_model`, `shadow`, ..."""
    return re.search(r"(?<![a-z])(ema|swa|averaged?|shadow)(?![a-z])", name.lower()) is not None


def read_state_dict(path: str | os.PathLike[str], *, ema: bool | None = None) -> StateDict:
    """Reads the tensors of a file in `.safetensors` format or in either of the formats of `torch.save`.

    The format is recognised by the content of the file, not by its name. The state dict in a checkpoint is a dict that
    holds nothing but tensors: the whole file, or one under a usual name such as `state_dict`, or else the largest
    outside the optimizer. Dicts of one layer each are joined by dots. The prefixes `module.` (DataParallel) and
    `_orig_mod.` (torch.compile) are removed if all names share them.

    Args:
      path: The file.
      ema: Whether to read averaged weights (EMA) from a checkpoint that has both. None refuses such a checkpoint.

    Returns:
      Read-only arrays by name, in the order of the file. bfloat16 and float8 are types of `ml_dtypes`. Tensors that
      share memory in PyTorch share it here. Only the storages of these tensors are read, each once.

    Raises:
      WeightsError: The file does not exist, is damaged or something else, or holds a pickle in which nothing but other
        objects than tensors, containers and numbers is found. The message names one; nothing is executed.
    """
    with open_state_dict(path, ema=ema) as tensors:
        return tensors.read()


class LazyStateDict(Mapping[str, np.ndarray]):
    """The tensors of an open file by name. Each access reads the tensor from the file; nothing is cached.

    Attributes:
      where: The place of the tensors in the checkpoint, such as `state_dict`; "" for the whole file.
    """

    def __init__(
        self, file: BufferedReader, tensors: dict[str, Tensor], extents: dict[str, Extent], where: str
    ) -> None:
        self._file, self._tensors, self._extents = file, tensors, extents
        self.where = where

    def __getitem__(self, name: str) -> np.ndarray:
        return read_tensors(self._file, {name: self._tensors[name]}, self._extents)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor without reading the tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Returns the type of a tensor without reading the tensor."""
        return self._tensors[name].dtype

    def read(self) -> StateDict:
        """Reads all tensors. A storage that several share is read once."""
        return read_tensors(self._file, self._tensors, self._extents)


@contextlib.contextmanager
def open_state_dict(path: str | os.PathLike[str], *, ema: bool | None = None) -> Iterator[LazyStateDict]:
    """Opens a file like `read_state_dict`, for reading one tensor at a time.

    Args:
      path: The file.
      ema: As for `read_state_dict`.

    Yields:
      The tensors by name; each is read when it is accessed.

    Raises:
      WeightsError: The file cannot be read; see `read_state_dict`. It may also be raised when a tensor is accessed.
    """
    try:
        if not Path(path).is_file():
            raise Refused("is a folder or device; give the file itself" if Path(path).exists() else "does not exist")
        with reading.open_file(path) as file:
            yield LazyStateDict(file, *_find_tensors(path, file, ema))
    except WeightsError:
        raise
    except Refused as error:
        raise WeightsError(f"cannot read weights from {show(os.fspath(path), 500)}: the file {error}") from error
    except (OSError, ValueError, MemoryError) as error:  # A path with a null character is a ValueError.
        raise WeightsError(f"cannot read weights from {show(os.fspath(path), 500)}: {error}") from error


def write_safetensors(
    path: str | os.PathLike[str], state_dict: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a state dict to a `.safetensors` file, which PyTorch reads by `load_state_dict(load_file(path))`.

    The file appears under its name only once it is complete, and replaces any earlier file. At most one array is copied
    at a time.

    Args:
      path: The file to write. Missing folders are created.
      state_dict: Arrays by name, as `to_state_dict` or `state_dict_views` return them.
      metadata: Text to keep in the header in addition to `format: pt`. By default there is none.

    Raises:
      WeightsError: A name or type cannot be stored, or the file cannot be written.
    """
    where = show(os.fspath(path), 500)
    arrays = {}
    for name, text in (metadata or {}).items():
        if not (isinstance(name, str) and isinstance(text, str)):
            raise WeightsError(
                f"cannot write weights to {where}: the metadata {show(name)} is no text; write it as text"
            )
    for name, value in state_dict.items():
        array = np.asarray(value)
        if not isinstance(name, str) or name == "__metadata__":
            raise WeightsError(f"cannot write weights to {where}: {show(name)} cannot name an array; rename it")
        if array.dtype.newbyteorder("<") not in _SAFETENSORS_CODES:
            raise WeightsError(
                f"cannot write weights to {where}: {show(name)} is of type {array.dtype}, which .safetensors does not "
                "know; convert it"
            )
        arrays[name] = array
    try:
        with files.writing(path) as file:
            _write_arrays(file, arrays, {"format": "pt"} | dict(metadata or {}))
    except (OSError, ValueError, TypeError) as error:  # A full disk, names that are not valid UTF-8, odd metadata.
        raise WeightsError(f"cannot write weights to {where}: {error}") from error


def read_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """The names that a network has for the arrays of a `.safetensors` file, as its metadata say, by those in the file.

    `write_safetensors` keeps them where it is given `names_metadata`. Any other file says nothing.

    Args:
      path: The file, which can be read (`open_state_dict`).
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = reading.parse_json((file.metadata() or {}).get(_NAMES, "{}"))
    except (safetensors.SafetensorError, OSError, ValueError):  # A file of `torch.save`, or metadata of others.
        return {}
    names = list(found.values()) if isinstance(found, dict) else [None]
    is_table = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return found if is_table else {}


def names_metadata(names: Mapping[str, str]) -> dict[str, str]:
    """The metadata of `write_safetensors` that `read_names` reads.

    Args:
      names: The name in the file by the name that the network has, where they differ.
    """
    return {_NAMES: json.dumps({old: new for new, old in names.items()})} if names else {}


def _write_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes the format of https://huggingface.co/docs/safetensors, one array at a time.

    The writer of the `safetensors` package would copy all arrays first. Wide types come first so that every array is
    aligned.
    """
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name in names:
        array = arrays[name]
        code = _SAFETENSORS_CODES[array.dtype.newbyteorder("<")]
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": (begin, begin + array.nbytes)}
        begin += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        array = np.asarray(arrays[name], order="C")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        file.write(array.reshape(-1).view(np.uint8).data)


def _find_tensors(
    path: str | os.PathLike[str], file: BufferedReader, ema: bool | None
) -> tuple[dict[str, Tensor], dict[str, Extent], str]:
    """Recognises the format of a file. Returns its state dict's tensors, their storages' extents, and its place."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(512)
    if size == 0:
        raise Refused("is empty; download or copy it again")
    if head.startswith(b"PK"):
        root, extents = torch_files.read_zip(file, size)
    elif head[8:9] == b"{" and not _is_text(head[:8]):  # The length of a JSON header, then the header.
        root, extents = _read_safetensors(path, file, size)
    else:
        for start, what in _LOOKS_LIKE:
            if b"".join(head.lower().split()).startswith(b"".join(start.split())):
                raise Refused(f"looks like {what}")
        if head[257:262] == b"ustar":
            raise Refused("looks like a tar archive; unpack it, or save it again with PyTorch 1.0 or later")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                root, extents = torch_files.read_legacy(data)
            except ForbiddenGlobal:
                raise
            except Refused as error:
                if head.startswith(b"\x80"):
                    raise
                text = "text" if _is_text(head) else "neither a PyTorch nor a .safetensors file"
                raise Refused(f"looks like {text} (it begins with {show(head[:24])}); give a weights file") from error
    if sum(extent.size for extent in extents.values()) > size:
        raise Refused("has storages that overlap; do not trust this file")
    where, tensors = _find_state_dict(root, ema)
    if names := unknown_names(root):
        _logger.warning(
            "%s also holds %s; nothing of it was executed, and it was left aside",
            path,
            listed([show(n) for n in names]),
        )
    while wrapper := next((one for one in _WRAPPERS if tensors and all(n.startswith(one) for n in tensors)), None):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    _logger.info("%s: %d tensors in %s", path, len(tensors), where or "the whole file")
    return tensors, extents, where


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # The last character may be cut off.
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _read_safetensors(
    path: str | os.PathLike[str], file: BufferedReader, size: int
) -> tuple[dict[str, Tensor], dict[str, Extent]]:
    """Reads a header that the `safetensors` package has checked.

    The NumPy reader of that package is not used, because it has no float8 and holds the data twice.
    """
    import safetensors

    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise Refused(f"has a .safetensors header of {length} bytes, more than {_MAX_HEADER}; do not trust this file")
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except Exception as error:
        raise Damaged(f"its .safetensors header is not consistent ({show(str(error))})") from error
    start = 8 + length
    try:
        header = reading.parse_json(file.read(length))
        if len(header) > _MAX_TENSORS:
            raise Refused(f"names {len(header)} tensors, more than {_MAX_TENSORS}; do not trust this file")
        tensors, extents = {}, {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
            if dtype is None:
                raise Refused(f"holds {show(name)} of type {show(entry['dtype'])}; convert it with PyTorch")
            shape = tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            if len(shape) > MAX_DIMENSIONS:
                raise Damaged(f"{show(name)} has {len(shape)} axes, more than the {MAX_DIMENSIONS} of PyTorch")
            if not 0 <= begin <= end <= size - start or end - begin != math.prod(shape) * dtype.itemsize:
                raise Damaged(f"{show(name)} lies outside the file, or its size does not match its shape")
            strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
            tensors[name] = Tensor(Storage(name, dtype, math.prod(shape)), dtype, 0, shape, strides)
            extents[name] = Extent(start + begin, end - begin)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged("its .safetensors header makes no sense") from error
    return tensors, extents


def _find_state_dict(root: object, ema: bool | None) -> tuple[str, dict[str, Tensor]]:
    """Finds the state dict, a dict that holds nothing but tensors. Returns its path in the checkpoint and the dict."""
    found = _dicts_of_tensors(root)
    if not found:
        if names := unknown_names(root):
            raise ForbiddenGlobal(show(names[0]))
        held = f"a dict with {listed([show(key) for key in root])}" if type(root) is dict and root else show(root)
        raise Refused(f"has no dict of tensors, it holds {held}; save `model.state_dict()` with torch.save")
    found = _joined_layers(found)
    averaged = {path: node for path, node in found.items() if is_averaged(path)}
    plain = {path: node for path, node in found.items() if path not in averaged}
    if ema is not None:
        return _usual(averaged if ema and averaged else plain or found)
    where, chosen = _usual(found)
    others = plain if where in averaged else averaged
    of_chosen = len(chosen), _weights_of(chosen)
    twin = next(
        (path for path, node in others.items() if len(node) == of_chosen[0] or _weights_of(node) == of_chosen[1]), None
    )
    if twin is not None:
        first, second = (twin, where) if where in averaged else (where, twin)
        raise Refused(
            f"has weights in {show(first)} and averaged ones (EMA) in {show(second)}; choose with --no-ema or --ema "
            "(ema=False or True)"
        )
    return where, chosen


def _weights_of(node: dict[str, Tensor]) -> set[str]:
    """The names of a network's weights, without what averaging adds to them or leaves out."""
    statistics = ("running_mean", "running_var", "num_batches_tracked", "n_averaged")
    return {name.removeprefix("module.") for name in node if name.rpartition(".")[2] not in statistics}


def _dicts_of_tensors(root: object) -> dict[str, dict[str, Tensor]]:
    """Finds all dicts of a checkpoint that hold tensors, and at most a few numbers or texts, by their paths."""
    found: dict[str, dict[str, Tensor]] = {}
    queue = deque([("", root, 0)])
    seen = set()
    while queue:
        path, node, depth = queue.popleft()
        if type(node) is not dict or id(node) in seen:
            continue
        seen.add(id(node))
        held = {key: value for key, value in node.items() if type(key) is str and isinstance(value, Tensor)}
        others = {key: value for key, value in node.items() if key not in held}
        if len(held) > len(others) and not any(isinstance(value, dict | list | tuple) for value in others.values()):
            found[path] = held
            _check_others(others)
        elif depth < _SEARCH_DEPTH:
            for key, value in node.items():
                if type(key) is str and "optim" not in key.lower():
                    queue.append((f"{path}/{key}" if path else key, value, depth + 1))
    return found


def _joined_layers(found: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Joins dicts of one layer each, as `{"conv1": {"weight": ...}}`, to the state dict of a network.

    Layers belong to the network under whose usual name, such as `state_dict`, or averaged name they lie, or else to
    that of the whole file. Dicts of more than one layer stay as they are.
    """
    layers = {path: node for path, node in found.items() if path and _LEAVES.issuperset(node)}
    if len(layers) < 2:
        return found
    joined = {path: node for path, node in found.items() if path not in layers}
    for path, node in layers.items():
        parts = path.split("/")
        is_owner = [part in _STATE_DICTS or is_averaged(part) for part in parts[:-1]]
        depth = is_owner.index(True) + 1 if True in is_owner else 0
        owner = joined.setdefault("/".join(parts[:depth]), {})
        owner |= {".".join([*parts[depth:], key]): tensor for key, tensor in node.items()}
    return joined


def _check_others(others: dict[Any, object]) -> None:
    """Names in the log what lies among tensors and is none, and refuses tensors that cannot be read."""
    for key, value in others.items():
        if isinstance(value, Unknown) and "tensor" in value.name.lower():
            kinds = {"sparse": "sparse; save .to_dense()", "qtensor": "quantised; dequantise the model"}
            kind = next(
                (text for part, text in kinds.items() if part in value.name), "of a class of its own; convert it"
            )
            raise Refused(f"holds {show(key)}, a tensor that is {kind} with PyTorch ({show(value.name)})")
    if others:
        named = listed([show(key) for key in others])
        _logger.warning("%s among the tensors are none, or have no name, and were left aside", named)


def _depth(path: str) -> int:
    return path.count("/")


def _usual(found: dict[str, dict[str, Tensor]]) -> tuple[str, dict[str, Tensor]]:
    """Chooses the dict with a usual name, or else the largest."""
    for name in _STATE_DICTS:
        named = {path: node for path, node in found.items() if path.rsplit("/", 1)[-1] == name}
        top = {path: node for path, node in named.items() if path.count("/") == min(map(_depth, named))}
        if len(top) > 1:
            raise Refused(
                f"has several networks, {listed([show(path) for path in top])}; save the one that you want on its own"
            )
        if top:
            return next(iter(top.items()))
    sizes = sorted((len(node) for node in found.values()), reverse=True)
    if sizes[:1] == sizes[1:2]:
        raise Refused(
            f"has several dicts of {sizes[0]} tensors, {listed([show(path) for path in found])}; "
            "save the one that you want on its own"
        )
    return max(found.items(), key=lambda item: len(item[1]))
