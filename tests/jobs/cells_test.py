"""Cells: each is computed once, and a run that is killed between any two of them ends in the same document."""

import dataclasses
import io
import json
from typing import ClassVar

import numpy as np
import pytest
from rich.console import Console

from scissorhands_jax import files
from scissorhands_jax.errors import CheckpointError, InputError, NonFiniteError
from scissorhands_jax.jobs import cells
from scissorhands_jax.jobs.cells import CellFolder, Diverged, ResultCell
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.report.provenance import running_code
from scissorhands_jax.training.identity import identify

NAMES = ("a", "b 1 %", "c", "hopeless", "d.e")
QUIET = Console(quiet=True)
REASON = str(NonFiniteError(7, "loss", float("nan"), "lower the learning rate"))


@dataclasses.dataclass(frozen=True)
class Number:
    """A result in JSON, as the cells of tables are."""

    SUFFIX: ClassVar[str] = ".json"
    value: float

    def encode(self):
        return json.dumps(self.value).encode()

    @classmethod
    def decode(cls, content):
        return cls(json.loads(content))


@dataclasses.dataclass(frozen=True)
class Arrays(Number):
    """A result in NumPy's format, as the cells of audits are."""

    SUFFIX: ClassVar[str] = ".npz"

    def encode(self):
        buffer = io.BytesIO()
        np.savez(buffer, value=self.value)
        return buffer.getvalue()

    @classmethod
    def decode(cls, content):
        with np.load(io.BytesIO(content)) as held:
            return cls(float(held["value"]))


def run(out, kind, computed, *, description=None, **stops):
    """One call of a command that fills a folder of cells; returns its document."""
    identity = identify(description or {"command": "test", "numbers": (1, 2)})
    with CellFolder.open(out, identity, kind, overwrite=False) as folder:
        return filled(folder, out, kind, computed, **stops)


def filled(folder, out, kind, computed, *, stop_before=None, stop_after=None):

    def compute(name, progress):
        if name == stop_before:
            raise KeyboardInterrupt
        computed.append(name)
        if name == "hopeless":
            raise NonFiniteError(7, "loss", float("nan"), "lower the learning rate")
        return kind(NAMES.index(name) + 0.1)

    def write_results():
        files.write_text(out / "results.json", json.dumps(document()))
        if computed[-1] == stop_after:
            raise KeyboardInterrupt

    def document():
        return [dataclasses.asdict(result) for result in folder.read_all()]

    made = [
        ResultCell({"seed": 3, "method": name}, lambda progress, name=name: compute(name, progress), name == "hopeless")
        for name in NAMES
    ]
    with progress_bar(QUIET) as progress:
        folder.fill(made, progress, write_results, seconds_between=0)
    return document()


def fill(folder, made, write_results=lambda: None, **options):
    with progress_bar(QUIET) as progress:
        folder.fill(made, progress, write_results, **options)


def test_networks_that_somebody_keeps_are_not_removed_for_the_result(tmp_path):
    """Those in the run's own place belong to the run, also where that place is named."""
    out, identity = tmp_path / "out", identify({"command": "test"})

    def begun(store):
        with CellFolder.open(out, identity, Number, store=store, overwrite=True):
            (out / "networks").mkdir()

    for store in (None, out / "networks", out / "cells" / ".." / "networks", tmp_path / "nets"):
        begun(store)
    for store in (out / "nets", out / "networks" / "nets", out):
        with pytest.raises(InputError, match=r"is read and (lies in|is where) .*out"):
            begun(store)


@pytest.mark.parametrize("kind", [Number, Arrays])
class TestResume:
    def test_all_cells_are_computed_once(self, tmp_path, kind):
        computed = []
        first = run(tmp_path / "out", kind, computed)
        assert run(tmp_path / "out", kind, computed) == first
        assert tuple(computed) == NAMES
        assert len(first) == len(NAMES)
        failures = [result for result in first if "reason" in result]
        assert failures == [
            {"place": {"seed": 3, "method": "hopeless"}, "reason": REASON, "code": running_code().name, "of": {}}
        ]

    @pytest.mark.parametrize("when", ["stop_before", "stop_after"])
    @pytest.mark.parametrize("name", NAMES)
    def test_a_run_that_was_killed_between_any_two_cells_ends_in_the_same_document(self, tmp_path, kind, name, when):
        whole = run(tmp_path / "whole", kind, [])
        computed = []
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", kind, computed, **{when: name})
        done = NAMES.index(name) + (when == "stop_after")
        assert tuple(computed) == NAMES[:done]
        if done:
            assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == done, "what there is, is written"
        assert run(tmp_path / "out", kind, computed) == whole
        assert tuple(computed) == NAMES, "no cell is computed twice"

    def test_half_a_file_is_no_result(self, tmp_path, kind, monkeypatch):
        def crash(path, content):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.0a1b2c3d.partial").write_bytes(content[:3])
            raise KeyboardInterrupt

        folder, calls = CellFolder(tmp_path / "cells", kind), []
        made = [ResultCell({"seed": 1}, lambda progress: kind(0.5))]
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_bytes", crash)
            with pytest.raises(KeyboardInterrupt):
                fill(folder, made)
        assert list(folder.folder.iterdir()) != []
        assert folder.read_all() == []
        fill(folder, made, lambda: calls.append(1))
        assert folder.read_all() == [kind(0.5)]
        assert calls == [1]

    def test_another_experiment_is_refused(self, tmp_path, kind):
        run(tmp_path / "out", kind, [])
        with pytest.raises(InputError, match=r"numbers was \[1, 2\] and is now \[1, 3\]"):
            run(tmp_path / "out", kind, [], description={"command": "test", "numbers": (1, 3)})

    def test_a_cell_beyond_the_limit_is_refused(self, tmp_path, kind, monkeypatch):
        run(tmp_path / "out", kind, [])
        size = max(path.stat().st_size for path in (tmp_path / "out" / "cells").glob("seed3*"))
        monkeypatch.setattr(cells, "_MAX_CELL", size)
        run(tmp_path / "out", kind, [])
        monkeypatch.setattr(cells, "_MAX_CELL", size - 1)
        with pytest.raises(CheckpointError, match=f"is damaged: .*{size - 1}"):
            run(tmp_path / "out", kind, [])

    def test_a_damaged_cell_is_named(self, tmp_path, kind):
        run(tmp_path / "out", kind, [])
        path = tmp_path / "out" / "cells" / f"seed3-c{kind.SUFFIX}"
        path.write_bytes(b"not a result")
        with pytest.raises(CheckpointError, match=f"seed3-c{kind.SUFFIX} is damaged"):
            run(tmp_path / "out", kind, [])


def test_a_cell_that_must_not_diverge_ends_the_run_and_keeps_those_before_it(tmp_path):
    def diverge(progress):
        raise NonFiniteError(7, "loss", float("nan"), "lower the learning rate")

    folder = CellFolder(tmp_path, Number)
    made = [ResultCell({"n": 1}, lambda progress: Number(1.0)), ResultCell({"n": 2}, diverge)]
    with pytest.raises(NonFiniteError):
        fill(folder, made)
    assert folder.read(made[0]) == Number(1.0)
    assert folder.read(made[1]) is None
    allowed = dataclasses.replace(made[1], may_diverge=True)
    fill(folder, [allowed])
    assert folder.read(allowed) == Diverged({"n": 2}, REASON, running_code().name)


def test_two_cells_must_not_share_a_file(tmp_path):
    made = [ResultCell({"scenario": name}, lambda progress: Number(1.0)) for name in ("one class", "one_class")]
    with pytest.raises(InputError, match="'one class' and 'one_class' would share a file"):
        fill(CellFolder(tmp_path, Number), made)


def test_results_are_written_now_and_then(tmp_path, monkeypatch):
    made = [ResultCell({"n": number}, lambda progress: Number(1.0)) for number in range(5)]
    calls = []
    fill(CellFolder(tmp_path / "seldom", Number), made, lambda: calls.append(1))
    assert len(calls) == 1
    monkeypatch.setattr(cells, "SECONDS_BETWEEN_RESULTS", 0.0)
    fill(CellFolder(tmp_path / "often", Number), made, lambda: calls.append(1))
    assert len(calls) == 6


def test_what_is_refused_before_its_first_cell_leaves_nothing_and_later_all(tmp_path):
    def refused(number, *made):
        with CellFolder.open(tmp_path / "out", identify({"number": number}), Number, overwrite=False) as folder:
            fill(folder, made)
            raise InputError("no")

    for number in (1, 2):  # which would be another run's folder
        with pytest.raises(InputError, match=r"^no$"):
            refused(number)
        assert not (tmp_path / "out" / "run.json").exists()
    with pytest.raises(InputError, match=r"^no$"):
        refused(3, ResultCell({"n": 1}, lambda progress: Number(1.0)))
    with pytest.raises(InputError, match="number was 3 and is now 4"):
        refused(4)
