"""Files of questions and answers, or of texts: a JSON object on each line."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scissorhands_jax import reading
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.chat_templates import ChatTemplate

TEMPLATE = "Question: {question}\nAnswer:"
"""How a question is put to a network whose folder has no chat template."""
_QUESTION = "{question}"
_FORMS = "'question' and 'answer', 'prompt' and 'completion', or 'text'"


class TextPrompt(NamedTuple):
    """What a network is to go on with."""

    text: str
    is_whole: bool = False
    """Whether it has its special tokens, as chat templates write them; otherwise the tokenizer adds its own."""


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
    after: str | None = None
    """What a chat template puts behind the answer; None where no chat template was used."""

    @property
    def asked(self) -> TextPrompt:
        """The prompt as it is encoded."""
        return TextPrompt(self.prompt, self.after is not None)

    @property
    def shown(self) -> str:
        """The beginning of the example, for messages."""
        return repr(" ".join((self.question or self.prompt or self.answer).split())[:60])


def read_text_examples(path: Path, *, template: str | ChatTemplate = TEMPLATE) -> list[TextExample]:
    """Reads a file of examples.

    A line has `question` and `answer` (and, as TOFU's files, perhaps `paraphrased_answer` and a list
    `perturbed_answer`), `prompt` and `completion`, or `text`; other entries are ignored. Prompts and completions follow
    each other as they are, and an answer follows the question in its template after a blank, unless the template ends
    with a blank or a new line. A chat template is given questions and answers without the blanks around them.

    Blanks at the end of a prompt go to the answer: they are the beginning of its first token, and a network that is
    asked with them goes on from what it has never seen.

    Args:
      path: The file.
      template: How a question is asked, with `{question}` in its place, or the chat template of the model.

    Raises:
      InputError: The file is missing, empty or damaged, or a line is none of these, or an answer is empty; or the chat
        template fails or does not keep an answer.
    """
    if not isinstance(template, ChatTemplate):
        check_template(template)
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


def check_template(template: str) -> str:
    """Returns a template that is no chat template.

    Raises:
      InputError: It has no place for the question.
    """
    if _QUESTION not in template:
        raise InputError(f"the template {template[:60]!r} has no {_QUESTION}; put it where the question is to stand")
    return template


def ask(question: str, template: str | ChatTemplate) -> TextPrompt:
    """A question in its template.

    Raises:
      InputError: The template has no place for the question; or the chat template fails or leaves answers out.
    """
    if isinstance(template, ChatTemplate):
        return TextPrompt(template.turn(question).before, True)
    check_template(template)
    return TextPrompt(_split_blanks(template)[0].replace(_QUESTION, question))


def _split_blanks(prompt: str) -> tuple[str, str]:
    """A prompt without the blanks at its end, and these."""
    asked = prompt.rstrip(" ")
    return asked, prompt[len(asked) :]


def _example(path: Path, number: int, line: str, template: str | ChatTemplate) -> TextExample:
    where = f"{path}, line {number}"
    try:
        entries = reading.parse_json(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); write a JSON object with {_FORMS} on each line") from error
    if not isinstance(entries, dict):
        raise InputError(f"{where} is no JSON object; write one with {_FORMS} on each line")
    if "question" in entries and "answer" in entries:
        question, answer = _text(where, entries, "question"), _text(where, entries, "answer")
        paraphrase, wrong = entries.get("paraphrased_answer"), entries.get("perturbed_answer", [])
        paraphrase = None if paraphrase is None else _text(where, entries, "paraphrased_answer")
        if not isinstance(wrong, list) or not all(isinstance(text, str) and text.strip() for text in wrong):
            raise InputError(f"{where} has 'perturbed_answer' that is no list of texts; take TOFU's own file")
        if isinstance(template, ChatTemplate):
            return _chat_example(where, number, template, question.strip(), (answer, paraphrase, *wrong))
        asked, blank = _split_blanks(template)
        if not template[-1].isspace():
            blank = " "
        return TextExample(
            number,
            asked.replace(_QUESTION, question),
            blank + answer,
            None if paraphrase is None else blank + paraphrase,
            tuple(blank + text for text in wrong),
            question,
        )
    if "prompt" in entries and "completion" in entries:
        asked, blank = _split_blanks(_text(where, entries, "prompt"))
        return TextExample(number, asked, blank + _text(where, entries, "completion"))
    if "text" in entries:
        return TextExample(number, "", _text(where, entries, "text"))
    found = ", ".join(map(repr, list(entries)[:6])) or "nothing"
    raise InputError(f"{where} has {found}; write {_FORMS} on each line")


def _chat_example(
    where: str, number: int, template: ChatTemplate, question: str, texts: tuple[str | None, ...]
) -> TextExample:
    """An example from a question and its answers: the right one, its paraphrase if there is one, and wrong ones."""
    answers = [None if text is None else text.strip() for text in texts]
    try:
        turn = template.turn(question)
        for text in answers:
            if text is not None:
                template.check_keeps(question, turn, text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    right, paraphrase, *wrong = (None if text is None else turn.blank + text for text in answers)
    wrong_answers = tuple(text for text in wrong if text is not None)
    return TextExample(number, turn.before, right or "", paraphrase, wrong_answers, question, turn.after)


def _text(where: str, entries: Mapping[str, Any], name: str) -> str:
    value = entries[name]
    if not isinstance(value, str):
        raise InputError(f"{where} has {str(value)[:40]!r} as {name!r}, which is no text; put it between quotes")
    if not value.strip():
        raise InputError(f"{where} has an empty {name!r}; leave the line out or complete it")
    return value


def check_disjoint(sets: Mapping[str, tuple[Path, Sequence[TextExample]]]) -> None:
    """Refuses sets that share examples, which would be forgotten and kept, or trained on and held out.

    Args:
      sets: The file and the examples of each set, by its name.

    Raises:
      InputError: An example is in two sets, apart from blanks and capitals; the message names up to three.
    """
    for (name, (path, examples)), (other_name, (other_path, others)) in itertools.combinations(sets.items(), 2):
        there = {_content(example): example for example in others}
        both = [(example, there[_content(example)]) for example in examples if _content(example) in there]
        if both:
            named = ", ".join(f"line {one.line} = line {other.line} ({one.shown})" for one, other in both[:3])
            more = f" and {len(both) - 3} more" if len(both) > 3 else ""
            raise InputError(
                f"the {name} set {path} and the {other_name} set {other_path} share {len(both)} "
                f"{'example' if len(both) == 1 else 'examples'}: {named}{more}; remove them from one of the files"
            )


def _content(example: TextExample) -> tuple[str, str]:
    prompt, answer = (" ".join(text.split()).casefold() for text in (example.prompt, example.answer))
    return prompt, answer
