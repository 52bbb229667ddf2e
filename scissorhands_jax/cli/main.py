"""The command line: `scissorhands demo | unlearn | plan | tune | audit | evaluate | request | data | sd`.

`python -m scissorhands_jax` is the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from scissorhands_jax.cli import diffusion as diffusion_cli
from scissorhands_jax.cli import requests as cli_requests
from scissorhands_jax.errors import InputError, PeerError
from scissorhands_jax.jobs import config as config_lib

_STATUS_LOST_PEER = 1
_STATUS_BAD_INPUT = 2
_STATUS_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    0; 1 when another process of the run died; 2 for input that cannot be used; 130 when interrupted. `request run` also
    has 3 for "retrain now", and `request verify` 1 for what was changed.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    status = _run(options, rest, Console(stderr=True))
    if not getattr(options, "distributed", False):
        return status
    from scissorhands_jax.training import distributed

    return distributed.leave(status)


def _run(options: argparse.Namespace, rest: Sequence[str], console: Console) -> int:
    try:
        options.overrides = _overrides(rest)
        takes = options.command in ("unlearn", "plan", "tune", "audit", "request")
        takes = takes or getattr(options, "sd_command", None) in ("unlearn", "plan")
        if options.overrides and not takes:
            raise InputError(f"{options.command} does not know {options.overrides[0]!r}; see --help")
        status = options.run(options, console)
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
        advice = {
            "request": "; `request run` goes on from the last checkpoint",
            "audit": "; the same command goes on with the next network",
        }
        resumable = "; the same command with --resume goes on from the last checkpoint"
        complain(console, "stopped" + advice.get(options.command, resumable if hasattr(options, "resume") else ""))
        return _STATUS_INTERRUPTED
    return status or 0


def complain(console: Console, message: str) -> None:
    """Prints an error as one line, whatever is in it."""
    console.print("[bold red]error:[/] ", end="", highlight=False)
    console.print(" ".join(message.split()), style=None, markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scissorhands", description="Make a trained network forget examples.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train a small network, make it forget, and show that it did (a minute; `demo diffusion` two to three)",
        description="Without a word a classifier forgets a tenth of its training digits, and then one class; `demo "
        "diffusion` has a network that draws digits forget how one is drawn.",
    )
    demo.add_argument("kind", nargs="?", choices=("diffusion",), metavar="diffusion", help="a network that draws")
    demo.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for results.json and report.html")
    demo.add_argument("--seeds", type=int, metavar="N", help="of classifiers: how many seeds (default 3)")
    demo.add_argument("--digit", type=int, metavar="D", help="of diffusion: which digit is forgotten (default 0)")
    demo.add_argument("--seed", type=int, metavar="N", help="of diffusion: the seed of everything (default 0)")
    demo.add_argument(
        "--published",
        action="store_true",
        default=None,
        help="of diffusion: also with the published code's loss, half a minute more",
    )
    demo.add_argument("--overwrite", action="store_true", help="replace what an earlier demo left in DIR")
    demo.set_defaults(run=_run_demo)

    unlearn = commands.add_parser(
        "unlearn",
        help="make a trained network forget a part of its training set",
        epilog="Settings of the method follow as NAME=VALUE, e.g. method.fraction=0.05 method.forget_weight=0.1; "
        "an unknown name prints them all.",
    )
    _add_job(unlearn)
    unlearn.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="default: after every epoch")
    many = unlearn.add_argument_group("many devices, many processes")
    many.add_argument(
        "--mesh",
        metavar="DATA[xMODEL]",
        help="divide batches over DATA devices and large arrays over MODEL, e.g. 8 or 4x2 (default: one device; all "
        "devices where there are many processes)",
    )
    many.add_argument("--fsdp", action="store_true", help="divide large arrays over the DATA devices as well")
    many.add_argument(
        "--distributed", action="store_true", help="one of many processes on a cluster that JAX knows (Slurm, TPU, ...)"
    )
    many.add_argument("--coordinator", metavar="HOST:PORT", help="one of many processes: where process 0 is reached")
    many.add_argument("--num-processes", type=int, metavar="N", help="how many processes there are")
    many.add_argument("--process-id", type=int, metavar="I", help="which of them this is, from 0; 0 writes the results")
    speed = unlearn.add_argument_group("speed, where the automatic choice is to be overridden")
    speed.add_argument(
        "--steps-per-call",
        type=int,
        metavar="N",
        help="steps of one compiled call (default: many; on a CPU 4 where all convolutions are fast in a loop, else 1)",
    )
    speed.add_argument(
        "--feed-from", default="auto", metavar="WHERE", help="device or host: where the data lie (default: by size)"
    )
    existing = unlearn.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace the run in RUN")
    existing.add_argument("--resume", action="store_true", help="go on with the run in RUN")
    unlearn.set_defaults(run=_run_unlearn)

    plan = commands.add_parser(
        "plan",
        help="say what a run will cost in memory and time, before it is paid",
        description="Takes the arguments of unlearn, or --config FILE; without weights the network gets fresh ones. "
        "It takes a few real steps and forgets nothing.",
        epilog="Settings follow as NAME=VALUE, as for unlearn, e.g. method.microbatches=4 model_options.remat=true.",
    )
    _add_job(plan, runs=False)
    plan.add_argument("--config", type=Path, metavar="FILE", help="results.json or run.json of an earlier run")
    plan.add_argument("--devices", type=int, default=1, metavar="N", help="how many the run is to have (default 1)")
    plan.add_argument("--memory", type=float, metavar="G", help="GiB of each device (default: what this one has)")
    plan.add_argument("--json", action="store_true", help="print JSON in place of the table")
    plan.add_argument("--out", metavar="RUN", help="as for unlearn; nothing is written to it")
    plan.set_defaults(run=_run_plan)

    tune = commands.add_parser(
        "tune",
        help="choose the method's settings without an oracle: on validation data, within a budget",
        epilog="Settings of the method that stay as they are follow as NAME=VALUE, as for unlearn.",
    )
    _add_job(tune)
    tune.add_argument("--trials", type=int, default=12, metavar="N", help="the budget (default 12)")
    tune.add_argument("--minutes", type=float, metavar="N", help="start no trial after so long")
    tune.add_argument("--overwrite", action="store_true", help="replace the tuning in RUN")
    tune.set_defaults(run=_run_tune)

    audit = commands.add_parser(
        "audit",
        help="attack unlearning methods with an ensemble of networks, and say whether the attacks can be trusted",
        description="Trains an ensemble of networks, half of them with and half without each forget set, and tells "
        "what a method leaves of a forget set from never having seen it. Says first what it will cost. An audit that "
        "was stopped goes on, and grows with --networks, when the same command is typed again.",
        epilog="Settings follow as NAME=VALUE: of the networks, e.g. training.epochs=30 train_limit=5000, and of a "
        "method by its name, e.g. scissorhands.fraction=0.05.",
    )
    audit.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for results.json and report.html")
    audit.add_argument(
        "--tier",
        default="standard",
        metavar="NAME",
        help="smoke: a population attack on two networks; standard: every attack on 16 networks (the default); full: "
        "on 128",
    )
    audit.add_argument("--networks", type=int, metavar="N", help="another even number of networks, 2 to 256")
    audit.add_argument("--store", type=Path, metavar="DIR", help="trained networks to share; default DIR/networks")
    audit.add_argument("--dataset", default="digits", metavar="NAME", help="as for unlearn (default digits)")
    audit.add_argument("--data-dir", metavar="DIR", help="folder of the data set's files")
    audit.add_argument("--model", default="mlp", metavar="NAME", help="mlp (the default), resnet20, resnet18, ...")
    audit.add_argument(
        "--method", action="append", metavar="NAME", help="again for each further one (default scissorhands)"
    )
    audit.add_argument(
        "--forget",
        action="append",
        metavar="SPEC",
        help="as for unlearn, again for each further forget set; they must not overlap, and a random:SHARE is drawn "
        "from what the ones before it left (default three of random:0.05)",
    )
    audit.add_argument("--seed", type=int, default=0, help="of forget sets and networks (default 0)")
    audit.add_argument("--overwrite", action="store_true", help="replace the audit in DIR")
    audit.set_defaults(run=_run_audit)

    evaluate = commands.add_parser("evaluate", help="print a network's accuracies as JSON, and what vouches for them")
    _add_network(evaluate)
    evaluate.add_argument(
        "--retrained",
        metavar="RUN",
        help="folder of a run of --method retrain on the same forget set; without one no gate can be run",
    )
    evaluate.set_defaults(run=_run_evaluate)

    cli_requests.add_parser(commands)

    data = commands.add_parser("data", help="make data sets ready")
    prepare = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND").add_parser(
        "prepare",
        help="make a data set ready, without a network, from archives that were copied to this machine",
        description="Writes a data set where --data-dir of the other commands finds it, in the format of "
        "tensorflow_datasets. Needs neither a network nor TensorFlow.",
    )
    prepare.add_argument("name", metavar="NAME", help="cifar10, cifar100, svhn or faces")
    prepare.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="cifar-10-binary.tar.gz; cifar-100-binary.tar.gz; train_32x32.mat and test_32x32.mat; for faces a folder "
        "with IDENTITY/*.jpg, with train/IDENTITY/*.jpg and test/IDENTITY/*.jpg, or with train.txt and test.txt of "
        "lines `path label` (default: archives in DIR, else a download, which needs the extra `tensorflow`)",
    )
    prepare.add_argument("--data-dir", required=True, type=Path, metavar="DIR", help="folder for the data set")
    prepare.add_argument("--image-size", type=int, metavar="N", help="rescale faces to NxN pixels")
    prepare.add_argument("--unverified", action="store_true", help="take archives that are not the official ones")
    prepare.add_argument("--overwrite", action="store_true", help="replace the data set in DIR")
    prepare.set_defaults(run=_run_prepare)

    diffusion_cli.add_commands(commands)
    return parser


def _add_job(parser: argparse.ArgumentParser, *, runs: bool = True) -> None:
    _add_network(parser, required=runs)
    parser.add_argument(
        "--forget",
        required=runs,
        metavar="SPEC",
        help="random:SHARE, class:LABEL[,LABEL], identity:NAME[,NAME], identity:FILE (a name per line), "
        "identity:random:N, indices:FILE (a position in the training set per line) or mislabelled:FILE (a position per "
        "line, perhaps with the right label)",
    )
    parser.add_argument(
        "--trained-on",
        metavar="FILE",
        help="positions of the examples that the network was trained on, one per line (default: all of the training "
        "set; a --checkpoint RUN knows its own)",
    )
    parser.add_argument(
        "--validation",
        metavar="SPEC",
        help="what tune looks at: test:SHARE sets that share of the test set aside, and with it unlearn reports on the "
        "rest; indices:FILE names training examples that the network was not trained on (default: all of those)",
    )
    if runs:
        parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="folder for the result")
    parser.add_argument("--method", metavar="NAME", help="default scissorhands")
    parser.add_argument("--seed", type=int, help="of the random forget set and of the run (default 0)")
    parser.add_argument("--retain-limit", type=int, metavar="N", help="repair on N random retained examples only")
    parser.add_argument("--epochs", type=int, metavar="N", help="the same as method.epochs=N")
    parser.add_argument("--batch-size", type=int, metavar="N", help="the same as method.batch_size=N")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="what the network computes in, the same as model_options.dtype=...; weights, gradients and statistics are "
        "float32 in any case (default float32, or as the run of a --checkpoint did)",
    )
    parser.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="random crops and flips while repairing (default: as is customary for the data set)",
    )


def _add_network(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument("--weights", metavar="FILE", help="PyTorch file (.pt .pth .th .tar) or .safetensors")
    source.add_argument("--checkpoint", metavar="RUN", help="folder of an earlier run")
    parser.add_argument("--model", metavar="NAME", help="resnet20, resnet18, vgg16_bn, ...; known for a --checkpoint")
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="digits, cifar10, cifar100, svhn, faces, orl_faces, cifar100_own, npz:FILE or folder:DIR; known for a "
        "--checkpoint",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data set's files")


def _overrides(rest: Sequence[str]) -> list[str]:
    """Settings as `a.b=c`; `--a.b=c` is taken as well."""
    for word in rest:
        if re.match(r"(--)?\w+(\.\w+)*=", word) is None:
            raise InputError(f"unknown argument {word!r}; settings are written NAME=VALUE, e.g. method.fraction=0.05")
    return [word.removeprefix("--") for word in rest]


def _run_demo(options: argparse.Namespace, console: Console) -> None:
    foreign = ("seeds",) if options.kind == "diffusion" else ("digit", "seed", "published")
    for name in foreign:
        if getattr(options, name) is not None:
            raise InputError(f"--{name} belongs to `demo{' diffusion' * (options.kind is None)}`; leave it out")
    if options.kind == "diffusion":
        diffusion_cli.run_demo(options, console)
        return
    from scissorhands_jax.jobs import demo

    seeds = 3 if options.seeds is None else options.seeds
    demo.run_demo(options.out, num_seeds=seeds, overwrite=options.overwrite, console=console)


def _run_unlearn(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax.training import distributed, sharding

    address = (options.coordinator, options.num_processes, options.process_id)
    options.distributed = options.distributed or any(value is not None for value in address)
    if options.distributed:
        distributed.start(*address)
        if not distributed.is_first():
            console = Console(stderr=True, quiet=True)
    with distributed.explaining():
        layout = None
        if options.mesh or options.distributed or options.fsdp:
            sizes = sharding.parse_mesh(options.mesh) if options.mesh else ()
            layout = sharding.make_layout(*sizes, fsdp=options.fsdp)

        from scissorhands_jax.jobs import unlearning

        unlearning.unlearn(
            _config_of(options),
            options.out,
            checkpoint_every=options.checkpoint_every,
            overwrite=options.overwrite,
            resume=options.resume,
            layout=layout,
            steps_per_call=options.steps_per_call,
            feed_from=options.feed_from,
            console=console,
        )


def _run_tune(options: argparse.Namespace, console: Console) -> None:

    from scissorhands_jax.jobs import tuning

    tuning.tune(
        _config_of(options),
        options.out,
        num_trials=options.trials,
        max_minutes=options.minutes,
        overwrite=options.overwrite,
        console=console,
    )


# Options of a job that a configuration has as settings.
_CONFIGURED = {
    **{name: name for name in ("weights", "checkpoint", "model", "dataset", "forget", "trained_on", "validation")},
    **{name: name for name in ("retain_limit", "augment", "seed")},
    "epochs": "method.epochs",
    "batch_size": "method.batch_size",
    "dtype": "model_options.dtype",
}


def _run_plan(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax.jobs import planning

    if options.config is None:
        if options.forget is None:
            raise InputError("--forget is missing; say what is to be forgotten, or name an earlier run with --config")
        config = _config_of(options)
    else:
        if options.method is not None:
            raise InputError("--config says what to run; leave --method out")
        for name, setting in _CONFIGURED.items():
            if getattr(options, name) is not None:
                option = name.replace("_", "-")
                raise InputError(f"--config says what to run; leave --{option} out, or write it as {setting}=VALUE")
        config = planning.read_config(options.config)
        if options.data_dir is not None:
            config = dataclasses.replace(config, data_dir=options.data_dir)
        config = config_lib.override(config, options.overrides)
    # By now this process has loaded what a run loads, with one thread, so that its CPU time is about the time it took.
    starting = time.process_time()
    document = planning.plan(
        config, devices=options.devices, memory_gib=options.memory, starting=starting, console=console
    )
    if options.json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        planning.print_plan(document, Console())


def _run_audit(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax.audit import run as audit
    from scissorhands_jax.jobs.grid import Experiment, Scenario
    from scissorhands_jax.methods import METHODS
    from scissorhands_jax.methods.retrain import RetrainSettings
    from scissorhands_jax.methods.settings import on_upper_layers

    methods = {}
    for name in options.method or ["scissorhands"]:
        if name not in METHODS or name == "retrain":
            known = ", ".join(method for method in METHODS if method != "retrain")
            raise InputError(f"there is no method {name!r} to audit; choose one of {known}")
        settings = on_upper_layers(METHODS[name](), options.model)
        prefix = f"{name}."
        own = [text.removeprefix(prefix) for text in options.overrides if text.startswith(prefix)]
        methods[name] = config_lib.override(settings, own)
    others = [text for text in options.overrides if text.split(".")[0] not in methods]
    specs = options.forget or ["random:0.05"] * 3
    scenarios = tuple(
        Scenario(name=f"{spec}, set {number}" if specs.count(spec) > 1 else spec, forget=(spec,), methods=methods)
        for number, spec in enumerate(specs, start=1)
    )
    experiment = config_lib.override(
        Experiment(
            name=f"{options.dataset}, {options.model}",
            dataset=options.dataset,
            model=options.model,
            training=RetrainSettings(),
            scenarios=scenarios,
        ),
        others,
    )
    audit.run_audit(
        experiment,
        options.out,
        tier=options.tier,
        num_networks=options.networks,
        seed=options.seed,
        data_dir=options.data_dir,
        networks=options.store,
        overwrite=options.overwrite,
        console=console,
    )


def _config_of(options: argparse.Namespace) -> config_lib.RunConfig:
    """The job that the options and settings describe."""
    from scissorhands_jax.methods import METHODS

    method = options.method or "scissorhands"
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}")
    model, dataset, data_dir = _network_of(options)
    config = config_lib.RunConfig(
        model=model,
        model_options=_model_options(options),
        weights=options.weights,
        checkpoint=options.checkpoint,
        dataset=dataset,
        data_dir=data_dir,
        forget=options.forget,
        trained_on=options.trained_on,
        validation=options.validation,
        seed=options.seed or 0,
        retain_limit=options.retain_limit,
        augment=options.augment,
        method_name=method,
        method=METHODS[method](),
    )
    given = {
        "method.epochs": options.epochs,
        "method.batch_size": options.batch_size,
        "model_options.dtype": options.dtype,
    }
    short = [f"{name}={value}" for name, value in given.items() if value is not None]
    return config_lib.override(config, [*options.overrides, *short])


def _run_evaluate(options: argparse.Namespace, console: Console) -> None:

    from scissorhands_jax.jobs import evaluating

    model, dataset, data_dir = _network_of(options)
    answer = evaluating.evaluate_network(
        model=model,
        dataset=dataset,
        data_dir=data_dir,
        weights=options.weights,
        checkpoint=options.checkpoint,
        retrained=options.retrained,
        console=console,
    )
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")


def _run_prepare(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax import datasets

    with console.status(f"preparing {options.name}"):
        folder = datasets.prepare(
            options.name,
            options.sources,
            options.data_dir,
            image_size=options.image_size,
            unverified=options.unverified,
            overwrite=options.overwrite,
        )
    splits = datasets.load(options.name, options.data_dir)
    console.print(
        f"{len(splits.train['label']):,} images to train and {len(splits.test['label']):,} to test with, of "
        f"{len(splits.class_names)} classes and shape {splits.image_shape}, are ready in {folder}",
        highlight=False,
        soft_wrap=True,
    )


def _network_of(options: argparse.Namespace) -> tuple[str, str, str | None]:
    """Model, data set and its folder: as given, or as the run in --checkpoint remembers them."""
    known: dict = {}
    if options.checkpoint is not None:
        from scissorhands_jax.jobs.job import describe_run

        known = describe_run(options.checkpoint)
    model, dataset = options.model or known.get("model"), options.dataset or known.get("dataset")
    if not model:
        raise InputError("--model is missing; name the network, e.g. --model resnet20")
    if not dataset:
        raise InputError("--dataset is missing; name the data set, e.g. --dataset cifar10")
    if known and model != known["model"]:
        raise InputError(f"the run in {options.checkpoint} holds a {known['model']}, not a {model}")
    return model, dataset, options.data_dir or known.get("data_dir")


def _model_options(options: argparse.Namespace) -> dict:
    """Those of the run in --checkpoint, whose network it is."""
    if options.checkpoint is None:
        return {}

    from scissorhands_jax.jobs.job import describe_run

    return describe_run(options.checkpoint).get("model_options", {})
