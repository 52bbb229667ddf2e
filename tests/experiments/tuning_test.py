"""`python -m experiments.tuning`: settings with and without an oracle."""

import json

import numpy as np
import pytest

from experiments import tuning
from scissorhands_jax import files
from scissorhands_jax.jobs import search
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings


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

    def write(path, about, rows, begun=None, whole=tuning._write):
        whole(path, about, rows, begun)
        if begun and len(begun["trials"]) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_write", write)
        with pytest.raises(Killed):
            tuning.main([*run, "--out", str(out), *small])
    begun = json.loads(out.read_text())
    assert begun["rows"] == []
    assert tuning.main([*run, "--out", str(out), *small]) == 0
    assert tuning.main([*run, "--out", str(tmp_path / "whole.json"), *small]) == 0
    (row,), (whole,) = (json.loads(path.read_text())["rows"] for path in (out, tmp_path / "whole.json"))
    assert row["trials"][:2] == begun["begun"]["trials"]  # with their seconds: they were not made again
    assert [trial["score"] for trial in row["trials"]] == [trial["score"] for trial in whole["trials"]]
    assert not any(trial["observed"] for trial in row["trials"])
    assert "gap" not in row
    assert {folder.name.partition("-")[0] for folder in networks.iterdir()} == {"original"}
    assert "begun" not in json.loads(out.read_text())


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
