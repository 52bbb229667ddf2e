"""Settings and fixtures for all tests."""

from pathlib import Path

import jax
import pytest

# Comparisons with recorded numbers are in full float32; shapes that broadcast by accident are errors.
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of traces and papers beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return folder
