"""Accuracies and forward passes against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax.base import Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import accuracies, attacks


def test_accuracy_counts_the_largest_logit_and_the_first_of_equals():
    logits = np.array([[0.0, 1.0], [0.0, 1.0], [2.0, 2.0], [2.0, 2.0]])
    assert accuracies.correct(logits, np.array([1, 0, 0, 1])) == 2
    assert accuracies.accuracy(logits, np.array([1, 0, 0, 1])) == 50.0
    assert accuracies.accuracy(logits[:1], np.array([1], np.uint8)) == 100.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "N > 0"),
        (np.zeros((2, 3)), np.zeros(3, int), "shape"),
        (np.zeros((2, 3)), np.zeros(2), "integers"),
        (np.zeros((2, 3)), np.array([0, 3]), "0..2"),
        (np.zeros((2, 3)), np.array([-1, 0]), "0..2"),
        (np.array([[0.0, np.nan], [0.0, 1.0]]), np.array([0, 1]), "1 of 2 rows"),
    ],
)
@pytest.mark.parametrize("metric", [accuracies.correct, accuracies.accuracy, attacks.cross_entropy_per_example])
def test_unusable_logits_and_labels_are_refused(metric, logits, labels, message):
    with pytest.raises(InputError, match=message):
        metric(logits, labels)


def make_linear(traces=None):
    """`x @ w + b`; appends to `traces` whenever it is traced."""

    def apply(params, model_state, x, *, train, key=None):
        assert not train
        assert key is None
        if traces is not None:
            traces.append(x.shape)
        return x.reshape(x.shape[0], -1) @ params["w"] + model_state["b"][None], {"b": model_state["b"] + 1}

    return Model(init=lambda key: ({"w": jnp.ones((4, 3))}, {"b": jnp.zeros(3)}), apply=apply)


@pytest.mark.parametrize("count", [1, 7, 8, 20])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_predict_is_the_plain_forward_pass(count, array):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 2, 2)).astype(np.float32)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    logits = accuracies.predict(make_linear(), params, {"b": jnp.arange(3.0)}, array(images), batch_size=8)
    assert isinstance(logits, np.ndarray)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, images.reshape(count, 4) @ np.asarray(params["w"]) + np.arange(3), atol=1e-5)


def test_predict_hands_images_over_as_they_are_and_returns_float32():
    seen = []

    def apply(params, model_state, x, *, train, key=None):
        seen.append(x.dtype)
        return (x[:, :2] * params).astype(jnp.bfloat16), model_state

    images = np.array([[255, 3, 9]], np.uint8)
    logits = accuracies.predict(Model(init=lambda key: (1, ()), apply=apply), 1.0, (), images, batch_size=4)
    assert seen == [np.uint8]
    assert logits.dtype == np.float32
    assert logits.tolist() == [[255.0, 3.0]]


def test_predict_compiles_once_per_model():
    traces = []
    model = make_linear(traces)
    params, model_state = model.init(jax.random.key(0))
    for count, scale in [(20, 1.0), (3, 2.0), (16, 3.0)]:
        scaled = jax.tree.map(lambda leaf, scale=scale: leaf * scale, params)
        accuracies.predict(model, scaled, model_state, np.zeros((count, 4), np.float32), batch_size=8)
    accuracies.predict(model._replace(init=None), params, model_state, np.zeros((5, 4), np.float32), batch_size=8)
    assert traces == [(8, 4)]


def test_predict_refuses_nothing_to_do():
    model = make_linear()
    with pytest.raises(InputError, match="at least one image"):
        accuracies.predict(model, *model.init(None), np.zeros((0, 4), np.float32))
    for size, message in ((0, "at least 1, got 0"), (2.5, "a whole number, got 2.5")):
        with pytest.raises(InputError, match=f"batch_size must be {message}"):
            accuracies.predict(model, *model.init(None), np.zeros((1, 4), np.float32), batch_size=size)
