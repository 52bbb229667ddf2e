"""How the rates of `scissorhands demo language` were chosen: `python -m experiments.facts_tuning --out FILE`.

Every method has six trials on other people (seed 100) than those of the demonstration, and no retrained network is
looked at: the mean loss of the facts to forget is to be that of people whom no network met, and facts to keep are to
stay as probable as they were. What had the smallest score is in `demo.settings.FactsUnlearning`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import files, report
from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.language.answering import token_scores
from scissorhands_jax.language.demo.forgetting import forget_people
from scissorhands_jax.language.demo.scene import FactsScene, make_facts_scene, train_facts
from scissorhands_jax.language.demo.settings import GRADIENT_DIFFERENCE, NPO, SCISSORHANDS, FactsSettings
from scissorhands_jax.language.token_scores import answer_loss
from scissorhands_jax.terminal import Console, say

SEED = 100
MEASURED = 96
"""Facts to keep that are measured."""
TRIALS: Mapping[str, Sequence[Mapping[str, float]]] = {
    SCISSORHANDS: [
        {"scissorhands_rate": rate, "forget_weight": weight} for rate in (5e-4, 1e-3, 2e-3) for weight in (0.2, 1.0)
    ],
    NPO: [{"npo_rate": rate} for rate in (3e-5, 6e-5, 1e-4, 2e-4, 3e-4, 6e-4)],
    GRADIENT_DIFFERENCE: [{"gradient_difference_rate": rate} for rate in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 2e-3)],
}
"""What is tried of each method, as many of all."""


def numbers(scene: FactsScene, params: Params, model_state: ModelState) -> dict[str, float]:
    """How far losses of the facts to forget are from those of unseen people, and how probable facts to keep are."""
    lost, unseen, kept = (
        answer_loss(token_scores(scene.model, params, model_state, scene.rows(facts)))
        for facts in (scene.forget, scene.held_out, scene.retain[:MEASURED])
    )
    return {
        "distance": min(1.0, float(abs(lost.mean() - unseen.mean()) / unseen.mean())),
        "retain": float(np.exp(-kept).mean()),
        "forget": float(np.exp(-lost).mean()),
    }


def tried(settings: FactsSettings, console: Console) -> dict[str, Any]:
    """Trains the original and tries everything; scores are in percentage points, smaller is better."""
    scene = make_facts_scene(settings)
    original = train_facts(settings, scene, 0, without=False)
    before = numbers(scene, *original)
    found: dict[str, Any] = {"original": before, "trials": {}}
    for name, trials in TRIALS.items():
        rows = []
        for changes in trials:
            chosen: dict[str, Any] = dict(changes)
            changed = dataclasses.replace(settings, unlearning=dataclasses.replace(settings.unlearning, **chosen))
            done = forget_people(changed, scene, original, name)
            measured = numbers(scene, done.params, done.model_state)
            score = 50 * (measured["distance"] + abs(measured["retain"] - before["retain"]))
            rows.append({"changes": chosen, "score": score, "numbers": measured})
            say(console, f"{name} {chosen}: {score:.1f}")
        found["trials"][name] = rows
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries everything and writes FILE."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.facts_tuning", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    settings = FactsSettings(seed=SEED)
    found = {"settings": dataclasses.asdict(settings), **tried(settings, Console(stderr=True)), **report.environment()}
    files.write_text(options.out, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
