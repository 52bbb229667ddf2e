"""The figure of what diffusion networks draw, with a panel for each network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from scissorhands_jax.errors import InputError
from scissorhands_jax.report.drawing import ORANGE, PAGE_WIDTH, figure_style, panel_layout, plot_label


def drawings_figure(drawings: Mapping[str, np.ndarray], labels: Sequence[str], *, marked: int | None = None) -> Figure:
    """What networks draw: two panels next to each other, with a row of images for each thing they are asked for.

    Args:
      drawings: The drawings of each network, in [0, 1]; ink is white. shape=(rows, columns, H, W)
      labels: What each row was asked for.
      marked: The row whose label is printed in the second colour.

    Raises:
      InputError: There is nothing to draw, or shapes differ or do not fit the labels.
    """
    shapes = {np.shape(images) for images in drawings.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 4 or shape[0] != len(labels) or 0 in shape:
        found = {name: np.shape(images) for name, images in drawings.items()} or "nothing"
        raise InputError(f"drawings need one shape (rows, columns, H, W) with {len(labels)} rows; found {found}")
    rows, columns, height, width = shape
    lines = -(-len(drawings) // 2)
    panel = PAGE_WIDTH / 2 * (rows * (height + 1)) / (columns * (width + 1))
    with figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, lines * (panel + 0.2)), layout=panel_layout())
        places = figure.subplots(lines, 2, squeeze=False).ravel()
        for axes, (name, images) in zip(places, drawings.items(), strict=False):
            framed = np.pad(np.asarray(images, np.float64), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0.35)
            mosaic = framed.transpose(0, 2, 1, 3).reshape(rows * (height + 1), columns * (width + 1))
            axes.imshow(1 - mosaic[:-1, :-1], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(plot_label(name), fontsize=9)
            axes.set_xticks([])
            axes.set_yticks(np.arange(rows) * (height + 1) + (height - 1) / 2, [plot_label(label) for label in labels])
            axes.spines[:].set_visible(False)
            if marked is not None:
                axes.get_yticklabels()[marked].set(color=ORANGE, fontweight="bold")
        for axes in places[len(drawings) :]:
            axes.set_visible(False)
    return figure
