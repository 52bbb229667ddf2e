"""What mkdocs does beyond the pages of docs/: it adds the pages that are made from code, results and notebooks."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path

from docs.hooks import commands, outside, reference, results  # noqa: E402


@functools.cache
def made_pages() -> dict[str, str | bytes]:
    """Everything that is made, by its place in the site."""
    return {**outside.pages(), **reference.pages(), **commands.pages(), **results.pages()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages whose number depends on the code and the results to the navigation."""
    sections = {name: pages for section in config.nav if isinstance(section, dict) for name, pages in section.items()}
    sections["Reference"].append({"The library": [*reference.pages()]})
    sections["Results"] += [place for place in results.pages() if place.endswith(".md") and place != results.INDEX]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures that are made."""
    for place, content in made_pages().items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **arguments: object) -> str:
    """Turns links to files of the repository into links to pages of the site."""
    del arguments
    return outside.with_links(markdown, page.file.src_uri)
