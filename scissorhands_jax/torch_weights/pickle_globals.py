"""The globals that a pickle of PyTorch weights may name, and what is made in their place.

Nothing here is imported by the name that a pickle gives: a name is looked up in a table, and what is not in it is an
`Unknown`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from scissorhands_jax.torch_weights.tensors import (
    MAX_DIMENSIONS,
    Damaged,
    OddKey,
    Refused,
    Storage,
    Tensor,
    Unknown,
    show,
)

MAX_NAME = 1024  # bytes in a key or in the name of a global
_MAX_KEY = 2**63  # Larger integers are not sensible keys, and can be chosen so that their hashes collide.

Spend = Callable[[int], None]
"""Accounts for a copy of so many items, and refuses a pickle that copies more than it holds."""


class Global(NamedTuple):
    """A global that a pickle may name: a function `(spend, *arguments) -> object`, or the type of elements."""

    call: Callable[..., object] | None = None
    dtype: np.dtype | None = None


def dict_key(key: Any) -> Any:
    """Returns a dict key or set element if it is a number or short, and what stands for it otherwise.

    Weights have no other names, and a long key can be built so that hashing or comparing it takes very long.

    Raises:
      TypeError: In Python this is no key.
    """
    if isinstance(key, Unknown):
        key = key.name
    if key is None or type(key) in (bool, float) or (type(key) is int and abs(key) < _MAX_KEY):
        return key
    if type(key) in (str, bytes) and len(key) <= MAX_NAME:
        return key
    if type(key) in (dict, list, bytearray):
        raise TypeError(f"a {type(key).__name__} is no key")
    return OddKey(type(key).__name__)


class NumpyType:
    """The type of a NumPy array or number beside the weights.

    Args:
      dtype: The type, in the byte order of this package.

    Attributes:
      is_foreign: Whether the pickle says that its bytes are in another order.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype, self.is_foreign = dtype, False


def foreign_type(name: str) -> str:
    """Returns the end of a sentence about tensors of a type that cannot be read."""
    if ".Q" in name:
        return f"holds quantised tensors ({show(name)}); dequantise the model with PyTorch and save its state dict"
    return f"holds tensors of type {show(name)}, which NumPy does not have; convert them with PyTorch, as with .float()"


def find_global(module: object, name: object) -> Global | Unknown | str:
    """Returns what is taken for a global of a pickle, which is never imported.

    Args:
      module: The name of its module, as the pickle has it.
      name: Its name there.

    Returns:
      What the package has in its place, its full name if that is all that is needed, and otherwise that it is unknown.

    Raises:
      TypeError: One of the names is no text.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a global's name is text")
    if f"{module}.{name}" in _INERT:
        return f"{module}.{name}"
    return _GLOBALS.get(f"{module}.{name}") or Unknown(f"{module}.{name}"[:MAX_NAME])


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


def _rebuild_tensor(_: Spend, storage, offset, shape, strides) -> Tensor:
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v2(_: Spend, storage, offset, shape, strides, gradient, hooks, metadata=None) -> Tensor:
    del gradient, hooks
    _check_metadata(metadata)
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(_: Spend, storage, offset, shape, strides, gradient, hooks, dtype, metadata=None) -> Tensor:
    del gradient, hooks
    _check_metadata(metadata)
    if isinstance(dtype, Unknown):
        raise Refused(foreign_type(dtype.name))
    if storage.start or not isinstance(dtype, Global) or dtype.dtype is None or dtype.dtype == np.bool_:
        raise TypeError("not a whole storage and an element type")
    return _tensor(storage, offset, shape, strides, dtype.dtype)


def _check_metadata(metadata: object) -> None:
    """Refuses conjugated and negated views, for which the file holds the numbers before conjugation or negation."""
    if type(metadata) is dict and (metadata.get("conj") or metadata.get("neg")):
        raise Refused("holds a lazily conjugated or negated tensor; save a copy made by `tensor.resolve_conj()`")


def _rebuild_parameter(_: Spend, data, gradient, hooks, state=None) -> Tensor | Unknown:
    del gradient, hooks, state
    if not isinstance(data, Tensor | Unknown):
        raise TypeError("not a tensor")
    return data


def _ordered_dict(spend: Spend, pairs: list | tuple = ()) -> dict:
    """Builds a dict, which is empty unless Python 2 wrote the pickle."""
    if type(pairs) not in (list, tuple):
        raise TypeError("not a list")
    spend(len(pairs))
    return {dict_key(key): value for key, value in pairs}


def _default_dict(spend: Spend, factory: object = None) -> dict:
    """Builds an empty dict, without what makes its missing values."""
    del spend, factory
    return {}


def _counter(spend: Spend, counts: dict) -> dict:
    if type(counts) is not dict:
        raise TypeError("not a dict")
    spend(len(counts))
    return dict(counts)


def _set(spend: Spend, items: list | tuple) -> set:
    if type(items) not in (list, tuple):
        raise TypeError("not a list")
    spend(len(items))
    return set(map(dict_key, items))


def _size(spend: Spend, items: tuple) -> tuple:
    if type(items) is not tuple:
        raise TypeError("not a tuple")
    del spend
    return items


def _bytes(spend: Spend) -> bytes:
    del spend
    return b""


def _encode(spend: Spend, text: str, encoding: str) -> bytes:
    """Builds bytes from text, which is how protocol 2 writes them."""
    if encoding != "latin1" or type(text) is not str:
        raise TypeError("not latin1")
    spend(len(text))
    return text.encode("latin1")


def _complex(spend: Spend, real: float, imaginary: float) -> complex:
    del spend
    if type(real) is not float or type(imaginary) is not float:
        raise TypeError("not floats")
    return complex(real, imaginary)


def _numpy_dtype(spend: Spend, code: str, align: object = False, copy: object = True) -> NumpyType | Unknown:
    del spend, align, copy
    if type(code) is not str:
        raise TypeError("not the type of a number")
    if code not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
        return Unknown(f"numpy.dtype {code[:10]}")  # in arrays that are no weights
    return NumpyType(np.dtype(f"<{code}"))


def _numpy_scalar(spend: Spend, kind: NumpyType, raw: bytes | str) -> int | float | bool | Unknown:
    del spend
    if isinstance(kind, Unknown):
        return kind
    if not isinstance(kind, NumpyType) or type(raw) not in (bytes, str) or len(raw) != kind.dtype.itemsize:
        raise TypeError("not a number")
    if kind.is_foreign:
        return Unknown(f"numpy.dtype >{kind.dtype.str[1:]}")
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # It is text if Python 2 wrote it.
    return np.frombuffer(raw, kind.dtype)[0].item()


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


_GLOBALS: dict[str, Global] = {
    "torch._utils._rebuild_tensor": Global(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": Global(_rebuild_tensor_v2),
    "torch._utils._rebuild_tensor_v3": Global(_rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": Global(_rebuild_parameter),
    "torch._utils._rebuild_parameter_with_state": Global(_rebuild_parameter),
    "torch.Size": Global(_size),
    "torch.storage.UntypedStorage": Global(dtype=np.dtype(np.uint8)),
    "collections.OrderedDict": Global(_ordered_dict),
    "collections.defaultdict": Global(_default_dict),
    "collections.Counter": Global(_counter),  # the milestones of learning rate schedulers
    "_codecs.encode": Global(_encode),
    "numpy.dtype": Global(_numpy_dtype),
    "numpy.core.multiarray.scalar": Global(_numpy_scalar),
    "numpy._core.multiarray.scalar": Global(_numpy_scalar),
}


for _module in ("builtins", "__builtin__"):
    _GLOBALS[f"{_module}.set"] = _GLOBALS[f"{_module}.frozenset"] = Global(_set)
    _GLOBALS[f"{_module}.bytes"] = Global(_bytes)
    _GLOBALS[f"{_module}.complex"] = Global(_complex)
for (_name, _prefix), _dtype in _DTYPES.items():
    _GLOBALS[f"torch.{_name}"] = Global(dtype=np.dtype(_dtype))
    if _prefix is not None:
        _GLOBALS[f"torch.{_prefix}Storage"] = Global(dtype=np.dtype(_dtype))
