"""The reference of the command line, made from the commands that the parser is made from."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from docs.hooks.text import escaped, in_code
from scissorhands_jax.cli.main import COMMANDS
from scissorhands_jax.cli.options import Command, Option, SettingsCommand, options_of


def pages() -> dict[str, str]:
    """Returns the pages by their places in the site."""
    return {"reference/commands.md": _commands_page(), "reference/settings.md": _settings_page()}


def _commands_page() -> str:
    parts = [
        "# The commands",
        "Every command of `scissorhands`, with its options, as `scissorhands COMMAND --help` prints them.",
    ]
    lines = ["| command | what it does |", "| --- | --- |"]
    for name, command in COMMANDS.items():
        lines.append(f"| [`{name}`](#{name.replace(' ', '-')}) | {escaped(_description(command)[0])} |")
    parts.append("\n".join(lines))
    for name, command in COMMANDS.items():
        parts += [f"## `{name}` {{ #{name.replace(' ', '-')} }}", *map(escaped, _description(command))]
        parts.append(f"```sh\nscissorhands {command.example}\n```")
        if issubclass(command, SettingsCommand):
            parts.append(
                "Takes settings as `NAME=VALUE`; `--help-settings` lists them, and so does "
                "[the page of settings](settings.md)."
            )
        parts.append(_options(list(options_of(command).values())))
    return "\n\n".join(parts) + "\n"


def _description(command: type[Command]) -> list[str]:
    return [" ".join(part.split()) for part in (inspect.getdoc(command) or "").split("\n\n")]


def _options(options: Sequence[Option]) -> str:
    """The options as a list of definitions, by groups, required ones first."""
    entries: list[str] = []
    for group in dict.fromkeys(option.group for option in options):
        if group is not None:
            entries.append(f"**{escaped(group[:1].upper() + group[1:])}**")
        found = sorted(
            (option for option in options if option.group == group), key=lambda option: not option.is_required
        )
        for option in found:
            value = f" {option.metavar}" if option.metavar else ""
            several = " ..." if option.repeat == "several" else ""
            written = ", ".join(in_code(f"{flag}{value}{several}") for flag in option.flags)
            required = " *(required)*" if option.is_required else ""
            entries.append(f"{written}{required}\n:   {escaped(option.help)}")
    return "\n\n".join(entries)


def _settings_page() -> str:
    """Every setting of every method, with its default and meaning."""
    from scissorhands_jax.cli.shared import default_settings
    from scissorhands_jax.jobs import config
    from scissorhands_jax.methods import METHODS

    about = (
        "Settings are written `method.NAME=VALUE` after a command, for example `method.fraction=0.05`. "
        "`scissorhands unlearn --help-settings METHOD` prints the same."
    )
    parts = ["# Settings of the methods", about]
    for name in METHODS:
        parts.append(f"## {name}")
        described = config.describe_settings(default_settings(name), "method.")
        parts.append(
            "\n\n".join(
                f"{in_code(f'{setting}={value}')}\n:   {escaped(text) or 'No more is said about it.'}"
                for setting, (value, text) in described.items()
            )
        )
    return "\n\n".join(parts) + "\n"
