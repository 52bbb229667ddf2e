"""`scissorhands sd attack` with a small network in the UNet's place, and a judge that counts pictures."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from scissorhands_jax import hashing, torch_weights
from scissorhands_jax.cli import main as cli
from scissorhands_jax.diffusion import (
    attack_judges,
    attacking,
    clip_weights,
    concept_accuracy,
    model_folder,
    networks,
    nudity,
    quality,
    vision,
)
from scissorhands_jax.diffusion.generating import GenerationSettings, Prompt
from scissorhands_jax.errors import InputError
from scissorhands_jax.terminal import Console
from scissorhands_jax.training.descriptions import describe_value
from tests.diffusion import traces as diffusion_traces
from tests.diffusion import unlearning_test as small
from tests.diffusion.generating_test import Words

CONFIG = networks.TINY.text
IDS = np.array([[1, 2, 7, 98, 98, 98, 98, 98, 98, 98, 98]], np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attack")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "outline", small.small_outline)
        patch.setattr(networks, "unet", lambda sizes, compute=networks.FLOAT32: small.MODEL)
        patch.setattr(model_folder, "find_vocabulary", lambda path: ())
        patch.setattr(model_folder, "Tokenizer", lambda *arguments, **options: Words())
        small.write_model(folder / "model")
        model_folder.save_part("unet", folder / "other", networks.TINY.unet, small.small_params(4), "float32", "a test")
        velocity = dataclasses.replace(networks.TINY.schedule, prediction="v_prediction")
        params = small.small_params()
        model_folder.save_part(
            "unet", folder / "velocity", networks.TINY.unet, params, "float32", "a test", schedule=velocity
        )
        (folder / "list.csv").write_text("sensitive prompt,sd_seed\na cat,3\nthe dog barks,4\ncats,5\n")
        tiny = torch_weights.state_dict_shapes(vision.clip_outline(vision.CLIPS["tiny"]), {})
        for name, scale in (("clip", 1), ("finer", 1.01), ("huge", 1e30)):
            weights = {key: scale * array for key, array in diffusion_traces.weights(tiny).items()}
            torch_weights.write_safetensors(folder / f"{name}.safetensors", weights)
        yield folder


def words(folder, out, *more):
    found = ["sd", "attack", "--model", folder / "model", "--unet", folder / "other", "--prompts", folder / "list.csv"]
    found += ["--size", "16", "--steps", "2", "--out", out, *more]
    return [str(word) for word in found]


def judged(monkeypatch, looks):
    """NudeNet finds something where `looks`, called with the number of the picture, says so."""
    seen = []

    def detect(image):
        seen.append(image)
        return [nudity.Detection(nudity.EXPOSED[0], 0.7, (0, 0, 1, 1))] if looks(len(seen)) else []

    monkeypatch.setattr(nudity, "load_detector", lambda: detect)
    return seen


class TestCommand:
    def test_attacks_are_counted_and_gone_on_with(self, folder, tmp_path, monkeypatch, capsys):
        # The first prompt succeeds as it is, the second in its second round, the third never; then the original.
        seen = judged(monkeypatch, lambda number: number in (1, 4, 8))
        attack = ["--kind", "embedding", "--attack-steps", "4", "--rounds", "2", "--gate", "1", "--learning-rate", "1"]
        command = words(folder, tmp_path / "out", *attack)
        assert cli.main(command) == 0
        document = json.loads((tmp_path / "out/results.json").read_text())
        rows = [json.loads((tmp_path / f"out/unlearned/{n:05d}.json").read_text()) for n in range(3)]
        assert [row["without_attack"] for row in rows] == [True, False, False]
        assert [row["with_attack"] for row in rows] == [True, True, False]
        assert [row.get("rounds") for row in rows] == [None, 2, 2]
        assert len(seen) == 1 + 3 + 3 + 1
        found = document["unlearned"]["with_attack"]
        assert (found["successes"], found["attacks"]) == (2, 3)
        assert found["low"] < found["percent"] < found["high"]
        assert document["original"]["with_attack"]["percent"] == 100
        assert document["gate"] == {"original": False}  # one success says too little
        assert (tmp_path / "out/unlearned/00002.png").read_bytes().startswith(b"\x89PNG")
        assert not np.array_equal(seen[1], seen[2])  # the prompt with the found rows draws something else
        # Whoever repeats it after its end has computed nothing.
        made = {**document, "made_by": {**document["made_by"], "date": "yesterday"}}
        (tmp_path / "out/results.json").write_text(json.dumps(made))
        assert cli.main([*command, "--resume"]) == 0
        assert json.loads((tmp_path / "out/results.json").read_text()) == made
        assert len(seen) == 8
        # What is there is read; what is missing is made.
        (tmp_path / "out/unlearned/00002.json").unlink()
        (tmp_path / "out/results.json").unlink()
        capsys.readouterr()
        assert cli.main([*command, "--resume"]) == 0
        assert len(seen) == 8 + 3
        again = json.loads(capsys.readouterr().out)
        assert [again[name] for name in ("unlearned", "original")] == [
            document[name] for name in ("unlearned", "original")
        ]
        (tmp_path / "out/unlearned/00001.json").write_text("{")
        assert cli.main([*command, "--resume"]) == 2
        assert "00001.json is damaged" in " ".join(capsys.readouterr().err.split())

    def test_other_images_are_another_run(self, folder, tmp_path, monkeypatch, capsys):
        judged(monkeypatch, lambda number: False)
        for name, value in (("images", 0), ("again", 0), ("others", 90)):
            (tmp_path / name).mkdir()
            for number in range(2):
                Image.new("RGB", (16, 16), (value, number, 0)).save(tmp_path / name / f"{number}.png")
        attack = ["--kind", "embedding", "--attack-steps", "1", "--rounds", "1", "--first", "2", "--images"]
        assert cli.main(words(folder, tmp_path / "out", *attack, tmp_path / "images")) == 0
        capsys.readouterr()
        assert cli.main(words(folder, tmp_path / "out", *attack, tmp_path / "again", "--resume")) == 0
        assert cli.main(words(folder, tmp_path / "out", *attack, tmp_path / "others", "--resume")) == 2
        assert "belongs to another run: images_sha256 was" in " ".join(capsys.readouterr().err.split())

    def test_another_original_is_another_run(self, folder, tmp_path, monkeypatch, capsys):
        """Whose UNet differs: it made the targets, and is attacked for the gate."""
        judged(monkeypatch, lambda number: False)
        shutil.copytree(folder / "model", tmp_path / "model")
        shutil.rmtree(tmp_path / "model/unet")
        shutil.copytree(folder / "other/unet", tmp_path / "model/unet")
        command = words(folder, tmp_path / "out", "--kind", "embedding", "--attack-steps", "1", "--rounds", "1")
        assert cli.main(command) == 0
        assert len(json.loads((tmp_path / "out/targets/run.json").read_text())["networks_sha256"]) == 64
        assert cli.main([*command, "--resume", "--model", str(tmp_path / "model")]) == 2
        assert "belongs to another run: original_sha256 was" in " ".join(capsys.readouterr().err.split())

    def test_another_judge_is_another_run(self, folder, tmp_path):
        job = attacking.AttackJob(
            model=folder / "model",
            unet=folder / "other",
            prompts=[Prompt("a cat", 0)],
            settings=None,
            generation=GenerationSettings(steps=2, size=16),
        )
        console = Console(quiet=True)
        attacking.attack_concept(job, tmp_path / "out", judge=lambda image: True, console=console)
        with pytest.raises(InputError, match=r"belongs to another run: judge"):
            attacking.attack_concept(
                job, tmp_path / "out", judge=lambda image: image.mean() > 0, resume=True, console=console
            )
        with pytest.raises(InputError, match="the seed must be a whole number from 0 to 4294967295, got -1"):
            attacking.attack_concept(dataclasses.replace(job, seed=-1), tmp_path / "new", console=console)

    def test_a_transferred_list_is_tried_as_it_is(self, folder, tmp_path, monkeypatch):
        seen = judged(monkeypatch, lambda number: number == 2)
        assert cli.main(words(folder, tmp_path / "out", "--kind", "transfer", "--first", "2")) == 0
        document = json.loads((tmp_path / "out/results.json").read_text())
        assert len(seen) == 2
        assert document["unlearned"]["with_attack"]["percent"] == 50
        assert document["config"]["attack"] is None
        assert "original" not in document
        assert not (tmp_path / "out/targets").exists()

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--gate", "4"], "--gate must be 0 to 3, the number of prompts, got 4"),
            (["--first", "9"], "--first must be 1 to 3, the number of prompts, got 9"),
            (["--tokens", "99"], f"tokens must be at most {CONFIG.length - 2}, got 99"),
            (["--rounds", "0"], "rounds must be at least 1, got 0"),
            (["--threshold", "0.1"], "--threshold must be 0.25 to 1, got 0.1; NudeNet reports nothing below"),
            (["--threshold", "1.5"], "--threshold must be 0.25 to 1, got 1.5"),
            (["--kind", "word"], "--kind is 'word'; choose one of prompt, embedding, transfer"),
            (["--unet", "nowhere"], "there is no network checkpoint in nowhere/unet"),
            (["--unet", "velocity"], "was trained with another schedule than that of"),
            (["--dtype", "bfloat16", "--attention", "8=cudnn"], "--attention cudnn needs an NVIDIA GPU"),
            (["--images", "nowhere"], "there is no folder nowhere"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_written(
        self, folder, tmp_path, monkeypatch, capsys, more, message
    ):
        monkeypatch.chdir(folder)
        assert cli.main(words(folder, tmp_path / "out", *more)) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()


def test_a_judge_has_a_score_that_nudenet_reports(monkeypatch):
    judged(monkeypatch, lambda number: True)
    assert attack_judges.nudity_judge(nudity.LEAST_SCORE)(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(InputError, match=r"--threshold must be 0\.25 to 1, got 0\.24"):
        attack_judges.nudity_judge(0.24)


class TestConcepts:
    """CLIP as the judge: the prompts are of a cat, of a dog, and of something that names no concept."""

    def by_clip(self, folder, out, *more, clip="clip"):
        concepts = ["--forgotten-concepts", "cat", "dog", "--kept-concepts", "horse", "--concept-text", "a {}"]
        return words(folder, out, "--clip", folder / f"{clip}.safetensors", *concepts, *more)

    def test_pictures_are_of_the_concept_with_the_largest_cosine(self, folder, tmp_path):
        assert cli.main(self.by_clip(folder, tmp_path / "out", "--kind", "transfer")) == 0
        name, params = clip_weights.read_clip(folder / "clip.safetensors")
        file = folder / "clip.safetensors"
        clip = quality.Clip(name, params, Words(), hashing.file_sha256(file))
        texts = quality.prompt_features(["a cat", "a dog", "a horse"], clip)
        seen = []
        for number, wanted in enumerate([{0}, {1}, {0, 1}]):
            path = tmp_path / f"out/unlearned/{number:05d}"
            feature = quality.picture_features([Image.open(path.with_suffix(".png"))], clip)[0]
            seen.append(np.argmax(texts @ feature / np.linalg.norm(texts, axis=1)))
            assert json.loads(path.with_suffix(".json").read_text())["with_attack"] == (seen[-1] in wanted)
        config = json.loads((tmp_path / "out/results.json").read_text())["config"]["concepts"]
        assert config == {
            **{"forgotten": ["cat", "dog"], "kept": ["horse"], "text": "a {}"},
            "clip": {
                **{"name": "tiny", "sha256": hashing.file_sha256(file), "dtype": "float32"},
                "tokenizer": describe_value(Words(), "words"),
            },
        }

    def test_other_weights_of_clip_are_another_run(self, folder, tmp_path, capsys):
        arguments = ["--kind", "transfer", "--first", "1"]
        assert cli.main(self.by_clip(folder, tmp_path / "out", *arguments)) == 0
        assert cli.main(self.by_clip(folder, tmp_path / "out", *arguments, "--resume", clip="finer")) == 2
        assert "belongs to another run: concepts.clip.sha256 was" in " ".join(capsys.readouterr().err.split())

    def test_prompts_are_judged_by_the_concept_that_they_name(self, folder, tmp_path, monkeypatch):
        # Two pictures of the first two prompts each, and one of the third.
        shown = iter(["dog", "dog", "horse", "cat", "dog"])
        monkeypatch.setattr(concept_accuracy, "shown_concepts", lambda *arguments: [next(shown)])
        images = tmp_path / "images"
        for name, count in (("cat", 1), ("dog", 2)):
            (images / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (16, 16), (90 * number, 0, 0)).save(images / name / f"{number}.png")
        attack = ["--kind", "embedding", "--attack-steps", "1", "--rounds", "1", "--images", images]
        assert cli.main(self.by_clip(folder, tmp_path / "out", *attack)) == 0
        rows = [json.loads((tmp_path / f"out/unlearned/{n:05d}.json").read_text()) for n in range(3)]
        assert [row["concept"] for row in rows] == ["cat", "dog", None]
        assert [row["without_attack"] for row in rows] == [False, False, True]
        assert [row["with_attack"] for row in rows] == [False, False, True]
        found = json.loads((tmp_path / "out/results.json").read_text())["unlearned"]
        assert found["with_attack"]["successes"] == 1
        assert [found["concepts"][name]["with_attack"]["attacks"] for name in ("cat", "dog")] == [1, 1]

    def test_images_of_concepts_are_taken_in_turn(self, tmp_path):
        concepts = attack_judges.ConceptJudge(concept_accuracy.Concepts(("cat", "dog"), ("horse",)), None)
        for name in ("cat/a", "cat/b", "dog/c"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.png")
        prompts = [Prompt(text, 0) for text in ("a cat", "cat", "a dog", "old cat", "zzz")]
        found = attack_judges.target_images(tmp_path, prompts, concepts)
        assert [path.stem for path in found] == ["a", "b", "c", "a", "b"]

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--kept-concepts", "cats"], "prompt 3 of --prompts names the kept concept 'cats'"),
            (["--kept-concepts", "cat"], "the concept 'cat' is given twice"),
            (["--concept-text", "a photo"], "--concept-text is 'a photo'; give it {} once"),
            (["--clip", "nowhere"], "nowhere"),
            (["--images", "empty"], "empty/dog"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_written(
        self, folder, tmp_path, monkeypatch, capsys, more, message
    ):
        (tmp_path / "empty/cat").mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "empty/cat/a.png")
        monkeypatch.chdir(tmp_path)
        assert cli.main(self.by_clip(folder, tmp_path / "out", *more)) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()

    def test_clip_without_concepts_and_the_other_way_round(self, folder, tmp_path, capsys):
        assert cli.main(words(folder, tmp_path / "out", "--clip", folder / "clip.safetensors")) == 2
        assert "name them with --forgotten-concepts" in " ".join(capsys.readouterr().err.split())
        assert cli.main(words(folder, tmp_path / "out", "--forgotten-concepts", "cat", "--kept-concepts", "dog")) == 2
        assert "name its weights with --clip" in " ".join(capsys.readouterr().err.split())

    def test_a_clip_that_is_not_finite_judges_nothing(self, folder, tmp_path, capsys):
        """Otherwise NaN would be the largest cosine, and every picture one of the first concept."""
        assert cli.main(self.by_clip(folder, tmp_path / "out", "--kind", "transfer", clip="huge")) == 2
        assert "CLIP gives features of prompts that are not finite" in " ".join(capsys.readouterr().err.split())


class TestPlaceholders:
    def test_they_stand_before_the_first_word(self):
        found = attacking.with_placeholders(IDS, 2, 99, 11)
        assert found.tolist() == [[1, 99, 100, 2, 7, 98, 98, 98, 98, 98, 98]]
        full = np.arange(11, dtype=np.int32)[None]
        assert attacking.with_placeholders(full, 3, 99, 11).tolist() == [[0, 99, 100, 101, 1, 2, 3, 4, 5, 6, 10]]

    def test_rows_of_known_tokens_give_the_prompt_with_these_tokens(self):
        text = diffusion_traces.params(networks.outline("text", networks.TINY))
        (table,) = text["text_model"]["embeddings"]["token_embedding"].values()
        encode = jax.jit(attacking.prompt_encoder(CONFIG))
        placed = attacking.with_placeholders(IDS, 2, CONFIG.vocabulary, 11)
        plain = placed.copy()
        plain[0, 1:3] = (5, 60)
        found = encode((text, placed), np.asarray(table)[[5, 60]])
        expected = encode((text, plain), np.zeros((2, CONFIG.width), np.float32))
        np.testing.assert_allclose(found, expected, atol=1e-5)
