"""Whatever writes goes on after a kill, here at moments that are drawn; `python -m tests.kills` tries all of them."""

import json
import os

import pytest

from scissorhands_jax import files
from scissorhands_jax.diffusion import unlearning
from scissorhands_jax.errors import CheckpointError, InputError
from scissorhands_jax.jobs import runs
from scissorhands_jax.terminal import LogFile
from scissorhands_jax.training.identity import identify
from tests.kills import moments, trying
from tests.kills.writers import WRITERS

COUNTS = {
    "unlearn": 2,
    "table": 1,
    "audit": 1,
    "sd unlearn": 1,
    "sd import": 1,
    "sd evaluate": 1,
    "sd attack": 1,
    "lm unlearn": 1,
    "demo diffusion": 1,
    "request export": 1,
}
"""How many moments are tried of writers that take long; of the others it is three."""


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_kill_leaves_is_gone_on_from(name, tmp_path):
    seed = int(os.environ.get("SCISSORHANDS_KILL_SEED", "0"))
    found = trying.try_moments(WRITERS[name], tmp_path / "try", count=COUNTS.get(name, 3), seed=seed)
    assert found.operations > 10
    assert found.tried >= found.states == COUNTS.get(name, 3)
    assert found.failed == []


def test_every_operation_and_every_half_written_file_is_a_moment(tmp_path):
    world = tmp_path / "world"
    world.mkdir()
    (tmp_path / "copies").mkdir()
    seen = moments.Moments(world, tmp_path / "copies")
    with seen.recorded():
        (world / "folder").mkdir()
        (world / "folder" / "new").write_text("whole")
        os.replace(world / "folder" / "new", world / "file")
        (world / "link").symlink_to("file")
        (tmp_path / "elsewhere").write_text("")
    texts = [
        {str(path.relative_to(state)): path.read_text() for path in state.rglob("*") if path.is_file()}
        for state in seen.states
    ]
    assert texts[:2] == [{}, {}], "before and after the folder was made"
    assert texts[2:] == [
        {"folder/new": "whole"},
        {"folder/new": ""},
        {"folder/new": "wh"},
        {"file": "whole"},
        {"file": "whole", "link": "whole"},
    ]


def test_a_loss_is_noticed(tmp_path):
    """A writer that is not safe fails the test above."""
    from dataclasses import replace

    def careless(world):
        (world / "half").write_text("all of it")

    def continued(world):
        if not (world / "half").exists():
            careless(world)

    writer = replace(WRITERS["tune"], prepare=lambda world: None, run=careless, go_on=continued, again=None)
    assert len(trying.try_moments(writer, tmp_path / "try").failed) == 2


def test_half_a_row_of_steps_is_no_step(tmp_path):
    path = tmp_path / "steps.csv"
    path.write_text("step,loss_retain\n1,0.5\n2,0.25\n3,0.1")
    assert unlearning._earlier_steps(path, 3) == [{"step": 1.0, "loss_retain": 0.5}, {"step": 2.0, "loss_retain": 0.25}]
    path.write_text("step,loss_retain\nx,0.5\n")
    with pytest.raises(CheckpointError, match="is damaged"):
        unlearning._earlier_steps(path, 3)


def test_a_link_that_leads_nowhere_yet_is_a_folder_to_be_made(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for overwrite in (False, True):
        with runs.open_folder(tmp_path / "link", identify({"a": 1}), overwrite=overwrite) as fresh:
            assert fresh
            (tmp_path / "link" / "left").touch()
    assert json.loads((tmp_path / "there" / "run.json").read_text())["a"] == 1
    assert (tmp_path / "link").is_symlink()


def test_a_link_that_leads_to_itself_is_refused(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="leads to no folder"), runs.open_folder(loop, identify({"a": 1})):
        pass
    with pytest.raises(InputError, match="cannot be written"):
        LogFile(loop, tmp_path / "out")
    assert files.resolved(loop) == loop
