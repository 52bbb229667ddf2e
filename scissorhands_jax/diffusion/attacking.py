"""Attacks on Stable Diffusion v1 (`scissorhands sd attack`): can prompts be found that bring a concept back?

For each prompt an image of the concept is the target. Adversarial tokens stand before the prompt's own, and are looked
for with `attacks.attack`; after every round the network draws the prompt with them, from the prompt's seed, and a judge
looks at the picture. Prompts that succeed as they are count as successes without an attack.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from scissorhands_jax import files, hashing, reading, report
from scissorhands_jax.base import Params, PyTree
from scissorhands_jax.diffusion import (
    attack_judges,
    attacks,
    encoded,
    generating,
    losses,
    model_folder,
    networks,
    nudity,
    schedules,
)
from scissorhands_jax.diffusion.attack_judges import ConceptJudge, Judge, nudity_judge
from scissorhands_jax.diffusion.attacks import AttackRate, AttackSettings
from scissorhands_jax.diffusion.generating import DEFAULT_GENERATION, GenerationSettings, Prompt
from scissorhands_jax.diffusion.model_folder import Pipeline
from scissorhands_jax.diffusion.text import TextConfig
from scissorhands_jax.diffusion.tokenizer import Cleaning
from scissorhands_jax.errors import CheckpointError, InputError, check_seed
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.terminal import Console
from scissorhands_jax.training.descriptions import describe_value
from scissorhands_jax.training.identity import identify

Target = Literal["unlearned", "original"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackJob:
    """What is attacked, and how."""

    model: Path
    """The folder of the original model, as `importing.import_weights` writes it."""
    unet: Path
    """The folder of the unlearned UNet."""
    prompts: Sequence[Prompt]
    """The prompts of the concept; of lists of adversarial prompts, these themselves."""
    settings: AttackSettings | None
    """How tokens are looked for. None takes the prompts as they are: a transferred list."""
    images: Path | None = None
    """A folder with images of the concept, see `attack_judges.target_images`. None has the original make them."""
    gate: int = 0
    """The number of prompts, from the first, with which the original is attacked as well."""
    generation: GenerationSettings = DEFAULT_GENERATION
    """How images are made, and what networks compute in."""
    concepts: ConceptJudge | None = None
    """The concepts, and the CLIP that says which of them pictures show. None has NudeNet look for exposed parts."""
    threshold: float = nudity.THRESHOLD
    """The least score of NudeNet's detections of exposed parts that counts, from 0.25 to 1."""
    seed: int = 0
    """The seed of the attacks."""
    tokenizer: Path | None = None
    """Where the tokenizer is, see `model_folder.load_pipeline`."""
    cleaning: Cleaning = "nfc"
    """How prompts are cleaned, see `Tokenizer`."""


def attack_concept(
    job: AttackJob,
    out: Path,
    *,
    judge: Judge | None = None,
    overwrite: bool = False,
    resume: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Attacks an unlearned UNet with every prompt, and the original with the first ones.

    Each prompt's result is a file `unlearned/00000.json` in `out`, next to the picture of its last round; a run that
    was stopped continues with the next prompt. `results.json` has the attack success rates with their intervals,
    without and with the attack, with several concepts also of each, and `attacks.attack_gate` of the original.

    Args:
      job: What is attacked, and how.
      out: The folder of the results.
      judge: Says whether a picture shows the concept. None is the one of `job.concepts`, or NudeNet: any exposed part
        of `job.threshold` or more. A run is continued with the same judge only.
      overwrite: Whether a run in `out` is replaced.
      resume: Whether a run in `out` is continued.
      console: Shows progress.

    Returns:
      The document in `results.json`.

    Raises:
      InputError: Something cannot be used, or the folder is taken.
      CheckpointError: A network or a result is missing or damaged.
    """
    description = _check(job, judge)
    if judge is None and job.concepts is None:
        judge = nudity_judge(job.threshold)
    inputs = [job.model, job.unet, job.images, job.tokenizer]
    opened = runs.open_folder(out, identify(description), inputs=inputs, overwrite=overwrite, resume=resume)
    with opened as fresh, runs.cleared_if_refused(out, fresh, "targets/*.png", "unlearned/*.json", "original/*.json"):
        pipeline = model_folder.load_pipeline(job.model, tokenizer=job.tokenizer, cleaning=job.cleaning)
        moments = _targets(job, pipeline, out, console)
        unlearned = model_folder.load_part("unet", job.unet).params
        found = {"unlearned": _attack_all(job, pipeline, unlearned, moments, out, "unlearned", judge, console)}
        if job.gate:
            own = dataclasses.replace(job, prompts=job.prompts[: job.gate])
            found["original"] = _attack_all(
                own, pipeline, pipeline.params["unet"], moments, out, "original", judge, console
            )
        document = {name: _rates(rows) | _rates_of_concepts(rows) for name, rows in found.items()}
        if job.gate:
            with_attack = AttackRate(**document["original"]["with_attack"])
            document["gate"] = {"original": attacks.attack_gate(with_attack)["original"]}
        document |= {"config": description, **report.environment()}
        document = report.by_first_maker(out / runs.RESULTS_FILE, document)
        files.write_text(out / runs.RESULTS_FILE, json.dumps(document, indent=2) + "\n")
    return document


def _check(job: AttackJob, judge: Judge | None) -> dict[str, Any]:
    """Refuses what cannot be used; returns what a resumed run must agree on."""
    check_seed(job.seed)
    if not job.prompts:
        raise InputError("an attack needs at least one prompt; add --prompts")
    if not 0 <= job.gate <= len(job.prompts):
        raise InputError(f"--gate must be 0 to {len(job.prompts)}, the number of prompts, got {job.gate}")
    nudity.check_threshold(job.threshold)
    config = model_folder.read_model_config(job.model)
    generating.check_generation(job.generation, config)
    tokenizer = model_folder.load_tokenizer(job.model, job.tokenizer, job.cleaning)
    if model_folder.read_part_config("unet", job.unet)[0] != config.unet:
        raise InputError(f"the UNet in {job.unet} has other sizes than that of {job.model}; name one made from it")
    if (found := model_folder.read_part_schedule(job.unet)) != config.schedule:
        raise InputError(
            f"the UNet in {job.unet} was trained with another schedule than that of {job.model} ({found} and "
            f"{config.schedule}); name one made from it"
        )
    images_sha256 = None
    if job.settings is not None:
        job.settings.check()
        if job.settings.tokens > config.text.length - 2:
            raise InputError(f"tokens must be at most {config.text.length - 2}, got {job.settings.tokens}")
        if job.images is not None:
            targets = attack_judges.target_images(job.images, job.prompts, job.concepts)
            images_sha256 = hashing.files_sha256(targets)
    concepts = None
    if job.concepts is not None:
        job.concepts.check_prompts(job.prompts)
        concepts = {**dataclasses.asdict(job.concepts.concepts), "clip": job.concepts.clip.description()}
    listed = repr([tuple(prompt) for prompt in job.prompts])
    return {
        "command": "sd attack",
        "attack": None if job.settings is None else dataclasses.asdict(job.settings),
        "prompts": len(job.prompts),
        "prompts_sha256": hashing.sha256(listed),
        "images_sha256": images_sha256,
        "generation": job.generation.description(),
        "cleaning": job.cleaning,
        "tokenizer": describe_value(tokenizer, "the tokenizer"),
        "threshold": job.threshold,
        "concepts": concepts,
        "seed": job.seed,
        "gate": job.gate,
        "networks_sha256": model_folder.model_sha256(job.model, unet=job.unet),
        "original_sha256": model_folder.model_sha256(job.model),
        "judge": None if judge is None else describe_value(judge, "the judge"),
    }


def _targets(job: AttackJob, pipeline: Pipeline, out: Path, console: Console) -> tuple[np.ndarray, np.ndarray] | None:
    """The moments of the latents of the target images, which the original makes if there are none."""
    if job.settings is None:
        return None
    if job.images is not None:
        paths = attack_judges.target_images(job.images, job.prompts, job.concepts)
    else:
        folder = out / "targets"
        generating.generate_images(
            pipeline,
            job.prompts,
            folder,
            settings=job.generation,
            description={"networks_sha256": model_folder.model_sha256(job.model)},
            resume=True,
            console=console,
        )
        paths = [folder / name for name in generating.image_names(len(job.prompts))]
    return encoded.latent_moments(
        out / "moments",
        paths,
        job.generation.size,
        pipeline.config.vae,
        lambda: pipeline.params["vae"],
        network=model_folder.part_sha256("vae", job.model),
    )


def _attack_all(
    job: AttackJob,
    pipeline: Pipeline,
    unet: Params,
    moments: tuple[np.ndarray, np.ndarray] | None,
    out: Path,
    name: Target,
    judge: Judge | None,
    console: Console,
) -> list[dict[str, Any]]:
    """The results of all prompts against one UNet; those that are on disk are read."""
    rows = []
    attacked = pipeline._replace(params={**pipeline.params, "unet": unet})
    with progress_bar(console) as progress:
        task = progress.add_task(f"attacking the {name} network", total=len(job.prompts), note="")
        for number, prompt in enumerate(job.prompts):
            path = out / name / f"{number:05d}.json"
            if path.exists():
                rows.append(_read_row(path))
            else:
                target = (
                    None if moments is None else {"latents": moments[0][[number]], "deviation": moments[1][[number]]}
                )
                own = judge or (job.concepts.judge(prompt.text) if job.concepts is not None else None)
                assert own is not None
                row, image = attack_prompt(
                    attacked,
                    prompt,
                    target,
                    own,
                    jax.random.fold_in(jax.random.key(job.seed), number),
                    settings=job.settings,
                    generation=job.generation,
                )
                if job.concepts is not None:
                    row["concept"] = job.concepts.target(prompt.text)
                generating.write_image(path.with_suffix(".png"), image)
                files.write_text(path, json.dumps(row, indent=2) + "\n")
                rows.append(row)
            progress.advance(task)
    return rows


def attack_prompt(
    pipeline: Pipeline,
    prompt: Prompt,
    target: PyTree | None,
    judge: Judge,
    key: jax.Array,
    *,
    settings: AttackSettings | None,
    generation: GenerationSettings = DEFAULT_GENERATION,
) -> tuple[dict[str, Any], np.ndarray]:
    """Attacks with one prompt, unless it succeeds as it is.

    Args:
      pipeline: The model that is attacked.
      prompt: The prompt, and the seed of the pictures.
      target: Moments of the latents of one image of the concept, `latents` and `deviation`, shape (1, h, w, C); None
        without an attack.
      judge: Says whether a picture shows the concept.
      key: Decides what is random in the attack.
      settings: How tokens are looked for; None does not look.
      generation: How pictures are made.

    Returns:
      What is written down of it, and the last picture, shape (H, W, 3), dtype=uint8.
    """
    ids, text = pipeline.tokenizer([prompt.text]), pipeline.params["text"]
    images = [_draw(pipeline, text, ids, prompt.seed, generation)]
    plain = judge(images[0])
    row: dict[str, Any] = {"prompt": prompt.text, "seed": prompt.seed, "without_attack": plain, "with_attack": plain}
    if plain or settings is None:
        return row, images[0]
    length, vocabulary = pipeline.config.text.length, _table(text)
    placed = with_placeholders(ids, settings.tokens, vocabulary.shape[0], length)

    def succeeds(rows: np.ndarray, tokens: np.ndarray | None) -> bool:
        del tokens
        images.append(_draw(pipeline, with_rows(text, jnp.asarray(rows)), placed, prompt.seed, generation))
        return judge(images[-1])

    start = np.asarray(vocabulary[ids[0, 1 : 1 + settings.tokens]], np.float32)
    found = attacks.attack(
        losses.noise_loss(networks.unet(pipeline.config.unet, generation.compute), pipeline.config.schedule),
        pipeline.params["unet"],
        target,
        prompt_encoder(pipeline.config.text),
        start,
        key,
        settings=settings,
        fixed=(text, jnp.asarray(placed)),
        vocabulary=vocabulary,
        judge=succeeds,
    )
    row |= {"with_attack": bool(found.success), "rounds": found.rounds, "last_loss": float(found.losses[-1])}
    if found.tokens is not None:
        row["tokens"] = found.tokens.tolist()
    return row, images[-1]


@functools.cache
def prompt_encoder(config: TextConfig) -> attacks.Encode:
    """From `(text encoder's params, ids)` and rows to the embeddings of the prompt that holds them, shape (T, D).

    Args:
      config: The sizes of the text encoder. The rows are those of the ids from `config.vocabulary` on.
    """
    model = networks.text_encoder(config)

    def encode(fixed: PyTree, rows: jax.Array) -> jax.Array:
        text, ids = fixed
        return model.apply(with_rows(text, rows), {}, ids, train=False)[0][0]

    return encode


def with_rows(text: Params, rows: jax.Array) -> Params:
    """The params of a text encoder with further rows behind its vocabulary."""
    table = jnp.concatenate([_table(text), rows.astype(_table(text).dtype)])
    embeddings = text["text_model"]["embeddings"]
    names = {name: {**embeddings["token_embedding"], name: table} for name in embeddings["token_embedding"]}
    (own,) = names.values()  # the table is all that the layer has
    return {**text, "text_model": {**text["text_model"], "embeddings": {**embeddings, "token_embedding": own}}}


def with_placeholders(ids: np.ndarray, tokens: int, vocabulary: int, length: int) -> np.ndarray:
    """Ids of one prompt with placeholders before its first word, cut to the length with the end in its last place.

    Args:
      ids: The ids, with the start in the first place and the end, which is also padding, in the last. shape=(1, T)
      tokens: The number of placeholders.
      vocabulary: The id of the first placeholder.
      length: The number of ids of a prompt.
    """
    held = np.concatenate([ids[:, :1], vocabulary + np.arange(tokens, dtype=ids.dtype)[None], ids[:, 1:]], axis=1)
    held = held[:, :length].copy()
    held[:, -1] = ids[:, -1]
    return held


def _table(text: Params) -> jax.Array:
    """The rows of the vocabulary. shape=(V, width)"""
    (table,) = text["text_model"]["embeddings"]["token_embedding"].values()
    return table


def _draw(pipeline: Pipeline, text: Params, ids: np.ndarray, seed: int, generation: GenerationSettings) -> np.ndarray:
    """The picture of one prompt. shape=(H, W, 3), dtype=uint8"""
    config, side = pipeline.config, generation.size // pipeline.config.vae.factor
    noise = schedules.torch_normal(seed, (1, config.unet.channels, side, side)).transpose(0, 2, 3, 1)
    images, finite = generating.draw_images(
        {**pipeline.params, "text": text},
        ids,
        pipeline.tokenizer([""]),
        noise,
        np.float32(generation.guidance),
        generating.check_generation(generation, config),
        config=config,
        compute=generation.compute,
    )
    if not bool(np.asarray(finite)[0]):
        raise InputError("a picture has NaN or infinity; compute with --dtype float32, or check the networks")
    return np.asarray(images)[0]


def _read_row(path: Path) -> dict[str, Any]:
    try:
        row = reading.read_json(path)
        return row | {name: bool(row[name]) for name in ("without_attack", "with_attack")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it, and it is made again") from error


def _rates(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The attack success rates, without and with the attack."""
    return {
        name: attacks.attack_rate(sum(row[name] for row in rows), len(rows))._asdict()
        for name in ("without_attack", "with_attack")
    }


def _rates_of_concepts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rates of each concept that prompts name, where there are several."""
    named: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("concept") is not None:
            named.setdefault(row["concept"], []).append(row)
    return {"concepts": {name: _rates(own) for name, own in named.items()}} if len(named) > 1 else {}
