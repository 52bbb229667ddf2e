"""Command lines derived from dataclasses: every type of option, help that loads nothing heavy, and errors of a line."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest

import scissorhands_jax
from scissorhands_jax.cli import choices, options
from scissorhands_jax.cli import main as cli
from scissorhands_jax.cli.language_models import LanguageTrainingOptions
from scissorhands_jax.cli.options import Option
from scissorhands_jax.cli.shared import LongCommand
from scissorhands_jax.diffusion.concept_methods.concept_scissorhands import PRESETS
from scissorhands_jax.errors import InputError
from scissorhands_jax.jobs import config
from scissorhands_jax.keywords import field_docs
from scissorhands_jax.language.method_settings import token_methods
from scissorhands_jax.methods import METHODS
from scissorhands_jax.methods.semantics import Semantics
from scissorhands_jax.models import MODELS
from scissorhands_jax.terminal import LogFile
from tests.cli.main_test import error_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    first: float = 0.5
    """The first rate."""
    milestones: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleCommand(options.SettingsCommand):
    """Take samples.

    As many as are asked for.
    """

    example: ClassVar[str] = "sample --out 5%"
    required: ClassVar[tuple[str, ...]] = ("source", "count")

    place: Annotated[str, Option("A positional argument.", flag="place")]
    out: Annotated[Path, Option("A folder.", "DIR")]
    count: Annotated[int | None, Option("A number that is required, although it has a default.")] = None
    share: Annotated[float, Option("A share of 100 %.")] = 0.25
    kind: Annotated[Literal["a", "b"] | None, Option("A choice.")] = None
    flag: Annotated[bool, Option("A flag.", group="rare")] = False
    pair: Annotated[bool | None, Option("A pair of flags.")] = None
    each: Annotated[tuple[int, ...], Option("A repeated option.", repeat="each")] = (7,)
    several: Annotated[tuple[Path, ...], Option("Several values.", repeat="several", flag="--from")] = ()
    file: Annotated[str | None, Option("One source.", exclusive="source")] = None
    folder: Annotated[str | None, Option("Another source.", exclusive="source")] = None

    @classmethod
    def listed_settings(cls, method: str | None) -> Mapping[str, Any]:
        return {f"{method}.": Rates()}

    def run(self, console) -> None:
        raise AssertionError("only its options are read")


def parse(*words):
    return options.parse("sample", SampleCommand, words)


REQUIRED = ("here", "--out", "x", "--count", "3", "--file", "None")


def test_values_have_the_types_of_their_fields():
    assert parse(*REQUIRED) == SampleCommand(place="here", out=Path("x"), count=3, file="None")
    words = ["--share=1e-3", "--kind", "b", "--flag", "--no-pair", "--each", "1", "--each", "2", "--from", "p", "q"]
    command = parse(*REQUIRED, *words, "--from", "r", "--rates.first=2", "rates.milestones=1,2")
    assert (command.share, command.kind, command.flag, command.pair, command.each) == (1e-3, "b", True, False, (1, 2))
    assert command.several == (Path("p"), Path("q"), Path("r"))
    assert command.settings == ("rates.first=2", "rates.milestones=1,2")
    assert parse(*REQUIRED, "--pair").pair is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["here"], r"the following arguments are required: --out, --count; see `scissorhands sample --help`"),
        (["here", "--out", "x", "--count", "1"], "one of the arguments --file --folder is required"),
        ([*REQUIRED, "--folder", "y"], "--folder: not allowed with argument --file"),
        ([*REQUIRED[:-1]], "--file: expected one argument"),
        ([*REQUIRED, "--count", "many"], "--count must be int, got 'many'"),
        ([*REQUIRED, "--count", "none"], "--count must be int, got 'none'"),
        ([*REQUIRED, "--each", "x"], "--each must be int, got 'x'"),
        ([*REQUIRED, "--kind", "c"], "--kind is 'c'; choose one of a, b"),
        ([*REQUIRED, "--shar", "1"], "unknown argument '--shar'; near matches: --share"),
        (["--ot", "x"], "unknown argument '--ot'; near matches: .*--out"),
        ([*REQUIRED, "word"], "unknown argument 'word'"),
        ([*REQUIRED, "--a-b=1"], "unknown argument '--a-b=1'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(words, message):
    with pytest.raises(InputError, match=message) as refused:
        parse(*words)
    assert "\n" not in str(refused.value)


def test_seeds_of_every_command_are_numbers_that_jax_tells_apart():
    seeds = [found["seed"] for command in cli.COMMANDS.values() if "seed" in (found := options.options_of(command))]
    assert len(seeds) > 8
    for option in seeds:
        assert options._read_value("4294967295", option) == 2**32 - 1
        for text in ("-1", "4294967296"):
            with pytest.raises(InputError, match=f"must be a whole number from 0 to 4294967295, got {text}"):
                options._read_value(text, option)


def test_help_has_every_option_its_default_and_the_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "Take samples. As many as are asked for.",
        "(--file FILE | --folder FOLDER)",
        "[NAME=VALUE ...]",
        "A share of 100 %. Default: 0.25.",
        "rare: --flag A flag.",
        "--pair, --no-pair A pair of flags.",
        "example: scissorhands sample --out 5%",
    ):
        assert words in text


def test_settings_are_listed_with_their_defaults_and_meaning(capsys):
    with pytest.raises(SystemExit):
        parse("--help-settings", "rates")
    expected = "rates.first (default: 0.5)\n    The first rate.\nrates.milestones (default: none)\n"
    assert capsys.readouterr().out == expected


def registry_of(command):
    if issubclass(command, LanguageTrainingOptions):
        return token_methods()
    return {"PRESET": PRESETS, "MODEL": MODELS, "METHOD": METHODS}[command.settings_of]


def test_all_settings_of_all_commands_are_documented_also_the_keys_of_departures():
    listed = {}
    for command in cli.COMMANDS.values():
        if issubclass(command, options.SettingsCommand):
            for chosen in registry_of(command):
                for prefix, settings in command.listed_settings(chosen).items():
                    found = settings if isinstance(settings, dict) else config.describe_settings(settings, prefix)
                    listed |= found
    assert [name for name, (_, text) in listed.items() if not text] == []
    assert listed["method.departures.margin"] == ("unchanged", " ".join(field_docs(Semantics)["margin"].split()))
    assert "departures.margin" in listed


@pytest.mark.parametrize("name", ["unlearn", "plan", "tune", "evaluate", "request add", "request verify"])
def test_every_command_that_reads_a_network_is_told_all_about_it(name):
    command = cli.COMMANDS[name]
    flags = {"--model", "--layout", "--prefix", "--rename", "--ema", "--no-ema", "--check"}
    assert flags <= set(options.flags_of(command))
    assert issubclass(command, options.SettingsCommand)  # which takes model_options.NAME=VALUE


OF_SETTINGS = [name for name, command in cli.COMMANDS.items() if issubclass(command, options.SettingsCommand)]


@pytest.mark.parametrize("name", OF_SETTINGS)
def test_help_lists_what_can_be_chosen_and_the_settings_of_what_is_chosen(name, capsys):
    command = cli.COMMANDS[name]
    flag = f"--{command.settings_of.lower()}"
    assert flag in options.flags_of(command)
    registry = registry_of(command)
    assert not command.choices or set(command.choices) == set(registry)
    shown = help_of(capsys, *name.split(), "--help")
    assert f"names for {flag}:" in shown
    assert f"`scissorhands {name} {flag} NAME --help`, or `--help-settings NAME`," in " ".join(shown.split())
    for choice in command.choices:
        assert f"\n  {choice} " in shown.partition(f"names for {flag}:")[2]
    chosen = list(registry)[-1]
    for words in ([flag, chosen], [f"{flag}={chosen}"]):
        shown = help_of(capsys, *name.split(), *words, "--help").partition(f"settings of {chosen}, written")[2]
        listed = help_of(capsys, *name.split(), "--help-settings", chosen)
        assert listed.splitlines()[0] in shown
        assert " ".join(listed.split())[-80:] in " ".join(shown.split())
        assert "\nexample:\n" in shown


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(words))
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [1, 2, 1000])
def test_help_has_lines_whatever_the_width_of_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert "--forget" in help_of(capsys, "unlearn", "--help")
    assert "unlearn" in help_of(capsys, "--help")


def test_help_of_several_methods_lists_the_settings_of_each(capsys):
    shown = help_of(capsys, "audit", "--help", "--method", "finetune", "--method", "ssd")
    assert "settings of finetune and ssd, written NAME=VALUE:" in shown
    assert "\n  finetune.learning_rate (default: 0.01)\n" in shown
    assert "\n  ssd.dampening (default: " in shown
    assert cli.main(["unlearn", "--method", "scisorhands", "--help"]) == 2
    assert "near matches: scissorhands" in error_of(capsys)


@pytest.mark.parametrize(
    "given", ["model=resnet9", "dataset=faces", "name=a", "relearn_epochs=3", "every_attack=false"]
)
def test_an_audit_takes_the_settings_that_its_help_lists_and_no_others(given, tmp_path, capsys):
    """It has options for some of an experiment's, and does nothing with others."""
    shown = help_of(capsys, "audit", "--help-settings", "ssd")
    listed = [line.partition(" (default: ")[0] for line in shown.splitlines() if " (default: " in line]
    assert {"ssd.dampening", "training.epochs", "train_limit", "model_options"} <= set(listed)
    assert given.partition("=")[0] not in listed
    assert cli.main(["audit", "--method", "ssd", "--out", str(tmp_path / "audit"), given]) == 2
    assert f"there is no setting {given.partition('=')[0]!r}" in error_of(capsys)
    assert not (tmp_path / "audit").exists()


def test_the_guide_says_the_same_of_every_method_as_the_help():
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "tables.md").read_text(encoding="utf-8")
    assert [row for row in guide.splitlines() if row.startswith("| `")][: len(choices.METHOD_LINES)] == [
        f"| `{name}` | {text} |" for name, text in choices.METHOD_LINES.items()
    ]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example_that_can_be_read(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*name.split(), "--help"])
    assert stopped.value.code == 0
    assert f"scissorhands {name}" in capsys.readouterr().out
    command = cli.COMMANDS[name]
    words = shlex.split(command.example)
    assert type(cli.read_command(words)) is command
    assert all(found.help.endswith((".", ". ")) for found in options.options_of(command).values())


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_every_method_are_listed(method, capsys):
    with pytest.raises(SystemExit):
        cli.main(["unlearn", "--help-settings", method])
    assert "method.epochs (default: " in capsys.readouterr().out


def test_common_options_come_before_rare_ones_and_files_are_read_by_a_group_of_their_own(capsys):
    with pytest.raises(SystemExit):
        cli.main(["unlearn", "--help"])
    shown = capsys.readouterr().out
    places = [shown.index(f"\n  {flag}") for flag in ("--forget SPEC", "--method NAME")]
    rare = shown.index(f"\n{options.RARE}:")
    assert max(places) < rare < shown.index("\n  --trained-on FILE")
    assert shown.index("\nhow the weights file is read") < shown.index("\n  --rename FILE")


def test_help_loads_nothing_heavy():
    code = "import sys\nfrom scissorhands_jax.cli import main as cli\nfor words in {words}:\n"
    code += (
        "    try:\n        cli.main(words)\n    except SystemExit:\n        pass\nprint(*sys.modules, file=sys.stderr)"
    )
    words = [["--help"], ["--version"], ["sd", "--help"], ["unlearn", "--help"], ["unlearn", "--sed"]]
    done = subprocess.run(
        [sys.executable, "-c", code.format(words=json.dumps(words))], capture_output=True, text=True, check=True
    )
    assert {"jax", "numpy", "optax", "flax", "matplotlib"} & set(done.stderr.split()) == set()
    assert f"scissorhands {scissorhands_jax.__version__}\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command is missing after `scissorhands`; choose one of demo, unlearn,"),
        (
            ["--hlep"],
            "there is no option --hlep of `scissorhands`, after which a command comes; see `scissorhands --help`",
        ),
        (["request", "--hlep"], "there is no option --hlep of `scissorhands request`"),
        (
            [
                "audit",
                "--dataset",
                "digits",
                "--model",
                "mlp",
                "--forget",
                "class:3",
                "--out",
                "x",
                "salun.fraction=.1",
            ],
            "salun.fraction=.1 is of salun, which is not audited here; add --method salun",
        ),
        (["demo", "--out", ""], "--out is empty; give the path of a file or folder"),
        (["unlaern"], "there is no command 'unlaern'; near matches: unlearn; see `scissorhands --help`"),
        (
            ["request"],
            "a command is missing after `scissorhands request`; choose one of add, list, run, discard, verify",
        ),
        (["sd", "unlern"], "there is no command 'sd unlern'; near matches: unlearn; see `scissorhands sd --help`"),
        (
            ["audit", "sing", "--audit", "a"],
            "there is no command 'audit sing'; near matches: sign; see `scissorhands audit --help`",
        ),
        (["demo", "difusion", "--digit", "3"], "there is no command 'demo difusion'; near matches: diffusion; see"),
        (
            [*["unlearn", "--weights", "w", "--forget", "all", "--out", "o", "--epochs", "1"], "method.epochs=3"],
            "--epochs 1 and method.epochs=3 stand for the same; leave one of them out",
        ),
        (
            [*["unlearn", "--weights", "w", "--forget", "class:1", "--out", "o"], "forget=class:2"],
            "--forget class:1 and forget=class:2 stand for the same",
        ),
        (["sd", "unlearn", "--help-settings", "foo"], "--help-settings is 'foo'; choose one of paper, "),
        (["sd", "generate", "--preset", "paper"], "--preset belongs to `sd unlearn` and `sd plan`; leave it out"),
        (
            ["evaluate", "--checkpoint", "x", "method.epochs=3"],
            "evaluate takes settings of the network only, as model_options.NAME=VALUE; got 'method.epochs=3'",
        ),
        (["unlearn", "--help-settings", "scisorhands"], "no method 'scisorhands'; near matches: scissorhands"),
    ],
)
def test_commands_that_cannot_be_run_say_what_can(words, message, capsys):
    assert cli.main(words) == 2
    assert message in error_of(capsys)


def test_what_options_depend_on_are_options_of_the_command():
    for name, command in cli.COMMANDS.items():
        fields = options.options_of(command)
        for effect in command.effects:
            assert all((effect.options, effect.needs or effect.unless or effect.unless_all)), name
            pairs = {f"no_{field}" for field, found in fields.items() if found.is_pair}
            assert {*effect.options, *effect.needs, *effect.but_with, *effect.unless_all} <= set(fields), name
            assert set(effect.unless) <= {*fields, *pairs}, name
            assert bool(effect.unless) >= bool(effect.but_with), name
            assert not effect.values or len(effect.needs) == 1, name


_IMAGES = "sd evaluate --images new --out report"
_ATTACK = "sd attack --model sd --unet new --prompts list.csv --out attacks"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{_ATTACK} --kind transfer --rounds 5", "--rounds has no effect with --kind transfer, only with prompt or"),
        (f"{_ATTACK} --kind transfer --tokens 5 --images d", "--tokens has no effect .*; leave --tokens and --images"),
        (f"{_ATTACK} --forgotten-concepts cat --threshold 0.5", "--threshold has no effect with --forgotten-concepts"),
        (f"{_ATTACK} --concept-text {{}}", "--concept-text has no effect without --forgotten-concepts or --kept-"),
        ("lm evaluate --logs log.json --max-tokens 5", "--max-tokens has no effect without --model; leave it out"),
        ("lm evaluate --logs log.json --forget f --out o", "--out .* without --model; leave --out and --forget out"),
        ("lm evaluate --logs log.json --overwrite", "--overwrite has no effect without --model"),
        ("lm generate --model m --prompt a --template chat", "--template has no effect without --question or --file"),
        (f"{_IMAGES} --pairing names", "--pairing has no effect without --original"),
        ("lm plan --model m --method dpo --refusals file", "--refusals has no effect without --forget"),
        (
            "lm plan --model m --method npo --forget f --retain r --row-length 9",
            "--row-length has no effect with --for",
        ),
        ("lm unlearn --model m --method npo --forget f --retain r --out o --lora-alpha 3", "--lora-alpha .* without"),
        ("sd generate --model m --prompts list.csv --out o --images 3", "--images has no effect without --prompt;"),
        (f"{_IMAGES} --steps 20", "--steps has no effect without --prompts"),
        ("sd import --random --out sd --resume", "--resume has no effect with --random; leave it out"),
        ("sd import --random --out sd --no-ema", "--no-ema has no effect with --random; leave it out"),
        ("sd import --random --out sd --ema", "--ema has no effect with --random"),
        (
            f"{_IMAGES} --dtype bfloat16 --attention chunked",
            "--dtype has no effect without --prompts or --clip; leave --dtype and",
        ),
        (f"{_IMAGES} --tokenizer nowhere --ftfy", "--tokenizer has no effect without --prompts or --clip"),
        ("data prepare faces --from d --data-dir d --unverified", "--unverified has no effect with name faces, only"),
        (f"{_IMAGES} --no-nudity --threshold 0.5", "--threshold has no effect with --no-nudity; leave it out"),
        (f"{_IMAGES} --kept-concepts cat --classes A --show-flagged", "--classes has no effect with --kept-concepts; "),
        (
            "unlearn --checkpoint run --forget all --out o --seconds-to-meet 5",
            "--seconds-to-meet has no effect without",
        ),
    ],
)
def test_an_option_without_effect_is_refused(words, message, capsys):
    """Whoever gives an option expects that it does something."""
    assert cli.main(shlex.split(words)) == 2
    assert re.match(message, error_of(capsys))


@pytest.mark.parametrize(
    "words",
    [
        'sd generate --model m --prompt "" --out o --images 3',
        "lm unlearn --model m --method npo --forget f --retain r --out o --lora 0 --lora-alpha 3",
        "unlearn --checkpoint run --forget all --out o --process-id 0 --seconds-to-meet 5",
        "lm unlearn --model m --method dop --forget f --retain r --out o --refusals s",
        f"{_ATTACK} --rounds 5 --images d",
        f"{_ATTACK} --kind embedding --rounds 5",
        f"{_ATTACK} --kind transfer --gate 3 --threshold 0.5",
        "lm evaluate --model m --out o --forget f --dtype bfloat16 --overwrite",
        "lm plan --model m --method dpo --forget f --retain r --refusals s",
        f"{_IMAGES} --prompts list.csv --model sd --dtype bfloat16 --tokenizer t --ftfy",
        "data prepare cifar10 --data-dir d --unverified",
        "unlearn --weights w --forget all --out o --epochs 1 method.epochs=1 --ema ema=true",
        f"{_IMAGES} --nudity --forgotten-concepts cat --threshold 0.7",
        f"{_IMAGES} --classes FACE_FEMALE --show-flagged",
        f"{_IMAGES} --prompts list.csv --model sd --steps 20 --seed 3",
        "unlearn --checkpoint run --forget all --out o --num-processes 2 --seconds-to-meet 5",
    ],
)
def test_an_option_with_effect_is_read(words):
    cli.read_command(shlex.split(words))


def test_every_long_command_can_be_followed_and_silenced():
    short = {f"request {name}" for name in ("add", "list", "derive", "erase", "export", "retire", "discard", "trust")}
    short |= {"request untrust", "audit key", "doctor", "lm evaluate"}
    assert {name for name, command in cli.COMMANDS.items() if not issubclass(command, LongCommand)} <= short
    assert {"--quiet", "--log"} <= set(options.flags_of(cli.COMMANDS["unlearn"]))


def test_a_log_that_cannot_be_written_is_refused_before_anything_is_done(tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["demo", "--out", str(out), "--log", str(tmp_path / "none" / "log")]) == 2
    assert "log cannot be written (No such file or directory); name another file" in error_of(capsys)
    assert not out.exists()


def test_a_log_waits_for_nobody_who_may_read_it(tmp_path):
    """A pipe with a reader is a log like any other."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="cannot be written"):
        LogFile(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = LogFile(pipe)
    log.write("a line\n")
    assert os.read(reader, 100).endswith(b"Z a line\n")
    os.close(reader)
    log.write("another\n")  # is lost, with a warning


def test_only_the_first_of_many_processes_has_a_log(tmp_path):
    words = ["--weights", "w", "--forget", "class:1", "--out", str(tmp_path), "--log", str(tmp_path / "log")]
    consoles = [
        options.parse("unlearn", cli.COMMANDS["unlearn"], [*words, "--process-id", str(number)]).open_console()
        for number in range(2)
    ]
    assert [(console.quiet, console.log_file is None) for console in consoles] == [(False, False), (True, True)]


def test_help_lists_the_settings_of_another_method_than_the_one_with_presets(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sd", "unlearn", "--method", "esd", "--help"])
    assert "settings of esd, written NAME=VALUE:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["sd", "unlearn", "--method", "scissorhands", "--help"])
    assert "names for --preset:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("unlearn --weights w --forget all --out o", "stopped; the same command with --resume continues from"),
        (
            "unlearn --weights w --forget all --out o --overwrite",
            "stopped; the same command with --resume in place of --overwrite continues from",
        ),
        ("audit --out o", "stopped; the same command continues with the next network"),
        ("audit --out o --overwrite", "stopped; the same command without --overwrite continues with the next network"),
    ],
)
def test_who_interrupts_a_command_is_told_how_to_go_on(words, expected, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    words = shlex.split(words)
    monkeypatch.setattr(cli.COMMANDS[words[0]], "run", interrupted)
    assert cli.main(words) == 130
    assert error_of(capsys).startswith(expected)


@pytest.mark.parametrize(
    ("words", "there", "absent"),
    [
        ("unlearn --help-settings", "method.fraction (", "method.penalty ("),
        ("unlearn --method l1_sparse --help-settings", "method.penalty (", "method.fraction ("),
        ("unlearn --help-settings --method l1_sparse", "method.penalty (", "method.fraction ("),
        ("unlearn --help-settings l1_sparse --method ssd", "method.penalty (", "method.dampening ("),
        ("sd unlearn --method esd --help-settings", "epochs (", "trim ("),
    ],
)
def test_the_settings_that_are_listed_are_those_of_what_is_chosen(words, there, absent, capsys):
    with pytest.raises(SystemExit):
        cli.main(shlex.split(words))
    out = capsys.readouterr().out
    assert there in out
    assert absent not in out
