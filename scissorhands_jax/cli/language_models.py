"""The commands about published language models: `scissorhands lm unlearn`, `lm plan` and `lm generate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from scissorhands_jax.cli import choices
from scissorhands_jax.cli.options import RARE, Effect, Option, SettingsCommand
from scissorhands_jax.cli.shared import LongCommand, MeshOptions, ResumeOptions, given_settings, print_json
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config as config_lib
from scissorhands_jax.terminal import Console

if TYPE_CHECKING:
    from scissorhands_jax.language.text_files import TextPrompt
    from scissorhands_jax.language.unlearning import LanguageJob
    from scissorhands_jax.training.sharding import Layout


def given_template(template: str | None) -> str | None:
    """A template as it was typed, with \\n as a new line."""
    return None if template is None else template.replace("\\n", "\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFormOptions(LongCommand):
    """A command that asks a language model questions."""

    model: Annotated[
        Path,
        Option("Folder of a model: config.json, tokenizer.json and .safetensors, perhaps in parts.", metavar="DIR"),
    ]
    template: Annotated[
        str | None,
        Option(
            "How a question is asked: chat by the model's chat template, plain as 'Question: {question}\\nAnswer:', or "
            "a text with {question} in its place and \\n for a new line. Default: chat if the folder has a template, "
            "otherwise plain.",
            metavar="TEXT",
            group=RARE,
        ),
    ] = None

    @property
    def question_template(self) -> str | None:
        """What was given, with \\n as a new line."""
        return given_template(self.template)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageTrainingOptions(MeshOptions, TextFormOptions, SettingsCommand):
    """A command about making a language model forget."""

    effects: ClassVar[tuple[Effect, ...]] = (Effect(options=("lora_alpha",), needs=("lora",)),)

    method: Annotated[
        str, Option("Name of the method, e.g. npo, simnpo, gradient_difference or scissorhands.", metavar="NAME")
    ]
    held_out: Annotated[
        Path | None,
        Option(
            "File of answers of the same kind that the network never saw; scissorhands drives the forget loss up to "
            "theirs.",
            metavar="FILE",
        ),
    ] = None
    refusals: Annotated[
        Path | None, Option("File with refusals, one on each line, for the method dpo.", metavar="FILE", group=RARE)
    ] = None
    lora: Annotated[
        int | None,
        Option(
            "Train two thin matrices of this rank next to each matrix of attention and perceptrons, instead of all "
            "weights.",
            metavar="RANK",
        ),
    ] = None
    lora_alpha: Annotated[
        float | None,
        Option("Their product is multiplied by A / RANK. Default: twice the rank.", metavar="A", group=RARE),
    ] = None
    epochs: Annotated[int | None, Option("The same as epochs=N.", metavar="N", setting="epochs")] = None
    batch_size: Annotated[
        int | None,
        Option(
            "Rows of packed examples of each set in a step, the same as batch_size=N.",
            metavar="N",
            setting="batch_size",
        ),
    ] = None
    microbatches: Annotated[
        int | None, Option("The same as microbatches=N.", metavar="N", setting="microbatches", group=RARE)
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        Option(
            "What the network computes in: float32 or bfloat16. Trained weights are float32 in either case; those that "
            "LoRA leaves alone have this type.",
            metavar="NAME",
            group=RARE,
        ),
    ] = "float32"
    remat: Annotated[
        bool, Option("Compute activations again instead of keeping them: less memory, more time.", group=RARE)
    ] = False
    seed: Annotated[int, Option("Seed of the run.", metavar="N", group=RARE)] = 0

    choices: ClassVar[Mapping[str, str]] = choices.TOKEN_METHOD_LINES

    @classmethod
    def listed_settings(cls, method: str | None) -> Mapping[str, Any]:
        """The settings of a method."""
        from scissorhands_jax.language.method_settings import token_settings

        return {"": token_settings(method or "npo")()}

    def training(self) -> dict[str, Any]:
        """The fields of `unlearning.LanguageTraining`."""
        from scissorhands_jax.language.lora import Lora
        from scissorhands_jax.language.method_settings import token_settings

        settings = token_settings(self.method)()
        return {
            "model": self.model,
            "method": self.method,
            "settings": config_lib.override(settings, [*self.settings, *given_settings(self, "")]),
            "lora": None if self.lora is None else Lora(self.lora, self.lora_alpha),
            "dtype": self.dtype,
            "remat": self.remat,
            "seed": self.seed,
        }

    def job(self, forget: Path, retain: Path) -> LanguageJob:
        """What is to be forgotten, and how."""
        from scissorhands_jax.language.unlearning import LanguageJob

        return LanguageJob(
            **self.training(),
            forget=forget,
            retain=retain,
            held_out=self.held_out,
            refusals=self.refusals,
            template=self.question_template,
        )


def _forget_file(more: str = "") -> Option:
    return Option(
        "File of what is to be forgotten: a JSON object on each line with question and answer, prompt and completion, "
        f"or text.{more}",
        metavar="FILE",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageUnlearnCommand(ResumeOptions, LanguageTrainingOptions):
    """Make a language model forget what is in a file.

    Reads a model of the Llama, Qwen or Gemma family, runs a method, and writes the model back in the same form, to
    RUN/model. Settings of the method follow as NAME=VALUE, e.g. learning_rate=2e-5 beta=0.2; `--help-settings METHOD`
    lists them with their defaults and meaning.
    """

    example: ClassVar[str] = (
        "lm unlearn --model Llama-3.2-1B --forget forget10.json --retain retain90.json --method npo --lora 8 --out run"
    )

    forget: Annotated[Path, _forget_file()]
    retain: Annotated[Path, Option("File of what is to be kept, of the same form.", metavar="FILE")]
    out: Annotated[Path, Option("Folder for the result.", metavar="RUN")]
    checkpoint_every: Annotated[
        int | None, Option("Steps between checkpoints. Default: one after every epoch.", metavar="STEPS", group=RARE)
    ] = None

    def run(self, console: Console) -> None:
        from scissorhands_jax.language.unlearning import unlearn_language

        unlearn_language(
            self.job(self.forget, self.retain),
            self.out,
            checkpoint_every=self.checkpoint_every,
            overwrite=self.overwrite,
            resume=self.resume,
            layout=self.layout(),
            console=console,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguagePlanCommand(LanguageTrainingOptions):
    """Predict how much memory and time lm unlearn will take.

    The arguments are those of lm unlearn; without files, --row-length says how long rows are. Of the model only
    config.json is read, and with files tokenizer.json: weights are neither needed nor read. The programs of lm unlearn
    are compiled for the sizes of the network, which takes minutes at full size on a CPU. Settings of the method follow
    as NAME=VALUE, as for lm unlearn; `--help-settings METHOD` lists them.
    """

    example: ClassVar[str] = (
        "lm plan --model Llama-3.2-1B --row-length 256 --method npo --lora 8 --dtype bfloat16 --memory 24"
    )
    effects: ClassVar[tuple[Effect, ...]] = (
        *LanguageTrainingOptions.effects,
        Effect(options=("held_out", "refusals", "template"), needs=("forget",)),
        Effect(options=("row_length",), unless=("forget",)),
    )

    forget: Annotated[Path | None, _forget_file(" With --retain it says how long rows are, and how many steps.")] = None
    retain: Annotated[Path | None, Option("File of what is to be kept, of the same form.", metavar="FILE")] = None
    row_length: Annotated[
        int | None, Option("Tokens of a row, into which examples are packed, where no files are given.", metavar="N")
    ] = None
    devices: Annotated[
        int | None,
        Option(
            "Number of devices that share every batch, and large arrays if they do not fit otherwise. Default: 1, or "
            "those of --mesh.",
            metavar="N",
        ),
    ] = None
    memory: Annotated[
        float | None, Option("Memory of each device in GiB. Default: what this device has.", metavar="G")
    ] = None
    time: Annotated[
        bool,
        Option(
            "Also draw random weights and take some steps with them on this device, for the time of a step and of the "
            "run."
        ),
    ] = False
    json: Annotated[bool, Option("Print JSON instead of the table.")] = False
    out: Annotated[
        Path | None, Option("Accepted as for lm unlearn; nothing is written to it.", metavar="RUN", group=RARE)
    ] = None

    def run(self, console: Console) -> None:
        from scissorhands_jax.jobs.plan_report import print_plan
        from scissorhands_jax.jobs.progress import status
        from scissorhands_jax.language.planning import plan_language
        from scissorhands_jax.language.unlearning import LanguageTraining

        job = LanguageTraining(**self.training())
        if self.forget is not None and self.retain is not None:
            job = self.job(self.forget, self.retain)
        elif self.forget is not None or self.retain is not None:
            raise InputError("a run reads what is to be forgotten and what is to be kept; give both files, or neither")
        with status(console, "compiling for the sizes of the network"):
            plan = plan_language(
                job,
                row_length=self.row_length,
                devices=1 if self.devices is None else self.devices,
                layout=self._planned_layout(),
                memory_gib=self.memory,
                timed=self.time,
            )
        if self.json:
            print_json(plan.document())
        else:
            print_plan(plan, Console())

    def _planned_layout(self) -> Layout | None:
        """The layout of --mesh, whose devices need not be there."""
        from scissorhands_jax.training import sharding

        if not self.mesh and not self.fsdp:
            return None
        if self.mesh and self.devices is not None:
            raise InputError("--mesh says how many devices there are; leave --devices out")
        sizes = sharding.parse_mesh(self.mesh) if self.mesh else (self.devices or 1, 1)
        return sharding.planned_layout(*sizes, fsdp=self.fsdp)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageGenerateCommand(TextFormOptions):
    """Print what a language model says to prompts, if it always says the most probable token next."""

    example: ClassVar[str] = "lm generate --model run/model --question 'Who wrote the Amber Garden?'"
    effects: ClassVar[tuple[Effect, ...]] = (Effect(options=("template",), needs=("question", "file")),)

    prompt: Annotated[
        tuple[str, ...],
        Option("Text that the model goes on with; give the option again for more.", metavar="TEXT", repeat="each"),
    ] = ()
    question: Annotated[
        tuple[str, ...],
        Option(
            "Question, which is put in the template; give the option again for more.", metavar="TEXT", repeat="each"
        ),
    ] = ()
    file: Annotated[
        Path | None, Option("File of questions or prompts, as for lm unlearn; answers are left aside.", metavar="FILE")
    ] = None
    max_tokens: Annotated[int, Option("Largest number of tokens of an answer.", metavar="N")] = 64
    batch_size: Annotated[int, Option("Prompts answered at a time.", metavar="N", group=RARE)] = 8
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        Option("What the network computes in: float32 or bfloat16.", metavar="NAME", group=RARE),
    ] = "float32"
    json: Annotated[bool, Option("Print JSON instead of text.")] = False

    def run(self, console: Console) -> None:
        from scissorhands_jax.jobs.progress import status
        from scissorhands_jax.language.generating import encode_prompts, generate_texts
        from scissorhands_jax.language.model_folders import load_weights, open_language_folder
        from scissorhands_jax.terminal import say

        folder = open_language_folder(self.model)
        prompts = self._prompts(console)
        sizes = dataclasses.replace(folder.sizes, dtype=self.dtype)
        options = {"max_tokens": self.max_tokens, "batch_size": self.batch_size}
        encode_prompts(sizes, folder.tokenizer, prompts, **options)  # refused before weights are read
        with status(console, "reading the model and answering"):
            params = load_weights(folder, self.dtype)
            answers = generate_texts(sizes, params, folder.tokenizer, prompts, **options)
        pairs = [{"prompt": prompt.text, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
        if self.json:
            print_json(pairs)
            return
        for pair in pairs:
            say(Console(), f"{pair['prompt']}\n  -> {pair['answer']}")

    def _prompts(self, console: Console) -> list[TextPrompt]:
        from scissorhands_jax.language.model_folders import form_line, question_form
        from scissorhands_jax.language.text_files import TextPrompt, ask, read_text_examples
        from scissorhands_jax.terminal import say

        asked: list[TextPrompt] = []
        if self.question or self.file is not None:
            form = question_form(self.model, self.question_template)
            asked += [ask(question, form) for question in self.question]
            read = [] if self.file is None else read_text_examples(self.file, template=form)
            if unasked := [example.line for example in read if not example.prompt]:
                raise InputError(
                    f"{self.file}, line {unasked[0]} has a text and no prompt; give it as prompt and completion"
                )
            asked += [example.asked for example in read]
            say(console, form_line(form))
        prompts = [*map(TextPrompt, self.prompt), *asked]
        if not prompts:
            raise InputError("there is nothing to answer; give --prompt, --question or --file")
        return prompts
