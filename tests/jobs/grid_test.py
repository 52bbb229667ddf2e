"""Tables: what is in a cell, and what a resumed table does."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from scissorhands_jax import models, report
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import grid, scenarios
from scissorhands_jax.jobs.cells import slug
from scissorhands_jax.jobs.experiment import Experiment, LoadedExperiment, Scenario, Sweep
from scissorhands_jax.jobs.scenarios import SeededScenario, TableNetworks
from scissorhands_jax.methods import describe
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings
from scissorhands_jax.methods.scissorhands import ScissorhandsSettings
from scissorhands_jax.metrics import distances, gradcam
from scissorhands_jax.report import gates, provenance
from scissorhands_jax.training import checkpoints

QUIET = Console(quiet=True)
BATCH = {"batch_size": 100}
METHOD = {"finetune": FinetuneSettings(epochs=1, **BATCH)}
EXPERIMENT = Experiment(
    name="tiny",
    dataset="digits",
    model="mlp",
    model_options={"hidden": (16, 16)},
    train_limit=600,
    test_limit=200,
    training=RetrainSettings(epochs=3, learning_rate=0.2, milestones=(2,), **BATCH),
    relearn_epochs=2,
    relearning=FinetuneSettings(learning_rate=0.1, batch_size=30),
    scenarios=(
        Scenario(
            name="random 10 %",
            forget=("random:0.1",),
            methods={**METHOD, "scissorhands": ScissorhandsSettings(epochs=1, **BATCH)},
            sweeps={"scissorhands": Sweep("fraction", 0.03)},
        ),
        Scenario(name="wrong labels", flipped_labels=0.2, forget=("flipped",), methods=METHOD),
        Scenario(name="two requests", forget=("random:0.1", "class:{seed}"), methods=METHOD),
    ),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The folder of a finished table of one seed, and its document."""
    out = tmp_path_factory.mktemp("table") / "out"
    return out, grid.run_grid(EXPERIMENT, out, seeds=[3], console=QUIET)


def test_a_forget_set_smaller_than_the_figure_has_its_own_images_alone(tmp_path, monkeypatch):
    drawn = {}

    def heatmaps(model, params, model_state, images, classes, *, layer):
        return np.zeros(images.shape[:3])

    monkeypatch.setitem(models.CAM_LAYERS, "mlp", "hidden")
    monkeypatch.setattr(gradcam, "heatmaps", heatmaps)
    monkeypatch.setattr(report, "gradcam_figure", lambda images, maps, **options: drawn.update(options, images=images))
    monkeypatch.setattr(SeededScenario, "network_folder", lambda self, label: tmp_path)
    network = scenarios.TrainedNetwork(*LoadedExperiment(EXPERIMENT, None).model.init(jax.random.key(0)), None)
    monkeypatch.setattr(SeededScenario, "load", lambda self, label: network)
    few = dataclasses.replace(EXPERIMENT.scenarios[0], forget=("random:0.005",))
    experiment = dataclasses.replace(EXPERIMENT, scenarios=(few,), gradcam_layer="hidden")
    grid.gradcam_picture(experiment, tmp_path, seed=3, num_images=4)
    assert (drawn["num_forget"], len(drawn["images"])) == (3, 3 + 4)


def cells(document):
    return {(cell["scenario"], cell["method"]): cell for cell in document["cells"]}


class TestTable:
    def test_there_is_a_row_per_scenario_and_method(self, table):
        _, document = table
        labels = [(row["scenario"], row["method"]) for row in document["rows"]]
        assert labels == [
            (scenario.name, label)
            for scenario in EXPERIMENT.scenarios
            for label in ("original", "retrain", report.REDRAWN, *scenario.methods)
        ]

    def test_rows_compare_with_the_retrained_network_of_their_scenario(self, table):
        _, document = table
        rows = {(row["scenario"], row["method"]): row for row in document["rows"]}
        for (scenario, _), row in rows.items():
            reference = rows[scenario, "retrain"]
            assert row["avg_gap"] == distances.average_gap(row, reference)
            assert row["rte"] == pytest.approx(row["seconds"] / reference["seconds"])
            assert row["gap_share"] == pytest.approx(100 * row["avg_gap"] / rows[scenario, "original"]["avg_gap"])
        assert rows["random 10 %", "scissorhands"]["sweep"] == {"name": "fraction", "value": 0.03}

    def test_the_second_retrained_network_is_another_one_trained_in_the_same_way(self, table):
        out, document = table
        for scenario in EXPERIMENT.scenarios:
            one, other = (cells(document)[scenario.name, label] for label in ("retrain", report.REDRAWN))
            assert one["network"] != other["network"]
            assert one["settings"] == other["settings"]
            name = slug(f"{scenario.name}-seed3-{report.REDRAWN}")
            found = [
                checkpoints.read_description(out / "networks" / n)
                for n in (name, f"{slug(scenario.name)}-seed3-retrain")
            ]
            assert found[0]["trained_on_sha256"] == found[1]["trained_on_sha256"]
            assert (found[0]["seed"], found[1]["seed"]) == (2003, 1003)

    def test_every_cell_says_which_code_and_which_settings_made_it(self, table):
        _, document = table
        now = provenance.running_code().name
        assert {cell["code"] for cell in document["cells"]} == {now} == {document["made_by"]["code"]}
        assert len({cell["experiment_sha256"] for cell in document["cells"]}) == 1
        assert document["code"] == f"All cells were made by {now}."

    def test_cells_of_other_code_are_named_and_kept(self, table, tmp_path, capsys):
        """Old cells have no commit; the networks of others may be from a third one."""
        out, document = table
        copy = tmp_path / "copy"
        shutil.copytree(out, copy)
        finetune, retrain = (next((copy / "cells").glob(f"random*{name}.json")) for name in ("finetune", "retrain"))
        for path, change in ((finetune, {"code": "0123456789ab"}), (retrain, {"trained_by": "0123456789ab"})):
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        next((copy / "cells").glob("random*original.json")).unlink()
        again = grid.run_grid(EXPERIMENT, copy, seeds=[3], console=Console(stderr=True, width=2000))
        assert len(again["cells"]) == len(document["cells"])
        named = "0123456789ab: random 10 %, seed 3, finetune, the network of random 10 %, seed 3, retrain"
        assert again["code"].startswith("The cells were made by 2 states of the code, which may give other numbers. ")
        assert named in again["code"]
        assert named in capsys.readouterr().err
        grid.write_report(copy, again, title="tiny")
        assert named in (copy / "report.html").read_text()

    def test_cells_of_other_settings_are_refused_by_name(self, table, tmp_path):
        out, _ = table
        for change, message in (
            ({"settings": {"learning_rate": 7.0}}, "finetune: its learning_rate was 7.0 and is now 0.01"),
            ({"experiment_sha256": "0"}, "finetune: its data, its network or the training of that was another"),
            ({"method": "other"}, "random 10 %, seed 3, other: this table has no such cell"),
        ):
            copy = tmp_path / str(len(list(tmp_path.iterdir())))
            shutil.copytree(out, copy)
            path = next((copy / "cells").glob("random*finetune.json"))
            cell = json.loads(path.read_text())
            settings = cell["settings"] | change.get("settings", {})
            path.write_text(json.dumps(cell | change | {"settings": settings}))
            with pytest.raises(
                InputError, match=f"^1 of 13 cells in .* made with other settings .*such as .*{message}"
            ):
                grid.run_grid(EXPERIMENT, copy, seeds=[3], console=QUIET)

    def test_a_cell_says_what_was_done_and_measured(self, table):
        _, document = table
        cell = cells(document)["random 10 %", "scissorhands"]
        assert cell["settings"]["method"] == "scissorhands"
        assert cell["settings"]["forget_weight"] == 0.05
        assert cell["cost"]["steps"] == 5 == -(-486 // 100)
        assert cell["forget"]["count"] == 54
        for name in ("acc_validation", "mia_correctness", "mia_loss", "mia_modified_entropy"):
            assert 0 <= cell["metrics"][name] <= 100
        assert cell["relearn"]["cap"] == 2
        assert 1 <= len(cell["relearn"]["curve"]) <= 3

    def test_the_splits_are_written_down(self, table):
        out, _ = table
        store = TableNetworks(EXPERIMENT, None, out, out)
        for scenario in EXPERIMENT.scenarios:
            saved = json.loads((out / "positions" / f"{slug(scenario.name)}-seed3.json").read_text())
            prepared = SeededScenario(store, scenario, 3)
            assert saved["trained_on"] == prepared.trained_on.tolist()
            assert saved["validation"] == prepared.held_out.tolist()
            assert [len(request) for request in saved["requests"]] == [len(r) for r in prepared.requests]

    def test_the_original_needs_no_relearning(self, table):
        _, document = table
        assert cells(document)["random 10 %", "original"]["relearn"]["epochs"] == 0

    def test_gates_stand_beside_the_numbers(self, table):
        out, document = table
        found = {gate["name"]: gate["passed"] for gate in document["gates"]}
        assert len(found) == 3 * len(EXPERIMENT.scenarios)
        # Wrong labels come with held-out examples that have wrong ones; a class of a mixed request has some, too.
        assert [value for name, value in found.items() if gates.SILENT in name] == [True] * 3
        assert [value for name, value in found.items() if gates.FARTHER in name] == [None] * 3
        grid.write_report(out, document, title="tiny")
        page = (out / "report.html").read_text()
        assert page.index(report.gates_note(document["gates"])[:40]) < page.index("<h2>random 10 %</h2>")

    def test_results_hold_no_path(self, table):
        out, document = table
        assert str(out) not in json.dumps(document)

    def test_a_second_call_makes_nothing_anew(self, table):
        out, document = table
        before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
        again = grid.run_grid(EXPERIMENT, out, seeds=[3], console=QUIET)
        assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == before
        assert again["rows"] == document["rows"]
        # Whoever repeats it after its end has computed nothing.
        made = {**again, "made_by": {**again["made_by"], "date": "yesterday"}}
        (out / "results.json").write_text(json.dumps(made))
        assert grid.run_grid(EXPERIMENT, out, seeds=[3], console=QUIET)["made_by"]["date"] == "yesterday"
        assert json.loads((out / "results.json").read_text())["seconds"] == made["seconds"]

    def test_the_page_says_what_the_hashes_of_networks_are(self, table, tmp_path):
        _, document = table
        grid.write_report(tmp_path, document, title="tiny")
        assert "Networks (SHA-256)" in (tmp_path / "report.html").read_text()
        earlier = {**document["cells"][0], "network": "cb2416ac"}
        grid.write_report(tmp_path, {**document, "cells": [earlier, *document["cells"][1:]]}, title="tiny")
        assert "Networks (SHA-256, or earlier a checksum)" in (tmp_path / "report.html").read_text()

    def test_a_table_goes_on_from_its_results_alone(self, table, tmp_path):
        """Also with a failure; an original that was trained again and came out differently is named."""
        out, _ = table
        results = tmp_path / "results.json"
        document = json.loads((out / "results.json").read_text())
        lost = [
            cell for cell in document["cells"] if (cell["scenario"], cell["method"]) != ("two requests", "finetune")
        ]
        place = {"scenario": "wrong labels", "seed": 3, "method": "finetune"}
        failed = next(cell for cell in lost if place.items() <= cell.items())
        failure = place | {"settings": failed["settings"], "failure": "it diverged", "code": failed["code"]}
        kept = [
            cell | ({"network": "0"} if cell["method"] == "original" else {}) for cell in lost if cell is not failed
        ]
        results.write_text(json.dumps(document | {"cells": kept, "failures": [failure]}))
        grid.run_grid(
            EXPERIMENT, tmp_path / "out", seeds=[3], networks=out / "networks", go_on_from=results, console=QUIET
        )
        again = json.loads((tmp_path / "out" / "results.json").read_text())
        assert again["failures"] == [failure | {"forget": {"requests": ["flipped"]}, "flipped_labels": 0.2}]
        new = cells(again)["two requests", "finetune"]
        assert cells(again) == {(cell["scenario"], cell["method"]): cell for cell in [*kept, new]}
        assert new["network"] == cells(document)["two requests", "finetune"]["network"]
        assert "another original of the same seed than the table's: random 10 %, seed 3, finetune," in again["code"]
        with pytest.raises(InputError, match=r"results\.json is read and lies in"):
            grid.run_grid(EXPERIMENT, out, seeds=[3], go_on_from=out / "results.json", overwrite=True, console=QUIET)
        assert "another original" not in document["code"]
        experiment = dataclasses.replace(EXPERIMENT, gradcam_layer="hidden")
        assert grid.gradcam_picture(experiment, tmp_path / "nowhere", seed=3) is None

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"rows": [], "config": {}}, "holds no cells of a table"),
            ({"rows": [], "config": {}, "cells": [{"scenario": "x"}], "failures": []}, "holds no cells of a table"),
            ({"rows": [], "config": {}, "cells": ["text"], "failures": []}, "holds no cells of a table"),
            ({"rows": [], "config": {}, "cells": [], "failures": [{"scenario": "x"}]}, "holds no cells of a table"),
            (
                {
                    "rows": [],
                    "config": {},
                    "cells": [],
                    "failures": [
                        {"scenario": "x", "seed": 0, "method": "y", "settings": {}, "failure": "", "code": None}
                    ],
                },
                "such as x, seed 0, y: this table has no such cell",
            ),
        ],
    )
    def test_results_that_are_no_table_are_refused(self, tmp_path, content, message):
        (tmp_path / "results.json").write_text(json.dumps(content | report.environment()))
        with pytest.raises(InputError, match=message):
            grid.run_grid(EXPERIMENT, tmp_path / "out", seeds=[3], go_on_from=tmp_path / "results.json", console=QUIET)
        assert not (tmp_path / "out").exists()

    def test_results_of_other_settings_are_refused(self, table, tmp_path):
        out, _ = table
        other = dataclasses.replace(EXPERIMENT, relearn_epochs=3)
        with pytest.raises(InputError, match=r"13 of 13 cells in .*results\.json were made with other settings"):
            grid.run_grid(other, tmp_path / "out", seeds=[3], go_on_from=out / "results.json", console=QUIET)
        document = json.loads((out / "results.json").read_text())
        place = {"scenario": "wrong labels", "seed": 3, "method": "finetune"}
        failure = place | {
            "settings": describe(METHOD["finetune"]) | {"learning_rate": 7.0},
            "failure": "",
            "code": None,
        }
        results = tmp_path / "results.json"
        results.write_text(json.dumps(document | {"cells": [], "failures": [failure]}))
        with pytest.raises(InputError, match=r"seed 3, finetune: its learning_rate was 7\.0 and is now 0\.01"):
            grid.run_grid(EXPERIMENT, tmp_path / "out", seeds=[3], go_on_from=results, console=QUIET)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"forget": ("random:0.3",)}, "it forgot random:0.1, and would now forget random:0.3"),
            ({"flipped_labels": 0.1}, "its flipped_labels was 0.0 and is now 0.1"),
        ],
    )
    @pytest.mark.parametrize("earlier", [False, True])
    def test_cells_and_failures_of_other_examples_are_refused(self, table, tmp_path, change, message, earlier):
        """Results of earlier versions say in their settings alone how many labels are wrong, and what failed."""
        out, document = table
        kept = [cell for cell in document["cells"] if cell["scenario"] == "random 10 %"]
        if earlier:
            kept = [{name: value for name, value in cell.items() if name != "flipped_labels"} for cell in kept]
        failed = {
            name: kept[-1][name] for name in kept[-1] if name in ("scenario", "seed", "method", "settings", "code")
        }
        known = {name: kept[-1][name] for name in ("forget", "flipped_labels") if not earlier}
        failure = {**failed, "failure": "it diverged", **known}
        results, first = tmp_path / "results.json", EXPERIMENT.scenarios[0]
        other = dataclasses.replace(EXPERIMENT, scenarios=(dataclasses.replace(first, **change),))
        for parts in ({"cells": kept, "failures": []}, {"cells": [], "failures": [failure]}):
            results.write_text(json.dumps(document | parts))
            found, store = grid.cells_in(results), TableNetworks(EXPERIMENT, None, out, out)
            grid.Table(store).check(found, "results.json")
            with pytest.raises(InputError, match=f"{len(found)} of {len(found)} cells in .*{message}"):
                grid.run_grid(other, tmp_path / "out", seeds=[3], go_on_from=results, console=QUIET)

    def test_positions_in_a_file_count_by_its_content(self, table, tmp_path):
        _, document = table
        file, results = tmp_path / "forget.txt", tmp_path / "results.json"
        scenario = dataclasses.replace(EXPERIMENT.scenarios[0], forget=(f"indices:{file}",))
        store = TableNetworks(dataclasses.replace(EXPERIMENT, scenarios=(scenario,)), None, tmp_path, tmp_path)
        positions = SeededScenario(TableNetworks(EXPERIMENT, None, tmp_path, tmp_path), EXPERIMENT.scenarios[0], 3)
        file.write_text("\n".join(map(str, positions.forget_positions)))
        forget = dataclasses.asdict(positions.forget_summary()) | {"requests": [f"indices:{file}"]}
        cell, other = (cells(document)["random 10 %", method] | {"forget": forget} for method in scenario.methods)
        failure = {name: other[name] for name in ("scenario", "seed", "method", "settings", "code", "forget")}
        results.write_text(
            json.dumps(document | {"cells": [cell], "failures": [{**failure, "failure": "it diverged"}]})
        )
        grid.Table(store).check(grid.cells_in(results), "results.json")
        file.write_text("\n".join(map(str, positions.trained_on[:54])))
        with pytest.raises(InputError, match=r"2 of 2 cells in .*indices:.*forget\.txt named other examples"):
            grid.Table(store).check(grid.cells_in(results), "results.json")

    def test_a_lost_cell_comes_back_the_same_but_for_its_time(self, table, tmp_path):
        finished, document = table
        out = shutil.copytree(finished, tmp_path / "out")
        next((out / "cells").glob("random*scissorhands.json")).unlink()
        again = grid.run_grid(EXPERIMENT, out, seeds=[3], console=QUIET)
        old, new = (cells(d)["random 10 %", "scissorhands"] for d in (document, again))
        assert {**new, "cost": None, "process": None} == {**old, "cost": None, "process": None}
        # Retraining was timed in another process, so that the ratio would compare two machines.
        assert next(row for row in again["rows"] if row["method"] == "scissorhands")["rte"] is None

    def test_another_experiment_is_refused(self, table):
        out, _ = table
        other = dataclasses.replace(EXPERIMENT, split_seed=2)
        with pytest.raises(InputError, match="split_seed was 1 and is now 2"):
            grid.run_grid(other, out, seeds=[3], console=QUIET)

    def test_a_choice_that_is_no_expression_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"the choice of methods '\(' is not a regular expression"):
            grid.run_grid(EXPERIMENT, tmp_path / "out", seeds=[3], only="(", console=QUIET)

    def test_a_choice_that_matches_nothing_is_refused_and_an_empty_one_is_not(self, tmp_path):
        with pytest.raises(InputError, match=r"'salum' matches none of finetune, scissorhands; correct it, or write"):
            grid.run_grid(EXPERIMENT, tmp_path / "out", seeds=[3], only="salum", console=QUIET)
        assert not (tmp_path / "out").exists()
        assert not grid.label_pattern("^$", ["finetune"]).search("finetune")
        assert grid.label_pattern(None, []).search("finetune")

    def test_networks_are_shared_between_tables(self, table, tmp_path):
        out, document = table
        one = dataclasses.replace(EXPERIMENT, scenarios=EXPERIMENT.scenarios[:1])
        networks = out / "networks"
        shared = grid.run_grid(one, tmp_path / "one", seeds=[3], networks=networks, only="^finetune$", console=QUIET)
        assert [row["method"] for row in shared["rows"]] == ["original", "retrain", report.REDRAWN, "finetune"]
        assert (
            cells(shared)["random 10 %", "retrain"]["network"] == cells(document)["random 10 %", "retrain"]["network"]
        )
        assert shared["rows"][1]["seconds"] is None
        two = grid.run_grid(
            one, tmp_path / "two", seeds=[3], networks=networks, only="^finetune$", redrawn=False, console=QUIET
        )
        assert [row["method"] for row in two["rows"]] == ["original", "retrain", "finetune"]

    def test_another_table_does_not_replace_what_this_one_unlearned(self, table, tmp_path):
        out, document = table
        slower = FinetuneSettings(epochs=1, learning_rate=1e-4, **BATCH)
        scenario = dataclasses.replace(EXPERIMENT.scenarios[0], methods={"finetune": slower}, sweeps={})
        other = dataclasses.replace(EXPERIMENT, scenarios=(scenario,), relearn_epochs=0, every_attack=False)
        name = "random_10_percent-seed3-finetune"
        before = checkpoints.read_description(out / "networks" / name)
        again = grid.run_grid(other, tmp_path / "out", seeds=[3], networks=out / "networks", console=QUIET)
        assert checkpoints.read_description(out / "networks" / name) == before
        cell = cells(again)["random 10 %", "finetune"]
        assert checkpoints.read_description(tmp_path / "out" / "networks" / name)["network"] == cell["network"]
        assert cell["network"] != cells(document)["random 10 %", "finetune"]["network"]

    def test_a_network_of_another_training_is_refused(self, table, tmp_path):
        out, _ = table
        other = dataclasses.replace(EXPERIMENT, training=dataclasses.replace(EXPERIMENT.training, epochs=4))
        with pytest.raises(
            InputError,
            match=r"belongs to another run: training.epochs was 3 and is now 4; remove it, or name another folder",
        ):
            grid.run_grid(other, tmp_path / "out", seeds=[3], networks=out / "networks", console=QUIET)

    def test_networks_that_are_kept_in_its_folder_are_not_removed_for_it(self, tmp_path):
        out = tmp_path / "out"
        with pytest.raises(InputError, match="out/nets is read and lies in"):
            grid.run_grid(EXPERIMENT, out, seeds=[3], networks=out / "nets", overwrite=True, console=QUIET)

    @pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
    def test_seeds_are_checked(self, tmp_path, seeds):
        with pytest.raises(InputError, match="seeds must be different numbers from 0 on"):
            grid.run_grid(EXPERIMENT, tmp_path / "out", seeds=seeds, console=QUIET)
        assert not (tmp_path / "out").exists()


def test_a_cell_that_was_stopped_goes_on_from_its_last_epoch(tmp_path, monkeypatch):
    one = dataclasses.replace(EXPERIMENT, scenarios=EXPERIMENT.scenarios[:1], relearn_epochs=0, every_attack=False)
    whole = grid.run_grid(one, tmp_path / "whole", seeds=[0], only="^$", console=QUIET)
    kept = dataclasses.replace(one, checkpoint_cells=True)
    true_run, steps = scenarios.run, []

    def stopped(*arguments, on_step, **options):
        def count(progress):
            steps.append(progress.epoch)
            if len(steps) == 12:
                raise KeyboardInterrupt
            on_step(progress)

        return true_run(*arguments, on_step=count, **options)

    monkeypatch.setattr(scenarios, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        grid.run_grid(kept, tmp_path / "out", seeds=[0], only="^$", console=QUIET)
    first = list(steps)
    assert first[0] == 0
    assert first[-1] >= 1
    assert not list((tmp_path / "out").glob("cells/*"))
    resumed = grid.run_grid(kept, tmp_path / "out", seeds=[0], only="^$", console=QUIET)
    assert steps[len(first)] == first[-1], "the epochs before the last checkpoint are not run again"
    old, new = (cells(document)["random 10 %", "original"] for document in (whole, resumed))
    assert new["network"] == old["network"]
    assert new["cost"] is None
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


def test_a_method_that_diverges_is_a_failure_and_the_table_goes_on(tmp_path):
    hopeless = FinetuneSettings(epochs=3, learning_rate=1e12, **BATCH)
    scenario = Scenario(name="one", forget=("random:0.1",), methods={"hopeless": hopeless, **METHOD})
    experiment = dataclasses.replace(EXPERIMENT, scenarios=(scenario,), relearn_epochs=0, every_attack=False)
    document = grid.run_grid(experiment, tmp_path / "out", seeds=[0], console=QUIET)
    assert [row["method"] for row in document["rows"]] == ["original", "retrain", report.REDRAWN, "finetune"]
    (failure,) = document["failures"]
    assert failure["method"] == "hopeless"
    assert "lower the learning rate" in failure["failure"]
    assert {name: failure[name] for name in ("forget", "flipped_labels")} == {
        name: document["cells"][0][name] for name in ("forget", "flipped_labels")
    }
    assert not any("lost_runs" in row for row in document["rows"]), "it has no row"
    assert report.failures_note(document) == "Runs that diverged, which no number counts: hopeless in 1 of 1 (one)."
