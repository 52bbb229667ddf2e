"""Pytrees of parameters: path names, leaf selections, dot products.

Nothing here concatenates leaves: trees may be sharded, and hundreds of millions of weights long.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from scissorhands_jax.base import Params, PyTree, Selection
from scissorhands_jax.errors import InputError

_logger = logging.getLogger(__name__)

Where = str | Callable[[str, jax.Array], bool] | None
"""Which leaves: a regular expression over their names, a predicate of name and leaf, or all; see `select`."""


def path_name(path: tuple) -> str:
    """A key path of `jax.tree_util` as text: `layer1/0/conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_names(tree: PyTree) -> list[str]:
    """The names of all leaves, in tree order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def select(params: Params, where: Where) -> Selection:
    """Chooses whole leaves: a pytree of Python bools, shaped like `params`.

    Args:
      params: any pytree of arrays.
      where: `None` for every leaf; a predicate `(name, leaf) -> bool`; or a regular expression over names such as
        `layer3/0/conv1/kernel`, which must match the whole name or a leading part of it that ends at a slash
        (`layer3|fc` takes all that is in `layer3` and `fc`, but nothing in `layer30`).

    Raises:
      InputError: the expression is not valid, or nothing matches (the nearest names are shown).
    """
    if where is None:
        return jax.tree.map(lambda _: True, params)
    if callable(where):
        predicate = where
    else:
        try:
            pattern = re.compile(f"(?:{where})(?:/.*)?")
        except re.error as error:
            raise InputError(f"the layer pattern {where!r} is not a regular expression: {error}") from error

        def predicate(name, leaf):
            del leaf
            return pattern.fullmatch(name) is not None

    selection = jax.tree_util.tree_map_with_path(lambda path, leaf: bool(predicate(path_name(path), leaf)), params)
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
    """Names that look like the pattern: by whole name, by containing a word of it, else the first ones."""
    words = [word for word in re.findall(r"\w+", where) if len(word) > 1]
    near = difflib.get_close_matches(where, names, n=3, cutoff=0.4)
    for word in words:
        near += [name for name in names if word in name]
        parts = sorted({part for name in names for part in name.split("/")})
        for part in difflib.get_close_matches(word, parts, n=2, cutoff=0.6):
            near += [name for name in names if part in name.split("/")]
    return list(dict.fromkeys(near))[:5] or names[:5]


def count_weights(tree: PyTree, selection: Selection | None = None) -> int:
    """How many numbers a tree holds, in the selected leaves."""
    if selection is None:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))
    return sum(leaf.size for leaf, chosen in zip_leaves(tree, selection) if chosen)


def nbytes(tree: PyTree) -> int:
    """How many bytes the arrays of a tree take, or would take where they are shapes only."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def zip_leaves(tree: PyTree, *others: PyTree) -> list[tuple]:
    """The leaves of a tree, each with what the others have in its place, which may be trees themselves."""
    leaves = jax.tree.leaves(tree)
    structure: Any = jax.tree.structure(tree)  # JAX's stubs lack the methods of PyTreeDef.
    return list(zip(leaves, *(structure.flatten_up_to(other) for other in others), strict=True))


def _contract(a: jax.Array, b: jax.Array, kept_a: int = 0, kept_b: int = 0) -> jax.Array:
    """The sum of products over all but the first axes of two arrays, in at least float32.

    Nothing is reshaped: a flat view of an array that is sharded along an inner axis would have to be gathered.
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
        # On a mesh with explicit axes JAX asks where the result should lie.
        out_sharding=NamedSharding(mesh, PartitionSpec()) if mesh.explicit_axes else None,
    )


def vdot(a: PyTree, b: PyTree) -> jax.Array:
    """The dot product of two trees, leaf by leaf, summed in at least float32. shape=()"""
    return sum((_contract(x, y) for x, y in zip_leaves(a, b)), start=jnp.zeros((), jnp.float32))


def stack_vdot(stack: PyTree, tree: PyTree) -> jax.Array:
    """Dot products of each of K stacked trees (leaves of shape (K, ...)) with one tree. shape=(K,)"""
    return sum(
        (_contract(rows, leaf, kept_a=1) for rows, leaf in zip_leaves(stack, tree)), start=jnp.zeros((), jnp.float32)
    )


def gram(stack: PyTree) -> jax.Array:
    """The Gram matrix of K stacked trees (leaves of shape (K, ...)). shape=(K, K)"""
    rows = jax.tree.leaves(stack)
    return sum((_contract(row, row, kept_a=1, kept_b=1) for row in rows), start=jnp.zeros((), jnp.float32))


def norm(tree: PyTree) -> jax.Array:
    """The Euclidean norm of a tree. shape=()"""
    return jnp.sqrt(vdot(tree, tree))


def where(mask: PyTree, a: PyTree, b: PyTree) -> PyTree:
    """`a` where the mask is True, else `b`, weight by weight."""
    return jax.tree.map(jnp.where, mask, a, b)


def copy(tree: PyTree) -> PyTree:
    """A copy of every array, so that donating one tree leaves the other alive.

    A tree that nobody else holds is let go of array by array, so that it is never there twice.
    """
    leaves, structure = jax.tree.flatten(tree)
    del tree
    for position in range(len(leaves)):
        leaves[position] = jnp.copy(leaves[position])
    return jax.tree.unflatten(structure, leaves)


def has_image_kernels(params: PyTree) -> bool:
    """Whether any array has four axes or more, as the kernels of convolutions over images have.

    XLA computes such convolutions several times more slowly in a loop (on CPU) or mapped over kernels (everywhere), so
    code that has a choice asks this first. Only shapes are looked at.
    """
    return any(jnp.ndim(leaf) >= 4 for leaf in jax.tree.leaves(params))
