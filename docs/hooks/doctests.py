"""Examples in docstrings, which are doctests between paragraphs, become blocks of code on the pages."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class FencedDoctests(griffe.Extension):
    """Puts every doctest of a docstring between fences, before the docstring is read as Markdown."""

    def on_object(self, *, obj: griffe.Object, **arguments: Any) -> None:
        """Rewrites the docstring of one object."""
        del arguments
        if obj.docstring is not None:
            obj.docstring.value = _DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
