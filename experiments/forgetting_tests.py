"""How often tests of forgetting are wrong, and what they find, in made-up language models of which the truth is known.

    python -m experiments.forgetting_tests --out experiments/results/forgetting_tests.json

A network's log truth ratio on question i of author a is

    question_i + network + author_a + noise_i + knowledge * (original_i - question_i),

where the question's part is the same in all networks that never saw the forget set. Its spread, that of the noise, and
how the original differs are as in the published logs of Llama-2-7B on TOFU (weight decay 0.01): 0.084 nats for each
network and question between retain-only networks of two splits, and a mean of -0.50 with a spread of 0.59. What the
questions of one network or of one author have in common is not known so well, because few pairs of networks share
questions; 0.02 and 0.01 are within what they show, and 0 and 0.1 are tried as well.
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
from scipy import stats

from experiments import programs
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.aggregates import paired_test
from scissorhands_jax.language.calibration import calibrated_test
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console

LEVEL = 0.05
PER_AUTHOR = 20
TESTS = ("forget quality", "paired", "calibrated", "calibrated without the original", "shift", "share", "distance")


def made_up_networks(
    generator: np.random.Generator,
    *,
    retrained: int,
    questions: int,
    knowledge: float = 0.0,
    network: float = 0.02,
    author: float = 0.01,
    noise: float = 0.084,
    heavy: bool = False,
    shuffled: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes up the log truth ratios of an unlearned, several retrained and an original network.

    Args:
      generator: Draws all of them.
      retrained: The number of retrained networks.
      questions: The number of questions, a multiple of `PER_AUTHOR`.
      knowledge: The share of the original's difference that the unlearned network has; below 0 it forgot too much.
      network: The standard deviation of what all questions of a network have in common, in nats.
      author: That of what questions of one author have in common.
      noise: That of single questions.
      heavy: Whether the noise has Student's distribution with three degrees of freedom instead of the normal one.
      shuffled: Whether the unlearned network's ratios are those of other questions, so that their distribution is right
        and each answer wrong.

    Returns:
      The unlearned, the retrained and the original network's. shapes=(N,), (m, N), (N,)
    """
    of_questions = generator.normal(-0.24, 0.56, questions)
    difference = generator.normal(-0.50, 0.59, questions)

    def draw(share: float) -> np.ndarray:
        own = generator.normal(0, network) + generator.normal(0, author, questions // PER_AUTHOR).repeat(PER_AUTHOR)
        spread = generator.standard_t(3, questions) / math.sqrt(3) if heavy else generator.normal(0, 1, questions)
        return of_questions + own + noise * spread + share * difference

    unlearned = draw(knowledge)
    others = np.array([draw(0.0) for _ in range(retrained)])
    return generator.permutation(unlearned) if shuffled else unlearned, others, draw(1.0)


def p_values(unlearned: np.ndarray, retrained: np.ndarray, original: np.ndarray) -> list[float]:
    """The p-values of all tests, in the order of `TESTS`. The first two see one retrained network, as published."""
    full = calibrated_test(unlearned, retrained, original)
    assert full.share is not None
    return [
        float(stats.ks_2samp(unlearned, retrained[0]).pvalue),
        paired_test(unlearned, retrained[0]).p,
        full.p,
        min(1.0, 2 * min(full.shift.p, full.distance.p)),
        full.shift.p,
        full.share.p,
        full.distance.p,
    ]


def simulate(repeats: int, seed: int = 0, **settings: Any) -> dict[str, Any]:
    """Measures how often each test rejects at 5 %.

    Args:
      repeats: The number of made-up unlearned networks.
      seed: The seed of everything.
      **settings: The arguments of `made_up_networks`.
    """
    generator, started = np.random.default_rng(seed), time.process_time()
    found = np.array([p_values(*made_up_networks(generator, **settings)) for _ in range(repeats)])
    rejected = (found < LEVEL).mean(axis=0)
    return {
        "settings": settings,
        "repeats": repeats,
        "rejected": dict(zip(TESTS, rejected.tolist(), strict=True)),
        "forget_quality_median": float(np.median(found[:, 0])),
        "cpu_seconds": time.process_time() - started,
    }


def scenarios() -> dict[str, dict[str, Any]]:
    """The settings of all simulations by name."""
    found: dict[str, dict[str, Any]] = {}
    for retrained in (3, 5, 10):
        for questions in (40, 400):
            size = {"retrained": retrained, "questions": questions}
            found |= {
                f"{retrained} retrained, {questions} questions, {name}": size | more for name, more in CASES.items()
            }
    return found


CASES: dict[str, dict[str, Any]] = {
    "alike": {},
    "alike, questions independent": {"network": 0.0, "author": 0.0},
    "alike, networks differ by 0.1": {"network": 0.1},
    "alike, heavy tails": {"heavy": True},
    "knows 5 %": {"knowledge": 0.05},
    "knows 10 %": {"knowledge": 0.1},
    "knows 20 %": {"knowledge": 0.2},
    "knows 30 %": {"knowledge": 0.3},
    "forgot 20 % too much": {"knowledge": -0.2},
    "right distribution, wrong answers": {"shuffled": True},
}
"""What is tried at each size. The first four are unlearned networks that are like retrained ones."""


@programs.ending(programs.CONTINUES)
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the simulations that are missing, and writes each with the machine, the versions and the commit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/forgetting_tests.json"), metavar="FILE")
    parser.add_argument("--repeats", type=int, default=500, metavar="N")
    programs.add_overwrite(parser)
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        raise InputError(f"--repeats must be at least 1, got {options.repeats}")
    provenance.note_code()
    simulations, repeats = scenarios(), options.repeats
    with programs.open_results(
        options.out,
        {"level": LEVEL, "monte_carlo_error_of_5_percent": math.sqrt(0.05 * 0.95 / repeats)},
        results_of=lambda document: document["simulations"],
        compose=lambda results: {"simulations": programs.ordered(results, simulations)},
        of_each={name: {"settings": settings, "repeats": repeats} for name, settings in simulations.items()},
        overwrite=options.overwrite,
    ) as results:
        cases = {name: functools.partial(simulate, repeats, **settings) for name, settings in simulations.items()}
        results.fill(cases, Console(stderr=True), shown=lambda found: f"{found['cpu_seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
