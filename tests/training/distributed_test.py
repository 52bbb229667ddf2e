"""Several processes on one machine make one run: same result, own share of the data; a death ends all."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from scissorhands_jax import models, torch_weights
from scissorhands_jax.cli import main as cli
from scissorhands_jax.errors import InputError
from scissorhands_jax.training import checkpoints, distributed, watcher
from tests import limits
from tests.ports import free_port
from tests.training import disagreeing

ROOT = Path(__file__).parents[2]
EXAMPLES = 64
EPOCHS = 8


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> tuple[str, ...]:
    """A small network and data set, as arguments of `unlearn`."""
    folder = tmp_path_factory.mktemp("job")
    rng = np.random.default_rng(0)
    images = {name: rng.random((EXAMPLES, 4, 4, 1), np.float32) for name in ("image", "test_image")}
    labels = {name: np.arange(EXAMPLES) % 4 for name in ("label", "test_label")}
    np.savez(folder / "data.npz", **images, **labels)
    model = models.build("mlp", num_classes=4, image_shape=(4, 4, 1))
    weights = torch_weights.to_state_dict(*model.init(jax.random.key(3)))
    torch_weights.write_safetensors(folder / "mlp.safetensors", weights)
    return (
        *("unlearn", "--insist", "--weights", str(folder / "mlp.safetensors"), "--model", "mlp"),
        *("--dataset", f"npz:{folder / 'data.npz'}", "--forget", "random:0.25"),
        *("--batch-size", "16", "--epochs", str(EPOCHS), "method.fraction=0.1", "method.learning_rate=0.05"),
    )


@pytest.fixture(scope="module")
def alone(job, tmp_path_factory) -> tuple[Path, Path]:
    """The run of one process with one device, and a copy of its folder when it had saved its first checkpoint."""
    folder = tmp_path_factory.mktemp("alone")
    save = checkpoints.Checkpointer.save

    def copying(keeper, *arguments):
        save(keeper, *arguments)
        if not (folder / "begun").exists():
            shutil.copytree(folder / "run", folder / "begun")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpointer, "save", copying)
        assert cli.main([*job, "--out", str(folder / "run")]) == 0
    return folder / "run", folder / "begun"


def begin(*command: str, devices=1) -> subprocess.Popen:
    """A process of Python with some virtual devices; what it prints are pipes."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    # Processes of one run compile the same programs at the same time, so that a cache between them would not help.
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, **pipes)


def of_many(port: int, count: int, number: int) -> tuple[str, ...]:
    """The options of a process of many."""
    return (
        *("--coordinator", f"127.0.0.1:{port}", "--num-processes", str(count), "--process-id", str(number)),
        *("--seconds-to-meet", "60"),
    )


def launch(job, out, count, *more, devices=1):
    """`count` processes of one run."""
    port = free_port()
    command = ("tests.training.distributed_test", *job, "--out", str(out), *more)
    return [begin(*command, *of_many(port, count, number), devices=devices) for number in range(count)]


def outcome(processes) -> list[tuple[int, str, str]]:
    """Exit status, standard output and standard error of each."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=2 * limits.PATIENCE)
        found.append((process.returncode, out, err))
    return found


def network(out):
    return torch_weights.read_state_dict(out / "network.safetensors")


def check_same(out, expected):
    left, right = network(out), network(expected)
    assert left.keys() == right.keys()
    for name, value in right.items():
        np.testing.assert_allclose(left[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def saved_steps(out) -> list[int]:
    folder = out / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def kill_one(victim, job, out, *more, devices):
    """Two processes go on with a run until one is killed after a checkpoint: how each ended, after how long."""
    first = saved_steps(out)
    processes = launch(job, out, 2, *more, devices=devices)
    deadline = time.monotonic() + limits.PATIENCE
    while saved_steps(out)[-1:] == first and time.monotonic() < deadline and processes[victim].poll() is None:
        time.sleep(0.02)
    processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    found = outcome(processes)
    return found, time.monotonic() - began


@pytest.fixture(scope="module")
def killed(job, alone, tmp_path_factory):
    """What one process has begun, two go on with, on two devices each, until the second is killed."""
    out = shutil.copytree(alone[1], tmp_path_factory.mktemp("killed") / "run")
    return out, *kill_one(1, job, out, "--mesh", "2x2", "--fsdp", "--resume", devices=2)


def check_one_sentence(out, printed, error):
    assert re.sub(r"rows .*\n", "", printed) == ""
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: this process stops because it lost touch with another one, which died or cannot be reached; start all "
        "processes of the run again with --resume to go on from the last checkpoint"
    ]
    assert "Traceback" not in error
    assert not (out / "results.json").exists()


def test_a_killed_process_ends_the_others_with_one_sentence(killed):
    out, ((status, printed, error), (dead, _, _)), seconds = killed
    assert dead == -signal.SIGKILL
    # A collective fails and the process ends itself, or JAX aborts it, whichever sees the death first.
    assert status in (1, -signal.SIGABRT), error
    assert seconds < limits.PATIENCE
    check_one_sentence(out, printed, error)


def test_the_death_of_the_first_process_ends_the_others_too(job, alone, tmp_path):
    """It serves the runtime of all, which therefore ends them from within; two begin here without an earlier run."""
    out = tmp_path / "run"
    ((dead, _, _), (status, printed, error)), seconds = kill_one(0, job, out, devices=1)
    assert dead == -signal.SIGKILL
    assert status not in (0, -signal.SIGKILL), error
    assert seconds < limits.PATIENCE
    check_one_sentence(out, printed, error)
    assert saved_steps(out)
    assert cli.main([*job, "--out", str(out), "--resume"]) == 0
    check_same(out, alone[0])


def test_a_run_goes_on_with_any_number_of_processes(killed, job, alone, tmp_path):
    out, _, _ = killed
    assert saved_steps(alone[1])[-1] < saved_steps(out)[-1] < saved_steps(alone[0])[-1]
    for count, more in ((1, ()), (4, ("--mesh", "4"))):
        copy = shutil.copytree(out, tmp_path / str(count))
        if count == 1:
            assert cli.main([*job, "--out", str(copy), "--resume"]) == 0
        else:
            found = outcome(launch((*job, *more), copy, count, "--resume"))
            assert [status for status, _, _ in found] == [0] * count, found
            # One speaks for all.
            assert ["written to" in error for _, _, error in found] == [True, False, False, False]
            results = json.loads((copy / "results.json").read_text())
            assert results["layout"] == {"data": 4, "model": 1, "fsdp": False, "processes": 4}
            assert results["cost"]["resumed_at_step"] == saved_steps(out)[-1]
            # Of every batch each process has read a quarter.
            shares = [json.loads(re.search(r"^rows (.*)$", printed, re.M)[1]) for _, printed, _ in found]
            assert all(share and all(4 * read == rows for read, rows in share) for share in shares)
            # The Orbax network, which four processes have written, is the exported one.
            model = models.build("mlp", num_classes=4, image_shape=(4, 4, 1))
            saved = checkpoints.load_network(copy / "network", *jax.eval_shape(model.init, jax.random.key(0)))
            exported = torch_weights.to_state_dict(*saved)
            assert all(np.array_equal(exported[name], value) for name, value in network(copy).items())
        check_same(copy, alone[0])


def test_processes_that_were_given_something_else_end_together_and_name_it(tmp_path):
    """One start serves for all differences: whoever is refused is still there for the next one."""
    disagreeing.write_files(tmp_path)
    where = f"127.0.0.1:{free_port()}"
    command = ("tests.training.disagreeing", str(tmp_path), where)
    found = outcome([begin(*command, str(number)) for number in range(2)])
    assert [status for status, _, _ in found] == [2, 2], found
    assert [error for _, _, error in found] == ["", ""]
    first, second = ([json.loads(line) for line in printed.splitlines()] for _, printed, _ in found)
    expected = {
        "forget": "forget_sha256 is [0-9a-f]{16} in process 0 and [0-9a-f]{16} in process 1",
        "weights": "original_sha256 is [0-9a-f]{16} in process 0 and [0-9a-f]{16} in process 1",
        "data": "train_sha256 is [0-9a-f]{16} in process 0 and [0-9a-f]{16} in process 1",
        "learning_rate": "method.learning_rate is 0.01 in process 0 and 0.02 in process 1",
        "batch_size": "method.batch_size is 4 in process 0 and 8 in process 1",
        "epochs": "method.epochs is 1 in process 0 and 2 in process 1",
        "seed": "seed is 0 in process 0 and 1 in process 1",
        "mesh": "environment.layout is 'data 2 x model 1, .*' in process 0 and 'data 1 x model 2, .*' in process 1",
        "flag": "options.jax_threefry_partitionable is 'False' in process 0 and 'True' in process 1",
        "folder": r"the file run.json of a folder that all must share is 'SHA-256 .*' in process 0 and 'not there' in",
        "loss of its own": "method...factor is 1.0 in process 0 and 2.0 in process 1",
        "key": r"key is \[0, 0\] in process 0 and \[0, 1\] in process 1",
    }
    assert first[0]["message"] == second[0]["message"] == "nothing"
    assert tuple(expected) == disagreeing.CASES[1:-1]
    for one, other in zip(first[1:-1], second[1:-1], strict=True):
        assert one["message"] == other["message"]
        assert one["message"].startswith("process 1 is about to do something else than process 0: ")
        assert one["message"].endswith("; start all processes with the same arguments, files and versions")
        assert re.search(expected[one["case"]], one["message"]), one
        assert max(one["seconds"], other["seconds"]) < limits.PATIENCE
    last = "this process stops because process 1 has ended with exit status 2; its own message says why"
    assert first[-1]["message"] == last
    assert "nowhere.safetensors" in second[-1]["message"]
    assert first[-1]["seconds"] < limits.PATIENCE
    assert not (tmp_path / "run").exists(), "nobody has computed anything"


def test_a_used_port_and_a_wrong_count_end_all_processes_of_the_command(job, tmp_path):
    command = ("scissorhands_jax", *job, "--out", str(tmp_path / "run"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        used, port = other.getsockname()[1], free_port()
        processes = [begin(*command, *of_many(used, 2, 0)), begin(*command, *of_many(used, 2, 1))]
        processes += [begin(*command, *of_many(port, 2, 0)), begin(*command, *of_many(port, 3, 1))]
        found = outcome(processes)
    assert [status for status, _, _ in found] == [2, 1, 2, 2], found
    errors = [error for _, _, error in found]
    assert all(re.fullmatch(r"error: .*\n", error) for error in errors), errors
    assert f"process 0 cannot listen at 127.0.0.1:{used} (" in errors[0]
    assert f"what answers at 127.0.0.1:{used} is not process 0 of this run" in errors[1]
    assert errors[2] == errors[3]
    assert "processes is 2 in process 0 and 3 in process 1; start all of them alike" in errors[2]
    assert not (tmp_path / "run").exists()


class TestWatcher:
    def last_words(self, *lines):
        command = [sys.executable, "-I", watcher.__file__, "LOST", "KILLED"]
        done = subprocess.run(command, input=b"".join(lines), capture_output=True, check=True)
        return done.stderr

    def test_it_passes_on_and_is_silent_about_a_good_end(self):
        assert self.last_words(b"one\n", b"two\n", watcher.DONE) == b"one\ntwo\n"
        assert self.last_words(b"no end of line", watcher.DONE) == b""

    def test_the_last_words_of_the_runtime_become_one_sentence(self):
        text = b"F1121 client.h:80] " + watcher.LAST_WORDS + b" detected fatal errors.\n"
        assert self.last_words(b"one\n", text, b"*** Check failure stack trace: ***\n") == b"one\nerror: LOST\n"

    def test_a_sudden_end_is_named(self):
        assert self.last_words(b"one\n") == b"one\nerror: KILLED\n"
        assert self.last_words(b"one\ntw") == b"one\ntw\nerror: KILLED\n"


class TestStart:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("127.0.0.1:1234", None, None), "all three are needed"),
            ((None, 2, 0), "all three are needed"),
            (("127.0.0.1", 2, 0), "write HOST:PORT"),
            (("127.0.0.1:1234", 2, 2), "process 2 of 2 cannot be; processes are counted from 0"),
            (("127.0.0.1:1234", 0, 0), "process 0 of 0 cannot be"),
        ],
    )
    def test_what_does_not_fit_together_is_refused(self, arguments, message):
        with pytest.raises(InputError, match=message):
            distributed.start(*arguments)

    def test_more_devices_than_exist_are_refused_by_the_command(self, job, tmp_path, capsys):
        assert cli.main([*job, "--out", str(tmp_path / "run"), "--mesh", "4x2"]) == 2
        assert capsys.readouterr().err == "error: a mesh of 4 x 2 needs 8 devices, but there are 1; ask for fewer\n"
        assert not (tmp_path / "run").exists()


def main() -> int:
    """The command, which then prints how many rows this process has read of how many, for every array of a batch."""
    from scissorhands_jax.training import sharding
    from tests.compilations import save_time

    save_time()
    read = []

    class Counting(np.ndarray):
        def __getitem__(self, positions):
            self.share[0] += len(positions)
            return np.asarray(super().__getitem__(positions))

    rows = sharding.Layout.rows

    def counted(layout, leaf, positions):
        counting = leaf.view(Counting)
        counting.share = [0, positions.size]
        read.append(counting.share)
        return rows(layout, counting, positions)

    sharding.Layout.rows = counted
    status = cli.main(sys.argv[1:])
    steps = [share for share in read if share[1] == 16]
    sys.stdout.write(f"rows {json.dumps(steps)}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
