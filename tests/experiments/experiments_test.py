"""The experiments: every configuration can be run, and the commands do what they say on the smallest of them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import configs, run, tuning
from scissorhands_jax import models, torch_weights, trees
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config
from scissorhands_jax.jobs.experiment import FLIPPED
from scissorhands_jax.methods import METHODS

SHAPES = {"digits": (8, 8, 1), "orl_faces": (112, 92, 1)}


@pytest.mark.parametrize("name", configs.CONFIGS)
class TestConfigurations:
    def test_it_is_json_and_carries_its_name(self, name):
        experiment = configs.load(name)
        assert experiment.name == name
        assert json.loads(json.dumps(experiment.as_dict()))["model"] == experiment.model

    def test_every_layer_pattern_matches_its_network(self, name):
        experiment = configs.load(name)
        shape = SHAPES.get(experiment.dataset, (32, 32, 3))
        model = models.build(experiment.model, num_classes=10, image_shape=shape, **experiment.model_options)
        params, _ = jax.eval_shape(model.init, jax.random.key(0))
        patterns = {
            getattr(settings, field, None)
            for scenario in experiment.scenarios
            for settings in scenario.methods.values()
            for field in ("trim", "project", "rank", "layers")
        }
        for pattern in patterns - {None}:
            chosen = trees.select(params, pattern)
            assert 0 < sum(jax.tree.leaves(chosen)) < len(jax.tree.leaves(params))

    def test_every_scenario_can_be_read(self, name):
        for scenario in configs.load(name).scenarios:
            assert set(scenario.sweeps) <= set(scenario.methods)
            assert all(spec == FLIPPED or ":" in spec for spec in scenario.forget)


def test_the_paper_tables_hold_every_method():
    for name in ("cifar10", "cifar100", "svhn", "celebahq", "cifar10_small", "faces"):
        methods = configs.load(name).scenarios[0].methods
        assert {*METHODS} - {"retrain"} <= set(methods)


@pytest.mark.parametrize("name", [name for name in configs.CONFIGS if f"{name}_small" in configs.CONFIGS])
def test_a_small_table_asks_the_same_questions(name):
    full, small = configs.load(name), configs.load(f"{name}_small")
    for one, other in zip(full.scenarios, small.scenarios, strict=True):
        assert (one.name, one.forget, one.flipped_labels) == (other.name, other.forget, other.flipped_labels)
        assert list(one.methods) == list(other.methods)
    assert small.train_limit is None or small.train_limit <= 5_000


def test_identities_start_from_a_file_with_the_names_of_torchvision():
    """Such a file has no `normalize.*`, a head of 1,000 classes, and all else under our names."""
    experiment = configs.load("celebahq")

    def network(num_classes, value):
        options = {"image_shape": (64, 64, 3), **experiment.model_options}
        model = models.build(experiment.model, num_classes=num_classes, **options)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), shapes)

    published = torch_weights.to_state_dict(*network(1000, 1))
    assert {"conv1.weight", "layer4.2.bn2.running_var", "layer2.0.downsample.0.weight", "fc.bias"} <= set(published)
    assert not [name for name in published if name.startswith("normalize")]
    params, _ = torch_weights.with_fresh_head(published, *network(307, 0))
    assert {
        name: float(leaf.max()) for name, leaf in zip(trees.leaf_names(params), jax.tree.leaves(params), strict=True)
    } == {name: 0.0 if name.startswith("fc/") else 1.0 for name in trees.leaf_names(params)}


def test_an_unknown_configuration_is_named_with_its_like():
    with pytest.raises(InputError, match=r"no configuration 'cifar10_smal'; near matches: .*cifar10_small"):
        configs.load("cifar10_smal")


def test_settings_are_overridden_by_name():
    changed = config.override(configs.load("cifar10_small"), ["training.milestones=3,5", "train_limit=none"])
    assert changed.training.milestones == (3, 5)
    assert changed.train_limit is None
    cleared = config.override(changed, ["training.milestones=none"])
    assert cleared.training.milestones == ()


TINY = ["training.epochs=1", "train_limit=200", "test_limit=100", "relearn_epochs=0", "training.milestones=none"]
TINY += ["every_attack=false"]


def test_a_table_is_run_and_continued(tmp_path, capsys):
    arguments = ["--config", "demo", "--seeds", "1", "--out", str(tmp_path / "out"), "--only", "^finetune$", *TINY]
    assert run.main(arguments) == 0
    assert "one class" in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["method"] for row in document["rows"]] == ["original", "retrain", "finetune"] * 2
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


@pytest.mark.parametrize("name", ["cifar10_small", "faces"])
def test_a_small_real_table(tmp_path, shared, name):
    """The references only, because every method would compile its own step; `grid_test.py` has methods."""
    arguments = ["--config", name, "--seeds", "0", "--data-dir", str(shared / "data"), "--only", "^NONE$"]
    tiny = [text for text in TINY if name != "faces" or "limit" not in text]
    limits = ["train_limit=80", "validation_share=0.0"] if name == "faces" else []
    assert run.main([*arguments, "--out", str(tmp_path / "out"), *tiny, *limits]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["original", "retrain"]
    assert (tmp_path / "out" / "gradcam.png").read_bytes().startswith(b"\x89PNG")
    assert all(0 <= row["acc_test"] <= 100 for row in rows)


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


@pytest.mark.parametrize("name", ["cifar10_ablation", "cifar10_ablation_small"])
def test_the_ablation_differs_from_the_default_in_what_its_label_says(name):
    scenario = configs.load(name).scenarios[0]
    base = scenario.methods["scissorhands"]
    for label, sweep in scenario.sweeps.items():
        assert dataclasses.replace(base, **{sweep.name: sweep.value}) == scenario.methods[label]
    assert scenario.methods["scissorhands, no projection"] == dataclasses.replace(base, projected=False)
    assert scenario.methods["scissorhands, ones"] == dataclasses.replace(base, initializer="ones")
