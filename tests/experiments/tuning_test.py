"""`python -m experiments.tuning`: settings with and without an oracle."""

import json

import numpy as np
import pytest

from experiments import tuning
from scissorhands_jax import files
from scissorhands_jax.errors import DivergedError
from scissorhands_jax.jobs import search
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings
from scissorhands_jax.report import provenance


def test_tuning_beside_the_oracle(tmp_path):
    out = tmp_path / "tuning.json"
    small = ["training.epochs=2", "train_limit=300", "test_limit=100", "validation_share=0.3"]
    arguments = ["--config", "demo", "--seeds", "0", "--trials", "3", "--networks", str(tmp_path / "n")]
    assert tuning.main([*arguments, "--out", str(out), *small]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    gaps = [trial["observed"]["avg_gap"] for trial in row["trials"]]
    scores = [trial["score"] for trial in row["trials"]]
    assert row["gap"]["tuned with oracle"] == min(gaps)
    assert row["gap"]["tuned without oracle"] == gaps[int(np.argmin(scores))]
    assert row["gap"]["default settings"] == gaps[0]


def test_two_processes_do_not_write_one_file(tmp_path, capsys):
    out = tmp_path / "tuning.json"
    with files.sole_writer(tmp_path, of=out.name):
        assert tuning.main(["--config", "demo", "--networks", str(tmp_path / "n"), "--out", str(out)]) == 2
    assert "is being written to by" in capsys.readouterr().err
    assert not out.exists()


def test_tuning_continues_and_may_begin_with_the_defaults(tmp_path, capsys):
    out = tmp_path / "tuning.json"
    small = ["training.epochs=1", "train_limit=200", "test_limit=50", "validation_share=0.3", "every_attack=false"]
    arguments = ["--config", "demo", "--trials", "1", "--networks", str(tmp_path / "n"), "--out", str(out), *small]
    assert tuning.main([*arguments, "--seeds", "0", "--from-defaults"]) == 0
    first = json.loads(out.read_text())
    defaults = ScissorhandsSettings()
    changes = first["rows"][0]["best"]["changes"]
    assert changes["learning_rate"] == defaults.learning_rate != 0.05  # the demonstration's
    assert changes["fraction"] == defaults.fraction
    assert tuning.main([*arguments, "--seeds", "0,1", "--from-defaults"]) == 0
    document = json.loads(out.read_text())
    assert document["rows"][0] == first["rows"][0]  # with its seconds: it was not computed again
    assert [row["seed"] for row in document["rows"]] == [0, 1]
    assert tuning.main([*arguments, "--seeds", "0"]) == 2
    assert "holds trials with another from_defaults; remove it, or name another file" in capsys.readouterr().err
    assert tuning.main([*arguments, "--seeds", "0", "--from-defaults", "--without-oracle"]) == 2
    assert "holds trials with another without_oracle" in capsys.readouterr().err
    earlier = {name: value for name, value in document.items() if name != "without_oracle"}  # by code before it
    out.write_text(json.dumps(earlier))
    assert tuning.main([*arguments, "--seeds", "0,1", "--from-defaults"]) == 0
    assert json.loads(out.read_text()) == earlier


def test_without_an_oracle_no_network_is_retrained_and_a_killed_run_continues_with_its_trials(tmp_path, monkeypatch):
    small = ["training.epochs=1", "train_limit=200", "test_limit=50", "validation_share=0.3", "every_attack=false"]
    out, networks = tmp_path / "tuning.json", tmp_path / "n"
    run = ["--config", "demo", "--seeds", "0", "--trials", "3", "--without-oracle", "--networks", str(networks)]

    class Killed(BaseException):
        pass

    def keep(self, begun, whole=tuning._Tunings.keep):
        whole(self, begun)
        if len(begun["trials"]) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(tuning._Tunings, "keep", keep)
        with pytest.raises(Killed):
            tuning.main([*run, "--out", str(out), *small])
    begun = json.loads(out.read_text())
    assert begun["rows"] == []
    assert tuning.main([*run, "--out", str(out), "--only", "^finetune$", *small]) == 0
    document = json.loads(out.read_text())
    assert [row["method"] for row in document["rows"]] == ["finetune"]
    assert document["begun"] == begun["begun"], "another method leaves what was begun"
    out.write_text(json.dumps(document | {"rows": [], "begun": begun["begun"][0]}))  # as earlier versions have it
    assert tuning.main([*run, "--out", str(out), *small]) == 0
    assert tuning.main([*run, "--out", str(tmp_path / "whole.json"), *small]) == 0
    (row,), (whole,) = (json.loads(path.read_text())["rows"] for path in (out, tmp_path / "whole.json"))
    assert row["trials"][:2] == begun["begun"][0]["trials"]  # with their seconds: they were not made again
    assert [trial["score"] for trial in row["trials"]] == [trial["score"] for trial in whole["trials"]]
    assert not any(trial["observed"] for trial in row["trials"])
    assert "gap" not in row
    assert {folder.name.partition("-")[0] for folder in networks.iterdir()} == {"original"}
    assert "begun" not in json.loads(out.read_text())


def test_a_method_whose_trials_all_diverge_has_a_row_and_the_next_one_is_tuned(tmp_path, monkeypatch, capsys):
    """What a table of trials is made of is said by each: its code, the original that it began with, its forget set."""
    small = ["training.epochs=1", "train_limit=200", "test_limit=50", "validation_share=0.3", "every_attack=false"]
    out = tmp_path / "tuning.json"
    run = ["--config", "demo", "--seeds", "0", "--without-oracle", "--networks", str(tmp_path / "n")]
    run += ["--out", str(out), *small, "--only"]
    calls, true_run = [], search.run

    def diverging(method, *parts, **more):
        calls.append(method)
        if len(calls) <= 2:
            raise DivergedError("nan")
        return true_run(method, *parts, **more)

    monkeypatch.setattr(search, "run", diverging)
    assert tuning.main([*run, "finetune|scissorhands", "--trials", "2"]) == 0
    first, second = json.loads(out.read_text())["rows"]
    assert (first["best"], [trial["score"] for trial in first["trials"]]) == (None, [None, None])
    assert second["best"]["score"] is not None
    assert "all 2 trials diverged" in capsys.readouterr().err
    code = provenance.running_code().name
    assert {trial["code"] for row in (first, second) for trial in row["trials"]} == {code}
    assert first["original"] == second["original"]

    document = json.loads(out.read_text())
    assert document["code"] == f"All cells were made by {code}."
    del first["trials"][0]["code"]
    out.write_text(json.dumps(document | {"rows": [first, second]}))
    assert tuning.main([*run, first["method"], "--trials", "2"]) == 0  # nothing is left to do
    assert tuning.main([*run, second["method"], "--trials", "3"]) == 0
    assert "made by 2 states of the code" in json.loads(out.read_text())["code"]
    assert "commit not recorded" in json.loads(out.read_text())["code"]

    document = json.loads(out.read_text())
    for change, message in (
        ({"original": "0" * 64}, "holds results of seed 0 from another original"),
        ({"forget_sha256": "0" * 64}, "holds results of seed 0 of another forget set"),
    ):
        out.write_text(json.dumps(document | {"rows": [first | change]}))
        assert tuning.main([*run, second["method"], "--trials", "3"]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    out.write_text(json.dumps(document | {"data_sha256": {}}))
    assert tuning.main([*run, second["method"], "--trials", "3"]) == 2
    assert "holds trials with another data_sha256" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "tuning needs at least 1 trial, got 0"),
        (["--near", "0.5"], "a factor above 1"),
        (["--only", "salum"], "'salum' matches none of finetune, "),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_a_network_is_trained(tmp_path, capsys, arguments, message):
    run = ["--config", "demo", "--networks", str(tmp_path / "n"), "--out", str(tmp_path / "tuning.json")]
    assert tuning.main([*run, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fewer", [1, 2])
def test_a_larger_budget_adds_trials_to_those_that_were_made(fewer, tmp_path, monkeypatch, capsys):
    small = ["training.epochs=1", "train_limit=200", "test_limit=50", "validation_share=0.3", "every_attack=false"]
    run = ["--config", "demo", "--only", "^(scissorhands|finetune)$", "--seeds", "0", "--without-oracle"]
    run += ["--networks", str(tmp_path / "n"), *small, "--out"]

    def rows(out):
        return json.loads(out.read_text())["rows"]

    def choices(out):
        return [[(trial["changes"], trial["score"]) for trial in row["trials"]] for row in rows(out)]

    counted, measure = [], search.measure_trial
    monkeypatch.setattr(search, "measure_trial", lambda *parts, **more: counted.append(1) or measure(*parts, **more))
    out, whole = tmp_path / "tuning.json", tmp_path / "whole.json"
    assert tuning.main([*run, str(out), "--trials", str(fewer)]) == 0
    assert len(counted) == 1 + 2 * fewer, "the original is measured once for all methods"
    before = rows(out)
    assert tuning.main([*run, str(out), "--trials", "4"]) == 0
    assert tuning.main([*run, str(whole), "--trials", "4"]) == 0
    assert [row["trials"][:fewer] for row in rows(out)] == [row["trials"] for row in before]
    assert choices(out) == choices(whole)
    assert [row["method"] for row in rows(out)] == [row["method"] for row in before]
    assert [row["best"] for row in rows(out)] == [min(row["trials"], key=lambda one: one["score"]) for row in rows(out)]
    capsys.readouterr()
    assert tuning.main([*run, str(out), "--trials", str(fewer)]) == 2
    assert "is of a search of 4 trials; ask for at least as many" in capsys.readouterr().err
    earlier = {name: value for name, value in json.loads(out.read_text()).items() if name != "trials"}  # by older code
    out.write_text(json.dumps(earlier))
    assert tuning.main([*run, str(out), "--trials", "4"]) == 2
    assert "holds trials with another trials; remove it" in capsys.readouterr().err


def test_a_search_may_stay_near_what_it_begins_with(tmp_path, capsys):
    small = ["training.epochs=1", "train_limit=200", "test_limit=50", "validation_share=0.3", "every_attack=false"]
    run = ["--config", "demo", "--seeds", "0", "--trials", "3", "--without-oracle", "--networks", str(tmp_path / "n")]
    run += ["--out", str(tmp_path / "tuning.json"), *small]
    assert tuning.main([*run, "--near", "1.5"]) == 0
    document = json.loads((tmp_path / "tuning.json").read_text())
    assert document["near"] == 1.5
    first, *others = (trial["changes"] for trial in document["rows"][0]["trials"])
    for other in others:
        assert set(other) == set(first) == {"fraction", "forget_weight", "learning_rate"}
        assert all(value / 1.51 <= other[name] <= value * 1.51 for name, value in first.items())
    assert others[0] != first
    assert tuning.main(run) == 2
    assert "holds trials with another near" in capsys.readouterr().err
    assert tuning.main([*run[: -len(small) - 1], str(tmp_path / "other.json"), *small, "--near", "1"]) == 2
    assert "a factor above 1" in capsys.readouterr().err
