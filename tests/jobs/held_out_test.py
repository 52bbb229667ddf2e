"""The ceiling "held-out": measured on the network that a run begins with, in jobs, tunings, tables and audits."""

# ruff: noqa: F811 - a fixture is imported

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from scissorhands_jax import data as data_lib
from scissorhands_jax import datasets, losses, models
from scissorhands_jax.audit import networks as audit_networks
from scissorhands_jax.audit import run as audit_run
from scissorhands_jax.base import lift
from scissorhands_jax.cli import main as cli
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import held_out, planning
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.experiment import Scenario
from scissorhands_jax.jobs.job import divide_test_set, prepare_job
from scissorhands_jax.jobs.scenarios import SeededScenario, TableNetworks
from scissorhands_jax.methods import METHODS
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings
from scissorhands_jax.methods.settings import of_network
from scissorhands_jax.metrics import answers
from scissorhands_jax.tasks import CLASSIFICATION
from scissorhands_jax.training.descriptions import describe_value
from tests.cli.main_test import QUICK as QUICKER
from tests.cli.main_test import error_of, unlearn, weights  # noqa: F401 - a fixture
from tests.comparison import same_bits
from tests.jobs.grid_test import EXPERIMENT

HELD_OUT = "method.ceiling=held-out"
QUICK = [*QUICKER, "--retain-limit", "200"]
QUIET = Console(quiet=True)


class TestMeanLoss:
    @pytest.mark.parametrize("batch_size", [1, 7, 40, 500])
    def test_it_is_the_mean_over_examples_whatever_the_batches(self, batch_size):
        examples = jax.random.normal(jax.random.key(0), (40,))
        loss = lift(lambda w, batch: (w * batch**2).mean())
        found = losses.average_loss(loss, 2.0, (), examples, batch_size=batch_size)
        assert found == pytest.approx(2 * np.mean(np.square(np.float64(examples))), rel=1e-6)

    def test_images_are_neither_cropped_nor_smoothed_nor_do_statistics_move(self):
        model = models.build("resnet8", num_classes=10, image_shape=(16, 16, 3))
        params, state = model.init(jax.random.key(0))
        examples = {
            "image": np.random.default_rng(0).normal(size=(30, 16, 16, 3)).astype(np.float32),
            "label": np.arange(30) % 10,
        }
        loss = losses.classification_loss(model, augment=lambda key, images: images * 0, label_smoothing=0.5)
        outputs = answers.outputs_of(CLASSIFICATION, model, params, state, examples)
        expected = answers.example_losses(CLASSIFICATION, outputs, examples).mean()
        assert losses.average_loss(loss, params, state, examples, batch_size=8) == pytest.approx(expected, rel=1e-5)

    def test_no_example_has_no_loss(self):
        with pytest.raises(InputError, match="there is no example whose loss could be measured"):
            losses.average_loss(lift(lambda w, batch: batch.mean()), 0.0, (), np.zeros(0))


class TestSettings:
    def test_only_scissorhands_that_asks_is_measured(self):
        def asked():
            raise AssertionError

        for settings in (*(METHODS[name]() for name in METHODS), ScissorhandsSettings(ceiling=0.5)):
            assert of_network(settings, asked) is settings
        assert of_network(ScissorhandsSettings(ceiling="held-out"), lambda: 0.25).ceiling == 0.25

    @pytest.mark.parametrize("loss", [0.0, -1.0, math.inf, math.nan])
    def test_a_loss_that_is_no_ceiling_is_refused(self, loss):
        with pytest.raises(
            InputError, match=r"loss on held-out examples is .*; give 'uniform' or a number as the ceiling"
        ):
            of_network(ScissorhandsSettings(ceiling="held-out"), lambda: loss)

    def test_the_last_bits_of_the_number_do_not_tell_runs_apart(self):
        """Measured again on another machine, they are others; the number of a resumed run is in its checkpoint."""
        model = models.build("mlp", num_classes=10, image_shape=(8, 8, 1))
        described, kept = [], []
        for loss in (0.25, 0.25 * (1 + 2e-7)):
            fitted = of_network(ScissorhandsSettings(ceiling="held-out"), lambda loss=loss: loss)
            method = fitted.build(model, losses.classification_loss(model), 10)
            described.append(describe_value(method, "method"))
            kept.append(fitted.ceiling)
        assert described[0] == described[1]
        assert kept == [0.25, 0.25 * (1 + 2e-7)]
        given = ScissorhandsSettings(ceiling=0.25).build(model, losses.classification_loss(model), 10)
        assert describe_value(given, "method") != described[0]

    def test_a_method_is_not_built_without_the_number(self):
        model = models.build("mlp", num_classes=10, image_shape=(8, 8, 1))
        with pytest.raises(InputError, match="examples that it never saw; give that number"):
            ScissorhandsSettings(ceiling="held-out").build(model, losses.classification_loss(model), 10)
        with pytest.raises(InputError, match="ceiling"):
            ScissorhandsSettings(ceiling="test").build(model, losses.classification_loss(model), 10)

    @pytest.mark.parametrize("spec", ["class:3", "identity:ann", "mislabelled:file.txt", "flipped"])
    def test_forget_sets_that_no_held_out_example_resembles_are_refused(self, spec):
        with pytest.raises(InputError, match=rf"what {spec} forgets, .*; give 'uniform' or a number as the ceiling"):
            held_out.check_forget_sets(["random:0.1", spec])
        held_out.check_forget_sets(["random:0.1", "indices:file.txt"])


class TestJob:
    def test_the_run_is_the_one_with_the_number_and_says_it(self, weights, tmp_path, capsys):
        aside = ["--validation", "test:0.5"]
        assert unlearn(weights, tmp_path / "measured", *QUICK, *aside, HELD_OUT) == 0
        results = json.loads((tmp_path / "measured" / "results.json").read_text())
        found = results["ceiling"]
        assert f"the ceiling of the forget loss is {found:.3f}, the mean loss on 225 examples" in " ".join(
            capsys.readouterr().err.split()
        )
        splits = datasets.load("digits")
        model = models.build("mlp", num_classes=10, image_shape=(8, 8, 1))
        kept = divide_test_set(splits.test, "test:0.5", 0)[1]
        expected = losses.average_loss(losses.classification_loss(model), *model.init(jax.random.key(3)), kept)
        assert found == pytest.approx(expected, rel=1e-6)
        assert unlearn(weights, tmp_path / "given", *QUICK, *aside, f"method.ceiling={found!r}") == 0
        networks = [(tmp_path / name / "network.safetensors").read_bytes() for name in ("measured", "given")]
        assert networks[0] == networks[1]
        assert "ceiling" not in json.loads((tmp_path / "given" / "results.json").read_text())
        # With other held-out examples it is another run.
        assert unlearn(weights, tmp_path / "measured", *QUICK, "--validation", "test:0.4", HELD_OUT, "--resume") == 2
        assert "validation" in error_of(capsys)

    def test_other_examples_in_the_same_file_are_another_run(self, weights, tmp_path, capsys):
        seen, held = tmp_path / "seen.txt", tmp_path / "held.txt"
        seen.write_text("\n".join(map(str, range(1000))))
        held.write_text("\n".join(map(str, range(1000, 1100))))
        more = [*QUICK, "--trained-on", seen, "--validation", f"indices:{held}", HELD_OUT]
        assert unlearn(weights, tmp_path / "run", *more) == 0
        held.write_text("\n".join(map(str, range(1001, 1101))))
        capsys.readouterr()
        assert unlearn(weights, tmp_path / "run", *more, "--resume") == 2
        assert "validation_sha256" in error_of(capsys)

    def test_a_whole_class_is_one_however_it_is_written(self, weights, tmp_path, capsys):
        labels = datasets.load("digits").train["label"]
        file = tmp_path / "threes.npy"
        for positions, refused in ((np.flatnonzero(labels == 3), True), (np.flatnonzero(labels == 3)[1:], False)):
            np.save(file, positions)
            settings = {"forget": f"indices:{file}", "method": ScissorhandsSettings()}
            config = RunConfig(dataset="digits", model="mlp", weights=str(weights), **settings)
            assert prepare_job(config).forgets_classes is refused
        np.save(file, np.flatnonzero(labels == 3))
        more = [*QUICK, "--validation", "test:0.5", HELD_OUT]
        assert unlearn(weights, tmp_path / "run", *more, forget=f"indices:{file}") == 2
        assert "whole classes; give 'uniform' or a number as the ceiling" in error_of(capsys)

    def test_a_validation_set_is_read_where_the_run_does_not_look_at_it_too(self, weights, tmp_path, capsys):
        positions = tmp_path / "positions.txt"
        for words, message in (("0\n1\n", "2 of the examples in"), (None, "positions.txt")):
            positions.unlink(missing_ok=True) if words is None else positions.write_text(words)
            assert unlearn(weights, tmp_path / "run", *QUICK, "--validation", f"indices:{positions}") == 2
            assert message in error_of(capsys)
            assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("more", "forget", "message"),
        [
            ([], "random:0.1", "the ceiling 'held-out' cannot be measured: the network was trained on the whole"),
            (["--validation", "test:0.5"], "class:3", "what class:3 forgets, whole classes or identities"),
        ],
    )
    def test_what_cannot_be_measured_is_refused_before_the_folder_is_made(
        self,
        weights,
        tmp_path,
        capsys,
        more,
        forget,
        message,
    ):
        assert unlearn(weights, tmp_path / "run", *QUICK, *more, HELD_OUT, forget=forget) == 2
        assert message in error_of(capsys)
        assert not (tmp_path / "run").exists()
        plan = ["plan", "--model", "mlp", "--dataset", "digits", "--forget", forget, *QUICK, *more, HELD_OUT]
        assert cli.main(plan) == 2
        assert message in error_of(capsys)

    def test_a_plan_measures_nothing(self, monkeypatch):
        monkeypatch.setattr(losses, "average_loss", None)
        settings = ScissorhandsSettings(epochs=1, batch_size=64, ceiling="held-out")
        job = RunConfig(model="mlp", dataset="digits", forget="random:0.1", validation="test:0.5", method=settings)
        assert planning.plan_run(job, memory_gib=64).document()["steps"] == 19

    def test_tuning_tries_with_the_measured_number(self, weights, tmp_path):
        about = ["tune", "--weights", weights, "--model", "mlp", "--dataset", "digits", "--forget", "random:0.1"]
        about += ["--insist", "--validation", "test:0.5", "--trials", 2, *QUICK]
        scores = []
        for name in ("held-out", "off"):
            out = tmp_path / name
            assert cli.main(list(map(str, [*about, "--out", out, f"method.ceiling={name}"]))) == 0
            scores.append([trial["score"] for trial in json.loads((out / "tuning.json").read_text())["trials"]])
        assert len(scores[0]) == 2
        assert scores[0] != scores[1]


class TestTablesAndAudits:
    """Networks for the digits that learn for a moment."""

    def experiment(self, ceiling, **changes):
        settings = ScissorhandsSettings(epochs=2, batch_size=30, learning_rate=0.05, ceiling=ceiling)
        scenario = Scenario(name="random 10 %", forget=("random:0.1",), methods={"scissorhands": settings})
        return dataclasses.replace(EXPERIMENT, scenarios=(scenario,), **changes)

    def test_a_cell_is_the_one_with_the_number(self, tmp_path):
        found = {}
        with Progress(disable=True) as progress:
            for name in ("held-out", "number"):
                ceiling = "held-out" if name == "held-out" else found["loss"]
                experiment = self.experiment(ceiling)
                one = SeededScenario(
                    TableNetworks(experiment, None, tmp_path / name, tmp_path / "networks"), experiment.scenarios[0], 3
                )
                original = one.original(progress)
                found["loss"] = losses.average_loss(one.store.loaded.loss_fn, *original[:2], one.validation)
                found[name] = one.unlearned("scissorhands", progress)
        assert same_bits(found["held-out"][:2], found["number"][:2])

    def test_without_held_out_examples_a_table_is_refused(self, tmp_path):
        experiment = self.experiment("held-out", validation_share=0.0)
        store = TableNetworks(experiment, None, tmp_path, tmp_path)
        with pytest.raises(InputError, match=r"and there are none; hold some out with validation_share=0\.1"):
            SeededScenario(store, experiment.scenarios[0], 3)

    def test_wrong_labels_and_classes_are_refused(self, tmp_path):
        for forget, flipped in ((("flipped",), 0.2), (("random:0.1", "class:{seed}"), 0.0)):
            experiment = self.experiment("held-out")
            scenario = dataclasses.replace(experiment.scenarios[0], forget=forget, flipped_labels=flipped)
            store = TableNetworks(dataclasses.replace(experiment, scenarios=(scenario,)), None, tmp_path, tmp_path)
            with pytest.raises(InputError, match="resembles what"):
                SeededScenario(store, scenario, 3)

    def test_an_audit_measures_every_network(self, tmp_path, monkeypatch):
        asked = []

        def measured(loss_fn, params, model_state, examples, whole=losses.average_loss):
            asked.append((data_lib.size(examples), whole(loss_fn, params, model_state, examples)))
            return asked[-1][1]

        monkeypatch.setattr(losses, "average_loss", measured)
        experiment = self.experiment("held-out", validation_share=0.2)
        audit_run.run_audit(experiment, tmp_path / "out", num_networks=4, tier="smoke", console=QUIET)
        sizes, values = zip(*asked, strict=True)
        assert len(set(sizes)) == 1
        assert len(set(values)) > 1

    def test_without_held_out_examples_an_audit_is_refused(self, tmp_path):
        experiment = self.experiment("held-out", validation_share=0.0)
        with pytest.raises(InputError, match="and there are none; hold some out"):
            audit_networks.Audit(
                experiment, audit_networks.TIERS["smoke"], None, seed=0, data_dir=None, networks=tmp_path
            )
