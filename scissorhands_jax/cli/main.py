"""The table of all commands of `scissorhands`, and how their errors are printed.

`python -m scissorhands_jax` is the same. Nothing here imports JAX: a command imports what it needs when it runs.
"""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Sequence

from scissorhands_jax.cli import (
    audit,
    data,
    demos,
    diffusion,
    diffusion_attacks,
    diffusion_images,
    diffusion_unlearning,
    doctor,
    jobs,
    language_evaluation,
    language_models,
    request_ledger,
    requests,
)
from scissorhands_jax.cli.options import Command, flags_of, paragraphs, parse
from scissorhands_jax.cli.shared import LongCommand
from scissorhands_jax.errors import InputError, PeerError, suggest
from scissorhands_jax.terminal import LoggedConsole, complain, remarks_on

_STATUS_LOST_PEER = 1
_STATUS_BAD_INPUT = 2
_STATUS_INTERRUPTED = 130

COMMANDS: dict[str, type[Command]] = {
    "demo": demos.DemoCommand,
    "demo diffusion": demos.DiffusionDemoCommand,
    "demo language": demos.LanguageDemoCommand,
    "unlearn": jobs.UnlearnCommand,
    "plan": jobs.PlanCommand,
    "tune": jobs.TuneCommand,
    "audit": audit.AuditCommand,
    "audit key": audit.KeyCommand,
    "audit sign": audit.SignCommand,
    "evaluate": jobs.EvaluateCommand,
    "request add": requests.AddCommand,
    "request list": requests.ListCommand,
    "request run": requests.ServeCommand,
    "request discard": requests.DiscardCommand,
    "request verify": requests.VerifyCommand,
    "request export": request_ledger.ExportLedgerCommand,
    "request erase": request_ledger.EraseCommand,
    "request trust": requests.TrustCommand,
    "request untrust": requests.UntrustCommand,
    "request derive": request_ledger.DeriveCommand,
    "request retire": request_ledger.RetireCommand,
    "data prepare": data.PrepareCommand,
    "doctor": doctor.DoctorCommand,
    "sd import": diffusion.ImportCommand,
    "sd export": diffusion.ExportCommand,
    "sd generate": diffusion_images.GenerateCommand,
    "sd unlearn": diffusion_unlearning.ConceptCommand,
    "sd plan": diffusion_unlearning.ConceptPlanCommand,
    "sd evaluate": diffusion_images.ImagesCommand,
    "sd attack": diffusion_attacks.AttackCommand,
    "lm unlearn": language_models.LanguageUnlearnCommand,
    "lm plan": language_models.LanguagePlanCommand,
    "lm generate": language_models.LanguageGenerateCommand,
    "lm evaluate": language_evaluation.LanguageEvaluateCommand,
}
"""The commands by their names, each with its options."""
GROUPS = {
    "request": "Keep a ledger of deletion requests, serve them, and prove that this was done.",
    "data": "Prepare data sets.",
    "sd": "Stable Diffusion v1: import and export weights, make images, forget a concept.",
    "lm": "Language models: make them forget, ask them, and judge what they have forgotten.",
}
"""The first words that are not commands by themselves, each with what its commands are about."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
      arguments: What follows the name of the program; by default what this process was started with.

    Returns:
      0; 1 when another process of the run died; 2 for input that cannot be used; 130 when interrupted. `request run`
      also has 3 for "retrain now", `unlearn` has 4 if accuracy has collapsed, and `request verify` has 1 if something
      was changed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # Not every encoding has the signs of tables.
    try:
        command = read_command(words)
    except InputError as error:
        complain(LoggedConsole(), str(error))
        return _STATUS_BAD_INPUT
    return command.leave(_run(command))


def read_command(words: Sequence[str]) -> Command:
    """Reads a command and its options, as a user wrote them.

    `--help`, `--help-settings` and `--version` print and raise SystemExit.

    Raises:
      InputError: There is no such command, or it cannot be called like this.
    """
    for count in (2, 1):
        name = " ".join(words[:count])
        longer = [other.removeprefix(f"{name} ") for other in COMMANDS if other.startswith(f"{name} ")]
        if name in COMMANDS:
            following = words[count : count + 1]
            if longer and following and not following[0].startswith("-") and "=" not in following[0]:
                raise InputError(_no_command(following, longer, name))
            _refuse_options_of_others(name, words[count:])
            return parse(name, COMMANDS[name], words[count:])
    first = words[0] if words else ""
    if "--version" in words[:1]:
        from scissorhands_jax.version import __version__

        sys.stdout.write(f"scissorhands {__version__}\n")
        raise SystemExit(0)
    if first in ("-h", "--help") or (first in GROUPS and {"-h", "--help"} & set(words[1:2])):
        sys.stdout.write(overview("" if first not in GROUPS else first))
        raise SystemExit(0)
    if first in GROUPS:
        known = [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{first} ")]
        raise InputError(_no_command(words[1:2], known, first))
    raise InputError(_no_command(words[:1], list(dict.fromkeys(name.split()[0] for name in COMMANDS)), ""))


def overview(group: str = "") -> str:
    """The help that lists commands, each with its first sentence.

    Args:
      group: One of GROUPS, to list its commands only; "" lists all.
    """
    about = GROUPS.get(group, "Make a trained network forget examples, and show what remains of them.")
    lines = [f"usage: scissorhands {f'{group} ' if group else ''}COMMAND [OPTIONS]", "", about, ""]
    for name, command in COMMANDS.items():
        if name.startswith(group):
            summary = " ".join((inspect.getdoc(command) or "").partition("\n\n")[0].split())
            lines.append(paragraphs(summary, " " * 18, f"  {name:<16}"))
    lines += ["", "`scissorhands COMMAND --help` explains a command, `scissorhands --version` prints the version."]
    return "\n".join(lines) + "\n"


def _no_command(given: Sequence[str], known: Sequence[str], group: str) -> str:
    program = f"scissorhands {group}".strip()
    if given and given[0].startswith("-"):
        return f"there is no option {given[0]} of `{program}`, after which a command comes; see `{program} --help`"
    if not given:
        return f"a command is missing after `{program}`; choose one of {', '.join(known)}"
    return f"there is no command {f'{group} {given[0]}'.strip()!r}; {suggest(given[0], known)}; see `{program} --help`"


def _refuse_options_of_others(name: str, words: Sequence[str]) -> None:
    """Refuses an option of another command with the same first word, and says which command that is."""
    own = flags_of(COMMANDS[name])
    others = {other: flags_of(COMMANDS[other]) for other in COMMANDS if other.split()[0] == name.split()[0]}
    for word in words:
        flag = word.partition("=")[0]
        owners = [f"`{other}`" for other, flags in others.items() if flag in flags]
        if flag.startswith("--") and flag not in own and owners:
            raise InputError(f"{flag} belongs to {' and '.join(owners)}; leave it out")


def _how_to_go_on(command: Command) -> str:
    """What a user can do after interrupting a command: not to overwrite what there is by now."""
    if not getattr(command, "overwrite", False):
        return command.when_interrupted
    resumed = command.when_interrupted.replace("with --resume", "with --resume in place of --overwrite")
    return resumed.replace("the same command continues", "the same command without --overwrite continues")


def _run(command: Command) -> int:
    console, ended_well = LoggedConsole(), False
    try:
        console = command.open_console()
        with remarks_on(console):
            if isinstance(command, LongCommand):
                from scissorhands_jax.report import provenance

                provenance.note_code()
            status = command.run(console) or 0
            ended_well = True
            return status
    except InputError as error:
        complain(console, str(error))
        return _STATUS_BAD_INPUT
    except PeerError as error:
        complain(console, str(error))
        return _STATUS_LOST_PEER
    except OSError as error:
        what = f"{error.strerror or type(error).__name__}: {error.filename}" if error.filename else str(error)
        complain(console, what)
        return _STATUS_BAD_INPUT
    except KeyboardInterrupt:
        complain(console, "; ".join(filter(None, ["stopped", _how_to_go_on(command)])))
        return _STATUS_INTERRUPTED
    finally:
        if console.log_file is not None:
            console.log_file.close(ended_well=ended_well)
