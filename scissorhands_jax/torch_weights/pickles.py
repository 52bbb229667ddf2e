"""Reads what `torch.save` wrote, without torch and without executing anything.

A pickle is a program. `pickletools` decodes its operations without running them, and `_Machine` follows the few that
`torch.save` writes, building containers, numbers, text and descriptions of tensors. The bytes of a tensor are read
from the file later, and only if it is wanted.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first object of a file of before PyTorch 1.6
PROTOCOL_VERSION = 1001
_MAX_OPERATIONS = 2**20  # some seconds of work; a checkpoint of a thousand tensors has about 1e5
_MAX_DEPTH = 1000  # open marks; Python's own pickler cannot nest deeper
_MAX_NAME = 1024  # bytes in the name of a global, or a key
MAX_DIMENSIONS = 64  # as in torch and NumPy
_MAX_KEY = 2**63  # larger integers make no sensible keys and can be built to collide

_BIG_ENDIAN = "was written on a big-endian machine; load and save it again with PyTorch on an ordinary one"


class Refused(Exception):
    """Why a file cannot be read: the end of a sentence that begins with the file, and what to do about it."""


class ForbiddenGlobal(Refused):
    """A pickle that names something other than tensors, containers and numbers."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"asks to run the global {name}, which is no tensor, container or number; nothing was executed: "
            "save `model.state_dict()` alone with PyTorch, or do not trust this file"
        )


class Damaged(Refused):
    """A file whose parts contradict each other or break off."""

    def __init__(self, what: str) -> None:
        super().__init__(f"is damaged: {what}; download or copy it again")


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of `size` elements in the file, or the part of one that begins at `start`."""

    key: str
    dtype: np.dtype
    size: int
    start: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A strided view of a storage; offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Extent(NamedTuple):
    """Where a storage's bytes are in the file, and their CRC-32 where the format keeps one."""

    start: int
    size: int
    crc: int | None = None


def show(name: object, limit: int = 100) -> str:
    """Text from a file, made fit for a message: no control characters, not too long."""
    text = repr(name) if isinstance(name, str | bytes | int | float | None) else f"a {type(name).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read_legacy(data: Any) -> tuple[object, dict[str, Extent]]:
    """Reads the format of before PyTorch 1.6: five pickles, then the storages one after the other.

    Args:
      data: the file as `bytes` or `mmap`.

    Returns:
      The saved object, with `Tensor`s in it, and the extent of every storage by its key.

    Raises:
      Refused: for any other input.
    """
    magic, at, _ = _interpret(data, 0)
    if type(magic) is not int or magic != MAGIC_NUMBER:
        raise Refused("is a pickle, but not one that torch.save wrote; save the model's state dict with torch.save")
    version, at, _ = _interpret(data, at)
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise Damaged(f"its protocol version is {show(version)} instead of {PROTOCOL_VERSION}")
    system, at, _ = _interpret(data, at)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise Refused(_BIG_ENDIAN)
        raise Damaged("its description of the system that wrote it is not readable")
    root, at, storages = _interpret(data, at)
    keys, at, _ = _interpret(data, at)
    if type(keys) is not list or len(keys) != len(storages) or set(map(_key, keys)) != set(storages):
        raise Damaged("its list of storages does not match its tensors")
    extents = {}
    for key in keys:
        storage = storages[key]
        size = storage.size * storage.dtype.itemsize
        if at + 8 + size > len(data):
            raise Damaged(f"it is truncated: {at + 8 + size} bytes or more are needed, and it has {len(data)}")
        if int.from_bytes(data[at : at + 8], "little", signed=True) != storage.size:
            raise Damaged(f"the storage at byte {at} does not have the length that its tensors expect")
        extents[key] = Extent(at + 8, size)
        at += 8 + size
    return root, extents


def read_zip(file: BinaryIO, size: int) -> tuple[object, dict[str, Extent]]:
    """Reads the format of PyTorch 1.6 and later: an uncompressed zip with `NAME/data.pkl` and `NAME/data/KEY`.

    Args:
      file: opened for reading.
      size: of the file, in bytes.

    Returns:
      The saved object, with `Tensor`s in it, and the extent of every storage by its key.

    Raises:
      Refused: for any other input.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile meets damage with many exceptions, and all of them mean damage
        raise Damaged(f"its zip directory is not readable ({show(str(error))})") from error
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "":
            raise Refused(f"is a zip with the unsafe entry name {show(entry.filename)}; do not trust this file")
        if entry.filename in members:
            raise Refused(f"is a zip with two entries named {show(entry.filename)}; do not trust this file")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise Refused(
                f"is a zip whose entry {show(entry.filename)} is compressed or encrypted, which torch.save never does; "
                "save it again with PyTorch"
            )
        members[entry.filename] = entry
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused("is a zip, but not one that torch.save wrote; save the model's state dict with torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise Refused("is a TorchScript archive; save `model.state_dict()` with torch.save instead")
    outside = next((name for name in members if not name.startswith(folder)), None)
    if outside is not None:
        raise Refused(f"is a zip with the foreign entry {show(outside)}; save it again with PyTorch")
    if f"{folder}byteorder" in members:
        order = read_bytes(file, _locate(file, size, members[f"{folder}byteorder"])).tobytes()
        if order != b"little":
            raise Refused(_BIG_ENDIAN) if order == b"big" else Damaged(f"its byte order is {show(order)}")
    program = read_bytes(file, _locate(file, size, members[pickles[0]])).tobytes()
    root, _, storages = _interpret(program, 0)
    extents = {}
    for key, storage in storages.items():
        entry = members.get(f"{folder}data/{key}")
        if entry is None:
            raise Damaged(f"the data of storage {show(key)} is missing")
        if entry.file_size != storage.size * storage.dtype.itemsize:
            raise Damaged(f"storage {show(key)} does not have the length that its tensors expect")
        extents[key] = _locate(file, size, entry)
    return root, extents


def _locate(file: BinaryIO, size: int, entry: zipfile.ZipInfo) -> Extent:
    """Where a stored entry's bytes are, by the entry's own header."""
    where = f"the zip entry {show(entry.filename)}"
    header = struct.Struct("<4s22xHH")
    if not 0 <= entry.header_offset <= size - header.size:
        raise Damaged(f"{where} lies outside of it")
    file.seek(entry.header_offset)
    signature, name_size, extra_size = header.unpack(file.read(header.size))
    name = file.read(name_size)
    encoding = "utf-8" if entry.flag_bits & 0x800 else "cp437"
    if signature != b"PK\x03\x04" or name != entry.orig_filename.encode(encoding):
        raise Damaged(f"{where} has no header")
    start = entry.header_offset + header.size + name_size + extra_size
    if start + entry.file_size > size:
        raise Damaged(f"{where} ends after it")
    return Extent(start, entry.file_size, entry.CRC or None)  # 0: torch.serialization.set_crc32_options(False)


def read_bytes(file: BinaryIO, extent: Extent) -> np.ndarray:
    """The bytes of an extent that is known to lie inside of the file. shape=(size,), dtype=uint8"""
    raw = np.empty(extent.size, np.uint8)
    file.seek(extent.start)
    if file.readinto(raw) != extent.size:
        raise Damaged("it became shorter while it was read")
    if extent.crc is not None and zlib.crc32(raw) != extent.crc:
        raise Damaged(f"the checksum of the bytes from {extent.start} to {extent.start + extent.size} is wrong")
    return raw


def read_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], extents: Mapping[str, Extent]) -> dict[str, np.ndarray]:
    """Reads the storages of some tensors, each once, and returns read-only views of them."""
    storages: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        key = tensor.storage.key
        if key not in storages:
            storages[key] = read_bytes(file, extents[key])
            if tensor.storage.dtype == np.bool_ and storages[key].max(initial=0) > 1:
                raise Damaged(f"{show(name)} is boolean, but holds other bytes than 0 and 1")
        step = tensor.dtype.itemsize
        try:
            if 0 in tensor.shape:
                array = np.empty(tensor.shape, tensor.dtype)
            else:
                offset = tensor.storage.start * tensor.storage.dtype.itemsize + tensor.offset * step
                strides = tuple(stride * step for stride in tensor.strides)
                array = np.ndarray(tensor.shape, tensor.dtype, storages[key], offset, strides)
        except (ValueError, OverflowError) as error:  # NumPy's limits on shapes
            raise Damaged(f"the shape of {show(name)} is not possible") from error
        array.flags.writeable = False
        arrays[name] = array
    return arrays


class _Global(NamedTuple):
    """A global that a pickle may name: a function of the machine and its arguments, or an element type."""

    call: Callable[..., object] | None = None
    dtype: np.dtype | None = None


class _Reader:
    """What `pickletools.genops` reads from: a length in the pickle that exceeds the file allocates nothing."""

    def __init__(self, data: Any, at: int) -> None:
        self.data = data
        self.at = at

    def read(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise Damaged(f"its pickle breaks off after byte {self.at}")
        self.at += size
        return self.data[self.at - size : self.at]

    def readline(self) -> bytes:
        end = self.data.find(b"\n", self.at, self.at + _MAX_NAME)
        if end < 0 or self.data.find(b"\\", self.at, end) >= 0:  # `pickletools` would look for escapes
            raise Damaged(f"its pickle has an impossible name at byte {self.at}")
        return self.read(end + 1 - self.at)

    def tell(self) -> int:
        return self.at


def _interpret(data: Any, start: int) -> tuple[object, int, dict[str, Storage]]:
    """Builds the object of the pickle at `start`; also returns where it ends, and the storages it refers to."""
    machine = _Machine(_Reader(data, start))
    return machine.run(), machine.reader.at, machine.storages


class _Machine:
    """A stack machine for the pickle operations that `torch.save` writes with protocols 2 to 5."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        self.start = reader.at
        self.stack: list[Any] = []
        self.marks: list[int] = []  # stack heights
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.copied = 0

    def run(self) -> object:
        operations = pickletools.genops(self.reader)
        for _ in range(_MAX_OPERATIONS):
            at = self.reader.at
            # The operation is judged before its argument is decoded: some decoders are slow or emit warnings.
            name = _NAMES.get(self.reader.data[at]) if at < len(self.reader.data) else ""
            if name not in _OPERATIONS:
                if name == "":
                    raise Damaged("its pickle breaks off at the end of the file")
                raise Damaged(f"its pickle has an operation at byte {at} that torch.save does not write ({name})")
            try:
                argument = next(operations)[1]
                if name == "STOP":
                    if self.marks or len(self.stack) != 1:
                        raise Damaged(f"its pickle stops at byte {at} with unfinished work")
                    return self.stack.pop()
                _OPERATIONS[name](self, argument)
            except Refused:
                raise
            except Exception as error:  # any other failure has the same cause: the bytes make no sense
                raise Damaged(f"its pickle makes no sense at byte {at} ({name})") from error
        raise Refused(f"holds a pickle of more than {_MAX_OPERATIONS} operations; save the model's state dict alone")

    def pop(self, count: int) -> list[Any]:
        height = len(self.stack) - count
        if height < (self.marks[-1] if self.marks else 0):
            raise ValueError("the stack is empty")
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def pop_mark(self) -> list[Any]:
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def top(self, kind: type) -> Any:
        (top,) = self.pop(1)
        self.stack.append(top)
        if type(top) is not kind:
            raise TypeError(f"found a {type(top).__name__}")
        return top

    def spend(self, size: int) -> None:
        """Accounts for a copy: what a pickle copies, it has spelled out before, unless it wants to fill the memory."""
        self.copied += size
        if self.copied > self.reader.at - self.start:
            raise Refused("holds a pickle that copies itself again and again; do not trust this file")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def skip(self, argument: object) -> None:
        del argument

    def mark(self, _: None) -> None:
        if len(self.marks) >= _MAX_DEPTH:
            raise Refused(f"holds a pickle that is nested deeper than {_MAX_DEPTH} levels; do not trust this file")
        self.marks.append(len(self.stack))

    def tuple_of(self, count: int) -> None:
        self.push(tuple(self.pop(count)))

    def append(self, _: None) -> None:
        items = self.pop(1)
        self.top(list).extend(items)

    def appends(self, _: None) -> None:
        items = self.pop_mark()
        self.top(list).extend(items)

    def add_items(self, _: None) -> None:
        items = self.pop_mark()
        self.top(set).update(map(_key, items))

    def set_item(self, _: None) -> None:
        key, value = self.pop(2)
        self.top(dict)[_key(key)] = value

    def set_items(self, _: None) -> None:
        items = self.pop_mark()
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def put(self, index: int) -> None:
        (self.memo[index],) = self.stack[-1:]

    def memoize(self, _: None) -> None:
        self.put(len(self.memo))

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def find_global(self, pair: str) -> None:
        self.push(_find_global(*pair.split(" ", 1)))

    def find_stack_global(self, _: None) -> None:
        module, name = self.pop(2)
        self.push(_find_global(module, name))

    def reduce(self, _: None) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, _Global) or function.call is None or type(arguments) is not tuple:
            raise TypeError("not a function and its arguments")
        self.push(function.call(self, *arguments))

    def build(self, _: None) -> None:
        """Attributes: a state dict has module versions there, a NumPy dtype its byte order. Nothing is set."""
        (state,) = self.pop(1)
        (target,) = self.pop(1)
        if isinstance(target, np.dtype):
            if type(state) is not tuple or state[1] not in ("<", "|"):
                raise Refused(_BIG_ENDIAN)
        elif type(target) is not dict or type(state) is not dict:
            raise TypeError(f"a {type(target).__name__} has no attributes")
        self.push(target)

    def find_storage(self, _: None) -> None:
        (identity,) = self.pop(1)
        if type(identity) is not tuple or len(identity) > 6:
            raise TypeError("not a storage")
        kind, storage_type, key, _, size, *view = identity
        if kind != "storage" or type(key) is not str or not isinstance(storage_type, _Global):
            raise TypeError("not a storage")
        if storage_type.dtype is None or type(size) is not int or not 0 <= size < 2**56:
            raise TypeError("not a storage")
        storage = self.storages.setdefault(_key(key), Storage(key, storage_type.dtype, size))
        if storage.dtype != storage_type.dtype or storage.size != size:
            raise Damaged(f"storage {show(key)} has two types or sizes")
        if view not in ([], [None]):  # part of a storage, in files of the first versions of PyTorch
            ((_, start, part),) = view
            if type(start) is not int or type(part) is not int or not 0 <= start <= start + part <= size:
                raise Damaged(f"a part of storage {show(key)} lies outside of it")
            storage = Storage(key, storage.dtype, part, start)
        self.push(storage)


def _key(key: Any) -> Any:
    """A dict key or set element; others are not needed, and can be built to take forever to hash or compare."""
    if key is None or type(key) in (bool, float) or (type(key) is int and abs(key) < _MAX_KEY):
        return key
    if type(key) in (str, bytes) and len(key) <= _MAX_NAME:
        return key
    raise TypeError(f"a {type(key).__name__} is no key")


def _find_global(module: object, name: object) -> _Global | str:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a global's name is text")
    if f"{module}.{name}" in _INERT:
        return f"{module}.{name}"
    known = _GLOBALS.get(f"{module}.{name}")
    if known is None:
        raise ForbiddenGlobal(show(f"{module}.{name}"))
    return known


def _tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype | None = None
) -> Tensor:
    """A view, after making sure that it stays inside of its storage and is not larger than it."""
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise TypeError("not a storage, a shape and strides")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Damaged("a tensor's shape and strides do not match")
    dtype = storage.dtype if dtype is None else dtype
    available = storage.size * storage.dtype.itemsize // dtype.itemsize
    if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
        raise Damaged("a tensor's shape, strides or offset are not natural numbers")
    if 0 not in shape:
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if last >= available:
            raise Damaged("a tensor reaches beyond the end of its storage")
        if math.prod(shape) > available:
            raise Refused(
                "holds a tensor with more elements than were stored for it; save a copy made by `tensor.contiguous()`"
            )
    return Tensor(storage, dtype, offset, shape, strides)


def _rebuild_tensor(_: _Machine, storage, offset, shape, strides) -> Tensor:
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v2(_: _Machine, storage, offset, shape, strides, gradient, hooks, metadata=None) -> Tensor:
    del gradient, hooks
    _check_metadata(metadata)
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(_: _Machine, storage, offset, shape, strides, gradient, hooks, dtype, metadata=None) -> Tensor:
    del gradient, hooks
    _check_metadata(metadata)
    if storage.start or not isinstance(dtype, _Global) or dtype.dtype is None or dtype.dtype == np.bool_:
        raise TypeError("not a whole storage and an element type")
    return _tensor(storage, offset, shape, strides, dtype.dtype)


def _check_metadata(metadata: object) -> None:
    """Conjugated and negated views are stored as what they view."""
    if type(metadata) is dict and (metadata.get("conj") or metadata.get("neg")):
        raise Refused("holds a lazily conjugated or negated tensor; save a copy made by `tensor.resolve_conj()`")


def _rebuild_parameter(_: _Machine, data, gradient, hooks, state=None) -> Tensor:
    del gradient, hooks, state
    if not isinstance(data, Tensor):
        raise TypeError("not a tensor")
    return data


def _ordered_dict(machine: _Machine, pairs: list | tuple = ()) -> dict:
    """Empty, or with the items that Python 2 passed here."""
    if type(pairs) not in (list, tuple):
        raise TypeError("not a list")
    machine.spend(len(pairs))
    return {_key(key): value for key, value in pairs}


def _counter(machine: _Machine, counts: dict) -> dict:
    if type(counts) is not dict:
        raise TypeError("not a dict")
    machine.spend(len(counts))
    return dict(counts)


def _set(machine: _Machine, items: list | tuple) -> set:
    if type(items) not in (list, tuple):
        raise TypeError("not a list")
    machine.spend(len(items))
    return set(map(_key, items))


def _size(machine: _Machine, items: tuple) -> tuple:
    if type(items) is not tuple:
        raise TypeError("not a tuple")
    del machine
    return items


def _bytes(machine: _Machine) -> bytes:
    del machine
    return b""


def _encode(machine: _Machine, text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1" or type(text) is not str:
        raise TypeError("not latin1")
    machine.spend(len(text))
    return text.encode("latin1")


def _complex(machine: _Machine, real: float, imaginary: float) -> complex:
    del machine
    if type(real) is not float or type(imaginary) is not float:
        raise TypeError("not floats")
    return complex(real, imaginary)


def _numpy_dtype(machine: _Machine, code: str, align: object = False, copy: object = True) -> np.dtype:
    del machine, align, copy
    if type(code) is not str or code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        raise TypeError("not the type of a number")
    return np.dtype(f"<{code}")


def _numpy_scalar(machine: _Machine, dtype: np.dtype, raw: bytes | str) -> int | float | bool:
    del machine
    if not isinstance(dtype, np.dtype) or type(raw) not in (bytes, str) or len(raw) != dtype.itemsize:
        raise TypeError("not a number")
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # text, if Python 2 wrote it
    return np.frombuffer(raw, dtype)[0].item()


# Classes that are keys of a dict in well-known files (Stable Diffusion v1's has the state of its callbacks by class).
# Their names stand for them: a name cannot be called.
_INERT = {"pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"}

_DTYPES = {  # PyTorch's names of element types, the prefix of the storage class if it has one, and NumPy's types
    ("float16", "Half"): "<f2",
    ("float32", "Float"): "<f4",
    ("float64", "Double"): "<f8",
    ("bfloat16", "BFloat16"): ml_dtypes.bfloat16,
    ("float8_e4m3fn", None): ml_dtypes.float8_e4m3fn,
    ("float8_e5m2", None): ml_dtypes.float8_e5m2,
    ("int8", "Char"): "<i1",
    ("int16", "Short"): "<i2",
    ("int32", "Int"): "<i4",
    ("int64", "Long"): "<i8",
    ("uint8", "Byte"): "<u1",
    ("uint16", None): "<u2",
    ("uint32", None): "<u4",
    ("uint64", None): "<u8",
    ("bool", "Bool"): "?",
    ("complex64", "ComplexFloat"): "<c8",
    ("complex128", "ComplexDouble"): "<c16",
}

_GLOBALS: dict[str, _Global] = {
    "torch._utils._rebuild_tensor": _Global(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Global(_rebuild_tensor_v2),
    "torch._utils._rebuild_tensor_v3": _Global(_rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": _Global(_rebuild_parameter),
    "torch._utils._rebuild_parameter_with_state": _Global(_rebuild_parameter),
    "torch.Size": _Global(_size),
    "torch.storage.UntypedStorage": _Global(dtype=np.dtype(np.uint8)),
    "collections.OrderedDict": _Global(_ordered_dict),
    "collections.Counter": _Global(_counter),  # learning rate schedulers keep their milestones in one
    "_codecs.encode": _Global(_encode),
    "numpy.dtype": _Global(_numpy_dtype),
    "numpy.core.multiarray.scalar": _Global(_numpy_scalar),
    "numpy._core.multiarray.scalar": _Global(_numpy_scalar),
}
for _module in ("builtins", "__builtin__"):
    _GLOBALS[f"{_module}.set"] = _GLOBALS[f"{_module}.frozenset"] = _Global(_set)
    _GLOBALS[f"{_module}.bytes"] = _Global(_bytes)
    _GLOBALS[f"{_module}.complex"] = _Global(_complex)
for (_name, _prefix), _dtype in _DTYPES.items():
    _GLOBALS[f"torch.{_name}"] = _Global(dtype=np.dtype(_dtype))
    if _prefix is not None:
        _GLOBALS[f"torch.{_prefix}Storage"] = _Global(dtype=np.dtype(_dtype))

_NAMES = {ord(operation.code): operation.name for operation in pickletools.opcodes}
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.skip,
    "FRAME": _Machine.skip,
    "STOP": _Machine.skip,
    "MARK": _Machine.mark,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "FROZENSET": lambda machine, _: machine.push(set(map(_key, machine.pop_mark()))),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.find_global,
    "INST": _Machine.find_global,  # never written by torch.save; listed so that what it wants to run is named
    "STACK_GLOBAL": _Machine.find_stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.find_storage,
} | dict.fromkeys(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    ),
    _Machine.push,
)
