"""The command line of `experiments.tofu`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments import programs, tofu
from experiments.tofu.cells import Cells
from experiments.tofu.page import read_cells, summarized, tofu_grid, write_again, write_results
from experiments.tofu.scene import TofuSettings, make_subject
from scissorhands_jax import report
from scissorhands_jax.report import provenance
from scissorhands_jax.terminal import LoggedConsole

TINY = TofuSettings(
    authors=4, forgotten=1, held_out=1, per_author=4, retain_asked=2, vocabulary=400, width=32, layers=2, epochs=4,
    steps=2, forget_batch=1, rates=(1e-3,), seeds=(0,),
)  # fmt: skip
"""A setting that rehearses the experiment in a minute or two, with numbers that mean nothing."""


@programs.ending("the same command goes on after the last cell")
def main(arguments: list[str] | None = None) -> int:
    """Fills the cells, or writes results, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tofu", description=(tofu.__doc__ or "").split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data-dir", type=Path, metavar="DIR", help="the folder of TOFU")
    source.add_argument("--again", type=Path, metavar="DIR", help="make gates and page in DIR again from its rows")
    source.add_argument("--write", type=Path, metavar="DIR", help="write results of the cells that --out has, and stop")
    parser.add_argument("--out", type=Path, default=Path("runs/tofu"), metavar="DIR", help="default runs/tofu")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal, whose numbers mean nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds")
    options = parser.parse_args(arguments)
    provenance.note_code()
    if options.again:
        programs.refuse_others(parser, arguments, "--again")
        write_again(options.again)
        return 0
    if options.write:
        programs.refuse_others(parser, arguments, "--write", ["--out"])
    console = LoggedConsole()
    if options.write is None:
        settings = TINY if options.tiny else TofuSettings()
        subject = make_subject(settings, options.data_dir)
        Cells(subject, options.data_dir, options.out, console).fill(overwrite=options.overwrite)
    document = summarized(read_cells(options.out))
    write_results(document, options.out if options.write is None else options.write)
    report.print_grid("TOFU in kind", tofu_grid(document["rows"]), console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
