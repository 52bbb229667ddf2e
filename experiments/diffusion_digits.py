"""Has diffusion networks forget each of the ten digits in turn, next to two networks that were retrained without it.

    python -m experiments.diffusion_digits --out experiments/results/diffusion_digits.json \\
        --networks original retrain "retrain again" scissorhands "Algorithm 1"
    python -m experiments.diffusion_digits --out experiments/results/diffusion_methods.json --seeds 0 --digits 4 \\
        --attack \\
        --networks original retrain "retrain again" scissorhands esd uce salun munba erase_diff \\
        selective_amnesia finetune gradient_ascent neggrad_plus l1_sparse ssd

For each seed this trains the network of `scissorhands demo diffusion` once, for 50 epochs instead of 40, and has it
forget each digit in every way of `VARIANTS`, in 20 epochs instead of 12. Each result is written as soon as it is
computed, and the same command continues where it was stopped (the original of the seed is then trained again, to the
same weights). At the end a picture is drawn next to the results, if the drawings of the first seed are in `--work`,
where the calls that made its rows have put them. The second command has the other methods of `sd unlearn` in one table,
with attacks.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import programs
from scissorhands_jax import array_files, files, hashing, report
from scissorhands_jax.cli import huge_pages
from scissorhands_jax.diffusion.attacks import AttackRate, attack_gate, attack_rate
from scissorhands_jax.diffusion.concept_methods import CONCEPT_METHODS
from scissorhands_jax.diffusion.demo import judging, running
from scissorhands_jax.diffusion.demo.attacking import DIGITS_ATTACK
from scissorhands_jax.diffusion.demo.drawings_figures import drawings_figure
from scissorhands_jax.diffusion.demo.forgetting import StartPhase, forget_digit
from scissorhands_jax.diffusion.demo.scene import make_scene, requested_digits
from scissorhands_jax.diffusion.demo.settings import (
    LITERAL,
    NUM_DIGITS,
    RETRAINED_AGAIN,
    VARIANTS,
    WHOLE_METHOD,
    DigitsSettings,
    DigitsTraining,
    DigitsUnlearning,
)
from scissorhands_jax.diffusion.demo.training import train_digits
from scissorhands_jax.errors import check_seed
from scissorhands_jax.metrics import intervals
from scissorhands_jax.report import ORIGINAL, REFERENCE, provenance
from scissorhands_jax.terminal import Console, say

# A little longer than the demonstration has time for.
TRAINING, UNLEARNING = DigitsTraining(epochs=50), DigitsUnlearning(epochs=20)
SHOWN = 10  # Drawings of each digit in the picture.
NETWORKS = (ORIGINAL, REFERENCE, RETRAINED_AGAIN, *VARIANTS)
HEADERS = {
    "forget": ("forgotten digit, %", 1),
    "any_digit": ("any digit for it, %", 1),
    "attacked": ("forgotten digit, attacked, %", 1),
    "kept": ("other digits, %", 1),
    "unasked": ("unasked, %", 1),
    "frechet": ("Fréchet distance", 2),
    "error_forget": ("noise loss, forgotten", 3),
    "error_kept": ("noise loss, others", 3),
}
"""The numbers that are compared, by their names in a row: titles and decimal places. Not all rows are attacked."""


@programs.ending(programs.CONTINUES)
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.diffusion_digits", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="results as JSON; its picture is written next to it"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/diffusion_digits"), metavar="DIR", help="for drawings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument(
        "--digits",
        type=int,
        nargs="+",
        default=list(range(NUM_DIGITS)),
        choices=range(NUM_DIGITS),
        metavar="D",
        help="default: all",
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        default=list(NETWORKS),
        choices=[*NETWORKS, *CONCEPT_METHODS],
        metavar="NAME",
        help="default: all without the other methods of sd unlearn, which are " + ", ".join(CONCEPT_METHODS),
    )
    parser.add_argument("--attack", action="store_true", help="also look for a text that brings the digit back")
    programs.add_overwrite(parser)
    options = parser.parse_args(arguments)
    provenance.note_code()
    for seed in options.seeds:
        check_seed(seed)
    document = run(
        options.out,
        options.work,
        DigitsSettings(training=TRAINING, unlearning=UNLEARNING),
        seeds=options.seeds,
        forgotten=options.digits,
        names=options.networks,
        attacked=options.attack,
        console=Console(stderr=True),
        overwrite=options.overwrite,
    )
    sys.stdout.write(table(document["summary"]))
    return 0


def run(
    out: Path,
    work: Path,
    settings: DigitsSettings,
    *,
    seeds: Sequence[int],
    forgotten: Sequence[int] = range(NUM_DIGITS),
    names: Sequence[str] = NETWORKS,
    attacked: bool = False,
    console: Console,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Computes what is missing in the file, and returns all that is in it.

    Args:
      out: The file.
      work: The folder for the drawings that the picture is made of.
      settings: The settings of everything except the digit and the seed.
      seeds: The seeds, each with an original of its own.
      forgotten: The digits to forget.
      names: The networks to make, of `NETWORKS` and CONCEPT_METHODS. What is named twice, here or above, is made once.
      attacked: Whether the networks are attacked as well.
      console: Shows progress.
      overwrite: Whether rows that are in the file are made again.

    Raises:
      InputError: The file holds an experiment with other settings.
    """
    seeds, forgotten, names = (list(dict.fromkeys(chosen)) for chosen in (seeds, forgotten, names))
    described = dataclasses.asdict(settings)
    del described["digit"], described["seed"]
    if attacked:
        described["attack"] = dataclasses.asdict(DIGITS_ATTACK)
    real: dict[str, Any] = {}

    def rows_of(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        real.update(document["real"])
        return {_title(row["seed"], row["digit"], row["network"]): row for row in document["rows"]}

    def compose(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
        rows = [*results.values()]
        gates = {"attack_gate": gate(rows)} if attacked else {}
        return {"real": real, "rows": rows, "summary": summary(rows), **gates}

    with (
        programs.open_results(
            out, {"settings": described}, results_of=rows_of, compose=compose, overwrite=overwrite
        ) as results,
        running.phases(console) as (start_phase, _),
    ):
        for seed in seeds:
            of_seed, scene, original = dataclasses.replace(settings, seed=seed), None, None
            for digit in forgotten:
                missing = [name for name in names if _title(seed, digit, name) not in results.results]
                if not missing:
                    continue
                own = dataclasses.replace(of_seed, digit=digit)
                if scene is None:
                    start_phase(f"seed {seed}, data and judge", steps=False)
                    scene = make_scene(of_seed)
                    original = train_digits(own, scene, None, start_phase(f"seed {seed}, {ORIGINAL}"))
                real[str(digit)] = dataclasses.asdict(judging.measure_real_digits(own, scene))
                requested = requested_digits(own) == digit
                naming = _naming(start_phase, f"seed {seed}, digit {digit}")
                for numbers, images in forget_digit(own, scene, original, naming, missing, attacked=attacked):
                    row = {"seed": seed, **dataclasses.asdict(numbers)}
                    drawings = _drawings(work, described, {**row, "code": provenance.running_code().name})
                    with files.writing(drawings) as file:
                        np.save(file, images[requested][:SHOWN, ..., 0])
                    results.add(_title(seed, digit, row["network"]), row)
        document = results.document()
        try:
            drawn = picture(work, document, seeds[0], forgotten, names)
        except FileNotFoundError as error:
            say(console, f"no picture is drawn, because {error.filename} is missing; --overwrite makes all drawings")
        else:
            files.write_bytes(out.with_suffix(".png"), report.figure_png(drawn, dpi=110))
    return document


def _title(seed: int, digit: int, network: str) -> str:
    return f"seed {seed}, digit {digit}, {network}"


def table(found: Mapping[str, Any]) -> str:
    """A summary as a Markdown table of means over digits and seeds, and one of distances to the retrained networks."""
    shown = shown_headers(found)
    lines = [
        f"| network | {' | '.join(title for title, _ in shown.values())} |",
        f"| --- |{' ---: |' * len(shown)}",
    ]
    for name, numbers in found.items():
        cells = [f"{numbers[key]['mean']['value']:.{places}f}" for key, (_, places) in shown.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{distances_table(found)}\n"


def shown_headers(found: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Of HEADERS those that every network of a summary has."""
    return {key: header for key, header in HEADERS.items() if all(key in numbers for numbers in found.values())}


def distances_table(found: Mapping[str, Any]) -> str:
    """The distances of a summary as a Markdown table, with the number of digits within the floor in brackets."""
    shown = shown_headers(found)
    titles = [*(title for title, _ in shown.values()), "within in all"]
    lines = [f"| network | {' | '.join(titles)} |", f"| --- |{' ---: |' * len(titles)}"]
    for name, numbers in found.items():
        if "within" in numbers:
            cells = [
                f"{numbers[key]['distance']:.{places}f} ({numbers[key]['within']})"
                for key, (_, places) in shown.items()
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {numbers['within']} of {numbers['digits']} |")
    return "\n".join(lines)


def gate(rows: Sequence[Mapping[str, Any]]) -> dict[str, bool | None]:
    """Whether the attacks can be believed (`attack_gate`), over all drawings of originals and of retrained networks."""

    def rate(name: str) -> AttackRate | None:
        shares = [row["attacked"] for row in rows if row["network"] == name]
        return attack_rate(*(sum(share[part] for share in shares) for part in ("count", "total"))) if shares else None

    original = rate(ORIGINAL)
    return {} if original is None else attack_gate(original, rate(REFERENCE))


def _naming(start_phase: StartPhase, prefix: str) -> StartPhase:
    """A function that begins phases with a prefix to their names."""
    return lambda phase, *, steps=True: start_phase(f"{prefix}, {phase}", steps=steps)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By network and number the mean over digits, and how far it is from networks that were retrained.

    `mean` is over the digits' means over seeds, with a 95 % interval over digits. `distance` is the mean absolute
    difference to the retrained networks of the same digit and seed, of which there are two for every other network; of
    the second retrained network it is the floor. `within` counts the digits whose mean distance over seeds is at most
    the 95th percentile of all distances between two retrained networks, in this number and, next to the numbers, in all
    of them.
    """
    held = {(row["network"], row["digit"], row["seed"]): judging.compared_numbers(row) for row in rows}
    keys = [key for key in HEADERS if all(key in row for row in held.values())]
    floors = _floors(held, keys)
    found: dict[str, Any] = {}
    for name in dict.fromkeys(network for network, _, _ in held):
        own = {(digit, seed): row for (network, digit, seed), row in held.items() if network == name}
        others = [other for other in (REFERENCE, RETRAINED_AGAIN) if name not in (other, REFERENCE)]
        pairs = [
            (cell, row, held[other, *cell]) for cell, row in own.items() for other in others if (other, *cell) in held
        ]
        found[name] = {}
        inside: list[set[int]] = []
        for key in keys:
            found[name][key] = {"mean": _mean(_by_digit([(cell, row[key]) for cell, row in own.items()]))}
            if pairs and floors:
                away = _by_digit([(cell, abs(row[key] - other[key])) for cell, row, other in pairs])
                inside.append({digit for digit, distance in away.items() if distance <= floors[key]})
                found[name][key] |= {"distance": float(np.mean(list(away.values()))), "within": len(inside[-1])}
        if inside:
            found[name] |= {"within": len(set.intersection(*inside)), "digits": len({digit for digit, _ in own})}
    return found


def _floors(held: Mapping[tuple[str, int, int], Mapping[str, float]], keys: Sequence[str]) -> dict[str, float]:
    """The 95th percentile of the distances between two retrained networks by number; nothing without such pairs."""
    cells = [(digit, seed) for name, digit, seed in held if name == REFERENCE]
    pairs = [(held[REFERENCE, *c], held[RETRAINED_AGAIN, *c]) for c in cells if (RETRAINED_AGAIN, *c) in held]
    return {key: float(np.percentile([abs(a[key] - b[key]) for a, b in pairs], 95)) for key in keys if pairs}


def _by_digit(numbers: Iterable[tuple[tuple[int, int], float]]) -> dict[int, float]:
    """The mean of the numbers of each digit, from pairs of a cell, which is a digit and a seed, and a number."""
    values: dict[int, list[float]] = {}
    for (digit, _), number in numbers:
        values.setdefault(digit, []).append(number)
    return {digit: float(np.mean(own)) for digit, own in values.items()}


def _mean(by_digit: Mapping[int, float]) -> dict[str, float]:
    found = intervals.mean_estimate(list(by_digit.values()))
    return {"value": found.value, "low": found.low, "high": found.high, "digits": len(by_digit)}


def picture(
    work: Path, document: Mapping[str, Any], seed: int, forgotten: Sequence[int], names: Sequence[str] = NETWORKS
):
    """The picture of what networks draw for the digit that they forgot, with one row per digit.

    Args:
      work: The folder of the drawings.
      document: The content of the file of results.
      seed: The seed whose networks are shown.
      forgotten: The digits.
      names: The networks that may be shown.

    Raises:
      FileNotFoundError: Drawings are not in the folder.
    """
    titles = {ORIGINAL: "before", WHOLE_METHOD: "after Scissorhands", LITERAL: LITERAL, REFERENCE: "retrained"}
    shown = {name: title for name, title in titles.items() if name in names} or {name: name for name in names}
    rows = {_title(row["seed"], row["digit"], row["network"]): row for row in document["rows"]}

    def drawn(digit: int, name: str) -> np.ndarray:
        return array_files.read_array(_drawings(work, document["settings"], rows[_title(seed, digit, name)]))

    drawings = {title: np.stack([drawn(digit, name) for digit in forgotten]) for name, title in shown.items()}
    return drawings_figure(drawings, [str(digit) for digit in forgotten])


def _drawings(work: Path, settings: Mapping[str, Any], row: Mapping[str, Any]) -> Path:
    """Where the drawings of a row are: those of other settings or other code have another folder."""
    made_by = hashing.stable_json(hashing.without_floats({"settings": settings, "code": row.get("code")}))
    return work / hashing.sha256(made_by)[:12] / f"{row['seed']}-{row['digit']}-{row['network']}.npy"


if __name__ == "__main__":
    huge_pages.restart("experiments.diffusion_digits")
    sys.exit(main())
