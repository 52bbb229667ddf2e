"""Rates of the methods of `scissorhands demo language`, chosen with equal budgets.

    python -m experiments.facts_rates --out facts_rates.json

Every method forgets with the same rates, in the same number of steps, from one original that was trained on a seed
which the demonstration does not show; everything else has the defaults of the demonstration. A trial is scored as
`scissorhands tune` scores it: by how differently the losses of forgotten answers are distributed from those of people
whom the network never met, and by what is lost of the others. No retrained network is trained, so none is looked at.
Trials that are in the file already are not made again, so a run that was stopped continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scissorhands_jax import files, reading, report
from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.errors import InputError, NonFiniteError
from scissorhands_jax.jobs import search
from scissorhands_jax.language.demo.forgetting import forget_people
from scissorhands_jax.language.demo.scene import FactsScene, make_facts_scene, train_facts
from scissorhands_jax.language.demo.settings import UNLEARNED, FactsSettings
from scissorhands_jax.language.token_losses import answers_task
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console, complain, say

SEED = 200
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_OUT = Path(__file__).parent / "results" / "facts_rates.json"


def with_rate(settings: FactsSettings, name: str, rate: float) -> FactsSettings:
    """The settings with another rate of a method."""
    unlearning = dataclasses.replace(settings.unlearning, **{f"{name}_rate": rate})
    return dataclasses.replace(settings, unlearning=unlearning)


def fill(settings: FactsSettings, rates: Sequence[float], out: Path, console: Console) -> dict[str, Any]:
    """Makes the trials that are missing in a file.

    Args:
      settings: Those of the demonstration; the seed is that of the trials.
      rates: What is tried of every method.
      out: The file.
      console: Is told what was done.

    Returns:
      What is in the file then: "trials", each with "method", "rate", "score" (None if it diverged) and "numbers", the
      numbers of the "original", and for each method the rate that was "chosen".

    Raises:
      InputError: The file has trials of other settings, or is damaged.
    """
    about = json.loads(json.dumps(dataclasses.asdict(settings)))
    document = _read(out, about)
    missing = [
        (name, rate)
        for name in UNLEARNED
        for rate in rates
        if not any((trial["method"], trial["rate"]) == (name, rate) for trial in document["trials"])
    ]
    if missing:
        scene = make_facts_scene(settings)
        network = train_facts(settings, scene, 0, without=False)
        document["original"] = _numbers(scene, network)
        for name, rate in missing:
            trial = _tried(with_rate(settings, name, rate), scene, network, name, document["original"])
            document["trials"].append({"method": name, "rate": rate, **trial})
            document["chosen"] = _chosen(document["trials"])
            files.write_text(out, json.dumps(document | report.environment(), indent=1, allow_nan=False) + "\n")
            say(
                console, f"{name} at {rate:g}: {trial['score'] if trial['score'] is None else round(trial['score'], 2)}"
            )
    return document


def _read(out: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    if not out.is_file():
        return {"settings": about, "original": None, "trials": [], "chosen": {}}
    try:
        document = reading.read_json(out)
    except (OSError, ValueError) as error:
        raise InputError(f"{out} cannot be read ({error}); name another file with --out") from error
    if not isinstance(document, dict) or document.get("settings") != about:
        raise InputError(f"{out} has trials of other settings; name another file with --out")
    return document


def _tried(
    settings: FactsSettings,
    scene: FactsScene,
    network: tuple[Params, ModelState],
    name: str,
    before: Mapping[str, float],
) -> dict[str, Any]:
    try:
        done = forget_people(settings, scene, network, name)
    except NonFiniteError:
        return {"score": None, "numbers": None}
    numbers = _numbers(scene, (done.params, done.model_state))
    score = search.proxy_score(numbers, before, whole_classes=False, task=answers_task())
    return {"score": score, "numbers": numbers}


def _numbers(scene: FactsScene, network: tuple[Params, ModelState]) -> dict[str, float]:
    return search.measure_trial(scene.model, *network, scene.data, scene.rows(scene.held_out), task=answers_task())


def _chosen(trials: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The rate with the smallest score of each method that has one; of equal ones the smallest rate."""
    scored = [trial for trial in trials if trial["score"] is not None]
    best = {
        trial["method"]: trial for trial in sorted(scored, key=lambda one: (one["score"], one["rate"]), reverse=True)
    }
    return {name: best[name]["rate"] for name in UNLEARNED if name in best}


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the trials, prints what was chosen, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.facts_rates", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=_OUT, metavar="FILE", help="default experiments/results")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"default {SEED}")
    options = parser.parse_args(arguments)
    provenance.note_code()
    console = Console(stderr=True)
    try:
        document = fill(FactsSettings(seed=options.seed), RATES, options.out, console)
    except InputError as error:
        complain(console, str(error))
        return 2
    for name, rate in document["chosen"].items():
        say(Console(), f"{name}: {rate:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
