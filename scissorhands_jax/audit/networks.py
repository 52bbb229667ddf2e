"""The networks of an audit, and what is measured of each: its answers to watched examples and, of a few, much more.

Every network of the ensemble is an original for some of the forget sets and a retrained network for the others.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np

from scissorhands_jax import array_files, hashing, reading
from scissorhands_jax import data as data_lib
from scissorhands_jax.audit import ensembles
from scissorhands_jax.audit.analysis import AuditedSet, InsideNumbers, Watched
from scissorhands_jax.base import Data, Dataset, ModelState, Params
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.datasets.splits import validation_split
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.cells import ResultCell
from scissorhands_jax.jobs.experiment import Experiment, LoadedExperiment, OwnNetwork
from scissorhands_jax.jobs.held_out import check_scenario
from scissorhands_jax.metrics import answers, distances, probes, relearning
from scissorhands_jax.metrics.row import SetPredictions, attack_numbers
from scissorhands_jax.report import NULL, ORIGINAL, REFERENCE
from scissorhands_jax.terminal import Progress
from scissorhands_jax.training.loop import run

# The number of networks that are trained in one compiled program on an accelerator.
_TRAINED_AT_ONCE = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tier:
    """The effort of an audit."""

    networks: int
    """The number of networks in the ensemble; even."""
    watched: int
    """The largest number of examples of each forget set, and of those that all networks are trained on, that every
    network answers. The limit is twice this number for held-out examples, and four times for examples that half of the
    networks are trained on."""
    examined: int
    """The number of networks per method and forget set that are examined: trained further, probed, and compared with
    others by their weights."""
    recovery_epochs: int = 2
    """The number of epochs for which examined networks are trained further."""


TIERS: dict[str, Tier] = {
    "smoke": Tier(networks=2, watched=500, examined=0),
    "standard": Tier(networks=16, watched=250, examined=3),
    "full": Tier(networks=128, watched=500, examined=8),
}
"""The efforts to choose from: `smoke` is one pair of networks and the population attack alone, `standard` has all
attacks with few networks, and `full` has all attacks with many."""


class AuditTarget(NamedTuple):
    """A network to measure: the number of the forget set, the label, and the number of the network in the ensemble.

    The label is `ORIGINAL` or `REFERENCE` for networks of the ensemble, or the method that makes a network unlearn.
    """

    number: int
    label: str
    network: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditCell:
    """The measurements of one network."""

    SUFFIX: ClassVar[str] = ".npz"

    seconds: float
    """The seconds of the run that made the network, without compilation."""
    compile_seconds: float | None
    """The seconds of compilation, or None for networks of the ensemble, which share theirs."""
    quality: dict[str, float]
    """`acc_forget`, `acc_retain` and `acc_test` in percent; of another task than classification its first metric, such
    as `rmse_forget`."""
    mia: float
    network: str
    """The SHA-256 of the network; eight digits of another checksum in audits of earlier versions."""
    inside: InsideNumbers | None
    """Further numbers, or None if the network was not examined."""
    logits: np.ndarray
    """The logits of the watched examples, or the outputs for another task. shape=(N, ...), dtype=float32"""

    def encode(self) -> bytes:
        """Returns the content of the file that keeps the measurements."""
        numbers = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del numbers["logits"]
        numbers |= numbers.pop("quality")
        numbers["inside"] = None if self.inside is None else dataclasses.asdict(self.inside)
        buffer = io.BytesIO()
        np.savez(buffer, numbers=np.frombuffer(json.dumps(numbers).encode(), np.uint8), logits=self.logits)
        return buffer.getvalue()

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Reads what `encode` wrote."""
        held = array_files.read_arrays(content)
        numbers: dict[str, Any] = reading.parse_json(held["numbers"].tobytes(), nan=True)
        inside = numbers.pop("inside")
        known = {field.name: numbers.pop(field.name) for field in dataclasses.fields(cls) if field.name in numbers}
        inside = None if inside is None else InsideNumbers(**inside)
        return cls(**known, quality=numbers, inside=inside, logits=held["logits"])


class Audit:
    """The networks of an audit, how they are made, and how they are measured.

    Args:
      experiment: Data, network, training, and scenarios with their methods. Each scenario has one forget set.
      tier: The effort.
      num_networks: The number of networks in the ensemble, or None for that of the tier.
      seed: The seed of the forget sets, the inclusion masks and all networks.
      data_dir: The folder of the data set's files, or None for data sets that need none.
      networks: The folder of the ensemble.
      trained_on: The positions in the training split of the only examples that networks may be trained on. By default
        all may be used.
      own: A network of the user's own, in place of what the experiment names.

    Raises:
      InputError: The experiment cannot be audited.
    """

    def __init__(
        self,
        experiment: Experiment,
        tier: Tier,
        num_networks: int | None,
        seed: int,
        data_dir: str | None,
        networks: Path,
        trained_on: np.ndarray | None = None,
        own: OwnNetwork | None = None,
    ) -> None:
        _check_scenarios(experiment)
        self.experiment = experiment
        self.scenarios = experiment.scenarios
        self.tier = tier
        self.seed = seed
        self.loaded = LoadedExperiment(experiment, data_dir, own)
        self.task = self.loaded.task
        train, tested = self.loaded.splits.train, self.loaded.splits.held_out
        groups = answers.example_groups(self.task, train)
        kept, held_out = validation_split(groups, experiment.validation_share, experiment.split_seed, tested)
        self.held_out = data_lib.take(train, held_out)
        for scenario in self.scenarios:
            check_scenario(scenario, len(held_out))
        self.used = kept if trained_on is None else np.intersect1d(kept, trained_on)  # in the training split
        self.train = data_lib.take(train, self.used)
        key = jax.random.key(seed)
        self.key = jax.random.fold_in(key, 1)
        self.design = ensembles.design(
            jax.random.fold_in(key, 2),
            tier.networks if num_networks is None else num_networks,
            data_lib.size(self.train),
            self._forget_sets(),
        )
        self.ensemble = ensembles.Ensemble(
            self.loaded.model,
            self.loaded.method(experiment.training),
            experiment.training.epochs,
            self.train,
            self.design,
            jax.random.fold_in(key, 3),
            networks,
            self.loaded.training_identity(),
        )
        self._watch(self.held_out if len(held_out) else self.loaded.splits.test)
        self._held: dict[int, tuple[Params, ModelState]] = {}

    def _forget_sets(self) -> list[np.ndarray]:
        """Returns the positions of each forget set in `train`. Each is drawn from what the earlier ones left.

        Positions that a user names count the whole training split.
        """
        left = self.used
        sets = []
        for number, scenario in enumerate(self.scenarios):
            spec = scenario.forget[0].replace("{seed}", str(self.seed))
            share = forget_sets.random_share(spec)
            # A share is one of the whole training set, so it is converted to a share of what is left.
            if share is not None:
                spec = f"random:{share * len(self.used) / len(left)!r}"
            positions = forget_sets.forget_positions(
                spec,
                self.loaded.owners,
                seed=self.seed + 1_000 * number,
                class_names=self.loaded.splits.class_names,
                trained_on=left,
            )
            sets.append(np.searchsorted(self.used, positions))
            left = np.setdiff1d(left, positions)
        return sets

    def _watch(self, outside: Dataset) -> None:
        """Chooses the examples that every network answers. The last ones are from those that no network sees."""
        generator = np.random.default_rng([self.seed, 11])
        most = self.tier.watched

        def draw(positions: np.ndarray, limit: int) -> np.ndarray:
            return generator.permutation(positions)[:limit]

        chosen = [draw(positions, most) for positions in self.design.forget]
        chosen += [draw(self.design.always, most), draw(self.design.halved, 4 * most)]
        held_out_positions = draw(np.arange(data_lib.size(outside)), 2 * most)
        positions = np.concatenate(chosen)
        parts = [data_lib.take(self.train, positions), data_lib.take(outside, held_out_positions)]
        self.watched_examples = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        labels = answers.example_groups(self.task, self.watched_examples)
        ends = np.cumsum([len(drawn) for drawn in (*chosen, held_out_positions)])
        *forget, always, halved, held_out = np.split(np.arange(ends[-1]), ends[:-1])
        self.watched = Watched(
            labels=labels,
            included=self.design.included[:, positions],
            forget_sets=tuple(
                AuditedSet(
                    scenario.name,
                    (ORIGINAL, REFERENCE, *scenario.methods),
                    columns,
                    self._forgets_classes(number),
                )
                for number, (scenario, columns) in enumerate(zip(self.scenarios, forget, strict=True))
            ),
            always=always,
            halved=halved,
            held_out=held_out,
            of_margins=self.task.classifies,
        )

    def _forgets_classes(self, number: int) -> bool:
        """Whether retrained networks have never seen an example of some class of a forget set."""
        if not self.task.classifies:
            return False
        labels = answers.example_groups(self.task, self.train)
        return bool(forget_sets.lost_classes(labels, self.design.forget[number], np.arange(len(labels))).any())

    def data_hashes(self) -> dict[str, str]:
        """Returns hashes of the examples that networks are trained on and answer, which identify the audit."""
        watched = self.watched_examples
        return {
            "training_data_sha256": hashing.tree_sha256(self.train),
            "watched_data_sha256": hashing.tree_sha256(watched),
            **{f"{name}_sha256": value for name, value in self.loaded.data_sha256().items()},
        }

    def targets(self) -> list[AuditTarget]:
        """Returns all networks to measure, in the order of the ensemble, so that each of its networks is read once."""
        targets = []
        for number in range(len(self.scenarios)):
            originals, retrained = self.design.originals(number), self.design.retrained(number)
            targets += [AuditTarget(number, ORIGINAL, int(network)) for network in originals]
            targets += [AuditTarget(number, REFERENCE, int(network)) for network in retrained]
        for number, scenario in enumerate(self.scenarios):
            for label in scenario.methods:
                targets += [AuditTarget(number, label, int(network)) for network in self.design.originals(number)]
        return sorted(targets, key=lambda target: target.network)

    def cell(self, target: AuditTarget) -> ResultCell[AuditCell]:
        """Returns the cell that measures a network."""
        scenario = self.scenarios[target.number]
        return ResultCell(
            {"scenario": scenario.name, "method": target.label, "network": target.network},
            functools.partial(self.measure, target),
            may_diverge=target.label in scenario.methods,
        )

    def data(self, target: AuditTarget) -> Data:
        """Returns the forget set, and as retain set the other examples that the network was trained on."""
        forget = self.design.forget[target.number]
        included = self.design.included[target.network].copy()
        included[forget] = False
        return Data(data_lib.take(self.train, forget), data_lib.take(self.train, np.flatnonzero(included)))

    def is_examined(self, target: AuditTarget) -> bool:
        """Says whether the network is also trained further, probed, and compared with others by its weights."""
        return target.network // 2 < self.tier.examined

    def training_groups(self) -> list[list[int]]:
        """Returns the networks of the ensemble that are missing, in groups that are trained together.

        On an accelerator a group has several networks with the same number of examples, and on a CPU it has one.
        """
        missing = self.ensemble.missing()
        at_once = 1 if jax.default_backend() == "cpu" else _TRAINED_AT_ONCE
        sizes = self.design.included.sum(axis=1)
        alike = [[network for network in missing if sizes[network] == size] for size in np.unique(sizes[missing])]
        return sorted(group[start : start + at_once] for group in alike for start in range(0, len(group), at_once))

    def load(self, network: int) -> tuple[Params, ModelState]:
        """Reads a network of the ensemble. The two most recent ones stay in memory."""
        if network not in self._held:
            self._held = dict(list(self._held.items())[-1:])
            self._held[network] = self.ensemble.load(network)
        return self._held[network]

    def answers(self, network: tuple[Params, ModelState]) -> np.ndarray:
        """Computes the outputs of a network on the watched examples, of shape (N, C) for a classifier.

        Raises:
          InputError: The outputs are no single array.
        """
        found = answers.outputs_of(self.task, self.loaded.model, *network, self.watched_examples)
        if not isinstance(found, np.ndarray):
            raise InputError(f"the network gives a {type(found).__name__} of arrays; an audit takes one array")
        return found

    def measure(self, target: AuditTarget, progress: Progress) -> AuditCell:
        """Makes a network unlearn, if the label names a method, and measures it.

        Args:
          target: The network to measure.
          progress: It is not used, because one network takes little time.

        Raises:
          DivergedError: The method diverged.
        """
        del progress
        network = original = self.load(target.network)
        settings = self.scenarios[target.number].methods.get(target.label)
        data = self.data(target)
        if settings is None:
            seconds, compile_seconds = self.ensemble.description(target.network)["seconds"], None
        else:
            key = jax.random.fold_in(jax.random.fold_in(self.key, target.number), target.network)
            method = self.loaded.method_of(settings, original, self.held_out)
            result = run(method, key, *original, data, num_epochs=settings.epochs)
            network = (result.params, result.model_state)
            seconds, compile_seconds = result.seconds, result.compile_seconds
        logits = self.answers(network)
        sets = {
            name: SetPredictions(logits[columns], data_lib.take(self.watched_examples, columns))
            for name, columns in zip(("forget", "retain", "test"), self._columns(target), strict=True)
        }
        metric = self.task.metrics[0].name
        return AuditCell(
            seconds=seconds,
            compile_seconds=compile_seconds,
            quality={f"{metric}_{name}": answers.quality(self.task, *part) for name, part in sets.items()},
            mia=attack_numbers(sets, seed=self.seed, every_attack=False, task=self.task)["mia"],
            inside=self._examine(target, network, original, data) if self.is_examined(target) else None,
            network=hashing.network_sha256(*network),
            logits=logits,
        )

    def _columns(self, target: AuditTarget) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the watched examples of the forget set and the retain set, and held-out ones of retained classes."""
        watched = self.watched
        own = watched.forget_sets[target.number].columns
        retained = np.setdiff1d(np.flatnonzero(watched.included[target.network]), own)
        known = np.isin(watched.labels[watched.held_out], np.unique(watched.labels[retained]))
        return own, retained, watched.held_out[known]

    def _examine(
        self,
        target: AuditTarget,
        network: tuple[Params, ModelState],
        original: tuple[Params, ModelState],
        data: Data,
    ) -> InsideNumbers:
        """Measures the recovery of a network, a probe of its features, and its distance to other networks."""
        recovered = relearning.recovery(
            self.loaded.model,
            self.loaded.method(self.experiment.relearning),
            jax.random.fold_in(self.key, 1_000_000 + target.network),
            *network,
            data,
            num_epochs=self.tier.recovery_epochs,
            task=self.task,
        )
        # What comes back is how much better the network becomes on the forget set, whatever the metric.
        recovered = recovered if self.task.metrics[0].better == "higher" else [-number for number in recovered]
        probed = self._probe(target, network)
        partner, _ = self.load(int(ensembles.partner(target.network)))
        # For each forget set one network of a pair is the original and the other is retrained.
        first, second = original[0], partner
        if target.label == REFERENCE:
            first, second = partner, self._next_retrained(target)
        return InsideNumbers(
            recovery=recovered,
            probe_forget=probed[0],
            probe_held_out=probed[1],
            distance_original=distances.weight_distance(network[0], first),
            distance_retrained=None if second is None else distances.weight_distance(network[0], second),
        )

    def _probe(
        self, target: AuditTarget, network: tuple[Params, ModelState]
    ) -> tuple[float, float] | tuple[None, None]:
        """Measures how well a linear probe of the features knows the classes of forgotten and of held-out examples.

        It is fitted on retained examples, so of whole classes that were forgotten it can say nothing.
        """
        forget, retain, held_out = self._columns(target)
        labels = self.watched.labels
        of_classes = self.watched.forget_sets[target.number].of_classes
        if not self.task.classifies or of_classes or len(np.unique(labels[retain])) < 2 or not len(held_out):
            return None, None
        inputs = self.task.inputs(self.watched_examples)
        if not probes.has_features(self.loaded.model, *network, inputs):
            return None, None
        features = probes.features(self.loaded.model, *network, inputs)
        known, asked, unseen = ((features[columns], labels[columns]) for columns in (retain, forget, held_out))
        of_forget, of_held_out = probes.linear_probe(*known, asked, unseen)
        return of_forget, of_held_out

    def _next_retrained(self, target: AuditTarget) -> Params | None:
        """Returns the weights of the next network without the same forget set, or None if there is no other."""
        retrained = self.design.retrained(target.number)
        following = int(retrained[(np.searchsorted(retrained, target.network) + 1) % len(retrained)])
        return None if following == target.network else self.load(following)[0]


def _check_scenarios(experiment: Experiment) -> None:
    for scenario in experiment.scenarios:
        if len(scenario.forget) != 1 or scenario.flipped_labels:
            raise InputError(
                f"the scenario {scenario.name!r} has {len(scenario.forget)} forget sets and a share of "
                f"{scenario.flipped_labels:g} wrong labels; an audit takes one forget set and no wrong labels"
            )
        taken = {ORIGINAL, REFERENCE, NULL} & set(scenario.methods)
        if taken:
            raise InputError(
                f"a method of the scenario {scenario.name!r} has the reserved name {taken.pop()}; rename it"
            )
