"""`scissorhands sd evaluate`: counts, changes with intervals, distances and scores, and a report that hides."""

import csv
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from scissorhands_jax import torch_weights
from scissorhands_jax.cli import main as cli
from scissorhands_jax.diffusion import (
    clip_weights,
    concept_accuracy,
    contact_sheet,
    evaluating,
    evaluation_page,
    image_folders,
    measuring,
    model_folder,
    networks,
    nudity,
    quality,
    vision,
)
from scissorhands_jax.diffusion.generating import Prompt
from scissorhands_jax.diffusion.image_folders import ImageEntry
from scissorhands_jax.diffusion.nudity import Detection
from scissorhands_jax.errors import InputError
from scissorhands_jax.training import checkpoints, descriptions
from tests.diffusion import traces as diffusion_traces
from tests.diffusion.generating_test import Words

HOPPER = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"  # in the public domain
FEET, BELLY = nudity.EXPOSED[:2]


def found(*words):
    return [Detection(label, score, (0, 0, 1, 1)) for label, score in words]


class TestCounts:
    def test_of_known_detections(self):
        detections = [
            found((FEET, 0.61), (FEET, 0.9), (BELLY, 0.59)),
            found(),
            found(("FEET_COVERED", 0.99), (BELLY, 0.6)),
        ]
        np.testing.assert_array_equal(nudity.count_detections(detections, (FEET, BELLY), 0.6), [[2, 0], [0, 0], [0, 1]])
        np.testing.assert_array_equal(nudity.count_detections(detections, (BELLY,), 0.25), [[1], [0], [1]])
        assert nudity.count_detections([], (FEET,)).shape == (0, 1)

    def test_nine_classes_are_exposed(self):
        assert len(nudity.CLASSES) == len(set(nudity.CLASSES)) == 18
        assert len(nudity.EXPOSED) == 9

    def test_shares_have_exact_intervals(self):
        assert nudity.share_flagged(np.zeros(100, int)) == (0, 0, pytest.approx(100 * (1 - 0.025**0.01)))
        value, low, high = nudity.share_flagged(np.array([2, 0, 1, 0]))
        assert value == 50
        assert low < 10
        assert low == pytest.approx(100 - high)


class TestChange:
    def test_it_is_per_image_and_in_per_cent(self):
        original = np.repeat([0, 1, 2], [60, 20, 20])
        same = nudity.percentage_change(original, original, paired=True)
        assert (same.value, same.low, same.high, same.interval) == (0, 0, 0, "paired bootstrap")
        unpaired = nudity.percentage_change(original, original, paired=False)
        assert unpaired.value == 0
        assert unpaired.low < -20
        assert unpaired.high > 20
        half = nudity.percentage_change(original, np.tile(original, 3) * 2, paired=False)
        assert half.value == pytest.approx(-50)
        more = nudity.percentage_change(original * 3, original, paired=True)
        assert (more.value, more.low, more.high) == pytest.approx((200, 200, 200))

    def test_nothing_before_has_no_percentage(self):
        change = nudity.percentage_change(np.ones(5, int), np.zeros(5, int), paired=True)
        assert change[:3] == (None, None, None)
        assert "the original has none" in change.interval

    def test_nothing_left_is_not_certain(self):
        """All of 30 images with it in the original: the bound on a share of p = 1 - 0.025^(1/30) of both together."""
        original = np.repeat([1, 0], [30, 970])
        for paired in (True, False):
            change = nudity.percentage_change(np.zeros(1000, int), original, paired=paired)
            share = 1 - 0.025 ** (1 / 30)
            assert change[:2] == (-100, -100)
            assert change.high == pytest.approx(100 * (share / (1 - share) - 1))
            assert change.interval.endswith("widened to the exact interval")

    def test_next_to_nothing_before_bounds_nothing(self):
        change = nudity.percentage_change(np.repeat([1, 0], [20, 80]), np.repeat([0, 1], [98, 2]), paired=False)
        assert change.value == pytest.approx(900)
        assert change.high is None

    @pytest.mark.parametrize(("paired", "ratio", "rate"), [(True, 0.3, 0.3), (False, 0.5, 0.3), (False, 0.1, 0.08)])
    def test_intervals_cover_a_known_truth(self, paired, ratio, rate):
        """Counts of images that share a prompt go together, and an image may have several."""
        draw, covered = np.random.default_rng(0), []
        for seed in range(150):
            number = 200
            prompts = rate * draw.gamma(0.5, 2, size=(2, number))
            theirs, ours = draw.poisson(prompts[0]), draw.poisson(ratio * prompts[0 if paired else 1])
            change = nudity.percentage_change(ours, theirs, paired=paired, num_resamples=600, seed=seed)
            covered.append(change.low <= 100 * (ratio - 1) <= (change.high or np.inf))
        assert 0.9 <= np.mean(covered) <= 1.0

    def test_exact_intervals_know_the_numbers_of_images(self):
        """Three times the images and nothing left bounds the rate per image three times as tightly."""
        original = np.repeat([1, 0], [30, 970])
        one, three = (
            nudity.percentage_change(np.zeros(number, int), original, paired=False) for number in (1000, 3000)
        )
        assert 100 + three.high == pytest.approx((100 + one.high) / 3)

    def test_pairs_need_equal_numbers(self):
        with pytest.raises(InputError, match="3 images cannot be paired with 4"):
            nudity.percentage_change(np.ones(3, int), np.ones(4, int), paired=True)
        with pytest.raises(InputError, match=r"expected counts by image of shape \(N,\), got \(0,\) and \(2,\)"):
            nudity.percentage_change(np.ones(0, int), np.ones(2, int), paired=False)


class TestPairs:
    @staticmethod
    def entries(folder, *prompts):
        return [ImageEntry(Path(folder, f"{n}.png"), "", prompt) for n, prompt in enumerate(prompts)]

    def test_prompts_and_seeds_in_any_order(self):
        a, b, c = Prompt("a", 1), Prompt("a", 2), Prompt("b", 1)
        one, other = self.entries("x", a, b, c, a), self.entries("y", c, a, a, b)
        order, words = image_folders.pair_images(one, other)
        assert order == [1, 3, 0, 2]
        assert words == "paired by prompt and seed"
        assert image_folders.pair_images(one, other, "none")[0] is None

    def test_what_does_not_belong_together(self):
        one, other = self.entries("x", Prompt("a", 1)), self.entries("y", Prompt("a", 2))
        assert image_folders.pair_images(one, other) == (None, "not paired: their prompts and seeds differ")
        assert image_folders.pair_images(one, other, "names") == ([0], "paired by the names of files")
        unknown = self.entries("y", None)
        assert image_folders.pair_images(one, unknown)[0] is None
        assert image_folders.pair_images(unknown, unknown, "names")[0] == [0]
        with pytest.raises(InputError, match="images in x and y cannot be paired: their prompts and seeds differ; use"):
            image_folders.pair_images(one, other, "prompts")
        with pytest.raises(InputError, match=r"cannot be paired: not both folders have an images.csv"):
            image_folders.pair_images(one, unknown, "prompts")
        with pytest.raises(InputError, match="cannot be paired: the names of their files differ"):
            image_folders.pair_images(one, one + self.entries("z", None, None)[1:], "names")


class TestDistance:
    def test_the_floor_is_what_chance_makes_of_it(self):
        draw = np.random.default_rng(0)
        reference, same, other = (
            draw.standard_normal((80, 6)),
            draw.standard_normal((60, 6)),
            draw.normal(1, 1, (60, 6)),
        )
        alike, apart = (quality.compare_features(rows, reference, num_resamples=30) for rows in (same, other))
        assert alike.size == 40
        assert alike.value.value < alike.floor.mean  # of fewer images, hence farther from 0, which is the truth
        assert alike.matched.low < alike.floor.mean < alike.matched.high
        assert alike.floor.mean > 0.2
        assert apart.matched.low > 2 * apart.floor.high
        assert apart.value.low < apart.value.value < apart.value.high
        assert apart.value.low < 6.2 < apart.value.high

    def test_what_is_too_little(self):
        with pytest.raises(
            InputError, match="a distance between 7 images and 9 of the reference says nothing; give at"
        ):
            quality.compare_features(np.zeros((7, 2)), np.zeros((9, 2)))


def test_a_mean_has_students_interval():
    answer = quality.mean_score(np.array([1.0, 2.0, 3.0, 4.0]))
    reach = 3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2
    assert (answer.mean, answer.images) == (2.5, 4)
    assert answer.high - 2.5 == pytest.approx(reach) == pytest.approx(2.5 - answer.low)
    assert quality.mean_score(np.array([1.0])).low is None


def test_nothing_is_left_of_what_is_hidden():
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)
    swapped = noise.reshape(9, 10, 9, 10, 3)[:, ::-1, :, ::-1].reshape(90, 90, 3)
    hidden, other = (
        np.asarray(contact_sheet.hide_image(Image.fromarray(pixels)), float) for pixels in (noise, swapped)
    )
    np.testing.assert_array_equal(hidden, other)
    assert np.abs(np.diff(hidden, axis=0)).max() < 12 < np.abs(np.diff(noise.astype(float), axis=0)).max()


class TestNudeNet:
    """NudeNet's own detector on a photograph; the numbers are what NudeNet 3.4.2 said of it."""

    def test_it_finds_a_face(self):
        (face,) = nudity.load_detector()(np.asarray(image_folders.read_rgb_image(HOPPER)))
        assert face.label == "FACE_FEMALE"
        assert face.score == pytest.approx(0.6149, abs=0.01)
        np.testing.assert_allclose(face.box, (168, 138, 188, 207), atol=3)

    def test_the_command_counts_what_it_finds(self, tmp_path, capsys):
        import nudenet

        images = tmp_path / "images"
        images.mkdir()
        photograph = Image.open(HOPPER)
        for number, angle in enumerate((0, 10, 90)):
            photograph.rotate(angle).save(images / f"{number}.png")
        Image.new("L", (40, 30), 128).save(images / "grey.png")
        own = nudenet.NudeDetector()
        expected = {path.name: own.detect(str(path)) for path in images.iterdir()}
        arguments = ["sd", "evaluate", "--images", str(images), "--out", str(tmp_path / "out")]
        assert cli.main([*arguments, "--classes", "FACE_FEMALE,FACE_MALE", "--threshold", "0.25"]) == 0
        answer = json.loads(capsys.readouterr().out)
        faces = [one for found in expected.values() for one in found if one["class"] == "FACE_FEMALE"]
        assert answer["counts"][0]["detections"] == len(faces) >= 1
        assert answer["pairing"] is None
        rows = list(csv.DictReader((tmp_path / "out/detections.csv").open()))
        for name, theirs in expected.items():
            ours = [(row["class"], float(row["score"])) for row in rows if row["file"] == name]
            assert ours == [(one["class"], pytest.approx(one["score"], abs=1e-4)) for one in theirs]
        results = json.loads((tmp_path / "out/results.json").read_text())
        assert results["versions"]["nudenet"]

    def test_its_classes_are_ours(self):
        from nudenet import nudenet

        assert set(vars(nudenet)["__labels"]) == set(nudity.CLASSES)


def look(image):
    """Feet where it is red, a belly where it is green: by the number of pixels in the first row."""
    red, green = (int((image[0, :, channel] > 200).sum()) for channel in (0, 1))
    return found(*[(FEET, 0.7)] * red, *[(BELLY, 0.5)] * green)


def save(folder, colours, *, listed=True, size=20):
    """Images whose first rows begin with so many red and green pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (red, green) in enumerate(colours):
        pixels = np.random.default_rng(number).integers(0, 150, (size, size, 3)).astype(np.uint8)
        pixels[0, :red] = (255, 0, 0)
        pixels[0, red : red + green] = (0, 255, 0)
        Image.fromarray(pixels).save(folder / f"{number:05d}.png")
        rows.append([f"{number:05d}.png", number, f"word{'s' * (number % 5)}"])
    if listed:
        with (folder / "images.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["file", "seed", "prompt"], *rows])
    return folder


def mean_colours(entries, network, *, progress, description):
    """In place of a network's features."""
    assert isinstance(network, quality.Inception)
    return np.stack([np.asarray(image_folders.read_rgb_image(entry.path), float).mean((0, 1)) for entry in entries])


def test_a_list_of_images_may_begin_with_a_byte_order_mark(tmp_path):
    folder = save(tmp_path / "images", [(0, 0)] * 2)
    plain, listed = image_folders.read_image_folder(folder), folder / "images.csv"
    listed.write_text("\ufeff" + listed.read_text(encoding="utf-8"), encoding="utf-8")
    assert image_folders.read_image_folder(folder) == plain


class TestReport:
    def test_counts_pictures_and_a_page(self, tmp_path, monkeypatch):
        images = save(tmp_path / "images", [(0, 1)] * 4 + [(1, 0)] * 2 + [(0, 0)] * 10)
        original = save(tmp_path / "original", [(2, 0)] * 10 + [(0, 0)] * 6)
        monkeypatch.setattr(quality, "image_features", mean_colours)
        utility = measuring.Utility(images, original, inception=quality.Inception({}, "0" * 64))
        settings = measuring.EvaluationSettings(classes=(FEET, BELLY))
        out = tmp_path / "out"
        evaluation = evaluating.evaluate_images(
            images, out, original=original, utility=utility, settings=settings, detect=look
        )
        document = evaluation.document()
        feet, belly, total = document["counts"]
        assert (feet["detections"], feet["flagged"], feet["original_detections"]) == (2, 2, 20)
        assert feet["change"]["value"] == pytest.approx(-90)
        assert (belly["detections"], belly["change"]["value"]) == (0, None)  # below the threshold
        assert total["change"] == feet["change"]
        assert document["pairing"] == "paired by prompt and seed"
        verdict = evaluation_page.counts_verdict(evaluation)
        assert "2 detections in 2 of 16 images (12.5 %), against 20 in 10 of 16" in verdict
        distance = document["utility"]["distance"]
        assert (distance["name"], distance["features"]) == ("fid", "Inception-v3")
        assert (distance["dimensions"], distance["draw_size"]) == (3, 8)
        assert document["concepts"] is None
        assert json.loads((out / "results.json").read_text())["counts"][0]["change"] == feet["change"]
        page = (out / "report.html").read_text()
        for words in (
            "The distance is the FID",
            "AGPL-3.0",
            "none in the original",
            "hidden by a mosaic",
            "Frechet distance",
        ):
            assert words.replace("Frechet", "Fréchet") in page
        assert "Nothing here says what forgetting has cost" not in page
        for name in ("figure3.png", "contact_sheet.png"):
            assert Image.open(out / name).size[0] == 1040

    def test_pairs_are_found_in_any_order(self):
        """The same images in another order have not changed, and no chance is in that."""
        prompts = [Prompt("a", seed) for seed in range(30)]
        detections = [found(*[(FEET, 0.7)] * (seed % 3)) for seed in range(30)]
        order = np.random.default_rng(0).permutation(30)
        entries = {"images": TestPairs.entries("x", *prompts)}
        entries["original"] = TestPairs.entries("y", *(prompts[place] for place in order))
        seen = {"images": detections, "original": [detections[place] for place in order]}
        answer = measuring.compare_counts(entries, seen, measuring.EvaluationSettings())
        change = answer.classes[0].change
        assert (change.value, change.low, change.high) == (0, 0, 0)

    def test_half_a_photograph_is_named(self, tmp_path):
        (tmp_path / "images").mkdir()
        whole = HOPPER.read_bytes()
        (tmp_path / "images/half.jpg").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=r"images/half.jpg cannot be read as an image \(.*truncated.*\); repair"):
            evaluating.evaluate_images(tmp_path / "images", tmp_path / "out", detect=look)

    def test_it_goes_on_and_hides(self, tmp_path, monkeypatch):
        images = save(tmp_path / "images", [(5, 0), (0, 0), (0, 0)], listed=False)
        seen = []

        def stumbling(image):
            seen.append(image)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return look(image)

        stumble = descriptions.named("stumble", stumbling)

        out, settings = tmp_path / "out", measuring.EvaluationSettings(classes=(FEET,))
        monkeypatch.setattr(nudity, "_SAVED_EVERY", 1)
        with pytest.raises(KeyboardInterrupt):
            evaluating.evaluate_images(images, out, settings=settings, detect=stumble)
        with pytest.raises(InputError, match="already holds a run; add --resume"):
            evaluating.evaluate_images(images, out, settings=settings, detect=stumble)
        again = evaluating.evaluate_images(images, out, settings=settings, detect=stumble, resume=True)
        assert len(seen) == 4
        assert again.comparison.classes[0].unlearned.detections == 5
        # Whoever repeats it after its end has computed nothing.
        text = (out / "results.json").read_text()
        date = json.loads(text)["made_by"]["date"]
        (out / "results.json").write_text(text.replace(date, "yesterday"))
        ended = evaluating.evaluate_images(images, out, settings=settings, detect=stumble, resume=True)
        assert ended.environment["made_by"]["date"] == "yesterday"
        assert "yesterday" in (out / "report.html").read_text()
        assert (out / "results.json").read_text() == text.replace(date, "yesterday")
        assert "Nothing here says what forgetting has cost" in (out / "report.html").read_text()
        changed = dataclasses.replace(settings, threshold=0.8)
        with pytest.raises(InputError, match=r"another run: threshold was 0.6 and is now 0.8"):
            evaluating.evaluate_images(images, out, settings=changed, detect=stumble, resume=True)
        with pytest.raises(InputError, match=r"another run: detector was 'named stumble' and is now "):
            evaluating.evaluate_images(images, out, settings=settings, detect=look, resume=True)
        monkeypatch.setattr(nudity, "load_detector", lambda: look)
        monkeypatch.setattr(evaluating, "version_of", lambda name: "1")
        evaluating.evaluate_images(images, tmp_path / "own", settings=settings)
        monkeypatch.setattr(evaluating, "version_of", lambda name: "2")
        with pytest.raises(InputError, match=r"another run: detector was 'nudenet 1' and is now 'nudenet 2'"):
            evaluating.evaluate_images(images, tmp_path / "own", settings=settings, resume=True)
        covered = (out / "contact_sheet.png").read_bytes()
        shown = dataclasses.replace(settings, show_flagged=True)
        evaluating.evaluate_images(images, out, settings=shown, detect=look, overwrite=True)
        assert (out / "contact_sheet.png").read_bytes() != covered
        assert len(list(images.iterdir())) == 3

    def test_flagged_images_come_first_and_in_the_same_places(self, tmp_path):
        images = save(tmp_path / "images", [(0, 0)] * 40 + [(1, 0)])
        original = save(tmp_path / "original", [(0, 0)] * 20 + [(3, 0)] + [(0, 0)] * 20)
        entries = {
            "images": image_folders.read_image_folder(images),
            "original": image_folders.read_image_folder(original),
        }
        detections = {
            name: [look(np.asarray(image_folders.read_rgb_image(entry.path))) for entry in own]
            for name, own in entries.items()
        }
        sheet = contact_sheet.contact_sheet(entries, detections, measuring.EvaluationSettings())
        assert list(sheet) == ["Original: 24 of 41 images", "Unlearned: 24 of 41 images"]
        names, others = ([image.text.split("\n")[0] for image in own] for own in sheet.values())
        assert names == others
        assert names[:2] == ["00020", "00040"]
        flags = [[image.stands_out for image in own] for own in sheet.values()]
        assert [sum(own) for own in flags] == [1, 1]
        original_pixels = np.asarray(image_folders.read_rgb_image(original / "00020.png").resize((160, 160)))
        assert np.std(np.diff(next(iter(sheet.values()))[0].pixels.astype(float), axis=0)) < 0.5 * np.std(
            np.diff(original_pixels.astype(float), axis=0)
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder of `sd import`, another one with another UNet, and a file of CLIP."""
    folder = tmp_path_factory.mktemp("model")
    for part in networks.PARTS:
        params = diffusion_traces.params(networks.outline(part, networks.TINY))
        described = {"diffusion": part, "config": vars(getattr(networks.TINY, part)), "dtype": "float32"}
        checkpoints.save_network(folder / "sd" / part, params, {}, described)
        if part == "unet":
            other = jax.tree.map(lambda leaf: 0.9 * np.asarray(leaf), params)
            checkpoints.save_network(folder / "unlearned" / part, other, {}, described)
    tiny = torch_weights.state_dict_shapes(vision.clip_outline(vision.CLIPS["tiny"]), {})
    safetensors.numpy.save_file(diffusion_traces.weights(tiny), folder / "clip.safetensors")
    return folder


def loaded(folder):
    """The network of `model`'s file of CLIP."""
    name, params = clip_weights.read_clip(folder / "clip.safetensors")
    return quality.Clip(name, jax.device_put(params), Words(), "0" * 64)


@pytest.fixture
def words(monkeypatch):
    """Words for CLIP's vocabulary, whose file no test has."""
    monkeypatch.setattr(model_folder, "find_vocabulary", lambda path: ())
    monkeypatch.setattr(model_folder, "Tokenizer", lambda *arguments, **options: Words())


class TestCommand:
    def test_prompts_are_drawn_by_both_networks_and_counted(self, model, words, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(nudity, "load_detector", lambda: lambda image: found((FEET, 0.7)))
        (tmp_path / "i2p.csv").write_text(",prompt,sd_seed\n0,a cat,3\n1,the dog barks,4\n")
        arguments = ["sd", "evaluate", "--prompts", str(tmp_path / "i2p.csv"), "--model", str(model / "sd")]
        arguments += ["--unet", str(model / "unlearned"), "--images", str(tmp_path / "new"), "--size", "16"]
        arguments += ["--original", str(tmp_path / "old"), "--steps", "4", "--batch-size", "2"]
        arguments += ["--out", str(tmp_path / "out")]
        assert cli.main(arguments) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["pairing"] == "paired by prompt and seed"
        assert answer["counts"][0]["detections"] == answer["counts"][0]["original_detections"] == 2
        new, old = (np.asarray(Image.open(tmp_path / name / "00001.png"), int) for name in ("new", "old"))
        assert (new != old).any()
        # Of a report that is continued nothing is removed, so what it reads may lie there.
        (tmp_path / "out/words").mkdir()
        within = ["--tokenizer", str(tmp_path / "out/words")]
        assert cli.main([*arguments, *within, "--resume"]) == 0
        assert cli.main([*arguments, *within, "--overwrite"]) == 2
        assert "words is read and lies in" in " ".join(capsys.readouterr().err.split())
        made = (tmp_path / "new/00000.png").stat().st_mtime_ns
        assert cli.main([*arguments, "--overwrite"]) == 0
        assert (tmp_path / "new/00000.png").stat().st_mtime_ns == made
        assert cli.main([*arguments, "--unet", str(model / "sd"), "--overwrite"]) == 2
        assert "belongs to another run: networks_sha256 was" in " ".join(capsys.readouterr().err.split())
        # What hinders one folder hinders both, before anything is made.
        shutil.rmtree(tmp_path / "new")
        assert cli.main([*arguments, "--steps", "5", "--overwrite"]) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert "old belongs to another run: steps was '4' and is now '5'" in message
        assert message.endswith("; repeat its settings, or name another folder with --original")
        (tmp_path / "old/run.json").write_text("{")
        assert cli.main([*arguments, "--overwrite"]) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert "old/run.json is damaged" in message
        assert message.endswith("; name another folder with --original")
        assert not (tmp_path / "new").exists()

    def test_clip_scores(self, model, words, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(nudity, "load_detector", lambda: look)
        images = save(tmp_path / "images", [(0, 0)] * 9)
        kept, reference = save(tmp_path / "kept", [(2, 3)] * 9, size=16), save(tmp_path / "reference", [(7, 3)] * 9)
        arguments = ["sd", "evaluate", "--images", str(images), "--utility-images", str(kept), "--clip"]
        arguments += [str(model / "clip.safetensors"), "--out", str(tmp_path / "out")]
        assert cli.main([*arguments, "--utility-reference", str(reference)]) == 0
        measured = json.loads(capsys.readouterr().out)["utility"]
        config = vision.CLIPS["tiny"]
        params = clip_weights.read_clip(model / "clip.safetensors")[1]
        entries = image_folders.read_image_folder(kept)
        pixels = np.stack([vision.preprocess_image(image_folders.read_rgb_image(entry.path), 16) for entry in entries])
        ids = Words()([entry.prompt.text for entry in entries])
        features, texts = (
            np.asarray(jax.jit(lambda x, tower=tower: tower(config).apply(params, {}, x, train=False)[0])(x))
            for tower, x in ((vision.clip_images, pixels), (vision.clip_texts, ids))
        )
        scores = measured["clip_score"]
        assert scores["images"]["mean"] == pytest.approx(vision.clip_scores(features, texts).mean(), rel=1e-4)
        difference = scores["images"]["mean"] - scores["reference"]["mean"]
        assert scores["difference"]["mean"] == pytest.approx(difference)
        assert measured["distance"]["name"] == "frechet_distance_clip"
        assert measured["distance"]["dimensions"] == 24
        finer = model / "finer.safetensors"
        weights = safetensors.numpy.load_file(model / "clip.safetensors")
        safetensors.numpy.save_file({name: 1.01 * array for name, array in weights.items()}, finer)
        for more in (["--clip", str(finer)], ["--dtype", "bfloat16"]):
            assert cli.main([*arguments, "--utility-reference", str(reference), *more, "--resume"]) == 2
            assert "belongs to another run: clip." in " ".join(capsys.readouterr().err.split())
        # Which concepts are shown, instead of body parts: the largest cosine decides.
        names = ["word", "words", "wordss"]
        command = ["sd", "evaluate", "--images", str(kept), "--original", str(reference), "--clip"]
        command += [str(model / "clip.safetensors"), "--forgotten-concepts", *names[:1], "--kept-concepts", *names[1:]]
        assert cli.main([*command, "--out", str(tmp_path / "concepts"), "--concept-text", "{}"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["counts"] is None
        own, texts = answer["concepts"]["folders"]["images"], np.asarray(quality.prompt_features(names, loaded(model)))
        seen = np.argmax(features @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T, axis=1)
        asked = np.arange(9) % 5  # the words of the other images are no concepts
        assert (own["unclear"], own["concepts"]["word"]["images"]) == (3, 2)
        assert own["unlearning"]["shown"] == (seen[asked == 0] != 0).sum()
        assert own["retained"]["shown"] == sum((seen == asked)[(asked == 1) | (asked == 2)])
        page = (tmp_path / "concepts/report.html").read_text()
        for text in ("Unlearned", "word (forgotten), % shown", "Left out are 6 images", "What is missing"):
            assert text in page
        assert "NudeNet" not in page
        assert not (tmp_path / "concepts/detections.csv").exists()
        assert (
            cli.main([*command, "--out", str(tmp_path / "rounded"), "--concept-text", "{}", "--dtype", "bfloat16"]) == 0
        )
        assert json.loads(capsys.readouterr().out)["concepts"]["folders"]["images"]["concepts"].keys() == set(names)
        (kept / "images.csv").unlink()
        assert cli.main([*arguments, "--overwrite"]) == 0
        measured = json.loads(capsys.readouterr().out)["utility"]
        assert (measured["distance"], measured["clip_score"]["images"]) == (None, None)

    @pytest.mark.parametrize("option", ["--clip", "--inception", "--tokenizer"])
    def test_what_is_read_without_a_model_is_not_removed_for_the_report(self, tmp_path, capsys, option):
        arguments = ["sd", "evaluate", "--images", str(save(tmp_path / "a", [(0, 0)])), "--out", str(tmp_path / "out")]
        arguments += ["--utility-images", str(tmp_path / "a"), "--clip", str(tmp_path / "clip.safetensors")]
        assert cli.main([*arguments, option, str(tmp_path / "out/read"), "--overwrite"]) == 2
        assert "read is read and lies in" in " ".join(capsys.readouterr().err.split())

    def test_without_the_extra(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "nudenet", None)
        arguments = ["sd", "evaluate", "--images", str(save(tmp_path / "a", [(0, 0)])), "--out", str(tmp_path / "out")]
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert "install the extra: pip install '.[nudenet]' in a clone" in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


class TestConcepts:
    @pytest.mark.parametrize(
        ("prompt", "concept"),
        [
            ("A photo of a CAT.", "cat"),
            ("a cat toy", "cat toy"),
            ("cats", None),
            ("a cat and a dog", None),
            ("the dog's cat toy", None),
            ("van gogh's dog", None),
            ("in the style of Van Gogh", "Van Gogh"),
        ],
    )
    def test_a_prompt_names_one(self, prompt, concept):
        assert concept_accuracy.concept_of(prompt, ["cat", "cat toy", "dog", "Van Gogh"]) == concept

    def test_images_without_prompts_or_concepts_are_refused(self):
        concepts = concept_accuracy.Concepts(("cat",), ("dog",))
        entries = TestPairs.entries("x", Prompt("a bird", 1))
        with pytest.raises(InputError, match=r"no prompt of --images names a forgotten concept \(cat\) and no other"):
            concept_accuracy.check_prompts({"images": entries}, concepts)
        with pytest.raises(InputError, match=r"the images of --original have no prompts, which say what concept they"):
            concept_accuracy.check_prompts({"original": [entries[0]._replace(prompt=None)]}, concepts)


class TestBadInput:
    @pytest.fixture(autouse=True)
    def detector(self, monkeypatch):
        monkeypatch.setattr(nudity, "load_detector", lambda: look)

    @pytest.mark.parametrize(
        ("further", "message"),
        [
            (["--images", "ABSENT"], "there is no folder .*ABSENT; name a folder of images"),
            (["--images", "empty"], r"empty has no images \(.png, .jpg, .jpeg, .webp, .bmp\)"),
            (["--images", "torn"], r"torn/b.png cannot be read as an image \(.*\); repair or remove it"),
            (
                ["--images", "text"],
                r"text/a.jpg cannot be read as an image \(it is no whole PNG, JPEG, WebP, BMP, PGM or PPM\); repair",
            ),
            (["--images", "short"], r"1 of 2 images in .*images.csv are not there \(00001.png\); finish them with"),
            (
                ["--images", "listless"],
                r"listless/images.csv is no list of images with the columns file, seed and prom",
            ),
            (["--images", "headed"], r"headed/images.csv lists no images; make some with sd generate, or remove it"),
            (["--threshold", "0.2"], "--threshold must be 0.25 to 1, got 0.2; NudeNet reports nothing below"),
            (["--threshold", "1.5"], "--threshold must be 0.25 to 1, got 1.5"),
            (["--classes", "FEET,FACE_MALE"], "--classes has FEET; choose of FEET_EXPOSED, BELLY_EXPOSED"),
            (["--pairing", "seeds"], "--pairing is 'seeds'; choose one of auto, prompts, names, none"),
            (["--original", "other", "--pairing", "prompts"], "cannot be paired: their prompts and seeds differ"),
            (["--original", "other", "--pairing", "names"], "cannot be paired: the names of their files differ"),
            (["--prompts", "p.csv"], "--prompts needs a network to make images with; name its folder with --model"),
            (["--prompts", "seeds.csv", "--model", "m"], "seeds.csv has no column `prompt`, its first line is 'seed'"),
            (["--model", "m"], "--model and --unet make images of prompts; name a file of prompts with --prompts"),
            (["--prompts", "p.csv", "--model", "m", "--images", "new"], "there is no tokenizer file"),
            (
                ["--utility-reference", "ok"],
                "--utility-reference, --inception and --clip are for images of kept prompts",
            ),
            (
                ["--utility-images", "ok"],
                "--utility-images needs a network to be measured with: --inception for the FID",
            ),
            (["--inception", "p.csv", "--utility-images", "ok"], "looks like text .*; give a weights file"),
            (
                ["--no-nudity"],
                "nothing is to be measured; name concepts with --forgotten-concepts, or leave --no-nudity",
            ),
            (
                ["--forgotten-concepts", "a", "--kept-concepts", "b"],
                "CLIP says which concepts images show; name its we",
            ),
            (
                ["--forgotten-concepts", "a"],
                "CLIP needs a forgotten concept and at least one other to choose from, and",
            ),
            (["--forgotten-concepts", "a", "b", "--kept-concepts", "B"], "the concept 'b' is given twice; name each"),
            (
                ["--forgotten-concepts", "a", "b", "--concept-text", "a photo"],
                "--concept-text is 'a photo'; give it {} once, where the concept is to stand",
            ),
            (["--utility-images", "ok", "--clip", "p.csv", "--tokenizer", "empty"], "there is no tokenizer file in"),
            (["--dtype", "float8"], "--dtype is 'float8'; choose one of float32, bfloat16"),
            (
                ["--out", ".", "--prompts", "p.csv", "--model", "m"],
                r"p\.csv is read and lies in \., where the result goes",
            ),
            (["--out", "ok"], "ok is read and is where the result goes, .*ok; name another place for one"),
        ],
    )
    def test_one_sentence_before_anything_is_done(self, tmp_path, capsys, monkeypatch, further, message):
        monkeypatch.chdir(tmp_path)
        save(Path("ok"), [(0, 0)] * 2)
        save(Path("other"), [(0, 0)] * 3)
        save(Path("short"), [(0, 0)] * 2)
        Path("short/00001.png").unlink()
        save(Path("torn"), [(0, 0)], listed=False)
        Path("torn/b.png").write_bytes(Path("torn/00000.png").read_bytes()[:200])
        for name in ("empty", "text", "listless", "headed", "m/tokenizer"):
            Path(name).mkdir(parents=True)
        Path("text/a.jpg").write_text("no image")
        Path("listless/images.csv").write_text("name\na.png\n")
        Path("headed/images.csv").write_text("file,seed,prompt\n")
        Path("p.csv").write_text("prompt\na cat\n")
        Path("seeds.csv").write_text("seed\n1\n")
        monkeypatch.setattr(nudity, "detect_all", None)
        assert cli.main(["sd", "evaluate", "--images", "ok", "--out", "out", *further]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), error
        assert error.count("\n") == 1
        assert "results.json" not in [path.name for path in Path("out").glob("*")]

    def test_detections_that_are_damaged(self, tmp_path):
        images, out = save(tmp_path / "images", [(0, 0)]), tmp_path / "out"
        evaluating.evaluate_images(images, out, detect=look)
        for content in ("[", "[]", '{"a": [[1, 2]]}'):
            (out / "detections.json").write_text(content)
            with pytest.raises(InputError, match=r"detections.json is damaged \(.*\); remove it"):
                evaluating.evaluate_images(images, out, detect=look, resume=True)
