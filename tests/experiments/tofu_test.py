"""The experiment with TOFU from end to end at a tiny size, on made-up authors."""

import json

import numpy as np
import pytest

from experiments.tofu import page
from experiments.tofu.cells import Cells
from experiments.tofu.forgetting import STRENGTHS, candidates
from experiments.tofu.scene import TofuSettings, make_subject
from scissorhands_jax.errors import InputError
from scissorhands_jax.terminal import Console

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
    scene = Cells(subject, tofu, tmp_path, Console(quiet=True)).scenes[True]
    assert (scene.forget, scene.retain, scene.held_out) == ([2], [0, 1], [4])
    one = subject.encoded(0)[0]
    assert subject.decode(np.array(one.answer)) == "u."
    Cells(subject, tofu, tmp_path, Console(quiet=True)).fill()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert {path.stem for path in before} == {"settings", "original", "retrained", "finetune"}
    Cells(subject, tofu, tmp_path, Console(quiet=True)).fill()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
    document = page.summarized(page.read_cells(tmp_path))
    page.write_results(document, tmp_path / "written")
    table = (tmp_path / "written" / "table.md").read_text()
    assert [name in table for name in ("original", "retrained", "finetune", "scrub")] == [True, True, True, False]
    cell = json.loads((tmp_path / "cells/seed0/finetune.json").read_text())
    assert cell["steps"] == 2
    assert len(cell["examples"]["forget"]["wrong_losses"]) == 3
    other = make_subject(TofuSettings(**{**vars(TINY), "steps": 3}), tofu)
    with pytest.raises(InputError, match="has cells of other settings"):
        Cells(other, tofu, tmp_path, Console(quiet=True))


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
    assert "1 of 1 methods are like retrained networks" in page.answer_of(found["rows"])
    for cells in seeds.values():
        cells["original"] = cells["npo"]
    gates = page.summarized({"settings": {}, "seeds": seeds, "tuning": {}})["gates"]
    assert gates[0]["passed"] is False
    assert "misses what is there" in gates[0]["explanation"]
    with pytest.raises(InputError, match="has no settings"):
        page.read_cells(page.Path("nowhere"))
