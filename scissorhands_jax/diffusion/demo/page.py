"""The page of `scissorhands demo diffusion`: the drawings, all numbers, and what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import report
from scissorhands_jax.diffusion.demo.drawings_figures import drawings_figure
from scissorhands_jax.diffusion.demo.judging import (
    DigitShare,
    MeanError,
    NetworkNumbers,
    PixelDistance,
    RealNumbers,
    compared_numbers,
)
from scissorhands_jax.diffusion.demo.scene import requested_digits
from scissorhands_jax.diffusion.demo.settings import (
    LITERAL,
    NUM_DIGITS,
    PUBLISHED,
    VARIANTS,
    WHOLE_METHOD,
    DigitsSettings,
)
from scissorhands_jax.report import ORIGINAL, REFERENCE, Cell, Grid, Picture
from scissorhands_jax.terminal import Console, say

_SHOWN = 10  # drawings of a digit in a picture
_HEADERS = (
    "Network",
    "Forgotten digit, drawn as asked",
    "Forgotten digit, any digit drawn",
    "Other digits, drawn as asked",
    "Forgotten digit, unasked",
    "Fréchet distance, other digits",
)
REAL = "real digits"
_PLACES = {"frechet": 2, "error_forget": 3, "error_kept": 3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsResult:
    """What came out of a demonstration."""

    settings: DigitsSettings
    real: RealNumbers
    """What drawings can reach at best."""
    rows: Sequence[NetworkNumbers]
    """The numbers of all networks, the original first."""
    seconds: Mapping[str, float]
    """The seconds of each phase, and their sum as `total`."""
    environment: Mapping[str, Any]
    """The versions of packages and the machine."""

    def document(self) -> dict[str, Any]:
        """The content of `results.json`."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "instead": self.settings.replacement,
            "real": dataclasses.asdict(self.real),
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "seconds": dict(self.seconds),
            **self.environment,
        }


def drawing_pictures(settings: DigitsSettings, drawings: Mapping[str, np.ndarray]) -> list[Picture]:
    """The drawings before and after, and those of the controls.

    Args:
      settings: What was drawn.
      drawings: The drawings of each network for `requested_digits`.
    """
    requested = requested_digits(settings)
    count = min(_SHOWN, settings.sampling.kept, settings.sampling.forgotten)
    rows = np.stack([np.flatnonzero(requested == digit)[:count] for digit in range(NUM_DIGITS)])
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
            {ORIGINAL: "before", WHOLE_METHOD: "after Scissorhands"},
            f"Before and after forgetting the {settings.digit}. {which}",
            "before_after",
        ),
        picture(
            {name: name for name in drawings if name not in (ORIGINAL, WHOLE_METHOD)},
            f"The controls. {which} “{REFERENCE}” never saw the forgotten digit.",
            "controls",
        ),
    ]


def numbers_grid(rows: Sequence[NetworkNumbers], real: RealNumbers) -> Grid:
    """What all networks draw, with what real digits reach in the last line."""
    lines = [
        (
            Cell(row.network),
            _share_cell(row.forget),
            _share_cell(row.any_digit),
            _share_cell(row.kept),
            _share_cell(row.unasked),
            _distance_cell(row.frechet),
        )
        for row in rows
    ]
    reached = tuple(_share_cell(share) for share in (real.any_digit, real.judge, real.unasked))
    return Grid(_HEADERS, (*lines, (Cell(REAL), Cell(report.DASH), *reached, _distance_cell(real.frechet))))


def retrained_grid(rows: Sequence[NetworkNumbers]) -> Grid:
    """What each network's numbers are more than those of the retrained network, column by column."""
    numbers = {row.network: compared_numbers(dataclasses.asdict(row)) for row in rows}
    reference = numbers.pop(REFERENCE)
    lines = tuple(
        (Cell(name), *(Cell(f"{own[key] - value:+.{_PLACES.get(key, 1)}f}") for key, value in reference.items()))
        for name, own in numbers.items()
    )
    losses = ("Noise loss, forgotten digit", "Noise loss, other digits")
    return Grid((*_HEADERS, *losses), lines)


def costs_grid(rows: Sequence[NetworkNumbers]) -> Grid:
    """Losses, steps and seconds of all networks."""
    lines = tuple(
        (
            Cell(row.network),
            _error_cell(row.error_forget),
            _error_cell(row.error_kept),
            Cell(str(row.cost.steps)),
            Cell(f"{row.cost.seconds:.1f}", f"+ {row.cost.compile_seconds:.1f} compiling"),
        )
        for row in rows
    )
    headers = ("Network", "Noise loss, forgotten digit", "Noise loss, other digits", "Steps", "Seconds")
    return Grid(headers, lines)


def _share_cell(share: DigitShare) -> Cell:
    return Cell(f"{share.percent:.1f} %", f"[{share.low:.1f}, {share.high:.1f}] {share.count} of {share.total}")


def _distance_cell(distance: PixelDistance) -> Cell:
    interval = f"[{distance.low:.2f}, {distance.high:.2f}]"
    return Cell(f"{distance.value:.2f}", f"{interval} {distance.images} images")


def _error_cell(error: MeanError) -> Cell:
    return Cell(f"{error.value:.3f}", f"[{error.low:.3f}, {error.high:.3f}] {error.digits} digits")


def findings(numbers: Sequence[NetworkNumbers], real: RealNumbers) -> list[str]:
    """What the numbers say, in sentences.

    Args:
      numbers: Those of all networks that forget one digit, the original included.
      real: Those of real digits.
    """
    rows = {row.network: row for row in numbers}
    before, after = rows[ORIGINAL], rows[WHOLE_METHOD]

    def drawn(row: NetworkNumbers) -> str:
        return (
            f"{row.forget.count} of {row.forget.total} drawings of the {row.digit} and {row.kept.percent:.1f} % of "
            f"{row.kept.total} drawings of other digits"
        )

    sentences = [
        f"Before, the judge takes {drawn(before)} for what was asked; after Scissorhands, {drawn(after)}. It is right "
        f"about {real.judge.percent:.1f} % of {real.judge.total} real digits that it has not seen. Of what "
        f"Scissorhands draws for the {after.digit}, {after.any_digit.percent:.0f} % looks like a digit, and "
        f"{rows[REFERENCE].any_digit.percent:.0f} % of what the retrained network draws."
    ]
    sentences += [
        f"{name.capitalize()}: {drawn(rows[name])}. {_against(rows[name], after)}"
        for name in VARIANTS
        if name in rows and name != WHOLE_METHOD
    ]
    sentences.append(
        f"The network retrained without the {after.digit}: {drawn(rows[REFERENCE])}. It never met that text, so what "
        "it draws for it was never trained. That drawings are gone is no proof that nothing of the digit is left in "
        "the weights."
    )
    return sentences


def _against(row: NetworkNumbers, after: NetworkNumbers) -> str:
    """How a variant compares with the whole method. Shares whose intervals overlap are called alike."""

    def compared(own: DigitShare, other: DigitShare, lower: str, higher: str, alike: str) -> str:
        return lower if own.high < other.low else higher if own.low > other.high else alike

    forgot = compared(
        row.forget,
        after.forget,
        "It forgets more",
        "It forgets less",
        "It forgets about the same, as far as this number of drawings shows",
    )
    return f"{forgot}, and keeps {compared(row.kept, after.kept, 'less', 'more', 'about the same')}."


def _story(result: DigitsResult) -> list[str]:
    """What was done."""
    settings, digit = result.settings, result.settings.digit
    training, unlearning, sampling = settings.training, settings.unlearning, settings.sampling
    percent = f"{100 * unlearning.fraction:g} %"
    ceiling = next(row.ceiling for row in result.rows if row.ceiling is not None)
    source = "which was given"
    if unlearning.ceiling is None:
        source = "which is what the original has there under the texts of other digits"
    story = [
        "A small UNet of Stable Diffusion's kind learned to draw scikit-learn's digits from frozen random vectors, one "
        f"per digit, that stand for prompts. In {training.epochs} epochs it also learned the empty text, by losing "
        f"{100 * training.dropped:.0f} % of the vectors, so that drawing ({sampling.steps} steps of DDIM) can be "
        f"guided by {sampling.guidance:g}.",
        f"Then it was asked to forget the {digit}, by the method that classifiers use: the {percent} of its "
        f"attention's weights that matter most to the {digit} were re-initialised, and {unlearning.epochs} epochs "
        f"of repair minimised the noise loss on the other digits less {unlearning.forget_weight:g} times that on "
        f"the {digit}. Every gradient was projected so that, to first order, it does not lower the loss on the step's "
        f"drawings of the {digit}; the step that Adam makes of it has another direction.",
        f"Two things keep noise from taking the digit's place. Above a ceiling of {ceiling:.2f} on the loss on the "
        f"{digit}, {source}, a step follows the other digits alone; and {100 * unlearning.anchor:.0f} % of the other "
        f"digits are also seen under the text of the {digit}, as an anchor. The control “{LITERAL}” does without both, "
        "as the paper writes it.",
    ]
    if any(row.network == PUBLISHED for row in result.rows):
        story.append(
            f"One control, “{PUBLISHED}”, is what the published code does for Stable Diffusion: the same "
            f"re-initialisation, no projection, and in place of the loss on the {digit} "
            f"{unlearning.published_weight:g} times the squared distance between what the network predicts for the "
            f"{digit} and for the {settings.replacement}. It is told what to draw instead."
        )
    return story


_TABLE_NOTES = (
    "Brackets are 95 % intervals. The last line is what real digits reach. Asked: drawings that the judge takes for "
    "the digit that was asked for. Unasked: how often the empty text gives the forgotten digit.",
)
_HOW = (
    "The judge is a support vector classifier that was trained on the real training digits. A drawing that is farther "
    "from every training digit than all but one in a hundred of the held-out digits are looks like no digit to it. "
    "Near a digit is not well drawn, so look at the drawings too. Shares have 95 % Clopper-Pearson intervals. The "
    "Fréchet distance compares means and covariances of pixels with those of held-out real digits; its interval is by "
    "bootstrap over images. In the last line are the judge's accuracy on all held-out digits, the forgotten digit's "
    "share of the training digits, and the distance between the same number of training digits and the held-out ones.",
    "Intervals are over drawings and digits of these very networks: another seed gives other networks, and they do not "
    "cover that. Fraction and layers of what is re-initialised, rates and weights of the losses were chosen on digits "
    "0, 1, 2 and 8 with these numbers in sight, the anchor on the 4; the ceiling follows from the data.",
)
_NEAR = (
    "A number above 0 is more than the retrained network has, below 0 is less; either way is away from what retraining "
    "gives, so a digit can also be forgotten too much. How far two retrained networks are from each other is not known "
    "here: python -m experiments.diffusion_digits trains a second one.",
)
_LOSSES = (
    "The noise loss is that of held-out real digits with their own text; intervals are over digits. The retrained "
    "network takes the same number of steps as the original.",
)


def write_digits_page(path: Path, result: DigitsResult, pictures: Sequence[Picture]) -> None:
    """Writes `report.html`: the first sentence and the drawings before and after, then tables, then the rest.

    Args:
      path: The file.
      result: What came out.
      pictures: The pictures of `drawing_pictures`.
    """
    digit, seed = result.settings.digit, result.settings.seed
    document = dataclasses.asdict(result.settings)
    settings = {name: value for name, value in document.items() if name not in ("digit", "seed")}
    answer, *compared = findings(result.rows, result.real)
    report.write_html(
        path,
        report.Page(
            title=f"A diffusion network forgets the {digit}",
            answer=answer,
            byline=f"{len(result.rows)} networks · seed {seed} · {result.seconds['total']:.0f} s in all",
            leading=pictures[:1],
            sheets=[
                report.Sheet("All networks", numbers_grid(result.rows, result.real), _TABLE_NOTES),
                report.Sheet("Difference to the retrained network", retrained_grid(result.rows), _NEAR),
                report.Sheet("Losses and cost", costs_grid(result.rows), _LOSSES),
            ],
            figures=pictures[1:],
            remarks=[report.Section("The controls in words", compared)],
            explanations=[
                report.Section("What was done", _story(result)),
                report.Section("How to read it", _HOW),
            ],
            settings={"digit": digit, "seed": seed, **settings},
            environment={
                **report.environment_of(result.environment),
                "seconds": {name: round(value, 1) for name, value in result.seconds.items()},
            },
        ),
    )


def print_numbers(result: DigitsResult, console: Console) -> None:
    """Prints the first table, and what it says."""
    report.print_grid("What networks draw", numbers_grid(result.rows, result.real), console)
    for sentence in findings(result.rows, result.real):
        say(console, sentence)
