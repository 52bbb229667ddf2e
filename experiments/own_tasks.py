"""Regression and sequences: three tables of networks that are no image classifiers, `python -m experiments.own_tasks`.

    pip install --no-deps --target AEON aeon==1.6.0
    python -m experiments.own_tasks run diabetes japanese_vowels m1_yearly --data-dir AEON/aeon/datasets/data
    python -m experiments.own_tasks tune diabetes

`diabetes` (scikit-learn, 442 patients) forgets the patients whose targets are wrong: mirrored, for a tenth of the
training set. `japanese_vowels` (nine speakers, sequences of 7 to 29 steps) forgets a speaker. `m1_yearly` (181 yearly
series of the M1 competition) forecasts up to six years and forgets a tenth of the series. The sequences are files
inside the package aeon, of which nothing is imported: it wants an older NumPy than JAX needs.

`run` fills a table with seeds 0 to 4, and `tune` chooses settings on another seed without a retrained network; what it
chose is in `METHODS`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments import programs
from scissorhands_jax import data as data_lib
from scissorhands_jax import reading
from scissorhands_jax.base import Dataset
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import grid, search
from scissorhands_jax.jobs.experiment import Experiment, OwnNetwork, Scenario
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.gradient_ascent import GradientAscentSettings
from scissorhands_jax.methods.neggrad_plus import NegGradPlusSettings
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings
from scissorhands_jax.models import from_linen
from scissorhands_jax.report import provenance
from scissorhands_jax.tasks import classification, masked, regression
from scissorhands_jax.terminal import Console, LoggedConsole, say
from scissorhands_jax.training.descriptions import describe_value

SEEDS = (0, 1, 2, 3, 4)
TRIALS = 8
_MAX_FILE = 2**22  # bytes of a file of data
PAST, HORIZON = 12, 6  # years that a forecast sees, and years that it is of
PAST_LEAST = 6


class Subject(NamedTuple):
    """A network with its data, its table, examples for tuning if the training set has none to spare, and its seed."""

    own: OwnNetwork
    experiment: Experiment
    validation: Dataset | None = None
    tuning_seed: int = 10


class Dense(nn.Module):
    """Two hidden layers over all inputs, side by side."""

    outputs: int
    width: int = 256

    @nn.compact
    def __call__(self, x: Any) -> jax.Array:
        x = jnp.concatenate(jax.tree.leaves(x), axis=-1).astype(jnp.float32)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.outputs)(x)


class Speakers(nn.Module):
    """Windows of five steps, the mean and the maximum of what they see over the real steps, and a class."""

    @nn.compact
    def __call__(self, x: Mapping[str, jax.Array]) -> jax.Array:
        real = x["mask"][..., None]
        steps = nn.relu(nn.Conv(64, (5,))(x["sequence"] * real))
        mean = jnp.sum(steps * real, axis=1) / jnp.sum(real, axis=1)
        highest = jnp.max(jnp.where(real, steps, 0), axis=1)
        return nn.Dense(9)(nn.relu(nn.Dense(64)(jnp.concatenate([mean, highest], axis=-1))))


def diabetes(data_dir: Path | None) -> Subject:
    """The patients of scikit-learn's diabetes data; errors are in percent of the targets' standard deviation."""
    del data_dir
    from sklearn.datasets import load_diabetes

    features, target = load_diabetes(return_X_y=True)
    features, target = features / features.std(axis=0), (target - target.mean()) / target.std()
    order = np.random.default_rng(0).permutation(len(target))
    examples = {"features": features[order].astype(np.float32), "label": target[order].astype(np.float32)}
    train, test = (data_lib.take(examples, part) for part in (np.arange(342), np.arange(342, 442)))
    model = from_linen(Dense(1), jax.ShapeDtypeStruct((1, 10), jnp.float32))
    scenario = Scenario(
        name="a tenth of the targets is wrong", flipped_labels=0.1, forget=("flipped",), methods=METHODS["diabetes"]
    )
    training = RetrainSettings(epochs=300, batch_size=90, learning_rate=0.02, milestones=(200,), weight_decay=0.0)
    experiment = _experiment("diabetes", "two dense layers of 256", training, scenario, validation_share=0.2)
    return Subject(OwnNetwork(model=model, train=train, test=test, task=regression(1.0)), experiment)


def japanese_vowels(data_dir: Path | None) -> Subject:
    """Which of nine speakers says two vowels: sequences of 12 numbers a step, filled up to 29 steps."""
    train, test = (_utterances(_folder(data_dir) / f"JapaneseVowels/JapaneseVowels_{part}.ts") for part in _PARTS)
    shapes = {
        name: jax.ShapeDtypeStruct((1, *train[name].shape[1:]), train[name].dtype) for name in ("sequence", "mask")
    }
    own = OwnNetwork(model=from_linen(Speakers(), shapes), train=train, test=test, task=classification())
    scenario = Scenario(name="one of nine speakers", forget=("class:{seed}",), methods=METHODS["japanese_vowels"])
    training = RetrainSettings(epochs=60, batch_size=81, learning_rate=0.02, milestones=(40,), weight_decay=0.0)
    experiment = _experiment("japanese_vowels", "one convolution, pooled", training, scenario, 0.1)
    return Subject(own, experiment, tuning_seed=8)


_PARTS = ("TRAIN", "TEST")


def m1_yearly(data_dir: Path | None) -> Subject:
    """Forecasts of up to six years from the twelve before; a series is an owner, whose forecasts are all forgotten."""
    series = _series(_folder(data_dir) / "m1_yearly_dataset/m1_yearly_dataset.tsf")
    order = np.random.default_rng(0).permutation(len(series))
    train, validation, test = (_windows(series, part) for part in np.split(order, (121, 151)))
    owners = train.pop("series")
    for part in (validation, test):
        part.pop("series")
    scale = float(train["label"][train["mask"]].std())
    shapes = {name: jax.ShapeDtypeStruct((1, *train[name].shape[1:]), train[name].dtype) for name in train}
    del shapes["label"]
    own = OwnNetwork(
        model=from_linen(Dense(HORIZON), shapes), train=train, test=test, task=masked(regression(scale)), owners=owners
    )
    scenario = Scenario(name="12 of 121 series", forget=("identity:random:12",), methods=METHODS["m1_yearly"])
    training = RetrainSettings(epochs=200, batch_size=128, learning_rate=0.02, milestones=(150,), weight_decay=0.0)
    return Subject(own, _experiment("m1_yearly", "two dense layers of 256", training, scenario, 0.0), validation)


def _experiment(
    name: str, model: str, training: RetrainSettings, scenario: Scenario, validation_share: float
) -> Experiment:
    return Experiment(
        name=name,
        dataset=name,
        model=model,
        validation_share=validation_share,
        training=training,
        scenarios=(scenario,),
    )


def _folder(data_dir: Path | None) -> Path:
    if data_dir is None:
        raise InputError("this table needs --data-dir and the folder aeon/datasets/data of the package aeon; name it")
    return data_dir


def _lines(path: Path) -> list[str]:
    """The lines of a file of aeon after its header."""
    try:
        text = reading.read_bytes(path, _MAX_FILE).decode("latin-1")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name the folder aeon/datasets/data") from error
    return [line for line in text.partition("@data")[2].splitlines() if line.strip()]


def _utterances(path: Path) -> Dataset:
    """Sequences and their speakers, from 0, of a file in the form `.ts`: one line each, dimensions between colons."""
    parts = [line.split(":") for line in _lines(path)]
    arrays = [np.array([line.split(",") for line in dims], np.float32).T for *dims, _ in parts]
    sequence = np.zeros((len(arrays), 29, 12), np.float32)
    mask = np.zeros(sequence.shape[:2], bool)
    for row, steps in enumerate(arrays):
        sequence[row, : len(steps)], mask[row, : len(steps)] = steps, True
    return {"sequence": sequence, "mask": mask, "label": np.array([int(part[-1]) for part in parts], np.int32) - 1}


def _series(path: Path) -> list[np.ndarray]:
    """The series of a file in the form `.tsf`: one line each, the values after the last colon."""
    return [np.array(line.rpartition(":")[2].split(","), np.float64) for line in _lines(path)]


def _windows(series: list[np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Cuts series into forecasts, six years apart: years before, and up to six after, of which some may lack.

    Numbers are logarithms of the values relative to the mean of the years before.
    """
    found: dict[str, list[np.ndarray | int]] = {"past": [], "known": [], "label": [], "mask": [], "series": []}
    for number in chosen:
        values = series[number]
        for origin in range(PAST_LEAST, len(values), HORIZON):
            past, future = values[max(0, origin - PAST) : origin], values[origin : origin + HORIZON]
            level = past.mean()
            for name, part, size, at in (("past", past, PAST, -len(past)), ("label", future, HORIZON, 0)):
                place = np.arange(size) >= size + at if at else np.arange(size) < len(part)
                padded = np.zeros(size, np.float32)
                padded[place] = np.log(part / level)
                found[name].append(padded)
                found["known" if name == "past" else "mask"].append(place)
            found["series"].append(int(number))
    return {name: np.array(parts) for name, parts in found.items()}


def _methods(batch_size: int, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, MethodSettings]:
    """The methods of a table, with what `tune` chose."""
    sgd = {"batch_size": batch_size, "weight_decay": 0.0}
    kinds: dict[str, Callable[..., MethodSettings]] = {
        "finetune": FinetuneSettings,
        "gradient_ascent": GradientAscentSettings,
        "neggrad_plus": NegGradPlusSettings,
        "scissorhands": ScissorhandsSettings,
    }
    return {name: kind(**{"epochs": 10, **sgd, **chosen.get(name, {})}) for name, kind in kinds.items()}


def _trimmed(fraction: float, forget_weight: float, learning_rate: float, schedule: str = "drops") -> dict[str, Any]:
    return {
        "fraction": fraction,
        "forget_weight": forget_weight,
        "learning_rate": learning_rate,
        "schedule": schedule,
    }


METHODS = {
    "diabetes": _methods(
        90,
        {
            "finetune": {"learning_rate": 0.00216},
            "gradient_ascent": {"learning_rate": 0.00216},
            "neggrad_plus": {"learning_rate": 0.00216},
            "scissorhands": _trimmed(0.00421, 0.00873, 0.0116),
        },
    ),
    "japanese_vowels": _methods(
        81,
        {
            "finetune": {"learning_rate": 0.01},
            "gradient_ascent": {"learning_rate": 0.00216, "schedule": "linear"},
            "neggrad_plus": {"learning_rate": 0.00107},
            "scissorhands": _trimmed(0.00424, 0.554, 0.0156, "linear"),
        },
    ),
    "m1_yearly": _methods(
        128,
        {
            "finetune": {"learning_rate": 0.00469},
            "gradient_ascent": {"learning_rate": 0.000658, "schedule": "linear"},
            "neggrad_plus": {"learning_rate": 0.01},
            # The loss of unseen series: a forecast of a series that was never seen is far better than none.
            "scissorhands": {"ceiling": 0.23, **_trimmed(0.00563, 0.164, 0.0372)},
        },
    ),
}
"""The settings of the methods by the name of the table, as `tune` chose them on the settings of `_methods`."""

SUBJECTS: dict[str, Callable[[Path | None], Subject]] = {
    "diabetes": diabetes,
    "japanese_vowels": japanese_vowels,
    "m1_yearly": m1_yearly,
}


def tuned(subject: Subject, label: str, folder: Path, console: Console) -> search.SearchResult:
    """Chooses the settings of a method on the tuning seed, without a retrained network or the test set.

    Args:
      subject: The network.
      label: The method.
      folder: Where the original network of the tuning seed is kept.
      console: Shows the training of that network.
    """
    store = grid.TableNetworks(subject.experiment, None, folder, folder / "networks", subject.own)
    scenario = grid.SeededScenario(store, subject.experiment.scenarios[0], subject.tuning_seed)
    with progress_bar(console) as progress:
        original = scenario.original(progress)
    settings = subject.experiment.scenarios[0].methods[label]
    return search.tune_settings(
        subject.own.model,
        store.loaded.method,
        settings,
        jax.random.key(subject.tuning_seed),
        original.params,
        original.model_state,
        scenario.data,
        scenario.validation if subject.validation is None else subject.validation,
        space=settings.search_ranges,
        whole_classes=subject.own.task.classifies,
        num_trials=TRIALS,
        task=subject.own.task,
    )


@programs.ending("the same command continues")
def main(arguments: list[str] | None = None) -> int:
    """Runs or tunes the tables and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.own_tasks", description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("run", "tune"))
    parser.add_argument("names", nargs="+", choices=tuple(SUBJECTS), metavar="NAME", help=", ".join(SUBJECTS))
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="the folder aeon/datasets/data")
    parser.add_argument("--only", default="", metavar="REGEX", help="methods whose name matches")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="default runs")
    parser.add_argument("--overwrite", action="store_true", help="tune again what was tuned already")
    options = parser.parse_args(arguments)
    provenance.note_code()
    console = LoggedConsole()
    subjects = {name: SUBJECTS[name](options.data_dir) for name in options.names}
    methods = {name: subject.experiment.scenarios[0].methods for name, subject in subjects.items()}
    chosen = {name: grid.label_pattern(options.only, labels).search for name, labels in methods.items()}
    for name, subject in subjects.items():
        if options.command == "run":
            grid.run_grid(
                subject.experiment,
                options.out / name,
                seeds=SEEDS,
                only=options.only,
                own=subject.own,
                console=console,
            )
            say(console, f"render it with: python -m experiments.tables {options.out / name / 'results.json'}")
            continue
        for label in filter(chosen[name], methods[name]):
            _tune(name, subject, label, options.out / f"{name}-tuning", console, overwrite=options.overwrite)
    return 0


def _tune(name: str, subject: Subject, label: str, folder: Path, console: Console, *, overwrite: bool) -> None:
    """Tunes one method, unless its file in the folder has what the same settings gave."""
    settings = subject.experiment.scenarios[0].methods[label]
    depends = {"method": describe_value(settings, label), "seed": subject.tuning_seed, "budget": TRIALS}
    with programs.open_results(
        folder / f"{label}.json",
        depends,
        results_of=lambda document: {
            label: {**{part: document[part] for part in ("best", "trials")}, "code": document["made_by"]["code"]}
        },
        compose=lambda results: {part: results[label][part] for part in ("best", "trials")},
        overwrite=overwrite,
    ) as results:
        if label not in results.results:
            results.add(label, tuned(subject, label, folder, console).document())
        changes = results.results[label]["best"]["changes"]
        say(console, f"{name}, {label}: {' '.join(search.as_overrides(changes))}")


if __name__ == "__main__":
    sys.exit(main())
