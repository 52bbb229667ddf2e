"""The statistics of an audit: all attacks and distances with their intervals, and the gates of the audit.

They are computed from the answers of all networks to the same watched examples, with one column per example.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scissorhands_jax.metrics import ensemble_attacks, ensemble_distances, two_way
from scissorhands_jax.metrics.ensemble_attacks import Attack
from scissorhands_jax.metrics.intervals import UNBOUNDED, Estimate
from scissorhands_jax.metrics.two_way import Influence
from scissorhands_jax.report import NULL, ORIGINAL, REFERENCE
from scissorhands_jax.report.gates import CAUGHT, SILENT, Gate, of_attack, of_distance

AUDIT_ATTACKS = ("population", "u_lira", "lira", "rmia")
"""The attacks that have gates. The names of their metrics begin with these words."""

GATE_LEVEL = 1 - 0.05 / len(AUDIT_ATTACKS)
"""The level of the interval in the gate of an attack, so that a sound audit fails one of the four null gates about one
time in twenty at most."""

LEAST_FOR_KLOM = 40
"""The least number of examples of which an audit measures KLoM, which is a 95th percentile over examples."""
LEAST_FOR_SCORES = 10
"""The least number of examples of which an audit measures the forgetting score, which is a mean. With fewer examples,
intervals of either miss the mean of audits far more often than they say."""

LEAST_FOR_KLOM_INTERVAL = 8
"""The least number of networks of each kind of which KLoM has an interval, as many as an audit of 16 networks has. With
four, 95 % intervals hold the mean of audits in 64 to 92 % (`docs/explanations/gates-and-intervals.md`)."""

_GATED_DISTANCES = ("klom_forget_halves", "forgetting_score_halves")


@dataclasses.dataclass(frozen=True)
class AuditedSet:
    """One forget set of an audit."""

    name: str
    """The name of its scenario."""
    labels: tuple[str, ...]
    """The labels of all that is measured on it: `ORIGINAL`, `REFERENCE` and the methods."""
    columns: np.ndarray
    """The columns of its watched examples."""
    of_classes: bool
    """Whether it consists of whole classes, so that retrained networks have never seen an example of these classes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """The watched examples, which are the columns of all scores. Those of training examples come first."""

    labels: np.ndarray
    """The true classes, or zeros if it is no classifier. Integers, shape=(N,)"""
    included: np.ndarray
    """Whether each network was trained on each training example. shape=(networks, training columns), dtype=bool"""
    forget_sets: tuple[AuditedSet, ...]
    always: np.ndarray
    """The columns of examples that every network was trained on."""
    halved: np.ndarray
    """The columns of examples outside the forget sets that half of the networks were trained on."""
    held_out: np.ndarray
    """The columns of examples that no network was trained on."""
    of_margins: bool = True
    """Whether scores are margins of a classifier. Those of any other task are negative losses, whose unit is its own,
    so that no number that depends on it is made of them: RMIA's probabilities, and where KLoM cuts margins off."""


@dataclasses.dataclass(frozen=True)
class InsideNumbers:
    """Numbers of one network that take more than its answers: its weights, its features, or further training."""

    recovery: list[float]
    """The accuracy on the forget set, in percent, before further training on the retain set and after each epoch; of
    another task its first metric, negative if lower is better."""
    probe_forget: float | None
    """The accuracy of a linear probe of the features on the forget set, in percent. None if it is no classifier, or one
    without a linen `Dense` layer or of several inputs, or if whole classes are forgotten."""
    probe_held_out: float | None
    """The accuracy of that probe on held-out examples, in percent. None as above."""
    distance_original: float
    """The distance of the weights to those of the original, relative to the norm of the original's."""
    distance_retrained: float | None
    """The distance of the weights to those of a retrained network, relative to the norm of these. None if there is no
    other retrained network."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The answers of one network to the watched examples."""

    number: int
    """The number of the forget set."""
    label: str
    """The method that made the network, or `ORIGINAL` or `REFERENCE`."""
    network: int
    """The number of the network in the ensemble, or that of the original that was made to forget."""
    margins: np.ndarray
    """How sure the network is of each watched example: the margin (`ensemble_attacks.margins`), or for another task the
    negative loss. shape=(N,), dtype=float64"""
    inside: InsideNumbers | None = None
    """Further numbers of the network, or None if it was not examined."""


class MetricEstimate(NamedTuple):
    """A metric of one method on the forget set of one scenario.

    If the scenario is None, it is the mean over all forget sets of the method on which the metric was measured: LiRA is
    not on whole classes, for instance. The entries that have a scenario say which these are.
    """

    scenario: str | None
    method: str
    metric: str
    estimate: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Returns the entry of `results.json`."""
        place = {"scenario": self.scenario, "method": self.method, "metric": self.metric}
        return {**place, **self.estimate._asdict()}


class _PairedScores(NamedTuple):
    """The scores of the networks in question and of retrained networks, in pairs. Both have shape (networks, N)."""

    unlearned: np.ndarray
    retrained: np.ndarray
    pairs: np.ndarray  # shape=(networks,): the number of each pair

    def on(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.unlearned[:, columns], self.retrained[:, columns]


class Analysis:
    """The statistics of one audit.

    Args:
      watched: The examples that are the columns.
      measurements: All networks that were measured. Those of the ensemble itself have the labels `ORIGINAL` and
        `REFERENCE`.
      all_intervals: Whether KLoM of fewer than `LEAST_FOR_KLOM_INTERVAL` networks has an interval too, for simulations
        that show how little it holds. Otherwise its `low` and `high` are its value.
    """

    def __init__(self, watched: Watched, measurements: Sequence[Measurement], *, all_intervals: bool = False) -> None:
        self.all_intervals = all_intervals
        self.watched = watched
        self.measurements = measurements
        self.pairs = len(watched.included) // 2
        self.klom_bins = klom_bins(self.pairs)
        self._references = self._scores(REFERENCE, 0) | self._scores(ORIGINAL, 0)

    def _of(self, label: str, number: int) -> list[Measurement]:
        return [one for one in self.measurements if one.label == label and one.number == number]

    def _scores(self, label: str, number: int) -> dict[int, np.ndarray]:
        """Returns the margins by network."""
        return {one.network: one.margins for one in self._of(label, number)}

    def _by_pair(self, label: str, number: int) -> dict[int, np.ndarray]:
        """Returns the margins by pair. One network of a pair is an original and the other is retrained."""
        return {network // 2: margins for network, margins in sorted(self._scores(label, number).items())}

    def estimates(self) -> list[MetricEstimate]:
        """Estimates every metric of every method on every forget set, and then its mean over the forget sets."""
        entries, means, _ = self._found
        return [*entries, *means]

    @functools.cached_property
    def _found(self) -> tuple[list[MetricEstimate], list[MetricEstimate], dict[tuple[str, str], Influence]]:
        """Returns the estimates of each forget set, those of their means, and the means that gates are about."""
        sets = self.watched.forget_sets
        entries: dict[str, list[MetricEstimate]] = {forget_set.name: [] for forget_set in sets}
        means, gated = [], {}
        for label in dict.fromkeys([*(label for one in sets for label in one.labels), NULL]):
            found: dict[str, list[Influence]] = {}
            for number, forget_set in enumerate(sets):
                if label == NULL or label in forget_set.labels:
                    for metric, influence in self._measure(label, number).items():
                        found.setdefault(metric, []).append(influence)
                        entries[forget_set.name].append(self._entry(forget_set.name, label, metric, influence))
            for metric, parts in found.items():
                mean = two_way.average(parts)
                means.append(self._entry(None, label, metric, mean))
                if label in (ORIGINAL, REFERENCE, NULL) and (metric.endswith("_auc") or metric in _GATED_DISTANCES):
                    gated[label, metric] = mean
        return [entry for found_here in entries.values() for entry in found_here], means, gated

    def _measure(self, label: str, number: int) -> dict[str, Influence]:
        """Measures all metrics of one method on one forget set for which there are enough networks."""
        found: dict[str, Influence] = {}
        if label != NULL:
            found |= self._population(label, number) | self._reference_attacks(label, number)
        if label != REFERENCE:
            found |= self._u_lira(label, number)
        if label != NULL:
            found |= self._inside(label, number)
        if label != REFERENCE:
            found |= self._distances(label, number)
        return found

    def _population(self, label: str, number: int) -> dict[str, Influence]:
        """Attacks single networks without references: margins must separate the forget set from held-out examples.

        They are compared within classes, because some classes are easier than others in every network.
        """
        own, held_out = self.watched.forget_sets[number].columns, self.watched.held_out
        scores = self._by_pair(label, number)
        if not scores:
            return {}
        attack = Attack(*(np.stack([row[columns] for row in scores.values()]) for columns in (own, held_out)))
        pairs, labels = np.array(list(scores)), self.watched.labels
        found = two_way.stratified_area(attack, own, held_out, labels, pairs=pairs, over_networks=len(scores) > 2)
        return {} if found is None else {"population_auc": found}

    def _not_compared(self) -> str:
        """Says of how many forget examples the population attack says nothing, as the rest of a sentence."""
        labels, sets = self.watched.labels, self.watched.forget_sets
        held_out = labels[self.watched.held_out]
        outside = sum(int((~two_way.comparable(labels[one.columns], held_out)).sum()) for one in sets)
        if not outside:
            return ""
        total = sum(len(one.columns) for one in sets)
        return (
            f"; {outside} of {total} forget examples have fewer than two held-out ones of their class and are left out"
        )

    def _reference_attacks(self, label: str, number: int) -> dict[str, Influence]:
        """Attacks single networks by LiRA and RMIA, with the other networks of the ensemble as references."""
        forget_set, halved = self.watched.forget_sets[number], self.watched.halved
        scores = self._scores(label, number)
        # If whole classes are forgotten, half of the references have never seen such a class, and their answers would
        # reveal the class and not the example.
        if not scores or self.pairs < 3 or forget_set.of_classes or len(self._references) < 2 * self.pairs:
            return {}
        own = forget_set.columns
        references = np.stack([self._references[other] for other in range(2 * self.pairs)])
        rows = np.array([network // 2 for network in scores])
        # Of the examples that a network has not seen, one half is attacked and one half is the population of RMIA.
        unseen = {network: halved[~self.watched.included[network][halved]] for network in scores}
        shortest = min(len(columns) - len(columns) // 2 for columns in unseen.values())
        negatives = np.stack([columns[len(columns) // 2 :][:shortest] for columns in unseen.values()])
        found: dict[str, list[np.ndarray]] = {"lira": [], **({"rmia": []} if self.watched.of_margins else {})}
        for (network, row), others in zip(scores.items(), negatives, strict=True):
            attacked = np.concatenate([own, others])
            columns = np.concatenate([attacked, unseen[network][: len(unseen[network]) // 2]])
            kept = ensemble_attacks.leave_out(np.arange(2 * self.pairs) // 2, network // 2)
            member = self.watched.included[: 2 * self.pairs, columns]
            population = np.arange(len(attacked), len(columns))
            arguments = row[columns], references[:, columns]
            found["lira"].append(ensemble_attacks.log_ratio(*arguments, member, kept)[:, : len(attacked)])
            if self.watched.of_margins:
                found["rmia"].append(ensemble_attacks.rmia(*arguments, population, kept)[:, : len(attacked)])
        influences: dict[str, Influence] = {}
        for name, parts in found.items():
            positives, others = np.split(np.stack(parts), [len(own)], axis=2)
            attack = Attack(positives[:, 0], others[:, 0], positives[:, 1:], others[:, 1:])
            influences |= _named(
                name,
                two_way.attack_influences(
                    attack, own, negatives, rows=rows, pairs=np.arange(self.pairs), over_networks=len(rows) > 2
                ),
            )
        return influences

    def _u_lira(self, label: str, number: int) -> dict[str, Influence]:
        """Attacks unlearned against retrained networks, on the forget set and on held-out examples."""
        scores = self._all_pairs(label, number)
        if scores is None:
            return {}
        own, held_out = self.watched.forget_sets[number].columns, self.watched.held_out
        attack, controlled = ensemble_attacks.u_lira(*scores.on(own), scores.on(held_out))
        found = _named("u_lira", two_way.attack_influences(attack, own, own, pairs=scores.pairs))
        control = two_way.attack_influences(controlled, held_out, held_out, pairs=scores.pairs, rates=())
        return {**found, "u_lira_held_out_auc": control["auc"]}

    def _all_pairs(self, label: str, number: int) -> _PairedScores | None:
        """Returns the scores of all pairs: of the network in question and of the retrained one of the same pair.

        It returns None if there are fewer than three pairs. For `NULL` it returns the scores of halves.
        """
        if label == NULL:
            return self._halves(label, number)
        retrained, held = self._by_pair(REFERENCE, number), self._by_pair(label, number)
        pairs = sorted(set(held) & set(retrained))
        return _paired([held[pair] for pair in pairs], [retrained[pair] for pair in pairs], pairs)

    def _halves(self, label: str, number: int) -> _PairedScores | None:
        """Returns the scores of networks in question of the first half of pairs, and of retrained ones of the second.

        So every method can be compared with retrained networks in the same way as these with each other.
        """
        retrained = self._by_pair(REFERENCE, number)
        held = retrained if label == NULL else self._by_pair(label, number)
        pairs = sorted(retrained)
        half = len(pairs) // 2
        first = [pair for pair in pairs[:half] if pair in held]
        second = pairs[half:][: len(first)]
        return _paired([held[pair] for pair in first], [retrained[pair] for pair in second], first)

    def _distances(self, label: str, number: int) -> dict[str, Influence]:
        """Measures KLoM and the forgetting score, with all networks and with half of them, as for `NULL`."""
        all_pairs, halves = self._all_pairs(label, number), self._halves(label, number)
        found: dict[str, Influence] = {}
        # `NULL` compares one half of the retrained networks with the other half, so it has numbers of halves only.
        if all_pairs is not None and label != NULL:
            found |= self._compare(all_pairs, number)
        if halves is not None:
            found |= {f"{name}_halves": influence for name, influence in self._compare(halves, number).items()}
        return found

    def _compare(self, scores: _PairedScores, number: int) -> dict[str, Influence]:
        """Measures the distances between two sets of networks."""
        largest = 100.0 if self.watched.of_margins else math.inf
        klom = functools.partial(ensemble_distances.klom, bins=self.klom_bins, clip=largest)
        own = self.watched.forget_sets[number].columns
        cases = (
            ("klom_forget", klom, own, 0.95),
            ("klom_retain", klom, self.watched.always, 0.95),
            ("klom_held_out", klom, self.watched.held_out, 0.95),
            ("forgetting_score", ensemble_distances.example_scores, own, None),
        )
        return {
            name: two_way.examples_influence(statistic, *scores.on(columns), scores.pairs, columns, quantile=quantile)
            for name, statistic, columns, quantile in cases
            if len(columns) >= (LEAST_FOR_SCORES if quantile is None else LEAST_FOR_KLOM)
        }

    def _inside(self, label: str, number: int) -> dict[str, Influence]:
        """Measures the means of the numbers of examined networks."""
        examined = [(one.network // 2, one.inside) for one in self._of(label, number) if one.inside is not None]
        # Of whole classes a probe can say nothing, because no retained example has them; earlier audits measured it.
        of_classes = self.watched.forget_sets[number].of_classes
        values = {
            "recovered": [(pair, one.recovery[-1] - one.recovery[0]) for pair, one in examined],
            "probe_gap": [
                (pair, one.probe_forget - one.probe_held_out)
                for pair, one in examined
                if one.probe_forget is not None and one.probe_held_out is not None and not of_classes
            ],
            "distance_original": [(pair, one.distance_original) for pair, one in examined],
            "distance_retrained": [
                (pair, one.distance_retrained) for pair, one in examined if one.distance_retrained is not None
            ],
        }
        return {
            name: two_way.networks_influence([value for _, value in found], [pair for pair, _ in found])
            for name, found in values.items()
            if found
        }

    def _entry(self, scenario: str | None, label: str, metric: str, influence: Influence) -> MetricEstimate:
        """Makes the interval of a metric: Wilson's for true positive rates, otherwise Student's, or none of KLoM."""
        _, is_rate, percent = metric.partition("_tpr_at_")
        if is_rate:
            found = influence.share_estimate(least=float(percent) / 100)
        else:
            found = influence.estimate(bounds=_bounds(metric, of_accuracies=self.watched.of_margins))
        if metric.startswith("klom") and found.networks < LEAST_FOR_KLOM_INTERVAL and not self.all_intervals:
            found = found._replace(low=found.value, high=found.value)
        return MetricEstimate(scenario, label, metric, found)

    def attack_gates(self, reported: Collection[str]) -> list[Gate]:
        """Checks that each attack finds nothing in retrained networks and finds the original, on average.

        The intervals of all attacks together have a coverage of about 95 % or more: a sound audit fails one of the null
        gates about one time in twenty at most (see `GATE_LEVEL`; `docs/explanations/gates-and-intervals.md` has the
        rates in simulations).

        Args:
          reported: The metrics for which the audit has numbers.
        """
        gates = []
        for attack in AUDIT_ATTACKS:
            metric = f"{attack}_auc"
            # U-LiRA compares two sets of networks, so its null needs two sets of retrained ones.
            null = NULL if attack == "u_lira" else REFERENCE
            for label, name in ((null, SILENT), (ORIGINAL, CAUGHT)):
                mean = self._found[2].get((label, metric))
                found = None if mean is None else mean.estimate(GATE_LEVEL, (0, 1))
                gate = of_attack(name, metric, label == ORIGINAL, found, lacking=self._lacking(metric, label))
                if attack == "population" and gate.passed is not None:
                    gate = gate._replace(explanation=gate.explanation + self._not_compared())
                gates.append(gate._replace(reported=metric in reported))
        return gates

    def _lacking(self, metric: str, label: str) -> str:
        """Says why a metric of a gate could be measured on no forget set."""
        sets, kind = self.watched.forget_sets, metric.partition("_")[0]
        if kind == "population":
            return "takes two held-out examples or more of a class of the forget set"
        if kind == "rmia" and not self.watched.of_margins:
            return "takes the margins of a classifier"
        if kind in ("lira", "rmia") and all(one.of_classes for one in sets):
            return "says nothing where whole classes are forgotten, because half of its references never saw them"
        least = {"klom": LEAST_FOR_KLOM, "forgetting": LEAST_FOR_SCORES}.get(kind, 0)
        most = max(len(one.columns) for one in sets)
        if most < least:
            return f"takes {least} forget examples, and there are {most}"
        needed = 12 if label == NULL else 6  # Three pairs, of halves each.
        return f"takes {needed} networks, and there are {2 * self.pairs}"

    def distance_gates(self, reported: Collection[str]) -> list[Gate]:
        """Checks that the original is farther from retrained networks than these are from each other, in equal numbers.

        A distance that fails means nothing at this number of networks and is not evidence. The attacks do not depend on
        it.

        Args:
          reported: The metrics for which the audit has numbers.
        """
        gates = []
        for metric in _GATED_DISTANCES:
            original, null = (self._found[2].get((label, metric)) for label in (ORIGINAL, NULL))
            ready = None if original is None or null is None else (original.value, null.value)
            farther = None if original is None or null is None else two_way.difference(original, null).estimate(0.9)
            kind = metric.partition("_")[0]
            is_reported = any(shown.partition("_")[0] == kind for shown in reported)
            gate = of_distance(metric, ready, farther, lacking=self._lacking(metric, NULL))
            gates.append(gate._replace(reported=is_reported))
        return gates


def klom_bins(pairs: int) -> int:
    """Returns the number of bins of KLoM for a number of pairs of networks.

    20 bins are the published value for 100 networks and more. With fewer networks most of them would be empty.
    """
    return 20 if pairs >= 100 else max(4, min(20, pairs // 5))


def _paired(held: Sequence[np.ndarray], retrained: Sequence[np.ndarray], pairs: Sequence[int]) -> _PairedScores | None:
    """Makes pairs of scores, or returns None if there are fewer than three."""
    return _PairedScores(np.stack(held), np.stack(retrained), np.array(pairs)) if len(pairs) > 2 else None


def _named(attack: str, influences: Mapping[str, Influence]) -> dict[str, Influence]:
    return {f"{attack}_{name}": influence for name, influence in influences.items()}


def _bounds(metric: str, *, of_accuracies: bool) -> tuple[float, float]:
    if metric.startswith("klom"):
        return 0.0, -math.log(ensemble_distances.KLOM_FLOOR)
    if metric.startswith("distance"):
        return 0.0, np.inf
    if metric in ("recovered", "probe_gap"):
        return (-100.0, 100.0) if of_accuracies else UNBOUNDED
    return 0.0, 1.0
