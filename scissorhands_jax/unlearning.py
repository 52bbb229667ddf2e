"""One network, from its file to its unlearned file: what `scissorhands unlearn` and `evaluate` do."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from scissorhands_jax import (
    checkpoints,
    datasets,
    evaluation,
    files,
    losses,
    metrics,
    models,
    report,
    runs,
    torch_weights,
    trees,
)
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Model, ModelState, Params
from scissorhands_jax.config import RunConfig
from scissorhands_jax.errors import InputError, WeightsError
from scissorhands_jax.progress import follow, progress_bar
from scissorhands_jax.training import run

NETWORK_FOLDER = "network"
WEIGHTS_FILE = "network.safetensors"
FORGET_FILE = "forget_indices.txt"


def unlearn(
    config: RunConfig,
    out: Path,
    *,
    checkpoint_every: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Runs one unlearning job and writes its folder.

    The folder then holds `results.json`, `report.html`, the network as an Orbax checkpoint (`network/`) and with
    PyTorch's names (`network.safetensors`), the forgotten positions and the run's checkpoints. Input is checked before
    the folder is touched; the network and the results are written only when the run has ended well.

    Returns:
      The document in `results.json`.

    Raises:
      InputError: something in the configuration, the files or the folder cannot be used.
      NonFiniteError: the run diverged; its last good checkpoint stays in the folder.
    """
    if config.retain_limit is not None and config.retain_limit < 1:
        raise InputError(f"--retain-limit must be at least 1, got {config.retain_limit}")
    splits = datasets.load(config.dataset, config.data_dir)
    config = _resolved(config, splits)
    model = _build(config.model, splits)
    params, model_state = load_weights(model, weights=config.weights, checkpoint=config.checkpoint)
    positions = data_lib.forget_positions(config.forget, splits.train["label"], seed=config.seed)
    data = data_lib.split(splits.train, positions)
    data = _limited(data, config)
    test = splits.test
    if config.forget.startswith("class:"):
        test = data_lib.take(test, np.flatnonzero(test["label"] != int(config.forget.partition(":")[2])))
    augment = data_lib.crop_and_flip if config.augment else None
    method = config.method.build(model, losses.classification_loss(model, augment=augment), len(splits.class_names))
    resolved = dataclasses.asdict(config)

    description = {
        **resolved,
        "forget_sha256": hashlib.sha256(positions.tobytes()).hexdigest(),
        "original_sha256": _sha256(params, model_state),
    }
    fresh = runs.open_folder(out, description, overwrite=overwrite, resume=resume)
    files.write_text(out / FORGET_FILE, "".join(f"{position}\n" for position in positions))
    keeper = checkpoints.Checkpointer(out / "checkpoints", every_steps=checkpoint_every)
    resumed_at = keeper.latest_step
    history: list[dict] = []
    with _cleared_if_refused(out, keeper, fresh), progress_bar(console) as progress:
        task = progress.add_task("evaluating the original", total=1, note=f"{len(positions)} examples to forget")
        before = evaluation.evaluate(model, params, model_state, data, test, seed=config.seed)
        progress.update(task, completed=1, note=_note(before))
        result = run(
            method,
            jax.random.key(config.seed),
            params,
            model_state,
            data,
            num_epochs=config.method.epochs,
            checkpoint=keeper,
            on_step=follow(progress, config.method_name, history),
        )
        task = progress.add_task("evaluating the result", total=1, note="")
        after = evaluation.evaluate(model, result.params, result.model_state, data, test, seed=config.seed)
        progress.update(task, completed=1, note=_note(after))

    checkpoints.save_network(out / NETWORK_FOLDER, result.params, result.model_state, resolved)
    names = {"model": config.model, "made_by": "scissorhands_jax", "method": config.method_name}
    torch_weights.write_safetensors(
        out / WEIGHTS_FILE, torch_weights.to_state_dict(result.params, result.model_state), names
    )
    scenario = f"{config.dataset}, forget {config.forget}"
    rows = [
        _row(scenario, "original", config.seed, before, None),
        # Of a resumed run only the last part was timed, and half a cost is none.
        _row(scenario, config.method_name, config.seed, after, result.seconds if resumed_at is None else None),
    ]
    document = {
        "rows": rows,
        "before": before,
        "after": after,
        "cost": {
            "steps": result.steps,
            "resumed_at_step": resumed_at,
            "seconds": result.seconds,
            "compile_seconds": result.compile_seconds,
        },
        "forget": {"spec": config.forget, "count": len(positions), "sha256": description["forget_sha256"]},
        "config": resolved,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **report.environment(),
    }
    report.write_results(out / runs.RESULTS_FILE, document)
    _write_report(out / "report.html", config, document, history)
    report.print_tables(rows, console)
    console.print(
        f"written to {out}: {NETWORK_FOLDER}/, {WEIGHTS_FILE}, {runs.RESULTS_FILE}, report.html", highlight=False
    )
    return document


def evaluate_network(
    *,
    model: str,
    dataset: str,
    data_dir: str | None,
    weights: str | None = None,
    checkpoint: str | None = None,
    console: Console,
) -> dict[str, Any]:
    """The test accuracy of a network, and for a run's result also its accuracy on what it forgot and kept.

    Returns:
      `model`, `dataset`, `acc_test`, `correct_test`, `num_test`; with `checkpoint` also `acc_*`, `correct_*`, `num_*`
      for `forget` and `retain`.
    """
    splits = datasets.load(dataset, data_dir)
    network = _build(model, splits)
    params, model_state = load_weights(network, weights=weights, checkpoint=checkpoint)
    parts = {"test": splits.test}
    if checkpoint is not None and describe_run(checkpoint)["dataset"] == dataset:
        total = data_lib.size(splits.train)
        forgotten = data_lib.check_positions(data_lib.read_positions(Path(checkpoint) / FORGET_FILE), total)
        data = data_lib.split(splits.train, forgotten)
        parts |= {"forget": data.forget, "retain": data.retain}
    answer: dict[str, Any] = {"model": model, "dataset": dataset}
    with progress_bar(console) as progress:
        task = progress.add_task("evaluating", total=len(parts), note="")
        for name, part in parts.items():
            logits = metrics.predict(network, params, model_state, part["image"], batch_size=500)
            answer[f"acc_{name}"] = metrics.accuracy(logits, part["label"])
            answer[f"correct_{name}"] = metrics.correct(logits, part["label"])
            answer[f"num_{name}"] = len(part["label"])
            progress.advance(task)
    return answer


def describe_run(checkpoint: str | Path) -> dict[str, Any]:
    """The configuration of the run whose network lies in a folder.

    Raises:
      CheckpointError: the folder holds no finished run.
    """
    return checkpoints.read_description(_network_folder(checkpoint))


def load_weights(model: Model, *, weights: str | None, checkpoint: str | None) -> tuple[Params, ModelState]:
    """The network from a PyTorch or safetensors file, or from the folder of an earlier run.

    Raises:
      WeightsError: the file is damaged or belongs to another network.
      CheckpointError: the same for a run.
    """
    params, model_state = jax.eval_shape(model.init, jax.random.key(0))
    if checkpoint is not None:
        return checkpoints.load_network(_network_folder(checkpoint), params, model_state)
    if weights is None:
        raise InputError("name the original network with --weights FILE or --checkpoint RUN")
    state_dict = torch_weights.read_state_dict(weights)
    # Counters that older files lack keep the template's value, so the template has real arrays.
    params, model_state = model.init(jax.random.key(0))
    network = torch_weights.from_state_dict(state_dict, params, model_state)
    for name, leaf in zip(trees.leaf_names(network), jax.tree.leaves(network), strict=True):
        if not np.all(np.isfinite(leaf)):
            raise WeightsError(
                f"{weights} holds NaN or infinity in {name.partition('/')[2]}, so there is no network to work with"
            )
    return network


def _network_folder(checkpoint: str | Path) -> Path:
    folder = Path(checkpoint)
    return folder / NETWORK_FOLDER if (folder / NETWORK_FOLDER).is_dir() else folder


def _build(name: str, splits: datasets.Splits) -> Model:
    return models.build(name, num_classes=len(splits.class_names), image_shape=splits.image_shape)


@contextlib.contextmanager
def _cleared_if_refused(out: Path, keeper: checkpoints.Checkpointer, fresh: bool) -> Iterator[None]:
    """Removes a folder made for a run that was refused before it saved anything; nothing then blocks the next try."""
    try:
        yield
    except InputError:
        if fresh and keeper.latest_step is None:
            shutil.rmtree(out)
        raise
    finally:
        keeper.close()


def _resolved(config: RunConfig, splits: datasets.Splits) -> RunConfig:
    """Fills in what depends on the data set and the network."""
    if config.augment is None:
        config = dataclasses.replace(config, augment=splits.augmented)
    if getattr(config.method, "trim", "") is None:
        upper = models.UPPER_LAYERS.get(config.model)
        config = dataclasses.replace(config, method=dataclasses.replace(config.method, trim=upper))
    return config


def _limited(data: Data, config: RunConfig) -> Data:
    count = data_lib.size(data.retain)
    if config.retain_limit is None or config.retain_limit >= count:
        return data
    chosen = np.random.default_rng([config.seed, 1]).choice(count, config.retain_limit, replace=False)
    return data._replace(retain=data_lib.take(data.retain, np.sort(chosen)))


def _row(scenario: str, method: str, seed: int, numbers: dict[str, Any], seconds: float | None) -> dict[str, Any]:
    """A row of the common format; without a retrained network there is no Avg. Gap and no RTE."""
    measured = {"scenario": scenario, "method": method, "seed": seed, "seconds": seconds}
    return {field: measured.get(field, numbers.get(field)) for field in report.ROW_FIELDS}


def _note(numbers: dict[str, Any]) -> str:
    return " ".join(f"{name} {numbers[f'acc_{name}']:.2f} %" for name in ("forget", "retain", "test"))


def _sha256(*parts: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(parts):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _write_report(path: Path, config: RunConfig, document: dict[str, Any], history: list[dict]) -> None:
    before, after, cost = document["before"], document["after"], document["cost"]
    histories = {
        name.removeprefix("loss_") + " loss": np.array([row.get(name, np.nan) for row in history])
        for name in ("loss_retain", "loss_forget")
        if any(name in row for row in history)
    }
    summary = [
        (
            "What was done",
            [
                f"{config.method_name} made a {config.model} forget {document['forget']['count']} of its training "
                f"examples ({config.forget}) in {cost['steps']} steps. "
                + ("It" if cost["resumed_at_step"] is None else f"What came after step {cost['resumed_at_step']}")
                + f" took {cost['seconds']:.0f} s and {cost['compile_seconds']:.0f} s of compilation.",
                f"Accuracy on the forgotten examples went from {before['acc_forget']:.2f} % to "
                f"{after['acc_forget']:.2f} %, on the test set from {before['acc_test']:.2f} % to "
                f"{after['acc_test']:.2f} %.",
            ],
        ),
        (
            "How to read it",
            [
                "A network that never saw the forgotten examples treats them like test examples: about the same "
                "accuracy, and an attacker who tells members from non-members (MIA, the share judged never seen) finds "
                "about as many as in the test set. Without a retrained network beside it there is no Avg. Gap.",
            ],
        ),
    ]
    report.write_html(
        path,
        title=f"Unlearning: {config.model} on {config.dataset}",
        summary_sections=summary,
        rows=document["rows"],
        figures=report.pictures(document["rows"], histories or None),
        settings=document["config"],
        environment={"versions": document["versions"], "machine": document["machine"]},
    )
