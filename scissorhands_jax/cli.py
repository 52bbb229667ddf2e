"""The command line: `scissorhands demo | unlearn | evaluate`, the same as `python -m scissorhands_jax`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from scissorhands_jax.errors import InputError

_STATUS_BAD_INPUT = 2
_STATUS_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 2 for input that cannot be used, 130 when interrupted."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    console = Console(stderr=True)
    try:
        options.overrides = _overrides(rest)
        if options.overrides and options.command != "unlearn":
            raise InputError(f"{options.command} does not know {options.overrides[0]!r}; see --help")
        options.run(options, console)
    except InputError as error:
        _complain(console, str(error))
        return _STATUS_BAD_INPUT
    except OSError as error:
        what = f"{error.strerror or type(error).__name__}: {error.filename}" if error.filename else str(error)
        _complain(console, what)
        return _STATUS_BAD_INPUT
    except KeyboardInterrupt:
        advice = "; the same command with --resume goes on from the last checkpoint"
        _complain(console, "stopped" + (advice if options.command == "unlearn" else ""))
        return _STATUS_INTERRUPTED
    return 0


def _complain(console: Console, message: str) -> None:
    console.print("[bold red]error:[/] ", end="", highlight=False)
    console.print(" ".join(message.split()), style=None, markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scissorhands", description="Make a trained network forget examples.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train a small network, make it forget, and show that it did (a minute)")
    demo.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for results.json and report.html")
    demo.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (default 3)")
    demo.add_argument("--overwrite", action="store_true", help="replace what an earlier demo left in DIR")
    demo.set_defaults(run=_run_demo)

    unlearn = commands.add_parser(
        "unlearn",
        help="make a trained network forget a part of its training set",
        epilog="Settings of the method follow as NAME=VALUE, e.g. method.fraction=0.05 method.forget_weight=0.1; "
        "an unknown name prints them all.",
    )
    _add_network(unlearn)
    unlearn.add_argument(
        "--forget",
        required=True,
        metavar="SPEC",
        help="random:SHARE, class:LABEL or indices:FILE (one position per line)",
    )
    unlearn.add_argument("--out", required=True, type=Path, metavar="RUN", help="folder for the unlearned network")
    unlearn.add_argument("--method", default="scissorhands", metavar="NAME", help="default scissorhands")
    unlearn.add_argument("--seed", type=int, default=0, help="of the random forget set and of the run (default 0)")
    unlearn.add_argument("--retain-limit", type=int, metavar="N", help="repair on N random retained examples only")
    unlearn.add_argument("--epochs", type=int, metavar="N", help="the same as method.epochs=N")
    unlearn.add_argument("--batch-size", type=int, metavar="N", help="the same as method.batch_size=N")
    unlearn.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="random crops and flips while repairing (default: as is customary for the data set)",
    )
    unlearn.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="default: after every epoch")
    existing = unlearn.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace the run in RUN")
    existing.add_argument("--resume", action="store_true", help="go on with the run in RUN")
    unlearn.set_defaults(run=_run_unlearn)

    evaluate = commands.add_parser("evaluate", help="print a network's test accuracy as JSON")
    _add_network(evaluate)
    evaluate.set_defaults(run=_run_evaluate)
    return parser


def _add_network(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", metavar="FILE", help="PyTorch file (.pt .pth .th .tar) or .safetensors")
    source.add_argument("--checkpoint", metavar="RUN", help="folder of an earlier run")
    parser.add_argument("--model", metavar="NAME", help="resnet20, resnet18, vgg16_bn, ...; known for a --checkpoint")
    parser.add_argument("--dataset", metavar="NAME", help="cifar10 or digits; known for a --checkpoint")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data set's files")


def _overrides(rest: Sequence[str]) -> list[str]:
    """Settings as `a.b=c`; `--a.b=c` is taken as well."""
    for word in rest:
        if re.match(r"(--)?\w+(\.\w+)*=", word) is None:
            raise InputError(f"unknown argument {word!r}; settings are written NAME=VALUE, e.g. method.fraction=0.05")
    return [word.removeprefix("--") for word in rest]


def _run_demo(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax import demo

    demo.run_demo(options.out, num_seeds=options.seeds, overwrite=options.overwrite, console=console)


def _run_unlearn(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax import config as config_lib
    from scissorhands_jax import unlearning
    from scissorhands_jax.methods import METHODS

    if options.method not in METHODS:
        raise InputError(f"there is no method {options.method!r}; choose one of {', '.join(METHODS)}")
    model, dataset, data_dir = _network_of(options)
    settings = METHODS[options.method]()
    if options.epochs is not None:
        settings = dataclasses.replace(settings, epochs=options.epochs)
    if options.batch_size is not None:
        settings = dataclasses.replace(settings, batch_size=options.batch_size)
    config = config_lib.RunConfig(
        model=model,
        weights=options.weights,
        checkpoint=options.checkpoint,
        dataset=dataset,
        data_dir=data_dir,
        forget=options.forget,
        seed=options.seed,
        retain_limit=options.retain_limit,
        augment=options.augment,
        method_name=options.method,
        method=settings,
    )
    config = config_lib.override(config, options.overrides)
    unlearning.unlearn(
        config,
        options.out,
        checkpoint_every=options.checkpoint_every,
        overwrite=options.overwrite,
        resume=options.resume,
        console=console,
    )


def _run_evaluate(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax import unlearning

    model, dataset, data_dir = _network_of(options)
    answer = unlearning.evaluate_network(
        model=model,
        dataset=dataset,
        data_dir=data_dir,
        weights=options.weights,
        checkpoint=options.checkpoint,
        console=console,
    )
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")


def _network_of(options: argparse.Namespace) -> tuple[str, str, str | None]:
    """Model, data set and its folder: as given, or as the run in --checkpoint remembers them."""
    known: dict = {}
    if options.checkpoint is not None:
        from scissorhands_jax import unlearning

        known = unlearning.describe_run(options.checkpoint)
    model, dataset = options.model or known.get("model"), options.dataset or known.get("dataset")
    if not model:
        raise InputError("--model is missing; name the network, e.g. --model resnet20")
    if not dataset:
        raise InputError("--dataset is missing; name the data set, e.g. --dataset cifar10")
    if known and model != known["model"]:
        raise InputError(f"the run in {options.checkpoint} holds a {known['model']}, not a {model}")
    return model, dataset, options.data_dir or known.get("data_dir")


def entry() -> None:
    """Console entry point."""
    # Quieter logs of libraries, unless the user asked for them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
