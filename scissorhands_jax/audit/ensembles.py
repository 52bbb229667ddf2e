"""Ensembles: many networks that are trained on known parts of one training set, once, and shared by all metrics.

Strong evidence of forgetting compares distributions over training runs, so it takes many networks. A design of
inclusion masks uses each network for every forget set: half of the networks were trained on all of the set and are its
originals, and the other half were trained on none of it and are its retrained networks.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, hashing, trees
from scissorhands_jax.base import Batch, Carry, Data, Dataset, Key, Method, Model, ModelState, Params
from scissorhands_jax.errors import CheckpointError, DivergedError, InputError
from scissorhands_jax.training import checkpoints, sweeps
from scissorhands_jax.training.descriptions import describe_value
from scissorhands_jax.training.identity import Identity, check_same, identify

MAX_NETWORKS = 256


class Design(NamedTuple):
    """Which training examples each network of an ensemble is trained on."""

    included: np.ndarray  # shape=(networks, examples), dtype=bool
    forget: tuple[np.ndarray, ...]  # positions of each forget set; disjoint
    always: np.ndarray  # positions that every network is trained on
    halved: np.ndarray  # positions that half of the networks, drawn at random for each, are trained on

    def originals(self, number: int) -> np.ndarray:
        """Returns the networks that were trained on the forget set with a number."""
        return np.flatnonzero(self.included[:, self.forget[number][0]])

    def retrained(self, number: int) -> np.ndarray:
        """Returns the networks that were trained without the forget set with a number."""
        return np.flatnonzero(~self.included[:, self.forget[number][0]])


def partner(network: int | np.ndarray) -> int | np.ndarray:
    """Returns the other network of a pair. One of the two was trained on each forget set, and the other was not."""
    return network ^ 1


def check_networks(num_networks: int) -> None:
    """Refuses a number of networks that no ensemble has.

    Raises:
      InputError: It is odd, or not from 2 to `MAX_NETWORKS`.
    """
    if num_networks % 2 or not 2 <= num_networks <= MAX_NETWORKS:
        raise InputError(f"an ensemble has an even number of networks from 2 to {MAX_NETWORKS}, got {num_networks}")


def design(
    key: Key,
    num_networks: int,
    total: int,
    forget: Sequence[np.ndarray],
    *,
    always_share: float = 0.1,
) -> Design:
    """Draws the inclusion masks of an ensemble. The result depends on the arguments alone.

    The training set consists of the forget sets, the examples that every network is trained on (`always`), and the
    rest, which is halved. Networks 2i and 2i + 1 are a pair: one is trained on a random half of the rest, and the other
    on the other half. Each forget set is given to one of the two as a whole.

    Guarantees:
      * Exactly half of the networks are trained on each forget set, and exactly half on each example of the rest.
      * Given the other examples that it was trained on, a network with a forget set differs from one without it in that
        set alone: the latter is a draw from the distribution of networks retrained without it. If the number of
        networks is a multiple of 2^K, every combination of K forget sets occurs equally often.
      * A smaller ensemble with the same key is the beginning of a larger one, so an ensemble can be made larger.

    Args:
      key: The typed PRNG key of all draws.
      num_networks: The number of networks; even, from 2 to 256.
      total: The number of examples in the training set.
      forget: The positions of each forget set in the training set.
      always_share: The share of the examples outside the forget sets that every network is trained on, in [0, 1).

    Returns:
      The masks and the positions of each part.

    Raises:
      InputError: A number is out of its range, forget sets overlap, or nothing is left to be halved.

    References:
      Carlini et al., Membership inference attacks from first principles, S&P 2022, section IV (balanced halves);
      Hayes et al., Inexact unlearning needs more careful evaluations, SaTML 2025, section 4 (unlearned and retrained
      networks per example).
    """
    check_networks(num_networks)
    if not forget or not 0 <= always_share < 1:
        raise InputError(
            f"the ensemble was given {len(forget)} forget sets and an always_share of {always_share}; give at least "
            "one set and a share in [0, 1)"
        )
    sets = tuple(data_lib.check_positions(positions, total) for positions in forget)
    everything = np.concatenate(sets)
    if len(np.unique(everything)) < len(everything):
        raise InputError(
            "forget sets of one ensemble overlap, but each network must be trained on all of a set or on none of it; "
            "remove common examples from all sets except one"
        )
    rest = np.setdiff1d(np.arange(total, dtype=np.int32), everything)
    drawn = rest[data_lib.permutation(jax.random.fold_in(key, 0), len(rest))]
    count = round(always_share * len(rest))
    count += (len(rest) - count) % 2  # so that both halves have one size
    always, halved = np.sort(drawn[:count]), np.sort(drawn[count:])
    if len(halved) < 2:
        raise InputError(
            f"the forget sets leave {len(rest)} of {total} examples, too few to be halved; forget fewer examples"
        )

    included = np.zeros((num_networks, total), bool)
    included[:, always] = True
    # The bits of a combination say which forget sets the first network of a pair has; the second has the others. So one
    # combination of each complementary two is enough, and `flipped` decides which of the two the first network has.
    order = _combinations(jax.random.fold_in(key, 1), len(sets) - 1, num_networks // 2)
    for pair in range(num_networks // 2):
        pair_key = jax.random.fold_in(key, 2 + pair)
        half = halved[data_lib.permutation(pair_key, len(halved))[: len(halved) // 2]]
        flipped = int(jax.random.bernoulli(jax.random.fold_in(pair_key, 1)))
        first, second = 2 * pair, 2 * pair + 1
        included[first, half] = True
        included[second, np.setdiff1d(halved, half)] = True
        combination = order[pair % len(order)]
        for number, positions in enumerate(sets):
            is_of_first = (combination >> number) % 2 != flipped
            included[first if is_of_first else second, positions] = True
    return Design(included, sets, always, halved)


def _combinations(key: Key, bits: int, count: int) -> list[int]:
    """Numbers of so many bits in random order: all of them, or `count` that are drawn where there are very many."""
    if bits <= 16:
        return data_lib.permutation(key, 2**bits).tolist()
    drawn = np.asarray(jax.random.bernoulli(key, shape=(count, bits)))
    return [sum(1 << place for place in np.flatnonzero(row).tolist()) for row in drawn]


def address(identity: Mapping[str, Any]) -> str:
    """Returns a name for what an identity describes: 20 hexadecimal digits of the SHA-256 of its JSON.

    >>> address({"seed": 1, "model": "mlp"}) == address({"model": "mlp", "seed": 1})
    True
    """
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashing.sha256(text)[:20]


class Ensemble:
    """The networks of a design, each in a folder that is named by a hash of what decides its weights.

    The code of the method and JAX's options are not in the name; `load` compares them.

    Args:
      model: The network.
      method: A method that trains on the retain set, such as `methods.retrain`.
      num_epochs: The number of epochs of training.
      train: The whole training set, of which every network is trained on its part.
      design: The examples that each network is trained on.
      key: The typed PRNG key of initial weights and of the order of examples.
      folder: The folder that holds the folders of the networks. Other ensembles may share it.
      identity: Everything else that the networks depend on, such as the configuration of the method, as JSON values.
    """

    def __init__(
        self,
        model: Model,
        method: Method,
        num_epochs: int,
        train: Dataset,
        design: Design,
        key: Key,
        folder: Path,
        identity: Mapping[str, Any],
    ) -> None:
        files.check_name(folder)
        self.model = model
        self.method = method
        self.num_epochs = num_epochs
        self.train = train
        self.design = design
        self.folder = folder
        self._key = key
        self._shapes = jax.eval_shape(model.init, key)
        self._method = describe_value(method, "method")
        self._identity = {
            **identity,
            "examples": hashing.tree_sha256(train),
            "epochs": num_epochs,
            "key": np.asarray(jax.random.key_data(key)).tolist(),
        }

    def __len__(self) -> int:
        return len(self.design.included)

    def identity(self, network: int) -> dict[str, Any]:
        """Returns what decides the weights of a network, but for the method and JAX's options, as JSON values."""
        trained_on = np.flatnonzero(self.design.included[network])
        return {**self._identity, "network": network, "trained_on": hashing.positions_sha256(trained_on)}

    def _whole_identity(self, network: int) -> Identity:
        """Returns the identity of a network together with the method and the options of JAX."""
        return identify({**self.identity(network), "method": self._method})

    def path(self, network: int) -> Path:
        """Returns the folder of a network, which need not exist."""
        return self.folder / address(self.identity(network))

    def missing(self) -> list[int]:
        """Returns the networks that have not been trained yet."""
        return [network for network in range(len(self)) if not self.path(network).exists()]

    def load(self, network: int) -> tuple[Params, ModelState]:
        """Reads a trained network.

        Raises:
          CheckpointError: The network has not been trained, or its files are damaged or hold another network.
          InputError: It was trained by another method or with other options of JAX.
        """
        found = checkpoints.read_description(self.path(network))
        if found.get("identity") != json.loads(json.dumps(self.identity(network))):
            raise CheckpointError(f"{self.path(network)} does not hold the network of that name; remove it")
        if "run" in found:  # An earlier version of the package has not saved it.
            where = f"the network in {self.path(network)}"
            check_same(found["run"], self._whole_identity(network), where, "remove it, or repeat that", warn=False)
        params, model_state = checkpoints.load_network(self.path(network), *self._shapes)
        # Orbax commits arrays to their device, and JAX would compile every step once more for committed arrays.
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), (params, model_state))

    def description(self, network: int) -> dict[str, Any]:
        """Returns what is saved with a trained network: its identity and the seconds of its training."""
        return checkpoints.read_description(self.path(network))

    def make(self, networks: Sequence[int], *, how: sweeps.How = "auto") -> None:
        """Trains the networks that do not exist, one after another or at once, and saves them.

        Other processes can train networks for the same folder. This one waits for those that it needs itself.

        The device holds the training set once, and every network draws its batches from its own part, so that all
        share one compiled program.

        Args:
          networks: The numbers of the networks. Their parts must have the same size unless `how` is "turns".
          how: Whether they are trained at once; see `sweeps.run_many`.

        Raises:
          DivergedError: A network diverged. Those before it are saved.
        """
        with contextlib.ExitStack() as stack:
            for path in sorted(map(self.path, networks)):
                stack.enter_context(files.sole_writer(path.parent, of=path.name, seconds=math.inf))
            missing = set(self.missing())
            if left := [network for network in networks if network in missing]:
                self._train(left, how)

    def _train(self, networks: Sequence[int], how: sweeps.How) -> None:
        members = []
        for network in networks:
            part = np.flatnonzero(self.design.included[network]).astype(np.int32)
            members.append(
                sweeps.Member(restricted(self.method, part), jax.random.fold_in(self._key, network), None, None)
            )
        results = sweeps.run_many(members, Data(None, self.train), num_epochs=self.num_epochs, how=how)
        for network, result in zip(networks, results, strict=True):
            if isinstance(result, DivergedError):
                raise result
            run = self._whole_identity(network).document()
            description = {"identity": self.identity(network), "run": run, "seconds": result.seconds}
            checkpoints.save_network(self.path(network), result.params, result.model_state, description)


def restricted(method: Method, part: np.ndarray) -> Method:
    """Restricts a method that reads only retain examples to a part of them.

    The result has the step of the method itself, so that all parts share one compiled program.

    Args:
      method: The method, such as `methods.retrain`.
      part: The positions of the part in the retain set. shape=(n,), dtype=int32
    """
    own = Data(None, {"position": part})

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        # It is given the examples and not only positions, because `resnet9` is fitted to them before it is trained.
        return method.init(key, params, model_state, Data(None, data_lib.take(data.retain, part)))

    def batches(key: Key, data: Data, epoch: int) -> list[Batch]:
        del data
        return [Batch(retain=part[batch.retain]) for batch in method.batches(key, own, epoch)]

    def begin_epoch(carry: Carry, data: Data) -> Carry:
        del data
        return method.begin_epoch(carry, own)

    return method._replace(init=init, batches=batches, begin_epoch=begin_epoch)


def disk_bytes(model: Model, count: int) -> int:
    """Returns the bytes that saved networks take, without the overhead of the file system.

    Args:
      model: The network.
      count: The number of networks.
    """
    return count * trees.nbytes(jax.eval_shape(model.init, jax.random.key(0)))
