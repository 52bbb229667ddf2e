"""Texts of code and results, as Markdown shows them unchanged."""

from __future__ import annotations

import json
import re
from typing import Any

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|])")


def escaped(text: str) -> str:
    """A text in which code between backticks stays code and no other sign has a meaning."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if index % 2 else _MARKUP.sub(r"\\\1", part) for index, part in enumerate(parts))


def in_code(text: str) -> str:
    """A text in the font of code."""
    return f"`{text}`"


def as_details(heading: str, value: Any) -> str:
    """A value as JSON that is shown when a reader opens it."""
    lines = json.dumps(value, indent=1, ensure_ascii=False).splitlines()
    return "\n".join([f'??? note "{heading}"', "", "    ```json", *(f"    {line}" for line in lines), "    ```", ""])


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table whose cells are Markdown already; all columns but the first are set to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
