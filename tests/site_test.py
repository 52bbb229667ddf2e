"""The site: it is built strictly, nothing in it leads nowhere, everything public is in it, and it can be read."""

import ast
import functools
import http.server
import re
import threading
import urllib.parse
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scissorhands_jax.cli.main import COMMANDS
from scissorhands_jax.cli.options import options_of
from scissorhands_jax.methods import METHODS
from tests.browser_test import browser, color, contrast, luminance, visit  # noqa: F401
from tests.layers_test import public_names

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, as `mkdocs build --strict` makes it."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


class Reader(HTMLParser):
    """Collects the anchors of a page, where its links lead, and what a browser fetches for it."""

    def __init__(self, page: Path):
        super().__init__()
        self.anchors, self.links, self.fetched = set(), [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        fetched = found.get("href") if tag == "link" and found.get("rel") != "canonical" else found.get("src")
        if fetched:
            self.fetched.append(fetched)


@pytest.fixture(scope="module")
def pages(site):
    """All pages by their paths, read."""
    return {path: Reader(path) for path in site.rglob("*.html")}


def is_elsewhere(link):
    return urllib.parse.urlsplit(link).scheme in ("http", "https", "mailto", "data")


def test_every_link_leads_somewhere_and_every_page_is_led_to(site, pages):
    reached, wanted = set(), [site / "index.html"]
    while wanted:
        page = wanted.pop()
        if page in reached:
            continue
        reached.add(page)
        for link in filter(lambda link: not is_elsewhere(link), pages[page].links):
            path, anchor = urllib.parse.urldefrag(urllib.parse.unquote(link))
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.relative_to(site)} links to {link}"
            if target.suffix == ".html":
                assert not anchor or anchor in pages[target].anchors, f"{page.relative_to(site)} links to {link}"
                wanted.append(target)
    assert {str(page.relative_to(site)) for page in set(pages) - reached} <= {"404.html"}


def test_a_reader_fetches_nothing_from_elsewhere(site, pages):
    for page, read in pages.items():
        assert [link for link in read.fetched if is_elsewhere(link) and not link.startswith("data:")] == [], page
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text(encoding="utf-8")


def test_every_public_name_is_in_the_reference_with_its_source(site, pages):
    from docs.hooks import reference

    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    known = {line.split()[0] for line in inventory.splitlines()}
    for part in reference.parts():
        page = (site / "reference" / "api" / f"{part}.html").read_text(encoding="utf-8")
        for module in reference.modules(part):
            path = ROOT / "scissorhands_jax" / Path(*module.split(".")).with_suffix(".py")
            path = path if path.exists() else path.with_suffix("") / "__init__.py"
            names = set(public_names(path))
            assert {name for name in names if f"scissorhands_jax.{module}.{name}" not in known} == set(), module
            # Of a function with overloads the last definition counts.
            nodes = {getattr(node, "name", ""): node for node in ast.parse(path.read_text(encoding="utf-8")).body}
            for node in nodes.values():
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
                    source = rf"<code>{path.relative_to(ROOT)}</code>, lines \d+ to {node.end_lineno}</summary>"
                    assert re.search(source, page), f"{module}.{node.name} is shown without its source"


def test_every_option_and_setting_is_in_the_reference(site):
    commands, settings = (
        (site / "reference" / name).read_text(encoding="utf-8") for name in ("commands.html", "settings.html")
    )
    for name, command in COMMANDS.items():
        assert f'id="{name.replace(" ", "-")}"' in commands
        for option in options_of(command).values():
            assert all(f"<code>{flag}" in commands for flag in option.flags), (name, option.flag)
    assert all(f'id="{name}"' in settings for name in METHODS)


def test_every_result_has_a_page(site):
    from docs.hooks import results

    for path in results.sources():
        page = site / "results" / f"{results.name_of(path)}.html"
        assert f"experiments/results/{path.relative_to(RESULTS)}" in page.read_text()


def test_a_page_of_numbers_that_were_computed_again_names_both_codes():
    from docs.hooks import results

    made, again = ({"code": 12 * digit, "date": f"200{digit}-01-01"} for digit in "12")
    assert results._made_with({"made_by": made}) == "commit 111111111111, 2001-01-01"
    assert results._made_with({"made_by": made, "analysed_by": again}) == (
        "commit 111111111111, 2001-01-01; the numbers are computed again by commit 222222222222, 2002-01-01"
    )


READ = ("explanations/method.html", "reference/api/projection.html", "results/cifar10_small.html")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["screen", "phone in the dark"])
def test_pages_can_be_read(browser, site, width, dark):  # noqa: F811
    for name in READ:
        console, _ = visit(browser, site / name, width=width, dark=dark)
        assert console == [], name
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, name
        ground = luminance(color(browser, "body", "background-color"))
        assert (ground < 0.1) == dark, name
        for selector in (".md-typeset p", ".md-typeset h2"):
            assert contrast(luminance(color(browser, selector, "color")), ground) >= 4.5, (name, selector)
        browser.execute_script("localStorage.clear()")  # which remembers the colours of an earlier visit


def test_a_search_finds_a_page(browser, site):  # noqa: F811
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.get(f"http://127.0.0.1:{server.server_address[1]}/index.html?q=relearning")
        find = "return [...document.querySelectorAll('.md-search-result__link')].map(link => link.getAttribute('href'))"
        from selenium.webdriver.support.ui import WebDriverWait

        found = WebDriverWait(browser, 30).until(lambda browser: browser.execute_script(find))
        server.shutdown()
    assert any("relearning" in link for link in found)
