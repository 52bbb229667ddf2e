"""How many images show what their prompts ask for, by CLIP without training: of forgotten and of kept concepts.

An image belongs to the concept that its prompt names. CLIP says which of all concepts it shows: the one whose text,
such as "a photo of a church", has the largest cosine with the image (Radford et al. 2021, section 3.1). The share of
the forgotten concepts' images that show something else is called unlearning accuracy (UA), the share of the kept
concepts' images that show theirs in-domain retain accuracy (IRA; Zhang et al., UnlearnCanvas, NeurIPS 2024).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from scissorhands_jax.diffusion import quality
from scissorhands_jax.diffusion.image_folders import ImageEntry
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import intervals


@dataclasses.dataclass(frozen=True)
class Concepts:
    """What images are asked for.

    Raises:
      InputError: There are too few concepts, one stands in both lists or in one twice, or the text has no place for it.
    """

    forgotten: tuple[str, ...]
    """The concepts that the network was to forget."""
    kept: tuple[str, ...]
    """Others, which it was to keep."""
    text: str = "a photo of {}"
    """What CLIP compares images with, with the concept in place of the braces."""

    def __post_init__(self) -> None:
        names = [name.casefold() for name in self.all]
        if not self.forgotten or len(names) < 2:
            raise InputError(
                f"CLIP needs a forgotten concept and at least one other to choose from, and got {', '.join(self.all)}; "
                "name them with --forgotten-concepts and --kept-concepts"
            )
        twice = next((name for name in self.all if names.count(name.casefold()) > 1), None)
        if twice is not None:
            raise InputError(f"the concept {twice!r} is given twice; name each once, as forgotten or as kept")
        if not all(name.strip() for name in self.all):
            raise InputError("a concept is empty; give each a name that prompts have")
        if self.text.count("{}") != 1:
            raise InputError(f"--concept-text is {self.text!r}; give it {{}} once, where the concept is to stand")

    @property
    def all(self) -> tuple[str, ...]:
        """All concepts, the forgotten ones first."""
        return (*self.forgotten, *self.kept)


@dataclasses.dataclass(frozen=True)
class ShownShare:
    """The percentage of images that show what they were asked for."""

    images: int
    """The number of images."""
    shown: int
    """How many of them show it."""
    value: float
    """The percentage."""
    low: float
    """The lower end of the exact (Clopper-Pearson) 95 % interval."""
    high: float
    """The upper end."""


@dataclasses.dataclass(frozen=True)
class FolderAccuracy:
    """What the images of one folder show."""

    concepts: dict[str, ShownShare | None]
    """By concept; None where no image was asked for it."""
    unlearning: ShownShare | None
    """UA: images of forgotten concepts, of which those count that show something else."""
    retained: ShownShare | None
    """IRA: images of kept concepts that show theirs."""
    unclear: int
    """The number of images whose prompts name none of the concepts, or several."""


@dataclasses.dataclass(frozen=True)
class ConceptAccuracy:
    """What the images of all folders show."""

    network: str
    """The name of the CLIP in `vision.CLIPS`."""
    forgotten: tuple[str, ...]
    kept: tuple[str, ...]
    text: str
    folders: dict[str, FolderAccuracy]
    """By the names of the folders in `measuring`."""


def concept_of(prompt: str, concepts: Sequence[str]) -> str | None:
    """The one concept that a prompt names, in whole words and any case; None if it names none or several.

    A concept within a longer one that is named ("cat" in "cat toy") does not count.

    Args:
      prompt: The prompt.
      concepts: The concepts.
    """
    spans: dict[tuple[int, int], str] = {}
    for concept in concepts:
        for match in re.finditer(rf"(?<!\w){re.escape(concept.casefold())}(?!\w)", prompt.casefold()):
            spans.setdefault(match.span(), concept)
    named = {
        concept
        for (start, end), concept in spans.items()
        if not any(first <= start and end <= last and (first, last) != (start, end) for first, last in spans)
    }
    return named.pop() if len(named) == 1 else None


def check_prompts(entries: Mapping[str, Sequence[ImageEntry]], concepts: Concepts) -> None:
    """Refuses folders whose images cannot be told apart by concept.

    Args:
      entries: The images by the names of their folders.
      concepts: The concepts.

    Raises:
      InputError: A folder has no prompts, or no prompt names a forgotten concept.
    """
    for name, own in entries.items():
        if any(entry.prompt is None for entry in own):
            raise InputError(
                f"the images of --{name} have no prompts, which say what concept they are of; make them with sd "
                "generate"
            )
        asked = {concept_of(entry.prompt.text, concepts.all) for entry in own if entry.prompt is not None}
        if not asked & set(concepts.forgotten):
            raise InputError(
                f"no prompt of --{name} names a forgotten concept ({', '.join(concepts.forgotten[:5])}) and no other; "
                "write the concepts as they stand in the prompts"
            )


def text_directions(concepts: Concepts, clip: quality.Clip) -> np.ndarray:
    """CLIP's features of the concepts' texts, with the norm 1. shape=(concepts, projection)"""
    texts = quality.prompt_features([concepts.text.replace("{}", name) for name in concepts.all], clip)
    return texts / np.linalg.norm(texts, axis=1, keepdims=True)


def shown_concepts(features: np.ndarray, directions: np.ndarray, concepts: Concepts) -> list[str]:
    """The concept that each image shows: the one of all whose text has the largest cosine with it.

    Args:
      features: CLIP's features of the images. shape=(images, projection)
      directions: Those of the texts, `text_directions`.
      concepts: The concepts.
    """
    return [concepts.all[place] for place in np.argmax(features @ directions.T, axis=1)]


def measure_concepts(
    concepts: Concepts,
    entries: Mapping[str, Sequence[ImageEntry]],
    features: Mapping[str, np.ndarray],
    clip: quality.Clip,
) -> ConceptAccuracy:
    """Counts the images that show what they were asked for.

    Args:
      concepts: The concepts.
      entries: The images, whose prompts are known, by the names of their folders.
      features: CLIP's features of the same images. shapes=(images, projection)
      clip: The network.
    """
    directions, folders = text_directions(concepts, clip), {}
    for name, own in entries.items():
        shown = shown_concepts(features[name], directions, concepts)
        asked = [None if entry.prompt is None else concept_of(entry.prompt.text, concepts.all) for entry in own]
        pairs = list(zip(asked, shown, strict=True))
        folders[name] = FolderAccuracy(
            {each: _share([s == a for a, s in pairs if a == each]) for each in concepts.all},
            _share([s != a for a, s in pairs if a in concepts.forgotten]),
            _share([s == a for a, s in pairs if a in concepts.kept]),
            asked.count(None),
        )
    return ConceptAccuracy(clip.name, concepts.forgotten, concepts.kept, concepts.text, folders)


def _share(hits: Sequence[bool]) -> ShownShare | None:
    if not hits:
        return None
    found = intervals.share_estimate(sum(hits), len(hits))
    return ShownShare(len(hits), sum(hits), 100 * found.value, 100 * found.low, 100 * found.high)
