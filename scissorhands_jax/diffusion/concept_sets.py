"""The two sets of training images of `scissorhands sd unlearn`: what is to be forgotten, and what is to be retained.

Images are read from a folder, or the model itself makes them from prompts. `ExampleMaker` turns both sets into what the
losses take, and keeps everything that it computes in a cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from scissorhands_jax import hashing
from scissorhands_jax.base import Data, Dataset, Params
from scissorhands_jax.diffusion import encoded, generating, model_folder, networks
from scissorhands_jax.diffusion.concept_methods import ConceptTraining
from scissorhands_jax.diffusion.generating import GenerationSettings, Prompt
from scissorhands_jax.diffusion.networks import Part
from scissorhands_jax.diffusion.tokenizer import Tokenizer
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import status
from scissorhands_jax.terminal import Console

SetName = Literal["forget", "retain"]


class ConceptSet(NamedTuple):
    """The training images of one of the two sets, and what they show."""

    prompts: Sequence[Prompt]
    """The prompts of the images, in turn: what each image is made of or, if images are read, its caption."""
    images: Path | None = None
    """A folder of pictures; None means that the images are made of the prompts."""
    number: int | None = None
    """How many images there are; None is one for each prompt, or all that the folder holds."""

    def paired(self, name: SetName, batch_size: int) -> ConceptSet:
        """The set with one prompt for each image; pictures are looked for in the folder.

        Args:
          name: Which set this is, for messages.
          batch_size: The number of images that the set must have at least.

        Raises:
          InputError: There are no prompts or too few images, of a forget set also for its prompts, or a picture cannot
            be read.
        """
        if not self.prompts:
            raise InputError(f"the {name} set has no prompt; add --{name}-prompts")
        number = self.number or len(self.prompts)
        if self.images is not None:
            number = len(encoded.find_images(self.images, self.number))
        if number < batch_size:
            raise InputError(
                f"the {name} set has {number} images, fewer than a batch of {batch_size}; "
                f"{'add images' if self.images is not None else 'raise --images'}, or lower --batch-size"
            )
        total = len(self.prompts)
        if name == "forget" and number < total:
            raise InputError(
                f"{number} images cannot show what all {total} prompts of the forget set name; "
                f"{'add images' if self.images is not None else 'raise --images'}, or leave prompts out"
            )
        seeds = [prompt.seed for prompt in self.prompts]
        span = max(seeds) - min(seeds) + 1
        turns = ((self.prompts[image % total], image // total) for image in range(number))
        # A prompt that makes several images has another seed for each, beyond those of all prompts of the turn before.
        prompts = tuple(Prompt(prompt.text, prompt.seed + turn * span) for prompt, turn in turns)
        return ConceptSet(prompts, self.images, number)

    def description(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, as JSON."""
        listed = [prompt.text if self.images is not None else tuple(prompt) for prompt in self.prompts]
        found = None if self.images is None else hashing.files_sha256(encoded.find_images(self.images, self.number))
        return {
            "images": len(self.prompts),
            "prompts_sha256": hashing.sha256(repr(listed)),
            "images_sha256": found,
        }


def read_concept_set(
    words: Sequence[str], images: Path | None, number: int | None, *, name: SetName, seed: int = 0
) -> ConceptSet:
    """A set as the command line names it.

    Args:
      words: Prompts, and CSV files of prompts as `generating.read_prompts` takes them, whose names end in `.csv`.
      images: See `ConceptSet`.
      number: See `ConceptSet`.
      name: Which set this is, for messages.
      seed: The seed of the first prompt that has none; further prompts have the next ones.

    Raises:
      InputError: A prompt is empty or reads like a setting or another file, or a file cannot be read.
    """
    prompts: list[Prompt] = []
    for word in words:
        if word.lower().endswith(".csv"):
            prompts += generating.read_prompts(Path(word), seed=seed + len(prompts))
        elif re.fullmatch(r"\w+(\.\w+)*=\S*", word):
            raise InputError(f"--{name}-prompts has {word!r}, which reads like a setting; write settings before it")
        elif os.path.isfile(word) or re.fullmatch(r"\S+\.(txt|tsv|jsonl?|parquet|xlsx?)", word, re.IGNORECASE):
            raise InputError(
                f"--{name}-prompts has {word!r}, which reads like a file, and files of prompts are CSV with the column "
                "prompt; convert it and let its name end in .csv"
            )
        elif not word.strip():
            raise InputError(f"--{name}-prompts has an empty prompt")
        else:
            prompts.append(Prompt(word, seed + len(prompts)))
    if number is not None and number < 1:
        raise InputError(f"--images must be at least 1, got {number}")
    return ConceptSet(tuple(prompts), images, number)


class ExampleMaker:
    """Makes the images of both sets, and from them the examples that the losses take.

    Networks are read when they are first needed and stay in memory until they are dropped or taken.

    Args:
      model: The model's folder.
      cache: The folder that images and arrays are kept in.
      sets: Both sets, with one prompt for each image.
      generation: How images are made. `size` is that of all images.
      tokenizer: What turns prompts into ids.
    """

    def __init__(
        self,
        model: Path,
        cache: Path,
        sets: Mapping[SetName, ConceptSet],
        generation: GenerationSettings,
        tokenizer: Tokenizer,
    ) -> None:
        self.model, self.cache, self.sets, self.generation = model, cache, sets, generation
        self.tokenizer, self.config = tokenizer, model_folder.read_model_config(model)
        self._params: dict[Part, Params] = {}

    def make_images(self, batch_size: int, networks_sha256: str, console: Console) -> dict[SetName, list[Path]]:
        """The pictures of both sets; those that are missing are made.

        Args:
          batch_size: The number of images that are made at a time.
          networks_sha256: The hash of the model, `model_folder.model_sha256`.
          console: Shows progress.
        """
        paths: dict[SetName, list[Path]] = {}
        described = {"networks_sha256": networks_sha256}
        for name, concept in self.sets.items():
            if concept.images is None:  # before images of another set are made
                identity = generating.image_identity(concept.prompts, self.tokenizer, self.generation, described)
                runs.check_folder(self.cache / name / "images", identity, advice="name another --cache")
        for name, concept in self.sets.items():
            if concept.images is not None:
                paths[name] = encoded.find_images(concept.images, concept.number)
                continue
            with status(console, "reading the networks"):
                params = {part: self._load(part) for part in networks.PARTS}
            folder = self.cache / name / "images"
            generating.generate_images(
                model_folder.Pipeline(self.config, params, self.tokenizer, self.tokenizer.cleaning),
                concept.prompts,
                folder,
                settings=self.generation,
                batch_size=batch_size,
                description=described,
                resume=True,
                console=console,
            )
            paths[name] = [folder / file for file in generating.image_names(len(concept.prompts))]
        return paths

    def encode(
        self,
        paths: Mapping[SetName, Sequence[Path]] | None,
        settings: ConceptTraining,
        start_bar: Callable[[str, int], Callable[[int], None]],
    ) -> Data:
        """Both sets as the losses take them: moments of latents, and embeddings of prompts.

        Args:
          paths: The pictures, as `make_images` returns them. None makes latents of zeros, which give their shape.
          settings: The settings of the method, which say what it reads and what is to take the concept's place.
          start_bar: Starts a progress bar with a title and a total; what it returns is called with every advance.
        """
        data = Data(self._dataset("forget", paths, start_bar), self._dataset("retain", paths, start_bar))
        others = {"pseudo": settings.pseudo, "empty": ""}
        forget, shape = dict(data.forget), data.forget["context"].shape
        for name in set(others) & set(settings.reads):
            folder = self.cache / name
            replacement = self._embed(folder, [str(others[name])], start_bar(f"the {name} prompt", 1))
            forget[name] = np.broadcast_to(replacement, shape)
        if "concept" not in settings.reads:
            return Data(forget, data.retain)
        # Of each prompt the embedding of its last token, which is read before the end of text.
        forget["concept"] = self._last_tokens("forget", forget["context"])
        forget["concept_pseudo"] = forget["pseudo"][:, self._last_token(str(settings.pseudo))]
        return Data(forget, {**data.retain, "concept": self._last_tokens("retain", data.retain["context"])})

    def _last_token(self, text: str) -> int:
        """The position of the last token of a prompt before the end of text; of the empty prompt the first one's."""
        ids = self.tokenizer([text])[0]
        return max(int(np.argmax(ids == self.tokenizer.end)) - 1, 0)

    def _last_tokens(self, name: SetName, context: np.ndarray) -> np.ndarray:
        """The embeddings of the last tokens of all prompts of a set. shape=(N, D)"""
        positions = [self._last_token(prompt.text) for prompt in self.sets[name].prompts]
        return context[np.arange(len(positions)), positions]

    def drop(self, *parts: Part) -> None:
        """Frees networks that are not needed any more."""
        for part in parts:
            self._params.pop(part, None)

    def take(self, part: Part) -> Params:
        """The parameters of a network, to which no reference is kept here."""
        params = self._load(part)
        del self._params[part]
        return params

    def _load(self, part: Part) -> Params:
        if part not in self._params:
            self._params[part] = model_folder.load_part(part, self.model).params
        return self._params[part]

    def _embed(self, folder: Path, texts: Sequence[str], on_done: Callable[[int], None]) -> np.ndarray:
        return encoded.prompt_embeddings(
            folder,
            self.tokenizer(texts),
            self.config.text,
            lambda: self._load("text"),
            network=model_folder.part_sha256("text", self.model),
            on_done=on_done,
        )

    def _dataset(
        self,
        name: SetName,
        paths: Mapping[SetName, Sequence[Path]] | None,
        start_bar: Callable[[str, int], Callable[[int], None]],
    ) -> Dataset:
        prompts = self.sets[name].prompts
        texts = list(dict.fromkeys(prompt.text for prompt in prompts))
        table = self._embed(self.cache / name / "prompts", texts, start_bar(f"{name} prompts", len(texts)))
        positions = [texts.index(prompt.text) for prompt in prompts]
        if paths is None:
            side = self.generation.size // self.config.vae.factor
            latents = np.zeros((len(prompts), side, side, self.config.vae.latent_channels), np.float32)
            return {"latents": latents, "context": table[positions]}
        mean, deviation = encoded.latent_moments(
            self.cache / name / "moments",
            paths[name],
            self.generation.size,
            self.config.vae,
            lambda: self._load("vae"),
            network=model_folder.part_sha256("vae", self.model),
            on_done=start_bar(f"{name} images", len(paths[name])),
        )
        return {"latents": mean, "deviation": deviation, "context": table[positions]}
