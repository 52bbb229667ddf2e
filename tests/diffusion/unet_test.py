"""A UNet whose parameters are divided over four virtual CPU devices takes the step that one device takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEVICES = 4
CHECKS = ("divided", "params", "metrics", "stays divided")


@pytest.fixture(scope="module")
def outcome():
    """What the checks below print, by name."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    command = [sys.executable, "-m", "tests.diffusion.unet_test"]
    environment, root = {**os.environ, "XLA_FLAGS": flags}, Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


@pytest.mark.parametrize("check", CHECKS)
def test_a_divided_unet_takes_the_same_step(outcome, check):
    assert outcome[check] == "ok"


def main() -> None:
    """Takes a projected step of the preset `paper` both ways, and prints `name: ok` or what is wrong."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from scissorhands_jax import Data, make_layout, trees
    from scissorhands_jax.diffusion import concept_settings, networks
    from scissorhands_jax.diffusion.unet import UNetConfig
    from scissorhands_jax.jobs import config
    from scissorhands_jax.training import loop as training
    from tests.compilations import save_time

    save_time()
    jax.config.update("jax_default_matmul_precision", "highest")
    sizes = UNetConfig(widths=(16,), attention=(False,), layers_per_block=1, heads=2, context_width=32, groups=4)
    model = networks.unet(sizes)
    settings = ["batch_size=4", "epochs=1", "optimizer=sgd", "learning_rate=0.1", "fraction=0.1"]
    # Both losses fall together here, so that the projection has something to do.
    settings = config.override(
        concept_settings.PRESETS["paper"], [*settings, "forget_weight=0", "trim=mid_block/attentions/.*/attn1"]
    )
    method = settings.method(model)
    draw = np.random.default_rng(0)

    def side():
        shapes = {"latents": (4, 4, 4, 4), "deviation": (4, 4, 4, 4), "context": (4, 5, 32)}
        return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    data, start = Data(side(), side()), model.init(jax.random.key(1))
    results, steps = [], []
    layout = make_layout(DEVICES, 1, fsdp=True, replicate_below=256)
    for place in (None, layout):
        results.append(
            training.run(method, jax.random.key(0), *start, data, num_epochs=1, layout=place, on_step=steps.append)
        )
    one, many = (result.params for result in results)

    def report(name, condition, found=""):
        print(f"{name}: {'ok' if condition else f'wrong {found}'}", flush=True)

    parts = [len({str(shard.index) for shard in leaf.addressable_shards}) for leaf in jax.tree.leaves(many)]
    large = [leaf.size >= 256 for leaf in jax.tree.leaves(many)]
    report("divided", all((count == DEVICES) == big for count, big in zip(parts, large, strict=True)), parts)
    places = zip(jax.tree.leaves(many), jax.tree.leaves(layout.shardings(many)), strict=True)
    report("stays divided", all(leaf.sharding.is_equivalent_to(place, leaf.ndim) for leaf, place in places))
    here, there = (jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree) for tree in (one, many))
    difference = jax.tree.map(jnp.subtract, here, there)
    moved = jax.tree.map(jnp.subtract, here, start[0])
    report("params", trees.norm(difference) < 1e-5 * trees.norm(moved), f"{trees.norm(difference)}")
    first, second = (step.metrics for step in steps)
    close = all(np.allclose(first[name], second[name], rtol=1e-4, atol=1e-6) for name in first)
    report("metrics", close and bool(first["projected"]) and first["dual"] > 0, (first, second))


if __name__ == "__main__":
    main()
