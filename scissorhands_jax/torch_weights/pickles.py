"""Rebuilds the object in a pickle that `torch.save` wrote, without executing anything.

A pickle is a program. `pickletools` decodes its operations without running them, and `_Machine` interprets the few that
`torch.save` writes: those that build containers, numbers, text and descriptions of tensors. Whatever else a pickle asks
to make becomes an `Unknown`, which holds a name and does nothing. A restricted
`pickle.Unpickler` would not be safe. Its BUILD operation sets attributes, and through the slot state of a permitted
class it can change objects that belong to the whole process.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any, cast

from scissorhands_jax.torch_weights.pickle_globals import (
    MAX_NAME,
    Global,
    NumpyType,
    dict_key,
    find_global,
    foreign_type,
)
from scissorhands_jax.torch_weights.tensors import (
    Damaged,
    ForbiddenGlobal,
    Refused,
    Storage,
    Unknown,
    show,
)

_MAX_OPERATIONS = 2**20  # a few seconds of work; a checkpoint of a thousand tensors has about 1e5
_MAX_DEPTH = 1000  # open marks; Python's own pickler cannot nest deeper
_MAX_UNKNOWN = 100  # names of globals to remember for a message


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
        end = self.data.find(b"\n", self.at, self.at + MAX_NAME)
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
        found = find_global(module, name)
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
        if not isinstance(function, Global) or function.call is None or type(arguments) is not tuple:
            raise TypeError("not a function and its arguments")
        self.push(function.call(self.spend, *arguments))

    def build(self, _: None) -> None:
        """Checks the attributes of an object, and sets none but the byte order of a NumPy type.

        Those of a state dict are the versions of modules.
        """
        (state,) = self.pop(1)
        (target,) = self.pop(1)
        if isinstance(target, Unknown):
            self.push(target)
            return
        if isinstance(target, NumpyType):
            if type(state) is not tuple or state[1] not in ("<", "|", ">"):
                raise TypeError("not the state of a type")
            target.is_foreign = state[1] == ">"
        elif type(target) is not dict or type(state) is not dict:
            raise TypeError(f"a {type(target).__name__} has no attributes")
        self.push(target)

    def find_storage(self, _: None) -> None:
        (identity,) = self.pop(1)
        if type(identity) is not tuple or len(identity) > 6:
            raise TypeError("not a storage")
        kind, storage_type, key, _, size, *view = identity
        is_key = type(key) is str and len(key) <= MAX_NAME
        if isinstance(storage_type, Unknown):
            raise Refused(foreign_type(storage_type.name))
        if kind != "storage" or not is_key or not isinstance(storage_type, Global):
            raise TypeError("not a storage")
        if storage_type.dtype is None or type(size) is not int or not 0 <= size < 2**56:
            raise TypeError("not a storage")
        storage = self.storages.setdefault(key, Storage(key, storage_type.dtype, size))
        if storage.dtype != storage_type.dtype or storage.size != size:
            raise Damaged(f"storage {show(key)} has two types or sizes")
        if view not in ([], [None]):  # A part of a storage, which the first versions of PyTorch wrote.
            ((_, start, part),) = view
            if type(start) is not int or type(part) is not int or not 0 <= start <= start + part <= size:
                raise Damaged(f"a part of storage {show(key)} lies outside of it")
            storage = Storage(key, storage.dtype, part, start)
        self.push(storage)


_NAMES = {ord(operation.code): operation.name for operation in pickletools.opcodes}
_OPERATIONS: dict[str, Callable[..., None]] = {
    "PROTO": _Machine.skip,
    "FRAME": _Machine.skip,
    "STOP": _Machine.skip,
    "MARK": _Machine.mark,
    "POP": lambda machine, _: machine.pop(1),
    "POP_MARK": lambda machine, _: machine.pop_mark(),
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
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
):
    _OPERATIONS[_name] = _Machine.push
