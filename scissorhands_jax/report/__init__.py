"""Results for people: tables for the terminal, Markdown and LaTeX, `results.json`, figures, and `report.html`.

`rows` defines what a row of results is. `tables` and `row_figures` show rows, `audits` and `audit_page` show the
evidence of an audit, `gates` checks both, `trust` shows the gates, and `page` puts everything into one file.
"""

from etils import epy as _epy

# Loaded when they are first used: pages and figures need libraries that a table of numbers does not.
with _epy.lazy_api_imports(globals()):
    from scissorhands_jax.report.audit_page import audit_answer, evidence_figure, print_audit, write_audit
    from scissorhands_jax.report.audits import METRICS, NULL, evidence_grids, means_note, metric_titles
    from scissorhands_jax.report.curve_figures import curves_figure, curves_picture
    from scissorhands_jax.report.drawing import Picture, figure_png, figure_svg
    from scissorhands_jax.report.forgetting_figures import Answer, ForgottenExample, forgetting_figure
    from scissorhands_jax.report.gate_texts import audit_verdict, gates_grid, gates_note, gates_summary
    from scissorhands_jax.report.gradcam_figures import gradcam_figure
    from scissorhands_jax.report.page import Page, Section, Sheet, failures_section, write_html
    from scissorhands_jax.report.results import (
        by_first_maker,
        environment,
        environment_of,
        read_results,
        results_text,
        write_results,
    )
    from scissorhands_jax.report.row_figures import (
        before_after_figure,
        gap_figure,
        panels_figure,
        row_pictures,
        sweep_figure,
    )
    from scissorhands_jax.report.rows import (
        DASH,
        ORIGINAL,
        REDRAWN,
        REFERENCE,
        ROW_FIELDS,
        Row,
        closest_sentence,
        failures_note,
        grouped,
        row_fields,
        table_note,
        with_gaps,
        with_lost_runs,
    )
    from scissorhands_jax.report.tables import (
        Cell,
        Grid,
        comparison,
        latex,
        markdown,
        markdown_text,
        print_grid,
        print_tables,
        scenario_grid,
    )

__all__ = [
    "DASH",
    "METRICS",
    "NULL",
    "ORIGINAL",
    "REDRAWN",
    "REFERENCE",
    "ROW_FIELDS",
    "Answer",
    "Cell",
    "ForgottenExample",
    "Grid",
    "Page",
    "Picture",
    "Row",
    "Section",
    "Sheet",
    "audit_answer",
    "audit_verdict",
    "before_after_figure",
    "by_first_maker",
    "closest_sentence",
    "comparison",
    "curves_figure",
    "curves_picture",
    "environment",
    "environment_of",
    "evidence_figure",
    "evidence_grids",
    "failures_note",
    "failures_section",
    "figure_png",
    "figure_svg",
    "forgetting_figure",
    "gap_figure",
    "gates_grid",
    "gates_note",
    "gates_summary",
    "gradcam_figure",
    "grouped",
    "latex",
    "markdown",
    "markdown_text",
    "means_note",
    "metric_titles",
    "panels_figure",
    "print_audit",
    "print_grid",
    "print_tables",
    "read_results",
    "results_text",
    "row_fields",
    "row_pictures",
    "scenario_grid",
    "sweep_figure",
    "table_note",
    "with_gaps",
    "with_lost_runs",
    "write_audit",
    "write_html",
    "write_results",
]
