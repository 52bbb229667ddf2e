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
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import programs
from scissorhands_jax.base import ModelState, Params
from scissorhands_jax.errors import InputError, NonFiniteError
from scissorhands_jax.jobs import search
from scissorhands_jax.language.demo.forgetting import forget_people
from scissorhands_jax.language.demo.scene import FactsScene, make_facts_scene, train_facts
from scissorhands_jax.language.demo.settings import UNLEARNED, FactsSettings
from scissorhands_jax.language.token_losses import answers_task
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import Console, say

SEED = 200
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_OUT = Path(__file__).parent / "results" / "facts_rates.json"


def with_rate(settings: FactsSettings, name: str, rate: float) -> FactsSettings:
    """The settings with another rate of a method."""
    unlearning = dataclasses.replace(settings.unlearning, **{f"{name}_rate": rate})
    return dataclasses.replace(settings, unlearning=unlearning)


def fill(
    settings: FactsSettings, rates: Sequence[float], out: Path, console: Console, *, overwrite: bool = False
) -> dict[str, Any]:
    """Makes the trials that are missing in a file.

    Args:
      settings: Those of the demonstration; the seed is that of the trials.
      rates: What is tried of every method.
      out: The file.
      console: Is told what was done.
      overwrite: Whether trials that are in the file are made again.

    Returns:
      What is in the file then: "trials", each with "method", "rate", "score" (None if it diverged) and "numbers", the
      numbers of the "original", and for each method the rate that was "chosen".

    Raises:
      InputError: The file has trials of other settings or of another original, or is damaged.
    """
    original: dict[str, float] = {}

    def trials_of(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        original.update(document["original"] or {})
        return _trials_of(document)

    def compose(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
        trials = [*results.values()]
        return {"original": original, "trials": trials, "chosen": _chosen(trials)}

    with programs.open_results(
        out,
        {"settings": _common(settings)},
        results_of=trials_of,
        compose=compose,
        overwrite=overwrite,
    ) as results:
        missing = {
            _title(name, rate): (name, rate)
            for name in UNLEARNED
            for rate in rates
            if _title(name, rate) not in results.results
        }
        if missing:
            scene = make_facts_scene(settings)
            network = train_facts(settings, scene, 0, without=False)
            now = _numbers(scene, network)
            if results.results and now != original:
                raise InputError(
                    f"{out} has trials of another original, whose numbers are {original}, and those of the one that "
                    f"this code trains {now}; name another file with --out, or replace it with --overwrite"
                )
            original.update(now)
            cases = {
                title: functools.partial(_trial, settings, scene, network, *one, original)
                for title, one in missing.items()
            }
            results.fill(cases, console, shown=lambda trial: trial["score"] and round(trial["score"], 2))
        return results.document()


def _trials_of(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The trials of a file by their titles."""
    return {_title(trial["method"], trial["rate"]): trial for trial in document["trials"]}


def _common(settings: FactsSettings) -> dict[str, Any]:
    """What all trials have in common: the settings without the rates that the demonstration has."""
    common = dataclasses.asdict(settings)
    return common | {"unlearning": {name: value for name, value in common["unlearning"].items() if "rate" not in name}}


def _title(name: str, rate: float) -> str:
    return f"{name} at {rate:g}"


def _trial(
    settings: FactsSettings,
    scene: FactsScene,
    network: tuple[Params, ModelState],
    name: str,
    rate: float,
    before: Mapping[str, float],
) -> dict[str, Any]:
    trial = _tried(with_rate(settings, name, rate), scene, network, name, before)
    return {"method": name, "rate": rate, **trial}


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


@programs.ending(programs.CONTINUES)
def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the trials, prints what was chosen, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.facts_rates", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=_OUT, metavar="FILE", help="default experiments/results")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"default {SEED}")
    programs.add_overwrite(parser)
    options = parser.parse_args(arguments)
    provenance.note_code()
    settings = FactsSettings(seed=options.seed)
    document = fill(settings, RATES, options.out, Console(stderr=True), overwrite=options.overwrite)
    for name, rate in document["chosen"].items():
        say(Console(), f"{name}: {rate:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
