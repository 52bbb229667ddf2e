"""Pytrees of parameters: names of leaves, selections of leaves, dot products.

Nothing here concatenates or flattens leaves, because trees may be sharded and hold hundreds of millions of weights.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from scissorhands_jax.base import Mask, Params, PyTree, Selection
from scissorhands_jax.errors import InputError, check_whole, listed

_logger = logging.getLogger(__name__)

Where = str | Callable[[str, jax.Array], bool] | None
"""How to choose leaves: a regular expression over their names, a predicate `(name, leaf) -> bool`, or `None` for all.

See `select`.
"""

Stacked = Where | Mapping[str, int]
"""Which arrays hold several layers along their first axes; see `stacked_axes`.

A pattern or predicate as of `select` names arrays with one such axis; a mapping gives the number of such axes for each
pattern; `None` says nothing.
"""

_BOXES = ("Variable", "VariableState", "AxisMetadata")  # of which nnx.Param and nn.Partitioned are kinds
_ARRAYS = (np.ndarray, np.generic, jax.Array)
_NOT_FINITE = {"nan": jnp.isnan, "inf": jnp.isinf}
_FURTHER_BIAS = re.compile(r"bias_(?!kernel|weight)\w*|\w+_bias")  # such as `bias_ih`, `bias_n` and `in_proj_bias`


def path_name(path: tuple) -> str:
    """Writes a key path of `jax.tree_util` as text, such as `layer1/0/conv1/kernel`.

    The name of a leaf is that of `leaf_names`, which differs where Flax has put it into a box.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_names(tree: PyTree) -> list[str]:
    """Returns the names of all leaves, in tree order.

    A box that Flax puts an array into, such as `nnx.Param` in the state of a module or `nn.Partitioned` and
    `nn.LogicallyPartitioned` in the parameters of one, adds nothing to the name: it stays `layer/bias`, where the key
    path ends in the box's field `value`. A key or field `value` of anything else is part of the name.
    """
    return [name for name, _ in named_leaves(tree)]


def named_leaves(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Returns all leaves with their names (`leaf_names`), in tree order.

    Args:
      tree: Any pytree.
      is_leaf: Says of what else, besides the tree's leaves, that it is one, as for `jax.tree.leaves`.
    """

    def stops(node: Any) -> bool:
        return _is_box(node) or (is_leaf is not None and is_leaf(node))

    def walk(node: Any, above: tuple) -> Iterator[tuple[tuple, Any]]:
        for below, found in jax.tree_util.tree_leaves_with_path(node, is_leaf=stops):
            path = (*above, *below)
            if not _is_box(found) or (is_leaf is not None and is_leaf(found)):
                yield path, found
                continue
            contents = jax.tree_util.tree_leaves_with_path(found, is_leaf=lambda part, box=found: part is not box)
            for key, part in contents:
                yield from walk(part, path if len(contents) == 1 else (*path, *key))

    return [(path_name(path), leaf) for path, leaf in walk(tree, ())]


def map_named(function: Callable[..., Any], tree: PyTree, *others: PyTree) -> PyTree:
    """Maps `function(name, leaf, *others)` over a tree, with the names of `leaf_names`.

    Args:
      function: What is computed of each leaf.
      tree: Any pytree.
      others: Trees with the structure of the first one, or with subtrees in the place of its leaves.
    """
    rows = zip(leaf_names(tree), zip_leaves(tree, *others), strict=True)
    return jax.tree.unflatten(jax.tree.structure(tree), [function(name, *row) for name, row in rows])


def _is_box(node: Any) -> bool:
    """Says whether this is one of Flax's boxes around an array. Flax need not be imported for that."""
    bases = type(node).__mro__
    return any(base.__name__ in _BOXES and base.__module__.partition(".")[0] == "flax" for base in bases)


def select(params: Params, where: Where) -> Selection:
    """Chooses whole leaves of a tree.

    Args:
      params: Any pytree of arrays.
      where: `None` for every leaf; a predicate `(name, leaf) -> bool`; or a regular expression over names such as
        `layer3/0/conv1/kernel`, which must match the whole name or a leading part of it that ends at a slash.
        `layer3|fc` chooses everything in `layer3` and `fc`, and nothing in `layer30`.

    Returns:
      A pytree of Python bools with the structure of `params`; True means chosen.

    Raises:
      InputError: The expression is not valid, or it matches no leaf. The message shows the nearest names.
    """
    if where is None:
        return jax.tree.map(lambda _: True, params)
    if callable(where):
        predicate = where
    else:
        try:
            alone = re.compile(where)  # with its flags, such as (?i), which may stand at the beginning only
            stem = re.sub(r"^(\(\?[aiLmsux]+\))+", "", where)
            pattern = re.compile(f"(?:{stem})(?:/.*)?", alone.flags)
        except re.error as error:
            raise InputError(f"the layer pattern {where!r} is not a regular expression: {error}") from error

        def predicate(name, leaf):
            del leaf
            return pattern.fullmatch(name) is not None

    selection = map_named(lambda name, leaf: bool(predicate(name, leaf)), params)
    hits = sum(jax.tree.leaves(selection))
    names = leaf_names(params)
    if hits == 0:
        shown = _near(where, names) if isinstance(where, str) else names[:5]
        raise InputError(
            f"the layer pattern {where!r} matches none of the {len(names)} parameter arrays; "
            f"near matches: {', '.join(shown)}"
        )
    _logger.info("%r selects %d of %d parameter arrays", where, hits, len(names))
    return selection


def _near(where: str, names: list[str]) -> list[str]:
    """Returns up to five names that resemble the pattern or contain one of its words, or else the first five."""
    words = [word for word in re.findall(r"\w+", where) if len(word) > 1]
    near = difflib.get_close_matches(where, names, n=3, cutoff=0.4)
    for word in words:
        near += [name for name in names if word in name]
        parts = sorted({part for name in names for part in name.split("/")})
        for part in difflib.get_close_matches(word, parts, n=2, cutoff=0.6):
            near += [name for name in names if part in name.split("/")]
    return list(dict.fromkeys(near))[:5] or names[:5]


def is_bias(name: str, shape: tuple[int, ...]) -> bool:
    """Says whether an array holds the biases of a layer.

    That is what is called `bias`, whatever its shape: Equinox's convolutions have (outputs, 1, 1), Flax's attention
    (heads, features), stacked layers (layers, outputs). A name of several words of which `bias` is the first or last,
    such as `bias_ih`, `bias_n` or `in_proj_bias`, holds biases if at most one axis is longer than 1: a table such as
    `relative_position_bias` holds none, and neither does anything called `bias_kernel` or `bias_weight`.

    Args:
      name: The name of the array in the tree, such as `layer1/0/conv1/bias`, of which the last part counts.
      shape: The shape of the array.
    """
    last = name.rpartition("/")[2]
    return last == "bias" or (_FURTHER_BIAS.fullmatch(last) is not None and sum(size != 1 for size in shape) < 2)


def is_vector(name: str, shape: tuple[int, ...]) -> bool:
    """Says whether an array is no kernel: it has fewer than two axes, holds biases (`is_bias`), or is called `scale`.

    The scales of a LayerNorm of Equinox or PyTorch over several axes are called `weight` and count as a kernel.

    Args:
      name, shape: As for `is_bias`.
    """
    return len(shape) < 2 or is_bias(name, shape) or name.rpartition("/")[2] == "scale"


def stacked_axes(params: PyTree, stacked: Stacked = None) -> PyTree:
    """Counts the first axes of each array along which layers are stacked, as scanned and mapped modules stack theirs.

    Every rule about the axes of a layer (`is_vector`, `reinit.fan_in`) holds for what is left without them. By its name
    and shape alone a stack of dense layers, (layers, inputs, outputs), is a convolution, (width, inputs, outputs). The
    bias next to it tells: (layers, outputs) in the one case, (outputs,) in the other. So does a `scale` of two axes,
    where there are kernels around it. What they tell then holds for the largest module around them of which all arrays
    begin with the same axes. What nothing tells of counts as not stacked, so that `stacked` has to say it.

    Args:
      params: A pytree of arrays; only names and shapes are used.
      stacked: A pattern or predicate for `select`, of the arrays whose first axis is one of layers; or a mapping from
        patterns to the numbers of such axes, of which the last that matches counts. What it does not select is as the
        arrays tell.

    Returns:
      A pytree of Python integers with the structure of `params`.

    Raises:
      InputError: A pattern matches nothing, a number is no whole one of at least 0, or an array has fewer axes.
    """
    names, shapes = leaf_names(params), [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    counts = _told_by_others(names, shapes)
    rules = stacked if isinstance(stacked, Mapping) else {} if stacked is None else {stacked: 1}
    for where, axes in rules.items():
        check_whole("the number of stacked axes", axes, 0)
        for position, chosen in enumerate(jax.tree.leaves(select(params, where))):
            if chosen and len(shapes[position]) < axes:
                raise InputError(
                    f"stacked says that {names[position] or 'the array'} has {axes} axes of layers, and its shape is "
                    f"{shapes[position]}; name arrays with more axes"
                )
            counts[position] = axes if chosen else counts[position]
    return jax.tree.unflatten(jax.tree.structure(params), counts)


def _told_by_others(names: list[str], shapes: list[tuple[int, ...]]) -> list[int]:
    """The numbers of stacked axes that follow from the shapes of arrays next to each other."""
    parts = [name.rpartition("/") for name in names]
    biases = {module: shape for (module, _, last), shape in zip(parts, shapes, strict=True) if last == "bias"}
    counts = [0] * len(names)

    def begins(position: int, lead: tuple[int, ...]) -> bool:
        last, shape = parts[position][2], shapes[position]
        layer = 2 if last in ("kernel", "embedding") else int(last in ("bias", "scale") or last.startswith("weight"))
        return shape[: len(lead)] == lead and len(shape) - len(lead) >= layer

    def mark(module: str, lead: tuple[int, ...]) -> None:
        found: list[int] = []
        while True:
            inside = [i for i, name in enumerate(names) if not module or name.startswith(f"{module}/")]
            if not all(begins(i, lead) for i in inside):
                break
            found = inside
            if not module:
                break
            module = module.rpartition("/")[0]
        if any(len(shapes[i]) - len(lead) > 1 and not is_vector(names[i], shapes[i]) for i in found):
            for i in found:
                counts[i] = max(counts[i], len(lead))

    for position, ((module, _, last), shape) in enumerate(zip(parts, shapes, strict=True)):
        lead = shape[:-1] if last == "scale" else _lead(names[position], shape, biases.get(module))
        if len(lead) > counts[position]:
            mark(module, lead)
    return counts


def _lead(name: str, shape: tuple[int, ...], bias: tuple[int, ...] | None) -> tuple[int, ...]:
    """The lengths of the stacked axes of a layer's weights, by the shape of its bias; () where it tells of none."""
    *_, layer, last = ("", "", *name.split("/"))
    if bias is None:
        return ()
    if last.startswith("weight"):  # Outputs come first, and the biases of Equinox's convolutions have further axes.
        for axes in range(len(shape) - 1):
            if bias[: axes + 1] == shape[: axes + 1] and set(bias[axes + 1 :]) <= {1}:
                return shape[:axes]
    elif last == "kernel":  # In Flax's attention, heads and features are outputs.
        for outputs in (2, 1) if layer in ("query", "key", "value") else (1,):
            axes = len(bias) - outputs
            if 0 <= axes < len(shape) - outputs and bias == shape[:axes] + shape[-outputs:]:
                return shape[:axes]
    return ()


def is_typed(leaf: Any) -> bool:
    """Says whether an array has a type of NumPy or JAX, as those of other libraries do not."""
    try:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            np.dtype(leaf.dtype)
    except (TypeError, AttributeError):
        return False
    return True


def unknown_to_jax(leaf: Any) -> tuple[str, str] | None:
    """What an array of numbers is that NumPy computes with and JAX does not, and what to do about it.

    Args:
      leaf: Anything.

    Returns:
      What it is called after "is", and the advice; None if it is nothing of the kind, as every array of JAX.
    """
    if isinstance(leaf, np.ma.MaskedArray):
        advice = "leave out what is masked, or put numbers in its place, as with .filled(0)"
        return f"a masked array of {leaf.dtype}", advice
    if not isinstance(leaf, np.ndarray | np.generic):
        return None
    if issubclass(leaf.dtype.type, np.void):  # which bfloat16 is not, although its kind is V as well
        names = leaf.dtype.names
        found = f"an array of records with the fields {listed(names)}" if names else f"an array of {leaf.dtype}"
        return found, "give plain arrays of numbers, one for each field"
    if leaf.dtype.type in (np.longdouble, np.clongdouble) and leaf.dtype.name not in ("float64", "complex128"):
        name = "float32" if leaf.dtype.kind == "f" else "complex64"
        return f"an array of {leaf.dtype}, which JAX does not have", f"convert it, as with .astype({name!r})"
    if not leaf.dtype.isnative:
        found = f"an array of {leaf.dtype.name} whose bytes are in another order than this machine's ({leaf.dtype.str})"
        return found, f"convert it, as with .astype({leaf.dtype.name!r})"
    return None


def check_arrays(tree: PyTree, what: str) -> None:
    """Refuses a tree with leaves that are neither arrays nor numbers, such as a module with functions in it.

    Args:
      tree: Any pytree.
      what: What it is, for the message.

    Raises:
      InputError: A leaf is something else, or an array that JAX does not compute with (`unknown_to_jax`); the message
        names it.
    """
    for name, leaf in named_leaves(tree):
        if (unknown := unknown_to_jax(leaf)) is not None and leaf.dtype.kind not in "USOMm":
            found, advice = unknown
            raise InputError(f"{name or 'the root'!r} of {what} is {found}; {advice}")
        if isinstance(leaf, int | float | complex) or _is_numeric(leaf):
            continue
        kind = f"n array of {leaf.dtype}" if isinstance(leaf, _ARRAYS) else f" {type(leaf).__name__}"
        raise InputError(
            f"{what} have a{kind} at {name or 'their root'}, where only arrays of numbers, of NumPy or JAX, "
            "can be; give a pytree of such arrays, as from_linen, from_nnx and from_equinox make it of a live module"
        )


def _is_numeric(leaf: Any) -> bool:
    """Says whether this is an array of NumPy or JAX of numbers, bools or keys."""
    kinds = (np.number, np.bool_, jax.dtypes.extended)
    return isinstance(leaf, _ARRAYS) and any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds)


def check_trained(params: Params, what: str) -> None:
    """Refuses parameters that no method can train: leaves that are no arrays of real floating-point numbers.

    Args:
      params: Any pytree. Floats of Python count as arrays (`as_arrays`).
      what: What it is, for the message.

    Raises:
      InputError: A leaf is something else; the message names it.
    """
    check_arrays(params, what)
    for name, leaf in named_leaves(params):
        if not jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else type(leaf), jnp.floating):
            found = f"an array of {leaf.dtype}" if hasattr(leaf, "dtype") else f"the number {leaf!r}"
            raise InputError(
                f"{what} have {found} at {name or 'their root'}, and only real floating-point numbers are "
                "trained; put it into the model state, or close over it"
            )


def as_arrays(tree: PyTree) -> PyTree:
    """The same tree with an array in place of each of Python's numbers, of the type that JAX computes with it in."""
    return jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf, jnp.result_type(leaf)), tree)


def count_weights(tree: PyTree, selection: Selection | None = None) -> int:
    """Counts the numbers in a tree, or in its selected leaves.

    Args:
      tree: A pytree of arrays, numbers of Python or `jax.ShapeDtypeStruct`s.
      selection: Which leaves count, as `select` returns it. By default all do.

    Raises:
      InputError: The selection is of another form.
    """
    if selection is None:
        return sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
    check_selection(selection, tree)
    return sum(np.size(leaf) for leaf, chosen in zip_leaves(tree, selection) if chosen)


def check_selection(selection: Selection, tree: PyTree) -> None:
    """Refuses a selection that does not say of every array as a whole whether it is chosen.

    Args:
      selection: The selection: a bool of Python, or a known one of shape (), for each array.
      tree: The arrays that it is for.

    Raises:
      InputError: The selection is another tree, or something else stands in it; the message names the array.
    """
    advice = "give one bool for each whole array, as trees.select makes them of a pattern"
    structure: Any = jax.tree.structure(tree)
    try:
        chosen = structure.flatten_up_to(selection)
    except ValueError as error:
        raise InputError(f"the selection is another tree than that of the arrays: {error}; {advice}") from error
    for name, found in zip(leaf_names(tree), chosen, strict=True):
        known = isinstance(found, _ARRAYS) and not isinstance(found, jax.core.Tracer)
        if isinstance(found, bool) or (known and found.shape == () and found.dtype == bool):
            continue
        kind = f"a {type(found).__name__}"
        if isinstance(found, _ARRAYS):
            kind = f"{'an' if known else 'a traced'} array of {found.dtype} and shape {found.shape}"
        raise InputError(f"the selection has {kind} at {name or 'its root'}; {advice}")


def nbytes(tree: PyTree) -> int:
    """Counts the bytes of the arrays in a tree; for `jax.ShapeDtypeStruct`s, the bytes that such arrays would take."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def zip_leaves(tree: PyTree, *others: PyTree) -> list[tuple]:
    """Pairs each leaf of a tree with what the other trees have in its place, which may be a whole subtree."""
    leaves = jax.tree.leaves(tree)
    structure: Any = jax.tree.structure(tree)  # JAX's stubs lack the methods of PyTreeDef.
    return list(zip(leaves, *(structure.flatten_up_to(other) for other in others), strict=True))


def _contract(a: jax.Array, b: jax.Array, kept_a: int = 0, kept_b: int = 0) -> jax.Array:
    """Sums products over all axes of two arrays except the first `kept_a` and `kept_b`, in at least float32.

    Nothing is reshaped, because a flat view of an array that is sharded along an inner axis would have to be gathered.
    The precision is the highest, because accelerators otherwise multiply float32 in bfloat16 or TensorFloat-32: three
    digits, too few to say on which side of zero a dot product of nearly orthogonal gradients lies.
    """
    dtype = jnp.result_type(a, b)
    contracted = tuple(range(kept_a, a.ndim)), tuple(range(kept_b, b.ndim))
    mesh = jax.typeof(a).sharding.mesh
    return jax.lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (contracted, ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        # On a mesh with explicit axes JAX requires the sharding of the result.
        out_sharding=NamedSharding(mesh, PartitionSpec()) if mesh.explicit_axes else None,
    )


def vdot(a: PyTree, b: PyTree) -> jax.Array:
    """Computes the dot product of two trees, leaf by leaf, in at least float32. The result has shape ().

    Inside `jax.shard_map` it is that of the shards at hand, which is for the caller to sum over the mesh axes.
    """
    return sum((_contract(x, y) for x, y in zip_leaves(a, b)), start=jnp.zeros((), jnp.float32))


def stack_vdot(stack: PyTree, tree: PyTree) -> jax.Array:
    """Computes the dot products of K stacked trees, with leaves of shape (K, ...), with one tree.

    The result has shape (K,) and at least the precision of float32.
    """
    return sum(
        (_contract(rows, leaf, kept_a=1) for rows, leaf in zip_leaves(stack, tree)), start=jnp.zeros((), jnp.float32)
    )


def gram(stack: PyTree) -> jax.Array:
    """Computes the Gram matrix, of shape (K, K), of K stacked trees with leaves of shape (K, ...)."""
    rows = jax.tree.leaves(stack)
    return sum((_contract(row, row, kept_a=1, kept_b=1) for row in rows), start=jnp.zeros((), jnp.float32))


def is_placeholder(node: object) -> bool:
    """Whether this stands for a leaf that `optax.masked` and the like hand to another transformation."""
    return isinstance(node, optax.MaskedNode)


def norm(tree: PyTree) -> jax.Array:
    """Computes the Euclidean norm of a tree. The result has shape (); inside `jax.shard_map` see `vdot`."""
    return jnp.sqrt(vdot(tree, tree))


def not_finite(tree: PyTree, known: Mapping[tuple[str, str], np.ndarray] | None = None) -> set[tuple[str, str]]:
    """Finds the arrays with numbers that are not finite. Only flags are copied to the host.

    Args:
      tree: A pytree of arrays, of which those of other than floating-point numbers count as finite, and so do those
        that jit, vmap or `shard_map` trace, whose numbers cannot be seen.
      known: The entries that do not count, as `entries_not_finite` returns them for a tree of the same shapes. By
        default all count.

    Returns:
      Pairs of the name of an array and of what is in it, "nan" or "inf".
    """

    def masks(name: str, leaf: Any) -> dict[str, np.ndarray | None]:
        found = {kind: (known or {}).get((name, kind)) for kind in _NOT_FINITE}
        return {
            kind: mask if mask is not None and np.shape(mask) == np.shape(leaf) else None
            for kind, mask in found.items()
        }

    seen = [(name, leaf) for name, leaf in named_leaves(tree) if not isinstance(leaf, jax.core.Tracer)]
    names, leaves = [name for name, _ in seen], [leaf for _, leaf in seen]
    with jax.ensure_compile_time_eval():  # Some arrays may be traced where others are not.
        flags = jax.device_get(_not_finite(leaves, [*map(masks, names, leaves)]))
    return {(name, kind) for name, found in zip(names, flags, strict=True) for kind, flag in found.items() if flag}


@jax.jit
def _not_finite(leaves: list[jax.Array], known: list[dict[str, jax.Array | None]]) -> list[dict[str, jax.Array]]:
    def flags(leaf: jax.Array, masks: dict[str, jax.Array | None]) -> dict[str, jax.Array]:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return {}
        found = {kind: find(leaf) for kind, find in _NOT_FINITE.items()}
        return {kind: (at if (mask := masks[kind]) is None else at & ~mask).any() for kind, at in found.items()}

    return [flags(*pair) for pair in zip(leaves, known, strict=True)]


def entries_not_finite(tree: PyTree, found: Iterable[tuple[str, str]]) -> dict[tuple[str, str], np.ndarray]:
    """Says which entries of some arrays are not finite, in bools on the host; with many processes all must call this.

    Args:
      tree: The pytree that the arrays are in.
      found: Which arrays, and what is looked for in them, as `not_finite` returns it.
    """
    leaves = dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
    # In one order everywhere, because an array that is divided over processes is put together by all of them.
    return {(name, kind): on_host(_NOT_FINITE[kind](leaves[name])) for name, kind in sorted(found)}


def where(mask: Mask, a: PyTree, b: PyTree) -> PyTree:
    """Takes each weight from `a` where the mask is True, and from `b` elsewhere.

    Args:
      mask: A pytree of bools with the structure and shapes of `a`, where a single bool may stand for a whole array.
      a, b: Pytrees of arrays, of the same structure and shapes.

    Raises:
      InputError: The mask or `b` has another structure or other shapes than `a`.
    """
    check_mask(mask, a)
    _check_shapes(b, a, "the other tree", "give two trees of the same shapes")
    return jax.tree.map(jnp.where, mask, a, b)


def check_mask(mask: Mask, tree: PyTree) -> None:
    """Refuses a mask that does not say of every weight by itself whether it is marked. Only shapes are read.

    A mask of another shape would be broadcast: one of shape (3,) marks whole columns of weights of shape (3, 3), and
    weights of shape (3,) come out of one of shape (2, 3) in that shape.

    Args:
      mask: The mask: an array of bools for each array, or a single bool, of Python or of shape (), for all of it.
      tree: The arrays that it is for. What `optax.masked` and the like put in the place of one is passed over.

    Raises:
      InputError: The mask is another tree, or an array of it has another shape; the message names the array.
    """
    advice = "give one bool for each weight, or a single one for all of an array"
    _check_shapes(mask, tree, "the mask", advice, single=True)


def _check_shapes(other: PyTree, tree: PyTree, what: str, advice: str, *, single: bool = False) -> None:
    """Refuses a tree of another structure or other shapes than a first one. With `single`, it may have shapes ()."""
    leaves = named_leaves(tree, is_leaf=is_placeholder)
    structure: Any = jax.tree.structure(tree, is_leaf=is_placeholder)
    try:
        others = structure.flatten_up_to(other)
    except ValueError as error:
        raise InputError(f"{what} is another tree than that of the arrays: {error}; {advice}") from error
    for (name, leaf), found in zip(leaves, others, strict=True):
        expected = jnp.shape(leaf) if not is_placeholder(leaf) else None
        shape = () if isinstance(found, bool | int | float) else getattr(found, "shape", None)
        if expected is None or shape == expected or (single and shape == ()):
            continue
        kind = f"a {type(found).__name__}" if shape is None else f"shape {shape}"
        raise InputError(f"{what} has {kind} at {name or 'its root'} and needs shape {expected}; {advice}")


def copy(tree: PyTree) -> PyTree:
    """Copies every array of a tree, so that donating one tree leaves the other alive.

    Each array is released once it is copied, so that memory never holds two whole trees if the caller keeps no
    reference to the original.
    """
    leaves, structure = jax.tree.flatten(tree)
    del tree
    for position in range(len(leaves)):
        leaves[position] = jnp.copy(leaves[position])
    return jax.tree.unflatten(structure, leaves)


def on_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """Returns a whole array on the host.

    Where the array is divided over processes, all of them must call this.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def manual_axes() -> tuple[str, ...]:
    """Returns the mesh axes over which the code that is being traced runs by hand: those of `jax.shard_map`.

    There, an array may be one device's shard of a larger one. Elsewhere the result is empty.
    """
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def check_whole_arrays(what: str, advice: str) -> None:
    """Refuses to compute inside `jax.shard_map` what needs whole arrays.

    Args:
      what: What is computed of whole arrays, a clause for the message.
      advice: What to do instead, for the message.

    Raises:
      InputError: It is called inside `shard_map`.
    """
    if manual := manual_axes():
        axes = ", ".join(map(repr, manual))
        raise InputError(f"{what}, and inside shard_map over {axes} only a shard is at hand; {advice}")


def varying_axes(array: jax.Array) -> frozenset[str]:
    """Returns the manual mesh axes along which an array may differ from device to device.

    With `check_vma=False`, `jax.shard_map` does not keep track of them, and the result is empty.
    """
    kind = jax.typeof(array)
    tracked = getattr(kind, "manual_axis_type", None)  # `vma` was the name before jax 0.10
    return getattr(kind, "vma", frozenset()) if tracked is None else tracked.varying


def has_image_kernels(params: PyTree, stacked: Stacked = None) -> bool:
    """Says whether any array has four axes or more, as the kernels of convolutions over images have.

    Axes along which layers are stacked do not count. XLA computes such convolutions several times more slowly inside a
    loop (on CPU) or mapped over kernels (on any device), so code that can avoid both asks this first. Only names and
    shapes matter.

    Args:
      params: A pytree of arrays.
      stacked: Which of them hold several layers, as for `stacked_axes`.
    """
    axes = stacked_axes(params, stacked)
    return any(jnp.ndim(leaf) - count >= 4 for leaf, count in zip_leaves(params, axes))
