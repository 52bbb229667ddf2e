"""Any value in words: settings, arrays, and functions with their code and everything that they refer to.

A description is JSON, the same in every process, without addresses. Two values with one description compute the same.

* What belongs to Python or to a library whose version is recorded (`reproducibility.LIBRARIES`) is described by its
  name.
* Another function is described by its bytecode, its defaults, its attributes, the values that it closes over, the
  global values that it names, and what it may take from modules of your own, also those that it imports itself; another
  class by its functions and values. What these refer to is described in the same way. Code that was installed with
  other packages stands for itself: its attributes and the global values that it names are left out.
* An array is described by its type, its shape and the hash of its numbers, an object by its fields or by what `copy`
  and `pickle` take from it; one of a dataclass of your own by its fields and all other attributes.

So whatever an object of your own holds beside its fields counts too, such as the results that it remembers. Where that
computes nothing, or cannot be described, as a lock, give the function a name (`named`) or the class an attribute
`__identity__`, which is described in its place. What a dataclass remembers of a `cached_property` is left out.

Bytecode differs between versions of Python, so that descriptions with code can only be compared within one version.
"""

from __future__ import annotations

import copyreg
import dataclasses
import dis
import enum
import functools
import importlib.util
import site
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scissorhands_jax import hashing
from scissorhands_jax.errors import InputError
from scissorhands_jax.training.reproducibility import LIBRARIES

CODE = "(code)"
"""The key of the hash of bytecode."""
IDENTITY = "__identity__"
"""The attribute that is described in place of the function or object that has it."""

_TYPE = "(type)"
_MAX_DEPTH = 100
_LONG = 100  # entries of a sequence of plain values above which it is described by a hash
_PLAIN = (type(None), bool, int, float, str)
_LINEN = ("_id", "_parent_ref", "_state", "scope")  # what Flax keeps in a module, which no other module has
_MEMBERS = (types.FunctionType, staticmethod, classmethod, property, functools.cached_property)


@dataclasses.dataclass(frozen=True)
class _Named:
    """What `named` returns for a function."""

    name: str
    function: Callable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def __identity__(self) -> str:
        return f"named {self.name}"


def named(name: str, value: Any) -> Any:
    """Gives a function a name that stands for everything it computes when runs are compared.

    By default a loss, an augmentation or a method of your own is recognised by its code and by all values that it
    refers to. Give it a name where that is impossible, because it refers to an open file for instance, or not wanted,
    because values that it refers to change without an effect. Then change the name whenever the function changes.

    Args:
      name: The name.
      value: A function, or a NamedTuple of functions, such as a `Method` or a `Model`.

    Returns:
      A function that does the same, or a NamedTuple of such functions.

    Raises:
      InputError: The name is empty, or the value is not a function.

    >>> named("twice", lambda x: 2 * x)(3)
    6
    """
    if not name:
        raise InputError("the name of a function must not be empty")
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
        return type(value)(*(named(f"{name}.{field}", part) for field, part in parts))
    if not callable(value):
        raise InputError(f"only a function can be given a name, and {name!r} is a {type(value).__name__}")
    return _Named(name, value)


def describe_value(value: Any, place: str) -> Any:
    """Describes a value as JSON.

    Args:
      value: Anything that a run can be made of.
      place: What the value is called in errors.

    Raises:
      InputError: The value refers to something that cannot be described, such as an open file; the error says where.
    """
    return _Describer()(value, place)


def code_sha256(code: types.CodeType) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of bytecode, which its name, file and line numbers do not change."""
    return _short(repr(_code_parts(code)))


class _Describer:
    """Describes values, and each object among them only once."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, Any]] = {}  # by id: the object, which must stay alive, and its description
        self._above: set[int] = set()  # the ids of the objects around the one that is being described

    def __call__(self, value: Any, place: str) -> Any:
        if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum) and not hasattr(value, IDENTITY):
            return value if type(value) in _PLAIN else [type(value).__name__, str(value)]
        if id(value) in self._done:
            return self._done[id(value)][1]
        if id(value) in self._above:
            return "(itself)"
        if len(self._above) > _MAX_DEPTH:
            raise _unknown(place, "something that is nested too deeply")
        self._above.add(id(value))
        try:
            found = self._described(value, place)
        finally:
            self._above.discard(id(value))
        self._done[id(value)] = (value, found)
        return found

    def _described(self, value: Any, place: str) -> Any:
        if not isinstance(value, type) and (own := _own_identity(value)) is not None:
            return self(own, place)
        for kinds, method in _METHODS:
            if isinstance(value, kinds):
                return method(self, value, place)
        return self._object(value, place)

    def _parts(self, parts: Iterable[tuple[Any, Any]], place: str) -> dict[str, Any]:
        return {str(name): self(part, f"{place}.{name}") for name, part in parts}

    def _array(self, value: Any, place: str) -> str:
        if isinstance(value, jax.core.Tracer):
            raise _unknown(place, "an array that is being traced")
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            raise _unknown(place, "an array that is divided over processes")
        return hashing.described_array(value)

    def _text(self, value: Any, place: str) -> str:
        del place
        return str(value)

    def _bytes(self, value: Any, place: str) -> str:
        del place
        return f"{len(value)} bytes {hashing.sha256(bytes(value))[:16]}"

    def _module(self, value: types.ModuleType, place: str) -> str:
        if _is_own_module(value):  # Only functions say which of its values they take.
            raise _unknown(place, f"the module {value.__name__}")
        return value.__name__

    def _sequence(self, value: list | tuple, place: str) -> Any:
        if hasattr(value, "_fields"):
            return {_TYPE: self(type(value), place)} | self._parts(zip(value._fields, value, strict=True), place)
        if len(value) > _LONG and all(type(entry) in _PLAIN for entry in value):
            return f"{len(value)} entries {_short(repr(list(value)))}"
        return [self(entry, f"{place}.{number}") for number, entry in enumerate(value)]

    def _structure(self, value: jax.tree_util.PyTreeDef, place: str) -> Any:
        return [self(value.node_data(), place), [self(child, place) for child in value.children()]]

    def _set(self, value: Iterable, place: str) -> list:
        return sorted((self(entry, place) for entry in value), key=repr)

    def _mapping(self, value: Mapping, place: str) -> Any:
        if all(isinstance(key, str) for key in value):
            return self._parts(value.items(), place)
        return [[self(key, place), self(entry, f"{place}.{key}")] for key, entry in value.items()]

    def _member(self, value: Any, place: str) -> Any:
        """Describes what a class makes of its functions."""
        names = ("__func__", "func", "fget", "fset", "fdel")
        return self._parts(((name, getattr(value, name)) for name in names if hasattr(value, name)), place)

    def _method(self, value: Any, place: str) -> Any:
        return {_TYPE: self(value.__func__, place), "self": self(value.__self__, place)}

    def _builtin(self, value: Any, place: str) -> Any:
        owner, name = getattr(value, "__self__", None), getattr(value, "__qualname__", value.__name__)
        if owner is None or isinstance(owner, types.ModuleType | type):
            return f"{getattr(value, '__module__', None) or 'builtins'}.{name}"
        return {_TYPE: name, "self": self(owner, place)}

    def _partial(self, value: functools.partial, place: str) -> Any:
        arguments = {"(arguments)": self(value.args, place)} if value.args else {}
        return {_TYPE: self(value.func, place)} | arguments | self._parts(value.keywords.items(), place)

    def _function(self, value: types.FunctionType, place: str) -> Any:
        code, origin = value.__code__, _origin(value.__code__.co_filename)
        found: dict[str, Any] = {_TYPE: f"{value.__module__}.{value.__qualname__}"}
        if origin != "known":
            found[CODE] = code_sha256(code)
            if defaults := (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()):
                found["(defaults)"] = self(defaults, place)
        names, seen = sorted(set(_names(code))), set[int]()
        for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            try:
                contents = cell.cell_contents
            except ValueError:  # Nothing was bound to the name yet.
                contents = "(unbound)"
            found[name] = self._taken(contents, names, f"{place}.{name}", seen)
        if origin == "own":
            for name, part in self._globals(value, names, place, seen).items():
                # A closed-over variable may be called like a global one that the function names as an attribute.
                found[f"{name} (global)" if name in found else name] = part
            if attributes := {name: part for name, part in vars(value).items() if name != "__wrapped__"}:
                found["(attributes)"] = self._parts(attributes.items(), place)
        return found if len(found) > 1 else found[_TYPE]

    def _globals(self, value: types.FunctionType, names: list[str], place: str, seen: set[int]) -> dict[str, Any]:
        """Describes the global values that a function names, and what it may take from modules that are no library."""
        entries = {name: value.__globals__[name] for name in names if name in value.__globals__}
        entries |= {f"import {name}": module for name, module in _imported(value)}
        return {
            name: self._taken(entry, names, f"{place}.{name}", seen)
            for name, entry in entries.items()
            if not isinstance(entry, types.ModuleType) or _is_own_module(entry)
        }

    def _taken(self, value: Any, names: list[str], place: str, seen: set[int]) -> Any:
        """Describes what a function refers to; of each module of your own, once, what it may take by these names."""
        if not isinstance(value, types.ModuleType) or not _is_own_module(value):
            return self(value, place)
        if id(value) in seen:
            return value.__name__
        seen.add(id(value))
        parts = ((name, getattr(value, name)) for name in names if hasattr(value, name))
        return {name: self._taken(part, names, f"{place}.{name}", seen) for name, part in parts}

    def _class(self, value: type, place: str) -> Any:
        name, origin = f"{value.__module__}.{value.__qualname__}", _origin_of_module(value.__module__)
        if origin == "known":
            return name
        if origin == "installed":
            codes = [(at, part.__code__) for at, part in sorted(vars(value).items()) if hasattr(part, "__code__")]
            return {_TYPE: name, CODE: _short(repr([(at, code_sha256(code)) for at, code in codes]))}
        members = {at: part for at, part in sorted(vars(value).items()) if not _is_generated(at, part)}
        bases = [self(base, place) for base in value.__bases__ if base is not object]
        return {_TYPE: name, "(bases)": bases} | self._parts(members.items(), place)

    def _object(self, value: Any, place: str) -> Any:
        found = {_TYPE: self(type(value), place)}
        is_own = _origin_of_module(type(value).__module__) == "own"
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            names += [name for name in _attributes(value) if name not in names] if is_own else []
            return found | self._parts(((name, getattr(value, name, None)) for name in names), place)
        wrapped = getattr(value, "__wrapped__", None)
        if callable(wrapped) and not is_own:  # made of a function by `jit`, `custom_vjp`, `cache` and the like
            attributes = getattr(value, "__dict__", {}).items()
            parts = ((name, part) for name, part in attributes if not name.startswith("_"))
            return found | {"(function)": self(wrapped, place)} | self._parts(parts, place)
        return found | self._state(value, place)

    def _state(self, value: Any, place: str) -> dict[str, Any]:
        """Describes what an object is copied and pickled from."""
        reduce_it = copyreg.dispatch_table.get(type(value))
        try:
            reduced = value.__reduce_ex__(4) if reduce_it is None else reduce_it(value)
        except Exception as error:  # Classes raise what they like.
            raise _unknown(place, f"a {type(value).__module__}.{type(value).__qualname__}") from error
        if isinstance(reduced, str):
            return {"(name)": reduced}
        make, arguments, state, *entries = (*reduced, None, None, None)[:5]
        arguments = arguments[1:] if make.__name__ == "__newobj__" else arguments
        found = {"(arguments)": self(arguments, place)} if arguments else {}
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, dict):
                # What `functools.update_wrapper` copies from a function computes nothing.
                kept = ((name, entry) for name, entry in part.items() if name not in functools.WRAPPER_ASSIGNMENTS)
                found |= self._parts(kept, place)
            else:
                found["(state)"] = self(part, place)
        return found | {"(entries)": self([list(part) for part in entries if part is not None], place)}


# In this order, because some kinds belong to others.
_METHODS: tuple[tuple[tuple[type, ...], Callable[[_Describer, Any, str], Any]], ...] = (
    ((np.ndarray, np.generic, jax.Array), _Describer._array),
    (
        (jax.ShapeDtypeStruct, np.dtype, jax.sharding.Mesh, jax.sharding.Sharding, jax.Device, enum.Enum),
        _Describer._text,
    ),
    ((jax.tree_util.PyTreeDef,), _Describer._structure),
    ((bytes, bytearray), _Describer._bytes),
    ((type,), _Describer._class),
    ((types.ModuleType,), _Describer._module),
    ((types.FunctionType,), _Describer._function),
    ((types.MethodType,), _Describer._method),
    ((types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, np.ufunc), _Describer._builtin),
    ((functools.partial,), _Describer._partial),
    (_MEMBERS[1:], _Describer._member),
    ((Mapping,), _Describer._mapping),
    ((list, tuple), _Describer._sequence),
    ((set, frozenset), _Describer._set),
)


def _unknown(place: str, what: str) -> InputError:
    return InputError(
        f"{place} is {what}, of which two cannot be told apart; leave it out of the function or object, or give the "
        "function a name with sh.named"
    )


def _own_identity(value: Any) -> Any:
    try:
        return getattr(value, IDENTITY, None)
    except Exception:  # Classes raise what they like.
        return None


def _attributes(value: Any) -> list[str]:
    """Returns the names of what an object holds, without what it only remembers of a `cached_property`."""
    kind = type(value)
    left_out = _LINEN if any(base.__module__ == "flax.linen.module" for base in kind.__mro__) else ()
    return [
        name
        for name in sorted(getattr(value, "__dict__", {}))
        if name not in left_out and not isinstance(getattr(kind, name, None), functools.cached_property)
    ]


def _is_generated(name: str, part: Any) -> bool:
    """Says whether a member of a class was not written by its author, or was made from what else is in the class."""
    made = isinstance(part, types.FunctionType) and part.__code__.co_filename == "<string>"  # by `dataclass`
    slot = isinstance(part, types.MemberDescriptorType | types.GetSetDescriptorType)
    about = name.startswith("__") and not isinstance(part, _MEMBERS)  # such as `__doc__`, and what `copy` keeps there
    return made or slot or about or name == "_abc_impl"


def _code_parts(code: types.CodeType) -> tuple:
    constants = [_code_parts(part) if isinstance(part, types.CodeType) else _constant(part) for part in code.co_consts]
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return (code.co_code, constants, counts, names, code.co_exceptiontable)


def _constant(value: Any) -> str:
    """Writes a constant so that 1, 1.0 and True differ, and the entries of a set have one order."""
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {[*map(_constant, value)]}"
    return f"{type(value).__name__} {value!r}"


def _names(code: types.CodeType) -> Iterator[str]:
    """Yields the names of globals and attributes in a function and in the functions within it."""
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _names(part)


def _imported(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yields what a function and those within it import themselves by its name, which libraries are not asked for."""
    for name, parts, level in sorted(_imports(function.__code__), key=repr):
        if level == 0 and not _is_own_import(name.partition(".")[0]):
            continue
        try:
            yield "." * level + name, __import__(name, function.__globals__, None, parts, level)
        except Exception:  # Modules raise what they like, and the function may expect it.
            yield "." * level + name, "(missing)"


def _imports(code: types.CodeType) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Yields the name, the parts and the level of each import in a function and in the functions within it."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for level, parts, step in zip(steps, steps[1:], steps[2:], strict=False):
        if step.opname == "IMPORT_NAME":
            yield step.argval, parts.argval or (), level.argval
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _imports(part)


def _short(text: str) -> str:
    return hashing.sha256(text)[:16]


@functools.cache
def _origin(file: str) -> str:
    """Says whether code is "known" by the version of its library, was "installed" with another package, or is "own"."""
    if file.startswith("<"):
        return "known" if file.startswith("<frozen ") else "own"
    libraries, installed, standard = _folders()
    if file.startswith(libraries) or (file.startswith(standard) and not file.startswith(installed)):
        return "known"
    return "installed" if file.startswith(installed) else "own"


def _origin_of_module(name: str) -> str:
    if name == "__main__":
        return "own"
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is not None:
        return _origin(file)
    top = name.partition(".")[0]  # of a module that is compiled into another one, or into Python
    return "known" if top in sys.stdlib_module_names or top in LIBRARIES else "own"


def _is_own_module(module: types.ModuleType) -> bool:
    return _origin_of_module(module.__name__) == "own"


def _is_own_import(top: str) -> bool:
    """As `_origin_of_module`, also for a module that nobody has imported yet."""
    if top in sys.modules or (spec := importlib.util.find_spec(top)) is None or not spec.has_location:
        return _origin_of_module(top) == "own"
    return _origin(str(spec.origin)) == "own"


@functools.cache
def _folders() -> tuple[tuple[str, ...], ...]:
    """Returns the folders of the libraries whose version is recorded, of installed packages, and of Python itself."""
    found = [importlib.util.find_spec(name) for name in LIBRARIES]
    libraries = [str(Path(spec.origin).parent) for spec in found if spec is not None and spec.origin is not None]
    # Also what `pip install --user` and the packages of a system bring, wherever this Python itself installs.
    installed = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    installed += [*site.getsitepackages(), site.getusersitepackages()]
    standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return tuple(tuple(f"{path}/" for path in paths) for paths in (libraries, installed, standard))
