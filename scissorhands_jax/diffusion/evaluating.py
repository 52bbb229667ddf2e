"""Whether the concept is gone, and at what cost: the command `scissorhands sd evaluate`."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scissorhands_jax import files, hashing, report
from scissorhands_jax.diffusion import (
    concept_accuracy,
    contact_sheet,
    evaluation_page,
    generating,
    image_folders,
    measuring,
    model_folder,
    nudity,
    quality,
)
from scissorhands_jax.diffusion.concept_accuracy import ConceptAccuracy, Concepts
from scissorhands_jax.diffusion.evaluation_page import Evaluation, FolderInventory
from scissorhands_jax.diffusion.generating import DEFAULT_GENERATION, GenerationSettings, Prompt
from scissorhands_jax.diffusion.image_folders import ImageEntry
from scissorhands_jax.diffusion.measuring import (
    IMAGES,
    ORIGINAL_IMAGES,
    UTILITY_IMAGES,
    UTILITY_REFERENCE,
    EvaluationSettings,
    Utility,
)
from scissorhands_jax.diffusion.nudity import Detection, Detector
from scissorhands_jax.diffusion.tokenizer import Cleaning, Tokenizer
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import progress_bar, status
from scissorhands_jax.terminal import Console, Progress
from scissorhands_jax.training.descriptions import describe_value
from scissorhands_jax.training.identity import identify
from scissorhands_jax.version import version_of

DETECTIONS_FILE = "detections.json"
TABLE_FILE = "detections.csv"
_PACKAGES = ("nudenet", "onnxruntime", "opencv-python-headless", "pillow", "scipy")


@dataclasses.dataclass(frozen=True)
class ImageGeneration:
    """How images are made that do not exist yet."""

    prompts: Sequence[Prompt]
    """One for each image."""
    model: Path
    """The model's folder, as `sd import` writes it."""
    unet: Path | None = None
    """Another folder whose `unet` is taken, the unlearned one."""
    tokenizer: Path | None = None
    """Where the tokenizer is, see `model_folder.load_pipeline`."""
    cleaning: Cleaning = "nfc"
    """How prompts are cleaned, see `Tokenizer`."""
    settings: GenerationSettings = DEFAULT_GENERATION
    """The settings of the sampler."""
    batch_size: int = 1
    """The number of images that are made at a time."""

    def load_tokenizer(self) -> Tokenizer:
        """What turns prompts into ids."""
        return model_folder.load_tokenizer(self.model, self.tokenizer, self.cleaning)

    def description(self) -> dict[str, Any]:
        """The generation as it is saved with results."""
        return {
            "prompts": len(self.prompts),
            "prompts_sha256": hashing.sha256(repr([tuple(prompt) for prompt in self.prompts]).encode()),
            "model": str(self.model),
            "unet": None if self.unet is None else str(self.unet),
            "cleaning": self.cleaning,
            "tokenizer": describe_value(self.load_tokenizer(), "the tokenizer"),
            **self.settings.description(),
        }


@dataclasses.dataclass(frozen=True)
class ConceptCheck:
    """The concepts that images are asked for, and who says what they show."""

    concepts: Concepts
    """Forgotten and kept concepts."""
    clip: quality.Clip
    """The network."""

    def measure(self, entries: Mapping[str, Sequence[ImageEntry]], progress: Progress) -> ConceptAccuracy:
        """What the images of all folders show.

        Args:
          entries: The images by the names of their folders.
          progress: Shows a bar for each folder.

        Raises:
          InputError: An image cannot be read.
        """
        features = {
            name: quality.image_features(own, self.clip, progress=progress, description=f"concepts of {name}")
            for name, own in entries.items()
        }
        return concept_accuracy.measure_concepts(self.concepts, entries, features, self.clip)


def evaluate_images(
    images: Path,
    out: Path,
    *,
    original: Path | None = None,
    generation: ImageGeneration | None = None,
    utility: Utility | None = None,
    concepts: ConceptCheck | None = None,
    count_nudity: bool | None = None,
    settings: EvaluationSettings | None = None,
    detect: Detector | None = None,
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Says whether images show what was to be forgotten, measures what is left of others, and writes a report of both.

    NudeNet counts exposed body parts, or CLIP says which concepts are shown, or both. The files `results.json`,
    `report.html`, `contact_sheet.png` and, of the counts, `figure3.png`, `detections.csv` with every detection, and
    `detections.json`, with which a stopped run continues, are written into `out`. Nothing is written into folders of
    images, except where `generation` makes them.

    Args:
      images: The folder with images of the unlearned network; with `generation` they are made there.
      out: The folder of the report.
      original: The folder with images to compare with. With `generation` and a `unet` of its own, they are made there
        by the model's own, unless the folder has images from elsewhere.
      generation: How images are made first. Images that exist are not made again.
      utility: Images of kept prompts, if the cost is to be measured.
      concepts: Forgotten and kept concepts, and the CLIP that says which of them images show.
      count_nudity: Whether NudeNet counts; None is where no concepts are given.
      settings: What is counted and shown.
      detect: The detector; None loads NudeNet's. A report is continued with the same detector only.
      overwrite: Whether a report in `out` is replaced.
      resume: Whether a report in `out` is continued.
      console: Shows progress. By default that is standard error.

    Returns:
      What was found out, as in `results.json`.

    Raises:
      InputError: Something cannot be used. Everything is checked before anything is computed, except for images with an
        intact header and damaged pixels, and except for whether images that are made here can be paired.
    """
    settings = settings or EvaluationSettings()
    console = console or Console(stderr=True)
    counted = {IMAGES: images} if original is None else {IMAGES: images, ORIGINAL_IMAGES: original}
    kept = _utility_folders(utility)
    read_from = [] if generation is None else [generation.model, generation.unet, generation.tokenizer]
    places: dict[str, Any] = {
        "inputs": [*counted.values(), *kept.values(), *read_from],
        "overwrite": overwrite,
        "resume": resume,
    }
    files.check_inputs(out, **places)
    made = _unets_to_make(images, original, generation)
    networks_sha256 = _check_networks(generation, made)
    _check_made(generation, {name: counted[name] for name in made}, networks_sha256)
    count_nudity = concepts is None if count_nudity is None else count_nudity
    if not count_nudity and concepts is None:
        raise InputError("nothing is to be measured; name concepts with --forgotten-concepts, or leave --no-nudity out")
    detector = _describe_detector(detect) if count_nudity else None
    detect = (detect or nudity.load_detector()) if count_nudity else None
    with status(console, "reading the images"):
        kept_entries = {name: image_folders.read_image_folder(folder) for name, folder in kept.items()}
        read = {name: image_folders.read_image_folder(folder) for name, folder in counted.items() if name not in made}
    if UTILITY_REFERENCE in kept_entries:
        quality.check_sizes(len(kept_entries[UTILITY_IMAGES]), len(kept_entries[UTILITY_REFERENCE]))
    if original is not None and not made:
        image_folders.pair_images(read[IMAGES], read[ORIGINAL_IMAGES], settings.pairing)
    if concepts is not None:
        asked = {
            name: [ImageEntry(counted[name], "", prompt) for prompt in generation.prompts]
            for name in made
            if generation is not None
        }
        concept_accuracy.check_prompts(read | asked, concepts.concepts)
    config = _config(counted | kept, settings, generation, utility, concepts, detector)
    opened = runs.open_folder(out, identify(config), **places)
    with opened as fresh, runs.cleared_if_refused(out, fresh, DETECTIONS_FILE):
        for name, unet in made.items():
            assert generation is not None
            _generate(generation, unet, counted[name], networks_sha256[name], console)
        entries = {name: read.get(name) or image_folders.read_image_folder(folder) for name, folder in counted.items()}
        with progress_bar(console) as progress:
            found: dict[str, list[list[Detection]]] = {name: [[] for _ in own] for name, own in entries.items()}
            if detect is not None:
                found = {
                    name: nudity.detect_all(
                        own, detect, out / DETECTIONS_FILE, progress=progress, description=f"looking at {name}"
                    )
                    for name, own in entries.items()
                }
            shown = None if concepts is None else concepts.measure(entries, progress)
            measured = None if utility is None else measuring.measure_utility(utility, kept_entries, progress)
        evaluation = Evaluation(
            config=config,
            environment=_environment(),
            images={name: _inventory(own) for name, own in (entries | kept_entries).items()},
            comparison=measuring.compare_counts(entries, found, settings) if detect is not None else None,
            concepts=shown,
            utility=measured,
        )
        written = report.by_first_maker(out / runs.RESULTS_FILE, evaluation.document())
        environment = {name: written[name] for name in evaluation.environment}
        evaluation = dataclasses.replace(evaluation, environment=environment)
        if detect is not None:
            _write_table(out / TABLE_FILE, entries, found)
        evaluation_page.write_evaluation_page(
            out, evaluation, contact_sheet.contact_sheet(entries, found, settings), settings
        )
        report.write_results(out / runs.RESULTS_FILE, evaluation.document())
    return evaluation


def _config(
    folders: Mapping[str, Path],
    settings: EvaluationSettings,
    generation: ImageGeneration | None,
    utility: Utility | None,
    concepts: ConceptCheck | None,
    detector: Any,
) -> dict[str, Any]:
    """What is saved in `run.json`, and must be the same when a report is continued."""
    return {
        **{name: str(folder) for name, folder in folders.items()},
        **dataclasses.asdict(settings),
        "detector": detector,
        "clip": None if utility is None or utility.clip is None else utility.clip.description(),
        "inception_sha256": None if utility is None or utility.inception is None else utility.inception.sha256,
        "concepts": None
        if concepts is None
        else {**dataclasses.asdict(concepts.concepts), "clip": concepts.clip.description()},
        "generation": None if generation is None else generation.description(),
    }


def _utility_folders(utility: Utility | None) -> dict[str, Path]:
    if utility is None:
        return {}
    if utility.clip is None and utility.inception is None:
        raise InputError("--utility-images needs a network to be measured with: --inception for the FID, or --clip")
    if utility.clip is None and utility.reference is None:
        raise InputError("the FID needs images to be held against; name their folder with --utility-reference")
    return utility.folders()


def _unets_to_make(images: Path, original: Path | None, generation: ImageGeneration | None) -> dict[str, Path | None]:
    """Which folders of images are to be made, and with whose UNet (None is the model's own)."""
    if generation is None:
        return {}
    made: dict[str, Path | None] = {IMAGES: generation.unet}
    if original is not None and generation.unet is not None:
        foreign = original.is_dir() and any(original.iterdir()) and not (original / runs.RUN_FILE).exists()
        if not foreign:
            made[ORIGINAL_IMAGES] = None
    if ORIGINAL_IMAGES in made and original is not None and files.resolved(original) == files.resolved(images):
        raise InputError(f"--images and --original are both {images}; name two folders")
    return made


def _check_networks(generation: ImageGeneration | None, made: Mapping[str, Path | None]) -> dict[str, str]:
    """Refuses what images cannot be made with; returns the hashes of the networks that make them."""
    if generation is None:
        return {}
    generation.load_tokenizer()  # refuses one that does not fit
    config = model_folder.read_model_config(generation.model, unet=generation.unet)
    generating.check_generation(generation.settings, config)
    return {name: model_folder.model_sha256(generation.model, unet=unet) for name, unet in made.items()}


def _check_made(
    generation: ImageGeneration | None, folders: Mapping[str, Path], networks_sha256: Mapping[str, str]
) -> None:
    """Refuses folders that hold images which were made otherwise, before images are made in any of them."""
    if generation is not None:
        tokenizer = generation.load_tokenizer()
        for name, folder in folders.items():
            described = {"networks_sha256": networks_sha256[name]}
            identity = generating.image_identity(generation.prompts, tokenizer, generation.settings, described)
            runs.check_folder(folder, identity, advice=f"name another folder with --{name}")


def _describe_detector(detect: Detector | None) -> Any:
    """What detections are told apart by, as JSON: a detector of one's own, or the version of NudeNet."""
    if detect is not None:
        return describe_value(detect, "the detector")
    version = version_of("nudenet")
    return "nudenet" if version is None else f"nudenet {version}"


def _generate(
    generation: ImageGeneration, unet: Path | None, folder: Path, networks_sha256: str, console: Console
) -> None:
    with status(console, f"reading the networks for {folder}"):
        pipeline = model_folder.load_pipeline(
            generation.model, unet=unet, tokenizer=generation.tokenizer, cleaning=generation.cleaning
        )
    generating.generate_images(
        pipeline,
        generation.prompts,
        folder,
        settings=generation.settings,
        batch_size=generation.batch_size,
        description={"networks_sha256": networks_sha256},
        resume=True,
        console=console,
    )


def _inventory(entries: Sequence[ImageEntry]) -> FolderInventory:
    return FolderInventory(len(entries), hashing.sha256("".join(entry.sha256 for entry in entries).encode()))


def _environment() -> dict[str, dict[str, Any]]:
    """Versions and machine, with the packages that the numbers depend on."""
    environment = report.environment()
    environment["versions"] |= {package: version_of(package) for package in _PACKAGES}
    return environment


def _write_table(
    path: Path, entries: Mapping[str, Sequence[ImageEntry]], found: Mapping[str, Sequence[Sequence[Detection]]]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["folder", "file", "class", "score", "left", "top", "width", "height"])
    for name, own in entries.items():
        for entry, detections in zip(own, found[name], strict=True):
            for one in detections:
                writer.writerow([name, entry.path.name, one.label, f"{one.score:.4f}", *one.box])
    files.write_text(path, text.getvalue())
