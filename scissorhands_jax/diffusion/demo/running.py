"""The command `scissorhands demo diffusion`: trains, forgets, judges and shows what came out."""

from __future__ import annotations

import json
from pathlib import Path

from scissorhands_jax import files, report
from scissorhands_jax.diffusion.demo.forgetting import forget_digit
from scissorhands_jax.diffusion.demo.judging import measure_real_digits
from scissorhands_jax.diffusion.demo.page import DigitsResult, drawing_pictures, print_numbers, write_digits_page
from scissorhands_jax.diffusion.demo.scene import make_scene
from scissorhands_jax.diffusion.demo.settings import (
    DEMONSTRATED,
    PUBLISHED,
    DigitsSettings,
)
from scissorhands_jax.diffusion.demo.training import train_digits
from scissorhands_jax.jobs import runs
from scissorhands_jax.jobs.progress import phases
from scissorhands_jax.report import ORIGINAL
from scissorhands_jax.terminal import Console

_PAGE_FILE = "report.html"


def run_digits_demo(
    out: Path,
    settings: DigitsSettings,
    *,
    published: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> DigitsResult:
    """Trains, forgets and judges, and writes `results.json`, `report.html` and pictures into the folder `out`.

    Args:
      out: The folder.
      settings: The digit, and how it is forgotten.
      published: Whether the variant with the published code's loss is one of the controls.
      overwrite: Whether an earlier demonstration is replaced.
      console: Shows progress. By default that is standard error.

    Returns:
      What came out, as in `results.json`.

    Raises:
      InputError: The folder is taken.
    """
    return runs.demonstrate(
        out,
        "demo diffusion",
        settings,
        lambda console: _demonstrated(out, settings, published, console),
        print_numbers,
        f"open {out / _PAGE_FILE}; all numbers are in {out / runs.RESULTS_FILE}",
        overwrite=overwrite,
        console=console,
    )


def _demonstrated(out: Path, settings: DigitsSettings, published: bool, console: Console) -> DigitsResult:
    with phases(console) as (start_phase, seconds):
        start_phase("data and judge", steps=False)
        scene = make_scene(settings)
        original = train_digits(settings, scene, None, start_phase(f"{ORIGINAL}: training"))
        rows, drawings = [], {}
        names = (*DEMONSTRATED, PUBLISHED) if published else DEMONSTRATED
        for row, images in forget_digit(settings, scene, original, start_phase, names):
            rows.append(row)
            drawings[row.network] = images
        start_phase("real digits: judging", steps=False)
        real = measure_real_digits(settings, scene)
        start_phase("pictures and page", steps=False)
        pictures = drawing_pictures(settings, drawings)
        for picture in pictures:
            files.write_bytes(out / f"{picture.name}.png", report.figure_png(picture.figure))
    result = DigitsResult(
        settings=settings,
        real=real,
        rows=rows,
        seconds={**seconds, "total": sum(seconds.values())},
        environment=report.environment(),
    )
    text = json.dumps(result.document(), indent=2, allow_nan=False) + "\n"
    files.write_text(out / runs.RESULTS_FILE, text)
    write_digits_page(out / _PAGE_FILE, result, pictures)
    return result
