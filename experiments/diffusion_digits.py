"""Has a diffusion network forget each of the ten digits in turn, with all controls.

    python -m experiments.diffusion_digits --out experiments/results/diffusion_digits.json

This trains the network of `scissorhands demo diffusion` once, for 50 epochs instead of 40, and has it forget each digit
in every way. Each result is written as soon as it is computed, and the same command continues where it was stopped (the
original is then trained again, to the same weights). At the end two digits are forgotten with other shares and layers
re-initialised, and a picture is drawn next to the results.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scissorhands_jax import array_files, files, reading, report
from scissorhands_jax.diffusion.demo import judging, running
from scissorhands_jax.diffusion.demo.drawing import draw_digits
from scissorhands_jax.diffusion.demo.drawings_figure import drawings_figure
from scissorhands_jax.diffusion.demo.forgetting import StartPhase, forget_digit
from scissorhands_jax.diffusion.demo.scene import make_scene, requested_digits
from scissorhands_jax.diffusion.demo.settings import (
    NUM_DIGITS,
    ORIGINAL,
    PUBLISHED,
    RETRAINED,
    UNLEARNED,
    VARIANTS,
    DigitsSettings,
    DigitsTraining,
)
from scissorhands_jax.diffusion.demo.training import train_digits, unlearn_digit
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import intervals
from scissorhands_jax.terminal import Console, complain

TRAINING = DigitsTraining(epochs=50)  # A little longer than the demonstration has time for.
SHOWN = 10  # Drawings of each digit in the picture.
SWEEP: dict[str, dict[str, Any]] = {
    "attention, 1 %": {"fraction": 0.01},
    "all layers, 0.1 %": {"fraction": 0.001, "trim": None},
    "all layers, 1 %": {"fraction": 0.01, "trim": None},
}
SWEPT = (0, 2)
NUMBERS = {
    "forget": lambda row: row["forget"]["percent"],
    "kept": lambda row: row["kept"]["percent"],
    "unasked": lambda row: row["unasked"]["percent"],
    "frechet": lambda row: row["frechet"]["value"],
    "error_forget": lambda row: row["error_forget"]["value"],
    "error_kept": lambda row: row["error_kept"]["value"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.diffusion_digits", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="results as JSON; its picture is written next to it"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/diffusion_digits"), metavar="DIR", help="for drawings")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default 0)")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        document = run(options.out, options.work, DigitsSettings(seed=options.seed, training=TRAINING), console=console)
    except InputError as error:
        complain(console, str(error))
        return 2
    sys.stdout.write(table(document["rows"]))
    return 0


def run(
    out: Path,
    work: Path,
    settings: DigitsSettings,
    *,
    forgotten: Sequence[int] = range(NUM_DIGITS),
    swept: Sequence[int] = SWEPT,
    console: Console,
) -> dict[str, Any]:
    """Computes what is missing in the file, and returns all that is in it.

    Args:
      out: The file.
      work: The folder for the drawings that the picture is made of.
      settings: The settings of everything except the digit.
      forgotten: The digits to forget.
      swept: The digits that are also forgotten with the settings of `SWEEP`.
      console: Shows progress.

    Raises:
      InputError: The file holds an experiment with other settings.
    """
    described = dataclasses.asdict(settings)
    del described["digit"]
    described = json.loads(json.dumps(described))
    document: dict[str, Any] = {"settings": described, "real": {}, "rows": []}
    if out.exists():
        document = reading.read_json(out)
        if document["settings"] != described:
            raise InputError(f"{out} holds results of other settings; name another file")
    done = {(row["digit"], row["network"]) for row in document["rows"]}

    def keep(row: dict[str, Any], images: np.ndarray) -> None:
        requested = requested_digits(dataclasses.replace(settings, digit=row["digit"]))
        work.mkdir(parents=True, exist_ok=True)
        np.save(work / f"{row['digit']}-{row['network']}.npy", images[requested == row["digit"]][:SHOWN, ..., 0])
        document["rows"].append(row)
        document["summary"] = summary(document["rows"])
        files.write_text(out, json.dumps(document | report.environment(), indent=1, allow_nan=False) + "\n")

    with running.phases(console) as (start_phase, _):
        start_phase("data and judge", steps=False)
        scene, original = make_scene(settings), None
        for digit in forgotten:
            own = dataclasses.replace(settings, digit=digit)
            document["real"][str(digit)] = dataclasses.asdict(judging.measure_real_digits(own, scene))
            names = [name for name in (ORIGINAL, RETRAINED, *VARIANTS) if (digit, name) not in done]
            if names:
                original = original or train_digits(settings, scene, None, start_phase(f"{ORIGINAL}: training"))
                for numbers, images in forget_digit(own, scene, original, _naming(start_phase, digit), only=names):
                    keep(dataclasses.asdict(numbers), images)
        for digit, (name, changes) in itertools.product(swept, SWEEP.items()):
            label = f"{UNLEARNED}, {name}"
            own = dataclasses.replace(
                settings, digit=digit, unlearning=dataclasses.replace(settings.unlearning, **changes)
            )
            if (digit, label) not in done:
                original = original or train_digits(settings, scene, None, start_phase(f"{ORIGINAL}: training"))
                network = unlearn_digit(own, scene, original.params, on_step=start_phase(f"{digit}, {label}"))
                images = draw_digits(own, scene, network.params, requested_digits(own))
                numbers = judging.measure_network(own, scene, label, network, images)
                keep(dataclasses.asdict(numbers) | {"changed": changes}, images)
    files.write_bytes(out.with_suffix(".png"), report.figure_png(picture(work, forgotten), dpi=110))
    return document


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table: by network the mean, lowest and highest number over digits, and one line per sweep."""
    header = "| network | digits | forgotten digit, % | other digits, % | unasked, % | Fréchet distance |"
    lines = [header, "| --- | ---: | ---: | ---: | ---: | ---: |"]
    changed = [row for row in rows if "changed" in row]
    groups = {row["network"]: [] for row in rows if "changed" not in row}
    groups |= {f"{row['network']}, digit {row['digit']}": [row] for row in changed}
    for row in rows:
        if "changed" not in row:
            groups[row["network"]].append(row)
    for name, own in groups.items():
        cells = []
        for number, places in (("forget", 1), ("kept", 1), ("unasked", 1), ("frechet", 2)):
            values = [NUMBERS[number](row) for row in own]
            mean, low, high = (f"{value:.{places}f}" for value in (np.mean(values), min(values), max(values)))
            cells.append(mean if len(values) == 1 else f"{mean} ({low} to {high})")
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _naming(start_phase: StartPhase, digit: int) -> StartPhase:
    """Returns a function that begins phases with the digit in their names."""
    return lambda phase, *, steps=True: start_phase(f"{digit}, {phase}", steps=steps)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns by network and number the mean over digits, and that of differences to Scissorhands, with 95 % intervals.

    The networks of different digits come from one original, so the intervals are those of digits and not of seeds.
    """
    held = {(row["network"], row["digit"]): row for row in rows if "changed" not in row}
    found: dict[str, Any] = {}
    for name in dict.fromkeys(network for network, _ in held):
        own = {digit: row for (network, digit), row in held.items() if network == name}
        pairs = [(row, held[UNLEARNED, digit]) for digit, row in own.items() if (UNLEARNED, digit) in held]
        found[name] = {
            number: {"mean": _mean([read(row) for row in own.values()])}
            | ({"against_scissorhands": _mean([read(row) - read(other) for row, other in pairs])} if pairs else {})
            for number, read in NUMBERS.items()
        }
    return found


def _mean(values: Sequence[float]) -> dict[str, float]:
    found = intervals.mean_estimate(values)
    return {"value": found.value, "low": found.low, "high": found.high, "digits": len(values)}


def picture(work: Path, forgotten: Sequence[int]):
    """Makes the picture of what each network draws for the digit that it forgot, with one row per digit."""
    names = {ORIGINAL: "before", UNLEARNED: "after Scissorhands", PUBLISHED: PUBLISHED, RETRAINED: "retrained"}
    drawings = {
        title: np.stack([array_files.read_array(work / f"{digit}-{name}.npy") for digit in forgotten])
        for name, title in names.items()
    }
    return drawings_figure(drawings, [str(digit) for digit in forgotten])


if __name__ == "__main__":
    sys.exit(main())
