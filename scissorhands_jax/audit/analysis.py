"""The statistics of an audit: all attacks and distances with their intervals, and the gates of the audit.

They are computed from the answers of all networks to the same watched examples, with one column per example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scissorhands_jax.metrics import ensemble_attacks, intervals
from scissorhands_jax.metrics.ensemble_attacks import FALSE_POSITIVE_RATES, Attack, attack_estimates
from scissorhands_jax.metrics.intervals import Estimate
from scissorhands_jax.report import METRICS, NULL, ORIGINAL, REFERENCE
from scissorhands_jax.report.gates import CAUGHT, FARTHER, SILENT, Gate, of_attack

AUDIT_ATTACKS = ("population", "u_lira", "lira", "rmia")
"""The attacks that have gates. The names of their metrics begin with these words."""


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
    """The true classes. shape=(N,), dtype=int32"""
    included: np.ndarray
    """Whether each network was trained on each training example. shape=(networks, training columns), dtype=bool"""
    forget_sets: tuple[AuditedSet, ...]
    always: np.ndarray
    """The columns of examples that every network was trained on."""
    halved: np.ndarray
    """The columns of examples outside the forget sets that half of the networks were trained on."""
    held_out: np.ndarray
    """The columns of examples that no network was trained on."""


@dataclasses.dataclass(frozen=True)
class InsideNumbers:
    """Numbers of one network that take more than its answers: its weights, its features, or further training."""

    recovery: list[float]
    """The accuracy on the forget set, in percent, before further training on the retain set and after each epoch."""
    probe_forget: float
    """The accuracy of a linear probe of the features on the forget set, in percent."""
    probe_held_out: float
    """The accuracy of that probe on held-out examples, in percent."""
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
    """The margins (`ensemble_attacks.margins`) of the watched examples. shape=(N,), dtype=float64"""
    inside: InsideNumbers | None = None
    """Further numbers of the network, or None if it was not examined."""


class MetricEstimate(NamedTuple):
    """A metric of one method on the forget set of one scenario. If the scenario is None, it is the mean over all."""

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

    def on(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.unlearned[:, columns], self.retrained[:, columns]


class Analysis:
    """The statistics of one audit.

    Args:
      watched: The examples that are the columns.
      measurements: All networks that were measured. Those of the ensemble itself have the labels `ORIGINAL` and
        `REFERENCE`.
    """

    def __init__(self, watched: Watched, measurements: Sequence[Measurement]) -> None:
        self.watched = watched
        self.measurements = measurements
        self.pairs = len(watched.included) // 2
        # 20 bins are the published value for 100 networks and more. With fewer networks most of them would be empty.
        self.klom_bins = 20 if self.pairs >= 100 else max(4, min(20, self.pairs // 5))
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
        entries = []
        found: dict[tuple[str, str], list[Estimate]] = {}
        for number, forget_set in enumerate(self.watched.forget_sets):
            for label in (*forget_set.labels, NULL):
                for metric, estimate in self._measure(label, number).items():
                    found.setdefault((label, metric), []).append(estimate)
                    entries.append(MetricEstimate(forget_set.name, label, metric, estimate))
        for (label, metric), estimates in found.items():
            entries.append(MetricEstimate(None, label, metric, intervals.average(estimates, _bounds(metric))))
        return entries

    def _measure(self, label: str, number: int) -> dict[str, Estimate]:
        """Estimates all metrics of one method on one forget set for which there are enough networks."""
        estimates = self._attacks(label, number)
        if label != NULL:
            estimates |= self._inside(label, number)
        if label != REFERENCE:
            estimates |= self._distances(label, number)
        return estimates

    def _attacks(
        self, label: str, number: int, level: float = 0.95, rates: Sequence[float] = FALSE_POSITIVE_RATES
    ) -> dict[str, Estimate]:
        """Estimates the metrics of attacks alone, with intervals of a given level."""
        estimates: dict[str, Estimate] = {}
        if label != NULL:
            estimates |= self._population(label, number, level)
            estimates |= self._reference_attacks(label, number, level, rates)
        if label != REFERENCE:
            estimates |= self._u_lira(label, number, level, rates)
        return estimates

    def _population(self, label: str, number: int, level: float) -> dict[str, Estimate]:
        """Attacks single networks without references: margins must separate the forget set from held-out examples."""
        own, labels = self.watched.forget_sets[number].columns, self.watched.labels
        alike = self.watched.held_out[np.isin(labels[self.watched.held_out], np.unique(labels[own]))]
        scores = list(self._scores(label, number).values())
        if not scores or not len(alike):
            return {}
        attack = Attack(np.stack([row[own] for row in scores]), np.stack([row[alike] for row in scores]))
        found = attack_estimates(attack, over_networks=self.pairs > 2, rates=(), level=level)
        return {"population_auc": found["auc"]}

    def _reference_attacks(self, label: str, number: int, level: float, rates: Sequence[float]) -> dict[str, Estimate]:
        """Attacks single networks by LiRA and RMIA, with the other networks of the ensemble as references."""
        forget_set, halved = self.watched.forget_sets[number], self.watched.halved
        scores = self._scores(label, number)
        # If whole classes are forgotten, half of the references have never seen such a class, and their answers would
        # reveal the class and not the example.
        if not scores or self.pairs < 3 or forget_set.of_classes or len(self._references) < 2 * self.pairs:
            return {}
        own = forget_set.columns
        found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"lira": [], "rmia": []}
        for network, row in scores.items():
            unseen = halved[~self.watched.included[network][halved]]
            # Of the examples that this network has not seen, one half is attacked and the other half is the population
            # of RMIA.
            population, negatives = unseen[: len(unseen) // 2], unseen[len(unseen) // 2 :]
            columns = np.concatenate([own, negatives, population])
            others = [other for other in sorted(self._references) if other // 2 != network // 2]
            references = np.stack([self._references[other][columns] for other in others])
            member = np.stack([self.watched.included[other][columns] for other in others])
            attacked = len(own) + len(negatives)
            lira = ensemble_attacks.log_ratio(row[columns], references, member)
            rmia = ensemble_attacks.rmia(row[columns], references, np.arange(attacked, len(columns)))
            for name, attack_scores in (("lira", lira), ("rmia", rmia)):
                found[name].append((attack_scores[: len(own)], attack_scores[len(own) : attacked]))
        estimates: dict[str, Estimate] = {}
        for name, pairs in found.items():
            shortest = min(len(negatives) for _, negatives in pairs)
            attack = Attack(
                np.stack([positives for positives, _ in pairs]),
                np.stack([negatives[:shortest] for _, negatives in pairs]),
            )
            estimates |= _named(name, attack_estimates(attack, rates=rates, level=level))
        return estimates

    def _u_lira(self, label: str, number: int, level: float, rates: Sequence[float]) -> dict[str, Estimate]:
        """Attacks unlearned against retrained networks, on the forget set and on held-out examples."""
        scores = self._all_pairs(label, number)
        if scores is None:
            return {}
        own, control = scores.on(self.watched.forget_sets[number].columns), scores.on(self.watched.held_out)
        attack, controlled = ensemble_attacks.u_lira(*own, control)
        estimates = _named("u_lira", attack_estimates(attack, cross_validated=True, rates=rates, level=level))
        found = attack_estimates(controlled, cross_validated=True, rates=(), level=level)
        return {**estimates, "u_lira_held_out_auc": found["auc"]}

    def _all_pairs(self, label: str, number: int) -> _PairedScores | None:
        """Returns the scores of all pairs: of the network in question and of the retrained one of the same pair.

        It returns None if there are fewer than three pairs. For `NULL` it returns the scores of halves.
        """
        if label == NULL:
            return self._halves(label, number)
        retrained, held = self._by_pair(REFERENCE, number), self._by_pair(label, number)
        pairs = sorted(set(held) & set(retrained))
        if len(pairs) < 3:
            return None
        return _PairedScores(np.stack([held[pair] for pair in pairs]), np.stack([retrained[pair] for pair in pairs]))

    def _halves(self, label: str, number: int) -> _PairedScores | None:
        """Returns the scores of networks in question of the first half of pairs, and of retrained ones of the second.

        So every method can be compared with retrained networks in the same way as these with each other.
        """
        retrained = self._by_pair(REFERENCE, number)
        held = retrained if label == NULL else self._by_pair(label, number)
        pairs = sorted(retrained)
        half = len(pairs) // 2
        first, second = [pair for pair in pairs[:half] if pair in held], pairs[half : 2 * half]
        if len(first) < 3:
            return None
        return _PairedScores(np.stack([held[pair] for pair in first]), np.stack([retrained[pair] for pair in second]))

    def _distances(self, label: str, number: int) -> dict[str, Estimate]:
        """Estimates KLoM and the forgetting score, with all networks and with half of them, as for `NULL`."""
        all_pairs, halves = self._all_pairs(label, number), self._halves(label, number)
        estimates: dict[str, Estimate] = {}
        # `NULL` compares one half of the retrained networks with the other half, so it has numbers of halves only.
        if all_pairs is not None and label != NULL:
            estimates |= self._compare(all_pairs, number)
        if halves is not None:
            estimates |= {f"{name}_halves": found for name, found in self._compare(halves, number).items()}
        return estimates

    def _compare(self, scores: _PairedScores, number: int) -> dict[str, Estimate]:
        """Estimates the distances between two sets of networks."""

        def high_klom(unlearned: np.ndarray, retrained: np.ndarray) -> float:
            return float(np.percentile(ensemble_attacks.klom(unlearned, retrained, bins=self.klom_bins), 95))

        own = self.watched.forget_sets[number].columns
        cases = (
            ("klom_forget", high_klom, own),
            ("klom_retain", high_klom, self.watched.always),
            ("klom_held_out", high_klom, self.watched.held_out),
            ("forgetting_score", ensemble_attacks.forgetting_score, own),
        )
        return {
            name: intervals.two_way_bootstrap(statistic, *scores.on(columns), bounds=_bounds(name))
            for name, statistic, columns in cases
            if len(columns)
        }

    def _inside(self, label: str, number: int) -> dict[str, Estimate]:
        """Estimates the means of the numbers of examined networks."""
        inside = [one.inside for one in self._of(label, number) if one.inside is not None]
        values = {
            "recovered": [one.recovery[-1] - one.recovery[0] for one in inside],
            "probe_gap": [one.probe_forget - one.probe_held_out for one in inside],
            "distance_original": [one.distance_original for one in inside],
            "distance_retrained": [one.distance_retrained for one in inside if one.distance_retrained is not None],
        }
        return {name: intervals.mean_estimate(found) for name, found in values.items() if found}

    def attack_gates(self, reported: Collection[str]) -> list[Gate]:
        """Checks that each attack finds nothing in retrained networks and finds the original, on average.

        The intervals of all attacks together have a coverage of 95 %: a sound audit fails a null gate one time in
        twenty.

        Args:
          reported: The metrics for which the audit has numbers.
        """
        level = 1 - 0.05 / len(AUDIT_ATTACKS)
        found = {
            label: [self._attacks(label, number, level, rates=()) for number in range(len(self.watched.forget_sets))]
            for label in (REFERENCE, ORIGINAL, NULL)
        }
        gates = []
        for attack in AUDIT_ATTACKS:
            metric = f"{attack}_auc"
            # U-LiRA compares two sets of networks, so its null needs two sets of retrained ones.
            null = NULL if attack == "u_lira" else REFERENCE
            for label, name in ((null, SILENT), (ORIGINAL, CAUGHT)):
                estimates = [one[metric] for one in found[label] if metric in one]
                gate = of_attack(name, metric, label == ORIGINAL, estimates)
                gates.append(gate._replace(reported=metric in reported))
        return gates


def distance_gates(estimates: Sequence[MetricEstimate]) -> list[Gate]:
    """Checks that the original is farther from retrained networks than these are from each other, in equal numbers.

    A distance that fails means nothing at this number of networks and is not evidence. The attacks do not depend on it.

    Args:
      estimates: The result of `Analysis.estimates`.
    """
    means = {(one.method, one.metric): one.estimate for one in estimates if one.scenario is None}
    gates = []
    for metric in ("klom_forget_halves", "forgetting_score_halves"):
        title = METRICS[metric][0]
        original, null = means.get((ORIGINAL, metric)), means.get((NULL, metric))
        reported = any(shown.startswith(metric.removesuffix("_halves")) for _, shown in means)
        if original is None or null is None:
            gates.append(Gate(FARTHER, None, f"{title} takes more networks", metric, None, reported, False))
            continue
        is_score = metric.startswith("forgetting")
        passed = original.value < null.low if is_score else original.value > null.high
        why = (
            f"{title} {original.value:.3f}, must lie {'below' if is_score else 'above'} the interval "
            f"[{null.low:.3f}, {null.high:.3f}] of {NULL}: "
            + ("it does" if passed else "it does not, so it means nothing with so few networks")
        )
        gates.append(Gate(FARTHER, passed, why, metric, original, reported, False))
    return gates


def _named(attack: str, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {f"{attack}_{name}": estimate for name, estimate in estimates.items()}


def _bounds(metric: str) -> tuple[float, float]:
    if metric.startswith(("klom", "distance")):
        return 0.0, np.inf
    if metric in ("recovered", "probe_gap"):
        return -100.0, 100.0
    return 0.0, 1.0
