"""The examples of the pages and notebooks, run in order.

`python -m docs.hooks.examples [PATH ...]` writes what came out into the pages and notebooks that show it.

A block of Python is followed by a block of text where its output is shown. The blocks of a page are one program, and
so are the cells of a notebook. `tests/docs_test.py` runs them all and compares what comes out with what is shown.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"
_BLOCK = re.compile(
    r"```python\n(?P<code>.*?)```\n(?P<between>\n(?:[^\n`]+\n)*\n?)(?:```text\n(?P<text>.*?)```)?", re.DOTALL
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class Example(NamedTuple):
    """A block or cell."""

    code: str
    shown: str | None
    """The output that is shown, or None where none is."""
    is_drawn: bool = False
    """Whether a picture is shown."""


def page_examples(text: str) -> list[Example]:
    """The examples of a page in Markdown, in order."""
    return [Example(found["code"], found["text"]) for found in _BLOCK.finditer(text)]


def notebook_examples(notebook: dict[str, Any]) -> list[Example]:
    """The cells of a notebook that hold code, in order."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [Example("".join(cell["source"]), _printed(cell), _is_drawn(cell)) for cell in cells]


def run(code: str, names: dict[str, Any], where: str) -> tuple[str, bytes | None]:
    """Runs an example and returns what it printed, and as PNG the figure `figure` if it made one.

    Args:
      code: The example.
      names: The names that earlier examples have made; those of this one are added.
      where: What a traceback calls the example.
    """
    names.pop("figure", None)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, where, "exec"), names)
    figure = names.get("figure")
    if not isinstance(figure, Figure):
        return printed.getvalue(), None
    from scissorhands_jax.report import figure_png

    return printed.getvalue(), figure_png(figure, dpi=130)


def is_alike(shown: str, found: str) -> bool:
    """Whether two outputs have the same words, and numbers that differ by no more than another machine's would.

    That is by a fifth, by 25 units of the last digit that is shown, or by 5 where it is the first decimal, which stands
    for percentages: trained without AVX-512, a small network's accuracy on a forget set was 5 points away.
    """
    pairs = list(zip(_NUMBER.findall(shown), _NUMBER.findall(found), strict=False))
    if _words(shown) != _words(found):
        return False
    return all(abs(float(a) - float(b)) <= max(0.2 * float(a), _slack(a)) for a, b in pairs)


def _words(text: str) -> list[str]:
    return _NUMBER.sub("0", text).split()


def _slack(number: str) -> float:
    decimals = len(number.partition(".")[2])
    return 5.0 if decimals == 1 else 25 * 10.0**-decimals


def _printed(cell: dict[str, Any]) -> str | None:
    parts = ["".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream"]
    return "".join(parts) or None


def _is_drawn(cell: dict[str, Any]) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell["outputs"])


def rewrite_page(path: Path) -> None:
    """Runs the examples of a page and writes what they printed where an output is shown."""
    names: dict[str, Any] = {}

    def replace(found: re.Match) -> str:
        printed, _ = run(found["code"], names, path.name)
        if found["text"] is None:
            return found[0]
        return f"```python\n{found['code']}```\n{found['between']}```text\n{printed}```"

    path.write_text(_BLOCK.sub(replace, path.read_text(encoding="utf-8")), encoding="utf-8")


def rewrite_notebook(path: Path) -> None:
    """Runs the cells of a notebook and writes what they printed and drew into it."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for count, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), start=1):
        printed, drawn = run("".join(cell["source"]), names, path.name)
        cell["execution_count"], cell["outputs"] = count, []
        if printed:
            lines = printed.splitlines(keepends=True)
            cell["outputs"].append({"name": "stdout", "output_type": "stream", "text": lines})
        if drawn is not None:
            data = {"image/png": base64.b64encode(drawn).decode(), "text/plain": ["the figure"]}
            cell["outputs"].append({"data": data, "metadata": {}, "output_type": "display_data"})
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(paths: list[str]) -> None:
    """Writes the outputs of the pages and notebooks that are named, or of all."""
    found = [Path(path).resolve() for path in paths] or [*(ROOT / "docs").rglob("*.md"), *NOTEBOOKS.glob("*.ipynb")]
    for path in sorted(found):
        rewrite: Callable[[Path], None] = rewrite_notebook if path.suffix == ".ipynb" else rewrite_page
        rewrite(path)


if __name__ == "__main__":
    main(sys.argv[1:])
