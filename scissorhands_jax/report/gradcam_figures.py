"""The figure of Grad-CAM heat maps by network, with each network's answers (the paper's Figure 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from scissorhands_jax.errors import InputError
from scissorhands_jax.report.drawing import ORANGE, PAGE_WIDTH, SOFT, figure_style, plot_label


def gradcam_figure(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    *,
    num_forget: int,
    labels: np.ndarray,
    logits: Mapping[str, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws the paper's Figure 1: the regions that networks look at, with a row per image and a column per network.

    Args:
      images: Images of shape (N, H, W, C) with C 1 or 3, uint8 or floating point in [0, 1]. Those to forget come first.
      maps: Heat maps by network, such as those of `gradcam.heatmaps`, of shape (N, H, W), in [0, 1].
      num_forget: The number of images to forget.
      labels: The true classes, of shape (N,), which are shown under the images.
      logits: The logits by network, of shape (N, num_classes). Each picture then shows the predicted class and its
        confidence, in a second colour if the prediction is wrong. By default no predictions are shown.
      class_names: The names of the classes. By default classes are shown as numbers.

    Raises:
      InputError: There is nothing to draw, or shapes or names do not fit together.
    """
    pixels, labels = _pixels(images), np.asarray(labels)
    count = len(pixels)
    if not maps or not 0 <= num_forget <= count or labels.shape != (count,):
        raise InputError(
            f"for {count} images there are maps of {', '.join(maps) or 'no network'}, labels of shape {labels.shape} "
            f"and num_forget={num_forget}; give maps, {count} labels and 0 to {count} forget images"
        )
    for name, heat in maps.items():
        if np.shape(heat) != pixels.shape[:3]:
            raise InputError(f"the maps of {name!r} have shape {np.shape(heat)}; the images need {pixels.shape[:3]}")
    if logits is not None and set(logits) != set(maps):
        raise InputError(f"maps are of {', '.join(maps)}, but logits of {', '.join(logits)}; give both of all networks")
    answers = {name: _answers(logits[name], labels, class_names) for name in maps} if logits is not None else {}
    groups = [("Forget set", range(num_forget)), ("Retain set", range(num_forget, count))]
    groups = [(title, positions) for title, positions in groups if len(positions)]
    width = PAGE_WIDTH / (1 + len(maps))
    heights = [0.34 + len(positions) * (0.97 * width + 0.27) for _, positions in groups]
    with figure_style():
        figure = Figure(
            figsize=(PAGE_WIDTH, sum(heights) + 0.2), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03)
        )
        parts = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (title, positions) in zip(parts, groups, strict=True):
            part.suptitle(title, x=0.01, horizontalalignment="left", fontsize=10, fontweight="bold")
            panels = part.subplots(len(positions), 1 + len(maps), squeeze=False)
            for axes, head in zip(panels[0], ("image", *maps), strict=True):
                axes.set_title(plot_label(head, 14), fontsize=8, fontweight="normal", loc="center")
            for line, position in zip(panels, positions, strict=True):
                _draw_image(line[0], pixels[position], _class_name(labels[position], class_names), SOFT)
                for axes, (name, heat) in zip(line[1:], maps.items(), strict=True):
                    text, right = answers[name][position] if answers else ("", True)
                    _draw_image(axes, _overlay(pixels[position], heat[position]), text, SOFT if right else ORANGE)
    return figure


def _pixels(images: np.ndarray) -> np.ndarray:
    """Converts images to RGB in [0, 1], of shape (N, H, W, 3)."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise InputError(f"images have shape {images.shape}; give (N, H, W, C) with C 1 or 3")
    pixels = images / 255 if images.dtype == np.uint8 else images.astype(np.float64)
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(f"pixels lie between {pixels.min():g} and {pixels.max():g}; give 0 to 1, or uint8")
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))


def _overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blends a grey image with its heat map."""
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    color = matplotlib.colormaps["inferno"](np.asarray(heat))[..., :3]
    return 0.45 * grey[..., None] + 0.55 * color


def _draw_image(axes: Axes, pixels: np.ndarray, text: str, color: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(text, fontsize=7, color=color, labelpad=2)


def _class_name(label: int, class_names: Sequence[str] | None) -> str:
    return str(label) if class_names is None else plot_label(str(class_names[label]), 14)


def _answers(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None) -> list[tuple[str, bool]]:
    """Returns for each image the predicted class with its confidence, and whether it is right."""
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or len(logits) != len(labels):
        raise InputError(f"logits have shape {logits.shape}; {len(labels)} images need ({len(labels)}, num_classes)")
    chosen = logits.argmax(axis=1)
    confidence = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    return [
        (f"{_class_name(guess, class_names)}\n{100 * sure:.0f} %", bool(guess == label))
        for guess, sure, label in zip(chosen, confidence, labels, strict=True)
    ]
