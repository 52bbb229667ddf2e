"""Tuning looks at validation data only, keeps its budget, and finds what it should."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest
from scipy import stats

from scissorhands_jax import data as data_lib
from scissorhands_jax.errors import InputError, NonFiniteError
from scissorhands_jax.jobs import search
from scissorhands_jax.methods import METHODS
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings
from scissorhands_jax.metrics import accuracies, attacks
from scissorhands_jax.training.loop import run
from tests import tiny
from tests.compilations import Compilations

KEY = jax.random.key(5)
SPACE = ScissorhandsSettings.search_ranges
NUMBERS = {name: searched for name, searched in SPACE.items() if name != "schedule"}
SETTINGS = ScissorhandsSettings(epochs=1, batch_size=4)


def build(settings):
    return settings.build(tiny.model(), tiny.loss(), tiny.CLASSES)


def tune(settings=SETTINGS, **changes):
    options = {"whole_classes": False, "space": SPACE, "num_trials": 3, "build": build} | changes
    return search.tune_settings(
        tiny.model(),
        options.pop("build"),
        settings,
        KEY,
        *tiny.start(),
        tiny.data(),
        tiny.examples(20, 9),
        **options,
    )


def test_candidates_start_with_the_given_settings_and_fill_the_ranges():
    rows = search.candidates(SETTINGS, SPACE, 17, KEY)
    assert rows[0] == {"fraction": 0.03, "forget_weight": 0.05, "learning_rate": 5e-3, "schedule": "linear"}
    names = [row["schedule"] for row in rows[1:]]
    assert names.count("drops") == names.count("linear") == 8
    for name, (low, high) in NUMBERS.items():
        values = np.log([row[name] for row in rows[1:]])
        places = (values - np.log(low)) / (np.log(high) - np.log(low))
        # A Sobol sequence of 16 has one point in each sixteenth of every axis; three digits move it by 0.002 at most.
        np.testing.assert_allclose(np.sort(places), (np.arange(16) + 0.5) / 16, atol=0.5 / 16 + 0.003)
    assert rows == search.candidates(SETTINGS, SPACE, 17, KEY)
    assert len(search.candidates(SETTINGS, SPACE, 1, KEY)) == 1


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_can_be_built_with_all_that_its_search_tries(name):
    settings = METHODS[name]()
    space = settings.search_ranges
    assert space
    for changes in search.candidates(settings, space, 9, KEY):
        build(dataclasses.replace(settings, **changes))
    corners = {field: (searched[0], searched[-1]) for field, searched in space.items()}
    for end in (0, 1):
        build(dataclasses.replace(settings, **{field: ends[end] for field, ends in corners.items()}))


def test_what_rules_the_strength_of_a_baseline_is_searched():
    assert "forget_weight" in METHODS["neggrad_plus"].search_ranges
    assert "penalty" in METHODS["l1_sparse"].search_ranges
    assert "fraction" in METHODS["salun"].search_ranges
    assert "fraction" not in METHODS["random_label"].search_ranges, "it has no mask"
    guide = (Path(__file__).parents[2] / "docs/guides/tuning.md").read_text()
    said = guide.partition("## What is searched")[2].partition("##")[0]
    for name, settings in METHODS.items():
        for field in {*settings.search_ranges} - {"learning_rate", "schedule"}:
            assert f"`{name}`" in said, name
            assert f"`{field}`" in said, name


def test_what_is_none_stays_none():
    settings = METHODS["salun"](fraction=None, epochs=1, batch_size=8)
    found = tune(settings, space=settings.search_ranges, num_trials=2)
    assert found.settings.fraction is None
    assert set(found.best.changes) == {"learning_rate", "schedule"}
    assert "fraction" not in search.near(settings, settings.search_ranges, 4)


def test_the_schedule_stays_where_its_steps_were_given():
    given = METHODS["finetune"](milestones=(1,), epochs=2)
    for settings, searched in ((given, False), (METHODS["finetune"](gamma=0.5), False), (METHODS["finetune"](), True)):
        assert ("schedule" in search.searched_space(settings, settings.search_ranges)) is searched
    assert "schedule" in search.searched_space(METHODS["finetune"](milestones=()), given.search_ranges)
    for kind in METHODS.values():
        for settings in (
            (kind(), kind(epochs=2), kind(epochs=2, milestones=(), schedule="linear")) if kind().epochs else ()
        ):
            assert set(search.searched_space(settings, settings.search_ranges)) == {
                name for name in settings.search_ranges if getattr(settings, name) is not None
            }


def test_trials_of_another_search_are_refused():
    """They would be the first ones of a sequence to which the others do not belong."""
    made = tune(num_trials=2).trials
    assert tune(num_trials=3, made=made).trials[:2] == made
    fewer = {name: searched for name, searched in SPACE.items() if name != "fraction"}
    with pytest.raises(InputError, match=r"trial 1 of those that were made has fraction=0.03 .* begin anew"):
        tune(num_trials=3, made=made, space=fewer)


def test_a_schedule_is_chosen_and_costs_no_compilation():
    with Compilations() as compilations:
        result = tune(space={"schedule": ("drops", "linear")}, num_trials=4)
    assert compilations.names.count("jit(_step)") <= 1
    assert {trial.changes["schedule"] for trial in result.trials} == {"drops", "linear"}
    assert len({tuple(trial.numbers.values()) for trial in result.trials}) == 2
    assert result.settings.schedule == result.best.changes["schedule"]
    assert search.as_overrides({"schedule": "linear", "learning_rate": 0.01}) == [
        "schedule=linear",
        "learning_rate=0.01",
    ]


def test_a_schedule_that_is_tried_does_without_the_settings_of_others():
    settings = METHODS["finetune"](milestones=(1,), gamma=0.5, epochs=2)
    tried = search._with_changes(settings, {"schedule": "linear"})
    assert tried == METHODS["finetune"](schedule="linear", epochs=2)
    assert search._with_changes(settings, {"schedule": "drops"}) == settings


def test_the_best_trial_is_the_one_with_the_smallest_score():
    told = []
    result = tune(on_trial=lambda number, trial: told.append((number, trial)))
    assert [number for number, _ in told] == [1, 2, 3]
    assert [trial for _, trial in told] == result.trials
    assert result.best.score == min(trial.score for trial in result.trials)
    assert dataclasses.replace(SETTINGS, **result.best.changes) == result.settings


def test_the_numbers_are_what_they_say():
    data, validation = tiny.data(), tiny.examples(20, 9)
    numbers = search.measure_trial(tiny.model(), *tiny.start(), data, validation)
    logits = {
        name: accuracies.predict(tiny.model(), *tiny.start(), part["image"])
        for name, part in (("forget", data.forget), ("validation", validation))
    }
    losses = [
        attacks.cross_entropy_per_example(logits[name], part["label"])
        for name, part in (("forget", data.forget), ("validation", validation))
    ]
    grid = np.sort(np.concatenate(losses))
    steps = [np.mean(values[None] <= grid[:, None], axis=1) for values in losses]
    assert numbers["loss_distance"] == pytest.approx(100 * np.abs(steps[0] - steps[1]).max())
    assert numbers["loss_distance"] == pytest.approx(100 * stats.ks_2samp(*losses).statistic)
    assert numbers["acc_validation"] == accuracies.accuracy(logits["validation"], validation["label"])


@pytest.mark.parametrize(("whole_classes", "expected"), [(False, (30 + 2 + 4) / 3), (True, (12 + 2 + 4) / 3)])
def test_the_score_is_the_mean_of_three_distances(whole_classes, expected):
    before = {"acc_retain": 100.0, "acc_validation": 80.0}
    numbers = {"loss_distance": 30.0, "acc_forget": 12.0, "acc_retain": 98.0, "acc_validation": 84.0}
    assert search.proxy_score(numbers, before, whole_classes=whole_classes) == pytest.approx(expected)


def test_a_trial_that_diverges_loses(monkeypatch):
    true_run, calls = search.run, []

    def fail_twice(*args, **kwargs):
        calls.append(1)
        if len(calls) < 3:
            raise NonFiniteError(1, "loss", float("nan"), "nothing was saved")
        return true_run(*args, **kwargs)

    monkeypatch.setattr(search, "run", fail_twice)
    result = tune()
    assert [np.isfinite(trial.score) for trial in result.trials] == [False, False, True]
    assert result.best == result.trials[2]
    assert result.document()["trials"][0]["score"] is None
    calls.clear()
    with pytest.raises(InputError, match="all 2 trials diverged; lower the range of the learning rate"):
        tune(num_trials=2)


def test_a_run_whose_last_update_breaks_the_network_is_a_trial_that_diverged():
    """No step has seen a loss of the network that is left, so only measuring it shows what it has become."""
    settings = METHODS["finetune"](epochs=1, batch_size=10, learning_rate=1e38)  # one step: 10 retained examples
    with pytest.raises(InputError, match="all 2 trials diverged"):
        search.tune_settings(
            tiny.model(),
            lambda settings: settings.build(tiny.model(), tiny.loss(), tiny.CLASSES),
            settings,
            jax.random.key(0),
            *tiny.start(),
            tiny.data(),
            tiny.examples(20, 9),
            space={"learning_rate": (1e37, 1e38)},
            num_trials=2,
            whole_classes=False,
        )


def test_no_trial_starts_after_the_time_is_up():
    assert len(tune(max_seconds=0.0).trials) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trials": 0}, "at least 1 trial, got 0"),
        ({"space": {"fractoin": (0.1, 0.2)}}, "has no setting 'fractoin' to tune"),
        ({"space": {"fraction": (0.2, 0.1)}}, r"two positive numbers in order, or names, got \(0.2, 0.1\)"),
        ({"space": {"fraction": (0.0, 0.1)}}, "two positive numbers in order"),
        ({"space": {"schedule": ()}}, "the range of schedule must be two positive numbers in order, or names"),
        ({"space": {"schedule": ("linear", 0.1)}}, "two positive numbers in order, or names"),
    ],
)
def test_bad_budgets_and_ranges_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tune(**changes)


def test_only_forget_retain_and_validation_examples_are_read(monkeypatch):
    seen = []
    true_predict = accuracies.predict

    def record(model, params, model_state, images, **options):
        seen.append(np.asarray(images))
        return true_predict(model, params, model_state, images, **options)

    monkeypatch.setattr(accuracies, "predict", record)
    tune(num_trials=1)
    data = tiny.data()
    allowed = [np.asarray(part["image"]) for part in (data.forget, data.retain, tiny.examples(20, 9))]
    assert len(seen) == 6
    assert all(any(np.array_equal(images, known) for known in allowed) for images in seen)
    assert data_lib.size(data.forget) == 6


@pytest.mark.parametrize(
    ("name", "changes", "rates"),
    [
        ("neggrad_plus", {"learning_rate": 1e-2}, (1e-3, 1e-1)),
        ("retrain", {"recipe": "fast", "learning_rate": 20.0}, (10.0, 3000.0)),
    ],
)
def test_learning_rates_share_one_compilation(name, changes, rates):
    settings = METHODS[name](epochs=1, batch_size=4, **changes)
    told = []
    with Compilations() as compilations:
        result = tune(settings, space={"learning_rate": rates}, on_trial=lambda n, trial: told.append(trial))
    assert compilations.names.count("jit(_step)") <= 1
    for trial in told:
        alone = dataclasses.replace(settings, **trial.changes)
        network = run(build(alone), KEY, *tiny.start(), tiny.data(), num_epochs=1)
        numbers = search.measure_trial(
            tiny.model(), network.params, network.model_state, tiny.data(), tiny.examples(20, 9)
        )
        assert trial.numbers == pytest.approx(numbers)
    assert len({tuple(trial.numbers.values()) for trial in result.trials}) > 1


class TestNear:
    SPACE: ClassVar = {"fraction": (0.003, 0.3), "learning_rate": (1e-3, 1e-1), "schedule": ("drops", "linear")}

    def test_numbers_stay_within_the_factor_and_the_range_and_names_as_they_are(self):
        settings = ScissorhandsSettings(fraction=0.005, learning_rate=0.02)
        assert search.near(settings, self.SPACE, 4.0) == {"fraction": (0.003, 0.02), "learning_rate": (0.005, 0.08)}
        assert search.near(settings, self.SPACE, 1e6) == {
            name: self.SPACE[name] for name in ("fraction", "learning_rate")
        }

    def test_a_start_outside_of_its_range_may_reach_into_it(self):
        space = {"learning_rate": (1e-3, 1e-1)}
        assert search.near(ScissorhandsSettings(learning_rate=0.2), space, 4.0) == {"learning_rate": (0.05, 0.1)}
        with pytest.raises(InputError, match=r"learning_rate = 0.5 is no factor of 4 from its range, 0.001 to 0.1"):
            search.near(ScissorhandsSettings(learning_rate=0.5), space, 4.0)

    @pytest.mark.parametrize("factor", [1.0, 0.5, -2.0, float("nan")])
    def test_a_factor_that_leaves_nothing_is_refused(self, factor):
        with pytest.raises(InputError, match="stays within a factor above 1"):
            search.near(ScissorhandsSettings(), self.SPACE, factor)
