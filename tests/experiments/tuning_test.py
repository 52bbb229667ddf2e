"""`python -m experiments.tuning`: settings with and without an oracle."""

import json

import numpy as np

from experiments import tuning


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
