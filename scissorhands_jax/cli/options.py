"""Command lines derived from dataclasses: each field of a command is an option, declared and documented once.

The parser below is argparse's. tyro derives one from dataclasses as well and was tried first, but it cannot keep this
command line: its errors are boxes of several lines, which only its private module `tyro._errors` can replace with one
sentence; `bool | None` becomes an option with a value instead of the pair `--augment` and `--no-augment`; and the text
`None` is read as no value, also where a file or folder may have that name.
"""

from __future__ import annotations

import abc
import argparse
import dataclasses
import inspect
import itertools
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

from scissorhands_jax.errors import InputError, check_seed, suggest
from scissorhands_jax.jobs import config
from scissorhands_jax.terminal import Console, LoggedConsole

RARE = "less often needed"
"""The heading in `--help` of options that few users need."""
MANY = "many devices"
"""The heading of those that divide work over devices."""

_SETTING = re.compile(r"(--)?\w+(\.\w+)*=")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effect:
    """When some options of a command have an effect; where they are given without having one, that is an error."""

    options: tuple[str, ...]
    """Their fields."""
    needs: tuple[str, ...] = ()
    """Fields of options, one of which must be given for it."""
    values: tuple[str, ...] = ()
    """What the only field of `needs` must be; with none, any value does."""
    not_values: tuple[str, ...] = ()
    """What the only field of `needs` must not be, where that is shorter."""
    unless: tuple[str, ...] = ()
    """Fields of options with which they have none; `no_NAME` is the option `--no-name` of a pair."""
    unless_all: tuple[str, ...] = ()
    """Fields of options with all of which together they have none."""
    but_with: tuple[str, ...] = ()
    """Fields of options with which they have one in spite of `unless`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(abc.ABC):
    """A command of the command line; subclasses add options as fields, each with an `Option`, and say what `run` does.

    The docstring of a subclass is the description that `--help` prints; its first sentence stands in the overview.
    """

    example: ClassVar[str] = ""
    """The example in the help, without the name of the program."""
    required: ClassVar[tuple[str, ...]] = ()
    """Fields that have a default, or exclusive groups, but that this command requires."""
    when_interrupted: ClassVar[str] = ""
    """What a user can do after interrupting the command, for the message."""
    effects: ClassVar[tuple[Effect, ...]] = ()
    """What its options depend on, where some have an effect with others only."""

    @abc.abstractmethod
    def run(self, console: Console) -> int | None:
        """Does what the command is for.

        Args:
          console: Where progress and remarks are printed; results go to standard output.

        Returns:
          The exit status, or None for 0.
        """

    def open_console(self) -> LoggedConsole:
        """The console for progress and remarks."""
        return LoggedConsole()

    def leave(self, status: int) -> int:
        """Is called last, with the exit status, and returns the status to exit with."""
        return status


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingsCommand(Command):
    """A command that also takes settings of a method, written NAME=VALUE or --NAME=VALUE."""

    settings_of: ClassVar[str] = "METHOD"
    """What has the settings, as the name of the value of `--help-settings`; the option `--method` chooses it."""
    choices: ClassVar[Mapping[str, str]] = {}
    """The names from which that option chooses, each with what it is in one line."""

    settings: tuple[str, ...] = ()

    @classmethod
    @abc.abstractmethod
    def listed_settings(cls, method: str | None) -> Mapping[str, Any]:
        """The settings that `--help-settings` lists.

        Args:
          method: What the user wrote after `--help-settings`, or with `--help` after `--method`; None if nothing.

        Returns:
          By the prefix of their names, such as "method.": a dataclass of settings, or a dictionary with the default
          and the meaning of each name.
        """

    @classmethod
    def has_settings(cls, method: str) -> bool:
        """Whether `--method` names what has the settings, for a command where another option chooses it as a rule."""
        del method
        return False


@dataclasses.dataclass(frozen=True)
class Option:
    """How a field of a command is written on the command line, declared as `field: Annotated[TYPE, Option(...)]`.

    A field without a default is an option that is required.
    """

    help: str
    """What the option does, in sentences; a default that is a number or a text is added to them."""
    metavar: str | None = None
    """The name of the value in `--help`."""
    _: dataclasses.KW_ONLY
    flag: str = ""
    """How the option is written; by default `--` and the name of the field with hyphens. A flag without hyphens makes
    it a positional argument."""
    group: str | None = None
    """The heading in `--help` that the option is listed under."""
    exclusive: str | None = None
    """Options of one command that have the same word here exclude each other."""
    repeat: Literal["each", "several"] | None = None
    """For fields that are tuples: "each" value has its own option, or one option takes "several" values."""
    setting: str | None = None
    """The dotted name of the setting that the option sets."""
    type: Any = None
    """The type of a value or, for a tuple, of an item; `options_of` takes it from the field."""
    is_required: bool = False
    """Whether the command requires the option; found by `options_of`."""
    is_pair: bool = False
    """Whether there are two options, `--name` and `--no-name`; found by `options_of`."""

    @property
    def flags(self) -> list[str]:
        """All ways to write the option."""
        return [self.flag, f"--no-{self.flag.removeprefix('--')}"] if self.is_pair else [self.flag]


def options_of(command: type[Command]) -> dict[str, Option]:
    """The options of a command by the names of their fields, completed with what follows from each field."""
    hints, options = typing.get_type_hints(command, include_extras=True), {}
    for field in dataclasses.fields(command):
        hint, *extras = typing.get_args(hints[field.name])
        if not (extras and isinstance(extras[0], Option)):
            continue
        is_wrapped = typing.get_origin(hint) in (*config.UNIONS, tuple)
        inner = [choice for choice in typing.get_args(hint) if choice not in (type(None), Ellipsis)]
        shown = isinstance(field.default, str | int | float) and not isinstance(field.default, bool)
        options[field.name] = dataclasses.replace(
            extras[0],
            help=f"{extras[0].help} Default: {field.default}." if shown else extras[0].help,
            flag=extras[0].flag or "--" + field.name.replace("_", "-"),
            type=inner[0] if is_wrapped else hint,
            is_required=field.default is dataclasses.MISSING or field.name in command.required,
            is_pair=is_wrapped and inner[0] is bool,
        )
    return options


def flags_of(command: type[Command]) -> list[str]:
    """All options of a command as they are written."""
    own = ["--help", "--help-settings"] if issubclass(command, SettingsCommand) else ["--help"]
    return [*own, *(flag for found in options_of(command).values() for flag in found.flags)]


def parse(name: str, command: type[Command], words: Sequence[str]) -> Command:
    """Reads the options of a command.

    `--help` and `--help-settings` print and raise SystemExit. Next to the option that chooses a method, a network or a
    preset `--help` also lists the settings of what is chosen.

    Args:
      name: The command as it is written, such as "request add".
      command: The class of the command.
      words: What the user wrote after the name.

    Raises:
      InputError: An option is unknown or missing, its value is of another type, or it has no effect with the others.
    """
    flags = flags_of(command)
    for word in words:
        # Before argparse, which would complain that an option is missing when only its name has a typing error.
        if word.startswith("--") and word != "--" and " " not in word and word.partition("=")[0] not in flags:
            _read_setting(word, name, command)
    parser = make_parser(name, command)
    if issubclass(command, SettingsCommand) and {"-h", "--help"} & set(words):
        parser.epilog = f"{_help_on_settings(name, command, words)}\n\n{parser.epilog}"
    found, rest = parser.parse_known_args(_with_what_is_chosen(command, words))
    values = {
        field: _read_value(getattr(found, field), described)
        for field, described in options_of(command).items()
        if hasattr(found, field)
    }
    settings = tuple(_read_setting(word, name, command) for word in rest)
    _check_effects(command, values)
    _check_said_once(command, values, settings)
    return command(**values, settings=settings) if issubclass(command, SettingsCommand) else command(**values)


def _check_said_once(command: type[Command], values: Mapping[str, Any], settings: Sequence[str]) -> None:
    """Refuses an option and a setting that stand for the same and differ, of which one would be ignored."""
    options = options_of(command)
    given = {options[field].setting: (options[field].flag, str(value)) for field, value in values.items()}
    for setting in settings:
        name, _, text = setting.partition("=")
        flag, value = given.get(name, ("", text))
        if text not in (value, value.lower()):  # True is written true.
            raise InputError(f"{flag} {value} and {setting} stand for the same; leave one of them out")


def _check_effects(command: type[Command], values: Mapping[str, Any]) -> None:
    """Refuses options that were given and have no effect.

    Args:
      command: The class of the command.
      values: The options that were given, by the names of their fields.
    """
    options = options_of(command)
    # By their fields, or `no_` and the field for what was turned off: the options as they were written.
    there = {}
    for field, value in values.items():
        if options[field].is_pair and value is False:
            there[f"no_{field}"] = options[field].flags[1]
        elif not (value is None or value is False or value == ()):
            there[field] = options[field].flag
    defaults = {field.name: field.default for field in dataclasses.fields(command)}
    for effect in command.effects:
        names = [name for field in effect.options for name in (field, f"no_{field}")]
        given = [there[name] for name in names if name in there]
        if not given:
            continue
        flag, advice = given[0], "leave it out" if len(given) == 1 else f"leave {' and '.join(given)} out"
        against = [there[name] for name in effect.unless if name in there]
        if against and not set(effect.but_with) & set(there):
            raise InputError(f"{flag} has no effect with {against[0]}; {advice}")
        if effect.unless_all and set(effect.unless_all) <= set(there):
            together = " and ".join(there[name] for name in effect.unless_all)
            raise InputError(f"{flag} has no effect with {together}; {advice}")
        needed = [options[field].flag for field in effect.needs]
        if effect.values or effect.not_values:
            value = values.get(effect.needs[0], defaults[effect.needs[0]])
            if value in effect.not_values:
                raise InputError(f"{flag} has no effect with {needed[0]} {value}; {advice}")
            if effect.values and value not in effect.values:
                fitting = " or ".join(effect.values)
                raise InputError(f"{flag} has no effect with {needed[0]} {value}, only with {fitting}; {advice}")
        elif needed and not set(effect.needs) & set(there):
            raise InputError(f"{flag} has no effect without {' or '.join(needed)}; {advice}")


def make_parser(name: str, command: type[Command]) -> argparse.ArgumentParser:
    """The argparse parser of one command, which leaves all values as texts and adds no defaults.

    Args:
      name: The command as it is written, such as "request add".
      command: The class whose fields are the options.
    """
    parser = _Parser(
        prog=f"scissorhands {name}",
        description=paragraphs(inspect.getdoc(command) or ""),
        epilog=f"example:\n  scissorhands {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    if issubclass(command, SettingsCommand):
        listed = f"Print all settings of a {command.settings_of} with their defaults and meaning, and exit."
        parser.add_argument(
            "--help-settings", action=_HelpSettings, command=command, metavar=command.settings_of, help=listed
        )
    groups: dict[str | None, Any] = {None: parser}
    exclusive: dict[str, Any] = {}

    def comes_later(item: tuple[str, Option]) -> bool:
        return not item[1].is_required and item[1].exclusive not in command.required

    for field, found in sorted(options_of(command).items(), key=comes_later):
        if found.group not in groups:
            groups[found.group] = parser.add_argument_group(found.group)
        container = groups[found.group]
        if found.exclusive is not None:
            if found.exclusive not in exclusive:
                is_required = found.exclusive in command.required
                exclusive[found.exclusive] = container.add_mutually_exclusive_group(required=is_required)
            container = exclusive[found.exclusive]
        container.add_argument(found.flag, **_argparse_arguments(field, found))
    if issubclass(command, SettingsCommand):
        usage, indent = parser.format_usage().removeprefix("usage: ").rstrip(), " " * len(f"usage: {parser.prog} ")
        parser.usage = f"{usage}\n{indent}[NAME=VALUE ...]"
    return parser


def paragraphs(text: str, indent: str = "", first: str | None = None) -> str:
    """The text with each paragraph filled to the width of the terminal.

    Args:
      text: Paragraphs with empty lines between them.
      indent: What each line begins with.
      first: What the first line of a paragraph begins with instead.
    """
    width, first = max(min(shutil.get_terminal_size().columns, 100) - 2, 40), indent if first is None else first
    parts = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join(textwrap.fill(part, width, initial_indent=first, subsequent_indent=indent) for part in parts)


def _argparse_arguments(field: str, found: Option) -> dict[str, Any]:
    """The arguments of `add_argument` for an option."""
    arguments: dict[str, Any] = {"help": found.help.replace("%", "%%")}
    if found.flags[0].startswith("-"):
        arguments |= {"dest": field, "required": found.is_required}
    if found.is_pair:
        return arguments | {"action": argparse.BooleanOptionalAction}
    if found.type is bool:
        return arguments | {"action": "store_true"}
    if found.repeat is not None:
        arguments |= {"action": "append"} if found.repeat == "each" else {"action": "extend", "nargs": "+"}
    return arguments | {"metavar": found.metavar}


class _Parser(argparse.ArgumentParser):
    """argparse's parser with errors of one sentence."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; see `{self.prog} --help`")


class _HelpSettings(argparse.Action):
    """Lists the settings of a method as `--help` lists options."""

    def __init__(self, *, command: type[SettingsCommand], **arguments: Any) -> None:
        super().__init__(nargs="?", **arguments)
        self.command = command

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        del namespace, option_string
        sys.stdout.write("\n".join(_listed(self.command.listed_settings(values))) + "\n")
        parser.exit()


def _listed(listed: Mapping[str, Any], indent: str = "") -> list[str]:
    """Settings with their defaults and meaning, as `SettingsCommand.listed_settings` has them, in lines."""
    lines = []
    for prefix, settings in listed.items():
        if isinstance(settings, dict):
            described = {f"{prefix}{name}": entry for name, entry in settings.items()}
        else:
            described = config.describe_settings(settings, prefix)
        for name, (value, text) in described.items():
            lines.append(f"{indent}{name} (default: {value})")
            if text:
                lines.append(paragraphs(text, f"{indent}    "))
    return lines


def _chosen(flag: str, words: Sequence[str]) -> list[str]:
    """What the words give an option."""
    found = [after for word, after in itertools.pairwise(words) if word == flag and not after.startswith("-")]
    return found + [word.partition("=")[2] for word in words if word.startswith(f"{flag}=")]


def _what_has_settings(command: type[SettingsCommand], words: Sequence[str]) -> tuple[str, list[str]]:
    """The option that chooses what has the settings of a command, as a rule, and what the words choose."""
    flag = f"--{command.settings_of.lower()}"
    chosen = _chosen(flag, words)
    if not chosen and flag != "--method":
        chosen = list(filter(command.has_settings, _chosen("--method", words)))
    return flag, chosen


def _with_what_is_chosen(command: type[Command], words: Sequence[str]) -> list[str]:
    """The words, in which a `--help-settings` of nothing is one of what they choose."""
    found = list(words)
    bare = [place for place, word in enumerate(words) if word == "--help-settings"]
    if (
        bare
        and issubclass(command, SettingsCommand)
        and all(word.startswith("-") for word in words[bare[-1] + 1 :][:1])
    ):
        found[bare[-1] + 1 : bare[-1] + 1] = _what_has_settings(command, words)[1][:1]
    return found


def _help_on_settings(name: str, command: type[SettingsCommand], words: Sequence[str]) -> str:
    """What `--help` says of settings: those of what the words choose or, if they choose nothing, what can be chosen.

    Raises:
      InputError: There is nothing of the name that is chosen.
    """
    flag, chosen = _what_has_settings(command, words)
    if chosen:
        listed: dict[str, Any] = {}
        for choice in chosen:
            listed |= command.listed_settings(choice)
        lines = [f"settings of {' and '.join(chosen)}, written NAME=VALUE:", *_listed(listed, "  ")]
        return "\n".join(lines)
    width = max(map(len, command.choices), default=0) + 4
    lines = [paragraphs(text, " " * width, f"  {choice}".ljust(width)) for choice, text in command.choices.items()]
    other = f"`scissorhands {name} {flag} NAME --help`, or `--help-settings NAME`, lists the settings of one with"
    return "\n".join([f"names for {flag}:", *lines, "", paragraphs(f"{other} their defaults and meaning.")])


def _read_value(value: Any, found: Option) -> Any:
    """A text that argparse found, as a value of the type of the field."""
    if isinstance(value, list):
        return tuple(_read_value(text, found) for text in value)
    if not isinstance(value, str):
        return value
    if not value and (found.type is Path or Path in typing.get_args(found.type)):
        raise InputError(f"{found.flags[0]} is empty; give the path of a file or folder")
    read = config.parse_value(value, found.type, found.flags[0])
    if found.flags[0] == "--seed":
        check_seed(read)
    return read


def _read_setting(word: str, name: str, command: type[Command]) -> str:
    """Reads a word that is not an option as a setting `a.b=c`, which may also be written `--a.b=c`.

    Raises:
      InputError: The word is not a setting, or the command takes none.
    """
    is_setting = _SETTING.match(word) is not None
    if is_setting and issubclass(command, SettingsCommand):
        return word.removeprefix("--")
    if is_setting:
        raise InputError(f"{name} does not know {word!r}; see `scissorhands {name} --help`")
    near = suggest(word, [flag for flag in flags_of(command) if flag.startswith("--")])
    written = "settings are written NAME=VALUE; " if issubclass(command, SettingsCommand) else ""
    raise InputError(f"unknown argument {word!r}; {near}; {written}see `scissorhands {name} --help`")
