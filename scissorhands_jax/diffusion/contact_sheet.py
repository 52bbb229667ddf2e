"""The contact sheet of `sd evaluate`: small images of both networks, with flagged ones hidden by a mosaic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from scissorhands_jax.diffusion import image_folders
from scissorhands_jax.diffusion.image_folders import ImageEntry
from scissorhands_jax.diffusion.measuring import ALL_CLASSES, IMAGES, ORIGINAL_IMAGES, EvaluationSettings
from scissorhands_jax.diffusion.nudity import Detection
from scissorhands_jax.errors import InputError
from scissorhands_jax.report.drawing import ORANGE, PAGE_WIDTH, SOFT, figure_style, plot_label
from scissorhands_jax.terminal import printable

_NUM_IMAGES, _NUM_FLAGGED = 24, 18  # of a network
_THUMBNAIL, _MOSAIC = 160, 9  # pixels


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A small image with a text below it."""

    pixels: np.ndarray
    """shape=(H, W, 3), dtype=uint8"""
    text: str
    """One or two lines."""
    stands_out: bool = False
    """Whether the text is printed in a second colour."""


def contact_sheet(
    entries: Mapping[str, Sequence[ImageEntry]],
    found: Mapping[str, Sequence[Sequence[Detection]]],
    settings: EvaluationSettings,
) -> dict[str, list[Thumbnail]]:
    """Chooses images for the contact sheet, flagged ones first. Of pairs both are chosen, in the same places.

    Args:
      entries: The images of `IMAGES` and, if there is an original, of `ORIGINAL_IMAGES`.
      found: What was found in each of them.
      settings: What flags an image, how images are paired, and whether flagged ones are shown as they are.

    Returns:
      Thumbnails by the headings that they are shown under.
    """
    best = {
        name: [
            max(
                (one for one in detections if one.label in settings.classes and one.score >= settings.threshold),
                key=lambda one: one.score,
                default=None,
            )
            for detections in own
        ]
        for name, own in found.items()
    }
    scores = {name: np.array([0 if one is None else one.score for one in own]) for name, own in best.items()}
    chosen = {name: _choose(own) for name, own in scores.items()}
    if ORIGINAL_IMAGES in entries:
        order, _ = image_folders.pair_images(entries[IMAGES], entries[ORIGINAL_IMAGES], settings.pairing)
        if order is not None:
            chosen[IMAGES] = _choose(np.maximum(scores[IMAGES], scores[ORIGINAL_IMAGES][order]))
            chosen[ORIGINAL_IMAGES] = [order[place] for place in chosen[IMAGES]]
    titles = {ORIGINAL_IMAGES: "Original", IMAGES: "Unlearned" if ORIGINAL_IMAGES in entries else "Images"}
    sheet: dict[str, list[Thumbnail]] = {}
    for name in sorted(entries, reverse=True):  # the original first
        title = f"{titles[name]}: {len(chosen[name]):,} of {len(entries[name]):,} images"
        sheet[title] = []
        for place in chosen[name]:
            flag = best[name][place]
            image = ImageOps.fit(image_folders.read_rgb_image(entries[name][place].path), (_THUMBNAIL, _THUMBNAIL))
            if flag is not None and not settings.show_flagged:
                image = hide_image(image)
            text = "" if flag is None else f"{class_title(flag.label).lower()} {flag.score:.2f}"
            stem = entries[name][place].path.stem[:24]
            sheet[title].append(Thumbnail(np.asarray(image), f"{stem}\n{text}", flag is not None))
    return sheet


def hide_image(image: Image.Image) -> Image.Image:
    """A smoothed mosaic of 9 by 9 colours. Nothing else of the image is left in it."""
    few = image.convert("RGB").resize((_MOSAIC, _MOSAIC), Image.Resampling.BOX)
    return few.resize(image.size, Image.Resampling.BICUBIC)


def class_title(label: str) -> str:
    """A class of NudeNet as it is printed."""
    return "All of these" if label == ALL_CLASSES else label.removesuffix("_EXPOSED").replace("_", " ").capitalize()


def _choose(scores: np.ndarray) -> list[int]:
    """The places of flagged images, with the highest scores first, and of other images at equal distances."""
    flagged = [int(place) for place in np.argsort(-scores, kind="stable") if scores[place] > 0]
    others = [place for place in range(len(scores)) if scores[place] == 0]
    first = flagged[: max(_NUM_FLAGGED, _NUM_IMAGES - len(others))][:_NUM_IMAGES]
    room = min(_NUM_IMAGES - len(first), len(others))
    return first + [others[place * len(others) // room] for place in range(room)]


def contact_sheet_figure(sections: Mapping[str, Sequence[Thumbnail]], *, columns: int = 6) -> Figure:
    """Thumbnails in rows under headings.

    Args:
      sections: Thumbnails by their headings.
      columns: The number of images in a row.

    Raises:
      InputError: There are no images.
    """
    sections = {title: list(images) for title, images in sections.items() if images}
    if not sections:
        raise InputError("there are no images for a contact sheet")
    cell, head, line = PAGE_WIDTH / columns, 0.32, 0.26  # inches
    heights = [head - (-len(images) // columns) * (cell + line) for images in sections.values()]
    top = total = sum(heights)
    with figure_style():
        # One panel for all images of a section: a panel for each would take seconds to lay out.
        figure = Figure(figsize=(PAGE_WIDTH, total))
        for height, (title, images) in zip(heights, sections.items(), strict=True):
            figure.text(0.01, (top - 0.08) / total, plot_label(title, 60), va="top", fontsize=10, fontweight="bold")
            top -= height
            panel = figure.add_axes((0, top / total, 1, (height - head) / total))
            panel.set_axis_off()
            for place, image in enumerate(images):
                left, above = place % columns * cell, place // columns * (cell + line)
                extent = (left + 0.02, left + cell - 0.02, above + cell - 0.04, above)
                panel.imshow(image.pixels, extent=extent, aspect="auto")
                panel.text(
                    left + cell / 2,
                    above + cell - 0.02,
                    printable(image.text),
                    ha="center",
                    va="top",
                    fontsize=5.5,
                    color=ORANGE if image.stands_out else SOFT,
                )
            panel.set(xlim=(0, PAGE_WIDTH), ylim=(height - head, 0))
    return figure
