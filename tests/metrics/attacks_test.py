"""Membership inference: planted leaks, hand-computed features and the authors' traces."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import svm

from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import attacks


@pytest.mark.parametrize("attack", list(attacks.CLASSIFIERS))
def test_planted_leakage_is_found(attack):
    rng = np.random.default_rng(0)
    inside, outside = rng.uniform(0.9, 1.0, 400), rng.uniform(0.0, 0.6, 400)
    still_known = attacks.membership_inference(inside, outside, rng.uniform(0.9, 1.0, 100), attack=attack)
    forgotten = attacks.membership_inference(inside, outside, rng.uniform(0.0, 0.6, 100), attack=attack)
    half = attacks.membership_inference(inside, outside, np.repeat([0.95, 0.1], 50), attack=attack)
    assert (still_known.mia, forgotten.mia, half.mia) == (0.0, 100.0, 50.0)
    assert half.predictions.tolist() == [1] * 50 + [0] * 50
    assert half.predictions.dtype == np.int8


def test_attack_reads_several_features_together():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=(200, 2)), rng.normal(size=(200, 2))
    inside[:, 1], outside[:, 1] = inside[:, 0], -outside[:, 0]  # neither feature tells them apart alone
    targets = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    assert attacks.membership_inference(inside, outside, targets).predictions.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("features", [1, 4])
def test_the_attack_is_the_papers_whatever_the_spread_of_the_scores(features):
    """An RBF kernel with gamma of 1 over the number of features, and C of 3."""
    rng = np.random.default_rng(0)
    inside, outside, targets = rng.normal([[[0.5]], [[0.0]], [[0.2]]], 3.0, size=(3, 150, features))
    kernel = svm.SVC(C=3, gamma=1 / features, kernel="rbf").fit([*inside, *outside], [1] * 150 + [0] * 150)
    found = attacks.membership_inference(inside, outside, targets)
    np.testing.assert_array_equal(found.predictions, kernel.predict(targets))
    for other in [{"gamma": "scale", "C": 3}] + [{"gamma": 1 / features, "C": 1}] * (features > 1):
        assert np.any(svm.SVC(**other).fit([*inside, *outside], [1] * 150 + [0] * 150).predict(targets) != found[1])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (([], [0.1], [0.2]), "member_scores"),
        (([0.1], [0.2], [float("nan")]), "target_scores hold NaN"),
        (([[0.1, 0.2]], [0.3], [0.4]), "number of features"),
        (([[[0.1]]], [0.3], [0.4]), "shape"),
    ],
)
def test_unusable_scores_are_refused(scores, message):
    with pytest.raises(InputError, match=message):
        attacks.membership_inference(*map(np.array, scores))


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match="svc, logistic"):
        attacks.membership_inference([1.0], [0.0], [0.5], attack="oracle")
    with pytest.raises(InputError, match="confidence, entropy"):
        attacks.paper_mia(*example_sets(), feature="gossip", seed=0)
    with pytest.raises(InputError, match="'paper' or 'authors'"):
        attacks.modified_entropy(np.array([[0.5, 0.5]]), np.array([0]), mode="both")


def test_modified_entropy_by_hand():
    probs = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])
    labels = np.array([0, 2])
    right = -(0.3 * math.log(0.7) + 0.2 * math.log(0.8) + 0.1 * math.log(0.9))
    wrong = -(0.9 * math.log(0.1) + 0.7 * math.log(0.3) + 0.2 * math.log(0.8))
    np.testing.assert_allclose(attacks.modified_entropy(probs, labels), [right, wrong], atol=1e-12)
    # Both labels occur in the call, so both columns are "true" for both examples, which become equal.
    mixed = -(0.3 * math.log(0.7) + 0.2 * math.log(0.2) + 0.9 * math.log(0.1))
    np.testing.assert_allclose(attacks.modified_entropy(probs, labels, mode="authors"), [mixed, mixed], atol=1e-12)


def test_modified_entropy_of_the_authors_ignores_whose_label_is_whose():
    rng = np.random.default_rng(0)
    probs, labels = attacks.probabilities(rng.normal(size=(60, 4))), np.arange(60) % 4
    shuffled = rng.permutation(labels)
    authors = [attacks.modified_entropy(probs, order, mode="authors") for order in (labels, shuffled)]
    paper = [attacks.modified_entropy(probs, order) for order in (labels, shuffled)]
    np.testing.assert_array_equal(*authors)
    np.testing.assert_allclose(authors[0], -((1 - probs) * np.log(probs)).sum(axis=1), rtol=1e-5)
    assert np.abs(paper[0] - paper[1]).max() > 1


def test_modified_entropy_is_finite_and_orders_sure_and_right_before_sure_and_wrong():
    probs = np.array([[1.0, 0.0], [0.6, 0.4], [1.0, 0.0]], np.float32)
    values = attacks.modified_entropy(probs, np.array([0, 0, 1]))
    assert values[0] == 0
    assert np.isfinite(values).all()
    assert (np.diff(values) > 0).all()


def test_entropy_of_certainty_and_of_ignorance():
    values = attacks.entropy(np.array([[1.0, 0.0, 0.0, 0.0], [0.25] * 4]))
    np.testing.assert_allclose(values, [0.0, math.log(4)])
    assert not np.signbit(values).any()
    assert attacks.entropy(np.array([[1.0, 0.0]], np.float16)) == [0.0]


def test_features_refuse_labels_that_do_not_fit():
    for feature in (attacks.confidence, attacks.correctness, attacks.modified_entropy):
        with pytest.raises(InputError, match="shape"):
            feature(np.zeros((2, 3)), np.zeros(3, int))
        with pytest.raises(InputError, match="labels must be integers"):
            feature(np.zeros((2, 3)), np.array([0, 3]))


def logits_with_confidence(values):
    """Two-class logits whose label 1 has the given probability."""
    values = np.asarray(values)
    return np.stack([np.zeros_like(values), np.log(values / (1 - values))], axis=1), np.ones(len(values), int)


def example_sets(members=300, nonmembers=120, targets=80, seed=0):
    rng = np.random.default_rng(seed)
    return (
        *logits_with_confidence(rng.uniform(0.6, 0.99, members)),
        *logits_with_confidence(rng.uniform(0.2, 0.9, nonmembers)),
        *logits_with_confidence(rng.uniform(0.2, 0.99, targets)),
    )


def test_paper_mia_is_the_attack_on_a_balanced_sample(monkeypatch):
    seen = []
    genuine = attacks.membership_inference

    def spy(members, nonmembers, targets, *, attack):
        seen.append((len(members), len(nonmembers), len(targets), attack))
        return genuine(members, nonmembers, targets, attack=attack)

    monkeypatch.setattr(attacks, "membership_inference", spy)
    attacks.paper_mia(*example_sets(300, 120), seed=0)
    attacks.paper_mia(*example_sets(90, 120), seed=0)
    attacks.paper_mia(*example_sets(300, 120), max_size=50, seed=0)
    assert seen == [(120, 120, 80, "svc"), (90, 90, 80, "svc"), (50, 50, 80, "svc")]


def test_paper_mia_samples_by_seed_and_keeps_all_of_equal_sets():
    sets = example_sets(300, 120)
    assert attacks.paper_mia(*sets, max_size=20, seed=1) == attacks.paper_mia(*sets, max_size=20, seed=1)
    assert len({attacks.paper_mia(*sets, max_size=20, seed=seed) for seed in range(6)}) > 1
    members, _, nonmembers, _, targets, _ = sets = example_sets(100, 100)
    whole = attacks.membership_inference(
        *(attacks.confidence(x, np.ones(len(x), int)) for x in (members, nonmembers, targets))
    )
    assert {attacks.paper_mia(*sets, seed=seed) for seed in range(3)} == {whole.mia}


@pytest.mark.parametrize("feature", list(attacks.FEATURES))
def test_paper_mia_tells_a_remembered_from_a_forgotten_set(feature):
    sure, unsure = logits_with_confidence(np.full(100, 0.999)), logits_with_confidence(np.full(100, 0.3))
    assert attacks.paper_mia(*sure, *unsure, *sure, feature=feature, seed=0) == 0.0
    assert attacks.paper_mia(*sure, *unsure, *unsure, feature=feature, seed=0) == 100.0


def test_paper_mia_refuses_an_empty_sample():
    with pytest.raises(InputError, match="max_size"):
        attacks.paper_mia(*example_sets(), max_size=0, seed=0)


def test_cross_entropy_is_that_of_jax_and_survives_large_logits():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 7)), rng.integers(7, size=50)
    expected = -jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))[jnp.arange(50), labels]
    np.testing.assert_allclose(attacks.cross_entropy_per_example(logits, labels), expected, atol=1e-5)
    assert attacks.cross_entropy_per_example(np.array([[1e4, 0.0]], np.float32), np.array([1])) == [1e4]


def test_cross_entropy_of_the_authors_numbers(shared):
    with np.load(shared / "golden" / "shared" / "07_mia_loss.npz") as trace:
        for who in ("member", "nonmember"):
            losses = attacks.cross_entropy_per_example(trace[f"{who}_logits"], trace[f"{who}_labels"])
            np.testing.assert_allclose(losses, trace[f"{who}_loss"], atol=2e-6)


def test_the_attack_on_losses_takes_one_loss_for_each_example():
    one, two = np.linspace(0, 1, 30), np.ones((30, 2))
    for given in ((two, one, one), (one, two, one), (one, one, two)):
        with pytest.raises(InputError, match=r"must have shape \(N,\), got \(30, 2\)"):
            attacks.loss_mia(*given, seed=0)
