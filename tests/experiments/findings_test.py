"""Tables and numbers on pages in words are those of the committed results."""

import re

import pytest

from experiments import findings

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
