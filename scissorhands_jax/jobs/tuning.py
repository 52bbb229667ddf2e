"""What `scissorhands tune` does: the settings of one unlearning job, chosen within a budget."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, reading, report
from scissorhands_jax.errors import CheckpointError, InputError
from scissorhands_jax.jobs import originals, runs, search
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.job import Job, ValidationSet, prepare_job
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.methods.settings import Choices, Range
from scissorhands_jax.metrics import answers
from scissorhands_jax.metrics.row import SetPredictions
from scissorhands_jax.terminal import Console, say

TUNING_FILE = "tuning.json"
_TRIALS_FOLDER = "trials"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """The settings that were chosen for a job, and how."""

    config: RunConfig
    """The job, with the settings that the search started with."""
    result: search.SearchResult
    space: Mapping[str, Range | Choices]
    """What was tuned: names of settings, with their ranges or names."""
    validation: ValidationSet

    @property
    def overrides(self) -> list[str]:
        """The best settings as `unlearn` takes them."""
        return [f"method.{change}" for change in search.as_overrides(self.result.best.changes)]

    def document(self) -> dict[str, Any]:
        """The content of `tuning.json`, with the versions and the machine of this process."""
        return {
            "overrides": self.overrides,
            **self.result.document(),
            "space": dict(self.space),
            "validation": {"what": self.validation.what, "count": data_lib.size(self.validation.examples)},
            "config": dataclasses.asdict(self.config),
            **report.environment(),
        }


def tune(
    config: RunConfig,
    out: Path,
    *,
    num_trials: int,
    max_minutes: float | None,
    overwrite: bool = False,
    resume: bool = False,
    insist: bool = False,
    kept: Collection[str] = (),
    console: Console,
) -> Tuning:
    """Chooses settings of the method for one unlearning job, within a budget, and writes `tuning.json` into a folder.

    Every trial is kept in the folder (`trials/`), so that a tuning that was stopped continues with the next one.

    The search looks neither at a retrained network nor at the test set, except for the share of the test set that may
    be set aside for it.

    Args:
      config: The job, as for `unlearn`. Its `validation` says what the search looks at (`RunConfig`); `unlearn` with
        the same `test:SHARE` leaves that share out of its test set.
      out: The folder, which must be new, or hold an earlier tuning that is to be replaced.
      num_trials: The number of settings that are tried.
      max_minutes: The time after which no trial starts; None is no limit.
      overwrite: Whether an earlier tuning in the folder is replaced.
      resume: Whether a tuning in the folder is continued. Without one there, one is started.
      kept: The names of settings that stay as they are, also if the method is otherwise tuned by them.
      insist: Whether to tune for an original that is near chance on the retain set all the same.
      console: Where progress and the result are shown.

    Raises:
      InputError: Something cannot be used, there is nothing to validate with, or the original is near chance.
    """
    if max_minutes is not None and not max_minutes > 0:
        raise InputError(f"--minutes must be a positive number, got {max_minutes}; leave it out for no limit")
    max_seconds = None if max_minutes is None else 60 * max_minutes
    job = prepare_job(config)
    config = job.config
    validation = job.validation
    if not insist:
        _refuse_near_chance(job)
    ranges = config.method.search_ranges
    space = {name: searched for name, searched in ranges.items() if name not in kept}
    if ranges and not space:
        raise InputError(f"{', '.join(ranges)} are all that is tuned, and all are given; leave one of them out")
    search.check_search(config.method, space, num_trials)
    identity = job.identity()
    chosen = {"command": "tune", **identity.chosen, "trials": num_trials, "validation_sha256": validation.sha256}
    if len(space) < len(ranges):
        chosen["tuned"] = list(space)
    identity = dataclasses.replace(identity, chosen=chosen)
    opened = runs.open_folder(out, identity, inputs=job.inputs, overwrite=overwrite, resume=resume)
    saved = f"{_TRIALS_FOLDER}/*.json"
    with opened as fresh, runs.cleared_if_refused(out, fresh, saved), progress_bar(console) as progress:
        made = _made_trials(out)
        task = progress.add_task(f"tuning {config.method_name}", total=num_trials, note="")

        def on_trial(number: int, trial: search.Trial) -> None:
            if number > len(made):
                files.write_text(_trial_file(out, number), json.dumps(trial.document(), indent=2) + "\n")
            changes = " ".join(search.as_overrides(trial.changes))
            progress.update(task, completed=number, note=f"score {trial.score:.2f}  {changes}")

        found = search.tune_settings(
            job.model,
            job.method,
            config.method,
            jax.random.key(config.seed),
            job.params,
            job.model_state,
            job.data,
            validation.examples,
            space=space,
            whole_classes=job.forgets_classes,
            num_trials=num_trials,
            max_seconds=max_seconds,
            made=made,
            on_trial=on_trial,
            task=job.splits.task,
        )
        tuning = Tuning(config=config, result=found, space=space, validation=validation)
        document = report.by_first_maker(out / TUNING_FILE, tuning.document())
        files.write_text(out / TUNING_FILE, json.dumps(document, indent=2) + "\n")
    aside = [] if job.set_aside is None else [f"--validation {config.validation}"]
    say(
        console,
        f"best of {len(found.trials)} trials, score {found.best.score:.2f} (with the settings as they were: "
        f"{found.trials[0].score:.2f}); hand these to unlearn: {' '.join(tuning.overrides + aside)}",
    )
    return tuning


def _refuse_near_chance(job: Job) -> None:
    """Refuses an original that does not answer its training set (see `originals.near_chance`)."""
    task, retain = job.splits.task, job.data.retain
    outputs = answers.outputs_of(task, job.model, job.params, job.model_state, retain)
    doubt = originals.near_chance_of(task, SetPredictions(outputs, retain), "retained examples")
    if doubt is not None:
        raise InputError(f"{doubt}; --insist tunes for it all the same")


def _trial_file(out: Path, number: int) -> Path:
    return out / _TRIALS_FOLDER / f"{number:04d}.json"


def _made_trials(out: Path) -> list[search.Trial]:
    """The trials that an earlier call has made, up to the first that is missing."""
    made: list[search.Trial] = []
    while (file := _trial_file(out, len(made) + 1)).exists():
        try:
            made.append(search.Trial.of_document(reading.read_json(file)))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{file} is damaged ({error}); remove it, and the trial is made again") from error
    return made
