"""Batches that a classification loss cannot use are refused in one sentence; labels that no class has make it NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import losses
from scissorhands_jax.errors import InputError
from tests import tiny

BATCH = {"image": jnp.zeros((4, *tiny.SHAPE)), "label": jnp.arange(4) % 3}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"x": BATCH["image"], "y": BATCH["label"]},
            "has the keys x, y; give a dict of 'label' and what the network takes",
        ),
        ((BATCH["image"], BATCH["label"]), "has a tuple; give a dict"),
        ({"image": BATCH["image"]}, "a batch has no 'label'; the loss of a classifier needs whole numbers"),
        (BATCH | {"label": jax.nn.one_hot(BATCH["label"], 3)}, r"shape \(4, 3\); give shape \(N,\), as with .argmax"),
        (BATCH | {"label": BATCH["label"][:, None]}, r"shape \(4, 1\); give shape \(N,\), as with .ravel"),
        (BATCH | {"label": BATCH["label"] * 1.0}, "are float32; give integers"),
    ],
)
def test_batches_that_cannot_be_used_are_refused(batch, message):
    with pytest.raises(InputError, match=message):
        tiny.loss()(*tiny.start(), batch, train=True, key=None)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("label", [-1, 3, 100])
def test_a_label_of_no_class_makes_the_loss_nan(label, smoothing):
    logits, labels = jnp.ones((2, 3)), jnp.array([0, 2])
    assert np.isfinite(losses.cross_entropy(logits, labels, label_smoothing=smoothing))
    assert np.isnan(losses.cross_entropy(logits, labels.at[1].set(label), label_smoothing=smoothing))


def test_smoothing_and_temperature_have_their_ranges():
    logits = jnp.ones((2, 3))
    for share in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="label_smoothing must be at least 0 and below 1"):
            losses.cross_entropy(logits, jnp.array([0, 1]), label_smoothing=share)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="temperature must be above 0 and finite"):
            losses.kl_divergence(logits, logits, temperature=temperature)


def test_shapes_that_would_broadcast_are_refused():
    logits, labels = jnp.ones((3, 3)), jnp.array([0, 2, 1])
    for smoothing in (0.0, 0.1):
        for wrong in (labels[:, None], labels[:1], jax.nn.one_hot(labels, 3), labels.astype(jnp.float32)):
            with pytest.raises(
                InputError, match=r"labels must be integers of shape \(3,\), one for each row of logits"
            ):
                losses.cross_entropy(logits, wrong, label_smoothing=smoothing)
        with pytest.raises(InputError, match=r"labels must be integers of shape \(1,\)"):
            losses.cross_entropy(logits[:1], labels, label_smoothing=smoothing)
    for teacher in (logits[0], logits[:1], logits[:, :1]):
        with pytest.raises(InputError, match="teacher and student differ in shape"):
            losses.kl_divergence(teacher, logits)


@pytest.mark.parametrize(("dtype", "classes"), [("uint8", 256), ("int8", 128), ("uint8", 300), ("int16", 40_000)])
def test_labels_of_few_bits_count_as_any_others(dtype, classes):
    labels = np.array([3, np.iinfo(dtype).max], dtype)
    logits = jax.random.normal(jax.random.key(0), (2, classes))
    for given in (labels, jnp.asarray(labels)):
        for smoothing in (0.0, 0.1):
            expected = losses.cross_entropies(logits, labels.astype(np.int32), label_smoothing=smoothing)
            np.testing.assert_array_equal(losses.cross_entropies(logits, given, label_smoothing=smoothing), expected)
            assert np.isfinite(expected).all()
    if np.iinfo(dtype).min < 0:
        assert np.isnan(losses.cross_entropies(logits, jnp.asarray([-1, 0], dtype))[0])
