"""Forgetting a concept: what `scissorhands sd unlearn` does with the UNet of Stable Diffusion v1, by any method."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
from rich import progress as rich_progress

from scissorhands_jax import files, reading, report, trees
from scissorhands_jax.base import Batch, Data, Method, Params
from scissorhands_jax.diffusion import generating, model_folder, networks
from scissorhands_jax.diffusion.anchors import anchored, check_anchor
from scissorhands_jax.diffusion.ceilings import OTHER_PROMPTS, other_prompts_ceiling
from scissorhands_jax.diffusion.concept_methods import ConceptTraining, named_part
from scissorhands_jax.diffusion.concept_methods.concept_scissorhands import ConceptScissorhandsSettings
from scissorhands_jax.diffusion.concept_sets import ConceptSet, ExampleMaker, SetName
from scissorhands_jax.diffusion.generating import DEFAULT_GENERATION, GenerationSettings
from scissorhands_jax.diffusion.losses import noise_loss
from scissorhands_jax.diffusion.networks import DiffusionConfig
from scissorhands_jax.diffusion.tokenizer import Cleaning
from scissorhands_jax.errors import CheckpointError, InputError, check_seed, check_whole
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import follow_steps, progress_bar
from scissorhands_jax.methods.settings import MeasuredNumber
from scissorhands_jax.terminal import Console
from scissorhands_jax.training import checkpoints, sharding
from scissorhands_jax.training.descriptions import describe_value
from scissorhands_jax.training.identity import identify
from scissorhands_jax.training.loop import Progress, Result, run

STEPS_FILE = "steps.csv"
CACHE_FOLDER = "cache"
_IMAGES_SAVED = f"{CACHE_FOLDER}/*/images/*.png"  # which take longest to make
_logger = logging.getLogger(__name__)
_OUTPUTS = [f"unet/{name}" for name in checkpoints.NETWORK_PARTS]
_COLUMNS = (
    *("step", "epoch", "loss_retain", "loss_forget", "loss_replaced", "grad_norm", "dots", "dual", "projected"),
    *("cosine", "weight", "penalty"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptJob:
    """What the UNet of a model is to forget, and how."""

    model: Path
    """The model's folder, as `importing.import_weights` writes it."""
    forget: ConceptSet
    """The images that show the concept."""
    retain: ConceptSet
    """The images of what is kept."""
    settings: ConceptTraining
    """The settings of the method, with the batch size of the steps."""
    method: str = "scissorhands"
    """The name of the method, for the records."""
    generation: GenerationSettings = DEFAULT_GENERATION
    """How training images are made. `size` is that of all images, and `compute` is also that of the UNet in training.
    Text encoder and VAE compute in float32."""
    generation_batch_size: int = 1
    """The number of training images that are made at a time."""
    seed: int = 0
    """The seed of the run."""
    cache: Path | None = None
    """The folder for images and arrays, which runs on the same sets can share. None is `cache` in the run's folder."""
    tokenizer: Path | None = None
    """Where the tokenizer is, see `model_folder.load_pipeline`."""
    cleaning: Cleaning = "nfc"
    """How prompts are cleaned, see `Tokenizer`."""

    @property
    def inputs(self) -> list[Path | None]:
        """The files and folders that the job is read from."""
        return [self.model, self.forget.images, self.retain.images, self.tokenizer]


def unlearn_concept(
    job: ConceptJob,
    out: Path,
    *,
    checkpoint_every: int | None = None,
    layout: sharding.Layout | None = None,
    overwrite: bool = False,
    resume: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Makes the UNet of a model forget what the forget images show.

    Training images are made by the model itself, or read. Embeddings of their prompts and moments of their latents are
    computed once and kept in the cache. The result is `unet` in `out`, where `model_folder.load_pipeline(unet=out)` and
    `exporting.export_weights(out, ...)` find it. Next to it are `run.json` (settings), `steps.csv` (losses, norm of the
    gradient and, where gradients are projected, `<g, g_f>` before the projection, the dual variable and whether the
    projection was needed) and `results.json`. Everything that can be checked is checked before anything is made. A run
    that was stopped continues with the next image, array or checkpoint, and ends in the same weights.

    Args:
      job: What is forgotten, and how.
      out: The folder of the result.
      checkpoint_every: The number of steps between checkpoints. By default one is saved after every epoch.
      layout: How the steps are divided over many devices; None uses one. Images are made, and arrays computed, on one.
      overwrite: Whether a run in `out` is replaced.
      resume: Whether a run in `out` is continued, also with another layout.
      console: Shows progress.

    Returns:
      The document in `results.json`.

    Raises:
      InputError: Something cannot be used, or the folder is taken.
      CheckpointError: A network is missing or damaged, or the cache is another run's.
      NonFiniteError: The run diverged. Its last good checkpoint stays.
    """
    keeper = checkpoints.Checkpointer(out / runs.CHECKPOINTS_FOLDER, every_steps=checkpoint_every, keep=1)
    prepared = _check(job, out)
    if layout is not None:
        positions = np.arange(job.settings.batch_size)
        layout.check_batches([Batch(positions, positions)])
    identity = identify(prepared.description)
    options: dict[str, Any] = {"inputs": job.inputs, "overwrite": overwrite, "resume": resume}
    opened = runs.open_folder(out, identity, **options, warn=False)  # as checkpoints do
    with opened as fresh, runs.cleared_if_refused(out, fresh, runs.CHECKPOINTS_SAVED, _IMAGES_SAVED):
        return _carried_out(job, prepared, out, fresh, keeper, layout, console)


def _carried_out(
    job: ConceptJob,
    prepared: _Prepared,
    out: Path,
    fresh: bool,
    keeper: checkpoints.Checkpointer,
    layout: sharding.Layout | None,
    console: Console,
) -> dict[str, Any]:
    """Does the rest of `unlearn_concept` in a folder that is open for the run."""
    found = None if fresh else runs.ended_results(out, _OUTPUTS, console)
    if found is not None:
        return found

    started = time.perf_counter()
    examples, reads_images = prepared.examples, job.settings.reads_images
    paths: dict[SetName, list[Path]] = {}
    if reads_images:
        paths = examples.make_images(job.generation_batch_size, prepared.description["networks_sha256"], console)
    with progress_bar(console) as progress:

        def start_bar(title: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=total, note="")
            return lambda advance: progress.advance(task, advance)

        data = examples.encode(paths if reads_images else None, job.settings, start_bar)
        anchor, unanchored = getattr(job.settings, "anchor", 0.0), data
        data = anchored(data, anchor, job.seed)
        preparing = time.perf_counter() - started
        examples.drop("text", "vae")
        resumed_at = keeper.latest_step
        result, steps, ceiling = _run_method(job, prepared, data, unanchored, out, keeper, layout, progress)
    config, dtype = model_folder.read_part_config("unet", job.model)
    schedule = model_folder.read_part_schedule(job.model)
    model_folder.save_part(
        "unet", out, config, result.params, dtype, f"{job.model.name}, sd unlearn", schedule=schedule
    )
    document = {
        "steps": result.steps,
        "joint_steps": steps.joint,
        "projected_steps": steps.projected,
        "last_step": steps.last,
        "ceiling": ceiling,
        "images": {name: len(found) for name, found in paths.items()},
        "cost": {
            "resumed_at_step": resumed_at,
            "preparing_seconds": preparing,
            "seconds": result.seconds,
            "compile_seconds": result.compile_seconds,
        },
        "layout": None if layout is None else str(layout),
        "config": prepared.description,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **report.environment(),
    }
    files.write_text(out / runs.RESULTS_FILE, json.dumps(document, indent=2) + "\n")
    keeper.remove()
    return document


class _Prepared(NamedTuple):
    """A job that was checked."""

    method: Method
    examples: ExampleMaker
    description: dict[str, Any]  # what a resumed run must agree on, as JSON


def _check(job: ConceptJob, out: Path) -> _Prepared:
    """Refuses what cannot be used, before anything is written."""
    check_seed(job.seed)
    config = model_folder.read_model_config(job.model)
    generating.check_generation(job.generation, config)
    check_whole("--generate-batch-size", job.generation_batch_size, 1)
    tokenizer = model_folder.load_tokenizer(job.model, job.tokenizer, job.cleaning)
    job.settings.check()
    method = _method(job, config)
    for part in (getattr(job.settings, "trim", None), job.settings.train):
        trees.select(networks.outline("unet", config), named_part(part))  # refuses a pattern that matches nothing
    _warn_of_untrained(job.settings, networks.outline("unet", config))
    least = job.settings.batch_size if job.settings.reads_images else 1
    sets: dict[SetName, ConceptSet] = {
        "forget": job.forget.paired("forget", least),
        "retain": job.retain.paired("retain", least),
    }
    check_anchor(getattr(job.settings, "anchor", 0.0), sets["retain"].number)
    networks_sha256 = model_folder.model_sha256(job.model)
    cache = out / CACHE_FOLDER if job.cache is None else job.cache
    if (cache / runs.RUN_FILE).exists() or cache.is_file():
        raise InputError(f"--cache is {cache}, which is a file or holds a run; name a folder for it alone")
    description = {
        "command": "sd unlearn",
        "method": job.method,
        **dataclasses.asdict(job.settings),
        "generation": job.generation.description(),
        "cleaning": job.cleaning,
        "tokenizer": describe_value(tokenizer, "the tokenizer"),
        "seed": job.seed,
        "networks_sha256": networks_sha256,
        "forget": sets["forget"].description(),
        "retain": sets["retain"].description(),
    }
    return _Prepared(method, ExampleMaker(job.model, cache, sets, job.generation, tokenizer), description)


def _warn_of_untrained(settings: ConceptTraining, outline: Params) -> None:
    """Says in the log how many weights can be re-initialised that no step trains afterwards."""
    if not isinstance(settings, ConceptScissorhandsSettings):
        return
    trimmed, trained = (trees.select(outline, named_part(part)) for part in (settings.trim, settings.train))
    lost = jax.tree.map(lambda trims, trains: trims and not trains, trimmed, trained)
    if any(jax.tree.leaves(lost)):
        _logger.warning(
            "%s weights may be re-initialised that are not in train=%s, so that no step repairs them; give --trim the "
            "same part",
            f"{trees.count_weights(outline, lost):,}",
            settings.train,
        )


def _run_method(
    job: ConceptJob,
    prepared: _Prepared,
    data: Data,
    unanchored: Data,
    out: Path,
    keeper: checkpoints.Checkpointer,
    layout: sharding.Layout | None,
    progress: rich_progress.Progress,
) -> tuple[Result, _StepLog, float | None]:
    """Runs the method, and logs its steps; the number is the ceiling of the forget loss, where there is one.

    `unanchored` are the data before the anchor put the forgotten prompts among those of the retain images.
    """
    original = [_placed(prepared.examples, layout)]  # the only reference to the network, whose memory steps can use
    method, ceiling = prepared.method, getattr(job.settings, "ceiling", None)
    if ceiling == OTHER_PROMPTS:
        ceiling = _data_ceiling(job, original[0], unanchored)
        method = _method(job, model_folder.read_model_config(job.model), ceiling)
    rows = _earlier_steps(out / STEPS_FILE, keeper.latest_step or 0)
    begun = io.StringIO()
    log, show = _StepLog(begun, rows), follow_steps(progress, "unlearning")
    files.write_text(out / STEPS_FILE, begun.getvalue())
    with (out / STEPS_FILE).open("a", encoding="utf-8", newline="") as file:
        log.go_on(file)

        def on_step(step: Progress) -> None:
            log(step)
            show(step)

        try:
            result = run(
                method,
                jax.random.key(job.seed),
                original.pop(),
                {},
                data,
                num_epochs=job.settings.epochs,
                checkpoint=keeper,
                on_step=on_step,
                layout=layout,
            )
        except BaseException:
            keeper.close()
            raise
    return result, log, ceiling


def _method(job: ConceptJob, config: DiffusionConfig, ceiling: float = 1.0) -> Method:
    """The method of a job, with this ceiling if it is one that follows from the data."""
    settings = job.settings
    if isinstance(settings, ConceptScissorhandsSettings) and settings.ceiling == OTHER_PROMPTS:
        settings = dataclasses.replace(settings, ceiling=MeasuredNumber(ceiling))
    return settings.method(networks.unet(config.unet, job.generation.compute), config.schedule)


def _data_ceiling(job: ConceptJob, original: Params, data: Data) -> float:
    """The noise loss of forget images under the prompts of retain images, of about 256 pairs."""
    config, size = model_folder.read_model_config(job.model), job.settings.batch_size
    loss_fn = noise_loss(networks.unet(config.unet, job.generation.compute), config.schedule)
    key, batches = jax.random.key(job.seed), -(-256 // size)
    return other_prompts_ceiling(loss_fn, original, {}, data, key, batch_size=size, batches=batches)


def _placed(examples: ExampleMaker, layout: sharding.Layout | None) -> Params:
    """The UNet, where the layout has it."""
    params = examples.take("unet")
    return params if layout is None else layout.place(params)


def _earlier_steps(path: Path, steps_taken: int) -> list[dict[str, float]]:
    """The rows of a resumed run up to its checkpoint; none of a run that begins.

    Raises:
      CheckpointError: The file is damaged.
    """
    if not path.exists():
        return []
    try:
        rows = [row.values for row in reading.read_rows(path).rows]
        rows = rows[: reading.read_text(path).count("\n") - 1]  # A process that is killed may leave half a row.
        numbers = [{name: float(value) for name, value in row.items() if value} for row in rows]
        return [row for row in numbers if row["step"] <= steps_taken]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it, and the run goes on without it") from error


class _StepLog:
    """Writes a row for every step, and counts steps. Of a resumed run, the rows up to its checkpoint come first."""

    def __init__(self, file: TextIO, rows: Sequence[dict[str, float]]) -> None:
        self.joint = self.projected = 0
        self.last: dict[str, float] = {}
        self._file, self._writer = file, csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        self._writer.writeheader()
        for row in rows:
            self._write(row)

    def go_on(self, file: TextIO) -> None:
        """Writes further rows into another file."""
        self._file, self._writer = file, csv.DictWriter(file, _COLUMNS, lineterminator="\n")

    def __call__(self, step: Progress) -> None:
        numbers = {name: float(value.item()) for name, value in step.metrics.items() if value.size == 1}
        self._write({"step": step.step, "epoch": step.epoch} | numbers)

    def _write(self, row: dict[str, float]) -> None:
        whole = {name: int(row[name]) for name in ("step", "epoch", "projected") if name in row}
        self.last = row | whole
        self.joint += "loss_forget" in row
        self.projected += whole.get("projected", 0)
        self._writer.writerow(self.last)
        self._file.flush()
