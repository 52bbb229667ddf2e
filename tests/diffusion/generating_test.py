"""`scissorhands sd generate`: images of prompts, again and again the same, and going on where it stopped."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from scissorhands_jax.cli import main as cli
from scissorhands_jax.diffusion import generating, model_folder, networks, schedules, tokenizer
from scissorhands_jax.diffusion.generating import GenerationSettings, Prompt
from scissorhands_jax.diffusion.model_folder import Pipeline
from scissorhands_jax.diffusion.unet import Noisy
from scissorhands_jax.errors import InputError
from scissorhands_jax.training import checkpoints
from scissorhands_jax.training.identity import differences
from tests.diffusion import traces as diffusion_traces

CONFIG = networks.TINY
SETTINGS = GenerationSettings(steps=4, size=16)


class Words:
    """Ids of the words of a prompt."""

    end = 98

    def __init__(self, cleaning="nfc"):
        self.cleaning = cleaning

    def __call__(self, prompts):
        ids = np.full((len(prompts), CONFIG.text.length), 98, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            words = [len(word) for word in prompt.split()]
            row[: len(words)] = words
        return ids


@pytest.fixture(scope="module")
def pipeline():
    params = {part: diffusion_traces.params(networks.outline(part, CONFIG)) for part in networks.PARTS}
    # As a checkpoint is restored, so that all tests share what is compiled.
    return Pipeline(CONFIG, jax.device_put(params, jax.devices()[0]), Words())


PROMPTS = [Prompt("a cat", 3), Prompt("the dog barks", 4), Prompt("a cat", 5)]


def read(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def test_images_are_the_same_in_batches_and_after_a_stop(pipeline, tmp_path):
    answer = generating.generate_images(pipeline, PROMPTS, tmp_path / "a", settings=SETTINGS, batch_size=2)
    assert (answer["images"], answer["made"]) == (3, 3)
    first = read(tmp_path / "a")
    assert [image.shape for image in first] == [(16, 16, 3)] * 3
    assert all((a != b).any() for a, b in [first[:2], first[1:], first[::2]])
    rows = list(csv.DictReader((tmp_path / "a/images.csv").open()))
    assert rows[1] == {"file": "00001.png", "seed": "4", "prompt": "the dog barks"}

    (tmp_path / "a/00000.png").unlink()
    (tmp_path / "a/00002.png").unlink()
    kept = (tmp_path / "a/00001.png").stat().st_mtime_ns
    answer = generating.generate_images(pipeline, PROMPTS, tmp_path / "a", settings=SETTINGS, batch_size=2, resume=True)
    assert answer["made"] == 2
    assert (tmp_path / "a/00001.png").stat().st_mtime_ns == kept
    for again, before in zip(read(tmp_path / "a"), first, strict=True):
        assert np.abs(again.astype(int) - before).max() <= 1
    with pytest.raises(InputError, match=r"already holds a run; add --resume"):
        generating.generate_images(pipeline, PROMPTS, tmp_path / "a", settings=SETTINGS)
    with pytest.raises(InputError, match=r"another run: guidance was '7.5' and is now '2.0'"):
        generating.generate_images(
            pipeline, PROMPTS, tmp_path / "a", settings=dataclasses.replace(SETTINGS, guidance=2.0), resume=True
        )


def test_what_changes_memory_alone_makes_the_same_images(pipeline, tmp_path):
    generating.generate_images(pipeline, PROMPTS[:1], tmp_path / "a", settings=SETTINGS)
    lean = dataclasses.replace(SETTINGS, compute=dataclasses.replace(SETTINGS.compute, remat=True, attention="chunked"))
    answer = generating.generate_images(pipeline, PROMPTS[:1], tmp_path / "a", settings=lean, resume=True)
    assert answer["made"] == 0
    narrow = dataclasses.replace(SETTINGS, compute=dataclasses.replace(SETTINGS.compute, dtype="bfloat16"))
    with pytest.raises(InputError, match=r"another run: dtype was 'float32' and is now 'bfloat16'"):
        generating.generate_images(pipeline, PROMPTS[:1], tmp_path / "a", settings=narrow, resume=True)


def test_another_vocabulary_makes_other_images(pipeline, tmp_path):
    """It is told by what it knows, wherever and in whichever form its files lie."""
    spelled = tokenizer.byte_tokens()
    for name, tokens in (("one", spelled), ("other", {**spelled, "a": spelled["b"], "b": spelled["a"]})):
        for place in (name, f"{name} again"):
            (tmp_path / place).mkdir()
        (tmp_path / name / "vocab.json").write_text(json.dumps(tokens))
        (tmp_path / name / "merges.txt").write_text("#version: 0.2\n")
        model = {"type": "BPE", "vocab": tokens, "merges": []}
        (tmp_path / f"{name} again" / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": model}))

    def identity(place):
        found = tokenizer.Tokenizer(tokenizer.find_vocabulary(tmp_path / place))
        return generating.image_identity(PROMPTS, found, SETTINGS).chosen

    assert identity("one") == identity("one again")
    assert identity("other") == identity("other again")
    different = [name for name, *_ in differences(identity("one"), identity("other"))]
    assert different == ["tokenizer"]


def test_an_image_that_is_not_finite_is_an_error_and_no_picture(pipeline, tmp_path):
    """Those of the same batch that are finite and come first are kept."""
    params = jax.tree.map(lambda leaf: leaf, pipeline.params)
    embedding = params["text"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    params["text"]["text_model"]["embeddings"]["token_embedding"]["embedding"] = embedding.at[5].set(np.nan)  # "barks"
    broken = pipeline._replace(params=params)
    with pytest.raises(
        InputError, match=r"00001.png of the prompt 'the dog barks' has NaN or infinity and was not wri"
    ):
        generating.generate_images(broken, PROMPTS, tmp_path, settings=SETTINGS, batch_size=2)
    assert [path.name for path in tmp_path.glob("*.png")] == ["00000.png"]
    with pytest.raises(InputError, match=r"NaN or infinity"):
        generating.generate_images(broken, PROMPTS[1:], tmp_path / "new", settings=SETTINGS, batch_size=1)
    assert not (tmp_path / "new").exists()  # so that it does not keep others from the folder


def test_an_image_is_what_its_parts_make_of_it(pipeline):
    """`draw` against the networks called one by one, without guidance."""
    ids, empty = Words()(["a cat", "the dog barks"]), Words()([""])
    noise = np.stack([schedules.torch_normal(seed, (4, 8, 8)) for seed in (3, 4)]).transpose(0, 2, 3, 1)
    sampler = schedules.lms(4)
    found, finite = generating.draw_images(pipeline.params, ids, empty, noise, np.float32(1), sampler, config=CONFIG)
    assert finite.all()

    def call(model, part):
        return jax.jit(lambda x: model.apply(pipeline.params[part], {}, x, train=False)[0])

    context = call(networks.text_encoder(CONFIG.text), "text")(ids)
    predict = call(networks.unet(CONFIG.unet), "unet")
    latents, predictions = sampler.initial * noise, []
    for timestep, scale, weights in zip(sampler.timesteps, sampler.scale, sampler.weights, strict=True):
        noisy = Noisy(np.float32(scale) * latents, np.full(2, timestep, np.float32), context)
        predictions.insert(0, np.asarray(predict(noisy)))
        latents = latents + sum(np.float32(w) * e for w, e in zip(weights, predictions, strict=False))
    pixels = call(networks.vae_decoder(CONFIG.vae), "vae")(latents / CONFIG.vae.scaling)
    expected = np.clip(np.asarray(pixels) / 2 + 0.5, 0, 1) * 255
    assert np.abs(found.astype(float) - expected).max() < 1
    assert expected.std() > 5


class TestPrompts:
    def write(self, path, text):
        path.write_text(text, encoding="utf-8")
        return path

    def test_lists_of_others_are_read(self, tmp_path):
        i2p = self.write(tmp_path / "a.csv", '\ufeff,prompt,sd_seed,sd_model\n0,"a, ""b""",77,x\n1,é,5,x\n')
        assert generating.read_prompts(i2p) == [Prompt('a, "b"', 77), Prompt("é", 5)]
        attack = self.write(tmp_path / "b.csv", "case_number,prompt,evaluation_seed\n3,x,9\n")
        assert generating.read_prompts(attack) == [Prompt("x", 9)]
        plain = self.write(tmp_path / "c.csv", "prompt\nx\ny\n")
        assert generating.read_prompts(plain, seed=10) == [Prompt("x", 10), Prompt("y", 11)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("text,seed\nx,1\n", "has no column `prompt`, its first line is 'text, seed'"),
            ("", "has no column `prompt`, its first line is 'nothing'"),
            ("prompt,seed\n", "holds no prompts"),
            ("prompt,seed\nx,one\n", "line 2 of .* has the seed 'one'; give a whole number"),
            ("seed,prompt\n1,x\n2\n", "line 3 of .* has no prompt"),
            ('prompt,seed\nx,1\n"",2\n', "line 3 of .* has no prompt"),
            ("prompt,seed\nx,1\n  ,2\n", "line 3 of .* has no prompt"),
            ("prompt,adv_prompt\nx,y\n", "has the columns prompt and adv_prompt; leave all but the one of the prompts"),
            ('\nseed,prompt\n1,"x\ny"\n\n2\n', "line 6 of .* has no prompt"),
        ],
    )
    def test_lists_that_cannot_be_used(self, tmp_path, text, message):
        with pytest.raises(InputError, match=message):
            generating.read_prompts(self.write(tmp_path / "p.csv", text))

    def test_a_list_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot read the prompts in .*absent.csv"):
            generating.read_prompts(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dataclasses.replace(SETTINGS, sampler="heun"), "--sampler is 'heun'; choose one of lms, ddim"),
        (dataclasses.replace(SETTINGS, size=18), "--size must be a multiple of 4, got 18"),
        (dataclasses.replace(SETTINGS, guidance=float("nan")), "--guidance must be a finite number, got nan"),
        (dataclasses.replace(SETTINGS, steps=900), "number of steps must be 2 to 500, got 900"),
    ],
)
def test_settings_that_cannot_be_used(pipeline, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        generating.generate_images(pipeline, PROMPTS, tmp_path / "out", settings=settings)
    assert not (tmp_path / "out").exists()


def test_command_line(pipeline, tmp_path, monkeypatch, capsys):
    """The folder of `sd import` is read, but for the tokenizer, whose vocabulary no test file holds."""
    model = tmp_path / "model"
    for part in networks.PARTS:
        described = {"diffusion": part, "config": vars(getattr(CONFIG, part)), "dtype": "float32"}
        checkpoints.save_network(model / part, pipeline.params[part], {}, described)
    arguments = ["sd", "generate", "--model", str(model), "--prompt", "a cat", "--out", str(tmp_path / "out")]
    arguments += ["--size", "16", "--steps", "4", "--images", "2", "--batch-size", "2", "--seed", "7"]
    (model / "tokenizer").mkdir()
    assert cli.main(arguments) == 2
    assert "there is no tokenizer file in" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(model_folder, "find_vocabulary", lambda path: ())
    monkeypatch.setattr(model_folder, "Tokenizer", lambda files, cleaning, **options: Words(cleaning))
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 2
    assert cli.main([*arguments, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 0
    assert cli.main([*arguments, "--ftfy", "--resume"]) == 2
    assert "another run: cleaning was 'nfc' and is now 'ftfy'" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*arguments, "--dtype", "float8", "--resume"]) == 2
    assert cli.main([*arguments, "--images", "0", "--resume"]) == 2
    (model / "unet/meta/metadata").unlink()
    assert cli.main([*arguments, "--resume"]) == 2
    assert "there is no network checkpoint in" in capsys.readouterr().err
