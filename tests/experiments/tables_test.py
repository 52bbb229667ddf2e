"""The rendered tables: the paper's numbers as printed, ours above them, and files that are whole."""

import json
import re

import numpy as np
import pytest
from scipy import stats

from experiments import tables
from scissorhands_jax import report
from scissorhands_jax.metrics import distances
from tests.report.page_test import make_rows, sweep_rows

PAPER = json.loads(tables.PAPER.read_text(encoding="utf-8"))["tables"]
# Of this row the paper's Avg. Gap does not follow from its own numbers (the file's note says so).
MISPRINTED = {("table1_svhn", "l1_sparse")}


def means(row):
    return {field: row[field][0] for field in distances.GAP_FIELDS}


@pytest.mark.parametrize("key", PAPER)
def test_numbers_of_the_paper_give_its_own_gaps(key):
    table = PAPER[key]
    reference = next(row for row in PAPER[table.get("retrain", key)]["rows"] if row["method"] == "retrain")
    methods = [row["method"] for row in table["rows"]]
    assert len(set(methods)) == len(methods)
    for row in table["rows"]:
        assert set(row) == {"method", "avg_gap", *distances.GAP_FIELDS}
        if row["method"] == "retrain":
            assert row["avg_gap"] is None
            continue
        # Numbers are printed with two digits: four of each add up to an error of 0.01, and the gap is rounded, too.
        follows = abs(distances.average_gap(means(row), means(reference)) - row["avg_gap"]) < 0.011
        assert follows == ((key, row["method"]) not in MISPRINTED), row


def test_tables_one_and_two_have_every_method_of_the_paper():
    for key in PAPER:
        if not key.startswith("table3"):
            assert [row["method"] for row in PAPER[key]["rows"]] == [
                *("retrain", "finetune", "gradient_ascent", "influence", "boundary_expand", "boundary_shrink"),
                *("l1_sparse", "salun", "scissorhands"),
            ]


def test_the_table_in_the_findings_is_that_of_the_results(capsys):
    path = tables.RESULTS / "cifar10_small" / "results.json"
    assert tables.main([str(path), "--brief"]) == 0
    shown = capsys.readouterr().out
    assert shown in (tables.RESULTS.parent / "README.md").read_text(encoding="utf-8")
    names = [line.split(" | ")[0].strip("| ") for line in shown.splitlines()[2:]]
    assert names[:4] == ["original", "retrain", "retrained, drawn again", "scissorhands"]
    assert names[-1] == "boundary\\_expand"


ABLATIONS = {
    "no projection": "no projection",
    "re-initialised from a normal distribution": "normal",
    "with zeros": "zeros",
    "with ones": "ones",
    "with ones, no projection": "ones, no projection",
}


def test_the_ablations_in_the_findings_are_those_of_the_results():
    """The differences are paired by seed, with Student's intervals; two digits, or none above ten points."""
    document = report.read_results(tables.RESULTS / "cifar10_ablation_small" / "results.json")
    gaps = {}
    for row in document["rows"]:
        gaps.setdefault(row["method"].removeprefix("scissorhands, "), []).append(row["avg_gap"])
    findings = (tables.RESULTS.parent / "README.md").read_text(encoding="utf-8")
    base = np.array(gaps["scissorhands"])
    assert len(base) == 5
    assert f"| Avg. Gap of Scissorhands ({base.mean():.2f}) |" in findings
    for title, name in ABLATIONS.items():
        differences = np.array(gaps[name]) - base
        low, high = stats.t.interval(0.95, len(base) - 1, differences.mean(), stats.sem(differences))
        digits, place = (2, 2) if differences.mean() < 10 else (0, 1)
        numbers = [f"{number:.{digits}f}" for number in (differences.mean(), low, high)]
        line = "| {} | {:.{place}f} | {} [{}, {}] |".format(title, np.mean(gaps[name]), *numbers, place=place)
        assert line in findings
    for title, setting, values in (
        ("fraction", "fraction", "0.003, 0.01, 0.03, 0.1, 0.3"),
        ("lambda", "forget_weight", "0, 0.01, 0.05, 0.2, 0.5"),
        ("scored share of the forget set", "saliency_share", "0.03, 0.1, 0.3"),
    ):
        means = ", ".join(f"{np.mean(gaps[f'{setting} {value}']):.1f}" for value in values.split(", "))
        assert re.search(rf"\| {title} {re.escape(values)} \(here [0-9.]+\) \| {re.escape(means)} \|", findings)


def test_a_brief_table_of_an_audit_is_refused(capsys):
    assert tables.main([str(tables.RESULTS / "cifar10_audit_small" / "results.json"), "--brief"]) == 2
    assert "is of an audit" in capsys.readouterr().err


def write(folder, rows, config):
    path = folder / "results.json"
    report.write_results(path, {"rows": rows, "config": config, **report.environment()})
    return path


def test_rendered_folder_has_tables_beside_the_paper_and_every_plot(tmp_path):
    rows = [row | {"avg_gap": None} for row in sweep_rows()[:6]]
    path = write(tmp_path / "ablation", rows, {"experiment": "my_ablation", "paper_table": "table3_ablation"})
    assert tables.main([str(path), "--out", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out" / "ablation"
    text = (folder / "tables.md").read_text(encoding="utf-8")
    assert text.startswith("# my\\_ablation\n\n## random\n\n| Method | Acc forget")
    # 3 points from the retrained network in all four numbers of both seeds, also where the row does not say so
    assert re.search(r"\| scissorhands \| 53.06 ±0.09 \| .* \| \*{0,2}3.00 ±0.00\*{0,2} \|", text)
    assert "Student's interval of the mean Avg. Gap over seeds" in text
    assert "Table 3 of the paper: Projection and initialisation" in text
    beside = text.partition("### Compared with the paper")[2]
    assert "| scissorhands | here | 53.06 ±0.09 |" in beside
    assert "|  | paper | 95.40 ±1.48 | 98.93 ±0.57 | 92.92 ±0.48 | 9.56 ±2.13 | 1.62 |" in beside
    assert "| scissorhands, zeros | paper | 96.10 ±2.05 |" in beside
    assert "fraction" not in beside.partition("![")[0]  # what is swept has no counterpart in the paper's table
    plots = set(re.findall(r"\]\(([\w.-]+)\.svg\)", text))
    assert plots == {"random-gap", "random-numbers", "random-sweep-fraction"}
    assert {file.name for file in folder.iterdir()} == {
        *("tables.md", "tables.tex"),
        *(f"{plot}.{kind}" for plot in plots for kind in ("svg", "png")),
    }
    tex = (folder / "tables.tex").read_text(encoding="utf-8")
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 2
    assert re.findall(r"\\label\{(.*)\}", tex) == ["tab:my_ablation-random", "tab:my_ablation-random-paper"]
    assert r"& paper & 95.40{\scriptsize $\pm$1.48}" in tex


def test_results_say_which_code_made_them_or_that_nobody_knows(tmp_path):
    """Results in the repository may be older than the record of commits, and cells can be of several commits."""
    old = json.loads((tables.RESULTS / "demo" / "results.json").read_text(encoding="utf-8"))
    old.pop("made_by", None)
    old.pop("code", None)
    tables.render(old, tmp_path, "demo")
    assert (tmp_path / "tables.md").read_text(encoding="utf-8").endswith("## Made by\n\nThe commit was not recorded.\n")
    made = {
        "code": "0123456789ab",
        "command": "python -m experiments.run --config demo",
        "date": "2030-01-01T00:00:00Z",
    }
    note = "The cells were made by 2 states of the code, which may give other numbers. x: a; y: b."
    tables.render(old | {"made_by": made, "code": note}, tmp_path, "demo")
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert f"{note} Last written by: {', '.join(made.values())}.\n" in text


def test_results_without_a_counterpart_stand_alone_beside_their_file(tmp_path, monkeypatch):
    rows = report.with_gaps([row | {"avg_gap": None} for row in make_rows(scenarios=["a 10 %"], num_seeds=1)])
    path = write(tmp_path / "lonely", rows, {"experiment": "lonely", "lr": 0.1})
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "row_pictures", lambda rows: [])
    assert tables.main([]) == 0
    text = (path.parent / "tables.md").read_text(encoding="utf-8")
    assert text.startswith("# lonely\n\n## a 10 %\n")
    assert "One seed." in text
    assert "paper" not in text
    assert {file.name for file in path.parent.iterdir()} == {"results.json", "tables.md", "tables.tex"}


def test_by_default_every_experiment_is_rendered_or_none_and_nothing_else(tmp_path, monkeypatch, capsys):
    rows = report.with_gaps([row | {"avg_gap": None} for row in make_rows(scenarios=["a 10 %"], num_seeds=1)])
    paths = [write(tmp_path / name, rows, {"experiment": name}) for name in "ab"]
    write(tmp_path / "run", rows, {})
    (tmp_path / "tofu").mkdir()
    (tmp_path / "tofu" / "results.json").write_text(json.dumps({"settings": {}, "rows": []}))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "row_pictures", lambda rows: [])
    whole = paths[1].read_text()
    paths[1].write_text(json.dumps(json.loads(whole) | {"config": {"experiment": "b", "paper_table": "table9"}}))
    assert tables.main([]) == 2
    assert "the paper has no table 'table9'" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("*/tables.*"))
    paths[1].write_text(whole)
    assert tables.main([]) == 0
    assert {path.parent.name for path in tmp_path.glob("*/tables.md")} == {"a", "b"}


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({"paper_table": "table9"}, {}, "the paper has no table 'table9' here; paper_table is one of table1_cifar10,"),
        ({}, {"avg_gap": 50.0}, "row 1 has an avg_gap of 50.0, but its numbers give 3.0"),
        ({}, {"mia": "high"}, "mia must be a finite number or None, got 'high'"),
        ({}, {"method": None}, "row 1 has the method None; give text"),
    ],
)
def test_results_that_cannot_be_rendered_are_refused_in_one_sentence(tmp_path, capsys, config, change, message):
    rows = make_rows(scenarios=["random"], methods=["retrain", "finetune"], num_seeds=1)
    path = write(tmp_path / "run", [rows[0], rows[1] | {"avg_gap": None} | change], config)
    assert tables.main([str(path)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_missing_and_ambiguous_files_are_refused(tmp_path, capsys, monkeypatch):
    assert tables.main([str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    paths = [write(tmp_path / parent / "run", make_rows(), {}) for parent in "ab"]
    assert tables.main([*map(str, paths), "--out", str(tmp_path / "out")]) == 2
    assert "two of the files lie in folders of one name" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "nothing")
    assert tables.main([]) == 2
    assert "holds no results" in " ".join(capsys.readouterr().err.split())
