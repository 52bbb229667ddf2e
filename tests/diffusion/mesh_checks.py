"""What diffusion networks do on meshes of virtual devices; `tests.training.sharding_test` runs it."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import Data, make_layout, trees
from scissorhands_jax.cli import main as cli
from scissorhands_jax.diffusion import networks, unlearning
from scissorhands_jax.diffusion.concept_methods import concept_scissorhands
from scissorhands_jax.diffusion.unet import UNetConfig
from scissorhands_jax.jobs import config
from scissorhands_jax.training import loop as training
from tests.diffusion import unlearning_test as small

UNET_CHECKS = ("UNet, divided", "UNet, stays divided", "UNet, params", "UNet, metrics")
CHECKS = (
    *UNET_CHECKS,
    "sd unlearn, weights lie on the devices of the mesh",
    "sd unlearn, begun on two devices and ended on one",
)


def run_checks(report: Callable[..., None]) -> None:
    """Takes a step of a UNet both ways, makes a small network forget by the command, and reports on each."""
    take_a_step(report)
    with tempfile.TemporaryDirectory() as folder, small.small_network(), contextlib.redirect_stdout(io.StringIO()):
        place = Path(folder)
        small.write_model(place / "model")
        devices = (
            forget(place, "one"),
            forget(place, "two", "--mesh", "2x1", "--checkpoint-every", "1", stop_at=5),
            forget(place, "two", "--resume"),
        )
        original, one, two = (small.result(place / out) for out in ("model", "one", "two"))
    report(CHECKS[4], devices == ([{1}, {1}], [{2}], [{1}, {1}]), devices)
    difference, moved = distance(one, two), distance(one, original)
    report(CHECKS[5], difference < 1e-5 * moved, f"{difference} {moved}")


def forget(place: Path, out: str, *more: str, stop_at: int | None = None) -> list[set[int]]:
    """Runs `sd unlearn`, up to a step if one is given, and says on how many devices the parameters lie at its ends."""
    counts: list[set[int]] = []
    run = unlearning.run

    def look(params: Any) -> None:
        counts.append({len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)})

    def watched(method: Any, key: Any, params: Any, *arguments: Any, on_step: Any, layout: Any, **options: Any) -> Any:
        def stepping(step: Any) -> None:
            on_step(step)
            if step.step == stop_at:
                raise KeyboardInterrupt

        look(params)
        assert counts == [{1 if layout is None else layout.mesh.size}]
        result = run(method, key, params, *arguments, on_step=stepping, layout=layout, **options)
        look(result.params)
        return result

    words = [*small.paper(place, place / out), "--cache", str(place / "cache"), *more]
    with mock.patch.object(unlearning, "run", watched):
        assert cli.main(words) == (0 if stop_at is None else 130)
    return counts


def distance(one: Any, other: Any) -> float:
    """The norm of the difference of two trees, wherever they lie."""
    return float(trees.norm(jax.tree.map(lambda a, b: jnp.asarray(np.asarray(a) - np.asarray(b)), one, other)))


def take_a_step(report: Callable[..., None]) -> None:
    """Takes a projected step of the preset `paper` on one device, and on four over which the UNet is divided."""
    sizes = UNetConfig(widths=(16,), attention=(False,), layers_per_block=1, heads=2, context_width=32, groups=4)
    model = networks.unet(sizes)
    settings = ["batch_size=4", "epochs=1", "optimizer=sgd", "learning_rate=0.1", "fraction=0.1"]
    # Both losses fall together here, so that the projection has something to do.
    settings = config.override(
        concept_scissorhands.PRESETS["paper"], [*settings, "forget_weight=0", "trim=mid_block/attentions/.*/attn1"]
    )
    method = settings.method(model)
    draw = np.random.default_rng(0)

    def side() -> dict[str, np.ndarray]:
        shapes = {"latents": (4, 4, 4, 4), "deviation": (4, 4, 4, 4), "context": (4, 5, 32)}
        return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    data, start = Data(side(), side()), model.init(jax.random.key(1))
    results, steps = [], []
    layout = make_layout(4, 1, fsdp=True, replicate_below=256)
    for place in (None, layout):
        results.append(
            training.run(method, jax.random.key(0), *start, data, num_epochs=1, layout=place, on_step=steps.append)
        )
    one, many = (result.params for result in results)
    parts = [len({str(shard.index) for shard in leaf.addressable_shards}) for leaf in jax.tree.leaves(many)]
    large = [leaf.size >= 256 for leaf in jax.tree.leaves(many)]
    report(UNET_CHECKS[0], all((count == 4) == big for count, big in zip(parts, large, strict=True)), parts)
    places = zip(jax.tree.leaves(many), jax.tree.leaves(layout.shardings(many)), strict=True)
    report(UNET_CHECKS[1], all(leaf.sharding.is_equivalent_to(place, leaf.ndim) for leaf, place in places))
    difference, moved = distance(one, many), distance(one, start[0])
    report(UNET_CHECKS[2], difference < 1e-5 * moved, f"{difference} {moved}")
    first, second = (step.metrics for step in steps)
    close = all(np.allclose(first[name], second[name], rtol=1e-4, atol=1e-6) for name in first)
    report(UNET_CHECKS[3], close and bool(first["projected"]) and first["dual"] > 0, (first, second))
