"""The command line as a user meets it: whole runs on the digits, and every kind of bad input."""

import html
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from scissorhands_jax import models, torch_weights
from scissorhands_jax.cli import main as cli
from scissorhands_jax.cli.jobs import STATUS_COLLAPSED
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import unlearning
from scissorhands_jax.metrics import distances
from scissorhands_jax.training import checkpoints
from tests.comparison import same_bits
from tests.compilations import Compilations

NETWORK = ["--model", "mlp", "--dataset", "digits"]
QUICK = ["--epochs", "2", "method.trim=layer2|head"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A network for the digits, in a file."""
    model = models.build("mlp", num_classes=10, image_shape=(8, 8, 1))
    path = tmp_path_factory.mktemp("weights") / "mlp.safetensors"
    torch_weights.write_safetensors(path, torch_weights.to_state_dict(*model.init(jax.random.key(3))))
    return path


def unlearn(weights, out, *more, forget="random:0.1"):
    arguments = ["unlearn", "--weights", str(weights), *NETWORK, "--forget", forget, "--out", str(out), *more]
    arguments.append("--insist")  # The network is untrained.
    return cli.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def quick_run(weights, tmp_path_factory) -> Path:
    """The folder of a finished run, which no test changes."""
    out = tmp_path_factory.mktemp("quick") / "run"
    assert unlearn(weights, out, *QUICK) == 0
    return out


def error_of(capsys) -> str:
    """The one line that a refused command prints."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


def evaluated(capsys, *arguments) -> dict:
    capsys.readouterr()
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_leaves_network_weights_results_and_report(weights, tmp_path, capsys):
    out = tmp_path / "run"
    assert unlearn(weights, out, *QUICK, "--seed", 4, "method.fraction=0.1", "--method.forget_weight=0.02") == 0
    results = json.loads((out / "results.json").read_text())
    fields = ["scenario", "method", "seed", "acc_forget", "acc_retain", "acc_test", "mia", "avg_gap", "seconds", "rte"]
    fields.append("num_forget")
    assert [row["method"] for row in results["rows"]] == ["original", "scissorhands"]
    compared = [
        "held_out_auc",
        "held_out_low",
        "held_out_high",
        "held_out_uncompared",
    ]  # of the original, for the gates of a retrained network
    for row, further in zip(results["rows"], (compared, []), strict=True):
        assert list(row) == [*fields, *further]
        assert all(0 <= row[name] <= 100 for name in ("acc_forget", "acc_retain", "acc_test", "mia"))
    assert results["config"]["method"]["fraction"] == 0.1
    assert results["config"]["method"]["forget_weight"] == 0.02
    assert results["config"]["method"]["epochs"] == 2
    assert results["forget"]["count"] == 135
    assert len((out / "forget_indices.txt").read_text().split()) == 135
    assert "<html" in (out / "report.html").read_text()

    answer = evaluated(capsys, "--checkpoint", out)
    for name in ("forget", "retain", "test"):
        assert answer[f"acc_{name}"] == results["after"][f"acc_{name}"]
    assert answer["num_forget"] == 135
    assert answer["num_test"] == 450
    assert evaluated(capsys, "--checkpoint", out / "network") == answer, "the network's own folder will do"
    again = evaluated(capsys, "--weights", out / "network.safetensors", *NETWORK)
    assert again["correct_test"] == answer["correct_test"] == round(answer["acc_test"] * 4.5)


def test_what_is_said_about_a_run_is_in_its_page_and_results(weights, tmp_path, capsys):
    """That an original was not worth unlearning, and that a run cost too much."""
    first, second = tmp_path / "first", tmp_path / "second"
    quick = ("--epochs", 2, "--method")
    assert unlearn(weights, first, *quick, "finetune", "method.learning_rate=0.1") == 0
    start = first / "network.safetensors"
    assert unlearn(start, second, *quick, "gradient_ascent", "method.learning_rate=1") == STATUS_COLLAPSED
    told = " ".join(capsys.readouterr().err.split())
    found = [json.loads((out / "results.json").read_text()) for out in (first, second)]
    assert found[0]["doubts"]
    assert found[1]["summary"][0].startswith("warning: accuracy has collapsed (forget ")
    for out, results, alarms in zip((first, second), found, (0, 1), strict=True):
        page = (out / "report.html").read_text()
        lines = [line.removeprefix("warning: ") for line in (*results["summary"], *results["doubts"])]
        assert all(line in told and html.escape(line[1:]) in page for line in lines)
        assert page.count('class="trust alarm"') == alarms + len(results["doubts"])
        assert "made the network forget" not in page


def test_an_evaluation_says_which_gates_it_could_run(weights, tmp_path, capsys):
    words = ["method.learning_rate=0.1", "--seed", 1]
    for method in ("finetune", "retrain"):
        assert unlearn(weights, tmp_path / method, "--method", method, "--epochs", 2, *words) == 0
    alone = evaluated(capsys, "--checkpoint", tmp_path / "finetune")
    assert [gate["passed"] for gate in alone["gates"]] == [None] * 3
    assert {gate["why"] for gate in alone["gates"]} == {"needs a retrained network"}
    beside = evaluated(capsys, "--checkpoint", tmp_path / "finetune", "--retrained", tmp_path / "retrain")
    after = [json.loads((tmp_path / name / "results.json").read_text())["after"] for name in ("finetune", "retrain")]
    assert beside["avg_gap"] == pytest.approx(distances.average_gap(*after))
    # The original was never trained, so nothing is caught; and a retrained network has nothing to be found.
    assert [gate["passed"] for gate in beside["gates"]] == [False, True, None]
    assert beside["gates"][2] == {
        "name": "the original is farther from retrained networks than these are from each other",
        "passed": None,
        "why": "needs two seeds, each with two retrained networks",
    }
    page = (tmp_path / "finetune" / "report.html").read_text()
    assert "No gate was run, so nothing shows that these numbers can be trusted: needs a retrained network." in page
    refused = [(["--retrained", tmp_path / "finetune"], "is a run of finetune; name one of --method retrain")]
    assert unlearn(weights, tmp_path / "other", "--method", "retrain", "--epochs", 0) == 0
    refused.append((["--retrained", tmp_path / "other"], "forgot other examples"))
    refused.append((["--retrained", tmp_path / "none"], "none holds no network; name the folder of a run that has"))
    edits = [
        (
            "results.json",
            {"validation": "test:0.5"},
            "validation is 'test:0.5' there and None here; seed is 1 there and",
        ),
        ("results.json", {"retain_limit": 100}, "retain_limit is 100 there and None here"),
        ("results.json", {"model": "resnet20"}, "model is 'resnet20' there and 'mlp' here; retrain with the settings"),
        ("run.json", {"train_sha256": "0" * 64}, "train_sha256 is 0000000000000000 there and"),
        ("run.json", {"test_sha256": "0" * 64}, "test_sha256 is 0000000000000000 there and"),
    ]
    for number, (file, changes, message) in enumerate(edits):
        copy = shutil.copytree(tmp_path / "retrain", tmp_path / f"edited{number}")
        document = json.loads((copy / file).read_text())
        (document["config"] if file == "results.json" else document).update(changes)
        (copy / file).write_text(json.dumps(document))
        refused.append((["--retrained", copy], message))
    shutil.copytree(tmp_path / "retrain" / "network", tmp_path / "lone" / "network")
    refused.append(
        (["--retrained", tmp_path / "lone" / "network"], "lone has no results.json; name the folder of a run")
    )
    for more, message in refused:
        assert cli.main(["evaluate", "--checkpoint", str(tmp_path / "finetune"), *map(str, more)]) == 2
        assert message in error_of(capsys)


def test_bfloat16_gives_a_like_network_and_is_remembered_with_the_run(weights, tmp_path, capsys):
    after = {}
    once = "method.departures.every_step_joint=false"  # The network is untrained, and is to learn here.
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        assert unlearn(weights, out, "--epochs", 5, *QUICK[2:], "method.learning_rate=0.1", once, "--dtype", dtype) == 0
        results = json.loads((out / "results.json").read_text())
        assert results["config"]["model_options"] == {"dtype": dtype}
        after[dtype] = {f"acc_{part}": results["after"][f"acc_{part}"] for part in ("forget", "retain", "test")}
    assert after["float32"]["acc_test"] > 60
    for name, accuracy in after["float32"].items():
        assert abs(accuracy - after["bfloat16"][name]) < 5, after
    saved = torch_weights.read_state_dict(out / "network.safetensors")
    assert {array.dtype for array in saved.values()} == {np.dtype("float32")}
    answer = evaluated(capsys, "--checkpoint", out)
    assert {name: answer[name] for name in after["bfloat16"]} == after["bfloat16"]


def test_exported_weights_are_the_checkpoint_bit_for_bit(weights, quick_run):
    out = quick_run
    model = models.build("mlp", num_classes=10, image_shape=(8, 8, 1))
    template = jax.eval_shape(model.init, jax.random.key(0))
    saved = checkpoints.load_network(out / "network", *template)
    imported = torch_weights.from_state_dict(torch_weights.read_state_dict(out / "network.safetensors"), *template)
    assert same_bits(saved, imported)
    original = torch_weights.from_state_dict(torch_weights.read_state_dict(weights), *template)
    assert not same_bits(saved, original)


def test_the_file_that_comes_out_has_the_names_of_the_one_that_went_in_also_after_a_second_run(weights, tmp_path):
    arrays = {name.replace("head", "fc.1"): array for name, array in torch_weights.read_state_dict(weights).items()}
    given = tmp_path / "given.safetensors"
    torch_weights.write_safetensors(given, {f"module.{name}": array for name, array in arrays.items()})
    assert unlearn(given, tmp_path / "first", *QUICK) == 0
    assert torch_weights.read_state_dict(tmp_path / "first" / "network.safetensors").keys() == arrays.keys()
    again = ["unlearn", "--checkpoint", tmp_path / "first", "--forget", "random:0.1", "--out", tmp_path / "second"]
    assert cli.main(list(map(str, [*again, *QUICK, "--insist"]))) == 0
    assert torch_weights.read_state_dict(tmp_path / "second" / "network.safetensors").keys() == arrays.keys()


def test_a_class_and_a_file_of_positions_can_be_forgotten(weights, tmp_path, capsys):
    assert unlearn(weights, tmp_path / "class", *QUICK, "--validation", "test:0.2", forget="class:3") == 0
    results = json.loads((tmp_path / "class" / "results.json").read_text())
    assert results["after"]["num_test"] < 360  # the paper leaves the class out of the test set
    answer = evaluated(capsys, "--checkpoint", tmp_path / "class")
    assert {name: answer[name] for name in ("num_test", "acc_test")} == {
        name: results["after"][name] for name in ("num_test", "acc_test")
    }
    file = tmp_path / "positions.txt"
    file.write_text("5\n17 # the seventeenth\n\n300\n")
    assert unlearn(weights, tmp_path / "file", *QUICK, forget=f"indices:{file}") == 0
    assert (tmp_path / "file" / "forget_indices.txt").read_text() == "5\n17\n300\n"


def test_a_run_goes_on_where_a_file_lies_elsewhere_and_not_with_another_content(weights, tmp_path, capsys):
    for name, text in {"a.txt": "5\n17\n", "b.txt": "17\n5\n", "c.txt": "5\n18\n"}.items():
        (tmp_path / name).write_text(text)
    first, moved, other = (f"indices:{tmp_path / name}" for name in ("a.txt", "b.txt", "c.txt"))
    assert unlearn(weights, tmp_path / "out", *QUICK, forget=first) == 0
    assert unlearn(weights, tmp_path / "out", *QUICK, "--resume", forget=moved) == 0
    assert unlearn(weights, tmp_path / "out", *QUICK, "--resume", forget=other) == 2
    assert "forget_sha256 was" in " ".join(capsys.readouterr().err.split())
    mislabelled = moved.replace("indices", "mislabelled")
    assert unlearn(weights, tmp_path / "out", *QUICK, "--resume", forget=mislabelled) == 2
    assert "kinds_of_files.forget was 'indices' and is now 'mislabelled'" in " ".join(capsys.readouterr().err.split())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(weights, tmp_path):
    def tensors(name, seed):
        assert unlearn(weights, tmp_path / name, *QUICK, "--seed", seed, "--retain-limit", 200) == 0
        return torch_weights.read_state_dict(tmp_path / name / "network.safetensors")

    first, second, other = tensors("a", 1), tensors("b", 1), tensors("c", 2)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


def test_calls_of_many_steps_and_data_on_the_host_can_be_asked_for(weights, tmp_path):
    with Compilations() as single:
        assert unlearn(weights, tmp_path / "one", *QUICK, "--retain-limit", 200) == 0
    with Compilations() as many:
        more = (*QUICK, "--retain-limit", 200, "--steps-per-call", 4, "--feed-from", "host")
        assert unlearn(weights, tmp_path / "four", *more) == 0
    assert "jit(_steps)" in set(many.names) - set(single.names)
    first, second = (torch_weights.read_state_dict(tmp_path / name / "network.safetensors") for name in ("one", "four"))
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-4, atol=1e-5)


def test_a_taken_folder_is_kept_unless_told_otherwise(weights, quick_run, tmp_path, capsys):
    out = shutil.copytree(quick_run, tmp_path / "run")
    before = (out / "network.safetensors").read_bytes()
    capsys.readouterr()
    assert unlearn(weights, out, *QUICK, "--seed", 1) == 2
    message = error_of(capsys)
    assert "--overwrite" in message
    assert "--resume" in message
    assert unlearn(weights, out, *QUICK, "--seed", 1, "--resume") == 2
    assert "seed was 0 and is now 1" in error_of(capsys)
    assert (out / "network.safetensors").read_bytes() == before
    assert unlearn(weights, out, *QUICK, "--seed", 1, "--overwrite") == 0
    assert (out / "network.safetensors").read_bytes() != before


def test_the_files_of_the_next_run_are_not_removed_for_it(weights, quick_run, tmp_path, capsys):
    out = shutil.copytree(quick_run, tmp_path / "run")
    (out / "list.txt").write_text("1\n2\n")
    capsys.readouterr()
    for read, forget in ((out / "network.safetensors", "random:0.1"), (weights, f"indices:{out / 'list.txt'}")):
        assert unlearn(read, out, *QUICK, "--overwrite", forget=forget) == 2
        assert "is read and lies in" in error_of(capsys)
    assert {"list.txt", "network.safetensors", "results.json"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("changed", "words"),
    [(("--forget", "class:12"), "there is no class '12'"), ((), "and guessing gets")],
    ids=["before the folder is opened", "afterwards"],
)
def test_the_log_of_a_refused_command_is_not_in_the_way_of_the_next(weights, tmp_path, capsys, changed, words):
    out = tmp_path / "run"
    arguments = ["unlearn", "--weights", weights, *NETWORK, "--forget", "random:0.1", "--out", out, *QUICK, *changed]
    for _ in range(2):
        assert cli.main([*map(str, arguments), "--log", str(out / "log")]) == 2
        assert words in error_of(capsys)
    assert not out.exists()


def tune(weights, out, *more):
    chosen = ["tune", "--weights", weights, *NETWORK, "--forget", "random:0.1", "--validation", "test:0.5", "--insist"]
    return cli.main([*map(str, chosen), "--out", str(out), *map(str, more)])


def test_a_tuning_that_was_refused_is_not_in_the_way_of_the_corrected_one(weights, tmp_path, capsys):
    more = ["--method", "ssd", "--trials", "1"]
    assert tune(weights, tmp_path / "tuning", *more, "--epochs", "5") == 2
    assert "epochs = 5 would change nothing" in error_of(capsys)
    assert not (tmp_path / "tuning").exists()
    assert tune(weights, tmp_path / "tuning", *more) == 0
    # Whoever repeats it after its end has computed nothing.
    text = (tmp_path / "tuning/tuning.json").read_text()
    version = json.loads(text)["made_by"]["version"]
    (tmp_path / "tuning/tuning.json").write_text(text.replace(f'"version": "{version}"', '"version": "an earlier one"'))
    assert tune(weights, tmp_path / "tuning", *more, "--resume") == 0
    again = json.loads((tmp_path / "tuning/tuning.json").read_text())
    assert again["made_by"] == {**json.loads(text)["made_by"], "version": "an earlier one"}
    (tmp_path / "tuning/trials/0001.json").unlink()
    assert tune(weights, tmp_path / "tuning", *more, "--resume") == 0
    assert json.loads((tmp_path / "tuning/tuning.json").read_text())["made_by"]["version"] == version


def test_a_folder_with_other_files_is_never_emptied(weights, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert unlearn(weights, tmp_path, *QUICK, "--overwrite") == 2
    assert "is not empty" in error_of(capsys)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_diverging_run_names_the_step_and_keeps_the_last_good_checkpoint(weights, tmp_path, capsys):
    out = tmp_path / "run"
    more = ["--epochs", "50", "--checkpoint-every", "1", "method.learning_rate=1000", "method.forget_weight=5"]
    assert unlearn(weights, out, *more) == 2
    message = error_of(capsys)
    step = int(message.split("at step ")[1].split(";")[0])
    assert f"the checkpoint of step {step - 1} is good" in message
    assert (out / "checkpoints" / str(step - 1)).is_dir()
    assert not (out / "results.json").exists()
    assert not (out / "network.safetensors").exists()


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch hacked",))


BAD = {
    "an empty forget set": (["--forget", "indices:EMPTY"], "the forget set is empty"),
    "a share that rounds to nothing": (["--forget", "random:0.0001"], "the forget set is empty"),
    "a share of one": (["--forget", "random:1"], "between 0 and 1"),
    "the whole training set": (["--forget", "indices:ALL"], "whole training set"),
    "positions out of range": (["--forget", "indices:FAR"], "lie outside 0 to 1346, the first is 5000"),
    "repeated positions": (["--forget", "indices:TWICE"], "are repeated, the first is 7"),
    "positions that are no integers": (["--forget", "indices:WORDS"], "line 2 of"),
    "a file of positions that is not there": (["--forget", "indices:nowhere.txt"], "nowhere.txt"),
    "an unknown class": (["--forget", "class:12"], "there is no class '12'"),
    "an unknown kind of forget set": (["--forget", "everything"], "random:0.1, class:3, identity:NAME"),
    "a fraction of one": (["method.fraction=1"], "fraction must lie strictly between 0 and 1, got 1.0"),
    "a fraction of zero": (["method.fraction=0"], "fraction must lie strictly between 0 and 1, got 0.0"),
    "a pattern that matches nothing": (["method.trim=layer7|haed"], "near matches: "),
    "a broken pattern": (["method.trim=layer("], "not a regular expression"),
    "an unknown setting": (["method.fractoin=0.1"], "method.fraction"),
    "a setting of the wrong type": (["method.epochs=many"], "method.epochs must be int, got 'many'"),
    "an unknown departure": (["method.departures.speed=9"], "has no setting 'speed'"),
    "an unknown mode": (["method.mode=published"], "method.mode is 'published'; choose one of paper, authors"),
    "an unknown argument": (["--quickly"], "unknown argument '--quickly'"),
    "a batch size of zero": (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
    "negative epochs": (["--epochs", "-1"], "the number of epochs must not be negative"),
    "a loss that is no number": (["--max-loss", "nan"], "--max-loss must be a number of percentage points"),
    "two originals": (["checkpoint=run"], "is both the file"),
    "a share of the test set that is none": (["--validation", "test:2"], "got '2'; write test:0.5"),
    "a share of the test set that is empty": (
        ["--validation", "test:1e-9"],
        "one of its 450 examples, got '1e-9'",
    ),
    "a retain limit of zero": (["--retain-limit", "0"], "--retain-limit"),
    "steps that no call can take": (["--steps-per-call", "0"], "steps_per_call must be at least 1, got 0"),
    "data that lie nowhere": (["--feed-from", "disk"], "--feed-from is 'disk'; choose one of auto, device, host"),
    "an unknown method": (["--method", "magic"], "there is no method 'magic'"),
    "an unknown network": (["--model", "resnet21"], "resnet20"),
    "an unknown data set": (["--dataset", "cifar11"], "cifar10"),
    "a data set without its folder": (["--dataset", "cifar10"], "--data-dir"),
    "a folder without the data": (["--dataset", "cifar10", "--data-dir", "."], "cifar10_train_*.npz"),
    "weights that are not there": (["--weights", "nowhere.pth"], "nowhere.pth"),
    "weights that are text": (["--weights", "WORDS"], "WORDS"),
    "truncated weights": (["--weights", "TRUNCATED"], "TRUNCATED"),
    "weights of another network": (["--weights", "OTHER"], "head.weight"),
    "weights with NaN": (["--weights", "NAN"], "NaN or infinity in layer2/kernel"),
    "a hostile pickle": (["--weights", "HOSTILE"], "system"),
}


@pytest.fixture
def bad_files(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").write_text("# nothing\n")
    Path("ALL").write_text("\n".join(map(str, range(1347))))
    Path("FAR").write_text("3\n5000\n")
    Path("TWICE").write_text("7\n8\n7\n")
    Path("WORDS").write_text("3\nthree\n")
    Path("TRUNCATED").write_bytes(weights.read_bytes()[:5000])
    tensors = {key: value.copy() for key, value in torch_weights.read_state_dict(weights).items()}
    other = {**tensors, "head.weight": np.zeros((7, 256), np.float32)}
    torch_weights.write_safetensors("OTHER", other)
    tensors["layer2.weight"][0, 0] = np.nan
    torch_weights.write_safetensors("NAN", tensors)
    Path("HOSTILE").write_bytes(pickle.dumps(Hostile(), protocol=2))


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(weights, arguments, words, capsys):
    files = sorted(Path.cwd().iterdir())
    assert unlearn(weights, "out", *arguments) == 2
    assert words in error_of(capsys)
    assert sorted(Path.cwd().iterdir()) == files


def test_the_first_process_says_whether_a_run_is_continued(weights, tmp_path, capsys, monkeypatch):
    """An original that is not worth unlearning is refused at the beginning, by all processes or by none."""

    def run(*_, **__):
        raise InputError("the run goes on")

    monkeypatch.setattr(checkpoints.Checkpointer, "agreed_step", lambda keeper: 3)
    monkeypatch.setattr(unlearning, "run", run)
    arguments = ["unlearn", "--weights", weights, *NETWORK, "--forget", "random:0.1", "--out", tmp_path / "run"]
    assert cli.main([*map(str, arguments)]) == 2
    assert "the run goes on" in error_of(capsys)


def test_a_mesh_is_refused_before_anything_is_computed(weights, tmp_path, capsys):
    with Compilations() as compilations:
        assert unlearn(weights, tmp_path / "run", "--mesh", "2") == 2
    assert "a mesh of 2 x 1 needs 2 devices, but there are 1" in error_of(capsys)
    assert compilations.names == []
    assert not (tmp_path / "run").exists()


def test_damaged_and_foreign_checkpoints_are_named(quick_run, tmp_path, capsys):
    out = shutil.copytree(quick_run, tmp_path / "run")
    capsys.readouterr()
    assert cli.main(["evaluate", "--checkpoint", str(tmp_path)]) == 2
    assert "no network checkpoint" in error_of(capsys)
    assert cli.main(["evaluate", "--checkpoint", str(out), "--model", "resnet20"]) == 2
    assert "holds a mlp, not a resnet20" in error_of(capsys)
    (out / "network" / "meta" / "metadata").write_text("{")
    assert cli.main(["evaluate", "--checkpoint", str(out)]) == 2
    assert "is damaged" in error_of(capsys)


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "scissorhands_jax", "--help"], capture_output=True, text=True, check=True
    )
    assert "unlearn" in done.stdout


def test_the_pretrained_network_scores_as_published(shared):
    """As users run it: compiled well, without the tests' settings."""
    weights = shared / "data" / "resnet20-12fca82f.th"
    network = ["--model", "resnet20", "--dataset", "cifar10", "--data-dir", str(shared / "data")]
    command = [sys.executable, "-m", "scissorhands_jax", "evaluate", "--weights", str(weights), *network]
    ours = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS" and not name.startswith("JAX_")}
    done = subprocess.run(command, capture_output=True, text=True, env=ours, check=True)
    answer = json.loads(done.stdout)
    assert abs(answer["correct_test"] - 9173) <= 3
    assert answer["num_test"] == 10_000


class TestTune:
    def tune(self, weights, out, *more, settings=QUICK):
        about = ["tune", "--weights", weights, *NETWORK, "--forget", "random:0.1", "--out", out, "--insist"]
        return cli.main(list(map(str, [*about, *settings, *more])))

    @pytest.mark.parametrize("minutes", ["nan", "0", "-1"])
    def test_a_time_that_is_none_is_refused(self, weights, tmp_path, minutes, capsys):
        assert self.tune(weights, tmp_path / "tuning", f"--minutes={minutes}") == 2
        assert "--minutes must be a positive number" in error_of(capsys)

    def test_the_best_trial_comes_as_settings_for_unlearn(self, weights, tmp_path, capsys):
        out = tmp_path / "tuning"
        assert self.tune(weights, out, "--validation", "test:0.5", "--trials", 3, "--epochs", 1) == 0
        document = json.loads((out / "tuning.json").read_text())
        assert len(document["trials"]) == 3
        assert document["best"]["score"] == min(trial["score"] for trial in document["trials"])
        assert document["validation"]["count"] == 225
        assert " ".join([*document["overrides"], "--validation test:0.5"]) in " ".join(capsys.readouterr().err.split())
        assert unlearn(weights, tmp_path / "run", *QUICK, "--validation", "test:0.5", *document["overrides"]) == 0
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        used = results["config"]["method"]
        assert all(used[name] == value for name, value in document["best"]["changes"].items())
        assert results["after"]["num_test"] == 225, "what tuning has looked at is no longer in the test set"

    def test_what_is_given_stays_as_it_is(self, weights, tmp_path, capsys):
        out, given = tmp_path / "tuning", ["method.fraction=0.08", "method.schedule=linear"]
        more = ["--validation", "test:0.5", "--trials", 3, "--epochs", 1, "--retain-limit", 100]
        assert self.tune(weights, out, *more, *given) == 0
        document = json.loads((out / "tuning.json").read_text())
        assert set(document["space"]) == {"forget_weight", "learning_rate"}
        assert all(set(trial["changes"]) == set(document["space"]) for trial in document["trials"])
        assert document["config"]["method"]["fraction"] == 0.08
        capsys.readouterr()
        assert self.tune(weights, out, *more, given[0], "--resume") == 2
        assert "belongs to another" in error_of(capsys)
        every = [*given, "method.forget_weight=0.1", "method.learning_rate=0.1"]
        assert self.tune(weights, tmp_path / "none", *more, *every) == 2
        assert "all are given; leave one of them out" in error_of(capsys)

    def test_the_rest_of_the_training_split_is_the_default(self, weights, tmp_path):
        seen = tmp_path / "seen.txt"
        seen.write_text("".join(f"{position}\n" for position in range(1000)))
        out = tmp_path / "tuning"
        more = ["--trained-on", seen, "--trials", 1, "--method", "finetune", "--epochs", 1]
        assert self.tune(weights, out, *more) == 2  # QUICK names layers to trim, which fine-tuning has not.
        assert self.tune(weights, out, *more, settings=()) == 0
        document = json.loads((out / "tuning.json").read_text())
        assert document["validation"]["count"] == 347
        assert list(document["best"]["changes"]) == ["learning_rate", "schedule"]

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ([], "trained on the whole training split, so there is nothing to validate with"),
            (["--validation", "tset:0.5"], "cannot read the validation set 'tset:0.5'"),
            (["--validation", "indices:{file}"], "2 of the examples in .* were trained on"),
            (["--validation", "test:0.5", "--trials", "0"], "at least 1 trial, got 0"),
        ],
    )
    def test_bad_input_is_one_sentence(self, weights, tmp_path, capsys, more, message):
        file = tmp_path / "positions.txt"
        file.write_text("0\n1\n")
        assert self.tune(weights, tmp_path / "out", *(word.format(file=file) for word in more)) == 2
        assert re.search(message, error_of(capsys))
