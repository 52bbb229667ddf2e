"""Fills a table: `python -m experiments.run --config cifar10_small --data-dir data --seeds 0,1,2`.

A table that was stopped is continued when the same command is typed again. Settings of the experiment follow as
NAME=VALUE, such as `train_limit=500 training.epochs=2`; `python -m experiments.tables` renders the results.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

from experiments import configs, programs
from scissorhands_jax import files, report
from scissorhands_jax.cli import huge_pages
from scissorhands_jax.jobs import config, grid
from scissorhands_jax.jobs.experiment import Experiment
from scissorhands_jax.terminal import (
    Console,
    add_follow_options,
    say,
)


@programs.ending("the same command goes on after the last cell")
def main(arguments: list[str] | None = None) -> int:
    """Runs one table and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, metavar="NAME", help=", ".join(configs.CONFIGS))
    parser.add_argument("--seeds", default="0,1,2", metavar="N,N,...", help="default 0,1,2")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data set's files")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/NAME")
    parser.add_argument("--networks", type=Path, metavar="DIR", help="trained networks to share; default OUT/networks")
    parser.add_argument("--only", metavar="REGEX", help="methods whose name matches; '^$' matches none")
    parser.add_argument(
        "--no-redrawn", action="store_true", help="train no second retrained network, the table's floor"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the table in OUT")
    parser.add_argument(
        "--from",
        dest="go_on_from",
        type=Path,
        metavar="FILE",
        help="results.json of this table, whose cells are put into OUT first",
    )
    parser.add_argument("--no-report", action="store_true", help="write results.json alone, without page and figures")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    add_follow_options(parser)
    options = parser.parse_args(arguments)
    out = options.out or Path("runs") / options.config
    with programs.followed(options, out) as console:
        experiment = config.override(configs.load(options.config), options.settings)
        seeds = programs.read_seeds(options.seeds)
        document = grid.run_grid(
            experiment,
            out,
            seeds=seeds,
            data_dir=options.data_dir,
            networks=options.networks,
            only=options.only,
            redrawn=not options.no_redrawn,
            overwrite=options.overwrite,
            go_on_from=options.go_on_from,
            present=None if options.no_report else functools.partial(present, experiment, out, seeds[0], options),
            console=console,
        )
        if not options.no_report:
            report.print_tables(document["rows"], Console())
            if note := report.failures_note(document):
                say(console, note)
            say(console, report.gates_note(document["gates"]))
    return 0


def present(
    experiment: Experiment, out: Path, seed: int, options: argparse.Namespace, document: dict[str, Any]
) -> None:
    """Writes the page of a table, with a Grad-CAM figure of one seed where the network has one."""
    done = {cell["method"] for cell in document["cells"] if cell["seed"] == seed}
    shown = [label for label in ("scissorhands",) if label in done]
    picture = grid.gradcam_picture(
        experiment, out, seed=seed, labels=shown, data_dir=options.data_dir, networks=options.networks
    )
    figures = [] if picture is None else [picture]
    grid.write_report(out, document, title=experiment.name, figures=figures)
    for figure in figures:
        files.write_bytes(out / "gradcam.png", report.figure_png(figure.figure))


if __name__ == "__main__":
    huge_pages.restart("experiments.run")
    sys.exit(main())
