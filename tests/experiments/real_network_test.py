"""`python -m experiments.real_network`: runs beside retrained networks, on one set of examples."""

# ruff: noqa: F811 - a fixture is imported

import json

import pytest

from experiments import real_network
from scissorhands_jax.report import ORIGINAL, REDRAWN, REFERENCE
from tests.cli.main_test import QUICK, error_of, unlearn, weights  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def folders(weights, tmp_path_factory):
    """Runs of one request: two that unlearned, two that retrained, and one of another request."""
    out = tmp_path_factory.mktemp("runs")
    aside = ["--validation", "test:0.5"]
    assert unlearn(weights, out / "held_out", *QUICK, *aside, "--retain-limit", 200, "method.ceiling=held-out") == 0
    assert unlearn(weights, out / "uniform", *QUICK, *aside, "--retain-limit", 200) == 0
    assert unlearn(weights, out / "first", "--method", "retrain", "--epochs", 2, "--retain-limit", 200) == 0
    assert unlearn(weights, out / "other", *QUICK, *aside, "--retain-limit", 200, "--seed", 5) == 0
    return out


def compared(folders, out, *more, runs=("held_out", "uniform"), retrained=("first",)):
    named = [f"--run={name}={folders / name}" for name in runs]
    again = [f"--retrained={folders / name}" for name in retrained]
    return real_network.main([*named, *again, "--out", str(out), *more])


def test_every_network_has_a_row_and_every_run_its_score_and_its_settings(folders, tmp_path):
    assert compared(folders, tmp_path, retrained=("first", "first")) == 0
    document = json.loads((tmp_path / "results.json").read_text())
    rows = {row["method"]: row for row in document["rows"]}
    assert list(rows) == [ORIGINAL, REFERENCE, REDRAWN, "held_out", "uniform"]
    assert rows[REDRAWN]["avg_gap"] == 0  # the same folder
    assert all(rows[name]["avg_gap"] > 0 for name in (ORIGINAL, "held_out", "uniform"))
    saved = json.loads((folders / "uniform" / "results.json").read_text())
    assert {name: rows["uniform"][name] for name in saved["after"] if name.startswith("acc")} == {
        name: value for name, value in saved["after"].items() if name.startswith("acc")
    }
    assert document["scores"][ORIGINAL]["score"] == pytest.approx(document["scores"][ORIGINAL]["loss_distance"] / 3)
    assert set(document["scores"]) == {ORIGINAL, "held_out", "uniform"}
    runs = document["runs"]
    assert runs["held_out"]["ceiling"] > 0 == (runs["uniform"]["ceiling"] or 0)
    assert runs["uniform"]["settings"]["ceiling"] == "uniform"
    assert runs[REFERENCE]["settings"]["epochs"] == 2
    assert document["gates"]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["a=x", "a=y"], "--run names two runs 'a', x and y; give each a name of its own"),
        (["typo"], "--run 'typo' must have the form NAME=RUN"),
        (["=x"], "--run '=x' must have the form NAME=RUN"),
        (["a="], "--run 'a=' must have the form NAME=RUN"),
    ],
)
def test_every_run_has_a_name_and_a_folder(runs, message, tmp_path, capsys):
    assert real_network.main([*(f"--run={run}" for run in runs), "--retrained=z", "--out", str(tmp_path / "out")]) == 2
    assert message in error_of(capsys)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"runs": ("held_out", "other")}, "other has another forget set than held_out; compare runs of one request"),
        ({"retrained": ("uniform",)}, "is a run of scissorhands; name one of --method retrain"),
        ({"runs": ("nowhere",)}, "nowhere/results.json cannot be read (No such file or directory)"),
        ({"retrained": ("first", "first", "first")}, "--retrained is given 3 times; name one run, or two"),
    ],
)
def test_what_cannot_be_compared_is_refused(folders, tmp_path, capsys, changed, message):
    capsys.readouterr()
    assert compared(folders, tmp_path / "out", **changed) == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "out").exists()
