"""Command line: `python -m tests.parity [FOLDER ...]`."""

import argparse
import sys
from pathlib import Path

import jax

from tests.parity import main

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "golden"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=main.__doc__)
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="*",
        help="holds the traces, NAME.json and NAME.npz, and nothing else; the default is every folder of "
        "../shared/golden, beside the checkout",
    )
    folders = parser.parse_args().folders or sorted(path for path in BESIDE.glob("*") if path.is_dir())
    if not folders:
        parser.error(f"there is no folder of traces in {BESIDE}; name one")
    jax.config.update("jax_default_matmul_precision", "highest")
    sys.exit(max([main(folder) for folder in folders]))
