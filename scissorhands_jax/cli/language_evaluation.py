"""The command that judges what a language model has forgotten: `scissorhands lm evaluate`."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from scissorhands_jax.cli.language_models import given_template
from scissorhands_jax.cli.options import Effect, Option
from scissorhands_jax.cli.shared import OverwriteOptions, print_json
from scissorhands_jax.errors import InputError
from scissorhands_jax.terminal import Console, say

_asked = functools.partial(Option, metavar="FILE", group="asking the model of --model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageEvaluateCommand(OverwriteOptions):
    """Compute every aggregate that published evaluation logs of a language model allow, or evaluate a model.

    Reads the per-example logs of torch frameworks, TOFU's eval_log_aggregated.json and OpenUnlearning's *_EVAL.json,
    and prints model utility, forget quality with each of the three truth ratios, and a paired test. With the logs of
    three retrained networks or more, forgetting is also tested against what retrained networks differ by. With --model
    a folder of a language model is asked the questions of the files first, and its log is written to --out.
    """

    example: ClassVar[str] = "lm evaluate --logs unlearned.json --retain-logs retain90.json --json"

    required: ClassVar[tuple[str, ...]] = ("network",)
    effects: ClassVar[tuple[Effect, ...]] = (
        Effect(
            options=(
                *("out", "forget", "retain", "real_authors", "world_facts"),
                *("template", "max_tokens", "dtype", "overwrite"),
            ),
            needs=("model",),
        ),
    )

    logs: Annotated[Path | None, Option("Log of the network in question.", metavar="FILE", exclusive="network")] = None
    model: Annotated[
        Path | None,
        Option(
            "Folder of a language model to ask: config.json, tokenizer.json and .safetensors.",
            metavar="DIR",
            exclusive="network",
        ),
    ] = None
    out: Annotated[Path | None, _asked("File for the log of --model.")] = None
    forget: Annotated[Path | None, _asked("File of what was to be forgotten.")] = None
    retain: Annotated[Path | None, _asked("File of what was to be kept.")] = None
    real_authors: Annotated[Path | None, _asked("File of TOFU's questions about real authors.")] = None
    world_facts: Annotated[Path | None, _asked("File of TOFU's questions about the world.")] = None
    template: Annotated[
        str | None,
        _asked("How a question is asked: chat, plain or a text, as for lm unlearn.", metavar="TEXT"),
    ] = None
    max_tokens: Annotated[int, _asked("Largest number of tokens of an answer.", metavar="N")] = 64
    dtype: Annotated[
        Literal["float32", "bfloat16"], _asked("What the network computes in: float32 or bfloat16.", metavar="NAME")
    ] = "float32"
    retain_logs: Annotated[
        tuple[Path, ...],
        Option(
            "Log of a network that never saw the forget set; give the option again for each further one.",
            metavar="FILE",
            repeat="each",
        ),
    ] = ()
    original_log: Annotated[
        Path | None,
        Option("Log of the network before it forgot, for the share of its knowledge that remains.", metavar="FILE"),
    ] = None
    json: Annotated[bool, Option("Print JSON instead of tables.")] = False

    def run(self, console: Console) -> None:
        from scissorhands_jax.language.judgement_report import print_judgement
        from scissorhands_jax.language.judging import judge_logs

        judgement = judge_logs(self._log(console), self.retain_logs, self.original_log)
        if self.json:
            print_json(judgement.document())
            for remark in judgement.remarks:
                say(console, f"note: {remark}")
        else:
            print_judgement(judgement, Console())

    def _log(self, console: Console) -> Path:
        """The log of the network in question, which is made of the answers of a model if there is none."""
        files = {
            "retain": self.retain,
            "real authors": self.real_authors,
            "world facts": self.world_facts,
            "forget": self.forget,
        }
        questions = {name: path for name, path in files.items() if path is not None}
        if self.logs is not None:
            return self.logs
        if self.model is None or self.out is None or not questions:
            raise InputError("--model is asked the questions of files, and its log is written; give --forget and --out")
        from scissorhands_jax.language.folder_evaluation import evaluate_folder
        from scissorhands_jax.language.judging import read_references

        read_references(self.out, self.retain_logs, self.original_log)  # refused before a model is asked for long
        template = given_template(self.template)
        options: dict[str, Any] = {"max_tokens": self.max_tokens, "dtype": self.dtype, "overwrite": self.overwrite}
        evaluate_folder(self.model, questions, self.out, template=template, console=console, **options)
        return self.out
