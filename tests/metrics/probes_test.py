"""Probes: features are what the head reads, and a linear map finds in them what it can."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scissorhands_jax.base import Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import probes
from scissorhands_jax.models import from_linen
from tests import tiny


def test_the_head_makes_the_logits_of_the_features():
    params, model_state = tiny.start()
    images = tiny.examples(7)["image"]
    read = probes.features(tiny.model(), params, model_state, images, batch_size=3)
    assert read.shape == (7, 48)
    logits, _ = tiny.model().apply(params, model_state, jnp.asarray(images), train=False)
    head = params["fc"]
    np.testing.assert_allclose(read @ head["kernel"] + np.asarray(head["bias"])[None], logits, rtol=1e-4, atol=1e-5)


def test_a_network_without_a_dense_layer_has_no_features():
    model = Model(lambda key: ({}, {}), lambda params, model_state, x, *, train, key=None: (x, model_state))
    with pytest.raises(InputError, match="no linen Dense layer"):
        probes.features(model, {}, {}, np.zeros((2, 3), np.float32))


def test_a_probe_finds_what_is_linear_and_nothing_else():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(600, 5))
    linear = (features[:, 0] > 0).astype(int)
    crossed = (features[:, 0] * features[:, 1] > 0).astype(int)
    known, asked = features[:400], features[400:]
    found, swapped = probes.linear_probe(known, linear[:400], (asked, linear[400:]), (asked, 1 - linear[400:]))
    assert found > 93
    assert swapped == pytest.approx(100 - found)
    (found,) = probes.linear_probe(known, crossed[:400], (asked, crossed[400:]))
    assert 30 < found < 70


@pytest.mark.parametrize(
    ("known", "labels", "message"),
    [(np.zeros((3, 2)), np.zeros(3, int), "two classes"), (np.full((2, 2), np.nan), np.arange(2), "diverged")],
)
def test_a_probe_without_a_question_is_refused(known, labels, message):
    with pytest.raises(InputError, match=message):
        probes.linear_probe(known, labels, (np.zeros((1, 2)), np.zeros(1, int)))


def test_it_is_known_before_whether_a_network_has_features():
    without = Model(lambda key: ({}, {}), lambda params, model_state, x, *, train, key=None: (x, model_state))
    image = tiny.examples(4)["image"]
    assert probes.has_features(tiny.model(), *tiny.start(), image)
    assert not probes.has_features(without, {}, {}, image)
    assert not probes.has_features(tiny.model(), *tiny.start(), {"a": image, "b": image})


def test_a_network_that_was_given_alive_has_features():
    module, image = nn.Dense(3), np.ones((2, 4), np.float32)
    trained = from_linen(module, module.init(jax.random.key(0), image))
    assert probes.has_features(trained.model, trained.params, trained.model_state, image)
    assert probes.features(trained.model, trained.params, trained.model_state, image).tolist() == image.tolist()


@pytest.mark.parametrize(("size", "message"), [(0, "at least 1, got 0"), (-1, "at least"), (2.5, "a whole number")])
def test_sizes_of_a_batch_that_cannot_be_are_refused(size, message):
    with pytest.raises(InputError, match=f"batch_size must be {message}"):
        probes.features(tiny.model(), *tiny.start(), tiny.examples(5)["image"], batch_size=size)
