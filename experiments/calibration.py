"""How often the intervals and gates of audits are right, in made-up audits of which the truth is known.

    python -m experiments.calibration --out experiments/results/calibration.json

An audit is made up from scores: the margin of network r on example k is

    easy_k + left * (1 if r was trained on k) + shift_r + class_r,c(k) + noise_rk,

where all terms but the second are random, with standard deviations 3, 0.2, sqrt(alike) and about sqrt(1 - alike). So
networks differ as a whole, by class, and by example. Then `Analysis` makes of it what it makes of a real audit. The
truth of a number is its mean over all audits, because that is what an interval is about.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import programs
from scissorhands_jax.audit.analysis import (
    LEAST_FOR_KLOM,
    Analysis,
    AuditedSet,
    Measurement,
    MetricEstimate,
    Watched,
)
from scissorhands_jax.report import ORIGINAL, REFERENCE, provenance
from scissorhands_jax.report.gates import Gate
from scissorhands_jax.terminal import Console

PERFECT, LEAKY, OVERSHOT = "perfect", "leaky", "overshot"
CLASSES = 10


def made_up_audit(
    seed: int,
    *,
    networks: int = 16,
    examples: int = 250,
    others: int | None = None,
    forget_sets: int = 1,
    memory: float = 1.0,
    left: float = 0.3,
    alike: float = 0.0,
    shift: float = 0.2,
) -> Analysis:
    """Makes up the scores of an audit.

    Args:
      seed: The seed of everything.
      networks: The number of networks, a multiple of 2.
      examples: The number of examples of each forget set.
      others: Half the number of held-out examples and a quarter of those that half of the networks are trained on. The
        default is `examples`, as in an audit of a large forget set.
      forget_sets: The number of forget sets.
      memory: How much higher the margin of a training example is.
      left: How much of that the method `LEAKY` leaves on the forget set. The method `PERFECT` leaves nothing, so that
        its networks are like retrained ones, and `OVERSHOT` takes half as much again as there was.
      alike: The share of the variance of the noise that examples of one class have in common.
      shift: The standard deviation of what all examples of a network have in common.
    """
    generator = np.random.default_rng(seed)
    others = examples if others is None else others
    sizes = [examples] * forget_sets + [LEAST_FOR_KLOM, 4 * others, 2 * others]
    *own, always, halved, held_out = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    trained, total = sum(sizes[:-1]), sum(sizes)
    included = np.zeros((networks, trained), bool)
    included[:, always] = True
    for pair in range(networks // 2):
        half = generator.permutation(halved)[: len(halved) // 2]
        included[2 * pair, half] = True
        included[2 * pair + 1, np.setdiff1d(halved, half)] = True
        for number, columns in enumerate(own):
            included[2 * pair + (pair >> number) % 2, columns] = True
    labels = generator.integers(0, CLASSES, total)
    easy, width = 3 * generator.normal(size=total), np.exp(0.2 * generator.normal(size=total))

    def noise() -> np.ndarray:
        of_class = math.sqrt(alike) * generator.normal(size=CLASSES)[labels]
        of_score = math.sqrt(1 - alike) * width * generator.normal(size=total)
        return shift * generator.normal() + of_class + of_score

    measurements = []
    for network in range(networks):
        seen = np.append(included[network], np.zeros(total - trained, bool))
        margins = easy + memory * seen + noise()
        for number, columns in enumerate(own):
            if not seen[columns[0]]:
                measurements.append(Measurement(number, REFERENCE, network, margins))
                continue
            measurements.append(Measurement(number, ORIGINAL, network, margins))
            for label, share in ((PERFECT, 0.0), (LEAKY, left), (OVERSHOT, -0.5)):
                fresh = easy + memory * seen + noise()
                fresh[columns] -= memory * (1 - share)
                measurements.append(Measurement(number, label, network, fresh))
    names = (ORIGINAL, REFERENCE, PERFECT, LEAKY, OVERSHOT)
    sets = tuple(AuditedSet(f"set {number}", names, columns, False) for number, columns in enumerate(own))
    watched = Watched(
        labels=labels, included=included, forget_sets=sets, always=always, halved=halved, held_out=held_out
    )
    return Analysis(watched, measurements, all_intervals=True)


def coverage(found: Sequence[Sequence[MetricEstimate]]) -> dict[str, dict[str, float]]:
    """Returns how often intervals hold the mean of their number over audits, and how wide they are.

    Args:
      found: The estimates of each audit.

    Returns:
      By method and metric: the `mean` and its standard `deviation` over audits, the `coverage`, half the mean width
      over the deviation, `reach`, and for areas under the curve the share of intervals above 0.5, `found`, and that of
      values that are more than 1.96 deviations above 0.5, as a `z_test` finds them that knows the deviation.
    """
    numbers: dict[str, list[tuple[float, float, float]]] = {}
    for estimates in found:
        for one in estimates:
            if one.scenario is None:
                numbers.setdefault(f"{one.method}: {one.metric}", []).append(one.estimate[:3])
    answer = {}
    for name, rows in numbers.items():
        value, low, high = np.array(rows).T
        mean, deviation = value.mean(), value.std(ddof=1)
        reach = (high - low).mean() / 2 / deviation if deviation > 0 else 0.0
        held = np.mean((low <= mean) & (mean <= high))
        answer[name] = {"mean": mean, "deviation": deviation, "coverage": held, "reach": reach}
        if name.endswith("_auc"):
            answer[name] |= {"found": (low > 0.5).mean(), "z_test": (value > 0.5 + 1.96 * deviation).mean()}
    return {name: {key: float(value) for key, value in row.items()} for name, row in answer.items()}


def passing(found: Sequence[Sequence[Gate]]) -> dict[str, float]:
    """Returns in which share of audits each gate that was run passes."""
    outcomes: dict[str, list[bool]] = {}
    for gates in found:
        for gate in gates:
            if gate.passed is not None:
                outcomes.setdefault(f"{gate.metric}: {gate.name}", []).append(gate.passed)
    return {name: float(np.mean(values)) for name, values in outcomes.items()}


def calibrate(audits: int, **settings: Any) -> dict[str, Any]:
    """Simulates audits of one size.

    Args:
      audits: The number of audits.
      **settings: The arguments of `made_up_audit`.
    """
    started = time.process_time()
    estimates, gates, null_gates = [], [], []
    for seed in range(audits):
        analysis = made_up_audit(seed, **settings)
        estimates.append(analysis.estimates())
        metrics = {one.metric for one in estimates[-1]}
        gates.append([*analysis.attack_gates(metrics), *analysis.distance_gates(metrics)])
    for seed in range(audits):
        analysis = made_up_audit(10_000 + seed, **settings, memory=0.0, left=0.0)
        metrics = {one.metric for one in analysis.estimates()}
        null_gates.append([*analysis.attack_gates(metrics), *analysis.distance_gates(metrics)])
    return {
        **_described(audits, **settings),
        "monte_carlo_error_of_95_percent": math.sqrt(0.95 * 0.05 / audits),
        "numbers": coverage(estimates),
        "gates": passing(gates),
        "gates_without_memory": passing(null_gates),
        "cpu_seconds": time.process_time() - started,
    }


SIZES: dict[str, dict[str, Any]] = {
    "standard": {"audits": 150, "networks": 16, "examples": 50, "alike": 0.3},
    "standard, three forget sets": {"audits": 150, "networks": 16, "examples": 50, "alike": 0.3, "forget_sets": 3},
    "full": {"audits": 16, "networks": 128, "examples": 20, "alike": 0.3},
    **{
        f"standard, forget sets of {number}": {
            "audits": 150,
            "networks": 16,
            "examples": number,
            "others": 50,
            "alike": 0.3,
        }
        for number in (1, 3, 10)
    },
}
"""The simulations: the numbers of networks are those of the tiers, and examples are fewer, so that it takes minutes."""


@programs.ending(programs.CONTINUES)
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the simulations that are missing, and writes each with the machine, the versions and the commit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/calibration.json"), metavar="FILE")
    programs.add_overwrite(parser)
    options = parser.parse_args(arguments)
    provenance.note_code()
    cases = {name: functools.partial(calibrate, **settings) for name, settings in SIZES.items()}
    with programs.open_results(
        options.out,
        {},
        results_of=lambda document: document["audits"],
        compose=lambda results: {"audits": programs.ordered(results, SIZES)},
        of_each={name: _described(**settings) for name, settings in SIZES.items()},
        overwrite=options.overwrite,
    ) as results:
        results.fill(cases, Console(stderr=True), shown=lambda found: f"{found['cpu_seconds']:.0f} s")
    return 0


def _described(audits: int, **settings: Any) -> dict[str, Any]:
    return {"settings": settings, "audits": audits}


if __name__ == "__main__":
    sys.exit(main())
