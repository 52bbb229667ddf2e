"""Weights of Stable Diffusion v1 come in from every format, go out bit by bit, and strangers are named."""

import dataclasses
import json
import shutil
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from scissorhands_jax import torch_weights
from scissorhands_jax.cli import main as cli
from scissorhands_jax.diffusion import (
    exporting,
    file_layouts,
    folder_configs,
    importing,
    model_folder,
    model_sources,
    networks,
    other_networks,
    part_files,
    tokenizer,
)
from scissorhands_jax.diffusion.networks import PARTS, TINY
from scissorhands_jax.errors import CheckpointError, InputError, WeightsError
from scissorhands_jax.training import checkpoints
from tests.diffusion import traces as diffusion_traces

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text": "text_encoder/model.safetensors",
}


def tensors(part, config=TINY):
    return diffusion_traces.weights(torch_weights.state_dict_shapes(networks.outline(part, config), {}))


def write(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(arrays, path)
    return path


SCHEDULE = dataclasses.replace(TINY.schedule, prediction="v_prediction")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of tiny networks as diffusers saves a pipeline."""
    path = tmp_path_factory.mktemp("diffusers")
    for part in PARTS:
        write(path / FILES[part], tensors(part))
        document = folder_configs.config_document(getattr(TINY, part))
        (path / FILES[part]).with_name("config.json").write_text(json.dumps(document))
    for name in ("scheduler", "tokenizer"):
        (path / name).mkdir()
    scheduler = folder_configs.scheduler_document(SCHEDULE) | {"_class_name": "DDIMScheduler", "thresholding": False}
    (path / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    (path / "model_index.json").write_text(json.dumps(folder_configs.pipeline_document("DDIMScheduler")))
    model = {"type": "BPE", "vocab": tokenizer.byte_tokens(), "merges": []}
    (path / "tokenizer/tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": model}))
    return path


def assert_read(part, file, expected=None):
    params, _ = part_files.read_part_file(part, file, TINY)
    found = torch_weights.to_state_dict(params, {})
    expected = tensors(part) if expected is None else expected
    assert set(found) == set(expected)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_there_and_back_is_bit_exact(folder, tmp_path):
    out, back = tmp_path / "model", tmp_path / "back"
    arguments = ["sd", "import", "--from", str(folder), "--out", str(out)]
    assert cli.main(arguments) == 0
    assert model_folder.read_model_config(out) == dataclasses.replace(TINY, schedule=SCHEDULE)
    assert cli.main(["sd", "export", "--model", str(out), "--out", str(back)]) == 0
    for part in PARTS:
        assert (back / FILES[part]).read_bytes()[-1000:] == (folder / FILES[part]).read_bytes()[-1000:]
        found = safetensors.numpy.load_file(back / FILES[part])
        expected = tensors(part)
        assert set(found) == set(expected)
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
        assert "_class_name" in (config := json.loads((back / FILES[part]).with_name("config.json").read_text())) or (
            config["architectures"] == ["CLIPTextModel"]
        )
    assert json.loads((back / "model_index.json").read_text())["scheduler"] == ["diffusers", "DDIMScheduler"]
    scheduler = json.loads((back / "scheduler/scheduler_config.json").read_text())
    assert (scheduler["prediction_type"], scheduler["thresholding"]) == ("v_prediction", False)
    files = tokenizer.find_vocabulary(back)
    assert [file.name for file in files] == ["vocab.json", "merges.txt"]
    assert tokenizer.read_vocabulary(files).tokens == tokenizer.byte_tokens()
    assert cli.main(arguments) == 2  # it is there already
    assert cli.main([*arguments, "--resume"]) == 0
    importing.plan_import(dict.fromkeys(PARTS, folder), TINY)  # which says the same
    with pytest.raises(InputError, match=r"config.json says widths = \(32, 64\) of the UNet, and --config \(320, "):
        importing.plan_import(dict.fromkeys(PARTS, folder), networks.SD_V1)

    # An unlearned UNet goes into the pipeline of its model, or into a file of its own.
    changed = tensors("unet") | {"conv_out.bias": np.arange(4, dtype=np.float32)}
    forgotten = {"unet": write(tmp_path / "unet.safetensors", changed)}
    importing.import_weights(forgotten, tmp_path / "forgotten", dataclasses.replace(TINY, schedule=SCHEDULE))
    words = ["sd", "export", "--model", str(out), "--unet", str(tmp_path / "forgotten"), "--out"]
    assert cli.main([*words, str(tmp_path / "whole")]) == 0
    assert cli.main([*words, str(tmp_path / "alone.safetensors")]) == 0
    assert cli.main([*words, str(tmp_path / "alone.safetensors")]) == 2
    assert cli.main([*words, str(tmp_path / "alone.pt")]) == 2  # which would be a folder of that name
    assert not (tmp_path / "alone.pt").exists()
    for file in (tmp_path / "whole" / FILES["unet"], tmp_path / "alone.safetensors"):
        assert safetensors.numpy.load_file(file)["conv_out.bias"].tolist() == [0, 1, 2, 3]
    assert (tmp_path / "whole/model_index.json").is_file()
    assert (tmp_path / "whole" / FILES["vae"]).read_bytes() == (back / FILES["vae"]).read_bytes()


@pytest.mark.parametrize("named", ["", "unet", FILES["unet"]])
def test_the_schedule_is_that_of_the_pipeline_whatever_of_it_is_named(folder, tmp_path, caplog, named):
    plan = importing.plan_import({"unet": folder / named}, TINY)
    assert plan.config.schedule == SCHEDULE
    assert "scheduler" not in caplog.text
    bare = shutil.copytree(folder / "unet", tmp_path / "unet") / "diffusion_pytorch_model.safetensors"
    assert importing.plan_import({"unet": bare}, TINY).config.schedule == TINY.schedule
    assert "is taken to predict noise on the schedule of Stable Diffusion v1" in caplog.text


@pytest.mark.parametrize("named", ["", "text_encoder", FILES["text"]])
def test_the_tokenizer_is_that_of_the_pipeline_whatever_of_it_is_named(folder, named):
    assert importing.plan_import({"text": folder / named}, TINY).tokenizer == folder / "tokenizer"


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("tokenizer/tokenizer.json", remove, "there is no tokenizer file in"),
        ("tokenizer/tokenizer.json", lambda path: path.write_text("{}"), "cannot read the tokenizer file"),
        (
            "scheduler/scheduler_config.json",
            lambda path: path.write_text('{"beta_schedule": 3}'),
            "beta_schedule = '3'",
        ),
        ("vae/config.json", lambda path: path.write_text("["), "copy or download it again"),
        (
            "text_encoder/config.json",
            lambda path: change(path, vocab_size=99),
            "has 514 tokens, and the text encoder kn",
        ),
        ("text_encoder/config.json", lambda path: change(path, hidden_size=16), "a text encoder of 16"),
        ("unet/config.json", lambda path: change(path, cross_attention_dim=16), "prompts of width 16 and a text enc"),
        ("unet/config.json", lambda path: change(path, norm_num_groups=0), "norm_num_groups = '0', and a UNet here"),
        ("model_index.json", lambda path: change(path, _class_name="FluxPipeline"), "_class_name = 'FluxPipeline'"),
        (FILES["text"], lambda path: path.write_bytes(path.read_bytes()[:999]), "damaged"),
        (FILES["text"], lambda path: write(path, {"a": np.zeros(3)}), "does not hold the text encoder"),
        (FILES["vae"], remove, "there is no diffusion_pytorch_model.safetensors in"),
    ],
)
def test_whatever_is_wrong_is_said_before_anything_is_written(folder, tmp_path, capsys, file, damage, message):
    """Even if it concerns what would be written last."""
    shutil.copytree(folder, tmp_path / "in")
    damage(tmp_path / "in" / file)
    assert cli.main(["sd", "import", "--from", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert not (tmp_path / "out").exists()


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_random_networks_work_from_end_to_end(tmp_path, capsys):
    """The example of the documentation, but for unlearning."""
    words = ["sd", "import", "--random", "--config", "tiny", "--out", str(tmp_path / "sd")]
    assert cli.main(words) == 0
    assert cli.main(words) == 2
    assert cli.main([*words, "--unet", "x"]) == cli.main([*words, "--ema", "--overwrite"]) == 2
    assert cli.main(["sd", "import", "--out", str(tmp_path / "sd")]) == 2
    config = model_folder.read_model_config(tmp_path / "sd")
    assert config == TINY
    ids = model_folder.load_tokenizer(tmp_path / "sd")(["a cat"])
    assert ids.shape == (1, 77)
    assert ids.max() == 513
    params = model_folder.load_part("text", tmp_path / "sd").params
    embeddings, _ = networks.text_encoder(config.text).apply(params, {}, ids, train=False)
    assert np.isfinite(embeddings).all()


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "model"
    importing.make_random(folder, TINY)
    return folder


class TestReplacing:
    """What is in the folder of an export: nothing of it is replaced unasked, and nothing of it stays in the way."""

    WRITTEN = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "model_index.json")
    STALE = (
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.non_ema.bin",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "vae/diffusion_flax_model.msgpack",
        "text_encoder/pytorch_model.bin",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/special_tokens_map.json",
    )
    KEPT = ("unet/README.md", "notes.txt", "unet/pytorch_lora_weights.safetensors", "tokenizer/readme.txt")

    @pytest.mark.parametrize("name", [*WRITTEN, *STALE, "tokenizer/vocab.json"])
    def test_nothing_is_replaced_unasked(self, random_model, tmp_path, name):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        with pytest.raises(InputError, match=rf"{name} exists already; add --overwrite"):
            exporting.export_weights(random_model, tmp_path / "out")
        assert path.read_text() == "mine"
        assert [found for found in (tmp_path / "out").rglob("*") if found.is_file()] == [path]

    def test_what_could_be_loaded_instead_is_removed_where_it_is_replaced(self, random_model, tmp_path, caplog):
        for name in (*self.WRITTEN, *self.STALE, *self.KEPT):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("theirs")
        exporting.export_weights(random_model, tmp_path, overwrite=True)
        assert not [name for name in self.STALE if (tmp_path / name).exists()]
        assert not [name for name in self.WRITTEN if (tmp_path / name).read_text() == "theirs"]
        assert all((tmp_path / name).read_text() == "theirs" for name in self.KEPT)
        assert "unet/diffusion_pytorch_model.fp16.safetensors, which are other weights" in caplog.text

    def test_random_networks_leave_no_tokenizer_of_others(self, tmp_path):
        (tmp_path / "tokenizer").mkdir()
        (tmp_path / "tokenizer/tokenizer_config.json").write_text('{"model_max_length": 5}')
        importing.make_random(tmp_path, TINY, overwrite=True)
        assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == ["merges.txt", "vocab.json"]


def test_what_a_model_is_made_of_is_not_replaced_by_it(folder, random_model, tmp_path):
    """Neither the weights of diffusers, which lie where networks are written, nor the files of a tokenizer."""
    whole = shutil.copytree(folder, tmp_path / "sd")
    (whole / "tokenizer" / "special_tokens_map.json").write_text("{}")
    model = shutil.copytree(random_model, tmp_path / "model")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    for overwrite in (False, True):
        for refused in (
            lambda replace: importing.import_weights(dict.fromkeys(PARTS, whole), whole, TINY, overwrite=replace),
            lambda replace: importing.import_weights({"text": whole / FILES["text"]}, whole, TINY, overwrite=replace),
            lambda replace: importing.import_weights({"unet": whole}, whole, TINY, overwrite=replace),
            lambda replace: importing.make_random(whole, TINY, tokenizer=whole, overwrite=replace),
            lambda replace: exporting.export_weights(model, model, overwrite=replace),
        ):
            with pytest.raises(InputError, match=r"is read and lies in .*, where the result goes"):
                refused(overwrite)
    with pytest.raises(InputError, match=r"is read and lies in .*tokenizer, where the result goes"):
        importing.import_weights({"text": whole / "text_encoder"}, whole, TINY, resume=True)  # keeps networks alone
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_files_come_back_as_they_were(tmp_path, dtype):
    narrow = {name: array.astype(file_layouts.FILE_DTYPES[dtype]) for name, array in tensors("text").items()}
    torch_weights.write_safetensors(tmp_path / "in.safetensors", narrow)
    done = importing.import_weights({"text": tmp_path / "in.safetensors"}, tmp_path / "model", TINY)
    assert (done["text"].dtype, done["text"].num_params) == (dtype, 44_384)
    written = exporting.export_weights(tmp_path / "model", tmp_path / "out")
    assert list(written) == ["text"]
    assert written["text"].read_bytes() == (tmp_path / "in.safetensors").read_bytes()
    exporting.export_weights(tmp_path / "model", tmp_path / "wide", dtype="float32")
    wide = torch_weights.read_state_dict(tmp_path / "wide/text_encoder/model.safetensors")
    assert all((wide[name] == narrow[name].astype(np.float32)).all() for name in narrow)


def test_what_others_have_next_to_a_network_stays(tmp_path):
    """A model may be imported into, and exported to, a folder in which other programs write too."""
    theirs = [".movie.mp4.0a1b2c3d.partial", "deep/.text.0a1b2c3d.partial", "text_encoder/deep/.a.0a1b2c3d.partial"]
    ours = [".text.0a1b2c3d.partial", "text_encoder/.model.safetensors.0a1b2c3d.partial"]
    for name in (*theirs, *ours):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    importing.import_weights({"text": write(tmp_path / "x.safetensors", tensors("text"))}, tmp_path, TINY)
    exporting.export_weights(tmp_path, tmp_path)
    assert [(tmp_path / name).exists() for name in (*theirs, *ours)] == [True] * len(theirs) + [False] * len(ours)


def test_what_does_not_fit_is_not_rounded_to_infinity(tmp_path):
    arrays = tensors("text") | {"text_model.final_layer_norm.bias": np.full(32, 1e6, np.float32)}
    importing.import_weights({"text": write(tmp_path / "x.safetensors", arrays)}, tmp_path / "model", TINY)
    with pytest.raises(WeightsError, match=r"final_layer_norm.bias has numbers that float16 cannot hold"):
        exporting.export_weights(tmp_path / "model", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out/text_encoder/model.safetensors").exists()


class TestNames:
    def test_older_and_newer_diffusers(self, tmp_path):
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        arrays = {}
        for name, array in tensors("vae").items():
            if ".attentions.0." in name:
                for new, word in old.items():
                    name = name.replace(f".{new}.", f".{word}.")
            arrays[name] = array
        assert "decoder.mid_block.attentions.0.proj_attn.weight" in arrays
        assert_read("vae", write(tmp_path / "vae.safetensors", arrays))
        bare = {name.removeprefix("text_model."): array for name, array in tensors("text").items()}
        bare["embeddings.position_ids"] = np.arange(11)[None]
        assert_read("text", write(tmp_path / "text.safetensors", bare))

    @staticmethod
    def compvis():
        """The tiny networks as one CompVis checkpoint, with all that such files hold besides."""
        arrays = {"betas": np.zeros(1000, np.float32), "sqrt_recipm1_alphas_cumprod": np.zeros(1000, np.float32)}
        arrays |= {"model_ema.decay": np.zeros(1, np.float32), "model_ema.diffusion_modelout2bias": np.zeros(4)}
        for part in PARTS:
            for name, array in tensors(part).items():
                if part == "vae" and "attentions" in name and name.endswith("weight") and array.ndim == 2:
                    array = array[..., None, None]  # 1x1 convolutions there
                arrays[file_layouts.compvis_name(part, TINY, name)] = array
        arrays["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(11)[None]
        return arrays

    def test_what_others_put_next_to_the_networks_is_left_aside_and_named(self, tmp_path, caplog):
        """NovelAI's names of the text encoder, and the additions of several trainers."""
        kept = "cond_stage_model.transformer."
        arrays = {name.replace(f"{kept}text_model.", kept): array for name, array in self.compvis().items()}
        strange = (
            "embedding_manager.x",
            "safety_checker.x",
            "control_model.input_blocks.0.0.weight",
            "denoiser.sigmas",
        )
        for name in (*strange, "global_step", f"{kept}text_projection.weight", "cond_stage_model.logit_scale"):
            arrays[name] = np.zeros(1, np.float32)
        file = write(tmp_path / "all.safetensors", arrays)
        for part in PARTS:
            assert_read(part, file)
        importing.plan_import(dict.fromkeys(PARTS, file), TINY)
        for head in ("embedding_manager", "safety_checker", "control_model", "denoiser", "global_step"):
            assert head in caplog.text
        assert "betas" not in caplog.text

    @pytest.mark.parametrize("prefix", ["", "unet.", "module.unet.", "_orig_mod.model.diffusion_model.", "ema.model."])
    @pytest.mark.parametrize("layout", [0, 1])
    def test_a_bare_unet_behind_any_prefix(self, tmp_path, prefix, layout):
        """As ESD and its successors save it, under the names of diffusers or CompVis."""
        rename = file_layouts.part_layouts("unet", TINY)[layout]
        arrays = {prefix + rename(name): array for name, array in tensors("unet").items()}
        arrays["global_step"] = np.zeros((), np.int64)
        assert_read("unet", write(tmp_path / "unet.safetensors", arrays))

    def test_averages_are_taken_if_asked_for_and_named_if_not(self, tmp_path, caplog):
        arrays, averages = self.compvis(), {}
        rename = file_layouts.part_layouts("unet", TINY)[2]
        del arrays["model_ema.diffusion_modelout2bias"]
        for name, array in tensors("unet").items():
            averages[name] = array + 1
            arrays[f"model_ema.{rename(name)}"] = averages[name]
        file = write(tmp_path / "all.safetensors", arrays)
        for ema, expected in ((None, tensors("unet")), (False, tensors("unet")), (True, averages)):
            caplog.clear()
            plan = importing.plan_import(dict.fromkeys(PARTS, file), TINY, ema=ema)
            assert ("left its averages (EMA) aside; see --ema" in caplog.text) == (not ema)
            params = part_files.read_part("unet", plan.sources["unet"], TINY, ema=ema)[0]
            found = torch_weights.to_state_dict(params, {})
            assert all((found[name] == array).all() for name, array in expected.items())
        out = tmp_path / "model"
        importing.import_weights({"unet": file}, out, TINY, ema=True)
        importing.import_weights({"unet": file}, out, TINY, ema=True, resume=True)
        for ema in (None, False):
            with pytest.raises(
                InputError, match=r"was not imported from these weights of all\.safetensors; add --overw"
            ):
                importing.import_weights({"unet": file}, out, TINY, ema=ema, resume=True)
        single = write(tmp_path / "unet.safetensors", tensors("unet"))
        with pytest.raises(WeightsError, match=r"unet.safetensors with --ema: the file holds no averaged weights"):
            importing.plan_import({"unet": single}, TINY, ema=True)

    def test_a_folder_with_weights_that_are_no_averages_has_averages_beside_them(self, tmp_path, caplog):
        """As the folder of Stable Diffusion 1.5 has them."""
        averaged = write(tmp_path / FILES["unet"], tensors("unet"))
        plain = write(averaged.with_name("diffusion_pytorch_model.non_ema.safetensors"), tensors("unet"))
        for ema, file in ((None, averaged), (True, averaged), (False, plain)):
            caplog.clear()
            assert importing.plan_import({"unet": tmp_path}, TINY, ema=ema).sources["unet"].files == (file,)
            assert ("took the averaged weights (EMA) and left the others" in caplog.text) == (ema is None)
        averaged.unlink()
        importing.plan_import({"unet": tmp_path}, TINY)
        with pytest.raises(WeightsError, match="with --ema: its folder holds no averaged weights"):
            importing.plan_import({"unet": tmp_path}, TINY, ema=True)

    def test_the_type_of_the_file_is_said(self, tmp_path):
        narrow = {name: array.astype(ml_dtypes.float8_e4m3fn) for name, array in tensors("text").items()}
        torch_weights.write_safetensors(tmp_path / "in.safetensors", narrow)
        done = importing.import_weights({"text": tmp_path / "in.safetensors"}, tmp_path / "model", TINY)
        assert (done["text"].types, done["text"].dtype) == ("float8_e4m3fn", "float32")

    def test_one_checkpoint_of_all_three(self, tmp_path):
        arrays = self.compvis()
        for name in (
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
            "model.diffusion_model.input_blocks.2.0.op.weight",
            "model.diffusion_model.middle_block.1.proj_in.weight",
            "model.diffusion_model.output_blocks.1.1.conv.weight",
            "model.diffusion_model.output_blocks.2.0.skip_connection.weight",
            "first_stage_model.decoder.up.1.upsample.conv.weight",
            "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight",
            "first_stage_model.encoder.mid.attn_1.proj_out.weight",
        ):
            assert name in arrays
        file = write(tmp_path / "sd.safetensors", arrays)
        for part in PARTS:
            assert_read(part, file)
        del arrays["model.diffusion_model.out.2.bias"]
        arrays["model.diffusion_model.label_emb.weight"] = np.zeros((2, 2), np.float32)
        file = write(tmp_path / "broken.safetensors", arrays)
        with pytest.raises(WeightsError, match=r"1 missing \(conv_out.bias\), 1 not in the model \(model.diffusion_m"):
            part_files.read_part_file("unet", file, TINY)
        assert_read("vae", file)

    def test_a_pickled_checkpoint_with_the_state_of_callbacks(self, tmp_path):
        """The published sd-v1-4.ckpt has a class of pytorch_lightning as a key; it is neither imported nor called."""
        stored = {name: array for name, array in tensors("text").items()}
        program, storages = _pickled_checkpoint(stored)
        with zipfile.ZipFile(tmp_path / "sd.ckpt", "w") as archive:
            archive.writestr("archive/data.pkl", program)
            for key, raw in storages.items():
                archive.writestr(f"archive/data/{key}", raw)
        assert_read("text", tmp_path / "sd.ckpt")

    def test_full_size_names_are_all_different(self):
        for part in PARTS:
            names = list(torch_weights.state_dict_shapes(networks.outline(part), {}))
            for rename in file_layouts.part_layouts(part, networks.SD_V1):
                assert len(set(map(rename, names))) == len(names)


def _pickled_checkpoint(arrays):
    """`torch.save({"callbacks": {ModelCheckpoint: {...}}, "state_dict": arrays})`, spelled out."""

    def text(word):
        raw = word.encode()
        return b"X" + len(raw).to_bytes(4, "little") + raw

    def integer(number):
        return b"J" + number.to_bytes(4, "little")

    def numbers(values):
        return b"(" + b"".join(map(integer, values)) + b"t"

    program, storages = b"\x80\x02}(" + text("callbacks") + b"}", {}
    program += b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n}" + text("monitor") + b"Nss"
    program += text("state_dict") + b"}("
    for key, (name, array) in enumerate(arrays.items()):
        storages[str(key)] = array.tobytes()
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu")
        strides = [stride // 4 for stride in array.strides]
        program += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(array.size) + b"tQ"
        program += integer(0) + numbers(array.shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return program + b"uu.", storages


class TestWrongFiles:
    def test_missing_extra_and_misshapen_tensors_are_named(self, tmp_path):
        arrays = tensors("unet")
        del arrays["conv_in.bias"]
        arrays["conv_out.scale"] = np.zeros(3, np.float32)
        arrays["conv_norm_out.weight"] = np.zeros(31, np.float32)
        with pytest.raises(WeightsError) as caught:
            part_files.read_part_file("unet", write(tmp_path / "x.safetensors", arrays), TINY)
        message = str(caught.value)
        assert "x.safetensors does not hold the UNet of Stable Diffusion v1: " in message
        assert "1 missing (conv_in.bias)" in message
        assert "1 not in the model (conv_out.scale)" in message
        assert "1 that do not fit (conv_norm_out.weight: expected (32,), found (31,))" in message

    @pytest.mark.parametrize(
        ("part", "shapes", "looks"),
        [
            ("unet", {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (2, 1024)}, "the UNet of .*v2"),
            ("unet", {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (2, 2048)}, "the UNet of .*XL"),
            ("unet", {"model.diffusion_model.x.attn2.to_k.weight": (2, 1024)}, "the UNet of Stable Diffusion v2"),
            ("unet", {"conditioner.embedders.0.x": (2,), "model.diffusion_model.y": (2,)}, "a checkpoint of SDXL"),
            ("text", {"cond_stage_model.model.transformer.x": (1,)}, "a checkpoint of Stable Diffusion v2"),
            ("unet", {"conv_in.weight": (320, 9, 3, 3), "m.attn2.to_k.weight": (320, 768)}, "a UNet for editing"),
            ("unet", {"double_blocks.0.img_attn.qkv.weight": (2, 2)}, "a diffusion transformer"),
            ("unet", {"lora_unet_x.lora_up.weight": (2, 2)}, "a LoRA"),
            ("unet", {"unet.x.attn1.processor.to_q_lora.down.weight": (4, 2)}, "a LoRA"),
            ("text", {"text_encoder.x.q_proj.lora_A.weight": (4, 2)}, "a LoRA"),
            ("unet", {"lora_unet_x.hada_w1_a": (4, 2)}, "a LoRA"),
            ("text", {"emb_params": (3, 768)}, "a textual inversion"),
            ("unet", {"<cat-toy>": (768,)}, "a textual inversion"),
            ("unet", {"image_proj.proj.weight": (4, 2), "ip_adapter.1.to_k_ip.weight": (4, 768)}, "an IP-Adapter"),
            ("unet", {"down_blocks.0.motion_modules.0.temporal_transformer.x.weight": (4, 2)}, "a motion module"),
            ("unet", {"controlnet_cond_embedding.conv_in.weight": (4,), "a.attn2.to_k.weight": (2, 768)}, "a Control"),
            (
                "unet",
                {"control_model.input_hint_block.0.weight": (4,), "m.attn2.to_k.weight": (2, 768)},
                "a ControlNet",
            ),
            ("unet", {"quant_conv.weight": (8, 8, 1, 1)}, "a VAE"),
            ("vae", {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (2, 768)}, "a UNet"),
            ("vae", {"text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768)}, "a text encoder"),
            ("text", {"text_model.encoder.layers.0.self_attn.q_proj.weight": (1024, 1024)}, "the text encoder of .*v2"),
            ("text", {"text_model.encoder.layers.0.self_attn.q_proj.weight": (1280, 1280)}, "the text encoder of .*XL"),
            ("text", {"text_model.e.self_attn.q_proj.weight": (768, 768), "vision_model.x": (1,)}, "a whole CLIP"),
        ],
    )
    def test_other_networks_are_recognised(self, tmp_path, part, shapes, looks):
        file = write(tmp_path / "x.safetensors", {name: np.zeros(shape, np.float16) for name, shape in shapes.items()})
        with pytest.raises(WeightsError, match=f"x.safetensors looks like {looks}.*, not like the"):
            part_files.read_part_file(part, file, networks.SD_V1)

    def test_a_textual_inversion_of_a_reduced_text_encoder(self):
        shapes = {"emb_params": (3, TINY.text.width)}
        assert "a textual inversion" in other_networks.describe_other_network("text", TINY, shapes)

    def test_the_first_textual_inversions_are_recognised(self):
        """Their embeddings are in a `ParameterDict`, which is left aside, so that the id of a token alone is read."""
        found = other_networks.describe_other_network("text", TINY, {"*": ()}, where="string_to_token")
        assert "a textual inversion" in found

    def test_stable_diffusion_v1_is_taken_for_itself(self):
        for part in PARTS:
            shapes = torch_weights.state_dict_shapes(networks.outline(part), {})
            assert other_networks.describe_other_network(part, networks.SD_V1, shapes) is None
            compvis = {file_layouts.compvis_name(part, networks.SD_V1, name): shape for name, shape in shapes.items()}
            assert other_networks.describe_other_network(part, networks.SD_V1, compvis) is None

    def test_half_a_download(self, folder, tmp_path, capsys):
        whole = (folder / FILES["text"]).read_bytes()
        for share in (0.01, 0.5, 0.99):
            (tmp_path / "half.safetensors").write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(WeightsError, match=r"half.safetensors.*damaged.*download or copy it again"):
                part_files.read_part_file("text", tmp_path / "half.safetensors", TINY)
        (tmp_path / "unet").mkdir()
        (tmp_path / "unet/diffusion_pytorch_model.safetensors.incomplete").touch()
        with pytest.raises(InputError, match=r"only half downloaded"):
            model_sources.find_weights("unet", tmp_path)
        arguments = ["sd", "import", "--text", str(tmp_path / "half.safetensors"), "--out", str(tmp_path / "out")]
        assert cli.main([*arguments, "--config", "tiny"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_not_a_number(self, tmp_path):
        arrays = tensors("text")
        arrays["text_model.final_layer_norm.bias"][3] = np.nan
        with pytest.raises(WeightsError, match=r"final_layer_norm.bias holds NaN or infinity"):
            part_files.read_part_file("text", write(tmp_path / "x.safetensors", arrays), TINY)

    def test_folders_without_weights(self, tmp_path):
        with pytest.raises(InputError, match=r"there is no file or folder .*absent"):
            model_sources.find_weights("unet", tmp_path / "absent")
        (tmp_path / "README.md").touch()
        with pytest.raises(InputError, match=r"no diffusion_pytorch_model.safetensors in .*, it holds README.md"):
            model_sources.find_weights("vae", tmp_path)
        with pytest.raises(InputError, match="nothing to import"):
            importing.import_weights({}, tmp_path / "out")
        with pytest.raises(InputError, match="there is no network in"):
            exporting.export_weights(tmp_path, tmp_path / "out")
        with pytest.raises(InputError, match="--dtype is 'int8'; choose one of float32, float16, bfloat16"):
            exporting.export_weights(tmp_path, tmp_path / "out", dtype="int8")

    def test_checkpoints_of_something_else(self, tmp_path):
        params = diffusion_traces.params(networks.outline("text", TINY))
        checkpoints.save_network(tmp_path / "text", params, {}, {"model": "resnet20"})
        with pytest.raises(CheckpointError, match="text holds no text encoder of Stable Diffusion v1"):
            model_folder.load_part("text", tmp_path)
        sizes = dataclasses.asdict(TINY.text) | {"width": 64}
        described = {"diffusion": "text", "config": sizes, "dtype": "float32"}
        checkpoints.save_network(tmp_path / "text", params, {}, described)
        with pytest.raises(CheckpointError, match="belongs to another network"):
            model_folder.load_part("text", tmp_path)
