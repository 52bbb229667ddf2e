"""CF-k and EU-k: what is frozen stays bit-equal with its statistics, the rest learns, from where it was or anew."""

import functools

import jax
import numpy as np
import optax
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax import losses, trees
from scissorhands_jax.errors import InputError
from scissorhands_jax.methods import cf_k, eu_k
from scissorhands_jax.methods.last_layers import _owners
from scissorhands_jax.models.adapters import from_linen
from scissorhands_jax.models.resnet9 import ResNet9, fit_whitening
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.comparison import rate_of, same_bits
from tests.methods import example

KEY = jax.random.key(5)
OPTIMIZER = sgd(0.1, momentum=0.9, weight_decay=0.1)  # All of it would move a frozen weight.


def flat(*networks):
    """All leaves by name."""
    trees_by_name = [dict(zip(trees.leaf_names(n), jax.tree.leaves(n), strict=True)) for n in networks]
    return functools.reduce(lambda a, b: a | b, trees_by_name)


@functools.cache
def original():
    """A network whose weights and statistics are none that `init` would draw; a bias holds a minus zero."""
    params, state = tiny.model().init(jax.random.key(77))
    params = jax.tree.map(lambda leaf: leaf + 0.125, params)
    params["bn"]["bias"] = params["bn"]["bias"].at[0].set(-0.0)
    state = jax.tree.map(lambda leaf: leaf + 3, state)
    return params, state


@functools.cache
def outcome(name, layers):
    """All leaves before and after a run."""
    method = cf_k(tiny.loss(), OPTIMIZER, layers=layers, batch_size=4)
    if name == "eu_k":
        method = eu_k(tiny.model(), tiny.loss(), OPTIMIZER, layers=layers, batch_size=4)
    result = run(method, KEY, *original(), tiny.data(), num_epochs=2)
    return flat(*original()), flat(result.params, result.model_state)


def same(a, b):
    return np.array_equal(a, b) and np.array_equal(np.signbit(a), np.signbit(b))


@pytest.mark.parametrize("name", ["cf_k", "eu_k"])
@pytest.mark.parametrize(("layers", "moving"), [("fc", {"fc"}), ("bn|fc", {"bn", "fc"})])
def test_frozen_layers_stay_bit_equal_with_their_statistics_and_the_rest_learns(name, layers, moving):
    before, after = outcome(name, layers)
    for leaf, value in before.items():
        layer = leaf.removeprefix("batch_stats/").split("/")[0]
        assert same(value, after[leaf]) != (layer in moving), leaf


def test_a_layer_of_which_some_weights_learn_moves_its_statistics():
    before, after = outcome("cf_k", "bn/scale")
    unmoved = {leaf for leaf, value in before.items() if same(value, after[leaf])}
    assert unmoved == {"conv/kernel", "bn/bias", "fc/kernel", "fc/bias"}


def test_eu_k_draws_the_selected_layers_and_their_statistics_anew():
    method = eu_k(tiny.model(), tiny.loss(), OPTIMIZER, layers="bn|fc", batch_size=4)
    carry = method.init(KEY, *original(), tiny.data())
    found, before = flat(carry.params, carry.model_state), flat(*original())
    assert same(found["conv/kernel"], before["conv/kernel"])
    statistics = {"batch_stats/bn/mean": 0, "batch_stats/bn/var": 1, "batch_stats/bn/count": 0}
    for leaf, fresh in {"bn/scale": 1, "bn/bias": 0, **statistics}.items():
        assert np.all(found[leaf] == fresh), leaf
    # Of a fan-in of 48, as `init` draws it; moved by 0.125 it was the original.
    assert np.all(np.abs(found["fc/kernel"]) <= 48**-0.5)
    assert not np.array_equal(found["fc/kernel"], before["fc/kernel"] - 0.125)
    other = method.init(jax.random.key(6), *original(), tiny.data())
    assert not np.array_equal(other.params["fc"]["kernel"], found["fc/kernel"])


@pytest.mark.parametrize("layers", [None, "whiten|head"])
def test_eu_k_fits_a_whitening_layer_that_it_draws(layers):
    network = ResNet9(num_classes=3, widths=(2,), residual=(False,))
    model = from_linen(network, jax.ShapeDtypeStruct((1, 4, 4, 3), np.float32))
    rng = np.random.default_rng(0)
    examples = {"image": rng.random((12, 4, 4, 3), np.float32), "label": rng.integers(0, 3, 12)}
    data = data_lib.split(examples, [0, 1])
    start = model.init(KEY)
    loss = losses.classification_loss(model)
    carry = eu_k(model, loss, OPTIMIZER, layers=layers, batch_size=4).init(KEY, *start, data)
    expected = fit_whitening(start[1], data.retain)
    assert same_bits(carry.model_state["constants"], expected["constants"])
    assert not same_bits(start[1]["constants"], expected["constants"])


def test_cf_k_starts_at_the_original():
    carry = cf_k(tiny.loss(), OPTIMIZER, layers="fc").init(KEY, *original(), tiny.data())
    assert same_bits((carry.params, carry.model_state), original())


def test_with_all_layers_they_are_fine_tuning_and_retraining():
    for special, general in (("cf_k", "finetune"), ("eu_k", "retrain")):
        ends = []
        for name in (special, general):
            method = example.build(name, weight_decay=0.1, milestones=())
            last = example.epoch_of(method, start=example.original()).carries[-1]
            ends.append((last.params, last.model_state))
        assert same_bits(*ends)


@pytest.mark.parametrize(("layers", "convolutions"), [("fc", 1), (None, 2)])
def test_the_backward_pass_ends_at_the_first_layer_that_learns(layers, convolutions):
    method = cf_k(tiny.loss(), OPTIMIZER, layers=layers, batch_size=4)
    carry = method.init(KEY, *original(), tiny.data())
    batch = data_lib.gather(tiny.data(), next(iter(method.batches(KEY, tiny.data(), 0))))
    assert str(jax.make_jaxpr(method.step)(carry, batch)).count("conv_general_dilated[") == convolutions


def owners(params, learning, state):
    """The names of the state's leaves that learn, and that are frozen."""
    selection = trees.select(dict.fromkeys(params, 0), learning)
    flags = _owners(selection, state)
    names = trees.leaf_names(state)
    return [[n for n, flag in zip(names, jax.tree.leaves(f), strict=True) if flag] for f in flags]


class TestOwners:
    """Whose statistics a leaf of the state holds, by its name alone."""

    params = ("conv/kernel", "layer1/bn/scale", "layer1/bn/bias", "layer2/bn/scale", "fc/bias")

    def test_linen_puts_a_collection_before_the_names(self):
        state = {"batch_stats": {f"layer{i}": {"bn": {"mean": 0}} for i in (1, 2)}, "constants": {"mean": 0}}
        assert owners(self.params, "layer2|fc", state) == [
            ["batch_stats/layer2/bn/mean"],
            ["batch_stats/layer1/bn/mean"],
        ]

    def test_others_do_not(self):
        state = {"layer1": {"bn": {"mean": 0, "var": 0}}, "layer2": {"bn": {"mean": 0}}, "fc": {"count": 0}}
        assert owners(self.params, "layer1/bn/scale", state) == [
            ["layer1/bn/mean", "layer1/bn/var"],
            ["fc/count", "layer2/bn/mean"],
        ]

    def test_a_layer_is_not_taken_for_a_collection(self):
        params = ("block/bn/scale", "bn/scale")
        assert owners(params, "bn", {"block": {"bn": {"mean": 0}}}) == [[], ["block/bn/mean"]]

    def test_a_network_of_one_layer_has_no_name(self):
        assert owners(("scale",), "scale", {"batch_stats": {"mean": 0}}) == [["batch_stats/mean"], []]

    def test_what_has_no_weights_is_nobodys(self):
        assert owners(self.params, "fc", [0, {"normalize": {"mean": 0}}]) == [[], []]


@pytest.mark.parametrize("method", [cf_k(tiny.loss(), OPTIMIZER, layers="head"), None])
def test_a_pattern_that_matches_nothing_is_refused(method):
    method = method or eu_k(tiny.model(), tiny.loss(), OPTIMIZER, layers="head")
    with pytest.raises(InputError, match="layer pattern 'head' matches none of the 5 parameter arrays"):
        method.init(KEY, *original(), tiny.data())


def test_settings_carry_the_pattern_and_the_schedule():
    for name in ("cf_k", "eu_k"):
        method = tiny.method(name, layers="fc", milestones=(1,))
        carry = method.init(KEY, *original(), tiny.data())
        assert [bool(flag) for flag in jax.tree.leaves(carry.aux)] == [False, False, False, True, True]
        later = optax.tree_utils.tree_set(carry.opt_state, count=3)
        assert [float(rate_of(state)) for state in (carry.opt_state, later)] == pytest.approx([0.02, 0.002])
