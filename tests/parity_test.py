"""The recorded traces replay, and a folder in which any one recorded value was changed does not."""

import functools
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import parity
from tests.parity.checks import MASK_MISMATCHES, Check, exact, mismatches, relative, worst
from tests.parity.traces import PROSE, Folder, MalformedError, Record

GOLDEN = Path(__file__).resolve().parents[2] / "shared/golden"
FOLDERS = ("shared", "more")
TRACES = GOLDEN / FOLDERS[0]
NAMES = [f"{part}/{name}" for part in FOLDERS for name in parity.traces(Folder(GOLDEN / part))] or ["absent"]

# How many single falsifications to try of each kind of trace (None: all), by what a replay costs.
FALSIFICATIONS = {
    "inputs": None,
    "network": 25,
    "saliency": 2,
    "trim": 2,
    "projection": 2,
    "epoch": 1,
    "two_epochs": 1,
    "baseline": 1,
    "metric": None,
    "real_network": 25,
    "structure": 25,
}
# Values that may change without changing anything that is recorded, by the beginning or end of their paths: which
# labels are right, a sentence about a network, and an accuracy on images that are not in the folder.
FREE = {"inputs": ["y"], "network": ["arch", "train_accuracy_full"]}


@functools.cache
def folder(part=FOLDERS[0]):
    return Folder(GOLDEN / part)


def first_of(kind):
    """The smallest trace of a kind."""
    names = [name for name in folder().names if folder().read_settings(name).get("kind") == kind]
    return min(names, key=lambda name: sum(file.stat().st_size for file in TRACES.glob(f"{name}.*")))


class Forgery:
    """A folder like the recorded one, by links, in which one trace can be changed."""

    def __init__(self, path, name):
        self.path, self.name = path, name
        for file in TRACES.glob("*.*"):
            (path / file.name).symlink_to(file)
        self.settings = folder().read_settings(name)
        self.arrays = dict(folder().read_arrays(name))

    def leaves(self):
        """Paths of all recorded values: keys and positions in the settings, or the name of an array."""
        pending = [((key,), value) for key, value in self.settings.items() if key not in PROSE]
        while pending:
            path, value = pending.pop()
            inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            pending += [((*path, key), item) for key, item in inner]
            if not inner or not value:
                yield path
        yield from ((key,) for key in self.arrays if key not in self.settings)

    def replace(self, settings, arrays):
        """Writes the trace."""
        for suffix in (".json", ".npz"):
            (self.path / f"{self.name}{suffix}").unlink(missing_ok=True)
        (self.path / f"{self.name}.json").write_text(json.dumps(settings))
        if arrays:
            np.savez(self.path / f"{self.name}.npz", **arrays)
        return parity.replay(Folder(self.path), self.name)

    def unchanged(self):
        return self.replace(self.settings, self.arrays)

    def falsify(self, path, rng):
        """Replays with one value changed: one entry of an array, or one number, flag or word of the settings."""
        settings, arrays = json.loads(json.dumps(self.settings)), dict(self.arrays)
        if len(path) == 1 and path[0] in arrays:
            array = arrays[path[0]] = np.array(arrays[path[0]])
            largest = np.nanmax(np.abs(array.astype(np.float64)))
            # As many entries of a mask as may differ, and one more; one entry of anything else.
            count = min(MASK_MISMATCHES + 1, array.size) if array.dtype == bool else 1
            for entry in rng.sample(range(array.size), count):
                array.reshape(-1)[entry] = _other(array.reshape(-1)[entry], largest)
        else:
            node = settings
            for step in path[:-1]:
                node = node[step]
            node[path[-1]] = _other(node[path[-1]])
        return self.replace(settings, arrays)


def _other(value, largest=1.0):
    """Another value of the same type, a twentieth of `largest` away."""
    if isinstance(value, bool | np.bool_):
        return not value
    if isinstance(value, int | np.integer):
        return value + 1
    if isinstance(value, float | np.floating):
        return 1.0 if np.isnan(value) else value + 0.05 * (largest or 1.0) + 0.05 * abs(value)
    return [*value, "x"] if isinstance(value, list) else {"x": 1} if isinstance(value, dict) else f"{value}x"


@pytest.fixture
def forge(shared, tmp_path):
    """`forge(kind)` makes a `Forgery` of the smallest trace of a kind."""
    return lambda kind: Forgery(tmp_path, first_of(kind))


@pytest.mark.parametrize("name", NAMES)
def test_trace_replays(shared, name):
    part, _, name = name.partition("/")
    outcome = parity.replay(folder(part), name)
    assert outcome.ok, "\n".join(map(str, [outcome, *outcome.failed]))


def test_no_folder_and_no_file_is_passed_over(shared):
    assert {path.name for path in GOLDEN.iterdir() if path.is_dir()} == set(FOLDERS)
    for part in FOLDERS:
        assert parity.traces(folder(part))
        assert parity.passed_over(folder(part)) == []


@pytest.mark.parametrize("kind", list(FALSIFICATIONS))
def test_any_falsified_value_is_found(forge, kind):
    forgery, rng = forge(kind), random.Random(0)
    assert forgery.unchanged().ok, "the unchanged trace fails, so its falsifications would prove nothing"
    free = FREE.get(kind, ())
    paths = sorted((path for path in forgery.leaves() if path[0] not in free and path[-1] not in free), key=str)
    chosen = rng.sample(paths, min(FALSIFICATIONS[kind] or len(paths), len(paths)))
    assert [path for path in chosen if forgery.falsify(path, rng).ok] == []


def test_every_replayed_kind_is_falsified():
    assert [kind.name for kind in parity.KINDS if kind.name not in FALSIFICATIONS] == []


@pytest.mark.parametrize("kind", ["network", "inputs"])
def test_unknown_and_lacking_arrays_are_found(forge, kind):
    forgery = forge(kind)
    settings, arrays = forgery.settings, forgery.arrays
    listed = {**settings, "arrays": {**settings["arrays"], "extra": {"shape": [1], "dtype": "float64"}}}
    outcome = forgery.replace(listed, {**arrays, "extra": np.zeros(1)})
    assert [check.name for check in outcome.failed] == ["unknown array extra"]
    assert [c.name for c in forgery.replace({**settings, "extra": 1}, arrays).failed] == ["unknown setting extra"]
    for key in list(arrays)[:2]:
        assert not forgery.replace(settings, {k: v for k, v in arrays.items() if k != key}).ok


def test_labels_must_be_classes(forge):
    forgery = forge("inputs")
    assert not forgery.replace(forgery.settings, forgery.arrays | {"y": forgery.arrays["y"] - 100}).ok


def test_descriptions_must_agree_where_they_give_numbers(forge):
    forgery = forge("network")
    arch = forgery.settings["arch"].replace("widths 8", "widths 9")
    assert not forgery.replace(forgery.settings | {"arch": arch}, forgery.arrays).ok


def test_small_gradient_norms_are_checked_on_their_own(forge):
    forgery = forge("real_network")
    norms = forgery.arrays["gradnorm_train"].copy()
    smallest = np.argmin(np.where(norms > 1e-4 * norms.max(), norms, np.inf))
    norms[smallest] *= 1.1
    outcome = forgery.replace(forgery.settings, forgery.arrays | {"gradnorm_train": norms})
    assert [check.name for check in outcome.failed] == [f"gradnorm_train/{forgery.settings['param_order'][smallest]}"]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda json_file, npz: json_file.write_text("{"), "JSONDecodeError"),
        (lambda json_file, npz: json_file.write_text("[]"), "not a JSON object"),
        (lambda json_file, npz: json_file.write_text('{"kind": "riddle"}'), "kind 'riddle'"),
        (lambda json_file, npz: json_file.write_text('{"kind": "structure"}'), "kind 'structure' with number None"),
        (lambda json_file, npz: json_file.write_text("{}"), "without a kind"),
        (lambda json_file, npz: json_file.unlink(), "data.json is missing"),
        (lambda json_file, npz: npz.unlink(), "data.npz is missing"),
        (lambda json_file, npz: npz.write_bytes(npz.read_bytes()[:1000]), "BadZipFile"),
        (lambda json_file, npz: npz.write_bytes(b""), "EOFError"),
    ],
)
def test_damaged_files_fail_in_one_line(tmp_path, capsys, break_it, message):
    small_folder(tmp_path)
    assert parity.main(tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"
    break_it(tmp_path / "data.json", tmp_path / "data.npz")
    assert parity.main(tmp_path) == 1
    line, summary = capsys.readouterr().out.splitlines()
    assert message in line
    assert "FAILED" in line
    assert summary == "0 passed, 1 failed"


def test_files_that_no_replay_would_look_at_fail(tmp_path, capsys):
    small_folder(tmp_path)
    (tmp_path / "06_more.npy").write_bytes(b"")
    (tmp_path / "inner").mkdir()
    (tmp_path / "tolerances.json").write_text('{"runs": {"data": {}, "06_gone": {}}}')
    assert parity.main(tmp_path) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["data", "06_more.npy", "inner", "06_gone"]
    assert all(line.endswith("FAILED") for line in lines[1:])
    assert summary == "1 passed, 3 failed"
    (tmp_path / "tolerances.json").write_text("{}")
    assert parity.main(tmp_path) == 1
    assert "tolerances: KeyError: 'runs': FAILED" in capsys.readouterr().out


def test_an_empty_folder_fails(tmp_path, capsys):
    assert parity.main(tmp_path) == 1
    assert capsys.readouterr().out == "0 passed, 0 failed\n"


def test_command_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "whole").mkdir()
    small_folder(tmp_path / "whole")
    command = [sys.executable, "-m", "tests.parity", str(tmp_path / "empty"), str(tmp_path / "whole")]
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if " passed, " in line]
    assert (result.returncode, lines) == (1, ["0 passed, 0 failed", "1 passed, 0 failed"])


def small_folder(path):
    """A folder with one valid trace that needs no network."""
    arrays = {
        "x": np.linspace(0, 1, 256).round(0).reshape(4, 1, 8, 8).astype(np.float32),
        "y": np.arange(4),
        "idx_forget": np.arange(2),
        "idx_retain": np.arange(2, 4),
    }
    listing = {key: {"shape": list(array.shape), "dtype": str(array.dtype)} for key, array in arrays.items()}
    (path / "data.json").write_text(json.dumps({"kind": "inputs", "name": "data", "arrays": listing}))
    np.savez(path / "data.npz", **arrays)


class TestChecks:
    def test_nothing_holds_with_nan_or_another_shape(self):
        assert not Check("nan", float("nan"), 1.0).ok
        assert not relative("nan", np.nan, 1.0, 1.0).ok
        assert not relative("recorded nan", 1.0, np.nan, 1e9).ok
        assert not relative("shape", np.ones(2), np.ones(3), 1e9).ok
        assert not exact("shape", np.ones(2), np.ones((2, 1))).ok

    def test_errors_are_relative_to_the_largest_entry(self):
        assert relative("x", [1.0, 100.0], [2.0, 100.0], 1e-2).error == pytest.approx(0.01)
        assert relative("zero", [1e-3], [0.0], 1e-2).error == pytest.approx(1e-3)

    def test_mismatches_are_counted(self):
        check = mismatches("mask", np.array([True, False, True]), np.array([True, True, False]), 2)
        assert (check.error, check.ok) == (2, True)
        assert not exact("names", ["a"], ["b"]).ok

    def test_the_worst_check_is_the_most_strained(self):
        checks = [Check("a", 0.5, 1.0), Check("b", 1e-6, 1e-6), Check("c", 0.0, 0.0), Check("d", 10.0, 100.0)]
        assert worst(checks).name == "b"
        assert worst([*checks, Check("e", 1.0, 0.0)]).name == "e"
        assert worst([*checks, Check("f", float("nan"), 9.0)]).name == "f"


class TestRecord:
    def test_what_was_read_is_remembered(self):
        record = Record({"a": 1, "b": {"c": 2, "d": 3}, "e": {}})
        assert record.unread() == ["a", "b/c", "b/d", "e"]
        assert (record["a"], record["b"]["c"]) == (1, 2)
        assert record.unread() == ["b/d", "e"]
        assert record.plain() == {"a": 1, "b": {"c": 2, "d": 3}, "e": {}}
        assert record.unread() == []

    def test_asking_is_not_reading(self):
        record = Record({"a": 1})
        assert "a" in record
        assert list(record) == ["a"]
        assert record.unread() == ["a"]
        assert record.get("b", 5) == 5
        with pytest.raises(MalformedError, match="'b'"):
            record["b"]
