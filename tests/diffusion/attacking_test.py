"""`scissorhands sd attack` with a small network in the UNet's place, and a judge that counts pictures."""

import json

import jax
import numpy as np
import pytest

from scissorhands_jax.cli import main as cli
from scissorhands_jax.diffusion import attacking, model_folder, networks, nudity
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
        (folder / "list.csv").write_text("sensitive prompt,sd_seed\na cat,3\nthe dog barks,4\ncats,5\n")
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
            (["--threshold", "0"], "--threshold must lie above 0 and not above 1, got 0"),
            (["--kind", "word"], "--kind is 'word'; choose one of prompt, embedding, transfer"),
            (["--unet", "nowhere"], "there is no network checkpoint in nowhere/unet"),
            (["--images", "nowhere"], "there is no folder nowhere"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_written(self, folder, tmp_path, capsys, more, message):
        assert cli.main(words(folder, tmp_path / "out", *more)) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()


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
