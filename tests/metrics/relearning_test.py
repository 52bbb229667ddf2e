"""Relearn time: epochs are counted from the unlearned network, and one optimizer runs through all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax.base import Data, Model
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import classification_loss
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.metrics import accuracies
from scissorhands_jax.metrics.relearning import recovery, relearn_time
from scissorhands_jax.training.loop import run
from tests import tiny

KEY = jax.random.key(3)
FORGET = tiny.examples(8, 1)
METHOD = tiny.method("finetune", augment=False)


def relearn(target, max_epochs, method=METHOD):
    return relearn_time(tiny.model(), method, KEY, *tiny.start(), FORGET, target=target, max_epochs=max_epochs)


def test_what_was_never_lost_is_back_after_no_epoch():
    result = relearn(0.0, 3)
    assert result.epochs == 0
    assert len(result.curve) == 1


def test_the_cap_is_kept_and_said():
    result = relearn(101.0, 2)
    assert result.epochs is None
    assert len(result.curve) == 3


def test_the_count_is_the_first_epoch_that_reaches_the_target():
    curve = relearn(101.0, 6).curve
    target = max(curve)
    assert target > curve[0], "the network must learn something for this test"
    result = relearn(target, 6)
    assert result.epochs == curve.index(target)
    assert result.curve == curve[: result.epochs + 1]


def test_momentum_goes_on_from_epoch_to_epoch():
    """Two epochs here are two epochs of one run, given the same order of examples."""
    whole = {"image": FORGET["image"], "label": FORGET["label"]}
    settings = FinetuneSettings(epochs=1, batch_size=8, learning_rate=0.05, momentum=0.9)
    method = settings.build(tiny.model(), tiny.loss(), tiny.CLASSES)
    one_batch = method._replace(batches=lambda key, data, epoch: [next(iter(method.batches(KEY, data, 0)))])
    expected = run(one_batch, KEY, *tiny.start(), Data(None, whole), num_epochs=2)
    seen = []
    spy = one_batch._replace(
        begin_epoch=lambda carry, data: (seen.append(jax.tree.map(jnp.copy, carry.params)), carry)[1]
    )
    relearn(101.0, 3, spy)
    for got, wanted in zip(jax.tree.leaves(seen[2]), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_every_epoch_has_an_order_of_its_own():
    orders = []

    def noted(key, data, epoch):
        batches = list(METHOD.batches(key, data, epoch))
        orders.append(np.concatenate([batch.retain for batch in batches]).tolist())
        return batches

    relearn(101.0, 3, METHOD._replace(batches=noted))
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(8)) for order in orders)


def test_accuracy_is_that_of_the_trained_statistics():
    def apply(params, steps, x, *, train, key=None):
        return params * jax.nn.one_hot(jnp.broadcast_to(steps, len(x)), tiny.CLASSES), steps + 1 if train else steps

    model = Model(None, apply)
    method = FinetuneSettings(epochs=1, batch_size=8, learning_rate=0.0).build(
        model, classification_loss(model), tiny.CLASSES
    )
    ones = FORGET | {"label": np.ones(8, np.int32)}
    start = jnp.ones(()), jnp.zeros((), jnp.int32)
    assert relearn_time(model, method, KEY, *start, ones, target=50.0, max_epochs=2) == (1, [0.0, 100.0])


def test_a_cap_below_one_is_refused():
    with pytest.raises(InputError, match="at least 1 epoch, got 0"):
        relearn(50.0, 0)


class TestRecovery:
    DATA = Data(FORGET, tiny.examples(12, 2))

    def recover(self, num_epochs, data=DATA):
        return recovery(tiny.model(), METHOD, KEY, *tiny.start(), data, num_epochs=num_epochs)

    def test_it_is_trained_on_the_retain_set_alone(self):
        curve = self.recover(3)
        assert len(curve) == 4
        logits = accuracies.predict(tiny.model(), *tiny.start(), FORGET["image"])
        assert curve[0] == accuracies.accuracy(logits, FORGET["label"])
        result = run(METHOD, jax.random.fold_in(KEY, 1), *tiny.start(), Data(None, self.DATA.retain), num_epochs=1)
        logits = accuracies.predict(tiny.model(), result.params, result.model_state, FORGET["image"])
        assert curve[1] == accuracies.accuracy(logits, FORGET["label"])

    def test_no_epochs_are_refused(self):
        with pytest.raises(InputError, match="at least 1 epoch, got 0"):
            self.recover(0)
