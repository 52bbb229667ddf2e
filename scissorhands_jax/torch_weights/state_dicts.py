"""PyTorch weights without PyTorch: reading and writing files, and matching them to parameter trees.

A state dict is a flat dict of NumPy arrays named and laid out as PyTorch does; a tree is a nested dict as Flax linen
makes it, whose module names are those of the PyTorch network. Between the two,

* path components are joined by dots: `layer1/0/conv1/kernel` is `layer1.0.conv1.weight`;
* `kernel`, `scale` and `embedding` are called `weight`; a kernel's last two axes (inputs, outputs) come first in
  PyTorch, as outputs, inputs (transposed convolutions and attention projections of more than two axes do not follow
  this rule);
* `mean`, `var` and `count` in the collection `batch_stats` are `running_mean`, `running_var` and
  `num_batches_tracked`; the name of the collection is dropped.

Files come from strangers: no pickle is ever executed, and what is not a tensor, container or number is refused.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import math
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors

from scissorhands_jax import trees
from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.errors import WeightsError
from scissorhands_jax.torch_weights import pickles
from scissorhands_jax.torch_weights.pickles import Damaged, Extent, ForbiddenGlobal, Refused, Storage, Tensor, show

logger = logging.getLogger(__name__)

StateDict = dict[str, np.ndarray]

_STATE_DICTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights")
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_SEARCH_DEPTH = 4
_SHOWN = 10  # names of each kind in a message

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

_LOOKS_LIKE = (  # first bytes of what is often mistaken for a weights file
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"<!doctype html", "an HTML page, perhaps a failed download; download it again"),
    (b"<html", "an HTML page, perhaps a failed download; download it again"),
    (b"<?xml", "an XML document, perhaps a failed download; download it again"),
    (b"\x89hdf", "an HDF5 file; save the weights as .safetensors"),
    (b"\x93numpy", "a NumPy array; save the weights as .safetensors"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
)


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Reads the tensors of a `.safetensors` file or of what `torch.save` wrote, in either of its formats.

    The format is told by content. In a checkpoint, the state dict is the dict that holds nothing but tensors: the
    whole file, or one under a usual name such as `state_dict`, or else the largest outside of the optimizer. A prefix
    `module.` (DataParallel) or `_orig_mod.` (torch.compile) that all names share is removed.

    Args:
      path: the file.

    Returns:
      Read-only arrays by name, in the order of the file; bfloat16 and float8 as the types of `ml_dtypes`. Tensors that
      share memory in PyTorch share it here. Only the storages of these tensors are read, each once.

    Raises:
      WeightsError: there is no such file, it is something else, damaged, or holds a pickle that asks for more than
        tensors, containers and numbers, which is named and not executed.
    """
    with open_state_dict(path) as tensors:
        return tensors.read()


class LazyStateDict(Mapping[str, np.ndarray]):
    """The tensors of an open file; each is read when it is asked for, and again when it is asked for again."""

    def __init__(self, file: BinaryIO, tensors: dict[str, Tensor], extents: dict[str, Extent]) -> None:
        self._file, self._tensors, self._extents = file, tensors, extents

    def __getitem__(self, name: str) -> np.ndarray:
        return pickles.read_tensors(self._file, {name: self._tensors[name]}, self._extents)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        """The type of a tensor, which is not read."""
        return self._tensors[name].dtype

    def read(self) -> StateDict:
        """All tensors; a storage that several share is read once."""
        return pickles.read_tensors(self._file, self._tensors, self._extents)


@contextlib.contextmanager
def open_state_dict(path: str | os.PathLike[str]) -> Iterator[LazyStateDict]:
    """Opens a file as `read_state_dict` does, for reading one tensor after the other.

    Raises:
      WeightsError: as `read_state_dict`, also while tensors are read.
    """
    try:
        if not Path(path).is_file():
            raise Refused("is a folder or device; give the file itself" if Path(path).exists() else "does not exist")
        with open(path, "rb") as file:
            yield LazyStateDict(file, *_find_tensors(path, file))
    except WeightsError:
        raise
    except Refused as error:
        raise WeightsError(f"cannot read weights from {show(os.fspath(path), 500)}: the file {error}") from error
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a path with a null character
        raise WeightsError(f"cannot read weights from {show(os.fspath(path), 500)}: {error}") from error


def write_safetensors(
    path: str | os.PathLike[str], state_dict: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a state dict to a `.safetensors` file, for `load_state_dict(load_file(path))` in PyTorch.

    The file appears under its name only when it is complete; one that was there before is replaced. At most one array
    is copied at a time.

    Args:
      path: the file to write, in an existing folder.
      state_dict: arrays by name, as `to_state_dict` or `state_dict_views` return them.
      metadata: text to keep in the header, next to `format: pt`.

    Raises:
      WeightsError: a name or type cannot be stored, or the file cannot be written.
    """
    where = show(os.fspath(path), 500)
    arrays = {}
    for name, value in state_dict.items():
        array = np.asarray(value)
        if not isinstance(name, str) or name == "__metadata__":
            raise WeightsError(f"cannot write weights to {where}: {show(name)} is no name for an array; rename it")
        if array.dtype.newbyteorder("<") not in _SAFETENSORS_CODES:
            raise WeightsError(
                f"cannot write weights to {where}: {show(name)} is of type {array.dtype}, which .safetensors does not "
                "know; convert it"
            )
        arrays[name] = array
    try:
        with tempfile.TemporaryDirectory(prefix=".weights-", dir=Path(path).absolute().parent) as folder:
            part = Path(folder) / "part"
            with open(part, "wb") as file:
                _write_arrays(file, arrays, {"format": "pt"} | dict(metadata or {}))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
    except (OSError, ValueError, TypeError) as error:  # a full disk, names that are not text in UTF-8, odd metadata
        raise WeightsError(f"cannot write weights to {where}: {error}") from error


def _write_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """The format of https://huggingface.co/docs/safetensors, array by array; their own writer copies all of them first.

    Wide types come first, so that every array is aligned.
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
        file.write(array.reshape(-1).view(np.uint8))


def from_state_dict(
    state_dict: Mapping[str, np.ndarray], params: Params, model_state: ModelState
) -> tuple[Params, ModelState]:
    """Puts the arrays of a state dict into trees.

    Numbers keep their kind: floats are converted to the template's float type (float16 and bfloat16 exactly, float64
    by rounding), integers to its integer type, and never one into the other. `num_batches_tracked`, which files of
    before PyTorch 0.4.1 do not have, may be missing, and is ignored where the template does not count.

    Args:
      state_dict: arrays by PyTorch's names, as `read_state_dict` returns them.
      params: the template: a tree of arrays or `jax.ShapeDtypeStruct`s, which decides names, shapes and types.
      model_state: the template of the collections, such as `{"batch_stats": {...}}`.

    Returns:
      New trees like the templates. Leaves are NumPy arrays where the template's are, else JAX arrays. A missing
      counter is the template's, or zero if that has no value.

    Raises:
      WeightsError: arrays are missing, too many, or of other shapes or kinds; all are reported together.
    """
    slots = _slots(params, model_state)
    missing, misfits, leaves = [], [], []
    for name, slot in slots.items():
        if name not in state_dict and not slot.is_counter:
            missing.append(name)
            continue
        try:
            array = slot.take(np.asarray(state_dict[name])) if name in state_dict else slot.initial()
        except _Misfit as error:
            misfits.append((name, error))
            continue
        leaves.append(array.copy() if isinstance(slot.leaf, np.ndarray) else jnp.array(array))
    extra = [name for name in state_dict if name not in slots and not _is_spare_counter(name, slots)]
    if missing or extra or misfits:
        raise WeightsError(_describe(missing, extra, misfits, slots))
    return jax.tree.structure((params, model_state)).unflatten(leaves)


def with_fresh_head(
    state_dict: Mapping[str, np.ndarray], params: Params, model_state: ModelState
) -> tuple[Params, ModelState]:
    """Puts the arrays of a state dict into trees, but for a head of another width, which stays as it is in the trees.

    Args:
      state_dict: arrays by PyTorch's names.
      params, model_state: a freshly drawn network.

    Raises:
      WeightsError: as `from_state_dict`; arrays of one layer only, the head, may have other shapes.
    """
    fresh = to_state_dict(params, model_state)
    other = {name for name, array in fresh.items() if name in state_dict and state_dict[name].shape != array.shape}
    layers = {name.rpartition(".")[0] for name in other}
    if len(layers) == 1:
        state_dict = {**state_dict, **{name: fresh[name] for name in other}}
    return from_state_dict(state_dict, params, model_state)


def to_state_dict(params: Params, model_state: ModelState) -> StateDict:
    """Names and lays out the arrays of trees as PyTorch does; undoes `from_state_dict`.

    Args:
      params: a tree of arrays.
      model_state: the collections, such as `{"batch_stats": {...}}`.

    Returns:
      Contiguous arrays by name, of the types they have in the tree, but counters as int64.

    Raises:
      WeightsError: two leaves get the same name.
    """
    return {name: slot.give() for name, slot in _slots(params, model_state).items()}


def state_dict_views(params: Params, model_state: ModelState) -> StateDict:
    """The same without copies of arrays in this machine's memory: views, which may not be contiguous.

    Raises:
      WeightsError: two leaves get the same name.
    """
    return {name: slot.view() for name, slot in _slots(params, model_state).items()}


def state_dict_shapes(params: Params, model_state: ModelState) -> dict[str, tuple[int, ...]]:
    """Names and shapes that the arrays of trees have in PyTorch.

    Args:
      params, model_state: trees of arrays or `jax.ShapeDtypeStruct`s.
    """
    slots = _slots(params, model_state)
    return {name: tuple(slot.leaf.shape[axis] for axis in slot.axes()) for name, slot in slots.items()}


def _find_tensors(path: str | os.PathLike[str], file: BinaryIO) -> tuple[dict[str, Tensor], dict[str, Extent]]:
    """Finds out what the file is; returns the tensors of its state dict, and where their storages are."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(512)
    if size == 0:
        raise Refused("is empty; download or copy it again")
    if head.startswith(b"PK"):
        root, extents = pickles.read_zip(file, size)
    elif head[8:9] == b"{" and not _is_text(head[:8]):  # the length of a header of JSON, and the header
        root, extents = _read_safetensors(path, file, size)
    else:
        for start, what in _LOOKS_LIKE:
            if head.lstrip().lower().startswith(start):
                raise Refused(f"looks like {what}")
        if head[257:262] == b"ustar":
            raise Refused("looks like a tar archive; unpack it, or save it again with PyTorch 1.0 or later")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                root, extents = pickles.read_legacy(data)
            except ForbiddenGlobal:
                raise
            except Refused as error:
                if head.startswith(b"\x80"):
                    raise
                text = "text" if _is_text(head) else "neither a PyTorch nor a .safetensors file"
                raise Refused(f"looks like {text} (it begins with {show(head[:24])}); give a weights file") from error
    if sum(extent.size for extent in extents.values()) > size:
        raise Refused("has storages that overlap; do not trust this file")
    where, tensors = _find_state_dict(root)
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    logger.info("%s: %d tensors in %s", path, len(tensors), where or "the whole file")
    return tensors, extents


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _read_safetensors(
    path: str | os.PathLike[str], file: BinaryIO, size: int
) -> tuple[dict[str, Tensor], dict[str, Extent]]:
    """Has the header checked by the `safetensors` package; its NumPy reader knows no float8 and holds data twice."""
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except Exception as error:
        raise Damaged(f"its .safetensors header is not consistent ({show(str(error))})") from error
    file.seek(0)
    start = 8 + int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(start, size) - 8))
        tensors, extents = {}, {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
            if dtype is None:
                raise Refused(f"holds {show(name)} of type {show(entry['dtype'])}; convert it with PyTorch")
            shape = tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            if len(shape) > pickles.MAX_DIMENSIONS:
                raise Damaged(f"{show(name)} has {len(shape)} axes")
            if not 0 <= begin <= end <= size - start or end - begin != math.prod(shape) * dtype.itemsize:
                raise Damaged(f"{show(name)} lies outside of it")
            strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
            tensors[name] = Tensor(Storage(name, dtype, math.prod(shape)), dtype, 0, shape, strides)
            extents[name] = Extent(start + begin, end - begin)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged("its .safetensors header makes no sense") from error
    return tensors, extents


def _find_state_dict(root: object) -> tuple[str, dict[str, Tensor]]:
    """The dict that holds nothing but tensors, and its path in the checkpoint."""
    found: dict[str, dict[str, Tensor]] = {}
    queue = deque([("", root, 0)])
    seen = set()
    while queue:
        path, node, depth = queue.popleft()
        if type(node) is not dict or id(node) in seen:
            continue
        seen.add(id(node))
        if node and all(type(key) is str and isinstance(value, Tensor) for key, value in node.items()):
            found[path] = node
        elif depth < _SEARCH_DEPTH:
            for key, value in node.items():
                if type(key) is str and "optim" not in key.lower():
                    queue.append((f"{path}/{key}" if path else key, value, depth + 1))
    for name in _STATE_DICTS:
        for path, node in found.items():
            if path.rsplit("/", 1)[-1] == name:
                return path, node
    if not found:
        held = f"a dict with {_some([show(key) for key in root])}" if type(root) is dict and root else show(root)
        raise Refused(f"has no dict of tensors, it holds {held}; save `model.state_dict()` with torch.save")
    sizes = sorted((len(node) for node in found.values()), reverse=True)
    if sizes[:1] == sizes[1:2]:
        raise Refused(
            f"has several dicts of {sizes[0]} tensors, {_some([show(path) for path in found])}; "
            "save the one that is wanted alone"
        )
    return max(found.items(), key=lambda item: len(item[1]))


class _Misfit(Exception):
    """Why an array does not go into its slot."""

    def __init__(self, reason: str, shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None) -> None:
        super().__init__(reason)
        self.shapes = shapes  # expected and found, if these are the reason


class _Slot(NamedTuple):
    """A leaf of the template trees, and how PyTorch stores it."""

    leaf: Any
    is_kernel: bool
    is_counter: bool

    def axes(self) -> tuple[int, ...]:
        """For every axis in PyTorch, the leaf's."""
        rank = len(self.leaf.shape)
        return (rank - 1, rank - 2, *range(rank - 2)) if self.is_kernel and rank > 1 else tuple(range(rank))

    def view(self) -> np.ndarray:
        array = np.asarray(self.leaf).transpose(self.axes())
        return array.astype(np.int64) if self.is_counter else array

    def give(self) -> np.ndarray:
        return np.asarray(self.view(), order="C")

    def initial(self) -> np.ndarray:
        if isinstance(self.leaf, jax.ShapeDtypeStruct):
            return np.zeros(self.leaf.shape, self.leaf.dtype)
        return np.asarray(self.leaf)

    def take(self, array: np.ndarray) -> np.ndarray:
        """The array as the leaf has it; raises `_Misfit`."""
        shape = tuple(self.leaf.shape[axis] for axis in self.axes())
        if array.shape != shape:
            raise _Misfit(f"expected {shape}, found {array.shape}", (shape, array.shape))
        dtype = np.dtype(self.leaf.dtype)
        kinds = (np.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
        if [jnp.issubdtype(array.dtype, kind) for kind in kinds] != [jnp.issubdtype(dtype, kind) for kind in kinds]:
            raise _Misfit(f"expected {dtype}, found {array.dtype}")
        if array.dtype != dtype:
            with np.errstate(over="ignore"):
                converted = array.astype(dtype)
            if jnp.issubdtype(dtype, jnp.integer):
                fits = np.array_equal(converted.astype(array.dtype), array)
            else:
                fits = np.array_equal(np.isfinite(converted), np.isfinite(array))
            if not fits:
                raise _Misfit(f"expected {dtype}, found {array.dtype} beyond its range")
            array = converted
        return array.transpose(np.argsort(self.axes()))


def _slots(params: Params, model_state: ModelState) -> dict[str, _Slot]:
    """The leaves of both trees in tree order, by PyTorch's names."""
    weights = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
    statistics = {"mean": "running_mean", "var": "running_var", "count": "num_batches_tracked"}
    slots: dict[str, _Slot] = {}
    for tree, is_state in ((params, False), (model_state, True)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            parts = trees.path_name(path).split("/")
            names = {} if is_state else weights
            if is_state:
                names = statistics if parts[0] == "batch_stats" else {}
                parts = parts[1:] or parts
            name = ".".join([*parts[:-1], names.get(parts[-1], parts[-1])])
            if name in slots:
                raise WeightsError(f"two arrays of the model are both called {name} in PyTorch; rename one of them")
            is_kernel = not is_state and parts[-1] == "kernel"
            slots[name] = _Slot(leaf, is_kernel, names.get(parts[-1]) == "num_batches_tracked")
    return slots


def _is_spare_counter(name: str, slots: Mapping[str, _Slot]) -> bool:
    module, _, last = name.rpartition("num_batches_tracked")
    return last == "" and f"{module}running_mean" in slots


def _describe(
    missing: list[str], extra: list[str], misfits: list[tuple[str, _Misfit]], slots: Mapping[str, _Slot]
) -> str:
    """All that is wrong in one sentence, and a guess at the reason."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_some(missing)})")
    if extra:
        parts.append(f"{len(extra)} not in the model ({_some([show(name)[1:-1] for name in extra])})")
    if misfits:
        parts.append(f"{len(misfits)} that do not fit ({_some([f'{name}: {error}' for name, error in misfits])})")
    return (
        f"the weights are not those of this model of {len(slots)} arrays: {', '.join(parts)}; "
        f"{_guess(missing, extra, misfits, slots)}"
    )


def _guess(missing: list[str], extra: list[str], misfits: list[tuple[str, _Misfit]], slots: Mapping[str, _Slot]) -> str:
    modules = {name.rpartition(".")[0] for name, _ in misfits}
    shapes = [error.shapes for _, error in misfits]
    if not missing and not extra and len(modules) == 1 and all(pair and all(pair) for pair in shapes):
        (expected, *inner), (found, *found_inner) = shapes[0]
        if inner == found_inner and expected != found:
            (module,) = modules
            return f"they have {found} classes and the model {expected} (in {module}): build it with {found}"
    if missing and len(missing) == sum(not slot.is_counter for slot in slots.values()):
        return "no name agrees, so this is another kind of network, or its names have a prefix"
    if extra and not missing:
        return "they may be of a deeper network of this kind: build the model with that depth"
    if missing and not extra:
        return "they may be of a shallower network of this kind: build the model with that depth"
    return "build the model with the architecture and width that they were saved from"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
