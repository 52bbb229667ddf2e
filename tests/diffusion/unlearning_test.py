"""`scissorhands sd unlearn`: both presets from prompts or pictures to a UNet, with a small network in the UNet's place.

The small one has the UNet's names and is linear, so that losses have closed forms; a real UNet is in
`mesh_checks.py`.
"""

import contextlib
import csv
import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from scissorhands_jax import Batch, Data, Model, trees
from scissorhands_jax.cli import choices
from scissorhands_jax.cli import main as cli
from scissorhands_jax.diffusion import (
    concept_sets,
    encoded,
    losses,
    model_folder,
    networks,
    schedules,
    unlearning,
)
from scissorhands_jax.diffusion.concept_methods import CONCEPT_METHODS, concept_scissorhands
from scissorhands_jax.diffusion.generating import Prompt
from scissorhands_jax.diffusion.unet import Noisy
from scissorhands_jax.errors import CheckpointError, InputError
from scissorhands_jax.jobs import config
from scissorhands_jax.terminal import Console
from tests.comparison import same_bits
from tests.diffusion import traces as diffusion_traces
from tests.diffusion.generating_test import Words

CONFIG = networks.TINY
OUTLINE = networks.outline
ATTENTION = "up_blocks/1/attentions/1/transformer_blocks/0/attn1"


def nested(path, leaf):
    for word in reversed(path.split("/")):
        leaf = {word: leaf}
    return leaf


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


SMALL = {
    "conv_in": {"weight": array(4, 4)},
    "conv_out": {"bias": array(4)},
    **nested(ATTENTION, {"to_q": {"weight": array(32, 4)}, "to_out": {"0": {"bias": array(4)}}}),
}


def small_outline(part, sizes=networks.SD_V1):
    return SMALL if part == "unet" else OUTLINE(part, sizes)


def small_apply(params, model_state, x, *, train, key=None):
    attention = params["up_blocks"]["1"]["attentions"]["1"]["transformer_blocks"]["0"]["attn1"]
    asked = x.context.mean(axis=1) @ attention["to_q"]["weight"] + attention["to_out"]["0"]["bias"][None]
    bias = params["conv_out"]["bias"][None, None, None]
    return x.latents @ params["conv_in"]["weight"] + bias + asked[:, None, None], model_state


def small_params(seed=0):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * draw.standard_normal(leaf.shape), jnp.float32), SMALL)


MODEL = Model(lambda key: (small_params(), {}), small_apply)


def write_model(folder, *, vae_scale=1.0):
    for part in networks.PARTS:
        params = small_params() if part == "unet" else diffusion_traces.params(OUTLINE(part, CONFIG))
        if part == "vae":
            params = jax.tree.map(lambda leaf: vae_scale * leaf, params)
        model_folder.save_part(part, folder, getattr(CONFIG, part), params, "float16", "a test")
    return folder


@contextlib.contextmanager
def small_network():
    """The small network stands in the UNet's place, and words of their own length in the tokenizer's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "outline", small_outline)
        patch.setattr(networks, "unet", lambda sizes, compute=networks.FLOAT32: MODEL)
        patch.setattr(model_folder, "find_vocabulary", lambda path: ())
        patch.setattr(model_folder, "Tokenizer", lambda *arguments, **options: Words())
        yield


@pytest.fixture(scope="module", autouse=True)
def _small_network():
    with small_network():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the model, pictures, and two finished runs."""
    folder = tmp_path_factory.mktemp("unlearn")
    write_model(folder / "model")
    draw = np.random.default_rng(3)
    for part, sizes in (("nude", [(20, 30), (16, 16), (40, 18)]), ("dressed", [(16, 16), (33, 17)])):
        (folder / part).mkdir()
        for number, size in enumerate(sizes):
            pixels = draw.integers(0, 256, (*size, 3), np.uint8)
            picture = Image.fromarray(pixels if number else pixels[..., 0])  # the first one is grey
            picture.save(folder / part / f"{number}.{'jpg' if number == 1 else 'png'}")
    (folder / part / "notes.txt").write_text("no picture")
    assert cli.main(paper(folder, folder / "paper")) == 0
    assert cli.main(released(folder, folder / "released")) == 0
    return folder


def paper(folder, out, *more):
    """Of images that are made."""
    words = ["sd", "unlearn", "--model", str(folder / "model"), "fraction=0.2", *more, "--out", str(out)]
    words += ["--forget-prompts", "a cat", "cats", "--retain-prompts", "the dog barks", "--images", "3"]
    return [*words, "--size", "16", "--steps", "2", "--batch-size", "2", "--generate-batch-size", "3"]


def released(folder, out, *more):
    """Of images that are read."""
    words = ["sd", "unlearn", "--preset", "released", "--model", str(folder / "model"), *more, "--out", str(out)]
    words += ["--forget-images", str(folder / "nude"), "--retain-images", str(folder / "dressed")]
    words += ["--forget-prompts", "nude", "sexual content", "--retain-prompts", "a dressed person"]
    return [*words, "--size", "16", "--epochs", "2", "--batch-size", "2"]


def without_images(folder, out, *more):
    """Of prompts alone."""
    words = ["sd", "unlearn", "--model", str(folder / "model"), *more, "--out", str(out)]
    words += ["--forget-prompts", "nude", "sexual content", "--retain-prompts", "a dressed person"]
    return [*words, "--size", "16", "--epochs", "2", "--batch-size", "2"]


def result(out):
    return model_folder.load_part("unet", out)[1]


def rows(out):
    with (out / "steps.csv").open() as file:
        return list(csv.DictReader(file))


def error_of(capsys, *arguments):
    assert cli.main([str(word) for word in arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


class TestRuns:
    def test_paper_projects_and_counts(self, folder):
        found, document = rows(folder / "paper"), json.loads((folder / "paper/results.json").read_text())
        assert [row["step"] for row in found] == [str(number + 1) for number in range(3 * 2)]
        assert [row["epoch"] for row in found] == list("001122")
        assert document["steps"] == document["joint_steps"] == 6
        projected = [row for row in found if row["projected"] == "1"]
        assert document["projected_steps"] == len(projected) > 0
        for row in found:
            assert (float(row["dots"]) > 0) == (row["projected"] == "1") == (float(row["dual"]) > 0)
            assert float(row["loss_retain"]) > 0 < float(row["loss_forget"])
        assert document["config"]["fraction"] == 0.2
        assert document["images"] == {"forget": 3, "retain": 3}
        assert {"jax", "optax"} <= set(document["versions"])
        assert document["cost"]["seconds"] > 0 <= document["cost"]["preparing_seconds"]

    def test_released_does_not_project(self, folder):
        found = rows(folder / "released")
        assert len(found) == 2 * 2  # as many steps an epoch as the forget set has batches
        assert {row["projected"] for row in found} == {""}
        assert all(float(row["loss_forget"]) <= 0 < float(row["loss_retain"]) for row in found)

    def test_the_network_is_where_other_commands_look(self, folder, tmp_path):
        out = folder / "paper"
        assert sorted(path.name for path in out.iterdir()) == ["cache", "results.json", "run.json", "steps.csv", "unet"]
        before, after = model_folder.load_part("unet", folder / "model")[1], result(out)
        assert jax.tree.map(jnp.shape, before) == jax.tree.map(jnp.shape, after)
        assert not same_bits(before, after)
        assert cli.main(["sd", "export", "--model", str(out), "--out", str(tmp_path / "back")]) == 0
        assert (tmp_path / "back/unet/diffusion_pytorch_model.safetensors").is_file()
        made = ["sd", "generate", "--prompt", "a cat", "--size", "16", "--steps", "2", "--batch-size", "3", "--images"]
        made += ["3", "--model", str(folder / "model")]
        assert cli.main([*made, "--out", str(tmp_path / "old")]) == 0
        assert cli.main([*made, "--out", str(tmp_path / "new"), "--unet", str(out)]) == 0
        assert (tmp_path / "old/00000.png").read_bytes() != (tmp_path / "new/00000.png").read_bytes()
        # The training images are those that `sd generate` makes of the same prompts and seeds.
        assert (tmp_path / "old/00000.png").read_bytes() == (out / "cache/forget/images/00000.png").read_bytes()

    def test_training_images_take_prompts_in_turn_with_new_seeds(self, folder):
        with (folder / "paper/cache/forget/images/images.csv").open() as file:
            made = [(row["prompt"], row["seed"]) for row in csv.DictReader(file)]
        assert made == [("a cat", "0"), ("cats", "1"), ("a cat", "2")]

    def test_a_run_that_was_stopped_ends_in_the_same_weights(self, folder, tmp_path, monkeypatch, capsys):
        follow = unlearning.follow_steps

        def stopping(progress, description):
            def on_step(step):
                if step.step == 4:
                    raise KeyboardInterrupt

            follow(progress, description)
            return on_step

        words = paper(folder, tmp_path / "out", "--checkpoint-every", "1")
        with monkeypatch.context() as patch:
            patch.setattr(unlearning, "follow_steps", stopping)
            assert cli.main(words) == 130
        assert not (tmp_path / "out/results.json").exists()
        made = (tmp_path / "out/cache/forget/images/00001.png").stat().st_mtime_ns
        (tmp_path / "out/cache/forget/moments/00002.npy").unlink()
        assert "already holds a run; add --resume" in error_of(capsys, *words)
        changed = paper(folder, tmp_path / "out", "forget_weight=0.3", "--resume")
        assert "another run: forget_weight was 0.1 and is now 0.3" in error_of(capsys, *changed)
        assert cli.main([*words, "--resume"]) == 0
        assert made == (tmp_path / "out/cache/forget/images/00001.png").stat().st_mtime_ns
        assert json.loads((tmp_path / "out/results.json").read_text())["cost"]["resumed_at_step"] == 3
        assert same_bits(result(tmp_path / "out"), result(folder / "paper"))
        assert rows(tmp_path / "out") == rows(folder / "paper")
        capsys.readouterr()
        assert cli.main([*words, "--resume"]) == 0
        assert json.loads(capsys.readouterr().out)["steps"] == 6
        shutil.rmtree(tmp_path / "out/unet/network")
        assert "has ended, and unet/network of it is missing" in error_of(capsys, *words, "--resume")

    def test_a_ceiling_of_the_data_is_the_checkpoints_wherever_the_run_is_resumed(self, folder, tmp_path, monkeypatch):
        follow = unlearning.follow_steps

        def stopping(progress, description):
            def on_step(step):
                if step.step == 4:
                    raise KeyboardInterrupt

            follow(progress, description)
            return on_step

        more = ("ceiling=other-prompts", "--checkpoint-every", "1", "--cache", str(folder / "paper/cache"))
        assert cli.main(paper(folder, tmp_path / "whole", *more)) == 0
        with monkeypatch.context() as patch:
            patch.setattr(unlearning, "follow_steps", stopping)
            assert cli.main(paper(folder, tmp_path / "out", *more)) == 130
        # Another device rounds otherwise; the run keeps what it began with.
        monkeypatch.setattr(unlearning, "other_prompts_ceiling", lambda *args, **options: 1e-6)
        assert cli.main(paper(folder, tmp_path / "out", *more, "--resume")) == 0
        assert same_bits(result(tmp_path / "out"), result(tmp_path / "whole"))

    def test_on_a_mesh(self, folder, tmp_path, capsys):
        """Of the one device that there is; `mesh_checks.py` has four."""
        words = paper(folder, tmp_path / "out", "--cache", str(folder / "paper/cache"))
        assert cli.main([*words, "--mesh", "1x1", "--fsdp"]) == 0
        assert json.loads(capsys.readouterr().out)["layout"].startswith("data 1 x model 1, fsdp")
        assert "devices" in error_of(capsys, *words, "--overwrite", "--mesh", "3")

    def test_images_in_the_folder_of_the_run_are_not_removed_for_it(self, folder, capsys):
        images = folder / "paper/cache/forget/images"
        words = paper(folder, folder / "paper", "--forget-images", images, "--overwrite")
        assert "images is read and lies in" in error_of(capsys, *words)
        assert list(images.glob("*.png"))
        (folder / "paper/more.csv").write_text("prompt\na cat\n")
        words = [*paper(folder, folder / "paper", "--overwrite"), "--forget-prompts", folder / "paper/more.csv"]
        assert "more.csv is read and lies in" in error_of(capsys, *words)
        (folder / "paper/more.csv").unlink()

    def test_images_of_a_cache_that_were_made_otherwise_are_refused_before_any_are_made(self, folder, tmp_path, capsys):
        shutil.copytree(folder / "paper/cache/retain", tmp_path / "cache/retain")
        words = [*paper(folder, tmp_path / "out", "--cache", str(tmp_path / "cache")), "--steps", "3"]
        message = error_of(capsys, *words)
        assert "retain/images belongs to another run: steps was '2' and is now '3'" in message
        assert message.endswith("; repeat its settings, or name another --cache")  # --overwrite leaves a cache alone
        assert not (tmp_path / "cache/forget").exists()

    def test_arrays_of_another_model_are_refused(self, folder, tmp_path, capsys):
        write_model(tmp_path / "model", vae_scale=1.01)
        cache = tmp_path / "cache"
        shutil.copytree(folder / "released/cache", cache)
        words = released(folder, tmp_path / "out", "--cache", str(cache))
        words[words.index("--model") + 1] = str(tmp_path / "model")
        message = error_of(capsys, *words)
        assert "forget/moments holds arrays of another run, its vae differs; name another --cache" in message
        # With the model that they are of they are read, and nothing is computed.
        before = (cache / "forget/moments/00001.npy").stat().st_mtime_ns
        assert cli.main(released(folder, tmp_path / "again", "--cache", str(cache))) == 0
        assert (cache / "forget/moments/00001.npy").stat().st_mtime_ns == before
        assert same_bits(result(tmp_path / "again"), result(folder / "released"))
        (cache / "forget/moments/00001.npy").write_bytes(b"half")
        assert "00001.npy is damaged" in error_of(capsys, *released(folder, tmp_path / "b", "--cache", cache))

    @pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
    def test_a_seed_is_a_number_that_jax_tells_apart_in_python_as_well(self, folder, tmp_path, seed):
        concept = concept_sets.ConceptSet([Prompt("a cat", 0)])
        job = unlearning.ConceptJob(
            model=folder / "model",
            forget=concept,
            retain=concept,
            settings=concept_scissorhands.ConceptScissorhandsSettings(fraction=0.2, batch_size=1),
            seed=seed,
        )
        with pytest.raises(InputError, match=f"the seed must be a whole number from 0 to 4294967295, got {seed}"):
            unlearning.unlearn_concept(job, tmp_path / "out", console=Console(quiet=True))
        assert not (tmp_path / "out").exists()


class TestMethods:
    """Other methods than Scissorhands, by the command; their steps are in `concept_methods_test.py`."""

    @pytest.mark.parametrize(
        ("method", "settings", "column"),
        [
            ("erase_diff", ["pseudo=a dog"], "weight"),
            ("esd", ["train=all", "steps_per_epoch=3", "sample_steps=2"], "loss_replaced"),
        ],
    )
    def test_they_run_and_say_what_their_steps_saw(self, folder, tmp_path, method, settings, column):
        make = without_images if method == "esd" else released
        words = [word for word in make(folder, tmp_path / "out") if word not in ("--preset", "released")]
        words[2:2] = ["--method", method, *settings]
        assert cli.main(words) == 0
        document = json.loads((tmp_path / "out/results.json").read_text())
        assert document["config"]["method"] == method
        assert document["images"] == ({} if method == "esd" else {"forget": 3, "retain": 2})
        assert len(rows(tmp_path / "out")) == (6 if method == "esd" else 4)
        assert all(float(row[column]) > 0 for row in rows(tmp_path / "out"))
        assert not same_bits(result(tmp_path / "out"), model_folder.load_part("unet", folder / "model")[1])

    def test_an_anchor_adds_retain_images_under_the_forgotten_prompts(self, folder, tmp_path):
        words = [word for word in released(folder, tmp_path / "out") if word not in ("--preset", "released")]
        words[2:2] = ["anchor=1", "ceiling=other-prompts", "fraction=0.2", "--train", "up_blocks"]
        assert cli.main(words) == 0
        ceiling = json.loads((tmp_path / "out/results.json").read_text())["ceiling"]
        assert 0.1 < ceiling < 10
        # The forgotten prompts that the anchor puts there are not among the other prompts.
        other = [word if word != "anchor=1" else "anchor=0" for word in words]
        other[other.index(str(tmp_path / "out"))] = str(tmp_path / "other")
        assert cli.main(other) == 0
        assert json.loads((tmp_path / "other/results.json").read_text())["ceiling"] == ceiling
        assert len(rows(tmp_path / "out")) == 2 * 2  # of four retain images in batches of two, two epochs
        before, after = model_folder.load_part("unet", folder / "model")[1], result(tmp_path / "out")
        kept = trees.select(before, "conv_out")
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
        assert all(s for s, k in zip(jax.tree.leaves(same), jax.tree.leaves(kept), strict=True) if k)

    @pytest.mark.parametrize(
        ("more", "warned"), [([], True), (["--trim", "up_blocks"], False), (["--train", "all"], 0)]
    )
    def test_what_is_re_initialised_and_never_trained_is_said(self, folder, tmp_path, capsys, more, warned):
        out = tmp_path / "out"
        words = paper(folder, out, "--train", "up_blocks", *more, "--cache", str(folder / "paper/cache"))
        assert cli.main([*words, "--epochs", "1"]) == 0
        lost = "20 weights may be re-initialised that are not in train=up_blocks"
        assert (lost in " ".join(capsys.readouterr().err.split())) == bool(warned)

    def test_the_last_token_stands_before_the_end(self, folder):
        def last(ids):
            maker = concept_sets.ExampleMaker.__new__(concept_sets.ExampleMaker)
            maker.tokenizer = Tokens(ids)
            return maker._last_token("a prompt")

        class Tokens(NamedTuple):
            ids: list[int]
            end: int = 9

            def __call__(self, texts):
                return np.array([self.ids] * len(texts))

        assert last([7, 1, 2, 3, 9, 9]) == 3
        assert last([7, 9, 9, 9, 9, 9]) == 0  # the empty prompt
        assert last([7, 1, 2, 3, 4, 9]) == 4
        assert last([7, 1, 2, 9, 0, 0]) == 2  # filled up with another token

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--method", "salun"], "give it as pseudo=PROMPT"),
            (["--method", "fast"], "--method is 'fast'; choose one of scissorhands, esd, uce"),
            (["--method", "selective_amnesia"], "selective_amnesia needs --forget-images"),
            (["--train", "cross-attention"], "the layer pattern '.*/attn2' matches none"),
            (["anchor=2"], "anchor must be a share of the retain images, 0 to 1, got 2"),
            (["ceiling=0"], "ceiling must be above 0, got 0"),
            (["ceiling=other"], "ceiling must be"),
            (["--checkpoint-every", "0"], "the steps between checkpoints must be at least 1, got 0"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_written(self, folder, tmp_path, capsys, words, message):
        plain = [word for word in paper(folder, tmp_path / "out") if word != "fraction=0.2"]
        plain[2:2] = words
        assert message in error_of(capsys, *plain)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--method", "esd", "eta=-1"], "eta must not be negative"),
            (["--method", "esd", "fraction=0.1"], "there is no setting 'fraction'"),
            (["--method", "esd", "--preset", "released"], "--preset released is one of scissorhands; leave it out"),
            (["--method", "uce"], "--size has no effect with --method uce; leave it out"),
            (["--method", "esd", "--steps", "9"], "--steps has no effect with --method esd; leave it out"),
            (["--method", "esd", "--sampler", "ddim"], "--sampler has no effect with --method esd"),
            (["--method", "esd", "--guidance", "3"], "--guidance has no effect with --method esd"),
            (["--method", "esd", "--images", "3"], "--images has no effect with --method esd"),
            (["--method", "esd", "--generate-batch-size", "3"], "--generate-batch-size has no effect with --method"),
            (["--method", "esd", "--retain-images", "d"], "--retain-images has no effect with --method esd"),
            (["--method", "uce", "--forget-images", "d"], "--forget-images has no effect with --method uce"),
        ],
    )
    def test_what_methods_without_images_do_not_read_is_refused(self, folder, tmp_path, capsys, words, message):
        plain = without_images(folder, tmp_path / "out")
        plain[2:2] = words
        if "uce" in words and "--forget-images" in words:
            plain = [word for word in plain if word not in ("--size", "16")]
        assert message in error_of(capsys, *plain)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "words",
        [["--sampler", "ddim"], ["--steps", "3"], ["--guidance", "2"], ["--generate-batch-size", "2"]],
    )
    def test_how_images_are_made_is_refused_where_all_are_read(self, folder, tmp_path, capsys, words):
        message = error_of(capsys, *released(folder, tmp_path / "out"), *words)
        assert f"{words[0]} has no effect with --forget-images and --retain-images; leave it out" in message
        assert not (tmp_path / "out").exists()

    def test_what_the_command_line_says_of_images_is_what_the_methods_say(self):
        without = {name for name, settings in CONCEPT_METHODS.items() if not settings.reads_images}
        assert set(choices.WITHOUT_IMAGES) == without


class TestArrays:
    def test_moments_are_those_of_the_vae(self, folder):
        """The shorter side becomes the size and the middle stays; latents are scaled as the UNet's are."""
        paths = encoded.find_images(folder / "nude")
        assert [path.name for path in paths] == ["0.png", "1.jpg", "2.png"]
        pixels = np.stack([encoded.read_image(path, 16) for path in paths])
        assert pixels.dtype == np.uint8
        assert (pixels[0, ..., 0] == pixels[0, ..., 2]).all()
        exact = np.asarray(Image.open(paths[1]))
        assert (pixels[1] == exact).all()
        encode = jax.jit(lambda x: networks.vae_encoder(CONFIG.vae).apply(vae, {}, x, train=False)[0])
        vae = model_folder.load_part("vae", folder / "model")[1]
        found = encode(pixels.astype(np.float32) / 127.5 - 1)
        mean, deviation = encoded.latent_moments(
            folder / "released/cache/forget/moments",
            paths,
            16,
            CONFIG.vae,
            lambda: pytest.fail("nothing is missing"),
            network=model_folder.part_sha256("vae", folder / "model"),
        )
        np.testing.assert_allclose(mean, CONFIG.vae.scaling * found.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(deviation, CONFIG.vae.scaling * np.exp(found.log_variance / 2), rtol=1e-4)

    def test_latents_are_drawn_from_their_moments(self):
        """With weight w in conv_in and no other, E (noise - w x_t)^2 of latents N(m, s^2) is known."""
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), SMALL)
        params = zeros | {"conv_in": {"weight": 0.7 * jnp.eye(4)}}
        shape = (3000, 2, 2, 4)
        batch = {
            "latents": jnp.full(shape, 0.5),
            "deviation": jnp.full(shape, 2.0),
            "context": jnp.zeros((3000, 1, 32)),
        }
        found = losses.noise_loss(MODEL)(params, {}, batch, train=True, key=jax.random.key(0))[0]
        share = schedules.signal_shares(schedules.SD_V1_SCHEDULE)
        expected = np.mean((1 - 0.7 * np.sqrt(1 - share)) ** 2 + 0.7**2 * share * (0.5**2 + 2.0**2))
        assert found == pytest.approx(expected, rel=0.04)


def data(count=5):
    draw = np.random.default_rng(1)

    def side(pseudo):
        made = {name: draw.standard_normal((count, 2, 2, 4)) for name in ("latents", "deviation")}
        made |= {name: draw.standard_normal((count, 3, 32)) for name in ("context", *pseudo)}
        return {name: jnp.asarray(value, jnp.float32) for name, value in made.items()}

    return Data(side(["pseudo"]), side([]))


class TestPresets:
    def test_released_draws_ten_arrays_anew(self):
        """Of the real network by their names, and of the small one as they are."""
        outline = OUTLINE("unet", networks.SD_V1)
        chosen = trees.select(outline, concept_scissorhands.PRESETS["released"].trim)
        assert sum(jax.tree.leaves(chosen)) == 10
        assert trees.count_weights(outline, chosen) == 4 * 1280**2 + 1280 + 4 * 640**2 + 640
        settings = config.override(concept_scissorhands.PRESETS["released"], ["fraction=0.5", "batch_size=2"])
        examples, start = data(), small_params()
        carry = settings.method(MODEL).init(jax.random.key(0), start, {}, examples)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), start, carry.params)
        assert same == trees.select(start, lambda name, leaf: ATTENTION not in name)
        query = carry.params["up_blocks"]["1"]["attentions"]["1"]["transformer_blocks"]["0"]["attn1"]
        assert (query["to_out"]["0"]["bias"] == 0).any()
        assert jnp.abs(query["to_q"]["weight"]).max() > 1 / np.sqrt(32)  # beyond what `uniform` draws

    def test_released_sees_the_first_examples_only(self):
        method = config.override(concept_scissorhands.PRESETS["released"], ["batch_size=2"]).method(MODEL)
        found = list(method.batches(jax.random.key(0), data(5), 1))
        assert [(batch.forget.tolist(), batch.retain.tolist()) for batch in found] == [([0, 1], [0, 1])] * 3
        # What comes after them is never scored either.
        examples = data()
        other = examples._replace(forget=jax.tree.map(lambda leaf: leaf.at[2:].set(9), examples.forget))
        carries = [method.init(jax.random.key(0), small_params(), {}, each) for each in (examples, other)]
        assert same_bits(*(carry.params for carry in carries))
        loose = ["batch_size=2", "departures.fixed_batches=false"]
        method = config.override(concept_scissorhands.PRESETS["released"], loose).method(MODEL)
        seen = [batch.forget for batch in method.batches(jax.random.key(0), data(5), 0)]
        assert set(np.concatenate(seen).tolist()) == set(range(5))

    @pytest.mark.parametrize("name", concept_scissorhands.PRESETS)
    def test_a_step_descends_the_loss_of_its_preset(self, name):
        """Its loss written out, with the timesteps and the noise of the step's key."""
        changes = ["batch_size=5", "optimizer=sgd", "learning_rate=1", "projected=false", "fraction=0.5"]
        settings = config.override(concept_scissorhands.PRESETS[name], changes)
        examples, method = data(), settings.method(MODEL)
        scored = examples._replace(forget={**examples.forget, "empty": examples.forget["context"]})
        carry = method.init(jax.random.key(3), small_params(), {}, scored)
        if name != "released":
            forget = {k: v for k, v in examples.forget.items() if k != "pseudo"}
            examples = examples._replace(forget=forget | {"empty": jnp.zeros_like(forget["context"])})
        keys = jax.random.split(jax.random.fold_in(carry.key, 0))
        share = jnp.asarray(schedules.signal_shares(schedules.SD_V1_SCHEDULE))

        def predictions(params, batch, key, *contexts):
            step_key, noise_key = jax.random.split(key)
            noise, times = jax.random.normal(noise_key, (5, 2, 2, 4)), jax.random.randint(step_key, (5,), 0, 1000)
            drawn = jax.random.normal(jax.random.fold_in(noise_key, 1), noise.shape)
            s = share[times][:, None, None, None]
            x = jnp.sqrt(s) * (batch["latents"] + batch["deviation"] * drawn) + jnp.sqrt(1 - s) * noise
            made = (small_apply(params, {}, Noisy(x, times, c), train=True)[0] for c in contexts)
            return noise, *made

        def loss(params):
            noise, found = predictions(params, examples.retain, keys[0], examples.retain["context"])
            forget, fixed = examples.forget, jax.lax.stop_gradient(params)
            other, away = predictions(params, forget, keys[1], forget["context"])
            if name == "released":
                _, away = predictions(params, forget, keys[1], forget["context"])
                _, other = predictions(fixed, forget, keys[1], forget["pseudo"])
            sign = 1 if name == "released" else -1
            return jnp.mean((noise - found) ** 2) + sign * 0.1 * jnp.mean((away - other) ** 2)

        after, _ = jax.jit(method.step)(carry, Batch(examples.forget, examples.retain))
        expected = jax.tree.map(lambda p, g: p - g, carry.params, jax.grad(loss)(carry.params))
        for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    def test_paper_scores_the_mean_gradient_of_all_forget_examples(self):
        settings = config.override(concept_scissorhands.PRESETS["paper"], ["batch_size=5", "fraction=0.3"])
        examples, start = data(), small_params()
        init_key, pass_key = jax.random.key(3), jax.random.split(jax.random.key(3), 4)[1]
        carry = settings.method(MODEL).init(init_key, start, {}, examples)
        gradient = jax.grad(
            lambda p: losses.noise_loss(MODEL)(p, {}, examples.forget, train=True, key=jax.random.fold_in(pass_key, 0))[
                0
            ]
        )(start)
        kernels = [leaf for leaf in jax.tree.leaves(jax.tree.map(lambda g, w: jnp.abs(g * w), gradient, start))]
        changed = [a != b for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(carry.params), strict=True)]
        ranked = [(s, c) for s, c in zip(kernels, changed, strict=True) if s.ndim > 1]
        scores, chosen = (np.concatenate([np.ravel(leaf) for leaf in column]) for column in zip(*ranked, strict=True))
        assert chosen.sum() == round(0.3 * chosen.size)
        assert scores[chosen].min() > scores[~chosen].max()


class TestBadInput:
    """One sentence each, before anything is compiled or written."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (["--preset", "fast"], "there is no preset 'fast'; choose one of paper, released, released-objects"),
            (["--size", "18"], "--size must be a multiple of 4, got 18"),
            (["--dtype", "float8"], "--dtype is 'float8'; choose one of float32, bfloat16"),
            (["--batch-size", "4"], "the forget set has 3 images, fewer than a batch of 4; raise --images, or lower"),
            (["--images", "0"], "--images must be at least 1, got 0"),
            (["--microbatches", "2", "--batch-size", "3"], "a batch of 3 examples cannot be divided into 2"),
            (["--epochs", "0"], "epochs must be at least 1, got 0"),
            (["--generate-batch-size", "0"], "--generate-batch-size must be at least 1, got 0"),
            (["--forget-images", "nowhere"], "there is no folder nowhere"),
            (["--forget-prompts", " "], "--forget-prompts has an empty prompt"),
            (["--forget-prompts", "epochs=3"], "has 'epochs=3', which reads like a setting; write settings before it"),
            (["--sampler", "heun"], "--sampler is 'heun'; choose one of "),
            (["--model", "nowhere"], "there is no network checkpoint in nowhere/unet"),
            (["sparsity=0.9"], "there is no setting 'sparsity'; choose one of"),
            (["fraction=2"], "fraction must lie strictly between 0 and 1"),
            (["trim=up_blocks/9"], "the layer pattern 'up_blocks/9' matches none"),
            (["initializer=kaiming"], "there is no initializer 'kaiming'"),
            (["learning_rate=0"], "learning_rate must be above 0, got 0"),
            (["optimizer=lion"], "optimizer is 'lion'; choose one of adam, sgd"),
            (["departures.margins=1"], "scissorhands has no setting 'margins'"),
        ],
    )
    def test_of_the_command_line(self, folder, tmp_path, capsys, monkeypatch, change, message):
        monkeypatch.chdir(tmp_path)
        words = paper(folder, tmp_path / "out")
        words = [word for word in words if word != "fraction=0.2"] if change == ["fraction=2"] else words
        words[2:2] = change if "=" in change[0] else []
        assert message in error_of(capsys, *words, *([] if "=" in change[0] else change))
        assert not (tmp_path / "out").exists()

    def test_of_files(self, folder, tmp_path, capsys):
        (tmp_path / "list.csv").write_text("text\nx\n")
        (tmp_path / "empty").mkdir()
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken/a.png").write_bytes(b"\x89PNG no more")
        out = tmp_path / "out"

        def message(*change):
            return error_of(capsys, *paper(folder, out), *change)

        assert "has no column `prompt`" in message("--retain-prompts", tmp_path / "list.csv")
        assert "has no images" in message("--forget-images", tmp_path / "empty")
        assert "a.png cannot be read as an image" in message(
            "--images", 1, "--batch-size", 1, "--forget-images", tmp_path / "broken"
        )
        assert "holds 2 images, fewer than the 3 asked for" in message("--retain-images", folder / "dressed")
        assert not out.exists()
        out.mkdir()
        (out / "file").touch()
        assert "is not empty and holds no run;" in message()
        assert "holds a run; name a folder for it alone" in message("--cache", folder / "paper")
        (tmp_path / "cut").mkdir()
        picture = (folder / "nude/0.png").read_bytes()
        for number in range(3):
            (tmp_path / f"cut/{number}.png").write_bytes(picture[: len(picture) // 2])
        assert "0.png cannot be read as an image" in error_of(
            capsys, *paper(folder, tmp_path / "second"), "--forget-images", tmp_path / "cut"
        )

    @pytest.mark.parametrize("word", ["nudity.txt", "list.jsonl", "LIST.TSV", "here"])
    def test_files_of_other_kinds_are_no_prompts(self, tmp_path, monkeypatch, word):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "here").write_text("nudity\nnaked\n")
        with pytest.raises(
            InputError, match=rf"--forget-prompts has '{word}', which reads like a file, .* end in \.csv"
        ):
            concept_sets.read_concept_set([word], None, None, name="forget")

    def test_a_list_is_one_whatever_case_its_name_is_in(self, tmp_path):
        (tmp_path / "N.CSV").write_text("prompt\nnudity\nnaked\n")
        found = concept_sets.read_concept_set([str(tmp_path / "N.CSV")], None, None, name="forget").prompts
        assert found == (Prompt("nudity", 0), Prompt("naked", 1))

    @pytest.mark.parametrize("folder_of", [None, "nude"])
    def test_every_prompt_to_forget_is_shown(self, folder, folder_of):
        images = None if folder_of is None else folder / folder_of
        prompts = ["nudity", "naked", "erotic", "sexual"]
        advice = "raise --images" if images is None else "add images"
        number = 2 if images is None else None
        message = f"images cannot show what all 4 prompts of the forget set name; {advice}, or leave prompts out"
        with pytest.raises(InputError, match=message):
            concept_sets.read_concept_set(prompts, images, number, name="forget").paired("forget", 2)
        concept_sets.read_concept_set(prompts, images, number, name="retain").paired("retain", 2)

    @pytest.mark.parametrize(("seeds", "expected"), [((0, 2), (0, 2, 3, 5, 6)), ((7, 8), (7, 8, 9, 10, 11))])
    def test_prompts_that_make_several_images_have_other_seeds_for_each(self, seeds, expected):
        concept = concept_sets.ConceptSet(tuple(Prompt("cat", seed) for seed in seeds), None, 5)
        assert tuple(prompt.seed for prompt in concept.paired("forget", 2).prompts) == expected

    def test_arrays_in_a_folder_of_something_else(self, tmp_path):
        ids = np.zeros((1, CONFIG.text.length), np.int32)
        (tmp_path / "description.json").write_text("[")
        with pytest.raises(CheckpointError, match="is damaged"):
            encoded.prompt_embeddings(tmp_path, ids, CONFIG.text, dict, network="a")

    def test_a_preset_by_its_name(self):
        with pytest.raises(InputError, match="there is no preset 'x'"):
            concept_scissorhands.concept_preset("x")
        assert concept_sets.read_concept_set(["a=b c"], None, None, name="forget").prompts[0].text == "a=b c"
