"""Adapters: a training step through each, and what each does with modes, random numbers and state."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from scissorhands_jax import trees
from scissorhands_jax.data import split
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import classification_loss
from scissorhands_jax.methods import finetune
from scissorhands_jax.models import build, from_equinox, from_linen, from_nnx
from scissorhands_jax.models.layers import BatchNorm
from scissorhands_jax.training import run
from tests.models.samples import (
    ADAPTED,
    KEY,
    ForeignLinen,
    ForeignNnx,
    PlainEquinox,
    StatefulEquinox,
    images,
    tiny_model,
    tiny_resnet,
)

STATEFUL = ("linen", "foreign linen", "nnx", "stateful equinox")


RANDOM = ("foreign linen", "nnx", "plain equinox")


def differ(a, b):
    """Whether any number of two trees differs."""
    return any(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.any(x != y)), a, b)))


@pytest.fixture(scope="module", params=ADAPTED)
def adapted(request):
    """A network through each adapter: its name, the model, its params and state."""
    model = ADAPTED[request.param]()
    return request.param, model, *model.init(KEY)


class TestAdapters:
    def test_a_jitted_training_step_works(self, adapted):
        name, model, params, model_state = adapted
        batch = {"image": images(6), "label": jnp.arange(6) % 3}
        loss_fn, optimizer = classification_loss(model), optax.sgd(0.1, momentum=0.9)

        @jax.jit
        def step(params, model_state, opt_state, key):
            grad = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, model_state), grads = grad(params, model_state, batch, train=True, key=key)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return loss, optax.apply_updates(params, updates), model_state, opt_state

        _, moved, new_state, _ = step(params, model_state, optimizer.init(params), KEY)
        chex.assert_trees_all_equal_shapes_and_dtypes((params, model_state), (moved, new_state))
        chex.assert_tree_all_finite(moved)
        assert differ(params, moved)
        assert differ(model_state, new_state) == (name in STATEFUL)

    def test_trees_hold_arrays_only_under_text_names(self, adapted):
        _, _, params, model_state = adapted
        for leaf in jax.tree.leaves((params, model_state)):
            assert isinstance(leaf, jax.Array)
        assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params))
        assert all(trees.leaf_names(params))
        copied = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(params))
        assert jax.tree.structure(copied) == jax.tree.structure(params)

    def test_evaluation_is_deterministic_and_returns_the_state_itself(self, adapted):
        _, model, params, model_state = adapted
        first, state = model.apply(params, model_state, images(), train=False)
        second, _ = model.apply(params, model_state, images(), train=False, key=jax.random.key(5))
        assert state is model_state
        chex.assert_trees_all_equal(first, second)
        assert (first.shape, first.dtype) == ((4, 3), jnp.float32)

    def test_training_draws_from_the_key_alone(self, adapted):
        name, model, params, model_state = adapted

        def logits(seed):
            return model.apply(params, model_state, images(), train=True, key=jax.random.key(seed))[0]

        chex.assert_trees_all_equal(logits(1), logits(1))
        assert bool(jnp.any(logits(1) != logits(2))) == (name in RANDOM)

    def test_examples_do_not_mix_in_evaluation(self, adapted):
        _, model, params, model_state = adapted
        whole, _ = model.apply(params, model_state, images(), train=False)
        part, _ = model.apply(params, model_state, images()[1:2], train=False)
        chex.assert_trees_all_close(whole[1:2], part, rtol=1e-5, atol=1e-6)

    def test_vmap_over_parameters_equals_a_loop(self, adapted):
        _, model, _, model_state = adapted
        keys = jax.random.split(KEY, 2)
        stacked = jax.vmap(lambda key: model.init(key)[0])(keys)

        def train(params):
            return model.apply(params, model_state, images(), train=True, key=KEY)

        together = jax.jit(jax.vmap(train))(stacked)
        alone_for = jax.jit(train)
        for index in range(2):
            alone = alone_for(jax.tree.map(lambda leaf, index=index: leaf[index], stacked))
            expected = jax.tree.map(lambda leaf, index=index: leaf[index], together)
            chex.assert_trees_all_close(alone, expected, rtol=1e-4, atol=1e-4)

    def test_init_depends_on_the_key_only(self, adapted):
        _, model, params, model_state = adapted
        chex.assert_trees_all_equal(model.init(KEY), (params, model_state))
        other, _ = model.init(jax.random.key(1))
        assert differ(params, other)

    def test_donated_params_can_be_replaced(self, adapted):
        _, model, params, model_state = adapted

        def step(params):
            grads = jax.grad(lambda p: model.apply(p, model_state, images(), train=True, key=KEY)[0].sum())(params)
            return jax.tree.map(jnp.subtract, params, grads)

        moved = jax.jit(step, donate_argnums=0)(trees.copy(params))
        chex.assert_trees_all_equal_shapes_and_dtypes(params, moved)

    def test_state_of_another_network_is_refused(self):
        for adapt in (from_nnx(ForeignNnx), from_equinox(StatefulEquinox)):
            _, model_state = adapt.init(KEY)
            with pytest.raises(InputError, match=r"has no leaf .*; give the tree of this network"):
                adapt.apply({}, model_state, images(), train=False)


class TestAdapterDetails:
    def test_linen_modes_under_other_names(self):
        class Deterministic(nn.Module):
            @nn.compact
            def __call__(self, x, deterministic: bool = True):
                return nn.Dropout(0.5, deterministic=deterministic)(x)

        model = from_linen(Deterministic(), jnp.zeros((1, 64)))
        _, model_state = model.init(KEY)
        x = jnp.ones((1, 64))
        assert (model.apply({}, model_state, x, train=True, key=KEY)[0] == 0).any()
        assert not (model.apply({}, model_state, x, train=False)[0] == 0).any()

    def test_linen_batch_statistics_match_ours(self):
        x = images()
        theirs = nn.BatchNorm(use_running_average=False, momentum=0.9)
        y, _ = theirs.init_with_output(KEY, x)
        ours = BatchNorm()
        z, _ = ours.apply(ours.init(KEY, x, train=False), x, train=True, mutable=["batch_stats"])
        chex.assert_trees_all_close(y, z, rtol=1e-4, atol=1e-5)

    def test_nnx_names_are_attributes(self):
        params, model_state = from_nnx(ForeignNnx).init(KEY)
        assert "layers/0/kernel" in trees.leaf_names(params)
        assert trees.leaf_names(model_state) == ["batch_stats/norm/mean", "batch_stats/norm/var"]

    def test_nnx_random_streams_need_a_key_in_training(self):
        model = from_nnx(ForeignNnx)
        params, model_state = model.init(KEY)
        with pytest.raises(InputError, match="pass key="):
            model.apply(params, model_state, images(), train=True)

    def test_nnx_dropout_layers_draw_different_masks(self):
        class Twice(nnx.Module):
            def __init__(self, rngs):
                self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

            def __call__(self, x):
                return jnp.stack([self.first(x), self.second(x)])

        model = from_nnx(Twice)
        params, model_state = model.init(KEY)
        first, second = model.apply(params, model_state, jnp.ones((1, 64)), train=True, key=KEY)[0]
        assert (first != second).any()

    def test_equinox_names_and_state(self):
        params, model_state = from_equinox(StatefulEquinox).init(KEY)
        assert trees.leaf_names(params) == [
            "head/bias",
            "head/weight",
            "linear/bias",
            "linear/weight",
            "norm/bias",
            "norm/weight",
        ]
        assert set(model_state) == {"batch_stats", "constants"}
        assert set(model_state["batch_stats"]["norm"]) == {"mean", "var", "count"}
        np.testing.assert_array_equal(model_state["constants"]["order"], [2, 1, 0])

    def test_equinox_sequential_with_and_without_state(self):
        def layers(key):
            return [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(192, 3, key=key)]

        norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")
        for make in (
            lambda key: eqx.nn.Sequential(layers(key)),
            lambda key: eqx.nn.Sequential([*layers(key), norm]),
        ):
            model = from_equinox(make)
            params, model_state = model.init(KEY)
            logits, new_state = model.apply(params, model_state, images(), train=True, key=KEY)
            assert logits.shape == (4, 3)
            chex.assert_trees_all_equal_shapes_and_dtypes(new_state, model_state)

    def test_equinox_batch_axes_must_agree(self):
        def make(key):
            del key
            return eqx.nn.Sequential([eqx.nn.BatchNorm(3, axis_name=name, mode="batch") for name in "ab"])

        with pytest.raises(InputError, match="batch axis"):
            from_equinox(make)

    def test_bfloat16_computation_keeps_wide_parameters(self):
        x = images(4)
        labels = jnp.arange(4) % 3
        wide, params, model_state = tiny_model()
        narrow = from_linen(tiny_resnet(dtype="bfloat16"), x)
        chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(narrow.init, KEY), (params, model_state))
        loss_fn = classification_loss(narrow)
        batch = {"image": x, "label": labels}
        grads, new_state = jax.jit(jax.grad(loss_fn, has_aux=True), static_argnames="train")(
            params, model_state, batch, train=True, key=None
        )
        for leaf in jax.tree.leaves((params, grads)):
            assert leaf.dtype == jnp.float32
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, model_state)
        got, _ = narrow.apply(params, model_state, x, train=False)
        expected, _ = wide.apply(params, model_state, x, train=False)
        assert got.dtype == jnp.float32
        chex.assert_trees_all_close(got, expected, rtol=0.1, atol=0.1)
        assert (got != expected).any()
        for name in ("vgg16_bn", "mlp", "resnet20", "resnet9"):
            model = build(name, num_classes=10, image_shape=(32, 32, 3), dtype="bfloat16")
            shapes = jax.eval_shape(model.init, KEY)
            x32 = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
            logits, _ = jax.eval_shape(lambda p, s, x, model=model: model.apply(p, s, x, train=False), *shapes, x32)
            assert logits.dtype == jnp.float32


def live_linen():
    module, x = ForeignLinen(), images()
    variables = module.init(jax.random.key(4), x, train=False)
    return from_linen(module, variables), lambda variables: module.apply(variables, x, train=False), variables


def live_nnx():
    module, x = ForeignNnx(nnx.Rngs(4)), images()
    module.norm.mean[...] = jnp.arange(8.0)

    def logits(module):
        module = nnx.clone(module)
        module.eval()
        return module(x)

    return from_nnx(module), logits, module


def live_equinox():
    module, x = PlainEquinox(jax.random.key(4)), images()
    return from_equinox(module), lambda module: jax.vmap(eqx.nn.inference_mode(module))(x), module


def live_stateful_equinox():
    module, state = eqx.nn.make_with_state(StatefulEquinox)(jax.random.key(4))
    x = images()

    def logits(pair):
        module, state = pair
        call = jax.vmap(eqx.nn.inference_mode(module), axis_name="examples", in_axes=(0, None), out_axes=(0, None))
        return call(x, jax.tree.map(jnp.copy, state))[0]

    return from_equinox(module, state), logits, (module, state)


LIVE = [live_linen, live_nnx, live_equinox, live_stateful_equinox]


class TestLiveModules:
    @pytest.mark.parametrize("live", LIVE)
    def test_trained_weights_go_in_and_new_ones_come_back(self, live):
        trained, logits, network = live()
        before = logits(network)
        given, _ = trained.model.apply(trained.params, trained.model_state, images(), train=False)
        chex.assert_trees_all_close(given, before, rtol=1e-5, atol=1e-6)
        loss_fn = classification_loss(trained.model)
        data = split({"image": images(12, seed=3), "label": jnp.arange(12) % 3}, range(4))
        method = finetune(loss_fn, optax.sgd(0.1), batch_size=4)
        done = run(method, KEY, trained.params, trained.model_state, data, num_epochs=1)
        if live is not live_nnx:
            chex.assert_trees_all_equal(logits(network), before)
        restored = trained.restore(done.params, done.model_state)
        expected, _ = trained.model.apply(done.params, done.model_state, images(), train=False)
        chex.assert_trees_all_close(logits(restored), expected, rtol=1e-5, atol=1e-6)
        assert jnp.any(expected != given)
        if live is live_nnx:
            assert restored is network

    @pytest.mark.parametrize("live", LIVE)
    def test_a_network_that_was_given_alive_draws_no_fresh_weights(self, live):
        with pytest.raises(InputError, match=r"given as a live module; give from_\w+ "):
            live()[0].model.init(KEY)

    def test_nothing_of_an_instance_changes_before_it_is_restored(self):
        module = ForeignNnx(nnx.Rngs(4))
        module.train()
        before = jax.tree.map(jnp.copy, nnx.as_pure(nnx.state(module, nnx.Param, nnx.BatchStat)))
        trained = from_nnx(module)
        jax.tree.map(lambda leaf: leaf.delete(), (trained.params, trained.model_state))
        after = nnx.as_pure(nnx.state(module, nnx.Param, nnx.BatchStat))
        chex.assert_trees_all_equal(before, after)
        assert module.dropout.deterministic is False

    def test_state_that_is_missing_is_asked_for(self):
        module, _ = eqx.nn.make_with_state(StatefulEquinox)(KEY)
        with pytest.raises(InputError, match=r"the layers norm\.batch_counter, norm\.batch_state_index have state"):
            from_equinox(module)

    def test_variables_without_params_are_refused(self):
        with pytest.raises(InputError, match="the variables hold 'weights', but no 'params'"):
            from_linen(ForeignLinen(), {"weights": {}})
