"""The six figures of the method: `python -m docs.hooks.figures` draws them into docs/images.

Four are of a real run, that of the tutorial: a small network that learned scikit-learn's digits, of whose labels about
a fifth are random, by heart. The dual and the projection are drawn from their geometry.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import scissorhands_jax as sh
from docs.hooks import examples
from scissorhands_jax import reinit, report
from scissorhands_jax.report import drawing
from scissorhands_jax.report.drawing import BLUE, GREEN, INK, ORANGE, PAGE_WIDTH, SOFT

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
_LAYER = "layer2"


def main() -> None:
    """Trains the network of the tutorial and draws all six figures."""
    blocks = [example.code for example in examples.page_examples((ROOT / "docs" / "tutorial.md").read_text())]
    run: dict[str, Any] = {}
    for code in blocks[: next(index for index, code in enumerate(blocks) if "retrained = " in code)]:
        examples.run(code, run, "tutorial.md")
    figures = {
        "method-saliency": saliency_figure(run),
        "method-trim": trim_figure(run),
        "method-dual": dual_figure(),
        "method-projection": projection_figure(),
        "method-pairing": pairing_figure(run),
        "method-ceiling": ceiling_figure(run),
    }
    for name, figure in figures.items():
        (IMAGES / f"{name}.svg").write_text(report.figure_svg(figure) + "\n", encoding="utf-8")


def saliency_figure(run: dict[str, Any]) -> Figure:
    """How large the saliency of each weight is, and where the largest twentieth begins."""
    scores = _scores(run)
    flat = np.concatenate([np.ravel(leaf) for name, leaf in _kernels(scores).items()])
    cut = np.quantile(flat, 0.95)
    with drawing.figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, 2.3), layout="constrained")
        axes = figure.subplots()
        logs = np.log10(flat[flat > 1e-11])
        counts, edges = np.histogram(logs, bins=60)
        middles = (edges[1:] + edges[:-1]) / 2
        colors = [ORANGE if middle > math.log10(cut) else BLUE for middle in middles]
        axes.bar(middles, counts, width=edges[1] - edges[0], color=colors, linewidth=0)
        axes.axvline(math.log10(cut), color=INK, linewidth=1)
        axes.annotate("the largest 5 %", (math.log10(cut), counts.max()), (6, -4), textcoords="offset points")
        axes.set_xlabel("saliency |gradient of the forget loss × weight|, power of ten")
        axes.set_ylabel("weights")
    return figure


def trim_figure(run: dict[str, Any]) -> Figure:
    """A corner of a layer before and after the trim, with the mask between."""
    original = run["original"]
    trimmed = sh.trim_network(
        jax.random.key(0),
        run["loss_fn"],
        original.params,
        original.model_state,
        [run["data"].forget],
        fraction=0.05,
        trim=_LAYER,
        initializer=reinit.uniform(),
    )
    before, mask, after = (_kernels(tree)[_LAYER][:32, :32] for tree in (original.params, trimmed.mask, trimmed.params))
    reach = float(np.abs(before).max())
    with drawing.figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, 1.95), layout="constrained")
        panels = figure.subplots(1, 3)
        for axes, title in zip(panels, ("before", "salient", "after"), strict=True):
            axes.set(title=title, xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
        for axes, weights in ((panels[0], before), (panels[2], after)):
            axes.imshow(weights, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
        panels[1].imshow(mask, cmap="Oranges", vmin=0, vmax=1.4, interpolation="nearest")
    return figure


def dual_figure() -> Figure:
    """The dual problem of one constraint, where the gradient would help the forget set and where it would not."""
    v = np.linspace(0, 2, 200)
    with drawing.figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, 2.3), layout="constrained")
        for axes, dot, title in zip(
            figure.subplots(1, 2, sharey=True),
            (1.0, -0.6),
            ("it would help the forget set", "it would not"),
            strict=True,
        ):
            best = max(0.0, dot)
            objective = v**2 / 2 - dot * v
            axes.plot(v, objective, color=BLUE, linewidth=1.6)
            axes.plot([best], [best**2 / 2 - dot * best], "o", color=ORANGE, markersize=7)
            axes.annotate(f"v = {best:.0f}", (best, best**2 / 2 - dot * best), (8, -12), textcoords="offset points")
            axes.set_title(title)
            axes.set_xlabel("v")
            axes.set_ylim(-0.9, 2.2)
            axes.grid(axis="y")
    return figure


def projection_figure() -> Figure:
    """A gradient, the forget gradient, and the nearest gradient that does not help the forget set."""
    forget, gradient = np.array([1.0, 0.25]), np.array([0.55, 0.95])
    v = max(0.0, float(gradient @ forget / (forget @ forget)))
    projected = gradient - v * forget
    across = np.array([-forget[1], forget[0]]) / np.linalg.norm(forget)
    with drawing.figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, 3.1), layout="constrained")
        axes = figure.subplots()
        line = np.outer([-2, 2], across)
        allowed = np.concatenate([line, line[::-1] - 3 * forget])
        axes.fill(*allowed.T, color=GREEN, alpha=0.12, linewidth=0)
        axes.plot(*line.T, color=GREEN, linewidth=1)
        axes.plot(*np.stack([gradient, projected]).T, color=SOFT, linestyle=":", linewidth=1.4)
        arrows = (
            (forget, ORANGE, "gradient of the forget loss", (-30, -16)),
            (gradient, BLUE, "gradient of the step", (6, 2)),
            (projected, INK, "projected gradient", (-104, 4)),
        )
        for arrow, color, name, offset in arrows:
            axes.annotate("", arrow, (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.8})
            axes.annotate(name, arrow, offset, textcoords="offset points", color=color)
        axes.text(
            -1.17, 0.34, "steps against a gradient from here\ndo not lower the forget loss", color=GREEN, fontsize=9
        )
        axes.set(xlim=(-1.2, 1.35), ylim=(-0.25, 1.15), aspect="equal", xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def pairing_figure(run: dict[str, Any]) -> Figure:
    """The forget loss of every step that sees forget examples, with both ways to pair the sets."""
    every = _losses(run, ceiling=math.log(10))
    once = _losses(run, ceiling=math.log(10), every_step_joint=False)
    return _curves(
        {"a forget batch in every step": (every, BLUE), "the forget set once an epoch": (once, ORANGE)}, marks=True
    )


def ceiling_figure(run: dict[str, Any]) -> Figure:
    """The forget loss with and without a ceiling."""
    bounded, free = _losses(run, ceiling=math.log(10)), _losses(run, ceiling=math.inf)
    figure = _curves({"no ceiling": (free, ORANGE), "a ceiling at log 10": (bounded, BLUE)}, log=True)
    axes = figure.axes[0]
    axes.axhline(math.log(10), color=INK, linewidth=1, linestyle="--")
    axes.annotate("log 10", (0, math.log(10)), (2, 4), textcoords="offset points")
    return figure


def _curves(curves: dict[str, tuple[np.ndarray, str]], *, log: bool = False, marks: bool = False) -> Figure:
    with drawing.figure_style():
        figure = Figure(figsize=(PAGE_WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        for name, (losses, color) in curves.items():
            steps = np.flatnonzero(np.isfinite(losses))
            axes.plot(steps, losses[steps], "." if marks else "-", color=color, label=name, markersize=4, linewidth=1.3)
        axes.set_xlabel("step of the repair")
        axes.set_ylabel("loss of the forget batch")
        axes.grid(axis="y")
        if log:
            axes.set_yscale("log")
            axes.set_yticks([1, 10, 100], ["1", "10", "100"])
            axes.minorticks_off()
        figure.legend(frameon=False, loc="outside upper left", ncols=2)
    return figure


def _losses(run: dict[str, Any], **arguments: Any) -> np.ndarray:
    """The loss of the forget batch in each step of the repair, NaN in steps without one or after an overflow."""
    method = sh.scissorhands(
        run["loss_fn"], sh.sgd(0.05), fraction=0.05, forget_weight=0.05, trim="layer2|head", batch_size=64, **arguments
    )
    losses: list[float] = []

    def note(progress: Any) -> None:
        losses.append(float(progress.metrics.get("loss_forget", math.nan)))

    original = run["original"]
    with contextlib.suppress(sh.NonFiniteError):
        sh.run(
            method, jax.random.key(3), original.params, original.model_state, run["data"], num_epochs=10, on_step=note
        )
    return np.array(losses)


def _scores(run: dict[str, Any]) -> Any:
    original = run["original"]
    loss_fn: Callable = sh.freeze(run["loss_fn"], original.model_state)
    return sh.connection_sensitivity(loss_fn, original.params, [run["data"].forget])


def _kernels(tree: Any) -> dict[str, np.ndarray]:
    """The arrays with two axes, by the layers that they are in."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {path[-2].key: np.asarray(leaf) for path, leaf in found if leaf.ndim == 2}


if __name__ == "__main__":
    main()
