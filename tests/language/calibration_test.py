"""The calibrated test: exact where it should be, and refused where it cannot be made."""

import io
import types

import numpy as np
import pytest
from scipy import stats

from scissorhands_jax.errors import InputError
from scissorhands_jax.language.calibration import calibrated_test
from scissorhands_jax.language.judgement_report import _calibrated_table
from scissorhands_jax.terminal import Console


@pytest.fixture
def networks():
    generator = np.random.default_rng(0)
    questions = generator.normal(0, 1, 60)
    original = questions - 1
    return [questions + generator.normal(0, 0.1, 60) for _ in range(6)], original


def test_the_shift_is_students_prediction_interval(networks):
    (unlearned, *retrained), original = networks
    found = calibrated_test(unlearned, retrained, original)
    means = np.mean(retrained, axis=1)
    error = means.std(ddof=1) * np.sqrt(1 + 1 / 5)
    assert found.shift.value == pytest.approx(unlearned.mean() - means.mean())
    assert found.shift.p == pytest.approx(2 * stats.t.sf(abs(unlearned.mean() - means.mean()) / error, 4))
    assert found.shift.high == -found.shift.low == pytest.approx(stats.t.ppf(0.975, 4) * error)
    assert (found.retrained, found.questions) == (5, 60)
    assert found.p == pytest.approx(min(1, 3 * min(found.shift.p, found.share.p, found.distance.p)))
    assert calibrated_test(unlearned, retrained).share is None


def test_the_share_is_what_was_put_back_and_unbiased():
    generator = np.random.default_rng(1)
    shares = {0.0: [], 0.4: [], -0.5: []}
    for known, found in shares.items():
        for _ in range(120):
            unlearned, *retrained = generator.normal(0, 0.5, (4, 30))
            test = calibrated_test(unlearned - known, retrained, np.full(30, -1.0))
            found.append(test.share.value * (1 + 0.25 / 3))  # the noise of the mean makes the direction longer
    for known, found in shares.items():
        assert np.mean(found) == pytest.approx(known, abs=4 * np.std(found) / np.sqrt(120) + 0.02)


def test_answers_that_differ_in_any_direction_are_found(networks):
    (unlearned, *retrained), _ = networks
    other = unlearned.reshape(2, 30)[::-1].ravel()  # the same numbers for other questions
    assert calibrated_test(unlearned, retrained).distance.p > 0.05
    assert calibrated_test(other, retrained).distance.p < 0.001


def test_what_cannot_be_tested_is_refused(networks):
    (unlearned, *retrained), original = networks
    bad = np.where(np.arange(60) == 3, np.inf, unlearned)
    for arguments, message in [
        ((unlearned, retrained[:2]), "has 2 retrained networks"),
        ((unlearned[:50], retrained), "have the shapes"),
        ((unlearned, retrained, original[:50]), "have the shapes"),
        ((unlearned[:1], np.array(retrained)[:, :1]), "two or more questions"),
        ((bad, retrained), "not finite"),
        ((unlearned, [*retrained, retrained[1]]), "networks 2 and 6 answer alike"),
        ((retrained[0], retrained), "is one of the retrained networks"),
        ((unlearned, retrained, np.mean(retrained, axis=0)), "the original answers like"),
    ]:
        with pytest.raises(InputError, match=message):
            calibrated_test(*arguments)


def test_the_range_of_the_distance_says_how_many_networks_it_holds(networks):
    (unlearned, *retrained), original = networks
    console = Console(file=io.StringIO(), width=120)
    judged = types.SimpleNamespace(calibrated_test={"geometric": calibrated_test(unlearned, retrained, original)})
    console.print(_calibrated_table(judged))
    said = {line.strip(" │┃|").split("  ")[0]: line for line in console.file.getvalue().splitlines()}
    assert "(87 to 96 % in simulations)" in said["distance, log"]
    assert "simulations" not in said["shift, nats"]
