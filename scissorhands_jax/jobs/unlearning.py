"""What `scissorhands unlearn` does: reads a network, makes it forget, and writes the result with its measurements."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import hashing, report, torch_weights
from scissorhands_jax.base import Dataset, Method, ModelState, Params
from scissorhands_jax.datasets import forget_sets
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import originals, run_summaries, runs
from scissorhands_jax.jobs.config import RunConfig
from scissorhands_jax.jobs.earlier_runs import NETWORK_FOLDER, WEIGHTS_FILE, parse_run_config, write_past
from scissorhands_jax.jobs.job import Job, prepare_job
from scissorhands_jax.jobs.progress import follow_steps, progress_bar
from scissorhands_jax.methods.settings import asks_for_held_out
from scissorhands_jax.metrics import accuracies, answers
from scissorhands_jax.metrics.distances import quality_of
from scissorhands_jax.metrics.row import measure_row
from scissorhands_jax.report import table_gates
from scissorhands_jax.terminal import Console, say
from scissorhands_jax.training import checkpoints, distributed, feeding, sharding
from scissorhands_jax.training.loop import Result, run

_PAGE_FILE = "report.html"


@dataclasses.dataclass(frozen=True)
class RunCost:
    """What a run took."""

    steps: int
    """The number of steps, with those before a resume."""
    resumed_at_step: int | None
    """The step that the run was resumed at; None if it ran from its beginning."""
    seconds: float
    """The time without compilation; of a resumed run, that of its last part."""
    compile_seconds: float
    """The time of compilation; of a resumed run, that of its last part."""


@dataclasses.dataclass(frozen=True)
class ForgottenSet:
    """The examples that a run forgot: their specification, their number, and the SHA-256 of their positions."""

    spec: str
    count: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class TrainedOnSet:
    """The examples that the original was trained on: their number, and the SHA-256 of their positions."""

    count: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResults:
    """What came out of a run: the content of its `results.json`."""

    rows: list[report.Row]
    """The rows of the original and of the unlearned network, in the common format of tables."""
    gates: list[dict[str, Any]]
    """The gates of these rows (`report.table_gates`)."""
    before: dict[str, Any]
    """The numbers of the original, as `metrics.row.measure_row` returns them, and those that `unlearn` adds."""
    after: dict[str, Any]
    """The same of the unlearned network."""
    cost: RunCost
    forget: ForgottenSet
    trained_on: TrainedOnSet
    config: RunConfig
    """The job, with a value for every setting that depends on the data set or the network."""
    finished: str
    """The time in UTC at which the run ended, in ISO 8601."""
    versions: dict[str, Any]
    machine: dict[str, Any]
    made_by: dict[str, Any]
    """The commit, the command and the date (`report.environment`)."""
    ceiling: float | None
    """The loss on validation examples that a ceiling "held-out" stands for; None for any other ceiling."""
    layout: dict[str, Any] | None
    """The sizes of the device mesh, whether parameters were divided, and the number of processes; None for one device.
    """
    doubts: list[str] = dataclasses.field(default_factory=list)
    """Why the original was perhaps not worth unlearning (`jobs.originals.doubts`)."""
    summary: list[str] = dataclasses.field(default_factory=list)
    """What the run did, in sentences, the first a warning if it cost too much (`run_summaries.run_summary`)."""

    def document(self) -> dict[str, Any]:
        """The results as JSON, without `ceiling` and `layout` where they are None."""
        document = dataclasses.asdict(self)
        return {k: v for k, v in document.items() if v is not None or k not in ("ceiling", "layout")}

    @classmethod
    def read(cls, path: Path) -> RunResults:
        """Reads what `document` gave.

        Raises:
          InputError: The file is damaged.
        """
        found = report.read_results(path)
        try:
            parts = {
                "cost": RunCost(**found["cost"]),
                "forget": ForgottenSet(**found["forget"]),
                "trained_on": TrainedOnSet(**found["trained_on"]),
                "config": parse_run_config(found["config"], str(path)),
            }
            return cls(**{"ceiling": None, "layout": None, **found, **parts})
        except (TypeError, KeyError) as error:
            raise InputError(f"{path} is damaged ({error}); remove it, and it is written again") from error


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
    insist: bool = False,
    max_loss: float = run_summaries.MAX_LOSS,
    advise: bool = True,
    console: Console,
) -> RunResults:
    """Runs one unlearning job and writes its folder.

    The folder then holds `results.json`, `report.html`, the network as an Orbax checkpoint (`network/`) and with
    PyTorch's names (`network.safetensors`), the forgotten positions and the run's checkpoints. Input is checked before
    the folder is touched; the network and the results are written only once the run has ended well.

    Jobs can follow one another: if the network comes from an earlier run, the examples that this run and those before
    it forgot are in neither the forget nor the retain set, and the accuracy on them is reported as
    `acc_forgotten_before`. If the forget set is `mislabelled:FILE` with the right labels, `acc_corrected` is the share
    of its examples that get their right label.

    Args:
      config: The job.
      out: The folder, which must be new, or hold a run that is to be replaced or resumed.
      checkpoint_every: The number of steps between two checkpoints; None saves at the end of every epoch only.
      overwrite: Whether a run that is in the folder is replaced.
      resume: Whether a run that is in the folder is continued from its last checkpoint. Without a run there, one is
        started; of one that has ended, the results are read.
      layout: How the work is divided over many devices, perhaps those of many processes (`distributed.start`); None is
        one device. All processes then make the same call, with a folder that all of them can write to, and the first
        of them writes what is not divided. A run can be resumed with another layout and another number of processes.
      steps_per_call, feed_from: As in `training.run`.
      insist: Whether to unlearn an original that does not answer its training set, or that does not know the forget
        set, all the same (see `jobs.originals`). It is then only said.
      max_loss: The percentage points of accuracy that the run may cost without a warning (see `jobs.judgement`).
      advise: Whether the last line says what to do next; a caller who judges the run has other advice.
      console: Where progress and tables are shown.

    Raises:
      InputError: Something in the configuration, the files or the folder cannot be used, or the original is not worth
        unlearning.
      NonFiniteError: The run diverged; its last good checkpoint stays in the folder.
    """
    feeding.check_feed(feed_from, layout, steps_per_call)
    if not max_loss >= 0:
        raise InputError(f"--max-loss must be a number of percentage points that is not negative, got {max_loss}")
    job = prepare_job(config)
    config = job.config
    identity = job.identity(layout)
    distributed.agree("job", identity.compared())
    method = job.method(config.method)
    if layout is not None and config.method.epochs:
        layout.check_batches(list(method.batches(jax.random.key(config.seed), job.data, 0)))
    options: dict[str, Any] = {"inputs": job.inputs, "overwrite": overwrite, "resume": resume}
    opened = runs.open_folder(out, identity, **options, warn=False)  # as checkpoints do
    with contextlib.ExitStack() as stack:
        fresh = distributed.from_first(lambda: stack.enter_context(opened))
        with runs.cleared_if_refused(out, fresh, runs.CHECKPOINTS_SAVED):
            distributed.agree_on_file(out / runs.RUN_FILE)
            if not fresh and distributed.from_first(lambda: _has_ended(out)):
                say(console, f"the run in {out} has ended; nothing is left to do")
                return RunResults.read(out / runs.RESULTS_FILE)
            refuse = functools.partial(_refuse_original, job, insist=insist, console=console)
            keeper = checkpoints.Checkpointer(out / runs.CHECKPOINTS_FOLDER, every_steps=checkpoint_every)
            stack.callback(keeper.close)
            feeding_options: dict[str, Any] = {"steps_per_call": steps_per_call, "feed_from": feed_from}
            made = _carried_out(job, method, out, keeper, layout, refuse, console=console, **feeding_options)
        results, result, history = made
        seen = run_summaries.seen_by_steps(method, config.seed, job.data, config.method.epochs)
        measured = (results.before, results.after, results.gates)
        told = run_summaries.run_summary(config, *measured, seen=seen, steps=result.steps, max_loss=max_loss)
        results = dataclasses.replace(results, summary=told if advise else told[:-1])
        _save_result(out, job, result)
        if distributed.is_first():
            _present(out, results, history, console)
    return results


def _has_ended(out: Path) -> bool:
    """Whether a run has written everything; its results come last."""
    network = [f"{NETWORK_FOLDER}/{name}" for name in checkpoints.NETWORK_PARTS]
    return all((out / name).exists() for name in (*network, WEIGHTS_FILE, _PAGE_FILE, runs.RESULTS_FILE))


def _carried_out(
    job: Job,
    method: Method,
    out: Path,
    keeper: checkpoints.Checkpointer,
    layout: sharding.Layout | None,
    refuse: Callable[[dict[str, Any], dict[str, float]], None],
    *,
    console: Console,
    **feeding_options: Any,
) -> tuple[RunResults, Result, list[dict]]:
    """Measures the original, runs the method and measures its result, in a folder that is open for the run.

    `refuse` raises an InputError for an original whose numbers say that it is not worth unlearning.
    """
    config = job.config
    if distributed.is_first():
        write_past(out, job.past, job.positions)
        train = job.splits.train
        say(
            console,
            forget_sets.describe_forgotten(job.positions, train["label"], job.splits.class_names)
            if job.splits.task.classifies
            else f"{len(job.positions)} of {data_lib.size(train)} training examples to forget",
        )
        held_out, total = job.splits.held_out, data_lib.size(train)
        if held_out is not None:
            say(console, f"{len(held_out)} of {total} examples are held out for testing; positions count all of them")
        if asks_for_held_out(config.method):
            count = data_lib.size(job.validation.examples)
            say(
                console,
                f"the ceiling of the forget loss is {job.held_out_loss:.3f}, the mean loss on {count} examples that "
                f"the network never saw ({job.validation.what})",
            )
    network = (job.params, job.model_state)
    if layout is not None:
        network = layout.place(network)
    resumed_at = keeper.agreed_step()
    history: list[dict] = []
    with progress_bar(console) as progress:
        task = progress.add_task("evaluating the original", total=1, note=f"{len(job.positions)} examples to forget")
        before = _measure(job, *network, layout)
        compared = originals.compare_with_unseen(
            job.splits.task, job.model, network, config.forget, job.data.forget, job.splits.test, layout
        )
        progress.update(task, completed=1, note=_note(before))
        if resumed_at is None:
            refuse(before, compared)
        result = run(
            method,
            jax.random.key(config.seed),
            *network,
            job.data,
            num_epochs=config.method.epochs,
            checkpoint=keeper,
            on_step=follow_steps(progress, config.method_name, history),
            layout=layout,
            **feeding_options,
        )
        if result.steps == 0:
            progress.update(progress.task_ids[-1], completed=1, total=1, note="done, without steps")
        task = progress.add_task("evaluating the result", total=1, note="")
        after = _measure(job, result.params, result.model_state, layout)
        progress.update(task, completed=1, note=_note(after))

    return _results(job, before, compared, after, result, resumed_at, layout), result, history


def _present(out: Path, results: RunResults, history: list[dict], console: Console) -> None:
    """Writes the results and the report, and prints the tables."""
    _write_report(out / _PAGE_FILE, results, history)
    report.write_results(out / runs.RESULTS_FILE, results.document())
    report.print_tables(results.rows, console)
    say(console, report.gates_note(results.gates))
    say(console, f"written to {out}: {NETWORK_FOLDER}/, {WEIGHTS_FILE}, {runs.RESULTS_FILE}, {_PAGE_FILE}")
    for line in results.summary:
        say(console, line)


def _measure(
    job: Job,
    params: Params,
    model_state: ModelState,
    layout: sharding.Layout | None,
) -> dict[str, Any]:
    """The numbers of a network on the sets of the job; see `unlearn` for those that are not always there."""
    task = job.splits.task
    numbers = measure_row(
        job.model, params, model_state, job.data, job.test, seed=job.config.seed, layout=layout, task=task
    )
    extra: dict[str, Dataset] = {}
    if job.past.forgotten.size:
        extra["forgotten_before"] = data_lib.take(job.splits.train, job.past.forgotten)
    if job.right_labels is not None:
        extra["corrected"] = {**job.data.forget, "label": job.right_labels}
    for name, part in extra.items():
        outputs = accuracies.predict(job.model, params, model_state, task.inputs(part), batch_size=500, layout=layout)
        quality = answers.quality(task, outputs, part)
        numbers |= {f"{task.metrics[0].name}_{name}": quality, f"num_{name}": data_lib.size(part)}
    return numbers


def _refuse_original(
    job: Job, before: dict[str, Any], compared: dict[str, float], *, insist: bool, console: Console
) -> None:
    """Refuses an original that is not worth unlearning, or says so."""
    for doubt in _doubts(job, before, compared):
        if not insist:
            raise InputError(f"{doubt}; --insist unlearns it all the same")
        if distributed.is_first():
            say(console, f"note: {doubt}")


def _doubts(job: Job, before: dict[str, Any], compared: dict[str, float]) -> list[str]:
    """The reasons why the original is not worth unlearning. Retraining does not begin with it, and has none."""
    if job.config.method_name == "retrain":
        return []
    return originals.doubts(job.splits.task, job.config.forget, before, compared, job.data.retain)


def _results(
    job: Job,
    before: dict[str, Any],
    compared: dict[str, float],
    after: dict[str, Any],
    result: Result,
    resumed_at: int | None,
    layout: sharding.Layout | None,
) -> RunResults:
    """Puts together what came out of a run."""
    config = job.config
    scenario = f"{config.dataset}, forget {config.forget}"
    # Of a resumed run only the last part was timed, and the cost of a part would mislead.
    seconds = result.seconds if resumed_at is None else None
    made: dict[str, Any] = report.environment()
    rows = [
        {**_row(scenario, report.ORIGINAL, config.seed, before, None), **compared},
        _row(scenario, config.method_name, config.seed, after, seconds),
    ]
    return RunResults(
        rows=rows,
        gates=[gate._asdict() for gate in table_gates.of_rows(rows)],
        before=before,
        after=after,
        cost=RunCost(result.steps, resumed_at, result.seconds, result.compile_seconds),
        forget=ForgottenSet(config.forget, len(job.positions), hashing.positions_sha256(job.positions)),
        trained_on=TrainedOnSet(len(job.past.trained_on), hashing.positions_sha256(job.past.trained_on)),
        config=config,
        ceiling=job.held_out_loss if asks_for_held_out(config.method) else None,
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        layout=None if layout is None else {**layout.mesh.shape, "fsdp": layout.fsdp, "processes": jax.process_count()},
        doubts=_doubts(job, before, compared),
        **made,
    )


def weights_of(job: Job, params: Params, model_state: ModelState) -> dict[str, np.ndarray]:
    """The arrays that a run writes into the file of the network that it has made, on the host.

    Args:
      job: The job of the run.
      params: The parameters of the network.
      model_state: Its state.

    Returns:
      The arrays by the names of the file that the original comes from, without a prefix.
    """
    arrays = torch_weights.to_state_dict(params, model_state, flatten={})
    return {job.names.get(name, name): array for name, array in arrays.items()}


def _save_result(out: Path, job: Job, result: Result) -> None:
    """Writes the network as a checkpoint, in which all processes take part, and as a file, which the first writes.

    The names in the file are those of `weights_of`. Where these are not the network's, the file says which are, so that
    it can be read without being described again.
    """
    config = job.config
    checkpoints.save_network(out / NETWORK_FOLDER, result.params, result.model_state, dataclasses.asdict(config))
    network = sharding.to_host((result.params, result.model_state))
    if distributed.is_first():
        about = {"model": config.model, "made_by": "scissorhands_jax", "method": config.method_name}
        weights = weights_of(job, *network)
        names = {name: own for name, own in job.names.items() if own in weights}
        torch_weights.write_safetensors(out / WEIGHTS_FILE, weights, about | torch_weights.names_metadata(names))


def _row(scenario: str, method: str, seed: int, numbers: dict[str, Any], seconds: float | None) -> report.Row:
    """A row of the common format; without a retrained network there is no Avg. Gap and no RTE."""
    measured = {"scenario": scenario, "method": method, "seed": seed, "seconds": seconds}
    row = {field: measured.get(field, numbers.get(field)) for field in report.row_fields(numbers)}
    of_task = {} if "task" not in numbers else {name: numbers[name] for name in numbers if name not in row}
    return {**row, **of_task, "num_forget": numbers["num_forget"]}


def _note(numbers: dict[str, Any]) -> str:
    metric = quality_of(numbers)["name"]
    return " ".join(f"{name} {numbers[f'{metric}_{name}']:.2f} %" for name in ("forget", "retain", "test"))


_EXTRA_NUMBERS = {
    "forgotten_before": "{quality} on what earlier requests made it forget",
    "corrected": "The share of the wrongly labelled examples that get their right label",
}


_HOW_TO_READ = (
    "A network that never saw the forgotten examples treats them like test examples: it is about as good on both. MIA "
    "is the share of the forgotten examples that a membership attack judges never to have been seen; it is then about "
    "as large as the same share of the test examples.",
    "The Avg. Gap is missing because it needs a retrained network to compare with. The same command with `--method "
    "retrain` makes one, and `evaluate --retrained` compares the two.",
)


def _write_report(path: Path, results: RunResults, history: list[dict]) -> None:
    config, before, after, cost = results.config, results.before, results.after, results.cost
    histories = {
        name.removeprefix("loss_") + " loss": np.array([row.get(name, np.nan) for row in history])
        for name in ("loss_retain", "loss_forget")
        if any(name in row for row in history)
    }
    metric = quality_of(before)
    quality, key = "accuracy" if metric["name"] == "acc" else metric["title"], metric["name"]
    timed = "The run" if cost.resumed_at_step is None else f"The part after step {cost.resumed_at_step}"
    done = (
        f"{config.method_name} took {cost.steps} steps on a {config.model}, which was to forget {results.forget.count} "
        f"of its training examples ({config.forget}). {timed} took {cost.seconds:.0f} s and {cost.compile_seconds:.0f} "
        "s of compilation.",
        *(
            f"{text.format(quality=quality.capitalize() if key == 'acc' else quality)} went from "
            f"{before[f'{key}_{name}']:.2f} % to {after[f'{key}_{name}']:.2f} %."
            for name, text in _EXTRA_NUMBERS.items()
            if f"{key}_{name}" in after
        ),
    )
    drawn = report.row_pictures(results.rows)
    collapses = [line.removeprefix("warning: ") for line in results.summary if line.startswith("warning: ")]
    report.write_html(
        path,
        report.Page(
            title=f"Unlearning: {config.model} on {config.dataset}",
            answer=f"{config.method_name} ran on a network that was to forget {results.forget.count} training "
            f"example{'' if results.forget.count == 1 else 's'}: its {quality} on them went from "
            f"{before[f'{key}_forget']:.2f} % to {after[f'{key}_forget']:.2f} %, and on the test set from "
            f"{before[f'{key}_test']:.2f} % to {after[f'{key}_test']:.2f} %.",
            warnings=[_sentence(line) for line in (*collapses, *results.doubts)],
            trust=report.gates_summary(results.gates),
            leading=drawn[:1],
            gates=results.gates,
            rows=results.rows,
            figures=[*drawn[1:], *([report.curves_picture(histories)] if histories else [])],
            remarks=[report.Section("In short", [_sentence(line) for line in results.summary])],
            explanations=[report.Section("What was done", done), report.Section("How to read it", _HOW_TO_READ)],
            settings=dataclasses.asdict(config),
            environment=report.environment_of(dataclasses.asdict(results)),
        ),
    )


def _sentence(line: str) -> str:
    """A line of the console as a sentence."""
    return f"{line[:1].upper()}{line[1:]}."
