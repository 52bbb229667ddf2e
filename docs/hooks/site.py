"""What mkdocs does beyond the pages of docs/: it adds the pages that are made from code, results and notebooks."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path

from docs.hooks import commands, notebooks, outside, reference, results, sources  # noqa: E402

FOLDERS = {"Guides": "guides", "Explanations": "explanations", "Reference": "reference", "Results": "results"}
"""The sections of the navigation with the folders of their pages; a page that mkdocs.yml does not name comes last."""


@functools.cache
def made_pages() -> dict[str, str | bytes]:
    """Everything that is made, by its place in the site."""
    return {**outside.pages(), **reference.pages(), **commands.pages(), **results.pages(), **notebooks.pages()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages whose number depends on the code and the results to the navigation."""
    sections = {name: pages for section in config.nav if isinstance(section, dict) for name, pages in section.items()}
    sections["Reference"].append({"The library": [*reference.pages()]})
    for name, folder in FOLDERS.items():
        listed = set(_places(sections[name]))
        sections[name] += [place for place in _in_folder(folder) if place not in listed]
    sections["Results"] += [place for place in results.pages() if place.endswith(".md") and place != results.INDEX]
    return config


def _places(nav: Any) -> Iterator[str]:
    """The pages that a part of the navigation leads to."""
    if isinstance(nav, str):
        yield nav
        return
    for inner in nav.values() if isinstance(nav, dict) else nav:
        yield from _places(inner)


def _in_folder(folder: str) -> list[str]:
    """The pages of a folder of docs/, in the order of their names."""
    return [f"{folder}/{path.name}" for path in sorted((ROOT / "docs" / folder).glob("*.md"))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures that are made."""
    for place, content in made_pages().items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **arguments: object) -> str:
    """Turns links to files of the repository into links to pages of the site."""
    del arguments
    return outside.with_links(markdown, page.file.src_uri)


def on_post_page(output: str, page: Page, **arguments: object) -> str:
    """Puts the sources into a page of the reference."""
    del page, arguments
    return sources.with_sources(output)
