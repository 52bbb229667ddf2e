"""Commands of `scissorhands request` as tests run them, and what they printed."""

import numpy as np

from scissorhands_jax.cli import main as cli
from scissorhands_jax.deletion.ledger import Ledger

QUICK = ["--method", "finetune", "--epochs", "1", "--batch-size", "64", "--budget", "100"]


def command(*words) -> int:
    return cli.main(["request", *map(str, words)])


def verified(folder, *words, capsys) -> list[str]:
    """Returns what `verify` says was changed."""
    capsys.readouterr()
    status = command("verify", "--ledger", folder, *words)
    lines = capsys.readouterr().out.splitlines()
    assert status == (1 if lines[0].startswith("CHANGED: ") else 0)
    return [line.removeprefix("CHANGED: ") for line in lines] if status else []


def error_of(capsys) -> str:
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    return line


def states(folder) -> list[str]:
    with Ledger(folder) as book:
        return [request.state for request in book.requests()]


def moved_data(folder, tmp_path, change) -> str:
    """Makes a changed copy of the data set, and returns it as an argument of the command."""
    with np.load(folder.parent / "data.npz") as arrays:
        arrays = dict(arrays)
    change(arrays)
    np.savez(tmp_path / "data.npz", **arrays)
    return f"npz:{tmp_path / 'data.npz'}"
