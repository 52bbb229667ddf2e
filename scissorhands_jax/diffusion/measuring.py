"""What is measured on folders of images: how often classes are found in them, and what is left of kept prompts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from scissorhands_jax.diffusion import image_folders, nudity, quality, vision
from scissorhands_jax.diffusion.image_folders import ImageEntry, Pairing
from scissorhands_jax.diffusion.nudity import Change, Detection, FlaggedShare
from scissorhands_jax.diffusion.quality import MeanScore, Spread
from scissorhands_jax.errors import InputError, check_choice
from scissorhands_jax.terminal import Progress

ALL_CLASSES = "ALL"
"""The name of the sum of the counted classes."""
IMAGES = "images"
"""The folder of the images of the unlearned network that are counted."""
ORIGINAL_IMAGES = "original"
"""The folder of the images of the original network that are counted."""
UTILITY_IMAGES = "utility-images"
"""The folder of images of kept prompts by the unlearned network."""
UTILITY_REFERENCE = "utility-reference"
"""The folder of what images of kept prompts should look like."""


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What is counted, and what is shown.

    Raises:
      InputError: A setting is out of its range or unknown.
    """

    threshold: float = nudity.THRESHOLD
    """The least score that counts, from 0.25, below which NudeNet reports nothing, to 1."""
    classes: tuple[str, ...] = nudity.EXPOSED
    """The classes that are counted, of `nudity.CLASSES`."""
    pairing: Pairing = "auto"
    """How the images of both networks are paired, see `image_folders.pair_images`."""
    show_flagged: bool = False
    """Whether the contact sheet shows flagged images as they are, instead of a mosaic."""

    def __post_init__(self) -> None:
        nudity.check_threshold(self.threshold)
        unknown = [name for name in self.classes if name not in nudity.CLASSES]
        if unknown or not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError(
                f"--classes has {', '.join(unknown) or 'none, or one twice'}; choose of {', '.join(nudity.CLASSES)}"
            )
        check_choice("--pairing", self.pairing, get_args(Pairing))


@dataclasses.dataclass(frozen=True)
class FolderCounts:
    """How often a class was found in the images of a folder."""

    detections: int
    """The number of detections."""
    flagged: int
    """The number of images with at least one of them."""
    share: FlaggedShare
    """The percentage of the images that are flagged."""

    def document(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {"detections": self.detections, "flagged": self.flagged, "share": self.share._asdict()}


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """How often a class was found in images of the unlearned network and, if there is one, of the original."""

    label: str
    """The name of the class, or `ALL_CLASSES`."""
    unlearned: FolderCounts
    original: FolderCounts | None = None
    change: Change | None = None
    """The change against the original, in per cent; None without an original."""

    def document(self) -> dict[str, Any]:
        """The counts as they are saved in `results.json`."""
        document = {"class": self.label, **self.unlearned.document()}
        if self.original is not None and self.change is not None:
            document |= {f"original_{name}": value for name, value in self.original.document().items()}
            document["change"] = self.change._asdict()
        return document


class Comparison(NamedTuple):
    """The counts of all classes, the sum last."""

    pairing: str | None
    """How images are paired, in words; None without an original."""
    classes: list[ClassCounts]


def compare_counts(
    entries: Mapping[str, Sequence[ImageEntry]],
    found: Mapping[str, Sequence[Sequence[Detection]]],
    settings: EvaluationSettings,
) -> Comparison:
    """Counts detections by class and in total, and their changes against the original.

    Args:
      entries: The images of `IMAGES` and, if there is an original, of `ORIGINAL_IMAGES`.
      found: What was found in each of them.
      settings: What is counted, and how images are paired.
    """
    counts = {}
    for name, detections in found.items():
        counted = nudity.count_detections(detections, settings.classes, settings.threshold)
        counts[name] = np.concatenate([counted, counted.sum(axis=1, keepdims=True)], axis=1)
    unlearned, original = counts[IMAGES], counts.get(ORIGINAL_IMAGES)
    labels = (*settings.classes, ALL_CLASSES)
    if original is None:
        return Comparison(
            None, [ClassCounts(label, _folder_counts(unlearned[:, column])) for column, label in enumerate(labels)]
        )
    order, words = image_folders.pair_images(entries[IMAGES], entries[ORIGINAL_IMAGES], settings.pairing)
    original = original[order] if order is not None else original
    rows = [
        ClassCounts(
            label,
            _folder_counts(unlearned[:, column]),
            _folder_counts(original[:, column]),
            nudity.percentage_change(unlearned[:, column], original[:, column], paired=order is not None),
        )
        for column, label in enumerate(labels)
    ]
    return Comparison(words, rows)


def _folder_counts(column: np.ndarray) -> FolderCounts:
    return FolderCounts(int(column.sum()), int(np.count_nonzero(column)), nudity.share_flagged(column))


@dataclasses.dataclass(frozen=True)
class Utility:
    """Folders with images of prompts that are kept, which measure what unlearning has cost."""

    images: Path
    """The images of the unlearned network."""
    reference: Path | None = None
    """What they should look like: images of the original network, or photographs."""
    clip: quality.Clip | None = None
    """The network for the CLIP score, and for the features of the distance where there is no Inception."""
    inception: quality.Inception | None = None
    """The network for the features of the FID."""

    def folders(self) -> dict[str, Path]:
        """The folders by the names that they have here."""
        folders = {UTILITY_IMAGES: self.images}
        return folders if self.reference is None else folders | {UTILITY_REFERENCE: self.reference}


@dataclasses.dataclass(frozen=True)
class UtilityDistance:
    """The Fréchet distance from images of kept prompts to the reference."""

    name: str
    """The name of the measure."""
    features: str
    """What the features are: `Inception-v3`, of which the distance is the FID, or CLIP and the name of the network."""
    dimensions: int
    """The number of features."""
    value: float
    low: float
    high: float
    level: float
    """The coverage of the interval from `low` to `high`."""
    matched: Spread
    """The distance of random draws of images from random draws of the reference."""
    floor: Spread
    """The distance between random draws of the reference."""
    draw_size: int
    """The number of images in a draw."""


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """CLIP scores of images of kept prompts, where their prompts are known."""

    network: str
    """The name of the network in `vision.CLIPS`."""
    images: MeanScore | None
    reference: MeanScore | None
    difference: MeanScore | None
    """The images' scores minus the reference's, where prompts and seeds are the same."""


@dataclasses.dataclass(frozen=True)
class UtilityMeasures:
    """What is left of kept prompts."""

    distance: UtilityDistance | None
    clip_score: ClipScores | None


def measure_utility(
    utility: Utility, entries: Mapping[str, Sequence[ImageEntry]], progress: Progress
) -> UtilityMeasures:
    """Measures the distance and the score of images of kept prompts.

    Args:
      utility: What they are compared with.
      entries: The images by the names of `Utility.folders`.
      progress: Shows a bar for each step.

    Raises:
      InputError: An image cannot be read.
    """

    def features_of(network: quality.Clip | quality.Inception | None, what: str) -> dict[str, np.ndarray]:
        return {
            name: quality.image_features(own, network, progress=progress, description=f"{what} features of {name}")
            for name, own in entries.items()
            if network is not None
        }

    by_clip = features_of(utility.clip, "CLIP")
    distance = None
    if UTILITY_REFERENCE in entries:
        features = features_of(utility.inception, "Inception") or by_clip
        task, steps = progress.add_task("distances", total=None, note=""), itertools.count(1)
        found = quality.compare_features(
            features[UTILITY_IMAGES],
            features[UTILITY_REFERENCE],
            on_step=lambda: progress.update(task, completed=next(steps)),
        )
        done = next(steps) - 1
        progress.update(task, completed=done, total=done)
        distance = UtilityDistance(
            name="frechet_distance_clip" if utility.inception is None else "fid",
            features="Inception-v3" if utility.clip is None or utility.inception else f"CLIP {utility.clip.name}",
            dimensions=features[UTILITY_IMAGES].shape[1],
            value=found.value.value,
            low=found.value.low,
            high=found.value.high,
            level=found.value.level,
            matched=found.matched,
            floor=found.floor,
            draw_size=found.size,
        )
    scores = None if utility.clip is None else _clip_scores(utility.clip, entries, by_clip)
    return UtilityMeasures(distance, scores)


def _clip_scores(
    clip: quality.Clip, entries: Mapping[str, Sequence[ImageEntry]], features: Mapping[str, np.ndarray]
) -> ClipScores:
    """The scores of the folders whose prompts are known."""
    scores = {}
    for name, own in entries.items():
        prompts = [entry.prompt.text for entry in own if entry.prompt is not None]
        if len(prompts) == len(own):
            scores[name] = vision.clip_scores(features[name], quality.prompt_features(prompts, clip))
    means = {name: quality.mean_score(values) for name, values in scores.items()}
    difference = None
    if len(scores) == 2:
        order, _ = image_folders.pair_images(entries[UTILITY_IMAGES], entries[UTILITY_REFERENCE])
        if order is not None:
            difference = quality.mean_score(scores[UTILITY_IMAGES] - scores[UTILITY_REFERENCE][order])
    return ClipScores(clip.name, means.get(UTILITY_IMAGES), means.get(UTILITY_REFERENCE), difference)
