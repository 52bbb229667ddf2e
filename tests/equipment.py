"""What may be absent where tests run: they are skipped without it, unless the environment says it must be there."""

from __future__ import annotations

import os
from typing import Literal, NoReturn

import pytest

Equipment = Literal["BROWSER", "SHARED", "TORCH", "VOCABULARY"]


def absent(equipment: Equipment, what: str) -> NoReturn:
    """Skips a test, or fails it if `REQUIRE_` and the name of the equipment is set; `what` says what there is not."""
    variable = f"REQUIRE_{equipment}"
    if os.environ.get(variable):
        pytest.fail(f"{variable} is set, but {what}")
    pytest.skip(what)
