"""Two processes of one run that are each given something else, time after time: what each of them is told.

`python -m tests.training.disagreeing FOLDER HOST:PORT ID` prints a line of JSON for every case.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from scissorhands_jax import models, torch_weights
from scissorhands_jax.base import Data, lift
from scissorhands_jax.errors import InputError, PeerError
from scissorhands_jax.jobs import unlearning
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.methods import FinetuneSettings, boundary_expand, finetune, influence
from scissorhands_jax.optimizers import sgd
from scissorhands_jax.training import distributed
from scissorhands_jax.training.loop import run
from scissorhands_jax.training.sharding import make_layout
from tests.training import clusters

CASES = (
    "none",  # Both are given the same, and methods that look at arrays on the host gather them.
    *("forget", "weights", "data", "learning_rate", "batch_size", "epochs", "seed", "mesh", "flag", "folder"),
    *("loss of its own", "key", "missing file"),
)


def write_files(folder: Path) -> None:
    """Writes the files that the cases need: each twice, with other content."""
    rng = np.random.default_rng(0)
    model = models.build("mlp", num_classes=4, image_shape=(2, 2, 1))
    for name in ("first", "other"):
        images = {part: rng.random((16, 2, 2, 1), np.float32) for part in ("image", "test_image")}
        np.savez(folder / f"{name}.npz", **images, label=np.arange(16) % 4, test_label=np.arange(16) % 4)
        weights = torch_weights.to_state_dict(*model.init(jax.random.key(len(name) + (name == "other"))))
        torch_weights.write_safetensors(folder / f"{name}.safetensors", weights)
        (folder / f"{name}.txt").write_text("1\n2\n" if name == "first" else "1\n3\n")


def changed(config: RunConfig, case: str, folder: Path) -> RunConfig:
    """What process 1 is given instead, where that is in the configuration."""
    changes = {
        "forget": {"forget": f"indices:{folder / 'other.txt'}"},
        "weights": {"weights": str(folder / "other.safetensors")},
        "data": {"dataset": f"npz:{folder / 'other.npz'}"},
        "seed": {"seed": 1},
        "missing file": {"weights": str(folder / "nowhere.safetensors")},
    }.get(case, {})
    if case in ("learning_rate", "batch_size", "epochs"):
        value = getattr(config.method, case)
        changes = {"method": dataclasses.replace(config.method, **{case: value * 2})}
    return dataclasses.replace(config, **changes)


def attempt(case: str, folder: Path, is_other: bool) -> None:
    """Does what this process was asked to do in a case."""
    if case == "none":
        expand = boundary_expand(clusters.MODEL, sgd(0.1), num_classes=clusters.CLASSES, batch_size=16)
        for method in (influence(clusters.LOSS, num_samples=8, batch_size=8), expand):
            network, data = clusters.init(jax.random.key(0)), clusters.data()
            run(method, jax.random.key(1), *network, data, num_epochs=1, layout=make_layout(replicate_below=1))
        return
    if case in ("loss of its own", "key"):
        factor = 2.0 if is_other and case != "key" else 1.0
        method = finetune(lift(lambda w, x: factor * jnp.mean(jnp.square(w - x))), sgd(0.1), batch_size=2)
        key = jax.random.key(int(is_other and case == "key"))
        run(method, key, jnp.zeros(()), (), Data(None, np.ones((4, 1), np.float32)), num_epochs=1, layout=make_layout())
        return
    config = RunConfig(
        model="mlp",
        dataset=f"npz:{folder / 'first.npz'}",
        weights=str(folder / "first.safetensors"),
        forget=f"indices:{folder / 'first.txt'}",
        method_name="finetune",
        method=FinetuneSettings(epochs=1, batch_size=4),
    )
    out, layout = folder / "run", make_layout()
    if is_other:
        config = changed(config, case, folder)
        out = folder / "elsewhere" if case == "folder" else out
        layout = make_layout(1, 2) if case == "mesh" else layout
    jax.config.update("jax_threefry_partitionable", case != "flag" or is_other)
    unlearning.unlearn(config, out, layout=layout, insist=True, console=Console(quiet=True))


def main(folder: Path, coordinator: str, process: int) -> int:
    """Goes through all cases and returns the exit status."""
    distributed.start(coordinator, 2, process, seconds_to_meet=60)
    jax.config.update("jax_enable_compilation_cache", False)
    status = 0
    for case in CASES:
        began, message = time.monotonic(), "nothing"
        try:
            attempt(case, folder, process == 1)
        except (InputError, PeerError) as error:
            message, status = str(error), 2
        found = {"case": case, "message": message, "seconds": time.monotonic() - began}
        sys.stdout.write(json.dumps(found) + "\n")
    return distributed.leave(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
