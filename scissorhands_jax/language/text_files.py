"""Files of questions and answers, or of texts: a JSON object on each line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scissorhands_jax import reading
from scissorhands_jax.errors import InputError

TEMPLATE = "Question: {question}\nAnswer:"
"""How a question is put to a network by default."""
_QUESTION = "{question}"
_FORMS = "'question' and 'answer', 'prompt' and 'completion', or 'text'"


class TextExample(NamedTuple):
    """What a network is asked, and what it is to say or to forget."""

    line: int
    """The line of the file, counted from 1."""
    prompt: str
    """What stands before the answer; empty for a text."""
    answer: str
    """With the blank that it begins with, if any."""
    paraphrase: str | None = None
    """The right answer in other words, in the form of `answer`, where the file has it."""
    wrong: tuple[str, ...] = ()
    """Wrong answers, in the form of `answer`, where the file has them."""
    question: str = ""
    """The question without its template, where there is one."""

    @property
    def shown(self) -> str:
        """The beginning of the example, for messages."""
        return repr(" ".join((self.question or self.prompt or self.answer).split())[:60])


def read_text_examples(path: Path, *, template: str = TEMPLATE) -> list[TextExample]:
    """Reads a file of examples.

    A line has `question` and `answer` (and, as TOFU's files, perhaps `paraphrased_answer` and a list
    `perturbed_answer`), `prompt` and `completion`, or `text`; other entries are ignored. Prompts and completions follow
    each other as they are, and an answer follows the question in its template after a blank, unless the template ends
    with a blank or a new line.

    Args:
      path: The file.
      template: How a question is asked, with `{question}` in its place.

    Raises:
      InputError: The file is missing, empty or damaged, or a line is none of these, or an answer is empty.
    """
    if _QUESTION not in template:
        raise InputError(f"the template {template[:60]!r} has no {_QUESTION}; put it where the question is to stand")
    try:
        lines = reading.read_lines(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; name a file of JSON lines") from error
    except ValueError as error:
        raise InputError(f"cannot read {path}: {error}; name a file of JSON lines in UTF-8") from error
    examples = [_example(path, number, line, template) for number, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise InputError(f"{path} has no examples; write a JSON object with {_FORMS} on each line")
    return examples


def _example(path: Path, number: int, line: str, template: str) -> TextExample:
    where = f"{path}, line {number}"
    try:
        entries = reading.parse_json(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); write a JSON object with {_FORMS} on each line") from error
    if not isinstance(entries, dict):
        raise InputError(f"{where} is no JSON object; write one with {_FORMS} on each line")
    if "question" in entries and "answer" in entries:
        blank = "" if template[-1].isspace() else " "
        question = _text(where, entries, "question")
        paraphrase, wrong = entries.get("paraphrased_answer"), entries.get("perturbed_answer", [])
        if not isinstance(wrong, list) or not all(isinstance(text, str) and text.strip() for text in wrong):
            raise InputError(f"{where} has 'perturbed_answer' that is no list of texts; take TOFU's own file")
        return TextExample(
            number,
            template.replace(_QUESTION, question),
            blank + _text(where, entries, "answer"),
            None if paraphrase is None else blank + _text(where, entries, "paraphrased_answer"),
            tuple(blank + text for text in wrong),
            question,
        )
    if "prompt" in entries and "completion" in entries:
        return TextExample(number, _text(where, entries, "prompt"), _text(where, entries, "completion"))
    if "text" in entries:
        return TextExample(number, "", _text(where, entries, "text"))
    found = ", ".join(map(repr, list(entries)[:6])) or "nothing"
    raise InputError(f"{where} has {found}; write {_FORMS} on each line")


def _text(where: str, entries: Mapping[str, Any], name: str) -> str:
    value = entries[name]
    if not isinstance(value, str):
        raise InputError(f"{where} has {str(value)[:40]!r} as {name!r}, which is no text; put it between quotes")
    if not value.strip():
        raise InputError(f"{where} has an empty {name!r}; leave the line out or complete it")
    return value


def check_disjoint(forget: tuple[Path, Sequence[TextExample]], retain: tuple[Path, Sequence[TextExample]]) -> None:
    """Refuses files that share examples, which would be forgotten and kept at the same time.

    Args:
      forget: The file of what is to be forgotten, and its examples.
      retain: The file of what is to be kept, and its examples.

    Raises:
      InputError: An example is in both, apart from blanks and capitals; the message names up to three.
    """
    kept = {_content(example): example for example in retain[1]}
    both = [(example, kept[_content(example)]) for example in forget[1] if _content(example) in kept]
    if both:
        named = ", ".join(f"line {one.line} = line {other.line} ({one.shown})" for one, other in both[:3])
        more = f" and {len(both) - 3} more" if len(both) > 3 else ""
        raise InputError(
            f"{forget[0]} and {retain[0]} share {len(both)} {'example' if len(both) == 1 else 'examples'}: "
            f"{named}{more}; remove them from one of the files"
        )


def _content(example: TextExample) -> tuple[str, str]:
    prompt, answer = (" ".join(text.split()).casefold() for text in (example.prompt, example.answer))
    return prompt, answer
