"""Many networks on known parts of one training set: trained once, kept by what they are, and shared by all metrics.

Strong evidence of forgetting compares distributions over training runs, so it takes many networks. A design of
inclusion masks uses each of them twice: for every forget set half of the networks are originals, which were trained on
all of it, and the other half are retrained networks, which were trained on none of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import hashing, trees
from scissorhands_jax.base import Batch, Carry, Data, Dataset, Key, Method, Model, ModelState, Params
from scissorhands_jax.errors import CheckpointError, InputError, NonFiniteError
from scissorhands_jax.training import checkpoints, sweeps

MAX_NETWORKS = 256


class Design(NamedTuple):
    """Which training examples each network of an ensemble is trained on."""

    included: np.ndarray  # shape=(networks, examples), dtype=bool
    forget: tuple[np.ndarray, ...]  # positions of each forget set; disjoint
    always: np.ndarray  # positions that every network is trained on
    halved: np.ndarray  # positions that half of the networks, drawn at random for each, are trained on

    def originals(self, number: int) -> np.ndarray:
        """The networks that were trained on this forget set."""
        return np.flatnonzero(self.included[:, self.forget[number][0]])

    def retrained(self, number: int) -> np.ndarray:
        """The networks that were trained without it."""
        return np.flatnonzero(~self.included[:, self.forget[number][0]])


def partner(network: int | np.ndarray) -> int | np.ndarray:
    """The other network of a pair: of every forget set one of the two was trained on it and the other was not."""
    return network ^ 1


def design(
    key: Key,
    num_networks: int,
    total: int,
    forget: Sequence[np.ndarray],
    *,
    always_share: float = 0.1,
) -> Design:
    """Draws the inclusion masks of an ensemble; a pure function of its arguments.

    The training set consists of the forget sets, examples that every network is trained on (`always`), and the rest,
    which is halved. Networks 2i and 2i + 1 are a pair: one is trained on a random half of the rest and the other on the
    other half. Every forget set goes to one of them, as a whole.

    Guarantees:
      * Exactly half of the networks are trained on each forget set, and exactly half on each example of the rest.
      * Given what else it was trained on, a network with a forget set differs from one without it in that set alone:
        the latter is a draw from the distribution of networks retrained without it. With a multiple of 2^K networks,
        every combination of K forget sets occurs equally often.
      * A smaller ensemble of the same key is the beginning of a larger one, so that an ensemble can be made larger.

    Args:
      key: Decides all draws.
      num_networks: The number of networks; even, from 2 to 256.
      total: The number of examples in the training set.
      forget: Positions of each forget set in the training set.
      always_share: Share of the examples outside the forget sets that every network is trained on, in [0, 1).

    Returns:
      The masks and the positions of each part.

    Raises:
      InputError: A number is out of its range, forget sets overlap, or nothing is left to be halved.

    References:
      Carlini et al., Membership inference attacks from first principles, S&P 2022, section IV (balanced halves);
      Hayes et al., Inexact unlearning needs more careful evaluations, SaTML 2025, section 4 (unlearned and retrained
      networks per example).
    """
    if num_networks % 2 or not 2 <= num_networks <= MAX_NETWORKS:
        raise InputError(f"an ensemble has an even number of networks from 2 to {MAX_NETWORKS}, got {num_networks}")
    if not forget or not 0 <= always_share < 1:
        raise InputError(
            f"an ensemble needs at least one forget set and an always_share in [0, 1), got {len(forget)} and "
            f"{always_share}"
        )
    sets = tuple(data_lib.check_positions(positions, total) for positions in forget)
    everything = np.concatenate(sets)
    if len(np.unique(everything)) < len(everything):
        raise InputError(
            "forget sets of one ensemble must not overlap, because a network has all of one or nothing of it"
        )
    rest = np.setdiff1d(np.arange(total, dtype=np.int32), everything)
    drawn = rest[data_lib.permutation(jax.random.fold_in(key, 0), len(rest))]
    count = round(always_share * len(rest))
    count += (len(rest) - count) % 2  # both halves are of one size
    always, halved = np.sort(drawn[:count]), np.sort(drawn[count:])
    if len(halved) < 2:
        raise InputError(f"the forget sets leave {len(rest)} of {total} examples; nothing is left to be halved")

    included = np.zeros((num_networks, total), bool)
    included[:, always] = True
    # Combinations of forget sets, one of each complementary pair; the pair's other network has the complement.
    patterns = 2 ** (len(sets) - 1)
    order = data_lib.permutation(jax.random.fold_in(key, 1), patterns)
    for pair in range(num_networks // 2):
        pair_key = jax.random.fold_in(key, 2 + pair)
        half = halved[data_lib.permutation(pair_key, len(halved))[: len(halved) // 2]]
        turned = int(jax.random.bernoulli(jax.random.fold_in(pair_key, 1)))
        first, second = 2 * pair, 2 * pair + 1
        included[first, half] = True
        included[second, np.setdiff1d(halved, half)] = True
        combination = int(order[pair % patterns])
        for number, positions in enumerate(sets):
            has_it = (combination >> number) % 2 != turned
            included[first if has_it else second, positions] = True
    return Design(included, sets, always, halved)


def address(identity: Mapping[str, Any]) -> str:
    """A name for what an identity describes: 20 hexadecimal digits of the SHA-256 of its JSON.

    >>> address({"seed": 1, "model": "mlp"}) == address({"model": "mlp", "seed": 1})
    True
    """
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashing.sha256(text)[:20]


class Ensemble:
    """The networks of a design, each in a folder that is named by the hash of all that decides its weights.

    Args:
      model: The network.
      method: Trains it on the retain set of the data that it is given, as `methods.retrain` does.
      num_epochs: The length of the training.
      train: The whole training set, of which every network gets its part.
      design: Which network is trained on which examples.
      key: Decides the initial weights and the order of the examples.
      folder: Holds the folders of the networks. Other ensembles may share it.
      identity: JSON-able; whatever else the networks depend on, such as the configuration of the method.
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
        self.model = model
        self.method = method
        self.num_epochs = num_epochs
        self.train = train
        self.design = design
        self.folder = folder
        self._key = key
        self._shapes = jax.eval_shape(model.init, key)
        self._identity = {
            **identity,
            "examples": hashing.tree_checksum(train),
            "epochs": num_epochs,
            "key": np.asarray(jax.random.key_data(key)).tolist(),
        }

    def __len__(self) -> int:
        return len(self.design.included)

    def identity(self, network: int) -> dict[str, Any]:
        """All that decides the weights of a network, as JSON."""
        trained_on = np.flatnonzero(self.design.included[network])
        return {**self._identity, "network": network, "trained_on": hashing.positions_sha256(trained_on)}

    def path(self, network: int) -> Path:
        """The folder of a network, whether it exists or not."""
        return self.folder / address(self.identity(network))

    def missing(self) -> list[int]:
        """The networks that are still to be trained."""
        return [network for network in range(len(self)) if not self.path(network).exists()]

    def load(self, network: int) -> tuple[Params, ModelState]:
        """A trained network.

        Raises:
          CheckpointError: It has not been trained, its files are damaged, or they hold another network.
        """
        found = checkpoints.read_description(self.path(network))
        if found.get("identity") != json.loads(json.dumps(self.identity(network))):
            raise CheckpointError(f"{self.path(network)} holds another network than its name says; remove it")
        params, model_state = checkpoints.load_network(self.path(network), *self._shapes)
        # Orbax ties arrays to their device, and every step would be compiled again for them.
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), (params, model_state))

    def description(self, network: int) -> dict[str, Any]:
        """What is kept with a trained network: its identity and its cost in seconds."""
        return checkpoints.read_description(self.path(network))

    def make(self, networks: Sequence[int], *, how: sweeps.How = "auto") -> None:
        """Trains networks, one after another or at once, and keeps them.

        The training set lies on the device once, and every network draws its batches from its own part, so that all
        share one compiled program.

        Args:
          networks: Which ones. Their parts must have the same size unless `how` is "turns".
          how: As for `sweeps.run_many`.

        Raises:
          NonFiniteError: One of them diverged. Those before it are kept.
        """
        members = []
        for network in networks:
            part = np.flatnonzero(self.design.included[network]).astype(np.int32)
            members.append(
                sweeps.Member(restricted(self.method, part), jax.random.fold_in(self._key, network), None, None)
            )
        results = sweeps.run_many(members, Data(None, self.train), num_epochs=self.num_epochs, how=how)
        for network, result in zip(networks, results, strict=True):
            if isinstance(result, NonFiniteError):
                raise result
            description = {"identity": self.identity(network), "seconds": result.seconds}
            checkpoints.save_network(self.path(network), result.params, result.model_state, description)


def restricted(method: Method, part: np.ndarray) -> Method:
    """A method that reads only retain examples, restricted to a part of them.

    It has the same step as the method, so that all parts share one compiled program.

    Args:
      method: The method, such as `methods.retrain`.
      part: Positions in the retain set. shape=(n,), dtype=int32
    """
    own = Data(None, {"position": part})

    def init(key: Key, params: Params, model_state: ModelState, data: Data) -> Carry:
        # The examples themselves, since a network may be fitted to them before it is trained (`resnet9`).
        return method.init(key, params, model_state, Data(None, data_lib.take(data.retain, part)))

    def batches(key: Key, data: Data, epoch: int) -> list[Batch]:
        del data
        return [Batch(retain=part[batch.retain]) for batch in method.batches(key, own, epoch)]

    def begin_epoch(carry: Carry, data: Data) -> Carry:
        del data
        return method.begin_epoch(carry, own)

    return method._replace(init=init, batches=batches, begin_epoch=begin_epoch)


def disk_bytes(model: Model, count: int) -> int:
    """The bytes that stored networks take, without what the file system adds.

    Args:
      model: The network.
      count: The number of networks.
    """
    return count * trees.nbytes(jax.eval_shape(model.init, jax.random.key(0)))
