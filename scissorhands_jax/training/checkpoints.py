"""Checkpoints of runs and of networks, through Orbax.

Orbax writes a checkpoint into a temporary folder and renames it when it is whole, so an interrupted write never
replaces a good one. With many processes each writes and reads its own parts of the arrays; what is on disk does not
depend on how many there were, or on how arrays lay on their devices.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from scissorhands_jax import files, hashing, reading, trees
from scissorhands_jax.base import Carry, ModelState, Params, PyTree
from scissorhands_jax.errors import CheckpointError, InputError, check_whole
from scissorhands_jax.training import distributed
from scissorhands_jax.training.identity import Identity, check_same

NETWORK_PARTS = ("network", "meta")
"""The names of what `save_network` writes into its folder."""


class Position(NamedTuple):
    """How far a run has come."""

    epoch: int
    offset: int  # steps taken in this epoch


class Checkpointer:
    """Keeps the newest checkpoints of one run in a folder.

    Nothing in the folder changes before `open` or the first `save`, for which one must have the right to write to it
    (`files.sole_writer`); `training.run` sees to that.

    Args:
      directory: The folder of the checkpoints, which is made when it is needed.
      every_steps: Save whenever this many steps of an epoch are taken; None saves at the end of every epoch only.
      keep: How many of the newest checkpoints stay in the folder, at least 1.

    Raises:
      InputError: `every_steps` or `keep` is below 1 or no whole number, or Orbax cannot write to a folder of that name
        (`files.check_name`).
    """

    def __init__(self, directory: str | Path, *, every_steps: int | None = None, keep: int = 2) -> None:
        if every_steps is not None:
            every_steps = check_whole("the steps between checkpoints", every_steps, 1)
        files.check_name(directory)
        self.directory = Path(directory).absolute()
        self.every_steps = every_steps
        self._keep = check_whole("keep", keep, 1)
        self._manager: ocp.CheckpointManager | None = None
        self._writes = False

    def open(self) -> None:
        """Makes the folder ready to be written to: removes what killed processes left there. Whole checkpoints stay.

        Raises:
          CheckpointError: What Orbax keeps of the checkpoints in the folder is damaged.
        """
        self.close()
        if jax.process_index() == 0:
            files.remove_leftovers(self.directory)
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                files.remove(path)  # Orbax was killed while it wrote it.
        self._manager, self._writes = self._managed(), True

    def _managed(self) -> ocp.CheckpointManager:
        """Orbax's view of the folder, as it is now."""
        if self._manager is not None:
            self._manager.close()
        try:
            return ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
                item_names=("carry", "meta"),
            )
        except OSError:
            raise
        except Exception as error:  # Orbax reads when each checkpoint was written, and raises many types for damage.
            raise CheckpointError(f"the checkpoints in {self.directory} are damaged: {_line(error)}") from error

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint that is in the folder now, None if there is none."""
        return max(self._steps(), default=None)

    def agreed_step(self) -> int | None:
        """The newest step that the first process sees, in all processes, which must all call this.

        A folder that machines share may look otherwise to another one for a moment, and what they do next must not.
        """
        return distributed.from_first(lambda: self.latest_step)

    def _steps(self) -> list[int]:
        """The steps of the whole checkpoints, which Orbax gives their names when they are."""
        try:
            return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())
        except FileNotFoundError:
            return []

    def save(self, carry: Carry, position: Position, identity: Identity) -> None:
        """Writes a checkpoint named by the carry's step; one that exists is left as it is.

        Args:
          carry: What the run carries from step to step.
          position: How far the run has come.
          identity: What determines the result of the run.

        Raises:
          CheckpointError: As `open`, which the first call does.
          OSError: The disk is full or the like; earlier checkpoints stay.
        """
        if not self._writes:
            self.open()
        assert self._manager is not None
        step = int(carry.step)
        if distributed.from_first(lambda: step in self._steps()):
            return
        meta = {
            "epoch": position.epoch,
            "offset": position.offset,
            "run": identity.document(),
            "arrays": describe_arrays(carry),
            "sha256": hashing.tree_sha256(carry),
        }
        with _named_write_errors(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    carry=ocp.args.StandardSave(_without_empty(carry)), meta=ocp.args.JsonSave(meta)
                ),
            )
            self._remove_old()

    def _remove_old(self) -> None:
        """Removes all but the newest checkpoints. Orbax would not do it at once, and a kill would leave half of one."""
        if jax.process_index() == 0:
            for step in self._steps()[: -self._keep]:
                files.remove(self.directory / str(step))

    def restore(self, template: Carry, identity: Identity, *, step: int | None = None) -> tuple[Carry, Position]:
        """Reads a checkpoint into the shape of `template`.

        A run that is resumed from it ends in the same bits as one that was never stopped if the environment is the one
        it was made in (`reproducibility.numerical_environment`). In another environment it is read all the same, and a
        warning is logged.

        Args:
          template: A carry of the same shapes and types, whose arrays lie where those of the result shall lie.
          identity: What determines the result of the run. What was chosen must be as for `save`.
          step: The step of the checkpoint, which many processes must agree on. None is the newest.

        Returns:
          The carry, and how far the run had come.

        Raises:
          CheckpointError: There is no checkpoint, it cannot be read, or it belongs to another run.
          InputError: Another process of the run does not see the checkpoint.
        """
        step = self.agreed_step() if step is None else step
        if step is None:
            raise CheckpointError(f"there is no whole checkpoint in {self.directory}")
        distributed.agree_on_folder(self.directory / str(step))
        if not self._writes:  # Others may have written since it was last looked at.
            self._manager = self._managed()
        assert self._manager is not None
        damaged = f"the checkpoint of step {step} in {self.directory} is damaged"
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            if "fingerprint" in meta:
                raise CheckpointError(
                    f"an earlier version of scissorhands_jax wrote the checkpoint of step {step} in {self.directory}; "
                    "start again in another folder"
                )
            position = Position(int(meta["epoch"]), int(meta["offset"]))
            saved, arrays = dict(meta["run"]), dict(meta["arrays"])
        except CheckpointError:
            raise
        except Exception as error:  # Orbax raises many types for a damaged folder.
            raise CheckpointError(f"{damaged}: {_line(error)}") from error
        where = f"the checkpoint in {self.directory}"
        try:
            check_same(saved, identity, where, "repeat its settings, or name another folder")
        except InputError as error:
            raise CheckpointError(str(error)) from error
        _same_arrays(arrays, describe_arrays(template), self.directory)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _without_empty(template))
        try:
            carry = self._manager.restore(step, args=ocp.args.Composite(carry=ocp.args.StandardRestore(abstract)))[
                "carry"
            ]
        except Exception as error:
            raise CheckpointError(f"{damaged}: {_line(error)}") from error
        carry = _with_empty(carry, template)
        if not _is_whole(carry, meta) or not _alike(carry, template):
            raise CheckpointError(f"{damaged}: its numbers have changed since they were written")
        return jax.tree.map(_as_free_as, carry, template), position

    def close(self) -> None:
        """Ends the use of the folder and lets go of what Orbax holds."""
        if self._manager is not None:
            self._manager.close()
        self._manager, self._writes = None, False

    def remove(self) -> None:
        """Closes the folder and deletes it, once the result of the run is kept elsewhere; for one process only."""
        self.close()
        files.remove(self.directory)


def describe_arrays(tree: PyTree) -> dict[str, str]:
    """The types and shapes of a tree's arrays by name, such as `float32[3, 3]`: what a checkpoint must agree with."""
    names = trees.leaf_names(tree)
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in zip(names, jax.tree.leaves(tree), strict=True)}


def save_network(path: str | Path, params: Params, model_state: ModelState, description: dict[str, Any]) -> None:
    """Writes a network as an Orbax checkpoint in a new folder, whole or not at all.

    Args:
      path: The folder. If it exists it is replaced once the new one is whole. With many processes all must call this.
      params: The network's parameters, a pytree of arrays.
      model_state: The network's state, a pytree of arrays.
      description: What is needed to build the network again, as JSON.

    Raises:
      InputError: Orbax cannot write to a folder of that name (`files.check_name`).
      OSError: The disk is full or the like; what was there stays.
    """
    files.check_name(path)
    path = Path(path).absolute()
    tree = {"params": params, "model_state": model_state}
    meta = {"description": description, "fingerprint": describe_arrays(tree), "sha256": hashing.tree_sha256(tree)}
    with _folder_of_all(path) as fresh, _named_write_errors(path), ocp.Checkpointer(_handler(tree)) as checkpointer:
        checkpointer.save(
            fresh,
            args=ocp.args.Composite(network=ocp.args.StandardSave(_without_empty(tree)), meta=ocp.args.JsonSave(meta)),
        )
    ocp.multihost.sync_global_processes("save_network")


def _without_empty(tree: PyTree) -> PyTree:
    """A tree with a zero in place of each array that has no entries, which Orbax does not write."""
    return jax.tree.map(lambda leaf: leaf if leaf.size else np.zeros(1, np.uint8), tree)


def _with_empty(tree: PyTree, template: PyTree) -> PyTree:
    """Undoes `_without_empty`: arrays without entries are those of the template."""
    return jax.tree.map(lambda leaf, like: leaf if like.size else like, tree, template)


@contextlib.contextmanager
def _folder_of_all(path: Path) -> Iterator[Path]:
    """`files.new_folder` of process 0, which all processes fill."""
    with contextlib.ExitStack() as stack:
        fresh = distributed.from_first(lambda: str(stack.enter_context(files.new_folder(path))))
        yield Path(fresh)


def _handler(tree: PyTree) -> ocp.CompositeCheckpointHandler:
    """Orbax's for a network, with a gigabyte (or the largest array) on the way to or from the disk at a time.

    By default Orbax handles all arrays at once and holds each of them compressed as well: a large network is there
    twice.
    """
    largest = max((trees.nbytes(leaf) for leaf in jax.tree.leaves(tree)), default=0)
    concurrent = max(1, -(-largest // 10**9))
    return ocp.CompositeCheckpointHandler(
        network=ocp.StandardCheckpointHandler(save_concurrent_gb=concurrent, restore_concurrent_gb=concurrent),
        meta=ocp.JsonCheckpointHandler(),
    )


def is_described(path: str | Path) -> bool:
    """Whether a folder has the description of a network, which may be there while its arrays are lost."""
    return _meta_file(Path(path)).is_file()


def read_description(path: str | Path) -> dict[str, Any]:
    """The description that `save_network` was given.

    Raises:
      CheckpointError: there is no network checkpoint, or it is damaged.
    """
    return _read_meta(Path(path))["description"]


def load_network(path: str | Path, params: Params, model_state: ModelState) -> tuple[Params, ModelState]:
    """Reads a network into the shapes of the given trees (arrays or `jax.ShapeDtypeStruct`).

    The arrays are placed on the default device, on however many devices they were when they were saved. With many
    processes each of them gets the whole network.

    Args:
      path: The folder that `save_network` wrote.
      params: Arrays or outlines with the shapes and types of the parameters.
      model_state: Arrays or outlines with the shapes and types of the state.

    Returns:
      The parameters and the state.

    Raises:
      CheckpointError: There is no network checkpoint, it is damaged, or it holds another network.
    """
    path = Path(path).absolute()
    meta = _read_meta(path)
    template = {"params": params, "model_state": model_state}
    _same_arrays(meta["fingerprint"], describe_arrays(template), path)
    # As NumPy arrays, because the devices that the network was saved from may not exist here.
    abstract = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), template)
    try:
        with ocp.Checkpointer(_handler(template)) as checkpointer:
            asked = ocp.args.StandardRestore(_without_empty(abstract))
            tree = _with_empty(checkpointer.restore(path, args=ocp.args.Composite(network=asked))["network"], abstract)
    except Exception as error:
        raise CheckpointError(f"the network checkpoint {path} is damaged: {_line(error)}") from error
    if not _is_whole(tree, meta) or not _alike(tree, template):
        raise CheckpointError(
            f"the network checkpoint {path} is damaged: its numbers have changed since it was written"
        )
    leaves, structure = jax.tree.flatten((tree["params"], tree["model_state"]))
    del tree
    for i, leaf in enumerate(leaves):  # one after the other, so that a large network is not there twice
        leaves[i] = jnp.asarray(leaf)
    return jax.tree.unflatten(structure, leaves)


@contextlib.contextmanager
def _named_write_errors(path: Path) -> Iterator[None]:
    """Says in one sentence what Orbax met while writing, in place of many types and of stack traces in the log."""
    log = logging.getLogger("absl")
    was, log.disabled = log.disabled, True
    try:
        yield
    except Exception as error:  # TensorStore's errors are of several types, with the system's number in their text.
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    finally:
        log.disabled = was


def _as_free_as(leaf: jax.Array, template: jax.Array) -> jax.Array:
    """The array, tied to its devices only if the template is: Orbax ties all, for which steps would compile again."""
    if template.committed:
        return leaf
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.array(_raw(leaf)), impl=jax.random.key_impl(leaf))
    return jnp.array(_raw(leaf))


def _meta_file(path: Path) -> Path:
    return path / "meta" / "metadata"


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = reading.read_json(_meta_file(path), nan=True)
        dicts = isinstance(meta["description"], dict) and isinstance(meta["fingerprint"], dict)
        if not dicts or not isinstance(meta.get("sha256", meta.get("checksum")), str):
            raise TypeError("its metadata has the wrong form")
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no network checkpoint in {path}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the network checkpoint {path} is damaged: {_line(error)}") from error
    return meta


def _same_arrays(found: dict, expected: dict, directory: Path) -> None:
    differing = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"the checkpoint in {directory} belongs to another network: {len(differing)} entries differ, "
            f"the first is {name} with {found.get(name, 'nothing')} there and {expected.get(name, 'nothing')} here"
        )


def _is_whole(tree: PyTree, meta: dict[str, Any]) -> bool:
    """Whether the numbers are those that were written. Earlier versions wrote no SHA-256; theirs are not compared."""
    return hashing.tree_sha256(tree) == meta["sha256"] if "sha256" in meta else "checksum" in meta


def _alike(a: PyTree, b: PyTree) -> bool:
    """Whether the leaves of two trees have the same shapes and types; with damaged metadata a key comes as numbers."""
    kinds = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (a, b)]
    return kinds[0] == kinds[1]


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def _raw(leaf: jax.Array) -> np.ndarray:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf, order="C")
