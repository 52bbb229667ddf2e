"""Attacks that come later give the numbers of attacks that were made at once."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from experiments import attacks as command
from scissorhands_jax import files
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import grid, late_attacks
from scissorhands_jax.jobs.experiment import Experiment, Scenario
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.metrics.row import SetPredictions, attack_numbers, attacked_examples

EXPERIMENT = Experiment(
    name="tiny",
    dataset="digits",
    model="mlp",
    model_options={"hidden": (16,)},
    train_limit=300,
    test_limit=100,
    training=RetrainSettings(epochs=2, learning_rate=0.2, milestones=(), batch_size=100),
    scenarios=(
        Scenario(
            name="random 10 %", forget=("random:0.1",), methods={"finetune": FinetuneSettings(epochs=1, batch_size=100)}
        ),
    ),
)
LATER = dataclasses.replace(EXPERIMENT, attack_later=True)
TIMES = ("seconds", "compile_seconds", "rte")


def filled(experiment, out):
    return grid.run_grid(experiment, out, seeds=[1], console=Console(quiet=True))


def untimed(document):
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in document["rows"]]
    return {"rows": rows, "gates": document["gates"]}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A table with its attacks, and the folder and the document of the same without."""
    folder = tmp_path_factory.mktemp("tables")
    return filled(EXPERIMENT, folder / "now"), folder / "later", filled(LATER, folder / "later")


def test_later_attacks_give_the_same_table(tables):
    now, folder, later = tables
    assert {row["mia"] for row in later["rows"]} == {row["avg_gap"] for row in later["rows"]} == {None}
    told = []
    attacked = late_attacks.with_attacks(later, lambda name: (folder / name).read_bytes(), told.append)
    assert untimed(json.loads(json.dumps(attacked))) == untimed(json.loads(json.dumps(now)))
    assert len(told) == 4
    again = late_attacks.with_attacks(attacked, lambda name: pytest.fail("it was attacked already"))
    assert untimed(again) == untimed(attacked)


def test_the_command_fills_in_tables_and_results_of_an_accelerator(tables, tmp_path):
    now, folder, later = tables
    out = tmp_path / "lent.json"
    parts = {"steps": {"table": "work", "result": {"results": []}}, "none": {"table": "work", "result": None}}
    out.write_text(json.dumps({"parts": {**parts, "table": {"table": "later", "result": later}}}))
    archives = command.Archives(out)
    archives.add("later", folder)
    assert command.main([str(out)]) == 0
    found = json.loads(out.read_text())["parts"]
    assert untimed(found["table"]["result"]) == untimed(json.loads(json.dumps(now)))
    assert {name: found[name] for name in parts} == parts
    whole, copy = untimed(json.loads(json.dumps(now))), tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert command.main([str(copy / "results.json")]) == 0
    assert untimed(json.loads((copy / "results.json").read_text())) == whole
    assert untimed(json.loads(json.dumps(filled(LATER, copy)))) == whole, "the table that goes on keeps its attacks"

    cell = copy / "cells" / "random_10_percent-seed1-finetune.json"
    other = json.loads(cell.read_text()) | {"network": "0", "metrics": {"acc_forget": 1.0}}
    cell.write_text(json.dumps(other))
    assert command.main([str(copy / "results.json")]) == 0
    assert json.loads(cell.read_text()) == other, "a cell of another network stays"


def test_the_command_does_not_write_beside_another_process(tables, capsys):
    _, folder, _ = tables
    before = (folder / "results.json").read_bytes()
    with files.sole_writer(folder):
        assert command.main([str(folder / "results.json")]) == 2
    assert "is being written to by" in capsys.readouterr().err
    assert (folder / "results.json").read_bytes() == before


def test_runs_that_diverged_are_still_counted(tables):
    _, folder, later = tables
    failure = {"scenario": "random 10 %", "seed": 2, "method": "finetune", "failure": "it diverged", "code": None}
    attacked = late_attacks.with_attacks({**later, "failures": [failure]}, lambda name: (folder / name).read_bytes())
    assert {row["method"] for row in attacked["rows"] if row.get("lost_runs") == 1} == {"finetune"}


def test_the_command_says_what_is_wrong_with_predictions(tables, tmp_path, capsys):
    _, _, later = tables
    (tmp_path / "predictions").mkdir()
    (tmp_path / "results.json").write_text(json.dumps(later))
    (tmp_path / late_attacks.predictions_name("random 10 %", 1, "finetune")).write_bytes(b"damaged")
    assert command.main([str(tmp_path / "results.json")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "finetune.npz holds no predictions" in told
    assert "holds no results of tables" not in told
    (tmp_path / "results.json").write_text("{}")
    assert command.main([str(tmp_path / "results.json")]) == 2
    assert "holds no results of tables" in " ".join(capsys.readouterr().err.split())


def test_networks_without_predictions_stay_as_they_are(tables):
    _, _, later = tables
    assert untimed(late_attacks.with_attacks(later, lambda name: None)) == untimed(later)


def test_predictions_of_another_network_and_damaged_ones_are_refused(tables):
    _, folder, later = tables
    name = late_attacks.predictions_name("random 10 %", 1, "finetune")
    other = (folder / name).read_bytes()
    with pytest.raises(InputError, match="is of the network"):
        late_attacks.with_attacks(later, lambda name: other)
    with pytest.raises(InputError, match="holds no predictions"):
        late_attacks.with_attacks(later, lambda name: other[:100])


@pytest.mark.parametrize("sizes", [(30, 200, 80), (30, 80, 200), (5, 20, 20)])
def test_the_examples_that_are_kept_give_the_same_attacks(sizes, monkeypatch):
    draw = np.random.default_rng(0)
    found = {
        name: SetPredictions(draw.normal(size=(size, 4)).astype(np.float32), {"label": draw.integers(0, 4, size)})
        for name, size in zip(("forget", "retain", "test"), sizes, strict=True)
    }
    kept = attacked_examples(found, seed=3)
    assert len(kept["retain"].outputs) == len(kept["test"].outputs) == min(sizes[1:])
    whole, part = (attack_numbers(which, seed=3, every_attack=True) for which in (found, kept))
    assert whole == part
    assert len(whole) == 6


def test_archives_stay_small_and_hold_the_last_of_each_network(tmp_path, monkeypatch):
    out, folder = tmp_path / "lent.json", tmp_path / "table"
    monkeypatch.setattr(command, "LARGEST", 250)
    (folder / "predictions").mkdir(parents=True)
    contents = {f"predictions/{name}.npz": name.encode() * 100 for name in "abcde"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        command.Archives(out).add("table", folder)
    paths = sorted(tmp_path.glob("lent-predictions-*.zip"))
    assert [path.name for path in paths] == [f"lent-predictions-{number}.zip" for number in (1, 2, 3)]
    before = [path.stat().st_mtime_ns for path in paths]
    archives = command.Archives(out)
    archives.add("table", folder)
    assert [path.stat().st_mtime_ns for path in paths] == before, "nothing is new"
    (folder / "predictions/a.npz").write_bytes(b"A" * 100)
    archives.add("table", folder)
    found = command.Archives(out)
    assert found.read("table", "predictions/a.npz") == b"A" * 100
    assert all(found.read("table", name) == contents[name] for name in list(contents)[1:])
    assert found.read("other", "predictions/a.npz") is None


def test_other_files_are_refused_in_a_sentence(tmp_path, capsys):
    path = tmp_path / "x.json"
    for content in ("[]", "{}", "no"):
        path.write_text(content)
        assert command.main([str(path)]) == 2
        assert "holds no results of tables" in " ".join(capsys.readouterr().err.split())
