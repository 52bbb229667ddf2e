"""Every moment of every writer: `python -m tests.kills [NAME ...]`; kills at random moments: `... --random 200`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.kills import trying
from tests.kills.writers import WRITERS


def main() -> int:
    """Prints a line of JSON for each writer; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WRITERS))
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        trying.cache_compilations(Path(folder) / "compiled")
        for name in options.names or WRITERS:
            started = time.process_time()
            found = trying.try_moments(WRITERS[name], Path(folder) / name)
            failed += len(found.failed)
            seconds = round(time.process_time() - started)
            print(json.dumps({"writer": name, **vars(found), "seconds": seconds}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
