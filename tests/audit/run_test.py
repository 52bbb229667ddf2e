"""An audit from end to end: random labels that a network knows by heart, one method that forgets, one that does not."""

import dataclasses
import io
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import audit as experiments_audit
from scissorhands_jax import datasets, report
from scissorhands_jax.audit import TIERS, run_audit
from scissorhands_jax.audit.networks import Audit, AuditTarget
from scissorhands_jax.cli import main as cli
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.experiment import Experiment, Scenario
from scissorhands_jax.methods.finetune import FinetuneSettings
from scissorhands_jax.methods.retrain import RetrainSettings

QUIET = Console(quiet=True)
SGD = {"batch_size": 40, "weight_decay": 0.0}
# `retrain` as a method reads nothing of the original: the perfect method.
METHODS = {
    "nothing": FinetuneSettings(epochs=1, learning_rate=0.0, **SGD),
    "from scratch": RetrainSettings(epochs=15, learning_rate=0.1, milestones=(), **SGD),
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("", 600), ("test_", 150)):
        arrays[f"{part}image"] = generator.integers(0, 2, (count, 8, 8, 2)).astype(np.float32)
        arrays[f"{part}label"] = generator.integers(0, 3, count).astype(np.int32)
    file = tmp_path_factory.mktemp("data") / "noise.npz"
    np.savez(file, **arrays)
    return Experiment(
        name="noise",
        dataset=f"npz:{file}",
        model="mlp",
        model_options={"hidden": (64,)},
        validation_share=0.0,
        augment=False,
        training=RetrainSettings(epochs=15, learning_rate=0.1, milestones=(), **SGD),
        relearning=FinetuneSettings(learning_rate=0.01, **SGD),
        scenarios=(
            Scenario(name="set 1", forget=("random:0.1",), methods=METHODS),
            Scenario(name="set 2", forget=("random:0.1",), methods={"nothing": METHODS["nothing"]}),
        ),
    )


@pytest.fixture(scope="module")
def done(experiment, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "out"
    return out, run_audit(experiment, out, num_networks=12, console=QUIET)


def means(document):
    found = {}
    for entry in document["evidence"]:
        if entry["scenario"] is None:
            found[entry["method"], entry["metric"]] = entry
    return found


class TestStandard:
    def test_all_gates_hold(self, done):
        _, document = done
        assert [gate["passed"] for gate in document["gates"] if gate["decides"]] == [True] * 8, document["gates"]
        assert document["trusted"] is True
        assert "gates of the attacks that were run hold" in report.audit_verdict(document["gates"])

    def test_distances_stand_beside_null_at_its_number_of_networks(self, done):
        _, document = done
        found = means(document)
        for metric in ("klom_forget", "klom_retain", "klom_held_out", "forgetting_score"):
            networks = {method: entry["networks"] for (method, name), entry in found.items() if name == metric}
            assert set(networks.values()) == {6}
            assert report.NULL not in networks
            halves = {m: entry["networks"] for (m, name), entry in found.items() if name == f"{metric}_halves"}
            assert set(halves.values()) == {3}
            assert set(halves) == set(networks) | {report.NULL}
        own = {gate["metric"]: gate for gate in document["gates"] if not gate["decides"]}
        assert set(own) == {"klom_forget_halves", "forgetting_score_halves"}
        null, original = (found[label, "forgetting_score_halves"] for label in (report.NULL, "original"))
        assert null["low"] < null["value"] < null["high"]
        assert own["forgetting_score_halves"]["passed"] is (original["value"] < null["low"])
        assert all(one["low"] == one["value"] == one["high"] for (_, name), one in found.items() if "klom" in name)

    def test_what_does_nothing_is_caught_as_the_original_is(self, done):
        _, document = done
        found = means(document)
        for metric in ("u_lira_auc", "lira_auc", "rmia_auc", "population_auc"):
            assert found["nothing", metric]["low"] > 0.5
            assert found["nothing", metric]["value"] == pytest.approx(found["original", metric]["value"], abs=0.02)
        assert found["nothing", "klom_forget"]["value"] > 1.3 * found["from scratch", "klom_forget"]["value"]
        assert found["nothing", "forgetting_score"]["value"] < 0.5 * found["from scratch", "forgetting_score"]["value"]

    def test_whoever_repeats_it_after_its_end_has_not_made_it(self, done, experiment, tmp_path):
        folder, document = done
        out = shutil.copytree(folder, tmp_path / "out")
        made = {**document, "made_by": {**document["made_by"], "date": "yesterday"}}
        (out / "results.json").write_text(json.dumps(made))
        again = run_audit(experiment, out, num_networks=12, console=QUIET)
        assert (again["made_by"], again["seconds"]) == (made["made_by"], made["seconds"])

    def test_what_retrains_is_not(self, done):
        _, document = done
        found = means(document)
        for metric in ("u_lira_auc", "lira_auc", "rmia_auc", "population_auc"):
            entry = found["from scratch", metric]
            assert entry["low"] <= 0.5 <= entry["high"], metric
        assert abs(found["from scratch", "recovered"]["value"]) < 15

    def test_one_retrained_network_is_as_far_from_another_as_what_retrains(self, done):
        _, document = done
        found = means(document)
        far = found["from scratch", "distance_retrained"]["value"]
        assert found["retrain", "distance_retrained"]["value"] == pytest.approx(far, rel=0.15)

    def test_every_number_has_an_interval_around_it(self, done):
        _, document = done
        assert {entry["metric"] for entry in document["evidence"]} == set(report.METRICS)
        for entry in document["evidence"]:
            assert entry["low"] <= entry["value"] <= entry["high"], entry
        assert {entry["scenario"] for entry in document["evidence"]} == {"set 1", "set 2", None}

    def test_rows_compare_with_the_partner(self, done):
        _, document = done
        counts = {}
        for row in document["rows"]:
            counts[row["scenario"], row["method"]] = counts.get((row["scenario"], row["method"]), 0) + 1
            assert row["avg_gap"] is not None
        assert set(counts.values()) == {6}
        assert len(counts) == 7

    def test_the_page_shows_gates_before_numbers(self, done):
        out, document = done
        page = (out / "report.html").read_text()
        assert page.index("<h2>Gates</h2>") < page.index("U-LiRA AUC, held out") < page.index("<h2>set 1</h2>")
        assert report.audit_verdict(document["gates"]).split(":")[0] in page
        assert str(out) not in page

    def test_wherever_means_are_shown_those_over_fewer_forget_sets_are_named(self, done, capsys):
        out, document = done
        page, note = (out / "report.html").read_text(), report.means_note(document)
        assert note.startswith("Means over forget sets. Over set 1 alone: from scratch")
        assert page.count(note) == len(report.evidence_grids(document)) + 2, "both figures and every table"
        assert report.audit_answer(document).endswith(". Over set 1 alone: from scratch.")
        console = Console(width=1000, file=io.StringIO())
        report.print_audit(document, console)
        assert note in console.file.getvalue()

    def test_a_second_call_makes_what_is_missing_and_says_what_it_costs(self, done, experiment):
        out, document = done
        lost = next((out / "cells").glob("set_2-nothing-*"))
        lost.unlink()
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
        console = Console(width=200, file=io.StringIO())
        again = run_audit(experiment, out, num_networks=12, console=console)
        after = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
        assert {path: time for path, time in after.items() if path != lost} == before
        assert lost in after
        assert again["evidence"] == document["evidence"]
        assert again["gates"] == document["gates"]
        text = console.file.getvalue()
        assert "0 networks to train and 1 to unlearn or measure: about" in text
        assert text.index("MB of disk") < text.index("that were run hold")

    def test_another_seed_is_another_audit(self, done, experiment):
        out, _ = done
        with pytest.raises(InputError, match="seed was 0 and is now 1"):
            run_audit(experiment, out, num_networks=12, seed=1, console=QUIET)

    @pytest.mark.parametrize(("image", "what"), [("image", "training_data"), ("test_image", "watched_data")])
    def test_other_data_under_the_same_name_are_another_audit(self, done, experiment, image, what):
        out, _ = done
        file = pathlib.Path(experiment.dataset.removeprefix("npz:"))
        before = file.read_bytes()
        with np.load(file) as held:
            arrays = dict(held)
        arrays[image] = 1 - arrays[image]
        try:
            np.savez(file, **arrays)
            with pytest.raises(InputError, match=f"another run: {what}_sha256 was"):
                run_audit(experiment, out, num_networks=12, console=QUIET)
        finally:
            file.write_bytes(before)


def test_a_network_that_is_fitted_to_its_images_is_audited_to_the_end(tmp_path):
    """`resnet9` whitens images by the covariance of those that it is trained on, so it takes more than positions."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("", 60), ("test_", 30)):
        arrays[f"{part}image"] = generator.uniform(size=(count, 10, 10, 3)).astype(np.float32)
        arrays[f"{part}label"] = generator.integers(0, 3, count).astype(np.int32)
    np.savez(tmp_path / "noise.npz", **arrays)
    brief = {"epochs": 1, "batch_size": 20}
    small = Experiment(
        name="small",
        dataset=f"npz:{tmp_path / 'noise.npz'}",
        model="resnet9",
        model_options={"widths": (2, 2, 2)},
        validation_share=0.0,
        augment=False,
        training=RetrainSettings(**brief),
        relearning=FinetuneSettings(**brief),
        scenarios=(Scenario(name="set", forget=("random:0.2",), methods={"finetune": FinetuneSettings(**brief)}),),
    )
    document = run_audit(small, tmp_path / "out", tier="standard", num_networks=12, console=QUIET)
    assert document["failures"] == []
    assert {entry["method"] for entry in document["evidence"]} == {"original", "retrain", "finetune", report.NULL}
    few = {metric for metric in report.METRICS if metric.startswith("klom")}  # of 12 examples there is no percentile
    assert {entry["metric"] for entry in document["evidence"]} == set(report.METRICS) - few
    assert all(math.isfinite(entry["high"]) for entry in document["evidence"])
    assert {gate["passed"] for gate in document["gates"] if not gate["metric"].startswith("klom")} <= {True, False}
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") >= 2


class TestInput:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"forget": ("random:0.1", "class:1")}, "has 2 forget sets and .*; an audit takes one forget set"),
            ({"flipped_labels": 0.1}, "no wrong labels"),
            ({"methods": {"original": METHODS["nothing"]}}, "has the reserved name original"),
        ],
    )
    def test_a_scenario_that_cannot_be_audited_is_refused(self, experiment, tmp_path, changes, message):
        wrong = dataclasses.replace(experiment.scenarios[0], **changes)
        with pytest.raises(InputError, match=message):
            run_audit(dataclasses.replace(experiment, scenarios=(wrong,)), tmp_path / "out", console=QUIET)
        assert not (tmp_path / "out").exists()

    def test_networks_that_are_kept_in_its_folder_are_not_removed_for_it(self, experiment, tmp_path):
        out = tmp_path / "out"
        with pytest.raises(InputError, match="out/nets is read and lies in"):
            run_audit(experiment, out, tier="smoke", networks=out / "nets", overwrite=True, console=QUIET)

    def test_an_unknown_tier_is_named(self, experiment, tmp_path):
        with pytest.raises(InputError, match="no tier 'huge'; choose one of smoke, standard, full"):
            run_audit(experiment, tmp_path / "out", tier="huge", console=QUIET)

    def test_forget_sets_do_not_overlap_and_have_the_share_of_the_whole(self, experiment, tmp_path):
        work = Audit(experiment, TIERS["smoke"], None, 3, None, tmp_path)
        sizes = [len(positions) for positions in work.design.forget]
        assert sizes == [60, 60]
        assert np.intersect1d(*work.design.forget).size == 0

    def test_whole_classes_are_known_by_what_is_forgotten_and_not_by_how_it_is_written(self, experiment, tmp_path):
        """LiRA and RMIA are not run on them: references that never saw a class reveal the class and not the example."""
        labels = datasets.load(experiment.dataset).train["label"]
        all_but_one = np.flatnonzero(labels == 2)[1:]
        files = {"class": np.flatnonzero(labels == 2), "most": all_but_one, "more": np.flatnonzero(labels >= 1)}
        for name, positions in files.items():
            np.save(tmp_path / f"{name}.npy", positions)
        for name, whole in (("class", True), ("most", False), ("more", True)):
            scenario = dataclasses.replace(experiment.scenarios[0], forget=(f"indices:{tmp_path / name}.npy",))
            changed = dataclasses.replace(experiment, scenarios=(scenario,))
            work = Audit(changed, TIERS["smoke"], None, 3, None, tmp_path / name)
            assert [one.of_classes for one in work.watched.forget_sets] == [whole], name
            probed = work._probe(AuditTarget(0, "original", 0), work.loaded.model.init(jax.random.key(0)))
            assert (probed == (None, None)) is whole, "no example of a class was retained to fit a probe on"

    def test_a_share_is_one_of_the_whole_however_it_is_written(self, experiment, tmp_path):
        for share in ("0.1", "1e-1", "+.1"):
            later = dataclasses.replace(experiment.scenarios[1], forget=(f"random:{share}",))
            changed = dataclasses.replace(experiment, scenarios=(experiment.scenarios[0], later))
            work = Audit(changed, TIERS["smoke"], None, 3, None, tmp_path / share)
            assert [len(positions) for positions in work.design.forget] == [60, 60], share


class TestCommand:
    def test_one_pair_of_networks_and_a_population_attack(self, experiment, tmp_path, capsys):
        arguments = ["audit", "--tier", "smoke", "--out", str(tmp_path / "out"), "--method", "finetune"]
        arguments += ["--dataset", experiment.dataset, "--forget", "random:0.15", "model_options.hidden=[64]"]
        arguments += ["augment=false", "validation_share=0", "training.milestones=none", "training.epochs=15"]
        arguments += ["training.batch_size=40", "finetune.epochs=1", "finetune.batch_size=40"]
        assert cli.main(arguments) == 0
        document = json.loads((tmp_path / "out" / "results.json").read_text())
        assert [row["method"] for row in document["rows"]] == ["original", "retrain", "finetune"]
        assert document["config"]["scenarios"][0]["methods"]["finetune"]["epochs"] == 1
        assert {entry["metric"] for entry in document["evidence"]} == {"population_auc"}
        outcomes = {(gate["metric"], gate["name"]): gate["passed"] for gate in document["gates"]}
        assert outcomes["population_auc", "the original is caught"] is True
        assert outcomes["u_lira_auc", "the original is caught"] is None
        assert document["trusted"] is (outcomes["population_auc", "nothing is found in retrained networks"] is True)
        assert "2 networks to train" in capsys.readouterr().err
        assert (tmp_path / "out" / "report.html").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--method", "retrain"], "there is no method 'retrain' to audit"),
            (["--networks", "7"], "an even number of networks"),
            (["--method", "finetune", "scissorhands.fraction=0.1"], "scissorhands.fraction"),
        ],
    )
    def test_bad_input_is_one_sentence(self, tmp_path, capsys, arguments, message):
        assert cli.main(["audit", "--out", str(tmp_path / "out"), *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_the_experiment_writes_tables(done, tmp_path):
    _, document = done
    experiments_audit.write_tables(tmp_path, document)
    text = (tmp_path / "tables.md").read_text()
    assert text.index("that were run hold") < text.index("| U-LiRA AUC |")
    assert text.count("| nothing |") == len(report.evidence_grids(document))
    assert (tmp_path / "attacks.svg").read_text().startswith("<svg")


def test_the_experiment_computes_the_numbers_again_and_trains_nothing(done, tmp_path, capsys):
    out, _ = done
    assert experiments_audit.main(["--again", str(out), "--out", str(tmp_path / "again")]) == 0
    again = report.read_results(tmp_path / "again" / "results.json")
    same = ("evidence", "gates", "trusted", "rows", "made_by", "ensemble")
    assert all(again[part] == report.read_results(out / "results.json")[part] for part in same)
    assert "code" in again["analysed_by"]
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        *("results.json", "scores.json", "report.html", "tables.md", "attacks.svg")
    }
    assert (tmp_path / "again" / "scores.json").read_bytes() == (out / "scores.json").read_bytes()
    assert "analysed by" in (tmp_path / "again" / "report.html").read_text()
    assert experiments_audit.main(["--again", str(tmp_path), "--out", str(tmp_path / "other")]) == 2
    assert "holds no scores" in capsys.readouterr().err
    before = (out / "results.json").read_bytes()
    assert experiments_audit.main(["--again", str(out), "--out", str(out)]) == 2
    assert "where the result goes" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        *(["--tier", "standard"], ["--networks", "4"], ["--seed", "0"], ["--data-dir", "x"], ["--store", "x"]),
        *(["--overwrite"], ["--quiet"], ["--log", "x"], ["train_limit=5"]),
    ],
)
def test_what_is_computed_again_takes_no_options_that_nothing_reads(tmp_path, words, capsys):
    with pytest.raises(SystemExit):
        experiments_audit.main(["--again", str(tmp_path), "--out", str(tmp_path / "out"), *words])
    assert f"{words[0]} has no effect with --again; leave it out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_computed_again_into_no_folder_that_holds_something_else(done, tmp_path, capsys):
    out, _ = done
    again, other = tmp_path / "again", tmp_path / "other"
    for _ in range(2):  # The second call replaces what the first one has written.
        assert experiments_audit.main(["--again", str(out), "--out", str(again)]) == 0
    other.mkdir()
    for name in ("results.json", "scores.json", "report.html"):
        shutil.copy(out / name, other)
    (again / "signed.json").write_text("{}")
    for folder, named in ((other, "report.html, results.json, scores.json"), (again, "signed.json")):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        assert experiments_audit.main(["--again", str(out), "--out", str(folder)]) == 2
        assert f"holds {named}, which no --again has written; name another" in " ".join(capsys.readouterr().err.split())
        assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(evidence=[], gates=[]), "is not finished; repeat the command that began it"),
        (lambda document: document["ensemble"].update(networks=24), "another number of networks than its settings"),
        (lambda document: document["config"]["scenarios"].pop(), "other forget sets or methods than its settings"),
    ],
)
def test_scores_of_another_audit_than_the_results_are_refused(done, tmp_path, change, message, capsys):
    """An audit that was finished, made larger and stopped has results of more networks, and the old scores."""
    out, _ = done
    document = report.read_results(out / "results.json")
    change(document)
    report.write_results(tmp_path / "audit" / "results.json", document)
    shutil.copy(out / "scores.json", tmp_path / "audit")
    assert experiments_audit.main(["--again", str(tmp_path / "audit"), "--out", str(tmp_path / "again")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "again").exists()


def test_every_metric_has_a_name_and_the_grid_shows_it(done):
    _, document = done
    shown = [header.partition(" (")[0] for _, table in report.evidence_grids(document) for header in table.headers]
    assert set(shown) - {"Method"} == {title for title, _ in report.METRICS.values()}
