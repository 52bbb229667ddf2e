"""Every moment of every writer: `python -m tests.kills [NAME ...]`; kills at random moments: `... --random 200`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.compilations import save_time
from tests.kills import randomly, trying
from tests.kills.writers import WRITERS


def main() -> int:
    """Prints a line of JSON for each writer; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WRITERS))
    parser.add_argument("--random", type=int, metavar="N", help="kill so often at random moments instead, all together")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="try every K-th moment only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep all in this folder; the same command goes on from it")
    options = parser.parse_args()
    os.environ["SHARED_CONTEXTS"] = "1"
    save_time()
    names, failed = options.names or list(WRITERS), 0
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trying.cache_compilations(folder.absolute() / "compiled")
        for name in names:
            started = time.process_time()
            if options.random is None:
                found = vars(trying.try_moments(WRITERS[name], folder.absolute() / name, every=options.every))
            else:
                found = randomly.kill_randomly(
                    name, folder.absolute() / name, -(-options.random // len(names)), options.seed
                )
            failed += len(found["failed"])
            seconds = round(time.process_time() - started)
            print(json.dumps({"writer": name, **found, "seconds": seconds}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
