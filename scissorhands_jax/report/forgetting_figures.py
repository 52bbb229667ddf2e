"""A picture of networks that forget: some examples to forget, each network's answers to them, and its Avg. Gap."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from scissorhands_jax.errors import InputError
from scissorhands_jax.report.drawing import BLUE, INK, ORANGE, PAGE_WIDTH, figure_style, plot_label


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer of a network to an example."""

    label: str
    """The class that is likeliest according to the network."""
    confidence: float
    """The probability of that class, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class ForgottenExample:
    """An example that networks had to forget.

    Attributes:
      image: The pixels in [0, 1], of shape (H, W) or (H, W, C) with C 1 or 3; 0 is black.
      label: The label that it had in training, which networks had to forget with it.
      answers: The answer of each network, by the network's name.
    """

    image: np.ndarray
    label: str
    answers: Mapping[str, Answer]


def forgetting_figure(examples: Sequence[ForgottenExample], gaps: Mapping[str, float]) -> Figure:
    """Draws a row of examples, a line of answers for each network, and a bar for its distance to retraining.

    An answer with the label that should be forgotten is orange, and any other answer is blue. The more confident the
    answer, the darker the colour.

    Args:
      examples: The examples to show, in order. All have answers of the same networks.
      gaps: The Avg. Gap of each network in percentage points, in the order of the lines. It is 0 for the retrained
        network.

    Raises:
      InputError: There are no examples, or one lacks an answer of a network in `gaps`.
    """
    if not examples or not gaps:
        raise InputError(f"there are {len(examples)} examples and {len(gaps)} networks to draw; give at least one each")
    for example in examples:
        if missing := [name for name in gaps if name not in example.answers]:
            raise InputError(f"a forgotten example has no answer of {', '.join(missing)}; add one or leave it out")
    names, bars, top, line = 1.15, 1.15, 0.06, 0.5  # inches
    cell = (PAGE_WIDTH - names - bars) / len(examples)
    answers = top + cell + 0.34
    height = answers + line * len(gaps) + 0.06
    with figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, PAGE_WIDTH), ylim=(height, 0))
        axes.text(0.02, top + cell / 2, "to forget", va="center", fontsize=9)
        axes.text(0.02, top + cell + 0.13, "its label", va="center", fontsize=9)
        axes.text(PAGE_WIDTH - bars + 0.06, top + cell + 0.13, "Avg. Gap", va="center", fontsize=9, fontweight="bold")
        for place, example in enumerate(examples):
            _draw_example(axes, example, names + place * cell, top, cell)
        for row, (name, gap) in enumerate(gaps.items()):
            upper = answers + row * line
            axes.text(0.02, upper + line / 2, plot_label(name, 16), va="center", fontsize=10)
            for place, example in enumerate(examples):
                _draw_answer(axes, example, example.answers[name], (names + place * cell, upper, cell, line))
            reach = (bars - 0.55) * gap / (max(gaps.values()) or 1.0)
            left = PAGE_WIDTH - bars + 0.06
            axes.fill_between([left, left + reach], upper + 0.1, upper + line - 0.1, color=INK, alpha=0.3, linewidth=0)
            axes.text(left + reach + 0.05, upper + line / 2, f"{gap:.1f}", va="center", fontsize=10)
    return figure


def _grey_or_color(image: np.ndarray) -> np.ndarray:
    """Returns an image of one channel in the shape (H, W), and any other image as it is."""
    pixels = np.asarray(image, np.float64)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3):
        raise InputError(f"a forgotten example has an image of shape {pixels.shape}; give (H, W) or (H, W, C)")
    return pixels


def _draw_example(axes: Axes, example: ForgottenExample, left: float, top: float, side: float) -> None:
    """Draws an image in a square, with its label below."""
    extent = (left + 0.04, left + side - 0.04, top + side - 0.04, top + 0.04)
    image = _grey_or_color(example.image)
    axes.imshow(image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest", aspect="auto", extent=extent)
    label = plot_label(example.label, 8)
    axes.text(left + side / 2, top + side + 0.13, label, ha="center", va="center", fontsize=10, color=ORANGE)


def _draw_answer(axes: Axes, example: ForgottenExample, answer: Answer, box: tuple[float, float, float, float]) -> None:
    """Draws an answer in its box of left, top, width and height."""
    left, upper, width, height = box
    tint = np.array(to_rgb(ORANGE if answer.label == example.label else BLUE))
    share = 0.1 + 0.35 * answer.confidence
    color = tuple(1 - share * (1 - tint))
    middle, bottom = left + width / 2, upper + height - 0.03
    axes.fill_between([left + 0.03, left + width - 0.03], upper + 0.03, bottom, color=color, linewidth=0)
    axes.text(middle, upper + 0.17, plot_label(answer.label, 8), ha="center", va="center", fontsize=11, weight="bold")
    axes.text(middle, upper + 0.37, f"{100 * answer.confidence:.0f} %", ha="center", va="center", fontsize=8.5)
