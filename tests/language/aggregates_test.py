"""Aggregates of evaluation logs against numbers worked out by hand."""

import pytest

from scissorhands_jax.language.aggregates import privacy_leakage


@pytest.mark.parametrize(
    ("auc", "reference", "percent"),
    [
        (0.5, 0.5, 0.0),
        (1.0, 0.5, -100.0),
        (0.0, 0.5, 100.0),
        (0.75, 0.5, -50.0),
        (0.75, 0.2, -68.75),
        (0.1, 0.8, 350.0),
    ],
)
def test_privleak_is_the_change_of_the_error_of_an_attack(auc, reference, percent):
    assert privacy_leakage(auc, reference) == pytest.approx(percent, abs=1e-6)
