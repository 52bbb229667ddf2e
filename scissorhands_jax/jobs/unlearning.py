"""One network, from its file to its unlearned file: what `scissorhands unlearn` and `evaluate` do."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from scissorhands_jax import augmentation, datasets, files, losses, models, report, trees
from scissorhands_jax import data as data_lib
from scissorhands_jax.base import Data, Dataset, Method, Model, ModelState, Params, StatefulLossFn
from scissorhands_jax.datasets import forget_sets, splits
from scissorhands_jax.errors import InputError, WeightsError
from scissorhands_jax.jobs import runs, tuning
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.progress import follow, progress_bar
from scissorhands_jax.methods import MethodSettings
from scissorhands_jax.methods.settings import on_upper_layers
from scissorhands_jax.metrics import accuracies
from scissorhands_jax.metrics import row as evaluation
from scissorhands_jax.report import gates
from scissorhands_jax.torch_weights import state_dicts as torch_weights
from scissorhands_jax.training import checkpoints, distributed, feeding, sharding
from scissorhands_jax.training.loop import run

NETWORK_FOLDER = "network"
WEIGHTS_FILE = "network.safetensors"
FORGET_FILE = "forget_indices.txt"
TRAINED_ON_FILE = "trained_on.txt"
FORGOTTEN_BEFORE_FILE = "forgotten_before.txt"
TUNING_FILE = "tuning.json"


def unlearn(
    config: RunConfig,
    out: Path,
    *,
    checkpoint_every: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    layout: sharding.Layout | None = None,
    steps_per_call: int | None = None,
    feed_from: feeding.FeedFrom = "auto",
    console: Console,
) -> dict[str, Any]:
    """Runs one unlearning job and writes its folder.

    The folder then holds `results.json`, `report.html`, the network as an Orbax checkpoint (`network/`) and with
    PyTorch's names (`network.safetensors`), the forgotten positions and the run's checkpoints. Input is checked before
    the folder is touched; the network and the results are written only when the run has ended well.

    Requests can follow one another: where the network comes from an earlier run, what that run and those before it
    forgot is in neither the forget nor the retain set, and its accuracy is reported as `acc_forgotten_before`. Where
    the forget set is `mislabelled:FILE` with the right labels, `acc_corrected` is the share that gets its right label.

    With a `layout` the work is divided over many devices, perhaps those of many processes (`distributed.start`). All of
    these then make the same call, with a folder that all of them see; the first writes into it what is not divided. A
    run can be resumed with another layout and another number of processes. `steps_per_call` and `feed_from` are as in
    `training.run`.

    Returns:
      The document in `results.json`.

    Raises:
      InputError: something in the configuration, the files or the folder cannot be used.
      NonFiniteError: the run diverged; its last good checkpoint stays in the folder.
    """
    feeding.check(feed_from, layout, steps_per_call)
    job = prepared(config)
    config, model, params, model_state, past = job.config, job.model, job.params, job.model_state, job.past
    data, test, positions, splits = job.data, job.test, job.positions, job.splits
    right_labels = _right_labels(config.forget, len(splits.class_names))
    method = job.method(config.method)
    resolved = dataclasses.asdict(config)

    description = {
        **resolved,
        "forget_sha256": hashlib.sha256(positions.tobytes()).hexdigest(),
        "trained_on_sha256": hashlib.sha256(past.trained_on.tobytes()).hexdigest(),
        "train_checksum": job.train_checksum,
        "original_sha256": _sha256(params, model_state),
    }
    if layout is not None and config.method.epochs:
        layout.check_batches(list(method.batches(jax.random.key(config.seed), data, 0)))
    writes = distributed.is_first()
    fresh = distributed.from_first(lambda: runs.open_folder(out, description, overwrite=overwrite, resume=resume))
    if writes:
        _write_positions(out / FORGET_FILE, positions)
        _write_positions(out / TRAINED_ON_FILE, past.trained_on)
        _write_positions(out / FORGOTTEN_BEFORE_FILE, past.forgotten)
    if layout is not None:
        params, model_state = layout.place((params, model_state))

    def measure(params: Params, model_state: ModelState) -> dict[str, Any]:
        numbers = evaluation.evaluate(model, params, model_state, data, test, seed=config.seed, layout=layout)
        extra: dict[str, Any] = {}
        if past.forgotten.size:
            extra["forgotten_before"] = data_lib.take(splits.train, past.forgotten)
        if right_labels is not None:
            extra["corrected"] = {**data.forget, "label": right_labels}
        for name, part in extra.items():
            logits = accuracies.predict(model, params, model_state, part["image"], batch_size=500, layout=layout)
            numbers |= {f"acc_{name}": accuracies.accuracy(logits, part["label"]), f"num_{name}": len(part["label"])}
        return numbers

    keeper = checkpoints.Checkpointer(out / "checkpoints", every_steps=checkpoint_every)
    resumed_at = keeper.latest_step
    history: list[dict] = []
    with _cleared_if_refused(out, keeper, fresh), progress_bar(console) as progress:
        task = progress.add_task("evaluating the original", total=1, note=f"{len(positions)} examples to forget")
        before = measure(params, model_state)
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
            steps_per_call=steps_per_call,
            feed_from=feed_from,
            layout=layout,
        )
        if result.steps == 0:
            progress.update(progress.task_ids[-1], completed=1, total=1, note="done in one go, without steps")
        task = progress.add_task("evaluating the result", total=1, note="")
        after = measure(result.params, result.model_state)
        progress.update(task, completed=1, note=_note(after))

    checkpoints.save_network(out / NETWORK_FOLDER, result.params, result.model_state, resolved)
    network = sharding.to_host((result.params, result.model_state))
    names = {"model": config.model, "made_by": "scissorhands_jax", "method": config.method_name}
    if writes:
        torch_weights.write_safetensors(out / WEIGHTS_FILE, torch_weights.to_state_dict(*network), names)
    scenario = f"{config.dataset}, forget {config.forget}"
    rows = [
        _row(scenario, "original", config.seed, before, None),
        # Of a resumed run only the last part was timed, and half a cost is none.
        _row(scenario, config.method_name, config.seed, after, result.seconds if resumed_at is None else None),
    ]
    document: dict[str, Any] = {
        "rows": rows,
        "gates": [gate._asdict() for gate in gates.of_rows(rows)],
        "before": before,
        "after": after,
        "cost": {
            "steps": result.steps,
            "resumed_at_step": resumed_at,
            "seconds": result.seconds,
            "compile_seconds": result.compile_seconds,
        },
        "forget": {"spec": config.forget, "count": len(positions), "sha256": description["forget_sha256"]},
        "trained_on": {"count": len(past.trained_on), "sha256": description["trained_on_sha256"]},
        "config": resolved,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **report.environment(),
    }
    if layout is not None:
        document["layout"] = {**layout.mesh.shape, "fsdp": layout.fsdp, "processes": jax.process_count()}
    if not writes:
        return document
    report.write_results(out / runs.RESULTS_FILE, document)
    _write_report(out / "report.html", config, document, history)
    report.print_tables(rows, console)
    console.print(report.gates_note(document["gates"]), highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"written to {out}: {NETWORK_FOLDER}/, {WEIGHTS_FILE}, {runs.RESULTS_FILE}, report.html", highlight=False
    )
    return document


def tune(
    config: RunConfig,
    out: Path,
    *,
    num_trials: int,
    max_minutes: float | None,
    overwrite: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Chooses settings of the method for one unlearning job, within a budget, and writes `tuning.json` into a folder.

    Neither the test set (but for the share of it that is set aside for this) nor a retrained network is looked at.

    Args:
      config: the job, as for `unlearn`. Its `validation` is `test:SHARE`, which sets that share of the test set aside,
        drawn with the seed (`unlearn` with the same leaves it out of its test set); `indices:FILE`, examples of the
        training split that the network was not trained on; or None for all of those.
      out: the folder, which must be new or hold an earlier tuning.
      num_trials: the budget.
      max_minutes: no trial starts after so long.

    Returns:
      The document in `tuning.json`: the best settings as overrides, and every trial.

    Raises:
      InputError: something cannot be used, or there is nothing to validate with.
    """
    job = prepared(config)
    config = job.config
    examples, what = _validation(job)
    space = tuning.space_of(config.method_name)
    tuning.check(config.method, space, num_trials)
    description = {"command": "tune", **dataclasses.asdict(config), "trials": num_trials}
    runs.open_folder(out, description, overwrite=overwrite)
    with progress_bar(console) as progress:
        task = progress.add_task(f"tuning {config.method_name}", total=num_trials, note="")

        def on_trial(number: int, trial: tuning.Trial) -> None:
            changes = " ".join(f"{name}={value:g}" for name, value in trial.changes.items())
            progress.update(task, completed=number, note=f"score {trial.score:.2f}  {changes}")

        result = tuning.tune(
            job.model,
            job.method,
            config.method,
            jax.random.key(config.seed),
            job.params,
            job.model_state,
            job.data,
            examples,
            space=space,
            whole_classes=forget_sets.forgets_classes(config.forget),
            num_trials=num_trials,
            max_seconds=None if max_minutes is None else 60 * max_minutes,
            on_trial=on_trial,
        )
    aside = [] if job.set_aside is None else [f"--validation {config.validation}"]
    document = {
        "overrides": [f"method.{name}={value:g}" for name, value in result.best.changes.items()],
        **tuning.as_dict(result),
        "space": space,
        "validation": {"what": what, "count": data_lib.size(examples)},
        "config": dataclasses.asdict(config),
        **report.environment(),
    }
    files.write_text(out / TUNING_FILE, json.dumps(document, indent=2) + "\n")
    console.print(
        f"best of {len(result.trials)} trials, score {result.best.score:.2f} (with the settings as they were: "
        f"{result.trials[0].score:.2f}); hand these to unlearn: {' '.join(document['overrides'] + aside)}",
        highlight=False,
        soft_wrap=True,
    )
    return document


def evaluate_network(
    *,
    model: str,
    dataset: str,
    data_dir: str | None,
    weights: str | None = None,
    checkpoint: str | None = None,
    retrained: str | None = None,
    console: Console,
) -> dict[str, Any]:
    """The test accuracy of a network, and for a run's result also its accuracy on what it forgot and kept.

    The test set of a run's result is the one that the run reported on: without classes that it forgot as a whole, and
    without what was set aside for validation.

    Args:
      retrained: folder of the run that retrained the network of the `checkpoint` without the same forget set; the gates
        of `gates.of_rows` are then run, and `avg_gap` is the distance to it.

    Returns:
      `model`, `dataset`, `acc_test`, `correct_test`, `num_test`, `gates`; with the `checkpoint` of a run also `acc_*`,
      `correct_*`, `num_*` for `forget`, `retain` and, after several requests, `forgotten_before`.

    Raises:
      InputError: something cannot be used, or the retrained network is one for something else.
    """
    rows = _beside(checkpoint, retrained)
    splits = datasets.load(dataset, data_dir)
    described = {} if checkpoint is None else describe_run(checkpoint)
    network = _build(model, splits, described.get("model_options", {}))
    params, model_state = load_weights(network, weights=weights, checkpoint=checkpoint)
    parts = {"test": splits.test}
    if checkpoint is not None and described.get("dataset") == dataset:
        total = data_lib.size(splits.train)
        past, forgotten = _read_past(_run_folder(checkpoint), total)
        data = data_lib.split(splits.train, forgotten, past.trained_on)
        test, _ = _divided(splits.test, described.get("validation"), described.get("seed", 0))
        parts = {"test": splits.known_classes(test, data.retain), "forget": data.forget, "retain": data.retain}
        if past.forgotten.size:
            parts["forgotten_before"] = data_lib.take(splits.train, past.forgotten)
    answer: dict[str, Any] = {"model": model, "dataset": dataset}
    with progress_bar(console) as progress:
        task = progress.add_task("evaluating", total=len(parts), note="")
        for name, part in parts.items():
            logits = accuracies.predict(network, params, model_state, part["image"], batch_size=500)
            answer[f"acc_{name}"] = accuracies.accuracy(logits, part["label"])
            answer[f"correct_{name}"] = accuracies.correct(logits, part["label"])
            answer[f"num_{name}"] = len(part["label"])
            progress.advance(task)
    if retrained is not None:
        rows[-1] |= _held_out_numbers(network, load_weights(network, weights=None, checkpoint=retrained), parts, splits)
        answer["avg_gap"] = accuracies.average_gap(rows[1], rows[-1])
    answer["gates"] = [
        {"name": gate.name.removeprefix(f"{_EVALUATED}: "), "passed": gate.passed, "why": gate.explanation}
        for gate in gates.of_rows(rows)
    ]
    return answer


_EVALUATED = "evaluation"


def _beside(checkpoint: str | None, retrained: str | None) -> list[dict[str, Any]]:
    """The rows of the original and of a run, and that of the retrained network beside them, as the runs noted them."""
    if retrained is None:
        return [{**dict.fromkeys(report.ROW_FIELDS), "scenario": _EVALUATED, "method": gates.ORIGINAL}]
    if checkpoint is None:
        raise InputError("--retrained stands beside a run; name that with --checkpoint RUN")
    own, other = (report.read_results(_run_folder(run) / runs.RESULTS_FILE) for run in (checkpoint, retrained))
    if other["config"].get("method_name") != report.REFERENCE:
        raise InputError(f"{retrained} is a run of {other['config'].get('method_name')}; name one of --method retrain")
    for part in ("forget", "trained_on"):
        if own.get(part, {}).get("sha256") != other.get(part, {}).get("sha256"):
            what = "forgot other examples" if part == "forget" else "began with another training set"
            raise InputError(f"{retrained} {what} than {checkpoint}, so the two cannot be compared")
    rows = [*own["rows"], *other["rows"][1:]]
    return [{**row, "scenario": _EVALUATED, "seed": None} for row in rows]


def _held_out_numbers(
    model: Model, network: tuple[Params, ModelState], parts: Mapping[str, Dataset], splits: datasets.Splits
) -> dict[str, float]:
    """The forget set beside the test set, class by class, as a retrained network sees them."""
    if "forget" not in parts:
        return {}
    shown = []
    for part in (parts["forget"], splits.test):
        label = np.asarray(part["label"])
        shown += [accuracies.predict(model, *network, part["image"], batch_size=500), label, label]
    return gates.held_out_numbers(*shown)


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
    key = jax.random.key(0)
    params, model_state = jax.eval_shape(model.init, key)
    if checkpoint is not None:
        return checkpoints.load_network(_network_folder(checkpoint), params, model_state)
    if weights is None:
        raise InputError("name the original network with --weights FILE or --checkpoint RUN")
    state_dict = torch_weights.read_state_dict(weights)
    # Counters that older files lack keep the template's value, so these are real; fresh weights are not compiled.
    model_state = jax.jit(lambda key: model.init(key)[1])(key)
    network = torch_weights.from_state_dict(state_dict, params, model_state)
    for name, leaf in zip(trees.leaf_names(network), jax.tree.leaves(network), strict=True):
        if not np.all(np.isfinite(leaf)):
            raise WeightsError(
                f"{weights} holds NaN or infinity in {name.partition('/')[2]}, so there is no network to work with"
            )
    return network


def original_network(config: RunConfig) -> tuple[Params, ModelState]:
    """The network that a job would begin with, without what else the job needs.

    Raises:
      InputError: the data set, whose shapes the network has, or the network cannot be read.
    """
    model = _build(config.model, datasets.load(config.dataset, config.data_dir), config.model_options)
    return load_weights(model, weights=config.weights, checkpoint=config.checkpoint)


class Job(NamedTuple):
    """What an unlearning job is made of, read and checked."""

    config: RunConfig  # with nothing left open
    splits: datasets.Splits
    model: Model
    params: Params
    model_state: ModelState
    past: _Past
    positions: np.ndarray  # of the forget set, in the training split
    data: Data
    test: Dataset
    set_aside: Dataset | None  # the share of the test split that is for validation
    train_checksum: str
    loss_fn: StatefulLossFn

    def method(self, settings: MethodSettings) -> Method:
        """The method of some settings for this network and these data."""
        return settings.build(self.model, self.loss_fn, len(self.splits.class_names))


def prepared(config: RunConfig, check: Callable[[RunConfig, Model], None] | None = None) -> Job:
    """Reads and checks everything that a job needs; see `unlearn` for the errors.

    Args:
      check: what to look at before the weights are read and anything is compiled; where it is given, a job without
        weights has fresh ones.
    """
    if config.retain_limit is not None and config.retain_limit < 1:
        raise InputError(f"--retain-limit must be at least 1, got {config.retain_limit}")
    splits = datasets.load(config.dataset, config.data_dir)
    config = _resolved(config, splits)
    model = _build(config.model, splits, config.model_options)
    if check is not None:
        check(config, model)
    if check is not None and config.weights is None and config.checkpoint is None:
        params, model_state = model.init(jax.random.key(config.seed))
    else:
        params, model_state = load_weights(model, weights=config.weights, checkpoint=config.checkpoint)
    train_checksum = checkpoints.checksum(splits.train)
    past = _past(config, data_lib.size(splits.train), train_checksum)
    positions = forget_sets.forget_positions(
        config.forget,
        splits.train["label"],
        seed=config.seed,
        class_names=splits.class_names,
        trained_on=past.trained_on,
    )
    data = data_lib.split(splits.train, positions, past.trained_on)
    test, set_aside = _divided(splits.test, config.validation, config.seed)
    test = splits.known_classes(test, data.retain)
    data = _limited(data, config)
    augment = functools.partial(augmentation.crop_and_flip, padding=splits.crop_padding) if config.augment else None
    loss_fn = losses.classification_loss(model, augment=augment)
    return Job(
        config, splits, model, params, model_state, past, positions, data, test, set_aside, train_checksum, loss_fn
    )


def _divided(test: Dataset, validation: str | None, seed: int) -> tuple[Dataset, Dataset | None]:
    """The test split, and the share of it that is set aside for validation, if any."""
    kind, _, value = (validation or "").partition(":")
    if validation is not None and (kind not in ("test", "indices") or not value):
        raise InputError(f"cannot read the validation set {validation!r}; write test:0.5 or indices:FILE")
    if kind != "test":
        return test, None
    aside = forget_sets.forget_positions(f"random:{value}", test["label"], seed=seed)
    rest = np.setdiff1d(np.arange(data_lib.size(test)), aside)
    return data_lib.take(test, rest), data_lib.take(test, aside)


def _validation(job: Job) -> tuple[Dataset, str]:
    """Examples that the network has never seen, of the classes that stay, and what they are."""
    spec, train, total = job.config.validation, job.splits.train, data_lib.size(job.splits.train)
    unseen = np.setdiff1d(np.arange(total), np.union1d(job.past.trained_on, job.past.forgotten))
    if job.set_aside is not None:
        found, what = job.set_aside, f"{spec}, seed {job.config.seed}"
    elif spec is None:
        if unseen.size == 0:
            raise InputError(
                "the network was trained on the whole training split, so there is nothing to validate with; set a part "
                "of the test set aside with --validation test:0.5, or say what it saw with --trained-on FILE"
            )
        found, what = data_lib.take(train, unseen), "the training split's examples that the network was not trained on"
    else:
        file = spec.partition(":")[2]
        positions = data_lib.check_positions(forget_sets.read_positions(Path(file)), total)
        if not np.isin(positions, unseen).all():
            count = np.count_nonzero(~np.isin(positions, unseen))
            raise InputError(f"{count} of the examples in {file} were trained on; tune on others")
        found, what = data_lib.take(train, positions), f"{spec}, of the training split"
    found = splits.known_classes(found, job.data.retain)
    if data_lib.size(found) == 0:
        raise InputError("the validation set holds no example of the classes that stay; name another")
    return found, what


def _network_folder(checkpoint: str | Path) -> Path:
    folder = Path(checkpoint)
    # A network's own folder has a part of that name in it, too.
    return folder / NETWORK_FOLDER if (folder / NETWORK_FOLDER / NETWORK_FOLDER).is_dir() else folder


class _Past(NamedTuple):
    """What became of a network before a run; sorted int32 positions in the training split of its data set."""

    trained_on: np.ndarray  # and has not forgotten since
    forgotten: np.ndarray  # by earlier runs


def _past(config: RunConfig, total: int, train_checksum: str) -> _Past:
    """As the user says, or as the run that made the network has written it down; else all was trained on.

    Raises:
      InputError: nobody knows, or both say it.
    """
    nothing = np.zeros(0, np.int32)
    told = None
    if config.trained_on is not None:
        told = data_lib.check_training_set(forget_sets.read_positions(Path(config.trained_on)), total)
    if config.checkpoint is not None and "forget" in describe_run(config.checkpoint):
        folder = _run_folder(config.checkpoint)
        what = f"the network in {config.checkpoint} has forgotten examples before"
        if not (folder / runs.RUN_FILE).is_file():
            known = False
        else:
            known = runs.read_description(folder).get("train_checksum") == train_checksum
        if known and told is not None:
            raise InputError(f"{what}, and its run has noted what it was trained on; leave --trained-on out")
        if known:
            past, forgotten = _read_past(folder, total)
            return _Past(
                np.setdiff1d(past.trained_on, forgotten, assume_unique=True),
                np.union1d(past.forgotten, forgotten),
            )
        if told is None:
            raise InputError(
                f"{what}, of other data than these or in a run that is not there; add --trained-on FILE with the "
                "positions in these data that it was trained on and has not forgotten"
            )
    return _Past(np.arange(total, dtype=np.int32) if told is None else told, nothing)


def _read_past(folder: Path, total: int) -> tuple[_Past, np.ndarray]:
    """What a run has noted: the past of its original network, and what the run itself forgot."""
    trained_on = data_lib.check_training_set(forget_sets.read_positions(folder / TRAINED_ON_FILE), total)
    forgotten = data_lib.check_positions(forget_sets.read_positions(folder / FORGET_FILE), total)
    before = forget_sets.read_positions(folder / FORGOTTEN_BEFORE_FILE)
    return _Past(trained_on, data_lib.check_positions(before, total) if before.size else before), forgotten


def _write_positions(path: Path, positions: np.ndarray) -> None:
    files.write_text(path, "".join(f"{position}\n" for position in positions))


def _right_labels(forget: str, num_classes: int) -> np.ndarray | None:
    """The right labels of a `mislabelled:FILE`, in the order of the forget set; None where there are none."""
    kind, _, path = forget.partition(":")
    if kind != "mislabelled":
        return None
    labels = forget_sets.read_mislabelled(Path(path))[1]
    if labels is not None and labels.max() >= num_classes:
        raise InputError(f"{path} has the label {labels.max()}; the data set has 0 to {num_classes - 1}")
    return labels


def _run_folder(checkpoint: str | Path) -> Path:
    """The folder of the run that a network came from, which may be given by the folder of the network itself."""
    return _network_folder(checkpoint).parent


def _build(name: str, splits: datasets.Splits, options: Mapping[str, Any]) -> Model:
    return models.build(name, num_classes=len(splits.class_names), image_shape=splits.image_shape, **options)


@contextlib.contextmanager
def _cleared_if_refused(out: Path, keeper: checkpoints.Checkpointer, fresh: bool) -> Iterator[None]:
    """Removes a folder made for a run that was refused before it saved anything; nothing then blocks the next try."""
    try:
        yield
    except InputError:
        if fresh and keeper.latest_step is None and distributed.is_first():
            shutil.rmtree(out)
        raise
    finally:
        keeper.close()


def _resolved(config: RunConfig, splits: datasets.Splits) -> RunConfig:
    """Fills in what depends on the data set and the network."""
    if config.augment is None:
        config = dataclasses.replace(config, augment=splits.augmented)
    return dataclasses.replace(config, method=on_upper_layers(config.method, config.model))


def _limited(data: Data, config: RunConfig) -> Data:
    count = data_lib.size(data.retain)
    if config.retain_limit is None or config.retain_limit >= count:
        return data
    chosen = np.random.default_rng([config.seed, 1]).choice(count, config.retain_limit, replace=False)
    return data._replace(retain=data_lib.take(data.retain, np.sort(chosen)))


def _row(scenario: str, method: str, seed: int, numbers: dict[str, Any], seconds: float | None) -> dict[str, Any]:
    """A row of the common format; without a retrained network there is no Avg. Gap and no RTE."""
    measured = {"scenario": scenario, "method": method, "seed": seed, "seconds": seconds}
    row = {field: measured.get(field, numbers.get(field)) for field in report.ROW_FIELDS}
    return {**row, "num_forget": numbers["num_forget"]}


def _note(numbers: dict[str, Any]) -> str:
    return " ".join(f"{name} {numbers[f'acc_{name}']:.2f} %" for name in ("forget", "retain", "test"))


def _sha256(*parts: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(parts):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


_EXTRA_NUMBERS = {
    "acc_forgotten_before": "Accuracy on what earlier requests made it forget",
    "acc_corrected": "The share of the wrongly labelled examples that get their right label",
}


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
                *(
                    f"{text} went from {before[name]:.2f} % to {after[name]:.2f} %."
                    for name, text in _EXTRA_NUMBERS.items()
                    if name in after
                ),
            ],
        ),
        (
            "How to read it",
            [
                "A network that never saw the forgotten examples treats them like test examples: about the same "
                "accuracy, and an attacker who tells members from non-members (MIA, the share judged never seen) finds "
                "about as many as in the test set. Without a retrained network beside it there is no Avg. Gap. One is "
                "made by the same command with `--method retrain`, and `evaluate --retrained` puts it beside this one.",
            ],
        ),
    ]
    report.write_html(
        path,
        title=f"Unlearning: {config.model} on {config.dataset}",
        summary_sections=[*summary, report.gates_section(document["gates"])],
        rows=document["rows"],
        figures=report.pictures(document["rows"], histories or None),
        settings=document["config"],
        environment={"versions": document["versions"], "machine": document["machine"]},
    )
