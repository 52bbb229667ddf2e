"""Ensembles: the masks keep their promises, networks are trained once and found again, one by one or together."""

import functools
import json

import jax
import numpy as np
import pytest

from scissorhands_jax import losses, models
from scissorhands_jax.audit import ensembles
from scissorhands_jax.base import Data
from scissorhands_jax.errors import CheckpointError, InputError, NonFiniteError
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.training import loop as training
from tests import tiny
from tests.comparison import same_bits

KEY = jax.random.key(5)
FORGET = (np.array([3, 1, 8]), np.array([20, 21]), np.array([30, 31, 32, 33]))
TOTAL = 60


@functools.cache
def design(num_networks=16, sets=3, **changes):
    return ensembles.design(KEY, num_networks, TOTAL, FORGET[:sets], **changes)


class TestDesign:
    def test_half_of_the_networks_have_each_forget_set_as_a_whole(self):
        made = design()
        for number, positions in enumerate(made.forget):
            columns = made.included[:, positions]
            assert (columns.all(axis=1) | ~columns.any(axis=1)).all()
            assert len(made.originals(number)) == len(made.retrained(number)) == 8
            np.testing.assert_array_equal(made.originals(number), np.flatnonzero(columns.all(axis=1)))

    def test_half_of_the_networks_have_each_other_example(self):
        made = design()
        assert made.included[:, made.always].all()
        assert (made.included[:, made.halved].sum(axis=0) == 8).all()
        assert (made.included[:, made.halved].sum(axis=1) == len(made.halved) / 2).all()
        parts = np.concatenate([*made.forget, made.always, made.halved])
        np.testing.assert_array_equal(np.sort(parts), np.arange(TOTAL))

    def test_partners_have_what_the_other_has_not(self):
        made = design()
        changing = np.setdiff1d(np.arange(TOTAL), made.always)
        for network in range(16):
            other = int(ensembles.partner(network))
            assert (made.included[network, changing] != made.included[other, changing]).all()

    def test_chance_says_which_of_a_pair_has_a_forget_set(self):
        made = design()
        for positions in made.forget:
            assert 0 < made.included[::2, positions[0]].sum() < 8

    def test_forget_sets_occur_in_every_combination_equally_often(self):
        made = design()
        has = np.stack([made.included[:, positions[0]] for positions in made.forget])
        combinations, counts = np.unique(has, axis=1, return_counts=True)
        assert combinations.shape[1] == 8
        assert (counts == 2).all()

    def test_many_forget_sets_take_no_memory_for_their_combinations(self):
        made = ensembles.design(KEY, 16, 400, [np.array([number]) for number in range(60)])
        own = made.included[:, [int(positions[0]) for positions in made.forget]]
        assert (own.sum(axis=0) == 8).all()
        assert len(np.unique(own[::2], axis=0)) == 8

    def test_it_is_pure_and_a_smaller_one_is_its_beginning(self):
        np.testing.assert_array_equal(design().included, ensembles.design(KEY, 16, TOTAL, FORGET).included)
        np.testing.assert_array_equal(design(6).included, design().included[:6])
        other = ensembles.design(jax.random.key(6), 16, TOTAL, FORGET)
        assert (other.included != design().included).any()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((KEY, 5, TOTAL, FORGET), "an even number of networks from 2 to 256, got 5"),
            ((KEY, 258, TOTAL, FORGET), "got 258"),
            ((KEY, 4, TOTAL, ()), "0 forget sets and .*; give at least one set"),
            ((KEY, 4, TOTAL, (np.array([1, 2]), np.array([2, 3]))), "forget sets of one ensemble overlap"),
            ((KEY, 4, 9, (np.arange(8),)), "leave 1 of 9 examples, too few to be halved"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, arguments, message):
        with pytest.raises(InputError, match=message):
            ensembles.design(*arguments)


def ensemble(folder, num_networks=4, **identity):
    layout = ensembles.design(KEY, num_networks, 40, FORGET[:1])
    return ensembles.Ensemble(
        tiny.model(), tiny.method("retrain", augment=False), 2, tiny.examples(40), layout, KEY, folder, identity
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    made = ensemble(folder)
    for network in made.missing():
        made.make([network])
    return folder


class TestEnsemble:
    def test_a_store_that_orbax_cannot_write_to_is_refused_before_training(self, tmp_path):
        with pytest.raises(InputError, match=r"whose name has the character \[.*; name another folder"):
            ensemble(tmp_path / "[1]")

    def test_every_network_is_trained_once_and_found_again(self, trained):
        assert len(list(trained.iterdir())) == 4
        made = ensemble(trained)
        assert made.missing() == []
        weights = [made.load(network) for network in range(4)]
        assert not any(same_bits(weights[0], other) for other in weights[1:])
        assert made.description(2)["identity"]["network"] == 2

    def test_steps_do_not_compile_anew_for_a_network_from_disk(self, trained):
        fresh, read = tiny.start(), ensemble(trained).load(0)
        assert [leaf.committed for leaf in jax.tree.leaves(read)] == [leaf.committed for leaf in jax.tree.leaves(fresh)]

    def test_a_network_is_a_function_of_its_identity(self, trained, tmp_path):
        again = ensemble(tmp_path)
        again.make([3])
        assert again.missing() == [0, 1, 2]
        assert same_bits(again.load(3), ensemble(trained).load(3))

    def test_a_larger_ensemble_shares_the_networks_of_a_smaller_one(self, trained):
        assert ensemble(trained, 8).missing() == [4, 5, 6, 7]

    def test_other_settings_are_other_networks(self, trained):
        assert ensemble(trained, training={"learning_rate": 3}).missing() == [0, 1, 2, 3]

    def test_a_network_under_a_wrong_name_is_noticed(self, trained, tmp_path):
        one, other = (ensemble(trained).path(network) for network in (0, 1))
        moved = ensemble(tmp_path)
        other.rename(tmp_path / moved.path(0).name)
        try:
            with pytest.raises(CheckpointError, match="does not hold the network of that name"):
                moved.load(0)
        finally:
            (tmp_path / moved.path(0).name).rename(other)
        assert one.exists()

    def test_the_space_on_disk_is_that_of_the_weights(self, trained):
        leaves = jax.tree.leaves(ensemble(trained).load(0))
        assert ensembles.disk_bytes(tiny.model(), 3) == 3 * sum(np.asarray(leaf).nbytes for leaf in leaves)

    def test_an_identity_is_json(self, trained):
        identity = ensemble(trained).identity(1)
        assert json.loads(json.dumps(identity)) == identity


class TestTogether:
    def test_networks_that_are_trained_at_once_are_those_trained_alone(self, trained, tmp_path):
        together = ensemble(tmp_path)
        sizes = together.design.included.sum(axis=1)
        alike = np.flatnonzero(sizes == sizes[0]).tolist()
        assert len(alike) == 2
        together.make(alike, how="batched")
        for network in alike:
            for one, other in zip(
                jax.tree.leaves(together.load(network)), jax.tree.leaves(ensemble(trained).load(network)), strict=True
            ):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

    def test_a_network_sees_its_part_and_no_other_example(self):
        """What lies elsewhere in the pool could be anything."""
        pool, part = tiny.examples(30), np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29], np.int32)
        alone = {name: values[part] for name, values in pool.items()}
        pool["image"][np.setdiff1d(np.arange(30), part)] = 1e30
        method = tiny.method("retrain", augment=False)
        mine = training.run(ensembles.restricted(method, part), KEY, None, None, Data(None, pool), num_epochs=2)
        expected = training.run(method, KEY, None, None, Data(None, alone), num_epochs=2)
        assert same_bits(mine.params, expected.params)
        assert mine.steps == expected.steps

    def test_the_learning_rate_falls_as_it_would_alone(self):
        """Its epochs are as long as the part asks for, not the pool."""
        pool, part = tiny.examples(30), np.arange(10, dtype=np.int32)
        settings = RetrainSettings(epochs=3, batch_size=4, learning_rate=0.02, milestones=(1, 2))
        method = settings.build(tiny.model(), tiny.loss(), tiny.CLASSES)
        mine = training.run(ensembles.restricted(method, part), KEY, None, None, Data(None, pool), num_epochs=3)
        alone = {name: values[part] for name, values in pool.items()}
        expected = training.run(method, KEY, None, None, Data(None, alone), num_epochs=3)
        assert same_bits(mine.params, expected.params)

    def test_a_network_is_fitted_to_its_part_before_it_is_trained(self):
        model = models.build("resnet9", num_classes=3, image_shape=(10, 10, 3), widths=(2, 2, 2))
        images = np.random.default_rng(0).uniform(size=(12, 10, 10, 3)).astype(np.float32)
        pool, part = {"image": images, "label": np.arange(12, dtype=np.int32) % 3}, np.arange(1, 9, dtype=np.int32)
        method = RetrainSettings(batch_size=4).build(model, losses.classification_loss(model), 3)
        carry = ensembles.restricted(method, part).init(KEY, None, None, Data(None, pool))
        expected = method.init(KEY, None, None, Data(None, {name: values[part] for name, values in pool.items()}))
        assert same_bits(carry.model_state, expected.model_state)

    @pytest.mark.parametrize("name", models.MODELS)
    def test_every_network_can_be_begun_on_a_part(self, name):
        """With weights that are 0, since some networks are large."""
        side = 64 if name == "resnet34" else 32
        model = models.build(name, num_classes=3, image_shape=(side, side, 3))
        empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(model.init, KEY))
        model = model._replace(init=lambda key: empty)
        images = np.random.default_rng(0).uniform(size=(12, side, side, 3)).astype(np.float32)
        pool, part = {"image": images, "label": np.arange(12, dtype=np.int32) % 3}, np.arange(1, 9, dtype=np.int32)
        method = RetrainSettings(batch_size=4).build(model, losses.classification_loss(model), 3)
        carry = ensembles.restricted(method, part).init(KEY, None, None, Data(None, pool))
        assert jax.tree.map(np.shape, (carry.params, carry.model_state)) == jax.tree.map(np.shape, empty)

    def test_one_that_diverges_says_so(self, tmp_path):
        wild = ensemble(tmp_path)
        wild.train["image"][:] = 3e38
        with pytest.raises(NonFiniteError):
            wild.make([0], how="turns")
        assert wild.missing() == [0, 1, 2, 3]
