"""Experiments: what is loaded for them, and their settings as JSON."""

import dataclasses
import json

import pytest

from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.experiment import load_splits
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
