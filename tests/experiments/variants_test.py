"""`python -m experiments.variants`: what is composed does what it says, and no cell is made twice."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import variants
from scissorhands_jax import files, losses
from scissorhands_jax.base import Batch, Carry, Data, Method
from scissorhands_jax.errors import DivergedError
from scissorhands_jax.jobs.scenarios import TrainedNetwork
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings
from scissorhands_jax.report import provenance
from tests import tiny

SMALL = ["training.epochs=2", "train_limit=300", "test_limit=100", "validation_share=0.3"]
KEY = jax.random.key(0)


def arguments_of(tmp_path):
    return ["--config", "demo", "--seeds", "0", "--networks", str(tmp_path / "n"), "--out", str(tmp_path / "out")]


def table(tmp_path, only, *settings):
    out = tmp_path / "out"
    assert variants.main([*arguments_of(tmp_path), "--only", only, *SMALL, *settings]) == (2 if settings else 0)
    return json.loads((out / "results.json").read_text())["rows"], (out / "table.md").read_text()


def test_cells_of_every_kind_are_made_once(tmp_path, capsys):
    only = "^base$|^every step, held-out ceiling$|fisher|distillation 2|epoch, averaged$|^once.*retain only"
    rows, text = table(tmp_path, only)
    found = {row["variant"]: row for row in rows}
    assert len(found) == len(rows) == 7
    assert all(row["avg_gap"] >= 0 and row["score"] >= 0 for row in rows)
    held_out = found["every step, held-out ceiling"]
    assert held_out["settings"]["ceiling"] == held_out["held_out_loss"] > 0
    assert found["base"]["settings"]["ceiling"] == "off"
    # Every variant is another network.
    assert len({json.dumps(row["numbers"]) for row in rows}) >= 5
    assert text.count("\n") == 2 + len(rows)
    capsys.readouterr()
    again, _ = table(tmp_path, only + "|^once.*sensitivity")
    assert again[: len(rows)] == rows
    assert [row["variant"] for row in again[len(rows) :]] == ["once an epoch, sensitivity ratio"]
    assert "sensitivity ratio: score" in capsys.readouterr().err
    # Cells of other settings are not mixed with these; what is there stays.
    assert table(tmp_path, only, "training.learning_rate=0.01")[0] == again
    assert "holds cells of other settings" in capsys.readouterr().err
    # Each says what it was made of, and one that would now be made of something else is not taken for it.
    file, code = tmp_path / "out" / "results.json", provenance.running_code().name
    document = json.loads(file.read_text())
    assert {row["code"] for row in again} == {code}
    assert document["code"] == f"All cells were made by {code}."
    base = next(row for row in again if row["variant"] == "base")
    for change, message in (
        ({"settings": base["settings"] | {"fraction": 0.5}}, "settings.fraction was 0.5 and is now 0.05"),
        ({"composed": base["composed"] | {"scores": "fisher ratio"}}, "scores was 'fisher ratio' and is now 'forget'"),
        ({"original": "0" * 64}, "holds results of seed 0 from another original"),
        ({"forget_sha256": "0" * 64}, "holds results of seed 0 of another forget set"),
    ):
        file.write_text(json.dumps(document | {"rows": [base | change]}))
        assert variants.main([*arguments_of(tmp_path), "--only", "^base$", *SMALL]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    file.write_text(json.dumps(document | {"data_sha256": {}}))
    assert variants.main([*arguments_of(tmp_path), "--only", "^base$", *SMALL]) == 2
    assert "of other settings or data" in " ".join(capsys.readouterr().err.split())
    # Those of earlier versions say less.
    new = ("code", "original", "forget_sha256", "composed")
    rows = [{name: value for name, value in row.items() if name not in new} for row in again]
    rows = [row for row in rows if row["variant"] != "base"]
    file.write_text(json.dumps({**{key: document[key] for key in document if key != "data_sha256"}, "rows": rows}))
    assert variants.main([*arguments_of(tmp_path), "--only", only, *SMALL]) == 0
    document = json.loads(file.read_text())
    assert document["rows"][:-1] == rows
    assert "made by 2 states of the code" in document["code"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draws", "0"], "--draws must be at least 1, got 0"),
        (["--only", "bose"], "'bose' matches none of base, once an epoch, uniform ceiling"),
    ],
)
def test_what_makes_no_cell_is_refused_before_a_network_is_trained(tmp_path, capsys, arguments, message):
    assert variants.main([*arguments_of(tmp_path), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "n").exists()


def test_a_variant_that_diverged_anywhere_is_a_cell_and_does_not_end_the_others(tmp_path, monkeypatch):
    def diverged(*_, **__):
        raise DivergedError("the logits are not finite")

    measured = iter([variants.measure_row] * 2 + [diverged, variants.measure_row])
    monkeypatch.setattr(variants, "measure_row", lambda *a, **k: next(measured)(*a, **k))
    rows, _ = table(tmp_path, "^base$|^once.*sensitivity")
    assert [row.get("diverged") for row in rows] == [None, "the logits are not finite", None]


def test_two_processes_do_not_write_one_folder(tmp_path, capsys):
    with files.sole_writer(tmp_path / "out"):
        arguments = ["--config", "demo", "--networks", str(tmp_path / "n"), "--out", str(tmp_path / "out")]
        assert variants.main(arguments) == 2
        assert not (tmp_path / "out" / "results.json").exists()
    assert "is being written to by" in capsys.readouterr().err


def test_draws_that_reach_into_those_of_another_seed_are_refused(tmp_path, capsys):
    arguments = ["--config", "demo", "--networks", str(tmp_path / "n"), "--out", str(tmp_path / "out")]
    assert variants.main([*arguments, "--seeds", "0,1", "--draws", "101"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "'retrained again' of seed 0, draw 100 and 'retrained again' of seed 1, draw 0 would both" in told


def test_the_table_pairs_cells_of_one_seed():
    metrics = {"acc_forget": 1.0, "acc_retain": 2.0, "acc_test": 3.0, "mia": 4.0}

    def row(variant, seed, gap):
        return {"variant": variant, "seed": seed, "draw": 0, "avg_gap": gap, "score": gap, "metrics": metrics}

    rows = [row("base", 0, 1.0), row("base", 1, 5.0), row("other", 0, 3.0), row("other", 1, 7.0), row("bad", 0, None)]
    lines = variants.table_of(rows).splitlines()
    assert lines[3] == "| other | 1.0 ± 0.0 | 2.0 ± 0.0 | 3.0 ± 0.0 | 4.0 ± 0.0 | 5.0 ± 2.8 | 2.0 ± 0.0 | 5.0 ± 2.8 |"
    assert lines[4].startswith("| bad (1 of 1 diverged) | -")


def test_only_retained_examples_are_taught():
    params, model_state = tiny.start()
    network = TrainedNetwork(params, model_state, None)
    data = variants.with_teacher(tiny.model(), network, tiny.data())
    loss_fn = variants.DistillationLoss(tiny.model(), 0.5)
    other = jax.tree.map(lambda leaf: leaf * 1.5, params)
    for part, weight in ((data.forget, 0.0), (data.retain, 0.5)):
        loss, _ = loss_fn(other, model_state, part, train=False, key=None)
        logits, _ = tiny.model().apply(other, model_state, part["image"], train=False)
        teacher, _ = tiny.model().apply(params, model_state, part["image"], train=False)
        p, q = (np.asarray(jax.nn.log_softmax(values / 2), np.float64) for values in (teacher, logits))
        distance = 4 * np.mean(np.sum(np.exp(p) * (p - q), axis=1))
        expected = float(losses.cross_entropy(logits, part["label"])) + weight * distance
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_distillation_augments_images_as_the_loss_of_the_table():
    """Without a weight it is the table's own loss, in training and in evaluation."""
    params, model_state = tiny.start()
    data = variants.with_teacher(tiny.model(), TrainedNetwork(params, model_state, None), tiny.data())
    table_loss = tiny.loss(augment=True)
    loss_fn = variants.DistillationLoss(tiny.model(), 0.0, losses.augmentation_of(table_loss))
    for train in (True, False):
        found, expected = (
            function(params, model_state, data.retain, train=train, key=KEY)[0] for function in (loss_fn, table_loss)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    altered, plain = (table_loss(params, model_state, data.retain, train=train, key=KEY)[0] for train in (True, False))
    assert altered != plain
    store = SimpleNamespace(
        loaded=SimpleNamespace(model=tiny.model(), loss_fn=table_loss, splits=SimpleNamespace(class_names="abc"))
    )
    method, _ = variants.build(
        store,
        ScissorhandsSettings(epochs=1, batch_size=4),
        variants.VARIANTS[next(label for label in variants.VARIANTS if "distillation" in label)],
        TrainedNetwork(params, model_state, None),
        tiny.data(),
    )
    assert method.step.loss_fn.augment is losses.augmentation_of(table_loss)


def test_the_average_is_that_of_the_last_steps():
    """Steps set the weight to 1, 2, 3, ...; the mean of those from step 3 on, counted from 0, is (4 + 5) / 2."""

    def step(carry, batch):
        del batch
        return carry._replace(step=carry.step + 1, params=carry.params + 1), {}

    def init(key, params, model_state, data):
        del data
        return Carry(jnp.zeros((), jnp.int32), key, params, model_state, (), ())

    method = variants.averaged(Method(init, step, lambda key, data, epoch: []), 3)
    carry = method.begin_epoch(method.init(KEY, jnp.zeros(()), (), Data(None, None)), Data(None, None))
    for _ in range(5):
        carry, _ = method.step(carry, Batch())
    assert float(method.finish(carry)[0]) == 4.5


def test_the_end_is_retain_only_from_its_epoch_on():
    method = variants.with_retain_only_end(tiny.method("scissorhands", augment=False), 1)
    first, second = (list(method.batches(KEY, tiny.data(), epoch)) for epoch in (0, 1))
    assert first[0].forget is not None
    assert all(batch.forget is None for batch in second)
    assert len(first) == len(second)


def test_recalibrated_statistics_are_those_of_the_retain_set():
    params, model_state = tiny.start()
    far = jax.tree.map(lambda leaf: leaf + 100, model_state)
    moved = variants.recalibrated(tiny.model(), params, far, tiny.data(), 4)
    distance = [sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(state)) for state in (far, moved)]
    assert distance[1] < distance[0]
