"""A scenario with a seed: which examples its networks see."""

import dataclasses

import numpy as np
import pytest

from scissorhands_jax import data as data_lib
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import grid
from scissorhands_jax.jobs.cells import CellFolder, Diverged
from scissorhands_jax.jobs.experiment import LoadedExperiment, OwnNetwork, Scenario
from scissorhands_jax.jobs.scenarios import SeededScenario, TableNetworks, TrainedNetwork, check_seeds
from scissorhands_jax.jobs.table_cells import Cost
from scissorhands_jax.tasks import CLASSIFICATION
from tests.jobs.grid_test import EXPERIMENT


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Every scenario with seed 3."""
    out = tmp_path_factory.mktemp("prepared")
    store = TableNetworks(EXPERIMENT, None, out, out)
    return {scenario.name: SeededScenario(store, scenario, 3) for scenario in EXPERIMENT.scenarios}


class TestSeededScenario:
    def test_every_forget_example_was_trained_on_and_none_is_held_out(self, prepared):
        for one in prepared.values():
            assert np.isin(one.forget_positions, one.trained_on).all()
            assert not np.isin(one.held_out, one.trained_on).any()
            # Classes have unequal sizes, and 600 is shared out among them, rounded down.
            assert len(one.held_out) + len(one.trained_on) == 596

    def test_forget_and_retain_are_the_training_set(self, prepared):
        for one in prepared.values():
            parts = [one.data.forget["image"], one.data.retain["image"]]
            together = np.sort(np.concatenate(parts).reshape(len(one.trained_on), -1), axis=0)
            whole = one.train["image"][one.trained_on].reshape(len(one.trained_on), -1)
            np.testing.assert_array_equal(together, np.sort(whole, axis=0))

    def test_wrong_labels_are_wrong_and_forgotten(self, prepared):
        one = prepared["wrong labels"]
        assert (one.data.forget["label"] != one.true_train["label"][one.forget_positions]).all()
        rest = np.setdiff1d(one.trained_on, one.forget_positions)
        np.testing.assert_array_equal(one.train["label"][rest], one.true_train["label"][rest])
        assert len(one.forget_positions) > 80

    def test_a_forgotten_class_leaves_test_and_validation(self, prepared):
        one = prepared["two requests"]
        assert 3 not in one.test["label"]
        assert 3 not in one.validation["label"]
        assert 3 not in one.data.retain["label"]
        assert 3 in prepared["random 10 %"].test["label"]

    def test_the_second_request_does_not_train_on_the_first(self, prepared, monkeypatch):
        one = prepared["two requests"]
        seen = []

        def record(self, name, method, key, start, examples, held_out, progress):
            seen.append(examples)
            return start

        network = TrainedNetwork((), (), Cost(1.0, 0.5, 3))
        monkeypatch.setattr(SeededScenario, "original", lambda self, progress: network)
        monkeypatch.setattr(TableNetworks, "run", record)
        assert one.unlearned("finetune", None).cost == Cost(2.0, 1.0, 6)
        first, second = (len(examples.retain["label"]) for examples in seen)
        both = len(one.forget_positions)
        assert first == len(one.trained_on) - len(one.requests[0])
        assert second == len(one.trained_on) - both
        forgotten = one.train["image"][one.requests[0]].reshape(len(one.requests[0]), -1)
        kept = seen[1].retain["image"].reshape(second, -1)
        assert not (kept[:, None] == forgotten[None]).all(-1).any()


def test_with_wrong_labels_a_class_is_a_label_unless_examples_have_owners(tmp_path):
    digits = LoadedExperiment(EXPERIMENT, None)
    people = np.arange(data_lib.size(digits.splits.train)) % 7
    scenario = Scenario(name="wrong labels", forget=("class:3",), flipped_labels=0.3, methods={})
    for owners in (None, people):
        own = OwnNetwork(
            model=digits.model, train=digits.splits.train, test=digits.splits.test, owners=owners, task=CLASSIFICATION
        )
        experiment = dataclasses.replace(EXPERIMENT, train_limit=None, test_limit=None, model_options={})
        store = TableNetworks(experiment, None, tmp_path, tmp_path, own)
        one = SeededScenario(store, scenario, 0)
        whose = one.train["label"] if owners is None else people
        np.testing.assert_array_equal(one.forget_positions, np.intersect1d(np.flatnonzero(whose == 3), one.trained_on))


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (
            [0, 1, 1000],
            "networks 'retrain' of seed 0 and 'original' of seed 1000 would both be trained with the seed 1000",
        ),
        ([2000, 0], "networks 'original' of seed 2000 and 'retrained, drawn again' of seed 0 would both"),
        (
            [2**32 - 1500],
            "'retrained, drawn again' of seed 4294965796 would be trained with the seed 4294967796, and the",
        ),
    ],
)
def test_seeds_whose_networks_would_share_random_numbers_are_refused(tmp_path, seeds, message):
    with pytest.raises(InputError, match=message):
        grid.run_grid(EXPERIMENT, tmp_path / "out", seeds=seeds)
    assert not (tmp_path / "out").exists()


def test_seeds_of_an_earlier_call_count(tmp_path, monkeypatch):
    monkeypatch.setattr(CellFolder, "read_all", lambda self: [Diverged({"seed": 1003}, "it diverged")])
    with pytest.raises(InputError, match="networks 'retrain' of seed 3 and 'original' of seed 1003"):
        grid.run_grid(EXPERIMENT, tmp_path / "out", seeds=[3])


def test_seeds_far_enough_apart_pass():
    check_seeds([0, 1, 2, 999, 5000])
    with pytest.raises(InputError, match="'original' of seed 10000 and another of seed 0 would both"):
        check_seeds([0, 10_000], {"another of seed 0": 10_000})


def test_seeds_differ_in_their_forget_sets(tmp_path):
    store = TableNetworks(EXPERIMENT, None, tmp_path, tmp_path)
    one, two = (SeededScenario(store, EXPERIMENT.scenarios[0], seed) for seed in (0, 1))
    assert set(one.forget_positions) != set(two.forget_positions)
    np.testing.assert_array_equal(one.held_out, two.held_out)
