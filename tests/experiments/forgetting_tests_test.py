"""The simulation of tests of forgetting, made small, and what is committed of it."""

import json
from pathlib import Path

import numpy as np

from experiments import forgetting_tests
from scissorhands_jax.language.calibration import DISTANCE_HOLDS


def test_results_have_every_number_and_say_what_made_them(tmp_path, monkeypatch):
    monkeypatch.setattr(forgetting_tests, "scenarios", lambda: {"tiny": {"retrained": 3, "questions": 20}})
    forgetting_tests.main(["--out", str(tmp_path / "found.json"), "--repeats", "3"])
    document = json.loads((tmp_path / "found.json").read_text())
    assert set(document["simulations"]["tiny"]["rejected"]) == set(forgetting_tests.TESTS)
    assert {"versions", "machine", "made_by"} <= set(document)


def test_networks_that_know_more_are_nearer_to_the_original():
    generator = np.random.default_rng(0)
    distances = []
    for knowledge in (0.0, 0.5, 1.0):
        unlearned, retrained, original = forgetting_tests.made_up_networks(
            generator, retrained=3, questions=400, knowledge=knowledge
        )
        assert retrained.shape == (3, 400)
        distances.append(np.abs(unlearned - original).mean())
    assert distances == sorted(distances, reverse=True)


def test_the_committed_simulation_holds_its_level_and_finds_a_tenth_of_the_knowledge():
    path = Path(forgetting_tests.__file__).parent / "results" / "forgetting_tests.json"
    document = json.loads(path.read_text())
    found = document["simulations"]
    assert set(found) == set(forgetting_tests.scenarios())
    for name, one in found.items():
        if ", alike" in name:
            assert one["rejected"]["calibrated"] < 0.09, name
            assert one["rejected"]["calibrated without the original"] < 0.11, name
            assert max(one["rejected"][part] for part in ("shift", "share")) < 0.07, name
    held = [100 * (1 - one["rejected"]["distance"]) for name, one in found.items() if ", alike" in name]
    assert (round(min(held)), round(max(held))) == DISTANCE_HOLDS
    assert found["10 retrained, 400 questions, knows 10 %"]["rejected"]["calibrated"] > 0.8
    assert found["5 retrained, 400 questions, right distribution, wrong answers"]["rejected"]["calibrated"] > 0.9
