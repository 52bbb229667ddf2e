"""Folders of language models: what is refused before weights are read, and that they are written back as they were."""

import json
import shutil

import numpy as np
import pytest

from experiments.language_parity import CONFIGS, weights_of
from scissorhands_jax import torch_weights
from scissorhands_jax.errors import InputError
from scissorhands_jax.language import text_tokens
from scissorhands_jax.language.decoder import Rotation
from scissorhands_jax.language.families import sizes_of
from scissorhands_jax.language.model_folders import (
    load_weights,
    open_language_folder,
    read_text_tokenizer,
    write_language_folder,
)
from tests.language.tiny_folders import BFLOAT16, FORGET, make_tiny_folder


@pytest.fixture
def folder(tmp_path):
    return make_tiny_folder(tmp_path / "model")


def changed(path, **changes):
    entries = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in entries.items() if value is not None}))


def rewritten(folder, change):
    """Changes the tensors of the first file of weights."""
    path = sorted(folder.glob("*.safetensors"))[0]
    weights = dict(torch_weights.read_state_dict(path))
    change(weights)
    torch_weights.write_safetensors(path, weights)


def test_weights_are_those_of_the_files(folder):
    opened = open_language_folder(folder)
    weights = weights_of(opened.sizes)
    found = torch_weights.to_state_dict(load_weights(opened), {}, flatten={})
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name], weights[name]) for name in weights)
    assert opened.tokenizer.ends == (2,)
    assert load_weights(opened, "bfloat16")["lm_head"]["kernel"].dtype == BFLOAT16


@pytest.mark.parametrize(("parts", "tied"), [(1, False), (3, True)])
def test_a_folder_is_written_back_as_it_was(tmp_path, parts, tied):
    config = CONFIGS["llama_scaled" if tied else "llama"]
    source = make_tiny_folder(tmp_path / "model", config, dtype=BFLOAT16, parts=parts)
    if tied:  # some publish the head although it is the embeddings

        def with_head(weights):
            weights["lm_head.weight"] = weights_of(sizes_of(config, ""))["model.embed_tokens.weight"].astype(BFLOAT16)

        first = sorted(source.glob("*.safetensors"))[0]
        rewritten(source, with_head)
        index = json.loads((source / "model.safetensors.index.json").read_text())
        index["weight_map"]["lm_head.weight"] = first.name
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "README.md").write_text("about")
    (source / "pytorch_model.bin").write_bytes(b"others")
    opened = open_language_folder(source)
    params = load_weights(opened)
    write_language_folder(opened, tmp_path / "same", params)
    kept = {path.name for path in source.iterdir()} - {"pytorch_model.bin"}
    assert {path.name for path in (tmp_path / "same").iterdir()} == kept
    for name in kept:
        before, after = source / name, tmp_path / "same" / name
        if before.suffix == ".safetensors":
            tensors, again = torch_weights.read_state_dict(before), torch_weights.read_state_dict(after)
            assert {key: array.dtype for key, array in tensors.items()} == {
                k: array.dtype for k, array in again.items()
            }
            assert all(np.array_equal(array, again[key]) for key, array in tensors.items())
        else:
            assert before.read_bytes() == after.read_bytes()
    params["model"]["embed_tokens"]["embedding"] = params["model"]["embed_tokens"]["embedding"] + 1
    write_language_folder(opened, tmp_path / "same", params)
    again = open_language_folder(tmp_path / "same")
    moved = load_weights(again)["model"]["embed_tokens"]["embedding"]
    assert np.allclose(moved, params["model"]["embed_tokens"]["embedding"], atol=0.02)
    if tied:
        head = torch_weights.read_state_dict(again.places["lm_head.weight"])["lm_head.weight"]
        assert np.array_equal(head, np.asarray(moved, BFLOAT16))
    params["model"]["embed_tokens"]["embedding"] = np.full(params["model"]["embed_tokens"]["embedding"].shape, np.inf)
    with pytest.raises(InputError, match=r"weight has numbers that bfloat16 cannot hold"):
        write_language_folder(opened, tmp_path / "same", params)
    assert (tmp_path / "same").exists()


def without(name):
    return lambda folder: (folder / name).unlink()


def other_config(**changes):
    return lambda folder: changed(folder / "config.json", **changes)


def in_weights(change):
    return lambda folder: rewritten(folder, change)


def tensor(name, array):
    return in_weights(lambda weights: weights.__setitem__(name, array))


BAD = {
    "no folder": (lambda folder: folder.rename(folder.parent / "gone"), "model does not exist; name the folder"),
    "no config": (without("config.json"), "has no config.json"),
    "damaged config": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "list as config": (lambda folder: (folder / "config.json").write_text("[]"), "is not a JSON object"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer.json; .*tokenizer.model alone is not enough"),
    "damaged tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json is damaged"),
    "family": (
        other_config(model_type="mamba"),
        "of the family 'mamba', which is not supported; choose a model of llama",
    ),
    "images": (other_config(model_type="gemma3"), "'gemma3', which is not supported; it also reads images"),
    "experts": (other_config(model_type="qwen3_moe"), "mixtures of experts"),
    "quantised": (other_config(quantization_config={"bits": 4}), "says that the weights are quantised"),
    "no size": (other_config(hidden_size=None), "has no 'hidden_size'"),
    "size of text": (other_config(hidden_size="16"), "has '16' as 'hidden_size'"),
    "rotation": (other_config(rope_parameters={"rope_type": "yarn"}), "rotations of the kind 'yarn'"),
    "half a rotation": (
        other_config(rope_parameters={"rope_type": "llama3", "factor": 8.0}),
        "'llama3' without usable",
    ),
    "activation": (other_config(hidden_act="gelu"), "the activation 'gelu'"),
    "family of several": (other_config(model_type=["llama"]), "of the family"),
    "both files": (
        lambda folder: shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model.safetensors"),
        "has both model.safetensors and model.safetensors.index.json",
    ),
    "heads": (other_config(num_key_value_heads=3), "4 heads of queries for 3 of keys"),
    "negative eps": (other_config(rms_norm_eps=-1), "a number above 0 is due"),
    "flag": (other_config(tie_word_embeddings="no"), "true or false is due"),
    "vocabulary": (other_config(vocab_size=9), "tokenizer.json has 24 tokens and the network knows 9"),
    "shard missing": (without("model-00002-of-00002.safetensors"), r"lacks 1 of the 2 files of weights \(model-00002"),
    "no index": (without("model.safetensors.index.json"), "has only model-00001.*; it needs model.safetensors, or"),
    "index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "has no 'weight_map' from tensors to files",
    ),
    "index outside": (
        lambda folder: changed(folder / "model.safetensors.index.json", weight_map={"a": "../x.safetensors"}),
        "which is not in its folder",
    ),
    "tensor missing": (in_weights(lambda weights: weights.popitem()), "of 21 tensors it lacks"),
    "layers": (other_config(num_hidden_layers=1), "also has model.layers.1"),
    "shape": (tensor("lm_head.weight", np.zeros((40, 8), np.float32)), "lm_head.weight .*shape"),
    "integers": (
        tensor("lm_head.weight", np.zeros((40, 16), np.int8)),
        "is of type int8, which is quantised",
    ),
    "cut off": (lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"\x09" * 40), "cannot read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_cannot_be_used_is_refused_in_a_sentence(folder, case):
    change, said = BAD[case]
    change(folder)
    with pytest.raises(InputError, match=said) as caught:
        open_language_folder(folder)
    assert "\n" not in str(caught.value)


def test_older_configurations_mean_the_same():
    new = sizes_of(CONFIGS["llama_scaled"], "")
    old = {name: value for name, value in CONFIGS["llama_scaled"].items() if name != "rope_parameters"}
    scaling = {**CONFIGS["llama_scaled"]["rope_parameters"], "type": "llama3"}
    theta = scaling.pop("rope_theta")
    assert sizes_of(old | {"rope_theta": theta, "rope_scaling": scaling}, "") == new
    config = {**CONFIGS["gemma3"], "num_hidden_layers": 7}
    for name in ("rope_parameters", "layer_types"):
        del config[name]
    local = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    found, recent = sizes_of(config | local, ""), sizes_of(CONFIGS["gemma3"], "")
    assert (found.rotation, found.window_rotation) == (recent.rotation, recent.window_rotation)
    assert found.windows == (4, 4, 4, 4, 4, None, 4)
    assert sizes_of(CONFIGS["gemma2"], "").windows == (4, None)
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    assert sizes_of(CONFIGS["qwen2"] | windows, "").windows == (None, 4)


def test_gemma3_turns_as_the_family_does_where_nothing_is_said():
    config = {name: value for name, value in CONFIGS["gemma3"].items() if name != "rope_parameters"}
    both = {name: {"rope_type": "default"} for name in ("full_attention", "sliding_attention")}
    for said in ({}, {"rope_parameters": both}, {"rope_parameters": {"full_attention": {}}}):
        found = sizes_of(config | said, "")
        assert (found.rotation, found.window_rotation) == (Rotation(base=1e6), Rotation(base=1e4))
    assert sizes_of(config | {"rope_theta": 5e4, "rope_local_base_freq": 7e3}, "").window_rotation == Rotation(base=7e3)


def test_what_is_no_token_ends_no_answer(folder):
    changed(folder / "config.json", eos_token_id=[-1, 10**6, 2])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": -1}))
    assert read_text_tokenizer(folder).ends == (2,)


def test_windows_that_are_switched_off_do_not_count():
    named = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}
    assert sizes_of(CONFIGS["qwen2"] | named | {"use_sliding_window": False}, "").windows == ()
    assert sizes_of(CONFIGS["qwen2"] | named | {"use_sliding_window": True}, "").windows == (None, 4)
    few = CONFIGS["qwen2"] | {"use_sliding_window": True, "sliding_window": 4}
    few.pop("max_window_layers", None)  # by default from the 29th layer on
    assert sizes_of(few, "").windows == ()


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_gemmas_activation_is_looked_at(family):
    assert sizes_of(CONFIGS[family] | {"hidden_activation": None}, "") == sizes_of(CONFIGS[family], "")
    with pytest.raises(InputError, match="the activation 'silu'"):
        sizes_of(CONFIGS[family] | {"hidden_activation": "silu"}, "")


def test_how_texts_were_cut_and_filled_up_when_a_tokenizer_was_saved_does_not_count(folder):
    plain = text_tokens.read_tokenizer(folder / "tokenizer.json")
    changed_file = folder / "changed.json"
    other = text_tokens.read_tokenizer(folder / "tokenizer.json")
    other.enable_truncation(2)
    other.enable_padding(length=6)
    other.save(str(changed_file))
    text = FORGET[0][0]
    assert text_tokens.read_tokenizer(changed_file).encode(text).ids == plain.encode(text).ids
    assert len(plain.encode(text).ids) > 2
