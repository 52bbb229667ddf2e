"""Pages without figures, for tests that make many pages and look at none of their figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from scissorhands_jax.report import page


@contextlib.contextmanager
def nothing_drawn() -> Iterator[None]:
    """Draws nothing into pages, which a third of the time of a small run would go to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "figure_svg", lambda figure: "<svg></svg>")
        patch.setattr(page, "figure_png", lambda figure: b"")
        yield
