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


@pytest.mark.parametrize(("page", "words"), SENTENCES, ids=[words[:40] for _, words in SENTENCES])
def test_numbers_in_sentences_are_those_of_the_results(page, words):
    text = " ".join((findings.ROOT / page).read_text(encoding="utf-8").split())
    assert words in text, f"by the results {page} says: {words}"
