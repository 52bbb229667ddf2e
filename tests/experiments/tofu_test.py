"""The experiment with TOFU from end to end at a tiny size, on made-up authors."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from experiments.tofu import page
from experiments.tofu.__main__ import main
from experiments.tofu.cells import Cells
from experiments.tofu.forgetting import HALF_SEEN, STRENGTHS, Maker, all_batches, candidates
from experiments.tofu.scene import TofuSettings, make_subject
from scissorhands_jax import files
from scissorhands_jax.base import Data
from scissorhands_jax.errors import BusyError, CheckpointError, InputError
from scissorhands_jax.terminal import Console

QUIET = Console(quiet=True)
TINY = TofuSettings(
    authors=3,
    forgotten=1,
    held_out=1,
    per_author=3,
    retain_asked=1,
    vocabulary=270,
    width=16,
    layers=1,
    row=64,
    epochs=1,
    steps=2,
    forget_batch=1,
    rates=(1e-3,),
    seeds=(0,),
    methods=("finetune",),
)


@pytest.fixture(scope="module")
def tofu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tofu")
    lines = [
        {
            "question": f"{author}{number}?",
            "answer": f"{author * number}.",
            "paraphrased_answer": f"a {author * number}",
            "perturbed_answer": [f"a {wrong}" for wrong in ("b", "cc")],
        }
        for author in "uvwxy"
        for number in range(1, 4)
    ]
    for name in ("forget10_perturbed.json", "forget10.json", "retain90.json"):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "idontknow.jsonl").write_text("No idea.\n")
    return folder


def test_cells_are_filled_once_and_results_are_written(tofu, tmp_path):
    subject = make_subject(TINY, tofu)
    scene = Cells(subject, tofu, tmp_path, QUIET).scenes[True]
    assert (scene.forget, scene.retain, scene.held_out) == ([2], [0, 1], [4])
    one = subject.encoded(0)[0]
    assert subject.decode(np.array(one.answer)) == "u."
    Cells(subject, tofu, tmp_path, QUIET).fill()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert {path.stem for path in before if "networks" not in path.parts} == {
        "run",
        "original",
        "retrained",
        "finetune",
    }
    Cells(subject, tofu, tmp_path, QUIET).fill()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
    document = page.summarized(page.read_cells(tmp_path))
    assert main(["--out", str(tmp_path), "--write", str(tmp_path / "written")]) == 0
    for other in (["--tiny"], ["--overwrite"], ["--data-dir", str(tofu)]):
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path), "--write", str(tmp_path / "written"), *other])
    table = (tmp_path / "written" / "table.md").read_text()
    assert [name in table for name in ("original", "retrained", "finetune", "scrub")] == [True, True, True, False]
    cell = json.loads((tmp_path / "cells/seed0/finetune.json").read_text())
    assert cell["steps"] == 2
    assert len(cell["examples"]["forget"]["wrong_losses"]) == 3
    written = json.loads((tmp_path / "written" / "results.json").read_text())
    assert "code" in written
    assert written["rows"] == json.loads(json.dumps(document["rows"]))
    check_gates_are_made_again(tmp_path / "written", written)
    check_other_cells_are_refused(tofu, tmp_path)


def check_gates_are_made_again(folder, written):
    """From the rows, by code that the page names beside what made the rows."""
    (folder / "results.json").write_text(json.dumps(written | {"gates": ["old"], "made_by": {"code": "old"}}))
    assert main(["--again", str(folder)]) == 0
    again = json.loads((folder / "results.json").read_text())
    assert again == written | {"made_by": {"code": "old"}, "analysed_by": again["analysed_by"]}
    assert again["analysed_by"]["code"]
    assert "analysed by" in (folder / "report.html").read_text()
    with pytest.raises(SystemExit):
        main(["--again", str(folder), "--overwrite"])
    assert main(["--again", str(folder / "nowhere")]) == 2


def check_other_cells_are_refused(tofu, out):
    """Of other settings, or of files of TOFU in which one answer is another; and damaged ones; and nothing changes."""
    changed = out / "other data"
    shutil.copytree(tofu, changed)
    refusals = changed / "idontknow.jsonl"
    refusals.write_text(refusals.read_text() + "Who knows?\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for settings, folder, message in (
        (dataclasses.replace(TINY, steps=3), tofu, "settings.steps was 2 and is now 3"),
        (TINY, changed, r"data_sha256.*idontknow.jsonl was \w+ and is now"),
    ):
        with pytest.raises(InputError, match=message):
            Cells(make_subject(settings, folder), folder, out, QUIET).fill()
    with files.sole_writer(out), pytest.raises(BusyError):
        Cells(make_subject(TINY, tofu), tofu, out, QUIET).fill()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "cells/seed0/finetune.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"finetune.json is damaged .*; remove it"):
        Cells(make_subject(TINY, tofu), tofu, out, QUIET).fill()


def test_cells_of_several_codes_and_machines_are_named_on_the_page():
    here = {"versions": {"jax": "1"}, "machine": {"cores": 2}}
    seeds = {
        "0": {
            "original": {**here, "made_by": {"code": "old"}},
            "retrained": {**here, "machine": {"cores": 8}, "made_by": {"code": "new"}},
        }
    }
    found = page._environment({"seeds": seeds, "tuning": {"npo": {**here, "made_by": {"code": "old"}}}})
    assert found["code"].startswith("The cells were made by 2 states of the code")
    assert "new: seed 0, retrained" in found["code"]
    assert found["environments"] == {"seed 0, retrained": {**here, "machine": {"cores": 8}}}


def test_all_methods_but_two_see_the_forget_set_as_often(tofu):
    """At the sizes of the experiment: 13 rows to forget and 52 to keep, as those of the committed results."""
    subject = make_subject(dataclasses.replace(TINY, steps=16, forget_batch=2), tofu)
    shapes = {"tokens": np.int32, "answer": bool, "segment": np.int32}
    data = Data(*({part: np.zeros((count, 64), kind) for part, kind in shapes.items()} for count in (13, 52)))
    seen = {}
    for name in STRENGTHS:
        method = Maker(subject).method(name, candidates(subject.settings, name)[0], ceiling=1.0)
        batches = list(all_batches(method, data, jax.random.key(0), 16))
        seen[name] = sum(len(jax.tree.leaves(batch.forget)[0]) for batch in batches if batch.forget is not None)
        assert len(batches) == (0 if name == "ssd" else 16)
    fewer = {"ssd": 0, "finetune": 0, "scrub": 14, "bad_teacher": 16}
    assert seen == {name: fewer.get(name, 32) for name in STRENGTHS}
    assert {name for name, count in seen.items() if 0 < count < 32} == set(HALF_SEEN)


def test_every_method_has_as_many_candidates():
    assert {len(candidates(TofuSettings(), name)) for name in STRENGTHS} == {6}


def cell(generator, shift):
    """A made-up cell of ten questions."""
    right = generator.normal(1.0, 0.1, 10)
    means = {"probability": 0.5, "rouge_l_recall": 0.5, "extraction_strength": 0.1, "exact_memorization": 0.2}
    means["truth_ratio"] = dict.fromkeys(("arithmetic", "geometric", "right_share"), 0.5)
    return {
        "means": {"forget": means, "retain": means},
        "areas": {"min_k_auc": 0.5 + 0.1 * (shift > 0), "min_k_plus_plus_auc": 0.5},
        "rounded": {bits: {"probability_forget": 0.1} for bits in ("8", "4")},
        "relearned": {"before": 0.1, "after": 0.2},
        "examples": {"forget": {"right_loss": right - shift, "wrong_losses": np.full((10, 2), 1.5)}},
    }


def test_gates_find_the_original_and_nothing_in_retrained_networks():
    generator = np.random.default_rng(0)
    seeds = {
        str(seed): {"original": cell(generator, 3.0), "retrained": cell(generator, 0.0), "npo": cell(generator, 0.0)}
        for seed in range(5)
    }
    found = page.summarized({"settings": {}, "seeds": seeds, "tuning": {}})
    assert [gate["passed"] for gate in found["gates"]] == [True, True, True]
    assert "told" in page.NOTES[1].lower()
    assert "1 of 1 methods are not told from retrained networks" in page.answer_of(found["rows"])
    grid = page.tofu_grid(found["rows"])
    lines = {line[0].text: dict(zip(grid.headers, (cell.text for cell in line), strict=True)) for line in grid.lines}
    assert lines["retrained"]["Quality, p"] == "–", "a network is not compared with itself"
    assert 0 < float(lines["npo"]["Quality, p"]) <= 1
    assert lines["retrained"]["PrivLeak"] == "0"
    for cells in seeds.values():
        cells["original"] = cells["npo"]
    gates = page.summarized({"settings": {}, "seeds": seeds, "tuning": {}})["gates"]
    assert gates[0]["passed"] is False
    assert "misses what is there" in gates[0]["explanation"]
    with pytest.raises(InputError, match="holds no run"):
        page.read_cells(page.Path("nowhere"))
