"""Adapters that turn networks of other frameworks into `Model`s: two pure functions over plain trees of arrays.

Each adapter keeps everything static, such as structure, activation functions and flags, to itself. The trees that it
returns hold only arrays, so they work under `jit`, `grad`, `vmap`, donation, optax and Orbax. nnx and Equinox are
imported only when their adapter is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from scissorhands_jax.base import Key, Model, ModelState, Params, PyTree
from scissorhands_jax.errors import InputError

if TYPE_CHECKING:
    import equinox as eqx
    from flax import nnx

# The usual names of the argument that says whether a call is for training, and its value in training.
_MODE_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def from_linen(module: nn.Module, example: jax.Array | jax.ShapeDtypeStruct) -> Model:
    """Turns a Flax linen module into a `Model`.

    The parameters are the collection `params`, and the model state is a dict of all other collections that
    `module.init` makes. The mode is passed to the module's `__call__` as `train`, `training`, `is_training`,
    `deterministic` or `use_running_average`, whichever of these it takes. In train mode all collections of the state
    are mutable, and every random stream that the module asks for, such as `dropout`, is derived from `key`.

    Args:
      module: Takes a batch and returns logits of shape (N, num_classes).
      example: A batch, or its shape and dtype; the values are not used.
    """
    taken = inspect.signature(module.__call__).parameters
    modes = {name: value for name, value in _MODE_ARGUMENTS.items() if name in taken}

    def arguments(train: bool) -> dict[str, Any]:
        return {name: value == train for name, value in modes.items()}

    # Under jit XLA drops the forward pass of `module.init`, because its result is not used.
    @jax.jit
    def init(key: Key) -> tuple[Params, ModelState]:
        variables = dict(module.init(key, jnp.zeros(example.shape, example.dtype), **arguments(train=False)))
        return variables.pop("params", {}), variables

    def apply(
        params: Params, model_state: ModelState, x: jax.Array, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, ModelState]:
        variables = {"params": params, **model_state}
        if not train:
            logits: Any = module.apply(variables, x, **arguments(train))
            return logits, model_state
        logits, moved = module.apply(variables, x, rngs=key, mutable=list(model_state), **arguments(train))
        return logits, {name: moved.get(name, collection) for name, collection in model_state.items()}

    return Model(init, apply)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Turns a Flax nnx module into a `Model`.

    The parameters are a nested dict of the arrays of all `nnx.Param` variables by attribute name. The model state holds
    all other variables except the random streams. The mode is set by the module's `train()` and `eval()`, and in train
    mode every random stream starts again from `key`.

    Args:
      make: `(rngs) -> module` builds the module, which takes a batch and returns logits of shape (N, num_classes).

    Raises:
      InputError: `apply` was called in train mode without a key, and the module has random streams.
    """
    from flax import nnx

    def split(module: nnx.Module) -> tuple[Any, dict, dict, dict]:
        graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
        params, streams, rest = (dict(nnx.to_flat_state(nnx.as_pure(state))) for state in states)
        return graph, params, streams, rest

    outline = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graphs = {}
    for train in (True, False):
        outline.train() if train else outline.eval()
        graphs[train], param_outline, stream_outline, rest_outline = split(outline)

    def init(key: Key) -> tuple[Params, ModelState]:
        _, params, _, rest = split(make(nnx.Rngs(key)))
        return _nest(params), _nest(rest)

    def restarted_streams(train: bool, key: Key | None) -> dict:
        if train and key is None and stream_outline:
            raise InputError("this nnx module draws random numbers in train mode and was given no key; pass key=")
        key = jax.random.key(0) if key is None else key  # In evaluation mode nothing is drawn from it.
        streams = {}
        for index, (path, leaf) in enumerate(stream_outline.items()):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            streams[path] = jax.random.fold_in(key, index) if is_key else jnp.zeros(leaf.shape, leaf.dtype)
        return streams

    def apply(
        params: Params, model_state: ModelState, x: jax.Array, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, ModelState]:
        leaves = _pick(params, param_outline) | restarted_streams(train, key) | _pick(model_state, rest_outline)
        module = nnx.merge(graphs[train], nnx.from_flat_state(leaves.items()))
        logits = module(x)
        if not train:
            return logits, model_state
        _, _, _, rest = split(module)
        return logits, _nest({path: rest[path] for path in rest_outline})

    return Model(init, apply)


def from_equinox(make: Callable[[Key], eqx.Module]) -> Model:
    """Turns an Equinox module into a `Model`.

    The parameters are a nested dict of all floating-point arrays by attribute name. The model state has two entries:
    `state` holds the state of Equinox's stateful layers, and `constants` holds all other arrays. The module is mapped
    over the batch, so it is written for one example, like Equinox's own layers; its normalisation layers may use any
    name for the batch axis. It is called as `module(x)`, with `state` and `key=` (one key per example) if its
    `__call__` takes them, and its mode is set by `equinox.nn.inference_mode`.

    Args:
      make: `(key) -> module` builds the module. `equinox.nn.make_with_state` collects its stateful layers.

    Raises:
      InputError: Layers of the module use different names for the batch axis.
    """
    import equinox as eqx

    build = eqx.nn.make_with_state(make)
    outline, state_outline = eqx.filter_eval_shape(build, jax.random.key(0))
    paths, structure = jax.tree.flatten_with_path(outline)
    names = [tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path) for path, _ in paths]
    static = [leaf for _, leaf in paths]
    arrays = {name: leaf for name, leaf in zip(names, static, strict=True) if hasattr(leaf, "dtype")}
    trained = [name for name, leaf in arrays.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    constant = [name for name in arrays if name not in trained]
    _, markers = state_outline.tree_flatten()
    axis_name = _batch_axis(outline)
    taken = inspect.signature(outline.__call__).parameters
    stateful = "state" in taken and (bool(markers) or taken["state"].default is inspect.Parameter.empty)

    def init(key: Key) -> tuple[Params, ModelState]:
        module, state = build(key)
        leaves = dict(zip(names, jax.tree.leaves(module), strict=True))
        values, _ = state.tree_flatten()
        constants = _nest({name: jnp.asarray(leaves[name]) for name in constant})
        model_state = {"state": dict(zip(markers, values, strict=True)), "constants": constants}
        return _nest({name: jnp.asarray(leaves[name]) for name in trained}), model_state

    def apply(
        params: Params, model_state: ModelState, x: jax.Array, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, ModelState]:
        arrays = _pick(params, trained) | _pick(model_state["constants"], constant)
        leaves = [arrays.get(name, leaf) for name, leaf in zip(names, static, strict=True)]
        module = eqx.nn.inference_mode(jax.tree.unflatten(structure, leaves), not train)
        state = eqx.nn.State.tree_unflatten(markers, [model_state["state"][marker] for marker in markers])
        keys = None if key is None or "key" not in taken else jax.random.split(key, x.shape[0])

        def one(example, state, key):
            extra = {} if key is None else {"key": key}
            return module(example, state, **extra) if stateful else (module(example, **extra), state)

        batched = jax.vmap(one, in_axes=(0, None, 0), out_axes=(0, None), axis_name=axis_name)
        logits, state = batched(x, state, keys)
        if not train:
            return logits, model_state
        values, _ = state.tree_flatten()
        return logits, {**model_state, "state": dict(zip(markers, values, strict=True))}

    return Model(init, apply)


def _batch_axis(module: eqx.Module) -> str:
    """Returns the name that all layers of an Equinox module give to the batch axis, or "batch" if none names it."""
    found: set = set()

    def visit(node):
        names = getattr(node, "axis_name", None)
        if names is not None:
            found.update(names if isinstance(names, tuple | list) else (names,))
        return False

    jax.tree.leaves(module, is_leaf=visit)
    if len(found) > 1:
        raise InputError(f"layers name the batch axis {sorted(map(str, found))}; give all of them the same axis_name")
    return found.pop() if found else "batch"


def _nest(leaves: dict[tuple, PyTree]) -> dict:
    """Builds a nested dict from leaves by path. Its keys are strings, as checkpoints and path names require."""
    return traverse_util.unflatten_dict({tuple(map(str, path)): leaf for path, leaf in leaves.items()})


def _pick(tree: dict, paths: Iterable[tuple]) -> dict[tuple, PyTree]:
    """Returns the leaves of a nested dict at the given paths."""
    picked = {}
    for path in paths:
        node = tree
        for part in map(str, path):
            if not isinstance(node, dict) or part not in node:
                raise InputError(f"the tree has no leaf {'/'.join(map(str, path))}; give the tree of this network")
            node = node[part]
        picked[path] = node
    return picked
