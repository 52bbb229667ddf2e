"""Images from prompts (`scissorhands sd generate`). What was interrupted continues with the next image."""

from __future__ import annotations

import csv
import dataclasses
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

from scissorhands_jax import files, hashing, reading
from scissorhands_jax.base import Params
from scissorhands_jax.diffusion import networks, schedules
from scissorhands_jax.diffusion.layers import Compute, attention_levels
from scissorhands_jax.diffusion.model_folder import Pipeline
from scissorhands_jax.diffusion.networks import DiffusionConfig
from scissorhands_jax.diffusion.tokenizer import Tokenizer
from scissorhands_jax.diffusion.unet import Noisy
from scissorhands_jax.errors import InputError, check_choice, check_finite_number, check_whole
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.terminal import Console
from scissorhands_jax.training.identity import Identity, identify

IMAGES_FILE = "images.csv"
_SEED_COLUMNS = ("seed", "evaluation_seed", "sd_seed")  # ours, UnlearnDiffAtk's, I2P's
_PROMPT_COLUMNS = ("prompt", "adv_prompt", "sensitive prompt")  # ours and P4D's, MMA's, Ring-A-Bell's


class Prompt(NamedTuple):
    """What one image is made of."""

    text: str
    """The prompt."""
    seed: int
    """The seed of the noise that the image begins with, as PyTorch understands it."""


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How images are made."""

    sampler: str = "lms"
    """The name of the sampler in `schedules.SAMPLERS`."""
    steps: int = 50
    """The number of steps of the sampler."""
    guidance: float = 7.5
    """The scale of classifier-free guidance; 1 follows the prompt without any."""
    size: int = 512
    """The height and width of the images in pixels."""
    compute: Compute = networks.FLOAT32
    """How the networks compute."""

    def description(self) -> dict[str, str]:
        """The settings as they are saved with results, without those that change how much memory is needed."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "compute"]
        return {name: str(getattr(self, name)) for name in names} | {"dtype": self.compute.dtype}


DEFAULT_GENERATION = GenerationSettings()


def read_prompts(path: Path, *, seed: int = 0) -> list[Prompt]:
    """Reads a CSV file of prompts.

    The file needs a column `prompt`, or `adv_prompt` or `sensitive prompt` as the adversarial lists of MMA and
    Ring-A-Bell have it. Seeds are those of the column `seed`, `evaluation_seed` or `sd_seed` (as in the
    lists of UnlearnDiffAtk and I2P). Other columns are ignored.

    Args:
      path: The file.
      seed: Where the file has no seeds, the first row gets this one, the second the next one, and so on.

    Raises:
      InputError: The file cannot be read, has no prompts or several columns of them, a prompt is empty, or a seed is no
        whole number.
    """
    try:
        columns, _, rows = reading.read_rows(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the prompts in {path}: {error}") from error
    column = next((name for name in _PROMPT_COLUMNS if name in columns), None)
    if len(several := [name for name in _PROMPT_COLUMNS if name in columns]) > 1:
        raise InputError(f"{path} has the columns {' and '.join(several)}; leave all but the one of the prompts out")
    if column is None:
        held = ", ".join(columns[:10])[:200] or "nothing"
        raise InputError(
            f"{path} has no column `prompt`, its first line is {held!r}; name the columns in the first line"
        )
    seeds = next((name for name in _SEED_COLUMNS if name in columns), None)
    prompts = []
    for number, row in enumerate(rows):
        text, drawn = row.values.get(column), seed + number if seeds is None else row.values.get(seeds)
        if text is None or not text.strip():
            raise InputError(f"line {row.line} of {path} has no prompt; write one, or leave the line out")
        try:
            prompts.append(Prompt(text, int(drawn)))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"line {row.line} of {path} has the {seeds} {str(drawn)[:40]!r}; give a whole number"
            ) from error
    if not prompts:
        raise InputError(f"{path} holds no prompts")
    return prompts


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
) -> tuple[jax.Array, jax.Array]:
    """Images of prompts, and whether all numbers behind them are finite.

    Shapes (N, H, W, 3), dtype=uint8, and (N,), dtype=bool. What is not finite has no meaning as an image.

    Args:
      params: The parameters of `unet`, `vae` and `text`.
      ids: The ids of the prompts. shape=(N, T), dtype=int32
      empty: The ids of the empty prompt. shape=(1, T)
      noise: Standard normal numbers. shape=(N, H / 8, W / 8, 4)
      guidance: The scale of the guidance. shape=() or (N,)
      sampler: The table of steps. Another one of the same length needs no compilation.
      config: The sizes of the networks.
      compute: How they compute.
    """
    text = networks.text_encoder(config.text, compute)
    embeddings, _ = text.apply(params["text"], {}, jnp.concatenate([ids, empty]), train=False)

    def predict(noisy: Noisy) -> jax.Array:
        return networks.unet(config.unet, compute).apply(params["unet"], {}, noisy, train=False)[0]

    denoise = schedules.guided(predict, embeddings[:-1], embeddings[-1:], guidance)
    latents = schedules.sample(sampler, denoise, noise)
    decoder = networks.vae_decoder(config.vae, compute)
    pixels, _ = decoder.apply(params["vae"], {}, latents / config.vae.scaling, train=False)
    finite = jnp.isfinite(pixels).all(axis=(1, 2, 3))
    return jnp.round(jnp.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8), finite


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

    The noise that an image begins with is that of PyTorch's CPU generator with the prompt's seed, so that diffusers'
    pipelines make the same images. Every image is written as soon as it is made; with `resume`, images that exist are
    not made again. An image depends on the rest of its batch by rounding only. `run.json` keeps the settings.

    Args:
      pipeline: The networks and the tokenizer.
      prompts: One for each image.
      out: The folder of the images.
      settings: How images are made.
      batch_size: The number of images that are made at a time.
      description: What a resumed run must agree on in addition to settings and prompts, such as the networks.
      overwrite: Whether images of an earlier run are replaced.
      resume: Whether an earlier run is continued.
      console: Shows progress. By default that is standard error.

    Returns:
      `images`, the number of images; `made`, how many of them were made now; `seconds`, how long that took, including
      compilation.

    Raises:
      InputError: A setting cannot be used, the folder is taken, or a picture holds numbers that are not finite.
    """
    batch_size = check_whole("--batch-size", batch_size, 1)
    sampler = check_generation(settings, pipeline.config)
    identity = image_identity(prompts, pipeline.tokenizer, settings, description)
    opened = runs.open_folder(out, identity, overwrite=overwrite, resume=resume)
    with opened as fresh, runs.cleared_if_refused(out, fresh, "*.png"):
        return _make_missing(pipeline, prompts, out, settings, sampler, batch_size, console or Console(stderr=True))


def image_identity(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    settings: GenerationSettings,
    description: dict[str, Any] | None = None,
) -> Identity:
    """What images are told apart by.

    Args:
      prompts: The prompts, in the order of the images.
      tokenizer: What reads them; its vocabulary counts.
      settings: How images are made.
      description: Whatever else they depend on, such as hashes of networks, as for `generate_images`.
    """
    listed = repr([tuple(prompt) for prompt in prompts]).encode()
    described = {
        "prompts_sha256": hashing.sha256(listed),
        "cleaning": tokenizer.cleaning,
        "tokenizer": tokenizer,
        **settings.description(),
        **(description or {}),
    }
    return identify(described)


def _make_missing(
    pipeline: Pipeline,
    prompts: Sequence[Prompt],
    out: Path,
    settings: GenerationSettings,
    sampler: schedules.Sampler,
    batch_size: int,
    console: Console,
) -> dict[str, Any]:
    """Makes the images that are not there yet."""
    config = pipeline.config
    names = image_names(len(prompts))
    _write_list(out / IMAGES_FILE, names, prompts)
    missing = [number for number, name in enumerate(names) if not (out / name).exists()]
    batch_size = min(batch_size, len(missing)) or 1
    side = settings.size // config.vae.factor
    shape = (config.unet.channels, side, side)
    empty = pipeline.tokenizer([""])
    start = time.perf_counter()
    with progress_bar(console) as progress:
        task = progress.add_task("generating", total=len(prompts), completed=len(prompts) - len(missing), note="")
        for first in range(0, len(missing), batch_size):
            batch = missing[first : first + batch_size]
            padded = batch + batch[-1:] * (batch_size - len(batch))  # the last batch needs no compilation of its own
            noise = np.stack([schedules.torch_normal(prompts[number].seed, shape) for number in padded])
            images, finite = draw_images(
                pipeline.params,
                pipeline.tokenizer([prompts[number].text for number in padded]),
                empty,
                noise.transpose(0, 2, 3, 1),
                np.float32(settings.guidance),
                sampler,
                config=config,
                compute=settings.compute,
            )
            for number, image, drawn in zip(batch, np.asarray(images), np.asarray(finite), strict=False):
                if not drawn:
                    raise _not_finite(out / names[number], prompts[number], settings)
                write_image(out / names[number], image)
            progress.advance(task, len(batch))
    return {"images": len(prompts), "made": len(missing), "seconds": time.perf_counter() - start}


def _not_finite(path: Path, prompt: Prompt, settings: GenerationSettings) -> InputError:
    narrow = "compute with --dtype float32, or " if settings.compute.dtype != "float32" else ""
    return InputError(
        f"the image {path} of the prompt {prompt.text[:60]!r} has NaN or infinity and was not written; {narrow}check "
        "the networks that it comes from"
    )


def check_generation(settings: GenerationSettings, config: DiffusionConfig) -> schedules.Sampler:
    """The sampler that some settings name.

    Args:
      settings: How images are made.
      config: The sizes of the networks.

    Raises:
      InputError: A setting cannot be used with networks of these sizes.
    """
    check_choice("--sampler", settings.sampler, schedules.SAMPLERS)
    check_finite_number("--guidance", settings.guidance)
    fused = "cudnn" in (name for _, name in attention_levels(settings.compute.attention))
    if fused and jax.default_backend() != "gpu":
        raise InputError(
            f"--attention cudnn needs an NVIDIA GPU, and JAX computes on {jax.default_backend()} here; take chunked"
        )
    multiple = config.vae.factor * 2 ** (len(config.unet.widths) - 1)
    if settings.size < multiple or settings.size % multiple:
        raise InputError(f"--size must be a multiple of {multiple}, got {settings.size}")
    return schedules.SAMPLERS[settings.sampler](settings.steps, config.schedule)


def image_names(count: int) -> list[str]:
    """The names of the files of a number of images."""
    return [f"{number:05d}.png" for number in range(count)]


def _write_list(path: Path, names: Sequence[str], prompts: Sequence[Prompt]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "seed", "prompt"])
    writer.writerows([name, prompt.seed, prompt.text] for name, prompt in zip(names, prompts, strict=True))
    files.write_text(path, text.getvalue())


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes a picture of shape (H, W, 3), dtype=uint8, as PNG."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    files.write_bytes(path, content.getvalue())
