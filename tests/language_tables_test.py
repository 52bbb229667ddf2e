"""Answers go through the tables, gates, reports and tuning of every other task: people with words of their own."""

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import tables
from scissorhands_jax import report
from scissorhands_jax.base import Model
from scissorhands_jax.jobs import grid, search
from scissorhands_jax.jobs.experiment import Experiment, OwnNetwork, Scenario
from scissorhands_jax.language.token_losses import answers_task
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.gradient_ascent import GradientAscentSettings
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings
from scissorhands_jax.tasks import task_loss

PEOPLE, HELD_OUT, WORDS, LENGTH = 5, 2, 6, 8
VOCABULARY = (PEOPLE + HELD_OUT) * WORDS
QUIET = Console(quiet=True)
SGD = {"batch_size": 10, "weight_decay": 0.0}


def rows_about(people):
    """Every person has six words, of which each is followed by the same other one; there is a row from each of them."""
    order = np.concatenate([person * WORDS + np.random.default_rng(person).permutation(WORDS) for person in people])
    place = np.arange(len(order))[:, None]
    tokens = order[place // WORDS * WORDS + (place + np.arange(LENGTH)) % WORDS]
    return {"tokens": tokens.astype(np.int32), "answer": np.broadcast_to(np.arange(LENGTH) > 2, tokens.shape)}


def init(key):
    return {"table": 0.1 * jax.random.normal(key, (VOCABULARY, VOCABULARY))}, ()


def apply(params, model_state, tokens, *, train, key=None):
    del train, key
    return params["table"][tokens], model_state


OWN = OwnNetwork(
    model=Model(init, apply),
    train=rows_about(range(PEOPLE)),
    test=rows_about(range(PEOPLE, PEOPLE + HELD_OUT)),
    task=answers_task(),
    owners=np.repeat(np.arange(PEOPLE), WORDS),
)
METHODS = {
    "gradient_ascent": GradientAscentSettings(epochs=10, learning_rate=60.0, **SGD),
    "scissorhands": ScissorhandsSettings(
        epochs=3, learning_rate=2.0, fraction=0.1, forget_weight=0.3, ceiling=4.0, **SGD
    ),
}
EXPERIMENT = Experiment(
    name="words",
    dataset="words",
    model="a table of words",
    validation_share=0.0,
    training=RetrainSettings(epochs=25, learning_rate=1.0, milestones=(), **SGD),
    relearning=FinetuneSettings(learning_rate=2.0, **SGD),
    scenarios=(Scenario(name="one person", forget=("class:{seed}",), methods=METHODS),),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    out = tmp_path_factory.mktemp("table") / "out"
    return out, grid.run_grid(EXPERIMENT, out, seeds=[1], own=OWN, console=QUIET)


def test_a_table_of_answers(table):
    out, document = table
    rows = {row["method"]: row for row in document["rows"]}
    assert rows["original"]["probability_forget"] > 80 > 5 > rows["retrain"]["probability_forget"]
    assert rows["retrain"]["probability_retain"] > 80
    assert rows["original"]["exact_forget"] == 100
    for name in METHODS:
        assert rows[name]["probability_forget"] < 40, name
        assert rows[name]["probability_retain"] > 60, name
        assert rows[name]["avg_gap"] < rows["original"]["avg_gap"], name
    caught = document["gates"][0]
    assert (caught["passed"], caught["metric"]) == (True, "held_out_auc")
    text = tables.describe(report.read_results(out / "results.json"), "words").text
    assert "P(answer) forget" in text
    assert "| scissorhands |" in text


def test_tuning_of_answers_prefers_settings_that_forget(table):
    out, _ = table
    store = grid.TableNetworks(EXPERIMENT, None, out, out / "networks", OWN)
    scenario = grid.SeededScenario(store, EXPERIMENT.scenarios[0], 1)
    original, loss_fn = scenario.load("original")[:2], task_loss(OWN.model, OWN.task)
    found = search.tune_settings(
        OWN.model,
        lambda settings: settings.build(OWN.model, loss_fn, 0),
        METHODS["scissorhands"],
        jax.random.key(0),
        *original,
        scenario.data,
        OWN.test,
        space={"learning_rate": (0.01, 3.0)},
        whole_classes=False,
        num_trials=3,
        task=OWN.task,
    )
    assert {"probability_forget", "probability_retain", "loss_distance"} <= set(found.best.numbers)
    assert found.best.numbers["probability_forget"] < 40
    assert found.best.score == min(trial.score for trial in found.trials)
    assert len({trial.score for trial in found.trials}) > 1
