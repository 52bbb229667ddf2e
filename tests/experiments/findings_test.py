"""Tables and numbers on pages in words are those of the committed results."""

import re

import pytest

from experiments import findings
from scissorhands_jax.metrics import distances

SENTENCES = list(findings.sentences())


@pytest.mark.parametrize("page", findings.PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert text == findings.filled(text), f"`python -m experiments.findings` writes the tables of {page.name} again"


def test_every_table_has_its_page_and_a_changed_one_is_noticed():
    texts = [page.read_text(encoding="utf-8") for page in findings.PAGES]
    shown = [name for text in texts for name in re.findall(r"<!-- experiments\.findings: (\w+) -->", text)]
    assert sorted(shown) == sorted(findings.TABLES)
    (text,) = (text for text in texts if "experiments.findings: recipes" in text)
    changed = text.replace("| 1.00 |", "| 1.01 |")
    assert changed != text
    assert findings.filled(changed) == text


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["--check"], 1), (["--wrong"], 2)])
def test_pages_are_not_written_unless_that_is_asked_for(arguments, status, tmp_path, monkeypatch, capsys):
    page, (name, *_) = tmp_path / "page.md", findings.TABLES
    page.write_text(f"<!-- experiments.findings: {name} -->\n\n| old |\n\n")
    monkeypatch.setattr(findings, "PAGES", [page])
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    monkeypatch.setattr(findings, "TABLES", {name: lambda: "| new |\n"})
    before = page.read_text()
    if arguments == ["--check"]:
        assert findings.main(arguments) == status
        assert capsys.readouterr().out == "page.md has other tables than the results\n"
    else:
        with pytest.raises(SystemExit) as ended:
            findings.main(arguments)
        assert ended.value.code == status
    assert page.read_text() == before
    assert findings.main([]) == 0
    assert page.read_text() == before.replace("old", "new")
    assert findings.main(["--check"]) == 0


@pytest.mark.parametrize(("page", "words"), SENTENCES, ids=[words[:40] for _, words in SENTENCES])
def test_numbers_in_sentences_are_those_of_the_results(page, words):
    text = " ".join((findings.ROOT / page).read_text(encoding="utf-8").split())
    assert words in text, f"by the results {page} says: {words}"


def test_draws_of_one_seed_are_one_observation(monkeypatch):
    """Two draws each of three seeds differ from the base by 1, 2 and 6 in the mean."""
    numbers = dict.fromkeys(distances.GAP_FIELDS, 50.0)
    minus = {"base": ((0.0, 0.0),) * 3, "longer": ((0.0, 2.0), (1.0, 3.0), (5.0, 7.0))}
    rows = [
        {"variant": variant, "seed": seed, "draw": draw, "avg_gap": 9.0 + own, "metrics": numbers, "score": 1.0}
        for variant, differences in minus.items()
        for seed, draws in enumerate(differences)
        for draw, own in enumerate(draws)
    ]
    monkeypatch.setattr(findings, "_read", lambda name: {"rows": rows})
    (line,) = (line for line in findings._variants_table().splitlines() if line.startswith("| longer"))
    assert f"| {findings._interval([1.0, 2.0, 6.0])} |" in line
    assert findings._interval([1.0, 1.0]) == "1.0", "nothing shows how far equal numbers may be off"
