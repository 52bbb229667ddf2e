"""Settings of methods: each documented, each an argument of the method's own factory or of its training."""

import dataclasses
import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, methods, models
from scissorhands_jax.base import Data
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.earlier_runs import parse_run_config
from scissorhands_jax.keywords import field_docs
from scissorhands_jax.methods import METHODS, Semantics
from scissorhands_jax.methods.settings import MethodSettings, TrainingSettings
from scissorhands_jax.optimizers import interpolate
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.methods.example import DATA, KEY, build, epoch_of, original


@pytest.mark.parametrize("name", ["ssd", "influence"])
def test_a_method_without_steps_takes_no_epochs_and_a_saved_configuration_with_some_is_read(name):
    settings = METHODS[name](epochs=5)
    with pytest.raises(InputError, match=r"epochs = 5 would change nothing with \w+, which takes no steps; leave it 0"):
        settings.build(tiny.model(), tiny.loss(), tiny.CLASSES)
    METHODS[name]().build(tiny.model(), tiny.loss(), tiny.CLASSES)
    config = RunConfig(model="mlp", dataset="digits", forget="class:3", method_name=name, method=settings)
    assert parse_run_config(dataclasses.asdict(config), "a file") == config


@pytest.mark.parametrize("kind", [MethodSettings, TrainingSettings, Semantics, *METHODS.values()])
def test_every_setting_is_documented(kind):
    docs = field_docs(kind)
    assert list(docs) == [field.name for field in dataclasses.fields(kind)]
    assert all(text.endswith(".") for text in docs.values())


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random_label"])
def test_the_factory_has_the_settings_of_its_method_as_documented_arguments(name):
    factory, settings = getattr(methods, name), METHODS[name]
    parameters = inspect.signature(factory).parameters
    training = {field.name for field in dataclasses.fields(TrainingSettings)}
    own = [field.name for field in dataclasses.fields(settings) if field.name not in training]
    recipes = {"recipe", "decoupled", "label_smoothing", "norm_bias_scale", "translate"}
    assert set(own) - recipes <= set(parameters)
    documented = [line.split(":")[0].strip(" *") for line in factory.__doc__.splitlines() if line.startswith("  ")]
    assert [parameter for parameter in parameters if parameter not in documented] == []


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_which_gradients_its_steps_hold(name):
    gradients = METHODS[name].gradients
    assert set(gradients) <= {"forget", "retain", "both", "either"}
    assert len(gradients) == (2 if name in ("scissorhands", "munba", "orthograd") else 1)


def test_the_rate_drops_before_the_first_step_of_each_milestone():
    settings = TrainingSettings(epochs=3, milestones=(1, 2), gamma=0.5)
    schedule = settings.rate_schedule([3, 2, 4])
    knots, factors = jnp.asarray(schedule.knots, jnp.int32), jnp.asarray(schedule.factors, jnp.float32)
    rates = [float(interpolate(jnp.int32(step), knots, factors)) for step in range(9)]
    assert rates == [1] * 3 + [0.5] * 2 + [0.25] * 4


def rates_of(settings, lengths):
    schedule = settings.rate_schedule(lengths)
    knots, factors = jnp.asarray(schedule.knots, jnp.int32), jnp.asarray(schedule.factors, jnp.float32)
    return [float(interpolate(jnp.int32(step), knots, factors)) for step in range(sum(lengths[: settings.epochs]))]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "triangle"])
def test_schedules_end_with_the_run_however_long_its_epochs_are(schedule):
    rates = rates_of(TrainingSettings(epochs=2, schedule=schedule, milestones=(5,)), [3, 2, 4, 4, 4])
    assert len(rates) == 5
    assert max(rates) == 1
    assert rates[-1] < 0.5
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[rates.index(1) :]))


@pytest.mark.parametrize("final_rate", [0.0, 0.3])
def test_a_triangle_ends_at_its_final_rate(final_rate):
    rates = rates_of(TrainingSettings(epochs=1, schedule="triangle", warmup=0.2, final_rate=final_rate), [1_000])
    assert rates[-1] == pytest.approx(final_rate, abs=2e-3)


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if issubclass(kind, TrainingSettings)])
def test_every_method_with_steps_follows_the_schedule(name):
    rate, shapes = {}, {}
    for schedule in ("drops", "linear"):
        method = build(name, schedule=schedule, milestones=(), epochs=1)
        begun = epoch_of(method, start=original(), steps=0).carries[0]
        knots, factors = (optax.tree_utils.tree_get(begun.opt_state, part) for part in ("knots", "factors"))
        steps = len(list(method.batches(KEY, DATA, 0)))
        rate[schedule] = [float(interpolate(jnp.int32(step), knots, factors)) for step in range(steps)]
        shapes[schedule] = [leaf.shape for leaf in jax.tree.leaves(begun)]
    assert rate["drops"] == [1] * steps
    np.testing.assert_allclose(rate["linear"], 1 - np.arange(steps) / steps, rtol=1e-6)
    assert shapes["drops"] == shapes["linear"]  # so that both share one program


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "step"}, "schedule is 'step'; choose one of drops, linear, cosine, triangle, restarts"),
        ({"warmup": 1.0}, "warmup must be a share of the steps, at least 0 and below 1, got 1.0"),
        ({"final_rate": -0.1}, "final_rate must not be negative, got -0.1"),
        ({"final_rate": float("nan")}, "final_rate must not be negative, got nan"),
        ({"gamma": -0.1}, "gamma must not be negative, got -0.1"),
        ({"gamma": math.inf}, "gamma must be finite, got inf; it multiplies the learning rate"),
        ({"epochs": -1}, "the number of epochs must not be negative, got -1"),
        ({"milestones": (-1,)}, r"milestones must be epochs, counted from 0, got \(-1,\)"),
    ],
)
def test_schedules_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TrainingSettings(**settings)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "scissorhands",
            {"milestones": (5, 8)},
            r"^milestones = \(5, 8\) would change nothing with schedule = 'linear'",
        ),
        ("msg", {"milestones": (2,)}, "would change nothing with schedule = 'triangle'; leave it out"),
        ("ct", {"milestones": (1,), "gamma": 0.5}, r"gamma = 0.5, milestones = \(1,\) would change nothing"),
        ("sfron", {"warmup": 0.5}, "warmup = 0.5 would change nothing with schedule = 'cosine'"),
        ("finetune", {"final_rate": 0.1}, r"would change nothing with schedule = 'drops', milestones = \(\)"),
        ("finetune", {"gamma": 0.5}, "gamma = 0.5 would change nothing"),
        ("amun", {"gamma": 0.5, "milestones": ()}, "gamma = 0.5 would change nothing"),
        ("retrain", {"translate": 4}, "translate = 4 would change nothing with .*flips = 'random'"),
        ("retrain", {"recipe": "fast", "gamma": 0.5}, "gamma = 0.5 would change nothing"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(name, changes, message):
    with pytest.raises(InputError, match=message):
        METHODS[name](**changes).build(tiny.model(), tiny.loss(), tiny.CLASSES)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("scissorhands", {"schedule": "drops", "milestones": (5, 8), "gamma": 0.5}),
        ("scissorhands", {"mode": "authors", "milestones": (5, 8)}),
        ("msg", {"warmup": 0.2, "final_rate": 0.1}),
        ("cf_k", {"schedule": "restarts", "layers": "fc"}),
        ("eu_k", {"schedule": "restarts", "milestones": (), "layers": "fc"}),
        ("retrain", {"schedule": "triangle"}),
        ("retrain", {"recipe": "fast", "schedule": "drops"}),
        ("retrain", {"flips": "alternating", "translate": 4}),
    ],
)
def test_settings_that_are_read_or_as_they_always_are_build(name, changes):
    METHODS[name](**changes).build(tiny.model(), tiny.loss(), tiny.CLASSES)


def test_a_pattern_is_checked_even_where_nothing_is_projected():
    method = METHODS["scissorhands"](projected=False, project="nothing_like_it").build(
        tiny.model(), tiny.loss(), tiny.CLASSES
    )
    with pytest.raises(InputError, match="the layer pattern 'nothing_like_it' matches none"):
        method.init(KEY, *tiny.start(), tiny.data())


@pytest.mark.parametrize("name", [name for name in METHODS if "epochs" in inspect.signature(METHODS[name]).parameters])
def test_no_epoch_can_be_asked_for(name):
    layers = {"layers": "fc"} if hasattr(METHODS[name](), "layers") else {}
    METHODS[name](epochs=0, **layers).build(tiny.model(), tiny.loss(), tiny.CLASSES)


UNBOUNDED = {("influence", "damping"), ("sfron", "max_norm")}
"""Settings that may be infinite: nothing moves, and nothing is clipped."""


def _numbers(name):
    """The settings of a method that are numbers with a fraction."""
    usual = METHODS[name]()
    return [field.name for field in dataclasses.fields(usual) if isinstance(getattr(usual, field.name), float)]


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        (name, setting, value)
        for name in METHODS
        for setting in _numbers(name)
        for value in (math.nan, math.inf)
        if value != math.inf or (name, setting) not in UNBOUNDED
    ],
)
def test_a_setting_that_is_no_finite_number_is_refused(name, setting, value):
    def built():
        return dataclasses.replace(METHODS[name](), **{setting: value}).build(tiny.model(), tiny.loss(), tiny.CLASSES)

    with pytest.raises(InputError, match=setting):
        built()


LABELLED = [name for name in METHODS if METHODS[name].reads_classes or name in ("finetune", "scissorhands")]


@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_eight_bits_are_as_good_as_any(name):
    """Of 256 classes, whose number does not fit into eight bits."""
    model = models.build("mlp", num_classes=256, image_shape=(2, 2, 1), hidden=(5,))
    loss = losses.classification_loss(model)
    start = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    steps = {} if METHODS[name]().epochs == 0 else {"epochs": 1, "learning_rate": 0.05}
    method = dataclasses.replace(METHODS[name](), batch_size=4, **steps).build(model, loss, 256)
    found = []
    labels = [rng.integers(200, 256, count) for count in (4, 8)]
    images = [rng.random((count, 2, 2, 1), np.float32) for count in (4, 8)]
    for dtype in (np.int32, np.uint8):
        parts = ({"image": x, "label": y.astype(dtype)} for x, y in zip(images, labels, strict=True))
        epochs = 1 if METHODS[name]().epochs else 0
        found.append(run(method, jax.random.key(1), *start, Data(*parts), num_epochs=epochs).params)
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["finetune", "salun", "delete", "amun", "sfron", "boundary_shrink", "boundary_expand"])
def test_losses_of_logits_in_half_precision_are_in_full_precision(name):
    model = models.build("mlp", num_classes=3, image_shape=(2, 2, 1), hidden=(4,))

    def narrow(*args, **options):
        logits, model_state = model.apply(*args, **options)
        return logits.astype(jnp.bfloat16), model_state

    half = model._replace(apply=narrow)
    quick = {"attack_steps": 1} if name == "amun" else {"threshold": None} if name == "sfron" else {}
    settings = METHODS[name](batch_size=4, epochs=1, **quick)
    method = settings.build(half, losses.classification_loss(half), 3)
    rng = np.random.default_rng(0)
    parts = ({"image": rng.random((n, 2, 2, 1), np.float32), "label": np.arange(n) % 3} for n in (4, 8))
    data = Data(*parts)
    carry = method.init(jax.random.key(0), *model.init(jax.random.key(1)), data)
    batch = data_lib.gather(data, next(iter(method.batches(jax.random.key(2), data, 0))))
    _, metrics = jax.eval_shape(method.step, carry, batch)
    assert {metric.dtype for metric in metrics.values()} == {jnp.dtype("float32")}
