"""Results for people: tables for the terminal, Markdown and LaTeX, `results.json`, plots, and `report.html`.

`rows` says what a row of results is; everything here reads rows, but for `audits`, which reads evidence.
"""

from scissorhands_jax.report.audits import (
    METRICS,
    NULL,
    evidence_grids,
    gates_grid,
    gates_note,
    gates_section,
    print_audit,
    verdict,
    write_audit,
)
from scissorhands_jax.report.figures import (
    Picture,
    changes_figure,
    contact_sheet_figure,
    curves_figure,
    drawings_figure,
    evidence_figure,
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
from scissorhands_jax.report.tables import Cell, Grid, comparison, grid, latex, markdown, print_tables

__all__ = [
    "DASH",
    "METRICS",
    "NULL",
    "REFERENCE",
    "ROW_FIELDS",
    "Cell",
    "Grid",
    "Picture",
    "Row",
    "changes_figure",
    "comparison",
    "contact_sheet_figure",
    "curves_figure",
    "drawings_figure",
    "environment",
    "evidence_figure",
    "evidence_grids",
    "figure_png",
    "figure_svg",
    "gap_figure",
    "gates_grid",
    "gates_note",
    "gates_section",
    "gradcam_figure",
    "grid",
    "grouped",
    "latex",
    "markdown",
    "note",
    "panels_figure",
    "pictures",
    "print_audit",
    "print_tables",
    "read_results",
    "sweep_figure",
    "verdict",
    "with_gaps",
    "write_audit",
    "write_html",
    "write_results",
]
