"""Results for people: tables for the terminal, Markdown and LaTeX, `results.json`, plots, and `report.html`.

`rows` says what a row of results is; everything here reads rows.
"""

from scissorhands_jax.report.figures import (
    Picture,
    curves_figure,
    figure_png,
    figure_svg,
    gap_figure,
    gradcam_figure,
    panels_figure,
    pictures,
    sweep_figure,
)
from scissorhands_jax.report.page import write_html
from scissorhands_jax.report.results import environment, read_results, write_results
from scissorhands_jax.report.rows import DASH, REFERENCE, ROW_FIELDS, Row, grouped, note, with_gaps
from scissorhands_jax.report.tables import Grid, comparison, grid, latex, markdown, print_tables

__all__ = [
    "DASH",
    "REFERENCE",
    "ROW_FIELDS",
    "Grid",
    "Picture",
    "Row",
    "comparison",
    "curves_figure",
    "environment",
    "figure_png",
    "figure_svg",
    "gap_figure",
    "gradcam_figure",
    "grid",
    "grouped",
    "latex",
    "markdown",
    "note",
    "panels_figure",
    "pictures",
    "print_tables",
    "read_results",
    "sweep_figure",
    "with_gaps",
    "write_html",
    "write_results",
]
