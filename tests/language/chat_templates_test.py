"""Chat templates: what transformers makes of them, where answers begin and end, and what is refused."""

import json

import pytest
import tokenizers

from experiments.language_parity import ASKED, CHATS, CHATS_FILE, SPECIAL, conversation
from scissorhands_jax.errors import InputError
from scissorhands_jax.language.chat_templates import ChatTemplate, read_chat_template
from scissorhands_jax.language.text_files import ask, read_text_examples
from scissorhands_jax.language.text_tokens import TextTokenizer, encode_examples
from tests.language.tiny_folders import WORDS, make_tokenizer, write_lines

RECORDED = json.loads(CHATS_FILE.read_text(encoding="utf-8"))["chats"]
TOKENIZER = TextTokenizer(make_tokenizer(), [WORDS.index("</s>")])
SIMPLE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


def chat(source):
    return ChatTemplate(source, SPECIAL, "the folder")


@pytest.mark.parametrize("name", CHATS)
def test_conversations_are_those_of_transformers(name):
    template = chat(CHATS[name])
    for (question, answer), recorded in zip(ASKED, RECORDED[name], strict=True):
        assert template.rendered(conversation(question, answer)) == recorded["text"]
        assert template.rendered(conversation(question), add_generation_prompt=True) == recorded["prompt"]
        turn = template.turn(question)
        template.check_keeps(question, turn, answer)
        assert turn.before + turn.blank + answer + turn.after == recorded["text"]
        # Asking begins with what the template puts before answers, which for "thoughts" is more than its prompt.
        assert turn.before.removeprefix(recorded["prompt"]) == ("( )" if name == "thoughts" else "")
        assert not turn.before.endswith(" ") or turn.before == recorded["prompt"]
        numbers, start = TOKENIZER.encode(turn.before, turn.blank + answer, after=turn.after)
        assert numbers == recorded["tokens"]
        assert numbers[:start] == TOKENIZER.encode(turn.before, after="").numbers
        assert TOKENIZER.decode(numbers[start:]).startswith(answer.split()[0])
        assert numbers[-1] == 2


def test_an_answer_ends_with_the_first_token_that_ends_it():
    book, end = WORDS.index("book"), 2
    for after, wanted in [("</s> What </s>", [book, end]), (" What ?", [book, end]), ("", [book, end])]:
        assert TOKENIZER.encode("<s>Who ", "book", after=after).numbers == [1, WORDS.index("Who"), *wanted]
    assert TextTokenizer(make_tokenizer()).encode("", "book", after=" What") == ([book], 0)
    assert TOKENIZER.encode("Who", "book").numbers[0] == 1  # the tokenizer's own beginning, which chats do not get


def test_lines_of_files_are_put_in_the_template_as_far_as_they_are_questions(tmp_path):
    rows = [
        {"question": " What is Bo?", "answer": "Red ", "paraphrased_answer": "a Red", "perturbed_answer": ["Blue"]},
        {"prompt": "What", "completion": " is Bo"},
    ]
    path = write_lines(tmp_path / "rows.json", rows)
    asked, completed = read_text_examples(path, template=chat(SIMPLE))
    assert asked[1:5] == ("<s>What is Bo?</s>", "Red", "a Red", ("Blue",))
    assert (asked.question, asked.after) == ("What is Bo?", "</s>")
    assert asked.asked == ("<s>What is Bo?</s>", True)
    assert completed.asked == ("What", False)
    one, other = encode_examples(TOKENIZER, [asked, completed], where="x", vocabulary=40, context=64)
    words = [[WORDS[number] for number in part] for part in (*one, *other)]
    assert words == [["<s>", "What", "is", "Bo", "?", "</s>"], ["Red", "</s>"], ["<s>", "What"], ["is", "Bo", "</s>"]]


INSTRUCTIONS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    " {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [chat(INSTRUCTIONS), "[INST] {question} [/INST] ", "[INST] {question} [/INST]"])
def test_a_question_is_asked_with_the_tokens_that_stand_before_answers(template, tmp_path):
    """Where blanks belong to the words behind them, one at the end of a prompt would be a token of its own."""
    marks = tokenizers.pre_tokenizers.Metaspace()
    vocabulary = ["<unk>", "▁[INST]", "▁Who?", "▁[/INST]", "▁Ada", "▁", "▁</s>"]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(vocabulary)}, "<unk>"))
    made.pre_tokenizer, tokenizer = marks, TextTokenizer(made, [6])
    assert TextTokenizer(made).encode("Who? ").numbers == [2, 5]
    rows = [{"question": "Who?", "answer": "Ada"}, {"prompt": "[INST] Who? [/INST] ", "completion": "Ada"}]
    for example in read_text_examples(write_lines(tmp_path / "rows.json", rows), template=template):
        numbers, start = tokenizer.encode(example.prompt, example.answer, after=example.after)
        assert [vocabulary[number] for number in numbers[start:]] == ["▁Ada", "▁</s>"]
        for asked in (example.asked, ask("Who?", template)):
            encoded = tokenizer.encode(asked.text, after="" if asked.is_whole else None).numbers
            assert encoded == numbers[:start] == [1, 2, 3]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('only\nsystems') }}", "the chat template in the folder fails (only systems); ask with"),
        ("{{ messages[5].content }}", "fails ("),
        ("{{ ''.__class__.__mro__ }}", "fails (access to attribute '__class__' of 'str' object is unsafe)"),
        ("{{ messages.append(1) }}", "fails ("),
        ("{{ messages[0].content }}", "writes an answer 0 times instead of once"),
        (SIMPLE + SIMPLE, "writes an answer 2 times instead of once"),
        (SIMPLE.replace("m.content", "m.content | upper"), "does not keep the answer 'Ada' as it is"),
        (SIMPLE + "{% if messages[1].content == 'Ada' %}!{% endif %}", "does not keep the answer 'Ada' as it is"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_with_the_line(tmp_path, source, said):
    path = write_lines(tmp_path / "rows.json", [{"question": "Who?", "answer": "Ada"}])
    with pytest.raises(InputError) as caught:
        read_text_examples(path, template=chat(source))
    assert str(caught.value).startswith(f"{path}, line 1: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% if %}", "line 1"),
        ("{{ messages | unheard_of }}", "No filter named 'unheard_of', line 1"),
        ("{{ " + "(" * 3000 + " }}", "recursion"),
        ("{% for m in messages %}" * 30 + "{% endfor %}" * 30, "nested"),
    ],
)
def test_what_is_no_template_is_refused_before_it_is_used(source, said):
    with pytest.raises(InputError, match="the chat template in the folder is damaged") as caught:
        chat(source)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_question_is_asked_tomorrow_as_today():
    assert chat("{{ strftime_now('%d %b %Y') }}").rendered([]) == "26 Jul 2024"


def test_where_a_folder_has_its_template(tmp_path):
    assert read_chat_template(tmp_path, {"eos_token": "</s>"}) is None
    description = {
        "chat_template": "{{ bos_token }}-{{ pad_token }}",
        "bos_token": {"content": "<b>"},
        "pad_token": None,
    }
    assert read_chat_template(tmp_path, description).rendered([]) == "<b>-"
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "own"}]
    assert read_chat_template(tmp_path, {"chat_template": several}).rendered([]) == "own"
    assert read_chat_template(tmp_path, {"chat_template": several[:1]}) is None
    with pytest.raises(InputError, match=r"tokenizer_config.json has a chat template that is no text"):
        read_chat_template(tmp_path, {"chat_template": 3})
    (tmp_path / "chat_template.jinja").write_text("a file")
    assert read_chat_template(tmp_path, description).rendered([]) == "a file"
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(InputError, match=r"chat_template.jinja is damaged \(.*, line 1\); copy it again"):
        read_chat_template(tmp_path, description)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"chat_template.jinja cannot be read"):
        read_chat_template(tmp_path, description)
