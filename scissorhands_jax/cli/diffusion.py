"""The commands `scissorhands sd`, Stable Diffusion v1, and `scissorhands demo diffusion`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from scissorhands_jax.errors import InputError


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `sd import`, `sd export`, `sd generate`, `sd unlearn`, `sd plan` and `sd evaluate` to the parser."""
    parser = commands.add_parser("sd", help="Stable Diffusion v1: weights in and out, images, forgetting a concept")
    inner = parser.add_subparsers(dest="sd_command", required=True, metavar="COMMAND")

    import_ = inner.add_parser(
        "import",
        help="make the weights of Stable Diffusion v1 ready",
        description="Reads .safetensors (or PyTorch files, without executing anything in them) of diffusers' or of "
        "CompVis' making and writes Orbax checkpoints. Each of --unet, --vae and --text takes a file or a folder.",
    )
    import_.add_argument(
        "--from", dest="source", type=Path, metavar="PATH", help="a diffusers folder, or one checkpoint"
    )
    import_.add_argument("--unet", type=Path, metavar="PATH", help="instead of that in --from")
    import_.add_argument("--vae", type=Path, metavar="PATH", help="the same")
    import_.add_argument("--text", type=Path, metavar="PATH", help="the same for the text encoder")
    import_.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="folder with vocab.json and merges.txt, or file"
    )
    import_.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the networks")
    import_.add_argument(
        "--config", default="sd-v1", metavar="NAME", help="sizes of the networks: sd-v1 (default), or tiny for trials"
    )
    import_.add_argument("--overwrite", action="store_true", help="replace networks in DIR")
    import_.set_defaults(run=_run_import)

    export = inner.add_parser("export", help="write the networks as diffusers' .safetensors")
    export.add_argument("--model", required=True, type=Path, metavar="DIR", help="folder of sd import")
    export.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    export.add_argument("--dtype", metavar="NAME", help="float32, float16 or bfloat16 (default: as it was imported)")
    export.add_argument("--overwrite", action="store_true", help="replace files in the folder")
    export.set_defaults(run=_run_export)

    generating = inner.add_parser("generate", help="make images of prompts")
    generating.add_argument("--model", required=True, type=Path, metavar="DIR", help="folder of sd import")
    generating.add_argument(
        "--unet", type=Path, metavar="DIR", help="another folder with a unet, such as an unlearned one"
    )
    generating.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="the same as for import (default: the model's)"
    )
    prompts = generating.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", metavar="TEXT", help="one prompt")
    prompts.add_argument("--prompts", type=Path, metavar="CSV", help="file with the column prompt, and perhaps seed")
    generating.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the images")
    generating.add_argument(
        "--images", type=int, default=1, metavar="N", help="of --prompt, with one seed after the other"
    )
    generating.add_argument("--seed", type=int, default=0, help="PyTorch's, of the first image (default 0)")
    generating.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time (default 1)")
    _add_sampling(generating)
    existing = generating.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace the images in DIR")
    existing.add_argument("--resume", action="store_true", help="make those images that are not in DIR yet")
    generating.set_defaults(run=_run_generate)

    unlearning = inner.add_parser(
        "unlearn",
        help="make the UNet forget a concept",
        description="Makes training images of both lists of prompts, or reads them, and runs Scissorhands on the UNet. "
        "The result goes into DIR/unet: use it with `sd generate --unet DIR` and `sd export --model DIR`.",
        epilog="Settings of the method come first, as NAME=VALUE, e.g. fraction=0.01 forget_weight=0.2; an unknown "
        "name prints them all.",
    )
    unlearning.add_argument("--model", required=True, type=Path, metavar="DIR", help="folder of sd import")
    for part, what in (("forget", "is to be forgotten"), ("retain", "is to be kept")):
        unlearning.add_argument(
            f"--{part}-prompts",
            required=True,
            nargs="+",
            action="extend",
            metavar="CSV|TEXT",
            help=f"what {what}: prompts, or files with the column prompt, and perhaps seed",
        )
        unlearning.add_argument(
            f"--{part}-images",
            type=Path,
            metavar="DIR",
            help="pictures of it, whose captions the prompts are in turn (default: they are made of the prompts)",
        )
    unlearning.add_argument(
        "--images", type=int, metavar="N", help="of each set (default: one for each prompt, or all in DIR)"
    )
    unlearning.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the result")
    _add_method(unlearning)
    unlearning.add_argument(
        "--generate-batch-size", type=int, default=1, metavar="N", help="training images made at a time (default 1)"
    )
    unlearning.add_argument("--seed", type=int, default=0, help="of the run and of prompts without one (default 0)")
    unlearning.add_argument(
        "--cache", type=Path, metavar="DIR", help="training images and what is computed of them (default: in --out)"
    )
    unlearning.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="the same as for import (default: the model's)"
    )
    unlearning.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="default: after every epoch")
    existing = unlearning.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    existing.add_argument("--resume", action="store_true", help="go on with the run in --out")
    unlearning.set_defaults(run=_run_unlearn)

    plan = inner.add_parser(
        "plan",
        help="say how much memory unlearn will need, before it is spent",
        description="Compiles the programs of unlearn for the sizes of the networks, which takes minutes at full size "
        "on CPU. Weights are neither needed nor read.",
        epilog="Settings of the method follow as NAME=VALUE, as for unlearn.",
    )
    sizes = plan.add_mutually_exclusive_group()
    sizes.add_argument("--model", type=Path, metavar="DIR", help="folder of sd import")
    sizes.add_argument("--config", default="sd-v1", metavar="NAME", help="or the sizes: sd-v1 (default) or tiny")
    _add_method(plan)
    plan.add_argument("--memory", type=float, metavar="G", help="GiB of the device (default: what this one has)")
    plan.add_argument("--json", action="store_true", help="print JSON in place of the table")
    plan.set_defaults(run=_run_plan)
    _add_evaluate(inner)


def _add_method(parser: argparse.ArgumentParser) -> None:
    """The method and how it computes."""
    parser.add_argument(
        "--preset",
        default="paper",
        metavar="NAME",
        help="paper (default): Algorithm 1; released: what the published code does",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="the same as epochs=N")
    parser.add_argument("--batch-size", type=int, metavar="N", help="of each set in a step, the same as batch_size=N")
    parser.add_argument("--microbatches", type=int, metavar="N", help="the same as microbatches=N")
    _add_sampling(parser)
    parser.add_argument("--remat", action="store_true", help="less memory for more time: compute activations again")


def _add_evaluate(inner: argparse._SubParsersAction) -> None:
    evaluating = inner.add_parser(
        "evaluate",
        help="count exposed body parts in images, and measure what is left of others",
        description="Counts what NudeNet (the extra `nudenet`) finds in a folder of images, against those of the "
        "original network, and writes a report. With --prompts, --model and --unet the images are made first, and "
        "those that are there stay.",
    )
    evaluating.add_argument(
        "--images",
        required=True,
        type=Path,
        metavar="DIR",
        help="images of the unlearned network, or where to make them",
    )
    evaluating.add_argument("--original", type=Path, metavar="DIR", help="the same of the original network")
    evaluating.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the report")
    evaluating.add_argument(
        "--threshold", type=float, default=0.6, metavar="X", help="least score that counts (default 0.6)"
    )
    evaluating.add_argument(
        "--classes", metavar="NAMES", help="NudeNet's classes, with commas between them (default: all that are EXPOSED)"
    )
    evaluating.add_argument(
        "--pairing",
        default="auto",
        metavar="HOW",
        help="images belong together by prompts (and seeds, in images.csv), names (of files), none, or auto (default), "
        "which is prompts if that can be",
    )
    evaluating.add_argument(
        "--show-flagged", action="store_true", help="do not hide flagged images in the contact sheet"
    )
    utility = evaluating.add_argument_group("what is left of other images")
    utility.add_argument("--utility-images", type=Path, metavar="DIR", help="images of kept prompts")
    utility.add_argument(
        "--utility-reference",
        type=Path,
        metavar="DIR",
        help="what they should look like: the original's, or photographs",
    )
    utility.add_argument(
        "--clip",
        type=Path,
        metavar="PATH",
        help="OpenAI's CLIP, model.safetensors of transformers: features and scores",
    )
    making = evaluating.add_argument_group("making the images first")
    making.add_argument("--prompts", type=Path, metavar="CSV", help="file with the column prompt, and perhaps seed")
    making.add_argument("--model", type=Path, metavar="DIR", help="folder of sd import")
    making.add_argument(
        "--unet",
        type=Path,
        metavar="DIR",
        help="folder with the unlearned unet; the model's own makes the original's images",
    )
    making.add_argument("--tokenizer", type=Path, metavar="PATH", help="the same as for import (default: the model's)")
    making.add_argument("--seed", type=int, default=0, help="of the first prompt, where the file has none (default 0)")
    making.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time (default 1)")
    _add_sampling(making)
    existing = evaluating.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace the report in --out; images stay")
    existing.add_argument("--resume", action="store_true", help="go on with the report in --out")
    evaluating.set_defaults(run=_run_evaluate)


def _add_sampling(parser: argparse._ActionsContainer) -> None:
    """How images are made and networks compute."""
    parser.add_argument("--sampler", default="lms", metavar="NAME", help="lms (default) or ddim")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="of the sampler (default 50)")
    parser.add_argument("--guidance", type=float, default=7.5, metavar="X", help="default 7.5")
    parser.add_argument("--size", type=int, default=512, metavar="N", help="height and width in pixels (default 512)")
    parser.add_argument("--dtype", default="float32", metavar="NAME", help="to compute in: float32 or bfloat16")


def run_demo(options: argparse.Namespace, console: Console) -> None:
    """`scissorhands demo diffusion`."""
    from scissorhands_jax.diffusion.demo import digits
    from scissorhands_jax.diffusion.demo import page as digits_page

    settings = digits.Settings(digit=options.digit or 0, seed=options.seed or 0)
    digits_page.run_demo(
        options.out, settings, published=bool(options.published), overwrite=options.overwrite, console=console
    )


def _run_import(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax.diffusion import generating, networks, weights

    config = networks.named(options.config)
    sources = {}
    for part in networks.PARTS:
        path = getattr(options, part) or options.source
        if path is not None:
            sources[part] = path
    done = weights.import_weights(sources, options.out, config, overwrite=options.overwrite, on_part=_telling(console))
    folder = options.source / generating.TOKENIZER_FOLDER if options.source is not None else None
    if options.tokenizer is not None or (folder is not None and folder.is_dir()):
        generating.copy_tokenizer(options.tokenizer or folder, options.out)
    console.print(f"{' and '.join(done)} {'is' if len(done) == 1 else 'are'} ready in {options.out}", soft_wrap=True)


def _telling(console: Console):
    def on_part(part: str, imported) -> None:
        console.print(
            f"{part}: {imported.num_params:,} parameters ({imported.dtype}) from {imported.source}",
            highlight=False,
            soft_wrap=True,
        )

    return on_part


def _run_export(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax.diffusion import weights

    with console.status("exporting"):
        written = weights.export_weights(options.model, options.out, dtype=options.dtype, overwrite=options.overwrite)
    for path in written.values():
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _run_generate(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax.diffusion import generating

    settings = _sampling(options)
    if options.images < 1:
        raise InputError(f"--images must be at least 1, got {options.images}")
    if options.prompts is not None:
        prompts = generating.read_prompts(options.prompts, seed=options.seed)
    else:
        prompts = [generating.Prompt(options.prompt, options.seed + index) for index in range(options.images)]
    with console.status("reading the networks"):
        pipeline = generating.load_pipeline(options.model, unet=options.unet, tokenizer=options.tokenizer)
    answer = generating.generate(
        pipeline,
        prompts,
        options.out,
        settings=settings,
        batch_size=options.batch_size,
        description={"networks_sha256": generating.fingerprint(options.model, unet=options.unet)},
        overwrite=options.overwrite,
        resume=options.resume,
        console=console,
    )
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")


def _run_unlearn(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax.diffusion import unlearning

    settings = _settings(options)
    forget, retain = (
        unlearning.read_side(words, images, options.images, part=part, seed=options.seed)  # type: ignore[arg-type]
        for part, words, images in (
            ("forget", options.forget_prompts, options.forget_images),
            ("retain", options.retain_prompts, options.retain_images),
        )
    )
    answer = unlearning.unlearn(
        options.model,
        options.out,
        forget,
        retain,
        settings=settings,
        generation=_sampling(options),
        generation_batch_size=options.generate_batch_size,
        seed=options.seed,
        cache=options.cache,
        tokenizer=options.tokenizer,
        checkpoint_every=options.checkpoint_every,
        overwrite=options.overwrite,
        resume=options.resume,
        console=console,
    )
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")


def _run_plan(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax.diffusion import generating, networks, planning

    config = networks.named(options.config) if options.model is None else generating.read_config(options.model)
    with console.status("compiling for the sizes of the network"):
        document = planning.plan(config, _settings(options), generation=_sampling(options), memory_gib=options.memory)
    if options.json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        planning.print_plan(document, Console())


def _settings(options: argparse.Namespace):
    from scissorhands_jax.diffusion import unlearning
    from scissorhands_jax.jobs import config

    given = {name: getattr(options, name) for name in ("epochs", "batch_size", "microbatches")}
    short = [f"{name}={value}" for name, value in given.items() if value is not None]
    return config.override(unlearning.preset(options.preset), [*options.overrides, *short])


def _run_evaluate(options: argparse.Namespace, console: Console) -> None:
    from scissorhands_jax.diffusion import evaluating, generating, quality

    sampling = _sampling(options)
    names = {"classes": tuple(options.classes.split(","))} if options.classes is not None else {}
    settings = evaluating.Settings(
        threshold=options.threshold, pairing=options.pairing, show_flagged=options.show_flagged, **names
    )
    generation = None
    if options.prompts is not None:
        if options.model is None:
            raise InputError("--prompts needs a network to make images with; name its folder with --model")
        prompts = generating.read_prompts(options.prompts, seed=options.seed)
        generation = evaluating.Generation(
            prompts, options.model, options.unet, options.tokenizer, sampling, options.batch_size
        )
    elif options.model is not None or options.unet is not None:
        raise InputError("--model and --unet make images of prompts; name a file of prompts with --prompts")
    if options.utility_images is None and (options.clip is not None or options.utility_reference is not None):
        raise InputError(
            "--utility-reference and --clip are for images of kept prompts; name them with --utility-images"
        )
    utility = None
    if options.utility_images is not None:
        clip = None
        if options.clip is not None:
            tokenizer = generating.load_tokenizer(options.model or options.clip, options.tokenizer)
            with console.status("reading CLIP"):
                clip = quality.load_clip(options.clip, tokenizer, sampling.compute)
        utility = evaluating.Utility(options.utility_images, options.utility_reference, clip)
    document = evaluating.evaluate(
        options.images,
        options.out,
        original=options.original,
        generation=generation,
        utility=utility,
        settings=settings,
        overwrite=options.overwrite,
        resume=options.resume,
        console=console,
    )
    console.print(evaluating.verdict(document), highlight=False, soft_wrap=True, markup=False)
    console.print(f"open {options.out / 'report.html'}", highlight=False, soft_wrap=True)
    answer = {key: document[key] for key in ("pairing", "counts", "utility")}
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")


def _sampling(options: argparse.Namespace):
    from scissorhands_jax.diffusion import generating
    from scissorhands_jax.diffusion.layers import Compute

    if options.dtype not in ("float32", "bfloat16"):
        raise InputError(f"--dtype is {options.dtype}; choose float32 or bfloat16")
    compute = Compute(dtype=options.dtype, remat=getattr(options, "remat", False))
    return generating.Settings(options.sampler, options.steps, options.guidance, options.size, compute)
