"""The command line asks for huge pages once, where the system has them to give."""

import os
import subprocess
import sys

import pytest

from scissorhands_jax.cli import huge_pages


@pytest.fixture
def restarts(tmp_path, monkeypatch):
    """What `execv` was called with, on a system that gives huge pages to those that ask."""
    calls = []
    enabled = tmp_path / "enabled"
    enabled.write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "_ENABLED", enabled)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36", raising=False)
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "utf8", "-m", "scissorhands_jax", "demo"])
    for name in ("GLIBC_TUNABLES", huge_pages._ASKED):
        monkeypatch.setenv(name, "")  # so that what `restart` sets is undone
        monkeypatch.delenv(name)
    return calls


def test_the_same_command_starts_anew_with_the_variable(restarts):
    huge_pages.restart()
    assert restarts == [(sys.executable, [sys.executable, "-X", "utf8", "-m", "scissorhands_jax", "demo"])]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    huge_pages.restart()
    assert len(restarts) == 1


def test_a_module_that_another_program_runs_within_itself_does_not_begin_that_program_anew(restarts, monkeypatch):
    for begun in (["python", "-c", "import runpy"], ["python", "-m", "pytest", "experiments.run"], ["python"]):
        monkeypatch.setattr(sys, "orig_argv", begun)
        huge_pages.restart("experiments.run")
        assert restarts == []
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "utf8", "-m", "experiments.run", "--help"])
    huge_pages.restart("experiments.run")
    assert len(restarts) == 1


def test_it_is_asked_once_also_where_the_variable_gets_lost(restarts, monkeypatch):
    huge_pages.restart()
    monkeypatch.delenv("GLIBC_TUNABLES")
    huge_pages.restart()
    assert len(restarts) == 1


def test_other_settings_stay(restarts, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    huge_pages.restart()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"


def test_who_chose_is_left_alone(restarts, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    huge_pages.restart()
    assert restarts == []


@pytest.mark.parametrize("modes", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_a_system_that_always_or_never_gives_them_is_not_asked(restarts, modes):
    if modes is None:
        huge_pages._ENABLED.unlink()
    else:
        huge_pages._ENABLED.write_text(modes)
    huge_pages.restart()
    assert restarts == []


def unknown(name):
    raise ValueError("unrecognized configuration name")


@pytest.mark.parametrize("confstr", [lambda name: "glibc 2.31", lambda name: "musl 1.2", lambda name: None, unknown])
def test_a_library_that_cannot_ask_is_not_restarted(restarts, monkeypatch, confstr):
    monkeypatch.setattr(os, "confstr", confstr)
    huge_pages.restart()
    assert restarts == []


def test_the_command_has_them_before_jax_is_loaded():
    code = (
        "import os, sys; from scissorhands_jax.cli import huge_pages; huge_pages.restart(); "
        "print(sys.argv[1], 'jax' in sys.modules, os.environ.get('GLIBC_TUNABLES', ''))"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", huge_pages._ASKED)
    }
    done = subprocess.run(
        [sys.executable, "-c", code, "two words"], capture_output=True, text=True, check=True, env=environment
    )
    expected = "glibc.malloc.hugetlb=1" if huge_pages._wanted() else ""
    assert done.stdout == f"two words False {expected}\n"
    assert done.stderr == ""
