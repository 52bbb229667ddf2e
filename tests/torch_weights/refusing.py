"""What files with weights cost a process that has done nothing else.

`python -m tests.torch_weights.refusing FILE ...` prints a line of JSON for each: why it was refused (null if not),
the bytes held at most while it was read, and the time as `limits.Spent.measures`.
"""

import json
import sys
from pathlib import Path

from scissorhands_jax import torch_weights
from scissorhands_jax.errors import WeightsError
from tests import limits


def main(paths: list[Path]) -> None:
    for path in paths:
        why = None
        with limits.spent(memory=True) as work:
            try:
                torch_weights.read_state_dict(path)
            except WeightsError as error:
                why = str(error)
        print(json.dumps({"why": why, "peak": work.peak, "measures": work.measures}), flush=True)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
