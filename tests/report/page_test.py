"""Tables, results.json and report.html: every number arrives, nothing hostile does, nothing is loaded."""

import base64
import errno
import json
import math
import os
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from scissorhands_jax import report
from scissorhands_jax.errors import InputError
from scissorhands_jax.metrics import intervals
from scissorhands_jax.report import rows as rows_module
from scissorhands_jax.report import table_gates

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
    expected = "53.12 ±0.12 53.13 ±0.12 53.15 ±0.12 53.16 ±0.12 4.69 ±0.01 [4.66, 4.72] 5312.5 ±12.5 0.531 ±0.001"
    assert finetune[1:] == expected.split()
    assert "1.000 ±0.000" in text  # no spread is a spread, too
    assert text.count(report.DASH) == 4  # the gap of the retrained network and its interval, once per scenario


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
        ({"scenario": None}, "row 1 has the scenario None; give text"),
        ({"method": 3}, "row 1 has the method 3; give text"),
        ({"mia": "high"}, "mia must be a finite number"),
        ({"mia": math.nan}, "mia must be a finite number"),
        ({"mia": True}, "mia must be a finite number"),
    ],
)
def test_unusable_rows_are_refused(change, message):
    rows = make_rows()
    with pytest.raises(InputError, match=message):
        printed([rows[0], rows[1] | change], 100)


def test_interval_of_the_gap_is_that_of_its_seeds():
    rows = make_rows(scenarios=["random"], methods=["retrain", "finetune"], num_seeds=12)
    gaps = [row["avg_gap"] for row in rows if row["method"] == "finetune"]
    summary = intervals.mean_estimate(gaps)
    text = printed(rows, 200)
    assert f"[{summary.low:.2f}, {summary.high:.2f}]" in text
    assert "is Student's interval of the mean Avg. Gap" in " ".join(text.split())
    one = printed(make_rows(num_seeds=1), 200)
    assert "95" not in one
    assert "[" not in one


def test_relearn_time_has_a_column_where_it_was_measured_and_a_bound_where_it_was_capped():
    rows = make_rows(scenarios=["random"], num_seeds=2)
    epochs = {"retrain": (None, 4), "finetune": (1, 2), "scissorhands": (None, None)}
    rows = [row | {"relearn_epochs": epochs[row["method"]][row["seed"]]} for row in rows]
    capped = [row | {"relearn_cap": 10} for row in rows]
    cells = {line.split()[0]: line.split()[-2:] for line in printed(capped, 200).splitlines() if "±" in line}
    assert cells["retrain"][-1] == ">7.0"  # one seed needed 4 epochs, the other more than 10
    assert cells["finetune"] == ["1.5", "±0.7"]
    assert cells["scissorhands"][-1] == ">10.0"
    cells = {line.split()[0]: line.split()[-1] for line in printed(rows, 200).splitlines() if "±" in line}
    assert cells["scissorhands"] == report.DASH  # without a cap nothing is known
    assert "Relearn" not in printed(make_rows(), 200)


def test_the_table_of_every_seed_says_which_networks_did_not_relearn(tmp_path):
    rows = [row | {"relearn_cap": 10} for row in make_rows(["random"], num_seeds=2)]
    rows[0]["relearn_epochs"] = 4
    path = tmp_path / "report.html"
    report.write_html(path, report.Page(title="t", answer="a", rows=rows))
    every = path.read_text().partition("Every seed")[2]
    assert every.count("&gt;10.0") == len(rows) - 1


def test_terminal_table_with_every_column_fits(tmp_path):
    rows = [row | {"relearn_epochs": 3, "relearn_cap": 9} for row in make_rows(methods=("retrain", "boundary_expand"))]
    for width in (80, 100, 120):
        text = printed(rows, width)
        assert max(map(len, text.splitlines())) <= width
        assert "boundary_expand" in text
        assert "Relearn" in text
    assert "[4.66," in printed(rows, 100)
    assert "[4.66," not in printed(rows, 80)  # first the interval goes
    assert "Student" not in printed(rows, 80)


def sweep_rows():
    """Retrained networks, the default, and two settings over their values; two seeds."""
    rows = make_rows(scenarios=["random"], methods=["retrain", "scissorhands"], num_seeds=2)
    default = rows[2:]
    for name, places in (("fraction", (0.3, 0.003, 0.03)), ("forget_weight", (0.0, 0.5))):
        for value in places:
            rows += [
                row | {"sweep": {"name": name, "value": value}, "acc_forget": 10 * value + row["seed"]}
                for row in default
            ]
    return rows


def test_rows_of_a_sweep_are_methods_of_their_own():
    rows = sweep_rows()
    (methods,) = report.grouped(rows).values()
    names = ["fraction 0.3", "fraction 0.003", "fraction 0.03", "forget_weight 0", "forget_weight 0.5"]
    assert list(methods) == ["retrain", "scissorhands", *(f"scissorhands, {name}" for name in names)]
    assert {len(group) for group in methods.values()} == {2}
    labelled = [row | {"method": "own label"} if "sweep" in row else row for row in rows[:6]]
    assert list(report.grouped(labelled)["random"]) == ["retrain", "scissorhands", "own label"]
    for sweep in ({"name": "fraction"}, {"value": 1}, "fraction", {"name": "a", "value": "b"}):
        with pytest.raises(InputError, match=r"row 6 has the sweep .*; give one"):
            report.grouped([*rows[:6], rows[6] | {"sweep": sweep}])


def test_gaps_are_those_to_the_retrained_network_of_the_seed():
    rows = [row | {"avg_gap": None} for row in make_rows()]
    answer = report.with_gaps(rows)
    for row in answer:
        assert row["avg_gap"] == pytest.approx({"retrain": 0, "finetune": 3, "scissorhands": 6}[row["method"]])
    assert report.with_gaps(answer) == answer
    unmeasured = report.with_gaps([row | {"mia": None} if row["seed"] == 1 else row for row in rows])
    assert [row["avg_gap"] is None for row in unmeasured] == [row["seed"] == 1 for row in unmeasured]
    alone = [row for row in rows if row["method"] != "retrain" or row["seed"] == 0]
    assert [row["avg_gap"] is None for row in report.with_gaps(alone)] == [row["seed"] != 0 for row in alone]
    with pytest.raises(InputError, match=r"row 3 has an avg_gap of 2, but its numbers give 3\.0"):
        report.with_gaps([*rows[:3], rows[3] | {"avg_gap": 2}])


def test_the_share_of_the_originals_gap_is_that_of_its_seed():
    methods = ("retrain", "original", "finetune", report.REDRAWN)
    rows = report.with_gaps([row | {"avg_gap": None} for row in make_rows(["random"], methods, 2)])
    for row in rows:
        original = next(r for r in rows if r["method"] == "original" and r["seed"] == row["seed"])
        assert row["gap_share"] == pytest.approx(100 * row["avg_gap"] / original["avg_gap"])
    rows = [
        row | {"gap_share": 2 * row["gap_share"]} if (row["method"], row["seed"]) == ("finetune", 1) else row
        for row in rows
    ]
    found = intervals.mean_estimate([200.0, 400.0], bounds=(0, math.inf))
    text = printed(rows, 300)
    assert f"300.0 [{found.low:.1f}, {found.high:.1f}]" in text
    assert "100.0" not in text, "the original is not compared with itself"
    note = " ".join(text.split())
    assert "is the Avg. Gap in % of the original's, with Student's 95 % interval of its mean over seeds" in note
    assert f'the Avg. Gap of "{report.REDRAWN}" is the distance of two networks that never saw the forget set' in note
    grid = report.scenario_grid(report.grouped(rows)["random"])
    assert "Gap\N{NO-BREAK SPACE}/ original's ↓ (%)" in grid.headers
    assert "300.0" in report.markdown(grid)
    assert "300.0" in report.latex(grid, caption="c", label="l")


def test_a_gap_like_the_originals_is_100_percent_without_an_interval():
    """Whatever the digits of the gaps are."""
    rows = []
    for seed, gap in enumerate(np.random.default_rng(0).uniform(20, 80, 30)):
        same = {"scenario": "a", "seed": seed, "acc_retain": 0.0, "acc_test": 0.0, "mia": 0.0}
        rows.append(same | {"method": "retrain", "acc_forget": 0.0})
        rows += [same | {"method": method, "acc_forget": gap} for method in ("original", "finetune")]
    methods = report.grouped(report.with_gaps(rows))["a"]
    column = next(column for column in rows_module.columns(methods) if column.kind == "share")
    assert rows_module.cell(methods["finetune"], column) == ("100.0", "")
    assert rows_module.cell(methods["original"], column) == (report.DASH, "")


@pytest.mark.parametrize("later", [(), (0.3,), (0.4,)], ids=["one seed", "equal", "different"])
def test_an_interval_of_the_share_is_explained_where_one_is_shown(later):
    rows = [{"method": "finetune", "gap_share": share} for share in (0.1 + 0.2, *later)]
    original = [{"method": "original", "gap_share": 100.0}] * len(rows)
    note = rows_module.interval_note({"original": original, "finetune": rows})
    assert ("Student" in note) == (later == (0.4,))
    assert "is the Avg. Gap in % of the original's" in note


def test_without_an_original_there_is_no_share():
    assert "original" not in printed(make_rows(), 200)
    assert all("gap_share" not in row for row in report.with_gaps([r | {"avg_gap": None} for r in make_rows()]))


DRAWS = 40_000
"""With which four standard deviations of a coverage of 92 to 95 % are 0.4 to 0.5 percentage points."""


def coverage(column, numbers):
    """How often the interval that a column shows holds the mean, for the numbers of seeds in each line of an array.

    Intervals are computed for all lines at once, and compared with what the column shows for a few.
    """
    count = numbers.shape[1]
    means, deviations = numbers.mean(axis=1), numbers.std(axis=1, ddof=1)
    reach = stats.t.ppf(0.975, count - 1) * deviations / math.sqrt(count)
    low, high = np.maximum(0, means - reach), means + reach
    for line in range(10):
        shown = " ".join(rows_module.cell([{"method": "a", column.field: one} for one in numbers[line]], column))
        assert f"[{low[line]:.{column.digits}f}, {high[line]:.{column.digits}f}]" in shown
    return np.mean((low <= numbers.mean()) & (numbers.mean() <= high))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("together", [0.0, 0.7])
def test_the_interval_of_the_share_covers_as_it_says(seeds, together):
    """A gap of 7 of 25 points, which vary by a fifth and a tenth from seed to seed, perhaps together."""
    drawn = np.random.default_rng(seeds).normal(size=(DRAWS, seeds, 2))
    drawn[..., 1] = together * drawn[..., 0] + math.sqrt(1 - together**2) * drawn[..., 1]
    shares = 100 * 7 * (1 + 0.2 * drawn[..., 1]) / (25 * (1 + 0.1 * drawn[..., 0]))
    assert coverage(rows_module._SHARE, shares) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    ("means", "deviations", "least", "most"),
    [
        ((7.0, 1.0, 2.0, 2.0), (2.5, 0.5, 1.3, 3.5), 0.945, 0.955),
        ((0.0, 0.0, 0.0, 0.0), (2.0, 0.1, 1.0, 2.5), 0.935, 0.945),
        ((0.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), 0.915, 0.935),
    ],
    ids=["far", "like a retrained network", "one number alone"],
)
def test_the_interval_of_the_gap_covers_as_the_guide_says(seeds, means, deviations, least, most):
    """Gaps are means of distances, so those that are nearly 0 are skew."""
    gaps = np.abs(np.random.default_rng(seeds).normal(means, deviations, (DRAWS, seeds, 4))).mean(axis=2)
    assert least < coverage(rows_module._INTERVAL, gaps) < most


def test_equal_gaps_have_a_dash_in_place_of_an_interval_of_no_width():
    """As with one class, which every retrained network names never."""
    gaps = (0.1 + 0.2, 0.3, 0.3)
    rows = [{"method": "a", "avg_gap": gap, "gap_share": gap} for gap in gaps]
    shown = {one.kind: rows_module.cell(rows, one) for one in (rows_module._INTERVAL, rows_module._SHARE)}
    assert shown == {"interval": (report.DASH, ""), "share": ("0.3", "")}
    assert rows_module.cell([*rows, {"method": "a", "avg_gap": 0.4}], rows_module._INTERVAL)[0].startswith("[")


@pytest.mark.parametrize(("unit", "shown"), [("%", True), ("mg/dl", False)])
def test_a_gap_is_in_percentage_points_only_where_the_metric_is_in_percent(unit, shown):
    metrics = [{"name": "rmse", "title": "RMSE", "better": "lower", "unit": unit}]
    same = {"scenario": "a", "task": {"name": "t", "metrics": metrics}, "mia": 50.0, "rmse_retain": 1.0}
    rows = [
        same | {"method": method, "seed": seed, "rmse_forget": value + seed, "rmse_test": 2.0, "rmse_forget_error": 0.1}
        for method, value in (("original", 1.0), ("retrain", 9.0), ("finetune", 2.0))
        for seed in range(2)
    ]
    rows = report.with_gaps(rows)
    (methods,) = report.grouped(rows).values()
    pictures = {picture.name: picture for picture in report.row_pictures(rows)}
    said = [
        *report.scenario_grid(methods).headers,
        report.closest_sentence(rows),
        pictures["gap"].alt,
        report.gap_figure(rows).axes[0].get_xlabel(),
        *(gate.explanation for gate in table_gates.of_rows(rows)),
    ]
    assert "points below that of retrained" in said[-3] or not shown
    assert any("point" in text for text in said) is shown
    compared = report.comparison(methods, [{"method": "finetune", "rmse_test": 3.0, "avg_gap": 1.5}])
    assert [header.split()[0] for header in compared.headers[2:]] == ["RMSE", "RMSE", "RMSE", "MIA", "Avg."]
    assert [cell.text for cell in compared.lines[-1][2:]] == [report.DASH, report.DASH, "3.00", report.DASH, "1.50"]
    assert all("percentages" not in term.meaning for term in rows_module.TERMS), "a page explains it for every task"
    assert any(cell.best for line in report.scenario_grid(methods).lines for cell in line)


def test_retrained_network_is_never_the_best():
    rows = make_rows(scenarios=["random"])
    for row in rows:
        row |= {"avg_gap": None, "acc_test": row["acc_test"] + (row["method"] == "finetune") * row["seed"] / 10}
    lines = report.markdown(report.scenario_grid(report.grouped(report.with_gaps(rows))["random"])).splitlines()
    assert [line.split(" | ")[0] for line in lines if "**" in line] == ["| finetune"]
    (retrained,) = [line.split(" | ") for line in lines if line.startswith("| retrain")]
    assert retrained[5:7] == ["0.00 ±0.00", report.DASH]  # its distance to itself has no uncertainty


@pytest.mark.parametrize("name", ["[red]", "*", "[2pt] bold"])
def test_no_line_of_latex_begins_with_what_a_command_takes_for_its_option(name):
    table = report.Grid(
        (name, "b"), ((report.Cell(name), report.Cell("1")), (report.Cell(name, best=True),) * 2), words=1
    )
    lines = [line.strip() for line in report.latex(table, caption="c", label="l").splitlines()]
    assert not any(line.startswith(("[", "*")) for line in lines)
    assert sum(line.startswith(f"{{{name}}} &") for line in lines) == 2


def test_markdown_and_latex_show_every_cell_and_nothing_hostile():
    rows = make_rows(scenarios=["random"], methods=["retrain", HOSTILE, "a_b|c"])
    table = report.scenario_grid(report.grouped(rows)["random"])
    text = report.markdown(table)
    lines = text.splitlines()
    assert len(lines) == 5
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.headers) + 1}
    assert (
        r"| a\_b\|c | 56.12 ±0.12 | 56.13 ±0.12 | 56.15 ±0.12 | 56.16 ±0.12 | **4.39 ±0.01** | \[4.36, 4.42\] |" in text
    )
    assert "<" not in text.replace(r"\<", "")
    tex = report.latex(table, caption="10 % of $x_1$ & more", label="tab:a")
    assert r"\caption{10 \% of \$x\_1\$ \& more}" in tex
    assert r"\begin{tabular}{lrrrrrrrr}" in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 4
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {8}
    assert r"a\_b|c & 56.12{\scriptsize $\pm$0.12} & " in tex
    assert r"\textbf{4.39{\scriptsize $\pm$0.01}}" in tex
    assert len(re.findall(r"(?<!\\)\{", tex)) == len(re.findall(r"(?<!\\)\}", tex))
    assert tex.count("toprule") == tex.count("midrule") == tex.count("bottomrule") == 1


def test_published_numbers_stand_below_the_measured_ones():
    methods = report.grouped(make_rows(scenarios=["random"], methods=["retrain", "finetune", "own"]))["random"]
    published = [
        {"method": "finetune", "acc_forget": [99.15, 0.46], "acc_retain": [99.84, 0.11], "mia": 3, "avg_gap": 3.74},
        {"method": "influence", "acc_forget": [98.08, 2.1], "avg_gap": None},
    ]
    table = report.comparison(methods, published)
    assert table.headers[:3] == ("Method", "", "Acc forget ↓ (%)")
    assert [[cell.text for cell in line[:2]] for line in table.lines] == [
        ["retrain", "here"],
        ["finetune", "here"],
        ["", "paper"],
        ["own", "here"],
        ["influence", "paper"],
    ]
    assert [(cell.text, cell.deviation) for cell in table.lines[1][2:]] == [
        *(("53.12", "±0.12"), ("53.13", "±0.12"), ("53.15", "±0.12"), ("53.16", "±0.12"), ("4.69", "±0.01"))
    ]
    dash = (report.DASH, "")
    assert [(cell.text, cell.deviation) for cell in table.lines[2][2:]] == [
        *(("99.15", "±0.46"), ("99.84", "±0.11"), dash, ("3.00", ""), ("3.74", ""))
    ]
    assert [(cell.text, cell.deviation) for cell in table.lines[4][2:]] == [("98.08", "±2.10"), *[dash] * 4]
    with pytest.raises(InputError, match="published mia of finetune is 'high'"):
        report.comparison(methods, [{"method": "finetune", "mia": "high"}])


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


def test_results_are_read_back_or_refused(tmp_path):
    path = tmp_path / "results.json"
    report.write_results(path, make_document())
    assert report.read_results(path) == make_document()
    with pytest.raises(InputError, match=r"cannot be read \(No such file.*\)"):
        report.read_results(tmp_path / "other.json")
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "an object with rows, config, versions, machine"),
        ('{"rows": [], "config": {}}', "an object with rows, config, versions, machine"),
        ('{"rows": [1], "config": {}, "versions": {}, "machine": {}}', "a list of objects"),
        ('{"rows": [], "config": [], "versions": {}, "machine": {}}', "an object as config"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            report.read_results(path)


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
        ({"config": {1: 2}}, "has the key 1, which JSON cannot hold"),
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
    with pytest.raises(InputError, match=f"but lack {key}; add"):
        report.write_results(tmp_path / "results.json", document)


def test_a_crash_while_writing_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("old")

    def crash(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match=r"No space left on device.*results\.json"):
        report.write_results(path, make_document())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_results_from_before_commits_were_recorded_say_so():
    old = {"rows": [], "config": {}, "versions": {}, "machine": {}}
    assert report.environment_of(old)["made by"] == {"code": "commit not recorded"}
    assert report.environment_of(make_document())["made by"]["date"]


def test_results_whose_numbers_were_computed_again_name_both_codes():
    made = {"code": "000000000001"}
    again = report.environment_of(make_document(made_by=made, analysed_by={"code": "000000000002"}))
    assert list(again) == ["made by", "analysed by", "versions", "machine"]
    assert (again["made by"], again["analysed by"]) == (made, {"code": "000000000002"})
    assert "analysed by" not in report.environment_of(make_document())


def test_environment_says_what_ran_and_not_where(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    environment = report.environment()
    packages = {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn"}
    assert set(environment["versions"]) == packages
    assert all(re.match(r"\d+\.\d+", version) for version in environment["versions"].values())
    assert set(environment["machine"]) == {"backend", "device", "devices", "cores", "platform"}
    assert set(environment["made_by"]) == {"code", "version", "command", "date"}
    for place in {Path.home(), Path(report.__file__).parents[2]} - {Path("/")}:
        assert str(place) not in json.dumps(environment)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert report.environment()["machine"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


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


@pytest.mark.filterwarnings("error")
def test_dollars_and_long_names_stay_readable_in_plots():
    rows = make_rows(scenarios=["random"], methods=["retrain", r"$\bad{$", "m" * 80])
    for figure in (report.gap_figure(rows), report.panels_figure(rows), report.curves_figure({r"$\bad{$": [1.0]})):
        text = report.figure_svg(figure)
        assert r">$\bad{$<" in text
        assert "m" * 34 not in text


def test_figures_need_something_to_show():
    with pytest.raises(InputError, match="avg_gap"):
        report.gap_figure(make_rows(methods=["retrain"]))
    with pytest.raises(InputError, match="no rows"):
        report.panels_figure([])
    with pytest.raises(InputError, match="no histories"):
        report.curves_figure({})
    with pytest.raises(InputError, match=r"'loss' has shape .*; give a list"):
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
    # "The number at the end of each curve is its last value", and not the mean of its last stretch.
    written = [axes.texts[0].get_text() for axes in figure.axes]
    assert written == ["3", f"{long[-1]:.3g}".replace("-", "\N{MINUS SIGN}")]


def test_sweep_figure_joins_means_by_value_and_shows_the_retrained_ones():
    figure = report.sweep_figure(sweep_rows(), "fraction")
    accuracy, mia = figure.axes
    forget, *_ = [line for line in accuracy.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(forget.get_xydata(), [[0, 0.53], [1, 0.8], [2, 3.5]])  # by value, not as they came
    assert [tick.get_text() for tick in mia.get_xticklabels()] == ["0.003", "0.03", "0.3"]
    dashed = [line.get_ydata()[0] for line in accuracy.lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx([50.0625, 50.0725, 50.0825])
    assert len({line.get_marker() for line in (*accuracy.lines, *mia.lines)} - {"None"}) == 4
    with pytest.raises(InputError, match="sweep of 'epochs'"):
        report.sweep_figure(sweep_rows(), "epochs")


def test_pictures_draw_sweeps_over_their_values_and_leave_them_out_elsewhere():
    shown = {picture.name: picture.figure for picture in report.row_pictures(sweep_rows())}
    assert list(shown) == ["gap", "numbers", "sweep-fraction", "sweep-forget_weight"]
    assert [tick.get_text() for tick in shown["gap"].axes[0].get_yticklabels()] == ["scissorhands"]
    only = [row for row in sweep_rows() if "sweep" in row or row["method"] == "retrain"]
    assert [picture.name for picture in report.row_pictures(only)] == ["sweep-fraction", "sweep-forget_weight"]


def gradcam_arguments(**changes):
    """Two networks on three images, the first of which is to be forgotten."""
    rng = np.random.default_rng(0)
    arguments = {
        "images": rng.random((3, 4, 6, 3)),
        "maps": {"original": rng.random((3, 4, 6)), "retrain": np.zeros((3, 4, 6))},
        "num_forget": 1,
        "labels": np.array([0, 1, 1]),
        "logits": {"original": np.array([[2.0, 0], [0, 2], [2, 0]]), "retrain": np.array([[0, 9.0], [0, 9], [0, 9]])},
        "class_names": ["a$t", "dog"],
    }
    return arguments | changes


def test_gradcam_figure_has_a_row_per_image_and_a_column_per_network():
    figure = report.gradcam_figure(**gradcam_arguments())
    forget, retain = figure.subfigs
    assert [part._suptitle.get_text() for part in (forget, retain)] == ["Forget set", "Retain set"]
    assert [axes.get_title() for axes in forget.axes] == ["image", "original", "retrain"]
    assert len(forget.axes) == 3
    assert len(retain.axes) == 6
    # confidence of two logits 2 apart: 1 / (1 + exp(-2)) = 88 %
    assert [axes.get_xlabel() for axes in forget.axes] == ["a$t", "a$t\n88 %", "dog\n100 %"]
    assert [axes.get_xlabel() for axes in retain.axes[3:]] == ["dog", "a$t\n88 %", "dog\n100 %"]
    assert not any(axes.xaxis.label.get_parse_math() for axes in forget.axes), "a dollar sign begins no formula"
    wrong, right = (axes.xaxis.label.get_color() for axes in retain.axes[4:])
    assert wrong != right
    np.testing.assert_array_equal(forget.axes[0].images[0].get_array(), gradcam_arguments()["images"][0])
    assert report.figure_png(figure).startswith(b"\x89PNG")


def test_gradcam_overlay_is_brighter_where_the_map_is_hot():
    heat = np.zeros((1, 4, 6))
    heat[0, 1, 2] = 1
    for images in (np.full((1, 4, 6, 1), 128, np.uint8), np.full((1, 4, 6, 3), 0.5)):
        figure = report.gradcam_figure(images, {"n": heat}, num_forget=1, labels=np.array([0]))
        (part,) = figure.subfigs
        drawn = part.axes[1].images[0].get_array().sum(-1)
        assert np.unravel_index(drawn.argmax(), drawn.shape) == (1, 2)
        assert len(np.unique(drawn.round(6))) == 2
        assert part.axes[1].get_xlabel() == ""
        assert part.axes[0].get_xlabel() == "0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": {}}, "there are maps of no network"),
        ({"num_forget": 4}, "for 3 images .* num_forget=4; give maps, 3 labels and 0 to 3 forget images"),
        ({"labels": np.zeros(2, int)}, r"labels of shape \(2,\)"),
        ({"maps": {"original": np.zeros((3, 4, 4))}}, r"maps of 'original' have shape \(3, 4, 4\)"),
        ({"logits": {"original": np.zeros((3, 2))}}, "maps are of original, retrain, but logits of original"),
        ({"logits": {"original": np.zeros((2, 2)), "retrain": np.zeros((3, 2))}}, r"logits have shape \(2, 2\)"),
        ({"images": np.zeros((3, 4, 6, 2))}, r"images have shape \(3, 4, 6, 2\)"),
        ({"images": np.full((3, 4, 6, 3), 255.0)}, "pixels lie between 255 and 255"),
    ],
)
def test_gradcam_figure_refuses_what_does_not_belong_together(changes, message):
    with pytest.raises(InputError, match=message):
        report.gradcam_figure(**gradcam_arguments(**changes))


def test_png_is_reproducible_and_as_large_as_asked():
    figure = report.gap_figure(make_rows(scenarios=["random"]))
    content = report.figure_png(figure, dpi=100)
    assert content == report.figure_png(report.gap_figure(make_rows(scenarios=["random"])), dpi=100)
    width = int.from_bytes(content[16:20], "big")
    assert width == round(100 * figure.get_figwidth())


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
        "answer": "It forgot.",
        "explanations": [report.Section("What was done", ["Something.", "Something else."])],
        "figures": [*report.row_pictures(rows), report.curves_picture({"loss": [3.0, 2.0, 1.0]})],
        "settings": {"seed": 0, "method": {"optimizer": {"lr": 0.005}, "rank": None, "widths": [64, 10]}},
        "environment": report.environment(),
    }
    path = tmp_path / "report.html"
    report.write_html(path, report.Page(rows=rows, **(arguments | changes)))
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
        "[4.66, 4.72]",
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


def test_page_holds_pngs_as_data_under_their_own_heading(tmp_path):
    figure = report.gap_figure(make_rows(scenarios=["random"]))
    picture = report.Picture(figure, "caption", "alt <text>", heading="Where it looks", format="png")
    _, page = write_page(tmp_path, make_rows(), figures=[picture])
    (source,) = [value for name, value in page.attributes if name == "src"]
    prefix = "data:image/png;base64,"
    assert source.startswith(prefix)
    assert base64.b64decode(source.removeprefix(prefix)) == report.figure_png(figure)
    assert ("alt", "alt <text>") in page.attributes
    assert "Where it looks" in page.words
    assert "Over the run" not in page.words


def test_page_shows_hashes_further_numbers_and_relearning(tmp_path):
    rows = [
        row | {"relearn_epochs": 2, "mia_modified_entropy": 12.5, "acc_validation": 7.25, "compile_seconds": 20.5}
        for row in make_rows(scenarios=["random"])
    ]
    hashes = {"Networks": {"original": "ab" * 32}, "forget": "cd" * 32}
    _, page = write_page(tmp_path, rows, figures=[], hashes=hashes)
    assert ["original", "ab" * 32] in page.cells
    assert ["forget", "cd" * 32] in page.cells
    headers = {tuple(cells) for cells in page.cells if cells[0] == "Method"}
    further = ("Method", "MIA modified entropy ↑ %", "Acc validation ↑ %", "Compile ↓ s")
    assert further in headers
    assert ["finetune", "12.50±0.00", "7.25±0.00", "20.5±0.0"] in page.cells
    assert any("Relearn ↑ epochs" in cells and "Gap 95\N{NO-BREAK SPACE}% interval" in cells for cells in headers)
    assert any("Relearn ↑ epochs" in cells and "Seed" in cells for cells in headers)


def test_page_groups_the_settings_of_scenarios_and_methods(tmp_path):
    methods = {"salun": {"lr": 0.1, "departures": {"epsilon": 1}}, "finetune": {"lr": 0.2, "departures": {}}}
    settings = {"data": "digits", "scenarios": [{"name": "one class", "forget": ["class:1"], "methods": methods}]}
    text, page = write_page(tmp_path, make_rows(), figures=[], settings=settings)
    titles = re.findall(r"<h3>([^<]*)</h3>", text)
    assert titles[:3] == [
        "scenarios · one class",
        "scenarios · one class · methods · salun",
        "scenarios · one class · methods · finetune",
    ]
    for pair in (["data", "digits"], ["forget", "class:1"], ["lr", "0.1"], ["departures.epsilon", "1"], ["lr", "0.2"]):
        assert pair in page.cells
    assert "All" not in "".join(page.words)
    text, page = write_page(tmp_path, make_rows(), figures=[], settings={f"setting {i}": i for i in range(61)})
    assert "All 61" in page.words


def test_page_is_accessible(tmp_path):
    _, page = write_page(tmp_path, make_rows())
    assert ("lang", "en") in page.attributes
    assert ("name", "viewport") in page.attributes
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert any(re.fullmatch(r"Bar chart .* finetune 4\.69; scissorhands 4\.39\.", label) for label in labels)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)


@pytest.mark.filterwarnings("error")
def test_hostile_names_stay_text(tmp_path):
    rows = [row | {f"mia_{HOSTILE}": 1.0} for row in make_rows(scenarios=[HOSTILE], methods=["retrain", HOSTILE, "b"])]
    text, page = write_page(
        tmp_path,
        rows,
        title=HOSTILE,
        answer=HOSTILE,
        trust=HOSTILE,
        byline=HOSTILE,
        gates=[{"name": HOSTILE, "metric": "m", "passed": False, "explanation": HOSTILE}],
        sheets=[report.Sheet(HOSTILE, report.Grid((HOSTILE,), ((report.Cell(HOSTILE, HOSTILE),),)), [HOSTILE])],
        remarks=[report.Section(HOSTILE, [HOSTILE])],
        explanations=[report.Section(HOSTILE, [HOSTILE])],
        figures=[*report.row_pictures(rows), report.curves_picture({HOSTILE: [1.0, 2.0]})],
        settings={HOSTILE: HOSTILE, "group" + HOSTILE: {HOSTILE: [HOSTILE]}, "list": [{"name": HOSTILE, "a": 1}]},
        hashes={HOSTILE: HOSTILE},
    )
    assert "<script" not in text
    assert not {"onload", "onclick"} & {name for name, _ in page.attributes}
    shown = "".join(page.words)
    assert shown.count(HOSTILE.strip()) >= 24
    assert [HOSTILE, HOSTILE] in page.cells
    assert any(cells[0] == HOSTILE for cells in page.cells if len(cells) == 9)
    assert [HOSTILE, *["1.00±0.00"]] in [[cells[0], cells[-1]] for cells in page.cells]


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


def test_networks_without_a_retrained_one_are_drawn_before_and_after():
    rows = make_rows(scenarios=["random"], methods=["original", "scissorhands"], num_seeds=1)
    rows = [row | {"avg_gap": None, "rte": None, "mia": None} for row in rows]
    (picture,) = report.row_pictures(rows)
    assert picture.caption.startswith("What changed from original to scissorhands")
    (axes,) = picture.figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        f"Accuracy on the {part} set" for part in ("forget", "retain", "test")
    ]
    assert "50.0 → 53.0" in [text.get_text() for text in axes.texts]
    with pytest.raises(InputError, match=r"no row has one of acc_forget, .* to plot"):
        report.before_after_figure([{"scenario": "s", "method": "m"}])
    assert report.row_pictures([{"scenario": "s", "method": "m"}]) == []
    nothing = [row if row["method"] == "original" else {"scenario": "random", "method": "nothing"} for row in rows]
    assert next(text.get_text() for text in report.before_after_figure(nothing).axes[0].texts) == "50.0"


def test_a_metric_of_another_unit_has_a_scale_of_its_own():
    task = {"name": "counts", "metrics": [{"name": "nll", "title": "NLL", "better": "lower", "unit": "nats"}]}
    numbers = {"nll_forget": -0.001, "nll_retain": 0.4, "nll_test": 250.0, "mia": 0.0}
    rows = [{"scenario": "s", "method": method, "seed": 0, "task": task, **numbers} for method in ("original", "b")]
    (picture,) = report.row_pictures(rows)
    own, mia = picture.figure.axes
    assert [axes.get_xlabel() for axes in (own, mia)] == ["nats", "%"]
    assert [axes.get_xlim() for axes in (own, mia)] == [(-0.001, 250), (0, 100)]
    assert own.texts[0].get_text() == "0.00 → 0.00"
    assert own.get_yticklabels()[0].get_text() == "NLL on the forget set"
    assert "per cent" not in picture.caption


def test_a_run_of_one_step_has_a_point_at_a_whole_step():
    figure = report.curves_figure({"loss": [2.0]})
    (axes,) = figure.axes
    assert axes.lines[0].get_marker() == "o"
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_page_leads_with_the_result_and_leaves_out_what_has_nothing_to_show(tmp_path):
    rows = make_rows(scenarios=["random"], methods=["original", "scissorhands"], num_seeds=1)
    rows = [row | {"avg_gap": None, "rte": None} for row in rows]
    gates = [{"name": n, "metric": "m", "passed": None, "explanation": "needs a network"} for n in "ab"]
    pictures = report.row_pictures(rows)
    text, page = write_page(
        tmp_path, rows, leading=pictures, figures=[], gates=gates, trust=report.gates_summary(gates)
    )
    assert text.index("It forgot.") < text.index("<svg") < text.index("<table") < text.index("Something else.")
    assert text.count("needs a network") == 1
    assert "RTE" not in text
    assert text.count("MIA (membership inference attack)") == 1
    assert not any("Every seed" in words for words in page.words)


def test_the_sentence_of_a_table_names_the_closest_method():
    rows = make_rows(scenarios=["random"], methods=["retrain", "original", "finetune", "scissorhands"])
    said = report.closest_sentence(rows)
    assert said.startswith("random: scissorhands comes closest: 4.09 percentage points from the retrained network")
    assert said.endswith("the original network is 4.69 away.")
    floor = [row | {"method": report.REDRAWN, "avg_gap": 0.5} for row in rows if row["method"] == "finetune"]
    assert report.closest_sentence(rows + floor) == f"{said[:-1]}, and a second retrained network 0.50."
    (best,) = [line for line in report.scenario_grid(report.grouped(rows + floor)["random"]).lines if line[5].best]
    assert best[0].text == "scissorhands", "the floor is no method"
    assert "no retrained network" in report.closest_sentence([{"scenario": "s", "method": "m"}])


def test_a_method_that_diverged_in_some_runs_is_not_the_best_and_its_lost_runs_are_counted(tmp_path):
    rows = make_rows(scenarios=["random"], methods=["retrain", "original", "finetune", "scissorhands"])
    (kept, *lost) = [row for row in rows if row["method"] == "finetune"]
    assert lost
    some = [row | {"avg_gap": 0.1} if row is kept else row for row in rows if row not in lost]
    assert "finetune comes closest: 0.10" in report.closest_sentence(some), "a run that was not made is no failure"
    failures = [{"scenario": "random", "method": "finetune", "seed": row["seed"], "failure": "why"} for row in lost]
    some = report.with_lost_runs(some, failures)
    assert report.closest_sentence(some).startswith("random: scissorhands is 4.09 percentage points")
    (best,) = [line for line in report.scenario_grid(report.grouped(some)["random"]).lines if line[5].best]
    assert best[0].text == "scissorhands"
    note = report.failures_note({"rows": some, "failures": failures})
    assert note == (f"Runs that diverged, which no number counts: finetune in {len(lost)} of {len(lost) + 1} (random).")
    assert report.failures_note({"rows": rows, "failures": []}) == report.failures_note({"rows": rows}) == ""
    assert report.failures_section({"rows": rows}) == []
    shown = report.Page(title="t", answer="a", remarks=report.failures_section({"rows": some, "failures": failures}))
    report.write_html(tmp_path / "page.html", shown)
    assert note in (tmp_path / "page.html").read_text()


def test_a_metric_whose_name_begins_with_another_stands_in_its_own_column_alone():
    metrics = [
        {"name": "err", "title": "Error", "better": "lower", "unit": "%"},
        {"name": "err_free", "title": "Free of errors", "better": "higher", "unit": "pts"},
    ]
    fields = {f"{name}_{part}": 1.0 for name in ("err", "err_free") for part in ("forget", "retain", "test")}
    row = {"scenario": "s", "method": "original", "seed": 0, "task": {"name": "own", "metrics": metrics}, **fields}
    columns = rows_module.further_columns({"original": [row]})
    assert [(column.field, column.header) for column in columns] == [
        ("err_free_forget", "Free of errors forget ↓"),
        ("err_free_retain", "Free of errors retain ↑"),
        ("err_free_test", "Free of errors test ↑"),
    ]
