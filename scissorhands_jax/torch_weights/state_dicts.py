"""Conversion between PyTorch's state dicts and trees of parameters.

A state dict is a flat dict of NumPy arrays with PyTorch's names and axes. A tree is a nested dict as Flax linen makes
it, with the module names of the PyTorch network. They correspond as follows:

* The parts of a path are joined by dots: `layer1/0/conv1/kernel` is `layer1.0.conv1.weight`.
* `kernel`, `scale` and `embedding` are called `weight`. The last two axes of a kernel (inputs, outputs) come first in
  PyTorch, in the order outputs, inputs. A `weight` is Equinox's, which has PyTorch's axes already.
* `mean`, `var` and `count` in the collection `batch_stats` are `running_mean`, `running_var` and
  `num_batches_tracked`. The name of the collection is dropped. A BatchNorm without a counter gets one, of 0.
* A bias with further axes of length 1, as Equinox's convolutions have it, has one axis in PyTorch.
* The inputs of a dense layer after an image was flattened are in another order, see `flatten`.

Transposed convolutions, and attention projections of three axes, follow no such rule and are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import trees
from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.errors import WeightsError, listed
from scissorhands_jax.torch_weights.tensors import show
from scissorhands_jax.torch_weights.weight_files import StateDict

Flatten = Mapping[str, tuple[int, ...]] | None
"""For dense layers behind a flattened image, by name in PyTorch: the channels, height and width of the image.

PyTorch flattens images channels first, Flax channels last, so the inputs of such a layer are in another order. `{}`
says that there is none, or that the network flattens as PyTorch does. With None a layer that looks like one is refused.
"""


def from_state_dict(
    state_dict: Mapping[str, np.ndarray], params: Params, model_state: ModelState, *, flatten: Flatten = None
) -> tuple[Params, ModelState]:
    """Converts a state dict to the parameters and the state of a network.

    Floats are converted to the float type of the template: float16 and bfloat16 exactly, float64 by rounding. Integers
    are converted to its integer type, and neither kind becomes the other. `num_batches_tracked` may be missing, as in
    files from before PyTorch 0.4.1, and is ignored if the template has no counter.

    Args:
      state_dict: Arrays by PyTorch's names, as `read_state_dict` returns them.
      params: The template of the parameters: a tree of arrays or `jax.ShapeDtypeStruct`s, which decides names, shapes
        and types.
      model_state: The template of the other collections, such as `{"batch_stats": {...}}`.
      flatten: Which dense layers follow a flattened image; see `Flatten`.

    Returns:
      New trees like the templates. Their leaves are NumPy arrays where those of the template are, and JAX arrays
      elsewhere. A missing counter has the value in the template, or zero if that is only a shape.

    Raises:
      WeightsError: Arrays are missing, are superfluous, or have other shapes or kinds of numbers (the message names
        all of them), or a dense layer may follow a flattened image.
    """
    slots = _slots(params, model_state, flatten)
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
    extra = [name for name in state_dict if name not in slots and not _is_unused_counter(name, slots)]
    if missing or extra or misfits:
        raise WeightsError(_describe(missing, extra, misfits, slots))
    return jax.tree.unflatten(jax.tree.structure((params, model_state)), leaves)


def with_fresh_head(
    state_dict: Mapping[str, np.ndarray], params: Params, model_state: ModelState, *, flatten: Flatten = None
) -> tuple[Params, ModelState]:
    """Converts a state dict like `from_state_dict`, but keeps the template's head if the file's has another width.

    Args:
      state_dict: Arrays by PyTorch's names.
      params: The parameters of a freshly drawn network.
      model_state: The state of that network.
      flatten: Which dense layers follow a flattened image; see `Flatten`.

    Raises:
      WeightsError: The state dict does not fit. One dense layer, the head, may have another number of outputs.
    """
    fresh = to_state_dict(params, model_state, flatten=flatten)
    other = {name for name, array in fresh.items() if name in state_dict and state_dict[name].shape != array.shape}
    layers = {name.rpartition(".")[0] for name in other}
    # A head has another number of outputs, which come first in PyTorch; any other layer would stay as it was drawn.
    is_head = all(state_dict[name].ndim <= 2 and state_dict[name].shape[1:] == fresh[name].shape[1:] for name in other)
    if len(layers) == 1 and is_head:
        state_dict = {**state_dict, **{name: fresh[name] for name in other}}
    return from_state_dict(state_dict, params, model_state, flatten=flatten)


def to_state_dict(params: Params, model_state: ModelState, *, flatten: Flatten = None) -> StateDict:
    """Converts the parameters and the state of a network to a state dict; undoes `from_state_dict`.

    Args:
      params: A tree of arrays.
      model_state: The other collections, such as `{"batch_stats": {...}}`.
      flatten: Which dense layers follow a flattened image; see `Flatten`.

    Returns:
      Contiguous arrays by PyTorch's names. They have the types of the leaves, except that counters are int64.

    Raises:
      WeightsError: Two leaves have the same name in PyTorch, or a dense layer may follow a flattened image.
    """
    views = state_dict_views(params, model_state, flatten=flatten)
    return {name: np.asarray(array, order="C") for name, array in views.items()}


def state_dict_views(params: Params, model_state: ModelState, *, flatten: Flatten = None) -> StateDict:
    """Converts like `to_state_dict`, but returns views where arrays are in this machine's memory.

    Views need not be contiguous.

    Args:
      params: A tree of arrays.
      model_state: The other collections.
      flatten: Which dense layers follow a flattened image; see `Flatten`.

    Raises:
      WeightsError: Two leaves have the same name in PyTorch, or a dense layer may follow a flattened image.
    """
    slots = _slots(params, model_state, flatten)
    views = {}
    for name, slot in slots.items():
        views[name] = slot.view()
        module, _, last = name.rpartition("running_var")
        if last == "" and module + _COUNTER not in slots and module + "running_mean" in slots:
            views[module + _COUNTER] = np.zeros((), np.int64)
    return views


def state_dict_shapes(params: Params, model_state: ModelState) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that the arrays of a network have in PyTorch, by their names there.

    Args:
      params: A tree of arrays or `jax.ShapeDtypeStruct`s.
      model_state: The other collections, of arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      WeightsError: Two leaves have the same name in PyTorch.
    """
    return {name: slot.shape() for name, slot in _slots(params, model_state, {}).items()}


def check_shapes(shapes: Mapping[str, tuple[int, ...]], params: Params, model_state: ModelState) -> None:
    """Refuses names and shapes that `from_state_dict` would refuse, before any array is read.

    Args:
      shapes: The shapes in a file, by PyTorch's names.
      params: The template of the parameters; see `from_state_dict`.
      model_state: The template of the other collections.

    Raises:
      WeightsError: Arrays are missing, are superfluous, or have other shapes; the message names all of them.
    """
    slots = _slots(params, model_state, {})
    missing = [name for name, slot in slots.items() if name not in shapes and not slot.is_counter]
    extra = [name for name in shapes if name not in slots and not _is_unused_counter(name, slots)]
    misfits = [
        (name, _Misfit(f"expected {slot.shape()}, found {shapes[name]}", (slot.shape(), shapes[name])))
        for name, slot in slots.items()
        if name in shapes and shapes[name] != slot.shape()
    ]
    if missing or extra or misfits:
        raise WeightsError(_describe(missing, extra, misfits, slots))


class _Misfit(Exception):
    """The reason why an array does not fit into its slot."""

    def __init__(
        self,
        reason: str,
        shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
        *,
        found_integers: bool = False,
    ) -> None:
        super().__init__(reason)
        self.shapes = shapes  # expected and found, if these are the reason
        self.found_integers = found_integers  # where floats were expected


class _Slot(NamedTuple):
    """A leaf of the template trees, and how PyTorch stores it."""

    leaf: Any
    is_kernel: bool
    is_counter: bool
    is_long_bias: bool
    image: tuple[int, ...] | None = None  # channels and sides of the flattened image whose values are the inputs

    def axes(self) -> tuple[int, ...]:
        """Returns the axis of the leaf for each axis in PyTorch."""
        rank = len(self.leaf.shape)
        return (rank - 1, rank - 2, *range(rank - 2)) if self.is_kernel and rank > 1 else tuple(range(rank))

    def shape(self) -> tuple[int, ...]:
        """Returns the shape in PyTorch."""
        return self.leaf.shape[:1] if self.is_long_bias else tuple(self.leaf.shape[axis] for axis in self.axes())

    def view(self) -> np.ndarray:
        array = np.asarray(self.leaf).transpose(self.axes()).reshape(self.shape())
        if self.image is not None:
            channels, *sides = self.image
            array = np.moveaxis(array.reshape(-1, *sides, channels), -1, 1).reshape(array.shape)
        return array.astype(np.int64) if self.is_counter else array

    def initial(self) -> np.ndarray:
        if isinstance(self.leaf, jax.ShapeDtypeStruct):
            return np.zeros(self.leaf.shape, self.leaf.dtype)
        return np.asarray(self.leaf)

    def take(self, array: np.ndarray) -> np.ndarray:
        """Converts an array from PyTorch to the axes and type of the leaf, or raises `_Misfit`."""
        shape = self.shape()
        if array.shape != shape:
            raise _Misfit(f"expected {shape}, found {array.shape}", (shape, array.shape))
        dtype = np.dtype(self.leaf.dtype)
        kinds = (np.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
        if [jnp.issubdtype(array.dtype, kind) for kind in kinds] != [jnp.issubdtype(dtype, kind) for kind in kinds]:
            integers = np.issubdtype(array.dtype, np.integer) and jnp.issubdtype(dtype, jnp.floating)
            raise _Misfit(f"expected {dtype}, found {array.dtype}", found_integers=integers)
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
        if self.image is not None:
            array = np.moveaxis(array.reshape(-1, *self.image), 1, -1).reshape(shape)
        return array.reshape(self.leaf.shape) if self.is_long_bias else array.transpose(np.argsort(self.axes()))


_COUNTER = "num_batches_tracked"
_ATTENTION = ("query", "key", "value", "out")


def _slots(params: Params, model_state: ModelState, flatten: Flatten) -> dict[str, _Slot]:
    """Returns the leaves of both trees by PyTorch's names, in tree order."""
    weights = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
    statistics = {"mean": "running_mean", "var": "running_var", "count": _COUNTER}
    slots: dict[str, _Slot] = {}
    for tree, is_state in ((params, False), (model_state, True)):
        for leaf_name, leaf in trees.named_leaves(tree):
            parts = leaf_name.split("/")
            names = {} if is_state else weights
            if is_state:
                names = statistics if parts[0] == "batch_stats" else {}
                parts = parts[1:] or parts
            name = ".".join([*parts[:-1], names.get(parts[-1], parts[-1])])
            if name in slots:
                raise WeightsError(f"two arrays of the model are both called {name} in PyTorch; rename one of them")
            is_kernel, is_bias = (not is_state and parts[-1] == last for last in ("kernel", "bias"))
            if is_kernel:
                _check_layout(name, parts, leaf)
            is_long = is_bias and len(leaf.shape) > 1 and set(leaf.shape[1:]) == {1}
            slots[name] = _Slot(leaf, is_kernel, names.get(parts[-1]) == _COUNTER, is_long)
    return _with_images(slots, flatten)


def _check_layout(name: str, parts: list[str], leaf: Any) -> None:
    """Refuses kernels whose axes PyTorch has in an order that their names do not tell."""
    layer = parts[-2] if len(parts) > 1 else ""
    if len(leaf.shape) == 3 and layer in _ATTENTION:
        kind = "an attention projection of three axes, which PyTorch stores in one matrix for all heads"
    elif "convtranspose" in layer.lower().replace("_", ""):
        kind = "a transposed convolution, which PyTorch stores with inputs first and rows and columns reversed"
    else:
        return
    raise WeightsError(f"{name} is {kind}; convert this array by hand and leave it out of the conversion")


def _with_images(slots: dict[str, _Slot], flatten: Flatten) -> dict[str, _Slot]:
    """Adds to dense layers the images that they read, or refuses layers that may read one."""
    if flatten is None:
        _check_flattened(slots)
    for layer, image in (flatten or {}).items():
        name = f"{layer}.weight"
        slot = slots.get(name)
        if slot is None or not slot.is_kernel or len(slot.leaf.shape) != 2:
            dense = [
                key.removesuffix(".weight") for key, each in slots.items() if each.is_kernel and len(each.shape()) == 2
            ]
            raise WeightsError(
                f"flatten names {layer!r}, which is no dense layer of this model; it has {listed(dense)}"
            )
        if len(image) < 2 or math.prod(image) != slot.leaf.shape[0]:
            raise WeightsError(
                f"flatten says that {layer} reads an image of {'x'.join(map(str, image))}, but it has "
                f"{slot.leaf.shape[0]} inputs; give channels, height and width"
            )
        slots[name] = slot._replace(image=tuple(image))
    return slots


def _check_flattened(slots: Mapping[str, _Slot]) -> None:
    """Refuses a dense layer that may read a flattened image.

    It has several inputs for each channel of a convolution, and is not as wide as the output of any layer but those
    that keep the width: these need the width before them.
    """
    kernels = {name: slot.leaf.shape for name, slot in slots.items() if slot.is_kernel and slot.leaf.shape}
    channels = {shape[-1] for shape in kernels.values() if len(shape) > 2}
    outputs = {shape[-1] for shape in kernels.values() if len(shape) != 2 or shape[0] != shape[1]}
    for name, shape in kernels.items():
        if len(shape) != 2 or not shape[0] or shape[0] in outputs:
            continue
        image = max((each for each in channels if each > 1 and shape[0] % each == 0), default=None)
        if image is not None:
            layer, pixels = name.removesuffix(".weight"), shape[0] // image
            side = math.isqrt(pixels)
            sides = (side, side) if side**2 == pixels else (pixels, 1)
            raise WeightsError(
                f"{layer} has {shape[0]} inputs, {pixels} for each of {image} channels, so it may read a flattened "
                "image, which PyTorch flattens channels first and Flax channels last; give "
                f"flatten={{{layer!r}: {(image, *sides)}}}, with the channels, height and width there, or flatten={{}} "
                "if the order of the inputs is the same"
            )


def _is_unused_counter(name: str, slots: Mapping[str, _Slot]) -> bool:
    """Says whether a name is that of the counter of a BatchNorm for which the network has no counter."""
    module, _, last = name.rpartition(_COUNTER)
    return last == "" and f"{module}running_mean" in slots


def _describe(
    missing: list[str], extra: list[str], misfits: list[tuple[str, _Misfit]], slots: Mapping[str, _Slot]
) -> str:
    """Describes everything that does not fit in one sentence, with the likely reason."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({listed(missing)})")
    if extra:
        parts.append(f"{len(extra)} not in the model ({listed([show(name)[1:-1] for name in extra])})")
    if misfits:
        parts.append(f"{len(misfits)} that do not fit ({listed([f'{name}: {error}' for name, error in misfits])})")
    return (
        f"the weights are not those of this model of {len(slots)} arrays: {', '.join(parts)}; "
        f"{_likely_reason(missing, extra, misfits, slots)}"
    )


def _likely_reason(
    missing: list[str], extra: list[str], misfits: list[tuple[str, _Misfit]], slots: Mapping[str, _Slot]
) -> str:
    modules = {name.rpartition(".")[0] for name, _ in misfits}
    shapes = [error.shapes for _, error in misfits if error.shapes and all(error.shapes)]
    if not missing and not extra and len(modules) == 1 and len(shapes) == len(misfits):
        (expected, *inner), (found, *found_inner) = shapes[0]
        if inner == found_inner and expected != found:
            (module,) = modules
            return f"they have {found} classes and the model {expected} (in {module}): build it with {found}"
    if missing and not extra and all(name.startswith("normalize.") for name in missing):
        return (
            "this network keeps the mean and the standard deviation of its input, and the file does not: build it with "
            "normalize=fixed and the mean and std that it was trained with"
        )
    if misfits and all(error.found_integers for _, error in misfits):
        return "they are integers, as in a quantised network: save the floating-point weights of before"
    turned = [sorted(expected) == sorted(found) and len(found) > 1 for expected, found in shapes]
    if misfits and not missing and not extra and len(turned) == len(misfits) and all(turned):
        return (
            "their axes are in another order, such as that of Flax and TensorFlow, (height, width, in, out): transpose "
            "them to PyTorch's, (out, in, height, width)"
        )
    last = {name.rpartition(".")[0] for name in missing}
    if not extra and len(last) == 1 and last <= {"fc", "linear", "classifier", "head"}:
        return (
            f"the file lacks the last layer, {last.pop()}, as files of networks do that give features: it answers "
            "nothing without one, so save the network with the one that it was trained with"
        )
    if missing and len(missing) == sum(not slot.is_counter for slot in slots.values()):
        return "no name agrees, so either they are of another kind of network, or their names have a prefix to remove"
    if extra and not missing:
        return "they may be of a deeper network of this kind: build the model with that depth"
    if missing and not extra:
        return "they may be of a shallower network of this kind: build the model with that depth"
    return "build the model with the architecture and width of the network that they were saved from"
