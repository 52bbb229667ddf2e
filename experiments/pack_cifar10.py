"""Packs CIFAR-10 without loss into parts that travel one by one, for a machine to which a call carries little.

    python -m experiments.pack_cifar10 --data-dir data --out runs/packed

Two parts of 52 MiB each, for machines to which a call can carry 64 MiB. Copy the files of every part into one folder
there and name it with `--data-dir`; reading them verifies their SHA-256.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import programs
from scissorhands_jax import datasets
from scissorhands_jax.datasets import compact
from scissorhands_jax.errors import InputError
from scissorhands_jax.terminal import Console, say


@programs.ending("the same command packs them again")
def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the parts, names their files, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pack_cifar10", description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", required=True, type=Path, metavar="DIR", help="folder of CIFAR-10's files")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the packed files")
    parser.add_argument("--parts", type=int, default=2, metavar="N", help="default 2")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    if options.out.resolve() == options.data_dir.resolve():
        raise InputError(f"--out {options.out} is the folder of the data itself; name another one")
    parts = compact.pack_cifar10(datasets.cifar10(options.data_dir), options.out, parts=options.parts)
    for number, files in enumerate(parts, 1):
        size = sum(path.stat().st_size for path in files) / 2**20
        say(console, f"part {number}, {size:.1f} MiB: {' '.join(map(str, files))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
