"""Settings of methods: each documented, each an argument of the method's own factory or of its training."""

import dataclasses
import inspect

import jax.numpy as jnp
import pytest

from scissorhands_jax import methods
from scissorhands_jax.keywords import field_docs
from scissorhands_jax.methods import METHODS, Semantics
from scissorhands_jax.methods.settings import MethodSettings, TrainingSettings
from scissorhands_jax.optimizers import interpolate


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
    recipes = {"recipe", "schedule_shape", "warmup", "decoupled", "label_smoothing", "norm_bias_scale", "translate"}
    assert set(own) - recipes <= set(parameters)
    documented = [line.split(":")[0].strip(" *") for line in factory.__doc__.splitlines() if line.startswith("  ")]
    assert [parameter for parameter in parameters if parameter not in documented] == []


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_which_gradients_its_steps_hold(name):
    gradients = METHODS[name].gradients
    assert set(gradients) <= {"forget", "retain", "both", "either"}
    assert len(gradients) == (2 if name in ("scissorhands", "munba") else 1)


def test_the_rate_drops_before_the_first_step_of_each_milestone():
    settings = TrainingSettings(epochs=3, milestones=(1, 2), gamma=0.5)
    schedule = settings.schedule([3, 2, 4])
    knots, factors = jnp.asarray(schedule.knots, jnp.int32), jnp.asarray(schedule.factors, jnp.float32)
    rates = [float(interpolate(jnp.int32(step), knots, factors)) for step in range(9)]
    assert rates == [1] * 3 + [0.5] * 2 + [0.25] * 4
