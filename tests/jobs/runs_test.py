"""The folder of a run: one writer, what it holds, and what a process that was killed leaves in it."""

import os
import sys
import threading

import pytest

from scissorhands_jax import files
from scissorhands_jax.errors import BusyError, CheckpointError, InputError
from scissorhands_jax.jobs import runs
from scissorhands_jax.terminal import Console
from scissorhands_jax.training.identity import identify

DESCRIPTION = {"model": "mlp", "seed": 3, "shares": (1, 2)}


def opened(folder, description=None, **options):
    with runs.open_folder(folder, identify(description or DESCRIPTION), **options) as fresh:
        return fresh


def test_a_run_is_started_continued_and_replaced(tmp_path):
    folder = tmp_path / "a" / "run"
    assert opened(folder)
    assert runs.read_run(folder).items() >= {"model": "mlp", "seed": 3, "shares": [1, 2]}.items()
    (folder / "result").touch()
    assert not opened(folder, resume=True)
    assert (folder / "result").exists()
    with pytest.raises(InputError, match="already holds a run; add --resume to continue it or --overwrite"):
        opened(folder, resume=False)
    with pytest.raises(InputError, match="already holds a run; add --overwrite to replace it"):
        opened(folder)
    assert opened(folder, {**DESCRIPTION, "seed": 4}, overwrite=True)
    assert [path.name for path in folder.iterdir()] == [runs.RUN_FILE]


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_only_one_caller_at_a_time_writes(tmp_path, options):
    folder = tmp_path / "run"
    errors = []

    def second():
        try:
            opened(folder, **options)
        except BusyError as error:
            errors.append(str(error))

    with runs.open_folder(folder, identify(DESCRIPTION)):
        (folder / "result").touch()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert (folder / "result").exists()
    (message,) = errors
    assert "is being written to by process" in message
    assert not opened(folder, resume=True)
    assert not (folder / files.LOCK_FILE).exists()


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_what_a_killed_process_leaves_before_the_run_has_begun_is_in_nobodys_way(tmp_path, options):
    (tmp_path / files.LOCK_FILE).write_text("")
    (tmp_path / f".{runs.RUN_FILE}.0a1b2c3d.partial").write_text('{"mod')
    assert opened(tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == [runs.RUN_FILE]


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_other_files_are_left_alone(tmp_path, options):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        opened(tmp_path / "run", **options)
    with pytest.raises(InputError, match="is a file; name a folder"):
        opened(tmp_path / "run" / "thesis.tex", **options)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    (tmp_path / "run" / ".movie.mp4.0a1b2c3d.partial").write_text("hours")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        opened(tmp_path / "run", **options)
    assert len(list((tmp_path / "run").iterdir())) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names are text")
@pytest.mark.parametrize(("name", "why"), [(b"r\xffn", "is no text in UTF-8"), (b"r[1]n", "has the character \\[")])
def test_a_folder_with_a_name_that_orbax_cannot_write_to_is_refused_before_anything_is_made(tmp_path, name, why):
    with pytest.raises(InputError, match=f"no run can be in .*, whose name {why}.*; name another folder"):
        opened(tmp_path / os.fsdecode(name) / "deep")
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_folder_is_replaced_behind_the_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert opened(tmp_path / "run")
    (tmp_path / "disk" / "folder").symlink_to(tmp_path)
    assert opened(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == [runs.RUN_FILE]


@pytest.mark.parametrize("read", ["run", "run/model", "run/deep/er/file", "link", "run/way/out", "run/../run/model"])
def test_what_a_run_reads_is_not_removed_for_its_result(tmp_path, read):
    opened(tmp_path / "run")
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run" / "model")
    (tmp_path / "run" / "way").mkdir()
    (tmp_path / "run" / "way" / "out").symlink_to(tmp_path / "elsewhere")
    inputs = [None, str(tmp_path / "elsewhere"), tmp_path / "runs", tmp_path, tmp_path / read]
    for options in ({"overwrite": True}, {}):
        with pytest.raises(InputError, match=r"is read and (is|lies in) .*run.*; name another place for one of them"):
            opened(tmp_path / "run", inputs=inputs, **options)
    assert (tmp_path / "run" / "model").exists()
    assert not opened(tmp_path / "run", inputs=inputs, resume=True)
    assert opened(tmp_path / "run", inputs=inputs[:-1], overwrite=True)


@pytest.mark.parametrize(("fresh", "step", "left"), [(True, None, False), (True, "7", True), (False, None, True)])
def test_a_run_that_was_refused_leaves_nothing_unless_it_saved_something(tmp_path, fresh, step, left):
    opened(tmp_path)
    (tmp_path / "checkpoints" / (step or "3.orbax-checkpoint-tmp-1")).mkdir(parents=True)
    with (
        pytest.raises(InputError, match="bad"),
        runs.cleared_if_refused(tmp_path, fresh, "none/*", runs.CHECKPOINTS_SAVED),
    ):
        raise InputError("bad")
    assert (tmp_path / runs.RUN_FILE).exists() == (tmp_path / "checkpoints").exists() == left
    with pytest.raises(KeyboardInterrupt), runs.cleared_if_refused(tmp_path, True):
        raise KeyboardInterrupt


def test_a_run_that_is_half_removed_can_be_replaced_again(tmp_path, monkeypatch):
    opened(tmp_path / "run")
    (tmp_path / "run" / "network").mkdir()
    (tmp_path / "run" / "zebra").touch()
    removed = []

    def stop(path, *_):
        removed.append(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "remove", stop)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path / "run", overwrite=True)
    assert removed
    assert opened(tmp_path / "run", overwrite=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [runs.RUN_FILE]


def test_a_run_that_has_ended_gives_its_results_and_leaves_no_checkpoints(tmp_path):
    console = Console(quiet=True)
    steps, outputs = tmp_path / runs.CHECKPOINTS_FOLDER, ["model/weights"]
    steps.mkdir()
    assert runs.ended_results(tmp_path, outputs, console) is None
    for damaged in ('{"loss": ', "[1]"):
        (tmp_path / runs.RESULTS_FILE).write_text(damaged)
        with pytest.raises(CheckpointError, match=r"is damaged .*; remove it, and it is written again"):
            runs.ended_results(tmp_path, outputs, console)
    (tmp_path / runs.RESULTS_FILE).write_text('{"loss": 1}')
    lost = r"has ended, and model/weights of it is missing; put it back, or use --overwrite to run it again"
    with pytest.raises(CheckpointError, match=lost):
        runs.ended_results(tmp_path, outputs, console)
    assert steps.exists()
    (tmp_path / "model/weights").mkdir(parents=True)
    assert runs.ended_results(tmp_path, outputs, console) == {"loss": 1}
    assert not steps.exists()
