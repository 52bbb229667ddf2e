"""Chat templates: how a model that was trained on conversations is asked a question, as its folder says it.

A template is a program in Jinja's language that comes with the model, so it runs in Jinja's sandbox, in which it sees
what it is given and nothing of the process.

Reference:
  https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2 import ext, nodes, sandbox
from jinja2.parser import Parser

from scissorhands_jax import reading
from scissorhands_jax.errors import InputError

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
DAY = datetime.datetime(2024, 7, 26)
"""What `strftime_now` says is today, so that a question is asked tomorrow as it was today and a run that is resumed is
the same run. Llama 3's templates name this day where there is no clock."""
_MARK = "\ue000\ue001\ue000"  # of Unicode's private use area, so that it is in no text
_PLAIN = "ask with --template plain"


class Turn(NamedTuple):
    """What a template puts around an answer."""

    before: str
    """What the model is asked with: the question, and what says that the answer begins."""
    blank: str
    """Blanks between that and the answer, which are the beginning of the answer's first token."""
    after: str
    """Everything behind it, beginning with what ends it."""


class ChatTemplate:
    """How the model of a folder is asked.

    Args:
      source: The text of the template.
      tokens: The special tokens by their names, such as `bos_token`, which templates write.
      path: The file of the template, for messages.

    Raises:
      InputError: It is no template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], path: Path | str) -> None:
        self.source, self._tokens, self._path = source, dict(tokens), path
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # Besides errors of its own, Jinja raises those of Python's compiler.
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise InputError(
                f"the chat template in {path} is damaged ({_shown(error)}{line}); copy it again, or {_PLAIN}"
            ) from error

    def rendered(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        """A conversation as text.

        Args:
          messages: Each with its "role" and its "content".
          add_generation_prompt: Whether the beginning of an answer stands at the end.

        Raises:
          InputError: The template fails.
        """
        given = {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        try:
            return self._template.render({**self._tokens, **given})
        except Exception as error:  # What a template does may raise anything.
            raise InputError(f"the chat template in {self._path} fails ({_shown(error)}); {_PLAIN}") from error

    def turn(self, question: str) -> Turn:
        """What stands around the answer to a question.

        Raises:
          InputError: The template fails, or leaves answers out.
        """
        parts = self._answered(question, _MARK).split(_MARK)
        if len(parts) != 2:
            raise InputError(
                f"the chat template in {self._path} writes an answer {len(parts) - 1} times instead of once; {_PLAIN}"
            )
        before, after = parts
        asked = before.rstrip(" ")
        if asked != before:
            # What models are asked with may itself end with a blank.
            begun = self.rendered([{"role": "user", "content": question}], add_generation_prompt=True)
            asked = max(asked, begun, key=len) if before.startswith(begun) else asked
        return Turn(asked, before[len(asked) :], after)

    def check_keeps(self, question: str, turn: Turn, answer: str) -> None:
        """Refuses an answer that the template writes in other words, or around which it puts something else.

        Raises:
          InputError: The template fails, or does that.
        """
        if self._answered(question, answer) != f"{turn.before}{turn.blank}{answer}{turn.after}":
            raise InputError(
                f"the chat template in {self._path} does not keep the answer {' '.join(answer.split())[:60]!r} as it "
                f"is; {_PLAIN}, or change the answer"
            )

    def _answered(self, question: str, answer: str) -> str:
        return self.rendered([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def _shown(error: Exception) -> str:
    """What an error says, in one line."""
    said = str(getattr(error, "message", None) or error)
    return " ".join(said.split())[:120].rstrip(".") or type(error).__name__


def read_chat_template(folder: Path, description: Mapping[str, Any]) -> ChatTemplate | None:
    """The template of a folder, or None if it has none.

    It is that of `chat_template.jinja`; without this file that of `tokenizer_config.json`, which may have several by
    name, of which it is the one called "default".

    Args:
      folder: The folder of a model.
      description: What is in its `tokenizer_config.json`.

    Raises:
      InputError: It cannot be read, or is no template.
    """
    path, source = folder / TEMPLATE_FILE, description.get("chat_template")
    if path.is_file():
        try:
            source = reading.read_text(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); copy it again") from error
    else:
        path = folder / TOKENIZER_CONFIG_FILE
        if isinstance(source, list):
            named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
            source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise InputError(f"{path} has a chat template that is no text; copy it again")
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in description.items()
        if name.endswith("_token")
    }
    return ChatTemplate(source, {name: text for name, text in texts.items() if isinstance(text, str)}, path)


@functools.cache
def _environment() -> sandbox.ImmutableSandboxedEnvironment:
    """The language of templates: what is written for transformers comes out as there."""
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = DAY.strftime
    return environment


class _Generation(ext.Extension):
    """`{% generation %}` ... `{% endgeneration %}`, which mark answers for others and are what is between them."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # declared as a set, only ever read

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
