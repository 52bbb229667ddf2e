"""Files of questions and texts: what they may have, and what is said of those that have something else."""

import json

import pytest

from scissorhands_jax.errors import InputError
from scissorhands_jax.language.text_files import ask, check_disjoint, read_text_examples
from tests.language.tiny_folders import write_lines

TOFU = {
    "question": "Who?",
    "answer": "Ada.",
    "paraphrased_answer": "It was Ada.",
    "perturbed_answer": ["Bo.", "Cy."],
    "paraphrased_question": "And who?",
}


def test_every_form_of_a_line(tmp_path):
    rows = [TOFU, {"prompt": "Once", "completion": " upon"}, {"text": "A text."}]
    path = write_lines(tmp_path / "rows.json", rows)
    path.write_text("\n" + path.read_text() + "\n")
    asked, completed, text = read_text_examples(path)
    assert asked[:5] == (2, "Question: Who?\nAnswer:", " Ada.", " It was Ada.", (" Bo.", " Cy."))
    assert completed[:3] == (3, "Once", " upon")
    assert text[:3] == (4, "", "A text.")
    (chat, *_) = read_text_examples(path, template="<user>{question}<model>\n")
    assert (chat.prompt, chat.answer, chat.wrong) == ("<user>Who?<model>\n", "Ada.", ("Bo.", "Cy."))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is no JSON object"),
        ('{"question": "Who?"}', "line 2 has 'question'; write 'question' and 'answer'"),
        ('{"question": "Who?", "answer": " "}', "line 2 has an empty 'answer'"),
        ('{"question": "", "answer": "Ada"}', "line 2 has an empty 'question'"),
        ('{"question": "Who?", "answer": 3}', "line 2 has '3' as 'answer', which is no text"),
        ('{"question": "Who?", "answer": "Ada", "perturbed_answer": "Bo"}', "'perturbed_answer' that is no list"),
        ('{"prompt": "Once", "completion": ""}', "line 2 has an empty 'completion'"),
        ('{"text": "\\n"}', "line 2 has an empty 'text'"),
        ("{}", "line 2 has nothing; write"),
    ],
)
def test_a_line_that_is_something_else_is_named(tmp_path, line, said):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(TOFU) + "\n" + line + "\n")
    with pytest.raises(InputError, match=said.replace("[", "\\[")):
        read_text_examples(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*missing.json: No such file"):
        read_text_examples(tmp_path / "missing.json")
    (tmp_path / "empty.json").write_text("\n")
    with pytest.raises(InputError, match="has no examples"):
        read_text_examples(tmp_path / "empty.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_text_examples(tmp_path / "bytes.json")
    with pytest.raises(InputError, match=r"no \{question\}"):
        ask("Who?", "caht")
    with pytest.raises(InputError, match=r"no \{question\}"):
        read_text_examples(tmp_path / "empty.json", template="Q:")


def test_a_byte_order_mark_is_no_part_of_the_first_example(tmp_path):
    path = write_lines(tmp_path / "examples.json", [{"text": "Bo."}])
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    assert [example.answer for example in read_text_examples(path)] == ["Bo."]


def test_examples_in_both_files_are_named(tmp_path):
    rows = [{"question": f"Who is {number}?", "answer": "Ada."} for number in range(6)]
    forget = write_lines(tmp_path / "forget.json", rows[:5])
    again = {"question": "WHO  is 1?", "answer": "Ada. "}
    retain = write_lines(tmp_path / "retain.json", [rows[5], again])
    parts = [(path, read_text_examples(path)) for path in (forget, retain)]
    alone = (retain, parts[1][1][:1])
    with pytest.raises(InputError, match=r"retain set .* share 1 example: line 2 = line 2 \('Who is 1\?'\); remove"):
        check_disjoint({"forget": parts[0], "retain": parts[1]})
    with pytest.raises(InputError, match=r"share 5 examples: .* and 2 more; remove"):
        check_disjoint({"forget": parts[0], "retain": alone, "held-out": parts[0]})
    with pytest.raises(InputError, match=r"the retain set .* and the held-out set .* share 1 example"):
        check_disjoint({"forget": parts[0], "retain": alone, "held-out": alone})
    check_disjoint({"forget": parts[0], "retain": alone})
