"""The demonstration: a small network learns scikit-learn's digits by heart and forgets a part of them."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, report
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import grid
from scissorhands_jax.jobs.experiment import Experiment, Scenario
from scissorhands_jax.jobs.scenarios import SeededScenario, TableNetworks
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings
from scissorhands_jax.metrics import accuracies
from scissorhands_jax.terminal import Console, say

HIDDEN = (256, 256)
RANDOM = "random 10 %, 20 % of labels flipped"
"""The name of the scenario that forgets a random tenth."""
_COMMON: dict[str, Any] = {"batch_size": 64, "weight_decay": 0.0}
_TRAINING = RetrainSettings(epochs=100, learning_rate=0.05, milestones=(), **_COMMON)
_FINETUNE = FinetuneSettings(epochs=10, learning_rate=0.02, **_COMMON)

EXPERIMENT = Experiment(
    name="demo",
    dataset="digits",
    model="mlp",
    model_options={"hidden": HIDDEN},
    validation_share=0.0,
    training=_TRAINING,
    every_attack=False,
    scenarios=(
        Scenario(
            name=RANDOM,
            flipped_labels=0.2,
            forget=("random:0.1",),
            methods={
                "finetune": _FINETUNE,
                "scissorhands": ScissorhandsSettings(
                    epochs=20, learning_rate=0.05, fraction=0.05, trim="layer2|head", **_COMMON
                ),
            },
        ),
        Scenario(
            name="one class",
            forget=("class:{seed}",),
            methods={
                "finetune": _FINETUNE,
                "scissorhands": ScissorhandsSettings(
                    epochs=5, learning_rate=0.02, fraction=0.03, forget_weight=0.02, trim="layer2|head", **_COMMON
                ),
            },
        ),
    ),
)

_WHAT = (
    f"A network with two hidden layers of {HIDDEN[0]} units learned scikit-learn's 1,347 training digits for "
    f"{_TRAINING.epochs} epochs, until it knew them by heart. It was then asked to forget a part of them, by "
    "Scissorhands and by fine-tuning on the rest. The retrained network never saw that part: it is what the others "
    "should become.",
    "One class: seed 0 forgets the zeros, seed 1 the ones, and so on, and the test set leaves that class out, as in "
    "the paper.",
    "Random 10 %, 20 % of labels flipped: a network that generalizes treats most forgotten digits like the rest, so "
    "there would be nothing to see. Therefore 20 % of the training labels were flipped: right answers on those can "
    "only have been learned by heart, and the retrained network cannot give them.",
    "The settings were chosen once, on seeds 0 to 2, for a small Avg. Gap, so they depend on the retrained networks. "
    "They show what the method can do, and not what tuning without such a network would find.",
)
_HOW = (
    "The original and the fine-tuned network show what is measured where little is forgotten. The attack behind MIA is "
    "a support vector classifier on the confidence in the true label.",
    "A second network was retrained without the forget set, from another seed. The distance of the two is the floor: "
    "no method can be asked to come closer.",
)
_NAMES = {"original": "original", "finetune": "fine-tuned", "scissorhands": "Scissorhands", "retrain": "retrained"}
"""The networks of the picture, by the method of their rows."""
_SHOWN = 5  # digits in the picture


def run_demo(
    out: Path, *, num_seeds: int = 3, overwrite: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Runs both scenarios over some seeds and presents the results.

    The folder gets `results.json`, `report.html`, the networks, and a picture of networks that forget as
    `forgetting.svg` and `forgetting.png`.

    Args:
      out: The folder. A demonstration in it that was stopped is continued.
      num_seeds: The number of seeds, 1 to 10. They are 0, 1, 2, ...
      overwrite: Whether to replace a demonstration that is in the folder.
      console: Shows the progress and the verdict of the gates. The default is stderr.

    Returns:
      The document in `results.json`.

    Raises:
      InputError: `num_seeds` is not 1 to 10, or the folder holds something else.
    """
    if not 1 <= num_seeds <= 10:
        raise InputError(f"--seeds must be 1 to 10, got {num_seeds}")
    console = console or Console(stderr=True)
    document = grid.run_grid(
        EXPERIMENT,
        out,
        seeds=range(num_seeds),
        overwrite=overwrite,
        present=functools.partial(_present, out),
        console=console,
    )
    report.print_tables(document["rows"], Console())
    if note := report.failures_note(document):
        say(console, note)
    say(console, report.gates_note(document["gates"]))
    say(console, f"open {out / 'report.html'}; all numbers are in {out / 'results.json'}")
    return document


def _present(out: Path, document: dict[str, Any]) -> None:
    """Writes the pictures and the page."""
    class_picture, random_picture = _forgetting_pictures(out, document["rows"])
    figure = class_picture.figure
    files.write_text(out / "forgetting.svg", report.figure_svg(figure) + "\n")
    files.write_bytes(out / "forgetting.png", report.figure_png(figure))
    grid.write_report(
        out,
        document,
        title="A network forgets digits",
        answer=_answer(document["rows"]),
        explanations=[report.Section("What was done, and why", _WHAT), report.Section("How to read it", _HOW)],
        leading=[class_picture, random_picture],
    )


def _answer(rows: Sequence[report.Row]) -> str:
    """The result in a sentence."""
    gaps = {
        scenario: {method: statistics.fmean(row["avg_gap"] for row in group) for method, group in methods.items()}
        for scenario, methods in report.grouped(rows).items()
    }
    one, random = gaps["one class"], gaps[RANDOM]
    return (
        f"Asked to forget one class of digits, the network ends {one['scissorhands']:.1f} percentage points (Avg. Gap) "
        f"from one that never saw them; before, it was {one['original']:.1f} away, and fine-tuning leaves it "
        f"{one['finetune']:.1f} away. With a random tenth of the digits, of which one in five had a wrong label, it "
        f"ends {random['scissorhands']:.1f} away, from {random['original']:.1f}. Two networks that never saw the "
        f"digits are {one[report.REDRAWN]:.1f} and {random[report.REDRAWN]:.1f} apart."
    )


def _forgetting_pictures(out: Path, rows: Sequence[report.Row]) -> list[report.Picture]:
    """Forgotten digits of seed 0 with what each network says to them: first of the scenario `one class`."""
    store = TableNetworks(EXPERIMENT, None, out, out / "networks")
    by_scenario = report.grouped(rows)
    pictures = []
    for scenario in reversed(EXPERIMENT.scenarios):
        prepared = SeededScenario(store, scenario, 0)
        # Digits with a right label are answered alike by all networks, so the picture shows those with a wrong one.
        wrong = np.isin(prepared.forget_positions, prepared.flipped)
        chosen = np.flatnonzero(wrong if scenario.flipped_labels else ~wrong)[:_SHOWN]
        gaps = {
            name: statistics.fmean(row["avg_gap"] for row in by_scenario[scenario.name][method])
            for method, name in _NAMES.items()
        }
        which = "whose label was flipped" if scenario.flipped_labels else "of the class"
        examples = _forgotten_examples(prepared, chosen)
        said = "; ".join(
            f"{name}: {', '.join(example.answers[name].label for example in examples)}" for name in _NAMES.values()
        )
        pictures.append(
            report.Picture(
                report.forgetting_figure(examples, gaps),
                f"{scenario.name}: the first {len(examples)} forgotten digits {which} (seed 0), with the label that "
                "they had in training and what each network says to them. Orange: the network gives the "
                "label that it was to forget. Bars: the distance to the retrained network, mean over seeds.",
                f"Labels to forget: {', '.join(example.label for example in examples)}. Answers of {said}.",
                name="forgetting",
            )
        )
    return pictures


def _forgotten_examples(prepared: SeededScenario, positions: np.ndarray) -> list[report.ForgottenExample]:
    """Examples of a forget set, by their positions in it, with the answers of all networks."""
    examples = data_lib.take(prepared.data.forget, positions)
    model, answers = prepared.store.loaded.model, {}
    for method, name in _NAMES.items():
        network = prepared.load(method)
        logits = accuracies.predict(model, network.params, network.model_state, examples["image"])
        answers[name] = special.softmax(logits.astype(np.float64), axis=1)
    return [
        report.ForgottenExample(
            image,
            str(label),
            {
                name: report.Answer(str(shown[place].argmax()), float(shown[place].max()))
                for name, shown in answers.items()
            },
        )
        for place, (image, label) in enumerate(zip(examples["image"], examples["label"], strict=True))
    ]
