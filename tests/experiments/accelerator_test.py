"""The script for a borrowed accelerator: what it skips, resumes and survives, with commands that are real processes."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from experiments import accelerator, audit, configs, programs, timings
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import timing
from experiments.benchmark.settings import Settings
from scissorhands_jax import masks
from scissorhands_jax.audit.networks import Audit
from scissorhands_jax.jobs import cells, config
from scissorhands_jax.report import REDRAWN, provenance
from tests import limits

# Counts its own starts in its result, then sleeps, fails or ends.
WORKER = """
import json, pathlib, sys, time
path, then = pathlib.Path(sys.argv[1]), sys.argv[2]
starts = json.loads(path.read_text())["starts"] + 1 if path.exists() else 1
new = path.with_suffix(".new")
new.write_text(json.dumps({"starts": starts}))
new.replace(path)
if then == "sleep" and starts == 1:
    time.sleep(600)
if then == "fail":
    print("out of luck")
    sys.exit(3)
"""


def part(tmp_path, name, then):
    result = tmp_path / "work" / f"{name}.json"
    return accelerator.Part(name=name, command=(sys.executable, "-S", "-c", WORKER, str(result), then), result=result)


def on_disk(path):
    return json.loads(path.read_text())["parts"]


def test_what_is_complete_is_not_run_again_and_what_failed_comes_last(tmp_path):
    out = tmp_path / "out.json"
    chosen = [part(tmp_path, name, then) for name, then in (("bad", "fail"), ("good", "end"))]
    first = accelerator.run_parts(chosen, out)
    assert [first[name]["complete"] for name in ("bad", "good")] == [False, True]
    assert first["bad"]["error"] == "exit status 3\nout of luck"
    assert first["good"]["result"] == {"starts": 1}
    later = [*chosen, part(tmp_path, "new", "end")]
    order = []
    second = accelerator.run_parts(
        later, out, console=type("Told", (), {"print": lambda _, text, **__: order.append(str(text))})()
    )
    assert [text.partition(":")[0] for text in order] == ["new", "bad"]
    assert second["good"] == first["good"]
    assert second["bad"]["calls"] == second["bad"]["result"]["starts"] == 2
    assert on_disk(out) == second


def test_a_part_ends_with_the_time_and_goes_on_in_the_next_call(tmp_path):
    out, chosen = tmp_path / "out.json", [part(tmp_path, "slow", "sleep"), part(tmp_path, "next", "end")]
    started = time.monotonic()
    first = accelerator.run_parts(chosen, out, seconds=3)
    assert time.monotonic() - started < limits.PATIENCE
    assert list(first) == ["slow"], "nothing begins without time"
    assert (first["slow"]["complete"], first["slow"]["error"]) == (False, None)
    assert first["slow"]["result"] == {"starts": 1}, "what there was is kept"
    second = accelerator.run_parts(chosen, out)
    assert [second[name]["complete"] for name in ("slow", "next")] == [True, True]
    assert second["slow"]["result"] == {"starts": 2}
    assert second["slow"]["seconds"] > first["slow"]["seconds"]


def test_a_part_that_hangs_leaves_time_for_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "_MOST_SECONDS", 3.0)
    chosen = [part(tmp_path, "slow", "sleep"), part(tmp_path, "next", "end")]
    found = accelerator.run_parts(chosen, tmp_path / "out.json", seconds=50)
    assert [found[name]["complete"] for name in ("slow", "next")] == [False, True]


def test_being_killed_leaves_the_results_so_far(tmp_path):
    out = tmp_path / "out.json"
    slow = part(tmp_path, "slow", "sleep")
    code = "import sys; from pathlib import Path; from experiments import accelerator as a; a.run_parts("
    code += f"[a.Part(name='slow', command={slow.command!r}, result=Path({str(slow.result)!r}))], Path({str(out)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + limits.PATIENCE
    while not (out.exists() and on_disk(out)["slow"]["result"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert on_disk(out)["slow"] | {"seconds": 0} == {
        "complete": False,
        "calls": 1,
        "error": None,
        "table": "work",
        "of": slow.described(),
        "result": {"starts": 1},
        "seconds": 0,
    }
    assert accelerator.run_parts([slow], out)["slow"]["complete"]


def test_results_come_back_from_the_folder_of_the_work(tmp_path):
    out, work = tmp_path / "back" / "out.json", tmp_path / "work"
    chosen = [part(tmp_path, "good", "end"), part(tmp_path, "bad", "fail")]
    first = accelerator.run_parts(chosen, out, work=work)
    assert on_disk(out) == on_disk(work / "out.json") == first
    log = out.with_suffix(".log").read_text()
    assert [line for line in log.splitlines() if "==" in line] == ["== good, call 1", "== bad, call 1"]
    assert first["bad"]["error"] == "exit status 3\nout of luck"
    shutil.rmtree(out.parent)
    second = accelerator.run_parts(chosen, out, work=work)
    assert second["good"] == first["good"]
    assert second["bad"]["calls"] == 2
    assert on_disk(out) == second


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """The program with two quick parts, as `(arguments) -> status`; their result says whether it was a rehearsal."""

    def parts(work, data_dir, *, tiny):
        words = ("--tiny",) if tiny else ()
        return [
            dataclasses.replace(one, command=(*one.command, *words))
            for one in (part(work, "steps", "end"), part(work, "table", "end"))
        ]

    data = tmp_path / "data"
    accelerator._tiny_cifar10(data)
    monkeypatch.setattr(accelerator, "parts", parts)
    common = ["--out", str(tmp_path / "out.json"), "--work", str(tmp_path / "work"), "--data-dir", str(data)]
    return lambda *arguments: accelerator.main([*common, *arguments])


def test_a_rehearsal_is_no_result_and_other_code_and_images_are_measured_again(at_home, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    assert at_home("--tiny") == 0
    assert at_home("--tiny") == 0
    assert {name: entry["result"]["starts"] for name, entry in on_disk(out).items()} == {"steps": 1, "table": 1}
    assert at_home() == 0
    real = on_disk(out)
    assert [entry["of"]["tiny"] for entry in real.values()] == [False, False]
    assert [entry["calls"] for entry in real.values()] == [1, 1]
    assert real["steps"]["result"] == {"starts": 1}, "what the rehearsal left is not continued"
    assert [[was["of"]["tiny"] for was in entry["earlier"]] for entry in real.values()] == [[True], [True]]
    assert at_home("--tiny") == 2
    assert "has results of steps, and this is a rehearsal; name another file" in " ".join(
        capsys.readouterr().err.split()
    )
    assert on_disk(out) == real

    made = dataclasses.replace(provenance.running_code(), git_commit="later", git_changed=False)
    monkeypatch.setattr(provenance, "running_code", lambda: made)
    assert at_home("--only", "steps") == 0
    later = on_disk(out)
    assert later["table"] == real["table"]
    assert (later["steps"]["of"]["code"], later["steps"]["calls"]) == ("later", 1)
    assert later["steps"]["earlier"][-1]["of"] == real["steps"]["of"]

    packed = tmp_path / "data" / "cifar10_files.json"
    packed.write_text(packed.read_text().replace('": "', '": "0', 1))
    assert at_home("--only", "table") == 0
    assert on_disk(out)["table"]["of"]["data_sha256"] != real["table"]["of"]["data_sha256"]
    shutil.rmtree(tmp_path / "work")
    assert at_home("--only", "table") == 0
    assert on_disk(out)["table"]["calls"] == 1, "FILE alone says that it is complete, wherever the rest lies"


def test_entries_that_do_not_say_what_they_are_of_are_measured_again(at_home, tmp_path):
    entry = {"complete": True, "seconds": 1.0, "calls": 1, "error": None, "table": "work", "result": {"starts": 7}}
    (tmp_path / "out.json").write_text(json.dumps({"parts": {"steps": entry}}))
    assert at_home() == 0
    found = on_disk(tmp_path / "out.json")["steps"]
    assert (found["result"], found["earlier"][0]["result"]) == ({"starts": 1}, {"starts": 7})


def test_a_damaged_result_of_a_part_is_measured_again(tmp_path):
    one = part(tmp_path, "good", "end")
    one.result.parent.mkdir()
    one.result.write_text('{"starts"')
    assert accelerator.run_parts([one], tmp_path / "out.json")["good"]["result"] == {"starts": 1}


def test_parts_are_commands_for_configurations_that_exist(tmp_path):
    listed = accelerator.parts(tmp_path, tmp_path, tiny=False)
    names = [part.name for part in listed]
    assert len(set(names)) == len(names)
    assert names[:3] == ["steps", "scissorhands", "table"]
    order = [names.index(name) for name in ("table-2", "weights", "unet", "retrain", "table-seed1")]
    assert order == sorted(order)
    for part in listed:
        if "--config" in part.command:
            assert part.command[part.command.index("--config") + 1] in configs.CONFIGS
            config.override(configs.load("cifar10"), [word for word in part.command if re.match(r"\w[\w.]*=", word)])
    tiny = accelerator.parts(tmp_path, tmp_path, tiny=True)
    assert {part.command[2] for part in tiny} == {part.command[2] for part in listed}, "a rehearsal runs every command"
    needing = {part.name for part in listed if part.needs_data}
    assert {part.name for part in tiny if part.needs_data} == needing & {part.name for part in tiny}


def test_every_method_is_in_one_part_of_the_table():
    patterns = accelerator.method_patterns()
    (scenario,) = configs.load("cifar10").scenarios
    for label in scenario.methods:
        assert sum(bool(re.search(pattern, label)) for pattern in patterns) == 1, label
    assert {name for methods in accelerator._METHODS for name in methods} <= set(scenario.methods)
    counts = [sum(bool(re.search(pattern, label)) for label in scenario.methods) for pattern in patterns]
    assert max(counts) <= 6, "a part takes two to three minutes"


def test_steps_are_those_of_an_accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (steps,) = [part for part in accelerator.parts(Path("work"), Path("data"), tiny=False) if part.name == "steps"]
    pattern = steps.command[steps.command.index("--only") + 1]
    chosen = [name for name in benchmark.cases(Settings()) if re.search(pattern, name)]
    sizes = [f"resnet18@{size}{dtype}/train" for dtype in ("", "-bfloat16") for size in (256, 1024)]
    assert sorted(chosen) == sorted(["product/float32", "product/bfloat16", *sizes])


# What a machine with an accelerator has for our own code; the libraries themselves may import what they need.
THERE = "jax jaxlib flax optax orbax chex etils numpy scipy ml_dtypes"
BARE = f"""
import builtins, sys
there = {{*"{THERE}".split(), *sys.stdlib_module_names, "scissorhands_jax", "experiments"}}
known = builtins.__import__
def bare(name, globals=None, locals=None, fromlist=(), level=0):
    own = (globals or {{}}).get("__name__", "").partition(".")[0] in ("scissorhands_jax", "experiments", "__main__")
    if own and level == 0 and name.partition(".")[0] not in there:
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return known(name, globals, locals, fromlist, level)
builtins.__import__ = bare
"""
REHEARSAL = """
import pathlib, runpy, sys
from experiments import accelerator
work = pathlib.Path(sys.argv[1])
for part in accelerator.parts(work, accelerator._tiny_cifar10(work / "data"), tiny=True):
    sys.argv = [*part.command[2:], *(("--only", "gradient") if part.name == "unet" else ())]
    part.result.parent.mkdir(parents=True, exist_ok=True)
    print(part.name, file=sys.stderr)
    try:
        runpy.run_module(part.command[2], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert not ended.code, ended.code
"""


def test_all_parts_run_with_jax_and_its_companions_alone(tmp_path):
    """In one process, which imports everything once; without the UNet's repair step, which takes long to compile."""
    work = tmp_path / "work"
    command = [sys.executable, "-c", BARE + REHEARSAL, str(work)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(accelerator.__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    tiny = accelerator.parts(work, work / "data", tiny=True)
    results = {part.name: json.loads(part.result.read_text()) for part in tiny}
    assert [row["name"] for row in results["steps"]["results"]] == ["product/float32", "mlp@2/train"]
    assert list(results["weights"]["results"]) == ["threshold", "step"]
    assert results["unet"]["results"]["gradient, recomputed"]["flops"] > 0
    assert list(results["scissorhands"]["results"]) == ["scissorhands, bfloat16"]
    assert list(results["retrain"]["results"]) == ["retrain, bfloat16"]
    rows = results["table"]["rows"]
    assert [row["method"] for row in rows] == ["original", "retrain", REDRAWN, "scissorhands"]
    assert all(row["mia"] is None and row["avg_gap"] is None and row["acc_forget"] is not None for row in rows)
    assert len(list((work / "table" / "predictions").glob("*.npz"))) == 4


def test_a_library_that_is_missing_is_noticed_and_the_device_is_left_to_the_parts():
    code = "from experiments import accelerator; from jax._src import xla_bridge; "
    code += "print(xla_bridge.backends_are_initialized()); import sklearn"
    done = subprocess.run([sys.executable, "-c", BARE + code], capture_output=True, text=True)
    assert done.stdout == "False\n"
    assert "ModuleNotFoundError: No module named 'sklearn'" in done.stderr


def test_parts_wait_for_data_that_have_not_arrived(tmp_path, capsys):
    out, data = tmp_path / "out.json", tmp_path / "data"
    accelerator._tiny_cifar10(data)
    (data / "cifar10_test.npz").rename(tmp_path / "cifar10_test.npz")
    arguments = ["--out", str(out), "--data-dir", str(data), "--tiny", "--only", "^(scissorhands|table)$"]
    assert accelerator.main(arguments) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"scissorhands, table wait for cifar10_test.npz in {data}"
    assert on_disk(out) == {}


def test_the_audit_is_rehearsed_and_its_results_are_there_before_it_ends(tmp_path, monkeypatch):
    result = tmp_path / "results.json"
    command = ["--config", "demo_audit", "--tier", "smoke", "--out", str(tmp_path)]
    command += ["training.epochs=1", "train_limit=300", "test_limit=100"]
    measure, seen = Audit.measure, []

    def watched(self, target, progress):
        if result.exists():
            seen.append(json.loads(result.read_text()))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(self, target, progress)

    monkeypatch.setattr(Audit, "measure", watched)
    monkeypatch.setattr(cells, "SECONDS_BETWEEN_RESULTS", 0.0)
    assert audit.main(command) == 130
    assert [len(document["rows"]) for document in seen] == [1, 2]
    assert all(document["trusted"] is False and not document["evidence"] for document in seen)
    monkeypatch.setattr(Audit, "measure", measure)
    assert audit.main(command) == 0
    document = json.loads(result.read_text())
    measured = {row["network"] for row in document["rows"]}
    assert {row["network"] for row in seen[1]["rows"]} <= measured, "the second call goes on where the first ended"
    assert {row["method"] for row in document["rows"]} == {"original", "retrain", "finetune", "scissorhands"}
    assert document["gates"]


def test_timings_are_measured_and_kept(tmp_path, monkeypatch, capsys):
    out, last = tmp_path / "timings.json", "retrain, bfloat16"
    listed = list(timings.cases(None, tiny=True))
    assert listed == ["threshold", "step", "scissorhands, bfloat16", last]
    kept = {"dataset": "digits", "seconds": 10.5, "kept": True}
    with programs.open_results(out, {"tiny": True}, timed=True) as results:
        results.add("scissorhands, bfloat16", kept)
    rounds = []

    def compare(name, what, call, references, settings, on_round):
        """Four times the seconds of every reference."""
        rounds.append((name, [jax.block_until_ready(made) and type(made) for made in (call(), *references.values())]))
        quarter, one = (timing.Spread(median=n, lower=n, upper=n, repeats=1) for n in (0.25, 1.0))
        four = timing.Spread(median=4.0, lower=4.0, upper=4.0, repeats=1)
        against = tuple(timing.Against(name=reference, seconds=quarter, ratio=four) for reference in references)
        return timing.Result(name=name, what=what, seconds=one, against=against)

    monkeypatch.setattr(timings, "compare", compare)
    assert timings.main(["--out", str(out), "--tiny"]) == 0
    document = json.loads(out.read_text())
    results = document["results"]
    assert [name for name in listed if "kept" not in results[name]] == ["threshold", "step", last]
    assert (results[last]["epochs"], results[last]["steps"]) == (2, 10)
    assert results[last]["seconds"] > 0
    assert results[last]["compile_seconds"] > 0 <= results[last]["compile_seconds_later"]
    assert [name for name, _ in rounds] == ["threshold", "step"]
    assert results["threshold"]["weights"] == results["step"]["weights"] == 50_000
    assert results["threshold"]["ratio"] == {"read pass": 4.0, "copy pass": 4.0}
    # A copy reads and writes, so a pass that only reads is half of one; and it takes a quarter of the time.
    assert results["threshold"]["share_of_copy_bandwidth"] == 11 / 2 / 4
    assert results["threshold"]["copy_bytes_per_second"] == 50_000 * 4 * 2 / 0.25
    assert results["step"]["share_of_copy_bandwidth"] == 6.25 / 2 / 4
    aims = {aim["case"]: (aim["value"], aim["met"]) for aim in document["aims"]}
    assert aims["scissorhands, bfloat16"] == (10.5, False)
    assert aims[last] == (results[last]["seconds"], True)
    assert aims["threshold"] == (11 / 8, True)
    before = out.read_bytes()
    assert timings.main(["--out", str(out), "--data-dir", str(tmp_path)]) == 2
    assert "tiny was True and is now False" in " ".join(capsys.readouterr().err.split())
    assert timings.main(["--out", str(out), "--tiny", "--data-dir", str(tmp_path)]) == 2
    assert "scissorhands, bfloat16.dataset was 'digits' and is now 'cifar10'" in " ".join(
        capsys.readouterr().err.split()
    )
    assert out.read_bytes() == before


def test_a_threshold_takes_as_many_passes_as_its_rate_is_of(monkeypatch):
    passes, count = [], masks._count_reaching
    monkeypatch.setattr(masks, "_count_reaching", lambda *arguments: (passes.append(1), count(*arguments))[1])
    with jax.disable_jit():
        masks.kth_largest(timings._random_weights(500, seed=0), 15)
    assert len(passes) == timings.PASSES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data-dir is missing"),
        (["--tiny", "--only", "nothing"], "'nothing' matches no part; there are steps, scissorhands, table, weights"),
        (["--tiny", "--only", "("], "is not a regular expression"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, message):
    assert accelerator.main(["--out", str(tmp_path / "out.json"), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    (tmp_path / "out.json").write_text("[]")
    assert accelerator.main(["--out", str(tmp_path / "out.json"), "--tiny"]) == 2
    assert "holds no results of this command" in " ".join(capsys.readouterr().err.split())
