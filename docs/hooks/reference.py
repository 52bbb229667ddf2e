"""The reference of the library: a page for each part of the package, with every public name and its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "scissorhands_jax"


def pages() -> dict[str, str]:
    """Returns the pages by their places in the site."""
    found = {f"reference/api/{part}.md": _part_page(part) for part in parts()}
    return {"reference/api/index.md": _names_page(), **found}


def parts() -> list[str]:
    """The modules and packages that `import scissorhands_jax` offers, by name."""
    return [alias.name for node in _imports(PACKAGE) if node.module == PACKAGE for alias in node.names]


def modules(part: str) -> list[str]:
    """The public modules of a part, with dots and without the name of the package."""
    folder = ROOT / PACKAGE / part
    if not folder.is_dir():
        return [part]
    inner = (path.relative_to(ROOT / PACKAGE).with_suffix("").parts for path in sorted(folder.rglob("*.py")))
    return [".".join(names) for names in inner if not names[-1].startswith("_")]


def defined_in(module: str, name: str) -> str:
    """The module in which a name that a module offers is defined."""
    for node in _imports(module):
        if node.module and any((alias.asname or alias.name) == name for alias in node.names):
            return defined_in(node.module, name)
    return module


def _part_page(part: str) -> str:
    found = modules(part)
    if found == [part]:
        return f"# {part}\n\n::: {PACKAGE}.{part}\n    options:\n      show_root_heading: false\n"
    about = ast.get_docstring(_tree(f"{PACKAGE}.{part}")) or ""
    blocks = (
        f"## `{name.partition('.')[2]}`\n\n"
        f"::: {PACKAGE}.{name}\n    options:\n      show_root_heading: false\n      heading_level: 3\n"
        for name in found
    )
    return f"# {part}\n\n{about}\n\n" + "\n".join(blocks)


def _names_page() -> str:
    """The page of the names that `import scissorhands_jax as sh` has itself, each with its first sentence."""
    names = ast.literal_eval(
        next(
            node.value
            for node in _tree(PACKAGE).body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        )
    )
    lines = []
    for name in names:
        home = defined_in(PACKAGE, name)
        lines.append(f"| [`sh.{name}`][{home}.{name}] | {_first_sentence(home, name)} |")
    listed = "\n".join(f"* [{part}]({part}.md): {_summary(part)}" for part in parts())
    return (
        "# The library\n\nAfter `import scissorhands_jax as sh` these names are at hand. Each is explained, with its "
        "source, in the part that it comes from.\n\n| name | what it is |\n| --- | --- |\n"
        + "\n".join(lines)
        + f"\n\n## The parts\n\n{listed}\n"
    )


def _summary(part: str) -> str:
    return " ".join((ast.get_docstring(_tree(f"{PACKAGE}.{part}")) or "").partition("\n\n")[0].split())


def _first_sentence(module: str, name: str) -> str:
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    return ""


def _imports(module: str) -> Iterator[ast.ImportFrom]:
    return (node for node in ast.walk(_tree(module)) if isinstance(node, ast.ImportFrom))


def _tree(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))
