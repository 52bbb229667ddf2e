"""Which code made a result: the commit only where Git tracks the package, and never a folder of the machine."""

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys
import types

import pytest

from scissorhands_jax.cli import main as cli
from scissorhands_jax.report import provenance
from scissorhands_jax.report.provenance import Code, code_note

CODE = Code("0.1.0", "abcdef1234567890", "0123456789abcdef0123", False)


class TestName:
    def test_a_clean_commit_is_named_alone(self):
        assert CODE.name == "0123456789ab"

    def test_a_modified_tree_and_a_package_without_git_are_told_apart_by_their_source(self):
        modified = dataclasses.replace(CODE, git_changed=True)
        assert modified.name == "0123456789ab-modified, source abcdef12"
        assert dataclasses.replace(modified, source_sha256="f" * 16).name != modified.name
        assert dataclasses.replace(CODE, git_commit=None).name == "version 0.1.0 without a commit, source abcdef12"


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *who, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one module, which the functions take for their own."""
    folder = tmp_path / "project" / "package"
    (folder / "report").mkdir(parents=True)
    (folder / "__init__.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(folder / "report" / "provenance.py"))
    return folder


def running_code():
    return provenance.running_code.__wrapped__()


class TestRunningCode:
    def test_it_follows_git(self, package):
        git(package.parent, "init", "-q")
        git(package.parent, "add", ".")
        git(package.parent, "commit", "-q", "-m", "one")
        clean = running_code()
        assert clean.git_commit == git(package.parent, "rev-parse", "HEAD")
        assert clean.git_changed is False
        (package.parent / "notes.txt").write_text("outside of the package")
        assert running_code() == clean
        (package / "new.py").write_text("y = 2\n")
        assert running_code().git_changed is True
        assert running_code().source_sha256 != clean.source_sha256

    def test_a_package_inside_somebody_elses_repository_has_no_commit(self, package):
        git(package.parent, "init", "-q")
        (package.parent / "theirs.txt").write_text("theirs")
        git(package.parent, "add", "theirs.txt")
        git(package.parent, "commit", "-q", "-m", "theirs")
        assert running_code().git_commit is None

    def test_without_git_it_has_no_commit(self, package, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert running_code().git_commit is None


class TestMadeBy:
    def command(self, monkeypatch, arguments, module=None):
        monkeypatch.setattr(sys, "argv", ["/home/me/bin/scissorhands", *arguments])
        main = types.SimpleNamespace(__spec__=None if module is None else types.SimpleNamespace(name=module))
        monkeypatch.setitem(sys.modules, "__main__", main)
        return provenance.made_by.__wrapped__()["command"]

    def test_the_command_is_as_it_was_typed(self, monkeypatch):
        words = ["--config", "demo", "--only", "^fine tune$", "--out", "runs/a", "training.epochs=2"]
        assert self.command(monkeypatch, words) == (
            "scissorhands --config demo --only '^fine tune$' --out runs/a training.epochs=2"
        )
        assert self.command(monkeypatch, [], "experiments.run") == "python -m experiments.run"
        assert self.command(monkeypatch, [], "scissorhands_jax.__main__") == "python -m scissorhands_jax"

    def test_of_folders_elsewhere_only_the_last_part_is_kept(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        words = [
            "--out",
            "/home/me/x/out/",
            f"{tmp_path}/here/out",
            "data=folder:/data/me/own",
            "--a=~/me/b",
            "1/2",
            "/x",
        ]
        found = self.command(monkeypatch, words)
        assert found == "scissorhands --out '…/out' here/out 'data=folder:…/own' '--a=…/b' 1/2 '…/x'"

    @pytest.mark.parametrize(
        ("word", "shown"),
        [
            ("../../home/alice/data", "…/data"),
            ("run/../../../home/alice/x", "…/x"),
            ("..", "…/.."),
            ("run/../out", "out"),
            ('a=["/home/alice/x"]', 'a=["…/x"]'),
            ("a=[/home/alice/x,~alice/y, ../alice/z]", "a=[…/x,…/y, …/z]"),
            ("{'a': '/home/alice/b c/x'}", "{'a': '…/x'}"),
            ("/home/alice/a=b/c", "…/c"),
            ("/home/alice/[a]/c", "…/c"),
            ("a:/home/alice/x:/home/alice/y", "a:…/x:…/y"),
            ("/home/alice/", "…/alice"),
            ("method.trim=layer2|head/.*", "method.trim=layer2|head/.*"),
            ("a..b/c", "a..b/c"),
            ("...", "..."),
            ("--seeds=0..4", "--seeds=0..4"),
        ],
    )
    def test_no_form_of_a_path_keeps_the_names_of_folders_elsewhere(self, word, shown, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        found = self.command(monkeypatch, [word])
        assert shlex.split(found) == ["scissorhands", shown]
        if word != "/home/alice/":
            assert "alice" not in found

    def test_the_date_is_that_of_the_process(self):
        made = provenance.made_by()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made["date"])
        assert provenance.made_by() is made
        assert made["code"] == provenance.running_code().name


class TestNote:
    def test_one_state_of_the_code_is_a_plain_sentence(self):
        assert code_note({"a": "x", "b": "x"}) == "All cells were made by x."
        assert code_note({"a": None}) == "The commit was not recorded."
        assert code_note({}) == ""

    def test_several_are_named_with_their_cells(self):
        note = code_note({"a": "x", "b": None} | {str(number): "y" for number in range(8)})
        assert note == (
            "The cells were made by 3 states of the code, which may give other numbers. x: a; commit not recorded: b; "
            "y: 0, 1, 2, 3, 4, 5 and 2 more."
        )


def test_long_programs_note_the_code_as_they_begin():
    """What is committed while they run is not the code that ran."""
    experiments = pathlib.Path(__file__).parents[2] / "experiments"
    programs = [path for path in experiments.rglob("*.py") if "def main(" in path.read_text(encoding="utf-8")]
    package = {path.parent for path in experiments.rglob("__main__.py")}
    for path in programs:
        parts = path.parent.glob("*.py") if path.parent in package else [path]
        if any("report.environment()" in part.read_text(encoding="utf-8") for part in parts):
            assert "    provenance.note_code()\n" in path.read_text(encoding="utf-8"), path.name


def test_a_long_command_notes_the_code_before_it_runs(monkeypatch, tmp_path):
    noted = []
    monkeypatch.setattr(provenance, "note_code", lambda: noted.append(True))
    assert (
        cli.main(
            [
                "unlearn",
                "--weights",
                str(tmp_path / "none"),
                "--dataset",
                "digits",
                "--model",
                "mlp",
                "--forget",
                "random:0.1",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert noted == [True]
    assert cli.main(["doctor"]) == 0
    assert noted == [True]
