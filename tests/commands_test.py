"""The README's own code and commands."""

import re
import shlex
from pathlib import Path

import pytest

from scissorhands_jax.cli import main as cli
from scissorhands_jax.jobs.config import setting_names
from scissorhands_jax.methods import METHODS
from scissorhands_jax.models import MODELS

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_python_example_runs_and_forgets(capsys):
    (code,) = blocks("python")
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)
    forgotten = names["loss_fn"](names["unlearned"].params, names["data"].forget)
    retained = names["loss_fn"](names["unlearned"].params, names["data"].retain)
    assert forgotten > 1.5 * retained
    assert re.match(r"\d+ steps; forget loss \d+\.\d\d\n", capsys.readouterr().out)


def test_the_example_is_about_a_dozen_lines_long():
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 16


def commands() -> list[str]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [
        part.partition("scissorhands ")[2] for line in lines for part in line.split("&&") if "bin/scissorhands" in part
    ]


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood_by_the_command_line(command):
    assert cli.read_command(shlex.split(command))


def test_the_commands_of_users_are_shown():
    shown = {command.split()[0] for command in commands()}
    assert shown == {"demo", "unlearn", "evaluate", "audit", "request", "sd"}


def test_names_in_the_prose_exist():
    text = README.read_text(encoding="utf-8")
    assert "fraction" in setting_names(METHODS["scissorhands"]())
    for name in ("resnet20", "resnet110", "resnet18", "resnet34", "vgg16_bn", "resnet9", "mlp"):
        assert f"`{name}`" in text
        assert name in MODELS
    for path in re.findall(r"`((?:scissorhands_jax|experiments|tests)/[\w/.]+)`", text):
        assert (README.parent / path).exists(), path
