"""Forgetting a concept: Scissorhands on the UNet of Stable Diffusion v1 (`scissorhands sd unlearn`).

The paper's section 4.3 does not say more of its losses than Algorithm 1 does, so the preset `paper` takes them as they
stand there, with the loss that the network was trained with: L(theta; D) is the mean of (noise - predicted noise)^2
over the images of D with their prompts, at random timesteps. Weights are scored by |E[dL(D_f)/dw] * w|, the top
fraction of all kernels is drawn anew, and the repair descends `L(D_r) - lambda L(D_f)`, projected so that no gradient
step lessens L(D_f). Fraction, lambda, optimizer and epochs are not in the paper; they are those of the published code.

The preset `released` is what the published code does, which is something else (see `PRESETS`).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import jax
import numpy as np
import optax
from rich.console import Console

from scissorhands_jax import files, hashing, microbatches, reinit, report, trees
from scissorhands_jax import losses as losses_lib
from scissorhands_jax.base import Data, Dataset, Method, Model, Params
from scissorhands_jax.diffusion import encoded, generating, losses, networks, weights
from scissorhands_jax.diffusion.generating import Prompt
from scissorhands_jax.diffusion.networks import DiffusionConfig
from scissorhands_jax.diffusion.tokenizer import Tokenizer
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import follow_steps, progress_bar
from scissorhands_jax.methods import scissorhands
from scissorhands_jax.training import checkpoints
from scissorhands_jax.training.loop import Progress, run

STEPS_FILE = "steps.csv"
CACHE_FOLDER = "cache"
_COLUMNS = ("step", "epoch", "loss_retain", "loss_forget", "grad_norm", "dots", "dual", "projected")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConceptSettings:
    """What is asked of the method; `departures.NAME=VALUE` sets single fields of `Semantics`."""

    fraction: float = 0.005
    """Share of the ranked weights that is re-initialised."""
    forget_weight: float = 0.1
    """The paper's lambda."""
    initializer: str = "uniform"
    """Of the weights that are drawn anew; biases become 0 where they are trimmed at all."""
    trim: str | None = None
    """Layers that are trimmed, a pattern as for `trees.select`; none means all."""
    projected: bool = True
    """Whether gradients are projected. Adam makes of the projected gradient a step that need not keep to it; `sgd`
    does."""
    pseudo: str | None = None
    """A prompt that is to take the concept's place: the forget loss is then that of `losses.concept_loss`."""
    epochs: int = 3
    batch_size: int = 16
    microbatches: int = 1
    """Parts that the batches of a step are computed in, one after the other (`losses.microbatched`)."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam with PyTorch's defaults, or the plain gradient step of Algorithm 1, which keeps no state."""
    learning_rate: float = 1e-5
    departures: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"saliency_train": True, "every_step_joint": True}
    )
    """From Algorithm 1. These two are none: saliency batches see fresh timesteps, and so does every step of an epoch a
    forget batch."""

    def transformation(self) -> optax.GradientTransformation:
        """The optimizer with its rate."""
        return optax.adam(self.learning_rate) if self.optimizer == "adam" else optax.sgd(self.learning_rate)

    def method(self, model: Model) -> Method:
        """Scissorhands with these settings.

        Raises:
          InputError: a setting is out of its range or unknown.
        """
        if self.epochs < 1:
            raise InputError(f"epochs must be at least 1, got {self.epochs}")
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate:g}")
        microbatches.check_microbatches([self.batch_size], self.microbatches)
        if self.optimizer not in ("adam", "sgd"):
            raise InputError(f"optimizer must be adam or sgd, got {self.optimizer!r}")
        forget_loss, noise_loss = (
            losses_lib.microbatched(make(model), self.microbatches) for make in (losses.concept_loss, losses.noise_loss)
        )
        return scissorhands(
            forget_loss,
            self.transformation(),
            fraction=self.fraction,
            forget_weight=self.forget_weight,
            initializer=reinit.with_zero_biases(reinit.by_name(self.initializer)),
            trim=self.trim,
            projected=self.projected,
            batch_size=self.batch_size,
            saliency_loss_fn=noise_loss,
            **self.departures,
        )


PRESETS: dict[str, ConceptSettings] = {
    "paper": ConceptSettings(),
    "released": ConceptSettings(
        initializer="kaiming_uniform",
        trim=r"up_blocks/[12]/attentions/1/transformer_blocks/0/attn1",
        projected=False,
        pseudo="a photo of a person wearing clothes",
        epochs=5,
        departures={
            "saliency_train": True,
            "saliency_absolute": True,
            "saliency_batches": 10,
            "published_cut": True,
            "rank_all": True,
            "trim_vectors": True,
            "fixed_batches": True,
        },
    ),
}
"""`paper` is described above. `released` is the published code, `shs_nsfw.py` with the settings of its script:

* |w| times the sum over ten forget batches of |gradient of the noise loss|; the cut ranks all weights of the network,
  but only self-attention in ten arrays is drawn anew, Kaiming-uniform with zero biases;
* the repair minimises `L(D_r) + lambda E (e(x_t, t, c_f) - e(x_t, t, pseudo))^2`, the second prediction held fixed; the
  projection, which that code defines, is never called;
* `departures.fixed_batches`: its loaders start anew at every step and do not shuffle, so all batches are the first
  examples of each set; `departures.fixed_batches=false departures.every_step_joint=true` sees all of them.

Two things differ: latents are drawn once for both predictions, not once for each, and there is no fallback of the cut
in that code (`masks.kept_fraction_mask`), which takes hold where salient and other weights score the same.
"""


class ConceptSet(NamedTuple):
    """The training images of one of the two sets, and what they show.

    prompts: of the images, in turn; each is the caption of the images that it makes, or of images that are read.
    images:  a folder of pictures; None has them made of the prompts.
    count:   how many images; None is one of each prompt, or all that the folder holds.
    """

    prompts: Sequence[Prompt]
    images: Path | None = None
    count: int | None = None  # type: ignore[assignment]  # in place of the tuple's method


def concept_preset(name: str) -> ConceptSettings:
    """Settings by their name in PRESETS.

    Raises:
      InputError: there are none of that name.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def read_concept_set(
    words: Sequence[str], images: Path | None, count: int | None, *, part: Literal["forget", "retain"], seed: int = 0
) -> ConceptSet:
    """A set as the command line names it.

    Args:
      words: prompts, and CSV files of prompts as `generate.read_prompts` takes them, which end in `.csv`.
      images, count: see `Side`.
      part: which set.
      seed: of the first prompt that has none.

    Raises:
      InputError: a prompt is empty or reads like a setting, or a file cannot be read.
    """
    prompts: list[Prompt] = []
    for word in words:
        if word.endswith(".csv"):
            prompts += generating.read_prompts(Path(word), seed=seed + len(prompts))
        elif re.fullmatch(r"\w+(\.\w+)*=\S*", word):
            raise InputError(f"--{part}-prompts has {word!r}, which reads like a setting; write settings before it")
        elif not word.strip():
            raise InputError(f"--{part}-prompts has an empty prompt")
        else:
            prompts.append(Prompt(word, seed + len(prompts)))
    if count is not None and count < 1:
        raise InputError(f"--images must be at least 1, got {count}")
    return ConceptSet(tuple(prompts), images, count)


def unlearn_concept(
    model: Path,
    out: Path,
    forget: ConceptSet,
    retain: ConceptSet,
    *,
    settings: ConceptSettings,
    generation: generating.GenerationSettings = generating.DEFAULT_GENERATION,
    generation_batch_size: int = 1,
    seed: int = 0,
    cache: Path | None = None,
    tokenizer: Path | None = None,
    checkpoint_every: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Makes the UNet of a model forget what the forget images show.

    Training images are made by the model itself, or read; embeddings of their prompts and moments of their latents are
    computed once and kept in `cache`. The result is `unet` in `out`, where `generate.load_pipeline(unet=out)` and
    `weights.export_weights(out, ...)` find it, beside `run.json` (settings), `steps.csv` (losses, norm of the gradient
    and, where gradients are projected, `<g, g_f>` before that, the dual variable and whether it was needed) and
    `results.json`. Everything that can be checked is checked before anything is made; a run that was stopped goes on
    with the next image, array or checkpoint, and ends in the same weights.

    Args:
      model: folder of `weights.import_weights`.
      out: folder of the result.
      forget, retain: the two sets.
      settings: of the method, and in `batch_size` of the steps.
      generation: how training images are made; `size` is that of all images, `compute` that of the UNet in training
        too. Text encoder and VAE compute in float32.
      generation_batch_size: images at a time.
      seed: of the run.
      cache: folder for images and arrays, to be shared by runs on the same sets; None is `cache` in `out`.
      tokenizer: see `generate.load_pipeline`.
      checkpoint_every: steps; None saves after every epoch.
      overwrite: replace the run in `out`.
      resume: go on with it.
      console: shows progress.

    Returns:
      The document in `results.json`.

    Raises:
      InputError: something cannot be used, or the folder is taken.
      CheckpointError: a network is missing or damaged, or the cache is another run's.
      NonFiniteError: the run diverged; its last good checkpoint stays.
    """
    config = generating.read_model_config(model)
    generating.check_generation(generation, config)
    if generation_batch_size < 1:
        raise InputError(f"--generate-batch-size must be at least 1, got {generation_batch_size}")
    words = generating.load_tokenizer(model, tokenizer)
    unet = networks.unet(config.unet, generation.compute)
    method = settings.method(unet)
    trees.select(networks.outline("unet", config), settings.trim)  # refuses what matches nothing
    sides = {"forget": _filled("forget", forget, settings), "retain": _filled("retain", retain, settings)}
    networks_sha256 = generating.model_sha256(model)
    cache = out / CACHE_FOLDER if cache is None else cache
    if (cache / runs.RUN_FILE).exists() or cache.is_file():
        raise InputError(f"--cache is {cache}, which is a file or holds a run; name a folder for it alone")

    description = {
        "command": "sd unlearn",
        **dataclasses.asdict(settings),
        "generation": {name: str(value) for name, value in generation._asdict().items()},
        "seed": seed,
        "networks_sha256": networks_sha256,
        **{part: _described(side) for part, side in sides.items()},
    }
    fresh = runs.open_folder(out, description, overwrite=overwrite, resume=resume)
    results = out / runs.RESULTS_FILE
    if not fresh and results.exists():
        console.print(f"the run in {out} has ended; nothing is left to do", highlight=False)
        return files.read_json(results)

    started = time.perf_counter()
    held: dict[networks.Part, Params] = {}
    made = _made(model, cache, sides, generation, generation_batch_size, networks_sha256, words, held, console)
    with progress_bar(console) as progress:

        def bar(name: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(name, total=total, note="")
            return lambda count: progress.advance(task, count)

        data = _encoded(model, cache, sides, made, config, generation.size, settings.pseudo, words, held, bar)
        preparing = time.perf_counter() - started
        held.pop("text", None), held.pop("vae", None)
        keeper = checkpoints.Checkpointer(out / "checkpoints", every_steps=checkpoint_every, keep=1)
        resumed_at = keeper.latest_step
        with (out / STEPS_FILE).open("a+", encoding="utf-8", newline="") as file:
            log, show = _Log(file, resumed_at), follow_steps(progress, "unlearning")

            def on_step(step: Progress) -> None:
                log(step)
                show(step)

            try:
                # The only reference to the network, whose memory the steps can use.
                result = run(
                    method,
                    jax.random.key(seed),
                    held.pop("unet") if "unet" in held else weights.load_part("unet", model)[1],
                    {},
                    data,
                    num_epochs=settings.epochs,
                    checkpoint=keeper,
                    on_step=on_step,
                )
            except BaseException:
                keeper.close()
                raise
    dtype = weights.read_part_config("unet", model)[1]
    weights.save_part("unet", out, config.unet, result.params, dtype, f"{model.name}, sd unlearn")
    document = {
        "steps": result.steps,
        "joint_steps": log.joint,
        "projected_steps": log.projected,
        "last_step": log.last,
        "images": {part: len(paths) for part, paths in made.items()},
        "cost": {
            "resumed_at_step": resumed_at,
            "preparing_seconds": preparing,
            "seconds": result.seconds,
            "compile_seconds": result.compile_seconds,
        },
        "config": description,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **report.environment(),
    }
    files.write_text(results, json.dumps(document, indent=2) + "\n")
    keeper.remove()
    return document


def _filled(part: str, side: ConceptSet, settings: ConceptSettings) -> ConceptSet:
    """The set with as many prompts as it has images, and these looked up where they are read."""
    if not side.prompts:
        raise InputError(f"the {part} set has no prompt; add --{part}-prompts")
    count = side.count or len(side.prompts)
    if side.images is not None:
        count = len(encoded.find_images(side.images, side.count))
    if count < settings.batch_size:
        raise InputError(
            f"the {part} set has {count} images, fewer than a batch of {settings.batch_size}; "
            f"{'add images' if side.images is not None else 'raise --images'}, or lower --batch-size"
        )
    total = len(side.prompts)
    turns = ((side.prompts[number % total], number // total) for number in range(count))
    prompts = tuple(Prompt(prompt.text, prompt.seed + turn * total) for prompt, turn in turns)
    return ConceptSet(prompts, side.images, count)


def _described(side: ConceptSet) -> dict[str, Any]:
    """What a resumed run must have again."""
    listed = [prompt.text if side.images is not None else tuple(prompt) for prompt in side.prompts]
    found = None if side.images is None else hashing.files_sha256(encoded.find_images(side.images, side.count))
    return {
        "images": len(side.prompts),
        "prompts_sha256": hashing.sha256(repr(listed)),
        "images_sha256": found,
    }


def _made(
    model: Path,
    cache: Path,
    sides: dict[str, ConceptSet],
    generation: generating.GenerationSettings,
    batch_size: int,
    networks_sha256: str,
    words: Tokenizer,
    held: dict[networks.Part, Params],
    console: Console,
) -> dict[str, list[Path]]:
    """The pictures of both sets; those that are to be made are, and the networks for that are left in `held`."""
    paths = {}
    for part, side in sides.items():
        if side.images is not None:
            paths[part] = encoded.find_images(side.images, side.count)
            continue
        if not held:
            with console.status("reading the networks"):
                pipeline = generating.load_pipeline(model)._replace(tokenizer=words)
                held.update(pipeline.params)
        folder = cache / part / "images"
        generating.generate_images(
            pipeline,
            side.prompts,
            folder,
            settings=generation,
            batch_size=batch_size,
            description={"networks_sha256": networks_sha256},
            resume=True,
            console=console,
        )
        paths[part] = [folder / name for name in generating.image_names(len(side.prompts))]
    return paths


def _encoded(
    model: Path,
    cache: Path,
    sides: dict[str, ConceptSet],
    paths: dict[str, list[Path]],
    config: DiffusionConfig,
    size: int,
    pseudo: str | None,
    words: Tokenizer,
    held: dict[networks.Part, Params],
    bar: Callable[[str, int], Callable[[int], None]],
) -> Data:
    """Both sets as the losses take them."""

    def params(part: networks.Part) -> Params:
        if part not in held:
            held[part] = weights.load_part(part, model)[1]
        return held[part]

    fingerprints = {part: weights.part_sha256(part, model) for part in networks.PARTS}

    def embed(folder: Path, texts: Sequence[str], name: str) -> np.ndarray:
        return encoded.prompt_embeddings(
            folder,
            words(texts),
            config.text,
            lambda: params("text"),
            network=fingerprints["text"],
            on_done=bar(name, len(texts)),
        )

    def dataset(part: str) -> Dataset:
        texts = list(dict.fromkeys(prompt.text for prompt in sides[part].prompts))
        table = embed(cache / part / "prompts", texts, f"{part} prompts")
        positions = [texts.index(prompt.text) for prompt in sides[part].prompts]
        mean, deviation = encoded.latent_moments(
            cache / part / "moments",
            paths[part],
            size,
            config.vae,
            lambda: params("vae"),
            network=fingerprints["vae"],
            on_done=bar(f"{part} images", len(paths[part])),
        )
        return {"latents": mean, "deviation": deviation, "context": table[positions]}

    data = Data(dataset("forget"), dataset("retain"))
    if pseudo is None:
        return data
    instead = embed(cache / "pseudo", [pseudo], "the other prompt")
    return data._replace(forget={**data.forget, "pseudo": np.broadcast_to(instead, data.forget["context"].shape)})


class _Log:
    """Writes a row for every step, and counts; of a run that goes on, rows up to its checkpoint stay."""

    def __init__(self, file: TextIO, steps_taken: int | None) -> None:
        self.joint = self.projected = 0
        self.last: dict[str, float] = {}
        file.seek(0)
        rows = [row for row in csv.DictReader(file) if int(row["step"]) <= (steps_taken or 0)]
        file.truncate(0)
        self._file, self._writer = file, csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        self._writer.writeheader()
        for row in rows:
            self._write({name: float(value) for name, value in row.items() if value})

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
