"""SFR-on: runs of it in float64 by hand, its weights and mask entry by entry, its batches, and what moves the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Model, lift
from scissorhands_jax.errors import InputError
from scissorhands_jax.losses import classification_loss
from scissorhands_jax.methods import sfron
from scissorhands_jax.methods.sfron import SfronSettings, fisher_mask, weighted_gradient
from scissorhands_jax.optimizers import sgd
from tests.comparison import same_bits
from tests.methods import by_hand
from tests.methods.example import DATA, KEY, LOSS, MODEL, PLAIN_SGD, original, plain_loss
from tests.methods.students import STATELESS

PLAIN = lift(plain_loss)


def built(optimizer=PLAIN_SGD, **options):
    return sfron(STATELESS, PLAIN, optimizer, **{"num_epochs": 2, "batch_size": 4, "forget_every": 2} | options)


def exact_mask(threshold):
    """Which weights have a Fisher information, from single examples in float64, that is larger for the forget set."""
    weights = by_hand.read(original()[0])

    def fisher(part):
        rows = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], part) for i in range(len(part["label"]))]
        squares = [np.square(by_hand.flat(by_hand.gradient(weights, row))) for row in rows]
        return np.mean(squares, axis=0)

    forget, retain = map(fisher, jax.device_get(DATA))
    return (forget >= threshold * retain).astype(float)


def run_by_hand(batches, *, masked, beta, power, max_norm, weight, rate):
    """The weights after all steps, and the norms of the forget gradients before they are clipped."""
    weights, optimizer, norms = by_hand.read(original()[0]), by_hand.Sgd(0.9, 0.1), []
    shapes = [leaf.shape for leaf in weights]

    def masked_gradient(gradient):
        parts = np.split(masked * by_hand.flat(gradient), np.cumsum([np.prod(shape) for shape in shapes])[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    for step, batch in enumerate(batches):
        old = weights
        if batch.forget is not None:
            shares = by_hand.cross_entropies(weights, batch.forget) ** -power
            factor = -weight * (1 + np.cos(np.pi * step / len(batches))) / 2
            gradient = masked_gradient(by_hand.gradient(weights, batch.forget, factor * shares / shares.sum()))
            norms.append(np.linalg.norm(by_hand.flat(gradient)))
            gradient = [min(1, max_norm / norms[-1]) * leaf for leaf in gradient]
            weights = optimizer.update(weights, gradient, rate(step))
        weights = optimizer.update(weights, by_hand.gradient(weights, batch.retain), rate(step))
        weights = [(1 - beta) * before + beta * after for before, after in zip(old, weights, strict=True)]
    return weights, norms


@pytest.mark.parametrize(
    ("options", "clips"),
    [
        # Batches of one example give the exact Fisher information, and weights that cancel.
        ({"threshold": 1.0, "forget_batch_size": 1, "forget_weight": 2.0}, False),
        ({"threshold": 1.5, "forget_batch_size": 1, "slow_share": 0.7}, True),
        ({"threshold": None, "forget_power": 0.5, "forget_weight": 2.0, "slow_share": 0.4}, False),
        ({"threshold": None, "forget_power": 1.0, "max_norm": 0.5}, True),
    ],
)
def test_runs_are_those_of_float64_by_hand(options, clips):
    def rate(step):
        return 0.1 * (1 - step / 16)

    chosen = {"max_norm": 7.0, "forget_power": 0.5, "forget_weight": 25.0, "slow_share": 1.0} | options
    method = built(optimizer=sgd(rate, momentum=0.9, weight_decay=0.1), **chosen)
    carry, step, batches, norms = method.init(KEY, original()[0], (), DATA), jax.jit(method.step), [], []
    for epoch in range(2):
        for positions in method.batches(KEY, DATA, epoch):
            batches.append(data_lib.gather(DATA, positions))
            carry, metrics = step(carry, batches[-1])
            if batches[-1].forget is not None:
                norms.append(float(metrics["forget_grad_norm"]))
    masked = 1.0 if options["threshold"] is None else exact_mask(options["threshold"])
    assert np.mean(masked) == 1 or 0.2 < np.mean(masked) < 0.8
    weights, expected_norms = run_by_hand(
        batches,
        masked=masked,
        beta=chosen["slow_share"],
        power=chosen["forget_power"],
        max_norm=chosen["max_norm"],
        weight=chosen["forget_weight"],
        rate=rate,
    )
    # Two epochs of three steps; of six where forget batches of one example need that long to show all six.
    assert int(carry.step) == len(batches) == (12 if "forget_batch_size" in options else 6)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-3)
    assert len(norms) == len(batches) // 2
    assert (max(norms) > chosen["max_norm"]) == clips
    np.testing.assert_allclose(by_hand.flat(carry.params), by_hand.flat(weights), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_forget_examples_are_weighted_by_a_power_of_their_cross_entropy(power):
    params, examples = original()[0], DATA.forget
    found, _, loss = weighted_gradient(STATELESS, PLAIN, params, (), examples, None, power=power)
    weights = by_hand.read(params)
    values = by_hand.cross_entropies(weights, examples)
    expected = by_hand.gradient(weights, examples, values**-power / np.sum(values**-power))
    np.testing.assert_allclose(by_hand.flat(found), by_hand.flat(expected), rtol=1e-4, atol=1e-6)
    assert float(loss) == pytest.approx(values.mean(), rel=1e-5)


def test_an_example_that_is_known_perfectly_does_not_silence_the_others():
    # A logit 200 above the other has a cross-entropy of 0; its weight is that of the smallest number after 1.
    model = Model(None, lambda params, state, x, *, train, key=None: (x * params[None], state))
    examples = {"image": jnp.array([[200.0, 0.0], [1.0, 0.0]]), "label": jnp.array([0, 0])}
    gradient, _, loss = weighted_gradient(model, lift(lambda p, b: 0.0), jnp.ones(2), (), examples, None, power=0.5)
    value = np.log1p(np.exp(-1.0))
    shares = np.array([np.finfo(np.float32).eps, value]) ** -0.5
    expected = shares[1] / shares.sum() * (1 / (1 + np.exp(-1.0)) - 1)
    np.testing.assert_allclose(gradient, [expected, 0], rtol=1e-4)
    assert abs(expected) > 1e-4
    assert float(loss) == pytest.approx(value / 2)


def test_the_mask_entry_by_entry():
    forget, retain = jnp.array([1.0, 2.0, 3.0, 0.0, 0.0]), jnp.array([1.0, 1.0, 1.0, 0.0, 1.0])
    assert fisher_mask({"w": forget}, {"w": retain}, 2.0)["w"].tolist() == [False, True, True, True, False]
    assert fisher_mask({"w": forget}, {"w": retain}, 1.0)["w"].tolist() == [True, True, True, True, False]


def test_the_mask_marks_what_matters_to_the_forget_set_alone():
    forget, retain = (
        {"image": jnp.eye(4)[:2] * scale, "label": jnp.array([0, 1])} for scale in (jnp.float32(1), jnp.float32(0))
    )
    method = built(threshold=1.0, forget_every=1, batch_size=2)
    carry = method.init(KEY, original()[0], (), Data(forget, retain))
    # Retained images are black, so they say nothing about the convolution: all of it is the forget set's.
    assert np.asarray(carry.aux.mask[0]["hidden"].kernel).all()
    other = method.init(KEY, original()[0], (), Data(retain, forget))
    assert not np.asarray(other.aux.mask[0]["hidden"].kernel)[:1].any()


def batches_of(method, epochs, data=DATA):
    return [batch for epoch in range(epochs) for batch in method.batches(KEY, data, epoch)]


@pytest.mark.parametrize("every", [1, 2, 5])
def test_every_nth_step_of_the_run_sees_the_forget_set_which_is_passed_over_and_over(every):
    method = sfron(MODEL, LOSS, PLAIN_SGD, num_epochs=9, batch_size=4, forget_batch_size=2, forget_every=every)
    batches = batches_of(method, 9)
    assert [batch.forget is not None for batch in batches] == [number % every == 0 for number in range(27)]
    seen = [batch.forget for batch in batches if batch.forget is not None]
    for turn in range(len(seen) // 3):  # Three batches of two are a pass over six examples.
        assert sorted(np.concatenate(seen[3 * turn : 3 * turn + 3]).tolist()) == list(range(6))
    assert len({tuple(np.concatenate(seen[i : i + 3])) for i in range(0, len(seen) - 2, 3)}) > 1 or every == 5
    for epoch in range(9):
        assert len(set(np.concatenate([batch.retain for batch in batches[3 * epoch : 3 * epoch + 3]]))) == 10


@pytest.mark.parametrize(("mode", "passes"), [("paper", 1), ("authors", 2)])
def test_forget_batches_leave_nothing_in_the_state_unless_as_published(mode, passes):
    method = sfron(MODEL, LOSS, PLAIN_SGD, num_epochs=1, batch_size=4, mode=mode)
    carry = method.init(KEY, *original(), DATA)
    assert same_bits(carry.model_state, original()[1])
    first, second, *_ = [data_lib.gather(DATA, batch) for batch in method.batches(KEY, DATA, 0)]
    assert first.forget is not None
    assert second.forget is None
    after, _ = method.step(carry, first)
    assert int(after.model_state["count"]) == passes
    retain, forget = (np.asarray(part["image"]).mean(axis=0) for part in (first.retain, first.forget))
    expected = 0.1 * retain if mode == "paper" else 0.09 * forget + 0.1 * retain
    np.testing.assert_allclose(after.model_state["mean"], expected, atol=0.03)  # noise apart
    assert int(method.step(after, second)[0].model_state["count"]) == passes + 1


def test_without_averaging_a_step_keeps_what_it_did_and_the_forget_weight_ends_at_zero():
    method = built(forget_every=1, slow_share=1.0, threshold=None)
    carry = method.init(KEY, original()[0], (), DATA)
    batch = data_lib.gather(DATA, next(iter(method.batches(KEY, DATA, 0))))
    for step, expected in ((0, 25.0), (3, 12.5), (6, 0.0), (60, 0.0)):  # 6 steps in all
        _, metrics = method.step(carry._replace(step=jnp.int32(step)), batch)
        shares = by_hand.cross_entropies(by_hand.read(carry.params), batch.forget) ** -0.5
        gradient = by_hand.gradient(by_hand.read(carry.params), batch.forget, shares / shares.sum())
        norm = expected * np.linalg.norm(by_hand.flat(gradient))
        assert float(metrics["forget_grad_norm"]) == pytest.approx(norm, rel=1e-4, abs=1e-4)


def test_both_updates_of_a_step_have_the_rate_of_the_step():
    settings = SfronSettings(epochs=2, batch_size=4, forget_every=1, schedule="linear", momentum=0.0)
    carry = (method := settings.build(MODEL, LOSS, 3)).init(KEY, *original(), DATA)
    for number, positions in enumerate(method.batches(KEY, DATA, 0), start=1):
        carry, _ = method.step(carry, data_lib.gather(DATA, positions))
        counts = [int(count) for _, count in optax.tree_utils.tree_get_all_with_path(carry.opt_state, "count")]
        assert counts == [number] * len(counts)
        assert len(counts) == 2

    # Schedules that optax injects, and those that it scales by, are one.
    def rate(step):
        return 0.1 / (1 + step)

    ends = []
    for optimizer in (optax.inject_hyperparams(optax.sgd)(learning_rate=rate), optax.sgd(rate)):
        carry = (method := built(optimizer=optimizer, forget_every=1)).init(KEY, original()[0], (), DATA)
        for positions in method.batches(KEY, DATA, 0):
            carry, _ = method.step(carry, data_lib.gather(DATA, positions))
        ends.append(carry.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *ends)
    # The bias correction of Adam needs to know of both.
    method = built(optimizer=optax.adam(0.01), forget_every=1)
    carry = method.init(KEY, original()[0], (), DATA)
    carry, _ = method.step(carry, data_lib.gather(DATA, next(iter(method.batches(KEY, DATA, 0)))))
    assert int(optax.tree_utils.tree_get(carry.opt_state, "count")) == 2


def test_images_are_augmented_as_the_loss_says():
    shown = []

    def apply(params, state, x, *, train, key=None):
        jax.debug.callback(lambda images: shown.append(np.asarray(images)), x)
        return STATELESS.apply(params, state, x, train=train, key=key)

    model = Model(None, apply)
    loss_fn = classification_loss(model, augment=lambda key, images: images + 100)
    method = sfron(model, loss_fn, PLAIN_SGD, num_epochs=1, batch_size=4, threshold=None)
    carry = method.init(KEY, original()[0], (), DATA)
    method.step(carry, data_lib.gather(DATA, next(iter(method.batches(KEY, DATA, 0)))))
    jax.effects_barrier()
    assert len(shown) == 2
    assert all(images.min() > 50 for images in shown)


def test_the_defaults_are_the_published_settings():
    found = SfronSettings()
    assert (found.batch_size, found.learning_rate, found.momentum, found.weight_decay) == (128, 1e-2, 0.9, 5e-4)
    assert (found.forget_weight, found.forget_every, found.forget_power, found.max_norm) == (25, 5, 0.5, 7)
    assert (found.threshold, found.slow_share, found.schedule) == (1, 1, "cosine")
    # 1,500 steps, of batches that the 45,000 retain examples fill 352 times.
    assert found.epochs == round(1500 / 352)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forget_weight": -1.0}, "forget_weight must not be negative, got -1.0"),
        ({"forget_power": -0.5}, "forget_power must not be negative, got -0.5"),
        ({"threshold": float("nan")}, "threshold must not be negative, got nan"),
        ({"forget_every": 0}, "forget_every must be at least 1, got 0"),
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ({"max_norm": 0.0}, "max_norm must be above 0, got 0.0"),
        ({"slow_share": 0.0}, "slow_share must be above 0 and at most 1, got 0.0"),
        ({"slow_share": 1.1}, "slow_share must be above 0 and at most 1, got 1.1"),
        ({"mode": "code"}, "mode is 'code'; choose one of paper, authors"),
        ({"forget_batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        built(**options)


def test_a_network_that_is_not_finite_is_refused_by_name():
    params = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), original()[0])
    with pytest.raises(InputError, match=r"saliency of .* is not finite"):
        built().init(KEY, params, (), DATA)
