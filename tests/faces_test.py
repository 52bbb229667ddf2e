"""Face identities from photographs on the disk to a network that has forgotten some of them, request after request."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from scissorhands_jax import datasets, hashing, models, torch_weights
from scissorhands_jax.cli import main as cli
from scissorhands_jax.datasets import forget_sets, splits
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.earlier_runs import past_of

PEOPLE = 11
QUICK = ["--epochs", "1", "--method", "finetune"]


@pytest.fixture(scope="module")
def photographs(shared):
    """Eleven of the ORL people, ten photographs each. uint8, shape=(11, 10, 112, 92)"""
    return np.load(shared / "data" / "orl_faces.npz")["image"].reshape(40, 10, 112, 92)[:PEOPLE]


@pytest.fixture(scope="module")
def root(photographs, tmp_path_factory) -> Path:
    """A folder of identities as CelebAMask-HQ's are kept, without loss."""
    root = tmp_path_factory.mktemp("orl")
    for person, faces in enumerate(photographs):
        (root / f"s{person + 1:02}").mkdir()
        for number, face in enumerate(faces):
            Image.fromarray(face).save(root / f"s{person + 1:02}" / f"{number + 1:02}.png")
    return root


@pytest.fixture(scope="module")
def data_dir(root, tmp_path_factory) -> Path:
    """Where these faces have been prepared, at 16x16 pixels."""
    folder = tmp_path_factory.mktemp("prepared")
    assert prepare(root, folder, "--image-size", 16) == 0
    return folder


def prepare(root, folder, *more):
    return cli.main(["data", "prepare", "faces", "--from", *map(str, (root, "--data-dir", folder, *more))])


def error_of(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    return line


def test_prepared_photographs_are_the_ones_on_the_disk(root, photographs, tmp_path, capsys, shared):
    assert prepare(root, tmp_path) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "88 images to train and 22 to test with, of 11 classes and shape (112, 92, 1)" in captured.err
    splits = datasets.load("faces", tmp_path)
    assert splits.class_names == tuple(f"s{i:02}" for i in range(1, PEOPLE + 1))
    np.testing.assert_array_equal(splits.test["image"][..., 0], photographs[:, [4, 9]].reshape(-1, 112, 92))
    kept = np.delete(photographs, [4, 9], axis=1).reshape(-1, 112, 92)
    np.testing.assert_array_equal(splits.train["image"][..., 0], kept)
    np.testing.assert_array_equal(splits.train["label"], np.repeat(np.arange(PEOPLE), 8))
    # Positions are those of the same people in the compact file.
    compact = datasets.load("orl_faces", shared / "data")
    np.testing.assert_array_equal(splits.train["image"], compact.train["image"][: len(kept)])
    assert splits[3:6] == compact[3:6] == (True, 0, None)  # flipped, never cropped


def test_lists_of_images_give_the_split_and_jpegs_are_read(photographs, tmp_path):
    root = tmp_path / "faces"
    for number, face in enumerate(photographs[:3, :3].reshape(-1, 112, 92)):
        (root / "CelebA").mkdir(parents=True, exist_ok=True)
        Image.fromarray(face).convert("RGB").save(root / "CelebA" / f"{number}.jpg", quality=95)
    (root / "train.txt").write_text("".join(f"CelebA/{i}.jpg {i // 3}\n" for i in (8, 7, 4, 3, 1, 0)))
    (root / "test.txt").write_text("CelebA/2.jpg 0\nCelebA/5.jpg 1\n")
    assert prepare(root, tmp_path / "out", "--image-size", 28) == 0
    splits = datasets.load("faces", tmp_path / "out")
    assert splits.image_shape == (28, 28, 3)
    assert splits.train["label"].tolist() == [2, 2, 1, 1, 0, 0]  # in the order of the lines
    assert splits.test["label"].tolist() == [0, 1]
    expected = Image.fromarray(photographs[0, 2]).resize((28, 28), Image.Resampling.BICUBIC)
    assert np.abs(splits.test["image"][0, ..., 0].astype(int) - np.asarray(expected)).mean() < 3  # JPEG, then rescaled


def test_a_damaged_photograph_leaves_the_earlier_set_as_it_was(root, tmp_path, capsys):
    copy, out = tmp_path / "faces", tmp_path / "out"
    for path in root.glob("s01/*"):
        (copy / "s01").mkdir(parents=True, exist_ok=True)
        (copy / "s01" / path.name).write_bytes(path.read_bytes())
    assert prepare(copy, out) == 0
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert prepare(copy, out) == 2
    capsys.readouterr()
    (copy / "s01" / "07.png").write_bytes((copy / "s01" / "07.png").read_bytes()[:5000])
    assert prepare(copy, out, "--overwrite") == 2
    assert "7.png cannot be read as an image" in error_of(capsys)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    assert prepare(copy, tmp_path / "new") == 2
    assert list((tmp_path / "new").iterdir()) == []


def unlearn(data_dir, out, forget, *more):
    network = ["--model", "mlp", "--dataset", "faces", "--data-dir", data_dir]
    return cli.main(["unlearn", *map(str, (*network, "--forget", forget, "--out", out, "--insist", *QUICK, *more))])


def other_data(folder) -> Path:
    """Faces of as many people and of the same size, of noise."""
    rng = np.random.default_rng(0)
    for person in range(PEOPLE):
        (folder / "noise" / f"s{person + 1:02}").mkdir(parents=True)
        for number in range(10):
            image = Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8))
            image.save(folder / "noise" / f"s{person + 1:02}" / f"{number}.png")
    assert prepare(folder / "noise", folder / "other") == 0
    return folder / "other"


def test_requests_one_after_another(data_dir, tmp_path, capsys):
    """Two people, then wrongly labelled examples of a third; what was held out or forgotten stays out of both sets."""
    labels = datasets.load("faces", data_dir).train["label"]
    model = models.build("mlp", num_classes=PEOPLE, image_shape=(16, 16, 1))
    weights = tmp_path / "mlp.safetensors"
    torch_weights.write_safetensors(weights, torch_weights.to_state_dict(*model.init(jax.random.key(3))))
    trained_on, held_out = splits.validation_split(labels, 0.125, 0)
    (tmp_path / "train.txt").write_text("\n".join(map(str, trained_on)))
    (tmp_path / "people.txt").write_text("s03\ns11\n")
    first, second = tmp_path / "first", tmp_path / "second"
    request = f"identity:{tmp_path / 'people.txt'}"
    assert unlearn(data_dir, first, request, "--weights", weights, "--trained-on", tmp_path / "train.txt") == 0
    results = json.loads((first / "results.json").read_text())
    assert results["trained_on"]["count"] == 77
    after = results["after"]
    assert (after["num_forget"], after["num_retain"], after["num_test"]) == (
        14,
        63,
        18,
    )  # 9 people stay in the test set
    forgotten = forget_sets.read_positions(first / "forget_indices.txt")
    np.testing.assert_array_equal(forgotten, np.setdiff1d(np.flatnonzero(np.isin(labels, [2, 10])), held_out))
    np.testing.assert_array_equal(forget_sets.read_positions(first / "trained_on.txt"), trained_on)

    def refused(forget, *more):
        capsys.readouterr()
        assert unlearn(data_dir, second, forget, *more) == 2
        assert not second.exists()
        return error_of(capsys)

    wrong = tmp_path / "wrong.txt"
    for stranger in (held_out[0], forgotten[0]):  # never trained on; forgotten already
        wrong.write_text(f"{trained_on[0]}\n{stranger}\n")
        message = refused(f"indices:{wrong}", "--checkpoint", first)
        assert (
            f"1 of the 2 examples to forget were not in the training set of this network, the first is {stranger}"
            in (message)
        )
    assert "no identity 's03' in the training set" in refused("identity:s03", "--checkpoint", first)
    assert "leave --trained-on out" in refused("class:1", "--checkpoint", first, "--trained-on", wrong)
    (tmp_path / "few.txt").write_text("5\n")
    assert "training set of the network has 1 positions" in refused(
        "class:1", "--weights", weights, "--trained-on", tmp_path / "few.txt"
    )
    (tmp_path / "alone").mkdir()
    (first / "network").rename(tmp_path / "alone" / "network")
    assert "has forgotten examples before, from other data than these or in a run whose folder is missing" in (
        refused("class:1", "--checkpoint", tmp_path / "alone")
    )
    (tmp_path / "alone" / "network").rename(first / "network")
    assert "from other data than these" in refused("class:1", "--checkpoint", first, "--data-dir", other_data(tmp_path))
    wrong.write_text("".join(f"{position} {label}\n" for position, label in ((9, 0), (8, 99))))
    assert "has the label 99; the data set has 0 to 10" in refused(f"mislabelled:{wrong}", "--checkpoint", first)

    mislabelled = [p for p in np.flatnonzero(labels == 1) if p in trained_on][:3]
    wrong.write_text("".join(f"{position} {position % 5}\n" for position in reversed(mislabelled)))
    assert unlearn(data_dir, second, f"mislabelled:{wrong}", "--checkpoint", first) == 0
    after = json.loads((second / "results.json").read_text())["after"]
    assert (after["num_forget"], after["num_retain"], after["num_test"]) == (3, 60, 18)
    assert (after["num_forgotten_before"], after["num_corrected"]) == (14, 3)
    assert forget_sets.read_positions(second / "forget_indices.txt").tolist() == mislabelled
    np.testing.assert_array_equal(
        forget_sets.read_positions(second / "trained_on.txt"), np.setdiff1d(trained_on, forgotten)
    )
    wrong.write_text("".join(f"{position} {position % 5 + 1}\n" for position in mislabelled))
    again = unlearn(data_dir, second, f"mislabelled:{wrong}", "--checkpoint", first, "--resume")
    assert (again, "another run: right_labels_sha256 was" in error_of(capsys)) == (2, True)
    assert cli.main(["evaluate", "--checkpoint", str(second)]) == 0
    answer = json.loads(capsys.readouterr().out)
    for name in ("forget", "retain", "forgotten_before"):
        assert answer[f"num_{name}"] == after[f"num_{name}"]
        assert answer[f"acc_{name}"] == after[f"acc_{name}"]
    # A third request: what both runs before it forgot is out.
    wrong.write_text(f"{mislabelled[0]}\n{forgotten[0]}\n{trained_on[0]}\n")
    out = tmp_path / "third"
    assert unlearn(data_dir, out, f"indices:{wrong}", "--checkpoint", second) == 2
    assert "2 of the 3 examples to forget were not in the training set" in error_of(capsys)
    config = RunConfig(model="mlp", dataset="faces", forget="class:0", checkpoint=str(second))
    train = datasets.load("faces", data_dir).train
    past = past_of(config, len(labels), hashing.tree_sha256(train))
    np.testing.assert_array_equal(past.forgotten, np.union1d(forgotten, mislabelled))
    np.testing.assert_array_equal(past.trained_on, np.setdiff1d(trained_on, past.forgotten))
