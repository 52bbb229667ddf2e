"""The code, commands, links and paths of README.md and docs/."""

import configparser
import json
import re
from pathlib import Path

import jax
import pytest

from docs.hooks import examples
from scissorhands_jax.methods import METHODS
from scissorhands_jax.models import MODELS

ROOT = Path(__file__).parents[1]
MADE = re.compile(r"reference/(api/.*|commands|settings)\.md$")
"""Pages that are made when the site is built; `tests/site_test.py` follows the links to them. On GitHub they are not
there, so a page that links to them says so."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ALSO = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "experiments").glob("*.md"))]
"""Pages whose links are followed too."""
PROGRAMS = [*PAGES[1:], *sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))]
"""Pages and notebooks whose examples are run."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def readme() -> dict:
    """The names that the README's example defines."""
    (code,) = blocks(ROOT / "README.md", "python")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_original_of_the_readme_saw_the_forget_set_and_knows_it(readme):
    loss_fn, train, data = (readme[name] for name in ("loss_fn", "train", "data"))
    seen = {tuple(row) for row in train["x"].tolist()}
    assert {tuple(row) for row in data.forget["x"].tolist()} <= seen
    # Three in ten labels are random, so only a network that was trained on them can be this sure of them.
    assert loss_fn(readme["original"].params, data.forget) < 0.1
    assert loss_fn(readme["retrained"].params, data.forget) > 1.0


def test_the_unlearned_network_of_the_readme_is_between_original_and_retrained(readme):
    loss_fn, data = readme["loss_fn"], readme["data"]
    forget = {name: float(loss_fn(readme[name].params, data.forget)) for name in ("original", "unlearned", "retrained")}
    assert 10 * forget["original"] < forget["unlearned"] < forget["retrained"]
    assert loss_fn(readme["unlearned"].params, data.retain) < 0.2


def test_the_output_that_the_readme_shows_is_what_comes_out(readme):
    (shown,) = blocks(ROOT / "README.md", "text")
    for line in shown.splitlines():
        name, forget, retain = re.fullmatch(r"(\w+) +forget loss ([\d.]+)  retain loss ([\d.]+)", line).groups()
        for value, part in ((forget, readme["data"].forget), (retain, readme["data"].retain)):
            found = float(readme["loss_fn"](readme[name].params, part))
            assert found == pytest.approx(float(value), rel=0.15, abs=0.02)


def test_the_readme_is_one_page():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(text.split()) < 800


def examples_of(path: Path) -> list[examples.Example]:
    text = path.read_text(encoding="utf-8")
    return examples.notebook_examples(json.loads(text)) if path.suffix == ".ipynb" else examples.page_examples(text)


@pytest.mark.parametrize("path", [path for path in PROGRAMS if examples_of(path)], ids=lambda path: path.stem)
def test_examples_run_in_order_and_print_what_is_shown(path):
    names: dict = {}
    for example in examples_of(path):
        with jax.numpy_rank_promotion("allow"):  # as users have it
            printed, drawn = examples.run(example.code, names, path.name)
        if path.suffix == ".ipynb":
            assert example.is_drawn == (drawn is not None), f"{path.name}: {example.code}"
        if example.shown is not None or path.suffix == ".ipynb":
            assert examples.is_alike(example.shown or "", printed), f"{path.name} shows {example.shown}\nnow {printed}"


def test_outputs_that_differ_are_noticed():
    assert examples.is_alike("loss 1.19  after 20 steps", "loss 1.30  after 20 steps")
    for other in ("loss 1.19", "gain 1.19  after 20 steps", "loss 1.60  after 20 steps", "loss 1.19  after 60 steps"):
        assert not examples.is_alike("loss 1.19  after 20 steps", other)
    assert examples.is_alike("gap 5.8", "gap 8.4")
    assert not examples.is_alike("gap 5.8", "gap 11.4")


def test_code_of_every_page_is_run_or_read():
    """Python is run here, commands are read by `tests/commands_test.py`, and `py` is run by `tests/deletion/`."""
    for page in PAGES:
        languages = re.findall(r"^```(\w*)\n(?:.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        allowed = {"python", "sh", "text"} | ({"py"} if page.stem == "record-format" else set())
        assert set(languages) <= allowed, page.name


@pytest.mark.parametrize("page", [*PAGES, *ALSO], ids=lambda page: page.stem)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if found.is_relative_to(ROOT / "docs") and MADE.match(str(found.relative_to(ROOT / "docs"))):
            assert "when the site is built" in text, f"{page.name} links to {target}"
            continue
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
    for path in re.findall(r"`((?:scissorhands_jax|experiments|tests)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_the_tests_that_hold_the_guarantees_exist():
    """What is guaranteed names tests as `tests/file.py::name`, each of which is a function of that file."""
    named = re.findall(
        r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "explanations" / "guarantees.md").read_text(encoding="utf-8")
    )
    assert len(named) > 20
    for path, name in named:
        assert re.search(rf"^ *def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (path, name)


def test_every_cell_of_the_comparison_leads_to_where_it_is_from():
    text = (ROOT / "docs" / "explanations" / "comparison.md").read_text(encoding="utf-8")
    rows = [re.split(r" \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    features = [row for row in rows[1:] if set(row[0]) != {"-"}]
    assert len(features) > 10
    for name, *cells in features:
        assert all(cell == "–" or "](" in cell for cell in cells), name


def test_every_method_and_network_is_named():
    readme, tables = (
        path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "guides" / "tables.md")
    )
    for name in METHODS:
        assert f"`{name}`" in readme
        assert f"`{name}`" in tables
    files = (ROOT / "docs" / "guides" / "pytorch-files.md").read_text(encoding="utf-8")
    for name in MODELS:
        assert f"`{name}`" in files or name.startswith("resnet")


def test_the_changelog_begins_with_the_version_that_the_package_has():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    version = config["metadata"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    number, _, unfinished = version.partition(".dev")
    assert headings[0][0] == number
    assert (headings[0][1] == "unreleased") == bool(unfinished)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in headings[1:])


def test_examples_leave_nothing_configured():
    assert jax.config.jax_numpy_rank_promotion == "raise"
