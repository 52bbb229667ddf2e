"""What `lm unlearn` does on a mesh of four virtual devices; `tests.training.sharding_test` runs it in its process."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from experiments.language_parity import CONFIGS
from scissorhands_jax.errors import InputError
from scissorhands_jax.language import unlearning
from scissorhands_jax.language.lora import BASE, Lora
from scissorhands_jax.language.method_settings import token_settings
from scissorhands_jax.language.model_folders import open_language_folder, read_weights
from scissorhands_jax.terminal import Console
from scissorhands_jax.training.sharding import Layout, make_layout
from tests.language.tiny_folders import make_tiny_folder, write_examples

CHECKS = (
    "language model, all weights",
    "language model, all weights lie divided",
    "language model, lora, begun on four devices and ended on one",
    "language model, lora's network lies divided",
    "language model, batch refused",
)
TOLERANCE = 1e-5  # of the largest weight


def run_checks(report: Callable[..., None]) -> None:
    """Makes one tiny model forget in all ways, and reports on each."""
    layout = make_layout(2, 2, fsdp=True, replicate_below=200)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_tiny_folder(place / "model", {**CONFIGS["llama"], "num_hidden_layers": 1})
        write_examples(place)
        original = read_weights(open_language_folder(place / "model"))

        one, _ = forgotten(place, "one")
        many, networks = forgotten(place, "many", layout=layout)
        difference, moved = largest_difference(one, many), largest_difference(one, original)
        report(CHECKS[0], difference < TOLERANCE < 5e-3 < moved, f"{difference} {moved}")
        lies = [is_divided(params, layout) for params, _ in networks]
        report(CHECKS[1], lies == [True, True], str(lies))

        one, _ = forgotten(place, "one lora", lora=Lora(2))
        _, networks = forgotten(place, "lora", layout=layout, lora=Lora(2), stop=True)
        report(CHECKS[3], is_divided(networks[0][1][BASE], layout))
        many, _ = forgotten(place, "lora", lora=Lora(2), resume=True)
        difference, moved = largest_difference(one, many), largest_difference(one, original)
        report(CHECKS[2], difference < TOLERANCE < 5e-3 < moved, f"{difference} {moved}")

        message = ""
        with mock.patch.object(unlearning, "load_weights", side_effect=AssertionError("weights were read")):
            try:
                forgotten(place, "refused", layout=layout, batch_size=1)
            except InputError as error:
                message = str(error)
        good = "a batch of 1 forget examples cannot be divided over the 2 devices" in message
        report(CHECKS[4], good and not (place / "refused").exists(), message)


def forgotten(
    place: Path,
    out: str,
    *,
    layout: Layout | None = None,
    lora: Lora | None = None,
    stop: bool = False,
    resume: bool = False,
    batch_size: int = 2,
) -> tuple[Any, list[tuple[Any, Any]]]:
    """The weights that are written, None if the run is stopped in its second epoch; and the network, as parameters and
    model state, that the run is given and that it ends with."""
    settings = dataclasses.replace(
        token_settings("gradient_ascent")(), epochs=2, batch_size=batch_size, learning_rate=0.01
    )
    job = unlearning.LanguageJob(
        model=place / "model",
        forget=place / "forget.json",
        retain=place / "retain.json",
        method="gradient_ascent",
        settings=settings,
        lora=lora,
    )
    networks: list[tuple[Any, Any]] = []
    run, follow = unlearning.run, unlearning.follow_steps

    def watched(method: Any, key: Any, params: Any, model_state: Any, *arguments: Any, **options: Any) -> Any:
        networks.append((params, model_state))
        result = run(method, key, params, model_state, *arguments, **options)
        networks.append((result.params, result.model_state))
        return result

    def followed(*arguments: Any) -> Any:
        def stopping(progress: Any) -> None:
            if progress.epoch == 1:
                raise KeyboardInterrupt

        return stopping if stop else follow(*arguments)

    stopped = contextlib.suppress(KeyboardInterrupt) if stop else contextlib.nullcontext()
    with mock.patch.multiple(unlearning, run=watched, follow_steps=followed), stopped:
        unlearning.unlearn_language(job, place / out, layout=layout, resume=resume, console=Console(quiet=True))
        return read_weights(open_language_folder(place / out / unlearning.MODEL_FOLDER)), networks
    return None, networks


def largest_difference(one: Any, other: Any) -> float:
    """The largest difference of two numbers, as a share of the largest number."""
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    return float(max(np.abs(a - b).max() for a, b in pairs) / max(np.abs(a).max() for a, _ in pairs))


def is_divided(params: Any, layout: Layout) -> bool:
    """Whether embedding, head, attention and perceptron are in four parts, norms whole, and a device has its share."""
    layer = params["model"]["layers"]["0"]
    large = [params["model"]["embed_tokens"]["embedding"], params["lm_head"]["kernel"]]
    large += [layer["self_attn"][f"{name}_proj"]["kernel"] for name in ("q", "o")]
    large += [layer["mlp"][f"{name}_proj"]["kernel"] for name in ("gate", "up", "down")]
    shards = [shard for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards]
    on_one = sum(shard.data.nbytes for shard in shards if shard.device.id == 0)
    return (
        {shard.data.size / leaf.size for leaf in large for shard in leaf.addressable_shards} == {0.25}
        and {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)} == {4}
        and params["model"]["norm"]["scale"].is_fully_replicated
        and on_one == layout.nbytes(params)
    )
