"""Networks and batches spread over many devices: a mesh, and the rule by which arrays lie on it.

Programs are written for whole arrays; XLA divides them by the shardings that a `Layout` gives to parameters, optimizer
state and batches ("GSPMD", Xu et al. 2021), over the devices of one process or of many.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from scissorhands_jax import trees
from scissorhands_jax.base import Batch, Data, PyTree
from scissorhands_jax.errors import InputError

DATA = "data"
MODEL = "model"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything lies; made by `make_layout`.

    Batches are divided over the axis `data`. A large array of the network, of the optimizer's state or of what a method
    carries is divided along its largest dimension that is a multiple of the devices: over the axis `model`, with `fsdp`
    over both axes (fully sharded data parallelism: Rajbhandari et al. 2020, "ZeRO", stage 3), or, where no dimension
    is a multiple of those, over one of them. Small arrays are everywhere.
    """

    mesh: Mesh | AbstractMesh
    fsdp: bool = False
    replicate_below: int = 1 << 14  # numbers in an array

    def __str__(self) -> str:
        sizes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        return f"{sizes}, {'fsdp' if self.fsdp else 'not fsdp'}, whole below {self.replicate_below}"

    def spec(self, shape: Sequence[int]) -> PartitionSpec:
        """How an array of this shape is divided."""
        if math.prod(shape) < self.replicate_below:
            return PartitionSpec()
        for axes in ((DATA, MODEL), (MODEL,), (DATA,)) if self.fsdp else ((MODEL,),):
            count = math.prod(self.mesh.shape[axis] for axis in axes)
            divisible = [size if size % count == 0 else 0 for size in shape]
            if count > 1 and any(divisible):
                # Of equally large ones the last: in a kernel that is the output, whose slices need no sums.
                place = max(range(len(shape)), key=lambda axis: (divisible[axis], axis))
                return PartitionSpec(*[None] * place, axes if len(axes) > 1 else axes[0])
        return PartitionSpec()

    def nbytes(self, tree: PyTree) -> int:
        """Bytes that one device holds of a tree (arrays or shapes), of which it has a part of each divided array."""

        def held(leaf: Any) -> int:
            axes = jax.tree.leaves(tuple(self.spec(leaf.shape)))
            return trees.nbytes(leaf) // math.prod(self.mesh.shape[axis] for axis in axes)

        return sum(map(held, jax.tree.leaves(tree)))

    def shardings(self, tree: PyTree) -> PyTree:
        """The sharding of every array of a tree (arrays, tracers or shapes)."""
        return jax.tree.map(lambda leaf: NamedSharding(self.mesh, self.spec(np.shape(leaf))), tree)

    def place(self, tree: PyTree) -> PyTree:
        """Puts every array where it belongs; one that lies there already is handed back as it is.

        With many processes each calls this with the same numbers, and reads its own share of them.
        """
        return jax.tree.map(_put, tree, self.shardings(tree))

    def constrain(self, tree: PyTree) -> PyTree:
        """Inside jit: keeps every array where it belongs, so that steps return what they take."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def replicate(self, tree: PyTree) -> PyTree:
        """Inside jit: has every array everywhere."""
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, PartitionSpec()))

    def rows(self, leaf: np.ndarray, positions: np.ndarray) -> jax.Array:
        """Rows of an array on the host, divided over the axis `data` along the last axis of `positions`.

        A process reads the rows of its own devices only. As many rows as the axis does not divide go everywhere.

        Args:
          leaf: shape=(N, ...)
          positions: integers. shape=(B,), or (S, B) for a stack of S batches
        """
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        read: dict[tuple, np.ndarray] = {}

        def part(index: Any) -> np.ndarray:
            place = tuple((axis.start, axis.stop) for axis in index[: positions.ndim])
            if place not in read:  # Devices along the axis `model` hold the same rows.
                read[place] = np.asarray(leaf[positions[index[: positions.ndim]]], dtype)
            return read[place]

        shape = (*positions.shape, *leaf.shape[1:])
        return jax.make_array_from_callback(shape, self._rows_sharding(positions.shape), part, dtype=dtype)

    def divided(self, positions: PyTree) -> PyTree:
        """Positions of examples, shapes (B,) or (S, B), on the devices that take those examples; as `rows` does it."""
        return jax.tree.map(lambda leaf: jax.device_put(leaf, self._rows_sharding(leaf.shape)), positions)

    def constrain_rows(self, leaf: jax.Array, axes: int) -> jax.Array:
        """Inside jit: divides examples along the last of their first `axes` axes, as `rows` does it."""
        return jax.lax.with_sharding_constraint(leaf, self._rows_sharding(leaf.shape[:axes]))

    def everywhere(self, tree: PyTree) -> PyTree:
        """Puts every array whole on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def _rows_sharding(self, shape: Sequence[int]) -> NamedSharding:
        divided = shape[-1] % self.mesh.shape[DATA] == 0
        return NamedSharding(self.mesh, PartitionSpec(*[None] * (len(shape) - 1), DATA if divided else None))

    def rounded_up(self, batch_size: int) -> int:
        """The next number of examples that the axis `data` divides."""
        return batch_size + -batch_size % self.mesh.shape[DATA]

    def check_batches(self, batches: Sequence[Batch]) -> None:
        """Raises InputError unless the axis `data` divides the positions of every batch."""
        count = self.mesh.shape[DATA]
        for batch in batches:
            for part, positions in zip(Batch._fields, batch, strict=True):
                if positions is not None and len(positions) % count:
                    raise InputError(
                        f"a batch of {len(positions)} {part} examples cannot be divided over the {count} devices of "
                        f"the mesh's data axis; choose batch sizes that are multiples of {count}, or another mesh"
                    )


class HostRows:
    """An array on the host, as methods see it where a layout is in force: positions give rows on the devices."""

    def __init__(self, array: np.ndarray, layout: Layout) -> None:
        self._array = array
        self._layout = layout
        self.shape, self.dtype, self.ndim, self.nbytes = array.shape, array.dtype, array.ndim, array.nbytes

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, positions: np.ndarray | slice) -> jax.Array:
        if isinstance(positions, slice):
            positions = np.arange(len(self))[positions]
        return self._layout.rows(self._array, np.asarray(positions))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self._array, dtype, copy=copy)


def make_layout(
    data: int | None = None,
    model: int = 1,
    *,
    fsdp: bool = False,
    replicate_below: int = 1 << 14,
) -> Layout:
    """A mesh of `data` times `model` devices, those of all processes, and what lies where on it (see `Layout`).

    Args:
      data: parts of a batch; None takes all devices that `model` leaves.
      model: parts of every large array.
      fsdp: large arrays are divided over the axis `data` as well.
      replicate_below: arrays with fewer numbers are not divided.

    Raises:
      InputError: there are fewer devices, `model` does not divide them, an axis is below 1, or with many processes a
        device would be left without work.

    >>> dict(make_layout(1, 1).mesh.shape)
    {'data': 1, 'model': 1}
    """
    devices, processes = jax.device_count(), jax.process_count()
    _check_axes(data, model)
    if data is None:
        if devices % model:
            raise InputError(
                f"a model axis of {model} does not divide the number of devices, {devices}; name the data axis too"
            )
        data = devices // model
    asked = data * model
    if asked > devices:
        raise InputError(f"a mesh of {data} x {model} needs {asked} devices, but there are {devices}; ask for fewer")
    if processes > 1 and asked != devices:
        raise InputError(
            f"a mesh of {data} x {model} would leave {devices - asked} of the {devices} devices of the {processes} "
            "processes idle; with many processes all devices must be in it"
        )
    mesh = jax.make_mesh((data, model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:asked])
    return Layout(mesh, fsdp, replicate_below)


def planned_layout(data: int, model: int = 1, *, fsdp: bool = False) -> Layout:
    """A layout as `make_layout` has it, of devices that need not be there: it says where what would lie.

    Args:
      data: parts of a batch.
      model: parts of every large array.
      fsdp: large arrays are divided over the axis `data` as well.

    Raises:
      InputError: an axis has no device.
    """
    _check_axes(data, model)
    return Layout(AbstractMesh((data, model), (DATA, MODEL)), fsdp)


def _check_axes(data: int | None, model: int) -> None:
    if model < 1 or (data is not None and data < 1):
        raise InputError(f"both axes of a mesh need at least one device, got data {data} and model {model}")


def parse_mesh(text: str) -> tuple[int, int]:
    """`8` or `4x2` as the sizes of the axes `data` and `model`.

    Raises:
      InputError: it is neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and len(part) < 7 for part in parts):
        raise InputError(f"cannot read the mesh {text!r}; write DATA or DATAxMODEL, e.g. 8 or 4x2")
    return int(parts[0]), int(parts[1]) if len(parts) == 2 else 1


def host_rows(data: Data, layout: Layout) -> Data:
    """The data as methods see them where a layout is in force; nothing is put on a device yet."""
    return jax.tree.map(lambda leaf: HostRows(np.asarray(leaf), layout), data)


def to_host(tree: PyTree) -> PyTree:
    """The whole tree as NumPy arrays in every process, one array after the other; for files of other programs.

    With arrays that are divided over processes, all of these must call it.
    """

    def whole(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            assert isinstance(leaf.sharding, NamedSharding)
            leaf = jax.jit(lambda x: x, out_shardings=NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def _put(leaf: jax.Array | np.ndarray, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec))
            data = _put(jax.random.key_data(leaf), words)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if jax.process_count() == 1 or not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
    # Not `device_put`, which compares the whole array with every other process's.
    array = np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
