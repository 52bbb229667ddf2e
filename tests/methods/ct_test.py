"""CT: the transposition against its definition and a symmetry of convolutions, and the fine-tuning by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from scissorhands_jax import data as data_lib
from scissorhands_jax.base import lift
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import ct
from scissorhands_jax.methods.ct import CtSettings, transpose_kernels
from scissorhands_jax.optimizers import sgd
from tests import tiny
from tests.comparison import same_bits
from tests.methods import by_hand
from tests.methods.example import DATA, KEY, LOSS, PLAIN_SGD, original, plain_loss


def network(*shape):
    """A kernel among arrays that are none."""
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return {"conv": {"kernel": jnp.asarray(kernel), "bias": jnp.arange(3.0)}, "fc": jnp.ones((2, 2))}


def test_height_and_width_of_every_kernel_change_places_and_nothing_else_changes():
    before = network(3, 3, 2, 4)
    after = transpose_kernels(before)
    for i, j in np.ndindex(3, 3):
        np.testing.assert_array_equal(after["conv"]["kernel"][i, j], before["conv"]["kernel"][j, i])
    assert not same_bits(after, before)
    assert after["fc"] is before["fc"]
    assert after["conv"]["bias"] is before["conv"]["bias"]
    assert same_bits(transpose_kernels(after), before)


def test_a_transposed_network_sees_in_transposed_images_what_the_original_sees_in_images():
    first, second = (network(3, 3, *channels)["conv"] for channels in ((2, 4), (4, 5)))
    images = jnp.asarray(tiny.examples(5)["image"])

    def features(params, images):
        for layer in params:
            images = jax.lax.conv_general_dilated(
                images, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            images = jnp.tanh(images)
        return images

    before = features([first, second], images)
    after = features(transpose_kernels([first, second]), images.swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert abs(features(transpose_kernels([first, second]), images) - before).max() > 0.5


def test_kernels_in_boxes_of_flax_are_known_by_their_name():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 3, 3)), jnp.float32)
    for name in ("weight", "kernel"):
        boxed = transpose_kernels({"conv": {name: nn.Partitioned(kernel, ())}})
        plain = transpose_kernels({"conv": {name: kernel}})
        assert same_bits(jax.tree.leaves(boxed), jax.tree.leaves(plain))


def test_stacked_kernels_are_transposed_and_other_stacks_are_no_kernels():
    params = network(3, 3, 2, 4) | {"conv": {"kernel": network(3, 3, 2, 3)["conv"]["kernel"], "bias": jnp.ones(3)}}
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params["conv"])
    query = {"kernel": jnp.arange(192.0).reshape(3, 8, 2, 4), "bias": jnp.ones((3, 2, 4))}  # of three layers
    after = transpose_kernels({"conv": stacked, "query": query})
    one = transpose_kernels(params)["conv"]["kernel"]
    np.testing.assert_array_equal(after["conv"]["kernel"], jnp.stack([one, 2 * one]))
    assert after["query"]["kernel"] is query["kernel"]
    alone = {"conv": {"kernel": stacked["kernel"]}}
    with pytest.raises(InputError, match="this network has none"):
        transpose_kernels(alone)
    for axes in (None, (0, 1), (-4, 1)):
        np.testing.assert_array_equal(
            transpose_kernels(alone, spatial_axes=axes, stacked="conv")["conv"]["kernel"], after["conv"]["kernel"]
        )


def test_equinox_keeps_height_and_width_last():
    layer = eqx.nn.Conv2d(2, 5, 3, key=KEY)
    params = eqx.filter(layer, eqx.is_array)
    for axes in (None, (2, 3), (-1, 2)):
        after = transpose_kernels(params, spatial_axes=axes)
        np.testing.assert_array_equal(after.weight, params.weight.swapaxes(2, 3))
    with pytest.raises(InputError, match=r"the axes \(0, 1\) of weight, which has the shape \(5, 2, 3, 3\), .* differ"):
        transpose_kernels(params, spatial_axes=(0, 1))


def test_biases_of_convolutions_over_volumes_are_no_kernels():
    params = eqx.filter(
        {"image": eqx.nn.Conv2d(2, 5, 3, key=KEY), "volume": eqx.nn.Conv3d(2, 5, 3, key=KEY)}, eqx.is_array
    )
    assert transpose_kernels(params)["volume"].bias is params["volume"].bias


@pytest.mark.parametrize("axes", [(0, 0), (0, -4), (0, 4), (0, 7), (1,), (0, 1, 2)])
def test_axes_are_two_of_four(axes):
    with pytest.raises(InputError, match="spatial_axes must be two different axes of four"):
        ct(LOSS, PLAIN_SGD, spatial_axes=axes)


def test_kernels_can_be_chosen():
    params = {"a": network(3, 3, 1, 1), "b": network(3, 3, 1, 1), "c": network(1, 3, 1, 1)}
    after = transpose_kernels(params, "a|b/fc")
    assert same_bits(after["b"], params["b"])
    assert not same_bits(after["a"], params["a"])


def test_the_fine_tuning_is_that_of_float64_by_hand():
    def rate(update):
        return 0.4 / (1 + update)

    method = ct(lift(plain_loss), sgd(rate, momentum=0.9, weight_decay=0.1), batch_size=4)
    carry = method.init(KEY, original()[0], (), DATA)
    weights = by_hand.read(original()[0])
    weights[0] = weights[0].reshape(2, 2, 6).transpose(1, 0, 2).reshape(4, 6)
    optimizer, count, step = by_hand.Sgd(0.9, 0.1), 0, jax.jit(method.step)
    for epoch in range(2):
        for positions in method.batches(KEY, DATA, epoch):
            batch = data_lib.gather(DATA, positions)
            carry, _ = step(carry, batch)
            weights = optimizer.update(weights, by_hand.gradient(weights, batch.retain), rate(count))
            count += 1
    assert count == 6
    np.testing.assert_allclose(by_hand.flat(carry.params), by_hand.flat(weights), rtol=1e-4, atol=1e-5)


def test_it_starts_with_the_state_of_the_original_and_retain_batches_move_it():
    method = ct(LOSS, PLAIN_SGD, batch_size=4)
    carry = method.init(KEY, *original(), DATA)
    assert same_bits(carry.model_state, original()[1])
    batch = data_lib.gather(DATA, next(iter(method.batches(KEY, DATA, 0))))
    assert batch.forget is None
    assert int(method.step(carry, batch)[0].model_state["count"]) == 1


def test_the_defaults_are_the_published_settings():
    found = CtSettings()
    assert (found.epochs, found.batch_size, found.learning_rate, found.momentum) == (3, 64, 1e-3, 0.9)
    assert found.weight_decay == 5e-4
    # Theirs have 1, 3/4 and 1/4 in the three epochs, which is the curve at the beginning of each.
    schedule = found.rate_schedule([100] * 3)
    np.testing.assert_allclose(np.interp([0, 100, 200], schedule.knots, schedule.factors), [1, 0.75, 0.25], atol=2e-3)


@pytest.mark.parametrize(
    ("shape", "kernels", "message"),
    [
        ((4, 3), None, "arrays with four axes, and this network has none; choose another method, such as msg"),
        ((3, 3, 1, 1), "fc", "arrays with four axes, and kernels = 'fc' selects none; choose"),
        ((3, 3, 1, 1), "head", "matches none of the 3 parameter arrays"),
        ((3, 1, 2, 2), None, r"of conv/kernel, which has the shape \(3, 1, 2, 2\), where they differ in length; name"),
        ((1, 1, 2, 2), None, "every kernel that ct is to transpose is 1 x 1, which changes nothing; name larger ones"),
    ],
)
def test_what_cannot_be_transposed_is_refused(shape, kernels, message):
    method = ct(lift(plain_loss), PLAIN_SGD, kernels=kernels)
    with pytest.raises(InputError, match=message):
        method.init(KEY, network(*shape), (), DATA)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        ct(LOSS, PLAIN_SGD, batch_size=0)
