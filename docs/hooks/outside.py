"""Files of the repository that are pages of the site too, and links that lead out of docs/."""

from __future__ import annotations

import os
import re
from pathlib import Path

from docs.hooks import results

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "experiments/README.md": "results/findings.md",
    "experiments/scaling.md": "results/scaling-in-words.md",
    "experiments/cpu_profile.md": "results/cpu-profile.md",
}
"""What lies outside docs/, by path, with its place in the site."""
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def pages() -> dict[str, str]:
    """Returns the pages by their places in the site."""
    return {place: (ROOT / path).read_text(encoding="utf-8") for path, place in PAGES.items()}


def with_links(text: str, place: str) -> str:
    """A page whose links to files of the repository lead to pages of the site.

    A link to a module leads to the reference, and one to results or their tables to the page that is made of them. One
    to a file that no page shows becomes the path of that file.

    Args:
      text: The page as it is in the repository.
      place: Where it stands in the site, relative to docs/.
    """
    written = {target: path for path, target in PAGES.items()}.get(place)
    folder = (ROOT / written).parent if written else (DOCS / place).parent

    def replace(link: re.Match) -> str:
        words, target = link.groups()
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        path, _, anchor = target.partition("#")
        found = Path(os.path.normpath(folder / path))
        inside = _place_of(found, place)
        if inside is None:
            return f"`{found.relative_to(ROOT)}`" if words != f"`{found.relative_to(ROOT)}`" else words
        there, implied = inside
        anchor = anchor or implied
        way = os.path.relpath(there, os.path.dirname(place) or ".")
        return f"[{words}]({way}{'#' + anchor if anchor else ''})"

    # Code stays as it is, also where it looks like a link.
    parts = _FENCE.split(text)
    return "".join(part if index % 2 else _LINK.sub(replace, part) for index, part in enumerate(parts))


def _place_of(path: Path, place: str) -> tuple[str, str] | None:
    """Where a file of the repository is in the site, with the anchor there, for the page at a place."""
    name = str(path.relative_to(ROOT))
    if name in PAGES:
        return PAGES[name], ""
    if name == "README.md":
        return "index.md", ""
    made = path.with_name("results.json") if path.name == "tables.md" else path
    if made.is_relative_to(results.FOLDER) and (shown := f"results/{results.name_of(made)}.md") in results.pages():
        return shown, ""
    if path.is_relative_to(DOCS) and path.suffix == ".ipynb" and not place.startswith("notebooks/"):
        return str(path.relative_to(DOCS).with_suffix(".md")), ""
    if path.is_relative_to(DOCS):
        return str(path.relative_to(DOCS)), ""
    if path.is_relative_to(ROOT / "scissorhands_jax") and path.suffix == ".py":
        module = path.relative_to(ROOT).with_suffix("").parts
        return f"reference/api/{module[1]}.md", ".".join(module) if len(module) > 2 else ""
    return None
