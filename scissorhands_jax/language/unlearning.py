"""What `scissorhands lm unlearn` does: reads a published language model, makes it forget, and writes it back."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import data as data_lib
from scissorhands_jax import files, hashing, reading, report
from scissorhands_jax.base import Data, Dataset, Method, Model, ModelState, Params
from scissorhands_jax.errors import InputError, check_seed
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import follow_steps, progress_bar
from scissorhands_jax.language import lora as lora_lib
from scissorhands_jax.language.chat_templates import ChatTemplate
from scissorhands_jax.language.decoder import Sizes, decoder
from scissorhands_jax.language.lora import Lora
from scissorhands_jax.language.method_settings import build_method
from scissorhands_jax.language.model_folders import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    LanguageFolder,
    form_line,
    load_weights,
    open_language_folder,
    question_form,
    read_weights,
    write_language_folder,
)
from scissorhands_jax.language.packing import Encoded, network_inputs, packed_rows
from scissorhands_jax.language.text_files import TEMPLATE, TextExample, check_disjoint, read_text_examples
from scissorhands_jax.language.text_tokens import TextTokenizer, encode_examples
from scissorhands_jax.language.token_losses import answers_of, token_nll
from scissorhands_jax.methods.settings import TrainingSettings
from scissorhands_jax.terminal import Console, say
from scissorhands_jax.training import checkpoints, feeding, sharding
from scissorhands_jax.training.identity import identify
from scissorhands_jax.training.loop import Result, run

MODEL_FOLDER = "model"
"""The folder of the result in the folder of a run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageTraining:
    """How a language model is made to forget, whatever that is."""

    model: Path
    """The folder of the model, see `model_folders`."""
    method: str
    """One of `method_settings.token_methods`."""
    settings: Any
    """The settings of the method."""
    lora: Lora | None = None
    """The size of LoRA's matrices; None trains all weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in. Weights that are trained are float32; with LoRA the others are of this type."""
    remat: bool = False
    """Whether activations are computed again instead of kept."""
    seed: int = 0
    """The seed of the run."""

    def network(self, sizes: Sizes) -> tuple[Sizes, Model]:
        """The network in the type that it computes in, with LoRA or without.

        Args:
          sizes: The network as its folder has it.

        Raises:
          InputError: The network has no LoRA of this size.
        """
        sizes = dataclasses.replace(sizes, dtype=self.dtype, remat=self.remat)
        return sizes, decoder(sizes) if self.lora is None else lora_lib.lora_model(sizes, self.lora)

    def build(self, sizes: Sizes, model: Model, ceiling: float | None) -> Method:
        """The method; arguments and errors as for `method_settings.build_method`."""
        return build_method(self.method, self.settings, sizes, model, ceiling=ceiling, lora=self.lora is not None)

    def check_batches(self, method: Method, data: Data) -> None:
        """Refuses microbatches that do not divide a batch of the rows, before any weights are read.

        Raises:
          InputError: They do not.
        """
        if isinstance(self.settings, TrainingSettings):
            self.settings.check_batches(method, data)

    @property
    def rows_at_a_time(self) -> int:
        """The number of rows that are computed at a time where nothing is trained: those of a microbatch."""
        return max(1, self.settings.batch_size // getattr(self.settings, "microbatches", 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageJob(LanguageTraining):
    """What a language model is to forget, and how."""

    forget: Path
    """The file of what is to be forgotten, see `text_files`."""
    retain: Path
    """The file of what is to be kept."""
    held_out: Path | None = None
    """A file of answers that the network never saw; their mean loss is the ceiling of Scissorhands."""
    refusals: Path | None = None
    """A file of answers that refuse, one on each line, which `dpo` prefers; example i is given line i, and again from
    the first line where there are fewer."""
    template: str | None = None
    """How a question is asked, see `model_folders.question_form`."""

    @property
    def inputs(self) -> list[Path | None]:
        """The files and folders that the job is read from."""
        return [self.model, self.forget, self.retain, self.held_out, self.refusals]


class TextRows(NamedTuple):
    """The rows that a job trains on and is measured on."""

    data: Data
    held_out: Dataset | None
    counts: dict[str, int]
    """The number of examples of each set."""
    form: str | ChatTemplate = TEMPLATE
    """How questions are asked, see `model_folders.question_form`."""


class PreparedJob(NamedTuple):
    """A job that was checked; no weights were read."""

    folder: LanguageFolder
    sizes: Sizes
    model: Model
    method: Method
    """The method, with a ceiling of no meaning where the network is still to be asked for it."""
    rows: TextRows
    description: dict[str, Any]
    """What a resumed run must agree on, as JSON."""


def unlearn_language(
    job: LanguageJob,
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
    """Makes a language model forget what is in a file.

    The result is `model` in `out`, a folder like the one that was read. Next to it are `run.json` (settings) and
    `results.json`, with the mean loss of an answer's token before and after. All that can be checked is checked before
    any weights are read. A run that was stopped continues with its last checkpoint and ends in the same weights.

    Args:
      job: What is forgotten, and how.
      out: The folder of the run.
      checkpoint_every: The number of steps between checkpoints. By default one is saved after every epoch.
      overwrite: Whether a run in `out` is replaced.
      resume: Whether a run in `out` is continued.
      layout: How network and batches are divided over the devices of this process; None is one device.
      steps_per_call, feed_from: As in `training.run`.
      console: Shows progress.

    Returns:
      The document in `results.json`.

    Raises:
      InputError: Something cannot be used, or the folder is taken.
      NonFiniteError: The run diverged. Its last good checkpoint stays.
    """
    feeding.check_feed(feed_from, layout, steps_per_call)
    keeper = checkpoints.Checkpointer(out / runs.CHECKPOINTS_FOLDER, every_steps=checkpoint_every, keep=1)
    prepared = prepare_language(job)
    if layout is not None:
        batches = prepared.method.batches(jax.random.key(job.seed), prepared.rows.data, 0)
        layout.check_batches(list(batches))
    say(console, form_line(prepared.rows.form))
    identity = identify(prepared.description, None if layout is None else str(layout))
    places: dict[str, Any] = {"inputs": job.inputs, "overwrite": overwrite, "resume": resume}
    opened = runs.open_folder(out, identity, **places, warn=False)  # as checkpoints do
    with opened as fresh, runs.cleared_if_refused(out, fresh, runs.CHECKPOINTS_SAVED):
        found = None if fresh else runs.ended_results(out, _outputs(prepared.folder), console)
        if found is not None:
            return found
        resumed_at = keeper.latest_step
        try:
            options: dict[str, Any] = {"layout": layout, "steps_per_call": steps_per_call, "feed_from": feed_from}
            result, losses = _forgotten(job, prepared, keeper, console, **options)
        except BaseException:
            keeper.close()
            raise
        cost = {
            "resumed_at_step": resumed_at,
            "seconds": result.seconds,
            "compile_seconds": result.compile_seconds,
        }
        steps = result.steps
        _write(job, prepared, out / MODEL_FOLDER, result)
        document = {
            "losses": losses,
            "steps": steps,
            "examples": prepared.rows.counts,
            "rows": {name: data_lib.size(rows) for name, rows in prepared.rows.data._asdict().items()},
            "row_length": int(prepared.rows.data.forget["tokens"].shape[1]),
            "cost": cost,
            "config": prepared.description,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **report.environment(),
        }
        files.write_text(out / runs.RESULTS_FILE, json.dumps(document, indent=2) + "\n")
        keeper.remove()
    before, after = losses["before"], losses["after"]
    say(
        console,
        f"loss of a token of the answers to forget {before['forget']:.3f} -> {after['forget']:.3f}, to keep "
        f"{before['retain']:.3f} -> {after['retain']:.3f}; written to {out / MODEL_FOLDER}",
    )
    return document


def prepare_language(job: LanguageJob) -> PreparedJob:
    """Reads and checks everything but weights.

    Raises:
      InputError: Something cannot be used.
    """
    check_seed(job.seed)
    folder = open_language_folder(job.model)
    sizes, model = job.network(folder.sizes)
    rows = packed_sets(job, sizes, folder.tokenizer)
    ceiling = None if job.held_out is None else 1.0  # only to see that the method can be built
    method = job.build(sizes, model, ceiling)
    job.check_batches(method, rows.data)
    named = {"forget": job.forget, "retain": job.retain, "held_out": job.held_out, "refusals": job.refusals}
    description = {
        "command": "lm unlearn",
        "method": job.method,
        "settings": dataclasses.asdict(job.settings),
        "lora": None if job.lora is None else {"rank": job.lora.rank, "scale": job.lora.scale},
        "dtype": job.dtype,
        "template": rows.form.source if isinstance(rows.form, ChatTemplate) else rows.form,
        "seed": job.seed,
        "model_sha256": folder.sha256(),
        **{f"{name}_sha256": hashing.file_sha256(path) for name, path in named.items() if path is not None},
    }
    return PreparedJob(folder, sizes, model, method, rows, description)


def packed_sets(job: LanguageJob, sizes: Sizes, tokenizer: TextTokenizer) -> TextRows:
    """Reads the files of a job, checks them, and packs their examples into rows of one length.

    Args:
      job: The job.
      sizes: The network that is to read the rows.
      tokenizer: Its tokenizer.

    Raises:
      InputError: A file or an example cannot be used, two sets share examples, or refusals are missing or
        not asked for.
    """
    given = {"forget": job.forget, "retain": job.retain, "held_out": job.held_out}
    parts = {name: path for name, path in given.items() if path is not None}
    form = question_form(job.model, job.template)
    examples = {name: read_text_examples(path, template=form) for name, path in parts.items()}
    check_disjoint({name.replace("_", "-"): (path, examples[name]) for name, path in parts.items()})
    limits = {"vocabulary": sizes.vocabulary, "context": sizes.context}
    encoded = {name: encode_examples(tokenizer, found, where=parts[name], **limits) for name, found in examples.items()}
    refused = None
    if job.method == "dpo":
        lines = _refusals(job, examples["forget"], form)
        refused = encode_examples(tokenizer, lines, where=job.forget, **limits)
    elif job.refusals is not None:
        raise InputError(f"--refusals is for the method dpo, not for {job.method}; leave it out")
    rows = _packed(encoded, refused, sizes.context)
    counts = {name: len(found) for name, found in examples.items()}
    return TextRows(Data(rows["forget"], rows["retain"]), rows.get("held_out"), counts, form)


def _packed(
    encoded: dict[str, list[Encoded]], refused: list[Encoded] | None, context: int
) -> dict[str, dict[str, np.ndarray]]:
    """Rows of one length for all sets, so that steps have one shape: the longest example's, in steps of 32 tokens."""
    longest = max(example.length for found in [*encoded.values(), refused or []] for example in found)
    length = min(context, -(-longest // 32) * 32)
    return {
        name: packed_rows(found, length, refusals=refused if name == "forget" else None)
        for name, found in encoded.items()
    }


def _refusals(job: LanguageJob, examples: Sequence[TextExample], form: str | ChatTemplate) -> list[TextExample]:
    """Other answers to the same questions, in the form that `dpo` reads."""
    if job.refusals is None:
        raise InputError("dpo prefers refusals to the answers; name a file with one on each line with --refusals")
    try:
        read = reading.read_lines(job.refusals)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {job.refusals}: {error}; name a text file with a refusal a line") from error
    lines = [(number, line.strip()) for number, line in enumerate(read, 1) if line.strip()]
    if not lines:
        raise InputError(f"{job.refusals} is empty; write a refusal on each line")
    pairs = [(example, *lines[place % len(lines)]) for place, example in enumerate(examples)]
    if isinstance(form, ChatTemplate):
        asked = {number: (example, line) for example, number, line in pairs if example.after is not None}
        for number, (example, line) in asked.items():
            try:
                form.check_keeps(example.question, form.turn(example.question), line)
            except InputError as error:
                raise InputError(f"{job.refusals}, line {number}: {error}") from error
    return [
        example._replace(answer=example.answer[: len(example.answer) - len(example.answer.lstrip())] + line)
        for example, _, line in pairs
    ]


def _forgotten(
    job: LanguageJob, prepared: PreparedJob, keeper: checkpoints.Checkpointer, console: Console, **options: Any
) -> tuple[Result, dict[str, Any]]:
    """Runs the method, and measures the network before and after it."""
    with progress_bar(console) as progress:
        task = progress.add_task("reading the model", total=1, note="")
        network = _network(job, prepared, options["layout"])
        progress.update(task, completed=1)
        before = _losses(job, prepared, network, options["layout"])
        method = prepared.method
        if prepared.rows.held_out is not None:
            method = job.build(prepared.sizes, prepared.model, before["held_out"])
        result = run(
            method,
            jax.random.key(job.seed),
            network.pop(0),  # `run` then holds the only reference, whose memory the steps can use
            network.pop(0),
            prepared.rows.data,
            num_epochs=job.settings.epochs,
            checkpoint=keeper,
            on_step=follow_steps(progress, job.method),
            **options,
        )
        after = _losses(job, prepared, [result.params, result.model_state], options["layout"])
    # What LoRA leaves as it was is read again, and need not be held while the result is written.
    return result._replace(model_state={}), {"before": before, "after": after}


def _network(job: LanguageJob, prepared: PreparedJob, layout: sharding.Layout | None) -> list:
    """The network as [parameters, model state]."""
    if job.lora is None:
        return [load_weights(prepared.folder, layout=layout), {}]
    key = jax.random.fold_in(jax.random.key(job.seed), 1)
    thin = lora_lib.init_lora(key, prepared.sizes, job.lora.rank)
    return [thin, {lora_lib.BASE: load_weights(prepared.folder, job.dtype, layout)}]


def _losses(job: LanguageJob, prepared: PreparedJob, network: list, layout: sharding.Layout | None) -> dict[str, float]:
    parts = {**prepared.rows.data._asdict(), "held_out": prepared.rows.held_out}
    options: dict[str, Any] = {"batch_size": job.rows_at_a_time, "layout": layout}
    return {
        name: mean_answer_loss(prepared.model, network[0], network[1], rows, **options)
        for name, rows in parts.items()
        if rows is not None
    }


def mean_answer_loss(
    model: Model,
    params: Params,
    model_state: ModelState,
    rows: Dataset,
    *,
    batch_size: int = 32,
    layout: sharding.Layout | None = None,
) -> float:
    """The mean negative log-likelihood of a token of the answers in nats, computed some rows at a time.

    Args:
      model: From tokens of shape (N, T) to logits of shape (N, T, V).
      params: Its weights.
      model_state: Its state.
      rows: See `token_losses`.
      batch_size: The number of rows that are computed at a time.
      layout: How network and rows are divided over many devices; None is one device.

    Raises:
      InputError: `batch_size` is below 1 or no whole number.
    """
    batch_size = data_lib.check_batch_size(batch_size)
    total = count = 0.0
    for first in range(0, data_lib.size(rows), batch_size):
        names = [name for name in ("tokens", "answer", "segment") if name in rows]
        part = {name: np.asarray(rows[name][first : first + batch_size]) for name in names}
        missing = batch_size - len(part["tokens"])  # rows without answers, so that all batches are compiled as one
        part = {name: np.pad(values, ((0, missing), (0, 0))) for name, values in part.items()}
        placed = part if layout is None else {name: layout.rows(part[name], np.arange(batch_size)) for name in part}
        found = summed_losses(model.apply, params, model_state, placed)
        total, count = total + float(found[0]), count + float(found[1])
    return total / max(count, 1.0)


@functools.partial(jax.jit, static_argnames="apply")
def summed_losses(apply: Any, params: Params, model_state: ModelState, rows: Dataset) -> tuple[jax.Array, jax.Array]:
    """The sum of the negative log-likelihoods of the tokens of answers in nats, and their number; both shape=().

    Args:
      apply: That of a `Model` from tokens to logits.
      params: Its weights.
      model_state: Its state.
      rows: See `token_losses`.
    """
    answers = answers_of(rows)
    logits, _ = apply(params, model_state, network_inputs(rows), train=False)
    return token_nll(logits[:, :-1], answers).sum(), jnp.sum(answers.mask)


def _outputs(folder: LanguageFolder) -> list[str]:
    """The names of the files that a run writes, without which its model cannot be read."""
    names = [CONFIG_FILE, TOKENIZER_FILE, *(shard.name for shard in folder.shards)]
    return [f"{MODEL_FOLDER}/{name}" for name in names]


def _write(job: LanguageJob, prepared: PreparedJob, out: Path, result: Result) -> None:
    """Writes the network in the form of the folder that it was read from."""
    params = sharding.to_host(result.params)
    if job.lora is not None:  # the steps may have had the weights in fewer bits
        params = lora_lib.merged(read_weights(prepared.folder), params, job.lora)
    write_language_folder(prepared.folder, out, params)
