"""The pages of the notebooks, made from the outputs stored in them: nothing has to be run to read one."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"


def pages() -> dict[str, str | bytes]:
    """Returns the pages and their pictures by their places in the site."""
    made: dict[str, str | bytes] = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        parts: list[str] = []
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            parts += _cell(cell, f"{path.stem}-{number}", made)
        parts.append(f"This page is [a notebook]({path.name}), which you can open in Jupyter and change.")
        made[f"notebooks/{path.stem}.md"] = "\n\n".join(parts) + "\n"
    return made


def _cell(cell: dict[str, Any], name: str, made: dict[str, str | bytes]) -> list[str]:
    """The Markdown of a cell; its pictures are added to what is made."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
        else:
            made[f"notebooks/{name}.png"] = base64.b64decode(output["data"]["image/png"])
            parts.append(f"![What the cell above draws]({name}.png)")
    return parts
