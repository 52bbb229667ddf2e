"""The commands that README.md and docs/ show, as the command line reads them."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from scissorhands_jax.cli.main import COMMANDS, read_command

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def lines() -> list[str]:
    """All command lines of all pages, continued lines joined."""
    blocks = [re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL) for page in PAGES]
    text = "\n".join(block for page in blocks for block in page).replace("\\\n", " ")
    return [part.strip() for line in text.splitlines() for part in line.split("&&")]


COMMAND_LINES = [line.partition("bin/scissorhands ")[2] for line in lines() if "bin/scissorhands " in line]
MODULE_LINES = [line.partition("bin/python -m ")[2] for line in lines() if "bin/python -m experiments" in line]


@pytest.mark.parametrize("command", COMMAND_LINES)
def test_commands_are_understood_by_the_command_line(command):
    assert read_command(shlex.split(command))


def test_nearly_every_command_is_shown_as_it_is_typed():
    shown = {name for name in COMMANDS for command in COMMAND_LINES if command.startswith(name)}
    assert shown >= {
        "demo",
        "demo diffusion",
        "unlearn",
        "evaluate",
        "audit",
        "request add",
        "request run",
        "sd import",
    }


@pytest.mark.parametrize("command", MODULE_LINES)
def test_experiments_are_understood(command, monkeypatch, capsys):
    module, *words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [module])
    main = importlib.import_module(module).main
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in words if word.startswith("--"))


def test_commands_named_in_prose_exist():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for words in re.findall(r"`scissorhands ([a-z ]+?)[` ]", text):
            first = words.split()[0]
            assert any(name.split()[0] == first for name in COMMANDS), f"{page.name}: {words}"
