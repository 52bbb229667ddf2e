"""Rebuilds the object in a pickle that `torch.save` wrote, without executing anything.

A pickle is a program. `pickletools` decodes its operations without running them, and `_Machine` interprets the few that
`torch.save` writes: those that build containers, numbers, text and descriptions of tensors. Whatever else a pickle asks
to make becomes an `Unknown`, which holds a name and does nothing. A restricted
`pickle.Unpickler` would not be safe. Its BUILD operation sets attributes, and through the slot state of a permitted
class it can change objects that belong to the whole process.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple, cast

import ml_dtypes
import numpy as np

from scissorhands_jax.torch_weights.tensors import (
    BIG_ENDIAN,
    MAX_DIMENSIONS,
    Damaged,
    ForbiddenGlobal,
    Refused,
    Storage,
    Tensor,
    Unknown,
    show,
)

_MAX_OPERATIONS = 2**20  # a few seconds of work; a checkpoint of a thousand tensors has about 1e5
_MAX_DEPTH = 1000  # open marks; Python's own pickler cannot nest deeper
_MAX_NAME = 1024  # bytes in a key or in the name of a global
_MAX_UNKNOWN = 100  # names of globals to remember for a message
_MAX_KEY = 2**63  # Larger integers are not sensible keys, and can be chosen so that their hashes collide.


class _Global(NamedTuple):
    """A global that a pickle may name: a function `(machine, *arguments) -> object`, or the type of elements."""

    call: Callable[..., object] | None = None
    dtype: np.dtype | None = None


class _Reader:
    """The file object that `pickletools.genops` reads from.

    It checks lengths before it reads, so that a pickle cannot make the process allocate more than the file holds.
    """

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
        if end < 0 or self.data.find(b"\\", self.at, end) >= 0:  # `pickletools` would decode escapes
            raise Damaged(f"its pickle has an impossible name at byte {self.at}")
        return self.read(end + 1 - self.at)

    def tell(self) -> int:
        return self.at


def interpret(data: Any, start: int) -> tuple[object, int, dict[str, Storage]]:
    """Builds the object of a pickle.

    Args:
      data: The bytes that hold the pickle, as `bytes` or `mmap`.
      start: The position at which the pickle begins.

    Returns:
      The object; the position after the pickle; and the storages that it refers to, by key.

    Raises:
      Refused: The pickle is damaged, or asks for something that is not permitted.
    """
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
        self.unknown: list[str] = []  # the globals that it named and that nothing is made of
        self.copied = 0

    def run(self) -> object:
        operations = pickletools.genops(cast(IO[bytes], self.reader))  # It only calls read, readline and tell.
        for _ in range(_MAX_OPERATIONS):
            at = self.reader.at
            # The operation is judged before its argument is decoded: some decoders are slow or emit warnings.
            name = _NAMES.get(self.reader.data[at]) if at < len(self.reader.data) else ""
            if name not in _OPERATIONS:
                if name == "":
                    raise Damaged("its pickle breaks off at the end of the file")
                if self.unknown:
                    raise ForbiddenGlobal(show(self.unknown[0]))
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
            except Exception as error:  # Whatever else fails has the same cause: the bytes make no sense.
                if self.unknown:
                    raise ForbiddenGlobal(show(self.unknown[0])) from error
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
        """Returns the container on top of the stack; for an unknown object, one that takes its items and is dropped."""
        (top,) = self.pop(1)
        self.stack.append(top)
        if isinstance(top, Unknown):
            return kind()
        if type(top) is not kind:
            raise TypeError(f"found a {type(top).__name__}")
        return top

    def spend(self, size: int) -> None:
        """Accounts for a copy of `size` items.

        An honest pickle copies each item that it has spelled out at most once, and an item takes at least a byte. So a
        pickle that has copied more items than it has bytes is built to fill the memory.
        """
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
        self.top(set).update(map(dict_key, items))

    def set_item(self, _: None) -> None:
        key, value = self.pop(2)
        self.top(dict)[dict_key(key)] = value

    def set_items(self, _: None) -> None:
        items = self.pop_mark()
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[dict_key(key)] = value

    def put(self, index: int) -> None:
        (self.memo[index],) = self.stack[-1:]

    def memoize(self, _: None) -> None:
        self.put(len(self.memo))

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def find_global(self, pair: str) -> None:
        self.push(self.look_up(*pair.split(" ", 1)))

    def find_stack_global(self, _: None) -> None:
        module, name = self.pop(2)
        self.push(self.look_up(module, name))

    def look_up(self, module: object, name: object) -> object:
        """Returns what is known by a name, or an `Unknown`."""
        found = _find_global(module, name)
        if isinstance(found, Unknown) and found.name not in self.unknown and len(self.unknown) < _MAX_UNKNOWN:
            self.unknown.append(found.name)
        return found

    def instance(self, pair: str) -> None:
        """Makes an instance of a class from what follows a mark."""
        self.pop_mark()
        found = self.look_up(*pair.split(" ", 1))
        if not isinstance(found, Unknown):
            raise TypeError("not a class")
        self.push(found)

    def object_of(self, _: None) -> None:
        """Makes an instance of the class that follows a mark."""
        found, *_arguments = self.pop_mark()
        if not isinstance(found, Unknown):
            raise TypeError("not a class")
        self.push(found)

    def new_object(self, count: int) -> None:
        """Makes an instance of a class, from it and `count` containers of arguments."""
        found, *_arguments = self.pop(1 + count)
        if not isinstance(found, Unknown):
            raise TypeError("not a class")
        self.push(Unknown(found.name))

    def reduce(self, _: None) -> None:
        function, arguments = self.pop(2)
        if isinstance(function, Unknown) and type(arguments) is tuple:
            # `copyreg._reconstructor` and the like are given the class that they make an object of.
            made = arguments[0] if arguments and isinstance(arguments[0], Unknown) else function
            self.push(Unknown(made.name))
            return
        if not isinstance(function, _Global) or function.call is None or type(arguments) is not tuple:
            raise TypeError("not a function and its arguments")
        self.push(function.call(self, *arguments))

    def build(self, _: None) -> None:
        """Checks the attributes of an object, and sets none.

        Those of a state dict are the versions of modules, and that of a NumPy dtype is its byte order.
        """
        (state,) = self.pop(1)
        (target,) = self.pop(1)
        if isinstance(target, Unknown):
            self.push(target)
            return
        if isinstance(target, np.dtype):
            if type(state) is not tuple or state[1] not in ("<", "|"):
                raise Refused(BIG_ENDIAN)
        elif type(target) is not dict or type(state) is not dict:
            raise TypeError(f"a {type(target).__name__} has no attributes")
        self.push(target)

    def find_storage(self, _: None) -> None:
        (identity,) = self.pop(1)
        if type(identity) is not tuple or len(identity) > 6:
            raise TypeError("not a storage")
        kind, storage_type, key, _, size, *view = identity
        if isinstance(storage_type, Unknown):
            raise Refused(_foreign_type(storage_type.name))
        if kind != "storage" or type(key) is not str or not isinstance(storage_type, _Global):
            raise TypeError("not a storage")
        if storage_type.dtype is None or type(size) is not int or not 0 <= size < 2**56:
            raise TypeError("not a storage")
        storage = self.storages.setdefault(dict_key(key), Storage(key, storage_type.dtype, size))
        if storage.dtype != storage_type.dtype or storage.size != size:
            raise Damaged(f"storage {show(key)} has two types or sizes")
        if view not in ([], [None]):  # A part of a storage, which the first versions of PyTorch wrote.
            ((_, start, part),) = view
            if type(start) is not int or type(part) is not int or not 0 <= start <= start + part <= size:
                raise Damaged(f"a part of storage {show(key)} lies outside of it")
            storage = Storage(key, storage.dtype, part, start)
        self.push(storage)


def dict_key(key: Any) -> Any:
    """Returns a dict key or set element if it is short, and raises an error otherwise.

    Nothing longer is needed, and a long key can be built so that hashing or comparing it takes very long.
    """
    if isinstance(key, Unknown):
        key = key.name
    if key is None or type(key) in (bool, float) or (type(key) is int and abs(key) < _MAX_KEY):
        return key
    if type(key) in (str, bytes) and len(key) <= _MAX_NAME:
        return key
    raise TypeError(f"a {type(key).__name__} is no key")


def _foreign_type(name: str) -> str:
    """Returns the end of a sentence about tensors of a type that cannot be read."""
    if ".Q" in name:
        return f"holds quantised tensors ({show(name)}); dequantise the model with PyTorch and save its state dict"
    return f"holds tensors of type {show(name)}, which NumPy does not have; convert them with PyTorch, as with .float()"


def _find_global(module: object, name: object) -> _Global | Unknown | str:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a global's name is text")
    if f"{module}.{name}" in _INERT:
        return f"{module}.{name}"
    return _GLOBALS.get(f"{module}.{name}") or Unknown(f"{module}.{name}"[:_MAX_NAME])


def _tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype | None = None
) -> Tensor:
    """Describes a view of a storage, after a check that it lies within the storage and has no more elements than it."""
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise TypeError("not a storage, a shape and strides")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Damaged("a tensor's shape and strides do not match")
    dtype = storage.dtype if dtype is None else dtype
    available = storage.size * storage.dtype.itemsize // dtype.itemsize
    if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
        raise Damaged("a tensor's shape, strides or offset are not whole numbers from 0")
    if 0 not in shape:
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if last >= available:
            raise Damaged("a tensor reaches beyond the end of its storage")
        if math.prod(shape) > available:
            raise Refused(
                "holds a tensor with more elements than its storage; save a copy made by `tensor.contiguous()`"
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
    if isinstance(dtype, Unknown):
        raise Refused(_foreign_type(dtype.name))
    if storage.start or not isinstance(dtype, _Global) or dtype.dtype is None or dtype.dtype == np.bool_:
        raise TypeError("not a whole storage and an element type")
    return _tensor(storage, offset, shape, strides, dtype.dtype)


def _check_metadata(metadata: object) -> None:
    """Refuses conjugated and negated views, for which the file holds the numbers before conjugation or negation."""
    if type(metadata) is dict and (metadata.get("conj") or metadata.get("neg")):
        raise Refused("holds a lazily conjugated or negated tensor; save a copy made by `tensor.resolve_conj()`")


def _rebuild_parameter(_: _Machine, data, gradient, hooks, state=None) -> Tensor | Unknown:
    del gradient, hooks, state
    if not isinstance(data, Tensor | Unknown):
        raise TypeError("not a tensor")
    return data


def _ordered_dict(machine: _Machine, pairs: list | tuple = ()) -> dict:
    """Builds a dict, which is empty unless Python 2 wrote the pickle."""
    if type(pairs) not in (list, tuple):
        raise TypeError("not a list")
    machine.spend(len(pairs))
    return {dict_key(key): value for key, value in pairs}


def _default_dict(machine: _Machine, factory: object = None) -> dict:
    """Builds an empty dict, without what makes its missing values."""
    del machine, factory
    return {}


def _counter(machine: _Machine, counts: dict) -> dict:
    if type(counts) is not dict:
        raise TypeError("not a dict")
    machine.spend(len(counts))
    return dict(counts)


def _set(machine: _Machine, items: list | tuple) -> set:
    if type(items) not in (list, tuple):
        raise TypeError("not a list")
    machine.spend(len(items))
    return set(map(dict_key, items))


def _size(machine: _Machine, items: tuple) -> tuple:
    if type(items) is not tuple:
        raise TypeError("not a tuple")
    del machine
    return items


def _bytes(machine: _Machine) -> bytes:
    del machine
    return b""


def _encode(machine: _Machine, text: str, encoding: str) -> bytes:
    """Builds bytes from text, which is how protocol 2 writes them."""
    if encoding != "latin1" or type(text) is not str:
        raise TypeError("not latin1")
    machine.spend(len(text))
    return text.encode("latin1")


def _complex(machine: _Machine, real: float, imaginary: float) -> complex:
    del machine
    if type(real) is not float or type(imaginary) is not float:
        raise TypeError("not floats")
    return complex(real, imaginary)


def _numpy_dtype(machine: _Machine, code: str, align: object = False, copy: object = True) -> np.dtype | Unknown:
    del machine, align, copy
    if type(code) is str and code[:1] in ("O", "S", "U", "V", "M", "m", "c"):
        return Unknown(f"numpy.dtype {code[:10]}")  # in arrays that are no weights
    if type(code) is not str or code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        raise TypeError("not the type of a number")
    return np.dtype(f"<{code}")


def _numpy_scalar(machine: _Machine, dtype: np.dtype, raw: bytes | str) -> int | float | bool | Unknown:
    del machine
    if isinstance(dtype, Unknown):
        return dtype
    if not isinstance(dtype, np.dtype) or type(raw) not in (bytes, str) or len(raw) != dtype.itemsize:
        raise TypeError("not a number")
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # It is text if Python 2 wrote it.
    return np.frombuffer(raw, dtype)[0].item()


# Classes that are keys of a dict in well-known files, such as the states of callbacks in that of Stable Diffusion v1.
# Each is replaced by its name, which cannot be called.
_INERT = {"pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"}


# PyTorch's name of each element type, the prefix of its storage class if it has one, and the type in NumPy.
_DTYPES = {
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
    "collections.defaultdict": _Global(_default_dict),
    "collections.Counter": _Global(_counter),  # the milestones of learning rate schedulers
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
_OPERATIONS: dict[str, Callable[..., None]] = {
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
    "FROZENSET": lambda machine, _: machine.push(set(map(dict_key, machine.pop_mark()))),
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
    "INST": _Machine.instance,
    "OBJ": _Machine.object_of,
    "NEWOBJ": lambda machine, _: machine.new_object(1),
    "NEWOBJ_EX": lambda machine, _: machine.new_object(2),
    "STACK_GLOBAL": _Machine.find_stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.find_storage,
}
for _name in (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
):
    _OPERATIONS[_name] = _Machine.push
