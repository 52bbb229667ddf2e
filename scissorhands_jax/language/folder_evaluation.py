"""What `scissorhands lm evaluate --model` does: asks a published language model questions, and writes what it knows."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scissorhands_jax import files
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs.progress import progress_bar
from scissorhands_jax.language.answer_scores import SETS
from scissorhands_jax.language.decoder import decoder
from scissorhands_jax.language.generating import encode_prompts, generate_texts
from scissorhands_jax.language.measuring import Network, Questions, measure_knowledge
from scissorhands_jax.language.model_folders import form_line, load_weights, open_language_folder, question_form
from scissorhands_jax.language.packing import Encoded
from scissorhands_jax.language.rouge import rouge_l, rouge_scorer, without_words
from scissorhands_jax.language.text_files import TextExample, read_text_examples
from scissorhands_jax.language.text_tokens import encode_examples
from scissorhands_jax.language.tofu_logs import TOFU_SETS, tofu_log_part
from scissorhands_jax.terminal import Console, say

_logger = logging.getLogger(__name__)


def evaluate_folder(
    model: Path,
    questions: Mapping[str, Path],
    out: Path,
    *,
    template: str | None = None,
    max_tokens: int = 64,
    batch_size: int = 8,
    dtype: Literal["float32", "bfloat16"] = "float32",
    overwrite: bool = False,
    console: Console,
) -> None:
    """Measures what a model knows, and writes a log in the format of TOFU's code, which `judging.judge_logs` reads.

    Of every question it has the loss of a token of the answer, what the model says and its ROUGE-L recall. Where a file
    has wrong answers it also has their losses and that of the paraphrased answer, which is the answer itself if there
    is no paraphrase. ROUGE is left out of a set in which an answer has no word of Latin letters or digits.

    Args:
      model: The folder of the model.
      questions: Files of examples by the name of the set, one of `answer_scores.SETS`.
      out: The file of the log.
      template: How a question is asked, see `model_folders.question_form`.
      max_tokens: The largest number of tokens that the model says.
      batch_size: The number of questions that are answered at a time.
      dtype: What the network computes in.
      overwrite: Whether a file that exists is replaced.
      console: Shows progress.

    Raises:
      InputError: Something cannot be used, or the file exists. That is found out before any weights are read.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file for the log")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; add --overwrite to replace it")
    if unknown := [name for name in questions if name not in SETS]:
        raise InputError(f"there is no set {unknown[0]!r}; choose among {', '.join(SETS)}")
    folder = open_language_folder(model)
    files.check_inputs(out, [*questions.values(), *model.iterdir()])
    sizes = dataclasses.replace(folder.sizes, dtype=dtype)
    limits = {"vocabulary": sizes.vocabulary, "context": sizes.context}
    form = question_form(model, template)
    examples = {name: read_text_examples(path, template=form) for name, path in questions.items()}
    asked: dict[str, Questions] = {}
    for name, found in examples.items():
        if unasked := [example.line for example in found if not example.prompt]:
            raise InputError(
                f"{questions[name]}, line {unasked[0]} has a text and no question; give question and answer"
            )

        def encode(examples: Sequence[TextExample], where: Path = questions[name]) -> list[Encoded]:
            return encode_examples(folder.tokenizer, examples, where=where, **limits)

        asked[name] = Questions(encode(found), **_alternatives(found, encode, questions[name]))
    saying = {"max_tokens": max_tokens, "batch_size": batch_size}
    prompts = {name: [example.asked for example in found] for name, found in examples.items()}
    answers = {name: [example.answer.strip() for example in found] for name, found in examples.items()}
    for each in prompts.values():  # A set that cannot be asked is refused before the others are, which takes hours.
        encode_prompts(sizes, folder.tokenizer, each, **saying)
    if not all(map(without_words, answers.values())):
        rouge_scorer()  # refuses to begin where it is not installed
    say(console, form_line(form))
    key_of = {name: key for key, name in TOFU_SETS.items()}
    log: dict[str, Any] = {}
    with progress_bar(console) as progress:
        task = progress.add_task("reading the model", total=1 + len(asked), note="")
        params = load_weights(folder)
        network = Network(decoder(sizes), params, {})
        for name, found in examples.items():
            progress.update(task, advance=1, note=name)
            said = generate_texts(sizes, params, folder.tokenizer, prompts[name], **saying)
            measured = measure_knowledge(network, asked[name])
            rouge = None
            if lacking := without_words(answers[name]):
                _logger.warning(
                    "no ROUGE of %s: it counts words of Latin letters and digits, and the answer in line %d of %s has "
                    "none",
                    *(name, found[lacking[0]].line, questions[name]),
                )
            else:
                rouge = rouge_l(said, answers[name]).recall
            known = dataclasses.replace(measured, said=tuple(said), rouge=rouge)
            log[key_of[name]] = tofu_log_part(
                known, [(prompt.text, text) for prompt, text in zip(prompts[name], answers[name], strict=True)]
            )
        progress.update(task, advance=1, note="")
    files.write_text(out, json.dumps(log, indent=1) + "\n")


def _alternatives(examples: Sequence[TextExample], encode: Any, where: Path) -> dict[str, Any]:
    """Paraphrases and wrong answers, if every example has the latter."""
    counts = {len(example.wrong) for example in examples}
    if counts == {0}:
        return {}
    if len(counts) > 1:
        raise InputError(f"{where} has examples with {sorted(counts)} wrong answers; give each as many, or none")
    right = [
        example if example.paraphrase is None else example._replace(answer=example.paraphrase) for example in examples
    ]
    flat = encode([example._replace(answer=text) for example in examples for text in example.wrong])
    (width,) = counts
    return {"paraphrases": encode(right), "wrong": [flat[row * width : (row + 1) * width] for row in range(len(right))]}
