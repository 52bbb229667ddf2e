"""Images from prompts, resumable."""

from __future__ import annotations

import csv
import functools
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from rich.console import Console

from scissorhands_jax import files, hashing
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import networks, schedules, weights
from scissorhands_jax.diffusion.layers import Compute
from scissorhands_jax.diffusion.networks import DiffusionConfig
from scissorhands_jax.diffusion.tokenizer import BPE_FILE, Cleaning, Tokenizer, find_vocabulary
from scissorhands_jax.diffusion.unet import Noisy
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import progress_bar

IMAGES_FILE = "images.csv"
TOKENIZER_FOLDER = "tokenizer"
_SEED_COLUMNS = ("seed", "evaluation_seed", "sd_seed")  # ours, UnlearnDiffAtk's, I2P's
_PROMPT_COLUMNS = ("prompt", "adv_prompt")


class Prompt(NamedTuple):
    """One image that is wanted."""

    text: str
    seed: int


class Pipeline(NamedTuple):
    """Everything that turns a prompt into an image."""

    config: DiffusionConfig
    params: dict[networks.Part, Params]  # of `unet`, `vae` and `text`
    tokenizer: Tokenizer


class GenerationSettings(NamedTuple):
    """How images are made.

    sampler:  a key of `schedules.SAMPLERS`.
    steps:    of the sampler.
    guidance: how far beyond the prompt to go; 1 follows it alone.
    size:     height and width in pixels.
    compute:  how the networks compute.
    """

    sampler: str = "lms"
    steps: int = 50
    guidance: float = 7.5
    size: int = 512
    compute: Compute = networks.FLOAT32


DEFAULT_GENERATION = GenerationSettings()


def read_prompts(path: Path, *, seed: int = 0) -> list[Prompt]:
    """Reads a CSV file of prompts.

    The column `prompt` is needed. Seeds are those of the column `seed`, `evaluation_seed` or `sd_seed` (as in the lists
    of UnlearnDiffAtk and I2P); without one the n-th row, from 0, gets `seed + n`. Other columns are not looked at.

    Raises:
      InputError: the file cannot be read, has no prompts, or a seed is not a whole number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the prompts in {path}: {error}") from error
    column = next((name for name in _PROMPT_COLUMNS if name in columns), None)
    if column is None:
        held = ", ".join(columns[:10]) or "nothing"
        raise InputError(
            f"{path} has no column `prompt`, its first line is {held!r}; name the columns in the first line"
        )
    seeds = next((name for name in _SEED_COLUMNS if name in columns), None)
    prompts = []
    for number, row in enumerate(rows):
        text, drawn = row[column], seed + number if seeds is None else row[seeds]
        if text is None:
            raise InputError(f"row {number + 1} of {path} has no prompt")
        try:
            prompts.append(Prompt(text, int(drawn)))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise InputError(f"row {number + 1} of {path} has the {seeds} {drawn!r}; give a whole number") from error
    if not prompts:
        raise InputError(f"{path} holds no prompts")
    return prompts


def load_pipeline(
    folder: Path,
    *,
    unet: Path | None = None,
    tokenizer: Path | None = None,
    cleaning: Cleaning = "ftfy",
) -> Pipeline:
    """Reads the networks in a folder that `weights.import_weights` wrote.

    Args:
      folder: with `unet`, `vae`, `text` and perhaps `tokenizer`.
      unet: another folder with a `unet`, such as an unlearned one.
      tokenizer: see `tokenizer.find_vocabulary`; None looks into `folder`, then into installed packages.
      cleaning: see `Tokenizer`.

    Raises:
      InputError: something is missing or damaged, or the networks do not fit together.
    """
    words = load_tokenizer(folder, tokenizer, cleaning)
    config = read_model_config(folder, unet=unet)
    params = {part: weights.load_part(part, source)[1] for part, source in _sources(folder, unet).items()}
    return Pipeline(config, params, words)


def load_tokenizer(folder: Path, tokenizer: Path | None = None, cleaning: Cleaning = "ftfy") -> Tokenizer:
    """The tokenizer of a model; see `load_pipeline`."""
    inside = folder / TOKENIZER_FOLDER
    return Tokenizer(find_vocabulary(inside if tokenizer is None and inside.is_dir() else tokenizer), cleaning)


def read_model_config(folder: Path, *, unet: Path | None = None) -> DiffusionConfig:
    """The sizes of the networks of a model, which are not read; see `load_pipeline`."""
    config = DiffusionConfig(
        **{part: weights.read_part_config(part, source)[0] for part, source in _sources(folder, unet).items()}
    )
    if config.unet.context_width != config.text.width or config.unet.channels != config.vae.latent_channels:
        raise InputError(f"the networks in {folder} do not fit together; import all three of one model")
    return config


def model_sha256(folder: Path, *, unet: Path | None = None) -> str:
    """The SHA-256 of the networks of a model; see `load_pipeline`."""
    parts = [weights.part_sha256(part, source) for part, source in _sources(folder, unet).items()]
    return hashing.sha256("".join(parts))


def _sources(folder: Path, unet: Path | None) -> dict[networks.Part, Path]:
    return {part: unet if part == "unet" and unet is not None else folder for part in networks.PARTS}


def copy_tokenizer(source: Path | None, folder: Path) -> tuple[Path, ...]:
    """Copies a tokenizer's files to where `load_pipeline` finds them.

    Raises:
      InputError: there are none, see `tokenizer.find_vocabulary`.
    """
    found = find_vocabulary(source)
    names = [file.name for file in found] if len(found) == 2 else [BPE_FILE]
    copies = tuple(folder / TOKENIZER_FOLDER / name for name in names)
    for file, copy in zip(found, copies, strict=True):
        files.write_bytes(copy, file.read_bytes())
    return copies


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def draw_images(
    params: dict[networks.Part, Params],
    ids: jax.Array,
    empty: jax.Array,
    noise: jax.Array,
    guidance: jax.Array | float,
    sampler: schedules.Sampler,
    *,
    config: DiffusionConfig,
    compute: Compute = networks.FLOAT32,
) -> jax.Array:
    """Images of prompts. shape=(N, H, W, 3), dtype=uint8

    Args:
      params: of `unet`, `vae` and `text`.
      ids: of the prompts. shape=(N, T), dtype=int32
      empty: ids of the empty prompt. shape=(1, T)
      noise: standard normal. shape=(N, H / 8, W / 8, 4)
      guidance: shape=() or (N,)
      sampler: the table of steps; another one of the same length needs no compilation.
      config: sizes of the networks.
      compute: how they compute.
    """
    text = networks.text_encoder(config.text, compute)
    embeddings, _ = text.apply(params["text"], {}, jnp.concatenate([ids, empty]), train=False)

    def predict(noisy: Noisy) -> jax.Array:
        return networks.unet(config.unet, compute).apply(params["unet"], {}, noisy, train=False)[0]

    denoise = schedules.guided(predict, embeddings[:-1], embeddings[-1:], guidance)
    latents = schedules.sample(sampler, denoise, noise)
    decoder = networks.vae_decoder(config.vae, compute)
    pixels, _ = decoder.apply(params["vae"], {}, latents / config.vae.scaling, train=False)
    return jnp.round(jnp.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)


def generate_images(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    out: Path,
    *,
    settings: GenerationSettings = DEFAULT_GENERATION,
    batch_size: int = 1,
    description: dict[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Makes one image of each prompt: `00000.png`, `00001.png`, ... in `out`, listed in `images.csv`.

    The noise to begin with is that of PyTorch's CPU generator with the prompt's seed, so that diffusers' pipelines make
    the same images. Every image is written when it is there; with `resume` those that are there are not made again. An
    image depends on its batch by rounding only. `run.json` keeps the settings.

    Args:
      pipeline: networks and tokenizer.
      prompts: one for each image.
      out: folder of the images.
      settings: how to make them.
      batch_size: images at a time.
      description: JSON-able; what a resumed run must agree on besides settings and prompts, such as the networks.
      overwrite: replace the images that are there.
      resume: go on with the images that are there.
      console: shows progress.

    Returns:
      `images`, how many there are; `made`, how many of them were made now; `seconds` that took, compilation included.

    Raises:
      InputError: a setting cannot be used, or the folder is taken.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {batch_size}")
    config = pipeline.config
    sampler = check_generation(settings, config)
    listed = repr([tuple(prompt) for prompt in prompts]).encode()
    runs.open_folder(
        out,
        {
            "prompts_sha256": hashing.sha256(listed),
            **{name: str(value) for name, value in settings._asdict().items()},
            **(description or {}),
        },
        overwrite=overwrite,
        resume=resume,
    )
    names = image_names(len(prompts))
    _write_list(out / IMAGES_FILE, names, prompts)
    missing = [number for number, name in enumerate(names) if not (out / name).exists()]
    batch_size = min(batch_size, len(missing)) or 1
    side = settings.size // config.vae.factor
    shape = (config.unet.channels, side, side)
    empty = pipeline.tokenizer([""])
    start = time.perf_counter()
    with progress_bar(console or Console(stderr=True)) as progress:
        task = progress.add_task("generating", total=len(prompts), completed=len(prompts) - len(missing), note="")
        for first in range(0, len(missing), batch_size):
            batch = missing[first : first + batch_size]
            padded = batch + batch[-1:] * (batch_size - len(batch))  # the last batch needs no compilation of its own
            noise = np.stack([schedules.torch_normal(prompts[number].seed, shape) for number in padded])
            images = draw_images(
                pipeline.params,
                pipeline.tokenizer([prompts[number].text for number in padded]),
                empty,
                noise.transpose(0, 2, 3, 1),
                np.float32(settings.guidance),
                sampler,
                config=config,
                compute=settings.compute,
            )
            for number, image in zip(batch, np.asarray(images), strict=False):
                _write_image(out / names[number], image)
            progress.advance(task, len(batch))
    return {"images": len(prompts), "made": len(missing), "seconds": time.perf_counter() - start}


def check_generation(settings: GenerationSettings, config: DiffusionConfig) -> schedules.Sampler:
    """The sampler of some settings.

    Raises:
      InputError: a setting cannot be used with networks of these sizes.
    """
    if settings.sampler not in schedules.SAMPLERS:
        raise InputError(f"--sampler is {settings.sampler}; choose one of {', '.join(schedules.SAMPLERS)}")
    multiple = config.vae.factor * 2 ** (len(config.unet.widths) - 1)
    if settings.size < multiple or settings.size % multiple:
        raise InputError(f"--size must be a multiple of {multiple}, got {settings.size}")
    return schedules.SAMPLERS[settings.sampler](settings.steps)


def image_names(count: int) -> list[str]:
    """The files of so many images."""
    return [f"{number:05d}.png" for number in range(count)]


def _write_list(path: Path, names: Sequence[str], prompts: Sequence[Prompt]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "seed", "prompt"])
    writer.writerows([name, prompt.seed, prompt.text] for name, prompt in zip(names, prompts, strict=True))
    files.write_text(path, text.getvalue())


def _write_image(path: Path, image: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    files.write_bytes(path, content.getvalue())
