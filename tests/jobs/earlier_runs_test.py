"""The configuration of an earlier run reads back as it was, and what describes no run is refused."""

import dataclasses
import json

import numpy as np
import pytest

from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import earlier_runs
from scissorhands_jax.jobs.config import NetworkConfig, RunConfig
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


def test_a_network_was_not_trained_on_what_is_held_out_for_testing(tmp_path):
    network = NetworkConfig(model="mlp", dataset="npz:own.npz")
    assert earlier_runs.past_of(network, 6, "", np.array([1, 4])).trained_on.tolist() == [0, 2, 3, 5]
    (tmp_path / "seen").write_text("0\n1\n2\n")
    network = dataclasses.replace(network, trained_on=str(tmp_path / "seen"))
    assert earlier_runs.past_of(network, 6, "", np.array([4])).trained_on.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"1 of the examples in .*seen are held out for testing, the first is 1"):
        earlier_runs.past_of(network, 6, "", np.array([1, 4]))


def test_what_was_forgotten_can_be_said_next_to_what_was_trained_on(tmp_path):
    """Together they stand for what a run would have saved, as in a ledger."""
    files = {name: tmp_path / name for name in ("trained_on", "forgotten_before")}
    files["trained_on"].write_text("0\n2\n3\n")
    files["forgotten_before"].write_text("5\n4\n")
    network = NetworkConfig(model="mlp", dataset="npz:own.npz", **{name: str(path) for name, path in files.items()})
    found = earlier_runs.past_of(network, 7, "")
    assert [part.tolist() for part in found] == [[0, 2, 3], [4, 5]]
    files["forgotten_before"].write_text("")
    assert earlier_runs.past_of(network, 7, "").forgotten.tolist() == []
    files["forgotten_before"].write_text("3\n4\n")
    with pytest.raises(InputError, match=r"1 of the examples in .*forgotten_before are also among those .* first is 3"):
        earlier_runs.past_of(network, 7, "")
    with pytest.raises(InputError, match="nothing says what it is still trained on"):
        earlier_runs.past_of(dataclasses.replace(network, trained_on=None), 7, "")
