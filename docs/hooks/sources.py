"""The sources in the reference, put into finished pages: what builds a page and what searches it need not read them."""

from __future__ import annotations

import functools
import re
import textwrap
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).parents[2]
_PLACE = re.compile(r'<details class="mkdocstrings-source" data-source="([^":]+):(\d+):(\d+)"></details>')
_LEXER, _FORMATTER = PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)


def with_sources(page: str) -> str:
    """A finished page with the source of everything whose place `docs/templates/` has left in it."""
    return _PLACE.sub(lambda place: _shown(place[1], int(place[2]), int(place[3])), page)


def _shown(path: str, first: int, last: int) -> str:
    """Some lines of a file of the package, coloured, which are shown when a reader opens them."""
    code = highlight(textwrap.dedent("".join(_lines(path)[first - 1 : last])), _LEXER, _FORMATTER)
    return (
        f'<details class="mkdocstrings-source"><summary>Source code in <code>{path}</code>, lines {first} to {last}'
        f'</summary><div class="language-python highlight"><pre><span></span><code>{code}</code></pre></div></details>'
    )


@functools.cache
def _lines(path: str) -> list[str]:
    return (ROOT / path).read_text(encoding="utf-8").splitlines(keepends=True)
