"""The commands that README.md and docs/ show: the command line reads all of them, and they run with small settings."""

import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from scissorhands_jax import models, torch_weights
from scissorhands_jax.cli.main import COMMANDS, main, read_command
from tests import shown
from tests.deletion import trained
from tests.language import tiny_logs
from tests.shown import PAGES

LINES = [line for page in PAGES for line in shown.lines(page)]
COMMAND_LINES = [shown.command(line) for line in LINES if "bin/scissorhands " in line]
MODULE_LINES = [shown.command(line) for line in LINES if "python -m experiments" in line]


@pytest.mark.parametrize("command", COMMAND_LINES)
def test_commands_are_understood_by_the_command_line(command):
    assert read_command(shlex.split(command))


def test_nearly_every_command_is_shown_as_it_is_typed():
    shown_names = {name for name in COMMANDS for command in COMMAND_LINES if command.startswith(name)}
    assert shown_names >= {
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
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main([*words, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words if word.startswith("--"))


def test_commands_named_in_prose_exist():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for words in re.findall(r"`scissorhands ([a-z ]+?)[` ]", text):
            first = words.split()[0]
            assert any(name.split()[0] == first for name in COMMANDS), f"{page.name}: {words}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the files that the pages speak of: a network that knows small images by heart, and logs."""
    folder = tmp_path_factory.mktemp("files")
    trained.ledger_of_trained_network(folder)
    (folder / "trained.safetensors").rename(folder / "mine.safetensors")
    (folder / "data.npz").rename(folder / "mine.npz")
    (folder / "forty").rename(folder / "forget.txt")
    shutil.rmtree(folder / "ledger")
    with np.load(folder / "mine.npz") as arrays:
        images = arrays["image"][:8]
    model = models.build("mlp", num_classes=3, image_shape=images.shape[1:])
    weights = torch_weights.read_state_dict(folder / "mine.safetensors")
    network = torch_weights.from_state_dict(weights, *jax.eval_shape(model.init, jax.random.key(0)), flatten={})
    output = np.asarray(model.apply(*network, images, train=False)[0])
    torch_weights.write_safetensors(folder / "check.pt", {"input": images.transpose(0, 3, 1, 2), "output": output})
    half = {name: np.asarray(array).astype(np.float16) for name, array in weights.items()}
    torch_weights.write_safetensors(folder / "small.safetensors", half)
    names = ("unlearned", "full", "retain90", "retrained1", "retrained2", "retrained3")
    for seed, name in enumerate(names):
        (folder / f"{name}.json").write_text(json.dumps(tiny_logs.tofu_log(tiny_logs.numbers(seed))))
    return folder


def prepare(command):
    """Puts into the current folder what a page says that its reader has by then."""
    if command.startswith("request trust"):
        assert main(["audit", "key", "--out", "auditor.pem", "--public", "auditor_public.pem"]) == 0
    elif command.startswith("request verify --ledger COPY"):
        shutil.copy("LEDGER/records/public_key.pem", "public_key.pem")


@pytest.mark.parametrize("page", [page for page in PAGES if shown.lines(page)], ids=lambda page: page.stem)
def test_commands_of_a_page_run_in_order(page, files, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(files, tmp_path / "here"))
    for line in shown.lines(page):
        if shown.begins(line, shown.NOT_RUN) or shown.begins(line, shown.ELSEWHERE):
            continue
        command = shown.smaller(line)
        prepare(command)
        # A run about requests may find that the network has to be retrained, which is an answer.
        allowed = {0, 3} if command.startswith("request run") else {0}
        assert main(shlex.split(command)) in allowed, (
            f"{page.name} shows {line}, run as {command}; tests/shown.py has what is run in its place"
        )


def test_what_is_not_run_here_is_shown_and_has_its_test():
    for table in (shown.NOT_RUN, shown.ELSEWHERE, shown.MORE):
        for begin in table:
            assert any(shown.begins(line, table) == begin for line in LINES), f"no page shows {begin}"
    for begin, test in shown.ELSEWHERE.items():
        path, name = test.split("::")
        text = (Path(__file__).parent / path).read_text(encoding="utf-8")
        assert re.search(rf"^ *(def|class) {name}\b", text, re.MULTILINE), f"{test}, which runs {begin}, is not there"
