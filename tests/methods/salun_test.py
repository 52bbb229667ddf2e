"""SalUn: the order of its batches, whose labels and gradients each step has, and what the mask leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import lift
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import salun
from scissorhands_jax.methods.salun import any_labels, wrong_labels
from scissorhands_jax.optimizers import sgd
from tests.methods.example import DATA, GRADIENT, KEY, original, plain_loss

RATE, MOMENTUM, DECAY = 0.05, 0.9, 0.1


def sequential(**settings):
    optimizer = sgd(RATE, momentum=MOMENTUM, weight_decay=DECAY)
    return salun(lift(plain_loss), optimizer, num_classes=3, batch_size=4, order="sequential", **settings)


def leaves(tree):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(("mode", "sizes"), [("paper", [4, 4, 4, 4, 4]), ("authors", [4, 2, 4, 4, 2])])
def test_all_forget_batches_come_before_all_retain_batches(mode, sizes):
    """6 and 10 examples in batches of 4: in paper mode the last batches are filled up."""
    batches = list(sequential(mode=mode).batches(KEY, DATA, 0))
    assert [len(b.retain if b.forget is None else b.forget) for b in batches] == sizes
    assert [b.forget is None for b in batches] == [False] * 2 + [True] * 3
    assert all(b.retain is None for b in batches[:2])
    for part, own in (("forget", batches[:2]), ("retain", batches[2:])):
        seen = np.concatenate([getattr(batch, part) for batch in own])
        assert set(seen.tolist()) == set(range(data_lib.size(getattr(DATA, part))))


@pytest.mark.parametrize("mode", ["paper", "authors"])
def test_an_epoch_equals_its_recursion_in_numpy(mode):
    """Forget steps follow the loss with other labels, retain steps that with their own; the mask has its own rule."""
    method = sequential(mode=mode, relabel=lambda key, labels: (labels + 1) % 3)
    carry = method.init(KEY, original()[0], (), DATA)
    mask = [np.asarray(leaf) for leaf in jax.tree.leaves(carry.aux)]
    weights, structure = leaves(original()[0]), jax.tree.structure(original()[0])
    start, momentum = weights, [np.zeros_like(w) for w in weights]
    names = []
    for positions in method.batches(KEY, DATA, 0):
        batch = data_lib.gather(DATA, positions)
        carry, metrics = jax.jit(method.step)(carry, batch)
        names += [name for name in metrics if name.startswith("loss_")]
        examples = batch.retain
        if batch.forget is not None:
            examples = {**batch.forget, "label": (batch.forget["label"] + 1) % 3}
        params = jax.tree.unflatten(structure, [jnp.asarray(w, jnp.float32) for w in weights])
        gradient = leaves(GRADIENT(params, examples))
        if mode == "authors":
            gradient = [np.where(m, g, 0) for m, g in zip(mask, gradient, strict=True)]
        momentum = [MOMENTUM * b + g + DECAY * w for b, g, w in zip(momentum, gradient, weights, strict=True)]
        weights = [w - RATE * b for w, b in zip(weights, momentum, strict=True)]
        if mode == "paper":
            weights = [np.where(m, w, old) for m, w, old in zip(mask, weights, start, strict=True)]
    assert names == ["loss_relabelled"] * 2 + ["loss_retain"] * 3
    for ours, expected in zip(leaves(carry.params), weights, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_labels_of_the_published_code_may_be_the_true_ones_and_ours_never_are():
    shares = {}
    for mode in ("paper", "authors"):
        drawn = []

        def loss_fn(params, batch, drawn=drawn):
            jax.debug.callback(drawn.append, batch["label"])
            return plain_loss(params, batch)

        method = salun(lift(loss_fn), sgd(0.1), num_classes=3, mode=mode, order="sequential", fraction=None)
        batch = data_lib.gather(DATA, next(iter(method.batches(KEY, DATA, 0))))
        carry, step = method.init(KEY, original()[0], (), DATA), jax.jit(method.step)
        for _ in range(60):
            carry, _ = step(carry, batch)
        jax.effects_barrier()
        shares[mode] = float(np.mean(np.stack(drawn) == np.asarray(batch.forget["label"])))
        assert len({tuple(labels.tolist()) for labels in drawn}) > 20  # anew in every step
    assert shares["paper"] == 0
    assert shares["authors"] == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 360))


def test_an_unknown_order_is_refused():
    with pytest.raises(InputError, match="order is 'random'; choose one of mixed, sequential"):
        salun(lift(plain_loss), sgd(0.1), num_classes=3, order="random")


class TestLabels:
    @pytest.mark.parametrize(
        ("dtype", "classes"),
        [("int8", 100), ("uint8", 200), ("int32", 10), ("uint8", 256), ("uint8", 1000), ("int8", 200)],
    )
    def test_a_wrong_label_is_any_but_the_true_one(self, dtype, classes):
        true = min(classes - 20, int(jnp.iinfo(dtype).max)) if classes > 20 else 3
        labels = jnp.full(20_000, true, dtype)
        drawn = np.asarray(wrong_labels(classes)(KEY, labels), np.int64)
        assert not np.any(drawn == int(labels[0]))
        counts = np.bincount(drawn, minlength=classes)
        assert len(counts) == classes
        others = np.delete(counts, int(labels[0]))
        expected = len(labels) / (classes - 1)
        assert abs(others - expected).max() < 6 * np.sqrt(expected)
        assert any_labels(classes)(KEY, labels).dtype == jnp.int32
        assert len(np.unique(any_labels(classes)(KEY, labels))) == classes

    @pytest.mark.parametrize("draw", [wrong_labels, any_labels])
    def test_of_less_than_two_classes_nothing_is_drawn(self, draw):
        for classes in (0, 1):
            with pytest.raises(InputError, match="at least 2 classes"):
                draw(classes)
