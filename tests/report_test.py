"""Tables, results.json and report.html: every number arrives, nothing hostile does, nothing is loaded."""

import json
import math
import os
import re
from html.parser import HTMLParser
from io import StringIO

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from scissorhands_jax import report
from scissorhands_jax.errors import InputError

HOSTILE = """<script>alert("1")</script>&amp;'$x_1$ [red]b[/red] onload="x" id="y" --> """


def make_rows(scenarios=("random", "class 3"), methods=("retrain", "finetune", "scissorhands"), num_seeds=3):
    """Numbers that tell where they came from: no two of one column are equal."""
    rows = []
    for s, scenario in enumerate(scenarios):
        for m, method in enumerate(methods):
            for seed in range(num_seeds):
                base = 50 + 20 * s + 3 * m + seed / 8
                retrained = method == "retrain"
                rows.append(
                    {
                        "scenario": scenario,
                        "method": method,
                        "seed": seed,
                        "acc_forget": base,
                        "acc_retain": base + 0.01,
                        "acc_test": base + 0.02,
                        "mia": base + 0.03,
                        "avg_gap": None if retrained else 10 - base / 10,
                        "seconds": 100 * base,
                        "rte": 1.0 if retrained else base / 100,
                    }
                )
    return rows


def printed(rows, width):
    console = Console(file=StringIO(), width=width, color_system=None)
    report.print_tables(rows, console)
    return console.file.getvalue()


def test_row_fields_are_the_contract():
    assert (
        *("scenario", "method", "seed", "acc_forget", "acc_retain"),
        *("acc_test", "mia", "avg_gap", "seconds", "rte"),
    ) == report.ROW_FIELDS
    assert set(make_rows()[0]) == set(report.ROW_FIELDS)


def test_table_has_mean_and_sample_deviation_in_first_seen_order():
    text = printed(make_rows(), 200)
    lines = [line.split() for line in text.splitlines() if line.split()]
    found = [words[0] for words in lines if words[0] in ("retrain", "finetune", "scissorhands")]
    assert found == ["retrain", "finetune", "scissorhands"] * 2
    assert text.index("random") < text.index("class 3")
    finetune = next(words for words in lines if words[0] == "finetune")
    # 53, 53.125, 53.25: mean 53.125, standard deviation 0.125
    expected = "53.12 ±0.12 53.13 ±0.12 53.15 ±0.12 53.16 ±0.12 4.69 ±0.01 5312.5 ±12.5 0.531 ±0.001"
    assert finetune[1:] == expected.split()
    assert "1.000 ±0.000" in text  # no spread is a spread, too
    assert text.count(report.DASH) == 2  # the gap of the retrained network, once per scenario


def test_narrow_table_loses_no_character():
    methods = ("retrain", "boundary_expand", "gradient_ascent")
    wide, narrow = (re.findall(r"[\w.±–]+", printed(make_rows(methods=methods), width)) for width in (200, 80))
    assert "…" not in narrow
    assert sorted(narrow) == sorted(wide)


def test_table_shows_names_as_they_are_and_missing_numbers_as_dashes():
    row = {"scenario": "[bold]s[/bold]", "method": "[red]m[/red]", "seed": 0, "acc_forget": 12.345}
    text = printed([row], 150)
    assert "[bold]s[/bold]" in text
    assert "[red]m[/red]" in text
    assert "12.35" in text or "12.34" in text
    assert "±" not in text
    assert text.count(report.DASH) == 6
    assert "one seed" in text


def test_numpy_and_jax_numbers_are_numbers():
    row = make_rows()[1] | {"acc_forget": np.float32(1.5), "mia": np.int64(7)}
    assert {"1.50", "7.00"} <= set(printed([row], 150).split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenario": None}, "row 1 needs a scenario"),
        ({"method": 3}, "row 1 needs a method"),
        ({"mia": "high"}, "mia must be a finite number"),
        ({"mia": math.nan}, "mia must be a finite number"),
        ({"mia": True}, "mia must be a finite number"),
    ],
)
def test_unusable_rows_are_refused(change, message):
    rows = make_rows()
    with pytest.raises(InputError, match=message):
        printed([rows[0], rows[1] | change], 100)


def make_document(**changes):
    return {"rows": make_rows(), "config": {"lr": 0.1}, **report.environment()} | changes


def test_results_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "results.json"
    document = make_document(extra={"list": (1, 2), "none": None, "flag": True})
    report.write_results(path, document)
    loaded = json.loads(path.read_text(encoding="utf-8"))
    assert loaded == document | {"extra": {"list": [1, 2], "none": None, "flag": True}}
    assert all(set(row) == set(report.ROW_FIELDS) for row in loaded["rows"])
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_results_hold_numpy_and_jax_values_as_plain_numbers(tmp_path):
    path = tmp_path / "results.json"
    config = {"a": np.float32(0.5), "b": jnp.arange(3), "c": np.int64(4), "d": np.array([[1.5]]), "e": np.True_}
    report.write_results(path, make_document(config=config))
    loaded = json.loads(path.read_text())["config"]
    assert loaded == {"a": 0.5, "b": [0, 1, 2], "c": 4, "d": [[1.5]], "e": True}
    assert type(loaded["e"]) is bool


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"deep": [0.0, {"x": math.nan}]}}, r"results\.config\.deep\[1\]\.x is nan"),
        ({"config": {"x": np.float32(np.inf)}}, r"results\.config\.x is inf"),
        ({"config": {"x": np.array([1.0, -np.inf])}}, r"results\.config\.x\[1\] is -inf"),
        ({"config": {"x": object()}}, r"results\.config\.x is a object"),
        ({"config": {1: 2}}, "keys of JSON are text"),
        ({"rows": [{"scenario": "s"}]}, r"results\.rows\[0\] lacks method, seed"),
    ],
)
def test_unusable_results_are_refused_and_the_old_file_stays(tmp_path, changes, message):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(InputError, match=message):
        report.write_results(path, make_document(**changes))
    assert path.read_text() == "old"


@pytest.mark.parametrize("key", ["rows", "config", "versions", "machine"])
def test_results_need_their_four_parts(tmp_path, key):
    document = make_document()
    del document[key]
    with pytest.raises(InputError, match=f"results need {key}"):
        report.write_results(tmp_path / "results.json", document)


def test_a_crash_while_writing_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("old")

    def crash(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        report.write_results(path, make_document())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_environment_says_what_ran_and_not_where():
    environment = report.environment()
    packages = {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn"}
    assert set(environment["versions"]) == packages
    assert all(re.match(r"\d+\.\d+", version) for version in environment["versions"].values())
    assert set(environment["machine"]) == {"backend", "device", "devices", "cores", "platform"}
    assert os.path.expanduser("~") not in json.dumps(environment)


def dots(axes):
    return [line for line in axes.lines if line.get_marker() == "o"]


def test_gap_figure_has_a_dot_per_seed_and_a_bar_to_each_mean():
    rows = make_rows(scenarios=["random"])
    figure = report.gap_figure(rows)
    (axes,) = figure.axes
    assert figure.canvas.manager is None  # no pyplot
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["finetune", "scissorhands"]
    for line, bar, method in zip(dots(axes), axes.patches, ("finetune", "scissorhands"), strict=True):
        gaps = [row["avg_gap"] for row in rows if row["method"] == method]
        assert list(line.get_xdata()) == gaps
        assert bar.get_width() == pytest.approx(np.mean(gaps))
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()


def test_panels_figure_compares_with_the_retrained_mean():
    rows = make_rows(scenarios=["random"])
    figure = report.panels_figure(rows)
    assert len(figure.axes) == 4
    for axes, field in zip(figure.axes, ("acc_forget", "acc_retain", "acc_test", "mia"), strict=True):
        (reference,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        retrained = np.mean([row[field] for row in rows if row["method"] == "retrain"])
        assert reference.get_ydata() == pytest.approx([retrained] * 2)
        assert f"{retrained:.2f}" in axes.texts[0].get_text()
        expected = [[row[field] for row in rows if row["method"] == method] for method in ("finetune", "scissorhands")]
        assert [list(line.get_ydata()) for line in dots(axes)] == expected


def test_dollars_and_long_names_stay_readable_in_plots():
    rows = make_rows(scenarios=["random"], methods=["retrain", r"$\bad{$", "m" * 80])
    for figure in (report.gap_figure(rows), report.panels_figure(rows), report.curves_figure({r"$\bad{$": [1.0]})):
        text = report.figure_svg(figure)
        assert r">$\bad{$<" in text
        assert "m" * 24 not in text


def test_figures_need_something_to_show():
    with pytest.raises(InputError, match="avg_gap"):
        report.gap_figure(make_rows(methods=["retrain"]))
    with pytest.raises(InputError, match="no rows"):
        report.panels_figure([])
    with pytest.raises(InputError, match="no histories"):
        report.curves_figure({})
    with pytest.raises(InputError, match="'loss' must be"):
        report.curves_figure({"loss": np.full(3, np.nan)})


def test_curves_skip_steps_without_a_value_and_thin_long_runs():
    sparse = [1.0, math.nan, 3.0, math.nan]
    long = np.sin(np.arange(5000) / 100)
    figure = report.curves_figure({"forget_loss": sparse, "retain_loss": long}, max_points=100)
    short_line, long_line = (axes.lines[0] for axes in figure.axes)
    assert short_line.get_xydata().tolist() == [[1, 1], [3, 3]]
    assert len(long_line.get_xdata()) == 100
    assert long_line.get_ydata()[0] == pytest.approx(long[:50].mean())
    assert long_line.get_xdata()[-1] == pytest.approx(np.arange(4951, 5001).mean())
    assert len(figure.axes[1].collections) == 1  # the range of each stretch


def test_svg_is_reproducible_shares_no_id_and_loads_nothing():
    rows = make_rows(scenarios=["random"])
    first, second = report.figure_svg(report.gap_figure(rows)), report.figure_svg(report.panels_figure(rows))
    assert first == report.figure_svg(report.gap_figure(rows))
    assert first.startswith("<svg")
    assert first.endswith("</svg>")
    ids = [re.findall(r' id="([^"]+)"', text) for text in (first, second)]
    assert len(set(ids[0])) == len(ids[0])
    assert not set(ids[0]) & set(ids[1])
    for text, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text)) <= set(own)


class Page(HTMLParser):
    """Checks that tags nest, and collects what the tests look at."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input", "wbr"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.cells, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def write_page(tmp_path, rows, **changes):
    arguments = {
        "title": "Forgetting",
        "summary_sections": [("What was done", ["Something.", "Something else."])],
        "figures": report.pictures(rows, {"loss": [3.0, 2.0, 1.0]}),
        "settings": {"seed": 0, "method": {"optimizer": {"lr": 0.005}, "rank": None, "widths": [64, 10]}},
        "environment": report.environment(),
    }
    path = tmp_path / "report.html"
    report.write_html(path, rows=rows, **(arguments | changes))
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_page_nests_and_shows_every_row_mean_setting_and_version(tmp_path):
    rows = make_rows()
    text, page = write_page(tmp_path, rows)
    digits = {"acc_forget": 2, "acc_retain": 2, "acc_test": 2, "mia": 2, "avg_gap": 2, "seconds": 1, "rte": 3}
    for row in rows:
        numbers = [report.DASH if row[field] is None else f"{row[field]:.{n}f}" for field, n in digits.items()]
        assert [row["method"], str(row["seed"]), *numbers] in page.cells
    means = [
        "finetune",
        "53.12±0.12",
        "53.13±0.12",
        "53.15±0.12",
        "53.16±0.12",
        "4.69±0.01",
        "5312.5±12.5",
        "0.531±0.001",
    ]
    assert means in page.cells
    for pair in (["seed", "0"], ["optimizer.lr", "0.005"], ["rank", report.DASH], ["widths", "64, 10"]):
        assert pair in page.cells
    for package, version in report.environment()["versions"].items():
        assert [package, version] in page.cells
    for words in ("What was done", "Something else.", "18 runs · 3 methods · 2 scenarios", "Every seed (9 rows)"):
        assert words in page.words
    assert text.count("<svg") == text.count("<figcaption>") == 5


def test_page_marks_the_reference_and_the_smallest_gap(tmp_path):
    text, _ = write_page(tmp_path, make_rows(scenarios=["random"]))
    marked = re.findall(r'<tr role="row" class="(\w+)"><th role="rowheader" scope="row">(\w+)<', text)
    assert marked == [("reference", "retrain"), ("best", "scissorhands")]


def test_page_loads_nothing(tmp_path):
    text, page = write_page(tmp_path, make_rows())
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert name not in ("src", "srcset", "data", "action", "onload", "onclick")
        assert name.startswith("xmlns") or "//" not in (value or "")
        if name in ("href", "xlink:href"):
            assert value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text
    assert re.findall(r"https?://[^\s\"]+", re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)) == []


def test_page_is_accessible(tmp_path):
    _, page = write_page(tmp_path, make_rows())
    assert ("lang", "en") in page.attributes
    assert ("name", "viewport") in page.attributes
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert any(re.fullmatch(r"Bar chart .* finetune 4\.69, scissorhands 4\.39\.", label) for label in labels)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)


@pytest.mark.filterwarnings("error")
def test_hostile_names_stay_text(tmp_path):
    rows = make_rows(scenarios=[HOSTILE], methods=["retrain", HOSTILE, "b"])
    text, page = write_page(
        tmp_path,
        rows,
        title=HOSTILE,
        summary_sections=[(HOSTILE, [HOSTILE])],
        figures=report.pictures(rows, {HOSTILE: [1.0, 2.0]}),
        settings={HOSTILE: HOSTILE, "group" + HOSTILE: {HOSTILE: [HOSTILE]}},
    )
    assert "<script" not in text
    assert not {"onload", "onclick"} & {name for name, _ in page.attributes}
    shown = "".join(page.words)
    assert shown.count(HOSTILE.strip()) >= 12
    assert [HOSTILE, HOSTILE] in page.cells
    assert any(cells[0] == HOSTILE for cells in page.cells if len(cells) == 9)


def test_page_of_one_seed_shows_no_deviation(tmp_path):
    text, page = write_page(tmp_path, make_rows(scenarios=["random"], num_seeds=1))
    assert "±" not in "".join(page.words)
    assert "One seed." in text
    assert "<nav" not in text
    assert "3 runs · 3 methods · 1 scenario" in page.words


def test_page_refuses_a_figure_without_its_scenario(tmp_path):
    picture = report.Picture(report.gap_figure(make_rows()), "caption", "alt", scenario="elsewhere")
    with pytest.raises(InputError, match="elsewhere"):
        write_page(tmp_path, make_rows(), figures=[picture])
