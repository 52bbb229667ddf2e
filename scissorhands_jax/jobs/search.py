"""Choosing a method's settings without an oracle: on validation data, never on the test set or a retrained network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from scissorhands_jax.base import Data, Dataset, Key, Method, Model, ModelState, Params
from scissorhands_jax.errors import DivergedError, InputError
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.methods.settings import Choices, Range, TrainingSettings
from scissorhands_jax.metrics import answers
from scissorhands_jax.tasks import CLASSIFICATION, Task
from scissorhands_jax.training import sweeps
from scissorhands_jax.training.loop import run

Changes = dict[str, Any]
"""The value of each setting that is tuned: a number, or one of the names among which it is chosen."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One choice of settings that was tried."""

    changes: Changes
    score: float
    """The distance from a retrained network as far as it is known (`proxy_score`), in percentage points; infinite where
    the run diverged."""
    numbers: dict[str, float]
    """The numbers behind the score, as `measure_trial` returns them; empty where the run diverged."""
    observed: dict[str, float]
    """What the caller measured in addition, which never enters the choice."""
    seconds: float
    """The time of the run and of the measurements behind the score, with compilation."""

    def document(self) -> dict[str, Any]:
        """The trial as JSON; the score of one that diverged is null."""
        return dataclasses.asdict(self) | {"score": self.score if np.isfinite(self.score) else None}

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Trial:
        """The trial of which `document` gave this."""
        return cls(**{**document, "score": float("inf") if document["score"] is None else document["score"]})


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The settings that were chosen, and everything that was tried."""

    settings: MethodSettings
    """The best settings."""
    best: Trial
    trials: list[Trial]
    """All trials in order; the first one has the settings that the search started with."""

    def document(self) -> dict[str, Any]:
        """The trials as JSON."""
        return {"best": dataclasses.asdict(self.best), "trials": [trial.document() for trial in self.trials]}


def tune_settings(
    model: Model,
    build: Callable[[MethodSettings], Method],
    settings: MethodSettings,
    key: Key,
    params: Params,
    model_state: ModelState,
    data: Data,
    validation: Dataset,
    *,
    space: Mapping[str, Range | Choices],
    whole_classes: bool,
    num_trials: int = 12,
    max_seconds: float | None = None,
    before: Mapping[str, float] | None = None,
    made: Sequence[Trial] = (),
    on_trial: Callable[[int, Trial], None] | None = None,
    observe: Callable[[Params, ModelState], dict[str, float]] | None = None,
    task: Task = CLASSIFICATION,
) -> SearchResult:
    """Tries settings from a scrambled Sobol sequence, the given ones first, and keeps the one with the smallest score.

    The score is what can be known without a retrained network (`proxy_score`).

    Args:
      model: The model, whose outputs are scored.
      build: Makes the method from its settings.
      settings: The settings that the search starts with; it changes the fields in `space`.
      key: A typed PRNG key for the draws and the runs; every trial runs with the same key.
      params, model_state: The original network.
      data: The forget and the retain set.
      validation: Examples that the original was not trained on, without the classes that are forgotten as a whole.
      space: The fields of `settings` that are tuned, with their ranges or names, such as `settings.search_ranges`. One
        that is None in `settings` stays None.
      whole_classes: Whether whole classes or identities are forgotten (`forget_sets.forgets_classes`).
      num_trials: The number of trials, at least 1.
      max_seconds: The time after which no trial starts; None is no limit. The trials in `made` count.
      before: What `measure_trial` says of the original. By default it is measured.
      made: The first trials of the same search, which an earlier call has made.
      on_trial: Called after every trial, also those in `made`, with its number, counted from 1, and the trial.
      observe: Measures every unlearned network for the record, for example against a retrained one; not used for the
        choice.
      task: What the network is for.

    Raises:
      InputError: A range or the budget cannot be used, trials in `made` are of another search, or whole classes are
        forgotten by a network that is no classifier.
      DivergedError: Every trial diverged.
    """
    space = searched_space(settings, space)
    check_search(settings, space, num_trials)
    if whole_classes and not task.classifies:
        raise InputError(
            f"the task {task.name!r} has no classes that are forgotten as a whole; give whole_classes=False"
        )
    if before is None:
        before = measure_trial(model, params, model_state, data, validation, task=task)
    choices = candidates(settings, space, num_trials, key)
    for number, (trial, changes) in enumerate(zip(made, choices, strict=False), start=1):
        if trial.changes != changes:
            raise InputError(
                f"trial {number} of those that were made has {_shown(trial.changes)}, where this search has "
                f"{_shown(changes)}; it was another search, so begin anew"
            )
    tried = [_with_changes(settings, changes) for changes in choices]
    methods = sweeps.methods_of(build, tried)
    started, trials = time.perf_counter(), list[Trial]()
    for number, (changes, method) in enumerate(zip(choices, methods, strict=True), start=1):
        if number <= len(made):
            trials.append(made[number - 1])
            started -= trials[-1].seconds
            if on_trial is not None:
                on_trial(number, trials[-1])
            continue
        if trials and max_seconds is not None and time.perf_counter() - started > max_seconds:
            break
        begun = time.perf_counter()
        numbers, score, observed = dict[str, float](), float("inf"), dict[str, float]()
        try:
            result = run(method, key, params, model_state, data, num_epochs=tried[number - 1].epochs)
            numbers = measure_trial(model, result.params, result.model_state, data, validation, task=task)
            score = proxy_score(numbers, before, whole_classes=whole_classes, task=task)
        except DivergedError:
            pass
        seconds = time.perf_counter() - begun
        if numbers and observe is not None:
            observed = observe(result.params, result.model_state)
        trials.append(Trial(changes, score, numbers, observed, seconds))
        if on_trial is not None:
            on_trial(number, trials[-1])
    best = min(trials, key=lambda trial: trial.score)
    if not np.isfinite(best.score):
        raise DivergedError(f"all {len(trials)} trials diverged; lower the range of the learning rate")
    return SearchResult(_with_changes(settings, best.changes), best, trials)


def searched_space(settings: MethodSettings, space: Mapping[str, Range | Choices]) -> dict[str, Range | Choices]:
    """The part of a space that a search of these settings tunes.

    What is None stays None, and the schedule stays what it is where the steps of one were given.
    """
    stays = {name for name in space if getattr(settings, name, 0) is None}
    if isinstance(settings, TrainingSettings):
        defaults = {field.name: field.default for field in dataclasses.fields(settings)}
        changes: dict[str, Any] = {name: defaults[name] for name in ("milestones", "gamma")}
        usual = dataclasses.replace(settings, **changes)  # A recipe puts its own in the place of None.
        if settings.milestones not in ((), usual.milestones) or settings.gamma != usual.gamma:
            stays.add("schedule")
    return {name: searched for name, searched in space.items() if name not in stays}


def _shown(changes: Mapping[str, Any]) -> str:
    return " ".join(as_overrides(changes))


def _with_changes(settings: MethodSettings, changes: Mapping[str, Any]) -> MethodSettings:
    changed = dataclasses.replace(settings, **changes)
    if "schedule" not in changes or not isinstance(changed, TrainingSettings):
        return changed
    unread: dict[str, Any] = {name: value for name, value in changed.unread().items() if name not in changes}
    return dataclasses.replace(changed, **unread)  # Settings of the schedule that is not tried.


def candidates(
    settings: MethodSettings, space: Mapping[str, Range | Choices], num_trials: int, key: Key
) -> Sequence[Changes]:
    """The choices of settings that a search tries.

    Args:
      settings: The settings that the search starts with.
      space: The fields that are tuned, each with its range or its names.
      num_trials: The number of choices.
      key: A typed PRNG key, of the scrambling of the sequence.

    Returns:
      The given settings, then points of a scrambled Sobol sequence, which fill the space evenly: numbers on a
      logarithmic scale, with three significant digits, and every name equally often.
    """
    start = {name: getattr(settings, name) for name in space}
    if num_trials == 1:
        return [start]
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    count = num_trials - 1
    points = stats.qmc.Sobol(len(space), rng=seed).random_base2(int(np.ceil(np.log2(max(count, 2)))))[:count]
    return [
        start,
        *({name: _at(share, space[name]) for name, share in zip(space, point, strict=True)} for point in points),
    ]


def near(settings: MethodSettings, space: Mapping[str, Range | Choices], factor: float) -> dict[str, Range | Choices]:
    """The part of a space that lies around some settings, for a search of few trials.

    Args:
      settings: The settings that the search starts with.
      space: The fields that are tuned, each with its range or its names.
      factor: How far a number may be from that of `settings`, as a factor above 1.

    Returns:
      Every number with its range, cut where the factor ends; names, and what is None, are left out, so they stay as
      they are.

    Raises:
      InputError: The factor is not above 1, or leaves nothing of a range.
    """
    if not factor > 1:
        raise InputError(f"the search stays within a factor above 1 of what it starts with, got {factor}")
    cut = dict[str, Range | Choices]()
    for name, searched in space.items():
        first, last = searched[0], searched[-1]
        if isinstance(first, str) or isinstance(last, str):
            continue
        start = getattr(settings, name)
        if start is None:
            continue
        low, high = max(first, start / factor), min(last, start * factor)
        if not low < high:
            raise InputError(
                f"{name} = {start:g} is no factor of {factor:g} from its range, {first:g} to {last:g}; begin inside it"
            )
        cut[name] = (low, high)
    return cut


def _at(share: float, searched: Range | Choices) -> Any:
    """The value at a share of the way through a range or through names; the share is in [0, 1)."""
    first, last = searched[0], searched[-1]
    if isinstance(first, str) or isinstance(last, str):
        return searched[int(share * len(searched))]
    return float(f"{first ** (1 - share) * last**share:.3g}")


def as_overrides(changes: Mapping[str, Any]) -> list[str]:
    """The settings of a trial as the command line writes them, such as `learning_rate=0.01`."""
    return [
        f"{name}={value:g}" if isinstance(value, float | int) else f"{name}={value}" for name, value in changes.items()
    ]


def measure_trial(
    model: Model,
    params: Params,
    model_state: ModelState,
    data: Data,
    validation: Dataset,
    *,
    task: Task = CLASSIFICATION,
) -> dict[str, float]:
    """Accuracies in percent, and the distance of the forget set's losses from the validation set's.

    `loss_distance` is the Kolmogorov-Smirnov statistic between both samples of losses, in percent: 0 where they are
    distributed alike, as they are under a network that saw neither.

    Args:
      model, params, model_state: The network.
      data: The forget and the retain set.
      validation: Examples that the original network was not trained on.
      task: What the network is for. Of another task than classification, its first metric is in place of accuracies.
    """
    sets = {"forget": data.forget, "retain": data.retain, "validation": validation}
    return measure_sets(model, params, model_state, sets, task=task)


def measure_sets(
    model: Model, params: Params, model_state: ModelState, sets: Mapping[str, Dataset], *, task: Task = CLASSIFICATION
) -> dict[str, float]:
    """The numbers of `measure_trial` for other sets, by their names, with `forget` and `validation` among them.

    Args:
      model, params, model_state: The network.
      sets: The examples of each set.
      task: What the network is for.
    """
    numbers, losses = {}, {}
    for name, part in sets.items():
        outputs = answers.outputs_of(task, model, params, model_state, part)
        numbers[f"{task.metrics[0].name}_{name}"] = answers.quality(task, outputs, part)
        losses[name] = answers.example_losses(task, outputs, part)
    distance = stats.ks_2samp(losses["forget"], losses["validation"], method="asymp").statistic
    numbers["loss_distance"] = 100 * float(distance)
    return numbers


def proxy_score(
    numbers: Mapping[str, float], before: Mapping[str, float], *, whole_classes: bool, task: Task = CLASSIFICATION
) -> float:
    """How far a network is from a retrained one, as far as that is known without retraining; percentage points.

    A retrained network is about as good as the original on retained and on unseen examples. To it, a random forget set
    is like any unseen examples, so that its losses are distributed like those of the validation set; and it never
    answers with a class that it never saw. The score is the mean of the three distances: forget, retain, validation.

    Args:
      numbers: What `measure_trial` says of the network.
      before: The same of the original network.
      whole_classes: Whether whole classes are forgotten.
      task: What the network is for.
    """
    metric = task.metrics[0].name
    forget = numbers[f"{metric}_forget"] if whole_classes else numbers["loss_distance"]
    lost = [abs(numbers[name] - before[name]) for name in (f"{metric}_retain", f"{metric}_validation")]
    return (forget + sum(lost)) / 3


def check_search(settings: MethodSettings, space: Mapping[str, Range | Choices], num_trials: int) -> None:
    """Refuses a search that cannot be made.

    Raises:
      InputError: There is no trial, a field to tune does not exist, or its values cannot be searched.
    """
    if num_trials < 1:
        raise InputError(f"tuning needs at least 1 trial, got {num_trials}")
    if not space:
        raise InputError(f"{type(settings).__name__} names no settings to tune; add them to its search_ranges")
    names = [field.name for field in dataclasses.fields(settings)]
    for name, searched in space.items():
        if name not in names:
            raise InputError(f"{type(settings).__name__} has no setting {name!r} to tune; it has {', '.join(names)}")
        numbers = [value for value in searched if not isinstance(value, str)]
        is_range = len(numbers) == len(searched) == 2 and 0 < numbers[0] <= numbers[1]
        if not searched or (numbers and not is_range):
            raise InputError(f"the range of {name} must be two positive numbers in order, or names, got {searched}")
