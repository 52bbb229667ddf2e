"""MSG: which weights are drawn again, the fine-tuning in float64 by hand, and what moves the network's state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, lift
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import msg
from scissorhands_jax.methods.msg import MsgSettings, smallest_in_each
from scissorhands_jax.optimizers import sgd
from tests.comparison import same_bits
from tests.methods import by_hand
from tests.methods.example import KEY, LOSS, PLAIN_SGD, examples, original, plain_loss

TWINS = jax.tree.map(jnp.asarray, Data(examples(9, 1), examples(9, 2)))  # The subset is all of the retain set.


def difference(data=TWINS):
    """|g| of every weight in float64: the sum over the retain set minus that over the forget set."""
    weights = by_hand.read(original()[0])
    sums = [by_hand.gradient(weights, part, np.ones(len(part["label"]))) for part in data]
    return [np.abs(retain - forget) for forget, retain in zip(*sums, strict=True)]


def begun(data=TWINS, loss_fn=None, start=None, key=KEY, **options):
    method = msg(loss_fn or lift(plain_loss), PLAIN_SGD, **{"batch_size": 4} | options)
    params, state = (original()[0], ()) if start is None else start
    return method.init(key, params, state, data)


def marked(carry):
    return [np.flatnonzero(leaf).tolist() for leaf in jax.tree.leaves(carry.aux)]


def smallest(scores, fraction):
    return sorted(np.argsort(np.ravel(scores))[: round(fraction * np.size(scores))].tolist())


@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_the_smallest_differences_of_each_kernel_are_drawn_and_nothing_else(fraction):
    kernel, _, head = difference()
    # Convolutions alone where there is one; with a pattern also other arrays, each ranked by itself.
    assert marked(begun(fraction=fraction)) == [smallest(kernel, fraction), [], []]
    carry = begun(fraction=fraction, kernels="0/hidden|1")
    assert marked(carry) == [smallest(kernel, fraction), [], smallest(head, fraction)]
    for mask, before, after in zip(*map(jax.tree.leaves, (carry.aux, original()[0], carry.params)), strict=True):
        np.testing.assert_array_equal(np.asarray(before) == np.asarray(after), ~np.asarray(mask))


def test_without_convolutions_all_arrays_with_two_axes_are_kernels():
    params = {"fc": jnp.ones((4, 3)), "bias": jnp.zeros(3)}

    def loss_fn(params, batch):
        return jnp.mean(jnp.square(batch["image"] @ params["fc"] + params["bias"][None]))

    carry = msg(lift(loss_fn), PLAIN_SGD, fraction=0.25).init(KEY, params, (), TWINS)
    assert [int(leaf.sum()) for leaf in jax.tree.leaves(carry.aux)] == [0, 3]


@pytest.mark.parametrize("shape", [(3, 1), (1, 3)])
def test_biases_with_several_axes_are_no_kernels(shape):
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(shape)}

    def loss_fn(params, batch):
        return jnp.mean(jnp.square(batch["image"] @ params["kernel"] + params["bias"].reshape(1, 3)))

    carry = msg(lift(loss_fn), PLAIN_SGD, fraction=0.5).init(KEY, params, (), TWINS)
    assert {name: int(leaf.sum()) for name, leaf in carry.aux.items()} == {"kernel": 6, "bias": 0}


def test_the_retain_examples_are_a_random_subset_of_the_size_of_the_forget_set():
    data = jax.tree.map(jnp.asarray, Data(examples(4, 1), examples(30, 2)))
    seen = []

    def loss_fn(params, batch):
        jax.debug.callback(lambda images: seen.append(np.asarray(images)), batch["image"])
        return plain_loss(params, batch)

    for key in (KEY, jax.random.key(3)):
        begun(data, lift(loss_fn), key=key, batch_size=3)
    jax.effects_barrier()
    assert [len(images) for images in seen] == [3, 1, 3, 1] * 2
    rows = [{tuple(row) for row in np.concatenate(seen[i : i + 2])} for i in range(0, 8, 2)]
    retain, forget = ({tuple(row) for row in np.asarray(part["image"])} for part in (data.retain, data.forget))
    assert rows[1] == rows[3] == forget
    assert [len(rows[i]) for i in (0, 2)] == [4, 4]
    assert rows[0] != rows[2]
    assert rows[0] | rows[2] <= retain


@pytest.mark.parametrize(("name", "shape"), [("kernel", (3, 3, 40, 50)), ("weight", (50, 40, 3, 3))])
def test_the_draws_are_kaiming_normal_over_the_fan_out(name, shape):
    # 3 x 3 x 50 outputs: a deviation of sqrt(2 / 450) = 0.0667, whatever the 40 inputs.
    params = {"conv": {name: jnp.full(shape, 9.0)}}
    carry = msg(lift(lambda p, x: jnp.sum(jnp.mean(x) * p["conv"][name])), PLAIN_SGD, fraction=0.5).init(
        KEY, params, (), Data(jnp.ones((4, 1)), jnp.zeros((4, 1)))
    )
    drawn = np.asarray(carry.params["conv"][name])
    drawn = drawn[drawn != 9]
    assert drawn.size == 9000
    assert abs(drawn.mean()) < 4 * 0.0667 / np.sqrt(drawn.size)
    assert drawn.std() == pytest.approx(np.sqrt(2 / 450), rel=4 / np.sqrt(2 * drawn.size))
    # Normal, not truncated: 0.27 % lie beyond three deviations.
    assert 5 < (abs(drawn) > 0.2).sum() < 55


@pytest.mark.parametrize(("size", "expected"), [(1, 0), (2, 1), (5, 2), (10, 3)])
def test_a_small_leaf_has_a_rounded_number_of_marks(size, expected):
    mask = smallest_in_each({"w": jnp.arange(1.0, size + 1)}, 0.3, {"w": True})
    assert np.asarray(mask["w"]).tolist() == [True] * expected + [False] * (size - expected)


def test_an_empty_kernel_stays_empty():
    params = {"w": jnp.ones((3, 2)), "none": jnp.ones((0, 3)), "bias": jnp.ones((0,))}
    loss = lift(lambda p, x: jnp.mean(x) * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(p)))
    begun = msg(loss, PLAIN_SGD, fraction=0.5).init(KEY, params, (), Data(jnp.ones((4, 1)), jnp.zeros((4, 1)))).params
    assert begun["none"].shape == (0, 3)
    assert int((begun["w"] != 1).sum()) == 3
    with pytest.raises(InputError, match="the selection is another tree"):
        smallest_in_each(params, 0.5, {"w": True})


def test_all_of_a_small_leaf_can_be_marked_and_nothing_where_it_is_not_selected():
    scores = {"w": jnp.arange(3.0), "v": jnp.zeros((2, 2))}
    mask = smallest_in_each(scores, 0.9, {"w": True, "v": False})
    assert np.asarray(mask["w"]).tolist() == [True, True, True]
    assert not np.asarray(mask["v"]).any()


@pytest.mark.parametrize("stacked", [None, "att/.*|dense"])
def test_each_layer_of_a_stack_has_a_kernel_of_its_own_and_none_over_images(stacked):
    scales = jnp.arange(1.0, 4.0)  # The weights of the first of three layers have the smallest gradients.
    params = {"att": {"query": {"kernel": jnp.ones((3, 8, 2, 4))}}, "dense": {"kernel": jnp.ones((3, 8, 10))}}
    if stacked is None:
        params["att"]["query"]["bias"] = jnp.ones((3, 2, 4))
        params["dense"]["bias"] = jnp.ones((3, 10))

    def loss(params, batch):
        sums = [jnp.sum(leaf.reshape(3, -1), axis=1) @ scales for leaf in jax.tree.leaves(params)]
        return jnp.mean(batch) * sum(sums)

    data = Data(jnp.ones((4, 1)), jnp.zeros((4, 1)))
    method = msg(lift(loss), PLAIN_SGD, fraction=0.3, stacked=stacked)
    begun = method.init(KEY, params, (), data).params
    changed = jax.tree.map(lambda new: [int((layer != 1).sum()) for layer in new], begun)
    assert changed["att"]["query"]["kernel"] == [19, 19, 19]
    assert changed["dense"]["kernel"] == [24, 24, 24]
    assert stacked is not None or changed["dense"]["bias"] == [0, 0, 0]


@pytest.mark.parametrize("kept_scale", [0.1, 0.0, 1.0])
def test_the_fine_tuning_is_that_of_float64_by_hand(kept_scale):
    def rate(update):
        return 0.5 * (1 - update / 10)

    method = msg(lift(plain_loss), sgd(rate, momentum=0.9, weight_decay=0.1), batch_size=4, kept_scale=kept_scale)
    carry = method.init(KEY, original()[0], (), TWINS)
    weights = by_hand.read(carry.params)
    drawn = np.asarray(carry.aux[0]["hidden"].kernel).reshape(4, 6)
    optimizer, count, step = by_hand.Sgd(0.9, 0.1), 0, jax.jit(method.step)
    for epoch in range(2):
        for positions in method.batches(KEY, TWINS, epoch):
            batch = data_lib.gather(TWINS, positions)
            carry, _ = step(carry, batch)
            kernel, bias, head = by_hand.gradient(weights, batch.retain)
            weights = optimizer.update(weights, [np.where(drawn, 1, kept_scale) * kernel, bias, head], rate(count))
            count += 1
    assert count == 6
    np.testing.assert_allclose(by_hand.flat(carry.params), by_hand.flat(weights), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mode", "moved"), [("paper", 0), ("authors", 6)])
def test_gradients_are_taken_in_evaluation_mode_unless_as_published(mode, moved):
    carry = begun(loss_fn=LOSS, start=original(), mode=mode)
    # Three passes over batches of each set.
    assert int(carry.model_state["count"]) == moved
    assert same_bits(carry.model_state, original()[1]) == (mode == "paper")


def test_as_published_every_batch_counts_the_same():
    # Without state or noise only the weights of the batches, of 4, 4 and 1 examples, tell both modes apart.
    paper, authors = (begun(mode=mode, kernels="1", fraction=0.5) for mode in ("paper", "authors"))
    assert marked(paper) != marked(authors)
    single = [marked(begun(mode=mode, kernels="1", fraction=0.5, batch_size=9)) for mode in ("paper", "authors")]
    assert single[0] == single[1] == marked(paper)


def test_a_step_moves_the_state_by_its_retain_batch():
    method = msg(LOSS, PLAIN_SGD, batch_size=4)
    carry = method.init(KEY, *original(), TWINS)
    batch = data_lib.gather(TWINS, next(iter(method.batches(KEY, TWINS, 0))))
    assert batch.forget is None
    after, _ = method.step(carry, batch)
    assert int(after.model_state["count"]) == 1


def test_the_defaults_are_the_published_settings():
    found = MsgSettings()
    assert (found.epochs, found.batch_size, found.learning_rate, found.momentum) == (5, 64, 1e-3, 0.9)
    assert (found.weight_decay, found.fraction, found.kept_scale) == (5e-4, 0.3, 0.1)
    # Up and down in straight lines, as theirs, whose five epochs have 1/3, 2/3, 1, 2/3 and 1/3 of the peak.
    schedule = found.rate_schedule([100] * 5)
    shares = np.interp(np.arange(500), schedule.knots, schedule.factors).reshape(5, 100).mean(axis=1)
    assert shares.argmax() == 2
    np.testing.assert_allclose(shares, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3], atol=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.0}, "fraction must lie strictly between 0 and 1, got 1.0"),
        ({"kept_scale": -0.1}, "kept_scale must not be negative, got -0.1"),
        ({"mode": "both"}, "mode is 'both'; choose one of paper, authors"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        msg(LOSS, PLAIN_SGD, **options)


def test_patterns_without_a_kernel_and_gradients_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="kernels = '0/hidden/bias' selects only biases, scales and other"):
        begun(kernels="0/hidden/bias")
    with pytest.raises(InputError, match="matches none of the 3 parameter arrays"):
        begun(kernels="conv")
    params = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), original()[0])
    with pytest.raises(InputError, match=r"saliency of .* is not finite"):
        begun(start=(params, ()))


def test_another_initializer_can_be_given():
    carry = begun(initializer=lambda key, shape, dtype: jnp.full(shape, 7, dtype))
    kernel, mask = carry.params[0]["hidden"].kernel, carry.aux[0]["hidden"].kernel
    assert np.asarray(kernel)[np.asarray(mask)].tolist() == [7] * 7
