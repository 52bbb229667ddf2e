"""Rates of the demonstration's methods: every method has the same trials, which are made once."""

import dataclasses
import json

import pytest

from experiments import facts_rates
from scissorhands_jax.errors import InputError, NonFiniteError
from scissorhands_jax.language.demo.forgetting import Forgotten
from scissorhands_jax.language.demo.settings import UNLEARNED
from scissorhands_jax.terminal import Console
from tests.language.demo.demo_test import TINY

QUIET = Console(quiet=True)
BEFORE = {"probability_forget": 99.0, "probability_retain": 99.0, "probability_validation": 1.0, "loss_distance": 90.0}


def test_trials_are_made_once_and_the_best_rate_of_each_method_is_chosen(tmp_path, monkeypatch):
    asked = []

    def forget(settings, scene, network, name):
        rate = getattr(settings.unlearning, f"{name}_rate")
        asked.append((name, rate))
        if rate == 1.0:
            raise NonFiniteError(1, "a weight", float("nan"), "lower the rate")
        return Forgotten({"rate": rate}, {}, 1, 0.0)

    def numbers(scene, network):
        rate = network[0].get("rate")
        return BEFORE if rate is None else {**BEFORE, "loss_distance": 100 * abs(rate - 0.1)}

    monkeypatch.setattr(facts_rates, "forget_people", forget)
    monkeypatch.setattr(facts_rates, "train_facts", lambda *arguments, **options: ({}, {}))
    monkeypatch.setattr(facts_rates, "_numbers", numbers)
    out = tmp_path / "rates.json"
    facts_rates.fill(TINY, [0.01, 1.0], out, QUIET)
    found = facts_rates.fill(TINY, [0.01, 0.1, 1.0], out, QUIET)
    assert sorted(asked) == sorted((name, rate) for name in UNLEARNED for rate in (0.01, 0.1, 1.0))
    assert found["chosen"] == dict.fromkeys(UNLEARNED, 0.1)
    assert [trial["score"] for trial in found["trials"] if trial["rate"] == 1.0] == [None] * 3
    written = json.loads(out.read_text())
    assert written["chosen"] == found["chosen"]
    assert written["original"] == BEFORE
    with pytest.raises(InputError, match=r"has results of other settings: settings.seed was \d+ and is now 5"):
        facts_rates.fill(dataclasses.replace(TINY, seed=5), [0.1], out, QUIET)
    kept = out.read_bytes()
    monkeypatch.setattr(facts_rates, "_numbers", lambda *arguments: {**BEFORE, "loss_distance": 89.0})
    with pytest.raises(InputError, match="has trials of another original"):
        facts_rates.fill(TINY, [0.2], out, QUIET)
    assert out.read_bytes() == kept
    assert facts_rates.fill(TINY, [0.2], out, QUIET, overwrite=True)["original"]["loss_distance"] == 89.0
