"""Pytrees of parameters: path names, leaf selections, dot products.

Nothing here concatenates leaves: trees may be sharded, and hundreds of millions of weights long.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from scissorhands_jax.base import Params, PyTree, Selection
from scissorhands_jax.errors import InputError

logger = logging.getLogger(__name__)


def path_name(path: tuple) -> str:
    """A key path of `jax.tree_util` as text: `layer1/0/conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_names(tree: PyTree) -> list[str]:
    """The names of all leaves, in tree order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def select(params: Params, where: str | Callable[[str, jax.Array], bool] | None) -> Selection:
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
    logger.info("%r selects %d of %d parameter arrays", where, hits, len(names))
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


def size(tree: PyTree, selection: Selection | None = None) -> int:
    """How many numbers a tree holds, in the selected leaves."""
    if selection is None:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))
    return sum(leaf.size for leaf, chosen in _zip(tree, selection) if chosen)


def _zip(tree: PyTree, other: PyTree) -> list[tuple]:
    leaves, structure = jax.tree.flatten(tree)
    return list(zip(leaves, structure.flatten_up_to(other), strict=True))


def _accumulator(*leaves: jax.Array) -> jnp.dtype:
    return jnp.promote_types(jnp.result_type(*leaves), jnp.float32)


def vdot(a: PyTree, b: PyTree) -> jax.Array:
    """The dot product of two trees, leaf by leaf, summed in at least float32. shape=()"""
    return sum(
        (
            jnp.vdot(x, y, preferred_element_type=_accumulator(x, y), precision=jax.lax.Precision.HIGHEST)
            for x, y in _zip(a, b)
        ),
        start=jnp.zeros((), jnp.float32),
    )


def stack_vdot(stack: PyTree, tree: PyTree) -> jax.Array:
    """Dot products of each of K stacked trees (leaves of shape (K, ...)) with one tree. shape=(K,)"""
    return sum(
        jnp.einsum(
            "kn,n->k",
            rows.reshape(rows.shape[0], -1),
            leaf.reshape(-1),
            preferred_element_type=_accumulator(rows, leaf),
            precision=jax.lax.Precision.HIGHEST,
        )
        for rows, leaf in _zip(stack, tree)
    )


def gram(stack: PyTree) -> jax.Array:
    """The Gram matrix of K stacked trees (leaves of shape (K, ...)). shape=(K, K)"""
    return sum(
        jnp.einsum(
            "kn,ln->kl",
            rows.reshape(rows.shape[0], -1),
            rows.reshape(rows.shape[0], -1),
            preferred_element_type=_accumulator(rows),
            precision=jax.lax.Precision.HIGHEST,
        )
        for rows in jax.tree.leaves(stack)
    )


def norm(tree: PyTree) -> jax.Array:
    """The Euclidean norm of a tree. shape=()"""
    return jnp.sqrt(vdot(tree, tree))


def where(mask: PyTree, a: PyTree, b: PyTree) -> PyTree:
    """`a` where the mask is True, else `b`, weight by weight."""
    return jax.tree.map(jnp.where, mask, a, b)


def copy(tree: PyTree) -> PyTree:
    """A copy of every array, so that donating one tree leaves the other alive."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf), tree)
