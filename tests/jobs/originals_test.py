"""Originals that are not worth unlearning are found, and others are not taken for them more often than is said."""

import bisect

import numpy as np
import pytest
from scipy import stats

from scissorhands_jax import tasks
from scissorhands_jax.jobs import originals
from scissorhands_jax.metrics.row import SetPredictions
from scissorhands_jax.report import table_gates


def labels(total, classes=10):
    return np.arange(total) % classes


def test_a_regression_that_explains_a_fifth_of_the_variance_is_taken_for_a_constant_in_few_cases():
    task, generator = tasks.regression(1.0), np.random.default_rng(0)

    def doubted(explained, total):
        errors = generator.normal(size=(total, 1)).astype(np.float32) * np.sqrt(1 - explained)
        found = SetPredictions(errors, {"label": np.zeros(total, np.float32)})
        return originals.near_chance_of(task, found, "retained examples") is not None

    for total in (30, 300):
        assert np.mean([doubted(originals.NEAR_CHANCE, total) for _ in range(400)]) <= 1 / 100  # 0.1 % is meant
    assert np.mean([doubted(0.0, 1000) for _ in range(50)]) > 0.6
    own = tasks.Task(name="counts", loss=lambda outputs, examples: outputs, metrics=task.metrics)
    assert originals.near_chance_of(own, SetPredictions(np.ones(3), {"label": np.ones(3)}), "x") is None


def test_several_labels_are_guessed_by_the_more_frequent_value_of_each():
    generator = np.random.default_rng(0)
    labels = (generator.random((400, 3)) < [0.1, 0.5, 0.9]).astype(np.float32)

    def doubt(answers):
        found = SetPredictions(np.where(answers, 1.0, -1.0), {"label": labels})
        return originals.near_chance_of(tasks.multi_label(), found, "retained examples")

    assert "guessing gets 7" in doubt(np.tile([False, True, True], (400, 1)))  # right in 77 % of labels
    assert doubt(labels > 0) is None


@pytest.mark.parametrize(("correct", "found"), [(99, True), (230, True), (400, False), (1000, False)])
def test_an_original_that_does_not_answer_is_near_chance(correct, found):
    doubt = originals.near_chance(correct, labels(1000), "retained examples")
    assert (doubt is not None) == found
    if found:
        assert f"gets {correct / 10:.1f} % of the 1000 retained examples right, and guessing gets 10.0 %" in doubt
        assert "normalisation, channel order, flatten order, class order" in doubt


def test_guessing_is_the_share_of_the_most_frequent_class():
    many = np.repeat([0, 1], [950, 50])
    assert originals.near_chance(930, many, "examples") is not None
    assert originals.near_chance(990, many, "examples") is None
    assert originals.near_chance(0, np.zeros(0, int), "examples") is None


@pytest.mark.parametrize("total", [20, 100, 2000])
def test_a_network_at_the_limit_is_near_chance_in_one_case_of_a_thousand_at_most(total):
    limit = 0.1 + originals.NEAR_CHANCE * 0.9
    answers = lambda n: originals.near_chance(n, labels(total), "examples") is None  # noqa: E731
    least = bisect.bisect_left(range(total + 1), True, key=answers)
    assert stats.binom.cdf(least - 1, total, limit) <= 0.001
    assert least == 0 or stats.binom.cdf(least, total, limit) > 0.0005  # and not much more rarely


def refused(forget, unseen, shift, seed, spec="random:0.1"):
    """Whether forget examples whose scores are normal and larger by `shift` than unseen ones are taken for unknown."""
    rng = np.random.default_rng(seed)
    own, other = rng.normal(shift, 1, forget), rng.normal(0, 1, unseen)
    compared = table_gates.held_out_ranks(own, labels(forget, 2), other, labels(unseen, 2))
    numbers = {"num_forget": forget, "correct_forget": forget}
    return originals.nothing_to_forget(spec, numbers, compared, 2) is not None


def rate(forget, unseen, auc, trials=150):
    shift = np.sqrt(2) * stats.norm.ppf(auc)
    return np.mean([refused(forget, unseen, shift, seed) for seed in range(trials)])


@pytest.mark.parametrize(("forget", "unseen"), [(60, 60), (300, 500), (1000, 1000)])
def test_a_forget_set_that_is_known_is_not_refused(forget, unseen):
    assert rate(forget, unseen, originals.KNOWN_AUC) <= 1 / 150  # at most 0.1 % is meant


def test_a_forget_set_that_is_not_known_is_refused_if_it_is_large_enough():
    assert rate(2000, 2000, 0.5) > 0.9
    assert rate(60, 60, 0.5) < 0.2  # mostly too few to tell
    assert rate(5000, 5000, 0.53, trials=40) < 0.1  # Little is known, but without doubt.


def test_examples_that_nothing_was_compared_with_are_not_called_unknown():
    """1500 of class 0 are known no better than unseen ones, and 900 of class 1, of which none is unseen, are."""
    rng = np.random.default_rng(1)
    own, unseen = np.concatenate([rng.normal(size=1500), rng.normal(8, 1, 900)]), rng.normal(size=3000)
    classes = np.repeat([0, 1], [1500, 900])
    compared = table_gates.held_out_ranks(own, classes, unseen, np.zeros(3000, int))
    numbers = {"num_forget": 2400, "correct_forget": 2000}
    assert compared["held_out_uncompared"] == 900
    assert originals.nothing_to_forget("indices:file", numbers, compared, 2) is None
    compared = table_gates.held_out_ranks(own[:1500], classes[:1500], unseen, np.zeros(3000, int))
    numbers = {"num_forget": 1500, "correct_forget": 1100}
    assert "does not know the 1500 examples" in originals.nothing_to_forget("indices:file", numbers, compared, 2)


def test_classes_and_wrong_labels_are_judged_otherwise():
    numbers = {"num_forget": 500, "correct_forget": 20}
    doubt = originals.nothing_to_forget("class:3", numbers, {}, 10)
    assert doubt is not None
    assert "gets 20 of the 500 examples to forget right, fewer than by guessing" in doubt
    assert originals.nothing_to_forget("identity:s1", {**numbers, "correct_forget": 60}, {}, 10) is None
    assert originals.nothing_to_forget("mislabelled:file", numbers, {}, 10) is None
