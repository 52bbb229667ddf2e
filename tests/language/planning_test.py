"""Plans of language models: shapes are exact, XLA says the same of a run's own step, bad input is one sentence."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from experiments.language_parity import CONFIGS
from scissorhands_jax import data as data_lib
from scissorhands_jax import trees
from scissorhands_jax.cli.main import main
from scissorhands_jax.jobs.plan_steps import Program
from scissorhands_jax.language import planning, unlearning
from scissorhands_jax.language.lora import Lora, init_lora
from scissorhands_jax.language.method_settings import token_methods, token_settings
from scissorhands_jax.language.model_folders import outline_of, read_language_config, read_text_tokenizer
from scissorhands_jax.language.unlearning import LanguageJob, LanguageTraining
from scissorhands_jax.training import loop as training
from scissorhands_jax.training import sharding
from tests.cli.main_test import error_of
from tests.language.tiny_folders import make_tiny_folder, write_examples

TOLERANCE = 1e-3  # such as the step and the key; `experiments.plan_check` allows 0.2 for a whole process
STEP_TEMPORARIES, MEASURING, SCORING, CODE = 100_000, 30_000, 50_000, 700
FLOPS = 5e9


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what a plan may read: no weights; and files of examples."""
    folder = tmp_path_factory.mktemp("planned")
    make_tiny_folder(folder / "model", {**CONFIGS["llama"], "num_hidden_layers": 1})
    for file in (folder / "model").iterdir():
        if "safetensors" in file.name:
            file.unlink()
    write_examples(folder)
    (folder / "refusals.txt").write_text("What\n")
    return folder


@pytest.fixture
def uncompiled(monkeypatch):
    """Plans without compiling: programs take as much as the numbers above say, and a process takes nothing."""

    def of(run, carry):
        program = Program(None, None, STEP_TEMPORARIES, CODE)
        return planning._Programs(dict.fromkeys(run.kinds, program), MEASURING, SCORING if planning._scores(run) else 0)

    monkeypatch.setattr(planning._Programs, "of", of)
    monkeypatch.setattr(planning._LanguageRun, "flops", lambda run, carry, kind: FLOPS)
    monkeypatch.setattr(planning.plan_memory, "process_bytes", lambda: 0)


def job(place, method="npo", *, files=True, lora=None, dtype="float32", **changes):
    settings = dataclasses.replace(token_settings(method)(), **{"batch_size": 2, **changes})
    how = {"model": place / "model", "method": method, "settings": settings, "lora": lora, "dtype": dtype}
    if not files:
        return LanguageTraining(**how)
    refusals = place / "refusals.txt" if method == "dpo" else None
    return LanguageJob(**how, forget=place / "forget.json", retain=place / "retain.json", refusals=refusals)


def rows_of(one):
    return unlearning.packed_sets(one, read_language_config(one.model), read_text_tokenizer(one.model)).data


def begun(one):
    """The carry with which a run of a job begins, with weights of no network, and its method."""
    sizes, model = one.network(read_language_config(one.model))
    method = one.build(sizes, model, 1.0)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), params)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, one.dtype), state)
    return trees.copy(method.init(jax.random.key(1), params, state, rows_of(one))), method


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("lora", [None, Lora(2)], ids=["all weights", "lora"])
def test_what_xla_says_of_the_step_of_a_run_is_what_was_planned(place, monkeypatch, lora, microbatches):
    monkeypatch.setattr(planning._LanguageRun, "flops", lambda run, carry, kind: FLOPS)
    monkeypatch.setattr(planning.plan_memory, "process_bytes", lambda: 0)
    one = job(place, "gradient_ascent", lora=lora, dtype="bfloat16", microbatches=microbatches, schedule="drops")
    parts = planning.plan_language(one, memory_gib=64).phases["steps"]
    carry, method = begun(one)
    data = rows_of(one)
    batch = next(iter(method.batches(jax.random.key(2), data, 0)))
    found = training._step.lower(method.step, carry, data_lib.gather(data, batch)).compile().memory_analysis()
    needed = found.argument_size_in_bytes + found.temp_size_in_bytes
    assert sum(parts.values()) - trees.nbytes(data) == pytest.approx(needed, rel=TOLERANCE)
    # What has a shape is there to the byte, but for some numbers such as the step.
    held = sum(parts[name] for name in ("params and model state", "optimizer state", "what the method holds"))
    assert trees.nbytes(carry._replace(key=())) - 100 < held <= trees.nbytes(carry._replace(key=()))


def test_every_method_is_planned_with_what_it_carries(place):
    for name in token_methods():
        one = job(place, name)
        sizes, model = one.network(read_language_config(one.model))
        run = planning._LanguageRun.of(one, sizes, model, planning._rows(one, sizes, None), 1)
        outline = run.carry()
        if hasattr(one.settings, "schedule"):  # one that needs not know the number of steps
            one = dataclasses.replace(one, settings=dataclasses.replace(one.settings, schedule="drops"))
        carry, _ = begun(one)
        shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), each) for each in (outline, carry)]
        assert shapes[0] == shapes[1], name


def test_each_phase_holds_what_the_docstring_says(place, uncompiled):
    one = 4 * trees.count_weights(outline_of(read_language_config(place / "model")))
    phases = {name: planning.plan_language(job(place, name), memory_gib=64).phases for name in token_methods()}
    steps = {name: found["steps"] for name, found in phases.items() if name != "ssd"}
    second = {"npo", "dpo", "undial", "rmu", "task_vector", "scrub"}
    held = {name: round(parts["what the method holds"] / one, 2) for name, parts in steps.items()}
    assert held == {name: 2.0 if name == "bad_teacher" else float(name in second) for name in steps}
    assert {name for name, parts in steps.items() if parts["gradients"] > one} == {"scissorhands", "munba"}
    for parts in steps.values():
        assert parts["params and model state"] == one
        assert 0 <= parts["optimizer state"] - 2 * one < 100  # AdamW's moments, and some numbers
        assert parts["gradients"] + parts["activations and temporaries"] == STEP_TEMPORARIES
    assert all(found["measuring"]["activations and temporaries"] == MEASURING for found in phases.values())
    assert [name for name, found in phases.items() if "scoring" in found] == ["scissorhands", "ssd"]
    assert list(phases["scissorhands"]) == ["measuring", "scoring", "trimming", "steps"]
    assert phases["scissorhands"]["trimming"]["what the method holds"] == 2 * one
    assert list(phases["ssd"]) == ["measuring", "scoring", "dampening"]
    assert phases["ssd"]["scoring"]["what the method holds"] == 2 * one


def test_lora_has_no_second_network_and_gradients_of_its_matrices_alone(place, uncompiled):
    sizes = read_language_config(place / "model")
    thin = trees.nbytes(jax.eval_shape(lambda: init_lora(jax.random.key(0), sizes, 2)))
    whole = trees.nbytes(outline_of(sizes))
    plan = planning.plan_language(job(place, lora=Lora(2), dtype="bfloat16"), memory_gib=64)
    parts = plan.phases["steps"]
    assert parts["params and model state"] == whole // 2 + thin
    assert parts["gradients"] == parts["what the method holds"] == thin
    assert 0 <= parts["optimizer state"] - 2 * thin < 100
    assert plan.phases["writing"]["params and model state"] == whole  # is merged in float32
    assert (plan.parameters, plan.trained) == (whole // 4, thin // 4)


def test_rows_and_steps_are_those_of_the_run(place, uncompiled):
    known = planning.plan_language(job(place, epochs=3, batch_size=1), memory_gib=64)
    data = rows_of(job(place))
    assert known.row_length == data.forget["tokens"].shape[1]
    assert [(kind.kind, kind.steps) for kind in known.kinds] == [
        ("1 forget + 1 retain", 3 * len(data.forget["tokens"]))
    ]
    assert known.document()["steps"] == known.kinds[0].steps
    only = planning.plan_language(job(place, files=False, batch_size=8), row_length=48, memory_gib=64)
    assert [(kind.kind, kind.steps) for kind in only.kinds] == [("8 forget + 8 retain", None)]
    assert only.phases["steps"]["data on the device"] == 2 * 8 * 48 * (4 + 1 + 4)
    refusing = planning.plan_language(job(place, "dpo", files=False, batch_size=8), row_length=48, memory_gib=64)
    assert refusing.phases["steps"]["data on the device"] == 3 * 8 * 48 * (4 + 1 + 4)


def test_devices_share_rows_and_if_need_be_arrays(place, uncompiled, monkeypatch):
    monkeypatch.setattr(sharding.Layout, "__init__", small_arrays(sharding.Layout.__init__))
    one = job(place, files=False, batch_size=8)

    def planned(memory, **more):
        return planning.plan_language(one, row_length=48, memory_gib=memory / 2**30, **more)

    alone, parallel = planned(1e9), planned(1e9, devices=4)
    assert (alone.strategy, parallel.strategy) == ("one device", "data parallel")
    assert [kind.kind for kind in parallel.kinds] == ["8 forget + 8 retain"]
    state = "params and model state"
    assert parallel.phases["steps"][state] == alone.phases["steps"][state]
    rows = "data on the device"
    assert parallel.phases["steps"][rows] == alone.phases["steps"][rows] // 4
    divided = planned(parallel.total_bytes - 1, devices=4)
    assert (divided.strategy, divided.fits) == ("sharded parameters", True)
    layout = sharding.planned_layout(4, fsdp=True)
    params = outline_of(read_language_config(place / "model"))
    assert divided.phases["steps"][state] == layout.nbytes(params) < trees.nbytes(params) // 2
    assert divided.phases["measuring"][state] == divided.phases["steps"][state]
    largest = max(map(trees.nbytes, jax.tree.leaves(params)))
    assert divided.phases["steps"]["gathered layers"] == 2 * largest
    asked = planned(1e9, layout=sharding.planned_layout(2, 2))
    assert (asked.devices, asked.strategy) == (4, "sharded parameters")
    assert asked.phases["steps"][rows] == alone.phases["steps"][rows] // 2


def small_arrays(init):
    """`Layout.__init__` with a limit below which arrays are whole that suits a tiny network."""

    def made(layout, mesh, fsdp=False, replicate_below=256):
        init(layout, mesh, fsdp, replicate_below)

    return made


def command(place, *more, method="npo"):
    return [str(word) for word in ("lm", "plan", "--model", place / "model", "--method", method, *more)]


def test_the_command_takes_the_arguments_of_lm_unlearn(place, uncompiled, capsys):
    files = ("--forget", place / "forget.json", "--retain", place / "retain.json", "--out", place / "run")
    words = command(place, *files, "--batch-size", "2", "--lora", "2", "--memory", "64", "epochs=3")
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["total_bytes"] == max(sum(parts.values()) for parts in document["phases_bytes"].values())
    assert (document["steps"], document["fits"], document["limit_bytes"]) == (3, True, 64 * 2**30)
    assert (document["config"]["settings"]["epochs"], document["config"]["lora"]["rank"]) == (3, 2)
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("of LoRA, rows of 32 tokens, 3 steps on one device", "2 forget + 2 retain", "It fits in 64 GiB"):
        assert text in shown
    assert not (place / "run").exists()
    tight = command(place, "--row-length", "32", "--batch-size", "4", "--devices", "2", "--memory", "1e-4")
    assert main(tight) == 0
    assert "It does not fit in 105 KiB. Less takes: --lora RANK" in " ".join(capsys.readouterr().out.split())


def test_steps_are_timed_with_random_weights(place, capsys):
    files = ("--forget", place / "forget.json", "--retain", place / "retain.json")
    words = ("--batch-size", "2", "--epochs", "3", "--dtype", "bfloat16", "--time", "--json")
    assert main(command(place, *files, *words, method="gradient_ascent")) == 0
    document = json.loads(capsys.readouterr().out)
    (kind,) = document["kinds"]
    assert document["seconds"]["steps"] == pytest.approx(3 * kind["seconds_per_step"])
    assert kind["seconds_per_step"] > 0
    # Two operations per weight of a matrix and token forward, four backward; attention over the rows comes on top.
    matrices = document["parameters"] - 2 * 16 * 16  # roughly, without embeddings
    assert kind["flops_per_step"] > 6 * 32 * 0.5 * matrices


class TestRefusals:
    """One sentence each, before anything is compiled."""

    @pytest.fixture(autouse=True)
    def nothing_is_compiled(self, monkeypatch):
        def refuse(run, carry):
            raise AssertionError("something was compiled")

        monkeypatch.setattr(planning._Programs, "of", refuse)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ((), "nothing says how long rows are; give --forget and --retain, or --row-length"),
            (("--row-length", "1"), "--row-length must be from 2 to 64 for this network, got 1"),
            (("--row-length", "65"), "--row-length must be from 2 to 64 for this network, got 65"),
            (("--row-length", "32", "--devices", "0"), "--devices must be at least 1, got 0"),
            (("--row-length", "32", "--devices", "3"), "3 devices cannot share a batch of 32 examples"),
            (("--row-length", "32", "--mesh", "3"), "3 devices cannot share a batch of 32 examples"),
            (("--row-length", "32", "--mesh", "2x0"), "both axes of a mesh need at least one device"),
            (("--row-length", "32", "--mesh", "two"), "write DATA or DATAxMODEL"),
            (("--row-length", "32", "--mesh", "2", "--devices", "2"), "leave --devices out"),
            (("--row-length", "32", "--memory", "0"), "--memory must be above 0 GiB and finite, got 0"),
            (("--row-length", "32", "--memory", "1e-5"), "cannot fit, whatever is changed: parameters, gradients and"),
            (("--row-length", "32", "--batch-size", "0"), "batch_size must be at least 1, got 0"),
            (("--row-length", "32", "--microbatches", "3"), "cannot be divided into 3 equal microbatches"),
            (("--row-length", "32", "--lora", "99"), "the rank of LoRA must be from 1 to"),
            (("--row-length", "32", "beta=-1"), "beta must be above 0, got -1"),
            (("--forget", "FORGET"), "give both files, or neither"),
            (("--forget", "FORGET", "--retain", "RETAIN", "--microbatches", "32"), "cannot be divided into 32 equal"),
            (
                ("--forget", "FORGET", "--retain", "RETAIN", "--row-length", "32"),
                "--row-length has no effect with --forget",
            ),
            (("--forget", "FORGET", "--retain", "FORGET"), "share 2 examples"),
            (("--forget", "nowhere.json", "--retain", "RETAIN"), "cannot read nowhere.json"),
        ],
    )
    def test_what_cannot_be_planned(self, place, capsys, more, message):
        named = {"FORGET": place / "forget.json", "RETAIN": place / "retain.json"}
        assert main(command(place, *(named.get(word, word) for word in more))) == 2
        assert message in error_of(capsys)

    def test_a_folder_that_is_none(self, place, capsys):
        for folder, message in ((place / "none", "does not exist; name the folder"), (place, "has no config.json")):
            words = ("lm", "plan", "--model", folder, "--method", "npo", "--row-length", "32")
            assert main([str(word) for word in words]) == 2
            assert message in error_of(capsys)

    def test_steps_that_this_device_has_no_room_for(self, place, monkeypatch):
        monkeypatch.setattr(planning.feeding, "device_memory", lambda: 10_000)
        with pytest.raises(planning.InputError, match=r"need 19\.5 KiB, and it has 9\.77 KiB; leave --time out"):
            planning._check_room(20_000)
