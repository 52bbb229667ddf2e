"""The configuration of an earlier run reads back as it was, and what describes no run is refused."""

import dataclasses
import json

import pytest

from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import earlier_runs
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.methods import METHODS


def config(method="scissorhands", **changes):
    return RunConfig(
        model="mlp", dataset="digits", forget="random:0.1", method_name=method, method=METHODS[method](**changes)
    )


def test_a_run_reads_back_as_it_was(tmp_path):
    job = dataclasses.replace(config("retrain", milestones=(2, 3)), model_options={"remat": True})
    for document in ({"config": dataclasses.asdict(job), "rows": []}, {**dataclasses.asdict(job), "sha256": ""}):
        file = tmp_path / "run.json"
        file.write_text(json.dumps(document))
        assert earlier_runs.read_run_config(file) == job


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file"),
        ("[]", "does not describe an unlearning run"),
        ('{"config": {"model": "mlp"}}', "does not describe an unlearning run"),
        (json.dumps(dataclasses.asdict(config()) | {"method_name": "magic"}), "has the method 'magic'"),
        (json.dumps(dataclasses.asdict(config()) | {"method": {"spell": 1}}), "has the setting 'spell'"),
    ],
)
def test_files_that_describe_no_run_are_refused(tmp_path, text, message):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InputError, match=message):
        earlier_runs.read_run_config(tmp_path / "file.json")
