"""Command line: `python -m tests.parity FOLDER`."""

import argparse
import sys

import jax

from tests.parity import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=main.__doc__)
    parser.add_argument("folder", help="holds the traces, NAME.json and NAME.npz, and nothing else")
    arguments = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    sys.exit(main(arguments.folder))
