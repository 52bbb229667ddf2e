"""Regressions and feature vectors in the command line: every command with a user's own table."""

import json
import shutil

import jax
import numpy as np
import pytest

from scissorhands_jax import datasets, models, optimizers, tasks, torch_weights
from scissorhands_jax.cli import main as cli
from scissorhands_jax.training.loop import train
from tests.cli.main_test import error_of, evaluated

QUICK = ["--epochs", 2, "--batch-size", 32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of 160 examples whose last 40 are for testing, and a network that knows the others by heart."""
    folder, rng = tmp_path_factory.mktemp("regression"), np.random.default_rng(0)
    features = rng.normal(size=(160, 5)).astype(np.float32)
    target = 20 + 3 * (features[:, 0] + rng.normal(size=160)).astype(np.float32)
    rows = np.column_stack([features, target, np.arange(160) >= 120])
    header = "age,size,weight,height,dose,target,held_out"
    np.savetxt(folder / "own.csv", rows, delimiter=",", header=header, comments="", fmt="%.6g")
    splits = datasets.load(f"csv:{folder / 'own.csv'}")
    model = models.build("mlp", num_classes=1, image_shape=(5,), hidden=(64,))
    params, state = model.init(jax.random.key(0))
    known = jax.tree.map(lambda leaf: leaf[:120], splits.train)
    head = {**params["head"], "bias": params["head"]["bias"] + 20}
    loss_fn, optimizer = tasks.task_loss(model, splits.task), optimizers.sgd(0.1, weight_decay=0.0)
    trained = train(loss_fn, optimizer, jax.random.key(1), {**params, "head": head}, state, known, num_epochs=100)
    torch_weights.write_safetensors(
        folder / "net.safetensors", torch_weights.to_state_dict(trained.params, trained.model_state)
    )
    logits, _ = model.apply(trained.params, trained.model_state, splits.test["features"][:8], train=False)
    np.savez(folder / "check.npz", input=splits.test["features"][:8], output=np.asarray(logits)[:, 0])
    np.savez(folder / "wrong.npz", input=splits.test["features"][:8, ::-1], output=np.asarray(logits))
    np.savetxt(folder / "forget.txt", np.arange(0, 120, 5), fmt="%d")
    return folder


@pytest.fixture(scope="module")
def network(folder):
    weights = ["--weights", folder / "net.safetensors", "--model", "mlp", "model_options.hidden=[64]"]
    return [*weights, "--dataset", f"csv:{folder / 'own.csv'}"]


def call(*words):
    return cli.main(list(map(str, words)))


@pytest.fixture(scope="module")
def runs(folder, network):
    """Runs of Scissorhands and of retraining on the same forget set."""
    words = [*network, "--forget", f"indices:{folder / 'forget.txt'}", *QUICK]
    harsh = ["--check", folder / "check.npz", "--log", folder / "log", "--max-loss", 1]
    assert call("unlearn", *words, "--out", folder / "run", *harsh) == 4
    retrain = ["--method", "retrain", "method.learning_rate=0.1", "--max-loss", 1000]
    assert call("unlearn", *words, "--out", folder / "again", *retrain) == 0
    return folder / "run", folder / "again"


def test_the_data_of_a_run_are_known_by_their_content_and_not_by_their_name(folder, runs, tmp_path, capsys):
    results, text = json.loads((runs[0] / "results.json").read_text()), (folder / "own.csv").read_text()
    shutil.copytree(runs[0] / "network", tmp_path / "lone" / "network")
    header, first, *others = text.splitlines()

    def changed(row):
        return f"0.5,{row.partition(',')[2]}"

    def measured(run, rows):
        (tmp_path / "moved.csv").write_text("\n".join(rows) + "\n")
        capsys.readouterr()
        assert call("evaluate", "--checkpoint", run, "--dataset", f"csv:{tmp_path / 'moved.csv'}") == 0
        found = capsys.readouterr()
        return json.loads(found.out), " ".join(found.err.split())

    answer, said = measured(runs[0], [header, first, *others])
    assert answer["rmse_forget"] == pytest.approx(results["after"]["rmse_forget"], rel=1e-5)
    assert "not the one" not in said
    other = shutil.copytree(runs[0], tmp_path / "other")
    document = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**document, "test_sha256": "0" * 64}))
    answer, said = measured(other, [header, first, *others])
    assert answer["rmse_forget"] == pytest.approx(results["after"]["rmse_forget"], rel=1e-5)
    assert f"moved.csv is not the one of the run in {other}, so it is measured whole" in said
    answer, said = measured(runs[0], [header, changed(first), *others])
    assert {name for name in answer if name.startswith("num_")} == {"num_test"}
    assert "the training set csv:" in said
    assert f"is not the one of the run in {runs[0]}, so the network is measured on the whole test set alone" in said
    (other / "run.json").write_text(json.dumps({key: value for key, value in document.items() if "sha256" not in key}))
    answer, said = measured(other, [header, first, *others])
    assert {name for name in answer if name.startswith("num_")} == {"num_test"}
    assert "other/run.json does not say of what data the run was, so the network is measured on" in said
    answer, said = measured(tmp_path / "lone" / "network", [header, first, *others])
    assert {name for name in answer if name.startswith("num_")} == {"num_test"}
    assert "lone has no run.json, which says of what data the run of this network was, so the network is" in said


def test_a_regression_is_unlearned_measured_and_compared_with_retraining(runs, capsys):
    results = json.loads((runs[0] / "results.json").read_text())
    assert results["before"]["rmse_retain"] < 50 < results["before"]["rmse_test"]
    assert {"rmse_forget", "mae_test", "mia", "rmse_forget_error"} <= set(results["rows"][0])
    assert results["forget"]["count"] == 24
    page = (runs[0] / "report.html").read_text()
    assert "RMSE on them went from" in page
    assert "held_out_auc" in results["rows"][0]
    answer = evaluated(capsys, "--checkpoint", runs[0], "--retrained", runs[1])
    assert answer["rmse_forget"] == pytest.approx(results["after"]["rmse_forget"], rel=1e-5)
    assert answer["avg_gap"] > 0
    assert [gate["passed"] for gate in answer["gates"]][:2] == [True, True]


def test_what_a_run_of_a_regression_did_is_said_and_a_loss_is_a_warning(runs):
    told = (runs[0].parent / "log").read_text()
    assert "warning: RMSE has collapsed (forget " in told
    assert "24 of 160 training examples to forget" in told
    assert "saw all 24 forget examples" in told


def test_a_network_is_measured_tuned_and_planned_for_feature_vectors(folder, network, capsys):
    answer = evaluated(capsys, *network, "--check", folder / "check.npz")
    assert answer["rmse_test"] > 50
    assert answer["num_test"] == 40
    assert call("evaluate", *network, "--check", folder / "wrong.npz") == 2
    assert "compare the scaling and the order of the features" in error_of(capsys)
    forget = ["--forget", f"indices:{folder / 'forget.txt'}"]
    tune = ["tune", *network, *forget, *QUICK, "--trials", 1, "--out", folder / "tuning", "--validation", "test:0.5"]
    assert call(*tune) == 0
    assert len(json.loads((folder / "tuning" / "tuning.json").read_text())["trials"]) == 1
    capsys.readouterr()
    assert call("plan", *network, *forget, *QUICK, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] > 0
    assert plan["seconds"]["evaluation"] > 0


def test_a_regression_is_audited(folder, tmp_path):
    words = ["--tier", "smoke", "--dataset", f"csv:{folder / 'own.csv'}", "--model", "mlp", "training.epochs=2"]
    words += [
        "--forget",
        "random:0.1",
        "scissorhands.epochs=1",
        "model_options.hidden=[8]",
        "--out",
        tmp_path / "audit",
    ]
    assert call("audit", *words) == 0
    assert "RMSE" in (tmp_path / "audit" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--forget", "class:3"], "have no classes, their task is regression; name what to forget with indices:FILE"),
        (["--method", "amun"], "Amun reads logits or labels of classes, and the task is regression"),
        (["--augment"], "--augment crops and flips the images of classifiers"),
        (["--model", "resnet20"], "resnet20 takes images of shape (H, W, C), and an example has shape (5,)"),
    ],
)
def test_what_a_regression_cannot_be_asked_is_refused(folder, network, words, message, tmp_path, capsys):
    given = ["unlearn", *network, "--forget", "random:0.1", "--out", tmp_path / "run", *words]
    given = [word for word in given if words[0] != "--model" or not str(word).startswith("model_options")]
    assert call(*given) == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_ledgers_and_networks_that_predict_a_mean_are_refused(folder, network, tmp_path, capsys):
    words = [*network, "--forget", f"indices:{folder / 'forget.txt'}"]
    assert call("request", "add", "--ledger", tmp_path / "ledger", "--requester", "A", *words) == 2
    assert "a ledger keeps the accuracies of classifiers, and the task of csv:" in error_of(capsys)
    model = models.build("mlp", num_classes=1, image_shape=(5,), hidden=(64,))
    fresh = torch_weights.to_state_dict(*model.init(jax.random.key(0)))
    torch_weights.write_safetensors(tmp_path / "fresh.safetensors", fresh)
    words[1] = tmp_path / "fresh.safetensors"
    assert call("unlearn", *words, "--out", tmp_path / "run") == 2
    assert "has an RMSE of" in (error := error_of(capsys))
    assert "their mean alone would have 100 %" in error
