"""Plans: counts and shapes are exact, sums add up, what cannot fit is refused before anything is compiled."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from scissorhands_jax import saliency
from scissorhands_jax.cli import main as cli
from scissorhands_jax.jobs import plan_memory, plan_report, plan_time, planning
from scissorhands_jax.jobs.config import RunConfig, override
from scissorhands_jax.jobs.job import prepare_job
from scissorhands_jax.jobs.plan_steps import PlannedJob
from scissorhands_jax.methods import METHODS
from tests.cli.main_test import error_of
from tests.compilations import Compilations

influence = importlib.import_module("scissorhands_jax.methods.influence")  # a function has its name in the package
NETWORK = ["--model", "mlp", "--dataset", "digits"]
WEIGHTS = 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10
EXAMPLE = 64 * 4 + 4  # an 8x8 image of floats and a label
FORGET, RETAIN = 135, 512


def config(method="scissorhands", *, retain=RETAIN, **changes):
    """A job on the digits: 135 of 1,347 training examples are forgotten."""
    settings = dataclasses.replace(METHODS[method](), batch_size=64, **changes)
    return RunConfig(
        model="mlp", dataset="digits", forget="random:0.1", retain_limit=retain, method_name=method, method=settings
    )


@pytest.fixture(scope="module")
def document():
    once = {"every_step_joint": False}
    return planning.plan_run(config(epochs=3, departures=once), memory_gib=64).document()


def test_steps_are_counted_by_kind_as_the_run_takes_them(document):
    # An epoch has ceil(135 / 64) joint steps, and the others of ceil(512 / 64) see retained examples alone.
    assert [(kind["forget"], kind["retain"], kind["steps"]) for kind in document["kinds"]] == [
        (64, 64, 3 * 3),
        (None, 64, 3 * 5),
    ]
    assert document["steps"] == 24
    joint, alone = document["kinds"]
    # Forward 2 operations per weight and example, backward 4, but for the gradient of the images.
    operations = 64 * (6 * WEIGHTS - 2 * 64 * 256)
    assert alone["flops_per_step"] == pytest.approx(operations, rel=0.1)
    assert joint["flops_per_step"] == pytest.approx(2 * operations, rel=0.1)
    # By default every step sees forget examples.
    kinds = planning.plan_run(config(epochs=1), memory_gib=64).document()["kinds"]
    assert [(kind["forget"], kind["retain"], kind["steps"]) for kind in kinds] == [(64, 64, 8)]


def test_what_has_a_shape_is_exact_and_the_sum_is_the_sum(document):
    assert document["parameters"] == WEIGHTS
    parts = document["memory"]["parts_bytes"]
    assert parts["params and model state"] == parts["original network"] == 4 * WEIGHTS
    assert parts["gradients"] == 2 * 4 * WEIGHTS
    assert 4 * WEIGHTS <= parts["optimizer state"] <= 4 * WEIGHTS + 100  # momentum, and some numbers
    assert parts["data on the device"] == (FORGET + RETAIN + 64 + 64) * EXAMPLE
    assert document["memory"]["total_bytes"] == sum(parts.values())
    assert document["memory"]["fits"]
    assert document["advice"] == []


def test_what_a_method_holds_is_that_of_all_its_data_and_gradients_of_single_examples_count():
    parts = planning.plan_run(config("amun", epochs=1), memory_gib=64).placement.parts
    assert parts["what the method holds"] == FORGET * EXAMPLE  # an adversarial image and its label for each
    params = {"kernel": jnp.zeros(WEIGHTS)}
    assert plan_memory.gradient_bytes(config("orthograd"), params) == (64 + 2) * 4 * WEIGHTS


def test_time_is_steps_times_their_time_and_more(document):
    seconds = dict(document["seconds"])
    assert seconds["steps"] == pytest.approx(
        sum(kind["steps"] * kind["seconds_per_step"] for kind in document["kinds"])
    )
    total = seconds.pop("total")
    assert total == pytest.approx(sum(seconds.values()))
    assert min(seconds.values()) >= 0
    assert all(kind["seconds_per_step"] > 0 for kind in document["kinds"])


@pytest.mark.parametrize(
    ("method", "forget"),
    [
        ("sfron", "random:0.1"),
        ("sfron", "random:0.02"),
        ("ssd", "random:0.1"),
        ("influence", "random:0.1"),
        ("msg", "random:0.1"),
        ("salun", "random:0.1"),
    ],
)
def test_the_beginning_is_that_of_all_batches_of_each_set(method, forget, monkeypatch):
    """Counted in passes over batches, in place of seconds: 140 or 27 forget and 512 retain examples, 32 in a batch."""
    passes = []
    for module, names in ((saliency, ["_add_gradient"]), (influence, ["_rows_times", "_add_rows"])):
        for name in names:
            whole = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *parts, whole=whole: passes.append(1) or whole(*parts))

    def count(call):
        before = len(passes)
        call()
        return len(passes) - before

    monkeypatch.setattr(plan_time, "seconds_of", count)
    few = {"num_samples": 100} if method == "influence" else {}
    settings = dataclasses.replace(config(method).method, batch_size=32, **few)
    job = prepare_job(dataclasses.replace(config(method), forget=forget, method=settings), check=lambda *parts: None)
    run = PlannedJob.of(job, 1)
    start = jax.tree.map(jnp.asarray, (job.params, job.model_state))
    planned = plan_time.time_beginning(run, *start).seconds
    taken = count(lambda: run.method.init(jax.random.key(0), *start, job.data))
    # Conjugate gradients take a few more or fewer iterations. A forget set that fills no batch divides others smaller.
    assert planned == pytest.approx(taken, rel=0.3 if method == "influence" else 0.2 if "0.02" in forget else 0)


def test_several_devices_share_the_batch_and_perhaps_the_state(monkeypatch, document):
    monkeypatch.setattr(plan_memory, "process_bytes", lambda: 0)
    found = planning.plan_run(config("finetune", epochs=1), devices=4, memory_gib=64).document()
    assert found["strategy"] == "data parallel"
    parts = found["memory"]["parts_bytes"]
    assert parts["data on the device"] == (FORGET + RETAIN + 64 / 4) * EXAMPLE
    whole, other = 4 * 4 * WEIGHTS, parts["activations and temporaries"] + parts["data on the device"]
    assert found["memory"]["total_bytes"] == pytest.approx(whole + other, abs=100)
    assert found["memory"]["sharded_bytes"] == pytest.approx(whole / 4 + 2 * 4 * 256 * 256 + other, abs=100)
    # All devices together do the work of one.
    flops = document["kinds"][1]["flops_per_step"]
    assert found["kinds"][0]["flops_per_step"] == pytest.approx(flops, rel=0.15)


def test_what_does_not_fit_comes_with_what_would(monkeypatch):
    monkeypatch.setattr(plan_memory, "process_bytes", lambda: 0)
    job = config(retain=None, epochs=1, pair="vmap")
    job = dataclasses.replace(job, forget="random:0.5", method=dataclasses.replace(job.method, batch_size=512))
    # Original, params, momentum, two gradients, and the data; a million bytes are left for activations.
    tight = 5 * 4 * WEIGHTS + (1347 + 2 * 512) * EXAMPLE + 1_000_000
    found = planning.plan_run(job, memory_gib=tight / 2**30).document()
    assert not found["memory"]["fits"]
    advice = {piece["how"].partition("=")[0]: piece for piece in reversed(found["advice"])}
    assert set(advice) >= {"method.pair", "model_options.remat", "method.microbatches", "model_options.dtype"}
    assert any(name.startswith("--devices") for name in advice)
    assert advice["method.microbatches"]["fits"]
    for piece in found["advice"]:
        assert piece["fits"] == (piece["total_bytes"] <= tight)
        assert piece["total_bytes"] > 4 * 4 * WEIGHTS
    # What it advises is what it then finds.
    again = planning.plan_run(override(job, advice["method.microbatches"]["how"].split()), memory_gib=64).document()
    assert again["memory"]["total_bytes"] == pytest.approx(advice["method.microbatches"]["total_bytes"], rel=0.2)


def test_a_method_without_steps(monkeypatch):
    monkeypatch.setattr(plan_memory, "process_bytes", lambda: 0)
    found = planning.plan_run(config("ssd"), memory_gib=64).document()
    assert (found["steps"], found["kinds"], found["seconds"]["steps"]) == (0, [], 0)
    assert found["memory"]["parts_bytes"]["gradients"] == 4 * WEIGHTS


def test_the_command_prints_a_table_or_json(tmp_path, capsys):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"config": dataclasses.asdict(config("finetune", epochs=1))}))
    arguments = ["plan", "--config", str(file), "--devices", "1", "--memory", "64", "method.epochs=2"]
    assert cli.main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 16
    assert printed["memory"]["limit_bytes"] == 64 * 2**30
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    for text in ("finetune on mlp, 85,002 parameters, 16 steps on one device", "64 retain", "It fits"):
        assert text in shown


def test_what_does_not_fit_is_printed_with_the_advice(capsys):
    advice = plan_report.Advice(what="2 microbatches", how="method.microbatches=2", total_bytes=2**30, fits=True)
    plan = plan_report.CostPlan(
        title="a plan",
        parameters=1,
        phases={"first": {"network": 2**36}, "second": {"network": 2**37}},
        limit_bytes=64 * 2**30,
        advice=(advice,),
        hint="Less takes: a smaller batch.",
    )
    plan_report.print_plan(plan, Console(width=100))
    shown = capsys.readouterr().out
    assert "It does not fit in 64 GiB. Less takes: a smaller batch." in shown
    assert "2 microbatches (method.microbatches=2): 1 GiB, fits" in shown
    assert "largest phase" in shown
    assert "128 GiB" in shown


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--memory", "0.001"], "mlp cannot fit, whatever is changed: parameters, gradients and optimizer state"),
            (["--memory", "0"], "--memory must be above 0 GiB and finite, got 0"),
            (["--memory", "inf"], "--memory must be above 0 GiB and finite, got inf"),
            (["method_name=retrain"], "method_name is 'retrain', and the settings are ScissorhandsSettings"),
            (["method_name=retran"], "method_name is 'retran'; choose one of retrain, "),
            (["--devices", "0"], "--devices must be at least 1, got 0"),
            (["--devices", "3"], "3 devices cannot share a batch of 128 examples"),
            (["method.microbatches=3"], "a batch of 128 examples cannot be divided into 3 equal microbatches"),
        ],
    )
    def test_before_anything_is_compiled(self, capsys, more, message):
        with Compilations() as compiled:
            assert cli.main(["plan", *NETWORK, "--forget", "random:0.1", *more]) == 2
        assert message in error_of(capsys)
        # Fresh weights are drawn where there are none, and orders of examples; the network is not even drawn where its
        # size is what is refused.
        programs = " ".join(compiled.names)
        assert not any(word in programs for word in ("forward", "gradient", "step"))
        assert "--memory" not in more or "init" not in programs

    def test_both_a_file_and_arguments_or_neither(self, tmp_path, capsys):
        assert cli.main(["plan", "--config", str(tmp_path / "x.json"), *NETWORK]) == 2
        assert "--config says what to run; leave --model out, or write it as model=VALUE" in error_of(capsys)
        for option, value, written in (("--batch-size", "8", "method.batch_size"), ("--seed", "1", "seed")):
            assert cli.main(["plan", "--config", str(tmp_path / "x.json"), option, value]) == 2
            assert f"leave {option} out, or write it as {written}=VALUE" in error_of(capsys)
        assert cli.main(["plan", *NETWORK]) == 2
        assert "--forget is missing" in error_of(capsys)
        assert cli.main(["plan", "--config", str(tmp_path / "x.json")]) == 2
        assert "No such file" in error_of(capsys)


def test_sizes_read_well():
    assert [plan_report.size_text(n) for n in (512, 1536, 3 * 2**30)] == ["512 bytes", "1.5 KiB", "3 GiB"]
