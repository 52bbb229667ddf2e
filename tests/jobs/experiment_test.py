"""Experiments: what is loaded for them, and their settings as JSON."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest

from scissorhands_jax import losses
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.config import RunConfig, override
from scissorhands_jax.jobs.experiment import LoadedExperiment, load_splits
from scissorhands_jax.jobs.job import prepare_job
from scissorhands_jax.methods import METHODS, describe
from tests.jobs.grid_test import EXPERIMENT


@pytest.mark.parametrize("field", ["train_limit", "test_limit"])
def test_limits_are_checked(field):
    with pytest.raises(InputError, match=rf"{field} must be 1 to \d+, got 0"):
        load_splits(dataclasses.replace(EXPERIMENT, **{field: 0}), None)


def test_images_are_resized(tmp_path):
    splits = load_splits(dataclasses.replace(EXPERIMENT, image_size=(4, 6)), None)
    assert splits.train["image"].shape == (596, 4, 6, 1)
    assert splits.image_shape == (4, 6, 1)


@pytest.mark.parametrize("name", METHODS)
def test_settings_describe_themselves(name):
    document = json.loads(json.dumps(describe(METHODS[name]())))
    assert document["method"] == name
    assert "epochs" in document


def test_an_infinite_setting_is_refused_before_anything_runs():
    scenario = dataclasses.replace(EXPERIMENT.scenarios[0], methods={"sfron": METHODS["sfron"](max_norm=math.inf)})
    with pytest.raises(InputError, match=r"scenarios.0.methods.sfron.max_norm must be a finite number"):
        LoadedExperiment(dataclasses.replace(EXPERIMENT, scenarios=(scenario,)), None)
    config = RunConfig(model="no", dataset="no", forget="class:1", method=METHODS["sfron"](max_norm=math.inf))
    with pytest.raises(InputError, match=r"^method.max_norm must be a finite number"):
        prepare_job(config)


@pytest.mark.parametrize("recipe", ["paper", "fast"])
def test_methods_of_a_table_see_images_that_are_altered_as_in_its_training(recipe):
    """White images stay white where crops come out of mirrored borders, and get black borders where zeros are added."""
    loaded = LoadedExperiment(override(EXPERIMENT, ["augment=true", f"training.recipe={recipe}"]), None)
    augment = losses.augmentation_of(loaded.loss_fn)
    white, half = jnp.ones((64, 8, 8, 1)), jnp.zeros((400, 8, 8, 1)).at[:, :, :4].set(1.0)
    altered = augment(jax.random.key(0), white)
    assert bool((altered == 1).all()) == (recipe == "fast")
    mirrored = float((augment(jax.random.key(1), half)[:, 4, -1, 0] == 1).mean())
    assert 0.2 < mirrored < 0.6, "0 without flips of the fast recipe, 0.1 without those of the paper's"
