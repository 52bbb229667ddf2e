"""Rematerialisation: the same network and numbers in less memory."""

import chex
import jax
import jax.numpy as jnp
import pytest

from scissorhands_jax.losses import classification_loss
from scissorhands_jax.models import build
from scissorhands_jax.models.layers import checkpoint_late

SMALL = {
    "resnet18": {"stage_sizes": (3, 1), "widths": (4, 8)},
    "vgg16_bn": {"widths": ((4, 4, 4),)},
    "mlp": {"hidden": (64,) * 9},
}


def gradients(name, *, remat):
    """Value, state and gradient of a step's loss, and the temporaries of its program."""
    model = build(name, num_classes=3, image_shape=(8, 8, 3), remat=remat, **SMALL[name])
    loss_fn = classification_loss(model)

    @jax.jit
    def step(params, model_state, batch):
        return jax.value_and_grad(lambda p: loss_fn(p, model_state, batch, train=True, key=None), has_aux=True)(params)

    network = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (256, 8, 8, 3))
    batch = {"image": images, "label": jnp.arange(256) % 3}
    compiled = step.lower(*network, batch).compile()
    return network, compiled(*network, batch), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("name", "share"), [("resnet18", 0.6), ("vgg16_bn", 0.7), ("mlp", 0.6)])
def test_the_same_numbers_in_less_memory(name, share):
    plain, again = (gradients(name, remat=remat) for remat in (False, True))
    chex.assert_trees_all_equal(again[0], plain[0])
    chex.assert_trees_all_close(again[1], plain[1], rtol=1e-4, atol=1e-6)  # statistics and their counters included
    chex.assert_trees_all_equal_shapes_and_dtypes(again[1], plain[1])
    assert again[2] < share * plain[2]


def test_on_accelerators_the_barrier_of_jax_is_enough(monkeypatch):
    plain = gradients("mlp", remat=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    again = gradients("mlp", remat=True)
    chex.assert_trees_all_close(again[1], plain[1], rtol=1e-4, atol=1e-6)


def test_late_recomputation_passes_integers_and_keys_by():
    def function(x, count, key):
        return {"y": jnp.sin(x) * count + jax.random.normal(key, x.shape), "count": count + 1}

    arguments = jnp.arange(3.0), jnp.int32(2), jax.random.key(0)
    late = jax.grad(lambda x: checkpoint_late(function)(x, *arguments[1:])["y"].sum())(arguments[0])
    chex.assert_trees_all_close(late, 2 * jnp.cos(arguments[0]))
    assert int(checkpoint_late(function)(*arguments)["count"]) == 3
