"""The tables of regression and sequences, made small: their data are read as they are, and each table is filled."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import own_tasks
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import search
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings

SPEAKERS = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files in the forms of aeon: utterances of nine speakers, and yearly series."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "JapaneseVowels").mkdir()
    for part, repeats in (("TRAIN", 12), ("TEST", 3)):
        lines = ["@problemName x", "@data"]
        for number in range(SPEAKERS * repeats):
            steps = rng.normal(size=(12, 7 + number % 23))
            lines.append(":".join([*(",".join(f"{v:.3f}" for v in row) for row in steps), str(1 + number % SPEAKERS)]))
        (folder / "JapaneseVowels" / f"JapaneseVowels_{part}.ts").write_text("\n".join(lines) + "\n")
    (folder / "m1_yearly_dataset").mkdir()
    series = [
        ",".join(f"{v:.2f}" for v in 50 * np.exp(0.3 * rng.normal(size=15 + number % 9))) for number in range(181)
    ]
    text = "@data\n" + "\n".join(f"T{number}:1972-01-01:{values}" for number, values in enumerate(series))
    (folder / "m1_yearly_dataset" / "m1_yearly_dataset.tsf").write_text(text)
    return folder


def small(name):
    """The subject of a table with one method, and networks that are hardly trained."""

    def make(data_dir):
        subject = own_tasks.SUBJECTS[name](data_dir)
        (scenario,) = subject.experiment.scenarios
        method = {"finetune": FinetuneSettings(epochs=1, batch_size=256, weight_decay=0.0)}
        training = RetrainSettings(epochs=1, batch_size=256, learning_rate=0.02, milestones=(), weight_decay=0.0)
        scenarios = (dataclasses.replace(scenario, methods=method),)
        experiment = dataclasses.replace(subject.experiment, scenarios=scenarios, training=training)
        return subject._replace(experiment=experiment)

    return make


@pytest.mark.parametrize(("name", "metric"), [("diabetes", "rmse"), ("m1_yearly", "rmse")])
def test_a_small_table_is_filled_from_the_files(name, metric, folder, tmp_path, monkeypatch):
    subject = small(name)(folder)
    monkeypatch.setattr(own_tasks, "SUBJECTS", {name: lambda data_dir: subject})
    monkeypatch.setattr(own_tasks, "SEEDS", (0,))
    assert own_tasks.main(["run", name, "--data-dir", str(folder), "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / name / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} >= {"original", "retrain", "finetune"}
    assert all(np.isfinite(row[f"{metric}_forget"]) for row in rows)


def test_sequences_keep_their_steps_and_forecasts_their_years(folder):
    train = own_tasks.japanese_vowels(folder).own.train
    assert train["sequence"].shape == (108, 29, 12)
    assert train["mask"].sum(axis=1)[:3].tolist() == [7, 8, 9]
    assert not train["sequence"][~train["mask"]].any()
    assert sorted(set(train["label"].tolist())) == list(range(9))
    values = np.arange(1.0, 21.0)
    cut = own_tasks._windows([values], np.array([0]))
    # Forecasts begin after 6, 12 and 18 years; the last one is of two years.
    assert cut["known"].sum(axis=1).tolist() == [6, 12, 12]
    assert cut["mask"].sum(axis=1).tolist() == [6, 6, 2]
    np.testing.assert_allclose(np.exp(cut["label"][2, :2]) * values[6:18].mean(), [19, 20], rtol=1e-5)
    np.testing.assert_allclose(np.exp(cut["past"][0, 6:]) * values[:6].mean(), values[:6], rtol=1e-5)


def test_missing_files_are_named(tmp_path, capsys):
    with pytest.raises(InputError, match="needs --data-dir and the folder"):
        own_tasks.japanese_vowels(None)
    assert own_tasks.main(["run", "m1_yearly", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "m1_yearly_dataset.tsf cannot be read (No such file or directory)" in capsys.readouterr().err
    assert jax.tree.leaves(own_tasks.diabetes(None).own.train)[0].shape == (342, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "diabetes", "japanese_vowels"], "needs --data-dir"),
        (["tune", "diabetes", "--only", "scisorhands"], "matches none of finetune"),
    ],
)
def test_nothing_is_computed_before_all_names_are_known(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(own_tasks.grid, "run_grid", lambda *arguments, **options: pytest.fail("it fills a table"))
    monkeypatch.setattr(own_tasks, "tuned", lambda *arguments: pytest.fail("it tunes"))
    assert own_tasks.main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_what_was_tuned_is_not_tuned_again_and_says_what_made_it(tmp_path, monkeypatch, capsys):
    tuned = []

    def made(subject, label, folder, console):
        tuned.append(label)
        trial = search.Trial(changes={"learning_rate": 0.5}, score=1.0, numbers={}, observed={}, seconds=1.0)
        return search.SearchResult(FinetuneSettings(), trial, [trial])

    monkeypatch.setattr(own_tasks, "tuned", made)
    command = ["tune", "diabetes", "--only", "^finetune$", "--out", str(tmp_path)]
    for arguments, count in (([], 1), ([], 1), (["--overwrite"], 2)):
        assert own_tasks.main([*command, *arguments]) == 0
        assert len(tuned) == count
    assert "diabetes, finetune: learning_rate=0.5" in capsys.readouterr().err
    document = json.loads((tmp_path / "diabetes-tuning" / "finetune.json").read_text())
    assert document["best"]["changes"] == {"learning_rate": 0.5}
    assert document["made_by"]["code"] in document["code"]
    monkeypatch.setattr(own_tasks, "TRIALS", own_tasks.TRIALS + 1)
    assert own_tasks.main(command) == 2
    assert "budget was 8 and is now 9" in " ".join(capsys.readouterr().err.split())
