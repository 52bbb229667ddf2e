"""Retraining and its recipes: optimizers and schedules against closed forms, augmentation, and what a recipe is."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import augmentation, losses, models, optimizers, saliency, trees
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Batch, Carry, Model, freeze
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config
from scissorhands_jax.methods import METHODS
from scissorhands_jax.methods.retrain import (
    RECIPES,
    RetrainSettings,
    alternating_flips,
    per_kilo_example,
    retrain,
    scale_norm_biases,
)
from scissorhands_jax.training.checkpoints import Checkpointer
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.comparison import rate_of

KEY = jax.random.key(5)
FAST = RetrainSettings(recipe="fast", epochs=3, batch_size=4, learning_rate=4.0)


NUMBERS = {"bn": {"scale": 2.0, "bias": -1.0}, "fc": {"bias": 0.5}}


class TestSgd:
    """Against PyTorch's update rule, written down in NumPy."""

    def by_hand(self, rate_at, momentum, decay, bias_scale, gradients):
        params, buffers = dict(self.flat(NUMBERS)), dict.fromkeys(["bn/scale", "bn/bias", "fc/bias"], 0.0)
        for step, gradient in enumerate(gradients):
            for name, slope in self.flat(gradient).items():
                slope = slope * (bias_scale if name == "bn/bias" else 1) + decay * params[name]
                buffers[name] = momentum * buffers[name] + slope
                params[name] -= rate_at(step) * (slope + momentum * buffers[name])
        return params

    def flat(self, tree):
        names = ["/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(tree)]
        return dict(zip(names, map(float, jax.tree.leaves(tree)), strict=True))

    def test_nesterov_schedule_and_faster_biases(self):
        optimizer = optax.chain(
            scale_norm_biases(5),
            optimizers.sgd(0.1, momentum=0.8, weight_decay=0.02, nesterov=True, scheduled=True),
        )
        params = jax.tree.map(jnp.float32, NUMBERS)
        state = optimizers.with_schedule(optimizer.init(params), optimizers.RateSchedule([0, 2, 4], [0.5, 1.0, 0.0]))
        gradients = [jax.tree.map(lambda x, s=step: x + s, NUMBERS) for step in range(6)]
        rates = []
        for gradient in gradients:
            rates.append(float(rate_of(state)))
            updates, state = optimizer.update(jax.tree.map(jnp.float32, gradient), state, params)
            params = optax.apply_updates(params, updates)
        wanted = [0.05, 0.075, 0.1, 0.05, 0.0, 0.0]
        np.testing.assert_allclose(rates, wanted, rtol=1e-6)
        expected = self.by_hand(wanted.__getitem__, 0.8, 0.02, 5, gradients)
        assert self.flat(params) == pytest.approx(expected, rel=1e-5)

    def test_numbers_and_schedules_share_one_update(self):
        one = optimizers.sgd(0.1, nesterov=True, scheduled=True)
        assert one.update is optimizers.sgd(3.0, momentum=0.5, nesterov=True, scheduled=True).update
        assert one.update is not optimizers.sgd(0.1, scheduled=True).update
        assert one.update is not optimizers.sgd(0.1, nesterov=True).update

    @pytest.mark.parametrize(("momentum", "batch_size"), [(0.0, 1024), (0.85, 256), (0.95, 4096)])
    def test_units_that_leave_the_steps_alone(self, momentum, batch_size):
        """A constant gradient moves weights by the same per example, and weights decay by the same, whatever else."""
        rate, decay = per_kilo_example(3.0, momentum=momentum, weight_decay=0.02, batch_size=batch_size)
        settled = 1 + 1 / (1 - momentum)
        assert rate * settled / batch_size == pytest.approx(3.0 / 1024)
        assert rate * settled * decay / batch_size == pytest.approx(0.02 / 1024)

    @pytest.mark.parametrize(
        "arguments", [{"learning_rate": 0.0, "momentum": 0.9}, {"learning_rate": 1, "momentum": 1}]
    )
    def test_units_need_a_rate_and_a_momentum_below_one(self, arguments):
        with pytest.raises(InputError, match="learning_rate must be above 0 and momentum below 1"):
            per_kilo_example(**arguments, weight_decay=0.0, batch_size=1)


class TestAugmentation:
    IMAGES = jax.random.randint(KEY, (600, 5, 7, 2), 0, 256).astype(jnp.uint8)

    @pytest.mark.parametrize("convert", [lambda x: x, lambda x: x / 256, lambda x: x.astype(jnp.bfloat16)])
    def test_every_image_is_mirrored_in_every_other_epoch(self, convert):
        images = convert(self.IMAGES)
        first, second, third = (np.asarray(alternating_flips(images, jnp.int32(epoch))) for epoch in range(3))
        np.testing.assert_array_equal(first, ~second)
        np.testing.assert_array_equal(first, third)
        assert 0.4 < first.mean() < 0.6, "half of them begin mirrored"
        order = np.random.default_rng(0).permutation(600)
        np.testing.assert_array_equal(alternating_flips(images[order], jnp.int32(0)), first[order])

    def test_images_of_few_grey_values_differ_too(self):
        coarse = jnp.asarray(np.random.default_rng(0).integers(0, 17, (400, 8, 8, 1)) / 16, jnp.float32)
        assert 0.4 < float(alternating_flips(coarse, jnp.int32(0)).mean()) < 0.6

    def test_flip_mirrors_the_chosen(self):
        flipped = augmentation.flip(self.IMAGES[:2], jnp.asarray([True, False]))
        np.testing.assert_array_equal(flipped[0], self.IMAGES[0, :, ::-1])
        np.testing.assert_array_equal(flipped[1], self.IMAGES[1])

    def test_crops_come_out_of_the_mirrored_border(self):
        """Every crop is one of the 25 of that image, and all 25 occur."""
        images = self.IMAGES[:300]
        padded = np.pad(np.asarray(images), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
        crops = np.asarray(augmentation.crop(KEY, images, padding=2, mode="reflect"))
        seen = set()
        for crop, whole in zip(crops, padded, strict=True):
            seen |= {(y, x) for y in range(5) for x in range(5) if np.array_equal(crop, whole[y : y + 5, x : x + 7])}
        assert len(seen) == 25


TABLE = Model(lambda key: (key, ()), lambda params, state, x, *, train, key=None: (params[x], state))


def test_label_smoothing_spreads_a_share_over_all_classes():
    logits = jax.random.normal(KEY, (6, 4))
    labels = jnp.asarray([0, 1, 2, 3, 0, 1])
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    by_hand = -(0.7 * log_p[np.arange(6), np.asarray(labels)] + 0.3 * log_p.mean(axis=1)).mean()
    assert float(losses.cross_entropy(logits, labels, label_smoothing=0.3)) == pytest.approx(by_hand, rel=1e-6)
    smooth = losses.altered(losses.classification_loss(TABLE), label_smoothing=0.3)
    batch = {"image": jnp.arange(6), "label": labels}
    smoothed, plain = (float(smooth(logits, (), batch, train=train, key=None)[0]) for train in (True, False))
    assert smoothed == pytest.approx(by_hand, rel=1e-6)
    assert plain == pytest.approx(-log_p[np.arange(6), np.asarray(labels)].mean(), rel=1e-6), "not in evaluation"
    assert losses.altered(smooth, label_smoothing=0.0) == losses.classification_loss(TABLE)
    with pytest.raises(InputError, match="label_smoothing must be at least 0 and below 1, got 1"):
        losses.altered(smooth, label_smoothing=1)
    with pytest.raises(InputError, match="only a classification_loss can be given label_smoothing"):
        losses.altered(lambda *_, **__: None, label_smoothing=0.1)


class TestSettings:
    def test_a_recipe_is_its_values(self):
        for name, values in RECIPES.items():
            settings = RetrainSettings(recipe=name)
            assert {field: getattr(settings, field) for field in values} == values
        assert RetrainSettings(recipe="fast", epochs=3).epochs == 3

    def test_another_recipe_keeps_what_was_chosen(self):
        changed = config.override(RetrainSettings(epochs=7, batch_size=64), ["recipe=fast", "momentum=0.8"])
        assert changed == RetrainSettings(recipe="fast", epochs=7, batch_size=64, momentum=0.8)
        assert config.override(changed, ["recipe=paper"]) == RetrainSettings(epochs=7, batch_size=64, momentum=0.8)
        assert config.override(changed, ["recipe=fast"]) == changed

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"recipe": "slow"}, "recipe is 'slow'; choose one of paper, fast"),
            ({"translate": -1}, "translate must not be negative, got -1; it is a number of pixels"),
            ({"flips": "none"}, "flips is 'none'; choose one of random, alternating"),
            ({"schedule": "step"}, "schedule is 'step'; choose one of drops, linear, cosine, triangle"),
        ],
    )
    def test_an_unknown_choice_is_one_sentence(self, changes, message):
        with pytest.raises(InputError, match=message):
            RetrainSettings(**changes)


class TestTraining:
    def test_a_stopped_run_ends_in_the_same_bits(self, tmp_path):
        method = FAST.build(tiny.model(), tiny.loss(augment=True), tiny.CLASSES)
        whole = run(method, KEY, None, None, tiny.data(), num_epochs=3)

        def stop(progress):
            if progress.step == 5:
                raise KeyboardInterrupt

        keeper = Checkpointer(tmp_path, every_steps=2)
        with pytest.raises(KeyboardInterrupt):
            run(method, KEY, None, None, tiny.data(), num_epochs=3, checkpoint=keeper, on_step=stop)
        keeper.close()
        parts = run(method, KEY, None, None, tiny.data(), num_epochs=3, checkpoint=Checkpointer(tmp_path))
        jax.tree.map(np.testing.assert_array_equal, whole[:2], parts[:2])

    def test_rates_follow_the_step_and_flips_the_epoch(self):
        method = dataclasses.replace(FAST, translate=0).build(tiny.model(), tiny.loss(augment=True), tiny.CLASSES)
        carry = method.init(KEY, None, None, tiny.data())
        assert int(carry.aux) == 3, "steps in an epoch of 10 examples, four at a time"
        states = [optax.tree_utils.tree_set(carry.opt_state, count=step) for step in range(10)]
        peak = 4.0 * 4 / 1024 / (1 + 1 / 0.15)
        wanted = np.interp(range(10), [0, 2, 9], [0.2 * peak, peak, 0])
        np.testing.assert_allclose([rate_of(state) for state in states], wanted, rtol=1e-5, atol=1e-9)

        batch = Batch(retain=tiny.examples(4))
        upright = jnp.asarray(batch.retain["image"])
        loss = losses.altered(tiny.loss(), label_smoothing=FAST.label_smoothing)
        value = jax.jit(lambda images: loss(*carry[2:4], batch.retain | {"image": images}, train=True, key=None)[0])
        step = jax.jit(method.step)
        for number, epoch in ((0, 0), (2, 0), (3, 1), (6, 2)):
            seen = augmentation.flip(upright, alternating_flips(upright, jnp.int32(epoch)))
            _, metrics = step(carry._replace(step=jnp.int32(number)), batch)
            assert float(metrics["loss_retain"]) == pytest.approx(float(value(seen)), rel=1e-5)

    @pytest.mark.parametrize(
        "change",
        [
            lambda part: {**part, "image": part["image"].reshape(len(part["image"]), -1)},
            lambda part: tuple(part.values()),
        ],
    )
    def test_alternating_flips_need_images(self, change):
        data = tiny.data()
        method = retrain(tiny.model(), tiny.loss(), optimizers.sgd(0.1), batch_size=4, flips="alternating")
        with pytest.raises(
            InputError, match=r"mirror an array 'image' of shape \(N, H, W, C\), and the retain set has"
        ):
            method.init(KEY, None, None, data._replace(retain=change(data.retain)))

    def test_without_augmentation_images_stay_as_they_are(self):
        method = FAST.build(tiny.model(), tiny.loss(), tiny.CLASSES)
        assert method.init(KEY, None, None, tiny.data()).aux == ()


class TestBfloat16:
    """What is computed in bfloat16 is what lies between weights and logits, and nothing else."""

    def test_all_that_is_kept_stays_float32(self):
        model = models.build("mlp", num_classes=3, image_shape=tiny.SHAPE, hidden=(8,), dtype="bfloat16")
        loss = losses.classification_loss(model)
        settings = METHODS["scissorhands"](epochs=1, batch_size=4, fraction=0.1)
        method = settings.build(model, loss, 3)
        data = jax.tree.map(jnp.asarray, tiny.data())
        start = method.init(KEY, *model.init(KEY), data)
        carry = method.begin_epoch(start, data)
        batch = data_lib.gather(data, next(iter(method.batches(KEY, data, 0))))
        assert "bf16" in str(jax.make_jaxpr(method.step)(carry, batch))
        after, metrics = jax.eval_shape(method.step, carry, batch)
        params, state = jax.eval_shape(model.init, KEY)
        scores = jax.eval_shape(
            lambda p, s: saliency.connection_sensitivity(freeze(loss, s), p, [data.forget]), params, state
        )
        floats = [leaf for leaf in jax.tree.leaves((carry, after, metrics, scores)) if floating(leaf)]
        assert len(floats) > 20
        assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
        assert trees.vdot(carry.params, carry.params).dtype == jnp.float32

    @pytest.mark.parametrize("name", ["resnet9", "resnet18"])
    def test_statistics_and_optimizer_of_a_convolutional_network(self, name):
        model = models.build(
            name, num_classes=3, image_shape=(17, 17, 3), widths=(2,) * (3 + (name == "resnet18")), dtype="bfloat16"
        )
        method = dataclasses.replace(FAST, flips="random").build(model, losses.classification_loss(model), 3)
        params, state = jax.eval_shape(model.init, KEY)
        examples = {
            "image": jax.ShapeDtypeStruct((4, 17, 17, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((4,), jnp.int32),
        }
        opt_state = jax.eval_shape(FAST.optimizer().init, params)
        carry = Carry(jax.ShapeDtypeStruct((), jnp.int32), KEY, params, state, opt_state, ())
        after, metrics = jax.eval_shape(method.step, carry, Batch(retain=examples))
        chex.assert_trees_all_equal_shapes_and_dtypes(after.params, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(after.model_state, state)
        kept = jax.tree.leaves((after.params, after.model_state, after.opt_state, metrics))
        assert {leaf.dtype for leaf in kept if floating(leaf)} == {jnp.dtype("float32")}


def floating(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)
