"""The report in a real browser, from disk: nothing is fetched, nothing complains, and everything can be seen.

Needs Chromium or Chrome with its driver, such as Debian's `chromium` and `chromium-driver`. Where they are missing the
tests are skipped, unless the environment says REQUIRE_BROWSER=1.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from scissorhands_jax import report
from tests.equipment import absent
from tests.report.page_test import gradcam_arguments, sweep_rows

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def find_browser():
    """The browser, its driver, and the package that drives it."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        webdriver = None
    if binary and driver and webdriver:
        return binary, driver, webdriver
    missing = ", ".join(
        name
        for name, found in (("chromium", binary), ("chromedriver", driver), ("the package selenium", webdriver))
        if not found
    )
    absent("BROWSER", f"{missing} is not installed (Debian: apt-get install chromium chromium-driver)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless browser with a profile of its own, which notes console messages and requests."""
    binary, driver, webdriver = find_browser()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with everything that one can hold."""
    rows = [row | {"relearn_epochs": 2, "relearn_cap": 9, "mia_loss": 12.5} for row in sweep_rows()]
    seen = report.gradcam_figure(**gradcam_arguments(images=np.full((3, 4, 6, 3), 0.5)))
    pictures = [*report.row_pictures(rows), report.curves_picture({"retain loss": [3.0, 2.0, 1.0]})]
    pictures.append(report.Picture(seen, "caption", "Heat maps", heading="Where it looks", format="png"))
    path = tmp_path_factory.mktemp("page") / "report.html"
    gates = [
        {"name": f"gate {passed}", "metric": "m", "passed": passed, "explanation": "a long reason " * 20}
        for passed in (True, False, None)
    ]
    table = report.Grid(("Gate", "Outcome", "Why"), ((report.Cell("a"), report.Cell("b"), report.Cell("c " * 99)),), 3)
    report.write_html(
        path,
        report.Page(
            title="A network forgets",
            answer="It forgot.",
            trust="Some gates hold.",
            gates=gates,
            sheets=[report.Sheet("Reasons", table)],
            explanations=[report.Section("What was done", ["Something."])],
            rows=rows,
            figures=pictures,
            settings={"seed": 0, "method": {"lr": 0.005}},
            environment=report.environment(),
            hashes={"networks": {"original": "ab" * 32}},
        ),
    )
    return path


def visit(browser, path: Path, *, width=1280, dark=False):
    """Opens a file from disk and returns the console's messages and the addresses that were asked for."""
    # Messages of an earlier page may come late: from an empty page on, they are of this one.
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [entry["message"] for entry in browser.get_log("browser")], asked


def test_a_page_that_complains_and_fetches_would_be_noticed(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text('<img src="http://127.0.0.1:1/x.png"><script>console.error("oh"); undefined.x</script>')
    console, asked = visit(browser, path)
    assert asked == [path.as_uri(), "http://127.0.0.1:1/x.png"]
    assert any("oh" in message for message in console)
    assert any("TypeError" in message for message in console)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_report_opens_from_disk(browser, page, width, dark):
    console, asked = visit(browser, page, width=width, dark=dark)
    assert console == []
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert browser.title == "A network forgets"
    for details in browser.find_elements("tag name", "details"):
        browser.execute_script("arguments[0].open = true", details)

    tables = browser.find_elements("css selector", "table.wide")
    assert len(tables) == 3  # means, further numbers, every seed
    assert all(table.is_displayed() and table.size["height"] > 100 for table in tables)
    lines = {line.find_element("tag name", "th").text: line.text for line in tables[0].find_elements("tag name", "tr")}
    assert {"53.06", "±0.09", "2.0"} <= set(lines["scissorhands"].split())
    text = browser.find_element("tag name", "body").text
    for words in ("Gap 95", "Relearn", "MIA loss", "Something.", "ab" * 32, "method", "0.005", "jaxlib"):
        assert words in text

    # Reasons are read from the left and are not cut off.
    for reason in browser.find_elements("css selector", ".why, td.words"):
        assert reason.value_of_css_property("text-align") in ("left", "start")
        assert reason.rect["x"] + reason.rect["width"] <= width

    images = browser.find_elements("tag name", "img")
    assert len(images) == 1
    for image in images:
        assert browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth", image) > 500
        assert image.size["height"] > 100
    drawings = browser.find_elements("css selector", "figure svg")
    assert len(drawings) == 5
    assert all(drawing.size["width"] > 250 and drawing.size["height"] > 60 for drawing in drawings)

    # Nothing sticks out: neither the page nor a table has to be scrolled sideways.
    boxes = "[document.documentElement, ...document.querySelectorAll('.scroll')]"
    assert max(browser.execute_script(f"return {boxes}.map(box => box.scrollWidth - box.clientWidth)")) <= 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(browser, page, dark):
    visit(browser, page, dark=dark)
    ground = luminance(color(browser, "body", "background-color"))
    assert (ground < 0.1) == dark
    for selector in (
        "p",
        ".note",
        "td",
        ".std",
        "thead th",
        "figcaption",
        "summary",
        "h2",
        ".reference td",
        ".answer",
        ".trust",
        ".why",
        ".holds .sign",
        ".fails .sign",
    ):
        ratio = contrast(luminance(color(browser, selector, "color")), ground)
        assert ratio >= 4.5, selector  # WCAG 2, level AA


def color(browser, selector, name):
    value = browser.find_element("css selector", selector).value_of_css_property(name)
    return [int(part) for part in re.findall(r"\d+", value)[:3]]


def luminance(rgb):
    """Relative luminance of sRGB, as WCAG 2 defines it."""
    parts = np.array(rgb) / 255
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
