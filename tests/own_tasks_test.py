"""A regression from end to end: a table, an audit, tuning and an evaluation of a network and data of one's own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from rich.console import Console

from scissorhands_jax import losses, report
from scissorhands_jax.audit import run_audit
from scissorhands_jax.data import split
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import grid, late_attacks, search
from scissorhands_jax.jobs.comparing import evaluate
from scissorhands_jax.jobs.experiment import Experiment, LoadedExperiment, OwnNetwork, Scenario
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings
from scissorhands_jax.methods.scrub import ScrubSettings
from scissorhands_jax.models import from_linen
from scissorhands_jax.report import REDRAWN
from scissorhands_jax.tasks import Metric, classification, regression, task_loss
from scissorhands_jax.training import Result

QUIET = Console(quiet=True)
SGD = {"batch_size": 30, "weight_decay": 0.0}
TASK = regression(1.0)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(128)(x)))


def made(count, seed):
    """Noise: targets can only be learned by heart."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, 30)).astype(np.float32)
    return {"features": features, "label": generator.normal(size=count).astype(np.float32)}


OWN = OwnNetwork(
    model=from_linen(Net(), jax.ShapeDtypeStruct((1, 30), jnp.float32)),
    train=made(60, 0),
    test=made(60, 1),
    task=TASK,
    owners=np.arange(60) // 6,
)
METHODS = {
    "finetune": FinetuneSettings(epochs=0, **SGD),
    "scissorhands": ScissorhandsSettings(epochs=4, learning_rate=0.01, fraction=0.3, forget_weight=0.3, **SGD),
}
EXPERIMENT = Experiment(
    name="noise",
    dataset="noise",
    model="own",
    validation_share=0.0,
    training=RetrainSettings(epochs=120, learning_rate=0.02, milestones=(), **SGD),
    relearning=FinetuneSettings(learning_rate=0.01, **SGD),
    relearn_epochs=1,
    scenarios=(
        Scenario(name="two owners", forget=("class:{seed},7",), methods=METHODS),
        Scenario(name="wrong targets", flipped_labels=0.2, forget=("flipped",), methods={}),
    ),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    out = tmp_path_factory.mktemp("table") / "out"
    return out, grid.run_grid(EXPERIMENT, out, seeds=[1, 2], own=OWN, console=QUIET)


@pytest.mark.parametrize("change", [{"owners": np.arange(60) % 10}, {"class_names": tuple("abcdefghij")}])
def test_whom_the_examples_belong_to_counts_in_the_identity_and_not_for_the_networks(change):
    first, other = (LoadedExperiment(EXPERIMENT, None, own) for own in (OWN, dataclasses.replace(OWN, **change)))
    assert first.settings_sha256() != other.settings_sha256()
    assert first.training_identity() == other.training_identity()
    assert first.settings_sha256() == LoadedExperiment(EXPERIMENT, None, OWN).settings_sha256()


class TestTable:
    def test_rows_say_how_well_each_network_forgot(self, table):
        _, document = table
        methods = report.grouped(document["rows"])["two owners"]
        mean = {name: np.mean([row["rmse_forget"] for row in rows]) for name, rows in methods.items()}
        assert mean["original"] < 10 < 60 < min(mean["retrain"], mean[REDRAWN])
        assert mean["finetune"] == mean["original"] < mean["scissorhands"]
        gaps = {name: np.mean([row["avg_gap"] for row in rows]) for name, rows in methods.items()}
        assert gaps["scissorhands"] < gaps["original"]
        assert all("acc_forget" not in row and row["task"] == TASK.document() for row in document["rows"])
        original = methods["original"][0]
        assert original["relearn_epochs"] == 0
        assert methods["retrain"][0]["relearn_epochs"] is None

    def test_gates_say_that_the_original_is_caught(self, table):
        found = {gate["name"]: gate for gate in table[1]["gates"] if gate["name"].startswith("two owners")}
        assert [gate["passed"] for gate in found.values()] == [True, True, True]
        caught = next(iter(found.values()))
        assert caught["metric"] == "held_out_auc"
        assert "its RMSE on the forget set is" in caught["explanation"]

    def test_wrong_targets_are_wrong_and_right_ones_are_measured(self, table):
        rows = report.grouped(table[1]["rows"])["wrong targets"]
        for row in rows["original"]:
            assert row["rmse_forget"] < 10 < row["rmse_forget_true_labels"]

    def test_tables_and_results_speak_of_the_task(self, table):
        out, document = table
        text = report.markdown(report.scenario_grid(report.grouped(document["rows"])["two owners"]))
        assert "RMSE forget ↑ (%) | RMSE retain ↓ (%) | RMSE test ↓ (%) | MIA ↑" in text
        loaded = report.read_results(out / "results.json")
        assert loaded["rows"][0]["task"] == TASK.document()

    def test_another_network_or_task_is_another_table(self, table):
        for changes in ({"task": regression(2.0)}, {"train": made(60, 5)}):
            with pytest.raises(InputError, match=r"belongs to another run: (own|data_sha256.train) was"):
                grid.run_grid(EXPERIMENT, table[0], seeds=[1], own=dataclasses.replace(OWN, **changes), console=QUIET)

    def test_rows_of_two_tasks_do_not_share_a_table(self, table):
        row = table[1]["rows"][0]
        other = {**dict.fromkeys(report.ROW_FIELDS), "scenario": row["scenario"], "method": "other"}
        with pytest.raises(InputError, match=r"rows of different tasks \(regression, classification\)"):
            report.scenario_grid(report.grouped([row, other])[row["scenario"]])
        with pytest.raises(InputError, match="has the task 3"):
            report.grouped([{**row, "task": 3}])


def test_an_audit_catches_the_original_of_a_regression(tmp_path):
    experiment = dataclasses.replace(
        EXPERIMENT,
        scenarios=(Scenario(name="random", forget=("random:0.2",), methods={"nothing": METHODS["finetune"]}),),
    )
    document = run_audit(experiment, tmp_path, tier="smoke", num_networks=6, own=OWN, console=QUIET)
    means = {(e["method"], e["metric"]): e["value"] for e in document["evidence"] if e["scenario"] is None}
    assert means["original", "u_lira_auc"] > 0.8 > means["retrain", "population_auc"]
    assert means["original", "population_auc"] == means["nothing", "population_auc"] > 0.8
    assert document["rows"][0]["task"] == TASK.document()
    assert document["rows"][0]["rmse_test"] > 60
    assert "U-LiRA" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "scores.json").read_text())["labels"].count(0) > 0


@pytest.fixture(scope="module")
def trained(table):
    """The original and both retrained networks of the first seed of the table, and their data."""
    store = grid.TableNetworks(EXPERIMENT, None, table[0], table[0] / "networks", OWN)
    scenario = grid.SeededScenario(store, EXPERIMENT.scenarios[0], 1)
    return scenario.data, {name: scenario.load(name)[:2] for name in ("original", "retrain", REDRAWN)}


def test_tuning_prefers_settings_that_forget(trained):
    data, networks = trained
    loss_fn = task_loss(OWN.model, TASK)
    start = dataclasses.replace(METHODS["scissorhands"], ceiling=TASK.ceiling, epochs=30)
    found = search.tune_settings(
        OWN.model,
        lambda settings: settings.build(OWN.model, loss_fn, 0),
        start,
        jax.random.key(0),
        *networks["original"],
        data,
        OWN.test,
        space={"forget_weight": (0.01, 1.0)},
        whole_classes=False,
        num_trials=3,
        task=TASK,
    )
    assert set(found.best.numbers) == {"rmse_forget", "rmse_retain", "rmse_validation", "loss_distance"}
    untouched = search.measure_trial(OWN.model, *networks["original"], data, OWN.test, task=TASK)
    assert found.best.score == min(trial.score for trial in found.trials)
    assert found.best.score < search.proxy_score(untouched, untouched, whole_classes=False, task=TASK)
    with pytest.raises(InputError, match="has no classes that are forgotten as a whole"):
        search.tune_settings(
            *(OWN.model, None, start, jax.random.key(0), *networks["original"], data, OWN.test),
            **{"space": {"forget_weight": (0.1, 1.0)}, "whole_classes": True, "task": TASK},
        )


def test_an_evaluation_of_ones_own_networks(trained, tmp_path):
    data, networks = trained
    found = evaluate(OWN.model, networks, data, OWN.test, task=TASK)
    caught, silent, _ = found.gates
    assert (caught["passed"], silent["passed"]) == (True, True)
    assert found.rows[1]["avg_gap"] == 0 < found.rows[2]["avg_gap"] < found.rows[0]["avg_gap"]
    found.show(QUIET)
    found.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert [title in page for title in ("RMSE forget", "MAE retain", "Acc forget")] == [True, True, False]
    with pytest.raises(InputError, match="there are no data of it"):
        evaluate(OWN.model, {"original": {4: networks["original"]}}, {3: data}, OWN.test, task=TASK)


@pytest.mark.parametrize("kind", [tuple, lambda pair: Result(*pair, 1, 0, 0), lambda pair: {7: Result(*pair, 1, 0, 0)}])
def test_networks_of_an_evaluation_are_pairs_or_what_holds_one(kind):
    network = OWN.model.init(jax.random.key(0))
    found = evaluate(OWN.model, {"mine": kind(network)}, {7: split(OWN.train, [1])}, OWN.test, task=TASK, seed=7)
    assert [(row["method"], row["seed"]) for row in found.rows] == [("mine", 7)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": {"mine": {"w": 0}}}, "'mine' is a dict with the keys w; give a pair .params, model_state."),
        ({"networks": {"mine": [((), ()), ((), ())]}}, "'mine' is a list; give a pair .params, model_state."),
        ({"networks": {}}, "there is no network to evaluate"),
        ({"networks": [((), ())]}, "the networks are a list; give a dict of them by name"),
        ({"networks": OWN.model}, "the networks are a Model; give a dict of them by name"),
        ({"data": {"forget": 0, "retain": 0}}, "the data are a dict with the keys forget, retain; give the two parts"),
        ({"data": split(OWN.train, [0])._replace(retain=None)}, "there are no retained examples"),
        ({"data": split(OWN.train, [0])._replace(forget={"label": np.zeros(0)})}, "there are no examples to forget"),
        ({"test": None}, "there are no test examples, without which nothing says what was lost"),
    ],
)
def test_what_cannot_be_evaluated_is_named(changes, message):
    given = {"networks": {"mine": ((), ())}, "data": split(OWN.train, [0]), "test": OWN.test} | changes
    with pytest.raises(InputError, match=message):
        evaluate(OWN.model, **given, task=TASK)


def test_test_examples_of_forgotten_classes_alone_cannot_be_evaluated():
    labels = np.arange(9) % 3
    examples = {"image": np.ones((9, 2), np.float32), "label": labels}
    of_class = {"image": np.ones((4, 2), np.float32), "label": np.zeros(4, int)}
    with pytest.raises(InputError, match="all 4 test examples are of classes that the retain set does not have"):
        evaluate(OWN.model, {"mine": ((), ())}, split(examples, labels == 0), of_class)


@pytest.mark.parametrize(
    ("changes", "own", "message"),
    [
        ({"train_limit": 5}, {}, "train_limit is for networks and data of the package"),
        ({"augment": True}, {}, "augment is for images of the package"),
        ({"attack_later": True}, {}, "attack_later keeps logits of classes"),
        ({}, {"owners": np.zeros(3, int)}, "give an integer for each example"),
        ({}, {"test": {"label": np.zeros(3)}}, "give examples of one form in both"),
        (
            {"scenarios": (Scenario(name="s", forget=("random:0.1",), methods={"scrub": ScrubSettings()}),)},
            {},
            "Scrub compares the outputs of two networks, and the task 'regression' has no divergence",
        ),
    ],
)
def test_what_an_own_network_cannot_do_is_said_before_anything_is_trained(changes, own, message, tmp_path):
    experiment, network = dataclasses.replace(EXPERIMENT, **changes), dataclasses.replace(OWN, **own)
    with pytest.raises(InputError, match=message):
        grid.run_grid(experiment, tmp_path / "out", seeds=[1], own=network, console=QUIET)
    assert not (tmp_path / "out").exists()


def test_examples_need_no_labels_and_no_dict():
    """Any pytree will do whose arrays share their first axis: here a pair."""
    part = made(12, 3)
    task = dataclasses.replace(
        TASK,
        name="pairs",
        inputs=lambda pair: pair[0],
        loss=lambda outputs, pair: jnp.square(outputs[:, 0] - pair[1]),
        metrics=(dataclasses.replace(TASK).metrics[0]._replace(values=lambda o, pair: abs(o[:, 0] - pair[1])),),
    )
    pair = (part["features"], part["label"])
    network = OWN.model.init(jax.random.key(0))
    found = evaluate(OWN.model, {"original": network}, split(pair, [0, 3]), pair, task=task)
    outputs = np.asarray(OWN.model.apply(*network, pair[0], train=False)[0])[:, 0]
    assert found.rows[0]["rmse_test"] == pytest.approx(float(np.sqrt(np.mean((outputs - pair[1]) ** 2))), rel=1e-5)


class Sum(nn.Module):
    """A classifier of two inputs."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(32)(x["a"]) + nn.Dense(32)(x["b"])))


def test_a_classifier_of_several_inputs_with_classes_of_another_name(tmp_path):
    """What its features are is not known, so it is not probed; all else is measured."""

    def examples(seed):
        generator = np.random.default_rng(seed)
        parts = {name: generator.normal(size=(40, 8)).astype(np.float32) for name in ("a", "b")}
        return {**parts, "class": generator.integers(0, 3, 40).astype(np.int32)}

    task = dataclasses.replace(
        classification(),
        name="two inputs",
        loss=lambda logits, part: losses.cross_entropies(logits, part["class"]),
        metrics=(Metric("acc", "Acc", lambda predicted, part: 100.0 * (predicted == np.asarray(part["class"]))),),
        inputs=lambda part: {"a": part["a"], "b": part["b"]},
        labels=lambda part: part["class"],
    )
    shapes = {name: jax.ShapeDtypeStruct((1, 8), jnp.float32) for name in ("a", "b")}
    own = OwnNetwork(model=from_linen(Sum(), shapes), train=examples(0), test=examples(1), task=task)
    scenario = Scenario(name="random", forget=("random:0.2",), methods={"nothing": METHODS["finetune"]})
    brief = dataclasses.replace(
        EXPERIMENT, training=RetrainSettings(epochs=2, learning_rate=0.02, milestones=(), **SGD), scenarios=(scenario,)
    )
    document = run_audit(brief, tmp_path / "audit", tier="standard", num_networks=4, own=own, console=QUIET)
    metrics = {entry["metric"] for entry in document["evidence"]}
    assert {"recovered", "distance_original"} <= metrics
    assert "probe_gap" not in metrics
    at_once, later = (
        grid.run_grid(
            dataclasses.replace(brief, attack_later=is_later), tmp_path / name, seeds=[1], own=own, console=QUIET
        )
        for name, is_later in (("once", False), ("later", True))
    )
    attacked = late_attacks.with_attacks(later, lambda name: (tmp_path / "later" / name).read_bytes())
    assert [row["mia"] for row in attacked["rows"]] == [row["mia"] for row in at_once["rows"]]
