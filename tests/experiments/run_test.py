"""`python -m experiments.run` on the smallest configurations."""

import json

import pytest

from experiments import run
from scissorhands_jax import report

TINY = ["training.epochs=1", "train_limit=200", "test_limit=100", "relearn_epochs=0", "training.milestones=none"]


TINY += ["every_attack=false"]


def test_a_table_is_run_and_continued(tmp_path, capsys):
    arguments = ["--config", "demo", "--seeds", "1", "--out", str(tmp_path / "out"), "--only", "^finetune$", *TINY]
    assert run.main(arguments) == 0
    assert "one class" in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["method"] for row in document["rows"]] == ["original", "retrain", report.REDRAWN, "finetune"] * 2
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    assert run.main(arguments) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"] == document["rows"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nothing"], "there is no configuration 'nothing'"),
        (["--config", "demo", "--seeds", "1,x"], "--seeds must be numbers with commas between them, got '1,x'"),
        (["--config", "demo", "training.epoch=2"], "there is no setting 'training.epoch'"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, message):
    assert run.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_small_real_table(tmp_path, shared):
    """The references only, because every method would compile its own step; `grid_test.py` has methods."""
    arguments = ["--config", "cifar10_small", "--seeds", "0", "--data-dir", str(shared / "data"), "--only", "^$"]
    tiny = [*(text for text in TINY if "limit" not in text), "train_limit=100", "test_limit=50"]
    assert run.main([*arguments, "--out", str(tmp_path / "out"), *tiny]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["original", "retrain", report.REDRAWN]
    assert (tmp_path / "out" / "gradcam.png").read_bytes().startswith(b"\x89PNG")
    assert all(0 <= row["acc_test"] <= 100 for row in rows)
