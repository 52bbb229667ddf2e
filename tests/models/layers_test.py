"""Layers: BatchNorm against NumPy, and rematerialisation with the same numbers in less memory."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import classification_loss
from scissorhands_jax.models import build
from scissorhands_jax.models.layers import BatchNorm, Normalize, _normalize_batch, checkpoint_late, relu_sum
from tests.models.samples import KEY, images


class TestReluSum:
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_it_is_the_relu_of_the_sum_to_the_last_bit(self, dtype):
        rng = np.random.default_rng(0)
        a, b = (jnp.asarray(rng.normal(size=10_000) * rng.choice([1e-6, 1, 1e6], 10_000), dtype) for _ in range(2))
        special = jnp.asarray([0, -0.0, 1, -1, 2e38, -2e38, np.inf, np.nan, -np.inf], dtype)
        a = jnp.concatenate([a, a[:100], jnp.repeat(special, 8)])
        b = jnp.concatenate([b, -a[:100], jnp.tile(special[:8], 9)])
        found = jax.jit(relu_sum)(a, b)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.astype(jnp.float32), jax.nn.relu(a + b).astype(jnp.float32))

    def test_derivatives_of_both_orders_are_those_of_the_relu(self):
        a, b = images(4, 3), images(4, 3, seed=1) - 1  # sums of either sign
        a = a.at[0].set(-b[0])  # where the sum is zero its derivative is zero, as that of `jax.nn.relu`

        def second(function):
            gradient = jax.grad(lambda a, b: jnp.sum(jnp.sin(function(a * a - 1, a * b))), (0, 1))
            return jax.jit(lambda a, b: jax.jvp(gradient, (a, b), (b, a)))(a, b)

        def first(function):
            return jax.grad(lambda a, b: jnp.sum(function(a, b) * jnp.cos(a)), (0, 1))(a, b)

        def relu(a, b):
            return jax.nn.relu(a + b)

        chex.assert_trees_all_close(first(relu_sum), first(relu), rtol=1e-6)
        chex.assert_trees_all_close(second(relu_sum), second(relu), rtol=1e-5, atol=1e-6)


class TestBatchNorm:
    def run(self, x, *, train, mutable=("batch_stats",), **options):
        module = BatchNorm(**options)
        rng = np.random.default_rng(1)
        channels = x.shape[-1]
        params = {name: jnp.asarray(rng.normal(size=channels), jnp.float32) for name in ("scale", "bias")}
        stats = {
            "mean": jnp.asarray(rng.normal(size=channels), jnp.float32),
            "var": jnp.asarray(rng.random(channels) + 0.5, jnp.float32),
            "count": jnp.int32(7),
        }
        variables = {"params": params, "batch_stats": stats}
        y, moved = module.apply(variables, x, train=train, mutable=list(mutable))
        return np.asarray(y), params, stats, moved.get("batch_stats")

    def test_training_follows_the_closed_form(self):
        x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 3)).astype(np.float32)
        y, params, old, new = self.run(jnp.asarray(x), train=True)
        wide = x.astype(np.float64).reshape(-1, 3)
        mean, biased, unbiased = wide.mean(0), wide.var(0), wide.var(0, ddof=1)
        expected = (x - mean) / np.sqrt(biased + 1e-5) * np.asarray(params["scale"]) + np.asarray(params["bias"])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(new["mean"], 0.9 * np.asarray(old["mean"]) + 0.1 * mean, rtol=1e-6)
        np.testing.assert_allclose(new["var"], 0.9 * np.asarray(old["var"]) + 0.1 * unbiased, rtol=1e-6)
        assert int(new["count"]) == 8
        assert new["count"].dtype == jnp.int32

    def test_evaluation_uses_the_running_statistics_and_moves_nothing(self):
        x = np.random.default_rng(0).normal(3, 2, (4, 3)).astype(np.float32)
        y, params, old, new = self.run(jnp.asarray(x), train=False)
        expected = (x - np.asarray(old["mean"])) / np.sqrt(np.asarray(old["var"]) + 1e-5)
        expected = expected * np.asarray(params["scale"]) + np.asarray(params["bias"])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_equal(new, old)

    def test_an_immutable_state_is_read_as_training_does_and_not_moved(self):
        x = images(4, 5)
        frozen, *_, new = self.run(x, train=True, mutable=())
        moved, *_ = self.run(x, train=True)
        np.testing.assert_array_equal(frozen, moved)
        assert new is None

    def test_derivatives_are_those_of_the_closed_form(self):
        x = jax.random.normal(KEY, (3, 2, 2, 5)) + 1
        variables = BatchNorm().init(KEY, x, train=False)
        params = {"scale": jnp.linspace(0.5, 2, 5), "bias": jnp.linspace(-1, 1, 5)}

        def own(x, params):
            y, moved = BatchNorm().apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)) + jnp.sum(moved["batch_stats"]["mean"] * moved["batch_stats"]["var"])

        def reference(x, params):
            mean, var = jnp.mean(x, (0, 1, 2), keepdims=True), jnp.var(x, (0, 1, 2), keepdims=True)
            y = (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"].reshape(mean.shape)
            y += params["bias"].reshape(mean.shape)
            return jnp.sum(jnp.sin(y)) + jnp.sum(0.1 * mean * (0.9 + 0.1 * var * 12 / 11))

        def gradient_and_hessian_product(function):
            gradient = jax.grad(function, (0, 1))
            return jax.jit(lambda x, params: jax.jvp(gradient, (x, params), (jnp.square(x), params)))(x, params)

        chex.assert_trees_all_close(
            gradient_and_hessian_product(own), gradient_and_hessian_product(reference), rtol=1e-4, atol=1e-4
        )

    def test_variance_survives_a_large_mean(self):
        noise = np.random.default_rng(0).normal(size=(64, 1))
        x = (noise + 4096).astype(np.float32)
        *_, old, new = self.run(jnp.asarray(x), train=True)
        var = (np.asarray(new["var"]) - 0.9 * np.asarray(old["var"])) / 0.1
        np.testing.assert_allclose(var, x.astype(np.float64).var(ddof=1), rtol=1e-3)

    @pytest.mark.parametrize("ratio", [0, 1, 3.9, 4.1, 300])
    def test_statistics_and_derivatives_are_those_of_float64_whatever_the_mean_is_to_the_deviation(self, ratio):
        """In one channel, with an ordinary one beside it: one pass on CPU up to a ratio of 4, then two."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(4096, 2)) * [0.1, 1] + [0.1 * ratio, 0]
        slope, scale, bias = rng.normal(size=x.shape), np.array([1.5, 0.5]), np.array([0.1, -1])

        def all_of_it(x, slope, scale, bias):
            y, transpose, (mean, var) = jax.vjp(
                lambda *arguments: (lambda y, *moments: (y, moments))(*_normalize_batch(*arguments, 1e-5)),
                *(x, scale, bias),
                has_aux=True,
            )
            return (mean, var), (y, transpose(slope))

        found = jax.jit(all_of_it)(*(jnp.asarray(array, jnp.float32) for array in (x, slope, scale, bias)))
        with jax.enable_x64(True):
            x, slope = (jnp.asarray(np.asarray(array, np.float32), jnp.float64) for array in (x, slope))
            mean, var = x.mean(0), x.var(0)

            def reference(x, scale, bias):
                std = jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
                return (x - x.mean(0, keepdims=True)) / std * scale[None] + bias[None]

            y, transpose = jax.vjp(reference, x, jnp.asarray(scale), jnp.asarray(bias))
            expected = (mean, var), (y, transpose(slope))
        np.testing.assert_allclose(found[0][0], mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found[0][1], var, rtol=5e-6)
        for own, right in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
            own, right = np.asarray(own).reshape(-1, 2), np.asarray(right).reshape(-1, 2)
            error = np.abs(own - right).max(0) / np.abs(right).max(0)
            assert np.all(error < 1e-6 * np.array([3 + ratio, 3]))

    def test_narrow_inputs_get_wide_statistics(self):
        x = images(8, 4).astype(jnp.bfloat16)
        y, _, old, new = self.run(x, train=True)
        assert y.dtype == jnp.bfloat16
        assert new["mean"].dtype == new["var"].dtype == jnp.float32
        mean = np.asarray(x, np.float64).mean((0, 1, 2))
        np.testing.assert_allclose(new["mean"], 0.9 * np.asarray(old["mean"]) + 0.1 * mean, rtol=1e-5)

    def test_one_value_per_channel_is_refused(self):
        with pytest.raises(InputError, match="one value per channel"):
            self.run(jnp.ones((1, 3)), train=True)

    def test_momentum_and_eps_are_options(self):
        x = images(4, 5)
        *_, new = self.run(x, train=True, momentum=1.0)
        np.testing.assert_allclose(new["mean"], np.asarray(x).mean((0, 1, 2)), rtol=1e-5)
        assert not np.allclose(self.run(x, train=True, eps=1.0)[0], self.run(x, train=True)[0])

    def test_normalize_is_stored_but_not_trained(self):
        variables = Normalize((0.5,), (0.25,)).init(KEY, jnp.ones((1, 2, 2, 1)))
        assert list(variables) == ["constants"]
        y = Normalize((0.0,), (1.0,)).apply(variables, jnp.ones((1, 2, 2, 1)))
        np.testing.assert_array_equal(y, 2.0)  # stored numbers count, not the attributes


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
