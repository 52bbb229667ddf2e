"""The command `scissorhands demo diffusion`: runs `digits` and shows what came out, as a page, pictures and JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from scissorhands_jax import files, report
from scissorhands_jax.diffusion.demo import digits
from scissorhands_jax.diffusion.demo.digits import (
    NUM_DIGITS,
    ORIGINAL,
    PUBLISHED,
    RETRAINED,
    UNLEARNED,
    VARIANTS,
    DigitsSettings,
)
from scissorhands_jax.diffusion.demo.drawings import drawings_figure
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import follow_steps, progress_bar
from scissorhands_jax.report import Cell, Grid, Picture

_SHOWN = 10  # drawings of a digit in a picture
_HEADERS = (
    "Network",
    "Forgotten digit, drawn as asked",
    "Other digits, drawn as asked",
    "Forgotten digit, unasked",
    "Fréchet distance, other digits",
)
REAL = "real digits"


def run_digits_demo(
    out: Path,
    settings: DigitsSettings,
    *,
    published: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains, forgets and judges, and writes `results.json`, `report.html` and pictures into the folder `out`.

    Args:
      out: the folder.
      settings: the digit, and how.
      published: the published code's loss is one of the controls.
      overwrite: replace an earlier demo.
      console: for progress; default standard error.

    Returns:
      The document in `results.json`.

    Raises:
      InputError: the folder is taken.
    """
    console = console or Console(stderr=True)
    described = dataclasses.asdict(settings)
    runs.open_folder(out, {"command": "demo diffusion", "settings": described}, overwrite=overwrite)
    with phases(console) as (tell, seconds):
        tell("data and judge", steps=False)
        scene = digits.make_scene(settings)
        original = digits.learn(settings, scene, None, tell(f"{ORIGINAL}: training"))
        rows, drawings = [], {}
        names = [name for name in (ORIGINAL, RETRAINED, *VARIANTS) if published or name != PUBLISHED]
        for row, images in digits.forget_digit(settings, scene, original, tell, only=names):
            rows.append(row)
            drawings[row["network"]] = images
        tell("real digits: judging", steps=False)
        document = {
            "settings": described,
            "instead": settings.instead,
            "real": digits.real_numbers(settings, scene),
            "rows": rows,
        }
        tell("pictures and page", steps=False)
        figures = drawing_pictures(settings, drawings)
        for picture in figures:
            files.write_bytes(out / f"{picture.name}.png", report.figure_png(picture.figure))
    document |= {"seconds": {**seconds, "total": sum(seconds.values())}, **report.environment()}
    files.write_text(out / runs.RESULTS_FILE, json.dumps(document, indent=2, allow_nan=False) + "\n")
    write_page(out / "report.html", document, figures)
    print_numbers(document, Console())
    console.print(f"open {out / 'report.html'}; all numbers are in {out / runs.RESULTS_FILE}", highlight=False)
    return document


@contextlib.contextmanager
def phases(console: Console) -> Iterator[tuple[digits.PhaseListener, dict[str, float]]]:
    """A `Told` with a progress bar per phase, and the seconds of each phase, compilation included."""
    seconds: dict[str, float] = {}
    current: list[tuple[str, float]] = []

    def end() -> None:
        for phase, began in current:
            seconds[phase] = seconds.get(phase, 0) + time.perf_counter() - began
        current.clear()

    with progress_bar(console) as progress:

        def tell(phase: str, *, steps: bool = True) -> Callable | None:
            end()
            current.append((phase, time.perf_counter()))
            return follow_steps(progress, phase) if steps else None

        yield tell, seconds
    end()


def drawing_pictures(settings: DigitsSettings, drawings: Mapping[str, np.ndarray]) -> list[Picture]:
    """The drawings before and after, and those of the controls.

    Args:
      settings: what was drawn.
      drawings: by network, for `digits.asked_for`.
    """
    asked = digits.requested_digits(settings)
    count = min(_SHOWN, settings.sampling.kept, settings.sampling.forgotten)
    rows = np.stack([np.flatnonzero(asked == digit)[:count] for digit in range(NUM_DIGITS)])
    tables = {name: images[rows][..., 0] for name, images in drawings.items()}
    labels = [str(digit) for digit in range(NUM_DIGITS)]
    which = "Each row is what a network draws when asked for the digit on its left; all begin with the same noise."

    def picture(names: Mapping[str, str], caption: str, name: str) -> Picture:
        shown = {title: tables[network] for network, title in names.items()}
        return Picture(
            drawings_figure(shown, labels, marked=settings.digit),
            caption,
            f"Drawings of the digits 0 to 9 by {len(names)} networks: {', '.join(names.values())}.",
            heading="Drawings",
            format="png",
            name=name,
        )

    return [
        picture(
            {ORIGINAL: "before", UNLEARNED: "after Scissorhands"},
            f"Before and after forgetting the {settings.digit}. {which}",
            "before_after",
        ),
        picture(
            {name: name for name in drawings if name not in (ORIGINAL, UNLEARNED)},
            f"The controls. {which} “{RETRAINED}” never saw the forgotten digit.",
            "controls",
        ),
    ]


def numbers_grid(rows: Sequence[Mapping[str, Any]], real: Mapping[str, Any]) -> Grid:
    """What all networks draw, with what real digits reach in the last line."""

    def distance(value: Mapping[str, Any]) -> Cell:
        return _mean(value, 2, f"{value['images']} images")

    lines = [
        (
            Cell(row["network"]),
            *(_share(row[name]) for name in ("forget", "kept", "unasked")),
            distance(row["frechet"]),
        )
        for row in rows
    ]
    reached = (_share(real["judge"]), _share(real["unasked"]), distance(real["frechet"]))
    return Grid(_HEADERS, (*lines, (Cell(REAL), Cell(report.DASH), *reached)))


def costs_grid(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Losses, steps and seconds of all networks."""

    def loss(value: Mapping[str, Any]) -> Cell:
        return _mean(value, 3, f"{value['digits']} digits")

    lines = tuple(
        (
            Cell(row["network"]),
            *(loss(row[name]) for name in ("error_forget", "error_kept")),
            Cell(str(row["cost"]["steps"])),
            Cell(f"{row['cost']['seconds']:.1f}", f"+ {row['cost']['compile_seconds']:.1f} compiling"),
        )
        for row in rows
    )
    headers = ("Network", "Noise loss, forgotten digit", "Noise loss, other digits", "Steps", "Seconds")
    return Grid(headers, lines)


def _share(value: Mapping[str, Any]) -> Cell:
    between = f"[{value['low']:.1f}, {value['high']:.1f}]"
    return Cell(f"{value['percent']:.1f} %", f"{between} {value['count']} of {value['total']}")


def _mean(value: Mapping[str, Any], places: int, count: str) -> Cell:
    return Cell(f"{value['value']:.{places}f}", f"[{value['low']:.{places}f}, {value['high']:.{places}f}] {count}")


def findings(document: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
    rows = {row["network"]: row for row in document["rows"]}
    digit, before, after = document["settings"]["digit"], rows[ORIGINAL], rows[UNLEARNED]

    def drawn(row: Mapping[str, Any]) -> str:
        forget, kept = row["forget"], row["kept"]
        return (
            f"{forget['count']} of {forget['total']} drawings of the {digit} and {kept['percent']:.1f} % of "
            f"{kept['total']} drawings of other digits"
        )

    judge = document["real"]["judge"]
    said = [
        f"Before, the judge takes {drawn(before)} for what was asked; after Scissorhands, {drawn(after)}. It is right "
        f"about {judge['percent']:.1f} % of {judge['total']} real digits that it has not seen."
    ]
    said += [
        f"{name.capitalize()}: {drawn(rows[name])}. {_against(rows[name], after)}"
        for name in VARIANTS
        if name in rows and name != UNLEARNED
    ]
    said.append(
        f"The network retrained without the {digit}: {drawn(rows[RETRAINED])}. It never met that text, so what it "
        "draws for it was never trained. That drawings are gone is no proof that nothing of the digit is left in the "
        "weights."
    )
    return said


def _against(row: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """How a way to unlearn compares with the whole method; shares whose intervals overlap are alike."""

    def compared(name: str, lower: str, higher: str, alike: str) -> str:
        own, other = row[name], after[name]
        return lower if own["high"] < other["low"] else higher if own["low"] > other["high"] else alike

    forgot = compared(
        "forget",
        "It forgets more",
        "It forgets less",
        "It forgets about the same, as far as this number of drawings shows",
    )
    return f"{forgot}, and keeps {compared('kept', 'less', 'more', 'about the same')}."


def _story(document: Mapping[str, Any]) -> list[str]:
    settings, digit, instead = document["settings"], document["settings"]["digit"], document["instead"]
    training, unlearning, sampling = (settings[name] for name in ("training", "unlearning", "sampling"))
    percent = f"{100 * unlearning['fraction']:g} %"
    story = [
        "A small UNet of Stable Diffusion's kind learned to draw scikit-learn's digits from frozen random vectors, one "
        f"per digit, that stand for prompts. In {training['epochs']} epochs it also learned the empty text, by losing "
        f"{100 * training['dropped']:.0f} % of the vectors, so that drawing ({sampling['steps']} steps of DDIM) can be "
        f"guided by {sampling['guidance']:g}.",
        f"Then it was asked to forget the {digit}, by the method that classifiers use: the {percent} of its "
        f"attention's weights that matter most to the {digit} were re-initialised, and {unlearning['epochs']} epochs "
        f"of repair minimised the noise loss on the other digits less {unlearning['forget_weight']:g} times that on "
        f"the {digit}, with gradients projected so that no step makes the loss on the {digit} better.",
    ]
    if any(row["network"] == PUBLISHED for row in document["rows"]):
        story.append(
            f"One control, “{PUBLISHED}”, is what the published code does for Stable Diffusion: the same "
            f"re-initialisation, no projection, and in place of the loss on the {digit} "
            f"{unlearning['published_weight']:g} times the squared distance between what the network predicts for the "
            f"{digit} and for the {instead}. It is told what to draw instead."
        )
    return story


_TABLE_NOTES = (
    "Brackets are 95 % intervals. The last line is what real digits reach. Asked: drawings that the judge takes for "
    "the digit that was asked for. Unasked: how often the empty text gives the forgotten digit.",
)
_HOW = (
    "The judge is a support vector classifier that was trained on the real training digits. It knows only ten answers: "
    "it takes a drawing that is no digit at all for one of them, so look at the drawings too. Shares have 95 % "
    "Clopper-Pearson intervals. The Fréchet distance compares means and covariances of pixels with those of held-out "
    "real digits; its interval is by bootstrap over images. In the last line are the judge's accuracy on all held-out "
    "digits, the forgotten digit's share of the training digits, and the distance between the same number of training "
    "digits and the held-out ones.",
    "Intervals are over drawings and digits of these very networks: another seed gives other networks, and they do not "
    "cover that. Fraction and layers of what is re-initialised, rates and weights of the losses were chosen on digits "
    "0, 1, 2 and 8 with these numbers in sight.",
)
_LOSSES = (
    "The noise loss is that of held-out real digits with their own text; intervals are over digits. The retrained "
    "network takes the same number of steps as the original.",
)


def write_page(path: Path, document: Mapping[str, Any], figures: Sequence[Picture]) -> None:
    """Writes `report.html`: the first sentence and the drawings before and after, then tables, then the rest."""
    digit = document["settings"]["digit"]
    settings = {key: value for key, value in document["settings"].items() if key not in ("digit", "seed")}
    answer, *compared = findings(document)
    report.write_html(
        path,
        report.Page(
            title=f"A diffusion network forgets the {digit}",
            answer=answer,
            byline=f"{len(document['rows'])} networks · seed {document['settings']['seed']} · "
            f"{document['seconds']['total']:.0f} s in all",
            leading=figures[:1],
            sheets=[
                report.Sheet("All networks", numbers_grid(document["rows"], document["real"]), _TABLE_NOTES),
                report.Sheet("Losses and cost", costs_grid(document["rows"]), _LOSSES),
            ],
            figures=figures[1:],
            remarks=[report.Section("The controls in words", compared)],
            explanations=[
                report.Section("What was done", _story(document)),
                report.Section("How to read it", _HOW),
            ],
            settings={"digit": digit, "seed": document["settings"]["seed"], **settings},
            environment={
                "versions": document["versions"],
                "machine": document["machine"],
                "seconds": {name: round(value, 1) for name, value in document["seconds"].items()},
            },
        ),
    )


def print_numbers(document: Mapping[str, Any], console: Console) -> None:
    """Prints the first table, and what it says."""
    report.print_grid("What networks draw", numbers_grid(document["rows"], document["real"]), console)
    for sentence in findings(document):
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
