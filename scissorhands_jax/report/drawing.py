"""The style of all figures: colours, fonts and labels; and figures as SVG and PNG."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from io import BytesIO, StringIO
from typing import Any, Literal

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from scissorhands_jax import hashing
from scissorhands_jax.terminal import printable

# Colours by Okabe and Ito, which colour-blind readers can distinguish. Figures are white, even in a dark page.
BLUE = "#0072B2"
ORANGE = "#D55E00"
GREEN = "#009E73"
PURPLE = "#AA4499"
INK = "#1f2328"
SOFT = "#59636e"
RULE = "#d1d9e0"
PAGE_WIDTH = 5.2
"""The width of a figure in inches. It is small so that text can still be read when a phone shrinks the figure."""

_STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e8ecf0",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # dollar signs in a label are dollar signs
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "svg.fonttype": "none",  # real text: sharp, searchable, small
    "svg.hashsalt": "scissorhands_jax",  # the same figure gives the same file
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure with its caption and its alternative text.

    Attributes:
      figure: The figure, made without pyplot.
      caption: The text below the figure.
      alt: The text that a screen reader reads in place of the figure.
      scenario: The scenario whose table the figure belongs to, or None to put it below all tables.
      heading: The heading of the section below all tables, for a figure without a scenario.
      format: The format in a page. PNG suits a figure with photographs.
      name: The name of the file, without its suffix.
    """

    figure: Figure
    caption: str
    alt: str
    scenario: str | None = None
    heading: str = "Over the run"
    format: Literal["svg", "png"] = "svg"
    name: str = "figure"


def figure_style() -> contextlib.AbstractContextManager[None]:
    """Returns a context manager for the style in which all figures are drawn and saved."""
    return matplotlib.rc_context(_STYLE)


def panel_layout() -> ConstrainedLayoutEngine:
    """Returns a layout with enough room between panels to show that a title belongs to the panel below it."""
    return ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.07, hspace=0.04)


def plot_label(text: str, length: int = 34) -> str:
    """Returns a text on one line, with escapes in place of what is not printable, cut to `length` characters."""
    text = printable(text, keep="")
    return text if len(text) <= length else f"{text[: length - 1]}…"


def figure_png(figure: Figure, *, dpi: int = 200) -> bytes:
    """Converts a figure to a PNG file of `dpi` pixels per inch. The same figure gives the same bytes."""
    buffer = BytesIO()
    with figure_style():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def figure_svg(figure: Figure) -> str:
    """Converts a figure to one `<svg>` element for an HTML page, with the font of the page and with unique ids."""
    buffer = StringIO()
    with figure_style():
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    prefix = f"f{hashing.sha256(text)[:8]}-"

    def adapt(tag: re.Match) -> str:
        renamed = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}", tag[0])
        return re.sub(r"font-family: [^;\"]+", "font-family: system-ui, sans-serif", renamed)

    return re.sub(r"<[^>]+>", adapt, text)
