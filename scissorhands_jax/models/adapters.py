"""Adapters that turn networks of other frameworks into `Model`s: two pure functions over plain trees of arrays.

Each takes either what makes a network, or a live, trained one, whose weights it then returns as well, together with the
way back.

Each adapter keeps everything static, such as structure, activation functions and flags, to itself. The trees that it
returns hold only arrays, so they work under `jit`, `grad`, `vmap`, donation, optax and Orbax. nnx and Equinox are
imported only when their adapter is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, overload

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


class TrainedModel(NamedTuple):
    """A network that was given as a live module, with its weights, and the way back.

    Attributes:
      model: The network as pure functions. Its `init` raises InputError where nobody said how to make a fresh network.
      params: The weights of the module, a nested dict of arrays.
      model_state: Its other arrays, such as the statistics of BatchNorm.
      restore: `(params, model_state) -> module` puts weights back. For linen it returns the variables; nnx instances
        are updated in place and returned; for Equinox it returns a new module, and `(module, state)` if layers have
        state.
    """

    model: Model
    params: Params
    model_state: ModelState
    restore: Callable[[Params, ModelState], Any]


Example = jax.Array | jax.ShapeDtypeStruct
"""A batch, or its shape and dtype."""


@overload
def from_linen(module: nn.Module, example: Example) -> Model: ...
@overload
def from_linen(module: nn.Module, example: Mapping[str, Example]) -> Model: ...  # type: ignore[overload-overlap]
@overload
def from_linen(module: nn.Module, example: Mapping[str, Any]) -> TrainedModel: ...
def from_linen(module: nn.Module, example: Example | Mapping[str, Any]) -> Model | TrainedModel:
    """Turns a Flax linen module into a `Model`, or together with its variables into a `TrainedModel`.

    The parameters are the collection `params`, and the model state is a dict of all other collections. The mode is
    passed to the module's `__call__` as `train`, `training`, `is_training`, `deterministic` or `use_running_average`,
    whichever of these it takes. In train mode all collections of the state are mutable, and every random stream that
    the module asks for, such as `dropout`, is derived from `key`.

    Args:
      module: Takes a batch and returns logits of shape (N, num_classes), or what its task asks for.
      example: A batch, or its shape and dtype, or a dict of these where the module takes one; the values are not used.
        Or the variables of a trained network, as `module.init` returns them; the result then is a `TrainedModel`.

    Raises:
      InputError: Variables were given without the collection `params`.
    """
    taken = inspect.signature(module.__call__).parameters
    modes = {name: value for name, value in _MODE_ARGUMENTS.items() if name in taken}

    def arguments(train: bool) -> dict[str, Any]:
        return {name: value == train for name, value in modes.items()}

    def apply(
        params: Params, model_state: ModelState, x: jax.Array, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, ModelState]:
        variables = {"params": params, **model_state}
        if not train:
            logits: Any = module.apply(variables, x, **arguments(train))
            return logits, model_state
        logits, moved = module.apply(variables, x, rngs=key, mutable=list(model_state), **arguments(train))
        return logits, {name: moved.get(name, collection) for name, collection in model_state.items()}

    if isinstance(example, Mapping) and any(isinstance(part, Mapping) for part in example.values()):
        if "params" not in example:
            found = ", ".join(map(repr, example)) or "nothing"
            raise InputError(f"the variables hold {found}, but no 'params'; give what module.init returns")
        variables = jax.tree.map(jnp.asarray, _plain(example))
        params = variables.pop("params")
        model = Model(_no_init("from_linen an example batch"), apply)
        return TrainedModel(model, params, variables, lambda params, state: {"params": params, **state})

    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), example)

    # Under jit XLA drops the forward pass of `module.init`, because its result is not used.
    @jax.jit
    def init(key: Key) -> tuple[Params, ModelState]:
        batch = jax.tree.map(lambda leaf: jnp.zeros(*leaf), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
        variables = dict(module.init(key, batch, **arguments(train=False)))
        return variables.pop("params", {}), variables

    return Model(init, apply)


def _plain(tree: Any) -> Any:
    """Turns mappings of any kind, such as Flax's FrozenDict, into dicts."""
    return {name: _plain(node) for name, node in tree.items()} if isinstance(tree, Mapping) else tree


def _no_init(instead: str) -> Callable[[Key], tuple[Params, ModelState]]:
    def init(key: Key) -> tuple[Params, ModelState]:
        raise InputError(f"fresh weights cannot be drawn for a network that was given as a live module; give {instead}")

    return init


@overload
def from_nnx(network: nnx.Module) -> TrainedModel: ...
@overload
def from_nnx(network: Callable[[nnx.Rngs], nnx.Module]) -> Model: ...
def from_nnx(network: Callable[[nnx.Rngs], nnx.Module] | nnx.Module) -> Model | TrainedModel:
    """Turns a Flax nnx module into a `Model`, or a trained instance into a `TrainedModel`.

    The parameters are a nested dict of the arrays of all `nnx.Param` variables by attribute name. The model state is a
    dict of `batch_stats`, the `nnx.BatchStat` variables, and `state`, all others except the random streams; it has only
    those of both that the module has. The mode is set by the module's `train()` and `eval()`, and in train mode every
    random stream starts again from `key`.

    Args:
      network: `(rngs) -> module` builds the module, which takes a batch and returns logits of shape (N, num_classes).
        Or a trained module itself, which is not changed until `restore` is called.

    Raises:
      InputError: `apply` was called in train mode without a key, and the module has random streams.
    """
    from flax import nnx

    if not isinstance(network, nnx.Module):
        parts = _NnxParts(nnx.eval_shape(lambda: network(nnx.Rngs(0))))
        return Model(lambda key: parts.split(network(nnx.Rngs(key))), parts.apply)
    parts = _NnxParts(nnx.eval_shape(lambda: nnx.clone(network)))

    def restore(params: Params, model_state: ModelState) -> nnx.Module:
        nnx.update(network, nnx.from_flat_state(parts.leaves(params, model_state).items()))
        return network

    model = Model(_no_init("from_nnx the function that makes the module"), parts.apply)
    # Copies, because the loop may donate its buffers, and the module keeps its own.
    params, model_state = jax.tree.map(jnp.copy, parts.split(network))
    return TrainedModel(model, params, model_state, restore)


class _NnxParts:
    """How an nnx module divides into trees of arrays.

    Args:
      outline: The module, with shapes in place of arrays. Its mode is changed.
    """

    def __init__(self, outline: nnx.Module) -> None:
        self._graphs = {}
        for train in (True, False):
            outline.train() if train else outline.eval()
            self._graphs[train], (self._params, self._streams, self._statistics, self._rest) = self._flat(outline)

    @staticmethod
    def _flat(module: nnx.Module) -> tuple[Any, list[dict]]:
        from flax import nnx

        graph, *states = nnx.split(module, nnx.Param, nnx.RngState, nnx.BatchStat, ...)
        return graph, [dict(nnx.to_flat_state(nnx.as_pure(state))) for state in states]

    def split(self, module: nnx.Module) -> tuple[Params, ModelState]:
        """Returns the parameters and the model state of a module."""
        _, (params, _, statistics, rest) = self._flat(module)
        collections = {"batch_stats": _nest(statistics), "state": _nest(rest)}
        return _nest(params), {name: tree for name, tree in collections.items() if tree}

    def leaves(self, params: Params, model_state: ModelState) -> dict[tuple, jax.Array]:
        """Returns all arrays except the random streams by their paths in the module."""
        statistics = _pick(model_state, self._statistics, "batch_stats")
        return _pick(params, self._params) | statistics | _pick(model_state, self._rest, "state")

    def apply(
        self, params: Params, model_state: ModelState, x: jax.Array, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, ModelState]:
        """The forward pass; see `Model`."""
        from flax import nnx

        leaves = self.leaves(params, model_state) | self._restarted_streams(train, key)
        module = nnx.merge(self._graphs[train], nnx.from_flat_state(leaves.items()))
        logits = module(x)
        return logits, self.split(module)[1] if train else model_state

    def _restarted_streams(self, train: bool, key: Key | None) -> dict:
        if train and key is None and self._streams:
            raise InputError("this nnx module draws random numbers in train mode and was given no key; pass key=")
        key = jax.random.key(0) if key is None else key  # In evaluation mode nothing is drawn from it.
        streams = {}
        for index, (path, leaf) in enumerate(self._streams.items()):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            streams[path] = jax.random.fold_in(key, index) if is_key else jnp.zeros(leaf.shape, leaf.dtype)
        return streams


@overload
def from_equinox(network: eqx.Module, state: eqx.nn.State | None = None) -> TrainedModel: ...
@overload
def from_equinox(network: Callable[[Key], eqx.Module]) -> Model: ...
def from_equinox(
    network: Callable[[Key], eqx.Module] | eqx.Module, state: eqx.nn.State | None = None
) -> Model | TrainedModel:
    """Turns an Equinox module into a `Model`, or a trained module into a `TrainedModel`.

    The parameters are a nested dict of all floating-point arrays by attribute name. The model state has those of three
    entries that the module has: `batch_stats` holds mean, variance and count of each BatchNorm, `state` the state of
    other stateful layers, and `constants` all other arrays. The module is mapped over the batch, so it is written for
    one example, like Equinox's own layers; its normalisation layers may use any name for the batch axis. It is called
    as `module(x)`, with `state` and `key=` (one key per example) if its `__call__` takes them, and its mode is set by
    `equinox.nn.inference_mode`.

    Args:
      network: `(key) -> module` builds the module. `equinox.nn.make_with_state` collects its stateful layers. Or a
        trained module itself.
      state: The state of a trained module whose layers have state, as `equinox.nn.make_with_state` made it.

    Raises:
      InputError: Layers of the module use different names for the batch axis, or a trained module has stateful layers
        and no state was given.
    """
    import equinox as eqx

    if not isinstance(network, eqx.Module):
        build: Callable[[Key], Any] = eqx.nn.make_with_state(network)
        parts = _EquinoxParts(*eqx.filter_eval_shape(build, jax.random.key(0)))
        return Model(lambda key: parts.split(*build(key)), parts.apply)
    outline = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf, network
    )
    parts = _EquinoxParts(outline, state)

    def restore(params: Params, model_state: ModelState) -> Any:
        module, restored = parts.join(params, model_state)
        return module if state is None else (module, restored)

    model = Model(_no_init("from_equinox the function that makes the module"), parts.apply)
    params, model_state = jax.tree.map(jnp.copy, parts.split(network, state))
    return TrainedModel(model, params, model_state, restore)


class _EquinoxParts:
    """How an Equinox module divides into trees of arrays.

    Args:
      outline: The module, with shapes in place of arrays.
      state: Its state, or the outline of that; None if no layer has any.
    """

    def __init__(self, outline: eqx.Module, state: eqx.nn.State | None) -> None:
        import equinox as eqx

        paths, self._structure = jax.tree.flatten_with_path(outline)
        self._names = [_attribute_names(path) for path, _ in paths]
        self._static = [leaf for _, leaf in paths]
        arrays = {name: leaf for name, leaf in zip(self._names, self._static, strict=True) if hasattr(leaf, "dtype")}
        self._trained = [name for name, leaf in arrays.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        self._constant = [name for name in arrays if name not in self._trained]
        self._markers = () if state is None else state.tree_flatten()[1]
        indices = _nodes(outline, eqx.nn.StateIndex)
        missing = [".".join(path) for path, node in indices.items() if node.marker not in self._markers]
        if missing:
            raise InputError(
                f"the layers {', '.join(missing)} have state, and none was given for them; give from_equinox the state "
                "that equinox.nn.make_with_state made with the module"
            )
        self._norms = {path: _Statistics.of(layer) for path, layer in _nodes(outline, eqx.nn.BatchNorm).items()}
        of_norms = {marker for norm in self._norms.values() for marker in (norm.statistics, norm.counter)}
        # A marker that several layers share has one place.
        places = {node.marker: path for path, node in indices.items() if node.marker not in of_norms}
        self._places = {path: marker for marker, path in places.items()}
        self._axis_name = _batch_axis(outline)
        call: Any = outline
        self._taken = inspect.signature(call.__call__).parameters
        needed = "state" in self._taken and self._taken["state"].default is inspect.Parameter.empty
        self._stateful = "state" in self._taken and (bool(self._markers) or needed)

    def split(self, module: eqx.Module, state: eqx.nn.State | None) -> tuple[Params, ModelState]:
        """Returns the parameters and the model state of a module."""
        leaves = dict(zip(self._names, jax.tree.leaves(module), strict=True))
        params, constants = (
            _nest({name: jnp.asarray(leaves[name]) for name in names}) for names in (self._trained, self._constant)
        )
        return params, self._named(state) | ({"constants": constants} if constants else {})

    def _named(self, state: eqx.nn.State | None) -> dict[str, dict]:
        """Returns the state by attribute names."""
        values = {} if state is None else dict(zip(self._markers, state.tree_flatten()[0], strict=True))
        norms = _nest({path: norm.read(values) for path, norm in self._norms.items()})
        rest = _nest({path: values[marker] for path, marker in self._places.items()})
        return {name: tree for name, tree in {"batch_stats": norms, "state": rest}.items() if tree}

    def join(self, params: Params, model_state: ModelState) -> tuple[eqx.Module, eqx.nn.State]:
        """Returns the module with these weights, in the mode of the outline, and its state."""
        import equinox as eqx

        arrays = _pick(params, self._trained) | _pick(model_state, self._constant, "constants")
        leaves = [arrays.get(name, leaf) for name, leaf in zip(self._names, self._static, strict=True)]
        values = {self._places[path]: value for path, value in _pick(model_state, self._places, "state").items()}
        for path, norm in self._norms.items():
            values |= norm.write(
                *_pick(model_state, [(*path, name) for name in ("mean", "var", "count")], "batch_stats").values()
            )
        state = eqx.nn.State.tree_unflatten(self._markers, [values[marker] for marker in self._markers])
        return jax.tree.unflatten(self._structure, leaves), state

    def apply(
        self, params: Params, model_state: ModelState, x: jax.Array, *, train: bool, key: Key | None = None
    ) -> tuple[jax.Array, ModelState]:
        """The forward pass; see `Model`."""
        import equinox as eqx

        module, state = self.join(params, model_state)
        call: Any = eqx.nn.inference_mode(module, not train)
        keys = None if key is None or "key" not in self._taken else jax.random.split(key, x.shape[0])

        def one(example, state, key):
            extra = {} if key is None else {"key": key}
            return call(example, state, **extra) if self._stateful else (call(example, **extra), state)

        batched = jax.vmap(one, in_axes=(0, None, 0), out_axes=(0, None), axis_name=self._axis_name)
        logits, state = batched(x, state, keys)
        return logits, model_state | self._named(state) if train else model_state


class _Statistics(NamedTuple):
    """Where an Equinox BatchNorm keeps its statistics, which the model state has as PyTorch and Flax have them.

    In the mode "batch" Equinox keeps sums that began at zero, and divides them by `1 - momentum^counter`.
    """

    statistics: Any  # markers
    counter: Any
    momentum: float | None  # None in the mode "ema", whose counter says only whether nothing was seen yet

    @classmethod
    def of(cls, layer: Any) -> _Statistics:
        """Returns the places of a layer."""
        if layer.mode == "ema":
            return cls(layer.ema_state_index.marker, layer.ema_first_time_index.marker, None)
        return cls(layer.batch_state_index.marker, layer.batch_counter.marker, layer.momentum)

    def _scale(self, count: jax.Array) -> jax.Array | float:
        return 1.0 if self.momentum is None else jnp.where(count == 0, 1, 1 - self.momentum**count)

    def read(self, values: Mapping[Any, Any]) -> dict[str, jax.Array]:
        """Returns mean, variance and count from the values by marker."""
        (mean, var), counter = values[self.statistics], values[self.counter]
        count = jnp.where(counter, 0, 1).astype(jnp.int32) if self.momentum is None else counter
        scale = self._scale(count)
        return {"mean": mean / scale, "var": var / scale, "count": count}

    def write(self, mean: jax.Array, var: jax.Array, count: jax.Array) -> dict[Any, Any]:
        """Returns the values by marker."""
        scale = self._scale(count)
        return {
            self.statistics: (mean * scale, var * scale),
            self.counter: count == 0 if self.momentum is None else count,
        }


def _nodes(tree: Any, kind: type) -> dict[tuple[str, ...], Any]:
    """Returns the nodes of one kind by their attribute names."""
    nodes = jax.tree.leaves_with_path(tree, is_leaf=lambda node: isinstance(node, kind))
    return {_attribute_names(path): node for path, node in nodes if isinstance(node, kind)}


def _attribute_names(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


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


def _pick(tree: dict, paths: Iterable[tuple], *below: str) -> dict[tuple, PyTree]:
    """Returns the leaves of a nested dict, or of the dict that it holds `below`, at the given paths."""
    picked = {}
    for path in paths:
        node, names = tree, (*below, *map(str, path))
        for part in names:
            if not isinstance(node, dict) or part not in node:
                raise InputError(f"the tree has no leaf {'/'.join(names)}; give the tree of this network")
            node = node[part]
        picked[path] = node
    return picked
