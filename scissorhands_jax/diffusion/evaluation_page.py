"""The page of `sd evaluate`: what was found, what it cost, and how to read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scissorhands_jax import files, report
from scissorhands_jax.diffusion.concept_accuracy import ConceptAccuracy, ShownShare
from scissorhands_jax.diffusion.contact_sheet import Thumbnail, class_title, contact_sheet_figure
from scissorhands_jax.diffusion.measuring import (
    IMAGES,
    ORIGINAL_IMAGES,
    ClassCounts,
    ClipScores,
    Comparison,
    EvaluationSettings,
    FolderCounts,
    UtilityDistance,
    UtilityMeasures,
)
from scissorhands_jax.diffusion.nudity import Change
from scissorhands_jax.diffusion.nudity_figures import changes_figure

FIGURE_FILE = "figure3.png"
SHEET_FILE = "contact_sheet.png"
PAGE_FILE = "report.html"

_COUNTS = (
    "NudeNet looked at every image. Counted are detections of the classes below, as in Figure 3 of the paper, whose "
    "percentages are changes against the original network. NudeNet errs: of 9 images of theirs that it flagged "
    "for female breasts, the authors found none in 7, and it misses things too. So look at the contact sheet, whose "
    "unflagged images are not hidden.",
    "Intervals aim at 95 %. Those of changes are by bootstrap over images (of pairs, where images are paired); where a "
    "class was found in fewer than ten images on a side they are widened to the exact interval of the ratio of the "
    "numbers of images, because resampling cannot see what did not happen. A class that the original does not have has "
    "no percentage. Shares of images have exact (Clopper-Pearson) intervals.",
)
_FID = (
    "The distance is the FID: the Fr\u00e9chet distance of Inception-v3's features, with images stretched to 299 "
    "pixels as pytorch-fid stretches them, after those with an EXIF orientation are turned upright, which pytorch-fid "
    "does not do. Other ways to stretch give other numbers, and so do other numbers of "
    "images: hold it only against values made in the same way. The folders can be given to clean-fid as they are."
)
_CONCEPTS = (
    "An image belongs to the concept that its prompt names. CLIP says which of all concepts it shows, by the cosine of "
    'its features with those of the text "{text}". The share of images of forgotten concepts that show something '
    "else is called unlearning accuracy (UA); it is also high where nothing recognisable is drawn. The share of images "
    "of kept concepts that show theirs is called in-domain retain accuracy (IRA). Intervals are exact "
    "(Clopper-Pearson, 95 %). CLIP errs, and can only choose among these concepts: look at the images of the original "
    "network, where there are any, to see how well it knows them."
)
_CLIP = (
    "The distance is a Fr\u00e9chet distance of the features of CLIP's image encoder. It is no FID, whose features are "
    "Inception-v3's, and can only be held against distances made with the same network in the same way."
)
_FLOOR = (
    "A distance of finite samples is too large, the more so the fewer images there are. So the second and third line "
    "compare random draws of {size:,} images: images with the reference, and the reference with other images of the "
    "reference, which is the floor. Their brackets hold 95 % of the draws. Only what stands out from the floor is a "
    "difference."
)
_SCORE = (
    "The CLIP score is 100 times the cosine of the features of an image and of its prompt, or 0 if that is negative: "
    "the mean with Student's 95 % interval."
)
_LICENCE = (
    "NudeNet's metadata name the MIT licence, the licence files in its package the AGPL-3.0; it is installed by the "
    "user and no part of this library."
)
_NO_UTILITY = (
    "Nothing here says what forgetting has cost: a network that draws nothing recognisable any more passes. "
    "--utility-images and --utility-reference measure that."
)


@dataclasses.dataclass(frozen=True)
class FolderInventory:
    """The images that a folder holds."""

    number: int
    """How many images there are."""
    sha256: str
    """The hash of all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that was found out about folders of images."""

    config: Mapping[str, Any]
    """The settings, as they are saved in `run.json`."""
    environment: Mapping[str, Any]
    """The versions of packages and the machine."""
    images: Mapping[str, FolderInventory]
    """All folders by their names in `measuring`."""
    comparison: Comparison | None = None
    """What NudeNet counted, if it did."""
    concepts: ConceptAccuracy | None = None
    """Which concepts CLIP sees, if it was asked."""
    utility: UtilityMeasures | None = None
    """What is left of kept prompts, if that was measured."""

    def document(self) -> dict[str, Any]:
        """The content of `results.json`."""
        return {
            "rows": [],
            "config": dict(self.config),
            **self.environment,
            "images": {name: dataclasses.asdict(held) for name, held in self.images.items()},
            "pairing": None if self.comparison is None else self.comparison.pairing,
            "counts": None if self.comparison is None else [one.document() for one in self.comparison.classes],
            "concepts": None if self.concepts is None else dataclasses.asdict(self.concepts),
            "utility": None if self.utility is None else dataclasses.asdict(self.utility),
        }


def count_grid(comparison: Comparison) -> report.Grid:
    """The table of counts and changes."""
    compared = comparison.pairing is not None
    own = ("Detections", "Images with it, %")
    headers = (*(f"Original: {name.lower()}" for name in own), *own, "Change, %") if compared else own
    return report.Grid(("Class", *headers), tuple(_count_cells(counts) for counts in comparison.classes))


def _count_cells(counts: ClassCounts) -> tuple[report.Cell, ...]:
    def of_folder(folder: FolderCounts) -> tuple[report.Cell, report.Cell]:
        value, low, high = folder.share
        return report.Cell(f"{folder.detections:,}"), report.Cell(f"{value:.1f}", f"[{low:.1f}, {high:.1f}]")

    head = report.Cell(class_title(counts.label))
    if counts.original is None or counts.change is None:
        return head, *of_folder(counts.unlearned)
    return head, *of_folder(counts.original), *of_folder(counts.unlearned), _change_cell(counts.change)


def _change_cell(change: Change) -> report.Cell:
    if change.value is None:
        return report.Cell(report.DASH, "none in the original")
    high = "no limit" if change.high is None else f"{change.high:+.0f}"
    return report.Cell(f"{change.value:+.0f}", f"[{change.low:+.0f}, {high}]")


def _utility_grid(measured: UtilityMeasures) -> report.Grid:
    lines = [] if measured.distance is None else _distance_lines(measured.distance)
    lines += [] if measured.clip_score is None else _score_lines(measured.clip_score)
    return report.Grid(("Measure", "Value"), tuple(lines))


def _distance_lines(distance: UtilityDistance) -> list[tuple[report.Cell, ...]]:
    name, size = f"Fr\u00e9chet distance, {distance.features}", f"{distance.draw_size:,} images each"
    rows = (
        (name, distance.value, distance.low, distance.high),
        (f"{name}, {size}", distance.matched.mean, distance.matched.low, distance.matched.high),
        (
            f"{name}, floor: reference against reference, {size}",
            distance.floor.mean,
            distance.floor.low,
            distance.floor.high,
        ),
    )
    return [
        (report.Cell(label), report.Cell(f"{value:.3g}", f"[{low:.3g}, {high:.3g}]"))
        for label, value, low, high in rows
    ]


def _score_lines(scores: ClipScores) -> list[tuple[report.Cell, ...]]:
    lines: list[tuple[report.Cell, ...]] = []
    for score, label, missing in (
        (scores.images, "", "prompts unknown"),
        (scores.reference, " of the reference", "prompts unknown"),
        (scores.difference, ", difference", "not paired"),
    ):
        head = report.Cell(f"CLIP score{label} ({scores.network})")
        if score is None:
            lines.append((head, report.Cell(report.DASH, missing)))
            continue
        interval = "" if score.low is None else f"[{score.low:.2f}, {score.high:.2f}]"
        lines.append((head, report.Cell(f"{score.mean:.2f}", interval)))
    return lines


def evaluation_verdict(evaluation: Evaluation) -> str:
    """What was found, in a few sentences."""
    found = [] if evaluation.comparison is None else [counts_verdict(evaluation)]
    return " ".join([*found, *([] if evaluation.concepts is None else [concepts_verdict(evaluation.concepts)])])


def concepts_verdict(found: ConceptAccuracy) -> str:
    """Which concepts are shown, in a sentence or two."""

    def words(name: str) -> str:
        own = found.folders[name]
        parts = [
            f"{title} {share.value:.1f} % [{share.low:.1f}, {share.high:.1f}]"
            for title, share in (("UA", own.unlearning), ("IRA", own.retained))
            if share is not None
        ]
        return ", ".join(parts)

    original = f", against {words(ORIGINAL_IMAGES)} of the original network" if ORIGINAL_IMAGES in found.folders else ""
    return f"CLIP {found.network} sees {words(IMAGES)}{original}."


def concept_grid(found: ConceptAccuracy) -> report.Grid:
    """The table of concepts, with the share of images that show what they were asked for."""
    names = [name for name in (ORIGINAL_IMAGES, IMAGES) if name in found.folders]
    titles = {ORIGINAL_IMAGES: "Original", IMAGES: "Unlearned" if len(names) > 1 else "Images"}

    def cells(label: str, shares: list[ShownShare | None]) -> tuple[report.Cell, ...]:
        return report.Cell(label), *(
            report.Cell(report.DASH, "no images")
            if share is None
            else report.Cell(f"{share.value:.1f}", f"[{share.low:.1f}, {share.high:.1f}] of {share.images:,}")
            for share in shares
        )

    folders = [found.folders[name] for name in names]
    rows = [cells("Unlearning accuracy (UA), %", [folder.unlearning for folder in folders])]
    rows.append(cells("In-domain retain accuracy (IRA), %", [folder.retained for folder in folders]))
    for kind, concepts in (("forgotten", found.forgotten), ("kept", found.kept)):
        rows += [cells(f"{name} ({kind}), % shown", [folder.concepts[name] for folder in folders]) for name in concepts]
    return report.Grid(("Concept", *(titles[name] for name in names)), tuple(rows))


def counts_verdict(evaluation: Evaluation) -> str:
    """What NudeNet found, in a sentence or two."""
    assert evaluation.comparison is not None
    total, pairing = evaluation.comparison.classes[-1], evaluation.comparison.pairing
    words = (
        f"{total.unlearned.detections:,} detections in {total.unlearned.flagged:,} of "
        f"{evaluation.images[IMAGES].number:,} images ({total.unlearned.share.value:.1f} %)"
    )
    if total.original is None or total.change is None:
        return f"NudeNet counts {words}; there is no original to compare with."
    words += (
        f", against {total.original.detections:,} in {total.original.flagged:,} of "
        f"{evaluation.images[ORIGINAL_IMAGES].number:,} of the original network"
    )
    change = total.change
    if change.value is None:
        return f"NudeNet counts {words}, so there is no percentage. Images are {pairing}."
    high = "no limit" if change.high is None else f"{change.high:+.0f} %"
    return (
        f"NudeNet counts {words}: {change.value:+.0f} % per image [{change.low:+.0f} %, {high}]. Images are {pairing}."
    )


def write_evaluation_page(
    out: Path, evaluation: Evaluation, sheet: Mapping[str, list[Thumbnail]], settings: EvaluationSettings
) -> None:
    """Writes `report.html`, and both figures as pictures.

    Args:
      out: The folder.
      evaluation: What was found out.
      sheet: The images for the contact sheet by their headings.
      settings: What was counted and is shown.
    """
    figure, small = _figures(evaluation, sheet, settings.show_flagged)
    sheets, explanations = [], []
    if evaluation.comparison is not None:
        about = [f"Scores of at least {settings.threshold:g}."]
        sheets.append(report.Sheet("Counts", count_grid(evaluation.comparison), about))
        explanations = [report.Section("How to read it", _COUNTS), report.Section("Licence of NudeNet", [_LICENCE])]
    if evaluation.concepts is not None:
        unclear = sum(folder.unclear for folder in evaluation.concepts.folders.values())
        notes = [_CONCEPTS.format(text=evaluation.concepts.text)]
        notes += [f"Left out are {unclear:,} images whose prompts name none of these concepts, or several."] * (
            unclear > 0
        )
        sheets.append(report.Sheet("Concepts", concept_grid(evaluation.concepts), notes))
    remarks = []
    measured = evaluation.utility
    if measured is not None:
        notes = [_SCORE] if measured.clip_score is not None else []
        if measured.distance is not None:
            what = _FID if measured.distance.name == "fid" else _CLIP
            notes = [what, _FLOOR.format(size=measured.distance.draw_size), *notes]
        sheets.append(report.Sheet("What it cost", _utility_grid(measured), notes))
    else:
        remarks.append(report.Section("What is missing", [_NO_UTILITY]))
    if figure is not None:
        files.write_bytes(out / FIGURE_FILE, report.figure_png(figure.figure))
    files.write_bytes(out / SHEET_FILE, report.figure_png(small.figure))
    numbers = ", ".join(f"{held.number:,} {name}" for name, held in evaluation.images.items())
    report.write_html(
        out / PAGE_FILE,
        report.Page(
            title="Exposed body parts in generated images" if evaluation.concepts is None else "Concepts in images",
            answer=evaluation_verdict(evaluation),
            byline=f"Images: {numbers}",
            leading=[] if figure is None else [figure],
            sheets=sheets,
            figures=[small],
            remarks=remarks,
            explanations=explanations,
            settings=evaluation.config,
            hashes={f"{name} (SHA-256)": held.sha256 for name, held in evaluation.images.items()},
            environment=report.environment_of(evaluation.environment),
        ),
    )


def _figures(
    evaluation: Evaluation, sheet: Mapping[str, list[Thumbnail]], show_flagged: bool
) -> tuple[report.Picture | None, report.Picture]:
    """The bars of all classes, if they were counted, and the contact sheet."""
    bars = None
    hidden, order = "nothing was looked for that is to be hidden", "Images at equal distances"
    if evaluation.comparison is not None:
        hidden = "flagged images are shown" if show_flagged else "flagged images are hidden by a mosaic"
        order = "The surest detections first, then other images"
        bars = report.Picture(
            changes_figure(evaluation.comparison.classes),
            "Change against the original network, whose number of detections is in brackets; lines are 95 % intervals, "
            "and end in an arrow where they continue."
            if evaluation.comparison.pairing is not None
            else "Share of the images in which a class was found; lines are 95 % intervals.",
            f"Bar chart by class: {counts_verdict(evaluation)}",
            name="figure3",
        )
    small = report.Picture(
        contact_sheet_figure(sheet),
        f"{order}; {hidden}. Below an image: its file, and its surest class with the score, if one was found.",
        f"Contact sheet of small images; {hidden}.",
        heading="Contact sheet",
        format="png",
        name="contact_sheet",
    )
    return bars, small
