"""The script for a borrowed accelerator: what it skips, resumes and survives, with commands that are real processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import accelerator, audit, configs, timings
from scissorhands_jax.audit.measuring import Audit
from scissorhands_jax.jobs import cells

# Counts its own starts in its result, then sleeps, fails or ends.
WORKER = """
import json, pathlib, sys, time
path, then = pathlib.Path(sys.argv[1]), sys.argv[2]
starts = json.loads(path.read_text())["starts"] + 1 if path.exists() else 1
new = path.with_suffix(".new")
new.write_text(json.dumps({"starts": starts}))
new.replace(path)
if then == "sleep" and starts == 1:
    time.sleep(60)
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
        later, out, console=type("Told", (), {"print": lambda _, text, **__: order.append(text)})()
    )
    assert [text.partition(":")[0] for text in order] == ["new", "bad"]
    assert second["good"] == first["good"]
    assert second["bad"]["calls"] == second["bad"]["result"]["starts"] == 2
    assert on_disk(out) == second


def test_a_part_ends_with_the_time_and_goes_on_in_the_next_call(tmp_path):
    out, chosen = tmp_path / "out.json", [part(tmp_path, "slow", "sleep"), part(tmp_path, "next", "end")]
    started = time.monotonic()
    first = accelerator.run_parts(chosen, out, seconds=1.5)
    assert time.monotonic() - started < 10
    assert list(first) == ["slow"], "nothing begins without time"
    assert (first["slow"]["complete"], first["slow"]["error"]) == (False, None)
    assert first["slow"]["result"] == {"starts": 1}, "what there was is kept"
    second = accelerator.run_parts(chosen, out)
    assert [second[name]["complete"] for name in ("slow", "next")] == [True, True]
    assert second["slow"]["result"] == {"starts": 2}
    assert second["slow"]["seconds"] > first["slow"]["seconds"]


def test_being_killed_leaves_the_results_so_far(tmp_path):
    out = tmp_path / "out.json"
    slow = part(tmp_path, "slow", "sleep")
    code = "import sys; from pathlib import Path; from experiments import accelerator as a; a.run_parts("
    code += f"[a.Part(name='slow', command={slow.command!r}, result=Path({str(slow.result)!r}))], Path({str(out)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 60
    while not (out.exists() and on_disk(out)["slow"]["result"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert on_disk(out)["slow"] | {"seconds": 0} == {
        "complete": False,
        "calls": 1,
        "error": None,
        "result": {"starts": 1},
        "seconds": 0,
    }
    assert accelerator.run_parts([slow], out)["slow"]["complete"]


def test_parts_are_commands_for_configurations_that_exist(tmp_path):
    listed = accelerator.parts(tmp_path, "data", tiny=False)
    names = [part.name for part in listed]
    assert len(set(names)) == len(names)
    assert names[:2] == ["benchmark", "timings"]
    for part in listed[2:]:
        config = part.command[part.command.index("--config") + 1]
        assert config in configs.CONFIGS
        assert part.name.startswith(config)
    tiny = accelerator.parts(tmp_path, None, tiny=True)
    assert {part.command[2] for part in tiny} == {part.command[2] for part in listed}, "a rehearsal runs every command"


def test_the_audit_is_rehearsed_and_its_results_are_there_before_it_ends(tmp_path, monkeypatch):
    (part,) = [part for part in accelerator.parts(tmp_path, None, tiny=True) if "audit" in part.name]
    measure, seen = Audit.measure, []

    def watched(self, target, progress):
        if part.result.exists():
            seen.append(json.loads(part.result.read_text()))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(self, target, progress)

    monkeypatch.setattr(Audit, "measure", watched)
    monkeypatch.setattr(cells, "SECONDS_BETWEEN_RESULTS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        audit.main(list(part.command[3:]))
    assert [len(document["rows"]) for document in seen] == [1, 2]
    assert all(document["trusted"] is False and not document["evidence"] for document in seen)
    monkeypatch.setattr(Audit, "measure", measure)
    assert audit.main(list(part.command[3:])) == 0
    document = json.loads(part.result.read_text())
    measured = {row["network"] for row in document["rows"]}
    assert {row["network"] for row in seen[1]["rows"]} <= measured, "the second call goes on where the first ended"
    assert {row["method"] for row in document["rows"]} == {"original", "retrain", "finetune", "scissorhands"}
    assert document["gates"]


def test_timings_are_measured_and_kept(tmp_path):
    out, last = tmp_path / "timings.json", "retrain, bfloat16"
    listed = list(timings.cases(None, tiny=True))
    assert listed == ["threshold", "scissorhands, bfloat16", last]
    kept = timings._kept(out, tiny=True)
    kept["results"] = {"scissorhands, bfloat16": {"kept": True, "seconds": 10.5}}
    out.write_text(json.dumps(kept))
    assert timings.main(["--out", str(out), "--tiny"]) == 0
    document = json.loads(out.read_text())
    results = document["results"]
    assert [name for name in listed if "kept" not in results[name]] == ["threshold", last]
    assert (results[last]["epochs"], results[last]["steps"]) == (2, 10)
    assert results[last]["seconds"] > 0
    assert results[last]["compile_seconds_later"] < results[last]["compile_seconds"]
    assert results["threshold"]["weights"] == 50_000
    assert set(results["threshold"]["ratio"]) == {"read pass", "copy pass"}
    assert 1 <= results["threshold"]["passes"] <= 11
    share = results["threshold"]["passes"] / 2 / results["threshold"]["ratio"]["copy pass"]
    assert results["threshold"]["share_of_copy_bandwidth"] == pytest.approx(share)
    aims = {aim["case"]: (aim["value"], aim["met"]) for aim in document["aims"]}
    assert aims["scissorhands, bfloat16"] == (10.5, False)
    assert aims[last] == (results[last]["seconds"], True)
    assert aims["threshold"] == (share, share >= 0.5)
    assert timings._kept(out, tiny=False)["results"] == {}, "what a rehearsal measured is nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data-dir is missing"),
        (["--tiny", "--only", "nothing"], "'nothing' matches no part; there are benchmark, timings, demo-bfloat16"),
        (["--tiny", "--only", "("], "is not a regular expression"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, message):
    assert accelerator.main(["--out", str(tmp_path / "out.json"), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    (tmp_path / "out.json").write_text("[]")
    assert accelerator.main(["--out", str(tmp_path / "out.json"), "--tiny"]) == 2
    assert "holds no results of this command" in " ".join(capsys.readouterr().err.split())
