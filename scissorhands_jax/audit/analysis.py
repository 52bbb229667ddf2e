"""The statistics of an audit: every attack and distance with its interval, and the gates that vouch for them.

All of it is computed from what the networks answered on the same watched examples, one column per example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scissorhands_jax.metrics import ensemble_attacks, intervals
from scissorhands_jax.metrics.ensemble_attacks import FALSE_POSITIVE_RATES, Attack, attack_estimates
from scissorhands_jax.metrics.intervals import Estimate
from scissorhands_jax.report import METRICS, NULL, REFERENCE
from scissorhands_jax.report.gates import ORIGINAL, Gate, of_attack

AUDIT_ATTACKS = ("population", "u_lira", "lira", "rmia")
"""The attacks that have gates, as the names of their metrics begin."""


@dataclasses.dataclass(frozen=True)
class AuditedSet:
    """One forget set: its scenario's name, the labels of what is measured on it, and its columns."""

    name: str
    labels: tuple[str, ...]
    columns: np.ndarray
    of_classes: bool
    """Whether it is whole classes, so that no network has seen an example like those of the set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """The columns of the scores: which examples the networks answer. The columns of training examples come first."""

    labels: np.ndarray
    """The true classes. shape=(N,), dtype=int32"""
    included: np.ndarray
    """Which network was trained on which training example. shape=(networks, training columns), dtype=bool"""
    forget_sets: tuple[AuditedSet, ...]
    always: np.ndarray
    """Columns of examples that every network was trained on."""
    halved: np.ndarray
    """Columns of examples outside the forget sets that half of the networks were trained on."""
    held_out: np.ndarray
    """Columns of examples that no network was trained on."""


@dataclasses.dataclass(frozen=True)
class InsideNumbers:
    """What was measured within one network."""

    recovery: list[float]
    """Accuracy on the forget set in percent before further training on the retain set and after each epoch of it."""
    probe_forget: float
    """Accuracy of a linear probe of the features on the forget set, in percent."""
    probe_held_out: float
    """The same on held-out examples."""
    distance_original: float
    """Distance of the weights to those of the original, in units of the original's length."""
    distance_retrained: float | None
    """The same to a retrained network; None if there is no other one."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one network answered: as one method (`label`) on one forget set (`number`)."""

    number: int
    label: str
    network: int
    """Its number in the ensemble, or that of the original that was made to forget."""
    margins: np.ndarray
    """`ensemble_attacks.margins` of the watched examples. shape=(N,), dtype=float64"""
    inside: InsideNumbers | None = None
    """None if the network was not looked into."""


class MetricEstimate(NamedTuple):
    """A metric of one method, on the forget set of one scenario or, with None for it, on average over all."""

    scenario: str | None
    method: str
    metric: str
    estimate: Estimate

    def as_dict(self) -> dict[str, Any]:
        """The entry of `results.json`."""
        place = {"scenario": self.scenario, "method": self.method, "metric": self.metric}
        return {**place, **self.estimate._asdict()}


class _Sides(NamedTuple):
    """Scores of networks in question and of retrained networks, in pairs. shape=(networks, N) each"""

    unlearned: np.ndarray
    retrained: np.ndarray

    def on(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.unlearned[:, columns], self.retrained[:, columns]


class Analysis:
    """The statistics of one audit.

    Args:
      watched: What the columns are.
      measurements: All networks that were measured. Those of the ensemble themselves have the labels `ORIGINAL` and
        `REFERENCE`.
    """

    def __init__(self, watched: Watched, measurements: Sequence[Measurement]) -> None:
        self.watched = watched
        self.measurements = measurements
        self.pairs = len(watched.included) // 2
        # As published with 100 networks and more; with fewer most bins would be empty.
        self.klom_bins = 20 if self.pairs >= 100 else max(4, min(20, self.pairs // 5))
        self._references = self._scores(REFERENCE, 0) | self._scores(ORIGINAL, 0)

    def _of(self, label: str, number: int) -> list[Measurement]:
        return [one for one in self.measurements if one.label == label and one.number == number]

    def _scores(self, label: str, number: int) -> dict[int, np.ndarray]:
        """Margins by network."""
        return {one.network: one.margins for one in self._of(label, number)}

    def _by_pair(self, label: str, number: int) -> dict[int, np.ndarray]:
        """Margins by pair, of which one network is an original and the other is retrained."""
        return {network // 2: margins for network, margins in sorted(self._scores(label, number).items())}

    def estimates(self) -> list[MetricEstimate]:
        """Every metric of every method on every forget set, then its mean over the forget sets."""
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
        """All metrics of one method on one forget set for which there are networks."""
        estimates = self._attacks(label, number)
        if label != NULL:
            estimates |= self._inside(label, number)
        if label != REFERENCE:
            estimates |= self._distances(label, number)
        return estimates

    def _attacks(
        self, label: str, number: int, level: float = 0.95, rates: Sequence[float] = FALSE_POSITIVE_RATES
    ) -> dict[str, Estimate]:
        """The attacks alone, with intervals of some coverage."""
        estimates: dict[str, Estimate] = {}
        if label != NULL:
            estimates |= self._population(label, number, level)
            estimates |= self._reference_attacks(label, number, level, rates)
        if label != REFERENCE:
            estimates |= self._u_lira(label, number, level, rates)
        return estimates

    def _population(self, label: str, number: int, level: float) -> dict[str, Estimate]:
        """The attack on single networks without references: do margins separate the forget set from held-out ones?"""
        own, labels = self.watched.forget_sets[number].columns, self.watched.labels
        alike = self.watched.held_out[np.isin(labels[self.watched.held_out], np.unique(labels[own]))]
        scores = list(self._scores(label, number).values())
        if not scores or not len(alike):
            return {}
        attack = Attack(np.stack([row[own] for row in scores]), np.stack([row[alike] for row in scores]))
        found = attack_estimates(attack, over_networks=self.pairs > 2, rates=(), level=level)
        return {"population_auc": found["auc"]}

    def _reference_attacks(self, label: str, number: int, level: float, rates: Sequence[float]) -> dict[str, Estimate]:
        """LiRA and RMIA on single networks: the other networks of the ensemble say how hard each example is."""
        forget_set, halved = self.watched.forget_sets[number], self.watched.halved
        scores = self._scores(label, number)
        # Of whole classes the references know no example that is not of the forget set.
        if not scores or self.pairs < 3 or forget_set.of_classes or len(self._references) < 2 * self.pairs:
            return {}
        own = forget_set.columns
        guesses: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"lira": [], "rmia": []}
        for network, row in scores.items():
            unseen = halved[~self.watched.included[network][halved]]
            # Of the examples that this network has not seen, one half is attacked and the other is RMIA's population.
            population, negatives = unseen[: len(unseen) // 2], unseen[len(unseen) // 2 :]
            columns = np.concatenate([own, negatives, population])
            others = [other for other in sorted(self._references) if other // 2 != network // 2]
            references = np.stack([self._references[other][columns] for other in others])
            member = np.stack([self.watched.included[other][columns] for other in others])
            attacked = len(own) + len(negatives)
            lira = ensemble_attacks.log_ratio(row[columns], references, member)
            rmia = ensemble_attacks.rmia(row[columns], references, np.arange(attacked, len(columns)))
            for name, guess in (("lira", lira), ("rmia", rmia)):
                guesses[name].append((guess[: len(own)], guess[len(own) : attacked]))
        estimates: dict[str, Estimate] = {}
        for name, pairs in guesses.items():
            shortest = min(len(unseen) for _, unseen in pairs)
            positives, unseen_guesses = (
                np.stack([own_guess for own_guess, _ in pairs]),
                np.stack([unseen[:shortest] for _, unseen in pairs]),
            )
            estimates |= _named(name, attack_estimates(Attack(positives, unseen_guesses), rates=rates, level=level))
        return estimates

    def _u_lira(self, label: str, number: int, level: float, rates: Sequence[float]) -> dict[str, Estimate]:
        """Unlearned against retrained networks, on the forget set and on held-out examples."""
        sides = self._sides(label, number)
        if sides is None:
            return {}
        own, control = sides.on(self.watched.forget_sets[number].columns), sides.on(self.watched.held_out)
        attack, controlled = ensemble_attacks.u_lira(*own, control)
        estimates = _named("u_lira", attack_estimates(attack, cross_validated=True, rates=rates, level=level))
        found = attack_estimates(controlled, cross_validated=True, rates=(), level=level)
        return {**estimates, "u_lira_held_out_auc": found["auc"]}

    def _sides(self, label: str, number: int) -> _Sides | None:
        """Networks in question and retrained ones of the same pairs; None if there are fewer than three pairs."""
        if label == NULL:
            return self._halves(label, number)
        retrained, held = self._by_pair(REFERENCE, number), self._by_pair(label, number)
        pairs = sorted(set(held) & set(retrained))
        if len(pairs) < 3:
            return None
        return _Sides(np.stack([held[pair] for pair in pairs]), np.stack([retrained[pair] for pair in pairs]))

    def _halves(self, label: str, number: int) -> _Sides | None:
        """Networks in question of the first half of the pairs, and retrained ones of the second half."""
        retrained = self._by_pair(REFERENCE, number)
        held = retrained if label == NULL else self._by_pair(label, number)
        pairs = sorted(retrained)
        half = len(pairs) // 2
        first, second = [pair for pair in pairs[:half] if pair in held], pairs[half : 2 * half]
        if len(first) < 3:
            return None
        return _Sides(np.stack([held[pair] for pair in first]), np.stack([retrained[pair] for pair in second]))

    def _distances(self, label: str, number: int) -> dict[str, Estimate]:
        """KLoM on every part and the forgetting score: with all networks, and with as few as there are for `NULL`."""
        all_sides, halves = self._sides(label, number), self._halves(label, number)
        estimates: dict[str, Estimate] = {}
        # For NULL there is the second only: half of the retrained networks against the other half.
        if all_sides is not None and label != NULL:
            estimates |= self._compare(all_sides, number)
        if halves is not None:
            estimates |= {f"{name}_halves": found for name, found in self._compare(halves, number).items()}
        return estimates

    def _compare(self, sides: _Sides, number: int) -> dict[str, Estimate]:
        """The distances between two sets of networks."""

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
            name: intervals.two_way_bootstrap(statistic, *sides.on(columns), bounds=_bounds(name))
            for name, statistic, columns in cases
            if len(columns)
        }

    def _inside(self, label: str, number: int) -> dict[str, Estimate]:
        """Means of what was measured within single networks."""
        inside = [one.inside for one in self._of(label, number) if one.inside is not None]
        values = {
            "recovered": [one.recovery[-1] - one.recovery[0] for one in inside],
            "probe_gap": [one.probe_forget - one.probe_held_out for one in inside],
            "distance_original": [one.distance_original for one in inside],
            "distance_retrained": [one.distance_retrained for one in inside if one.distance_retrained is not None],
        }
        return {name: intervals.mean_estimate(found) for name, found in values.items() if found}

    def attack_gates(self, reported: Collection[str]) -> list[Gate]:
        """Whether each attack is silent on retrained networks and finds the original, on average over forget sets.

        The intervals together have a coverage of 95 %: a sound audit fails a null gate once in twenty times.

        Args:
          reported: The metrics of which the audit has numbers.
        """
        level = 1 - 0.05 / len(AUDIT_ATTACKS)
        found = {
            label: [self._attacks(label, number, level, rates=()) for number in range(len(self.watched.forget_sets))]
            for label in (REFERENCE, ORIGINAL, NULL)
        }
        gates = []
        for attack in AUDIT_ATTACKS:
            metric = f"{attack}_auc"
            # U-LiRA compares ensembles, so that its null needs two of retrained networks.
            silent = NULL if attack == "u_lira" else REFERENCE
            for label, name in ((silent, "retrained is not told from retrained"), (ORIGINAL, "the original is caught")):
                estimates = [one[metric] for one in found[label] if metric in one]
                gate = of_attack(name, metric, label == ORIGINAL, estimates)
                gates.append(gate._replace(reported=metric in reported))
        return gates


def distance_gates(estimates: Sequence[MetricEstimate]) -> list[Gate]:
    """Whether the original is farther from retrained networks than these are from each other, in equal numbers.

    A distance that fails says nothing at this number of networks and is no evidence. The attacks do not depend on it.

    Args:
      estimates: As of `Analysis.estimates`.
    """
    means = {(one.method, one.metric): one.estimate for one in estimates if one.scenario is None}
    gates = []
    for metric in ("klom_forget_halves", "forgetting_score_halves"):
        title, name = METRICS[metric][0], "the original is farther off than retrained from retrained"
        original, null = means.get((ORIGINAL, metric)), means.get((NULL, metric))
        reported = any(shown.startswith(metric.removesuffix("_halves")) for _, shown in means)
        if original is None or null is None:
            gates.append(Gate(name, None, f"{title} takes more networks", metric, None, reported, False))
            continue
        is_score = metric.startswith("forgetting")
        passed = original.value < null.low if is_score else original.value > null.high
        why = (
            f"{title} {original.value:.3f}, must lie {'below' if is_score else 'above'} the interval "
            f"[{null.low:.3f}, {null.high:.3f}] of {NULL}: "
            + ("it does" if passed else "with so few networks it says nothing")
        )
        gates.append(Gate(name, passed, why, metric, original, reported, False))
    return gates


def _named(attack: str, estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {f"{attack}_{name}": estimate for name, estimate in estimates.items()}


def _bounds(metric: str) -> tuple[float, float]:
    if metric.startswith(("klom", "distance")):
        return 0.0, np.inf
    if metric in ("recovered", "probe_gap"):
        return -100.0, 100.0
    return 0.0, 1.0
