"""Sharded trees give what one device gives, ungathered; on 8 virtual CPU devices in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEVICES = 8
CHECKS = ("masks", "ties", "reinitialize", "projection", "saliency", "run")


@pytest.fixture(scope="module")
def outcome():
    """What the checks below print, by name."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, __file__]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


@pytest.mark.parametrize("check", CHECKS)
def test_sharded_equals_one_device(outcome, check):
    assert outcome[check] == "ok"


def main() -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from scissorhands_jax import masks, reinit, saliency, trees
    from scissorhands_jax.base import Data, lift
    from scissorhands_jax.methods import scissorhands
    from scissorhands_jax.optimizers import sgd
    from scissorhands_jax.projection import project_gradient
    from scissorhands_jax.training import run

    jax.config.update("jax_default_matmul_precision", "highest")
    assert jax.device_count() == DEVICES
    mesh = jax.make_mesh((DEVICES,), ("model",), axis_types=(AxisType.Auto,))

    def spread(tree, axis=0):
        """The tree with one axis of every array split over the devices."""

        def place(leaf):
            spec = PartitionSpec(*[None] * axis, "model") if leaf.ndim > axis else PartitionSpec()
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        return jax.tree.map(place, tree)

    def same(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return all(np.array_equal(x, y) for x, y in pairs)

    def report(name, condition):
        print(f"{name}: {'ok' if condition else 'differs'}", flush=True)

    def largest_gather(function, *arguments):
        """Elements of the largest array that the compiled program collects on every device."""
        text = jax.jit(function).lower(*arguments).compile().as_text()
        sizes = [0]
        for line in text.splitlines():
            if " all-gather(" in line or " all-to-all(" in line:
                shape = line.split("=")[1].split("[")[1].split("]")[0]
                sizes.append(int(np.prod([int(n) for n in shape.split(",") if n])))
        return max(sizes)

    key = jax.random.key(0)
    tree = {
        "kernel": jax.random.normal(key, (64, 48)),
        "wide": jax.random.normal(jax.random.key(1), (16, 8, 24)),
        "bias": jax.random.normal(jax.random.key(2), (8,)),
    }
    sharded = spread(tree)
    scores, sharded_scores = jax.tree.map(jnp.abs, tree), jax.tree.map(jnp.abs, sharded)

    def top(s):
        return masks.top_fraction(s, 0.1)

    report("masks", same(top(scores), top(sharded_scores)) and largest_gather(top, sharded_scores) < 100)
    coarse = jax.tree.map(lambda leaf: jnp.round(leaf * 2), scores)
    report("ties", same(top(coarse), top(spread(coarse))))

    mask = top(scores)

    def renew(t, m):
        return reinit.reinitialize(jax.random.key(5), t, m, initializer=reinit.uniform())

    report("reinitialize", same(renew(tree, mask), renew(sharded, spread(mask))))

    rows = jax.tree.map(lambda leaf: jnp.stack([leaf + jnp.flip(leaf), leaf - 1]), tree)
    transform = project_gradient(2)

    def project(gradient, constraints):
        return transform.update(gradient, transform.init(gradient), constraint_grads=constraints)[0]

    one, many = project(tree, rows), project(sharded, spread(rows, axis=1))
    distance = trees.norm(jax.tree.map(jnp.subtract, one, jax.device_get(many))) / trees.norm(one)
    report("projection", distance < 1e-5 and largest_gather(project, sharded, spread(rows, axis=1)) < 100)

    def loss_fn(params, batch):
        return jnp.mean((jnp.tanh(batch["x"] @ params["a"]) @ params["b"] - batch["y"]) ** 2)

    params = {
        "a": 0.3 * jax.random.normal(jax.random.key(3), (16, 32)),
        "b": 0.3 * jax.random.normal(jax.random.key(4), (32, 8)),
    }
    examples = {
        "x": jax.random.normal(jax.random.key(5), (64, 16)),
        "y": jax.random.normal(jax.random.key(6), (64, 8)),
    }
    one = saliency.connection_sensitivity(loss_fn, params, [examples])
    many = saliency.connection_sensitivity(loss_fn, spread(params), [examples])
    report("saliency", trees.norm(jax.tree.map(jnp.subtract, one, jax.device_get(many))) < 1e-5 * trees.norm(one))

    data = Data(jax.tree.map(lambda leaf: leaf[:16], examples), jax.tree.map(lambda leaf: leaf[16:], examples))
    method = scissorhands(lift(loss_fn), sgd(0.05), fraction=0.1, batch_size=16)
    one = run(method, key, params, (), data, num_epochs=2).params
    many = run(method, key, spread(params), (), data, num_epochs=2).params
    distance = trees.norm(jax.tree.map(jnp.subtract, one, jax.device_get(many))) / trees.norm(one)
    report("run", distance < 1e-5 and not many["a"].sharding.is_fully_replicated)


if __name__ == "__main__":
    main()
