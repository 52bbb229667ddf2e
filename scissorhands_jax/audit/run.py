"""An audit of unlearning methods: one ensemble, every strong metric, gates that say whether to trust the numbers.

For every forget set half of the networks were trained on it and are unlearned, the others never saw it and are the
oracle (`ensembles.design`). All attacks and distances are computed from what the networks answer on the same watched
examples.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, hashing, report
from scissorhands_jax.audit import ensembles
from scissorhands_jax.base import Data, Dataset, Method, ModelState, Params
from scissorhands_jax.datasets import forget_sets, splits
from scissorhands_jax.errors import InputError, NonFiniteError
from scissorhands_jax.jobs import grid, runs
from scissorhands_jax.jobs.grid import ORIGINAL, RETRAIN, Experiment, Scenario
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.metrics import accuracies, attacks, distances, ensemble_attacks, intervals, probes, relearning
from scissorhands_jax.metrics.ensemble_attacks import Attack
from scissorhands_jax.metrics.intervals import Estimate
from scissorhands_jax.report import METRICS, NULL
from scissorhands_jax.report.gates import Gate, of_attack, trusted
from scissorhands_jax.training.loop import run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tier:
    """How much is spent on evidence."""

    networks: int
    watched: int
    """Examples of each kind that every network answers, at most: each forget set, always retained, held out; of those
    that half of the networks have, four times as many."""
    close_looks: int
    """Networks per method and forget set that are trained on, probed and measured from within."""
    recovery_epochs: int = 2


TIERS: dict[str, Tier] = {
    "smoke": Tier(networks=2, watched=500, close_looks=0),
    "standard": Tier(networks=16, watched=250, close_looks=3),
    "full": Tier(networks=128, watched=500, close_looks=8),
}
"""Smoke is a population attack on one pair of networks, standard every attack with few networks, full with many."""

_SECONDS_PER_RESULTS = 20.0
# Networks that are trained in one compiled program on an accelerator, and kept together.
_AT_ONCE = 16
ATTACKS = ("population", "u_lira", "lira", "rmia")


class Job(NamedTuple):
    """One network to be measured, as what, for which forget set."""

    number: int  # of the scenario
    label: str
    network: int  # of the ensemble: the original, or the retrained network itself


def run_audit(
    experiment: Experiment,
    out: Path,
    *,
    tier: str = "standard",
    num_networks: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    networks: Path | None = None,
    trained_on: np.ndarray | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Audits the methods of an experiment and writes `results.json` and `report.html`, or goes on with it.

    Every scenario of the experiment is a forget set of one specification; shares of `random:` are of the whole training
    set, and later forget sets are drawn from what earlier ones left. A stopped audit goes on where it was when it is
    called again, and one with fewer networks can be made larger.

    Args:
      experiment: data, network, training, and scenarios with their methods.
      out: the folder.
      tier: a key of `TIERS`.
      num_networks: another number than the tier's; even.
      seed: of the forget sets, the inclusion masks and all networks.
      data_dir: the folder of the data set's files.
      networks: where the ensemble is kept and found, to share it between audits; default `out/networks`.
      trained_on: positions in the training split of the only examples that networks may be trained on; None: all. The
        positions of a forget set `indices:FILE` count within these, without the held-out ones.
      overwrite: replace the audit that is there.
      console: for progress; default stderr.

    Returns:
      The document in `results.json`: `rows` (one per network), `evidence`, `gates`, `trusted`.

    Raises:
      InputError: the experiment cannot be audited, or the folder holds something else.
      NonFiniteError: an original or retrained network diverged. A method that diverges is listed under `failures`.
    """
    console = console or Console(stderr=True)
    if tier not in TIERS:
        raise InputError(f"there is no tier {tier!r}; choose one of {', '.join(TIERS)}")
    work = _Audit(experiment, out, TIERS[tier], num_networks, seed, data_dir, networks or out / "networks", trained_on)
    description = {"command": "audit", "tier": tier, "seed": seed, **grid.resolve(experiment), **work.checksums()}
    runs.open_folder(out, description, overwrite=overwrite, resume=True)
    jobs = work.jobs()
    work.announce(jobs, console)
    with progress_bar(console) as progress:
        work.fill(jobs, progress, lambda: report.write_results(out / runs.RESULTS_FILE, work.so_far(tier)))
    document = work.document(tier)
    report.write_results(out / runs.RESULTS_FILE, document)
    report.write_audit(out / "report.html", document)
    report.print_audit(document, console)
    return document


class _Audit:
    """One audit: its data, its ensemble, its cells."""

    def __init__(
        self,
        experiment: Experiment,
        out: Path,
        tier: Tier,
        num_networks: int | None,
        seed: int,
        data_dir: str | None,
        networks: Path,
        trained_on: np.ndarray | None = None,
    ) -> None:
        self.experiment = experiment
        self.out = out
        self.tier = tier
        self.seed = seed
        self.started = time.perf_counter()
        self.built: dict[str, Method] = {}
        self.loaded: dict[int, tuple[Params, ModelState]] = {}
        self.scenarios = experiment.scenarios
        for scenario in self.scenarios:
            if len(scenario.forget) != 1 or scenario.flipped_labels:
                raise InputError(
                    f"an audit takes one forget set per scenario and no wrong labels; {scenario.name!r} has "
                    f"{len(scenario.forget)} and a share of {scenario.flipped_labels:g}"
                )
            taken = {ORIGINAL, RETRAIN, NULL} & set(scenario.methods)
            if taken:
                raise InputError(f"the methods of {scenario.name!r} are named as the references are: {taken.pop()}")
        self.splits = grid.load_splits(experiment, data_dir)
        self.model, self.loss_fn = grid.build(experiment, self.splits)
        kept, held_out = splits.validation_split(
            self.splits.train["label"], experiment.validation_share, experiment.split_seed
        )
        self.train = data_lib.take(self.splits.train, kept if trained_on is None else np.intersect1d(kept, trained_on))
        strangers = data_lib.take(self.splits.train, held_out) if len(held_out) else self.splits.test
        key = jax.random.key(seed)
        self.key = jax.random.fold_in(key, 1)
        self.design = ensembles.design(
            jax.random.fold_in(key, 2),
            tier.networks if num_networks is None else num_networks,
            data_lib.size(self.train),
            self._forget_sets(),
        )
        training = experiment.training
        self.ensemble = ensembles.Ensemble(
            self.model,
            self.method(training),
            training.epochs,
            self.train,
            self.design,
            jax.random.fold_in(key, 3),
            networks,
            {
                name: grid.resolve(experiment)[name]
                for name in ("model", "model_options", "pretrained", "training", "augment")
            }
            | {"classes": len(self.splits.class_names)},
        )
        self._watch(strangers)

    def _forget_sets(self) -> list[np.ndarray]:
        """Positions in the training set, one set after another from what is left."""
        labels = self.train["label"]
        left = np.arange(len(labels))
        sets = []
        for number, scenario in enumerate(self.scenarios):
            spec = scenario.forget[0].format(seed=self.seed)
            kind, _, share = spec.partition(":")
            if kind == "random" and share.replace(".", "", 1).isdigit():
                spec = f"random:{float(share) * len(labels) / len(left)!r}"
            positions = forget_sets.forget_positions(
                spec,
                labels,
                seed=self.seed + 1_000 * number,
                class_names=self.splits.class_names,
                trained_on=left,
            )
            sets.append(positions)
            left = np.setdiff1d(left, positions)
        return sets

    def _watch(self, strangers: Dataset) -> None:
        """Chooses the examples that every network answers."""
        generator = np.random.default_rng([self.seed, 11])
        most = self.tier.watched

        def some(positions: np.ndarray, limit: int) -> np.ndarray:
            return generator.permutation(positions)[:limit]

        chosen = [some(positions, most) for positions in self.design.forget]
        chosen += [some(self.design.always, most), some(self.design.halved, 4 * most)]
        outside = some(np.arange(data_lib.size(strangers)), 2 * most)
        self.watched_positions = np.concatenate(chosen)
        parts = [data_lib.take(self.train, self.watched_positions), data_lib.take(strangers, outside)]
        self.watched = {name: np.concatenate([part[name] for part in parts]) for name in ("image", "label")}
        ends = np.cumsum([len(positions) for positions in (*chosen, outside)])
        *forget, always, halved, held_out = np.split(np.arange(ends[-1]), ends[:-1])
        self.forget_columns, self.always, self.halved, self.held_out = forget, always, halved, held_out

    def checksums(self) -> dict[str, str]:
        """Of the images and labels that networks are trained on and answer: other data make another audit."""
        return {
            "training_data_checksum": hashing.tree_checksum(self.train),
            "watched_data_checksum": hashing.tree_checksum(self.watched),
        }

    def method(self, settings: MethodSettings) -> Method:
        """Built once per settings, so that it compiles once."""
        key = repr(settings)
        if key not in self.built:
            self.built[key] = settings.build(self.model, self.loss_fn, len(self.splits.class_names))
        return self.built[key]

    def included(self, network: int) -> np.ndarray:
        """Which of the watched training examples a network was trained on."""
        return self.design.included[network, self.watched_positions]

    def jobs(self) -> list[Job]:
        """All cells, those of one network after another, so that it is read once."""
        jobs = [
            Job(number, label, int(network))
            for number in range(len(self.scenarios))
            for label, chosen in ((ORIGINAL, self.design.originals(number)), (RETRAIN, self.design.retrained(number)))
            for network in chosen
        ]
        jobs += [
            Job(number, label, int(network))
            for number, scenario in enumerate(self.scenarios)
            for label in scenario.methods
            for network in self.design.originals(number)
        ]
        return sorted(jobs, key=lambda job: job.network)

    def load(self, network: int) -> tuple[Params, ModelState]:
        """A network of the ensemble; the two that were asked for last stay in memory."""
        if network not in self.loaded:
            self.loaded = dict(list(self.loaded.items())[-1:])
            self.loaded[network] = self.ensemble.load(network)
        return self.loaded[network]

    def cell_file(self, job: Job) -> Path:
        """Where a cell is kept."""
        name = f"{grid.slug(self.scenarios[job.number].name)}-{grid.slug(job.label)}-{job.network:03d}"
        return self.out / "cells" / f"{name}.npz"

    def data(self, job: Job) -> Data:
        """The forget set, and what else the network was trained on."""
        included = self.design.included[job.network].copy()
        included[self.design.forget[job.number]] = False
        forget = data_lib.take(self.train, self.design.forget[job.number])
        return Data(forget, data_lib.take(self.train, np.flatnonzero(included)))

    def announce(self, jobs: Sequence[Job], console: Console) -> None:
        """Says what the audit will cost, from one epoch of everything that is still to be done."""
        missing = self.ensemble.missing()
        waiting = [job for job in jobs if not self.cell_file(job).exists()]
        if not missing and not waiting:
            return
        data = self.data(Job(0, "", int(self.design.originals(0)[0])))
        everything = Data(None, jax.tree.map(lambda *parts: np.concatenate(parts), *data))
        training = self.experiment.training
        training_one, network = self._cost(training, (None, None), everything)
        seconds = len(missing) * training_one
        for _ in range(2):
            started = time.perf_counter()
            accuracies.predict(self.model, *network, self.watched["image"], batch_size=500)
            looking = time.perf_counter() - started
        seconds += len(waiting) * looking
        costs: dict[str, float] = {}
        for job in waiting:
            settings = self.scenarios[job.number].methods.get(job.label)
            if settings is not None:
                if repr(settings) not in costs:
                    costs[repr(settings)], _ = self._cost(settings, network, data)
                seconds += costs[repr(settings)]
        looks = sum(self._is_looked_into(job) for job in waiting)
        seconds += looks * self.tier.recovery_epochs * training_one / max(1, training.epochs)
        size = ensembles.disk_bytes(self.model, len(missing))
        size += 4 * len(waiting) * len(self.watched["label"]) * len(self.splits.class_names)
        console.print(
            f"{len(missing)} networks to train and {len(waiting)} to unlearn or measure: about {_duration(seconds)} on "
            f"this machine and {size / 1e6:,.0f} MB of disk, estimated from one epoch of each",
            highlight=False,
            soft_wrap=True,
        )

    def _cost(
        self, settings: MethodSettings, network: tuple[Params, ModelState], data: Data
    ) -> tuple[float, tuple[Params, ModelState]]:
        """Seconds that a method takes, from its beginning and one epoch after a rehearsal that compiles."""
        method, key = self.method(settings), jax.random.key(0)
        epochs = min(1, settings.epochs)
        try:
            first = run(method, key, *network, data, num_epochs=epochs)
            beginning = run(method, key, *network, data, num_epochs=0).seconds
            once = run(method, key, *network, data, num_epochs=epochs).seconds
        except NonFiniteError:  # on a network that has hardly been trained
            return 0.0, network
        return beginning + settings.epochs * max(0.0, once - beginning), (first.params, first.model_state)

    def _is_looked_into(self, job: Job) -> bool:
        return job.network // 2 < self.tier.close_looks

    def fill(self, jobs: Sequence[Job], progress: Progress, keep: Callable[[], None]) -> None:
        """Trains, unlearns and measures whatever is not there yet; now and then `keep` is called."""
        missing = self.ensemble.missing()
        total = len(self.ensemble)
        task = progress.add_task("networks", total=total, completed=total - len(missing), note="")
        for group in self._groups(missing):
            self.ensemble.make(group, how="auto" if len(group) > 1 else "turns")
            progress.advance(task, len(group))
        waiting = [job for job in jobs if not self.cell_file(job).exists()]
        task = progress.add_task("", total=len(jobs), completed=len(jobs) - len(waiting), note="")
        kept = 0.0
        for job in waiting:
            progress.update(task, description=f"{self.scenarios[job.number].name}: {job.label}")
            self._make(job)
            if time.perf_counter() - kept > _SECONDS_PER_RESULTS:
                keep()
                kept = time.perf_counter()
            progress.advance(task)

    def _groups(self, missing: list[int]) -> list[list[int]]:
        """Networks to train in one go: on accelerators several with equally many examples, else each by itself."""
        at_once = 1 if jax.default_backend() == "cpu" else _AT_ONCE
        sizes = self.design.included.sum(axis=1)
        alike = [[network for network in missing if sizes[network] == size] for size in np.unique(sizes[missing])]
        return sorted(group[start : start + at_once] for group in alike for start in range(0, len(group), at_once))

    def _make(self, job: Job) -> None:
        """One cell."""
        original = self.load(job.network)
        scenario = self.scenarios[job.number]
        data = self.data(job)
        numbers: dict[str, Any] = {"seconds": None, "compile_seconds": None}
        network = original
        if job.label in scenario.methods:
            settings = scenario.methods[job.label]
            key = jax.random.fold_in(jax.random.fold_in(self.key, job.number), job.network)
            try:
                result = run(self.method(settings), key, *original, data, num_epochs=settings.epochs)
            except NonFiniteError as error:
                self._write(job, {"failure": str(error)}, None)
                return
            network = (result.params, result.model_state)
            numbers = {"seconds": result.seconds, "compile_seconds": result.compile_seconds}
        else:
            numbers["seconds"] = self.ensemble.description(job.network)["seconds"]
        logits = accuracies.predict(self.model, *network, self.watched["image"], batch_size=500)
        numbers |= self._usual(job, logits)
        if self._is_looked_into(job):
            numbers |= self._look_into(job, network, original, data)
        numbers["network"] = hashing.tree_checksum(network)
        self._write(job, numbers, logits)

    def _write(self, job: Job, numbers: dict[str, Any], logits: np.ndarray | None) -> None:
        buffer = io.BytesIO()
        held = {} if logits is None else {"logits": logits}
        np.savez(buffer, numbers=np.frombuffer(json.dumps(numbers).encode(), np.uint8), **held)
        files.write_bytes(self.cell_file(job), buffer.getvalue())

    def _columns(self, job: Job) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Watched examples of the forget set, of what the network was to retain, and held out, of the same classes."""
        own = self.forget_columns[job.number]
        trained = np.flatnonzero(self.included(job.network))
        retained = np.setdiff1d(trained, own)
        known = np.isin(self.watched["label"][self.held_out], np.unique(self.watched["label"][retained]))
        return own, retained, self.held_out[known]

    def _usual(self, job: Job, logits: np.ndarray) -> dict[str, float]:
        """The paper's numbers, on watched examples."""
        parts = self._columns(job)
        label = self.watched["label"]
        numbers = {
            f"acc_{name}": accuracies.accuracy(logits[columns], label[columns])
            for name, columns in zip(("forget", "retain", "test"), parts, strict=True)
        }
        forget, retain, held_out = ((logits[columns], label[columns]) for columns in parts)
        numbers["mia"] = attacks.paper_mia(*retain, *held_out, *forget, seed=self.seed)
        return numbers

    def _look_into(
        self, job: Job, network: tuple[Params, ModelState], original: tuple[Params, ModelState], data: Data
    ) -> dict[str, Any]:
        """What takes the network itself: recovery, a probe of its features, its place among the weights."""
        settings = self.experiment.relearning
        curve = relearning.recovery(
            self.model,
            self.method(settings),
            jax.random.fold_in(self.key, 1_000_000 + job.network),
            *network,
            data,
            num_epochs=self.tier.recovery_epochs,
        )
        read = probes.features(self.model, *network, self.watched["image"])
        label = self.watched["label"]
        forget, retain, held_out = self._columns(job)
        asked = ((read[columns], label[columns]) for columns in (forget, held_out))
        found = probes.linear_probe(read[retain], label[retain], *asked)
        numbers = {"recovery": curve, "probe": dict(zip(("forget", "held_out"), found, strict=True))}
        partner, _ = self.load(int(ensembles.partner(job.network)))
        if job.label != RETRAIN:
            numbers["distance_original"] = distances.weight_distance(network[0], original[0])
            numbers["distance_retrained"] = distances.weight_distance(network[0], partner)
            return numbers
        # A retrained network is held against the original of its pair, and against the next one that was retrained.
        numbers["distance_original"] = distances.weight_distance(network[0], partner)
        retrained = self.design.retrained(job.number)
        following = int(retrained[(np.searchsorted(retrained, job.network) + 1) % len(retrained)])
        if following != job.network:
            numbers["distance_retrained"] = distances.weight_distance(network[0], self.load(following)[0])
        return numbers

    def read(self, job: Job) -> tuple[dict[str, Any], np.ndarray | None] | None:
        """A cell's numbers and the margins on watched examples; None where it is not there."""
        if not self.cell_file(job).exists():
            return None
        with np.load(self.cell_file(job)) as held:
            numbers = json.loads(held["numbers"].tobytes().decode())
            if "logits" not in held:
                return numbers, None
            return numbers, ensemble_attacks.margins(held["logits"], self.watched["label"])

    def document(self, tier: str) -> dict[str, Any]:
        """All that was measured, and what it says."""
        cells = {job: cell for job in self.jobs() if (cell := self.read(job)) is not None}
        rows, failures = self._rows(cells)
        analysis = _Analysis(self, cells)
        entries = analysis.entries()
        gates = analysis.gates({entry["metric"] for entry in entries})
        gates += analysis.distance_gates(entries)
        return self._document(tier, rows, failures, entries, gates, {"klom_bins": analysis.bins})

    def so_far(self, tier: str) -> dict[str, Any]:
        """The rows of an audit that is not done, which says nothing yet: it has no evidence and no gates."""
        cells = {job: cell for job in self.jobs() if (cell := self.read(job)) is not None}
        return self._document(tier, *self._rows(cells), [], [], {})

    def _rows(
        self, cells: Mapping[Job, tuple[dict[str, Any], np.ndarray | None]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """One row per network that was measured, and the methods that diverged."""
        rows, failures = [], []
        for job, (numbers, scores) in cells.items():
            place = {"scenario": self.scenarios[job.number].name, "method": job.label, "seed": job.network // 2}
            if scores is None:
                failures.append({**place, **numbers})
                continue
            shown = ("acc_forget", "acc_retain", "acc_test", "mia")
            rows.append(
                place
                | {name: numbers[name] for name in shown}
                | {"avg_gap": None, "seconds": numbers["seconds"], "rte": None, "network": numbers["network"]}
            )
        places = {(s.name, label): (n, i) for n, s in enumerate(self.scenarios) for i, label in enumerate(_labels(s))}
        rows.sort(key=lambda row: (places[row["scenario"], row["method"]], row["seed"]))
        return rows, failures

    def _document(
        self,
        tier: str,
        rows: Sequence[dict[str, Any]],
        failures: Sequence[dict[str, Any]],
        entries: Sequence[dict[str, Any]],
        gates: Sequence[Gate],
        more: Mapping[str, Any],
    ) -> dict[str, Any]:
        return {
            "rows": report.with_gaps(rows),
            "evidence": entries,
            "gates": [gate._asdict() | {"estimate": _as_dict(gate.estimate)} for gate in gates],
            "trusted": trusted(gates),
            "failures": failures,
            "data": self.checksums(),
            "ensemble": {
                "networks": len(self.ensemble),
                "networks_per_side": len(self.ensemble) // 2,
                "examples": data_lib.size(self.train),
                "always": len(self.design.always),
                "halved": len(self.design.halved),
                "forget": [len(positions) for positions in self.design.forget],
                "forget_sha256": [hashing.positions_sha256(positions) for positions in self.design.forget],
                "masks_sha256": hashing.sha256(np.packbits(self.design.included).tobytes()),
                **more,
            },
            "config": {
                "experiment": self.experiment.name,
                "tier": tier,
                "seed": self.seed,
                **grid.resolve(self.experiment),
            },
            "seconds": time.perf_counter() - self.started,
            **report.environment(),
        }


def _labels(scenario: Scenario) -> list[str]:
    return [ORIGINAL, RETRAIN, *scenario.methods]


def _as_dict(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate._asdict()


class _Analysis:
    """The statistics of an audit, from its cells alone."""

    def __init__(self, audit: _Audit, cells: Mapping[Job, tuple[dict[str, Any], np.ndarray | None]]) -> None:
        self.audit = audit
        self.cells = cells
        self.pairs = len(audit.ensemble) // 2
        # As published with 100 networks and more; with fewer most bins would be empty.
        self.bins = 20 if self.pairs >= 100 else max(4, min(20, self.pairs // 5))
        self.references = self._scores(RETRAIN, 0) | self._scores(ORIGINAL, 0)
        self.over_networks = self.pairs > 2

    def _scores(self, label: str, number: int) -> dict[int, np.ndarray]:
        """Margins by network."""
        return {
            job.network: scores
            for job, (_, scores) in self.cells.items()
            if job.label == label and job.number == number and scores is not None
        }

    def _by_pair(self, label: str, number: int) -> dict[int, np.ndarray]:
        """Margins by pair, of which one network is an original and the other retrained."""
        return {network // 2: scores for network, scores in sorted(self._scores(label, number).items())}

    def entries(self) -> list[dict[str, Any]]:
        """Every metric of every method on every forget set, and its mean over forget sets."""
        entries = []
        found: dict[tuple[str, str], list[Estimate]] = {}
        for number, scenario in enumerate(self.audit.scenarios):
            for label in (*_labels(scenario), NULL):
                for metric, estimate in self.measure(label, number).items():
                    found.setdefault((label, metric), []).append(estimate)
                    entries.append({"scenario": scenario.name, "method": label, "metric": metric, **estimate._asdict()})
        for (label, metric), estimates in found.items():
            mean = intervals.average(estimates, _bounds(metric))
            entries.append({"scenario": None, "method": label, "metric": metric, **mean._asdict()})
        return entries

    def measure(self, label: str, number: int) -> dict[str, Estimate]:
        """All metrics that there are networks for, of one method on one forget set."""
        estimates = self.attacks(label, number)
        if label != NULL:
            estimates |= self._inside(label, number)
        if label != RETRAIN:
            estimates |= self._distances(label, number)
        return estimates

    def attacks(
        self,
        label: str,
        number: int,
        level: float = 0.95,
        rates: Sequence[float] = ensemble_attacks.FALSE_POSITIVE_RATES,
    ) -> dict[str, Estimate]:
        """The attacks alone, with intervals of some coverage."""
        estimates: dict[str, Estimate] = {}
        if label != NULL:
            estimates |= self._within(label, number, level, rates)
        if label != RETRAIN:
            estimates |= self._u_lira(label, number, level, rates)
        return estimates

    def _sides(self, label: str, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores of networks in question and of retrained ones, as many of both, in pairs; None if fewer than three."""
        if label == NULL:
            return self._halves(label, number)
        retrained, held = self._by_pair(RETRAIN, number), self._by_pair(label, number)
        pairs = sorted(set(held) & set(retrained))
        if len(pairs) < 3:
            return None
        return np.stack([held[pair] for pair in pairs]), np.stack([retrained[pair] for pair in pairs])

    def _u_lira(self, label: str, number: int, level: float, rates: Sequence[float]) -> dict[str, Estimate]:
        """Unlearned against retrained networks, on the forget set and on held-out examples."""
        sides = self._sides(label, number)
        if sides is None:
            return {}
        own, control = (
            tuple(side[:, columns] for side in sides)
            for columns in (self.audit.forget_columns[number], self.audit.held_out)
        )
        attack, controlled = ensemble_attacks.u_lira(*own, control)
        estimates = _named(
            "u_lira", ensemble_attacks.attack_estimates(attack, cross_validated=True, rates=rates, level=level)
        )
        found = ensemble_attacks.attack_estimates(controlled, cross_validated=True, rates=(), level=level)
        estimates["u_lira_held_out_auc"] = found["auc"]
        return estimates

    def _distances(self, label: str, number: int) -> dict[str, Estimate]:
        """KLoM on every part, and the forgetting score; with all networks, and with as few as NULL has."""
        all_sides, halves = self._sides(label, number), self._halves(label, number)
        estimates: dict[str, Estimate] = {}
        # Of NULL there is the second only: half of the retrained networks against the other half.
        if all_sides is not None and label != NULL:
            estimates |= self._compare(all_sides, number)
        if halves is not None:
            estimates |= {f"{name}_halves": found for name, found in self._compare(halves, number).items()}
        return estimates

    def _halves(self, label: str, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores of networks in question of the first half of the pairs, and of retrained ones of the second half."""
        retrained = self._by_pair(RETRAIN, number)
        held = retrained if label == NULL else self._by_pair(label, number)
        pairs = sorted(retrained)
        half = len(pairs) // 2
        mine, theirs = [pair for pair in pairs[:half] if pair in held], pairs[half : 2 * half]
        if len(mine) < 3:
            return None
        return np.stack([held[pair] for pair in mine]), np.stack([retrained[pair] for pair in theirs])

    def _compare(self, sides: tuple[np.ndarray, np.ndarray], number: int) -> dict[str, Estimate]:
        """The distances between two sets of networks."""

        def worst(unlearned: np.ndarray, retrained: np.ndarray) -> float:
            return float(np.percentile(ensemble_attacks.klom(unlearned, retrained, bins=self.bins), 95))

        own = self.audit.forget_columns[number]
        cases = [("klom_forget", worst, own), ("klom_retain", worst, self.audit.always)]
        cases += [
            ("klom_held_out", worst, self.audit.held_out),
            ("forgetting_score", ensemble_attacks.forgetting_score, own),
        ]
        return {
            name: intervals.two_way_bootstrap(statistic, *(side[:, columns] for side in sides), bounds=_bounds(name))
            for name, statistic, columns in cases
            if len(columns)
        }

    def _within(self, label: str, number: int, level: float, rates: Sequence[float]) -> dict[str, Estimate]:
        """Attacks on single networks: can the forget set be told from what was never seen?"""
        scores = self._scores(label, number)
        if not scores:
            return {}
        audit = self.audit
        own = audit.forget_columns[number]
        label_of = audit.watched["label"]
        strangers = audit.held_out[np.isin(label_of[audit.held_out], np.unique(label_of[own]))]
        estimates: dict[str, Estimate] = {}
        if len(strangers):
            rows = list(scores.values())
            attack = Attack(np.stack([row[own] for row in rows]), np.stack([row[strangers] for row in rows]))
            found = ensemble_attacks.attack_estimates(attack, over_networks=self.over_networks, rates=(), level=level)
            estimates["population_auc"] = found["auc"]
        # Whole classes have no strangers that references could be trained on.
        spec = audit.scenarios[number].forget[0]
        if self.pairs < 3 or forget_sets.forgets_classes(spec) or len(self.references) < 2 * self.pairs:
            return estimates
        tried: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"lira": [], "rmia": []}
        for network, row in scores.items():
            own_halved = audit.halved[~audit.included(network)[audit.halved]]
            # Of those that this network has not seen, some are attacked and the others are RMIA's population.
            population, negatives = own_halved[: len(own_halved) // 2], own_halved[len(own_halved) // 2 :]
            others = [other for other in sorted(self.references) if other // 2 != network // 2]
            columns = np.concatenate([own, negatives, population])
            references = np.stack([self.references[other][columns] for other in others])
            member = np.stack([audit.included(other)[columns] for other in others])
            guesses = {
                "lira": ensemble_attacks.log_ratio(row[columns], references, member),
                "rmia": ensemble_attacks.rmia(
                    row[columns], references, np.arange(len(own) + len(negatives), len(columns))
                ),
            }
            for name, guess in guesses.items():
                tried[name].append((guess[: len(own)], guess[len(own) : len(own) + len(negatives)]))
        for name, guesses in tried.items():
            shortest = min(len(negatives) for _, negatives in guesses)
            positives = np.stack([mine for mine, _ in guesses])
            attack = Attack(positives, np.stack([theirs[:shortest] for _, theirs in guesses]))
            estimates |= _named(name, ensemble_attacks.attack_estimates(attack, rates=rates, level=level))
        return estimates

    def _inside(self, label: str, number: int) -> dict[str, Estimate]:
        """Means of what was measured in single networks."""
        looked = [
            numbers
            for job, (numbers, _) in self.cells.items()
            if job.label == label and job.number == number and "recovery" in numbers
        ]
        if not looked:
            return {}
        values = {
            "recovered": [numbers["recovery"][-1] - numbers["recovery"][0] for numbers in looked],
            "probe_gap": [numbers["probe"]["forget"] - numbers["probe"]["held_out"] for numbers in looked],
        } | {
            name: [numbers[name] for numbers in looked if name in numbers]
            for name in ("distance_original", "distance_retrained")
        }
        return {name: intervals.mean_estimate(found) for name, found in values.items() if found}

    def gates(self, reported: Collection[str]) -> list[Gate]:
        """Whether each attack is silent on retrained networks and finds the original, on average over forget sets.

        The intervals together have a coverage of 95 %: a sound audit fails a null gate once in twenty.

        Args:
          reported: metrics that the audit has numbers of.
        """
        numbers = range(len(self.audit.scenarios))
        level = 1 - 0.05 / len(ATTACKS)
        found: dict[str, list[dict[str, Estimate]]] = {
            label: [self.attacks(label, number, level, rates=()) for number in numbers]
            for label in (RETRAIN, ORIGINAL, NULL)
        }
        gates = []
        for attack in ATTACKS:
            metric = f"{attack}_auc"
            # U-LiRA compares ensembles, so that its null needs two of retrained networks.
            silent = NULL if attack == "u_lira" else RETRAIN
            for label, name in ((silent, "retrained is not told from retrained"), (ORIGINAL, "the original is caught")):
                estimates = [one[metric] for one in found[label] if metric in one]
                gates.append(
                    of_attack(name, metric, label == ORIGINAL, estimates)._replace(reported=metric in reported)
                )
        return gates

    def distance_gates(self, entries: Sequence[Mapping[str, Any]]) -> list[Gate]:
        """Whether the original is farther from retrained networks than these are from each other, as many of each.

        A distance that fails says nothing at this number of networks, and is no evidence; the attacks stand.

        Args:
          entries: of `entries`.
        """
        means = {(entry["method"], entry["metric"]): entry for entry in entries if entry["scenario"] is None}
        gates = []
        for metric in ("klom_forget_halves", "forgetting_score_halves"):
            title, name = METRICS[metric][0], "the original is farther off than retrained from retrained"
            original, null = means.get((ORIGINAL, metric)), means.get((NULL, metric))
            reported = any(shown.startswith(metric.removesuffix("_halves")) for _, shown in means)
            if original is None or null is None:
                gate = Gate(name, None, f"{title} takes more networks", metric, None, reported, False)
            else:
                is_score = metric.startswith("forgetting")
                passed = original["value"] < null["low"] if is_score else original["value"] > null["high"]
                why = (
                    f"{title} {original['value']:.3f}, must lie {'below' if is_score else 'above'} the interval "
                    f"[{null['low']:.3f}, {null['high']:.3f}] of {NULL}: "
                    + ("it does" if passed else "with so few networks it says nothing")
                )
                found = Estimate(**{field: original[field] for field in Estimate._fields})
                gate = Gate(name, passed, why, metric, found, reported, False)
            gates.append(gate)
        return gates


def _named(attack: str, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {f"{attack}_{name}": estimate for name, estimate in estimates.items()}


def _bounds(metric: str) -> tuple[float, float]:
    if metric.startswith("klom") or metric.startswith("distance"):
        return 0.0, np.inf
    if metric in ("recovered", "probe_gap"):
        return -100.0, 100.0
    return 0.0, 1.0


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
